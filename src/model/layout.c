/* How a shard will lie on disk, before anything is measured: the order of its tensors, and a bound
 * on its header, whose space is reserved first and filled last. */
#include "../quant/quant.h"
#include "plan.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_WRITE_RANKS 5u

AQ_LIB aq_status aq_shard_order(aq_plan *plan, size_t shard, size_t **order, aq_error *err) {
    const aq_plan_shard *input = &plan->shards[shard];
    size_t bytes = (input->tensor_count + 1) * sizeof(size_t), count = 0;
    *order = (size_t *)aq_arena_alloc(&plan->state->arena, bytes);
    if (!*order) return aq_fail_memory(err, bytes);
    for (uint32_t rank = 0; rank < AQ_WRITE_RANKS; rank++) {
        for (size_t i = 0; i < input->tensor_count; i++) {
            const aq_plan_tensor *tensor = &plan->tensors[input->first_tensor + i];
            if (aq_st_write_rank(tensor->dtype, tensor->bits < 16) == rank)
                (*order)[count++] = input->first_tensor + i;
        }
    }
    return AQ_OK;
}

AQ_LIB void aq_native_describe(const aq_plan_tensor *tensor, aq_native_tensor *out) {
    memset(out, 0, sizeof(*out));
    out->name = tensor->name;
    out->code = aq_code_name(tensor->spec.code);
    out->known = true;
    out->spec = tensor->spec;
    out->dtype = tensor->dtype;
    out->rank = tensor->rank;
    out->shape = tensor->shape;
    out->method = "ptq";
    out->cosine_similarity = aq_quality_cosine(&tensor->quality);
    out->sqnr_db = aq_quality_sqnr_db(&tensor->quality);
}

/* Every stored tensor that may come of this one: three parts, or itself, and an FP8 scale. */
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

AQ_LIB aq_status aq_shard_header_bound(aq_plan *plan, size_t shard, uint64_t *capacity,
                                       aq_error *err) {
    static const char *const suffixes[] = { AQ_CODES_SUFFIX, AQ_PARAMS_SUFFIX, AQ_EXTRA_SUFFIX, "" };
    const aq_plan_shard *input = &plan->shards[shard];
    const aq_context *context = plan->state->context;
    aq_arena arena;
    aq_bound bound;
    aq_native native;
    aq_status status = AQ_OK;
    size_t most = input->tensor_count * 5 + 1;
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
        for (size_t s = quantized ? 0 : 3; status == AQ_OK && s < 4; s++) {
            if (s == 2 && tensor->spec.params != AQ_PARAM_Q8) continue;
            status = aq_bound_add(&bound, tensor, suffixes[s], err);
        }
        if (status == AQ_OK && quantized && tensor->scale != AQ_NO_TENSOR)
            status = aq_bound_add(&bound, &plan->tensors[tensor->scale], "", err);
        if (quantized) aq_native_describe(tensor, &native.tensors[native.tensor_count++]);
    }
    if (status == AQ_OK) {
        native.checksums = bound.checksums;
        native.checksum_count = bound.count;
        *capacity = aq_st_header_bound(bound.outputs, bound.count,
                                       aq_native_bound(&native, input->metadata));
    }
    aq_arena_free(&arena);
    return status;
}

#undef AQ_WRITE_RANKS
#endif /* ARROWQUANT_NO_STDIO */
