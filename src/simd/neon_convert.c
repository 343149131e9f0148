/* NEON kernels: F16, BF16 and F8 to and from F32. */
#include "neon.h"

#if defined(AQ_HAVE_NEON)

/* Four halves; FCVTL makes a NaN quiet, and FPCR does not flush its denormals. */
static inline float32x4_t aq_neon_widen(uint16x4_t halves) {
    return vcvt_f32_f16(vreinterpret_f16_u16(halves));
}

static inline uint16x8_t aq_neon_load_halves(const uint8_t *from) {
    return vreinterpretq_u16_u8(vld1q_u8(from));
}

AQ_SIMD_LIB void aq_neon_f16_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        uint16x8_t halves = aq_neon_load_halves(from + 2 * i);
        vst1q_f32(out + i, aq_neon_widen(vget_low_u16(halves)));
        vst1q_f32(out + i + 4, aq_neon_widen(vget_high_u16(halves)));
    }
    aq_scalar_f16_to_f32(from + 2 * i, out + i, count - i);
}

static inline float32x4_t aq_neon_widen_bf16(uint16x4_t halves) {
    uint32x4_t bits = vshll_n_u16(halves, 16);
    uint32x4_t is_nan = vcgtq_u32(vshlq_n_u32(bits, 1), vdupq_n_u32(0xFF000000u));
    return vreinterpretq_f32_u32(vorrq_u32(bits, vandq_u32(is_nan, vdupq_n_u32(0x400000u))));
}

AQ_SIMD_LIB void aq_neon_bf16_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        uint16x8_t halves = aq_neon_load_halves(from + 2 * i);
        vst1q_f32(out + i, aq_neon_widen_bf16(vget_low_u16(halves)));
        vst1q_f32(out + i + 4, aq_neon_widen_bf16(vget_high_u16(halves)));
    }
    aq_scalar_bf16_to_f32(from + 2 * i, out + i, count - i);
}

/* Read as an F16 the byte's exponent is 8 too small, which one exact product mends; 0x7F, the only
 * NaN, becomes the F16 one. */
AQ_SIMD_LIB void aq_neon_f8_e4m3_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        uint8x8_t bytes = vld1_u8(from + i);
        uint16x8_t wide = vshll_n_u8(vand_u8(bytes, vdup_n_u8(0x7F)), 7);
        uint16x8_t sign = vshll_n_u8(vand_u8(bytes, vdup_n_u8(0x80)), 8);
        uint16x8_t is_nan = vceqq_u16(wide, vdupq_n_u16(0x7F << 7));
        wide = vorrq_u16(vbslq_u16(is_nan, vdupq_n_u16(0x7E00), wide), sign);
        vst1q_f32(out + i, vmulq_n_f32(aq_neon_widen(vget_low_u16(wide)), 256.0f));
        vst1q_f32(out + i + 4, vmulq_n_f32(aq_neon_widen(vget_high_u16(wide)), 256.0f));
    }
    aq_scalar_f8_e4m3_to_f32(from + i, out + i, count - i);
}

/* The upper half of an F16. */
AQ_SIMD_LIB void aq_neon_f8_e5m2_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        uint16x8_t halves = vshll_n_u8(vld1_u8(from + i), 8);
        vst1q_f32(out + i, aq_neon_widen(vget_low_u16(halves)));
        vst1q_f32(out + i + 4, aq_neon_widen(vget_high_u16(halves)));
    }
    aq_scalar_f8_e5m2_to_f32(from + i, out + i, count - i);
}

static inline uint16x4_t aq_neon_narrow(float32x4_t value) {
    return vreinterpret_u16_f16(vcvt_f16_f32(value));
}

AQ_SIMD_LIB void aq_neon_f32_to_f16(const float *in, void *out, size_t count) {
    uint8_t *to = (uint8_t *)out;
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        uint16x8_t halves = vcombine_u16(aq_neon_narrow(vld1q_f32(in + i)),
                                         aq_neon_narrow(vld1q_f32(in + i + 4)));
        vst1q_u8(to + 2 * i, vreinterpretq_u8_u16(halves));
    }
    aq_scalar_f32_to_f16(in + i, to + 2 * i, count - i);
}

static inline uint16x4_t aq_neon_narrow_bf16(float32x4_t value) {
    uint32x4_t bits = vreinterpretq_u32_f32(value);
    uint32x4_t is_nan = vcgtq_u32(vshlq_n_u32(bits, 1), vdupq_n_u32(0xFF000000u));
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, odd), vdupq_n_u32(0x7FFF));
    return vshrn_n_u32(vbslq_u32(is_nan, vorrq_u32(bits, vdupq_n_u32(0x400000u)), rounded), 16);
}

AQ_SIMD_LIB void aq_neon_f32_to_bf16(const float *in, void *out, size_t count) {
    uint8_t *to = (uint8_t *)out;
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        uint16x8_t halves = vcombine_u16(aq_neon_narrow_bf16(vld1q_f32(in + i)),
                                         aq_neon_narrow_bf16(vld1q_f32(in + i + 4)));
        vst1q_u8(to + 2 * i, vreinterpretq_u8_u16(halves));
    }
    aq_scalar_f32_to_bf16(in + i, to + 2 * i, count - i);
}

#endif
