/* Reads the header of a safetensors file and checks it to the last byte. */
#include "safetensors.h"

#include "../base/text.h"
#include "json_member.h"
#include "sort.h"

#ifndef ARROWQUANT_NO_STDIO

typedef struct aq_st_parser {
    aq_arena *arena;  /* of the result */
    aq_arena scratch; /* of the checks */
    aq_json_reader json;
    const char *path;
    uint64_t data_size;
    aq_st_file *out;
    aq_error *err;
} aq_st_parser;

static const uint64_t aq_st_no_shape[1] = { 0 }; /* what a rank-0 tensor's shape points to */

static aq_status aq_st_wrong_type(const aq_st_parser *parser, const char *tensor, const char *what,
                                  const char *expected, aq_json_type found) {
    return aq_fail_tensor(parser->err, AQ_ERR_CORRUPT, tensor, 0,
                          "%s: tensor %s: %s should be %s, found %s; download or write the file "
                          "again", parser->path, tensor, what, expected, aq_json_type_text(found));
}

static aq_status aq_st_dtype(aq_st_parser *parser, const char *tensor, const aq_json_event *event,
                             aq_dtype *out) {
    static const char *const names[] = {
#define AQ_ST_DTYPE_NAME(id, value, name, size) name,
        AQ_DTYPE_LIST(AQ_ST_DTYPE_NAME)
#undef AQ_ST_DTYPE_NAME
    };
    if (event->type != AQ_JSON_STRING)
        return aq_st_wrong_type(parser, tensor, "dtype", "a string", event->type);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (aq_json_is(event, names[i])) {
            *out = (aq_dtype)i;
            return AQ_OK;
        }
    }
    return aq_fail_tensor(parser->err, AQ_ERR_UNSUPPORTED, tensor, 0,
                          "%s: tensor %s: dtype %.*s is not read; convert it to F32, F16 or BF16",
                          parser->path, tensor, event->size < 40 ? (int)event->size : 40,
                          event->text);
}

/* An array of exactly `count` numbers from 0 to 2^64 − 1. */
static aq_status aq_st_numbers(aq_st_parser *parser, const char *tensor, const char *what,
                               uint64_t *values, size_t count) {
    aq_json_event event;
    for (size_t i = 0; i < count; i++) {
        aq_status status = aq_json_next(&parser->json, &event, parser->err);
        if (status != AQ_OK) return status;
        if (event.type != AQ_JSON_NUMBER)
            return aq_st_wrong_type(parser, tensor, what, "an array of integers", event.type);
        if (!aq_parse_u64(event.text, event.size, &values[i]))
            return aq_fail_tensor(parser->err, AQ_ERR_CORRUPT, tensor, 0,
                                  "%s: tensor %s: %s holds %.*s, expected an integer from 0 to "
                                  "2^64-1; download or write the file again", parser->path, tensor,
                                  what, event.size < 40 ? (int)event.size : 40, event.text);
    }
    return aq_json_next(&parser->json, &event, parser->err); /* the array's end */
}

static aq_status aq_st_shape(aq_st_parser *parser, const aq_json_event *event,
                             aq_st_tensor *tensor) {
    size_t rank = 0, bytes = 0;
    if (event->type != AQ_JSON_ARRAY)
        return aq_st_wrong_type(parser, tensor->name, "shape", "an array", event->type);
    aq_status status = aq_json_count(&parser->json, &rank, parser->err);
    if (status != AQ_OK) return status;
    uint64_t *shape = NULL;
    tensor->rank = (uint32_t)rank; /* a header has fewer than 2^32 bytes */
    tensor->shape = aq_st_no_shape;
    if (rank) {
        if (aq_mul_size(rank, sizeof(*shape), &bytes))
            shape = (uint64_t *)aq_arena_alloc(parser->arena, bytes);
        if (!shape) return aq_fail_memory(parser->err, bytes);
        tensor->shape = shape;
    }
    return aq_st_numbers(parser, tensor->name, "shape", shape, rank);
}

