/* F16, BF16 and F8 to and from F32: every value, every halfway case. */
#include "test.h"

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The value of a small float, from its definition. */
static double small_value(uint32_t code, int exponent_bits, int mantissa_bits) {
    int bias = (1 << (exponent_bits - 1)) - 1;
    uint32_t mantissa = code & ((1u << mantissa_bits) - 1u);
    int exponent = (int)(code >> mantissa_bits & ((1u << exponent_bits) - 1u));
    double sign = code >> (exponent_bits + mantissa_bits) & 1u ? -1.0 : 1.0;
    double fraction = (double)mantissa / (double)(1u << mantissa_bits);
    return sign * (exponent ? ldexp(1.0 + fraction, exponent - bias) : ldexp(fraction, 1 - bias));
}

/* Bit for bit, so that the sign of zero counts. */
static int same_value(float got, double expected) {
    return bits_of(got) == bits_of((float)expected);
}

static void convert_one(aq_dtype dtype, uint32_t code, float *out) {
    uint8_t bytes[3];
    uint16_t half = (uint16_t)code;
    if (aq_dtype_size(dtype) == 1) {
        bytes[1] = (uint8_t)code;
    } else {
        memcpy(bytes + 1, &half, sizeof half);
    }
    aq_to_f32(NULL, dtype, bytes + 1, out, 1); /* an odd address */
}

TEST(every_f16) {
    uint32_t code;
    for (code = 0; code < 65536; code++) {
        float value;
        convert_one(AQ_DTYPE_F16, code, &value);
        if ((code & 0x7C00u) != 0x7C00u) {
            CHECK(same_value(value, small_value(code, 5, 10)));
        } else if (code & 0x3FFu) {
            CHECK(bits_of(value) == ((code & 0x8000u) << 16 | 0x7FC00000u | (code & 0x3FFu) << 13));
        } else {
            CHECK(bits_of(value) == ((code & 0x8000u) << 16 | 0x7F800000u));
        }
    }
}

TEST(every_bf16) {
    uint32_t code;
    for (code = 0; code < 65536; code++) {
        float value;
        uint32_t quiet = (code & 0x7FFFu) > 0x7F80u ? 0x400000u : 0u;
        convert_one(AQ_DTYPE_BF16, code, &value);
        CHECK(bits_of(value) == (code << 16 | quiet));
    }
}

TEST(every_f8) {
    uint32_t code;
    float value;
    for (code = 0; code < 256; code++) {
        convert_one(AQ_DTYPE_F8_E4M3, code, &value);
        if ((code & 0x7Fu) == 0x7Fu) {
            CHECK(bits_of(value) == ((code & 0x80u) << 24 | 0x7FC00000u));
        } else {
            CHECK(same_value(value, small_value(code, 4, 3)));
        }
        convert_one(AQ_DTYPE_F8_E5M2, code, &value);
        if ((code & 0x7Cu) != 0x7Cu) {
            CHECK(same_value(value, small_value(code, 5, 2)));
        } else {
            CHECK(code & 3u ? value != value && (bits_of(value) & 0x400000u)
                            : bits_of(value) == ((code & 0x80u) << 24 | 0x7F800000u));
        }
    }
    convert_one(AQ_DTYPE_F8_E4M3, 0x7E, &value);
    CHECK(bits_of(value) == bits_of(448.0f));
    convert_one(AQ_DTYPE_F8_E5M2, 0x7B, &value);
    CHECK(bits_of(value) == bits_of(57344.0f));
}

static uint32_t round_to(aq_dtype dtype, float value) {
    uint8_t bytes[3];
    uint16_t half;
    aq_from_f32(NULL, dtype, &value, bytes + 1, 1);
    memcpy(&half, bytes + 1, sizeof half);
    return half;
}

/* Around the middle between each value and the next: below, on and above it, in either sign. */
TEST(f16_halfway) {
    uint32_t code;
    for (code = 0; code < 0x7C00u; code++) {
        double low = small_value(code, 5, 10);
        double high = code == 0x7BFFu ? 65536.0 : small_value(code + 1, 5, 10);
        uint32_t middle = bits_of((float)(0.5 * (low + high))); /* exact in F32 */
        uint32_t even = code & 1u ? code + 1 : code;
        CHECK(round_to(AQ_DTYPE_F16, (float)low) == code);
        CHECK(round_to(AQ_DTYPE_F16, float_of(middle)) == even);
        CHECK(round_to(AQ_DTYPE_F16, float_of(middle - 1)) == code);
        CHECK(round_to(AQ_DTYPE_F16, float_of(middle + 1)) == code + 1);
        CHECK(round_to(AQ_DTYPE_F16, float_of(middle | 0x80000000u)) == (even | 0x8000u));
        CHECK(round_to(AQ_DTYPE_F16, float_of((middle + 1) | 0x80000000u)) ==
              ((code + 1) | 0x8000u));
    }
    CHECK(round_to(AQ_DTYPE_F16, -0.0f) == 0x8000u);
    CHECK(round_to(AQ_DTYPE_F16, float_of(1)) == 0);
    CHECK(round_to(AQ_DTYPE_F16, 3e38f) == 0x7C00u);
    CHECK(round_to(AQ_DTYPE_F16, float_of(0xFF800000u)) == 0xFC00u);
    CHECK(round_to(AQ_DTYPE_F16, float_of(0x7F800001u)) == 0x7E00u);
    CHECK(round_to(AQ_DTYPE_F16, float_of(0xFFC02000u)) == 0xFE01u);
}

