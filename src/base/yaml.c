/* The subset of YAML that configuration files use. Where PyYAML and the specification differ, this
 * follows PyYAML: users check their files with it. One pass, each byte looked at a bounded number
 * of times; recursion is bounded by AQ_YAML_DEPTH. */
#include "yaml.h"

#include "text.h"

#define AQ_YAML_KEY_LIMIT 1024u /* characters from a key's start to its ':', as in PyYAML */

typedef struct aq_yaml_parser {
    aq_arena *arena;
    const char *text, *source;
    size_t size, position;
    size_t line_start;    /* offset of the current line */
    size_t continuations; /* UTF-8 continuation bytes since then */
    uint32_t line;        /* from 1 */
    uint32_t depth;
    bool flow; /* inside [ ] or { } */
    aq_error *err;
} aq_yaml_parser;

/* A place to come back to in messages and comparisons. */
typedef struct aq_yaml_mark {
    uint32_t line, column; /* column from 0, in characters */
} aq_yaml_mark;

static aq_status aq_yaml_flow_node(aq_yaml_parser *p, aq_yaml_node **out);
static aq_status aq_yaml_block_node(aq_yaml_parser *p, bool own_line, aq_yaml_node **out);

/* ------------------------------------------------------------- characters */

/* The character `ahead` of the position; 0 past the end, and nowhere else. */
static char aq_yaml_peek(const aq_yaml_parser *p, size_t ahead) {
    return ahead < p->size - p->position ? p->text[p->position + ahead] : '\0';
}

static bool aq_yaml_is_break(char c) { return c == '\n' || c == '\r'; }

static bool aq_yaml_is_blank(char c) {
    return c == '\0' || c == ' ' || c == '\t' || aq_yaml_is_break(c);
}

static bool aq_yaml_is_flow_mark(char c) {
    return c == ',' || c == '[' || c == ']' || c == '{' || c == '}';
}

static aq_yaml_mark aq_yaml_here(const aq_yaml_parser *p) {
    aq_yaml_mark mark;
    mark.line = p->line;
    mark.column = (uint32_t)(p->position - p->line_start - p->continuations);
    return mark;
}

static aq_status aq_yaml_fail(const aq_yaml_parser *p, aq_yaml_mark at, const char *problem) {
    return aq_fail(p->err, AQ_ERR_CONFIGURATION, "%s:%u:%u: %s", p->source, (unsigned)at.line,
                   (unsigned)at.column + 1u, problem);
}

/* Over one byte of a line; columns count characters. */
static void aq_yaml_advance(aq_yaml_parser *p) {
    if (((unsigned char)p->text[p->position] & 0xC0u) == 0x80u) p->continuations++;
    p->position++;
}

static void aq_yaml_newline(aq_yaml_parser *p) {
    if (p->text[p->position] == '\r' && aq_yaml_peek(p, 1) == '\n') p->position++;
    p->position++;
    p->line++;
    p->line_start = p->position;
    p->continuations = 0;
}

/* Over spaces, comments and line ends; a tab stays where it is, to be refused. */
static void aq_yaml_skip(aq_yaml_parser *p) {
    for (;;) {
        while (aq_yaml_peek(p, 0) == ' ') p->position++;
        if (aq_yaml_peek(p, 0) == '#')
            while (p->position < p->size && !aq_yaml_is_break(p->text[p->position]))
                aq_yaml_advance(p);
        if (p->position == p->size || !aq_yaml_is_break(p->text[p->position])) return;
        aq_yaml_newline(p);
    }
}

/* "---" or "..." alone at the start of a line */
static bool aq_yaml_at_marker(const aq_yaml_parser *p, char c) {
    return p->position == p->line_start && aq_yaml_peek(p, 0) == c && aq_yaml_peek(p, 1) == c &&
           aq_yaml_peek(p, 2) == c && aq_yaml_is_blank(aq_yaml_peek(p, 3));
}

static bool aq_yaml_at_end(const aq_yaml_parser *p) {
    return p->position == p->size || aq_yaml_at_marker(p, '-') || aq_yaml_at_marker(p, '.');
}

static bool aq_yaml_at_item(const aq_yaml_parser *p) {
    return aq_yaml_peek(p, 0) == '-' && aq_yaml_is_blank(aq_yaml_peek(p, 1));
}

/* ':' after a key; inside [ ] and { } nothing need follow it */
static bool aq_yaml_at_value(const aq_yaml_parser *p) {
    return aq_yaml_peek(p, 0) == ':' && (p->flow || aq_yaml_is_blank(aq_yaml_peek(p, 1)));
}

