/* The YAML reader.
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_yaml.c \
 *         $(find src -name '*.c') -o build/fuzz/yaml -lm -lpthread */
#include "fuzz.h"

/* Counts agree with the lists, lines and columns lie in the text. */
static void walk(const aq_yaml_node *node, size_t size) {
    size_t count = 0;
    FUZZ_CHECK(node->line <= size + 1 && node->column <= size + 1);
    FUZZ_CHECK((node->type == AQ_YAML_LIST || node->type == AQ_YAML_MAP) || !node->first);
    for (const aq_yaml_node *item = node->first; item; item = item->next) {
        FUZZ_CHECK((node->type == AQ_YAML_MAP) == (item->key != NULL));
        walk(item, size);
        count++;
    }
    FUZZ_CHECK(count == node->count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    aq_context context;
    fuzz_memory memory;
    aq_error err;
    aq_arena arena;
    aq_yaml_node *root = NULL;
    fuzz_context(&context, &memory);
    aq_arena_init(&arena, &context);
    aq_status status = aq_yaml_parse(&arena, (const char *)data, size, "fuzz.yaml", &root, &err);
    fuzz_check_error(status, &err, "fuzz.yaml");
    if (status == AQ_OK) walk(root, size);
    aq_arena_free(&arena);
    fuzz_check_memory(&memory, size);
    return 0;
}
