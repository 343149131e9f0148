/* Products with packed weights: matrix by vector over more matrices than any cache holds, as a share of
 * the read bandwidth of the same run, and matrix by 32 vectors. One thread, medians of interleaved
 * rounds.
 *
 *     bench_infer [MB [rounds [word …]]]    weights in MB (2200), rounds (5), only jobs with such a word
 *
 * With AQ_GGML set to libggml-base and libggml-cpu, separated by a colon, ggml's types of about the
 * same size stand beside ours, on matrices of their own, in the same rounds. */
#if !defined(_WIN32) && !defined(_DEFAULT_SOURCE)
#  define _DEFAULT_SOURCE
#endif
#define ARROWQUANT_IMPLEMENTATION
#include "../arrowquant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "ggml_peer.h"

#define SIDE 4096u
#define TOKENS 32u
#define MOST_ROUNDS 31

/* Of this thread: what others do on the machine counts little. */
static double seconds(void) {
#ifdef _WIN32
    return (double)clock() / CLOCKS_PER_SEC;
#else
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
#endif
}

static void *room(size_t bytes) {
    void *memory = malloc(bytes);
    if (!memory) {
        fprintf(stderr, "out of memory: %lu bytes\n", (unsigned long)bytes);
        exit(1);
    }
    return memory;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values, size_t count) {
    qsort(values, count, sizeof *values, by_value);
    return values[count / 2];
}

/* ---- the weights: one block of memory that every job cuts in its own way */

static uint8_t *memory;
static size_t memory_bytes;
static float x[SIDE * TOKENS], y[SIDE * TOKENS];
static uint8_t *scratch;
static size_t scratch_bytes;
static volatile uint64_t sink;

/* Random codes; every 16-bit number is a tame F16, so that any part may be parameters. */
static void fill(void) {
    uint64_t state = 1;
    size_t i;
    for (i = 0; i + 8 <= memory_bytes; i += 8) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        {
            uint64_t word = (state >> 32 | state << 32) & UINT64_C(0xA3FFA3FFA3FFA3FF);
            memcpy(memory + i, &word, 8);
        }
    }
    for (i = 0; i < SIDE * TOKENS; i++) {
        x[i] = (float)((int)(i * 7919u % 2003u) - 1001) / 500.0f;
    }
}

/* ---- jobs */

typedef struct job {
    char name[64];
    int kind;              /* 0: read, 1: ours, 2: ggml vec_dot, 3: ggml matrix product */
    uint32_t bits, group, states; /* bits 16: weights in F16; states: of a trellis, or 0 */
    int repacked;          /* an interleaved copy of the weights */
    size_t tokens;
    aq_activation_type activation;
    aq_isa isa;
    aq_context *context;
    int type;              /* of ggml */
    size_t matrix_bytes, matrices;
    double times[MOST_ROUNDS]; /* seconds a matrix */
} job;

static void describe(const job *j, size_t number, aq_linear *linear) {
    aq_quant_layout layout;
    memset(linear, 0, sizeof *linear);
    linear->rows = linear->cols = SIDE;
    linear->quantized = j->bits < 16;
    linear->dtype = AQ_DTYPE_F16;
    linear->data = memory + number * j->matrix_bytes;
    linear->spec.code = j->states ? AQ_CODE_TRELLIS : AQ_CODE_AFFINE;
    linear->spec.states = j->states;
    linear->spec.rotation = j->states ? 1 : 0;
    linear->spec.params = AQ_PARAM_F16;
    linear->spec.bits = j->bits;
    linear->spec.group_size = j->group;
    if (!linear->quantized) {
        return;
    }
    (void)aq_quantized_size(&linear->spec, SIDE, SIDE, &layout, NULL);
    linear->codes = memory + number * j->matrix_bytes;
    linear->params = memory + number * j->matrix_bytes + (size_t)layout.code_bytes;
    linear->interleaved = j->repacked ? linear->codes : NULL; /* random numbers are as good a copy */
}

static void run_ours(const job *j, size_t number) {
    aq_activation activation = {AQ_ACTIVATION_FLOAT, 0.0f, 0};
    aq_linear linear;
    aq_error err;
    activation.type = j->activation;
    describe(j, number, &linear);
    if (aq_linear_forward(j->context, &linear, x, AQ_DTYPE_F32, j->tokens, &activation, y, scratch,
                          scratch_bytes, &err)) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    sink += (uint64_t)(y[5] > 0.0f);
}

