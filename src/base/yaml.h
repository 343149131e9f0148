/* The part of YAML that configuration files use: nested block maps and lists, flow maps and lists,
 * plain, single- and double-quoted scalars, comments, null, booleans, numbers, CRLF, a byte order
 * mark. What it accepts means what PyYAML's safe_load says (YAML 1.1: yes/no/on/off are booleans,
 * 010 is octal, …). Anchors, aliases, tags, block scalars, multi-line scalars, tabs as indentation,
 * merge keys, complex keys, duplicate keys, timestamps and second documents are refused with line
 * and column. */
#ifndef AQ_YAML_H
#define AQ_YAML_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_YAML_DEPTH 64                   /* levels of lists and maps */
#define AQ_YAML_SIZE_LIMIT 0x40000000u     /* bytes */

typedef enum aq_yaml_type {
    AQ_YAML_NULL,
    AQ_YAML_BOOL,
    AQ_YAML_INT,
    AQ_YAML_FLOAT,
    AQ_YAML_STRING,
    AQ_YAML_LIST,
    AQ_YAML_MAP
} aq_yaml_type;

typedef struct aq_yaml_node {
    aq_yaml_type type;
    const char *key; /* in a map: the key's text (any scalar key keeps its text); else NULL */
    size_t key_size;
    aq_yaml_type key_type;
    uint32_t key_line, key_column; /* from 1 */
    const char *text; /* a scalar's text, escapes undone; also for null, booleans and numbers */
    size_t size;
    bool boolean;
    bool negative;      /* INT: the sign */
    uint64_t magnitude; /* INT: beyond 64 bits is refused */
    double number;      /* INT, FLOAT */
    uint32_t line, column; /* from 1 */
    size_t count;
    struct aq_yaml_node *first, *next;
} aq_yaml_node;

/* An empty document is a NULL node of type AQ_YAML_NULL. Status: AQ_ERR_CONFIGURATION. */
AQ_LIB aq_status aq_yaml_parse(aq_arena *arena, const char *text, size_t size, const char *source,
                               aq_yaml_node **root, aq_error *err);
/* The unquoted scalar node->text, node->size: fills the type and value, allocates nothing. NULL, or
 * why it is refused. (base/yaml_scalar.c) */
AQ_LIB const char *aq_yaml_resolve(aq_yaml_node *node);
AQ_LIB const aq_yaml_node *aq_yaml_get(const aq_yaml_node *map, const char *key);

#ifdef __cplusplus
}
#endif
#endif /* AQ_YAML_H */
