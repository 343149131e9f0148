/* Reads GGUF headers: nothing in them is believed before it is checked. */
#include "gguf.h"

#include "sort.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_GGUF_KEY_MOST 65535u
#define AQ_GGUF_LEAST_VALUE 13u  /* bytes of the shortest key-value pair: length, a key byte, type, a byte */
#define AQ_GGUF_LEAST_TENSOR 25u /* and of the shortest tensor: length, a byte, rank, type, offset */

#define AQ_GGUF_PLAIN(name, id, bytes, dtype)                                                      \
    { name, id, 1, bytes, (bytes) * 8, dtype, AQ_CODE_COUNT }
#define AQ_GGUF_OTHER(name, id, weights, bytes, bits)                                              \
    { name, id, weights, bytes, bits, AQ_DTYPE_COUNT, AQ_CODE_COUNT }

static const aq_gguf_type aq_gguf_types[] = {
    AQ_GGUF_PLAIN("F32", 0, 4, AQ_DTYPE_F32),
    AQ_GGUF_PLAIN("F16", 1, 2, AQ_DTYPE_F16),
    { "Q4_0", 2, 32, 18, 4, AQ_DTYPE_COUNT, AQ_CODE_Q4_0 },
    { "Q4_1", 3, 32, 20, 4, AQ_DTYPE_COUNT, AQ_CODE_Q4_1 },
    AQ_GGUF_OTHER("Q5_0", 6, 32, 22, 5),
    AQ_GGUF_OTHER("Q5_1", 7, 32, 24, 5),
    { "Q8_0", 8, 32, 34, 8, AQ_DTYPE_COUNT, AQ_CODE_Q8_0 },
    AQ_GGUF_OTHER("Q8_1", 9, 32, 36, 8),
    { "Q2_K", 10, 256, 84, 2, AQ_DTYPE_COUNT, AQ_CODE_Q2_K },
    AQ_GGUF_OTHER("Q3_K", 11, 256, 110, 3),
    { "Q4_K", 12, 256, 144, 4, AQ_DTYPE_COUNT, AQ_CODE_Q4_K },
    AQ_GGUF_OTHER("Q5_K", 13, 256, 176, 5),
    AQ_GGUF_OTHER("Q6_K", 14, 256, 210, 6),
    AQ_GGUF_OTHER("Q8_K", 15, 256, 292, 8),
    AQ_GGUF_OTHER("IQ2_XXS", 16, 256, 66, 2),
    AQ_GGUF_OTHER("IQ2_XS", 17, 256, 74, 2),
    AQ_GGUF_OTHER("IQ3_XXS", 18, 256, 98, 3),
    AQ_GGUF_OTHER("IQ1_S", 19, 256, 50, 1),
    AQ_GGUF_OTHER("IQ4_NL", 20, 32, 18, 4),
    AQ_GGUF_OTHER("IQ3_S", 21, 256, 110, 3),
    AQ_GGUF_OTHER("IQ2_S", 22, 256, 82, 2),
    AQ_GGUF_OTHER("IQ4_XS", 23, 256, 136, 4),
    AQ_GGUF_PLAIN("I8", 24, 1, AQ_DTYPE_I8),
    AQ_GGUF_PLAIN("I16", 25, 2, AQ_DTYPE_I16),
    AQ_GGUF_PLAIN("I32", 26, 4, AQ_DTYPE_I32),
    AQ_GGUF_PLAIN("I64", 27, 8, AQ_DTYPE_I64),
    AQ_GGUF_PLAIN("F64", 28, 8, AQ_DTYPE_F64),
    AQ_GGUF_OTHER("IQ1_M", 29, 256, 56, 1),
    AQ_GGUF_PLAIN("BF16", 30, 2, AQ_DTYPE_BF16),
    AQ_GGUF_OTHER("TQ1_0", 34, 256, 54, 2),
    AQ_GGUF_OTHER("TQ2_0", 35, 256, 66, 2),
    AQ_GGUF_OTHER("MXFP4", 39, 32, 17, 4),
};
#define AQ_GGUF_TYPE_COUNT (sizeof(aq_gguf_types) / sizeof(aq_gguf_types[0]))

