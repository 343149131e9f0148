/* A quantized model becomes plain safetensors again: same folder, same shards, original names. */
#include "../base/thread.h"
#include "../quant/quant.h"
#include "config_json.h"
#include "open.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

typedef struct aq_plain_run {
    aq_context *context;
    const aq_model *model;
    aq_dtype dtype;
    aq_staging staging;
    aq_meter meter;
    aq_arena arena; /* paths and lists */
    uint32_t threads;
    float *values;           /* workers × buffer_elements */
    unsigned char *results;  /* workers × buffer_elements × 4 */
    bool *folded;            /* of each tensor: the scale of a kept FP8 weight, not written */
    size_t buffer_elements;
    aq_st_output *outputs;   /* of the shard at work */
    size_t *sources;         /* indices of their tensors */
    aq_st_index_output *names; /* of all shards */
    size_t name_count;
    aq_file file;
} aq_plain_run;

static aq_dtype aq_plain_dtype(const aq_plain_run *run, const aq_tensor *tensor) {
    if (tensor->quantized) return run->dtype;
    return aq_dtype_is_float(tensor->dtype) ? run->dtype : tensor->dtype;
}

/* A kept FP8 weight is written with its scale folded in, as any tool will read it. */
static aq_status aq_plain_mark(aq_plain_run *run, aq_error *err) {
    const aq_model *model = run->model;
    run->folded = (bool *)aq_arena_alloc(&run->arena, (model->tensor_count + 1) * sizeof(bool));
    if (!run->folded) return aq_fail_memory(err, model->tensor_count + 1);
    for (size_t i = 0; i < model->tensor_count; i++) {
        const aq_tensor *scale = aq_model_fp8_scale(model, &model->tensors[i]);
        if (scale && !scale->quantized && aq_dtype_is_float(scale->dtype))
            run->folded[scale - model->tensors] = true;
    }
    return AQ_OK;
}

static bool aq_plain_is_copy(const aq_plain_run *run, const aq_tensor *tensor) {
    return !tensor->quantized && aq_plain_dtype(run, tensor) == tensor->dtype;
}

/* ---- one tensor */

typedef struct aq_plain_job {
    aq_plain_run *run;
    const aq_tensor *tensor;
    uint64_t target; /* in the output file */
    aq_fp8_scale scale;
    uint64_t unit;   /* elements that stay together: a row when quantized or scaled, else 1 */
    uint64_t step;   /* units of a task */
    uint64_t count;  /* units in all */
} aq_plain_job;

static aq_status aq_plain_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    aq_plain_job *job = (aq_plain_job *)user;
    aq_plain_run *run = job->run;
    const aq_tensor *tensor = job->tensor;
    uint64_t first = (uint64_t)index * job->step, left = job->count - first;
    uint64_t part = left < job->step ? left : job->step;
    uint64_t unit = job->unit;
    size_t elements = (size_t)(part * unit);
    aq_dtype dtype = aq_plain_dtype(run, tensor);
    size_t size = aq_dtype_size(dtype), in_size = aq_dtype_size(tensor->dtype);
    float *values = run->values + worker * run->buffer_elements;
    unsigned char *out = run->results + worker * run->buffer_elements * sizeof(float);
    aq_status status = AQ_OK;
    const unsigned char *stored = NULL;
    if (!tensor->quantized) stored = (const unsigned char *)tensor->data + (size_t)first * in_size;
    if (aq_plain_is_copy(run, tensor))
        return aq_file_write(&run->file, job->target + first * size, stored, elements * size, err);
    if (tensor->quantized || job->scale.values)
        status = aq_tensor_rows_f32(run->context, tensor, first, part, values, err);
    else aq_stored_f32(run->context, tensor->dtype, stored, values, elements);
    if (status != AQ_OK) return status;
    if (job->scale.values) aq_fp8_apply(&job->scale, values, first, part, tensor->cols);
    aq_from_f32(run->context, dtype, values, out, elements);
    aq_little_endian(out, elements, size);
    status =
        aq_file_write(&run->file, job->target + first * unit * size, out, elements * size, err);
    if (status != AQ_OK || worker) return status;
    return aq_meter_tell(&run->meter, (first + part) * unit * size, false, err);
}

