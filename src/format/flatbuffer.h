/* Flatbuffers, as much of them as Arrow's messages use: a reader that checks every offset against the
 * buffer, and a writer that goes forward and fills links when their target is reached. */
#ifndef AQ_FLATBUFFER_H
#define AQ_FLATBUFFER_H

#include "../base/text.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* ---- reading: positions are checked when they are made, so what holds one may be read */

typedef struct aq_fb_buffer {
    const unsigned char *data;
    size_t size;
    const char *bad; /* what was wrong first; NULL: nothing yet */
} aq_fb_buffer;

/* present == false: a table, vector or string that is absent (or was refused: buffer->bad). */
typedef struct aq_fb_table {
    aq_fb_buffer *buffer;
    size_t at, size;               /* of its inline fields */
    size_t vtable, vtable_entries; /* entries: 2-byte offsets of fields */
    bool present;
} aq_fb_table;

typedef struct aq_fb_vector {
    aq_fb_buffer *buffer;
    size_t at, count; /* of the first element */
    bool present;
} aq_fb_vector;

AQ_LIB aq_fb_table aq_fb_root(aq_fb_buffer *buffer, const void *data, size_t size);
/* A number of `size` bytes, sign-extended; absent: `otherwise`. */
AQ_LIB int64_t aq_fb_number(const aq_fb_table *table, unsigned field, size_t size,
                            int64_t otherwise);
AQ_LIB aq_fb_table aq_fb_child(const aq_fb_table *table, unsigned field);
/* Elements of `element` bytes: 4 for tables and strings, else scalars and structs. */
AQ_LIB aq_fb_vector aq_fb_items(const aq_fb_table *table, unsigned field, size_t element);
AQ_LIB aq_fb_table aq_fb_item(const aq_fb_vector *vector, size_t index); /* of tables */
/* A string: bytes at `at`, `count` of them; checked to be followed by 0. */
AQ_LIB aq_fb_vector aq_fb_string(const aq_fb_table *table, unsigned field);
AQ_LIB int64_t aq_fb_i64(const aq_fb_buffer *buffer, size_t at); /* within a checked vector */
AQ_LIB int32_t aq_fb_i32(const aq_fb_buffer *buffer, size_t at);

/* ---- writing: into a builder, whose failure is found by aq_builder_finish */

#define AQ_FB_FIELDS 8u

AQ_LIB void aq_fb_align(aq_builder *out, size_t base, size_t alignment, size_t ahead);
AQ_LIB void aq_fb_put(aq_builder *out, size_t at, uint64_t value, size_t size);
/* A table of zeros with fields of these sizes (0: absent); at[i] is where field i lies. `base` is
 * where the flatbuffer begins, to which alignment is relative. Returns the table's position. */
AQ_LIB size_t aq_fb_put_table(aq_builder *out, size_t base, const unsigned char *sizes,
                              unsigned count, size_t *at);
/* The link at `at` leads to `target`, which lies behind it. */
AQ_LIB void aq_fb_link(aq_builder *out, size_t at, size_t target);
/* The length of a vector whose elements are aligned to `alignment`; the link at `from` leads to it. The
 * elements are to follow. Returns the position of the first one. */
AQ_LIB size_t aq_fb_put_vector(aq_builder *out, size_t base, size_t from, size_t count,
                               size_t alignment);
AQ_LIB void aq_fb_put_string(aq_builder *out, size_t base, size_t from, const char *text,
                             size_t size);
AQ_LIB void aq_fb_append(aq_builder *out, uint64_t value, size_t size); /* little endian */

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_FLATBUFFER_H */
