/* safetensors: headers read, refused and written; indexes. */
#include "test.h"

static aq_arena arena;
static char root[512];

/* A file in memory: size, header, `data` zero bytes. Freed with the next one. */
static unsigned char *image;
static size_t image_size;
static void make(const char *header, size_t header_size, size_t data) {
    free(image);
    image_size = 8 + header_size + data;
    image = (unsigned char *)calloc(1, image_size);
    for (unsigned i = 0; i < 8; i++) image[i] = (unsigned char)((uint64_t)header_size >> (8 * i));
    memcpy(image + 8, header, header_size);
}
static aq_status parse(const char *header, size_t data, aq_st_file *out, aq_error *err) {
    make(header, strlen(header), data);
    return aq_st_parse(&arena, image, image_size, "some.safetensors", out, err);
}

TEST(reads_tensors_in_data_order) {
    aq_st_file file;
    const char *value = "x";
    CHECK_STATUS(parse(" {\"__metadata__\":{\"format\":\"pt\",\"a\\u0062\":\"q\\\"\\u00e9\"},"
                       "\"late\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[8,20],"
                       "\"note\":[{\"x\":1.5e3}]},"
                       "\"none\":{\"shape\":[0,9223372036854775808,16],\"dtype\":\"F32\","
                       "\"data_offsets\":[8,8]},"
                       "\"\\u00e4 \\/\":{\"dtype\":\"\\u0049\\u0036\\u0034\",\"shape\":[],"
                       "\"data_offsets\":[0,8]}} \n", 20, &file, NULL), AQ_OK);
    CHECK(file.tensor_count == 3);
    CHECK_STR(file.tensors[0].name, "\xc3\xa4 /");
    CHECK(file.tensors[0].dtype == AQ_DTYPE_I64 && file.tensors[0].rank == 0);
    CHECK(file.tensors[0].shape != NULL && file.tensors[0].offset == file.data_start);
    CHECK_STR(file.tensors[1].name, "none");
    CHECK(file.tensors[1].bytes == 0 && file.tensors[1].shape[1] == (uint64_t)1 << 63);
    CHECK_STR(file.tensors[2].name, "late");
    CHECK(file.tensors[2].rank == 2 && file.tensors[2].shape[1] == 3);
    CHECK(file.tensors[2].offset == file.data_start + 8 && file.tensors[2].bytes == 12);
    CHECK(file.file_size == image_size && file.data_start + 20 == image_size);
    CHECK_STR(file.metadata, "{\"format\":\"pt\",\"a\\u0062\":\"q\\\"\\u00e9\"}");
    CHECK_STATUS(aq_st_metadata_value(&arena, &file, "ab", &value, NULL), AQ_OK);
    CHECK_STR(value, "q\"\xc3\xa9");
    CHECK_STATUS(aq_st_metadata_value(&arena, &file, "none", &value, NULL), AQ_OK);
    CHECK(value == NULL);
    CHECK_STATUS(parse("{}", 0, &file, NULL), AQ_OK);
    CHECK(file.tensor_count == 0 && file.metadata == NULL);
    CHECK_STATUS(parse("{\"__metadata__\":null}", 0, &file, NULL), AQ_OK);
    CHECK(file.metadata == NULL);
}

