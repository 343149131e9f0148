/* Every kernel of every ISA that this machine has gives the bits of the scalar one; contexts use
 * the kernels they say.
 *
 *     test_simd [groups [seed]]     so many random groups a kernel and ISA (also AQ_SIMD_GROUPS)
 */
#include "rows.h"

#ifndef __has_feature
#  define __has_feature(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer) || !defined(__OPTIMIZE__)
#  define DEFAULT_GROUPS 20000
#else
#  define DEFAULT_GROUPS 200000
#endif
#define MOST 1024 /* values in a row here */

static const char *const isa_names[] = {"avx2", "avx512", "neon"};
static const struct aq_kernels *tables[3];
static size_t table_count;
static unsigned long group_goal = DEFAULT_GROUPS;
static uint64_t first_seed = 1;

static void find_tables(void) {
    size_t i;
    for (i = 0; i < sizeof isa_names / sizeof *isa_names; i++) {
        const struct aq_kernels *table = aq_simd_kernels(isa_names[i]);
        if (table) {
            tables[table_count++] = table;
        }
    }
    printf("kernels compared:");
    for (i = 0; i < table_count; i++) {
        printf(" %s %s", tables[i]->name, tables[i]->dots);
    }
    printf("\n");
}

/* A row in a block of its own that ends where the row ends, at an address aligned as a float. */
typedef struct exact {
    void *block;
    float *at;
} exact;

static exact exact_row(const float *from, size_t count, uint64_t *state) {
    size_t shift = random_below(state, 16);
    exact row;
    row.block = malloc((shift + count) * sizeof(float));
    row.at = (float *)row.block + shift;
    if (from) {
        memcpy(row.at, from, count * sizeof(float));
    }
    return row;
}

/* What each round varies. Every length of a last group occurs, at each group size. */
typedef struct shape {
    size_t group, count, groups;
    uint32_t bits;
    bool symmetric;
} shape;

static shape random_shape(unsigned long round, uint64_t *state) {
    static const uint32_t bits[3] = {2, 4, 8};
    shape s;
    s.group = round % 4 == 0 ? 256 : 32u * (1u + random_below(state, 8));
    s.count = 1 + round / 4 % s.group + s.group * random_below(state, (uint32_t)(MOST / s.group));
    s.count = round % 16 == 5 ? MOST / s.group * s.group : s.count; /* whole groups alone */
    s.groups = (s.count + s.group - 1) / s.group;
    s.bits = bits[random_below(state, 3)];
    s.symmetric = random_below(state, 3) == 0;
    return s;
}

static int same(const void *a, const void *b, size_t size) {
    return memcmp(a, b, size) == 0;
}

/* Shows what is needed to find the case again. */
static int agree(int equal, const struct aq_kernels *table, const char *kernel, const shape *s,
                 unsigned long round) {
    if (!equal && !test_broken) {
        printf("%s %s differs from scalar: round %lu, count %lu, group %lu, %u bits%s\n",
               table->name, kernel, round, (unsigned long)s->count, (unsigned long)s->group,
               (unsigned)s->bits, s->symmetric ? ", symmetric" : "");
    }
    return equal;
}

/* ---------------------------------------------------------------- kernels over random rows */

static void check_range(const shape *s, const exact *x, unsigned long round) {
    aq_simd_range expected[32], got[32];
    size_t t, i;
    aq_simd_kernels("scalar")->range(x->at, s->count, s->group, expected);
    for (t = 0; t < table_count; t++) {
        tables[t]->range(x->at, s->count, s->group, got);
        for (i = 0; i < s->groups; i++) { /* the sign of a zero may differ */
            int equal = got[i].absmax == expected[i].absmax &&
                        (got[i].absmax > 0x7F800000u ||
                         (got[i].low == expected[i].low && got[i].high == expected[i].high));
            CHECK(agree(equal, tables[t], "range", s, round));
        }
    }
}

/* The row as BF16, at an odd address: as F32 that is cut off, so that infinities and NaNs stay. */
static uint8_t *narrow_row(const shape *s, const exact *x, float *wide) {
    uint8_t *halves = (uint8_t *)malloc(2 * s->count + 1);
    size_t i;
    for (i = 0; i < s->count; i++) {
        uint16_t half;
        uint32_t bits;
        memcpy(&bits, &x->at[i], sizeof bits);
        half = (uint16_t)(bits >> 16);
        bits &= 0xFFFF0000u;
        memcpy(halves + 1 + 2 * i, &half, sizeof half);
        memcpy(&wide[i], &bits, sizeof bits);
    }
    return halves;
}

/* Of every table, the scalar one too, against the range of the values as F32. */
static void check_range_bf16(const shape *s, const exact *x, unsigned long round) {
    aq_simd_range expected[32], got[32];
    float *wide = (float *)malloc(s->count * sizeof *wide);
    uint8_t *halves = narrow_row(s, x, wide);
    size_t t, i;
    aq_simd_kernels("scalar")->range(wide, s->count, s->group, expected);
    for (t = 0; t <= table_count; t++) {
        const struct aq_kernels *table = t < table_count ? tables[t] : aq_simd_kernels("scalar");
        table->range_bf16(halves + 1, s->count, s->group, got);
        for (i = 0; i < s->groups; i++) {
            int finite = expected[i].absmax < 0x7F800000u;
            int equal = finite ? got[i].absmax == expected[i].absmax &&
                                     got[i].low == expected[i].low && got[i].high == expected[i].high
                               : got[i].absmax >= 0x7F800000u;
            CHECK(agree(equal, table, "range_bf16", s, round));
        }
    }
    free(wide);
    free(halves);
}

