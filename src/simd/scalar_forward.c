/* Scalar kernels of the forward pass. */
#include "forward.h"

AQ_SIMD_EXACT static float aq_scalar_row_product(const float *w, const float *x, size_t count) {
    AQ_SIMD_EXACT_BODY
    float lane[AQ_SIMD_LANES] = {0.0f};
    size_t i, j;
    for (i = 0; i + AQ_SIMD_LANES <= count; i += AQ_SIMD_LANES) {
        for (j = 0; j < AQ_SIMD_LANES; j++) {
            lane[j] += w[i + j] * x[i + j];
        }
    }
    for (j = 0; i + j < count; j++) {
        lane[j] += w[i + j] * x[i + j];
    }
    return aq_scalar_fold(lane);
}

AQ_SIMD_LIB void aq_scalar_product(const float *w, size_t w_stride, size_t rows, const float *x,
                                   size_t x_stride, size_t tokens, size_t count, float *y,
                                   size_t y_stride) {
    size_t token, row;
    for (token = 0; token < tokens; token++) {
        for (row = 0; row < rows; row++) {
            y[token * y_stride + row] +=
                aq_scalar_row_product(w + row * w_stride, x + token * x_stride, count);
        }
    }
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_scalar_to_int8(const float *x, size_t count, float inverse,
                                                 int32_t zero, int8_t *out) {
    AQ_SIMD_EXACT_BODY
    const float low = (float)(-128 - zero), high = (float)(127 - zero);
    const float magic = 12582912.0f; /* 1.5·2^23: the sum's low bits are the rounded integer */
    size_t i;
    for (i = 0; i < count; i++) {
        float value = x[i] * inverse;
        uint32_t bits;
        value = value > low ? value : low; /* a NaN becomes `low` */
        value = value < high ? value : high;
        value += magic;
        memcpy(&bits, &value, sizeof bits);
        out[i] = (int8_t)((int32_t)(bits & 0x7FFFFFu) - 0x400000 + zero);
    }
}

AQ_SIMD_LIB void aq_scalar_transpose(const uint32_t *in, size_t stride, size_t count,
                                     uint32_t *out) {
    size_t i, row;
    for (i = 0; i < count; i++) {
        for (row = 0; row < AQ_LINEAR_ROWS; row++) {
            out[i * AQ_LINEAR_ROWS + row] = in[row * stride + i];
        }
    }
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_scalar_combine(const aq_linear_combine *job, float *acc) {
    AQ_SIMD_EXACT_BODY
    const float *params = job->params;
    size_t group, row;
    for (group = 0; group < job->groups; group++, params += 2 * AQ_LINEAR_ROWS) {
        const int32_t *dots = job->dots + group * AQ_LINEAR_ROWS;
        int32_t sum = job->sums[group], less = job->half * sum;
        float wide = (float)sum;
        for (row = 0; row < AQ_LINEAR_ROWS; row++) {
            int32_t dot = dots[row] - less;
            if (job->zero != 0) {
                dot -= job->zero * job->codes[group * AQ_LINEAR_ROWS + row];
            }
            acc[row] += params[row] * (float)dot;
            acc[AQ_LINEAR_ROWS + row] += params[AQ_LINEAR_ROWS + row] * wide;
        }
    }
}
