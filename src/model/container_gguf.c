/* GGUF: one file for each component, tensors of ggml's types under the names that its readers expect. */
#include "../config/fields.h"
#include "../format/gguf.h"
#include "../format/sort.h"
#include "../quant/quant.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_GGUF_SMALL 1024u /* elements: tensors up to this size are not worth a code */

/* What the plan knows of each output. */
typedef struct aq_gguf_plan {
    const char *architecture;
    const aq_gguf_architecture *known; /* or NULL */
    uint64_t header_bytes;
} aq_gguf_plan;

/* ---- config */

static aq_code aq_gguf_choice_code(aq_gguf_type_choice type) {
    switch (type) {
    case AQ_GGUF_TYPE_Q8_0: return AQ_CODE_Q8_0;
    case AQ_GGUF_TYPE_Q4_0: return AQ_CODE_Q4_0;
    case AQ_GGUF_TYPE_Q4_1: return AQ_CODE_Q4_1;
    case AQ_GGUF_TYPE_Q4_K: return AQ_CODE_Q4_K;
    case AQ_GGUF_TYPE_Q2_K: return AQ_CODE_Q2_K;
    case AQ_GGUF_TYPE_AUTO: case AQ_GGUF_TYPE_F32: case AQ_GGUF_TYPE_F16: case AQ_GGUF_TYPE_BF16:
        break;
    }
    return AQ_CODE_COUNT;
}

/* The plain dtype that gguf_type names, or AQ_DTYPE_COUNT. */
static aq_dtype aq_gguf_choice_dtype(aq_gguf_type_choice type) {
    return type == AQ_GGUF_TYPE_F32    ? AQ_DTYPE_F32
           : type == AQ_GGUF_TYPE_F16  ? AQ_DTYPE_F16
           : type == AQ_GGUF_TYPE_BF16 ? AQ_DTYPE_BF16 : AQ_DTYPE_COUNT;
}

static aq_code aq_gguf_usual_code(const aq_config *config, uint32_t bits) {
    bool small = config->group_size == 32 && aq_config_is_explicit(config, AQ_FIELD_group_size);
    aq_code named = aq_gguf_choice_code(config->gguf_type);
    if (named != AQ_CODE_COUNT && aq_block_spec(named).bits == bits) return named;
    if (bits == 2) return AQ_CODE_Q2_K;
    if (bits == 8) return AQ_CODE_Q8_0;
    return !small ? AQ_CODE_Q4_K : config->symmetric ? AQ_CODE_Q4_0 : AQ_CODE_Q4_1;
}

/* The type decides what these fields say elsewhere: what was asked for and is not so is told. */
static aq_status aq_gguf_check(aq_plan *plan, aq_error *err) {
    aq_config *config = &plan->config;
    aq_code named = aq_gguf_choice_code(config->gguf_type);
    aq_arena *arena = &plan->state->arena;
    aq_notes *notes = &plan->state->notes;
    aq_status status = AQ_OK;
    if (named != AQ_CODE_COUNT) {
        uint32_t bits = aq_block_spec(named).bits;
        if (config->bit_width != bits && aq_config_is_explicit(config, AQ_FIELD_bit_width))
            return aq_fail(err, AQ_ERR_CONFIGURATION,
                           "gguf_type %s has %u bits, bit_width asks for %u; leave one of them out",
                           aq_code_name(named), (unsigned)bits, (unsigned)config->bit_width);
        config->bit_width = bits;
    }
    if (config->method == AQ_METHOD_TRELLIS) return aq_refuse_trellis("GGUF", err);
    if (config->parameter_bits == 8)
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "parameter_bits: GGUF's types have parameters of "
                       "their own; leave it out");
    aq_code code = aq_gguf_usual_code(config, config->bit_width);
    uint32_t block = aq_block_weights(code);
    bool symmetric = code == AQ_CODE_Q8_0 || code == AQ_CODE_Q4_0;
    if (aq_config_is_explicit(config, AQ_FIELD_group_size) && config->group_size != block)
        status = aq_note(arena, notes, err, "group_size %u is not used: %s has blocks of %u",
                         (unsigned)config->group_size, aq_code_name(code), (unsigned)block);
    if (status == AQ_OK && config->symmetric && !symmetric)
        status = aq_note(arena, notes, err, "symmetric is not used: %s has minimums",
                         aq_code_name(code));
    return status;
}

