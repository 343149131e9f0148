/* What the fuzz targets share: the library with its internals, and a check that stops the run. */
#ifndef AQ_FUZZ_H
#define AQ_FUZZ_H

#include "../c/sources.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A failure has a status and says something; the text that was refused is named. */
static inline void fuzz_check_error(aq_status status, const aq_error *err, const char *source) {
    if (status == AQ_OK) return;
    FUZZ_CHECK(err->status == status && err->message[0]);
    FUZZ_CHECK(strstr(err->message, source) != NULL);
}

/* Allocations counted: an input of n bytes must not take more than `per_byte`·n + `more`. */
typedef struct fuzz_memory {
    size_t now, peak;
} fuzz_memory;

static inline void *fuzz_resize(void *user, void *pointer, size_t old_size, size_t new_size) {
    fuzz_memory *memory = (fuzz_memory *)user;
    if (!new_size) {
        free(pointer);
        memory->now -= old_size;
        return NULL;
    }
    void *moved = realloc(pointer, new_size);
    FUZZ_CHECK(moved != NULL);
    memory->now += new_size - old_size;
    if (memory->now > memory->peak) memory->peak = memory->now;
    return moved;
}

static inline void fuzz_context(aq_context *context, fuzz_memory *memory) {
    memset(context, 0, sizeof(*context));
    memset(memory, 0, sizeof(*memory));
    context->allocator.resize = fuzz_resize;
    context->allocator.user = memory;
}

static inline void fuzz_check_memory(const fuzz_memory *memory, size_t size) {
    FUZZ_CHECK(memory->now == 0);
    FUZZ_CHECK(memory->peak <= 256 * size + 65536);
}

#endif
