/* Equalization of channels between weights and activations, and the strength that serves both best. */
#include "calib.h"

#include "../quant/quant.h"
#include "../simd/simd.h"

#include <math.h>

#define AQ_EQUALIZE_ROWS 64u /* of the weight, evenly spaced, that the search looks at */
#define AQ_EQUALIZE_STEPS 20u

typedef struct aq_equalizer {
    aq_context *context;
    aq_quant_spec spec;
    const aq_calibration_layer *layer;
    const char *weights;
    aq_dtype dtype;
    uint64_t rows, cols;
    uint64_t taken;        /* rows that are looked at */
    uint32_t activation_bits;
    float *absmax;         /* [cols], of the whole weight */
    float *scales;         /* [cols] */
    float *original;       /* [taken, cols] */
    float *folded, *back;  /* the same, divided by the scales; quantized */
    unsigned char *codes, *params, *extra;
    aq_quant_layout layout;
} aq_equalizer;

static void aq_equalizer_row(const aq_equalizer *e, uint64_t row, float *out) {
    aq_to_f32(e->context, e->dtype,
              e->weights + (size_t)(row * e->cols) * aq_dtype_size(e->dtype), out, (size_t)e->cols);
}

static aq_status aq_equalizer_load(aq_equalizer *e, aq_error *err) {
    float *row = e->folded;
    for (uint64_t c = 0; c < e->cols; c++) e->absmax[c] = 0.0f;
    for (uint64_t r = 0; r < e->rows; r++) {
        aq_equalizer_row(e, r, row);
        for (uint64_t c = 0; c < e->cols; c++) {
            float magnitude = fabsf(row[c]);
            if (magnitude - magnitude != 0.0f)
                return aq_fail_tensor(err, AQ_ERR_QUANTIZATION, e->layer->name, r * e->cols + c,
                                      "aq_equalize: layer %s: its weight holds NaN or infinity at "
                                      "row %llu, column %llu", e->layer->name,
                                      (unsigned long long)r, (unsigned long long)c);
            if (magnitude > e->absmax[c]) e->absmax[c] = magnitude;
        }
    }
    for (uint64_t i = 0; i < e->taken; i++)
        aq_equalizer_row(e, i * e->rows / e->taken, e->original + (size_t)(i * e->cols));
    return AQ_OK;
}

/* 10^x for |x| < 300 and log of the same kind as aq_log10: C libraries round their own differently. */
AQ_SIMD_EXACT static double aq_power_of_ten(double x) {
    AQ_SIMD_EXACT_BODY
    double twos = floor(x * 3.3219280948873623 + 0.5); /* 10^x = 2^twos · e^rest */
    double rest = x * 2.302585092994046 - twos * 0.6931471805599453, term = 1.0, sum = 1.0;
    for (int i = 1; i < 20; i++) {
        term *= rest / (double)i;
        sum += term;
    }
    return ldexp(sum, (int)twos);
}

/* Scales at a strength, geometric mean 1; true unless all of them are 1. */
AQ_SIMD_EXACT static bool aq_equalizer_scales(const aq_equalizer *e, double migration) {
    AQ_SIMD_EXACT_BODY
    const float *x = e->layer->pooled_absmax;
    double logs = 0.0, used = 0.0;
    for (uint64_t c = 0; c < e->cols; c++) {
        double w = (double)e->absmax[c], a = (double)x[c];
        if (!(w > 0.0 && a > 0.0)) continue;
        logs += (1.0 - migration) * aq_log10(w) - migration * aq_log10(a);
        used += 1.0;
    }
    double middle = used > 0.0 ? logs / used : 0.0;
    for (uint64_t c = 0; c < e->cols; c++) {
        double w = (double)e->absmax[c], a = (double)x[c], scale = 1.0;
        if (w > 0.0 && a > 0.0)
            scale = aq_power_of_ten((1.0 - migration) * aq_log10(w) - migration * aq_log10(a) - middle);
        /* no more than what keeps the folded weights well inside of F32 */
        if (scale < 1.52587890625e-05) scale = 1.52587890625e-05;
        if (scale > 65536.0) scale = 65536.0;
        e->scales[c] = (float)scale;
    }
    return used > 0.0;
}

