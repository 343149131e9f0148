/* The native metadata: written, bounded, read back, refused; and editing config.json. */
#include "test.h"

static aq_arena arena;

/* A file with the given tensors' names and dtypes (shapes as the test needs), metadata as text. */
static void fake_file(aq_st_file *file, const char *metadata, aq_st_tensor *tensors, size_t count) {
    memset(file, 0, sizeof(*file));
    file->path = "dir/some.safetensors";
    file->metadata = metadata;
    file->metadata_size = metadata ? strlen(metadata) : 0;
    file->tensors = tensors;
    file->tensor_count = count;
}

static void describe(aq_native_tensor *tensor, const char *name, aq_code code, aq_param_type params,
                     uint32_t bits, uint32_t group, const uint64_t *shape, uint32_t rank) {
    memset(tensor, 0, sizeof(*tensor));
    tensor->name = name;
    tensor->code = aq_code_name(code);
    tensor->known = true;
    tensor->spec.code = code;
    tensor->spec.params = params;
    tensor->spec.bits = bits;
    tensor->spec.group_size = group;
    tensor->dtype = AQ_DTYPE_BF16;
    tensor->shape = shape;
    tensor->rank = rank;
    tensor->method = "ptq";
    tensor->cosine_similarity = 0.1 + 0.2;
    tensor->sqnr_db = -1e-300;
}

static const uint64_t conv[] = { 3, 5, 7, 18446744073709551615u };

TEST(reads_what_it_writes) {
    aq_native_tensor tensors[3];
    aq_native_checksum checksums[2];
    aq_native native, read;
    aq_st_file file;
    char *text;
    const char *value;
    size_t size;
    bool present;
    describe(&tensors[0], "a\"\\\n\x01\xc3\xa9", AQ_CODE_AFFINE, AQ_PARAM_Q8, 2, 256, conv, 4);
    describe(&tensors[1], "", AQ_CODE_SYMMETRIC, AQ_PARAM_F32, 8, 32, conv, 0);
    describe(&tensors[2], "b", AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 64, conv, 1);
    tensors[1].sqnr_db = (double)INFINITY;
    checksums[0].name = "a\"\\\n\x01\xc3\xa9.aq_codes";
    checksums[0].crc32 = 0xdeadbeefu;
    checksums[1].name = "b";
    checksums[1].crc32 = 7;
    memset(&native, 0, sizeof(native));
    native.tensors = tensors;
    native.tensor_count = 3;
    native.checksums = checksums;
    native.checksum_count = 2;
    const char *original = "{ \"format\" : \"p\\u0074\", "
                           "\"arrow\\u0071uant\":\"old\",\"x\":\"\\\"\" }";
    CHECK_STATUS(aq_native_write(NULL, &native, original, &text, &size, NULL), AQ_OK);
    CHECK(size == strlen(text) && size <= aq_native_bound(&native, original));
    fake_file(&file, text, NULL, 0);
    CHECK_STATUS(aq_st_metadata_value(&arena, &file, "format", &value, NULL), AQ_OK);
    CHECK_STR(value, "pt");
    CHECK_STATUS(aq_st_metadata_value(&arena, &file, "x", &value, NULL), AQ_OK);
    CHECK_STR(value, "\"");
    CHECK_STATUS(aq_native_read(&arena, &file, &present, &read, NULL), AQ_OK);
    CHECK(present && read.tensor_count == 3 && read.checksum_count == 2);
    for (size_t i = 0; i < 3 && read.tensor_count == 3; i++) {
        const aq_native_tensor *a = &tensors[i], *b = &read.tensors[i];
        CHECK_STR(b->name, a->name);
        CHECK_STR(b->code, a->code);
        CHECK_STR(b->method, a->method);
        CHECK(b->known && memcmp(&a->spec, &b->spec, sizeof(a->spec)) == 0);
        CHECK(a->dtype == b->dtype && a->rank == b->rank);
        CHECK(a->rank == 0 || memcmp(a->shape, b->shape, a->rank * sizeof(uint64_t)) == 0);
        CHECK(a->cosine_similarity == b->cosine_similarity && a->sqnr_db == b->sqnr_db);
    }
    CHECK_STR(read.checksums[0].name, checksums[0].name);
    CHECK(read.checksums[0].crc32 == 0xdeadbeefu && read.checksums[1].crc32 == 7);
    aq_free(NULL, text, size + 1);
    CHECK_STATUS(aq_native_remove(NULL, file.metadata = original, &text, &size, NULL), AQ_OK);
    CHECK_STR(text, "{\"format\":\"p\\u0074\",\"x\":\"\\\"\"}");
    aq_free(NULL, text, size + 1);
    CHECK_STATUS(aq_native_remove(NULL, "{\"arrowquant\":\"\"}", &text, &size, NULL), AQ_OK);
    CHECK(text == NULL);
    CHECK_STATUS(aq_native_remove(NULL, NULL, &text, &size, NULL), AQ_OK);
    CHECK(text == NULL);
}