static aq_status aq_plain_tensor(aq_plain_run *run, const aq_tensor *tensor, uint64_t target,
                                 uint64_t bytes, aq_error *err) {
    aq_plain_job job;
    aq_arena arena;
    job.run = run;
    job.tensor = tensor;
    job.target = target;
    run->meter.layer = tensor->name;
    aq_status status = aq_meter_tell(&run->meter, 0, false, err);
    if (status != AQ_OK) return status;
    aq_arena_init(&arena, run->context);
    status = aq_model_load_scale(run->context, &arena, run->model, tensor, &job.scale, err);
    bool rows = tensor->quantized || job.scale.values;
    job.unit = rows ? tensor->cols : 1;
    job.step = rows ? aq_block_rows(tensor->cols) : AQ_BLOCK_WEIGHTS;
    job.count = rows ? tensor->rows : tensor->rows * tensor->cols;
    if (status == AQ_OK && bytes) {
        uint64_t tasks = job.count / job.step + (job.count % job.step != 0);
        uint32_t threads = tasks > 1 ? run->threads : 1;
        status = aq_parallel_for(run->context, threads, (size_t)tasks, aq_plain_task, &job, err);
    }
    aq_arena_free(&arena);
    run->meter.done += bytes;
    return status;
}

/* ---- one shard */

/* The shard's tensors, large elements first, so that every one of them is aligned. */
static aq_status aq_plain_list(aq_plain_run *run, size_t shard, size_t *count, aq_error *err) {
    const aq_model *model = run->model;
    uint64_t begin = 0;
    *count = 0;
    for (size_t size = 8; size; size /= 2) {
        for (size_t i = 0; i < model->tensor_count; i++) {
            const aq_tensor *tensor = &model->tensors[i];
            aq_dtype dtype = aq_plain_dtype(run, tensor);
            uint64_t bytes = 0;
            if (model->state->tensor_shard[i] != shard || aq_dtype_size(dtype) != size ||
                run->folded[i])
                continue;
            if (!aq_mul_u64(tensor->rows, tensor->cols, &bytes) ||
                !aq_mul_u64(bytes, size, &bytes) || !aq_add_u64(begin, bytes, &bytes))
                return aq_fail_tensor(err, AQ_ERR_SHAPE, tensor->name, 0,
                                      "tensor %s: too large for %s", tensor->name,
                                      aq_dtype_name(dtype));
            aq_st_output *output = &run->outputs[*count];
            output->name = model->state->tensor_own_name[i];
            output->dtype = dtype;
            output->rank = tensor->rank;
            output->shape = tensor->shape;
            output->begin = begin;
            output->end = bytes;
            begin = bytes;
            run->sources[(*count)++] = i;
            run->names[run->name_count].tensor = output->name;
            run->names[run->name_count++].shard = aq_path_base(tensor->file);
        }
    }
    return AQ_OK;
}

static aq_status aq_plain_write(aq_plain_run *run, size_t count, const char *metadata,
                                aq_error *err) {
    uint64_t header = 0;
    aq_status status =
        aq_st_header_size(run->context, run->outputs, count, metadata, &header, err);
    if (status == AQ_OK)
        status = aq_st_write_header(run->context, &run->file, header, run->outputs, count, metadata,
                                    err);
    for (size_t i = 0; status == AQ_OK && i < count; i++) {
        const aq_st_output *output = &run->outputs[i];
        status = aq_plain_tensor(run, &run->model->tensors[run->sources[i]],
                                 8 + header + output->begin, output->end - output->begin, err);
    }
    return status == AQ_OK ? aq_file_sync(&run->file, err) : status;
}

static aq_status aq_plain_path(aq_plain_run *run, bool output, const char *relative, char **path,
                               aq_error *err) {
    const char *root = output ? run->staging.folder : run->model->state->folder.root;
    *path = aq_path_join(&run->arena, root, relative);
    return *path ? AQ_OK : aq_fail_memory(err, strlen(relative));
}

/* The path of a shard's plain form: a GGUF file becomes safetensors. */
static aq_status aq_plain_name(aq_plain_run *run, const aq_model_shard *shard, const char **out,
                               aq_error *err) {
    size_t size = strlen(shard->path) - (shard->is_gguf ? strlen(".gguf") : 0);
    char *path = (char *)aq_arena_alloc(&run->arena, size + sizeof(".safetensors"));
    if (!path) return aq_fail_memory(err, size);
    memcpy(path, shard->path, size);
    if (shard->is_gguf) memcpy(path + size, ".safetensors", sizeof(".safetensors"));
    *out = path;
    return AQ_OK;
}

static aq_status aq_plain_shard(aq_plain_run *run, size_t number, aq_error *err) {
    const aq_model_shard *shard = &run->model->state->shards[number];
    char *metadata = NULL, *path = NULL;
    const char *name = NULL;
    size_t size = 0, count = 0;
    aq_status status = aq_plain_name(run, shard, &name, err);
    if (status == AQ_OK) status = aq_plain_path(run, true, name, &path, err);
    if (status == AQ_OK) status = aq_plain_list(run, number, &count, err);
    if (status == AQ_OK)
        status = aq_native_remove(run->context, shard->file->metadata, &metadata, &size, err);
    if (status == AQ_OK) status = aq_file_create(&run->file, path, err);
    if (status == AQ_OK) {
        status = aq_plain_write(run, count, metadata, err);
        aq_status closed = aq_file_close(&run->file, status == AQ_OK ? err : NULL);
        if (status == AQ_OK) status = closed;
    }
    if (metadata) aq_free(run->context, metadata, size + 1);
    return status;
}

