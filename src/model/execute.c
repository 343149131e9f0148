/* Execute and commit: a plan becomes a temporary folder, the folder becomes the output. */
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_MEMORY_LIMIT_MB 256u
#define AQ_MEMORY_LIMIT_STREAMING_MB 64u
#define AQ_CHUNK_BLOCKS 4u /* 2 MiB of BF16 at a time; one block with enable_streaming */

/* A bare file becomes a bare file when the output's name says so, a folder too where the format is
 * one of single files; else a folder. *only: that file of the temporary folder, or NULL. */
static aq_status aq_only_file(const aq_plan *plan, const char *output_path, const char **only,
                              aq_error *err) {
    const aq_container *container = plan->state->container;
    *only = NULL;
    if (!aq_ends_with(output_path, container->extension)) return AQ_OK;
    if (plan->state->folder.kind != AQ_FOLDER_FILE && !container->single_file) return AQ_OK;
    if (plan->output_count != 1)
        return aq_fail(err, AQ_ERR_ARGUMENT, "%s: %zu files would be written; give a folder, or "
                       "choose one component with `components`", output_path, plan->output_count);
    *only = plan->outputs[0].path;
    return AQ_OK;
}

/* What stages and locks are compared with: the file itself, or the folder. */
static const char *aq_plan_input(const aq_plan *plan) {
    return plan->state->folder.kind == AQ_FOLDER_FILE ? plan->model_path : plan->state->folder.root;
}

AQ_LIB void aq_run_init(aq_run *run, aq_context *context, aq_plan *plan, aq_progress_fn progress,
                        void *user) {
    const aq_config *config = &plan->config;
    uint64_t limit = config->max_memory_limit_mb;
    memset(run, 0, sizeof(*run));
    run->context = aq_context_resolved(context, &run->local);
    run->plan = plan;
    run->input.handle = run->out.file.handle = -1;
    run->threads = config->num_threads ? config->num_threads : aq_thread_count(context);
    if (run->threads > AQ_MAX_THREADS) run->threads = AQ_MAX_THREADS;
    run->hard_limit = limit != 0;
    if (!limit)
        limit = config->enable_streaming ? AQ_MEMORY_LIMIT_STREAMING_MB : AQ_MEMORY_LIMIT_MB;
    run->memory_limit = limit > UINT64_MAX / 1000000 ? UINT64_MAX : limit * 1000000;
    run->chunk_blocks = config->enable_streaming ? 1 : AQ_CHUNK_BLOCKS;
    aq_crc32_init(&run->crc);
    uint64_t total = plan->state->other_bytes;
    for (size_t i = 0; i < plan->tensor_count; i++) total += plan->tensors[i].bytes;
    aq_meter_begin(&run->meter, progress, user, total);
    run->meter.phase = AQ_PHASE_QUANTIZE;
}

static aq_status aq_write_report(aq_plan *plan, aq_error *err) {
    struct aq_plan_state *state = plan->state;
    char *text, *path;
    size_t size;
    aq_status status = aq_plan_report(plan, &text, &size, err);
    if (status != AQ_OK) return status;
    path = aq_path_join(&state->arena, state->staging.folder, "arrowquant_report.json");
    status = path ? aq_write_text(path, text, size, err) : aq_fail_memory(err, 0);
    aq_free(state->context, text, size + 1);
    return status;
}

/* Notes that only the run can tell. */
static aq_status aq_run_notes(aq_plan *plan, aq_error *err) {
    struct aq_plan_state *state = plan->state;
    size_t raised = 0, kept = 0, f32 = 0, wide = 0;
    aq_status status = AQ_OK;
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const aq_plan_tensor *tensor = &plan->tensors[i];
        raised += tensor->reason == AQ_REASON_RAISED;
        kept += tensor->reason == AQ_REASON_KEPT_BY_GATE;
        f32 += tensor->bits < 16 && tensor->f32_params;
        wide += tensor->bits < 16 && tensor->wide_params;
    }
    if (raised)
        status = aq_note(&state->arena, &state->notes, err,
                         "%zu layers were raised to more bits to pass the gates", raised);
    if (status == AQ_OK && kept)
        status = aq_note(&state->arena, &state->notes, err,
                         "%zu layers were kept because they miss the gates even at 8 bits", kept);
    if (status == AQ_OK && f32)
        status = aq_note(&state->arena, &state->notes, err,
                         "%zu layers store F32 parameters: theirs do not fit F16", f32);
    if (status == AQ_OK && wide)
        status = aq_note(&state->arena, &state->notes, err,
                         "%zu layers store 16-bit parameters: theirs do not fit 8 bits (constant "
                         "groups)", wide);
    plan->notes = state->notes.items;
    plan->note_count = state->notes.count;
    for (size_t i = 0; i < plan->note_count && state->context && state->context->log; i++)
        state->context->log(state->context->log_user, AQ_LOG_WARNING, plan->notes[i]);
    return status;
}

