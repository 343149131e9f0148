/* Rotations and what is built on them: the transform of every ISA against the scalar one, rows against a matrix in double built
 * from the definition in quant/rotate.h, the pair and R·H·Rᵀ to rounding, any width. */
#include "test.h"

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Bit i of the signs: SplitMix64, one output after the other. */
static int sign_of(uint32_t seed, size_t bit) {
    uint64_t state = seed, z = 0;
    size_t i;
    for (i = 0; i <= bit / 64; i++) {
        state += UINT64_C(0x9E3779B97F4A7C15);
        z = state;
        z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
        z = z ^ (z >> 31);
    }
    return (int)(z >> (bit % 64) & 1u);
}

/* Entry (i, j) of the Hadamard matrix: the parity of the bits that i and j share. */
static double hadamard_entry(size_t i, size_t j, size_t n) {
    size_t both = i & j;
    int odd = 0;
    for (; both; both &= both - 1) odd = !odd;
    return (odd ? -1.0 : 1.0) / sqrt((double)n);
}

/* x = R·x by the definition. */
static void rotate_plainly(uint32_t seed, double *x, size_t n) {
    size_t part = 1, pass, i, j;
    double *out = (double *)malloc((n + 1) * sizeof *out);
    if (!out) abort();
    while (2 * part <= n) part *= 2;
    for (pass = 0; pass < (part < n ? 2u : 1u); pass++) {
        size_t signs = pass ? part : n, at = pass ? n - part : 0;
        for (i = 0; i < signs; i++) {
            if (sign_of(seed, pass ? (n + 63) / 64 * 64 + i : i)) x[at + i] = -x[at + i];
        }
        for (i = 0; i < part; i++) {
            out[i] = 0.0;
            for (j = 0; j < part; j++) out[i] += hadamard_entry(i, j, part) * x[at + j];
        }
        memcpy(x + at, out, part * sizeof *x);
    }
    free(out);
}

TEST(hadamard_is_the_same_everywhere) {
    static const char *const names[] = {"avx2", "avx512", "neon"};
    static const float odd[8] = {0.0f, -0.0f, 1.401298464e-45f, 3.4028235e38f, -3.4028235e38f,
                                 16777217.0f, -1.0f, 1e-38f};
    const struct aq_kernels *scalar = aq_simd_kernels("scalar");
    uint64_t state = 3;
    size_t isa, size, i, round;
    for (size = 1; size <= 2048; size *= 2) {
        for (round = 0; round < 4; round++) {
            float *x = (float *)malloc(3 * (size + 1) * sizeof *x), *a, *b;
            if (!x) abort();
            a = x + size + round % 2; /* now and then not aligned to a register */
            b = x + 2 * size + 1;
            for (i = 0; i < size; i++) {
                x[i] = round < 2 ? (float)test_normal(&state) : odd[test_random(&state) % 8];
            }
            memcpy(b, x, size * sizeof *x);
            scalar->hadamard(b, size, 0.5f);
            for (isa = 0; isa < 3; isa++) {
                const struct aq_kernels *kernels = aq_simd_kernels(names[isa]);
                size_t wrong = 0;
                if (!kernels) continue;
                memcpy(a, x, size * sizeof *x);
                kernels->hadamard(a, size, 0.5f);
                for (i = 0; i < size; i++) {
                    wrong += bits_of(a[i]) != bits_of(b[i]) && !(a[i] != a[i] && b[i] != b[i]);
                }
                CHECK(wrong == 0);
            }
            free(x);
        }
    }
}

static const size_t widths[] = {1, 2, 3, 4, 5, 7, 8, 27, 36, 64, 65, 96, 128, 129, 255, 256, 320, 768, 1000};
#define WIDTHS (sizeof widths / sizeof *widths)

