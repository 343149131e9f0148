/* Scalar kernels: the Walsh-Hadamard transform in place. */
#include "simd.h"

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_scalar_hadamard(float *x, size_t count, float scale) {
    AQ_SIMD_EXACT_BODY
    size_t step, begin, i;
    for (step = 1; step < count; step *= 2) {
        for (begin = 0; begin < count; begin += 2 * step) {
            float *low = x + begin, *high = low + step;
            for (i = 0; i < step; i++) {
                float first = low[i], second = high[i];
                low[i] = first + second;
                high[i] = first - second;
            }
        }
    }
    for (i = 0; i < count; i++) {
        x[i] *= scale;
    }
}
