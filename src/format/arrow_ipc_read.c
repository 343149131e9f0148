/* Arrow IPC files and streams as an ArrowArrayStream, whose arrays lead into the mapped file. */
#include "arrow_ipc.h"

#include <errno.h>

#include "../base/thread.h"

#ifndef ARROWQUANT_NO_STDIO

/* Lives until the stream and all its arrays are released. */
typedef struct aq_ipc_reader {
    int references;
    aq_context context; /* its allocator */
    aq_arena arena;
    aq_map map;
    aq_arrow_owner owner;
    const unsigned char *data;
    uint64_t size;
    const char *source;
    struct ArrowSchema schema;
    bool is_file, ended;
    aq_fb_buffer footer;
    aq_fb_vector blocks; /* of a file */
    uint64_t cursor;     /* of a stream */
    size_t number;       /* of the next batch */
    aq_error last;
} aq_ipc_reader;

/* A message's flatbuffer and where its body lies. */
typedef struct aq_ipc_message {
    aq_fb_buffer buffer;
    aq_fb_table header;
    int64_t type;
    uint64_t position, body, body_size, end;
    bool is_end; /* the marker behind the last one */
} aq_ipc_message;

AQ_LIB bool aq_arrow_looks_like_ipc(const void *data, uint64_t size) {
    const unsigned char *bytes = (const unsigned char *)data;
    if (size >= 8 && memcmp(bytes, AQ_ARROW_MAGIC "\0\0", 8) == 0) return true;
    return size >= 8 && memcmp(bytes, "\xFF\xFF\xFF\xFF", 4) == 0 && bytes[7] < 0x80;
}

static uint32_t aq_ipc_u32(const unsigned char *bytes) {
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
           (uint32_t)bytes[3] << 24;
}

static aq_status aq_ipc_corrupt(const aq_ipc_reader *reader, uint64_t at, const char *what,
                                aq_error *err) {
    return aq_fail_tensor(err, AQ_ERR_CORRUPT, "", at,
                          "%s: malformed Arrow IPC at byte %llu: %s; write the file again",
                          reader->source, (unsigned long long)at, what);
}

/* 0xFFFFFFFF, int32 size, the flatbuffer, the body. */
static aq_status aq_ipc_parse_message(const aq_ipc_reader *reader, uint64_t at, uint64_t limit,
                                      aq_ipc_message *out, aq_error *err) {
    memset(out, 0, sizeof(*out));
    out->position = at;
    if (at == limit || (limit - at >= 8 && aq_ipc_u32(reader->data + at) == 0xFFFFFFFFu &&
                        aq_ipc_u32(reader->data + at + 4) == 0)) {
        out->is_end = true;
        return AQ_OK;
    }
    if (limit - at < 8) return aq_ipc_corrupt(reader, at, "the file is cut off", err);
    if (aq_ipc_u32(reader->data + at) != 0xFFFFFFFFu)
        return aq_ipc_corrupt(reader, at, "expected the marker 0xFFFFFFFF of a message (streams "
                              "from before Arrow 0.15 are not read)", err);
    uint32_t size = aq_ipc_u32(reader->data + at + 4);
    if (size > INT32_MAX || size % 8 || size > limit - at - 8)
        return aq_ipc_corrupt(reader, at, "a message's size is not a multiple of 8 or leaves the "
                              "file", err);
    aq_fb_table message = aq_fb_root(&out->buffer, reader->data + at + 8, size);
    int64_t version = aq_fb_number(&message, 0, 2, 0), body = aq_fb_number(&message, 3, 8, 0);
    out->type = aq_fb_number(&message, 1, 1, 0);
    out->header = aq_fb_child(&message, 2);
    if (out->buffer.bad || !out->header.present)
        return aq_ipc_corrupt(reader, at, out->buffer.bad ? out->buffer.bad
                                                          : "a message without a header", err);
    if (version != AQ_ARROW_METADATA_V5 && version != AQ_ARROW_METADATA_V5 - 1)
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: Arrow metadata version V%lld; expected V5 or "
                       "V4", reader->source, (long long)version + 1);
    out->body = at + 8 + size;
    if (body < 0 || (uint64_t)body > limit - out->body)
        return aq_ipc_corrupt(reader, at, "a message's body leaves the file", err);
    out->body_size = (uint64_t)body;
    out->end = out->body + out->body_size;
    return AQ_OK;
}

/* ---- the beginning: schema and, of a file, the list of batches */

