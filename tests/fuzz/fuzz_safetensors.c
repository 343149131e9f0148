/* The safetensors reader: what it accepts covers the data section without holes or overlaps.
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_safetensors.c \
 *         $(find src -name '*.c') -o build/fuzz/safetensors -lm -lpthread */
#include "fuzz.h"

static void check(const aq_st_file *file, size_t size) {
    uint64_t cursor = file->data_start;
    for (size_t i = 0; i < file->tensor_count; i++) {
        const aq_st_tensor *tensor = &file->tensors[i];
        uint64_t bytes = aq_dtype_size(tensor->dtype);
        FUZZ_CHECK(tensor->offset == cursor && bytes > 0);
        for (uint32_t d = 0; d < tensor->rank; d++) bytes *= tensor->shape[d];
        FUZZ_CHECK(bytes == tensor->bytes);
        cursor += bytes;
    }
    FUZZ_CHECK(cursor == size && file->file_size == size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    aq_context context;
    fuzz_memory memory;
    aq_error err;
    aq_arena arena;
    aq_st_file file;
    const char *value = NULL;
    fuzz_context(&context, &memory);
    aq_arena_init(&arena, &context);
    aq_status status = aq_st_parse(&arena, data, size, "fuzz.safetensors", &file, &err);
    fuzz_check_error(status, &err, "fuzz.safetensors");
    if (status == AQ_OK) {
        check(&file, size);
        FUZZ_CHECK(aq_st_sort_by_name(&arena, &file) != NULL);
        status = aq_st_metadata_value(&arena, &file, "format", &value, &err);
        fuzz_check_error(status, &err, "fuzz.safetensors");
    }
    aq_arena_free(&arena);
    fuzz_check_memory(&memory, size);
    return 0;
}
