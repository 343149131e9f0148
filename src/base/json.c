/* JSON, RFC 8259: the pull reader and the tree. */
#include "json.h"

#include "text.h"

/* What may come next. */
enum {
    AQ_JSON_AT_VALUE,
    AQ_JSON_AT_FIRST_ITEM, /* after '[' */
    AQ_JSON_AT_FIRST_KEY,  /* after '{' */
    AQ_JSON_AT_KEY,        /* after ',' in an object */
    AQ_JSON_AT_NEXT,       /* after a value inside something */
    AQ_JSON_AT_END         /* after the outermost value */
};

AQ_LIB void aq_json_open(aq_json_reader *reader, const char *text, size_t size,
                         const char *source) {
    memset(reader, 0, sizeof(*reader));
    reader->text = text;
    reader->size = size;
    reader->source = source;
    reader->failure = AQ_ERR_CORRUPT;
    reader->state = AQ_JSON_AT_VALUE;
}

/* Lines and columns count from 1, columns in characters. */
static void aq_json_locate(const aq_json_reader *reader, size_t position, unsigned long long *line,
                           unsigned long long *column) {
    *line = *column = 1;
    for (size_t i = 0; i < position && i < reader->size; i++) {
        unsigned char c = (unsigned char)reader->text[i];
        if (c == '\n') {
            (*line)++;
            *column = 1;
        } else if ((c & 0xC0u) != 0x80u) {
            (*column)++;
        }
    }
}

static aq_status aq_json_fail(const aq_json_reader *reader, size_t position, const char *what,
                              aq_error *err) {
    unsigned long long line, column;
    if (!err) return reader->failure;
    aq_json_locate(reader, position, &line, &column);
    return aq_fail_tensor(err, reader->failure, "", position,
                          "%s: line %llu, column %llu: not valid JSON: %s", reader->source, line,
                          column, position < reader->size ? what : "the text ends too early");
}

/* The byte at the position, 0 at the end (a 0 in the text fits nowhere either). */
static char aq_json_peek(const aq_json_reader *reader) {
    return reader->position < reader->size ? reader->text[reader->position] : '\0';
}

static void aq_json_space(aq_json_reader *reader) {
    for (;; reader->position++) {
        char c = aq_json_peek(reader);
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return;
    }
}

static bool aq_json_digits(aq_json_reader *reader) {
    size_t start = reader->position;
    while (aq_json_peek(reader) >= '0' && aq_json_peek(reader) <= '9') reader->position++;
    return reader->position > start;
}

static aq_status aq_json_number(aq_json_reader *reader, aq_json_event *event, aq_error *err) {
    static const char bad[] = "a number is malformed here";
    event->type = AQ_JSON_NUMBER;
    event->text = reader->text + reader->position;
    if (aq_json_peek(reader) == '-') reader->position++;
    if (aq_json_peek(reader) == '0')
        reader->position++;
    else if (!aq_json_digits(reader))
        return aq_json_fail(reader, reader->position, bad, err);
    if (aq_json_peek(reader) == '.') {
        reader->position++;
        if (!aq_json_digits(reader)) return aq_json_fail(reader, reader->position, bad, err);
    }
    if (aq_json_peek(reader) == 'e' || aq_json_peek(reader) == 'E') {
        reader->position++;
        if (aq_json_peek(reader) == '+' || aq_json_peek(reader) == '-') reader->position++;
        if (!aq_json_digits(reader)) return aq_json_fail(reader, reader->position, bad, err);
    }
    event->size = (size_t)(reader->text + reader->position - event->text);
    return AQ_OK;
}

/* Four hexadecimal digits; false otherwise. */
static bool aq_json_hex(const char *text, size_t size, uint32_t *code) {
    *code = 0;
    if (size < 4) return false;
    for (size_t i = 0; i < 4; i++) {
        char c = text[i];
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (uint32_t)(c - 'a') + 10;
        else if (c >= 'A' && c <= 'F')
            digit = (uint32_t)(c - 'A') + 10;
        else
            return false;
        *code = *code << 4 | digit;
    }
    return true;
}

