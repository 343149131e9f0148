/* Arrow inside the library: the types it knows, arrays that share what they point to, the columns of
 * a table of layers, and IPC messages. docs/FORMATS.md describes the table. */
#ifndef AQ_ARROW_H
#define AQ_ARROW_H

#include "../base/base.h"
#include "../base/file.h"
#include "flatbuffer.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* ---- types (arrow_type.c) */

typedef enum aq_arrow_kind {
    AQ_ARROW_FIXED,  /* validity, values of `width` bytes */
    AQ_ARROW_BITS,   /* validity, one bit a value */
    AQ_ARROW_BYTES,  /* validity, offsets of `width` bytes, bytes */
    AQ_ARROW_LIST,   /* validity, offsets of `width` bytes; one child */
    AQ_ARROW_RUN,    /* validity; one child with `run` values each: fixed_size_list */
    AQ_ARROW_STRUCT  /* validity; children */
} aq_arrow_kind;

typedef struct aq_arrow_type {
    const char *format; /* of the C data interface; "+w:" stands for all its lengths */
    aq_arrow_kind kind;
    uint8_t width;
    uint8_t union_type;  /* in the Type union of Schema.fbs */
    uint8_t detail;      /* Int: bits; FloatingPoint: precision */
    bool is_signed, text; /* text: UTF-8 */
} aq_arrow_type;

/* *run: the length in "+w:N", else 0. NULL: a type that this library has no use for. */
AQ_LIB const aq_arrow_type *aq_arrow_type_of(const char *format, int64_t *run);
AQ_LIB const aq_arrow_type *aq_arrow_type_find(int64_t union_type, int64_t detail, bool is_signed);
AQ_LIB unsigned aq_arrow_buffers(const aq_arrow_type *type); /* how many an array has */
AQ_LIB const char *aq_arrow_union_name(int64_t union_type);  /* "Timestamp", for messages */
#define AQ_ARROW_DEPTH 16u /* of nested types, at most */

/* ---- what exported arrays and schemas share (arrow_shared.c) */

/* Freed when the last struct that refers to it is released; from any thread. */
typedef struct aq_arrow_shared {
    int references;
    aq_context context; /* its allocator, so that the caller's context may go before */
    aq_arena arena;
    aq_arrow_owner owner;
} aq_arrow_shared;

AQ_LIB aq_arrow_shared *aq_arrow_share(const aq_context *context); /* NULL: no memory */
AQ_LIB void aq_arrow_drop(aq_arrow_shared *shared);
/* Without the owner: for what failed while it was made. */
AQ_LIB void aq_arrow_discard(aq_arrow_shared *shared);
/* Fills a struct with its lists allocated (buffers NULL, children zeroed structs), or false. Each
 * adds a reference, so that a consumer may move a child away. */
AQ_LIB bool aq_arrow_make_array(aq_arrow_shared *shared, struct ArrowArray *array, int64_t length,
                                unsigned buffers, size_t children);
AQ_LIB bool aq_arrow_make_schema(aq_arrow_shared *shared, struct ArrowSchema *schema,
                                 const char *format, const char *name, bool nullable,
                                 size_t children);
/* Keys and values by turns as the C interface packs them, in the arena. */
AQ_LIB const char *aq_arrow_pack_metadata(aq_arena *arena, const char *const *items, size_t count,
                                          const size_t *sizes);
/* A key's value in a schema's packed metadata: *size bytes, not 0-terminated; NULL: not there. */
AQ_LIB const char *aq_arrow_metadata(const struct ArrowSchema *schema, const char *key,
                                     size_t *size);
/* A deep copy, so that a stream can give its schema often. */
AQ_LIB bool aq_arrow_copy_schema(const aq_context *context, const struct ArrowSchema *from,
                                 struct ArrowSchema *to);

/* ---- the table of layers (arrow_layers.c) */

