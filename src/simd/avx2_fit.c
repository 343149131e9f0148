/* AVX2 kernels: the passes of the least-squares fit. */
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

/* Codes as floats above 2^23, whose bits are integers of the same order: they are clamped as such. */
typedef struct aq_avx2_grid {
    __m256 base, inverse;
    __m256i low, high;
} aq_avx2_grid;

AQ_AVX2_INLINE static inline aq_avx2_grid aq_avx2_grid_of(const aq_x86_batch *batch,
                                                          size_t index) {
    AQ_SIMD_EXACT_BODY
    const __m256 magic = _mm256_set1_ps(AQ_X86_MAGIC);
    aq_avx2_grid grid;
    grid.base = _mm256_set1_ps(batch->base[index]);
    grid.inverse = _mm256_set1_ps(batch->inverse[index]);
    grid.low = _mm256_castps_si256(_mm256_add_ps(_mm256_set1_ps(batch->low[index]), magic));
    grid.high = _mm256_castps_si256(_mm256_add_ps(_mm256_set1_ps(batch->high[index]), magic));
    return grid;
}

AQ_AVX2_INLINE static inline __m256i aq_avx2_code(const aq_avx2_grid *grid, __m256 x) {
    AQ_SIMD_EXACT_BODY
    __m256 value = _mm256_mul_ps(_mm256_sub_ps(x, grid->base), grid->inverse);
    __m256i code = _mm256_castps_si256(_mm256_add_ps(value, _mm256_set1_ps(AQ_X86_MAGIC)));
    return _mm256_min_epi32(_mm256_max_epi32(code, grid->low), grid->high);
}

/* Half of the 16 lanes. Sums of codes alone are integers below 2^24, which any order gives
 * exactly. */
typedef struct aq_avx2_sums {
    __m256i code;
    __m256 code2, cross;
} aq_avx2_sums;

AQ_AVX2_INLINE static inline void aq_avx2_count(aq_avx2_sums *sums, __m256i code, __m256 x) {
    AQ_SIMD_EXACT_BODY
    __m256 c = _mm256_sub_ps(_mm256_castsi256_ps(code), _mm256_set1_ps(AQ_X86_MAGIC));
    sums->code = _mm256_add_epi32(sums->code, code);
    sums->code2 = _mm256_add_ps(sums->code2, _mm256_mul_ps(c, c));
    sums->cross = _mm256_add_ps(sums->cross, _mm256_mul_ps(c, x));
}

AQ_AVX2_INLINE static inline __m128 aq_avx2_sums_fold(const aq_avx2_sums *low,
                                                      const aq_avx2_sums *high) {
    aq_avx2_pair code, code2, cross;
    code.low = _mm256_cvtepi32_ps(low->code);
    code.high = _mm256_cvtepi32_ps(high->code);
    code2.low = low->code2;
    code2.high = high->code2;
    cross.low = low->cross;
    cross.high = high->cross;
    return aq_avx2_fold4(code, code2, cross, cross);
}

AQ_AVX2_INLINE static inline void aq_avx2_codes_plain(aq_x86_batch *batch, size_t length) {
    size_t index, i;
    for (index = 0; index < batch->groups; index++) {
        const float *x = batch->x + index * length;
        aq_avx2_grid grid = aq_avx2_grid_of(batch, index);
        aq_avx2_sums low, high;
        if (!(batch->active >> index & 1u)) {
            continue;
        }
        low.code = _mm256_set1_epi32((int)(0u - (uint32_t)(length / 16) * AQ_X86_MAGIC_BITS));
        low.code2 = low.cross = _mm256_setzero_ps();
        high = low;
        for (i = 0; i < length; i += 16) {
            __m256 value = _mm256_loadu_ps(x + i);
            aq_avx2_count(&low, aq_avx2_code(&grid, value), value);
            value = _mm256_loadu_ps(x + i + 8);
            aq_avx2_count(&high, aq_avx2_code(&grid, value), value);
        }
        _mm_storeu_ps(batch->sums[index], aq_avx2_sums_fold(&low, &high));
    }
}

/* Here every sum is one of floats. */
typedef struct aq_avx2_weighted {
    __m256 code, code2, cross;
} aq_avx2_weighted;

AQ_AVX2_INLINE static inline void aq_avx2_weigh(aq_avx2_weighted *sums, const aq_avx2_grid *grid,
                                                __m256 x, __m256 weight) {
    AQ_SIMD_EXACT_BODY
    __m256 c = _mm256_sub_ps(_mm256_castsi256_ps(aq_avx2_code(grid, x)),
                             _mm256_set1_ps(AQ_X86_MAGIC));
    __m256 product = _mm256_mul_ps(weight, c);
    sums->code = _mm256_add_ps(sums->code, product);
    sums->code2 = _mm256_add_ps(sums->code2, _mm256_mul_ps(product, c));
    sums->cross = _mm256_add_ps(sums->cross, _mm256_mul_ps(product, x));
}

AQ_AVX2_INLINE static inline __m128 aq_avx2_weighted_fold(const aq_avx2_weighted *low,
                                                          const aq_avx2_weighted *high) {
    aq_avx2_pair code, code2, cross;
    code.low = low->code;
    code.high = high->code;
    code2.low = low->code2;
    code2.high = high->code2;
    cross.low = low->cross;
    cross.high = high->cross;
    return aq_avx2_fold4(code, code2, cross, cross);
}

