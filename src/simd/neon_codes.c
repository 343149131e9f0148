/* NEON kernels: codes from weights and weights from codes, with packing. */
#include "neon.h"

#if defined(AQ_HAVE_NEON)

#define AQ_NEON_MAGIC 12582912.0f /* 1.5·2^23: the sum's low bits are the rounded integer */

typedef struct aq_neon_coder {
    float32x4_t min, inverse, low, high;
    uint32x4_t zero;
} aq_neon_coder;

AQ_NEON_INLINE static inline uint16x4_t aq_neon_code_four(const aq_neon_coder *coder,
                                                          const float *x) {
    AQ_SIMD_EXACT_BODY
    float32x4_t value = vmulq_f32(vsubq_f32(vld1q_f32(x), coder->min), coder->inverse);
    value = vminq_f32(vmaxq_f32(value, coder->low), coder->high);
    value = vaddq_f32(value, vdupq_n_f32(AQ_NEON_MAGIC));
    return vmovn_u32(vaddq_u32(vreinterpretq_u32_f32(value), coder->zero));
}

/* Sixteen codes, one byte each. */
AQ_NEON_INLINE static inline uint8x16_t aq_neon_code(const aq_neon_coder *coder, const float *x) {
    uint16x8_t first = vcombine_u16(aq_neon_code_four(coder, x), aq_neon_code_four(coder, x + 4));
    uint16x8_t last = vcombine_u16(aq_neon_code_four(coder, x + 8),
                                   aq_neon_code_four(coder, x + 12));
    return vcombine_u8(vmovn_u16(first), vmovn_u16(last));
}

/* Bytes 2i and 2i + 1, of four bits or of two, become byte i. */
static inline uint8x8_t aq_neon_join(uint8x16_t codes, bool nibbles) {
    uint16x8_t pairs = vreinterpretq_u16_u8(codes);
    return vmovn_u16(nibbles ? vsraq_n_u16(pairs, pairs, 4) : vsraq_n_u16(pairs, pairs, 6));
}

/* Packs sixteen codes into 2·bits bytes. */
static inline void aq_neon_pack(uint8x16_t codes, uint32_t bits, uint8_t *out) {
    if (bits == 8) {
        vst1q_u8(out, codes);
    } else if (bits == 4) {
        vst1_u8(out, aq_neon_join(codes, true));
    } else {
        uint8x8_t nibbles = aq_neon_join(codes, false);
        uint8x8_t packed = aq_neon_join(vcombine_u8(nibbles, nibbles), true);
        uint32_t word = vget_lane_u32(vreinterpret_u32_u8(packed), 0);
        memcpy(out, &word, sizeof word);
    }
}

static void aq_neon_encode_group(const aq_neon_coder *coder, const float *x, size_t count,
                                 uint32_t bits, uint8_t *out) {
    size_t i;
    for (i = 0; i + 16 <= count; i += 16, out += 2 * bits) {
        aq_neon_pack(aq_neon_code(coder, x + i), bits, out);
    }
    if (i < count) {
        float rest[16] = {0};
        uint8_t codes[16];
        memcpy(rest, x + i, (count - i) * sizeof *x);
        vst1q_u8(codes, aq_neon_code(coder, rest));
        memset(codes + (count - i), 0, 16 - (count - i));
        aq_neon_pack(vld1q_u8(codes), bits, codes);
        memcpy(out, codes, ((count - i) * bits + 7) / 8);
    }
}

AQ_SIMD_LIB void aq_neon_encode(const float *x, size_t count, size_t group, uint32_t bits,
                                bool symmetric, const aq_simd_grid *grids, void *codes) {
    uint32_t levels = 1u << bits, zero = symmetric ? levels / 2 : 0u;
    uint8_t *out = (uint8_t *)codes;
    aq_neon_coder coder;
    size_t begin;
    coder.low = vdupq_n_f32(0.0f - (float)zero);
    coder.high = vdupq_n_f32((float)(levels - 1u - zero));
    coder.zero = vdupq_n_u32(zero);
    for (begin = 0; begin < count; begin += group, grids++) {
        size_t length = count - begin < group ? count - begin : group;
        coder.min = vdupq_n_f32(symmetric ? 0.0f : grids->min);
        coder.inverse = vdupq_n_f32(aq_simd_inverse(grids->scale));
        aq_neon_encode_group(&coder, x + begin, length, bits, out);
        out += (length * bits + 7u) / 8u;
    }
}

