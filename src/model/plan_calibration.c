/* Activation statistics of a plan: opened once, found for each matrix by its name, compared with its
 * width. What is missing or left over is said, never made up. */
#include "plan.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_NAMES_SHOWN 3u

/* The first names of a kind, and how many there are. */
typedef struct aq_name_list {
    const char *shown[AQ_NAMES_SHOWN];
    size_t count;
} aq_name_list;

static void aq_name_add(aq_name_list *list, const char *name) {
    if (list->count < AQ_NAMES_SHOWN) list->shown[list->count] = name;
    list->count++;
}

static aq_status aq_note_names(aq_plan *plan, const aq_name_list *list, const char *what,
                               aq_error *err) {
    const char *none = "";
    if (!list->count) return AQ_OK;
    return aq_note(&plan->state->arena, &plan->state->notes, err, "calibration: %zu %s: %s%s%s%s%s%s",
                   list->count, what, list->shown[0], list->count > 1 ? ", " : none,
                   list->count > 1 ? list->shown[1] : none, list->count > 2 ? ", " : none,
                   list->count > 2 ? list->shown[2] : none, list->count > 3 ? ", …" : none);
}

/* A convolution meets patches: statistics of its bare input channels say too little about them. */
static bool aq_is_bare_convolution(const aq_plan_tensor *tensor, const aq_calibration_layer *layer) {
    return tensor->rank > 2 && tensor->shape[1] == layer->channels;
}

static aq_status aq_give_statistics(aq_plan *plan, aq_plan_tensor *tensor, aq_name_list *bare,
                                    aq_error *err) {
    const aq_calibration_layer *layer =
        aq_calibration_find(plan->state->calibration, tensor->name);
    if (!layer || tensor->rank < 2) return AQ_OK;
    if (layer->channels == tensor->cols) {
        tensor->statistics = layer;
        return AQ_OK;
    }
    if (aq_is_bare_convolution(tensor, layer)) {
        aq_name_add(bare, tensor->name);
        return AQ_OK;
    }
    return aq_fail_tensor(err, AQ_ERR_SHAPE, tensor->name, 0,
                          "calibration: layer %s has %llu input channels there, tensor %s has %llu "
                          "columns; the statistics are of another model", layer->name,
                          (unsigned long long)layer->channels, tensor->name,
                          (unsigned long long)tensor->cols);
}

/* Whether some tensor has this layer's statistics, its own or shared. */
static bool aq_layer_is_used(const aq_plan *plan, const aq_calibration_layer *layer) {
    for (size_t i = 0; i < plan->tensor_count; i++) {
        if (plan->tensors[i].statistics == layer) return true;
    }
    return false;
}

AQ_LIB aq_status aq_plan_calibrate(aq_plan *plan, aq_error *err) {
    struct aq_plan_state *state = plan->state;
    const aq_config *config = &plan->config;
    aq_name_list bare, unknown;
    size_t given = 0;
    memset(&bare, 0, sizeof(bare));
    memset(&unknown, 0, sizeof(unknown));
    if (!config->calibration_count) return AQ_OK;
    aq_status status =
        aq_calibration_open(state->context, config->calibration, config->calibration_count,
                            config->calibration_samples, &state->calibration, err);
    for (size_t i = 0; status == AQ_OK && i < plan->tensor_count; i++) {
        status = aq_give_statistics(plan, &plan->tensors[i], &bare, err);
        given += plan->tensors[i].statistics != NULL;
    }
    if (status != AQ_OK) return status;
    if (!given)
        return aq_fail(err, AQ_ERR_METADATA, "calibration: none of the %zu layers of %s is in the "
                       "model; give the statistics of this model", state->calibration->layer_count,
                       config->calibration[0]);
    for (size_t i = 0; i < state->calibration->layer_count; i++) {
        const aq_calibration_layer *layer = &state->calibration->layers[i];
        if (!aq_layer_is_used(plan, layer)) aq_name_add(&unknown, layer->name);
    }
    status = aq_note_names(plan, &unknown, "layers are not in the model", err);
    if (status == AQ_OK)
        status = aq_note_names(plan, &bare, "convolutions have statistics of their channels and not "
                               "of their patches, and run data-free", err);
    return status;
}

AQ_LIB aq_status aq_note_data_free(aq_plan *plan, aq_error *err) {
    aq_name_list missing;
    memset(&missing, 0, sizeof(missing));
    for (size_t i = 0; plan->state->calibration && i < plan->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[i];
        if (tensor->bits < 16 && !tensor->statistics) aq_name_add(&missing, tensor->name);
    }
    return aq_note_names(plan, &missing, "quantized layers have no statistics and run data-free",
                         err);
}

#undef AQ_NAMES_SHOWN
#endif /* ARROWQUANT_NO_STDIO */
