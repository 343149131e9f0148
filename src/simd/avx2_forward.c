/* AVX2 kernels of the forward pass. */
#include "forward.h"
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

/* Four rows by one token; all rows are read, `rows` of them count. */
AQ_AVX2_INLINE static inline void aq_avx2_product4(const float *const *w, size_t rows,
                                                   const float *x, size_t count, float *y) {
    AQ_SIMD_EXACT_BODY
    const float *const w0 = w[0], *const w1 = w[1], *const w2 = w[2], *const w3 = w[3];
    __m256 low0, low1, low2, low3, high0, high1, high2, high3, first, second;
    float folded[4], rest[5][16]; /* x and the rows behind the last sixteen columns */
    size_t i, r;
    low0 = low1 = low2 = low3 = high0 = high1 = high2 = high3 = _mm256_setzero_ps();
/* Variables, not arrays, which GCC keeps in memory. */
#define AQ_AVX2_STEP(r, from) \
    low##r = _mm256_add_ps(low##r, _mm256_mul_ps(_mm256_loadu_ps(from), first)); \
    high##r = _mm256_add_ps(high##r, _mm256_mul_ps(_mm256_loadu_ps((from) + 8), second));
    for (i = 0; i + 16 <= count; i += 16) {
        first = _mm256_loadu_ps(x + i);
        second = _mm256_loadu_ps(x + i + 8);
        AQ_AVX2_STEP(0, w0 + i)
        AQ_AVX2_STEP(1, w1 + i)
        AQ_AVX2_STEP(2, w2 + i)
        AQ_AVX2_STEP(3, w3 + i)
    }
    if (i < count) { /* zeros behind the last column */
        memset(rest, 0, sizeof rest);
        memcpy(rest[4], x + i, (count - i) * sizeof *x);
        for (r = 0; r < 4; r++) {
            memcpy(rest[r], w[r] + i, (count - i) * sizeof *x);
        }
        first = _mm256_loadu_ps(rest[4]);
        second = _mm256_loadu_ps(rest[4] + 8);
        AQ_AVX2_STEP(0, rest[0])
        AQ_AVX2_STEP(1, rest[1])
        AQ_AVX2_STEP(2, rest[2])
        AQ_AVX2_STEP(3, rest[3])
    }
#undef AQ_AVX2_STEP
    _mm_storeu_ps(folded, aq_avx2_fold4(_mm256_add_ps(low0, high0), _mm256_add_ps(low1, high1),
                                        _mm256_add_ps(low2, high2), _mm256_add_ps(low3, high3)));
    for (r = 0; r < rows; r++) {
        y[r] += folded[r];
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_product(const float *w, size_t w_stride, size_t rows,
                                         const float *x, size_t x_stride, size_t tokens,
                                         size_t count, float *y, size_t y_stride) {
    const float *row[4];
    size_t r, t, i;
    for (r = 0; r < rows; r += 4) {
        const size_t n = rows - r < 4 ? rows - r : 4;
        for (i = 0; i < 4; i++) {
            row[i] = w + (r + (i < n ? i : n - 1)) * w_stride;
        }
        for (t = 0; t < tokens; t++) {
            aq_avx2_product4(row, n, x + t * x_stride, count, y + t * y_stride + r);
        }
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_to_int8(const float *x, size_t count, float inverse, int32_t zero,
                                         int8_t *out) {
    AQ_SIMD_EXACT_BODY
    const __m256 low = _mm256_set1_ps((float)(-128 - zero));
    const __m256 high = _mm256_set1_ps((float)(127 - zero));
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        __m256 value = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse));
        __m256i code;
        __m128i half;
        value = _mm256_min_ps(_mm256_max_ps(value, low), high); /* a NaN becomes `low` */
        code = _mm256_add_epi32(_mm256_cvtps_epi32(value), _mm256_set1_epi32(zero));
        half = _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
        _mm_storel_epi64((__m128i *)(void *)(out + i), _mm_packs_epi16(half, half));
    }
    aq_scalar_to_int8(x + i, count - i, inverse, zero, out + i);
}

/* 8 rows of 8 words to every other eight of `out`. */
AQ_AVX2_INLINE static inline void aq_avx2_turn(const uint32_t *in, size_t stride, uint32_t *out) {
    const uint8_t *rows[8];
    __m256i turned[8];
    size_t i;
    for (i = 0; i < 8; i++) {
        rows[i] = (const uint8_t *)(in + i * stride);
    }
    aq_avx2_words8(rows, turned);
    for (i = 0; i < 8; i++) {
        _mm256_storeu_si256((__m256i *)(void *)(out + 16 * i), turned[i]);
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_transpose(const uint32_t *in, size_t stride, size_t count,
                                           uint32_t *out) {
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        aq_avx2_turn(in + i, stride, out + 16 * i);
        aq_avx2_turn(in + 8 * stride + i, stride, out + 16 * i + 8);
    }
    aq_scalar_transpose(in + i, stride, count - i, out + 16 * i);
}

/* Eight of the rows: those that begin at `at`. */
AQ_AVX2_INLINE static inline void aq_avx2_combine8(const aq_linear_combine *job, size_t at,
                                                   float *acc) {
    AQ_SIMD_EXACT_BODY
    const __m256i zero = _mm256_set1_epi32(job->zero);
    __m256 scaled = _mm256_loadu_ps(acc + at), shifted = _mm256_loadu_ps(acc + 16 + at);
    const float *params = job->params + at;
    size_t group;
    for (group = 0; group < job->groups; group++, params += 32) {
        const int32_t sum = job->sums[group];
        __m256i dots = _mm256_loadu_si256(
            (const __m256i *)(const void *)(job->dots + 16 * group + at));
        dots = _mm256_sub_epi32(dots, _mm256_set1_epi32(job->half * sum));
        if (job->zero != 0) {
            dots = _mm256_sub_epi32(
                dots, _mm256_mullo_epi32(zero, _mm256_loadu_si256((const __m256i *)(const void *)(
                                                   job->codes + 16 * group + at))));
        }
        scaled = _mm256_add_ps(scaled, _mm256_mul_ps(_mm256_loadu_ps(params),
                                                     _mm256_cvtepi32_ps(dots)));
        shifted = _mm256_add_ps(shifted, _mm256_mul_ps(_mm256_loadu_ps(params + 16),
                                                       _mm256_set1_ps((float)sum)));
    }
    _mm256_storeu_ps(acc + at, scaled);
    _mm256_storeu_ps(acc + 16 + at, shifted);
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_combine(const aq_linear_combine *job, float *acc) {
    aq_avx2_combine8(job, 0, acc);
    aq_avx2_combine8(job, 8, acc);
}

#endif /* AQ_HAVE_AVX2 */
