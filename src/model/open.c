/* Opens a model for reading: maps its weight files, puts quantized tensors together from their
 * parts, finds and dequantizes them. */
#include "open.h"

#include "../base/text.h"
#include "../format/sort.h"
#include "../quant/quant.h"
#include "../quant/trellis.h"

#include <float.h>
#include <math.h>

#ifndef ARROWQUANT_NO_STDIO

typedef struct aq_model_storage {
    aq_model model;
    struct aq_model_state state;
} aq_model_storage;

/* A tensor while the list is made. */
typedef struct aq_open_item {
    aq_tensor tensor;
    size_t shard;
    const char *own_name;
} aq_open_item;

typedef struct aq_open_list {
    aq_model *model;
    aq_open_item *items;
    size_t count;
    bool prefixed; /* names start with "component/" */
    aq_error *err;
} aq_open_list;

/* ---- which components, which variant */

/* Whether this file was written by this library. What cannot be read is somebody else's: it is
 * reported when it is opened, if it is. Only a lack of memory is an error. */
static aq_status aq_file_is_native(const aq_context *context, const char *path, bool *native,
                                   aq_error *err) {
    aq_arena arena;
    aq_st_file file;
    aq_error ignored;
    const char *value = NULL;
    aq_arena_init(&arena, context);
    aq_status status = aq_st_read_header(&arena, path, &file, &ignored);
    if (status == AQ_OK)
        status = aq_st_metadata_value(&arena, &file, AQ_NATIVE_KEY, &value, &ignored);
    *native = status == AQ_OK && value;
    aq_arena_free(&arena);
    if (status != AQ_ERR_OUT_OF_MEMORY) return AQ_OK;
    if (err) *err = ignored;
    return status;
}

/* Looks for a weight file of this library; *variant is the one in its name, if any. */
static aq_status aq_probe_folder(aq_arena *arena, const char *folder, bool *native,
                                 const char **variant, aq_error *err) {
    aq_folder_entry *entries = NULL;
    size_t count = 0;
    bool gguf = false, weights = false;
    *native = false;
    aq_status status = aq_list_folder(arena, folder, &entries, &count, NULL);
    if (status == AQ_ERR_OUT_OF_MEMORY) return aq_fail_memory(err, strlen(folder));
    if (status != AQ_OK) return AQ_OK;
    for (size_t i = 0; i < count && !*native; i++) {
        const char *name = entries[i].name, *found = NULL;
        size_t size = 0;
        if (entries[i].kind == AQ_PATH_FILE && aq_ends_with(name, ".gguf")) gguf = true;
        if (entries[i].kind != AQ_PATH_FILE || !aq_ends_with(name, ".safetensors")) continue;
        weights = true;
        char *path = aq_path_join(arena, folder, name);
        if (!path) return aq_fail_memory(err, strlen(folder));
        status = aq_file_is_native(arena->context, path, native, err);
        if (status != AQ_OK) return status;
        if (!*native || !aq_name_variant(name, &found, &size) || !size) continue;
        *variant = aq_arena_copy(arena, found, size);
        if (!*variant) return aq_fail_memory(err, size);
    }
    *native = *native || (gguf && !weights);
    return AQ_OK;
}

/* Of a quantized model: the components of a pipeline that are quantized, and the variant. */
static aq_status aq_probe_model(aq_arena *arena, const char *path, const char ***names,
                                size_t *name_count, const char **variant, aq_error *err) {
    aq_folder_entry *entries = NULL;
    size_t count = 0;
    bool native = false;
    *name_count = 0;
    if (aq_path_kind_of(path) != AQ_PATH_FOLDER) return AQ_OK;
    char *index = aq_path_join(arena, path, "model_index.json");
    if (!index) return aq_fail_memory(err, strlen(path));
    if (aq_path_kind_of(index) != AQ_PATH_FILE)
        return aq_probe_folder(arena, path, &native, variant, err);
    aq_status status = aq_list_folder(arena, path, &entries, &count, err);
    if (status != AQ_OK) return status;
    *names = (const char **)aq_arena_alloc(arena, (count + 1) * sizeof(**names));
    if (!*names) return aq_fail_memory(err, count * sizeof(**names));
    for (size_t i = 0; i < count; i++) {
        if (entries[i].kind != AQ_PATH_FOLDER) continue;
        char *folder = aq_path_join(arena, path, entries[i].name);
        if (!folder) return aq_fail_memory(err, strlen(path));
        status = aq_probe_folder(arena, folder, &native, variant, err);
        if (status != AQ_OK) return status;
        if (native) (*names)[(*name_count)++] = entries[i].name;
    }
    return AQ_OK;
}