/* The quickest plain reading that the compiler makes of this: several streams of 64-byte lines. */
#if defined(__GNUC__) && defined(__x86_64__)
__attribute__((target("avx512f")))
static uint64_t read_wide(const uint8_t *from, size_t bytes) {
    __m512i sum[8];
    uint64_t words[8];
    size_t i, k;
    for (k = 0; k < 8; k++) {
        sum[k] = _mm512_setzero_si512();
    }
    for (i = 0; i + 512 <= bytes; i += 512) {
        for (k = 0; k < 8; k++) {
            sum[k] = _mm512_add_epi64(sum[k],
                                      _mm512_loadu_si512((const void *)(from + i + 64 * k)));
        }
    }
    for (k = 1; k < 8; k++) {
        sum[0] = _mm512_add_epi64(sum[0], sum[k]);
    }
    _mm512_storeu_si512((void *)words, sum[0]);
    return words[0] + words[1] + words[7];
}
#endif

/* Without asking ahead it is a quarter slower on processors with AVX2 alone. */
static uint64_t read_words(const uint8_t *from, size_t bytes) {
    uint64_t sums[8] = {0}, words[8];
    size_t i, k;
    for (i = 0; i + 64 <= bytes; i += 64) {
#if defined(__GNUC__)
        __builtin_prefetch(from + i + 2048);
#endif
        memcpy(words, from + i, 64);
        for (k = 0; k < 8; k++) {
            sums[k] += words[k];
        }
    }
    return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

static void run_read(const job *j, size_t number) {
    const uint8_t *from = memory + number * j->matrix_bytes;
#if defined(__GNUC__) && defined(__x86_64__)
    if (aq_simd_kernels("avx512")) {
        sink += read_wide(from, j->matrix_bytes);
        return;
    }
#endif
    sink += read_words(from, j->matrix_bytes);
}

static void run(const job *j, size_t number) {
    switch (j->kind) {
    case 0: run_read(j, number); break;
    case 1: run_ours(j, number); break;
    case 2: peer_vec_dot(j->type, SIDE, SIDE, memory + number * j->matrix_bytes, x, y, scratch); break;
    default: peer_product(j->type, SIDE, SIDE, TOKENS, x, y); break;
    }
}

/* All matrices for one vector each; some of them for many vectors. */
static void measure(job *j, size_t round) {
    size_t number, count = j->tokens > 1 ? 3 : j->matrices;
    double begin = seconds();
    for (number = 0; number < count && number < j->matrices; number++) {
        run(j, number);
    }
    j->times[round] = (seconds() - begin) / (double)number;
}

/* ---- the list */

static job jobs[64];
static size_t job_count;
static char **wanted; /* words, NULL behind the last; none: all jobs */

static int is_wanted(const char *name) {
    char **word = wanted;
    for (; *word; word++) {
        if (strstr(name, *word)) {
            return 1;
        }
    }
    return word == wanted;
}

static job *add(const char *name, int kind, size_t matrix_bytes, size_t tokens) {
    static job unwanted;
    job *j = kind == 0 || is_wanted(name) ? &jobs[job_count++] : &unwanted;
    memset(j, 0, sizeof *j);
    snprintf(j->name, sizeof j->name, "%s", name);
    j->kind = kind;
    j->tokens = tokens;
    j->matrix_bytes = matrix_bytes;
    j->matrices = memory_bytes / matrix_bytes;
    return j;
}

static void add_ours(uint32_t bits, uint32_t group, uint32_t states, size_t tokens,
                     aq_activation_type activation, aq_isa isa, int repacked) {
    aq_context *context = NULL;
    aq_quant_layout layout;
    aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 128, AQ_FIT_LEAST_SQUARES, 0, 0};
    aq_linear linear;
    char name[64];
    size_t need;
    job *j;
    if (aq_context_create(isa, NULL, &context, NULL)) {
        return;
    }
    context->num_threads = 1;
    spec.bits = bits;
    spec.group_size = group;
    spec.code = states ? AQ_CODE_TRELLIS : AQ_CODE_AFFINE;
    spec.states = states;
    memset(&layout, 0, sizeof layout);
    if (bits < 16) {
        (void)aq_quantized_size(&spec, SIDE, SIDE, &layout, NULL);
    } else {
        layout.code_bytes = (uint64_t)SIDE * SIDE * 2;
    }
    snprintf(name, sizeof name, "%s%u g %u x %s, %s%s", states ? "trellis " : bits < 16 ? "INT" : "F",
             bits, group, activation == AQ_ACTIVATION_FLOAT ? "F32" : "INT8",
             aq_isa_name(context->isa), repacked ? ", repacked" : "");
    j = add(name, 1, (size_t)(layout.code_bytes + layout.param_bytes), tokens);
    j->states = states;
    j->bits = bits;
    j->group = group;
    j->activation = activation;
    j->context = context;
    describe(j, 0, &linear);
    need = aq_linear_repacked_size(context, &linear);
    if (repacked && !need) {
        job_count -= j == &jobs[job_count - 1];
        return;
    }
    j->repacked = repacked;
    if (repacked) {
        j->matrix_bytes = need / 64 * 64;
        j->matrices = memory_bytes / j->matrix_bytes;
    }
    need = aq_linear_scratch_size(context, &linear, TOKENS);
    scratch_bytes = need > scratch_bytes ? need : scratch_bytes;
}

