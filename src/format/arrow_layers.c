/* The table of layers: its schema, and rows that are exported where they lie. */
#include "arrow.h"

#include <math.h>

#ifndef ARROWQUANT_NO_STDIO

/* `item`: of a list, the format of its elements. */
typedef struct aq_arrow_column_spec {
    const char *name, *format, *item;
    bool nullable;
} aq_arrow_column_spec;

static const aq_arrow_column_spec aq_arrow_column_specs[AQ_COLUMNS] = {
    { "layer_name", "u", NULL, false },   { "quantized_data", "z", NULL, false },
    { "scales", "+l", "f", true },        { "zero_points", "+l", "f", true },
    { "shape", "+l", "l", false },        { "bit_width", "C", NULL, false },
    { "group_size", "I", NULL, false },   { "mins", "+l", "f", true },
    { "method", "u", NULL, false },       { "dtype", "u", NULL, false },
    { "cosine", "g", NULL, true },        { "sqnr_db", "g", NULL, true },
    { "time_groups", "+l", "+s", true },  { "time_groups_4bit", "+l", "+s", true },
};

static const aq_arrow_column_spec aq_arrow_time_specs[4] = {
    { "t_start", "i", NULL, true },
    { "t_end", "i", NULL, true },
    { "scale", "f", NULL, true },
    { "zero_point", "f", NULL, true },
};

static bool aq_arrow_column_schema(aq_arrow_shared *shared, const aq_arrow_column_spec *spec,
                                   struct ArrowSchema *schema) {
    bool times = spec->item && strcmp(spec->item, "+s") == 0;
    if (!aq_arrow_make_schema(shared, schema, spec->format, spec->name, spec->nullable,
                              spec->item ? 1 : 0))
        return false;
    if (!spec->item) return true;
    struct ArrowSchema *item = schema->children[0];
    /* nullable, as they are without a word: else list<float> would be another type to readers */
    if (!aq_arrow_make_schema(shared, item, spec->item, "item", true, times ? 4 : 0)) return false;
    for (size_t i = 0; times && i < 4; i++)
        if (!aq_arrow_column_schema(shared, &aq_arrow_time_specs[i], item->children[i]))
            return false;
    return true;
}

AQ_LIB bool aq_arrow_layer_schema(aq_arrow_shared *shared, const char *const *metadata,
                                  size_t metadata_count, struct ArrowSchema *schema) {
    if (!aq_arrow_make_schema(shared, schema, "+s", "", false, AQ_COLUMNS)) return false;
    for (size_t i = 0; i < AQ_COLUMNS; i++)
        if (!aq_arrow_column_schema(shared, &aq_arrow_column_specs[i], schema->children[i]))
            return false;
    if (!metadata_count) return true;
    schema->metadata = aq_arrow_pack_metadata(&shared->arena, metadata, metadata_count, NULL);
    return schema->metadata != NULL;
}

/* ---- rows */

/* The time groups that a column shows of a layer. */
static const aq_arrow_time_group *aq_arrow_times(const aq_arrow_layer *layer,
                                                 aq_arrow_column column, size_t *count) {
    const aq_arrow_time_group *times =
        column == AQ_COLUMN_TIME_GROUPS ? layer->time_groups : layer->time_groups_4bit;
    *count = times ? layer->time_group_count : 0;
    return times;
}

/* A row's part of a column: NULL is a null. */
typedef struct aq_arrow_part {
    const void *data;
    uint64_t bytes;
} aq_arrow_part;

typedef struct aq_arrow_rows {
    aq_arrow_shared *shared;
    const aq_arrow_layer *layers;
    size_t count;
    aq_error *err;
} aq_arrow_rows;

