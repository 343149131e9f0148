/* Scalar kernels: the least-squares fit of a group's parameters. */
#include "simd.h"

#define AQ_FIT_MAGIC 12582912.0f /* 1.5·2^23: adding and taking it off rounds to an integer */

/* What a pass over a group's codes adds up; `code` counts from the code nearest to the mean, so
 * that nothing cancels when few weights carry everything. */
typedef struct aq_fit_sums {
    float code;  /* Σ w·c */
    float code2; /* Σ w·c² */
    float cross; /* Σ w·c·y */
} aq_fit_sums;

/* A group as the affine fit sees it: values less their (weighted) mean. */
typedef struct aq_fit_group {
    float y[AQ_SIMD_GROUP_MAX];
    const float *weights; /* or NULL */
    size_t count;
    float centre, weight, sum; /* y = x − centre, Σ w, Σ w·y */
    float middle, range;       /* of the values that weigh anything, less the centre */
} aq_fit_group;

typedef struct aq_fit_state {
    float scale, min, code; /* min is less the centre */
    double gain;            /* by how much these codes lower the squared error; greater is better */
} aq_fit_state;

static const aq_simd_recipe *aq_simd_recipe_at(const aq_simd_recipe *table, uint32_t bits,
                                               size_t group) {
    size_t row = bits == 2 ? 0u : bits == 4 ? 4u : 8u;
    if (bits == 8) {
        return table + row;
    }
    return table + row + (group > 192u ? 3u : group > 96u ? 2u : group > 48u ? 1u : 0u);
}

/* Tuned on Gaussian, Laplacian and heavy-tailed weights. The first start is plain min/max, which
 * the fit therefore never loses to; at 2 bits the last one finds ternary weights exactly. */
AQ_SIMD_LIB const aq_simd_recipe *aq_simd_affine_recipe(uint32_t bits, size_t group) {
    static const aq_simd_recipe table[9] = {
        {5, 4, {3.0f, 4.2f, 4.2f, 4.2f, 2.0f}, {0.0f, 0.3f, -0.3f, 0.0f, 0.5f}},
        {5, 6, {3.0f, 4.8f, 4.8f, 4.5f, 2.0f}, {0.0f, 0.3f, -0.3f, 0.0f, 0.5f}},
        {2, 9, {3.0f, 2.0f, 0, 0, 0}, {0.0f, 0.5f, 0, 0, 0}},
        {2, 9, {3.0f, 2.0f, 0, 0, 0}, {0.0f, 0.5f, 0, 0, 0}},
        {5, 2, {15.0f, 15.0f, 15.0f, 15.5f, 15.5f}, {0.0f, 0.3f, -0.3f, 0.1f, -0.1f}},
        {5, 2, {15.0f, 15.7f, 15.7f, 16.0f, 16.0f}, {0.0f, 0.3f, -0.3f, 0.1f, -0.1f}},
        {5, 2, {15.0f, 16.2f, 16.2f, 16.2f, 16.2f}, {0.0f, 0.3f, -0.3f, 0.1f, -0.1f}},
        {5, 2, {15.0f, 16.7f, 16.7f, 17.3f, 17.3f}, {0.0f, 0.2f, -0.2f, 0.5f, -0.5f}},
        {1, 0, {255.0f, 0, 0, 0, 0}, {0, 0, 0, 0, 0}},
    };
    return aq_simd_recipe_at(table, bits, group);
}

/* Here `divisor` divides the value of largest magnitude, its sign turned: start i puts that value
 * on −divisor. The first start is plain absmax. At 2 and 4 bits the scale has either sign, so that
 * the longer side of the codes lies on the longer side of the weights: 1 dB at 4 bits, but less
 * than 0.1 dB at 8, where the scale stays positive. */
