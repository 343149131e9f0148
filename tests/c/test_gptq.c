/* Linear algebra and GPTQ: the kernels of every ISA against exact fused multiply-adds, the factor
 * against the matrix it came from, the codes against a plain loop in double, the same bytes for every
 * ISA and number of threads, and Hessians that are odd, wrong or not there. */
#include "test.h"

static const char *const isa_names[] = {"scalar", "avx2", "avx512", "neon"};

static float *memory_of(size_t count) {
    float *memory = (float *)malloc((count + 1) * sizeof *memory);
    if (!memory) {
        abort();
    }
    return memory;
}

static float *gaussian(size_t count, double sigma, uint64_t seed) {
    float *out = memory_of(count);
    size_t i;
    for (i = 0; i < count; i++) {
        out[i] = (float)(sigma * test_normal(&seed));
    }
    return out;
}

/* Second moments of `samples` correlated inputs, of which every 13th channel is large. */
static float *hessian_of(size_t n, size_t samples, uint64_t seed) {
    float *x = gaussian(n * samples, 1.0, seed), *out = memory_of(n * n);
    size_t i, j, s;
    for (s = 0; s < samples; s++) {
        for (i = 1; i < n; i++) {
            x[s * n + i] = 0.8f * x[s * n + i - 1] + 0.6f * x[s * n + i];
        }
        for (i = 0; i < n; i += 13) {
            x[s * n + i] *= 4.0f;
        }
    }
    for (i = 0; i < n; i++) {
        for (j = 0; j < n; j++) {
            double sum = 0.0;
            for (s = 0; s < samples; s++) {
                sum += (double)x[s * n + i] * (double)x[s * n + j];
            }
            out[i * n + j] = (float)(sum / (double)samples);
        }
    }
    free(x);
    return out;
}

static aq_context *context_of(const char *isa, uint32_t threads) {
    aq_context *context = NULL;
    int i;
    for (i = AQ_ISA_SCALAR; i <= AQ_ISA_NEON; i++) {
        if (strcmp(aq_isa_name((aq_isa)i), isa) == 0 && aq_simd_kernels(isa) &&
            aq_context_create((aq_isa)i, NULL, &context, NULL) == AQ_OK) {
            context->num_threads = threads;
        }
    }
    return context;
}

/* ---------------------------------------------------------------- kernels */

