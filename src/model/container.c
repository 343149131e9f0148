/* The containers, and how one lays out an output: which file each tensor goes into, in which order,
 * where it lies and how large it becomes. */
#include "../quant/quant.h"
#include "config_json.h"
#include "method.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

AQ_LIB const aq_container *aq_container_of(aq_output_format format) {
    switch (format) {
    case AQ_OUTPUT_NATIVE: return aq_container_native();
    case AQ_OUTPUT_GGUF: return aq_container_gguf();
    case AQ_OUTPUT_COMPRESSED_TENSORS: return aq_container_compressed();
    case AQ_OUTPUT_ARROW: return aq_container_arrow();
    }
    return NULL;
}

/* ---- tensors */

/* Stored bytes of a tensor under this spec. */
static aq_status aq_stored_bytes(const aq_plan *plan, const aq_plan_tensor *tensor,
                                 const aq_quant_spec *spec, uint64_t *bytes, aq_error *err) {
    aq_part parts[AQ_PARTS_MAX];
    aq_quant_layout layout;
    size_t count = 0;
    aq_status status = aq_quantized_size(spec, tensor->rows, tensor->cols, &layout, err);
    if (status == AQ_OK)
        status = plan->state->container->parts(plan, tensor, spec, &layout, parts, &count, err);
    *bytes = 0;
    for (size_t i = 0; status == AQ_OK && i < count; i++) *bytes += parts[i].bytes;
    return status;
}

AQ_LIB aq_status aq_plan_keep(aq_plan *plan, aq_plan_tensor *tensor, aq_error *err) {
    const aq_container *container = plan->state->container;
    aq_status status = AQ_OK;
    tensor->bits = 16;
    tensor->output_dtype = tensor->dtype;
    if (container->keep) status = container->keep(plan, tensor, &tensor->output_dtype, err);
    if (status != AQ_OK) return status;
    if (!aq_mul_u64(tensor->bytes / aq_dtype_size(tensor->dtype),
                    aq_dtype_size(tensor->output_dtype), &tensor->output_bytes))
        return aq_fail_tensor(err, AQ_ERR_SHAPE, tensor->name, 0, "tensor %s: too large for %s",
                              tensor->name, aq_dtype_name(tensor->output_dtype));
    return AQ_OK;
}

AQ_LIB aq_status aq_refuse_trellis(const char *format, aq_error *err) {
    return aq_fail(err, AQ_ERR_UNSUPPORTED, "method: trellis: %s has no code for it; use format: "
                   "native, or another method", format);
}

AQ_LIB aq_status aq_plan_store(aq_plan *plan, aq_plan_tensor *tensor, aq_error *err) {
    const char *detail = tensor->detail;
    aq_quant_spec spec;
    aq_status status =
        plan->state->container->spec(plan, tensor, tensor->bits, &spec, &detail, err);
    if (status != AQ_OK) return status;
    tensor->detail = detail;
    if (spec.bits == 16) {
        tensor->reason = AQ_REASON_FORMAT;
        return aq_plan_keep(plan, tensor, err);
    }
    tensor->bits = spec.bits;
    tensor->spec = spec;
    aq_plan_method(plan, tensor);
    return aq_stored_bytes(plan, tensor, &spec, &tensor->output_bytes, err);
}

AQ_LIB aq_status aq_plan_store_trellis(aq_plan *plan, aq_plan_tensor *tensor, aq_error *err) {
    tensor->spec = aq_native_trellis(&plan->config, tensor->bits);
    tensor->method = AQ_METHOD_TRELLIS;
    return aq_stored_bytes(plan, tensor, &tensor->spec, &tensor->output_bytes, err);
}

AQ_LIB aq_status aq_stack_level(aq_plan *plan, const size_t *stack, size_t count, bool *level,
                                aq_error *err) {
    uint32_t most = 0;
    aq_dtype dtype = AQ_DTYPE_COUNT;
    aq_status status = AQ_OK;
    *level = true;
    for (size_t i = 0; i < count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[stack[i]];
        most = tensor->bits > most ? tensor->bits : most;
        if (tensor->bits == 16 &&
            (dtype == AQ_DTYPE_COUNT || aq_dtype_size(tensor->output_dtype) > aq_dtype_size(dtype)))
            dtype = tensor->output_dtype;
    }
    for (size_t i = 0; status == AQ_OK && i < count; i++) {
        aq_plan_tensor *tensor = &plan->tensors[stack[i]];
        if (tensor->bits == most && (most < 16 || tensor->output_dtype == dtype)) continue;
        *level = false;
        if (tensor->bits < most) tensor->reason = AQ_REASON_RAISED;
        if (!*tensor->detail) tensor->detail = "as the tensors that it is stored with";
        tensor->bits = most;
        if (most < 16) status = aq_plan_store(plan, tensor, err);
        else status = aq_plan_keep(plan, tensor, err);
        if (most == 16) tensor->output_dtype = dtype;
    }
    return status;
}

/* ---- outputs */

