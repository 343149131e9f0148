/* Reads everything that an Arrow array may lead to, so that a sanitizer sees what lies outside. */
#ifndef AQ_ARROW_WALK_H
#define AQ_ARROW_WALK_H

static unsigned long arrow_touched;

static inline void arrow_touch(const void *data, size_t size) {
    const unsigned char *bytes = (const unsigned char *)data;
    for (size_t i = 0; i < size; i++) arrow_touched += bytes[i];
}

static inline int64_t arrow_last_offset(const struct ArrowArray *array, size_t width) {
    int32_t small = 0;
    int64_t large = 0;
    const unsigned char *offsets = (const unsigned char *)array->buffers[1];
    if (width == 4) {
        memcpy(&small, offsets + 4 * (size_t)array->length, sizeof(small));
        return small;
    }
    memcpy(&large, offsets + 8 * (size_t)array->length, sizeof(large));
    return large;
}

static inline void arrow_walk(const struct ArrowSchema *schema, const struct ArrowArray *array) {
    int64_t run;
    const aq_arrow_type *type = aq_arrow_type_of(schema->format, &run);
    size_t length = (size_t)array->length;
    if (array->null_count && array->buffers[0]) arrow_touch(array->buffers[0], (length + 7) / 8);
    if (type->kind == AQ_ARROW_FIXED) arrow_touch(array->buffers[1], length * type->width);
    if (type->kind == AQ_ARROW_BITS) arrow_touch(array->buffers[1], (length + 7) / 8);
    if (type->kind == AQ_ARROW_BYTES)
        arrow_touch(array->buffers[2], (size_t)arrow_last_offset(array, type->width));
    if (type->kind == AQ_ARROW_BYTES || type->kind == AQ_ARROW_LIST)
        for (size_t i = 0; i <= length && length; i++)
            arrow_touch((const unsigned char *)array->buffers[1] + i * type->width, type->width);
    for (int64_t i = 0; i < array->n_children; i++)
        arrow_walk(schema->children[i], array->children[i]);
}

/* Opens, reads to the end, releases; how many rows there were. */
static inline aq_status arrow_walk_image(aq_context *context, const void *data, size_t size,
                                         const char *source, int64_t *rows, aq_error *err) {
    struct ArrowArrayStream stream;
    struct ArrowSchema schema;
    struct ArrowArray array;
    aq_arrow_owner nobody = { NULL, NULL };
    *rows = 0;
    aq_status status = aq_arrow_ipc_read(context, data, size, source, nobody, &stream, err);
    if (status != AQ_OK) return status;
    if (stream.get_schema(&stream, &schema)) {
        status = aq_fail_memory(err, 0);
    } else {
        while ((status = aq_arrow_next(&stream, &array, err)) == AQ_OK && array.release) {
            arrow_walk(&schema, &array);
            *rows += array.length;
            array.release(&array);
        }
        schema.release(&schema);
    }
    stream.release(&stream);
    return status;
}

#endif
