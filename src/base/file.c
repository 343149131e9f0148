/* Paths, whole files and trees: what is the same on every system. */
#include "file_system.h"
#include "thread.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_COPY_CHUNK ((size_t)1 << 20)
#define AQ_WRITE_TRIES 100u
#define AQ_SIBLING_SIZE 4200u /* a path and a short suffix */

/* ---- paths */

AQ_LIB char *aq_path_join(aq_arena *arena, const char *folder, const char *name) {
    size_t size = strlen(folder), name_size = strlen(name);
    char *path = (char *)aq_arena_alloc(arena, size + name_size + 2);
    if (!path) return NULL;
    memcpy(path, folder, size);
    if (size && !aq_is_separator(folder[size - 1])) path[size++] = aq_separator();
    memcpy(path + size, name, name_size + 1);
    return path;
}

/* Bytes of the path without separators at its end, but at least 1 of "/". */
static size_t aq_path_trim(const char *path, size_t size) {
    while (size > 1 && aq_is_separator(path[size - 1])) size--;
    return size;
}

/* Where the last component begins. */
static size_t aq_path_base_at(const char *path) {
    size_t at = aq_path_trim(path, strlen(path));
    while (at > 0 && !aq_is_separator(path[at - 1])) at--;
    return at;
}

AQ_LIB char *aq_path_parent(aq_arena *arena, const char *path) {
    size_t at = aq_path_base_at(path);
    if (!at) return aq_arena_string(arena, aq_is_separator(path[0]) ? path : ".");
    return aq_arena_copy(arena, path, aq_path_trim(path, at));
}

AQ_LIB const char *aq_path_base(const char *path) { return path + aq_path_base_at(path); }

AQ_LIB aq_path_kind aq_path_kind_of(const char *path) {
    uint64_t size;
    return aq_path_stat(path, &size);
}

AQ_LIB aq_status aq_path_resolve(aq_arena *arena, const char *path, char **out, aq_error *err) {
    char *parent, *folder = NULL, *found = NULL, *base;
    aq_status status = aq_real_path(arena, path, &found, err);
    if (status != AQ_OK) return status;
    if (found) {
        *out = found;
        return AQ_OK;
    }
    parent = aq_path_parent(arena, path);
    base = aq_arena_string(arena, aq_path_base(path));
    if (!parent || !base) return aq_fail_memory(err, strlen(path));
    base[aq_path_trim(base, strlen(base))] = 0;
    if (!base[0] || strcmp(base, ".") == 0 || strcmp(base, "..") == 0)
        return aq_fail(err, AQ_ERR_IO, "%s: there is no such file or folder", path);
    status = aq_real_path(arena, parent, &folder, err);
    if (status != AQ_OK) return status;
    if (!folder)
        return aq_fail(err, AQ_ERR_IO, "%s: there is no folder %s; create it first", path, parent);
    *out = aq_path_join(arena, folder, base);
    return *out ? AQ_OK : aq_fail_memory(err, strlen(path));
}

/* ---- folders */

typedef struct aq_folder_item {
    aq_folder_entry entry;
    struct aq_folder_item *next;
} aq_folder_item;

typedef struct aq_folder_scan {
    aq_arena *arena;
    const char *path;
    aq_folder_item *items;
    size_t count;
} aq_folder_scan;

static aq_status aq_folder_visit(void *user, const char *name, aq_error *err) {
    aq_folder_scan *scan = (aq_folder_scan *)user;
    aq_folder_item *item = (aq_folder_item *)aq_arena_alloc(scan->arena, sizeof(*item));
    char *path = aq_path_join(scan->arena, scan->path, name);
    if (!item || !path) return aq_fail_memory(err, sizeof(*item));
    item->entry.name = path + (strlen(path) - strlen(name));
    item->entry.kind = aq_path_stat(path, &item->entry.size);
    item->next = scan->items;
    scan->items = item;
    scan->count++;
    return AQ_OK;
}

static aq_folder_item *aq_folder_merge(aq_folder_item *a, aq_folder_item *b) {
    aq_folder_item *first = NULL, **end = &first;
    while (a && b) {
        aq_folder_item **less = strcmp(a->entry.name, b->entry.name) <= 0 ? &a : &b;
        *end = *less;
        end = &(*less)->next;
        *less = (*less)->next;
    }
    *end = a ? a : b;
    return first;
}