#define GOOD "\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]"
static const struct {
    const char *header;
    size_t data;
    aq_status status;
    const char *part; /* of the message */
} refused[] = {
    { "", 0, AQ_ERR_CORRUPT, "ends too early" },
    { "[]", 0, AQ_ERR_CORRUPT, "found an array" },
    { "null", 0, AQ_ERR_CORRUPT, "found null" },
    { "{} x", 0, AQ_ERR_CORRUPT, "JSON" },
    { "\xef\xbb\xbf{}", 0, AQ_ERR_CORRUPT, "byte order mark" },
    { "{\"a\":{" GOOD "},}", 2, AQ_ERR_CORRUPT, "JSON" },
    { "{\"a\":{" GOOD "}}", 3, AQ_ERR_CORRUPT, "the file at" },
    { "{\"a\":{" GOOD "}}", 1, AQ_ERR_CORRUPT, "outside the file's 1 data bytes" },
    { "{}", 1, AQ_ERR_CORRUPT, "the file at" },
    { "{\"a\":7}", 0, AQ_ERR_CORRUPT, "an object, found a number" },
    { "{\"a\":[\"U8\",[2],[0,2]]}", 2, AQ_ERR_CORRUPT, "found an array" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2]}}", 2, AQ_ERR_CORRUPT, "no data_offsets" },
    { "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,2]}}", 2, AQ_ERR_CORRUPT, "no shape" },
    { "{\"a\":{\"shape\":[2],\"data_offsets\":[0,2]}}", 2, AQ_ERR_CORRUPT, "no dtype" },
    { "{\"a\":{\"dtype\":\"U8\"," GOOD "}}", 2, AQ_ERR_CORRUPT, "dtype is given twice" },
    { "{\"a\":{\"dtype\":3,\"shape\":[2],\"data_offsets\":[0,2]}}", 2, AQ_ERR_CORRUPT, "a string" },
    { "{\"a\":{\"dtype\":\"u8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, AQ_ERR_UNSUPPORTED,
      "dtype u8 is not read" },
    { "{\"a\":{\"dtype\":\"F4\",\"shape\":[4],\"data_offsets\":[0,2]}}", 2, AQ_ERR_UNSUPPORTED,
      "dtype F4 is not read" },
    { "{\"a\":{\"dtype\":\"C64\",\"shape\":[],\"data_offsets\":[0,8]}}", 8, AQ_ERR_UNSUPPORTED,
      "dtype C64 is not read" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":2,\"data_offsets\":[0,2]}}", 2, AQ_ERR_CORRUPT,
      "shape should be an array" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[-2],\"data_offsets\":[0,2]}}", 2, AQ_ERR_CORRUPT,
      "shape holds -2" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2.0],\"data_offsets\":[0,2]}}", 2, AQ_ERR_CORRUPT,
      "shape holds 2.0" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2e0],\"data_offsets\":[0,2]}}", 2, AQ_ERR_CORRUPT,
      "shape holds 2e0" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[[2]],\"data_offsets\":[0,2]}}", 2, AQ_ERR_CORRUPT,
      "found an array" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[0,18446744073709551616],\"data_offsets\":[0,0]}}", 0,
      AQ_ERR_CORRUPT, "18446744073709551616" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[-0,2]}}", 2, AQ_ERR_CORRUPT, "-0" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2]}}", 2, AQ_ERR_CORRUPT,
      "1 elements, expected 2" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2,2]}}", 2, AQ_ERR_CORRUPT,
      "3 elements, expected 2" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,0]}}", 2, AQ_ERR_CORRUPT,
      "[2, 0] lie outside" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,18446744073709551615]}}", 2,
      AQ_ERR_CORRUPT, "outside" },
    { "{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, AQ_ERR_CORRUPT,
      "make 4 bytes, data_offsets 2" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,0]}}", 0, AQ_ERR_CORRUPT,
      "make 1 bytes" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775808,16,0],\"data_offsets\":[0,0]}}", 0,
      AQ_ERR_CORRUPT, "overflows" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
      AQ_ERR_CORRUPT, "overflows" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, AQ_ERR_CORRUPT,
      "begins at 1, expected 0: there is a hole" },
    { "{\"a\":{" GOOD "},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}", 3,
      AQ_ERR_CORRUPT, "tensor b: its data begins at 1, expected 2: tensors overlap" },
    { "{\"a\":{" GOOD "},\"a\":{" GOOD "}}", 2, AQ_ERR_CORRUPT, "overlap" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
      "\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, AQ_ERR_CORRUPT,
      "tensor a is there twice" },
    { "{\"a\\u0000b\":{" GOOD "}}", 2, AQ_ERR_CORRUPT, "NUL after \"a\"" },
    { "{\"a\xff\":{" GOOD "}}", 2, AQ_ERR_CORRUPT, "UTF-8" },
    { "{\"\\ud800\":{" GOOD "}}", 2, AQ_ERR_CORRUPT, "surrogate" },
    { "{\"a\":{" GOOD ",\"x\":1e999}}", 2, AQ_ERR_CORRUPT, "out of range" },
    { "{\"__metadata__\":[]}", 0, AQ_ERR_CORRUPT, "found an array" },
    { "{\"__metadata__\":{\"a\":1}}", 0, AQ_ERR_CORRUPT, "key a should be a string" },
    { "{\"__metadata__\":{\"a\":null}}", 0, AQ_ERR_CORRUPT, "found null" },
    { "{\"__metadata__\":{\"a\":\"1\",\"b\":\"\",\"a\":\"1\"}}", 0, AQ_ERR_CORRUPT, "twice" },
    { "{\"__metadata__\":{},\"__metadata__\":{}}", 0, AQ_ERR_CORRUPT,
      "__metadata__ is given twice" },
};

