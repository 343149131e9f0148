/* Equalization in a plan: which layers' inputs are scaled, and by what. The strength is searched for on
 * the layer's statistics (aq_equalize); whether it is worth anything is then measured: up to 256 rows
 * of the weight are quantized as the run will, with the scales and without. What counts is the error
 * of the output: that of the weights by the second moments of the input, and where the run stores static
 * integers for the input, what rounding to 8 bits does, as noise of step²/12 at each timestep.
 *
 * All of it depends on weights, statistics and config alone, so that every process that shares a run, or
 * takes one up, finds the same scales. */
#include "method.h"
#include "run.h"
#include "../simd/simd.h"

#include <math.h>

#ifndef ARROWQUANT_NO_STDIO

#define AQ_SAMPLE_ROWS 256u

/* Rows of one layer, and what quantizing them takes. */
typedef struct aq_equalize_sample {
    aq_run *run;
    aq_context context;  /* with the run's number of threads */
    aq_plan_tensor tensor; /* a copy that gets the scales while they are tried */
    uint64_t rows;
    float *original, *folded; /* [rows, cols] */
    float *scales;            /* [cols] */
    void *memory;
    size_t bytes;
} aq_equalize_sample;

static bool aq_can_equalize(const aq_plan_tensor *tensor) {
    const aq_calibration_layer *layer = tensor->statistics;
    return tensor->bits < 16 && tensor->rank == 2 && tensor->rows && layer && layer->absmax &&
           layer->pooled_absmax && layer->pooled_sqmean &&
           (tensor->spec.code == AQ_CODE_AFFINE || tensor->spec.code == AQ_CODE_SYMMETRIC);
}

/* Evenly spaced rows of the weight as F32. */
static aq_status aq_sample_load(aq_equalize_sample *sample, aq_error *err) {
    const aq_plan_tensor *tensor = &sample->tensor;
    aq_run *run = sample->run;
    aq_fp8_scale scale;
    float *values = NULL;
    size_t count = 0, element = aq_dtype_size(tensor->dtype), cols = (size_t)tensor->cols;
    aq_status status = aq_run_input(run, tensor->shard, err);
    memset(&scale, 0, sizeof(scale));
    if (status == AQ_OK && tensor->scale != AQ_NO_TENSOR)
        status = aq_run_scale(run, tensor, &scale, &values, &count, err);
    for (uint64_t i = 0; status == AQ_OK && i < sample->rows; i++) {
        uint64_t row = i * tensor->rows / sample->rows;
        float *out = sample->original + (size_t)i * cols;
        status = aq_run_read(run, tensor, row * cols * element, sample->folded, cols * element, err);
        if (status != AQ_OK) break;
        aq_little_endian(sample->folded, cols, element);
        aq_to_f32(run->context, tensor->dtype, sample->folded, out, cols);
        if (scale.values) aq_fp8_apply(&scale, out, row, 1, cols);
    }
    aq_free(run->context, values, count * sizeof(float));
    return status;
}

static aq_status aq_sample_open(aq_equalize_sample *sample, aq_run *run, const aq_plan_tensor *tensor,
                                aq_error *err) {
    uint64_t count = 0, bytes = 0;
    memset(sample, 0, sizeof(*sample));
    sample->run = run;
    sample->context = *run->context;
    sample->context.num_threads = run->threads;
    sample->tensor = *tensor;
    sample->rows = tensor->rows < AQ_SAMPLE_ROWS ? tensor->rows : AQ_SAMPLE_ROWS;
    /* a row as read fits where one of F64 would */
    if (!aq_mul_u64(sample->rows * 2 + 3, tensor->cols, &count) ||
        !aq_mul_u64(count, sizeof(float), &bytes) || bytes > SIZE_MAX)
        return aq_fail_memory(err, SIZE_MAX);
    sample->bytes = (size_t)bytes;
    sample->memory = aq_alloc(run->context, sample->bytes);
    if (!sample->memory) return aq_fail_memory(err, sample->bytes);
    sample->original = (float *)sample->memory;
    sample->folded = sample->original + (size_t)(sample->rows * tensor->cols);
    sample->scales = sample->folded + (size_t)((sample->rows + 2) * tensor->cols);
    return aq_sample_load(sample, err);
}

/* ---- the input */

