/* An interleaved copy of a layer's codes, for products with INT8 activations. For every 16 rows (behind
 * the last one rows of zeros) it holds
 *     parameters  [groups][1 or 2][16]: scales, and the mins of an affine code, where the file has them as
 *                 plain numbers of 16 or 32 bits; none otherwise, they are read from the file's then
 *     codes       [bytes of a row / 4][16][4]
 * each up to whole lines of 64 bytes, the first of which lies on one. */
#include "infer.h"

AQ_LIB bool aq_interleaved_layout(const aq_weights *weights, aq_interleaved *out) {
    const aq_quant_spec *spec = &weights->linear->spec;
    const bool plain = spec->code == AQ_CODE_AFFINE || spec->code == AQ_CODE_SYMMETRIC;
    uint64_t end = 0, total = 0;
    bool fits = true;
    memset(out, 0, sizeof *out);
    out->values = spec->code == AQ_CODE_AFFINE ? 2 : 1;
    out->size = !plain ? 0 : spec->params == AQ_PARAM_F16 ? 2 : spec->params == AQ_PARAM_F32 ? 4 : 0;
    (void)aq_piece(&end, (uint64_t)weights->groups * AQ_LINEAR_ROWS,
                   (uint64_t)out->values * out->size, &fits);
    out->codes = aq_piece(&end, weights->layout.row_code_bytes, AQ_LINEAR_ROWS, &fits);
    out->block = (size_t)end;
    fits = fits && aq_mul_u64(end, (weights->layout.rows + AQ_LINEAR_ROWS - 1) / AQ_LINEAR_ROWS, &total) &&
           aq_add_u64(total, AQ_LINEAR_LINE - 1u, &total) && total <= SIZE_MAX;
    out->total = (size_t)total;
    return fits && end > 0 && weights->rows > 0;
}

static bool aq_repack_open(const aq_context *context, const aq_linear *linear, aq_weights *weights,
                           aq_interleaved *layout) {
    return aq_weights_open(context, linear, weights, NULL) == AQ_OK && linear->quantized &&
           !weights->trellis && weights->infer->interleaved && aq_interleaved_layout(weights, layout);
}

ARROWQUANT_API size_t aq_linear_repacked_size(const aq_context *context, const aq_linear *linear) {
    aq_weights weights;
    aq_interleaved layout;
    return aq_repack_open(context, linear, &weights, &layout) ? layout.total : 0;
}

/* `count` numbers of `size` bytes of some rows, `stride` bytes apart: to [count][16]. */
static void aq_interleave(const uint8_t *in, size_t stride, size_t rows, size_t count, size_t size,
                          uint8_t *out) {
    size_t i, row;
    for (i = 0; i < count; i++) {
        for (row = 0; row < rows; row++) {
            memcpy(out + (i * AQ_LINEAR_ROWS + row) * size, in + row * stride + i * size, size);
        }
    }
}

ARROWQUANT_API aq_status aq_linear_repack(aq_context *context, const aq_linear *linear, void *memory,
                                          size_t bytes, aq_linear *out, aq_error *err) {
    aq_weights weights;
    aq_interleaved layout;
    uint8_t *block;
    size_t row, row_params, row_codes;
    aq_status status = aq_weights_open(context, linear, &weights, err);
    if (status != AQ_OK) {
        return status;
    }
    if (!out) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_linear_repack: out is NULL");
    }
    if (!aq_repack_open(context, linear, &weights, &layout)) {
        *out = *linear;
        out->interleaved = NULL;
        return AQ_OK;
    }
    if (!memory || bytes < layout.total) {
        return aq_fail(err, AQ_ERR_ARGUMENT,
                       "memory of %llu bytes; aq_linear_repacked_size asks for %llu",
                       memory ? (unsigned long long)bytes : 0ull, (unsigned long long)layout.total);
    }
    block = (uint8_t *)memory + (AQ_LINEAR_LINE - (uintptr_t)memory % AQ_LINEAR_LINE) % AQ_LINEAR_LINE;
    row_params = (size_t)weights.layout.row_param_bytes;
    row_codes = (size_t)weights.layout.row_code_bytes;
    memset(memory, 0, layout.total);
    *out = *linear;
    out->interleaved = block;
    for (row = 0; row < weights.rows; row += AQ_LINEAR_ROWS, block += layout.block) {
        const size_t rows = weights.rows - row < AQ_LINEAR_ROWS ? weights.rows - row : AQ_LINEAR_ROWS;
        if (layout.size != 0) {
            aq_interleave((const uint8_t *)linear->params + row * row_params, row_params, rows,
                          weights.groups * layout.values, layout.size, block);
        }
        aq_interleave((const uint8_t *)linear->codes + row * row_codes, row_codes, rows, row_codes / 4, 4,
                      block + layout.codes);
    }
    return AQ_OK;
}

/* ---- reading */

static const uint8_t *aq_interleaved_block(const aq_weights *weights, size_t row) {
    return weights->interleaved + row / AQ_LINEAR_ROWS * weights->interleaving.block;
}

AQ_LIB const uint8_t *aq_interleaved_codes(const aq_weights *weights, size_t row) {
    return aq_interleaved_block(weights, row) + weights->interleaving.codes;
}

AQ_LIB bool aq_interleaved_params(const aq_weights *weights, size_t row, float *own, float *out) {
    const aq_interleaved *layout = &weights->interleaving;
    const size_t count = weights->groups * layout->values * AQ_LINEAR_ROWS;
    float *to = layout->values == 2 ? out : own;
    size_t group;
    if (layout->size == 0) {
        return false;
    }
    aq_widen_file(weights->kernels, layout->size == 2 ? AQ_DTYPE_F16 : AQ_DTYPE_F32,
                  aq_interleaved_block(weights, row), to, count);
    for (group = 0; layout->values == 1 && group < weights->groups; group++) { /* mins of 0 */
        float *both = out + 2 * AQ_LINEAR_ROWS * group;
        memcpy(both, own + AQ_LINEAR_ROWS * group, AQ_LINEAR_ROWS * sizeof *both);
        memset(both + AQ_LINEAR_ROWS, 0, AQ_LINEAR_ROWS * sizeof *both);
    }
    return true;
}

AQ_LIB void aq_interleaved_job(const aq_weights *weights, size_t row, aq_linear_interleaved *job) {
    memset(job, 0, sizeof *job);
    job->codes = aq_interleaved_codes(weights, row);
    job->row_bytes = (size_t)weights->layout.row_code_bytes;
    job->bits = weights->linear->spec.bits;
    job->group = weights->linear->spec.group_size;
    job->params = aq_interleaved_block(weights, row);
    job->param_bytes = weights->interleaving.size;
    job->values = weights->interleaving.values;
    job->half = weights->half;
}
