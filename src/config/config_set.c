/* Values from text: one field by name, and the assignment of a YAML value that all share. */
#include "fields.h"

#include "../base/text.h"

static aq_status aq_assign_fail(aq_field_id id, const aq_yaml_node *value, const char *source,
                                aq_error *err) {
    aq_field_origin origin;
    origin.source = source;
    origin.line = value->line;
    origin.column = value->column;
    switch (value->type) {
    case AQ_YAML_NULL: return aq_field_fail(id, &origin, "nothing", err);
    case AQ_YAML_LIST: return aq_field_fail(id, &origin, "a list", err);
    case AQ_YAML_MAP: return aq_field_fail(id, &origin, "a map", err);
    case AQ_YAML_BOOL: return aq_field_fail(id, &origin, value->boolean ? "true" : "false", err);
    case AQ_YAML_STRING: return aq_field_fail_text(id, &origin, value->text, value->size, err);
    default: return aq_field_fail(id, &origin, value->text, err);
    }
}

/* The number that a scalar means for a field of this kind; false when it is no such scalar. */
static bool aq_assign_number(aq_field_kind kind, const aq_yaml_node *value, double *number) {
    unsigned i;
    switch (kind) {
    case AQ_KIND_BOOL:
        *number = value->boolean ? 1.0 : 0.0;
        return value->type == AQ_YAML_BOOL;
    case AQ_KIND_INT:
    case AQ_KIND_BITS:
    case AQ_KIND_STATES:
    case AQ_KIND_SIZE:
        *number = value->number;
        return value->type == AQ_YAML_INT;
    case AQ_KIND_FLOAT_OR_NONE:
        *number = (double)NAN;
        if (value->type == AQ_YAML_NULL) return true;
        if (value->type == AQ_YAML_STRING) return aq_text_equal(value->text, value->size, "none");
        *number = value->number;
        return value->type == AQ_YAML_INT || value->type == AQ_YAML_FLOAT;
    case AQ_KIND_FLOAT:
        *number = value->number;
        return value->type == AQ_YAML_INT || value->type == AQ_YAML_FLOAT;
    default:
        *number = (double)AQ_MODALITY_UNKNOWN;
        if (value->type == AQ_YAML_NULL) return kind == AQ_KIND_MODALITY;
        if (value->type != AQ_YAML_STRING) return false;
        for (i = 0; aq_field_value_name(kind, i); i++) {
            *number = (double)i;
            if (aq_text_equal(value->text, value->size, aq_field_value_name(kind, i))) return true;
        }
        return false;
    }
}

/* Checks everything that a list or a name holds, before memory is taken. */
static aq_status aq_assign_check(aq_field_id id, const aq_yaml_node *value, const char *source,
                                 aq_error *err) {
    aq_field_kind kind = aq_field_at(id)->kind;
    bool bits = kind == AQ_KIND_BITS_LIST;
    const aq_yaml_node *item = kind == AQ_KIND_NAME ? value : value->first;
    aq_field_origin origin;
    aq_status status = AQ_OK;
    if (kind != AQ_KIND_NAME && value->type != (bits ? AQ_YAML_MAP : AQ_YAML_LIST))
        return aq_assign_fail(id, value, source, err);
    for (; item && status == AQ_OK; item = kind == AQ_KIND_NAME ? NULL : item->next) {
        origin.source = source;
        origin.line = bits ? item->key_line : item->line;
        origin.column = bits ? item->key_column : item->column;
        if (bits && item->key_type != AQ_YAML_STRING)
            return aq_field_fail(id, &origin, "a pattern that YAML does not read as text; quote it",
                                 err);
        if (!bits && item->type != AQ_YAML_STRING) return aq_assign_fail(id, item, source, err);
        if (bits && (item->type != AQ_YAML_INT || !aq_field_fits(id, item->number)))
            return aq_assign_fail(id, item, source, err);
        status = aq_field_check_text(id, &origin, bits ? item->key : item->text,
                                     bits ? item->key_size : item->size, err);
    }
    return status;
}

static aq_status aq_assign_texts(aq_arena *arena, const aq_yaml_node *value,
                                 const char *const **out, aq_error *err) {
    const aq_yaml_node *item;
    size_t size = value->count * sizeof(char *), i = 0; /* the nodes are larger, so it fits */
    const char **texts = (const char **)aq_arena_alloc(arena, size);
    if (!texts) return aq_fail_memory(err, size);
    for (item = value->first; item; item = item->next) {
        texts[i] = aq_arena_copy(arena, item->text, item->size);
        if (!texts[i++]) return aq_fail_memory(err, item->size);
    }
    *out = texts;
    return AQ_OK;
}