TEST(refuses_bad_headers_and_says_why) {
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        aq_st_file file;
        aq_error err;
        memset(&err, 0, sizeof(err));
        aq_status status = parse(refused[i].header, refused[i].data, &file, &err);
        bool fine = status == refused[i].status && strstr(err.message, refused[i].part) &&
                    strstr(err.message, "some.safetensors");
        if (!fine) printf("%s\n  gave %s: %s\n", refused[i].header, aq_status_name(status),
                          status ? err.message : "");
        CHECK(fine);
    }
}

TEST(refuses_bad_sizes) {
    aq_st_file file;
    aq_error err;
    unsigned char eight[8] = { 0 };
    CHECK_STATUS(aq_st_parse(&arena, eight, 7, "f", &file, &err), AQ_ERR_CORRUPT);
    CHECK_STATUS(aq_st_parse(&arena, eight, 8, "f", &file, &err), AQ_ERR_CORRUPT);
    eight[0] = 1;
    CHECK_STATUS(aq_st_parse(&arena, eight, 8, "f", &file, &err), AQ_ERR_CORRUPT);
    CHECK(strstr(err.message, "a header of 1 bytes in a file of 8") != NULL);
    memset(eight, 0xff, 8);
    CHECK_STATUS(aq_st_parse(&arena, eight, 8, "f", &file, &err), AQ_ERR_CORRUPT);
    CHECK(strstr(err.message, "at most 100000000") != NULL);
}

static const char whole[] =
    "{\"__metadata__\":{\"a\":\"b\"},"
    "\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
    "\"y\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[8,9]}}";

TEST(refuses_every_beginning_of_a_file) {
    aq_st_file file;
    CHECK_STATUS(parse(whole, 9, &file, NULL), AQ_OK);
    for (size_t size = 0; size < image_size; size++) {
        unsigned char *part = (unsigned char *)malloc(size ? size : 1); /* exact, for sanitizers */
        memcpy(part, image, size);
        CHECK_STATUS(aq_st_parse(&arena, part, size, "f", &file, NULL), AQ_ERR_CORRUPT);
        free(part);
    }
}

/* An allocator that counts, and fails at a chosen call. */
typedef struct counter {
    size_t calls, fail_at, now, peak;
} counter;
static void *counted(void *user, void *pointer, size_t old_size, size_t new_size) {
    counter *c = (counter *)user;
    if (!new_size) {
        c->now -= old_size;
        free(pointer);
        return NULL;
    }
    if (c->calls++ == c->fail_at) return NULL;
    c->now += new_size - old_size;
    if (c->now > c->peak) c->peak = c->now;
    return realloc(pointer, new_size);
}

TEST(survives_every_failing_allocation) {
    counter c;
    aq_context context;
    aq_st_file file;
    memset(&context, 0, sizeof(context));
    memset(&c, 0, sizeof(c));
    context.allocator.resize = counted;
    context.allocator.user = &c;
    make(whole, strlen(whole), 9);
    aq_status status = AQ_ERR_OUT_OF_MEMORY;
    for (; status != AQ_OK && c.fail_at < 100; c.fail_at++) {
        aq_arena mine;
        c.calls = 0;
        aq_arena_init(&mine, &context);
        status = aq_st_parse(&mine, image, image_size, "f", &file, NULL);
        CHECK(status == AQ_OK || status == AQ_ERR_OUT_OF_MEMORY);
        aq_arena_free(&mine);
        CHECK(c.now == 0);
    }
    CHECK(status == AQ_OK && c.fail_at > 2);
}

/* 200,000 tensors, last ones first: neither quadratic nor hungry. */
TEST(reads_many_tensors_in_little_memory) {
    const size_t count = 200000;
    counter c;
    aq_context context;
    aq_arena mine;
    aq_st_file file;
    aq_builder text;
    aq_builder_init(&text, NULL);
    for (size_t i = count; i > 0; i--)
        aq_append_format(&text,
                         "%s\"t%zu\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}",
                         i == count ? "{" : ",", i - 1, i - 1, i);
    aq_append(&text, "}", 1);
    make(text.data, text.size, count);
    memset(&context, 0, sizeof(context));
    memset(&c, 0, sizeof(c));
    context.allocator.resize = counted;
    context.allocator.user = &c;
    c.fail_at = (size_t)-1;
    aq_arena_init(&mine, &context);
    CHECK_STATUS(aq_st_parse(&mine, image, image_size, "f", &file, NULL), AQ_OK);
    CHECK(file.tensor_count == count);
    CHECK_STR(file.tensors[1].name, "t1");
    CHECK_RANGE(0, (double)c.peak / (double)text.size, 4);
    aq_arena_free(&mine);
    aq_builder_free(&text);
}