/* What is wrong with the character here, where `expected` was; never NULL. */
static const char *aq_yaml_problem(const aq_yaml_parser *p, const char *expected) {
    if (!p->flow && p->position == p->line_start && aq_yaml_peek(p, 0) == '%')
        return "a directive, which is not supported";
    switch (aq_yaml_peek(p, 0)) {
    case '\t': return "a tab; indent and separate with spaces";
    case '&': return "an anchor, which is not supported; quote the text if it begins with &";
    case '*': return "an alias, which is not supported; quote the text if it begins with *";
    case '!': return "a tag, which is not supported; quote the text if it begins with !";
    case '|':
    case '>': return "a block scalar, which is not supported; write it on one line in quotes";
    case '%':
    case '@':
    case '`': return "a character that cannot begin text; quote it";
    case '?':
        if (p->flow || aq_yaml_is_blank(aq_yaml_peek(p, 1)))
            return "a complex key, which is not supported";
        break;
    case ':':
        if (p->flow || aq_yaml_is_blank(aq_yaml_peek(p, 1)))
            return "an empty key; put a key before the ':'";
        break;
    default: break;
    }
    return expected;
}

/* ---------------------------------------------------------------- scalars */

static aq_status aq_yaml_new_node(const aq_yaml_parser *p, aq_yaml_type type, aq_yaml_mark at,
                                  aq_yaml_node **out) {
    aq_yaml_node *node = (aq_yaml_node *)aq_arena_alloc(p->arena, sizeof *node);
    if (!node) return aq_fail_memory(p->err, sizeof *node);
    node->type = type;
    node->text = "";
    node->line = at.line;
    node->column = at.column + 1;
    *out = node;
    return AQ_OK;
}

static aq_status aq_yaml_new_null(const aq_yaml_parser *p, aq_yaml_node **out) {
    return aq_yaml_new_node(p, AQ_YAML_NULL, aq_yaml_here(p), out);
}

/* Over an unquoted scalar, which ends before " #", ": ", the end of the line or, inside [ ] and
 * { }, one of ,?[]{}. Returns its size; trailing spaces are passed over too. */
static size_t aq_yaml_scan_plain(aq_yaml_parser *p) {
    size_t start = p->position, end = start;
    for (;;) {
        char c = aq_yaml_peek(p, 0), next = aq_yaml_peek(p, 1);
        if (c == ' ') {
            p->position++;
            continue;
        }
        if (aq_yaml_is_blank(c) || (c == '#' && p->position != end)) break;
        if (c == ':' && (aq_yaml_is_blank(next) || (p->flow && aq_yaml_is_flow_mark(next)))) break;
        if (p->flow && (c == '?' || aq_yaml_is_flow_mark(c))) break;
        aq_yaml_advance(p);
        end = p->position;
    }
    return end - start;
}

static bool aq_yaml_begins_plain(const aq_yaml_parser *p) {
    char c = aq_yaml_peek(p, 0);
    if (aq_yaml_is_blank(c)) return false;
    if (c == '-' || (!p->flow && (c == '?' || c == ':')))
        return !aq_yaml_is_blank(aq_yaml_peek(p, 1));
    return strchr("-?:,[]{}#&*!|>'\"%@`", c) == NULL;
}

static aq_status aq_yaml_plain(aq_yaml_parser *p, aq_yaml_node **out) {
    aq_yaml_mark at = aq_yaml_here(p);
    const char *text = p->text + p->position, *problem;
    aq_yaml_node *node = NULL;
    aq_status status = aq_yaml_new_node(p, AQ_YAML_STRING, at, &node);
    if (status != AQ_OK) return status;
    node->size = aq_yaml_scan_plain(p);
    node->text = aq_arena_copy(p->arena, text, node->size);
    if (!node->text) return aq_fail_memory(p->err, node->size);
    problem = aq_yaml_resolve(node);
    /* a lone '=' is text where it is a key */
    if (problem && !(aq_text_equal(node->text, node->size, "=") && aq_yaml_at_value(p)))
        return aq_yaml_fail(p, at, problem);
    *out = node;
    return AQ_OK;
}