/* ---- one tensor */

/* A row of GGUF is the last dimension. */
static uint64_t aq_gguf_row(const aq_plan_tensor *tensor) {
    return tensor->rank ? tensor->shape[tensor->rank - 1] : 1;
}

static aq_status aq_gguf_detail(aq_plan *plan, const char **detail, aq_error *err,
                                const char *format, uint64_t row, aq_code usual, aq_code code) {
    char text[128];
    aq_format(text, sizeof(text), format, (unsigned long long)row, aq_code_name(usual),
              aq_code_name(code));
    *detail = aq_arena_string(&plan->state->arena, text);
    return *detail ? AQ_OK : aq_fail_memory(err, sizeof(text));
}

static aq_status aq_gguf_spec(aq_plan *plan, const aq_plan_tensor *tensor, uint32_t bits,
                              aq_quant_spec *spec, const char **detail, aq_error *err) {
    uint64_t row = aq_gguf_row(tensor);
    aq_code usual = aq_gguf_usual_code(&plan->config, bits), code = usual;
    memset(spec, 0, sizeof(*spec));
    spec->bits = 16;
    if (aq_gguf_choice_dtype(plan->config.gguf_type) != AQ_DTYPE_COUNT) {
        *detail = "gguf_type quantizes nothing";
        return AQ_OK;
    }
    if (!aq_ends_with(tensor->name, "weight")) {
        *detail = "not a layer's weight: readers do not decode it";
        return AQ_OK;
    }
    if (tensor->rows * tensor->cols <= AQ_GGUF_SMALL) {
        *detail = "small";
        return AQ_OK;
    }
    if (row % 32)
        return aq_gguf_detail(plan, detail, err, "rows of %llu are no multiple of 32", row, usual,
                              code);
    if (row % aq_block_weights(code)) code = bits == 2 ? AQ_CODE_Q4_0 : AQ_CODE_Q4_1;
    *spec = aq_block_spec(code);
    spec->fit = plan->config.fit;
    if (code == usual) return AQ_OK;
    return aq_gguf_detail(plan, detail, err, "rows of %llu do not fit %s: %s", row, usual, code);
}

static aq_status aq_gguf_keep(aq_plan *plan, const aq_plan_tensor *tensor, aq_dtype *dtype,
                              aq_error *err) {
    aq_dtype named = aq_gguf_choice_dtype(plan->config.gguf_type);
    if (aq_dtype_is_float(tensor->dtype)) {
        bool small = tensor->rank < 2 || tensor->rows * tensor->cols <= AQ_GGUF_SMALL;
        bool weight = aq_ends_with(tensor->name, "weight");
        *dtype = small || !weight ? AQ_DTYPE_F32 : named != AQ_DTYPE_COUNT ? named : AQ_DTYPE_F16;
        return AQ_OK;
    }
    *dtype = tensor->dtype;
    if (aq_gguf_type_of(tensor->dtype)) return AQ_OK;
    return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, tensor->name, 0,
                          "tensor %s is %s, which GGUF does not have; remove it from the model, or "
                          "use another format", tensor->name, aq_dtype_name(tensor->dtype));
}

static aq_dtype aq_gguf_wider(aq_dtype dtype) {
    (void)dtype;
    return AQ_DTYPE_F32;
}

static aq_status aq_gguf_parts(const aq_plan *plan, const aq_plan_tensor *tensor,
                               const aq_quant_spec *spec, const aq_quant_layout *layout,
                               aq_part *parts, size_t *count, aq_error *err) {
    (void)plan;
    (void)tensor;
    (void)spec;
    (void)err;
    memset(parts, 0, sizeof(*parts));
    parts->source = AQ_PART_CODES;
    parts->suffix = "";
    parts->dtype = AQ_DTYPE_U8;
    parts->rank = 1;
    parts->shape[0] = layout->code_bytes;
    parts->bytes = layout->code_bytes;
    *count = 1;
    return AQ_OK;
}