/* Values whose sums show a second rounding, and all that is odd. */
static float awkward(uint64_t *state) {
    uint64_t word = test_random(state);
    static const float odd[8] = {0.0f, -0.0f, 1.0f, -1.0f, 1.401298464e-45f, 3.4028235e38f,
                                 1.17549435e-38f, 16777217.0f};
    if (word % 16 < 8) {
        return odd[word % 16];
    }
    return (float)ldexp((double)(int32_t)(word >> 32), (int)(word >> 8) % 60 - 60);
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static int same_bits(const float *a, const float *b, size_t count) {
    size_t i;
    for (i = 0; i < count; i++) {
        if (bits_of(a[i]) != bits_of(b[i]) && !(a[i] != a[i] && b[i] != b[i])) {
            return 0;
        }
    }
    return 1;
}

TEST(update_is_fused) {
    uint64_t state = 5;
    size_t isa, round, rounds = test_brief() ? 20 : 200, i, j, k;
    for (round = 0; round < rounds; round++) {
        float a[70 * 32], b[70 * 11], c[8 * 32], expected[8 * 32];
        size_t depth = (size_t)(test_random(&state) % 70), columns = (size_t)(round % 9);
        size_t step = round % 2 ? 8 : 11;
        for (i = 0; i < sizeof a / sizeof *a; i++) a[i] = awkward(&state);
        for (i = 0; i < sizeof b / sizeof *b; i++) b[i] = awkward(&state);
        for (i = 0; i < 8 * 32; i++) c[i] = expected[i] = awkward(&state);
        for (j = 0; j < columns; j++) {
            for (i = 0; i < 32; i++) {
                for (k = 0; k < depth; k++) {
                    expected[32 * j + i] = fmaf(-a[32 * k + i], b[step * k + j],
                                                expected[32 * j + i]);
                }
            }
        }
        for (isa = 0; isa < 4; isa++) {
            const struct aq_kernels *kernels = aq_simd_kernels(isa_names[isa]);
            float out[8 * 32];
            if (!kernels) {
                continue;
            }
            memcpy(out, c, sizeof out);
            kernels->update(out, a, b, step, depth, columns);
            CHECK(same_bits(out, expected, 8 * 32));
        }
    }
}

/* ---------------------------------------------------------------- the factor */

/* R·D·Rᵀ at two places. */
static double product(const aq_factor *factor, size_t i, size_t j) {
    double sum = 0.0;
    size_t k, high = i > j ? i : j;
    for (k = high; k < factor->n; k++) {
        const float *strip = aq_factor_strip(factor, k / AQ_STRIP) + k % AQ_STRIP;
        sum += (double)factor->pivots[k] * (double)strip[AQ_STRIP * i] *
               (double)strip[AQ_STRIP * j];
    }
    return sum;
}

TEST(factor_is_one) {
    static const size_t sizes[9] = {1, 2, 7, 31, 32, 33, 129, 200, 300};
    size_t s, i, j;
    for (s = 0; s < (test_brief() ? 7u : 9u); s++) {
        size_t n = sizes[s];
        float *hessian = hessian_of(n, 2 * n + 3, s);
        double worst = 0.0, mean = 0.0;
        aq_factor factor;
        CHECK_STATUS(aq_factor_make(NULL, 2, hessian, n, &factor, NULL), AQ_OK);
        for (i = 0; i < n; i++) {
            mean += (double)hessian[i * (n + 1)] / (double)n;
            CHECK(i == 0 || factor.diagonal[factor.order[i - 1]] >= factor.diagonal[factor.order[i]]);
        }
        for (i = 0; i < n; i++) {
            for (j = 0; j <= i; j++) {
                double wanted = (double)hessian[factor.order[i] * n + factor.order[j]];
                double apart = fabs(product(&factor, i, j) - wanted - (i == j ? 0.01 * mean : 0.0));
                worst = apart > worst ? apart : worst;
            }
        }
        CHECK_RANGE(0.0, worst, 2e-5 * mean);
        CHECK(factor.damping == 0.01 && factor.dead == 0);
        CHECK(factor.memory_bytes <= aq_factor_bytes(n));
        aq_factor_free(&factor);
        free(hessian);
    }
}

/* A matrix of rank 1, one that is not positive definite by a little, and hopeless ones. */
TEST(factor_needs_damping) {
    enum { N = 96 };
    float *hessian = hessian_of(N, 1, 3);
    aq_factor factor;
    aq_error err;
    size_t i;
    CHECK_STATUS(aq_factor_make(NULL, 2, hessian, N, &factor, NULL), AQ_OK);
    CHECK(factor.damping == 0.01);
    aq_factor_free(&factor);
    for (i = 0; i < N; i++) {
        hessian[i * (N + 1)] *= 0.95f; /* eigenvalues below 0 */
    }
    CHECK_STATUS(aq_factor_make(NULL, 2, hessian, N, &factor, NULL), AQ_OK);
    CHECK_RANGE(0.09, factor.damping, 11.0);
    aq_factor_free(&factor);
    for (i = 0; i < N * N; i++) {
        hessian[i] = i % (N + 1) == 0 ? 1.0f : 3e6f;
    }
    CHECK_STATUS(aq_factor_make(NULL, 2, hessian, N, &factor, &err), AQ_ERR_QUANTIZATION);
    CHECK(strstr(err.message, "no damping") != NULL && factor.memory == NULL);
    hessian[7] = (float)NAN;
    CHECK_STATUS(aq_factor_make(NULL, 2, hessian, N, &factor, &err), AQ_ERR_QUANTIZATION);
    CHECK(err.offset == 7 && strstr(err.message, "[0, 7]") != NULL);
    hessian[7] = 0.0f;
    hessian[2 * (N + 1)] = -1e-30f;
    CHECK_STATUS(aq_factor_make(NULL, 2, hessian, N, &factor, &err), AQ_ERR_QUANTIZATION);
    CHECK(err.offset == 2 * (N + 1) && strstr(err.message, "negative") != NULL);
    memset(hessian, 0, N * N * sizeof *hessian);
    CHECK_STATUS(aq_factor_make(NULL, 2, hessian, N, &factor, NULL), AQ_OK);
    CHECK(factor.dead == N);
    aq_factor_free(&factor);
    free(hessian);
}

/* ---------------------------------------------------------------- codes */

typedef struct quantized {
    aq_quant_layout layout;
    uint8_t *bytes;
    aq_gptq_result result;
} quantized;

static aq_quant_spec spec_of(aq_code code, aq_param_type params, uint32_t bits, uint32_t group) {
    aq_quant_spec spec;
    memset(&spec, 0, sizeof spec);
    spec.code = code;
    spec.params = params;
    spec.bits = bits;
    spec.group_size = group;
    spec.fit = AQ_FIT_LEAST_SQUARES;
    return spec;
}

static size_t bytes_of(const quantized *q) {
    return (size_t)(q->layout.code_bytes + q->layout.param_bytes + q->layout.extra_bytes);
}

static aq_status quantize(quantized *q, aq_context *context, const aq_quant_spec *spec,
                          const float *weights, size_t rows, size_t cols, const float *hessian,
                          aq_error *err) {
    memset(q, 0, sizeof *q);
    CHECK_STATUS(aq_quantized_size(spec, rows, cols, &q->layout, NULL), AQ_OK);
    q->bytes = (uint8_t *)calloc(bytes_of(q) + 1, 1);
    return aq_quantize_gptq(context, spec, weights, AQ_DTYPE_F32, rows, cols, hessian, q->bytes,
                            q->bytes + q->layout.code_bytes,
                            q->bytes + q->layout.code_bytes + q->layout.param_bytes, &q->result,
                            err);
}

static float *decoded(const quantized *q, const aq_quant_spec *spec) {
    float *out = memory_of((size_t)(q->layout.rows * q->layout.cols));
    CHECK_STATUS(aq_dequantize(NULL, spec, q->bytes, q->bytes + q->layout.code_bytes,
                               q->bytes + q->layout.code_bytes + q->layout.param_bytes,
                               q->layout.rows, q->layout.cols, AQ_DTYPE_F32, out, NULL), AQ_OK);
    return out;
}

/* Σ d·H·dᵀ over rows, d = a − b. */
static double output_of(const float *a, const float *b, const float *hessian, size_t rows,
                        size_t n) {
    double total = 0.0;
    size_t row, i, j;
    for (row = 0; row < rows; row++, a += n, b = b ? b + n : NULL) {
        for (i = 0; i < n; i++) {
            double sum = 0.0;
            for (j = 0; j < n; j++) {
                sum += (double)hessian[i * n + j] * ((double)a[j] - (b ? (double)b[j] : 0.0));
            }
            total += sum * ((double)a[i] - (b ? (double)b[i] : 0.0));
        }
    }
    return total;
}

TEST(output_error_is_measured) {
    static const size_t shapes[6][2] = {{1, 1}, {5, 33}, {40, 64}, {33, 200}, {70, 129}, {3, 300}};
    size_t s;
    for (s = 0; s < (test_brief() ? 4u : 6u); s++) {
        size_t rows = shapes[s][0], cols = shapes[s][1];
        float *weights = gaussian(rows * cols, 0.05, s + 1), *hessian = hessian_of(cols, cols, s);
        aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F32, s % 2 ? 2 : 4, 32);
        aq_gptq_result measured;
        quantized q;
        CHECK_STATUS(quantize(&q, NULL, &spec, weights, rows, cols, hessian, NULL), AQ_OK);
        float *back = decoded(&q, &spec);
        double signal = output_of(weights, NULL, hessian, rows, cols);
        double error = output_of(weights, back, hessian, rows, cols);
        CHECK_RANGE(0.9999 * signal, q.result.output_signal, 1.0001 * signal);
        CHECK_RANGE(0.999 * error - 1e-9 * signal, q.result.output_error,
                    1.001 * error + 1e-9 * signal);
        CHECK_STATUS(aq_measure_output(NULL, &spec, weights, AQ_DTYPE_F32, rows, cols, hessian,
                                       q.bytes, q.bytes + q.layout.code_bytes, NULL, &measured,
                                       NULL), AQ_OK);
        CHECK_RANGE(0.9999 * q.result.output_error - 1e-9 * signal, measured.output_error,
                    1.0001 * q.result.output_error + 1e-9 * signal);
        CHECK(measured.output_signal == q.result.output_signal);
        CHECK(memcmp(&measured.quality, &q.result.quality, sizeof measured.quality) == 0);
        free(back);
        free(q.bytes);
        free(hessian);
        free(weights);
    }
}