TEST(bf16_halfway) {
    uint32_t code;
    for (code = 0; code < 0x7F80u; code++) {
        uint32_t middle = code << 16 | 0x8000u, even = code & 1u ? code + 1 : code;
        CHECK(round_to(AQ_DTYPE_BF16, float_of(code << 16)) == code);
        CHECK(round_to(AQ_DTYPE_BF16, float_of(middle)) == even);
        CHECK(round_to(AQ_DTYPE_BF16, float_of(middle - 1)) == code);
        CHECK(round_to(AQ_DTYPE_BF16, float_of(middle + 1)) == code + 1);
        CHECK(round_to(AQ_DTYPE_BF16, float_of(middle | 0x80000000u)) == (even | 0x8000u));
        CHECK(round_to(AQ_DTYPE_BF16, float_of((middle + 1) | 0x80000000u)) ==
              ((code + 1) | 0x8000u));
    }
    CHECK(round_to(AQ_DTYPE_BF16, float_of(0x7F800001u)) == 0x7FC0u);
    CHECK(round_to(AQ_DTYPE_BF16, float_of(0xFFFFFFFFu)) == 0xFFFFu);
    CHECK(round_to(AQ_DTYPE_BF16, float_of(0x7F800000u)) == 0x7F80u);
}

TEST(round_trip) {
    uint32_t code;
    float value;
    for (code = 0; code < 65536; code++) {
        convert_one(AQ_DTYPE_F16, code, &value);
        CHECK(round_to(AQ_DTYPE_F16, value) == ((code & 0x7FFFu) > 0x7C00u ? code | 0x200u : code));
        convert_one(AQ_DTYPE_BF16, code, &value);
        CHECK(round_to(AQ_DTYPE_BF16, value) == ((code & 0x7FFFu) > 0x7F80u ? code | 0x40u : code));
    }
}

TEST(f64) {
    double values[4] = {1.0 / 3.0, -0.0, 1e-46, 1e300};
    float out[4];
    aq_to_f32(NULL, AQ_DTYPE_F64, values, out, 4);
    CHECK(out[0] == (float)(1.0 / 3.0));
    CHECK(bits_of(out[1]) == 0x80000000u);
    CHECK(out[2] == 0.0f);
    CHECK(bits_of(out[3]) == 0x7F800000u);
}

TEST(names_and_sizes) {
    CHECK_STR(aq_dtype_name(AQ_DTYPE_BF16), "BF16");
    CHECK_STR(aq_dtype_name(AQ_DTYPE_F8_E4M3), "F8_E4M3");
    CHECK(aq_dtype_size(AQ_DTYPE_F8_E5M2) == 1);
    CHECK(aq_dtype_size(AQ_DTYPE_F64) == 8);
    CHECK(aq_dtype_size((aq_dtype)AQ_DTYPE_COUNT) == 0);
    CHECK(aq_dtype_is_float(AQ_DTYPE_F8_E5M2));
    CHECK(!aq_dtype_is_float(AQ_DTYPE_I8));
    CHECK_STR(aq_code_name(AQ_CODE_SYMMETRIC), "symmetric");
    CHECK_STR(aq_param_type_name(AQ_PARAM_Q8), "Q8");
}

TEST(little_endian) {
    uint32_t words[2] = {UINT32_C(0x04030201), UINT32_C(0x08070605)};
    uint8_t bytes[8];
    size_t i;
    aq_little_endian(words, 2, 4);
    memcpy(bytes, words, 8);
    for (i = 0; i < 8; i++) {
        CHECK(bytes[i] == i + 1);
    }
}

int main(void) {
    RUN(every_f16);
    RUN(every_bf16);
    RUN(every_f8);
    RUN(f16_halfway);
    RUN(bf16_halfway);
    RUN(round_trip);
    RUN(f64);
    RUN(names_and_sizes);
    RUN(little_endian);
    return test_end();
}
