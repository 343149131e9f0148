/* Arrow: each component becomes a table of layers in one IPC file. The component is written as the
 * native format first, in the temporary folder, and then turned into the table, whose batches need
 * what is known of a layer at its end; for a moment both are there. */
#include "../base/text.h"
#include "../quant/quant.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

static aq_status aq_table_check(aq_plan *plan, aq_error *err) {
    if (plan->config.method == AQ_METHOD_TRELLIS) return aq_refuse_trellis("the Arrow table", err);
    if (!plan->config.resume) return AQ_OK;
    return aq_fail(err, AQ_ERR_UNSUPPORTED, "resume: a run that writes Arrow cannot be taken up, because "
                   "its finished files go into the table at the end; leave it out");
}

/* ---- what the native format does */

static aq_status aq_table_spec(aq_plan *plan, const aq_plan_tensor *tensor, uint32_t bits,
                               aq_quant_spec *spec, const char **detail, aq_error *err) {
    aq_status status = aq_container_native()->spec(plan, tensor, bits, spec, detail, err);
    /* the table has columns for codes of equal steps */
    if (spec->code != AQ_CODE_AFFINE && spec->code != AQ_CODE_SYMMETRIC)
        *spec = aq_plan_spec(&plan->config, bits);
    return status;
}

static aq_status aq_table_parts(const aq_plan *plan, const aq_plan_tensor *tensor,
                                const aq_quant_spec *spec, const aq_quant_layout *layout,
                                aq_part *parts, size_t *count, aq_error *err) {
    return aq_container_native()->parts(plan, tensor, spec, layout, parts, count, err);
}

static aq_status aq_table_close(aq_run *run, const aq_plan_tensor *tensor, const aq_part *part,
                                size_t index, const unsigned char *rows, unsigned char *out,
                                aq_error *err) {
    return aq_container_native()->close(run, tensor, part, index, rows, out, err);
}

static aq_status aq_table_data_start(aq_plan *plan, size_t output, uint64_t *start, aq_error *err) {
    return aq_container_native()->data_start(plan, output, start, err);
}

static aq_status aq_table_finish(aq_run *run, size_t output, uint64_t *end, aq_error *err) {
    return aq_container_native()->finish(run, output, end, err);
}

/* ---- the table */

static bool aq_table_owns(const aq_plan *plan, size_t output, const aq_component *component) {
    return plan->state->shard_component[plan->outputs[output].first_shard] == component;
}

/* "transformer/x-00001-of-00002.safetensors" → "transformer/x.arrow"; a lone file that is to become the
 * output keeps its name until then. */
static char *aq_table_name(const aq_plan *plan, const char *shard) {
    size_t size = strlen(shard);
    if (plan->state->staging.only_file) return aq_arena_string(&plan->state->arena, shard);
    if (aq_ends_with(shard, ".safetensors")) size -= strlen(".safetensors");
    if (size > 15 && memcmp(shard + size - 15, "-00001-of-", 10) == 0) size -= 15;
    char *name = (char *)aq_arena_alloc(&plan->state->arena, size + 16);
    if (name) aq_format(name, size + 16, "%.*s.arrow", (int)size, shard);
    return name;
}

/* The table of the component's finished files, beside them under a name of its own. */
static aq_status aq_table_write(aq_run *run, const aq_component *component, size_t first,
                                const char *target, aq_error *err) {
    const aq_plan *plan = run->plan;
    bool lone = plan->state->folder.kind == AQ_FOLDER_FILE;
    struct ArrowArrayStream stream;
    aq_model *model = NULL;
    char *path;
    aq_status status =
        aq_run_path(run, true, lone ? plan->outputs[first].path : component->name, &path, err);
    if (status == AQ_OK) status = aq_model_open(run->context, path, &model, err);
    if (status == AQ_OK) {
        model->modality = plan->modality;
        status = aq_arrow_export_model(run->context, model, &stream, err);
        if (status != AQ_OK) aq_model_close(model);
    }
    if (status != AQ_OK) return status;
    status = aq_arrow_ipc_write(run->context, &stream, target, AQ_ARROW_FILE, err);
    stream.release(&stream);
    return status;
}

static aq_status aq_table_clear(aq_run *run, const aq_component *component, aq_error *err) {
    const aq_plan *plan = run->plan;
    aq_status status = AQ_OK;
    char *path;
    for (size_t i = 0; status == AQ_OK && i < plan->output_count; i++) {
        uint64_t size = 0;
        aq_file file = AQ_FILE_CLOSED;
        if (!aq_table_owns(plan, i, component)) continue;
        status = aq_run_path(run, true, plan->outputs[i].path, &path, err);
        if (status == AQ_OK) status = aq_file_open(&file, path, &size, err);
        (void)aq_file_close(&file, NULL);
        if (status == AQ_OK) status = aq_remove_tree(run->context, path, err);
        plan->state->output_bytes -= size;
    }
    if (status != AQ_OK || !component->index) return status;
    status = aq_run_path(run, true, component->index, &path, err);
    return status == AQ_OK ? aq_remove_tree(run->context, path, err) : status;
}

static aq_status aq_table_beside(aq_run *run, const aq_component *component, aq_error *err) {
    const aq_plan *plan = run->plan;
    char *table, *draft;
    uint64_t size = 0;
    aq_file file = AQ_FILE_CLOSED;
    size_t first = 0;
    while (first < plan->output_count && !aq_table_owns(plan, first, component)) first++;
    if (first == plan->output_count) return AQ_OK;
    char *name = aq_table_name(plan, plan->outputs[first].path);
    if (!name) return aq_fail_memory(err, 0);
    aq_status status = aq_run_path(run, true, name, &table, err);
    if (status == AQ_OK) status = aq_run_path(run, true, "table.arrow.draft", &draft, err);
    if (status == AQ_OK) status = aq_beside_index(run, component, err);
    if (status == AQ_OK) status = aq_table_write(run, component, first, draft, err);
    if (status == AQ_OK) status = aq_table_clear(run, component, err);
    if (status == AQ_OK) status = aq_rename(draft, table, AQ_RENAME_REPLACE, err);
    if (status == AQ_OK) status = aq_file_open(&file, table, &size, err);
    (void)aq_file_close(&file, NULL);
    plan->state->output_bytes += size;
    return status == AQ_OK ? aq_beside_config(run, component, NULL, err) : status;
}

static const aq_container aq_arrow_container = {
    AQ_OUTPUT_ARROW, ".arrow", true, 1, aq_table_check, NULL, NULL, aq_table_spec, NULL, NULL, aq_table_parts,
    NULL, aq_table_close, aq_native_order, aq_table_data_start, aq_table_finish, aq_table_beside
};

AQ_LIB const aq_container *aq_container_arrow(void) {
    return &aq_arrow_container;
}

#endif /* ARROWQUANT_NO_STDIO */
