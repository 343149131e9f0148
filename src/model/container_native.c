/* The native format: a safetensors file for each shard, a layer's codes and parameters as tensors of
 * their own, and our words in __metadata__. The header's space is reserved first, for the worst case,
 * and filled last. docs/FORMAT.md is the specification. */
#include "../quant/quant.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_WRITE_RANKS 5u
#define AQ_TRELLIS_LEAST_ROWS 12u /* below, rings are so short that steps err less: 9.4 dB at 2 bits */
#define AQ_ROTATION_SEED 1u /* one is as good as another */

AQ_LIB aq_quant_spec aq_native_trellis(const aq_config *config, uint32_t bits) {
    aq_quant_spec spec = aq_plan_spec(config, bits);
    spec.code = AQ_CODE_TRELLIS;
    spec.states = config->trellis_states;
    spec.rotation = AQ_ROTATION_SEED;
    spec.params = AQ_PARAM_F16;
    return spec;
}

AQ_LIB bool aq_native_trellis_rows(uint64_t rows) {
    return rows >= AQ_TRELLIS_LEAST_ROWS;
}

/* Without statistics 2 bits are best coded so, at many times the cost: what the edge profile is for. */
static bool aq_takes_trellis(const aq_config *config, const aq_plan_tensor *tensor, uint32_t bits) {
    return config->method == AQ_METHOD_AUTO && config->deployment_profile == AQ_PROFILE_EDGE &&
           bits == 2 && !tensor->statistics;
}

static aq_status aq_native_spec(aq_plan *plan, const aq_plan_tensor *tensor, uint32_t bits,
                                aq_quant_spec *spec, const char **detail, aq_error *err) {
    bool trellis = bits < 8 && (plan->config.method == AQ_METHOD_TRELLIS ||
                                aq_takes_trellis(&plan->config, tensor, bits));
    (void)err;
    *spec = aq_plan_spec(&plan->config, bits);
    if (trellis && !aq_native_trellis_rows(tensor->rows)) {
        spec->bits = bits == 3 ? 4 : bits; /* which no other code has */
        *detail = "too few rows for a trellis";
    } else if (trellis) {
        *spec = aq_native_trellis(&plan->config, bits);
    }
    if (plan->config.method == AQ_METHOD_R2Q && bits == 2) {
        spec->code = AQ_CODE_RESIDUAL;
        if (spec->params == AQ_PARAM_Q8) spec->params = AQ_PARAM_F16;
    }
    return AQ_OK;
}

/* Scales of the layer's input, when it is equalized. */
static aq_part *aq_native_scale_part(const aq_plan_tensor *tensor, aq_part *part) {
    if (!tensor->input_scales) return part;
    memset(part, 0, sizeof(*part));
    part->source = AQ_PART_CLOSED;
    part->suffix = AQ_INPUT_SCALES_SUFFIX;
    part->dtype = AQ_DTYPE_F32;
    part->rank = 1;
    part->shape[0] = tensor->cols;
    part->bytes = 4 * tensor->cols;
    return part + 1;
}

/* Activation integers of the layer's input, when there are some. */
static aq_part *aq_native_time_parts(const aq_time_groups *groups, aq_part *part) {
    static const char *const suffixes[] = { AQ_ACT_STARTS_SUFFIX, AQ_ACT_SCALES_SUFFIX,
                                            AQ_ACT_ZEROS_SUFFIX };
    if (!groups) return part;
    for (unsigned i = 0; i < 3; i++, part++) {
        memset(part, 0, sizeof(*part));
        part->source = AQ_PART_CLOSED;
        part->suffix = suffixes[i];
        part->dtype = i == 1 ? AQ_DTYPE_F32 : AQ_DTYPE_I32;
        part->rank = i ? 2 : 1;
        part->shape[0] = i ? 2 : groups->count + 1;
        part->shape[1] = groups->count;
        part->bytes = 4 * (uint64_t)(i ? 2 * groups->count : groups->count + 1);
    }
    return part;
}

