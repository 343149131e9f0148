/* An Arrow IPC file with a table of layers, opened as a model: codes and kept tensors stay where they
 * lie in the mapped file. docs/FORMATS.md describes the table. */
#include "../base/text.h"
#include "../format/arrow.h"
#include "../format/sort.h"
#include "open.h"

#include <math.h>

#ifndef ARROWQUANT_NO_STDIO

/* The columns of the batch at hand. */
typedef struct aq_arrow_table {
    aq_model *model;
    const char *path, *file;
    aq_arrow_view columns[AQ_COLUMNS];
    bool found[AQ_COLUMNS];
    aq_tensor *tensors; /* grows */
    size_t count, capacity;
    aq_error *err;
} aq_arrow_table;

static aq_status aq_table_bad(const aq_arrow_table *table, const char *name, const char *what) {
    return aq_fail_tensor(table->err, AQ_ERR_CORRUPT, name, 0, "%s: layer %s: %s; write the table "
                          "again (docs/FORMATS.md)", table->path, name, what);
}

/* ---- one value of a row */

static aq_status aq_table_text(aq_arrow_table *table, aq_arrow_column column, int64_t row,
                               const char *otherwise, const char **out) {
    const void *data = NULL;
    uint64_t size = 0;
    *out = otherwise;
    if (!table->found[column]) return AQ_OK;
    aq_status status = aq_arrow_bytes(&table->columns[column], row, &data, &size, table->err);
    if (status != AQ_OK) return status;
    char *copy = aq_arena_copy(&table->model->state->arena, (const char *)data, (size_t)size);
    if (!copy) return aq_fail_memory(table->err, (size_t)size);
    if (strlen(copy) != size) return aq_table_bad(table, copy, "a text holds a NUL");
    *out = copy;
    return AQ_OK;
}

/* F32 or int64 elements; *data NULL where the row is null. */
static aq_status aq_table_list(aq_arrow_table *table, aq_arrow_column column, int64_t row,
                               const void **data, uint64_t *count) {
    char format;
    *data = NULL;
    *count = 0;
    if (!table->found[column] || aq_arrow_is_null(&table->columns[column], row)) return AQ_OK;
    return aq_arrow_list(&table->columns[column], row, column == AQ_COLUMN_SHAPE ? "l" : "f", data,
                         count, &format, table->err);
}

static const void *aq_table_cell(const aq_arrow_table *table, aq_arrow_column column, int64_t row,
                                 size_t width) {
    const aq_arrow_view *view = &table->columns[column];
    return (const unsigned char *)view->array->buffers[1] + (size_t)(view->offset + row) * width;
}

static double aq_table_double(const aq_arrow_table *table, aq_arrow_column column, int64_t row) {
    double value = (double)NAN;
    if (table->found[column] && !aq_arrow_is_null(&table->columns[column], row))
        memcpy(&value, aq_table_cell(table, column, row, sizeof(value)), sizeof(value));
    return value;
}

/* ---- a row */

static aq_status aq_table_shape(aq_arrow_table *table, int64_t row, aq_tensor *out) {
    const void *data;
    uint64_t count, product = 1;
    aq_status status = aq_table_list(table, AQ_COLUMN_SHAPE, row, &data, &count);
    if (status != AQ_OK) return status;
    if (!data || count > UINT32_MAX) return aq_table_bad(table, out->name, "it has no shape");
    uint64_t *shape = (uint64_t *)aq_arena_alloc(&table->model->state->arena,
                                                 (size_t)(count + 1) * sizeof(uint64_t));
    if (!shape) return aq_fail_memory(table->err, (size_t)count * sizeof(uint64_t));
    for (uint64_t i = 0; i < count; i++) {
        int64_t extent;
        memcpy(&extent, (const unsigned char *)data + 8 * (size_t)i, sizeof(extent));
        if (extent < 0 || !aq_mul_u64(product, (uint64_t)extent, &product))
            return aq_table_bad(table, out->name, "its shape is negative or overflows");
        shape[i] = (uint64_t)extent;
    }
    out->rank = (uint32_t)count;
    out->shape = shape;
    out->rows = count > 1 ? shape[0] : 1;
    out->cols = 1;
    for (uint64_t i = count > 1 ? 1 : 0; i < count; i++)
        if (!aq_mul_u64(out->cols, shape[i], &out->cols)) out->cols = 0; /* only an empty one */
    return AQ_OK;
}

