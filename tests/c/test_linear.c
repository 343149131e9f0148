/* The forward pass of linear layers and convolutions against double arithmetic on the same codes;
 * every ISA and number of threads gives the same bits; odd shapes, hostile arguments. */
#include "test.h"

static const aq_isa ISAS[] = {AQ_ISA_SCALAR, AQ_ISA_AVX2, AQ_ISA_AVX512, AQ_ISA_NEON};

static aq_context *context_of(aq_isa isa, uint32_t threads) {
    aq_context *context = NULL;
    if (aq_context_create(isa, NULL, &context, NULL) == AQ_OK) {
        context->num_threads = threads;
    }
    return context;
}

static uint32_t below(uint64_t *state, uint32_t limit) {
    return (uint32_t)((test_random(state) >> 32) % limit);
}

/* ---------------------------------------------------------------- a layer and what it should give */

typedef struct layer {
    aq_linear linear;
    aq_quant_layout layout;
    float *weights; /* as decoded, [rows, cols] */
    float *bias, *scales;
    void *file_weights, *file_bias; /* the same as the bytes of a file */
    uint8_t *codes, *params, *extra;
    size_t rows, cols;
} layer;

static void *room(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) {
        exit(1);
    }
    return memory;
}

/* A copy in the byte order of files. */
static void *file_copy(const float *from, size_t count) {
    void *copy = room(count * 4);
    memcpy(copy, from, count * 4);
    aq_little_endian(copy, count, 4);
    return copy;
}

/* Random weights, quantized (bits 2, 4, 8) or as they are (bits 16). */
static void make_layer(layer *l, size_t rows, size_t cols, aq_quant_spec spec, int extras,
                       uint64_t *state) {
    size_t i;
    memset(l, 0, sizeof *l);
    l->rows = rows;
    l->cols = cols;
    l->linear.rows = rows;
    l->linear.cols = cols;
    l->weights = (float *)room(rows * cols * 4);
    l->bias = (float *)room(rows * 4);
    l->scales = (float *)room(cols * 4);
    for (i = 0; i < rows * cols; i++) {
        l->weights[i] = (float)test_normal(state) * 0.05f + 0.01f;
    }
    for (i = 0; i < rows; i++) {
        l->bias[i] = (float)test_normal(state);
    }
    for (i = 0; i < cols; i++) {
        l->scales[i] = (float)(0.5 + test_uniform(state));
    }
    l->file_bias = file_copy(l->bias, rows);
    l->linear.bias = extras & 1 ? l->file_bias : NULL;
    l->linear.bias_dtype = AQ_DTYPE_F32;
    l->linear.input_scales = extras & 2 ? l->scales : NULL;
    if (spec.bits == 16) {
        l->linear.dtype = AQ_DTYPE_F32;
        l->file_weights = file_copy(l->weights, rows * cols);
        l->linear.data = l->file_weights;
        return;
    }
    CHECK_STATUS(aq_quantized_size(&spec, rows, cols, &l->layout, NULL), AQ_OK);
    l->codes = (uint8_t *)room((size_t)l->layout.code_bytes);
    l->params = (uint8_t *)room((size_t)l->layout.param_bytes);
    l->extra = (uint8_t *)room((size_t)l->layout.extra_bytes);
    CHECK_STATUS(aq_quantize(NULL, &spec, l->weights, AQ_DTYPE_F32, rows, cols, NULL, l->codes,
                             l->params, l->extra, NULL, NULL), AQ_OK);
    CHECK_STATUS(aq_dequantize(NULL, &spec, l->codes, l->params, l->extra, rows, cols,
                               AQ_DTYPE_F32, l->weights, NULL), AQ_OK);
    l->linear.quantized = true;
    l->linear.spec = spec;
    l->linear.codes = l->codes;
    l->linear.params = l->params;
    l->linear.extra = l->layout.extra_bytes ? l->extra : NULL;
}

static void free_layer(layer *l) {
    free(l->weights);
    free(l->bias);
    free(l->file_weights);
    free(l->file_bias);
    free(l->scales);
    free(l->codes);
    free(l->params);
    free(l->extra);
}

/* A token's x as the product sees it, and the step that it is known to. */
static void see_token(const layer *l, const float *x, const aq_activation *activation, float *out) {
    float low = 0.0f, high = 0.0f, most, scale, inverse;
    int zero = 0;
    size_t i;
    for (i = 0; i < l->cols; i++) {
        out[i] = l->linear.input_scales ? x[i] * l->scales[i] : x[i];
        low = out[i] < low ? out[i] : low;
        high = out[i] > high ? out[i] : high;
    }
    if (activation->type == AQ_ACTIVATION_FLOAT || !l->linear.quantized) {
        return;
    }
    most = -low > high ? -low : high;
    scale = most / 127.0f;
    inverse = most > 0.0f ? 127.0f / most : 0.0f;
    if (activation->type == AQ_ACTIVATION_STATIC) {
        scale = activation->scale;
        inverse = 1.0f / scale;
        zero = activation->zero_point;
    } else if (most > 0.0f && 4.0f * (-low < high ? -low : high) <= most) { /* one-sided */
        volatile float below = low * (255.0f / (high - low));
        scale = (high - low) / 255.0f;
        inverse = 255.0f / (high - low);
        zero = (int)rintf(-128.0f - below);
    }
    for (i = 0; i < l->cols; i++) {
        volatile float product = out[i] * inverse;
        float code = rintf(product) + (float)zero;
        code = code < -128.0f ? -128.0f : code > 127.0f ? 127.0f : code;
        out[i] = scale * (code - (float)zero);
    }
}