static size_t aq_yaml_put_utf8(char *out, uint32_t code) {
    if (code < 0x80u) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800u) {
        out[0] = (char)(unsigned char)(0xC0u | (code >> 6));
        out[1] = (char)(unsigned char)(0x80u | (code & 0x3Fu));
        return 2;
    }
    if (code < 0x10000u) {
        out[0] = (char)(unsigned char)(0xE0u | (code >> 12));
        out[1] = (char)(unsigned char)(0x80u | ((code >> 6) & 0x3Fu));
        out[2] = (char)(unsigned char)(0x80u | (code & 0x3Fu));
        return 3;
    }
    out[0] = (char)(unsigned char)(0xF0u | (code >> 18));
    out[1] = (char)(unsigned char)(0x80u | ((code >> 12) & 0x3Fu));
    out[2] = (char)(unsigned char)(0x80u | ((code >> 6) & 0x3Fu));
    out[3] = (char)(unsigned char)(0x80u | (code & 0x3Fu));
    return 4;
}

/* Reads what follows a backslash, up to 8 hexadecimal digits. NULL, or what is wrong. */
static const char *aq_yaml_escape(aq_yaml_parser *p, uint32_t *code) {
    static const char names[] = "0abt\tnvfre \"\\/N_LP";
    static const uint16_t codes[] = {0,   7,   8,    9,   9,    10,   11,  12,     13,
                                     27, ' ', '"', '\\', '/', 0x85, 0xA0, 0x2028, 0x2029};
    char c = aq_yaml_peek(p, 0);
    const char *name = c != '\0' ? strchr(names, c) : NULL;
    unsigned digits = c == 'x' ? 2u : c == 'u' ? 4u : c == 'U' ? 8u : 0u, i;
    if (aq_yaml_is_blank(c) && c != ' ' && c != '\t')
        return "quoted text over several lines, which is not supported; write it on one line";
    if (name) {
        *code = codes[name - names];
        aq_yaml_advance(p);
        return NULL;
    }
    if (digits == 0) return "an unknown escape; write \\\\ for a backslash, or use single quotes";
    aq_yaml_advance(p);
    *code = 0;
    for (i = 0; i < digits; i++) {
        unsigned value;
        c = aq_yaml_peek(p, 0);
        if (c >= '0' && c <= '9')
            value = (unsigned)(c - '0');
        else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))
            value = (unsigned)((c | 0x20) - 'a') + 10u;
        else
            return "an escape with too few hexadecimal digits (\\x takes 2, \\u 4, \\U 8)";
        *code = *code * 16u + value;
        aq_yaml_advance(p);
    }
    if (*code > 0x10FFFFu || (*code >= 0xD800u && *code <= 0xDFFFu))
        return "an escape that is no character; beyond U+FFFF write \\U and 8 digits";
    return NULL;
}

/* *size: bytes up to the closing quote; false when the line ends first. */
static bool aq_yaml_quoted_size(const aq_yaml_parser *p, char quote, size_t *size) {
    size_t i = 1;
    for (;;) {
        char c = aq_yaml_peek(p, i), next = aq_yaml_peek(p, i + 1);
        bool pair = (c == '\\' && quote == '"') || (c == quote && next == quote && quote == '\'');
        if (c == '\0' || aq_yaml_is_break(c)) return false;
        if (pair && (next == '\0' || aq_yaml_is_break(next))) return false;
        if (c == quote && !pair) break;
        i += pair ? 2 : 1;
    }
    *size = i - 1;
    return true;
}

static aq_status aq_yaml_quoted(aq_yaml_parser *p, aq_yaml_node **out) {
    aq_yaml_mark at = aq_yaml_here(p);
    char quote = aq_yaml_peek(p, 0), *text;
    size_t raw = 0, size = 0, capacity;
    aq_yaml_node *node = NULL;
    aq_status status = aq_yaml_new_node(p, AQ_YAML_STRING, at, &node);
    if (status != AQ_OK) return status;
    if (!aq_yaml_quoted_size(p, quote, &raw))
        return aq_yaml_fail(p, at, "quoted text that does not end on its line; text over several "
                                   "lines is not supported");
    capacity = raw + raw / 2 + 1; /* \L and \P take two bytes and make three */
    text = (char *)aq_arena_alloc(p->arena, capacity);
    if (!text) return aq_fail_memory(p->err, capacity);
    aq_yaml_advance(p);
    while (aq_yaml_peek(p, 0) != quote || (quote == '\'' && aq_yaml_peek(p, 1) == quote)) {
        char c = aq_yaml_peek(p, 0);
        if (c == '\\' && quote == '"') {
            aq_yaml_mark escape = aq_yaml_here(p);
            uint32_t code = 0;
            const char *problem;
            aq_yaml_advance(p);
            problem = aq_yaml_escape(p, &code);
            if (problem) return aq_yaml_fail(p, escape, problem);
            size += aq_yaml_put_utf8(text + size, code);
            continue;
        }
        text[size++] = c;
        aq_yaml_advance(p);
        if (c == '\'' && quote == '\'') aq_yaml_advance(p);
    }
    aq_yaml_advance(p);
    text[size] = '\0';
    node->text = text;
    node->size = size;
    *out = node;
    return AQ_OK;
}

