/* GPTQ of one layer, all of it: Cholesky factor, then codes with feedback. Prints the time, the
 * useful operations a second, and these as a part of the fused multiply-adds that the machine makes
 * when it does nothing else, measured in turn with it; medians of the rounds.
 *
 *     bench_gptq [n [rows [bits [group [rounds]]]]]     4096 4096 4 128 5 when not given
 *
 * Useful operations: n³/3 for the factor and rows·n² for the feedback, a multiplication and an
 * addition each counted. The inverse that other implementations make is not needed, and not counted.
 * bench/gptq.py builds this file as a library and compares it with PyTorch. */
#define _POSIX_C_SOURCE 199309L /* clock_gettime under -std=c99 */
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

#if defined(__x86_64__)
#  include <immintrin.h>
#endif

#define PEAK_STEPS 2000000u /* a thread */
#define PEAK_SUMS 12u       /* enough to hide the latency */

static double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Operations of one thread that only multiplies and adds, in registers. */
#define REPEAT(step) \
    step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10) step(11)

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static double peak_avx512(volatile float *out) {
    __m512 a = _mm512_set1_ps(1.0000001f), b = _mm512_set1_ps(1e-9f), s[PEAK_SUMS];
    size_t i;
    for (i = 0; i < PEAK_SUMS; i++) s[i] = _mm512_set1_ps((float)i);
    for (i = 0; i < PEAK_STEPS; i++) {
#  define STEP(j) s[j] = _mm512_fmadd_ps(s[j], a, b);
        REPEAT(STEP)
#  undef STEP
    }
    for (i = 1; i < PEAK_SUMS; i++) s[0] = _mm512_add_ps(s[0], s[i]);
    *out = _mm512_cvtss_f32(s[0]);
    return 2.0 * 16.0 * PEAK_SUMS * PEAK_STEPS;
}

__attribute__((target("avx2,fma"))) static double peak_avx2(volatile float *out) {
    __m256 a = _mm256_set1_ps(1.0000001f), b = _mm256_set1_ps(1e-9f), s[PEAK_SUMS];
    size_t i;
    for (i = 0; i < PEAK_SUMS; i++) s[i] = _mm256_set1_ps((float)i);
    for (i = 0; i < PEAK_STEPS; i++) {
#  define STEP(j) s[j] = _mm256_fmadd_ps(s[j], a, b);
        REPEAT(STEP)
#  undef STEP
    }
    for (i = 1; i < PEAK_SUMS; i++) s[0] = _mm256_add_ps(s[0], s[i]);
    *out = _mm256_cvtss_f32(s[0]);
    return 2.0 * 8.0 * PEAK_SUMS * PEAK_STEPS;
}
#elif defined(__aarch64__)
static double peak_neon(volatile float *out) {
    float32x4_t a = vdupq_n_f32(1.0000001f), b = vdupq_n_f32(1e-9f), s[PEAK_SUMS];
    size_t i;
    for (i = 0; i < PEAK_SUMS; i++) s[i] = vdupq_n_f32((float)i);
    for (i = 0; i < PEAK_STEPS; i++) {
#  define STEP(j) s[j] = vfmaq_f32(b, s[j], a);
        REPEAT(STEP)
#  undef STEP
    }
    for (i = 1; i < PEAK_SUMS; i++) s[0] = vaddq_f32(s[0], s[i]);
    *out = vgetq_lane_f32(s[0], 0);
    return 2.0 * 4.0 * PEAK_SUMS * PEAK_STEPS;
}
#endif

typedef struct peak_run {
    aq_isa isa;
    double operations;
} peak_run;

static aq_status peak_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    peak_run *run = (peak_run *)user;
    volatile float out;
    double operations = 0.0;
    (void)worker;
    (void)err;
#if defined(__x86_64__)
    operations = run->isa == AQ_ISA_AVX512 ? peak_avx512(&out) : peak_avx2(&out);
#elif defined(__aarch64__)
    operations = peak_neon(&out);
#else
    (void)out;
#endif
    if (index == 0) run->operations = operations;
    return AQ_OK;
}

