/* AVX2 kernels: the Walsh-Hadamard transform in place. */
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

/* The steps 1, 2 and 4 of eight values. The upper of each pair is negated before the sum, which rounds
 * as the difference does. */
AQ_AVX2_INLINE static inline __m256 aq_avx2_hadamard8(__m256 x) {
    AQ_SIMD_EXACT_BODY
    const __m256 one = _mm256_castsi256_ps(_mm256_set1_epi64x(INT64_MIN));
    const __m256 two = _mm256_setr_ps(0.0f, 0.0f, -0.0f, -0.0f, 0.0f, 0.0f, -0.0f, -0.0f);
    const __m256 four = _mm256_setr_ps(0.0f, 0.0f, 0.0f, 0.0f, -0.0f, -0.0f, -0.0f, -0.0f);
    x = _mm256_add_ps(_mm256_permute_ps(x, 0xB1), _mm256_xor_ps(x, one));
    x = _mm256_add_ps(_mm256_permute_ps(x, 0x4E), _mm256_xor_ps(x, two));
    return _mm256_add_ps(_mm256_permute2f128_ps(x, x, 0x01), _mm256_xor_ps(x, four));
}

/* The steps `step` and 2·step of 4·step values. */
AQ_AVX2_INLINE static inline void aq_avx2_hadamard_two(float *x, size_t step) {
    AQ_SIMD_EXACT_BODY
    size_t i;
    for (i = 0; i < step; i += 8) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + step + i);
        __m256 c = _mm256_loadu_ps(x + 2 * step + i), d = _mm256_loadu_ps(x + 3 * step + i);
        __m256 sum = _mm256_add_ps(a, b), other = _mm256_add_ps(c, d);
        __m256 difference = _mm256_sub_ps(a, b), rest = _mm256_sub_ps(c, d);
        _mm256_storeu_ps(x + i, _mm256_add_ps(sum, other));
        _mm256_storeu_ps(x + step + i, _mm256_add_ps(difference, rest));
        _mm256_storeu_ps(x + 2 * step + i, _mm256_sub_ps(sum, other));
        _mm256_storeu_ps(x + 3 * step + i, _mm256_sub_ps(difference, rest));
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_hadamard(float *x, size_t count, float scale) {
    AQ_SIMD_EXACT_BODY
    __m256 factor = _mm256_set1_ps(scale);
    size_t step, i;
    if (count < 8) {
        aq_scalar_hadamard(x, count, scale);
        return;
    }
    for (i = 0; i < count; i += 8) {
        _mm256_storeu_ps(x + i, aq_avx2_hadamard8(_mm256_loadu_ps(x + i)));
    }
    for (step = 8; 4 * step <= count; step *= 4) {
        for (i = 0; i < count; i += 4 * step) {
            aq_avx2_hadamard_two(x + i, step);
        }
    }
    for (i = 0; step < count && i < step; i += 8) {
        __m256 first = _mm256_loadu_ps(x + i), second = _mm256_loadu_ps(x + step + i);
        _mm256_storeu_ps(x + i, _mm256_add_ps(first, second));
        _mm256_storeu_ps(x + step + i, _mm256_sub_ps(first, second));
    }
    for (i = 0; i < count; i += 8) {
        _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), factor));
    }
}

#endif /* AQ_HAVE_AVX2 */
