/* Which tensors of a plan are the scales of FP8 weights: they are folded in, and not written. */
#include "../quant/quant.h"
#include "plan.h"

#ifndef ARROWQUANT_NO_STDIO

/* The tensor of that name in the shards of the same component, or AQ_NO_TENSOR. */
static size_t aq_plan_tensor_named(const aq_plan *plan, const aq_component *component,
                                   const char *name) {
    const struct aq_plan_state *state = plan->state;
    for (size_t s = 0; s < plan->shard_count; s++) {
        if (state->shard_component[s] != component) continue;
        const aq_st_tensor *found =
            aq_st_find(state->by_name[s], plan->shards[s].tensor_count, name);
        if (found)
            return plan->shards[s].first_tensor + (size_t)(found - state->shard_file[s]->tensors);
    }
    return AQ_NO_TENSOR;
}

/* `cut` characters off the end of the name, `suffix` in their place. */
static aq_status aq_scale_named(aq_plan *plan, const aq_plan_tensor *weight, size_t cut,
                                const char *suffix, size_t *out, aq_error *err) {
    size_t size = strlen(weight->name) - cut;
    char *name = (char *)aq_arena_alloc(&plan->state->arena, size + strlen(suffix) + 1);
    if (!name) return aq_fail_memory(err, size);
    memcpy(name, weight->name, size);
    memcpy(name + size, suffix, strlen(suffix));
    *out = aq_plan_tensor_named(plan, plan->state->shard_component[weight->shard], name);
    return AQ_OK;
}

AQ_LIB aq_fp8_shape aq_plan_shape(const aq_plan *plan, const aq_plan_tensor *tensor) {
    aq_fp8_shape shape;
    shape.folder = plan->state->folder.root;
    shape.file = plan->shards[tensor->shard].path;
    shape.name = tensor->name;
    shape.rank = tensor->rank;
    shape.rows = tensor->rows;
    shape.cols = tensor->cols;
    return shape;
}

static aq_status aq_find_scale(aq_plan *plan, aq_plan_tensor *weight, aq_error *err) {
    for (size_t n = 0; n < AQ_FP8_NAMES; n++) {
        const aq_fp8_name *name = aq_fp8_name_at(n);
        if (!aq_ends_with(weight->name, name->ending)) continue;
        aq_status status = aq_scale_named(plan, weight, strlen(name->ending), name->suffix,
                                          &weight->scale, err);
        if (status != AQ_OK || weight->scale != AQ_NO_TENSOR) return status;
    }
    return AQ_OK;
}

/* The scale of a weight that is quantized or stored in another dtype is folded in; that of one kept
 * as it is stays beside it, never quantized itself, whatever shape it has. */
static aq_status aq_settle_scale(aq_plan *plan, const aq_plan_tensor *weight,
                                 aq_plan_tensor *scale, aq_error *err) {
    aq_fp8_scale shape;
    aq_status status = aq_plan_keep(plan, scale, err);
    if (status != AQ_OK) return status;
    if (weight->bits == 16 && weight->output_dtype == weight->dtype) {
        scale->reason = AQ_REASON_SENSITIVE;
        scale->detail = "scale of a kept FP8 weight";
        return AQ_OK;
    }
    if (!aq_dtype_is_float(scale->dtype))
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, scale->name, 0,
                              "%s/%s: tensor %s, the scale of %s, is %s; a float dtype was expected",
                              plan->state->folder.root, plan->shards[scale->shard].path,
                              scale->name, weight->name, aq_dtype_name(scale->dtype));
    scale->reason = AQ_REASON_SCALE_TENSOR;
    scale->detail = weight->name;
    scale->output_bytes = 0;
    aq_fp8_shape weight_shape = aq_plan_shape(plan, weight);
    aq_fp8_shape scale_shape = aq_plan_shape(plan, scale);
    return aq_fp8_scale_shape(&weight_shape, &scale_shape, &shape, err);
}

AQ_LIB aq_status aq_plan_find_scales(aq_plan *plan, aq_error *err) {
    aq_status status = AQ_OK;
    for (size_t i = 0; status == AQ_OK && i < plan->tensor_count; i++) {
        aq_plan_tensor *weight = &plan->tensors[i];
        if (!aq_dtype_is_fp8(weight->dtype)) continue;
        status = aq_find_scale(plan, weight, err);
        if (status == AQ_OK && weight->scale != AQ_NO_TENSOR)
            status = aq_settle_scale(plan, weight, &plan->tensors[weight->scale], err);
    }
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
