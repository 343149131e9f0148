/* GPTQ with a trellis: what rounds a column of a strip is the search for its sequence.
 *
 * Scales are guessed from the mean squares of the groups, weighted by the Hessian's diagonal. What is
 * rounded also holds the errors of earlier columns, so each row's scales are then multiplied by the
 * factor that makes the error of its output least for the codes it has got: c·H·wᵀ / c·H·cᵀ. With
 * AQ_FIT_LEAST_SQUARES the strip is rounded again with these, and multiplied once more. */
#include "gptq_space.h"
#include "trellis.h"

#include <math.h>

/* A strip at work. */
typedef struct aq_trellis_sweep {
    const aq_context *context;
    const aq_factor *factor;
    const aq_quant_spec *spec;
    aq_quant_layout layout;
    aq_gptq_space *work;
    aq_trellis trellis;
    uint8_t *codes, *params;
    double *signal, *coded, *error; /* [wide]: w·H·wᵀ, c·H·cᵀ, (c − w)·H·(c − w)ᵀ */
    aq_block_outcome *outcome;
} aq_trellis_sweep;

AQ_LIB uint64_t aq_trellis_sweep_bytes(const aq_quant_spec *spec, uint64_t wide) {
    return spec->code == AQ_CODE_TRELLIS ? aq_trellis_bytes(spec) + 3 * wide * sizeof(double) : 0;
}

/* ---- scales */

/* Stores a scale of one row and group; false where it does not fit. */
static bool aq_sweep_store(const aq_trellis_sweep *sweep, size_t row, size_t group, double scale) {
    size_t size = sweep->spec->params == AQ_PARAM_F32 ? 4u : 2u;
    uint8_t *to = sweep->params + row * (size_t)sweep->layout.row_param_bytes + group * size;
    if (aq_trellis_store(sweep->spec->params, scale,
                         &sweep->work->scale[group * sweep->work->wide + row], to) == AQ_FIT_GOOD) {
        return true;
    }
    sweep->outcome->needs_f32 = true;
    sweep->outcome->bad_index = row * sweep->factor->n + group * sweep->spec->group_size;
    return false;
}

/* The mean square of one group of a row; of columns that are never used, all count. */
AQ_SIMD_EXACT static double aq_sweep_mean_square(const float *line, const float *weights,
                                                 size_t count) {
    AQ_SIMD_EXACT_BODY
    double sum = 0.0, plain = 0.0, total = 0.0;
    size_t i;
    for (i = 0; i < count; i++) {
        double square = (double)line[i] * (double)line[i];
        sum += (double)weights[i] * square;
        plain += square;
        total += (double)weights[i];
    }
    return total > 0.0 ? sum / total : plain / (double)count;
}

/* Scales of all rows; false when a weight is not finite or a scale does not fit. */
static bool aq_sweep_guess(const aq_trellis_sweep *sweep, const uint8_t *weights, aq_dtype dtype) {
    const struct aq_kernels *kernels = aq_kernels_of(sweep->context);
    size_t n = sweep->factor->n, size = sweep->spec->group_size, row, group, i;
    float *line = sweep->work->line;
    memset(sweep->work->scale, 0, sweep->work->groups * sweep->work->wide * sizeof(float));
    for (row = 0; row < sweep->work->rows; row++) {
        aq_widen(kernels, dtype, weights + row * n * aq_dtype_size(dtype), line, n);
        for (i = 0; i < n; i++) {
            if ((aq_simd_bits(line[i]) & 0x7F800000u) == 0x7F800000u) {
                sweep->outcome->not_finite = true;
                sweep->outcome->bad_index = row * n + i;
                sweep->outcome->bad_value = (double)line[i];
                return false;
            }
        }
        for (group = 0; group < sweep->work->groups; group++) {
            size_t begin = group * size, count = n - begin < size ? n - begin : size;
            double square = aq_sweep_mean_square(line + begin, sweep->factor->diagonal + begin,
                                                 count);
            if (!aq_sweep_store(sweep, row, group,
                                aq_trellis_scale(sweep->trellis.code, square))) {
                return false;
            }
        }
    }
    return true;
}

/* ---- sweeps */

static void aq_sweep_column(void *user, size_t place, size_t column, const float *target,
                            float *rounded, size_t rows) {
    aq_trellis_sweep *sweep = (aq_trellis_sweep *)user;
    const float *scale = sweep->work->scale + column / sweep->spec->group_size * rows;
    aq_trellis_column(&sweep->trellis, column, target, scale, rounded, sweep->codes);
    memcpy(sweep->work->codes + place * rows, sweep->trellis.values, sweep->work->rows);
    memset(rounded + sweep->work->rows, 0, (rows - sweep->work->rows) * sizeof *rounded);
}