static aq_status aq_open_folder(aq_model *model, const char *path, const aq_config *config,
                                aq_error *err) {
    struct aq_model_state *state = model->state;
    aq_config effective = aq_config_from_profile(AQ_PROFILE_LOCAL);
    const char **names = NULL;
    const char *variant = NULL;
    size_t count = 0;
    aq_status status = aq_probe_model(&state->arena, path, &names, &count, &variant, err);
    if (status != AQ_OK) return status;
    effective.components = names;
    effective.component_count = count;
    effective.variant = variant;
    if (config && config->component_count) {
        effective.components = config->components;
        effective.component_count = config->component_count;
    }
    if (config && config->variant && *config->variant) effective.variant = config->variant;
    if (effective.variant) {
        state->variant = aq_arena_string(&state->arena, effective.variant);
        if (!state->variant) return aq_fail_memory(err, strlen(effective.variant));
    }
    return aq_folder_open(&state->arena, path, &effective, &state->folder, err);
}

/* ---- weight files */

static aq_status aq_open_shard(aq_model *model, aq_model_shard *shard, aq_error *err) {
    struct aq_model_state *state = model->state;
    aq_status status = aq_map_file(&shard->map, shard->file->path, err);
    if (status != AQ_OK) return status;
    if (shard->map.size != shard->file->file_size)
        return aq_fail(err, AQ_ERR_CORRUPT,
                       "%s: its size changed from %llu to %llu bytes while it was opened; try "
                       "again", shard->file->path, (unsigned long long)shard->file->file_size,
                       (unsigned long long)shard->map.size);
    model->weight_bytes += shard->map.size;
    shard->is_gguf = aq_ends_with(shard->path, ".gguf");
    if (shard->is_gguf)
        status = aq_gguf_parse(&state->arena, shard->map.data, shard->map.size, shard->file->path,
                               &shard->gguf, err);
    for (size_t i = 0; status == AQ_OK && i < shard->gguf.tensor_count; i++)
        model->quantized = model->quantized || shard->gguf.tensors[i].type->weights > 1;
    if (status != AQ_OK || shard->is_gguf) return status;
    shard->by_name = aq_st_sort_by_name(&state->arena, shard->file);
    if (!shard->by_name) return aq_fail_memory(err, shard->file->tensor_count);
    status =
        aq_native_read(&state->arena, shard->file, &shard->native_present, &shard->native, err);
    if (shard->native_present) model->quantized = true;
    return status;
}

/* *out stays NULL unless the component's config.json says compressed-tensors. */
static aq_status aq_open_compressed_config(aq_model *model, const aq_component *component,
                                           const aq_ct_config **out, aq_error *err) {
    aq_ct_config *config =
        (aq_ct_config *)aq_arena_alloc(&model->state->arena, sizeof(aq_ct_config));
    if (!config) return aq_fail_memory(err, sizeof(aq_ct_config));
    if (!component->config_json) return AQ_OK;
    char *path = aq_path_join(&model->state->arena, model->state->folder.root, component->config);
    if (!path) return aq_fail_memory(err, strlen(component->config));
    aq_status status = aq_ct_read_config(component->config_json, path, config, err);
    if (config->present) {
        *out = config;
        model->quantized = true;
    }
    return status;
}

static aq_status aq_open_shards(aq_model *model, aq_error *err) {
    struct aq_model_state *state = model->state;
    const aq_folder *folder = &state->folder;
    size_t count = 0;
    for (size_t c = 0; c < folder->component_count; c++) count += folder->components[c].shard_count;
    state->shards =
        (aq_model_shard *)aq_arena_alloc(&state->arena, (count + 1) * sizeof(*state->shards));
    if (!state->shards) return aq_fail_memory(err, count * sizeof(*state->shards));
    for (size_t c = 0; c < folder->component_count; c++) {
        const aq_component *component = &folder->components[c];
        const aq_ct_config *compressed = NULL;
        aq_status configured = aq_open_compressed_config(model, component, &compressed, err);
        if (configured != AQ_OK) return configured;
        for (size_t s = 0; s < component->shard_count; s++) {
            aq_model_shard *shard = &state->shards[state->shard_count++];
            shard->compressed = compressed;
            shard->path = component->shards[s];
            shard->component = component;
            shard->file = &component->files[s];
            aq_status status = aq_open_shard(model, shard, err);
            if (status != AQ_OK) return status;
        }
    }
    return AQ_OK;
}

