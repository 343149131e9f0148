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
    aq_avx512_grid grid;
    grid.base = _mm512_set1_ps(batch->base[index]);
    grid.inverse = _mm512_set1_ps(batch->inverse[index]);
    grid.low = _mm512_castps_si512(_mm512_set1_ps(batch->low[index]));
    grid.high = _mm512_castps_si512(_mm512_set1_ps(batch->high[index]));
    return grid;
}

AQ_AVX512_INLINE static inline __m512i aq_avx512_code(const aq_avx512_grid *grid, __m512 x) {
    AQ_SIMD_EXACT_BODY
    __m512 value = _mm512_mul_ps(_mm512_sub_ps(x, grid->base), grid->inverse);
    __m512i code = _mm512_castps_si512(_mm512_add_ps(value, _mm512_set1_ps(AQ_X86_MAGIC)));
    return _mm512_min_epi32(_mm512_max_epi32(code, grid->low), grid->high);
}

typedef struct aq_avx512_sums {
    __m512 code, code2, cross;
} aq_avx512_sums;

/* Sums of codes alone are integers below 2^24, which any order gives exactly. */
AQ_AVX512_INLINE static inline aq_avx512_sums aq_avx512_count(const aq_x86_batch *batch,
                                                              size_t index, size_t length) {
    AQ_SIMD_EXACT_BODY
    const __m512 magic = _mm512_set1_ps(AQ_X86_MAGIC);
    const float *x = batch->x + index * length;
    aq_avx512_grid grid = aq_avx512_grid_of(batch, index);
    __m512i codes = _mm512_set1_epi32((int)(0u - (uint32_t)(length / 16) * AQ_X86_MAGIC_BITS));
    aq_avx512_sums sums;
    size_t i;
    sums.code2 = sums.cross = _mm512_setzero_ps();
    for (i = 0; i < length; i += 16) {
        __m512 value = _mm512_loadu_ps(x + i);
        __m512i code = aq_avx512_code(&grid, value);
        __m512 c = _mm512_sub_ps(_mm512_castsi512_ps(code), magic);
        codes = _mm512_add_epi32(codes, code);
        sums.code2 = _mm512_add_ps(sums.code2, _mm512_mul_ps(c, c));
        sums.cross = _mm512_add_ps(sums.cross, _mm512_mul_ps(c, value));
    }
    sums.code = _mm512_cvtepi32_ps(codes);
    return sums;
}

AQ_AVX512_INLINE static inline aq_avx512_sums aq_avx512_weigh(const aq_x86_batch *batch,
                                                              size_t index, size_t length) {
    AQ_SIMD_EXACT_BODY
    const __m512 magic = _mm512_set1_ps(AQ_X86_MAGIC);
    const float *x = batch->x + index * length, *weights = batch->weights + index * length;
    aq_avx512_grid grid = aq_avx512_grid_of(batch, index);
    aq_avx512_sums sums;
    size_t i;
    sums.code = sums.code2 = sums.cross = _mm512_setzero_ps();
    for (i = 0; i < length; i += 16) {
        __m512 value = _mm512_loadu_ps(x + i);
        __m512 c = _mm512_sub_ps(_mm512_castsi512_ps(aq_avx512_code(&grid, value)), magic);
        __m512 product = _mm512_mul_ps(_mm512_loadu_ps(weights + i), c);
        sums.code = _mm512_add_ps(sums.code, product);
        sums.code2 = _mm512_add_ps(sums.code2, _mm512_mul_ps(product, c));
        sums.cross = _mm512_add_ps(sums.cross, _mm512_mul_ps(product, value));
    }
    return sums;
}

AQ_AVX512_INLINE static inline aq_avx512_sums aq_avx512_group(const aq_x86_batch *batch,
                                                              size_t index, size_t length,
                                                              bool weighted) {
    aq_avx512_sums none;
    if (batch->active >> index & 1u) {
        return weighted ? aq_avx512_weigh(batch, index, length)
                        : aq_avx512_count(batch, index, length);
    }
    none.code = none.code2 = none.cross = _mm512_setzero_ps();
    return none;
}

