/* The native format. An input that begins with '{' is our object of __metadata__, put into a file
 * with the parts of two tensors; anything else is a whole file. Of what is good, every 32nd is opened
 * from a file, verified and dequantized.
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_native.c \
 *         $(find src -name '*.c') -o build/fuzz/native -lm -lpthread */
#include "fuzz.h"

/* The parts of "w" as affine INT4 [4, 40], of "v" as symmetric INT8 with 8-bit parameters [2, 64]. */
static const char parts[] =
    "},\"w.aq_codes\":{\"dtype\":\"I32\",\"shape\":[4,5],\"data_offsets\":[0,80]}"
    ",\"w.aq_params\":{\"dtype\":\"F16\",\"shape\":[4,2,2],\"data_offsets\":[80,112]}"
    ",\"v.aq_codes\":{\"dtype\":\"I32\",\"shape\":[2,16],\"data_offsets\":[112,240]}"
    ",\"v.aq_params\":{\"dtype\":\"I8\",\"shape\":[2,2,1],\"data_offsets\":[240,244]}"
    ",\"v.aq_row_params\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[244,248]}"
    ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[248,256]}}";
#define PARTS_DATA 256

/* `begin`, then our object as a JSON string, then `end`. */
static char *join(const char *begin, const char *object, size_t object_size, const char *end,
                  size_t *size) {
    aq_builder text;
    char *out = NULL;
    aq_builder_init(&text, NULL);
    aq_append_string(&text, begin);
    aq_append_json_string(&text, object, object_size);
    aq_append_string(&text, end);
    FUZZ_CHECK(aq_builder_finish(&text, &out, size, NULL) == AQ_OK);
    return out;
}

/* The whole file with the object in its metadata. */
static char *image_of(const char *object, size_t object_size, size_t *size) {
    size_t header = 0;
    char *text = join("{\"__metadata__\":{\"arrowquant\":", object, object_size, parts, &header);
    char *image = (char *)calloc(8 + header + PARTS_DATA, 1);
    FUZZ_CHECK(image != NULL);
    for (unsigned i = 0; i < 8; i++) image[i] = (char)((uint64_t)header >> (8 * i) & 0xFF);
    memcpy(image + 8, text, header);
    free(text);
    *size = 8 + header + PARTS_DATA;
    return image;
}

/* The same without reading the parts again each time. */
static const aq_st_file *file_of_parts(void) {
    static aq_st_file file;
    static aq_arena arena;
    aq_error err;
    size_t size = 0;
    if (file.path) return &file;
    char *image = image_of("", 0, &size);
    aq_arena_init(&arena, NULL);
    FUZZ_CHECK(aq_st_parse(&arena, image, size, "fuzz.safetensors", &file, &err) == AQ_OK);
    free(image);
    return &file;
}

/* From a file, as a user does it; only what has passed the checks in memory comes here. */
static void open_it(aq_context *context, const char *data, size_t size) {
    char path[64];
    aq_error err;
    aq_model *model = NULL;
    float row[4096];
    aq_format(path, sizeof(path), "/dev/shm/aq-fuzz-%llu.safetensors",
              (unsigned long long)aq_process_id());
    FILE *file = fopen(path, "wb");
    FUZZ_CHECK(file && fwrite(data, 1, size, file) == size && fclose(file) == 0);
    aq_status status = aq_model_open(context, path, &model, &err);
    fuzz_check_error(status, &err, ".safetensors");
    for (size_t i = 0; status == AQ_OK && i < model->tensor_count; i++) {
        const aq_tensor *tensor = &model->tensors[i];
        if (!tensor->rows || !tensor->cols || tensor->cols > 4096) continue;
        aq_tensor_dequantize(context, tensor, tensor->rows - 1, 1, AQ_DTYPE_F32, row, NULL);
    }
    if (status == AQ_OK) (void)aq_model_verify(context, model, NULL, NULL, NULL, &err);
    aq_model_close(model);
    unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static aq_context *plain;
    aq_context context;
    fuzz_memory memory;
    aq_error err;
    aq_arena arena;
    aq_st_file file;
    aq_native native;
    bool present = false;
    if (!plain) {
        FUZZ_CHECK(aq_context_create(AQ_ISA_AUTO, NULL, &plain, NULL) == AQ_OK);
        plain->num_threads = 1;
    }
    context = *plain;
    memset(&memory, 0, sizeof(memory));
    context.allocator.resize = fuzz_resize;
    context.allocator.user = &memory;
    bool is_object = size && data[0] == '{';
    size_t input_size = size;
    char *metadata = NULL;
    aq_status status = AQ_OK;
    aq_arena_init(&arena, &context);
    if (is_object) {
        file = *file_of_parts();
        metadata = join("{\"arrowquant\":", (const char *)data, size, "}", &input_size);
        file.metadata = metadata;
        file.metadata_size = input_size;
    } else {
        status = aq_st_parse(&arena, data, size, "fuzz.safetensors", &file, &err);
    }
    if (status == AQ_OK) status = aq_native_read(&arena, &file, &present, &native, &err);
    if (status == AQ_OK && present) {
        const aq_st_tensor **by_name = aq_st_sort_by_name(&arena, &file);
        for (size_t i = 0; status == AQ_OK && i < native.tensor_count; i++) {
            const aq_st_tensor *found[3];
            aq_quant_layout layout;
            status = aq_native_parts(&native.tensors[i], &file, by_name, &layout, found, &err);
        }
    }
    fuzz_check_error(status, &err, "fuzz.safetensors");
    uint32_t mix = 0; /* chooses by content */
    for (size_t i = 0; i < size; i++) mix = mix * 31 + data[i];
    bool good = status == AQ_OK && present && native.tensor_count && mix % 32 == 0;
    aq_arena_free(&arena);
    free(metadata);
    fuzz_check_memory(&memory, input_size);
    if (good) {
        char *image = is_object ? image_of((const char *)data, size, &input_size) : NULL;
        open_it(&context, image ? image : (const char *)data, input_size);
        free(image);
    }
    FUZZ_CHECK(memory.now == 0);
    return 0;
}