static aq_status aq_yaml_scalar(aq_yaml_parser *p, const char *expected, aq_yaml_node **out) {
    char c = aq_yaml_peek(p, 0);
    aq_status status;
    if (c == '"' || c == '\'') {
        status = aq_yaml_quoted(p, out);
        if (status != AQ_OK) return status;
        while (aq_yaml_peek(p, 0) == ' ') p->position++;
        return AQ_OK;
    }
    if (aq_yaml_begins_plain(p)) return aq_yaml_plain(p, out);
    return aq_yaml_fail(p, aq_yaml_here(p), aq_yaml_problem(p, expected));
}

/* --------------------------------------------------------- lists and maps */

static aq_status aq_yaml_open(aq_yaml_parser *p, aq_yaml_type type, aq_yaml_mark at,
                              aq_yaml_node **out) {
    if (p->depth == AQ_YAML_DEPTH) return aq_yaml_fail(p, at, "more than 64 levels");
    p->depth++;
    return aq_yaml_new_node(p, type, at, out);
}

static void aq_yaml_add(aq_yaml_node *parent, aq_yaml_node **last, aq_yaml_node *child) {
    if (*last)
        (*last)->next = child;
    else
        parent->first = child;
    *last = child;
    parent->count++;
}

static void aq_yaml_name(aq_yaml_node *value, const aq_yaml_node *key) {
    value->key = key->text;
    value->key_size = key->size;
    value->key_type = key->type;
    value->key_line = key->line;
    value->key_column = key->column;
}

static aq_status aq_yaml_check_key(const aq_yaml_parser *p, const aq_yaml_node *key) {
    aq_yaml_mark at, here = aq_yaml_here(p);
    at.line = key->line;
    at.column = key->column - 1;
    if (key->type == AQ_YAML_LIST || key->type == AQ_YAML_MAP)
        return aq_yaml_fail(p, at, "a list or map as a key, which is not supported");
    if (here.line != at.line)
        return aq_yaml_fail(p, here, "a ':' that is not on the line of its key; keys over several "
                                     "lines are not supported");
    if (here.column - at.column > AQ_YAML_KEY_LIMIT)
        return aq_yaml_fail(p, at, "a key of more than 1024 characters");
    return AQ_OK;
}

/* A key as Python compares it: 1, 1.0 and true are one key. Numbers that are whole are INT. */
static void aq_yaml_key_value(const aq_yaml_node *node, aq_yaml_node *key) {
    memset(key, 0, sizeof *key);
    key->text = node->key;
    key->size = node->key_size;
    key->type = AQ_YAML_STRING;
    if (node->key_type == AQ_YAML_STRING) return;
    (void)aq_yaml_resolve(key);
    if (key->type == AQ_YAML_BOOL) {
        key->type = AQ_YAML_INT;
        key->magnitude = key->boolean ? 1u : 0u;
    } else if (key->type == AQ_YAML_FLOAT) {
        double size = key->number < 0 ? -key->number : key->number;
        if (size < 18446744073709551616.0 && size == (double)(uint64_t)size) {
            key->type = AQ_YAML_INT;
            key->magnitude = (uint64_t)size;
            key->negative = key->number < 0;
        }
    }
}

static int aq_yaml_compare_keys(const aq_yaml_node *a, const aq_yaml_node *b) {
    aq_yaml_node x, y;
    aq_yaml_key_value(a, &x);
    aq_yaml_key_value(b, &y);
    if (x.type != y.type) return x.type < y.type ? -1 : 1;
    if (x.type == AQ_YAML_STRING) {
        int order = 0;
        size_t shorter = x.size < y.size ? x.size : y.size;
        if (shorter != 0) order = memcmp(x.text, y.text, shorter);
        if (order != 0) return order;
        return x.size == y.size ? 0 : x.size < y.size ? -1 : 1;
    }
    if (x.type == AQ_YAML_INT) {
        if (x.negative != y.negative) return x.negative ? -1 : 1;
        return x.magnitude == y.magnitude ? 0 : x.magnitude < y.magnitude ? -1 : 1;
    }
    if (x.type == AQ_YAML_FLOAT) { /* every NaN is one key, after the others */
        bool x_nan = x.number != x.number, y_nan = y.number != y.number;
        if (x_nan || y_nan) return (int)x_nan - (int)y_nan;
        return x.number == y.number ? 0 : x.number < y.number ? -1 : 1;
    }
    return 0;
}

