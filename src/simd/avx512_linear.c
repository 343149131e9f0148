/* AVX-512 kernels: the update of a panel. */
#include "x86.h"

#if defined(AQ_HAVE_AVX512)
AQ_X86_BEGIN

/* Two registers of a column, and what one step does to them. */
#define AQ_LOAD(j) \
    __m512 low##j = _mm512_loadu_ps(c + 32 * j), high##j = _mm512_loadu_ps(c + 32 * j + 16)
#define AQ_STEP(j)                                       \
    factor = _mm512_set1_ps(b[j]);                       \
    low##j = _mm512_fnmadd_ps(low, factor, low##j);      \
    high##j = _mm512_fnmadd_ps(high, factor, high##j)
#define AQ_STORE(j)                         \
    _mm512_storeu_ps(c + 32 * j, low##j);   \
    _mm512_storeu_ps(c + 32 * j + 16, high##j)

AQ_AVX512 static void aq_avx512_update_strip(float *c, const float *a, const float *b,
                                             size_t b_step, size_t depth) {
    size_t k;
    AQ_LOAD(0); AQ_LOAD(1); AQ_LOAD(2); AQ_LOAD(3);
    AQ_LOAD(4); AQ_LOAD(5); AQ_LOAD(6); AQ_LOAD(7);
    for (k = 0; k < depth; k++, a += 32, b += b_step) {
        __m512 low = _mm512_loadu_ps(a), high = _mm512_loadu_ps(a + 16), factor;
        AQ_STEP(0); AQ_STEP(1); AQ_STEP(2); AQ_STEP(3);
        AQ_STEP(4); AQ_STEP(5); AQ_STEP(6); AQ_STEP(7);
    }
    AQ_STORE(0); AQ_STORE(1); AQ_STORE(2); AQ_STORE(3);
    AQ_STORE(4); AQ_STORE(5); AQ_STORE(6); AQ_STORE(7);
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_update(float *c, const float *a, const float *b,
                                            size_t b_step, size_t depth, size_t columns) {
    size_t j;
    if (columns == AQ_SIMD_STRIP) {
        aq_avx512_update_strip(c, a, b, b_step, depth);
        return;
    }
    for (j = 0; j < columns; j++, c += 32, b++) {
        size_t k;
        AQ_LOAD(0);
        for (k = 0; k < depth; k++) {
            __m512 low = _mm512_loadu_ps(a + 32 * k), high = _mm512_loadu_ps(a + 32 * k + 16);
            __m512 factor = _mm512_set1_ps(b[k * b_step]);
            low0 = _mm512_fnmadd_ps(low, factor, low0);
            high0 = _mm512_fnmadd_ps(high, factor, high0);
        }
        AQ_STORE(0);
    }
}

#undef AQ_LOAD
#undef AQ_STEP
#undef AQ_STORE
AQ_X86_END
#endif /* AQ_HAVE_AVX512 */