AQ_LIB const aq_gguf_type *aq_gguf_type_at(uint32_t id) {
    for (size_t i = 0; i < AQ_GGUF_TYPE_COUNT; i++) {
        if (aq_gguf_types[i].id == id) return &aq_gguf_types[i];
    }
    return NULL;
}

AQ_LIB const aq_gguf_type *aq_gguf_type_of(aq_dtype dtype) {
    for (size_t i = 0; i < AQ_GGUF_TYPE_COUNT; i++) {
        if (aq_gguf_types[i].weights == 1 && aq_gguf_types[i].dtype == dtype)
            return &aq_gguf_types[i];
    }
    return NULL;
}

AQ_LIB const aq_gguf_type *aq_gguf_type_of_code(aq_code code) {
    for (size_t i = 0; i < AQ_GGUF_TYPE_COUNT; i++) {
        if (aq_gguf_types[i].code == code && aq_gguf_types[i].weights > 1) return &aq_gguf_types[i];
    }
    return NULL;
}

/* ---- bytes */

/* What is left of the file. After a failure every read gives zeros. */
typedef struct aq_gguf_reader {
    const unsigned char *data;
    uint64_t size, at;
    const char *path;
    aq_arena *arena;
    aq_error *err;
} aq_gguf_reader;

static aq_status aq_gguf_short(const aq_gguf_reader *in, const char *what) {
    return aq_fail_tensor(in->err, AQ_ERR_CORRUPT, "", in->at,
                          "%s: ends within %s, at byte %llu of %llu; download it again", in->path,
                          what, (unsigned long long)in->at, (unsigned long long)in->size);
}

static aq_status aq_gguf_number(aq_gguf_reader *in, uint32_t bytes, uint64_t *out,
                                const char *what) {
    if (in->size - in->at < bytes) return aq_gguf_short(in, what);
    *out = 0;
    for (uint32_t i = 0; i < bytes; i++) *out |= (uint64_t)in->data[in->at + i] << (8 * i);
    in->at += bytes;
    return AQ_OK;
}

static aq_status aq_gguf_word(aq_gguf_reader *in, uint32_t *out, const char *what) {
    uint64_t value = 0;
    aq_status status = aq_gguf_number(in, 4, &value, what);
    *out = (uint32_t)value;
    return status;
}

/* A length and so many bytes of UTF-8 without zeros. */
static aq_status aq_gguf_text(aq_gguf_reader *in, uint64_t most, const char **out,
                              const char *what) {
    uint64_t size = 0;
    aq_status status = aq_gguf_number(in, 8, &size, what);
    if (status != AQ_OK) return status;
    if (size > in->size - in->at) return aq_gguf_short(in, what);
    const char *text = (const char *)in->data + in->at;
    if (size > most)
        return aq_fail_tensor(in->err, AQ_ERR_CORRUPT, "", in->at,
                              "%s: %s of %llu bytes at byte %llu; at most %llu are allowed",
                              in->path, what, (unsigned long long)size, (unsigned long long)in->at,
                              (unsigned long long)most);
    if (!aq_is_utf8(text, (size_t)size, NULL) || memchr(text, 0, (size_t)size))
        return aq_fail_tensor(in->err, AQ_ERR_CORRUPT, "", in->at,
                              "%s: %s at byte %llu is not UTF-8 text", in->path, what,
                              (unsigned long long)in->at);
    *out = aq_arena_copy(in->arena, text, (size_t)size);
    in->at += size;
    return *out ? AQ_OK : aq_fail_memory(in->err, (size_t)size);
}

/* ---- key-value pairs */