static aq_status aq_st_offsets(aq_st_parser *parser, const aq_json_event *event,
                               aq_st_tensor *tensor) {
    uint64_t range[2] = { 0, 0 };
    size_t count = 0;
    if (event->type != AQ_JSON_ARRAY)
        return aq_st_wrong_type(parser, tensor->name, "data_offsets", "an array", event->type);
    aq_status status = aq_json_count(&parser->json, &count, parser->err);
    if (status != AQ_OK) return status;
    if (count != 2)
        return aq_fail_tensor(parser->err, AQ_ERR_CORRUPT, tensor->name, 0,
                              "%s: tensor %s: data_offsets has %zu elements, expected 2 (begin, "
                              "end); download or write the file again", parser->path, tensor->name,
                              count);
    status = aq_st_numbers(parser, tensor->name, "data_offsets", range, 2);
    if (status != AQ_OK) return status;
    if (range[0] > range[1] || range[1] > parser->data_size)
        return aq_fail_tensor(parser->err, AQ_ERR_CORRUPT, tensor->name, range[0],
                              "%s: tensor %s: data_offsets [%llu, %llu] lie outside the file's "
                              "%llu data bytes; the file is cut short or damaged: download it "
                              "again", parser->path, tensor->name, (unsigned long long)range[0],
                              (unsigned long long)range[1], (unsigned long long)parser->data_size);
    tensor->offset = parser->out->data_start + range[0];
    tensor->bytes = range[1] - range[0];
    return AQ_OK;
}

/* Multiplied from the left, as the reference reader does it: [0, 2^63, 2^63] is fine there. */
static aq_status aq_st_check_size(const aq_st_parser *parser, const aq_st_tensor *tensor) {
    uint64_t bytes = 1;
    bool fits = true;
    for (uint32_t i = 0; i < tensor->rank && fits; i++)
        fits = aq_mul_u64(bytes, tensor->shape[i], &bytes);
    if (fits) fits = aq_mul_u64(bytes, aq_dtype_size(tensor->dtype), &bytes);
    if (!fits)
        return aq_fail_tensor(parser->err, AQ_ERR_CORRUPT, tensor->name, 0,
                              "%s: tensor %s: its shape overflows 64 bits; download or write the "
                              "file again", parser->path, tensor->name);
    if (bytes == tensor->bytes) return AQ_OK;
    return aq_fail_tensor(parser->err, AQ_ERR_CORRUPT, tensor->name, tensor->offset,
                          "%s: tensor %s: shape and dtype %s make %llu bytes, data_offsets %llu; "
                          "download or write the file again", parser->path, tensor->name,
                          aq_dtype_name(tensor->dtype), (unsigned long long)bytes,
                          (unsigned long long)tensor->bytes);
}

enum { AQ_ST_HAS_DTYPE = 1, AQ_ST_HAS_SHAPE = 2, AQ_ST_HAS_OFFSETS = 4, AQ_ST_HAS_ALL = 7 };

static unsigned aq_st_field(const aq_json_event *key) {
    if (aq_json_is(key, "dtype")) return AQ_ST_HAS_DTYPE;
    if (aq_json_is(key, "shape")) return AQ_ST_HAS_SHAPE;
    return aq_json_is(key, "data_offsets") ? AQ_ST_HAS_OFFSETS : 0;
}

static aq_status aq_st_missing(const aq_st_parser *parser, const char *tensor, unsigned fields) {
    const char *name = !(fields & AQ_ST_HAS_DTYPE)   ? "dtype"
                       : !(fields & AQ_ST_HAS_SHAPE) ? "shape"
                                                     : "data_offsets";
    return aq_fail_tensor(parser->err, AQ_ERR_CORRUPT, tensor, 0,
                          "%s: tensor %s: no %s; download or write the file again", parser->path,
                          tensor, name);
}

