/* AVX2 and AVX-512 kernels: the least-squares search of scalar_fit.c, with up to eight groups side by
 * side. Only the passes over the weights differ between the two. */
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

/* As aq_fit_group and aq_fit_state, an entry a group. Work goes on in quads: four groups at once. */
typedef struct aq_x86_search {
    const aq_x86_passes *passes;
    const aq_simd_recipe *recipe;
    aq_x86_batch batch;
    float top;       /* affine: the greatest code */
    float half;      /* symmetric: codes are within −half … half − 1; affine: 0 */
    float low[AQ_X86_GROUPS], high[AQ_X86_GROUPS]; /* of the values that weigh anything */
    float range[AQ_X86_GROUPS];  /* symmetric: the value of largest magnitude, its sign turned */
    float middle[AQ_X86_GROUPS]; /* less the centre */
    float centre[AQ_X86_GROUPS], weight[AQ_X86_GROUPS], sum[AQ_X86_GROUPS];
    float scale[AQ_X86_GROUPS], min[AQ_X86_GROUPS]; /* the grids to try */
    float zero[AQ_X86_GROUPS];                      /* their codes nearest to the mean */
    float best_scale[AQ_X86_GROUPS], best_min[AQ_X86_GROUPS], best_code[AQ_X86_GROUPS];
    double best_gain[AQ_X86_GROUPS];
} aq_x86_search;

/* As aq_fit_round, from 0. */
AQ_AVX2_INLINE static inline __m128 aq_x86_round(__m128 value, __m128 high) {
    AQ_SIMD_EXACT_BODY
    const __m128 magic = _mm_set1_ps(AQ_X86_MAGIC);
    value = _mm_min_ps(high, _mm_max_ps(_mm_setzero_ps(), value));
    return _mm_sub_ps(_mm_add_ps(value, magic), magic);
}

/* As aq_simd_inverse. */
AQ_AVX2_INLINE static inline __m128 aq_x86_inverse(__m128 scale) {
    const __m128 most = _mm_set1_ps(FLT_MAX), least = _mm_set1_ps(-FLT_MAX);
    return _mm_max_ps(_mm_min_ps(_mm_div_ps(_mm_set1_ps(1.0f), scale), most), least);
}

/* The mask of four doubles as one of four floats. */
AQ_AVX2_INLINE static inline __m128 aq_x86_narrow(__m256d mask) {
    return _mm_shuffle_ps(_mm_castpd_ps(_mm256_castpd256_pd128(mask)),
                          _mm_castpd_ps(_mm256_extractf128_pd(mask, 1)), 0x88);
}

/* Keeps a solution that gains more than the best so far; its mask. */
AQ_AVX2_INLINE static inline uint32_t aq_x86_keep(aq_x86_search *search, size_t quad, __m128 scale,
                                                  __m128 min, __m128 code, __m256d gain) {
    __m256d best = _mm256_loadu_pd(search->best_gain + quad);
    __m256d better = _mm256_cmp_pd(gain, best, _CMP_GT_OQ);
    __m128 narrow = aq_x86_narrow(better);
    float *to = search->best_scale + quad;
    _mm256_storeu_pd(search->best_gain + quad, _mm256_blendv_pd(best, gain, better));
    _mm_storeu_ps(to, _mm_blendv_ps(_mm_loadu_ps(to), scale, narrow));
    to = search->best_min + quad;
    _mm_storeu_ps(to, _mm_blendv_ps(_mm_loadu_ps(to), min, narrow));
    to = search->best_code + quad;
    _mm_storeu_ps(to, _mm_blendv_ps(_mm_loadu_ps(to), code, narrow));
    return (uint32_t)_mm256_movemask_pd(better) << quad;
}

/* The codes' grid of aq_fit_solve: its zero lies on the code nearest to the mean. */
AQ_AVX2_INLINE static inline void aq_x86_prepare(aq_x86_search *search, size_t quad) {
    AQ_SIMD_EXACT_BODY
    const __m128 magic = _mm_set1_ps(AQ_X86_MAGIC);
    aq_x86_batch *batch = &search->batch;
    __m128 scale = _mm_loadu_ps(search->scale + quad), min = _mm_loadu_ps(search->min + quad);
    __m128 inverse = aq_x86_inverse(scale), top = _mm_set1_ps(search->top);
    __m128 zero = aq_x86_round(_mm_mul_ps(_mm_sub_ps(_mm_setzero_ps(), min), inverse), top);
    _mm_storeu_ps(batch->base + quad, _mm_add_ps(min, _mm_mul_ps(zero, scale)));
    _mm_storeu_ps(batch->inverse + quad, inverse);
    _mm_storeu_ps(batch->low + quad, _mm_sub_ps(magic, zero));
    _mm_storeu_ps(batch->high + quad, _mm_add_ps(_mm_sub_ps(top, zero), magic));
    _mm_storeu_ps(search->zero + quad, zero);
}

