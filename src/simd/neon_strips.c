/* NEON kernels: sixteen strips of sixteen weights, four registers a step. */
#include "neon.h"

#if defined(AQ_HAVE_NEON)

/* Weights first … first + 3 of four strips from `x` on, to four lanes of `out`. */
AQ_NEON_INLINE static inline void aq_neon_turn4(const float *x, float *out) {
    float32x4x2_t ab = vtrnq_f32(vld1q_f32(x), vld1q_f32(x + 16));
    float32x4x2_t cd = vtrnq_f32(vld1q_f32(x + 32), vld1q_f32(x + 48));
    vst1q_f32(out, vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0])));
    vst1q_f32(out + 16, vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1])));
    vst1q_f32(out + 32, vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0])));
    vst1q_f32(out + 48, vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1])));
}

static void aq_neon_turn16(const float *x, float *out) {
    size_t strip, step;
    for (strip = 0; strip < 16; strip += 4) {
        for (step = 0; step < 16; step += 4) {
            aq_neon_turn4(x + 16 * strip + step, out + 16 * step + strip);
        }
    }
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_neon_strips_load(const float *x, const float *weights,
                                                   aq_simd_strips *out) {
    AQ_SIMD_EXACT_BODY
    size_t lane, i;
    aq_neon_turn16(x, out->x);
    out->weighted = weights != NULL;
    if (weights) {
        aq_neon_turn16(weights, out->weights);
    }
    for (lane = 0; lane < 16; lane += 4) {
        float32x4_t low = vld1q_f32(out->x + lane), high = low;
        float32x4_t total = vdupq_n_f32(0.0f), sum = total, square = total;
        for (i = lane; i < 256; i += 16) {
            float32x4_t value = vld1q_f32(out->x + i), product = value;
            low = vminq_f32(value, low);
            high = vmaxq_f32(value, high);
            if (weights) {
                float32x4_t weight = vld1q_f32(out->weights + i);
                product = vmulq_f32(weight, value);
                total = vaddq_f32(total, weight);
            }
            sum = vaddq_f32(sum, product);
            square = vaddq_f32(square, vmulq_f32(product, value));
        }
        vst1q_f32(out->low + lane, low);
        vst1q_f32(out->high + lane, high);
        vst1q_f32(out->weight + lane, weights ? total : vdupq_n_f32(16.0f));
        vst1q_f32(out->sum + lane, sum);
        vst1q_f32(out->square + lane, square);
    }
}

AQ_NEON_INLINE static inline float32x4_t aq_neon_strip_code(float32x4_t x, float32x4_t base,
                                                            float32x4_t inverse,
                                                            float32x4_t most) {
    AQ_SIMD_EXACT_BODY
    float32x4_t code = vmulq_f32(vsubq_f32(x, base), inverse);
    return vrndnq_f32(vminq_f32(vmaxq_f32(code, vdupq_n_f32(0.0f)), most));
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_neon_strips_sums(aq_simd_strips *strips, float most) {
    AQ_SIMD_EXACT_BODY
    const float32x4_t top = vdupq_n_f32(most);
    size_t lane, i;
    for (lane = 0; lane < 16; lane += 4) {
        float32x4_t base = vld1q_f32(strips->base + lane);
        float32x4_t inverse = vld1q_f32(strips->inverse + lane);
        float32x4_t code = vdupq_n_f32(0.0f), code2 = code, cross = code;
        for (i = lane; i < 256; i += 16) {
            float32x4_t x = vld1q_f32(strips->x + i);
            float32x4_t c = aq_neon_strip_code(x, base, inverse, top), product = c;
            if (strips->weighted) {
                product = vmulq_f32(vld1q_f32(strips->weights + i), c);
            }
            code = vaddq_f32(code, product);
            code2 = vaddq_f32(code2, vmulq_f32(product, c));
            cross = vaddq_f32(cross, vmulq_f32(product, x));
        }
        vst1q_f32(strips->code + lane, code);
        vst1q_f32(strips->code2 + lane, code2);
        vst1q_f32(strips->cross + lane, cross);
    }
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_neon_strips_codes(const aq_simd_strips *strips, float most,
                                                    const float *x, uint8_t *codes) {
    AQ_SIMD_EXACT_BODY
    const float32x4_t top = vdupq_n_f32(most);
    size_t i, part;
    for (i = 0; i < 16; i++) {
        float32x4_t base = vdupq_n_f32(strips->base[i]), inverse = vdupq_n_f32(strips->inverse[i]);
        uint16x4_t half[4];
        for (part = 0; part < 4; part++) {
            half[part] = vmovn_u32(vcvtq_u32_f32(
                aq_neon_strip_code(vld1q_f32(x + 16 * i + 4 * part), base, inverse, top)));
        }
        vst1q_u8(codes + 16 * i, vcombine_u8(vmovn_u16(vcombine_u16(half[0], half[1])),
                                             vmovn_u16(vcombine_u16(half[2], half[3]))));
    }
}

#endif
