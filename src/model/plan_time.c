/* Groups of timesteps in a plan: each quantized layer that has statistics gets static integers for its
 * input, made before anything is written. */
#include "plan.h"

#include "../calib/calib.h"
#include "../simd/simd.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_USUAL_TIMESTEPS 1000u
#define AQ_SCHEDULER_LIMIT 1048576u

/* num_train_timesteps of the pipeline's scheduler; 0 when nothing tells. */
static aq_status aq_scheduler_timesteps(aq_plan *plan, uint32_t *out, aq_error *err) {
    const aq_folder *folder = &plan->state->folder;
    aq_arena arena;
    aq_json_node *json = NULL;
    char *text = NULL;
    size_t size = 0;
    uint64_t number = 0;
    *out = 0;
    aq_arena_init(&arena, plan->state->context);
    char *path = aq_path_join(&arena, folder->root, "scheduler/scheduler_config.json");
    aq_status status = path ? AQ_OK : aq_fail_memory(err, 0);
    if (status == AQ_OK && aq_path_kind_of(path) == AQ_PATH_FILE) {
        status = aq_read_text(&arena, path, AQ_SCHEDULER_LIMIT, &text, &size, err);
        if (status == AQ_OK)
            status = aq_json_parse(&arena, text, size, path, AQ_ERR_METADATA, &json, err);
        if (status == AQ_OK &&
            aq_json_u64(aq_json_get(json, "num_train_timesteps"), &number) && number &&
            number <= 1000000)
            *out = (uint32_t)number;
    }
    aq_arena_free(&arena);
    return status;
}

/* T: the scheduler's, or 1000; more, when later timesteps were observed. */
static aq_status aq_total_timesteps(aq_plan *plan, uint32_t *total, aq_error *err) {
    const aq_calibration *calibration = plan->state->calibration;
    int64_t last = -1;
    aq_status status = aq_scheduler_timesteps(plan, total, err);
    if (status != AQ_OK) return status;
    if (!*total) *total = AQ_USUAL_TIMESTEPS;
    for (size_t i = 0; i < calibration->layer_count; i++) {
        const aq_calibration_layer *layer = &calibration->layers[i];
        if (!layer->timestep_count) continue;
        if (layer->timesteps[layer->timestep_count - 1] > last)
            last = layer->timesteps[layer->timestep_count - 1];
    }
    if (last < (int64_t)*total) return AQ_OK;
    if (last >= 1000000)
        return aq_fail(err, AQ_ERR_TIME_GROUPS, "calibration: timestep %lld was observed; at most "
                       "999999 is expected", (long long)last);
    *total = (uint32_t)last + 1;
    return AQ_OK;
}

static aq_status aq_group_tensor(aq_plan *plan, aq_plan_tensor *tensor,
                                 const aq_time_options *options, aq_error *err) {
    const aq_config *config = &plan->config;
    aq_time_groups *groups =
        (aq_time_groups *)aq_arena_alloc(&plan->state->arena, sizeof(*groups));
    if (!groups) return aq_fail_memory(err, sizeof(*groups));
    aq_status status =
        aq_time_groups_make(plan->state->context, tensor->statistics, options, groups, err);
    if (status != AQ_OK) return status;
    tensor->time_groups = groups;
    for (unsigned w = 0; status == AQ_OK && w < 2 && config->boundary_smoothing.enabled; w++)
        status = aq_smooth_boundaries(groups->scale[w], groups->zero_point[w], groups->count,
                                      config->boundary_smoothing.window_size,
                                      config->boundary_smoothing.interpolation, err);
    return status == AQ_OK ? aq_plan_store(plan, tensor, err) : status; /* a little larger now */
}

static bool aq_format_has_groups(const aq_config *config) {
    return config->output_format == AQ_OUTPUT_NATIVE || config->output_format == AQ_OUTPUT_ARROW;
}

AQ_LIB aq_status aq_plan_time_groups(aq_plan *plan, aq_error *err) {
    const aq_config *config = &plan->config;
    aq_time_options options;
    if (!config->enable_time_aware || !plan->state->calibration || !aq_format_has_groups(config))
        return AQ_OK;
    memset(&options, 0, sizeof(options));
    aq_status status = aq_total_timesteps(plan, &options.total_timesteps, err);
    options.num_time_groups = config->num_time_groups;
    options.cut = config->time_cut;
    options.range = config->activation_range;
    options.percentile = config->activation_percentile;
    for (size_t i = 0; status == AQ_OK && i < plan->tensor_count; i++) {
        aq_plan_tensor *tensor = &plan->tensors[i];
        if (tensor->bits == 16 || !tensor->statistics || !tensor->statistics->timestep_count)
            continue;
        status = aq_group_tensor(plan, tensor, &options, err);
    }
    return status;
}

