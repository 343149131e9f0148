/* AVX2 kernels of the forward pass: dots of packed codes with INT8 activations, row by row for few
 * tokens, 16 rows at a time for many. Codes are taken 32 bytes at a time, in planes: the first code of
 * every byte, the second, …; the activations are laid out accordingly. vpmaddubsw adds two products
 * in 16 bits, which holds eight steps of codes below 16: codes of 8 bits go as two halves of 4. */
#include "forward.h"
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

#define AQ_AVX2_AHEAD 2048 /* bytes between what is read and what is fetched */

/* ---- the order of activations */

/* Values 0, 2, 4 … of two vectors in *even, the others in *odd. */
AQ_AVX2_INLINE static inline void aq_avx2_part(__m256i a, __m256i b, __m256i *even, __m256i *odd) {
    const __m256i byte = _mm256_set1_epi16(255);
    *even = _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
    *odd = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
    *even = _mm256_permute4x64_epi64(*even, 0xD8);
    *odd = _mm256_permute4x64_epi64(*odd, 0xD8);
}

/* 32 values of each plane from 32·planes values: value i·planes + plane. */
AQ_AVX2_INLINE static inline void aq_avx2_arrange_planes(const int8_t *x, size_t planes,
                                                         int8_t *out) {
    __m256i v[4], even[2], odd[2];
    size_t i;
    for (i = 0; i < planes; i++) {
        v[i] = _mm256_loadu_si256((const __m256i *)(const void *)(x + 32 * i));
    }
    if (planes == 2) {
        aq_avx2_part(v[0], v[1], &v[0], &v[1]);
    } else if (planes == 4) {
        aq_avx2_part(v[0], v[1], &even[0], &odd[0]);
        aq_avx2_part(v[2], v[3], &even[1], &odd[1]);
        aq_avx2_part(even[0], even[1], &v[0], &v[2]);
        aq_avx2_part(odd[0], odd[1], &v[1], &v[3]);
    }
    for (i = 0; i < planes; i++) {
        _mm256_storeu_si256((__m256i *)(void *)(out + 32 * i), v[i]);
    }
}

