/* aq_quantize and aq_dequantize: sizes, tails, extremes, errors, and the same bytes however the
 * work is cut. */
#include "test.h"

#include <fenv.h>

static const uint32_t all_bits[3] = {2, 4, 8};
static const uint32_t all_groups[4] = {32, 64, 128, 256};

/* One quantized tensor; guards of 16 bytes stand before and behind each part. */
#define GUARD 16u
typedef struct quantized {
    aq_quant_layout layout;
    uint8_t *memory[3];
    uint8_t *codes, *params, *extra;
    aq_quality quality;
} quantized;

static uint8_t *guarded(uint64_t size, uint8_t **memory) {
    *memory = (uint8_t *)malloc((size_t)size + 2 * GUARD);
    if (!*memory) {
        abort();
    }
    memset(*memory, 0xA5, (size_t)size + 2 * GUARD);
    return *memory + GUARD;
}

static int guard_holds(const uint8_t *memory, uint64_t size) {
    size_t i;
    for (i = 0; i < GUARD; i++) {
        if (memory[i] != 0xA5 || memory[GUARD + (size_t)size + i] != 0xA5) {
            return 0;
        }
    }
    return 1;
}

static int guards_hold(const quantized *q) {
    return guard_holds(q->memory[0], q->layout.code_bytes) &&
           guard_holds(q->memory[1], q->layout.param_bytes) &&
           guard_holds(q->memory[2], q->layout.extra_bytes);
}

static void quantized_open(quantized *q, const aq_quant_spec *spec, uint64_t rows, uint64_t cols) {
    CHECK_STATUS(aq_quantized_size(spec, rows, cols, &q->layout, NULL), AQ_OK);
    q->codes = guarded(q->layout.code_bytes, &q->memory[0]);
    q->params = guarded(q->layout.param_bytes, &q->memory[1]);
    q->extra = guarded(q->layout.extra_bytes, &q->memory[2]);
}

static void quantized_close(quantized *q) {
    free(q->memory[0]);
    free(q->memory[1]);
    free(q->memory[2]);
}

static aq_status quantize(quantized *q, aq_context *context, const aq_quant_spec *spec,
                          const void *weights, aq_dtype dtype, const float *column_weights,
                          aq_error *err) {
    return aq_quantize(context, spec, weights, dtype, q->layout.rows, q->layout.cols,
                       column_weights, q->codes, q->params, q->extra, &q->quality, err);
}

static int same_bytes(const quantized *a, const quantized *b) {
    return memcmp(a->codes, b->codes, (size_t)a->layout.code_bytes) == 0 &&
           memcmp(a->params, b->params, (size_t)a->layout.param_bytes) == 0 &&
           memcmp(a->extra, b->extra, (size_t)a->layout.extra_bytes) == 0;
}

static int same_quality(const aq_quality *a, const aq_quality *b) {
    return a->dot == b->dot && a->original == b->original && a->quantized == b->quantized &&
           a->error == b->error && a->max_error == b->max_error && a->count == b->count;
}

static aq_quant_spec spec_of(aq_code code, aq_param_type params, uint32_t bits, uint32_t group) {
    aq_quant_spec spec;
    spec.code = code;
    spec.params = params;
    spec.bits = bits;
    spec.group_size = group;
    spec.fit = AQ_FIT_LEAST_SQUARES;
    return spec;
}

static float *gaussian(size_t count, double sigma, uint64_t seed) {
    float *weights = (float *)malloc((count + 1) * sizeof *weights);
    size_t i;
    if (!weights) {
        abort();
    }
    for (i = 0; i < count; i++) {
        weights[i] = (float)(sigma * test_normal(&seed));
    }
    return weights;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* A parameter from the file's bytes. */
static float stored_f32(const uint8_t *bytes) {
    return float_of((uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
                    (uint32_t)bytes[3] << 24);
}

static aq_context *context_of(uint32_t threads) {
    aq_context *context = NULL;
    if (aq_context_create(AQ_ISA_AUTO, NULL, &context, NULL) != AQ_OK) {
        abort();
    }
    context->num_threads = threads;
    return context;
}

/* All bits behind the last code of every row. */
static int padding_is_zero(const quantized *q, uint32_t bits) {
    uint64_t row, bit;
    for (row = 0; row < q->layout.rows; row++) {
        const uint8_t *codes = q->codes + (size_t)(row * q->layout.row_code_bytes);
        for (bit = q->layout.cols * bits; bit < 8 * q->layout.row_code_bytes; bit++) {
            if (codes[bit / 8] >> (bit % 8) & 1) {
                return 0;
            }
        }
    }
    return 1;
}

/* Decodes, compares the quality with the one measured on the way; true when all is in order. */
static int decodes(const quantized *q, const aq_quant_spec *spec, const float *weights) {
    size_t count = (size_t)(q->layout.rows * q->layout.cols), i;
    uint8_t *memory;
    float *back = (float *)(void *)guarded(count * sizeof *back, &memory);
    aq_quality quality;
    int good;
    uint64_t block = aq_block_rows(q->layout.cols), row, rows;
    memset(&quality, 0, sizeof quality);
    good = aq_dequantize(NULL, spec, q->codes, q->params, q->extra, q->layout.rows,
                         q->layout.cols, AQ_DTYPE_F32, back, NULL) == AQ_OK;
    good = good && guard_holds(memory, count * sizeof *back) && guards_hold(q);
    for (i = 0; i < count; i++) {
        good = good && (bits_of(back[i]) & 0x7F800000u) != 0x7F800000u;
    }
    for (row = 0; row < q->layout.rows; row += rows) {
        aq_quality part;
        memset(&part, 0, sizeof part);
        rows = q->layout.rows - row < block ? q->layout.rows - row : block;
        aq_compare_block(NULL, weights + (size_t)(row * q->layout.cols),
                         back + (size_t)(row * q->layout.cols), rows, q->layout.cols, &part);
        aq_quality_add(&quality, &part);
    }
    good = good && same_quality(&quality, &q->quality) && quality.count == count;
    free(memory);
    return good;
}

/* Least SQNR that a group of any length ≥ 16 reaches on Gaussian weights, in dB. */
static double floor_db(uint32_t bits) {
    return bits == 2 ? 7.0 : bits == 4 ? 18.0 : 40.0;
}

TEST(every_tail) {
    float *weights = gaussian(3 * 600, 0.05, 1);
    uint64_t cols;
    int b, g, code, params;
    for (cols = 1; cols <= 256; cols += test_brief() && cols > 33 ? 5 : 1) {
        for (b = 0; b < 3; b++) {
            for (g = 0; g < 4; g++) {
                for (code = 0; code < 2; code++) {
                    for (params = 0; params < 3; params++) {
                        aq_quant_spec spec = spec_of((aq_code)code, (aq_param_type)params,
                                                     all_bits[b], all_groups[g]);
                        quantized q;
                        aq_status expected = params == AQ_PARAM_Q8 && cols % all_groups[g] == 1
                                                 ? AQ_ERR_QUANTIZATION : AQ_OK;
                        if (params == AQ_PARAM_F16 && b == 2 && code == AQ_CODE_SYMMETRIC) {
                            continue; /* scales near 2^-14: see parameters_that_do_not_fit */
                        }
                        quantized_open(&q, &spec, 3, cols);
                        if (b == 2 && params != AQ_PARAM_F32) {
                            size_t i; /* keeps scales above 2^-14 whatever the length */
                            for (i = 0; i < 3 * cols; i++) {
                                weights[i] *= 1024.0f;
                            }
                        }
                        CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, NULL, NULL),
                                     expected);
                        if (expected == AQ_OK) {
                            CHECK(padding_is_zero(&q, spec.bits));
                            CHECK(decodes(&q, &spec, weights));
                            if (cols >= 16) {
                                CHECK(aq_quality_sqnr_db(&q.quality) > floor_db(spec.bits));
                            }
                        }
                        CHECK(guards_hold(&q));
                        if (b == 2 && params != AQ_PARAM_F32) {
                            size_t i;
                            for (i = 0; i < 3 * cols; i++) {
                                weights[i] /= 1024.0f;
                            }
                        }
                        quantized_close(&q);
                    }
                }
            }
        }
    }
    free(weights);
}