/* Bytes of a number; 0: not a number. */
static uint32_t aq_gguf_kind_bytes(aq_gguf_kind kind) {
    switch (kind) {
    case AQ_GGUF_U8: case AQ_GGUF_I8: case AQ_GGUF_BOOL: return 1;
    case AQ_GGUF_U16: case AQ_GGUF_I16: return 2;
    case AQ_GGUF_U32: case AQ_GGUF_I32: case AQ_GGUF_F32: return 4;
    case AQ_GGUF_U64: case AQ_GGUF_I64: case AQ_GGUF_F64: return 8;
    case AQ_GGUF_STRING: case AQ_GGUF_ARRAY: case AQ_GGUF_KIND_COUNT: break;
    }
    return 0;
}

static aq_status aq_gguf_read_kind(aq_gguf_reader *in, const char *key, aq_gguf_kind *out) {
    uint32_t kind = 0;
    aq_status status = aq_gguf_word(in, &kind, "a value's type");
    if (status != AQ_OK) return status;
    if (kind >= AQ_GGUF_KIND_COUNT)
        return aq_fail(in->err, AQ_ERR_CORRUPT, "%s: key %s: value of type %u; 0 to %u are known",
                       in->path, key, (unsigned)kind, (unsigned)AQ_GGUF_KIND_COUNT - 1);
    *out = (aq_gguf_kind)kind;
    return AQ_OK;
}

static aq_status aq_gguf_read_array(aq_gguf_reader *in, aq_gguf_value *value) {
    aq_status status = aq_gguf_read_kind(in, value->key, &value->element);
    if (status == AQ_OK) status = aq_gguf_number(in, 8, &value->number, "an array's length");
    if (status != AQ_OK) return status;
    value->data = in->data + in->at;
    if (value->element == AQ_GGUF_ARRAY)
        return aq_fail(in->err, AQ_ERR_UNSUPPORTED, "%s: key %s: an array of arrays", in->path,
                       value->key);
    uint64_t bytes = 0;
    if (value->element != AQ_GGUF_STRING) {
        if (!aq_mul_u64(value->number, aq_gguf_kind_bytes(value->element), &bytes) ||
            bytes > in->size - in->at)
            return aq_gguf_short(in, "an array");
        in->at += bytes;
        return AQ_OK;
    }
    for (uint64_t i = 0; i < value->number; i++) { /* each takes 8 bytes at least: this ends */
        status = aq_gguf_number(in, 8, &bytes, "a text's length");
        if (status != AQ_OK) return status;
        if (bytes > in->size - in->at) return aq_gguf_short(in, "an array of texts");
        in->at += bytes;
    }
    return AQ_OK;
}

static aq_status aq_gguf_read_value(aq_gguf_reader *in, aq_gguf_value *value) {
    aq_status status = aq_gguf_text(in, AQ_GGUF_KEY_MOST, &value->key, "a key");
    if (status != AQ_OK) return status;
    if (!*value->key)
        return aq_fail(in->err, AQ_ERR_CORRUPT, "%s: an empty key before byte %llu", in->path,
                       (unsigned long long)in->at);
    status = aq_gguf_read_kind(in, value->key, &value->kind);
    if (status != AQ_OK) return status;
    if (value->kind == AQ_GGUF_ARRAY) return aq_gguf_read_array(in, value);
    if (value->kind == AQ_GGUF_STRING) return aq_gguf_text(in, UINT64_MAX, &value->text, "a text");
    uint32_t bytes = aq_gguf_kind_bytes(value->kind);
    status = aq_gguf_number(in, bytes, &value->number, "a number");
    if (status == AQ_OK && value->kind == AQ_GGUF_BOOL && value->number > 1)
        return aq_fail(in->err, AQ_ERR_CORRUPT, "%s: key %s: truth value %llu; 0 or 1 was expected",
                       in->path, value->key, (unsigned long long)value->number);
    bool is_signed = value->kind == AQ_GGUF_I8 || value->kind == AQ_GGUF_I16 ||
                     value->kind == AQ_GGUF_I32;
    if (is_signed && value->number >> (8 * bytes - 1)) value->number |= UINT64_MAX << (8 * bytes);
    return status;
}

