/* Compares two models tensor by tensor, from the files themselves. */
#include "../base/text.h"
#include "../base/thread.h"
#include "../quant/quant.h"
#include "open.h"
#include "run.h"

#include <math.h>

#ifndef ARROWQUANT_NO_STDIO

typedef struct aq_validation_owned {
    aq_arena arena;
    const aq_context *context;
} aq_validation_owned;

/* The two values of one layer's gates. */
typedef struct aq_gates {
    double min_accuracy;
    double min_sqnr_db; /* NaN: none */
} aq_gates;

/* The same tensor of two models, and its FP8 scales where it has some. */
typedef struct aq_compare_pair {
    const aq_tensor *tensor[2];
    aq_fp8_scale scale[2];
} aq_compare_pair;

typedef struct aq_comparison {
    aq_context *context, local; /* resolved; the result must not refer to it */
    const aq_model *model[2];
    aq_meter meter;
    aq_arena scratch;
    aq_arena *arena; /* of the result */
    aq_validation *out;
    aq_gates gates;
    aq_quality total;
} aq_comparison;

/* ---- one tensor */

typedef struct aq_compare_job {
    aq_comparison *run;
    const aq_compare_pair *pair;
    uint64_t block_rows;
    size_t block_elements;
    float *values; /* workers × 2 × block_elements */
    aq_quality *blocks;
} aq_compare_job;

static aq_status aq_compare_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    aq_compare_job *job = (aq_compare_job *)user;
    const aq_compare_pair *pair = job->pair;
    const aq_context *context = job->run->context;
    uint64_t rows = pair->tensor[0]->rows, cols = pair->tensor[0]->cols;
    uint64_t first = (uint64_t)index * job->block_rows, left = rows - first;
    uint64_t count = left < job->block_rows ? left : job->block_rows;
    float *values[2];
    for (unsigned side = 0; side < 2; side++) {
        values[side] = job->values + (2 * (size_t)worker + side) * job->block_elements;
        aq_status status =
            aq_tensor_rows_f32(context, pair->tensor[side], first, count, values[side], err);
        if (status != AQ_OK) return status;
        if (pair->scale[side].values)
            aq_fp8_apply(&pair->scale[side], values[side], first, count, cols);
    }
    aq_compare_block(context, values[0], values[1], count, cols, &job->blocks[index]);
    if (worker) return AQ_OK;
    uint64_t bytes = pair->tensor[0]->bytes / rows * (first + count);
    return aq_meter_tell(&job->run->meter, bytes, false, err);
}

static aq_status aq_compare_weights(aq_comparison *run, const aq_compare_pair *pair,
                                    aq_quality *quality, aq_error *err) {
    aq_compare_job job;
    uint64_t rows = pair->tensor[0]->rows, cols = pair->tensor[0]->cols, elements = 0, bytes = 0;
    memset(quality, 0, sizeof(*quality));
    if (!rows || !cols) return AQ_OK;
    job.run = run;
    job.pair = pair;
    job.block_rows = aq_block_rows(cols);
    uint64_t blocks = rows / job.block_rows + (rows % job.block_rows != 0);
    uint64_t threads = blocks > 1 ? aq_thread_count(run->context) : 1;
    if (threads > blocks) threads = blocks;
    elements = cols * (job.block_rows < rows ? job.block_rows : rows);
    if (!aq_mul_u64(elements, 2 * sizeof(float) * threads, &bytes) || bytes > SIZE_MAX ||
        blocks > SIZE_MAX / sizeof(aq_quality))
        return aq_fail_memory(err, SIZE_MAX);
    job.block_elements = (size_t)elements;
    size_t block_bytes = (size_t)blocks * sizeof(aq_quality);
    job.values = (float *)aq_alloc(run->context, (size_t)bytes);
    job.blocks = (aq_quality *)aq_alloc(run->context, block_bytes);
    aq_status status = AQ_OK;
    if (!job.values || !job.blocks) {
        status = aq_fail_memory(err, (size_t)bytes + block_bytes);
    } else {
        memset(job.blocks, 0, block_bytes);
        status = aq_parallel_for(run->context, (uint32_t)threads, (size_t)blocks, aq_compare_task,
                                 &job, err);
        for (uint64_t i = 0; i < blocks; i++) aq_quality_add(quality, &job.blocks[i]);
    }
    aq_free(run->context, job.values, (size_t)bytes);
    aq_free(run->context, job.blocks, block_bytes);
    return status;
}

