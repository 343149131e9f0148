/* The trellis code: what is decoded against a reading of docs/FORMAT.md bit by bit, what is searched
 * against every sequence there is, and every kernel table against the scalar one. */
#include "test.h"

#include "sources.h"

#include <math.h>
#include <stdlib.h>

static uint64_t random_state = 88172645463325252u;

static uint32_t random_bits(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static double uniform(void) {
    return ((double)random_bits() + 0.5) / 4294967296.0;
}

static float gaussian(void) {
    return (float)(sqrt(-2.0 * log(uniform())) * cos(6.283185307179586 * uniform()));
}

static aq_quant_spec spec_of(uint32_t bits, uint32_t states, uint32_t group, aq_param_type params) {
    aq_quant_spec spec;
    spec.code = AQ_CODE_TRELLIS;
    spec.params = params;
    spec.bits = bits;
    spec.group_size = group;
    spec.fit = AQ_FIT_FAST;
    spec.states = states;
    spec.rotation = 0;
    return spec;
}

/* A tensor and what became of it. */
typedef struct tensor {
    uint64_t rows, cols;
    aq_quant_spec spec;
    aq_quant_layout layout;
    float *weights, *back;
    uint8_t *codes, *params;
    aq_quality quality;
} tensor;

static void tensor_make(tensor *t, uint64_t rows, uint64_t cols, aq_quant_spec spec) {
    size_t i, count = (size_t)(rows * cols);
    t->rows = rows;
    t->cols = cols;
    t->spec = spec;
    CHECK(aq_quantized_size(&spec, rows, cols, &t->layout, NULL) == AQ_OK);
    t->weights = (float *)malloc(count * sizeof(float));
    t->back = (float *)malloc(count * sizeof(float));
    t->codes = (uint8_t *)malloc((size_t)t->layout.code_bytes);
    t->params = (uint8_t *)malloc((size_t)t->layout.param_bytes);
    for (i = 0; i < count; i++) {
        t->weights[i] = 0.03f * gaussian();
    }
}

static void tensor_free(tensor *t) {
    free(t->weights);
    free(t->back);
    free(t->codes);
    free(t->params);
}

static aq_status tensor_run(tensor *t, aq_context *context, aq_error *err) {
    aq_status status = aq_quantize(context, &t->spec, t->weights, AQ_DTYPE_F32, t->rows, t->cols,
                                   NULL, t->codes, t->params, NULL, &t->quality, err);
    return status != AQ_OK ? status
                           : aq_dequantize(context, &t->spec, t->codes, t->params, NULL, t->rows,
                                           t->cols, AQ_DTYPE_F32, t->back, err);
}

/* One weight, read as the format says. */
static float read_weight(const tensor *t, uint64_t row, uint64_t col) {
    const aq_trellis_code *code = aq_trellis_code_of(t->spec.bits, t->spec.states);
    uint64_t strip = row / 256 * 256, height = t->rows - strip < 256 ? t->rows - strip : 256;
    const uint8_t *codes = t->codes + strip * t->layout.row_code_bytes;
    uint64_t ring = height * t->spec.bits, at = col * ring, i;
    uint32_t state = 0;
    float scale;
    for (i = 0; i < code->state_bits; i++) {
        uint64_t bit = at + ((row - strip) * t->spec.bits + i) % ring;
        state |= (uint32_t)(codes[bit / 8] >> bit % 8 & 1u) << i;
    }
    CHECK(aq_quant_parameters(NULL, &t->spec, t->params + row * t->layout.row_param_bytes, NULL, 1,
                              t->cols, t->back, NULL, NULL, NULL) == AQ_OK);
    scale = t->back[col / t->spec.group_size];
    {
        uint32_t a = state & 15u, b = state >> 4 & 15u, c = state >> 8;
        return scale * (float)(code->table[0][a] + code->table[1][b] +
                               code->table[2][code->mix ? a ^ b ^ c : c]);
    }
}

TEST(trellis_reads_as_the_format_says) {
    static const uint64_t shapes[][2] = {{1, 40}, {3, 33}, {7, 5}, {256, 64}, {300, 70}, {520, 33}};
    uint32_t bits, n;
    for (bits = 2; bits <= 4; bits++) {
        for (n = 0; n < 6; n++) {
            tensor t, copy;
            uint64_t i;
            tensor_make(&t, shapes[n][0], shapes[n][1],
                        spec_of(bits, 256u << 2 * (n % 3), 32,
                                n % 2 ? AQ_PARAM_F32 : AQ_PARAM_F16));
            CHECK(tensor_run(&t, NULL, NULL) == AQ_OK);
            copy = t;
            copy.back = (float *)malloc((size_t)t.cols * sizeof(float));
            for (i = 0; i < t.rows * t.cols; i += 1 + i % 7) {
                CHECK(t.back[i] == read_weight(&copy, i / t.cols, i % t.cols));
            }
            free(copy.back);
            tensor_free(&t);
        }
    }
}

/* At most this far from the figures of QUALITY.md: the samples are few. */
TEST(trellis_reaches_its_quality) {
    static const double least[3] = {10.9, 14.0, 21.7};
    uint32_t bits;
    for (bits = 2; bits <= 4; bits += 2) {
        tensor t;
        aq_quality sums;
        tensor_make(&t, 256, 64, spec_of(bits, 256, 64, AQ_PARAM_F16));
        CHECK(tensor_run(&t, NULL, NULL) == AQ_OK);
        CHECK(aq_quality_sqnr_db(&t.quality) >= least[bits - 2]);
        memset(&sums, 0, sizeof sums);
        aq_compare_block(NULL, t.weights, t.back, t.rows, t.cols, &sums);
        CHECK(memcmp(&sums, &t.quality, sizeof sums) == 0);
        tensor_free(&t);
    }
}

/* ---- every kernel table against the scalar one */

static const char *const tables[] = {"avx2", "avx512", "neon"};

typedef struct search_space {
    aq_trellis_search search;
    int16_t values[AQ_TRELLIS_STATES + 32], targets[300];
    uint16_t costs[AQ_TRELLIS_STATES + 32], least[2][1024];
    uint8_t choices[2][300 * 1024 + 64];
} search_space;

static void *align_64(void *pointer) {
    return (uint8_t *)pointer + (64u - (uintptr_t)pointer % 64u) % 64u;
}

static void search_open(search_space *space, const aq_trellis_code *code) {
    uint32_t state;
    space->search.bits = code->bits;
    space->search.state_bits = code->state_bits;
    space->search.values = (int16_t *)align_64(space->values);
    space->search.costs = (uint16_t *)align_64(space->costs);
    for (state = 0; state < 1u << code->state_bits; state++) {
        space->search.values[state] = (int16_t)(2 * aq_trellis_value(code, state));
    }
}

/* Ends that cost nothing, all but one that cost the most, and any; ordinary targets and wild ones. */
static void compare_search(const struct aq_trellis_kernels *own, search_space *space, size_t count,
                           uint32_t kind) {
    size_t ends = (size_t)1 << (space->search.state_bits - space->search.bits), i;
    int32_t most = space->search.bits == 4 ? 256 : 128;
    uint8_t *choices[2];
    for (i = 0; i < 2; i++) choices[i] = (uint8_t *)align_64(space->choices[i]);
    for (i = 0; i < count; i++) {
        double x = kind ? (double)most * (2.0 * uniform() - 1.0) : 32.0 * (double)gaussian();
        space->targets[i] = (int16_t)(x > most ? most : x < -most ? -most : x);
        if (kind == 2 && i % 3 == 0) space->targets[i] = (int16_t)(i % 2 ? most : -most);
    }
    for (i = 0; i < ends; i++) {
        space->least[0][i] = (uint16_t)(kind == 0 ? 0u : kind == 1 ? random_bits() : 65535u);
    }
    space->least[0][random_bits() % ends] = 0;
    memcpy(space->least[1], space->least[0], sizeof space->least[0]);
    aq_scalar_trellis_search(&space->search, space->targets, count, space->least[0], choices[0]);
    own->search(&space->search, space->targets, count, space->least[1], choices[1]);
    CHECK(memcmp(space->least[0], space->least[1], ends * sizeof space->least[0][0]) == 0);
    CHECK(memcmp(choices[0], choices[1], ends * count) == 0);
}

TEST(searches_are_the_scalar_one) {
    static const size_t counts[] = {1, 7, 8, 9, 48, 64, 256};
    search_space *space = (search_space *)malloc(sizeof *space);
    uint32_t bits, states, kind;
    size_t i, n;
    for (i = 0; i < sizeof tables / sizeof *tables; i++) {
        const struct aq_kernels *kernels = aq_simd_kernels(tables[i]);
        for (bits = 2; bits <= 4 && kernels; bits++) {
            for (states = 256; states <= 4096; states *= 4) {
                search_open(space, aq_trellis_code_of(bits, states));
                for (n = 0; n < sizeof counts / sizeof *counts; n++) {
                    for (kind = 0; kind < 3; kind++) {
                        compare_search(aq_simd_trellis(kernels), space, counts[n], kind);
                    }
                }
            }
        }
    }
    free(space);
}

/* Columns of any bytes as rows of weights. */
static void compare_spread(const struct aq_trellis_kernels *own, size_t rows, size_t columns) {
    int8_t *values = (int8_t *)malloc(16 * 256);
    float scales[256], *out[2];
    size_t i, stride = columns + 3;
    for (i = 0; i < 16 * 256; i++) values[i] = (int8_t)((int32_t)(random_bits() % 255) - 127);
    for (i = 0; i < 256; i++) scales[i] = gaussian();
    for (i = 0; i < 2; i++) out[i] = (float *)calloc(rows * stride, sizeof(float));
    aq_scalar_trellis_spread(values, rows, columns, scales, out[0], stride);
    own->spread(values, rows, columns, scales, out[1], stride);
    CHECK(memcmp(out[0], out[1], rows * stride * sizeof(float)) == 0);
    for (i = 0; i < 2; i++) free(out[i]);
    free(values);
}

/* Heights of whole vectors, of whole bytes, and of neither; the codes end where memory does. */
static void compare_reading(const struct aq_trellis_kernels *own, const aq_trellis_code *code,
                            size_t height) {
    size_t cols = 1 + random_bits() % 23, bytes = (cols * height * code->bits + 7) / 8, i, col;
    size_t tokens = 1 + random_bits() % 11, first, rows;
    uint8_t *codes = (uint8_t *)malloc(bytes);
    int8_t values[2][256], *x = (int8_t *)malloc(tokens * cols);
    int32_t *out[2];
    for (i = 0; i < 2; i++) out[i] = (int32_t *)malloc(tokens * height * sizeof(int32_t));
    for (i = 0; i < bytes; i++) codes[i] = (uint8_t)random_bits();
    for (i = 0; i < tokens * cols; i++) {
        x[i] = (int8_t)(i % 5 ? (int32_t)(random_bits() % 256) - 128 : i % 2 ? -128 : 127);
    }
    for (col = 0; col < cols; col++) {
        first = col % 2 ? random_bits() % height : 0;
        rows = col % 2 ? 1 + random_bits() % (height - first) : height;
        aq_scalar_trellis_values(code, codes, col * height * code->bits, height, first, rows,
                                 values[0]);
        own->values(code, codes, col * height * code->bits, height, first, rows, values[1]);
        CHECK(memcmp(values[0], values[1], rows) == 0);
        for (i = 0; i < rows; i++) {
            CHECK(code->bits == 4 || (values[0][i] >= -63 && values[0][i] <= 63));
        }
    }
    first = random_bits() % cols;
    aq_scalar_trellis_dots(code, codes, height, first, cols - first, x + first, cols, tokens,
                           out[0]);
    own->dots(code, codes, height, first, cols - first, x + first, cols, tokens, out[1]);
    CHECK(memcmp(out[0], out[1], tokens * height * sizeof(int32_t)) == 0);
    for (i = 0; i < 2; i++) free(out[i]);
    compare_spread(own, height, 1 + random_bits() % 16);
    compare_spread(own, height, 16);
    free(codes);
    free(x);
}

TEST(readings_are_the_scalar_one) {
    static const size_t heights[] = {256, 128, 64, 192, 4, 12, 100, 1, 3, 17, 255, 8, 20, 248};
    uint32_t bits, states, n;
    size_t i, h;
    for (i = 0; i < sizeof tables / sizeof *tables; i++) {
        const struct aq_kernels *kernels = aq_simd_kernels(tables[i]);
        for (bits = 2; bits <= 4 && kernels; bits++) {
            for (states = 256; states <= 4096; states *= 4) {
                for (h = 0; h < sizeof heights / sizeof *heights; h++) {
                    for (n = 0; n < 3; n++) {
                        compare_reading(aq_simd_trellis(kernels), aq_trellis_code_of(bits, states),
                                        heights[h]);
                    }
                }
            }
        }
    }
}

/* ---- the search against every sequence there is */

/* The sum of squares in the search's own units; ties go to any. */
static uint64_t ring_cost(const aq_trellis_code *code, const uint8_t *bytes, size_t rows,
                          const int32_t *targets) {
    int8_t values[16];
    uint64_t sum = 0;
    size_t i;
    aq_scalar_trellis_values(code, bytes, 0, rows, 0, rows, values);
    for (i = 0; i < rows; i++) {
        int32_t d = targets[i] - 2 * values[i];
        sum += (uint64_t)((int64_t)d * d);
    }
    return sum;
}

/* Rings of 8 and 12 bits: the best of all. Rings of 16 bits, where the search has to guess how they
 * close: the best often enough, and not far from it. */
TEST(columns_are_coded_best) {
    static const size_t heights[] = {4, 6, 8};
    aq_quant_spec spec = spec_of(2, 256, 32, AQ_PARAM_F32);
    const aq_trellis_code *code = aq_trellis_code_of(2, 256);
    void *space = malloc((size_t)aq_trellis_bytes(&spec));
    size_t h, i, n;
    for (h = 0; h < 3; h++) {
        uint64_t found_sum = 0, best_sum = 0;
        uint32_t equal = 0, rounds = 40;
        aq_trellis trellis;
        aq_trellis_open(&trellis, aq_simd_kernels(NULL), &spec, heights[h], 1, space);
        for (n = 0; n < rounds; n++) {
            float target[8], scale[8], rounded[8];
            int32_t aims[8];
            uint8_t codes[4];
            uint64_t best = UINT64_MAX, found;
            uint32_t ring;
            memset(codes, 0, sizeof codes);
            for (i = 0; i < heights[h]; i++) {
                scale[i] = 0.5f;
                target[i] = 8.0f * gaussian();
                aims[i] = aq_simd_round(2.0f * target[i] / scale[i], -128, 128);
            }
            aq_trellis_column(&trellis, 0, target, scale, rounded, codes);
            found = ring_cost(code, codes, heights[h], aims);
            for (ring = 0; ring < 1u << 2 * heights[h]; ring++) {
                uint8_t bytes[2];
                uint64_t cost;
                bytes[0] = (uint8_t)(ring & 255u);
                bytes[1] = (uint8_t)(ring >> 8);
                cost = ring_cost(code, bytes, heights[h], aims);
                best = cost < best ? cost : best;
            }
            CHECK(found >= best);
            equal += found == best;
            found_sum += found;
            best_sum += best;
        }
        CHECK(heights[h] == 8 ? equal >= rounds / 5 : equal == rounds);
        CHECK((double)found_sum <= 1.6 * (double)best_sum);
    }
    free(space);
}

int main(void) {
    RUN(trellis_reads_as_the_format_says);
    RUN(trellis_reaches_its_quality);
    RUN(searches_are_the_scalar_one);
    RUN(readings_are_the_scalar_one);
    RUN(columns_are_coded_best);
    return test_end();
}
