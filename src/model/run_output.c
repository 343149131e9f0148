/* One output file of a run: space for the header, the tensors, at last what the container writes. And
 * what lies beside the weights. */
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

/* "folder/relative" of the input or the output, in the plan's arena */
AQ_LIB aq_status aq_run_path(aq_run *run, bool output, const char *relative, char **path,
                             aq_error *err) {
    struct aq_plan_state *state = run->plan->state;
    const char *folder = output ? state->staging.folder : state->folder.root;
    *path = aq_path_join(&state->arena, folder, relative);
    return *path ? AQ_OK : aq_fail_memory(err, strlen(relative));
}

AQ_LIB aq_status aq_run_input(aq_run *run, uint32_t shard, aq_error *err) {
    char *path;
    uint64_t size = 0;
    if (run->input.handle != -1 && run->input_shard == shard) return AQ_OK;
    (void)aq_file_close(&run->input, NULL);
    aq_status status = aq_run_path(run, false, run->plan->shards[shard].path, &path, err);
    if (status == AQ_OK) status = aq_file_open(&run->input, path, &size, err);
    if (status != AQ_OK) return status;
    run->input_shard = shard;
    if (size == run->plan->shards[shard].file_bytes) return AQ_OK;
    return aq_fail(err, AQ_ERR_CORRUPT, "%s: has changed its size since the plan was made", path);
}

/* Zeros up to the next multiple of the container's alignment. */
static aq_status aq_run_align(aq_run *run, aq_error *err) {
    static const unsigned char zeros[64] = { 0 };
    aq_shard_writer *out = &run->out;
    uint64_t end = aq_container_align(run->plan->state->container, out->cursor);
    aq_status status = AQ_OK;
    while (status == AQ_OK && out->cursor < end) {
        uint64_t left = end - out->cursor;
        size_t size = left < sizeof(zeros) ? (size_t)left : sizeof(zeros);
        status = aq_file_write(&out->file, out->data_start + out->cursor, zeros, size, err);
        out->cursor += size;
    }
    return status;
}

/* How many tensors from order[first] on are stored as one. */
static size_t aq_stack_length(const aq_plan *plan, const size_t *order, size_t count,
                              size_t first) {
    size_t end = first + 1, leader = plan->tensors[order[first]].output_leader;
    while (end < count && plan->tensors[order[end]].output_leader == leader) end++;
    return end - first;
}

static aq_status aq_run_stack(aq_run *run, const size_t *stack, size_t count, aq_error *err) {
    aq_plan *plan = run->plan;
    uint64_t cursor = run->out.cursor, done = run->meter.done;
    size_t stored = run->out.stored_count;
    bool level = false;
    aq_status status = AQ_OK;
    while (status == AQ_OK && !level) {
        run->out.cursor = cursor;
        run->out.stored_count = stored;
        run->meter.done = done;
        for (size_t i = 0; status == AQ_OK && i < count; i++) {
            aq_plan_tensor *tensor = &plan->tensors[stack[i]];
            tensor->output_offset = run->out.cursor;
            status = aq_run_input(run, tensor->shard, err);
            if (status == AQ_OK) status = aq_run_tensor(run, tensor, err);
        }
        level = count == 1;
        if (status == AQ_OK && !level) status = aq_stack_level(plan, stack, count, &level, err);
    }
    return status;
}

static aq_status aq_output_tensors(aq_run *run, size_t output, aq_error *err) {
    aq_plan *plan = run->plan;
    const aq_container *container = plan->state->container;
    uint64_t end = 0, begun = 0; /* begun: so much is on its way to the device */
    size_t *order;
    aq_status status = container->data_start(plan, output, &run->out.data_start, err);
    if (status == AQ_OK) status = aq_output_order(plan, output, &order, err);
    run->out.cursor = 0;
    run->out.stored_first = run->out.stored_count;
    for (size_t i = 0, count; status == AQ_OK && i < plan->outputs[output].tensor_count; i += count) {
        count = aq_stack_length(plan, order, plan->outputs[output].tensor_count, i);
        status = aq_run_stack(run, order + i, count, err);
        if (status == AQ_OK) status = aq_run_align(run, err);
        if (status == AQ_OK && run->out.cursor - begun >= AQ_WRITEBACK_BYTES) {
            aq_file_begin_sync(&run->out.file, run->out.data_start + begun,
                               run->out.cursor - begun);
            begun = run->out.cursor;
        }
    }
    if (status != AQ_OK) return status;
    end = run->out.data_start + run->out.cursor;
    status = container->finish(run, output, &end, err);
    if (status == AQ_OK) status = aq_file_truncate(&run->out.file, end, err);
    if (status == AQ_OK) status = aq_file_sync(&run->out.file, err);
    run->out.file_bytes = end;
    return status;
}

AQ_LIB aq_status aq_run_output(aq_run *run, size_t output, aq_error *err) {
    char *to;
    run->input.handle = run->out.file.handle = -1;
    aq_status status = aq_run_path(run, true, run->plan->outputs[output].path, &to, err);
    if (status == AQ_OK)
        status = aq_run_input(run, (uint32_t)run->plan->outputs[output].first_shard, err);
    if (status == AQ_OK) status = aq_file_create(&run->out.file, to, err);
    if (status == AQ_OK) status = aq_output_tensors(run, output, err);
    (void)aq_file_close(&run->input, NULL);
    if (status == AQ_OK) status = aq_file_close(&run->out.file, err);
    else (void)aq_file_close(&run->out.file, NULL);
    run->plan->state->output_bytes += run->out.file_bytes;
    return status;
}

/* ---- beside the weights */

AQ_LIB aq_status aq_run_component_files(aq_run *run, aq_error *err) {
    const struct aq_plan_state *state = run->plan->state;
    aq_status status = AQ_OK;
    for (size_t c = 0; status == AQ_OK && c < state->folder.component_count; c++)
        status = state->container->beside(run, &state->folder.components[c], err);
    return status;
}

AQ_LIB aq_status aq_run_folders(aq_run *run, aq_error *err) {
    const aq_folder *folder = &run->plan->state->folder;
    aq_status status = AQ_OK;
    for (size_t i = 0; status == AQ_OK && i < folder->subfolder_count; i++) {
        char *path;
        status = aq_run_path(run, true, folder->subfolders[i], &path, err);
        if (status == AQ_OK && aq_path_kind_of(path) != AQ_PATH_FOLDER)
            status = aq_make_folder(path, err);
    }
    return status;
}

AQ_LIB aq_status aq_run_others(aq_run *run, aq_error *err) {
    const aq_folder *folder = &run->plan->state->folder;
    aq_status status = AQ_OK;
    run->meter.phase = AQ_PHASE_COPY;
    for (size_t i = 0; status == AQ_OK && i < folder->other_count; i++) {
        char *from, *to;
        uint64_t size = 0;
        aq_file file = AQ_FILE_CLOSED;
        run->meter.layer = folder->others[i];
        status = aq_meter_tell(&run->meter, 0, i == 0, err);
        if (status == AQ_OK) status = aq_run_path(run, false, folder->others[i], &from, err);
        if (status == AQ_OK) status = aq_run_path(run, true, folder->others[i], &to, err);
            if (status == AQ_OK) status = aq_copy_file(run->context, from, to, err);
        if (status == AQ_OK) status = aq_file_open(&file, to, &size, err);
        (void)aq_file_close(&file, NULL);
        run->meter.done += size;
    }
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