TEST(nothing_is_longer_than_the_bound) {
    uint64_t state = 5;
    for (int round = 0; round < 300; round++) {
        aq_native_tensor tensors[4];
        aq_native_checksum checksums[4];
        aq_native native;
        char names[4][40], *text;
        size_t size;
        memset(&native, 0, sizeof(native));
        for (size_t i = 0; i < 4; i++) {
            size_t length = (size_t)(test_random(&state) % 39);
            for (size_t c = 0; c < length; c++)
                names[i][c] = (char)(1 + test_random(&state) % (round % 2 ? 127 : 31));
            names[i][length] = 0;
            describe(&tensors[i], names[i], AQ_CODE_SYMMETRIC, AQ_PARAM_F16, 4294967295u,
                     4294967295u, conv + 3, 1);
            tensors[i].dtype = AQ_DTYPE_F8_E4M3;
            tensors[i].cosine_similarity = -2.2250738585072014e-308;
            tensors[i].method = names[3 - i];
            checksums[i].name = names[i];
            checksums[i].crc32 = (uint32_t)test_random(&state);
        }
        native.tensors = tensors;
        native.checksums = checksums;
        native.tensor_count = (size_t)(test_random(&state) % 5);
        native.checksum_count = (size_t)(test_random(&state) % 5);
        const char *original = round % 3 ? NULL : "{\"a\":\"b\"}";
        CHECK_STATUS(aq_native_write(NULL, &native, original, &text, &size, NULL), AQ_OK);
        CHECK(size <= aq_native_bound(&native, original));
        aq_free(NULL, text, size + 1);
    }
}

/* The metadata whose "arrowquant" is `json`, read. */
static aq_status read_json(const char *json, bool *present, aq_native *out, aq_error *err) {
    aq_st_file file;
    aq_builder text;
    aq_builder_init(&text, NULL);
    aq_append_string(&text, "{\"arrowquant\":");
    aq_append_json_string(&text, json, strlen(json));
    aq_append(&text, "}", 1);
    fake_file(&file, aq_arena_copy(&arena, text.data, text.size), NULL, 0);
    aq_builder_free(&text);
    return aq_native_read(&arena, &file, present, out, err);
}

#define W(more) "{\"version\":1,\"tensors\":{\"w\":{" more "}}}"
#define FULL "\"code\":\"affine\",\"bits\":4,\"group_size\":64,\"params\":\"F16\"," \
             "\"dtype\":\"F32\",\"shape\":[4,5],\"method\":\"ptq\",\"cosine\":1,\"sqnr_db\":null"

#define ENTRY(code, bits, group, params, dtype, shape)                                             \
    W("\"code\":" code ",\"bits\":" bits ",\"group_size\":" group ",\"params\":" params           \
      ",\"dtype\":" dtype ",\"shape\":" shape)

TEST(ignores_what_it_does_not_know) {
    aq_native native;
    aq_st_file file;
    bool present = true;
    fake_file(&file, NULL, NULL, 0);
    CHECK_STATUS(aq_native_read(&arena, &file, &present, &native, NULL), AQ_OK);
    CHECK(!present && native.tensor_count == 0);
    fake_file(&file, "{\"format\":\"pt\"}", NULL, 0);
    CHECK_STATUS(aq_native_read(&arena, &file, &present, &native, NULL), AQ_OK);
    CHECK(!present);
    CHECK_STATUS(read_json("{\"version\":1,\"new\":[{}],\"tensors\":{\"w\":{\"new\":{\"a\":[1]},"
                           FULL "}}}", &present, &native, NULL), AQ_OK);
    CHECK(present && native.tensor_count == 1 && native.tensors[0].known);
    CHECK(native.tensors[0].sqnr_db > 1e308 && native.tensors[0].spec.bits == 4);
    CHECK_STATUS(read_json("{\"version\":1,\"tensors\":{}}", &present, &native, NULL), AQ_OK);
    CHECK(present && native.tensor_count == 0);
}