/* ---- tensors */

static const void *aq_shard_data(const aq_model_shard *shard, const aq_st_tensor *tensor) {
    return (const unsigned char *)shard->map.data + (size_t)tensor->offset;
}

static aq_status aq_open_name(aq_open_list *list, const aq_model_shard *shard, const char *own,
                              const char **out) {
    *out = own;
    if (!list->prefixed) return AQ_OK;
    size_t component = strlen(shard->component->name), size = strlen(own);
    char *name = (char *)aq_arena_alloc(&list->model->state->arena, component + size + 2);
    if (!name) return aq_fail_memory(list->err, component + size + 2);
    memcpy(name, shard->component->name, component);
    name[component] = '/';
    memcpy(name + component + 1, own, size);
    *out = name;
    return AQ_OK;
}

static void aq_open_dims(aq_tensor *tensor) {
    uint64_t cols = 1;
    for (uint32_t i = tensor->rank > 1 ? 1 : 0; i < tensor->rank; i++) {
        if (!aq_mul_u64(cols, tensor->shape[i], &cols)) cols = 0; /* only an empty one */
    }
    tensor->rows = tensor->rank > 1 ? tensor->shape[0] : 1;
    tensor->cols = cols;
}

AQ_LIB aq_status aq_open_groups(struct aq_model_state *state, const int32_t *starts,
                                const float *scales, const int32_t *zeros, uint32_t count,
                                const char *file, uint64_t offset, aq_tensor *tensor,
                                aq_error *err) {
    bool failed;
    aq_opened_groups *opened = (aq_opened_groups *)aq_arena_alloc(&state->arena, sizeof(*opened));
    if (!opened) return aq_fail_memory(err, sizeof(*opened));
    if (!aq_time_groups_load(state->context, starts, scales, zeros, count, &opened->groups,
                             &failed))
        return failed ? aq_fail_memory(err, sizeof(*opened))
                      : aq_fail_tensor(err, AQ_ERR_CORRUPT, tensor->name, offset, "%s: tensor %s: its "
                                       "time groups do not ascend, or a scale or zero point is out of "
                                       "range; quantize the model again", file, tensor->name);
    opened->next = state->groups;
    state->groups = opened;
    tensor->time_groups = &opened->groups;
    return AQ_OK;
}

/* Scales of the layer's input: copied, as what follows. */
static aq_status aq_open_scales(aq_open_list *list, const aq_model_shard *shard,
                                const aq_native_tensor *native, aq_tensor *tensor, bool *claimed) {
    const aq_st_tensor *found;
    aq_status status =
        aq_native_input_scales(native, shard->file, shard->by_name, &found, list->err);
    if (status != AQ_OK || !found) return status;
    size_t count = (size_t)(found->bytes / sizeof(float));
    float *scales =
        (float *)aq_arena_alloc(&list->model->state->arena, (count + 1) * sizeof(float));
    if (!scales) return aq_fail_memory(list->err, (size_t)found->bytes);
    memcpy(scales, aq_shard_data(shard, found), (size_t)found->bytes);
    aq_little_endian(scales, count, sizeof(float));
    for (size_t i = 0; i < count; i++) {
        if (scales[i] > 0.0f && scales[i] <= FLT_MAX) continue;
        return aq_fail_tensor(list->err, AQ_ERR_CORRUPT, native->name, found->offset,
                              "%s: tensor %s: the scale of input %zu is not positive and finite; "
                              "quantize the model again", shard->file->path, native->name, i);
    }
    tensor->input_scales = scales;
    tensor->bytes += found->bytes;
    claimed[found - shard->file->tensors] = true;
    return AQ_OK;
}

