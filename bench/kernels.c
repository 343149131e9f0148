/* What bench/kernels.py times, as a shared library: calls of ArrowQuant by the name of an ISA, and
 * passes over memory. Its main checks that it builds. */
#define ARROWQUANT_IMPLEMENTATION
#include "arrowquant.h"

typedef struct bench_tensor {
    uint64_t rows, cols;
    uint32_t bits, group, symmetric, fast, threads;
    const void *weights; /* BF16 */
    void *codes, *params;
    float *out;
    aq_quality quality;
} bench_tensor;

static aq_context bench_context(const char *isa, uint32_t threads) {
    aq_context context;
    memset(&context, 0, sizeof context);
    context.kernels = aq_simd_kernels(isa);
    context.num_threads = threads;
    return context;
}

static aq_quant_spec bench_spec(const bench_tensor *tensor) {
    aq_quant_spec spec;
    memset(&spec, 0, sizeof spec);
    spec.code = tensor->symmetric ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE;
    spec.params = AQ_PARAM_F16;
    spec.bits = tensor->bits;
    spec.group_size = tensor->group;
    spec.fit = tensor->fast ? AQ_FIT_FAST : AQ_FIT_LEAST_SQUARES;
    return spec;
}

extern const char *bench_best(void);
extern int bench_quantize(const char *isa, bench_tensor *tensor, int measure);
extern int bench_dequantize(const char *isa, const bench_tensor *tensor, int dtype);
extern int bench_dequantize_often(const char *isa, const bench_tensor *tensor, int times);
extern double bench_cosine(const char *isa, const float *a, const float *b, uint64_t rows,
                           uint64_t cols);
extern uint64_t bench_read(const uint64_t *words, size_t count);
extern uint64_t bench_read_two(const uint64_t *a, const uint64_t *b, size_t count);
extern int64_t bench_dots(const char *isa, const bench_tensor *tensor, const int8_t *x,
                          int32_t *sums);

extern const char *bench_best(void) {
    return aq_simd_kernels(NULL)->name;
}

extern int bench_quantize(const char *isa, bench_tensor *tensor, int measure) {
    aq_context context = bench_context(isa, tensor->threads);
    aq_quant_spec spec = bench_spec(tensor);
    if (!context.kernels) {
        return -1;
    }
    return (int)aq_quantize(&context, &spec, tensor->weights, AQ_DTYPE_BF16, tensor->rows,
                            tensor->cols, NULL, tensor->codes, tensor->params, NULL,
                            measure ? &tensor->quality : NULL, NULL);
}

static int bench_dequantize_with(aq_context *context, const bench_tensor *tensor, aq_dtype dtype) {
    aq_quant_spec spec = bench_spec(tensor);
    if (!context->kernels) {
        return -1;
    }
    return (int)aq_dequantize(context, &spec, tensor->codes, tensor->params, NULL, tensor->rows,
                              tensor->cols, dtype, tensor->out, NULL);
}

/* dtype: 32 for F32, 16 for BF16 */
extern int bench_dequantize(const char *isa, const bench_tensor *tensor, int dtype) {
    aq_context context = bench_context(isa, tensor->threads);
    return bench_dequantize_with(&context, tensor, dtype == 32 ? AQ_DTYPE_F32 : AQ_DTYPE_BF16);
}

/* A small tensor, over and over, to F32: all of it stays in the cache. With one context, as programs
 * have it: asking the processor what it can do takes microseconds on a virtual machine. */
extern int bench_dequantize_often(const char *isa, const bench_tensor *tensor, int times) {
    aq_context context = bench_context(isa, tensor->threads);
    int status = 0;
    while (times-- > 0 && status == 0) {
        status = bench_dequantize_with(&context, tensor, AQ_DTYPE_F32);
    }
    return status;
}

extern double bench_cosine(const char *isa, const float *a, const float *b, uint64_t rows,
                           uint64_t cols) {
    aq_context context = bench_context(isa, 1);
    aq_quality quality;
    memset(&quality, 0, sizeof quality);
    aq_compare_block(&context, a, b, rows, cols, &quality);
    return aq_quality_cosine(&quality);
}

/* Reading alone, from one place and from two side by side: the better one is the bandwidth. */
extern uint64_t bench_read(const uint64_t *words, size_t count) {
    uint64_t sums[8] = {0};
    size_t i, j;
    for (i = 0; i + 8 <= count; i += 8) {
        for (j = 0; j < 8; j++) {
            sums[j] ^= words[i + j];
        }
    }
    return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

extern uint64_t bench_read_two(const uint64_t *a, const uint64_t *b, size_t count) {
    uint64_t sums[8] = {0};
    size_t i, j;
    for (i = 0; i + 8 <= count; i += 8) {
        for (j = 0; j < 8; j++) {
            sums[j] ^= a[i + j] + b[i + j];
        }
    }
    return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

/* Every group of every row with 8-bit integers; `sums` has room for a row. */
extern int64_t bench_dots(const char *isa, const bench_tensor *tensor, const int8_t *x,
                          int32_t *sums) {
    const struct aq_kernels *kernels = aq_simd_kernels(isa);
    aq_quant_spec spec = bench_spec(tensor);
    aq_quant_layout layout;
    int64_t total = 0;
    uint64_t row;
    if (!kernels || aq_quantized_size(&spec, tensor->rows, tensor->cols, &layout, NULL) != AQ_OK) {
        return -1;
    }
    for (row = 0; row < tensor->rows; row++) {
        kernels->dot_codes((const uint8_t *)tensor->codes + row * layout.row_code_bytes, 0, 1,
                           tensor->bits, x, (size_t)tensor->cols, tensor->group, sums);
        total += sums[0];
    }
    return total;
}

#ifndef AQ_BENCH_SHARED
int main(void) {
    return bench_best() == NULL;
}
#endif