/* ---- outputs: one for each component, whatever its shards */

static aq_status aq_gguf_path(aq_plan *plan, const char *shard, const char **out, aq_error *err) {
    size_t size = strlen(shard) - strlen(".safetensors"), mark;
    for (mark = size; mark > 15; mark--) { /* "-00001-of-00003", wherever it stands */
        const char *text = shard + mark - 15;
        bool numbered = text[0] == '-' && memcmp(text + 6, "-of-", 4) == 0;
        for (size_t i = 1; numbered && i < 15; i++)
            numbered = (i >= 6 && i < 10) || (text[i] >= '0' && text[i] <= '9');
        if (numbered) break;
    }
    size_t before = mark > 15 ? mark - 15 : size, after = mark > 15 ? mark : size;
    char *path = (char *)aq_arena_alloc(&plan->state->arena, size + 6);
    if (!path) return aq_fail_memory(err, size + 6);
    memcpy(path, shard, before);
    memcpy(path + before, shard + after, size - after);
    memcpy(path + before + size - after, ".gguf", 6);
    *out = path;
    return AQ_OK;
}

static aq_status aq_gguf_outputs(aq_plan *plan, aq_error *err) {
    struct aq_plan_state *state = plan->state;
    size_t bytes = (state->folder.component_count + 1) * sizeof(aq_plan_output);
    aq_status status = AQ_OK;
    plan->outputs = (aq_plan_output *)aq_arena_alloc(&state->arena, bytes);
    if (!plan->outputs) return aq_fail_memory(err, bytes);
    for (size_t s = 0; status == AQ_OK && s < plan->shard_count; s++) {
        const aq_plan_shard *shard = &plan->shards[s];
        aq_plan_output *output = &plan->outputs[plan->output_count];
        if (!s || state->shard_component[s] != state->shard_component[s - 1]) {
            plan->output_count++;
            output->first_shard = s;
            output->first_tensor = shard->first_tensor;
            status = aq_gguf_path(plan, shard->path, &output->path, err);
        } else {
            output--;
        }
        output->shard_count++;
        output->tensor_count += shard->tensor_count;
    }
    return status;
}

/* ---- names */

/* The tensors of one output by name. */
typedef struct aq_gguf_names {
    const aq_plan *plan;
    const aq_plan_output *output;
} aq_gguf_names;

static bool aq_gguf_has(const void *user, const char *name) {
    const aq_gguf_names *names = (const aq_gguf_names *)user;
    const struct aq_plan_state *state = names->plan->state;
    for (size_t s = 0; s < names->output->shard_count; s++) {
        size_t shard = names->output->first_shard + s;
        if (aq_st_find(state->by_name[shard], names->plan->shards[shard].tensor_count, name))
            return true;
    }
    return false;
}

/* The greatest number after `start` in a name; 0 when there is none. */
static uint64_t aq_gguf_last(const aq_gguf_names *names, const char *start) {
    size_t size = strlen(start);
    uint64_t most = 0;
    for (size_t i = 0; i < names->output->tensor_count; i++) {
        const char *name = names->plan->tensors[names->output->first_tensor + i].name;
        uint64_t number = 0;
        if (strncmp(name, start, size) != 0) continue;
        for (name += size; *name >= '0' && *name <= '9' && number < 100000; name++)
            number = number * 10 + (uint64_t)(*name - '0');
        most = number > most ? number : most;
    }
    return most;
}

