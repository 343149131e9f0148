/* Fields for faces to people: what there is, a value as JSON text, a copy of its own. */
#include "fields.h"

#include "../base/text.h"

static const char *aq_field_type(aq_field_kind kind) {
    switch (kind) {
    case AQ_KIND_BOOL: return "boolean";
    case AQ_KIND_INT:
    case AQ_KIND_BITS:
    case AQ_KIND_STATES:
    case AQ_KIND_SIZE: return "integer";
    case AQ_KIND_FLOAT:
    case AQ_KIND_FLOAT_OR_NONE: return "number";
    case AQ_KIND_PROFILE:
    case AQ_KIND_MODALITY:
    case AQ_KIND_INTERPOLATION: return "choice";
    case AQ_KIND_BITS_LIST: return "map";
    case AQ_KIND_TEXT_LIST:
    case AQ_KIND_FOLDER_LIST: return "list";
    default: return "text";
    }
}

ARROWQUANT_API bool aq_config_field_at(size_t index, aq_config_field *out) {
    const aq_field *field;
    if (index >= AQ_FIELD_COUNT || !out) return false;
    field = aq_field_at((aq_field_id)(unsigned)index);
    out->name = field->path;
    out->type = aq_field_type(field->kind);
    out->environment = field->environment;
    out->doc = field->doc;
    return true;
}

static void aq_get_list(aq_builder *json, const aq_config *config, aq_field_id id) {
    const void *member = aq_field_of_const(config, id);
    bool bits = aq_field_at(id)->kind == AQ_KIND_BITS_LIST;
    size_t i, count = aq_field_count(config, id);
    aq_append_string(json, bits ? "{" : "[");
    for (i = 0; i < count; i++) {
        const aq_layer_bits *layer = bits ? *(const aq_layer_bits *const *)member + i : NULL;
        const char *text = layer ? layer->pattern : (*(const char *const *const *)member)[i];
        if (i) aq_append_string(json, ", ");
        aq_append_json_string(json, text, strlen(text));
        if (layer) aq_append_format(json, ": %u", (unsigned)layer->bits);
    }
    aq_append_string(json, bits ? "}" : "]");
}

static void aq_get_value(aq_builder *json, const aq_config *config, aq_field_id id) {
    aq_field_kind kind = aq_field_at(id)->kind;
    double number = aq_field_number(config, id);
    const char *name;
    if (kind == AQ_KIND_NAME) {
        name = *(const char *const *)aq_field_of_const(config, id);
        if (name) aq_append_json_string(json, name, strlen(name));
        else aq_append_string(json, "null");
    } else if (aq_field_is_text(kind)) {
        aq_get_list(json, config, id);
    } else if (kind == AQ_KIND_BOOL) {
        aq_append_string(json, number != 0.0 ? "true" : "false");
    } else if (kind == AQ_KIND_FLOAT || kind == AQ_KIND_FLOAT_OR_NONE) {
        aq_append_json_double(json, number);
    } else if (aq_field_value_name(kind, 0)) {
        name = aq_field_value_name(kind, (unsigned)number);
        aq_append_json_string(json, name ? name : "unknown", strlen(name ? name : "unknown"));
    } else {
        aq_append_format(json, "%llu", (unsigned long long)number);
    }
}

ARROWQUANT_API aq_status aq_config_get(aq_context *context, const aq_config *config,
                                       const char *name, char **text, size_t *size,
                                       aq_error *err) {
    aq_field_id id;
    aq_builder json;
    if (!config || !name || !text || !size)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_config_get: NULL");
    id = aq_field_find(name, strlen(name));
    if (id == AQ_FIELD_COUNT)
        return aq_field_fail_unknown(NULL, NULL, name, strlen(name), err);
    aq_builder_init(&json, context);
    aq_get_value(&json, config, id);
    return aq_builder_finish(&json, text, size, err);
}

ARROWQUANT_API aq_status aq_config_clone(aq_context *context, const aq_config *config,
                                         aq_config *out, aq_error *err) {
    aq_config made = aq_config_from_profile(AQ_PROFILE_LOCAL), copy;
    aq_arena *arena;
    aq_status status;
    if (!config || !out) return aq_fail(err, AQ_ERR_ARGUMENT, "aq_config_clone: NULL");
    arena = aq_config_arena(context, &made);
    if (!arena) return aq_fail_memory(err, sizeof *arena);
    status = aq_config_copy(arena, config, &copy, err);
    if (status != AQ_OK) {
        aq_config_free(&made);
        return status;
    }
    copy.owned = made.owned;
    *out = copy;
    return AQ_OK;
}
