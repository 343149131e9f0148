/* NEON kernels of AArch64: the table's functions, and the sixteen lanes as four registers. */
#ifndef AQ_SIMD_NEON_H
#define AQ_SIMD_NEON_H

#include "simd.h"

/* Every AArch64 has NEON. 32-bit ARM stays scalar: its NEON flushes denormals. */
#if !defined(ARROWQUANT_NO_SIMD) && !defined(__AARCH64EB__) &&                                     \
    ((defined(__aarch64__) && defined(__ARM_NEON)) || defined(_M_ARM64))
#  define AQ_HAVE_NEON 1
#  include <arm_neon.h>

/* Stands before the `static inline` of what must keep its lanes in registers. */
#  if defined(__clang__)
#    define AQ_NEON_INLINE __attribute__((always_inline))
#  elif defined(__GNUC__)
#    define AQ_NEON_INLINE __attribute__((optimize("fp-contract=off"), always_inline))
#  else
#    define AQ_NEON_INLINE
#  endif

typedef struct aq_neon_lanes {
    float32x4_t q[4];
} aq_neon_lanes;

AQ_NEON_INLINE static inline void aq_neon_clear(aq_neon_lanes *lanes) {
    lanes->q[0] = lanes->q[1] = lanes->q[2] = lanes->q[3] = vdupq_n_f32(0.0f);
}

/* The sum, in the order of aq_scalar_fold. */
AQ_NEON_INLINE static inline float aq_neon_fold(const aq_neon_lanes *lanes) {
    AQ_SIMD_EXACT_BODY
    float32x4_t four = vaddq_f32(vaddq_f32(lanes->q[0], lanes->q[2]),
                                 vaddq_f32(lanes->q[1], lanes->q[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

/* Byte i becomes bytes 2i and 2i + 1, its lower and its upper bits. */
AQ_NEON_INLINE static inline uint8x16_t aq_neon_split(uint8x8_t low, uint8x8_t high) {
    return vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high));
}

/* Sixteen codes from 2·bits bytes. */
AQ_NEON_INLINE static inline uint8x16_t aq_neon_unpack16(const uint8_t *in, uint32_t bits) {
    uint8x8_t packed;
    uint32_t word;
    if (bits == 8) {
        return vld1q_u8(in);
    }
    if (bits == 4) {
        packed = vld1_u8(in);
        return aq_neon_split(vand_u8(packed, vdup_n_u8(15)), vshr_n_u8(packed, 4));
    }
    memcpy(&word, in, sizeof word);
    packed = vreinterpret_u8_u32(vdup_n_u32(word));
    packed = vzip1_u8(vand_u8(packed, vdup_n_u8(15)), vshr_n_u8(packed, 4));
    return aq_neon_split(vand_u8(packed, vdup_n_u8(3)), vshr_n_u8(packed, 2));
}

/* sdot comes with ARMv8.2's extension, which is asked for at run time. */
#  if defined(__GNUC__) && (defined(__clang__) ? __clang_major__ >= 7 : __GNUC__ >= 8) && \
      (defined(__ARM_FEATURE_DOTPROD) || defined(__linux__))
#    define AQ_HAVE_DOTPROD 1
#    if defined(__clang__)
#      define AQ_DOTPROD __attribute__((target("dotprod")))
#      define AQ_DOTPROD_INLINE __attribute__((target("dotprod"), always_inline))
#    else
#      define AQ_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#      define AQ_DOTPROD_INLINE \
          __attribute__((target("arch=armv8.2-a+dotprod"), always_inline))
#    endif
#  endif

#  ifdef __cplusplus
extern "C" {
#  endif

AQ_SIMD_LIB void aq_neon_f16_to_f32(const void *in, float *out, size_t count);
AQ_SIMD_LIB void aq_neon_bf16_to_f32(const void *in, float *out, size_t count);
AQ_SIMD_LIB void aq_neon_f8_e4m3_to_f32(const void *in, float *out, size_t count);
AQ_SIMD_LIB void aq_neon_f8_e5m2_to_f32(const void *in, float *out, size_t count);
AQ_SIMD_LIB void aq_neon_f32_to_f16(const float *in, void *out, size_t count);
AQ_SIMD_LIB void aq_neon_f32_to_bf16(const float *in, void *out, size_t count);
AQ_SIMD_LIB void aq_neon_range(const float *x, size_t count, size_t group, aq_simd_range *out);
AQ_SIMD_LIB void aq_neon_fit_affine(const float *x, const float *weights, size_t count,
                                    size_t group, uint32_t bits, const aq_simd_range *ranges,
                                    aq_simd_fit *out);
AQ_SIMD_LIB void aq_neon_fit_symmetric(const float *x, const float *weights, size_t count,
                                       size_t group, uint32_t bits, const aq_simd_range *ranges,
                                       aq_simd_fit *out);
AQ_SIMD_LIB void aq_neon_encode(const float *x, size_t count, size_t group, uint32_t bits,
                                bool symmetric, const aq_simd_grid *grids, void *codes);
AQ_SIMD_LIB void aq_neon_decode(const void *codes, size_t count, size_t group, uint32_t bits,
                                bool symmetric, const aq_simd_grid *grids, float *out);
AQ_SIMD_LIB void aq_neon_range_bf16(const void *in, size_t count, size_t group,
                                    aq_simd_range *out);
AQ_SIMD_LIB void aq_neon_encode_bf16(const void *in, size_t count, size_t group, uint32_t bits,
                                     bool symmetric, const aq_simd_grid *grids, void *codes);
AQ_SIMD_LIB void aq_neon_compare(const float *a, const float *b, size_t count, aq_simd_sums *out);
AQ_SIMD_LIB void aq_neon_update(float *c, const float *a, const float *b, size_t b_step,
                                size_t depth, size_t columns);
AQ_SIMD_LIB void aq_neon_hadamard(float *x, size_t count, float scale);
AQ_SIMD_LIB void aq_neon_strips_load(const float *x, const float *weights,
                                     aq_simd_strips *out);
AQ_SIMD_LIB void aq_neon_strips_sums(aq_simd_strips *strips, float most);
AQ_SIMD_LIB void aq_neon_strips_codes(const aq_simd_strips *strips, float most,
                                      const float *x, uint8_t *codes);
AQ_SIMD_LIB int32_t aq_neon_dot(const int8_t *a, const int8_t *b, size_t count);
AQ_SIMD_LIB void aq_neon_dot_codes(const void *codes, size_t row_bytes, size_t rows, uint32_t bits,
                                   const int8_t *x, size_t count, size_t group, int32_t *out);
AQ_SIMD_LIB void aq_neon_unpack(const void *codes, size_t count, uint32_t bits, uint8_t *out);
#  if defined(AQ_HAVE_DOTPROD)
AQ_DOTPROD AQ_SIMD_LIB int32_t aq_dotprod_dot(const int8_t *a, const int8_t *b, size_t count);
AQ_DOTPROD AQ_SIMD_LIB void aq_dotprod_dot_codes(const void *codes, size_t row_bytes, size_t rows,
                                                 uint32_t bits, const int8_t *x, size_t count,
                                                 size_t group, int32_t *out);
#  endif

#  ifdef __cplusplus
}
#  endif
#endif

#endif /* AQ_SIMD_NEON_H */
