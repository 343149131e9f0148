/* Reading trellis codes on AVX2: the windows of 32 rows at once, their values by byte shuffles, and
 * exact products with 8-bit integers. Columns that are no whole bytes take the scalar way. */
#include "trellis.h"
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

/* A column as vectors of 32 bytes, its first bytes again behind its last. */
typedef struct aq_avx2_ring {
    __m256i bytes[5];
    size_t count; /* without the one that is there for what follows the last */
} aq_avx2_ring;

/* How a code is looked up; `offset` is added to all values. */
typedef struct aq_avx2_tables {
    __m256i table[3], mix, last; /* last: the bits of a state's third number */
} aq_avx2_tables;

AQ_AVX2_INLINE static inline __m256i aq_avx2_table(const int8_t *table, int offset) {
    return _mm256_add_epi8(_mm256_broadcastsi128_si256(
                               _mm_loadu_si128((const __m128i *)(const void *)table)),
                           _mm256_set1_epi8((char)offset));
}

AQ_AVX2_INLINE static inline aq_avx2_tables aq_avx2_tables_of(const aq_trellis_code *code,
                                                              int offset) {
    aq_avx2_tables tables;
    tables.table[0] = aq_avx2_table(code->table[0], offset);
    tables.table[1] = aq_avx2_table(code->table[1], 0);
    tables.table[2] = aq_avx2_table(code->table[2], 0);
    tables.mix = _mm256_set1_epi8((char)code->mix);
    tables.last = _mm256_set1_epi8((char)((1u << (code->state_bits - 8u)) - 1u));
    return tables;
}

static bool aq_avx2_reads(const aq_trellis_code *code, size_t height) {
    return height * code->bits % 8 == 0;
}

AQ_AVX2_INLINE static inline void aq_avx2_ring_load(aq_avx2_ring *ring, const uint8_t *bytes,
                                                    size_t size) {
    uint8_t copy[192];
    size_t i;
    ring->count = (size + 31) / 32;
    if (size % 32) {
        size_t left = sizeof copy - size;
        memcpy(copy, bytes, size);
        for (i = size; left; i += size) {
            size_t part = left < size ? left : size;
            memcpy(copy + i, bytes, part);
            left -= part;
        }
        bytes = copy;
    }
    for (i = 0; i < ring->count; i++) {
        ring->bytes[i] = _mm256_loadu_si256((const __m256i *)(const void *)(bytes + 32 * i));
    }
    ring->bytes[i] = size % 32 ? _mm256_loadu_si256((const __m256i *)(const void *)(copy + 32 * i))
                               : ring->bytes[0];
}

AQ_AVX2_INLINE static inline __m256i aq_avx2_value(const aq_avx2_tables *tables, __m256i a,
                                                   __m256i b, __m256i c, bool third) {
    __m256i fold = _mm256_and_si256(_mm256_xor_si256(a, b), tables->mix);
    if (third) {
        fold = _mm256_xor_si256(fold, _mm256_and_si256(c, tables->last));
    }
    return _mm256_add_epi8(_mm256_add_epi8(_mm256_shuffle_epi8(tables->table[0], a),
                                           _mm256_shuffle_epi8(tables->table[1], b)),
                           _mm256_shuffle_epi8(tables->table[2], fold));
}

/* Bits 4·n … of each byte and its successors, four at a time. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_low_four(__m256i bytes, int shift) {
    return _mm256_and_si256(_mm256_srli_epi16(bytes, shift), _mm256_set1_epi8(15));
}

/* The upper two bits of a byte and the lower two of the next one. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_across(__m256i low, __m256i high) {
    return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(low, 6), _mm256_set1_epi8(3)),
                           _mm256_and_si256(_mm256_slli_epi16(high, 2), _mm256_set1_epi8(12)));
}

/* 2 bits: out[j] has rows j, j + 4, j + 8 … of the 128 whose own bits are these 32 bytes; v1 and v2 are
 * what lies one and two bytes behind. */
