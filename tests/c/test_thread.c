/* The parallel loop: every index once, the lowest failure, cancelling, nesting. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#  define _GNU_SOURCE
#endif
#include "test.h"

#if defined(__linux__) && !defined(ARROWQUANT_NO_THREADS)
#  include <sched.h>
#endif

#define COUNT 5000

typedef struct loop_state {
    aq_context *context;
    int seen[COUNT];   /* each written by the one task of that index */
    int worker_used[AQ_MAX_THREADS];
    uint32_t threads;
    size_t fail_from;  /* indices from here on fail, if their lowest bit is set */
    size_t cancel_at;
    int begun;
} loop_state;

static aq_status visit(void *user, size_t index, uint32_t worker, aq_error *err) {
    loop_state *state = (loop_state *)user;
    state->seen[index]++;
    if (worker >= state->threads) return aq_fail(err, AQ_ERR_SHAPE, "worker %u", worker);
    state->worker_used[worker] = 1;
    if (index == state->cancel_at) aq_atomic_store(&state->context->cancel_requested, 1);
    while (index > state->cancel_at && !aq_is_cancelled(state->context)) {} /* none overtakes it to the end */
    if (index >= state->fail_from && index % 2 == 1) {
        /* the later ones fail sooner */
        for (volatile unsigned i = 0; i < 200u * (unsigned)(COUNT - index) % 9000u; i++) {}
        return aq_fail_tensor(err, AQ_ERR_QUANTIZATION, "t", index, "index %zu", index);
    }
    return AQ_OK;
}

static loop_state state;

static void prepare(aq_context *context, uint32_t threads) {
    memset(&state, 0, sizeof(state));
    state.context = context;
    state.threads = threads;
    state.fail_from = state.cancel_at = SIZE_MAX;
}

TEST(every_index_once) {
    static const uint32_t threads[] = { 0, 1, 2, 3, 8, 100, AQ_MAX_THREADS, 100000 };
    for (size_t i = 0; i < sizeof(threads) / sizeof(threads[0]); i++) {
        aq_error err;
        memset(&err, 0x55, sizeof(err));
        prepare(NULL, threads[i] ? threads[i] : 1);
        CHECK_STATUS(aq_parallel_for(NULL, threads[i], COUNT, visit, &state, &err), AQ_OK);
        for (size_t k = 0; k < COUNT; k++) CHECK(state.seen[k] == 1);
        CHECK(err.message[5] == 0x55); /* untouched on success */
    }
    prepare(NULL, 4);
    CHECK_STATUS(aq_parallel_for(NULL, 4, 0, visit, &state, NULL), AQ_OK);
    CHECK_STATUS(aq_parallel_for(NULL, 4, 2, visit, &state, NULL), AQ_OK);
    CHECK(state.seen[0] == 1 && state.seen[1] == 1 && state.seen[2] == 0);
    CHECK(!state.worker_used[2] && !state.worker_used[3]); /* no more workers than work */
}

TEST(the_lowest_failure_wins) {
    for (int round = 0; round < 300; round++) {
        aq_error err;
        prepare(NULL, 8);
        state.fail_from = 3 + (size_t)round;
        size_t expected = state.fail_from | 1;
        CHECK_STATUS(aq_parallel_for(NULL, 8, COUNT, visit, &state, &err), AQ_ERR_QUANTIZATION);
        char text[40];
        aq_format(text, sizeof(text), "index %zu", expected);
        CHECK_STR(err.message, text);
        CHECK(err.offset == expected && err.status == AQ_ERR_QUANTIZATION);
        for (size_t k = 0; k <= expected; k++) CHECK(state.seen[k] == 1);
        CHECK(state.seen[COUNT - 1] == 0); /* nothing is begun after a failure */
    }
    prepare(NULL, 8);
    state.fail_from = 0;
    CHECK_STATUS(aq_parallel_for(NULL, 8, COUNT, visit, &state, NULL), AQ_ERR_QUANTIZATION);
}

