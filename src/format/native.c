/* Reads the native metadata back and finds the parts of a quantized tensor. */
#include "native.h"

#include "../base/text.h"
#include "../quant/quant.h"
#include "json_member.h"
#include "sort.h"

#ifndef ARROWQUANT_NO_STDIO

typedef struct aq_native_parser {
    aq_arena *arena;
    aq_json_reader json;
    const char *path;
    aq_native *out;
    aq_error *err;
} aq_native_parser;

static aq_status aq_native_bad(const aq_native_parser *parser, const char *tensor,
                               const char *what) {
    return aq_fail_tensor(parser->err, AQ_ERR_METADATA, tensor, 0,
                          "%s: __metadata__ \"arrowquant\"%s%s: %s; the file was damaged or "
                          "edited: quantize the model again", parser->path,
                          *tensor ? ", tensor " : "", tensor, what);
}

static aq_status aq_native_next(aq_native_parser *parser, aq_json_event *event) {
    return aq_json_next(&parser->json, event, parser->err);
}

/* Decoded text without NUL, in the arena. */
static aq_status aq_native_text(aq_native_parser *parser, const aq_json_event *event,
                                const char *tensor, const char **out) {
    size_t size = 0;
    if (event->type != AQ_JSON_STRING && event->type != AQ_JSON_KEY)
        return aq_native_bad(parser, tensor, "a string was expected");
    char *text = aq_json_decode(parser->arena, event->text, event->size, &size);
    if (!text) return aq_fail_memory(parser->err, event->size);
    if (strlen(text) != size) return aq_native_bad(parser, tensor, "a string holds a NUL");
    *out = text;
    return AQ_OK;
}

static aq_status aq_native_u64(aq_native_parser *parser, const aq_json_event *event,
                               const char *tensor, uint64_t limit, uint64_t *out) {
    uint64_t value = 0;
    if (event->type != AQ_JSON_NUMBER || !aq_parse_u64(event->text, event->size, &value) ||
        value > limit)
        return aq_native_bad(parser, tensor, "a whole number was expected");
    *out = value;
    return AQ_OK;
}

static aq_status aq_native_double(aq_native_parser *parser, const aq_json_event *event,
                                  const char *tensor, double *out) {
    if (event->type == AQ_JSON_NULL) {
        double huge = 1e308;
        *out = huge * 10.0; /* null stands for +infinity */
        return AQ_OK;
    }
    if (event->type != AQ_JSON_NUMBER || !aq_parse_double(event->text, event->size, out))
        return aq_native_bad(parser, tensor, "a number was expected");
    return AQ_OK;
}

static aq_status aq_native_shape(aq_native_parser *parser, aq_json_event *event,
                                 aq_native_tensor *tensor) {
    size_t rank = 0;
    if (event->type != AQ_JSON_ARRAY)
        return aq_native_bad(parser, tensor->name, "shape should be an array");
    aq_status status = aq_json_count(&parser->json, &rank, parser->err);
    if (status != AQ_OK) return status;
    uint64_t *shape = (uint64_t *)aq_arena_alloc(parser->arena, (rank + 1) * sizeof(*shape));
    if (!shape) return aq_fail_memory(parser->err, rank);
    for (size_t i = 0; i < rank; i++) {
        status = aq_native_next(parser, event);
        if (status == AQ_OK)
            status = aq_native_u64(parser, event, tensor->name, UINT64_MAX, &shape[i]);
        if (status != AQ_OK) return status;
    }
    tensor->rank = (uint32_t)rank;
    tensor->shape = shape;
    return aq_native_next(parser, event);
}

static bool aq_native_dtype(const aq_json_event *event, aq_dtype *out) {
    for (unsigned i = 0; i < AQ_DTYPE_COUNT && event->type == AQ_JSON_STRING; i++) {
        if (!aq_json_is(event, aq_dtype_name((aq_dtype)i))) continue;
        *out = (aq_dtype)i;
        return aq_dtype_is_float(*out);
    }
    return false;
}

