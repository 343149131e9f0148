/* Which method chooses the codes of a layer. Asked for by name, a method is used wherever it can be;
 * `auto` takes what measures best for the statistics that there are:
 *
 * - GPTQ where the second moments of the input are known, at any bits; at 2 bits in the native format a
 *   trellis instead, where it errs less (model/run_trials.c).
 * - A trellis where nothing is known, at 2 bits in the native format by the edge profile.
 * - Least squares otherwise, each column weighted by its mean square where that is known. At 2 bits it
 *   beats the two residual steps of R2Q at every group size, so R2Q is only used when asked for. */
#include "method.h"

#include "../quant/gptq.h"
#include "../quant/linear.h"

#ifndef ARROWQUANT_NO_STDIO

/* Bytes that GPTQ of a layer needs beside the buffers of any method: H and its factor. */
static uint64_t aq_gptq_layer_bytes(const aq_plan_tensor *tensor) {
    uint64_t square;
    if (!aq_mul_u64(tensor->cols, tensor->cols, &square) || square > UINT64_MAX / 16)
        return UINT64_MAX;
    return square * sizeof(float) + aq_factor_bytes(tensor->cols);
}

/* NULL, or why GPTQ cannot be had here. */
static const char *aq_gptq_obstacle(const aq_plan *plan, const aq_plan_tensor *tensor) {
    uint64_t limit = plan->config.max_memory_limit_mb;
    if (tensor->spec.code != AQ_CODE_AFFINE && tensor->spec.code != AQ_CODE_SYMMETRIC &&
        tensor->spec.code != AQ_CODE_ZERO_POINT && tensor->spec.code != AQ_CODE_TRELLIS)
        return "this code has a search of its own";
    if (!tensor->statistics) return "no statistics";
    if (!tensor->statistics->has_hessian) return "no second moments";
    if (limit && aq_gptq_layer_bytes(tensor) / 1000000 >= limit)
        return "second moments do not fit max_memory_limit_mb";
    return NULL;
}

AQ_LIB bool aq_gptq_is_possible(const aq_plan *plan, const aq_plan_tensor *tensor) {
    return !aq_gptq_obstacle(plan, tensor);
}

static void aq_method_ptq(aq_plan_tensor *tensor, const char *why) {
    bool weighted = tensor->statistics && tensor->statistics->pooled_sqmean;
    tensor->method = AQ_METHOD_PTQ;
    tensor->method_detail = why ? why : weighted ? "columns weighted by their mean squares"
                                                 : "no statistics";
}

static void aq_method_auto(const aq_plan *plan, aq_plan_tensor *tensor) {
    const char *obstacle = aq_gptq_obstacle(plan, tensor);
    if (tensor->spec.code == AQ_CODE_TRELLIS) {
        tensor->method = AQ_METHOD_TRELLIS;
        tensor->method_detail = "no statistics, edge profile";
        return;
    }
    if (obstacle) {
        aq_method_ptq(tensor, NULL);
        return;
    }
    tensor->method = AQ_METHOD_GPTQ;
    tensor->method_detail = "second moments are known";
}

AQ_LIB void aq_plan_method(const aq_plan *plan, aq_plan_tensor *tensor) {
    const char *obstacle;
    tensor->method_detail = "asked for";
    switch (plan->config.method) {
    case AQ_METHOD_AUTO: aq_method_auto(plan, tensor); break;
    case AQ_METHOD_PTQ: aq_method_ptq(tensor, NULL); break;
    case AQ_METHOD_R2Q:
        tensor->method = AQ_METHOD_R2Q;
        if (tensor->spec.code != AQ_CODE_RESIDUAL)
            aq_method_ptq(tensor, tensor->bits == 2 ? "the output format has no code for R2Q"
                                                    : "R2Q has 2 bits");
        break;
    case AQ_METHOD_GPTQ:
        tensor->method = AQ_METHOD_GPTQ;
        obstacle = aq_gptq_obstacle(plan, tensor);
        if (obstacle) aq_method_ptq(tensor, obstacle);
        break;
    case AQ_METHOD_TRELLIS:
        if (tensor->spec.code != AQ_CODE_TRELLIS) {
            aq_method_auto(plan, tensor);
            break;
        }
        tensor->method = AQ_METHOD_TRELLIS;
        obstacle = aq_gptq_obstacle(plan, tensor);
        tensor->method_detail = obstacle ? obstacle : "second moments are known";
        break;
    }
}

AQ_LIB aq_status aq_plan_check_methods(const aq_plan *plan, aq_error *err) {
    const aq_config *config = &plan->config;
    size_t quantized = 0, served = 0;
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[i];
        if (tensor->bits == 16) continue;
        quantized++;
        served += tensor->method == config->method;
        if (config->method != AQ_METHOD_GPTQ || tensor->method == AQ_METHOD_GPTQ) continue;
        uint64_t bytes = aq_gptq_layer_bytes(tensor);
        if (config->max_memory_limit_mb && tensor->statistics && tensor->statistics->has_hessian &&
            bytes / 1000000 >= config->max_memory_limit_mb)
            return aq_fail_tensor(err, AQ_ERR_OUT_OF_MEMORY, tensor->name, 0,
                                  "method: gptq of tensor %s needs %llu MB for the second moments of "
                                  "its %llu columns, max_memory_limit_mb allows %llu; raise it, or "
                                  "use method: auto", tensor->name,
                                  (unsigned long long)(bytes / 1000000 + 1),
                                  (unsigned long long)tensor->cols,
                                  (unsigned long long)config->max_memory_limit_mb);
    }
    if (!quantized || served || config->method == AQ_METHOD_AUTO || config->method == AQ_METHOD_PTQ)
        return AQ_OK;
    if (config->method == AQ_METHOD_TRELLIS)
        return aq_fail(err, AQ_ERR_CONFIGURATION, "method: trellis is for 2, 3 and 4 bits, and no layer "
                       "is to have these; set bit_width or layer_bits, or use method: auto");
    if (config->method == AQ_METHOD_R2Q)
        return aq_fail(err, AQ_ERR_CONFIGURATION, "method: r2q is for 2 bits in the native format, and "
                       "no layer is to have that; set bit_width or layer_bits, or use method: auto");
    return aq_fail(err, AQ_ERR_CONFIGURATION, "method: gptq needs the second moments of the layers' "
                   "inputs, and %s; give them with `calibration`, or use method: auto",
                   config->calibration_count ? "the calibration files have none for any layer that is "
                                               "quantized" : "there is no calibration");
}

#endif /* ARROWQUANT_NO_STDIO */