/* Static integers for the layer's input: copied, because the file's bytes need no alignment. */
static aq_status aq_open_activations(aq_open_list *list, const aq_model_shard *shard,
                                     const aq_native_tensor *native, aq_tensor *tensor,
                                     bool *claimed) {
    struct aq_model_state *state = list->model->state;
    const aq_st_tensor *found[3];
    int32_t starts[AQ_TIME_GROUPS_MAX + 1], zeros[2 * AQ_TIME_GROUPS_MAX];
    float scales[2 * AQ_TIME_GROUPS_MAX];
    aq_status status =
        aq_native_activations(native, shard->file, shard->by_name, found, list->err);
    if (status != AQ_OK || !found[0]) return status;
    for (unsigned p = 0; p < 3; p++) {
        void *to = p == 0 ? (void *)starts : p == 1 ? (void *)scales : (void *)zeros;
        memcpy(to, aq_shard_data(shard, found[p]), (size_t)found[p]->bytes);
        aq_little_endian(to, (size_t)found[p]->bytes / 4, 4);
        tensor->bytes += found[p]->bytes;
        claimed[found[p] - shard->file->tensors] = true;
    }
    return aq_open_groups(state, starts, scales, zeros, (uint32_t)found[0]->shape[0] - 1,
                          shard->file->path, found[0]->offset, tensor, list->err);
}

static aq_status aq_open_quantized(aq_open_list *list, size_t number, bool *claimed) {
    const aq_model_shard *shard = &list->model->state->shards[number];
    for (size_t i = 0; i < shard->native.tensor_count; i++) {
        const aq_native_tensor *native = &shard->native.tensors[i];
        const aq_st_tensor *parts[3];
        aq_open_item *item = &list->items[list->count++];
        aq_tensor *tensor = &item->tensor;
        aq_status status = aq_native_parts(native, shard->file, shard->by_name, &tensor->layout,
                                           parts, list->err);
        if (status == AQ_OK) status = aq_open_name(list, shard, native->name, &tensor->name);
        if (status != AQ_OK) return status;
        item->shard = number;
        item->own_name = native->name;
        tensor->dtype = native->dtype;
        tensor->rank = native->rank;
        tensor->shape = native->shape;
        tensor->quantized = true;
        tensor->spec = native->spec;
        tensor->code_name = native->code;
        tensor->method = native->method;
        tensor->codes = aq_shard_data(shard, parts[0]);
        tensor->params = aq_shard_data(shard, parts[1]);
        tensor->extra = parts[2] ? aq_shard_data(shard, parts[2]) : NULL;
        tensor->cosine_similarity = native->cosine_similarity;
        tensor->sqnr_db = native->sqnr_db;
        tensor->file = shard->path;
        aq_open_dims(tensor);
        for (unsigned p = 0; p < 3; p++) {
            if (!parts[p]) continue;
            tensor->bytes += parts[p]->bytes;
            claimed[parts[p] - shard->file->tensors] = true;
        }
        status = aq_open_scales(list, shard, native, tensor, claimed);
        if (status == AQ_OK) status = aq_open_activations(list, shard, native, tensor, claimed);
        if (status != AQ_OK) return status;
    }
    return AQ_OK;
}

static aq_status aq_open_compressed(aq_open_list *list, size_t number, bool *claimed) {
    const aq_model_shard *shard = &list->model->state->shards[number];
    aq_status status = AQ_OK;
    for (size_t i = 0; status == AQ_OK && shard->compressed && i < shard->file->tensor_count; i++) {
        const aq_st_tensor *stored = &shard->file->tensors[i];
        status = aq_ct_is_part(list->model, shard, stored->name, &claimed[i], list->err);
        if (status != AQ_OK || !aq_ct_is_packed(stored->name)) continue;
        aq_open_item *item = &list->items[list->count++];
        item->shard = number;
        status = aq_ct_open_layer(list->model, shard, stored, &item->own_name, &item->tensor,
                                  list->err);
        if (status == AQ_OK)
            status = aq_open_name(list, shard, item->own_name, &item->tensor.name);
    }
    return status;
}

static aq_status aq_open_kept(aq_open_list *list, size_t number, const bool *claimed) {
    const aq_model_shard *shard = &list->model->state->shards[number];
    for (size_t i = 0; i < shard->file->tensor_count; i++) {
        const aq_st_tensor *stored = &shard->file->tensors[i];
        if (claimed[i]) continue;
        if (shard->native_present && aq_native_is_part(stored->name))
            return aq_fail_tensor(list->err, AQ_ERR_CORRUPT, stored->name, stored->offset,
                                  "%s: %s is a part of a quantized tensor that the metadata does not "
                                  "list; quantize the model again", shard->file->path,
                                  stored->name);
        aq_open_item *item = &list->items[list->count++];
        aq_tensor *tensor = &item->tensor;
        aq_status status = aq_open_name(list, shard, stored->name, &tensor->name);
        if (status != AQ_OK) return status;
        item->shard = number;
        item->own_name = stored->name;
        tensor->dtype = stored->dtype;
        tensor->rank = stored->rank;
        tensor->shape = stored->shape;
        tensor->data = aq_shard_data(shard, stored);
        tensor->bytes = stored->bytes;
        tensor->cosine_similarity = tensor->sqnr_db = (double)NAN;
        tensor->file = shard->path;
        aq_open_dims(tensor);
    }
    return AQ_OK;
}

