/* Threads by pthreads or Win32; with ARROWQUANT_NO_THREADS everything runs on the caller. */
#include "thread.h"

#if defined(ARROWQUANT_NO_THREADS)
#elif defined(_WIN32)
#  if !defined(WIN32_LEAN_AND_MEAN)
#    define WIN32_LEAN_AND_MEAN
#    include <windows.h>
#    undef WIN32_LEAN_AND_MEAN
#  else
#    include <windows.h>
#  endif
#else
#  include <pthread.h>
#  include <unistd.h>
#  if defined(__linux__)
#    include <sys/syscall.h>
#    if defined(SYS_getcpu) && defined(SYS_sched_getaffinity) && defined(SYS_sched_setaffinity)
#      define AQ_LEAVES_CORE 1
#    endif
#    if !defined(__cplusplus)
/* hidden by -std=c99 */
extern long syscall(long number, ...);
#    endif
#  endif
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#  include <intrin.h>
#endif

AQ_LIB int aq_atomic_load(const int *value) {
#if defined(__GNUC__) || defined(__clang__)
    return __atomic_load_n(value, __ATOMIC_ACQUIRE);
#elif defined(_MSC_VER)
    return (int)_InterlockedOr((volatile long *)value, 0);
#else
    return *(const volatile int *)value;
#endif
}

AQ_LIB void aq_atomic_store(int *value, int desired) {
#if defined(__GNUC__) || defined(__clang__)
    __atomic_store_n(value, desired, __ATOMIC_RELEASE);
#elif defined(_MSC_VER)
    (void)_InterlockedExchange((volatile long *)value, desired);
#else
    *(volatile int *)value = desired;
#endif
}

AQ_LIB int aq_atomic_add(int *value, int more) {
#if defined(__GNUC__) || defined(__clang__)
    return __atomic_add_fetch(value, more, __ATOMIC_ACQ_REL);
#elif defined(_MSC_VER)
    return (int)_InterlockedExchangeAdd((volatile long *)value, more) + more;
#else
    return *(volatile int *)value += more;
#endif
}

AQ_LIB bool aq_is_cancelled(const aq_context *context) {
    return context && aq_atomic_load(&context->cancel_requested) != 0;
}

#if defined(ARROWQUANT_NO_THREADS)

AQ_LIB uint32_t aq_core_count(void) { return 1; }

#elif defined(_WIN32)

AQ_LIB uint32_t aq_core_count(void) {
    DWORD_PTR ours, all;
    uint32_t count = 0;
    if (!GetProcessAffinityMask(GetCurrentProcess(), &ours, &all)) ours = 0;
    for (; ours; ours &= ours - 1) count++;
    return count ? count : 1;
}

#else

/* What the affinity mask allows; what is online where there is no such mask. */
AQ_LIB uint32_t aq_core_count(void) {
    long count = 0;
#  if defined(__linux__) && defined(SYS_sched_getaffinity)
    unsigned long mask[128];
    long bytes = syscall(SYS_sched_getaffinity, 0L, sizeof(mask), mask);
    for (size_t i = 0; bytes > 0 && i < (size_t)bytes / sizeof(mask[0]); i++) {
        for (unsigned long word = mask[i]; word; word &= word - 1) count++;
    }
#  endif
    if (count < 1) count = sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1u : (uint32_t)count;
}

#endif

AQ_LIB uint32_t aq_thread_count(const aq_context *context) {
#if defined(ARROWQUANT_NO_THREADS)
    (void)context;
    return 1;
#else
    uint32_t count = context && context->num_threads ? context->num_threads : aq_core_count();
    return count < AQ_MAX_THREADS ? count : AQ_MAX_THREADS;
#endif
}

/* ---- a mutex and a thread, as far as the loop below needs them */

#if defined(ARROWQUANT_NO_THREADS)

typedef int aq_mutex;
static bool aq_mutex_init(aq_mutex *mutex) { *mutex = 0; return true; }
static void aq_mutex_lock(aq_mutex *mutex) { (void)mutex; }
static void aq_mutex_unlock(aq_mutex *mutex) { (void)mutex; }
static void aq_mutex_destroy(aq_mutex *mutex) { (void)mutex; }

#elif defined(_WIN32)

