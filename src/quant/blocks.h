/* Codes whose codes and parameters lie together in blocks of fixed size: those of GGUF files. Inside
 * quant/ only, but for the names. */
#ifndef AQ_BLOCKS_H
#define AQ_BLOCKS_H

#include "tile.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_K_WEIGHTS 256u

/* A superblock format, and how hard it is searched. */
typedef struct aq_k_kind {
    uint32_t subs, most_code, most_scale;
    uint32_t starts, rounds, joint;
    float divisor[8], shift[8]; /* start n: scale = range/divisor, base = low + range·shift */
} aq_k_kind;

typedef struct aq_k_fit {
    float d, dmin; /* F16 values */
    uint8_t scale[16], min[16];
} aq_k_fit;

/* Finite weights; `weights` NULL, or 256 that are finite and ≥ 0. d or dmin may come out infinite. */
AQ_LIB const aq_k_kind *aq_k_kind_of(aq_code code); /* Q4_K, Q2_K */
AQ_LIB void aq_k_search(const struct aq_kernels *kernels, const aq_k_kind *kind, const float *x,
                        const float *weights, aq_k_fit *out, uint8_t *codes);

/* k_blocks.c: a superblock of 256 weights, packed, and back */
AQ_LIB void aq_k_pack(aq_code code, const aq_k_fit *fit, const uint8_t *codes, uint8_t *out);
AQ_LIB void aq_k_decode(aq_code code, const uint8_t *in, float *out);

/* blocks.c: one row of a block code, whole blocks. Stops at the first weight that is not finite, and
 * at the first parameter that does not fit. */
AQ_LIB void aq_row_blocks(const aq_row_job *job, const void *weights, uint64_t row_begin,
                          uint8_t *out, aq_quality *quality, aq_block_outcome *outcome);
/* `count` weights, whole blocks, at most AQ_TILE_WEIGHTS. */
AQ_LIB void aq_blocks_decode(const struct aq_kernels *kernels, aq_code code, const uint8_t *in,
                             size_t count, float *out);

#ifdef __cplusplus
}
#endif
#endif /* AQ_BLOCKS_H */
