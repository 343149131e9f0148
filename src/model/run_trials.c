/* What is decided by measuring, layer by layer: up to 256 rows are coded with feedback both ways, quickly,
 * and the lesser error of their output decides. Whether the rotation of a trellis pays; whether a trellis
 * beats GPTQ at 2 bits. Depends on weights and statistics alone, so that a run that is taken up finds the
 * same. */
#include "../quant/gptq.h"
#include "../quant/rotate.h"
#include "../quant/trellis.h"
#include "../simd/simd.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

typedef struct aq_trial {
    aq_run *run;
    aq_plan_tensor tensor; /* a copy, with the spec that is tried */
    uint64_t rows;
    aq_quant_layout layout;
    float *weights;        /* [rows, cols] */
    void *line;            /* a row as it is stored */
    unsigned char *codes, *params;
    double *errors;        /* [rows] */
    void *space, *memory;
    size_t bytes;
} aq_trial;

static size_t aq_trial_round(uint64_t bytes) {
    return (size_t)((bytes + 63) & ~(uint64_t)63);
}

static aq_status aq_trial_open(aq_trial *trial, aq_error *err) {
    const aq_plan_tensor *tensor = &trial->tensor;
    uint64_t values = 0;
    aq_status status =
        aq_quantized_size(&tensor->spec, trial->rows, tensor->cols, &trial->layout, err);
    if (status != AQ_OK) return status;
    if (!aq_mul_u64(trial->rows, tensor->cols, &values) || values > SIZE_MAX / 64)
        return aq_fail_memory(err, SIZE_MAX);
    size_t floats = aq_trial_round(values * sizeof(float));
    size_t line = aq_trial_round(tensor->cols * sizeof(float));
    size_t codes = aq_trial_round(trial->layout.code_bytes);
    size_t params = aq_trial_round(trial->layout.param_bytes);
    size_t errors = aq_trial_round(trial->rows * sizeof(double));
    trial->bytes = floats + line + codes + params + errors +
                   (size_t)aq_gptq_bytes(&tensor->spec, &trial->run->factor, trial->rows);
    trial->memory = aq_alloc(trial->run->context, trial->bytes);
    if (!trial->memory) return aq_fail_memory(err, trial->bytes);
    trial->weights = (float *)trial->memory;
    trial->line = (unsigned char *)trial->memory + floats;
    trial->codes = (unsigned char *)trial->line + line;
    trial->params = trial->codes + codes;
    trial->errors = (double *)(void *)(trial->params + params);
    trial->space = (unsigned char *)(void *)trial->errors + errors;
    return AQ_OK;
}

/* The rows as F32, as they are quantized but for the rotation. */
static aq_status aq_trial_load(aq_trial *trial, const aq_fp8_scale *scale, aq_error *err) {
    const aq_plan_tensor *tensor = &trial->tensor;
    size_t size = aq_dtype_size(tensor->dtype), cols = (size_t)tensor->cols;
    aq_status status = AQ_OK;
    for (uint64_t row = 0; status == AQ_OK && row < trial->rows; row++) {
        float *out = trial->weights + (size_t)row * cols;
        status = aq_run_read(trial->run, tensor, row * cols * size, trial->line, cols * size, err);
        if (status != AQ_OK) break;
        aq_little_endian(trial->line, cols, size);
        aq_to_f32(trial->run->context, tensor->dtype, trial->line, out, cols);
        if (scale->values) aq_fp8_apply(scale, out, row, 1, cols);
    }
    if (status == AQ_OK && tensor->input_scales)
        aq_fold_columns(trial->weights, trial->rows, tensor->cols, tensor->input_scales);
    return status;
}

/* The error of the rows' output; untouched when it is not to be had. */
static void aq_trial_code(aq_trial *trial, double *error) {
    aq_plan_tensor *tensor = &trial->tensor;
    aq_run *run = trial->run;
    aq_block_outcome outcome;
    aq_output_sums sums;
    double value = 0.0;
    if (aq_rotate_finite(aq_kernels_of(run->context), aq_spec_rotation(&tensor->spec),
                         trial->weights, (size_t)trial->rows, (size_t)tensor->cols,
                         &value) != SIZE_MAX)
        return;
    sums.signal = NULL;
    sums.error = trial->errors;
    aq_gptq_block(run->context, &run->factor, &tensor->spec, trial->weights, AQ_DTYPE_F32,
                  trial->rows, trial->codes, trial->params, NULL, trial->space, &outcome, &sums);
    if (aq_outcome_is_final(&outcome)) return;
    *error = 0.0;
    for (uint64_t row = 0; row < trial->rows; row++) *error += trial->errors[row];
}

