/* Tables of others, through the Arrow C data interface: columns by name, rows where they lie. */
#include "arrow.h"

#ifndef ARROWQUANT_NO_STDIO

static aq_status aq_arrow_bad(aq_error *err, const char *column, const char *expected,
                              const char *found) {
    return aq_fail(err, AQ_ERR_ARROW, "column %s: expected %s, found %s", column, expected, found);
}

static const char *aq_arrow_name_of(const struct ArrowSchema *schema) {
    return schema->name ? schema->name : "";
}

AQ_LIB aq_status aq_arrow_find(const struct ArrowSchema *schema, const struct ArrowArray *array,
                               const char *name, bool *found, aq_arrow_view *view, aq_error *err) {
    *found = false;
    if (!schema || !array || !schema->release || !array->release)
        return aq_fail(err, AQ_ERR_ARROW, "the schema or the array has been released already");
    if (!schema->format || strcmp(schema->format, "+s") != 0 ||
        schema->n_children != array->n_children)
        return aq_fail(err, AQ_ERR_ARROW, "expected a record batch (a struct array with its "
                       "columns), found format \"%s\"", schema->format ? schema->format : "");
    if (array->n_buffers >= 1 && array->buffers && array->buffers[0] && array->null_count != 0)
        return aq_fail(err, AQ_ERR_ARROW, "the record batch has a validity buffer of its own; "
                       "expected none");
    for (int64_t i = 0; i < schema->n_children; i++) {
        const struct ArrowSchema *field = schema->children[i];
        if (strcmp(aq_arrow_name_of(field), name) != 0) continue;
        if (*found) return aq_fail(err, AQ_ERR_ARROW, "there are two columns %s", name);
        *found = true;
        view->schema = field;
        view->array = array->children[i];
        view->offset = array->offset + array->children[i]->offset;
        view->type = aq_arrow_type_of(field->format, &view->run);
        if (field->dictionary)
            return aq_arrow_bad(err, name, "plain values", "a dictionary; cast the column");
        if (array->children[i]->length < array->offset + array->length)
            return aq_fail(err, AQ_ERR_ARROW, "column %s: %lld rows, the batch has %lld", name,
                           (long long)array->children[i]->length,
                           (long long)(array->offset + array->length));
    }
    return AQ_OK;
}

static bool aq_arrow_bit(const void *bits, int64_t index) {
    return ((const unsigned char *)bits)[index / 8] >> (index % 8) & 1;
}

static bool aq_arrow_null_at(const struct ArrowArray *array, int64_t index) {
    return array->null_count != 0 && array->n_buffers && array->buffers[0] &&
           !aq_arrow_bit(array->buffers[0], index);
}

AQ_LIB bool aq_arrow_is_null(const aq_arrow_view *view, int64_t row) {
    return aq_arrow_null_at(view->array, view->offset + row);
}

/* begin … end of a row with offsets of `width` bytes, checked to go forward. */
static aq_status aq_arrow_extent(const aq_arrow_view *view, int64_t row, int64_t *begin,
                                 int64_t *end, aq_error *err) {
    const unsigned char *offsets = (const unsigned char *)view->array->buffers[1];
    size_t width = view->type->width, at = (size_t)(view->offset + row) * width;
    int32_t small[2];
    int64_t large[2];
    if (!offsets) return aq_arrow_bad(err, aq_arrow_name_of(view->schema), "offsets", "none");
    if (width == 4) {
        memcpy(small, offsets + at, sizeof(small));
        large[0] = small[0];
        large[1] = small[1];
    } else {
        memcpy(large, offsets + at, sizeof(large));
    }
    *begin = large[0];
    *end = large[1];
    if (*begin >= 0 && *end >= *begin) return AQ_OK;
    return aq_fail_tensor(err, AQ_ERR_ARROW, "", (uint64_t)row,
                          "column %s, row %lld: offsets %lld and %lld do not go forward",
                          aq_arrow_name_of(view->schema), (long long)row, (long long)*begin,
                          (long long)*end);
}

