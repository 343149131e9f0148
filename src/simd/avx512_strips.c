/* AVX-512 kernels: sixteen strips of sixteen weights, a register a step. */
#include "x86.h"

#if defined(AQ_HAVE_AVX512)
AQ_X86_BEGIN

/* Row i of `row` becomes lane i of every row. */
AQ_AVX512_INLINE static inline void aq_avx512_turn16(__m512 *row) {
    __m512 part[16];
    size_t i;
    for (i = 0; i < 16; i += 4) { /* 4 × 4 inside each quarter of the registers */
        __m512 a = _mm512_unpacklo_ps(row[i], row[i + 1]), b = _mm512_unpackhi_ps(row[i], row[i + 1]);
        __m512 c = _mm512_unpacklo_ps(row[i + 2], row[i + 3]);
        __m512 d = _mm512_unpackhi_ps(row[i + 2], row[i + 3]);
        part[i] = _mm512_shuffle_ps(a, c, 0x44);
        part[i + 1] = _mm512_shuffle_ps(a, c, 0xEE);
        part[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
        part[i + 3] = _mm512_shuffle_ps(b, d, 0xEE);
    }
    for (i = 0; i < 4; i++) { /* the quarters themselves */
        __m512 a = _mm512_shuffle_f32x4(part[i], part[i + 4], 0x88);
        __m512 b = _mm512_shuffle_f32x4(part[i + 8], part[i + 12], 0x88);
        __m512 c = _mm512_shuffle_f32x4(part[i], part[i + 4], 0xDD);
        __m512 d = _mm512_shuffle_f32x4(part[i + 8], part[i + 12], 0xDD);
        row[i] = _mm512_shuffle_f32x4(a, b, 0x88);
        row[i + 8] = _mm512_shuffle_f32x4(a, b, 0xDD);
        row[i + 4] = _mm512_shuffle_f32x4(c, d, 0x88);
        row[i + 12] = _mm512_shuffle_f32x4(c, d, 0xDD);
    }
}

AQ_AVX512_INLINE static inline void aq_avx512_take16(const float *x, __m512 *row) {
    size_t i;
    for (i = 0; i < 16; i++) {
        row[i] = _mm512_loadu_ps(x + 16 * i);
    }
    aq_avx512_turn16(row);
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_strips_load(const float *x, const float *weights,
                                                 aq_simd_strips *out) {
    AQ_SIMD_EXACT_BODY
    __m512 row[16], weight[16], low, high;
    __m512 total = _mm512_setzero_ps(), sum = total, square = total;
    size_t i;
    aq_avx512_take16(x, row);
    low = high = row[0];
    for (i = 0; i < 16; i++) {
        low = _mm512_min_ps(row[i], low);
        high = _mm512_max_ps(row[i], high);
        _mm512_storeu_ps(out->x + 16 * i, row[i]);
    }
    if (weights) {
        aq_avx512_take16(weights, weight);
        for (i = 0; i < 16; i++) {
            __m512 product = _mm512_mul_ps(weight[i], row[i]);
            total = _mm512_add_ps(total, weight[i]);
            sum = _mm512_add_ps(sum, product);
            square = _mm512_add_ps(square, _mm512_mul_ps(product, row[i]));
            _mm512_storeu_ps(out->weights + 16 * i, weight[i]);
        }
    } else {
        total = _mm512_set1_ps(16.0f);
        for (i = 0; i < 16; i++) {
            sum = _mm512_add_ps(sum, row[i]);
            square = _mm512_add_ps(square, _mm512_mul_ps(row[i], row[i]));
        }
    }
    _mm512_storeu_ps(out->low, low);
    _mm512_storeu_ps(out->high, high);
    _mm512_storeu_ps(out->weight, total);
    _mm512_storeu_ps(out->sum, sum);
    _mm512_storeu_ps(out->square, square);
    out->weighted = weights != NULL;
}

AQ_AVX512_INLINE static inline __m512 aq_avx512_strip_code(__m512 x, __m512 base, __m512 inverse,
                                                           __m512 most) {
    AQ_SIMD_EXACT_BODY
    const __m512 magic = _mm512_set1_ps(AQ_X86_MAGIC);
    __m512 code = _mm512_mul_ps(_mm512_sub_ps(x, base), inverse);
    code = _mm512_min_ps(_mm512_max_ps(code, _mm512_setzero_ps()), most);
    return _mm512_sub_ps(_mm512_add_ps(code, magic), magic);
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_strips_sums(aq_simd_strips *strips, float most) {
    AQ_SIMD_EXACT_BODY
    __m512 base = _mm512_loadu_ps(strips->base), inverse = _mm512_loadu_ps(strips->inverse);
    __m512 code = _mm512_setzero_ps(), code2 = code, cross = code, top = _mm512_set1_ps(most);
    size_t i;
    if (strips->weighted) {
        for (i = 0; i < 256; i += 16) {
            __m512 x = _mm512_loadu_ps(strips->x + i);
            __m512 c = aq_avx512_strip_code(x, base, inverse, top);
            __m512 product = _mm512_mul_ps(_mm512_loadu_ps(strips->weights + i), c);
            code = _mm512_add_ps(code, product);
            code2 = _mm512_add_ps(code2, _mm512_mul_ps(product, c));
            cross = _mm512_add_ps(cross, _mm512_mul_ps(product, x));
        }
    } else {
        for (i = 0; i < 256; i += 16) {
            __m512 x = _mm512_loadu_ps(strips->x + i);
            __m512 c = aq_avx512_strip_code(x, base, inverse, top);
            code = _mm512_add_ps(code, c);
            code2 = _mm512_add_ps(code2, _mm512_mul_ps(c, c));
            cross = _mm512_add_ps(cross, _mm512_mul_ps(c, x));
        }
    }
    _mm512_storeu_ps(strips->code, code);
    _mm512_storeu_ps(strips->code2, code2);
    _mm512_storeu_ps(strips->cross, cross);
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_strips_codes(const aq_simd_strips *strips, float most,
                                                  const float *x, uint8_t *codes) {
    AQ_SIMD_EXACT_BODY
    const __m512 top = _mm512_set1_ps(most);
    size_t i;
    for (i = 0; i < 16; i++) {
        __m512 code = aq_avx512_strip_code(_mm512_loadu_ps(x + 16 * i),
                                           _mm512_set1_ps(strips->base[i]),
                                           _mm512_set1_ps(strips->inverse[i]), top);
        _mm_storeu_si128((__m128i *)(void *)(codes + 16 * i),
                         _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(code)));
    }
}

AQ_X86_END
#endif
