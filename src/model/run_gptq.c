/* What GPTQ needs of a run: the second moments of a layer's input, factored. Layers with the same input
 * (to_q and to_v) often follow each other, so the last factor is kept. */
#include "../quant/gptq.h"
#include "../quant/rotate.h"
#include "../simd/simd.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

AQ_LIB void aq_run_factor_free(aq_run *run) {
    if (run->factor_of) aq_factor_free(&run->factor);
    if (run->hessian) aq_free(run->context, run->hessian, run->hessian_bytes);
    run->factor_of = NULL;
    run->hessian = NULL;
    run->hessian_bytes = 0;
}

/* The message of quant/ knows no names. */
static aq_status aq_factor_named(const aq_plan_tensor *tensor, const aq_error *failure,
                                 aq_error *err) {
    return aq_fail_tensor(err, failure->status, tensor->name, failure->offset,
                          "tensor %s, calibration of layer %s: %s", tensor->name,
                          tensor->statistics->name, failure->message);
}

AQ_SIMD_EXACT AQ_LIB aq_status aq_run_hessian(aq_run *run, const aq_plan_tensor *tensor, float *out,
                                              aq_error *err) {
    AQ_SIMD_EXACT_BODY
    const float *scales = tensor->input_scales;
    size_t n = (size_t)tensor->cols;
    aq_status status = aq_calibration_hessian(run->context, run->plan->state->calibration,
                                              tensor->statistics, out, err);
    for (size_t i = 0; status == AQ_OK && scales && i < n; i++) {
        for (size_t j = 0; j < n; j++) {
            double product = (double)scales[i] * (double)scales[j]; /* exact, so symmetric */
            out[i * n + j] = (float)((double)out[i * n + j] * product);
        }
    }
    return status;
}

AQ_LIB aq_status aq_run_factor(aq_run *run, const aq_plan_tensor *tensor, bool *usable,
                               aq_error *err) {
    const aq_calibration_layer *layer = tensor->statistics;
    const aq_plan *plan = run->plan;
    size_t n = (size_t)tensor->cols, bytes;
    aq_error failure;
    *usable = true;
    if (run->factor_of && run->factor_of->owner == layer->owner &&
        run->factor_rotation == aq_spec_rotation(&tensor->spec) &&
        run->factor_scales == tensor->input_scales &&
        (run->hessian || !aq_gptq_refits(&tensor->spec)))
        return AQ_OK;
    aq_run_factor_free(run);
    if (!aq_mul_size(n, n, &bytes) || !aq_mul_size(bytes, sizeof(float), &bytes))
        return aq_fail_memory(err, SIZE_MAX);
    float *hessian = (float *)aq_alloc(run->context, bytes);
    if (!hessian) return aq_fail_memory(err, bytes);
    memset(&failure, 0, sizeof(failure));
    aq_status status = aq_run_hessian(run, tensor, hessian, err);
    if (status == AQ_OK) {
        aq_simd_mode mode = aq_simd_mode_enter();
        aq_rotate_hessian(aq_kernels_of(run->context), aq_spec_rotation(&tensor->spec), hessian, n);
        aq_simd_mode_leave(mode);
        status = aq_factor_make(run->context, run->threads, hessian, n, &run->factor, &failure);
        run->factor_rotation = aq_spec_rotation(&tensor->spec);
        run->factor_scales = tensor->input_scales;
        if (status == AQ_OK) run->factor_of = layer;
        if (status == AQ_OK && aq_gptq_refits(&tensor->spec)) {
            run->factor.hessian = run->hessian = hessian;
            run->hessian_bytes = bytes;
            hessian = NULL;
        }
        if (status == AQ_ERR_QUANTIZATION && (plan->config.method == AQ_METHOD_AUTO ||
                 plan->config.method == AQ_METHOD_TRELLIS))
            *usable = false;
    }
    if (hessian) aq_free(run->context, hessian, bytes);
    if (status == AQ_OK || !*usable) return AQ_OK;
    return failure.status ? aq_factor_named(tensor, &failure, err) : status;
}

#endif /* ARROWQUANT_NO_STDIO */