/* The largest error over the sum of magnitudes that a result is made of. */
static double worst_error(const layer *l, const float *x, size_t tokens,
                          const aq_activation *activation, const float *y) {
    float *seen = (float *)room(l->cols * 4);
    double worst = 0.0;
    size_t t, r, i;
    for (t = 0; t < tokens; t++) {
        see_token(l, x + t * l->cols, activation, seen);
        for (r = 0; r < l->rows; r++) {
            double sum = l->linear.bias ? (double)l->bias[r] : 0.0, size = fabs(sum) + 1e-30, error;
            for (i = 0; i < l->cols; i++) {
                double term = (double)l->weights[r * l->cols + i] * (double)seen[i];
                sum += term;
                size += fabs(term);
            }
            error = fabs(sum - (double)y[t * l->rows + r]) / size;
            worst = error > worst || error != error ? error : worst;
        }
    }
    free(seen);
    return worst;
}

static aq_status forward(aq_context *context, const layer *l, const void *x, aq_dtype dtype,
                         size_t tokens, const aq_activation *activation, float *y) {
    size_t bytes = aq_linear_scratch_size(context, &l->linear, tokens);
    void *scratch = room(bytes);
    aq_status status;
    memset(scratch, 0xA5, bytes);
    status = aq_linear_forward(context, &l->linear, x, dtype, tokens, activation, y, scratch, bytes,
                               NULL);
    free(scratch);
    return status;
}

/* Every ISA and 1 to 3 threads give these bits. */
static void same_everywhere(const layer *l, const float *x, size_t tokens,
                            const aq_activation *activation, const float *y) {
    float *other = (float *)room(tokens * l->rows * 4);
    uint32_t threads;
    size_t i;
    for (i = 0; i < sizeof ISAS / sizeof *ISAS; i++) {
        for (threads = 1; threads <= 3; threads += 2) {
            aq_context *context = context_of(ISAS[i], threads);
            if (context) {
                memset(other, 0xFF, tokens * l->rows * 4);
                CHECK_STATUS(forward(context, l, x, AQ_DTYPE_F32, tokens, activation, other),
                             AQ_OK);
                CHECK(memcmp(other, y, tokens * l->rows * 4) == 0);
            }
            aq_context_destroy(context);
        }
    }
    /* one token alone */
    CHECK_STATUS(forward(NULL, l, x + (tokens - 1) * l->cols, AQ_DTYPE_F32, 1, activation, other),
                 AQ_OK);
    CHECK(memcmp(other, y + (tokens - 1) * l->rows, l->rows * 4) == 0);
    free(other);
}

static void check_tokens(const layer *l, const float *x, size_t tokens,
                         const aq_activation *activation, double bound) {
    float *y = (float *)room(tokens * l->rows * 4);
    CHECK_STATUS(forward(NULL, l, x, AQ_DTYPE_F32, tokens, activation, y), AQ_OK);
    CHECK_RANGE(0, worst_error(l, x, tokens, activation, y), bound);
    same_everywhere(l, x, tokens, activation, y);
    free(y);
}

static void check_layer(const layer *l, size_t tokens, const aq_activation *activation,
                        uint64_t *state) {
    float *x = (float *)room(tokens * l->cols * 4);
    size_t i;
    for (i = 0; i < tokens * l->cols; i++) {
        x[i] = (float)test_normal(state);
    }
    check_tokens(l, x, tokens, activation, 1e-6);
    free(x);
}

static const size_t SHAPES[][2] = {{1, 1},   {3, 5},    {16, 32},  {17, 33},  {5, 64},
                                   {33, 100}, {16, 257}, {40, 512}, {2, 1030}, {19, 2304}};
#define SHAPE_COUNT (sizeof SHAPES / sizeof *SHAPES)

TEST(matches_double_arithmetic) {
    static const uint32_t groups[] = {32, 64, 128, 256}, widths[] = {2, 4, 8, 16};
    static const size_t token_counts[] = {1, 2, 5, 18, 35};
    uint64_t state = 7;
    size_t round, rounds = test_brief() ? 40 : 240;
    for (round = 0; round < rounds; round++) {
        const size_t *shape = SHAPES[round % SHAPE_COUNT];
        aq_activation activation;
        aq_quant_spec spec;
        layer l;
        spec.fit = AQ_FIT_LEAST_SQUARES;
        spec.code = (aq_code)below(&state, 3);
        spec.params = (aq_param_type)below(&state, spec.code == AQ_CODE_ZERO_POINT ? 2 : 3);
        spec.bits = widths[below(&state, 8) % 4];
        spec.group_size = groups[below(&state, 4)];
        activation.type = (aq_activation_type)(round % 3);
        activation.scale = 0.01f + 0.02f * (float)test_uniform(&state);
        activation.zero_point = below(&state, 2) ? 0 : (int32_t)below(&state, 257) - 128;
        if (shape[1] == 1 && spec.params == AQ_PARAM_Q8) {
            spec.params = AQ_PARAM_F32; /* a constant group has no 8-bit parameters */
        }
        if (spec.params == AQ_PARAM_Q8 && shape[1] % spec.group_size == 1) {
            spec.params = AQ_PARAM_F16;
        }
        make_layer(&l, shape[0], shape[1], spec, (int)below(&state, 4), &state);
        check_layer(&l, token_counts[below(&state, 5)], &activation, &state);
        free_layer(&l);
    }
}

/* Tokens on one side of 0, as GELU and SiLU leave them, take a zero point, each its own, among others
 * that take none. All terms of a result have one sign before the mins, which take most of it off
 * again: hence twice the bound. */
