/* NEON kernels: the range of each group, sums over pairs of values. */
#include "neon.h"

#if defined(AQ_HAVE_NEON)

static void aq_neon_range_group(const float *x, size_t count, aq_simd_range *out) {
    float32x4_t low = vdupq_n_f32(x[0]), high = low;
    uint32x4_t most = vdupq_n_u32(0);
    size_t i;
    for (i = 0; i < count; i += 4) {
        float32x4_t value;
        uint32x4_t bits;
        if (count - i >= 4) {
            value = vld1q_f32(x + i);
        } else { /* the first value once more */
            float rest[4];
            vst1q_f32(rest, vdupq_n_f32(x[0]));
            memcpy(rest, x + i, (count - i) * sizeof *rest);
            value = vld1q_f32(rest);
        }
        bits = vbicq_u32(vreinterpretq_u32_f32(value), vdupq_n_u32(0x80000000u));
        most = vmaxq_u32(most, bits);
        low = vminq_f32(low, value);
        high = vmaxq_f32(high, value);
    }
    out->low = vminvq_f32(low);
    out->high = vmaxvq_f32(high);
    out->absmax = vmaxvq_u32(most);
}

/* A group with a NaN is left to the scalar code, which passes over all but a first one. */
AQ_SIMD_LIB void aq_neon_range(const float *x, size_t count, size_t group, aq_simd_range *out) {
    size_t begin;
    for (begin = 0; begin < count; begin += group, out++) {
        size_t length = count - begin < group ? count - begin : group;
        aq_neon_range_group(x + begin, length, out);
        if (out->absmax > 0x7F800000u) {
            aq_scalar_range(x + begin, length, length, out);
        }
    }
}

/* Positive BF16 are ordered as signed integers are; negative ones, without sign, above all positive
 * ones and by their magnitude. */
static void aq_neon_range_group16(const uint8_t *in, size_t count, aq_simd_range *out) {
    uint16_t first;
    memcpy(&first, in, sizeof first);
    uint16x8_t least = vdupq_n_u16(first), most = least;
    int16x8_t positive = vreinterpretq_s16_u16(least);
    size_t i;
    for (i = 0; i < count; i += 8) {
        uint16_t eight[8];
        uint16x8_t halves;
        vst1q_u16(eight, vdupq_n_u16(first)); /* once more, for what is missing */
        memcpy(eight, in + 2 * i, 2 * (count - i < 8 ? count - i : 8));
        halves = vld1q_u16(eight);
        least = vminq_u16(least, halves);
        most = vmaxq_u16(most, halves);
        positive = vmaxq_s16(positive, vreinterpretq_s16_u16(halves));
    }
    uint32_t low = vmaxvq_u16(most), high = (uint16_t)vmaxvq_s16(positive);
    low = low & 0x8000u ? low : vminvq_u16(least);
    high = high & 0x8000u ? vminvq_u16(least) : high;
    out->low = aq_simd_float(low << 16);
    out->high = aq_simd_float(high << 16);
    low &= 0x7FFFu;
    high &= 0x7FFFu;
    out->absmax = (low > high ? low : high) << 16;
}

AQ_SIMD_LIB void aq_neon_range_bf16(const void *in, size_t count, size_t group,
                                    aq_simd_range *out) {
    const uint8_t *from = (const uint8_t *)in;
    size_t begin;
    for (begin = 0; begin < count; begin += group, out++) {
        aq_neon_range_group16(from + 2 * begin, count - begin < group ? count - begin : group, out);
    }
}

typedef struct aq_neon_compare_sums {
    aq_neon_lanes dot, first, second, error;
    float32x4_t most;
} aq_neon_compare_sums;

AQ_NEON_INLINE static inline void aq_neon_compare_four(aq_neon_compare_sums *sums, size_t q,
                                                       float32x4_t a, float32x4_t b) {
    AQ_SIMD_EXACT_BODY
    float32x4_t difference = vsubq_f32(a, b);
    sums->dot.q[q] = vaddq_f32(sums->dot.q[q], vmulq_f32(a, b));
    sums->first.q[q] = vaddq_f32(sums->first.q[q], vmulq_f32(a, a));
    sums->second.q[q] = vaddq_f32(sums->second.q[q], vmulq_f32(b, b));
    sums->error.q[q] = vaddq_f32(sums->error.q[q], vmulq_f32(difference, difference));
    sums->most = vmaxnmq_f32(sums->most, vabsq_f32(difference));
}

AQ_NEON_INLINE static inline void aq_neon_compare_step(aq_neon_compare_sums *sums, const float *a,
                                                       const float *b) {
    aq_neon_compare_four(sums, 0, vld1q_f32(a), vld1q_f32(b));
    aq_neon_compare_four(sums, 1, vld1q_f32(a + 4), vld1q_f32(b + 4));
    aq_neon_compare_four(sums, 2, vld1q_f32(a + 8), vld1q_f32(b + 8));
    aq_neon_compare_four(sums, 3, vld1q_f32(a + 12), vld1q_f32(b + 12));
}

/* Zeros behind the end change no sum: none is ever −0. */
AQ_SIMD_EXACT AQ_SIMD_LIB void aq_neon_compare(const float *a, const float *b, size_t count,
                                               aq_simd_sums *out) {
    aq_neon_compare_sums sums;
    size_t i;
    aq_neon_clear(&sums.dot);
    aq_neon_clear(&sums.first);
    aq_neon_clear(&sums.second);
    aq_neon_clear(&sums.error);
    sums.most = vdupq_n_f32(0.0f);
    for (i = 0; i + AQ_SIMD_LANES <= count; i += AQ_SIMD_LANES) {
        aq_neon_compare_step(&sums, a + i, b + i);
    }
    if (i < count) {
        float rest_a[AQ_SIMD_LANES] = {0}, rest_b[AQ_SIMD_LANES] = {0};
        memcpy(rest_a, a + i, (count - i) * sizeof *a);
        memcpy(rest_b, b + i, (count - i) * sizeof *b);
        aq_neon_compare_step(&sums, rest_a, rest_b);
    }
    out->dot = aq_neon_fold(&sums.dot);
    out->first = aq_neon_fold(&sums.first);
    out->second = aq_neon_fold(&sums.second);
    out->error = aq_neon_fold(&sums.error);
    out->max_error = vmaxvq_f32(sums.most);
}

#endif