typedef CRITICAL_SECTION aq_mutex;
static bool aq_mutex_init(aq_mutex *mutex) { InitializeCriticalSection(mutex); return true; }
static void aq_mutex_lock(aq_mutex *mutex) { EnterCriticalSection(mutex); }
static void aq_mutex_unlock(aq_mutex *mutex) { LeaveCriticalSection(mutex); }
static void aq_mutex_destroy(aq_mutex *mutex) { DeleteCriticalSection(mutex); }

typedef HANDLE aq_thread;
typedef DWORD aq_thread_result;
#  define AQ_THREAD_CALL WINAPI

static bool aq_thread_start(aq_thread *thread, aq_thread_result(AQ_THREAD_CALL *run)(void *),
                            void *argument) {
    *thread = CreateThread(NULL, 0, run, argument, 0, NULL);
    return *thread != NULL;
}

static void aq_thread_join(aq_thread thread) {
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}

#else

typedef pthread_mutex_t aq_mutex;
static bool aq_mutex_init(aq_mutex *mutex) { return pthread_mutex_init(mutex, NULL) == 0; }
static void aq_mutex_lock(aq_mutex *mutex) { (void)pthread_mutex_lock(mutex); }
static void aq_mutex_unlock(aq_mutex *mutex) { (void)pthread_mutex_unlock(mutex); }
static void aq_mutex_destroy(aq_mutex *mutex) { (void)pthread_mutex_destroy(mutex); }

typedef pthread_t aq_thread;
typedef void *aq_thread_result;
#  define AQ_THREAD_CALL
#  define AQ_THREAD_STACK ((size_t)512 * 1024) /* some systems give as little as 128 KiB */

static bool aq_thread_start(aq_thread *thread, aq_thread_result (*run)(void *), void *argument) {
    pthread_attr_t attributes;
    size_t stack;
    if (pthread_attr_init(&attributes) != 0) return false;
    if (pthread_attr_getstacksize(&attributes, &stack) == 0 && stack < AQ_THREAD_STACK)
        (void)pthread_attr_setstacksize(&attributes, AQ_THREAD_STACK);
    bool started = pthread_create(thread, &attributes, run, argument) == 0;
    (void)pthread_attr_destroy(&attributes);
    return started;
}

static void aq_thread_join(aq_thread thread) { (void)pthread_join(thread, NULL); }

#endif

/* ---- a lock on the heap */

struct aq_guard {
    aq_mutex mutex;
};

AQ_LIB struct aq_guard *aq_guard_create(const aq_context *context) {
    struct aq_guard *guard = (struct aq_guard *)aq_alloc(context, sizeof(*guard));
    if (guard && !aq_mutex_init(&guard->mutex)) {
        aq_free(context, guard, sizeof(*guard));
        guard = NULL;
    }
    return guard;
}

AQ_LIB void aq_guard_enter(struct aq_guard *guard) { aq_mutex_lock(&guard->mutex); }

AQ_LIB void aq_guard_leave(struct aq_guard *guard) { aq_mutex_unlock(&guard->mutex); }

AQ_LIB void aq_guard_destroy(const aq_context *context, struct aq_guard *guard) {
    if (!guard) return;
    aq_mutex_destroy(&guard->mutex);
    aq_free(context, guard, sizeof(*guard));
}

/* ---- cores */

#if defined(AQ_LEAVES_CORE)

AQ_LIB unsigned aq_core_here(void) {
    unsigned core = 0;
    return syscall(SYS_getcpu, &core, NULL, NULL) == 0 ? core : ~0u;
}

/* For a moment the thread's mask lacks that core. */
AQ_LIB void aq_leave_core(unsigned home, uint32_t number) {
    const size_t bits = 8 * sizeof(unsigned long);
    unsigned long all[128], others[128];
    uint32_t count = 0;
    if (aq_core_here() != home) return;
    long bytes = syscall(SYS_sched_getaffinity, 0L, sizeof(all), all);
    if (bytes <= 0 || home / bits >= (size_t)bytes / sizeof(all[0])) return;
    for (size_t i = 0; i < (size_t)bytes / sizeof(all[0]); i++) {
        for (unsigned long word = all[i]; word; word &= word - 1) count++;
        others[i] = all[i];
    }
    others[home / bits] &= ~(1ul << home % bits);
    if (number >= count) return;
    if (syscall(SYS_sched_setaffinity, 0L, (size_t)bytes, others) == 0)
        (void)syscall(SYS_sched_setaffinity, 0L, (size_t)bytes, all);
}

#else

AQ_LIB unsigned aq_core_here(void) { return 0; }