/* The codes and parameters that rows may have. */
static const struct kind {
    aq_code code;
    aq_param_type params;
} kinds[9] = {{AQ_CODE_AFFINE, AQ_PARAM_F16},     {AQ_CODE_AFFINE, AQ_PARAM_F32},
              {AQ_CODE_AFFINE, AQ_PARAM_Q8},      {AQ_CODE_SYMMETRIC, AQ_PARAM_F16},
              {AQ_CODE_SYMMETRIC, AQ_PARAM_F32},  {AQ_CODE_SYMMETRIC, AQ_PARAM_Q8},
              {AQ_CODE_ZERO_POINT, AQ_PARAM_F16}, {AQ_CODE_ZERO_POINT, AQ_PARAM_BF16},
              {AQ_CODE_ZERO_POINT, AQ_PARAM_F32}};

/* All of them: better on the output than rounding with the same diagonal as weights. */
TEST(feedback_pays) {
    enum { ROWS = 64, COLS = 160 };
    float *weights = gaussian(ROWS * COLS, 0.05, 9), *hessian = hessian_of(COLS, 400, 4);
    float diagonal[COLS];
    size_t i, kind;
    uint32_t bits;
    for (i = 0; i < COLS; i++) {
        diagonal[i] = hessian[i * (COLS + 1)];
    }
    for (bits = 2; bits <= 8; bits *= 2) {
        for (kind = 0; kind < 9; kind++) {
            aq_quant_spec spec = spec_of(kinds[kind].code, kinds[kind].params, bits, 64);
            aq_gptq_result plain;
            quantized q;
            CHECK_STATUS(quantize(&q, NULL, &spec, weights, ROWS, COLS, hessian, NULL), AQ_OK);
            uint8_t *codes = q.bytes, *param = codes + q.layout.code_bytes;
            uint8_t *extra = param + q.layout.param_bytes;
            CHECK_STATUS(aq_quantize(NULL, &spec, weights, AQ_DTYPE_F32, ROWS, COLS, diagonal,
                                     codes, param, extra, NULL, NULL), AQ_OK);
            CHECK_STATUS(aq_measure_output(NULL, &spec, weights, AQ_DTYPE_F32, ROWS, COLS, hessian,
                                           codes, param, extra, &plain, NULL), AQ_OK);
            CHECK_RANGE(0.0, q.result.output_error, 0.6 * plain.output_error);
            CHECK(plain.output_signal == q.result.output_signal);
            CHECK(q.result.quality.error >= plain.quality.error);
            free(q.bytes);
        }
    }
    free(hessian);
    free(weights);
}