/* The schema's structs have an arena of their own. */
static aq_status aq_ipc_take_schema(aq_ipc_reader *reader, const aq_fb_table *table,
                                    aq_error *err) {
    struct ArrowSchema schema;
    aq_arrow_shared *shared = aq_arrow_share(&reader->context);
    if (!shared) return aq_fail_memory(err, sizeof(*shared));
    aq_status status = aq_arrow_read_schema(shared, table, reader->source, &schema, err);
    if (status != AQ_OK) aq_arrow_discard(shared);
    else reader->schema = schema;
    return status;
}

static aq_status aq_ipc_begin_file(aq_ipc_reader *reader, aq_error *err) {
    uint64_t tail = sizeof(AQ_ARROW_MAGIC) - 1 + 4, size = reader->size;
    if (size < 8 + tail ||
        memcmp(reader->data + size - (sizeof(AQ_ARROW_MAGIC) - 1), AQ_ARROW_MAGIC,
               sizeof(AQ_ARROW_MAGIC) - 1) != 0)
        return aq_ipc_corrupt(reader, size, "the file does not end with ARROW1: it is cut off", err);
    uint32_t footer = aq_ipc_u32(reader->data + size - tail);
    if (footer > INT32_MAX || footer > size - 8 - tail)
        return aq_ipc_corrupt(reader, size - tail, "the footer is larger than the file", err);
    uint64_t at = size - tail - footer;
    aq_fb_table root = aq_fb_root(&reader->footer, reader->data + at, footer);
    aq_fb_table schema = aq_fb_child(&root, 1);
    aq_fb_vector dictionaries = aq_fb_items(&root, 2, 24);
    reader->blocks = aq_fb_items(&root, 3, 24);
    if (reader->footer.bad) return aq_ipc_corrupt(reader, at, reader->footer.bad, err);
    if (dictionaries.count)
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: it has dictionaries; cast those columns to plain "
                       "ones", reader->source);
    return aq_ipc_take_schema(reader, &schema, err);
}

static aq_status aq_ipc_begin_stream(aq_ipc_reader *reader, aq_error *err) {
    aq_ipc_message message;
    aq_status status = aq_ipc_parse_message(reader, 0, reader->size, &message, err);
    if (status != AQ_OK) return status;
    if (message.is_end || message.type != AQ_ARROW_HEADER_SCHEMA)
        return aq_ipc_corrupt(reader, 0, "the first message is not a schema", err);
    reader->cursor = message.end;
    return aq_ipc_take_schema(reader, &message.header, err);
}

/* ---- batches */

/* The message of the next batch; is_end behind the last one. */
static aq_status aq_ipc_next_message(aq_ipc_reader *reader, aq_ipc_message *out, aq_error *err) {
    if (!reader->is_file) {
        aq_status status = aq_ipc_parse_message(reader, reader->cursor, reader->size, out, err);
        reader->cursor = out->end;
        return status;
    }
    memset(out, 0, sizeof(*out));
    out->is_end = reader->number >= reader->blocks.count;
    if (out->is_end) return AQ_OK;
    size_t entry = reader->blocks.at + 24 * reader->number;
    int64_t at = aq_fb_i64(&reader->footer, entry), body = aq_fb_i64(&reader->footer, entry + 16);
    int32_t metadata = aq_fb_i32(&reader->footer, entry + 8);
    if (at < 8 || at % 8 || metadata < 8 || metadata % 8 || body < 0 ||
        (uint64_t)at > reader->size || (uint64_t)metadata > reader->size - (uint64_t)at)
        return aq_ipc_corrupt(reader, at < 0 ? 0 : (uint64_t)at,
                              "the footer lists a batch outside of the file", err);
    aq_status status = aq_ipc_parse_message(reader, (uint64_t)at, reader->size, out, err);
    if (status != AQ_OK) return status;
    if (out->is_end || out->body != (uint64_t)at + (uint64_t)metadata ||
        out->body_size != (uint64_t)body)
        return aq_ipc_corrupt(reader, (uint64_t)at, "the footer and a message disagree about its "
                              "size", err);
    return AQ_OK;
}

static aq_status aq_ipc_check_batch(const aq_ipc_reader *reader, const aq_ipc_message *message,
                                    const aq_ipc_batch *batch, aq_error *err) {
    aq_fb_table compression = aq_fb_child(&message->header, 3);
    if (message->buffer.bad)
        return aq_ipc_corrupt(reader, message->position, message->buffer.bad, err);
    if (!compression.present) return AQ_OK;
    return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: record batch %zu: its buffers are compressed (%s); "
                   "write the file without compression (pyarrow: IpcWriteOptions(compression=None), "
                   "polars: compression=\"uncompressed\")", reader->source, batch->number,
                   aq_fb_number(&compression, 0, 1, 0) ? "ZSTD" : "LZ4");
}