TEST(rows_follow_the_definition) {
    const struct aq_kernels *kernels = aq_simd_kernels(NULL);
    uint64_t state = 4;
    size_t w, i, row;
    for (w = 0; w < WIDTHS; w++) {
        size_t n = widths[w];
        uint32_t seed = (uint32_t)(w * 2654435761u + 1);
        float *x = (float *)malloc(6 * n * sizeof *x), *y = x + 3 * n;
        double *plain = (double *)malloc(n * sizeof *plain);
        if (!x || !plain) abort();
        for (i = 0; i < 3 * n; i++) y[i] = x[i] = (float)test_normal(&state);
        aq_rotate_rows(kernels, seed, y, 3, n);
        for (row = 0; row < 3; row++) {
            double energy = 0.0, far = 0.0;
            for (i = 0; i < n; i++) plain[i] = (double)x[row * n + i];
            rotate_plainly(seed, plain, n);
            for (i = 0; i < n; i++) {
                double gap = (double)y[row * n + i] - plain[i];
                energy += plain[i] * plain[i];
                far = gap * gap > far ? gap * gap : far;
            }
            CHECK(sqrt(far) <= 1e-6 * sqrt(energy));
        }
        aq_rotate_back(kernels, seed, y, 3, n);
        for (row = 0; row < 3; row++) {
            double energy = 0.0, error = 0.0;
            for (i = 0; i < n; i++) {
                double gap = (double)y[row * n + i] - (double)x[row * n + i];
                energy += (double)x[row * n + i] * (double)x[row * n + i];
                error += gap * gap;
            }
            CHECK(error <= 1e-12 * energy);
        }
        free(x);
        free(plain);
    }
}

TEST(no_seed_no_rotation) {
    float x[5] = {1.0f, 2.0f, 3.0f, 4.0f, 5.0f}, h[4] = {1.0f, 2.0f, 2.0f, 5.0f};
    aq_rotate_rows(aq_simd_kernels(NULL), 0, x, 1, 5);
    aq_rotate_back(aq_simd_kernels(NULL), 0, x, 1, 5);
    aq_rotate_hessian(aq_simd_kernels(NULL), 0, h, 2);
    CHECK(x[0] == 1.0f && x[4] == 5.0f && h[0] == 1.0f && h[1] == 2.0f && h[3] == 5.0f);
    aq_rotate_rows(aq_simd_kernels(NULL), 7, x, 0, 5);
    CHECK(x[0] == 1.0f && x[4] == 5.0f);
}

/* What a spike becomes: nothing sticks out of it any more. */
TEST(a_spike_is_spread) {
    size_t w, i;
    for (w = 0; w < WIDTHS; w++) {
        size_t n = widths[w];
        float *x = (float *)calloc(n, sizeof *x);
        double most = 0.0;
        if (!x) abort();
        if (n < 64) {
            free(x);
            continue;
        }
        x[n / 3] = 1.0f;
        aq_rotate_rows(aq_simd_kernels(NULL), 9, x, 1, n);
        for (i = 0; i < n; i++) most = fabs((double)x[i]) > most ? fabs((double)x[i]) : most;
        CHECK(most < 0.4);
        free(x);
    }
}

/* R·H·Rᵀ: the output error of rotated rows is that of the rows. */
TEST(second_moments_turn_along) {
    static const size_t sizes[] = {4, 27, 96, 128};
    uint64_t state = 6;
    size_t s, i, j, k;
    for (s = 0; s < 4; s++) {
        size_t n = sizes[s], samples = 2 * n;
        const struct aq_kernels *kernels = aq_simd_kernels(NULL);
        float *x = (float *)malloc(samples * n * sizeof *x), *h, *e;
        double before = 0.0, after = 0.0;
        h = (float *)malloc(n * n * sizeof *h);
        e = (float *)malloc(n * sizeof *e);
        if (!x || !h || !e) abort();
        for (i = 0; i < samples * n; i++) x[i] = (float)test_normal(&state);
        for (i = 0; i < n; i++) {
            e[i] = (float)test_normal(&state);
            for (j = 0; j < n; j++) {
                double sum = 0.0;
                for (k = 0; k < samples; k++) sum += (double)x[k * n + i] * (double)x[k * n + j];
                h[i * n + j] = (float)(sum / (double)samples);
            }
        }
        for (i = 0; i < n * n; i++) before += (double)e[i / n] * (double)h[i] * (double)e[i % n];
        aq_rotate_hessian(kernels, 11, h, n);
        aq_rotate_rows(kernels, 11, e, 1, n);
        for (i = 0; i < n * n; i++) {
            CHECK(bits_of(h[i]) == bits_of(h[i % n * n + i / n]));
            after += (double)e[i / n] * (double)h[i] * (double)e[i % n];
        }
        CHECK(fabs(after - before) < 1e-5 * before);
        free(x);
        free(h);
        free(e);
    }
}

