/* NEON kernels: exact dot products of 8-bit integers, and of packed codes with them, 16 at a time.
 * Each once with the instructions that every AArch64 has, once with the dot-product extension. */
#include "neon.h"

#if defined(AQ_HAVE_NEON)

/* Four sums of the products of 16 pairs. */
static inline int32x4_t aq_neon_dot_signed(int32x4_t sum, int8x16_t a, int8x16_t b) {
    sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    return vpadalq_s16(sum, vmull_s8(vget_high_s8(a), vget_high_s8(b)));
}

static inline int32x4_t aq_neon_dot_half(int32x4_t sum, uint8x8_t codes, int8x8_t x) {
    int16x8_t a = vreinterpretq_s16_u16(vmovl_u8(codes)), b = vmovl_s8(x);
    sum = vmlal_s16(sum, vget_low_s16(a), vget_low_s16(b));
    return vmlal_s16(sum, vget_high_s16(a), vget_high_s16(b));
}

static inline int32x4_t aq_neon_dot_step(int32x4_t sum, uint8x16_t codes, int8x16_t x,
                                         uint32_t bits) {
    if (bits < 8) { /* small enough for signed bytes */
        return aq_neon_dot_signed(sum, vreinterpretq_s8_u8(codes), x);
    }
    sum = aq_neon_dot_half(sum, vget_low_u8(codes), vget_low_s8(x));
    return aq_neon_dot_half(sum, vget_high_u8(codes), vget_high_s8(x));
}

AQ_SIMD_LIB int32_t aq_neon_dot(const int8_t *a, const int8_t *b, size_t count) {
    int32x4_t sum = vdupq_n_s32(0);
    size_t i;
    for (i = 0; i + 16 <= count; i += 16) {
        sum = aq_neon_dot_signed(sum, vld1q_s8(a + i), vld1q_s8(b + i));
    }
    return vaddvq_s32(sum) + aq_scalar_dot(a + i, b + i, count - i);
}

/* The last values of a row, fewer than 16, and zeros behind them. */
typedef struct aq_neon_rest {
    uint8_t packed[16];
    int8_t x[16];
} aq_neon_rest;

static inline void aq_neon_rest_fill(aq_neon_rest *rest, const uint8_t *codes, uint32_t bits,
                                     const int8_t *x, size_t count) {
    memset(rest, 0, sizeof *rest);
    memcpy(rest->packed, codes, (count * bits + 7) / 8);
    memcpy(rest->x, x, count);
}

static int32_t aq_neon_dot_group(const uint8_t *codes, uint32_t bits, const int8_t *x,
                                 size_t count) {
    int32x4_t sum = vdupq_n_s32(0);
    size_t i;
    for (i = 0; i + 16 <= count; i += 16, codes += 2 * bits) {
        sum = aq_neon_dot_step(sum, aq_neon_unpack16(codes, bits), vld1q_s8(x + i), bits);
    }
    if (i < count) {
        aq_neon_rest rest;
        aq_neon_rest_fill(&rest, codes, bits, x + i, count - i);
        sum = aq_neon_dot_step(sum, aq_neon_unpack16(rest.packed, bits), vld1q_s8(rest.x), bits);
    }
    return vaddvq_s32(sum);
}

AQ_SIMD_LIB void aq_neon_dot_codes(const void *codes, size_t row_bytes, size_t rows, uint32_t bits,
                                   const int8_t *x, size_t count, size_t group, int32_t *out) {
    const uint8_t *row = (const uint8_t *)codes;
    size_t begin, length;
    for (; rows > 0; rows--, row += row_bytes) {
        for (begin = 0; begin < count; begin += length, out++) {
            length = count - begin < group ? count - begin : group;
            *out = aq_neon_dot_group(row + begin * bits / 8, bits, x + begin, length);
        }
    }
}

AQ_SIMD_LIB void aq_neon_unpack(const void *codes, size_t count, uint32_t bits, uint8_t *out) {
    const uint8_t *in = (const uint8_t *)codes;
    size_t i;
    for (i = 0; i + 16 <= count; i += 16, in += 2 * bits) {
        vst1q_u8(out + i, aq_neon_unpack16(in, bits));
    }
    aq_scalar_unpack(in, count - i, bits, out + i);
}

#  if defined(AQ_HAVE_DOTPROD)

/* The intrinsic exists only where the whole file is compiled for the extension. */
AQ_DOTPROD_INLINE static inline int32x4_t aq_dotprod_add(int32x4_t sum, int8x16_t a, int8x16_t b) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
    return sum;
}

AQ_DOTPROD AQ_SIMD_LIB int32_t aq_dotprod_dot(const int8_t *a, const int8_t *b, size_t count) {
    int32x4_t sum = vdupq_n_s32(0);
    size_t i;
    for (i = 0; i + 16 <= count; i += 16) {
        sum = aq_dotprod_add(sum, vld1q_s8(a + i), vld1q_s8(b + i));
    }
    return vaddvq_s32(sum) + aq_scalar_dot(a + i, b + i, count - i);
}

/* Codes of 8 bits less 128 are signed; what that takes off, 128·Σ x, is summed apart. */
AQ_DOTPROD_INLINE static inline void aq_dotprod_step(int32x4_t *sum, int32x4_t *extra,
                                                     uint8x16_t codes, int8x16_t x,
                                                     uint32_t bits) {
    if (bits == 8) {
        codes = veorq_u8(codes, vdupq_n_u8(128));
        *extra = aq_dotprod_add(*extra, vdupq_n_s8(1), x);
    }
    *sum = aq_dotprod_add(*sum, vreinterpretq_s8_u8(codes), x);
}

AQ_DOTPROD_INLINE static inline int32_t aq_dotprod_group(const uint8_t *codes, uint32_t bits,
                                                         const int8_t *x, size_t count) {
    int32x4_t sum = vdupq_n_s32(0), extra = sum;
    size_t i;
    for (i = 0; i + 16 <= count; i += 16, codes += 2 * bits) {
        aq_dotprod_step(&sum, &extra, aq_neon_unpack16(codes, bits), vld1q_s8(x + i), bits);
    }
    if (i < count) {
        aq_neon_rest rest;
        aq_neon_rest_fill(&rest, codes, bits, x + i, count - i);
        aq_dotprod_step(&sum, &extra, aq_neon_unpack16(rest.packed, bits), vld1q_s8(rest.x), bits);
    }
    return vaddvq_s32(vaddq_s32(sum, vshlq_n_s32(extra, 7)));
}

AQ_DOTPROD AQ_SIMD_LIB void aq_dotprod_dot_codes(const void *codes, size_t row_bytes, size_t rows,
                                                 uint32_t bits, const int8_t *x, size_t count,
                                                 size_t group, int32_t *out) {
    const uint8_t *row = (const uint8_t *)codes;
    size_t begin, length;
    for (; rows > 0; rows--, row += row_bytes) {
        for (begin = 0; begin < count; begin += length, out++) {
            const uint8_t *at = row + begin * bits / 8;
            length = count - begin < group ? count - begin : group;
            *out = bits == 8   ? aq_dotprod_group(at, 8, x + begin, length)
                   : bits == 4 ? aq_dotprod_group(at, 4, x + begin, length)
                               : aq_dotprod_group(at, 2, x + begin, length);
        }
    }
}

#  endif

#endif
