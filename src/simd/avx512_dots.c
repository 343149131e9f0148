/* AVX-512 kernels: exact dot products of 8-bit integers, and of packed codes with them, by VNNI:
 * vpdpbusd adds four products of an unsigned and a signed byte to 32 bits, and does not saturate. A
 * machine without it has the AVX2 kernels. */
#include "x86.h"

#if defined(AQ_HAVE_VNNI)
AQ_X86_BEGIN

/* As eight sums. */
AQ_VNNI_INLINE static inline __m256i aq_vnni_half(__m512i sum) {
    return _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
}

/* a + 128 is unsigned; what that adds, 128·Σ b, is summed apart and taken off again, all of it
 * modulo 2^32. */
AQ_VNNI AQ_SIMD_LIB int32_t aq_vnni_dot(const int8_t *a, const int8_t *b, size_t count) {
    const __m512i half = _mm512_set1_epi8((char)-128);
    __m512i sum = _mm512_setzero_si512(), extra = _mm512_setzero_si512();
    __m256i totals[4];
    size_t i;
    for (i = 0; i < count; i += 64) {
        __mmask64 lanes = count - i < 64 ? (UINT64_C(1) << (count - i)) - 1u : ~UINT64_C(0);
        __m512i second = _mm512_maskz_loadu_epi8(lanes, b + i);
        __m512i first = _mm512_xor_si512(_mm512_maskz_loadu_epi8(lanes, a + i), half);
        sum = _mm512_dpbusd_epi32(sum, first, second);
        extra = _mm512_dpbusd_epi32(extra, half, second);
    }
    totals[0] = aq_vnni_half(_mm512_sub_epi32(sum, extra));
    totals[1] = totals[2] = totals[3] = _mm256_setzero_si256();
    return _mm_cvtsi128_si32(aq_avx2_total4(totals));
}

/* 64 codes from bits · 8 bytes, one byte each. */
AQ_VNNI_INLINE static inline __m512i aq_vnni_unpack64(const uint8_t *in, uint32_t bits) {
    __m512i codes;
    if (bits == 8) {
        return _mm512_loadu_si512((const void *)in);
    }
    if (bits == 4) {
        codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)in));
        codes = _mm512_or_si512(codes, _mm512_slli_epi16(codes, 4));
        return _mm512_and_si512(codes, _mm512_set1_epi8(15));
    }
    codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)in));
    codes = _mm512_or_si512(codes, _mm512_slli_epi32(codes, 12));
    codes = _mm512_or_si512(codes, _mm512_slli_epi32(codes, 6));
    return _mm512_and_si512(codes, _mm512_set1_epi8(3));
}

/* One group, its length a multiple of 32, as eight partial sums. */
AQ_VNNI_INLINE static inline __m256i aq_vnni_dot_group(const uint8_t *codes, uint32_t bits,
                                                       const int8_t *x, size_t length) {
    __m512i sum = _mm512_setzero_si512();
    __m256i total;
    size_t i;
    for (i = 0; i + 64 <= length; i += 64) {
        sum = _mm512_dpbusd_epi32(sum, aq_vnni_unpack64(codes + i * bits / 8, bits),
                                  _mm512_loadu_si512((const void *)(x + i)));
    }
    total = length < 64 ? _mm256_setzero_si256() : aq_vnni_half(sum);
    if (i < length) {
        total = _mm256_dpbusd_epi32(total, aq_avx2_unpack32(codes + i * bits / 8, bits),
                                    _mm256_loadu_si256((const __m256i *)(const void *)(x + i)));
    }
    return total;
}

/* A short group, filled up with zeros. */
AQ_VNNI_INLINE static inline __m256i aq_vnni_dot_rest(const uint8_t *codes, uint32_t bits,
                                                      const int8_t *x, size_t count) {
    uint8_t packed[AQ_SIMD_GROUP_MAX];
    int8_t values[AQ_SIMD_GROUP_MAX];
    size_t length = (count + 31) / 32 * 32;
    memset(packed + length * bits / 8 - 4 * bits, 0, 4 * bits);
    memset(values + length - 32, 0, 32);
    memcpy(packed, codes, (count * bits + 7) / 8);
    memcpy(values, x, count);
    return aq_vnni_dot_group(packed, bits, values, length);
}

AQ_VNNI_INLINE static inline void aq_vnni_dot_row(const uint8_t *codes, uint32_t bits,
                                                  const int8_t *x, size_t count, size_t group,
                                                  int32_t *out) {
    const size_t bytes = group * bits / 8;
    __m256i sum[4];
    size_t begin = 0, i;
    for (; count - begin >= 4 * group; begin += 4 * group, codes += 4 * bytes, out += 4) {
        for (i = 0; i < 4; i++) {
            sum[i] = aq_vnni_dot_group(codes + i * bytes, bits, x + begin + i * group, group);
        }
        _mm_storeu_si128((__m128i *)(void *)out, aq_avx2_total4(sum));
    }
    sum[1] = sum[2] = sum[3] = _mm256_setzero_si256();
    for (; begin < count; begin += group, codes += bytes, out++) {
        size_t length = count - begin < group ? count - begin : group;
        sum[0] = length % 32 ? aq_vnni_dot_rest(codes, bits, x + begin, length)
                             : aq_vnni_dot_group(codes, bits, x + begin, length);
        *out = _mm_cvtsi128_si32(aq_avx2_total4(sum));
    }
}

AQ_VNNI AQ_SIMD_LIB void aq_vnni_dot_codes(const void *codes, size_t row_bytes, size_t rows,
                                           uint32_t bits, const int8_t *x, size_t count,
                                           size_t group, int32_t *out) {
    const uint8_t *row = (const uint8_t *)codes;
    const size_t groups = (count + group - 1) / group;
    for (; rows > 0; rows--, row += row_bytes, out += groups) {
        switch (bits) {
        case 2: aq_vnni_dot_row(row, 2, x, count, group, out); break;
        case 4: aq_vnni_dot_row(row, 4, x, count, group, out); break;
        default: aq_vnni_dot_row(row, 8, x, count, group, out); break;
        }
    }
}

AQ_VNNI AQ_SIMD_LIB void aq_vnni_unpack(const void *codes, size_t count, uint32_t bits,
                                        uint8_t *out) {
    const uint8_t *in = (const uint8_t *)codes;
    size_t i;
    for (i = 0; i + 64 <= count; i += 64, in += 8 * bits) {
        __m512i unpacked = bits == 8   ? aq_vnni_unpack64(in, 8)
                           : bits == 4 ? aq_vnni_unpack64(in, 4) : aq_vnni_unpack64(in, 2);
        _mm512_storeu_si512((void *)(out + i), unpacked);
    }
    aq_scalar_unpack(in, count - i, bits, out + i);
}

AQ_X86_END
#endif /* AQ_HAVE_VNNI */
