/* Configurations as YAML, in and out. */
#include "fields.h"

#include "../base/file.h"
#include "../base/text.h"

#define AQ_CONFIG_PATH 96u             /* longer than every path of a field */
#define AQ_CONFIG_FILE_LIMIT 16777216u /* bytes */

/* ---------------------------------------------------------------- reading */

typedef struct aq_config_reader {
    const aq_context *context;
    aq_config *config;
    const char *source;
    aq_error *err;
} aq_config_reader;

/* `prefix` ends in a dot, so that only whole names match. */
static bool aq_is_section(const char *prefix, size_t size) {
    unsigned i;
    for (i = 0; i < AQ_FIELD_COUNT; i++)
        if (strncmp(aq_field_at((aq_field_id)i)->path, prefix, size) == 0) return true;
    return false;
}

static aq_status aq_read_section(aq_config_reader *reader, const aq_yaml_node *map,
                                 const char *prefix);

/* One pair of a map: a field, or a section with fields of its own. */
static aq_status aq_read_pair(aq_config_reader *reader, const aq_yaml_node *pair,
                              const char *prefix) {
    char path[AQ_CONFIG_PATH];
    size_t before = strlen(prefix), size = before + pair->key_size;
    aq_field_id id = AQ_FIELD_COUNT;
    aq_field_origin origin;
    origin.source = reader->source;
    origin.line = pair->key_line;
    origin.column = pair->key_column;
    if (aq_field_find(pair->key, pair->key_size) != AQ_FIELD_COUNT &&
        memchr(pair->key, '.', pair->key_size))
        return aq_fail(reader->err, AQ_ERR_CONFIGURATION,
                       "%s:%u:%u: write \"%s\" as maps within maps, one for each dot",
                       origin.source, (unsigned)origin.line, (unsigned)origin.column, pair->key);
    if (size + 2 > sizeof path || memchr(pair->key, '.', pair->key_size) ||
        memchr(pair->key, '\0', pair->key_size) || pair->key_size == 0)
        return aq_field_fail_unknown(&origin, prefix, pair->key, pair->key_size, reader->err);
    memcpy(path, prefix, before);
    memcpy(path + before, pair->key, pair->key_size);
    id = aq_field_find(path, size);
    if (id == AQ_FIELD_deployment_profile) return AQ_OK; /* it was the first to be read */
    if (id != AQ_FIELD_COUNT)
        return aq_field_assign(reader->context, reader->config, id, pair, reader->source,
                               reader->err);
    path[size++] = '.';
    path[size] = '\0';
    if (!aq_is_section(path, size))
        return aq_field_fail_unknown(&origin, prefix, pair->key, pair->key_size, reader->err);
    if (pair->type == AQ_YAML_NULL) return AQ_OK; /* all of its fields are commented out */
    if (pair->type == AQ_YAML_MAP) return aq_read_section(reader, pair, path);
    return aq_fail(reader->err, AQ_ERR_CONFIGURATION,
                   "%s:%u:%u: %.*s: expected a map of fields, one on each line", reader->source,
                   (unsigned)pair->line, (unsigned)pair->column, (int)size - 1, path);
}

static aq_status aq_read_section(aq_config_reader *reader, const aq_yaml_node *map,
                                 const char *prefix) {
    const aq_yaml_node *pair;
    aq_status status = AQ_OK;
    for (pair = map->first; pair && status == AQ_OK; pair = pair->next)
        status = aq_read_pair(reader, pair, prefix);
    return status;
}

static aq_status aq_read_root(aq_config_reader *reader, const aq_yaml_node *root) {
    const aq_yaml_node *profile;
    aq_status status = AQ_OK;
    if (root->type == AQ_YAML_NULL) return AQ_OK;
    if (root->type != AQ_YAML_MAP)
        return aq_fail(reader->err, AQ_ERR_CONFIGURATION,
                       "%s:%u:%u: expected a map of fields such as \"bit_width: 4\"",
                       reader->source, (unsigned)root->line, (unsigned)root->column);
    profile = aq_yaml_get(root, "deployment_profile");
    if (profile)
        status = aq_field_assign(reader->context, reader->config, AQ_FIELD_deployment_profile,
                                 profile, reader->source, reader->err);
    return status == AQ_OK ? aq_read_section(reader, root, "") : status;
}

