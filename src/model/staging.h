/* Output that is either whole or absent: a temporary sibling folder, held by a lock, that takes the
 * final name in one rename. Left-overs of runs that died are removed by the next one. */
#ifndef AQ_STAGING_H
#define AQ_STAGING_H

#include "../base/file.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

typedef struct aq_staging {
    aq_arena arena;
    const char *target;    /* resolved final path */
    const char *folder;    /* the temporary sibling: ".NAME.aq-tmp-PID-CLOCK-N" */
    const char *only_file; /* not NULL: the target is this one file of the folder */
    bool overwrite;
    bool resumed;          /* the folder is that of an earlier run, with what it had finished */
    const char *left_over; /* a dead run's folder that may be taken up */
    aq_file lock;          /* FOLDER.lock, beside the folder */
} aq_staging;

/* `input` is the folder or file that is read: a target equal to it, inside it or around it is
 * refused. An existing target is AQ_ERR_EXISTS unless `overwrite`; then it must be a folder that
 * holds a model (or a file for a file), so that a slip of the pen never deletes a home folder.
 * `resume`: the folder of a run that died is taken up instead of removed. */
AQ_LIB aq_status aq_staging_begin(aq_staging *staging, const aq_context *context,
                                  const char *input, const char *target, const char *only_file,
                                  bool overwrite, bool resume, aq_error *err);
/* Syncs the folders and renames; an earlier output is exchanged, then removed. */
AQ_LIB aq_status aq_staging_commit(aq_staging *staging, aq_error *err);
/* Removes what is not committed, frees everything. Zeroed or ended ones allowed. */
AQ_LIB void aq_staging_end(aq_staging *staging);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_STAGING_H */