/* Limits of a channel at an observed timestep; magnitudes alone say less than the layer's own limits. */
static void aq_channel_range(const aq_calibration_layer *layer, size_t step, size_t channel,
                             double *low, double *high) {
    size_t at = step * (size_t)layer->channels + channel;
    *high = (double)layer->absmax[at];
    *low = -*high;
    if (layer->channel_min) *low = (double)layer->channel_min[at];
    if (layer->channel_max) *high = (double)layer->channel_max[at];
    if (layer->min && *low < (double)layer->min[step]) *low = (double)layer->min[step];
    if (layer->max && *high > (double)layer->max[step]) *high = (double)layer->max[step];
}

/* Limits of the whole input at a timestep, multiplied by `scales` (NULL: none). */
AQ_SIMD_EXACT static void aq_scaled_range(const aq_calibration_layer *layer, size_t step,
                                          const float *scales, double *low, double *high) {
    AQ_SIMD_EXACT_BODY
    size_t cols = (size_t)layer->channels;
    for (size_t c = 0; c < cols; c++) {
        double least, most, scale = scales ? (double)scales[c] : 1.0;
        aq_channel_range(layer, step, c, &least, &most);
        if (c == 0 || least * scale < *low) *low = least * scale;
        if (c == 0 || most * scale > *high) *high = most * scale;
    }
}

/* Mean over the timesteps of step²/12 of 8-bit integers; they cover zero. */
AQ_SIMD_EXACT static double aq_rounding_noise(const aq_calibration_layer *layer, const float *scales) {
    AQ_SIMD_EXACT_BODY
    double sum = 0.0;
    for (size_t i = 0; i < layer->timestep_count; i++) {
        double low = 0.0, high = 0.0, step;
        aq_scaled_range(layer, i, scales, &low, &high);
        if (low > 0.0) low = 0.0;
        if (high < 0.0) high = 0.0;
        step = (high - low) / 255.0;
        sum += step * step / 12.0;
    }
    return layer->timestep_count ? sum / (double)layer->timestep_count : 0.0;
}

/* What a plan needs to know of the equalized input: limits by timestep, figures by channel. The sketch
 * is that of all channels together, and cannot be scaled. */
AQ_SIMD_EXACT static aq_calibration_layer *aq_scaled_statistics(aq_arena *arena,
                                                                const aq_calibration_layer *layer,
                                                                const float *scales) {
    AQ_SIMD_EXACT_BODY
    size_t steps = layer->timestep_count, cols = (size_t)layer->channels;
    aq_calibration_layer *out = (aq_calibration_layer *)aq_arena_alloc(arena, sizeof(*out));
    float *limits = (float *)aq_arena_alloc(arena, (steps + 1) * 2 * sizeof(float));
    float *pooled = (float *)aq_arena_alloc(arena, cols * 2 * sizeof(float));
    if (!out || !limits || !pooled) return NULL;
    *out = *layer;
    out->mean = out->std = out->absmax = out->sqmean = NULL;
    out->channel_min = out->channel_max = out->percentiles = NULL;
    out->sketch = NULL;
    out->sketch_top = NULL;
    for (size_t i = 0; i < steps; i++) {
        double low = 0.0, high = 0.0;
        aq_scaled_range(layer, i, scales, &low, &high);
        limits[i] = (float)low;
        limits[steps + i] = (float)high;
    }
    for (size_t c = 0; c < cols; c++) {
        double scale = (double)scales[c];
        pooled[c] = (float)((double)layer->pooled_absmax[c] * scale);
        pooled[cols + c] = (float)((double)layer->pooled_sqmean[c] * (scale * scale));
    }
    out->min = limits;
    out->max = limits + steps;
    out->pooled_absmax = pooled;
    out->pooled_sqmean = pooled + cols;
    return out;
}

/* ---- the weights */

/* Quantizes the folded rows as the run will and measures their output. AQ_ERR_QUANTIZATION: these
 * parameters, or these moments, do not do. */
