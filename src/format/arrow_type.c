/* The Arrow types that this library exchanges, in both spellings: the format strings of the C data
 * interface and the unions of the IPC messages. */
#include "arrow.h"

#ifndef ARROWQUANT_NO_STDIO

static const aq_arrow_type aq_arrow_types[] = {
    { "c", AQ_ARROW_FIXED, 1, 2, 8, true, false },    { "C", AQ_ARROW_FIXED, 1, 2, 8, false, false },
    { "s", AQ_ARROW_FIXED, 2, 2, 16, true, false },   { "S", AQ_ARROW_FIXED, 2, 2, 16, false, false },
    { "i", AQ_ARROW_FIXED, 4, 2, 32, true, false },   { "I", AQ_ARROW_FIXED, 4, 2, 32, false, false },
    { "l", AQ_ARROW_FIXED, 8, 2, 64, true, false },   { "L", AQ_ARROW_FIXED, 8, 2, 64, false, false },
    { "e", AQ_ARROW_FIXED, 2, 3, 0, false, false },   { "f", AQ_ARROW_FIXED, 4, 3, 1, false, false },
    { "g", AQ_ARROW_FIXED, 8, 3, 2, false, false },   { "b", AQ_ARROW_BITS, 0, 6, 0, false, false },
    { "z", AQ_ARROW_BYTES, 4, 4, 0, false, false },   { "u", AQ_ARROW_BYTES, 4, 5, 0, false, true },
    { "Z", AQ_ARROW_BYTES, 8, 19, 0, false, false },  { "U", AQ_ARROW_BYTES, 8, 20, 0, false, true },
    { "+l", AQ_ARROW_LIST, 4, 12, 0, false, false },  { "+L", AQ_ARROW_LIST, 8, 21, 0, false, false },
    { "+w:", AQ_ARROW_RUN, 0, 16, 0, false, false },  { "+s", AQ_ARROW_STRUCT, 0, 13, 0, false, false },
};
#define AQ_ARROW_TYPE_COUNT (sizeof(aq_arrow_types) / sizeof(aq_arrow_types[0]))

AQ_LIB const aq_arrow_type *aq_arrow_type_of(const char *format, int64_t *run) {
    *run = 0;
    if (!format) return NULL;
    if (strncmp(format, "+w:", 3) == 0) {
        uint64_t length = 0;
        if (!aq_parse_u64(format + 3, strlen(format + 3), &length) || length > INT32_MAX)
            return NULL;
        *run = (int64_t)length;
        format = "+w:";
    }
    for (size_t i = 0; i < AQ_ARROW_TYPE_COUNT; i++)
        if (strcmp(aq_arrow_types[i].format, format) == 0) return &aq_arrow_types[i];
    return NULL;
}

AQ_LIB const aq_arrow_type *aq_arrow_type_find(int64_t union_type, int64_t detail, bool is_signed) {
    for (size_t i = 0; i < AQ_ARROW_TYPE_COUNT; i++) {
        const aq_arrow_type *type = &aq_arrow_types[i];
        if (type->union_type == union_type && type->detail == detail &&
            type->is_signed == is_signed)
            return type;
    }
    return NULL;
}

AQ_LIB unsigned aq_arrow_buffers(const aq_arrow_type *type) {
    switch (type->kind) {
    case AQ_ARROW_FIXED:
    case AQ_ARROW_BITS:
    case AQ_ARROW_LIST: return 2;
    case AQ_ARROW_BYTES: return 3;
    case AQ_ARROW_RUN:
    case AQ_ARROW_STRUCT: break;
    }
    return 1;
}

AQ_LIB const char *aq_arrow_union_name(int64_t union_type) {
    static const char *const names[] = {
        "none", "Null", "Int", "FloatingPoint", "Binary", "Utf8", "Bool", "Decimal", "Date", "Time",
        "Timestamp", "Interval", "List", "Struct", "Union", "FixedSizeBinary", "FixedSizeList",
        "Map", "Duration", "LargeBinary", "LargeUtf8", "LargeList", "RunEndEncoded", "BinaryView",
        "Utf8View", "ListView", "LargeListView",
    };
    bool known = union_type >= 0 && union_type < (int64_t)(sizeof(names) / sizeof(names[0]));
    return known ? names[union_type] : "unknown";
}

#undef AQ_ARROW_TYPE_COUNT
#endif /* ARROWQUANT_NO_STDIO */
