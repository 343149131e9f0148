/* Kernels of the forward pass: products with float activations, INT8 activations, and what turns
 * exact integer dots into results. Every table gives the bits of the scalar one. */
#ifndef AQ_SIMD_FORWARD_H
#define AQ_SIMD_FORWARD_H

#include "neon.h"
#include "simd.h"
#include "x86.h"

/* Before a loop of few rounds whose arrays are to stay in registers. (Clang does so by itself.) */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 8
#  define AQ_UNROLL _Pragma("GCC unroll 16")
#else
#  define AQ_UNROLL
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_LINEAR_ROWS 16u     /* rows of weights that go together: one lane each */
#define AQ_LINEAR_STRETCH 1024u /* a float sum is folded at every multiple of so many columns */

/* One token's integers against 16 rows, and what they become. With q the INT8 activations, z their
 * zero point and c the codes: dots Σ c·q, sums Σ (q − z), codes Σ c, each of one group.
 * A row's lane gains scale·(dots − z·codes − half·sums) and, apart from that, min·sums. */
typedef struct aq_linear_combine {
    const int32_t *dots;  /* [groups][16] */
    const int32_t *codes; /* [groups][16]; not read when zero is 0 */
    const int32_t *sums;  /* [groups] */
    const float *params;  /* [groups][2][16]: scales, mins */
    size_t groups;
    int32_t zero;         /* z */
    int32_t half;         /* 2^(bits−1) of symmetric codes, 0 of affine ones */
} aq_linear_combine;

/* Σ code·x of every group of some rows of packed codes. */
typedef struct aq_linear_dots {
    const uint8_t *codes; /* [rows], row_bytes apart */
    size_t row_bytes, rows;
    uint32_t bits, group;
    const int8_t *x;      /* as `arrange` makes it */
    int32_t *out;         /* [rows], out_stride apart; whole sixteens of groups are written */
    size_t out_stride;
    const uint8_t *next;  /* what is read soon, next_bytes for each row; it need not exist */
    size_t next_bytes;
} aq_linear_dots;

/* One token by 16 rows of interleaved codes: `dots` alone, or `dots` and `combine` in one pass, so that
 * memory is read all the while. */
typedef struct aq_linear_interleaved {
    const uint8_t *codes; /* [row_bytes / 4][16][4]: four bytes of each row in turn */
    size_t row_bytes;     /* a multiple of 4 */
    uint32_t bits, group;
    const int8_t *x;      /* as `arrange` makes it */
    int32_t *out;         /* [groups][16]; or NULL, then what follows: */
    const uint8_t *params; /* [groups][values][16] of param_bytes: F16 or F32; values 1: no mins */
    size_t param_bytes, values;
    const int32_t *sums, *codes_turned; /* as in aq_linear_combine, */
    int32_t zero, half;                 /* so these */
    float *acc;           /* [2][16] */
} aq_linear_interleaved;

/* 16 rows or less of packed codes by many tokens: what `dots` and `combine` do, token by token. */
typedef struct aq_linear_tiles {
    const uint8_t *codes;
    bool interleaved;     /* codes are those of an aq_linear_interleaved; rows is 16 */
    size_t row_bytes, rows;
    uint32_t bits, group;
    const int8_t *x;      /* [tokens], x_stride apart, as `arrange` makes it */
    size_t x_stride, tokens, groups;
    const int32_t *sums;  /* [tokens][groups] */
    const int32_t *zeros; /* [tokens]; or NULL: all of them are 0 */
    const int32_t *codes_turned; /* as aq_linear_combine.codes */
    const float *params;  /* as aq_linear_combine.params */
    int32_t half;
    float *acc;           /* [tokens][2][16] */
} aq_linear_tiles;

#define AQ_ARRANGED 256u /* `arrange` writes whole multiples of so many values */

