/* Writes the native metadata: one JSON object, held as a string in __metadata__. */
#include "native.h"

#include "../base/text.h"
#include "../quant/quant.h"
#include "json_member.h"

#ifndef ARROWQUANT_NO_STDIO

static void aq_native_string(aq_builder *builder, const char *text) {
    aq_append_json_string(builder, text, strlen(text));
}

static void aq_native_append_tensor(aq_builder *builder, const aq_native_tensor *tensor) {
    aq_native_string(builder, tensor->name);
    aq_append_string(builder, ":{\"code\":");
    aq_native_string(builder, tensor->code);
    aq_append_format(builder, ",\"bits\":%u,\"group_size\":%u,\"params\":\"%s\"",
                     tensor->spec.bits, tensor->spec.group_size,
                     aq_param_type_name(tensor->spec.params));
    if (tensor->spec.code == AQ_CODE_TRELLIS)
        aq_append_format(builder, ",\"states\":%u", tensor->spec.states);
    if (aq_spec_rotation(&tensor->spec))
        aq_append_format(builder, ",\"rotation\":%u", tensor->spec.rotation);
    aq_append_format(builder, ",\"dtype\":\"%s\",\"shape\":[", aq_dtype_name(tensor->dtype));
    for (uint32_t i = 0; i < tensor->rank; i++)
        aq_append_format(builder, i ? ",%llu" : "%llu", (unsigned long long)tensor->shape[i]);
    aq_append_string(builder, "],\"method\":");
    aq_native_string(builder, tensor->method);
    if (tensor->input) {
        aq_append_string(builder, ",\"input\":");
        aq_native_string(builder, tensor->input);
    }
    aq_append_string(builder, ",\"cosine\":");
    aq_append_json_double(builder, tensor->cosine_similarity);
    aq_append_string(builder, ",\"sqnr_db\":");
    aq_append_json_double(builder, tensor->sqnr_db);
    aq_append(builder, "}", 1);
}

static void aq_native_append_crc32(aq_builder *builder, const aq_native_checksum *checksum) {
    static const char digits[] = "0123456789abcdef";
    char hex[8];
    for (unsigned i = 0; i < 8; i++) hex[i] = digits[(checksum->crc32 >> (28 - 4 * i)) & 15u];
    aq_native_string(builder, checksum->name);
    aq_append(builder, ":\"", 2);
    aq_append(builder, hex, sizeof(hex));
    aq_append(builder, "\"", 1);
}

static void aq_native_append(aq_builder *builder, const aq_native *native) {
    aq_append_format(builder, "{\"version\":%d,\"writer\":\"ArrowQuant %s\",\"tensors\":{",
                     AQ_NATIVE_VERSION, AQ_VERSION);
    for (size_t i = 0; i < native->tensor_count; i++) {
        if (i) aq_append(builder, ",", 1);
        aq_native_append_tensor(builder, &native->tensors[i]);
    }
    aq_append_string(builder, "},\"crc32\":{");
    for (size_t i = 0; i < native->checksum_count; i++) {
        if (i) aq_append(builder, ",", 1);
        aq_native_append_crc32(builder, &native->checksums[i]);
    }
    aq_append_string(builder, "}}");
}

/* The input's own members, as they were written, each with a comma behind it. */
static aq_status aq_native_append_original(aq_builder *builder, const char *original,
                                           aq_error *err) {
    aq_json_reader json;
    aq_json_event key, value;
    aq_json_open(&json, original, strlen(original), "__metadata__");
    json.failure = AQ_ERR_METADATA;
    aq_status status = aq_json_next(&json, &key, err);
    while (status == AQ_OK) {
        status = aq_json_next(&json, &key, err);
        if (status != AQ_OK || key.type != AQ_JSON_KEY) break;
        size_t begin = 0, end = 0;
        status = aq_json_next(&json, &value, err);
        if (status == AQ_OK) status = aq_json_pass_slice(&json, &value, &begin, &end, err);
        if (status != AQ_OK || aq_json_is(&key, AQ_NATIVE_KEY)) continue;
        aq_append(builder, "\"", 1);
        aq_append(builder, key.text, key.size);
        aq_append(builder, "\":", 2);
        aq_append(builder, original + begin, end - begin);
        aq_append(builder, ",", 1);
    }
    return status;
}