static aq_status aq_sample_quantize(aq_equalize_sample *sample, const aq_quant_spec *spec,
                                    const float *hessian, aq_gptq_result *result, aq_error *err) {
    const aq_plan_tensor *tensor = &sample->tensor;
    aq_quant_layout layout;
    uint64_t extra = 0, bytes = 0;
    memset(&layout, 0, sizeof(layout)); /* compilers do not see that it is filled */
    aq_status status = aq_quantized_size(spec, sample->rows, tensor->cols, &layout, err);
    if (status != AQ_OK) return status;
    extra = layout.extra_bytes + 4;
    if (!aq_add_u64(layout.param_bytes, layout.code_bytes, &bytes) || !aq_add_u64(bytes, extra, &bytes) ||
        bytes > SIZE_MAX)
        return aq_fail_memory(err, SIZE_MAX);
    unsigned char *params = (unsigned char *)aq_alloc(&sample->context, (size_t)bytes);
    if (!params) return aq_fail_memory(err, (size_t)bytes);
    unsigned char *codes = params + layout.param_bytes, *rest = codes + layout.code_bytes;
    if (tensor->method == AQ_METHOD_GPTQ) {
        status = aq_quantize_gptq(&sample->context, spec, sample->folded, AQ_DTYPE_F32, sample->rows,
                                  tensor->cols, hessian, codes, params, rest, result, err);
    } else {
        status = aq_quantize(&sample->context, spec, sample->folded, AQ_DTYPE_F32, sample->rows,
                             tensor->cols, tensor->statistics->pooled_sqmean, codes, params, rest,
                             NULL, err);
        if (status == AQ_OK)
            status = aq_measure_output(&sample->context, spec, sample->folded, AQ_DTYPE_F32,
                                       sample->rows, tensor->cols, hessian, codes, params, rest,
                                       result, err);
    }
    aq_free(&sample->context, params, (size_t)bytes);
    return status;
}

/* With the narrowest parameters that fit, from those asked for upwards. */
static aq_status aq_sample_measure(aq_equalize_sample *sample, aq_gptq_result *result, bool *usable,
                                   aq_error *err) {
    const aq_plan_tensor *tensor = &sample->tensor;
    aq_quant_spec spec = tensor->spec;
    size_t n = (size_t)tensor->cols, bytes = 0;
    aq_error failure;
    *usable = true;
    if (!aq_mul_size(n, n, &bytes) || !aq_mul_size(bytes, sizeof(float), &bytes))
        return aq_fail_memory(err, SIZE_MAX);
    float *hessian = (float *)aq_alloc(&sample->context, bytes);
    if (!hessian) return aq_fail_memory(err, bytes);
    aq_status status = aq_run_hessian(sample->run, tensor, hessian, err);
    while (status == AQ_OK) {
        status = aq_sample_quantize(sample, &spec, hessian, result, &failure);
        if (status == AQ_OK) break;
        if (status != AQ_ERR_QUANTIZATION && err) *err = failure;
        if (status != AQ_ERR_QUANTIZATION) break;
        status = AQ_OK;
        *usable = spec.params != AQ_PARAM_F32;
        if (!*usable) break;
        spec.params = spec.params == AQ_PARAM_Q8 ? AQ_PARAM_F16 : AQ_PARAM_F32;
    }
    aq_free(&sample->context, hessian, bytes);
    return status;
}

/* The error of the output relative to it, with sample->tensor.input_scales; *usable false: it cannot
 * be measured. */
AQ_SIMD_EXACT static aq_status aq_sample_error(aq_equalize_sample *sample,
                                               const aq_calibration_layer *layer, double *error,
                                               bool *usable, aq_error *err) {
    AQ_SIMD_EXACT_BODY
    const aq_plan_tensor *tensor = &sample->tensor;
    size_t count = (size_t)(sample->rows * tensor->cols);
    aq_gptq_result result;
    double squares = 0.0;
    memcpy(sample->folded, sample->original, count * sizeof(float));
    if (tensor->input_scales)
        aq_fold_columns(sample->folded, sample->rows, tensor->cols, tensor->input_scales);
    memset(&result, 0, sizeof(result));
    aq_status status = aq_sample_measure(sample, &result, usable, err);
    if (status != AQ_OK || !*usable) return status;
    for (size_t i = 0; i < count; i++) {
        double w = (double)sample->folded[i];
        squares += w * w;
    }
    *error = result.output_error;
    if (sample->run->plan->config.enable_time_aware)
        *error += aq_rounding_noise(layer, tensor->input_scales) * squares;
    *usable = result.output_signal > 0.0;
    if (*usable) *error /= result.output_signal;
    return AQ_OK;
}

/* ---- the choice */

