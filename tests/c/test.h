/* A C test is a file of TEST functions and a main that RUNs them. The same file is linked with the
 * sources, and with the built header compiled as C and as C++, internals extern in each of them.
 * A tool_*.c that includes this with AQ_TEST_BUNDLE defined holds the built header, internals static.
 *
 *     #include "test.h"
 *     TEST(adds_up) { CHECK(1 + 1 == 2); CHECK_STR(aq_version(), AQ_VERSION); }
 *     int main(void) { RUN(adds_up); return test_end(); }
 */
#ifndef AQ_TEST_H
#define AQ_TEST_H

#ifdef AQ_TEST_BUNDLE
#  define ARROWQUANT_IMPLEMENTATION
#  include "arrowquant.h"
#else
#  include "sources.h"
#endif

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long test_passed, test_failed, test_skipped;
static int test_broken; /* the running test has failed a check */

/* AQ_TEST_ONLY: the names of tests, all where it is not set; but those of AQ_TEST_EXCEPT. */
static inline int test_wanted(const char *name) {
    const char *names = getenv("AQ_TEST_ONLY"), *others = getenv("AQ_TEST_EXCEPT");
    if (others && strstr(others, name)) {
        test_skipped++;
        printf("skipped: %s\n", name);
        return 0;
    }
    return !names || strstr(names, name) != NULL;
}

#define TEST(name) static void test_##name(void)
#define RUN(name)                                                                                  \
    do {                                                                                           \
        test_broken = 0;                                                                           \
        if (!test_wanted(#name)) {                                                                 \
            break;                                                                                 \
        }                                                                                          \
        test_##name();                                                                             \
        if (test_broken) {                                                                         \
            test_failed++;                                                                         \
            printf("FAILED %s:%s\n", __FILE__, #name);                                             \
        } else {                                                                                   \
            test_passed++;                                                                         \
        }                                                                                          \
    } while (0)
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            test_broken = 1;                                                                       \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);                                 \
        }                                                                                          \
    } while (0)
#define CHECK_STR(a, b)                                                                            \
    do {                                                                                           \
        const char *test_a = (a), *test_b = (b);                                                   \
        if (!test_a || !test_b || strcmp(test_a, test_b) != 0) {                                   \
            test_broken = 1;                                                                       \
            printf("%s:%d: \"%s\" is not \"%s\"\n", __FILE__, __LINE__, test_a ? test_a : "NULL",   \
                   test_b ? test_b : "NULL");                                                      \
        }                                                                                          \
    } while (0)
/* a <= b <= c, with the numbers shown */
#define CHECK_RANGE(low, value, high)                                                              \
    do {                                                                                           \
        double test_v = (double)(value);                                                           \
        if (!(test_v >= (double)(low) && test_v <= (double)(high))) {                              \
            test_broken = 1;                                                                       \
            printf("%s:%d: %s = %.9g is not within %.9g … %.9g\n", __FILE__, __LINE__, #value,     \
                   test_v, (double)(low), (double)(high));                                         \
        }                                                                                          \
    } while (0)
#define CHECK_STATUS(call, expected)                                                               \
    do {                                                                                           \
        aq_status test_s = (call);                                                                 \
        if (test_s != (expected)) {                                                                \
            test_broken = 1;                                                                       \
            printf("%s:%d: %s gave %s, not %s\n", __FILE__, __LINE__, #call,                       \
                   aq_status_name(test_s), aq_status_name(expected));                              \
        }                                                                                          \
    } while (0)

/* A reproducible generator for tests (splitmix64), and a standard normal from it. */
static inline uint64_t test_random(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}
static inline double test_uniform(uint64_t *state) { /* (0, 1) */
    return ((double)(test_random(state) >> 11) + 0.5) * (1.0 / 9007199254740992.0);
}
static inline double test_normal(uint64_t *state) {
    double radius = sqrt(-2.0 * log(test_uniform(state)));
    return radius * cos(6.283185307179586 * test_uniform(state));
}

/* The ISA of that name; ends the program when there is none. */
static inline aq_isa test_isa(const char *name) {
    int isa;
    for (isa = (int)AQ_ISA_AUTO; isa <= (int)AQ_ISA_NEON; isa++) {
        if (strcmp(name, aq_isa_name((aq_isa)isa)) == 0) {
            return (aq_isa)isa;
        }
    }
    printf("no such ISA: %s\n", name);
    exit(2);
}

/* Defined with AQ_ARENA_FIRST, so small that each piece of an arena is an allocation of its own. */
#if defined(AQ_ARENA_FIRST)
#  define TEST_PIECES 1
#else
#  define TEST_PIECES 0
#endif

/* Asked for where machines are emulated: shorter loops. */
static inline int test_brief(void) {
    return getenv("AQ_TEST_BRIEF") != NULL;
}

static inline int test_end(void) {
    (void)test_broken; /* a program without tests */
    printf("%lu passed, %lu failed, %lu skipped\n", test_passed, test_failed, test_skipped);
    return test_failed != 0;
}

#endif
