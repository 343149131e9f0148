/* AVX-512 kernels: the passes of the least-squares fit. */
#include "x86.h"

#if defined(AQ_HAVE_AVX512)
AQ_X86_BEGIN

/* Codes as floats above 2^23, whose bits are integers of the same order: they are clamped as such. */
typedef struct aq_avx512_grid {
    __m512 base, inverse;
    __m512i low, high;
} aq_avx512_grid;

AQ_AVX512_INLINE static inline aq_avx512_grid aq_avx512_grid_of(const aq_x86_batch *batch,
                                                                size_t index) {
    AQ_SIMD_EXACT_BODY
    const __m512 magic = _mm512_set1_ps(AQ_X86_MAGIC);
    aq_avx512_grid grid;
    grid.base = _mm512_set1_ps(batch->base[index]);
    grid.inverse = _mm512_set1_ps(batch->inverse[index]);
    grid.low = _mm512_castps_si512(_mm512_add_ps(_mm512_set1_ps(batch->low[index]), magic));
    grid.high = _mm512_castps_si512(_mm512_add_ps(_mm512_set1_ps(batch->high[index]), magic));
    return grid;
}

AQ_AVX512_INLINE static inline __m512i aq_avx512_code(const aq_avx512_grid *grid, __m512 x) {
    AQ_SIMD_EXACT_BODY
    __m512 value = _mm512_mul_ps(_mm512_sub_ps(x, grid->base), grid->inverse);
    __m512i code = _mm512_castps_si512(_mm512_add_ps(value, _mm512_set1_ps(AQ_X86_MAGIC)));
    return _mm512_min_epi32(_mm512_max_epi32(code, grid->low), grid->high);
}

/* Sums of codes alone are integers below 2^24, which any order gives exactly. */
typedef struct aq_avx512_sums {
    __m512i code;
    __m512 code2, cross;
} aq_avx512_sums;

AQ_AVX512_INLINE static inline void aq_avx512_count(aq_avx512_sums *sums, __m512i code, __m512 x) {
    AQ_SIMD_EXACT_BODY
    __m512 c = _mm512_sub_ps(_mm512_castsi512_ps(code), _mm512_set1_ps(AQ_X86_MAGIC));
    sums->code = _mm512_add_epi32(sums->code, code);
    sums->code2 = _mm512_add_ps(sums->code2, _mm512_mul_ps(c, c));
    sums->cross = _mm512_add_ps(sums->cross, _mm512_mul_ps(c, x));
}

AQ_AVX512_INLINE static inline void aq_avx512_codes_plain(aq_x86_batch *batch, size_t length) {
    size_t index, i;
    for (index = 0; index < batch->groups; index++) {
        const float *x = batch->x + index * length;
        aq_avx512_grid grid = aq_avx512_grid_of(batch, index);
        aq_avx512_sums sums;
        if (!(batch->active >> index & 1u)) {
            continue;
        }
        sums.code = _mm512_set1_epi32((int)(0u - (uint32_t)(length / 16) * AQ_X86_MAGIC_BITS));
        sums.code2 = sums.cross = _mm512_setzero_ps();
        for (i = 0; i < length; i += 16) {
            __m512 value = _mm512_loadu_ps(x + i);
            aq_avx512_count(&sums, aq_avx512_code(&grid, value), value);
        }
        _mm_storeu_ps(batch->sums[index], aq_avx512_fold4(_mm512_cvtepi32_ps(sums.code),
                                                          sums.code2, sums.cross, sums.cross));
    }
}

AQ_AVX512 static void aq_avx512_codes_weighted(aq_x86_batch *batch) {
    AQ_SIMD_EXACT_BODY
    const __m512 magic = _mm512_set1_ps(AQ_X86_MAGIC);
    size_t index, i, length = batch->length;
    for (index = 0; index < batch->groups; index++) {
        const float *x = batch->x + index * length, *weights = batch->weights + index * length;
        aq_avx512_grid grid = aq_avx512_grid_of(batch, index);
        __m512 code = _mm512_setzero_ps(), code2 = code, cross = code;
        if (!(batch->active >> index & 1u)) {
            continue;
        }
        for (i = 0; i < length; i += 16) {
            __m512 value = _mm512_loadu_ps(x + i);
            __m512 c = _mm512_sub_ps(_mm512_castsi512_ps(aq_avx512_code(&grid, value)), magic);
            __m512 product = _mm512_mul_ps(_mm512_loadu_ps(weights + i), c);
            code = _mm512_add_ps(code, product);
            code2 = _mm512_add_ps(code2, _mm512_mul_ps(product, c));
            cross = _mm512_add_ps(cross, _mm512_mul_ps(product, value));
        }
        _mm_storeu_ps(batch->sums[index], aq_avx512_fold4(code, code2, cross, cross));
    }
}

