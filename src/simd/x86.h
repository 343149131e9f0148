/* What the AVX2 and AVX-512 kernels share. Both tables are compiled whatever the -march, through
 * attributes on each function, and used where the machine has them. */
#ifndef AQ_SIMD_X86_H
#define AQ_SIMD_X86_H

#include "simd.h"

/* Compilers that have the intrinsics and attributes. */
#if (defined(__x86_64__) || defined(_M_X64)) && !defined(ARROWQUANT_NO_SIMD) && \
    !defined(__TINYC__)
#  if defined(_MSC_VER) || (defined(__clang__) ? __clang_major__ >= 7 : __GNUC__ >= 7)
#    define AQ_HAVE_AVX2 1
#    if !defined(ARROWQUANT_NO_AVX512)
#      define AQ_HAVE_AVX512 1
#      if defined(_MSC_VER) || defined(__clang__) || __GNUC__ >= 8
#        define AQ_HAVE_VNNI 1
#      endif
#    endif
#  endif
#endif

#if defined(AQ_HAVE_AVX2)

/* Some releases of GCC, in C++, see an uninitialized variable in _mm512_undefined_ps, which is the
 * idea of it, wherever it is inlined. */
#if defined(__GNUC__) && !defined(__clang__)
#  define AQ_X86_BEGIN \
      _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wuninitialized\"") \
          _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")
#  define AQ_X86_END _Pragma("GCC diagnostic pop")
#else
#  define AQ_X86_BEGIN
#  define AQ_X86_END
#endif
AQ_X86_BEGIN
#include <immintrin.h>
AQ_X86_END

/* AQ_AVX2 and AQ_AVX512 stand before each function of that ISA, the _INLINE forms before
 * `static inline`. A compiler inlines only between equal attributes, so they include AQ_SIMD_EXACT;
 * AQ_SIMD_EXACT_BODY is still the first line of a body with float arithmetic. AQ_AVX2_FMA is for
 * the linear algebra, where products and sums are fused on purpose, on every ISA. */
#if defined(__clang__)
#  define AQ_AVX2_FMA __attribute__((target("avx2,fma")))
#  define AQ_AVX2_FMA_INLINE __attribute__((target("avx2,fma"), always_inline))
#  define AQ_AVX2 __attribute__((target("avx2,f16c")))
#  define AQ_AVX2_INLINE __attribute__((target("avx2,f16c"), always_inline))
#  define AQ_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c")))
#  define AQ_AVX512_INLINE \
      __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c"), always_inline))
#  define AQ_VNNI __attribute__((target("avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c")))
#  define AQ_VNNI_INLINE \
      __attribute__((target("avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c"), \
                     always_inline))
#elif defined(__GNUC__)
#  define AQ_VNNI \
      __attribute__((target("avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c"), \
                     optimize("fp-contract=off")))
#  define AQ_VNNI_INLINE \
      __attribute__((target("avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c"), \
                     optimize("fp-contract=off"), always_inline))
#  define AQ_AVX2_FMA __attribute__((target("avx2,fma"), optimize("fp-contract=off")))
#  define AQ_AVX2_FMA_INLINE \
      __attribute__((target("avx2,fma"), optimize("fp-contract=off"), always_inline))
#  define AQ_AVX2 __attribute__((target("avx2,f16c"), optimize("fp-contract=off")))
#  define AQ_AVX2_INLINE \
      __attribute__((target("avx2,f16c"), optimize("fp-contract=off"), always_inline))
#  define AQ_AVX512 \
      __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c"), \
                     optimize("fp-contract=off")))
#  define AQ_AVX512_INLINE \
      __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c"), \
                     optimize("fp-contract=off"), always_inline))
#else
#  define AQ_AVX2_FMA
#  define AQ_AVX2_FMA_INLINE
#  define AQ_AVX2
#  define AQ_AVX2_INLINE
#  define AQ_AVX512
#  define AQ_AVX512_INLINE
#  define AQ_VNNI
#  define AQ_VNNI_INLINE
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_X86_MAGIC 12582912.0f     /* 1.5·2^23: the sum's low bits are the rounded integer */
#define AQ_X86_MAGIC_BITS 0x4B400000u /* of that float */
#define AQ_X86_GROUPS 8u             /* so many groups are fitted side by side */

/* Groups of equal length, a multiple of 16, one behind the other, and what a pass reads and finds of
 * each. A short group is filled up with values that weigh nothing. */
typedef struct aq_x86_batch {
    const float *x, *weights; /* weights: or NULL */
    size_t length, groups;
    uint32_t active;          /* bit g: group g is wanted */
    float base[AQ_X86_GROUPS], inverse[AQ_X86_GROUPS];
    float low[AQ_X86_GROUPS], high[AQ_X86_GROUPS]; /* both plus AQ_X86_MAGIC */
    float code[AQ_X86_GROUPS];  /* with codes c: Σ w·c */
    float code2[AQ_X86_GROUPS]; /* Σ w·c² */
    float cross[AQ_X86_GROUPS]; /* Σ w·c·x */
} aq_x86_batch;

