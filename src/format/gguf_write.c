/* Writes GGUF headers into memory; the data behind them is streamed by whoever has it. */
#include "gguf.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_GGUF_VERSION 3u

static void aq_gguf_put(aq_builder *out, uint64_t value, uint32_t bytes) {
    char text[8];
    for (uint32_t i = 0; i < bytes; i++) text[i] = (char)(unsigned char)(value >> (8 * i));
    aq_append(out, text, bytes);
}

static void aq_gguf_put_text(aq_builder *out, const char *text) {
    size_t size = strlen(text);
    aq_gguf_put(out, size, 8);
    aq_append(out, text, size);
}

AQ_LIB void aq_gguf_begin(aq_builder *out, uint64_t tensors, uint64_t values) {
    aq_append(out, "GGUF", 4);
    aq_gguf_put(out, AQ_GGUF_VERSION, 4);
    aq_gguf_put(out, tensors, 8);
    aq_gguf_put(out, values, 8);
}

AQ_LIB void aq_gguf_put_string(aq_builder *out, const char *key, const char *value) {
    aq_gguf_put_text(out, key);
    aq_gguf_put(out, AQ_GGUF_STRING, 4);
    aq_gguf_put_text(out, value);
}

AQ_LIB void aq_gguf_put_u32(aq_builder *out, const char *key, uint32_t value) {
    aq_gguf_put_text(out, key);
    aq_gguf_put(out, AQ_GGUF_U32, 4);
    aq_gguf_put(out, value, 4);
}

AQ_LIB void aq_gguf_put_tensor(aq_builder *out, const aq_gguf_output *tensor) {
    aq_gguf_put_text(out, tensor->name);
    aq_gguf_put(out, tensor->rank, 4);
    for (uint32_t i = tensor->rank; i-- > 0;) aq_gguf_put(out, tensor->shape[i], 8);
    aq_gguf_put(out, tensor->type, 4);
    aq_gguf_put(out, tensor->offset, 8);
}

AQ_LIB uint32_t aq_gguf_file_type(const uint64_t *weights, const uint64_t *plain) {
    static const uint32_t numbers[] = { 7, 2, 3, 14, 10 }; /* Q8_0, Q4_0, Q4_1, Q4_K, Q2_K */
    uint32_t best = 1;
    uint64_t most = 0;
    for (uint32_t i = 0; i < 5; i++) {
        if (weights[AQ_CODE_Q8_0 + i] > most) {
            most = weights[AQ_CODE_Q8_0 + i];
            best = numbers[i];
        }
    }
    if (most) return best;
    if (plain[2] > plain[0] && plain[2] > plain[1]) return 32;
    return plain[0] > plain[1] ? 0 : 1;
}

AQ_LIB void aq_gguf_end(aq_builder *out) {
    static const char zeros[AQ_GGUF_ALIGNMENT] = { 0 };
    size_t over = out->size % AQ_GGUF_ALIGNMENT;
    if (over) aq_append(out, zeros, AQ_GGUF_ALIGNMENT - over);
}

#undef AQ_GGUF_VERSION
#endif /* ARROWQUANT_NO_STDIO */
