/* What GPTQ leaves: parameters that were fitted before any code was chosen, and codes that could not know
 * what the columns after them would do. Here both are solved again, group by group: the scale and min
 * with the least error of the whole row's output for the codes there are; then each code of the group,
 * with all others as they are (the coordinate descent of Behdin et al., arXiv 2309.01885); then scale
 * and min once more.
 *
 * With E = e·H·eᵀ, e = ŵ − w, a change u of a group's columns changes E by u·H·uᵀ + 2·u·(e·H)ᵀ. Here
 * u = ds·c + dm·1, so the best ds and dm solve two linear equations, and every step that is taken
 * lowers E. H is damped as in the feedback, but for columns that are never used: these are rounded to
 * the nearest code and weigh nothing. */
#include "gptq_space.h"
#include "tile.h"

#define AQ_SLAB 128u /* rows of H at once */

/* The group at work. [w] stands for its columns, filled up to a multiple of 8 by zeros. */
typedef struct aq_refit {
    const struct aq_kernels *kernels;
    const aq_quant_spec *spec;
    const aq_factor *factor;
    aq_gptq_space *space;
    float *errors;       /* e by column, [panels][padded][32] */
    float *pull;         /* −e·H, [panels][w][32] */
    float *slab;         /* rows of H, [AQ_SLAB][w] */
    float *block;        /* H of the group, damped, [w][w] */
    float *ones;         /* 1·block, [w] */
    float *codes;        /* of a panel, less what stands for 0, [w][32] */
    float *turned;       /* −codes·block, [w][32] */
    uint32_t *places;    /* of all columns */
    double level;        /* 1·block·1ᵀ */
    size_t group, begin, count, wide; /* first column, columns, w */
} aq_refit;

/* 32 rows of the group. */
typedef struct aq_refit_panel {
    size_t first; /* row */
    float *errors, *pull;
    float scale[AQ_PANEL], min[AQ_PANEL]; /* min: of affine codes, else 0 */
    float least[AQ_PANEL], most[AQ_PANEL]; /* codes */
    float zero[AQ_PANEL];                  /* stored code − code */
} aq_refit_panel;

static size_t aq_refit_wide(const aq_quant_spec *spec, uint64_t n) {
    uint64_t columns = n < spec->group_size ? n : spec->group_size;
    return (size_t)((columns + AQ_STRIP - 1) / AQ_STRIP * AQ_STRIP);
}

AQ_LIB bool aq_gptq_refits(const aq_quant_spec *spec) {
    return spec->code != AQ_CODE_TRELLIS && spec->fit != AQ_FIT_FAST;
}

AQ_LIB uint64_t aq_refit_bytes(const aq_quant_spec *spec, uint64_t n) {
    uint64_t wide = aq_refit_wide(spec, n);
    return aq_gptq_refits(spec)
               ? (AQ_SLAB * wide + wide * wide + wide + 2 * AQ_PANEL * wide) * sizeof(float) +
                     n * sizeof(uint32_t) : 0;
}

static void aq_refit_open(aq_refit *refit, size_t n) {
    size_t wide = refit->wide, place;
    refit->errors = refit->space->sums;
    refit->pull = refit->space->x;
    refit->slab = (float *)refit->space->rest;
    refit->block = refit->slab + AQ_SLAB * wide;
    refit->codes = refit->block + wide * wide;
    refit->turned = refit->codes + AQ_PANEL * wide;
    refit->ones = refit->turned + AQ_PANEL * wide;
    refit->places = (uint32_t *)(void *)(refit->ones + wide);
    for (place = 0; place < n; place++) {
        refit->places[refit->factor->order[place]] = (uint32_t)place;
    }
}

