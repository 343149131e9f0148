/* The journal of a run: after each finished shard, what became of its tensors. It lies in the
 * temporary folder, so that a run that was killed can be taken up where it was. The first line
 * names plan and input; one line a shard follows. Anything that does not fit is not believed, and
 * the shard is made again. */
#include "../base/json.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_JOURNAL_NAME ".aq-journal"
#define AQ_JOURNAL_PART ".aq-part-"
#define AQ_JOURNAL_LIMIT ((uint64_t)1 << 30)

/* Where an output that was made alone is told of. */
static aq_status aq_journal_part_path(aq_run *run, size_t output, char **path, aq_error *err) {
    struct aq_plan_state *state = run->plan->state;
    char name[48];
    aq_format(name, sizeof(name), AQ_JOURNAL_PART "%zu", output);
    *path = aq_path_join(&state->arena, state->staging.folder, name);
    return *path ? AQ_OK : aq_fail_memory(err, 0);
}

static aq_status aq_journal_path(aq_run *run, char **path, aq_error *err) {
    struct aq_plan_state *state = run->plan->state;
    *path = aq_path_join(&state->arena, state->staging.folder, AQ_JOURNAL_NAME);
    return *path ? AQ_OK : aq_fail_memory(err, 0);
}

/* Whatever decides the output's bytes: library, plan, gates, and the input files as they are. */
static aq_status aq_journal_first_line(aq_run *run, aq_builder *line, aq_error *err) {
    aq_plan *plan = run->plan;
    aq_arena *arena = &plan->state->arena;
    char *text;
    size_t size;
    aq_status status = aq_plan_to_json(run->context, plan, &text, &size, err);
    if (status != AQ_OK) return status;
    uint32_t crc = aq_crc32(&run->crc, 0, text, size);
    aq_free(run->context, text, size + 1);
    aq_append_format(line, "{\"arrowquant_journal\":1,\"version\":\"%s\",\"plan\":%u,\"gates\":[",
                     AQ_VERSION, (unsigned)crc);
    aq_append_json_double(line, plan->config.min_accuracy);
    aq_append_string(line, ",");
    aq_append_json_double(line, plan->config.min_sqnr_db);
    aq_append_format(line, ",%u],\"inputs\":[", plan->config.fail_fast ? 1u : 0u);
    for (size_t s = 0; s < plan->shard_count; s++) {
        char *path = aq_path_join(arena, plan->state->folder.root, plan->shards[s].path);
        if (!path) return aq_fail_memory(err, 0);
        aq_append_format(line, "%s[%llu,%llu]", s ? "," : "",
                         (unsigned long long)plan->shards[s].file_bytes,
                         (unsigned long long)aq_path_modified(path));
    }
    aq_append_string(line, "],\"calibration\":[");
    for (size_t i = 0; i < plan->config.calibration_count; i++) {
        const char *path = plan->config.calibration[i];
        uint64_t bytes = 0;
        aq_file file = AQ_FILE_CLOSED;
        status = aq_file_open(&file, path, &bytes, err);
        (void)aq_file_close(&file, NULL);
        if (status != AQ_OK) return status;
        aq_append_format(line, "%s[%llu,%llu]", i ? "," : "", (unsigned long long)bytes,
                         (unsigned long long)aq_path_modified(path));
    }
    aq_append_string(line, "]}\n");
    return AQ_OK;
}

/* ---- writing */

static void aq_journal_tensor(aq_builder *line, const aq_plan_tensor *tensor) {
    const double sums[] = { tensor->quality.dot, tensor->quality.original,
                            tensor->quality.quantized, tensor->quality.error,
                            tensor->quality.max_error, tensor->output_signal,
                            tensor->output_error };
    aq_append_format(line, "[%u,%u,%u,%u,%u,%u,%u,%llu,%llu,%llu", tensor->bits,
                     (unsigned)tensor->reason, (unsigned)tensor->spec.code,
                     (unsigned)tensor->spec.params, (unsigned)tensor->spec.rotation,
                     (unsigned)tensor->method,
                     (tensor->f32_params ? 1u : 0u) | (tensor->wide_params ? 2u : 0u),
                     (unsigned long long)tensor->output_offset,
                     (unsigned long long)tensor->output_bytes,
                     (unsigned long long)tensor->quality.count);
    for (size_t i = 0; i < sizeof(sums) / sizeof(sums[0]); i++) {
        aq_append_string(line, ",");
        aq_append_json_double(line, sums[i]);
    }
    aq_append_string(line, ",");
    aq_append_json_string(line, tensor->detail, strlen(tensor->detail));
    aq_append_string(line, ",");
    aq_append_json_string(line, tensor->method_detail, strlen(tensor->method_detail));
    aq_append_string(line, "]");
}

