/* Reading trellis codes on NEON: values by table look-ups of 16 bytes, and exact products with 8-bit
 * integers. Columns that are no whole bytes take the scalar way. */
#include "neon.h"
#include "trellis.h"

#if defined(AQ_HAVE_NEON)

typedef struct aq_neon_tables {
    int8x16_t table[3];
    uint8x16_t mix, last; /* last: the bits of a state's third number */
} aq_neon_tables;

AQ_NEON_INLINE static inline int8x16_t aq_neon_value(const aq_neon_tables *tables, uint8x16_t a,
                                                     uint8x16_t b, uint8x16_t c) {
    uint8x16_t fold = veorq_u8(vandq_u8(veorq_u8(a, b), tables->mix), vandq_u8(c, tables->last));
    return vaddq_s8(vaddq_s8(vqtbl1q_s8(tables->table[0], a), vqtbl1q_s8(tables->table[1], b)),
                    vqtbl1q_s8(tables->table[2], fold));
}

AQ_NEON_INLINE static inline uint8x16_t aq_neon_low_four(uint8x16_t bytes) {
    return vandq_u8(bytes, vdupq_n_u8(15));
}

/* The upper two bits of a byte and the lower two of the next one. */
AQ_NEON_INLINE static inline uint8x16_t aq_neon_across(uint8x16_t low, uint8x16_t high) {
    return vorrq_u8(vshrq_n_u8(low, 6), vandq_u8(vshlq_n_u8(high, 2), vdupq_n_u8(12)));
}

/* 2 bits: the 64 rows whose own bits are the first 16 of these 18 bytes. */
static void aq_neon_values_2(const aq_neon_tables *tables, const uint8_t *bytes, int8_t *out) {
    const uint8x16_t v0 = vld1q_u8(bytes), v1 = vld1q_u8(bytes + 1), v2 = vld1q_u8(bytes + 2);
    uint8x16_t at[8]; /* four bits from bit 2·i on */
    int8x16x4_t rows;
    at[0] = aq_neon_low_four(v0);
    at[1] = aq_neon_low_four(vshrq_n_u8(v0, 2));
    at[2] = vshrq_n_u8(v0, 4);
    at[3] = aq_neon_across(v0, v1);
    at[4] = aq_neon_low_four(v1);
    at[5] = aq_neon_low_four(vshrq_n_u8(v1, 2));
    at[6] = vshrq_n_u8(v1, 4);
    at[7] = aq_neon_across(v1, v2);
    rows.val[0] = aq_neon_value(tables, at[0], at[2], at[4]);
    rows.val[1] = aq_neon_value(tables, at[1], at[3], at[5]);
    rows.val[2] = aq_neon_value(tables, at[2], at[4], at[6]);
    rows.val[3] = aq_neon_value(tables, at[3], at[5], at[7]);
    vst4q_s8(out, rows);
}

/* 4 bits: 32 rows. */
static void aq_neon_values_4(const aq_neon_tables *tables, const uint8_t *bytes, int8_t *out) {
    const uint8x16_t v0 = vld1q_u8(bytes), v1 = vld1q_u8(bytes + 1);
    const uint8x16_t a = aq_neon_low_four(v0), b = vshrq_n_u8(v0, 4), c = aq_neon_low_four(v1);
    int8x16x2_t rows;
    rows.val[0] = aq_neon_value(tables, a, b, c);
    rows.val[1] = aq_neon_value(tables, b, c, vshrq_n_u8(v1, 4));
    vst2q_s8(out, rows);
}

/* 3 bits: 16 rows. Eight bits from bit 3·r on, of even rows and of odd ones: two bytes times a power of
 * two move them to the upper one. */
AQ_NEON_INLINE static inline uint8x16_t aq_neon_threes(const uint8_t *bytes) {
    static const uint8_t even[16] = {0, 1, 0, 1, 1, 2, 2, 3, 3, 4, 3, 4, 4, 5, 5, 6};
    static const uint8_t odd[16] = {0, 1, 1, 2, 1, 2, 2, 3, 3, 4, 4, 5, 4, 5, 5, 6};
    static const uint16_t even_shift[8] = {256, 4, 16, 64, 256, 4, 16, 64};
    static const uint16_t odd_shift[8] = {32, 128, 2, 8, 32, 128, 2, 8};
    const uint8x16_t v = vld1q_u8(bytes);
    uint16x8_t a = vmulq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(v, vld1q_u8(even))),
                             vld1q_u16(even_shift));
    uint16x8_t b = vmulq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(v, vld1q_u8(odd))),
                             vld1q_u16(odd_shift));
    return vtrn2q_u8(vreinterpretq_u8_u16(a), vreinterpretq_u8_u16(b));
}

static void aq_neon_values_3(const aq_neon_tables *tables, const uint8_t *bytes, int8_t *out) {
    const uint8x16_t low = aq_neon_threes(bytes), high = aq_neon_threes(bytes + 1);
    vst1q_s8(out, aq_neon_value(tables, aq_neon_low_four(low), vshrq_n_u8(low, 4), high));
}

