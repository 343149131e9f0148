/* The trellis code (AQ_CODE_TRELLIS): strips of rows whose columns are coded as one sequence each.
 *
 * A strip is AQ_TRELLIS_ROWS rows, or what is left at a tensor's end; the first one is a multiple of
 * AQ_TRELLIS_ROWS. Its codes are its rows' row_code_bytes together: column c of a strip of T rows holds
 * the bits c·T·bits … (c + 1)·T·bits − 1 of them, LSB first, the rest is 0. See simd/trellis.h for what
 * they mean. Parameters lie as those of other codes: one scale a row and group of columns, so that
 * w = scale·value, after the rotation if there is one (rotate.h): what codes and measures blocks and
 * strips here takes weights that are rotated already. Any T is allowed; a scale is 0 where a group of a row is all zeros. */
#ifndef AQ_TRELLIS_H
#define AQ_TRELLIS_H

#include "tile.h"

#include "../simd/trellis.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_TRELLIS_ROWS 256u

/* Rows of a tensor that are worked on as one unit: whole strips, about AQ_BLOCK_WEIGHTS weights. Takes
 * the place of aq_block_rows for every code: equal to it for those that are no trellis. */
AQ_LIB uint64_t aq_spec_block_rows(const aq_quant_spec *spec, uint64_t cols);
/* Bytes of work space for aq_trellis_open and aq_trellis_block; 0 for other codes. */
AQ_LIB uint64_t aq_trellis_bytes(const aq_quant_spec *spec);

/* A strip at work. */
typedef struct aq_trellis {
    const struct aq_kernels *kernels;
    const struct aq_trellis_kernels *own;
    const aq_trellis_code *code;
    size_t rows, cols;      /* of the strip */
    aq_trellis_search search;
    uint16_t *least;
    uint8_t *choices, *digits;
    int16_t *targets;
    int8_t *values;
    float *lines;           /* a group's weights, [columns][rows] */
    int8_t *coded;          /* and what they were coded as */
    double *sums;           /* [2][rows] */
    float *scales;          /* [rows] */
} aq_trellis;

/* Splits `space` (aq_trellis_bytes, any address). rows ≤ AQ_TRELLIS_ROWS. Allocates nothing; the spec
 * is one that aq_spec_check lets pass. */
AQ_LIB void aq_trellis_open(aq_trellis *out, const struct aq_kernels *kernels,
                            const aq_quant_spec *spec, size_t rows, size_t cols, void *space);

/* ---- trellis_encode.c; the caller sets the floating-point mode */

/* Codes column `column` of the strip: of all sequences the one whose weights scale[row]·value come
 * closest to `target`, each row's error counted in units of its scale. target, scale, rounded: [rows];
 * `rounded` gets the weights that a reader will see, `codes` (the strip's, zeroed before its first
 * column) the bits. Scales are as stored: finite, 0 where nothing is to be coded. */
AQ_LIB void aq_trellis_column(aq_trellis *trellis, size_t column, const float *target,
                              const float *scale, float *rounded, uint8_t *codes);

/* A first guess of a row's scale from the mean square of its weights in a group. */
AQ_LIB double aq_trellis_scale(const aq_trellis_code *code, double mean_square);
/* Rounds it to its stored type: bytes to `out`, what a reader sees to *stored. */
AQ_LIB aq_fit_kind aq_trellis_store(aq_param_type params, double scale, float *stored,
                                    uint8_t *out);

/* One strip as in aq_quantize_block (rows ≤ AQ_TRELLIS_ROWS, no `extra`). column_weights enter the
 * scales; the codes of a column do not depend on them. AQ_FIT_FAST searches once, with the scale of a
 * group's mean square, and then solves the scales for the codes; AQ_FIT_LEAST_SQUARES searches again
 * with these. */
AQ_LIB void aq_trellis_block(const aq_context *context, const aq_quant_spec *spec,
                             const void *weights, aq_dtype dtype, uint64_t rows, uint64_t cols,
                             const float *column_weights, void *codes, void *params, void *space,
                             aq_block_outcome *outcome);

/* ---- trellis_decode.c */

/* A part of a quantized strip; pointers are to the strip's first bytes. */
typedef struct aq_trellis_part {
    const uint8_t *codes, *params;
    size_t height, cols;  /* of the strip: as many rows as it has */
    size_t first, rows;   /* rows wanted */
    size_t begin, count;  /* columns wanted, any */
} aq_trellis_part;

/* out[row·stride + column], both counted from the part's first one. Allocates nothing. */
AQ_LIB void aq_trellis_decode(const struct aq_kernels *kernels, const aq_quant_spec *spec,
                              const aq_trellis_part *part, float *out, size_t stride);
/* A row's scale of one group. */
AQ_LIB float aq_trellis_stored(const aq_quant_spec *spec, const uint8_t *row_params, size_t group);
/* Rows first … of a tensor [rows, cols] whose codes and parameters begin there, in its own basis: the
 * rotation undone (trellis_rows.c). */
AQ_LIB void aq_trellis_rows(const struct aq_kernels *kernels, const aq_quant_spec *spec,
                            const void *codes, const void *params, uint64_t rows, uint64_t cols,
                            uint64_t first, uint64_t count, float *out);
/* The weights as F32 in the basis that is coded; to be freed, rows·cols·4 bytes. */
AQ_LIB aq_status aq_rotated_weights(const aq_context *context, const aq_quant_spec *spec,
                                    const void *weights, aq_dtype dtype, uint64_t rows,
                                    uint64_t cols, float **out, aq_error *err);
/* As aq_measure_block: whole strips. */
AQ_LIB void aq_trellis_measure(const struct aq_kernels *kernels, const aq_quant_spec *spec,
                               const void *weights, aq_dtype dtype, uint64_t rows, uint64_t cols,
                               const void *codes, const void *params, aq_quality *quality);

#ifdef __cplusplus
}
#endif
#endif /* AQ_TRELLIS_H */