static void check_fit(const shape *s, const exact *x, const exact *weights, unsigned long round) {
    const struct aq_kernels *scalar = aq_simd_kernels("scalar");
    aq_simd_range ranges[32];
    aq_simd_fit expected[32], got[32];
    size_t t, i;
    scalar->range(x->at, s->count, s->group, ranges);
    (s->symmetric ? scalar->fit_symmetric : scalar->fit_affine)(
        x->at, weights->at, s->count, s->group, s->bits, ranges, expected);
    for (t = 0; t < table_count; t++) {
        (s->symmetric ? tables[t]->fit_symmetric : tables[t]->fit_affine)(
            x->at, weights->at, s->count, s->group, s->bits, ranges, got);
        for (i = 0; i < s->groups; i++) {
            int equal = same(&got[i].mean, &expected[i].mean, sizeof got[i].mean) &&
                        same(&got[i].scale, &expected[i].scale, sizeof got[i].scale) &&
                        same(&got[i].code, &expected[i].code, sizeof got[i].code);
            CHECK(agree(equal, tables[t], weights->at ? "weighted fit" : "fit", s, round));
        }
    }
}

/* The codes of the row cut off to BF16 are those of the same values as F32. */
static void check_codes_bf16(const shape *s, const exact *x, const aq_simd_grid *grids, size_t bytes,
                             unsigned long round) {
    float *wide = (float *)malloc(s->count * sizeof *wide);
    uint8_t *halves = narrow_row(s, x, wide);
    uint8_t *expected = (uint8_t *)malloc(bytes), *got = (uint8_t *)malloc(bytes + 1);
    size_t t;
    aq_simd_kernels("scalar")->encode(wide, s->count, s->group, s->bits, s->symmetric, grids,
                                      expected);
    for (t = 0; t <= table_count; t++) {
        const struct aq_kernels *table = t < table_count ? tables[t] : aq_simd_kernels("scalar");
        memset(got, 0xA5, bytes + 1);
        table->encode_bf16(halves + 1, s->count, s->group, s->bits, s->symmetric, grids, got + 1);
        CHECK(agree(same(got + 1, expected, bytes), table, "encode_bf16", s, round));
    }
    free(wide);
    free(halves);
    free(expected);
    free(got);
}

/* The codes of the row on grids of any kind; then what they decode to. */
static void check_codes(const shape *s, const exact *x, unsigned long round, uint64_t *state) {
    const struct aq_kernels *scalar = aq_simd_kernels("scalar");
    aq_simd_range ranges[32];
    aq_simd_grid grids[32];
    size_t i, t, bytes = s->count / s->group * (s->group * s->bits / 8) +
                         (s->count % s->group * s->bits + 7) / 8;
    uint8_t *expected = (uint8_t *)malloc(bytes), *got = (uint8_t *)malloc(bytes + 1);
    exact decoded = exact_row(NULL, s->count, state), back = exact_row(NULL, s->count, state);
    float *past = (float *)malloc((s->count + 32) * sizeof(float));
    float *line = past + (0u - (uintptr_t)past) % 64 / sizeof(float) + 4 * (round % 4);
    scalar->range(x->at, s->count, s->group, ranges);
    for (i = 0; i < s->groups; i++) {
        grids[i].scale = (ranges[i].high * 0.5f - ranges[i].low * 0.5f) / (float)(1u << s->bits);
        grids[i].scale = grids[i].scale * 2.2f + (round % 8 ? 1e-30f : 1e-40f);
        grids[i].min = ranges[i].low;
    }
    scalar->encode(x->at, s->count, s->group, s->bits, s->symmetric, grids, expected);
    scalar->decode(expected, s->count, s->group, s->bits, s->symmetric, grids, decoded.at);
    for (t = 0; t < table_count; t++) {
        memset(got, 0xA5, bytes + 1);
        tables[t]->encode(x->at, s->count, s->group, s->bits, s->symmetric, grids, got + 1);
        CHECK(agree(same(got + 1, expected, bytes), tables[t], "encode", s, round));
        memcpy(got + 1, expected, bytes);
        tables[t]->decode(got + 1, s->count, s->group, s->bits, s->symmetric, grids, back.at);
        CHECK(agree(same(back.at, decoded.at, s->count * sizeof(float)), tables[t], "decode", s,
                    round));
        CHECK(!tables[t]->stream == !tables[t]->decode_past);
        if (tables[t]->decode_past) {
            tables[t]->decode_past(got + 1, s->count, s->group, s->bits, s->symmetric, grids, line);
            tables[t]->stream(NULL, NULL, 0);
            CHECK(agree(same(line, decoded.at, s->count * sizeof(float)), tables[t], "decode_past",
                        s, round));
        }
    }
    check_codes_bf16(s, x, grids, bytes, round);
    free(past);
    free(expected);
    free(got);
    free(decoded.block);
    free(back.block);
}

