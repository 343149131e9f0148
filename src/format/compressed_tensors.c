/* compressed-tensors: zero points in words, the configuration, one layer's tensors checked. */
#include "compressed_tensors.h"

#include "../base/text.h"

#ifndef ARROWQUANT_NO_STDIO

AQ_LIB void aq_ct_pack_zeros(const unsigned char *zeros, uint64_t rows, uint64_t groups,
                             uint32_t bits, unsigned char *out) {
    uint64_t per_word = 32 / bits, words = (rows + per_word - 1) / per_word;
    memset(out, 0, (size_t)(words * groups * 4));
    for (uint64_t row = 0; row < rows; row++) {
        unsigned shift = (unsigned)(row % per_word) * bits;
        unsigned char *word = out + (size_t)(row / per_word * groups * 4) + shift / 8;
        for (uint64_t g = 0; g < groups; g++, word += 4)
            *word = (unsigned char)(*word | (unsigned)*zeros++ << shift % 8);
    }
}

AQ_LIB unsigned char aq_ct_zero(const unsigned char *packed, uint64_t groups, uint32_t bits,
                                uint64_t row, uint64_t group) {
    uint64_t per_word = 32 / bits;
    unsigned shift = (unsigned)(row % per_word) * bits;
    const unsigned char *word = packed + (size_t)((row / per_word * groups + group) * 4);
    return (unsigned char)(word[shift / 8] >> shift % 8 & ((1u << bits) - 1u));
}

/* ---- the configuration */

static aq_status aq_ct_refuse(aq_error *err, const char *path, const char *what, const char *found) {
    return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: quantization_config: %s%s%s%s; only integer "
                   "weights in groups, packed, are read", path, what, found ? " \"" : "",
                   found ? found : "", found ? "\"" : "");
}

static bool aq_ct_absent(const aq_json_node *node) {
    return !node || node->type == AQ_JSON_NULL;
}

static aq_status aq_ct_read_group(const aq_json_node *group, const char *path, aq_ct_config *out,
                                  aq_error *err) {
    const aq_json_node *weights = aq_json_get(group, "weights");
    const aq_json_node *bits_node = aq_json_get(weights, "num_bits");
    const aq_json_node *symmetric = aq_json_get(weights, "symmetric");
    const aq_json_node *size_node = aq_json_get(weights, "group_size");
    const aq_json_node *dynamic = aq_json_get(weights, "dynamic");
    const char *type = aq_json_string(aq_json_get(weights, "type"));
    const char *strategy = aq_json_string(aq_json_get(weights, "strategy"));
    const char *format = aq_json_string(aq_json_get(group, "format"));
    uint64_t bits = 0, size = AQ_CT_GROUP_SIZES;
    if (!weights || weights->type != AQ_JSON_OBJECT)
        return aq_ct_refuse(err, path, "a group without weights", NULL);
    if (!aq_ct_absent(aq_json_get(group, "input_activations")) ||
        !aq_ct_absent(aq_json_get(group, "output_activations")))
        return aq_ct_refuse(err, path, "quantized activations", NULL);
    if (format && strcmp(format, "pack-quantized") != 0)
        return aq_ct_refuse(err, path, "a group of the format", format);
    if (type && strcmp(type, "int") != 0) return aq_ct_refuse(err, path, "the type", type);
    if (strategy && strcmp(strategy, "group") != 0)
        return aq_ct_refuse(err, path, "the strategy", strategy);
    if (!aq_json_u64(bits_node, &bits) || (bits != 2 && bits != 4 && bits != 8))
        return aq_ct_refuse(err, path, "num_bits other than 2, 4 or 8", NULL);
    if (!aq_ct_absent(size_node) &&
        (!aq_json_u64(size_node, &size) || (size != 32 && size != 64 && size != 128 && size != 256)))
        return aq_ct_refuse(err, path, "a group_size other than 32, 64, 128 or 256", NULL);
    if (dynamic && dynamic->type == AQ_JSON_TRUE)
        return aq_ct_refuse(err, path, "weights that are quantized when they are used", NULL);
    out->group_sizes |= (uint32_t)size;
    out->bits[bits] = true;
    out->symmetric[!symmetric || symmetric->type != AQ_JSON_FALSE] = true;
    return AQ_OK;
}

AQ_LIB aq_status aq_ct_read_config(const aq_json_node *config, const char *path, aq_ct_config *out,
                                   aq_error *err) {
    const aq_json_node *quant = aq_json_get(config, "quantization_config");
    if (!quant) quant = aq_json_get(config, "compression_config"); /* an older name */
    const char *method = aq_json_string(aq_json_get(quant, "quant_method"));
    const char *format = aq_json_string(aq_json_get(quant, "format"));
    const aq_json_node *groups = aq_json_get(quant, "config_groups");
    aq_status status = AQ_OK;
    memset(out, 0, sizeof(*out));
    if (!method || strcmp(method, "compressed-tensors") != 0) return AQ_OK;
    if (format && strcmp(format, "float-quantized") == 0) return AQ_OK; /* FP8: plain to us */
    if (!format || strcmp(format, "pack-quantized") != 0)
        return aq_ct_refuse(err, path, "the format", format ? format : "none");
    if (!groups || groups->type != AQ_JSON_OBJECT || !groups->count)
        return aq_fail(err, AQ_ERR_METADATA, "%s: quantization_config has no config_groups", path);
    out->present = true;
    for (const aq_json_node *group = groups->first; status == AQ_OK && group; group = group->next)
        status = aq_ct_read_group(group, path, out, err);
    return status;
}