AQ_AVX2_INLINE static inline void aq_avx2_values_2(const aq_avx2_tables *tables, __m256i v0,
                                                   __m256i v1, __m256i v2, bool third,
                                                   __m256i out[4]) {
    /* four bits from bit 2·i on */
    const __m256i at0 = aq_avx2_low_four(v0, 0), at1 = aq_avx2_low_four(v0, 2);
    const __m256i at2 = aq_avx2_low_four(v0, 4), at3 = aq_avx2_across(v0, v1);
    const __m256i at4 = aq_avx2_low_four(v1, 0), at5 = aq_avx2_low_four(v1, 2);
    out[0] = aq_avx2_value(tables, at0, at2, at4, third);
    out[1] = aq_avx2_value(tables, at1, at3, at5, third);
    if (third) {
        out[2] = aq_avx2_value(tables, at2, at4, aq_avx2_low_four(v1, 4), true);
        out[3] = aq_avx2_value(tables, at3, at5, aq_avx2_across(v1, v2), true);
    } else {
        out[2] = aq_avx2_value(tables, at2, at4, at4, false);
        out[3] = aq_avx2_value(tables, at3, at5, at5, false);
    }
}

/* The same of a vector and the one that follows it. */
AQ_AVX2_INLINE static inline void aq_avx2_next_2(const aq_avx2_tables *tables, __m256i v0,
                                                 __m256i next, bool third, __m256i out[4]) {
    const __m256i high = _mm256_permute2x128_si256(v0, next, 0x21);
    aq_avx2_values_2(tables, v0, _mm256_alignr_epi8(high, v0, 1), _mm256_alignr_epi8(high, v0, 2),
                     third, out);
}

/* 4 bits: rows 2·i and 2·i + 1 of 64. */
AQ_AVX2_INLINE static inline void aq_avx2_values_4(const aq_avx2_tables *tables, __m256i v0,
                                                   __m256i next, bool third, __m256i out[4]) {
    __m256i v1 = _mm256_alignr_epi8(_mm256_permute2x128_si256(v0, next, 0x21), v0, 1);
    __m256i at[4];
    at[0] = aq_avx2_low_four(v0, 0);
    at[1] = aq_avx2_low_four(v0, 4);
    at[2] = aq_avx2_low_four(v1, 0);
    at[3] = aq_avx2_low_four(v1, 4);
    out[0] = aq_avx2_value(tables, at[0], at[1], at[2], third);
    out[1] = aq_avx2_value(tables, at[1], at[2], at[3], third);
}

/* A column of 3 bits: the bytes that 32 rows need are read where they lie, but for the last rows, whose
 * bytes and the column's first ones are copied. */
typedef struct aq_avx2_threes {
    const uint8_t *bytes;
    size_t blocks, direct; /* of 32 rows; those that are read in place */
    uint8_t last[48];
} aq_avx2_threes;

AQ_AVX2_INLINE static inline void aq_avx2_threes_load(aq_avx2_threes *out, const uint8_t *bytes,
                                                      size_t size) {
    size_t at, filled, part;
    out->bytes = bytes;
    out->blocks = (size + 11) / 12;
    out->direct = size < 22 ? 0 : (size - 22) / 12 + 1;
    at = 12 * out->direct;
    if (size == 96) { /* the same, by moves of fixed size */
        memcpy(out->last, bytes + 84, 12);
        memcpy(out->last + 12, bytes, 36);
        return;
    }
    for (filled = 0; filled < sizeof out->last; filled += part, at = 0) {
        part = size - at < sizeof out->last - filled ? size - at : sizeof out->last - filled;
        memcpy(out->last + filled, bytes + at, part);
    }
}

