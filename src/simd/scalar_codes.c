/* Scalar kernels: codes from weights and weights from codes, with packing. */
#include "simd.h"

#define AQ_CODES_MAGIC 12582912.0f /* 1.5·2^23: the sum's low bits are the rounded integer */

/* One group, one byte a code. */
AQ_SIMD_EXACT static void aq_scalar_codes(const float *x, size_t count, float min, float inverse,
                                          float low, float high, uint32_t zero, uint8_t *codes) {
    AQ_SIMD_EXACT_BODY
    size_t i;
    for (i = 0; i < count; i++) {
        float value = (x[i] - min) * inverse;
        uint32_t bits;
        value = value < low ? low : value;
        value = value > high ? high : value;
        value += AQ_CODES_MAGIC;
        memcpy(&bits, &value, sizeof bits);
        codes[i] = (uint8_t)((bits + zero) & 0xFFu);
    }
}

/* LSB first; `codes` is followed by zeros up to the next whole byte of the packed form. */
static void aq_scalar_pack(const uint8_t *codes, size_t count, uint32_t bits, uint8_t *out) {
    size_t i;
    if (bits == 8) {
        memcpy(out, codes, count);
    } else if (bits == 4) {
        for (i = 0; i < (count + 1) / 2; i++) {
            out[i] = (uint8_t)(codes[2 * i] | codes[2 * i + 1] << 4);
        }
    } else {
        for (i = 0; i < (count + 3) / 4; i++) {
            const uint8_t *c = codes + 4 * i;
            out[i] = (uint8_t)(c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6);
        }
    }
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_scalar_encode(const float *x, size_t count, size_t group,
                                                uint32_t bits, bool symmetric,
                                                const aq_simd_grid *grids, void *codes) {
    AQ_SIMD_EXACT_BODY
    uint8_t unpacked[AQ_SIMD_GROUP_MAX + 4], *out = (uint8_t *)codes;
    uint32_t levels = 1u << bits, zero = symmetric ? levels / 2 : 0u;
    float low = 0.0f - (float)zero, high = (float)(levels - 1u - zero);
    size_t begin;
    for (begin = 0; begin < count; begin += group, grids++) {
        size_t length = count - begin < group ? count - begin : group;
        aq_scalar_codes(x + begin, length, symmetric ? 0.0f : grids->min,
                        aq_simd_inverse(grids->scale), low, high, zero, unpacked);
        memset(unpacked + length, 0, 4);
        aq_scalar_pack(unpacked, length, bits, out);
        out += (length * bits + 7u) / 8u;
    }
}

AQ_SIMD_LIB void aq_scalar_encode_bf16(const void *in, size_t count, size_t group, uint32_t bits,
                                       bool symmetric, const aq_simd_grid *grids, void *codes) {
    const uint8_t *from = (const uint8_t *)in;
    uint8_t *out = (uint8_t *)codes;
    float x[AQ_SIMD_GROUP_MAX];
    size_t begin;
    for (begin = 0; begin < count; begin += group, grids++) {
        size_t length = count - begin < group ? count - begin : group;
        aq_scalar_bf16_to_f32(from + 2 * begin, x, length);
        aq_scalar_encode(x, length, group, bits, symmetric, grids, out);
        out += (length * bits + 7u) / 8u;
    }
}

static void aq_scalar_split(const uint8_t *in, size_t count, uint32_t bits, uint8_t *codes) {
    size_t i;
    if (bits == 8) {
        memcpy(codes, in, count);
    } else if (bits == 4) {
        for (i = 0; i < (count + 1) / 2; i++) {
            codes[2 * i] = in[i] & 15u;
            codes[2 * i + 1] = (uint8_t)(in[i] >> 4);
        }
    } else {
        for (i = 0; i < (count + 3) / 4; i++) {
            codes[4 * i] = in[i] & 3u;
            codes[4 * i + 1] = (uint8_t)(in[i] >> 2 & 3u);
            codes[4 * i + 2] = (uint8_t)(in[i] >> 4 & 3u);
            codes[4 * i + 3] = (uint8_t)(in[i] >> 6);
        }
    }
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_scalar_decode(const void *codes, size_t count, size_t group,
                                                uint32_t bits, bool symmetric,
                                                const aq_simd_grid *grids, float *out) {
    AQ_SIMD_EXACT_BODY
    const uint8_t *in = (const uint8_t *)codes;
    uint8_t unpacked[AQ_SIMD_GROUP_MAX + 4];
    int zero = symmetric ? 1 << (bits - 1u) : 0;
    size_t begin, i;
    for (begin = 0; begin < count; begin += group, grids++) {
        size_t length = count - begin < group ? count - begin : group;
        float scale = grids->scale, min = grids->min;
        aq_scalar_split(in, length, bits, unpacked);
        in += (length * bits + 7u) / 8u;
        if (symmetric) {
            for (i = 0; i < length; i++) {
                out[begin + i] = scale * (float)((int)unpacked[i] - zero);
            }
        } else {
            for (i = 0; i < length; i++) {
                out[begin + i] = scale * (float)(int)unpacked[i] + min;
            }
        }
    }
}

#undef AQ_CODES_MAGIC
