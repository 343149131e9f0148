/* The pull reader and the tree; the differential test is tests/py/test_json.py. */
#include "test.h"

static const aq_json_node *parse(aq_arena *arena, const char *text, aq_error *err) {
    aq_json_node *root = NULL;
    size_t size = strlen(text);
    char *exact = (char *)malloc(size ? size : 1);
    if (!exact) abort();
    memcpy(exact, text, size);
    aq_status status = aq_json_parse(arena, exact, size, "test.json", AQ_ERR_METADATA, &root, err);
    free(exact); /* the tree must not point into the text */
    return status == AQ_OK ? root : NULL;
}

TEST(pulls_events) {
    static const char text[] = " {\"a\": [1, -2.5e3, \"x\\n\"], \"b\\u0041\": {}, \"c\":[ ],"
                               "\"d\":true,\"e\":false,\"f\":null} ";
    static const struct {
        aq_json_type type;
        const char *text;
        bool escaped;
    } expected[] = {
        { AQ_JSON_OBJECT, NULL, false }, { AQ_JSON_KEY, "a", false },
        { AQ_JSON_ARRAY, NULL, false },
        { AQ_JSON_NUMBER, "1", false }, { AQ_JSON_NUMBER, "-2.5e3", false },
        { AQ_JSON_STRING, "x\\n", true }, { AQ_JSON_ARRAY_END, NULL, false },
        { AQ_JSON_KEY, "b\\u0041", true }, { AQ_JSON_OBJECT, NULL, false },
        { AQ_JSON_OBJECT_END, NULL, false }, { AQ_JSON_KEY, "c", false },
        { AQ_JSON_ARRAY, NULL, false }, { AQ_JSON_ARRAY_END, NULL, false },
        { AQ_JSON_KEY, "d", false }, { AQ_JSON_TRUE, NULL, false }, { AQ_JSON_KEY, "e", false },
        { AQ_JSON_FALSE, NULL, false }, { AQ_JSON_KEY, "f", false }, { AQ_JSON_NULL, NULL, false },
        { AQ_JSON_OBJECT_END, NULL, false }, { AQ_JSON_END, NULL, false },
        { AQ_JSON_END, NULL, false },
    };
    aq_json_reader reader;
    aq_json_event event;
    aq_json_open(&reader, text, sizeof(text) - 1, "t");
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        CHECK_STATUS(aq_json_next(&reader, &event, NULL), AQ_OK);
        CHECK(event.type == expected[i].type && event.escaped == expected[i].escaped);
        if (expected[i].text) CHECK(aq_text_equal(event.text, event.size, expected[i].text));
    }
}

TEST(skips_values) {
    static const char text[] = "{\"a\": {\"x\": [[1], {\"y\": 2}]}, \"b\": 7, \"c\": [[]]}";
    aq_json_reader reader;
    aq_json_event event;
    aq_json_open(&reader, text, sizeof(text) - 1, "t");
    CHECK_STATUS(aq_json_next(&reader, &event, NULL), AQ_OK);
    for (int i = 0; i < 3; i++) {
        CHECK_STATUS(aq_json_next(&reader, &event, NULL), AQ_OK);
        CHECK(event.type == AQ_JSON_KEY && event.text[0] == "abc"[i]);
        CHECK_STATUS(aq_json_skip(&reader, &event, NULL), AQ_OK);
        CHECK_STATUS(aq_json_next(&reader, &event, NULL), AQ_OK);
        CHECK_STATUS(aq_json_skip(&reader, &event, NULL), AQ_OK);
    }
    CHECK_STATUS(aq_json_next(&reader, &event, NULL), AQ_OK);
    CHECK(event.type == AQ_JSON_OBJECT_END);
    aq_json_open(&reader, "[[1,[2,}", 8, "t");
    CHECK_STATUS(aq_json_next(&reader, &event, NULL), AQ_OK);
    CHECK_STATUS(aq_json_skip(&reader, &event, NULL), AQ_ERR_CORRUPT);
}

