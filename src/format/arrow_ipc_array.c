/* Arrays out of a record batch of an IPC message: every buffer, offset and count is checked against
 * the message's body before anybody may follow it. */
#include "arrow_ipc.h"

#include "../quant/quant.h"

#ifndef ARROWQUANT_NO_STDIO

static aq_status aq_ipc_bad(const aq_ipc_batch *batch, const char *column, const char *format,
                            long long a, long long b) {
    char text[256];
    aq_format(text, sizeof(text), format, a, b);
    return aq_fail_tensor(batch->err, AQ_ERR_CORRUPT, column, batch->position,
                          "%s: record batch %zu, column %s: %s; write the file again",
                          batch->source, batch->number, column, text);
}

/* The next buffer: inside the body, 8-byte aligned, at least `need` bytes, in this machine's order. */
static aq_status aq_ipc_buffer(aq_ipc_batch *batch, const char *column, uint64_t need, size_t width,
                               const void **out, uint64_t *size) {
    if (batch->buffer >= batch->buffers.count)
        return aq_ipc_bad(batch, column, "its buffer %lld is missing", (long long)batch->buffer, 0);
    size_t at = batch->buffers.at + 16 * batch->buffer++;
    int64_t offset = aq_fb_i64(batch->buffers.buffer, at);
    int64_t length = aq_fb_i64(batch->buffers.buffer, at + 8);
    if (offset < 0 || length < 0 || (uint64_t)offset > batch->body_size ||
        (uint64_t)length > batch->body_size - (uint64_t)offset)
        return aq_ipc_bad(batch, column, "a buffer at %lld of %lld bytes leaves the body", offset,
                          length);
    if (length && offset % 8)
        return aq_ipc_bad(batch, column, "a buffer at %lld is not aligned to 8 bytes", offset, 0);
    if ((uint64_t)length < need)
        return aq_ipc_bad(batch, column, "a buffer has %lld bytes, expected %lld", length,
                          (long long)need);
    *out = length ? batch->body + (size_t)offset : NULL;
    *size = (uint64_t)length;
    const uint16_t probe = 1;
    if (!length || width < 2 || *(const unsigned char *)&probe == 1) return AQ_OK;
    void *copy = aq_arena_alloc(&batch->shared->arena, (size_t)length);
    if (!copy) return aq_fail_memory(batch->err, (size_t)length);
    memcpy(copy, *out, (size_t)length);
    aq_little_endian(copy, (size_t)length / width, width);
    *out = copy;
    return AQ_OK;
}

static aq_status aq_ipc_validity(aq_ipc_batch *batch, const char *column,
                                 struct ArrowArray *array) {
    uint64_t size = 0, need = array->null_count ? ((uint64_t)array->length + 7) / 8 : 0;
    int64_t nulls = 0;
    aq_status status = aq_ipc_buffer(batch, column, need, 1, &array->buffers[0], &size);
    const unsigned char *bits = (const unsigned char *)array->buffers[0];
    if (status != AQ_OK || !bits) return status;
    if (size < ((uint64_t)array->length + 7) / 8)
        return aq_ipc_bad(batch, column, "a validity buffer of %lld bytes for %lld rows",
                          (long long)size, array->length);
    for (int64_t i = 0; i < array->length; i++) nulls += !(bits[i / 8] >> (i % 8) & 1);
    if (nulls != array->null_count)
        return aq_ipc_bad(batch, column, "%lld nulls, its node says %lld", nulls, array->null_count);
    return AQ_OK;
}

static int64_t aq_ipc_offset(const void *offsets, size_t width, int64_t index) {
    int32_t small;
    int64_t large;
    const unsigned char *at = (const unsigned char *)offsets + (size_t)index * width;
    if (width == 4) {
        memcpy(&small, at, sizeof(small));
        return small;
    }
    memcpy(&large, at, sizeof(large));
    return large;
}

/* Offsets start at 0 or above and go forward; *last is where they end. */
static aq_status aq_ipc_offsets(aq_ipc_batch *batch, const char *column, const aq_arrow_type *type,
                                struct ArrowArray *array, int64_t *last) {
    static const int64_t none = 0;
    uint64_t size = 0, need = array->length ? ((uint64_t)array->length + 1) * type->width : 0;
    aq_status status =
        aq_ipc_buffer(batch, column, need, type->width, &array->buffers[1], &size);
    *last = 0;
    if (status != AQ_OK) return status;
    if (size < type->width) array->buffers[1] = &none; /* a column without rows needs no offsets */
    int64_t before = aq_ipc_offset(array->buffers[1], type->width, 0);
    if (before < 0) return aq_ipc_bad(batch, column, "its first offset is %lld", before, 0);
    for (int64_t i = 1; i <= array->length; i++) {
        int64_t next = aq_ipc_offset(array->buffers[1], type->width, i);
        if (next < before)
            return aq_ipc_bad(batch, column, "offsets go back from %lld to %lld", before, next);
        before = next;
    }
    *last = before;
    return AQ_OK;
}