/* `event` is the value after the tensor's name. */
static aq_status aq_st_entry(aq_st_parser *parser, aq_json_event *event, aq_st_tensor *tensor) {
    unsigned fields = 0;
    if (event->type != AQ_JSON_OBJECT)
        return aq_st_wrong_type(parser, tensor->name, "its entry", "an object", event->type);
    for (;;) {
        aq_status status = aq_json_next(&parser->json, event, parser->err);
        if (status != AQ_OK) return status;
        if (event->type == AQ_JSON_OBJECT_END) break;
        unsigned field = aq_st_field(event);
        if (fields & field)
            return aq_fail_tensor(parser->err, AQ_ERR_CORRUPT, tensor->name, 0,
                                  "%s: tensor %s: %.*s is given twice; download or write the file "
                                  "again", parser->path, tensor->name, (int)event->size,
                                  event->text);
        fields |= field;
        status = aq_json_next(&parser->json, event, parser->err);
        if (status != AQ_OK) return status;
        if (field == AQ_ST_HAS_DTYPE)
            status = aq_st_dtype(parser, tensor->name, event, &tensor->dtype);
        else if (field == AQ_ST_HAS_SHAPE) status = aq_st_shape(parser, event, tensor);
        else if (field == AQ_ST_HAS_OFFSETS) status = aq_st_offsets(parser, event, tensor);
        else status = aq_json_pass(&parser->json, event, parser->err);
        if (status != AQ_OK) return status;
    }
    if (fields != AQ_ST_HAS_ALL) return aq_st_missing(parser, tensor->name, fields);
    return aq_st_check_size(parser, tensor);
}

typedef struct aq_st_key {
    const char *text;
    size_t size;
} aq_st_key;

static int aq_st_compare_keys(const void *a, const void *b) {
    const aq_st_key *first = (const aq_st_key *)a, *second = (const aq_st_key *)b;
    size_t least = first->size < second->size ? first->size : second->size;
    int order = memcmp(first->text, second->text, least);
    if (order) return order;
    return first->size < second->size ? -1 : first->size > second->size;
}

static aq_status aq_st_check_keys(aq_st_parser *parser, aq_st_key *keys, const void **sorted,
                                  size_t count) {
    for (size_t i = 0; i < count; i++) sorted[i] = &keys[i];
    aq_sort_pointers(sorted, count, aq_st_compare_keys);
    for (size_t i = 1; i < count; i++) {
        if (aq_st_compare_keys(sorted[i - 1], sorted[i]) == 0)
            return aq_fail(parser->err, AQ_ERR_CORRUPT,
                           "%s: __metadata__ holds the key %s twice; write the file again",
                           parser->path, ((const aq_st_key *)sorted[i])->text);
    }
    return AQ_OK;
}

/* An object of strings, or null. */
static aq_status aq_st_metadata(aq_st_parser *parser, const aq_json_event *first) {
    if (first->type == AQ_JSON_NULL) return AQ_OK;
    if (first->type != AQ_JSON_OBJECT)
        return aq_fail(parser->err, AQ_ERR_CORRUPT,
                       "%s: __metadata__ should be an object of strings, found %s; write the file "
                       "again", parser->path, aq_json_type_text(first->type));
    aq_json_event event = *first;
    aq_json_reader begin = parser->json;
    size_t count = 0, from = 0, to = 0;
    aq_status status = aq_json_count(&parser->json, &count, parser->err);
    if (status != AQ_OK) return status;
    aq_st_key *keys = NULL;
    const void **sorted = NULL;
    if (count < SIZE_MAX / sizeof(*keys)) {
        keys = (aq_st_key *)aq_arena_alloc(&parser->scratch, (count + 1) * sizeof(*keys));
        sorted = (const void **)aq_arena_alloc(&parser->scratch, (count + 1) * sizeof(*sorted));
    }
    if (!keys || !sorted) return aq_fail_memory(parser->err, count);
    for (size_t i = 0; i < count; i++) {
        status = aq_json_next(&parser->json, &event, parser->err);
        if (status != AQ_OK) return status;
        keys[i].text = aq_json_decode(&parser->scratch, event.text, event.size, &keys[i].size);
        if (!keys[i].text) return aq_fail_memory(parser->err, event.size);
        status = aq_json_next(&parser->json, &event, parser->err);
        if (status != AQ_OK) return status;
        if (event.type != AQ_JSON_STRING)
            return aq_fail(parser->err, AQ_ERR_CORRUPT,
                           "%s: __metadata__ key %s should be a string, found %s; write the file "
                           "again", parser->path, keys[i].text, aq_json_type_text(event.type));
    }
    status = aq_st_check_keys(parser, keys, sorted, count);
    if (status != AQ_OK) return status;
    parser->json = begin;
    status = aq_json_pass_slice(&parser->json, first, &from, &to, parser->err);
    if (status != AQ_OK) return status;
    parser->out->metadata_size = to - from;
    parser->out->metadata = aq_arena_copy(parser->arena, parser->json.text + from, to - from);
    return parser->out->metadata ? AQ_OK : aq_fail_memory(parser->err, to - from);
}