static void add_all(size_t tokens) {
    static const uint32_t widths[][2] = {{8, 64}, {4, 128}, {4, 32}, {2, 256}, {2, 64}};
    static const aq_isa isas[] = {AQ_ISA_AVX512, AQ_ISA_AVX2, AQ_ISA_NEON};
    size_t i, k;
    for (i = 0; i < 5; i++) {
        for (k = 0; k < 3; k++) {
            add_ours(widths[i][0], widths[i][1], 0, tokens, AQ_ACTIVATION_DYNAMIC, isas[k], 0);
            add_ours(widths[i][0], widths[i][1], 0, tokens, AQ_ACTIVATION_DYNAMIC, isas[k], 1);
        }
        add_ours(widths[i][0], widths[i][1], 0, tokens, AQ_ACTIVATION_FLOAT, AQ_ISA_AUTO, 0);
    }
    add_ours(2, 256, 256, tokens, AQ_ACTIVATION_DYNAMIC, AQ_ISA_AUTO, 0);
    add_ours(2, 256, 256, tokens, AQ_ACTIVATION_FLOAT, AQ_ISA_AUTO, 0);
    add_ours(16, 0, 0, tokens, AQ_ACTIVATION_FLOAT, AQ_ISA_AUTO, 0);
}

static void add_peer(int kind, size_t tokens) {
    static const int types[] = {PEER_Q8_0, PEER_Q4_0, PEER_Q2_K, PEER_IQ2_XXS};
    size_t i;
    for (i = 0; i < 4; i++) {
        char name[64];
        size_t bytes = peer_bytes(types[i], SIDE, SIDE);
        if (!bytes || (kind == 3 && !peer_prepare_product(types[i], SIDE, SIDE, memory))) {
            continue;
        }
        snprintf(name, sizeof name, "ggml %s%s", peer_type_name(types[i]),
                 kind == 2 ? ", vec_dot" : peer_is_repacked(types[i]) ? ", repacked" : ", plain");
        add(name, kind, bytes, tokens)->type = types[i];
    }
}

static void report(size_t first, size_t end, size_t rounds, double bandwidth) {
    size_t i;
    for (i = first; i < end; i++) {
        double time = median(jobs[i].times, rounds);
        double products = (double)SIDE * SIDE * (double)jobs[i].tokens;
        if (jobs[i].tokens > 1) {
            printf("%-36s %8.2f ms %8.1f Gproducts/s\n", jobs[i].name, time * 1e3,
                   products / time / 1e9);
        } else {
            double rate = (double)jobs[i].matrix_bytes / time;
            printf("%-36s %8.3f ms %8.2f GB/s %6.1f %% of reading\n", jobs[i].name, time * 1e3,
                   rate / 1e9, 100.0 * rate / bandwidth);
        }
    }
}

int main(int argc, char **argv) {
    size_t rounds = argc > 2 ? (size_t)atoi(argv[2]) : 5, round, i, split;
    double bandwidth;
    wanted = argv + (argc > 3 ? 3 : argc);
    memory_bytes = (argc > 1 ? (size_t)atoi(argv[1]) : 2200u) * 1000000u / 64u * 64u;
    rounds = rounds < 1 ? 1 : rounds > MOST_ROUNDS ? MOST_ROUNDS : rounds;
    memory = (uint8_t *)room(memory_bytes + 64);
    fill();
    if (peer_open(getenv("AQ_GGML"))) {
        printf("%s\n", peer_note());
    }
    add("reading", 0, (size_t)8 << 20, 1);
    add_all(1);
    add_peer(2, 1);
    split = job_count;
    add_all(TOKENS);
    add_peer(3, TOKENS);
    scratch = (uint8_t *)room(scratch_bytes + (size_t)SIDE * 64);
    for (round = 0; round < rounds; round++) {
        for (i = 0; i < job_count; i++) {
            measure(&jobs[i], round);
        }
    }
    bandwidth = (double)jobs[0].matrix_bytes / median(jobs[0].times, rounds);
    printf("matrix by vector, %u by %u, %.1f GB of matrices in turn, one thread\n", SIDE, SIDE,
           (double)memory_bytes / 1e9);
    report(0, split, rounds, bandwidth);
    printf("matrix by %u vectors\n", TOKENS);
    report(split, job_count, rounds, bandwidth);
    return 0;
}
