/* What a run did: the result for the caller, the report in the output, both as JSON. */
#include <math.h>

#include "../quant/quant.h"
#include "plan.h"

#ifndef ARROWQUANT_NO_STDIO

ARROWQUANT_API const char *aq_reason_text(aq_reason reason) {
    switch (reason) {
    case AQ_REASON_QUANTIZED: return "quantized";
    case AQ_REASON_NOT_FLOAT: return "kept: integers or booleans";
    case AQ_REASON_NOT_MATRIX: return "kept: not a matrix";
    case AQ_REASON_NO_GAIN: return "kept: would not become smaller";
    case AQ_REASON_SENSITIVE: return "kept: sensitive";
    case AQ_REASON_SENSITIVE_CONFIG: return "kept: named by the config";
    case AQ_REASON_LAYER_BITS: return "bits given by layer_bits";
    case AQ_REASON_RAISED: return "raised: below a gate";
    case AQ_REASON_KEPT_BY_GATE: return "kept: below a gate at 8 bits";
    case AQ_REASON_SCALE_TENSOR: return "folded into its weight";
    case AQ_REASON_FORMAT: return "kept: by the rules of the output format";
    case AQ_REASON_BUDGET: return "bits chosen for the size";
    }
    return "unknown";
}

ARROWQUANT_API const char *aq_phase_name(aq_phase phase) {
    switch (phase) {
    case AQ_PHASE_PLAN: return "plan";
    case AQ_PHASE_QUANTIZE: return "quantize";
    case AQ_PHASE_COPY: return "copy";
    case AQ_PHASE_COMMIT: return "commit";
    case AQ_PHASE_VALIDATE: return "validate";
    case AQ_PHASE_DEQUANTIZE: return "dequantize";
    case AQ_PHASE_VERIFY: return "verify";
    }
    return "unknown";
}

/* Layers are the float matrices: what could have been quantized. */
static bool aq_is_layer(const aq_plan_tensor *tensor) {
    return tensor->rank >= 2 && tensor->rows && tensor->cols && aq_dtype_is_float(tensor->dtype) &&
           tensor->reason != AQ_REASON_SCALE_TENSOR;
}

typedef struct aq_totals {
    aq_quality quality;
    uint64_t weights, bytes, quantized, kept, raised;
    double cosine_sum;
} aq_totals;

static void aq_plan_totals(const aq_plan *plan, aq_totals *out) {
    memset(out, 0, sizeof(*out));
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[i];
        if (!aq_is_layer(tensor)) continue;
        if (tensor->bits == 16) {
            out->kept++;
            continue;
        }
        out->quantized++;
        out->raised += tensor->reason == AQ_REASON_RAISED;
        out->weights += tensor->rows * tensor->cols;
        out->bytes += tensor->output_bytes;
        out->cosine_sum += aq_quality_cosine(&tensor->quality);
        aq_quality_add(&out->quality, &tensor->quality);
    }
}

/* Figures that result and report share. */
static void aq_fill_result(const aq_plan *plan, const aq_totals *totals, aq_result *out) {
    const struct aq_plan_state *state = plan->state;
    out->compression_ratio =
        state->output_bytes ? (double)plan->input_bytes / (double)state->output_bytes : 1.0;
    out->cosine_similarity =
        totals->quantized ? totals->cosine_sum / (double)totals->quantized : 1.0;
    out->model_size_mb = (double)state->output_bytes / 1e6;
    out->modality = plan->modality;
    out->bit_width = plan->config.bit_width;
    out->bits_per_weight =
        totals->weights ? 8.0 * (double)totals->bytes / (double)totals->weights : 0.0;
    out->sqnr_db = aq_quality_sqnr_db(&totals->quality);
    out->layers_quantized = totals->quantized;
    out->layers_kept = totals->kept;
    out->layers_raised = totals->raised;
}

/* NaN where it was not measured. */
static double aq_relative_output_error(const aq_plan_tensor *tensor) {
    if (tensor->bits == 16 || !(tensor->output_signal > 0.0)) return (double)NAN;
    return tensor->output_error / tensor->output_signal;
}

static void aq_fill_layer(const aq_plan_tensor *tensor, aq_layer_result *out) {
    bool kept = tensor->bits == 16;
    out->bits = tensor->bits;
    out->reason = tensor->reason;
    out->weights = tensor->rows * tensor->cols;
    out->output_bytes = tensor->output_bytes;
    out->cosine_similarity = kept ? (double)NAN : aq_quality_cosine(&tensor->quality);
    out->sqnr_db = kept ? (double)NAN : aq_quality_sqnr_db(&tensor->quality);
    out->max_error = kept ? (double)NAN : tensor->quality.max_error;
    out->method = kept ? AQ_METHOD_AUTO : tensor->method;
    out->method_detail = kept ? "" : tensor->method_detail;
    out->output_error = aq_relative_output_error(tensor);
}

