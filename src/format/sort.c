/* Heap sort: hostile headers cannot make it quadratic, and it needs no second buffer. */
#include "sort.h"

#ifndef ARROWQUANT_NO_STDIO

static void aq_sift_down(const void **items, size_t root, size_t count, aq_compare_fn compare) {
    const void *item = items[root];
    for (;;) {
        size_t child = 2 * root + 1;
        if (child >= count) break;
        if (child + 1 < count && compare(items[child], items[child + 1]) < 0) child++;
        if (compare(item, items[child]) >= 0) break;
        items[root] = items[child];
        root = child;
    }
    items[root] = item;
}

static bool aq_is_sorted(const void **items, size_t count, aq_compare_fn compare) {
    for (size_t i = 1; i < count; i++) {
        if (compare(items[i - 1], items[i]) > 0) return false;
    }
    return true;
}

AQ_LIB void aq_sort_pointers(const void **items, size_t count, aq_compare_fn compare) {
    if (aq_is_sorted(items, count, compare)) return; /* the usual case, by far */
    for (size_t i = count / 2; i > 0; i--) aq_sift_down(items, i - 1, count, compare);
    for (size_t end = count; end > 1; end--) {
        const void *last = items[end - 1];
        items[end - 1] = items[0];
        items[0] = last;
        aq_sift_down(items, 0, end - 1, compare);
    }
}

#endif /* ARROWQUANT_NO_STDIO */