AQ_SIMD_LIB void aq_neon_encode_bf16(const void *in, size_t count, size_t group, uint32_t bits,
                                     bool symmetric, const aq_simd_grid *grids, void *codes) {
    const uint8_t *from = (const uint8_t *)in;
    uint8_t *out = (uint8_t *)codes;
    float x[AQ_SIMD_GROUP_MAX];
    size_t begin;
    for (begin = 0; begin < count; begin += group, grids++) {
        size_t length = count - begin < group ? count - begin : group;
        aq_neon_bf16_to_f32(from + 2 * begin, x, length);
        aq_neon_encode(x, length, group, bits, symmetric, grids, out);
        out += (length * bits + 7u) / 8u;
    }
}

typedef struct aq_neon_decoder {
    float32x4_t scale, min;
    int32x4_t zero;
    bool symmetric;
} aq_neon_decoder;

AQ_NEON_INLINE static inline void aq_neon_decode_four(const aq_neon_decoder *decoder,
                                                      uint16x4_t codes, float *out) {
    AQ_SIMD_EXACT_BODY
    int32x4_t code = vsubq_s32(vreinterpretq_s32_u32(vmovl_u16(codes)), decoder->zero);
    float32x4_t value = vmulq_f32(vcvtq_f32_s32(code), decoder->scale);
    vst1q_f32(out, decoder->symmetric ? value : vaddq_f32(value, decoder->min));
}

AQ_NEON_INLINE static inline void aq_neon_decode_step(const aq_neon_decoder *decoder,
                                                      uint8x16_t codes, float *out) {
    uint16x8_t first = vmovl_u8(vget_low_u8(codes)), last = vmovl_u8(vget_high_u8(codes));
    aq_neon_decode_four(decoder, vget_low_u16(first), out);
    aq_neon_decode_four(decoder, vget_high_u16(first), out + 4);
    aq_neon_decode_four(decoder, vget_low_u16(last), out + 8);
    aq_neon_decode_four(decoder, vget_high_u16(last), out + 12);
}

AQ_SIMD_EXACT static void aq_neon_decode_group(const aq_neon_decoder *decoder, const uint8_t *in,
                                               size_t count, uint32_t bits, float *out) {
    size_t i;
    for (i = 0; i + 16 <= count; i += 16, in += 2 * bits) {
        aq_neon_decode_step(decoder, aq_neon_unpack16(in, bits), out + i);
    }
    if (i < count) {
        uint8_t codes[16] = {0};
        float rest[16];
        memcpy(codes, in, ((count - i) * bits + 7) / 8);
        aq_neon_decode_step(decoder, aq_neon_unpack16(codes, bits), rest);
        memcpy(out + i, rest, (count - i) * sizeof *out);
    }
}

AQ_SIMD_LIB void aq_neon_decode(const void *codes, size_t count, size_t group, uint32_t bits,
                                bool symmetric, const aq_simd_grid *grids, float *out) {
    const uint8_t *in = (const uint8_t *)codes;
    aq_neon_decoder decoder;
    size_t begin;
    decoder.zero = vdupq_n_s32(symmetric ? (int32_t)1 << (bits - 1u) : 0);
    decoder.symmetric = symmetric;
    for (begin = 0; begin < count; begin += group, grids++) {
        size_t length = count - begin < group ? count - begin : group;
        decoder.scale = vdupq_n_f32(grids->scale);
        decoder.min = vdupq_n_f32(grids->min);
        aq_neon_decode_group(&decoder, in, length, bits, out + begin);
        in += (length * bits + 7u) / 8u;
    }
}

#undef AQ_NEON_MAGIC

#endif
