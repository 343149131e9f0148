/* The plan: every tensor of the components, its bits, and why; nothing is written yet. */
#include "plan.h"

#include "../config/fields.h"
#include "../quant/quant.h"
#include "method.h"
#include "policy.h"

#ifndef ARROWQUANT_NO_STDIO

/* Plan and state in one piece, so that a plan is freed by its pointer. */
typedef struct aq_plan_storage {
    aq_plan plan;
    struct aq_plan_state state;
} aq_plan_storage;

AQ_LIB aq_status aq_note(aq_arena *arena, aq_notes *notes, aq_error *err, const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    aq_format_list(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (notes->count == notes->capacity) {
        size_t capacity = notes->capacity ? notes->capacity * 2 : 8;
        const char **items = (const char **)aq_arena_alloc(arena, capacity * sizeof(char *));
        if (!items) return aq_fail_memory(err, capacity * sizeof(char *));
        if (notes->count) memcpy(items, notes->items, notes->count * sizeof(char *));
        notes->items = items;
        notes->capacity = capacity;
    }
    char *copy = aq_arena_string(arena, text);
    if (!copy) return aq_fail_memory(err, strlen(text) + 1);
    notes->items[notes->count++] = copy;
    return AQ_OK;
}

AQ_LIB const char *aq_plan_display_name(const aq_plan *plan, const aq_plan_tensor *tensor,
                                        aq_arena *arena) {
    const struct aq_plan_state *state = plan->state;
    if (state->folder.component_count < 2) return tensor->name;
    const char *component = state->shard_component[tensor->shard]->name;
    return aq_path_join(arena, component, tensor->name);
}

AQ_LIB aq_quant_spec aq_plan_spec(const aq_config *config, uint32_t bits) {
    aq_quant_spec spec;
    spec.code = config->symmetric ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE;
    spec.params = config->parameter_bits == 8 ? AQ_PARAM_Q8 : AQ_PARAM_F16;
    spec.bits = bits;
    spec.group_size = config->group_size;
    spec.fit = config->fit;
    spec.states = spec.rotation = 0;
    return spec;
}

/* ---- shards and tensors */

/* rows = d0, cols = d1·d2·…; the reader has checked that the product fits. */
static void aq_fill_tensor(aq_plan *plan, const aq_st_tensor *in, uint32_t shard) {
    aq_plan_tensor *out = &plan->tensors[plan->tensor_count];
    out->name = in->name;
    out->shard = shard;
    out->dtype = in->dtype;
    out->rank = in->rank;
    out->shape = in->shape;
    out->rows = in->rank > 1 ? in->shape[0] : 1;
    out->cols = 1;
    for (uint32_t i = in->rank > 1 ? 1 : 0; i < in->rank; i++) out->cols *= in->shape[i];
    out->offset = in->offset;
    out->bytes = in->bytes;
    out->scale = AQ_NO_TENSOR;
    out->detail = out->method_detail = "";
    out->output_name = in->name;
    out->output_dtype = in->dtype;
    out->output_leader = plan->tensor_count++;
}

static aq_status aq_plan_shards(aq_plan *plan, aq_error *err) {
    struct aq_plan_state *state = plan->state;
    aq_arena *arena = &state->arena;
    size_t shards = 0, tensors = 0;
    for (size_t c = 0; c < state->folder.component_count; c++) {
        shards += state->folder.components[c].shard_count;
        for (size_t s = 0; s < state->folder.components[c].shard_count; s++)
            tensors += state->folder.components[c].files[s].tensor_count;
    }
    plan->shards = (aq_plan_shard *)aq_arena_alloc(arena, shards * sizeof(aq_plan_shard));
    plan->tensors = (aq_plan_tensor *)aq_arena_alloc(arena, tensors * sizeof(aq_plan_tensor));
    state->shard_component = (aq_component **)aq_arena_alloc(arena, shards * sizeof(aq_component *));
    state->shard_file = (const aq_st_file **)aq_arena_alloc(arena, shards * sizeof(aq_st_file *));
    state->by_name = (const aq_st_tensor *const **)aq_arena_alloc(arena, shards * sizeof(void *));
    if (!plan->shards || !plan->tensors || !state->shard_component || !state->shard_file ||
        !state->by_name)
        return aq_fail_memory(err, tensors * sizeof(aq_plan_tensor));
    for (size_t c = 0; c < state->folder.component_count; c++) {
        aq_component *component = &state->folder.components[c];
        for (size_t s = 0; s < component->shard_count; s++) {
            const aq_st_file *file = &component->files[s];
            size_t number = plan->shard_count++;
            aq_plan_shard *shard = &plan->shards[number];
            state->shard_component[number] = component;
            state->shard_file[number] = file;
            state->by_name[number] = aq_st_sort_by_name(arena, file);
            if (!state->by_name[number]) return aq_fail_memory(err, 0);
            shard->path = component->shards[s];
            shard->metadata = file->metadata;
            shard->file_bytes = file->file_size;
            shard->first_tensor = plan->tensor_count;
            shard->tensor_count = file->tensor_count;
            plan->input_bytes += file->file_size;
            for (size_t t = 0; t < file->tensor_count; t++)
                aq_fill_tensor(plan, &file->tensors[t], (uint32_t)number);
        }
    }
    return AQ_OK;
}

static aq_status aq_plan_decide(aq_plan *plan, aq_plan_tensor *tensor, aq_error *err) {
    aq_decision decision = aq_decide(&plan->config, tensor->name, tensor->dtype, tensor->rank,
                                     tensor->rows, tensor->cols);
    tensor->bits = decision.bits;
    tensor->reason = decision.reason;
    tensor->detail = decision.detail;
    aq_plan_tensor kept = *tensor;
    aq_status status = aq_plan_keep(plan, &kept, err);
    if (status != AQ_OK || tensor->bits == 16) {
        *tensor = kept;
        return status;
    }
    status = aq_plan_store(plan, tensor, err);
    if (status == AQ_OK && tensor->bits < 16 && tensor->output_bytes >= kept.output_bytes) {
        *tensor = kept;
        tensor->reason = AQ_REASON_NO_GAIN;
        tensor->detail = "";
    }
    return status;
}

static aq_status aq_plan_tensors(aq_plan *plan, aq_error *err) {
    aq_status status = AQ_OK;
    for (size_t i = 0; status == AQ_OK && i < plan->tensor_count; i++)
        status = aq_plan_decide(plan, &plan->tensors[i], err);
    if (status == AQ_OK) status = aq_plan_find_scales(plan, err);
    if (status == AQ_OK) status = aq_plan_equalize(plan, err);
    if (status == AQ_OK) status = aq_plan_time_groups(plan, err);
    if (status == AQ_OK && aq_plan_has_budget(&plan->config)) {
        status = aq_plan_lay_out(plan, err);
        if (status == AQ_OK) status = aq_plan_allocate(plan, err);
        plan->predicted_output_bytes = 0;
    }
    if (status == AQ_OK) status = aq_plan_check_methods(plan, err);
    return status == AQ_OK ? aq_plan_lay_out(plan, err) : status;
}

/* ---- notes */

static bool aq_entry_is_used(const aq_plan *plan, const char *entry, bool glob, bool module) {
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const char *name = plan->tensors[i].name;
        if ((glob && aq_glob_match(entry, name)) || (module && aq_names_layer(entry, name)))
            return true;
    }
    return false;
}