TEST(odd_sizes) {
    static const uint64_t sizes[12] = {0, 1, 31, 33, 127, 257, 1000, 1023, 1024, 1025, 2049, 5000};
    float *weights = gaussian(5 * 5000, 0.5, 2);
    int s, b, g, code, params;
    uint64_t rows;
    for (s = 0; s < 12; s++) {
        for (b = 0; b < 3; b++) {
            for (g = 0; g < 4; g++) {
                for (code = 0; code < 2; code++) {
                    for (params = 0; params < 3; params++) {
                        aq_quant_spec spec = spec_of((aq_code)code, (aq_param_type)params,
                                                     all_bits[b], all_groups[g]);
                        if (params == AQ_PARAM_Q8 && sizes[s] % all_groups[g] == 1) {
                            continue;
                        }
                        for (rows = 0; rows < 6; rows += 5) {
                            quantized q;
                            quantized_open(&q, &spec, rows, sizes[s]);
                            CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, NULL,
                                                  NULL), AQ_OK);
                            CHECK(padding_is_zero(&q, spec.bits));
                            CHECK(decodes(&q, &spec, weights));
                            quantized_close(&q);
                        }
                    }
                }
            }
        }
    }
    free(weights);
}

/* Quantizes [2, 100] of one value and gives it back. */
static aq_status constant(const aq_quant_spec *spec, float value, float *back) {
    float weights[200], out[200];
    quantized q;
    aq_status status;
    size_t i;
    for (i = 0; i < 200; i++) {
        weights[i] = value;
    }
    quantized_open(&q, spec, 2, 100);
    status = quantize(&q, NULL, spec, weights, AQ_DTYPE_F32, NULL, NULL);
    if (status == AQ_OK) {
        CHECK(decodes(&q, spec, weights));
        CHECK_STATUS(aq_dequantize(NULL, spec, q.codes, q.params, q.extra, 2, 100, AQ_DTYPE_F32,
                                   out, NULL), AQ_OK);
        for (i = 1; i < 200; i++) {
            CHECK(bits_of(out[i]) == bits_of(out[0]));
        }
        *back = out[0];
    }
    quantized_close(&q);
    return status;
}

TEST(constants) {
    int b, g, code;
    for (b = 0; b < 3; b++) {
        for (g = 0; g < 4; g++) {
            for (code = 0; code < 2; code++) {
                static const float exact[6] = {0.0f, 0.75f, -3.0f, 1.5f, -0.0625f, 40000.0f};
                static const float any[8] = {0.1f, -1e-45f, 1e-40f, 3e38f, -3.4028235e38f, 1e-9f,
                                             -0.333333f, 70000.0f};
                aq_quant_spec spec = spec_of((aq_code)code, AQ_PARAM_F16, all_bits[b],
                                             all_groups[g]);
                float back = 1.0f;
                int i;
                for (i = 0; i < 6; i++) {
                    CHECK_STATUS(constant(&spec, exact[i], &back), AQ_OK);
                    CHECK(back == exact[i]);
                }
                CHECK_STATUS(constant(&spec, -0.0f, &back), AQ_OK);
                CHECK(bits_of(back) == 0);
                CHECK_STATUS(constant(&spec, 70000.0f, &back), AQ_ERR_QUANTIZATION);
                CHECK_STATUS(constant(&spec, 1e-9f, &back), AQ_ERR_QUANTIZATION);
                CHECK_STATUS(constant(&spec, 0.1f, &back), AQ_OK);
                CHECK_RANGE(0.0999, back, 0.1001);
                spec.params = AQ_PARAM_F32;
                for (i = 0; i < 8; i++) {
                    CHECK_STATUS(constant(&spec, any[i], &back), AQ_OK);
                    CHECK(bits_of(back) == bits_of(any[i]));
                }
                spec.params = AQ_PARAM_Q8;
                CHECK_STATUS(constant(&spec, 0.5f, &back), AQ_ERR_QUANTIZATION);
            }
        }
    }
}

/* Zeros of both signs among weights, and groups of nothing but zeros of both signs. */
TEST(signed_zeros) {
    float weights[256];
    int code, b;
    size_t i;
    for (i = 0; i < 256; i++) {
        weights[i] = i < 128 ? (i % 3 == 0 ? 0.25f : i % 2 ? 0.0f : -0.0f) : i % 2 ? -0.0f : 0.0f;
    }
    for (code = 0; code < 2; code++) {
        for (b = 0; b < 3; b++) {
            aq_quant_spec spec = spec_of((aq_code)code, AQ_PARAM_F16, all_bits[b], 32);
            float out[256];
            quantized q;
            quantized_open(&q, &spec, 1, 256);
            CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
            CHECK(decodes(&q, &spec, weights));
            CHECK_STATUS(aq_dequantize(NULL, &spec, q.codes, q.params, NULL, 1, 256, AQ_DTYPE_F32,
                                       out, NULL), AQ_OK);
            for (i = 0; i < 256; i++) {
                CHECK_RANGE(weights[i] - 2e-4f, out[i], weights[i] + 2e-4f);
                CHECK(i < 128 || bits_of(out[i]) == 0);
            }
            quantized_close(&q);
        }
    }
}