/* `text` begins with a backslash. Bytes of the escape (a surrogate pair is one), 0 when it is
 * malformed. */
static size_t aq_json_escape(const char *text, size_t size, uint32_t *code) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    uint32_t low;
    if (size < 2) return 0;
    if (text[1] != 'u') {
        const char *found = text[1] ? strchr(from, text[1]) : NULL;
        if (!found) return 0;
        *code = (uint32_t)to[found - from];
        return 2;
    }
    if (!aq_json_hex(text + 2, size - 2, code) || (*code & 0xFC00u) == 0xDC00u) return 0;
    if ((*code & 0xFC00u) != 0xD800u) return 6;
    if (size < 12 || text[6] != '\\' || text[7] != 'u' ||
        !aq_json_hex(text + 8, size - 8, &low) || (low & 0xFC00u) != 0xDC00u)
        return 0;
    *code = 0x10000u + ((*code & 0x3FFu) << 10 | (low & 0x3FFu));
    return 12;
}

static aq_status aq_json_quoted(aq_json_reader *reader, aq_json_event *event, aq_error *err) {
    size_t start = ++reader->position, bad;
    event->escaped = false;
    for (;;) {
        uint32_t code;
        char c = aq_json_peek(reader);
        if (c == '"') break;
        if ((unsigned char)c < 0x20)
            return aq_json_fail(reader, reader->position,
                                "a control character in a string must be escaped", err);
        if (c == '\\') {
            size_t size = aq_json_escape(reader->text + reader->position,
                                         reader->size - reader->position, &code);
            if (!size)
                return aq_json_fail(reader, reader->position, "an escape is malformed, or half of "
                                    "a surrogate pair is missing", err);
            event->escaped = true;
            reader->position += size;
        } else {
            reader->position++;
        }
    }
    event->text = reader->text + start;
    event->size = reader->position - start;
    if (!aq_is_utf8(event->text, event->size, &bad))
        return aq_json_fail(reader, start + bad, "a string is not UTF-8", err);
    reader->position++;
    return AQ_OK;
}

static aq_status aq_json_begin(aq_json_reader *reader, aq_json_event *event, aq_error *err) {
    bool object = aq_json_peek(reader) == '{';
    if (reader->depth == AQ_JSON_DEPTH)
        return aq_json_fail(reader, reader->position, "it is nested more than 64 levels deep", err);
    event->type = object ? AQ_JSON_OBJECT : AQ_JSON_ARRAY;
    reader->stack[reader->depth++] = (uint8_t)event->type;
    reader->state = object ? AQ_JSON_AT_FIRST_KEY : AQ_JSON_AT_FIRST_ITEM;
    reader->position++;
    return AQ_OK;
}

static void aq_json_ended_value(aq_json_reader *reader) {
    reader->state = reader->depth ? AQ_JSON_AT_NEXT : AQ_JSON_AT_END;
}

static aq_status aq_json_close(aq_json_reader *reader, aq_json_event *event) {
    bool object = reader->stack[--reader->depth] == AQ_JSON_OBJECT;
    event->type = object ? AQ_JSON_OBJECT_END : AQ_JSON_ARRAY_END;
    reader->position++;
    aq_json_ended_value(reader);
    return AQ_OK;
}

static aq_status aq_json_value(aq_json_reader *reader, aq_json_event *event, aq_error *err) {
    static const char *const words[] = { "null", "false", "true" };
    static const aq_json_type types[] = { AQ_JSON_NULL, AQ_JSON_FALSE, AQ_JSON_TRUE };
    char c = aq_json_peek(reader);
    aq_status status = AQ_OK;
    if (c == '{' || c == '[') return aq_json_begin(reader, event, err);
    if (c == '"') {
        event->type = AQ_JSON_STRING;
        status = aq_json_quoted(reader, event, err);
    } else if (c == '-' || (c >= '0' && c <= '9')) {
        status = aq_json_number(reader, event, err);
    } else {
        size_t i = 0, size = 0, left = reader->size - reader->position;
        for (; i < 3; i++) {
            size = strlen(words[i]);
            if (left >= size && memcmp(reader->text + reader->position, words[i], size) == 0) break;
        }
        if (i == 3)
            return aq_json_fail(reader, reader->position,
                                reader->position == 0 && (unsigned char)c == 0xEF
                                    ? "a byte order mark; remove it" : "a value is expected here",
                                err);
        event->type = types[i];
        reader->position += size;
    }
    if (status == AQ_OK) aq_json_ended_value(reader);
    return status;
}

