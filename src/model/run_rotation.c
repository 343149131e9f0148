/* Whether the rotation of a trellis pays, layer by layer: up to 256 rows are coded with feedback both
 * ways, quickly, and the lesser error of their output decides. Depends on weights and statistics alone,
 * so that a run that is taken up finds the same. */
#include "../quant/gptq.h"
#include "../quant/rotate.h"
#include "../quant/trellis.h"
#include "../simd/simd.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

typedef struct aq_rotation_trial {
    aq_run *run;
    aq_plan_tensor tensor; /* a copy, of few states */
    uint64_t rows;
    aq_quant_layout layout;
    float *weights, *turned; /* [rows, cols] */
    unsigned char *codes, *params;
    double *errors;          /* [rows] */
    void *space, *memory;
    size_t bytes;
} aq_rotation_trial;

static size_t aq_trial_round(uint64_t bytes) {
    return (size_t)((bytes + 63) & ~(uint64_t)63);
}

static aq_status aq_trial_open(aq_rotation_trial *trial, aq_error *err) {
    const aq_plan_tensor *tensor = &trial->tensor;
    uint64_t values = 0;
    aq_status status =
        aq_quantized_size(&tensor->spec, trial->rows, tensor->cols, &trial->layout, err);
    if (status != AQ_OK) return status;
    if (!aq_mul_u64(trial->rows, tensor->cols, &values) || values > SIZE_MAX / 64)
        return aq_fail_memory(err, SIZE_MAX);
    size_t floats = aq_trial_round(values * sizeof(float));
    size_t codes = aq_trial_round(trial->layout.code_bytes);
    size_t params = aq_trial_round(trial->layout.param_bytes);
    size_t errors = aq_trial_round(trial->rows * sizeof(double));
    trial->bytes = 2 * floats + codes + params + errors +
                   (size_t)aq_gptq_bytes(&tensor->spec, &trial->run->factor, trial->rows);
    trial->memory = aq_alloc(trial->run->context, trial->bytes);
    if (!trial->memory) return aq_fail_memory(err, trial->bytes);
    trial->weights = (float *)trial->memory;
    trial->turned = trial->weights + floats / sizeof(float);
    trial->codes = (unsigned char *)trial->memory + 2 * floats;
    trial->params = trial->codes + codes;
    trial->errors = (double *)(void *)(trial->params + params);
    trial->space = (unsigned char *)(void *)trial->errors + errors;
    return AQ_OK;
}

/* The rows as F32. `turned` has room for them as they are stored, unless they are F64. */
static aq_status aq_trial_load(aq_rotation_trial *trial, const aq_fp8_scale *scale, aq_error *err) {
    const aq_plan_tensor *tensor = &trial->tensor;
    size_t size = aq_dtype_size(tensor->dtype), cols = (size_t)tensor->cols;
    aq_status status = AQ_OK;
    for (uint64_t row = 0; status == AQ_OK && row < trial->rows; row++) {
        float *out = trial->weights + (size_t)row * cols;
        status = aq_run_read(trial->run, tensor, row * cols * size, trial->turned, cols * size, err);
        if (status != AQ_OK) break;
        aq_little_endian(trial->turned, cols, size);
        aq_to_f32(trial->run->context, tensor->dtype, trial->turned, out, cols);
        if (scale->values) aq_fp8_apply(scale, out, row, 1, cols);
    }
    return status;
}

/* The error of the output with this seed; below 0: not to be had. */
static aq_status aq_trial_error(aq_rotation_trial *trial, uint32_t seed, double *error,
                                aq_error *err) {
    aq_plan_tensor *tensor = &trial->tensor;
    aq_run *run = trial->run;
    aq_block_outcome outcome;
    aq_output_sums sums;
    double value = 0.0;
    bool usable = true;
    tensor->spec.rotation = seed;
    *error = -1.0;
    aq_status status = aq_run_factor(run, tensor, &usable, err);
    if (status != AQ_OK || !usable) return status;
    memcpy(trial->turned, trial->weights, (size_t)(trial->rows * tensor->cols) * sizeof(float));
    if (aq_rotate_finite(aq_kernels_of(run->context), seed, trial->turned, (size_t)trial->rows,
                         (size_t)tensor->cols, &value) != SIZE_MAX)
        return AQ_OK;
    sums.signal = NULL;
    sums.error = trial->errors;
    aq_gptq_block(run->context, &run->factor, &tensor->spec, trial->turned, AQ_DTYPE_F32,
                  trial->rows, trial->codes, trial->params, NULL, trial->space, &outcome, &sums);
    if (aq_outcome_is_final(&outcome)) return AQ_OK;
    *error = 0.0;
    for (uint64_t row = 0; row < trial->rows; row++) *error += trial->errors[row];
    return AQ_OK;
}

AQ_LIB aq_status aq_run_rotation(aq_run *run, aq_plan_tensor *tensor, const aq_fp8_scale *scale,
                                 aq_error *err) {
    aq_rotation_trial trial;
    double plain = -1.0, turned = -1.0;
    bool usable = true;
    uint32_t seed = tensor->spec.rotation;
    if (!seed || aq_dtype_size(tensor->dtype) > sizeof(float)) return AQ_OK;
    memset(&trial, 0, sizeof(trial));
    trial.run = run;
    trial.tensor = *tensor;
    trial.tensor.spec.states = 256;
    trial.tensor.spec.fit = AQ_FIT_FAST;
    trial.tensor.spec.params = AQ_PARAM_F32;
    trial.tensor.spec.rotation = 0;
    trial.rows = tensor->rows < AQ_TRELLIS_ROWS ? tensor->rows : AQ_TRELLIS_ROWS;
    aq_status status = aq_run_factor(run, &trial.tensor, &usable, err);
    if (status != AQ_OK || !usable) return status;
    status = aq_trial_open(&trial, err);
    if (status == AQ_OK) status = aq_trial_load(&trial, scale, err);
    if (status == AQ_OK) status = aq_trial_error(&trial, 0, &plain, err);
    if (status == AQ_OK) status = aq_trial_error(&trial, seed, &turned, err);
    aq_free(run->context, trial.memory, trial.bytes);
    if (status != AQ_OK || plain < 0.0 || turned < 0.0) return status;
    tensor->spec.rotation = turned < plain ? seed : 0;
    tensor->method_detail = turned < plain ? "second moments are known, a rotated input errs less"
                                           : "second moments are known, a rotated input errs more";
    return AQ_OK;
}

#endif /* ARROWQUANT_NO_STDIO */