static int aq_gguf_by_key(const void *a, const void *b) {
    return strcmp(((const aq_gguf_value *)a)->key, ((const aq_gguf_value *)b)->key);
}

static int aq_gguf_by_name(const void *a, const void *b) {
    return strcmp(((const aq_gguf_tensor *)a)->name, ((const aq_gguf_tensor *)b)->name);
}

static aq_status aq_gguf_read_values(aq_gguf_reader *in, aq_gguf *out) {
    out->values =
        (aq_gguf_value *)aq_arena_alloc(in->arena, (out->value_count + 1) * sizeof(aq_gguf_value));
    const void **sorted =
        (const void **)aq_arena_alloc(in->arena, (out->value_count + 1) * sizeof(void *));
    if (!out->values || !sorted) return aq_fail_memory(in->err, out->value_count);
    for (size_t i = 0; i < out->value_count; i++) {
        aq_status status = aq_gguf_read_value(in, &out->values[i]);
        if (status != AQ_OK) return status;
        sorted[i] = &out->values[i];
    }
    aq_sort_pointers(sorted, out->value_count, aq_gguf_by_key);
    for (size_t i = 1; i < out->value_count; i++) {
        if (aq_gguf_by_key(sorted[i - 1], sorted[i]) == 0)
            return aq_fail(in->err, AQ_ERR_CORRUPT, "%s: key %s is there twice", in->path,
                           ((const aq_gguf_value *)sorted[i])->key);
    }
    const aq_gguf_value *alignment = aq_gguf_find(out, "general.alignment");
    out->alignment = AQ_GGUF_ALIGNMENT;
    if (!alignment) return AQ_OK;
    uint64_t value = alignment->number;
    if (alignment->kind != AQ_GGUF_U32 || value < 8 || value > 65536 || (value & (value - 1)))
        return aq_fail(in->err, AQ_ERR_CORRUPT, "%s: general.alignment is %llu; a power of two "
                       "from 8 to 65536 of type 4 was expected", in->path,
                       (unsigned long long)value);
    out->alignment = (uint32_t)value;
    return AQ_OK;
}

AQ_LIB const aq_gguf_value *aq_gguf_find(const aq_gguf *file, const char *key) {
    for (size_t i = 0; i < file->value_count; i++) {
        if (strcmp(file->values[i].key, key) == 0) return &file->values[i];
    }
    return NULL;
}

/* ---- tensors */

static aq_status aq_gguf_bad_tensor(const aq_gguf_reader *in, const aq_gguf_tensor *tensor,
                                    const char *why) {
    return aq_fail_tensor(in->err, AQ_ERR_CORRUPT, tensor->name, in->at, "%s: tensor %s: %s",
                          in->path, tensor->name, why);
}

static aq_status aq_gguf_read_shape(aq_gguf_reader *in, aq_gguf_tensor *tensor) {
    aq_status status = aq_gguf_word(in, &tensor->rank, "a tensor's rank");
    if (status != AQ_OK) return status;
    if (tensor->rank > AQ_GGUF_RANK)
        return aq_fail_tensor(in->err, AQ_ERR_UNSUPPORTED, tensor->name, in->at,
                              "%s: tensor %s has %u dimensions; at most %u are read", in->path,
                              tensor->name, (unsigned)tensor->rank, AQ_GGUF_RANK);
    uint64_t *shape =
        (uint64_t *)aq_arena_alloc(in->arena, (tensor->rank + 1) * sizeof(uint64_t));
    if (!shape) return aq_fail_memory(in->err, sizeof(uint64_t));
    for (uint32_t i = tensor->rank; status == AQ_OK && i-- > 0;) {
        status = aq_gguf_number(in, 8, &shape[i], "a tensor's shape");
        if (status == AQ_OK && shape[i] > INT64_MAX)
            return aq_gguf_bad_tensor(in, tensor, "a negative dimension");
    }
    tensor->shape = shape;
    return status;
}

