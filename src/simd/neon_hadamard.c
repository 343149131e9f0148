/* NEON kernels: the Walsh-Hadamard transform in place. */
#include "neon.h"

#if defined(AQ_HAVE_NEON)

/* The steps 1 and 2 of four values. */
AQ_NEON_INLINE static inline float32x4_t aq_neon_hadamard4(float32x4_t x) {
    AQ_SIMD_EXACT_BODY
    float32x4_t even = vtrn1q_f32(x, x), odd = vtrn2q_f32(x, x);
    float32x4_t sum = vaddq_f32(even, odd), rest = vsubq_f32(even, odd), low, high;
    x = vtrn1q_f32(sum, rest);
    low = vcombine_f32(vget_low_f32(x), vget_low_f32(x));
    high = vcombine_f32(vget_high_f32(x), vget_high_f32(x));
    sum = vaddq_f32(low, high);
    rest = vsubq_f32(low, high);
    return vcombine_f32(vget_low_f32(sum), vget_low_f32(rest));
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_neon_hadamard(float *x, size_t count, float scale) {
    AQ_SIMD_EXACT_BODY
    size_t step, begin, i;
    if (count < 4) {
        aq_scalar_hadamard(x, count, scale);
        return;
    }
    for (i = 0; i < count; i += 4) {
        vst1q_f32(x + i, aq_neon_hadamard4(vld1q_f32(x + i)));
    }
    for (step = 4; step < count; step *= 2) {
        for (begin = 0; begin < count; begin += 2 * step) {
            float *low = x + begin, *high = low + step;
            for (i = 0; i < step; i += 4) {
                float32x4_t first = vld1q_f32(low + i), second = vld1q_f32(high + i);
                vst1q_f32(low + i, vaddq_f32(first, second));
                vst1q_f32(high + i, vsubq_f32(first, second));
            }
        }
    }
    for (i = 0; i < count; i += 4) {
        vst1q_f32(x + i, vmulq_n_f32(vld1q_f32(x + i), scale));
    }
}

#endif /* AQ_HAVE_NEON */