TEST(builds_a_tree) {
    aq_arena arena;
    aq_error err;
    uint64_t whole = 0;
    double number = 0;
    aq_arena_init(&arena, NULL);
    const aq_json_node *root = parse(&arena, "{\"s\": \"h\\u00e9\\ud83d\\ude00\", \"n\": 12, "
                                     "\"f\": -1.5e1, \"l\": [1, [], {}], "
                                     "\"z\": \"a\\u0000b\", \"\": 1}", &err);
    CHECK(root && root->type == AQ_JSON_OBJECT && root->count == 6);
    CHECK_STR(aq_json_string(aq_json_get(root, "s")), "h\xC3\xA9\xF0\x9F\x98\x80");
    CHECK(aq_json_u64(aq_json_get(root, "n"), &whole) && whole == 12);
    CHECK(aq_json_double(aq_json_get(root, "n"), &number) && number >= 12 && number <= 12);
    CHECK(!aq_json_u64(aq_json_get(root, "f"), &whole));
    CHECK(aq_json_double(aq_json_get(root, "f"), &number) && number >= -15 && number <= -15);
    CHECK(aq_json_get(root, "missing") == NULL && aq_json_get(NULL, "s") == NULL);
    CHECK(!aq_json_u64(NULL, &whole) && !aq_json_double(NULL, &number));
    CHECK(aq_json_string(aq_json_get(root, "z")) == NULL);
    CHECK(aq_json_get(root, "z") && aq_json_get(root, "z")->size == 3);
    CHECK(aq_json_string(aq_json_get(root, "n")) == NULL && aq_json_string(NULL) == NULL);
    CHECK(aq_json_u64(aq_json_get(root, ""), &whole) && whole == 1);
    const aq_json_node *list = aq_json_get(root, "l");
    CHECK(list && list->count == 3 && list->first->next->type == AQ_JSON_ARRAY);
    CHECK(list && list->first->key == NULL && list->first->next->next->next == NULL);
    aq_arena_free(&arena);
}

TEST(decodes) {
    aq_arena arena;
    size_t size;
    aq_arena_init(&arena, NULL);
    CHECK_STR(aq_json_decode(&arena, "a\\/\\\"\\t", 7, &size), "a/\"\t");
    CHECK(size == 4);
    CHECK_STR(aq_json_decode(&arena, "\\u20AC\\u20ac", 12, NULL), "\xE2\x82\xAC\xE2\x82\xAC");
    CHECK_STR(aq_json_decode(&arena, "\\u007f\\u0080\\u07ff\\u0800\\uffff", 30, &size),
              "\x7F\xC2\x80\xDF\xBF\xE0\xA0\x80\xEF\xBF\xBF");
    CHECK_STR(aq_json_decode(&arena, "", 0, &size), "");
    CHECK(size == 0);
    aq_arena_free(&arena);
}

TEST(errors_give_line_and_column) {
    aq_arena arena;
    aq_error err;
    aq_arena_init(&arena, NULL);
    CHECK(!parse(&arena, "{\n  \"\xC3\xA9\": x}", &err));
    CHECK(err.status == AQ_ERR_METADATA && err.offset == 10);
    CHECK(strstr(err.message, "test.json: line 2, column 8: ") == err.message);
    CHECK(!parse(&arena, "[1, 2", &err));
    CHECK(strstr(err.message, "ends too early") != NULL && err.offset == 5);
    CHECK(!parse(&arena, "", &err) && strstr(err.message, "ends too early") != NULL);
    CHECK(!parse(&arena, "\xEF\xBB\xBF{}", &err));
    CHECK(strstr(err.message, "byte order mark") != NULL);
    CHECK(!parse(&arena, "[1,]", &err) && err.offset == 3);
    CHECK(!parse(&arena, "{\"a\":1,}", &err) && err.offset == 7);
    CHECK(!parse(&arena, "1 2", &err) && err.offset == 2);
    CHECK(!parse(&arena, "\"a\xFF\"", &err) && err.offset == 2);
    CHECK(!parse(&arena, "[\"\\ud800\"]", &err) && err.offset == 2);
    CHECK(!parse(&arena, "[\"a\nb\"]", &err) && err.offset == 3);
    CHECK(!parse(&arena, "{\"a\": 1,\n \"b\": [{\"a\": 2}],\n\"a\": 3}", &err));
    CHECK(strstr(err.message, "line 3, column 1: the key \"a\" occurs twice") != NULL);
    CHECK(!parse(&arena, "[{\"\\u0061\": 1, \"a\": 3}]", &err));
    CHECK(strstr(err.message, "line 1, column 16") != NULL);
    aq_arena_free(&arena);
}

TEST(a_failed_reader_keeps_failing) {
    static const char text[] = "[1,]";
    aq_json_reader reader;
    aq_json_event event;
    aq_json_open(&reader, text, sizeof(text) - 1, "t");
    CHECK_STATUS(aq_json_next(&reader, &event, NULL), AQ_OK);
    CHECK_STATUS(aq_json_next(&reader, &event, NULL), AQ_OK);
    for (int i = 0; i < 3; i++) CHECK_STATUS(aq_json_next(&reader, &event, NULL), AQ_ERR_CORRUPT);
    aq_json_open(&reader, "{\"a\":1,}", 8, "t");
    for (int i = 0; i < 3; i++) CHECK_STATUS(aq_json_next(&reader, &event, NULL), AQ_OK);
    for (int i = 0; i < 3; i++) CHECK_STATUS(aq_json_next(&reader, &event, NULL), AQ_ERR_CORRUPT);
}

