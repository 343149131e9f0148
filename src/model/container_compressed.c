/* compressed-tensors, "pack-quantized": what transformers, vLLM and SGLang load. Of a linear layer the
 * codes as ours, scales in the model's dtype, integer zero points packed along the output rows; all
 * else stays. docs/FORMATS.md describes it. */
#include "../format/compressed_tensors.h"
#include "../quant/quant.h"
#include "config_json.h"
#include "policy.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

static aq_dtype aq_ct_dtype(const aq_plan *plan, const aq_plan_tensor *tensor) {
    return aq_ct_scale_dtype(plan->state->shard_component[tensor->shard]->config_json,
                             tensor->dtype);
}

static aq_status aq_ct_check(aq_plan *plan, aq_error *err) {
    if (plan->config.method == AQ_METHOD_TRELLIS)
        return aq_refuse_trellis("compressed-tensors", err);
    if (plan->config.parameter_bits == 8)
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "parameter_bits: compressed-tensors stores scales in "
                       "the model's dtype, not in 8 bits; leave it out");
    return AQ_OK;
}

static aq_status aq_ct_prepare(aq_plan *plan, aq_error *err) {
    aq_arena *arena = &plan->state->arena;
    aq_notes *notes = &plan->state->notes;
    aq_status status = AQ_OK;
    if (plan->state->folder.kind == AQ_FOLDER_PIPELINE)
        status = aq_note(arena, notes, err, "compressed-tensors is loaded by transformers, vLLM and "
                         "SGLang; diffusers pipelines do not load it");
    else if (plan->state->folder.kind == AQ_FOLDER_FILE)
        status = aq_note(arena, notes, err, "a bare file has no config.json: without its "
                         "quantization_config no program knows the weights as compressed-tensors");
    if (status == AQ_OK && !plan->config.symmetric)
        status = aq_note(arena, notes, err, "transformers loads zero points with "
                         "CompressedTensorsConfig(dequantize=True) only, and only if all layers have "
                         "the same bits; with --symmetric it needs neither");
    return status;
}

/* The readers' rule: modules of the class Linear, whose columns are whole groups. */
static aq_status aq_ct_spec(aq_plan *plan, const aq_plan_tensor *tensor, uint32_t bits,
                            aq_quant_spec *spec, const char **detail, aq_error *err) {
    aq_dtype dtype = aq_ct_dtype(plan, tensor);
    const char *rule = aq_sensitive_rule(tensor->name);
    (void)err;
    *spec = aq_plan_spec(&plan->config, bits);
    spec->code = plan->config.symmetric ? AQ_CODE_SYMMETRIC : AQ_CODE_ZERO_POINT;
    spec->params = dtype == AQ_DTYPE_F32   ? AQ_PARAM_F32
                   : dtype == AQ_DTYPE_F16 ? AQ_PARAM_F16 : AQ_PARAM_BF16;
    if (tensor->rank != 2 || !aq_ends_with(tensor->name, ".weight")) {
        spec->bits = 16;
        *detail = "not the weight of a linear layer";
    } else if (rule && strcmp(rule, "embedding") == 0) {
        spec->bits = 16;
        *detail = "an embedding; readers look for linear layers";
    } else if (tensor->cols % spec->group_size) {
        spec->bits = 16;
        *detail = "its columns are no multiple of the group size";
    }
    return AQ_OK;
}

/* FP8 weights are stored with their scales folded in: no reader of this format has both. */
static aq_status aq_ct_keep(aq_plan *plan, const aq_plan_tensor *tensor, aq_dtype *dtype,
                            aq_error *err) {
    (void)err;
    if (tensor->scale != AQ_NO_TENSOR || tensor->dtype == AQ_DTYPE_F8_E4M3 ||
        tensor->dtype == AQ_DTYPE_F8_E5M2)
        *dtype = aq_ct_dtype(plan, tensor);
    return AQ_OK;
}

static aq_dtype aq_ct_wider(aq_dtype dtype) {
    return dtype == AQ_DTYPE_F16 ? AQ_DTYPE_F32 : dtype;
}