/* ---- files */

static void path_of(char *out, const char *name) {
    aq_format(out, 1024, "%s/%s", root, name);
}

static void output(aq_st_output *out, const char *name, aq_dtype dtype, const uint64_t *shape,
                   uint32_t rank, uint64_t begin, uint64_t end) {
    out->name = name;
    out->dtype = dtype;
    out->shape = shape;
    out->rank = rank;
    out->begin = begin;
    out->end = end;
}

TEST(writes_what_it_reads) {
    static const uint64_t a[] = { 3, 0 }, b[] = { 2, 1, 2 };
    char path[1024];
    aq_st_output tensors[4];
    aq_st_file read;
    aq_file file = AQ_FILE_CLOSED;
    const char *metadata = "{\"format\":\"pt\"}", *value = NULL;
    uint64_t exact = 0;
    output(&tensors[0], "a\"\\\n\xc3\xa9", AQ_DTYPE_F64, a, 2, 0, 0);
    output(&tensors[1], "b", AQ_DTYPE_F8_E5M2, b, 3, 0, 4);
    output(&tensors[2], "", AQ_DTYPE_I64, NULL, 0, 4, 12);
    output(&tensors[3], "c\x01\x7f", AQ_DTYPE_BOOL, NULL, 0, 12, 13);
    uint64_t bound = aq_st_header_bound(tensors, 4, strlen(metadata));
    CHECK_STATUS(aq_st_header_size(NULL, tensors, 4, metadata, &exact, NULL), AQ_OK);
    CHECK(bound % 8 == 0 && exact % 8 == 0 && exact <= bound);
    for (int pass = 0; pass < 2; pass++) {
        uint64_t capacity = pass ? exact : bound;
        path_of(path, pass ? "exact.safetensors" : "bound.safetensors");
        CHECK_STATUS(aq_file_create(&file, path, NULL), AQ_OK);
        CHECK_STATUS(aq_st_write_header(NULL, &file, capacity, tensors, 4, metadata, NULL), AQ_OK);
        CHECK_STATUS(aq_file_write(&file, 8 + capacity, "0123456789abc", 13, NULL), AQ_OK);
        CHECK_STATUS(aq_st_write_header(NULL, &file, exact - 8, tensors, 4, metadata, NULL),
                     AQ_ERR_QUANTIZATION);
        CHECK_STATUS(aq_file_close(&file, NULL), AQ_OK);
        CHECK_STATUS(aq_st_read_header(&arena, path, &read, NULL), AQ_OK);
        CHECK(read.tensor_count == 4 && read.data_start == 8 + capacity);
        for (size_t i = 0; i < 4; i++) {
            CHECK_STR(read.tensors[i].name, tensors[i].name);
            CHECK(read.tensors[i].dtype == tensors[i].dtype);
            CHECK(read.tensors[i].rank == tensors[i].rank);
            CHECK(read.tensors[i].offset - read.data_start == tensors[i].begin);
            CHECK(read.tensors[i].bytes == tensors[i].end - tensors[i].begin);
        }
        CHECK_STATUS(aq_st_metadata_value(&arena, &read, "format", &value, NULL), AQ_OK);
        CHECK_STR(value, "pt");
    }
}

TEST(writes_only_what_can_be_read) {
    static const uint64_t two[] = { 2 };
    char path[1024];
    aq_st_output tensors[2];
    aq_file file = AQ_FILE_CLOSED;
    path_of(path, "bad.safetensors");
    CHECK_STATUS(aq_file_create(&file, path, NULL), AQ_OK);
    output(&tensors[0], "a", AQ_DTYPE_F32, two, 1, 0, 8);
    output(&tensors[1], "b", AQ_DTYPE_U8, two, 1, 9, 11);
    CHECK_STATUS(aq_st_write_header(NULL, &file, 800, tensors, 2, NULL, NULL), AQ_ERR_ARGUMENT);
    output(&tensors[1], "b", AQ_DTYPE_U8, two, 1, 9, 10);
    CHECK_STATUS(aq_st_write_header(NULL, &file, 800, tensors, 2, NULL, NULL), AQ_ERR_ARGUMENT);
    output(&tensors[1], "b", AQ_DTYPE_U8, two, 1, 8, 11);
    CHECK_STATUS(aq_st_write_header(NULL, &file, 800, tensors, 2, NULL, NULL), AQ_ERR_ARGUMENT);
    output(&tensors[1], "b", AQ_DTYPE_U8, two, 1, 8, 10);
    CHECK_STATUS(aq_st_write_header(NULL, &file, 800, tensors, 2, NULL, NULL), AQ_OK);
    CHECK_STATUS(aq_st_write_header(NULL, &file, 100000008, tensors, 2, NULL, NULL),
                 AQ_ERR_QUANTIZATION);
    CHECK_STATUS(aq_file_close(&file, NULL), AQ_OK);
}