static aq_status aq_json_key(aq_json_reader *reader, aq_json_event *event, aq_error *err) {
    if (aq_json_peek(reader) != '"')
        return aq_json_fail(reader, reader->position, "a key in quotes is expected here", err);
    event->type = AQ_JSON_KEY;
    aq_status status = aq_json_quoted(reader, event, err);
    if (status != AQ_OK) return status;
    aq_json_space(reader);
    if (aq_json_peek(reader) != ':')
        return aq_json_fail(reader, reader->position, "':' is expected after a key", err);
    reader->position++;
    reader->state = AQ_JSON_AT_VALUE;
    return AQ_OK;
}

AQ_LIB aq_status aq_json_next(aq_json_reader *reader, aq_json_event *event, aq_error *err) {
    bool object = reader->depth && reader->stack[reader->depth - 1] == AQ_JSON_OBJECT;
    memset(event, 0, sizeof(*event));
    aq_json_space(reader);
    switch (reader->state) {
    case AQ_JSON_AT_END:
        if (reader->position < reader->size)
            return aq_json_fail(reader, reader->position, "more text after the value", err);
        event->type = AQ_JSON_END;
        return AQ_OK;
    case AQ_JSON_AT_FIRST_ITEM:
        if (aq_json_peek(reader) == ']') return aq_json_close(reader, event);
        return aq_json_value(reader, event, err);
    case AQ_JSON_AT_FIRST_KEY:
        if (aq_json_peek(reader) == '}') return aq_json_close(reader, event);
        return aq_json_key(reader, event, err);
    case AQ_JSON_AT_NEXT:
        if (aq_json_peek(reader) == (object ? '}' : ']')) return aq_json_close(reader, event);
        if (aq_json_peek(reader) != ',')
            return aq_json_fail(reader, reader->position, object
                                    ? "',' or '}' is expected here" : "',' or ']' is expected here",
                                err);
        reader->position++;
        aq_json_space(reader);
        reader->state = object ? AQ_JSON_AT_KEY : AQ_JSON_AT_VALUE;
        return object ? aq_json_key(reader, event, err) : aq_json_value(reader, event, err);
    case AQ_JSON_AT_KEY:
        return aq_json_key(reader, event, err);
    default:
        return aq_json_value(reader, event, err);
    }
}

AQ_LIB aq_status aq_json_skip(aq_json_reader *reader, const aq_json_event *event, aq_error *err) {
    aq_json_event inner;
    if (event->type != AQ_JSON_ARRAY && event->type != AQ_JSON_OBJECT) return AQ_OK;
    uint32_t outside = reader->depth - 1;
    while (reader->depth > outside) {
        aq_status status = aq_json_next(reader, &inner, err);
        if (status != AQ_OK) return status;
    }
    return AQ_OK;
}

static size_t aq_json_encode(char *out, uint32_t code) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t size = code < 0x800 ? 2u : code < 0x10000 ? 3u : 4u;
    for (size_t i = size - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80u | (code & 0x3Fu));
    out[0] = (char)((0xF00u >> size & 0xF0u) | code);
    return size;
}

/* Never longer than the raw slice; returns the size, ends with a 0. */
static size_t aq_json_unescape(char *out, const char *raw, size_t raw_size) {
    size_t size = 0;
    for (size_t i = 0; i < raw_size;) {
        uint32_t code;
        size_t length = raw[i] == '\\' ? aq_json_escape(raw + i, raw_size - i, &code) : 0;
        if (length) {
            size += aq_json_encode(out + size, code);
            i += length;
        } else {
            out[size++] = raw[i++];
        }
    }
    out[size] = 0;
    return size;
}

