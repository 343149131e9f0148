/* Reads YAML on stdin and prints one line of JSON: {"ok": value} or {"error": message}. A value is
 * ["null"], ["bool", b], ["int", "digits"], ["float", "bits in hex"], ["str", "UTF-8 in hex"],
 * ["list", [values]] or ["map", [[key, value], …]].
 * With the argument "batch", stdin is a row of cases, each "size\n" and that many bytes. */
#include "test.h"

static void print_hex(const char *text, size_t size) {
    size_t i;
    for (i = 0; i < size; i++) printf("%02x", (unsigned)(unsigned char)text[i]);
}

static void print_scalar(const aq_yaml_node *node) {
    uint64_t bits;
    switch (node->type) {
    case AQ_YAML_NULL: printf("[\"null\"]"); break;
    case AQ_YAML_BOOL: printf("[\"bool\",%s]", node->boolean ? "true" : "false"); break;
    case AQ_YAML_INT:
        printf("[\"int\",\"%s%llu\"]", node->negative ? "-" : "",
               (unsigned long long)node->magnitude);
        break;
    case AQ_YAML_FLOAT:
        memcpy(&bits, &node->number, sizeof bits);
        printf("[\"float\",\"%016llx\"]", (unsigned long long)bits);
        break;
    default:
        printf("[\"str\",\"");
        print_hex(node->text, node->size);
        printf("\"]");
        break;
    }
}

static void print_key(const aq_yaml_node *node) {
    aq_yaml_node key;
    memset(&key, 0, sizeof key);
    key.text = node->key;
    key.size = node->key_size;
    if (node->key_type != AQ_YAML_STRING) (void)aq_yaml_resolve(&key);
    key.type = node->key_type;
    print_scalar(&key);
}

static void print_node(const aq_yaml_node *node) {
    const aq_yaml_node *child;
    bool map = node->type == AQ_YAML_MAP;
    if (!map && node->type != AQ_YAML_LIST) {
        print_scalar(node);
        return;
    }
    printf(map ? "[\"map\",[" : "[\"list\",[");
    for (child = node->first; child; child = child->next) {
        if (child != node->first) printf(",");
        if (map) {
            printf("[");
            print_key(child);
            printf(",");
        }
        print_node(child);
        if (map) printf("]");
    }
    printf("]]");
}

static void print_string(const char *text) {
    for (printf("\""); *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 0x20 || c == '"' || c == '\\')
            printf("\\u%04x", (unsigned)c);
        else
            putchar(c);
    }
    printf("\"");
}

static void run(const char *text, size_t size) {
    aq_arena arena;
    aq_yaml_node *root = NULL;
    aq_error err;
    memset(&err, 0, sizeof err);
    aq_arena_init(&arena, NULL);
    if (aq_yaml_parse(&arena, text, size, "in", &root, &err) == AQ_OK) {
        printf("{\"ok\":");
        print_node(root);
    } else {
        printf("{\"error\":");
        print_string(err.message);
    }
    printf("}\n");
    aq_arena_free(&arena);
}

/* A copy of exactly `size` bytes, so that a sanitizer sees a read past the end. */
static char *read_bytes(size_t size) {
    char *text = (char *)malloc(size ? size : 1);
    if (!text || fread(text, 1, size, stdin) != size) exit(2);
    return text;
}

static char *read_all(size_t *size) {
    char *text = NULL, *grown;
    size_t capacity = 0, got;
    *size = 0;
    do {
        capacity = capacity * 2 + 4096;
        grown = (char *)realloc(text, capacity);
        if (!grown) exit(2);
        text = grown;
        got = fread(text + *size, 1, capacity - *size, stdin);
        *size += got;
    } while (got != 0);
    return text;
}

int main(int argc, char **argv) {
    char *text;
    size_t size;
    unsigned long announced;
    if (argc > 1 && strcmp(argv[1], "batch") == 0) {
        while (scanf("%lu", &announced) == 1) {
            if (getchar() != '\n') return 2;
            text = read_bytes((size_t)announced);
            run(text, (size_t)announced);
            free(text);
        }
        return 0;
    }
    text = read_all(&size);
    run(text, size);
    free(text);
    return 0;
}
