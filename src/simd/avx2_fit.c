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
    aq_avx2_grid grid;
    grid.base = _mm256_set1_ps(batch->base[index]);
    grid.inverse = _mm256_set1_ps(batch->inverse[index]);
    grid.low = _mm256_castps_si256(_mm256_set1_ps(batch->low[index]));
    grid.high = _mm256_castps_si256(_mm256_set1_ps(batch->high[index]));
    return grid;
}

AQ_AVX2_INLINE static inline __m256i aq_avx2_code(const aq_avx2_grid *grid, __m256 x) {
    AQ_SIMD_EXACT_BODY
    __m256 value = _mm256_mul_ps(_mm256_sub_ps(x, grid->base), grid->inverse);
    __m256i code = _mm256_castps_si256(_mm256_add_ps(value, _mm256_set1_ps(AQ_X86_MAGIC)));
    return _mm256_min_epi32(_mm256_max_epi32(code, grid->low), grid->high);
}

/* Of half of the 16 lanes, then of both. */
typedef struct aq_avx2_sums {
    __m256 code, code2, cross;
} aq_avx2_sums;

/* Adds eight values to code2 and cross; their codes. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_count8(aq_avx2_sums *sums, const aq_avx2_grid *grid,
                                                    __m256 x) {
    AQ_SIMD_EXACT_BODY
    __m256i code = aq_avx2_code(grid, x);
    __m256 c = _mm256_sub_ps(_mm256_castsi256_ps(code), _mm256_set1_ps(AQ_X86_MAGIC));
    sums->code2 = _mm256_add_ps(sums->code2, _mm256_mul_ps(c, c));
    sums->cross = _mm256_add_ps(sums->cross, _mm256_mul_ps(c, x));
    return code;
}

/* Sums of codes alone are integers below 2^24, which any order gives exactly. */
AQ_AVX2_INLINE static inline aq_avx2_sums aq_avx2_count(const aq_x86_batch *batch, size_t index,
                                                        size_t length) {
    AQ_SIMD_EXACT_BODY
    const float *x = batch->x + index * length;
    aq_avx2_grid grid = aq_avx2_grid_of(batch, index);
    __m256i codes = _mm256_set1_epi32((int)(0u - (uint32_t)(length / 8) * AQ_X86_MAGIC_BITS));
    aq_avx2_sums low, high;
    size_t i;
    low.code = low.code2 = low.cross = _mm256_setzero_ps();
    high = low;
    for (i = 0; i < length; i += 16) {
        codes = _mm256_add_epi32(codes, aq_avx2_count8(&low, &grid, _mm256_loadu_ps(x + i)));
        codes = _mm256_add_epi32(codes, aq_avx2_count8(&high, &grid, _mm256_loadu_ps(x + i + 8)));
    }
    low.code = _mm256_cvtepi32_ps(codes);
    low.code2 = _mm256_add_ps(low.code2, high.code2);
    low.cross = _mm256_add_ps(low.cross, high.cross);
    return low;
}

/* Adds eight values; here every sum is one of floats. */
AQ_AVX2_INLINE static inline void aq_avx2_weigh8(aq_avx2_sums *sums, const aq_avx2_grid *grid,
                                                 __m256 x, __m256 weight) {
    AQ_SIMD_EXACT_BODY
    __m256 c = _mm256_sub_ps(_mm256_castsi256_ps(aq_avx2_code(grid, x)),
                             _mm256_set1_ps(AQ_X86_MAGIC));
    __m256 product = _mm256_mul_ps(weight, c);
    sums->code = _mm256_add_ps(sums->code, product);
    sums->code2 = _mm256_add_ps(sums->code2, _mm256_mul_ps(product, c));
    sums->cross = _mm256_add_ps(sums->cross, _mm256_mul_ps(product, x));
}

AQ_AVX2_INLINE static inline aq_avx2_sums aq_avx2_weigh(const aq_x86_batch *batch, size_t index,
                                                        size_t length) {
    AQ_SIMD_EXACT_BODY
    const float *x = batch->x + index * length, *weights = batch->weights + index * length;
    aq_avx2_grid grid = aq_avx2_grid_of(batch, index);
    aq_avx2_sums low, high;
    size_t i;
    low.code = low.code2 = low.cross = _mm256_setzero_ps();
    high = low;
    for (i = 0; i < length; i += 16) {
        aq_avx2_weigh8(&low, &grid, _mm256_loadu_ps(x + i), _mm256_loadu_ps(weights + i));
        aq_avx2_weigh8(&high, &grid, _mm256_loadu_ps(x + i + 8), _mm256_loadu_ps(weights + i + 8));
    }
    low.code = _mm256_add_ps(low.code, high.code);
    low.code2 = _mm256_add_ps(low.code2, high.code2);
    low.cross = _mm256_add_ps(low.cross, high.cross);
    return low;
}

AQ_AVX2_INLINE static inline aq_avx2_sums aq_avx2_group(const aq_x86_batch *batch, size_t index,
                                                        size_t length, bool weighted) {
    aq_avx2_sums none;
    if (batch->active >> index & 1u) {
        return weighted ? aq_avx2_weigh(batch, index, length)
                        : aq_avx2_count(batch, index, length);
    }
    none.code = none.code2 = none.cross = _mm256_setzero_ps();
    return none;
}