/* Rows as one block, with the factor's H at hand or not. */
static quantized block_of(const aq_factor *factor, const aq_quant_spec *spec, const float *weights,
                          size_t rows, double *errors) {
    void *space = malloc((size_t)aq_gptq_bytes(spec, factor, rows));
    aq_output_sums sums = {NULL, errors};
    aq_block_outcome outcome;
    quantized q;
    memset(&q, 0, sizeof q);
    CHECK_STATUS(aq_quantized_size(spec, rows, factor->n, &q.layout, NULL), AQ_OK);
    q.bytes = (uint8_t *)calloc(bytes_of(&q) + 1, 1);
    aq_gptq_block(NULL, factor, spec, weights, AQ_DTYPE_F32, rows, q.bytes,
                  q.bytes + q.layout.code_bytes,
                  q.bytes + q.layout.code_bytes + q.layout.param_bytes, space, &outcome, &sums);
    CHECK(!aq_outcome_is_final(&outcome));
    free(space);
    return q;
}

/* The errors of the rows' output with the damped H. */
static void block_errors(const aq_factor *factor, const aq_quant_spec *spec, const float *weights,
                         size_t rows, const float *hessian, double *errors) {
    size_t n = factor->n, i, row;
    quantized q = block_of(factor, spec, weights, rows, errors);
    float *back = decoded(&q, spec);
    for (row = 0; row < rows; row++) {
        const float *a = weights + row * n, *b = back + row * n;
        double exact = output_of(a, b, hessian, 1, n);
        CHECK_RANGE(0.998 * exact, errors[row], 1.002 * exact + 1e-12);
        errors[row] = exact;
        for (i = 0; i < n; i++) {
            size_t column = factor->order[i];
            double error = (double)b[column] - (double)a[column];
            errors[row] += factor->diagonal[column] > 0.0f ? (double)factor->added[i] * error * error
                                                           : 0.0;
        }
    }
    free(back);
    free(q.bytes);
}

