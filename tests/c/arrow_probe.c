/* The library as a shared object for test_arrow.py, with an allocator that counts, so that a leak
 * across the C data interface shows as a number. */
#include "arrowquant.h"

#include <stdlib.h>

static int probe_blocks; /* updated from any thread */

static void *probe_resize(void *user, void *pointer, size_t old_size, size_t new_size) {
    (void)user;
    (void)old_size;
    if (!new_size) {
        if (pointer) __atomic_sub_fetch(&probe_blocks, 1, __ATOMIC_RELAXED);
        free(pointer);
        return NULL;
    }
    void *moved = realloc(pointer, new_size);
    if (moved && !pointer) __atomic_add_fetch(&probe_blocks, 1, __ATOMIC_RELAXED);
    return moved;
}

static int probe_owners;
static void probe_owner(void *user) {
    (void)user;
    __atomic_add_fetch(&probe_owners, 1, __ATOMIC_RELAXED);
}

int probe_blocks_now(void);
int probe_owners_released(void);
aq_context *probe_context(void);
aq_status probe_layers(aq_context *context, aq_arrow_layer *layers, size_t count,
                       struct ArrowSchema *schema, struct ArrowArray *array, aq_error *err);

int probe_blocks_now(void) { return probe_blocks; }
int probe_owners_released(void) { return probe_owners; }

aq_context *probe_context(void) {
    static const aq_allocator allocator = { probe_resize, NULL };
    aq_context *context = NULL;
    return aq_context_create(AQ_ISA_AUTO, &allocator, &context, NULL) == AQ_OK ? context : NULL;
}

/* Layers of a caller's memory, owned by somebody who counts. */
aq_status probe_layers(aq_context *context, aq_arrow_layer *layers, size_t count,
                       struct ArrowSchema *schema, struct ArrowArray *array, aq_error *err) {
    static const char *const metadata[] = { "model", "digits" };
    aq_arrow_owner owner = { probe_owner, NULL };
    return aq_arrow_export_layers(context, layers, count, metadata, 2, owner, schema, array, err);
}
