/* Activations as JSON lines. What is good has layers whose figures hold together.
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_jsonl.c \
 *         $(find src -name '*.c') -o build/fuzz/jsonl -lm -lpthread */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    aq_context context;
    fuzz_memory memory;
    aq_error err;
    aq_calibration *calibration = NULL;
    char path[64];
    const char *paths[1];
    fuzz_context(&context, &memory);
    context.num_threads = 1;
    aq_format(path, sizeof(path), "/dev/shm/aq-fuzz-%llu.jsonl", (unsigned long long)aq_process_id());
    FILE *file = fopen(path, "wb");
    FUZZ_CHECK(file && fwrite(data, 1, size, file) == size && fclose(file) == 0);
    paths[0] = path;
    aq_status status = aq_calibration_open(&context, paths, 1, 2, &calibration, &err);
    fuzz_check_error(status, &err, ".jsonl");
    for (size_t i = 0; status == AQ_OK && i < calibration->layer_count; i++) {
        const aq_calibration_layer *layer = &calibration->layers[i];
        FUZZ_CHECK(layer->channels && layer->has_hessian && layer->hessian_rows);
        for (size_t t = 0; t < layer->timestep_count; t++) {
            FUZZ_CHECK(t == 0 || layer->timesteps[t - 1] < layer->timesteps[t]);
            FUZZ_CHECK(layer->min[t] <= layer->max[t] && layer->rows[t]);
        }
    }
    if (status == AQ_OK) aq_calibration_close(calibration);
    unlink(path);
    /* second moments are the square of a row */
    FUZZ_CHECK(memory.now == 0 && memory.peak <= 64 * size * size + ((size_t)4 << 20));
    return 0;
}