/* ---------------------------------------------------------------- through the public calls */

#define ROWS 300u
#define COLS 96u

typedef struct turned {
    aq_quant_spec spec;
    aq_quant_layout layout;
    unsigned char codes[ROWS * 24], params[ROWS * 2];
} turned;

static void turned_open(turned *t, uint32_t seed) {
    memset(t, 0, sizeof *t);
    t->spec.code = AQ_CODE_TRELLIS;
    t->spec.bits = 2;
    t->spec.group_size = 128;
    t->spec.states = 256;
    t->spec.rotation = seed;
    CHECK_STATUS(aq_quantized_size(&t->spec, ROWS, COLS, &t->layout, NULL), AQ_OK);
    CHECK(t->layout.code_bytes == sizeof t->codes && t->layout.param_bytes == sizeof t->params);
}

static float *turned_weights(uint64_t seed) {
    float *w = (float *)malloc(ROWS * COLS * sizeof *w);
    size_t i;
    if (!w) abort();
    for (i = 0; i < ROWS * COLS; i++) w[i] = (float)(0.1 * test_normal(&seed));
    return w;
}

/* As rows that the caller has rotated himself, and back. */
TEST(quantizing_rotates) {
    const struct aq_kernels *kernels = aq_simd_kernels(NULL);
    float *w = turned_weights(21), *own = turned_weights(21), *back, *plain, ones[COLS];
    uint16_t *halves = (uint16_t *)malloc(ROWS * COLS * 2), *expected;
    aq_quality quality, other;
    turned a, b;
    aq_error err;
    size_t i;
    back = (float *)malloc(ROWS * COLS * sizeof *back);
    plain = (float *)malloc(ROWS * COLS * sizeof *plain);
    expected = (uint16_t *)malloc(ROWS * COLS * 2);
    if (!halves || !back || !plain || !expected) abort();
    turned_open(&a, 5);
    turned_open(&b, 0);
    aq_rotate_rows(kernels, 5, own, ROWS, COLS);
    CHECK_STATUS(aq_quantize(NULL, &a.spec, w, AQ_DTYPE_F32, ROWS, COLS, NULL, a.codes, a.params, NULL,
                             &quality, NULL), AQ_OK);
    CHECK_STATUS(aq_quantize(NULL, &b.spec, own, AQ_DTYPE_F32, ROWS, COLS, NULL, b.codes, b.params,
                             NULL, &other, NULL), AQ_OK);
    CHECK(memcmp(a.codes, b.codes, sizeof a.codes) == 0);
    CHECK(memcmp(a.params, b.params, sizeof a.params) == 0);
    CHECK(memcmp(&quality.error, &other.error, sizeof quality.error) == 0);
    CHECK_STATUS(aq_dequantize(NULL, &a.spec, a.codes, a.params, NULL, ROWS, COLS, AQ_DTYPE_F32, back,
                               NULL), AQ_OK);
    CHECK_STATUS(aq_dequantize(NULL, &b.spec, b.codes, b.params, NULL, ROWS, COLS, AQ_DTYPE_F32,
                               plain, NULL), AQ_OK);
    aq_rotate_back(kernels, 5, plain, ROWS, COLS);
    CHECK(memcmp(back, plain, ROWS * COLS * sizeof *back) == 0);
    CHECK_STATUS(aq_dequantize(NULL, &a.spec, a.codes, a.params, NULL, ROWS, COLS, AQ_DTYPE_F16,
                               halves, NULL), AQ_OK);
    kernels->f32_to_f16(back, expected, ROWS * COLS);
    for (i = 0; i < ROWS * COLS; i++) { /* files' bytes against this machine's */
        unsigned char bytes[2];
        memcpy(bytes, &expected[i], 2);
        CHECK(halves[i] == expected[i] || halves[i] == (uint16_t)(bytes[0] | bytes[1] << 8));
    }
    for (i = 0; i < COLS; i++) ones[i] = 1.0f;
    CHECK_STATUS(aq_quantize(NULL, &a.spec, w, AQ_DTYPE_F32, ROWS, COLS, ones, a.codes, a.params, NULL,
                             NULL, NULL), AQ_ERR_ARGUMENT);
    w[7 * COLS + 3] = NAN;
    CHECK_STATUS(aq_quantize(NULL, &a.spec, w, AQ_DTYPE_F32, ROWS, COLS, NULL, a.codes, a.params, NULL,
                             NULL, &err), AQ_ERR_QUANTIZATION);
    CHECK(err.offset == 7 * COLS + 3);
    free(w);
    free(own);
    free(back);
    free(plain);
    free(halves);
    free(expected);
}

