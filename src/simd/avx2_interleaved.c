/* AVX2 kernels of the forward pass: dots of interleaved codes with INT8 activations. A line of 64 bytes
 * holds four bytes of each of 16 rows: one stream, every lane a row, no sums across a vector. */
#include "forward.h"
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

#define AQ_AVX2_FETCH 2048 /* bytes between what is read and what is fetched */

/* Sums of two products in 16 bits, 8 rows each: of codes below 16, and of upper halves. */
typedef struct aq_avx2_lines {
    __m256i low0, low1, high0, high1;
} aq_avx2_lines;

/* Adds a line; x: the four values of plane 0, those of the next plane 32 bytes further. */
AQ_AVX2_INLINE static inline void aq_avx2_line(aq_avx2_lines *sum, const uint8_t *line, uint32_t bits,
                                               const int8_t *x) {
    const __m256i first = _mm256_loadu_si256((const __m256i *)(const void *)line);
    const __m256i second = _mm256_loadu_si256((const __m256i *)(const void *)(line + 32));
    size_t plane;
    AQ_UNROLL
    for (plane = 0; plane < 8u / bits; plane++) {
        const __m256i four = aq_avx2_four(x + 32 * plane);
        sum->low0 = _mm256_add_epi16(
            sum->low0, _mm256_maddubs_epi16(aq_avx2_plane(first, bits, plane), four));
        sum->low1 = _mm256_add_epi16(
            sum->low1, _mm256_maddubs_epi16(aq_avx2_plane(second, bits, plane), four));
        if (bits == 8) {
            sum->high0 = _mm256_add_epi16(
                sum->high0, _mm256_maddubs_epi16(aq_avx2_plane(first, bits, 1), four));
            sum->high1 = _mm256_add_epi16(
                sum->high1, _mm256_maddubs_epi16(aq_avx2_plane(second, bits, 1), four));
        }
    }
}

/* `count` lines from number `at` on, at most as many as 16 bits hold, all in one eight, added to sum[2] in 32 bits. */
AQ_AVX2_INLINE static inline void aq_avx2_lines_add(const aq_linear_interleaved *job, uint32_t bits,
                                                    size_t at, size_t count, __m256i *sum) {
    const uint8_t *line = job->codes + 64 * at;
    const int8_t *x = job->x + at / 8 * 32 * (8u / bits) + at % 8 * 4;
    const __m256i one = _mm256_set1_epi16(1), upper = _mm256_set1_epi16(16);
    aq_avx2_lines s;
    size_t i;
    s.low0 = s.low1 = s.high0 = s.high1 = _mm256_setzero_si256();
    AQ_UNROLL
    for (i = 0; i < count; i++) {
        _mm_prefetch((const char *)(line + 64 * i + AQ_AVX2_FETCH), _MM_HINT_T0);
        aq_avx2_line(&s, line + 64 * i, bits, x + 4 * i);
    }
    sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(s.low0, one));
    sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(s.low1, one));
    if (bits == 8) {
        sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(s.high0, upper));
        sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(s.high1, upper));
    }
}

/* Sums of the scales' and the mins' parts, 8 rows each. */
typedef struct aq_avx2_gains {
    __m256 scaled0, scaled1, shifted0, shifted1;
} aq_avx2_gains;

/* Eight parameters, F16 or F32. */
AQ_AVX2_INLINE static inline __m256 aq_avx2_params8(const uint8_t *from, size_t bytes) {
    return bytes == 2 ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from))
                      : _mm256_loadu_ps((const float *)(const void *)from);
}