/* x by place becomes errors by column; x is free then. */
static void aq_refit_errors(const aq_refit *refit) {
    size_t padded = refit->factor->padded, panel, place;
    for (panel = 0; panel < refit->space->panels; panel++) {
        const float *from = refit->space->x + panel * AQ_PANEL * padded;
        float *to = refit->errors + panel * AQ_PANEL * padded;
        for (place = 0; place < refit->factor->n; place++) {
            memcpy(to + AQ_PANEL * refit->factor->order[place], from + AQ_PANEL * place,
                   AQ_PANEL * sizeof *to);
        }
    }
}

/* ---- the group's part of H */

/* What damping adds; nothing to a column that is never used. */
static float aq_refit_damping(const aq_refit *refit, size_t column) {
    const aq_factor *factor = refit->factor;
    return factor->diagonal[column] > 0.0f ? factor->added[refit->places[column]] : 0.0f;
}

/* Rows first … first + count − 1 of H at the group's columns. */
static void aq_refit_rows(const aq_refit *refit, size_t first, size_t count, float *out) {
    size_t n = refit->factor->n, i;
    for (i = 0; i < count; i++, out += refit->wide) {
        memcpy(out, refit->factor->hessian + (first + i) * n + refit->begin,
               refit->count * sizeof *out);
        memset(out + refit->count, 0, (refit->wide - refit->count) * sizeof *out);
    }
}

AQ_SIMD_EXACT static void aq_refit_block(aq_refit *refit) {
    AQ_SIMD_EXACT_BODY
    size_t i, j;
    aq_refit_rows(refit, refit->begin, refit->count, refit->block);
    memset(refit->ones, 0, refit->wide * sizeof *refit->ones);
    refit->level = 0.0;
    for (i = 0; i < refit->count; i++) {
        float *row = refit->block + i * refit->wide;
        row[i] += aq_refit_damping(refit, refit->begin + i);
        for (j = 0; j < refit->count; j++) {
            refit->ones[j] += row[j];
            refit->level += (double)row[j];
        }
    }
}

/* Takes the products of `depth` columns and rows at b from c[w][32]. */
static void aq_refit_update(const aq_refit *refit, float *c, const float *a, const float *b,
                            size_t depth) {
    size_t j;
    for (j = 0; j < refit->wide; j += AQ_STRIP) {
        refit->kernels->update(c + AQ_PANEL * j, a, b + j, refit->wide, depth, AQ_STRIP);
    }
}

AQ_SIMD_EXACT static void aq_refit_damp(const aq_refit *refit, const float *errors, float *pull) {
    AQ_SIMD_EXACT_BODY
    size_t j, i;
    for (j = 0; j < refit->count; j++, errors += AQ_PANEL, pull += AQ_PANEL) {
        float damping = aq_refit_damping(refit, refit->begin + j);
        for (i = 0; i < AQ_PANEL; i++) {
            pull[i] -= damping * errors[i];
        }
    }
}

/* −e·H of all rows. */
static void aq_refit_pull(const aq_refit *refit) {
    size_t n = refit->factor->n, stride = AQ_PANEL * refit->factor->padded, first, panel;
    memset(refit->pull, 0, refit->space->panels * refit->wide * AQ_PANEL * sizeof(float));
    for (first = 0; first < n; first += AQ_SLAB) {
        size_t depth = n - first < AQ_SLAB ? n - first : AQ_SLAB;
        aq_refit_rows(refit, first, depth, refit->slab);
        for (panel = 0; panel < refit->space->panels; panel++) {
            aq_refit_update(refit, refit->pull + panel * refit->wide * AQ_PANEL,
                            refit->errors + panel * stride + AQ_PANEL * first, refit->slab, depth);
        }
    }
    for (panel = 0; panel < refit->space->panels; panel++) {
        aq_refit_damp(refit, refit->errors + panel * stride + AQ_PANEL * refit->begin,
                      refit->pull + panel * refit->wide * AQ_PANEL);
    }
}

/* ---- rows */

static uint8_t *aq_refit_stored(const aq_refit *refit, size_t row, size_t j) {
    return refit->space->codes + refit->places[refit->begin + j] * refit->space->wide + row;
}