/* A name or pattern that matches nothing is a slip that must not pass in silence. */
static aq_status aq_note_unused(aq_plan *plan, const char *field, const char *entry, bool glob,
                                bool module, aq_error *err) {
    if (aq_entry_is_used(plan, entry, glob, module)) return AQ_OK;
    return aq_note(&plan->state->arena, &plan->state->notes, err,
                   "%s: \"%s\" matches no tensor", field, entry);
}

static aq_status aq_plan_notes(aq_plan *plan, aq_error *err) {
    struct aq_plan_state *state = plan->state;
    const aq_config *config = &plan->config;
    aq_status status = AQ_OK;
    for (size_t i = 0; status == AQ_OK && i < config->sensitive_layer_count; i++)
        status = aq_note_unused(plan, "sensitive_layers", config->sensitive_layers[i], false, true,
                                err);
    for (size_t i = 0; status == AQ_OK && i < config->sensitive_pattern_count; i++)
        status = aq_note_unused(plan, "sensitive_patterns", config->sensitive_patterns[i], true,
                                false, err);
    for (size_t i = 0; status == AQ_OK && i < config->layer_bits_count; i++)
        status = aq_note_unused(plan, "layer_bits", config->layer_bits[i].pattern, true, true, err);
    for (size_t i = 0; status == AQ_OK && i < state->folder.skipped_count; i++)
        status = aq_note(&state->arena, &state->notes, err, "left behind: %s (%s)",
                         state->folder.skipped[i].path, state->folder.skipped[i].why);
    if (status == AQ_OK) status = aq_note_data_free(plan, err);
    if (status == AQ_OK) status = aq_note_equalization(plan, err);
    if (status == AQ_OK) status = aq_note_time_groups(plan, err);
    size_t quantized = 0;
    for (size_t i = 0; i < plan->tensor_count; i++) quantized += plan->tensors[i].bits < 16;
    if (status == AQ_OK && !quantized)
        status = aq_note(&state->arena, &state->notes, err,
                         "no tensor is quantized: all are kept, see their reasons");
    plan->notes = state->notes.items;
    plan->note_count = state->notes.count;
    return status;
}

