/*
 * WHAT IT IS
 *     The kernels of ArrowQuant alone: fits, codes and decodes rows of weights at 2, 4 or 8 bits,
 *     and multiplies codes with 8-bit integers.
 *     Rows in memory only; no allocation, no errors beyond a bool, no threads, no files.
 *     arrowquant.h has all of that, and gives the same bits.
 *
 * HOW TO USE IT
 *     In exactly one C or C++ file write
 *         #define ARROWQUANT_SIMD_IMPLEMENTATION
 *         #include "arrowquant_simd.h"
 *     and plain #include "arrowquant_simd.h" wherever else you need it. Works beside arrowquant.h,
 *     in the same file or in another one. ARROWQUANT_SIMD_STATIC makes every function static;
 *     ARROWQUANT_NO_SIMD and ARROWQUANT_NO_AVX512 leave out what they name.
 *
 * A COMPLETE PROGRAM (cc -O2 first.c -o first)
 *     #define ARROWQUANT_SIMD_IMPLEMENTATION
 *     #include "arrowquant_simd.h"
 *     #include <stdio.h>
 *
 *     int main(void) {
 *         float row[256], back[256];
 *         aq_simd_group groups[2];
 *         unsigned char codes[128];
 *         aq_simd_figures figures;
 *         int i;
 *         for (i = 0; i < 256; i++)
 *             row[i] = (float)(i * i % 101) / 50.0f - 1.0f;
 *         if (!aq_simd_fit_row(NULL, row, NULL, 256, 128, 4, false, groups))
 *             return 1;
 *         aq_simd_encode_row(NULL, row, 256, 128, 4, false, groups, codes);
 *         aq_simd_decode_row(NULL, codes, 256, 128, 4, false, groups, back);
 *         aq_simd_compare_rows(NULL, row, back, 256, &figures);
 *         printf("%s: error %.5f of %.2f\n", aq_simd_name(NULL), figures.error, figures.original);
 *         return 0;
 *     }
 *
 * RULES
 *     A row of `cols` weights is cut into groups of `group_size` (32, 64, 128 or 256), the last one
 *     may be short: (cols + group_size − 1) / group_size groups. `bits` is 2, 4 or 8. Codes are
 *     packed LSB first, (cols·bits + 7) / 8 bytes. `kernels` NULL means the best for this machine.
 *     Every ISA gives the same bits, whatever the rounding mode of the caller.
 */
#ifndef ARROWQUANT_SIMD_H
#define ARROWQUANT_SIMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef ARROWQUANT_SIMD_API
#  ifdef ARROWQUANT_SIMD_STATIC
#    if defined(__GNUC__) || defined(__clang__)
#      define ARROWQUANT_SIMD_API static __attribute__((unused))
#    else
#      define ARROWQUANT_SIMD_API static
#    endif
#  else
#    define ARROWQUANT_SIMD_API extern
#  endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct aq_kernels; /* the functions of one ISA */

/* "scalar", or NULL for the best; NULL is returned when this build or this machine lacks it. */
ARROWQUANT_SIMD_API const struct aq_kernels *aq_simd_open(const char *isa);
ARROWQUANT_SIMD_API const char *aq_simd_name(const struct aq_kernels *kernels);

/* A group's parameters. Affine: w = scale·q + min. Symmetric: w = scale·(q − 2^(bits−1)), min 0. */
typedef struct aq_simd_group {
    float scale, min;
} aq_simd_group;

/* Least squares, each column weighted by column_weights[cols] (finite, ≥ 0) unless that is NULL.
 * A group whose values are all alike gets scale 1 and min that value (symmetric: that value as the
 * scale, or 1 when it is 0). False when a weight is not finite, or when the largest magnitude of a
 * group of unlike weights, or of its column weights, is outside 2^-40 … 2^40: arrowquant.h takes
 * any. Round `groups` to the type you store, then encode. */
