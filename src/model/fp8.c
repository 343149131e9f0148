/* FP8 weights that carry their scales: where the scale is, what shape it has, applying it.
 *
 * Names in use: X.weight_scale_inv (blocks of 128 × 128, to be multiplied in spite of its name),
 * X.weight_scale (one, or one a row), X.scale_weight (one). */
#include "plan.h"

#include "../quant/quant.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_FP8_BLOCK 128u

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

static uint64_t aq_ceil_div(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

AQ_LIB aq_status aq_fp8_scale_shape(const aq_plan *plan, const aq_plan_tensor *weight,
                                    const aq_plan_tensor *scale, aq_fp8_scale *out,
                                    aq_error *err) {
    uint64_t count = scale->bytes / aq_dtype_size(scale->dtype);
    (void)plan;
    memset(out, 0, sizeof(*out));
    out->cols = 1;
    out->col_step = weight->cols;
    if (count == 1) {
        out->row_step = weight->rows;
        return AQ_OK;
    }
    if (count == weight->rows && (scale->rank == 1 || scale->cols == 1)) {
        out->row_step = 1;
        return AQ_OK;
    }
    if (scale->rank == 2 && scale->rows == aq_ceil_div(weight->rows, AQ_FP8_BLOCK) &&
        scale->cols == aq_ceil_div(weight->cols, AQ_FP8_BLOCK)) {
        out->row_step = out->col_step = AQ_FP8_BLOCK;
        out->cols = scale->cols;
        return AQ_OK;
    }
    return aq_fail_tensor(err, AQ_ERR_SHAPE, weight->name, 0,
                          "%s: the scale %s has %llu elements, which is neither one, nor one a row "
                          "(%llu), nor one a block of 128 × 128", weight->name, scale->name,
                          (unsigned long long)count, (unsigned long long)weight->rows);
}

AQ_LIB void aq_fp8_apply(const aq_fp8_scale *scale, float *rows, uint64_t first_row,
                         uint64_t row_count, uint64_t cols) {
    for (uint64_t r = 0; r < row_count; r++) {
        const float *factors = scale->values + (first_row + r) / scale->row_step * scale->cols;
        float *row = rows + r * cols;
        for (uint64_t c = 0; c < cols; c++) row[c] *= factors[c / scale->col_step];
    }
}

AQ_LIB aq_status aq_plan_find_scales(aq_plan *plan, aq_error *err) {
    static const struct {
        const char *ending, *suffix; /* `ending` of the weight's name becomes `suffix` */
    } names[] = { { "", "_scale_inv" }, { "", "_scale" }, { "weight", "scale_weight" } };
    for (size_t i = 0; i < plan->tensor_count; i++) {
        aq_plan_tensor *weight = &plan->tensors[i];
        if (weight->dtype != AQ_DTYPE_F8_E4M3 && weight->dtype != AQ_DTYPE_F8_E5M2) continue;
        for (size_t n = 0; n < sizeof(names) / sizeof(names[0]); n++) {
            if (!aq_ends_with(weight->name, names[n].ending)) continue;
            aq_status status = aq_scale_named(plan, weight, strlen(names[n].ending),
                                              names[n].suffix, &weight->scale, err);
            if (status != AQ_OK) return status;
            if (weight->scale != AQ_NO_TENSOR) break;
        }
        if (weight->scale == AQ_NO_TENSOR || weight->bits == 16) continue;
        aq_plan_tensor *scale = &plan->tensors[weight->scale];
        aq_fp8_scale shape;
        if (!aq_dtype_is_float(scale->dtype))
            return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, scale->name, 0,
                                  "%s: the scale of %s is %s; a float dtype was expected",
                                  scale->name, weight->name, aq_dtype_name(scale->dtype));
        aq_status status = aq_fp8_scale_shape(plan, weight, scale, &shape, err);
        if (status != AQ_OK) return status;
        scale->bits = 16;
        scale->reason = AQ_REASON_SCALE_TENSOR;
        scale->detail = weight->name;
        scale->output_bytes = 0;
    }
    return AQ_OK;
}

#undef AQ_FP8_BLOCK
#endif /* ARROWQUANT_NO_STDIO */