static aq_status aq_plan_other_bytes(aq_plan *plan, aq_error *err) {
    struct aq_plan_state *state = plan->state;
    for (size_t i = 0; i < state->folder.other_count; i++) {
        char *path = aq_path_join(&state->arena, state->folder.root, state->folder.others[i]);
        uint64_t size;
        aq_file file;
        if (!path) return aq_fail_memory(err, 0);
        aq_status status = aq_file_open(&file, path, &size, err);
        if (status == AQ_OK) status = aq_file_close(&file, err);
        if (status != AQ_OK) return status;
        state->other_bytes += size;
    }
    return AQ_OK;
}

static aq_status aq_plan_fill(aq_plan *plan, const char *model_path, const aq_config *config,
                              aq_error *err) {
    struct aq_plan_state *state = plan->state;
    aq_config local = aq_config_from_profile(AQ_PROFILE_LOCAL);
    if (!config) config = &local;
    aq_status status = aq_config_validate(config, err);
    if (status == AQ_OK) status = aq_config_copy(&state->arena, config, &plan->config, err);
    if (status == AQ_OK) status = aq_plan_check_config(plan, err);
    if (status != AQ_OK) return status;
    state->container = aq_container_of(plan->config.output_format);
    if (!state->container)
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "format: this version does not write %s; use native",
                       aq_output_format_name(plan->config.output_format));
    if (state->container->check) status = state->container->check(plan, err);
    if (status != AQ_OK) return status;
    plan->model_path = aq_arena_string(&state->arena, model_path);
    if (!plan->model_path) return aq_fail_memory(err, 0);
    status = aq_folder_open(&state->arena, model_path, &plan->config, &state->folder, err);
    if (status != AQ_OK) return status;
    plan->modality = state->folder.modality;
    status = aq_plan_check_input(plan, err);
    if (status == AQ_OK) status = aq_plan_shards(plan, err);
    if (status == AQ_OK) status = aq_plan_calibrate(plan, err);
    if (status == AQ_OK) status = aq_plan_tensors(plan, err);
    if (status == AQ_OK) status = aq_plan_other_bytes(plan, err);
    return status == AQ_OK ? aq_plan_notes(plan, err) : status;
}

ARROWQUANT_API aq_status aq_plan_create(aq_context *context, const char *model_path,
                                        const aq_config *config, aq_plan **out, aq_error *err) {
    if (!model_path || !out)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_plan_create: model_path and out must not be NULL");
    aq_plan_storage *storage = (aq_plan_storage *)aq_alloc(context, sizeof(aq_plan_storage));
    *out = NULL;
    if (!storage) return aq_fail_memory(err, sizeof(aq_plan_storage));
    memset(storage, 0, sizeof(*storage));
    storage->plan.state = &storage->state;
    storage->state.context = context;
    storage->state.staging.lock.handle = -1;
    aq_arena_init(&storage->state.arena, context);
    aq_status status = aq_plan_fill(&storage->plan, model_path, config, err);
    if (status != AQ_OK) {
        aq_plan_destroy(&storage->plan);
        return status;
    }
    *out = &storage->plan;
    return AQ_OK;
}

ARROWQUANT_API void aq_plan_destroy(aq_plan *plan) {
    if (!plan) return;
    struct aq_plan_state *state = plan->state;
    const aq_context *context = state->context;
    aq_staging_end(&state->staging);
    aq_plan_free_time_groups(plan);
    aq_calibration_close(state->calibration);
    aq_arena_free(&state->arena);
    aq_free(context, plan, sizeof(aq_plan_storage)); /* the plan is the storage's first member */
}