/* Type and size; the type is one that GGUF knows, and its blocks fit the rows. */
static aq_status aq_gguf_read_type(aq_gguf_reader *in, aq_gguf_tensor *tensor) {
    uint32_t id = 0;
    aq_status status = aq_gguf_word(in, &id, "a tensor's type");
    if (status != AQ_OK) return status;
    tensor->type = aq_gguf_type_at(id);
    if (!tensor->type)
        return aq_fail_tensor(in->err, AQ_ERR_UNSUPPORTED, tensor->name, in->at,
                              "%s: tensor %s is of type %u, which this version does not know",
                              in->path, tensor->name, (unsigned)id);
    uint64_t count = 1, cols = tensor->rank ? tensor->shape[tensor->rank - 1] : 1;
    for (uint32_t i = 0; i < tensor->rank; i++) {
        if (!aq_mul_u64(count, tensor->shape[i], &count) || count > INT64_MAX)
            return aq_gguf_bad_tensor(in, tensor, "its number of elements needs over 63 bits");
    }
    if (cols % tensor->type->weights)
        return aq_fail_tensor(in->err, AQ_ERR_CORRUPT, tensor->name, in->at,
                              "%s: tensor %s: rows of %llu are no multiple of %u, the block of %s",
                              in->path, tensor->name, (unsigned long long)cols,
                              (unsigned)tensor->type->weights, tensor->type->name);
    if (!aq_mul_u64(count / tensor->type->weights, tensor->type->bytes, &tensor->bytes))
        return aq_gguf_bad_tensor(in, tensor, "its size needs over 64 bits");
    return AQ_OK;
}

static aq_status aq_gguf_read_tensor(aq_gguf_reader *in, aq_gguf_tensor *tensor) {
    aq_status status = aq_gguf_text(in, AQ_GGUF_KEY_MOST, &tensor->name, "a tensor's name");
    if (status != AQ_OK) return status;
    if (!*tensor->name)
        return aq_fail(in->err, AQ_ERR_CORRUPT, "%s: a tensor without a name before byte %llu",
                       in->path, (unsigned long long)in->at);
    status = aq_gguf_read_shape(in, tensor);
    if (status == AQ_OK) status = aq_gguf_read_type(in, tensor);
    if (status == AQ_OK) status = aq_gguf_number(in, 8, &tensor->offset, "a tensor's offset");
    return status;
}

static uint64_t aq_gguf_pad(uint64_t offset, uint32_t alignment) {
    return (offset + alignment - 1) & ~(uint64_t)(alignment - 1);
}

/* Each tensor begins where the padded one before it ends, and the last one lies in the file. */
static aq_status aq_gguf_place(aq_gguf_reader *in, aq_gguf *out) {
    uint64_t offset = 0;
    out->data_start = aq_gguf_pad(in->at, out->alignment);
    for (size_t i = 0; i < out->tensor_count; i++) {
        aq_gguf_tensor *tensor = &out->tensors[i];
        if (tensor->offset != offset)
            return aq_fail_tensor(in->err, AQ_ERR_CORRUPT, tensor->name, tensor->offset,
                                  "%s: tensor %s begins at %llu; %llu was expected, behind the one "
                                  "before it", in->path, tensor->name,
                                  (unsigned long long)tensor->offset, (unsigned long long)offset);
        uint64_t end = 0;
        if (!aq_add_u64(out->data_start, offset, &tensor->offset) ||
            !aq_add_u64(tensor->offset, tensor->bytes, &end) || end > in->size)
            return aq_fail_tensor(in->err, AQ_ERR_CORRUPT, tensor->name, offset,
                                  "%s: tensor %s ends at byte %llu, the file at %llu; download it "
                                  "again", in->path, tensor->name, (unsigned long long)end,
                                  (unsigned long long)in->size);
        offset = aq_gguf_pad(offset + tensor->bytes, out->alignment); /* below the file's size */
    }
    return AQ_OK;
}

