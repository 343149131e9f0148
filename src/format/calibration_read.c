/* Reads a calibration file: finds which tensors speak of which layer, checks them, and adds each
 * layer to what has been gathered. */
#include "calibration.h"

#include "../base/text.h"
#include "../quant/quant.h"
#include "sort.h"

#ifndef ARROWQUANT_NO_STDIO

typedef enum aq_calib_field {
    AQ_CALIB_MIN, AQ_CALIB_MAX, AQ_CALIB_MEAN, AQ_CALIB_STD, AQ_CALIB_ABSMAX, AQ_CALIB_SQMEAN,
    AQ_CALIB_CHANNEL_MIN, AQ_CALIB_CHANNEL_MAX, AQ_CALIB_PERCENTILES, AQ_CALIB_SKETCH,
    AQ_CALIB_SKETCH_TOP, AQ_CALIB_ROWS, AQ_CALIB_TIMESTEPS, AQ_CALIB_HESSIAN,
    AQ_CALIB_HESSIAN_ROWS, AQ_CALIB_FIELDS
} aq_calib_field;

static const char *const aq_calib_suffixes[AQ_CALIB_FIELDS] = {
    ".act_min", ".act_max", ".act_mean", ".act_std", ".act_absmax", ".act_sqmean",
    ".act_channel_min", ".act_channel_max", ".act_percentiles", ".act_sketch", ".act_sketch_top",
    ".act_rows", ".act_timesteps", ".hessian", ".hessian_rows"
};

/* One tensor that speaks of a layer. */
typedef struct aq_calib_entry {
    const char *name; /* of the layer: its first `size` bytes */
    size_t size;
    aq_calib_field field;
    const aq_st_tensor *tensor;
} aq_calib_entry;

typedef struct aq_calib_file {
    aq_calibration_reader *reader;
    const aq_file *file;
    aq_st_file header;
    const aq_st_tensor *timesteps, *points; /* of the whole file, or NULL */
    const aq_calib_entry **entries;         /* sorted by layer */
    size_t entry_count;
    aq_calibration shown; /* of one layer at a time; and the percentile points */
} aq_calib_file;

static aq_status aq_calib_bad(const aq_calib_file *in, const char *name, const char *what,
                              aq_error *err) {
    return aq_fail_tensor(err, AQ_ERR_CORRUPT, name, 0,
                          "%s: tensor %s: %s; record the statistics again", in->header.path, name,
                          what);
}

/* ---- numbers */

AQ_LIB aq_status aq_st_read_floats(const aq_context *context, const aq_file *file,
                                   const aq_st_tensor *tensor, float *out, aq_error *err) {
    size_t width = aq_dtype_size(tensor->dtype), count = (size_t)(tensor->bytes / width);
    unsigned char piece[8192];
    size_t most = sizeof(piece) / width;
    if (tensor->dtype == AQ_DTYPE_F32) {
        aq_status status = aq_file_read(file, tensor->offset, out, count * width, err);
        aq_little_endian(out, count, width);
        return status;
    }
    for (size_t done = 0; done < count;) {
        size_t take = count - done < most ? count - done : most;
        aq_status status = aq_file_read(file, tensor->offset + done * width, piece, take * width,
                                        err);
        if (status != AQ_OK) return status;
        aq_little_endian(piece, take, width);
        aq_to_f32(context, tensor->dtype, piece, out + done, take);
        done += take;
    }
    return AQ_OK;
}

