/* The schema of an IPC message: from its flatbuffer to C structs and back. */
#include "arrow.h"

#ifndef ARROWQUANT_NO_STDIO

/* ---- writing */

static void aq_arrow_write_metadata(aq_builder *out, size_t base, size_t link,
                                    const char *packed) {
    static const unsigned char sizes[] = { 4, 4 };
    int32_t count, size;
    memcpy(&count, packed, sizeof(count));
    packed += sizeof(count);
    size_t at[AQ_FB_FIELDS], list = aq_fb_put_vector(out, base, link, (size_t)count, 4);
    for (int32_t i = 0; i < count; i++) aq_fb_append(out, 0, 4);
    for (int32_t i = 0; i < count; i++) {
        size_t table = aq_fb_put_table(out, base, sizes, 2, at);
        aq_fb_link(out, list + 4 * (size_t)i, table);
        for (unsigned part = 0; part < 2; part++) {
            memcpy(&size, packed, sizeof(size));
            aq_fb_put_string(out, base, at[part], packed + sizeof(size), (size_t)size);
            packed += sizeof(size) + (size_t)size;
        }
    }
}

static void aq_arrow_write_type(aq_builder *out, size_t base, size_t link,
                                const aq_arrow_type *type, int64_t run) {
    static const unsigned char integer[] = { 4, 1 }, precision[] = { 2 }, list_size[] = { 4 };
    size_t at[AQ_FB_FIELDS], table;
    if (type->union_type == 2) {
        table = aq_fb_put_table(out, base, integer, 2, at);
        aq_fb_put(out, at[0], type->detail, 4);
        aq_fb_put(out, at[1], type->is_signed, 1);
    } else if (type->union_type == 3) {
        table = aq_fb_put_table(out, base, precision, 1, at);
        aq_fb_put(out, at[0], type->detail, 2);
    } else if (type->kind == AQ_ARROW_RUN) {
        table = aq_fb_put_table(out, base, list_size, 1, at);
        aq_fb_put(out, at[0], (uint64_t)run, 4);
    } else {
        table = aq_fb_put_table(out, base, NULL, 0, at);
    }
    aq_fb_link(out, link, table);
}

static void aq_arrow_write_fields(aq_builder *out, size_t base, size_t link,
                                  const struct ArrowSchema *parent) {
    unsigned char sizes[7] = { 4, 1, 1, 4, 0, 4, 4 };
    size_t at[AQ_FB_FIELDS];
    size_t list = aq_fb_put_vector(out, base, link, (size_t)parent->n_children, 4);
    for (int64_t i = 0; i < parent->n_children; i++) aq_fb_append(out, 0, 4);
    for (int64_t i = 0; i < parent->n_children; i++) {
        const struct ArrowSchema *field = parent->children[i];
        const char *name = field->name ? field->name : "";
        int64_t run;
        const aq_arrow_type *type = aq_arrow_type_of(field->format, &run);
        sizes[6] = field->metadata ? 4 : 0;
        size_t table = aq_fb_put_table(out, base, sizes, 7, at);
        aq_fb_link(out, list + 4 * (size_t)i, table);
        aq_fb_put(out, at[1], (field->flags & ARROW_FLAG_NULLABLE) != 0, 1);
        aq_fb_put(out, at[2], type->union_type, 1);
        aq_fb_put_string(out, base, at[0], name, strlen(name));
        aq_arrow_write_type(out, base, at[3], type, run);
        aq_arrow_write_fields(out, base, at[5], field);
        if (field->metadata) aq_arrow_write_metadata(out, base, at[6], field->metadata);
    }
}

AQ_LIB void aq_arrow_write_schema(aq_builder *out, size_t base, size_t link,
                                  const struct ArrowSchema *schema) {
    const unsigned char sizes[3] = { 2, 4, (unsigned char)(schema->metadata ? 4 : 0) };
    size_t at[AQ_FB_FIELDS], table = aq_fb_put_table(out, base, sizes, 3, at);
    aq_fb_link(out, link, table);
    aq_arrow_write_fields(out, base, at[1], schema);
    if (schema->metadata) aq_arrow_write_metadata(out, base, at[2], schema->metadata);
}