/* All rows of a column, rounded up to 64. */
static void aq_neon_column(const aq_trellis_code *code, const uint8_t *bytes, size_t height,
                           int8_t *out) {
    const size_t size = height * code->bits / 8;
    aq_neon_tables tables;
    uint8_t ring[192]; /* the column, and itself again */
    size_t i, part;
    for (i = 0; i < sizeof ring; i += part) {
        part = sizeof ring - i < size ? sizeof ring - i : size;
        memcpy(ring + i, bytes, part);
    }
    for (i = 0; i < 3; i++) {
        tables.table[i] = vld1q_s8(code->table[i]);
    }
    tables.mix = vdupq_n_u8((uint8_t)code->mix);
    tables.last = vdupq_n_u8((uint8_t)((1u << (code->state_bits - 8u)) - 1u));
    if (code->bits == 2) {
        for (i = 0; i < height; i += 64) aq_neon_values_2(&tables, ring + i / 4, out + i);
    } else if (code->bits == 3) {
        for (i = 0; i < height; i += 16) aq_neon_values_3(&tables, ring + i / 8 * 3, out + i);
    } else {
        for (i = 0; i < height; i += 32) aq_neon_values_4(&tables, ring + i / 2, out + i);
    }
}

AQ_SIMD_LIB void aq_neon_trellis_values(const aq_trellis_code *code, const uint8_t *codes,
                                        size_t at, size_t height, size_t first, size_t rows,
                                        int8_t *out) {
    int8_t all[AQ_TRELLIS_COLUMN];
    if (height * code->bits % 8) {
        aq_scalar_trellis_values(code, codes, at, height, first, rows, out);
    } else if (rows == AQ_TRELLIS_COLUMN) {
        aq_neon_column(code, codes + at / 8, height, out);
    } else {
        aq_neon_column(code, codes + at / 8, height, all);
        memcpy(out, all + first, rows);
    }
}

/* out += x0·a + x1·b: two products fit 16 bits. */
static void aq_neon_trellis_add(const int8_t *a, const int8_t *b, int8_t x0, int8_t x1,
                                size_t height, int32_t *out) {
    const int8x8_t first = vdup_n_s8(x0), second = vdup_n_s8(x1);
    size_t row = 0;
    for (; row + 8 <= height; row += 8) {
        int16x8_t sum = vmlal_s8(vmull_s8(vld1_s8(a + row), first), vld1_s8(b + row), second);
        vst1q_s32(out + row, vaddw_s16(vld1q_s32(out + row), vget_low_s16(sum)));
        vst1q_s32(out + row + 4, vaddw_s16(vld1q_s32(out + row + 4), vget_high_s16(sum)));
    }
    for (; row < height; row++) {
        out[row] += x0 * a[row] + x1 * b[row];
    }
}

AQ_SIMD_LIB void aq_neon_trellis_dots(const aq_trellis_code *code, const uint8_t *codes,
                                      size_t height, size_t column, size_t count, const int8_t *x,
                                      size_t x_step, size_t tokens, int32_t *out) {
    int8_t values[2][AQ_TRELLIS_COLUMN];
    const size_t ring = height * code->bits;
    size_t i, token;
    memset(out, 0, tokens * height * sizeof *out);
    for (i = 0; i < count; i += 2) {
        const bool both = i + 1 < count;
        aq_neon_trellis_values(code, codes, (column + i) * ring, height, 0, height, values[0]);
        if (both) {
            aq_neon_trellis_values(code, codes, (column + i + 1) * ring, height, 0, height,
                                   values[1]);
        }
        for (token = 0; token < tokens; token++) {
            const int8_t *own = x + token * x_step + i;
            aq_neon_trellis_add(values[0], values[both ? 1 : 0], own[0], both ? own[1] : 0, height,
                                out + token * height);
        }
    }
}

/* ---- weights */

/* 16 columns of 16 rows, turned: line i of `out` has row i. */
AQ_NEON_INLINE static inline void aq_neon_trellis_turn(const int8_t *values, int8x16_t out[16]) {
    int8x16_t other[16], *from = out, *to = other, *swap;
    size_t i, step;
    for (i = 0; i < 16; i++) {
        out[i] = vld1q_s8(values + i * AQ_TRELLIS_COLUMN);
    }
    for (step = 0; step < 4; step++) { /* each doubles how many columns of a row lie together */
        for (i = 0; i < 8; i++) {
            to[2 * i] = vzip1q_s8(from[i], from[i + 8]);
            to[2 * i + 1] = vzip2q_s8(from[i], from[i + 8]);
        }
        swap = from;
        from = to;
        to = swap;
    }
}

AQ_NEON_INLINE static inline void aq_neon_trellis_line(int8x8_t values, float scale, float *out) {
    AQ_SIMD_EXACT_BODY
    int16x8_t wide = vmovl_s8(values);
    vst1q_f32(out, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), scale));
    vst1q_f32(out + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide))), scale));
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_neon_trellis_spread(const int8_t *values, size_t rows,
                                                      size_t columns, const float *scales,
                                                      float *out, size_t stride) {
    AQ_SIMD_EXACT_BODY
    size_t row = 0, i;
    for (; columns == 16 && row + 16 <= rows; row += 16) {
        int8x16_t lines[16];
        aq_neon_trellis_turn(values + row, lines);
        for (i = 0; i < 16; i++) {
            float *to = out + (row + i) * stride;
            aq_neon_trellis_line(vget_low_s8(lines[i]), scales[row + i], to);
            aq_neon_trellis_line(vget_high_s8(lines[i]), scales[row + i], to + 8);
        }
    }
    aq_scalar_trellis_spread(values + row, rows - row, columns, scales + row, out + row * stride,
                             stride);
}

#endif /* AQ_HAVE_NEON */
