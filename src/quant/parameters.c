/* The parameters of a group in their stored types: a fit is rounded here before any code is chosen,
 * and the min solved again for the rounded scale. */
#include "tile.h"

#define AQ_F16_LEAST 6.103515625e-05f  /* 2^-14, the least normal F16 */
#define AQ_BF16_LEAST 1.17549435e-38f  /* 2^-126, the least normal BF16 */
#define AQ_F32_LEAST 1.401298464e-45f  /* 2^-149 */
#define AQ_SOLVED_MOST 1e35            /* of parameters that are solved again: far from overflow */
#define AQ_F32_SAFE 3.4028e38f         /* no decoded weight may round to infinity */

static uint16_t aq_get_u16(const uint8_t *in) {
    return (uint16_t)(in[0] | in[1] << 8);
}

AQ_LIB void aq_put_u16(uint8_t *out, uint16_t value) {
    out[0] = (uint8_t)(value & 0xFFu);
    out[1] = (uint8_t)(value >> 8);
}

static float aq_get_f32(const uint8_t *in) {
    return aq_simd_float((uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 |
                         (uint32_t)in[3] << 24);
}

AQ_LIB void aq_put_f32(uint8_t *out, float value) {
    uint32_t bits = aq_simd_bits(value);
    aq_put_u16(out, (uint16_t)(bits & 0xFFFFu));
    aq_put_u16(out + 2, (uint16_t)(bits >> 16));
}

static float aq_magnitude(float value) {
    return value < 0.0f ? 0.0f - value : value;
}

static bool aq_is_finite(float value) {
    return (aq_simd_bits(value) & 0x7F800000u) != 0x7F800000u;
}

/* A constant group: affine, scale 1 and min the value; symmetric, the value itself is the scale and
 * the code is +1, or scale 1 and code 0 for zero. A negative zero becomes a positive one. */
static aq_simd_grid aq_constant_grid(const aq_row_job *job, float value) {
    aq_simd_grid grid;
    bool is_scale = job->symmetric && value != 0.0f;
    grid.scale = is_scale ? value : 1.0f;
    grid.min = is_scale || value == 0.0f ? 0.0f : value;
    return grid;
}

/* The best min for the stored scale, on the scale of the weights. */
static float aq_solved_min(const aq_row_job *job, const aq_tile_group *group, float scale) {
    if (job->symmetric) {
        return 0.0f;
    }
    return aq_scale_by(aq_simd_best_min(&group->fit, aq_scale_by(scale, group->exponent)),
                       0 - group->exponent);
}

/* Rounds to F16, or BF16, and back. */
static void aq_through_f16(const aq_row_job *job, float *values, uint16_t *halves, size_t count) {
    if (job->spec.params == AQ_PARAM_BF16) {
        job->kernels->f32_to_bf16(values, halves, count);
        job->kernels->bf16_to_f32(halves, values, count);
    } else {
        job->kernels->f32_to_f16(values, halves, count);
        job->kernels->f16_to_f32(halves, values, count);
    }
}

/* What aq_grids_f16 does where every group is a usual one; false when a parameter does not fit. Scale
 * and min lie in pairs, in grids as in the file. */
static bool aq_grids_f16_plain(const aq_row_job *job, const aq_tile *tile, aq_simd_grid *grids,
                               uint8_t *out) {
    const bool brief = job->spec.params == AQ_PARAM_BF16, symmetric = job->symmetric;
    const uint32_t least = aq_simd_bits(brief ? AQ_BF16_LEAST : AQ_F16_LEAST);
    const uint16_t infinite = brief ? 0x7F80u : 0x7C00u;
    float scales[AQ_TILE_GROUPS] = {0};
    uint16_t halves[2 * AQ_TILE_GROUPS];
    size_t i, count = tile->group_count, many = symmetric ? count : 2 * count;
    bool fits = true;
    for (i = 0; i < count; i++) {
        scales[i] = tile->group[i].fit.scale;
    }
    aq_through_f16(job, scales, halves, count);
    for (i = 0; i < count; i++) {
        fits = fits && (aq_simd_bits(scales[i]) & 0x7FFFFFFFu) >= least;
        grids[i].scale = scales[i];
        grids[i].min = symmetric ? 0.0f : aq_simd_best_min(&tile->group[i].fit, scales[i]);
    }
    if (!symmetric) { /* what is rounded stays as it is */
        aq_through_f16(job, (float *)(void *)grids, halves, many);
    }
    for (i = 0; i < many; i++) {
        fits = fits && (halves[i] & infinite) != infinite;
    }
    memcpy(out, halves, sizeof(uint16_t) * many);
    aq_little_endian(out, many, sizeof(uint16_t));
    return fits;
}

AQ_LIB void aq_grids_f16(const aq_row_job *job, const aq_tile *tile, aq_simd_grid *grids,
                         aq_fit_kind *kinds, uint8_t *out) {
    float scales[AQ_TILE_GROUPS] = {0}, exact[AQ_TILE_GROUPS], mins[AQ_TILE_GROUPS] = {0};
    uint16_t scale_bits[AQ_TILE_GROUPS], min_bits[AQ_TILE_GROUPS];
    float least = job->spec.params == AQ_PARAM_BF16 ? AQ_BF16_LEAST : AQ_F16_LEAST;
    size_t i, count = tile->group_count;
    for (i = 0; i < count; i++) {
        kinds[i] = AQ_FIT_GOOD;
    }
    if (tile->plain && aq_grids_f16_plain(job, tile, grids, out)) {
        return;
    }
    for (i = 0; i < count; i++) {
        const aq_tile_group *group = &tile->group[i];
        scales[i] = group->constant ? aq_constant_grid(job, tile->range[i].low).scale
                                    : aq_scale_by(group->fit.scale, 0 - group->exponent);
    }
    aq_through_f16(job, scales, scale_bits, count);
    for (i = 0; i < count; i++) {
        const aq_tile_group *group = &tile->group[i];
        bool fits = aq_is_finite(scales[i]) && aq_magnitude(scales[i]) >= least;
        exact[i] = group->constant ? aq_constant_grid(job, tile->range[i].low).min
                   : fits          ? aq_solved_min(job, group, scales[i]) : 0.0f;
        mins[i] = exact[i];
        kinds[i] = fits ? AQ_FIT_GOOD : AQ_FIT_NEEDS_F32;
    }
    aq_through_f16(job, mins, min_bits, count);
    for (i = 0; i < count; i++) {
        bool lost = tile->group[i].constant && aq_magnitude(mins[i]) < AQ_F16_LEAST &&
                    mins[i] != exact[i]; /* nothing might be left of it */
        if (lost || !aq_is_finite(mins[i])) {
            kinds[i] = AQ_FIT_NEEDS_F32;
        }
        grids[i].scale = kinds[i] == AQ_FIT_GOOD ? scales[i] : 1.0f;
        grids[i].min = kinds[i] == AQ_FIT_GOOD ? mins[i] : 0.0f;
        aq_put_u16(out, scale_bits[i]);
        out += 2;
        if (!job->symmetric) {
            aq_put_u16(out, min_bits[i]);
            out += 2;
        }
    }
}

AQ_LIB void aq_grids_block(const aq_row_job *job, const aq_tile *tile, aq_simd_grid *grids,
                           aq_fit_kind *kinds, uint8_t *out) {
    float scales[AQ_TILE_GROUPS] = {0}, mins[AQ_TILE_GROUPS] = {0};
    uint16_t scale_bits[AQ_TILE_GROUPS], min_bits[AQ_TILE_GROUPS];
    size_t i, count = tile->group_count;
    for (i = 0; i < count; i++) {
        const aq_tile_group *group = &tile->group[i];
        float low = tile->range[i].low;
        scales[i] = !group->constant ? aq_scale_by(group->fit.scale, 0 - group->exponent)
                    : job->symmetric ? aq_constant_grid(job, low == 0.0f ? 0.0f : low).scale : 0.0f;
        if (group->constant && low == 0.0f) {
            scales[i] = 0.0f;
        }
    }
    aq_through_f16(job, scales, scale_bits, count);
    for (i = 0; i < count; i++) {
        const aq_tile_group *group = &tile->group[i];
        mins[i] = group->constant ? aq_constant_grid(job, tile->range[i].low).min
                  : aq_is_finite(scales[i]) ? aq_solved_min(job, group, scales[i]) : 0.0f;
    }
    aq_through_f16(job, mins, min_bits, count);
    for (i = 0; i < count; i++) {
        bool fits = aq_is_finite(scales[i]) && aq_is_finite(mins[i]);
        kinds[i] = fits ? AQ_FIT_GOOD : AQ_FIT_NEEDS_F32;
        grids[i].scale = fits && scales[i] != 0.0f ? scales[i] : 1.0f;
        grids[i].min = fits ? mins[i] : 0.0f;
        aq_put_u16(out, scale_bits[i]);
        out += 2;
        if (!job->symmetric) {
            aq_put_u16(out, min_bits[i]);
            out += 2;
        }
    }
}

/* Keeps the scale off zero and every decoded weight finite. A denormal scale that has lost much in
 * rounding is rounded away from zero instead, so that the codes still reach the outer weights. */
static void aq_tame(const aq_row_job *job, const aq_tile_group *group, float *scale) {
    float most = AQ_F32_SAFE / (float)((1u << job->spec.bits) - 1u);
    float magnitude = aq_magnitude(*scale), wanted = aq_magnitude(group->fit.scale);
    if (aq_scale_by(magnitude, group->exponent) < 0.999f * wanted) {
        magnitude += AQ_F32_LEAST;
    }
    magnitude = magnitude > most ? most : magnitude;
    *scale = group->fit.scale < 0.0f ? 0.0f - magnitude : magnitude;
}

AQ_SIMD_EXACT static void aq_grid_f32(const aq_row_job *job, const aq_tile_group *group,
                                      const aq_simd_range *range, aq_simd_grid *grid,
                                      uint8_t *out) {
    AQ_SIMD_EXACT_BODY
    if (group->constant) {
        *grid = aq_constant_grid(job, range->low);
    } else {
        float reach, most;
        grid->scale = aq_scale_by(group->fit.scale, 0 - group->exponent);
        aq_tame(job, group, &grid->scale);
        reach = grid->scale * (float)((1u << job->spec.bits) - 1u);
        most = AQ_F32_SAFE - reach;
        grid->min = aq_solved_min(job, group, grid->scale);
        if (group->exponent < 0) { /* far beyond any real weight */
            grid->min = grid->min > most ? most : grid->min;
            grid->min = grid->min < 0.0f - AQ_F32_SAFE ? 0.0f - AQ_F32_SAFE : grid->min;
        }
    }
    aq_put_f32(out, grid->scale);
    if (!job->symmetric) {
        aq_put_f32(out + 4, grid->min);
    }
}

AQ_LIB void aq_grids_f32(const aq_row_job *job, const aq_tile *tile, aq_simd_grid *grids,
                         aq_fit_kind *kinds, uint8_t *out) {
    size_t i;
    for (i = 0; i < tile->group_count; i++) {
        aq_grid_f32(job, &tile->group[i], &tile->range[i], &grids[i], out);
        kinds[i] = AQ_FIT_GOOD;
        out += job->symmetric ? 4 : 8;
    }
}

/* The least F16 that is not below a value ≥ 0; infinity when there is none. */
static uint16_t aq_f16_ceiling(float value) {
    uint16_t half = aq_simd_to_f16(value);
    if (aq_simd_from_f16(half) < value) {
        half++;
    }
    return half;
}

AQ_LIB void aq_q8_open(aq_q8_row *row) {
    memset(row, 0, sizeof *row);
}

AQ_LIB aq_fit_kind aq_q8_add_scale(aq_q8_row *row, const aq_tile_group *group) {
    float scale = group->fit.scale;
    if (group->constant) {
        return AQ_FIT_NEEDS_WIDE;
    }
    row->most_scale = scale > row->most_scale ? scale : row->most_scale;
    row->least_scale = scale < row->least_scale ? scale : row->least_scale;
    return group->exponent ? AQ_FIT_NEEDS_F32 : AQ_FIT_GOOD;
}

/* The value whose 127/128 or 128/128 parts reach the extremes of either sign. */
static float aq_q8_reach(float most, float least) {
    float above = most * (128.0f / 127.0f), below = 0.0f - least;
    return above > below ? above : below;
}

AQ_LIB aq_fit_kind aq_q8_close_scale(const aq_row_job *job, aq_q8_row *row) {
    row->scale_bits = aq_f16_ceiling(job->symmetric ? aq_q8_reach(row->most_scale, row->least_scale)
                                                    : row->most_scale);
    row->scale = aq_simd_from_f16(row->scale_bits);
    return aq_is_finite(row->scale) && row->scale >= AQ_F16_LEAST ? AQ_FIT_GOOD : AQ_FIT_NEEDS_F32;
}

/* The group's byte: u of scale = S·(u + 1)/256, or i of S·i/128, never 0. */
static int32_t aq_q8_scale_code(bool symmetric, float row_scale, float scale) {
    int32_t code;
    if (!symmetric) {
        return aq_simd_round(scale * 256.0f / row_scale, 1, 256) - 1;
    }
    code = aq_simd_round(scale * 128.0f / row_scale, -128, 127);
    return code != 0 ? code : scale < 0.0f ? -1 : 1;
}

static float aq_q8_scale(bool symmetric, float row_scale, int32_t code) {
    return symmetric ? row_scale * (float)code / 128.0f : row_scale * (float)(code + 1) / 256.0f;
}

/* i of M·i/128. */
static int32_t aq_q8_min_code(float row_min, float min) {
    return row_min > 0.0f ? aq_simd_round(min * 128.0f / row_min, -128, 127) : 0;
}

AQ_LIB void aq_q8_add_min(const aq_row_job *job, aq_q8_row *row, const aq_simd_fit *fit) {
    int32_t code = aq_q8_scale_code(job->symmetric, row->scale, fit->scale);
    float scale = aq_q8_scale(job->symmetric, row->scale, code);
    float min = aq_simd_best_min(fit, scale);
    row->most_min = min > row->most_min ? min : row->most_min;
    row->least_min = min < row->least_min ? min : row->least_min;
}

AQ_LIB aq_fit_kind aq_q8_close_min(const aq_row_job *job, aq_q8_row *row, uint8_t *extra) {
    aq_put_u16(extra, row->scale_bits);
    if (job->symmetric) {
        return AQ_FIT_GOOD;
    }
    row->min_bits = aq_f16_ceiling(aq_q8_reach(row->most_min, row->least_min));
    row->min = aq_simd_from_f16(row->min_bits);
    aq_put_u16(extra + 2, row->min_bits);
    return aq_is_finite(row->min) ? AQ_FIT_GOOD : AQ_FIT_NEEDS_F32;
}

AQ_LIB void aq_q8_grid(const aq_row_job *job, const aq_q8_row *row, const aq_simd_fit *fit,
                       aq_simd_grid *grid, uint8_t *out) {
    int32_t code = aq_q8_scale_code(job->symmetric, row->scale, fit->scale), min;
    grid->scale = aq_q8_scale(job->symmetric, row->scale, code);
    grid->min = 0.0f;
    out[0] = (uint8_t)(code & 0xFF);
    if (job->symmetric) {
        return;
    }
    min = aq_q8_min_code(row->min, aq_simd_best_min(fit, grid->scale));
    grid->min = row->min * (float)min / 128.0f;
    out[1] = (uint8_t)(min & 0xFF);
}

/* Two's complement, without relying on a conversion. */
static int32_t aq_get_i8(uint8_t byte) {
    return byte < 128u ? (int32_t)byte : (int32_t)byte - 256;
}

/* Stored values in this machine's byte order. */
static void aq_get_values(const uint8_t *in, size_t size, size_t count, void *out) {
    memcpy(out, in, size * count);
    aq_little_endian(out, count, size);
}

static void aq_grids_read_q8(bool symmetric, const uint8_t *params, const uint8_t *extra,
                             size_t count, aq_simd_grid *grids) {
    float scale = aq_simd_from_f16(aq_get_u16(extra));
    float min = symmetric ? 0.0f : aq_simd_from_f16(aq_get_u16(extra + 2));
    size_t i;
    for (i = 0; i < count; i++, params += symmetric ? 1 : 2) {
        grids[i].scale = aq_q8_scale(symmetric, scale,
                                     symmetric ? aq_get_i8(params[0]) : (int32_t)params[0]);
        grids[i].min = symmetric ? 0.0f : min * (float)aq_get_i8(params[1]) / 128.0f;
    }
}

/* A scale and a byte each. */
AQ_SIMD_EXACT static void aq_grids_read_zero_point(const aq_quant_spec *spec, const uint8_t *params,
                                                   size_t count, aq_simd_grid *grids) {
    AQ_SIMD_EXACT_BODY
    size_t i, size = spec->params == AQ_PARAM_F32 ? 4u : 2u;
    for (i = 0; i < count; i++, params += size + 1) {
        grids[i].scale = spec->params == AQ_PARAM_F32 ? aq_get_f32(params)
                         : spec->params == AQ_PARAM_BF16
                             ? aq_simd_float((uint32_t)aq_get_u16(params) << 16)
                             : aq_simd_from_f16(aq_get_u16(params));
        grids[i].min = 0.0f - grids[i].scale * (float)params[size];
    }
}

AQ_LIB void aq_grids_read(const struct aq_kernels *kernels, const aq_quant_spec *spec,
                          const uint8_t *params, const uint8_t *extra, size_t count,
                          aq_simd_grid *grids) {
    bool symmetric = spec->code == AQ_CODE_SYMMETRIC || spec->code == AQ_CODE_TRELLIS;
    float scales[AQ_TILE_GROUPS];
    uint16_t halves[2 * AQ_TILE_GROUPS];
    /* pairs of scale and min lie as they are read */
    float *values = symmetric ? scales : (float *)(void *)grids;
    size_t i, many = symmetric ? count : 2 * count;
    if (spec->params == AQ_PARAM_Q8) {
        aq_grids_read_q8(symmetric, params, extra, count, grids);
        return;
    }
    if (spec->code == AQ_CODE_ZERO_POINT) {
        aq_grids_read_zero_point(spec, params, count, grids);
        return;
    }
    if (spec->params == AQ_PARAM_F32) {
        aq_get_values(params, sizeof(float), many, values);
    } else {
        aq_get_values(params, sizeof(uint16_t), many, halves);
        (spec->params == AQ_PARAM_BF16 ? kernels->bf16_to_f32 : kernels->f16_to_f32)(halves, values,
                                                                                     many);
    }
    for (i = 0; i < count && symmetric; i++) {
        grids[i].scale = scales[i];
        grids[i].min = 0.0f;
    }
}

/* ---- one group, whose parameters are solved again */

static uint16_t aq_bf16_of(float value) {
    uint32_t bits = aq_simd_bits(value);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

AQ_LIB float aq_stored_scale(const aq_quant_spec *spec, const uint8_t *extra, double wanted) {
    bool symmetric = spec->code == AQ_CODE_SYMMETRIC;
    float scale, row;
    if (!(wanted > -AQ_SOLVED_MOST && wanted < AQ_SOLVED_MOST)) {
        return 0.0f;
    }
    scale = (float)wanted;
    if (spec->code == AQ_CODE_ZERO_POINT) {
        return aq_zero_point_scale(spec->params, scale);
    }
    switch (spec->params) {
    case AQ_PARAM_Q8:
        row = aq_simd_from_f16(aq_get_u16(extra));
        return aq_q8_scale(symmetric, row, aq_q8_scale_code(symmetric, row, scale));
    case AQ_PARAM_F16:
        scale = aq_simd_from_f16(aq_simd_to_f16(scale));
        return aq_is_finite(scale) && aq_magnitude(scale) >= AQ_F16_LEAST ? scale : 0.0f;
    case AQ_PARAM_BF16:
        scale = aq_simd_float((uint32_t)aq_bf16_of(scale) << 16);
        break;
    case AQ_PARAM_F32:
    default:
        break;
    }
    return aq_magnitude(scale) >= AQ_BF16_LEAST ? scale : 0.0f;
}

AQ_LIB bool aq_stored_min(const aq_quant_spec *spec, const uint8_t *extra, double wanted,
                          float *min) {
    float row;
    if (!(wanted > -AQ_SOLVED_MOST && wanted < AQ_SOLVED_MOST)) {
        return false;
    }
    *min = (float)wanted;
    if (spec->params == AQ_PARAM_Q8) {
        row = aq_simd_from_f16(aq_get_u16(extra + 2));
        *min = row * (float)aq_q8_min_code(row, *min) / 128.0f;
    } else if (spec->params == AQ_PARAM_F16) {
        *min = aq_simd_from_f16(aq_simd_to_f16(*min));
    }
    return aq_is_finite(*min);
}

AQ_LIB void aq_grid_store(const aq_quant_spec *spec, const uint8_t *extra,
                          const aq_simd_grid *grid, uint8_t *out) {
    bool affine = spec->code == AQ_CODE_AFFINE;
    float row;
    if (spec->params == AQ_PARAM_Q8) {
        row = aq_simd_from_f16(aq_get_u16(extra));
        out[0] = (uint8_t)(aq_q8_scale_code(!affine, row, grid->scale) & 0xFF);
        if (affine) {
            row = aq_simd_from_f16(aq_get_u16(extra + 2));
            out[1] = (uint8_t)(aq_q8_min_code(row, grid->min) & 0xFF);
        }
    } else if (spec->params == AQ_PARAM_F32) {
        aq_put_f32(out, grid->scale);
        if (affine) {
            aq_put_f32(out + 4, grid->min);
        }
    } else {
        bool brief = spec->params == AQ_PARAM_BF16;
        aq_put_u16(out, brief ? aq_bf16_of(grid->scale) : aq_simd_to_f16(grid->scale));
        if (affine) {
            aq_put_u16(out + 2, aq_simd_to_f16(grid->min)); /* no affine code has BF16 */
        }
    }
}

#undef AQ_SOLVED_MOST
#undef AQ_F16_LEAST
#undef AQ_BF16_LEAST
#undef AQ_F32_LEAST
#undef AQ_F32_SAFE
