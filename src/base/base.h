/* What every room shares: linkage of internals, errors, allocation. */
#ifndef AQ_BASE_H
#define AQ_BASE_H

#include "../api/arrowquant_api.h"

#include <stdarg.h>
#include <string.h>

/* Linkage of internal functions: extern when src/ is compiled file by file, so that a unit test
 * can reach them; static inside the one header. amalgamate.py defines AQ_AMALGAMATED. */
#ifndef AQ_LIB
#  ifndef AQ_AMALGAMATED
#    define AQ_LIB extern
#  elif defined(__GNUC__) || defined(__clang__)
#    define AQ_LIB static __attribute__((unused))
#  else
#    define AQ_LIB static
#  endif
#endif

#if defined(__MINGW32__) && !defined(__clang__)
#  define AQ_PRINTF(format_index, first) __attribute__((format(gnu_printf, format_index, first)))
#elif defined(__GNUC__) || defined(__clang__)
#  define AQ_PRINTF(format_index, first) __attribute__((format(printf, format_index, first)))
#else
#  define AQ_PRINTF(format_index, first)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- errors (base/error.c) */

/* Formats into err (NULL allowed) and returns status. `format` knows %s %.*s %c %d %u %llu %lld
 * %zu %x %%, no flags and no width: it is our own formatter, independent of locale and stdio.
 * When the text is longer than the message, the longest %s is cut in its head ("…tail"). */
AQ_LIB aq_status aq_fail(aq_error *err, aq_status status, const char *format, ...) AQ_PRINTF(3, 4);
AQ_LIB aq_status aq_fail_tensor(aq_error *err, aq_status status, const char *tensor,
                                uint64_t offset, const char *format, ...) AQ_PRINTF(5, 6);
AQ_LIB aq_status aq_fail_memory(aq_error *err, size_t size);
/* The formatter itself: writes at most capacity bytes with the final 0, returns the full length. */
AQ_LIB size_t aq_format(char *buffer, size_t capacity, const char *format, ...) AQ_PRINTF(3, 4);
AQ_LIB size_t aq_format_list(char *buffer, size_t capacity, const char *format, va_list arguments);

/* ---- allocation (base/alloc.c); context NULL means ARROWQUANT_MALLOC and its kin */

AQ_LIB void *aq_alloc(const aq_context *context, size_t size); /* not zeroed; NULL on failure */
AQ_LIB void *aq_resize(const aq_context *context, void *pointer, size_t old_size, size_t new_size);
AQ_LIB void aq_free(const aq_context *context, void *pointer, size_t size); /* NULL allowed */
/* The same for work space in calls that otherwise allocate nothing. With ARROWQUANT_NO_STDIO they ask
 * the context's own allocator or ARROWQUANT_MALLOC alone, so that no such call links malloc. */
AQ_LIB void *aq_alloc_work(const aq_context *context, size_t size);
AQ_LIB void aq_free_work(const aq_context *context, void *pointer, size_t size);

/* Many small pieces that are freed together. */
typedef struct aq_arena {
    const aq_context *context;
    struct aq_arena_block *head;
} aq_arena;

AQ_LIB void aq_arena_init(aq_arena *arena, const aq_context *context);
AQ_LIB void *aq_arena_alloc(aq_arena *arena, size_t size); /* zeroed, 16-byte aligned; or NULL */
AQ_LIB char *aq_arena_copy(aq_arena *arena, const char *text, size_t size); /* 0-terminated */
AQ_LIB char *aq_arena_string(aq_arena *arena, const char *text);
AQ_LIB void aq_arena_free(aq_arena *arena);

/* size_t products and sums that may overflow: false then, *out untouched */
AQ_LIB bool aq_mul_size(size_t a, size_t b, size_t *out);
AQ_LIB bool aq_mul_u64(uint64_t a, uint64_t b, uint64_t *out);
AQ_LIB bool aq_add_u64(uint64_t a, uint64_t b, uint64_t *out);

#ifdef __cplusplus
}
#endif
#endif /* AQ_BASE_H */
