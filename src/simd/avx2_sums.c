/* AVX2 kernels: the range of each group, sums over pairs of values. */
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

/* The range so far; absmax: of the bits. */
typedef struct aq_avx2_extent {
    __m256 low, high;
    __m256i absmax;
} aq_avx2_extent;

AQ_AVX2_INLINE static inline void aq_avx2_extend(aq_avx2_extent *extent, __m256 value) {
    const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
    extent->low = _mm256_min_ps(value, extent->low);
    extent->high = _mm256_max_ps(value, extent->high);
    extent->absmax = _mm256_max_epu32(
        extent->absmax, _mm256_and_si256(_mm256_castps_si256(value), magnitude));
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_range(const float *x, size_t count, size_t group,
                                       aq_simd_range *out) {
    size_t begin, length, i;
    for (begin = 0; begin < count; begin += length, out++) {
        aq_avx2_extent extent;
        extent.low = extent.high = _mm256_set1_ps(x[begin]);
        extent.absmax = _mm256_setzero_si256();
        length = count - begin < group ? count - begin : group;
        for (i = 0; i + 8 <= length; i += 8) {
            aq_avx2_extend(&extent, _mm256_loadu_ps(x + begin + i));
        }
        for (; i < length; i++) {
            aq_avx2_extend(&extent, _mm256_set1_ps(x[begin + i]));
        }
        out->low = aq_avx2_least(extent.low);
        out->high = aq_avx2_greatest(extent.high);
        out->absmax = aq_avx2_greatest_bits(extent.absmax);
    }
}

/* The greatest and least of BF16 as integers of 16 bits: positive ones are ordered as signed numbers
 * are; negative ones, without sign, above all positive ones and by their magnitude. */
typedef struct aq_avx2_extent16 {
    __m256i high;         /* as signed ones: the greatest of those that are not negative */
    __m256i least, most;  /* without sign */
} aq_avx2_extent16;

AQ_AVX2_INLINE static inline void aq_avx2_extend16(aq_avx2_extent16 *extent, __m256i halves) {
    extent->high = _mm256_max_epi16(extent->high, halves);
    extent->least = _mm256_min_epu16(extent->least, halves);
    extent->most = _mm256_max_epu16(extent->most, halves);
}

/* The least of eight integers, without sign. */
AQ_AVX2_INLINE static inline uint32_t aq_avx2_least16(__m128i value) {
    return (uint32_t)_mm_cvtsi128_si32(_mm_minpos_epu16(value)) & 0xFFFFu;
}

AQ_AVX2_INLINE static inline void aq_avx2_range16(const aq_avx2_extent16 *extent,
                                                  aq_simd_range *out) {
    __m128i high = _mm_max_epi16(_mm256_castsi256_si128(extent->high),
                                 _mm256_extracti128_si256(extent->high, 1));
    __m128i least = _mm_min_epu16(_mm256_castsi256_si128(extent->least),
                                  _mm256_extracti128_si256(extent->least, 1));
    __m128i most = _mm_max_epu16(_mm256_castsi256_si128(extent->most),
                                 _mm256_extracti128_si256(extent->most, 1));
    uint32_t first = aq_avx2_least16(least), low, last;
    last = 0x7FFFu ^ aq_avx2_least16(_mm_xor_si128(high, _mm_set1_epi16(0x7FFF)));
    low = 0xFFFFu ^ aq_avx2_least16(_mm_xor_si128(most, _mm_set1_epi16(-1)));
    last = last & 0x8000u ? first : last; /* all are negative */
    low = low & 0x8000u ? low : first;    /* none is */
    out->low = aq_simd_float(low << 16);
    out->high = aq_simd_float(last << 16);
    low &= 0x7FFFu;
    last &= 0x7FFFu;
    out->absmax = (low > last ? low : last) << 16;
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_range_bf16(const void *in, size_t count, size_t group,
                                            aq_simd_range *out) {
    const uint8_t *from = (const uint8_t *)in;
    size_t begin, length, i;
    for (begin = 0; begin < count; begin += length, out++) {
        const uint8_t *at = from + 2 * begin;
        aq_avx2_extent16 extent;
        uint16_t rest[16];
        memcpy(rest, at, 2);
        extent.high = extent.least = extent.most = _mm256_set1_epi16((short)rest[0]);
        length = count - begin < group ? count - begin : group;
        for (i = 0; i + 16 <= length; i += 16) {
            aq_avx2_extend16(&extent,
                             _mm256_loadu_si256((const __m256i *)(const void *)(at + 2 * i)));
        }
        if (i < length) { /* the first value once more */
            _mm256_storeu_si256((__m256i *)(void *)rest, _mm256_set1_epi16((short)rest[0]));
            memcpy(rest, at + 2 * i, 2 * (length - i));
            aq_avx2_extend16(&extent, _mm256_loadu_si256((const __m256i *)(const void *)rest));
        }
        aq_avx2_range16(&extent, out);
    }
}

/* Half of the 16 lanes. */
typedef struct aq_avx2_products {
    __m256 dot, first, second, error, most;
} aq_avx2_products;

AQ_AVX2_INLINE static inline void aq_avx2_multiply(aq_avx2_products *sums, __m256 x, __m256 y) {
    AQ_SIMD_EXACT_BODY
    __m256 difference = _mm256_sub_ps(x, y);
    __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), difference);
    sums->dot = _mm256_add_ps(sums->dot, _mm256_mul_ps(x, y));
    sums->first = _mm256_add_ps(sums->first, _mm256_mul_ps(x, x));
    sums->second = _mm256_add_ps(sums->second, _mm256_mul_ps(y, y));
    sums->error = _mm256_add_ps(sums->error, _mm256_mul_ps(difference, difference));
    sums->most = _mm256_max_ps(magnitude, sums->most);
}

AQ_AVX2_INLINE static inline void aq_avx2_products_fold(const aq_avx2_products *low,
                                                        const aq_avx2_products *high,
                                                        aq_simd_sums *out) {
    AQ_SIMD_EXACT_BODY
    float folded[4];
    _mm_storeu_ps(folded, aq_avx2_fold4(_mm256_add_ps(low->dot, high->dot),
                                        _mm256_add_ps(low->first, high->first),
                                        _mm256_add_ps(low->second, high->second),
                                        _mm256_add_ps(low->error, high->error)));
    out->dot = folded[0];
    out->first = folded[1];
    out->second = folded[2];
    out->error = folded[3];
    out->max_error = aq_avx2_greatest(_mm256_max_ps(low->most, high->most));
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_compare(const float *a, const float *b, size_t count,
                                         aq_simd_sums *out) {
    aq_avx2_products low, high;
    size_t i;
    low.dot = low.first = low.second = low.error = low.most = _mm256_setzero_ps();
    high = low;
    for (i = 0; i + 16 <= count; i += 16) {
        aq_avx2_multiply(&low, _mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i));
        aq_avx2_multiply(&high, _mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8));
    }
    if (i < count) {
        float x[16] = {0}, y[16] = {0};
        memcpy(x, a + i, (count - i) * sizeof *x);
        memcpy(y, b + i, (count - i) * sizeof *y);
        aq_avx2_multiply(&low, _mm256_loadu_ps(x), _mm256_loadu_ps(y));
        aq_avx2_multiply(&high, _mm256_loadu_ps(x + 8), _mm256_loadu_ps(y + 8));
    }
    aq_avx2_products_fold(&low, &high, out);
}

#endif /* AQ_HAVE_AVX2 */
