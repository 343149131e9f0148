/* Allocation through the context or the compile-time macros; arenas; sizes that may overflow. */
#include "base.h"

#if defined(ARROWQUANT_MALLOC) && defined(ARROWQUANT_REALLOC) && defined(ARROWQUANT_FREE)
#  define AQ_MALLOC(size) ARROWQUANT_MALLOC(size)
#  define AQ_REALLOC(pointer, size) ARROWQUANT_REALLOC(pointer, size)
#  define AQ_FREE(pointer) ARROWQUANT_FREE(pointer)
#elif defined(ARROWQUANT_MALLOC) || defined(ARROWQUANT_REALLOC) || defined(ARROWQUANT_FREE)
#  error "define all of ARROWQUANT_MALLOC, ARROWQUANT_REALLOC, ARROWQUANT_FREE, or none of them"
#else
#  include <stdlib.h>
#  define AQ_MALLOC(size) malloc(size)
#  define AQ_REALLOC(pointer, size) realloc(pointer, size)
#  define AQ_FREE(pointer) free(pointer)
#endif

#define AQ_ARENA_ALIGN 16u
#if !defined(AQ_ARENA_FIRST) /* tests make them so small that each piece is an allocation */
#  define AQ_ARENA_FIRST 1024u
#  define AQ_ARENA_LARGEST 262144u
#endif

AQ_LIB void *aq_alloc(const aq_context *context, size_t size) {
    if (!size) size = 1;
    if (context && context->allocator.resize)
        return context->allocator.resize(context->allocator.user, NULL, 0, size);
    return AQ_MALLOC(size);
}

AQ_LIB void *aq_resize(const aq_context *context, void *pointer, size_t old_size,
                       size_t new_size) {
    if (!pointer) return aq_alloc(context, new_size);
    if (!old_size) old_size = 1;
    if (!new_size) new_size = 1;
    if (context && context->allocator.resize)
        return context->allocator.resize(context->allocator.user, pointer, old_size, new_size);
    return AQ_REALLOC(pointer, new_size);
}

AQ_LIB void aq_free(const aq_context *context, void *pointer, size_t size) {
    if (!pointer) return;
    if (!size) size = 1;
    if (context && context->allocator.resize)
        (void)context->allocator.resize(context->allocator.user, pointer, size, 0);
    else
        AQ_FREE(pointer);
}

AQ_LIB void *aq_alloc_work(const aq_context *context, size_t size) {
#if defined(ARROWQUANT_NO_STDIO) && !defined(ARROWQUANT_MALLOC)
    if (!context || !context->allocator.resize) return NULL;
    return context->allocator.resize(context->allocator.user, NULL, 0, size ? size : 1);
#else
    return aq_alloc(context, size);
#endif
}

AQ_LIB void aq_free_work(const aq_context *context, void *pointer, size_t size) {
#if defined(ARROWQUANT_NO_STDIO) && !defined(ARROWQUANT_MALLOC)
    if (pointer) (void)context->allocator.resize(context->allocator.user, pointer, size ? size : 1, 0);
#else
    aq_free(context, pointer, size);
#endif
}

ARROWQUANT_API void aq_text_free(aq_context *context, char *text, size_t size) {
    aq_free(context, text, size + 1);
}

/* A block is this head, then pieces from the first aligned address on. */
struct aq_arena_block {
    struct aq_arena_block *next;
    size_t size; /* of the whole allocation */
    size_t used, capacity;
    char *data;
};

AQ_LIB void aq_arena_init(aq_arena *arena, const aq_context *context) {
    arena->context = context;
    arena->head = NULL;
}

static struct aq_arena_block *aq_arena_grow(aq_arena *arena, size_t need) {
    size_t capacity = AQ_ARENA_FIRST, size;
    struct aq_arena_block *block;
    if (arena->head) capacity = arena->head->capacity < AQ_ARENA_LARGEST / 2
                                    ? arena->head->capacity * 2 : AQ_ARENA_LARGEST;
    if (capacity < need) capacity = need;
    if (capacity > SIZE_MAX - sizeof(*block) - AQ_ARENA_ALIGN) return NULL;
    size = sizeof(*block) + AQ_ARENA_ALIGN + capacity;
    block = (struct aq_arena_block *)aq_alloc(arena->context, size);
    if (!block) return NULL;
    char *data = (char *)block + sizeof(*block);
    size_t misaligned = (size_t)((uintptr_t)data % AQ_ARENA_ALIGN);
    block->data = misaligned ? data + (AQ_ARENA_ALIGN - misaligned) : data;
    block->size = size;
    block->used = 0;
    block->capacity = capacity;
    block->next = arena->head;
    arena->head = block;
    return block;
}

AQ_LIB void *aq_arena_alloc(aq_arena *arena, size_t size) {
    struct aq_arena_block *block = arena->head;
    if (size > SIZE_MAX - AQ_ARENA_ALIGN) return NULL;
    size_t rounded = (size + AQ_ARENA_ALIGN - 1) / AQ_ARENA_ALIGN * AQ_ARENA_ALIGN;
    if (!rounded) rounded = AQ_ARENA_ALIGN;
    if (!block || block->capacity - block->used < rounded) {
        block = aq_arena_grow(arena, rounded);
        if (!block) return NULL;
    }
    void *piece = block->data + block->used;
    block->used += rounded;
    memset(piece, 0, rounded);
    return piece;
}

AQ_LIB char *aq_arena_copy(aq_arena *arena, const char *text, size_t size) {
    char *copy = size < SIZE_MAX ? (char *)aq_arena_alloc(arena, size + 1) : NULL;
    if (copy && size) memcpy(copy, text, size);
    return copy;
}

AQ_LIB char *aq_arena_string(aq_arena *arena, const char *text) {
    return aq_arena_copy(arena, text, strlen(text));
}

AQ_LIB void aq_arena_free(aq_arena *arena) {
    struct aq_arena_block *block = arena->head;
    while (block) {
        struct aq_arena_block *next = block->next;
        aq_free(arena->context, block, block->size);
        block = next;
    }
    arena->head = NULL;
}

AQ_LIB bool aq_mul_size(size_t a, size_t b, size_t *out) {
    if (a && b > SIZE_MAX / a) return false;
    *out = a * b;
    return true;
}

AQ_LIB bool aq_mul_u64(uint64_t a, uint64_t b, uint64_t *out) {
    if (a && b > UINT64_MAX / a) return false;
    *out = a * b;
    return true;
}

AQ_LIB bool aq_add_u64(uint64_t a, uint64_t b, uint64_t *out) {
    if (b > UINT64_MAX - a) return false;
    *out = a + b;
    return true;
}

#undef AQ_MALLOC
#undef AQ_REALLOC
#undef AQ_FREE
#undef AQ_ARENA_ALIGN
#undef AQ_ARENA_FIRST
#undef AQ_ARENA_LARGEST
