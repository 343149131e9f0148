/* Status texts, and the formatter behind every message. */
#include "base.h"

typedef struct aq_status_entry {
    const char *name, *text, *hint;
} aq_status_entry;

static const aq_status_entry aq_status_table[AQ_STATUS_COUNT] = {
#define AQ_STATUS_ENTRY(id, value, name, text, hint) { name, text, hint },
    AQ_STATUS_LIST(AQ_STATUS_ENTRY)
#undef AQ_STATUS_ENTRY
};

static const aq_status_entry *aq_status_find(aq_status status) {
    static const aq_status_entry unknown = { "unknown", "unknown status", "" };
    unsigned index = (unsigned)status;
    return index < (unsigned)AQ_STATUS_COUNT ? &aq_status_table[index] : &unknown;
}

ARROWQUANT_API const char *aq_status_name(aq_status status) { return aq_status_find(status)->name; }
ARROWQUANT_API const char *aq_status_text(aq_status status) { return aq_status_find(status)->text; }
ARROWQUANT_API const char *aq_status_hint(aq_status status) { return aq_status_find(status)->hint; }
ARROWQUANT_API const char *aq_version(void) { return AQ_VERSION; }

#define AQ_ELLIPSIS "\xE2\x80\xA6"
#define AQ_ELLIPSIS_SIZE 3u

/* Where formatted text goes. `length` counts on past the capacity. */
typedef struct aq_format_sink {
    char *buffer;
    size_t capacity, length;
    bool message;    /* for people: control characters of strings become '?' */
    size_t strings;  /* %s met so far */
    size_t longest, longest_size;
    size_t cut, cut_size; /* the %s of this number loses that much of its head */
} aq_format_sink;

static bool aq_utf8_continues(char c) { return ((unsigned char)c & 0xC0u) == 0x80u; }

static void aq_sink_put(aq_format_sink *sink, const char *text, size_t size) {
    if (size && sink->length < sink->capacity) {
        size_t room = sink->capacity - sink->length;
        memcpy(sink->buffer + sink->length, text, size < room ? size : room);
    }
    sink->length += size;
}

static void aq_sink_string(aq_format_sink *sink, const char *text, size_t limit) {
    size_t number = sink->strings++, size = 0;
    if (!text) text = "(null)";
    while (size < limit && text[size]) size++;
    if (size > sink->longest_size) {
        sink->longest_size = size;
        sink->longest = number;
    }
    if (sink->cut_size && number == sink->cut) {
        text += sink->cut_size;
        size -= sink->cut_size;
        for (; size && aq_utf8_continues(*text); size--) text++;
        aq_sink_put(sink, AQ_ELLIPSIS, AQ_ELLIPSIS_SIZE);
    }
    if (!sink->message) {
        aq_sink_put(sink, text, size);
        return;
    }
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        aq_sink_put(sink, c < 0x20 || c == 0x7F ? "?" : text + i, 1);
    }
}