static aq_arrow_part aq_arrow_part_of(const aq_arrow_layer *layer, aq_arrow_column column) {
    aq_arrow_part part;
    part.data = NULL;
    part.bytes = 0;
    switch (column) {
    case AQ_COLUMN_NAME: part.data = layer->name; break;
    case AQ_COLUMN_METHOD: part.data = layer->method; break;
    case AQ_COLUMN_DTYPE: part.data = layer->dtype; break;
    case AQ_COLUMN_DATA:
        part.data = layer->data_bytes ? layer->data : "";
        part.bytes = layer->data_bytes;
        return part;
    case AQ_COLUMN_SHAPE:
        part.data = layer->rank ? (const void *)layer->shape : "";
        part.bytes = (uint64_t)layer->rank * sizeof(int64_t);
        return part;
    case AQ_COLUMN_SCALES: part.data = layer->scales; break;
    case AQ_COLUMN_ZERO_POINTS: part.data = layer->zero_points; break;
    case AQ_COLUMN_MINS: part.data = layer->mins; break;
    default: return part;
    }
    if (column == AQ_COLUMN_SCALES || column == AQ_COLUMN_ZERO_POINTS || column == AQ_COLUMN_MINS)
        part.bytes = part.data ? layer->groups * sizeof(float) : 0;
    else
        part.bytes = part.data ? strlen((const char *)part.data) : 0;
    return part;
}

/* Sets bit i of a validity buffer where row i is not null; no buffer when none is. */
static bool aq_arrow_validity(const aq_arrow_rows *rows, aq_arrow_column column,
                              struct ArrowArray *array) {
    unsigned char *bits = NULL;
    for (size_t i = 0; i < rows->count; i++) {
        const aq_arrow_layer *layer = &rows->layers[i];
        double figure = column == AQ_COLUMN_COSINE ? layer->cosine_similarity : layer->sqnr_db;
        size_t times = 0;
        if (column >= AQ_COLUMN_TIME_GROUPS) (void)aq_arrow_times(layer, column, &times);
        bool null = column == AQ_COLUMN_COSINE || column == AQ_COLUMN_SQNR ? figure != figure
                    : column >= AQ_COLUMN_TIME_GROUPS ? !times
                                                      : !aq_arrow_part_of(layer, column).data;
        if (!null) continue;
        if (!bits) {
            bits = (unsigned char *)aq_arena_alloc(&rows->shared->arena, rows->count / 8 + 1);
            if (!bits) return false;
            memset(bits, 0xFF, rows->count / 8 + 1);
        }
        bits[i / 8] = (unsigned char)(bits[i / 8] & ~(1u << (i % 8)));
        array->null_count++;
    }
    array->buffers[0] = bits;
    return true;
}

/* Offsets in elements of `width` bytes; the values in place when they lie end to end. */
static aq_status aq_arrow_join(const aq_arrow_rows *rows, aq_arrow_column column, size_t width,
                               const int32_t **offsets_out, const void **values_out,
                               int64_t *elements) {
    int32_t *offsets = (int32_t *)aq_arena_alloc(&rows->shared->arena,
                                                 (rows->count + 1) * sizeof(int32_t));
    const unsigned char *first = NULL, *end = NULL;
    bool in_place = true;
    uint64_t total = 0;
    if (!offsets) return aq_fail_memory(rows->err, (rows->count + 1) * sizeof(int32_t));
    for (size_t i = 0; i < rows->count; i++) {
        aq_arrow_part part = aq_arrow_part_of(&rows->layers[i], column);
        if (part.bytes > INT32_MAX - total)
            return aq_fail_tensor(rows->err, AQ_ERR_UNSUPPORTED, rows->layers[i].name, 0,
                                  "layer %s: the column %s would hold 2 GiB or more; export the "
                                  "layers one by one, or larger ones in parts",
                                  rows->layers[i].name, aq_arrow_column_specs[column].name);
        if (part.bytes) {
            if (first && (const unsigned char *)part.data != end) in_place = false;
            if (!first) first = (const unsigned char *)part.data;
            end = (const unsigned char *)part.data + (size_t)part.bytes;
        }
        total += part.bytes;
        offsets[i + 1] = (int32_t)(total / width);
    }
    *offsets_out = offsets;
    *elements = (int64_t)(total / width);
    *values_out = first;
    if (in_place && first) return AQ_OK;
    unsigned char *joined = (unsigned char *)aq_arena_alloc(&rows->shared->arena, (size_t)total);
    if (!joined) return aq_fail_memory(rows->err, (size_t)total);
    *values_out = joined;
    for (size_t i = 0; i < rows->count; i++) {
        aq_arrow_part part = aq_arrow_part_of(&rows->layers[i], column);
        if (part.bytes) memcpy(joined, part.data, (size_t)part.bytes);
        joined += (size_t)part.bytes;
    }
    return AQ_OK;
}