static void aq_journal_stored(aq_builder *line, const aq_stored *stored) {
    const aq_st_output *output = &stored->output;
    aq_append_string(line, "[");
    aq_append_json_string(line, output->name, strlen(output->name));
    aq_append_format(line, ",%u,%u,%llu]", (unsigned)output->dtype, (unsigned)stored->crc32,
                     (unsigned long long)(output->end - output->begin));
}

static void aq_journal_output(aq_run *run, size_t output) {
    const aq_plan *plan = run->plan;
    const aq_plan_output *file = &plan->outputs[output];
    const aq_shard_writer *out = &run->out;
    aq_builder *journal = &run->journal;
    aq_append_format(journal, "{\"shard\":%zu,\"bytes\":%llu,\"tensors\":[", output,
                     (unsigned long long)out->file_bytes);
    for (size_t i = 0; i < file->tensor_count; i++) {
        aq_append_string(journal, i ? "," : "");
        aq_journal_tensor(journal, &plan->tensors[file->first_tensor + i]);
    }
    aq_append_string(journal, "],\"stored\":[");
    for (size_t i = out->stored_first; i < out->stored_count; i++) {
        aq_append_string(journal, i > out->stored_first ? "," : "");
        aq_journal_stored(journal, &out->stored[i]);
    }
    aq_append_string(journal, "]}\n");
}

static aq_status aq_journal_write(aq_run *run, const char *path, aq_error *err) {
    const aq_builder *journal = &run->journal;
    if (journal->failed) return aq_fail_memory(err, journal->size);
    return aq_write_text(path, journal->data, journal->size, err);
}

AQ_LIB aq_status aq_journal_add(aq_run *run, size_t output, aq_error *err) {
    char *path;
    if (run->plan->output_count < 2) return AQ_OK; /* nothing could be taken up */
    aq_journal_output(run, output);
    aq_status status = aq_journal_path(run, &path, err);
    return status == AQ_OK ? aq_journal_write(run, path, err) : status;
}

AQ_LIB aq_status aq_journal_write_part(aq_run *run, size_t output, aq_error *err) {
    char *path;
    aq_journal_output(run, output);
    aq_status status = aq_journal_part_path(run, output, &path, err);
    return status == AQ_OK ? aq_journal_write(run, path, err) : status;
}

AQ_LIB aq_status aq_journal_remove(aq_run *run, aq_error *err) {
    char *path;
    size_t parts = run->plan->state->shared ? run->plan->output_count : 0;
    aq_status status = aq_journal_path(run, &path, err);
    if (status == AQ_OK) status = aq_remove_tree(run->context, path, err);
    for (size_t i = 0; status == AQ_OK && i < parts; i++) {
        status = aq_journal_part_path(run, i, &path, err);
        if (status == AQ_OK) status = aq_remove_tree(run->context, path, err);
    }
    return status;
}

/* ---- taking up */

static bool aq_journal_number(const aq_json_node **node, uint64_t most, uint64_t *out) {
    bool good = *node && aq_json_u64(*node, out) && *out <= most;
    if (good) *node = (*node)->next;
    return good;
}