static aq_status aq_st_name(aq_st_parser *parser, const aq_json_event *key, const char **out) {
    size_t size = 0;
    char *name = aq_json_decode(parser->arena, key->text, key->size, &size);
    if (!name) return aq_fail_memory(parser->err, key->size);
    if (strlen(name) != size)
        return aq_fail_tensor(parser->err, AQ_ERR_CORRUPT, name, 0,
                              "%s: a tensor name holds a NUL after \"%s\"; write the file again "
                              "under another name", parser->path, name);
    *out = name;
    return AQ_OK;
}

/* The members of the header object; `room` tensors at most. */
static aq_status aq_st_members(aq_st_parser *parser, aq_st_tensor *tensors, size_t *count) {
    aq_json_event event;
    bool metadata = false;
    for (;;) {
        aq_status status = aq_json_next(&parser->json, &event, parser->err);
        if (status != AQ_OK) return status;
        if (event.type == AQ_JSON_OBJECT_END) break;
        bool is_metadata = aq_json_is(&event, "__metadata__");
        if (is_metadata && metadata)
            return aq_fail(parser->err, AQ_ERR_CORRUPT,
                           "%s: __metadata__ is given twice; write the file again", parser->path);
        metadata = metadata || is_metadata;
        if (!is_metadata) status = aq_st_name(parser, &event, &tensors[*count].name);
        if (status == AQ_OK) status = aq_json_next(&parser->json, &event, parser->err);
        if (status != AQ_OK) return status;
        if (is_metadata) status = aq_st_metadata(parser, &event);
        else status = aq_st_entry(parser, &event, &tensors[(*count)++]);
        if (status != AQ_OK) return status;
    }
    return aq_json_next(&parser->json, &event, parser->err); /* nothing may follow */
}

static int aq_st_compare_offsets(const void *a, const void *b) {
    const aq_st_tensor *first = (const aq_st_tensor *)a, *second = (const aq_st_tensor *)b;
    if (first->offset != second->offset) return first->offset < second->offset ? -1 : 1;
    if (first->bytes != second->bytes) return first->bytes < second->bytes ? -1 : 1;
    return first < second ? -1 : first > second; /* empty ones: in the header's order */
}

static int aq_st_compare_names(const void *a, const void *b) {
    return strcmp(((const aq_st_tensor *)a)->name, ((const aq_st_tensor *)b)->name);
}

static aq_status aq_st_check_names(aq_st_parser *parser, const void **sorted, size_t count) {
    aq_sort_pointers(sorted, count, aq_st_compare_names);
    for (size_t i = 1; i < count; i++) {
        const char *name = ((const aq_st_tensor *)sorted[i])->name;
        if (strcmp(((const aq_st_tensor *)sorted[i - 1])->name, name) == 0)
            return aq_fail_tensor(parser->err, AQ_ERR_CORRUPT, name, 0,
                                  "%s: tensor %s is there twice; write the file again",
                                  parser->path, name);
    }
    return AQ_OK;
}

