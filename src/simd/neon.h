/* NEON kernels of AArch64: the table's functions, and the sixteen lanes as four registers. */
#ifndef AQ_NEON_H
#define AQ_NEON_H

#include "simd.h"

/* NEON is part of every AArch64 but a kernel's -mgeneral-regs-only; 32-bit ARM's flushes denormals. */
#if !defined(ARROWQUANT_NO_SIMD) && !defined(__AARCH64EB__) &&                                     \
    ((defined(__aarch64__) && defined(__ARM_NEON)) || defined(_M_ARM64))
#  define AQ_SIMD_NEON 1
#  include <arm_neon.h>

#  ifdef __cplusplus
extern "C" {
#  endif

typedef struct aq_neon_lanes {
    float32x4_t q[4];
} aq_neon_lanes;

static inline void aq_neon_clear(aq_neon_lanes *lanes) {
    lanes->q[0] = lanes->q[1] = lanes->q[2] = lanes->q[3] = vdupq_n_f32(0.0f);
}

/* The sum, in the order of aq_scalar_fold. */
AQ_SIMD_EXACT static inline float aq_neon_fold(const aq_neon_lanes *lanes) {
    AQ_SIMD_EXACT_BODY
    float32x4_t four = vaddq_f32(vaddq_f32(lanes->q[0], lanes->q[2]),
                                 vaddq_f32(lanes->q[1], lanes->q[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

AQ_SIMD_LIB extern const struct aq_kernels aq_neon_kernels;

#  ifdef __cplusplus
}
#  endif
#endif

#endif /* AQ_NEON_H */