/* The error of the output with this spec, in units that compare; below 0: not to be had. */
static aq_status aq_try(aq_run *run, const aq_plan_tensor *tensor, const aq_quant_spec *spec,
                        const aq_fp8_scale *scale, double *error, aq_error *err) {
    aq_trial trial;
    bool usable = true;
    *error = -1.0;
    memset(&trial, 0, sizeof(trial));
    trial.run = run;
    trial.tensor = *tensor;
    trial.tensor.spec = *spec;
    trial.tensor.spec.params = AQ_PARAM_F32;
    trial.rows = tensor->rows < AQ_TRELLIS_ROWS ? tensor->rows : AQ_TRELLIS_ROWS;
    aq_status status = aq_run_factor(run, &trial.tensor, &usable, err);
    if (status != AQ_OK || !usable) return status;
    status = aq_trial_open(&trial, err);
    if (status == AQ_OK) status = aq_trial_load(&trial, scale, err);
    if (status == AQ_OK) aq_trial_code(&trial, error);
    aq_free(run->context, trial.memory, trial.bytes);
    return status;
}

/* Both bases, quickly. The better one to *rotation, its error to *error; below 0: one is not to be had. */
static aq_status aq_try_rotation(aq_run *run, const aq_plan_tensor *tensor, uint32_t seed,
                                 const aq_fp8_scale *scale, uint32_t *rotation, double *error,
                                 aq_error *err) {
    aq_quant_spec spec = tensor->spec;
    double plain = -1.0, turned = -1.0;
    spec.states = 256;
    spec.fit = AQ_FIT_FAST;
    spec.rotation = 0;
    aq_status status = aq_try(run, tensor, &spec, scale, &plain, err);
    spec.rotation = seed;
    if (status == AQ_OK && plain >= 0.0) status = aq_try(run, tensor, &spec, scale, &turned, err);
    *rotation = turned < plain ? seed : 0;
    *error = turned < plain ? turned : plain;
    if (plain < 0.0 || turned < 0.0) *error = -1.0;
    return status;
}

AQ_LIB aq_status aq_run_rotation(aq_run *run, aq_plan_tensor *tensor, const aq_fp8_scale *scale,
                                 aq_error *err) {
    uint32_t seed = tensor->spec.rotation, rotation = 0;
    double error = -1.0;
    if (run->plan->config.method == AQ_METHOD_AUTO) return AQ_OK; /* known from aq_run_choose */
    if (!seed || aq_dtype_size(tensor->dtype) > sizeof(float)) return AQ_OK;
    aq_status status = aq_try_rotation(run, tensor, seed, scale, &rotation, &error, err);
    if (status != AQ_OK || error < 0.0) return status;
    tensor->spec.rotation = rotation;
    tensor->method_detail = rotation ? "second moments are known, a rotated input errs less"
                                     : "second moments are known, a rotated input errs more";
    return AQ_OK;
}

AQ_LIB aq_status aq_run_choose(aq_run *run, aq_plan_tensor *tensor, const aq_fp8_scale *scale,
                               aq_error *err) {
    aq_plan_tensor other = *tensor;
    double gptq = -1.0, trellis = -1.0;
    uint32_t rotation = 0;
    if (run->plan->config.method != AQ_METHOD_AUTO || tensor->method != AQ_METHOD_GPTQ ||
        run->plan->state->container->format != AQ_OUTPUT_NATIVE || tensor->bits != 2 ||
        aq_dtype_size(tensor->dtype) > sizeof(float))
        return AQ_OK;
    aq_status status = aq_plan_store_trellis(run->plan, &other, err);
    if (status != AQ_OK || other.output_bytes > tensor->output_bytes) return status;
    status = aq_try(run, tensor, &tensor->spec, scale, &gptq, err);
    if (status == AQ_OK && gptq >= 0.0)
        status = aq_try_rotation(run, &other, other.spec.rotation, scale, &rotation, &trellis, err);
    if (status != AQ_OK || trellis < 0.0) return status;
    tensor->method_detail = "second moments are known, a trellis errs more";
    if (trellis < gptq) {
        *tensor = other;
        tensor->spec.rotation = rotation;
        tensor->method_detail = rotation ? "second moments are known, it errs less than GPTQ, rotated"
                                         : "second moments are known, it errs less than GPTQ";
    }
    return AQ_OK;
}

#endif /* ARROWQUANT_NO_STDIO */