AQ_SIMD_LIB const aq_simd_recipe *aq_simd_symmetric_recipe(uint32_t bits, size_t group) {
    static const aq_simd_recipe table[9] = {
        {5, 4, {-1.0f, 2.0f, -2.0f, 2.5f, -2.5f}, {0, 0, 0, 0, 0}},
        {5, 6, {-1.0f, 2.0f, -2.0f, 2.7f, -2.7f}, {0, 0, 0, 0, 0}},
        {5, 8, {-1.0f, 2.0f, -2.0f, 3.0f, -3.0f}, {0, 0, 0, 0, 0}},
        {5, 8, {-1.0f, 2.0f, -2.0f, 3.0f, -3.0f}, {0, 0, 0, 0, 0}},
        {5, 2, {-7.0f, 7.5f, 8.0f, 8.5f, 9.0f}, {0, 0, 0, 0, 0}},
        {5, 2, {-7.0f, 7.7f, 8.2f, 8.8f, 9.6f}, {0, 0, 0, 0, 0}},
        {5, 2, {-7.0f, 8.0f, 8.5f, 9.3f, 10.2f}, {0, 0, 0, 0, 0}},
        {5, 2, {-7.0f, 8.3f, 9.0f, 10.0f, 11.2f}, {0, 0, 0, 0, 0}},
        {1, 0, {-127.0f, 0, 0, 0, 0}, {0, 0, 0, 0, 0}},
    };
    return aq_simd_recipe_at(table, bits, group);
}

/* Nearest integer of a number within ±2^22, halves to even, without a call or a branch. */
AQ_SIMD_EXACT static inline float aq_fit_round(float value, float low, float high) {
    AQ_SIMD_EXACT_BODY
    value = value < low ? low : value;
    value = value > high ? high : value;
    return (value + AQ_FIT_MAGIC) - AQ_FIT_MAGIC;
}

/* Codes c = round((y − base)·inverse) within low … high, summed in 16 lanes. */
typedef struct aq_fit_lanes {
    float base, inverse, low, high;
    float code[AQ_SIMD_LANES], code2[AQ_SIMD_LANES], cross[AQ_SIMD_LANES];
} aq_fit_lanes;

AQ_SIMD_EXACT static inline void aq_fit_step(aq_fit_lanes *lanes, const float *y, size_t lane) {
    AQ_SIMD_EXACT_BODY
    float c = aq_fit_round((y[lane] - lanes->base) * lanes->inverse, lanes->low, lanes->high);
    lanes->code[lane] += c;
    lanes->code2[lane] += c * c;
    lanes->cross[lane] += c * y[lane];
}

AQ_SIMD_EXACT static inline void aq_fit_step_weighted(aq_fit_lanes *lanes, const float *y,
                                                      const float *weights, size_t lane) {
    AQ_SIMD_EXACT_BODY
    float c = aq_fit_round((y[lane] - lanes->base) * lanes->inverse, lanes->low, lanes->high);
    float wc = weights[lane] * c;
    lanes->code[lane] += wc;
    lanes->code2[lane] += wc * c;
    lanes->cross[lane] += wc * y[lane];
}

/* One pass over a group. The loops of fixed length are there for the compiler to vectorize. */
AQ_SIMD_EXACT static void aq_fit_pass(const float *y, const float *weights, size_t count,
                                      float base, float inverse, float low, float high,
                                      aq_fit_sums *out) {
    AQ_SIMD_EXACT_BODY
    aq_fit_lanes lanes = {0, 0, 0, 0, {0}, {0}, {0}};
    size_t i = 0, lane;
    lanes.base = base;
    lanes.inverse = inverse;
    lanes.low = low;
    lanes.high = high;
    if (weights) {
        for (; i + AQ_SIMD_LANES <= count; i += AQ_SIMD_LANES) {
            for (lane = 0; lane < AQ_SIMD_LANES; lane++) {
                aq_fit_step_weighted(&lanes, y + i, weights + i, lane);
            }
        }
        for (lane = 0; i + lane < count; lane++) {
            aq_fit_step_weighted(&lanes, y + i, weights + i, lane);
        }
    } else {
        for (; i + AQ_SIMD_LANES <= count; i += AQ_SIMD_LANES) {
            for (lane = 0; lane < AQ_SIMD_LANES; lane++) {
                aq_fit_step(&lanes, y + i, lane);
            }
        }
        for (lane = 0; i + lane < count; lane++) {
            aq_fit_step(&lanes, y + i, lane);
        }
    }
    out->code = aq_scalar_fold(lanes.code);
    out->code2 = aq_scalar_fold(lanes.code2);
    out->cross = aq_scalar_fold(lanes.cross);
}

/* Codes the group on the grid (scale, min), then solves for the best scale and min of these codes.
 * When they are all alike, only the min is solved. */