AQ_LIB char *aq_json_decode(aq_arena *arena, const char *raw, size_t raw_size, size_t *size) {
    char *out = raw_size < SIZE_MAX ? (char *)aq_arena_alloc(arena, raw_size + 1) : NULL;
    if (!out) return NULL;
    size_t length = aq_json_unescape(out, raw, raw_size);
    if (size) *size = length;
    return out;
}

/* ---- the tree */

typedef struct aq_json_level {
    aq_json_node *node, *last; /* an open array or object, its latest child */
    size_t start;              /* where its text begins */
} aq_json_level;

typedef struct aq_json_builder {
    aq_arena *arena;
    aq_json_reader reader;
    char *text; /* room for all strings, keys and numbers: none is longer than its own text */
    aq_json_level level[AQ_JSON_DEPTH];
} aq_json_builder;

static bool aq_json_key_after(const aq_json_node *a, const aq_json_node *b) {
    size_t size = a->key_size < b->key_size ? a->key_size : b->key_size;
    int order = size ? memcmp(a->key, b->key, size) : 0;
    return order > 0 || (order == 0 && a->key_size > b->key_size);
}

/* Merge sort: stable, so that of equal keys the later one comes later. Returns the sorted half of
 * `items`, which holds 2 · count. */
static const aq_json_node **aq_json_sort(const aq_json_node **items, size_t count) {
    const aq_json_node **from = items, **to = items + count;
    for (size_t run = 1; run < count; run *= 2) {
        for (size_t begin = 0; begin < count;) {
            size_t middle = count - begin > run ? begin + run : count;
            size_t end = count - middle > run ? middle + run : count;
            size_t a = begin, b = middle;
            for (size_t out = begin; out < end; out++) {
                if (b == end || (a < middle && !aq_json_key_after(from[a], from[b])))
                    to[out] = from[a++];
                else
                    to[out] = from[b++];
            }
            begin = end;
        }
        const aq_json_node **swap = from;
        from = to;
        to = swap;
    }
    return from;
}

/* Reads the object again up to the key, for its place in the text. */
static aq_status aq_json_duplicate(const aq_json_builder *builder, const aq_json_level *level,
                                   const aq_json_node *node, aq_error *err) {
    aq_json_reader reader = builder->reader;
    aq_json_event event;
    unsigned long long line, column;
    const aq_json_node *child = level->node->first;
    reader.position = level->start;
    reader.depth = 0;
    reader.state = AQ_JSON_AT_VALUE;
    (void)aq_json_next(&reader, &event, NULL);
    for (;; child = child->next) {
        (void)aq_json_next(&reader, &event, NULL);
        if (child == node) break;
        (void)aq_json_next(&reader, &event, NULL);
        (void)aq_json_skip(&reader, &event, NULL);
    }
    size_t position = (size_t)(event.text - reader.text) - 1;
    aq_json_locate(&reader, position, &line, &column);
    return aq_fail_tensor(err, reader.failure, "", position,
                          "%s: line %llu, column %llu: the key \"%.*s\" occurs twice in one "
                          "object; remove one", reader.source, line, column,
                          event.size < 1000 ? (int)event.size : 1000, event.text);
}

static aq_status aq_json_check_keys(const aq_json_builder *builder, const aq_json_level *level,
                                    aq_error *err) {
    const aq_context *context = builder->arena->context;
    const aq_json_node *few[32], **items = few, **sorted;
    size_t count = level->node->count, bytes = 0, i = 0;
    aq_status status = AQ_OK;
    if (count > 16) {
        if (!aq_mul_size(count, 2 * sizeof(*items), &bytes)) return aq_fail_memory(err, 0);
        items = (const aq_json_node **)aq_alloc(context, bytes);
        if (!items) return aq_fail_memory(err, bytes);
    }
    for (const aq_json_node *node = level->node->first; node; node = node->next) items[i++] = node;
    sorted = aq_json_sort(items, count);
    for (i = 1; i < count && status == AQ_OK; i++) {
        if (!aq_json_key_after(sorted[i], sorted[i - 1]))
            status = aq_json_duplicate(builder, level, sorted[i], err);
    }
    if (items != few) aq_free(context, (void *)items, bytes);
    return status;
}