/* No row is worse for having been solved again; the rows' errors after it, as a part of those before. */
static double solved_again(aq_factor *factor, const aq_quant_spec *spec, const float *weights,
                           size_t rows, const float *hessian) {
    double before[64], after[64], total = 0.0, sum = 0.0;
    size_t row;
    factor->hessian = NULL;
    block_errors(factor, spec, weights, rows, hessian, before);
    factor->hessian = hessian;
    block_errors(factor, spec, weights, rows, hessian, after);
    for (row = 0; row < rows; row++) {
        CHECK_RANGE(0.0, after[row], before[row] * 1.0001);
        total += before[row];
        sum += after[row];
    }
    return sum / total;
}

TEST(solving_again_pays) {
    static const size_t shapes[4][2] = {{40, 200}, {33, 64}, {5, 31}, {64, 133}};
    static const double parts[3] = {0.9, 0.985, 0.995}; /* of 2, 4 and 8 bits */
    size_t s, kind, row, b;
    for (s = 0; s < (test_brief() ? 2u : 4u); s++) {
        size_t rows = shapes[s][0], cols = shapes[s][1];
        float *weights = gaussian(rows * cols, 2.0, s + 5), *hessian = hessian_of(cols, 2 * cols, s);
        aq_factor factor;
        for (row = 0; s == 0 && row < cols; row++) { /* one column is never used */
            hessian[7 * cols + row] = hessian[row * cols + 7] = 0.0f;
        }
        CHECK_STATUS(aq_factor_make(NULL, 1, hessian, cols, &factor, NULL), AQ_OK);
        for (kind = 0; kind < 9; kind++) {
            for (b = 0; b < 3; b++) {
                aq_quant_spec spec = spec_of(kinds[kind].code, kinds[kind].params, 2u << b,
                                             s % 2 ? 32 : 64);
                CHECK_RANGE(0.0, solved_again(&factor, &spec, weights, rows, hessian),
                            rows < 32 ? 1.0 : parts[b]);
            }
        }
        aq_factor_free(&factor);
        free(hessian);
        free(weights);
    }
}

/* Where e·H is beyond F32, what GPTQ has found stays. */
TEST(huge_second_moments) {
    enum { ROWS = 33, COLS = 96 };
    float *weights = gaussian(ROWS * COLS, 900.0, 3), *hessian = hessian_of(COLS, 200, 3);
    size_t kind, i;
    int exponent;
    for (exponent = 97; exponent <= 123; exponent += 13) {
        float *scaled = memory_of(COLS * COLS);
        aq_factor factor;
        for (i = 0; i < COLS * COLS; i++) {
            scaled[i] = (float)ldexp((double)hessian[i], exponent);
        }
        CHECK_STATUS(aq_factor_make(NULL, 1, scaled, COLS, &factor, NULL), AQ_OK);
        for (kind = 0; kind < 9; kind++) {
            aq_quant_spec spec = spec_of(kinds[kind].code, kinds[kind].params, 2, 32);
            CHECK_RANGE(0.0, solved_again(&factor, &spec, weights, ROWS, scaled), 1.0001);
        }
        aq_factor_free(&factor);
        free(scaled);
    }
    free(hessian);
    free(weights);
}

