/* Growing text, UTF-8, globs, edit distance. */
#include "text.h"

AQ_LIB void aq_builder_init(aq_builder *builder, const aq_context *context) {
    memset(builder, 0, sizeof(*builder));
    builder->context = context;
}

AQ_LIB void aq_builder_free(aq_builder *builder) {
    aq_free(builder->context, builder->data, builder->capacity);
    builder->data = NULL;
    builder->size = builder->capacity = 0;
}

/* Room for `more` bytes and the final 0. */
static bool aq_builder_reserve(aq_builder *builder, size_t more) {
    size_t capacity = builder->capacity;
    if (builder->failed) return false;
    if (more < capacity - builder->size) return true;
    if (more > SIZE_MAX / 2 - builder->size - 64) {
        builder->failed = true;
        return false;
    }
    capacity += capacity / 2;
    if (capacity < builder->size + more + 64) capacity = builder->size + more + 64;
    char *data = (char *)aq_resize(builder->context, builder->data, builder->capacity, capacity);
    if (!data) {
        builder->failed = true;
        return false;
    }
    builder->data = data;
    builder->capacity = capacity;
    return true;
}

AQ_LIB void aq_append(aq_builder *builder, const char *text, size_t size) {
    if (!size || !aq_builder_reserve(builder, size)) return;
    memcpy(builder->data + builder->size, text, size);
    builder->size += size;
}

AQ_LIB void aq_append_string(aq_builder *builder, const char *text) {
    aq_append(builder, text, strlen(text));
}

AQ_LIB void aq_append_format(aq_builder *builder, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    size_t size = aq_format_list(NULL, 0, format, arguments);
    va_end(arguments);
    if (!aq_builder_reserve(builder, size)) return;
    va_start(arguments, format);
    aq_format_list(builder->data + builder->size, size + 1, format, arguments);
    va_end(arguments);
    builder->size += size;
}

AQ_LIB void aq_append_double(aq_builder *builder, double value) {
    char buffer[AQ_DOUBLE_TEXT];
    size_t size = aq_format_double(value, buffer);
    aq_append(builder, buffer, size);
}

AQ_LIB void aq_append_json_double(aq_builder *builder, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if ((bits >> 52 & 0x7FF) == 0x7FF)
        aq_append_string(builder, "null");
    else
        aq_append_double(builder, value);
}

AQ_LIB aq_status aq_builder_finish(aq_builder *builder, char **text, size_t *size, aq_error *err) {
    if (builder->failed || !aq_builder_reserve(builder, 0)) {
        size_t wanted = builder->size;
        aq_builder_free(builder);
        return aq_fail_memory(err, wanted);
    }
    /* what is handed over is exactly size + 1 bytes, so that it can be freed by that size */
    size_t exact = builder->size + 1;
    char *data = (char *)aq_resize(builder->context, builder->data, builder->capacity, exact);
    if (!data) {
        aq_builder_free(builder);
        return aq_fail_memory(err, exact);
    }
    data[builder->size] = 0;
    *text = data;
    *size = builder->size;
    builder->data = NULL;
    builder->size = builder->capacity = 0;
    return AQ_OK;
}

/* Bytes of the character at the start of `text`, 0 when it is not UTF-8 (RFC 3629: nothing
 * overlong, no surrogates, at most U+10FFFF). */
