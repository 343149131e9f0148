/* Sorting pointers: in place, n log n at worst, no allocation. */
#ifndef AQ_SORT_H
#define AQ_SORT_H

#include "../base/base.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* < 0, 0, > 0 as memcmp. Equal items end in no particular order: compare their addresses last
 * where that matters. */
typedef int (*aq_compare_fn)(const void *a, const void *b);

AQ_LIB void aq_sort_pointers(const void **items, size_t count, aq_compare_fn compare);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_SORT_H */