static aq_status aq_ipc_text(const aq_ipc_batch *batch, const char *column,
                             const aq_arrow_type *type, const struct ArrowArray *array) {
    for (int64_t i = 0; i < array->length; i++) {
        int64_t begin = aq_ipc_offset(array->buffers[1], type->width, i);
        int64_t end = aq_ipc_offset(array->buffers[1], type->width, i + 1);
        const char *text = (const char *)array->buffers[2];
        if (end > begin && !aq_is_utf8(text + begin, (size_t)(end - begin), NULL))
            return aq_ipc_bad(batch, column, "row %lld is not UTF-8", i, 0);
    }
    return AQ_OK;
}

static aq_status aq_ipc_node(aq_ipc_batch *batch, const char *column, int64_t *length,
                             int64_t *nulls) {
    if (batch->node >= batch->nodes.count)
        return aq_ipc_bad(batch, column, "its node %lld is missing", (long long)batch->node, 0);
    size_t at = batch->nodes.at + 16 * batch->node++;
    *length = aq_fb_i64(batch->nodes.buffer, at);
    *nulls = aq_fb_i64(batch->nodes.buffer, at + 8);
    /* far below what would overflow a size, far above what a file can hold */
    if (*length < 0 || *length > INT64_MAX / 64 || *nulls < 0 || *nulls > *length)
        return aq_ipc_bad(batch, column, "%lld rows, %lld of them null", *length, *nulls);
    return AQ_OK;
}

/* Children, and that they are as long as the parent needs: `need` of each. */
static aq_status aq_ipc_children(aq_ipc_batch *batch, const struct ArrowSchema *schema,
                                 struct ArrowArray *array, const char *column, int64_t need) {
    aq_status status = AQ_OK;
    for (int64_t i = 0; status == AQ_OK && i < array->n_children; i++) {
        struct ArrowArray *child = array->children[i];
        status = aq_ipc_array(batch, schema->children[i], child, column);
        if (status == AQ_OK && child->length < need)
            status = aq_ipc_bad(batch, column, "it has %lld elements, its parent needs %lld",
                                child->length, need);
    }
    return status;
}

AQ_LIB aq_status aq_ipc_array(aq_ipc_batch *batch, const struct ArrowSchema *schema,
                              struct ArrowArray *array, const char *column) {
    int64_t run, length = 0, nulls = 0, last = 0;
    uint64_t size = 0;
    const aq_arrow_type *type = aq_arrow_type_of(schema->format, &run);
    if (!type) return aq_fail(batch->err, AQ_ERR_UNSUPPORTED, "%s: column %s", batch->source, column);
    aq_status status = aq_ipc_node(batch, column, &length, &nulls);
    if (status != AQ_OK) return status;
    if (!aq_arrow_make_array(batch->shared, array, length, aq_arrow_buffers(type),
                             (size_t)schema->n_children))
        return aq_fail_memory(batch->err, sizeof(*array));
    array->null_count = nulls;
    status = aq_ipc_validity(batch, column, array);
    if (status != AQ_OK) return status;
    switch (type->kind) {
    case AQ_ARROW_FIXED:
        return aq_ipc_buffer(batch, column, (uint64_t)length * type->width, type->width,
                             &array->buffers[1], &size);
    case AQ_ARROW_BITS:
        return aq_ipc_buffer(batch, column, ((uint64_t)length + 7) / 8, 1, &array->buffers[1],
                             &size);
    case AQ_ARROW_BYTES:
        status = aq_ipc_offsets(batch, column, type, array, &last);
        if (status == AQ_OK)
            status = aq_ipc_buffer(batch, column, (uint64_t)last, 1, &array->buffers[2], &size);
        return status == AQ_OK && type->text ? aq_ipc_text(batch, column, type, array) : status;
    case AQ_ARROW_LIST:
        status = aq_ipc_offsets(batch, column, type, array, &last);
        return status == AQ_OK ? aq_ipc_children(batch, schema, array, column, last) : status;
    case AQ_ARROW_RUN:
        if (run && length > INT64_MAX / 64 / run)
            return aq_ipc_bad(batch, column, "%lld rows of %lld elements", length, run);
        return aq_ipc_children(batch, schema, array, column, length * run);
    case AQ_ARROW_STRUCT: return aq_ipc_children(batch, schema, array, column, length);
    }
    return AQ_OK;
}

#endif /* ARROWQUANT_NO_STDIO */
