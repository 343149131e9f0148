/* The forward pass of quantized layers. What it needs to know about a code is in weights.c alone. */
#ifndef AQ_INFER_H
#define AQ_INFER_H

#include "../quant/quant.h"
#include "../simd/forward.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_TASK_TOKENS ((size_t)256) /* the most that a task takes */
#define AQ_LINEAR_LINE 64u /* pieces of scratch begin at multiples of it */

/* An interleaved copy of a layer (repack.c), blocks of 16 rows: bytes. */
typedef struct aq_interleaved {
    size_t values, size;  /* parameters of a group, bytes of one; size 0: they are not in the copy */
    size_t codes, block;  /* where in a block the codes begin; all of it */
    size_t total;
} aq_interleaved;

/* A layer as the forward pass sees it. */
typedef struct aq_weights {
    const aq_linear *linear;
    const struct aq_kernels *kernels;
    const struct aq_linear_kernels *infer;
    aq_quant_layout layout; /* when quantized */
    size_t rows, cols;
    size_t groups;          /* a row, when quantized */
    bool trellis;
    int32_t half;           /* see aq_linear_combine */
    const uint8_t *interleaved; /* the copy, where there are kernels for it; or NULL */
    aq_interleaved interleaving;
} aq_weights;

/* ---- weights.c */

/* Checks the description and fills *out. */
AQ_LIB aq_status aq_weights_open(const aq_context *context, const aq_linear *linear,
                                 aq_weights *out, aq_error *err);
/* Columns begin … begin + count − 1 of a row; begin is a multiple of AQ_LINEAR_STRETCH. */
AQ_LIB void aq_weights_decode(const aq_weights *weights, size_t row, size_t begin, size_t count,
                              float *out);
/* The same of some rows, at most 16, the first of which is a multiple of their number unless they are
 * the last ones: [rows][count], in the basis that is coded. */
AQ_LIB void aq_weights_decode_rows(const aq_weights *weights, size_t row, size_t rows, size_t begin,
                                   size_t count, float *out);
/* Scale and min of every group of some rows: [count][groups][2]. */
AQ_LIB void aq_weights_params(const aq_weights *weights, size_t row, size_t count, float *out);
/* INT8 activations in the order in which the functions below want them: multiples of AQ_ARRANGED. */
AQ_LIB void aq_weights_arrange(const aq_weights *weights, const int8_t *q, int8_t *out);
/* Σ code·q of every group of `count` rows; a row of `out` has whole sixteens of groups. */
AQ_LIB void aq_weights_dots(const aq_weights *weights, size_t row, size_t count, const int8_t *q,
                            int32_t *out);
/* Fills what describes the codes of rows row … row + count − 1, where there is a kernel for many
 * tokens; false where there is none. */
AQ_LIB bool aq_weights_tiles(const aq_weights *weights, size_t row, size_t count,
                             aq_linear_tiles *job);
/* Up to whole sixteens. */
AQ_LIB size_t aq_groups_up(size_t groups);
/* Biases row … row + count − 1, or zeros. */
AQ_LIB void aq_weights_bias(const aq_weights *weights, size_t row, size_t count, float *out);
/* `count` little-endian numbers of F32, F16 or BF16 at any address. */
AQ_LIB void aq_widen_file(const struct aq_kernels *kernels, aq_dtype dtype, const void *in,
                          float *out, size_t count);

/* ---- repack.c; `row` is a multiple of 16 */

/* Whether the copy is read: never where no kernels for it are compiled, so that small machines are spared
 * the code. */
static inline bool aq_is_interleaved(const aq_weights *weights) {
#if defined(AQ_HAVE_AVX2)
    return weights->interleaved != NULL;
#else
    (void)weights;
    return false;
#endif
}

/* False when there is nothing to copy, or its size overflows. */
AQ_LIB bool aq_interleaved_layout(const aq_weights *weights, aq_interleaved *out);
AQ_LIB const uint8_t *aq_interleaved_codes(const aq_weights *weights, size_t row);
/* As aq_weights_params of 16 rows, turned: [groups][2][16]; false when they are not in a copy. `own` has
 * room for as many. */
AQ_LIB bool aq_interleaved_params(const aq_weights *weights, size_t row, float *own, float *out);
/* Fills what describes the weights of 16 rows; param_bytes 0: the parameters are not in the copy. */
AQ_LIB void aq_interleaved_job(const aq_weights *weights, size_t row, aq_linear_interleaved *job);

/* ---- linear.c: one forward pass */

typedef struct aq_forward {
    aq_weights weights;
    aq_context *context;
    const uint8_t *x;
    aq_dtype dtype;
    size_t tokens;
    aq_activation activation; /* FLOAT when the weights are not quantized */
    float *y;
    uint32_t threads;
    size_t task_rows, task_tokens, row_tasks; /* a task: so many rows by so many tokens */
    size_t block_rows;        /* the most that `block` takes */
    void (*block)(const struct aq_forward *run, size_t row, size_t rows, size_t token,
                  size_t tokens, uint8_t *own);
    uint8_t *shared;          /* scratch: the activations, prepared */
    uint8_t *own;             /* scratch of worker 0, own_bytes before that of worker 1 … */
    size_t own_bytes;
    const float *wide;        /* FLOAT: [tokens, cols] */
} aq_forward;

/* A token's activations as F32, input scales applied, turned if the weights are. */
AQ_LIB void aq_forward_widen(const aq_forward *run, size_t token, float *out);

/* ---- int8.c */

/* `count` × `size` bytes behind *end, which moves to the next line. Clears *fits when it overflows. */
AQ_LIB size_t aq_piece(uint64_t *end, uint64_t count, uint64_t size, bool *fits);
/* The scale of a row of x, and its inverse, without a zero point. */
AQ_LIB float aq_int8_symmetric(const aq_weights *weights, const float *x, float *inverse);
/* Scratch for the activations of so many tokens, and for one worker; false when it overflows. */
AQ_LIB bool aq_int8_scratch(const aq_weights *weights, size_t tokens, size_t *shared, size_t *own);
/* One token to INT8 in run->shared; `own` is a worker's scratch. */
AQ_LIB void aq_int8_prepare(const aq_forward *run, size_t token, uint8_t *own);
/* Rows × tokens of the result. */
AQ_LIB void aq_int8_block(const aq_forward *run, size_t row, size_t rows, size_t token,
                          size_t tokens, uint8_t *own);

/* ---- trellis_forward.c; _scratch, _prepare and _forward as those of int8.c, rows in whole strips */

AQ_LIB bool aq_trellis_scratch(const aq_weights *weights, size_t tokens, size_t *shared,
                               size_t *own);
AQ_LIB void aq_trellis_prepare(const aq_forward *run, size_t token, uint8_t *own);
AQ_LIB void aq_trellis_forward(const aq_forward *run, size_t row, size_t rows, size_t token,
                               size_t tokens, uint8_t *own);
/* Rotates x, one token, where the weights are rotated. */
AQ_LIB void aq_trellis_turn(const aq_weights *weights, float *x);
/* As aq_weights_decode_rows. */
AQ_LIB void aq_trellis_weights(const aq_weights *weights, size_t row, size_t rows, size_t begin,
                               size_t count, float *out);
/* A whole row in the basis of the original. */
AQ_LIB void aq_trellis_row(const aq_weights *weights, size_t row, float *out);

#ifdef __cplusplus
}
#endif
#endif /* AQ_INFER_H */
