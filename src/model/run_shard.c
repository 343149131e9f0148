/* One output file of a run: space for the header, the tensors, at last the header itself. And what
 * lies beside the weights: index, config.json, the other files. */
#include "config_json.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

/* "folder/relative" of the input or the output, in the plan's arena */
static aq_status aq_run_path(aq_run *run, bool output, const char *relative, char **path,
                             aq_error *err) {
    struct aq_plan_state *state = run->plan->state;
    const char *folder = output ? state->staging.folder : state->folder.root;
    *path = aq_path_join(&state->arena, folder, relative);
    return *path ? AQ_OK : aq_fail_memory(err, strlen(relative));
}

/* In a folder that was taken up, what the earlier run left half done makes room. */
static aq_status aq_run_clear(aq_run *run, const char *path, aq_error *err) {
    if (!run->plan->state->staging.resumed) return AQ_OK;
    return aq_remove_tree(run->context, path, err);
}

/* Our metadata about what has been written to this shard. */
static aq_status aq_shard_metadata(aq_run *run, size_t shard, char **text, size_t *size,
                                   aq_error *err) {
    const aq_plan *plan = run->plan;
    const aq_plan_shard *input = &plan->shards[shard];
    const aq_shard_writer *out = &run->out;
    size_t count = out->stored_count - out->stored_first;
    aq_arena arena;
    aq_native native;
    aq_arena_init(&arena, run->context);
    memset(&native, 0, sizeof(native));
    native.tensors = (aq_native_tensor *)aq_arena_alloc(
        &arena, (input->tensor_count + 1) * sizeof(aq_native_tensor));
    native.checksums =
        (aq_native_checksum *)aq_arena_alloc(&arena, (count + 1) * sizeof(aq_native_checksum));
    aq_status status = AQ_OK;
    if (!native.tensors || !native.checksums) {
        status = aq_fail_memory(err, (count + 1) * sizeof(aq_native_checksum));
    } else {
        for (size_t i = 0; i < input->tensor_count; i++) {
            const aq_plan_tensor *tensor = &plan->tensors[input->first_tensor + i];
            if (tensor->bits < 16) aq_native_describe(tensor, &native.tensors[native.tensor_count++]);
        }
        for (size_t i = 0; i < count; i++) {
            native.checksums[i].name = out->stored[out->stored_first + i].output.name;
            native.checksums[i].crc32 = out->stored[out->stored_first + i].crc32;
        }
        native.checksum_count = count;
        status = aq_native_write(run->context, &native, input->metadata, text, size, err);
    }
    aq_arena_free(&arena);
    return status;
}

static aq_status aq_shard_finish(aq_run *run, size_t shard, aq_error *err) {
    const aq_shard_writer *out = &run->out;
    size_t count = out->stored_count - out->stored_first, size = 0;
    char *metadata = NULL;
    aq_status status = aq_shard_metadata(run, shard, &metadata, &size, err);
    if (status != AQ_OK) return status;
    size_t bytes = (count + 1) * sizeof(aq_st_output);
    aq_st_output *outputs = (aq_st_output *)aq_alloc(run->context, bytes);
    if (!outputs) {
        status = aq_fail_memory(err, bytes);
    } else {
        for (size_t i = 0; i < count; i++) outputs[i] = out->stored[out->stored_first + i].output;
        status = aq_st_write_header(run->context, &out->file, out->data_start - 8, outputs, count,
                                    metadata, err);
        aq_free(run->context, outputs, bytes);
    }
    aq_free(run->context, metadata, size + 1);
    if (status == AQ_OK)
        status = aq_file_truncate(&out->file, out->data_start + out->cursor, err);
    if (status == AQ_OK) status = aq_file_sync(&out->file, err);
    return status;
}

static aq_status aq_shard_tensors(aq_run *run, size_t shard, aq_error *err) {
    aq_plan *plan = run->plan;
    uint64_t header;
    size_t *order;
    aq_status status = aq_shard_header_bound(plan, shard, &header, err);
    if (status == AQ_OK) status = aq_shard_order(plan, shard, &order, err);
    run->out.data_start = 8 + header;
    run->out.cursor = 0;
    run->out.stored_first = run->out.stored_count;
    for (size_t i = 0; status == AQ_OK && i < plan->shards[shard].tensor_count; i++) {
        aq_plan_tensor *tensor = &plan->tensors[order[i]];
        tensor->output_offset = run->out.cursor;
        status = aq_run_tensor(run, tensor, err);
    }
    return status == AQ_OK ? aq_shard_finish(run, shard, err) : status;
}

