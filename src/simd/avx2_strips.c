/* AVX2 kernels: sixteen strips of sixteen weights, two registers a step. */
#include "x86.h"

#if defined(AQ_HAVE_AVX2)
AQ_X86_BEGIN

/* Weights first … first + 7 of eight strips from `x` on, to eight lanes of `out`. */
AQ_AVX2_INLINE static inline void aq_avx2_turn_strips(const float *x, float *out) {
    const uint8_t *rows[8];
    __m256i turned[8];
    size_t i;
    for (i = 0; i < 8; i++) {
        rows[i] = (const uint8_t *)(x + 16 * i);
    }
    aq_avx2_words8(rows, turned);
    for (i = 0; i < 8; i++) {
        _mm256_storeu_si256((__m256i *)(void *)(out + 16 * i), turned[i]);
    }
}

AQ_AVX2_INLINE static inline void aq_avx2_turn16(const float *x, float *out) {
    aq_avx2_turn_strips(x, out);                 /* strips 0 … 7, steps 0 … 7 */
    aq_avx2_turn_strips(x + 8, out + 128);       /* … steps 8 … 15 */
    aq_avx2_turn_strips(x + 128, out + 8);       /* strips 8 … 15 */
    aq_avx2_turn_strips(x + 136, out + 136);
}

/* What strips_load finds of eight lanes. */
AQ_AVX2_INLINE static inline void aq_avx2_strips_find(aq_simd_strips *out, size_t lane) {
    AQ_SIMD_EXACT_BODY
    __m256 low = _mm256_loadu_ps(out->x + lane), high = low;
    __m256 total = _mm256_setzero_ps(), sum = total, square = total;
    size_t i;
    for (i = lane; i < 256; i += 16) {
        __m256 x = _mm256_loadu_ps(out->x + i), product = x;
        low = _mm256_min_ps(x, low);
        high = _mm256_max_ps(x, high);
        if (out->weighted) {
            __m256 weight = _mm256_loadu_ps(out->weights + i);
            product = _mm256_mul_ps(weight, x);
            total = _mm256_add_ps(total, weight);
        }
        sum = _mm256_add_ps(sum, product);
        square = _mm256_add_ps(square, _mm256_mul_ps(product, x));
    }
    _mm256_storeu_ps(out->low + lane, low);
    _mm256_storeu_ps(out->high + lane, high);
    _mm256_storeu_ps(out->weight + lane, out->weighted ? total : _mm256_set1_ps(16.0f));
    _mm256_storeu_ps(out->sum + lane, sum);
    _mm256_storeu_ps(out->square + lane, square);
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_strips_load(const float *x, const float *weights,
                                             aq_simd_strips *out) {
    aq_avx2_turn16(x, out->x);
    out->weighted = weights != NULL;
    if (weights) {
        aq_avx2_turn16(weights, out->weights);
    }
    aq_avx2_strips_find(out, 0);
    aq_avx2_strips_find(out, 8);
}

AQ_AVX2_INLINE static inline __m256 aq_avx2_strip_code(__m256 x, __m256 base, __m256 inverse,
                                                       __m256 most) {
    AQ_SIMD_EXACT_BODY
    const __m256 magic = _mm256_set1_ps(AQ_X86_MAGIC);
    __m256 code = _mm256_mul_ps(_mm256_sub_ps(x, base), inverse);
    code = _mm256_min_ps(_mm256_max_ps(code, _mm256_setzero_ps()), most);
    return _mm256_sub_ps(_mm256_add_ps(code, magic), magic);
}

AQ_AVX2_INLINE static inline void aq_avx2_strips_half(aq_simd_strips *strips, size_t lane,
                                                      float most) {
    AQ_SIMD_EXACT_BODY
    __m256 base = _mm256_loadu_ps(strips->base + lane);
    __m256 inverse = _mm256_loadu_ps(strips->inverse + lane), top = _mm256_set1_ps(most);
    __m256 code = _mm256_setzero_ps(), code2 = code, cross = code;
    size_t i;
    if (strips->weighted) {
        for (i = lane; i < 256; i += 16) {
            __m256 x = _mm256_loadu_ps(strips->x + i);
            __m256 c = aq_avx2_strip_code(x, base, inverse, top);
            __m256 product = _mm256_mul_ps(_mm256_loadu_ps(strips->weights + i), c);
            code = _mm256_add_ps(code, product);
            code2 = _mm256_add_ps(code2, _mm256_mul_ps(product, c));
            cross = _mm256_add_ps(cross, _mm256_mul_ps(product, x));
        }
    } else {
        for (i = lane; i < 256; i += 16) {
            __m256 x = _mm256_loadu_ps(strips->x + i);
            __m256 c = aq_avx2_strip_code(x, base, inverse, top);
            code = _mm256_add_ps(code, c);
            code2 = _mm256_add_ps(code2, _mm256_mul_ps(c, c));
            cross = _mm256_add_ps(cross, _mm256_mul_ps(c, x));
        }
    }
    _mm256_storeu_ps(strips->code + lane, code);
    _mm256_storeu_ps(strips->code2 + lane, code2);
    _mm256_storeu_ps(strips->cross + lane, cross);
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_strips_sums(aq_simd_strips *strips, float most) {
    aq_avx2_strips_half(strips, 0, most);
    aq_avx2_strips_half(strips, 8, most);
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_strips_codes(const aq_simd_strips *strips, float most,
                                              const float *x, uint8_t *codes) {
    AQ_SIMD_EXACT_BODY
    const __m256 top = _mm256_set1_ps(most);
    size_t i;
    for (i = 0; i < 16; i++) {
        __m256 base = _mm256_set1_ps(strips->base[i]), inverse = _mm256_set1_ps(strips->inverse[i]);
        __m256i low = _mm256_cvttps_epi32(
            aq_avx2_strip_code(_mm256_loadu_ps(x + 16 * i), base, inverse, top));
        __m256i high = _mm256_cvttps_epi32(
            aq_avx2_strip_code(_mm256_loadu_ps(x + 16 * i + 8), base, inverse, top));
        __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
        _mm_storeu_si128((__m128i *)(void *)(codes + 16 * i),
                         _mm_packus_epi16(_mm256_castsi256_si128(words),
                                          _mm256_extracti128_si256(words, 1)));
    }
}

AQ_X86_END
#endif
