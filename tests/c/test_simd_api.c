/* arrowquant_simd.h: its rows are those of aq_quantize, bit for bit. */
#include "test.h"

#ifdef AQ_TEST_BUNDLE
#  define ARROWQUANT_SIMD_IMPLEMENTATION
#  include "arrowquant_simd.h"
#else
#  include "../../src/simd/arrowquant_simd_api.h"
#endif

#define COLS 500u

static void make_row(float *row, uint64_t seed) {
    size_t i;
    for (i = 0; i < COLS; i++) {
        row[i] = i >= 64 && i < 96 ? 0.75f : (float)test_normal(&seed);
    }
}

TEST(same_as_the_library) {
    static const unsigned bits[3] = {2, 4, 8}, sizes[4] = {32, 64, 128, 256};
    float row[COLS], importance[COLS], back[COLS], expected[COLS];
    uint8_t codes[COLS + 4], library_codes[COLS + 4], params[16 * 8];
    int b, g, symmetric, weighted;
    size_t i;
    make_row(row, 1);
    make_row(importance, 2);
    for (i = 0; i < COLS; i++) {
        importance[i] *= importance[i];
    }
    for (b = 0; b < 3; b++) {
        for (g = 0; g < 4; g++) {
            for (symmetric = 0; symmetric < 2; symmetric++) {
                for (weighted = 0; weighted < 2; weighted++) {
                    const float *columns = weighted ? importance : NULL;
                    aq_simd_group groups[16];
                    aq_simd_figures figures;
                    aq_quant_spec spec;
                    aq_quality quality;
                    memset(&quality, 0, sizeof quality);
                    spec.code = symmetric ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE;
                    spec.params = AQ_PARAM_F32;
                    spec.bits = bits[b];
                    spec.group_size = sizes[g];
                    spec.fit = AQ_FIT_LEAST_SQUARES;
                    CHECK_STATUS(aq_quantize(NULL, &spec, row, AQ_DTYPE_F32, 1, COLS, columns,
                                             library_codes, params, NULL, &quality, NULL), AQ_OK);
                    CHECK(aq_simd_fit_row(NULL, row, columns, COLS, sizes[g], bits[b],
                                          symmetric != 0, groups));
                    memset(codes, 0, sizeof codes);
                    aq_simd_encode_row(NULL, row, COLS, sizes[g], bits[b], symmetric != 0, groups,
                                       codes);
                    CHECK(memcmp(codes, library_codes, COLS * bits[b] / 8) == 0);
                    aq_simd_decode_row(NULL, codes, COLS, sizes[g], bits[b], symmetric != 0,
                                       groups, back);
                    aq_dequantize_block(NULL, &spec, library_codes, params, NULL, 1, COLS,
                                        expected);
                    CHECK(memcmp(back, expected, sizeof back) == 0);
                    aq_simd_compare_rows(NULL, row, back, COLS, &figures);
                    CHECK(figures.error == quality.error && figures.dot == quality.dot);
                    CHECK(figures.max_error == quality.max_error);
                }
            }
        }
    }
}

TEST(what_it_does_not_take) {
    float row[COLS], importance[COLS];
    aq_simd_group groups[16];
    size_t i;
    uint32_t nan = 0x7FC00000u;
    make_row(row, 3);
    for (i = 0; i < COLS; i++) {
        importance[i] = 0.0f;
    }
    CHECK(aq_simd_fit_row(NULL, row, importance, COLS, 64, 4, false, groups));
    importance[3] = -1.0f;
    CHECK(!aq_simd_fit_row(NULL, row, importance, COLS, 64, 4, false, groups));
    importance[3] = 1e30f;
    CHECK(!aq_simd_fit_row(NULL, row, importance, COLS, 64, 4, false, groups));
    row[400] = 1e20f;
    CHECK(!aq_simd_fit_row(NULL, row, NULL, COLS, 64, 4, true, groups));
    memcpy(&row[400], &nan, 4);
    CHECK(!aq_simd_fit_row(NULL, row, NULL, COLS, 64, 4, true, groups));
}

