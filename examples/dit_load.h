/* Loads a DiT (quantized or not) from a diffusers folder into the structs of dit.h; the weights stay
 * packed in the mapped files. Include arrowquant.h first. */
#ifndef DIT_LOAD_H
#define DIT_LOAD_H

#include "dit.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct dit_schedule {
    int timesteps, offset;
    double beta_start, beta_end;
    int scaled;         /* betas linear in their square roots */
    double clip;        /* x0 is clamped to ±clip; 0: not */
    int alpha_one;      /* the last step goes to alpha = 1 */
} dit_schedule;

/* The time groups of every layer's input. */
typedef struct dit_groups {
    const aq_linear **layers;
    aq_time_groups *groups;
    size_t count;
} dit_groups;

typedef struct dit_folder {
    aq_model *file;
    dit_groups statics;
    dit model;
    dit_schedule schedule;
    void *copies;       /* of dit_repack */
    char message[1400];
} dit_folder;

/* ---- just enough JSON: members of the outermost object */

/* The text of a file with a 0 behind it, or NULL. */
static char *dit_read_text(const char *path) {
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    long size;
    if (!file) return NULL;
    if (fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) >= 0 && size < 1 << 20 &&
        fseek(file, 0, SEEK_SET) == 0 && (text = (char *)calloc((size_t)size + 1, 1)) != NULL &&
        fread(text, 1, (size_t)size, file) != (size_t)size) {
        free(text);
        text = NULL;
    }
    fclose(file);
    return text;
}

/* Where a string that begins at `at` (on its quote) ends: behind its closing quote. */
static const char *dit_skip_string(const char *at) {
    for (at++; *at && *at != '"'; at++) {
        if (*at == '\\' && at[1]) at++;
    }
    return *at ? at + 1 : at;
}

/* The value of a member of the outermost object, or NULL. */
static const char *dit_member(const char *text, const char *name) {
    size_t size = strlen(name);
    int depth = 0;
    while (*text) {
        if (*text == '"') {
            const char *end = dit_skip_string(text), *value = end;
            while (*value && strchr(" \t\r\n", *value)) value++;
            if (depth == 1 && *value == ':' && (size_t)(end - text) == size + 2 &&
                strncmp(text + 1, name, size) == 0) {
                for (value++; *value && strchr(" \t\r\n", *value);) value++;
                return value;
            }
            text = end;
            continue;
        }
        depth += (*text == '{' || *text == '[') - (*text == '}' || *text == ']');
        text++;
    }
    return NULL;
}

static double dit_number(const char *text, const char *name, double otherwise) {
    const char *value = text ? dit_member(text, name) : NULL;
    if (!value || !*value || !strchr("-0123456789", *value)) return otherwise;
    return strtod(value, NULL);
}

/* Whether a member is this word: a string, true, false. */
static int dit_is(const char *text, const char *name, const char *word, int otherwise) {
    const char *value = text ? dit_member(text, name) : NULL;
    if (!value || strncmp(value, "null", 4) == 0) return otherwise;
    value += *value == '"';
    return strncmp(value, word, strlen(word)) == 0 &&
           (value[strlen(word)] == '\0' || strchr("\" \t\r\n,}", value[strlen(word)]));
}

/* ---- layers */

static int dit_fail(dit_folder *folder, const char *what, const char *detail) {
    snprintf(folder->message, sizeof folder->message, "%s%s%s", what, *detail ? ": " : "", detail);
    return 0;
}