/* w = scale·code + min: of codes that have a zero point, and of symmetric ones, min is 0. */
AQ_SIMD_EXACT static void aq_refit_load(const aq_refit *refit, aq_refit_panel *panel) {
    AQ_SIMD_EXACT_BODY
    float count = (float)(1u << refit->spec->bits);
    size_t at = refit->group * refit->space->wide + panel->first, i, j;
    for (i = 0; i < AQ_PANEL; i++) {
        float scale = refit->space->scale[at + i], min = refit->space->min[at + i];
        panel->zero[i] = refit->spec->code == AQ_CODE_SYMMETRIC    ? 0.5f * count
                         : refit->spec->code == AQ_CODE_ZERO_POINT ? (0.0f - min) / scale : 0.0f;
        panel->scale[i] = scale;
        panel->min[i] = refit->spec->code == AQ_CODE_AFFINE ? min : 0.0f;
        panel->least[i] = 0.0f - panel->zero[i];
        panel->most[i] = count - 1.0f - panel->zero[i];
    }
    memset(refit->codes, 0, refit->wide * AQ_PANEL * sizeof *refit->codes);
    for (j = 0; j < refit->count; j++) {
        const uint8_t *codes = aq_refit_stored(refit, panel->first, j);
        for (i = 0; i < AQ_PANEL; i++) {
            refit->codes[AQ_PANEL * j + i] = (float)codes[i] - panel->zero[i];
        }
    }
}

AQ_SIMD_EXACT static void aq_refit_keep(const aq_refit *refit, const aq_refit_panel *panel,
                                        const aq_quant_layout *layout, uint8_t *params,
                                        const uint8_t *extra) {
    AQ_SIMD_EXACT_BODY
    size_t at = refit->group * refit->space->wide + panel->first, row = panel->first, i, j;
    size_t bytes = (size_t)(layout->row_param_bytes / layout->groups);
    for (j = 0; j < refit->count; j++) {
        uint8_t *codes = aq_refit_stored(refit, row, j);
        for (i = 0; i < AQ_PANEL; i++) {
            codes[i] = (uint8_t)(int32_t)(refit->codes[AQ_PANEL * j + i] + panel->zero[i]);
        }
    }
    for (i = 0; i < AQ_PANEL && row < refit->space->rows; i++, row++) {
        aq_simd_grid grid;
        grid.scale = panel->scale[i];
        grid.min = panel->min[i];
        if (grid.scale == refit->space->scale[at + i] &&
            (refit->spec->code != AQ_CODE_AFFINE || grid.min == refit->space->min[at + i])) {
            continue; /* of what had no usual fit, the bytes stay */
        }
        aq_grid_store(refit->spec, extra ? extra + row * (size_t)layout->row_extra_bytes : NULL,
                      &grid, params + row * (size_t)layout->row_param_bytes + refit->group * bytes);
        refit->space->scale[at + i] = grid.scale;
        refit->space->min[at + i] = refit->spec->code == AQ_CODE_ZERO_POINT
                                        ? 0.0f - grid.scale * panel->zero[i] : grid.min;
    }
}

/* ---- scale and min */

typedef struct aq_refit_sums {
    double square[AQ_PANEL], cross[AQ_PANEL]; /* c·H·cᵀ, c·H·1ᵀ */
    double codes[AQ_PANEL], ones[AQ_PANEL];   /* e·H·cᵀ, e·H·1ᵀ */
} aq_refit_sums;

AQ_SIMD_EXACT static void aq_refit_sum(const aq_refit *refit, const aq_refit_panel *panel,
                                       aq_refit_sums *sums) {
    AQ_SIMD_EXACT_BODY
    const float *codes = refit->codes, *turned = refit->turned, *pull = panel->pull;
    size_t j, i;
    memset(sums, 0, sizeof *sums);
    for (j = 0; j < refit->count; j++) {
        for (i = 0; i < AQ_PANEL; i++, codes++, turned++, pull++) {
            sums->square[i] -= (double)*codes * (double)*turned;
            sums->cross[i] -= (double)*turned;
            sums->codes[i] -= (double)*pull * (double)*codes;
            sums->ones[i] -= (double)*pull;
        }
    }
}