TEST(no_header_is_longer_than_its_bound) {
    static const uint64_t most = 18446744073709551615u;
    const uint64_t shape[6] = { 0, most, most, most, most, most };
    char names[3][300];
    uint64_t state = 9, size = 0;
    for (int round = 0; round < 200; round++) {
        aq_st_output tensors[3];
        for (size_t i = 0; i < 3; i++) {
            size_t length = (size_t)(test_random(&state) % 299);
            for (size_t c = 0; c < length; c++)
                names[i][c] = (char)(1 + test_random(&state) % (round % 2 ? 127 : 31));
            names[i][length] = 0;
            output(&tensors[i], names[i], AQ_DTYPE_F8_E5M2, shape, 6, 0, 0);
        }
        CHECK_STATUS(aq_st_header_size(NULL, tensors, 3, NULL, &size, NULL), AQ_OK);
        CHECK(size <= aq_st_header_bound(tensors, 3, 0));
    }
}

TEST(ranks_put_large_elements_first) {
    CHECK(aq_st_write_rank(AQ_DTYPE_I64, false) < aq_st_write_rank(AQ_DTYPE_F32, false));
    CHECK(aq_st_write_rank(AQ_DTYPE_F32, false) < aq_st_write_rank(AQ_DTYPE_BF16, true));
    CHECK(aq_st_write_rank(AQ_DTYPE_BF16, true) < aq_st_write_rank(AQ_DTYPE_BF16, false));
    CHECK(aq_st_write_rank(AQ_DTYPE_F16, false) < aq_st_write_rank(AQ_DTYPE_BOOL, false));
}

/* ---- indexes */

static aq_status index_of(const char *text, aq_st_index *index, aq_error *err) {
    char path[1024];
    path_of(path, "m.safetensors.index.json");
    CHECK_STATUS(aq_write_text(path, text, strlen(text), NULL), AQ_OK);
    return aq_st_read_index(&arena, path, index, err);
}

TEST(reads_an_index) {
    aq_st_index index;
    CHECK_STATUS(index_of("{\"other\":[1,{}],\"metadata\":{\"total_size\": 5},\"weight_map\":{"
                          "\"b\":\"2.safetensors\",\"c\":\"1.safetensors\","
                          "\"a.b\":\"2.safetensors\","
                          "\"a_b\":\"\\u0031.safetensors\",\"A_b\":\"3.safetensors\"}}", &index,
                          NULL), AQ_OK);
    CHECK(index.entry_count == 5 && index.shard_count == 3);
    CHECK_STR(index.shards[0], "2.safetensors");
    CHECK_STR(index.shards[1], "1.safetensors");
    CHECK_STR(index.shards[2], "3.safetensors");
    CHECK_STR(index.entries[0].tensor, "A_b");
    CHECK(index.entries[0].shard == 2);
    CHECK_STR(index.entries[1].tensor, "a.b");
    CHECK(index.entries[1].shard == 0);
    CHECK_STR(index.entries[2].tensor, "a_b");
    CHECK(index.entries[2].shard == 1);
    CHECK(index.entries[3].shard == 0 && index.entries[4].shard == 1);
    CHECK_STR(index.metadata, "{\"total_size\": 5}");
    CHECK_STATUS(index_of("{\"weight_map\":{}}", &index, NULL), AQ_OK);
    CHECK(index.entry_count == 0 && index.shard_count == 0 && index.metadata == NULL);
}