TEST(same_everywhere) {
    static const size_t shapes[4][2] = {{300, 130}, {31, 257}, {1, 96}, {1030, 40}};
    size_t s, isa, round;
    for (round = 0; round < (test_brief() ? 9u : 36u); round++) {
        s = (round + round / 4) % 4;
        s = s == 1 && kinds[round % 9].params == AQ_PARAM_Q8 ? 0 : s; /* a group of one column */
        size_t rows = shapes[s][0], cols = shapes[s][1];
        float *weights = gaussian(rows * cols, 2.0, s + 40), *hessian = hessian_of(cols, 50, s);
        const struct kind *kind = &kinds[round % 9];
        aq_quant_spec spec = spec_of(kind->code, kind->params, round % 5 == 4 ? 8 : s == 1 ? 4 : 2,
                                     round % 2 ? 64 : 32);
        quantized first;
        CHECK_STATUS(quantize(&first, NULL, &spec, weights, rows, cols, hessian, NULL), AQ_OK);
        for (isa = 0; isa < 4; isa++) {
            uint32_t threads;
            for (threads = 1; threads <= 3; threads++) {
                aq_context *context = context_of(isa_names[isa], threads);
                quantized q;
                if (!context) {
                    continue;
                }
                CHECK_STATUS(quantize(&q, context, &spec, weights, rows, cols, hessian, NULL),
                             AQ_OK);
                CHECK(memcmp(q.bytes, first.bytes, bytes_of(&q)) == 0);
                CHECK(memcmp(&q.result, &first.result, sizeof q.result) == 0);
                free(q.bytes);
                aq_context_destroy(context);
            }
        }
        free(first.bytes);
        free(hessian);
        free(weights);
    }
}

/* Without correlation there is nothing to feed back: parameters weighted by the diagonal, and the nearest
 * code of each weight. (What is solved again would still know more, so the block has no H.) */
TEST(diagonal_is_rounding) {
    enum { ROWS = 37, COLS = 100 };
    float *weights = gaussian(ROWS * COLS, 0.05, 77), hessian[COLS * COLS], diagonal[COLS];
    double errors[ROWS];
    aq_factor factor;
    int fast;
    size_t i;
    memset(hessian, 0, sizeof hessian);
    for (i = 0; i < COLS; i++) {
        diagonal[i] = i % 10 ? (float)(i % 7) + 0.5f : 0.0f; /* some are dead */
        hessian[i * (COLS + 1)] = diagonal[i];
    }
    CHECK_STATUS(aq_factor_make(NULL, 1, hessian, COLS, &factor, NULL), AQ_OK);
    for (fast = 0; fast < 2; fast++) {
        aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 32);
        spec.fit = fast ? AQ_FIT_FAST : AQ_FIT_LEAST_SQUARES;
        quantized q = block_of(&factor, &spec, weights, ROWS, errors);
        uint8_t *plain = (uint8_t *)malloc(bytes_of(&q));
        CHECK_STATUS(aq_quantize(NULL, &spec, weights, AQ_DTYPE_F32, ROWS, COLS,
                                 fast ? NULL : diagonal, plain, plain + q.layout.code_bytes, NULL,
                                 NULL, NULL), AQ_OK);
        CHECK(memcmp(plain, q.bytes, bytes_of(&q)) == 0);
        free(plain);
        free(q.bytes);
    }
    aq_factor_free(&factor);
    free(weights);
}

