/* Scalar kernels: the update of a panel, by fused multiply-adds that need no hardware for them. */
#include "simd.h"

/* a·b + c rounded once. The product of two floats is exact in a double; their sum is rounded to odd,
 * so that rounding it again to a float is as if there had been only one (Boldo and Melquiond,
 * "Emulation of FMA and correctly rounded sums"). */
AQ_SIMD_EXACT static inline float aq_fused(float a, float b, float c) {
    AQ_SIMD_EXACT_BODY
#if defined(__FP_FAST_FMAF) && (defined(__GNUC__) || defined(__clang__))
    return __builtin_fmaf(a, b, c);
#else
    double product = (double)a * (double)b, addend = (double)c, sum = product + addend;
    double part = sum - product, rest = (product - (sum - part)) + (addend - part);
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    if (rest != 0.0 && !(bits & 1u) && (bits << 1) < UINT64_C(0xFFE0000000000000)) {
        bits += (rest > 0.0) == (sum > 0.0) ? UINT64_C(1) : ~UINT64_C(0);
        memcpy(&sum, &bits, sizeof sum);
    }
    return (float)sum;
#endif
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_scalar_update(float *c, const float *a, const float *b,
                                                size_t b_step, size_t depth, size_t columns) {
    AQ_SIMD_EXACT_BODY
    size_t i, j, k;
    for (k = 0; k < depth; k++, a += AQ_SIMD_PANEL, b += b_step) {
        for (j = 0; j < columns; j++) {
            float factor = -b[j];
            for (i = 0; i < AQ_SIMD_PANEL; i++) {
                c[AQ_SIMD_PANEL * j + i] = aq_fused(a[i], factor, c[AQ_SIMD_PANEL * j + i]);
            }
        }
    }
}