/* What another process left half done makes room. */
static aq_status aq_run_output_again(aq_run *run, size_t output, aq_error *err) {
    aq_status status = AQ_OK;
    if (run->plan->state->shared) {
        char *path;
        status = aq_run_path(run, true, run->plan->outputs[output].path, &path, err);
        if (status == AQ_OK) status = aq_remove_tree(run->context, path, err);
    }
    return status == AQ_OK ? aq_run_output(run, output, err) : status;
}

AQ_LIB void aq_run_free(aq_run *run) {
    aq_free(run->context, run->buffer, run->buffer_bytes);
    aq_run_factor_free(run);
    aq_builder_free(&run->journal);
    aq_free(run->context, run->out.stored, run->out.stored_capacity * sizeof(aq_stored));
}

static aq_status aq_run_all(aq_run *run, aq_error *err) {
    aq_plan *plan = run->plan;
    size_t bytes = (plan->output_count + 1) * sizeof(size_t);
    run->output_ends = (size_t *)aq_arena_alloc(&plan->state->arena, bytes);
    if (!run->output_ends) return aq_fail_memory(err, bytes);
    aq_status status = aq_journal_begin(run, err);
    if (status == AQ_OK) status = aq_run_folders(run, err);
    for (size_t i = run->finished; status == AQ_OK && i < plan->output_count; i++) {
        if (!aq_journal_take_part(run, i)) status = aq_run_output_again(run, i, err);
        run->output_ends[i] = run->out.stored_count;
        if (status == AQ_OK) status = aq_journal_add(run, i, err);
    }
    if (status == AQ_OK) status = aq_run_component_files(run, err);
    if (status == AQ_OK) status = aq_run_others(run, err);
    if (status == AQ_OK) status = aq_run_notes(plan, err);
    if (status == AQ_OK) status = aq_journal_remove(run, err);
    if (status == AQ_OK && !plan->state->staging.only_file) status = aq_write_report(plan, err);
    /* for the caller alone: the report is the same as that of an undisturbed run */
    if (status == AQ_OK && plan->state->staging.resumed)
        status = aq_note(&plan->state->arena, &plan->state->notes, err,
                         run->finished ? "taken up: %zu of %zu files were finished"
                                       : "nothing to take up: %zu of %zu files fit plan and input",
                         run->finished, plan->output_count);
    plan->notes = plan->state->notes.items;
    plan->note_count = plan->state->notes.count;
    run->meter.done = run->meter.total;
    run->meter.phase = AQ_PHASE_COMMIT;
    run->meter.layer = "";
    return status == AQ_OK ? aq_meter_tell(&run->meter, 0, true, err) : status;
}

/* The temporary folder of a plan, once in its life. */
static aq_status aq_plan_stage(aq_context *context, aq_plan *plan, const char *output_path,
                               aq_error *err) {
    struct aq_plan_state *state = plan->state;
    const char *only_file = NULL;
    if (state->executed)
        return aq_fail(err, AQ_ERR_ARGUMENT, "%s: this plan has been executed; make another",
                       plan->model_path);
    state->executed = true;
    state->started = aq_clock_seconds();
    state->output_path = aq_arena_string(&state->arena, output_path);
    if (!state->output_path) return aq_fail_memory(err, strlen(output_path));
    aq_status status = aq_only_file(plan, output_path, &only_file, err);
    if (status != AQ_OK) return status;
    return aq_staging_begin(&state->staging, context, aq_plan_input(plan), output_path, only_file,
                            plan->config.overwrite, plan->config.resume, err);
}

ARROWQUANT_API aq_status aq_plan_begin(aq_context *context, aq_plan *plan, const char *output_path,
                                       const char **folder, aq_error *err) {
    if (!plan || !output_path || !folder)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_plan_begin: NULL");
    struct aq_plan_state *state = plan->state;
    aq_run run;
    aq_status status = aq_plan_stage(context, plan, output_path, err);
    if (status != AQ_OK) return status;
    aq_run_init(&run, context, plan, NULL, NULL);
    size_t bytes = (plan->output_count + 1) * sizeof(size_t);
    run.output_ends = (size_t *)aq_arena_alloc(&state->arena, bytes);
    status = run.output_ends ? aq_journal_begin(&run, err) : aq_fail_memory(err, bytes);
    if (status == AQ_OK) status = aq_run_folders(&run, err);
    aq_run_free(&run);
    if (status != AQ_OK) {
        aq_staging_end(&state->staging);
        return status;
    }
    state->shared = true;
    *folder = state->staging.folder;
    return AQ_OK;
}