static bool aq_native_params(const aq_json_event *event, aq_param_type *out) {
    for (unsigned i = AQ_PARAM_F16; i <= AQ_PARAM_Q8 && event->type == AQ_JSON_STRING; i++) {
        if (!aq_json_is(event, aq_param_type_name((aq_param_type)i))) continue;
        *out = (aq_param_type)i;
        return true;
    }
    return false;
}

enum {
    AQ_NATIVE_CODE = 1,
    AQ_NATIVE_BITS = 2,
    AQ_NATIVE_GROUP = 4,
    AQ_NATIVE_PARAMS = 8,
    AQ_NATIVE_DTYPE = 16,
    AQ_NATIVE_SHAPE = 32,
    AQ_NATIVE_METHOD = 64,
    AQ_NATIVE_COSINE = 128,
    AQ_NATIVE_SQNR = 256,
    AQ_NATIVE_INPUT = 512,
    AQ_NATIVE_STATES = 1024,
    AQ_NATIVE_ROTATION = 2048
};

static unsigned aq_native_field(const aq_json_event *key) {
    static const char *const names[] = { "code",  "bits",   "group_size", "params", "dtype",
                                         "shape", "method", "cosine",     "sqnr_db", "input" };
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (aq_json_is(key, names[i])) return 1u << i;
    }
    if (aq_json_is(key, "states")) return AQ_NATIVE_STATES;
    if (aq_json_is(key, "rotation")) return AQ_NATIVE_ROTATION;
    return 0;
}

/* One member of a tensor's object. Fields that an unknown code gives its own meaning are looked at
 * only after the whole object has been read: *bad collects those that this version cannot read. */
static aq_status aq_native_member(aq_native_parser *parser, unsigned field, aq_json_event *event,
                                  aq_native_tensor *tensor, unsigned *bad) {
    uint64_t number = 0;
    switch (field) {
    case AQ_NATIVE_CODE: return aq_native_text(parser, event, tensor->name, &tensor->code);
    case AQ_NATIVE_METHOD: return aq_native_text(parser, event, tensor->name, &tensor->method);
    case AQ_NATIVE_INPUT: return aq_native_text(parser, event, tensor->name, &tensor->input);
    case AQ_NATIVE_SHAPE: return aq_native_shape(parser, event, tensor);
    case AQ_NATIVE_COSINE:
        return aq_native_double(parser, event, tensor->name, &tensor->cosine_similarity);
    case AQ_NATIVE_SQNR: return aq_native_double(parser, event, tensor->name, &tensor->sqnr_db);
    case AQ_NATIVE_DTYPE:
        if (aq_native_dtype(event, &tensor->dtype)) return AQ_OK;
        return aq_native_bad(parser, tensor->name, "dtype is no float type that is read");
    case AQ_NATIVE_BITS:
    case AQ_NATIVE_GROUP:
    case AQ_NATIVE_STATES:
    case AQ_NATIVE_ROTATION:
        if (event->type == AQ_JSON_NUMBER && aq_parse_u64(event->text, event->size, &number) &&
            number <= UINT32_MAX) {
            if (field == AQ_NATIVE_BITS) tensor->spec.bits = (uint32_t)number;
            else if (field == AQ_NATIVE_GROUP) tensor->spec.group_size = (uint32_t)number;
            else if (field == AQ_NATIVE_STATES) tensor->spec.states = (uint32_t)number;
            else tensor->spec.rotation = (uint32_t)number;
            return AQ_OK;
        }
        break;
    case AQ_NATIVE_PARAMS:
        if (aq_native_params(event, &tensor->spec.params)) return AQ_OK;
        break;
    default: break;
    }
    if (field) *bad |= field;
    return aq_json_pass(&parser->json, event, parser->err);
}