AQ_AVX2_INLINE static inline void aq_avx2_arrange_of(const int8_t *x, size_t count, size_t planes,
                                                     int8_t *out) {
    const size_t whole = 32u * planes;
    int8_t rest[128];
    size_t begin;
    for (begin = 0; begin + whole <= count; begin += whole) {
        aq_avx2_arrange_planes(x + begin, planes, out + begin);
    }
    if (begin < count) {
        memset(rest, 0, sizeof rest);
        memcpy(rest, x + begin, count - begin);
        aq_avx2_arrange_planes(rest, planes, out + begin);
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_arrange(const int8_t *x, size_t count, uint32_t bits,
                                         int8_t *out) {
    switch (bits) {
    case 2: aq_avx2_arrange_of(x, count, 4, out); break;
    case 4: aq_avx2_arrange_of(x, count, 2, out); break;
    default: aq_avx2_arrange_of(x, count, 1, out); break;
    }
}

/* ---- row by row */

/* Sums of two products in 16 bits: of codes below 16, and of upper halves. */
typedef struct aq_avx2_pairs {
    __m256i low, high;
} aq_avx2_pairs;

/* Adds 32 bytes of codes. */
AQ_AVX2_INLINE static inline void aq_avx2_chunk(aq_avx2_pairs *sum, __m256i packed, uint32_t bits,
                                                const int8_t *x) {
    const size_t planes = 8u / bits;
    size_t plane;
    AQ_UNROLL
    for (plane = 0; plane < planes; plane++) {
        const __m256i values = _mm256_loadu_si256((const __m256i *)(const void *)(x + 32 * plane));
        sum->low = _mm256_add_epi16(
            sum->low, _mm256_maddubs_epi16(aq_avx2_plane(packed, bits, plane), values));
        if (bits == 8) {
            sum->high = _mm256_add_epi16(
                sum->high, _mm256_maddubs_epi16(aq_avx2_plane(packed, bits, 1), values));
        }
    }
}

/* Sums of four bytes in 8 lanes, from sums of two products. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_total(aq_avx2_pairs sum, uint32_t bits) {
    const __m256i total = _mm256_madd_epi16(sum.low, _mm256_set1_epi16(1));
    return bits == 8 ? _mm256_add_epi32(total, _mm256_madd_epi16(sum.high, _mm256_set1_epi16(16)))
                     : total;
}

/* Sums of four bytes in 8 lanes, over `bytes` bytes of codes: 32 or the bytes of a group. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_unit(const uint8_t *codes, uint32_t bits, size_t bytes,
                                                  const int8_t *x) {
    aq_avx2_pairs sum;
    size_t at;
    sum.low = sum.high = _mm256_setzero_si256();
    AQ_UNROLL
    for (at = 0; at < bytes; at += 32) {
        aq_avx2_chunk(&sum, _mm256_loadu_si256((const __m256i *)(const void *)(codes + at)), bits,
                      x + at * (8u / bits));
    }
    return aq_avx2_total(sum, bits);
}

/* The same of a unit of any size, of which only the bytes `left` are there. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_part_of(const uint8_t *codes, size_t left, uint32_t bits,
                                                     size_t bytes, const int8_t *x) {
    aq_avx2_pairs sum;
    size_t at;
    sum.low = sum.high = _mm256_setzero_si256();
    left = left < bytes ? left : bytes;
    for (at = 0; at + 32 <= left; at += 32) {
        aq_avx2_chunk(&sum, _mm256_loadu_si256((const __m256i *)(const void *)(codes + at)), bits,
                      x + at * (8u / bits));
    }
    if (at < left) {
        uint8_t rest[32] = {0};
        memcpy(rest, codes + at, left - at);
        aq_avx2_chunk(&sum, _mm256_loadu_si256((const __m256i *)(const void *)rest), bits,
                      x + at * (8u / bits));
    }
    return aq_avx2_total(sum, bits);
}

/* The sums of the groups in four units, in order: 4 groups of 32 bytes or more, 8 of 16, 16 of 8. */
AQ_AVX2_INLINE static inline void aq_avx2_fold_units(const __m256i *v, size_t group_bytes,
                                                     int32_t *out) {
    const __m256i first = _mm256_hadd_epi32(v[0], v[1]), second = _mm256_hadd_epi32(v[2], v[3]);
    __m256i all;
    if (group_bytes == 8) {
        _mm256_storeu_si256((__m256i *)(void *)out, _mm256_permute4x64_epi64(first, 0xD8));
        _mm256_storeu_si256((__m256i *)(void *)(out + 8), _mm256_permute4x64_epi64(second, 0xD8));
        return;
    }
    all = _mm256_hadd_epi32(first, second); /* four lower halves, four upper ones */
    if (group_bytes == 16) {
        all = _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)(void *)out, all);
        return;
    }
    _mm_storeu_si128((__m128i *)(void *)out, _mm_add_epi32(_mm256_castsi256_si128(all),
                                                           _mm256_extracti128_si256(all, 1)));
}

/* The last units of a row, fewer than four, of which the bytes `left` are there: one copy of this code for a
 * width, whatever the group. */
AQ_AVX2_INLINE static inline void aq_avx2_last_units(const uint8_t *codes, size_t left,
                                                     uint32_t bits, size_t group_bytes,
                                                     const int8_t *x, int32_t *out) {
    const size_t bytes = group_bytes < 32 ? 32 : group_bytes;
    __m256i v[4];
    size_t k, at = 0;
    v[1] = v[2] = v[3] = _mm256_setzero_si256();
    for (k = 0; at < left; k++, at += bytes) {
        v[k] = aq_avx2_part_of(codes + at, left - at, bits, bytes, x + at * (8u / bits));
    }
    aq_avx2_fold_units(v, group_bytes, out);
}

AQ_AVX2 static void aq_avx2_last2(const uint8_t *codes, size_t left, size_t group_bytes,
                                  const int8_t *x, int32_t *out) {
    aq_avx2_last_units(codes, left, 2, group_bytes, x, out);
}