TEST(one_sided_tokens) {
    static const uint32_t widths[] = {2, 4, 8};
    uint64_t state = 31;
    size_t round, i;
    for (round = 0; round < 24; round++) {
        const size_t *shape = SHAPES[round % SHAPE_COUNT];
        const size_t tokens = 1 + below(&state, 11), count = tokens * shape[1];
        aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 64, AQ_FIT_LEAST_SQUARES, 0, 0};
        aq_activation activation = {AQ_ACTIVATION_DYNAMIC, 0.0f, 0};
        float *x = (float *)room(count * 4);
        layer l;
        spec.code = round % 2 ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE;
        spec.bits = widths[round % 3];
        spec.group_size = 32u << below(&state, 4);
        for (i = 0; i < count; i++) {
            const float value = (float)test_normal(&state);
            switch (i / shape[1] % 4) {
            case 0: x[i] = value < 0.0f ? -0.04f * value * value : value; break;
            case 1: x[i] = -fabsf(value); break;
            case 2: x[i] = value; break;
            default: x[i] = 100.0f + value; break;
            }
        }
        make_layer(&l, shape[0], shape[1], spec, 1, &state);
        check_tokens(&l, x, tokens, &activation, 2e-6);
        free_layer(&l);
        free(x);
    }
}

/* Tokens of which some lie on one side of 0. */
static float *some_tokens(size_t tokens, size_t cols, uint64_t *state) {
    float *x = (float *)room(tokens * cols * 4);
    size_t i;
    for (i = 0; i < tokens * cols; i++) {
        const float value = (float)test_normal(state);
        x[i] = i / cols % 3 == 1 ? fabsf(value) : value;
    }
    return x;
}

/* A copy for one instruction set, at an odd address with a guard behind it, read by each: the bits of
 * `expected`, which are those without a copy, also when the codes are gone for those that read the copy. */
static void check_copy(layer *l, aq_context *context, const float *x, size_t tokens,
                       const aq_activation *activation, const float *expected) {
    const size_t bytes = aq_linear_repacked_size(context, &l->linear), count = tokens * l->rows;
    uint8_t *memory = (uint8_t *)room(bytes + 9), *codes = l->codes;
    uint8_t *gone = (uint8_t *)room((size_t)l->layout.code_bytes);
    float *y = (float *)room(count * 4);
    aq_linear plain = l->linear;
    size_t i, reads = 0;
    memset(memory, 0xA5, bytes + 9);
    memset(gone, 0x3C, (size_t)l->layout.code_bytes);
    CHECK_STATUS(aq_linear_repack(context, &l->linear, memory + 1, bytes, &l->linear, NULL), AQ_OK);
    for (i = 0; i < 8; i++) {
        CHECK(memory[i == 0 ? 0 : bytes + i] == 0xA5);
    }
    CHECK((l->linear.interleaved != NULL) == (bytes != 0));
    CHECK(l->linear.codes == codes && l->linear.rows == l->rows);
    for (i = 0; i < sizeof ISAS / sizeof *ISAS; i++) {
        aq_context *other = context_of(ISAS[i], 1);
        const int reads_copy = bytes != 0 && other && aq_linear_repacked_size(other, &l->linear) != 0;
        if (other) {
            l->linear.codes = reads_copy ? gone : codes;
            memset(y, 0xFF, count * 4);
            CHECK_STATUS(forward(other, l, x, AQ_DTYPE_F32, tokens, activation, y), AQ_OK);
            CHECK(memcmp(y, expected, count * 4) == 0);
            reads += (size_t)reads_copy;
        }
        aq_context_destroy(other);
    }
    CHECK(bytes == 0 || reads > 0);
    l->linear = plain;
    free(gone);
    free(memory);
    free(y);
}

TEST(repacked_layers) {
    static const uint32_t widths[] = {2, 4, 8};
    static const size_t token_counts[] = {1, 2, 3, 4, 7, 33};
    uint64_t state = 53;
    size_t round, i, rounds = test_brief() ? 18 : 144;
    for (round = 0; round < rounds; round++) {
        const size_t *shape = SHAPES[round % SHAPE_COUNT];
        const size_t tokens = token_counts[round % 6];
        aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 64, AQ_FIT_FAST, 0, 0};
        aq_activation activation = {AQ_ACTIVATION_DYNAMIC, 0.02f, 0};
        float *x, *expected = (float *)room(tokens * shape[0] * 4);
        aq_context *scalar = context_of(AQ_ISA_SCALAR, 1);
        layer l;
        spec.bits = widths[round / 2 % 3];
        spec.group_size = 32u << below(&state, 4);
        spec.code = (aq_code)below(&state, 3);
        spec.params = (aq_param_type)below(&state, spec.code == AQ_CODE_ZERO_POINT ? 2 : 3);
        if (spec.params == AQ_PARAM_Q8 && shape[1] % spec.group_size == 1) {
            spec.params = AQ_PARAM_F32; /* a constant group has no 8-bit parameters */
        }
        if (round % 5 == 4) {
            activation.type = AQ_ACTIVATION_STATIC;
            activation.zero_point = (int32_t)below(&state, 3) * 100 - 100;
        }
        make_layer(&l, shape[0], shape[1], spec, (int)below(&state, 4), &state);
        x = some_tokens(tokens, shape[1], &state);
        CHECK(aq_linear_repacked_size(scalar, &l.linear) == 0);
        CHECK_STATUS(forward(scalar, &l, x, AQ_DTYPE_F32, tokens, &activation, expected), AQ_OK);
        for (i = 0; i < sizeof ISAS / sizeof *ISAS; i++) {
            aq_context *context = context_of(ISAS[i], 1);
            if (context) {
                check_copy(&l, context, x, tokens, &activation, expected);
            }
            aq_context_destroy(context);
        }
        aq_context_destroy(scalar);
        free_layer(&l);
        free(expected);
        free(x);
    }
}