/* A column whose input is always 0 changes nothing, whatever its weights are. */
TEST(dead_columns) {
    enum { ROWS = 20, COLS = 64 };
    float *weights = gaussian(ROWS * COLS, 0.05, 8), *hessian = hessian_of(COLS, 200, 8);
    aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 64);
    quantized a, b;
    size_t i, row;
    for (i = 0; i < COLS; i++) {
        hessian[5 * COLS + i] = hessian[i * COLS + 5] = 0.0f;
    }
    CHECK_STATUS(quantize(&a, NULL, &spec, weights, ROWS, COLS, hessian, NULL), AQ_OK);
    float *before = decoded(&a, &spec);
    for (row = 0; row < ROWS; row++) {
        CHECK_RANGE(-0.03, before[row * COLS + 5] - weights[row * COLS + 5], 0.03); /* not zeroed */
        weights[row * COLS + 5] *= 0.5f;
    }
    CHECK_STATUS(quantize(&b, NULL, &spec, weights, ROWS, COLS, hessian, NULL), AQ_OK);
    float *after = decoded(&b, &spec);
    for (i = 0; i < ROWS * COLS; i++) {
        CHECK(i % COLS == 5 || before[i] == after[i]);
    }
    CHECK(a.result.output_error == b.result.output_error);
    free(before);
    free(after);
    free(a.bytes);
    free(b.bytes);
    free(hessian);
    free(weights);
}

/* Weights and Hessians of any size: no code depends on their units. */
TEST(units) {
    enum { ROWS = 16, COLS = 70 };
    static const int exponents[4] = {-100, -40, 40, 100};
    float *weights = gaussian(ROWS * COLS, 1.0, 2), *hessian = hessian_of(COLS, 90, 2);
    float *scaled = memory_of(ROWS * COLS), *other = memory_of(COLS * COLS);
    aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F32, 4, 32);
    quantized plain;
    size_t e, i;
    CHECK_STATUS(quantize(&plain, NULL, &spec, weights, ROWS, COLS, hessian, NULL), AQ_OK);
    for (e = 0; e < 4; e++) {
        quantized q;
        for (i = 0; i < ROWS * COLS; i++) {
            scaled[i] = (float)ldexp((double)weights[i], exponents[e]);
        }
        CHECK_STATUS(quantize(&q, NULL, &spec, scaled, ROWS, COLS, hessian, NULL), AQ_OK);
        CHECK(memcmp(q.bytes, plain.bytes, (size_t)q.layout.code_bytes) == 0);
        free(q.bytes);
        for (i = 0; i < COLS * COLS; i++) {
            other[i] = (float)ldexp((double)hessian[i], exponents[e] / 2 * 2);
        }
        CHECK_STATUS(quantize(&q, NULL, &spec, weights, ROWS, COLS, other, NULL), AQ_OK);
        CHECK(memcmp(q.bytes, plain.bytes, bytes_of(&q)) == 0);
        free(q.bytes);
    }
    free(plain.bytes);
    free(scaled);
    free(other);
    free(weights);
    free(hessian);
}

TEST(refusals) {
    enum { ROWS = 4, COLS = 40 };
    float *weights = gaussian(ROWS * COLS, 0.05, 1), *hessian = hessian_of(COLS, 60, 1);
    aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 32);
    aq_error err;
    aq_gptq_result untouched;
    quantized q;
    weights[2 * COLS + 3] = (float)NAN;
    CHECK_STATUS(quantize(&q, NULL, &spec, weights, ROWS, COLS, hessian, &err),
                 AQ_ERR_QUANTIZATION);
    CHECK(err.offset == 2 * COLS + 3 && strstr(err.message, "[2, 3] is NaN") != NULL);
    free(q.bytes);
    weights[2 * COLS + 3] = 1e30f;
    CHECK_STATUS(quantize(&q, NULL, &spec, weights, ROWS, COLS, hessian, &err),
                 AQ_ERR_QUANTIZATION);
    CHECK(strstr(err.message, "AQ_PARAM_F32") != NULL);
    free(q.bytes);
    weights[2 * COLS + 3] = 0.0f;
    hessian[41] = (float)INFINITY;
    CHECK_STATUS(quantize(&q, NULL, &spec, weights, ROWS, COLS, hessian, &err),
                 AQ_ERR_QUANTIZATION);
    CHECK(err.offset == 41);
    CHECK_STATUS(aq_quantize_gptq(NULL, &spec, weights, AQ_DTYPE_F32, ROWS, COLS, NULL, q.bytes,
                                  q.bytes, NULL, NULL, &err), AQ_ERR_ARGUMENT);
    CHECK(strstr(err.message, "hessian is NULL") != NULL);
    CHECK_STATUS(aq_quantize_gptq(NULL, &spec, weights, AQ_DTYPE_I8, ROWS, COLS, hessian, q.bytes,
                                  q.bytes, NULL, NULL, &err), AQ_ERR_UNSUPPORTED);
    CHECK_STATUS(aq_quantize_gptq(NULL, &spec, weights, AQ_DTYPE_F32, ROWS, UINT64_C(1) << 40,
                                  hessian, q.bytes, q.bytes, NULL, NULL, &err), AQ_ERR_SHAPE);
    CHECK_STATUS(aq_measure_output(NULL, &spec, weights, AQ_DTYPE_F32, ROWS, COLS, hessian,
                                   q.bytes, q.bytes, NULL, NULL, &err), AQ_ERR_ARGUMENT);
    memset(&untouched, 0, sizeof untouched);
    CHECK_STATUS(aq_quantize_gptq(NULL, &spec, weights, AQ_DTYPE_F32, 0, COLS, hessian, q.bytes,
                                  q.bytes, NULL, &q.result, &err), AQ_OK);
    CHECK(memcmp(&q.result, &untouched, sizeof untouched) == 0);
    spec.bits = 3;
    CHECK_STATUS(aq_quantize_gptq(NULL, &spec, weights, AQ_DTYPE_F32, ROWS, COLS, hessian, q.bytes,
                                  q.bytes, NULL, NULL, &err), AQ_ERR_BIT_WIDTH);
    free(q.bytes);
    free(weights);
    free(hessian);
}