/* A view is a size and, up to 12 bytes, the bytes; else 4 of them, a buffer's number, an offset. */
static aq_status aq_arrow_view_bytes(const aq_arrow_view *view, int64_t row, const void **data,
                                     uint64_t *size, aq_error *err) {
    const struct ArrowArray *array = view->array;
    int32_t fields[4];
    const unsigned char *views = (const unsigned char *)array->buffers[1];
    views += (size_t)(view->offset + row) * sizeof(fields);
    memcpy(fields, views, sizeof(fields));
    if (fields[0] < 0 || (fields[0] > 12 && (fields[2] < 0 || fields[3] < 0 ||
                                             fields[2] >= array->n_buffers - 3)))
        return aq_fail_tensor(err, AQ_ERR_ARROW, "", (uint64_t)row,
                              "column %s, row %lld: a view that leads nowhere",
                              aq_arrow_name_of(view->schema), (long long)row);
    *size = (uint64_t)fields[0];
    *data = views + 4;
    if (fields[0] > 12) *data = (const unsigned char *)array->buffers[2 + fields[2]] + fields[3];
    return AQ_OK;
}

AQ_LIB aq_status aq_arrow_bytes(const aq_arrow_view *view, int64_t row, const void **data,
                                uint64_t *size, aq_error *err) {
    const char *name = aq_arrow_name_of(view->schema), *format = view->schema->format;
    bool views = strcmp(format, "vu") == 0 || strcmp(format, "vz") == 0;
    int64_t begin, end;
    if ((!view->type || view->type->kind != AQ_ARROW_BYTES) && !views)
        return aq_arrow_bad(err, name, "string or binary", format);
    if (view->array->n_buffers < 3)
        return aq_arrow_bad(err, name, "3 buffers", "fewer");
    if (aq_arrow_is_null(view, row))
        return aq_fail_tensor(err, AQ_ERR_ARROW, "", (uint64_t)row, "column %s, row %lld is null",
                              name, (long long)row);
    if (views) return aq_arrow_view_bytes(view, row, data, size, err);
    aq_status status = aq_arrow_extent(view, row, &begin, &end, err);
    if (status != AQ_OK) return status;
    *size = (uint64_t)(end - begin);
    *data = "";
    if (*size) *data = (const unsigned char *)view->array->buffers[2] + (size_t)begin;
    return AQ_OK;
}

/* Finite work even for a hostile length: nulls are looked for only where the child has any. */
static aq_status aq_arrow_no_nulls(const aq_arrow_view *view, int64_t row, int64_t begin,
                                   int64_t end, aq_error *err) {
    const struct ArrowArray *items = view->array->children[0];
    for (int64_t i = begin; items->null_count && i < end; i++)
        if (aq_arrow_null_at(items, items->offset + i))
            return aq_fail_tensor(err, AQ_ERR_ARROW, "", (uint64_t)row,
                                  "column %s, row %lld: element %lld is null; fill the nulls first",
                                  aq_arrow_name_of(view->schema), (long long)row,
                                  (long long)(i - begin));
    return AQ_OK;
}