static aq_status aq_assign_layer_bits(aq_arena *arena, const aq_yaml_node *value,
                                      const aq_layer_bits **out, aq_error *err) {
    const aq_yaml_node *item;
    size_t size = value->count * sizeof(aq_layer_bits), i = 0;
    aq_layer_bits *layers = (aq_layer_bits *)aq_arena_alloc(arena, size);
    if (!layers) return aq_fail_memory(err, size);
    for (item = value->first; item; item = item->next) {
        layers[i].bits = (uint32_t)item->magnitude;
        layers[i].pattern = aq_arena_copy(arena, item->key, item->key_size);
        if (!layers[i++].pattern) return aq_fail_memory(err, item->key_size);
    }
    *out = layers;
    return AQ_OK;
}

/* A name or a list: copied into what the config owns. */
static aq_status aq_assign_text(const aq_context *context, aq_config *config, aq_field_id id,
                                const aq_yaml_node *value, const char *source, aq_error *err) {
    aq_field_kind kind = aq_field_at(id)->kind;
    void *member = aq_field_of(config, id);
    bool none = kind == AQ_KIND_NAME ? value->type == AQ_YAML_NULL : value->count == 0;
    aq_arena *arena;
    aq_status status = AQ_OK;
    if (kind != AQ_KIND_NAME || !none) status = aq_assign_check(id, value, source, err);
    if (status != AQ_OK) return status;
    arena = none ? NULL : aq_config_arena(context, config);
    if (!none && !arena) return aq_fail_memory(err, sizeof *arena);
    if (kind == AQ_KIND_NAME) {
        const char *name = none ? NULL : aq_arena_copy(arena, value->text, value->size);
        if (!none && !name) return aq_fail_memory(err, value->size);
        *(const char **)member = name;
        return AQ_OK;
    }
    if (kind == AQ_KIND_BITS_LIST) {
        const aq_layer_bits *layers = NULL;
        if (!none) status = aq_assign_layer_bits(arena, value, &layers, err);
        if (status == AQ_OK) *(const aq_layer_bits **)member = layers;
    } else {
        const char *const *texts = NULL;
        if (!none) status = aq_assign_texts(arena, value, &texts, err);
        if (status == AQ_OK) *(const char *const **)member = texts;
    }
    if (status == AQ_OK) *aq_field_count_of(config, id) = value->count;
    return status;
}

AQ_LIB aq_status aq_field_assign(const aq_context *context, aq_config *config, aq_field_id id,
                                 const aq_yaml_node *value, const char *source, aq_error *err) {
    const aq_field *field = aq_field_at(id);
    double number;
    if (aq_field_is_text(field->kind)) {
        aq_status status = aq_assign_text(context, config, id, value, source, err);
        if (status != AQ_OK) return status;
    } else {
        if (!aq_assign_number(field->kind, value, &number) || !aq_field_fits(id, number))
            return aq_assign_fail(id, value, source, err);
        if (id == AQ_FIELD_deployment_profile)
            aq_config_change_profile(config, (aq_profile)(unsigned)number);
        else
            aq_field_put_number(config, id, number);
    }
    config->explicit_fields |= UINT64_C(1) << (unsigned)id;
    return AQ_OK;
}

ARROWQUANT_API aq_status aq_config_set(aq_config *config, const char *name, const char *value,
                                       aq_error *err) {
    aq_field_id id;
    aq_arena arena;
    aq_yaml_node *root = NULL;
    aq_status status;
    if (!config || !name || !value) return aq_fail(err, AQ_ERR_ARGUMENT, "aq_config_set: NULL");
    id = aq_field_find(name, strlen(name));
    if (id == AQ_FIELD_COUNT)
        return aq_field_fail_unknown(NULL, NULL, name, strlen(name), err);
    aq_arena_init(&arena, NULL);
    status = aq_yaml_parse(&arena, value, strlen(value), name, &root, err);
    if (status == AQ_OK) status = aq_field_assign(NULL, config, id, root, NULL, err);
    aq_arena_free(&arena);
    return status;
}
