/* Temporary sibling folders and the one rename that makes them the output. */
#include "staging.h"

#include "../base/text.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_STAGING_MARK ".aq-tmp-"
#define AQ_STAGING_TRIES 1000u

/* "a" is "b" or lies below it; both resolved */
static bool aq_path_within(const char *a, const char *b) {
    size_t size = strlen(b);
    if (strncmp(a, b, size) != 0) return false;
    return a[size] == 0 || a[size] == '/' || a[size] == '\\' || (size && b[size - 1] == '/');
}

static aq_status aq_staging_apart(aq_staging *staging, const char *input, aq_error *err) {
    char *resolved;
    aq_status status = aq_path_resolve(&staging->arena, input, &resolved, err);
    if (status != AQ_OK) return status;
    if (strcmp(resolved, staging->target) == 0)
        return aq_fail(err, AQ_ERR_IO, "%s: output and input are the same; choose another "
                       "output", staging->target);
    if (aq_path_within(staging->target, resolved))
        return aq_fail(err, AQ_ERR_IO, "%s: the output lies inside the input %s; choose a "
                       "path outside of it", staging->target, resolved);
    if (aq_path_within(resolved, staging->target))
        return aq_fail(err, AQ_ERR_IO, "%s: the output contains the input %s; choose another "
                       "output", staging->target, resolved);
    return AQ_OK;
}

/* Overwriting replaces a model by a model, never a folder of something else. */
static aq_status aq_staging_may_replace(aq_staging *staging, aq_error *err) {
    aq_folder_entry *entries;
    size_t count;
    aq_path_kind kind = aq_path_kind_of(staging->target);
    if (kind == AQ_PATH_NONE && aq_path_is_link(staging->target))
        return aq_fail(err, AQ_ERR_IO, "%s: a link that leads nowhere; remove it or choose another "
                       "output", staging->target);
    if (kind == AQ_PATH_NONE) return AQ_OK;
    if (!staging->overwrite)
        return aq_fail(err, AQ_ERR_EXISTS, "%s: exists already; choose another output, or set "
                       "`overwrite` (--overwrite)", staging->target);
    if (staging->only_file) {
        if (kind == AQ_PATH_FILE) return AQ_OK;
        return aq_fail(err, AQ_ERR_EXISTS, "%s: is not a file, so a file cannot replace it",
                       staging->target);
    }
    if (kind != AQ_PATH_FOLDER)
        return aq_fail(err, AQ_ERR_EXISTS, "%s: is not a folder, so a model folder cannot replace "
                       "it", staging->target);
    aq_status status = aq_list_folder(&staging->arena, staging->target, &entries, &count, err);
    if (status != AQ_OK || !count) return status;
    for (size_t i = 0; i < count; i++) {
        const char *name = entries[i].name;
        if (strcmp(name, "config.json") == 0 || strcmp(name, "model_index.json") == 0 ||
            strcmp(name, "arrowquant_report.json") == 0 || aq_ends_with(name, ".safetensors") ||
            aq_ends_with(name, ".gguf"))
            return AQ_OK;
    }
    return aq_fail(err, AQ_ERR_EXISTS, "%s: holds no model, so it is not overwritten; remove it or "
                   "choose another output", staging->target);
}

/* Joins parent, "." + base of the target + mark + rest. */
static char *aq_staging_name(aq_staging *staging, const char *rest) {
    const char *base = aq_path_base(staging->target);
    size_t size = strlen(base) + strlen(AQ_STAGING_MARK) + strlen(rest) + 2;
    char *name = (char *)aq_arena_alloc(&staging->arena, size);
    char *parent = aq_path_parent(&staging->arena, staging->target);
    if (!name || !parent) return NULL;
    aq_format(name, size, ".%s%s%s", base, AQ_STAGING_MARK, rest);
    return aq_path_join(&staging->arena, parent, name);
}

/* Removes temporaries of this target whose process is gone. What cannot be removed is left: it
 * does no harm, and the run's own errors are the ones to report. */