/* Weights times a power of two have the same codes, and parameters times that power. */
TEST(scaled_by_powers_of_two) {
    static const int exponents[10] = {-100, -90, -70, -45, -41, 41, 43, 60, 90, 120};
    float *weights = gaussian(1000, 1.0, 3), scaled[1000];
    int e, b, code;
    size_t i;
    for (code = 0; code < 2; code++) {
        for (b = 0; b < 3; b++) {
            aq_quant_spec spec = spec_of((aq_code)code, AQ_PARAM_F32, all_bits[b], 128);
            quantized plain;
            quantized_open(&plain, &spec, 1, 1000);
            CHECK_STATUS(quantize(&plain, NULL, &spec, weights, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
            for (e = 0; e < 10; e++) {
                quantized q;
                quantized_open(&q, &spec, 1, 1000);
                for (i = 0; i < 1000; i++) {
                    scaled[i] = (float)ldexp((double)weights[i], exponents[e]);
                }
                CHECK_STATUS(quantize(&q, NULL, &spec, scaled, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
                CHECK(memcmp(q.codes, plain.codes, (size_t)q.layout.code_bytes) == 0);
                for (i = 0; i < (size_t)q.layout.param_bytes / 4; i++) {
                    float a = stored_f32(q.params + 4 * i), p = stored_f32(plain.params + 4 * i);
                    CHECK(a == (float)ldexp((double)p, exponents[e]));
                }
                CHECK(decodes(&q, &spec, scaled));
                CHECK_RANGE(aq_quality_sqnr_db(&plain.quality) - 1e-4,
                            aq_quality_sqnr_db(&q.quality),
                            aq_quality_sqnr_db(&plain.quality) + 1e-4);
                quantized_close(&q);
            }
            quantized_close(&plain);
        }
    }
    free(weights);
}

/* Denormals, and weights next to the largest float. */
TEST(denormal_and_huge) {
    static const float units[4] = {1e-43f, 1e-41f, 1e-38f, 4e37f};
    float *weights = gaussian(1024, 1.0, 4), scaled[1024], out[1024];
    int u, b, g, code;
    size_t i;
    for (u = 0; u < 4; u++) {
        for (code = 0; code < 2; code++) {
            for (b = 0; b < 3; b++) {
                for (g = 0; g < 4; g++) {
                    aq_quant_spec spec = spec_of((aq_code)code, AQ_PARAM_F32, all_bits[b],
                                                 all_groups[g]);
                    quantized q;
                    quantized_open(&q, &spec, 1, 1024);
                    for (i = 0; i < 1024; i++) {
                        scaled[i] = weights[i] * units[u];
                    }
                    CHECK_STATUS(quantize(&q, NULL, &spec, scaled, AQ_DTYPE_F32, NULL, NULL),
                                 AQ_OK);
                    CHECK(decodes(&q, &spec, scaled));
                    /* at 1e-43 a weight is some seventy steps of the type: few dB to keep */
                    CHECK_RANGE(u == 0 && b == 2 ? 25.0 : floor_db(spec.bits),
                                aq_quality_sqnr_db(&q.quality), 1000.0);
                    quantized_close(&q);
                }
            }
        }
    }
    for (code = 0; code < 2; code++) { /* a range that no float holds: finite all the same */
        for (b = 0; b < 3; b++) {
            aq_quant_spec spec = spec_of((aq_code)code, AQ_PARAM_F32, all_bits[b], 64);
            quantized q;
            quantized_open(&q, &spec, 1, 1024);
            for (i = 0; i < 1024; i++) {
                scaled[i] = i % 2 ? 3.4028235e38f : -3.4028235e38f;
            }
            scaled[7] = 1.0f;
            CHECK_STATUS(quantize(&q, NULL, &spec, scaled, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
            CHECK_STATUS(aq_dequantize(NULL, &spec, q.codes, q.params, NULL, 1, 1024, AQ_DTYPE_F32,
                                       out, NULL), AQ_OK);
            for (i = 0; i < 1024; i++) {
                CHECK((bits_of(out[i]) & 0x7F800000u) != 0x7F800000u);
                CHECK(i == 7 || (out[i] < 0.0f) == (scaled[i] < 0.0f));
            }
            quantized_close(&q);
        }
    }
    free(weights);
}

/* A few values beside each other, far from zero. */
TEST(narrow_groups) {
    float weights[96], out[96];
    int b;
    size_t i;
    for (i = 0; i < 96; i++) {
        weights[i] = i < 32   ? float_of(0x3F800000u + (uint32_t)(i % 2))
                     : i < 64 ? 1000.0f + (float)(i % 3) * 0.25f
                              : float_of(1u + (uint32_t)(i % 2));
    }
    for (b = 0; b < 3; b++) {
        aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F32, all_bits[b], 32);
        quantized q;
        quantized_open(&q, &spec, 1, 96);
        CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
        CHECK_STATUS(aq_dequantize(NULL, &spec, q.codes, q.params, NULL, 1, 96, AQ_DTYPE_F32, out,
                                   NULL), AQ_OK);
        for (i = 0; i < 96; i++) {
            CHECK_RANGE(weights[i] - 0.05f * (i >= 32 && i < 64), out[i],
                        weights[i] + 0.05f * (i >= 32 && i < 64));
        }
        quantized_close(&q);
    }
}

/* Weights that lie on a grid come back as they were. */
TEST(already_quantized) {
    int b, g;
    uint64_t seed = 5;
    size_t i;
    for (b = 0; b < 3; b++) {
        for (g = 0; g < 4; g++) {
            aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F16, all_bits[b], all_groups[g]);
            float weights[512];
            quantized q;
            uint32_t top = (1u << spec.bits) - 1u;
            for (i = 0; i < 512; i++) {
                uint32_t code = i % 32 == 0 ? 0 : i % 32 == 1 ? top
                                                  : (uint32_t)(test_random(&seed) % (top + 1));
                weights[i] = 0.125f * (float)code - 0.5f;
            }
            quantized_open(&q, &spec, 1, 512);
            CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
            CHECK(q.quality.error == 0.0);
            CHECK(decodes(&q, &spec, weights));
            quantized_close(&q);
        }
    }
}

TEST(not_finite) {
    static const uint32_t bad[4] = {0x7FC00000u, 0x7F800000u, 0xFF800000u, 0x7F800001u};
    static const uint64_t places[6] = {0, 1, 1023, 1024, 123456, 599999};
    float *weights = gaussian(600 * 1000, 1.0, 6), saved;
    int b, p, params;
    uint32_t threads;
    for (threads = test_brief() ? 3 : 1; threads <= 3; threads += 2) {
        aq_context *context = context_of(threads);
        for (b = 0; b < 4; b += test_brief() ? 2 : 1) {
            for (p = 0; p < 6; p++) {
                for (params = 0; params < 3; params += 2) {
                    aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, (aq_param_type)params, 8, 64);
                    aq_error err;
                    quantized q;
                    quantized_open(&q, &spec, 600, 1000);
                    saved = weights[places[p]];
                    weights[places[p]] = float_of(bad[b]);
                    if (p < 5) {
                        weights[places[p + 1]] = float_of(bad[0]); /* the first one is reported */
                    }
                    CHECK_STATUS(quantize(&q, context, &spec, weights, AQ_DTYPE_F32, NULL, &err),
                                 AQ_ERR_QUANTIZATION);
                    CHECK(err.offset == places[p]);
                    CHECK(strstr(err.message, b == 0 || b == 3 ? "NaN" : "infinity") != NULL);
                    CHECK(guards_hold(&q));
                    weights[places[p]] = saved;
                    if (p < 5) {
                        weights[places[p + 1]] = 0.5f;
                    }
                    quantized_close(&q);
                }
            }
        }
        aq_context_destroy(context);
    }
    free(weights);
}

/* Every float type gives what its values in F32 give; unaligned buffers give the same bytes. */
TEST(types_and_alignment) {
    static const aq_dtype types[6] = {AQ_DTYPE_F64, AQ_DTYPE_F32, AQ_DTYPE_F16,
                                      AQ_DTYPE_BF16, AQ_DTYPE_F8_E4M3, AQ_DTYPE_F8_E5M2};
    float *gauss = gaussian(7 * 300, 1.0, 7), widened[2100];
    uint8_t bytes[2100 * 8 + 1], codes[7 * 152 + 1], params[7 * 40 + 1];
    int t;
    size_t i;
    for (t = 0; t < 6; t++) {
        aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 32);
        size_t size = aq_dtype_size(types[t]);
        quantized q;
        for (i = 0; i < 2100; i++) {
            double wide = (double)gauss[i];
            uint8_t small = (uint8_t)(i * 7 % 111 + (i % 2 ? 128 : 0)); /* finite in both F8 */
            if (size == 8) {
                memcpy(bytes + 1 + 8 * i, &wide, 8);
            } else if (size == 1) {
                bytes[1 + i] = small;
            } else {
                aq_from_f32(NULL, types[t], &gauss[i], bytes + 1 + size * i, 1);
            }
        }
        aq_to_f32(NULL, types[t], bytes + 1, widened, 2100);
        quantized_open(&q, &spec, 7, 300);
        CHECK_STATUS(quantize(&q, NULL, &spec, widened, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
        CHECK(q.layout.code_bytes == sizeof codes - 1 && q.layout.param_bytes == sizeof params - 1);
        CHECK_STATUS(aq_quantize(NULL, &spec, bytes + 1, types[t], 7, 300, NULL, codes + 1,
                                 params + 1, NULL, NULL, NULL), AQ_OK);
        CHECK(memcmp(codes + 1, q.codes, sizeof codes - 1) == 0);
        CHECK(memcmp(params + 1, q.params, sizeof params - 1) == 0);
        quantized_close(&q);
    }
    free(gauss);
}

TEST(dequantize_types) {
    float *weights = gaussian(9 * 1111, 1.0, 8), *back = gaussian(9 * 1111, 1.0, 8);
    uint8_t *raw = (uint8_t *)malloc(9 * 1111 * 4 + 1), *expected = (uint8_t *)malloc(9 * 1111 * 4);
    static const aq_dtype types[3] = {AQ_DTYPE_F32, AQ_DTYPE_F16, AQ_DTYPE_BF16};
    int t, params;
    if (!raw || !expected) {
        abort();
    }
    for (params = 0; params < 3; params++) {
        aq_quant_spec spec = spec_of(AQ_CODE_SYMMETRIC, (aq_param_type)params, 4, 64);
        quantized q;
        quantized_open(&q, &spec, 9, 1111);
        CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
        aq_dequantize_block(NULL, &spec, q.codes, q.params, q.extra, 9, 1111, back);
        for (t = 0; t < 3; t++) {
            size_t size = aq_dtype_size(types[t]);
            aq_from_f32(NULL, types[t], back, expected, 9 * 1111);
            CHECK_STATUS(aq_dequantize(NULL, &spec, q.codes, q.params, q.extra, 9, 1111, types[t],
                                       raw + 1, NULL), AQ_OK);
            CHECK(memcmp(raw + 1, expected, 9 * 1111 * size) == 0);
            CHECK_STATUS(aq_dequantize(NULL, &spec, q.codes + 4 * q.layout.row_code_bytes,
                                       q.params + 4 * q.layout.row_param_bytes,
                                       q.extra + 4 * q.layout.row_extra_bytes, 3, 1111, types[t],
                                       raw, NULL), AQ_OK); /* rows 4 … 6 */
            CHECK(memcmp(raw, expected + 4 * 1111 * size, 3 * 1111 * size) == 0);
        }
        quantized_close(&q);
    }
    free(weights);
    free(back);
    free(raw);
    free(expected);
}

TEST(threads_and_pieces) {
    static const uint32_t threads[4] = {1, 2, 3, 8};
    const uint64_t rows = test_brief() ? 500 : 1000, cols = 1111; /* five blocks, or three */
    float *weights = gaussian((size_t)(rows * cols), 0.3, 9);
    float *column_weights = gaussian((size_t)cols, 1.0, 10);
    int t, params, weighted;
    size_t i;
    for (i = 0; i < cols; i++) {
        column_weights[i] *= column_weights[i];
    }
    for (params = 0; params < 3; params += test_brief() ? 2 : 1) {
        for (weighted = 0; weighted < 2; weighted++) {
            aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, (aq_param_type)params, 4, 128);
            const float *importance = weighted ? column_weights : NULL;
            quantized first, other;
            aq_quality folded;
            uint64_t row, block = aq_block_rows(cols), step;
            quantized_open(&first, &spec, rows, cols);
            quantized_open(&other, &spec, rows, cols);
            for (t = 0; t < 4; t += test_brief() ? 2 : 1) {
                aq_context *context = context_of(threads[t]);
                quantized *q = t ? &other : &first;
                CHECK_STATUS(quantize(q, context, &spec, weights, AQ_DTYPE_F32, importance, NULL),
                             AQ_OK);
                CHECK(same_bytes(q, &first));
                CHECK(same_quality(&q->quality, &first.quality));
                aq_context_destroy(context);
            }
            memset(other.codes, 0xEE, (size_t)other.layout.code_bytes);
            memset(&folded, 0, sizeof folded);
            for (row = 0; row < rows; row += step) { /* pieces of 1, 2, 3 … rows */
                aq_block_outcome outcome;
                step = row % 7 + 1 < rows - row ? row % 7 + 1 : rows - row;
                aq_quantize_block(NULL, &spec, weights + row * cols, AQ_DTYPE_F32, step, cols,
                                  importance, other.codes + row * first.layout.row_code_bytes,
                                  other.params + row * first.layout.row_param_bytes,
                                  other.extra + row * first.layout.row_extra_bytes, &outcome);
                CHECK(!outcome.needs_f32 && !outcome.needs_wide && !outcome.not_finite);
            }
            CHECK(same_bytes(&first, &other));
            for (row = 0; row < rows; row += step) { /* the documented fold */
                aq_block_outcome outcome;
                step = block < rows - row ? block : rows - row;
                aq_quantize_block(NULL, &spec, weights + row * cols, AQ_DTYPE_F32, step, cols,
                                  importance, other.codes, other.params, other.extra, &outcome);
                aq_quality_add(&folded, &outcome.quality);
            }
            CHECK(same_quality(&folded, &first.quality));
            quantized_close(&first);
            quantized_close(&other);
        }
    }
    free(weights);
    free(column_weights);
}

TEST(column_weights) {
    float *weights = gaussian(20 * 600, 0.3, 11), importance[600];
    int b, code, kind;
    size_t i;
    for (code = 0; code < 2; code++) {
        for (b = 0; b < 3; b++) {
            aq_quant_spec spec = spec_of((aq_code)code, AQ_PARAM_F32, all_bits[b], 128);
            quantized plain, q, reference;
            quantized_open(&plain, &spec, 20, 600);
            quantized_open(&reference, &spec, 20, 600);
            quantized_open(&q, &spec, 20, 600);
            CHECK_STATUS(quantize(&plain, NULL, &spec, weights, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
            for (kind = 0; kind < 5; kind++) {
                static const float units[5] = {1.0f, 0.0f, 1.0f, 1e-37f, 1e36f};
                uint64_t seed = 12;
                for (i = 0; i < 600; i++) {
                    float spread = kind < 2 ? 1.0f : (float)(test_uniform(&seed) * 64.0);
                    importance[i] = spread * units[kind];
                }
                CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, importance, NULL),
                             AQ_OK);
                CHECK(decodes(&q, &spec, weights));
                if (kind < 2) { /* all one, all zero: as none */
                    CHECK(same_bytes(&q, &plain));
                }
            }
            for (kind = 0; kind < 3; kind++) { /* powers of two change nothing */
                static const int exponents[3] = {0, -120, 100};
                uint64_t seed = 13;
                for (i = 0; i < 600; i++) {
                    importance[i] = (float)ldexp(floor(test_uniform(&seed) * 64.0),
                                                 exponents[kind]);
                }
                CHECK_STATUS(quantize(kind ? &q : &reference, NULL, &spec, weights, AQ_DTYPE_F32,
                                      importance, NULL), AQ_OK);
                if (kind) {
                    CHECK(same_bytes(&q, &reference));
                }
            }
            for (kind = 0; kind < 3; kind++) { /* next to nothing, or one column, counts */
                for (i = 0; i < 600; i++) {
                    importance[i] = kind == 0 ? 1e-44f : i % 128 == 5 ? 1.0f : kind == 1 ? 0.0f
                                                                                          : 1e-30f;
                }
                CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, importance, NULL),
                             AQ_OK);
                CHECK(decodes(&q, &spec, weights));
            }
            quantized_close(&plain);
            quantized_close(&reference);
            quantized_close(&q);
        }
    }
    free(weights);
}

/* The column that alone counts is hit exactly; those that count more are hit better. */
TEST(column_weights_steer) {
    float *weights = gaussian(64 * 128, 1.0, 14), importance[128], *back = gaussian(64 * 128, 1, 1);
    aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F32, 2, 128);
    double error[2][2] = {{0, 0}, {0, 0}};
    int pass;
    size_t i;
    quantized q;
    quantized_open(&q, &spec, 64, 128);
    for (pass = 0; pass < 2; pass++) {
        for (i = 0; i < 128; i++) {
            importance[i] = i % 4 == 0 ? 50.0f : 1.0f;
        }
        CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, pass ? importance : NULL,
                              NULL), AQ_OK);
        aq_dequantize_block(NULL, &spec, q.codes, q.params, NULL, 64, 128, back);
        for (i = 0; i < 64 * 128; i++) {
            double difference = (double)back[i] - (double)weights[i];
            error[pass][i % 4 == 0] += difference * difference;
        }
    }
    CHECK_RANGE(0.0, error[1][1] / error[0][1], 0.95);
    for (i = 0; i < 128; i++) {
        importance[i] = i == 77 ? 1.0f : 0.0f;
    }
    CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, importance, NULL), AQ_OK);
    aq_dequantize_block(NULL, &spec, q.codes, q.params, NULL, 64, 128, back);
    for (i = 77; i < 64 * 128; i += 128) {
        CHECK_RANGE(weights[i] - 1e-6f, back[i], weights[i] + 1e-6f);
    }
    quantized_close(&q);
    free(weights);
    free(back);
}