static void aq_sink_number(aq_format_sink *sink, bool negative, unsigned long long value,
                           unsigned base) {
    char digits[24];
    size_t position = sizeof(digits);
    do {
        digits[--position] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    if (negative) digits[--position] = '-';
    aq_sink_put(sink, digits + position, sizeof(digits) - position);
}

static void aq_sink_format(aq_format_sink *sink, const char *format, va_list arguments) {
    for (; *format; format++) {
        size_t limit = SIZE_MAX;
        unsigned longs = 0;
        bool is_size = false;
        if (*format != '%') {
            aq_sink_put(sink, format, 1);
            continue;
        }
        format++;
        if (format[0] == '.' && format[1] == '*') {
            int precision = va_arg(arguments, int);
            if (precision >= 0) limit = (size_t)precision;
            format += 2;
        }
        for (; *format == 'l'; format++) longs++;
        for (; *format == 'z'; format++) is_size = true;
        switch (*format) {
        case 's':
            aq_sink_string(sink, va_arg(arguments, const char *), limit);
            break;
        case 'c': {
            char c = (char)va_arg(arguments, int);
            aq_sink_put(sink, &c, 1);
            break;
        }
        case 'd': {
            long long value = longs >= 2   ? va_arg(arguments, long long)
                              : longs == 1 ? va_arg(arguments, long)
                                           : va_arg(arguments, int);
            unsigned long long magnitude = (unsigned long long)value;
            aq_sink_number(sink, value < 0, value < 0 ? 0u - magnitude : magnitude, 10);
            break;
        }
        case 'u':
        case 'x': {
            unsigned long long value = is_size      ? va_arg(arguments, size_t)
                                       : longs >= 2 ? va_arg(arguments, unsigned long long)
                                       : longs == 1 ? va_arg(arguments, unsigned long)
                                                    : va_arg(arguments, unsigned);
            aq_sink_number(sink, false, value, *format == 'x' ? 16 : 10);
            break;
        }
        case 0:
            return;
        default:
            aq_sink_put(sink, format, 1);
            break;
        }
    }
}

/* Ends the text, dropping a character of which only a part fits. */
static void aq_sink_end(aq_format_sink *sink) {
    size_t end = sink->length, start;
    if (!sink->capacity) return;
    if (end >= sink->capacity) {
        end = sink->capacity - 1;
        for (start = end; start > 0 && aq_utf8_continues(sink->buffer[start - 1]); start--) {}
        if (start > 0) {
            unsigned char lead = (unsigned char)sink->buffer[start - 1];
            size_t need = lead >= 0xF0 ? 4u : lead >= 0xE0 ? 3u : lead >= 0xC0 ? 2u : 1u;
            if (end - (start - 1) < need) end = start - 1;
        }
    }
    sink->buffer[end] = 0;
}

AQ_LIB size_t aq_format_list(char *buffer, size_t capacity, const char *format,
                             va_list arguments) {
    aq_format_sink sink;
    memset(&sink, 0, sizeof(sink));
    sink.buffer = buffer;
    sink.capacity = capacity;
    aq_sink_format(&sink, format, arguments);
    aq_sink_end(&sink);
    return sink.length;
}

AQ_LIB size_t aq_format(char *buffer, size_t capacity, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    size_t length = aq_format_list(buffer, capacity, format, arguments);
    va_end(arguments);
    return length;
}

/* A first pass measures; when it is too much the longest string gives way, whose tail tells more
 * than its head. */
static void aq_format_message(char *buffer, size_t capacity, const char *format,
                              va_list arguments) {
    aq_format_sink sink;
    va_list again;
    memset(&sink, 0, sizeof(sink));
    sink.buffer = buffer;
    sink.capacity = capacity;
    sink.message = true;
    va_copy(again, arguments);
    aq_sink_format(&sink, format, again);
    va_end(again);
    if (sink.length >= capacity) {
        size_t excess = sink.length + AQ_ELLIPSIS_SIZE + 1 - capacity;
        if (excess < sink.longest_size) {
            sink.cut = sink.longest;
            sink.cut_size = excess;
            sink.length = sink.strings = 0;
            aq_sink_format(&sink, format, arguments);
        }
    }
    aq_sink_end(&sink);
}

static void aq_format_name(char *buffer, size_t capacity, const char *format, ...) AQ_PRINTF(3, 4);
static void aq_format_name(char *buffer, size_t capacity, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    aq_format_message(buffer, capacity, format, arguments);
    va_end(arguments);
}

/* Through local copies, so that the arguments may point into *err itself. */
static void aq_error_fill(aq_error *err, aq_status status, const char *tensor, uint64_t offset,
                          const char *format, va_list arguments) {
    char message[sizeof(err->message)], name[sizeof(err->tensor)];
    aq_format_message(message, sizeof(message), format, arguments);
    aq_format_name(name, sizeof(name), "%s", tensor ? tensor : "");
    err->status = status;
    err->offset = offset;
    memcpy(err->message, message, sizeof(message));
    memcpy(err->tensor, name, sizeof(name));
}

AQ_LIB aq_status aq_fail(aq_error *err, aq_status status, const char *format, ...) {
    if (err) {
        va_list arguments;
        va_start(arguments, format);
        aq_error_fill(err, status, "", 0, format, arguments);
        va_end(arguments);
    }
    return status;
}

AQ_LIB aq_status aq_fail_tensor(aq_error *err, aq_status status, const char *tensor,
                                uint64_t offset, const char *format, ...) {
    if (err) {
        va_list arguments;
        va_start(arguments, format);
        aq_error_fill(err, status, tensor, offset, format, arguments);
        va_end(arguments);
    }
    return status;
}

AQ_LIB aq_status aq_fail_memory(aq_error *err, size_t size) {
    if (!size) return aq_fail(err, AQ_ERR_OUT_OF_MEMORY, "out of memory");
    return aq_fail(err, AQ_ERR_OUT_OF_MEMORY, "out of memory: %zu bytes were not to be had", size);
}

#undef AQ_ELLIPSIS
#undef AQ_ELLIPSIS_SIZE