/* Σ over rows and channels of mean square · (w − ŵ)², in the space of the original input. */
AQ_SIMD_EXACT static double aq_equalizer_weight_error(const aq_equalizer *e, aq_quant_spec spec,
                                                      bool *fits) {
    AQ_SIMD_EXACT_BODY
    const float *squares = e->layer->pooled_sqmean;
    size_t cols = (size_t)e->cols, count = (size_t)e->taken * cols;
    aq_block_outcome outcome;
    double sum = 0.0;
    memcpy(e->folded, e->original, count * sizeof(float));
    aq_fold_columns(e->folded, e->taken, e->cols, e->scales);
    memset(&outcome, 0, sizeof(outcome));
    for (size_t c = 0; c < cols; c++) /* what a column weighs in the fit of the folded weights */
        e->back[c] = (float)((double)squares[c] * (double)e->scales[c] * (double)e->scales[c]);
    float *column_weights = e->absmax + cols;
    memcpy(column_weights, e->back, cols * sizeof(float));
    aq_quantize_block(e->context, &spec, e->folded, AQ_DTYPE_F32, e->taken, e->cols,
                      column_weights, e->codes, e->params, e->extra, &outcome);
    *fits = !outcome.needs_f32 && !outcome.needs_wide && !outcome.not_finite;
    if (!*fits) return 0.0;
    aq_dequantize_block(e->context, &spec, e->codes, e->params, e->extra, e->taken, e->cols,
                        e->back);
    for (size_t i = 0; i < count; i++) {
        double apart = ((double)e->folded[i] - (double)e->back[i]) * (double)e->scales[i % cols];
        sum += (double)squares[i % cols] * apart * apart;
    }
    return sum;
}

/* Rounding of the input at each observed timestep: step²/12 in each channel, times the folded weight.
 * The range is that of the equalized channels. */
AQ_SIMD_EXACT static double aq_equalizer_input_error(const aq_equalizer *e) {
    AQ_SIMD_EXACT_BODY
    const aq_calibration_layer *layer = e->layer;
    size_t cols = (size_t)e->cols, t = layer->timestep_count;
    double levels = e->activation_bits == 4 ? 15.0 : 255.0, steps = 0.0, weights = 0.0;
    if (!e->activation_bits) return 0.0;
    for (size_t i = 0; i < t; i++) {
        double low = 0.0, high = 0.0;
        for (size_t c = 0; c < cols; c++) {
            double s = (double)e->scales[c], most = (double)layer->absmax[i * cols + c] * s;
            double least = layer->channel_min ? (double)layer->channel_min[i * cols + c] * s : -most;
            if (layer->channel_max) most = (double)layer->channel_max[i * cols + c] * s;
            if (least < low) low = least;
            if (most > high) high = most;
        }
        steps += (high - low) / levels * ((high - low) / levels) / 12.0;
    }
    for (size_t i = 0; i < (size_t)e->taken * cols; i++) {
        double folded = (double)e->original[i] / (double)e->scales[i % cols];
        weights += folded * folded;
    }
    return t ? steps / (double)t * weights : 0.0;
}

/* Expected error of the output, relative to its energy if the channels were independent. */
AQ_SIMD_EXACT static double aq_equalizer_error(const aq_equalizer *e) {
    AQ_SIMD_EXACT_BODY
    const float *squares = e->layer->pooled_sqmean;
    aq_quant_spec spec = e->spec;
    size_t cols = (size_t)e->cols;
    double energy = 0.0;
    bool fits;
    for (size_t i = 0; i < (size_t)e->taken * cols; i++) {
        double w = (double)e->original[i];
        energy += (double)squares[i % cols] * w * w;
    }
    double error = aq_equalizer_weight_error(e, spec, &fits);
    if (!fits) { /* as a run would store it */
        spec.params = AQ_PARAM_F32;
        error = aq_equalizer_weight_error(e, spec, &fits);
    }
    error += aq_equalizer_input_error(e);
    return energy > 0.0 ? error / energy : 0.0;
}

static void aq_equalizer_search(aq_equalizer *e, double migration, aq_equalization *out) {
    double nan = 0.0;
    nan = nan / nan;
    for (uint64_t c = 0; c < e->cols; c++) e->scales[c] = 1.0f;
    out->migration = nan;
    out->error = out->error_without = aq_equalizer_error(e);
    if (migration == migration) {
        if (!aq_equalizer_scales(e, migration)) return;
        out->migration = migration;
        out->error = aq_equalizer_error(e);
        return;
    }
    for (unsigned i = 0; i <= AQ_EQUALIZE_STEPS; i++) {
        double m = (double)i / (double)AQ_EQUALIZE_STEPS;
        if (!aq_equalizer_scales(e, m)) break;
        double error = aq_equalizer_error(e);
        if (error >= out->error) continue;
        out->error = error;
        out->migration = m;
    }
    if (out->migration == out->migration) (void)aq_equalizer_scales(e, out->migration);
    else for (uint64_t c = 0; c < e->cols; c++) e->scales[c] = 1.0f;
}