static aq_status aq_plan_same_outputs(aq_plan *plan, aq_error *err) {
    size_t bytes = (plan->shard_count + 1) * sizeof(aq_plan_output);
    plan->outputs = (aq_plan_output *)aq_arena_alloc(&plan->state->arena, bytes);
    if (!plan->outputs) return aq_fail_memory(err, bytes);
    plan->output_count = plan->shard_count;
    for (size_t i = 0; i < plan->shard_count; i++) {
        aq_plan_output *output = &plan->outputs[i];
        output->path = plan->shards[i].path;
        output->first_shard = i;
        output->shard_count = 1;
        output->first_tensor = plan->shards[i].first_tensor;
        output->tensor_count = plan->shards[i].tensor_count;
    }
    return AQ_OK;
}

AQ_LIB aq_status aq_output_order(aq_plan *plan, size_t output, size_t **order, aq_error *err) {
    size_t bytes = (plan->outputs[output].tensor_count + 1) * sizeof(size_t);
    *order = (size_t *)aq_arena_alloc(&plan->state->arena, bytes);
    if (!*order) return aq_fail_memory(err, bytes);
    return plan->state->container->order(plan, output, *order, err);
}

AQ_LIB uint64_t aq_container_align(const aq_container *container, uint64_t offset) {
    uint64_t mask = container->alignment - 1;
    return (offset + mask) & ~mask;
}

/* Where each tensor of an output will lie, and the size of the file. */
static aq_status aq_plan_lay_out_file(aq_plan *plan, size_t number, aq_error *err) {
    const aq_container *container = plan->state->container;
    uint64_t offset = 0, start = 0;
    size_t *order;
    aq_status status = aq_output_order(plan, number, &order, err);
    if (status == AQ_OK) status = container->data_start(plan, number, &start, err);
    if (status != AQ_OK) return status;
    for (size_t i = 0; i < plan->outputs[number].tensor_count; i++) {
        const aq_plan_tensor *next =
            i + 1 < plan->outputs[number].tensor_count ? &plan->tensors[order[i + 1]] : NULL;
        aq_plan_tensor *tensor = &plan->tensors[order[i]];
        tensor->output_offset = offset;
        offset += tensor->output_bytes;
        if (!next || next->output_leader != tensor->output_leader)
            offset = aq_container_align(container, offset);
    }
    plan->predicted_output_bytes += start + offset;
    return AQ_OK;
}

AQ_LIB aq_status aq_plan_lay_out(aq_plan *plan, aq_error *err) {
    const aq_container *container = plan->state->container;
    aq_status status =
        container->outputs ? container->outputs(plan, err) : aq_plan_same_outputs(plan, err);
    if (status == AQ_OK && container->prepare) status = container->prepare(plan, err);
    for (size_t i = 0; status == AQ_OK && i < plan->output_count; i++)
        status = aq_plan_lay_out_file(plan, i, err);
    return status;
}

/* ---- beside the weights */

AQ_LIB aq_status aq_beside_config(aq_run *run, const aq_component *component, const char *value,
                                  aq_error *err) {
    aq_arena *arena = &run->plan->state->arena;
    char *from, *to, *text, *edited;
    size_t size, edited_size;
    if (!component->config) return AQ_OK;
    aq_status status = aq_run_path(run, false, component->config, &from, err);
    if (status == AQ_OK) status = aq_run_path(run, true, component->config, &to, err);
    if (status == AQ_OK) status = aq_read_text(arena, from, (uint64_t)64 << 20, &text, &size, err);
    if (status != AQ_OK) return status;
    edited = text;
    edited_size = size;
    if (value)
        status = aq_config_json_set(arena, text, size, from, "quantization_config", value, &edited,
                                    &edited_size, err);
    return status == AQ_OK ? aq_write_text(to, edited, edited_size, err) : status;
}

/* The index names what was stored; which file holds it follows from the order of writing. */
AQ_LIB aq_status aq_beside_index(aq_run *run, const aq_component *component, aq_error *err) {
    const aq_plan *plan = run->plan;
    size_t bytes = (run->out.stored_count + 1) * sizeof(aq_st_index_output), count = 0, stored = 0;
    uint64_t total = 0;
    char *path;
    if (!component->index) return AQ_OK;
    aq_status status = aq_run_path(run, true, component->index, &path, err);
    if (status != AQ_OK) return status;
    aq_st_index_output *entries = (aq_st_index_output *)aq_alloc(run->context, bytes);
    if (!entries) return aq_fail_memory(err, bytes);
    for (size_t i = 0; i < plan->output_count; i++) {
        for (; stored < run->output_ends[i]; stored++) {
            const aq_st_output *output = &run->out.stored[stored].output;
            if (plan->state->shard_component[plan->outputs[i].first_shard] != component) continue;
            entries[count].tensor = output->name;
            entries[count++].shard = aq_path_base(plan->outputs[i].path);
            total += output->end - output->begin;
        }
    }
    status = aq_st_write_index(run->context, path, entries, count, total,
                               component->index_data.metadata, err);
    aq_free(run->context, entries, bytes);
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