/* Four floats as doubles. */
AQ_AVX2_INLINE static inline __m256d aq_x86_quad(const float *values, size_t quad) {
    return _mm256_cvtps_pd(_mm_loadu_ps(values + quad));
}

/* The rest of aq_fit_solve, after the pass. */
AQ_AVX2_INLINE static inline uint32_t aq_x86_solve(aq_x86_search *search, size_t quad) {
    AQ_SIMD_EXACT_BODY
    const __m256d none = _mm256_setzero_pd();
    __m256d weight = aq_x86_quad(search->weight, quad), sum = aq_x86_quad(search->sum, quad);
    __m256d code = aq_x86_quad(search->batch.code, quad);
    __m256d square = _mm256_mul_pd(weight, aq_x86_quad(search->batch.code2, quad));
    __m256d cross = _mm256_mul_pd(weight, aq_x86_quad(search->batch.cross, quad));
    __m256d determinant = _mm256_sub_pd(square, _mm256_mul_pd(code, code));
    __m256d slope = _mm256_sub_pd(cross, _mm256_mul_pd(code, sum));
    __m256d least = _mm256_mul_pd(square, _mm256_set1_pd(1e-6));
    __m256d good = _mm256_and_pd(_mm256_cmp_pd(determinant, least, _CMP_GT_OQ),
                                 _mm256_cmp_pd(slope, none, _CMP_GT_OQ));
    __m256d ratio = _mm256_div_pd(slope, determinant);
    __m256d gain = _mm256_and_pd(_mm256_mul_pd(slope, ratio), good);
    __m128 scale = _mm_blendv_ps(_mm_loadu_ps(search->scale + quad), _mm256_cvtpd_ps(ratio),
                                 aq_x86_narrow(good));
    __m256d middle = _mm256_add_pd(_mm256_div_pd(code, weight), aq_x86_quad(search->zero, quad));
    __m256d min = _mm256_sub_pd(_mm256_div_pd(sum, weight),
                                _mm256_mul_pd(_mm256_cvtps_pd(scale), middle));
    return aq_x86_keep(search, quad, scale, _mm256_cvtpd_ps(min), _mm256_cvtpd_ps(middle), gain);
}

/* As aq_fit_solve_symmetric, before and after the pass. */
AQ_AVX2_INLINE static inline void aq_x86_prepare_symmetric(aq_x86_search *search, size_t quad) {
    __m128 scale = _mm_loadu_ps(search->scale + quad);
    _mm_storeu_ps(search->batch.base + quad, _mm_setzero_ps());
    _mm_storeu_ps(search->batch.inverse + quad, aq_x86_inverse(scale));
    _mm_storeu_ps(search->batch.low + quad, _mm_set1_ps(AQ_X86_MAGIC - search->half));
    _mm_storeu_ps(search->batch.high + quad, _mm_set1_ps(AQ_X86_MAGIC + search->half - 1.0f));
}

AQ_AVX2_INLINE static inline uint32_t aq_x86_solve_symmetric(aq_x86_search *search, size_t quad) {
    AQ_SIMD_EXACT_BODY
    const __m256d none = _mm256_setzero_pd();
    __m256d slope = aq_x86_quad(search->batch.cross, quad);
    __m256d square = aq_x86_quad(search->batch.code2, quad);
    __m128 tried = _mm_loadu_ps(search->scale + quad);
    __m256d sign = _mm256_mul_pd(slope, _mm256_cvtps_pd(tried));
    __m256d good = _mm256_and_pd(_mm256_cmp_pd(square, none, _CMP_GT_OQ),
                                 _mm256_cmp_pd(sign, none, _CMP_GT_OQ));
    __m256d ratio = _mm256_div_pd(slope, square);
    __m256d gain = _mm256_and_pd(_mm256_mul_pd(slope, ratio), good);
    __m128 scale = _mm_blendv_ps(tried, _mm256_cvtpd_ps(ratio), aq_x86_narrow(good));
    return aq_x86_keep(search, quad, scale, _mm_setzero_ps(), _mm_setzero_ps(), gain);
}

