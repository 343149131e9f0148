/* Writes safetensors headers; the data around them is streamed by whoever has it. */
#include "safetensors.h"

#include "../base/text.h"

#ifndef ARROWQUANT_NO_STDIO

AQ_LIB uint32_t aq_st_write_rank(aq_dtype dtype, bool quantized) {
    if (quantized) return 2;
    switch (aq_dtype_size(dtype)) {
    case 8: return 0;
    case 4: return 1;
    case 2: return 3;
    default: return 4;
    }
}

AQ_LIB uint64_t aq_st_header_bound(const aq_st_output *tensors, size_t count,
                                   uint64_t metadata_size) {
    /* {"__metadata__":M,"NAME":{"dtype":"F8_E4M3","shape":[…],"data_offsets":[B,E]},…}: the fixed
     * words, the longest dtype, and 20 digits and a comma for each number. */
    static const char around[] = "{\"__metadata__\":,}";
    static const char entry[] = ",\"\":{\"dtype\":\"F8_E4M3\",\"shape\":[],\"data_offsets\":[]}";
    uint64_t size = sizeof(around) + metadata_size;
    for (size_t i = 0; i < count; i++) {
        size += sizeof(entry) + 21 * (2 + (uint64_t)tensors[i].rank);
        for (const char *c = tensors[i].name; *c; c++) {
            bool plain = *c >= ' ' && *c <= '~' && *c != '"' && *c != '\\';
            size += plain ? 1 : 6; /* "\u0001" */
        }
    }
    return (size + 7) & ~(uint64_t)7;
}

static void aq_st_append_entry(aq_builder *builder, const aq_st_output *tensor) {
    aq_append_json_string(builder, tensor->name, strlen(tensor->name));
    aq_append_format(builder, ":{\"dtype\":\"%s\",\"shape\":[", aq_dtype_name(tensor->dtype));
    for (uint32_t i = 0; i < tensor->rank; i++)
        aq_append_format(builder, i ? ",%llu" : "%llu", (unsigned long long)tensor->shape[i]);
    aq_append_format(builder, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)tensor->begin,
                     (unsigned long long)tensor->end);
}

/* A file that no reader would open is not written. */
static aq_status aq_st_check_output(const aq_st_output *tensor, uint64_t begin, aq_error *err) {
    uint64_t bytes = aq_dtype_size(tensor->dtype);
    bool fits = bytes != 0;
    for (uint32_t i = 0; i < tensor->rank && fits; i++)
        fits = aq_mul_u64(bytes, tensor->shape[i], &bytes);
    if (fits && tensor->begin == begin && tensor->end >= begin && tensor->end - begin == bytes)
        return AQ_OK;
    return aq_fail_tensor(err, AQ_ERR_ARGUMENT, tensor->name, tensor->begin,
                          "tensor %s: data range %llu to %llu, expected %llu to %llu", tensor->name,
                          (unsigned long long)tensor->begin, (unsigned long long)tensor->end,
                          (unsigned long long)begin, (unsigned long long)(begin + bytes));
}

static aq_status aq_st_check_capacity(const char *path, uint64_t needed, uint64_t capacity,
                                      aq_error *err) {
    if (needed <= capacity && capacity <= AQ_ST_HEADER_LIMIT) return AQ_OK;
    if (needed > AQ_ST_HEADER_LIMIT || capacity > AQ_ST_HEADER_LIMIT)
        return aq_fail(err, AQ_ERR_QUANTIZATION,
                       "%s: its header takes %llu bytes, the format allows %u; split the model "
                       "into more shards", path,
                       (unsigned long long)(needed > capacity ? needed : capacity),
                       AQ_ST_HEADER_LIMIT);
    return aq_fail(err, AQ_ERR_QUANTIZATION,
                   "%s: its header takes %llu bytes, %llu were reserved", path,
                   (unsigned long long)needed, (unsigned long long)capacity);
}

/* 8 bytes for the size, then the JSON without padding. Fails only on a list that no reader takes;
 * memory is left to aq_builder_finish. */
static aq_status aq_st_build_header(aq_builder *builder, const aq_st_output *tensors, size_t count,
                                    const char *metadata, aq_error *err) {
    uint64_t begin = 0;
    aq_append(builder, "\0\0\0\0\0\0\0\0{", 9);
    if (metadata) {
        aq_append_string(builder, "\"__metadata__\":");
        aq_append_string(builder, metadata);
    }
    for (size_t i = 0; i < count; i++) {
        aq_status status = aq_st_check_output(&tensors[i], begin, err);
        if (status != AQ_OK) return status;
        begin = tensors[i].end;
        if (i || metadata) aq_append(builder, ",", 1);
        aq_st_append_entry(builder, &tensors[i]);
    }
    aq_append(builder, "}", 1);
    return AQ_OK;
}

AQ_LIB aq_status aq_st_header_size(const aq_context *context, const aq_st_output *tensors,
                                   size_t count, const char *metadata, uint64_t *size,
                                   aq_error *err) {
    aq_builder builder;
    aq_builder_init(&builder, context);
    aq_status status = aq_st_build_header(&builder, tensors, count, metadata, err);
    if (status == AQ_OK && builder.failed) status = aq_fail_memory(err, builder.size);
    *size = (builder.size - 8 + 7) & ~(uint64_t)7;
    aq_builder_free(&builder);
    return status;
}

AQ_LIB aq_status aq_st_write_header(const aq_context *context, const aq_file *file,
                                    uint64_t capacity, const aq_st_output *tensors, size_t count,
                                    const char *metadata, aq_error *err) {
    aq_builder builder;
    char *text = NULL;
    size_t size = 0;
    aq_builder_init(&builder, context);
    aq_status status = aq_st_build_header(&builder, tensors, count, metadata, err);
    if (status == AQ_OK && !builder.failed)
        status = aq_st_check_capacity(file->path, builder.size - 8, capacity, err);
    if (status != AQ_OK) {
        aq_builder_free(&builder);
        return status;
    }
    while (!builder.failed && builder.size - 8 < capacity) {
        uint64_t missing = capacity - (builder.size - 8);
        aq_append(&builder, "        ", missing < 8 ? (size_t)missing : 8);
    }
    status = aq_builder_finish(&builder, &text, &size, err);
    if (status != AQ_OK) return status;
    for (unsigned i = 0; i < 8; i++) text[i] = (char)(unsigned char)(capacity >> (8 * i));
    status = aq_file_write(file, 0, text, size, err);
    aq_free(context, text, size + 1);
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