/* Threads share a copy; FLOAT takes the codes; what cannot be repacked is left as it is. */
TEST(repacking) {
    const aq_activation dynamic = {AQ_ACTIVATION_DYNAMIC, 0.0f, 0};
    aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 32, AQ_FIT_FAST, 0, 0};
    aq_quant_spec trellis = {AQ_CODE_TRELLIS, AQ_PARAM_F16, 2, 64, AQ_FIT_FAST, 256, 0};
    aq_context *context = context_of(AQ_ISA_AUTO, 3);
    uint64_t state = 3;
    uint8_t memory[65536];
    float *x = some_tokens(5, 1500, &state), y[2][5 * 41];
    aq_linear out;
    aq_error err;
    size_t bytes, type;
    layer l;
    make_layer(&l, 41, 1500, spec, 1, &state);
    bytes = aq_linear_repacked_size(context, &l.linear);
    CHECK(bytes == 0 || (bytes >= l.layout.code_bytes + l.layout.param_bytes &&
                         bytes <= (l.layout.code_bytes + l.layout.param_bytes) / 41 * 48 + 64 * 4));
    for (type = 0; type < 2; type++) {
        const aq_activation *activation = type ? &dynamic : NULL;
        CHECK_STATUS(forward(context, &l, x, AQ_DTYPE_F32, 5, activation, y[0]), AQ_OK);
        out = l.linear;
        CHECK_STATUS(aq_linear_repack(context, &out, memory, sizeof memory, &l.linear, NULL), AQ_OK);
        CHECK_STATUS(forward(context, &l, x, AQ_DTYPE_F32, 5, activation, y[1]), AQ_OK);
        CHECK(memcmp(y[0], y[1], sizeof y[0]) == 0);
        l.linear = out;
    }
    if (bytes) {
        CHECK_STATUS(aq_linear_repack(context, &l.linear, memory, bytes - 1, &out, &err), AQ_ERR_ARGUMENT);
        CHECK(strstr(err.message, "aq_linear_repacked_size") != NULL);
        CHECK_STATUS(aq_linear_repack(context, &l.linear, NULL, bytes, &out, &err), AQ_ERR_ARGUMENT);
    }
    CHECK_STATUS(aq_linear_repack(context, NULL, memory, bytes, &out, &err), AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_linear_repack(context, &l.linear, memory, bytes, NULL, &err), AQ_ERR_ARGUMENT);
    CHECK(aq_linear_repacked_size(context, NULL) == 0);
    out = l.linear;
    out.params = NULL;
    CHECK(aq_linear_repacked_size(context, &out) == 0);
    CHECK_STATUS(aq_linear_repack(context, &out, memory, bytes, &out, &err), AQ_ERR_ARGUMENT);
    out = l.linear; /* whose 16 rows would overflow where its one does not */
    out.rows = 1;
    out.cols = UINT64_MAX / 16;
    out.spec.bits = 8;
    CHECK(aq_linear_repacked_size(context, &out) == 0);
    free_layer(&l);
    make_layer(&l, 40, 64, trellis, 1, &state);
    CHECK(aq_linear_repacked_size(context, &l.linear) == 0);
    out = l.linear;
    out.interleaved = memory; /* not read, and not kept */
    CHECK_STATUS(aq_linear_repack(context, &out, NULL, 0, &out, NULL), AQ_OK);
    CHECK(out.interleaved == NULL && out.codes == l.linear.codes);
    free_layer(&l);
    spec.bits = 16;
    make_layer(&l, 4, 8, spec, 1, &state);
    CHECK(aq_linear_repacked_size(context, &l.linear) == 0);
    free_layer(&l);
    aq_context_destroy(context);
    free(x);
}

/* The sum of squares of a, and of a − b. */
static double far_apart(const float *a, const float *b, size_t count) {
    double size = 0.0, error = 0.0;
    size_t i;
    for (i = 0; i < count; i++) {
        size += (double)a[i] * (double)a[i];
        error += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    }
    return sqrt(error / (size + 1e-30));
}

/* Strips that end early, groups that do, inputs rotated or not; INT8 is exact where nothing is rotated,
 * and near to the float result where the integers are those of rotated inputs. */