static aq_status aq_staging_sweep(aq_staging *staging, bool resume, aq_error *err) {
    aq_folder_entry *entries;
    size_t count;
    char *parent = aq_path_parent(&staging->arena, staging->target);
    char *pattern = aq_staging_name(staging, "");
    if (!parent || !pattern) return aq_fail_memory(err, 0);
    const char *prefix = aq_path_base(pattern);
    aq_status status = aq_list_folder(&staging->arena, parent, &entries, &count, err);
    if (status != AQ_OK) return status;
    for (size_t i = 0; i < count; i++) {
        if (strncmp(entries[i].name, prefix, strlen(prefix)) != 0) continue;
        char *path = aq_path_join(&staging->arena, parent, entries[i].name);
        if (!path) return aq_fail_memory(err, 0);
        if (aq_ends_with(path, ".lock")) {
            if (!aq_lock_is_stale(path)) continue;
            char *folder = aq_arena_copy(&staging->arena, path, strlen(path) - strlen(".lock"));
            if (!folder) return aq_fail_memory(err, 0);
            if (resume && !staging->left_over && aq_path_kind_of(folder) == AQ_PATH_FOLDER) {
                staging->left_over = folder;
                continue;
            }
            if (aq_remove_tree(staging->arena.context, folder, NULL) == AQ_OK)
                (void)aq_remove_tree(staging->arena.context, path, NULL);
        } else {
            char *lock = (char *)aq_arena_alloc(&staging->arena, strlen(path) + 6);
            if (!lock) return aq_fail_memory(err, 0);
            aq_format(lock, strlen(path) + 6, "%s.lock", path);
            if (aq_path_kind_of(lock) == AQ_PATH_NONE)
                (void)aq_remove_tree(staging->arena.context, path, NULL);
        }
    }
    return AQ_OK;
}

/* The lock comes first and goes last, so that a folder without one is always a left-over. */
static aq_status aq_staging_claim(aq_staging *staging, aq_error *err) {
    char rest[96];
    /* process ids are not unique across containers that share a disk */
    unsigned long long clock = (unsigned long long)(aq_clock_seconds() * 1e6);
    for (unsigned number = 0; number < AQ_STAGING_TRIES; number++) {
        aq_format(rest, sizeof(rest), "%llu-%llu-%u", (unsigned long long)aq_process_id(), clock,
                  number);
        char *folder = aq_staging_name(staging, rest);
        aq_format(rest, sizeof(rest), "%llu-%llu-%u.lock", (unsigned long long)aq_process_id(),
                  clock, number);
        char *lock = aq_staging_name(staging, rest);
        if (!folder || !lock) return aq_fail_memory(err, 0);
        aq_status status = aq_lock_create(&staging->lock, lock, err);
        if (status == AQ_ERR_EXISTS) continue;
        if (status != AQ_OK) return status;
        status = aq_make_folder(folder, err);
        if (status != AQ_OK) {
            aq_lock_release(&staging->lock);
            return status;
        }
        staging->folder = folder;
        return AQ_OK;
    }
    return aq_fail(err, AQ_ERR_IO, "%s: too many temporary folders beside it", staging->target);
}

/* The left-over folder takes the place of our empty one. One rename decides who gets it, should two
 * runs want it; the other starts from nothing. */
static aq_status aq_staging_take_up(aq_staging *staging, aq_error *err) {
    size_t size;
    char *lock;
    if (!staging->left_over) return AQ_OK;
    size = strlen(staging->left_over) + 6;
    lock = (char *)aq_arena_alloc(&staging->arena, size);
    if (!lock) return aq_fail_memory(err, size);
    aq_format(lock, size, "%s.lock", staging->left_over);
    aq_status status = aq_remove_tree(staging->arena.context, staging->folder, err);
    if (status != AQ_OK) return status;
    if (aq_rename(staging->left_over, staging->folder, AQ_RENAME_NOREPLACE, NULL) != AQ_OK)
        return aq_make_folder(staging->folder, err);
    (void)aq_remove_tree(staging->arena.context, lock, NULL);
    staging->resumed = true;
    return AQ_OK;
}

