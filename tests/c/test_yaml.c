/* The YAML reader: tree, types, places, refusals, memory that runs out. */
#include "test.h"

static aq_arena arena;
static aq_error err;

static aq_yaml_node *parse(const char *text) {
    aq_yaml_node *root = NULL;
    memset(&err, 0, sizeof err);
    aq_arena_free(&arena);
    aq_arena_init(&arena, NULL);
    return aq_yaml_parse(&arena, text, strlen(text), "t.yaml", &root, &err) == AQ_OK ? root : NULL;
}

static void refuses(const char *text, const char *message) {
    CHECK(parse(text) == NULL);
    CHECK(err.status == AQ_ERR_CONFIGURATION);
    err.message[strlen(message) < sizeof err.message ? strlen(message) : 0] = '\0';
    CHECK_STR(err.message, message);
}

TEST(tree) {
    const aq_yaml_node *root = parse("a: 1\nb:\n- x\n- [y, {z: 2.5}]\n\"c d\": {e: ~, f: no}\n");
    const aq_yaml_node *b = aq_yaml_get(root, "b"), *c = aq_yaml_get(root, "c d");
    CHECK(root && root->type == AQ_YAML_MAP && root->count == 3);
    CHECK(aq_yaml_get(root, "a")->type == AQ_YAML_INT);
    CHECK(aq_yaml_get(root, "a")->magnitude == 1);
    CHECK_STR(aq_yaml_get(root, "a")->text, "1");
    CHECK(b && b->type == AQ_YAML_LIST && b->count == 2);
    CHECK_STR(b->first->text, "x");
    CHECK(b->first->next->first->next->first->type == AQ_YAML_FLOAT);
    CHECK(b->first->next->first->next->first->number == 2.5);
    CHECK(b->key_line == 2 && b->key_column == 1 && b->line == 3 && b->column == 1);
    CHECK(aq_yaml_get(c, "e")->type == AQ_YAML_NULL);
    CHECK(aq_yaml_get(c, "f")->type == AQ_YAML_BOOL && !aq_yaml_get(c, "f")->boolean);
    CHECK(aq_yaml_get(root, "missing") == NULL && aq_yaml_get(b, "x") == NULL);
    CHECK(aq_yaml_get(NULL, "x") == NULL);
}

TEST(empty) {
    CHECK(parse("") && parse("")->type == AQ_YAML_NULL);
    CHECK(parse("# c\n\n")->type == AQ_YAML_NULL);
    CHECK(parse("---\n...\n")->type == AQ_YAML_NULL);
    CHECK(parse("\xEF\xBB\xBF")->type == AQ_YAML_NULL);
}

TEST(integers) {
    const aq_yaml_node *node = parse("-0x1F");
    CHECK(node->negative && node->magnitude == 31 && node->number == -31.0);
    CHECK(parse("18446744073709551615")->magnitude == UINT64_MAX);
    CHECK(parse("-0")->negative == false);
    CHECK(parse("010")->magnitude == 8);
    CHECK(parse("1:30")->magnitude == 90);
    CHECK(parse("0b101")->magnitude == 5);
    CHECK(parse("08")->type == AQ_YAML_STRING);
    refuses("18446744073709551616", "t.yaml:1:1: an integer beyond 64 bits");
}

TEST(floats) {
    CHECK(parse("1.")->number == 1.0);
    CHECK(parse(".5")->number == 0.5);
    CHECK(parse("1_0.5e+1")->number == 105.0);
    CHECK(parse("1:30.5")->number == 90.5);
    CHECK(parse("-.inf")->number < -1e308);
    CHECK(parse(".nan")->number != parse(".nan")->number);
    CHECK(parse("1e3")->type == AQ_YAML_STRING);
    CHECK(parse("-.5")->type == AQ_YAML_STRING);
}

TEST(quotes) {
    CHECK_STR(parse("'it''s'")->text, "it's");
    CHECK_STR(parse("\"\\x41\\u00e9\\U0001F600\\n\"")->text, "A\xC3\xA9\xF0\x9F\x98\x80\n");
    CHECK(parse("\"a\\0b\"")->size == 3);
    CHECK(parse("'1'")->type == AQ_YAML_STRING);
    CHECK(parse("\"\\L\\L\\L\\L\\L\\L\\L\\L\"")->size == 24); /* grows by half */
    refuses("'''", "t.yaml:1:1: quoted text that does not end on its line");
    refuses("\"\\q\"", "t.yaml:1:2: an unknown escape");
}

