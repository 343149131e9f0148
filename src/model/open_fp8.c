/* Kept FP8 weights of an opened model and the tensors that scale them. */
#include "../base/text.h"
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

/* The names that plan creation (model/fp8.c) goes by, in the same order. */
AQ_LIB const aq_tensor *aq_model_fp8_scale(const aq_model *model, const aq_tensor *weight) {
    size_t size = strlen(weight->name);
    if (weight->quantized ||
        (weight->dtype != AQ_DTYPE_F8_E4M3 && weight->dtype != AQ_DTYPE_F8_E5M2))
        return NULL;
    const aq_tensor *found = aq_fp8_find(model, weight->name, size, "_scale_inv");
    if (!found) found = aq_fp8_find(model, weight->name, size, "_scale");
    if (!found && aq_ends_with(weight->name, "weight"))
        found = aq_fp8_find(model, weight->name, size - strlen("weight"), "scale_weight");
    return found;
}

#endif /* ARROWQUANT_NO_STDIO */