/* Starts of the groups and T, or the scales of the input; scales and zero points of 8 bits, then of 4. */
static aq_status aq_native_close(aq_run *run, const aq_plan_tensor *tensor, const aq_part *part,
                                 size_t index, const unsigned char *rows, unsigned char *out,
                                 aq_error *err) {
    const aq_time_groups *groups = tensor->time_groups;
    size_t n = groups ? groups->count : 0;
    (void)run;
    (void)index;
    (void)rows;
    (void)err;
    if (part->rank == 1 && part->dtype == AQ_DTYPE_F32) {
        memcpy(out, tensor->input_scales, (size_t)part->bytes);
    } else if (part->rank == 1) {
        int32_t total = (int32_t)groups->total_timesteps;
        memcpy(out, groups->starts, n * 4);
        memcpy(out + 4 * n, &total, 4);
    } else {
        for (unsigned w = 0; w < 2; w++) {
            const void *from = part->dtype == AQ_DTYPE_F32 ? (const void *)groups->scale[w]
                                                           : (const void *)groups->zero_point[w];
            memcpy(out + 4 * n * w, from, 4 * n);
        }
    }
    aq_little_endian(out, (size_t)part->bytes / 4, 4);
    return AQ_OK;
}

/* Codes, row parameters, parameters, scales of the input, activations. */
static aq_status aq_native_layer_parts(const aq_plan *plan, const aq_plan_tensor *tensor,
                                       const aq_quant_spec *spec, const aq_quant_layout *layout,
                                       aq_part *parts, size_t *count, aq_error *err) {
    bool scale_only = spec->code == AQ_CODE_SYMMETRIC || spec->code == AQ_CODE_TRELLIS;
    uint64_t per_group = scale_only ? 1 : 2;
    aq_part *part = parts;
    (void)plan;
    (void)err;
    memset(parts, 0, 3 * sizeof(*parts));
    part->source = AQ_PART_CODES;
    part->suffix = AQ_CODES_SUFFIX;
    part->dtype = AQ_DTYPE_I32;
    part->rank = 2;
    part->shape[0] = tensor->rows;
    part->shape[1] = layout->row_code_bytes / 4;
    (part++)->bytes = layout->code_bytes;
    if (spec->params == AQ_PARAM_Q8) {
        part->source = AQ_PART_EXTRA;
        part->suffix = AQ_EXTRA_SUFFIX;
        part->dtype = AQ_DTYPE_F16;
        part->rank = 2;
        part->shape[0] = tensor->rows;
        part->shape[1] = per_group;
        (part++)->bytes = layout->extra_bytes;
    }
    part->source = AQ_PART_PARAMS;
    part->suffix = AQ_PARAMS_SUFFIX;
    part->dtype = spec->params == AQ_PARAM_F32 ? AQ_DTYPE_F32 : AQ_DTYPE_F16;
    if (spec->params == AQ_PARAM_Q8) part->dtype = per_group == 1 ? AQ_DTYPE_I8 : AQ_DTYPE_U8;
    part->rank = 3;
    part->shape[0] = tensor->rows;
    part->shape[1] = layout->groups;
    part->shape[2] = per_group;
    (part++)->bytes = layout->param_bytes;
    part = aq_native_scale_part(tensor, part);
    if (spec->code != AQ_CODE_TRELLIS) /* which takes no static integers */
        part = aq_native_time_parts(tensor->time_groups, part);
    *count = (size_t)(part - parts);
    return AQ_OK;
}

AQ_LIB aq_status aq_native_order(aq_plan *plan, size_t output, size_t *order, aq_error *err) {
    const aq_plan_output *file = &plan->outputs[output];
    size_t count = 0;
    (void)err;
    for (uint32_t rank = 0; rank < AQ_WRITE_RANKS; rank++) {
        for (size_t i = 0; i < file->tensor_count; i++) {
            const aq_plan_tensor *tensor = &plan->tensors[file->first_tensor + i];
            if (aq_st_write_rank(tensor->output_dtype, tensor->bits < 16) == rank)
                order[count++] = file->first_tensor + i;
        }
    }
    return AQ_OK;
}

static void aq_native_describe(const aq_plan_tensor *tensor, aq_native_tensor *out) {
    memset(out, 0, sizeof(*out));
    out->name = tensor->name;
    out->code = aq_code_name(tensor->spec.code);
    out->known = true;
    out->spec = tensor->spec;
    out->dtype = tensor->dtype;
    out->rank = tensor->rank;
    out->shape = tensor->shape;
    out->method = aq_method_name(tensor->method);
    out->input = tensor->input_scales ? AQ_NATIVE_SCALED : NULL;
    out->cosine_similarity = aq_quality_cosine(&tensor->quality);
    out->sqnr_db = aq_quality_sqnr_db(&tensor->quality);
}