AQ_LIB aq_status aq_arrow_list(const aq_arrow_view *view, int64_t row, const char *formats,
                               const void **data, uint64_t *count, char *format, aq_error *err) {
    const char *name = aq_arrow_name_of(view->schema), *found = view->schema->format;
    int64_t begin, end, run;
    if (!view->type || (view->type->kind != AQ_ARROW_LIST && view->type->kind != AQ_ARROW_RUN) ||
        view->array->n_children != 1 || view->schema->n_children != 1)
        return aq_arrow_bad(err, name, "a list", found);
    const struct ArrowArray *items = view->array->children[0];
    const struct ArrowSchema *item = view->schema->children[0];
    const aq_arrow_type *type = aq_arrow_type_of(item->format, &run);
    if (!type || item->dictionary || !item->format[0] || item->format[1] ||
        !strchr(formats, item->format[0]))
        return aq_fail(err, AQ_ERR_ARROW, "column %s: expected a list of one of the formats %s "
                       "(f: float, e: half_float, g: double, l: int64), found \"%s\"; cast it",
                       name, formats, item->format);
    if (aq_arrow_is_null(view, row))
        return aq_fail_tensor(err, AQ_ERR_ARROW, "", (uint64_t)row, "column %s, row %lld is null",
                              name, (long long)row);
    if (view->type->kind == AQ_ARROW_RUN) {
        begin = (view->offset + row) * view->run;
        end = begin + view->run;
    } else {
        aq_status status = aq_arrow_extent(view, row, &begin, &end, err);
        if (status != AQ_OK) return status;
    }
    if (end > items->length)
        return aq_fail_tensor(err, AQ_ERR_ARROW, "", (uint64_t)row,
                              "column %s, row %lld: its list ends at element %lld, there are %lld",
                              name, (long long)row, (long long)end, (long long)items->length);
    *format = item->format[0];
    *count = (uint64_t)(end - begin);
    *data = "";
    if (*count)
        *data = (const unsigned char *)items->buffers[1] +
                (size_t)(items->offset + begin) * type->width;
    return aq_arrow_no_nulls(view, row, begin, end, err);
}

/* One field of the structs begin … end of `items`. */
static aq_status aq_arrow_field(const aq_arrow_view *view, int64_t row, const char *name,
                                char format, int64_t begin, int64_t end, const void **data,
                                aq_error *err) {
    const struct ArrowArray *items = view->array->children[0];
    const struct ArrowSchema *item = view->schema->children[0];
    const char wanted[2] = { format, 0 };
    int64_t run, i = 0;
    while (i < item->n_children && strcmp(aq_arrow_name_of(item->children[i]), name) != 0) i++;
    if (i == item->n_children || i >= items->n_children || item->children[i]->dictionary ||
        strcmp(item->children[i]->format, wanted) != 0)
        return aq_fail(err, AQ_ERR_ARROW, "column %s: expected structs with a field %s of the format "
                       "\"%s\"; cast it", aq_arrow_name_of(view->schema), name, wanted);
    const struct ArrowArray *field = items->children[i];
    begin += items->offset;
    end += items->offset;
    if (end > field->length)
        return aq_fail_tensor(err, AQ_ERR_ARROW, "", (uint64_t)row,
                              "column %s, row %lld: its list ends at element %lld, field %s has %lld",
                              aq_arrow_name_of(view->schema), (long long)row, (long long)end, name,
                              (long long)field->length);
    for (int64_t at = begin; field->null_count && at < end; at++)
        if (aq_arrow_null_at(field, field->offset + at))
            return aq_fail_tensor(err, AQ_ERR_ARROW, "", (uint64_t)row,
                                  "column %s, row %lld: a null in field %s; fill the nulls first",
                                  aq_arrow_name_of(view->schema), (long long)row, name);
    *data = "";
    if (end > begin)
        *data = (const unsigned char *)field->buffers[1] +
                (size_t)(field->offset + begin) * aq_arrow_type_of(wanted, &run)->width;
    return AQ_OK;
}

AQ_LIB aq_status aq_arrow_structs(const aq_arrow_view *view, int64_t row, const char *const *names,
                                  const char *formats, const void **data, uint64_t *count,
                                  aq_error *err) {
    int64_t begin = 0, end = 0;
    const char *found = view->schema->format;
    if (!view->type || view->type->kind != AQ_ARROW_LIST || view->array->n_children != 1 ||
        view->schema->n_children != 1 || view->schema->children[0]->dictionary ||
        strcmp(view->schema->children[0]->format, "+s") != 0)
        return aq_arrow_bad(err, aq_arrow_name_of(view->schema), "a list of structs", found);
    aq_status status = aq_arrow_extent(view, row, &begin, &end, err);
    if (status != AQ_OK) return status;
    if (end > view->array->children[0]->length)
        return aq_fail_tensor(err, AQ_ERR_ARROW, "", (uint64_t)row,
                              "column %s, row %lld: its list ends at element %lld, there are %lld",
                              aq_arrow_name_of(view->schema), (long long)row, (long long)end,
                              (long long)view->array->children[0]->length);
    *count = (uint64_t)(end - begin);
    status = aq_arrow_no_nulls(view, row, begin, end, err);
    for (size_t f = 0; status == AQ_OK && formats[f]; f++)
        status = aq_arrow_field(view, row, names[f], formats[f], begin, end, &data[f], err);
    return status;
}