/* Everything a known code needs is there and valid. */
static aq_status aq_native_check(const aq_native_parser *parser, aq_native_tensor *tensor,
                                 unsigned fields, unsigned bad) {
    const unsigned always = AQ_NATIVE_CODE | AQ_NATIVE_DTYPE | AQ_NATIVE_SHAPE;
    unsigned known = AQ_NATIVE_BITS | AQ_NATIVE_GROUP | AQ_NATIVE_PARAMS;
    if ((fields & always) != always)
        return aq_native_bad(parser, tensor->name, "code, dtype or shape is missing");
    if (!tensor->method) tensor->method = "";
    for (unsigned i = AQ_CODE_AFFINE; i <= AQ_CODE_TRELLIS; i++) {
        if (i == AQ_CODE_ZERO_POINT || strcmp(tensor->code, aq_code_name((aq_code)i)) != 0) continue;
        tensor->spec.code = (aq_code)i;
        tensor->known = true;
    }
    if (!tensor->known) return AQ_OK;
    if (tensor->spec.code == AQ_CODE_TRELLIS) {
        known |= AQ_NATIVE_STATES | (fields & AQ_NATIVE_ROTATION);
    } else {
        tensor->spec.states = tensor->spec.rotation = 0;
    }
    if ((fields & known) != known || (bad & known))
        return aq_native_bad(parser, tensor->name, known & AQ_NATIVE_STATES
                             ? "bits, group_size, params, states or rotation is missing or malformed"
                             : "bits, group_size or params is missing or malformed");
    if (aq_spec_check(&tensor->spec, NULL) != AQ_OK)
        return aq_native_bad(parser, tensor->name, tensor->spec.code == AQ_CODE_TRELLIS
                                 ? "bits, states, group_size or params is out of range"
                                 : "bits or group_size is out of range");
    return AQ_OK;
}

static aq_status aq_native_tensor_object(aq_native_parser *parser, aq_json_event *event,
                                         aq_native_tensor *tensor) {
    unsigned fields = 0, bad = 0;
    aq_status status = aq_native_text(parser, event, "", &tensor->name);
    if (status == AQ_OK) status = aq_native_next(parser, event);
    if (status != AQ_OK) return status;
    if (event->type != AQ_JSON_OBJECT)
        return aq_native_bad(parser, tensor->name, "an object was expected");
    for (;;) {
        status = aq_native_next(parser, event);
        if (status != AQ_OK) return status;
        if (event->type == AQ_JSON_OBJECT_END) break;
        unsigned field = aq_native_field(event);
        if (fields & field) return aq_native_bad(parser, tensor->name, "a member is given twice");
        fields |= field;
        status = aq_native_next(parser, event);
        if (status == AQ_OK) status = aq_native_member(parser, field, event, tensor, &bad);
        if (status != AQ_OK) return status;
    }
    return aq_native_check(parser, tensor, fields, bad);
}

static aq_status aq_native_tensors(aq_native_parser *parser, aq_json_event *event) {
    size_t count = 0, bytes = 0;
    if (event->type != AQ_JSON_OBJECT)
        return aq_native_bad(parser, "", "\"tensors\" should be an object");
    aq_status status = aq_json_count(&parser->json, &count, parser->err);
    if (status != AQ_OK) return status;
    aq_native_tensor *tensors = NULL;
    if (aq_mul_size(count + 1, sizeof(*tensors), &bytes))
        tensors = (aq_native_tensor *)aq_arena_alloc(parser->arena, bytes);
    if (!tensors) return aq_fail_memory(parser->err, bytes);
    for (size_t i = 0; i < count; i++) {
        status = aq_native_next(parser, event);
        if (status == AQ_OK) status = aq_native_tensor_object(parser, event, &tensors[i]);
        if (status != AQ_OK) return status;
    }
    parser->out->tensors = tensors;
    parser->out->tensor_count = count;
    return aq_native_next(parser, event);
}

