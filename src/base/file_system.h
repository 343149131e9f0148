/* What file.c needs of a system beside file.h: made by file_posix.c and file_win32.c. */
#ifndef AQ_FILE_SYSTEM_H
#define AQ_FILE_SYSTEM_H

#include "file.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* "PATH: cannot DOING: REASON", the reason being the system's latest error. */
AQ_LIB aq_status aq_system_fail(const char *path, const char *doing, aq_error *err);
/* Kind (links followed) and size, 0 unless a file. */
AQ_LIB aq_path_kind aq_path_stat(const char *path, uint64_t *size);
/* Calls visit for each name in the folder but "." and "..", in no order; stops when it fails. */
typedef aq_status (*aq_visit_fn)(void *user, const char *name, aq_error *err);
AQ_LIB aq_status aq_scan_folder(const char *path, aq_visit_fn visit, void *user, aq_error *err);
/* A file, a link or an empty folder; absent is success. */
AQ_LIB aq_status aq_remove_one(const char *path, bool folder, aq_error *err);
/* The path of what exists, absolute and without links: *out stays NULL when it does not exist. */
AQ_LIB aq_status aq_real_path(aq_arena *arena, const char *path, char **out, aq_error *err);
/* Makes the empty file `to` share the blocks of `from`; false when the file system cannot. */
AQ_LIB bool aq_file_reflink(const aq_file *to, const aq_file *from);
AQ_LIB bool aq_is_separator(char c);
AQ_LIB char aq_separator(void);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_FILE_SYSTEM_H */