AQ_LIB aq_status aq_run_shard(aq_run *run, size_t shard, aq_error *err) {
    const char *relative = run->plan->shards[shard].path;
    char *from, *to;
    uint64_t size;
    run->input.handle = run->out.file.handle = -1;
    aq_status status = aq_run_path(run, false, relative, &from, err);
    if (status == AQ_OK) status = aq_run_path(run, true, relative, &to, err);
    if (status == AQ_OK) status = aq_file_open(&run->input, from, &size, err);
    if (status == AQ_OK && size != run->plan->shards[shard].file_bytes)
        status = aq_fail(err, AQ_ERR_CORRUPT, "%s: has changed its size since the plan was made",
                         from);
    if (status == AQ_OK) status = aq_run_clear(run, to, err);
    if (status == AQ_OK) status = aq_file_create(&run->out.file, to, err);
    if (status == AQ_OK) status = aq_shard_tensors(run, shard, err);
    (void)aq_file_close(&run->input, NULL);
    if (status == AQ_OK) status = aq_file_close(&run->out.file, err);
    else (void)aq_file_close(&run->out.file, NULL);
    run->plan->state->output_bytes += run->out.data_start + run->out.cursor;
    return status;
}

/* ---- beside the weights */

static aq_status aq_write_quantization_config(aq_run *run, const aq_component *component,
                                              aq_error *err) {
    const aq_config *config = &run->plan->config;
    aq_arena *arena = &run->plan->state->arena;
    aq_builder value;
    char *from, *to, *text, *edited, *json;
    size_t size, edited_size, json_size;
    aq_builder_init(&value, run->context);
    aq_append_format(&value, "{\"quant_method\": \"arrowquant\", \"format_version\": %u, "
                     "\"bits\": %u, \"group_size\": %u, \"code\": \"%s\", \"parameter_bits\": %u, "
                     "\"modality\": \"%s\", \"min_accuracy\": ", (unsigned)AQ_NATIVE_VERSION,
                     config->bit_width, config->group_size,
                     aq_code_name(config->symmetric ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE),
                     config->parameter_bits, aq_modality_name(run->plan->modality));
    aq_append_json_double(&value, config->min_accuracy);
    aq_append_string(&value, ", \"min_sqnr_db\": ");
    aq_append_json_double(&value, config->min_sqnr_db);
    aq_append_string(&value, "}");
    aq_status status = aq_builder_finish(&value, &json, &json_size, err);
    if (status != AQ_OK) return status;
    status = aq_run_path(run, false, component->config, &from, err);
    if (status == AQ_OK) status = aq_run_path(run, true, component->config, &to, err);
    if (status == AQ_OK) status = aq_read_text(arena, from, (uint64_t)64 << 20, &text, &size, err);
    if (status == AQ_OK)
        status = aq_config_json_set(arena, text, size, from, "quantization_config", json, &edited,
                                    &edited_size, err);
    if (status == AQ_OK) status = aq_write_text(to, edited, edited_size, err);
    aq_free(run->context, json, json_size + 1);
    return status;
}

/* The index names what was stored; which shard holds it follows from the order of writing. */
static aq_status aq_write_component_index(aq_run *run, const aq_component *component,
                                          aq_error *err) {
    const struct aq_plan_state *state = run->plan->state;
    size_t bytes = (run->out.stored_count + 1) * sizeof(aq_st_index_output), count = 0, stored = 0;
    uint64_t total = 0;
    char *path;
    aq_status status = aq_run_path(run, true, component->index, &path, err);
    if (status != AQ_OK) return status;
    aq_st_index_output *entries = (aq_st_index_output *)aq_alloc(run->context, bytes);
    if (!entries) return aq_fail_memory(err, bytes);
    for (size_t s = 0; s < run->plan->shard_count; s++) {
        for (; stored < run->shard_ends[s]; stored++) {
            const aq_st_output *output = &run->out.stored[stored].output;
            if (state->shard_component[s] != component) continue;
            entries[count].tensor = output->name;
            entries[count++].shard = aq_path_base(run->plan->shards[s].path);
            total += output->end - output->begin;
        }
    }
    status = aq_st_write_index(run->context, path, entries, count, total,
                               component->index_data.metadata, err);
    aq_free(run->context, entries, bytes);
    return status;
}

AQ_LIB aq_status aq_run_component_files(aq_run *run, aq_error *err) {
    const aq_folder *folder = &run->plan->state->folder;
    aq_status status = AQ_OK;
    for (size_t c = 0; status == AQ_OK && c < folder->component_count; c++) {
        const aq_component *component = &folder->components[c];
        if (component->config) status = aq_write_quantization_config(run, component, err);
        if (status == AQ_OK && component->index)
            status = aq_write_component_index(run, component, err);
    }
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
        if (status == AQ_OK) status = aq_run_clear(run, to, err);
        if (status == AQ_OK) status = aq_copy_file(run->context, from, to, err);
        if (status == AQ_OK) status = aq_file_open(&file, to, &size, err);
        (void)aq_file_close(&file, NULL);
        run->meter.done += size;
    }
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
