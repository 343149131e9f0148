/* The native format. An input that begins with '{' is our object of __metadata__, put into a file
 * with the parts of two tensors; anything else is a whole file. Of what is good, every eighth size is
 * opened from a file, verified and dequantized.
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_native.c \
 *         $(find src -name '*.c') -o build/fuzz/native -lm -lpthread */
#include "fuzz.h"

/* The parts of "w" as affine INT4 [4, 40], of "v" as symmetric INT8 with 8-bit parameters [2, 64]. */
static const char parts[] =
    ",\"w.aq_codes\":{\"dtype\":\"I32\",\"shape\":[4,5],\"data_offsets\":[0,80]}"
    ",\"w.aq_params\":{\"dtype\":\"F16\",\"shape\":[4,2,2],\"data_offsets\":[80,112]}"
    ",\"v.aq_codes\":{\"dtype\":\"I32\",\"shape\":[2,16],\"data_offsets\":[112,240]}"
    ",\"v.aq_params\":{\"dtype\":\"I8\",\"shape\":[2,2,1],\"data_offsets\":[240,244]}"
    ",\"v.aq_row_params\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[244,248]}"
    ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[248,256]}}";
#define PARTS_DATA 256

static char *wrap(const char *object, size_t object_size, size_t *size) {
    static const char zero[8 + PARTS_DATA] = { 0 };
    aq_builder image;
    char *text = NULL;
    aq_builder_init(&image, NULL);
    aq_append(&image, zero, 8);
    aq_append_string(&image, "{\"__metadata__\":{\"arrowquant\":");
    aq_append_json_string(&image, object, object_size);
    aq_append_string(&image, "}");
    aq_append_string(&image, parts);
    size_t header = image.size - 8;
    aq_append(&image, zero, PARTS_DATA);
    FUZZ_CHECK(aq_builder_finish(&image, &text, size, NULL) == AQ_OK);
    for (unsigned i = 0; i < 8; i++) text[i] = (char)((uint64_t)header >> (8 * i) & 0xFF);
    return text;
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
    size_t image_size = size;
    char *wrapped = size && data[0] == '{' ? wrap((const char *)data, size, &image_size) : NULL;
    const char *image = wrapped ? wrapped : (const char *)data;
    aq_arena_init(&arena, &context);
    aq_status status = aq_st_parse(&arena, image, image_size, "fuzz.safetensors", &file, &err);
    if (wrapped && aq_is_utf8((const char *)data, size, NULL)) FUZZ_CHECK(status == AQ_OK);
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
    bool good = status == AQ_OK && present && native.tensor_count && size % 8 == 0;
    aq_arena_free(&arena);
    fuzz_check_memory(&memory, image_size);
    if (good) open_it(&context, image, image_size);
    FUZZ_CHECK(memory.now == 0);
    free(wrapped);
    return 0;
}