/* ---- pairs */

static aq_status aq_compare_shapes(const aq_comparison *run, const aq_compare_pair *pair,
                                   aq_error *err) {
    const aq_tensor *a = pair->tensor[0], *b = pair->tensor[1];
    bool same = a->rank == b->rank;
    for (uint32_t i = 0; i < a->rank && same; i++) same = a->shape[i] == b->shape[i];
    if (same) return AQ_OK;
    return aq_fail_tensor(err, AQ_ERR_SHAPE, a->name, 0,
                          "tensor %s: rank %u, %llu x %llu in %s, but rank %u, %llu x %llu in %s; "
                          "compare two versions of one model", a->name, a->rank,
                          (unsigned long long)a->rows, (unsigned long long)a->cols,
                          run->model[0]->path, b->rank, (unsigned long long)b->rows,
                          (unsigned long long)b->cols, run->model[1]->path);
}

static aq_status aq_compare_scale(aq_comparison *run, unsigned side, aq_compare_pair *pair,
                                  aq_error *err) {
    return aq_model_load_scale(run->context, &run->scratch, run->model[side], pair->tensor[side],
                               &pair->scale[side], err);
}

static aq_status aq_compare_tensor(aq_comparison *run, const aq_tensor *first,
                                   const aq_tensor *second, aq_error *err) {
    aq_compare_pair pair;
    aq_quality quality;
    aq_tensor_difference *layer = &run->out->layers[run->out->layer_count];
    pair.tensor[0] = first;
    pair.tensor[1] = second;
    run->meter.layer = first->name;
    aq_status status = aq_compare_shapes(run, &pair, err);
    if (status == AQ_OK) status = aq_compare_scale(run, 0, &pair, err);
    if (status == AQ_OK) status = aq_compare_scale(run, 1, &pair, err);
    if (status == AQ_OK) status = aq_meter_tell(&run->meter, 0, false, err);
    if (status == AQ_OK) status = aq_compare_weights(run, &pair, &quality, err);
    aq_arena_free(&run->scratch);
    if (status != AQ_OK) return status;
    layer->name = aq_arena_string(run->arena, first->name);
    if (!layer->name) return aq_fail_memory(err, strlen(first->name));
    layer->cosine_similarity = aq_quality_cosine(&quality);
    layer->sqnr_db = aq_quality_sqnr_db(&quality);
    layer->max_error = quality.max_error;
    layer->bits = second->quantized ? second->spec.bits : 16;
    layer->passed = layer->cosine_similarity >= run->gates.min_accuracy &&
                    !(layer->sqnr_db < run->gates.min_sqnr_db);
    aq_quality_add(&run->total, &quality);
    run->out->layer_count++;
    run->meter.done += first->bytes;
    return AQ_OK;
}

/* ---- results */

static aq_status aq_compare_begin(aq_comparison *run, aq_context *context, aq_progress_fn progress,
                                  void *user, aq_validation *out, aq_error *err) {
    memset(run, 0, sizeof(*run));
    memset(out, 0, sizeof(*out));
    run->context = aq_context_resolved(context, &run->local);
    run->out = out;
    aq_arena_init(&run->scratch, context);
    aq_meter_begin(&run->meter, progress, user, 0);
    run->meter.phase = AQ_PHASE_VALIDATE;
    aq_validation_owned *owned = (aq_validation_owned *)aq_alloc(context, sizeof(*owned));
    if (!owned) return aq_fail_memory(err, sizeof(*owned));
    owned->context = context;
    aq_arena_init(&owned->arena, context);
    run->arena = &owned->arena;
    out->owned = owned;
    return AQ_OK;
}

static void aq_compare_summary(aq_comparison *run) {
    aq_validation *out = run->out;
    double sum = 0.0;
    out->min_cosine_similarity = 1.0;
    out->passed = true;
    for (size_t i = 0; i < out->layer_count; i++) {
        const aq_tensor_difference *layer = &out->layers[i];
        sum += layer->cosine_similarity;
        if (!(layer->cosine_similarity >= out->min_cosine_similarity))
            out->min_cosine_similarity = layer->cosine_similarity;
        out->passed = out->passed && layer->passed;
    }
    out->cosine_similarity = out->layer_count ? sum / (double)out->layer_count : 1.0;
    out->sqnr_db = aq_quality_sqnr_db(&run->total);
    double second = (double)run->model[1]->weight_bytes;
    out->compression_ratio = second > 0 ? (double)run->model[0]->weight_bytes / second : 1.0;
    out->model_size_mb = second / 1e6;
}