TEST(an_unknown_code_is_named_when_it_is_needed) {
    aq_native native;
    aq_st_file file;
    aq_quant_layout layout;
    const aq_st_tensor *parts[3];
    bool present;
    aq_error err;
    CHECK_STATUS(read_json(W("\"code\":\"lattice\",\"bits\":1.5,\"params\":[\"x\"],"
                             "\"dtype\":\"F32\",\"shape\":[4,5]"), &present, &native, NULL), AQ_OK);
    CHECK(!native.tensors[0].known);
    CHECK_STR(native.tensors[0].code, "lattice");
    CHECK_STR(native.tensors[0].method, "");
    fake_file(&file, NULL, NULL, 0);
    CHECK_STATUS(aq_native_parts(&native.tensors[0], &file, NULL, &layout, parts, &err),
                 AQ_ERR_UNSUPPORTED);
    CHECK(strstr(err.message, "\"lattice\"") && strstr(err.message, "tensor w") &&
          strstr(err.message, "some.safetensors"));
}

TEST(refuses_malformed_metadata) {
    static const char *const texts[] = {
        "", "[]", "3", "{}", "{\"version\":1}", "{\"tensors\":{}}",
        "{\"version\":2,\"tensors\":{}}",
        "{\"version\":0,\"tensors\":{}}", "{\"version\":\"1\",\"tensors\":{}}",
        "{\"version\":1.0,\"tensors\":{}}", "{\"version\":1,\"tensors\":[]}",
        "{\"version\":1,\"version\":1,\"tensors\":{}}", "{\"version\":1,\"tensors\":{\"w\":1}}",
        "{\"version\":1,\"tensors\":{},\"crc32\":[]}", "{\"version\":1,\"tensors\":{}} x",
        "{\"version\":1,\"tensors\":{},\"crc32\":{\"a\":1}}",
        "{\"version\":1,\"tensors\":{},\"crc32\":{\"a\":\"1234567\"}}",
        "{\"version\":1,\"tensors\":{},\"crc32\":{\"a\":\"1234567G\"}}",
        "{\"version\":1,\"tensors\":{},\"crc32\":{\"a\":\"DEADBEEF\"}}",
        "{\"version\":1,\"tensors\":{},\"crc32\":{\"a\":\"00000000\",\"a\":\"00000000\"}}",
        "{\"version\":1,\"tensors\":{\"w\":{" FULL "},\"w\":{" FULL "}}}",
        "{\"version\":1,\"tensors\":{\"w\\u0000\":{" FULL "}}}",
        W(""), W(FULL ",\"bits\":4"), W("\"code\":\"affine\",\"dtype\":\"F32\",\"shape\":[4,5]"),
        ENTRY("\"affine\"", "3", "64", "\"F16\"", "\"F32\"", "[4]"),
        ENTRY("\"affine\"", "4", "63", "\"F16\"", "\"F32\"", "[4]"),
        ENTRY("\"affine\"", "4", "64", "\"F64\"", "\"F32\"", "[4]"),
        ENTRY("\"affine\"", "\"4\"", "64", "\"F16\"", "\"F32\"", "[4]"),
        ENTRY("\"affine\"", "4", "64", "\"F16\"", "\"F33\"", "[4]"),
        ENTRY("\"affine\"", "4", "64", "\"F16\"", "\"F32\"", "4"),
        ENTRY("\"affine\"", "4", "64", "\"F16\"", "\"F32\"", "[-4]"),
        ENTRY("7", "4", "64", "\"F16\"", "\"F32\"", "[4]"),
        W(FULL ",\"method\":1"), W("\"cosine\":\"1\"," FULL),
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        aq_native native;
        aq_error err;
        bool present;
        aq_status status = read_json(texts[i], &present, &native, &err);
        if (status != AQ_ERR_METADATA) printf("%s: %s\n", texts[i], aq_status_name(status));
        CHECK(status == AQ_ERR_METADATA && strstr(err.message, "some.safetensors"));
    }
}