/* 3 bits: the values of rows 32·block …, in order. Row r of 16 has its bits from bit 3·r on: two bytes
 * times a power of two move 8 of them to the upper one, for even rows and odd ones apart. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_values_3(const aq_avx2_tables *tables,
                                                      const aq_avx2_threes *threes, size_t block,
                                                      bool third) {
    const __m256i even = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 0, 1, 1, 2, 2, 3, 3, 4, 3, 4, 4, 5, 5, 6));
    const __m256i odd = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 3, 4, 4, 5, 4, 5, 5, 6));
    const __m256i even_shift = _mm256_set1_epi64x(INT64_C(0x0040001000040100));
    const __m256i odd_shift = _mm256_set1_epi64x(INT64_C(0x0008000200800020));
    const __m256i high = _mm256_set1_epi16((short)0xFF00), ones = _mm256_set1_epi8(1);
    const uint8_t *from = block < threes->direct ? threes->bytes + 12 * block
                                                 : threes->last + 12 * (block - threes->direct);
    __m256i v = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)from)),
        _mm_loadu_si128((const __m128i *)(const void *)(from + 6)), 1);
    __m256i a = _mm256_mullo_epi16(_mm256_shuffle_epi8(v, even), even_shift);
    __m256i b = _mm256_mullo_epi16(_mm256_shuffle_epi8(v, odd), odd_shift);
    __m256i low = _mm256_or_si256(_mm256_srli_epi16(a, 8), _mm256_and_si256(b, high)), c = low;
    if (third) {
        a = _mm256_mullo_epi16(_mm256_shuffle_epi8(v, _mm256_add_epi8(even, ones)), even_shift);
        b = _mm256_mullo_epi16(_mm256_shuffle_epi8(v, _mm256_add_epi8(odd, ones)), odd_shift);
        c = _mm256_or_si256(_mm256_srli_epi16(a, 8), _mm256_and_si256(b, high));
    }
    return aq_avx2_value(tables, aq_avx2_low_four(low, 0), aq_avx2_low_four(low, 4), c, third);
}

AQ_AVX2_INLINE static inline void aq_avx2_store(void *out, __m256i low, __m256i high) {
    _mm256_storeu_si256((__m256i *)out, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((__m256i *)out + 1, _mm256_permute2x128_si256(low, high, 0x31));
}

AQ_AVX2_INLINE static inline void aq_avx2_column_3(const aq_trellis_code *code,
                                                   const uint8_t *bytes, size_t height,
                                                   int8_t *out) {
    const aq_avx2_tables tables = aq_avx2_tables_of(code, 0);
    aq_avx2_threes threes;
    size_t i;
    aq_avx2_threes_load(&threes, bytes, height / 8 * 3);
    for (i = 0; i < threes.blocks; i++) {
        _mm256_storeu_si256((__m256i *)(void *)(out + 32 * i),
                            aq_avx2_values_3(&tables, &threes, i, true));
    }
}

/* All rows of a column in their order, rounded up to 128. */
AQ_AVX2_INLINE static inline void aq_avx2_column(const aq_trellis_code *code, const uint8_t *bytes,
                                                 size_t height, int8_t *out) {
    const aq_avx2_tables tables = aq_avx2_tables_of(code, 0);
    aq_avx2_ring ring;
    __m256i v[4];
    size_t i;
    if (code->bits == 3) {
        aq_avx2_column_3(code, bytes, height, out);
        return;
    }
    aq_avx2_ring_load(&ring, bytes, height * code->bits / 8);
    for (i = 0; i < ring.count; i++) {
        if (code->bits == 2) {
            __m256i a, b, c, d;
            aq_avx2_next_2(&tables, ring.bytes[i], ring.bytes[i + 1], true, v);
            a = _mm256_unpacklo_epi8(v[0], v[1]);
            b = _mm256_unpacklo_epi8(v[2], v[3]);
            c = _mm256_unpackhi_epi8(v[0], v[1]);
            d = _mm256_unpackhi_epi8(v[2], v[3]);
            v[0] = _mm256_unpacklo_epi16(a, b);
            v[1] = _mm256_unpackhi_epi16(a, b);
            v[2] = _mm256_unpacklo_epi16(c, d);
            v[3] = _mm256_unpackhi_epi16(c, d);
            _mm256_storeu_si256((__m256i *)(void *)(out + 128 * i),
                                _mm256_permute2x128_si256(v[0], v[1], 0x20));
            _mm256_storeu_si256((__m256i *)(void *)(out + 128 * i + 32),
                                _mm256_permute2x128_si256(v[2], v[3], 0x20));
            _mm256_storeu_si256((__m256i *)(void *)(out + 128 * i + 64),
                                _mm256_permute2x128_si256(v[0], v[1], 0x31));
            _mm256_storeu_si256((__m256i *)(void *)(out + 128 * i + 96),
                                _mm256_permute2x128_si256(v[2], v[3], 0x31));
        } else {
            aq_avx2_values_4(&tables, ring.bytes[i], ring.bytes[i + 1], true, v);
            aq_avx2_store(out + 64 * i, _mm256_unpacklo_epi8(v[0], v[1]),
                          _mm256_unpackhi_epi8(v[0], v[1]));
        }
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_trellis_values(const aq_trellis_code *code, const uint8_t *codes,
                                                size_t at, size_t height, size_t first,
                                                size_t rows, int8_t *out) {
    int8_t all[AQ_TRELLIS_COLUMN];
    if (!aq_avx2_reads(code, height)) {
        aq_scalar_trellis_values(code, codes, at, height, first, rows, out);
    } else if (rows == AQ_TRELLIS_COLUMN) {
        aq_avx2_column(code, codes + at / 8, height, out);
    } else {
        aq_avx2_column(code, codes + at / 8, height, all);
        memcpy(out, all + first, rows);
    }
}

/* ---- products */

/* The values of four columns, plus 64, side by side: 32 rows to 128 bytes, `rows` in some order. */
AQ_AVX2_INLINE static inline void aq_avx2_interleave(const __m256i v[4], uint8_t *out) {
    __m256i a = _mm256_unpacklo_epi8(v[0], v[1]), b = _mm256_unpacklo_epi8(v[2], v[3]);
    __m256i c = _mm256_unpackhi_epi8(v[0], v[1]), d = _mm256_unpackhi_epi8(v[2], v[3]);
    __m256i *to = (__m256i *)(void *)out;
    _mm256_storeu_si256(to, _mm256_unpacklo_epi16(a, b));
    _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi16(a, b));
    _mm256_storeu_si256(to + 2, _mm256_unpacklo_epi16(c, d));
    _mm256_storeu_si256(to + 3, _mm256_unpackhi_epi16(c, d));
}

/* Four columns of 2 bits; their vectors of rows one behind the other. Returns how many bytes. */
AQ_AVX2_INLINE static inline size_t aq_avx2_quad_2(const aq_avx2_tables *tables,
                                                   const uint8_t *bytes, size_t size, bool third,
                                                   uint8_t *out) {
    aq_avx2_ring ring[4];
    size_t i, j, c;
    for (c = 0; c < 4; c++) {
        aq_avx2_ring_load(&ring[c], bytes + c * size, size);
    }
    for (i = 0; i < ring[0].count; i++) {
        __m256i v[4][4];
        for (c = 0; c < 4; c++) {
            aq_avx2_next_2(tables, ring[c].bytes[i], ring[c].bytes[i + 1], third, v[c]);
        }
        for (j = 0; j < 4; j++) {
            __m256i row[4];
            for (c = 0; c < 4; c++) {
                row[c] = v[c][j];
            }
            aq_avx2_interleave(row, out + 512 * i + 128 * j);
        }
    }
    return 512 * ring[0].count;
}

/* The same of 3 bits. */
AQ_AVX2_INLINE static inline size_t aq_avx2_quad_3(const aq_avx2_tables *tables,
                                                   const uint8_t *bytes, size_t size, bool third,
                                                   uint8_t *out) {
    aq_avx2_threes threes[4];
    size_t i, c;
    for (c = 0; c < 4; c++) {
        aq_avx2_threes_load(&threes[c], bytes + c * size, size);
    }
    for (i = 0; i < threes[0].blocks; i++) {
        __m256i v[4];
        for (c = 0; c < 4; c++) {
            v[c] = aq_avx2_values_3(tables, &threes[c], i, third);
        }
        aq_avx2_interleave(v, out + 128 * i);
    }
    return 128 * threes[0].blocks;
}

/* sums[i] += four products each; `bytes` of values. */
AQ_AVX2_INLINE static inline void aq_avx2_quad_dots(const uint8_t *values, size_t bytes,
                                                    __m256i x, int32_t *sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    size_t i;
    for (i = 0; i < bytes; i += 32) {
        __m256i *sum = (__m256i *)(void *)(sums + i / 4);
        __m256i pairs = _mm256_maddubs_epi16(
            _mm256_loadu_si256((const __m256i *)(const void *)(values + i)), x);
        _mm256_storeu_si256(sum, _mm256_add_epi32(_mm256_loadu_si256(sum),
                                                  _mm256_madd_epi16(pairs, ones)));
    }
}

/* Where row `row` of a column of 2 bits stands in the order of aq_avx2_quad_2: byte i = row / 4 of its
 * ring, and which of the four windows that begin there. */
static size_t aq_avx2_place_2(size_t row) {
    size_t i = row / 4 % 32, j = row % 4;
    return row / 128 * 128 + 32 * j + i % 16 / 4 * 8 + i / 16 * 4 + i % 4;
}

/* In the order of aq_avx2_quad_3. */
static size_t aq_avx2_place_3(size_t row) {
    return row / 32 * 32 + row % 16 / 4 * 8 + row % 32 / 16 * 4 + row % 4;
}

/* The sums in the order of the rows, without what the 64 added to the values brought in. */
static void aq_avx2_put_sums(const int32_t *sums, size_t height, uint32_t bits, int32_t offset,
                             int32_t *out) {
    size_t row;
    for (row = 0; row < height; row++) {
        out[row] = sums[bits == 2 ? aq_avx2_place_2(row) : aq_avx2_place_3(row)] - offset;
    }
}

/* sums [8] += four products of each byte quad of `a` by x0, and of `b` by x1. */
AQ_AVX2_INLINE static inline void aq_avx2_add_quads(__m256i a, __m256i x0, __m256i b, __m256i x1,
                                                    int32_t *sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i *sum = (__m256i *)(void *)sums;
    __m256i both = _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(a, x0), ones),
                                    _mm256_madd_epi16(_mm256_maddubs_epi16(b, x1), ones));
    _mm256_storeu_si256(sum, _mm256_add_epi32(_mm256_loadu_si256(sum), both));
}