AQ_LIB aq_status aq_native_write(const aq_context *context, const aq_native *native,
                                 const char *original, char **text, size_t *size, aq_error *err) {
    aq_builder inner, outer;
    aq_status status = AQ_OK;
    aq_builder_init(&inner, context);
    aq_builder_init(&outer, context);
    aq_append(&outer, "{", 1);
    if (original) status = aq_native_append_original(&outer, original, err);
    if (status != AQ_OK) {
        aq_builder_free(&outer);
        return status;
    }
    aq_native_append(&inner, native);
    aq_append_string(&outer, "\"" AQ_NATIVE_KEY "\":");
    if (inner.failed) outer.failed = true;
    else aq_append_json_string(&outer, inner.data, inner.size);
    aq_builder_free(&inner);
    aq_append(&outer, "}", 1);
    return aq_builder_finish(&outer, text, size, err);
}

AQ_LIB aq_status aq_native_remove(const aq_context *context, const char *original, char **text,
                                  size_t *size, aq_error *err) {
    aq_builder builder;
    *text = NULL;
    *size = 0;
    if (!original) return AQ_OK;
    aq_builder_init(&builder, context);
    aq_append(&builder, "{", 1);
    aq_status status = aq_native_append_original(&builder, original, err);
    if (status != AQ_OK || (!builder.failed && builder.size == 1)) {
        aq_builder_free(&builder);
        return status;
    }
    if (!builder.failed) builder.data[builder.size - 1] = '}'; /* in place of the last comma */
    return aq_builder_finish(&builder, text, size, err);
}

/* Bytes of a string that is escaped as JSON and then once more as part of a JSON string. */
static uint64_t aq_native_string_bound(const char *text) {
    uint64_t size = 4; /* \"…\" */
    for (; *text; text++) {
        bool plain = *text >= ' ' && *text <= '~' && *text != '"' && *text != '\\';
        size += plain ? 1 : 7; /* \\u0001 */
    }
    return size;
}

AQ_LIB uint64_t aq_native_bound(const aq_native *native, const char *original) {
    /* Quotes inside the string take two bytes each; the samples below show them so. */
    static const char whole[] =
        "{\"arrowquant\":\"{'\"version'\":4294967295,'\"writer'\":'\"ArrowQuant " AQ_VERSION "'\","
        "'\"tensors'\":{},'\"crc32'\":{}}\"}";
    static const char tensor[] =
        ",:{'\"code'\":,'\"bits'\":4294967295,'\"group_size'\":4294967295,'\"params'\":'\"F16'\","
        "'\"states'\":4294967295,'\"rotation'\":4294967295,"
        "'\"dtype'\":'\"F8_E4M3'\",'\"shape'\":[],'\"method'\":,'\"cosine'\":,'\"sqnr_db'\":}";
    static const char checksum[] = ",:'\"00000000'\"";
    uint64_t size = sizeof(whole) + (original ? strlen(original) : 0);
    for (size_t i = 0; i < native->tensor_count; i++) {
        const aq_native_tensor *t = &native->tensors[i];
        size += sizeof(tensor) + 2 * AQ_DOUBLE_TEXT + 21 * (uint64_t)t->rank;
        size += aq_native_string_bound(t->name) + aq_native_string_bound(t->code);
        size += aq_native_string_bound(t->method);
        if (t->input) size += sizeof(",'\"input'\":") + aq_native_string_bound(t->input);
    }
    for (size_t i = 0; i < native->checksum_count; i++)
        size += sizeof(checksum) + aq_native_string_bound(native->checksums[i].name);
    return size;
}

#endif /* ARROWQUANT_NO_STDIO */