static bool aq_native_crc32(const aq_json_event *event, uint32_t *out) {
    uint32_t value = 0;
    if (event->type != AQ_JSON_STRING || event->escaped || event->size != 8) return false;
    for (size_t i = 0; i < 8; i++) {
        char c = event->text[i];
        if (c >= '0' && c <= '9') value = value << 4 | (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f') value = value << 4 | (uint32_t)(c - 'a' + 10);
        else return false;
    }
    *out = value;
    return true;
}

static aq_status aq_native_checksums(aq_native_parser *parser, aq_json_event *event) {
    size_t count = 0, bytes = 0;
    if (event->type != AQ_JSON_OBJECT)
        return aq_native_bad(parser, "", "\"crc32\" should be an object");
    aq_status status = aq_json_count(&parser->json, &count, parser->err);
    if (status != AQ_OK) return status;
    aq_native_checksum *checksums = NULL;
    if (aq_mul_size(count + 1, sizeof(*checksums), &bytes))
        checksums = (aq_native_checksum *)aq_arena_alloc(parser->arena, bytes);
    if (!checksums) return aq_fail_memory(parser->err, bytes);
    for (size_t i = 0; i < count; i++) {
        status = aq_native_next(parser, event);
        if (status == AQ_OK) status = aq_native_text(parser, event, "", &checksums[i].name);
        if (status == AQ_OK) status = aq_native_next(parser, event);
        if (status != AQ_OK) return status;
        if (!aq_native_crc32(event, &checksums[i].crc32))
            return aq_native_bad(parser, checksums[i].name,
                                 "its crc32 should be 8 lower-case hexadecimal digits");
    }
    parser->out->checksums = checksums;
    parser->out->checksum_count = count;
    return aq_native_next(parser, event);
}

static aq_status aq_native_version(aq_native_parser *parser, const aq_json_event *event) {
    uint64_t version = 0;
    aq_status status = aq_native_u64(parser, event, "", UINT64_MAX, &version);
    if (status != AQ_OK) return status;
    if (version == 0) return aq_native_bad(parser, "", "version 0 does not exist");
    if (version <= AQ_NATIVE_VERSION) return AQ_OK;
    return aq_fail(parser->err, AQ_ERR_METADATA,
                   "%s: format version %llu, this library reads up to %d; use a newer ArrowQuant",
                   parser->path, (unsigned long long)version, AQ_NATIVE_VERSION);
}

enum { AQ_NATIVE_HAS_VERSION = 1, AQ_NATIVE_HAS_TENSORS = 2, AQ_NATIVE_HAS_CRC32 = 4 };

static aq_status aq_native_object(aq_native_parser *parser) {
    aq_json_event event;
    unsigned fields = 0;
    aq_status status = aq_native_next(parser, &event);
    if (status != AQ_OK) return status;
    if (event.type != AQ_JSON_OBJECT) return aq_native_bad(parser, "", "an object was expected");
    for (;;) {
        unsigned field = 0;
        status = aq_native_next(parser, &event);
        if (status != AQ_OK) return status;
        if (event.type == AQ_JSON_OBJECT_END) break;
        if (aq_json_is(&event, "version")) field = AQ_NATIVE_HAS_VERSION;
        if (aq_json_is(&event, "tensors")) field = AQ_NATIVE_HAS_TENSORS;
        if (aq_json_is(&event, "crc32")) field = AQ_NATIVE_HAS_CRC32;
        if (fields & field) return aq_native_bad(parser, "", "a member is given twice");
        fields |= field;
        status = aq_native_next(parser, &event);
        if (status != AQ_OK) return status;
        if (field == AQ_NATIVE_HAS_VERSION) status = aq_native_version(parser, &event);
        else if (field == AQ_NATIVE_HAS_TENSORS) status = aq_native_tensors(parser, &event);
        else if (field == AQ_NATIVE_HAS_CRC32) status = aq_native_checksums(parser, &event);
        else status = aq_json_pass(&parser->json, &event, parser->err);
        if (status != AQ_OK) return status;
    }
    if ((fields & (AQ_NATIVE_HAS_VERSION | AQ_NATIVE_HAS_TENSORS)) !=
        (AQ_NATIVE_HAS_VERSION | AQ_NATIVE_HAS_TENSORS))
        return aq_native_bad(parser, "", "version or tensors is missing");
    return aq_native_next(parser, &event);
}

static int aq_native_compare_names(const void *a, const void *b) {
    return strcmp((const char *)a, (const char *)b);
}

/* Sorts the names and looks for neighbours that are equal. */
static aq_status aq_native_unique(const aq_native_parser *parser, const void **names,
                                  size_t count) {
    aq_sort_pointers(names, count, aq_native_compare_names);
    for (size_t i = 1; i < count; i++) {
        if (aq_native_compare_names(names[i - 1], names[i]) == 0)
            return aq_native_bad(parser, (const char *)names[i], "it is there twice");
    }
    return AQ_OK;
}

static aq_status aq_native_check_names(const aq_native_parser *parser) {
    const aq_native *native = parser->out;
    size_t most = native->tensor_count;
    aq_arena scratch;
    aq_arena_init(&scratch, parser->arena->context);
    if (most < native->checksum_count) most = native->checksum_count;
    const void **names = (const void **)aq_arena_alloc(&scratch, (most + 1) * sizeof(*names));
    aq_status status = names ? AQ_OK : aq_fail_memory(parser->err, most * sizeof(*names));
    if (status == AQ_OK) {
        for (size_t i = 0; i < native->tensor_count; i++) names[i] = native->tensors[i].name;
        status = aq_native_unique(parser, names, native->tensor_count);
    }
    if (status == AQ_OK) {
        for (size_t i = 0; i < native->checksum_count; i++) names[i] = native->checksums[i].name;
        status = aq_native_unique(parser, names, native->checksum_count);
    }
    aq_arena_free(&scratch);
    return status;
}

AQ_LIB aq_status aq_native_read(aq_arena *arena, const aq_st_file *file, bool *present,
                                aq_native *out, aq_error *err) {
    aq_native_parser parser;
    const char *text = NULL;
    memset(out, 0, sizeof(*out));
    *present = false;
    aq_status status = aq_st_metadata_value(arena, file, AQ_NATIVE_KEY, &text, err);
    if (status != AQ_OK || !text) return status;
    *present = true;
    parser.arena = arena;
    aq_json_open(&parser.json, text, strlen(text), file->path);
    parser.json.failure = AQ_ERR_METADATA;
    parser.path = file->path;
    parser.out = out;
    parser.err = err;
    status = aq_native_object(&parser);
    return status == AQ_OK ? aq_native_check_names(&parser) : status;
}

static int aq_st_by_name(const void *a, const void *b) {
    return strcmp(((const aq_st_tensor *)a)->name, ((const aq_st_tensor *)b)->name);
}

AQ_LIB const aq_st_tensor **aq_st_sort_by_name(aq_arena *arena, const aq_st_file *file) {
    size_t count = file->tensor_count;
    aq_arena scratch;
    aq_arena_init(&scratch, arena->context);
    const void **sorted = (const void **)aq_arena_alloc(&scratch, (count + 1) * sizeof(*sorted));
    const aq_st_tensor **out =
        (const aq_st_tensor **)aq_arena_alloc(arena, (count + 1) * sizeof(*out));
    if (sorted && out) {
        for (size_t i = 0; i < count; i++) sorted[i] = &file->tensors[i];
        aq_sort_pointers(sorted, count, aq_st_by_name);
        for (size_t i = 0; i < count; i++) out[i] = (const aq_st_tensor *)sorted[i];
    } else {
        out = NULL;
    }
    aq_arena_free(&scratch);
    return out;
}

/* strcmp(name, stem + suffix) */
static int aq_st_compare_joined(const char *name, const char *stem, const char *suffix) {
    size_t size = strlen(stem);
    int order = strncmp(name, stem, size);
    return order ? order : strcmp(name + size, suffix);
}

static const aq_st_tensor *aq_st_find_joined(const aq_st_tensor *const *by_name, size_t count,
                                             const char *stem, const char *suffix) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = aq_st_compare_joined(by_name[middle]->name, stem, suffix);
        if (order == 0) return by_name[middle];
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

AQ_LIB const aq_st_tensor *aq_st_find(const aq_st_tensor *const *by_name, size_t count,
                                      const char *name) {
    return aq_st_find_joined(by_name, count, name, "");
}

/* What a part has to look like. */
typedef struct aq_native_part {
    const char *suffix;
    aq_dtype dtype;
    uint32_t rank;
    uint64_t shape[3];
} aq_native_part;

static aq_status aq_native_part_find(const aq_native_tensor *tensor, const aq_st_file *file,
                                     const aq_st_tensor *const *by_name,
                                     const aq_native_part *part, const aq_st_tensor **out,
                                     aq_error *err) {
    const aq_st_tensor *found =
        aq_st_find_joined(by_name, file->tensor_count, tensor->name, part->suffix);
    if (!found)
        return aq_fail_tensor(err, AQ_ERR_CORRUPT, tensor->name, 0,
                              "%s: tensor %s: its part %s%s is missing; quantize the model again",
                              file->path, tensor->name, tensor->name, part->suffix);
    bool agrees = found->dtype == part->dtype && found->rank == part->rank;
    for (uint32_t i = 0; i < part->rank && agrees; i++)
        agrees = found->shape[i] == part->shape[i];
    if (!agrees)
        return aq_fail_tensor(err, AQ_ERR_CORRUPT, tensor->name, found->offset,
                              "%s: tensor %s: expected %s of dtype %s and %llu rows of %llu words "
                              "or groups, found dtype %s, rank %u and %llu bytes; quantize the "
                              "model again", file->path, tensor->name, found->name,
                              aq_dtype_name(part->dtype), (unsigned long long)part->shape[0],
                              (unsigned long long)part->shape[1], aq_dtype_name(found->dtype),
                              found->rank, (unsigned long long)found->bytes);
    *out = found;
    return AQ_OK;
}

static aq_dtype aq_native_params_dtype(const aq_quant_spec *spec) {
    if (spec->params == AQ_PARAM_F16) return AQ_DTYPE_F16;
    if (spec->params == AQ_PARAM_F32) return AQ_DTYPE_F32;
    return spec->code == AQ_CODE_SYMMETRIC ? AQ_DTYPE_I8 : AQ_DTYPE_U8;
}

static aq_status aq_native_dims(const aq_native_tensor *tensor, uint64_t *rows, uint64_t *cols) {
    uint64_t product = 1;
    for (uint32_t i = tensor->rank > 1 ? 1 : 0; i < tensor->rank; i++) {
        if (!aq_mul_u64(product, tensor->shape[i], &product)) return AQ_ERR_SHAPE;
    }
    *rows = tensor->rank > 1 ? tensor->shape[0] : 1;
    *cols = product;
    return AQ_OK;
}

AQ_LIB aq_status aq_native_parts(const aq_native_tensor *tensor, const aq_st_file *file,
                                 const aq_st_tensor *const *by_name, aq_quant_layout *layout,
                                 const aq_st_tensor *parts[3], aq_error *err) {
    uint64_t rows = 0, cols = 0;
    parts[0] = parts[1] = parts[2] = NULL;
    if (!tensor->known)
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, tensor->name, 0,
                              "%s: tensor %s has the code \"%s\", this library reads \"affine\", "
                              "\"symmetric\", \"residual\" and \"trellis\"; use a newer ArrowQuant",
                              file->path, tensor->name, tensor->code);
    if (tensor->input && strcmp(tensor->input, AQ_NATIVE_SCALED) != 0)
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, tensor->name, 0,
                              "%s: tensor %s: what is done to its input is \"%s\", this library knows "
                              "\"" AQ_NATIVE_SCALED "\"; use a newer ArrowQuant", file->path,
                              tensor->name, tensor->input);
    if (aq_native_dims(tensor, &rows, &cols) != AQ_OK ||
        aq_quantized_size(&tensor->spec, rows, cols, layout, NULL) != AQ_OK)
        return aq_fail_tensor(err, AQ_ERR_METADATA, tensor->name, 0,
                              "%s: tensor %s: its shape overflows 64 bits; quantize the model "
                              "again", file->path, tensor->name);
    bool scale_only = tensor->spec.code == AQ_CODE_SYMMETRIC || tensor->spec.code == AQ_CODE_TRELLIS;
    uint64_t values = scale_only ? 1 : 2;
    aq_native_part codes = { AQ_CODES_SUFFIX, AQ_DTYPE_I32, 2, { 0, 0, 0 } };
    aq_native_part params = { AQ_PARAMS_SUFFIX, AQ_DTYPE_F16, 3, { 0, 0, 0 } };
    aq_native_part extra = { AQ_EXTRA_SUFFIX, AQ_DTYPE_F16, 2, { 0, 0, 0 } };
    codes.shape[0] = params.shape[0] = extra.shape[0] = rows;
    codes.shape[1] = layout->row_code_bytes / 4;
    params.dtype = aq_native_params_dtype(&tensor->spec);
    params.shape[1] = layout->groups;
    params.shape[2] = values;
    extra.shape[1] = values;
    aq_status status = aq_native_part_find(tensor, file, by_name, &codes, &parts[0], err);
    if (status == AQ_OK)
        status = aq_native_part_find(tensor, file, by_name, &params, &parts[1], err);
    if (status == AQ_OK && tensor->spec.params == AQ_PARAM_Q8)
        status = aq_native_part_find(tensor, file, by_name, &extra, &parts[2], err);
    return status;
}

