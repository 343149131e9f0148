/* aq_convert_model: the same weights in another format, or a refusal that names the layer. */
#include "convert.h"

#include "../base/crc32.h"
#include "../base/text.h"
#include "../quant/quant.h"
#include "config_json.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

typedef struct aq_convert_run {
    const aq_context *context;
    aq_model *model;
    aq_output_format format;
    aq_staging staging;
    aq_meter meter;
    aq_arena arena; /* of the whole run: names and paths */
    aq_st_index_output *names;
    size_t name_count;
    uint64_t total; /* bytes of all tensors */
    aq_file file;
    aq_crc32_tables crc;
} aq_convert_run;

/* A shard's parts, while it is written. */
typedef struct aq_convert_shard {
    aq_arena arena;
    aq_converted_part *parts;
    aq_st_output *outputs;
    size_t count, native_count;
    aq_native_tensor *native;
} aq_convert_shard;

static aq_status aq_convert_path(aq_convert_run *run, bool output, const char *relative,
                                 char **path, aq_error *err) {
    const char *root = output ? run->staging.folder : run->model->state->folder.root;
    *path = aq_path_join(&run->arena, root, relative);
    return *path ? AQ_OK : aq_fail_memory(err, strlen(relative));
}

/* ---- one file */

static aq_status aq_convert_collect(aq_convert_run *run, size_t number, aq_convert_shard *shard,
                                    aq_error *err) {
    const aq_model *model = run->model;
    const aq_json_node *config = model->state->shards[number].component->config_json;
    size_t most = model->tensor_count * AQ_CONVERT_PARTS + 1;
    aq_status status = AQ_OK;
    shard->parts = (aq_converted_part *)aq_arena_alloc(&shard->arena, most * sizeof(*shard->parts));
    shard->outputs = (aq_st_output *)aq_arena_alloc(&shard->arena, most * sizeof(*shard->outputs));
    shard->native = (aq_native_tensor *)aq_arena_alloc(&shard->arena, most * sizeof(*shard->native));
    if (!shard->parts || !shard->outputs || !shard->native)
        return aq_fail_memory(err, most * sizeof(*shard->parts));
    for (size_t i = 0; status == AQ_OK && i < model->tensor_count; i++) {
        const aq_tensor *tensor = &model->tensors[i];
        const char *name = model->state->tensor_own_name[i];
        aq_converted_part *part = &shard->parts[shard->count];
        size_t count = 1;
        if (model->state->tensor_shard[i] != number) continue;
        if (tensor->quantized) {
            status = aq_convert_layer(&shard->arena, tensor, name, run->format,
                                      aq_ct_scale_dtype(config, tensor->dtype), part, &count,
                                      &shard->native[shard->native_count++], err);
        } else {
            part->name = name;
            part->dtype = tensor->dtype;
            part->rank = tensor->rank;
            part->shape = tensor->shape;
            part->data = tensor->data;
            part->bytes = tensor->bytes;
        }
        shard->count += count;
    }
    return status;
}

/* Large elements first, so that every tensor is aligned. */
static void aq_convert_order(aq_convert_shard *shard, aq_converted_part *sorted) {
    size_t at = 0;
    uint64_t begin = 0;
    for (size_t size = 8; size; size /= 2)
        for (size_t i = 0; i < shard->count; i++)
            if (aq_dtype_size(shard->parts[i].dtype) == size) sorted[at++] = shard->parts[i];
    for (size_t i = 0; i < shard->count; i++) {
        aq_st_output *output = &shard->outputs[i];
        shard->parts[i] = sorted[i];
        output->name = sorted[i].name;
        output->dtype = sorted[i].dtype;
        output->rank = sorted[i].rank;
        output->shape = sorted[i].shape;
        output->begin = begin;
        output->end = begin += sorted[i].bytes;
    }
}

