/* Writes Arrow IPC: each record batch as a message whose buffers begin at multiples of 64 bytes in
 * the file, so that readers may map it; slices are written as what they show. */
#include "arrow.h"

#include "../quant/quant.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_IPC_ALIGN 64u
#define AQ_IPC_CHUNK 4096u

typedef enum aq_ipc_content { AQ_IPC_VALUES, AQ_IPC_BITS, AQ_IPC_OFFSETS } aq_ipc_content;

/* One buffer to be written. */
typedef struct aq_ipc_piece {
    aq_ipc_content content;
    const unsigned char *data;
    size_t width;       /* of a value or an offset */
    int64_t first;      /* value, bit or offset to begin with */
    int64_t count;      /* of them; offsets: of rows, one less than offsets */
    uint64_t bytes;     /* in the file */
    uint64_t position;  /* in the body */
} aq_ipc_piece;

typedef struct aq_ipc_writer {
    const aq_context *context;
    const aq_file *file;
    uint64_t position;  /* in the file */
    size_t node_count, piece_count;
    int64_t (*nodes)[2]; /* length, nulls */
    aq_ipc_piece *pieces;
    uint64_t body;
    aq_builder blocks;  /* of the footer, 24 bytes each */
    aq_error *err;
} aq_ipc_writer;

static uint64_t aq_ipc_padded(uint64_t size) {
    return (size + AQ_IPC_ALIGN - 1) / AQ_IPC_ALIGN * AQ_IPC_ALIGN;
}

/* ---- what a batch consists of */

static void aq_ipc_add(aq_ipc_writer *writer, aq_ipc_content content, const void *data,
                       size_t width, int64_t first, int64_t count) {
    aq_ipc_piece *piece = &writer->pieces[writer->piece_count++];
    piece->content = content;
    piece->data = (const unsigned char *)data;
    piece->width = width;
    piece->first = first;
    piece->count = count;
    piece->position = writer->body;
    piece->bytes = content == AQ_IPC_BITS      ? ((uint64_t)count + 7) / 8
                   : content == AQ_IPC_OFFSETS ? ((uint64_t)count + 1) * width
                                               : (uint64_t)count * width;
    writer->body += aq_ipc_padded(piece->bytes);
}

static int64_t aq_ipc_nulls(const struct ArrowArray *array, int64_t first, int64_t length) {
    const unsigned char *bits = (const unsigned char *)array->buffers[0];
    int64_t nulls = 0;
    if (!bits || array->null_count == 0) return 0;
    for (int64_t i = first; i < first + length; i++) nulls += !(bits[i / 8] >> (i % 8) & 1);
    return nulls;
}

static int64_t aq_ipc_offset_at(const struct ArrowArray *array, size_t width, int64_t index) {
    const unsigned char *offsets = (const unsigned char *)array->buffers[1];
    int32_t small;
    int64_t large;
    if (width == 4) {
        memcpy(&small, offsets + (size_t)index * 4, sizeof(small));
        return small;
    }
    memcpy(&large, offsets + (size_t)index * 8, sizeof(large));
    return large;
}