/* The layer `prefix`.`name`; rows and cols must be these, cols 0: any. */
static int dit_layer(dit_folder *folder, const char *prefix, const char *name, size_t rows,
                     size_t cols, aq_linear *out) {
    const aq_tensor *weight, *bias;
    char full[256], text[400];
    aq_error err;
    snprintf(full, sizeof full, "%s%s%s.weight", prefix, *prefix ? "." : "", name);
    weight = aq_model_find(folder->file, full);
    if (!weight) return dit_fail(folder, "the model has no tensor of this name", full);
    snprintf(full, sizeof full, "%s%s%s.bias", prefix, *prefix ? "." : "", name);
    bias = aq_model_find(folder->file, full);
    if (aq_linear_from_tensors(weight, bias, out, &err)) {
        return dit_fail(folder, weight->name, err.message);
    }
    if (out->rows != rows || (cols && out->cols != cols)) {
        snprintf(text, sizeof text, "config.json calls for [%u, %u], the file has [%u, %u]",
                 (unsigned)rows, (unsigned)cols, (unsigned)out->rows, (unsigned)out->cols);
        return dit_fail(folder, weight->name, text);
    }
    return 1;
}

static int dit_load_block(dit_folder *folder, size_t number) {
    const size_t d = folder->model.width;
    dit_block *block = &folder->model.blocks[number];
    size_t wide, i;
    char prefix[64];
    snprintf(prefix, sizeof prefix, "transformer_blocks.%u", (unsigned)number);
    {
        char name[128];
        const aq_tensor *up;
        snprintf(name, sizeof name, "%s.ff.net.0.proj.weight", prefix);
        up = aq_model_find(folder->file, name);
        wide = up ? (size_t)up->rows : 4 * d;
    }
    for (i = 0; i < DIT_BLOCK_LAYERS; i++) {
        const size_t rows[DIT_BLOCK_LAYERS] = {d, d, folder->model.classes + 1, 6 * d, d,
                                               d, d, d, wide, d};
        const size_t cols[DIT_BLOCK_LAYERS] = {DIT_FREQUENCIES, d, d, d, d, d, d, d, d, wide};
        if (!dit_layer(folder, prefix, DIT_BLOCK_NAMES[i], rows[i], cols[i],
                       dit_block_layer(block, i))) {
            return 0;
        }
    }
    return 1;
}

/* ---- config */

static int dit_read_config(dit_folder *folder, const char *text) {
    dit *model = &folder->model;
    double head = dit_number(text, "attention_head_dim", 0);
    model->heads = (size_t)dit_number(text, "num_attention_heads", 0);
    model->channels = (size_t)dit_number(text, "in_channels", 0);
    model->out_channels = (size_t)dit_number(text, "out_channels", (double)model->channels);
    model->size = (size_t)dit_number(text, "sample_size", 0);
    model->patch = (size_t)dit_number(text, "patch_size", 0);
    model->classes = (size_t)dit_number(text, "num_embeds_ada_norm", 0);
    model->block_count = (size_t)dit_number(text, "num_layers", 0);
    model->norm_eps = (float)dit_number(text, "norm_eps", 1e-5);
    model->width = model->heads * (size_t)head;
    if (!dit_is(text, "_class_name", "DiTTransformer2DModel", 1) &&
        !dit_is(text, "_class_name", "Transformer2DModel", 1)) {
        return dit_fail(folder, "config.json is not that of a DiTTransformer2DModel", "");
    }
    if (!dit_is(text, "activation_fn", "gelu-approximate", 1) ||
        !dit_is(text, "norm_type", "ada_norm_zero", 1)) {
        return dit_fail(folder, "only activation_fn gelu-approximate and norm_type ada_norm_zero "
                                "are known here", "");
    }
    if (!model->width || model->width % 4 || !model->channels || !model->patch ||
        model->out_channels < model->channels || !model->block_count || !model->classes ||
        model->size < model->patch || model->size % model->patch || model->width > 65536 ||
        model->size > 4096 || model->block_count > 1000 || model->channels > 256) {
        return dit_fail(folder, "config.json lacks a size of the model, or one is out of range", "");
    }
    return 1;
}