static aq_status aq_equalizer_run(aq_equalizer *e, double migration, float *scales,
                                  aq_equalization *out, aq_error *err) {
    aq_quant_spec wide = e->spec;
    size_t cols = (size_t)e->cols, count = 0, floats = 0;
    wide.params = AQ_PARAM_F32; /* the largest parameters */
    aq_status status = aq_quantized_size(&wide, e->taken, e->cols, &e->layout, err);
    if (status != AQ_OK) return status;
    size_t extra = (size_t)e->taken * 4;
    size_t bytes = (size_t)(e->layout.code_bytes + e->layout.param_bytes) + extra;
    if (!aq_mul_size((size_t)e->taken, cols, &count) || !aq_mul_size(count, 12, &floats))
        return aq_fail_memory(err, SIZE_MAX);
    bytes += floats + 3 * cols * sizeof(float);
    char *piece = (char *)aq_alloc(e->context, bytes);
    if (!piece) return aq_fail_memory(err, bytes);
    e->original = (float *)(void *)piece;
    e->folded = e->original + count;
    e->back = e->folded + count;
    e->absmax = e->back + count; /* and the columns' weights */
    e->scales = e->absmax + 2 * cols;
    e->params = (unsigned char *)(void *)(e->scales + cols);
    e->codes = e->params + e->layout.param_bytes;
    e->extra = e->codes + e->layout.code_bytes;
    status = aq_equalizer_load(e, err);
    if (status == AQ_OK) {
        aq_equalizer_search(e, migration, out);
        memcpy(scales, e->scales, cols * sizeof(float));
    }
    aq_free(e->context, piece, bytes);
    return status;
}

ARROWQUANT_API aq_status aq_equalize(aq_context *context, const aq_quant_spec *spec,
                                     const void *weights, aq_dtype dtype, uint64_t rows,
                                     uint64_t cols, const aq_calibration_layer *layer,
                                     double migration, uint32_t activation_bits,
                                     float *input_scales, aq_equalization *out, aq_error *err) {
    aq_equalizer e;
    aq_context local;
    if (!spec || !weights || !layer || !input_scales || !out || !aq_dtype_is_float(dtype) ||
        !(migration != migration || (migration >= 0.0 && migration <= 1.0)) ||
        (activation_bits != 0 && activation_bits != 4 && activation_bits != 8))
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_equalize: pointers must not be NULL, the weights of "
                       "a float type, migration NaN or 0 to 1, activation_bits 0, 4 or 8");
    if (!rows || !cols || layer->channels != cols)
        return aq_fail_tensor(err, AQ_ERR_SHAPE, layer->name, 0, "aq_equalize: layer %s has %llu "
                              "channels, the weight is [%llu, %llu]", layer->name,
                              (unsigned long long)layer->channels, (unsigned long long)rows,
                              (unsigned long long)cols);
    if (!layer->absmax || !layer->pooled_absmax || !layer->pooled_sqmean)
        return aq_fail_tensor(err, AQ_ERR_ARGUMENT, layer->name, 0, "aq_equalize: layer %s: its "
                              "statistics lack act_absmax or act_sqmean", layer->name);
    memset(&e, 0, sizeof(e));
    e.context = aq_context_resolved(context, &local);
    e.spec = *spec;
    e.layer = layer;
    e.weights = (const char *)weights;
    e.dtype = dtype;
    e.rows = rows;
    e.cols = cols;
    e.taken = rows < AQ_EQUALIZE_ROWS ? rows : AQ_EQUALIZE_ROWS;
    e.activation_bits = activation_bits;
    return aq_equalizer_run(&e, migration, input_scales, out, err);
}

ARROWQUANT_API void aq_fold_columns(float *weights, uint64_t rows, uint64_t cols,
                                    const float *scales) {
    aq_simd_mode mode = aq_simd_mode_enter();
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t c = 0; c < cols; c++) weights[r * cols + c] /= scales[c];
    }
    aq_simd_mode_leave(mode);
}

AQ_LIB void aq_unfold_columns(float *weights, uint64_t rows, uint64_t cols, const float *scales) {
    aq_simd_mode mode = aq_simd_mode_enter();
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t c = 0; c < cols; c++) weights[r * cols + c] *= scales[c];
    }
    aq_simd_mode_leave(mode);
}

ARROWQUANT_API void aq_fold_norm(float *weight, float *bias, uint64_t channels,
                                 const float *scales) {
    for (uint64_t c = 0; c < channels; c++) {
        weight[c] *= scales[c];
        if (bias) bias[c] *= scales[c];
    }
}

AQ_SIMD_EXACT ARROWQUANT_API void aq_smooth_activations(float *x, size_t count, double alpha) {
    AQ_SIMD_EXACT_BODY
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) sum += (double)x[i];
    double mean = count ? sum / (double)count : 0.0;
    for (size_t i = 0; i < count; i++)
        x[i] = (float)((double)x[i] * (1.0 - alpha) + mean * alpha);
}

#undef AQ_EQUALIZE_ROWS
#undef AQ_EQUALIZE_STEPS
