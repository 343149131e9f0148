/* Tensors of GGUF files as tensors of a model. */
#include "../quant/quant.h"
#include "open.h"

#include <math.h>

#ifndef ARROWQUANT_NO_STDIO

/* Blocks follow one another along rows of the last dimension, so that [d0, d1·d2·…] holds whole
 * blocks as well. Of types that are not decoded here only name and size are told. */
AQ_LIB void aq_open_gguf_tensor(const aq_model_shard *shard, const aq_gguf_tensor *from,
                                aq_tensor *out) {
    const unsigned char *data = (const unsigned char *)shard->map.data + (size_t)from->offset;
    const aq_gguf_type *type = from->type;
    uint64_t cols = 1;
    out->rank = from->rank;
    out->shape = from->shape;
    out->bytes = from->bytes;
    out->file = shard->path;
    out->cosine_similarity = out->sqnr_db = (double)NAN;
    for (uint32_t i = from->rank > 1 ? 1 : 0; i < from->rank; i++) cols *= from->shape[i];
    out->rows = from->rank > 1 ? from->shape[0] : 1;
    out->cols = out->rows ? cols : 0;
    if (type->dtype != AQ_DTYPE_COUNT) {
        out->dtype = type->dtype;
        out->data = data;
        return;
    }
    out->dtype = AQ_DTYPE_F32; /* what was quantized is not recorded */
    out->quantized = true;
    out->codes = data;
    out->code_name = type->name;
    out->method = "gguf";
    out->spec = aq_block_spec(type->code);
    out->spec.code = type->code;
    if (type->code == AQ_CODE_COUNT) {
        out->spec.bits = type->bits;
        out->spec.group_size = type->weights;
        return;
    }
    (void)aq_quantized_size(&out->spec, out->rows, out->cols, &out->layout, NULL);
}

#endif /* ARROWQUANT_NO_STDIO */
