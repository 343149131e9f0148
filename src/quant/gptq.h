/* Rows of one tensor rounded with the feedback of their errors, and what a rounding does to the
 * layer's output. */
#ifndef AQ_GPTQ_H
#define AQ_GPTQ_H

#include "quant.h"

#ifdef __cplusplus
extern "C" {
#endif

struct aq_factor;

#define AQ_GPTQ_ROWS 256u /* rows that are worked on at once at most; what is computed is the same */

/* Bytes of work space for `rows` rows, at most AQ_GPTQ_ROWS, of a factor's columns. */
AQ_LIB uint64_t aq_gptq_bytes(const aq_quant_spec *spec, const struct aq_factor *factor,
                              uint64_t rows);

/* Whether parameters and codes are solved again after the feedback, so that the factor must know H:
 * of codes on grids, unless the fit is fast. */
AQ_LIB bool aq_gptq_refits(const aq_quant_spec *spec);

/* Of each row, unless NULL: w·H·wᵀ and e·H·eᵀ with e = ŵ − w, so what the layer puts out for the
 * inputs of the Hessian, and what is wrong with it. */
typedef struct aq_output_sums {
    double *signal, *error;
} aq_output_sums;

/* As aq_quantize_block, of at most AQ_GPTQ_ROWS rows; the parameters are fitted with the Hessian's
 * diagonal as weights, then the codes are chosen with feedback, then both are solved again if the spec is
 * such and the factor knows its Hessian. The outcome's quality is not that of these codes: measure
 * them. */
AQ_LIB void aq_gptq_block(const aq_context *context, const struct aq_factor *factor,
                          const aq_quant_spec *spec, const void *weights, aq_dtype dtype,
                          uint64_t rows, void *codes, void *params, void *extra, void *space,
                          aq_block_outcome *outcome, const aq_output_sums *sums);
/* The sums for rows that are quantized already, by whatever method. */
AQ_LIB void aq_output_block(const aq_context *context, const struct aq_factor *factor,
                            const aq_quant_spec *spec, const void *weights, aq_dtype dtype,
                            uint64_t rows, const void *codes, const void *params,
                            const void *extra, void *space, const aq_output_sums *sums);
/* The quality of rows that are quantized already, added row by row. */
AQ_LIB void aq_measure_block(const aq_context *context, const aq_quant_spec *spec,
                             const void *weights, aq_dtype dtype, uint64_t rows, uint64_t cols,
                             const void *codes, const void *params, const void *extra,
                             aq_quality *quality);

#ifdef __cplusplus
}
#endif
#endif /* AQ_GPTQ_H */
