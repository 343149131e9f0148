/* The fit of a superblock of 256 weights whose sub-blocks share a scale of scales and a scale of
 * mins: w ≈ d·s·q − m·t with s and t small integers, one of each a sub-block, and q the code.
 *
 * First each sub-block alone: least squares over codes, from several starting grids. Then all of
 * them: the integers nearest to the sub-blocks' solutions, d and m by least squares over the whole
 * superblock, codes again, as often as it pays. What is compared is the error of what a reader will
 * compute: d and m are F16 before the codes are chosen. */
#include "blocks.h"

#define AQ_K_SUBS 16u
#define AQ_K_LEAST 1e-30f /* what is narrower is nothing to F16 parameters, and 1 over it no number */

/* What a pass over the codes of a sub-block adds up, and what does not change. */
typedef struct aq_k_sub {
    double weight, inverse;     /* Σ w, 1 over it or 0 */
    double sum;                 /* Σ w·x */
    double code, code2, cross;  /* Σ w·c, Σ w·c², Σ w·c·x */
    double scale, min, gain;    /* the best solution so far: w ≈ scale·c + min, by how much it lowers
                                   the squared error */
} aq_k_sub;

typedef struct aq_k_state {
    const struct aq_kernels *kernels;
    const aq_k_kind *kind;
    aq_simd_strips strips;
    aq_k_sub sub[AQ_K_SUBS];
    double square; /* Σ w·x² */
    bool positive; /* the mins are added, not taken off: m is negative */
} aq_k_state;

/* The sums of all sub-blocks under grids [base, base + most/inverse]. */
AQ_SIMD_EXACT static void aq_k_pass(aq_k_state *state, const float *base, const float *inverse) {
    AQ_SIMD_EXACT_BODY
    const aq_k_kind *kind = state->kind;
    aq_simd_strips *strips = &state->strips;
    size_t i, strip = 16u / kind->subs;
    for (i = 0; i < AQ_SIMD_LANES; i++) {
        strips->base[i] = base[i / strip];
        strips->inverse[i] = inverse[i / strip];
    }
    state->kernels->strips_sums(strips, (float)kind->most_code);
    for (i = 0; i < kind->subs; i++) {
        aq_k_sub *sub = &state->sub[i];
        size_t first = i * strip, last = first + strip - 1;
        sub->code = (double)strips->code[first];
        sub->code2 = (double)strips->code2[first];
        sub->cross = (double)strips->cross[first];
        if (last != first) {
            sub->code += (double)strips->code[last];
            sub->code2 += (double)strips->code2[last];
            sub->cross += (double)strips->cross[last];
        }
    }
}

/* The least-squares scale and min for the codes of the last pass, with a min of the sign that the
 * format has. */
AQ_SIMD_EXACT static double aq_k_solve(const aq_k_state *state, const aq_k_sub *sub, double *scale,
                                       double *min) {
    AQ_SIMD_EXACT_BODY
    double det = sub->weight * sub->code2 - sub->code * sub->code;
    *scale = 0.0;
    *min = 0.0;
    if (det > 1e-9 * sub->weight * sub->code2) {
        double inverse = 1.0 / det;
        *scale = (sub->weight * sub->cross - sub->sum * sub->code) * inverse;
        *min = (sub->code2 * sub->sum - sub->code * sub->cross) * inverse;
        if (*scale >= 0.0 && (state->positive ? *min >= 0.0 : *min <= 0.0)) {
            return *scale * sub->cross + *min * sub->sum;
        }
    }
    *min = 0.0;
    *scale = sub->code2 > 0.0 && sub->cross > 0.0 ? sub->cross / sub->code2 : 0.0;
    if (*scale * sub->cross > 0.0) {
        return *scale * sub->cross;
    }
    *scale = 0.0;
    if (state->positive ? sub->sum > 0.0 : sub->sum < 0.0) {
        *min = sub->sum * sub->inverse;
    }
    return *min * sub->sum;
}

/* ---- each sub-block alone */

static void aq_k_begin(aq_k_state *state, float *low, float *range) {
    const aq_simd_strips *strips = &state->strips;
    size_t i, strip = 16u / state->kind->subs;
    double lows = 0.0;
    state->square = 0.0;
    for (i = 0; i < AQ_SIMD_LANES; i++) {
        lows += (double)strips->low[i];
        state->square += (double)strips->square[i];
    }
    state->positive = lows > 0.0;
    for (i = 0; i < state->kind->subs; i++) {
        aq_k_sub *sub = &state->sub[i];
        size_t first = i * strip, last = first + strip - 1;
        float least = strips->low[first], most = strips->high[first];
        sub->weight = (double)strips->weight[first];
        sub->sum = (double)strips->sum[first];
        if (last != first) {
            least = strips->low[last] < least ? strips->low[last] : least;
            most = strips->high[last] > most ? strips->high[last] : most;
            sub->weight += (double)strips->weight[last];
            sub->sum += (double)strips->sum[last];
        }
        least = (least < 0.0f) != state->positive ? least : 0.0f;
        low[i] = least;
        range[i] = most > least ? most - least : 0.0f;
        sub->inverse = sub->weight > 0.0 ? 1.0 / sub->weight : 0.0;
        sub->scale = sub->min = 0.0;
        sub->gain = -1.0;
    }
}