AQ_LIB aq_status aq_staging_begin(aq_staging *staging, const aq_context *context,
                                  const char *input, const char *target, const char *only_file,
                                  bool overwrite, bool resume, aq_error *err) {
    char *resolved;
    memset(staging, 0, sizeof(*staging));
    staging->lock.handle = -1;
    aq_arena_init(&staging->arena, context);
    staging->overwrite = overwrite;
    aq_status status = aq_path_resolve(&staging->arena, target, &resolved, err);
    staging->target = resolved;
    if (status == AQ_OK && only_file) {
        staging->only_file = aq_arena_string(&staging->arena, only_file);
        if (!staging->only_file) status = aq_fail_memory(err, 0);
    }
    if (status == AQ_OK) {
        char *parent = aq_path_parent(&staging->arena, resolved);
        if (!parent) status = aq_fail_memory(err, 0);
        else if (aq_path_kind_of(parent) != AQ_PATH_FOLDER)
            status = aq_fail(err, AQ_ERR_IO, "%s: there is no such folder to write into; create it "
                             "first", parent);
    }
    if (status == AQ_OK) status = aq_staging_apart(staging, input, err);
    if (status == AQ_OK) status = aq_staging_may_replace(staging, err);
    if (status == AQ_OK) status = aq_staging_sweep(staging, resume, err);
    if (status == AQ_OK) status = aq_staging_claim(staging, err);
    if (status == AQ_OK) status = aq_staging_take_up(staging, err);
    if (status != AQ_OK) aq_staging_end(staging);
    return status;
}

static aq_status aq_sync_tree(aq_arena *arena, const char *path, aq_error *err) {
    aq_folder_entry *entries;
    size_t count;
    aq_status status = aq_list_folder(arena, path, &entries, &count, err);
    for (size_t i = 0; status == AQ_OK && i < count; i++) {
        if (entries[i].kind != AQ_PATH_FOLDER) continue;
        char *below = aq_path_join(arena, path, entries[i].name);
        if (!below) return aq_fail_memory(err, 0);
        status = aq_sync_tree(arena, below, err);
    }
    return status == AQ_OK ? aq_sync_folder(path, err) : status;
}

/* Where two names cannot be exchanged in one step: the old output steps aside, then the new one
 * takes its name. Between the two a crash leaves the old one under its temporary name. */
static aq_status aq_staging_swap(aq_staging *staging, aq_error *err) {
    aq_status status = aq_rename(staging->folder, staging->target, AQ_RENAME_EXCHANGE, err);
    if (status != AQ_ERR_UNSUPPORTED) return status;
    size_t size = strlen(staging->folder) + 5;
    char *old = (char *)aq_arena_alloc(&staging->arena, size);
    if (!old) return aq_fail_memory(err, size);
    aq_format(old, size, "%s.old", staging->folder);
    status = aq_rename(staging->target, old, AQ_RENAME_NOREPLACE, err);
    if (status != AQ_OK) return status;
    status = aq_rename(staging->folder, staging->target, AQ_RENAME_NOREPLACE, err);
    if (status != AQ_OK) {
        (void)aq_rename(old, staging->target, AQ_RENAME_NOREPLACE, NULL);
        return status;
    }
    return aq_rename(old, staging->folder, AQ_RENAME_NOREPLACE, err);
}

AQ_LIB aq_status aq_staging_commit(aq_staging *staging, aq_error *err) {
    char *parent = aq_path_parent(&staging->arena, staging->target);
    if (!parent) return aq_fail_memory(err, 0);
    aq_status status = aq_sync_tree(&staging->arena, staging->folder, err);
    if (status != AQ_OK) return status;
    if (staging->only_file) {
        char *file = aq_path_join(&staging->arena, staging->folder, staging->only_file);
        if (!file) return aq_fail_memory(err, 0);
        status = aq_rename(file, staging->target,
                           staging->overwrite ? AQ_RENAME_REPLACE : AQ_RENAME_NOREPLACE, err);
    } else if (staging->overwrite && aq_path_kind_of(staging->target) == AQ_PATH_FOLDER) {
        status = aq_staging_swap(staging, err);
    } else {
        status = aq_rename(staging->folder, staging->target, AQ_RENAME_NOREPLACE, err);
    }
    if (status != AQ_OK) return status;
    return aq_sync_folder(parent, err);
}

AQ_LIB void aq_staging_end(aq_staging *staging) {
    /* after a commit the name is gone, or holds the replaced output */
    if (staging->folder) (void)aq_remove_tree(staging->arena.context, staging->folder, NULL);
    if (staging->lock.path) aq_lock_release(&staging->lock);
    aq_arena_free(&staging->arena);
    memset(staging, 0, sizeof(*staging));
    staging->lock.handle = -1;
}

#undef AQ_STAGING_MARK
#undef AQ_STAGING_TRIES
#endif /* ARROWQUANT_NO_STDIO */