struct aq_linear_kernels {
    const char *name; /* that of the table of kernels it goes with */
    /* y[t][r] += Σ w[r][i]·x[t][i] for count ≤ AQ_LINEAR_STRETCH: element i goes to lane i % 16,
     * folded as everywhere. Strides in floats. */
    void (*product)(const float *w, size_t w_stride, size_t rows, const float *x, size_t x_stride,
                    size_t tokens, size_t count, float *y, size_t y_stride);
    /* clamp(rint(x·inverse) + zero, −128, 127); a NaN gives any of them. |zero| ≤ 128 */
    void (*to_int8)(const float *x, size_t count, float inverse, int32_t zero, int8_t *out);
    /* 16 rows of `count` words, `stride` words apart, to out[count][16]. */
    void (*transpose)(const uint32_t *in, size_t stride, size_t count, uint32_t *out);
    /* Groups in ascending order, product and sum rounded each: acc[0][16] scales, [1][16] mins. */
    void (*combine)(const aq_linear_combine *job, float *acc);
    /* All of these or none. x in the order in which `dots` and `tiles` meet the codes, with zeros behind. */
    void (*arrange)(const int8_t *x, size_t count, uint32_t bits, int8_t *out);
    void (*dots)(const aq_linear_dots *job);
    void (*tiles)(const aq_linear_tiles *job);
    void (*interleaved)(const aq_linear_interleaved *job);
};

/* The kernels that go with a table; never NULL. */
AQ_SIMD_LIB const struct aq_linear_kernels *aq_simd_linear(const struct aq_kernels *kernels);

AQ_SIMD_LIB void aq_scalar_product(const float *w, size_t w_stride, size_t rows, const float *x,
                                   size_t x_stride, size_t tokens, size_t count, float *y,
                                   size_t y_stride);
AQ_SIMD_LIB void aq_scalar_to_int8(const float *x, size_t count, float inverse, int32_t zero,
                                   int8_t *out);
AQ_SIMD_LIB void aq_scalar_transpose(const uint32_t *in, size_t stride, size_t count,
                                     uint32_t *out);
AQ_SIMD_LIB void aq_scalar_combine(const aq_linear_combine *job, float *acc);
#if defined(AQ_HAVE_AVX2)
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_product(const float *w, size_t w_stride, size_t rows,
                                         const float *x, size_t x_stride, size_t tokens,
                                         size_t count, float *y, size_t y_stride);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_to_int8(const float *x, size_t count, float inverse, int32_t zero,
                                         int8_t *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_transpose(const uint32_t *in, size_t stride, size_t count,
                                           uint32_t *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_combine(const aq_linear_combine *job, float *acc);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_arrange(const int8_t *x, size_t count, uint32_t bits, int8_t *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_dots(const aq_linear_dots *job);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_tiles(const aq_linear_tiles *job);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_interleaved(const aq_linear_interleaved *given);
#endif
#if defined(AQ_HAVE_AVX512)
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_product(const float *w, size_t w_stride, size_t rows,
                                             const float *x, size_t x_stride, size_t tokens,
                                             size_t count, float *y, size_t y_stride);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_to_int8(const float *x, size_t count, float inverse,
                                             int32_t zero, int8_t *out);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_transpose(const uint32_t *in, size_t stride, size_t count,
                                               uint32_t *out);
AQ_AVX512 AQ_SIMD_LIB void aq_avx512_combine(const aq_linear_combine *job, float *acc);
#endif
#if defined(AQ_HAVE_VNNI)
AQ_VNNI AQ_SIMD_LIB void aq_vnni_arrange(const int8_t *x, size_t count, uint32_t bits, int8_t *out);
AQ_VNNI AQ_SIMD_LIB void aq_vnni_dots(const aq_linear_dots *job);
AQ_VNNI AQ_SIMD_LIB void aq_vnni_tiles(const aq_linear_tiles *job);
AQ_VNNI AQ_SIMD_LIB void aq_vnni_interleaved(const aq_linear_interleaved *given);
#endif
#if defined(AQ_HAVE_NEON)
AQ_SIMD_LIB void aq_neon_product(const float *w, size_t w_stride, size_t rows, const float *x,
                                 size_t x_stride, size_t tokens, size_t count, float *y,
                                 size_t y_stride);
AQ_SIMD_LIB void aq_neon_to_int8(const float *x, size_t count, float inverse, int32_t zero,
                                 int8_t *out);
AQ_SIMD_LIB void aq_neon_transpose(const uint32_t *in, size_t stride, size_t count, uint32_t *out);
AQ_SIMD_LIB void aq_neon_combine(const aq_linear_combine *job, float *acc);
#endif

#ifdef __cplusplus
}
#endif
#endif /* AQ_SIMD_FORWARD_H */
