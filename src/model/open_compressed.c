/* Layers of a compressed-tensors checkpoint: found by name in whichever of the component's files holds
 * their parts, checked, and put together as aq_tensor. */
#include "open.h"

#include "../base/text.h"

#include <math.h>

#ifndef ARROWQUANT_NO_STDIO

/* The tensor BASE + suffix, in any file of the component; `in` (may be NULL) is the file. */
static const aq_st_tensor *aq_ct_find(const aq_model *model, const aq_component *component,
                                      const char *base, size_t base_size, const char *suffix,
                                      aq_arena *scratch, const aq_model_shard **in, bool *failed) {
    const struct aq_model_state *state = model->state;
    size_t size = base_size + strlen(suffix) + 1;
    char *name = (char *)aq_arena_alloc(scratch, size);
    *failed = *failed || !name;
    if (!name) return NULL;
    memcpy(name, base, base_size);
    memcpy(name + base_size, suffix, size - base_size);
    for (size_t s = 0; s < state->shard_count; s++) {
        const aq_model_shard *shard = &state->shards[s];
        if (shard->component != component) continue;
        const aq_st_tensor *found =
            aq_st_find((const aq_st_tensor *const *)shard->by_name, shard->file->tensor_count, name);
        if (!found) continue;
        if (in) *in = shard;
        return found;
    }
    return NULL;
}

static size_t aq_ct_base_size(const char *name, const char *suffix) {
    size_t size = strlen(name), tail = strlen(suffix);
    return aq_ends_with(name, suffix) && size > tail + 7 &&
                   memcmp(name + size - tail - 7, ".weight", 7) == 0
               ? size - tail : 0;
}

AQ_LIB bool aq_ct_is_packed(const char *name) {
    return aq_ct_base_size(name, AQ_CT_PACKED) != 0;
}

AQ_LIB aq_status aq_ct_is_part(const aq_model *model, const aq_model_shard *shard,
                               const char *name, bool *part, aq_error *err) {
    static const char *const suffixes[] = { AQ_CT_PACKED, AQ_CT_SCALE, AQ_CT_SHAPE,
                                            AQ_CT_ZERO_POINT };
    aq_arena scratch;
    bool failed = false;
    *part = false;
    aq_arena_init(&scratch, model->state->context);
    for (unsigned i = 0; i < 4 && !*part && !failed; i++) {
        size_t size = aq_ct_base_size(name, suffixes[i]);
        if (size)
            *part = aq_ct_find(model, shard->component, name, size, AQ_CT_PACKED, &scratch, NULL,
                               &failed) != NULL;
    }
    aq_arena_free(&scratch);
    return failed ? aq_fail_memory(err, strlen(name)) : AQ_OK;
}

/* The two numbers of weight_shape. */
static aq_status aq_ct_extents(const aq_model_shard *shard, const aq_st_tensor *shape,
                               const char *name, uint64_t extents[2], aq_error *err) {
    const unsigned char *data = (const unsigned char *)shard->map.data + (size_t)shape->offset;
    if (shape->dtype != AQ_DTYPE_I64 || shape->rank != 1 || shape->shape[0] != 2)
        return aq_fail_tensor(err, AQ_ERR_CORRUPT, name, shape->offset,
                              "%s: layer %s: weight_shape is not I64 [2]; download or write the "
                              "model again", shard->file->path, name);
    for (unsigned e = 0; e < 2; e++) {
        extents[e] = 0;
        for (unsigned i = 8; i > 0; i--) extents[e] = extents[e] << 8 | data[8 * e + i - 1];
    }
    return AQ_OK;
}

/* Scale and zero point side by side, as the code wants them. */
static aq_status aq_ct_pair(aq_arena *arena, const unsigned char *scales,
                            const unsigned char *zeros, aq_tensor *tensor, aq_error *err) {
    const aq_quant_layout *layout = &tensor->layout;
    size_t pair = (size_t)(layout->row_param_bytes / layout->groups);
    unsigned char *out = layout->param_bytes <= SIZE_MAX / 2
                             ? (unsigned char *)aq_arena_alloc(arena, (size_t)layout->param_bytes)
                             : NULL;
    if (!out) return aq_fail_memory(err, (size_t)layout->param_bytes);
    tensor->params = out;
    for (uint64_t row = 0; row < layout->rows; row++) {
        for (uint64_t group = 0; group < layout->groups; group++, out += pair) {
            memcpy(out, scales, pair - 1);
            scales += pair - 1;
            out[pair - 1] = aq_ct_zero(zeros, layout->groups, tensor->spec.bits, row, group);
        }
    }
    return AQ_OK;
}

