/* AVX-512 kernels: the range of each group, sums over pairs of values. */
#include "x86.h"

#if defined(AQ_HAVE_AVX512)
AQ_X86_BEGIN

/* The range so far; absmax: of the bits. */
typedef struct aq_avx512_extent {
    __m512 low, high;
    __m512i absmax;
} aq_avx512_extent;

AQ_AVX512_INLINE static inline void aq_avx512_extend(aq_avx512_extent *extent, __m512 value) {
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    extent->low = _mm512_min_ps(value, extent->low);
    extent->high = _mm512_max_ps(value, extent->high);
    extent->absmax = _mm512_max_epu32(
        extent->absmax, _mm512_and_si512(_mm512_castps_si512(value), magnitude));
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_range(const float *x, size_t count, size_t group,
                                           aq_simd_range *out) {
    size_t begin, length, i;
    for (begin = 0; begin < count; begin += length, out++) {
        aq_avx512_extent extent;
        extent.low = extent.high = _mm512_set1_ps(x[begin]);
        extent.absmax = _mm512_setzero_si512();
        length = count - begin < group ? count - begin : group;
        for (i = 0; i + 16 <= length; i += 16) {
            aq_avx512_extend(&extent, _mm512_loadu_ps(x + begin + i));
        }
        if (i < length) {
            aq_avx512_extend(&extent, _mm512_mask_loadu_ps(_mm512_set1_ps(x[begin]),
                                                           aq_avx512_lanes(length - i),
                                                           x + begin + i));
        }
        out->low = aq_avx512_least(extent.low);
        out->high = aq_avx512_greatest(extent.high);
        out->absmax = aq_avx2_greatest_bits(
            _mm256_max_epu32(_mm512_castsi512_si256(extent.absmax),
                             _mm512_extracti64x4_epi64(extent.absmax, 1)));
    }
}

typedef struct aq_avx512_pairs {
    __m512 dot, first, second, error, most;
} aq_avx512_pairs;

AQ_AVX512_INLINE static inline void aq_avx512_pair(aq_avx512_pairs *sums, __m512 x, __m512 y) {
    AQ_SIMD_EXACT_BODY
    __m512 difference = _mm512_sub_ps(x, y);
    sums->dot = _mm512_add_ps(sums->dot, _mm512_mul_ps(x, y));
    sums->first = _mm512_add_ps(sums->first, _mm512_mul_ps(x, x));
    sums->second = _mm512_add_ps(sums->second, _mm512_mul_ps(y, y));
    sums->error = _mm512_add_ps(sums->error, _mm512_mul_ps(difference, difference));
    sums->most = _mm512_max_ps(_mm512_abs_ps(difference), sums->most);
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_compare(const float *a, const float *b, size_t count,
                                             aq_simd_sums *out) {
    aq_avx512_pairs sums;
    float folded[4];
    size_t i;
    sums.dot = sums.first = sums.second = sums.error = sums.most = _mm512_setzero_ps();
    for (i = 0; i + 16 <= count; i += 16) {
        aq_avx512_pair(&sums, _mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i));
    }
    if (i < count) {
        __mmask16 lanes = aq_avx512_lanes(count - i);
        aq_avx512_pair(&sums, _mm512_maskz_loadu_ps(lanes, a + i),
                       _mm512_maskz_loadu_ps(lanes, b + i));
    }
    _mm_storeu_ps(folded, aq_avx512_fold4(sums.dot, sums.first, sums.second, sums.error));
    out->dot = folded[0];
    out->first = folded[1];
    out->second = folded[2];
    out->error = folded[3];
    out->max_error = aq_avx512_greatest(sums.most);
}

AQ_X86_END
#endif /* AQ_HAVE_AVX512 */