static aq_status aq_ipc_collect(aq_ipc_writer *writer, const struct ArrowSchema *schema,
                                const struct ArrowArray *array, int64_t first, int64_t length) {
    int64_t run, begin = 0, end = 0, nulls;
    const aq_arrow_type *type = aq_arrow_type_of(schema->format, &run);
    first += array->offset;
    if (!type || array->n_buffers != (int64_t)aq_arrow_buffers(type) ||
        array->n_children != schema->n_children || array->dictionary ||
        length > array->length + array->offset - first)
        return aq_fail(writer->err, AQ_ERR_ARROW, "column %s: the array does not fit its schema",
                       schema->name ? schema->name : "");
    nulls = aq_ipc_nulls(array, first, length);
    writer->nodes[writer->node_count][0] = length;
    writer->nodes[writer->node_count++][1] = nulls;
    aq_ipc_add(writer, AQ_IPC_BITS, array->buffers[0], 1, first, nulls ? length : 0);
    if (type->kind == AQ_ARROW_BYTES || type->kind == AQ_ARROW_LIST) {
        if (length) {
            begin = aq_ipc_offset_at(array, type->width, first);
            end = aq_ipc_offset_at(array, type->width, first + length);
        }
        if (begin < 0 || end < begin)
            return aq_fail(writer->err, AQ_ERR_ARROW, "column %s: offsets that do not go forward",
                           schema->name ? schema->name : "");
        aq_ipc_add(writer, AQ_IPC_OFFSETS, array->buffers[1], type->width, first, length);
    }
    switch (type->kind) {
    case AQ_ARROW_FIXED:
        aq_ipc_add(writer, AQ_IPC_VALUES, array->buffers[1], type->width, first, length);
        return AQ_OK;
    case AQ_ARROW_BITS:
        aq_ipc_add(writer, AQ_IPC_BITS, array->buffers[1], 1, first, length);
        return AQ_OK;
    case AQ_ARROW_BYTES:
        aq_ipc_add(writer, AQ_IPC_VALUES, array->buffers[2], 1, begin, end - begin);
        return AQ_OK;
    case AQ_ARROW_LIST: first = begin; length = end - begin; break;
    case AQ_ARROW_RUN: first *= run; length *= run; break;
    case AQ_ARROW_STRUCT: break;
    }
    aq_status status = AQ_OK;
    for (int64_t i = 0; status == AQ_OK && i < array->n_children; i++)
        status = aq_ipc_collect(writer, schema->children[i], array->children[i], first, length);
    return status;
}

/* ---- bytes */

static aq_status aq_ipc_put(aq_ipc_writer *writer, const void *data, uint64_t size) {
    if (!size) return AQ_OK;
    aq_status status =
        aq_file_write(writer->file, writer->position, data, (size_t)size, writer->err);
    writer->position += size;
    return status;
}

static aq_status aq_ipc_pad(aq_ipc_writer *writer, uint64_t size) {
    static const char zeros[AQ_IPC_ALIGN] = { 0 };
    return aq_ipc_put(writer, zeros, aq_ipc_padded(size) - size);
}

/* Byte `index` of the bits first …, those behind the last one 0. */
static unsigned char aq_ipc_shifted(const aq_ipc_piece *piece, uint64_t index) {
    uint64_t bit = (uint64_t)piece->first + 8 * index, end = (uint64_t)(piece->first + piece->count);
    unsigned value = 0;
    for (unsigned i = 0; i < 8 && bit + i < end; i++)
        value |= (unsigned)(piece->data[(bit + i) / 8] >> ((bit + i) % 8) & 1) << i;
    return (unsigned char)value;
}

/* Values that need another byte order, bits, offsets that are to begin with 0: chunk by chunk. */
static aq_status aq_ipc_put_made(aq_ipc_writer *writer, const aq_ipc_piece *piece) {
    union { unsigned char bytes[AQ_IPC_CHUNK]; uint64_t alignment; } chunk;
    aq_status status = AQ_OK;
    int64_t base = 0;
    struct ArrowArray source;
    const void *buffers[2];
    memset(&source, 0, sizeof(source));
    buffers[0] = NULL;
    buffers[1] = piece->data;
    source.buffers = buffers;
    bool offsets = piece->content == AQ_IPC_OFFSETS;
    if (offsets && piece->count) base = aq_ipc_offset_at(&source, piece->width, piece->first);
    for (uint64_t done = 0; status == AQ_OK && done < piece->bytes;) {
        uint64_t left = piece->bytes - done;
        size_t size = left < AQ_IPC_CHUNK ? (size_t)left : AQ_IPC_CHUNK;
        for (size_t i = 0; offsets && i < size; i += piece->width) {
            int64_t index = (int64_t)((done + i) / piece->width);
            int64_t value = piece->count ? aq_ipc_offset_at(&source, piece->width,
                                                            piece->first + index) - base : 0;
            for (size_t b = 0; b < piece->width; b++)
                chunk.bytes[i + b] = (unsigned char)((uint64_t)value >> (8 * b));
        }
        for (size_t i = 0; piece->content == AQ_IPC_BITS && i < size; i++)
            chunk.bytes[i] = aq_ipc_shifted(piece, done + i);
        if (piece->content == AQ_IPC_VALUES) {
            memcpy(chunk.bytes, piece->data + (uint64_t)piece->first * piece->width + done, size);
            aq_little_endian(chunk.bytes, size / piece->width, piece->width);
        }
        status = aq_ipc_put(writer, chunk.bytes, size);
        done += size;
    }
    return status;
}

