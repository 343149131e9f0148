/* Calibration files. An input that begins with '{' is the header of one up to its first line feed, and
 * data behind it; anything else is a whole file. What is good has figures that hold together, gives
 * groups of timesteps, and tells its second moments or why not.
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_calibration.c \
 *         $(find src -name '*.c') -o build/fuzz/calibration -lm -lpthread */
#include "fuzz.h"

static void write_file(const char *path, const uint8_t *data, size_t size) {
    FILE *file = fopen(path, "wb");
    const uint8_t *feed = (const uint8_t *)memchr(data, '\n', size);
    size_t header = feed ? (size_t)(feed - data) : size;
    FUZZ_CHECK(file != NULL);
    if (size && data[0] == '{') {
        for (unsigned i = 0; i < 8; i++) (void)fputc((int)((uint64_t)header >> (8 * i) & 0xFF), file);
        FUZZ_CHECK(fwrite(data, 1, header, file) == header);
        if (feed && header + 1 < size)
            FUZZ_CHECK(fwrite(feed + 1, 1, size - header - 1, file) == size - header - 1);
    } else {
        FUZZ_CHECK(fwrite(data, 1, size, file) == size);
    }
    FUZZ_CHECK(fclose(file) == 0);
}

static void check_layer(aq_context *context, const aq_calibration *calibration,
                        const aq_calibration_layer *layer) {
    aq_time_groups groups;
    aq_time_options options;
    aq_error err;
    FUZZ_CHECK(layer->channels && aq_calibration_find(calibration, layer->name) == layer);
    for (size_t i = 0; i < layer->timestep_count; i++) {
        FUZZ_CHECK(i == 0 || layer->timesteps[i - 1] < layer->timesteps[i]);
        FUZZ_CHECK(layer->min[i] <= layer->max[i] && layer->std[i] >= 0.0f);
    }
    memset(&options, 0, sizeof(options));
    options.num_time_groups = 3;
    options.total_timesteps = 50;
    options.cut = AQ_TIME_CUT_OPTIMAL;
    options.range = AQ_RANGE_LEAST_ERROR;
    if (aq_time_groups_make(context, layer, &options, &groups, &err) == AQ_OK) {
        for (uint32_t g = 0; g < groups.count; g++) FUZZ_CHECK(groups.scale[0][g] > 0.0f);
        aq_time_groups_free(&groups);
    }
    if (layer->has_hessian && layer->channels <= 64) {
        float moments[64 * 64];
        aq_status status = aq_calibration_hessian(context, calibration, layer, moments, &err);
        if (status != AQ_OK) FUZZ_CHECK(err.status == status && err.message[0]);
        for (size_t i = 0; status == AQ_OK && i < layer->channels; i++)
            FUZZ_CHECK(moments[i * (layer->channels + 1)] >= 0.0f);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    aq_context context;
    fuzz_memory memory;
    aq_error err;
    aq_calibration *calibration = NULL;
    char path[64];
    const char *paths[1];
    fuzz_context(&context, &memory);
    context.num_threads = 1;
    aq_format(path, sizeof(path), "/dev/shm/aq-fuzz-%llu.calibration.safetensors",
              (unsigned long long)aq_process_id());
    write_file(path, data, size);
    paths[0] = path;
    aq_status status = aq_calibration_open(&context, paths, 1, 0, &calibration, &err);
    fuzz_check_error(status, &err, ".calibration.safetensors");
    for (size_t i = 0; status == AQ_OK && i < calibration->layer_count; i++)
        check_layer(&context, calibration, &calibration->layers[i]);
    if (status == AQ_OK) aq_calibration_close(calibration);
    unlink(path);
    FUZZ_CHECK(memory.now == 0 && memory.peak <= 4096 * size + ((size_t)1 << 20));
    return 0;
}