/* ---- one layer */

static aq_status aq_ct_bad(aq_error *err, const char *path, const char *name, const char *what) {
    return aq_fail_tensor(err, AQ_ERR_CORRUPT, name, 0,
                          "%s: layer %s: %s; download or write the model again", path, name, what);
}

static bool aq_ct_is(const aq_st_tensor *tensor, aq_dtype dtype, uint64_t rows, uint64_t cols) {
    return tensor->dtype == dtype && tensor->rank == 2 && tensor->shape[0] == rows &&
           tensor->shape[1] == cols;
}

static uint64_t aq_ct_words(uint64_t count, uint64_t bits) {
    return count / (32 / bits) + (count % (32 / bits) != 0);
}

AQ_LIB aq_status aq_ct_check_layer(const aq_ct_config *config, const aq_ct_layer *layer,
                                   const uint64_t extents[2], const char *name, const char *path,
                                   aq_quant_spec *spec, aq_quant_layout *layout, aq_error *err) {
    const aq_st_tensor *scale = layer->scale;
    uint64_t rows = extents[0], cols = extents[1], groups;
    memset(spec, 0, sizeof(*spec));
    if (!rows || !cols || rows > INT64_MAX || cols > INT64_MAX)
        return aq_ct_bad(err, path, name, "weight_shape holds no matrix");
    for (uint32_t bits = 2; bits <= 8; bits *= 2)
        if (config->bits[bits] &&
            aq_ct_is(layer->packed, AQ_DTYPE_I32, rows, aq_ct_words(cols, bits)))
            spec->bits = bits;
    if (!spec->bits)
        return aq_ct_bad(err, path, name, "weight_packed does not fit weight_shape and num_bits");
    if (scale->rank != 2 || scale->shape[0] != rows || !scale->shape[1])
        return aq_ct_bad(err, path, name, "weight_scale does not fit weight_shape");
    groups = scale->shape[1];
    spec->params = scale->dtype == AQ_DTYPE_F32   ? AQ_PARAM_F32
                   : scale->dtype == AQ_DTYPE_F16 ? AQ_PARAM_F16 : AQ_PARAM_BF16;
    if (scale->dtype != AQ_DTYPE_F32 && scale->dtype != AQ_DTYPE_F16 &&
        scale->dtype != AQ_DTYPE_BF16)
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, name, 0, "%s: layer %s: scales of dtype %s; "
                              "expected BF16, F16 or F32", path, name, aq_dtype_name(scale->dtype));
    if (cols % groups || (cols / groups != 32 && cols / groups != 64 && cols / groups != 128 &&
                          cols / groups != 256))
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, name, 0, "%s: layer %s: %llu scales for %llu "
                              "columns; expected groups of 32, 64, 128 or 256", path, name,
                              (unsigned long long)groups, (unsigned long long)cols);
    spec->group_size = (uint32_t)(cols / groups);
    if (!(config->group_sizes & spec->group_size))
        return aq_ct_bad(err, path, name, "weight_scale does not fit the group_size of "
                         "quantization_config");
    spec->code = layer->zero_point ? AQ_CODE_ZERO_POINT : AQ_CODE_SYMMETRIC;
    if (!config->symmetric[layer->zero_point ? 0 : 1])
        return aq_ct_bad(err, path, name, layer->zero_point
                         ? "it has zero points, quantization_config says symmetric"
                         : "it has no zero points, quantization_config says affine");
    if (layer->zero_point &&
        !aq_ct_is(layer->zero_point, AQ_DTYPE_I32, aq_ct_words(rows, spec->bits), groups))
        return aq_ct_bad(err, path, name, "weight_zero_point does not fit weight_shape");
    return aq_quantized_size(spec, rows, cols, layout, err);
}

AQ_LIB aq_dtype aq_ct_scale_dtype(const aq_json_node *config, aq_dtype tensor) {
    static const char *const keys[] = { "dtype", "torch_dtype" };
    for (unsigned i = 0; config && i < 2; i++) {
        const char *name = aq_json_string(aq_json_get(config, keys[i]));
        if (!name) continue;
        if (strcmp(name, "bfloat16") == 0) return AQ_DTYPE_BF16;
        if (strcmp(name, "float16") == 0) return AQ_DTYPE_F16;
        if (strcmp(name, "float32") == 0) return AQ_DTYPE_F32;
    }
    if (tensor == AQ_DTYPE_F64) return AQ_DTYPE_F32;
    return aq_dtype_size(tensor) == 1 ? AQ_DTYPE_BF16 : tensor;
}

#endif /* ARROWQUANT_NO_STDIO */
