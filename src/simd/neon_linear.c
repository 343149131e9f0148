/* NEON kernels: the update of a panel. */
#include "neon.h"

#if defined(AQ_HAVE_NEON)

/* Half of a panel's rows in four registers a column. */
#define AQ_LOAD(j)                                                                        \
    float32x4_t p##j = vld1q_f32(c + 32 * j), q##j = vld1q_f32(c + 32 * j + 4),           \
                r##j = vld1q_f32(c + 32 * j + 8), s##j = vld1q_f32(c + 32 * j + 12)
#define AQ_STEP(j)                            \
    p##j = vfmsq_laneq_f32(p##j, p, four, j); \
    q##j = vfmsq_laneq_f32(q##j, q, four, j); \
    r##j = vfmsq_laneq_f32(r##j, r, four, j); \
    s##j = vfmsq_laneq_f32(s##j, s, four, j)
#define AQ_STORE(j)                   \
    vst1q_f32(c + 32 * j, p##j);      \
    vst1q_f32(c + 32 * j + 4, q##j);  \
    vst1q_f32(c + 32 * j + 8, r##j);  \
    vst1q_f32(c + 32 * j + 12, s##j)

static void aq_neon_update_tile(float *c, const float *a, const float *b, size_t b_step,
                                size_t depth) {
    size_t k;
    AQ_LOAD(0); AQ_LOAD(1); AQ_LOAD(2); AQ_LOAD(3);
    for (k = 0; k < depth; k++, a += 32, b += b_step) {
        float32x4_t p = vld1q_f32(a), q = vld1q_f32(a + 4), r = vld1q_f32(a + 8);
        float32x4_t s = vld1q_f32(a + 12), four = vld1q_f32(b);
        AQ_STEP(0); AQ_STEP(1); AQ_STEP(2); AQ_STEP(3);
    }
    AQ_STORE(0); AQ_STORE(1); AQ_STORE(2); AQ_STORE(3);
}

AQ_SIMD_LIB void aq_neon_update(float *c, const float *a, const float *b, size_t b_step,
                                size_t depth, size_t columns) {
    size_t half, i, j, k;
    for (half = 0; half < 32; half += 16) {
        for (j = 0; j + 4 <= columns; j += 4) {
            aq_neon_update_tile(c + 32 * j + half, a + half, b + j, b_step, depth);
        }
    }
    for (j = columns / 4 * 4; j < columns; j++) {
        for (i = 0; i < 32; i += 4) {
            float32x4_t sum = vld1q_f32(c + 32 * j + i);
            for (k = 0; k < depth; k++) {
                sum = vfmsq_f32(sum, vld1q_f32(a + 32 * k + i), vdupq_n_f32(b[k * b_step + j]));
            }
            vst1q_f32(c + 32 * j + i, sum);
        }
    }
}

#undef AQ_LOAD
#undef AQ_STEP
#undef AQ_STORE
#endif /* AQ_HAVE_NEON */