static aq_status aq_open_gguf(aq_open_list *list, size_t number) {
    const aq_model_shard *shard = &list->model->state->shards[number];
    for (size_t i = 0; i < shard->gguf.tensor_count; i++) {
        const aq_gguf_tensor *from = &shard->gguf.tensors[i];
        aq_open_item *item = &list->items[list->count++];
        aq_status status = aq_open_name(list, shard, from->name, &item->tensor.name);
        if (status != AQ_OK) return status;
        item->shard = number;
        item->own_name = from->name;
        aq_open_gguf_tensor(shard, from, &item->tensor);
    }
    return AQ_OK;
}

static int aq_open_by_name(const void *a, const void *b) {
    return strcmp(((const aq_open_item *)a)->tensor.name, ((const aq_open_item *)b)->tensor.name);
}

static aq_status aq_open_arrange(aq_open_list *list, aq_arena *scratch) {
    struct aq_model_state *state = list->model->state;
    size_t count = list->count;
    const void **sorted = (const void **)aq_arena_alloc(scratch, (count + 1) * sizeof(*sorted));
    aq_tensor *tensors =
        (aq_tensor *)aq_arena_alloc(&state->arena, (count + 1) * sizeof(*tensors));
    state->tensor_shard = (size_t *)aq_arena_alloc(&state->arena, (count + 1) * sizeof(size_t));
    state->tensor_own_name =
        (const char **)aq_arena_alloc(&state->arena, (count + 1) * sizeof(char *));
    if (!sorted || !tensors || !state->tensor_shard || !state->tensor_own_name)
        return aq_fail_memory(list->err, (count + 1) * sizeof(*tensors));
    for (size_t i = 0; i < count; i++) sorted[i] = &list->items[i];
    aq_sort_pointers(sorted, count, aq_open_by_name);
    for (size_t i = 0; i < count; i++) {
        const aq_open_item *item = (const aq_open_item *)sorted[i];
        tensors[i] = item->tensor;
        state->tensor_shard[i] = item->shard;
        state->tensor_own_name[i] = item->own_name;
        if (i && strcmp(tensors[i - 1].name, tensors[i].name) == 0)
            return aq_fail_tensor(list->err, AQ_ERR_METADATA, tensors[i].name, 0,
                                  "%s: tensor %s is there twice, in %s and in %s; quantize the "
                                  "model again", list->model->path, tensors[i].name,
                                  tensors[i - 1].file, tensors[i].file);
    }
    list->model->tensors = tensors;
    list->model->tensor_count = count;
    return AQ_OK;
}

static aq_status aq_open_tensors(aq_model *model, aq_error *err) {
    struct aq_model_state *state = model->state;
    aq_open_list list;
    aq_arena scratch;
    aq_status status = AQ_OK;
    size_t most = 1, widest = 1;
    for (size_t s = 0; s < state->shard_count; s++) {
        const aq_model_shard *shard = &state->shards[s];
        most += shard->file->tensor_count + shard->native.tensor_count + shard->gguf.tensor_count;
        if (widest < shard->file->tensor_count) widest = shard->file->tensor_count;
    }
    aq_arena_init(&scratch, state->context);
    memset(&list, 0, sizeof(list));
    list.model = model;
    list.prefixed = state->folder.component_count > 1;
    list.err = err;
    list.items = (aq_open_item *)aq_arena_alloc(&scratch, most * sizeof(*list.items));
    bool *claimed = (bool *)aq_arena_alloc(&scratch, widest * sizeof(*claimed));
    if (!list.items || !claimed) status = aq_fail_memory(err, most * sizeof(*list.items));
    for (size_t s = 0; status == AQ_OK && s < state->shard_count; s++) {
        memset(claimed, 0, widest * sizeof(*claimed));
        status = aq_open_quantized(&list, s, claimed);
        if (status == AQ_OK) status = aq_open_compressed(&list, s, claimed);
        if (status == AQ_OK) status = aq_open_kept(&list, s, claimed);
        if (status == AQ_OK) status = aq_open_gguf(&list, s);
    }
    if (status == AQ_OK) status = aq_open_arrange(&list, &scratch);
    aq_arena_free(&scratch);
    return status;
}

