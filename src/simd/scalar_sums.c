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

/* BF16 with the sign turned, and all other bits too where it was set, are ordered as integers are. */
AQ_SIMD_LIB void aq_scalar_range_bf16(const void *in, size_t count, size_t group,
                                      aq_simd_range *out) {
    const uint8_t *from = (const uint8_t *)in;
    size_t begin, i;
    for (begin = 0; begin < count; begin += group, out++) {
        size_t end = count - begin < group ? count : begin + group;
        uint32_t least = 0xFFFFu, most = 0;
        for (i = begin; i < end; i++) {
            uint16_t half;
            uint32_t place;
            memcpy(&half, from + 2 * i, sizeof half);
            place = half & 0x8000u ? half ^ 0xFFFFu : half ^ 0x8000u;
            least = place < least ? place : least;
            most = place > most ? place : most;
        }
        least = least & 0x8000u ? least ^ 0x8000u : least ^ 0xFFFFu;
        most = most & 0x8000u ? most ^ 0x8000u : most ^ 0xFFFFu;
        out->low = aq_simd_float(least << 16);
        out->high = aq_simd_float(most << 16);
        least &= 0x7FFFu;
        most &= 0x7FFFu;
        out->absmax = (least > most ? least : most) << 16;
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

typedef struct aq_compare_lanes {
    float dot[AQ_SIMD_LANES], first[AQ_SIMD_LANES], second[AQ_SIMD_LANES], error[AQ_SIMD_LANES];
    float most[AQ_SIMD_LANES];
} aq_compare_lanes;

AQ_SIMD_EXACT static inline void aq_compare_step(aq_compare_lanes *lanes, const float *a,
                                                 const float *b, size_t lane) {
    AQ_SIMD_EXACT_BODY
    float x = a[lane], y = b[lane], difference = x - y;
    float magnitude = difference < 0.0f ? 0.0f - difference : difference;
    lanes->dot[lane] += x * y;
    lanes->first[lane] += x * x;
    lanes->second[lane] += y * y;
    lanes->error[lane] += difference * difference;
    lanes->most[lane] = magnitude > lanes->most[lane] ? magnitude : lanes->most[lane];
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_scalar_compare(const float *a, const float *b, size_t count,
                                                 aq_simd_sums *out) {
    AQ_SIMD_EXACT_BODY
    aq_compare_lanes lanes = {{0}, {0}, {0}, {0}, {0}};
    size_t i, lane;
    for (i = 0; i + AQ_SIMD_LANES <= count; i += AQ_SIMD_LANES) {
        for (lane = 0; lane < AQ_SIMD_LANES; lane++) {
            aq_compare_step(&lanes, a + i, b + i, lane);
        }
    }
    for (lane = 0; i + lane < count; lane++) {
        aq_compare_step(&lanes, a + i, b + i, lane);
    }
    out->dot = aq_scalar_fold(lanes.dot);
    out->first = aq_scalar_fold(lanes.first);
    out->second = aq_scalar_fold(lanes.second);
    out->error = aq_scalar_fold(lanes.error);
    out->max_error = 0.0f;
    for (lane = 0; lane < AQ_SIMD_LANES; lane++) {
        out->max_error = lanes.most[lane] > out->max_error ? lanes.most[lane] : out->max_error;
    }
}