TEST(refusals) {
    refuses("a: &x 1", "t.yaml:1:4: an anchor");
    refuses("a: *x", "t.yaml:1:4: an alias");
    refuses("a: !!int 1", "t.yaml:1:4: a tag");
    refuses("a: |\n  b", "t.yaml:1:4: a block scalar");
    refuses("a: b\n  c", "t.yaml:2:3: indented deeper");
    refuses("a:\n\tb: 1", "t.yaml:2:1: a tab");
    refuses("? a\n: b", "t.yaml:1:1: a complex key");
    refuses("<<: {a: 1}", "t.yaml:1:1: a merge key");
    refuses("a: 1\nb: 2\na: 3", "t.yaml:3:1: a second key \"a\"; the first is on line 1, column 1");
    refuses("a: 2024-01-31", "t.yaml:1:4: a timestamp");
    refuses("a: 1\n---\nb: 2", "t.yaml:2:1: a second document");
    refuses("%YAML 1.1\n---\na", "t.yaml:1:1: a directive");
    refuses("a: \xFF", "t.yaml:1:4: not valid UTF-8");
    refuses("a: \x01", "t.yaml:1:4: a control character");
    refuses("a: b: c", "t.yaml:1:5: a ':' that cannot stand here");
    refuses("a: [1, 2", "t.yaml:1:4: a '[' that is never closed");
}

TEST(depth) {
    char text[2 * (AQ_YAML_DEPTH + 1) + 1];
    size_t depth;
    for (depth = AQ_YAML_DEPTH; depth <= AQ_YAML_DEPTH + 1; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        text[2 * depth] = '\0';
        CHECK((parse(text) != NULL) == (depth == AQ_YAML_DEPTH));
    }
    CHECK(strstr(err.message, "more than 64 levels") != NULL);
}

/* The bytes after the text belong to somebody else. */
TEST(reads_no_further_than_its_size) {
    static const char *const texts[] = {"a", "'a", "\"a", "\"a\\", "\"\\x4", "[a", "{a", "a:", "- ",
                                        "--", "---", "..", "\xC3", "1.5e", "0x", "a\r"};
    size_t i;
    for (i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        size_t size = strlen(texts[i]);
        char *copy = (char *)malloc(size);
        aq_yaml_node *root;
        CHECK(copy != NULL);
        if (!copy) return;
        memcpy(copy, texts[i], size);
        aq_arena_free(&arena);
        aq_arena_init(&arena, NULL);
        (void)aq_yaml_parse(&arena, copy, size, NULL, &root, NULL);
        free(copy);
    }
}

typedef struct failing {
    size_t left;
} failing;

static void *fail_later(void *user, void *pointer, size_t old_size, size_t new_size) {
    failing *state = (failing *)user;
    (void)old_size;
    if (new_size == 0) {
        free(pointer);
        return NULL;
    }
    if (state->left == 0) return NULL;
    state->left--;
    return realloc(pointer, new_size);
}

TEST(memory_that_runs_out) {
    static char text[20000];
    aq_context context;
    failing state;
    size_t i, size = 0;
    aq_status status = AQ_ERR_OUT_OF_MEMORY;
    for (i = 0; size + 40 < sizeof text; i++)
        size += (size_t)sprintf(text + size, "k%u: [a, 'b', \"c\\n\", 1.5]\n", (unsigned)i);
    memset(&context, 0, sizeof context);
    context.allocator.resize = fail_later;
    context.allocator.user = &state;
    for (i = 0; status == AQ_ERR_OUT_OF_MEMORY && i < 50000; i += TEST_PIECES ? 23 : 1) {
        aq_arena local;
        aq_yaml_node *root;
        state.left = i;
        aq_arena_init(&local, &context);
        status = aq_yaml_parse(&local, text, size, "t", &root, &err);
        aq_arena_free(&local);
    }
    CHECK(status == AQ_OK && i > 3 && (TEST_PIECES || i < 1000));
}

int main(void) {
    aq_arena_init(&arena, NULL);
    RUN(tree);
    RUN(empty);
    RUN(integers);
    RUN(floats);
    RUN(quotes);
    RUN(refusals);
    RUN(depth);
    RUN(reads_no_further_than_its_size);
    RUN(memory_that_runs_out);
    aq_arena_free(&arena);
    return test_end();
}