/* ---- what lies beside the weights */

static aq_status aq_plain_config(aq_plain_run *run, const aq_component *component, aq_error *err) {
    char *from, *to, *text, *edited;
    size_t size, edited_size;
    aq_status status = aq_plain_path(run, false, component->config, &from, err);
    if (status == AQ_OK) status = aq_plain_path(run, true, component->config, &to, err);
    if (status == AQ_OK)
        status = aq_read_text(&run->arena, from, (uint64_t)64 << 20, &text, &size, err);
    if (status == AQ_OK)
        status = aq_config_json_remove(&run->arena, text, size, from, "quantization_config",
                                       &edited, &edited_size, err);
    return status == AQ_OK ? aq_write_text(to, edited, edited_size, err) : status;
}

/* `names` are in the order of the shards, a component's shards together. */
static aq_status aq_plain_index(aq_plain_run *run, const aq_component *component, size_t *name,
                                uint64_t total, aq_error *err) {
    const struct aq_model_state *state = run->model->state;
    size_t first = *name;
    for (size_t s = 0; s < state->shard_count; s++) {
        if (state->shards[s].component != component) continue;
        for (size_t i = 0; i < run->model->tensor_count; i++) *name += state->tensor_shard[i] == s && !run->folded[i];
    }
    if (!component->index) return AQ_OK;
    char *path;
    aq_status status = aq_plain_path(run, true, component->index, &path, err);
    if (status != AQ_OK) return status;
    return aq_st_write_index(run->context, path, run->names + first, *name - first, total,
                             component->index_data.metadata, err);
}

static uint64_t aq_plain_bytes(const aq_plain_run *run, const aq_component *component) {
    const struct aq_model_state *state = run->model->state;
    uint64_t total = 0;
    for (size_t i = 0; i < run->model->tensor_count; i++) {
        const aq_tensor *tensor = &run->model->tensors[i];
        if (run->folded[i]) continue;
        if (component && state->shards[state->tensor_shard[i]].component != component) continue;
        total += tensor->rows * tensor->cols * aq_dtype_size(aq_plain_dtype(run, tensor));
    }
    return total;
}

static aq_status aq_plain_component_files(aq_plain_run *run, aq_error *err) {
    const aq_folder *folder = &run->model->state->folder;
    aq_status status = AQ_OK;
    size_t name = 0;
    for (size_t c = 0; status == AQ_OK && c < folder->component_count; c++) {
        const aq_component *component = &folder->components[c];
        if (component->config) status = aq_plain_config(run, component, err);
        if (status == AQ_OK)
            status = aq_plain_index(run, component, &name, aq_plain_bytes(run, component), err);
    }
    return status;
}

static aq_status aq_plain_others(aq_plain_run *run, aq_error *err) {
    const aq_folder *folder = &run->model->state->folder;
    aq_status status = AQ_OK;
    run->meter.phase = AQ_PHASE_COPY;
    for (size_t i = 0; status == AQ_OK && i < folder->other_count; i++) {
        char *from, *to;
        run->meter.layer = folder->others[i];
        status = aq_meter_tell(&run->meter, 0, false, err);
        if (status == AQ_OK) status = aq_plain_path(run, false, folder->others[i], &from, err);
        if (status == AQ_OK) status = aq_plain_path(run, true, folder->others[i], &to, err);
        if (status == AQ_OK) status = aq_copy_file(run->context, from, to, err);
    }
    return status;
}

/* ---- the whole */

static aq_status aq_plain_buffers(aq_plain_run *run, aq_error *err) {
    const aq_model *model = run->model;
    uint64_t elements = AQ_BLOCK_WEIGHTS;
    for (size_t i = 0; i < model->tensor_count; i++) { /* a row is never cut */
        const aq_tensor *tensor = &model->tensors[i];
        if ((tensor->quantized || aq_model_fp8_scale(model, tensor)) && tensor->cols > elements)
            elements = tensor->cols;
    }
    uint64_t bytes = 0;
    if (!aq_mul_u64(elements, sizeof(float) * run->threads, &bytes) || bytes > SIZE_MAX)
        return aq_fail_memory(err, SIZE_MAX);
    run->buffer_elements = (size_t)elements;
    run->values = (float *)aq_alloc(run->context, (size_t)bytes);
    run->results = (unsigned char *)aq_alloc(run->context, (size_t)bytes);
    size_t most = model->tensor_count + 1;
    run->outputs = (aq_st_output *)aq_arena_alloc(&run->arena, most * sizeof(*run->outputs));
    run->sources = (size_t *)aq_arena_alloc(&run->arena, most * sizeof(*run->sources));
    run->names = (aq_st_index_output *)aq_arena_alloc(&run->arena, most * sizeof(*run->names));
    if (run->values && run->results && run->outputs && run->sources && run->names) return AQ_OK;
    return aq_fail_memory(err, (size_t)bytes);
}

