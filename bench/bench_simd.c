/* The kernels of each ISA against the scalar ones and against what memory can do.
 *
 *     bench_simd [rows [cols [repeats]]]        4096 × 4096, 7 times when not given
 *
 * One thread, processor time, the ISAs taking turns; medians. Build it with -fno-tree-vectorize as
 * well to see the scalar kernels as they are written. */
#ifdef AQ_BENCH_SOURCES
#  include "../tests/c/sources.h"
#else
#  define ARROWQUANT_IMPLEMENTATION
#  include "arrowquant.h"
#endif

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define ISAS 4
#define REPEATS_MOST 31
#define TILE 1024u

static const char *const isa_names[ISAS] = {"scalar", "avx2", "avx512", "neon"};
static const struct aq_kernels *tables[ISAS];
static size_t repeats = 7;

/* What is measured, in memory or in cache. */
static struct {
    size_t rows, cols, count;
    float *wide, *back;
    uint16_t *halves;
    uint8_t *codes, *params;
} data;

static float tile[TILE], other[TILE], weights[TILE];
static uint8_t packed[TILE];
static aq_simd_range ranges[TILE / 32];
static aq_simd_fit fits[TILE / 32];
static aq_simd_grid grids[TILE / 32];
static volatile uint64_t sink;

static double seconds(void) {
    return (double)clock() / CLOCKS_PER_SEC;
}

static uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static void gaussian(float *out, size_t count) {
    uint64_t state = 1;
    size_t i;
    for (i = 0; i < count; i++) {
        double u = ((double)(next_random(&state) >> 11) + 0.5) / 9007199254740992.0;
        double v = ((double)(next_random(&state) >> 11) + 0.5) / 9007199254740992.0;
        out[i] = (float)(0.02 * sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
    }
}

/* ---------------------------------------------------------------- what is measured */

typedef struct bench_job {
    const char *name;
    uint32_t bits, group;
    int variant; /* of the function */
    void (*run)(const struct aq_kernels *kernels, const struct bench_job *job);
    double bytes; /* moved by one run, where that is the measure; or 0 */
    double weights;
} bench_job;

static void run_quantize(const struct aq_kernels *kernels, const bench_job *job) {
    aq_context context;
    aq_quant_spec spec;
    aq_quality quality;
    memset(&context, 0, sizeof context);
    context.kernels = kernels;
    context.num_threads = 1;
    spec.code = AQ_CODE_AFFINE;
    spec.params = AQ_PARAM_F16;
    spec.bits = job->bits;
    spec.group_size = job->group;
    spec.fit = AQ_FIT_LEAST_SQUARES;
    if (job->variant < 2) {
        if (aq_quantize(&context, &spec, data.halves, AQ_DTYPE_BF16, data.rows, data.cols, NULL,
                        data.codes, data.params, NULL, job->variant ? &quality : NULL, NULL) !=
            AQ_OK) {
            exit(1);
        }
    } else if (aq_dequantize(&context, &spec, data.codes, data.params, NULL, data.rows, data.cols,
                             job->variant == 2 ? AQ_DTYPE_F32 : AQ_DTYPE_BF16, data.back, NULL) !=
               AQ_OK) {
        exit(1);
    }
}

static void run_compare(const struct aq_kernels *kernels, const bench_job *job) {
    aq_context context;
    aq_quality quality;
    (void)job;
    memset(&context, 0, sizeof context);
    memset(&quality, 0, sizeof quality);
    context.kernels = kernels;
    aq_compare_block(&context, data.wide, data.back, data.rows, data.cols, &quality);
    sink += (uint64_t)quality.count;
}

/* Never zeros over zeros, which some machines need not write. */
static void run_memset(const struct aq_kernels *kernels, const bench_job *job) {
    static int value = 0;
    (void)kernels;
    (void)job;
    value = value % 100 + 1;
    memset(data.back, value, data.count * sizeof *data.back);
}

/* Both arrays that `compare` reads, side by side as it does, as 64-bit words. */
static void run_read(const struct aq_kernels *kernels, const bench_job *job) {
    size_t i;
    uint64_t sums[4] = {0};
    (void)kernels;
    (void)job;
    for (i = 0; i + 16 <= data.count; i += 16) {
        uint64_t words[8], others[8];
        memcpy(words, data.wide + i, sizeof words);
        memcpy(others, data.back + i, sizeof others);
        sums[0] += (words[0] ^ others[0]) + (words[4] ^ others[4]);
        sums[1] += (words[1] ^ others[1]) + (words[5] ^ others[5]);
        sums[2] += (words[2] ^ others[2]) + (words[6] ^ others[6]);
        sums[3] += (words[3] ^ others[3]) + (words[7] ^ others[7]);
    }
    sink += sums[0] + sums[1] + sums[2] + sums[3];
}

enum { FIT, FIT_WEIGHTED, FIT_SYMMETRIC, ENCODE, DECODE, RANGE, COMPARE, FROM_BF16, FROM_F16,
       FROM_E4M3, FROM_E5M2, TO_F16, TO_BF16 };

static void run_tile(const struct aq_kernels *kernels, const bench_job *job) {
    size_t i, times = (size_t)(job->weights / TILE);
    for (i = 0; i < times; i++) {
        switch (job->variant) {
        case FIT:
        case FIT_WEIGHTED:
            kernels->fit_affine(tile, job->variant == FIT ? NULL : weights, TILE, job->group,
                                job->bits, ranges, fits);
            break;
        case FIT_SYMMETRIC:
            kernels->fit_symmetric(tile, NULL, TILE, job->group, job->bits, ranges, fits);
            break;
        case ENCODE:
            kernels->encode(tile, TILE, job->group, job->bits, false, grids, packed);
            break;
        case DECODE:
            kernels->decode(packed, TILE, job->group, job->bits, false, grids, other);
            break;
        case RANGE: kernels->range(tile, TILE, job->group, ranges); break;
        case COMPARE: {
            aq_simd_sums sums;
            kernels->compare(tile, other, 256, &sums);
            kernels->compare(tile + 256, other + 256, 256, &sums);
            kernels->compare(tile + 512, other + 512, 256, &sums);
            kernels->compare(tile + 768, other + 768, 256, &sums);
            break;
        }
        case FROM_BF16: kernels->bf16_to_f32(weights, other, TILE); break;
        case FROM_F16: kernels->f16_to_f32(weights, other, TILE); break;
        case FROM_E4M3: kernels->f8_e4m3_to_f32(weights, other, TILE); break;
        case FROM_E5M2: kernels->f8_e5m2_to_f32(weights, other, TILE); break;
        case TO_F16: kernels->f32_to_f16(tile, weights, TILE); break;
        default: kernels->f32_to_bf16(tile, weights, TILE); break;
        }
    }
}

/* ---------------------------------------------------------------- the table */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* What memory can do with as many bytes, taking its turn with the ISAs. */
typedef void limit_run(const struct aq_kernels *kernels, const bench_job *job);

/* Medians of the ISAs in seconds, and behind them that of `limit`. */
static void measure(const bench_job *job, limit_run *limit, double *median) {
    double times[ISAS + 1][REPEATS_MOST];
    size_t repeat, isa;
    for (repeat = 0; repeat < repeats; repeat++) {
        for (isa = 0; isa <= ISAS; isa++) {
            double start = seconds();
            if (isa == ISAS && limit) {
                limit(NULL, job);
            } else if (isa < ISAS && tables[isa]) {
                job->run(tables[isa], job);
            }
            times[isa][repeat] = seconds() - start;
        }
    }
    for (isa = 0; isa <= ISAS; isa++) {
        qsort(times[isa], repeats, sizeof times[isa][0], by_value);
        median[isa] = times[isa][repeats / 2];
    }
}

/* `limit_bytes` are those that `limit` moves. */
static void print_job(const bench_job *job, limit_run *limit, double limit_bytes) {
    double median[ISAS + 1];
    size_t isa;
    measure(job, limit, median);
    printf("%-35s", job->name);
    for (isa = 0; isa < ISAS; isa++) {
        if (tables[isa]) {
            printf("  %8.0f", job->weights / median[isa] / 1e6);
            if (isa) {
                printf(" %5.1fx", median[0] / median[isa]);
            }
            if (limit) {
                printf(" %4.0f %%",
                       100.0 * job->bytes / median[isa] / (limit_bytes / median[ISAS]));
            }
        }
    }
    if (limit) {
        printf("  %8.1f GB/s", limit_bytes / median[ISAS] / 1e9);
    }
    printf("\n");
    fflush(stdout);
}

static void print_head(const char *what, const char *limit) {
    size_t isa;
    printf("\n%-35s", what);
    for (isa = 0; isa < ISAS; isa++) {
        if (tables[isa]) {
            printf("  %8s%s%s", isa_names[isa], isa ? "       " : "", limit ? "       " : "");
        }
    }
    printf("%s%s\n", limit ? "  " : "", limit ? limit : "");
}

static void print_tiles(void) {
    static const struct {
        const char *name;
        int variant;
        uint32_t bits, group;
    } kernels[] = {
        {"fit affine INT2 g256", FIT, 2, 256},
        {"fit affine INT2 g64", FIT, 2, 64},
        {"fit affine INT4 g128", FIT, 4, 128},
        {"fit affine INT4 g32", FIT, 4, 32},
        {"fit affine INT8 g64", FIT, 8, 64},
        {"fit affine INT4 g128, weighted", FIT_WEIGHTED, 4, 128},
        {"fit symmetric INT4 g128", FIT_SYMMETRIC, 4, 128},
        {"fit symmetric INT8 g32", FIT_SYMMETRIC, 8, 32},
        {"range g128", RANGE, 4, 128},
        {"encode INT2 g256", ENCODE, 2, 256},
        {"encode INT4 g128", ENCODE, 4, 128},
        {"encode INT8 g64", ENCODE, 8, 64},
        {"decode INT2 g256", DECODE, 2, 256},
        {"decode INT4 g128", DECODE, 4, 128},
        {"decode INT8 g64", DECODE, 8, 64},
        {"compare", COMPARE, 4, 128},
        {"BF16 to F32", FROM_BF16, 4, 128},
        {"F16 to F32", FROM_F16, 4, 128},
        {"F8 E4M3 to F32", FROM_E4M3, 4, 128},
        {"F8 E5M2 to F32", FROM_E5M2, 4, 128},
        {"F32 to F16", TO_F16, 4, 128},
        {"F32 to BF16", TO_BF16, 4, 128},
    };
    size_t i, j;
    print_head("kernels in cache, Mweights/s", NULL);
    for (i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        bench_job one;
        one.name = kernels[i].name;
        one.bits = kernels[i].bits;
        one.group = kernels[i].group;
        one.variant = kernels[i].variant;
        one.run = run_tile;
        one.bytes = 0;
        one.weights = 4096.0 * TILE;
        gaussian(tile, TILE);
        for (j = 0; j < TILE; j++) {
            other[j] = tile[j] * 1.01f;
            weights[j] = tile[j] * tile[j] + 0.01f;
        }
        tables[0]->range(tile, TILE, one.group, ranges);
        for (j = 0; j < TILE / one.group; j++) {
            grids[j].min = ranges[j].low;
            grids[j].scale = (ranges[j].high - ranges[j].low) / (float)((1u << one.bits) - 1u);
        }
        print_job(&one, NULL, 0.0);
    }
}

typedef struct bench_spec {
    const char *name;
    uint32_t bits, group;
} bench_spec;

/* Quantizing or dequantizing a tensor: `variant` of run_quantize. */
static void print_tensor(const char *kind, const bench_spec *spec, int variant, double bytes) {
    char name[64];
    bench_job one;
    sprintf(name, "%s, %s", kind, spec->name);
    one.name = name;
    one.bits = spec->bits;
    one.group = spec->group;
    one.variant = variant;
    one.run = run_quantize;
    one.weights = (double)data.count;
    one.bytes = bytes * one.weights;
    print_job(&one, variant >= 2 ? run_memset : NULL, 4.0 * one.weights);
}

static void print_tensors(void) {
    static const bench_spec specs[] = {{"INT2 g256", 2, 256}, {"INT2 g64", 2, 64},
                                       {"INT4 g128", 4, 128}, {"INT4 g32", 4, 32},
                                       {"INT8 g64", 8, 64}};
    const size_t count = sizeof specs / sizeof *specs;
    bench_job one;
    size_t i;
    print_head("tensors from BF16, Mweights/s", NULL);
    for (i = 0; i < count; i++) {
        print_tensor("quantize", &specs[i], 0, 0.0);
        print_tensor("and measure", &specs[i], 1, 0.0);
    }
    print_head("to F32 or BF16, Mweights/s", "memset");
    for (i = 0; i < count; i++) {
        print_tensor("quantize", &specs[i], 0, 0.0); /* the codes to decode */
        print_tensor("dequantize to F32", &specs[i], 2, 4.0);
        print_tensor("dequantize to BF16", &specs[i], 3, 2.0);
    }
    for (i = 0; i < data.count; i++) {
        data.back[i] = data.wide[i] * 1.01f;
    }
    print_head("two F32 tensors, Mweights/s", "read");
    one.name = "compare";
    one.run = run_compare;
    one.weights = (double)data.count;
    one.bytes = 8.0 * one.weights;
    print_job(&one, run_read, one.bytes);
}

int main(int argc, char **argv) {
    size_t i;
    data.rows = argc > 1 ? strtoul(argv[1], NULL, 10) : 4096;
    data.cols = argc > 2 ? strtoul(argv[2], NULL, 10) : 4096;
    repeats = argc > 3 ? strtoul(argv[3], NULL, 10) : repeats;
    repeats = repeats < 1 ? 1 : repeats > REPEATS_MOST ? REPEATS_MOST : repeats;
    data.count = data.rows * data.cols;
    data.wide = (float *)malloc(data.count * sizeof(float));
    data.back = (float *)malloc(data.count * sizeof(float));
    data.halves = (uint16_t *)malloc(data.count * sizeof(uint16_t));
    data.codes = (uint8_t *)malloc(data.count + 4 * data.rows);
    data.params = (uint8_t *)malloc(data.count);
    if (!data.wide || !data.back || !data.halves || !data.codes || !data.params || !data.count) {
        return 1;
    }
    for (i = 0; i < ISAS; i++) {
        tables[i] = aq_simd_kernels(isa_names[i]);
    }
    printf("%lu x %lu Gaussian weights, one thread, medians of %lu\n", (unsigned long)data.rows,
           (unsigned long)data.cols, (unsigned long)repeats);
    print_tiles();
    gaussian(data.wide, data.count);
    for (i = 0; i < data.count; i++) { /* BF16, cut off: the quantizer takes what it is given */
        uint32_t word;
        memcpy(&word, &data.wide[i], 4);
        data.halves[i] = (uint16_t)(word >> 16);
    }
    memset(data.back, 1, data.count * sizeof(float)); /* so that its pages are there */
    memset(data.codes, 1, data.count);
    print_tensors();
    return 0;
}