/* Solves row i: what is added to scale and min, both 0 where nothing that can be stored is better. */
AQ_SIMD_EXACT static void aq_refit_solve(const aq_refit *refit, const aq_refit_panel *panel,
                                         const aq_refit_sums *sums, size_t i, const uint8_t *extra,
                                         aq_simd_grid *grid) {
    AQ_SIMD_EXACT_BODY
    const bool affine = refit->spec->code == AQ_CODE_AFFINE;
    double a = sums->square[i], b = affine ? sums->cross[i] : 0.0, c = affine ? refit->level : 1.0;
    double by_codes = sums->codes[i], by_ones = affine ? sums->ones[i] : 0.0;
    double scale = (double)panel->scale[i], min = (double)panel->min[i], ds = 0.0, dm = 0.0, change;
    double determinant = a * c - b * b;
    float stored_min = 0.0f, stored;
    grid->scale = panel->scale[i];
    grid->min = panel->min[i];
    if (!(c > 0.0)) {
        return;
    }
    if (a > 0.0 && determinant > 1e-6 * (a * c)) { /* else all codes are alike */
        ds = (b * by_ones - c * by_codes) / determinant;
    }
    stored = ds == 0.0 ? panel->scale[i] : aq_stored_scale(refit->spec, extra, scale + ds);
    if (stored == 0.0f || (stored < 0.0f) != (panel->scale[i] < 0.0f)) {
        return;
    }
    ds = (double)stored - scale;
    if (affine) {
        if (!aq_stored_min(refit->spec, extra, min - (by_ones + b * ds) / c, &stored_min)) {
            return;
        }
        dm = (double)stored_min - min;
    }
    change = a * (ds * ds) + 2.0 * (b * (ds * dm)) + c * (dm * dm) +
             2.0 * (ds * by_codes + dm * by_ones);
    if (change < 0.0) {
        grid->scale = stored;
        grid->min = affine ? stored_min : 0.0f;
    }
}

/* Rows get new parameters; errors and pull follow. */
AQ_SIMD_EXACT static void aq_refit_change(const aq_refit *refit, aq_refit_panel *panel,
                                          const aq_simd_grid *grids) {
    AQ_SIMD_EXACT_BODY
    size_t j, i;
    for (j = 0; j < refit->count; j++) {
        const float *codes = refit->codes + AQ_PANEL * j, *turned = refit->turned + AQ_PANEL * j;
        float *errors = panel->errors + AQ_PANEL * j, *pull = panel->pull + AQ_PANEL * j;
        for (i = 0; i < AQ_PANEL; i++) {
            float before = panel->scale[i] * codes[i] + panel->min[i];
            float after = grids[i].scale * codes[i] + grids[i].min;
            errors[i] += after - before;
            pull[i] += (grids[i].scale - panel->scale[i]) * turned[i] -
                       (grids[i].min - panel->min[i]) * refit->ones[j];
        }
    }
    for (i = 0; i < AQ_PANEL; i++) {
        panel->scale[i] = grids[i].scale;
        panel->min[i] = grids[i].min;
    }
}

static void aq_refit_grids(const aq_refit *refit, aq_refit_panel *panel,
                           const aq_quant_layout *layout, const uint8_t *extra) {
    aq_simd_grid grids[AQ_PANEL];
    aq_refit_sums sums;
    size_t i;
    memset(refit->turned, 0, refit->wide * AQ_PANEL * sizeof *refit->turned);
    aq_refit_update(refit, refit->turned, refit->codes, refit->block, refit->count);
    aq_refit_sum(refit, panel, &sums);
    for (i = 0; i < AQ_PANEL; i++) {
        size_t row = panel->first + i;
        if (row < refit->space->rows) {
            aq_refit_solve(refit, panel, &sums, i,
                           extra ? extra + row * (size_t)layout->row_extra_bytes : NULL, &grids[i]);
        } else {
            grids[i].scale = panel->scale[i];
            grids[i].min = panel->min[i];
        }
    }
    aq_refit_change(refit, panel, grids);
}