/* ---- the public face */

AQ_LIB aq_status aq_model_open_with(aq_context *context, const char *path, const aq_config *config,
                                    aq_model **out, aq_error *err) {
    aq_model_storage *storage = (aq_model_storage *)aq_alloc(context, sizeof(*storage));
    *out = NULL;
    if (!storage) return aq_fail_memory(err, sizeof(*storage));
    memset(storage, 0, sizeof(*storage));
    aq_model *model = &storage->model;
    model->state = &storage->state;
    storage->state.context = context;
    aq_arena_init(&storage->state.arena, context);
    model->path = aq_arena_string(&storage->state.arena, path);
    aq_status status = model->path ? AQ_OK : aq_fail_memory(err, strlen(path));
    bool arrow = false;
    if (status == AQ_OK) status = aq_open_is_arrow(path, &arrow, err);
    if (status == AQ_OK && arrow) {
        status = aq_open_arrow(model, err);
    } else {
        if (status == AQ_OK) status = aq_open_folder(model, path, config, err);
        if (status == AQ_OK) status = aq_open_shards(model, err);
        if (status == AQ_OK) status = aq_open_tensors(model, err);
    }
    if (status != AQ_OK) {
        aq_model_close(model);
        return status;
    }
    model->modality = storage->state.folder.modality;
    *out = model;
    return AQ_OK;
}

ARROWQUANT_API aq_status aq_model_open(aq_context *context, const char *path, aq_model **out,
                                       aq_error *err) {
    if (!path || !out)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_model_open: path and out must not be NULL");
    return aq_model_open_with(context, path, NULL, out, err);
}

ARROWQUANT_API void aq_model_close(aq_model *model) {
    if (!model) return;
    struct aq_model_state *state = model->state;
    const aq_context *context = state->context;
    for (size_t i = 0; i < state->shard_count; i++) aq_unmap_file(&state->shards[i].map);
    for (aq_opened_groups *groups = state->groups; groups; groups = groups->next)
        aq_time_groups_free(&groups->groups);
    aq_arena_free(&state->arena);
    aq_free(context, model, sizeof(aq_model_storage)); /* the model is its first member */
}

ARROWQUANT_API const aq_tensor *aq_model_find(const aq_model *model, const char *name) {
    size_t low = 0, high = model && name ? model->tensor_count : 0;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(model->tensors[middle].name, name);
        if (order == 0) return &model->tensors[middle];
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

ARROWQUANT_API const aq_tensor *aq_model_next(const aq_model *model, const aq_tensor *previous) {
    if (!model || !model->tensor_count) return NULL;
    if (!previous) return model->tensors;
    size_t next = (size_t)(previous - model->tensors) + 1;
    return next < model->tensor_count ? &model->tensors[next] : NULL;
}

/* ---- values */

#define AQ_STORED_CHUNK 512u

AQ_LIB void aq_stored_f32(const aq_context *context, aq_dtype dtype, const void *data, float *out,
                          size_t count) {
    uint64_t chunk[AQ_STORED_CHUNK]; /* aligned for every dtype, which the map is not */
    const unsigned char *in = (const unsigned char *)data;
    size_t size = aq_dtype_size(dtype);
    while (count) {
        size_t part = count < AQ_STORED_CHUNK ? count : AQ_STORED_CHUNK;
        memcpy(chunk, in, part * size);
        aq_little_endian(chunk, part, size);
        aq_to_f32(context, dtype, chunk, out, part);
        in += part * size;
        out += part;
        count -= part;
    }
}

static aq_status aq_tensor_check_rows(const aq_tensor *tensor, uint64_t first_row,
                                      uint64_t row_count, aq_error *err) {
    if (first_row > tensor->rows || row_count > tensor->rows - first_row)
        return aq_fail_tensor(err, AQ_ERR_ARGUMENT, tensor->name, first_row,
                              "tensor %s: rows %llu to %llu asked for, it has %llu", tensor->name,
                              (unsigned long long)first_row,
                              (unsigned long long)(first_row + row_count),
                              (unsigned long long)tensor->rows);
    if (tensor->quantized && tensor->spec.code == AQ_CODE_COUNT)
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, tensor->name, 0,
                              "tensor %s is stored as %s, which this version does not decode",
                              tensor->name, tensor->code_name);
    if (tensor->quantized || aq_dtype_is_float(tensor->dtype)) return AQ_OK;
    return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, tensor->name, 0,
                          "tensor %s: dtype %s holds no weights; read its data as it is",
                          tensor->name, aq_dtype_name(tensor->dtype));
}

