/* Arrow IPC files and streams: whatever is accepted may be read to its end, and written again.
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_arrow.c \
 *         $(find src -name '*.c') -o build/fuzz/arrow -lm -lpthread */
#include "fuzz.h"

#include "../c/arrow_walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    aq_context context;
    fuzz_memory memory;
    aq_error err;
    int64_t rows;
    fuzz_context(&context, &memory);
    memset(&err, 0, sizeof(err));
    unsigned char *image = (unsigned char *)malloc(size ? size : 1); /* aligned, of exactly that size */
    FUZZ_CHECK(image != NULL);
    memcpy(image, data, size);
    aq_status status = arrow_walk_image(&context, image, size, "fuzz.arrow", &rows, &err);
    fuzz_check_error(status, &err, "fuzz.arrow");
    free(image);
    fuzz_check_memory(&memory, size);
    return 0;
}
