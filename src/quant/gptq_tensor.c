/* A whole tensor by GPTQ, and the output error of any quantized tensor: a factor of the Hessian, then
 * rows on all threads. */
#include "gptq.h"
#include "linear.h"
#include "tile.h"
#include "rotate.h"
#include "trellis.h"

#include "../base/thread.h"

typedef struct aq_gptq_run {
    const aq_context *context;
    aq_factor factor;
    aq_quant_spec spec;
    aq_quant_layout layout;
    aq_dtype dtype;
    const uint8_t *weights;
    uint8_t *codes, *params, *extra;
    bool measure_only;
    float *rotated;  /* the weights, when they are to be */
    uint64_t chunk_rows;
    size_t chunks;
    unsigned char *spaces;  /* a worker each */
    size_t space_bytes;
    uint32_t workers;
    double *energies;       /* [2][rows]: signal, error; NULL: not wanted */
    aq_block_outcome *outcomes; /* a chunk each; later a block each */
    size_t outcome_count;
} aq_gptq_run;

static aq_status aq_gptq_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    aq_gptq_run *run = (aq_gptq_run *)user;
    const aq_quant_layout *layout = &run->layout;
    uint64_t first = (uint64_t)index * run->chunk_rows, left = layout->rows - first;
    uint64_t rows = left < run->chunk_rows ? left : run->chunk_rows;
    size_t row_bytes = (size_t)layout->cols * aq_dtype_size(run->dtype);
    const uint8_t *weights = run->weights + (size_t)first * row_bytes;
    uint8_t *codes = run->codes + (size_t)(first * layout->row_code_bytes);
    uint8_t *params = run->params + (size_t)(first * layout->row_param_bytes);
    uint8_t *extra = run->extra ? run->extra + (size_t)(first * layout->row_extra_bytes) : NULL;
    void *space = run->spaces + worker * run->space_bytes;
    aq_output_sums sums;
    (void)err;
    sums.signal = run->energies ? run->energies + (size_t)first : NULL;
    sums.error = run->energies ? run->energies + (size_t)(layout->rows + first) : NULL;
    if (run->measure_only) {
        aq_output_block(run->context, &run->factor, &run->spec, weights, run->dtype, rows, codes,
                        params, extra, space, &sums);
    } else {
        aq_gptq_block(run->context, &run->factor, &run->spec, weights, run->dtype, rows, codes,
                      params, extra, space, &run->outcomes[index], &sums);
    }
    return AQ_OK;
}

/* The quality is measured over the same blocks as everywhere, so that its sums are the same. */
static aq_status aq_gptq_quality_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    aq_gptq_run *run = (aq_gptq_run *)user;
    const aq_quant_layout *layout = &run->layout;
    uint64_t block = aq_spec_block_rows(&run->spec, layout->cols), first = (uint64_t)index * block;
    uint64_t rows = layout->rows - first < block ? layout->rows - first : block;
    size_t row_bytes = (size_t)layout->cols * aq_dtype_size(run->dtype);
    (void)worker;
    (void)err;
    memset(&run->outcomes[index].quality, 0, sizeof run->outcomes[index].quality);
    aq_measure_block(run->context, &run->spec, run->weights + (size_t)first * row_bytes,
                     run->dtype, rows, layout->cols,
                     run->codes + (size_t)(first * layout->row_code_bytes),
                     run->params + (size_t)(first * layout->row_param_bytes),
                     run->extra ? run->extra + (size_t)(first * layout->row_extra_bytes) : NULL,
                     &run->outcomes[index].quality);
    return AQ_OK;
}

/* ---- arguments */

static aq_status aq_gptq_check(const aq_gptq_run *run, const float *hessian, const char *function,
                               aq_error *err) {
    const aq_quant_layout *layout = &run->layout;
    uint64_t bytes = 0, square = 0;
    if (run->spec.code != AQ_CODE_AFFINE && run->spec.code != AQ_CODE_SYMMETRIC &&
        run->spec.code != AQ_CODE_ZERO_POINT && run->spec.code != AQ_CODE_TRELLIS &&
        !run->measure_only) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: the code %s has a search of its own; use "
                       "aq_quantize", function, aq_code_name(run->spec.code));
    }
    if (!aq_dtype_is_float(run->dtype)) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED,
                       "weights of type %s cannot be quantized; expected a float type",
                       aq_dtype_name(run->dtype));
    }
    if (!aq_mul_u64(layout->rows * layout->cols, aq_dtype_size(run->dtype), &bytes) ||
        !aq_mul_u64(layout->cols, layout->cols, &square) || square > SIZE_MAX / 64 ||
        bytes > SIZE_MAX || layout->code_bytes > SIZE_MAX || layout->param_bytes > SIZE_MAX ||
        layout->rows > SIZE_MAX / 64) {
        return aq_fail(err, AQ_ERR_SHAPE, "[%llu, %llu] does not fit this machine's memory",
                       (unsigned long long)layout->rows, (unsigned long long)layout->cols);
    }
    if (bytes && (!run->weights || !run->codes || !run->params || !hessian ||
                  (!run->extra && layout->extra_bytes))) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "%s: %s is NULL", function,
                       !run->weights  ? "weights"
                       : !run->codes  ? "codes"
                       : !run->params ? "params"
                       : !hessian     ? "hessian" : "extra, which Q8 parameters need,");
    }
    return AQ_OK;
}

