/* Random rotations of a layer's input: what rounds badly, a few large weights or inputs, becomes many of
 * middling size, near to a normal distribution, which is what trellis codes are made for.
 *
 * R = H·D for a width n that is a power of two: D holds random signs, H is the Hadamard matrix over √n.
 * For other widths, p being the largest power of two below n, R = H″·D″·H′·D′: H′ mixes the first p
 * values, H″ the last p, which overlap because 2p > n; D″ has signs for the latter alone. R is
 * orthogonal, so W·x = (W·Rᵀ)·(R·x), and a row of weights is turned as an input is. The use before
 * rounding is that of QuIP (Chee et al., arXiv 2307.13304) and QuIP# (Tseng et al., arXiv 2402.04396).
 *
 * Signs: bit i mod 64 of word i/64 is 1 where value i of D′ changes its sign. Word k is number k of
 * SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) from the seed on: with z = seed + (k + 1)·
 * 0x9E3779B97F4A7C15 mod 2^64, z = (z ^ z>>30)·0xBF58476D1CE4E5B9, z = (z ^ z>>27)·0x94D049BB133111EB,
 * z ^ z>>31. D″ takes the words from ⌈n/64⌉ on, its bit i belongs to value n − p + i. */
#ifndef AQ_ROTATE_H
#define AQ_ROTATE_H

#include "quant.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows [rows, n] in place, one after the other; seed 0 stands for no rotation. F32: butterflies in the
 * order of the kernel, the same bits on every ISA. The caller sets the floating-point mode. */
AQ_LIB void aq_rotate_rows(const struct aq_kernels *kernels, uint32_t seed, float *x, size_t rows,
                           size_t n);
/* The same for weights that may be anything: SIZE_MAX, or the index of a NaN or infinity and the value;
 * then nothing is rotated. Sets the floating-point mode itself. */
AQ_LIB size_t aq_rotate_finite(const struct aq_kernels *kernels, uint32_t seed, float *x, size_t rows,
                               size_t n, double *value);
/* The inverse, to rounding. */
AQ_LIB void aq_rotate_back(const struct aq_kernels *kernels, uint32_t seed, float *x, size_t rows,
                           size_t n);
/* R·H·Rᵀ of a symmetric matrix [n, n], in place; symmetric to the bit. */
AQ_LIB void aq_rotate_hessian(const struct aq_kernels *kernels, uint32_t seed, float *hessian,
                              size_t n);

#ifdef __cplusplus
}
#endif
#endif /* AQ_ROTATE_H */
