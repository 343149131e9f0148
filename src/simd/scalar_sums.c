/* Scalar kernels: passes that only look: the range of each group, sums over pairs of values. */
#include "simd.h"

AQ_SIMD_LIB void aq_scalar_range(const float *x, size_t count, size_t group, aq_simd_range *out) {
    size_t begin, i;
    for (begin = 0; begin < count; begin += group, out++) {
        size_t end = count - begin < group ? count : begin + group;
        float low = x[begin], high = x[begin];
        uint32_t absmax = 0;
        for (i = begin; i < end; i++) {
            uint32_t bits;
            memcpy(&bits, &x[i], sizeof bits);
            bits &= 0x7FFFFFFFu;
            absmax = bits > absmax ? bits : absmax;
            low = x[i] < low ? x[i] : low;
            high = x[i] > high ? x[i] : high;
        }
        out->low = low;
        out->high = high;
        out->absmax = absmax;
    }
}

AQ_SIMD_EXACT AQ_SIMD_LIB float aq_scalar_fold(float *lane) {
    AQ_SIMD_EXACT_BODY
    size_t half, i;
    for (half = AQ_SIMD_LANES / 2; half > 0; half /= 2) {
        for (i = 0; i < half; i++) {
            lane[i] += lane[i + half];
        }
    }
    return lane[0];
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_scalar_compare(const float *a, const float *b, size_t count,
                                                 aq_simd_sums *out) {
    AQ_SIMD_EXACT_BODY
    float dot[AQ_SIMD_LANES] = {0}, first[AQ_SIMD_LANES] = {0}, second[AQ_SIMD_LANES] = {0};
    float error[AQ_SIMD_LANES] = {0}, most = 0.0f;
    size_t i, lane, lanes;
    for (i = 0; i < count; i += AQ_SIMD_LANES) {
        lanes = count - i < AQ_SIMD_LANES ? count - i : AQ_SIMD_LANES;
        for (lane = 0; lane < lanes; lane++) {
            float x = a[i + lane], y = b[i + lane], difference = x - y;
            float magnitude = difference < 0.0f ? 0.0f - difference : difference;
            dot[lane] += x * y;
            first[lane] += x * x;
            second[lane] += y * y;
            error[lane] += difference * difference;
            most = magnitude > most ? magnitude : most;
        }
    }
    out->dot = aq_scalar_fold(dot);
    out->first = aq_scalar_fold(first);
    out->second = aq_scalar_fold(second);
    out->error = aq_scalar_fold(error);
    out->max_error = most;
}
