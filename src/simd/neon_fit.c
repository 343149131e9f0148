/* NEON kernels: the least-squares fit of a group's parameters, step by step that of scalar_fit.c. */
#include "neon.h"

#if defined(AQ_HAVE_NEON)

#define AQ_NEON_MAGIC 12582912.0f /* 1.5·2^23: adding and taking it off rounds to an integer */

/* Codes c = round((y − base)·inverse) within low … high, summed in 16 lanes. */
typedef struct aq_neon_pass {
    float32x4_t base, inverse, low, high;
    aq_neon_lanes code, code2, cross;
} aq_neon_pass;

typedef struct aq_neon_fit_sums {
    float code, code2, cross; /* Σ w·c, Σ w·c², Σ w·c·y */
} aq_neon_fit_sums;

/* A group as the fit sees it; affine: values less their (weighted) mean. */
typedef struct aq_neon_group {
    const float *y, *weights; /* no weights: NULL */
    size_t count;
    float weight, sum; /* Σ w, Σ w·y */
} aq_neon_group;

typedef struct aq_neon_state {
    float scale, min, code; /* min is less the centre */
    double gain;            /* by how much these codes lower the squared error */
} aq_neon_state;

/* The lanes of a short block, the last of a group; the rest are 0. */
static inline void aq_neon_partial(const float *x, size_t count, float *block) {
    memset(block, 0, AQ_SIMD_LANES * sizeof *block);
    memcpy(block, x, count * sizeof *block);
}

AQ_NEON_INLINE static inline float32x4_t aq_neon_fit_code(const aq_neon_pass *pass,
                                                          float32x4_t y) {
    AQ_SIMD_EXACT_BODY
    float32x4_t c = vmulq_f32(vsubq_f32(y, pass->base), pass->inverse);
    float32x4_t magic = vdupq_n_f32(AQ_NEON_MAGIC);
    c = vminq_f32(vmaxq_f32(c, pass->low), pass->high);
    return vsubq_f32(vaddq_f32(c, magic), magic);
}

AQ_NEON_INLINE static inline void aq_neon_fit_add(aq_neon_pass *pass, size_t q, float32x4_t wc,
                                                  float32x4_t c, float32x4_t y) {
    AQ_SIMD_EXACT_BODY
    pass->code.q[q] = vaddq_f32(pass->code.q[q], wc);
    pass->code2.q[q] = vaddq_f32(pass->code2.q[q], vmulq_f32(wc, c));
    pass->cross.q[q] = vaddq_f32(pass->cross.q[q], vmulq_f32(wc, y));
}

AQ_NEON_INLINE static inline void aq_neon_fit_four(aq_neon_pass *pass, size_t q, const float *y,
                                                   const float *weights) {
    AQ_SIMD_EXACT_BODY
    float32x4_t value = vld1q_f32(y + 4 * q), c = aq_neon_fit_code(pass, value);
    aq_neon_fit_add(pass, q, weights ? vmulq_f32(vld1q_f32(weights + 4 * q), c) : c, c, value);
}

AQ_NEON_INLINE static inline void aq_neon_fit_step(aq_neon_pass *pass, const float *y,
                                                   const float *weights) {
    aq_neon_fit_four(pass, 0, y, weights);
    aq_neon_fit_four(pass, 1, y, weights);
    aq_neon_fit_four(pass, 2, y, weights);
    aq_neon_fit_four(pass, 3, y, weights);
}

/* As aq_neon_fit_four; where `mask` has no bits every code is made 0, which adds nothing. */
AQ_NEON_INLINE static inline void aq_neon_fit_masked(aq_neon_pass *pass, size_t q, const float *y,
                                                     const float *weights, const uint32_t *mask) {
    AQ_SIMD_EXACT_BODY
    float32x4_t value = vld1q_f32(y + 4 * q), c = aq_neon_fit_code(pass, value);
    c = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(c), vld1q_u32(mask + 4 * q)));
    aq_neon_fit_add(pass, q, weights ? vmulq_f32(vld1q_f32(weights + 4 * q), c) : c, c, value);
}