AQ_SIMD_EXACT static void aq_fit_solve(const aq_fit_group *group, float scale, float min,
                                       float top, aq_fit_state *out) {
    AQ_SIMD_EXACT_BODY
    aq_fit_sums sums;
    float inverse = aq_simd_inverse(scale);
    float zero = aq_fit_round((0.0f - min) * inverse, 0.0f, top);
    double weight = (double)group->weight, sum = (double)group->sum;
    double code, determinant, slope;
    aq_fit_pass(group->y, group->weights, group->count, min + zero * scale, inverse, 0.0f - zero,
                top - zero, &sums);
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

/* Σ w·(x − centre), and the differences */
AQ_SIMD_EXACT static float aq_fit_centre(const float *x, const float *weights, size_t count,
                                         float centre, float *y) {
    AQ_SIMD_EXACT_BODY
    float sum[AQ_SIMD_LANES] = {0};
    size_t i, lane;
    for (i = 0; i < count; i++) {
        y[i] = x[i] - centre;
    }
    for (i = 0; i + AQ_SIMD_LANES <= count && !weights; i += AQ_SIMD_LANES) {
        for (lane = 0; lane < AQ_SIMD_LANES; lane++) {
            sum[lane] += y[i + lane];
        }
    }
    for (; i < count; i++) {
        sum[i % AQ_SIMD_LANES] += weights ? weights[i] * y[i] : y[i];
    }
    return aq_scalar_fold(sum);
}

static float aq_fit_weight(const float *weights, size_t count) {
    float sum[AQ_SIMD_LANES] = {0};
    size_t i;
    for (i = 0; i < count; i++) {
        sum[i % AQ_SIMD_LANES] += weights[i];
    }
    return aq_scalar_fold(sum);
}

/* The range of the values that weigh something; false when they are all alike. */
static bool aq_fit_live_range(const float *x, const float *weights, size_t count, float *low,
                              float *high) {
    float least = FLT_MAX, most = -FLT_MAX;
    size_t i;
    for (i = 0; i < count; i++) {
        if (weights[i] > 0.0f) {
            least = x[i] < least ? x[i] : least;
            most = x[i] > most ? x[i] : most;
        }
    }
    if (!(most > least)) {
        return false;
    }
    *low = least;
    *high = most;
    return true;
}

AQ_SIMD_EXACT static void aq_fit_affine_group(const float *x, const float *weights, size_t count,
                                              uint32_t bits, const aq_simd_range *range,
                                              aq_simd_fit *out) {
    AQ_SIMD_EXACT_BODY
    const aq_simd_recipe *recipe = aq_simd_affine_recipe(bits, count);
    float top = (float)((1u << bits) - 1u), low = range->low, high = range->high;
    aq_fit_group group;
    aq_fit_state best = {1.0f, 0.0f, 0.0f, -1.0}, next;
    uint32_t i;
    if (weights) {
        (void)aq_fit_live_range(x, weights, count, &low, &high);
    }
    group.weights = weights;
    group.count = count;
    group.weight = weights ? aq_fit_weight(weights, count) : (float)count;
    group.middle = 0.5f * (low + high);
    group.range = high - low;
    group.sum = aq_fit_centre(x, weights, count, group.middle, group.y);
    group.centre = group.middle + group.sum / group.weight;
    group.sum = aq_fit_centre(x, weights, count, group.centre, group.y);
    group.middle -= group.centre;
    for (i = 0; i < recipe->starts; i++) {
        float scale = group.range / recipe->divisor[i];
        float code = 0.5f * top + recipe->shift[i]; /* of the middle */
        aq_fit_solve(&group, scale, group.middle - code * scale, top, &next);
        if (next.gain > best.gain) {
            best = next;
        }
    }
    for (i = 0; i < recipe->rounds; i++) {
        aq_fit_solve(&group, best.scale, best.min, top, &next);
        if (!(next.gain > best.gain)) {
            break; /* the next round would find the same */
        }
        best = next;
    }
    out->scale = best.scale;
    out->mean = (double)group.centre + (double)group.sum / (double)group.weight;
    out->code = best.code;
}

AQ_SIMD_LIB void aq_scalar_fit_affine(const float *x, const float *weights, size_t count,
                                      size_t group, uint32_t bits, const aq_simd_range *ranges,
                                      aq_simd_fit *out) {
    size_t begin, index = 0;
    for (begin = 0; begin < count; begin += group, index++) {
        size_t length = count - begin < group ? count - begin : group;
        if (ranges[index].high > ranges[index].low) {
            aq_fit_affine_group(x + begin, weights ? weights + begin : NULL, length, bits,
                                &ranges[index], &out[index]);
        } else {
            out[index].scale = 1.0f;
            out[index].mean = (double)ranges[index].low;
            out[index].code = 0.0f;
        }
    }
}

/* As aq_fit_solve, with the scale alone: c within −half … half − 1, no min. */
AQ_SIMD_EXACT static void aq_fit_solve_symmetric(const float *x, const float *weights,
                                                 size_t count, float scale, float half,
                                                 aq_fit_state *out) {
    AQ_SIMD_EXACT_BODY
    aq_fit_sums sums;
    double slope;
    aq_fit_pass(x, weights, count, 0.0f, aq_simd_inverse(scale), 0.0f - half, half - 1.0f, &sums);
    slope = (double)sums.cross;
    out->scale = scale;
    out->gain = 0.0;
    if (sums.code2 > 0.0f && slope * (double)scale > 0.0) {
        out->scale = (float)(slope / (double)sums.code2);
        out->gain = slope * (slope / (double)sums.code2);
    }
}

/* The value of largest magnitude, of those that weigh something; the positive one of two. */
static float aq_fit_largest(const float *x, const float *weights, size_t count,
                            const aq_simd_range *range) {
    float low = range->low, high = range->high;
    if (weights) {
        float live_low = 0.0f, live_high = 0.0f;
        if (aq_fit_live_range(x, weights, count, &live_low, &live_high)) {
            low = live_low;
            high = live_high;
        }
    }
    return 0.0f - low > high ? low : high;
}

static void aq_fit_symmetric_group(const float *x, const float *weights, size_t count,
                                   uint32_t bits, const aq_simd_range *range, aq_simd_fit *out) {
    const aq_simd_recipe *recipe = aq_simd_symmetric_recipe(bits, count);
    float half = (float)(1u << (bits - 1u));
    float largest = 0.0f - aq_fit_largest(x, weights, count, range);
    aq_fit_state best = {1.0f, 0.0f, 0.0f, -1.0}, next;
    uint32_t i;
    largest = bits == 8 && largest > 0.0f ? 0.0f - largest : largest;
    for (i = 0; i < recipe->starts; i++) {
        aq_fit_solve_symmetric(x, weights, count, largest / recipe->divisor[i], half, &next);
        if (next.gain > best.gain) {
            best = next;
        }
    }
    for (i = 0; i < recipe->rounds; i++) {
        aq_fit_solve_symmetric(x, weights, count, best.scale, half, &next);
        if (!(next.gain > best.gain)) {
            break;
        }
        best = next;
    }
    out->scale = best.scale;
    out->mean = 0.0;
    out->code = 0.0f;
}

AQ_SIMD_LIB void aq_scalar_fit_symmetric(const float *x, const float *weights, size_t count,
                                         size_t group, uint32_t bits, const aq_simd_range *ranges,
                                         aq_simd_fit *out) {
    size_t begin, index = 0;
    for (begin = 0; begin < count; begin += group, index++) {
        size_t length = count - begin < group ? count - begin : group;
        if (ranges[index].high > ranges[index].low) {
            aq_fit_symmetric_group(x + begin, weights ? weights + begin : NULL, length, bits,
                                   &ranges[index], &out[index]);
        } else {
            out[index].scale = 1.0f;
            out[index].mean = (double)ranges[index].low;
            out[index].code = 0.0f;
        }
    }
}

AQ_SIMD_EXACT AQ_SIMD_LIB float aq_simd_best_min(const aq_simd_fit *fit, float scale) {
    AQ_SIMD_EXACT_BODY
    return (float)(fit->mean - (double)scale * (double)fit->code);
}

AQ_SIMD_EXACT AQ_SIMD_LIB int32_t aq_simd_round(float value, int32_t low, int32_t high) {
    AQ_SIMD_EXACT_BODY
    return (int32_t)aq_fit_round(value, (float)low, (float)high);
}

#undef AQ_FIT_MAGIC
