/* AVX2 and FMA kernels: the update of a panel. */
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

/* Half of a panel's rows and four columns: eight sums, which hide the latency of an FMA. */
#define AQ_LOAD(j) \
    __m256 low##j = _mm256_loadu_ps(c + 32 * j), high##j = _mm256_loadu_ps(c + 32 * j + 8)
#define AQ_STEP(j)                                       \
    factor = _mm256_set1_ps(b[j]);                       \
    low##j = _mm256_fnmadd_ps(low, factor, low##j);      \
    high##j = _mm256_fnmadd_ps(high, factor, high##j)
#define AQ_STORE(j)                         \
    _mm256_storeu_ps(c + 32 * j, low##j);   \
    _mm256_storeu_ps(c + 32 * j + 8, high##j)

AQ_AVX2_FMA static void aq_avx2_update_tile(float *c, const float *a, const float *b,
                                            size_t b_step, size_t depth) {
    size_t k;
    AQ_LOAD(0); AQ_LOAD(1); AQ_LOAD(2); AQ_LOAD(3);
    for (k = 0; k < depth; k++, a += 32, b += b_step) {
        __m256 low = _mm256_loadu_ps(a), high = _mm256_loadu_ps(a + 8), factor;
        AQ_STEP(0); AQ_STEP(1); AQ_STEP(2); AQ_STEP(3);
    }
    AQ_STORE(0); AQ_STORE(1); AQ_STORE(2); AQ_STORE(3);
}

AQ_AVX2_FMA AQ_SIMD_LIB void aq_avx2_update(float *c, const float *a, const float *b,
                                            size_t b_step, size_t depth, size_t columns) {
    size_t half, j;
    for (half = 0; half < 32; half += 16) {
        for (j = 0; j + 4 <= columns; j += 4) {
            aq_avx2_update_tile(c + 32 * j + half, a + half, b + j, b_step, depth);
        }
    }
    for (j = columns / 4 * 4; j < columns; j++) {
        for (half = 0; half < 32; half += 16) {
            float *column = c + 32 * j + half;
            __m256 low = _mm256_loadu_ps(column), high = _mm256_loadu_ps(column + 8);
            size_t k;
            for (k = 0; k < depth; k++) {
                __m256 factor = _mm256_set1_ps(b[k * b_step + j]);
                low = _mm256_fnmadd_ps(_mm256_loadu_ps(a + 32 * k + half), factor, low);
                high = _mm256_fnmadd_ps(_mm256_loadu_ps(a + 32 * k + half + 8), factor, high);
            }
            _mm256_storeu_ps(column, low);
            _mm256_storeu_ps(column + 8, high);
        }
    }
}

#undef AQ_LOAD
#undef AQ_STEP
#undef AQ_STORE
#endif /* AQ_HAVE_AVX2 */