static aq_status aq_plain_all(aq_plain_run *run, aq_error *err) {
    const struct aq_model_state *state = run->model->state;
    aq_status status = aq_plain_buffers(run, err);
    for (size_t i = 0; status == AQ_OK && i < state->folder.subfolder_count; i++) {
        char *path;
        status = aq_plain_path(run, true, state->folder.subfolders[i], &path, err);
        if (status == AQ_OK) status = aq_make_folder(path, err);
    }
    for (size_t s = 0; status == AQ_OK && s < state->shard_count; s++)
        status = aq_plain_shard(run, s, err);
    if (status == AQ_OK) status = aq_plain_component_files(run, err);
    if (status == AQ_OK) status = aq_plain_others(run, err);
    run->meter.phase = AQ_PHASE_COMMIT;
    run->meter.layer = "";
    run->meter.done = run->meter.total;
    if (status == AQ_OK) status = aq_meter_tell(&run->meter, 0, true, err);
    return status;
}

static aq_status aq_plain_begin(aq_plain_run *run, const char *quantized_path,
                                const char *output_path, bool overwrite, aq_error *err) {
    const aq_folder *folder = &run->model->state->folder;
    bool is_file = folder->kind == AQ_FOLDER_FILE;
    const char *only_file = NULL;
    if (!run->model->quantized)
        return aq_fail(err, AQ_ERR_METADATA,
                       "%s: not a model that this library has quantized; there is nothing to "
                       "dequantize", quantized_path);
    if (is_file && aq_ends_with(output_path, ".safetensors")) {
        aq_status status = aq_plain_name(run, &run->model->state->shards[0], &only_file, err);
        if (status != AQ_OK) return status;
    }
    return aq_staging_begin(&run->staging, run->context, is_file ? quantized_path : folder->root,
                            output_path, only_file, overwrite, false, err);
}

ARROWQUANT_API aq_status aq_dequantize_model(aq_context *context, const char *quantized_path,
                                             const char *output_path, aq_dtype dtype,
                                             bool overwrite, aq_progress_fn progress, void *user,
                                             aq_error *err) {
    aq_plain_run run;
    aq_context local;
    aq_model *model = NULL;
    if (!quantized_path || !output_path)
        return aq_fail(err, AQ_ERR_ARGUMENT,
                       "aq_dequantize_model: quantized_path and output_path must not be NULL");
    if (dtype != AQ_DTYPE_F32 && dtype != AQ_DTYPE_F16 && dtype != AQ_DTYPE_BF16)
        return aq_fail(err, AQ_ERR_ARGUMENT,
                       "aq_dequantize_model: dtype should be F32, F16 or BF16");
    aq_status status = aq_model_open(context, quantized_path, &model, err);
    if (status != AQ_OK) return status;
    memset(&run, 0, sizeof(run));
    run.context = aq_context_resolved(context, &local);
    run.model = model;
    run.dtype = dtype;
    run.file.handle = -1;
    run.staging.lock.handle = -1;
    run.threads = aq_thread_count(context);
    aq_arena_init(&run.arena, context);
    status = aq_plain_mark(&run, err);
    aq_meter_begin(&run.meter, progress, user, status == AQ_OK ? aq_plain_bytes(&run, NULL) : 0);
    run.meter.phase = AQ_PHASE_DEQUANTIZE;
    if (status == AQ_OK)
        status = aq_plain_begin(&run, quantized_path, output_path, overwrite, err);
    if (status == AQ_OK) status = aq_meter_tell(&run.meter, 0, true, err);
    if (status == AQ_OK) status = aq_plain_all(&run, err);
    if (status == AQ_OK) status = aq_staging_commit(&run.staging, err);
    aq_staging_end(&run.staging);
    aq_free(context, run.values, run.buffer_elements * sizeof(float) * run.threads);
    aq_free(context, run.results, run.buffer_elements * sizeof(float) * run.threads);
    aq_arena_free(&run.arena);
    aq_model_close(model);
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