AQ_AVX512 static void aq_avx512_codes(aq_x86_batch *batch) {
    if (batch->weights) {
        aq_avx512_codes_weighted(batch);
    } else {
        switch (batch->length) {
        case 32: aq_avx512_codes_plain(batch, 32); break;
        case 64: aq_avx512_codes_plain(batch, 64); break;
        case 128: aq_avx512_codes_plain(batch, 128); break;
        case 256: aq_avx512_codes_plain(batch, 256); break;
        default: aq_avx512_codes_plain(batch, batch->length); break;
        }
    }
}

AQ_AVX512_INLINE static inline float aq_avx512_fold(__m512 a) {
    aq_avx2_pair sum;
    sum.low = _mm512_castps512_ps256(a);
    sum.high = _mm512_extractf32x8_ps(a, 1);
    return aq_avx2_fold(sum);
}

AQ_AVX512 static void aq_avx512_centre(const aq_x86_batch *batch, const float *centre, float *y,
                                       float *sums) {
    AQ_SIMD_EXACT_BODY
    size_t index, i, length = batch->length;
    for (index = 0; index < batch->groups; index++) {
        const float *x = batch->x + index * length;
        const float *weights = batch->weights ? batch->weights + index * length : NULL;
        const __m512 middle = _mm512_set1_ps(centre[index]);
        __m512 sum = _mm512_setzero_ps();
        for (i = 0; i < length; i += 16) {
            __m512 value = _mm512_sub_ps(_mm512_loadu_ps(x + i), middle);
            if (y) {
                _mm512_storeu_ps(y + index * length + i, value);
            }
            if (weights) {
                value = _mm512_mul_ps(_mm512_loadu_ps(weights + i), value);
            }
            sum = _mm512_add_ps(sum, value);
        }
        sums[index] = aq_avx512_fold(sum);
    }
}

AQ_AVX512 static void aq_avx512_live(const aq_x86_batch *batch, float *sums, float *low,
                                     float *high) {
    AQ_SIMD_EXACT_BODY
    size_t index, i, length = batch->length;
    for (index = 0; index < batch->groups; index++) {
        const float *x = batch->x + index * length, *weights = batch->weights + index * length;
        __m512 sum = _mm512_setzero_ps(), least = _mm512_set1_ps(FLT_MAX);
        __m512 most = _mm512_set1_ps(-FLT_MAX);
        float lowest, highest;
        for (i = 0; i < length; i += 16) {
            __m512 weight = _mm512_loadu_ps(weights + i), value = _mm512_loadu_ps(x + i);
            __mmask16 live = _mm512_cmp_ps_mask(weight, _mm512_setzero_ps(), _CMP_GT_OQ);
            sum = _mm512_add_ps(sum, weight);
            least = _mm512_mask_min_ps(least, live, value, least);
            most = _mm512_mask_max_ps(most, live, value, most);
        }
        sums[index] = aq_avx512_fold(sum);
        lowest = _mm512_reduce_min_ps(least);
        highest = _mm512_reduce_max_ps(most);
        if (highest > lowest) {
            low[index] = lowest;
            high[index] = highest;
        }
    }
}

static const aq_x86_passes aq_avx512_passes = {aq_avx512_codes, aq_avx512_centre, aq_avx512_live};

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_fit_affine(const float *x, const float *weights, size_t count,
                                                size_t group, uint32_t bits,
                                                const aq_simd_range *ranges, aq_simd_fit *out) {
    aq_x86_fit(&aq_avx512_passes, x, weights, count, group, bits, false, ranges, out);
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_fit_symmetric(const float *x, const float *weights,
                                                   size_t count, size_t group, uint32_t bits,
                                                   const aq_simd_range *ranges, aq_simd_fit *out) {
    aq_x86_fit(&aq_avx512_passes, x, weights, count, group, bits, true, ranges, out);
}

AQ_X86_END
#endif /* AQ_HAVE_AVX512 */
