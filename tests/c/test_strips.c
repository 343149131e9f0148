/* The search of superblocks (Q4_K, Q2_K) takes its sums from the strips kernels of the context: every
 * ISA that this machine has gives the bits of the scalar ones, and is the one that runs. */
#include "test.h"

#define WEIGHTS AQ_K_WEIGHTS
#ifdef __OPTIMIZE__
#  define ROUNDS 4000
#else
#  define ROUNDS 1000
#endif

static const struct aq_kernels *tables[3];
static size_t table_count;

static float spread(uint64_t *state) {
    return (float)((double)(test_random(state) >> 40) / 8388608.0 - 1.0);
}

/* Kinds of superblocks: even, with outliers, constant, zeros of both signs, tiny, large. */
static void make(uint64_t *state, unsigned kind, float *x) {
    size_t i;
    for (i = 0; i < WEIGHTS; i++) {
        float value = spread(state) * spread(state);
        x[i] = kind == 1 && i % 61 == 7 ? 30.0f * value
               : kind == 2              ? 0.375f
               : kind == 3              ? (i % 3 ? (i % 2 ? 0.0f : -0.0f) : value)
               : kind == 4              ? value * 1e-30f
               : kind == 5              ? value * 1e8f : value;
    }
}

static int same_sums(const aq_simd_strips *a, const aq_simd_strips *b) {
    return memcmp(a->code, b->code, sizeof a->code) == 0 &&
           memcmp(a->code2, b->code2, sizeof a->code2) == 0 &&
           memcmp(a->cross, b->cross, sizeof a->cross) == 0;
}

static int same_load(const aq_simd_strips *a, const aq_simd_strips *b) {
    size_t i;
    for (i = 0; i < 16; i++) { /* which zero is the least one is nobody's business */
        if (a->low[i] != b->low[i] || a->high[i] != b->high[i]) {
            return 0;
        }
    }
    return memcmp(a->x, b->x, sizeof a->x) == 0 && a->weighted == b->weighted &&
           (!a->weighted || memcmp(a->weights, b->weights, sizeof a->weights) == 0) &&
           memcmp(a->weight, b->weight, sizeof a->weight) == 0 &&
           memcmp(a->sum, b->sum, sizeof a->sum) == 0 &&
           memcmp(a->square, b->square, sizeof a->square) == 0;
}

TEST(kernels_agree) {
    static float x[WEIGHTS], weights[WEIGHTS];
    static aq_simd_strips expected, found;
    static uint8_t codes[WEIGHTS], codes_found[WEIGHTS];
    const struct aq_kernels *scalar = aq_simd_kernels("scalar");
    uint64_t state = 11;
    unsigned round;
    size_t t, i;
    for (round = 0; round < ROUNDS && !test_broken; round++) {
        const float *weighted = round % 2 ? weights : NULL;
        float most = round % 4 < 2 ? 15.0f : 3.0f;
        make(&state, round / 4 % 6, x);
        for (i = 0; i < WEIGHTS; i++) {
            weights[i] = spread(&state) + 1.0f;
        }
        memset(&expected, 0, sizeof expected);
        scalar->strips_load(x, weighted, &expected);
        for (i = 0; i < 16; i++) {
            float range = expected.high[i] - expected.low[i];
            expected.base[i] = expected.low[i] + range * 0.1f * spread(&state);
            expected.inverse[i] = range > 0.0f ? most / range * (1.0f + 0.2f * spread(&state)) : 0.0f;
        }
        for (t = 0; t < table_count; t++) {
            memset(&found, 0, sizeof found);
            tables[t]->strips_load(x, weighted, &found);
            CHECK(same_load(&found, &expected));
            memcpy(found.base, expected.base, sizeof found.base);
            memcpy(found.inverse, expected.inverse, sizeof found.inverse);
            tables[t]->strips_sums(&found, most);
            scalar->strips_sums(&expected, most);
            CHECK(same_sums(&found, &expected));
            tables[t]->strips_codes(&found, most, x, codes_found);
            scalar->strips_codes(&expected, most, x, codes);
            CHECK(memcmp(codes, codes_found, sizeof codes) == 0);
            if (test_broken) {
                printf("%s, round %u\n", tables[t]->name, round);
                break;
            }
        }
    }
}

