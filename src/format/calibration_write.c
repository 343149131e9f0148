/* Writes a calibration as one safetensors file, tensors of 8-byte elements first. */
#include "calibration.h"

#include "../base/text.h"
#include "../quant/quant.h"

#ifndef ARROWQUANT_NO_STDIO

/* One tensor to be written: from memory, or second moments that are read first. */
typedef struct aq_calib_part {
    aq_st_output output;
    const void *data;
    const aq_calibration_layer *moments;
} aq_calib_part;

typedef struct aq_calib_writer {
    aq_context *context;
    const aq_calibration *calibration;
    aq_arena arena;
    aq_calib_part *parts;
    size_t count, capacity;
    uint64_t end;
    bool failed;
} aq_calib_writer;

static void aq_calib_put(aq_calib_writer *writer, const char *layer, const char *suffix,
                         aq_dtype dtype, const void *data, uint64_t first, uint64_t second) {
    size_t size = strlen(layer) + strlen(suffix) + 1;
    if (!data || writer->failed) return;
    if (writer->count == writer->capacity) {
        size_t capacity = writer->capacity ? writer->capacity * 2 : 64;
        aq_calib_part *grown = (aq_calib_part *)aq_resize(
            writer->context, writer->parts, writer->capacity * sizeof(*grown),
            capacity * sizeof(*grown));
        writer->failed = !grown;
        if (!grown) return;
        writer->parts = grown;
        writer->capacity = capacity;
    }
    char *name = (char *)aq_arena_alloc(&writer->arena, size);
    uint64_t *shape = (uint64_t *)aq_arena_alloc(&writer->arena, 2 * sizeof(uint64_t));
    writer->failed = !name || !shape;
    if (writer->failed) return;
    aq_format(name, size, "%s%s", layer, suffix);
    shape[0] = first;
    shape[1] = second;
    aq_calib_part *part = &writer->parts[writer->count++];
    memset(part, 0, sizeof(*part));
    part->output.name = name;
    part->output.dtype = dtype;
    part->output.rank = second ? 2 : 1;
    part->output.shape = shape;
    part->output.begin = writer->end;
    writer->end += first * (second ? second : 1) * aq_dtype_size(dtype);
    part->output.end = writer->end;
    part->data = data;
}

static void aq_calib_put_integers(aq_calib_writer *writer, const aq_calibration_layer *layer) {
    size_t t = layer->timestep_count;
    if (t) {
        aq_calib_put(writer, layer->name, ".act_timesteps", AQ_DTYPE_I64, layer->timesteps, t, 0);
        aq_calib_put(writer, layer->name, ".act_rows", AQ_DTYPE_U64, layer->rows, t, 0);
        aq_calib_put(writer, layer->name, ".act_sketch", AQ_DTYPE_U64, layer->sketch, t,
                     AQ_SKETCH_CELLS);
    }
    if (layer->has_hessian && layer->hessian_rows)
        aq_calib_put(writer, layer->name, ".hessian_rows", AQ_DTYPE_U64, &layer->hessian_rows, 1,
                     0);
}

static void aq_calib_put_floats(aq_calib_writer *writer, const aq_calibration_layer *layer) {
    size_t t = layer->timestep_count, points = writer->calibration->percentile_count;
    uint64_t c = layer->channels;
    if (t) {
        aq_calib_put(writer, layer->name, ".act_min", AQ_DTYPE_F32, layer->min, t, 0);
        aq_calib_put(writer, layer->name, ".act_max", AQ_DTYPE_F32, layer->max, t, 0);
        aq_calib_put(writer, layer->name, ".act_mean", AQ_DTYPE_F32, layer->mean, t, 0);
        aq_calib_put(writer, layer->name, ".act_std", AQ_DTYPE_F32, layer->std, t, 0);
        aq_calib_put(writer, layer->name, ".act_absmax", AQ_DTYPE_F32, layer->absmax, t, c);
        aq_calib_put(writer, layer->name, ".act_sqmean", AQ_DTYPE_F32, layer->sqmean, t, c);
        aq_calib_put(writer, layer->name, ".act_channel_min", AQ_DTYPE_F32, layer->channel_min, t,
                     c);
        aq_calib_put(writer, layer->name, ".act_channel_max", AQ_DTYPE_F32, layer->channel_max, t,
                     c);
        if (points)
            aq_calib_put(writer, layer->name, ".act_percentiles", AQ_DTYPE_F32, layer->percentiles,
                         t, points);
        aq_calib_put(writer, layer->name, ".act_sketch_top", AQ_DTYPE_I32, layer->sketch_top, t, 0);
    }
    if (!layer->has_hessian) return;
    aq_calib_put(writer, layer->name, ".hessian", AQ_DTYPE_F32, layer, c, c);
    if (!writer->failed) writer->parts[writer->count - 1].moments = layer;
}