static int dit_read_schedule(dit_folder *folder, const char *text) {
    dit_schedule *s = &folder->schedule;
    s->timesteps = (int)dit_number(text, "num_train_timesteps", 1000);
    s->offset = (int)dit_number(text, "steps_offset", 0);
    s->beta_start = dit_number(text, "beta_start", 1e-4);
    s->beta_end = dit_number(text, "beta_end", 0.02);
    s->scaled = dit_is(text, "beta_schedule", "scaled_linear", 0);
    s->clip = dit_is(text, "clip_sample", "true", 0) ? dit_number(text, "clip_sample_range", 1.0)
                                                     : 0.0;
    s->alpha_one = dit_is(text, "set_alpha_to_one", "true", 1);
    if (s->timesteps < 1 || s->timesteps > 1000000 ||
        !(dit_is(text, "beta_schedule", "linear", 1) || s->scaled) ||
        !dit_is(text, "prediction_type", "epsilon", 1)) {
        return dit_fail(folder, "scheduler_config.json asks for a schedule that is not known here",
                        "");
    }
    return 1;
}

/* The config beside the weights: PATH/transformer/config.json, else PATH/config.json. */
static int dit_read_configs(dit_folder *folder, const char *path) {
    char name[4096], *text;
    int good;
    snprintf(name, sizeof name, "%s/transformer/config.json", path);
    text = dit_read_text(name);
    if (!text) {
        snprintf(name, sizeof name, "%s/config.json", path);
        text = dit_read_text(name);
    }
    if (!text) return dit_fail(folder, name, "cannot be read");
    good = dit_read_config(folder, text);
    free(text);
    snprintf(name, sizeof name, "%s/scheduler/scheduler_config.json", path);
    text = good ? dit_read_text(name) : NULL;
    good = good && dit_read_schedule(folder, text ? text : "{}");
    free(text);
    return good;
}

static int dit_load_layers(dit_folder *folder) {
    dit *model = &folder->model;
    const size_t area = model->patch * model->patch;
    size_t b;
    model->blocks = (dit_block *)calloc(model->block_count, sizeof *model->blocks);
    if (!model->blocks) return dit_fail(folder, "out of memory", "");
    for (b = 0; b < model->block_count; b++) {
        if (!dit_load_block(folder, b)) return 0;
    }
    model->patches.kernel_height = model->patches.kernel_width = (uint32_t)model->patch;
    model->patches.stride_y = model->patches.stride_x = (uint32_t)model->patch;
    model->patches.dilation_y = model->patches.dilation_x = 1;
    return dit_layer(folder, "pos_embed", "proj", model->width, model->channels * area,
                     &model->patches.linear) &&
           dit_layer(folder, "", "proj_out_1", 2 * model->width, model->width,
                     &model->final_modulation) &&
           dit_layer(folder, "", "proj_out_2", area * model->out_channels, model->width,
                     &model->final);
}

/* 0 when it fails; then folder->message says why. dit_unload is due in any case. */
static int dit_load(aq_context *context, const char *path, dit_folder *folder) {
    aq_error err;
    memset(folder, 0, sizeof *folder);
    folder->model.context = context;
    if (!dit_read_configs(folder, path)) return 0;
    if (aq_model_open(context, path, &folder->file, &err)) {
        return dit_fail(folder, err.message, aq_status_hint(err.status));
    }
    return dit_load_layers(folder);
}

/* ---- static activations */

static int dit_find_activation(const void *user, const aq_linear *layer, float timestep,
                               aq_activation *out, aq_error *err) {
    const dit_groups *all = (const dit_groups *)user;
    size_t i;
    for (i = 0; i < all->count; i++) {
        if (all->layers[i] == layer) {
            return aq_time_activation(&all->groups[i], (int64_t)timestep, out, err) == AQ_OK;
        }
    }
    out->type = AQ_ACTIVATION_DYNAMIC; /* nothing was observed of it */
    return 1;
}

