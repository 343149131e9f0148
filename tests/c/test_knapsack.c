/* Bits under a budget: against every choice there is, on random instances of odd kinds; bounds that
 * hold; budgets that are too small. */
#include "test.h"

#define MOST 6u

static aq_option random_option(uint64_t *state, int kind, unsigned index) {
    aq_option option;
    option.bytes = 1 + test_random(state) % (kind == 1 ? 8 : 1000) + 300 * index;
    option.error = kind == 2 ? (double)(test_random(state) % 4) : test_uniform(state);
    option.error *= kind == 3 ? pow(10.0, -(double)(2 * index)) : 1.0;
    if (index == AQ_OPTIONS - 1) option.error = 0.0;
    if (kind == 4 && test_random(state) % 4 == 0) option.bytes = AQ_NO_OPTION;
    return option;
}

/* The least error of all choices within the budget; −1: none. */
static double brute_force(const aq_option *options, size_t items, uint64_t budget) {
    double best = -1.0;
    size_t choice, count = 1, i;
    for (i = 0; i < items; i++) count *= AQ_OPTIONS;
    for (choice = 0; choice < count; choice++) {
        size_t rest = choice;
        uint64_t bytes = 0;
        double error = 0.0;
        int good = 1;
        for (i = 0; i < items; i++, rest /= AQ_OPTIONS) {
            const aq_option *option = &options[i * AQ_OPTIONS + rest % AQ_OPTIONS];
            good = good && option->bytes != AQ_NO_OPTION;
            bytes += good ? option->bytes : 0;
            error += option->error;
        }
        if (good && bytes <= budget && (best < 0.0 || error < best)) best = error;
    }
    return best;
}

static void check_choice(const aq_option *options, size_t items, uint64_t budget,
                         const uint8_t *picked, double error) {
    uint64_t bytes = 0;
    double sum = 0.0;
    size_t i;
    for (i = 0; i < items; i++) {
        CHECK(options[i * AQ_OPTIONS + picked[i]].bytes != AQ_NO_OPTION);
        bytes += options[i * AQ_OPTIONS + picked[i]].bytes;
        sum += options[i * AQ_OPTIONS + picked[i]].error;
    }
    CHECK(bytes <= budget);
    CHECK_RANGE(sum - 1e-12, error, sum + 1e-12);
}

TEST(as_good_as_every_choice) {
    uint64_t state = 1;
    unsigned round, rounds = test_brief() ? 300 : 3000, solved = 0;
    for (round = 0; round < rounds; round++) {
        aq_option options[MOST * AQ_OPTIONS];
        uint8_t picked[MOST];
        size_t items = 1 + (size_t)(test_random(&state) % MOST), i;
        uint64_t budget = test_random(&state) % (items * 1500);
        double best, error = -1.0, bound = -1.0;
        for (i = 0; i < items * AQ_OPTIONS; i++)
            options[i] = random_option(&state, (int)(round % 5), (unsigned)(i % AQ_OPTIONS));
        best = brute_force(options, items, budget);
        aq_status status = aq_knapsack(NULL, options, items, budget, picked, &error, &bound, NULL);
        CHECK((status == AQ_OK) == (best >= 0.0));
        if (status != AQ_OK) {
            CHECK(status == AQ_ERR_CONFIGURATION);
            continue;
        }
        solved++;
        check_choice(options, items, budget, picked, error);
        CHECK_RANGE(best - 1e-12, error, best + 1e-12);
        CHECK(bound == error);
    }
    CHECK(solved > rounds / 3);
}

/* Many layers, errors as quantizing has them: proven, or the bound close; more budget never hurts. */
TEST(many_layers) {
    enum { ITEMS = 600 };
    static const unsigned widths[AQ_OPTIONS] = {2, 3, 4, 8, 16};
    static const double of_bits[AQ_OPTIONS] = {4e-2, 1e-2, 2.5e-3, 1e-5, 0.0};
    aq_option *options = (aq_option *)calloc(ITEMS * AQ_OPTIONS, sizeof *options);
    uint8_t picked[ITEMS], again[ITEMS];
    uint64_t state = 9, budget, weights = 0;
    double last = 1e9;
    size_t i, o;
    for (i = 0; i < ITEMS; i++) {
        uint64_t size = UINT64_C(4096) << test_random(&state) % 8;
        double hard = pow(10.0, 2.0 * test_uniform(&state) - 1.0);
        weights += size;
        for (o = 0; o < AQ_OPTIONS; o++) {
            options[i * AQ_OPTIONS + o].bytes = size * widths[o] / 8 + size / 32;
            options[i * AQ_OPTIONS + o].error = hard * of_bits[o] * (0.9 + 0.2 * test_uniform(&state));
        }
    }
    for (budget = weights / 8 * 25 / 10; budget < weights * 2; budget += weights / 8) {
        double error, bound;
        CHECK_STATUS(aq_knapsack(NULL, options, ITEMS, budget, picked, &error, &bound, NULL), AQ_OK);
        check_choice(options, ITEMS, budget, picked, error);
        CHECK_RANGE(0.999 * error, bound, error);
        CHECK(error <= last);
        last = error;
        CHECK_STATUS(aq_knapsack(NULL, options, ITEMS, budget, again, &error, &bound, NULL), AQ_OK);
        CHECK(memcmp(picked, again, ITEMS) == 0);
    }
    free(options);
}

TEST(edges) {
    aq_option options[2 * AQ_OPTIONS];
    uint8_t picked[2];
    aq_error err;
    double error = 1.0, bound = 1.0;
    size_t i;
    for (i = 0; i < 2 * AQ_OPTIONS; i++) {
        options[i].bytes = 10 * (1 + i % AQ_OPTIONS);
        options[i].error = 5.0 - (double)(i % AQ_OPTIONS);
    }
    CHECK_STATUS(aq_knapsack(NULL, options, 0, 0, picked, &error, &bound, NULL), AQ_OK);
    CHECK(error == 0.0 && bound == 0.0);
    CHECK_STATUS(aq_knapsack(NULL, options, 2, 19, picked, &error, &bound, &err),
                 AQ_ERR_CONFIGURATION);
    CHECK(strstr(err.message, "takes 20") != NULL);
    CHECK_STATUS(aq_knapsack(NULL, options, 2, 20, picked, &error, &bound, NULL), AQ_OK);
    CHECK(error == 10.0 && picked[0] == 0 && picked[1] == 0);
    CHECK_STATUS(aq_knapsack(NULL, options, 2, UINT64_MAX, picked, &error, &bound, NULL), AQ_OK);
    CHECK(error == 2.0 && picked[0] == 4 && picked[1] == 4);
    for (i = 0; i < AQ_OPTIONS; i++) options[i].bytes = AQ_NO_OPTION;
    CHECK_STATUS(aq_knapsack(NULL, options, 2, 100, picked, &error, &bound, &err),
                 AQ_ERR_CONFIGURATION);
}

int main(void) {
    RUN(as_good_as_every_choice);
    RUN(many_layers);
    RUN(edges);
    return test_end();
}