/* In order of their data, every byte of it in exactly one tensor. */
static aq_status aq_st_check_layout(aq_st_parser *parser, const aq_st_tensor *tensors,
                                    const void **sorted, size_t count) {
    const aq_st_file *file = parser->out;
    uint64_t expected = file->data_start;
    for (size_t i = 0; i < count; i++) sorted[i] = &tensors[i];
    aq_sort_pointers(sorted, count, aq_st_compare_offsets);
    for (size_t i = 0; i < count; i++) {
        const aq_st_tensor *tensor = (const aq_st_tensor *)sorted[i];
        if (tensor->offset != expected)
            return aq_fail_tensor(parser->err, AQ_ERR_CORRUPT, tensor->name, tensor->offset,
                                  "%s: tensor %s: its data begins at %llu, expected %llu: %s; "
                                  "download or write the file again", file->path, tensor->name,
                                  (unsigned long long)(tensor->offset - file->data_start),
                                  (unsigned long long)(expected - file->data_start),
                                  tensor->offset < expected ? "tensors overlap"
                                                            : "there is a hole before it");
        expected += tensor->bytes;
    }
    if (expected == file->file_size) return AQ_OK;
    return aq_fail(parser->err, AQ_ERR_CORRUPT,
                   "%s: the tensors end at byte %llu, the file at %llu; download or write the file "
                   "again", file->path, (unsigned long long)expected,
                   (unsigned long long)file->file_size);
}

/* `tensors` as the header lists them → out->tensors in the order of their data. */
static aq_status aq_st_arrange(aq_st_parser *parser, const aq_st_tensor *tensors, size_t count) {
    aq_st_file *out = parser->out;
    const void **sorted =
        (const void **)aq_arena_alloc(&parser->scratch, (count + 1) * sizeof(*sorted));
    out->tensors = (aq_st_tensor *)aq_arena_alloc(parser->arena, (count + 1) * sizeof(*tensors));
    if (!sorted || !out->tensors) return aq_fail_memory(parser->err, count * sizeof(*tensors));
    aq_status status = aq_st_check_layout(parser, tensors, sorted, count);
    if (status != AQ_OK) return status;
    for (size_t i = 0; i < count; i++) out->tensors[i] = *(const aq_st_tensor *)sorted[i];
    out->tensor_count = count;
    return aq_st_check_names(parser, sorted, count);
}

static aq_status aq_st_parse_json(aq_st_parser *parser) {
    aq_json_event event;
    size_t room = 0, count = 0;
    aq_status status = aq_json_next(&parser->json, &event, parser->err);
    if (status != AQ_OK) return status;
    if (event.type != AQ_JSON_OBJECT)
        return aq_fail(parser->err, AQ_ERR_CORRUPT,
                       "%s: the header should be a JSON object, found %s; this is not a "
                       "safetensors file", parser->path, aq_json_type_text(event.type));
    status = aq_json_count(&parser->json, &room, parser->err);
    if (status != AQ_OK) return status;
    aq_st_tensor *tensors = NULL;
    if (room < SIZE_MAX / sizeof(*tensors) - 1)
        tensors = (aq_st_tensor *)aq_arena_alloc(&parser->scratch, (room + 1) * sizeof(*tensors));
    if (!tensors) return aq_fail_memory(parser->err, room);
    status = aq_st_members(parser, tensors, &count);
    if (status != AQ_OK) return status;
    return aq_st_arrange(parser, tensors, count);
}

/* The first 8 bytes of a file: the header's size, checked. */
static aq_status aq_st_read_size(const uint8_t *bytes, uint64_t file_size, const char *path,
                                   uint64_t *out, aq_error *err) {
    uint64_t size = 0;
    if (file_size < 8)
        return aq_fail(err, AQ_ERR_CORRUPT,
                       "%s: %llu bytes, expected at least 8; the file is cut short or is not a "
                       "safetensors file", path, (unsigned long long)file_size);
    for (unsigned i = 0; i < 8; i++) size |= (uint64_t)bytes[i] << (8 * i);
    if (size > AQ_ST_HEADER_LIMIT)
        return aq_fail(err, AQ_ERR_CORRUPT,
                       "%s: a header of %llu bytes, expected at most %u; this is not a safetensors "
                       "file", path, (unsigned long long)size, AQ_ST_HEADER_LIMIT);
    if (size > file_size - 8)
        return aq_fail(err, AQ_ERR_CORRUPT,
                       "%s: a header of %llu bytes in a file of %llu; the file is cut short: "
                       "download it again", path, (unsigned long long)size,
                       (unsigned long long)file_size);
    *out = size;
    return AQ_OK;
}

