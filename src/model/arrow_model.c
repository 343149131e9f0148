/* An opened model as an Arrow stream: a record batch for each tensor, codes where they lie. */
#include "../base/thread.h"
#include "../format/arrow.h"
#include "../quant/quant.h"
#include "convert.h"

#include <errno.h>

#ifndef ARROWQUANT_NO_STDIO

/* Lives until the stream and all its arrays are released; then the model is closed. */
typedef struct aq_arrow_source {
    int references;
    aq_context context;
    aq_model *model;
    size_t next;
    aq_error last;
} aq_arrow_source;

static void aq_arrow_source_drop(void *user) {
    aq_arrow_source *source = (aq_arrow_source *)user;
    if (aq_atomic_add(&source->references, -1) > 0) return;
    aq_context context = source->context;
    aq_model_close(source->model);
    aq_free(&context, source, sizeof(*source));
}

/* ---- one tensor as a layer; what must be made lives in the arena of the array */

static aq_status aq_arrow_parameters(aq_arena *arena, const aq_tensor *tensor,
                                     aq_arrow_layer *layer, aq_error *err) {
    uint64_t groups = tensor->layout.rows * tensor->layout.groups;
    size_t bytes = (size_t)groups * sizeof(float);
    bool affine = tensor->spec.code == AQ_CODE_AFFINE; /* else the zero points are exact */
    float *scales = (float *)aq_arena_alloc(arena, bytes);
    float *zeros = (float *)aq_arena_alloc(arena, bytes);
    float *mins = affine ? (float *)aq_arena_alloc(arena, bytes) : NULL;
    if (!scales || !zeros || (affine && !mins)) return aq_fail_memory(err, bytes);
    aq_status status = aq_quant_parameters(NULL, &tensor->spec, tensor->params, tensor->extra,
                                           tensor->rows, tensor->cols, scales, mins, zeros, err);
    if (status != AQ_OK) return status;
    layer->scales = scales;
    layer->zero_points = zeros;
    layer->mins = mins;
    layer->groups = groups;
    return AQ_OK;
}

static aq_status aq_arrow_groups(aq_arena *arena, const aq_time_groups *groups,
                                 aq_arrow_layer *layer, aq_error *err) {
    aq_arrow_time_group *times = (aq_arrow_time_group *)aq_arena_alloc(
        arena, 2 * (size_t)groups->count * sizeof(aq_arrow_time_group));
    if (!times) return aq_fail_memory(err, 2 * (size_t)groups->count * sizeof(*times));
    layer->time_groups = times;
    layer->time_groups_4bit = times + groups->count;
    layer->time_group_count = groups->count;
    for (unsigned w = 0; w < 2; w++) {
        for (uint32_t g = 0; g < groups->count; g++, times++) {
            times->t_start = groups->starts[g];
            times->t_end = g + 1 < groups->count ? groups->starts[g + 1]
                                                 : (int32_t)groups->total_timesteps;
            times->scale = groups->scale[w][g];
            times->zero_point = (float)groups->zero_point[w][g];
        }
    }
    return AQ_OK;
}

static aq_status aq_arrow_layer_of(aq_arena *arena, const aq_tensor *tensor, aq_arrow_layer *layer,
                                   aq_error *err) {
    int64_t *shape =
        (int64_t *)aq_arena_alloc(arena, (tensor->rank + 1) * sizeof(int64_t));
    memset(layer, 0, sizeof(*layer));
    if (!shape) return aq_fail_memory(err, tensor->rank * sizeof(int64_t));
    for (uint32_t i = 0; i < tensor->rank; i++) {
        if (tensor->shape[i] > INT64_MAX)
            return aq_fail_tensor(err, AQ_ERR_SHAPE, tensor->name, 0, "tensor %s: an extent of %llu "
                                  "does not fit int64", tensor->name,
                                  (unsigned long long)tensor->shape[i]);
        shape[i] = (int64_t)tensor->shape[i];
    }
    layer->name = tensor->name;
    layer->shape = shape;
    layer->rank = tensor->rank;
    layer->dtype = aq_dtype_name(tensor->dtype);
    layer->cosine_similarity = tensor->cosine_similarity;
    layer->sqnr_db = tensor->sqnr_db;
    if (!tensor->quantized) {
        layer->bit_width = (uint8_t)(8 * aq_dtype_size(tensor->dtype));
        layer->data = tensor->data;
        layer->data_bytes = tensor->bytes;
        layer->method = "kept";
        return AQ_OK;
    }
    if (tensor->input_scales)
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, tensor->name, 0, "tensor %s: the table has no "
                              "column for the scales of an equalized layer's input; dequantize the "
                              "model first", tensor->name);
    aq_tensor form;
    aq_status status = aq_convert_blocks(arena, tensor, tensor->name, &form, err);
    if (status != AQ_OK) return status;
    tensor = &form;
    layer->bit_width = (uint8_t)tensor->spec.bits;
    layer->group_size = tensor->spec.group_size;
    layer->data = tensor->codes;
    layer->data_bytes = tensor->layout.code_bytes;
    layer->method = tensor->method;
    status = aq_arrow_parameters(arena, tensor, layer, err);
    if (status == AQ_OK && tensor->time_groups)
        status = aq_arrow_groups(arena, tensor->time_groups, layer, err);
    return status;
}