static void second_moments(float *h, uint64_t seed) {
    float *x = (float *)malloc(2 * COLS * COLS * sizeof *x);
    size_t i, j, s;
    if (!x) abort();
    for (i = 0; i < 2 * COLS * COLS; i++) {
        x[i] = (float)test_normal(&seed) + (i % COLS ? 0.7f * x[i - 1] : 0.0f);
    }
    for (i = 0; i < COLS; i++) {
        for (j = 0; j < COLS; j++) {
            double sum = 0.0;
            for (s = 0; s < 2 * COLS; s++) sum += (double)x[s * COLS + i] * (double)x[s * COLS + j];
            h[i * COLS + j] = (float)(sum / (2.0 * COLS));
        }
    }
    free(x);
}

/* GPTQ's feedback with a trellis: less error of the output, the same bytes everywhere, figures that hold. */
TEST(feedback_with_a_trellis) {
    float *w = turned_weights(22), *h = (float *)malloc(COLS * COLS * sizeof *h);
    uint32_t seed;
    int isa;
    if (!h) abort();
    second_moments(h, 23);
    for (seed = 0; seed < 6; seed += 5) {
        turned first, fed, free_of_it;
        aq_gptq_result result, measured, plain;
        turned_open(&first, seed);
        turned_open(&free_of_it, seed);
        CHECK_STATUS(aq_quantize_gptq(NULL, &first.spec, w, AQ_DTYPE_F32, ROWS, COLS, h, first.codes,
                                      first.params, NULL, &result, NULL), AQ_OK);
        CHECK_STATUS(aq_measure_output(NULL, &first.spec, w, AQ_DTYPE_F32, ROWS, COLS, h, first.codes,
                                       first.params, NULL, &measured, NULL), AQ_OK);
        CHECK_STATUS(aq_quantize(NULL, &free_of_it.spec, w, AQ_DTYPE_F32, ROWS, COLS, NULL,
                                 free_of_it.codes, free_of_it.params, NULL, NULL, NULL), AQ_OK);
        CHECK_STATUS(aq_measure_output(NULL, &first.spec, w, AQ_DTYPE_F32, ROWS, COLS, h,
                                       free_of_it.codes, free_of_it.params, NULL, &plain, NULL), AQ_OK);
        CHECK(fabs(measured.output_error - result.output_error) <= 1e-3 * result.output_error);
        CHECK(fabs(measured.quality.error - result.quality.error) <= 1e-9 * result.quality.error);
        CHECK(result.output_error < 0.7 * plain.output_error);
        for (isa = AQ_ISA_SCALAR; isa <= AQ_ISA_NEON; isa++) {
            aq_context *context = NULL;
            if (aq_context_create((aq_isa)isa, NULL, &context, NULL) != AQ_OK) continue;
            context->num_threads = isa == AQ_ISA_SCALAR ? 3u : 1u;
            turned_open(&fed, seed);
            CHECK_STATUS(aq_quantize_gptq(context, &fed.spec, w, AQ_DTYPE_F32, ROWS, COLS, h,
                                          fed.codes, fed.params, NULL, NULL, NULL), AQ_OK);
            CHECK(memcmp(fed.codes, first.codes, sizeof fed.codes) == 0);
            CHECK(memcmp(fed.params, first.params, sizeof fed.params) == 0);
            aq_context_destroy(context);
        }
    }
    free(w);
    free(h);
}

int main(void) {
    RUN(quantizing_rotates);
    RUN(feedback_with_a_trellis);
    RUN(hadamard_is_the_same_everywhere);
    RUN(rows_follow_the_definition);
    RUN(no_seed_no_rotation);
    RUN(a_spike_is_spread);
    RUN(second_moments_turn_along);
    return test_end();
}