/* Rows at once: enough that the factor is read seldom, few enough that all threads have some. It
 * depends on the shape alone. */
static uint64_t aq_gptq_chunk_rows(const aq_quant_spec *spec, uint64_t rows) {
    uint64_t part = (rows / 8 + AQ_PANEL) / AQ_PANEL * AQ_PANEL;
    if (spec->code == AQ_CODE_TRELLIS) {
        return AQ_TRELLIS_ROWS;
    }
    return part < AQ_GPTQ_ROWS ? part : AQ_GPTQ_ROWS;
}

/* ---- memory */

static aq_status aq_gptq_open(aq_context *context, aq_gptq_run *run, bool energies,
                              aq_error *err) {
    uint64_t rows = run->layout.rows, block = aq_spec_block_rows(&run->spec, run->layout.cols);
    size_t blocks = (size_t)((rows - 1) / block + 1), count;
    run->chunk_rows = aq_gptq_chunk_rows(&run->spec, rows);
    run->chunks = (size_t)((rows - 1) / run->chunk_rows + 1);
    run->workers = aq_thread_count(context);
    run->workers = run->workers > run->chunks ? (uint32_t)run->chunks : run->workers;
    uint64_t bytes = aq_gptq_bytes(&run->spec, &run->factor, run->chunk_rows);
    run->space_bytes = bytes > SIZE_MAX / run->workers ? 0 : (size_t)bytes;
    count = blocks > run->chunks ? blocks : run->chunks;
    run->outcome_count = count;
    run->spaces = run->space_bytes
                      ? (unsigned char *)aq_alloc(context, run->workers * run->space_bytes) : NULL;
    run->outcomes = (aq_block_outcome *)aq_alloc(context, count * sizeof *run->outcomes);
    run->energies =
        energies ? (double *)aq_alloc(context, 2 * (size_t)rows * sizeof(double)) : NULL;
    if (!run->spaces || !run->outcomes || (energies && !run->energies)) {
        return aq_fail_memory(err, run->workers * run->space_bytes);
    }
    return AQ_OK;
}

static void aq_gptq_close(aq_context *context, aq_gptq_run *run) {
    aq_free(context, run->spaces, run->workers * run->space_bytes);
    aq_free(context, run->outcomes, run->outcome_count * sizeof *run->outcomes);
    aq_free(context, run->energies, 2 * (size_t)run->layout.rows * sizeof(double));
    if (run->rotated) {
        aq_free(context, run->rotated,
                (size_t)(run->layout.rows * run->layout.cols) * sizeof(float));
    }
    aq_factor_free(&run->factor);
}

/* ---- the whole */

/* Rows' energies in order, so that the sums do not depend on how the rows were shared out. */
static void aq_gptq_energies(const aq_gptq_run *run, aq_gptq_result *result) {
    size_t row, rows = (size_t)run->layout.rows;
    result->output_signal = result->output_error = 0.0;
    for (row = 0; row < rows; row++) {
        result->output_signal += run->energies[row];
        result->output_error += run->energies[rows + row];
    }
    result->damping = run->factor.damping;
}

static aq_status aq_gptq_outcomes(aq_context *context, aq_gptq_run *run, aq_gptq_result *result,
                                  aq_error *err) {
    uint64_t block = aq_spec_block_rows(&run->spec, run->layout.cols);
    size_t i, blocks = (size_t)((run->layout.rows - 1) / block + 1);
    for (i = 0; i < run->chunks && !run->measure_only; i++) {
        if (aq_outcome_is_final(&run->outcomes[i])) {
            return aq_outcome_fail(&run->outcomes[i], i * run->chunk_rows, run->layout.cols,
                                   run->spec.params, err);
        }
    }
    if (!result) {
        return AQ_OK;
    }
    aq_gptq_energies(run, result);
    aq_status status = aq_parallel_for(context, run->workers, blocks, aq_gptq_quality_task, run,
                                       err);
    for (i = 0; status == AQ_OK && i < blocks; i++) {
        aq_quality_add(&result->quality, &run->outcomes[i].quality);
    }
    return status;
}