/* The last `count` values, fewer than 16. */
AQ_NEON_INLINE static inline void aq_neon_fit_rest(aq_neon_pass *pass, const float *y,
                                                   const float *weights, size_t count) {
    static const uint32_t masks[2 * AQ_SIMD_LANES] = {
        ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
    const uint32_t *mask = masks + AQ_SIMD_LANES - count;
    float values[AQ_SIMD_LANES], weighing[AQ_SIMD_LANES];
    aq_neon_partial(y, count, values);
    if (weights) {
        aq_neon_partial(weights, count, weighing);
        weights = weighing;
    }
    aq_neon_fit_masked(pass, 0, values, weights, mask);
    aq_neon_fit_masked(pass, 1, values, weights, mask);
    aq_neon_fit_masked(pass, 2, values, weights, mask);
    aq_neon_fit_masked(pass, 3, values, weights, mask);
}

AQ_SIMD_EXACT static void aq_neon_fit_pass(const aq_neon_group *group, float base, float inverse,
                                           float low, float high, aq_neon_fit_sums *out) {
    const float *y = group->y, *weights = group->weights;
    aq_neon_pass pass;
    size_t i = 0;
    pass.base = vdupq_n_f32(base);
    pass.inverse = vdupq_n_f32(inverse);
    pass.low = vdupq_n_f32(low);
    pass.high = vdupq_n_f32(high);
    aq_neon_clear(&pass.code);
    aq_neon_clear(&pass.code2);
    aq_neon_clear(&pass.cross);
    if (weights) {
        for (; i + AQ_SIMD_LANES <= group->count; i += AQ_SIMD_LANES) {
            aq_neon_fit_step(&pass, y + i, weights + i);
        }
    } else {
        for (; i + AQ_SIMD_LANES <= group->count; i += AQ_SIMD_LANES) {
            aq_neon_fit_step(&pass, y + i, NULL);
        }
    }
    if (i < group->count) {
        aq_neon_fit_rest(&pass, y + i, weights ? weights + i : NULL, group->count - i);
    }
    out->code = aq_neon_fold(&pass.code);
    out->code2 = aq_neon_fold(&pass.code2);
    out->cross = aq_neon_fold(&pass.cross);
}

AQ_SIMD_EXACT static float aq_neon_fit_round(float value, float top) {
    AQ_SIMD_EXACT_BODY
    value = value < 0.0f ? 0.0f : value;
    value = value > top ? top : value;
    return (value + AQ_NEON_MAGIC) - AQ_NEON_MAGIC;
}

/* Codes the group on the grid (scale, min), then solves for the best scale and min of these codes.
 * When they are all alike, only the min is solved. */
AQ_SIMD_EXACT static void aq_neon_fit_solve(const aq_neon_group *group, float scale, float min,
                                            float top, aq_neon_state *out) {
    AQ_SIMD_EXACT_BODY
    aq_neon_fit_sums sums;
    float inverse = aq_simd_inverse(scale), zero = aq_neon_fit_round((0.0f - min) * inverse, top);
    double weight = (double)group->weight, sum = (double)group->sum;
    double code, determinant, slope;
    aq_neon_fit_pass(group, min + zero * scale, inverse, 0.0f - zero, top - zero, &sums);
    code = (double)sums.code;
    determinant = weight * (double)sums.code2 - code * code;
    slope = weight * (double)sums.cross - code * sum;
    out->scale = scale;
    out->gain = 0.0;
    if (determinant > weight * (double)sums.code2 * 1e-6 && slope > 0.0) {
        out->scale = (float)(slope / determinant);
        out->gain = slope * (slope / determinant);
    }
    code = code / weight + (double)zero;
    out->code = (float)code;
    out->min = (float)(sum / weight - (double)out->scale * code);
}

/* Adds the blocks of x, or of their products with the weights, in 16 lanes. */
AQ_SIMD_EXACT static float aq_neon_fit_sum(const float *x, const float *weights, size_t count) {
    AQ_SIMD_EXACT_BODY
    float rest[AQ_SIMD_LANES], weighing[AQ_SIMD_LANES];
    aq_neon_lanes sum;
    size_t i, q;
    aq_neon_clear(&sum);
    for (i = 0; i < count; i += AQ_SIMD_LANES) {
        const float *values = x + i, *own = weights ? weights + i : NULL;
        if (count - i < AQ_SIMD_LANES) {
            aq_neon_partial(values, count - i, rest);
            values = rest;
            if (weights) {
                aq_neon_partial(own, count - i, weighing);
                own = weighing;
            }
        }
        for (q = 0; q < 4; q++) {
            float32x4_t value = vld1q_f32(values + 4 * q);
            value = own ? vmulq_f32(vld1q_f32(own + 4 * q), value) : value;
            sum.q[q] = vaddq_f32(sum.q[q], value);
        }
    }
    return aq_neon_fold(&sum);
}

/* Σ w·(x − centre), and the differences */
AQ_SIMD_EXACT static float aq_neon_fit_centre(const float *x, const float *weights, size_t count,
                                              float centre, float *y) {
    float32x4_t all = vdupq_n_f32(centre);
    size_t i;
    for (i = 0; i + 4 <= count; i += 4) {
        vst1q_f32(y + i, vsubq_f32(vld1q_f32(x + i), all));
    }
    for (; i < count; i++) {
        y[i] = x[i] - centre;
    }
    return aq_neon_fit_sum(y, weights, count);
}

/* The range of the values that weigh something; false when they are all alike. */
static bool aq_neon_live_range(const float *x, const float *weights, size_t count, float *low,
                               float *high) {
    float32x4_t least = vdupq_n_f32(FLT_MAX), most = vdupq_n_f32(-FLT_MAX);
    float rest[4] = {0}, weighing[4] = {0}, first, last;
    size_t i;
    for (i = 0; i < count; i += 4) {
        const float *values = x + i, *own = weights + i;
        float32x4_t value;
        uint32x4_t live;
        if (count - i < 4) {
            memcpy(rest, values, (count - i) * sizeof *x);
            memcpy(weighing, own, (count - i) * sizeof *x);
            values = rest;
            own = weighing;
        }
        value = vld1q_f32(values);
        live = vcgtq_f32(vld1q_f32(own), vdupq_n_f32(0.0f));
        least = vminq_f32(least, vbslq_f32(live, value, least));
        most = vmaxq_f32(most, vbslq_f32(live, value, most));
    }
    first = vminvq_f32(least);
    last = vmaxvq_f32(most);
    if (!(last > first)) {
        return false;
    }
    *low = first;
    *high = last;
    return true;
}

/* The starts and rounds of the recipe, from the group's middle and range. */
AQ_SIMD_EXACT static aq_neon_state aq_neon_search(const aq_neon_group *group, uint32_t bits,
                                                  float middle, float range) {
    AQ_SIMD_EXACT_BODY
    const aq_simd_recipe *recipe = aq_simd_affine_recipe(bits, group->count);
    aq_neon_state best = {1.0f, 0.0f, 0.0f, -1.0}, next;
    float top = (float)((1u << bits) - 1u);
    uint32_t i;
    for (i = 0; i < recipe->starts; i++) {
        float scale = range / recipe->divisor[i];
        float code = 0.5f * top + recipe->shift[i]; /* of the middle */
        aq_neon_fit_solve(group, scale, middle - code * scale, top, &next);
        if (next.gain > best.gain) {
            best = next;
        }
    }
    for (i = 0; i < recipe->rounds; i++) {
        aq_neon_fit_solve(group, best.scale, best.min, top, &next);
        if (!(next.gain > best.gain)) {
            break; /* the next round would find the same */
        }
        best = next;
    }
    return best;
}

AQ_SIMD_EXACT static void aq_neon_affine_group(const float *x, const float *weights, size_t count,
                                               uint32_t bits, const aq_simd_range *range,
                                               aq_simd_fit *out) {
    AQ_SIMD_EXACT_BODY
    float y[AQ_SIMD_GROUP_MAX], low = range->low, high = range->high, middle, centre;
    aq_neon_group group;
    aq_neon_state best;
    if (weights) {
        (void)aq_neon_live_range(x, weights, count, &low, &high);
    }
    middle = 0.5f * (low + high);
    group.y = y;
    group.weights = weights;
    group.count = count;
    group.weight = weights ? aq_neon_fit_sum(weights, NULL, count) : (float)count;
    group.sum = aq_neon_fit_centre(x, weights, count, middle, y);
    centre = middle + group.sum / group.weight;
    group.sum = aq_neon_fit_centre(x, weights, count, centre, y);
    best = aq_neon_search(&group, bits, middle - centre, high - low);
    out->scale = best.scale;
    out->mean = (double)centre + (double)group.sum / (double)group.weight;
    out->code = best.code;
}

AQ_SIMD_LIB void aq_neon_fit_affine(const float *x, const float *weights, size_t count,
                                    size_t group, uint32_t bits, const aq_simd_range *ranges,
                                    aq_simd_fit *out) {
    size_t begin, index = 0;
    for (begin = 0; begin < count; begin += group, index++) {
        size_t length = count - begin < group ? count - begin : group;
        if (ranges[index].high > ranges[index].low) {
            aq_neon_affine_group(x + begin, weights ? weights + begin : NULL, length, bits,
                                 &ranges[index], &out[index]);
        } else {
            out[index].scale = 1.0f;
            out[index].mean = (double)ranges[index].low;
            out[index].code = 0.0f;
        }
    }
}

/* As aq_neon_fit_solve, with the scale alone: c within −half … half − 1, no min. */
AQ_SIMD_EXACT static void aq_neon_solve_symmetric(const aq_neon_group *group, float scale,
                                                  float half, aq_neon_state *out) {
    AQ_SIMD_EXACT_BODY
    aq_neon_fit_sums sums;
    double slope;
    aq_neon_fit_pass(group, 0.0f, aq_simd_inverse(scale), 0.0f - half, half - 1.0f, &sums);
    slope = (double)sums.cross;
    out->scale = scale;
    out->gain = 0.0;
    if (sums.code2 > 0.0f && slope * (double)scale > 0.0) {
        out->scale = (float)(slope / (double)sums.code2);
        out->gain = slope * (slope / (double)sums.code2);
    }
}

static void aq_neon_symmetric_group(const aq_neon_group *group, uint32_t bits, float low,
                                    float high, aq_simd_fit *out) {
    const aq_simd_recipe *recipe = aq_simd_symmetric_recipe(bits, group->count);
    float half = (float)(1u << (bits - 1u)), largest;
    aq_neon_state best = {1.0f, 0.0f, 0.0f, -1.0}, next;
    uint32_t i;
    if (group->weights) {
        (void)aq_neon_live_range(group->y, group->weights, group->count, &low, &high);
    }
    largest = 0.0f - (0.0f - low > high ? low : high); /* the positive one of two */
    largest = bits == 8 && largest > 0.0f ? 0.0f - largest : largest;
    for (i = 0; i < recipe->starts; i++) {
        aq_neon_solve_symmetric(group, largest / recipe->divisor[i], half, &next);
        if (next.gain > best.gain) {
            best = next;
        }
    }
    for (i = 0; i < recipe->rounds; i++) {
        aq_neon_solve_symmetric(group, best.scale, half, &next);
        if (!(next.gain > best.gain)) {
            break;
        }
        best = next;
    }
    out->scale = best.scale;
    out->mean = 0.0;
    out->code = 0.0f;
}

AQ_SIMD_LIB void aq_neon_fit_symmetric(const float *x, const float *weights, size_t count,
                                       size_t group, uint32_t bits, const aq_simd_range *ranges,
                                       aq_simd_fit *out) {
    size_t begin, index = 0;
    for (begin = 0; begin < count; begin += group, index++) {
        aq_neon_group own;
        own.count = count - begin < group ? count - begin : group;
        own.y = x + begin;
        own.weights = weights ? weights + begin : NULL;
        own.weight = own.sum = 0.0f;
        if (ranges[index].high > ranges[index].low) {
            aq_neon_symmetric_group(&own, bits, ranges[index].low, ranges[index].high,
                                    &out[index]);
        } else {
            out[index].scale = 1.0f;
            out[index].mean = (double)ranges[index].low;
            out[index].code = 0.0f;
        }
    }
}

#undef AQ_NEON_MAGIC

#endif