static aq_status aq_gguf_name_all(aq_plan *plan, const aq_gguf_names *names,
                                  const aq_gguf_naming *naming, uint8_t *slots, size_t *kept,
                                  aq_error *err) {
    const aq_plan_output *output = names->output;
    for (size_t i = 0; i < output->tensor_count; i++) {
        aq_plan_tensor *tensor = &plan->tensors[output->first_tensor + i];
        aq_gguf_rename renamed;
        bool found = aq_gguf_rename_tensor(naming, tensor->name, &renamed);
        slots[i] = (uint8_t)(found ? renamed.slots << 4 | renamed.slot : 1u << 4);
        if (tensor->reason == AQ_REASON_SCALE_TENSOR) continue;
        if (!found) {
            (*kept)++;
            continue;
        }
        tensor->output_name = aq_arena_string(&plan->state->arena, renamed.name);
        if (!tensor->output_name) return aq_fail_memory(err, sizeof(renamed.name));
        uint64_t rows = tensor->rank ? tensor->shape[0] : 0;
        if (renamed.turned && rows % 2 == 0) tensor->turn = tensor->bytes / 2;
    }
    return AQ_OK;
}

typedef struct aq_gguf_named {
    aq_plan_tensor *tensor;
    uint32_t slot, slots;
} aq_gguf_named;

static int aq_gguf_by_output(const void *a, const void *b) {
    const aq_gguf_named *x = (const aq_gguf_named *)a, *y = (const aq_gguf_named *)b;
    int order = strcmp(x->tensor->output_name, y->tensor->output_name);
    return order ? order : x->slot < y->slot ? -1 : x->slot > y->slot;
}

/* Tensors of equal output names, sorted by slot: a complete stack of equal rows, or an error. */
static aq_status aq_gguf_stack(aq_plan *plan, const aq_gguf_named *const *group, size_t count,
                               aq_error *err) {
    size_t stack[4];
    const aq_plan_tensor *first = group[0]->tensor;
    bool level = false;
    if (count != group[0]->slots || count > 4)
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, first->name, 0,
                              "tensor %s becomes a part of %s: %zu of %u parts are there; use "
                              "another format, or a complete model", first->name,
                              first->output_name, count, (unsigned)group[0]->slots);
    for (size_t i = 0; i < count; i++) {
        aq_plan_tensor *tensor = group[i]->tensor;
        stack[i] = (size_t)(tensor - plan->tensors);
        bool alike = group[i]->slot == i && tensor->rank == first->rank;
        for (uint32_t d = 1; alike && d < tensor->rank; d++)
            alike = tensor->shape[d] == first->shape[d];
        if (!alike)
            return aq_fail_tensor(err, AQ_ERR_SHAPE, tensor->name, 0,
                                  "tensor %s cannot be stacked with %s as %s", tensor->name,
                                  first->name, first->output_name);
        tensor->output_leader = stack[0];
        tensor->output_slot = (uint32_t)i;
    }
    aq_status status = AQ_OK;
    while (status == AQ_OK && !level) status = aq_stack_level(plan, stack, count, &level, err);
    return status;
}

static aq_status aq_gguf_check_name(const aq_plan_tensor *tensor, aq_error *err) {
    size_t size = strlen(tensor->output_name);
    if (size > AQ_GGUF_NAME_MOST)
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, tensor->name, 0,
                              "tensor %s: its name has %zu bytes, readers of GGUF take %u at most; "
                              "use another format", tensor->output_name, size, AQ_GGUF_NAME_MOST);
    if (tensor->rank > AQ_GGUF_RANK || !tensor->bytes)
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, tensor->name, 0,
                              "tensor %s: %s, which GGUF cannot hold", tensor->name,
                              tensor->bytes ? "it has more than 8 dimensions" : "it is empty");
    return AQ_OK;
}