static aq_status aq_ipc_put_piece(aq_ipc_writer *writer, const aq_ipc_piece *piece) {
    const uint16_t probe = 1;
    bool little = *(const unsigned char *)&probe == 1;
    aq_status status;
    if (piece->content == AQ_IPC_VALUES && (little || piece->width == 1))
        status = piece->bytes ? aq_ipc_put(writer, piece->data + (uint64_t)piece->first * piece->width,
                                           piece->bytes) : AQ_OK;
    else
        status = aq_ipc_put_made(writer, piece);
    return status == AQ_OK ? aq_ipc_pad(writer, piece->bytes) : status;
}

/* ---- messages */

/* The message around a header: begins the flatbuffer, *header is the link to the header. */
static void aq_ipc_begin_message(aq_builder *out, unsigned type, uint64_t body, size_t *header) {
    static const unsigned char sizes[] = { 2, 1, 4, 8 };
    size_t at[AQ_FB_FIELDS];
    aq_fb_append(out, 0xFFFFFFFFu, 4);
    aq_fb_append(out, 0, 4); /* the size, later */
    aq_fb_append(out, 0, 4); /* the link to the root */
    size_t table = aq_fb_put_table(out, 8, sizes, 4, at);
    aq_fb_link(out, 8, table);
    aq_fb_put(out, at[0], AQ_ARROW_METADATA_V5, 2);
    aq_fb_put(out, at[1], type, 1);
    aq_fb_put(out, at[3], body, 8);
    *header = at[2];
}

/* Pads so that what follows in the file is aligned, and writes the message's metadata. */
static aq_status aq_ipc_end_message(aq_ipc_writer *writer, aq_builder *out, size_t *size) {
    char *text = NULL;
    while (!out->failed && (writer->position + out->size) % AQ_IPC_ALIGN) aq_append(out, "", 1);
    if (!out->failed && out->size - 8 <= INT32_MAX) aq_fb_put(out, 4, out->size - 8, 4);
    else if (!out->failed) {
        aq_builder_free(out);
        return aq_fail(writer->err, AQ_ERR_UNSUPPORTED, "a table with so many columns or so much "
                       "metadata does not fit an Arrow message");
    }
    aq_status status = aq_builder_finish(out, &text, size, writer->err);
    if (status != AQ_OK) return status;
    status = aq_ipc_put(writer, text, *size);
    aq_free(writer->context, text, *size + 1);
    return status;
}

static aq_status aq_ipc_put_schema(aq_ipc_writer *writer, const struct ArrowSchema *schema) {
    aq_builder out;
    size_t header, size;
    aq_builder_init(&out, writer->context);
    aq_ipc_begin_message(&out, AQ_ARROW_HEADER_SCHEMA, 0, &header);
    aq_arrow_write_schema(&out, 8, header, schema);
    return aq_ipc_end_message(writer, &out, &size);
}