/* ---- the parts of a layer */

static aq_part *aq_ct_part(aq_part *part, aq_part_source source, const char *suffix, aq_dtype dtype,
                           uint64_t rows, uint64_t cols) {
    memset(part, 0, sizeof(*part));
    part->source = source;
    part->suffix = suffix;
    part->dtype = dtype;
    part->rank = 2;
    part->shape[0] = rows;
    part->shape[1] = cols;
    part->bytes = rows * cols * aq_dtype_size(dtype);
    return part;
}

static aq_status aq_ct_parts(const aq_plan *plan, const aq_plan_tensor *tensor,
                             const aq_quant_spec *spec, const aq_quant_layout *layout,
                             aq_part *parts, size_t *count, aq_error *err) {
    aq_dtype scale = spec->params == AQ_PARAM_F32   ? AQ_DTYPE_F32
                     : spec->params == AQ_PARAM_F16 ? AQ_DTYPE_F16 : AQ_DTYPE_BF16;
    bool zeros = spec->code == AQ_CODE_ZERO_POINT;
    uint64_t per_word = 32 / spec->bits;
    aq_part *part = parts;
    (void)plan;
    (void)err;
    aq_ct_part(part, AQ_PART_CLOSED, AQ_CT_SHAPE, AQ_DTYPE_I64, 2, 1)->rank = 1;
    aq_ct_part(++part, AQ_PART_CODES, AQ_CT_PACKED, AQ_DTYPE_I32, tensor->rows,
               layout->row_code_bytes / 4);
    if (zeros)
        aq_ct_part(++part, AQ_PART_CLOSED, AQ_CT_ZERO_POINT, AQ_DTYPE_I32,
                   (tensor->rows + per_word - 1) / per_word, layout->groups)->row_bytes =
            layout->groups;
    aq_ct_part(++part, zeros ? AQ_PART_MADE : AQ_PART_PARAMS, AQ_CT_SCALE, scale, tensor->rows,
               layout->groups)->row_bytes = zeros ? layout->groups * aq_dtype_size(scale) : 0;
    *count = (size_t)(part - parts) + 1;
    return AQ_OK;
}

/* Our parameters are pairs of a scale and a zero point: one of them. */
static void aq_ct_make(const aq_part_rows *rows, size_t index, unsigned char *out) {
    uint64_t groups = rows->count * rows->layout->groups;
    size_t pair = (size_t)(rows->layout->row_param_bytes / rows->layout->groups);
    const unsigned char *in = rows->params;
    bool zeros = index == 2;
    for (uint64_t i = 0; i < groups; i++, in += pair) {
        if (zeros) {
            *out++ = in[pair - 1];
        } else {
            memcpy(out, in, pair - 1);
            out += pair - 1;
        }
    }
}

static void aq_ct_put_shape(const aq_plan_tensor *tensor, unsigned char *out) {
    for (unsigned i = 0; i < 16; i++)
        out[i] = (unsigned char)((i < 8 ? tensor->rows : tensor->cols) >> (8 * (i % 8)));
}

static aq_status aq_ct_close(aq_run *run, const aq_plan_tensor *tensor, const aq_part *part,
                             size_t index, const unsigned char *rows, unsigned char *out,
                             aq_error *err) {
    (void)run;
    (void)err;
    if (index == 0) aq_ct_put_shape(tensor, out);
    else aq_ct_pack_zeros(rows, tensor->rows, part->row_bytes, tensor->spec.bits, out);
    return AQ_OK;
}

/* ---- the file */