/* What the accumulators gain by the dots of a group. */
AQ_AVX2_INLINE static inline void aq_avx2_gain(const aq_linear_interleaved *job, size_t group,
                                               __m256i first, __m256i second, aq_avx2_gains *acc) {
    AQ_SIMD_EXACT_BODY
    const size_t bytes = job->param_bytes, values = job->values;
    const uint8_t *params = job->params + group * values * 16 * bytes;
    const __m256i total = aq_avx2_four(job->sums + group);
    if (job->half != 0) {
        const __m256i less = _mm256_mullo_epi32(total, _mm256_set1_epi32(job->half));
        first = _mm256_sub_epi32(first, less);
        second = _mm256_sub_epi32(second, less);
    }
    if (job->zero != 0) {
        const __m256i *codes = (const __m256i *)(const void *)(job->codes_turned + 16 * group);
        const __m256i zero = _mm256_set1_epi32(job->zero);
        first = _mm256_sub_epi32(first, _mm256_mullo_epi32(zero, _mm256_loadu_si256(codes)));
        second = _mm256_sub_epi32(second, _mm256_mullo_epi32(zero, _mm256_loadu_si256(codes + 1)));
    }
    acc->scaled0 = _mm256_add_ps(acc->scaled0, _mm256_mul_ps(aq_avx2_params8(params, bytes),
                                                             _mm256_cvtepi32_ps(first)));
    acc->scaled1 = _mm256_add_ps(acc->scaled1, _mm256_mul_ps(aq_avx2_params8(params + 8 * bytes, bytes),
                                                             _mm256_cvtepi32_ps(second)));
    if (values == 2) {
        const __m256 sum = _mm256_cvtepi32_ps(total);
        params += 16 * bytes;
        acc->shifted0 = _mm256_add_ps(acc->shifted0, _mm256_mul_ps(aq_avx2_params8(params, bytes), sum));
        acc->shifted1 = _mm256_add_ps(acc->shifted1,
                                      _mm256_mul_ps(aq_avx2_params8(params + 8 * bytes, bytes), sum));
    }
}

AQ_AVX2_INLINE static inline void aq_avx2_interleaved_of(const aq_linear_interleaved *job,
                                                         uint32_t bits, size_t block) {
    const size_t lines = job->row_bytes / 4, width = job->group * bits / 32;
    aq_avx2_gains acc;
    size_t at, i, group = 0;
    acc.scaled0 = acc.scaled1 = acc.shifted0 = acc.shifted1 = _mm256_setzero_ps();
    for (at = 0; at < lines; at += width, group++) {
        __m256i sum[2];
        sum[0] = sum[1] = _mm256_setzero_si256();
        for (i = 0; i < width && at + i + block <= lines; i += block) {
            aq_avx2_lines_add(job, bits, at + i, block, sum);
        }
        for (; i < width && at + i < lines; i++) { /* the last group may be shorter */
            aq_avx2_lines_add(job, bits, at + i, 1, sum);
        }
        if (job->out) {
            _mm256_storeu_si256((__m256i *)(void *)(job->out + 16 * group), sum[0]);
            _mm256_storeu_si256((__m256i *)(void *)(job->out + 16 * group + 8), sum[1]);
        } else {
            aq_avx2_gain(job, group, sum[0], sum[1], &acc);
        }
    }
    if (!job->out) {
        _mm256_storeu_ps(job->acc, acc.scaled0);
        _mm256_storeu_ps(job->acc + 8, acc.scaled1);
        _mm256_storeu_ps(job->acc + 16, acc.shifted0);
        _mm256_storeu_ps(job->acc + 24, acc.shifted1);
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_interleaved(const aq_linear_interleaved *given) {
    const aq_linear_interleaved own = *given, *job = &own; /* which no store can change */
    switch (job->bits * 1000u + job->group) { /* blocks of 8 steps, at 2 bits of at most 32 */
    case 2032: aq_avx2_interleaved_of(job, 2, 2); break;
    case 2064: aq_avx2_interleaved_of(job, 2, 4); break;
    case 2128:
    case 2256: aq_avx2_interleaved_of(job, 2, 8); break;
    case 4032:
    case 4064:
    case 4128:
    case 4256: aq_avx2_interleaved_of(job, 4, 4); break;
    default: aq_avx2_interleaved_of(job, 8, 8); break;
    }
}

#undef AQ_AVX2_FETCH
#endif /* AQ_HAVE_AVX2 */