static bool aq_table_dtype(const char *name, aq_dtype *out) {
    for (unsigned i = 0; i < AQ_DTYPE_COUNT; i++) {
        if (strcmp(aq_dtype_name((aq_dtype)i), name) != 0) continue;
        *out = (aq_dtype)i;
        return true;
    }
    return false;
}

static void aq_put_float(unsigned char *out, const void *from) {
    uint32_t bits;
    memcpy(&bits, from, sizeof(bits));
    for (unsigned i = 0; i < 4; i++) out[i] = (unsigned char)(bits >> (8 * i));
}

/* Whether all zeros are codes; *half: all are the middle one. */
static bool aq_table_zeros(const void *zeros, uint64_t count, uint32_t bits, bool *half) {
    float top = (float)((1u << bits) - 1u), zero;
    *half = true;
    for (uint64_t i = 0; i < count; i++) {
        memcpy(&zero, (const unsigned char *)zeros + 4 * (size_t)i, sizeof(zero));
        if (!(zero >= 0.0f && zero <= top) || zero != (float)(int32_t)zero) return false;
        *half = *half && zero == (float)(1u << (bits - 1u));
    }
    return true;
}

/* Scales with mins, zero points or nothing, in the bytes that F32 parameters have. */
static aq_status aq_table_parameters(aq_arrow_table *table, int64_t row, aq_tensor *out) {
    const void *lists[3];
    uint64_t counts[3], groups = out->rows * out->layout.groups;
    static const aq_arrow_column columns[3] = { AQ_COLUMN_SCALES, AQ_COLUMN_MINS,
                                                AQ_COLUMN_ZERO_POINTS };
    bool half = true;
    for (unsigned i = 0; i < 3; i++) {
        aq_status status = aq_table_list(table, columns[i], row, &lists[i], &counts[i]);
        if (status != AQ_OK) return status;
        if (lists[i] && counts[i] != groups)
            return aq_table_bad(table, out->name, "it has not one parameter for each group");
    }
    if (!lists[0] && groups) return aq_table_bad(table, out->name, "it has no scales");
    if (!lists[1] && lists[2] && !aq_table_zeros(lists[2], groups, out->spec.bits, &half))
        return aq_table_bad(table, out->name, "without mins its zero points must be codes");
    out->spec.code = lists[1] ? AQ_CODE_AFFINE : half ? AQ_CODE_SYMMETRIC : AQ_CODE_ZERO_POINT;
    out->code_name = lists[1] ? "affine" : half ? "symmetric" : "zero_point";
    aq_status status =
        aq_quantized_size(&out->spec, out->rows, out->cols, &out->layout, table->err);
    if (status != AQ_OK) return status;
    size_t bytes = (size_t)out->layout.param_bytes, each = groups ? bytes / (size_t)groups : 0;
    unsigned char *params = (unsigned char *)aq_arena_alloc(&table->model->state->arena, bytes);
    if (!params) return aq_fail_memory(table->err, bytes);
    for (size_t i = 0; i < (size_t)groups; i++) {
        float zero = 0.0f;
        aq_put_float(params + i * each, (const unsigned char *)lists[0] + 4 * i);
        if (lists[1]) aq_put_float(params + i * each + 4, (const unsigned char *)lists[1] + 4 * i);
        if (out->spec.code != AQ_CODE_ZERO_POINT) continue;
        memcpy(&zero, (const unsigned char *)lists[2] + 4 * i, sizeof(zero));
        params[i * each + 4] = (unsigned char)zero;
    }
    out->params = params;
    return AQ_OK;
}

/* Groups of one width, in the order of the native format: 8 bits, then 4. */
static aq_status aq_table_width(aq_arrow_table *table, int64_t row, unsigned width,
                                const char *layer, int32_t *starts, float *scales, int32_t *zeros,
                                uint64_t *count) {
    static const char *const names[4] = { "t_start", "t_end", "scale", "zero_point" };
    const aq_arrow_view *view = &table->columns[AQ_COLUMN_TIME_GROUPS + width];
    const void *fields[4] = { NULL, NULL, NULL, NULL };
    uint64_t groups = 0;
    aq_status status = aq_arrow_structs(view, row, names, "iiff", fields, &groups, table->err);
    if (status != AQ_OK) return status;
    if (!groups || groups > AQ_TIME_GROUPS_MAX || (width && groups != *count))
        return aq_table_bad(table, layer, "it has no, too many or unequally many time groups");
    for (size_t g = 0; g < (size_t)groups; g++) {
        const size_t at = 4 * g, slot = width * (size_t)groups + g;
        int32_t times[2];
        float zero;
        memcpy(&times[0], (const unsigned char *)fields[0] + at, 4);
        memcpy(&times[1], (const unsigned char *)fields[1] + at, 4);
        memcpy(&scales[slot], (const unsigned char *)fields[2] + at, 4);
        memcpy(&zero, (const unsigned char *)fields[3] + at, 4);
        if (!(zero >= 0.0f && zero <= 255.0f) || zero != (float)(int32_t)zero ||
            (width && (times[0] != starts[g] || times[1] != starts[g + 1])) ||
            (!width && g && times[0] != starts[g]))
            return aq_table_bad(table, layer, "its time groups do not follow one another, or a "
                                "zero point is no code");
        starts[g] = times[0];
        starts[g + 1] = times[1];
        zeros[slot] = (int32_t)zero;
    }
    *count = groups;
    return AQ_OK;
}

