/* Bochs 2.7 rounds a number in the middle of two halves away from zero, where processors take the
 * even one. Included before the two files that convert with that instruction, this puts it right. */
#include <immintrin.h>

static inline __attribute__((target("avx2,f16c"))) __m128i even_halves_8(__m256 x) {
    __m128i near = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    __m128i last = _mm_set1_epi16(1), before = _mm_sub_epi16(near, last), tie;
    __m256 above = _mm256_sub_ps(_mm256_cvtph_ps(near), x);
    __m256 below = _mm256_sub_ps(x, _mm256_cvtph_ps(before));
    __m256i middle = _mm256_castps_si256(_mm256_cmp_ps(above, below, _CMP_EQ_OQ));
    tie = _mm_packs_epi32(_mm256_castsi256_si128(middle), _mm256_extracti128_si256(middle, 1));
    tie = _mm_and_si128(tie, _mm_cmpeq_epi16(_mm_and_si128(near, last), last));
    return _mm_blendv_epi8(near, before, tie);
}

static inline __attribute__((target("avx2,f16c,avx512f"))) __m256i even_halves_16(__m512 x) {
    __m256 low = _mm512_castps512_ps256(x);
    __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(even_halves_8(low)), even_halves_8(high),
                                   1);
}

#undef _mm256_cvtps_ph
#undef _mm512_maskz_cvtps_ph
#define _mm256_cvtps_ph(x, mode) even_halves_8(x)
#define _mm512_maskz_cvtps_ph(all, x, mode) even_halves_16(x)