/* NaNs compare equal: which of two gets through an addition is not defined. */
static int same_sum(float a, float b) {
    return same(&a, &b, sizeof a) || (a != a && b != b);
}

static void check_compare(const shape *s, const exact *x, unsigned long round, uint64_t *state) {
    size_t i, t, count = s->count < 256 ? s->count : 256;
    exact a = exact_row(x->at, count, state), b = exact_row(x->at, count, state);
    aq_simd_sums expected, got;
    for (i = 0; i < count; i++) {
        b.at[i] += round % 8 ? 0.05f * b.at[i] * random_normal(state) : 0.0f;
    }
    aq_simd_kernels("scalar")->compare(a.at, b.at, count, &expected);
    for (t = 0; t < table_count; t++) {
        int equal;
        tables[t]->compare(a.at, b.at, count, &got);
        equal = same_sum(got.dot, expected.dot) && same_sum(got.first, expected.first) &&
                same_sum(got.second, expected.second) && same_sum(got.error, expected.error) &&
                same_sum(got.max_error, expected.max_error);
        CHECK(agree(equal, tables[t], "compare", s, round));
    }
    free(a.block);
    free(b.block);
}

/* Any bits are F16, BF16, F8; any floats go back. */
static void check_conversions(const shape *s, const exact *x, unsigned long round,
                              uint64_t *state) {
    const struct aq_kernels *scalar = aq_simd_kernels("scalar");
    size_t i, t, count = s->count;
    uint8_t *halves = (uint8_t *)malloc(2 * count + 1), *bytes = (uint8_t *)malloc(count + 1);
    uint8_t *expected = (uint8_t *)malloc(2 * count), *got = (uint8_t *)malloc(2 * count + 1);
    exact wide = exact_row(NULL, count, state), back = exact_row(NULL, count, state);
    for (i = 0; i <= 2 * count; i++) {
        halves[i] = (uint8_t)test_random(state);
        bytes[i / 2] = halves[i];
    }
#define WIDEN(name, in)                                                                           \
    scalar->name(in, wide.at, count);                                                             \
    tables[t]->name(in, back.at, count);                                                          \
    CHECK(agree(same(wide.at, back.at, count * sizeof(float)), tables[t], #name, s, round))
#define NARROW(name)                                                                              \
    scalar->name(x->at, expected, count);                                                         \
    tables[t]->name(x->at, got + 1, count);                                                       \
    CHECK(agree(same(expected, got + 1, 2 * count), tables[t], #name, s, round))
    for (t = 0; t < table_count; t++) {
        WIDEN(f16_to_f32, halves + 1);
        WIDEN(bf16_to_f32, halves + 1);
        WIDEN(f8_e4m3_to_f32, bytes + 1);
        WIDEN(f8_e5m2_to_f32, bytes + 1);
        NARROW(f32_to_f16);
        NARROW(f32_to_bf16);
    }
#undef WIDEN
#undef NARROW
    free(halves);
    free(bytes);
    free(expected);
    free(got);
    free(wide.block);
    free(back.block);
}

/* Bytes in a block of their own, at any address. */
static uint8_t *exact_bytes(void **block, size_t count, int kind, uint64_t *state) {
    size_t i, shift = random_below(state, 16);
    uint8_t *at = (uint8_t *)malloc(shift + count + (shift + count == 0)) + shift;
    *block = at - shift;
    for (i = 0; i < count; i++) { /* any, or all the largest of a sign: where sums overflow first */
        at[i] = kind == 0 ? (uint8_t)(test_random(state) >> 32)
                : kind == 1 ? (uint8_t)0xFF : kind == 2 ? (uint8_t)0x80 : (uint8_t)0x7F;
    }
    return at;
}

/* One code of a row, by another way than the kernels. */
static int64_t code_at(const uint8_t *row, uint32_t bits, size_t i) {
    size_t bit = i * bits;
    return (int64_t)((unsigned)row[bit / 8] >> (bit % 8) & ((1u << bits) - 1u));
}

static void check_dots(const shape *s, unsigned long round, uint64_t *state) {
    size_t row_bytes = (s->count * s->bits + 7) / 8 + random_below(state, 3);
    size_t rows = 1 + random_below(state, 3), i, r, t;
    void *blocks[4];
    uint8_t *codes = exact_bytes(&blocks[0], (rows - 1) * row_bytes + (s->count * s->bits + 7) / 8,
                                 round % 3 ? 0 : 1 + (int)random_below(state, 3), state);
    int8_t *x = (int8_t *)exact_bytes(&blocks[1], s->count,
                                      round % 3 ? 0 : 2 + (int)random_below(state, 2), state);
    int8_t *y = (int8_t *)exact_bytes(&blocks[2], s->count, round % 2 ? 0 : 2, state);
    uint8_t *unpacked = exact_bytes(&blocks[3], s->count, 0, state);
    int32_t got[3 * 32];
    for (t = 0; t <= table_count; t++) {
        const struct aq_kernels *table = t ? tables[t - 1] : aq_simd_kernels("scalar");
        int64_t sum = 0;
        int equal = 1;
        table->dot_codes(codes, row_bytes, rows, s->bits, x, s->count, s->group, got);
        for (r = 0; r < rows; r++) {
            for (i = 0; i < s->count; i++) {
                sum += code_at(codes + r * row_bytes, s->bits, i) * (int64_t)x[i];
                if (i % s->group == s->group - 1 || i == s->count - 1) {
                    equal = equal && (int64_t)got[r * s->groups + i / s->group] == sum;
                    sum = 0;
                }
            }
        }
        CHECK(agree(equal, table, "dot_codes", s, round));
        table->unpack(codes, s->count, s->bits, unpacked);
        for (i = 0; i < s->count; i++) {
            equal = equal && (int64_t)unpacked[i] == code_at(codes, s->bits, i);
            sum += (int64_t)x[i] * (int64_t)y[i];
        }
        CHECK(agree(equal, table, "unpack", s, round));
        CHECK(agree((int64_t)table->dot(x, y, s->count) == sum, table, "dot", s, round));
    }
    for (i = 0; i < 4; i++) {
        free(blocks[i]);
    }
}

/* The longest of both signs. */
TEST(longest_dots) {
    static int8_t a[65536], b[65536];
    size_t i, t;
    for (i = 0; i < 65536; i++) {
        a[i] = -128;
        b[i] = -128;
    }
    for (t = 0; t <= table_count; t++) {
        const struct aq_kernels *table = t ? tables[t - 1] : aq_simd_kernels("scalar");
        CHECK(table->dot(a, b, 65536) == 128 * 128 * 65536);
        CHECK(table->dot(a, b, 0) == 0);
        a[65535] = 127;
        CHECK(table->dot(a, b, 65536) == 128 * 128 * 65535 - 127 * 128);
        a[65535] = -128;
    }
}

/* Calls one check on rows until each table has had its groups. */
static void every_row(int what) {
    uint64_t state = first_seed * 8 + (uint64_t)what;
    unsigned long groups, round = 0;
    static float values[MOST], plain[MOST];
    aq_simd_mode mode = aq_simd_mode_enter();
    for (groups = 0; groups < group_goal && !test_broken && (table_count || what == 5); round++) {
        shape s = random_shape(round, &state);
        exact x, weights = {NULL, NULL};
        fill_row(values, s.count, s.group, what == 1, &state);
        if (what == 0 && round % 5 == 0) { /* infinities and NaNs are found */
            uint32_t sign = round % 2 ? 0x80000000u : 0u;
            values[random_below(&state, (uint32_t)s.count)] =
                float_of((round % 10 ? 0x7FC00000u : 0x7F800000u) | sign);
        }
        x = exact_row(values, s.count, &state);
        switch (what) {
        case 0:
            check_range(&s, &x, round);
            check_range_bf16(&s, &x, round);
            break;
        case 1:
            if (round % 2) {
                fill_weights(plain, s.count, s.group, &state);
                if (round % 16 == 1) {
                    make_faint(x.at, plain, s.count, s.group, &state);
                }
                weights = exact_row(plain, s.count, &state);
            }
            check_fit(&s, &x, &weights, round);
            free(weights.block);
            break;
        case 2: check_codes(&s, &x, round, &state); break;
        case 3: check_compare(&s, &x, round, &state); break;
        case 5: check_dots(&s, round, &state); break;
        default: check_conversions(&s, &x, round, &state); break;
        }
        free(x.block);
        groups += (unsigned long)s.groups;
    }
    aq_simd_mode_leave(mode);
}

TEST(ranges) { every_row(0); }
TEST(fits) { every_row(1); }
TEST(codes) { every_row(2); }
TEST(sums) { every_row(3); }
TEST(conversions) { every_row(4); }
TEST(dots) { every_row(5); }

/* Every 16-bit float; every upper half of an F32 with lower halves around the places where rounding
 * changes. */
TEST(every_half) {
    static const uint32_t low[] = {0,      1,      0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x2000,
                                   0x3000, 0x7FFF, 0x8000, 0x8001, 0xEFFF, 0xF000, 0xFFFF};
    const struct aq_kernels *scalar = aq_simd_kernels("scalar");
    static uint16_t halves[65536], expected[65536], got[65536];
    static float wide[65536], back[65536];
    size_t i, j, t;
    aq_simd_mode mode = aq_simd_mode_enter();
    for (i = 0; i < 65536; i++) {
        halves[i] = (uint16_t)i;
    }
    for (t = 0; t < table_count; t++) {
        scalar->f16_to_f32(halves, wide, 65536);
        tables[t]->f16_to_f32(halves, back, 65536);
        CHECK(same(wide, back, sizeof wide));
        scalar->bf16_to_f32(halves, wide, 65536);
        tables[t]->bf16_to_f32(halves, back, 65536);
        CHECK(same(wide, back, sizeof wide));
        for (j = 0; j < sizeof low / sizeof *low; j++) {
            for (i = 0; i < 65536; i++) {
                uint32_t bits = (uint32_t)i << 16 | low[j];
                memcpy(&wide[i], &bits, sizeof bits);
            }
            scalar->f32_to_f16(wide, expected, 65536);
            tables[t]->f32_to_f16(wide, got, 65536);
            CHECK(same(expected, got, sizeof got));
            scalar->f32_to_bf16(wide, expected, 65536);
            tables[t]->f32_to_bf16(wide, got, 65536);
            CHECK(same(expected, got, sizeof got));
        }
    }
    aq_simd_mode_leave(mode);
}

/* ---------------------------------------------------------------- the whole path */

#define ROWS 7u
#define COLS 1341u

typedef struct whole {
    uint8_t codes[ROWS * (COLS + 4)], params[ROWS * 42 * 8], extra[ROWS * 4];
    aq_quality quality;
    float decoded[ROWS * COLS];
    uint16_t halves[ROWS * COLS];
} whole;

static void quantize_whole(aq_context *context, const aq_quant_spec *spec, const void *weights,
                           aq_dtype dtype, const float *columns, whole *out) {
    aq_error err;
    memset(out, 0, sizeof *out);
    CHECK_STATUS(aq_quantize(context, spec, weights, dtype, ROWS, COLS, columns, out->codes,
                             out->params, out->extra, &out->quality, &err), AQ_OK);
    CHECK_STATUS(aq_dequantize(context, spec, out->codes, out->params, out->extra, ROWS, COLS,
                               AQ_DTYPE_F32, out->decoded, &err), AQ_OK);
    CHECK_STATUS(aq_dequantize(context, spec, out->codes, out->params, out->extra, ROWS, COLS,
                               spec->bits == 4 ? AQ_DTYPE_F16 : AQ_DTYPE_BF16, out->halves, &err),
                 AQ_OK);
}

static void check_whole(const struct aq_kernels *table, const aq_quant_spec *spec,
                        const void *weights, aq_dtype dtype, const float *columns) {
    static whole expected, got;
    aq_context context;
    memset(&context, 0, sizeof context);
    context.kernels = aq_simd_kernels("scalar");
    context.num_threads = 1;
    quantize_whole(&context, spec, weights, dtype, columns, &expected);
    context.kernels = table;
    context.num_threads = 2;
    quantize_whole(&context, spec, weights, dtype, columns, &got);
    CHECK(same(expected.codes, got.codes, sizeof got.codes));
    CHECK(same(expected.params, got.params, sizeof got.params));
    CHECK(same(expected.extra, got.extra, sizeof got.extra));
    CHECK(same(expected.decoded, got.decoded, sizeof got.decoded));
    CHECK(same(expected.halves, got.halves, sizeof got.halves));
    CHECK(same(&expected.quality.dot, &got.quality.dot, sizeof got.quality.dot));
    CHECK(same(&expected.quality.error, &got.quality.error, sizeof got.quality.error));
}

TEST(whole_path) {
    static const aq_dtype dtypes[] = {AQ_DTYPE_F32, AQ_DTYPE_F16, AQ_DTYPE_BF16, AQ_DTYPE_F8_E4M3,
                                      AQ_DTYPE_F8_E5M2};
    static float wide[ROWS * COLS], columns[COLS];
    static uint16_t halves[2][ROWS * COLS];
    static uint8_t bytes[ROWS * COLS];
    const void *inputs[5];
    uint64_t state = first_seed;
    uint32_t bits, group, params;
    size_t i, t;
    int code, input;
    for (i = 0; i < ROWS * COLS; i++) {
        wide[i] = 0.02f * random_normal(&state) + (i % 97 ? 0.0f : 0.3f);
        bytes[i] = (uint8_t)(test_random(&state) & 0xB7u); /* F8 without infinity and NaN */
    }
    for (i = 0; i < COLS; i++) {
        columns[i] = random_normal(&state) * random_normal(&state);
        columns[i] = columns[i] < 0.0f ? 0.0f : columns[i];
    }
    aq_from_f32(NULL, AQ_DTYPE_F16, wide, halves[0], ROWS * COLS);
    aq_from_f32(NULL, AQ_DTYPE_BF16, wide, halves[1], ROWS * COLS);
    inputs[0] = wide;
    inputs[1] = halves[0];
    inputs[2] = halves[1];
    inputs[3] = inputs[4] = bytes;
    for (t = 0; t < table_count; t++) {
        for (bits = 2; bits <= 8; bits *= 2) {
            for (group = 32; group <= 256; group *= 2) {
                for (code = 0; code < 2; code++) {
                    for (params = 0; params < 3; params++) {
                        aq_quant_spec spec;
                        spec.code = (aq_code)code;
                        spec.params = (aq_param_type)params;
                        spec.bits = bits;
                        spec.group_size = group;
                        spec.fit = random_below(&state, 3) ? AQ_FIT_LEAST_SQUARES : AQ_FIT_FAST;
                        input = (int)(random_below(&state, 5));
                        if (input >= 3 && params != AQ_PARAM_F32) {
                            input -= 2; /* F8 codes reach far */
                        }
                        check_whole(tables[t], &spec, inputs[input], dtypes[input],
                                    random_below(&state, 2) && spec.fit != AQ_FIT_FAST ? columns
                                                                                       : NULL);
                    }
                }
            }
        }
    }
}

/* BF16 that nobody measures is not widened where ranges alone decide: the same bytes as with a
 * measurement, for groups that are huge, constant or short as well, and the same first bad weight. */
static void check_unmeasured(const struct aq_kernels *table, const aq_quant_spec *spec,
                             const uint16_t *halves) {
    static whole measured, plain;
    aq_context context;
    aq_error first, second;
    memset(&context, 0, sizeof context);
    context.kernels = table;
    context.num_threads = 1;
    memset(&measured, 0, sizeof measured);
    memset(&plain, 0, sizeof plain);
    aq_status status = aq_quantize(&context, spec, halves, AQ_DTYPE_BF16, ROWS, COLS, NULL,
                                   measured.codes, measured.params, measured.extra,
                                   &measured.quality, &first);
    CHECK(aq_quantize(&context, spec, halves, AQ_DTYPE_BF16, ROWS, COLS, NULL, plain.codes,
                      plain.params, plain.extra, NULL, &second) == status);
    if (status != AQ_OK) {
        CHECK(first.offset == second.offset && strcmp(first.message, second.message) == 0);
        return;
    }
    CHECK(same(measured.codes, plain.codes, sizeof plain.codes));
    CHECK(same(measured.params, plain.params, sizeof plain.params));
    CHECK(same(measured.extra, plain.extra, sizeof plain.extra));
}

TEST(unmeasured_bf16) {
    static uint16_t halves[ROWS * COLS];
    uint64_t state = first_seed;
    size_t i, t;
    int code, params, kind;
    for (kind = 0; kind < 3; kind++) { /* some groups tiny; huge; a weight infinite */
        for (i = 0; i < ROWS * COLS; i++) {
            float value = 0.02f * random_normal(&state);
            value = i / 64 % 9 == 4 ? value * (kind ? 1e38f : 1e-37f) : value;
            halves[i] = i / 64 % 9 == 6 ? 0x3D00u : aq_simd_to_bf16(value);
        }
        halves[4 * COLS + 700] = kind == 2 ? 0x7F80u : 0xBC00u;
        halves[5 * COLS + 2] = kind == 2 ? 0x7FC0u : 0xBC00u;
        for (t = 0; t <= table_count; t++) {
            for (code = 0; code <= (int)AQ_CODE_RESIDUAL; code++) {
                for (params = 0; params < 3; params++) {
                    aq_quant_spec spec;
                    memset(&spec, 0, sizeof spec);
                    spec.code = (aq_code)code;
                    spec.params = (aq_param_type)params;
                    spec.bits = code == (int)AQ_CODE_RESIDUAL ? 2 : 4;
                    spec.group_size = 64;
                    spec.fit = AQ_FIT_FAST;
                    check_unmeasured(t < table_count ? tables[t] : aq_simd_kernels("scalar"), &spec,
                                     halves);
                }
            }
        }
    }
}

/* A result too large for the caches is written past them: the same as by parts that are not, wherever
 * its rows begin. */
TEST(past_the_caches) {
    static const size_t widths[] = {4096, 4097};
    const size_t rows = 2049, part = 683;
    uint64_t state = 3;
    size_t t, w, i, shift;
    for (t = 0; t < table_count; t++) {
        for (w = 0; w < 4 && tables[t]->stream; w++) {
            const size_t cols = widths[w / 2];
            aq_quant_layout layout;
            aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 128, AQ_FIT_LEAST_SQUARES, 0, 0};
            uint8_t *codes, *params;
            float *memory = (float *)malloc((rows * cols + 16) * sizeof(float)), *whole_out;
            float *parts = (float *)malloc(part * cols * sizeof(float));
            aq_context context;
            memset(&context, 0, sizeof context);
            context.kernels = tables[t];
            context.num_threads = 2;
            CHECK_STATUS(aq_quantized_size(&spec, rows, cols, &layout, NULL), AQ_OK);
            codes = (uint8_t *)malloc((size_t)layout.code_bytes);
            params = (uint8_t *)malloc((size_t)layout.param_bytes);
            for (i = 0; i < (size_t)layout.code_bytes; i++) {
                codes[i] = (uint8_t)(test_random(&state) >> 40);
            }
            for (i = 0; i < (size_t)layout.param_bytes; i++) {
                params[i] = i % 2 ? 0x3C : (uint8_t)i; /* from 1 to 2 */
            }
            shift = (0u - (uintptr_t)memory) % 64 / sizeof(float) + (w % 2 ? 4 : t);
            whole_out = memory + shift % 16;
            CHECK_STATUS(aq_dequantize(&context, &spec, codes, params, NULL, rows, cols,
                                       AQ_DTYPE_F32, whole_out, NULL), AQ_OK);
            context.kernels = aq_simd_kernels("scalar");
            for (i = 0; i < rows; i += part) {
                CHECK_STATUS(aq_dequantize(&context, &spec,
                                           codes + i * (size_t)layout.row_code_bytes,
                                           params + i * (size_t)layout.row_param_bytes, NULL, part,
                                           cols, AQ_DTYPE_F32, parts, NULL), AQ_OK);
                CHECK(same(whole_out + i * cols, parts, part * cols * sizeof(float)));
            }
            free(codes);
            free(params);
            free(memory);
            free(parts);
        }
    }
}

/* ---------------------------------------------------------------- which kernels ran */

/* A table that counts its calls, then makes them of the table under test. */
static const struct aq_kernels *inner;
static unsigned long calls[14];

#define COUNTED(index, name, declared, passed)                                                    \
    static void counted_##name declared {                                                         \
        calls[index]++;                                                                           \
        inner->name passed;                                                                       \
    }
COUNTED(0, f16_to_f32, (const void *in, float *out, size_t count), (in, out, count))
COUNTED(1, bf16_to_f32, (const void *in, float *out, size_t count), (in, out, count))
COUNTED(2, f8_e4m3_to_f32, (const void *in, float *out, size_t count), (in, out, count))
COUNTED(3, f8_e5m2_to_f32, (const void *in, float *out, size_t count), (in, out, count))
COUNTED(4, f32_to_f16, (const float *in, void *out, size_t count), (in, out, count))
COUNTED(5, f32_to_bf16, (const float *in, void *out, size_t count), (in, out, count))
COUNTED(6, range, (const float *x, size_t count, size_t group, aq_simd_range *out),
        (x, count, group, out))
COUNTED(7, fit_affine, (const float *x, const float *weights, size_t count, size_t group,
                        uint32_t bits, const aq_simd_range *ranges, aq_simd_fit *out),
        (x, weights, count, group, bits, ranges, out))
COUNTED(8, fit_symmetric, (const float *x, const float *weights, size_t count, size_t group,
                           uint32_t bits, const aq_simd_range *ranges, aq_simd_fit *out),
        (x, weights, count, group, bits, ranges, out))
COUNTED(9, encode, (const float *x, size_t count, size_t group, uint32_t bits, bool symmetric,
                    const aq_simd_grid *grids, void *codes),
        (x, count, group, bits, symmetric, grids, codes))
COUNTED(10, decode, (const void *codes, size_t count, size_t group, uint32_t bits, bool symmetric,
                     const aq_simd_grid *grids, float *out),
        (codes, count, group, bits, symmetric, grids, out))
COUNTED(11, compare, (const float *a, const float *b, size_t count, aq_simd_sums *out),
        (a, b, count, out))
COUNTED(12, range_bf16, (const void *in, size_t count, size_t group, aq_simd_range *out),
        (in, count, group, out))
COUNTED(13, encode_bf16, (const void *in, size_t count, size_t group, uint32_t bits, bool symmetric,
                          const aq_simd_grid *grids, void *codes),
        (in, count, group, bits, symmetric, grids, codes))
#undef COUNTED

static struct aq_kernels counted_table(const struct aq_kernels *table) {
    struct aq_kernels counted = *table;
    inner = table;
    memset(calls, 0, sizeof calls);
    counted.f16_to_f32 = counted_f16_to_f32;
    counted.bf16_to_f32 = counted_bf16_to_f32;
    counted.f8_e4m3_to_f32 = counted_f8_e4m3_to_f32;
    counted.f8_e5m2_to_f32 = counted_f8_e5m2_to_f32;
    counted.f32_to_f16 = counted_f32_to_f16;
    counted.f32_to_bf16 = counted_f32_to_bf16;
    counted.range = counted_range;
    counted.fit_affine = counted_fit_affine;
    counted.fit_symmetric = counted_fit_symmetric;
    counted.encode = counted_encode;
    counted.decode = counted_decode;
    counted.compare = counted_compare;
    counted.range_bf16 = counted_range_bf16;
    counted.encode_bf16 = counted_encode_bf16;
    return counted;
}

/* The public calls do all their work through the table of the context. */
TEST(kernels_that_run) {
    static float wide[ROWS * COLS];
    static uint16_t halves[ROWS * COLS];
    static uint8_t bytes[ROWS * COLS];
    static whole out;
    static const aq_dtype dtypes[4] = {AQ_DTYPE_F16, AQ_DTYPE_BF16, AQ_DTYPE_F8_E4M3,
                                       AQ_DTYPE_F8_E5M2};
    uint64_t state = 5;
    size_t i, t;
    int input;
    for (i = 0; i < ROWS * COLS; i++) {
        wide[i] = random_normal(&state);
        bytes[i] = (uint8_t)(test_random(&state) & 0xB7u);
    }
    aq_from_f32(NULL, AQ_DTYPE_BF16, wide, halves, ROWS * COLS);
    for (t = 0; t < table_count; t++) {
        struct aq_kernels counted = counted_table(tables[t]);
        aq_context context;
        memset(&context, 0, sizeof context);
        context.kernels = &counted;
        context.num_threads = 1;
        for (input = 0; input < 4; input++) {
            aq_quant_spec spec;
            spec.code = input % 2 ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE;
            spec.params = AQ_PARAM_F32;
            spec.bits = input < 2 ? 4 : 8;
            spec.group_size = 128;
            spec.fit = AQ_FIT_LEAST_SQUARES;
            quantize_whole(&context, &spec, input < 2 ? (const void *)halves : (const void *)bytes,
                           input == 0 ? AQ_DTYPE_BF16 : dtypes[input], NULL, &out);
        }
        aq_quant_spec fast;
        memset(&fast, 0, sizeof fast);
        fast.params = AQ_PARAM_F16;
        fast.bits = 4;
        fast.group_size = 128;
        fast.fit = AQ_FIT_FAST;
        CHECK_STATUS(aq_quantize(&context, &fast, halves, AQ_DTYPE_BF16, ROWS, COLS, NULL, out.codes,
                                 out.params, NULL, NULL, NULL), AQ_OK);
        aq_to_f32(&context, AQ_DTYPE_F16, halves, wide, ROWS * COLS);
        for (i = 0; i < sizeof calls / sizeof *calls; i++) {
            CHECK(calls[i] > 0);
        }
    }
}

/* No two tables share a function, so a table's name says which code runs. */
TEST(tables_are_apart) {
    const struct aq_kernels *all[4];
    size_t i, j, count = 0;
    all[count++] = aq_simd_kernels("scalar");
    for (i = 0; i < table_count; i++) {
        all[count++] = tables[i];
    }
    for (i = 0; i < count; i++) {
        for (j = i + 1; j < count; j++) {
            CHECK(all[i]->range != all[j]->range);
            CHECK(all[i]->fit_affine != all[j]->fit_affine);
            CHECK(all[i]->fit_symmetric != all[j]->fit_symmetric);
            CHECK(all[i]->encode != all[j]->encode);
            CHECK(all[i]->decode != all[j]->decode);
            CHECK(all[i]->compare != all[j]->compare);
            CHECK(all[i]->f16_to_f32 != all[j]->f16_to_f32);
            CHECK(all[i]->bf16_to_f32 != all[j]->bf16_to_f32);
            CHECK(all[i]->f8_e4m3_to_f32 != all[j]->f8_e4m3_to_f32);
            CHECK(all[i]->f8_e5m2_to_f32 != all[j]->f8_e5m2_to_f32);
            CHECK(all[i]->f32_to_f16 != all[j]->f32_to_f16);
            CHECK(all[i]->f32_to_bf16 != all[j]->f32_to_bf16);
            if (strcmp(all[i]->dots, all[j]->dots) != 0) {
                CHECK(all[i]->dot != all[j]->dot);
                CHECK(all[i]->dot_codes != all[j]->dot_codes);
                CHECK(all[i]->unpack != all[j]->unpack);
            }
        }
    }
}

/* Each ISA of the public enumeration: its table, or an error that says what to do. */
TEST(contexts) {
    static const aq_isa isas[] = {AQ_ISA_SCALAR, AQ_ISA_AVX2, AQ_ISA_AVX512, AQ_ISA_NEON};
    size_t i;
    for (i = 0; i < sizeof isas / sizeof *isas; i++) {
        const struct aq_kernels *table = aq_simd_kernels(aq_isa_name(isas[i]));
        aq_context *context = NULL;
        aq_error err;
        aq_status status = aq_context_create(isas[i], NULL, &context, &err);
        if (table) {
            CHECK(status == AQ_OK && context->isa == isas[i] && context->kernels == table);
            CHECK_STR(table->name, aq_isa_name(isas[i]));
            aq_context_destroy(context);
        } else {
            CHECK(status == AQ_ERR_UNSUPPORTED && !context);
            CHECK(strstr(err.message, aq_isa_name(isas[i])) != NULL);
            CHECK(strstr(err.message, "use scalar or auto") != NULL);
        }
    }
    CHECK(aq_simd_kernels("sse9") == NULL && aq_simd_kernels("") == NULL);
#if defined(__GNUC__) && defined(__x86_64__) && !defined(ARROWQUANT_NO_SIMD)
    __builtin_cpu_init();
    CHECK(!!aq_simd_kernels("avx2") == !!(__builtin_cpu_supports("avx2")));
#  if defined(AQ_EMULATED_FEATURES)
    CHECK_STR(aq_simd_kernels("avx512")->dots, "vnni");
#  else
    CHECK(!!aq_simd_kernels("avx512") ==
          (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")));
    if (aq_simd_kernels("avx512")) {
        CHECK_STR(aq_simd_kernels("avx512")->dots,
                  __builtin_cpu_supports("avx512vnni") ? "vnni" : "avx2");
    }
#  endif
    CHECK_STR(aq_simd_kernels(NULL)->name, aq_simd_kernels("avx512") ? "avx512"
                                           : aq_simd_kernels("avx2") ? "avx2" : "scalar");
#endif
}

int main(int argc, char **argv) {
    const char *goal = argc > 1 ? argv[1] : getenv("AQ_SIMD_GROUPS");
    find_tables();
    if (goal) {
        group_goal = strtoul(goal, NULL, 10);
    }
    if (argc > 2) {
        first_seed = strtoul(argv[2], NULL, 10);
    }
    if (table_count == 0) {
        printf("skipped: this machine has no kernels but the scalar ones\n");
        test_skipped++;
    }
    RUN(ranges);
    RUN(fits);
    RUN(codes);
    RUN(sums);
    RUN(conversions);
    RUN(dots);
    RUN(longest_dots);
    RUN(every_half);
    RUN(whole_path);
    RUN(unmeasured_bf16);
    RUN(past_the_caches);
    RUN(kernels_that_run);
    RUN(tables_are_apart);
    RUN(contexts);
    return test_end();
}
