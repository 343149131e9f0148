/* Adds, replaces or removes one member of a JSON object; the rest stays as it is, byte for byte. */
#ifndef AQ_CONFIG_JSON_H
#define AQ_CONFIG_JSON_H

#include "../base/base.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* `text` must be one JSON object (else AQ_ERR_METADATA naming `source`), `value` JSON text, `key`
 * ASCII. A new member comes last, indented as the first one is; an empty object gets two spaces.
 * *out lives in the arena, 0-terminated. */
AQ_LIB aq_status aq_config_json_set(aq_arena *arena, const char *text, size_t size,
                                    const char *source, const char *key, const char *value,
                                    char **out, size_t *out_size, aq_error *err);
/* Without such a member *out is a copy. */
AQ_LIB aq_status aq_config_json_remove(aq_arena *arena, const char *text, size_t size,
                                       const char *source, const char *key, char **out,
                                       size_t *out_size, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_CONFIG_JSON_H */
