/* Kept FP8 weights of an opened model and the tensors that scale them. */
#include "../base/text.h"
#include "../quant/quant.h"
#include "open.h"

#ifndef ARROWQUANT_NO_STDIO

/* strcmp(name, first `size` bytes of stem + suffix) */
static int aq_fp8_compare(const char *name, const char *stem, size_t size, const char *suffix) {
    int order = strncmp(name, stem, size);
    return order ? order : strcmp(name + size, suffix);
}

static const aq_tensor *aq_fp8_find(const aq_model *model, const char *stem, size_t size,
                                    const char *suffix) {
    size_t low = 0, high = model->tensor_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = aq_fp8_compare(model->tensors[middle].name, stem, size, suffix);
        if (order == 0) return &model->tensors[middle];
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

AQ_LIB const aq_tensor *aq_model_fp8_scale(const aq_model *model, const aq_tensor *weight) {
    const aq_tensor *found = NULL;
    if (weight->quantized || !aq_dtype_is_fp8(weight->dtype)) return NULL;
    for (size_t i = 0; i < AQ_FP8_NAMES && !found; i++) {
        const aq_fp8_name *name = aq_fp8_name_at(i);
        if (aq_ends_with(weight->name, name->ending))
            found = aq_fp8_find(model, weight->name, strlen(weight->name) - strlen(name->ending),
                                name->suffix);
    }
    return found;
}

static aq_fp8_shape aq_tensor_shape(const aq_model *model, const aq_tensor *tensor) {
    aq_fp8_shape shape;
    shape.folder = model->state->folder.root;
    shape.file = tensor->file;
    shape.name = tensor->name;
    shape.rank = tensor->rank;
    shape.rows = tensor->rows;
    shape.cols = tensor->cols;
    return shape;
}

AQ_LIB aq_status aq_model_load_scale(const aq_context *context, aq_arena *arena,
                                     const aq_model *model, const aq_tensor *weight,
                                     aq_fp8_scale *out, aq_error *err) {
    const aq_tensor *scale = aq_model_fp8_scale(model, weight);
    memset(out, 0, sizeof(*out));
    if (!scale || scale->quantized || !aq_dtype_is_float(scale->dtype)) return AQ_OK;
    aq_fp8_shape weight_shape = aq_tensor_shape(model, weight);
    aq_fp8_shape scale_shape = aq_tensor_shape(model, scale);
    aq_status status = aq_fp8_scale_shape(&weight_shape, &scale_shape, out, err);
    if (status != AQ_OK) return status;
    size_t count = (size_t)(scale->rows * scale->cols);
    float *values = (float *)aq_arena_alloc(arena, count * sizeof(*values));
    if (!values) return aq_fail_memory(err, count * sizeof(*values));
    aq_stored_f32(context, scale->dtype, scale->data, values, count);
    out->values = values;
    return AQ_OK;
}

#endif /* ARROWQUANT_NO_STDIO */
