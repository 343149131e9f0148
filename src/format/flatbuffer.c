/* Flatbuffers: checked reading, forward writing. */
#include "flatbuffer.h"

#ifndef ARROWQUANT_NO_STDIO

/* ---- reading */

static uint64_t aq_fb_raw(const aq_fb_buffer *buffer, size_t at, size_t size) {
    uint64_t value = 0;
    for (size_t i = size; i > 0; i--) value = value << 8 | buffer->data[at + i - 1];
    return value;
}

AQ_LIB int32_t aq_fb_i32(const aq_fb_buffer *buffer, size_t at) {
    uint32_t raw = (uint32_t)aq_fb_raw(buffer, at, 4);
    int32_t value;
    memcpy(&value, &raw, sizeof(value));
    return value;
}

AQ_LIB int64_t aq_fb_i64(const aq_fb_buffer *buffer, size_t at) {
    uint64_t raw = aq_fb_raw(buffer, at, 8);
    int64_t value;
    memcpy(&value, &raw, sizeof(value));
    return value;
}

static void aq_fb_refuse(aq_fb_buffer *buffer, const char *what) {
    if (!buffer->bad) buffer->bad = what;
}

static bool aq_fb_inside(const aq_fb_buffer *buffer, size_t at, size_t size) {
    return at <= buffer->size && size <= buffer->size - at;
}

/* Where the link at `at` leads; 0 when that is outside. */
static size_t aq_fb_follow(aq_fb_buffer *buffer, size_t at) {
    if (aq_fb_inside(buffer, at, 4)) {
        uint64_t offset = aq_fb_raw(buffer, at, 4);
        if (offset && offset < buffer->size - at) return at + (size_t)offset;
    }
    aq_fb_refuse(buffer, "a link leads outside of the message");
    return 0;
}

static aq_fb_table aq_fb_table_at(aq_fb_buffer *buffer, size_t at) {
    aq_fb_table table;
    memset(&table, 0, sizeof(table));
    table.buffer = buffer;
    if (!at) return table;
    if (!aq_fb_inside(buffer, at, 4)) {
        aq_fb_refuse(buffer, "a table leaves the message");
        return table;
    }
    int64_t vtable = (int64_t)at - aq_fb_i32(buffer, at);
    if (vtable < 0 || !aq_fb_inside(buffer, (size_t)vtable, 4)) {
        aq_fb_refuse(buffer, "a table's list of fields lies outside of the message");
        return table;
    }
    size_t bytes = (size_t)aq_fb_raw(buffer, (size_t)vtable, 2);
    size_t size = (size_t)aq_fb_raw(buffer, (size_t)vtable + 2, 2);
    if (bytes < 4 || bytes % 2 || !aq_fb_inside(buffer, (size_t)vtable, bytes) || size < 4 ||
        !aq_fb_inside(buffer, at, size)) {
        aq_fb_refuse(buffer, "a table or its list of fields leaves the message");
        return table;
    }
    table.at = at;
    table.size = size;
    table.vtable = (size_t)vtable;
    table.vtable_entries = bytes / 2 - 2;
    table.present = true;
    return table;
}

AQ_LIB aq_fb_table aq_fb_root(aq_fb_buffer *buffer, const void *data, size_t size) {
    buffer->data = (const unsigned char *)data;
    buffer->size = size;
    buffer->bad = NULL;
    return aq_fb_table_at(buffer, aq_fb_follow(buffer, 0));
}

/* Where a field of `size` bytes lies; 0 when it is absent. */
static size_t aq_fb_field(const aq_fb_table *table, unsigned field, size_t size) {
    if (!table->present || field >= table->vtable_entries) return 0;
    size_t offset = (size_t)aq_fb_raw(table->buffer, table->vtable + 4 + 2 * (size_t)field, 2);
    if (!offset) return 0;
    if (offset >= 4 && offset <= table->size && size <= table->size - offset)
        return table->at + offset;
    aq_fb_refuse(table->buffer, "a field leaves its table");
    return 0;
}

AQ_LIB int64_t aq_fb_number(const aq_fb_table *table, unsigned field, size_t size,
                            int64_t otherwise) {
    size_t at = aq_fb_field(table, field, size);
    if (!at) return otherwise;
    uint64_t raw = aq_fb_raw(table->buffer, at, size);
    if (size < 8 && raw >> (8 * size - 1)) raw |= ~UINT64_C(0) << (8 * size);
    int64_t value;
    memcpy(&value, &raw, sizeof(value));
    return value;
}