/* Moves the slice of an event to the text that lives with the tree. */
static const char *aq_json_keep(aq_json_builder *builder, const aq_json_event *event,
                                size_t *size) {
    char *text = builder->text;
    if (event->escaped) {
        *size = aq_json_unescape(text, event->text, event->size);
    } else {
        *size = event->size;
        if (*size) memcpy(text, event->text, *size);
        text[*size] = 0;
    }
    builder->text += *size + 1;
    return text;
}

/* A value of its event, and of the key event before it (or NULL), as the latest child. */
static aq_json_node *aq_json_add(aq_json_builder *builder, const aq_json_event *event,
                                 const aq_json_event *key, aq_json_level *level) {
    aq_json_node *node = (aq_json_node *)aq_arena_alloc(builder->arena, sizeof(*node));
    if (!node) return NULL;
    node->type = event->type;
    if (key) node->key = aq_json_keep(builder, key, &node->key_size);
    if (event->text) node->text = aq_json_keep(builder, event, &node->size);
    if (level) {
        if (level->last)
            level->last->next = node;
        else
            level->node->first = node;
        level->last = node;
        level->node->count++;
    }
    return node;
}

static aq_status aq_json_build(aq_json_builder *builder, aq_json_node **root, aq_error *err) {
    aq_json_reader *reader = &builder->reader;
    aq_json_event event, key;
    bool has_key = false;
    for (;;) {
        uint32_t depth = reader->depth;
        aq_json_level *level = depth ? &builder->level[depth - 1] : NULL;
        aq_status status = aq_json_next(reader, &event, err);
        if (status != AQ_OK) return status;
        if (event.type == AQ_JSON_END) return AQ_OK;
        if (event.type == AQ_JSON_KEY) {
            key = event;
            has_key = true;
            continue;
        }
        if (event.type == AQ_JSON_OBJECT_END && level) {
            status = aq_json_check_keys(builder, level, err);
            if (status != AQ_OK) return status;
        }
        if (event.type == AQ_JSON_OBJECT_END || event.type == AQ_JSON_ARRAY_END) continue;
        aq_json_node *node = aq_json_add(builder, &event, has_key ? &key : NULL, level);
        has_key = false;
        if (!node) return aq_fail_memory(err, sizeof(*node));
        if (!level) *root = node;
        if (reader->depth > depth) {
            builder->level[depth].node = node;
            builder->level[depth].last = NULL;
            builder->level[depth].start = reader->position - 1;
        }
    }
}

AQ_LIB aq_status aq_json_parse(aq_arena *arena, const char *text, size_t size, const char *source,
                               aq_status failure, aq_json_node **root, aq_error *err) {
    aq_json_builder builder;
    aq_json_node *found = NULL;
    builder.arena = arena;
    aq_json_open(&builder.reader, text, size, source);
    builder.reader.failure = failure;
    builder.text = size < SIZE_MAX ? (char *)aq_arena_alloc(arena, size + 1) : NULL;
    if (!builder.text) return aq_fail_memory(err, size);
    aq_status status = aq_json_build(&builder, &found, err);
    if (status == AQ_OK) *root = found;
    return status;
}

AQ_LIB const aq_json_node *aq_json_get(const aq_json_node *object, const char *key) {
    if (!object || object->type != AQ_JSON_OBJECT) return NULL;
    for (const aq_json_node *node = object->first; node; node = node->next) {
        if (aq_text_equal(node->key, node->key_size, key)) return node;
    }
    return NULL;
}

AQ_LIB const char *aq_json_string(const aq_json_node *node) {
    if (!node || node->type != AQ_JSON_STRING || strlen(node->text) != node->size) return NULL;
    return node->text;
}

AQ_LIB bool aq_json_u64(const aq_json_node *node, uint64_t *out) {
    return node && node->type == AQ_JSON_NUMBER && aq_parse_u64(node->text, node->size, out);
}

AQ_LIB bool aq_json_double(const aq_json_node *node, double *out) {
    return node && node->type == AQ_JSON_NUMBER && aq_parse_double(node->text, node->size, out);
}