ARROWQUANT_API aq_status aq_plan_execute_output(aq_context *context, aq_plan *plan,
                                                const char *folder, size_t output,
                                                aq_progress_fn progress, void *user,
                                                aq_error *err) {
    if (!plan || !folder) return aq_fail(err, AQ_ERR_ARGUMENT, "aq_plan_execute_output: NULL");
    struct aq_plan_state *state = plan->state;
    aq_run run;
    if (state->executed)
        return aq_fail(err, AQ_ERR_ARGUMENT, "%s: this plan has been executed; make another",
                       plan->model_path);
    if (output >= plan->output_count)
        return aq_fail(err, AQ_ERR_ARGUMENT, "%s: there is no output %zu; expected less than %zu",
                       plan->model_path, output, plan->output_count);
    state->executed = state->shared = true;
    aq_run_init(&run, context, plan, progress, user);
    run.meter.total = 0;
    for (size_t i = 0; i < plan->outputs[output].tensor_count; i++)
        run.meter.total += plan->tensors[plan->outputs[output].first_tensor + i].bytes;
    state->staging.folder = folder; /* borrowed: the one who began owns and removes it */
    aq_status status = aq_meter_tell(&run.meter, 0, true, err);
    if (status == AQ_OK) status = aq_journal_begin(&run, err);
    if (status == AQ_OK) status = aq_run_output_again(&run, output, err);
    if (status == AQ_OK) status = aq_journal_write_part(&run, output, err);
    state->staging.folder = NULL;
    aq_run_free(&run);
    return status;
}

ARROWQUANT_API aq_status aq_plan_execute(aq_context *context, aq_plan *plan,
                                         const char *output_path, aq_progress_fn progress,
                                         void *user, aq_error *err) {
    if (!plan || !output_path)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_plan_execute: plan and output_path must not be "
                       "NULL");
    struct aq_plan_state *state = plan->state;
    aq_run run;
    aq_status status = AQ_OK;
    if (!state->shared || !state->staging.folder)
        status = aq_plan_stage(context, plan, output_path, err);
    else if (strcmp(state->output_path, output_path) != 0)
        return aq_fail(err, AQ_ERR_ARGUMENT, "%s: this run was begun for another output, %s",
                       output_path, state->output_path);
    if (status != AQ_OK) return status;
    aq_run_init(&run, context, plan, progress, user);
    status = aq_meter_tell(&run.meter, 0, true, err);
    if (status == AQ_OK) status = aq_run_all(&run, err);
    aq_run_free(&run);
    if (status != AQ_OK) aq_staging_end(&state->staging);
    return status;
}

ARROWQUANT_API aq_status aq_plan_commit(aq_context *context, aq_plan *plan, aq_result *result,
                                        aq_error *err) {
    if (!plan || !plan->state->staging.folder)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_plan_commit: execute the plan first");
    struct aq_plan_state *state = plan->state;
    if (aq_is_cancelled(context)) return aq_fail(err, AQ_ERR_CANCELLED, "cancelled");
    aq_result made;
    memset(&made, 0, sizeof(made));
    aq_status status = AQ_OK;
    if (result) status = aq_plan_result(plan, &made, err); /* whatever can fail comes first */
    if (status == AQ_OK) status = aq_staging_commit(&state->staging, err);
    aq_staging_end(&state->staging);
    if (status != AQ_OK) {
        aq_result_free(&made);
        return status;
    }
    made.quantization_time_s = aq_clock_seconds() - state->started;
    if (result) *result = made;
    return AQ_OK;
}

ARROWQUANT_API aq_status aq_quantize_model(aq_context *context, const char *model_path,
                                           const char *output_path, const aq_config *config,
                                           aq_progress_fn progress, void *user, aq_result *result,
                                           aq_error *err) {
    aq_plan *plan = NULL;
    aq_status status = aq_plan_create(context, model_path, config, &plan, err);
    if (status == AQ_OK) status = aq_plan_execute(context, plan, output_path, progress, user, err);
    if (status == AQ_OK) status = aq_plan_commit(context, plan, result, err);
    aq_plan_destroy(plan);
    return status;
}

#undef AQ_MEMORY_LIMIT_MB
#undef AQ_MEMORY_LIMIT_STREAMING_MB
#undef AQ_CHUNK_BLOCKS
#endif /* ARROWQUANT_NO_STDIO */
