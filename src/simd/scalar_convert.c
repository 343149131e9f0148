/* Scalar kernels: F16, BF16 and F8 to and from F32, by integer arithmetic, exact. */
#include "simd.h"

AQ_SIMD_LIB uint32_t aq_simd_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

AQ_SIMD_LIB float aq_simd_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Bits of 0.mantissa · 2^exponent, mantissa not 0 and below 2^10 read as a fraction of 2^10. */
static uint32_t aq_convert_subnormal(uint32_t mantissa, uint32_t exponent) {
    while (!(mantissa & 0x400u)) {
        mantissa <<= 1;
        exponent--;
    }
    return exponent << 23 | (mantissa & 0x3FFu) << 13;
}

static uint32_t aq_convert_f16_bits(uint32_t half) {
    uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, mantissa = half & 0x3FFu;
    if (exponent == 31u) { /* infinity, or a NaN made quiet */
        return sign | 0x7F800000u | (mantissa ? 0x400000u | mantissa << 13 : 0u);
    }
    if (exponent) {
        return sign | (exponent + 112u) << 23 | mantissa << 13;
    }
    return mantissa ? sign | aq_convert_subnormal(mantissa, 113u) : sign;
}

/* The variant without infinities: 0x7F is the only NaN, 448 the largest value. */
static uint32_t aq_convert_e4m3_bits(uint32_t byte) {
    uint32_t sign = (byte & 0x80u) << 24, exponent = byte >> 3 & 15u, mantissa = byte & 7u;
    if ((byte & 0x7Fu) == 0x7Fu) {
        return sign | 0x7FC00000u;
    }
    if (exponent) {
        return sign | (exponent + 120u) << 23 | mantissa << 20;
    }
    return mantissa ? sign | aq_convert_subnormal(mantissa << 7, 121u) : sign;
}

AQ_SIMD_LIB float aq_simd_from_f16(uint16_t half) {
    return aq_simd_float(aq_convert_f16_bits(half));
}

AQ_SIMD_LIB uint16_t aq_simd_to_f16(float value) {
    uint32_t bits = aq_simd_bits(value), sign = bits >> 16 & 0x8000u, shift, half;
    bits &= 0x7FFFFFFFu;
    if (bits > 0x7F800000u) {
        return (uint16_t)(sign | 0x7E00u | (bits >> 13 & 0x3FFu));
    }
    if (bits >= 0x477FF000u) { /* 65520, halfway to what would be 65536 */
        return (uint16_t)(sign | 0x7C00u);
    }
    if (bits >= 0x38800000u) { /* normal: a carry out of the mantissa raises the exponent */
        bits += 0xFFFu + (bits >> 13 & 1u);
        return (uint16_t)(sign | ((bits - 0x38000000u) >> 13));
    }
    if (bits < 0x33000000u) { /* below half of the least subnormal */
        return (uint16_t)sign;
    }
    shift = 126u - (bits >> 23); /* 14 … 24 */
    bits = (bits & 0x7FFFFFu) | 0x800000u;
    half = bits >> shift;
    bits &= (1u << shift) - 1u;
    if (bits > 1u << (shift - 1u) || (bits == 1u << (shift - 1u) && (half & 1u))) {
        half++;
    }
    return (uint16_t)(sign | half);
}

AQ_SIMD_LIB uint16_t aq_simd_to_bf16(float value) {
    uint32_t bits = aq_simd_bits(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    bits += 0x7FFFu + (bits >> 16 & 1u);
    return (uint16_t)(bits >> 16);
}

AQ_SIMD_LIB void aq_scalar_f16_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, from + 2 * i, sizeof half);
        out[i] = aq_simd_float(aq_convert_f16_bits(half));
    }
}

AQ_SIMD_LIB void aq_scalar_bf16_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i < count; i++) {
        uint16_t half;
        uint32_t bits;
        memcpy(&half, from + 2 * i, sizeof half);
        bits = (uint32_t)half << 16;
        bits |= (bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x400000u : 0u;
        memcpy(&out[i], &bits, sizeof bits);
    }
}

AQ_SIMD_LIB void aq_scalar_f8_e4m3_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i < count; i++) {
        out[i] = aq_simd_float(aq_convert_e4m3_bits(from[i]));
    }
}

/* The upper half of an F16. */
AQ_SIMD_LIB void aq_scalar_f8_e5m2_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i < count; i++) {
        out[i] = aq_simd_float(aq_convert_f16_bits((uint32_t)from[i] << 8));
    }
}

AQ_SIMD_LIB void aq_scalar_f32_to_f16(const float *in, void *out, size_t count) {
    uint8_t *to = (uint8_t *)out;
    size_t i;
    for (i = 0; i < count; i++) {
        uint16_t half = aq_simd_to_f16(in[i]);
        memcpy(to + 2 * i, &half, sizeof half);
    }
}

AQ_SIMD_LIB void aq_scalar_f32_to_bf16(const float *in, void *out, size_t count) {
    uint8_t *to = (uint8_t *)out;
    size_t i;
    for (i = 0; i < count; i++) {
        uint16_t half = aq_simd_to_bf16(in[i]);
        memcpy(to + 2 * i, &half, sizeof half);
    }
}