AQ_AVX2 static void aq_avx2_last4(const uint8_t *codes, size_t left, size_t group_bytes,
                                  const int8_t *x, int32_t *out) {
    aq_avx2_last_units(codes, left, 4, group_bytes, x, out);
}

AQ_AVX2 static void aq_avx2_last8(const uint8_t *codes, size_t left, size_t group_bytes,
                                  const int8_t *x, int32_t *out) {
    aq_avx2_last_units(codes, left, 8, group_bytes, x, out);
}

/* Four units: the sums of their groups. */
AQ_AVX2_INLINE static inline void aq_avx2_four_units(const uint8_t *codes, uint32_t bits,
                                                     size_t group_bytes, const int8_t *x,
                                                     int32_t *out) {
    const size_t bytes = group_bytes < 32 ? 32 : group_bytes;
    __m256i v[4];
    size_t k;
    AQ_UNROLL
    for (k = 0; k < 4; k++) {
        v[k] = aq_avx2_unit(codes + k * bytes, bits, bytes, x + k * bytes * (8u / bits));
    }
    aq_avx2_fold_units(v, group_bytes, out);
}

AQ_AVX2_INLINE static inline void aq_avx2_rows(const aq_linear_dots *job, uint32_t bits,
                                               size_t group_bytes) {
    const size_t step = 4 * (group_bytes < 32 ? 32 : group_bytes), groups = step / group_bytes;
    size_t row, at, i;
    for (row = 0; row < job->rows; row++) {
        const uint8_t *codes = job->codes + row * job->row_bytes;
        int32_t *out = job->out + row * job->out_stride, *const first = out;
        for (at = 0; at < job->next_bytes; at += 64) {
            _mm_prefetch((const char *)(job->next + row * job->next_bytes + at), _MM_HINT_T0);
        }
        for (at = 0; at + step <= job->row_bytes; at += step, out += groups) {
            for (i = 0; i < step; i += 64) {
                _mm_prefetch((const char *)(codes + at + i + AQ_AVX2_AHEAD), _MM_HINT_T0);
            }
            aq_avx2_four_units(codes + at, bits, group_bytes, job->x + at * (8u / bits), out);
        }
        if (at < job->row_bytes) {
            (bits == 2 ? aq_avx2_last2 : bits == 4 ? aq_avx2_last4 : aq_avx2_last8)(
                codes + at, job->row_bytes - at, group_bytes, job->x + at * (8u / bits), out);
            out += groups;
        }
        for (; (size_t)(out - first) % 16 != 0; out += 4) {
            _mm_storeu_si128((__m128i *)(void *)out, _mm_setzero_si128());
        }
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_dots(const aq_linear_dots *job) {
    switch (job->bits * 1000u + job->group) {
    case 2032: aq_avx2_rows(job, 2, 8); break;
    case 2064: aq_avx2_rows(job, 2, 16); break;
    case 2128: aq_avx2_rows(job, 2, 32); break;
    case 2256: aq_avx2_rows(job, 2, 64); break;
    case 4032: aq_avx2_rows(job, 4, 16); break;
    case 4064: aq_avx2_rows(job, 4, 32); break;
    case 4128: aq_avx2_rows(job, 4, 64); break;
    case 4256: aq_avx2_rows(job, 4, 128); break;
    case 8032: aq_avx2_rows(job, 8, 32); break;
    case 8064: aq_avx2_rows(job, 8, 64); break;
    case 8128: aq_avx2_rows(job, 8, 128); break;
    default: aq_avx2_rows(job, 8, 256); break;
    }
}

/* ---- 16 rows at a time */

/* Vectors of 8 rows by 4 codes: [dwords][parts][2], a part being a plane; at 8 bits the codes at even
 * places as 16 bits, then those at odd ones. */
#define AQ_AVX2_PARTS(bits) ((bits) == 2 ? 4u : 2u)
#define AQ_AVX2_TILE 4u /* tokens at once */

/* Sums of two products by 16 rows and four tokens, in variables of their own: GCC keeps arrays in
 * memory. */
typedef struct aq_avx2_tile_sums {
    __m256i low0, low1, low2, low3, high0, high1, high2, high3;
} aq_avx2_tile_sums;

AQ_AVX2_INLINE static inline aq_avx2_tile_sums aq_avx2_tile_zero(void) {
    aq_avx2_tile_sums s;
    s.low0 = s.low1 = s.low2 = s.low3 = _mm256_setzero_si256();
    s.high0 = s.high1 = s.high2 = s.high3 = _mm256_setzero_si256();
    return s;
}

#define AQ_AVX2_TOKENS(step) step(0) step(1) step(2) step(3)

/* Behind each sum: GCC would make all products first, and then has no registers for the sums. */
#if defined(__GNUC__) && !defined(__clang__)
#  define AQ_AVX2_KEEP(sum) __asm__("" : "+x"(sum));
#else
#  define AQ_AVX2_KEEP(sum)
#endif

/* 16 rows by four tokens, `dwords` of a group of 2 or 4 bits, as many as 16 bits hold: added to *sum in
 * 32 bits. Token t is at x[t] + at. */
AQ_AVX2_INLINE static inline void aq_avx2_tile_block(const __m256i *codes, size_t dwords,
                                                     size_t planes, const int8_t *const *x,
                                                     size_t at, aq_avx2_tile_sums *sum) {
    const int8_t *const x0 = x[0] + at, *const x1 = x[1] + at;
    const int8_t *const x2 = x[2] + at, *const x3 = x[3] + at;
    const __m256i one = _mm256_set1_epi16(1);
    aq_avx2_tile_sums s = aq_avx2_tile_zero();
    size_t i, plane;
    for (plane = 0; plane < planes; plane++) {
        AQ_UNROLL
        for (i = 0; i < dwords; i++) {
            const size_t from = 32 * plane + 4 * i;
            const __m256i low = codes[2 * (i * planes + plane)];
            const __m256i high = codes[2 * (i * planes + plane) + 1];
            __m256i four;
#define AQ_AVX2_STEP(t) \
            four = aq_avx2_four(x##t + from); \
            s.low##t = _mm256_add_epi16(s.low##t, _mm256_maddubs_epi16(low, four)); \
            AQ_AVX2_KEEP(s.low##t) \
            s.high##t = _mm256_add_epi16(s.high##t, _mm256_maddubs_epi16(high, four)); \
            AQ_AVX2_KEEP(s.high##t)
            AQ_AVX2_TOKENS(AQ_AVX2_STEP)
#undef AQ_AVX2_STEP
        }
    }
#define AQ_AVX2_STEP(t) \
    sum->low##t = _mm256_add_epi32(sum->low##t, _mm256_madd_epi16(s.low##t, one)); \
    sum->high##t = _mm256_add_epi32(sum->high##t, _mm256_madd_epi16(s.high##t, one));
    AQ_AVX2_TOKENS(AQ_AVX2_STEP)
#undef AQ_AVX2_STEP
}

/* A group of 8 bits in products of 16 bits; x [dwords / 8][2][AQ_AVX2_TILE][8] words of two values. */
AQ_AVX2_INLINE static inline aq_avx2_tile_sums aq_avx2_tile_wide(const __m256i *codes,
                                                                size_t dwords,
                                                                const int16_t *x) {
    aq_avx2_tile_sums s = aq_avx2_tile_zero();
    size_t i, part;
    for (part = 0; part < 2; part++) {
        for (i = 0; i < dwords; i++) {
            const int16_t *from = x + ((i / 8 * 2 + part) * AQ_AVX2_TILE * 8 + i % 8) * 2;
            const __m256i low = codes[2 * (2 * i + part)], high = codes[2 * (2 * i + part) + 1];
            __m256i two;
#define AQ_AVX2_STEP(t) \
            two = aq_avx2_four(from + 16 * t); \
            s.low##t = _mm256_add_epi32(s.low##t, _mm256_madd_epi16(low, two)); \
            AQ_AVX2_KEEP(s.low##t) \
            s.high##t = _mm256_add_epi32(s.high##t, _mm256_madd_epi16(high, two)); \
            AQ_AVX2_KEEP(s.high##t)
            AQ_AVX2_TOKENS(AQ_AVX2_STEP)
#undef AQ_AVX2_STEP
        }
    }
    return s;
}

/* The x of a group for it: of each 32 values those at even places, then those at odd ones. */
AQ_AVX2_INLINE static inline void aq_avx2_widen_tile(const int8_t *const *x, size_t count,
                                                     int16_t *out) {
    size_t i, t;
    for (i = 0; i < count; i += 32, out += 2 * AQ_AVX2_TILE * 16) {
        for (t = 0; t < AQ_AVX2_TILE; t++) {
            const __m256i values = _mm256_loadu_si256((const __m256i *)(const void *)(x[t] + i));
            _mm256_storeu_si256((__m256i *)(void *)(out + 16 * t),
                                _mm256_srai_epi16(_mm256_slli_epi16(values, 8), 8));
            _mm256_storeu_si256((__m256i *)(void *)(out + 16 * (AQ_AVX2_TILE + t)),
                                _mm256_srai_epi16(values, 8));
        }
    }
}

/* What 8 rows of a token gain by the scales of a group. */
AQ_AVX2_INLINE static inline void aq_avx2_tile_add(__m256 scales, __m256i dots, float *acc) {
    AQ_SIMD_EXACT_BODY
    _mm256_storeu_ps(acc, _mm256_add_ps(_mm256_loadu_ps(acc),
                                        _mm256_mul_ps(scales, _mm256_cvtepi32_ps(dots))));
}

/* What 16 rows of `tokens` tokens gain by their sums in a group, apart from the mins. */
AQ_AVX2_INLINE static inline void aq_avx2_tile_gain(const aq_linear_tiles *job, uint32_t bits,
                                                    size_t group, size_t token, size_t tokens,
                                                    const aq_avx2_tile_sums *sum) {
    const float *params = job->params + 32 * group;
    const __m256 low = _mm256_loadu_ps(params), high = _mm256_loadu_ps(params + 8);
    aq_avx2_tile_sums s = *sum;
    if (job->half != 0) { /* 2^(bits−1) */
        const int32_t *total = job->sums + token * job->groups + group;
        __m256i less;
#define AQ_AVX2_STEP(t) \
        less = _mm256_slli_epi32(aq_avx2_four(total + (t < tokens ? t : 0) * job->groups), \
                                 (int)bits - 1); \
        s.low##t = _mm256_sub_epi32(s.low##t, less); \
        s.high##t = _mm256_sub_epi32(s.high##t, less);
        AQ_AVX2_TOKENS(AQ_AVX2_STEP)
#undef AQ_AVX2_STEP
    }
    if (job->zeros) {
        const __m256i *codes = (const __m256i *)(const void *)(job->codes_turned + 16 * group);
        const __m256i first = _mm256_loadu_si256(codes), second = _mm256_loadu_si256(codes + 1);
        __m256i zero;
#define AQ_AVX2_STEP(t) \
        zero = aq_avx2_four(job->zeros + token + (t < tokens ? t : 0)); \
        s.low##t = _mm256_sub_epi32(s.low##t, _mm256_mullo_epi32(zero, first)); \
        s.high##t = _mm256_sub_epi32(s.high##t, _mm256_mullo_epi32(zero, second));
        AQ_AVX2_TOKENS(AQ_AVX2_STEP)
#undef AQ_AVX2_STEP
    }
#define AQ_AVX2_STEP(t) \
    if (t < tokens) { \
        aq_avx2_tile_add(low, s.low##t, job->acc + (token + t) * 32); \
        aq_avx2_tile_add(high, s.high##t, job->acc + (token + t) * 32 + 8); \
    }
    AQ_AVX2_TOKENS(AQ_AVX2_STEP)
#undef AQ_AVX2_STEP
}

/* What they gain by the mins of all groups, in registers. */
AQ_AVX2_INLINE static inline void aq_avx2_tile_mins(const aq_linear_tiles *job, size_t token,
                                                    size_t tokens) {
    AQ_SIMD_EXACT_BODY
    const float *mins = job->params + 16;
    const int32_t *total[AQ_AVX2_TILE];
    __m256 low0, low1, low2, low3, high0, high1, high2, high3;
    size_t group, t;
    low0 = low1 = low2 = low3 = high0 = high1 = high2 = high3 = _mm256_setzero_ps();
    for (t = 0; t < AQ_AVX2_TILE; t++) {
        total[t] = job->sums + (token + (t < tokens ? t : tokens - 1)) * job->groups;
    }
    for (group = 0; group < job->groups; group++, mins += 32) {
        const __m256 first = _mm256_loadu_ps(mins), second = _mm256_loadu_ps(mins + 8);
        __m256 sum;
#define AQ_AVX2_STEP(t) \
        sum = _mm256_cvtepi32_ps(aq_avx2_four(total[t] + group)); \
        low##t = _mm256_add_ps(low##t, _mm256_mul_ps(first, sum)); \
        high##t = _mm256_add_ps(high##t, _mm256_mul_ps(second, sum));
        AQ_AVX2_TOKENS(AQ_AVX2_STEP)
#undef AQ_AVX2_STEP
    }
#define AQ_AVX2_STEP(t) \
    if (t < tokens) { \
        _mm256_storeu_ps(job->acc + (token + t) * 32 + 16, low##t); \
        _mm256_storeu_ps(job->acc + (token + t) * 32 + 24, high##t); \
    }
    AQ_AVX2_TOKENS(AQ_AVX2_STEP)
#undef AQ_AVX2_STEP
}

/* One group of 16 rows by `tokens` tokens, at most AQ_AVX2_TILE; the last one stands for those that
 * are missing. */
AQ_AVX2_INLINE static inline void aq_avx2_tile(const aq_linear_tiles *job, const __m256i *codes,
                                               size_t dwords, uint32_t bits, const int8_t *x,
                                               size_t group, size_t token, size_t tokens) {
    const size_t planes = 8u / bits;
    const size_t block = bits == 4 ? 4 : dwords < 8 ? dwords : 8; /* 8 steps, at 2 bits 32 */
    const int8_t *from[AQ_AVX2_TILE];
    aq_avx2_tile_sums sum = aq_avx2_tile_zero();
    size_t begin, t;
    AQ_UNROLL
    for (t = 0; t < AQ_AVX2_TILE; t++) {
        from[t] = x + (token + (t < tokens ? t : tokens - 1)) * job->x_stride;
    }
    if (bits == 8) {
        int16_t wide[256 * AQ_AVX2_TILE];
        aq_avx2_widen_tile(from, 4 * dwords, wide);
        sum = aq_avx2_tile_wide(codes, dwords, wide);
    }
    for (begin = 0; bits < 8 && begin < dwords; begin += block) {
        aq_avx2_tile_block(codes + 2 * begin * planes, block, planes, from,
                           begin / 8 * planes * 32 + begin % 8 * 4, &sum);
    }
    aq_avx2_tile_gain(job, bits, group, token, tokens, &sum);
}

/* Dword `dword` of 8 rows, cut into parts. */
AQ_AVX2_INLINE static inline void aq_avx2_cut_dword(__m256i dword, uint32_t bits, __m256i *out) {
    const size_t parts = AQ_AVX2_PARTS(bits);
    size_t part;
    AQ_UNROLL
    for (part = 0; part < parts; part++) {
        out[2 * part] = bits < 8    ? aq_avx2_plane(dword, bits, part)
                        : part == 0 ? _mm256_and_si256(dword, _mm256_set1_epi16(255))
                                    : _mm256_srli_epi16(dword, 8);
    }
}

/* 32 bytes of each of 16 rows that lie interleaved, as vectors of 8 rows. */
AQ_AVX2_INLINE static inline void aq_avx2_take_chunk(const aq_linear_tiles *job, size_t at,
                                                     uint32_t bits, __m256i *out) {
    const size_t parts = AQ_AVX2_PARTS(bits), left = (job->row_bytes - at) / 4;
    const uint8_t *line = job->codes + 16 * at;
    size_t i, h;
    for (i = 0; i < 8; i++, line += 64) {
        _mm_prefetch((const char *)(line + AQ_AVX2_AHEAD), _MM_HINT_T0);
        for (h = 0; h < 2; h++) {
            aq_avx2_cut_dword(i < left ? _mm256_loadu_si256((const __m256i *)(const void *)(line + 32 * h))
                                       : _mm256_setzero_si256(), bits, out + 2 * i * parts + h);
        }
    }
}

/* 32 bytes of each of 16 rows, of which `left` are there, as vectors of 8 rows. */
AQ_AVX2_INLINE static inline void aq_avx2_turn_chunk(const aq_linear_tiles *job, size_t at,
                                                     uint32_t bits, __m256i *out) {
    const size_t parts = AQ_AVX2_PARTS(bits), left = job->row_bytes - at;
    const uint8_t *rows[16];
    uint8_t copy[16][32];
    __m256i turned[8];
    size_t i, h;
    for (i = 0; i < 16; i++) {
        rows[i] = job->codes + (i < job->rows ? i : job->rows - 1) * job->row_bytes + at;
        _mm_prefetch((const char *)(rows[i] + 256), _MM_HINT_T0);
        if (left < 32) {
            memset(copy[i], 0, 32);
            memcpy(copy[i], rows[i], left);
            rows[i] = copy[i];
        }
    }
    for (h = 0; h < 2; h++) {
        aq_avx2_words8(rows + 8 * h, turned);
        for (i = 0; i < 8; i++) {
            aq_avx2_cut_dword(turned[i], bits, out + 2 * i * parts + h);
        }
    }
}

AQ_AVX2_INLINE static inline void aq_avx2_tiles_of(const aq_linear_tiles *job, uint32_t bits) {
    const size_t planes = 8u / bits, parts = AQ_AVX2_PARTS(bits);
    const size_t group_bytes = job->group / planes, dwords = group_bytes / 4;
    const size_t span = group_bytes < 32 ? 32 : group_bytes;
    __m256i codes[256];
    size_t at, chunk, i, t, group = 0;
    for (at = 0; at < job->row_bytes; at += span) {
        for (chunk = 0; chunk < span; chunk += 32) {
            if (at + chunk < job->row_bytes && job->interleaved) {
                aq_avx2_take_chunk(job, at + chunk, bits, codes + chunk / 2 * parts);
            } else if (at + chunk < job->row_bytes) {
                aq_avx2_turn_chunk(job, at + chunk, bits, codes + chunk / 2 * parts);
            } else {
                memset(codes + chunk / 2 * parts, 0, 16 * parts * sizeof *codes);
            }
        }
        for (i = 0; i * dwords < span / 4 && group < job->groups; i++, group++) {
            const __m256i *first = codes + 2 * i * dwords * parts;
            const int8_t *x = job->x + at * planes + i * dwords * 4;
            for (t = 0; t < job->tokens; t += AQ_AVX2_TILE) {
                const size_t left = job->tokens - t;
                aq_avx2_tile(job, first, dwords, bits, x, group, t,
                             left < AQ_AVX2_TILE ? left : AQ_AVX2_TILE);
            }
        }
    }
    for (t = 0; job->half == 0 && t < job->tokens; t += AQ_AVX2_TILE) {
        const size_t left = job->tokens - t;
        aq_avx2_tile_mins(job, t, left < AQ_AVX2_TILE ? left : AQ_AVX2_TILE);
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_tiles(const aq_linear_tiles *given) {
    const aq_linear_tiles own = *given, *job = &own; /* which no store can change */
    switch (job->bits) {
    case 2: aq_avx2_tiles_of(job, 2); break;
    case 4: aq_avx2_tiles_of(job, 4); break;
    default: aq_avx2_tiles_of(job, 8); break;
    }
}

#undef AQ_AVX2_AHEAD
#undef AQ_AVX2_PARTS
#undef AQ_AVX2_TILE
#undef AQ_AVX2_TOKENS
#undef AQ_AVX2_KEEP
#endif /* AQ_HAVE_AVX2 */