/* The JSON object of __metadata__, freed with aq_free(size + 1). */
static aq_status aq_convert_metadata(const aq_convert_run *run, const aq_convert_shard *shard,
                                     const char *original, char **text, size_t *size,
                                     aq_error *err) {
    aq_native native;
    aq_builder plain;
    aq_status status;
    if (run->format == AQ_OUTPUT_NATIVE) {
        memset(&native, 0, sizeof(native));
        native.tensors = shard->native;
        native.tensor_count = shard->native_count;
        native.checksums = (aq_native_checksum *)aq_alloc(
            run->context, (shard->count + 1) * sizeof(aq_native_checksum));
        if (!native.checksums) return aq_fail_memory(err, shard->count);
        native.checksum_count = shard->count;
        for (size_t i = 0; i < shard->count; i++) {
            native.checksums[i].name = shard->parts[i].name;
            native.checksums[i].crc32 =
                aq_crc32(&run->crc, 0, shard->parts[i].data, (size_t)shard->parts[i].bytes);
        }
        status = aq_native_write(run->context, &native, original, text, size, err);
        aq_free(run->context, native.checksums, (shard->count + 1) * sizeof(aq_native_checksum));
        return status;
    }
    status = aq_native_remove(run->context, original, text, size, err);
    if (status != AQ_OK || *text) return status;
    aq_builder_init(&plain, run->context);
    aq_append_string(&plain, "{\"format\":\"pt\"}");
    return aq_builder_finish(&plain, text, size, err);
}

static aq_status aq_convert_data(aq_convert_run *run, const aq_convert_shard *shard,
                                 uint64_t start, aq_error *err) {
    const size_t most = (size_t)8 << 20;
    aq_status status = AQ_OK;
    for (size_t i = 0; status == AQ_OK && i < shard->count; i++) {
        const aq_converted_part *part = &shard->parts[i];
        for (uint64_t done = 0; status == AQ_OK && done < part->bytes;) {
            uint64_t left = part->bytes - done;
            size_t size = left < most ? (size_t)left : most;
            status = aq_file_write(&run->file, start + shard->outputs[i].begin + done,
                                   (const unsigned char *)part->data + (size_t)done, size, err);
            done += size;
            run->meter.done += size;
            if (status == AQ_OK) status = aq_meter_tell(&run->meter, 0, false, err);
            if (status == AQ_OK && aq_is_cancelled(run->context))
                status = aq_fail(err, AQ_ERR_CANCELLED, "cancelled");
        }
    }
    return status;
}

/* A GGUF file becomes safetensors. */
static aq_status aq_convert_name(aq_arena *arena, const aq_model_shard *shard, const char **out,
                                 aq_error *err) {
    size_t size = strlen(shard->path) - (shard->is_gguf ? strlen(".gguf") : 0);
    char *path = (char *)aq_arena_alloc(arena, size + sizeof(".safetensors"));
    if (!path) return aq_fail_memory(err, size);
    memcpy(path, shard->path, size);
    if (shard->is_gguf) memcpy(path + size, ".safetensors", sizeof(".safetensors"));
    *out = path;
    return AQ_OK;
}

static aq_status aq_convert_write(aq_convert_run *run, const aq_convert_shard *shard,
                                  const aq_model_shard *from, aq_error *err) {
    char *metadata = NULL, *path = NULL;
    size_t size = 0;
    uint64_t header = 0;
    aq_status status = aq_convert_metadata(run, shard, from->file->metadata, &metadata, &size, err);
    const char *name = NULL;
    if (status == AQ_OK) status = aq_convert_name(&run->arena, from, &name, err);
    if (status == AQ_OK) status = aq_convert_path(run, true, name, &path, err);
    if (status == AQ_OK)
        status = aq_st_header_size(run->context, shard->outputs, shard->count, metadata, &header,
                                   err);
    if (status == AQ_OK) status = aq_file_create(&run->file, path, err);
    if (status == AQ_OK) {
        status = aq_st_write_header(run->context, &run->file, header, shard->outputs, shard->count,
                                    metadata, err);
        if (status == AQ_OK) status = aq_convert_data(run, shard, 8 + header, err);
        if (status == AQ_OK) status = aq_file_sync(&run->file, err);
        aq_status closed = aq_file_close(&run->file, status == AQ_OK ? err : NULL);
        if (status == AQ_OK) status = closed;
    }
    if (metadata) aq_free(run->context, metadata, size + 1);
    return status;
}

