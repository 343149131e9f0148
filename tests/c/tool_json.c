/* Documents on standard input, each as "SIZE\n" and that many bytes. For each one line: "ok " and
 * the tree written as JSON again, or "refused " and the message. What the pull reader accepts is
 * held against the tree: they may differ in duplicate keys only. */
#include "test.h"

static void write_node(aq_builder *out, const aq_json_node *node) {
    double number;
    size_t count = 0;
    switch (node->type) {
    case AQ_JSON_NULL: aq_append_string(out, "null"); return;
    case AQ_JSON_TRUE: aq_append_string(out, "true"); return;
    case AQ_JSON_FALSE: aq_append_string(out, "false"); return;
    case AQ_JSON_NUMBER:
        if (!aq_json_double(node, &number)) test_broken = 1;
        if (isinf(number))
            aq_append_string(out, number < 0 ? "-Infinity" : "Infinity");
        else
            aq_append_json_double(out, number);
        return;
    case AQ_JSON_STRING: aq_append_json_string(out, node->text, node->size); return;
    default: break;
    }
    bool object = node->type == AQ_JSON_OBJECT;
    aq_append_string(out, object ? "{" : "[");
    for (const aq_json_node *child = node->first; child; child = child->next, count++) {
        if (count) aq_append_string(out, ",");
        if (object) {
            aq_append_json_string(out, child->key, child->key_size);
            aq_append_string(out, ":");
        }
        write_node(out, child);
    }
    aq_append_string(out, object ? "}" : "]");
    if (count != node->count) test_broken = 1;
}

static bool pulls(const char *text, size_t size) {
    aq_json_reader reader;
    aq_json_event event;
    aq_json_open(&reader, text, size, "input");
    do {
        if (aq_json_next(&reader, &event, NULL) != AQ_OK) return false;
    } while (event.type != AQ_JSON_END);
    return true;
}

static void answer(const char *text, size_t size) {
    aq_arena arena;
    aq_json_node *root = NULL;
    aq_error err;
    char *line = NULL;
    size_t line_size;
    aq_arena_init(&arena, NULL);
    aq_status status = aq_json_parse(&arena, text, size, "input", AQ_ERR_CORRUPT, &root, &err);
    if (status == AQ_OK) {
        aq_builder out;
        aq_builder_init(&out, NULL);
        write_node(&out, root);
        if (aq_builder_finish(&out, &line, &line_size, NULL) != AQ_OK) abort();
        printf("ok %s\n", line);
        aq_text_free(NULL, line, line_size);
        if (!pulls(text, size)) test_broken = 1;
    } else {
        printf("refused %s\n", err.message);
        if (pulls(text, size) != (strstr(err.message, "occurs twice") != NULL)) test_broken = 1;
    }
    aq_arena_free(&arena);
}

int main(void) {
    char head[32];
    while (fgets(head, sizeof(head), stdin)) {
        size_t size = (size_t)strtoul(head, NULL, 10);
        char *text = (char *)malloc(size ? size : 1); /* exactly, so that a read beyond is seen */
        if (!text || fread(text, 1, size, stdin) != size) return 2;
        answer(text, size);
        free(text);
    }
    return test_broken;
}