static aq_status aq_arrow_check_field(const struct ArrowSchema *field, const char *source,
                                      unsigned depth, aq_error *err) {
    int64_t run, children = 0;
    const aq_arrow_type *type = aq_arrow_type_of(field->format, &run);
    if (!type || field->dictionary || depth > AQ_ARROW_DEPTH)
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: column %s: %s \"%s\" is not supported; cast it to "
                       "numbers, booleans, strings, binary, lists or structs", source,
                       field->name ? field->name : "",
                       type && depth > AQ_ARROW_DEPTH ? "so deep a nesting as that of"
                       : type ? "the dictionary of" : "the type",
                       field->format ? field->format : "");
    if (type->kind == AQ_ARROW_LIST || type->kind == AQ_ARROW_RUN) children = 1;
    if (type->kind != AQ_ARROW_STRUCT && field->n_children != children)
        return aq_fail(err, AQ_ERR_ARROW, "%s: column %s: %lld children, expected %lld", source,
                       field->name ? field->name : "", (long long)field->n_children,
                       (long long)children);
    aq_status status = AQ_OK;
    for (int64_t i = 0; status == AQ_OK && i < field->n_children; i++)
        status = aq_arrow_check_field(field->children[i], source, depth + 1, err);
    return status;
}

AQ_LIB aq_status aq_arrow_check_schema(const struct ArrowSchema *schema, const char *source,
                                       aq_error *err) {
    if (!schema->format || strcmp(schema->format, "+s") != 0)
        return aq_fail(err, AQ_ERR_ARROW, "%s: expected a stream of record batches, found the type "
                       "\"%s\"", source, schema->format ? schema->format : "");
    return aq_arrow_check_field(schema, source, 0, err);
}

/* ---- reading */

typedef struct aq_arrow_schema_reader {
    aq_arrow_shared *shared;
    const char *source;
    size_t fields_left; /* tables may be shared: without bounds a few bytes could mean millions */
    size_t text_left;
    aq_error *err;
} aq_arrow_schema_reader;

static aq_status aq_arrow_schema_bad(const aq_arrow_schema_reader *reader, const char *what) {
    return aq_fail(reader->err, AQ_ERR_CORRUPT, "%s: the Arrow schema is malformed: %s",
                   reader->source, what);
}

static bool aq_arrow_spend(size_t *left, size_t amount) {
    if (amount > *left) return false;
    *left -= amount;
    return true;
}

static aq_status aq_arrow_read_metadata(aq_arrow_schema_reader *reader,
                                        const aq_fb_table *owner, unsigned field,
                                        const char **packed) {
    aq_fb_vector list = aq_fb_items(owner, field, 4);
    aq_arena scratch;
    aq_status status = AQ_OK;
    if (!list.count) return AQ_OK;
    aq_arena_init(&scratch, &reader->shared->context);
    const char **items = (const char **)aq_arena_alloc(&scratch, 2 * list.count * sizeof(*items));
    size_t *sizes = (size_t *)aq_arena_alloc(&scratch, 2 * list.count * sizeof(*sizes));
    if (!items || !sizes) status = aq_fail_memory(reader->err, list.count * sizeof(*sizes));
    for (size_t i = 0; status == AQ_OK && i < list.count; i++) {
        aq_fb_table pair = aq_fb_item(&list, i);
        for (unsigned part = 0; part < 2; part++) {
            aq_fb_vector text = aq_fb_string(&pair, part);
            items[2 * i + part] = text.present ? (const char *)text.buffer->data + text.at : "";
            sizes[2 * i + part] = text.present ? text.count : 0;
            if (status == AQ_OK && !aq_arrow_spend(&reader->text_left, 4 + sizes[2 * i + part]))
                status = aq_arrow_schema_bad(reader, "it has more text than bytes");
        }
        if (owner->buffer->bad && status == AQ_OK)
            status = aq_arrow_schema_bad(reader, owner->buffer->bad);
    }
    if (status == AQ_OK) {
        *packed = aq_arrow_pack_metadata(&reader->shared->arena, items, 2 * list.count, sizes);
        if (!*packed) status = aq_fail_memory(reader->err, list.count);
    }
    aq_arena_free(&scratch);
    return status;
}

/* The format string of a field's type, "" when it is none of ours. */
static void aq_arrow_read_format(const aq_fb_table *field, int64_t number, char *format,
                                 size_t capacity) {
    aq_fb_table table = aq_fb_child(field, 3);
    int64_t detail = 0;
    bool is_signed = false;
    *format = 0;
    if (number == 2) {
        detail = aq_fb_number(&table, 0, 4, 0);
        is_signed = aq_fb_number(&table, 1, 1, 0) != 0;
    } else if (number == 3) {
        detail = aq_fb_number(&table, 0, 2, 0);
    }
    const aq_arrow_type *type = aq_arrow_type_find(number, detail, is_signed);
    if (!type) return;
    if (type->kind == AQ_ARROW_RUN) {
        int64_t run = aq_fb_number(&table, 0, 4, 0);
        if (run >= 0) aq_format(format, capacity, "+w:%lld", (long long)run);
    } else {
        aq_format(format, capacity, "%s", type->format);
    }
}