AQ_AVX2_INLINE static inline void aq_avx2_groups(aq_x86_batch *batch, size_t length,
                                                 bool weighted) {
    size_t quad;
    for (quad = 0; quad < batch->groups; quad += 4) {
        aq_avx2_sums a = aq_avx2_group(batch, quad, length, weighted);
        aq_avx2_sums b = aq_avx2_group(batch, quad + 1, length, weighted);
        aq_avx2_sums c = aq_avx2_group(batch, quad + 2, length, weighted);
        aq_avx2_sums d = aq_avx2_group(batch, quad + 3, length, weighted);
        _mm_storeu_ps(batch->code + quad, aq_avx2_fold4(a.code, b.code, c.code, d.code));
        _mm_storeu_ps(batch->code2 + quad, aq_avx2_fold4(a.code2, b.code2, c.code2, d.code2));
        _mm_storeu_ps(batch->cross + quad, aq_avx2_fold4(a.cross, b.cross, c.cross, d.cross));
    }
}

AQ_AVX2 static void aq_avx2_codes(aq_x86_batch *batch) {
    if (batch->weights) {
        aq_avx2_groups(batch, batch->length, true);
    } else {
        switch (batch->length) {
        case 32: aq_avx2_groups(batch, 32, false); break;
        case 64: aq_avx2_groups(batch, 64, false); break;
        case 128: aq_avx2_groups(batch, 128, false); break;
        case 256: aq_avx2_groups(batch, 256, false); break;
        default: aq_avx2_groups(batch, batch->length, false); break;
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

/* x − centre of one group, to y unless that is NULL; their (weighted) sum in 8 lanes. */
AQ_AVX2_INLINE static inline __m256 aq_avx2_less_group(const aq_x86_batch *batch, size_t index,
                                                       size_t length, const float *centre, float *y,
                                                       bool weighted) {
    AQ_SIMD_EXACT_BODY
    const size_t end = index * length + length;
    __m256 low = _mm256_setzero_ps(), high = low, middle;
    size_t i;
    if (index >= batch->groups) {
        return low;
    }
    middle = _mm256_set1_ps(centre[index]);
    for (i = index * length; i < end; i += 16) {
        const float *weights = weighted ? batch->weights + i : NULL;
        low = _mm256_add_ps(low, aq_avx2_less(batch->x + i, weights, middle, y ? y + i : NULL));
        high = _mm256_add_ps(high, aq_avx2_less(batch->x + i + 8, weights ? weights + 8 : NULL,
                                                middle, y ? y + i + 8 : NULL));
    }
    return _mm256_add_ps(low, high);
}

AQ_AVX2_INLINE static inline void aq_avx2_centre_groups(const aq_x86_batch *batch, size_t length,
                                                        const float *centre, float *y,
                                                        bool weighted, float *sums) {
    size_t quad;
    for (quad = 0; quad < batch->groups; quad += 4) {
        __m256 a = aq_avx2_less_group(batch, quad, length, centre, y, weighted);
        __m256 b = aq_avx2_less_group(batch, quad + 1, length, centre, y, weighted);
        __m256 c = aq_avx2_less_group(batch, quad + 2, length, centre, y, weighted);
        __m256 d = aq_avx2_less_group(batch, quad + 3, length, centre, y, weighted);
        _mm_storeu_ps(sums + quad, aq_avx2_fold4(a, b, c, d));
    }
}

AQ_AVX2 static void aq_avx2_centre(const aq_x86_batch *batch, const float *centre, float *y,
                                   float *sums) {
    if (batch->weights) {
        aq_avx2_centre_groups(batch, batch->length, centre, y, true, sums);
    } else if (batch->length == 64 && y) {
        aq_avx2_centre_groups(batch, 64, centre, y, false, sums);
    } else if (batch->length == 64) {
        aq_avx2_centre_groups(batch, 64, centre, NULL, false, sums);
    } else if (y) {
        aq_avx2_centre_groups(batch, batch->length, centre, y, false, sums);
    } else {
        aq_avx2_centre_groups(batch, batch->length, centre, NULL, false, sums);
    }
}

AQ_AVX2 static void aq_avx2_live(const aq_x86_batch *batch, float *sums, float *low, float *high) {
    AQ_SIMD_EXACT_BODY
    const __m256 most = _mm256_set1_ps(FLT_MAX), least = _mm256_set1_ps(-FLT_MAX);
    size_t index, i, length = batch->length;
    for (index = 0; index < batch->groups; index++) {
        const float *x = batch->x + index * length, *weights = batch->weights + index * length;
        __m256 lows = most, highs = least;
        aq_avx2_pair sum;
        float lowest, highest;
        sum.low = sum.high = _mm256_setzero_ps();
        for (i = 0; i < length; i += 8) {
            __m256 weight = _mm256_loadu_ps(weights + i), value = _mm256_loadu_ps(x + i);
            __m256 live = _mm256_cmp_ps(weight, _mm256_setzero_ps(), _CMP_GT_OQ);
            lows = _mm256_min_ps(lows, _mm256_blendv_ps(most, value, live));
            highs = _mm256_max_ps(highs, _mm256_blendv_ps(least, value, live));
            if (i % 16 == 0) {
                sum.low = _mm256_add_ps(sum.low, weight);
            } else {
                sum.high = _mm256_add_ps(sum.high, weight);
            }
        }
        sums[index] = aq_avx2_fold(sum);
        lowest = aq_avx2_least(lows);
        highest = aq_avx2_greatest(highs);
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
