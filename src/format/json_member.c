/* What the file formats need on top of the pull reader: keys, counts, slices. */
#include "json_member.h"

#include "../base/text.h"

#ifndef ARROWQUANT_NO_STDIO

static unsigned aq_hex_digit(char digit) { /* the reader has checked that it is one */
    if (digit <= '9') return (unsigned)(digit - '0');
    return (unsigned)((digit | 0x20) - 'a') + 10u;
}

/* One character of a raw slice; *position moves past it. Anything but ASCII gives 0x80 or more. */
static unsigned aq_unescape_one(const char *raw, size_t *position) {
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    unsigned char c = (unsigned char)raw[(*position)++];
    if (c != '\\') return c;
    char kind = raw[(*position)++];
    if (kind == 'u') {
        unsigned code = 0;
        for (int i = 0; i < 4; i++) code = code << 4 | aq_hex_digit(raw[(*position)++]);
        return code;
    }
    for (size_t i = 0; i < 5; i++) {
        if (kind == from[i]) return (unsigned char)to[i];
    }
    return (unsigned char)kind;
}

AQ_LIB bool aq_json_is(const aq_json_event *event, const char *text) {
    if (!event->escaped) return aq_text_equal(event->text, event->size, text);
    size_t position = 0;
    for (; *text; text++) {
        if (position >= event->size) return false;
        if (aq_unescape_one(event->text, &position) != (unsigned char)*text) return false;
    }
    return position == event->size;
}

AQ_LIB aq_status aq_json_count(const aq_json_reader *reader, size_t *count, aq_error *err) {
    aq_json_reader ahead = *reader;
    aq_json_event event;
    size_t found = 0;
    for (;;) {
        aq_status status = aq_json_next(&ahead, &event, err);
        if (status != AQ_OK) return status;
        if (event.type == AQ_JSON_KEY) continue;
        if (event.type == AQ_JSON_ARRAY_END || event.type == AQ_JSON_OBJECT_END) break;
        found++;
        status = aq_json_skip(&ahead, &event, err);
        if (status != AQ_OK) return status;
    }
    *count = found;
    return AQ_OK;
}

static aq_status aq_json_check_number(const aq_json_reader *reader, const aq_json_event *event,
                                      aq_error *err) {
    double value = 0.0;
    bool fits = aq_parse_double(event->text, event->size, &value);
    if (fits && value - value == 0.0) return AQ_OK;
    return aq_fail(err, reader->failure, "%s: number %.*s is out of range", reader->source,
                   event->size < 40 ? (int)event->size : 40, event->text);
}

AQ_LIB aq_status aq_json_pass(aq_json_reader *reader, const aq_json_event *event, aq_error *err) {
    aq_json_event inner = *event;
    size_t depth = 0;
    for (;;) {
        aq_status status = AQ_OK;
        if (inner.type == AQ_JSON_ARRAY || inner.type == AQ_JSON_OBJECT) depth++;
        if (inner.type == AQ_JSON_ARRAY_END || inner.type == AQ_JSON_OBJECT_END) depth--;
        if (inner.type == AQ_JSON_NUMBER) status = aq_json_check_number(reader, &inner, err);
        if (status != AQ_OK || depth == 0) return status;
        status = aq_json_next(reader, &inner, err);
        if (status != AQ_OK) return status;
    }
}

/* Where a value that has just been begun stands: the reader may have looked ahead. */
static size_t aq_json_value_begin(const aq_json_reader *reader, const aq_json_event *event) {
    size_t position = reader->position;
    if (event->type == AQ_JSON_STRING) return (size_t)(event->text - reader->text) - 1;
    if (event->type == AQ_JSON_NUMBER) return (size_t)(event->text - reader->text);
    char mark = event->type == AQ_JSON_OBJECT ? '{' : '[';
    if (event->type == AQ_JSON_NULL) mark = 'n';
    if (event->type == AQ_JSON_TRUE) mark = 't';
    if (event->type == AQ_JSON_FALSE) mark = 'f';
    do position--;
    while (reader->text[position] != mark);
    return position;
}

AQ_LIB aq_status aq_json_pass_slice(aq_json_reader *reader, const aq_json_event *event,
                                    size_t *begin, size_t *end, aq_error *err) {
    *begin = aq_json_value_begin(reader, event);
    aq_status status = aq_json_pass(reader, event, err);
    if (status != AQ_OK) return status;
    switch (event->type) {
    case AQ_JSON_STRING: *end = *begin + event->size + 2; break;
    case AQ_JSON_NUMBER: *end = *begin + event->size; break;
    case AQ_JSON_NULL:
    case AQ_JSON_TRUE: *end = *begin + 4; break;
    case AQ_JSON_FALSE: *end = *begin + 5; break;
    default: {
        char mark = event->type == AQ_JSON_OBJECT ? '}' : ']';
        *end = reader->position;
        while (reader->text[*end - 1] != mark) --*end;
        break;
    }
    }
    return AQ_OK;
}

AQ_LIB const char *aq_json_type_text(aq_json_type type) {
    switch (type) {
    case AQ_JSON_NULL: return "null";
    case AQ_JSON_FALSE: return "false";
    case AQ_JSON_TRUE: return "true";
    case AQ_JSON_NUMBER: return "a number";
    case AQ_JSON_STRING: return "a string";
    case AQ_JSON_ARRAY: return "an array";
    case AQ_JSON_OBJECT: return "an object";
    default: return "nothing";
    }
}

#endif /* ARROWQUANT_NO_STDIO */