/* Nothing weighs but what lies far below the largest value, whose scale has hardly an inverse. */
TEST(faint_weights) {
    static const float largest[] = {1.0f, -1.0f, 1e30f, -1e30f, 1e-3f};
    static const float faint[] = {1e-12f, 1e-26f, 1e-30f, 1e-36f, 1e-39f, 3e-44f};
    float x[32], columns[32], back[32];
    size_t i, j, k, bits;
    int code;
    for (i = 0; i < sizeof largest / sizeof *largest; i++) {
        for (j = 0; j < sizeof faint / sizeof *faint; j++) {
            for (bits = 0; bits < 3; bits++) {
                for (code = 0; code <= (int)AQ_CODE_SYMMETRIC; code++) {
                    aq_quant_spec spec;
                    quantized q;
                    memset(&spec, 0, sizeof spec);
                    spec.code = (aq_code)code;
                    spec.params = AQ_PARAM_F32;
                    spec.bits = all_bits[bits];
                    spec.group_size = 32;
                    for (k = 0; k < 32; k++) {
                        x[k] = k == 5 ? largest[i] : faint[j] * (float)((int)(k * 7 % 32) - 16) / 16.0f;
                        columns[k] = k == 5 ? 0.0f : 0.25f + (float)(k % 3);
                    }
                    quantized_open(&q, &spec, 1, 32);
                    CHECK_STATUS(quantize(&q, NULL, &spec, x, AQ_DTYPE_F32, columns, NULL), AQ_OK);
                    CHECK_STATUS(aq_dequantize(NULL, &spec, q.codes, q.params, q.extra, 1, 32,
                                               AQ_DTYPE_F32, back, NULL), AQ_OK);
                    for (k = 0; k < 32; k++) { /* no NaN; so far below 1e30 all are alike */
                        float most = fabsf(largest[i]) > 1.0f ? 1e-6f * fabsf(largest[i])
                                                              : 4.0f * faint[j];
                        CHECK(fabsf(back[k]) <= (k == 5 ? FLT_MAX : most));
                    }
                    quantized_close(&q);
                }
            }
        }
    }
}