static aq_status aq_st_parse_header(aq_arena *arena, const char *text, size_t size,
                                    uint64_t file_size, const char *path, aq_st_file *out,
                                    aq_error *err) {
    aq_st_parser parser;
    memset(out, 0, sizeof(*out));
    out->path = aq_arena_string(arena, path);
    if (!out->path) return aq_fail_memory(err, strlen(path));
    out->data_start = 8 + (uint64_t)size;
    out->file_size = file_size;
    parser.arena = arena;
    aq_arena_init(&parser.scratch, arena->context);
    aq_json_open(&parser.json, text, size, path);
    parser.path = path;
    parser.data_size = file_size - out->data_start;
    parser.out = out;
    parser.err = err;
    aq_status status = aq_st_parse_json(&parser);
    aq_arena_free(&parser.scratch);
    return status;
}

AQ_LIB aq_status aq_st_parse(aq_arena *arena, const void *data, uint64_t size, const char *path,
                             aq_st_file *out, aq_error *err) {
    uint64_t header = 0;
    aq_status status = aq_st_read_size((const uint8_t *)data, size, path, &header, err);
    if (status != AQ_OK) return status;
    return aq_st_parse_header(arena, (const char *)data + 8, (size_t)header, size, path, out, err);
}

AQ_LIB aq_status aq_st_read_header(aq_arena *arena, const char *path, aq_st_file *out,
                                   aq_error *err) {
    aq_file file = AQ_FILE_CLOSED;
    uint8_t bytes[8] = { 0 };
    uint64_t file_size = 0, header = 0;
    char *text = NULL;
    aq_status status = aq_file_open(&file, path, &file_size, err);
    if (status != AQ_OK) return status;
    if (file_size >= 8) status = aq_file_read(&file, 0, bytes, sizeof(bytes), err);
    if (status == AQ_OK) status = aq_st_read_size(bytes, file_size, path, &header, err);
    if (status == AQ_OK) {
        text = (char *)aq_alloc(arena->context, (size_t)header + 1);
        if (!text) status = aq_fail_memory(err, (size_t)header + 1);
    }
    if (status == AQ_OK && header) status = aq_file_read(&file, 8, text, (size_t)header, err);
    aq_file_close(&file, NULL);
    if (status == AQ_OK)
        status = aq_st_parse_header(arena, text, (size_t)header, file_size, path, out, err);
    aq_free(arena->context, text, text ? (size_t)header + 1 : 0);
    return status;
}

AQ_LIB aq_status aq_st_metadata_value(aq_arena *arena, const aq_st_file *file, const char *key,
                                      const char **value, aq_error *err) {
    aq_json_reader json;
    aq_json_event event;
    *value = NULL;
    if (!file->metadata) return AQ_OK;
    aq_json_open(&json, file->metadata, file->metadata_size, file->path);
    aq_status status = aq_json_next(&json, &event, err);
    while (status == AQ_OK) {
        status = aq_json_next(&json, &event, err);
        if (status != AQ_OK || event.type != AQ_JSON_KEY) break;
        bool found = aq_json_is(&event, key);
        status = aq_json_next(&json, &event, err);
        if (status != AQ_OK || !found) continue;
        size_t size = 0;
        *value = aq_json_decode(arena, event.text, event.size, &size);
        if (!*value) return aq_fail_memory(err, event.size);
        if (strlen(*value) == size) return AQ_OK;
        return aq_fail(err, AQ_ERR_METADATA, "%s: __metadata__ key %s holds a NUL; write the file "
                       "again", file->path, key);
    }
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