static size_t aq_utf8_decode(const char *text, size_t size, uint32_t *code) {
    static const uint32_t smallest[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    unsigned char lead;
    size_t length;
    if (!size) return 0;
    lead = (unsigned char)text[0];
    if (lead < 0x80) {
        *code = lead;
        return 1;
    }
    length = lead >= 0xF0 ? 4u : lead >= 0xE0 ? 3u : 2u;
    if (lead < 0xC2 || lead > 0xF4 || length > size) return 0;
    uint32_t value = lead & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if ((c & 0xC0u) != 0x80u) return 0;
        value = value << 6 | (c & 0x3Fu);
    }
    if (value < smallest[length] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
        return 0;
    *code = value;
    return length;
}

AQ_LIB bool aq_is_utf8(const char *text, size_t size, size_t *bad) {
    uint32_t code;
    for (size_t i = 0; i < size;) {
        size_t length = aq_utf8_decode(text + i, size - i, &code);
        if (!length) {
            if (bad) *bad = i;
            return false;
        }
        i += length;
    }
    return true;
}

AQ_LIB void aq_append_json_string(aq_builder *builder, const char *text, size_t size) {
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    uint32_t code = 0;
    aq_append(builder, "\"", 1);
    for (size_t i = 0; i < size;) {
        size_t length = aq_utf8_decode(text + i, size - i, &code);
        if (!length) { /* names of files need not be UTF-8, JSON must be */
            aq_append(builder, "\xEF\xBF\xBD", 3);
            i++;
            continue;
        }
        const char *found = code && code < 0x80 ? strchr(from, (int)code) : NULL;
        if (found) {
            char escape[2] = { '\\', to[found - from] };
            aq_append(builder, escape, 2);
        } else if (code < 0x20) {
            aq_append_format(builder, "\\u00%x%x", (unsigned)(code >> 4), (unsigned)(code & 15));
        } else {
            aq_append(builder, text + i, length);
        }
        i += length;
    }
    aq_append(builder, "\"", 1);
}

AQ_LIB bool aq_text_equal(const char *text, size_t size, const char *other) {
    return strlen(other) == size && (!size || memcmp(text, other, size) == 0);
}

AQ_LIB bool aq_ends_with(const char *text, const char *suffix) {
    size_t size = strlen(text), tail = strlen(suffix);
    return size >= tail && memcmp(text + size - tail, suffix, tail) == 0;
}

/* The character at `text`, an undecodable byte standing for itself; moves past it. */
static uint32_t aq_glob_next(const char **text) {
    uint32_t code = 0;
    size_t size = 0;
    while (size < 4 && (*text)[size]) size++;
    size_t length = aq_utf8_decode(*text, size, &code);
    if (!length) {
        code = 0x110000u + (unsigned char)**text;
        length = 1;
    }
    *text += length;
    return code;
}

/* A set that begins after '['; moves past ']'. False in *closed when there is no ']': then the
 * '[' is an ordinary character. */
static bool aq_glob_set(const char **pattern, uint32_t code, bool *closed) {
    const char *p = *pattern;
    bool negated = *p == '!', inside = false;
    if (negated) p++;
    for (bool first = true; *p; first = false) {
        if (*p == ']' && !first) {
            *closed = true;
            *pattern = p + 1;
            return inside != negated;
        }
        if (*p == '\\' && p[1]) p++;
        uint32_t low = aq_glob_next(&p), high = low;
        if (*p == '-' && p[1] && p[1] != ']') {
            p++;
            if (*p == '\\' && p[1]) p++;
            high = aq_glob_next(&p);
        }
        if (code >= low && code <= high) inside = true;
    }
    *closed = false;
    return false;
}

/* One character of the name against one item of the pattern that is no '*'; moves past both. */
static bool aq_glob_item(const char **pattern, const char **name) {
    uint32_t code = aq_glob_next(name);
    if (**pattern == '?') {
        (*pattern)++;
        return true;
    }
    if (**pattern == '[') {
        const char *set = *pattern + 1;
        bool closed, matched = aq_glob_set(&set, code, &closed);
        if (closed) {
            *pattern = set;
            return matched;
        }
    } else if (**pattern == '\\' && (*pattern)[1]) {
        (*pattern)++;
    }
    return aq_glob_next(pattern) == code;
}

/* Going back to the latest '*' alone is enough: an earlier one could only take what that one can
 * take as well. */
AQ_LIB bool aq_glob_match(const char *pattern, const char *name) {
    const char *star = NULL, *resume = NULL;
    for (;;) {
        if (*pattern == '*') {
            star = ++pattern;
            resume = name;
            continue;
        }
        if (!*name && !*pattern) return true;
        if (*name && *pattern) {
            const char *p = pattern, *n = name;
            if (aq_glob_item(&p, &n)) {
                pattern = p;
                name = n;
                continue;
            }
        }
        if (!star || !*resume) return false;
        (void)aq_glob_next(&resume);
        pattern = star;
        name = resume;
    }
}

#define AQ_EDIT_LIMIT 32u

/* What is beyond the limit counts by its length alone. */
AQ_LIB size_t aq_edit_distance(const char *a, size_t a_size, const char *b, size_t b_size) {
    size_t row[AQ_EDIT_LIMIT + 1];
    size_t beyond_a = a_size > AQ_EDIT_LIMIT ? a_size - AQ_EDIT_LIMIT : 0;
    size_t beyond_b = b_size > AQ_EDIT_LIMIT ? b_size - AQ_EDIT_LIMIT : 0;
    a_size -= beyond_a;
    b_size -= beyond_b;
    for (size_t j = 0; j <= b_size; j++) row[j] = j;
    for (size_t i = 1; i <= a_size; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_size; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1] ? 1u : 0u);
            diagonal = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[b_size] + (beyond_a > beyond_b ? beyond_a - beyond_b : beyond_b - beyond_a);
}

#undef AQ_EDIT_LIMIT