static aq_status aq_arrow_source_next(aq_arrow_source *source, struct ArrowArray *out,
                                      aq_error *err) {
    aq_arrow_layer layer;
    struct ArrowArray array;
    memset(out, 0, sizeof(*out));
    if (source->next >= source->model->tensor_count) return AQ_OK;
    aq_arrow_shared *shared = aq_arrow_share(&source->context);
    if (!shared) return aq_fail_memory(err, sizeof(*shared));
    aq_status status = aq_arrow_layer_of(&shared->arena, &source->model->tensors[source->next],
                                         &layer, err);
    if (status == AQ_OK) status = aq_arrow_layer_array(shared, &layer, 1, &array, err);
    if (status != AQ_OK) {
        aq_arrow_discard(shared);
        return status;
    }
    shared->owner.release = aq_arrow_source_drop;
    shared->owner.user = source;
    (void)aq_atomic_add(&source->references, 1);
    source->next++;
    *out = array;
    return AQ_OK;
}

/* ---- the stream's functions */

static int aq_arrow_source_code(aq_status status) {
    return status == AQ_OK                   ? 0
           : status == AQ_ERR_OUT_OF_MEMORY ? ENOMEM
           : status == AQ_ERR_UNSUPPORTED   ? ENOSYS : EINVAL;
}

static int aq_arrow_source_schema(struct ArrowArrayStream *stream, struct ArrowSchema *out) {
    aq_arrow_source *source = (aq_arrow_source *)stream->private_data;
    const aq_model *model = source->model;
    const char *metadata[8];
    metadata[0] = "arrowquant.table";
    metadata[1] = "1";
    metadata[2] = "arrowquant.writer";
    metadata[3] = "ArrowQuant " AQ_VERSION;
    metadata[4] = "arrowquant.modality";
    metadata[5] = aq_modality_name(model->modality);
    metadata[6] = "arrowquant.quantized";
    metadata[7] = model->quantized ? "true" : "false";
    struct ArrowSchema schema;
    aq_arrow_shared *shared = aq_arrow_share(&source->context);
    if (shared && aq_arrow_layer_schema(shared, metadata, 8, &schema)) {
        *out = schema;
        return 0;
    }
    if (shared) aq_arrow_discard(shared);
    return aq_arrow_source_code(aq_fail_memory(&source->last, sizeof(schema)));
}

static int aq_arrow_source_get_next(struct ArrowArrayStream *stream, struct ArrowArray *out) {
    aq_arrow_source *source = (aq_arrow_source *)stream->private_data;
    return aq_arrow_source_code(aq_arrow_source_next(source, out, &source->last));
}

static const char *aq_arrow_source_error(struct ArrowArrayStream *stream) {
    const aq_arrow_source *source = (const aq_arrow_source *)stream->private_data;
    return source->last.message[0] ? source->last.message : NULL;
}

static void aq_arrow_source_release(struct ArrowArrayStream *stream) {
    stream->release = NULL;
    aq_arrow_source_drop(stream->private_data);
}

ARROWQUANT_API aq_status aq_arrow_export_model(aq_context *context, aq_model *model,
                                               struct ArrowArrayStream *stream, aq_error *err) {
    if (!model || !stream)
        return aq_fail(err, AQ_ERR_ARGUMENT,
                       "aq_arrow_export_model: model and stream must not be NULL");
    aq_arrow_source *source = (aq_arrow_source *)aq_alloc(context, sizeof(*source));
    if (!source) return aq_fail_memory(err, sizeof(*source));
    memset(source, 0, sizeof(*source));
    if (context) source->context = *context;
    source->references = 1;
    source->model = model;
    stream->get_schema = aq_arrow_source_schema;
    stream->get_next = aq_arrow_source_get_next;
    stream->get_last_error = aq_arrow_source_error;
    stream->release = aq_arrow_source_release;
    stream->private_data = source;
    return AQ_OK;
}

#endif /* ARROWQUANT_NO_STDIO */
