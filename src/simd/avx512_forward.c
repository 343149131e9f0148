/* AVX-512 kernels of the forward pass. */
#include "forward.h"
#include "x86.h"

#if defined(AQ_HAVE_AVX512)
AQ_X86_BEGIN

/* One token's sums over four rows, rows apart by `step`, added to y[0 … rows − 1]. */
AQ_AVX512_INLINE static inline void aq_avx512_gather4(const __m512 *sum, size_t rows, float *y) {
    AQ_SIMD_EXACT_BODY
    __m256 half[4];
    float folded[4];
    size_t i;
    for (i = 0; i < 4; i++) {
        half[i] = _mm256_add_ps(_mm512_castps512_ps256(sum[i]), _mm512_extractf32x8_ps(sum[i], 1));
    }
    _mm_storeu_ps(folded, aq_avx2_fold4(half[0], half[1], half[2], half[3]));
    for (i = 0; i < rows; i++) {
        y[i] += folded[i];
    }
}

/* Four rows by `tokens` tokens, 4 or 1; all rows are read, `rows` of them count. */
AQ_AVX512_INLINE static inline void aq_avx512_product4(const float *const *w, size_t rows,
                                                       const float *x, size_t x_stride,
                                                       size_t tokens, size_t count, float *y,
                                                       size_t y_stride) {
    AQ_SIMD_EXACT_BODY
    __m512 sum[4][4], value[4], weight;
    size_t i, r, t;
    for (t = 0; t < 4; t++) {
        sum[t][0] = sum[t][1] = sum[t][2] = sum[t][3] = value[t] = _mm512_setzero_ps();
    }
    for (i = 0; i < count; i += 16) {
        const __mmask16 lanes = aq_avx512_lanes(count - i);
        AQ_UNROLL
        for (t = 0; t < tokens; t++) {
            value[t] = _mm512_maskz_loadu_ps(lanes, x + t * x_stride + i);
        }
        AQ_UNROLL
        for (r = 0; r < 4; r++) {
            weight = _mm512_maskz_loadu_ps(lanes, w[r] + i);
            AQ_UNROLL
            for (t = 0; t < tokens; t++) {
                sum[t][r] = _mm512_add_ps(sum[t][r], _mm512_mul_ps(weight, value[t]));
            }
        }
    }
    AQ_UNROLL
    for (t = 0; t < tokens; t++) {
        aq_avx512_gather4(sum[t], rows, y + t * y_stride);
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_product(const float *w, size_t w_stride, size_t rows,
                                             const float *x, size_t x_stride, size_t tokens,
                                             size_t count, float *y, size_t y_stride) {
    const float *row[4];
    size_t r, t, i;
    for (t = 0; t < tokens;) {
        const size_t many = tokens - t >= 4 ? 4 : 1;
        for (r = 0; r < rows; r += 4) {
            const size_t n = rows - r < 4 ? rows - r : 4;
            for (i = 0; i < 4; i++) {
                row[i] = w + (r + (i < n ? i : n - 1)) * w_stride;
            }
            if (many == 4) {
                aq_avx512_product4(row, n, x + t * x_stride, x_stride, 4, count,
                                   y + t * y_stride + r, y_stride);
            } else {
                aq_avx512_product4(row, n, x + t * x_stride, x_stride, 1, count,
                                   y + t * y_stride + r, y_stride);
            }
        }
        t += many;
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_to_int8(const float *x, size_t count, float inverse,
                                             int32_t zero, int8_t *out) {
    AQ_SIMD_EXACT_BODY
    const __m512 low = _mm512_set1_ps((float)(-128 - zero));
    const __m512 high = _mm512_set1_ps((float)(127 - zero));
    size_t i;
    for (i = 0; i < count; i += 16) {
        const __mmask16 lanes = aq_avx512_lanes(count - i);
        __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), _mm512_set1_ps(inverse));
        __m512i code;
        value = _mm512_min_ps(_mm512_max_ps(value, low), high); /* a NaN becomes `low` */
        code = _mm512_add_epi32(_mm512_cvtps_epi32(value), _mm512_set1_epi32(zero));
        _mm512_mask_cvtepi32_storeu_epi8(out + i, lanes, code);
    }
}

/* 16 rows of 16 words. */
AQ_AVX512_INLINE static inline void aq_avx512_turn(const uint32_t *in, size_t stride,
                                                   __mmask16 lanes, size_t count, uint32_t *out) {
    __m512i a[16], b[16];
    size_t i;
    AQ_UNROLL
    for (i = 0; i < 16; i++) {
        a[i] = _mm512_maskz_loadu_epi32(lanes, in + i * stride);
    }
    AQ_UNROLL
    for (i = 0; i < 16; i += 2) { /* pairs of rows */
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    AQ_UNROLL
    for (i = 0; i < 16; i += 4) { /* fours of rows: word 4·k + j of them in quarter k of a[i + j] */
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    AQ_UNROLL
    for (i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xDD);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xDD);
    }
    AQ_UNROLL
    for (i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xDD);
        a[i + 4] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xDD);
    }
    AQ_UNROLL
    for (i = 0; i < 16; i++) {
        if (i < count) {
            _mm512_storeu_si512((__m512i *)(void *)(out + 16 * i), a[i]);
        }
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_transpose(const uint32_t *in, size_t stride, size_t count,
                                               uint32_t *out) {
    size_t i;
    for (i = 0; i + 16 <= count; i += 16) {
        aq_avx512_turn(in + i, stride, 0xFFFFu, 16, out + 16 * i);
    }
    if (i < count) {
        aq_avx512_turn(in + i, stride, aq_avx512_lanes(count - i), count - i, out + 16 * i);
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_combine(const aq_linear_combine *job, float *acc) {
    AQ_SIMD_EXACT_BODY
    const __m512i zero = _mm512_set1_epi32(job->zero);
    __m512 scaled = _mm512_loadu_ps(acc), shifted = _mm512_loadu_ps(acc + 16);
    const float *params = job->params;
    size_t group;
    for (group = 0; group < job->groups; group++, params += 32) {
        const int32_t sum = job->sums[group];
        __m512i dots = _mm512_loadu_si512((const __m512i *)(const void *)(job->dots + 16 * group));
        dots = _mm512_sub_epi32(dots, _mm512_set1_epi32(job->half * sum));
        if (job->zero != 0) {
            dots = _mm512_sub_epi32(
                dots, _mm512_mullo_epi32(zero, _mm512_loadu_si512((const __m512i *)(const void *)(
                                                   job->codes + 16 * group))));
        }
        scaled = _mm512_add_ps(scaled, _mm512_mul_ps(_mm512_loadu_ps(params),
                                                     _mm512_cvtepi32_ps(dots)));
        shifted = _mm512_add_ps(shifted, _mm512_mul_ps(_mm512_loadu_ps(params + 16),
                                                       _mm512_set1_ps((float)sum)));
    }
    _mm512_storeu_ps(acc, scaled);
    _mm512_storeu_ps(acc + 16, shifted);
}

AQ_X86_END
#endif /* AQ_HAVE_AVX512 */
