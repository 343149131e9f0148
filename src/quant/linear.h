/* Linear algebra for methods that know the second moments of a layer's input: a Cholesky factor, and
 * the feedback of rounding errors from column to column. Inside quant/ only.
 *
 * With H = XᵀX/n, rounding a row w to ŵ changes the output by e·H·eᵀ, e = ŵ − w. H is factored as
 * R·D·Rᵀ with R upper triangular, ones on its diagonal: the change is then Σ_j d_j·(e·R)_j², and
 * (e·R)_j = e_j + Σ_{k<j} e_k·R_kj. So column j is best rounded from w_j − Σ_{k<j} e_k·R_kj, as soon
 * as those before it are. This is GPTQ (Frantar et al., arXiv 2210.17323) in the form of
 * Chee et al., arXiv 2307.13304, section 4: the same feedback, and H need not be inverted.
 *
 * All sums are F32, one fused multiply-add a term, k ascending: the same bits whatever the ISA, the
 * threads and the blocks. Matrices lie in panels of 32 rows: [columns][32] floats. */
#ifndef AQ_LINEAR_H
#define AQ_LINEAR_H

#include "quant.h"

#include "../simd/simd.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_PANEL AQ_SIMD_PANEL
#define AQ_STRIP AQ_SIMD_STRIP
#define AQ_LAZY 128u /* columns after which the feedback is passed on to all that follow */

/* H = XᵀX/n of a layer, factored. Columns are taken in the order of descending diagonals. */
typedef struct aq_factor {
    const aq_context *context;
    size_t n, padded;   /* padded: to whole panels */
    float *strips;      /* R by strips of 8 columns: [k ≤ last column of the strip][8] */
    float *pivots;      /* D [padded] */
    float *added;       /* what was added to the diagonal, by place */
    uint32_t *order;    /* order[place] = column */
    float *diagonal;    /* of H itself, by column */
    const float *hessian; /* H itself [n, n], if who made the factor keeps it; else NULL */
    double damping;     /* part of the mean diagonal that was added */
    uint32_t dead;      /* columns whose diagonal is 0: an input that is always 0 */
    void *memory;       /* all arrays */
    size_t memory_bytes;
} aq_factor;

/* Damping starts at this part of the mean diagonal and grows tenfold until the factor exists. */
#define AQ_DAMPING 0.01
#define AQ_DAMPING_STEPS 5u

/* Bytes at most in use while a factor of n columns is made. */
AQ_LIB uint64_t aq_factor_bytes(uint64_t n);
/* Checks and factors hessian [n, n], symmetric; on so many threads. AQ_ERR_QUANTIZATION for NaN,
 * infinity, a negative diagonal, and a matrix that no damping makes positive definite. */
AQ_LIB aq_status aq_factor_make(aq_context *context, uint32_t threads, const float *hessian,
                                size_t n, aq_factor *out, aq_error *err);
AQ_LIB void aq_factor_free(aq_factor *factor); /* a zeroed one allowed */

/* The next address that is a multiple of 64: columns of panels must not straddle cache lines. */
AQ_LIB void *aq_align_64(void *pointer);
/* Strip s of R: rows k of 8 values. */
AQ_LIB const float *aq_factor_strip(const aq_factor *factor, size_t strip);

#define AQ_FEEDBACK_PANELS 8u /* so many panels are taken through the columns at most */

/* Rounds one column of `rows` rows (whole panels): `target` is what is to be rounded, `rounded` what
 * a reader will see. `place` counts in the order of the factor, `column` as in the layer. */
typedef struct aq_rounding {
    void (*round)(void *user, size_t place, size_t column, const float *target, float *rounded,
                  size_t rows);
    void *user;
} aq_rounding;

/* Goes through the columns of `panels` panels. x holds w by place, [panels][padded][32], and at the
 * end the errors ŵ − w; `sums`, as large, is overwritten. With `rounding` NULL, x holds the errors
 * from the start. Unless NULL, `energy` [panels × 32] gets e·H·eᵀ of each row added, without what
 * damping put into H. Single-threaded, allocates nothing; the caller sets the floating-point mode. */
AQ_LIB void aq_feedback(const struct aq_kernels *kernels, const aq_factor *factor,
                        const aq_rounding *rounding, float *x, float *sums, size_t panels,
                        double *energy);

#ifdef __cplusplus
}
#endif
#endif /* AQ_LINEAR_H */