/* Stable: of equal keys the first in the text stays first. */
static void aq_yaml_sort(const aq_yaml_node **nodes, const aq_yaml_node **spare, size_t count) {
    size_t width, i, a, b, a_end, b_end, out;
    for (width = 1; width < count; width *= 2) {
        for (i = 0; i < count; i += 2 * width) {
            a = i;
            a_end = b = count - i > width ? i + width : count;
            b_end = count - b > width ? b + width : count;
            for (out = i; out < b_end; out++) {
                bool first = b == b_end ||
                             (a < a_end && aq_yaml_compare_keys(nodes[a], nodes[b]) <= 0);
                spare[out] = first ? nodes[a++] : nodes[b++];
            }
        }
        memcpy((void *)nodes, (const void *)spare, count * sizeof *nodes);
    }
}

static aq_status aq_yaml_check_duplicates(const aq_yaml_parser *p, const aq_yaml_node *map) {
    const aq_yaml_node **nodes, *node, *first = NULL, *second = NULL;
    size_t i = 0, size;
    if (map->count < 2) return AQ_OK;
    if (!aq_mul_size(map->count, 2 * sizeof *nodes, &size)) return aq_fail_memory(p->err, 0);
    nodes = (const aq_yaml_node **)aq_arena_alloc(p->arena, size);
    if (!nodes) return aq_fail_memory(p->err, size);
    for (node = map->first; node; node = node->next) nodes[i++] = node;
    aq_yaml_sort(nodes, nodes + map->count, map->count);
    for (i = 1; i < map->count; i++) {
        if (aq_yaml_compare_keys(nodes[i - 1], nodes[i]) != 0) continue;
        node = nodes[i];
        if (!second || node->key_line < second->key_line ||
            (node->key_line == second->key_line && node->key_column < second->key_column)) {
            first = nodes[i - 1];
            second = node;
        }
    }
    if (!second) return AQ_OK;
    return aq_fail(p->err, AQ_ERR_CONFIGURATION,
                   "%s:%u:%u: a second key \"%s\"; the first is on line %u, column %u", p->source,
                   (unsigned)second->key_line, (unsigned)second->key_column, second->key,
                   (unsigned)first->key_line, (unsigned)first->key_column);
}

/* -------------------------------------------------------------------- flow */

/* What follows a key inside [ ] or { }, up to the next ',' or bracket. */
static aq_status aq_yaml_flow_value(aq_yaml_parser *p, const aq_yaml_node *key,
                                    aq_yaml_node **out) {
    aq_status status = aq_yaml_check_key(p, key);
    char c;
    if (status != AQ_OK) return status;
    p->position++;
    aq_yaml_skip(p);
    c = aq_yaml_peek(p, 0);
    status = c == ',' || c == ']' || c == '}' ? aq_yaml_new_null(p, out)
                                              : aq_yaml_flow_node(p, out);
    if (status != AQ_OK) return status;
    aq_yaml_name(*out, key);
    aq_yaml_skip(p);
    return AQ_OK;
}

/* `a: 1` as an item of a list is a map of one pair. */
static aq_status aq_yaml_flow_pair(aq_yaml_parser *p, aq_yaml_node **item) {
    aq_yaml_node *map = NULL, *value = NULL, *last = NULL;
    aq_yaml_mark at;
    aq_status status;
    at.line = (*item)->line;
    at.column = (*item)->column - 1;
    status = aq_yaml_open(p, AQ_YAML_MAP, at, &map);
    if (status != AQ_OK) return status;
    status = aq_yaml_flow_value(p, *item, &value);
    if (status != AQ_OK) return status;
    aq_yaml_add(map, &last, value);
    *item = map;
    p->depth--;
    return AQ_OK;
}