/* Closes the models; on failure nothing is handed out. */
static aq_status aq_compare_end(aq_comparison *run, aq_model *models[2], aq_status status,
                                aq_error *err) {
    if (status == AQ_OK) {
        aq_compare_summary(run);
        run->meter.layer = "";
        run->meter.done = run->meter.total;
        status = aq_meter_tell(&run->meter, 0, true, err);
    }
    aq_arena_free(&run->scratch);
    aq_model_close(models[0]);
    aq_model_close(models[1]);
    if (status != AQ_OK) aq_validation_free(run->out);
    return status;
}

static aq_status aq_compare_room(aq_comparison *run, aq_error *err) {
    size_t most = run->model[0]->tensor_count + run->model[1]->tensor_count + 1;
    run->out->layers = (aq_tensor_difference *)aq_arena_alloc(
        run->arena, most * sizeof(*run->out->layers));
    return run->out->layers ? AQ_OK : aq_fail_memory(err, most * sizeof(*run->out->layers));
}

/* ---- opening the two */

/* Opens `path` with the components of `other`, when both are pipelines, and in its variant, unless
 * `config` names one. */
static aq_status aq_open_like(aq_context *context, const char *path, const aq_config *config,
                              const aq_model *other, aq_model **out, aq_error *err) {
    const aq_folder *folder = &other->state->folder;
    aq_config like = aq_config_from_profile(AQ_PROFILE_LOCAL);
    bool given = config && config->variant && *config->variant;
    aq_arena arena;
    aq_arena_init(&arena, context);
    like.variant = given ? config->variant : other->state->variant;
    char *index = aq_path_join(&arena, path, "model_index.json");
    const char **names =
        (const char **)aq_arena_alloc(&arena, (folder->component_count + 1) * sizeof(*names));
    if (!index || !names) {
        aq_arena_free(&arena);
        return aq_fail_memory(err, strlen(path));
    }
    if (folder->kind == AQ_FOLDER_PIPELINE && aq_path_kind_of(index) == AQ_PATH_FILE) {
        for (size_t i = 0; i < folder->component_count; i++) names[i] = folder->components[i].name;
        like.components = names;
        like.component_count = folder->component_count;
    }
    aq_status status = aq_model_open_with(context, path, &like, out, err);
    if (status == AQ_ERR_MODEL_NOT_FOUND && like.variant && !given) {
        like.variant = NULL;
        status = aq_model_open_with(context, path, &like, out, err);
    }
    aq_arena_free(&arena);
    return status;
}

/* min_accuracy and min_sqnr_db as the quantizing run wrote them into config.json; a bare file has
 * none, then the default profile's hold. */
static aq_gates aq_recorded_gates(const aq_model *model) {
    const aq_folder *folder = &model->state->folder;
    aq_config defaults = aq_config_from_profile(AQ_PROFILE_LOCAL);
    aq_gates gates;
    gates.min_accuracy = defaults.min_accuracy;
    gates.min_sqnr_db = defaults.min_sqnr_db;
    for (size_t i = 0; i < folder->component_count; i++) {
        const aq_json_node *root = folder->components[i].config_json;
        const aq_json_node *recorded = root ? aq_json_get(root, "quantization_config") : NULL;
        if (!recorded || recorded->type != AQ_JSON_OBJECT) continue;
        const aq_json_node *accuracy = aq_json_get(recorded, "min_accuracy");
        const aq_json_node *sqnr = aq_json_get(recorded, "min_sqnr_db");
        if (accuracy) aq_json_double(accuracy, &gates.min_accuracy);
        if (sqnr && !aq_json_double(sqnr, &gates.min_sqnr_db)) gates.min_sqnr_db = (double)NAN;
        break;
    }
    return gates;
}

/* ---- validation */

static aq_status aq_validate_layers(aq_comparison *run, aq_error *err) {
    const aq_model *original = run->model[0], *quantized = run->model[1];
    aq_status status = aq_compare_room(run, err);
    for (size_t i = 0; i < quantized->tensor_count; i++) {
        if (!quantized->tensors[i].quantized) continue;
        const aq_tensor *first = aq_model_find(original, quantized->tensors[i].name);
        if (first) run->meter.total += first->bytes;
    }
    if (status == AQ_OK) status = aq_meter_tell(&run->meter, 0, true, err);
    for (size_t i = 0; status == AQ_OK && i < quantized->tensor_count; i++) {
        const aq_tensor *second = &quantized->tensors[i];
        if (!second->quantized) continue;
        const aq_tensor *first = aq_model_find(original, second->name);
        if (!first)
            return aq_fail_tensor(err, AQ_ERR_VALIDATION, second->name, 0,
                                  "tensor %s of %s is not in %s; compare with the model that was "
                                  "quantized", second->name, quantized->path, original->path);
        status = aq_compare_tensor(run, first, second, err);
    }
    return status;
}

