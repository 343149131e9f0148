/* Rows of a tensor in a trellis code, wherever they lie in its strips, in the basis of the original. */
#include "rotate.h"
#include "trellis.h"

AQ_LIB void aq_trellis_rows(const struct aq_kernels *kernels, const aq_quant_spec *spec,
                            const void *codes, const void *params, uint64_t rows, uint64_t cols,
                            uint64_t first, uint64_t count, float *out) {
    aq_quant_layout layout;
    uint64_t done, taken;
    if (aq_quantized_size(spec, rows, cols, &layout, NULL) != AQ_OK || !cols) {
        return;
    }
    aq_simd_mode mode = aq_simd_mode_enter();
    for (done = 0; done < count; done += taken) {
        uint64_t row = first + done, strip = row / AQ_TRELLIS_ROWS * AQ_TRELLIS_ROWS;
        uint64_t height = rows - strip < AQ_TRELLIS_ROWS ? rows - strip : AQ_TRELLIS_ROWS;
        aq_trellis_part part;
        float *to = out + (size_t)(done * cols);
        taken = strip + height - row;
        taken = count - done < taken ? count - done : taken;
        part.codes = (const uint8_t *)codes + (size_t)(strip * layout.row_code_bytes);
        part.params = (const uint8_t *)params + (size_t)(strip * layout.row_param_bytes);
        part.height = (size_t)height;
        part.cols = part.count = (size_t)cols;
        part.first = (size_t)(row - strip);
        part.rows = (size_t)taken;
        part.begin = 0;
        aq_trellis_decode(kernels, spec, &part, to, (size_t)cols);
        aq_rotate_back(kernels, aq_spec_rotation(spec), to, (size_t)taken, (size_t)cols);
    }
    aq_simd_mode_leave(mode);
}

AQ_LIB aq_status aq_rotated_weights(const aq_context *context, const aq_quant_spec *spec,
                                    const void *weights, aq_dtype dtype, uint64_t rows,
                                    uint64_t cols, float **out, aq_error *err) {
    uint64_t count = 0, bytes = 0;
    aq_block_outcome outcome;
    double value = 0.0;
    size_t bad;
    if (!aq_mul_u64(rows, cols, &count) || !aq_mul_u64(count, sizeof(float), &bytes) ||
        bytes > SIZE_MAX) {
        return aq_fail_memory(err, SIZE_MAX);
    }
    *out = (float *)aq_alloc_work(context, (size_t)bytes);
    if (!*out) {
        return aq_fail_memory(err, (size_t)bytes);
    }
    aq_to_f32(context, dtype, weights, *out, (size_t)count);
    bad = aq_rotate_finite(aq_kernels_of(context), aq_spec_rotation(spec), *out, (size_t)rows,
                           (size_t)cols, &value);
    if (bad == SIZE_MAX) {
        return AQ_OK;
    }
    aq_free_work(context, *out, (size_t)bytes);
    *out = NULL;
    memset(&outcome, 0, sizeof outcome);
    outcome.not_finite = true;
    outcome.bad_index = bad;
    outcome.bad_value = value;
    return aq_outcome_fail(&outcome, 0, cols, spec->params, err);
}