/* Replaces the expected errors in *found by measured ones, where second moments are known. */
static aq_status aq_sample_judge(aq_equalize_sample *sample, aq_calibration_layer *scaled,
                                 aq_equalization *found, aq_error *err) {
    const aq_calibration_layer *layer = sample->tensor.statistics;
    aq_equalization measured = *found;
    bool usable, also = false;
    if (!aq_gptq_is_possible(sample->run->plan, &sample->tensor)) return AQ_OK;
    aq_status status = aq_sample_error(sample, layer, &measured.error_without, &usable, err);
    if (status != AQ_OK || !usable) return status;
    sample->tensor.input_scales = sample->scales;
    sample->tensor.statistics = scaled;
    status = aq_sample_error(sample, layer, &measured.error, &also, err);
    if (status == AQ_OK && also) *found = measured;
    return status;
}

static aq_status aq_equalize_tensor(aq_plan *plan, aq_run *run, aq_plan_tensor *tensor,
                                    aq_error *err) {
    aq_arena *arena = &plan->state->arena;
    aq_equalize_sample sample;
    aq_equalization found;
    aq_calibration_layer *scaled = NULL;
    size_t bytes = (size_t)tensor->cols * sizeof(float);
    aq_error failure;
    aq_status status = aq_sample_open(&sample, run, tensor, err);
    if (status == AQ_OK) {
        status = aq_equalize(&sample.context, &tensor->spec, sample.original, AQ_DTYPE_F32,
                             sample.rows, tensor->cols, tensor->statistics, (double)NAN,
                             plan->config.enable_time_aware ? 8 : 0, sample.scales, &found, &failure);
        if (status != AQ_OK && status != AQ_ERR_QUANTIZATION && err) *err = failure;
    }
    bool wanted = status == AQ_OK && found.migration == found.migration;
    if (status == AQ_ERR_QUANTIZATION) status = AQ_OK; /* NaN in the weight: the run will say where */
    if (wanted) {
        scaled = aq_scaled_statistics(arena, tensor->statistics, sample.scales);
        status = scaled ? aq_sample_judge(&sample, scaled, &found, err) : aq_fail_memory(err, bytes);
    }
    if (status == AQ_OK && wanted && found.error < found.error_without) {
        float *scales = (float *)aq_arena_alloc(arena, bytes);
        if (scales) memcpy(scales, sample.scales, bytes);
        tensor->input_scales = scales;
        tensor->equalization = found;
        tensor->statistics = scaled;
        status = scales ? aq_plan_store(plan, tensor, err) : aq_fail_memory(err, bytes);
    }
    aq_free(run->context, sample.memory, sample.bytes);
    return status;
}

AQ_LIB aq_status aq_plan_equalize(aq_plan *plan, aq_error *err) {
    const aq_config *config = &plan->config;
    aq_run run;
    size_t able = 0;
    aq_status status = AQ_OK;
    if (!config->enable_spatial || !plan->state->calibration ||
        config->output_format != AQ_OUTPUT_NATIVE)
        return AQ_OK;
    aq_run_init(&run, plan->state->context, plan, NULL, NULL);
    for (size_t i = 0; status == AQ_OK && i < plan->tensor_count; i++) {
        aq_plan_tensor *tensor = &plan->tensors[i];
        if (!aq_can_equalize(tensor)) continue;
        able++;
        status = aq_equalize_tensor(plan, &run, tensor, err);
    }
    (void)aq_file_close(&run.input, NULL);
    aq_run_free(&run);
    if (status != AQ_OK || able) return status;
    return aq_note(&plan->state->arena, &plan->state->notes, err, "equalization: no quantized layer has "
                   "largest magnitudes of its input's channels in the calibration, so none is equalized");
}

AQ_SIMD_EXACT AQ_LIB aq_status aq_note_equalization(aq_plan *plan, aq_error *err) {
    AQ_SIMD_EXACT_BODY
    size_t equalized = 0, quantized = 0;
    double gain = 0.0;
    char text[AQ_DOUBLE_TEXT];
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[i];
        quantized += tensor->bits < 16;
        if (!tensor->input_scales || tensor->bits == 16) continue;
        equalized++;
        if (tensor->equalization.error > 0.0)
            gain += aq_log10(tensor->equalization.error_without / tensor->equalization.error);
    }
    if (!equalized) return AQ_OK;
    gain = 10.0 * gain / (double)equalized;
    aq_format_double((double)(int64_t)(gain * 100.0 + 0.5) / 100.0, text);
    return aq_note(&plan->state->arena, &plan->state->notes, err, "equalization: the inputs of %zu of %zu "
                   "quantized layers are scaled; the error of their outputs falls by %s dB in the mean",
                   equalized, quantized, text);
}

#undef AQ_SAMPLE_ROWS
#endif /* ARROWQUANT_NO_STDIO */
