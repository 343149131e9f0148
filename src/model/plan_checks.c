/* What a plan refuses: switches whose work needs what this version lacks, and inputs that are
 * quantized already. A profile's default of such a switch runs data-free, and a note says so. */
#include "../base/text.h"
#include "../config/fields.h"
#include "../quant/quant.h"
#include "plan.h"

#ifndef ARROWQUANT_NO_STDIO

static aq_status aq_refuse(const char *field, const char *why, aq_error *err) {
    return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: %s; leave it out", field, why);
}

AQ_LIB aq_status aq_plan_check_config(aq_plan *plan, aq_error *err) {
    const aq_config *config = &plan->config;
    aq_arena *arena = &plan->state->arena;
    aq_notes *notes = &plan->state->notes;
    aq_status status = AQ_OK;
    bool data_free = !config->calibration_count;
    if (data_free && config->enable_time_aware &&
        aq_config_is_explicit(config, AQ_FIELD_enable_time_aware))
        return aq_refuse("enable_time_aware", "needs activation statistics of a real run "
                         "(calibration)", err);
    bool spatial = config->enable_spatial && aq_config_is_explicit(config, AQ_FIELD_enable_spatial);
    if (spatial && data_free)
        return aq_refuse("enable_spatial", "needs activation statistics of a real run (calibration)",
                         err);
    if (spatial && config->output_format != AQ_OUTPUT_NATIVE)
        return aq_refuse("enable_spatial", "only the native format has a place for the scales of the "
                         "layers' inputs", err);
    bool groups = !data_free && config->enable_time_aware;
    if (config->boundary_smoothing.enabled && !groups)
        return aq_refuse("thermodynamic.boundary_smoothing.enabled", "needs time groups, and so "
                         "enable_time_aware and activation statistics (calibration)", err);
    if (config->markov_validation.enabled && !groups &&
        aq_config_is_explicit(config, AQ_FIELD_markov_enabled))
        return aq_refuse("thermodynamic.validation.enabled", "needs time groups, and so "
                         "enable_time_aware and activation statistics (calibration)", err);
    if (!data_free && config->enable_spatial && config->output_format != AQ_OUTPUT_NATIVE)
        status = aq_note(arena, notes, err, "equalization: the format has no place for the scales of "
                         "the layers' inputs; only the native one stores them");
    if (data_free && (config->enable_time_aware || config->enable_spatial))
        status = aq_note(arena, notes, err,
                         "no activation statistics: weights are rounded data-free%s%s",
                         config->enable_time_aware ? ", without time groups" : "",
                         config->enable_spatial ? ", without spatial equalization" : "");
    if (status == AQ_OK && data_free && config->bit_width == 2)
        status = aq_note(arena, notes, err, "2 bits without calibration cost quality: look at the "
                         "SQNR, and at samples of the model, before you use it");
    return status;
}

/* FP8 weights with scales are an input format like any other; everything else is not. */
static bool aq_is_fp8_config(const aq_json_node *config) {
    const char *method = aq_json_string(aq_json_get(config, "quant_method"));
    const char *format = aq_json_string(aq_json_get(config, "format"));
    if (method && strstr(method, "fp8")) return true;
    return format && strcmp(format, "float-quantized") == 0;
}

static aq_status aq_check_component(aq_plan *plan, const aq_component *component, aq_error *err) {
    const char *root = plan->state->folder.root;
    const aq_json_node *config = aq_json_get(component->config_json, "quantization_config");
    if (component->config_json && config && config->type == AQ_JSON_OBJECT &&
        !aq_is_fp8_config(config)) {
        const char *method = aq_json_string(aq_json_get(config, "quant_method"));
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s/%s: the model is quantized already "
                       "(quant_method \"%s\"); give the original, or dequantize it first", root,
                       component->config, method ? method : "unknown");
    }
    for (size_t s = 0; s < component->shard_count; s++) {
        const aq_st_file *file = &component->files[s];
        if (aq_ends_with(file->path, ".gguf"))
            return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: GGUF files are not quantized again; give "
                           "the original, or dequantize it first", file->path);
        for (size_t t = 0; t < file->tensor_count; t++) {
            const char *name = file->tensors[t].name;
            if (aq_native_is_part(name))
                return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, name, 0,
                                      "%s: tensor %s: the file is quantized already; give the "
                                      "original, or dequantize it first", file->path, name);
        }
    }
    return AQ_OK;
}

AQ_LIB aq_status aq_plan_check_input(aq_plan *plan, aq_error *err) {
    const aq_folder *folder = &plan->state->folder;
    aq_status status = AQ_OK;
    for (size_t c = 0; status == AQ_OK && c < folder->component_count; c++)
        status = aq_check_component(plan, &folder->components[c], err);
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