/* Tries the grids scale[], min[] on the active groups; the mask of those that gained by it. */
AQ_AVX2 static uint32_t aq_x86_try(aq_x86_search *search) {
    bool symmetric = search->half > 0.0f;
    uint32_t gained = 0;
    size_t quad;
    for (quad = 0; quad < search->batch.groups; quad += 4) {
        if (symmetric) {
            aq_x86_prepare_symmetric(search, quad);
        } else {
            aq_x86_prepare(search, quad);
        }
    }
    search->passes->codes(&search->batch);
    for (quad = 0; quad < search->batch.groups; quad += 4) {
        gained |= symmetric ? aq_x86_solve_symmetric(search, quad) : aq_x86_solve(search, quad);
    }
    return gained & search->batch.active;
}

/* The rounds after the starts: a group that does not gain is done. */
AQ_AVX2 static void aq_x86_alternate(aq_x86_search *search, uint32_t rounds) {
    uint32_t i;
    for (i = 0; i < rounds && search->batch.active; i++) {
        memcpy(search->scale, search->best_scale, sizeof search->scale);
        memcpy(search->min, search->best_min, sizeof search->min);
        search->batch.active = aq_x86_try(search);
    }
}

/* Groups of a batch, which of them vary, and nothing found yet. */
AQ_AVX2 static void aq_x86_open(aq_x86_search *search, const float *x, const float *weights,
                                size_t length, size_t groups, const aq_simd_range *ranges) {
    aq_x86_batch *batch = &search->batch;
    size_t i;
    batch->x = x;
    batch->weights = weights;
    batch->length = length;
    batch->groups = groups;
    batch->active = 0;
    for (i = 0; i < groups; i++) {
        batch->active |= ranges[i].high > ranges[i].low ? 1u << i : 0u;
        search->low[i] = ranges[i].low;
        search->high[i] = ranges[i].high;
        search->weight[i] = (float)length;
        search->best_scale[i] = 1.0f;
        search->best_gain[i] = -1.0;
    }
    if (weights) {
        search->passes->live(batch, search->weight, search->low, search->high);
    }
}

/* Values less their mean, to y. */
AQ_AVX2 static void aq_x86_centre(aq_x86_search *search, float *y) {
    AQ_SIMD_EXACT_BODY
    aq_x86_batch *batch = &search->batch;
    size_t quad;
    for (quad = 0; quad < batch->groups; quad += 4) {
        __m128 both = _mm_add_ps(_mm_loadu_ps(search->low + quad),
                                 _mm_loadu_ps(search->high + quad));
        _mm_storeu_ps(search->middle + quad, _mm_mul_ps(_mm_set1_ps(0.5f), both));
    }
    search->passes->centre(batch, search->middle, NULL, search->sum);
    for (quad = 0; quad < batch->groups; quad += 4) {
        __m128 middle = _mm_loadu_ps(search->middle + quad);
        __m128 mean = _mm_div_ps(_mm_loadu_ps(search->sum + quad),
                                 _mm_loadu_ps(search->weight + quad));
        __m128 centre = _mm_add_ps(middle, mean);
        _mm_storeu_ps(search->centre + quad, centre);
        _mm_storeu_ps(search->middle + quad, _mm_sub_ps(middle, centre));
        _mm_storeu_ps(search->range + quad, _mm_sub_ps(_mm_loadu_ps(search->high + quad),
                                                       _mm_loadu_ps(search->low + quad)));
    }
    search->passes->centre(batch, search->centre, y, search->sum);
    batch->x = y;
}

/* One start of the recipe; `code` is that of the middle. */
AQ_AVX2 static void aq_x86_start(aq_x86_search *search, float divisor, float code) {
    AQ_SIMD_EXACT_BODY
    size_t quad;
    for (quad = 0; quad < search->batch.groups; quad += 4) {
        __m128 scale = _mm_div_ps(_mm_loadu_ps(search->range + quad), _mm_set1_ps(divisor));
        __m128 down = _mm_mul_ps(_mm_set1_ps(code), scale);
        _mm_storeu_ps(search->scale + quad, scale);
        _mm_storeu_ps(search->min + quad, _mm_sub_ps(_mm_loadu_ps(search->middle + quad), down));
    }
    (void)aq_x86_try(search);
}