/* Every stored tensor that may come of this one: its parts, or itself, and an FP8 scale. */
typedef struct aq_bound {
    aq_arena *arena;
    aq_st_output *outputs;
    aq_native_checksum *checksums;
    size_t count;
} aq_bound;

static aq_status aq_bound_add(aq_bound *bound, const aq_plan_tensor *tensor, const char *suffix,
                              aq_error *err) {
    aq_st_output *output = &bound->outputs[bound->count];
    size_t size = strlen(tensor->name) + strlen(suffix) + 1;
    char *name = (char *)aq_arena_alloc(bound->arena, size);
    if (!name) return aq_fail_memory(err, size);
    aq_format(name, size, "%s%s", tensor->name, suffix);
    output->name = name;
    output->dtype = tensor->dtype;
    output->rank = *suffix ? 3 : tensor->rank; /* only ranks count, not extents */
    output->shape = tensor->shape;
    bound->checksums[bound->count++].name = name;
    return AQ_OK;
}

static aq_status aq_native_data_start(aq_plan *plan, size_t shard, uint64_t *start,
                                      aq_error *err) {
    static const char *const suffixes[] = { AQ_CODES_SUFFIX, AQ_PARAMS_SUFFIX, AQ_EXTRA_SUFFIX,
                                            AQ_INPUT_SCALES_SUFFIX, AQ_ACT_STARTS_SUFFIX,
                                            AQ_ACT_SCALES_SUFFIX, AQ_ACT_ZEROS_SUFFIX, "" };
    const aq_plan_shard *input = &plan->shards[shard];
    const aq_context *context = plan->state->context;
    aq_arena arena;
    aq_bound bound;
    aq_native native;
    aq_status status = AQ_OK;
    size_t most = input->tensor_count * 9 + 1;
    aq_arena_init(&arena, context);
    memset(&native, 0, sizeof(native));
    bound.arena = &arena;
    bound.count = 0;
    bound.outputs = (aq_st_output *)aq_arena_alloc(&arena, most * sizeof(aq_st_output));
    bound.checksums = (aq_native_checksum *)aq_arena_alloc(&arena, most * sizeof(aq_native_checksum));
    native.tensors = (aq_native_tensor *)aq_arena_alloc(&arena, most * sizeof(aq_native_tensor));
    if (!bound.outputs || !bound.checksums || !native.tensors)
        status = aq_fail_memory(err, most * sizeof(aq_st_output));
    for (size_t i = 0; status == AQ_OK && i < input->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[input->first_tensor + i];
        bool quantized = tensor->bits < 16;
        for (size_t s = quantized ? 0 : 7; status == AQ_OK && s < 8; s++) {
            if (s == 2 && tensor->spec.params != AQ_PARAM_Q8) continue;
            if (s == 3 && !tensor->input_scales) continue;
            if (s >= 4 && s < 7 && !tensor->time_groups) continue;
            status = aq_bound_add(&bound, tensor, suffixes[s], err);
        }
        if (status == AQ_OK && quantized && tensor->scale != AQ_NO_TENSOR)
            status = aq_bound_add(&bound, &plan->tensors[tensor->scale], "", err);
        if (quantized) aq_native_describe(tensor, &native.tensors[native.tensor_count++]);
    }
    if (status == AQ_OK) {
        native.checksums = bound.checksums;
        native.checksum_count = bound.count;
        *start = 8 + aq_st_header_bound(bound.outputs, bound.count,
                                        aq_native_bound(&native, input->metadata));
    }
    aq_arena_free(&arena);
    return status;
}

/* Our metadata about what has been written to this shard. */
static aq_status aq_native_file_metadata(aq_run *run, size_t shard, char **text, size_t *size,
                                   aq_error *err) {
    const aq_plan *plan = run->plan;
    const aq_plan_shard *input = &plan->shards[shard];
    const aq_shard_writer *out = &run->out;
    size_t count = out->stored_count - out->stored_first;
    aq_arena arena;
    aq_native native;
    aq_arena_init(&arena, run->context);
    memset(&native, 0, sizeof(native));
    native.tensors = (aq_native_tensor *)aq_arena_alloc(
        &arena, (input->tensor_count + 1) * sizeof(aq_native_tensor));
    native.checksums =
        (aq_native_checksum *)aq_arena_alloc(&arena, (count + 1) * sizeof(aq_native_checksum));
    aq_status status = AQ_OK;
    if (!native.tensors || !native.checksums) {
        status = aq_fail_memory(err, (count + 1) * sizeof(aq_native_checksum));
    } else {
        for (size_t i = 0; i < input->tensor_count; i++) {
            const aq_plan_tensor *tensor = &plan->tensors[input->first_tensor + i];
            if (tensor->bits < 16) aq_native_describe(tensor, &native.tensors[native.tensor_count++]);
        }
        for (size_t i = 0; i < count; i++) {
            native.checksums[i].name = out->stored[out->stored_first + i].output.name;
            native.checksums[i].crc32 = out->stored[out->stored_first + i].crc32;
        }
        native.checksum_count = count;
        status = aq_native_write(run->context, &native, input->metadata, text, size, err);
    }
    aq_arena_free(&arena);
    return status;
}