/* Merge sort; bin[i] is NULL or a sorted list of 2^i items. */
static aq_folder_item *aq_folder_sort(aq_folder_item *items) {
    aq_folder_item *bins[64], *sorted = NULL;
    memset(bins, 0, sizeof(bins));
    while (items) {
        aq_folder_item *run = items;
        size_t i = 0;
        items = items->next;
        run->next = NULL;
        for (; bins[i]; i++) {
            run = aq_folder_merge(bins[i], run);
            bins[i] = NULL;
        }
        bins[i] = run;
    }
    for (size_t i = 0; i < 64; i++) sorted = aq_folder_merge(bins[i], sorted);
    return sorted;
}

AQ_LIB aq_status aq_list_folder(aq_arena *arena, const char *path, aq_folder_entry **entries,
                                size_t *count, aq_error *err) {
    aq_folder_scan scan = { arena, path, NULL, 0 };
    aq_status status = aq_scan_folder(path, aq_folder_visit, &scan, err);
    if (status != AQ_OK) return status;
    size_t bytes = SIZE_MAX, i = 0;
    aq_folder_entry *list = NULL;
    if (aq_mul_size(scan.count, sizeof(*list), &bytes))
        list = (aq_folder_entry *)aq_arena_alloc(arena, bytes);
    if (!list) return aq_fail_memory(err, bytes);
    for (aq_folder_item *item = aq_folder_sort(scan.items); item; item = item->next)
        list[i++] = item->entry;
    *entries = list;
    *count = scan.count;
    return AQ_OK;
}

/* Goes on after a failure, so that as little as possible is left, and reports the first. */
AQ_LIB aq_status aq_remove_tree(const aq_context *context, const char *path, aq_error *err) {
    aq_arena arena;
    aq_folder_entry *entries;
    size_t count = 0;
    if (aq_path_is_link(path) || aq_path_kind_of(path) != AQ_PATH_FOLDER)
        return aq_remove_one(path, false, err);
    aq_arena_init(&arena, context);
    aq_status first = aq_list_folder(&arena, path, &entries, &count, err);
    for (size_t i = 0; first != AQ_ERR_OUT_OF_MEMORY && i < count; i++) {
        char *inside = aq_path_join(&arena, path, entries[i].name);
        aq_status status = inside ? aq_remove_tree(context, inside, first == AQ_OK ? err : NULL)
                                  : aq_fail_memory(err, 0);
        if (first == AQ_OK) first = status;
    }
    aq_arena_free(&arena);
    if (first != AQ_OK) return first;
    return aq_remove_one(path, true, err);
}

/* ---- whole files */

AQ_LIB aq_status aq_read_text(aq_arena *arena, const char *path, uint64_t limit, char **text,
                              size_t *size, aq_error *err) {
    aq_file file = AQ_FILE_CLOSED;
    uint64_t bytes;
    aq_status status = aq_file_open(&file, path, &bytes, err);
    if (status != AQ_OK) return status;
    if (bytes > limit || bytes >= SIZE_MAX) {
        (void)aq_file_close(&file, NULL);
        return aq_fail(err, AQ_ERR_CORRUPT, "%s: holds %llu bytes; at most %llu are expected of "
                       "such a file", path, (unsigned long long)bytes, (unsigned long long)limit);
    }
    char *data = (char *)aq_arena_alloc(arena, (size_t)bytes + 1);
    status = data ? aq_file_read(&file, 0, data, (size_t)bytes, err)
                  : aq_fail_memory(err, (size_t)bytes);
    (void)aq_file_close(&file, NULL);
    if (status != AQ_OK) return status;
    *text = data;
    *size = (size_t)bytes;
    return AQ_OK;
}

static aq_status aq_write_closed(aq_file *file, const char *text, size_t size, aq_error *err) {
    aq_status status = aq_file_write(file, 0, text, size, err);
    if (status == AQ_OK) status = aq_file_sync(file, err);
    aq_status closed = aq_file_close(file, status == AQ_OK ? err : NULL);
    return status == AQ_OK ? closed : status;
}