TEST(refuses_bad_indexes) {
    static const char *const maps[] = {
        "{\"weight_map\":[]}", "{}", "[]", "{\"weight_map\":{\"a\":1}}",
        "{\"weight_map\":{\"a\":null}}", "{\"weight_map\":{\"a\":\"\"}}",
        "{\"weight_map\":{\"a\":\"x/y.safetensors\"}}", "{\"weight_map\":{\"a\":\"..\"}}",
        "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "{\"weight_map\":{\"a\":\"..\\\\x\"}}",
        "{\"weight_map\":{\"a\":\"C:x\"}}", "{\"weight_map\":{\"a\":\"x\\u0000y\"}}",
        "{\"weight_map\":{\"a\\u0000\":\"x\"}}", "{\"weight_map\":{\"a\":\"x\",\"\\u0061\":\"x\"}}",
        "{\"weight_map\":{},\"weight_map\":{}}", "{\"metadata\":3,\"weight_map\":{}}",
        "{\"weight_map\":{}} x", "{\"weight_map\":{\"a\":\"x\"", "",
    };
    for (size_t i = 0; i < sizeof(maps) / sizeof(maps[0]); i++) {
        aq_st_index index;
        aq_error err;
        aq_status status = index_of(maps[i], &index, &err);
        if (status != AQ_ERR_METADATA) printf("%s\n", maps[i]);
        CHECK(status == AQ_ERR_METADATA && strstr(err.message, "index.json"));
    }
}

TEST(writes_an_index) {
    aq_st_index_output entries[3];
    aq_st_index index;
    char path[1024];
    entries[0].tensor = "b\"";
    entries[0].shard = "two";
    entries[1].tensor = "a";
    entries[1].shard = "one";
    entries[2].tensor = "c";
    entries[2].shard = "two";
    path_of(path, "w.json");
    CHECK_STATUS(aq_st_write_index(NULL, path, entries, 3, 18446744073709551615u,
                                   "{\"total_size\":1, \"x\" : [1, 2]}", NULL), AQ_OK);
    CHECK_STATUS(aq_st_read_index(&arena, path, &index, NULL), AQ_OK);
    CHECK(index.entry_count == 3 && index.shard_count == 2);
    CHECK_STR(index.entries[1].tensor, "b\"");
    CHECK_STR(index.shards[index.entries[1].shard], "two");
    char *text;
    size_t size;
    CHECK_STATUS(aq_read_text(&arena, path, 1000, &text, &size, NULL), AQ_OK);
    CHECK(strstr(text, "\"a\": \"one\",\n    \"b\\\"\": \"two\",\n    \"c\"") != NULL);
    CHECK(strstr(index.metadata, "\"total_size\": 18446744073709551615") != NULL);
    CHECK(strstr(index.metadata, "\"x\": [1, 2]") != NULL);
    entries[2].tensor = "a";
    CHECK_STATUS(aq_st_write_index(NULL, path, entries, 3, 1, NULL, NULL), AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_st_write_index(NULL, path, NULL, 0, 0, NULL, NULL), AQ_OK);
    CHECK_STATUS(aq_st_read_index(&arena, path, &index, NULL), AQ_OK);
}

TEST(names_a_file_that_is_not_there) {
    aq_st_file file;
    aq_st_index index;
    aq_error err;
    char path[1024];
    path_of(path, "nowhere.safetensors");
    CHECK_STATUS(aq_st_read_header(&arena, path, &file, &err), AQ_ERR_IO);
    CHECK(strstr(err.message, "nowhere.safetensors") != NULL);
    CHECK_STATUS(aq_st_read_index(&arena, path, &index, NULL), AQ_ERR_IO);
}

int main(void) {
    const char *folder = getenv("TMPDIR");
    aq_format(root, sizeof(root), "%s/aq-safetensors-%llu", folder && *folder ? folder : "/tmp",
              (unsigned long long)aq_process_id());
    if (aq_make_folder(root, NULL) != AQ_OK) return 1;
    aq_arena_init(&arena, NULL);
    RUN(reads_tensors_in_data_order);
    RUN(refuses_bad_headers_and_says_why);
    RUN(refuses_bad_sizes);
    RUN(refuses_every_beginning_of_a_file);
    RUN(survives_every_failing_allocation);
    RUN(reads_many_tensors_in_little_memory);
    RUN(writes_what_it_reads);
    RUN(writes_only_what_can_be_read);
    RUN(no_header_is_longer_than_its_bound);
    RUN(ranks_put_large_elements_first);
    RUN(reads_an_index);
    RUN(refuses_bad_indexes);
    RUN(writes_an_index);
    RUN(names_a_file_that_is_not_there);
    aq_arena_free(&arena);
    free(image);
    aq_remove_tree(NULL, root, NULL);
    return test_end();
}
