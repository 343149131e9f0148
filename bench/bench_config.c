/* Median time of loading a configuration from YAML text and from a file, of checking it, of
 * environment overrides, and of writing it, against their budgets.
 *
 *     bench_config [config.yaml]       examples/config.example.yaml when not given
 */
#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#  define _POSIX_C_SOURCE 200809L /* setenv, clock_gettime */
#endif

#ifdef AQ_BENCH_SOURCES
#  include "../tests/c/sources.h"
#else
#  define ARROWQUANT_IMPLEMENTATION
#  include "arrowquant.h"
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RUNS 2001

static const char *path = "examples/config.example.yaml";
static char text[1 << 20];
static size_t text_size;
static aq_config loaded;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void load_text(void) {
    aq_config config;
    if (aq_config_from_yaml(NULL, text, text_size, path, &config, NULL) != AQ_OK) exit(1);
    aq_config_free(&config);
}

static void load_file(void) {
    aq_config config;
    if (aq_config_load_yaml(NULL, path, &config, NULL) != AQ_OK) exit(1);
    aq_config_free(&config);
}

static void check(void) {
    if (aq_config_validate(&loaded, NULL) != AQ_OK) exit(1);
}

static void override(void) {
    aq_config config = loaded;
    if (aq_config_apply_env(&config, NULL) != AQ_OK || config.bit_width != 8) exit(1);
}

static void write_text(void) {
    char *out;
    size_t size;
    if (aq_config_to_yaml(NULL, &loaded, &out, &size, NULL) != AQ_OK) exit(1);
    aq_text_free(NULL, out, size);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y ? 1 : 0;
}

static int measure(const char *name, void (*work)(void), double budget_ms) {
    static double times[RUNS];
    size_t i;
    for (i = 0; i < RUNS; i++) {
        double start = now_ms();
        work();
        times[i] = now_ms() - start;
    }
    qsort(times, RUNS, sizeof times[0], by_value);
    printf("%-28s %10.4f %10.4f", name, times[RUNS / 2], times[RUNS * 99 / 100]);
    if (budget_ms > 0)
        printf(" %10.1f  %s\n", budget_ms, times[RUNS / 2] < budget_ms ? "within" : "MISSED");
    else
        printf("\n");
    return budget_ms > 0 && times[RUNS / 2] >= budget_ms;
}

int main(int argc, char **argv) {
    static const char *const variables[][2] = {
        {"ARROW_QUANT_BIT_WIDTH", "8"},      {"ARROW_QUANT_NUM_TIME_GROUPS", "20"},
        {"ARROW_QUANT_GROUP_SIZE", "64"},    {"ARROW_QUANT_MIN_ACCURACY", "0.95"},
        {"ARROW_QUANT_FAIL_FAST", "true"},   {"ARROW_QUANT_CALIBRATION_SAMPLES", "512"},
        {"ARROW_QUANT_NUM_THREADS", "4"},    {"ARROW_QUANT_ENABLE_STREAMING", "true"},
        {"ARROW_QUANT_MAX_MEMORY_MB", "4096"}};
    aq_error err;
    FILE *file;
    size_t i;
    int missed = 0;
    if (argc > 1) path = argv[1];
    file = fopen(path, "rb");
    text_size = file ? fread(text, 1, sizeof text, file) : 0;
    if (file) fclose(file);
    if (aq_config_load_yaml(NULL, path, &loaded, &err) != AQ_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    for (i = 0; i < sizeof variables / sizeof variables[0]; i++)
        setenv(variables[i][0], variables[i][1], 1);
    printf("%s: %lu bytes, %d runs\n%-28s %10s %10s %10s\n", path, (unsigned long)text_size, RUNS,
           "ms", "median", "99 %", "budget");
    missed |= measure("YAML load, text", load_text, 1.0);
    missed |= measure("YAML load, file", load_file, 1.0);
    missed |= measure("validate", check, 0.1);
    missed |= measure("9 environment overrides", override, 0.1);
    missed |= measure("YAML write, text", write_text, 0.0);
    aq_config_free(&loaded);
    return missed;
}
