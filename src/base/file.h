/* Files and folders: POSIX and Win32 behind one face; paths are UTF-8. Every failure names the path
 * and the system's reason. Absent with ARROWQUANT_NO_STDIO. */
#ifndef AQ_FILE_H
#define AQ_FILE_H

#include "base.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

typedef struct aq_file {
    intptr_t handle;  /* -1: closed */
    const char *path; /* borrowed, for messages */
} aq_file;

#define AQ_FILE_CLOSED { -1, NULL }

AQ_LIB aq_status aq_file_open(aq_file *file, const char *path, uint64_t *size, aq_error *err);
AQ_LIB aq_status aq_file_create(aq_file *file, const char *path, aq_error *err); /* must not exist */
/* All of it or an error; a file that has become shorter is AQ_ERR_CORRUPT. From any thread. */
AQ_LIB aq_status aq_file_read(const aq_file *file, uint64_t offset, void *data, size_t size,
                              aq_error *err);
AQ_LIB aq_status aq_file_write(const aq_file *file, uint64_t offset, const void *data, size_t size,
                               aq_error *err);
AQ_LIB aq_status aq_file_truncate(const aq_file *file, uint64_t size, aq_error *err);
/* The system begins to write a range to the device; does not wait, and is only a wish. */
AQ_LIB void aq_file_begin_sync(const aq_file *file, uint64_t offset, uint64_t size);
AQ_LIB aq_status aq_file_sync(const aq_file *file, aq_error *err);
AQ_LIB aq_status aq_file_close(aq_file *file, aq_error *err); /* closed ones allowed */

typedef struct aq_map {
    const void *data; /* NULL when the file is empty */
    uint64_t size;
    intptr_t handle;
} aq_map;

AQ_LIB aq_status aq_map_file(aq_map *map, const char *path, aq_error *err);
AQ_LIB void aq_unmap_file(aq_map *map);

/* The whole of a small file, 0-terminated, in the arena; larger than `limit` is an error. */
AQ_LIB aq_status aq_read_text(aq_arena *arena, const char *path, uint64_t limit, char **text,
                              size_t *size, aq_error *err);
/* Creates or replaces `path` in one step: temporary sibling, sync, rename. */
AQ_LIB aq_status aq_write_text(const char *path, const char *text, size_t size, aq_error *err);

typedef enum aq_path_kind { AQ_PATH_NONE, AQ_PATH_FILE, AQ_PATH_FOLDER, AQ_PATH_OTHER } aq_path_kind;

/* Follows symbolic links. A dangling link is NONE. */
AQ_LIB aq_path_kind aq_path_kind_of(const char *path);
AQ_LIB bool aq_path_is_link(const char *path);
AQ_LIB uint64_t aq_path_modified(const char *path); /* a time stamp; 0 where there is none */

typedef struct aq_folder_entry {
    const char *name;
    aq_path_kind kind; /* links followed */
    uint64_t size;     /* of a file */
} aq_folder_entry;

/* Sorted by name (bytes), without "." and "..". */
AQ_LIB aq_status aq_list_folder(aq_arena *arena, const char *path, aq_folder_entry **entries,
                                size_t *count, aq_error *err);

AQ_LIB char *aq_path_join(aq_arena *arena, const char *folder, const char *name); /* NULL: memory */
AQ_LIB char *aq_path_parent(aq_arena *arena, const char *path); /* "." where there is none */
AQ_LIB const char *aq_path_base(const char *path);              /* last component, in place */
/* Absolute, links resolved; the last component need not exist. */
AQ_LIB aq_status aq_path_resolve(aq_arena *arena, const char *path, char **out, aq_error *err);

AQ_LIB aq_status aq_make_folder(const char *path, aq_error *err); /* one level; exists is an error */
AQ_LIB aq_status aq_sync_folder(const char *path, aq_error *err);
/* A folder with all that is in it, or a file; does not follow links; absent is success. */
AQ_LIB aq_status aq_remove_tree(const aq_context *context, const char *path, aq_error *err);
/* Same file system. NOREPLACE: AQ_ERR_EXISTS when `to` exists. EXCHANGE: swaps the two in one step;
 * AQ_ERR_UNSUPPORTED where the system cannot. */
typedef enum aq_rename_mode { AQ_RENAME_NOREPLACE, AQ_RENAME_EXCHANGE, AQ_RENAME_REPLACE } aq_rename_mode;
AQ_LIB aq_status aq_rename(const char *from, const char *to, aq_rename_mode mode, aq_error *err);
/* Reflink where the file system can, else copies; follows links; syncs; stops when cancelled. */
AQ_LIB aq_status aq_copy_file(const aq_context *context, const char *from, const char *to,
                              aq_error *err);

/* An exclusive lock that the system releases when the process dies. */
AQ_LIB aq_status aq_lock_create(aq_file *lock, const char *path, aq_error *err);
/* True when `path` exists and no living process holds it; false when held or absent. */
AQ_LIB bool aq_lock_is_stale(const char *path);
AQ_LIB void aq_lock_release(aq_file *lock); /* closes and removes the file */

AQ_LIB double aq_clock_seconds(void); /* monotonic */
AQ_LIB uint64_t aq_process_id(void);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_FILE_H */