TEST(depth_is_limited) {
    aq_arena arena;
    aq_error err;
    char text[200];
    aq_arena_init(&arena, NULL);
    memset(text, '[', 64);
    memset(text + 64, ']', 64);
    text[128] = 0;
    CHECK(parse(&arena, text, &err) != NULL);
    memset(text, '[', 65);
    memset(text + 65, ']', 65);
    text[130] = 0;
    CHECK(!parse(&arena, text, &err) && strstr(err.message, "64 levels") != NULL);
    aq_arena_free(&arena);
}

/* Many keys with a long common head, sorted, reversed or shuffled; twice the text must not take
 * four times as long, which the time limit of the suite would show at this size. */
TEST(many_keys_are_checked_quickly) {
    aq_arena arena;
    aq_error err;
    for (int twice = 0; twice < 2; twice++) {
        aq_builder builder;
        aq_json_node *root;
        char *text;
        size_t size;
        aq_builder_init(&builder, NULL);
        aq_append_string(&builder, "{");
        for (unsigned i = 0; i < 200000; i++)
            aq_append_format(&builder, "\"transformer.blocks.%u\":0,", i * 7919u % 200000u);
        aq_append_format(&builder, "\"transformer.blocks.%s\":1}", twice ? "123456" : "last");
        CHECK_STATUS(aq_builder_finish(&builder, &text, &size, &err), AQ_OK);
        aq_arena_init(&arena, NULL);
        CHECK_STATUS(aq_json_parse(&arena, text, size, "t", AQ_ERR_CORRUPT, &root, &err),
                     twice ? AQ_ERR_CORRUPT : AQ_OK);
        if (twice) CHECK(strstr(err.message, "\"transformer.blocks.123456\" occurs twice") != NULL);
        aq_arena_free(&arena);
        aq_text_free(NULL, text, size);
    }
}

TEST(few_keys_are_checked) {
    aq_arena arena;
    aq_error err;
    char text[400];
    for (unsigned count = 2; count < 40; count++) {
        for (unsigned twin = 0; twin + 1 < count; twin += 3) {
            size_t size = 0;
            text[size++] = '{';
            for (unsigned i = 0; i < count; i++)
                size += aq_format(text + size, sizeof(text) - size, "%s\"%u\":0", i ? "," : "",
                                  i + 1 == count ? twin : i);
            aq_format(text + size, sizeof(text) - size, "}");
            aq_arena_init(&arena, NULL);
            CHECK(!parse(&arena, text, &err) && strstr(err.message, "twice") != NULL);
            aq_arena_free(&arena);
        }
    }
}

static size_t allocations, failing, live;

static void *failing_resize(void *user, void *pointer, size_t old_size, size_t new_size) {
    (void)user;
    if (new_size && ++allocations == failing) return NULL;
    live += new_size;
    live -= old_size;
    if (new_size) return realloc(pointer, new_size);
    free(pointer);
    return NULL;
}

TEST(memory_may_run_out) {
    aq_context context;
    aq_arena arena;
    aq_error err;
    aq_builder builder;
    char *text;
    size_t size;
    aq_json_node *root;
    memset(&context, 0, sizeof(context));
    context.allocator.resize = failing_resize;
    aq_builder_init(&builder, NULL);
    aq_append_string(&builder, "{");
    for (unsigned i = 0; i < 500; i++) aq_append_format(&builder, "\"%u\":[%u],", i, i);
    aq_append_string(&builder, "\"x\":{}}");
    CHECK_STATUS(aq_builder_finish(&builder, &text, &size, &err), AQ_OK);
    const unsigned long most = TEST_PIECES ? 10000 : 1000, step = TEST_PIECES ? 3 : 1;
    for (failing = 1; failing < most; failing += step) {
        allocations = 0;
        aq_arena_init(&arena, &context);
        aq_status status = aq_json_parse(&arena, text, size, "t", AQ_ERR_CORRUPT, &root, &err);
        if (status == AQ_OK) CHECK(live < (TEST_PIECES ? 80 : 40) * size); /* bounded by the text */
        aq_arena_free(&arena);
        CHECK(live == 0);
        if (status == AQ_OK) break;
        CHECK(status == AQ_ERR_OUT_OF_MEMORY);
    }
    CHECK(failing > 3 && failing < most);
    aq_text_free(NULL, text, size);
}

int main(void) {
    RUN(pulls_events);
    RUN(skips_values);
    RUN(builds_a_tree);
    RUN(decodes);
    RUN(errors_give_line_and_column);
    RUN(a_failed_reader_keeps_failing);
    RUN(depth_is_limited);
    RUN(many_keys_are_checked_quickly);
    RUN(few_keys_are_checked);
    RUN(memory_may_run_out);
    return test_end();
}