static aq_status aq_arrow_bytes_column(const aq_arrow_rows *rows, aq_arrow_column column,
                                       struct ArrowArray *array) {
    const int32_t *offsets;
    const void *values;
    int64_t size;
    if (!aq_arrow_make_array(rows->shared, array, (int64_t)rows->count, 3, 0))
        return aq_fail_memory(rows->err, sizeof(*array));
    aq_status status = aq_arrow_join(rows, column, 1, &offsets, &values, &size);
    if (status != AQ_OK) return status;
    array->buffers[1] = offsets;
    array->buffers[2] = values;
    return AQ_OK;
}

static aq_status aq_arrow_list_column(const aq_arrow_rows *rows, aq_arrow_column column,
                                      struct ArrowArray *array) {
    const int32_t *offsets;
    const void *values;
    int64_t elements;
    size_t width = column == AQ_COLUMN_SHAPE ? sizeof(int64_t) : sizeof(float);
    aq_status status = aq_arrow_join(rows, column, width, &offsets, &values, &elements);
    if (status != AQ_OK) return status;
    if (!aq_arrow_make_array(rows->shared, array, (int64_t)rows->count, 2, 1) ||
        !aq_arrow_validity(rows, column, array) ||
        !aq_arrow_make_array(rows->shared, array->children[0], elements, 2, 0))
        return aq_fail_memory(rows->err, sizeof(*array));
    array->buffers[1] = offsets;
    array->children[0]->buffers[1] = values;
    return AQ_OK;
}

static aq_status aq_arrow_number_column(const aq_arrow_rows *rows, aq_arrow_column column,
                                        struct ArrowArray *array) {
    void *values = aq_arena_alloc(&rows->shared->arena, (rows->count + 1) * sizeof(double));
    if (!values || !aq_arrow_make_array(rows->shared, array, (int64_t)rows->count, 2, 0) ||
        ((column == AQ_COLUMN_COSINE || column == AQ_COLUMN_SQNR) &&
         !aq_arrow_validity(rows, column, array)))
        return aq_fail_memory(rows->err, rows->count * sizeof(double));
    for (size_t i = 0; i < rows->count; i++) {
        const aq_arrow_layer *layer = &rows->layers[i];
        if (column == AQ_COLUMN_BITS) ((uint8_t *)values)[i] = layer->bit_width;
        else if (column == AQ_COLUMN_GROUP_SIZE) ((uint32_t *)values)[i] = layer->group_size;
        else if (column == AQ_COLUMN_COSINE) ((double *)values)[i] = layer->cosine_similarity;
        else ((double *)values)[i] = layer->sqnr_db;
    }
    array->buffers[1] = values;
    return AQ_OK;
}

/* list<struct<t_start, t_end, scale, zero_point>>: always gathered, it is small. */
static aq_status aq_arrow_time_column(const aq_arrow_rows *rows, aq_arrow_column column,
                                      struct ArrowArray *array) {
    aq_arena *arena = &rows->shared->arena;
    int32_t *offsets = (int32_t *)aq_arena_alloc(arena, (rows->count + 1) * sizeof(int32_t));
    void *fields[4];
    size_t total = 0, at = 0, count = 0;
    for (size_t i = 0; i < rows->count; i++) {
        (void)aq_arrow_times(&rows->layers[i], column, &count);
        total += count;
    }
    if (total > INT32_MAX)
        return aq_fail(rows->err, AQ_ERR_UNSUPPORTED, "%zu time groups do not fit one batch; "
                       "export the layers one by one", total);
    bool made = offsets && aq_arrow_make_array(rows->shared, array, (int64_t)rows->count, 2, 1) &&
                aq_arrow_validity(rows, column, array) &&
                aq_arrow_make_array(rows->shared, array->children[0], (int64_t)total, 1, 4);
    for (size_t f = 0; made && f < 4; f++) {
        struct ArrowArray *field = array->children[0]->children[f];
        fields[f] = aq_arena_alloc(arena, (total + 1) * 4);
        made = fields[f] && aq_arrow_make_array(rows->shared, field, (int64_t)total, 2, 0);
        if (made) field->buffers[1] = fields[f];
    }
    if (!made) return aq_fail_memory(rows->err, (total + rows->count) * 16);
    array->buffers[1] = offsets;
    for (size_t i = 0; i < rows->count; i++) {
        const aq_arrow_time_group *times = aq_arrow_times(&rows->layers[i], column, &count);
        for (size_t g = 0; g < count; g++, at++) {
            ((int32_t *)fields[0])[at] = times[g].t_start;
            ((int32_t *)fields[1])[at] = times[g].t_end;
            ((float *)fields[2])[at] = times[g].scale;
            ((float *)fields[3])[at] = times[g].zero_point;
        }
        offsets[i + 1] = (int32_t)at;
    }
    return AQ_OK;
}

