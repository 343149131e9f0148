/* FP8 weights that carry their scales: what the scale is called, what shape it has, applying it. */
#ifndef AQ_FP8_H
#define AQ_FP8_H

#include "../base/base.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* The name of a scale: the weight's, less `ending`, with `suffix` in its place. X.weight_scale_inv
 * (blocks of 128 × 128, to be multiplied in spite of its name), X.weight_scale (one, or one a row),
 * X.scale_weight (one). */
typedef struct aq_fp8_name {
    const char *ending, *suffix;
} aq_fp8_name;

#define AQ_FP8_NAMES 3u
AQ_LIB const aq_fp8_name *aq_fp8_name_at(size_t index); /* < AQ_FP8_NAMES, the first found counts */
AQ_LIB bool aq_dtype_is_fp8(aq_dtype dtype);

/* How an FP8 weight is scaled: w[r, c] = fp8[r, c] · scale[r / row_step, c / col_step]. */
typedef struct aq_fp8_scale {
    const float *values; /* NULL: not scaled */
    uint64_t row_step, col_step, cols; /* cols: scales a row of scales */
} aq_fp8_scale;

/* What a name and a shape [rows, cols] are to scale_shape. */
typedef struct aq_fp8_shape {
    const char *folder, *file; /* for messages */
    const char *name;
    uint32_t rank;
    uint64_t rows, cols;
} aq_fp8_shape;

AQ_LIB aq_status aq_fp8_scale_shape(const aq_fp8_shape *weight, const aq_fp8_shape *scale,
                                    aq_fp8_scale *out, aq_error *err);
AQ_LIB void aq_fp8_apply(const aq_fp8_scale *scale, float *rows, uint64_t first_row,
                         uint64_t row_count, uint64_t cols);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_FP8_H */