/* ---- parts */

static aq_st_tensor parts_of[3];
static uint64_t part_shape[3][3];

static void part(size_t i, const char *name, aq_dtype dtype, uint32_t rank, uint64_t a, uint64_t b,
                 uint64_t c) {
    memset(&parts_of[i], 0, sizeof(parts_of[i]));
    parts_of[i].name = name;
    parts_of[i].dtype = dtype;
    parts_of[i].rank = rank;
    parts_of[i].shape = part_shape[i];
    part_shape[i][0] = a;
    part_shape[i][1] = b;
    part_shape[i][2] = c;
}
static aq_status find(const aq_native_tensor *tensor, size_t count, aq_quant_layout *layout,
                      const aq_st_tensor *parts[3], aq_error *err) {
    aq_st_file file;
    fake_file(&file, NULL, parts_of, count);
    const aq_st_tensor **by_name = aq_st_sort_by_name(&arena, &file);
    return aq_native_parts(tensor, &file, by_name, layout, parts, err);
}

TEST(finds_and_checks_the_parts) {
    static const uint64_t shape[] = { 6, 10, 7 };
    aq_native_tensor tensor;
    aq_quant_layout layout;
    const aq_st_tensor *parts[3];
    aq_error err;
    describe(&tensor, "x", AQ_CODE_AFFINE, AQ_PARAM_Q8, 4, 32, shape, 3);
    part(0, "x.aq_params", AQ_DTYPE_U8, 3, 6, 3, 2);
    part(1, "x.aq_codes", AQ_DTYPE_I32, 2, 6, 9, 0);
    part(2, "x.aq_row_params", AQ_DTYPE_F16, 2, 6, 2, 0);
    CHECK_STATUS(find(&tensor, 3, &layout, parts, NULL), AQ_OK);
    CHECK(parts[0] == &parts_of[1] && parts[1] == &parts_of[0] && parts[2] == &parts_of[2]);
    CHECK(layout.rows == 6 && layout.cols == 70 && layout.groups == 3);
    CHECK_STATUS(find(&tensor, 2, &layout, parts, &err), AQ_ERR_CORRUPT);
    CHECK(strstr(err.message, "x.aq_row_params is missing") != NULL);
    part_shape[1][1] = 8;
    CHECK_STATUS(find(&tensor, 3, &layout, parts, &err), AQ_ERR_CORRUPT);
    CHECK_STR(err.tensor, "x");
    part_shape[1][1] = 9;
    parts_of[0].dtype = AQ_DTYPE_I8;
    CHECK_STATUS(find(&tensor, 3, &layout, parts, NULL), AQ_ERR_CORRUPT);
    tensor.spec.code = AQ_CODE_SYMMETRIC;
    part_shape[0][2] = part_shape[2][1] = 1;
    CHECK_STATUS(find(&tensor, 3, &layout, parts, NULL), AQ_OK);
    tensor.spec.params = AQ_PARAM_F32;
    parts_of[0].dtype = AQ_DTYPE_F32;
    CHECK_STATUS(find(&tensor, 3, &layout, parts, NULL), AQ_OK);
    CHECK(parts[2] == NULL);
    parts_of[0].rank = 2;
    CHECK_STATUS(find(&tensor, 3, &layout, parts, NULL), AQ_ERR_CORRUPT);
    tensor.shape = conv;
    tensor.rank = 4;
    CHECK_STATUS(find(&tensor, 3, &layout, parts, &err), AQ_ERR_METADATA);
    CHECK(strstr(err.message, "overflows") != NULL);
}