/* Leaders of all tensors; two tensors of one name are an error. */
static aq_status aq_gguf_lead(aq_plan *plan, const aq_plan_output *output, const uint8_t *slots,
                              aq_arena *scratch, aq_error *err) {
    size_t count = 0, bytes = (output->tensor_count + 1) * sizeof(aq_gguf_named);
    aq_gguf_named *items = (aq_gguf_named *)aq_arena_alloc(scratch, bytes);
    const void **sorted =
        (const void **)aq_arena_alloc(scratch, (output->tensor_count + 1) * sizeof(void *));
    if (!items || !sorted) return aq_fail_memory(err, bytes);
    for (size_t i = 0; i < output->tensor_count; i++) {
        aq_plan_tensor *tensor = &plan->tensors[output->first_tensor + i];
        if (tensor->reason == AQ_REASON_SCALE_TENSOR) continue;
        aq_status status = aq_gguf_check_name(tensor, err);
        if (status != AQ_OK) return status;
        items[count].tensor = tensor;
        items[count].slot = slots[i] & 15u;
        items[count].slots = slots[i] >> 4;
        sorted[count] = &items[count];
        count++;
    }
    aq_sort_pointers(sorted, count, aq_gguf_by_output);
    for (size_t i = 0, end; i < count; i = end) {
        const aq_gguf_named *const *group = (const aq_gguf_named *const *)(const void *)(sorted + i);
        end = i + 1;
        while (end < count && strcmp(((const aq_gguf_named *)sorted[end])->tensor->output_name,
                                     group[0]->tensor->output_name) == 0)
            end++;
        if (end - i == 1 && group[0]->slots == 1) continue;
        aq_status status = aq_gguf_stack(plan, group, end - i, err);
        if (status != AQ_OK) return status;
    }
    return AQ_OK;
}

static aq_status aq_gguf_note(aq_plan *plan, const aq_gguf_plan *own, size_t kept, aq_error *err) {
    aq_arena *arena = &plan->state->arena;
    aq_notes *notes = &plan->state->notes;
    if (!own->known)
        return aq_note(arena, notes, err, "GGUF: no architecture that image programs know; tensor "
                       "names are kept, and the gguf package and ggml read them");
    aq_status status = aq_note(arena, notes, err, "GGUF: architecture %s, to be loaded by %s",
                               own->architecture, own->known->readers);
    if (status == AQ_OK && own->known->family != AQ_GGUF_FAMILY_NONE && kept)
        status = aq_note(arena, notes, err, "GGUF: %zu tensors have no original name: theirs are "
                         "kept", kept);
    return status;
}

/* What image programs read and ggml itself does not. */
static aq_status aq_gguf_note_limits(aq_plan *plan, const aq_plan_output *output, aq_error *err) {
    size_t long_names = 0, ranks = 0;
    for (size_t i = 0; i < output->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[output->first_tensor + i];
        if (tensor->reason == AQ_REASON_SCALE_TENSOR) continue;
        long_names += strlen(tensor->output_name) > AQ_GGUF_NAME_STOCK;
        ranks += tensor->rank > AQ_GGUF_RANK_STOCK;
    }
    if (!long_names && !ranks) return AQ_OK;
    return aq_note(&plan->state->arena, &plan->state->notes, err,
                   "GGUF: %zu names of over %u bytes and %zu tensors of over %u dimensions are "
                   "written as they are: image programs and the gguf package read them, llama.cpp "
                   "does not", long_names, AQ_GGUF_NAME_STOCK, ranks, AQ_GGUF_RANK_STOCK);
}

static const char *aq_gguf_class(const aq_plan *plan, const aq_plan_output *output) {
    const aq_component *component = plan->state->shard_component[output->first_shard];
    if (!component->config_json) return NULL;
    return aq_json_string(aq_json_get(component->config_json, "_class_name"));
}