AQ_AVX2 static void aq_avx2_codes_weighted(aq_x86_batch *batch) {
    size_t index, i, length = batch->length;
    for (index = 0; index < batch->groups; index++) {
        const float *x = batch->x + index * length, *weights = batch->weights + index * length;
        aq_avx2_grid grid = aq_avx2_grid_of(batch, index);
        aq_avx2_weighted low, high;
        if (!(batch->active >> index & 1u)) {
            continue;
        }
        low.code = low.code2 = low.cross = _mm256_setzero_ps();
        high = low;
        for (i = 0; i < length; i += 16) {
            aq_avx2_weigh(&low, &grid, _mm256_loadu_ps(x + i), _mm256_loadu_ps(weights + i));
            aq_avx2_weigh(&high, &grid, _mm256_loadu_ps(x + i + 8),
                          _mm256_loadu_ps(weights + i + 8));
        }
        _mm_storeu_ps(batch->sums[index], aq_avx2_weighted_fold(&low, &high));
    }
}

AQ_AVX2 static void aq_avx2_codes(aq_x86_batch *batch) {
    if (batch->weights) {
        aq_avx2_codes_weighted(batch);
    } else {
        switch (batch->length) {
        case 32: aq_avx2_codes_plain(batch, 32); break;
        case 64: aq_avx2_codes_plain(batch, 64); break;
        case 128: aq_avx2_codes_plain(batch, 128); break;
        case 256: aq_avx2_codes_plain(batch, 256); break;
        default: aq_avx2_codes_plain(batch, batch->length); break;
        }
    }
}

/* Eight lanes: w·(x − centre), with x − centre stored when y is not NULL. */
AQ_AVX2_INLINE static inline __m256 aq_avx2_less(const float *x, const float *weights,
                                                 __m256 centre, float *y) {
    AQ_SIMD_EXACT_BODY
    __m256 value = _mm256_sub_ps(_mm256_loadu_ps(x), centre);
    if (y) {
        _mm256_storeu_ps(y, value);
    }
    return weights ? _mm256_mul_ps(_mm256_loadu_ps(weights), value) : value;
}

AQ_AVX2 static void aq_avx2_centre(const aq_x86_batch *batch, const float *centre, float *y,
                                   float *sums) {
    AQ_SIMD_EXACT_BODY
    size_t index, i, j, length = batch->length;
    for (index = 0; index < batch->groups; index++) {
        const __m256 middle = _mm256_set1_ps(centre[index]);
        aq_avx2_pair sum;
        sum.low = sum.high = _mm256_setzero_ps();
        for (i = 0, j = index * length; i < length; i += 16, j += 16) {
            const float *weights = batch->weights ? batch->weights + j : NULL;
            sum.low = _mm256_add_ps(sum.low, aq_avx2_less(batch->x + j, weights, middle,
                                                          y ? y + j : NULL));
            sum.high = _mm256_add_ps(sum.high, aq_avx2_less(batch->x + j + 8,
                                                            weights ? weights + 8 : NULL, middle,
                                                            y ? y + j + 8 : NULL));
        }
        sums[index] = aq_avx2_fold(sum);
    }
}

AQ_AVX2 static void aq_avx2_live(const aq_x86_batch *batch, float *sums, float *low, float *high) {
    AQ_SIMD_EXACT_BODY
    const __m256 none = _mm256_set1_ps(FLT_MAX), sign = _mm256_set1_ps(-0.0f);
    size_t index, i, length = batch->length;
    for (index = 0; index < batch->groups; index++) {
        const float *x = batch->x + index * length, *weights = batch->weights + index * length;
        __m256 least = none, less = none; /* of x, and of −x */
        aq_avx2_pair sum;
        float lowest, highest;
        sum.low = sum.high = _mm256_setzero_ps();
        for (i = 0; i < length; i += 8) {
            __m256 weight = _mm256_loadu_ps(weights + i), value = _mm256_loadu_ps(x + i);
            __m256 live = _mm256_cmp_ps(weight, _mm256_setzero_ps(), _CMP_GT_OQ);
            least = _mm256_min_ps(least, _mm256_blendv_ps(none, value, live));
            less = _mm256_min_ps(less, _mm256_blendv_ps(none, _mm256_xor_ps(value, sign), live));
            if (i % 16 == 0) {
                sum.low = _mm256_add_ps(sum.low, weight);
            } else {
                sum.high = _mm256_add_ps(sum.high, weight);
            }
        }
        sums[index] = aq_avx2_fold(sum);
        lowest = aq_avx2_least(least);
        highest = 0.0f - aq_avx2_least(less);
        if (highest > lowest) {
            low[index] = lowest;
            high[index] = highest;
        }
    }
}

static const aq_x86_passes aq_avx2_passes = {aq_avx2_codes, aq_avx2_centre, aq_avx2_live};

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_fit_affine(const float *x, const float *weights, size_t count,
                                            size_t group, uint32_t bits,
                                            const aq_simd_range *ranges, aq_simd_fit *out) {
    aq_x86_fit(&aq_avx2_passes, x, weights, count, group, bits, false, ranges, out);
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_fit_symmetric(const float *x, const float *weights, size_t count,
                                               size_t group, uint32_t bits,
                                               const aq_simd_range *ranges, aq_simd_fit *out) {
    aq_x86_fit(&aq_avx2_passes, x, weights, count, group, bits, true, ranges, out);
}

#endif /* AQ_HAVE_AVX2 */