TEST(trellis_layers) {
    static const size_t shapes[][2] = {{1, 32}, {37, 70}, {256, 64}, {300, 130}};
    static const uint32_t states[] = {256, 1024, 256};
    uint64_t state = 41;
    size_t round, i;
    for (round = 0; round < 8; round++) {
        const size_t *shape = shapes[round % 4];
        const size_t tokens = round == 5 ? 70 : round % 3 == 0 ? 1 : 11, count = tokens * shape[1];
        aq_quant_spec spec = {AQ_CODE_TRELLIS, AQ_PARAM_F16, 2, 64, AQ_FIT_FAST, 256, 0};
        aq_activation activation = {AQ_ACTIVATION_FLOAT, 0.0f, 0};
        float *x = (float *)room(count * 4), *row = (float *)room(shape[1] * 4);
        float *y = (float *)room(tokens * shape[0] * 4), *exact = (float *)room(tokens * shape[0] * 4);
        layer l;
        spec.bits = 2 + (uint32_t)round % 3;
        spec.states = states[round % 3];
        spec.rotation = round < 4 ? 0 : 77;
        spec.group_size = round % 2 ? 32 : 128;
        spec.params = round % 2 ? AQ_PARAM_F32 : AQ_PARAM_F16; /* short groups may have tiny scales */
        for (i = 0; i < count; i++) {
            x[i] = (float)test_normal(&state);
        }
        make_layer(&l, shape[0], shape[1], spec, round % 2 ? 1 : 3, &state);
        check_tokens(&l, x, tokens, &activation, spec.rotation ? 1e-5 : 1e-6);
        CHECK_STATUS(forward(NULL, &l, x, AQ_DTYPE_F32, tokens, &activation, exact), AQ_OK);
        activation.type = AQ_ACTIVATION_DYNAMIC;
        if (!spec.rotation && shape[1] > 64) { /* no token is one-sided */
            check_tokens(&l, x, tokens, &activation, 1e-6);
        }
        CHECK_STATUS(forward(NULL, &l, x, AQ_DTYPE_F32, tokens, &activation, y), AQ_OK);
        CHECK_RANGE(0, far_apart(exact, y, tokens * shape[0]), 0.02);
        same_everywhere(&l, x, tokens, &activation, y);
        activation.type = AQ_ACTIVATION_STATIC;
        activation.scale = 1.0f;
        CHECK_STATUS(forward(NULL, &l, x, AQ_DTYPE_F32, tokens, &activation, y),
                     AQ_ERR_UNSUPPORTED);
        CHECK_STATUS(aq_linear_row(NULL, &l.linear, shape[0] - 1, row, NULL), AQ_OK);
        for (i = 0; i < shape[1] && l.linear.input_scales; i++) {
            l.weights[(shape[0] - 1) * shape[1] + i] *= l.scales[i];
        }
        CHECK_RANGE(0, far_apart(l.weights + (shape[0] - 1) * shape[1], row, shape[1]), 1e-6);
        free_layer(&l);
        free(x);
        free(row);
        free(y);
        free(exact);
    }
}

/* Values at the ends of all ranges: the integers may not overflow, nor a scale. */
TEST(extremes) {
    static const uint32_t widths[] = {2, 4, 8};
    float x[3 * 512], y[3 * 20];
    uint64_t state = 3;
    size_t b, i, kind;
    for (b = 0; b < 3; b++) {
        aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F32, 8, 256, AQ_FIT_LEAST_SQUARES, 0, 0};
        aq_activation activation = {AQ_ACTIVATION_STATIC, 1.0f, 0};
        layer l;
        spec.bits = widths[b];
        make_layer(&l, 20, 512, spec, 0, &state);
        memset(l.codes, 0xFF, (size_t)l.layout.code_bytes); /* the largest code everywhere */
        CHECK_STATUS(aq_dequantize(NULL, &spec, l.codes, l.params, NULL, 20, 512, AQ_DTYPE_F32,
                                   l.weights, NULL), AQ_OK);
        for (kind = 0; kind < 6; kind++) {
            static const float values[] = {-128.0f, 127.0f, 1e30f, -3e38f, 1e-38f, 1e-45f};
            for (i = 0; i < 3 * 512; i++) {
                x[i] = values[kind];
            }
            for (i = 0; i < 3; i++) {
                static const int32_t zeros[] = {0, 128, -128};
                activation.zero_point = zeros[i];
                CHECK_STATUS(forward(NULL, &l, x, AQ_DTYPE_F32, 3, &activation, y), AQ_OK);
                CHECK_RANGE(0, worst_error(&l, x, 3, &activation, y), 1e-6);
                same_everywhere(&l, x, 3, &activation, y);
            }
        }
        free_layer(&l);
    }
}

/* What is not a number or not finite in a token shows in its results and in no other's. */
TEST(not_finite) {
    const float bad[] = {(float)NAN, (float)INFINITY, -(float)INFINITY};
    aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 64, AQ_FIT_LEAST_SQUARES, 0, 0};
    uint64_t state = 11;
    float x[4 * 100], y[4 * 18];
    size_t i, kind, type;
    layer l;
    make_layer(&l, 18, 100, spec, 1, &state);
    for (kind = 0; kind < 3; kind++) {
        for (type = 0; type < 3; type++) {
            aq_activation activation = {AQ_ACTIVATION_FLOAT, 0.02f, 3};
            activation.type = (aq_activation_type)type;
            for (i = 0; i < 400; i++) {
                x[i] = (float)test_normal(&state);
            }
            x[2 * 100 + 99] = bad[kind];
            CHECK_STATUS(forward(NULL, &l, x, AQ_DTYPE_F32, 4, &activation, y), AQ_OK);
            for (i = 0; i < 4 * 18; i++) {
                CHECK((i / 18 == 2) == !(fabsf(y[i]) <= 1e30f));
                CHECK(i / 18 != 2 || type == 0 || y[i] != y[i]);
            }
        }
    }
    memset(x, 0, sizeof x); /* tokens of zeros: the biases */
    for (type = 0; type < 2; type++) {
        aq_activation activation = {AQ_ACTIVATION_FLOAT, 0, 0};
        activation.type = (aq_activation_type)type;
        CHECK_STATUS(forward(NULL, &l, x, AQ_DTYPE_F32, 4, &activation, y), AQ_OK);
        for (i = 0; i < 4 * 18; i++) {
            CHECK(y[i] == l.bias[i % 18]);
        }
    }
    free_layer(&l);
}