TEST(bad_column_weights) {
    static const uint32_t bad[3] = {0x7FC00000u, 0x7F800000u, 0xBF800000u};
    aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 32);
    float weights[64] = {1.0f}, importance[64];
    quantized q;
    aq_error err;
    int b;
    quantized_open(&q, &spec, 1, 64);
    for (b = 0; b < 3; b++) {
        memset(importance, 0, sizeof importance);
        importance[3] = -0.0f;
        importance[40] = float_of(bad[b]);
        CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, importance, &err),
                     AQ_ERR_ARGUMENT);
        CHECK(strstr(err.message, "column 40") != NULL);
    }
    quantized_close(&q);
}

/* What fits no F16 asks for F32; what fits no Q8 asks for F16; the flags say which. */
TEST(parameters_that_do_not_fit) {
    float *weights = gaussian(256, 1e-4, 15), row[256];
    aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F16, 8, 64);
    aq_block_outcome outcome;
    aq_error err;
    quantized q;
    size_t i;
    quantized_open(&q, &spec, 1, 256);
    CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, NULL, &err),
                 AQ_ERR_QUANTIZATION);
    CHECK(strstr(err.message, "AQ_PARAM_F32") != NULL);
    for (i = 0; i < 256; i++) {
        row[i] = weights[i] * 1e4f;
    }
    CHECK_STATUS(quantize(&q, NULL, &spec, row, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
    row[130] = -70000.0f;
    CHECK_STATUS(quantize(&q, NULL, &spec, row, AQ_DTYPE_F32, NULL, &err), AQ_ERR_QUANTIZATION);
    CHECK(err.offset == 128);
    spec.params = AQ_PARAM_F32;
    quantized_close(&q);
    quantized_open(&q, &spec, 1, 256);
    CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
    quantized_close(&q);
    spec.params = AQ_PARAM_Q8;
    quantized_open(&q, &spec, 1, 256);
    CHECK_STATUS(quantize(&q, NULL, &spec, row, AQ_DTYPE_F32, NULL, &err), AQ_ERR_QUANTIZATION);
    row[130] = 1.0f;
    CHECK_STATUS(quantize(&q, NULL, &spec, row, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
    for (i = 192; i < 256; i++) {
        row[i] = 0.5f;
    }
    aq_quantize_block(NULL, &spec, row, AQ_DTYPE_F32, 1, 256, NULL, q.codes, q.params, q.extra,
                      &outcome);
    CHECK(outcome.needs_wide && !outcome.needs_f32 && outcome.bad_index == 192);
    aq_quantize_block(NULL, &spec, weights, AQ_DTYPE_F32, 1, 256, NULL, q.codes, q.params, q.extra,
                      &outcome);
    CHECK(outcome.needs_f32 && !outcome.needs_wide);
    quantized_close(&q);
    free(weights);
}

/* Q8: the row's pair holds every group, whether its fit was kept or made again. */
TEST(q8_rows_of_any_length) {
    const uint64_t cols = 32 * 700 + 5;
    float *weights = gaussian((size_t)cols, 0.1, 16);
    int code;
    size_t i;
    for (code = 0; code < 2; code++) {
        aq_quant_spec spec = spec_of((aq_code)code, AQ_PARAM_Q8, 4, 32), exact = spec;
        quantized q, full;
        size_t values = code == AQ_CODE_AFFINE ? 2 : 1;
        uint16_t half;
        float scale, min = 0.0f;
        exact.params = AQ_PARAM_F32;
        quantized_open(&q, &spec, 1, cols);
        quantized_open(&full, &exact, 1, cols);
        CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
        CHECK_STATUS(quantize(&full, NULL, &exact, weights, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
        CHECK(aq_quality_sqnr_db(&q.quality) > aq_quality_sqnr_db(&full.quality) - 0.1);
        half = (uint16_t)(q.extra[0] | q.extra[1] << 8);
        scale = aq_simd_from_f16(half);
        if (values == 2) {
            half = (uint16_t)(q.extra[2] | q.extra[3] << 8);
            min = aq_simd_from_f16(half);
        }
        for (i = 0; i < (size_t)q.layout.groups; i++) {
            const uint8_t *bytes = q.params + values * i;
            float wanted[2] = {0, 0};
            wanted[0] = stored_f32(full.params + 4 * values * i);
            wanted[1] = values == 2 ? stored_f32(full.params + 4 * values * i + 4) : 0.0f;
            if (values == 2) {
                CHECK_RANGE(-0.51, wanted[0] * 256.0f / scale - 1.0f - (float)bytes[0], 0.51);
                CHECK(wanted[0] <= scale);
                CHECK_RANGE(-9.0, wanted[1] * 128.0f / min -
                                      (float)(bytes[1] < 128 ? bytes[1] : bytes[1] - 256), 9.0);
            } else {
                CHECK_RANGE(-0.51, wanted[0] * 128.0f / scale -
                                       (float)(bytes[0] < 128 ? bytes[0] : bytes[0] - 256), 0.51);
            }
        }
        quantized_close(&q);
        quantized_close(&full);
    }
    free(weights);
}

/* Plain min/max is one of the candidates: no group is ever worse than it. */
TEST(never_worse_than_min_max) {
    uint64_t seed = 17;
    int b, g, trial;
    size_t i;
    for (b = 0; b < 3; b++) {
        for (g = 0; g < 4; g++) {
            aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F32, all_bits[b], all_groups[g]);
            for (trial = 0; trial < 60; trial++) {
                float weights[256], low = FLT_MAX, high = -FLT_MAX;
                size_t count = all_groups[g] - (size_t)trial % 7;
                double error = 0.0, top = (double)((1u << spec.bits) - 1u), step;
                quantized q;
                for (i = 0; i < count; i++) {
                    double z = test_normal(&seed);
                    weights[i] = (float)(trial % 3 == 0 ? z : trial % 3 == 1 ? z * z * z : exp(z));
                    low = weights[i] < low ? weights[i] : low;
                    high = weights[i] > high ? weights[i] : high;
                }
                step = ((double)high - (double)low) / top;
                for (i = 0; i < count; i++) {
                    double x = ((double)weights[i] - (double)low) / step;
                    double difference = (x - floor(x + 0.5)) * step;
                    error += difference * difference;
                }
                quantized_open(&q, &spec, 1, count);
                CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
                CHECK(q.quality.error <= error * (1.0 + 1e-4));
                quantized_close(&q);
            }
        }
    }
}

#if defined(__SSE2__) && defined(__GNUC__)
#  define PLAIN_MODE 0x1F80u
#  define ODD_MODE 0x9FC0u /* flush to zero, denormals are zero */
static uint32_t host_mode(void) {
    uint32_t mode;
    __asm__ __volatile__("stmxcsr %0" : "=m"(mode));
    return mode & 0xFFC0u;
}
static void set_host_mode(uint32_t mode) {
    __asm__ __volatile__("ldmxcsr %0" : : "m"(mode));
}
#elif defined(__aarch64__) && defined(__GNUC__)
#  define PLAIN_MODE 0u
#  define ODD_MODE 0x07000000u /* other halves, default NaN, flush to zero */
static uint32_t host_mode(void) {
    uint64_t mode;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(mode));
    return (uint32_t)mode;
}
static void set_host_mode(uint32_t mode) {
    __asm__ __volatile__("msr fpcr, %0" : : "r"((uint64_t)mode));
}
#endif

/* The rounding mode and the denormal mode of the host neither matter nor change. */
TEST(host_floating_point_mode) {
#ifdef FE_UPWARD
    static const int modes[3] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    float *weights = gaussian(8 * 700, 1.0, 18), *scaled = gaussian(8 * 700, 1e-41, 18);
    int m, params;
#  ifdef ODD_MODE
    static uint16_t infinite[8 * 700]; /* halves */
    infinite[5] = 0x7C00;
#  endif
    for (params = 0; params < 3; params++) {
        aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, (aq_param_type)params, 4, 64);
        const float *input = params == AQ_PARAM_F32 ? scaled : weights;
        quantized plain, q;
        quantized_open(&plain, &spec, 8, 700);
        quantized_open(&q, &spec, 8, 700);
        CHECK_STATUS(quantize(&plain, NULL, &spec, input, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
        for (m = 0; m < 3; m++) {
            fesetround(modes[m]);
            CHECK_STATUS(quantize(&q, NULL, &spec, input, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
            CHECK(fegetround() == modes[m]);
            fesetround(FE_TONEAREST);
            CHECK(same_bytes(&plain, &q) && q.quality.error == plain.quality.error);
        }
#  ifdef ODD_MODE
        set_host_mode(ODD_MODE);
        CHECK_STATUS(quantize(&q, NULL, &spec, infinite, AQ_DTYPE_F16, NULL, NULL),
                     AQ_ERR_QUANTIZATION);
        CHECK_STATUS(quantize(&q, NULL, &spec, input, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
        CHECK(host_mode() == ODD_MODE);
        set_host_mode(PLAIN_MODE);
        CHECK(same_bytes(&plain, &q) && q.quality.error == plain.quality.error);
#  endif
        quantized_close(&plain);
        quantized_close(&q);
    }
    free(weights);
    free(scaled);
#endif
}

/* Every magnitude that F32 has, in groups of one magnitude and in mixed ones: the error stays within
 * half a step, a step of symmetric codes at 4 bits, where one side has a code more. */
TEST(fast_fit) {
    const uint64_t rows = 24, cols = 300;
    float *weights = gaussian((size_t)(rows * cols), 1.0, 77);
    float *decoded = (float *)malloc((size_t)(rows * cols) * sizeof *decoded);
    uint32_t b;
    int code;
    size_t i;
    for (i = 0; i < (size_t)(rows * cols); i++) {
        int exponent = (int)(i / 64 % 23) * 11 - 124;
        weights[i] = i / 64 % 9 == 4 ? weights[i / 64] : (float)ldexp((double)weights[i], exponent);
    }
    for (code = 0; code < 2; code++) {
        for (b = 0; b < 3; b++) {
            aq_quant_spec spec = spec_of((aq_code)code, AQ_PARAM_F32, all_bits[b], 64);
            quantized q;
            double top = (double)((1u << all_bits[b]) - 1u);
            spec.fit = AQ_FIT_FAST;
            quantized_open(&q, &spec, rows, cols);
            CHECK_STATUS(quantize(&q, NULL, &spec, weights, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
            CHECK_STATUS(aq_dequantize(NULL, &spec, q.codes, q.params, q.extra, rows, cols,
                                       AQ_DTYPE_F32, decoded, NULL), AQ_OK);
            CHECK(guards_hold(&q));
            for (i = 0; i < (size_t)(rows * cols); i++) {
                size_t row = i / (size_t)cols * (size_t)cols, j;
                size_t first = row + i % (size_t)cols / 64 * 64;
                size_t end = first + 64 < row + (size_t)cols ? first + 64 : row + (size_t)cols;
                double low = (double)weights[first], high = low, step, least;
                for (j = first; j < end; j++) {
                    low = (double)weights[j] < low ? (double)weights[j] : low;
                    high = (double)weights[j] > high ? (double)weights[j] : high;
                }
                step = (high - low) / top;
                if (code == 1) {
                    double most = -low > high ? -low : high;
                    step = b == 1 ? most / 4.0
                                  : most / ((double)(1u << (all_bits[b] - 1u)) - 1.0);
                }
                least = ldexp(1.0, -149) * (top + 1.0); /* the scale itself is rounded to 2^-149 */
                CHECK(fabs((double)weights[i] - (double)decoded[i]) <=
                      step * (0.5 + 1e-5) + (fabs(low) + fabs(high)) * 1e-6 + least);
            }
            quantized_close(&q);
        }
    }
    free(weights);
    free(decoded);
}

TEST(errors) {
    const int unknown_fit = 7;
    aq_quant_spec good = spec_of(AQ_CODE_AFFINE, AQ_PARAM_Q8, 4, 64), spec;
    float weights[128] = {1.0f, 2.0f};
    uint8_t codes[64], params[4], extra[4];
    aq_quant_layout layout;
    aq_error err;
    uint64_t big = UINT64_C(1) << 62;
    spec = good;
    spec.bits = 3;
    CHECK_STATUS(aq_quantized_size(&spec, 1, 128, &layout, &err), AQ_ERR_BIT_WIDTH);
    CHECK(strstr(err.message, "3") != NULL);
    spec = good;
    spec.group_size = 48;
    CHECK_STATUS(aq_quantized_size(&spec, 1, 128, &layout, &err), AQ_ERR_GROUP_SIZE);
    CHECK_STATUS(aq_quantized_size(&good, big, 8, &layout, &err), AQ_ERR_SHAPE);
    CHECK_STATUS(aq_quantized_size(&good, 8, UINT64_MAX, &layout, &err), AQ_ERR_SHAPE);
    CHECK_STATUS(aq_quantized_size(&good, 1, UINT64_MAX - 5, &layout, NULL), AQ_OK);
    CHECK_STATUS(aq_quantize(NULL, NULL, weights, AQ_DTYPE_F32, 1, 128, NULL, codes, params, extra,
                             NULL, &err), AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_quantize(NULL, &good, NULL, AQ_DTYPE_F32, 1, 128, NULL, codes, params, extra,
                             NULL, &err), AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_quantize(NULL, &good, weights, AQ_DTYPE_F32, 1, 128, NULL, codes, params, NULL,
                             NULL, &err), AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_quantize(NULL, &good, weights, AQ_DTYPE_I8, 1, 128, NULL, codes, params, extra,
                             NULL, &err), AQ_ERR_UNSUPPORTED);
    spec = good;
    memcpy(&spec.fit, &unknown_fit, sizeof spec.fit); /* no cast of C++ gives it */
    CHECK_STATUS(aq_quantize(NULL, &spec, weights, AQ_DTYPE_F32, 1, 128, NULL, codes, params, extra,
                             NULL, &err), AQ_ERR_ARGUMENT);
    CHECK(strstr(err.message, "fit is 7") != NULL);
    spec.fit = AQ_FIT_FAST;
    CHECK_STATUS(aq_quantize(NULL, &spec, weights, AQ_DTYPE_F32, 1, 128, weights, codes, params,
                             extra, NULL, &err), AQ_ERR_ARGUMENT);
    CHECK(strstr(err.message, "column weights") != NULL);
    CHECK_STATUS(aq_dequantize(NULL, &good, codes, params, NULL, 1, 128, AQ_DTYPE_F32, weights,
                               &err), AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_dequantize(NULL, &good, codes, params, extra, 1, 128, AQ_DTYPE_F64, weights,
                               &err), AQ_ERR_UNSUPPORTED);
    CHECK_STATUS(aq_quantize(NULL, &good, NULL, AQ_DTYPE_F32, 0, 128, NULL, NULL, NULL, NULL, NULL,
                             &err), AQ_OK);
}

TEST(layout) {
    aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F16, 2, 32);
    aq_quant_layout layout;
    CHECK_STATUS(aq_quantized_size(&spec, 3, 100, &layout, NULL), AQ_OK);
    CHECK(layout.groups == 4 && layout.row_code_bytes == 28 && layout.row_param_bytes == 16);
    CHECK(layout.code_bytes == 84 && layout.param_bytes == 48 && layout.extra_bytes == 0);
    spec = spec_of(AQ_CODE_SYMMETRIC, AQ_PARAM_Q8, 8, 64);
    CHECK_STATUS(aq_quantized_size(&spec, 3, 130, &layout, NULL), AQ_OK);
    CHECK(layout.groups == 3 && layout.row_code_bytes == 132 && layout.row_param_bytes == 3);
    CHECK(layout.row_extra_bytes == 2 && layout.extra_bytes == 6);
    CHECK(aq_block_rows(0) >= 1 && aq_block_rows(1) == AQ_BLOCK_WEIGHTS);
    CHECK(aq_block_rows(UINT64_MAX) == 1 && aq_block_rows(4096) == 64);
}

TEST(quality_figures) {
    aq_quality zero, some;
    float a[3] = {3.0f, 0.0f, 4.0f}, b[3] = {3.0f, 0.0f, 4.5f}, none[3] = {0, 0, 0};
    memset(&zero, 0, sizeof zero);
    some = zero;
    CHECK(aq_quality_cosine(&zero) == 1.0);
    CHECK(aq_quality_sqnr_db(&zero) > 1e308);
    aq_compare_block(NULL, a, b, 1, 3, &some);
    CHECK(some.original == 25.0 && some.error == 0.25 && some.max_error == 0.5 && some.count == 3);
    CHECK_RANGE(19.99, aq_quality_sqnr_db(&some), 20.01);
    CHECK_RANGE(0.998, aq_quality_cosine(&some), 0.9999);
    some = zero;
    aq_compare_block(NULL, a, none, 1, 3, &some);
    CHECK(aq_quality_cosine(&some) == 0.0 && aq_quality_sqnr_db(&some) == 0.0);
    some = zero;
    aq_compare_block(NULL, none, a, 1, 3, &some);
    CHECK(aq_quality_cosine(&some) == 0.0 && aq_quality_sqnr_db(&some) < -1e308);
}

TEST(cancelled) {
    aq_quant_spec spec = spec_of(AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 64);
    float *weights = gaussian(64 * 64, 1.0, 19);
    aq_context *context = context_of(2);
    quantized q;
    quantized_open(&q, &spec, 64, 64);
    aq_context_cancel(context);
    CHECK_STATUS(quantize(&q, context, &spec, weights, AQ_DTYPE_F32, NULL, NULL),
                 AQ_ERR_CANCELLED);
    aq_context_reset_cancel(context);
    CHECK_STATUS(quantize(&q, context, &spec, weights, AQ_DTYPE_F32, NULL, NULL), AQ_OK);
    quantized_close(&q);
    aq_context_destroy(context);
    free(weights);
}

static size_t live_bytes;

static void *counting_resize(void *user, void *pointer, size_t old_size, size_t new_size) {
    if (*(int *)user) {
        return NULL;
    }
    live_bytes += new_size - old_size;
    if (new_size == 0) {
        free(pointer);
        return NULL;
    }
    return realloc(pointer, new_size);
}

TEST(context) {
    aq_context *context = NULL;
    aq_allocator allocator;
    aq_error err;
    int refuse = 0;
    aq_isa isa;
    allocator.resize = counting_resize;
    allocator.user = &refuse;
    CHECK_STATUS(aq_context_create(AQ_ISA_SCALAR, &allocator, &context, &err), AQ_OK);
    CHECK(context->isa == AQ_ISA_SCALAR && context->num_threads == 0 && live_bytes > 0);
    aq_context_destroy(context);
    CHECK(live_bytes == 0);
    refuse = 1;
    CHECK_STATUS(aq_context_create(AQ_ISA_SCALAR, &allocator, &context, &err),
                 AQ_ERR_OUT_OF_MEMORY);
    CHECK(context == NULL);
    CHECK_STATUS(aq_context_create((aq_isa)7, NULL, &context, &err), AQ_ERR_UNSUPPORTED);
    for (isa = AQ_ISA_SCALAR; isa <= AQ_ISA_NEON; isa = (aq_isa)(isa + 1)) {
        aq_status status = aq_context_create(isa, NULL, &context, &err);
        CHECK(status == AQ_OK ? context->isa == isa : status == AQ_ERR_UNSUPPORTED);
        CHECK(status == AQ_OK || strstr(err.message, aq_isa_name(isa)) != NULL);
        aq_context_destroy(context);
    }
    aq_context_destroy(NULL);
    aq_context_cancel(NULL);
}

int main(void) {
    RUN(every_tail);
    RUN(odd_sizes);
    RUN(constants);
    RUN(signed_zeros);
    RUN(scaled_by_powers_of_two);
    RUN(denormal_and_huge);
    RUN(narrow_groups);
    RUN(already_quantized);
    RUN(not_finite);
    RUN(types_and_alignment);
    RUN(dequantize_types);
    RUN(threads_and_pieces);
    RUN(column_weights);
    RUN(column_weights_steer);
    RUN(faint_weights);
    RUN(bad_column_weights);
    RUN(parameters_that_do_not_fit);
    RUN(q8_rows_of_any_length);
    RUN(never_worse_than_min_max);
    RUN(host_floating_point_mode);
    RUN(fast_fit);
    RUN(errors);
    RUN(layout);
    RUN(quality_figures);
    RUN(cancelled);
    RUN(context);
    return test_end();
}