/* One vector of rows of eight columns. */
AQ_AVX2_INLINE static inline void aq_avx2_add_rows(const __m256i *v, size_t step, __m256i x0,
                                                   __m256i x1, int32_t *sums) {
    __m256i a = _mm256_unpacklo_epi8(v[0], v[step]);
    __m256i b = _mm256_unpacklo_epi8(v[2 * step], v[3 * step]);
    __m256i c = _mm256_unpackhi_epi8(v[0], v[step]);
    __m256i d = _mm256_unpackhi_epi8(v[2 * step], v[3 * step]);
    __m256i e = _mm256_unpacklo_epi8(v[4 * step], v[5 * step]);
    __m256i f = _mm256_unpacklo_epi8(v[6 * step], v[7 * step]);
    __m256i g = _mm256_unpackhi_epi8(v[4 * step], v[5 * step]);
    __m256i h = _mm256_unpackhi_epi8(v[6 * step], v[7 * step]);
    aq_avx2_add_quads(_mm256_unpacklo_epi16(a, b), x0, _mm256_unpacklo_epi16(e, f), x1, sums);
    aq_avx2_add_quads(_mm256_unpackhi_epi16(a, b), x0, _mm256_unpackhi_epi16(e, f), x1, sums + 8);
    aq_avx2_add_quads(_mm256_unpacklo_epi16(c, d), x0, _mm256_unpacklo_epi16(g, h), x1, sums + 16);
    aq_avx2_add_quads(_mm256_unpackhi_epi16(c, d), x0, _mm256_unpackhi_epi16(g, h), x1, sums + 24);
}