/* 16-bit activations and weights are widened, whatever their address. */
TEST(dtypes) {
    const struct aq_kernels *kernels = aq_simd_kernels(NULL);
    uint64_t state = 5;
    float wide[3 * 70], y[3 * 9], expected[3 * 9];
    uint8_t halves[2 * 3 * 70 + 1], weights[2 * 9 * 70 + 1], bias[2 * 9 + 1];
    size_t i, type;
    for (type = 0; type < 2; type++) {
        const aq_dtype dtype = type ? AQ_DTYPE_F16 : AQ_DTYPE_BF16;
        aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 16, 64, AQ_FIT_LEAST_SQUARES, 0, 0};
        layer l;
        make_layer(&l, 9, 70, spec, 3, &state);
        for (i = 0; i < 3 * 70; i++) {
            wide[i] = (float)test_normal(&state);
        }
        (type ? kernels->f32_to_f16 : kernels->f32_to_bf16)(wide, halves + 1, 3 * 70);
        (type ? kernels->f16_to_f32 : kernels->bf16_to_f32)(halves + 1, wide, 3 * 70);
        (type ? kernels->f32_to_f16 : kernels->f32_to_bf16)(l.weights, weights + 1, 9 * 70);
        (type ? kernels->f16_to_f32 : kernels->bf16_to_f32)(weights + 1, l.weights, 9 * 70);
        (type ? kernels->f32_to_f16 : kernels->f32_to_bf16)(l.bias, bias + 1, 9);
        (type ? kernels->f16_to_f32 : kernels->bf16_to_f32)(bias + 1, l.bias, 9);
        free(l.file_weights);
        free(l.file_bias);
        l.linear.data = l.file_weights = file_copy(l.weights, 9 * 70);
        l.linear.bias = l.file_bias = file_copy(l.bias, 9);
        CHECK_STATUS(forward(NULL, &l, wide, AQ_DTYPE_F32, 3, NULL, expected), AQ_OK);
        /* files are little endian */
        for (i = 0; i < 9 * 70; i++) {
            uint16_t half;
            memcpy(&half, weights + 1 + 2 * i, 2);
            aq_little_endian(&half, 1, 2);
            memcpy(weights + 1 + 2 * i, &half, 2);
        }
        for (i = 0; i < 9; i++) {
            uint16_t half;
            memcpy(&half, bias + 1 + 2 * i, 2);
            aq_little_endian(&half, 1, 2);
            memcpy(bias + 1 + 2 * i, &half, 2);
        }
        l.linear.dtype = l.linear.bias_dtype = dtype;
        l.linear.data = weights + 1;
        l.linear.bias = bias + 1;
        CHECK_STATUS(forward(NULL, &l, halves + 1, dtype, 3, NULL, y), AQ_OK);
        CHECK(memcmp(y, expected, sizeof y) == 0);
        CHECK_STATUS(aq_linear_row(NULL, &l.linear, 8, wide, NULL), AQ_OK);
        for (i = 0; i < 70; i++) { /* a row counts with the scales of the input */
            CHECK(wide[i] == l.weights[8 * 70 + i] * l.scales[i]);
        }
        free_layer(&l);
    }
}

TEST(refuses) {
    aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_Q8, 4, 64, AQ_FIT_LEAST_SQUARES, 0, 0};
    aq_activation activation = {AQ_ACTIVATION_STATIC, 0.0f, 0};
    uint64_t state = 9;
    float x[128], y[16];
    uint8_t scratch[65536];
    aq_linear other;
    aq_error err;
    layer l;
    make_layer(&l, 16, 128, spec, 1, &state);
    memset(x, 0, sizeof x);
    CHECK(aq_linear_scratch_size(NULL, NULL, 1) == 0);
    CHECK(aq_linear_scratch_size(NULL, &l.linear, UINT64_MAX) == 0);
    CHECK(aq_linear_scratch_size(NULL, &l.linear, SIZE_MAX / 512) == 0);
#define TRY(linear, dtype, tokens, activations, size)                                              \
    aq_linear_forward(NULL, linear, x, dtype, tokens, activations, y, scratch, size, &err)
    CHECK_STATUS(TRY(NULL, AQ_DTYPE_F32, 1, NULL, sizeof scratch), AQ_ERR_ARGUMENT);
    CHECK_STATUS(TRY(&l.linear, AQ_DTYPE_F64, 1, NULL, sizeof scratch), AQ_ERR_UNSUPPORTED);
    CHECK_STATUS(TRY(&l.linear, AQ_DTYPE_F32, 1, NULL, 100), AQ_ERR_ARGUMENT);
    CHECK(strstr(err.message, "aq_linear_scratch_size") != NULL);
    CHECK_STATUS(TRY(&l.linear, AQ_DTYPE_F32, 1, &activation, sizeof scratch), AQ_ERR_ARGUMENT);
    activation.scale = (float)INFINITY;
    CHECK_STATUS(TRY(&l.linear, AQ_DTYPE_F32, 1, &activation, sizeof scratch), AQ_ERR_ARGUMENT);
    activation.scale = 1.0f;
    activation.zero_point = 129;
    CHECK_STATUS(TRY(&l.linear, AQ_DTYPE_F32, 1, &activation, sizeof scratch), AQ_ERR_ARGUMENT);
    activation.type = (aq_activation_type)3;
    CHECK_STATUS(TRY(&l.linear, AQ_DTYPE_F32, 1, &activation, sizeof scratch), AQ_ERR_ARGUMENT);
    CHECK_STATUS(TRY(&l.linear, AQ_DTYPE_F32, 0, NULL, 0), AQ_OK);
    other = l.linear;
    other.extra = NULL;
    CHECK_STATUS(TRY(&other, AQ_DTYPE_F32, 1, NULL, sizeof scratch), AQ_ERR_ARGUMENT);
    other = l.linear; /* one of GGUF's blocks */
    other.spec.code = AQ_CODE_Q4_0;
    other.spec.group_size = 32;
    CHECK_STATUS(TRY(&other, AQ_DTYPE_F32, 1, NULL, sizeof scratch), AQ_ERR_UNSUPPORTED);
    CHECK(strstr(err.message, "Q4_0") != NULL);
    other = l.linear;
    other.spec.bits = 3;
    CHECK_STATUS(TRY(&other, AQ_DTYPE_F32, 1, NULL, sizeof scratch), AQ_ERR_BIT_WIDTH);
    other = l.linear;
    other.bias_dtype = AQ_DTYPE_I8;
    CHECK_STATUS(TRY(&other, AQ_DTYPE_F32, 1, NULL, sizeof scratch), AQ_ERR_UNSUPPORTED);
    other = l.linear;
    other.rows = UINT64_MAX / 2;
    CHECK_STATUS(TRY(&other, AQ_DTYPE_F32, 1, NULL, sizeof scratch), AQ_ERR_SHAPE);
    CHECK_STATUS(aq_linear_row(NULL, &l.linear, 16, x, &err), AQ_ERR_SHAPE);
    CHECK_STATUS(aq_linear_row(NULL, &l.linear, 0, NULL, &err), AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_linear_forward(NULL, &l.linear, NULL, AQ_DTYPE_F32, 1, NULL, y, scratch,
                                   sizeof scratch, &err), AQ_ERR_ARGUMENT);
