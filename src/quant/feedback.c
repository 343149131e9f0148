/* The feedback of rounding errors: column after column of some rows is rounded, and what that does to
 * the output is taken out of the columns that follow. What rounds is the caller's: the nearest code of
 * a grid (gptq.c), or any other code. */
#include "linear.h"

/* Rows that stand side by side: the caller's panels. */
typedef struct aq_sweep {
    const struct aq_kernels *kernels;
    const aq_factor *factor;
    const aq_rounding *rounding;
    float *x, *sums;
    size_t panels, stride; /* of a panel in both */
    double *energy;
} aq_sweep;

/* sums −= errors·R for the columns of one strip, by the errors at places begin … end − 1. */
static void aq_sweep_strip(const aq_sweep *sweep, size_t strip, size_t begin, size_t end) {
    const float *r = aq_factor_strip(sweep->factor, strip) + AQ_STRIP * begin;
    size_t panel;
    for (panel = 0; panel < sweep->panels; panel++) {
        size_t at = panel * sweep->stride;
        sweep->kernels->update(sweep->sums + at + AQ_PANEL * AQ_STRIP * strip,
                               sweep->x + at + AQ_PANEL * begin, r, AQ_STRIP, end - begin,
                               AQ_STRIP);
    }
}

/* Rounds w + sums; x becomes the error ŵ − w. */
AQ_SIMD_EXACT static void aq_sweep_round(const aq_sweep *sweep, size_t place) {
    AQ_SIMD_EXACT_BODY
    float target[AQ_PANEL * AQ_FEEDBACK_PANELS], rounded[AQ_PANEL * AQ_FEEDBACK_PANELS];
    size_t panel, i;
    for (panel = 0; panel < sweep->panels; panel++) {
        size_t at = panel * sweep->stride + AQ_PANEL * place;
        for (i = 0; i < AQ_PANEL; i++) {
            target[AQ_PANEL * panel + i] = sweep->x[at + i] + sweep->sums[at + i];
        }
    }
    sweep->rounding->round(sweep->rounding->user, place, sweep->factor->order[place], target,
                           rounded, AQ_PANEL * sweep->panels);
    for (panel = 0; panel < sweep->panels; panel++) {
        size_t at = panel * sweep->stride + AQ_PANEL * place;
        for (i = 0; i < AQ_PANEL; i++) {
            sweep->x[at + i] = rounded[AQ_PANEL * panel + i] - sweep->x[at + i];
        }
    }
}

/* Adds d·(e·R)² of one column to the rows' energies: e·R is x − sums by now. What the damping added
 * is taken off again. */
AQ_SIMD_EXACT static void aq_sweep_energy(const aq_sweep *sweep, size_t place) {
    AQ_SIMD_EXACT_BODY
    double pivot = (double)sweep->factor->pivots[place];
    double added = (double)sweep->factor->added[place];
    double *energy = sweep->energy;
    size_t panel, i;
    for (panel = 0; panel < sweep->panels; panel++, energy += AQ_PANEL) {
        size_t at = panel * sweep->stride + AQ_PANEL * place;
        for (i = 0; i < AQ_PANEL; i++) {
            double error = (double)sweep->x[at + i], change = error - (double)sweep->sums[at + i];
            energy[i] += pivot * (change * change) - added * (error * error);
        }
    }
}

/* The columns of one strip, each after those before it. */
static void aq_sweep_columns(const aq_sweep *sweep, size_t strip) {
    const float *r = aq_factor_strip(sweep->factor, strip);
    size_t first = AQ_STRIP * strip, j, panel;
    for (j = 0; j < AQ_STRIP && first + j < sweep->factor->n; j++) {
        for (panel = 0; panel < sweep->panels && j; panel++) {
            size_t at = panel * sweep->stride + AQ_PANEL * first;
            sweep->kernels->update(sweep->sums + at + AQ_PANEL * j, sweep->x + at,
                                   r + AQ_STRIP * first + j, AQ_STRIP, j, 1);
        }
        if (sweep->rounding) {
            aq_sweep_round(sweep, first + j);
        }
        if (sweep->energy) {
            aq_sweep_energy(sweep, first + j);
        }
    }
}

AQ_LIB void aq_feedback(const struct aq_kernels *kernels, const aq_factor *factor,
                        const aq_rounding *rounding, float *x, float *sums, size_t panels,
                        double *energy) {
    size_t strips = factor->padded / AQ_STRIP, begin, end, strip;
    aq_sweep sweep;
    sweep.kernels = kernels;
    sweep.factor = factor;
    sweep.rounding = rounding;
    sweep.x = x;
    sweep.sums = sums;
    sweep.panels = panels;
    sweep.stride = AQ_PANEL * factor->padded;
    sweep.energy = energy;
    memset(sums, 0, panels * sweep.stride * sizeof *sums);
    for (begin = 0; begin < factor->padded; begin = end) {
        end = factor->padded - begin < AQ_LAZY ? factor->padded : begin + AQ_LAZY;
        for (strip = begin / AQ_STRIP; strip < end / AQ_STRIP; strip++) {
            if (AQ_STRIP * strip > begin) {
                aq_sweep_strip(&sweep, strip, begin, AQ_STRIP * strip);
            }
            aq_sweep_columns(&sweep, strip);
        }
        for (; strip < strips; strip++) {
            aq_sweep_strip(&sweep, strip, begin, end);
        }
    }
}