static aq_status aq_calib_floats(const aq_calib_file *in, aq_arena *arena,
                                 const aq_st_tensor *tensor, uint64_t count, const float **out,
                                 aq_error *err) {
    if (!aq_dtype_is_float(tensor->dtype))
        return aq_calib_bad(in, tensor->name, "a float type was expected", err);
    if (tensor->bytes / aq_dtype_size(tensor->dtype) != count)
        return aq_fail_tensor(err, AQ_ERR_SHAPE, tensor->name, 0,
                              "%s: tensor %s: expected %llu elements (timesteps × channels or "
                              "points), found %llu bytes of %s; record the statistics again",
                              in->header.path, tensor->name, (unsigned long long)count,
                              (unsigned long long)tensor->bytes, aq_dtype_name(tensor->dtype));
    if (count > SIZE_MAX / sizeof(float)) return aq_fail_memory(err, SIZE_MAX);
    float *values = (float *)aq_arena_alloc(arena, (size_t)count * sizeof(float) + 1);
    if (!values) return aq_fail_memory(err, (size_t)count * sizeof(float));
    aq_status status = aq_st_read_floats(in->reader->context, in->file, tensor, values, err);
    if (status != AQ_OK) return status;
    for (size_t i = 0; i < (size_t)count; i++) {
        if (values[i] - values[i] != 0.0f)
            return aq_fail_tensor(err, AQ_ERR_CORRUPT, tensor->name, i,
                                  "%s: tensor %s: element %zu is NaN or infinite; record the "
                                  "statistics again (F16 holds no more than 65504)",
                                  in->header.path, tensor->name, i);
    }
    *out = values;
    return AQ_OK;
}