/* The arena of a result lives in itself. */
typedef struct aq_result_storage {
    aq_arena arena;
} aq_result_storage;

static aq_status aq_result_lists(const aq_plan *plan, aq_arena *arena, aq_result *out,
                                 aq_error *err) {
    const char **notes = (const char **)aq_arena_alloc(arena, (plan->note_count + 1) * sizeof(char *));
    out->layers = (aq_layer_result *)aq_arena_alloc(
        arena, (plan->tensor_count + 1) * sizeof(aq_layer_result));
    out->quantized_path = aq_arena_string(arena, plan->state->output_path);
    if (!notes || !out->layers || !out->quantized_path) return aq_fail_memory(err, 0);
    for (size_t i = 0; i < plan->note_count; i++) {
        notes[i] = aq_arena_string(arena, plan->notes[i]);
        if (!notes[i]) return aq_fail_memory(err, 0);
    }
    out->notes = notes;
    out->note_count = plan->note_count;
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[i];
        if (!aq_is_layer(tensor)) continue;
        aq_layer_result *layer = &out->layers[out->layer_count++];
        const char *name = aq_plan_display_name(plan, tensor, arena);
        layer->name = name ? aq_arena_string(arena, name) : NULL;
        layer->detail = aq_arena_string(arena, tensor->detail);
        if (!layer->name || !layer->detail) return aq_fail_memory(err, 0);
        aq_fill_layer(tensor, layer);
    }
    return AQ_OK;
}

AQ_LIB aq_status aq_plan_result(const aq_plan *plan, aq_result *out, aq_error *err) {
    const aq_context *context = plan->state->context;
    aq_totals totals;
    memset(out, 0, sizeof(*out));
    aq_result_storage *storage =
        (aq_result_storage *)aq_alloc(context, sizeof(aq_result_storage));
    if (!storage) return aq_fail_memory(err, sizeof(aq_result_storage));
    aq_arena_init(&storage->arena, context);
    out->owned = storage;
    aq_plan_totals(plan, &totals);
    aq_fill_result(plan, &totals, out);
    aq_status status = aq_result_lists(plan, &storage->arena, out, err);
    if (status != AQ_OK) aq_result_free(out);
    return status;
}

ARROWQUANT_API void aq_result_free(aq_result *result) {
    if (!result || !result->owned) return;
    aq_result_storage *storage = (aq_result_storage *)result->owned;
    const aq_context *context = storage->arena.context;
    aq_arena_free(&storage->arena);
    aq_free(context, storage, sizeof(*storage));
    memset(result, 0, sizeof(*result));
}

/* ---- JSON */

static void aq_append_member(aq_builder *json, const char *key, double value) {
    aq_append_format(json, ",\"%s\":", key);
    aq_append_json_double(json, value);
}

static void aq_append_text_member(aq_builder *json, const char *key, const char *value) {
    aq_append_format(json, ",\"%s\":", key);
    aq_append_json_string(json, value, strlen(value));
}

AQ_LIB void aq_append_equalization(aq_builder *json, const aq_plan_tensor *tensor) {
    if (!tensor->input_scales) return;
    aq_append_string(json, ",\"equalization\":{\"migration\":");
    aq_append_json_double(json, tensor->equalization.migration);
    aq_append_member(json, "error", tensor->equalization.error);
    aq_append_member(json, "error_without", tensor->equalization.error_without);
    aq_append_string(json, "}");
}

static void aq_append_figures(aq_builder *json, const aq_result *result) {
    aq_append_member(json, "compression_ratio", result->compression_ratio);
    aq_append_member(json, "cosine_similarity", result->cosine_similarity);
    aq_append_member(json, "model_size_mb", result->model_size_mb);
    aq_append_text_member(json, "modality", aq_modality_name(result->modality));
    aq_append_format(json, ",\"bit_width\":%u", result->bit_width);
    aq_append_member(json, "bits_per_weight", result->bits_per_weight);
    aq_append_member(json, "sqnr_db", result->sqnr_db);
    aq_append_format(json, ",\"layers_quantized\":%llu,\"layers_kept\":%llu,\"layers_raised\":%llu",
                     (unsigned long long)result->layers_quantized,
                     (unsigned long long)result->layers_kept,
                     (unsigned long long)result->layers_raised);
}

static void aq_append_layer(aq_builder *json, const aq_layer_result *layer) {
    aq_append_format(json, "{\"bits\":%u", layer->bits);
    aq_append_text_member(json, "name", layer->name);
    aq_append_text_member(json, "reason", aq_reason_text(layer->reason));
    aq_append_text_member(json, "detail", layer->detail);
    aq_append_member(json, "cosine_similarity", layer->cosine_similarity);
    aq_append_member(json, "sqnr_db", layer->sqnr_db);
    aq_append_member(json, "max_error", layer->max_error);
    if (layer->bits < 16) {
        aq_append_text_member(json, "method", aq_method_name(layer->method));
        aq_append_text_member(json, "method_reason", layer->method_detail);
        aq_append_member(json, "output_error", layer->output_error);
    }
    aq_append_format(json, ",\"weights\":%llu,\"output_bytes\":%llu}",
                     (unsigned long long)layer->weights, (unsigned long long)layer->output_bytes);
}