/* ---- as JSON */

static void aq_append_shape(aq_builder *json, const uint64_t *shape, uint32_t rank) {
    aq_append_string(json, "[");
    for (uint32_t i = 0; i < rank; i++)
        aq_append_format(json, "%s%llu", i ? "," : "", (unsigned long long)shape[i]);
    aq_append_string(json, "]");
}

static void aq_append_plan_tensor(aq_builder *json, const aq_plan *plan,
                                  const aq_plan_tensor *tensor) {
    aq_append_string(json, "{\"name\":");
    aq_append_json_string(json, tensor->name, strlen(tensor->name));
    aq_append_string(json, ",\"shard\":");
    const char *path = plan->shards[tensor->shard].path;
    aq_append_json_string(json, path, strlen(path));
    aq_append_format(json, ",\"dtype\":\"%s\",\"shape\":", aq_dtype_name(tensor->dtype));
    aq_append_shape(json, tensor->shape, tensor->rank);
    aq_append_format(json, ",\"bits\":%u", tensor->bits);
    if (tensor->bits < 16)
        aq_append_format(json, ",\"code\":\"%s\",\"group_size\":%u,\"params\":\"%s\","
                         "\"method\":\"%s\",\"method_reason\":\"%s\",\"fit\":\"%s\"",
                         aq_code_name(tensor->spec.code), tensor->spec.group_size,
                         aq_param_type_name(tensor->spec.params), aq_method_name(tensor->method),
                         tensor->method_detail, aq_fit_name(tensor->spec.fit));
    if (tensor->bits < 16) aq_append_equalization(json, tensor);
    aq_append_string(json, ",\"reason\":");
    const char *reason = aq_reason_text(tensor->reason);
    aq_append_json_string(json, reason, strlen(reason));
    aq_append_string(json, ",\"detail\":");
    aq_append_json_string(json, tensor->detail, strlen(tensor->detail));
    if (tensor->output_name != tensor->name) {
        aq_append_string(json, ",\"output_name\":");
        aq_append_json_string(json, tensor->output_name, strlen(tensor->output_name));
    }
    if (tensor->bits == 16 && tensor->output_dtype != tensor->dtype)
        aq_append_format(json, ",\"output_dtype\":\"%s\"", aq_dtype_name(tensor->output_dtype));
    aq_append_format(json, ",\"offset\":%llu,\"bytes\":%llu,\"output_offset\":%llu,"
                     "\"output_bytes\":%llu}", (unsigned long long)tensor->offset,
                     (unsigned long long)tensor->bytes, (unsigned long long)tensor->output_offset,
                     (unsigned long long)tensor->output_bytes);
}

ARROWQUANT_API aq_status aq_plan_to_json(aq_context *context, const aq_plan *plan, char **text,
                                         size_t *size, aq_error *err) {
    aq_builder json;
    aq_builder_init(&json, context);
    aq_append_string(&json, "{\"arrowquant_plan\":1,\"model_path\":");
    aq_append_json_string(&json, plan->model_path, strlen(plan->model_path));
    aq_append_format(&json, ",\"modality\":\"%s\",\"format\":\"%s\",\"bit_width\":%u,"
                     "\"group_size\":%u,\"input_bytes\":%llu,\"predicted_output_bytes\":%llu,\"tensors\":[",
                     aq_modality_name(plan->modality),
                     aq_output_format_name(plan->config.output_format), plan->config.bit_width,
                     plan->config.group_size, (unsigned long long)plan->input_bytes,
                     (unsigned long long)plan->predicted_output_bytes);
    for (size_t i = 0; i < plan->tensor_count; i++) {
        aq_append_string(&json, i ? ",\n" : "\n");
        aq_append_plan_tensor(&json, plan, &plan->tensors[i]);
    }
    aq_append_string(&json, "],\"notes\":[");
    for (size_t i = 0; i < plan->note_count; i++) {
        aq_append_string(&json, i ? "," : "");
        aq_append_json_string(&json, plan->notes[i], strlen(plan->notes[i]));
    }
    aq_append_string(&json, "]}\n");
    return aq_builder_finish(&json, text, size, err);
}

#endif /* ARROWQUANT_NO_STDIO */