static aq_status aq_ipc_make_batch(aq_ipc_reader *reader, aq_ipc_message *message,
                                   aq_arrow_shared *shared, struct ArrowArray *out,
                                   aq_error *err) {
    aq_ipc_batch batch;
    struct ArrowArray root;
    memset(&batch, 0, sizeof(batch));
    batch.shared = shared;
    batch.source = reader->source;
    batch.number = reader->number;
    batch.position = message->position;
    batch.body = reader->data + message->body;
    batch.body_size = message->body_size;
    batch.nodes = aq_fb_items(&message->header, 1, 16);
    batch.buffers = aq_fb_items(&message->header, 2, 16);
    batch.err = err;
    int64_t length = aq_fb_number(&message->header, 0, 8, 0);
    aq_status status = aq_ipc_check_batch(reader, message, &batch, err);
    if (status != AQ_OK) return status;
    if (length < 0 || length > INT64_MAX / 64)
        return aq_ipc_corrupt(reader, message->position, "a batch with a negative or absurd length",
                              err);
    if (!aq_arrow_make_array(shared, &root, length, 1, (size_t)reader->schema.n_children))
        return aq_fail_memory(err, sizeof(root));
    for (int64_t i = 0; status == AQ_OK && i < reader->schema.n_children; i++) {
        const struct ArrowSchema *field = reader->schema.children[i];
        status = aq_ipc_array(&batch, field, root.children[i], field->name);
        if (status == AQ_OK && root.children[i]->length != length)
            status = aq_ipc_corrupt(reader, message->position, "a column is not as long as its "
                                    "batch", err);
    }
    if (status == AQ_OK &&
        (batch.node != batch.nodes.count || batch.buffer != batch.buffers.count))
        status = aq_ipc_corrupt(reader, message->position, "a batch has more nodes or buffers than "
                                "columns need", err);
    if (status == AQ_OK) *out = root;
    return status;
}

static void aq_ipc_reader_drop(void *user) {
    aq_ipc_reader *reader = (aq_ipc_reader *)user;
    if (aq_atomic_add(&reader->references, -1) > 0) return;
    aq_context context = reader->context;
    aq_arrow_owner owner = reader->owner;
    if (reader->schema.release) reader->schema.release(&reader->schema);
    aq_unmap_file(&reader->map);
    aq_arena_free(&reader->arena);
    aq_free(&context, reader, sizeof(*reader));
    if (owner.release) owner.release(owner.user);
}

static aq_status aq_ipc_next(aq_ipc_reader *reader, struct ArrowArray *out, aq_error *err) {
    aq_ipc_message message;
    memset(out, 0, sizeof(*out));
    if (reader->ended) return AQ_OK;
    aq_status status = aq_ipc_next_message(reader, &message, err);
    if (status != AQ_OK || message.is_end) {
        reader->ended = true;
        return status;
    }
    if (message.type != AQ_ARROW_HEADER_BATCH) {
        reader->ended = true;
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: a message at byte %llu is %s, expected a record "
                       "batch", reader->source, (unsigned long long)message.position,
                       message.type == AQ_ARROW_HEADER_DICTIONARY ? "a dictionary" : "of another kind");
    }
    aq_arrow_shared *shared = aq_arrow_share(&reader->context);
    if (!shared) return aq_fail_memory(err, sizeof(*shared));
    status = aq_ipc_make_batch(reader, &message, shared, out, err);
    if (status != AQ_OK) {
        aq_arrow_discard(shared);
        reader->ended = status != AQ_ERR_OUT_OF_MEMORY;
        return status;
    }
    shared->owner.release = aq_ipc_reader_drop;
    shared->owner.user = reader;
    (void)aq_atomic_add(&reader->references, 1);
    reader->number++;
    return AQ_OK;
}

/* ---- the stream's functions */

static int aq_ipc_errno(aq_status status) {
    switch (status) {
    case AQ_OK: return 0;
    case AQ_ERR_OUT_OF_MEMORY: return ENOMEM;
    case AQ_ERR_UNSUPPORTED: return ENOSYS;
    case AQ_ERR_IO: return EIO;
    default: return EINVAL;
    }
}

static int aq_ipc_get_schema(struct ArrowArrayStream *stream, struct ArrowSchema *out) {
    aq_ipc_reader *reader = (aq_ipc_reader *)stream->private_data;
    if (aq_arrow_copy_schema(&reader->context, &reader->schema, out)) return 0;
    return aq_ipc_errno(aq_fail_memory(&reader->last, sizeof(*out)));
}

static int aq_ipc_get_next(struct ArrowArrayStream *stream, struct ArrowArray *out) {
    aq_ipc_reader *reader = (aq_ipc_reader *)stream->private_data;
    return aq_ipc_errno(aq_ipc_next(reader, out, &reader->last));
}