static bool aq_journal_read_tensor(aq_arena *arena, uint32_t states, const aq_json_node *row,
                                   aq_plan_tensor *tensor) {
    const aq_json_node *node = row->first;
    uint64_t bits, reason, code, params, rotation, method, flags;
    aq_plan_tensor read = *tensor;
    double *sums[] = { &read.quality.dot, &read.quality.original, &read.quality.quantized,
                       &read.quality.error, &read.quality.max_error, &read.output_signal,
                       &read.output_error };
    if (!aq_journal_number(&node, 16, &bits) ||
        !aq_journal_number(&node, AQ_REASON_BUDGET, &reason) ||
        !aq_journal_number(&node, AQ_CODE_COUNT - 1, &code) ||
        !aq_journal_number(&node, AQ_PARAM_BF16, &params) ||
        !aq_journal_number(&node, UINT32_MAX, &rotation) ||
        !aq_journal_number(&node, AQ_METHOD_TRELLIS, &method) ||
        !aq_journal_number(&node, 3, &flags) ||
        !aq_journal_number(&node, UINT64_MAX, &read.output_offset) ||
        !aq_journal_number(&node, UINT64_MAX, &read.output_bytes) ||
        !aq_journal_number(&node, UINT64_MAX, &read.quality.count))
        return false;
    for (size_t i = 0; i < sizeof(sums) / sizeof(sums[0]); i++) {
        if (!node || !aq_json_double(node, sums[i])) return false;
        node = node->next;
    }
    const char *detail = node ? aq_json_string(node) : NULL;
    const char *why = detail && node->next ? aq_json_string(node->next) : NULL;
    if (!why || (bits != 16 && tensor->bits == 16)) return false;
    if (bits < 16) {
        read.spec.bits = (uint32_t)bits;
        read.spec.code = (aq_code)code;
        read.spec.params = (aq_param_type)params;
        read.spec.rotation = (uint32_t)rotation;
        read.spec.states = read.spec.code == AQ_CODE_TRELLIS ? states : 0;
    }
    read.bits = (uint32_t)bits;
    read.reason = (aq_reason)reason;
    read.f32_params = (flags & 1) != 0;
    read.wide_params = (flags & 2) != 0;
    read.method = (aq_method)method;
    read.detail = aq_arena_string(arena, detail);
    read.method_detail = aq_arena_string(arena, why);
    if (!read.detail || !read.method_detail) return false;
    *tensor = read;
    return true;
}

static bool aq_journal_read_stored(aq_run *run, const aq_json_node *rows) {
    run->out.cursor = 0;
    for (const aq_json_node *row = rows ? rows->first : NULL; row; row = row->next) {
        const aq_json_node *node = row->first;
        const char *name = node ? aq_json_string(node) : NULL;
        uint64_t dtype, crc, bytes;
        if (!name) return false;
        node = node->next;
        if (!aq_journal_number(&node, AQ_DTYPE_COUNT - 1, &dtype) ||
            !aq_journal_number(&node, UINT32_MAX, &crc) ||
            !aq_journal_number(&node, UINT64_MAX / 2, &bytes) ||
            aq_run_stored(run, name, "", (aq_dtype)dtype, 0, NULL, bytes, (uint32_t)crc, NULL) !=
                AQ_OK)
            return false;
    }
    return true;
}

/* One line: the file is there as it was left, and every tensor of the plan is told of. A line that
 * cannot be believed to its end changes nothing. */
static bool aq_journal_read_output(aq_run *run, size_t output, aq_arena *scratch,
                                   const aq_json_node *line) {
    aq_plan *plan = run->plan;
    aq_arena *arena = &plan->state->arena;
    const aq_plan_output *written = &plan->outputs[output];
    aq_plan_tensor *tensors = plan->tensors + written->first_tensor;
    const aq_json_node *rows = aq_json_get(line, "tensors");
    size_t size = written->tensor_count * sizeof(*tensors), i = 0;
    uint64_t number, bytes, found = 0;
    aq_file file = AQ_FILE_CLOSED;
    char *path = aq_path_join(arena, plan->state->staging.folder, written->path);
    aq_plan_tensor *read = (aq_plan_tensor *)aq_arena_alloc(scratch, size);
    if (!path || !read || !rows || rows->count != written->tensor_count ||
        !aq_json_u64(aq_json_get(line, "shard"), &number) || number != output ||
        !aq_json_u64(aq_json_get(line, "bytes"), &bytes))
        return false;
    if (aq_file_open(&file, path, &found, NULL) != AQ_OK) return false;
    (void)aq_file_close(&file, NULL);
    if (found != bytes) return false;
    if (size) memcpy(read, tensors, size);
    for (const aq_json_node *row = rows->first; row; row = row->next)
        if (!aq_journal_read_tensor(arena, plan->config.trellis_states, row, &read[i++])) return false;
    run->out.stored_first = run->out.stored_count;
    if (!aq_journal_read_stored(run, aq_json_get(line, "stored"))) {
        run->out.stored_count = run->out.stored_first;
        return false;
    }
    if (size) memcpy(tensors, read, size);
    for (i = 0; i < written->tensor_count; i++) run->meter.done += tensors[i].bytes;
    plan->state->output_bytes += bytes;
    return true;
}

