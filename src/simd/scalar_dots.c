/* Scalar kernels: exact dot products of 8-bit integers, and of packed codes with them. */
#include "simd.h"

AQ_SIMD_LIB int32_t aq_scalar_dot(const int8_t *a, const int8_t *b, size_t count) {
    int32_t sum = 0;
    size_t i;
    for (i = 0; i < count; i++) {
        sum += (int32_t)a[i] * (int32_t)b[i];
    }
    return sum;
}

AQ_SIMD_LIB void aq_scalar_unpack(const void *codes, size_t count, uint32_t bits, uint8_t *out) {
    const uint8_t *in = (const uint8_t *)codes;
    size_t i, each = 8u / bits; /* codes a byte */
    for (i = 0; i < count; i++) {
        out[i] = (uint8_t)((in[i / each] >> i % each * bits) & ((1u << bits) - 1u));
    }
}

AQ_SIMD_LIB void aq_scalar_dot_codes(const void *codes, size_t row_bytes, size_t rows,
                                     uint32_t bits, const int8_t *x, size_t count, size_t group,
                                     int32_t *out) {
    const uint8_t *row = (const uint8_t *)codes;
    uint8_t unpacked[AQ_SIMD_GROUP_MAX];
    size_t begin, length, i;
    for (; rows > 0; rows--, row += row_bytes) {
        for (begin = 0; begin < count; begin += length, out++) {
            int32_t sum = 0;
            length = count - begin < group ? count - begin : group;
            aq_scalar_unpack(row + begin * bits / 8, length, bits, unpacked);
            for (i = 0; i < length; i++) {
                sum += (int32_t)unpacked[i] * (int32_t)x[begin + i];
            }
            *out = sum;
        }
    }
}

AQ_SIMD_LIB void aq_scalar_group_sums(const int8_t *x, size_t count, size_t group, int32_t *out) {
    size_t begin, i;
    for (begin = 0; begin < count; begin += group, out++) {
        size_t end = count - begin < group ? count : begin + group;
        *out = 0;
        for (i = begin; i < end; i++) {
            *out += (int32_t)x[i];
        }
    }
}