static int64_t aq_calib_integer(aq_dtype dtype, const unsigned char *at, bool *negative_wrap) {
    uint64_t bits = 0;
    size_t width = aq_dtype_size(dtype);
    for (size_t i = 0; i < width; i++) bits |= (uint64_t)at[i] << (8 * i);
    bool is_signed = dtype == AQ_DTYPE_I32 || dtype == AQ_DTYPE_I64;
    if (is_signed && width == 4 && bits >> 31) bits |= UINT64_C(0xFFFFFFFF00000000);
    if (!is_signed && bits >> 63) *negative_wrap = true;
    int64_t value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static aq_status aq_calib_integers(const aq_calib_file *in, aq_arena *arena,
                                   const aq_st_tensor *tensor, uint64_t count, int64_t least,
                                   int64_t most, int64_t **out, aq_error *err) {
    aq_dtype type = tensor->dtype;
    size_t width = aq_dtype_size(type);
    bool wraps = false;
    if (type != AQ_DTYPE_I64 && type != AQ_DTYPE_I32 && type != AQ_DTYPE_U64 &&
        type != AQ_DTYPE_U32)
        return aq_calib_bad(in, tensor->name, "an integer type of 32 or 64 bits was expected", err);
    if (tensor->bytes / width != count)
        return aq_calib_bad(in, tensor->name, "its size does not fit the others of its layer", err);
    size_t n = (size_t)count;
    int64_t *values = (int64_t *)aq_arena_alloc(arena, n * sizeof(int64_t) + 1);
    unsigned char *bytes = (unsigned char *)aq_arena_alloc(arena, n * width + 1);
    if (!values || !bytes) return aq_fail_memory(err, n * sizeof(int64_t));
    aq_status status = aq_file_read(in->file, tensor->offset, bytes, n * width, err);
    for (size_t i = 0; status == AQ_OK && i < n; i++) {
        values[i] = aq_calib_integer(type, bytes + i * width, &wraps);
        if (wraps || values[i] < least || values[i] > most)
            status = aq_calib_bad(in, tensor->name, "a number is out of range", err);
    }
    *out = values;
    return status;
}

/* ---- which tensor is what */

static aq_status aq_calib_classify(aq_calib_file *in, const aq_st_tensor *tensor,
                                   aq_calib_entry *entry, aq_error *err) {
    entry->tensor = tensor;
    entry->name = tensor->name;
    entry->size = 0;
    entry->field = AQ_CALIB_FIELDS;
    if (strcmp(tensor->name, "timesteps") == 0) in->timesteps = tensor;
    else if (strcmp(tensor->name, "percentiles") == 0) in->points = tensor;
    else entry->size = strlen(tensor->name);
    if (!entry->size) return AQ_OK;
    for (unsigned f = 0; f < AQ_CALIB_FIELDS; f++) {
        size_t size = strlen(aq_calib_suffixes[f]);
        if (entry->size <= size || !aq_ends_with(tensor->name, aq_calib_suffixes[f])) continue;
        entry->size -= size;
        entry->field = (aq_calib_field)f;
        return AQ_OK;
    }
    const char *last = strrchr(tensor->name, '.');
    if (last && strncmp(last, ".act_", 5) == 0) { /* of a later version */
        entry->size = 0;
        return AQ_OK;
    }
    if (tensor->rank == 2 && tensor->shape[0] == tensor->shape[1] &&
        aq_dtype_is_float(tensor->dtype) && !aq_ends_with(tensor->name, ".weight")) {
        entry->field = AQ_CALIB_HESSIAN;
        return AQ_OK;
    }
    return aq_fail_tensor(err, AQ_ERR_METADATA, tensor->name, 0,
                          "%s: tensor %s is no statistic of a layer's input; is it a model? Give "
                          "a calibration file (see docs/CALIBRATION.md)", in->header.path,
                          tensor->name);
}

static int aq_calib_compare(const void *a, const void *b) {
    const aq_calib_entry *x = (const aq_calib_entry *)a, *y = (const aq_calib_entry *)b;
    size_t size = x->size < y->size ? x->size : y->size;
    int order = memcmp(x->name, y->name, size);
    if (order) return order;
    if (x->size != y->size) return x->size < y->size ? -1 : 1;
    return (int)x->field - (int)y->field;
}

static aq_status aq_calib_sort(aq_calib_file *in, aq_arena *arena, aq_error *err) {
    size_t count = in->header.tensor_count, used = 0;
    aq_calib_entry *entries =
        (aq_calib_entry *)aq_arena_alloc(arena, (count + 1) * sizeof(aq_calib_entry));
    in->entries = (const aq_calib_entry **)aq_arena_alloc(arena, (count + 1) * sizeof(void *));
    if (!entries || !in->entries) return aq_fail_memory(err, count * sizeof(aq_calib_entry));
    for (size_t i = 0; i < count; i++) {
        aq_status status = aq_calib_classify(in, &in->header.tensors[i], &entries[used], err);
        if (status != AQ_OK) return status;
        if (!entries[used].size) continue;
        in->entries[used] = &entries[used];
        used++;
    }
    if (!used)
        return aq_fail(err, AQ_ERR_METADATA, "%s: there are no statistics in it; give a "
                       "calibration file (see docs/CALIBRATION.md)", in->header.path);
    in->entry_count = used;
    aq_sort_pointers((const void **)in->entries, used, aq_calib_compare);
    return AQ_OK;
}

/* ---- one layer */

typedef struct aq_calib_layer {
    aq_calib_file *in;
    aq_arena *arena; /* for this layer alone */
    const aq_st_tensor *tensor[AQ_CALIB_FIELDS];
    aq_calibration_layer out;
} aq_calib_layer;

static aq_status aq_calib_timesteps(aq_calib_layer *layer, aq_error *err) {
    const aq_st_tensor *tensor = layer->tensor[AQ_CALIB_TIMESTEPS];
    int64_t *values;
    if (!tensor) tensor = layer->in->timesteps;
    if (!tensor)
        return aq_calib_bad(layer->in, layer->out.name, "nothing tells its timesteps", err);
    uint64_t count = tensor->bytes / aq_dtype_size(tensor->dtype);
    if (tensor->rank != 1 || !count)
        return aq_calib_bad(layer->in, tensor->name, "one dimension of at least one was expected",
                            err);
    aq_status status = aq_calib_integers(layer->in, layer->arena, tensor, count, INT64_MIN,
                                         INT64_MAX, &values, err);
    for (size_t i = 1; status == AQ_OK && i < count; i++) {
        if (values[i] <= values[i - 1])
            status = aq_calib_bad(layer->in, tensor->name, "timesteps should ascend", err);
    }
    layer->out.timesteps = values;
    layer->out.timestep_count = (size_t)count;
    return status;
}

/* The number of channels, from whatever tells it. */
static aq_status aq_calib_channels(aq_calib_layer *layer, aq_error *err) {
    static const aq_calib_field fields[] = { AQ_CALIB_ABSMAX, AQ_CALIB_SQMEAN, AQ_CALIB_CHANNEL_MIN,
                                             AQ_CALIB_CHANNEL_MAX, AQ_CALIB_HESSIAN };
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        const aq_st_tensor *tensor = layer->tensor[fields[i]];
        if (!tensor) continue;
        bool square = fields[i] == AQ_CALIB_HESSIAN;
        if (tensor->rank != 2 || !tensor->shape[1] ||
            tensor->shape[0] != (square ? tensor->shape[1] : layer->out.timestep_count) ||
            (layer->out.channels && layer->out.channels != tensor->shape[1]))
            return aq_fail_tensor(err, AQ_ERR_SHAPE, tensor->name, 0,
                                  "%s: tensor %s: expected the shape [%s, channels] with the "
                                  "channels of its layer's other figures; record the statistics "
                                  "again", layer->in->header.path, tensor->name,
                                  square ? "channels" : "timesteps");
        layer->out.channels = tensor->shape[1];
    }
    if (layer->out.channels) return AQ_OK;
    return aq_calib_bad(layer->in, layer->out.name,
                        "no figure by channel tells the width of its input", err);
}