#undef TRY
    free_layer(&l);
}

TEST(empty_layers) {
    aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 64, AQ_FIT_LEAST_SQUARES, 0, 0};
    uint64_t state = 2;
    float x[4] = {1, 2, 3, 4}, y[8];
    size_t type;
    for (type = 0; type < 2; type++) {
        aq_activation activation = {AQ_ACTIVATION_FLOAT, 0, 0};
        layer l;
        activation.type = (aq_activation_type)type;
        make_layer(&l, 4, 0, spec, 1, &state); /* no inputs: the biases */
        CHECK_STATUS(forward(NULL, &l, x, AQ_DTYPE_F32, 2, &activation, y), AQ_OK);
        CHECK(memcmp(y, l.bias, 16) == 0 && memcmp(y + 4, l.bias, 16) == 0);
        free_layer(&l);
        make_layer(&l, 0, 2, spec, 1, &state);
        CHECK_STATUS(forward(NULL, &l, x, AQ_DTYPE_F32, 2, &activation, y), AQ_OK);
        free_layer(&l);
    }
}

/* ---------------------------------------------------------------- convolutions */

typedef struct picture {
    size_t images, channels, height, width;
    float *x;
} picture;

static double conv_at(const layer *l, const aq_conv2d *conv, const picture *p, size_t image,
                      size_t out, size_t oy, size_t ox) {
    double sum = l->linear.bias ? (double)l->bias[out] : 0.0;
    size_t c, ky, kx;
    for (c = 0; c < p->channels; c++) {
        for (ky = 0; ky < conv->kernel_height; ky++) {
            for (kx = 0; kx < conv->kernel_width; kx++) {
                long y = (long)(oy * conv->stride_y + ky * conv->dilation_y) - (long)conv->padding_y;
                long x = (long)(ox * conv->stride_x + kx * conv->dilation_x) - (long)conv->padding_x;
                size_t col = (c * conv->kernel_height + ky) * conv->kernel_width + kx;
                if (y >= 0 && x >= 0 && y < (long)p->height && x < (long)p->width) {
                    sum += (double)l->weights[out * l->cols + col] *
                           (double)p->x[((image * p->channels + c) * p->height + (size_t)y) *
                                            p->width + (size_t)x];
                }
            }
        }
    }
    return sum;
}

static void check_conv(const layer *l, aq_conv2d *conv, const picture *p) {
    uint64_t height = 0, width = 0;
    size_t bytes, image, out, at;
    void *scratch;
    float *y;
    conv->linear = l->linear;
    CHECK_STATUS(aq_conv2d_size(conv, p->height, p->width, &height, &width, NULL), AQ_OK);
    y = (float *)room(p->images * l->rows * (size_t)(height * width) * 4);
    bytes = aq_conv2d_scratch_size(NULL, conv, p->height, p->width);
    scratch = room(bytes);
    CHECK_STATUS(aq_conv2d_forward(NULL, conv, p->x, AQ_DTYPE_F32, p->images, p->height, p->width,
                                   NULL, y, scratch, bytes, NULL), AQ_OK);
    for (image = 0; image < p->images; image++) {
        for (out = 0; out < l->rows; out++) {
            for (at = 0; at < (size_t)(height * width); at++) {
                double expected = conv_at(l, conv, p, image, out, at / (size_t)width,
                                          at % (size_t)width);
                CHECK_RANGE(expected - 1e-4, y[(image * l->rows + out) * (size_t)(height * width) +
                                               at], expected + 1e-4);
            }
        }
    }
    CHECK_STATUS(aq_conv2d_forward(NULL, conv, p->x, AQ_DTYPE_F32, p->images, p->height, p->width,
                                   NULL, y, scratch, bytes - 1, NULL), AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_conv2d_forward(NULL, conv, p->x, AQ_DTYPE_I8, p->images, p->height, p->width,
                                   NULL, y, scratch, bytes, NULL), AQ_ERR_UNSUPPORTED);
    free(scratch);
    free(y);
}

