/* Groups whose zero is a code: w = scale·(q − zero), as integer kernels of other programs want it. The
 * zero must be an integer from 0 to 2^bits − 1 and the scale a number of its type, so neither follows
 * from the least-squares line: near it, a few zeros and scales are tried, each scale solved again for
 * the codes that it gives, and the pair with the smallest error of stored values is taken. */
#include "tile.h"

#define AQ_ZERO_ROUNDS 3u
#define AQ_ZERO_LEAST 1.17549435e-38f     /* 2^-126 */
#define AQ_ZERO_F16_LEAST 6.103515625e-05f /* 2^-14 */
#define AQ_ZERO_LANES 16u

/* A group while pairs are tried: padded with weightless zeros to whole lanes. */
typedef struct aq_zero_group {
    float x[AQ_SIMD_GROUP_MAX], weights[AQ_SIMD_GROUP_MAX];
    size_t count;
    float low, high; /* of x */
    float top;       /* 2^bits − 1 */
    int exponent;    /* x is the weights times 2^exponent */
    float scale, zero, error; /* the best so far; scale 0: none */
} aq_zero_group;

/* F32 scales have 16 significant bits, so that scale·zero and scale·code are exact like those of the
 * shorter types. */
AQ_LIB float aq_zero_point_scale(aq_param_type params, float scale) {
    uint32_t bits;
    float least = AQ_ZERO_LEAST;
    if (params == AQ_PARAM_F16) {
        scale = aq_simd_from_f16(aq_simd_to_f16(scale));
        least = AQ_ZERO_F16_LEAST;
    } else {
        uint32_t drop = params == AQ_PARAM_BF16 ? 16u : 8u;
        bits = aq_simd_bits(scale);
        bits += (1u << (drop - 1u)) - 1u + (bits >> drop & 1u);
        scale = aq_simd_float(bits >> drop << drop);
    }
    return scale >= least && scale <= 1e38f ? scale : 0.0f; /* no code reaches infinity */
}

/* The weighted error of the codes that scale and zero give, and in *solved the best scale for them. */
AQ_SIMD_EXACT static float aq_zero_pass(const aq_zero_group *group, float scale, float zero,
                                        float *solved) {
    AQ_SIMD_EXACT_BODY
    const float magic = 12582912.0f; /* 1.5·2^23: adding it rounds to an integer, halves to even */
    float error[AQ_ZERO_LANES] = {0}, dot[AQ_ZERO_LANES] = {0}, square[AQ_ZERO_LANES] = {0};
    float inverse = 1.0f / scale, top = group->top, norm;
    size_t i, j;
    for (i = 0; i < group->count; i += AQ_ZERO_LANES) {
        const float *x = group->x + i, *weights = group->weights + i;
        for (j = 0; j < AQ_ZERO_LANES; j++) {
            float code = x[j] * inverse + zero, rest;
            code = code > 0.0f ? code : 0.0f;
            code = code < top ? code : top;
            code = ((code + magic) - magic) - zero;
            rest = x[j] - scale * code;
            error[j] += weights[j] * (rest * rest);
            dot[j] += weights[j] * (x[j] * code);
            square[j] += weights[j] * (code * code);
        }
    }
    norm = aq_scalar_fold(square);
    *solved = norm > 0.0f ? aq_scalar_fold(dot) / norm : 0.0f;
    return aq_scalar_fold(error);
}

static void aq_zero_try(const aq_row_job *job, aq_zero_group *group, float scale, float zero) {
    unsigned round;
    float before = 0.0f;
    for (round = 0; round < AQ_ZERO_ROUNDS; round++) {
        float solved, error;
        scale = aq_zero_point_scale(job->spec.params, aq_scale_by(scale, 0 - group->exponent));
        scale = aq_scale_by(scale, group->exponent);
        if (!(scale > 0.0f) || scale == before) {
            return;
        }
        error = aq_zero_pass(group, scale, zero, &solved);
        if (group->scale == 0.0f || error < group->error) {
            group->scale = scale;
            group->zero = zero;
            group->error = error;
        }
        before = scale;
        scale = solved;
    }
}

/* The scale at which the codes just reach both ends of the range. */
static float aq_zero_reach(const aq_zero_group *group, float zero) {
    float above = zero < group->top && group->high > 0.0f ? group->high / (group->top - zero) : 0.0f;
    float below = zero > 0.0f && group->low < 0.0f ? (0.0f - group->low) / zero : 0.0f;
    return above > below ? above : below;
}