static aq_status aq_ipc_put_batch(aq_ipc_writer *writer, const struct ArrowSchema *schema,
                                  const struct ArrowArray *array) {
    static const unsigned char sizes[] = { 8, 4, 4 };
    aq_builder out;
    size_t header, size, at[AQ_FB_FIELDS];
    aq_status status = AQ_OK;
    uint64_t begin = writer->position;
    writer->node_count = writer->piece_count = 0;
    writer->body = 0;
    if (array->n_children != schema->n_children || array->length < 0 ||
        (array->n_buffers && array->buffers[0] && array->null_count != 0))
        return aq_fail(writer->err, AQ_ERR_ARROW, "a record batch does not fit its schema");
    for (int64_t i = 0; status == AQ_OK && i < schema->n_children; i++)
        status = aq_ipc_collect(writer, schema->children[i], array->children[i], array->offset,
                                array->length);
    if (status != AQ_OK) return status;
    aq_builder_init(&out, writer->context);
    aq_ipc_begin_message(&out, AQ_ARROW_HEADER_BATCH, writer->body, &header);
    size_t table = aq_fb_put_table(&out, 8, sizes, 3, at);
    aq_fb_link(&out, header, table);
    aq_fb_put(&out, at[0], (uint64_t)array->length, 8);
    (void)aq_fb_put_vector(&out, 8, at[1], writer->node_count, 8);
    for (size_t i = 0; i < writer->node_count; i++) {
        aq_fb_append(&out, (uint64_t)writer->nodes[i][0], 8);
        aq_fb_append(&out, (uint64_t)writer->nodes[i][1], 8);
    }
    (void)aq_fb_put_vector(&out, 8, at[2], writer->piece_count, 8);
    for (size_t i = 0; i < writer->piece_count; i++) {
        aq_fb_append(&out, writer->pieces[i].position, 8);
        aq_fb_append(&out, writer->pieces[i].bytes, 8);
    }
    status = aq_ipc_end_message(writer, &out, &size);
    for (size_t i = 0; status == AQ_OK && i < writer->piece_count; i++)
        status = aq_ipc_put_piece(writer, &writer->pieces[i]);
    aq_fb_append(&writer->blocks, begin, 8);
    aq_fb_append(&writer->blocks, size, 8); /* int32 and padding */
    aq_fb_append(&writer->blocks, writer->body, 8);
    return status;
}

/* The end marker and, in a file, the footer. */
static aq_status aq_ipc_finish(aq_ipc_writer *writer, const struct ArrowSchema *schema,
                               aq_arrow_ipc kind) {
    static const unsigned char sizes[] = { 2, 4, 4, 4 };
    aq_builder out;
    char *text = NULL;
    size_t at[AQ_FB_FIELDS], size = 0;
    aq_builder_init(&out, writer->context);
    aq_fb_append(&out, 0xFFFFFFFFu, 8);
    if (kind == AQ_ARROW_FILE) {
        aq_fb_append(&out, 0, 4);
        size_t table = aq_fb_put_table(&out, 8, sizes, 4, at);
        aq_fb_link(&out, 8, table);
        aq_fb_put(&out, at[0], AQ_ARROW_METADATA_V5, 2);
        aq_arrow_write_schema(&out, 8, at[1], schema);
        (void)aq_fb_put_vector(&out, 8, at[2], 0, 8);
        (void)aq_fb_put_vector(&out, 8, at[3], writer->blocks.size / 24, 8);
        if (writer->blocks.failed) out.failed = true;
        else if (writer->blocks.size) aq_append(&out, writer->blocks.data, writer->blocks.size);
        aq_fb_append(&out, out.size - 8, 4);
        aq_append_string(&out, AQ_ARROW_MAGIC);
    }
    aq_status status = aq_builder_finish(&out, &text, &size, writer->err);
    if (status != AQ_OK) return status;
    status = aq_ipc_put(writer, text, size);
    aq_free(writer->context, text, size + 1);
    return status;
}

static void aq_ipc_count(const struct ArrowSchema *schema, size_t *nodes, size_t *pieces) {
    for (int64_t i = 0; i < schema->n_children; i++) {
        int64_t run;
        ++*nodes;
        *pieces += aq_arrow_buffers(aq_arrow_type_of(schema->children[i]->format, &run));
        aq_ipc_count(schema->children[i], nodes, pieces);
    }
}