ARROWQUANT_API aq_status aq_config_from_yaml(aq_context *context, const char *text, size_t size,
                                             const char *source, aq_config *out, aq_error *err) {
    aq_config config = aq_config_from_profile(AQ_PROFILE_LOCAL);
    aq_config_reader reader;
    aq_yaml_node *root = NULL;
    aq_arena arena;
    aq_status status;
    if ((!text && size != 0) || !out)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_config_from_yaml: NULL");
    reader.context = context;
    reader.config = &config;
    reader.source = source ? source : "YAML";
    reader.err = err;
    aq_arena_init(&arena, context);
    status = aq_yaml_parse(&arena, size != 0 ? text : "", size, reader.source, &root, err);
    if (status == AQ_OK) status = aq_read_root(&reader, root);
    aq_arena_free(&arena);
    if (status == AQ_OK)
        *out = config;
    else
        aq_config_free(&config);
    return status;
}

/* ---------------------------------------------------------------- writing */

/* Text that is the same in every reader without quotes. */
static bool aq_is_plain_yaml(const char *text, size_t size) {
    aq_yaml_node node;
    size_t i;
    for (i = 0; i < size; i++) {
        char c = text[i];
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_') continue;
        if (i == 0 || !((c >= '0' && c <= '9') || c == '.' || c == '-' || c == '/')) return false;
    }
    memset(&node, 0, sizeof node);
    node.text = text;
    node.size = size;
    return !aq_yaml_resolve(&node) && node.type == AQ_YAML_STRING;
}

/* The code point of a character that must be escaped, and its bytes; else 0 bytes. */
static size_t aq_yaml_must_escape(const unsigned char *s, unsigned *code) {
    *code = s[0];
    if (s[0] < 0x20u || s[0] == 0x7Fu || s[0] == '"' || s[0] == '\\') return 1;
    if (s[0] == 0xC2u && s[1] < 0xA0u) {
        *code = s[1];
        return 2;
    }
    if (s[0] == 0xE2u && s[1] == 0x80u && (s[2] == 0xA8u || s[2] == 0xA9u)) {
        *code = 0x2000u + (s[2] & 0x3Fu);
        return 3;
    }
    if (s[0] == 0xEFu && s[1] == 0xBBu && s[2] == 0xBFu) {
        *code = 0xFEFFu;
        return 3;
    }
    if (s[0] == 0xEFu && s[1] == 0xBFu && s[2] >= 0xBEu) {
        *code = 0xFFC0u + (s[2] & 0x3Fu);
        return 3;
    }
    return 0;
}

/* `text` is 0-terminated UTF-8. */
static void aq_append_yaml_text(aq_builder *out, const char *text) {
    static const char hex[] = "0123456789abcdef";
    const unsigned char *s = (const unsigned char *)text;
    if (aq_is_plain_yaml(text, strlen(text))) {
        aq_append_string(out, text);
        return;
    }
    aq_append(out, "\"", 1);
    while (*s) {
        unsigned code;
        size_t size = aq_yaml_must_escape(s, &code);
        if (size == 0) {
            aq_append(out, (const char *)s++, 1);
            continue;
        }
        s += size;
        if (code == '"' || code == '\\')
            aq_append_format(out, "\\%c", (int)code);
        else if (code < 0x100u)
            aq_append_format(out, "\\x%c%c", hex[code >> 4], hex[code & 15u]);
        else
            aq_append_format(out, "\\u%c%c%c%c", hex[code >> 12], hex[code >> 8 & 15u],
                             hex[code >> 4 & 15u], hex[code & 15u]);
    }
    aq_append(out, "\"", 1);
}