static aq_status aq_convert_file(aq_convert_run *run, size_t number, aq_error *err) {
    const aq_model_shard *from = &run->model->state->shards[number];
    aq_convert_shard shard;
    memset(&shard, 0, sizeof(shard));
    aq_arena_init(&shard.arena, run->context);
    aq_status status = aq_convert_collect(run, number, &shard, err);
    aq_converted_part *sorted = (aq_converted_part *)aq_arena_alloc(
        &shard.arena, (shard.count + 1) * sizeof(aq_converted_part));
    if (status == AQ_OK && !sorted) status = aq_fail_memory(err, shard.count * sizeof(*sorted));
    if (status == AQ_OK) {
        aq_convert_order(&shard, sorted);
        status = aq_convert_write(run, &shard, from, err);
    }
    for (size_t i = 0; status == AQ_OK && i < shard.count; i++) {
        run->names[run->name_count].tensor = aq_arena_string(&run->arena, shard.parts[i].name);
        if (!run->names[run->name_count].tensor) status = aq_fail_memory(err, 0);
        run->names[run->name_count++].shard = aq_path_base(from->path);
        run->total += shard.parts[i].bytes;
    }
    aq_arena_free(&shard.arena);
    return status;
}

/* ---- beside the weights */

static bool aq_convert_belongs(const aq_convert_run *run, size_t index,
                               const aq_component *component) {
    const struct aq_model_state *state = run->model->state;
    return state->shards[state->tensor_shard[index]].component == component;
}

static void aq_convert_module(aq_builder *json, const char *name, bool *first) {
    if (!*first) aq_append_string(json, ", ");
    *first = false;
    aq_append_json_string(json, name, strlen(name) - strlen(".weight"));
}

/* Every kind of layer is a group that names its layers. */
static void aq_convert_groups(aq_builder *json, const aq_convert_run *run,
                              const aq_component *component) {
    static const uint32_t sizes[] = { 32, 64, 128, 256 };
    const aq_model *model = run->model;
    unsigned number = 0;
    for (unsigned kind = 0; kind < 24; kind++) {
        uint32_t bits = 2u << kind % 3, size = sizes[kind / 3 % 4];
        bool symmetric = kind >= 12, first = true;
        for (size_t i = 0; i < model->tensor_count; i++) {
            aq_quant_spec spec = aq_convert_spec(&model->tensors[i]);
            if (!model->tensors[i].quantized || !aq_convert_belongs(run, i, component) ||
                spec.bits != bits || spec.group_size != size ||
                (spec.code == AQ_CODE_SYMMETRIC) != symmetric)
                continue;
            if (first)
                aq_append_format(json, "%s\"group_%u\": {\"targets\": [", number ? ", " : "", number);
            aq_convert_module(json, model->state->tensor_own_name[i], &first);
        }
        if (first) continue;
        number++;
        aq_append_format(json, "], \"weights\": {\"num_bits\": %u, \"type\": \"int\", \"symmetric\": "
                         "%s, \"strategy\": \"group\", \"group_size\": %u, \"dynamic\": false}}", bits,
                         symmetric ? "true" : "false", size);
    }
}

static aq_status aq_convert_quantization(aq_convert_run *run, const aq_component *component,
                                         char **text, size_t *size, aq_error *err) {
    const aq_model *model = run->model;
    bool first = true;
    aq_builder json;
    aq_builder_init(&json, run->context);
    if (run->format == AQ_OUTPUT_NATIVE) {
        aq_append_format(&json, "{\"quant_method\": \"arrowquant\", \"format_version\": %u, "
                         "\"modality\": \"%s\"}", (unsigned)AQ_NATIVE_VERSION,
                         aq_modality_name(model->modality));
        return aq_builder_finish(&json, text, size, err);
    }
    aq_append_string(&json, "{\"quant_method\": \"compressed-tensors\", \"format\": "
                     "\"pack-quantized\", \"quantization_status\": \"compressed\", "
                     "\"config_groups\": {");
    aq_convert_groups(&json, run, component);
    aq_append_string(&json, "}, \"ignore\": [");
    for (size_t i = 0; i < model->tensor_count; i++) {
        const char *name = model->state->tensor_own_name[i];
        if (!model->tensors[i].quantized && model->tensors[i].rank == 2 &&
            aq_ends_with(name, ".weight") && aq_convert_belongs(run, i, component))
            aq_convert_module(&json, name, &first);
    }
    aq_append_string(&json, "]}");
    return aq_builder_finish(&json, text, size, err);
}