/* Sizes that would leave what follows unaligned come last: some readers cannot load such tensors. */
static aq_status aq_ct_order(aq_plan *plan, size_t output, size_t *order, aq_error *err) {
    const aq_plan_output *file = &plan->outputs[output];
    aq_status status = aq_native_order(plan, output, order, err);
    size_t first = 0, end, odd = 0;
    if (status != AQ_OK) return status;
    size_t *later = (size_t *)aq_alloc(plan->state->context, (file->tensor_count + 1) * sizeof(size_t));
    if (!later) return aq_fail_memory(err, file->tensor_count * sizeof(size_t));
    while (first < file->tensor_count && plan->tensors[order[first]].bits == 16 &&
           aq_dtype_size(plan->tensors[order[first]].output_dtype) >= 4)
        first++;
    size_t even = first;
    for (end = first; end < file->tensor_count && plan->tensors[order[end]].bits < 16; end++) {
        if (plan->tensors[order[end]].output_bytes % 8) later[odd++] = order[end];
        else order[even++] = order[end];
    }
    if (odd) memcpy(order + even, later, odd * sizeof(size_t));
    aq_free(plan->state->context, later, (file->tensor_count + 1) * sizeof(size_t));
    return AQ_OK;
}

static const char *aq_ct_metadata(aq_plan *plan, size_t shard, aq_error *err) {
    static const char none[] = "{\"format\":\"pt\"}"; /* transformers insists on it */
    const aq_st_file *file = plan->state->shard_file[shard];
    const char *value = NULL;
    char *text = NULL;
    size_t size = 0;
    if (!file->metadata) return none;
    if (aq_st_metadata_value(&plan->state->arena, file, "format", &value, err) != AQ_OK) return NULL;
    if (value) return file->metadata;
    if (aq_config_json_set(&plan->state->arena, file->metadata, strlen(file->metadata), file->path,
                           "format", "\"pt\"", &text, &size, err) != AQ_OK)
        return NULL;
    return text;
}

/* Every stored tensor that may come of each. */
static aq_status aq_ct_data_start(aq_plan *plan, size_t output, uint64_t *start, aq_error *err) {
    static const char *const suffixes[] = { AQ_CT_PACKED, AQ_CT_SCALE, AQ_CT_SHAPE,
                                            AQ_CT_ZERO_POINT, "" };
    const aq_plan_output *file = &plan->outputs[output];
    const char *metadata = aq_ct_metadata(plan, file->first_shard, err);
    aq_arena arena;
    size_t count = 0, most = file->tensor_count * 5 + 1;
    if (!metadata) return err ? err->status : AQ_ERR_OUT_OF_MEMORY;
    aq_arena_init(&arena, plan->state->context);
    aq_st_output *outputs = (aq_st_output *)aq_arena_alloc(&arena, most * sizeof(*outputs));
    aq_status status = outputs ? AQ_OK : aq_fail_memory(err, most * sizeof(*outputs));
    for (size_t i = 0; status == AQ_OK && i < file->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[file->first_tensor + i];
        for (size_t s = tensor->bits < 16 ? 0 : 4; status == AQ_OK && s < 5; s++) {
            size_t size = strlen(tensor->output_name) + strlen(suffixes[s]) + 1;
            char *name = (char *)aq_arena_alloc(&arena, size);
            if (!name) {
                status = aq_fail_memory(err, size);
                break;
            }
            aq_format(name, size, "%s%s", tensor->output_name, suffixes[s]);
            outputs[count].name = name;
            outputs[count++].rank = *suffixes[s] ? 2 : tensor->rank;
        }
    }
    if (status == AQ_OK) *start = 8 + aq_st_header_bound(outputs, count, strlen(metadata));
    aq_arena_free(&arena);
    return status;
}

static aq_status aq_ct_finish(aq_run *run, size_t output, uint64_t *end, aq_error *err) {
    const char *metadata = aq_ct_metadata(run->plan, run->plan->outputs[output].first_shard, err);
    (void)end;
    if (!metadata) return err ? err->status : AQ_ERR_OUT_OF_MEMORY;
    return aq_finish_safetensors(run, metadata, err);
}

/* ---- config.json */

static void aq_ct_append_module(aq_builder *json, const char *name, bool *first) {
    if (!*first) aq_append_string(json, ", ");
    *first = false;
    aq_append_json_string(json, name, strlen(name) - strlen(".weight"));
}