static const unsigned char *aq_tensor_row(const void *part, uint64_t row, uint64_t row_bytes) {
    if (!part) return NULL;
    return (const unsigned char *)part + (size_t)(row * row_bytes);
}

AQ_LIB aq_status aq_tensor_rows_f32(const aq_context *context, const aq_tensor *tensor,
                                    uint64_t first_row, uint64_t row_count, float *out,
                                    aq_error *err) {
    aq_status status = aq_tensor_check_rows(tensor, first_row, row_count, err);
    if (status != AQ_OK || !row_count || !tensor->cols) return status;
    if (tensor->quantized) {
        const aq_quant_layout *layout = &tensor->layout;
        if (tensor->spec.code == AQ_CODE_TRELLIS) {
            aq_trellis_rows(aq_kernels_of(context), &tensor->spec, tensor->codes, tensor->params,
                            tensor->rows, tensor->cols, first_row, row_count, out);
            return AQ_OK;
        }
        aq_dequantize_block(context, &tensor->spec,
                            aq_tensor_row(tensor->codes, first_row, layout->row_code_bytes),
                            aq_tensor_row(tensor->params, first_row, layout->row_param_bytes),
                            aq_tensor_row(tensor->extra, first_row, layout->row_extra_bytes),
                            row_count, tensor->cols, out);
        if (tensor->input_scales)
            aq_unfold_columns(out, row_count, tensor->cols, tensor->input_scales);
    } else {
        uint64_t row_bytes = tensor->cols * aq_dtype_size(tensor->dtype);
        aq_stored_f32(context, tensor->dtype, aq_tensor_row(tensor->data, first_row, row_bytes),
                      out, (size_t)(row_count * tensor->cols));
    }
    return AQ_OK;
}

typedef struct aq_strips_run {
    const aq_context *context;
    const aq_tensor *tensor;
    uint64_t first, count, step; /* rows */
    aq_dtype dtype;
    unsigned char *out;
    float *values; /* workers × step × cols, unless dtype is F32 */
} aq_strips_run;

static aq_status aq_strips_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    const aq_strips_run *run = (const aq_strips_run *)user;
    const aq_tensor *tensor = run->tensor;
    uint64_t done = (uint64_t)index * run->step, left = run->count - done;
    uint64_t rows = left < run->step ? left : run->step;
    size_t elements = (size_t)(rows * tensor->cols);
    unsigned char *to = run->out + (size_t)(done * tensor->cols) * aq_dtype_size(run->dtype);
    float *values = run->values ? run->values + worker * (size_t)(run->step * tensor->cols)
                                : (float *)(void *)to;
    (void)err;
    aq_trellis_rows(aq_kernels_of(run->context), &tensor->spec, tensor->codes, tensor->params,
                    tensor->rows, tensor->cols, run->first + done, rows, values);
    if (run->values) aq_from_f32(run->context, run->dtype, values, to, elements);
    return AQ_OK;
}

/* Rows of a trellis, which lie in strips and may be rotated. */
static aq_status aq_tensor_strips(aq_context *context, const aq_tensor *tensor, uint64_t first_row,
                                  uint64_t row_count, aq_dtype dtype, void *out, aq_error *err) {
    aq_context local;
    aq_strips_run run;
    uint64_t bytes = 0;
    context = aq_context_resolved(context, &local);
    run.context = context;
    run.tensor = tensor;
    run.first = first_row;
    run.count = row_count;
    run.step = row_count < 16 ? row_count : 16;
    run.dtype = dtype;
    run.out = (unsigned char *)out;
    run.values = NULL;
    uint64_t tasks = row_count / run.step + (row_count % run.step != 0);
    uint32_t threads = aq_thread_count(context);
    if (threads > tasks) threads = (uint32_t)tasks;
    if (dtype != AQ_DTYPE_F32 || (uintptr_t)out % sizeof(float)) {
        if (!aq_mul_u64(run.step * threads, tensor->cols * sizeof(float), &bytes) || bytes > SIZE_MAX)
            return aq_fail_memory(err, SIZE_MAX);
        run.values = (float *)aq_alloc(context, (size_t)bytes);
        if (!run.values) return aq_fail_memory(err, (size_t)bytes);
    }
    aq_status status =
        aq_parallel_for(context, threads, (size_t)tasks, aq_strips_task, &run, err);
    aq_free(context, run.values, (size_t)bytes);
    return status;
}