static const char *aq_ipc_last_error(struct ArrowArrayStream *stream) {
    aq_ipc_reader *reader = (aq_ipc_reader *)stream->private_data;
    return reader->last.message[0] ? reader->last.message : NULL;
}

static void aq_ipc_release(struct ArrowArrayStream *stream) {
    stream->release = NULL;
    aq_ipc_reader_drop(stream->private_data);
}

AQ_LIB aq_status aq_arrow_stream_fail(struct ArrowArrayStream *stream, int code, aq_error *err) {
    const char *text = stream->get_last_error ? stream->get_last_error(stream) : NULL;
    aq_status status = code == ENOMEM   ? AQ_ERR_OUT_OF_MEMORY
                       : code == ENOSYS ? AQ_ERR_UNSUPPORTED : AQ_ERR_ARROW;
    return aq_fail(err, status, "the Arrow stream failed (error %d): %s", code,
                   text ? text : "it does not say why");
}

ARROWQUANT_API aq_status aq_arrow_next(struct ArrowArrayStream *stream, struct ArrowArray *array,
                                       aq_error *err) {
    if (!stream || !stream->release || !array)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_arrow_next: the stream has been released, or is NULL");
    if (stream->get_next == aq_ipc_get_next) /* ours: with the status and the offset */
        return aq_ipc_next((aq_ipc_reader *)stream->private_data, array, err);
    int code = stream->get_next(stream, array);
    return code ? aq_arrow_stream_fail(stream, code, err) : AQ_OK;
}

static aq_status aq_ipc_begin(aq_ipc_reader *reader, struct ArrowArrayStream *stream,
                              aq_error *err) {
    aq_status status;
    if ((uintptr_t)reader->data % 8)
        return aq_fail(err, AQ_ERR_ARGUMENT, "%s: the data is not aligned to 8 bytes",
                       reader->source);
    if (!aq_arrow_looks_like_ipc(reader->data, reader->size))
        return aq_ipc_corrupt(reader, 0, "expected ARROW1 or the marker of a stream", err);
    reader->is_file = reader->data[0] == 'A';
    status = reader->is_file ? aq_ipc_begin_file(reader, err) : aq_ipc_begin_stream(reader, err);
    if (status != AQ_OK) return status;
    stream->get_schema = aq_ipc_get_schema;
    stream->get_next = aq_ipc_get_next;
    stream->get_last_error = aq_ipc_last_error;
    stream->release = aq_ipc_release;
    stream->private_data = reader;
    return AQ_OK;
}

static aq_ipc_reader *aq_ipc_reader_new(const aq_context *context, const char *source) {
    aq_ipc_reader *reader = (aq_ipc_reader *)aq_alloc(context, sizeof(*reader));
    if (!reader) return NULL;
    memset(reader, 0, sizeof(*reader));
    if (context) reader->context.allocator = context->allocator;
    aq_arena_init(&reader->arena, &reader->context);
    reader->references = 1;
    reader->source = aq_arena_string(&reader->arena, source);
    if (reader->source) return reader;
    aq_ipc_reader_drop(reader);
    return NULL;
}

ARROWQUANT_API aq_status aq_arrow_ipc_open(aq_context *context, const char *path,
                                           struct ArrowArrayStream *stream, aq_error *err) {
    if (!path || !stream)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_arrow_ipc_open: path and stream must not be NULL");
    aq_ipc_reader *reader = aq_ipc_reader_new(context, path);
    if (!reader) return aq_fail_memory(err, sizeof(*reader));
    aq_status status = aq_map_file(&reader->map, path, err);
    if (status == AQ_OK) {
        reader->data = (const unsigned char *)reader->map.data;
        reader->size = reader->map.size;
        status = aq_ipc_begin(reader, stream, err);
    }
    if (status != AQ_OK) aq_ipc_reader_drop(reader);
    return status;
}

ARROWQUANT_API aq_status aq_arrow_ipc_read(aq_context *context, const void *data, size_t size,
                                           const char *source, aq_arrow_owner owner,
                                           struct ArrowArrayStream *stream, aq_error *err) {
    if ((!data && size) || !source || !stream)
        return aq_fail(err, AQ_ERR_ARGUMENT,
                       "aq_arrow_ipc_read: data, source and stream must not be NULL");
    aq_ipc_reader *reader = aq_ipc_reader_new(context, source);
    if (!reader) return aq_fail_memory(err, sizeof(*reader));
    reader->data = (const unsigned char *)data;
    reader->size = size;
    aq_status status = aq_ipc_begin(reader, stream, err);
    if (status != AQ_OK) aq_ipc_reader_drop(reader);
    else reader->owner = owner;
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