static bool aq_ct_is_module(const aq_plan *plan, const aq_component *component, size_t index) {
    const aq_plan_tensor *tensor = &plan->tensors[index];
    return plan->state->shard_component[tensor->shard] == component && tensor->rank == 2 &&
           aq_ends_with(tensor->name, ".weight");
}

/* Layers with `bits`; those that are not of the usual number are named one by one. */
static void aq_ct_append_group(aq_builder *json, const aq_plan *plan, const aq_component *component,
                               uint32_t bits, unsigned *number) {
    bool first = true, usual = bits == plan->config.bit_width, any = false;
    for (size_t i = 0; i < plan->tensor_count; i++)
        any = any || (aq_ct_is_module(plan, component, i) && plan->tensors[i].bits == bits);
    if (!any && !usual) return;
    aq_append_format(json, "%s\"group_%u\": {\"targets\": [", *number ? ", " : "", *number);
    ++*number;
    if (usual) aq_append_string(json, "\"Linear\"");
    for (size_t i = 0; !usual && i < plan->tensor_count; i++)
        if (aq_ct_is_module(plan, component, i) && plan->tensors[i].bits == bits)
            aq_ct_append_module(json, plan->tensors[i].name, &first);
    aq_append_format(json, "], \"weights\": {\"num_bits\": %u, \"type\": \"int\", \"symmetric\": %s, "
                     "\"strategy\": \"group\", \"group_size\": %u, \"dynamic\": false}}", bits,
                     plan->config.symmetric ? "true" : "false", plan->config.group_size);
}

/* Also an output layer that shares the embedding: it has no tensor, but is of the class Linear. */
static void aq_ct_append_ignore(aq_builder *json, const aq_plan *plan,
                                const aq_component *component) {
    bool first = true, embeds = false, head = false;
    aq_append_string(json, ", \"ignore\": [");
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const char *name = plan->tensors[i].name;
        if (!aq_ct_is_module(plan, component, i)) continue;
        if (plan->tensors[i].bits == 16) aq_ct_append_module(json, name, &first);
        embeds = embeds || aq_ends_with(name, "embed_tokens.weight");
        head = head || aq_ends_with(name, "lm_head.weight");
    }
    if (embeds && !head) aq_ct_append_module(json, "lm_head.weight", &first);
    aq_append_string(json, "]");
}

static aq_status aq_ct_beside(aq_run *run, const aq_component *component, aq_error *err) {
    static const uint32_t widths[] = { 2, 4, 8 };
    const aq_plan *plan = run->plan;
    aq_builder json;
    char *text;
    size_t size;
    unsigned number = 0;
    aq_builder_init(&json, run->context);
    aq_append_string(&json, "{\"quant_method\": \"compressed-tensors\", \"format\": "
                     "\"pack-quantized\", \"quantization_status\": \"compressed\", "
                     "\"config_groups\": {");
    aq_ct_append_group(&json, plan, component, plan->config.bit_width, &number);
    for (unsigned i = 0; i < 3; i++)
        if (widths[i] != plan->config.bit_width)
            aq_ct_append_group(&json, plan, component, widths[i], &number);
    aq_append_string(&json, "}");
    aq_ct_append_ignore(&json, plan, component);
    aq_append_string(&json, "}");
    aq_status status = aq_builder_finish(&json, &text, &size, err);
    if (status != AQ_OK) return status;
    status = aq_beside_config(run, component, text, err);
    aq_free(run->context, text, size + 1);
    return status == AQ_OK ? aq_beside_index(run, component, err) : status;
}

static const aq_container aq_ct_container = {
    AQ_OUTPUT_COMPRESSED_TENSORS, ".safetensors", false, 1, aq_ct_check, NULL, aq_ct_prepare,
    aq_ct_spec, aq_ct_keep, aq_ct_wider, aq_ct_parts, aq_ct_make, aq_ct_close, aq_ct_order,
    aq_ct_data_start, aq_ct_finish, aq_ct_beside
};

AQ_LIB const aq_container *aq_container_compressed(void) {
    return &aq_ct_container;
}

#endif /* ARROWQUANT_NO_STDIO */