/* The weights as they were: block by block through F32, each multiplied by the input's scales. */
static aq_status aq_equalized_dequantize(aq_context *context, const aq_tensor *tensor,
                                         uint64_t first_row, uint64_t row_count, aq_dtype dtype,
                                         void *out, aq_error *err) {
    uint64_t block = aq_block_rows(tensor->cols), bytes = 0;
    unsigned char *to = (unsigned char *)out;
    aq_context local;
    if (block > row_count) block = row_count;
    if (!aq_mul_u64(block * tensor->cols, sizeof(float), &bytes) || bytes > SIZE_MAX)
        return aq_fail_memory(err, SIZE_MAX);
    float *values = (float *)aq_alloc(context, (size_t)bytes);
    if (!values) return aq_fail_memory(err, (size_t)bytes);
    aq_context *resolved = aq_context_resolved(context, &local);
    aq_status status = AQ_OK;
    for (uint64_t done = 0, rows; status == AQ_OK && done < row_count; done += rows) {
        rows = row_count - done < block ? row_count - done : block;
        size_t count = (size_t)(rows * tensor->cols);
        status = aq_tensor_rows_f32(resolved, tensor, first_row + done, rows, values, err);
        if (status == AQ_OK) aq_from_f32(resolved, dtype, values, to, count);
        to += count * aq_dtype_size(dtype);
    }
    aq_free(context, values, (size_t)bytes);
    return status;
}

ARROWQUANT_API aq_status aq_tensor_dequantize(aq_context *context, const aq_tensor *tensor,
                                              uint64_t first_row, uint64_t row_count,
                                              aq_dtype dtype, void *out, aq_error *err) {
    if (!tensor || (!out && row_count))
        return aq_fail(err, AQ_ERR_ARGUMENT,
                       "aq_tensor_dequantize: tensor and out must not be NULL");
    if (dtype != AQ_DTYPE_F32 && dtype != AQ_DTYPE_F16 && dtype != AQ_DTYPE_BF16)
        return aq_fail_tensor(err, AQ_ERR_ARGUMENT, tensor->name, 0,
                              "tensor %s: dequantizing gives F32, F16 or BF16, not %s",
                              tensor->name, aq_dtype_name(dtype));
    aq_status status = aq_tensor_check_rows(tensor, first_row, row_count, err);
    if (status != AQ_OK || !row_count || !tensor->cols) return status;
    if (tensor->quantized && tensor->spec.code == AQ_CODE_TRELLIS)
        return aq_tensor_strips(context, tensor, first_row, row_count, dtype, out, err);
    if (tensor->input_scales)
        return aq_equalized_dequantize(context, tensor, first_row, row_count, dtype, out, err);
    if (tensor->quantized) {
        const aq_quant_layout *layout = &tensor->layout;
        return aq_dequantize(context, &tensor->spec,
                             aq_tensor_row(tensor->codes, first_row, layout->row_code_bytes),
                             aq_tensor_row(tensor->params, first_row, layout->row_param_bytes),
                             aq_tensor_row(tensor->extra, first_row, layout->row_extra_bytes),
                             row_count, tensor->cols, dtype, out, err);
    }
    aq_context local;
    float values[AQ_STORED_CHUNK];
    size_t size = aq_dtype_size(tensor->dtype), out_size = aq_dtype_size(dtype);
    context = aq_context_resolved(context, &local);
    uint64_t left = row_count * tensor->cols;
    const unsigned char *in = aq_tensor_row(tensor->data, first_row, tensor->cols * size);
    unsigned char *to = (unsigned char *)out;
    while (left) {
        size_t part = left < AQ_STORED_CHUNK ? (size_t)left : AQ_STORED_CHUNK;
        aq_stored_f32(context, tensor->dtype, in, values, part);
        aq_from_f32(context, dtype, values, to, part);
        in += part * size;
        to += part * out_size;
        left -= part;
    }
    return AQ_OK;
}

#undef AQ_STORED_CHUNK
#endif /* ARROWQUANT_NO_STDIO */