AQ_LIB aq_status aq_finish_safetensors(aq_run *run, const char *metadata, aq_error *err) {
    const aq_shard_writer *out = &run->out;
    size_t count = out->stored_count - out->stored_first;
    aq_status status;
    size_t bytes = (count + 1) * sizeof(aq_st_output);
    aq_st_output *outputs = (aq_st_output *)aq_alloc(run->context, bytes);
    if (!outputs) {
        status = aq_fail_memory(err, bytes);
    } else {
        for (size_t i = 0; i < count; i++) outputs[i] = out->stored[out->stored_first + i].output;
        status = aq_st_write_header(run->context, &out->file, out->data_start - 8, outputs, count,
                                    metadata, err);
        aq_free(run->context, outputs, bytes);
    }
    return status;
}

static aq_status aq_native_finish(aq_run *run, size_t output, uint64_t *end, aq_error *err) {
    char *metadata = NULL;
    size_t size = 0;
    (void)end;
    aq_status status = aq_native_file_metadata(run, output, &metadata, &size, err);
    if (status != AQ_OK) return status;
    status = aq_finish_safetensors(run, metadata, err);
    aq_free(run->context, metadata, size + 1);
    return status;
}


/* ---- beside the weights */

/* How the component's tensors are coded, now that all are: the config is no witness, since it lets a
 * method decide, and formats and shapes have a say. */
static const char *aq_native_codes(const aq_plan *plan, const aq_component *component) {
    const aq_config *config = &plan->config;
    const char *found = NULL;
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[i];
        if (tensor->bits == 16 || plan->state->shard_component[tensor->shard] != component) continue;
        const char *name = aq_code_name(tensor->spec.code);
        if (found && strcmp(found, name) != 0) return "mixed";
        found = name;
    }
    return found ? found : aq_code_name(config->symmetric ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE);
}

static aq_status aq_native_beside(aq_run *run, const aq_component *component,
                                              aq_error *err) {
    const aq_config *config = &run->plan->config;
    aq_builder value;
    char *json;
    size_t size;
    aq_builder_init(&value, run->context);
    aq_append_format(&value, "{\"quant_method\": \"arrowquant\", \"format_version\": %u, "
                     "\"bits\": %u, \"group_size\": %u, \"code\": \"%s\", \"parameter_bits\": %u, "
                     "\"modality\": \"%s\", \"min_accuracy\": ", (unsigned)AQ_NATIVE_VERSION,
                     config->bit_width, config->group_size,
                     aq_native_codes(run->plan, component),
                     config->parameter_bits, aq_modality_name(run->plan->modality));
    aq_append_json_double(&value, config->min_accuracy);
    aq_append_string(&value, ", \"min_sqnr_db\": ");
    aq_append_json_double(&value, config->min_sqnr_db);
    aq_append_string(&value, "}");
    aq_status status = aq_builder_finish(&value, &json, &size, err);
    if (status != AQ_OK) return status;
    status = aq_beside_config(run, component, json, err);
    aq_free(run->context, json, size + 1);
    return status == AQ_OK ? aq_beside_index(run, component, err) : status;
}

static const aq_container aq_native_container = {
    AQ_OUTPUT_NATIVE, ".safetensors", false, 1, NULL, NULL, NULL, aq_native_spec, NULL, NULL,
    aq_native_layer_parts, NULL, aq_native_close, aq_native_order, aq_native_data_start, aq_native_finish,
    aq_native_beside
};

AQ_LIB const aq_container *aq_container_native(void) {
    return &aq_native_container;
}

#undef AQ_WRITE_RANKS
#undef AQ_TRELLIS_LEAST_ROWS
#undef AQ_ROTATION_SEED
#endif /* ARROWQUANT_NO_STDIO */