static void aq_zero_load(const aq_row_job *job, const aq_tile *tile, size_t index,
                         aq_zero_group *group) {
    const aq_tile_group *own = &tile->group[index];
    const float *weights = job->column_weights ? job->column_weights + tile->begin : NULL;
    size_t i, begin = index * job->spec.group_size, left = tile->count - begin;
    size_t length = left < job->spec.group_size ? left : job->spec.group_size;
    float sum = 0.0f;
    group->count = (length + AQ_ZERO_LANES - 1) / AQ_ZERO_LANES * AQ_ZERO_LANES;
    group->exponent = own->exponent;
    group->top = (float)((1u << job->spec.bits) - 1u);
    group->low = aq_scale_by(tile->range[index].low, own->exponent);
    group->high = aq_scale_by(tile->range[index].high, own->exponent);
    group->scale = group->zero = group->error = 0.0f;
    for (i = 0; i < group->count; i++) {
        group->x[i] = i < length ? aq_scale_by(tile->x[begin + i], own->exponent) : 0.0f;
        group->weights[i] = i >= length ? 0.0f : weights ? weights[begin + i] : 1.0f;
        sum = group->weights[i] > sum ? group->weights[i] : sum;
    }
    /* their largest becomes 1; no weight at all: all alike */
    for (i = 0; weights && i < length; i++) {
        group->weights[i] = sum > 0.0f ? group->weights[i] / sum : 1.0f;
    }
}

/* Finds scale and zero; a constant is one step from its zero. */
static void aq_zero_fit(const aq_row_job *job, const aq_tile *tile, size_t index,
                        aq_zero_group *group) {
    const aq_tile_group *own = &tile->group[index];
    float first, last, zero, line = own->fit.scale;
    if (own->constant) {
        float value = tile->range[index].low;
        float magnitude = value < 0.0f ? 0.0f - value : value;
        group->zero = value < 0.0f ? 1.0f : 0.0f;
        group->scale = value == 0.0f ? 1.0f : aq_zero_point_scale(job->spec.params, magnitude);
        group->exponent = 0;
        return;
    }
    first = (0.0f - aq_simd_best_min(&own->fit, line)) / line;
    first = first > 0.0f ? (first < group->top ? first : group->top) : 0.0f;
    first = (float)(int32_t)first; /* floor */
    last = first < group->top ? first + 1.0f : group->top;
    if (job->spec.bits == 2) {
        first = 0.0f;
        last = group->top;
    }
    for (zero = first; zero <= last; zero += 1.0f) {
        aq_zero_try(job, group, line, zero);
        aq_zero_try(job, group, aq_zero_reach(group, zero), zero);
    }
}

static uint8_t *aq_zero_put(const aq_row_job *job, float scale, uint8_t zero, uint8_t *out) {
    uint32_t bits = aq_simd_bits(scale);
    size_t i, size = job->spec.params == AQ_PARAM_F32 ? 4u : 2u;
    if (job->spec.params == AQ_PARAM_F16) {
        bits = aq_simd_to_f16(scale);
    } else if (job->spec.params == AQ_PARAM_BF16) {
        bits >>= 16;
    }
    for (i = 0; i < size; i++) {
        *out++ = (uint8_t)(bits >> (8 * i) & 0xFFu);
    }
    *out++ = zero;
    return out;
}

AQ_SIMD_EXACT AQ_LIB void aq_grids_zero_point(const aq_row_job *job, const aq_tile *tile,
                                              aq_simd_grid *grids, aq_fit_kind *kinds,
                                              uint8_t *out) {
    AQ_SIMD_EXACT_BODY
    aq_zero_group group;
    size_t i;
    for (i = 0; i < tile->group_count; i++) {
        float scale;
        aq_zero_load(job, tile, i, &group);
        aq_zero_fit(job, tile, i, &group);
        scale = aq_scale_by(group.scale, 0 - group.exponent);
        kinds[i] = scale > 0.0f ? AQ_FIT_GOOD : AQ_FIT_NEEDS_F32;
        grids[i].scale = scale > 0.0f ? scale : 1.0f;
        grids[i].min = 0.0f - grids[i].scale * group.zero;
        out = aq_zero_put(job, scale, (uint8_t)group.zero, out);
    }
}

#undef AQ_ZERO_ROUNDS
#undef AQ_ZERO_LEAST
#undef AQ_ZERO_F16_LEAST
#undef AQ_ZERO_LANES