static aq_status aq_ipc_write_all(aq_ipc_writer *writer, struct ArrowArrayStream *stream,
                                  const struct ArrowSchema *schema, aq_arrow_ipc kind) {
    aq_status status = AQ_OK;
    if (kind == AQ_ARROW_FILE) status = aq_ipc_put(writer, AQ_ARROW_MAGIC "\0\0", 8);
    if (status == AQ_OK) status = aq_ipc_put_schema(writer, schema);
    while (status == AQ_OK) {
        struct ArrowArray array;
        status = aq_arrow_next(stream, &array, writer->err);
        if (status != AQ_OK || !array.release) break;
        status = aq_ipc_put_batch(writer, schema, &array);
        array.release(&array);
    }
    return status == AQ_OK ? aq_ipc_finish(writer, schema, kind) : status;
}

AQ_LIB aq_status aq_arrow_write_ipc(const aq_context *context, struct ArrowArrayStream *stream,
                                    const aq_file *file, aq_arrow_ipc kind, aq_error *err) {
    aq_ipc_writer writer;
    struct ArrowSchema schema;
    aq_arena arena;
    size_t nodes = 1, pieces = 1;
    int code = stream->get_schema(stream, &schema);
    if (code) return aq_arrow_stream_fail(stream, code, err);
    memset(&writer, 0, sizeof(writer));
    writer.context = context;
    writer.file = file;
    writer.err = err;
    aq_builder_init(&writer.blocks, context);
    aq_arena_init(&arena, context);
    aq_status status = aq_arrow_check_schema(&schema, file->path, err);
    if (status == AQ_OK) {
        aq_ipc_count(&schema, &nodes, &pieces);
        writer.nodes = (int64_t (*)[2])aq_arena_alloc(&arena, nodes * sizeof(*writer.nodes));
        writer.pieces = (aq_ipc_piece *)aq_arena_alloc(&arena, pieces * sizeof(aq_ipc_piece));
        if (!writer.nodes || !writer.pieces) status = aq_fail_memory(err, pieces * 64);
    }
    if (status == AQ_OK) status = aq_ipc_write_all(&writer, stream, &schema, kind);
    aq_builder_free(&writer.blocks);
    aq_arena_free(&arena);
    schema.release(&schema);
    return status;
}

ARROWQUANT_API aq_status aq_arrow_ipc_write(aq_context *context, struct ArrowArrayStream *stream,
                                            const char *path, aq_arrow_ipc kind, aq_error *err) {
    aq_file file = AQ_FILE_CLOSED;
    aq_arena arena;
    if (!stream || !stream->release || !path)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_arrow_ipc_write: a stream that is not released, and "
                       "a path, must be given");
    aq_arena_init(&arena, context);
    size_t capacity = strlen(path) + 32;
    char *draft = (char *)aq_arena_alloc(&arena, capacity);
    aq_status status = draft ? AQ_OK : aq_fail_memory(err, capacity);
    if (status == AQ_OK) {
        aq_format(draft, capacity, "%s.%llu.tmp", path, (unsigned long long)aq_process_id());
        status = aq_file_create(&file, draft, err);
    }
    if (status == AQ_OK) {
        status = aq_arrow_write_ipc(context, stream, &file, kind, err);
        if (status == AQ_OK) status = aq_file_sync(&file, err);
        aq_status closed = aq_file_close(&file, status == AQ_OK ? err : NULL);
        if (status == AQ_OK) status = closed;
        if (status == AQ_OK) status = aq_rename(draft, path, AQ_RENAME_REPLACE, err);
        if (status != AQ_OK) (void)aq_remove_tree(context, draft, NULL);
    }
    aq_arena_free(&arena);
    return status;
}

#undef AQ_IPC_ALIGN
#undef AQ_IPC_CHUNK
#endif /* ARROWQUANT_NO_STDIO */
