/* Opens calibration files, merges them, and reads second moments when they are asked for. */
#include "calibration.h"

#include "../base/text.h"
#include "../simd/simd.h"

#ifndef ARROWQUANT_NO_STDIO

/* What an opened calibration keeps. */
typedef struct aq_calibration_source {
    aq_file *files;
    aq_calibration **gathered; /* of JSON lines, else NULL */
    size_t file_count;
    const aq_moment_list **lists; /* by owner */
} aq_calibration_source;

AQ_LIB aq_status aq_moment_note(aq_calibration_reader *reader, const char *path,
                                const aq_calibration_layer *layer, const aq_moment_part *from,
                                aq_error *err) {
    aq_moment_list *list = reader->moments;
    while (list && strcmp(list->name, layer->name) != 0) list = list->next;
    if (!list) {
        list = (aq_moment_list *)aq_arena_alloc(reader->arena, sizeof(*list));
        if (!list) return aq_fail_memory(err, sizeof(*list));
        list->name = aq_arena_string(reader->arena, layer->name);
        if (!list->name) return aq_fail_memory(err, strlen(layer->name));
        list->channels = layer->channels;
        list->next = reader->moments;
        reader->moments = list;
    }
    if (list->first && (!from->rows || !list->first->rows))
        return aq_fail_tensor(err, AQ_ERR_METADATA, layer->name, 0,
                              "%s: layer %s: two files have its second moments, and not both say "
                              "of how many rows (hessian_rows); they cannot be weighed", path,
                              layer->name);
    aq_moment_part *part = (aq_moment_part *)aq_arena_alloc(reader->arena, sizeof(*part));
    if (!part) return aq_fail_memory(err, sizeof(*part));
    *part = *from;
    part->next = list->first;
    list->first = part;
    return AQ_OK;
}

static void aq_source_close(struct aq_calibration_state *state) {
    aq_calibration_source *source = (aq_calibration_source *)state->source;
    for (size_t i = 0; i < source->file_count; i++) {
        (void)aq_file_close(&source->files[i], NULL);
        aq_calibration_close(source->gathered[i]);
    }
}

static aq_status aq_moment_part_read(aq_context *context, const aq_moment_part *part, float *out,
                                     aq_error *err) {
    if (part->memory) return aq_calibration_hessian(context, part->memory, part->layer, out, err);
    return aq_st_read_floats(context, part->file, part->tensor, out, err);
}

/* Adds `share` of one file's second moments to what is in `out`. */
AQ_SIMD_EXACT static aq_status aq_moments_add(aq_context *context, const aq_moment_part *part,
                                              size_t count, double share, float *out,
                                              aq_error *err) {
    AQ_SIMD_EXACT_BODY
    float *more = (float *)aq_alloc(context, count * sizeof(float));
    if (!more) return aq_fail_memory(err, count * sizeof(float));
    aq_status status = aq_moment_part_read(context, part, more, err);
    for (size_t i = 0; status == AQ_OK && i < count; i++)
        out[i] = (float)((double)out[i] + share * ((double)more[i] - (double)out[i]));
    aq_free(context, more, count * sizeof(float));
    return status;
}

static aq_status aq_source_read(aq_context *context, const aq_calibration *calibration,
                                const aq_calibration_layer *layer, float *out, aq_error *err) {
    const aq_calibration_source *source =
        (const aq_calibration_source *)calibration->state->source;
    const aq_moment_list *list = source->lists[layer->owner];
    size_t count = (size_t)layer->channels * (size_t)layer->channels;
    uint64_t rows = list->first->rows;
    aq_status status = aq_moment_part_read(context, list->first, out, err);
    for (const aq_moment_part *part = list->first->next; status == AQ_OK && part;
         part = part->next) {
        rows += part->rows;
        status = aq_moments_add(context, part, count, (double)part->rows / (double)rows, out, err);
    }
    if (status != AQ_OK) return status;
    return aq_moments_check(out, layer->channels,
                            list->first->file ? list->first->file->path : "JSON lines",
                            layer->name, err);
}