TEST(tables) {
    const struct aq_kernels *scalar = aq_simd_open("scalar");
    uint8_t in[4] = {0x00, 0x3C, 0x80, 0x3F}, out[2];
    float value;
    CHECK(scalar != NULL && aq_simd_open("nonsense") == NULL && aq_simd_open(NULL) != NULL);
    CHECK_STR(aq_simd_name(scalar), "scalar");
    aq_little_endian(in, 2, 2);
    aq_simd_widen_f16(scalar, in, &value, 1);
    CHECK(value == 1.0f);
    aq_simd_narrow_f16(scalar, &value, out, 1);
    CHECK(memcmp(in, out, 2) == 0);
    aq_simd_widen_bf16(scalar, in + 2, &value, 1);
    CHECK(value == 1.0f);
    aq_simd_narrow_bf16(scalar, &value, out, 1);
    CHECK(memcmp(in + 2, out, 2) == 0);
    in[0] = 0x7E;
    aq_simd_widen_f8_e4m3(scalar, in, &value, 1);
    CHECK(value == 448.0f);
    in[0] = 0x7B;
    aq_simd_widen_f8_e5m2(scalar, in, &value, 1);
    CHECK(value == 57344.0f);
}

/* A quantized product by integers is the product with the decoded row. */
TEST(dots) {
    static const unsigned bits[3] = {2, 4, 8};
    float row[COLS], back[COLS];
    uint8_t codes[COLS + 4], unpacked[COLS];
    int8_t x[COLS], ones[COLS];
    aq_simd_group groups[8];
    int32_t products[8], sums[8], whole = 0;
    int b, symmetric;
    size_t i, g;
    make_row(row, 4);
    for (i = 0; i < COLS; i++) {
        x[i] = (int8_t)((int)(i * 37 % 256) - 128);
        ones[i] = 1;
        whole += (int32_t)x[i];
    }
    aq_simd_sum_groups(x, COLS, 64, sums);
    CHECK(aq_simd_dot(NULL, x, ones, COLS) == whole);
    for (b = 0; b < 3; b++) {
        for (symmetric = 0; symmetric < 2; symmetric++) {
            double direct = 0.0, by_integers = 0.0, size = 0.0;
            double zero = symmetric ? (double)(1u << (bits[b] - 1u)) : 0.0;
            CHECK(aq_simd_fit_row(NULL, row, NULL, COLS, 64, bits[b], symmetric != 0, groups));
            aq_simd_encode_row(NULL, row, COLS, 64, bits[b], symmetric != 0, groups, codes);
            aq_simd_decode_row(NULL, codes, COLS, 64, bits[b], symmetric != 0, groups, back);
            aq_simd_dot_rows(NULL, codes, 0, 1, bits[b], x, COLS, 64, products);
            aq_simd_unpack_row(NULL, codes, COLS, bits[b], unpacked);
            for (i = 0; i < COLS; i++) {
                const aq_simd_group *group = &groups[i / 64];
                double value = (double)group->scale * ((double)unpacked[i] - zero) +
                               (double)group->min;
                CHECK(fabs(value - (double)back[i]) <= 1e-6);
                direct += (double)back[i] * (double)x[i];
                size += fabs((double)back[i] * (double)x[i]);
            }
            for (g = 0; g < 8; g++) {
                by_integers += (double)groups[g].scale *
                                   ((double)products[g] - zero * (double)sums[g]) +
                               (double)groups[g].min * (double)sums[g];
            }
            CHECK(fabs(by_integers - direct) <= 1e-6 * size);
        }
    }
}

int main(void) {
    RUN(same_as_the_library);
    RUN(what_it_does_not_take);
    RUN(tables);
    RUN(dots);
    return test_end();
}