TEST(convolutions) {
    uint64_t state = 21;
    size_t round, i;
    for (round = 0; round < 30; round++) {
        aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F32, 8, 32, AQ_FIT_LEAST_SQUARES, 0, 0};
        aq_conv2d conv;
        picture p;
        layer l;
        memset(&conv, 0, sizeof conv);
        conv.kernel_height = 1 + below(&state, 3);
        conv.kernel_width = 1 + below(&state, 3);
        conv.stride_y = 1 + below(&state, 2);
        conv.stride_x = 1 + below(&state, 3);
        conv.padding_y = below(&state, 3);
        conv.padding_x = below(&state, 3);
        conv.dilation_y = 1 + below(&state, 2);
        conv.dilation_x = 1 + below(&state, 2);
        p.images = 1 + below(&state, 2);
        p.channels = 1 + below(&state, 5);
        p.height = 5 + below(&state, 20);
        p.width = 5 + below(&state, 20);
        p.x = (float *)room(p.images * p.channels * p.height * p.width * 4);
        for (i = 0; i < p.images * p.channels * p.height * p.width; i++) {
            p.x[i] = (float)test_normal(&state);
        }
        spec.bits = round % 3 ? 8 : 16;
        make_layer(&l, 1 + below(&state, 20),
                   p.channels * conv.kernel_height * conv.kernel_width, spec, 1, &state);
        check_conv(&l, &conv, &p);
        free(p.x);
        free_layer(&l);
    }
}

TEST(convolutions_refuse) {
    aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 16, 32, AQ_FIT_LEAST_SQUARES, 0, 0};
    uint64_t height, width, state = 1;
    aq_conv2d conv;
    layer l;
    make_layer(&l, 4, 18, spec, 0, &state);
    memset(&conv, 0, sizeof conv);
    conv.linear = l.linear;
    CHECK_STATUS(aq_conv2d_size(&conv, 8, 8, &height, &width, NULL), AQ_ERR_ARGUMENT);
    conv.kernel_height = conv.kernel_width = 3;
    conv.stride_y = conv.stride_x = conv.dilation_y = conv.dilation_x = 1;
    CHECK_STATUS(aq_conv2d_size(&conv, 8, 8, &height, &width, NULL), AQ_OK);
    CHECK(height == 6 && width == 6);
    CHECK_STATUS(aq_conv2d_size(&conv, 2, 8, &height, &width, NULL), AQ_ERR_SHAPE);
    CHECK(aq_conv2d_scratch_size(NULL, &conv, 2, 8) == 0);
    CHECK(aq_conv2d_scratch_size(NULL, &conv, UINT64_MAX / 2, UINT64_MAX / 2) == 0);
    conv.kernel_width = 4;
    CHECK_STATUS(aq_conv2d_size(&conv, 8, 8, &height, &width, NULL), AQ_ERR_SHAPE);
    free_layer(&l);
}

/* ---------------------------------------------------------------- kernels */

TEST(kernels_match_the_scalar_ones) {
    const struct aq_linear_kernels *scalar = aq_simd_linear(aq_simd_kernels("scalar"));
    static const char *const names[] = {"avx2", "avx512", "neon"};
    static float w[7 * 1100], x[7 * 1100], y[2][7 * 8];
    static uint32_t in[16 * 100], out[2][100 * 16];
    static int8_t q[2][1100];
    uint64_t state = 77;
    size_t n, i, round;
    CHECK_STR(scalar->name, "scalar");
    for (n = 0; n < 3; n++) {
        const struct aq_kernels *table = aq_simd_kernels(names[n]);
        const struct aq_linear_kernels *kernels = table ? aq_simd_linear(table) : NULL;
        if (!kernels) {
            continue;
        }
        CHECK_STR(kernels->name, names[n]);
        for (round = 0; round < 200; round++) {
            size_t rows = 1 + below(&state, 7), tokens = 1 + below(&state, 7);
            size_t count = 1 + below(&state, round % 2 ? 40 : 1024), words = 1 + below(&state, 90);
            int32_t zero = (int32_t)below(&state, 257) - 128;
            for (i = 0; i < 7 * 1100; i++) {
                w[i] = (float)((int32_t)below(&state, 2000) - 1000) / 300.0f;
                x[i] = (float)((int32_t)below(&state, 2000) - 1000) / 7.0f;
            }
            memset(y, 0, sizeof y);
            scalar->product(w, 1100, rows, x, 1100, tokens, count, y[0], 8);
            kernels->product(w, 1100, rows, x, 1100, tokens, count, y[1], 8);
            CHECK(memcmp(y[0], y[1], sizeof y[0]) == 0);
            x[3] = (float)NAN;
            x[5] = 3e38f;
            scalar->to_int8(x, count, 1.37f, zero, q[0]);
            kernels->to_int8(x, count, 1.37f, zero, q[1]);
            CHECK(memcmp(q[0], q[1], count) == 0);
            for (i = 0; i < 16 * 100; i++) {
                in[i] = (uint32_t)test_random(&state);
            }
            memset(out, 0, sizeof out);
            scalar->transpose(in, 100, words, out[0]);
            kernels->transpose(in, 100, words, out[1]);
            CHECK(memcmp(out[0], out[1], sizeof out[0]) == 0);
            CHECK(out[0][16 * (words - 1) + 15] == in[15 * 100 + words - 1]);
        }
    }
}

int main(void) {
    RUN(matches_double_arithmetic);
    RUN(one_sided_tokens);
    RUN(repacked_layers);
    RUN(repacking);
    RUN(trellis_layers);
    RUN(extremes);
    RUN(not_finite);
    RUN(dtypes);
    RUN(refuses);
    RUN(empty_layers);
    RUN(convolutions);
    RUN(convolutions_refuse);
    RUN(kernels_match_the_scalar_ones);
    return test_end();
}