/* Gives each layer its list; all lists have a layer. */
static aq_status aq_source_attach(aq_calibration *calibration, aq_calibration_source *source,
                                  const aq_calibration_reader *reader, aq_error *err) {
    aq_calibration_layer *layers = (aq_calibration_layer *)(uintptr_t)calibration->layers;
    size_t bytes = (calibration->layer_count + 1) * sizeof(void *);
    source->lists = (const aq_moment_list **)aq_arena_alloc(reader->arena, bytes);
    if (!source->lists) return aq_fail_memory(err, bytes);
    for (const aq_moment_list *list = reader->moments; list; list = list->next) {
        for (size_t i = 0; i < calibration->layer_count; i++) {
            if (strcmp(layers[i].name, list->name) != 0) continue;
            source->lists[i] = list;
            layers[i].has_hessian = true;
            layers[i].owner = i;
            for (const aq_moment_part *part = list->first; part; part = part->next)
                layers[i].hessian_rows += part->rows;
        }
    }
    return AQ_OK;
}

/* JSON lines become a calibration of their own first, which is kept for its second moments. */
static aq_status aq_source_lines(aq_calibration_reader *reader, const char *path,
                                 aq_calibration **gathered, aq_error *err) {
    aq_moment_part part;
    aq_status status = aq_calibration_read_lines(reader, path, gathered, err);
    if (status != AQ_OK) return status;
    const aq_calibration *made = *gathered;
    if (!reader->gathering->point_count)
        status = aq_gathering_points(reader->gathering, made->percentile_points,
                                     made->percentile_count, err);
    memset(&part, 0, sizeof(part));
    part.memory = made;
    for (size_t i = 0; status == AQ_OK && i < made->layer_count; i++) {
        part.layer = &made->layers[i];
        part.rows = part.layer->hessian_rows;
        status = aq_gathering_add(reader->gathering, made, part.layer, path, err);
        if (status == AQ_OK) status = aq_moment_note(reader, path, part.layer, &part, err);
    }
    return status;
}

static aq_status aq_calibration_open_all(aq_calibration *calibration, aq_calibration_reader *reader,
                                         const char *const *paths, size_t count, aq_error *err) {
    struct aq_calibration_state *state = calibration->state;
    aq_calibration_source *source =
        (aq_calibration_source *)aq_arena_alloc(reader->arena, sizeof(*source));
    aq_file *files = (aq_file *)aq_arena_alloc(reader->arena, count * sizeof(aq_file));
    aq_calibration **gathered =
        (aq_calibration **)aq_arena_alloc(reader->arena, count * sizeof(*gathered));
    if (!source || !files || !gathered) return aq_fail_memory(err, count * sizeof(aq_file));
    for (size_t i = 0; i < count; i++) files[i].handle = -1;
    source->files = files;
    source->gathered = gathered;
    source->file_count = count;
    state->source = source;
    state->close = aq_source_close;
    state->read = aq_source_read;
    aq_status status = AQ_OK;
    for (size_t i = 0; status == AQ_OK && i < count; i++) {
        const char *path = paths[i] ? aq_arena_string(reader->arena, paths[i]) : NULL;
        if (!paths[i])
            return aq_fail(err, AQ_ERR_ARGUMENT, "aq_calibration_open: path %zu is NULL", i);
        if (!path) return aq_fail_memory(err, strlen(paths[i]) + 1);
        if (aq_ends_with(path, ".jsonl")) status = aq_source_lines(reader, path, &gathered[i], err);
        else status = aq_calibration_read(reader, path, &files[i], err);
    }
    if (status == AQ_OK)
        status = aq_calibration_fill(calibration, reader->gathering, false, err);
    if (status == AQ_OK) status = aq_source_attach(calibration, source, reader, err);
    return status == AQ_OK ? aq_calibration_finish(calibration, err) : status;
}

ARROWQUANT_API aq_status aq_calibration_open(aq_context *context, const char *const *paths,
                                             size_t count, uint32_t samples, aq_calibration **out,
                                             aq_error *err) {
    if (!paths || !count || !out)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_calibration_open: paths and out must not be NULL, "
                       "and there must be a path");
    aq_calibration_reader reader;
    aq_gathering gathering;
    aq_status status = aq_calibration_new(context, out, err);
    if (status != AQ_OK) return status;
    memset(&reader, 0, sizeof(reader));
    memset(&gathering, 0, sizeof(gathering));
    gathering.context = context;
    reader.context = context;
    reader.arena = &(*out)->state->arena;
    reader.gathering = &gathering;
    reader.samples = samples;
    status = aq_calibration_open_all(*out, &reader, paths, count, err);
    aq_gathering_free(&gathering);
    if (status == AQ_OK) return AQ_OK;
    aq_calibration_close(*out);
    *out = NULL;
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