/* Eight columns of a whole strip of 2 bits by one vector: x0 and x1 are four and four, sums [256] in the order
 * of aq_avx2_quad_2. The vector behind the second one of a column is its first. */
AQ_AVX2_INLINE static inline void aq_avx2_eight(const aq_avx2_tables *tables, const uint8_t *bytes,
                                                bool third, __m256i x0, __m256i x1, int32_t *sums) {
    __m256i v[8][4];
    size_t c;
    for (c = 0; c < 8; c++) {
        const uint8_t *at = bytes + 64 * c;
        aq_avx2_values_2(tables, _mm256_loadu_si256((const __m256i *)(const void *)at),
                         _mm256_loadu_si256((const __m256i *)(const void *)(at + 1)),
                         _mm256_loadu_si256((const __m256i *)(const void *)(at + 2)), third, v[c]);
    }
    for (c = 0; c < 4; c++) {
        aq_avx2_add_rows(&v[0][c], 4, x0, x1, sums + 32 * c);
    }
    for (c = 0; c < 8; c++) {
        const uint8_t *at = bytes + 64 * c;
        aq_avx2_next_2(tables, _mm256_loadu_si256((const __m256i *)(const void *)(at + 32)),
                       _mm256_loadu_si256((const __m256i *)(const void *)at), third, v[c]);
    }
    for (c = 0; c < 4; c++) {
        aq_avx2_add_rows(&v[0][c], 4, x0, x1, sums + 128 + 32 * c);
    }
}

