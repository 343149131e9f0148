/* The JSON reader and what edits JSON text in place.
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_json.c \
 *         $(find src -name '*.c') -o build/fuzz/json -lm -lpthread */
#include "fuzz.h"

/* The pull reader to its end: every slice lies inside the text. */
static aq_status pull(const char *text, size_t size, aq_error *err) {
    aq_json_reader reader;
    aq_json_event event;
    aq_status status;
    aq_json_open(&reader, text, size, "fuzz.json");
    do {
        status = aq_json_next(&reader, &event, err);
        if (status == AQ_OK && event.text)
            FUZZ_CHECK(event.text >= text && event.text + event.size <= text + size);
    } while (status == AQ_OK && event.type != AQ_JSON_END);
    return status;
}

/* Set, set again, remove: still JSON, the value there and then gone. */
static void edit(aq_arena *arena, const char *text, size_t size) {
    char *more = NULL, *less = NULL;
    size_t more_size = 0, less_size = 0;
    aq_json_node *tree = NULL;
    if (aq_config_json_set(arena, text, size, "fuzz.json", "key", "{\"a\":1}", &more, &more_size,
                           NULL) != AQ_OK)
        return;
    FUZZ_CHECK(aq_json_parse(arena, more, more_size, "more", AQ_ERR_CORRUPT, &tree, NULL) == AQ_OK);
    FUZZ_CHECK(aq_json_get(aq_json_get(tree, "key"), "a") != NULL);
    FUZZ_CHECK(aq_config_json_remove(arena, more, more_size, "more", "key", &less, &less_size,
                                     NULL) == AQ_OK);
    FUZZ_CHECK(aq_json_parse(arena, less, less_size, "less", AQ_ERR_CORRUPT, &tree, NULL) == AQ_OK);
    FUZZ_CHECK(aq_json_get(tree, "key") == NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    aq_context context;
    fuzz_memory memory;
    aq_error err;
    aq_arena arena;
    aq_json_node *root = NULL;
    const char *text = (const char *)data;
    fuzz_context(&context, &memory);
    aq_arena_init(&arena, &context);
    aq_status pulled = pull(text, size, &err);
    fuzz_check_error(pulled, &err, "fuzz.json");
    aq_status status =
        aq_json_parse(&arena, text, size, "fuzz.json", AQ_ERR_CORRUPT, &root, &err);
    fuzz_check_error(status, &err, "fuzz.json");
    if (pulled != AQ_OK) FUZZ_CHECK(status != AQ_OK); /* the tree refuses duplicate keys too */
    if (status == AQ_OK) edit(&arena, text, size);
    aq_arena_free(&arena);
    fuzz_check_memory(&memory, size);
    return 0;
}
