/* JSON, RFC 8259: a pull reader that allocates nothing, and a tree on top of it.
 * Refused: anything outside the grammar, invalid UTF-8, lone surrogates, a byte order mark, more
 * than AQ_JSON_DEPTH levels, text after the value; in a tree duplicate keys too. Messages give
 * source, line and column. */
#ifndef AQ_JSON_H
#define AQ_JSON_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_JSON_DEPTH 64

typedef enum aq_json_type {
    AQ_JSON_NULL,
    AQ_JSON_FALSE,
    AQ_JSON_TRUE,
    AQ_JSON_NUMBER,
    AQ_JSON_STRING,
    AQ_JSON_KEY,          /* pull reader only */
    AQ_JSON_ARRAY,        /* pull reader: begins */
    AQ_JSON_OBJECT,       /* pull reader: begins */
    AQ_JSON_ARRAY_END,    /* pull reader only */
    AQ_JSON_OBJECT_END,   /* pull reader only */
    AQ_JSON_END           /* pull reader only: the whole text has been read */
} aq_json_type;

/* The slice of a string or key is raw: between the quotes, escapes not yet undone. */
typedef struct aq_json_event {
    aq_json_type type;
    const char *text; /* number, string, key: its slice of the input */
    size_t size;
    bool escaped; /* the slice holds a backslash */
} aq_json_event;

typedef struct aq_json_reader {
    const char *text;
    size_t size, position;
    const char *source;             /* names the text in messages */
    aq_status failure;              /* status of malformed text, AQ_ERR_CORRUPT unless changed */
    uint32_t depth, state;
    uint8_t stack[AQ_JSON_DEPTH];
} aq_json_reader;

AQ_LIB void aq_json_open(aq_json_reader *reader, const char *text, size_t size,
                         const char *source);
AQ_LIB aq_status aq_json_next(aq_json_reader *reader, aq_json_event *event, aq_error *err);
/* After `event` began an array or object: reads to its end. Anything else: nothing to do. */
AQ_LIB aq_status aq_json_skip(aq_json_reader *reader, const aq_json_event *event, aq_error *err);
/* Undoes escapes into the arena, 0-terminated; *size (may be NULL) without the 0; NULL: no memory.
 * A decoded string may hold NUL bytes: compare *size with strlen where that matters. */
AQ_LIB char *aq_json_decode(aq_arena *arena, const char *raw, size_t raw_size, size_t *size);

typedef struct aq_json_node {
    aq_json_type type;
    const char *key;  /* decoded; NULL outside an object */
    size_t key_size;
    const char *text; /* string: decoded; number: as written */
    size_t size;
    size_t count;                /* children of an array or object */
    struct aq_json_node *first, *next;
} aq_json_node;

AQ_LIB aq_status aq_json_parse(aq_arena *arena, const char *text, size_t size, const char *source,
                               aq_status failure, aq_json_node **root, aq_error *err);
AQ_LIB const aq_json_node *aq_json_get(const aq_json_node *object, const char *key); /* or NULL */
AQ_LIB const char *aq_json_string(const aq_json_node *node); /* NULL unless a string without NUL */
AQ_LIB bool aq_json_u64(const aq_json_node *node, uint64_t *out); /* false unless 0 … 2^64−1 */
/* Beyond the range of a double: infinity. */
AQ_LIB bool aq_json_double(const aq_json_node *node, double *out);

#ifdef __cplusplus
}
#endif
#endif /* AQ_JSON_H */