/* x becomes the coded rows with the scales there are, less w when `less`. */
AQ_SIMD_EXACT static void aq_sweep_decode(const aq_trellis_sweep *sweep, const void *weights,
                                          aq_dtype dtype, bool less) {
    AQ_SIMD_EXACT_BODY
    aq_gptq_space *work = sweep->work;
    size_t padded = sweep->factor->padded, place, row;
    aq_space_weights(sweep->context, work, sweep->factor, weights, dtype);
    for (place = 0; place < sweep->factor->n; place++) {
        size_t group = sweep->factor->order[place] / sweep->spec->group_size;
        const float *scale = work->scale + group * work->wide;
        const uint8_t *values = work->codes + place * work->wide;
        for (row = 0; row < work->rows; row++) {
            float *x = work->x + row / AQ_PANEL * (AQ_PANEL * padded) + AQ_PANEL * place +
                       row % AQ_PANEL;
            int32_t value = values[row] < 128 ? (int32_t)values[row] : (int32_t)values[row] - 256;
            float decoded = scale[row] * (float)value;
            *x = less ? decoded - *x : decoded;
        }
    }
}

/* Multiplies each row's scales by what suits its codes best; false where one does not fit. */
AQ_SIMD_EXACT static bool aq_sweep_refit(const aq_trellis_sweep *sweep) {
    AQ_SIMD_EXACT_BODY
    size_t row, group;
    for (row = 0; row < sweep->work->rows; row++) {
        double coded = sweep->coded[row];
        double cross = 0.5 * (coded + sweep->signal[row] - sweep->error[row]);
        double factor = coded > 0.0 ? cross / coded : 1.0;
        if (!(factor > 0.25 && factor < 4.0)) { /* a row that hardly matters: sums are noise */
            continue;
        }
        for (group = 0; group < sweep->work->groups; group++) {
            double scale = (double)sweep->work->scale[group * sweep->work->wide + row];
            if (scale != 0.0 && !aq_sweep_store(sweep, row, group, factor * scale)) {
                return false;
            }
        }
    }
    return true;
}

static bool aq_sweep_round_strip(aq_trellis_sweep *sweep, const void *weights, aq_dtype dtype) {
    const aq_context *context = sweep->context;
    const aq_factor *factor = sweep->factor;
    aq_rounding rounding;
    rounding.round = aq_sweep_column;
    rounding.user = sweep;
    memset(sweep->codes, 0, (size_t)sweep->layout.code_bytes);
    aq_space_weights(context, sweep->work, factor, weights, dtype);
    aq_space_sweep(context, sweep->work, factor, &rounding, sweep->error);
    aq_sweep_decode(sweep, weights, dtype, false);
    aq_space_sweep(context, sweep->work, factor, NULL, sweep->coded);
    return aq_sweep_refit(sweep);
}

AQ_LIB void aq_gptq_strip(const aq_context *context, const aq_factor *factor,
                          const aq_quant_spec *spec, const void *weights, aq_dtype dtype,
                          uint64_t rows, void *codes, void *params, void *space,
                          aq_block_outcome *outcome, const aq_output_sums *sums) {
    aq_trellis_sweep sweep;
    aq_gptq_space work;
    uint32_t round, rounds = spec->fit == AQ_FIT_FAST ? 1u : 2u;
    memset(outcome, 0, sizeof *outcome);
    memset(&sweep, 0, sizeof sweep);
    if (aq_quantized_size(spec, rows, factor->n, &sweep.layout, NULL) != AQ_OK) {
        return;
    }
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_space_open(&work, spec, factor, rows, space);
    sweep.context = context;
    sweep.factor = factor;
    sweep.spec = spec;
    sweep.work = &work;
    sweep.codes = (uint8_t *)codes;
    sweep.params = (uint8_t *)params;
    sweep.outcome = outcome;
    sweep.signal = (double *)work.rest;
    sweep.coded = sweep.signal + work.wide;
    sweep.error = sweep.coded + work.wide;
    aq_trellis_open(&sweep.trellis, aq_kernels_of(context), spec, (size_t)rows, factor->n,
                    sweep.error + work.wide);
    if (aq_sweep_guess(&sweep, (const uint8_t *)weights, dtype)) {
        aq_space_weights(context, &work, factor, weights, dtype);
        aq_space_sweep(context, &work, factor, NULL, sweep.signal);
        for (round = 0; round < rounds && aq_sweep_round_strip(&sweep, weights, dtype); round++) {
        }
    }
    if (!aq_outcome_is_final(outcome)) {
        if (sums->signal) {
            memcpy(sums->signal, sweep.signal, (size_t)rows * sizeof *sums->signal);
        }
        if (sums->error) {
            aq_sweep_decode(&sweep, weights, dtype, true);
            aq_space_sweep(context, &work, factor, NULL, sums->error);
        }
    }
    aq_simd_mode_leave(mode);
}
