/* Overrides from the environment. Takes no memory. */
#include "fields.h"

#ifndef ARROWQUANT_NO_STDIO

#include <stdlib.h>

/* Reads the variable as the unquoted YAML scalar that it would be in a file. */
static aq_status aq_env_field(aq_config *config, aq_field_id id, const char *text, aq_error *err) {
    const aq_field *field = aq_field_at(id);
    size_t size = strlen(text);
    aq_yaml_node value;
    while (size != 0 && (text[size - 1] == ' ' || text[size - 1] == '\t')) size--;
    while (size != 0 && (text[0] == ' ' || text[0] == '\t')) {
        text++;
        size--;
    }
    memset(&value, 0, sizeof value);
    value.text = text;
    value.size = size;
    if (aq_yaml_resolve(&value)) value.type = AQ_YAML_STRING;
    if (size == 0) {
        aq_field_origin origin;
        memset(&origin, 0, sizeof origin);
        origin.source = field->environment;
        return aq_field_fail(id, &origin, "an empty value; unset the variable", err);
    }
    return aq_field_assign(NULL, config, id, &value, field->environment, err);
}

ARROWQUANT_API aq_status aq_config_apply_env(aq_config *config, aq_error *err) {
    aq_config changed;
    aq_status status = AQ_OK;
    unsigned i;
    if (!config) return aq_fail(err, AQ_ERR_ARGUMENT, "aq_config_apply_env: NULL");
    changed = *config;
    for (i = 0; i < AQ_FIELD_COUNT && status == AQ_OK; i++) {
        const char *name = aq_field_at((aq_field_id)i)->environment;
        const char *text = name[0] != '\0' ? getenv(name) : NULL;
        if (text) status = aq_env_field(&changed, (aq_field_id)i, text, err);
    }
    if (status == AQ_OK) *config = changed;
    return status;
}

#else

/* No operating system, no environment. */
ARROWQUANT_API aq_status aq_config_apply_env(aq_config *config, aq_error *err) {
    return config ? AQ_OK : aq_fail(err, AQ_ERR_ARGUMENT, "aq_config_apply_env: NULL");
}

#endif