AQ_LIB void aq_plan_free_time_groups(aq_plan *plan) {
    for (size_t i = 0; i < plan->tensor_count; i++) {
        aq_time_groups *groups = (aq_time_groups *)(uintptr_t)plan->tensors[i].time_groups;
        aq_time_groups_free(groups);
        plan->tensors[i].time_groups = NULL;
    }
}

/* ---- what is said of them */

/* One line a layer, worst boundary first in it. */
AQ_SIMD_EXACT static aq_status aq_note_violations(aq_plan *plan, const aq_plan_tensor *tensor,
                                                  const aq_markov *markov, aq_error *err) {
    AQ_SIMD_EXACT_BODY
    const aq_markov_violation *worst = &markov->violations[0];
    char jump[AQ_DOUBLE_TEXT];
    for (uint32_t i = 1; i < markov->violation_count; i++) {
        if (markov->violations[i].scale_jump > worst->scale_jump) worst = &markov->violations[i];
    }
    aq_format_double((double)(int64_t)(worst->scale_jump * 1000.0 + 0.5) / 1000.0, jump);
    return aq_note(&plan->state->arena, &plan->state->notes, err,
                   "time groups of %s: %u of %u boundaries jump; worst between groups %u and %u: "
                   "scale by %s (%s)", tensor->name, markov->violation_count,
                   markov->boundary_count, worst->boundary, worst->boundary + 1, jump,
                   aq_severity_name(worst->severity));
}

AQ_SIMD_EXACT AQ_LIB aq_status aq_note_time_groups(aq_plan *plan, aq_error *err) {
    AQ_SIMD_EXACT_BODY
    const aq_config *config = &plan->config;
    struct aq_plan_state *state = plan->state;
    size_t layers = 0, rough = 0;
    uint32_t most = 0;
    bool plain = false, may_turn = false; /* from GPTQ to a trellis, see aq_run_choose */
    double score = 0.0;
    aq_status status = AQ_OK;
    for (size_t i = 0; status == AQ_OK && i < plan->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[i];
        const aq_time_groups *groups = tensor->time_groups;
        aq_markov markov;
        if (!groups || tensor->spec.code == AQ_CODE_TRELLIS) continue; /* which stores none */
        may_turn = may_turn || (tensor->bits == 2 && tensor->method == AQ_METHOD_GPTQ &&
                                config->method == AQ_METHOD_AUTO &&
                                config->output_format == AQ_OUTPUT_NATIVE);
        aq_markov_measure(groups->scale[0], groups->zero_point[0], groups->count,
                          config->markov_validation.smoothness_threshold, &markov);
        layers++;
        rough += !markov.is_valid;
        score += markov.smoothness_score;
        if (groups->count > most) most = groups->count;
        if (!tensor->statistics->sketch && !tensor->input_scales) plain = true;
        if (config->markov_validation.enabled && config->markov_validation.log_violations &&
            !markov.is_valid)
            status = aq_note_violations(plan, tensor, &markov, err);
    }
    if (status != AQ_OK || !state->calibration || !config->enable_time_aware) return status;
    if (!aq_format_has_groups(config))
        return aq_note(&state->arena, &state->notes, err, "time groups: the format has no place for "
                       "activation scales; native and arrow store them");
    if (layers && plain && config->activation_range != AQ_RANGE_MIN_MAX)
        status = aq_note(&state->arena, &state->notes, err, "time groups: the statistics hold no "
                         "sketch of the values; scales cover their minimum and maximum");
    if (status != AQ_OK || !layers || !config->markov_validation.enabled) return status;
    char text[AQ_DOUBLE_TEXT];
    aq_format_double((double)(int64_t)(score / (double)layers * 10000.0 + 0.5) / 10000.0, text);
    return aq_note(&state->arena, &state->notes, err, "time groups: %u of them for the inputs of "
                   "%zu layers, smoothness %s, violations in %zu layers%s", most, layers, text, rough,
                   may_turn ? "; layers that become a trellis store none" : "");
}

#undef AQ_USUAL_TIMESTEPS
#undef AQ_SCHEDULER_LIMIT
#endif /* ARROWQUANT_NO_STDIO */