/* Static integers for the input, when both columns have them. */
static aq_status aq_table_times(aq_arrow_table *table, int64_t row, aq_tensor *out) {
    int32_t starts[AQ_TIME_GROUPS_MAX + 1], zeros[2 * AQ_TIME_GROUPS_MAX];
    float scales[2 * AQ_TIME_GROUPS_MAX];
    uint64_t count = 0;
    aq_status status = AQ_OK;
    for (unsigned w = 0; w < 2; w++)
        if (!table->found[AQ_COLUMN_TIME_GROUPS + w] ||
            aq_arrow_is_null(&table->columns[AQ_COLUMN_TIME_GROUPS + w], row))
            return AQ_OK;
    for (unsigned w = 0; status == AQ_OK && w < 2; w++)
        status = aq_table_width(table, row, w, out->name, starts, scales, zeros, &count);
    if (status != AQ_OK) return status;
    out->bytes += 4 * (5 * count + 1);
    return aq_open_groups(table->model->state, starts, scales, zeros, (uint32_t)count, table->path,
                          0, out, table->err);
}

static aq_status aq_table_quantized(aq_arrow_table *table, int64_t row, const void *data,
                                    aq_tensor *out) {
    out->quantized = true;
    out->spec.params = AQ_PARAM_F32;
    out->spec.code = AQ_CODE_SYMMETRIC;
    if (aq_quantized_size(&out->spec, out->rows, out->cols, &out->layout, NULL) != AQ_OK)
        return aq_table_bad(table, out->name, "bit_width, group_size or shape is out of range");
    if (out->layout.code_bytes != out->bytes)
        return aq_table_bad(table, out->name, "quantized_data does not fit shape and bit_width");
    out->codes = data;
    table->model->quantized = true;
    aq_status status = aq_table_parameters(table, row, out);
    if (status == AQ_OK)
        status = aq_table_text(table, AQ_COLUMN_METHOD, row, "", &out->method);
    out->bytes += out->layout.rows * out->layout.groups * sizeof(float) *
                  (out->spec.code == AQ_CODE_SYMMETRIC ? 2 : out->code_name[0] == 'a' ? 3 : 2);
    return status == AQ_OK ? aq_table_times(table, row, out) : status;
}

static aq_status aq_table_row(aq_arrow_table *table, int64_t row, aq_tensor *out) {
    const void *data = NULL;
    const char *dtype;
    uint64_t bytes = 0;
    uint8_t bits;
    memset(out, 0, sizeof(*out));
    aq_status status = aq_table_text(table, AQ_COLUMN_NAME, row, "", &out->name);
    if (status == AQ_OK) status = aq_table_shape(table, row, out);
    if (status == AQ_OK) status = aq_table_text(table, AQ_COLUMN_DTYPE, row, "F32", &dtype);
    if (status == AQ_OK)
        status = aq_arrow_bytes(&table->columns[AQ_COLUMN_DATA], row, &data, &out->bytes,
                                table->err);
    if (status != AQ_OK) return status;
    if (!aq_table_dtype(dtype, &out->dtype))
        return aq_table_bad(table, out->name, "its dtype is none that is known");
    memcpy(&bits, aq_table_cell(table, AQ_COLUMN_BITS, row, 1), 1);
    memcpy(&out->spec.group_size, aq_table_cell(table, AQ_COLUMN_GROUP_SIZE, row, 4), 4);
    out->spec.bits = bits;
    out->file = table->file;
    out->cosine_similarity = aq_table_double(table, AQ_COLUMN_COSINE, row);
    out->sqnr_db = aq_table_double(table, AQ_COLUMN_SQNR, row);
    if (out->spec.group_size) return aq_table_quantized(table, row, data, out);
    if (!aq_mul_u64(out->rows, out->cols, &bytes) ||
        !aq_mul_u64(bytes, aq_dtype_size(out->dtype), &bytes) || bytes != out->bytes)
        return aq_table_bad(table, out->name, "quantized_data does not fit shape and dtype");
    out->data = data;
    return AQ_OK;
}

