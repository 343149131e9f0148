/* The index of a sharded model: what it accepts names plain files, and each tensor once.
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_index.c \
 *         $(find src -name '*.c') -o build/fuzz/index -lm -lpthread */
#include "fuzz.h"

static void check(const aq_st_index *index) {
    for (size_t i = 0; i < index->shard_count; i++) {
        const char *shard = index->shards[i];
        FUZZ_CHECK(*shard && strcmp(shard, "..") != 0 && !strpbrk(shard, "/\\:"));
    }
    for (size_t i = 0; i < index->entry_count; i++) {
        FUZZ_CHECK(index->entries[i].shard < index->shard_count);
        if (i) FUZZ_CHECK(strcmp(index->entries[i - 1].tensor, index->entries[i].tensor) < 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    aq_context context;
    fuzz_memory memory;
    aq_error err;
    aq_arena arena;
    aq_st_index index;
    fuzz_context(&context, &memory);
    aq_arena_init(&arena, &context);
    aq_status status =
        aq_st_parse_index(&arena, (const char *)data, size, "fuzz.index.json", &index, &err);
    fuzz_check_error(status, &err, "fuzz.index.json");
    if (status == AQ_OK) check(&index);
    aq_arena_free(&arena);
    fuzz_check_memory(&memory, size);
    return 0;
}
