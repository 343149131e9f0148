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
    return scale * (float)(code->table[0][state & 15u] + code->table[1][state >> 4 & 15u] +
                           code->table[2][state >> 8]);
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
    static const double least[3] = {10.4, 14.0, 16.0};
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

int main(void) {
    RUN(trellis_reads_as_the_format_says);
    RUN(trellis_reaches_its_quality);
    return test_end();
}