/* ---- weights */

/* rows and cols as aq_quantize sees them. */
static aq_status aq_arrow_weights_shape(aq_arrow_weights *row, int64_t number, aq_error *err) {
    uint64_t product = 1, cols = 1;
    bool fits = row->rank > 0;
    for (size_t i = 0; i < row->rank && fits; i++) {
        fits = row->shape[i] >= 0 && aq_mul_u64(product, (uint64_t)row->shape[i], &product);
        if (i || row->rank == 1) fits = fits && aq_mul_u64(cols, (uint64_t)row->shape[i], &cols);
    }
    row->rows = row->rank > 1 ? (uint64_t)row->shape[0] : 1;
    row->cols = cols;
    if (fits && product == row->count) return AQ_OK;
    return aq_fail_tensor(err, AQ_ERR_SHAPE, "", (uint64_t)number,
                          "row %lld (%.*s): the shape of %zu dimensions has %llu elements, there are "
                          "%llu weights", (long long)number,
                          row->name_size < 200 ? (int)row->name_size : 200, row->name, row->rank,
                          fits ? (unsigned long long)product : 0, (unsigned long long)row->count);
}

static aq_status aq_arrow_import_row(const aq_arrow_view views[3], bool shaped, int64_t number,
                                     aq_arrow_weights *out, aq_error *err) {
    const void *data = NULL;
    uint64_t count = 0;
    char format = 0;
    memset(out, 0, sizeof(*out));
    aq_status status = aq_arrow_bytes(&views[0], number, &data, &count, err);
    if (status != AQ_OK) return status;
    out->name = (const char *)data;
    out->name_size = (size_t)count;
    status = aq_arrow_list(&views[1], number, "feg", &out->weights, &out->count, &format, err);
    if (status != AQ_OK) return status;
    out->dtype = format == 'f' ? AQ_DTYPE_F32 : format == 'e' ? AQ_DTYPE_F16 : AQ_DTYPE_F64;
    out->rows = 1;
    out->cols = out->count;
    if (!shaped || aq_arrow_is_null(&views[2], number)) return AQ_OK;
    status = aq_arrow_list(&views[2], number, "l", &data, &count, &format, err);
    if (status != AQ_OK) return status;
    out->shape = (const int64_t *)data;
    out->rank = (size_t)count;
    return aq_arrow_weights_shape(out, number, err);
}

ARROWQUANT_API aq_status aq_arrow_import_weights(const struct ArrowSchema *schema,
                                                 const struct ArrowArray *array,
                                                 aq_arrow_weights *out, aq_error *err) {
    static const char *const names[] = { "layer_name", "weights", "shape" };
    aq_arrow_view views[3];
    bool found[3] = { false, false, false };
    if (!out && array && array->length)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_arrow_import_weights: out is NULL");
    for (unsigned i = 0; i < 3; i++) {
        aq_status status = aq_arrow_find(schema, array, names[i], &found[i], &views[i], err);
        if (status != AQ_OK) return status;
        if (!found[i] && i < 2)
            return aq_fail(err, AQ_ERR_ARROW, "there is no column %s; expected layer_name, weights "
                           "and perhaps shape", names[i]);
    }
    for (int64_t row = 0; row < array->length; row++) {
        aq_status status = aq_arrow_import_row(views, found[2], row, &out[row], err);
        if (status != AQ_OK) return status;
    }
    return AQ_OK;
}

#endif /* ARROWQUANT_NO_STDIO */