AQ_LIB aq_fb_table aq_fb_child(const aq_fb_table *table, unsigned field) {
    size_t at = aq_fb_field(table, field, 4);
    return aq_fb_table_at(table->buffer, at ? aq_fb_follow(table->buffer, at) : 0);
}

AQ_LIB aq_fb_vector aq_fb_items(const aq_fb_table *table, unsigned field, size_t element) {
    aq_fb_vector vector;
    memset(&vector, 0, sizeof(vector));
    vector.buffer = table->buffer;
    size_t at = aq_fb_field(table, field, 4);
    if (at) at = aq_fb_follow(table->buffer, at);
    if (!at) return vector;
    uint64_t count = aq_fb_inside(table->buffer, at, 4) ? aq_fb_raw(table->buffer, at, 4)
                                                        : UINT64_MAX;
    if (count == UINT64_MAX || count > (table->buffer->size - at - 4) / element) {
        aq_fb_refuse(table->buffer, "a list is longer than the message");
        return vector;
    }
    vector.at = at + 4;
    vector.count = (size_t)count;
    vector.present = true;
    return vector;
}

AQ_LIB aq_fb_table aq_fb_item(const aq_fb_vector *vector, size_t index) {
    return aq_fb_table_at(vector->buffer, aq_fb_follow(vector->buffer, vector->at + 4 * index));
}

AQ_LIB aq_fb_vector aq_fb_string(const aq_fb_table *table, unsigned field) {
    aq_fb_vector text = aq_fb_items(table, field, 1);
    if (text.present && (!aq_fb_inside(text.buffer, text.at + text.count, 1) ||
                         text.buffer->data[text.at + text.count] != 0)) {
        aq_fb_refuse(table->buffer, "a string does not end with a zero byte");
        text.present = false;
    }
    return text;
}

/* ---- writing */

AQ_LIB void aq_fb_append(aq_builder *out, uint64_t value, size_t size) {
    char bytes[8];
    for (size_t i = 0; i < size; i++) bytes[i] = (char)(unsigned char)(value >> (8 * i));
    aq_append(out, bytes, size);
}

AQ_LIB void aq_fb_align(aq_builder *out, size_t base, size_t alignment, size_t ahead) {
    while (!out->failed && (out->size - base + ahead) % alignment) aq_append(out, "", 1);
}

AQ_LIB void aq_fb_put(aq_builder *out, size_t at, uint64_t value, size_t size) {
    if (out->failed) return;
    for (size_t i = 0; i < size; i++) out->data[at + i] = (char)(unsigned char)(value >> (8 * i));
}

AQ_LIB size_t aq_fb_put_table(aq_builder *out, size_t base, const unsigned char *sizes,
                              unsigned count, size_t *at) {
    size_t inline_bytes = 4, offsets[AQ_FB_FIELDS] = { 0 };
    for (size_t width = 8; width; width /= 2) { /* the widest first: no gaps but the first */
        for (unsigned i = 0; i < count; i++) {
            if (sizes[i] != width) continue;
            inline_bytes = (inline_bytes + width - 1) / width * width;
            offsets[i] = inline_bytes;
            inline_bytes += width;
        }
    }
    size_t vtable_bytes = 4 + 2 * (size_t)count;
    aq_fb_align(out, base, 8, vtable_bytes); /* the table, behind its list of fields */
    aq_fb_append(out, vtable_bytes, 2);
    aq_fb_append(out, inline_bytes, 2);
    for (unsigned i = 0; i < count; i++) aq_fb_append(out, offsets[i], 2);
    size_t table = out->size;
    aq_fb_append(out, vtable_bytes, 4);
    for (size_t i = 4; i < inline_bytes; i++) aq_append(out, "", 1);
    for (unsigned i = 0; i < count; i++) at[i] = table + offsets[i];
    return table;
}

AQ_LIB void aq_fb_link(aq_builder *out, size_t at, size_t target) {
    aq_fb_put(out, at, target - at, 4);
}

AQ_LIB size_t aq_fb_put_vector(aq_builder *out, size_t base, size_t from, size_t count,
                               size_t alignment) {
    aq_fb_align(out, base, alignment < 4 ? 4 : alignment, 4);
    aq_fb_link(out, from, out->size);
    aq_fb_append(out, count, 4);
    return out->size;
}

AQ_LIB void aq_fb_put_string(aq_builder *out, size_t base, size_t from, const char *text,
                             size_t size) {
    (void)aq_fb_put_vector(out, base, from, size, 4);
    aq_append(out, text, size);
    aq_append(out, "", 1);
}

#endif /* ARROWQUANT_NO_STDIO */