/* The sums of a strip in the order of its rows: lanes of 16 rows, turned. */
AQ_AVX2_INLINE static inline void aq_avx2_turn_sums(const int32_t *sums, int32_t offset,
                                                    int32_t *out) {
    const __m128i all = _mm_set1_epi32(offset);
    size_t part, i, j;
    for (part = 0; part < 256; part += 128) {
        for (i = 0; i < 8; i++) { /* rows 16·i … */
            const int32_t *from = sums + part + i % 4 * 8 + i / 4 * 4;
            __m128i s[4], low[2], high[2];
            for (j = 0; j < 4; j++) {
                s[j] = _mm_sub_epi32(_mm_loadu_si128((const __m128i *)(const void *)(from + 32 * j)),
                                     all);
            }
            for (j = 0; j < 2; j++) {
                low[j] = _mm_unpacklo_epi32(s[2 * j], s[2 * j + 1]);
                high[j] = _mm_unpackhi_epi32(s[2 * j], s[2 * j + 1]);
            }
            {
                __m128i *to = (__m128i *)(void *)(out + part + 16 * i);
                _mm_storeu_si128(to, _mm_unpacklo_epi64(low[0], low[1]));
                _mm_storeu_si128(to + 1, _mm_unpackhi_epi64(low[0], low[1]));
                _mm_storeu_si128(to + 2, _mm_unpacklo_epi64(high[0], high[1]));
                _mm_storeu_si128(to + 3, _mm_unpackhi_epi64(high[0], high[1]));
            }
        }
    }
}

/* A whole strip of 2 bits by one vector; `count` a multiple of 8. */
AQ_AVX2_INLINE static inline void aq_avx2_strip_dots(const aq_trellis_code *code,
                                                     const uint8_t *bytes, size_t count,
                                                     const int8_t *x, bool third, int32_t *out) {
    const aq_avx2_tables tables = aq_avx2_tables_of(code, 64);
    int32_t sums[AQ_TRELLIS_COLUMN], offset = 0;
    size_t i;
    memset(sums, 0, sizeof sums);
    for (i = 0; i < count; i += 8) {
        aq_avx2_eight(&tables, bytes + 64 * i, third, aq_avx2_four(x + i), aq_avx2_four(x + i + 4),
                      sums);
    }
    for (i = 0; i < count; i++) {
        offset += 64 * x[i];
    }
    aq_avx2_turn_sums(sums, offset, out);
}

#define AQ_DOT_TOKENS 8u

/* At most AQ_DOT_TOKENS tokens, `count` a multiple of 4. */
AQ_AVX2_INLINE static inline void aq_avx2_quads(const aq_trellis_code *code, const uint8_t *bytes,
                                                size_t height, size_t count, const int8_t *x,
                                                size_t x_step, size_t tokens, uint32_t bits,
                                                bool third, int32_t *out) {
    const aq_avx2_tables tables = aq_avx2_tables_of(code, 64);
    int32_t sums[AQ_DOT_TOKENS][AQ_TRELLIS_COLUMN], offset[AQ_DOT_TOKENS];
    uint8_t values[4 * AQ_TRELLIS_COLUMN];
    const size_t size = height * bits / 8;
    size_t i, token, filled;
    memset(sums, 0, tokens * sizeof sums[0]);
    memset(offset, 0, sizeof offset);
    for (i = 0; i < count; i += 4) {
        filled = bits == 2 ? aq_avx2_quad_2(&tables, bytes + i * size, size, third, values)
                           : aq_avx2_quad_3(&tables, bytes + i * size, size, third, values);
        for (token = 0; token < tokens; token++) {
            const int8_t *own = x + token * x_step + i;
            aq_avx2_quad_dots(values, filled, aq_avx2_four(own), sums[token]);
            offset[token] += 64 * (own[0] + own[1] + own[2] + own[3]);
        }
    }
    for (token = 0; token < tokens; token++) {
        aq_avx2_put_sums(sums[token], height, bits, offset[token], out + token * height);
    }
}

AQ_AVX2 static void aq_avx2_dots_of(const aq_trellis_code *code, const uint8_t *bytes,
                                    size_t height, size_t count, const int8_t *x, size_t x_step,
                                    size_t tokens, int32_t *out) {
    bool third = code->state_bits > 8;
    if (code->bits == 2 && height == AQ_TRELLIS_COLUMN && tokens == 1 && count % 8 == 0) {
        if (third) {
            aq_avx2_strip_dots(code, bytes, count, x, true, out);
        } else {
            aq_avx2_strip_dots(code, bytes, count, x, false, out);
        }
    } else if (code->bits == 2 && third) {
        aq_avx2_quads(code, bytes, height, count, x, x_step, tokens, 2, true, out);
    } else if (code->bits == 2) {
        aq_avx2_quads(code, bytes, height, count, x, x_step, tokens, 2, false, out);
    } else if (third) {
        aq_avx2_quads(code, bytes, height, count, x, x_step, tokens, 3, true, out);
    } else {
        aq_avx2_quads(code, bytes, height, count, x, x_step, tokens, 3, false, out);
    }
}