static aq_status aq_calib_write_part(aq_calib_writer *writer, const aq_file *file, uint64_t start,
                                     const aq_calib_part *part, aq_error *err) {
    size_t bytes = (size_t)(part->output.end - part->output.begin);
    size_t width = aq_dtype_size(part->output.dtype);
    char *copy = (char *)aq_alloc(writer->context, bytes);
    aq_status status = AQ_OK;
    if (!copy) return aq_fail_memory(err, bytes);
    if (part->moments)
        status = aq_calibration_hessian(writer->context, writer->calibration, part->moments,
                                        (float *)(void *)copy, err);
    else if (bytes)
        memcpy(copy, part->data, bytes);
    aq_little_endian(copy, bytes / width, width);
    if (status == AQ_OK)
        status = aq_file_write(file, start + part->output.begin, copy, bytes, err);
    aq_free(writer->context, copy, bytes);
    return status;
}

static aq_status aq_calib_write_file(aq_calib_writer *writer, const char *path, aq_error *err) {
    static const char metadata[] = "{\"arrowquant_calibration\":\"1\"}";
    aq_file file = AQ_FILE_CLOSED;
    uint64_t capacity;
    aq_st_output *outputs = (aq_st_output *)aq_arena_alloc(
        &writer->arena, (writer->count + 1) * sizeof(aq_st_output));
    if (!outputs) return aq_fail_memory(err, writer->count * sizeof(aq_st_output));
    for (size_t i = 0; i < writer->count; i++) outputs[i] = writer->parts[i].output;
    aq_status status = aq_st_header_size(writer->context, outputs, writer->count, metadata,
                                         &capacity, err);
    if (status == AQ_OK) status = aq_file_create(&file, path, err);
    if (status != AQ_OK) return status;
    status = aq_st_write_header(writer->context, &file, capacity, outputs, writer->count, metadata,
                                err);
    for (size_t i = 0; status == AQ_OK && i < writer->count; i++)
        status = aq_calib_write_part(writer, &file, 8 + capacity, &writer->parts[i], err);
    if (status == AQ_OK) status = aq_file_sync(&file, err);
    aq_status closed = aq_file_close(&file, status == AQ_OK ? err : NULL);
    return status == AQ_OK ? closed : status;
}

static aq_status aq_calib_write_replace(aq_calib_writer *writer, const char *path, aq_error *err) {
    size_t size = strlen(path) + 40;
    char *temporary = (char *)aq_arena_alloc(&writer->arena, size);
    if (!temporary) return aq_fail_memory(err, size);
    aq_format(temporary, size, "%s.%llu.tmp", path, (unsigned long long)aq_process_id());
    aq_status status = aq_calib_write_file(writer, temporary, err);
    if (status == AQ_OK) status = aq_rename(temporary, path, AQ_RENAME_REPLACE, err);
    if (status != AQ_OK) (void)aq_remove_tree(writer->context, temporary, NULL);
    return status;
}

ARROWQUANT_API aq_status aq_calibration_save(aq_context *context,
                                             const aq_calibration *calibration, const char *path,
                                             aq_error *err) {
    if (!calibration || !path)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_calibration_save: calibration and path must not "
                       "be NULL");
    aq_calib_writer writer;
    memset(&writer, 0, sizeof(writer));
    writer.context = context;
    writer.calibration = calibration;
    aq_arena_init(&writer.arena, context);
    for (size_t i = 0; i < calibration->layer_count; i++)
        aq_calib_put_integers(&writer, &calibration->layers[i]);
    if (calibration->percentile_count)
        aq_calib_put(&writer, "percentiles", "", AQ_DTYPE_F32, calibration->percentile_points,
                     calibration->percentile_count, 0);
    for (size_t i = 0; i < calibration->layer_count; i++)
        aq_calib_put_floats(&writer, &calibration->layers[i]);
    aq_status status = writer.failed ? aq_fail_memory(err, writer.count * sizeof(aq_calib_part))
                                     : aq_calib_write_replace(&writer, path, err);
    aq_free(context, writer.parts, writer.capacity * sizeof(aq_calib_part));
    aq_arena_free(&writer.arena);
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