static const unsigned char *aq_ct_data(const aq_model_shard *shard, const aq_st_tensor *tensor) {
    return (const unsigned char *)shard->map.data + (size_t)tensor->offset;
}

static aq_status aq_ct_fill(aq_model *model, const aq_model_shard *const in[4],
                            const aq_ct_layer *layer, const char *name, aq_tensor *out,
                            aq_error *err) {
    uint64_t *extents = (uint64_t *)aq_arena_alloc(&model->state->arena, 2 * sizeof(uint64_t));
    if (!extents) return aq_fail_memory(err, 2 * sizeof(uint64_t));
    aq_status status = aq_ct_extents(in[2], layer->shape, name, extents, err);
    if (status == AQ_OK)
        status = aq_ct_check_layer(in[0]->compressed, layer, extents, name, in[0]->file->path,
                                   &out->spec, &out->layout, err);
    if (status != AQ_OK) return status;
    out->dtype = layer->scale->dtype;
    out->rank = 2;
    out->shape = extents;
    out->rows = extents[0];
    out->cols = extents[1];
    out->quantized = true;
    out->code_name = layer->zero_point ? "zero_point" : "symmetric";
    out->method = "compressed-tensors";
    out->codes = aq_ct_data(in[0], layer->packed);
    out->params = aq_ct_data(in[1], layer->scale);
    out->bytes = layer->packed->bytes + layer->scale->bytes + layer->shape->bytes;
    out->cosine_similarity = out->sqnr_db = (double)NAN;
    out->file = in[0]->path;
    if (!layer->zero_point) return AQ_OK;
    out->bytes += layer->zero_point->bytes;
    return aq_ct_pair(&model->state->arena, aq_ct_data(in[1], layer->scale),
                      aq_ct_data(in[3], layer->zero_point), out, err);
}

AQ_LIB aq_status aq_ct_open_layer(aq_model *model, const aq_model_shard *shard,
                                  const aq_st_tensor *packed, const char **own_name,
                                  aq_tensor *out, aq_error *err) {
    size_t size = aq_ct_base_size(packed->name, AQ_CT_PACKED);
    const aq_model_shard *in[4] = { shard, NULL, NULL, NULL };
    const aq_component *component = shard->component;
    bool failed = false;
    aq_ct_layer layer;
    aq_arena scratch;
    char *name = aq_arena_copy(&model->state->arena, packed->name, size);
    if (!name) return aq_fail_memory(err, size);
    aq_arena_init(&scratch, model->state->context);
    layer.packed = packed;
    layer.scale =
        aq_ct_find(model, component, name, size, AQ_CT_SCALE, &scratch, &in[1], &failed);
    layer.shape =
        aq_ct_find(model, component, name, size, AQ_CT_SHAPE, &scratch, &in[2], &failed);
    layer.zero_point =
        aq_ct_find(model, component, name, size, AQ_CT_ZERO_POINT, &scratch, &in[3], &failed);
    const aq_st_tensor *order =
        aq_ct_find(model, component, name, size, AQ_CT_G_INDEX, &scratch, NULL, &failed);
    aq_arena_free(&scratch);
    *own_name = name;
    if (failed) return aq_fail_memory(err, size);
    if (!layer.scale || !layer.shape)
        return aq_fail_tensor(err, AQ_ERR_CORRUPT, name, packed->offset, "%s: layer %s has no %s; "
                              "download or write the model again", shard->file->path, name,
                              layer.scale ? "weight_shape" : "weight_scale");
    if (order)
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, name, 0, "%s: layer %s has an order of columns "
                              "(weight_g_idx), which is not read", shard->file->path, name);
    return aq_ct_fill(model, in, &layer, name, out, err);
}

#endif /* ARROWQUANT_NO_STDIO */