static aq_status aq_convert_config(aq_convert_run *run, const aq_component *component,
                                   aq_error *err) {
    char *from, *to, *text, *edited, *json = NULL;
    size_t size, edited_size, json_size = 0;
    aq_status status = aq_convert_path(run, false, component->config, &from, err);
    if (status == AQ_OK) status = aq_convert_path(run, true, component->config, &to, err);
    if (status == AQ_OK)
        status = aq_read_text(&run->arena, from, (uint64_t)64 << 20, &text, &size, err);
    if (status == AQ_OK) status = aq_convert_quantization(run, component, &json, &json_size, err);
    if (status == AQ_OK)
        status = aq_config_json_set(&run->arena, text, size, from, "quantization_config", json,
                                    &edited, &edited_size, err);
    if (status == AQ_OK) status = aq_write_text(to, edited, edited_size, err);
    if (json) aq_free(run->context, json, json_size + 1);
    return status;
}

static aq_status aq_convert_beside(aq_convert_run *run, aq_error *err) {
    const aq_folder *folder = &run->model->state->folder;
    aq_status status = AQ_OK;
    char *from, *to;
    for (size_t c = 0; status == AQ_OK && c < folder->component_count; c++) {
        const aq_component *component = &folder->components[c];
        if (component->config) status = aq_convert_config(run, component, err);
        if (status != AQ_OK || !component->index) continue;
        status = aq_convert_path(run, true, component->index, &to, err);
        if (status == AQ_OK)
            status = aq_st_write_index(run->context, to, run->names, run->name_count, run->total,
                                       component->index_data.metadata, err);
    }
    for (size_t i = 0; status == AQ_OK && i < folder->other_count; i++) {
        status = aq_convert_path(run, false, folder->others[i], &from, err);
        if (status == AQ_OK) status = aq_convert_path(run, true, folder->others[i], &to, err);
        if (status == AQ_OK) status = aq_copy_file(run->context, from, to, err);
    }
    return status;
}

static aq_status aq_convert_all(aq_convert_run *run, aq_error *err) {
    const struct aq_model_state *state = run->model->state;
    size_t most = run->model->tensor_count * AQ_CONVERT_PARTS + 1;
    aq_status status = AQ_OK;
    run->names = (aq_st_index_output *)aq_arena_alloc(&run->arena, most * sizeof(*run->names));
    if (!run->names) return aq_fail_memory(err, most * sizeof(*run->names));
    for (size_t i = 0; status == AQ_OK && i < state->folder.subfolder_count; i++) {
        char *path;
        status = aq_convert_path(run, true, state->folder.subfolders[i], &path, err);
        if (status == AQ_OK) status = aq_make_folder(path, err);
    }
    for (size_t s = 0; status == AQ_OK && s < state->shard_count; s++)
        status = aq_convert_file(run, s, err);
    return status == AQ_OK ? aq_convert_beside(run, err) : status;
}

/* ---- the whole */

static aq_status aq_convert_to_arrow(aq_context *context, aq_model *model, const char *output_path,
                                     bool overwrite, aq_error *err) {
    struct ArrowArrayStream stream;
    aq_path_kind there = aq_path_kind_of(output_path);
    aq_status status = AQ_OK;
    if (there != AQ_PATH_NONE && (!overwrite || there != AQ_PATH_FILE))
        status = aq_fail(err, AQ_ERR_EXISTS, "%s: exists already%s", output_path,
                         there == AQ_PATH_FILE ? "" : ", and is not a file");
    if (status == AQ_OK) status = aq_arrow_export_model(context, model, &stream, err);
    if (status != AQ_OK) {
        aq_model_close(model);
        return status;
    }
    status = aq_arrow_ipc_write(context, &stream, output_path, AQ_ARROW_FILE, err);
    stream.release(&stream);
    return status;
}