static aq_status aq_gguf_prepare_output(aq_plan *plan, size_t number, aq_gguf_plan *own,
                                        aq_error *err) {
    aq_gguf_names names;
    aq_gguf_naming naming;
    aq_arena scratch;
    size_t kept = 0;
    names.plan = plan;
    names.output = &plan->outputs[number];
    own->known = aq_gguf_detect(aq_gguf_class(plan, names.output), aq_gguf_has, &names);
    own->architecture = plan->config.gguf_architecture ? plan->config.gguf_architecture
                        : own->known                   ? own->known->name : "unknown";
    memset(&naming, 0, sizeof(naming));
    naming.family = own->known ? own->known->family : AQ_GGUF_FAMILY_NONE;
    naming.layers_per_block = aq_gguf_last(&names, "down_blocks.0.resnets.") + 1;
    naming.last_block = aq_gguf_last(&names, "transformer_blocks.");
    naming.has = aq_gguf_has;
    naming.user = &names;
    aq_arena_init(&scratch, plan->state->context);
    uint8_t *slots = (uint8_t *)aq_arena_alloc(&scratch, names.output->tensor_count + 1);
    aq_status status = slots ? AQ_OK : aq_fail_memory(err, names.output->tensor_count);
    if (status == AQ_OK) status = aq_gguf_name_all(plan, &names, &naming, slots, &kept, err);
    if (status == AQ_OK) status = aq_gguf_lead(plan, names.output, slots, &scratch, err);
    if (status == AQ_OK && kept < names.output->tensor_count)
        status = aq_gguf_note(plan, own, kept, err);
    else if (status == AQ_OK) /* the original names already, or none that is known */
        status = aq_gguf_note(plan, own, 0, err);
    if (status == AQ_OK) status = aq_gguf_note_limits(plan, names.output, err);
    aq_arena_free(&scratch);
    return status;
}

static aq_status aq_gguf_prepare(aq_plan *plan, aq_error *err) {
    size_t bytes = (plan->output_count + 1) * sizeof(aq_gguf_plan);
    aq_gguf_plan *own = (aq_gguf_plan *)aq_arena_alloc(&plan->state->arena, bytes);
    aq_status status = own ? AQ_OK : aq_fail_memory(err, bytes);
    plan->state->container_state = own;
    for (size_t i = 0; status == AQ_OK && i < plan->output_count; i++)
        status = aq_gguf_prepare_output(plan, i, &own[i], err);
    return status;
}

/* ---- the file */

/* In input order; a stack where its first tensor stands, complete. */
static aq_status aq_gguf_order(aq_plan *plan, size_t output, size_t *order, aq_error *err) {
    const aq_plan_output *file = &plan->outputs[output];
    size_t count = 0, first = file->first_tensor, end = first + file->tensor_count;
    aq_arena scratch;
    aq_arena_init(&scratch, plan->state->context);
    size_t *next = (size_t *)aq_arena_alloc(&scratch, (file->tensor_count + 1) * sizeof(size_t));
    if (!next) {
        aq_arena_free(&scratch);
        return aq_fail_memory(err, file->tensor_count * sizeof(size_t));
    }
    /* next[i]: 1 + the tensor that follows i in its stack, in the order of slots */
    for (size_t i = first; i < end; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[i];
        if (tensor->output_leader == i) continue;
        size_t at = tensor->output_leader;
        while (next[at - first] && plan->tensors[next[at - first] - 1].output_slot <
                                       tensor->output_slot)
            at = next[at - first] - 1;
        next[i - first] = next[at - first];
        next[at - first] = i + 1;
    }
    for (size_t i = first; i < end; i++) {
        if (plan->tensors[i].output_leader != i) continue;
        for (size_t at = i; ;) {
            order[count++] = at;
            if (!next[at - first]) break;
            at = next[at - first] - 1;
        }
    }
    aq_arena_free(&scratch);
    return AQ_OK;
}

static uint32_t aq_gguf_output_type(const aq_plan *plan, const aq_plan_output *output) {
    uint64_t weights[AQ_CODE_COUNT + 1] = { 0 }, plain[3] = { 0 };
    for (size_t i = 0; i < output->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[output->first_tensor + i];
        uint64_t count = tensor->rows * tensor->cols;
        if (tensor->reason == AQ_REASON_SCALE_TENSOR) continue;
        if (tensor->bits < 16) weights[tensor->spec.code] += count;
        else if (tensor->output_dtype == AQ_DTYPE_F32) plain[0] += count;
        else if (tensor->output_dtype == AQ_DTYPE_F16) plain[1] += count;
        else if (tensor->output_dtype == AQ_DTYPE_BF16) plain[2] += count;
    }
    return aq_gguf_file_type(weights, plain);
}