/* ---------------------------------------------------------------- memory */

typedef struct ledger {
    size_t held, most, left;
} ledger;

static void *ledger_resize(void *user, void *pointer, size_t old_size, size_t new_size) {
    ledger *own = (ledger *)user;
    if (new_size == 0) {
        own->held -= old_size;
        free(pointer);
        return NULL;
    }
    if (own->left-- == 0) {
        own->left = 0;
        return NULL;
    }
    own->held += new_size - old_size;
    own->most = own->held > own->most ? own->held : own->most;
    return realloc(pointer, new_size);
}

TEST(memory) {
    enum { ROWS = 300, COLS = 512 };
    float *weights = gaussian(ROWS * COLS, 0.05, 1), *hessian = hessian_of(COLS, 20, 1);
    aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 128);
    ledger own = {0, 0, 1000000};
    aq_allocator allocator = {ledger_resize, &own};
    aq_context *context = NULL;
    quantized q;
    size_t allowed, start;
    CHECK_STATUS(aq_context_create(AQ_ISA_AUTO, &allocator, &context, NULL), AQ_OK);
    context->num_threads = 1;
    start = own.held;
    CHECK_STATUS(quantize(&q, context, &spec, weights, ROWS, COLS, hessian, NULL), AQ_OK);
    CHECK(own.held == start);
    CHECK_RANGE(2 * COLS * COLS, own.most, 5 * COLS * COLS + 20 * 64 * COLS);
    CHECK(aq_factor_bytes(COLS) < 5 * COLS * COLS);
    free(q.bytes);
    for (allowed = 0; allowed < 5; allowed++) {
        own.left = allowed;
        CHECK_STATUS(quantize(&q, context, &spec, weights, ROWS, COLS, hessian, NULL),
                     AQ_ERR_OUT_OF_MEMORY);
        CHECK(own.held == start);
        free(q.bytes);
    }
    own.left = 1000000;
    aq_context_cancel(context);
    CHECK_STATUS(quantize(&q, context, &spec, weights, ROWS, COLS, hessian, NULL),
                 AQ_ERR_CANCELLED);
    CHECK(own.held == start);
    free(q.bytes);
    aq_context_destroy(context);
    free(weights);
    free(hessian);
}

int main(void) {
    RUN(update_is_fused);
    RUN(factor_is_one);
    RUN(factor_needs_damping);
    RUN(output_error_is_measured);
    RUN(feedback_pays);
    RUN(solving_again_pays);
    RUN(huge_second_moments);
    RUN(same_everywhere);
    RUN(diagonal_is_rounding);
    RUN(dead_columns);
    RUN(units);
    RUN(refusals);
    RUN(memory);
    return test_end();
}
