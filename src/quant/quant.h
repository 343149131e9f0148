/* One tensor in, codes and parameters out, and back: what the public aq_quantize is made of. */
#ifndef AQ_QUANT_H
#define AQ_QUANT_H

#include "../base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Quality sums are folded row by row inside a block and block by block over a tensor, in order.
 * Blocks depend on the shape alone, so the sums do not depend on threads, chunks or budget. */
#define AQ_BLOCK_WEIGHTS 262144u
AQ_LIB uint64_t aq_block_rows(uint64_t cols); /* max(1, AQ_BLOCK_WEIGHTS / cols) */

/* What quantizing a block found beside its result. */
typedef struct aq_block_outcome {
    aq_quality quality;
    bool needs_f32;      /* a parameter does not fit F16 (or Q8): store F32 */
    bool needs_wide;     /* a constant group under Q8: store F16 */
    bool not_finite;     /* NaN or infinity, at element bad_index of the block */
    uint64_t bad_index;  /* needs_…: the first weight of the first such group */
    double bad_value;
} aq_block_outcome;

/* Rows of one tensor (any number; single-threaded, allocates nothing), of every code but a trellis: see
 * aq_trellis_block. Stops at the first row in
 * which one of the flags becomes true; the buffers are then to be thrown away. */
AQ_LIB void aq_quantize_block(const aq_context *context, const aq_quant_spec *spec,
                              const void *weights, aq_dtype dtype, uint64_t rows, uint64_t cols,
                              const float *column_weights, void *codes, void *params, void *extra,
                              aq_block_outcome *outcome);
AQ_LIB bool aq_outcome_is_final(const aq_block_outcome *outcome); /* one of the flags is true */
/* The error of such a block, whose first row is `first_row` of the tensor. */
AQ_LIB aq_status aq_outcome_fail(const aq_block_outcome *outcome, uint64_t first_row,
                                 uint64_t cols, aq_param_type params, aq_error *err);
/* Rows to F32, single-threaded. Of a trellis: whole strips. */
AQ_LIB void aq_dequantize_block(const aq_context *context, const aq_quant_spec *spec,
                                const void *codes, const void *params, const void *extra,
                                uint64_t rows, uint64_t cols, float *out);
/* Adds the sums of rows × cols pairs to *quality, row by row; `second` stands for the quantized. */
AQ_LIB void aq_compare_block(const aq_context *context, const float *first, const float *second,
                             uint64_t rows, uint64_t cols, aq_quality *quality);

AQ_LIB double aq_log10(double value); /* > 0; the same on every machine */
AQ_LIB bool aq_dtype_is_float(aq_dtype dtype);
/* Any float dtype, this machine's byte order. F64 is rounded to F32 (beyond its range: infinity). */
AQ_LIB void aq_to_f32(const aq_context *context, aq_dtype dtype, const void *in, float *out,
                      size_t count);
/* F32, F16, BF16: rounded to nearest even. */
AQ_LIB void aq_from_f32(const aq_context *context, aq_dtype dtype, const float *in, void *out,
                        size_t count);
/* File bytes are little endian: swaps in place on a big-endian machine, else does nothing. */
AQ_LIB void aq_little_endian(void *data, size_t count, size_t element_size);

/* The context's kernels, or the best ones when it is NULL. */
AQ_LIB const struct aq_kernels *aq_kernels_of(const aq_context *context);
/* The context itself, or `local` filled with what NULL stands for: to be called once outside of
 * loops, because asking the CPU what it can do takes microseconds. */
AQ_LIB aq_context *aq_context_resolved(aq_context *context, aq_context *local);
/* NULL, or finite and not negative: else AQ_ERR_ARGUMENT naming the column. */
AQ_LIB aq_status aq_column_weights_check(const float *weights, uint64_t cols, aq_error *err);

/* The seed of a rotation, 0: none. Other codes than a trellis have none, whatever stands there. */
AQ_LIB uint32_t aq_spec_rotation(const aq_quant_spec *spec);
AQ_LIB bool aq_code_is_block(aq_code code);
/* Weights and bytes of a block of a block code. */
AQ_LIB uint32_t aq_block_weights(aq_code code);
AQ_LIB uint32_t aq_block_bytes(aq_code code);
/* Between native codes and blocks that hold the same numbers: Q8_0 and Q4_0 with symmetric, Q4_1 with
 * affine codes of groups of 32 and F16 parameters. `blocks` blocks; packed codes, parameters. */
AQ_LIB void aq_blocks_from_native(aq_code code, const void *codes, const void *params,
                                  size_t blocks, void *out);
AQ_LIB void aq_blocks_to_native(aq_code code, const void *in, size_t blocks, void *codes,
                                void *params);
/* Superblocks of Q4_K as the affine code of 4 bits in groups of 32 with F32 parameters: the products
 * of scales are exact there, so the numbers are the same. */
AQ_LIB void aq_k_to_native(const void *in, size_t blocks, void *codes, void *params);
AQ_LIB const char *aq_param_type_name(aq_param_type type); /* "F16", "F32", "Q8" */
AQ_LIB aq_status aq_spec_check(const aq_quant_spec *spec, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* AQ_QUANT_H */