/* ---------------------------------------------------------------- which of them run */

static const struct aq_kernels *inner;
static unsigned long calls[3];

static void counted_load(const float *x, const float *weights, aq_simd_strips *out) {
    calls[0]++;
    inner->strips_load(x, weights, out);
}

static void counted_sums(aq_simd_strips *strips, float most) {
    calls[1]++;
    inner->strips_sums(strips, most);
}

static void counted_codes(const aq_simd_strips *strips, float most, const float *x,
                          uint8_t *codes) {
    calls[2]++;
    inner->strips_codes(strips, most, x, codes);
}

/* Whole rows through the public call: each superblock is loaded once, its codes are made by the
 * table's kernels, and the blocks are those of the scalar table. */
TEST(search_runs_them) {
    enum { ROWS = 24, COLS = 2 * (int)AQ_K_WEIGHTS };
    static float x[ROWS * COLS], columns[COLS];
    static uint8_t expected[ROWS * 2 * 144], found[ROWS * 2 * 144];
    uint64_t state = 12;
    size_t t, i;
    unsigned way;
    for (i = 0; i < ROWS * 2; i++) {
        make(&state, (unsigned)(i / 4 % 5), x + i * WEIGHTS);
    }
    for (i = 0; i < COLS; i++) {
        columns[i] = spread(&state) + 1.0f;
    }
    for (way = 0; way < 4; way++) {
        aq_quant_spec spec = aq_block_spec(way % 2 ? AQ_CODE_Q2_K : AQ_CODE_Q4_K);
        const float *weights = way / 2 ? columns : NULL;
        size_t bytes = ROWS * 2 * aq_block_bytes(spec.code);
        aq_context context;
        memset(&context, 0, sizeof context);
        context.num_threads = 1;
        context.kernels = aq_simd_kernels("scalar");
        CHECK(aq_quantize(&context, &spec, x, AQ_DTYPE_F32, ROWS, COLS, weights, expected, NULL, NULL,
                          NULL, NULL) == AQ_OK);
        for (t = 0; t < table_count; t++) {
            struct aq_kernels counted = *tables[t];
            inner = tables[t];
            memset(calls, 0, sizeof calls);
            counted.strips_load = counted_load;
            counted.strips_sums = counted_sums;
            counted.strips_codes = counted_codes;
            context.kernels = &counted;
            memset(found, 0, sizeof found);
            CHECK(aq_quantize(&context, &spec, x, AQ_DTYPE_F32, ROWS, COLS, weights, found, NULL,
                              NULL, NULL, NULL) == AQ_OK);
            CHECK(memcmp(found, expected, bytes) == 0);
            CHECK(calls[0] == ROWS * 2 && calls[1] > 2 * calls[0] && calls[2] >= calls[0]);
            CHECK(inner->strips_load != aq_simd_kernels("scalar")->strips_load);
            CHECK(inner->strips_sums != aq_simd_kernels("scalar")->strips_sums);
            CHECK(inner->strips_codes != aq_simd_kernels("scalar")->strips_codes);
        }
    }
}

int main(void) {
    static const char *const names[] = {"avx2", "avx512", "neon"};
    size_t i;
    printf("strips compared:");
    for (i = 0; i < 3; i++) {
        const struct aq_kernels *table = aq_simd_kernels(names[i]);
        if (table) {
            tables[table_count++] = table;
            printf(" %s", table->name);
        }
    }
    printf("\n");
    if (!table_count) {
        printf("skipped: this machine has no kernels but the scalar ones\n");
        test_skipped++;
    }
    RUN(kernels_agree);
    RUN(search_runs_them);
    return test_end();
}