ARROWQUANT_SIMD_API bool aq_simd_fit_row(const struct aq_kernels *kernels, const float *weights,
                                         const float *column_weights, size_t cols,
                                         size_t group_size, unsigned bits, bool symmetric,
                                         aq_simd_group *groups);
/* q = clamp(round((w − min)·(1/scale))), halves to even. No scale may be 0. */
ARROWQUANT_SIMD_API void aq_simd_encode_row(const struct aq_kernels *kernels, const float *weights,
                                            size_t cols, size_t group_size, unsigned bits,
                                            bool symmetric, const aq_simd_group *groups,
                                            void *codes);
ARROWQUANT_SIMD_API void aq_simd_decode_row(const struct aq_kernels *kernels, const void *codes,
                                            size_t cols, size_t group_size, unsigned bits,
                                            bool symmetric, const aq_simd_group *groups,
                                            float *out);

/* Sums over a pair of rows: a·b, a², b², (a − b)², and the largest |a − b|. For values whose
 * squares F32 holds. */
typedef struct aq_simd_figures {
    double dot, original, quantized, error, max_error;
} aq_simd_figures;
ARROWQUANT_SIMD_API void aq_simd_compare_rows(const struct aq_kernels *kernels, const float *a,
                                              const float *b, size_t count,
                                              aq_simd_figures *figures);

/* Dot products of 8-bit integers, exact: what quantized inference is made of. */

/* Σ a·b; count ≤ 65536. */
ARROWQUANT_SIMD_API int32_t aq_simd_dot(const struct aq_kernels *kernels, const int8_t *a,
                                        const int8_t *b, size_t count);
/* Σ q·x of every group of every row, q the codes as stored (0 … 2^bits − 1): out[rows][groups].
 * Rows of packed codes begin row_bytes apart; x[cols] serves all of them. With x ≈ x_scale·x, a
 * group's part of the product is x_scale·(scale·Σ q·x + min·Σ x), symmetric
 * x_scale·scale·(Σ q·x − 2^(bits−1)·Σ x). */
ARROWQUANT_SIMD_API void aq_simd_dot_rows(const struct aq_kernels *kernels, const void *codes,
                                          size_t row_bytes, size_t rows, unsigned bits,
                                          const int8_t *x, size_t cols, size_t group_size,
                                          int32_t *out);
/* Σ x of every group. */
ARROWQUANT_SIMD_API void aq_simd_sum_groups(const int8_t *x, size_t cols, size_t group_size,
                                            int32_t *out);
/* Packed codes, one byte each: for many x, unpack once and call aq_simd_dot_rows with 8 bits. */
ARROWQUANT_SIMD_API void aq_simd_unpack_row(const struct aq_kernels *kernels, const void *codes,
                                            size_t cols, unsigned bits, uint8_t *out);

/* Exact, from any address; a NaN comes out quiet. F8 E4M3 is the variant without infinities. */
ARROWQUANT_SIMD_API void aq_simd_widen_f16(const struct aq_kernels *kernels, const void *in,
                                           float *out, size_t count);
ARROWQUANT_SIMD_API void aq_simd_widen_bf16(const struct aq_kernels *kernels, const void *in,
                                            float *out, size_t count);
ARROWQUANT_SIMD_API void aq_simd_widen_f8_e4m3(const struct aq_kernels *kernels, const void *in,
                                               float *out, size_t count);
ARROWQUANT_SIMD_API void aq_simd_widen_f8_e5m2(const struct aq_kernels *kernels, const void *in,
                                               float *out, size_t count);
/* To nearest, halves to even; beyond the largest: infinity. */
ARROWQUANT_SIMD_API void aq_simd_narrow_f16(const struct aq_kernels *kernels, const float *in,
                                            void *out, size_t count);
ARROWQUANT_SIMD_API void aq_simd_narrow_bf16(const struct aq_kernels *kernels, const float *in,
                                             void *out, size_t count);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_SIMD_H */
