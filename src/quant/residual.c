/* R2Q: two residual steps of one bit each. A weight is w ≈ ±a ± b: the sign of w with the mean magnitude
 * a, then the sign of what is left with its mean magnitude b; after these two greedy steps a and b are
 * solved by (weighted) least squares for the codes, the codes chosen anew, and so on until they stay.
 * The four levels are symmetric and in general not equally spaced, so this is a code of its own. */
#include "tile.h"

#define AQ_RESIDUAL_ROUNDS 12u

/* The levels of a group by code: bit 1 the sign of a, bit 0 that of b, 1 for plus. */
AQ_SIMD_EXACT static void aq_residual_levels(const aq_simd_grid *grid, float *levels) {
    AQ_SIMD_EXACT_BODY
    float a = grid->scale, b = grid->min;
    levels[0] = (0.0f - a) - b;
    levels[1] = b - a;
    levels[2] = a - b;
    levels[3] = a + b;
}

AQ_LIB void aq_residual_decode(const uint8_t *codes, size_t count, size_t group,
                               const aq_simd_grid *grids, float *out) {
    float levels[4];
    size_t i;
    for (i = 0; i < count; i++) {
        if (i % group == 0) {
            aq_residual_levels(&grids[i / group], levels);
        }
        out[i] = levels[codes[i / 4] >> (i % 4 * 2) & 3u];
    }
}

/* With a ≥ b ≥ 0 the levels ascend: the sign tells the half, the distance to ±a the rest. */
AQ_SIMD_EXACT static unsigned aq_residual_code(double w, double a) {
    AQ_SIMD_EXACT_BODY
    return w < 0.0 ? (w < 0.0 - a ? 0u : 1u) : (w < a ? 2u : 3u);
}

/* The greedy steps. */
AQ_SIMD_EXACT static void aq_residual_greedy(const float *w, const float *weights, size_t count,
                                             double *a, double *b) {
    AQ_SIMD_EXACT_BODY
    double sum = 0.0, rest = 0.0, all = 0.0;
    size_t i;
    for (i = 0; i < count; i++) {
        double c = weights ? (double)weights[i] : 1.0;
        sum += c * (w[i] < 0.0f ? 0.0 - (double)w[i] : (double)w[i]);
        all += c;
    }
    *a = sum / all;
    for (i = 0; i < count; i++) {
        double c = weights ? (double)weights[i] : 1.0;
        double left = (w[i] < 0.0f ? 0.0 - (double)w[i] : (double)w[i]) - *a;
        rest += c * (left < 0.0 ? 0.0 - left : left);
    }
    *b = rest / all;
}

/* a and b of least squares for the codes that a gives; they come out ordered a ≥ b ≥ 0. */
AQ_SIMD_EXACT static bool aq_residual_solve(const float *w, const float *weights, size_t count,
                                            double *a, double *b) {
    AQ_SIMD_EXACT_BODY
    double all = 0.0, cross = 0.0, first = 0.0, second = 0.0, determinant, x, y;
    size_t i;
    for (i = 0; i < count; i++) {
        double c = weights ? (double)weights[i] : 1.0;
        unsigned code = aq_residual_code((double)w[i], *a);
        double one = code & 2u ? 1.0 : -1.0, two = code & 1u ? 1.0 : -1.0;
        all += c;
        cross += c * (one * two);
        first += c * (one * (double)w[i]);
        second += c * (two * (double)w[i]);
    }
    determinant = all * all - cross * cross;
    if (!(determinant > 1e-9 * (all * all))) { /* every weight has the same pair, or its opposite */
        x = first / all;
        y = 0.0;
    } else {
        x = (all * first - cross * second) / determinant;
        y = (all * second - cross * first) / determinant;
    }
    x = x < 0.0 ? 0.0 - x : x;
    y = y < 0.0 ? 0.0 - y : y;
    if (!(x != *a || y != *b)) {
        return false;
    }
    *a = x < y ? y : x;
    *b = x < y ? x : y;
    return true;
}

/* Whether any weight of a column counts. */
static const float *aq_residual_weights(const float *weights, size_t count) {
    size_t i;
    for (i = 0; weights && i < count; i++) {
        if (weights[i] > 0.0f) {
            return weights;
        }
    }
    return NULL;
}

AQ_LIB aq_fit_kind aq_residual_fit(const aq_row_job *job, const float *w, const float *weights,
                                   size_t count, aq_simd_grid *grid, uint8_t *out) {
    double a, b;
    uint32_t round;
    uint16_t halves[2];
    weights = aq_residual_weights(weights, count);
    aq_residual_greedy(w, weights, count, &a, &b);
    for (round = 0; round < AQ_RESIDUAL_ROUNDS; round++) {
        if (!aq_residual_solve(w, weights, count, &a, &b)) {
            break;
        }
    }
    grid->scale = (float)a;
    grid->min = (float)b;
    if (job->spec.params == AQ_PARAM_F32) {
        aq_put_f32(out, grid->scale);
        aq_put_f32(out + 4, grid->min);
        return AQ_FIT_GOOD;
    }
    halves[0] = aq_simd_to_f16(grid->scale);
    halves[1] = aq_simd_to_f16(grid->min);
    grid->scale = aq_simd_from_f16(halves[0]);
    grid->min = aq_simd_from_f16(halves[1]);
    aq_put_u16(out, halves[0]);
    aq_put_u16(out + 2, halves[1]);
    return a > 0.0 && (a < 6.103515625e-05 || a + b > 65504.0) ? AQ_FIT_NEEDS_F32 : AQ_FIT_GOOD;
}

AQ_LIB void aq_residual_encode(const float *w, size_t count, size_t group,
                               const aq_simd_grid *grids, uint8_t *codes) {
    size_t i;
    memset(codes, 0, (count + 3) / 4);
    for (i = 0; i < count; i++) {
        unsigned code = aq_residual_code((double)w[i], (double)grids[i / group].scale);
        codes[i / 4] = (uint8_t)(codes[i / 4] | code << (i % 4 * 2));
    }
}

#undef AQ_RESIDUAL_ROUNDS