AQ_AVX512_INLINE static inline void aq_avx512_groups(aq_x86_batch *batch, size_t length,
                                                     bool weighted) {
    size_t quad;
    for (quad = 0; quad < batch->groups; quad += 4) {
        aq_avx512_sums a = aq_avx512_group(batch, quad, length, weighted);
        aq_avx512_sums b = aq_avx512_group(batch, quad + 1, length, weighted);
        aq_avx512_sums c = aq_avx512_group(batch, quad + 2, length, weighted);
        aq_avx512_sums d = aq_avx512_group(batch, quad + 3, length, weighted);
        _mm_storeu_ps(batch->code + quad, aq_avx512_fold4(a.code, b.code, c.code, d.code));
        _mm_storeu_ps(batch->code2 + quad, aq_avx512_fold4(a.code2, b.code2, c.code2, d.code2));
        _mm_storeu_ps(batch->cross + quad, aq_avx512_fold4(a.cross, b.cross, c.cross, d.cross));
    }
}

AQ_AVX512 static void aq_avx512_codes(aq_x86_batch *batch) {
    if (batch->weights) {
        aq_avx512_groups(batch, batch->length, true);
    } else {
        switch (batch->length) {
        case 32: aq_avx512_groups(batch, 32, false); break;
        case 64: aq_avx512_groups(batch, 64, false); break;
        case 128: aq_avx512_groups(batch, 128, false); break;
        case 256: aq_avx512_groups(batch, 256, false); break;
        default: aq_avx512_groups(batch, batch->length, false); break;
        }
    }
}

AQ_AVX512_INLINE static inline float aq_avx512_fold(__m512 a) {
    aq_avx2_pair sum;
    sum.low = _mm512_castps512_ps256(a);
    sum.high = _mm512_extractf32x8_ps(a, 1);
    return aq_avx2_fold(sum);
}

/* x − centre of one group, to y unless that is NULL; their (weighted) sum. */
AQ_AVX512_INLINE static inline __m512 aq_avx512_less(const aq_x86_batch *batch, size_t index,
                                                     size_t length, const float *centre, float *y,
                                                     bool weighted) {
    AQ_SIMD_EXACT_BODY
    const size_t begin = index * length;
    __m512 sum = _mm512_setzero_ps(), middle;
    size_t i;
    if (index >= batch->groups) {
        return sum;
    }
    middle = _mm512_set1_ps(centre[index]);
    for (i = begin; i < begin + length; i += 16) {
        __m512 value = _mm512_sub_ps(_mm512_loadu_ps(batch->x + i), middle);
        if (y) {
            _mm512_storeu_ps(y + i, value);
        }
        if (weighted) {
            value = _mm512_mul_ps(_mm512_loadu_ps(batch->weights + i), value);
        }
        sum = _mm512_add_ps(sum, value);
    }
    return sum;
}

AQ_AVX512_INLINE static inline void aq_avx512_centre_groups(const aq_x86_batch *batch,
                                                            size_t length, const float *centre,
                                                            float *y, bool weighted, float *sums) {
    size_t quad;
    for (quad = 0; quad < batch->groups; quad += 4) {
        __m512 a = aq_avx512_less(batch, quad, length, centre, y, weighted);
        __m512 b = aq_avx512_less(batch, quad + 1, length, centre, y, weighted);
        __m512 c = aq_avx512_less(batch, quad + 2, length, centre, y, weighted);
        __m512 d = aq_avx512_less(batch, quad + 3, length, centre, y, weighted);
        _mm_storeu_ps(sums + quad, aq_avx512_fold4(a, b, c, d));
    }
}

AQ_AVX512 static void aq_avx512_centre(const aq_x86_batch *batch, const float *centre, float *y,
                                       float *sums) {
    if (batch->weights) {
        aq_avx512_centre_groups(batch, batch->length, centre, y, true, sums);
    } else if (batch->length == 64 && y) {
        aq_avx512_centre_groups(batch, 64, centre, y, false, sums);
    } else if (batch->length == 64) {
        aq_avx512_centre_groups(batch, 64, centre, NULL, false, sums);
    } else {
        aq_avx512_centre_groups(batch, batch->length, centre, y, false, sums);
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
        lowest = aq_avx512_least(least);
        highest = aq_avx512_greatest(most);
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