static aq_status aq_arrow_read_fields(aq_arrow_schema_reader *reader, const aq_fb_vector *list,
                                      struct ArrowSchema *parent, unsigned depth);

static aq_status aq_arrow_read_field(aq_arrow_schema_reader *reader, const aq_fb_table *field,
                                     struct ArrowSchema *out, unsigned depth) {
    char format[32], *name;
    aq_fb_buffer *buffer = field->buffer;
    aq_fb_vector text = aq_fb_string(field, 0), children = aq_fb_items(field, 5, 4);
    int64_t number = aq_fb_number(field, 2, 1, 0) & 0xFF;
    aq_fb_table dictionary = aq_fb_child(field, 4);
    aq_arrow_read_format(field, number, format, sizeof(format));
    if (buffer->bad) return aq_arrow_schema_bad(reader, buffer->bad);
    size_t size = text.present ? text.count : 0;
    if (!aq_arrow_spend(&reader->fields_left, children.count) ||
        !aq_arrow_spend(&reader->text_left, size))
        return aq_arrow_schema_bad(reader, "it has more fields than bytes");
    name = aq_arena_copy(&reader->shared->arena,
                         size ? (const char *)buffer->data + text.at : "", size);
    if (!name) return aq_fail_memory(reader->err, size);
    if (strlen(name) != size || !aq_is_utf8(name, size, NULL))
        return aq_arrow_schema_bad(reader, "a column's name is not UTF-8 text");
    if (!*format || dictionary.present || depth > AQ_ARROW_DEPTH)
        return aq_fail(reader->err, AQ_ERR_UNSUPPORTED,
                       "%s: column %s: %s is not supported; cast it to numbers, booleans, strings, "
                       "binary, lists or structs", reader->source, name,
                       dictionary.present ? "dictionary encoding"
                       : *format ? "so deep a nesting" : aq_arrow_union_name(number));
    if (!aq_arrow_make_schema(reader->shared, out, format, name, aq_fb_number(field, 1, 1, 0) != 0,
                              children.count))
        return aq_fail_memory(reader->err, children.count * sizeof(*out));
    aq_status status = aq_arrow_read_metadata(reader, field, 6, &out->metadata);
    return status == AQ_OK ? aq_arrow_read_fields(reader, &children, out, depth + 1) : status;
}

static aq_status aq_arrow_read_fields(aq_arrow_schema_reader *reader, const aq_fb_vector *list,
                                      struct ArrowSchema *parent, unsigned depth) {
    aq_status status = AQ_OK;
    for (size_t i = 0; status == AQ_OK && i < list->count; i++) {
        aq_fb_table field = aq_fb_item(list, i);
        status = aq_arrow_read_field(reader, &field, parent->children[i], depth);
    }
    return status;
}

AQ_LIB aq_status aq_arrow_read_schema(aq_arrow_shared *shared, const aq_fb_table *table,
                                      const char *source, struct ArrowSchema *out, aq_error *err) {
    aq_arrow_schema_reader reader;
    aq_fb_vector fields = aq_fb_items(table, 1, 4);
    reader.shared = shared;
    reader.source = source;
    reader.err = err;
    reader.fields_left = table->buffer->size / 8;
    reader.text_left = 4 * table->buffer->size;
    if (!table->present || table->buffer->bad)
        return aq_arrow_schema_bad(&reader, table->buffer->bad ? table->buffer->bad : "it is absent");
    if (aq_fb_number(table, 0, 2, 0) != 0)
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: its numbers are big endian; write it again on a "
                       "little-endian machine", source);
    if (!aq_arrow_spend(&reader.fields_left, fields.count))
        return aq_arrow_schema_bad(&reader, "it has more fields than bytes");
    if (!aq_arrow_make_schema(shared, out, "+s", "", false, fields.count))
        return aq_fail_memory(err, fields.count * sizeof(*out));
    aq_status status = aq_arrow_read_metadata(&reader, table, 2, &out->metadata);
    if (status == AQ_OK) status = aq_arrow_read_fields(&reader, &fields, out, 1);
    if (status == AQ_OK) status = aq_arrow_check_schema(out, source, err);
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