/* As Python writes it, but with a point: YAML reads 1e-05 as text. */
static void aq_append_yaml_double(aq_builder *out, double value) {
    char text[AQ_DOUBLE_TEXT];
    size_t size = aq_format_double(value, text), i;
    const char *e = (const char *)memchr(text, 'e', size);
    i = e ? (size_t)(e - text) : size;
    aq_append(out, text, i);
    if (e && !memchr(text, '.', i)) aq_append(out, ".0", 2);
    aq_append(out, text + i, size - i);
}

static void aq_append_number(aq_builder *out, const aq_config *config, aq_field_id id) {
    double number = aq_field_number(config, id);
    const aq_field *field = aq_field_at(id);
    if (field->kind == AQ_KIND_BOOL)
        aq_append_string(out, number != 0.0 ? "true" : "false");
    else if (number != number)
        aq_append_string(out, "null");
    else if (field->kind == AQ_KIND_FLOAT || field->kind == AQ_KIND_FLOAT_OR_NONE)
        aq_append_yaml_double(out, number);
    else if (aq_field_value_name(field->kind, 0))
        aq_append_string(out, aq_field_value_name(field->kind, (unsigned)number));
    else
        aq_append_format(out, "%llu", (unsigned long long)number);
}

/* What follows "name:", with the line's end. Lists stand below, indented by `indent` + 2. */
static void aq_append_value(aq_builder *out, const aq_config *config, aq_field_id id,
                            size_t indent) {
    static const char spaces[] = "        ";
    const void *member = aq_field_of_const(config, id);
    aq_field_kind kind = aq_field_at(id)->kind;
    size_t i, count = aq_field_count(config, id);
    if (!aq_field_is_text(kind)) {
        aq_append(out, " ", 1);
        aq_append_number(out, config, id);
    } else if (kind == AQ_KIND_NAME) {
        aq_append(out, " ", 1);
        if (*(const char *const *)member)
            aq_append_yaml_text(out, *(const char *const *)member);
        else
            aq_append_string(out, "null");
    } else if (count == 0) {
        aq_append_string(out, kind == AQ_KIND_BITS_LIST ? " {}" : " []");
    }
    aq_append(out, "\n", 1);
    for (i = 0; i < count; i++) {
        aq_append(out, spaces, indent + 2);
        if (kind == AQ_KIND_BITS_LIST) {
            const aq_layer_bits *layer = *(const aq_layer_bits *const *)member + i;
            aq_append_yaml_text(out, layer->pattern);
            aq_append_format(out, ": %u", (unsigned)layer->bits);
        } else {
            aq_append_string(out, "- ");
            aq_append_yaml_text(out, (*(const char *const *const *)member)[i]);
        }
        aq_append(out, "\n", 1);
    }
}

/* The sections of `path` that `previous` was not in, each on its line. Returns the indentation. */
static size_t aq_append_sections(aq_builder *out, const char *path, const char *previous) {
    const char *start = path, *dot;
    size_t indent = 0;
    for (; (dot = strchr(start, '.')) != NULL; start = dot + 1, indent += 2) {
        size_t size = (size_t)(dot + 1 - path);
        if (strncmp(path, previous, size) == 0) continue;
        aq_append_format(out, indent == 0 ? "\n%.*s:\n" : "  %.*s:\n", (int)(dot - start), start);
    }
    return indent;
}

static void aq_append_field(aq_builder *out, const aq_config *config, aq_field_id id,
                            const char *previous) {
    static const char spaces[] = "        ";
    const aq_field *field = aq_field_at(id);
    const char *last = strrchr(field->path, '.');
    size_t indent = aq_append_sections(out, field->path, previous);
    char range[AQ_RANGE_TEXT];
    if (indent == 0) aq_append(out, "\n", 1);
    aq_append(out, spaces, indent);
    aq_append_format(out, "# %s (%s)\n", field->doc, aq_field_range(id, range));
    aq_append(out, spaces, indent);
    if (id != AQ_FIELD_deployment_profile && !aq_config_is_explicit(config, id))
        aq_append_string(out, "# ");
    aq_append_format(out, "%s:", last ? last + 1 : field->path);
    aq_append_value(out, config, id, indent);
}