TEST(cancelling_stops) {
    aq_context context;
    aq_error err;
    memset(&context, 0, sizeof(context));
    CHECK(!aq_is_cancelled(&context) && !aq_is_cancelled(NULL));
    prepare(&context, 4);
    state.cancel_at = 100;
    CHECK_STATUS(aq_parallel_for(&context, 4, COUNT, visit, &state, &err), AQ_ERR_CANCELLED);
    CHECK(err.status == AQ_ERR_CANCELLED && aq_is_cancelled(&context));
    CHECK(state.seen[100] == 1 && state.seen[COUNT - 1] == 0);
    prepare(&context, 4);
    CHECK_STATUS(aq_parallel_for(&context, 4, COUNT, visit, &state, NULL), AQ_ERR_CANCELLED);
    CHECK(state.seen[0] == 0);
    aq_atomic_store(&context.cancel_requested, 0);
    CHECK_STATUS(aq_parallel_for(&context, 4, COUNT, visit, &state, NULL), AQ_OK);
    /* what is complete is a success: the last index may cancel */
    prepare(&context, 1);
    state.cancel_at = COUNT - 1;
    CHECK_STATUS(aq_parallel_for(&context, 1, COUNT, visit, &state, NULL), AQ_OK);
}

static aq_status nested(void *user, size_t index, uint32_t worker, aq_error *err) {
    static loop_state inner[4];
    (void)user;
    (void)worker;
    memset(&inner[index], 0, sizeof(inner[index]));
    inner[index].threads = 3;
    inner[index].fail_from = index == 3 ? 11 : SIZE_MAX;
    inner[index].cancel_at = SIZE_MAX;
    return aq_parallel_for(NULL, 3, COUNT, visit, &inner[index], err);
}

TEST(loops_nest) {
    aq_error err;
    CHECK_STATUS(aq_parallel_for(NULL, 4, 3, nested, NULL, &err), AQ_OK);
    CHECK_STATUS(aq_parallel_for(NULL, 4, 4, nested, NULL, &err), AQ_ERR_QUANTIZATION);
    CHECK_STR(err.message, "index 11");
}

TEST(counts_are_sane) {
    aq_context context;
    memset(&context, 0, sizeof(context));
    CHECK(aq_core_count() >= 1);
    CHECK(aq_thread_count(NULL) >= 1 && aq_thread_count(NULL) <= AQ_MAX_THREADS);
    CHECK(aq_thread_count(NULL) == aq_thread_count(&context));
#ifndef ARROWQUANT_NO_THREADS
    context.num_threads = 3;
    CHECK(aq_thread_count(&context) == 3);
    context.num_threads = 100000;
    CHECK(aq_thread_count(&context) == AQ_MAX_THREADS);
#endif
}

#if defined(__linux__) && !defined(ARROWQUANT_NO_THREADS)

/* Leaving a core does not keep the thread off it, whether or not there is another. */
static void check_leaving(int moves) {
    cpu_set_t mine, after;
    int moved = 0;
    CPU_ZERO(&mine);
    CHECK(sched_getaffinity(0, sizeof(mine), &mine) == 0);
    for (int round = 0; round < 50; round++) {
        unsigned home = aq_core_here();
        aq_leave_core(home, 1);
        moved += aq_core_here() != home;
        aq_leave_core(home + 1000, 1);
        aq_leave_core(~0u, 1);
        CPU_ZERO(&after);
        CHECK(sched_getaffinity(0, sizeof(after), &after) == 0 && CPU_EQUAL(&mine, &after));
    }
    CHECK(!moves == !moved);
}

TEST(a_core_is_left) {
    cpu_set_t all, one;
    CPU_ZERO(&all);
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof(all), &all) != 0) return;
    check_leaving(CPU_COUNT(&all) > 1);
    for (size_t core = 0; core < CPU_SETSIZE && CPU_COUNT(&one) == 0; core++)
        if (CPU_ISSET(core, &all)) CPU_SET(core, &one);
    if (sched_setaffinity(0, sizeof(one), &one) != 0) return;
    check_leaving(0);
    CHECK(sched_setaffinity(0, sizeof(all), &all) == 0);
}

#endif

int main(void) {
    RUN(every_index_once);
    RUN(the_lowest_failure_wins);
    RUN(cancelling_stops);
    RUN(loops_nest);
    RUN(counts_are_sane);
#if defined(__linux__) && !defined(ARROWQUANT_NO_THREADS)
    RUN(a_core_is_left);
#endif
    return test_end();
}