/* Makes a rename durable where the system can. */
static aq_status aq_sync_parent(const char *path, aq_error *err) {
    char parent[AQ_SIBLING_SIZE];
    size_t at = aq_path_base_at(path);
    if (!at) return aq_sync_folder(".", err);
    at = aq_path_trim(path, at);
    memcpy(parent, path, at);
    parent[at] = 0;
    return aq_sync_folder(parent, err);
}

AQ_LIB aq_status aq_write_text(const char *path, const char *text, size_t size, aq_error *err) {
    char sibling[AQ_SIBLING_SIZE];
    aq_file file = AQ_FILE_CLOSED;
    aq_status status = AQ_ERR_EXISTS;
    if (strlen(path) + 64 > sizeof(sibling))
        return aq_fail(err, AQ_ERR_IO, "%s: the path is too long", path);
    if (aq_path_is_link(path))
        return aq_fail(err, AQ_ERR_IO, "%s: is a symbolic link; give the path that it leads to",
                       path);
    aq_path_kind kind = aq_path_kind_of(path);
    if (kind != AQ_PATH_NONE && kind != AQ_PATH_FILE)
        return aq_fail(err, AQ_ERR_IO, "%s: is %s, so it cannot be replaced", path,
                       kind == AQ_PATH_FOLDER ? "a folder" : "no ordinary file");
    for (unsigned i = 0; i < AQ_WRITE_TRIES && status == AQ_ERR_EXISTS; i++) {
        aq_format(sibling, sizeof(sibling), "%s.tmp-%llu-%u", path,
                  (unsigned long long)aq_process_id(), i);
        status = aq_file_create(&file, sibling, err);
    }
    if (status != AQ_OK) return status;
    status = aq_write_closed(&file, text, size, err);
    if (status == AQ_OK) status = aq_rename(sibling, path, AQ_RENAME_REPLACE, err);
    if (status != AQ_OK) {
        (void)aq_remove_one(sibling, false, NULL);
        return status;
    }
    return aq_sync_parent(path, err);
}

static aq_status aq_copy_blocks(const aq_context *context, const aq_file *from, const aq_file *to,
                                uint64_t size, aq_error *err) {
    size_t chunk = size < AQ_COPY_CHUNK ? (size_t)size : AQ_COPY_CHUNK;
    aq_status status = AQ_OK;
    void *data = aq_alloc(context, chunk);
    if (!data) return aq_fail_memory(err, chunk);
    for (uint64_t at = 0; at < size && status == AQ_OK;) {
        size_t part = size - at < chunk ? (size_t)(size - at) : chunk;
        if (aq_is_cancelled(context)) {
            status = aq_fail(err, AQ_ERR_CANCELLED, "%s: cancelled while it was copied",
                             from->path);
            break;
        }
        status = aq_file_read(from, at, data, part, err);
        if (status == AQ_OK) status = aq_file_write(to, at, data, part, err);
        at += part;
    }
    aq_free(context, data, chunk);
    return status;
}

AQ_LIB aq_status aq_copy_file(const aq_context *context, const char *from, const char *to,
                              aq_error *err) {
    aq_file source = AQ_FILE_CLOSED, target = AQ_FILE_CLOSED;
    uint64_t size;
    aq_status status = aq_file_open(&source, from, &size, err);
    if (status != AQ_OK) return status;
    status = aq_file_create(&target, to, err);
    if (status == AQ_OK) {
        if (!aq_file_reflink(&target, &source))
            status = aq_copy_blocks(context, &source, &target, size, err);
        if (status == AQ_OK) status = aq_file_sync(&target, err);
        aq_status closed = aq_file_close(&target, status == AQ_OK ? err : NULL);
        if (status == AQ_OK) status = closed;
        if (status != AQ_OK) (void)aq_remove_one(to, false, NULL);
    }
    (void)aq_file_close(&source, NULL);
    return status;
}

#undef AQ_COPY_CHUNK
#undef AQ_WRITE_TRIES
#undef AQ_SIBLING_SIZE
#endif /* ARROWQUANT_NO_STDIO */