static aq_status aq_convert_check(const aq_model *model, aq_output_format format,
                                  const char *input_path, aq_error *err) {
    size_t components = model->state->folder.component_count;
    for (size_t i = 0; format == AQ_OUTPUT_ARROW && i < model->tensor_count; i++)
        if (model->tensors[i].quantized && !aq_convert_has_steps(model->tensors[i].spec.code))
            return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, model->tensors[i].name, 0, "%s: layer %s: the "
                                  "table of layers has no columns for its code %s; quantize the "
                                  "original for it instead", input_path, model->tensors[i].name,
                                  model->tensors[i].code_name);
    if (!model->quantized && format != AQ_OUTPUT_ARROW)
        return aq_fail(err, AQ_ERR_METADATA, "%s: has no quantized layers; quantize it with --format",
                       input_path);
    if (format == AQ_OUTPUT_COMPRESSED_TENSORS && !model->state->folder.components[0].config)
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: has no config.json, without which no program "
                       "knows weights as compressed-tensors", input_path);
    if (format != AQ_OUTPUT_ARROW && components > 1)
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: has %zu quantized components; convert them one "
                       "by one", input_path, components);
    return AQ_OK;
}

static aq_status aq_convert_folder(aq_context *context, aq_model *model, const char *input_path,
                                   const char *output_path, aq_output_format format, bool overwrite,
                                   aq_progress_fn progress, void *user, aq_error *err) {
    bool is_file = model->state->folder.kind == AQ_FOLDER_FILE;
    const char *only_file = NULL;
    aq_convert_run run;
    memset(&run, 0, sizeof(run));
    run.context = context;
    run.model = model;
    run.format = format;
    run.file.handle = run.staging.lock.handle = -1;
    aq_crc32_init(&run.crc);
    aq_arena_init(&run.arena, context);
    aq_meter_begin(&run.meter, progress, user, model->weight_bytes);
    run.meter.phase = AQ_PHASE_COPY;
    run.meter.layer = "";
    aq_status status = AQ_OK;
    if (is_file && aq_ends_with(output_path, ".safetensors"))
        status = aq_convert_name(&run.arena, &model->state->shards[0], &only_file, err);
    if (status == AQ_OK)
        status = aq_staging_begin(&run.staging, context,
                                        is_file ? input_path : model->state->folder.root,
                                        output_path, only_file, overwrite, false, err);
    if (status == AQ_OK) status = aq_convert_all(&run, err);
    if (status == AQ_OK) status = aq_staging_commit(&run.staging, err);
    aq_staging_end(&run.staging);
    aq_arena_free(&run.arena);
    return status;
}

ARROWQUANT_API aq_status aq_convert_model(aq_context *context, const char *input_path,
                                          const char *output_path, aq_output_format format,
                                          bool overwrite, aq_progress_fn progress, void *user,
                                          aq_error *err) {
    aq_model *model = NULL;
    if (!input_path || !output_path)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_convert_model: the paths must not be NULL");
    aq_status status = aq_model_open(context, input_path, &model, err);
    if (status != AQ_OK) return status;
    status = aq_convert_check(model, format, input_path, err);
    if (status == AQ_OK && format == AQ_OUTPUT_GGUF) {
        status = aq_convert_to_gguf(model, input_path, output_path, overwrite, err);
        aq_model_close(model);
        return status;
    }
    if (status == AQ_OK && format == AQ_OUTPUT_ARROW)
        return aq_convert_to_arrow(context, model, output_path, overwrite, err);
    if (status == AQ_OK)
        status = aq_convert_folder(context, model, input_path, output_path, format, overwrite,
                                   progress, user, err);
    aq_model_close(model);
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