/* What is left: a column after the other. Adds to `out`. */
AQ_AVX2 static void aq_avx2_dots_column(const aq_trellis_code *code, const uint8_t *codes,
                                        size_t at, size_t height, const int8_t *x, size_t x_step,
                                        size_t tokens, int32_t *out) {
    int8_t values[AQ_TRELLIS_COLUMN + 16];
    size_t token, row;
    aq_avx2_trellis_values(code, codes, at, height, 0, height, values);
    for (token = 0; token < tokens; token++, out += height) {
        __m256i factor = _mm256_set1_epi16(x[token * x_step]);
        for (row = 0; row + 16 <= height; row += 16) {
            __m256i product = _mm256_mullo_epi16(
                _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(values + row))),
                factor);
            __m256i *to = (__m256i *)(void *)(out + row);
            _mm256_storeu_si256(
                to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_cvtepi16_epi32(
                                                                 _mm256_castsi256_si128(product))));
            to++;
            _mm256_storeu_si256(
                to, _mm256_add_epi32(_mm256_loadu_si256(to),
                                     _mm256_cvtepi16_epi32(_mm256_extracti128_si256(product, 1))));
        }
        for (; row < height; row++) {
            out[row] += x[token * x_step] * values[row];
        }
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_trellis_dots(const aq_trellis_code *code, const uint8_t *codes,
                                              size_t height, size_t column, size_t count,
                                              const int8_t *x, size_t x_step, size_t tokens,
                                              int32_t *out) {
    const size_t ring = height * code->bits;
    size_t done = 0, token, part;
    if (code->bits < 4 && aq_avx2_reads(code, height) && count >= 4) {
        done = count / 4 * 4;
        for (token = 0; token < tokens; token += part) {
            part = tokens - token < AQ_DOT_TOKENS ? tokens - token : AQ_DOT_TOKENS;
            aq_avx2_dots_of(code, codes + column * ring / 8, height, done, x + token * x_step,
                            x_step, part, out + token * height);
        }
    } else {
        memset(out, 0, tokens * height * sizeof *out);
    }
    for (; done < count; done++) {
        aq_avx2_dots_column(code, codes, (column + done) * ring, height, x + done, x_step, tokens,
                            out);
    }
}

#undef AQ_DOT_TOKENS

/* ---- weights */

/* 16 columns of 16 rows, turned: line i of `out` has row i. */
AQ_AVX2_INLINE static inline void aq_avx2_trellis_turn(const int8_t *values, __m128i out[16]) {
    __m128i other[16], *from = out, *to = other, *swap;
    size_t i, step;
    for (i = 0; i < 16; i++) {
        out[i] = _mm_loadu_si128((const __m128i *)(const void *)(values + i * AQ_TRELLIS_COLUMN));
    }
    for (step = 0; step < 4; step++) { /* each doubles how many columns of a row lie together */
        for (i = 0; i < 8; i++) {
            to[2 * i] = _mm_unpacklo_epi8(from[i], from[i + 8]);
            to[2 * i + 1] = _mm_unpackhi_epi8(from[i], from[i + 8]);
        }
        swap = from;
        from = to;
        to = swap;
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_trellis_spread(const int8_t *values, size_t rows, size_t columns,
                                                const float *scales, float *out, size_t stride) {
    AQ_SIMD_EXACT_BODY
    size_t row = 0, i;
    for (; columns == 16 && row + 16 <= rows; row += 16) {
        __m128i lines[16];
        aq_avx2_trellis_turn(values + row, lines);
        for (i = 0; i < 16; i++) {
            __m256 scale = _mm256_set1_ps(scales[row + i]);
            float *to = out + (row + i) * stride;
            _mm256_storeu_ps(to, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(
                                                          _mm256_cvtepi8_epi32(lines[i]))));
            _mm256_storeu_ps(to + 8, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
                                                              _mm_srli_si128(lines[i], 8)))));
        }
    }
    aq_scalar_trellis_spread(values + row, rows - row, columns, scales + row, out + row * stride,
                             stride);
}

#endif /* AQ_HAVE_AVX2 */