AQ_LIB bool aq_native_is_part(const char *name) {
    static const char *const suffixes[] = { AQ_CODES_SUFFIX, AQ_PARAMS_SUFFIX, AQ_EXTRA_SUFFIX,
                                            AQ_INPUT_SCALES_SUFFIX, AQ_ACT_STARTS_SUFFIX,
                                            AQ_ACT_SCALES_SUFFIX, AQ_ACT_ZEROS_SUFFIX };
    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        if (aq_ends_with(name, suffixes[i])) return true;
    }
    return false;
}

AQ_LIB aq_status aq_native_input_scales(const aq_native_tensor *tensor, const aq_st_file *file,
                                        const aq_st_tensor *const *by_name,
                                        const aq_st_tensor **found, aq_error *err) {
    aq_native_part scales = { AQ_INPUT_SCALES_SUFFIX, AQ_DTYPE_F32, 1, { 0, 0, 0 } };
    uint64_t rows = 0;
    *found = NULL;
    if (!tensor->input) return AQ_OK;
    if (aq_native_dims(tensor, &rows, &scales.shape[0]) != AQ_OK) return AQ_OK; /* told before */
    return aq_native_part_find(tensor, file, by_name, &scales, found, err);
}

AQ_LIB aq_status aq_native_activations(const aq_native_tensor *tensor, const aq_st_file *file,
                                       const aq_st_tensor *const *by_name,
                                       const aq_st_tensor *found[3], aq_error *err) {
    aq_native_part starts = { AQ_ACT_STARTS_SUFFIX, AQ_DTYPE_I32, 1, { 0, 0, 0 } };
    aq_native_part scales = { AQ_ACT_SCALES_SUFFIX, AQ_DTYPE_F32, 2, { 2, 0, 0 } };
    aq_native_part zeros = { AQ_ACT_ZEROS_SUFFIX, AQ_DTYPE_I32, 2, { 2, 0, 0 } };
    found[0] = aq_st_find_joined(by_name, file->tensor_count, tensor->name, AQ_ACT_STARTS_SUFFIX);
    found[1] = found[2] = NULL;
    if (!found[0]) return AQ_OK;
    starts.shape[0] = found[0]->rank == 1 ? found[0]->shape[0] : 0;
    if (starts.shape[0] < 2 || starts.shape[0] > AQ_TIME_GROUPS_MAX + 1)
        return aq_fail_tensor(err, AQ_ERR_CORRUPT, tensor->name, found[0]->offset,
                              "%s: tensor %s: expected 1 to %u time groups; quantize the model "
                              "again", file->path, tensor->name, AQ_TIME_GROUPS_MAX);
    scales.shape[1] = zeros.shape[1] = starts.shape[0] - 1;
    aq_status status = aq_native_part_find(tensor, file, by_name, &starts, &found[0], err);
    if (status == AQ_OK)
        status = aq_native_part_find(tensor, file, by_name, &scales, &found[1], err);
    if (status == AQ_OK)
        status = aq_native_part_find(tensor, file, by_name, &zeros, &found[2], err);
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
