/* AVX2 kernels: exact dot products of 8-bit integers, and of packed codes with them, 32 at a time.
 * vpmaddubsw saturates: it serves codes of 2 and 4 bits only, all others are widened first. */
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

/* Adds the products of 32 pairs, of which `wide` are 16 bits each. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_dot_wide(__m256i sum, __m256i a, __m256i b,
                                                      __m256i wide_a, __m256i wide_b) {
    return _mm256_add_epi32(_mm256_add_epi32(sum, _mm256_madd_epi16(a, b)),
                            _mm256_madd_epi16(wide_a, wide_b));
}

AQ_AVX2_INLINE static inline __m256i aq_avx2_signed16(const int8_t *in) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)in));
}

AQ_AVX2_INLINE static inline __m256i aq_avx2_unsigned16(const uint8_t *in) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)in));
}

AQ_AVX2 AQ_SIMD_LIB int32_t aq_avx2_dot(const int8_t *a, const int8_t *b, size_t count) {
    __m256i sum[4];
    size_t i;
    sum[0] = sum[1] = sum[2] = sum[3] = _mm256_setzero_si256();
    for (i = 0; i + 32 <= count; i += 32) {
        sum[0] = aq_avx2_dot_wide(sum[0], aq_avx2_signed16(a + i), aq_avx2_signed16(b + i),
                                  aq_avx2_signed16(a + i + 16), aq_avx2_signed16(b + i + 16));
    }
    return _mm_cvtsi128_si32(aq_avx2_total4(sum)) + aq_scalar_dot(a + i, b + i, count - i);
}

/* One group, its length a multiple of 32, as eight partial sums. At 4 bits eight steps of 16-bit
 * sums reach 8·2·15·128 < 2^15 at most. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_dot_group(const uint8_t *codes, uint32_t bits,
                                                       const int8_t *x, size_t length) {
    __m256i sum = _mm256_setzero_si256();
    size_t i;
    if (bits == 8) {
        for (i = 0; i < length; i += 32) {
            sum = aq_avx2_dot_wide(sum, aq_avx2_unsigned16(codes + i), aq_avx2_signed16(x + i),
                                   aq_avx2_unsigned16(codes + i + 16),
                                   aq_avx2_signed16(x + i + 16));
        }
        return sum;
    }
    for (i = 0; i < length; i += 32) {
        __m256i values = _mm256_loadu_si256((const __m256i *)(const void *)(x + i));
        __m256i unpacked = aq_avx2_unpack32(codes + i * bits / 8, bits);
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(unpacked, values));
    }
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

/* A short group, filled up with zeros. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_dot_rest(const uint8_t *codes, uint32_t bits,
                                                      const int8_t *x, size_t count) {
    uint8_t packed[AQ_SIMD_GROUP_MAX];
    int8_t values[AQ_SIMD_GROUP_MAX];
    size_t length = (count + 31) / 32 * 32;
    memset(packed + length * bits / 8 - 4 * bits, 0, 4 * bits);
    memset(values + length - 32, 0, 32);
    memcpy(packed, codes, (count * bits + 7) / 8);
    memcpy(values, x, count);
    return aq_avx2_dot_group(packed, bits, values, length);
}

AQ_AVX2_INLINE static inline void aq_avx2_dot_row(const uint8_t *codes, uint32_t bits,
                                                  const int8_t *x, size_t count, size_t group,
                                                  int32_t *out) {
    const size_t bytes = group * bits / 8;
    __m256i sum[4];
    size_t begin = 0, i;
    for (; count - begin >= 4 * group; begin += 4 * group, codes += 4 * bytes, out += 4) {
        for (i = 0; i < 4; i++) {
            sum[i] = aq_avx2_dot_group(codes + i * bytes, bits, x + begin + i * group, group);
        }
        _mm_storeu_si128((__m128i *)(void *)out, aq_avx2_total4(sum));
    }
    sum[1] = sum[2] = sum[3] = _mm256_setzero_si256();
    for (; begin < count; begin += group, codes += bytes, out++) {
        size_t length = count - begin < group ? count - begin : group;
        sum[0] = length % 32 ? aq_avx2_dot_rest(codes, bits, x + begin, length)
                             : aq_avx2_dot_group(codes, bits, x + begin, length);
        *out = _mm_cvtsi128_si32(aq_avx2_total4(sum));
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_dot_codes(const void *codes, size_t row_bytes, size_t rows,
                                           uint32_t bits, const int8_t *x, size_t count,
                                           size_t group, int32_t *out) {
    const uint8_t *row = (const uint8_t *)codes;
    const size_t groups = (count + group - 1) / group;
    for (; rows > 0; rows--, row += row_bytes, out += groups) {
        switch (bits) {
        case 2: aq_avx2_dot_row(row, 2, x, count, group, out); break;
        case 4: aq_avx2_dot_row(row, 4, x, count, group, out); break;
        default: aq_avx2_dot_row(row, 8, x, count, group, out); break;
        }
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_unpack(const void *codes, size_t count, uint32_t bits,
                                        uint8_t *out) {
    const uint8_t *in = (const uint8_t *)codes;
    size_t i;
    for (i = 0; i + 32 <= count; i += 32, in += 4 * bits) {
        __m256i unpacked = bits == 8   ? aq_avx2_unpack32(in, 8)
                           : bits == 4 ? aq_avx2_unpack32(in, 4) : aq_avx2_unpack32(in, 2);
        _mm256_storeu_si256((__m256i *)(void *)(out + i), unpacked);
    }
    aq_scalar_unpack(in, count - i, bits, out + i);
}

#endif /* AQ_HAVE_AVX2 */