ARROWQUANT_API aq_status aq_validate_quality(aq_context *context, const char *original_path,
                                             const char *quantized_path, const aq_config *config,
                                             aq_progress_fn progress, void *user,
                                             aq_validation *out, aq_error *err) {
    aq_comparison run;
    aq_model *models[2] = { NULL, NULL };
    if (!original_path || !quantized_path || !out)
        return aq_fail(err, AQ_ERR_ARGUMENT,
                       "aq_validate_quality: paths and out must not be NULL");
    aq_status status = aq_compare_begin(&run, context, progress, user, out, err);
    if (status == AQ_OK) status = aq_model_open(context, quantized_path, &models[1], err);
    if (status == AQ_OK && !models[1]->quantized)
        status = aq_fail(err, AQ_ERR_METADATA,
                         "%s: not a model that this library has quantized; to compare any two "
                         "models use aq_compare_models", quantized_path);
    if (status == AQ_OK)
        status = aq_open_like(context, original_path, config, models[1], &models[0], err);
    if (status == AQ_OK) {
        run.model[0] = models[0];
        run.model[1] = models[1];
        run.gates = aq_recorded_gates(models[1]);
        if (config) {
            run.gates.min_accuracy = config->min_accuracy;
            run.gates.min_sqnr_db = config->min_sqnr_db;
        }
        status = aq_validate_layers(&run, err);
    }
    return aq_compare_end(&run, models, status, err);
}

/* ---- comparing any two */

static bool aq_is_comparable(const aq_tensor *tensor) {
    return tensor->quantized || aq_dtype_is_float(tensor->dtype);
}

/* Names of model `side` that the other one lacks. The scales of FP8 weights are parts of those. */
static aq_status aq_only_in(aq_comparison *run, unsigned side, const char *const **names,
                            size_t *count, aq_error *err) {
    const aq_model *model = run->model[side], *other = run->model[1 - side];
    size_t bytes = (model->tensor_count + 1) * sizeof(char *), found = 0;
    const char **list = (const char **)aq_arena_alloc(run->arena, bytes);
    bool *is_scale =
        (bool *)aq_arena_alloc(&run->scratch, (model->tensor_count + 1) * sizeof(bool));
    if (!list || !is_scale) return aq_fail_memory(err, bytes);
    for (size_t i = 0; i < model->tensor_count; i++) {
        const aq_tensor *scale = aq_model_fp8_scale(model, &model->tensors[i]);
        if (scale) is_scale[scale - model->tensors] = true;
    }
    for (size_t i = 0; i < model->tensor_count; i++) {
        const aq_tensor *tensor = &model->tensors[i];
        if (is_scale[i] || aq_model_find(other, tensor->name)) continue;
        list[found] = aq_arena_string(run->arena, tensor->name);
        if (!list[found++]) return aq_fail_memory(err, strlen(tensor->name));
    }
    aq_arena_free(&run->scratch);
    *names = list;
    *count = found;
    return AQ_OK;
}

static aq_status aq_compare_common(aq_comparison *run, aq_error *err) {
    const aq_model *first = run->model[0], *second = run->model[1];
    aq_status status = aq_compare_room(run, err);
    for (size_t i = 0; i < first->tensor_count; i++) run->meter.total += first->tensors[i].bytes;
    if (status == AQ_OK) status = aq_meter_tell(&run->meter, 0, true, err);
    for (size_t i = 0; status == AQ_OK && i < first->tensor_count; i++) {
        const aq_tensor *a = &first->tensors[i], *b = aq_model_find(second, a->name);
        if (b && aq_is_comparable(a) && aq_is_comparable(b))
            status = aq_compare_tensor(run, a, b, err);
    }
    if (status == AQ_OK)
        status = aq_only_in(run, 0, &run->out->only_in_first, &run->out->only_in_first_count, err);
    if (status == AQ_OK)
        status =
            aq_only_in(run, 1, &run->out->only_in_second, &run->out->only_in_second_count, err);
    return status;
}

