/* What the AVX2 and AVX-512 kernels share. Both tables are compiled whatever the -march, through
 * attributes on each function, and used where the machine has them. */
#ifndef AQ_SIMD_X86_H
#define AQ_SIMD_X86_H

#include "simd.h"

#if (defined(__x86_64__) || defined(_M_X64)) && !defined(ARROWQUANT_NO_SIMD) && \
    (defined(__GNUC__) || defined(_MSC_VER))
#  define AQ_HAVE_AVX2 1
#  if !defined(ARROWQUANT_NO_AVX512)
#    define AQ_HAVE_AVX512 1
#  endif
#endif

#if defined(AQ_HAVE_AVX2)
#include <immintrin.h>

/* AQ_AVX2 and AQ_AVX512 stand before each function of that ISA, the _INLINE forms before
 * `static inline`. A compiler inlines only between equal attributes, so they include AQ_SIMD_EXACT;
 * AQ_SIMD_EXACT_BODY is still the first line of a body with float arithmetic. */
#if defined(__clang__)
#  define AQ_AVX2 __attribute__((target("avx2,f16c")))
#  define AQ_AVX2_INLINE __attribute__((target("avx2,f16c"), always_inline))
#  define AQ_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c")))
#  define AQ_AVX512_INLINE \
      __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c"), always_inline))
#elif defined(__GNUC__)
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
#  define AQ_AVX2
#  define AQ_AVX2_INLINE
#  define AQ_AVX512
#  define AQ_AVX512_INLINE
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_X86_MAGIC 12582912.0f    /* 1.5·2^23: the sum's low bits are the rounded integer */
#define AQ_X86_MAGIC_BITS 0x4B400000 /* of that float */
#define AQ_X86_GROUPS 8u            /* so many groups are fitted side by side */

/* Groups of equal length, one behind the other, and what a pass reads and finds of each. */
typedef struct aq_x86_batch {
    const float *x, *weights; /* weights: or NULL */
    size_t length, groups;
    uint32_t active;          /* bit g: group g is wanted */
    float base[AQ_X86_GROUPS], inverse[AQ_X86_GROUPS], low[AQ_X86_GROUPS], high[AQ_X86_GROUPS];
    float sums[AQ_X86_GROUPS][4]; /* with codes c: Σ w·c, Σ w·c², Σ w·c·x, not used */
} aq_x86_batch;

/* The passes that each ISA has of its own. */
typedef struct aq_x86_passes {
    /* c = round((x − base)·inverse) within low … high: the sums of the active groups. */
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
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_decode(const void *codes, size_t count, size_t group,
                                        uint32_t bits, bool symmetric, const aq_simd_grid *grids,
                                        float *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_compare(const float *a, const float *b, size_t count,
                                         aq_simd_sums *out);

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
#endif

#ifdef __cplusplus
}
#endif
#endif /* AQ_HAVE_AVX2 */
#endif /* AQ_SIMD_X86_H */