static aq_status aq_yaml_flow_entry(aq_yaml_parser *p, bool is_map, aq_yaml_node **out) {
    aq_yaml_node *entry = NULL, *value = NULL;
    aq_status status = aq_yaml_flow_node(p, &entry);
    if (status != AQ_OK) return status;
    aq_yaml_skip(p);
    *out = entry;
    if (!is_map) return aq_yaml_at_value(p) ? aq_yaml_flow_pair(p, out) : AQ_OK;
    if (aq_yaml_at_value(p)) return aq_yaml_flow_value(p, entry, out);
    if (entry->type == AQ_YAML_LIST || entry->type == AQ_YAML_MAP)
        return aq_yaml_check_key(p, entry);
    status = aq_yaml_new_null(p, &value); /* {a} means {a: null} */
    if (status != AQ_OK) return status;
    aq_yaml_name(value, entry);
    *out = value;
    return AQ_OK;
}

static aq_status aq_yaml_flow_collection(aq_yaml_parser *p, aq_yaml_node **out) {
    bool is_map = aq_yaml_peek(p, 0) == '{', outer = p->flow;
    char close = is_map ? '}' : ']';
    aq_yaml_node *node = NULL, *child = NULL, *last = NULL;
    aq_yaml_mark start = aq_yaml_here(p);
    aq_status status = aq_yaml_open(p, is_map ? AQ_YAML_MAP : AQ_YAML_LIST, start, &node);
    if (status != AQ_OK) return status;
    p->flow = true;
    p->position++;
    for (;;) {
        aq_yaml_skip(p);
        if (aq_yaml_peek(p, 0) == close) break;
        status = aq_yaml_flow_entry(p, is_map, &child);
        if (status != AQ_OK) return status;
        aq_yaml_add(node, &last, child);
        if (aq_yaml_peek(p, 0) == close) break;
        if (p->position == p->size)
            return aq_yaml_fail(p, start, is_map ? "a '{' that is never closed"
                                                 : "a '[' that is never closed");
        if (aq_yaml_peek(p, 0) != ',')
            return aq_yaml_fail(p, aq_yaml_here(p), aq_yaml_problem(p,
                                is_map ? "expected ',' or '}' here; text over several lines "
                                         "must be quoted on one line"
                                       : "expected ',' or ']' here; text over several lines "
                                         "must be quoted on one line"));
        p->position++;
    }
    p->position++;
    p->flow = outer;
    p->depth--;
    *out = node;
    return is_map ? aq_yaml_check_duplicates(p, node) : AQ_OK;
}

static aq_status aq_yaml_flow_node(aq_yaml_parser *p, aq_yaml_node **out) {
    char c = aq_yaml_peek(p, 0);
    if (c == '[' || c == '{') return aq_yaml_flow_collection(p, out);
    if (p->position == p->size)
        return aq_yaml_fail(p, aq_yaml_here(p), "a '[' or '{' that is never closed");
    if (aq_yaml_at_end(p))
        return aq_yaml_fail(p, aq_yaml_here(p), "a document marker inside [ ] or { }");
    return aq_yaml_scalar(p, "expected a value here", out);
}

/* ------------------------------------------------------------------- block */

/* After a value: nothing but a comment may follow on its line. */
static aq_status aq_yaml_end_line(aq_yaml_parser *p, uint32_t line) {
    aq_yaml_skip(p);
    if (aq_yaml_at_end(p) || p->line != line) return AQ_OK;
    if (aq_yaml_at_value(p))
        return aq_yaml_fail(p, aq_yaml_here(p), "a ':' that cannot stand here; quote the text if "
                                                "the ':' belongs to it");
    return aq_yaml_fail(p, aq_yaml_here(p),
                        aq_yaml_problem(p, "text after a value; expected the end of the line"));
}

/* Where a further line of text may stand, few characters are wrong for themselves. */
static const char *aq_yaml_continues(const aq_yaml_parser *p, const char *problem) {
    char c = aq_yaml_peek(p, 0);
    return c == '\t' || c == '|' || c == '>' ? aq_yaml_problem(p, problem) : problem;
}

/* After the entries of a block at `column`: true when another one begins here. */
static aq_status aq_yaml_more(const aq_yaml_parser *p, uint32_t column, bool *more) {
    aq_yaml_mark here = aq_yaml_here(p);
    *more = !aq_yaml_at_end(p) && here.column == column;
    if (aq_yaml_at_end(p) || here.column <= column) return AQ_OK;
    return aq_yaml_fail(p, here, aq_yaml_continues(p,
                        "indented deeper than what it could belong to; a value over several "
                        "lines must be quoted on one line"));
}