static uint64_t aq_hash_text(const char *text) {
    uint64_t hash = UINT64_C(14695981039346656037); /* FNV-1a */
    for (; *text; text++) hash = (hash ^ (unsigned char)*text) * UINT64_C(1099511628211);
    return hash;
}

/* A pattern that is there twice is valid, the first wins; but YAML cannot say it. */
static aq_status aq_check_patterns(const aq_context *context, const aq_config *config,
                                   aq_error *err) {
    const aq_layer_bits *layers = config->layer_bits;
    size_t i, j, count = config->layer_bits_count, size;
    aq_status status = AQ_OK;
    uint64_t *hashes;
    if (count < 2) return AQ_OK;
    if (!aq_mul_size(count, sizeof *hashes, &size)) return aq_fail_memory(err, count);
    hashes = (uint64_t *)aq_alloc(context, size);
    if (!hashes) return aq_fail_memory(err, size);
    for (i = 0; i < count && status == AQ_OK; i++) {
        hashes[i] = aq_hash_text(layers[i].pattern);
        for (j = 0; j < i && status == AQ_OK; j++)
            if (hashes[i] == hashes[j] && strcmp(layers[i].pattern, layers[j].pattern) == 0)
                status = aq_fail(err, AQ_ERR_CONFIGURATION,
                                 "layer_bits: the pattern \"%s\" is there twice; only the first "
                                 "counts, remove the other", layers[i].pattern);
    }
    aq_free(context, hashes, size);
    return status;
}

ARROWQUANT_API aq_status aq_config_to_yaml(aq_context *context, const aq_config *config,
                                           char **text, size_t *size, aq_error *err) {
    aq_config local = aq_config_from_profile(AQ_PROFILE_LOCAL);
    const char *previous = "";
    aq_builder out;
    aq_status status;
    unsigned i;
    if (!text || !size) return aq_fail(err, AQ_ERR_ARGUMENT, "aq_config_to_yaml: NULL");
    if (!config) config = &local;
    status = aq_config_validate(config, err);
    if (status == AQ_OK) status = aq_check_patterns(context, config, err);
    if (status != AQ_OK) return status;
    aq_builder_init(&out, context);
    aq_append_string(&out, "# ArrowQuant configuration. A field that is commented out has the "
                           "default of its profile.\n");
    for (i = 0; i < AQ_FIELD_COUNT; i++) {
        aq_append_field(&out, config, (aq_field_id)i, previous);
        previous = aq_field_at((aq_field_id)i)->path;
    }
    return aq_builder_finish(&out, text, size, err);
}

/* ------------------------------------------------------------------ files */

#ifndef ARROWQUANT_NO_STDIO
ARROWQUANT_API aq_status aq_config_load_yaml(aq_context *context, const char *path, aq_config *out,
                                             aq_error *err) {
    aq_arena arena;
    char *text = NULL;
    size_t size = 0;
    aq_status status;
    if (!path || !out) return aq_fail(err, AQ_ERR_ARGUMENT, "aq_config_load_yaml: NULL");
    aq_arena_init(&arena, context);
    status = aq_read_text(&arena, path, AQ_CONFIG_FILE_LIMIT, &text, &size, err);
    if (status == AQ_OK) status = aq_config_from_yaml(context, text, size, path, out, err);
    aq_arena_free(&arena);
    return status;
}

ARROWQUANT_API aq_status aq_config_save_yaml(aq_context *context, const aq_config *config,
                                             const char *path, aq_error *err) {
    char *text = NULL;
    size_t size = 0;
    aq_status status;
    if (!path) return aq_fail(err, AQ_ERR_ARGUMENT, "aq_config_save_yaml: NULL");
    status = aq_config_to_yaml(context, config, &text, &size, err);
    if (status != AQ_OK) return status;
    status = aq_write_text(path, text, size, err);
    aq_text_free(context, text, size);
    return status;
}
#endif

#undef AQ_CONFIG_PATH
#undef AQ_CONFIG_FILE_LIMIT