static aq_status aq_gguf_read_tensors(aq_gguf_reader *in, aq_gguf *out) {
    out->tensors = (aq_gguf_tensor *)aq_arena_alloc(
        in->arena, (out->tensor_count + 1) * sizeof(aq_gguf_tensor));
    const void **sorted =
        (const void **)aq_arena_alloc(in->arena, (out->tensor_count + 1) * sizeof(void *));
    if (!out->tensors || !sorted) return aq_fail_memory(in->err, out->tensor_count);
    for (size_t i = 0; i < out->tensor_count; i++) {
        aq_status status = aq_gguf_read_tensor(in, &out->tensors[i]);
        if (status != AQ_OK) return status;
        sorted[i] = &out->tensors[i];
    }
    aq_sort_pointers(sorted, out->tensor_count, aq_gguf_by_name);
    for (size_t i = 1; i < out->tensor_count; i++) {
        if (aq_gguf_by_name(sorted[i - 1], sorted[i]) == 0)
            return aq_gguf_bad_tensor(in, (const aq_gguf_tensor *)sorted[i], "is there twice");
    }
    return aq_gguf_place(in, out);
}

static aq_status aq_gguf_read_head(aq_gguf_reader *in, aq_gguf *out) {
    uint64_t tensors = 0, values = 0;
    if (in->size < 4 || memcmp(in->data, "GGUF", 4) != 0)
        return aq_fail(in->err, AQ_ERR_CORRUPT, "%s: does not begin with GGUF", in->path);
    in->at = 4;
    aq_status status = aq_gguf_word(in, &out->version, "the version");
    if (status != AQ_OK) return status;
    if (out->version != 2 && out->version != 3)
        return aq_fail(in->err, AQ_ERR_UNSUPPORTED, "%s: GGUF version %u%s; 2 and 3 are read",
                       in->path, (unsigned)out->version,
                       (out->version & 0xFFFFu) ? "" : ", perhaps of a big-endian machine");
    status = aq_gguf_number(in, 8, &tensors, "the number of tensors");
    if (status == AQ_OK) status = aq_gguf_number(in, 8, &values, "the number of keys");
    if (status != AQ_OK) return status;
    if (values > (in->size - in->at) / AQ_GGUF_LEAST_VALUE ||
        tensors > (in->size - in->at) / AQ_GGUF_LEAST_TENSOR)
        return aq_fail(in->err, AQ_ERR_CORRUPT,
                       "%s: says that it holds %llu tensors and %llu keys, which %llu bytes cannot",
                       in->path, (unsigned long long)tensors, (unsigned long long)values,
                       (unsigned long long)in->size);
    out->value_count = (size_t)values;
    out->tensor_count = (size_t)tensors;
    return AQ_OK;
}

AQ_LIB aq_status aq_gguf_parse(aq_arena *arena, const void *data, uint64_t size, const char *path,
                               aq_gguf *out, aq_error *err) {
    aq_gguf_reader in;
    memset(out, 0, sizeof(*out));
    in.data = (const unsigned char *)data;
    in.size = size;
    in.at = 0;
    in.path = path;
    in.arena = arena;
    in.err = err;
    aq_status status = aq_gguf_read_head(&in, out);
    if (status == AQ_OK) status = aq_gguf_read_values(&in, out);
    if (status == AQ_OK) status = aq_gguf_read_tensors(&in, out);
    return status;
}

#undef AQ_GGUF_KEY_MOST
#undef AQ_GGUF_LEAST_VALUE
#undef AQ_GGUF_LEAST_TENSOR
#undef AQ_GGUF_PLAIN
#undef AQ_GGUF_OTHER
#undef AQ_GGUF_TYPE_COUNT
#endif /* ARROWQUANT_NO_STDIO */
