/* From one format to another without a change of any weight. */
#ifndef AQ_CONVERT_H
#define AQ_CONVERT_H

#include "../format/native.h"
#include "open.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

#define AQ_CONVERT_PARTS 4u

/* One stored tensor of the result. */
typedef struct aq_converted_part {
    const char *name;
    aq_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    const void *data; /* in the opened model, or in the arena */
    uint64_t bytes;
} aq_converted_part;

/* model/convert_layer.c: the parts of a quantized layer in the format, or AQ_ERR_UNSUPPORTED saying why
 * its numbers do not allow it. `native` (for the native format) is filled as well. Made bytes live in
 * the arena. `name` is the tensor's without its component. */
AQ_LIB aq_status aq_convert_layer(aq_arena *arena, const aq_tensor *tensor, const char *name,
                                  aq_output_format format, aq_converted_part *parts, size_t *count,
                                  aq_native_tensor *native, aq_error *err);

/* model/convert_gguf.c: a layer of GGUF blocks as the native layer of the same numbers (arena), or
 * AQ_ERR_UNSUPPORTED; and a model as one GGUF file, where its numbers allow it. */
AQ_LIB aq_status aq_convert_blocks(aq_arena *arena, const aq_tensor *from, const char *name,
                                   aq_tensor *out, aq_error *err);
AQ_LIB aq_status aq_convert_to_gguf(const aq_model *model, const char *input_path,
                                    const char *output_path, bool overwrite, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_CONVERT_H */