AQ_LIB void aq_leave_core(unsigned home, uint32_t number) {
    (void)home;
    (void)number;
}

#endif

/* ---- the loop */

typedef struct aq_loop {
    aq_context *context;
    size_t count;
    aq_task_fn task;
    void *user;
    aq_mutex mutex; /* guards what follows */
    size_t next;
    bool stopped;   /* a task has failed, or the context was cancelled */
    unsigned home;  /* the core on which the loop was begun, where that is known */
    aq_status status;
    size_t failed;  /* the lowest index that failed, when status is not AQ_OK */
    aq_error *err;  /* the caller's: its error */
} aq_loop;

/* The next index; false when there is none to begin. */
static bool aq_loop_take(aq_loop *loop, size_t *index) {
    bool cancelled = aq_is_cancelled(loop->context);
    aq_mutex_lock(&loop->mutex);
    bool more = !loop->stopped && loop->next < loop->count;
    if (more && cancelled) {
        loop->stopped = true;
        more = false;
        if (loop->status == AQ_OK) {
            loop->status = aq_fail(loop->err, AQ_ERR_CANCELLED, "cancelled");
            loop->failed = SIZE_MAX;
        }
    }
    if (more) *index = loop->next++;
    aq_mutex_unlock(&loop->mutex);
    return more;
}

/* All indices below a failed one have begun and will end, so that the lowest failure is the same
 * whatever the timing. */
static void aq_loop_failed(aq_loop *loop, size_t index, aq_status status, const aq_error *err) {
    aq_mutex_lock(&loop->mutex);
    if (loop->status == AQ_OK || index < loop->failed) {
        loop->status = status;
        loop->failed = index;
        if (loop->err) *loop->err = *err;
    }
    loop->stopped = true;
    aq_mutex_unlock(&loop->mutex);
}

static void aq_loop_work(aq_loop *loop, uint32_t worker) {
    aq_error err;
    size_t index;
    memset(&err, 0, sizeof(err));
    while (aq_loop_take(loop, &index)) {
        aq_status status = loop->task(loop->user, index, worker, &err);
        if (status == AQ_OK) continue;
        err.status = status;
        aq_loop_failed(loop, index, status, &err);
    }
}

#if defined(ARROWQUANT_NO_THREADS)

static void aq_loop_run(aq_loop *loop, uint32_t threads) {
    (void)threads;
    aq_loop_work(loop, 0);
}

#else

typedef struct aq_worker {
    aq_loop *loop;
    uint32_t number;
    aq_thread thread;
} aq_worker;

#  ifdef __cplusplus
extern "C" {
#  endif
static aq_thread_result AQ_THREAD_CALL aq_worker_run(void *argument) {
    aq_worker *worker = (aq_worker *)argument;
    aq_leave_core(worker->loop->home, worker->number);
    aq_loop_work(worker->loop, worker->number);
    return 0;
}
#  ifdef __cplusplus
}
#  endif

static void aq_loop_run(aq_loop *loop, uint32_t threads) {
    aq_worker workers[AQ_MAX_THREADS];
    uint32_t started = 1;
    if (threads > 1) loop->home = aq_core_here();
    for (; started < threads; started++) {
        workers[started].loop = loop;
        workers[started].number = started;
        if (!aq_thread_start(&workers[started].thread, aq_worker_run, &workers[started])) break;
    }
    aq_loop_work(loop, 0);
    while (started > 1) aq_thread_join(workers[--started].thread);
}

#  undef AQ_THREAD_CALL
#  undef AQ_THREAD_STACK
#endif

AQ_LIB aq_status aq_parallel_for(aq_context *context, uint32_t threads, size_t count,
                                 aq_task_fn task, void *user, aq_error *err) {
    aq_loop loop;
    memset(&loop, 0, sizeof(loop));
    loop.context = context;
    loop.count = count;
    loop.task = task;
    loop.user = user;
    loop.status = AQ_OK;
    loop.err = err;
    if (threads > AQ_MAX_THREADS) threads = AQ_MAX_THREADS;
    if (threads > count) threads = (uint32_t)count;
    if (!aq_mutex_init(&loop.mutex)) return aq_fail(err, AQ_ERR_IO, "no mutex could be made");
    aq_loop_run(&loop, threads);
    aq_mutex_destroy(&loop.mutex);
    return loop.status;
}

#undef AQ_LEAVES_CORE
