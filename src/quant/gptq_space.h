/* Rows in panels, for methods that round them column by column. Inside quant/ only. */
#ifndef AQ_GPTQ_SPACE_H
#define AQ_GPTQ_SPACE_H

#include "gptq.h"
#include "linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The work space of some rows. Rows are filled up to whole panels by zeros. */
typedef struct aq_gptq_space {
    size_t rows, panels, wide; /* wide: rows as panels have them */
    size_t groups;
    float *x, *sums;     /* [panels][padded][32] */
    float *scale, *min;  /* [groups][wide] */
    float *line, *other; /* [n] */
    uint8_t *codes;      /* [places][wide], then */
    uint8_t *flat;       /* [n], the codes of a row */
    double *energy;      /* [wide] */
    void *rest;          /* what gptq_trellis.c or gptq_refit.c needs */
} aq_gptq_space;

AQ_LIB void aq_space_open(aq_gptq_space *space, const aq_quant_spec *spec, const aq_factor *factor,
                          uint64_t rows, void *memory);
/* The rows of a layer into x, by place. */
AQ_LIB void aq_space_weights(const aq_context *context, aq_gptq_space *space,
                             const aq_factor *factor, const void *weights, aq_dtype dtype);
/* Goes through the columns and hands the rows' energies to `out`, unless NULL. */
AQ_LIB void aq_space_sweep(const aq_context *context, aq_gptq_space *space,
                           const aq_factor *factor, const aq_rounding *rounding, double *out);

/* gptq_trellis.c: bytes that a trellis needs beside, `rows` being whole panels; and a strip as in
 * aq_gptq_block. */
AQ_LIB uint64_t aq_trellis_sweep_bytes(const aq_quant_spec *spec, uint64_t wide);
AQ_LIB void aq_gptq_strip(const aq_context *context, const aq_factor *factor,
                          const aq_quant_spec *spec, const void *weights, aq_dtype dtype,
                          uint64_t rows, void *codes, void *params, void *space,
                          aq_block_outcome *outcome, const aq_output_sums *sums);

/* gptq_refit.c: bytes that it needs beside; and parameters and codes of rounded rows, whose errors x
 * holds, solved again for the whole Hessian, which the factor must know. x and sums are overwritten. */
AQ_LIB uint64_t aq_refit_bytes(const aq_quant_spec *spec, uint64_t n);
AQ_LIB void aq_gptq_refit(const aq_context *context, aq_gptq_space *space, const aq_factor *factor,
                          const aq_quant_spec *spec, const aq_quant_layout *layout, void *params,
                          const void *extra);

#ifdef __cplusplus
}
#endif
#endif /* AQ_GPTQ_SPACE_H */