static aq_status aq_yaml_block_list(aq_yaml_parser *p, aq_yaml_node **out) {
    aq_yaml_mark start = aq_yaml_here(p), here;
    aq_yaml_node *node = NULL, *item = NULL, *last = NULL;
    bool more = true;
    aq_status status = aq_yaml_open(p, AQ_YAML_LIST, start, &node);
    if (status != AQ_OK) return status;
    while (more && aq_yaml_at_item(p)) {
        uint32_t line = p->line;
        p->position++;
        aq_yaml_skip(p);
        here = aq_yaml_here(p);
        if (aq_yaml_at_end(p) || (here.line != line && here.column <= start.column))
            status = aq_yaml_new_null(p, &item);
        else
            status = aq_yaml_block_node(p, true, &item);
        if (status != AQ_OK) return status;
        aq_yaml_add(node, &last, item);
        status = aq_yaml_more(p, start.column, &more);
        if (status != AQ_OK) return status;
    }
    p->depth--;
    *out = node;
    return AQ_OK;
}

/* What follows the ':' of a key that stands at `column`. */
static aq_status aq_yaml_block_value(aq_yaml_parser *p, uint32_t column, aq_yaml_node **out) {
    uint32_t line = p->line;
    aq_yaml_mark here;
    p->position++;
    aq_yaml_skip(p);
    here = aq_yaml_here(p);
    if (aq_yaml_at_end(p)) return aq_yaml_new_null(p, out);
    if (here.line == line) return aq_yaml_block_node(p, false, out);
    if (here.column > column) return aq_yaml_block_node(p, true, out);
    if (here.column == column && aq_yaml_at_item(p)) return aq_yaml_block_list(p, out);
    return aq_yaml_new_null(p, out);
}

/* A map whose first key has been read. */
static aq_status aq_yaml_block_map(aq_yaml_parser *p, aq_yaml_node *key, aq_yaml_node **out) {
    aq_yaml_node *node = NULL, *value = NULL, *last = NULL;
    aq_yaml_mark start;
    bool more;
    aq_status status;
    start.line = key->line;
    start.column = key->column - 1;
    status = aq_yaml_open(p, AQ_YAML_MAP, start, &node);
    if (status != AQ_OK) return status;
    for (;;) {
        status = aq_yaml_check_key(p, key);
        if (status == AQ_OK) status = aq_yaml_block_value(p, start.column, &value);
        if (status != AQ_OK) return status;
        aq_yaml_name(value, key);
        aq_yaml_add(node, &last, value);
        status = aq_yaml_more(p, start.column, &more);
        if (status != AQ_OK) return status;
        if (!more) break;
        if (aq_yaml_at_item(p))
            return aq_yaml_fail(p, aq_yaml_here(p), "a list item where a key was expected");
        status = aq_yaml_scalar(p, "expected a key here", &key);
        if (status != AQ_OK) return status;
        if (!aq_yaml_at_value(p))
            return aq_yaml_fail(p, aq_yaml_here(p), aq_yaml_problem(p,
                                "expected ': ' after the key"));
    }
    p->depth--;
    *out = node;
    return aq_yaml_check_duplicates(p, node);
}

/* A node that begins here. Only where `own_line` (not after a key on the same line) may it be a
 * block list or map. Stops before the next line that has content. */
static aq_status aq_yaml_block_node(aq_yaml_parser *p, bool own_line, aq_yaml_node **out) {
    aq_yaml_mark start = aq_yaml_here(p);
    char c = aq_yaml_peek(p, 0);
    aq_status status;
    if (aq_yaml_at_item(p)) {
        if (own_line) return aq_yaml_block_list(p, out);
        return aq_yaml_fail(p, start, "a list that begins on the line of its key; begin it on the "
                                      "next line");
    }
    if (c == '[' || c == '{') {
        status = aq_yaml_flow_collection(p, out);
        while (status == AQ_OK && aq_yaml_peek(p, 0) == ' ') p->position++;
        if (status == AQ_OK && own_line && aq_yaml_at_value(p)) return aq_yaml_check_key(p, *out);
    } else {
        status = aq_yaml_scalar(p, "expected a value here", out);
        if (status == AQ_OK && own_line && aq_yaml_at_value(p))
            return aq_yaml_block_map(p, *out, out);
    }
    return status == AQ_OK ? aq_yaml_end_line(p, p->line) : status;
}

/* ---------------------------------------------------------------- document */