/* The factor of the Hessian, of the rotated input if it is to be. */
static aq_status aq_gptq_factor(aq_context *context, aq_gptq_run *run, const float *hessian,
                                aq_error *err) {
    size_t n = (size_t)run->layout.cols, bytes = n * n * sizeof(float);
    uint32_t threads = aq_thread_count(context), seed = aq_spec_rotation(&run->spec);
    float *turned;
    aq_status status;
    if (!seed) {
        status = aq_factor_make(context, threads, hessian, n, &run->factor, err);
        run->factor.hessian = hessian;
        return status;
    }
    turned = (float *)aq_alloc(context, bytes);
    if (!turned) {
        return aq_fail_memory(err, bytes);
    }
    memcpy(turned, hessian, bytes);
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_rotate_hessian(aq_kernels_of(context), seed, turned, n);
    aq_simd_mode_leave(mode);
    status = aq_factor_make(context, threads, turned, n, &run->factor, err);
    aq_free(context, turned, bytes);
    return status;
}

static aq_status aq_gptq_run_all(aq_context *context, aq_gptq_run *run, const float *hessian,
                                 aq_gptq_result *result, aq_error *err) {
    aq_status status = aq_gptq_factor(context, run, hessian, err);
    run->context = context;
    if (status == AQ_OK && aq_spec_rotation(&run->spec)) {
        status = aq_rotated_weights(context, &run->spec, run->weights, run->dtype,
                                    run->layout.rows, run->layout.cols, &run->rotated, err);
        run->weights = (const uint8_t *)run->rotated;
        run->dtype = AQ_DTYPE_F32;
    }
    if (status == AQ_OK) {
        status = aq_gptq_open(context, run, result != NULL, err);
    }
    if (status == AQ_OK) {
        status = aq_parallel_for(context, run->workers, run->chunks, aq_gptq_task, run, err);
    }
    if (status == AQ_OK) {
        status = aq_gptq_outcomes(context, run, result, err);
    }
    aq_gptq_close(context, run);
    return status;
}

static aq_status aq_gptq_call(aq_context *context, const char *function, aq_gptq_run *run,
                              const aq_quant_spec *spec, uint64_t rows, uint64_t cols,
                              const float *hessian, aq_gptq_result *result, aq_error *err) {
    aq_context local;
    aq_gptq_result made;
    aq_status status = aq_quantized_size(spec, rows, cols, &run->layout, err);
    if (status != AQ_OK) {
        return status;
    }
    run->spec = *spec;
    memset(&made, 0, sizeof made);
    status = aq_gptq_check(run, hessian, function, err);
    if (status == AQ_OK && rows && cols) {
        status = aq_gptq_run_all(aq_context_resolved(context, &local), run, hessian,
                                 result ? &made : NULL, err);
    }
    if (status == AQ_OK && result) {
        *result = made;
    }
    return status;
}

ARROWQUANT_API aq_status aq_quantize_gptq(aq_context *context, const aq_quant_spec *spec,
                                          const void *weights, aq_dtype dtype, uint64_t rows,
                                          uint64_t cols, const float *hessian, void *codes,
                                          void *params, void *extra, aq_gptq_result *result,
                                          aq_error *err) {
    aq_gptq_run run;
    memset(&run, 0, sizeof run);
    run.dtype = dtype;
    run.weights = (const uint8_t *)weights;
    run.codes = (uint8_t *)codes;
    run.params = (uint8_t *)params;
    run.extra = (uint8_t *)extra;
    return aq_gptq_call(context, "aq_quantize_gptq", &run, spec, rows, cols, hessian, result, err);
}

/* The codes are only read: they are not const in the run because it writes them when it quantizes. */
ARROWQUANT_API aq_status aq_measure_output(aq_context *context, const aq_quant_spec *spec,
                                           const void *weights, aq_dtype dtype, uint64_t rows,
                                           uint64_t cols, const float *hessian, const void *codes,
                                           const void *params, const void *extra,
                                           aq_gptq_result *result, aq_error *err) {
    aq_gptq_run run;
    memset(&run, 0, sizeof run);
    if (!result) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_measure_output: result is NULL");
    }
    run.dtype = dtype;
    run.measure_only = true;
    run.weights = (const uint8_t *)weights;
    run.codes = (uint8_t *)(uintptr_t)codes;
    run.params = (uint8_t *)(uintptr_t)params;
    run.extra = (uint8_t *)(uintptr_t)extra;
    return aq_gptq_call(context, "aq_measure_output", &run, spec, rows, cols, hessian, result, err);
}