AQ_AVX2 static void aq_x86_affine_batch(aq_x86_search *search, float *y, aq_simd_fit *out) {
    AQ_SIMD_EXACT_BODY
    const aq_simd_recipe *recipe = search->recipe;
    double mean[AQ_X86_GROUPS];
    uint32_t vary = search->batch.active, i;
    size_t j, quad;
    aq_x86_centre(search, y);
    for (i = 0; i < recipe->starts; i++) {
        aq_x86_start(search, recipe->divisor[i], 0.5f * search->top + recipe->shift[i]);
    }
    aq_x86_alternate(search, recipe->rounds);
    for (quad = 0; quad < search->batch.groups; quad += 4) {
        __m256d rest = _mm256_div_pd(_mm256_cvtps_pd(_mm_loadu_ps(search->sum + quad)),
                                     _mm256_cvtps_pd(_mm_loadu_ps(search->weight + quad)));
        _mm256_storeu_pd(mean + quad,
                         _mm256_add_pd(_mm256_cvtps_pd(_mm_loadu_ps(search->centre + quad)), rest));
    }
    for (j = 0; j < search->batch.groups; j++) {
        bool varies = (vary >> j & 1u) != 0;
        out[j].scale = varies ? search->best_scale[j] : 1.0f;
        out[j].mean = varies ? mean[j] : (double)search->low[j];
        out[j].code = varies ? search->best_code[j] : 0.0f;
    }
}

AQ_AVX2 static void aq_x86_symmetric_batch(aq_x86_search *search, bool positive,
                                           aq_simd_fit *out) {
    const aq_simd_recipe *recipe = search->recipe;
    uint32_t vary = search->batch.active, i;
    size_t j;
    for (j = 0; j < search->batch.groups; j++) { /* as aq_fit_largest, its sign turned */
        float low = search->low[j], high = search->high[j];
        float largest = 0.0f - (0.0f - low > high ? low : high);
        search->range[j] = positive && largest > 0.0f ? 0.0f - largest : largest;
        search->middle[j] = 0.0f;
    }
    for (i = 0; i < recipe->starts; i++) {
        aq_x86_start(search, recipe->divisor[i], 0.0f);
    }
    aq_x86_alternate(search, recipe->rounds);
    for (j = 0; j < search->batch.groups; j++) {
        bool varies = (vary >> j & 1u) != 0;
        out[j].scale = varies ? search->best_scale[j] : 1.0f;
        out[j].mean = varies ? 0.0 : (double)search->low[j];
        out[j].code = 0.0f;
    }
}

/* A short group, filled up with values that weigh nothing. */
typedef struct aq_x86_padded {
    float x[AQ_SIMD_GROUP_MAX], weights[AQ_SIMD_GROUP_MAX];
} aq_x86_padded;

static void aq_x86_pad(aq_x86_padded *to, const float *x, const float *weights, size_t count,
                       size_t length) {
    size_t i;
    for (i = 0; i < length; i++) {
        to->x[i] = i < count ? x[i] : 0.0f;
        to->weights[i] = i >= count ? 0.0f : weights ? weights[i] : 1.0f;
    }
}

/* Cuts a row into batches; the last group, when it is short, is one of its own. */
AQ_AVX2 AQ_SIMD_LIB void aq_x86_fit(const aq_x86_passes *passes, const float *x,
                                    const float *weights, size_t count, size_t group, uint32_t bits,
                                    bool symmetric, const aq_simd_range *ranges,
                                    aq_simd_fit *out) {
    float y[AQ_X86_GROUPS * AQ_SIMD_GROUP_MAX];
    aq_x86_search search;
    aq_x86_padded padded;
    size_t begin = 0, groups, length;
    memset(&search, 0, sizeof search);
    search.passes = passes;
    search.top = (float)((1u << bits) - 1u);
    search.half = symmetric ? (float)(1u << (bits - 1u)) : 0.0f;
    for (; begin < count; begin += groups * length, ranges += groups, out += groups) {
        length = count - begin < group ? count - begin : group;
        groups = (count - begin) / length;
        groups = groups < AQ_X86_GROUPS ? groups : AQ_X86_GROUPS;
        search.recipe = symmetric ? aq_simd_symmetric_recipe(bits, length)
                                  : aq_simd_affine_recipe(bits, length);
        if (length % 16 == 0) {
            aq_x86_open(&search, x + begin, weights ? weights + begin : NULL, length, groups,
                        ranges);
        } else {
            size_t rounded = (length + 15) / 16 * 16;
            aq_x86_pad(&padded, x + begin, weights ? weights + begin : NULL, length, rounded);
            aq_x86_open(&search, padded.x, padded.weights, rounded, 1, ranges);
        }
        if (symmetric) {
            aq_x86_symmetric_batch(&search, bits == 8, out);
        } else {
            aq_x86_affine_batch(&search, y, out);
        }
    }
}

#endif /* AQ_HAVE_AVX2 */