/* PyYAML's line ends outside ASCII and its unprintable characters; 0 when fine, else their size. */
static size_t aq_yaml_unprintable(const unsigned char *s, size_t left) {
    if (s[0] < 0x20u) return s[0] == '\t' || s[0] == '\n' || s[0] == '\r' ? 0u : 1u;
    if (s[0] == 0x7Fu) return 1;
    if (s[0] == 0xC2u && left > 1 && s[1] < 0xA0u) return 2;
    if (left < 3) return 0;
    if (s[0] == 0xE2u && s[1] == 0x80u && (s[2] == 0xA8u || s[2] == 0xA9u)) return 3;
    if (s[0] == 0xEFu && s[1] == 0xBBu && s[2] == 0xBFu) return 3;
    if (s[0] == 0xEFu && s[1] == 0xBFu && s[2] >= 0xBEu) return 3;
    return 0;
}

/* The position becomes `bad`, so that a message can name its line and column. */
static void aq_yaml_go_to(aq_yaml_parser *p, size_t bad) {
    while (p->position < bad) {
        if (aq_yaml_is_break(p->text[p->position]))
            aq_yaml_newline(p);
        else
            aq_yaml_advance(p);
    }
}

static aq_status aq_yaml_check_characters(aq_yaml_parser *p) {
    size_t i;
    if (!aq_is_utf8(p->text + p->position, p->size - p->position, &i)) {
        aq_yaml_go_to(p, p->position + i);
        return aq_yaml_fail(p, aq_yaml_here(p), "not valid UTF-8");
    }
    for (i = p->position; i < p->size; i++) {
        if (aq_yaml_unprintable((const unsigned char *)p->text + i, p->size - i) == 0) continue;
        aq_yaml_go_to(p, i);
        return aq_yaml_fail(p, aq_yaml_here(p), "a control character; write it as an escape such "
                                                "as \"\\x07\" in double quotes");
    }
    return AQ_OK;
}

/* Over "---" or "..." with nothing else on its line. */
static aq_status aq_yaml_marker(aq_yaml_parser *p) {
    uint32_t line = p->line;
    p->position += 3;
    aq_yaml_skip(p);
    if (p->position == p->size || p->line != line) return AQ_OK;
    return aq_yaml_fail(p, aq_yaml_here(p), aq_yaml_problem(p,
                        "text on the line of a document marker; put it on the next line"));
}

static aq_status aq_yaml_document(aq_yaml_parser *p, aq_yaml_node **root) {
    bool started = false;
    aq_status status;
    aq_yaml_skip(p);
    if (aq_yaml_at_marker(p, '-')) {
        started = true;
        status = aq_yaml_marker(p);
        if (status != AQ_OK) return status;
    }
    if (aq_yaml_at_marker(p, '.') && !started)
        return aq_yaml_fail(p, aq_yaml_here(p), "an end marker without a document");
    if (aq_yaml_at_end(p))
        status = aq_yaml_new_null(p, root);
    else
        status = aq_yaml_block_node(p, true, root);
    while (status == AQ_OK && aq_yaml_at_marker(p, '.')) {
        status = aq_yaml_marker(p);
        started = false;
    }
    if (status != AQ_OK || p->position == p->size) return status;
    if (aq_yaml_at_marker(p, '-'))
        return aq_yaml_fail(p, aq_yaml_here(p), "a second document, which is not supported");
    return aq_yaml_fail(p, aq_yaml_here(p), aq_yaml_continues(p,
                        (*root)->type == AQ_YAML_LIST || (*root)->type == AQ_YAML_MAP
                            ? "not indented like the lines above; expected the end of the text"
                            : "text over several lines, which is not supported"));
}

AQ_LIB aq_status aq_yaml_parse(aq_arena *arena, const char *text, size_t size, const char *source,
                               aq_yaml_node **root, aq_error *err) {
    aq_yaml_parser parser;
    aq_status status;
    memset(&parser, 0, sizeof parser);
    parser.arena = arena;
    parser.text = text;
    parser.source = source ? source : "YAML";
    parser.size = size;
    parser.line = 1;
    parser.err = err;
    if (size > AQ_YAML_SIZE_LIMIT)
        return aq_fail(err, AQ_ERR_CONFIGURATION, "%s: more than 1 GiB of YAML", parser.source);
    if (size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) parser.position = parser.line_start = 3;
    status = aq_yaml_check_characters(&parser);
    return status == AQ_OK ? aq_yaml_document(&parser, root) : status;
}

AQ_LIB const aq_yaml_node *aq_yaml_get(const aq_yaml_node *map, const char *key) {
    const aq_yaml_node *node;
    if (!map || map->type != AQ_YAML_MAP) return NULL;
    for (node = map->first; node; node = node->next)
        if (aq_text_equal(node->key, node->key_size, key)) return node;
    return NULL;
}

#undef AQ_YAML_KEY_LIMIT
