/* Threads: a parallel loop, an atomic int, the number of cores. ARROWQUANT_NO_THREADS: serial. */
#ifndef AQ_THREAD_H
#define AQ_THREAD_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_MAX_THREADS 256u

AQ_LIB uint32_t aq_core_count(void); /* that this process may use, at least 1 */
/* context->num_threads resolved: 1 … AQ_MAX_THREADS; always 1 with NO_THREADS */
AQ_LIB uint32_t aq_thread_count(const aq_context *context);

AQ_LIB int aq_atomic_load(const int *value);
AQ_LIB void aq_atomic_store(int *value, int desired);
AQ_LIB int aq_atomic_add(int *value, int more); /* what it is afterwards */
AQ_LIB bool aq_is_cancelled(const aq_context *context); /* NULL: false */

/* A lock on the heap; does nothing with NO_THREADS. NULL: no memory. */
AQ_LIB struct aq_guard *aq_guard_create(const aq_context *context);
AQ_LIB void aq_guard_enter(struct aq_guard *guard);
AQ_LIB void aq_guard_leave(struct aq_guard *guard);
AQ_LIB void aq_guard_destroy(const aq_context *context, struct aq_guard *guard); /* NULL allowed */

/* Some schedulers let a thread begin on the core of the one that starts it, which is busy, and move it
 * only after milliseconds; then a short loop is over. A thread that is still on `home` goes to another
 * core, where its process may use more than `number` cores; what it may use is then as before. Linux
 * alone; elsewhere it does nothing, and aq_core_here knows of one core. */
AQ_LIB unsigned aq_core_here(void);
AQ_LIB void aq_leave_core(unsigned home, uint32_t number);

/* One step of a parallel loop. `worker` < threads; worker 0 is the calling thread. */
typedef aq_status (*aq_task_fn)(void *user, size_t index, uint32_t worker, aq_error *err);

/* Runs task(user, i, …) for every i < count on up to `threads` threads, each taking the next index
 * in order; allocates nothing. After a failure no further index is begun; the failure with the
 * lowest index is the one reported, so the outcome does not depend on timing. Stops with
 * AQ_ERR_CANCELLED when the context is cancelled. If a thread cannot be created, the others do its
 * work. */
AQ_LIB aq_status aq_parallel_for(aq_context *context, uint32_t threads, size_t count,
                                 aq_task_fn task, void *user, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* AQ_THREAD_H */
