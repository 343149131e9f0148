/* Kernels: every ISA of this machine gives the bits of the scalar one, on rows of any floats, codes of
 * any bytes, groups and lengths of any size.
 *
 *   clang -g1 -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_kernels.c \
 *       build/fuzz/arrowquant.o -o build/fuzz/kernels -lm -lpthread
 */
#include "fuzz.h"

#define MOST 600u
#define GROUPS (MOST / 32u + 1u)

static const char *const isa_names[] = {"avx2", "avx512", "neon"};

typedef struct fuzz_shape {
    size_t group, count, groups, bytes; /* bytes of all codes */
    uint32_t bits;
    bool symmetric, weighted;
} fuzz_shape;

/* As the fits take them: 0, or a magnitude in 2^-40 … 2^40. */
static void tame(float *x, size_t count, bool positive) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = aq_simd_bits(x[i]), exponent = bits >> 23 & 255u;
        if (exponent < 127u - 40u) bits = 0;
        if (exponent > 127u + 39u) bits = (bits & 0x807FFFFFu) | (127u + 39u) << 23;
        x[i] = aq_simd_float(positive ? bits & 0x7FFFFFFFu : bits);
    }
}

/* NaNs compare equal: which of two gets through an addition is not defined. */
static bool alike(float a, float b) {
    return memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b);
}

static void check_range(const struct aq_kernels *scalar, const struct aq_kernels *table,
                        const fuzz_shape *s, const float *x, aq_simd_range *expected) {
    aq_simd_range got[GROUPS];
    scalar->range(x, s->count, s->group, expected);
    table->range(x, s->count, s->group, got);
    for (size_t i = 0; i < s->groups; i++) { /* the sign of a zero is not defined */
        FUZZ_CHECK(got[i].absmax == expected[i].absmax);
        FUZZ_CHECK(got[i].absmax > 0x7F800000u ||
                   (got[i].low == expected[i].low && got[i].high == expected[i].high));
    }
}

static void check_fit(const struct aq_kernels *scalar, const struct aq_kernels *table,
                      const fuzz_shape *s, const float *x, const float *weights) {
    aq_simd_range ranges[GROUPS], live[GROUPS];
    aq_simd_fit expected[GROUPS], got[GROUPS];
    check_range(scalar, table, s, x, ranges);
    scalar->range(weights, s->count, s->group, live);
    for (size_t i = 0; i < s->groups; i++)
        if (live[i].absmax == 0) return; /* a group that weighs nothing is not asked for */
    (s->symmetric ? scalar->fit_symmetric : scalar->fit_affine)(
        x, s->weighted ? weights : NULL, s->count, s->group, s->bits, ranges, expected);
    (s->symmetric ? table->fit_symmetric : table->fit_affine)(
        x, s->weighted ? weights : NULL, s->count, s->group, s->bits, ranges, got);
    for (size_t i = 0; i < s->groups; i++) {
        FUZZ_CHECK(memcmp(&got[i].mean, &expected[i].mean, sizeof got[i].mean) == 0);
        FUZZ_CHECK(memcmp(&got[i].scale, &expected[i].scale, sizeof got[i].scale) == 0);
        FUZZ_CHECK(memcmp(&got[i].code, &expected[i].code, sizeof got[i].code) == 0);
    }
}

/* Grids from the input too: their scales are any but 0. */
static void check_codes(const struct aq_kernels *scalar, const struct aq_kernels *table,
                        const fuzz_shape *s, const float *x, const float *parameters) {
    uint8_t expected[MOST], got[MOST];
    float decoded[MOST], back[MOST], aligned[MOST + 32];
    float *line = aligned + (0u - (uintptr_t)aligned) % 64 / sizeof(float) + 4 * (s->count % 4);
    aq_simd_grid grids[GROUPS];
    for (size_t i = 0; i < s->groups; i++) {
        grids[i].scale = parameters[2 * i] == 0.0f ? 1.0f : parameters[2 * i];
        grids[i].min = parameters[2 * i + 1];
    }
    scalar->encode(x, s->count, s->group, s->bits, s->symmetric, grids, expected);
    table->encode(x, s->count, s->group, s->bits, s->symmetric, grids, got);
    FUZZ_CHECK(memcmp(expected, got, s->bytes) == 0);
    scalar->decode(expected, s->count, s->group, s->bits, s->symmetric, grids, decoded);
    table->decode(expected, s->count, s->group, s->bits, s->symmetric, grids, back);
    FUZZ_CHECK(memcmp(decoded, back, s->count * sizeof(float)) == 0);
    if (table->decode_past) {
        table->decode_past(expected, s->count, s->group, s->bits, s->symmetric, grids, line);
        table->stream(NULL, NULL, 0);
        FUZZ_CHECK(memcmp(decoded, line, s->count * sizeof(float)) == 0);
    }
}

