/* Quantizes i.i.d. Gaussian weights at every width and group size; prints SQNR and speed of one
 * core.
 *
 *     bench_quant [rows [cols]]        4096 × 4096 when not given
 */
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

/* Processor time: one thread works, and others on this machine do not count. */
static double bench_seconds(void) {
    return (double)clock() / CLOCKS_PER_SEC;
}

static uint64_t bench_random(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static void bench_gaussian(float *out, size_t count) {
    uint64_t state = 1;
    size_t i;
    for (i = 0; i < count; i++) {
        double u = ((double)(bench_random(&state) >> 11) + 0.5) / 9007199254740992.0;
        double v = ((double)(bench_random(&state) >> 11) + 0.5) / 9007199254740992.0;
        out[i] = (float)(0.02 * sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
    }
}

static void bench_one(aq_context *context, const aq_quant_spec *spec, const char *input,
                      const void *weights, aq_dtype dtype, uint64_t rows, uint64_t cols) {
    static const char *const params[] = {"F16", "F32", "Q8"};
    aq_quant_layout layout;
    aq_quality quality;
    aq_error err;
    char *buffer;
    float *back = (float *)malloc((size_t)(rows * cols) * sizeof *back);
    double start, quantize, dequantize, weights_count = (double)rows * (double)cols;
    aq_quantized_size(spec, rows, cols, &layout, NULL);
    buffer = (char *)malloc((size_t)(layout.code_bytes + layout.param_bytes + layout.extra_bytes));
    if (!buffer || !back) {
        exit(1);
    }
    memset(back, 0, (size_t)(rows * cols) * sizeof *back); /* so that its pages are there */
    start = bench_seconds();
    if (aq_quantize(context, spec, weights, dtype, rows, cols, NULL, buffer,
                    buffer + layout.code_bytes, buffer + layout.code_bytes + layout.param_bytes,
                    &quality, &err) != AQ_OK) {
        printf("%s\n", err.message);
        exit(1);
    }
    quantize = bench_seconds() - start;
    start = bench_seconds();
    aq_dequantize(context, spec, buffer, buffer + layout.code_bytes,
                  buffer + layout.code_bytes + layout.param_bytes, rows, cols, AQ_DTYPE_F32, back,
                  NULL);
    dequantize = bench_seconds() - start;
    printf("%u bits  g %-3u  %-9s %-4s %-4s  %7.3f dB  %5.3f bits/weight  quantize %6.1f  "
           "dequantize %6.1f Mweights/s\n",
           (unsigned)spec->bits, (unsigned)spec->group_size,
           spec->code == AQ_CODE_AFFINE ? "affine" : "symmetric", params[spec->params], input,
           aq_quality_sqnr_db(&quality),
           8.0 * (double)(layout.code_bytes + layout.param_bytes + layout.extra_bytes) /
               weights_count,
           weights_count / quantize / 1e6, weights_count / dequantize / 1e6);
    fflush(stdout);
    free(buffer);
    free(back);
}

int main(int argc, char **argv) {
    uint64_t rows = argc > 1 ? strtoul(argv[1], NULL, 10) : 4096;
    uint64_t cols = argc > 2 ? strtoul(argv[2], NULL, 10) : 4096;
    size_t i, count = (size_t)(rows * cols);
    float *weights = (float *)malloc(count * sizeof *weights);
    uint16_t *halves = (uint16_t *)malloc(count * sizeof *halves);
    aq_context *context;
    aq_quant_spec spec;
    int bits, group, code, params;
    if (!weights || !halves || aq_context_create(AQ_ISA_AUTO, NULL, &context, NULL) != AQ_OK) {
        return 1;
    }
    context->num_threads = 1;
    bench_gaussian(weights, count);
    for (i = 0; i < count; i++) { /* BF16, cut off: the quantizer takes what it is given */
        uint32_t word;
        memcpy(&word, &weights[i], 4);
        halves[i] = (uint16_t)(word >> 16);
    }
    printf("%llu x %llu Gaussian weights, %s kernels, one thread\n", (unsigned long long)rows,
           (unsigned long long)cols, aq_isa_name(context->isa));
    for (code = 0; code < 2; code++) {
        for (bits = 2; bits <= 8; bits *= 2) {
            for (group = 256; group >= 32; group /= 2) {
                for (params = 0; params < 3; params += 2) {
                    spec.code = (aq_code)code;
                    spec.params = (aq_param_type)params;
                    spec.bits = (uint32_t)bits;
                    spec.group_size = (uint32_t)group;
                    spec.fit = AQ_FIT_LEAST_SQUARES;
                    bench_one(context, &spec, "F32", weights, AQ_DTYPE_F32, rows, cols);
                    if (params == 0) {
                        bench_one(context, &spec, "BF16", halves, AQ_DTYPE_BF16, rows, cols);
                    }
                }
            }
        }
    }
    aq_context_destroy(context);
    free(weights);
    free(halves);
    return 0;
}