typedef enum aq_arrow_column {
    AQ_COLUMN_NAME,
    AQ_COLUMN_DATA,
    AQ_COLUMN_SCALES,
    AQ_COLUMN_ZERO_POINTS,
    AQ_COLUMN_SHAPE,
    AQ_COLUMN_BITS,
    AQ_COLUMN_GROUP_SIZE,
    AQ_COLUMN_MINS,
    AQ_COLUMN_METHOD,
    AQ_COLUMN_DTYPE,
    AQ_COLUMN_COSINE,
    AQ_COLUMN_SQNR,
    AQ_COLUMN_TIME_GROUPS,
    AQ_COLUMN_TIME_GROUPS_4,
    AQ_COLUMNS
} aq_arrow_column;

AQ_LIB bool aq_arrow_layer_schema(aq_arrow_shared *shared, const char *const *metadata,
                                  size_t metadata_count, struct ArrowSchema *schema);
AQ_LIB aq_status aq_arrow_layer_array(aq_arrow_shared *shared, const aq_arrow_layer *layers,
                                      size_t count, struct ArrowArray *array, aq_error *err);

/* ---- reading arrays of others (arrow_import.c) */

/* A column of a record batch, rows counted from the batch's first. */
typedef struct aq_arrow_view {
    const struct ArrowSchema *schema;
    const struct ArrowArray *array;
    const aq_arrow_type *type; /* NULL: string_view */
    int64_t run, offset;       /* of the first row */
} aq_arrow_view;

/* *found false (and AQ_OK) when there is no such column. */
AQ_LIB aq_status aq_arrow_find(const struct ArrowSchema *schema, const struct ArrowArray *array,
                               const char *name, bool *found, aq_arrow_view *view, aq_error *err);
AQ_LIB bool aq_arrow_is_null(const aq_arrow_view *view, int64_t row);
/* The bytes of a BYTES (or string_view) row. */
AQ_LIB aq_status aq_arrow_bytes(const aq_arrow_view *view, int64_t row, const void **data,
                                uint64_t *size, aq_error *err);
/* The elements of a LIST row of FIXED values without nulls, of one of the formats in `formats`. */
AQ_LIB aq_status aq_arrow_list(const aq_arrow_view *view, int64_t row, const char *formats,
                               const void **data, uint64_t *count, char *format, aq_error *err);

/* A row that is a LIST of structs, neither with nulls: where its values of each of the `fields` named
 * fields begin, whose formats `formats` has by turns. */
AQ_LIB aq_status aq_arrow_structs(const aq_arrow_view *view, int64_t row, const char *const *names,
                                  const char *formats, const void **data, uint64_t *count,
                                  aq_error *err);

/* ---- IPC */

#define AQ_ARROW_MAGIC "ARROW1"
#define AQ_ARROW_HEADER_SCHEMA 1
#define AQ_ARROW_HEADER_DICTIONARY 2
#define AQ_ARROW_HEADER_BATCH 3
#define AQ_ARROW_METADATA_V5 4

/* Turns what a schema flatbuffer says into C structs (arrow_ipc_schema.c). */
AQ_LIB aq_status aq_arrow_read_schema(aq_arrow_shared *shared, const aq_fb_table *table,
                                      const char *source, struct ArrowSchema *out, aq_error *err);
AQ_LIB void aq_arrow_write_schema(aq_builder *out, size_t base, size_t link,
                                  const struct ArrowSchema *schema);
/* Every type in it is one of ours, no dictionaries; else AQ_ERR_UNSUPPORTED naming the column. */
AQ_LIB aq_status aq_arrow_check_schema(const struct ArrowSchema *schema, const char *source,
                                       aq_error *err);
/* What a stream's function says by its return value and get_last_error, as an aq_error. */
AQ_LIB aq_status aq_arrow_stream_fail(struct ArrowArrayStream *stream, int code, aq_error *err);
/* Reads the stream to its end and writes it from the file's beginning (arrow_ipc_write.c). */
AQ_LIB aq_status aq_arrow_write_ipc(const aq_context *context, struct ArrowArrayStream *stream,
                                    const aq_file *file, aq_arrow_ipc kind, aq_error *err);
/* Whether a file begins like Arrow IPC: the magic, or the marker of a stream's first message. */
AQ_LIB bool aq_arrow_looks_like_ipc(const void *data, uint64_t size);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_ARROW_H */