ARROWQUANT_API aq_status aq_compare_models(aq_context *context, const char *first_path,
                                           const char *second_path, aq_progress_fn progress,
                                           void *user, aq_validation *out, aq_error *err) {
    aq_comparison run;
    aq_model *models[2] = { NULL, NULL };
    if (!first_path || !second_path || !out)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_compare_models: paths and out must not be NULL");
    aq_status status = aq_compare_begin(&run, context, progress, user, out, err);
    if (status == AQ_OK) status = aq_model_open(context, first_path, &models[0], err);
    if (status == AQ_OK && models[0]->quantized)
        status = aq_open_like(context, second_path, NULL, models[0], &models[1], err);
    else if (status == AQ_OK) status = aq_model_open(context, second_path, &models[1], err);
    if (status == AQ_OK && models[1]->quantized && !models[0]->quantized) {
        aq_model_close(models[0]);
        models[0] = NULL;
        status = aq_open_like(context, first_path, NULL, models[1], &models[0], err);
    }
    if (status == AQ_OK) {
        run.model[0] = models[0];
        run.model[1] = models[1];
        run.gates.min_accuracy = -1.0; /* none: a cosine is never below it */
        run.gates.min_sqnr_db = (double)NAN;
        status = aq_compare_common(&run, err);
    }
    return aq_compare_end(&run, models, status, err);
}

/* ---- handing out */

ARROWQUANT_API void aq_validation_free(aq_validation *validation) {
    if (!validation) return;
    aq_validation_owned *owned = (aq_validation_owned *)validation->owned;
    if (owned) {
        aq_arena_free(&owned->arena);
        aq_free(owned->context, owned, sizeof(*owned));
    }
    memset(validation, 0, sizeof(*validation));
}

static void aq_append_figure(aq_builder *json, const char *name, double value) {
    aq_append_format(json, "\"%s\": ", name);
    aq_append_json_double(json, value);
    aq_append(json, ", ", 2);
}

static void aq_append_names(aq_builder *json, const char *name, const char *const *names,
                            size_t count) {
    aq_append_format(json, ",\n  \"%s\": [", name);
    for (size_t i = 0; i < count; i++) {
        if (i) aq_append(json, ", ", 2);
        aq_append_json_string(json, names[i], strlen(names[i]));
    }
    aq_append(json, "]", 1);
}

ARROWQUANT_API aq_status aq_validation_to_json(aq_context *context,
                                               const aq_validation *validation, char **text,
                                               size_t *size, aq_error *err) {
    aq_builder json;
    if (!validation || !text || !size)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_validation_to_json: no argument may be NULL");
    aq_builder_init(&json, context);
    aq_append_string(&json, "{\n  ");
    aq_append_figure(&json, "cosine_similarity", validation->cosine_similarity);
    aq_append_figure(&json, "min_cosine_similarity", validation->min_cosine_similarity);
    aq_append_figure(&json, "sqnr_db", validation->sqnr_db);
    aq_append_figure(&json, "compression_ratio", validation->compression_ratio);
    aq_append_figure(&json, "model_size_mb", validation->model_size_mb);
    aq_append_format(&json, "\"passed\": %s,\n  \"layers\": [",
                     validation->passed ? "true" : "false");
    for (size_t i = 0; i < validation->layer_count; i++) {
        const aq_tensor_difference *layer = &validation->layers[i];
        aq_append_string(&json, i ? ",\n    {\"name\": " : "\n    {\"name\": ");
        aq_append_json_string(&json, layer->name, strlen(layer->name));
        aq_append_format(&json, ", \"bits\": %u, ", layer->bits);
        aq_append_figure(&json, "cosine_similarity", layer->cosine_similarity);
        aq_append_figure(&json, "sqnr_db", layer->sqnr_db);
        aq_append_figure(&json, "max_error", layer->max_error);
        aq_append_format(&json, "\"passed\": %s}", layer->passed ? "true" : "false");
    }
    aq_append_string(&json, validation->layer_count ? "\n  ]" : "]");
    aq_append_names(&json, "only_in_first", validation->only_in_first,
                    validation->only_in_first_count);
    aq_append_names(&json, "only_in_second", validation->only_in_second,
                    validation->only_in_second_count);
    aq_append_string(&json, "\n}\n");
    return aq_builder_finish(&json, text, size, err);
}

#endif /* ARROWQUANT_NO_STDIO */