/* Lines as long as they can be believed; *end: behind the last of them. */
static void aq_journal_read(aq_run *run, const char *text, size_t size, size_t first_line) {
    size_t begin = first_line;
    while (begin < size && run->finished < run->plan->output_count) {
        const char *stop = (const char *)memchr(text + begin, '\n', size - begin);
        aq_json_node *line;
        aq_arena arena;
        if (!stop) return;
        size_t length = (size_t)(stop - (text + begin)) + 1;
        aq_arena_init(&arena, run->context);
        bool good = aq_json_parse(&arena, text + begin, length, AQ_JOURNAL_NAME, AQ_ERR_CORRUPT,
                                  &line, NULL) == AQ_OK &&
                    aq_journal_read_output(run, run->finished, &arena, line);
        aq_arena_free(&arena);
        if (!good) return;
        aq_append(&run->journal, text + begin, length);
        run->output_ends[run->finished++] = run->out.stored_count;
        begin += length;
    }
}

/* Whether `path` in the output is a finished file, or a folder with one below it. */
static bool aq_journal_holds(const aq_run *run, const char *path) {
    size_t size = strlen(path);
    for (size_t i = 0; i < run->finished; i++) {
        const char *output = run->plan->outputs[i].path;
        if (strncmp(output, path, size) == 0 && (!output[size] || output[size] == '/')) return true;
    }
    return strcmp(path, AQ_JOURNAL_NAME) == 0;
}

/* The rest of what was taken up goes: half a shard, a text that was being written, files that the
 * input may have lost since. `folder`: below the output, "" for itself. */
static aq_status aq_journal_tidy(aq_run *run, const char *folder, aq_error *err) {
    struct aq_plan_state *state = run->plan->state;
    aq_arena *arena = &state->arena;
    aq_folder_entry *entries;
    size_t count;
    const char *path = *folder ? aq_path_join(arena, state->staging.folder, folder)
                               : state->staging.folder;
    if (!path) return aq_fail_memory(err, 0);
    aq_status status = aq_list_folder(arena, path, &entries, &count, err);
    for (size_t i = 0; status == AQ_OK && i < count; i++) {
        const char *name = entries[i].name;
        const char *relative = *folder ? aq_path_join(arena, folder, name) : name;
        char *full = aq_path_join(arena, path, name);
        if (!relative || !full) return aq_fail_memory(err, 0);
        if (!aq_journal_holds(run, relative)) status = aq_remove_tree(run->context, full, err);
        else if (entries[i].kind == AQ_PATH_FOLDER) status = aq_journal_tidy(run, relative, err);
    }
    return status;
}

static aq_status aq_journal_take_up(aq_run *run, aq_error *err) {
    struct aq_plan_state *state = run->plan->state;
    size_t first_line = run->journal.size, size;
    char *path, *text;
    aq_status status = aq_journal_path(run, &path, err);
    if (status != AQ_OK) return status;
    if (first_line && !run->journal.failed &&
        aq_read_text(&state->arena, path, AQ_JOURNAL_LIMIT, &text, &size, NULL) == AQ_OK &&
        size >= first_line && memcmp(text, run->journal.data, first_line) == 0)
        aq_journal_read(run, text, size, first_line);
    return run->plan->state->shared ? AQ_OK : aq_journal_tidy(run, "", err);
}

/* The record is the journal of a run that made this output alone. */
AQ_LIB bool aq_journal_take_part(aq_run *run, size_t output) {
    aq_arena arena;
    aq_json_node *line;
    char *path, *text;
    size_t size, head = run->first_line;
    bool taken = false;
    if (!run->plan->state->shared || aq_journal_part_path(run, output, &path, NULL) != AQ_OK)
        return false;
    aq_arena_init(&arena, run->context);
    if (aq_read_text(&arena, path, AQ_JOURNAL_LIMIT, &text, &size, NULL) == AQ_OK && size > head &&
        memcmp(text, run->journal.data, head) == 0 &&
        aq_json_parse(&arena, text + head, size - head, path, AQ_ERR_CORRUPT, &line, NULL) == AQ_OK)
        taken = aq_journal_read_output(run, output, &arena, line);
    aq_arena_free(&arena);
    return taken;
}

AQ_LIB aq_status aq_journal_begin(aq_run *run, aq_error *err) {
    aq_status status = AQ_OK;
    aq_builder_init(&run->journal, run->context);
    if (run->plan->output_count > 1 || run->plan->state->shared)
        status = aq_journal_first_line(run, &run->journal, err);
    run->first_line = run->journal.size;
    if (status == AQ_OK && run->plan->state->staging.resumed) status = aq_journal_take_up(run, err);
    if (status == AQ_OK && run->journal.failed) status = aq_fail_memory(err, run->journal.size);
    return status;
}

#undef AQ_JOURNAL_NAME
#undef AQ_JOURNAL_PART
#undef AQ_JOURNAL_LIMIT
#endif /* ARROWQUANT_NO_STDIO */
