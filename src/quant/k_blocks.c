/* The bytes of a superblock of 256 weights: Q4_K and Q2_K. docs/FORMATS.md draws them. */
#include "blocks.h"

/* 6-bit numbers of eight sub-blocks in 12 bytes: the low halves of the first four scales, of their
 * mins, then nibbles of the last four, whose upper bits lie above the first four. */
static void aq_k_pack6(const uint8_t *scale, const uint8_t *min, uint8_t *out) {
    size_t i;
    for (i = 0; i < 4; i++) {
        out[i] = (uint8_t)(scale[i] | (scale[i + 4] >> 4) << 6);
        out[i + 4] = (uint8_t)(min[i] | (min[i + 4] >> 4) << 6);
        out[i + 8] = (uint8_t)((scale[i + 4] & 15) | (min[i + 4] & 15) << 4);
    }
}

static void aq_k_unpack6(const uint8_t *in, uint8_t *scale, uint8_t *min) {
    size_t i;
    for (i = 0; i < 4; i++) {
        scale[i] = in[i] & 63;
        min[i] = in[i + 4] & 63;
        scale[i + 4] = (uint8_t)((in[i + 8] & 15) | (in[i] >> 6) << 4);
        min[i + 4] = (uint8_t)(in[i + 8] >> 4 | (in[i + 4] >> 6) << 4);
    }
}

static void aq_k_put_f16(uint8_t *out, float value) {
    uint16_t half = aq_simd_to_f16(value);
    out[0] = (uint8_t)(half & 0xFFu);
    out[1] = (uint8_t)(half >> 8);
}

static float aq_k_get_f16(const uint8_t *in) {
    return aq_simd_from_f16((uint16_t)(in[0] | in[1] << 8));
}

static void aq_k_pack_q4(const aq_k_fit *fit, const uint8_t *codes, uint8_t *out) {
    size_t i, pair;
    aq_k_put_f16(out, fit->d);
    aq_k_put_f16(out + 2, fit->dmin);
    aq_k_pack6(fit->scale, fit->min, out + 4);
    out += 16;
    for (pair = 0; pair < 4; pair++, codes += 64, out += 32) {
        for (i = 0; i < 32; i++) {
            out[i] = (uint8_t)(codes[i] | codes[i + 32] << 4);
        }
    }
}

static void aq_k_pack_q2(const aq_k_fit *fit, const uint8_t *codes, uint8_t *out) {
    size_t i, half;
    for (i = 0; i < 16; i++) {
        out[i] = (uint8_t)(fit->scale[i] | fit->min[i] << 4);
    }
    for (half = 0; half < 2; half++, codes += 128) {
        for (i = 0; i < 32; i++) {
            out[16 + 32 * half + i] = (uint8_t)(codes[i] | codes[i + 32] << 2 | codes[i + 64] << 4 |
                                                codes[i + 96] << 6);
        }
    }
    aq_k_put_f16(out + 80, fit->d);
    aq_k_put_f16(out + 82, fit->dmin);
}

AQ_LIB void aq_k_pack(aq_code code, const aq_k_fit *fit, const uint8_t *codes, uint8_t *out) {
    (code == AQ_CODE_Q4_K ? aq_k_pack_q4 : aq_k_pack_q2)(fit, codes, out);
}

/* Every product is exact, so that there is one rounding, whoever computes it. */
AQ_SIMD_EXACT static void aq_k_values(float step, float low, uint32_t count, float *value) {
    AQ_SIMD_EXACT_BODY
    uint32_t i;
    for (i = 0; i < count; i++) {
        value[i] = step * (float)i - low;
    }
}

AQ_SIMD_EXACT static void aq_k_decode_q4(const uint8_t *in, float *out) {
    AQ_SIMD_EXACT_BODY
    float d = aq_k_get_f16(in), dmin = aq_k_get_f16(in + 2), value[2][16];
    uint8_t scale[8], min[8];
    size_t sub, i;
    aq_k_unpack6(in + 4, scale, min);
    in += 16;
    for (sub = 0; sub < 8; sub += 2, in += 32, out += 64) {
        aq_k_values(d * (float)scale[sub], dmin * (float)min[sub], 16, value[0]);
        aq_k_values(d * (float)scale[sub + 1], dmin * (float)min[sub + 1], 16, value[1]);
        for (i = 0; i < 32; i++) {
            out[i] = value[0][in[i] & 15];
            out[i + 32] = value[1][in[i] >> 4];
        }
    }
}

