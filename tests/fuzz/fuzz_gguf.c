/* The GGUF reader: what it accepts lies inside the file, in order, aligned, and can be decoded.
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_gguf.c \
 *         $(find src -name '*.c') -o build/fuzz/gguf -lm -lpthread */
#include "fuzz.h"

#include "../../src/model/open.h"

static void check_tensor(const aq_context *context, const uint8_t *data, size_t size,
                         const aq_gguf_tensor *from) {
    aq_model_shard shard;
    aq_tensor tensor;
    float row[4096];
    memset(&shard, 0, sizeof(shard));
    memset(&tensor, 0, sizeof(tensor));
    shard.path = "fuzz.gguf";
    shard.map.data = data;
    shard.map.size = size;
    tensor.name = from->name;
    aq_open_gguf_tensor(&shard, from, &tensor);
    FUZZ_CHECK(tensor.bytes == from->bytes);
    bool decodes = !tensor.quantized || tensor.spec.code != AQ_CODE_COUNT;
    if (tensor.quantized && decodes && tensor.rows && tensor.cols)
        FUZZ_CHECK(tensor.layout.code_bytes == from->bytes);
    if (!tensor.rows || tensor.cols > sizeof(row) / sizeof(row[0])) return;
    aq_error err;
    aq_status status = aq_tensor_rows_f32(context, &tensor, tensor.rows - 1, 1, row, &err);
    FUZZ_CHECK(status == AQ_OK || status == AQ_ERR_UNSUPPORTED);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    aq_context context;
    fuzz_memory memory;
    aq_error err;
    aq_arena arena;
    aq_gguf file;
    fuzz_context(&context, &memory);
    context.kernels = aq_simd_kernels("scalar");
    aq_arena_init(&arena, &context);
    aq_status status = aq_gguf_parse(&arena, data, size, "fuzz.gguf", &file, &err);
    fuzz_check_error(status, &err, "fuzz.gguf");
    if (status == AQ_OK) {
        uint64_t cursor = file.data_start;
        FUZZ_CHECK(cursor % file.alignment == 0);
        for (size_t i = 0; i < file.tensor_count; i++) {
            const aq_gguf_tensor *tensor = &file.tensors[i];
            FUZZ_CHECK(tensor->offset == cursor && tensor->bytes <= size - cursor);
            cursor = (cursor + tensor->bytes + file.alignment - 1) & ~(uint64_t)(file.alignment - 1);
            check_tensor(&context, data, size, tensor);
        }
        for (size_t i = 0; i < file.value_count; i++)
            FUZZ_CHECK(aq_gguf_find(&file, file.values[i].key) == &file.values[i]);
    }
    aq_arena_free(&arena);
    fuzz_check_memory(&memory, size);
    return 0;
}