/* The passes that each ISA has of its own. */
typedef struct aq_x86_passes {
    /* c = round((x − base)·inverse) within low … high: the sums of the active groups, and zeros. */
    void (*codes)(aq_x86_batch *batch);
    /* y = x − centre, unless y is NULL; the sums Σ w·(x − centre). */
    void (*centre)(const aq_x86_batch *batch, const float *centre, float *y, float *sums);
    /* Σ w, and the range of the values that weigh something where that is wider than a point. */
    void (*live)(const aq_x86_batch *batch, float *weights, float *low, float *high);
} aq_x86_passes;

/* ---- x86_fit.c: the search, over the passes of either ISA */

AQ_AVX2 AQ_SIMD_LIB void aq_x86_fit(const aq_x86_passes *passes, const float *x,
                                    const float *weights, size_t count, size_t group, uint32_t bits,
                                    bool symmetric, const aq_simd_range *ranges,
                                    aq_simd_fit *out);

/* ---- the tables' functions */

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_f16_to_f32(const void *in, float *out, size_t count);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_bf16_to_f32(const void *in, float *out, size_t count);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_f8_e4m3_to_f32(const void *in, float *out, size_t count);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_f8_e5m2_to_f32(const void *in, float *out, size_t count);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_f32_to_f16(const float *in, void *out, size_t count);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_f32_to_bf16(const float *in, void *out, size_t count);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_range(const float *x, size_t count, size_t group,
                                       aq_simd_range *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_fit_affine(const float *x, const float *weights, size_t count,
                                            size_t group, uint32_t bits,
                                            const aq_simd_range *ranges, aq_simd_fit *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_fit_symmetric(const float *x, const float *weights, size_t count,
                                               size_t group, uint32_t bits,
                                               const aq_simd_range *ranges, aq_simd_fit *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_encode(const float *x, size_t count, size_t group, uint32_t bits,
                                        bool symmetric, const aq_simd_grid *grids, void *codes);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_range_bf16(const void *in, size_t count, size_t group,
                                            aq_simd_range *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_encode_bf16(const void *in, size_t count, size_t group,
                                             uint32_t bits, bool symmetric,
                                             const aq_simd_grid *grids, void *codes);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_decode(const void *codes, size_t count, size_t group,
                                        uint32_t bits, bool symmetric, const aq_simd_grid *grids,
                                        float *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_compare(const float *a, const float *b, size_t count,
                                         aq_simd_sums *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_strips_load(const float *x, const float *weights,
                                             aq_simd_strips *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_strips_sums(aq_simd_strips *strips, float most);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_strips_codes(const aq_simd_strips *strips, float most,
                                              const float *x, uint8_t *codes);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_stream(const void *in, void *out, size_t bytes);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_decode_past(const void *codes, size_t count, size_t group,
                                             uint32_t bits, bool symmetric,
                                             const aq_simd_grid *grids, float *out);
AQ_AVX2_FMA AQ_SIMD_LIB void aq_avx2_update(float *c, const float *a, const float *b,
                                            size_t b_step, size_t depth, size_t columns);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_hadamard(float *x, size_t count, float scale);
AQ_AVX2 AQ_SIMD_LIB int32_t aq_avx2_dot(const int8_t *a, const int8_t *b, size_t count);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_dot_codes(const void *codes, size_t row_bytes, size_t rows,
                                           uint32_t bits, const int8_t *x, size_t count,
                                           size_t group, int32_t *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_unpack(const void *codes, size_t count, uint32_t bits,
                                        uint8_t *out);

#if defined(AQ_HAVE_AVX512)
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_f16_to_f32(const void *in, float *out, size_t count);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_bf16_to_f32(const void *in, float *out, size_t count);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_f8_e4m3_to_f32(const void *in, float *out, size_t count);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_f8_e5m2_to_f32(const void *in, float *out, size_t count);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_f32_to_f16(const float *in, void *out, size_t count);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_f32_to_bf16(const float *in, void *out, size_t count);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_range(const float *x, size_t count, size_t group,
                                           aq_simd_range *out);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_fit_affine(const float *x, const float *weights, size_t count,
                                                size_t group, uint32_t bits,
                                                const aq_simd_range *ranges, aq_simd_fit *out);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_fit_symmetric(const float *x, const float *weights,
                                                   size_t count, size_t group, uint32_t bits,
                                                   const aq_simd_range *ranges, aq_simd_fit *out);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_encode(const float *x, size_t count, size_t group,
                                            uint32_t bits, bool symmetric,
                                            const aq_simd_grid *grids, void *codes);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_decode(const void *codes, size_t count, size_t group,
                                            uint32_t bits, bool symmetric,
                                            const aq_simd_grid *grids, float *out);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_compare(const float *a, const float *b, size_t count,
                                             aq_simd_sums *out);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_strips_load(const float *x, const float *weights,
                                                 aq_simd_strips *out);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_strips_sums(aq_simd_strips *strips, float most);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_strips_codes(const aq_simd_strips *strips, float most,
                                                  const float *x, uint8_t *codes);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_stream(const void *in, void *out, size_t bytes);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_decode_past(const void *codes, size_t count, size_t group,
                                                 uint32_t bits, bool symmetric,
                                                 const aq_simd_grid *grids, float *out);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_update(float *c, const float *a, const float *b,
                                            size_t b_step, size_t depth, size_t columns);
#endif

#if defined(AQ_HAVE_VNNI)
AQ_VNNI AQ_SIMD_LIB int32_t aq_vnni_dot(const int8_t *a, const int8_t *b, size_t count);
AQ_VNNI AQ_SIMD_LIB void aq_vnni_dot_codes(const void *codes, size_t row_bytes, size_t rows,
                                           uint32_t bits, const int8_t *x, size_t count,
                                           size_t group, int32_t *out);
AQ_VNNI AQ_SIMD_LIB void aq_vnni_unpack(const void *codes, size_t count, uint32_t bits,
                                        uint8_t *out);
#endif

/* The least and the greatest of eight floats, the greatest of eight unsigned integers. */
AQ_AVX2_INLINE static inline float aq_avx2_least(__m256 value) {
    __m128 part = _mm_min_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    part = _mm_min_ps(part, _mm_movehl_ps(part, part));
    return _mm_cvtss_f32(_mm_min_ss(part, _mm_movehdup_ps(part)));
}

AQ_AVX2_INLINE static inline float aq_avx2_greatest(__m256 value) {
    __m128 part = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    part = _mm_max_ps(part, _mm_movehl_ps(part, part));
    return _mm_cvtss_f32(_mm_max_ss(part, _mm_movehdup_ps(part)));
}

AQ_AVX2_INLINE static inline uint32_t aq_avx2_greatest_bits(__m256i value) {
    __m128i part = _mm_max_epu32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
    part = _mm_max_epu32(part, _mm_shuffle_epi32(part, 0xEE));
    part = _mm_max_epu32(part, _mm_shuffle_epi32(part, 0x55));
    return (uint32_t)_mm_cvtsi128_si32(part);
}

/* 32 codes of 8, 4 or 2 bits from bits · 4 bytes, one byte each. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_unpack32(const uint8_t *in, uint32_t bits) {
    __m256i codes;
    if (bits == 8) {
        return _mm256_loadu_si256((const __m256i *)(const void *)in);
    }
    if (bits == 4) {
        codes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)in));
        codes = _mm256_or_si256(codes, _mm256_slli_epi16(codes, 4));
        return _mm256_and_si256(codes, _mm256_set1_epi8(15));
    }
    codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)in));
    codes = _mm256_or_si256(codes, _mm256_slli_epi32(codes, 12));
    codes = _mm256_or_si256(codes, _mm256_slli_epi32(codes, 6));
    return _mm256_and_si256(codes, _mm256_set1_epi8(3));
}

/* The sums of four vectors of eight integers. */
AQ_AVX2_INLINE static inline __m128i aq_avx2_total4(const __m256i *sum) {
    __m256i ab = _mm256_hadd_epi32(sum[0], sum[1]), cd = _mm256_hadd_epi32(sum[2], sum[3]);
    __m256i all = _mm256_hadd_epi32(ab, cd);
    return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

/* The 16 lanes of a sum, and their fold: as aq_scalar_fold. */
typedef struct aq_avx2_pair {
    __m256 low, high;
} aq_avx2_pair;

AQ_AVX2_INLINE static inline float aq_avx2_fold(aq_avx2_pair sum) {
    AQ_SIMD_EXACT_BODY
    __m256 half = _mm256_add_ps(sum.low, sum.high);
    __m128 part = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    part = _mm_add_ps(part, _mm_movehl_ps(part, part));
    return _mm_cvtss_f32(_mm_add_ss(part, _mm_movehdup_ps(part)));
}

/* Four sums at once, of which lane i + 8 has been added to lane i. */
AQ_AVX2_INLINE static inline __m128 aq_avx2_fold4(__m256 a, __m256 b, __m256 c, __m256 d) {
    AQ_SIMD_EXACT_BODY
    __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20),
                              _mm256_permute2f128_ps(a, b, 0x31));
    __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20),
                              _mm256_permute2f128_ps(c, d, 0x31));
    __m256 all = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xEE));
    all = _mm256_add_ps(_mm256_shuffle_ps(all, all, 0x88), _mm256_shuffle_ps(all, all, 0xDD));
    return _mm_unpacklo_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

/* Four bytes in every lane. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_four(const void *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Plane `plane` of 32 bytes, one byte a code; at 8 bits plane 0 is the lower half, 1 the upper. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_plane(__m256i packed, uint32_t bits, size_t plane) {
    const __m256i mask = _mm256_set1_epi8(bits == 2 ? 3 : 15);
    switch (bits == 2 ? plane * 2 : plane * 4) {
    case 0: break;
    case 2: packed = _mm256_srli_epi16(packed, 2); break;
    case 4: packed = _mm256_srli_epi16(packed, 4); break;
    default: packed = _mm256_srli_epi16(packed, 6); break;
    }
    return _mm256_and_si256(packed, mask);
}

/* Word i of 8 rows of 8 words: out[i]. Rows at any address. */
AQ_AVX2_INLINE static inline void aq_avx2_words8(const uint8_t *const *rows, __m256i *out) {
#define AQ_X86_ROW(r) _mm256_loadu_si256((const __m256i *)(const void *)rows[r])
    const __m256i r0 = AQ_X86_ROW(0), r1 = AQ_X86_ROW(1), r2 = AQ_X86_ROW(2), r3 = AQ_X86_ROW(3);
    const __m256i r4 = AQ_X86_ROW(4), r5 = AQ_X86_ROW(5), r6 = AQ_X86_ROW(6), r7 = AQ_X86_ROW(7);
#undef AQ_X86_ROW
    const __m256i a0 = _mm256_unpacklo_epi32(r0, r1), a1 = _mm256_unpackhi_epi32(r0, r1);
    const __m256i a2 = _mm256_unpacklo_epi32(r2, r3), a3 = _mm256_unpackhi_epi32(r2, r3);
    const __m256i a4 = _mm256_unpacklo_epi32(r4, r5), a5 = _mm256_unpackhi_epi32(r4, r5);
    const __m256i a6 = _mm256_unpacklo_epi32(r6, r7), a7 = _mm256_unpackhi_epi32(r6, r7);
    /* words k and k + 4 of four rows */
    const __m256i b0 = _mm256_unpacklo_epi64(a0, a2), b1 = _mm256_unpackhi_epi64(a0, a2);
    const __m256i b2 = _mm256_unpacklo_epi64(a1, a3), b3 = _mm256_unpackhi_epi64(a1, a3);
    const __m256i b4 = _mm256_unpacklo_epi64(a4, a6), b5 = _mm256_unpackhi_epi64(a4, a6);
    const __m256i b6 = _mm256_unpacklo_epi64(a5, a7), b7 = _mm256_unpackhi_epi64(a5, a7);
    out[0] = _mm256_permute2x128_si256(b0, b4, 0x20);
    out[1] = _mm256_permute2x128_si256(b1, b5, 0x20);
    out[2] = _mm256_permute2x128_si256(b2, b6, 0x20);
    out[3] = _mm256_permute2x128_si256(b3, b7, 0x20);
    out[4] = _mm256_permute2x128_si256(b0, b4, 0x31);
    out[5] = _mm256_permute2x128_si256(b1, b5, 0x31);
    out[6] = _mm256_permute2x128_si256(b2, b6, 0x31);
    out[7] = _mm256_permute2x128_si256(b3, b7, 0x31);
}

#if defined(AQ_HAVE_AVX512)

/* Which lanes of the next vector are in use when so many values, at least 1, are left. */
AQ_AVX512_INLINE static inline __mmask16 aq_avx512_lanes(size_t left) {
    return left < 16 ? (__mmask16)((1u << left) - 1u) : (__mmask16)0xFFFFu;
}

AQ_AVX512_INLINE static inline float aq_avx512_least(__m512 value) {
    return aq_avx2_least(_mm256_min_ps(_mm512_castps512_ps256(value),
                                       _mm512_extractf32x8_ps(value, 1)));
}

AQ_AVX512_INLINE static inline float aq_avx512_greatest(__m512 value) {
    return aq_avx2_greatest(_mm256_max_ps(_mm512_castps512_ps256(value),
                                          _mm512_extractf32x8_ps(value, 1)));
}

/* Four sums of 16 lanes each, as aq_scalar_fold. */
AQ_AVX512_INLINE static inline __m128 aq_avx512_fold4(__m512 a, __m512 b, __m512 c, __m512 d) {
    AQ_SIMD_EXACT_BODY
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
    __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88),
                               _mm512_shuffle_f32x4(ab, cd, 0xDD));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xEE));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xB1));
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(first, all));
}

#endif

#ifdef __cplusplus
}
#endif
#endif /* AQ_HAVE_AVX2 */
#endif /* AQ_SIMD_X86_H */