/* ---- batches */

static aq_status aq_table_columns(aq_arrow_table *table, const struct ArrowSchema *schema,
                                  const struct ArrowArray *array) {
    static const struct { const char *name, *format; } known[AQ_COLUMNS] = {
        { "layer_name", NULL }, { "quantized_data", NULL }, { "scales", NULL },
        { "zero_points", NULL }, { "shape", NULL }, { "bit_width", "C" }, { "group_size", "I" },
        { "mins", NULL }, { "method", NULL }, { "dtype", NULL }, { "cosine", "g" },
        { "sqnr_db", "g" }, { "time_groups", NULL }, { "time_groups_4bit", NULL },
    };
    for (unsigned i = 0; i < AQ_COLUMNS; i++) {
        aq_arrow_view *view = &table->columns[i];
        bool needed = i == AQ_COLUMN_NAME || i == AQ_COLUMN_DATA || i == AQ_COLUMN_SCALES ||
                      i == AQ_COLUMN_SHAPE || i == AQ_COLUMN_BITS || i == AQ_COLUMN_GROUP_SIZE;
        aq_status status =
            aq_arrow_find(schema, array, known[i].name, &table->found[i], view, table->err);
        if (status != AQ_OK) return status;
        if (!table->found[i] && needed)
            return aq_fail(table->err, AQ_ERR_ARROW, "%s: no column %s; expected a table of layers "
                           "(docs/FORMATS.md)", table->path, known[i].name);
        if (table->found[i] && known[i].format &&
            (strcmp(view->schema->format, known[i].format) != 0 ||
             (needed && view->array->null_count)))
            return aq_fail(table->err, AQ_ERR_ARROW, "%s: column %s has the Arrow format \"%s\", or "
                           "nulls; expected \"%s\" (docs/FORMATS.md)", table->path, known[i].name,
                           view->schema->format, known[i].format);
    }
    return AQ_OK;
}

static aq_status aq_table_batch(aq_arrow_table *table, const struct ArrowSchema *schema,
                                const struct ArrowArray *array) {
    aq_status status = aq_table_columns(table, schema, array);
    for (int64_t row = 0; status == AQ_OK && row < array->length; row++) {
        if (table->count == table->capacity) {
            size_t capacity = table->capacity ? 2 * table->capacity : 64;
            aq_tensor *grown = (aq_tensor *)aq_resize(
                table->model->state->context, table->tensors,
                table->capacity * sizeof(aq_tensor), capacity * sizeof(aq_tensor));
            if (!grown) return aq_fail_memory(table->err, capacity * sizeof(aq_tensor));
            table->tensors = grown;
            table->capacity = capacity;
        }
        status = aq_table_row(table, row, &table->tensors[table->count]);
        if (status == AQ_OK) table->count++;
    }
    return status;
}

static aq_status aq_table_read(aq_arrow_table *table, struct ArrowArrayStream *stream) {
    struct ArrowSchema schema;
    struct ArrowArray array;
    int code = stream->get_schema(stream, &schema);
    if (code) return aq_arrow_stream_fail(stream, code, table->err);
    aq_status status;
    while ((status = aq_arrow_next(stream, &array, table->err)) == AQ_OK && array.release) {
        status = aq_table_batch(table, &schema, &array);
        array.release(&array);
        if (status != AQ_OK) break;
    }
    aq_modality modality = AQ_MODALITY_UNKNOWN;
    size_t size = 0;
    const char *found = aq_arrow_metadata(&schema, "arrowquant.modality", &size);
    for (unsigned m = AQ_MODALITY_TEXT; found && m <= AQ_MODALITY_AUDIO; m++)
        if (aq_text_equal(found, size, aq_modality_name((aq_modality)m))) modality = (aq_modality)m;
    table->model->state->folder.modality = modality;
    schema.release(&schema);
    return status;
}

/* ---- the model */

