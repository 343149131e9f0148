/* NEON kernels of the forward pass. */
#include "forward.h"
#include "neon.h"

#if defined(AQ_HAVE_NEON)

AQ_NEON_INLINE static inline void aq_neon_multiply(aq_neon_lanes *sum, const float *w,
                                                   const float *x) {
    AQ_SIMD_EXACT_BODY
    size_t j;
    for (j = 0; j < 4; j++) {
        sum->q[j] = vaddq_f32(sum->q[j], vmulq_f32(vld1q_f32(w + 4 * j), vld1q_f32(x + 4 * j)));
    }
}

/* Two rows by two tokens. */
AQ_SIMD_EXACT static void aq_neon_product4(const float *w0, const float *w1, const float *x0,
                                           const float *x1, size_t count, float *folded) {
    aq_neon_lanes sum[4];
    float rest[4][16];
    size_t i;
    for (i = 0; i < 4; i++) {
        aq_neon_clear(&sum[i]);
    }
    for (i = 0; i + 16 <= count; i += 16) {
        aq_neon_multiply(&sum[0], w0 + i, x0 + i);
        aq_neon_multiply(&sum[1], w1 + i, x0 + i);
        aq_neon_multiply(&sum[2], w0 + i, x1 + i);
        aq_neon_multiply(&sum[3], w1 + i, x1 + i);
    }
    if (i < count) { /* zeros behind the last column */
        memset(rest, 0, sizeof rest);
        memcpy(rest[0], w0 + i, (count - i) * sizeof *w0);
        memcpy(rest[1], w1 + i, (count - i) * sizeof *w0);
        memcpy(rest[2], x0 + i, (count - i) * sizeof *w0);
        memcpy(rest[3], x1 + i, (count - i) * sizeof *w0);
        aq_neon_multiply(&sum[0], rest[0], rest[2]);
        aq_neon_multiply(&sum[1], rest[1], rest[2]);
        aq_neon_multiply(&sum[2], rest[0], rest[3]);
        aq_neon_multiply(&sum[3], rest[1], rest[3]);
    }
    for (i = 0; i < 4; i++) {
        folded[i] = aq_neon_fold(&sum[i]);
    }
}

AQ_SIMD_LIB void aq_neon_product(const float *w, size_t w_stride, size_t rows, const float *x,
                                 size_t x_stride, size_t tokens, size_t count, float *y,
                                 size_t y_stride) {
    float folded[4];
    size_t r, t;
    for (t = 0; t < tokens; t += 2) {
        const size_t next_token = t + 1 < tokens ? 1 : 0;
        for (r = 0; r < rows; r += 2) {
            const size_t next_row = r + 1 < rows ? 1 : 0;
            float *to = y + t * y_stride + r;
            aq_neon_product4(w + r * w_stride, w + (r + next_row) * w_stride, x + t * x_stride,
                             x + (t + next_token) * x_stride, count, folded);
            to[0] += folded[0];
            if (next_row) {
                to[1] += folded[1];
            }
            if (next_token) {
                to[y_stride] += folded[2];
            }
            if (next_row && next_token) {
                to[y_stride + 1] += folded[3];
            }
        }
    }
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_neon_to_int8(const float *x, size_t count, float inverse,
                                               int32_t zero, int8_t *out) {
    AQ_SIMD_EXACT_BODY
    const float32x4_t low = vdupq_n_f32((float)(-128 - zero));
    const float32x4_t high = vdupq_n_f32((float)(127 - zero));
    int32x4_t code[2];
    size_t i, j;
    for (i = 0; i + 8 <= count; i += 8) {
        for (j = 0; j < 2; j++) {
            float32x4_t value = vmulq_n_f32(vld1q_f32(x + i + 4 * j), inverse);
            value = vminnmq_f32(vmaxnmq_f32(value, low), high); /* a NaN becomes `low` */
            code[j] = vaddq_s32(vcvtnq_s32_f32(value), vdupq_n_s32(zero));
        }
        vst1_s8(out + i, vmovn_s16(vcombine_s16(vmovn_s32(code[0]), vmovn_s32(code[1]))));
    }
    aq_scalar_to_int8(x + i, count - i, inverse, zero, out + i);
}

/* Four rows of four words to every fourth four of `out`. */
AQ_NEON_INLINE static inline void aq_neon_turn(const uint32_t *in, size_t stride, uint32_t *out) {
    uint32x4_t a = vld1q_u32(in), b = vld1q_u32(in + stride);
    uint32x4_t c = vld1q_u32(in + 2 * stride), d = vld1q_u32(in + 3 * stride);
    uint64x2_t ab_even = vreinterpretq_u64_u32(vtrn1q_u32(a, b));
    uint64x2_t ab_odd = vreinterpretq_u64_u32(vtrn2q_u32(a, b));
    uint64x2_t cd_even = vreinterpretq_u64_u32(vtrn1q_u32(c, d));
    uint64x2_t cd_odd = vreinterpretq_u64_u32(vtrn2q_u32(c, d));
    vst1q_u32(out, vreinterpretq_u32_u64(vtrn1q_u64(ab_even, cd_even)));
    vst1q_u32(out + 16, vreinterpretq_u32_u64(vtrn1q_u64(ab_odd, cd_odd)));
    vst1q_u32(out + 32, vreinterpretq_u32_u64(vtrn2q_u64(ab_even, cd_even)));
    vst1q_u32(out + 48, vreinterpretq_u32_u64(vtrn2q_u64(ab_odd, cd_odd)));
}

AQ_SIMD_LIB void aq_neon_transpose(const uint32_t *in, size_t stride, size_t count, uint32_t *out) {
    size_t i, row;
    for (i = 0; i + 4 <= count; i += 4) {
        for (row = 0; row < AQ_LINEAR_ROWS; row += 4) {
            aq_neon_turn(in + row * stride + i, stride, out + 16 * i + row);
        }
    }
    aq_scalar_transpose(in + i, stride, count - i, out + 16 * i);
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_neon_combine(const aq_linear_combine *job, float *acc) {
    AQ_SIMD_EXACT_BODY
    const int32x4_t zero = vdupq_n_s32(job->zero);
    const float *params = job->params;
    float32x4_t scaled[4], shifted[4];
    size_t group, j;
    for (j = 0; j < 4; j++) {
        scaled[j] = vld1q_f32(acc + 4 * j);
        shifted[j] = vld1q_f32(acc + 16 + 4 * j);
    }
    for (group = 0; group < job->groups; group++, params += 32) {
        const int32_t sum = job->sums[group];
        const int32x4_t less = vdupq_n_s32(job->half * sum);
        const float32x4_t wide = vdupq_n_f32((float)sum);
        for (j = 0; j < 4; j++) {
            int32x4_t dots = vsubq_s32(vld1q_s32(job->dots + 16 * group + 4 * j), less);
            if (job->zero != 0) {
                dots = vsubq_s32(dots,
                                 vmulq_s32(zero, vld1q_s32(job->codes + 16 * group + 4 * j)));
            }
            scaled[j] = vaddq_f32(scaled[j],
                                  vmulq_f32(vld1q_f32(params + 4 * j), vcvtq_f32_s32(dots)));
            shifted[j] = vaddq_f32(shifted[j], vmulq_f32(vld1q_f32(params + 16 + 4 * j), wide));
        }
    }
    for (j = 0; j < 4; j++) {
        vst1q_f32(acc + 4 * j, scaled[j]);
        vst1q_f32(acc + 16 + 4 * j, shifted[j]);
    }
}

#endif /* AQ_HAVE_NEON */