/* ---- codes */

/* The best codes of one column; true when one has changed, by what `deltas` says of the weights. */
AQ_SIMD_EXACT static bool aq_refit_column(const aq_refit *refit, const aq_refit_panel *panel,
                                          size_t j, float *deltas) {
    AQ_SIMD_EXACT_BODY
    float *codes = refit->codes + AQ_PANEL * j, *errors = panel->errors + AQ_PANEL * j;
    const float *pull = panel->pull + AQ_PANEL * j;
    float pivot = refit->block[j * (refit->wide + 1)];
    bool changed = false;
    size_t i;
    for (i = 0; i < AQ_PANEL; i++) {
        float before = panel->scale[i] * codes[i] + panel->min[i];
        float target = pivot > 0.0f ? before + pull[i] / pivot : before - errors[i];
        float code = (target - panel->min[i]) / panel->scale[i];
        code = code > panel->least[i] ? code : panel->least[i];
        code = code < panel->most[i] ? code : panel->most[i];
        code = (code + 12582912.0f) - 12582912.0f; /* to an integer, halves to even */
        code = target - target == 0.0f ? code : codes[i]; /* else sums are beyond F32 */
        deltas[i] = (panel->scale[i] * code + panel->min[i]) - before;
        errors[i] += deltas[i];
        changed = changed || code != codes[i];
        codes[i] = code;
    }
    return changed;
}

static void aq_refit_codes(const aq_refit *refit, const aq_refit_panel *panel) {
    float deltas[AQ_PANEL];
    size_t j;
    for (j = 0; j < refit->count; j++) {
        if (aq_refit_column(refit, panel, j, deltas)) {
            aq_refit_update(refit, panel->pull, deltas, refit->block + j * refit->wide, 1);
        }
    }
}

/* ---- all */

AQ_LIB void aq_gptq_refit(const aq_context *context, aq_gptq_space *space, const aq_factor *factor,
                          const aq_quant_spec *spec, const aq_quant_layout *layout, void *params,
                          const void *extra) {
    size_t stride = AQ_PANEL * factor->padded, number;
    aq_refit refit;
    aq_refit_panel panel;
    memset(&refit, 0, sizeof refit);
    refit.kernels = aq_kernels_of(context);
    refit.spec = spec;
    refit.factor = factor;
    refit.space = space;
    refit.wide = aq_refit_wide(spec, factor->n);
    aq_refit_open(&refit, factor->n);
    aq_refit_errors(&refit);
    for (refit.group = 0; refit.group < space->groups; refit.group++) {
        refit.begin = refit.group * spec->group_size;
        refit.count = factor->n - refit.begin;
        refit.count = refit.count < spec->group_size ? refit.count : spec->group_size;
        aq_refit_block(&refit);
        aq_refit_pull(&refit);
        for (number = 0; number < space->panels; number++) {
            panel.first = AQ_PANEL * number;
            panel.errors = refit.errors + number * stride + AQ_PANEL * refit.begin;
            panel.pull = refit.pull + number * refit.wide * AQ_PANEL;
            aq_refit_load(&refit, &panel);
            aq_refit_grids(&refit, &panel, layout, (const uint8_t *)extra);
            aq_refit_codes(&refit, &panel);
            aq_refit_grids(&refit, &panel, layout, (const uint8_t *)extra);
            aq_refit_keep(&refit, &panel, layout, (uint8_t *)params, (const uint8_t *)extra);
        }
    }
}

#undef AQ_SLAB