AQ_LIB aq_status aq_open_is_arrow(const char *path, bool *arrow, aq_error *err) {
    unsigned char head[8];
    uint64_t size = 0;
    aq_file file = AQ_FILE_CLOSED;
    *arrow = false;
    if (aq_path_kind_of(path) != AQ_PATH_FILE || aq_ends_with(path, ".safetensors") ||
        aq_ends_with(path, ".json"))
        return AQ_OK;
    aq_status status = aq_file_open(&file, path, &size, err);
    if (status == AQ_OK && size >= sizeof(head))
        status = aq_file_read(&file, 0, head, sizeof(head), err);
    (void)aq_file_close(&file, NULL);
    if (status == AQ_OK && size >= sizeof(head)) *arrow = aq_arrow_looks_like_ipc(head, sizeof(head));
    if (aq_ends_with(path, ".arrow")) *arrow = true; /* so that a bad one is reported as what it is */
    return status;
}

/* One file, no tensors of safetensors: what other parts of the library look at. */
static aq_status aq_table_prepare(aq_arrow_table *table, aq_error *err) {
    struct aq_model_state *state = table->model->state;
    aq_component *component = (aq_component *)aq_arena_alloc(&state->arena, sizeof(*component));
    aq_st_file *file = (aq_st_file *)aq_arena_alloc(&state->arena, sizeof(*file));
    const char **shards = (const char **)aq_arena_alloc(&state->arena, sizeof(*shards));
    state->shards = (aq_model_shard *)aq_arena_alloc(&state->arena, sizeof(aq_model_shard));
    state->folder.root = aq_path_parent(&state->arena, table->path);
    if (!component || !file || !shards || !state->shards || !state->folder.root)
        return aq_fail_memory(err, sizeof(*component) + sizeof(*file));
    shards[0] = "model.safetensors"; /* when it is written as such */
    component->name = "";
    component->shards = shards;
    component->files = file;
    component->shard_count = 1;
    file->path = table->path;
    state->folder.kind = AQ_FOLDER_FILE;
    state->folder.components = component;
    state->folder.component_count = 1;
    state->shards[0].path = shards[0];
    state->shards[0].component = component;
    state->shards[0].file = file;
    aq_status status = aq_map_file(&state->shards[0].map, table->path, err);
    if (status != AQ_OK) return status;
    state->shard_count = 1;
    table->model->weight_bytes = file->file_size = state->shards[0].map.size;
    return AQ_OK;
}

static int aq_table_by_name(const void *a, const void *b) {
    return strcmp(((const aq_tensor *)a)->name, ((const aq_tensor *)b)->name);
}

/* In order of names, each once. */
static aq_status aq_table_arrange(aq_arrow_table *table) {
    struct aq_model_state *state = table->model->state;
    size_t count = table->count;
    aq_tensor *tensors = (aq_tensor *)aq_arena_alloc(&state->arena, (count + 1) * sizeof(*tensors));
    const void **sorted = (const void **)aq_arena_alloc(&state->arena, (count + 1) * sizeof(void *));
    state->tensor_shard = (size_t *)aq_arena_alloc(&state->arena, (count + 1) * sizeof(size_t));
    state->tensor_own_name =
        (const char **)aq_arena_alloc(&state->arena, (count + 1) * sizeof(char *));
    if (!tensors || !sorted || !state->tensor_shard || !state->tensor_own_name)
        return aq_fail_memory(table->err, count * sizeof(*tensors));
    for (size_t i = 0; i < count; i++) sorted[i] = &table->tensors[i];
    aq_sort_pointers(sorted, count, aq_table_by_name);
    for (size_t i = 0; i < count; i++) {
        tensors[i] = *(const aq_tensor *)sorted[i];
        state->tensor_own_name[i] = tensors[i].name;
        if (i && strcmp(tensors[i - 1].name, tensors[i].name) == 0)
            return aq_table_bad(table, tensors[i].name, "it is there twice");
    }
    table->model->tensors = tensors;
    table->model->tensor_count = count;
    return AQ_OK;
}

AQ_LIB aq_status aq_open_arrow(aq_model *model, aq_error *err) {
    struct ArrowArrayStream stream;
    aq_arrow_owner nobody = { NULL, NULL };
    aq_arrow_table table;
    memset(&table, 0, sizeof(table));
    table.model = model;
    table.path = model->path;
    table.file = aq_path_base(model->path);
    table.err = err;
    aq_status status = aq_table_prepare(&table, err);
    if (status != AQ_OK) return status;
    const aq_map *map = &model->state->shards[0].map;
    status = aq_arrow_ipc_read(model->state->context, map->data, (size_t)map->size, model->path,
                               nobody, &stream, err);
    if (status == AQ_OK) {
        status = aq_table_read(&table, &stream);
        stream.release(&stream);
    }
    if (status == AQ_OK) status = aq_table_arrange(&table);
    aq_free(model->state->context, table.tensors, table.capacity * sizeof(aq_tensor));
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
