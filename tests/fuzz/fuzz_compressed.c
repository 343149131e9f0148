/* compressed-tensors: quantization_config up to a 0 byte, then a safetensors file; both are opened from a
 * folder, and what is accepted is dequantized.
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_compressed.c \
 *         $(find src -name '*.c') -o build/fuzz/compressed -lm -lpthread */
#include "fuzz.h"

static char folder[64], config_path[96], weights_path[96];

static void put(const char *path, const void *data, size_t size, const char *around[2]) {
    FILE *file = fopen(path, "wb");
    FUZZ_CHECK(file != NULL);
    if (around) fputs(around[0], file);
    FUZZ_CHECK(fwrite(data, 1, size, file) == size);
    if (around) fputs(around[1], file);
    FUZZ_CHECK(fclose(file) == 0);
}

static void leave(void) {
    unlink(config_path);
    unlink(weights_path);
    rmdir(folder);
}

static void enter(void) {
    aq_format(folder, sizeof(folder), "/dev/shm/aq-fuzz-ct-%llu",
              (unsigned long long)aq_process_id());
    aq_format(config_path, sizeof(config_path), "%s/config.json", folder);
    aq_format(weights_path, sizeof(weights_path), "%s/model.safetensors", folder);
    FUZZ_CHECK(aq_make_folder(folder, NULL) == AQ_OK);
    atexit(leave);
}

static void walk(aq_context *context, const aq_model *model) {
    float row[4096];
    for (size_t i = 0; i < model->tensor_count; i++) {
        const aq_tensor *tensor = &model->tensors[i];
        if (!tensor->quantized || tensor->cols > 4096) continue;
        FUZZ_CHECK(tensor->rows && tensor->cols);
        aq_status status =
            aq_tensor_dequantize(context, tensor, tensor->rows - 1, 1, AQ_DTYPE_F32, row, NULL);
        FUZZ_CHECK(status == AQ_OK);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *around[2] = { "{\"quantization_config\":", "}" };
    aq_context context;
    fuzz_memory memory;
    aq_error err;
    aq_model *model = NULL;
    size_t text = 0;
    if (!*folder) enter();
    while (text < size && data[text]) text++;
    put(config_path, data, text, around);
    if (text < size) text++;
    put(weights_path, data + text, size - text, NULL);
    fuzz_context(&context, &memory);
    context.num_threads = 1;
    memset(&err, 0, sizeof(err));
    aq_status status = aq_model_open(&context, folder, &model, &err);
    if (status != AQ_OK) FUZZ_CHECK(err.status == status && err.message[0]);
    else walk(&context, model);
    aq_model_close(model);
    fuzz_check_memory(&memory, size);
    return 0;
}