/* `next` or what is there, without a branch that nobody can predict. */
static void aq_k_pick(double *value, double next, uint64_t mask) {
    uint64_t old, bits;
    memcpy(&old, value, sizeof old);
    memcpy(&bits, &next, sizeof bits);
    bits = (bits & mask) | (old & ~mask);
    memcpy(value, &bits, sizeof bits);
}

AQ_SIMD_EXACT static void aq_k_take(aq_k_state *state) {
    AQ_SIMD_EXACT_BODY
    size_t i;
    for (i = 0; i < state->kind->subs; i++) {
        aq_k_sub *sub = &state->sub[i];
        double scale, min, gain = aq_k_solve(state, sub, &scale, &min);
        uint64_t mask = 0u - (uint64_t)(gain > sub->gain);
        aq_k_pick(&sub->gain, gain, mask);
        aq_k_pick(&sub->scale, scale, mask);
        aq_k_pick(&sub->min, min, mask);
    }
}

AQ_SIMD_EXACT static void aq_k_alone(aq_k_state *state) {
    AQ_SIMD_EXACT_BODY
    const aq_k_kind *kind = state->kind;
    float low[AQ_K_SUBS], range[AQ_K_SUBS], base[AQ_K_SUBS], inverse[AQ_K_SUBS];
    size_t i, n;
    aq_k_begin(state, low, range);
    for (n = 0; n < kind->starts; n++) {
        for (i = 0; i < kind->subs; i++) {
            inverse[i] = range[i] > AQ_K_LEAST ? kind->divisor[n] / range[i] : 0.0f;
            base[i] = low[i] + range[i] * kind->shift[n];
        }
        aq_k_pass(state, base, inverse);
        aq_k_take(state);
    }
    for (n = 0; n < kind->rounds; n++) {
        for (i = 0; i < kind->subs; i++) {
            base[i] = (float)state->sub[i].min;
            inverse[i] = state->sub[i].scale > (double)AQ_K_LEAST
                             ? (float)(1.0 / state->sub[i].scale) : 0.0f;
        }
        aq_k_pass(state, base, inverse);
        aq_k_take(state);
    }
}

/* ---- together */

/* Without a branch: half of the values lie beyond one end or the other. */
AQ_SIMD_EXACT static uint8_t aq_k_level(double value, double most) {
    AQ_SIMD_EXACT_BODY
    value = value > 0.0 ? value : 0.0; /* NaN too */
    value = value < most ? value : most;
    return (uint8_t)(uint32_t)(value + 0.5);
}

static float aq_k_through_f16(double value) {
    return aq_simd_from_f16(aq_simd_to_f16((float)value));
}

/* The integers for the sub-blocks' least-squares solutions under the codes of the last pass. */
AQ_SIMD_EXACT static void aq_k_levels(const aq_k_state *state, bool solved, aq_k_fit *fit) {
    AQ_SIMD_EXACT_BODY
    const aq_k_kind *kind = state->kind;
    double d = (double)fit->d, dmin = (double)fit->dmin;
    double per_d = d > 0.0 ? 1.0 / d : 0.0, per_dmin = dmin != 0.0 ? -1.0 / dmin : 0.0;
    double most = (double)kind->most_scale;
    size_t i;
    for (i = 0; i < kind->subs; i++) {
        const aq_k_sub *sub = &state->sub[i];
        double scale = sub->scale, min = sub->min;
        if (solved) {
            (void)aq_k_solve(state, sub, &scale, &min);
        }
        fit->scale[i] = aq_k_level(scale * per_d, most);
        if (solved) { /* the best min for the scale as it now is */
            min = (sub->sum - d * (double)fit->scale[i] * sub->code) * sub->inverse;
        }
        fit->min[i] = aq_k_level(min * per_dmin, most);
    }
}