static aq_status aq_calib_figure(aq_calib_layer *layer, aq_calib_field field, uint64_t width,
                                 const float **out, aq_error *err) {
    const aq_st_tensor *tensor = layer->tensor[field];
    uint64_t count = 0;
    if (!tensor) return AQ_OK;
    if (!aq_mul_u64(layer->out.timestep_count, width, &count)) return aq_fail_memory(err, SIZE_MAX);
    return aq_calib_floats(layer->in, layer->arena, tensor, count, out, err);
}

static aq_status aq_calib_sketch(aq_calib_layer *layer, aq_error *err) {
    const aq_st_tensor *cells = layer->tensor[AQ_CALIB_SKETCH];
    const aq_st_tensor *tops = layer->tensor[AQ_CALIB_SKETCH_TOP];
    size_t t = layer->out.timestep_count;
    int64_t *counts, *top;
    if (!cells || !tops) return AQ_OK;
    int32_t *narrow = (int32_t *)aq_arena_alloc(layer->arena, t * sizeof(int32_t));
    if (!narrow) return aq_fail_memory(err, t * sizeof(int32_t));
    aq_status status = aq_calib_integers(layer->in, layer->arena, cells,
                                         (uint64_t)t * AQ_SKETCH_CELLS, 0,
                                         INT64_C(1) << 53, &counts, err);
    if (status == AQ_OK) /* up to the bucket of the largest float */
        status = aq_calib_integers(layer->in, layer->arena, tops, t, AQ_SKETCH_SIDE,
                                   (0x7F800000 >> AQ_SKETCH_SHIFT) - 1, &top, err);
    if (status != AQ_OK) return status;
    for (size_t i = 0; i < t; i++) {
        uint64_t total = 0;
        narrow[i] = (int32_t)top[i];
        for (size_t k = 0; k < AQ_SKETCH_CELLS; k++)
            total += (uint64_t)counts[i * AQ_SKETCH_CELLS + k];
        if (!total) return aq_calib_bad(layer->in, cells->name, "a sketch is empty", err);
    }
    layer->out.sketch = (const uint64_t *)(const void *)counts;
    layer->out.sketch_top = narrow;
    return AQ_OK;
}