static void aq_gguf_describe(const aq_plan *plan, const size_t *order, size_t count,
                             aq_gguf_output *out) {
    const aq_plan_tensor *first = &plan->tensors[order[0]];
    const aq_gguf_type *type = first->bits < 16 ? aq_gguf_type_of_code(first->spec.code)
                                                : aq_gguf_type_of(first->output_dtype);
    memset(out, 0, sizeof(*out));
    out->name = first->output_name;
    out->type = type->id;
    out->rank = first->rank;
    for (uint32_t i = 0; i < first->rank; i++) out->shape[i] = first->shape[i];
    for (size_t i = 1; i < count; i++) out->shape[0] += plan->tensors[order[i]].shape[0];
    if (!out->rank) { /* a scalar has one element */
        out->rank = 1;
        out->shape[0] = 1;
    }
    out->offset = first->output_offset;
}

/* The whole header, as the tensors now are. */
static aq_status aq_gguf_header(aq_plan *plan, size_t number, aq_builder *out, aq_error *err) {
    const aq_gguf_plan *own = (const aq_gguf_plan *)plan->state->container_state + number;
    const aq_plan_output *output = &plan->outputs[number];
    size_t *order, tensors = 0;
    aq_status status = aq_output_order(plan, number, &order, err);
    if (status != AQ_OK) return status;
    for (size_t i = 0; i < output->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[order[i]];
        tensors += tensor->output_leader == order[i] && tensor->reason != AQ_REASON_SCALE_TENSOR;
    }
    aq_gguf_begin(out, tensors, 4);
    aq_gguf_put_string(out, "general.architecture", own->architecture);
    aq_gguf_put_string(out, "general.quantized_by", "ArrowQuant " AQ_VERSION);
    aq_gguf_put_u32(out, "general.quantization_version", 2);
    aq_gguf_put_u32(out, "general.file_type", aq_gguf_output_type(plan, output));
    for (size_t i = 0, count; i < output->tensor_count; i += count) {
        aq_gguf_output tensor;
        for (count = 1; i + count < output->tensor_count &&
                        plan->tensors[order[i + count]].output_leader == order[i];)
            count++;
        if (plan->tensors[order[i]].reason == AQ_REASON_SCALE_TENSOR) continue;
        aq_gguf_describe(plan, order + i, count, &tensor);
        aq_gguf_put_tensor(out, &tensor);
    }
    aq_gguf_end(out);
    return out->failed ? aq_fail_memory(err, out->size) : AQ_OK;
}

/* Types and offsets change no lengths: the header is as long as it will be. */
static aq_status aq_gguf_data_start(aq_plan *plan, size_t output, uint64_t *bytes,
                                    aq_error *err) {
    aq_builder builder;
    aq_builder_init(&builder, plan->state->context);
    aq_status status = aq_gguf_header(plan, output, &builder, err);
    *bytes = builder.size;
    aq_builder_free(&builder);
    return status;
}

static aq_status aq_gguf_finish(aq_run *run, size_t output, uint64_t *end, aq_error *err) {
    aq_builder builder;
    (void)end;
    aq_builder_init(&builder, run->context);
    aq_status status = aq_gguf_header(run->plan, output, &builder, err);
    if (status == AQ_OK)
        status = aq_file_write(&run->out.file, 0, builder.data, builder.size, err);
    aq_builder_free(&builder);
    return status;
}

static aq_status aq_gguf_beside(aq_run *run, const aq_component *component, aq_error *err) {
    return aq_beside_config(run, component, NULL, err);
}

static const aq_container aq_gguf_container = {
    AQ_OUTPUT_GGUF, ".gguf", true, AQ_GGUF_ALIGNMENT, aq_gguf_check, aq_gguf_outputs,
    aq_gguf_prepare, aq_gguf_spec, aq_gguf_keep, aq_gguf_wider, aq_gguf_parts, NULL, NULL,
    aq_gguf_order, aq_gguf_data_start, aq_gguf_finish, aq_gguf_beside
};

AQ_LIB const aq_container *aq_container_gguf(void) {
    return &aq_gguf_container;
}

#undef AQ_GGUF_SMALL
#endif /* ARROWQUANT_NO_STDIO */