/* d and m by least squares over the superblock. */
AQ_SIMD_EXACT static void aq_k_solve_all(const aq_k_state *state, aq_k_fit *fit) {
    AQ_SIMD_EXACT_BODY
    double a = 0.0, b = 0.0, c = 0.0, p = 0.0, q = 0.0, det, d, dmin;
    size_t i;
    for (i = 0; i < state->kind->subs; i++) {
        const aq_k_sub *sub = &state->sub[i];
        double s = (double)fit->scale[i], t = (double)fit->min[i];
        a += s * s * sub->code2;
        b += s * t * sub->code;
        c += t * t * sub->weight;
        p += s * sub->cross;
        q += t * sub->sum;
    }
    det = a * c - b * b;
    d = (double)fit->d;
    dmin = (double)fit->dmin;
    if (det > 1e-9 * a * c) {
        d = (p * c - q * b) / det;
        dmin = (p * b - q * a) / det;
    } else if (a > 0.0) {
        d = (p + dmin * b) / a;
    } else if (c > 0.0) {
        dmin = (d * b - q) / c;
    }
    if (d > 0.0) {
        fit->d = aq_k_through_f16(d);
    }
    if (state->positive ? dmin < 0.0 : dmin > 0.0) {
        fit->dmin = aq_k_through_f16(dmin);
    }
}

AQ_SIMD_EXACT static void aq_k_grids(const aq_k_state *state, const aq_k_fit *fit, float *base,
                                     float *inverse) {
    AQ_SIMD_EXACT_BODY
    size_t i;
    for (i = 0; i < state->kind->subs; i++) {
        float scale = fit->d * (float)fit->scale[i];
        base[i] = 0.0f - fit->dmin * (float)fit->min[i];
        inverse[i] = scale > 0.0f ? aq_simd_inverse(scale) : 0.0f;
    }
}

/* The squared error of the codes of the last pass, which were chosen for this fit. */
AQ_SIMD_EXACT static double aq_k_error(const aq_k_state *state, const aq_k_fit *fit) {
    AQ_SIMD_EXACT_BODY
    double error = state->square;
    size_t i;
    for (i = 0; i < state->kind->subs; i++) {
        const aq_k_sub *sub = &state->sub[i];
        double s = (double)(fit->d * (float)fit->scale[i]);
        double t = (double)(fit->dmin * (float)fit->min[i]);
        error += s * s * sub->code2 - 2.0 * s * sub->cross;
        error += 2.0 * t * sub->sum - 2.0 * s * t * sub->code + t * t * sub->weight;
    }
    return error;
}

AQ_SIMD_EXACT static void aq_k_first(const aq_k_state *state, aq_k_fit *fit) {
    AQ_SIMD_EXACT_BODY
    double scale = 0.0, min = 0.0;
    size_t i;
    for (i = 0; i < state->kind->subs; i++) {
        const aq_k_sub *sub = &state->sub[i];
        double magnitude = sub->min < 0.0 ? -sub->min : sub->min;
        scale = sub->scale > scale ? sub->scale : scale;
        min = magnitude > min ? magnitude : min;
    }
    fit->d = aq_k_through_f16(scale / (double)state->kind->most_scale);
    fit->dmin = aq_k_through_f16(min / (double)state->kind->most_scale);
    if (state->positive) {
        fit->dmin = 0.0f - fit->dmin;
    }
    aq_k_levels(state, false, fit);
}

AQ_LIB void aq_k_search(const struct aq_kernels *kernels, const aq_k_kind *kind, const float *x,
                        const float *weights, aq_k_fit *out, uint8_t *codes) {
    aq_k_state state;
    aq_k_fit fit;
    float base[AQ_K_SUBS], inverse[AQ_K_SUBS];
    double least = 0.0;
    size_t i, n, strip = 16u / kind->subs;
    state.kernels = kernels;
    state.kind = kind;
    kernels->strips_load(x, weights, &state.strips);
    aq_k_alone(&state);
    memset(&fit, 0, sizeof fit);
    aq_k_first(&state, &fit);
    for (n = 0;; n++) {
        double error;
        aq_k_grids(&state, &fit, base, inverse);
        aq_k_pass(&state, base, inverse);
        error = aq_k_error(&state, &fit);
        if (n == 0 || error < least) {
            least = error;
            *out = fit;
        }
        if (n == kind->joint) {
            break;
        }
        aq_k_levels(&state, true, &fit);
        aq_k_solve_all(&state, &fit);
    }
    aq_k_grids(&state, out, base, inverse);
    for (i = 0; i < AQ_SIMD_LANES; i++) {
        state.strips.base[i] = base[i / strip];
        state.strips.inverse[i] = inverse[i / strip];
    }
    kernels->strips_codes(&state.strips, (float)kind->most_code, x, codes);
}

#undef AQ_K_SUBS
#undef AQ_K_LEAST