/* The upper halves of the same values. */
static void check_bf16(const struct aq_kernels *scalar, const struct aq_kernels *table,
                       const fuzz_shape *s, const float *x, const float *any) {
    static uint16_t halves[MOST], all[MOST];
    uint8_t expected[MOST], got[MOST];
    aq_simd_range ranges[GROUPS], found[GROUPS];
    aq_simd_grid grids[GROUPS];
    for (size_t i = 0; i < s->count; i++) {
        halves[i] = (uint16_t)(aq_simd_bits(x[i]) >> 16);
        all[i] = (uint16_t)(aq_simd_bits(any[i]) >> 16);
    }
    scalar->range_bf16(all, s->count, s->group, ranges);
    table->range_bf16(all, s->count, s->group, found);
    for (size_t i = 0; i < s->groups; i++) {
        bool finite = ranges[i].absmax < 0x7F800000u;
        FUZZ_CHECK(finite == (found[i].absmax < 0x7F800000u));
        FUZZ_CHECK(!finite || (found[i].absmax == ranges[i].absmax && found[i].low == ranges[i].low &&
                               found[i].high == ranges[i].high));
        grids[i].scale = x[2 * i] == 0.0f ? 1.0f : x[2 * i];
        grids[i].min = x[2 * i + 1];
    }
    scalar->encode_bf16(halves, s->count, s->group, s->bits, s->symmetric, grids, expected);
    table->encode_bf16(halves, s->count, s->group, s->bits, s->symmetric, grids, got);
    FUZZ_CHECK(memcmp(expected, got, s->bytes) == 0);
}

static void check_sums(const struct aq_kernels *scalar, const struct aq_kernels *table,
                       const float *a, const float *b, size_t count) {
    aq_simd_sums expected, got;
    scalar->compare(a, b, count, &expected);
    table->compare(a, b, count, &got);
    FUZZ_CHECK(alike(expected.dot, got.dot) && alike(expected.first, got.first));
    FUZZ_CHECK(alike(expected.second, got.second) && alike(expected.error, got.error));
    FUZZ_CHECK(alike(expected.max_error, got.max_error));
}

static void check_conversions(const struct aq_kernels *scalar, const struct aq_kernels *table,
                              const uint8_t *bytes, size_t size, const float *x, size_t count) {
    uint16_t halves[2][MOST];
    float wide[2][MOST];
#define SAME(name, from, to, number, each)                                                         \
    scalar->name(from, to[0], number);                                                             \
    table->name(from, to[1], number);                                                              \
    FUZZ_CHECK(memcmp(to[0], to[1], (number) * (each)) == 0)
    SAME(f16_to_f32, bytes, wide, size / 2, 4);
    SAME(bf16_to_f32, bytes, wide, size / 2, 4);
    SAME(f8_e4m3_to_f32, bytes, wide, size, 4);
    SAME(f8_e5m2_to_f32, bytes, wide, size, 4);
    SAME(f32_to_f16, x, halves, count, 2);
    SAME(f32_to_bf16, x, halves, count, 2);
#undef SAME
}

static void check_dots(const struct aq_kernels *scalar, const struct aq_kernels *table,
                       const fuzz_shape *s, const uint8_t *codes, const int8_t *x) {
    int32_t expected[GROUPS], got[GROUPS];
    uint8_t plain[MOST], unpacked[MOST];
    scalar->dot_codes(codes, 0, 1, s->bits, x, s->count, s->group, expected);
    table->dot_codes(codes, 0, 1, s->bits, x, s->count, s->group, got);
    FUZZ_CHECK(memcmp(expected, got, s->groups * sizeof(int32_t)) == 0);
    scalar->unpack(codes, s->count, s->bits, plain);
    table->unpack(codes, s->count, s->bits, unpacked);
    FUZZ_CHECK(memcmp(plain, unpacked, s->count) == 0);
    FUZZ_CHECK(scalar->dot((const int8_t *)codes, x, s->bytes) ==
               table->dot((const int8_t *)codes, x, s->bytes));
}

/* The shape from three bytes; every array from the rest, over and over. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t bytes[4 * MOST], more[4 * MOST];
    static float x[MOST], other[MOST], fitted[MOST], weights[MOST];
    const struct aq_kernels *scalar = aq_simd_kernels("scalar");
    fuzz_shape s;
    if (size < 4) return 0;
    s.group = 32u * (1u + data[0] % 8u);
    s.count = 1u + (size_t)(data[0] / 8u * 256u + data[1]) % MOST;
    s.bits = 2u << data[2] % 3u;
    s.symmetric = (data[2] & 64u) != 0;
    s.weighted = (data[2] & 128u) != 0;
    s.groups = (s.count + s.group - 1) / s.group;
    s.bytes = (s.count * s.bits + 7) / 8;
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = data[3 + i % (size - 3)];
        more[i] = data[3 + (i + i / 7) % (size - 3)];
    }
    memcpy(x, bytes, sizeof x);
    memcpy(other, more, sizeof other);
    memcpy(fitted, x, sizeof x);
    memcpy(weights, other, sizeof other);
    tame(fitted, MOST, false);
    tame(weights, MOST, true);
    aq_simd_mode mode = aq_simd_mode_enter();
    for (size_t t = 0; t < sizeof isa_names / sizeof *isa_names; t++) {
        const struct aq_kernels *table = aq_simd_kernels(isa_names[t]);
        aq_simd_range ranges[GROUPS];
        if (!table) continue;
        check_range(scalar, table, &s, x, ranges);
        check_fit(scalar, table, &s, fitted, weights);
        check_codes(scalar, table, &s, fitted, fitted + 1);
        check_bf16(scalar, table, &s, fitted, x);
        check_sums(scalar, table, x, other, s.count < 256 ? s.count : 256);
        check_conversions(scalar, table, bytes, s.count, x, s.count);
        check_dots(scalar, table, &s, bytes, (const int8_t *)more);
    }
    aq_simd_mode_leave(mode);
    return 0;
}