/* What no data can give. */
static aq_status aq_calib_possible(const aq_calib_layer *layer, aq_error *err) {
    const aq_calibration_layer *out = &layer->out;
    size_t t = out->timestep_count, all = t * (size_t)out->channels;
    for (size_t i = 0; i < t; i++) {
        if (out->min[i] > out->max[i])
            return aq_calib_bad(layer->in, layer->tensor[AQ_CALIB_MIN]->name,
                                "a minimum is above the maximum", err);
        if (out->std[i] < 0.0f)
            return aq_calib_bad(layer->in, layer->tensor[AQ_CALIB_STD]->name,
                                "a standard deviation is negative", err);
    }
    for (size_t i = 0; i < all; i++) {
        if (out->absmax && out->absmax[i] < 0.0f)
            return aq_calib_bad(layer->in, layer->tensor[AQ_CALIB_ABSMAX]->name,
                                "a largest magnitude is negative", err);
        if (out->sqmean && out->sqmean[i] < 0.0f)
            return aq_calib_bad(layer->in, layer->tensor[AQ_CALIB_SQMEAN]->name,
                                "a mean square is negative", err);
        if (out->channel_min && out->channel_max && out->channel_min[i] > out->channel_max[i])
            return aq_calib_bad(layer->in, layer->tensor[AQ_CALIB_CHANNEL_MIN]->name,
                                "a minimum is above the maximum", err);
    }
    return AQ_OK;
}

static aq_status aq_calib_figures(aq_calib_layer *layer, aq_error *err) {
    aq_calibration_layer *out = &layer->out;
    uint64_t channels = out->channels;
    int64_t *rows = NULL;
    for (unsigned f = AQ_CALIB_MIN; f <= AQ_CALIB_STD; f++) {
        if (!layer->tensor[f])
            return aq_fail_tensor(err, AQ_ERR_METADATA, out->name, 0,
                                  "%s: layer %s: %s%s is missing; record the statistics again",
                                  layer->in->header.path, out->name, out->name,
                                  aq_calib_suffixes[f]);
    }
    aq_status status = aq_calib_figure(layer, AQ_CALIB_MIN, 1, &out->min, err);
    if (status == AQ_OK) status = aq_calib_figure(layer, AQ_CALIB_MAX, 1, &out->max, err);
    if (status == AQ_OK) status = aq_calib_figure(layer, AQ_CALIB_MEAN, 1, &out->mean, err);
    if (status == AQ_OK) status = aq_calib_figure(layer, AQ_CALIB_STD, 1, &out->std, err);
    if (status == AQ_OK)
        status = aq_calib_figure(layer, AQ_CALIB_ABSMAX, channels, &out->absmax, err);
    if (status == AQ_OK)
        status = aq_calib_figure(layer, AQ_CALIB_SQMEAN, channels, &out->sqmean, err);
    if (status == AQ_OK)
        status = aq_calib_figure(layer, AQ_CALIB_CHANNEL_MIN, channels, &out->channel_min, err);
    if (status == AQ_OK)
        status = aq_calib_figure(layer, AQ_CALIB_CHANNEL_MAX, channels, &out->channel_max, err);
    if (status == AQ_OK && layer->in->shown.percentile_count)
        status = aq_calib_figure(layer, AQ_CALIB_PERCENTILES, layer->in->shown.percentile_count,
                                 &out->percentiles, err);
    if (status == AQ_OK) status = aq_calib_sketch(layer, err);
    if (status == AQ_OK && layer->tensor[AQ_CALIB_ROWS])
        status = aq_calib_integers(layer->in, layer->arena, layer->tensor[AQ_CALIB_ROWS],
                                   out->timestep_count, 1, INT64_C(1) << 53, &rows, err);
    out->rows = (const uint64_t *)(const void *)rows;
    return status == AQ_OK ? aq_calib_possible(layer, err) : status;
}

/* Notes where the second moments are; they are read when somebody asks for them. */
static aq_status aq_calib_moments(aq_calib_layer *layer, aq_error *err) {
    const aq_st_tensor *tensor = layer->tensor[AQ_CALIB_HESSIAN];
    int64_t *rows = NULL;
    aq_moment_part part;
    if (!aq_dtype_is_float(tensor->dtype))
        return aq_calib_bad(layer->in, tensor->name, "a float type was expected", err);
    if (layer->tensor[AQ_CALIB_HESSIAN_ROWS]) {
        aq_status status = aq_calib_integers(layer->in, layer->arena,
                                             layer->tensor[AQ_CALIB_HESSIAN_ROWS], 1, 1,
                                             INT64_C(1) << 53, &rows, err);
        if (status != AQ_OK) return status;
    }
    memset(&part, 0, sizeof(part));
    part.file = layer->in->file;
    part.tensor = tensor;
    part.rows = rows ? (uint64_t)rows[0] : 0;
    return aq_moment_note(layer->in->reader, layer->in->header.path, &layer->out, &part, err);
}