static void aq_append_notes(aq_builder *json, const char *const *notes, size_t count) {
    aq_append_string(json, ",\"notes\":[");
    for (size_t i = 0; i < count; i++) {
        if (i) aq_append_string(json, ",");
        aq_append_json_string(json, notes[i], strlen(notes[i]));
    }
    aq_append_string(json, "]");
}

ARROWQUANT_API aq_status aq_result_to_json(aq_context *context, const aq_result *result,
                                           bool with_layers, char **text, size_t *size,
                                           aq_error *err) {
    aq_builder json;
    aq_builder_init(&json, context);
    aq_append_string(&json, "{\"quantized_path\":");
    aq_append_json_string(&json, result->quantized_path, strlen(result->quantized_path));
    aq_append_member(&json, "quantization_time_s", result->quantization_time_s);
    aq_append_figures(&json, result);
    for (size_t i = 0; with_layers && i < result->layer_count; i++) {
        aq_append_string(&json, i ? ",\n" : ",\"layers\":[\n");
        aq_append_layer(&json, &result->layers[i]);
        if (i + 1 == result->layer_count) aq_append_string(&json, "]");
    }
    aq_append_notes(&json, result->notes, result->note_count);
    aq_append_string(&json, "}\n");
    return aq_builder_finish(&json, text, size, err);
}

/* Like the result, with the layers' stored form; without paths and times, so that the same input
 * and config give the same bytes. */
static void aq_append_report_tensor(aq_builder *json, const aq_plan *plan, aq_arena *arena,
                                    const aq_plan_tensor *tensor) {
    const char *name = aq_plan_display_name(plan, tensor, arena);
    aq_append_string(json, "{\"name\":");
    if (name) aq_append_json_string(json, name, strlen(name));
    else json->failed = true;
    aq_append_format(json, ",\"dtype\":\"%s\",\"shape\":[", aq_dtype_name(tensor->dtype));
    for (uint32_t i = 0; i < tensor->rank; i++)
        aq_append_format(json, "%s%llu", i ? "," : "", (unsigned long long)tensor->shape[i]);
    aq_append_format(json, "],\"bits\":%u", tensor->bits);
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
    if (tensor->bits < 16) {
        aq_append_format(json, ",\"code\":\"%s\",\"group_size\":%u,\"params\":\"%s\","
                         "\"method\":\"%s\",\"method_reason\":\"%s\",\"fit\":\"%s\"",
                         aq_code_name(tensor->spec.code), tensor->spec.group_size,
                         aq_param_type_name(tensor->spec.params), aq_method_name(tensor->method),
                         tensor->method_detail, aq_fit_name(tensor->spec.fit));
        aq_append_equalization(json, tensor);
        aq_append_member(json, "output_error", aq_relative_output_error(tensor));
        aq_append_member(json, "cosine_similarity", aq_quality_cosine(&tensor->quality));
        aq_append_member(json, "sqnr_db", aq_quality_sqnr_db(&tensor->quality));
        aq_append_member(json, "max_error", tensor->quality.max_error);
    }
    aq_append_format(json, ",\"input_bytes\":%llu,\"output_bytes\":%llu}",
                     (unsigned long long)tensor->bytes, (unsigned long long)tensor->output_bytes);
}

AQ_LIB aq_status aq_plan_report(const aq_plan *plan, char **text, size_t *size, aq_error *err) {
    struct aq_plan_state *state = plan->state;
    aq_totals totals;
    aq_result figures;
    aq_builder json;
    memset(&figures, 0, sizeof(figures));
    aq_plan_totals(plan, &totals);
    aq_fill_result(plan, &totals, &figures);
    aq_builder_init(&json, state->context);
    aq_append_string(&json, "{\"arrowquant_report\":1,\"version\":\"" AQ_VERSION "\"");
    aq_append_figures(&json, &figures);
    aq_append_format(&json, ",\"input_bytes\":%llu,\"output_bytes\":%llu,\"tensors\":[",
                     (unsigned long long)plan->input_bytes,
                     (unsigned long long)state->output_bytes);
    for (size_t i = 0; i < plan->tensor_count; i++) {
        aq_append_string(&json, i ? ",\n" : "\n");
        aq_append_report_tensor(&json, plan, &state->arena, &plan->tensors[i]);
    }
    aq_append_string(&json, "]");
    aq_append_notes(&json, plan->notes, plan->note_count);
    aq_append_string(&json, "}\n");
    return aq_builder_finish(&json, text, size, err);
}

#endif /* ARROWQUANT_NO_STDIO */