AQ_SIMD_EXACT static void aq_k_decode_q2(const uint8_t *in, float *out) {
    AQ_SIMD_EXACT_BODY
    float d = aq_k_get_f16(in + 80), dmin = aq_k_get_f16(in + 82), value[16][4];
    size_t sub, strip, i;
    for (sub = 0; sub < 16; sub++) {
        aq_k_values(d * (float)(in[sub] & 15), dmin * (float)(in[sub] >> 4), 4, value[sub]);
    }
    in += 16;
    for (strip = 0; strip < 4; strip++, in += 16) { /* sub-blocks first, first + 2, + 4 and + 6 */
        size_t first = strip / 2 * 8 + strip % 2;
        float *to = out + 16 * first;
        for (i = 0; i < 16; i++) {
            to[i] = value[first][in[i] & 3];
            to[i + 32] = value[first + 2][in[i] >> 2 & 3];
            to[i + 64] = value[first + 4][in[i] >> 4 & 3];
            to[i + 96] = value[first + 6][in[i] >> 6];
        }
    }
}

AQ_LIB void aq_k_decode(aq_code code, const uint8_t *in, float *out) {
    (code == AQ_CODE_Q4_K ? aq_k_decode_q4 : aq_k_decode_q2)(in, out);
}

static void aq_k_put_f32(uint8_t *out, float value) {
    uint32_t bits = aq_simd_bits(value), i;
    for (i = 0; i < 4; i++) {
        out[i] = (uint8_t)(bits >> (8 * i));
    }
}

AQ_SIMD_EXACT AQ_LIB void aq_k_to_native(const void *in, size_t blocks, void *codes,
                                         void *params) {
    AQ_SIMD_EXACT_BODY
    const uint8_t *from = (const uint8_t *)in;
    uint8_t *to = (uint8_t *)codes, *param = (uint8_t *)params;
    uint8_t scale[8], min[8];
    size_t sub, i;
    for (; blocks; blocks--) {
        float d = aq_k_get_f16(from), dmin = aq_k_get_f16(from + 2);
        aq_k_unpack6(from + 4, scale, min);
        from += 16;
        for (sub = 0; sub < 8; sub++, param += 8) {
            aq_k_put_f32(param, d * (float)scale[sub]);
            aq_k_put_f32(param + 4, -(dmin * (float)min[sub]));
        }
        for (sub = 0; sub < 8; sub += 2, from += 32, to += 32) { /* low nibbles, then high ones */
            for (i = 0; i < 16; i++) {
                to[i] = (uint8_t)((from[2 * i] & 15) | (from[2 * i + 1] & 15) << 4);
                to[i + 16] = (uint8_t)(from[2 * i] >> 4 | (from[2 * i + 1] & 0xF0));
            }
        }
    }
}

AQ_LIB const aq_k_kind *aq_k_kind_of(aq_code code) {
    /* Tuned on Gaussian, Laplacian and trained weights; the first start is plain min/max. */
    static const aq_k_kind kinds[2] = {
        { 8, 15, 63, 6, 1, 2, { 15.0f, 15.2f, 15.6f, 14.0f, 15.2f, 14.8f, 0, 0 },
          { 0.0f, -0.01f, 0.038f, 0.0f, 0.01f, 0.01f, 0, 0 } },
        { 16, 3, 15, 4, 1, 1, { 3.0f, 3.7f, 3.4f, 3.4f, 0, 0, 0, 0 },
          { 0.0f, 0.05f, 0.118f, -0.05f, 0, 0, 0, 0 } },
    };
    return &kinds[code == AQ_CODE_Q4_K ? 0 : 1];
}