/* entries[first … end − 1] speak of one layer. */
static aq_status aq_calib_layer_read(aq_calib_file *in, aq_arena *arena, size_t first, size_t end,
                                     aq_error *err) {
    aq_calib_layer layer;
    bool figures = false;
    aq_gathered *made;
    memset(&layer, 0, sizeof(layer));
    layer.in = in;
    layer.arena = arena;
    layer.out.name = aq_arena_copy(arena, in->entries[first]->name, in->entries[first]->size);
    if (!layer.out.name) return aq_fail_memory(err, in->entries[first]->size);
    for (size_t i = first; i < end; i++) {
        aq_calib_field field = in->entries[i]->field;
        if (layer.tensor[field])
            return aq_calib_bad(in, in->entries[i]->tensor->name,
                                "its layer's second moments are there twice", err);
        layer.tensor[field] = in->entries[i]->tensor;
        figures = figures || field < AQ_CALIB_ROWS;
    }
    aq_status status = figures ? aq_calib_timesteps(&layer, err) : AQ_OK;
    if (status == AQ_OK) status = aq_calib_channels(&layer, err);
    if (status == AQ_OK && figures) status = aq_calib_figures(&layer, err);
    if (status != AQ_OK) return status;
    if (figures)
        status = aq_gathering_add(in->reader->gathering, &in->shown, &layer.out, in->header.path,
                                  err);
    else
        status = aq_gathering_layer(in->reader->gathering, layer.out.name, layer.out.channels,
                                    &made, err);
    if (status != AQ_OK || !layer.tensor[AQ_CALIB_HESSIAN]) return status;
    return aq_calib_moments(&layer, err);
}

static aq_status aq_calib_points(aq_calib_file *in, aq_arena *arena, aq_error *err) {
    aq_gathering *gathering = in->reader->gathering;
    if (!in->points) return AQ_OK;
    uint64_t count = in->points->bytes / aq_dtype_size(in->points->dtype);
    aq_status status = aq_calib_floats(in, arena, in->points, count, &in->shown.percentile_points,
                                       err);
    in->shown.percentile_count = (size_t)count;
    if (status != AQ_OK || gathering->point_count) return status;
    status = aq_gathering_points(gathering, in->shown.percentile_points, (size_t)count, err);
    if (status != AQ_ERR_ARGUMENT) return status;
    return aq_calib_bad(in, in->points->name, "percentiles should ascend from 0 to 100", err);
}

AQ_LIB aq_status aq_calibration_read(aq_calibration_reader *reader, const char *path,
                                     aq_file *file, aq_error *err) {
    aq_calib_file in;
    aq_arena sorted;
    uint64_t size;
    memset(&in, 0, sizeof(in));
    in.reader = reader;
    in.file = file;
    aq_arena_init(&sorted, reader->context);
    aq_status status = aq_st_read_header(reader->arena, path, &in.header, err);
    if (status == AQ_OK) status = aq_file_open(file, in.header.path, &size, err);
    if (status == AQ_OK) status = aq_calib_sort(&in, &sorted, err);
    if (status == AQ_OK) status = aq_calib_points(&in, &sorted, err);
    for (size_t i = 0, end; status == AQ_OK && i < in.entry_count; i = end) {
        aq_arena arena;
        const aq_calib_entry *first = in.entries[i];
        for (end = i + 1; end < in.entry_count; end++) {
            const aq_calib_entry *next = in.entries[end];
            if (next->size != first->size || memcmp(next->name, first->name, first->size) != 0)
                break;
        }
        aq_arena_init(&arena, reader->context);
        status = aq_calib_layer_read(&in, &arena, i, end, err);
        aq_arena_free(&arena);
    }
    aq_arena_free(&sorted);
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
