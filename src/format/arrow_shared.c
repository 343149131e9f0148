/* Structs of the Arrow C data interface whose parts live in one arena, and their release. */
#include "arrow.h"

#include "../base/thread.h"

#ifndef ARROWQUANT_NO_STDIO

AQ_LIB aq_arrow_shared *aq_arrow_share(const aq_context *context) {
    aq_arrow_shared *shared = (aq_arrow_shared *)aq_alloc(context, sizeof(*shared));
    if (!shared) return NULL;
    memset(shared, 0, sizeof(*shared));
    if (context) shared->context.allocator = context->allocator;
    aq_arena_init(&shared->arena, &shared->context);
    return shared;
}

AQ_LIB void aq_arrow_discard(aq_arrow_shared *shared) {
    aq_context context = shared->context; /* outlives the block that it is copied from */
    aq_arena_free(&shared->arena);
    aq_free(&context, shared, sizeof(*shared));
}

AQ_LIB void aq_arrow_drop(aq_arrow_shared *shared) {
    if (aq_atomic_add(&shared->references, -1) > 0) return;
    aq_arrow_owner owner = shared->owner;
    aq_arrow_discard(shared);
    if (owner.release) owner.release(owner.user);
}

static void aq_arrow_release_array(struct ArrowArray *array) {
    aq_arrow_shared *shared = (aq_arrow_shared *)array->private_data;
    for (int64_t i = 0; i < array->n_children; i++)
        if (array->children[i]->release) array->children[i]->release(array->children[i]);
    array->release = NULL;
    aq_arrow_drop(shared);
}

static void aq_arrow_release_schema(struct ArrowSchema *schema) {
    aq_arrow_shared *shared = (aq_arrow_shared *)schema->private_data;
    for (int64_t i = 0; i < schema->n_children; i++)
        if (schema->children[i]->release) schema->children[i]->release(schema->children[i]);
    schema->release = NULL;
    aq_arrow_drop(shared);
}

AQ_LIB bool aq_arrow_make_array(aq_arrow_shared *shared, struct ArrowArray *array, int64_t length,
                                unsigned buffers, size_t children) {
    aq_arena *arena = &shared->arena;
    memset(array, 0, sizeof(*array));
    array->length = length;
    array->n_buffers = (int64_t)buffers;
    array->n_children = (int64_t)children;
    array->buffers = (const void **)aq_arena_alloc(arena, buffers * sizeof(void *));
    if (!array->buffers) return false;
    if (children) {
        struct ArrowArray *items =
            (struct ArrowArray *)aq_arena_alloc(arena, children * sizeof(*items));
        array->children = (struct ArrowArray **)aq_arena_alloc(arena, children * sizeof(void *));
        if (!items || !array->children) return false;
        for (size_t i = 0; i < children; i++) array->children[i] = &items[i];
    }
    array->private_data = shared;
    array->release = aq_arrow_release_array;
    shared->references++; /* nobody else knows it yet */
    return true;
}

AQ_LIB bool aq_arrow_make_schema(aq_arrow_shared *shared, struct ArrowSchema *schema,
                                 const char *format, const char *name, bool nullable,
                                 size_t children) {
    aq_arena *arena = &shared->arena;
    memset(schema, 0, sizeof(*schema));
    schema->format = aq_arena_string(arena, format);
    schema->name = aq_arena_string(arena, name);
    schema->flags = nullable ? ARROW_FLAG_NULLABLE : 0;
    schema->n_children = (int64_t)children;
    if (!schema->format || !schema->name) return false;
    if (children) {
        struct ArrowSchema *items =
            (struct ArrowSchema *)aq_arena_alloc(arena, children * sizeof(*items));
        schema->children = (struct ArrowSchema **)aq_arena_alloc(arena, children * sizeof(void *));
        if (!items || !schema->children) return false;
        for (size_t i = 0; i < children; i++) schema->children[i] = &items[i];
    }
    schema->private_data = shared;
    schema->release = aq_arrow_release_schema;
    shared->references++;
    return true;
}

/* ---- metadata: int32 count, then for each key and value an int32 size and the bytes */

AQ_LIB const char *aq_arrow_pack_metadata(aq_arena *arena, const char *const *items, size_t count,
                                          const size_t *sizes) {
    size_t bytes = sizeof(int32_t), at = 0;
    for (size_t i = 0; i < count; i++)
        bytes += sizeof(int32_t) + (sizes ? sizes[i] : strlen(items[i]));
    char *packed = (char *)aq_arena_alloc(arena, bytes);
    int32_t number = (int32_t)(count / 2);
    if (!packed || bytes > INT32_MAX) return NULL;
    memcpy(packed, &number, sizeof(number));
    at = sizeof(number);
    for (size_t i = 0; i < count; i++) {
        size_t size = sizes ? sizes[i] : strlen(items[i]);
        number = (int32_t)size;
        memcpy(packed + at, &number, sizeof(number));
        memcpy(packed + at + sizeof(number), items[i], size);
        at += sizeof(number) + size;
    }
    return packed;
}

static size_t aq_arrow_metadata_size(const char *packed) {
    int32_t count, size;
    size_t at = sizeof(count);
    memcpy(&count, packed, sizeof(count));
    for (int64_t i = 0; i < 2 * (int64_t)count; i++) {
        memcpy(&size, packed + at, sizeof(size));
        at += sizeof(size) + (size_t)size;
    }
    return at;
}

AQ_LIB const char *aq_arrow_metadata(const struct ArrowSchema *schema, const char *key,
                                     size_t *size) {
    const char *at = schema->metadata;
    int32_t count = 0, sizes[2];
    if (at) memcpy(&count, at, sizeof(count));
    at += at ? sizeof(count) : 0;
    for (int32_t i = 0; i < count; i++) {
        memcpy(&sizes[0], at, sizeof(int32_t));
        memcpy(&sizes[1], at + sizeof(int32_t) + sizes[0], sizeof(int32_t));
        const char *value = at + 2 * sizeof(int32_t) + sizes[0];
        *size = (size_t)sizes[1];
        if (aq_text_equal(at + sizeof(int32_t), (size_t)sizes[0], key)) return value;
        at = value + sizes[1];
    }
    return NULL;
}

static bool aq_arrow_copy_into(aq_arrow_shared *shared, const struct ArrowSchema *from,
                               struct ArrowSchema *to) {
    if (!aq_arrow_make_schema(shared, to, from->format, from->name ? from->name : "", false,
                              (size_t)from->n_children))
        return false;
    to->flags = from->flags;
    if (from->metadata)
        to->metadata = aq_arena_copy(&shared->arena, from->metadata,
                                     aq_arrow_metadata_size(from->metadata));
    if (from->metadata && !to->metadata) return false;
    for (int64_t i = 0; i < from->n_children; i++)
        if (!aq_arrow_copy_into(shared, from->children[i], to->children[i])) return false;
    return true;
}

AQ_LIB bool aq_arrow_copy_schema(const aq_context *context, const struct ArrowSchema *from,
                                 struct ArrowSchema *to) {
    struct ArrowSchema copy;
    aq_arrow_shared *shared = aq_arrow_share(context);
    if (!shared) return false;
    if (!aq_arrow_copy_into(shared, from, &copy)) {
        aq_arrow_discard(shared);
        return false;
    }
    *to = copy;
    return true;
}

#endif /* ARROWQUANT_NO_STDIO */
