/* What the file formats need on top of the pull reader: keys, counts, slices. */
#ifndef AQ_JSON_MEMBER_H
#define AQ_JSON_MEMBER_H

#include "../base/json.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* Whether a key or string, escapes undone, is `text` (ASCII). Allocates nothing. */
AQ_LIB bool aq_json_is(const aq_json_event *event, const char *text);
/* Elements of the array, or members of the object, that has just begun. The reader stays there. */
AQ_LIB aq_status aq_json_count(const aq_json_reader *reader, size_t *count, aq_error *err);
/* Reads the value that `event` began to its end. Numbers beyond a double's range are refused. */
AQ_LIB aq_status aq_json_pass(aq_json_reader *reader, const aq_json_event *event, aq_error *err);
/* The same; *begin … *end is the value's slice of the text. */
AQ_LIB aq_status aq_json_pass_slice(aq_json_reader *reader, const aq_json_event *event,
                                    size_t *begin, size_t *end, aq_error *err);
/* "a string", "a number", …, for messages */
AQ_LIB const char *aq_json_type_text(aq_json_type type);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_JSON_MEMBER_H */
