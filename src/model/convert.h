/* From one format to another without a change of any weight. */
#ifndef AQ_CONVERT_H
#define AQ_CONVERT_H

#include "../format/native.h"
#include "open.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

#define AQ_CONVERT_PARTS 7u

/* One stored tensor of the result. */
typedef struct aq_converted_part {
    const char *name;
    aq_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    const void *data; /* in the opened model, or in the arena */
    uint64_t bytes;
} aq_converted_part;

/* All parameters of a layer as F32: those of every format are exact in it. */
typedef struct aq_layer_numbers {
    uint64_t groups; /* of the whole tensor */
    float *scales, *mins, *zeros;
} aq_layer_numbers;

/* ---- model/convert_layer.c */

/* The parts of a quantized layer in the format, or AQ_ERR_UNSUPPORTED saying why its numbers do not
 * allow it. `native` (for the native format) is filled as well. Made bytes live in the arena. `name` is
 * the tensor's without its component; `dtype` the model's, for the scales of compressed-tensors. */
AQ_LIB aq_status aq_convert_layer(aq_arena *arena, const aq_tensor *tensor, const char *name,
                                  aq_output_format format, aq_dtype dtype,
                                  aq_converted_part *parts, size_t *count,
                                  aq_native_tensor *native, aq_error *err);
AQ_LIB aq_status aq_convert_numbers(aq_arena *arena, const aq_tensor *tensor,
                                    aq_layer_numbers *out, aq_error *err);
/* Numbers as `dtype`, little endian, `step` of them apart; false when one is not exactly that. */
AQ_LIB bool aq_convert_put(const float *values, uint64_t count, aq_dtype dtype, size_t step,
                           unsigned char *out);

/* ---- model/convert_gguf.c */

/* Whether equal steps from a minimum or a zero point say what this code says. */
AQ_LIB bool aq_convert_has_steps(aq_code code);
/* The spec of such numbers outside of GGUF's blocks. */
AQ_LIB aq_quant_spec aq_convert_spec(const aq_tensor *tensor);
/* A layer as one of a code with equal steps (made in the arena where it is none yet), or
 * AQ_ERR_UNSUPPORTED. */
AQ_LIB aq_status aq_convert_blocks(aq_arena *arena, const aq_tensor *from, const char *name,
                                   aq_tensor *out, aq_error *err);
/* A model as one GGUF file, where its numbers allow it. */
AQ_LIB aq_status aq_convert_to_gguf(const aq_model *model, const char *input_path,
                                    const char *output_path, bool overwrite, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_CONVERT_H */