static aq_status aq_arrow_check_layer(const aq_arrow_layer *layer, size_t number, aq_error *err) {
    const char *missing = !layer->name                            ? "name"
                          : !layer->method                        ? "method"
                          : !layer->dtype                         ? "dtype"
                          : layer->data_bytes && !layer->data     ? "data"
                          : layer->rank && !layer->shape          ? "shape"
                          : layer->time_group_count && !layer->time_groups ? "time_groups" : NULL;
    if (missing)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_arrow_export_layers: layer %zu has no %s", number,
                       missing);
    if (!aq_is_utf8(layer->name, strlen(layer->name), NULL))
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_arrow_export_layers: the name of layer %zu is not "
                       "UTF-8", number);
    return AQ_OK;
}

AQ_LIB aq_status aq_arrow_layer_array(aq_arrow_shared *shared, const aq_arrow_layer *layers,
                                      size_t count, struct ArrowArray *array, aq_error *err) {
    aq_arrow_rows rows;
    aq_status status = AQ_OK;
    rows.shared = shared;
    rows.layers = layers;
    rows.count = count;
    rows.err = err;
    for (size_t i = 0; status == AQ_OK && i < count; i++)
        status = aq_arrow_check_layer(&layers[i], i, err);
    if (status != AQ_OK) return status;
    if (!aq_arrow_make_array(shared, array, (int64_t)count, 1, AQ_COLUMNS))
        return aq_fail_memory(err, sizeof(*array));
    for (unsigned c = 0; status == AQ_OK && c < AQ_COLUMNS; c++) {
        struct ArrowArray *column = array->children[c];
        const char *format = aq_arrow_column_specs[c].format;
        if (c >= AQ_COLUMN_TIME_GROUPS)
            status = aq_arrow_time_column(&rows, (aq_arrow_column)c, column);
        else if (*format == '+') status = aq_arrow_list_column(&rows, (aq_arrow_column)c, column);
        else if (*format == 'u' || *format == 'z')
            status = aq_arrow_bytes_column(&rows, (aq_arrow_column)c, column);
        else status = aq_arrow_number_column(&rows, (aq_arrow_column)c, column);
    }
    return status;
}

ARROWQUANT_API aq_status aq_arrow_export_layers(aq_context *context, const aq_arrow_layer *layers,
                                                size_t count, const char *const *metadata,
                                                size_t metadata_count, aq_arrow_owner owner,
                                                struct ArrowSchema *schema,
                                                struct ArrowArray *array, aq_error *err) {
    struct ArrowSchema made_schema;
    struct ArrowArray made_array;
    if ((!layers && count) || !schema || !array || metadata_count % 2 ||
        (!metadata && metadata_count))
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_arrow_export_layers: layers, schema and array must "
                       "not be NULL, metadata are pairs");
    aq_arrow_shared *schemas = aq_arrow_share(context), *arrays = aq_arrow_share(context);
    aq_status status = AQ_OK;
    if (!schemas || !arrays ||
        !aq_arrow_layer_schema(schemas, metadata, metadata_count, &made_schema))
        status = aq_fail_memory(err, sizeof(*schemas));
    if (status == AQ_OK) status = aq_arrow_layer_array(arrays, layers, count, &made_array, err);
    if (status != AQ_OK) {
        if (schemas) aq_arrow_discard(schemas);
        if (arrays) aq_arrow_discard(arrays);
        return status;
    }
    arrays->owner = owner;
    *schema = made_schema;
    *array = made_array;
    return AQ_OK;
}

#endif /* ARROWQUANT_NO_STDIO */