/* Operations a second on `threads` threads (0: all cores). */
double bench_peak(uint32_t threads) {
    aq_context *context = NULL;
    peak_run run = {AQ_ISA_AUTO, 0.0};
    double begin;
    if (aq_context_create(AQ_ISA_AUTO, NULL, &context, NULL) != AQ_OK) return 0.0;
    context->num_threads = threads;
    threads = aq_thread_count(context);
    run.isa = context->isa;
    begin = bench_now();
    aq_parallel_for(context, threads, threads, peak_task, &run, NULL);
    begin = bench_now() - begin;
    aq_context_destroy(context);
    return run.operations * threads / begin;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count) {
    qsort(values, count, sizeof *values, by_value);
    return values[count / 2];
}

static uint64_t bench_random(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static float bench_uniform(uint64_t *state) { /* −1 … 1 */
    return (float)((double)(bench_random(state) >> 11) / 4503599627370496.0 - 1.0);
}

/* Second moments of inputs that neighbours in: ρ^|i − j|, and channels of different size. */
static void bench_hessian(float *out, size_t n) {
    size_t i, j;
    for (i = 0; i < n; i++) {
        for (j = 0; j < n; j++) {
            size_t apart = i > j ? i - j : j - i;
            double size = (1.0 + (double)(i % 7)) * (1.0 + (double)(j % 7));
            out[i * n + j] = (float)(size * pow(0.97, (double)apart));
        }
    }
}

int main(int argc, char **argv) {
    size_t n = argc > 1 ? strtoul(argv[1], NULL, 10) : 4096;
    size_t rows = argc > 2 ? strtoul(argv[2], NULL, 10) : 4096;
    size_t rounds = argc > 5 ? strtoul(argv[5], NULL, 10) : 5, i;
    double *seconds = (double *)malloc(3 * rounds * sizeof *seconds), *peaks = seconds + rounds;
    double *parts = peaks + rounds;
    double useful = 2.0 * (double)n * (double)n * ((double)n / 6.0 + (double)rows / 2.0);
    aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 128, AQ_FIT_LEAST_SQUARES, 0, 0};
    aq_quant_layout layout;
    aq_error err;
    uint64_t state = 1;
    float *weights = (float *)malloc(rows * n * sizeof *weights);
    float *hessian = (float *)malloc(n * n * sizeof *hessian);
    unsigned char *codes;
    if (argc > 3) spec.bits = (uint32_t)strtoul(argv[3], NULL, 10);
    if (argc > 4) spec.group_size = (uint32_t)strtoul(argv[4], NULL, 10);
    if (!seconds || !weights || !hessian || rounds == 0 ||
        aq_quantized_size(&spec, rows, n, &layout, NULL) != AQ_OK) {
        return 1;
    }
    codes = (unsigned char *)malloc((size_t)(layout.code_bytes + layout.param_bytes));
    for (i = 0; i < rows * n; i++) weights[i] = 0.03f * bench_uniform(&state);
    bench_hessian(hessian, n);
    for (i = 0; i < rounds; i++) {
        double begin;
        peaks[i] = bench_peak(0);
        begin = bench_now();
        if (aq_quantize_gptq(NULL, &spec, weights, AQ_DTYPE_F32, rows, n, hessian, codes,
                             codes + layout.code_bytes, NULL, NULL, &err) != AQ_OK) {
            printf("%s\n", err.message);
            return 1;
        }
        seconds[i] = bench_now() - begin;
        peaks[i] = 0.5 * (peaks[i] + bench_peak(0));
        parts[i] = useful / seconds[i] / peaks[i];
    }
    printf("GPTQ of [%zu, %zu], %u bits, g %u: %.3f s, %.1f GFLOP/s useful of %.1f at most: "
           "%.0f %%\n", rows, n, (unsigned)spec.bits, (unsigned)spec.group_size,
           median(seconds, rounds), useful / median(seconds, rounds) / 1e9,
           median(peaks, rounds) / 1e9, 100.0 * median(parts, rounds));
    free(codes);
    free(hessian);
    free(weights);
    free(seconds);
    return 0;
}