static int dit_add_groups(dit_folder *folder, aq_context *context,
                          const aq_calibration *calibration, const aq_time_options *options,
                          const aq_linear *layer) {
    const aq_calibration_layer *seen = aq_calibration_find(calibration, layer->name);
    dit_groups *all = &folder->statics;
    aq_error err;
    if (layer->input_scales) { /* those of the scaled input, which the file holds */
        const aq_tensor *tensor = aq_model_find(folder->file, layer->name);
        if (!tensor || !tensor->time_groups) return 1;
        all->groups[all->count] = *tensor->time_groups;
        all->groups[all->count].error[0] = NULL; /* not ours to free */
        all->layers[all->count++] = layer;
        return 1;
    }
    if (!seen) return 1;
    if (aq_time_groups_make(context, seen, options, &all->groups[all->count], &err)) {
        return dit_fail(folder, layer->name, err.message);
    }
    all->layers[all->count++] = layer;
    return 1;
}

/* Groups of timesteps for every layer that the calibration file knows. 0 when it fails. */
static inline int dit_calibrate(dit_folder *folder, aq_context *context, const char *path,
                         const aq_time_options *options) {
    dit *model = &folder->model;
    const size_t most = model->block_count * DIT_BLOCK_LAYERS + 2;
    aq_calibration *calibration = NULL;
    aq_error err;
    size_t b, i;
    int good;
    if (aq_calibration_open(context, &path, 1, 0, &calibration, &err)) {
        return dit_fail(folder, err.message, aq_status_hint(err.status));
    }
    folder->statics.layers = (const aq_linear **)calloc(most, sizeof *folder->statics.layers);
    folder->statics.groups = (aq_time_groups *)calloc(most, sizeof *folder->statics.groups);
    good = folder->statics.layers && folder->statics.groups;
    if (!good) dit_fail(folder, "out of memory", "");
    for (b = 0; good && b < model->block_count; b++) {
        for (i = 0; good && i < DIT_BLOCK_LAYERS; i++) {
            good = dit_add_groups(folder, context, calibration, options,
                                  dit_block_layer(&model->blocks[b], i));
        }
    }
    good = good &&
           dit_add_groups(folder, context, calibration, options, &model->final_modulation) &&
           dit_add_groups(folder, context, calibration, options, &model->final);
    aq_calibration_close(calibration);
    if (good && folder->statics.count == 0) {
        good = dit_fail(folder, "the calibration file knows none of the model's layers", path);
    }
    model->activation = AQ_ACTIVATION_STATIC;
    model->find_activation = dit_find_activation;
    model->user = &folder->statics;
    return good;
}

/* ---- interleaved copies */

/* Layer i of the blocks' and the last ones, or NULL behind them. */
static inline aq_linear *dit_layer_at(dit *model, size_t i) {
    const size_t blocks = model->block_count * DIT_BLOCK_LAYERS;
    if (i < blocks) return dit_block_layer(&model->blocks[i / DIT_BLOCK_LAYERS], i % DIT_BLOCK_LAYERS);
    return i == blocks ? &model->final_modulation : i == blocks + 1 ? &model->final : NULL;
}

/* Repacks all layers that are multiplied with INT8. 0 when it fails. */
static inline int dit_repack(dit_folder *folder, aq_context *context) {
    dit *model = &folder->model;
    size_t total = 0, size, i;
    uint8_t *at;
    aq_linear *layer;
    aq_error err;
    for (i = 0; (layer = dit_layer_at(model, i)) != NULL; i++) {
        total += aq_linear_repacked_size(context, layer);
    }
    folder->copies = malloc(total ? total : 1);
    if (!folder->copies) return dit_fail(folder, "out of memory", "");
    at = (uint8_t *)folder->copies;
    for (i = 0; (layer = dit_layer_at(model, i)) != NULL; i++, at += size) {
        size = aq_linear_repacked_size(context, layer);
        if (aq_linear_repack(context, layer, at, size, layer, &err)) {
            return dit_fail(folder, layer->name, err.message);
        }
    }
    return 1;
}

static void dit_unload(dit_folder *folder) {
    size_t i;
    free(folder->copies);
    for (i = 0; i < folder->statics.count; i++) aq_time_groups_free(&folder->statics.groups[i]);
    free((void *)folder->statics.layers);
    free(folder->statics.groups);
    free(folder->model.blocks);
    aq_model_close(folder->file);
    memset(folder, 0, sizeof *folder);
}

#endif
