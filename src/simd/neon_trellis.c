/* The search of the trellis code on NEON: 8 states at once. */
#include "neon.h"
#include "trellis.h"

#if defined(AQ_HAVE_NEON)

/* The costs of 8 states from `state` on, a multiple of 8. */
AQ_NEON_INLINE static inline uint16x8_t aq_neon_trellis_cost(const int16_t *values,
                                                             const uint16_t *least, size_t state,
                                                             uint32_t bits, int16x8_t target) {
    int16x8_t distance = vsubq_s16(target, vld1q_s16(values + state));
    const uint16_t *from = least + (state >> bits);
    uint16x8_t before = vdupq_n_u16(from[0]);
    if (bits == 2) {
        before = vcombine_u16(vdup_n_u16(from[0]), vdup_n_u16(from[1]));
    }
    if (bits == 4) {
        distance = vminq_s16(vabsq_s16(distance), vdupq_n_s16(255));
    }
    return vqaddq_u16(before, vreinterpretq_u16_s16(vmulq_s16(distance, distance)));
}

/* One row; returns the least costs of all, a lane each. */
AQ_NEON_INLINE static inline uint16x8_t aq_neon_trellis_row(const int16_t *values,
                                                            const uint16_t *least, size_t ends,
                                                            uint32_t bits, int16_t target,
                                                            uint16_t *out, uint8_t *choices) {
    const int16x8_t aim = vdupq_n_s16(target);
    uint16x8_t low = vdupq_n_u16(65535u);
    size_t u;
    uint32_t i;
    for (u = 0; u < ends; u += 8) {
        uint16x8_t best = aq_neon_trellis_cost(values, least, u, bits, aim);
        uint16x8_t choice = vdupq_n_u16(0);
        for (i = 1; i < 1u << bits; i++) {
            uint16x8_t cost = aq_neon_trellis_cost(values, least, u + i * ends, bits, aim);
            choice = vbslq_u16(vcltq_u16(cost, best), vdupq_n_u16((uint16_t)i), choice);
            best = vminq_u16(best, cost);
        }
        low = vminq_u16(low, best);
        vst1q_u16(out + u, best);
        vst1_u8(choices + u, vmovn_u16(choice));
    }
    return low;
}

AQ_NEON_INLINE static inline void aq_neon_trellis_rows(const aq_trellis_search *search,
                                                       const int16_t *targets, size_t count,
                                                       uint16_t *least, uint8_t *choices,
                                                       uint32_t bits) {
    const size_t ends = (size_t)1 << (search->state_bits - bits);
    uint16_t *from = least, *to = search->costs, *swap;
    size_t u;
    while (count--) {
        uint16x8_t low = aq_neon_trellis_row(search->values, from, ends, bits, targets[count], to,
                                             choices + count * ends);
        if (count % 8 == 0) {
            low = vdupq_n_u16(vminvq_u16(low));
            for (u = 0; u < ends; u += 8) {
                vst1q_u16(to + u, vsubq_u16(vld1q_u16(to + u), low));
            }
        }
        swap = from;
        from = to;
        to = swap;
    }
    if (from != least) {
        memcpy(least, from, ends * sizeof *least);
    }
}

AQ_SIMD_LIB void aq_neon_trellis_search(const aq_trellis_search *search, const int16_t *targets,
                                        size_t count, uint16_t *least, uint8_t *choices) {
    if (search->bits == 2) {
        aq_neon_trellis_rows(search, targets, count, least, choices, 2);
    } else if (search->bits == 3) {
        aq_neon_trellis_rows(search, targets, count, least, choices, 3);
    } else {
        aq_neon_trellis_rows(search, targets, count, least, choices, 4);
    }
}

#endif
