/* Growing text, numbers as text and back, name matching. */
#ifndef AQ_TEXT_H
#define AQ_TEXT_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Text that grows. Appending after a failed allocation does nothing; aq_builder_finish tells. */
typedef struct aq_builder {
    const aq_context *context;
    char *data;
    size_t size, capacity;
    bool failed;
} aq_builder;

AQ_LIB void aq_builder_init(aq_builder *builder, const aq_context *context);
AQ_LIB void aq_append(aq_builder *builder, const char *text, size_t size);
AQ_LIB void aq_append_string(aq_builder *builder, const char *text);
AQ_LIB void aq_append_format(aq_builder *builder, const char *format, ...) AQ_PRINTF(2, 3);
AQ_LIB void aq_append_double(aq_builder *builder, double value); /* shortest that reads back */
/* JSON: quoted and escaped; NaN and infinity become null. */
AQ_LIB void aq_append_json_string(aq_builder *builder, const char *text, size_t size);
AQ_LIB void aq_append_json_double(aq_builder *builder, double value);
/* Hands over the 0-terminated text (*size without the 0; free aq_free(context, text, size + 1)),
 * or frees everything and fails with AQ_ERR_OUT_OF_MEMORY. */
AQ_LIB aq_status aq_builder_finish(aq_builder *builder, char **text, size_t *size, aq_error *err);
AQ_LIB void aq_builder_free(aq_builder *builder);

/* Correctly rounded and independent of locale: own big-integer arithmetic, no libc. */
#define AQ_DOUBLE_TEXT 32
AQ_LIB size_t aq_format_double(double value, char buffer[AQ_DOUBLE_TEXT]); /* as Python's repr */
/* [+-]digits[.digits][e[+-]digits], all of `size` bytes; false when it is not that. Beyond the
 * range of a double: infinity. */
AQ_LIB bool aq_parse_double(const char *text, size_t size, double *out);
AQ_LIB bool aq_parse_u64(const char *text, size_t size, uint64_t *out); /* decimal digits only */

AQ_LIB bool aq_is_utf8(const char *text, size_t size, size_t *bad); /* *bad: offset, may be NULL */
AQ_LIB bool aq_text_equal(const char *text, size_t size, const char *other);
AQ_LIB bool aq_ends_with(const char *text, const char *suffix);
/* Shell globs over a whole name: * (any run, dots included) ? [a-z] [!a-z] \x. Linear time in
 * pattern × name. */
AQ_LIB bool aq_glob_match(const char *pattern, const char *name);
/* Levenshtein distance, bounded to 32 characters a side; for "did you mean". */
AQ_LIB size_t aq_edit_distance(const char *a, size_t a_size, const char *b, size_t b_size);

#ifdef __cplusplus
}
#endif
#endif /* AQ_TEXT_H */
