/* A stretch of one row on the stack: widened, fitted, then coded. Inside
 * quant/, and for the stored parameters in infer/weights.c. */
#ifndef AQ_TILE_H
#define AQ_TILE_H

#include "quant.h"

#include "../simd/simd.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whole groups of every size, whole runs of aq_compare_run. The result does not depend on it. */
#ifdef ARROWQUANT_NO_THREADS /* a small machine with a small stack */
#  define AQ_TILE_WEIGHTS 256u
#else
#  define AQ_TILE_WEIGHTS 1024u
#endif
#define AQ_TILE_GROUPS (AQ_TILE_WEIGHTS / 32u)

/* What does not change over the rows of a block. */
typedef struct aq_row_job {
    const struct aq_kernels *kernels;
    aq_quant_spec spec;
    bool symmetric;
    bool fast;    /* AQ_FIT_FAST: column_weights are not looked at */
    bool measure; /* quality is wanted */
    bool narrow;  /* ranges and codes are all that is made of the weights, which BF16 gives as it is */
    aq_dtype dtype;
    size_t cols;
    const float *column_weights;
} aq_row_job;

/* F32 cannot sum the squares of very large and very small weights: such a group is fitted and coded
 * as w·2^exponent, which is exact. */
typedef struct aq_tile_group {
    int exponent;
    bool constant;
    aq_simd_fit fit;        /* of w·2^exponent */
} aq_tile_group;

typedef struct aq_tile {
    size_t begin, count, group_count; /* columns begin … begin + count − 1 */
    bool own_codes;                   /* some group has an exponent */
    bool plain;                       /* none has, and none is constant */
    aq_simd_range range[AQ_TILE_GROUPS];
    aq_tile_group group[AQ_TILE_GROUPS];
    const uint8_t *halves;            /* BF16, and x is not filled; or NULL */
    float x[AQ_TILE_WEIGHTS];
} aq_tile;

/* What became of a group's parameters. */
typedef enum aq_fit_kind { AQ_FIT_GOOD, AQ_FIT_NEEDS_F32, AQ_FIT_NEEDS_WIDE } aq_fit_kind;

/* ---- tile.c */

/* Widens columns begin … of a row and finds the ranges; false when a weight is not finite, then
 * *bad is its column. */
AQ_LIB bool aq_tile_load(const aq_row_job *job, const void *row, size_t begin, aq_tile *tile,
                         size_t *bad);
AQ_LIB void aq_tile_fit(const aq_row_job *job, aq_tile *tile);
AQ_LIB void aq_tile_encode(const aq_row_job *job, const aq_tile *tile, const aq_simd_grid *grids,
                           uint8_t *codes);
/* value·2^exponent, rounded at most once; |exponent| ≤ 252 */
AQ_LIB float aq_scale_by(float value, int exponent);

/* ---- parameters.c: fits become grids of stored values; the bytes are written to `out` */

AQ_LIB void aq_grids_f16(const aq_row_job *job, const aq_tile *tile, aq_simd_grid *grids,
                         aq_fit_kind *kinds, uint8_t *out);
AQ_LIB void aq_grids_f32(const aq_row_job *job, const aq_tile *tile, aq_simd_grid *grids,
                         aq_fit_kind *kinds, uint8_t *out);

/* Of each group the scale and a byte, the zero point (zero_point.c). */
AQ_LIB void aq_grids_zero_point(const aq_row_job *job, const aq_tile *tile, aq_simd_grid *grids,
                                aq_fit_kind *kinds, uint8_t *out);
/* The nearest scale that such a group can have; 0: none. */
AQ_LIB float aq_zero_point_scale(aq_param_type params, float scale);

/* Q8: the row's pair, grown group by group: first every scale, then aq_q8_close_scale, then every
 * min, then aq_q8_close_min. */
typedef struct aq_q8_row {
    float scale, min;                /* the pair, values of F16 */
    float most_scale, least_scale;   /* over the groups so far */
    float most_min, least_min;
    uint16_t scale_bits, min_bits;
} aq_q8_row;
AQ_LIB void aq_q8_open(aq_q8_row *row);
AQ_LIB aq_fit_kind aq_q8_add_scale(aq_q8_row *row, const aq_tile_group *group);
AQ_LIB aq_fit_kind aq_q8_close_scale(const aq_row_job *job, aq_q8_row *row);
AQ_LIB void aq_q8_add_min(const aq_row_job *job, aq_q8_row *row, const aq_simd_fit *fit);
AQ_LIB aq_fit_kind aq_q8_close_min(const aq_row_job *job, aq_q8_row *row, uint8_t *extra);
AQ_LIB void aq_q8_grid(const aq_row_job *job, const aq_q8_row *row, const aq_simd_fit *fit,
                       aq_simd_grid *grid, uint8_t *out);

/* As aq_grids_f16, for blocks: there are no wider parameters to turn to, so denormal ones are taken,
 * and a group without extent has scale 0. */
AQ_LIB void aq_grids_block(const aq_row_job *job, const aq_tile *tile, aq_simd_grid *grids,
                           aq_fit_kind *kinds, uint8_t *out);

/* The grids of `count` groups from their stored bytes; `extra` is the row's, Q8 only. */
AQ_LIB void aq_grids_read(const struct aq_kernels *kernels, const aq_quant_spec *spec,
                          const uint8_t *params, const uint8_t *extra, size_t count,
                          aq_simd_grid *grids);

/* What can be stored next to parameters that were solved again, read back: a scale, 0 where there is
 * none; a min of an affine code, false where there is none; and the pair's bytes, behind which a zero
 * point stays as it is. `extra` is the row's, Q8 only. */
AQ_LIB float aq_stored_scale(const aq_quant_spec *spec, const uint8_t *extra, double wanted);
AQ_LIB bool aq_stored_min(const aq_quant_spec *spec, const uint8_t *extra, double wanted,
                          float *min);
AQ_LIB void aq_grid_store(const aq_quant_spec *spec, const uint8_t *extra,
                          const aq_simd_grid *grid, uint8_t *out);

AQ_LIB void aq_put_u16(uint8_t *out, uint16_t value); /* little endian */
AQ_LIB void aq_put_f32(uint8_t *out, float value);

/* ---- residual.c: grids hold a and b of w ≈ ±a ± b */

/* One group; its parameters' bytes to `out`. */
AQ_LIB aq_fit_kind aq_residual_fit(const aq_row_job *job, const float *w, const float *weights,
                                   size_t count, aq_simd_grid *grid, uint8_t *out);
AQ_LIB void aq_residual_encode(const float *w, size_t count, size_t group,
                               const aq_simd_grid *grids, uint8_t *codes);
AQ_LIB void aq_residual_decode(const uint8_t *codes, size_t count, size_t group,
                               const aq_simd_grid *grids, float *out);

/* ---- quality.c: adds the sums of one stretch that starts at a multiple of 256 of its row */

AQ_LIB void aq_compare_run(const struct aq_kernels *kernels, const float *first,
                           const float *second, size_t count, aq_quality *quality);

/* ---- convert.c: as aq_to_f32, without setting the floating-point mode */

AQ_LIB void aq_widen(const struct aq_kernels *kernels, aq_dtype dtype, const void *in, float *out,
                     size_t count);

#ifdef __cplusplus
}
#endif
#endif /* AQ_TILE_H */