TEST(names_that_nearly_agree_are_told_apart) {
    aq_st_file file;
    part(0, "a.b", AQ_DTYPE_U8, 0, 0, 0, 0);
    part(1, "A.b", AQ_DTYPE_U8, 0, 0, 0, 0);
    part(2, "a_b", AQ_DTYPE_U8, 0, 0, 0, 0);
    fake_file(&file, NULL, parts_of, 3);
    const aq_st_tensor **by_name = aq_st_sort_by_name(&arena, &file);
    for (size_t i = 0; i < 3; i++) CHECK(aq_st_find(by_name, 3, parts_of[i].name) == &parts_of[i]);
    CHECK(aq_st_find(by_name, 3, "a") == NULL && aq_st_find(by_name, 3, "a.bc") == NULL);
    CHECK(aq_st_find(by_name, 0, "a") == NULL);
}

/* ---- config.json */

static const char *edited(const char *text, const char *value) {
    char *out = NULL;
    size_t size = 0;
    aq_status status =
        value ? aq_config_json_set(&arena, text, strlen(text), "c", "q", value, &out, &size, NULL)
              : aq_config_json_remove(&arena, text, strlen(text), "c", "q", &out, &size, NULL);
    CHECK_STATUS(status, AQ_OK);
    CHECK(out && strlen(out) == size);
    return out;
}

TEST(edits_one_member_of_a_config) {
    CHECK_STR(edited("{}", "7"), "{\n  \"q\": 7\n}");
    CHECK_STR(edited(" { \n } ", "7"), " {\n  \"q\": 7\n} ");
    CHECK_STR(edited("{\r\n    \"a\": [1, {}]\r\n}\r\n", "{\"x\": 1}"),
              "{\r\n    \"a\": [1, {}],\r\n    \"q\": {\"x\": 1}\r\n}\r\n");
    CHECK_STR(edited("{\"a\":null,\"b\":\"}\"}", "7"), "{\"a\":null,\"b\":\"}\",\"q\": 7}");
    CHECK_STR(edited("{\"q\" : {\"q\": [1]} , \"b\":true}", "7"), "{\"q\" : 7 , \"b\":true}");
    CHECK_STR(edited("{\"a\":{\"q\":1}}", "7"), "{\"a\":{\"q\":1},\"q\": 7}");
    CHECK_STR(edited("{\"b\":1,\"\\u0071\":false}", "7"), "{\"b\":1,\"\\u0071\":7}");
    CHECK_STR(edited("{ \"q\" : 1 }", NULL), "{}");
    CHECK_STR(edited("{\n  \"q\": 1,\n  \"b\": 2\n}", NULL), "{\n  \"b\": 2\n}");
    CHECK_STR(edited("{\n  \"a\": 1,\n  \"q\": [],\n  \"b\": 2\n}", NULL),
              "{\n  \"a\": 1,\n  \"b\": 2\n}");
    CHECK_STR(edited("{\n  \"a\": 1,\n  \"q\": \"x\"\n}", NULL), "{\n  \"a\": 1\n}");
    CHECK_STR(edited("{\"a\":{\"q\":1}}", NULL), "{\"a\":{\"q\":1}}");
    const char *before = "{\n  \"a\": 1.50,\n  \"b\": \"\\u00e9\"\n}\n";
    CHECK_STR(edited(edited(before, "{\"quant_method\": \"arrowquant\"}"), NULL), before);
}

TEST(refuses_a_config_that_is_no_object) {
    static const char *const texts[] = { "",      "[]",    "{", "{\"a\":1,}",
                                         "{} {}", "{\"q\":1,\"q\":2}" };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        char *out;
        size_t size;
        aq_error err;
        CHECK_STATUS(aq_config_json_set(&arena, texts[i], strlen(texts[i]), "x/config.json", "q",
                                        "1", &out, &size, &err), AQ_ERR_METADATA);
        CHECK(strstr(err.message, "x/config.json") != NULL);
    }
}

int main(void) {
    aq_arena_init(&arena, NULL);
    RUN(reads_what_it_writes);
    RUN(nothing_is_longer_than_the_bound);
    RUN(ignores_what_it_does_not_know);
    RUN(an_unknown_code_is_named_when_it_is_needed);
    RUN(refuses_malformed_metadata);
    RUN(finds_and_checks_the_parts);
    RUN(names_that_nearly_agree_are_told_apart);
    RUN(edits_one_member_of_a_config);
    RUN(refuses_a_config_that_is_no_object);
    aq_arena_free(&arena);
    return test_end();
}
