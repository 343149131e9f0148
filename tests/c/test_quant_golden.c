/* tests/fixtures/quant_golden.txt: CRC-32 of what the quantizer gives for weights made by integer
 * arithmetic. Every ISA, compiler and machine must give the same bits.
 *
 *     test_quant_golden --write > tests/fixtures/quant_golden.txt     after a change on purpose
 */
#include "test.h"

#define ROWS 3u
#define COLS 777u
#define LINE 160

typedef enum kind { BELL, HEAVY, SHIFTED, TINY, DENORMAL, HUGE_ONES, MIXED, KINDS } kind;
static const char *const kind_names[KINDS] = {"bell", "heavy", "shifted", "tiny",
                                              "denormal", "huge", "mixed"};

/* 2^exponent, from its bits */
static float power_of_two(int exponent) {
    uint32_t bits = exponent >= -126 ? (uint32_t)(exponent + 127) << 23 : 1u << (exponent + 149);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Whole numbers of at most 24 bits times powers of two: exact, so the same everywhere. */
static void make_weights(kind which, float *weights) {
    uint64_t state = (uint64_t)which + 1;
    size_t i;
    for (i = 0; i < ROWS * COLS; i++) {
        uint64_t random = test_random(&state), more = test_random(&state);
        int32_t bell = (int32_t)(random & 0xFFFF) + (int32_t)(random >> 16 & 0xFFFF) +
                       (int32_t)(random >> 32 & 0xFFFF) + (int32_t)(random >> 48) - 131070;
        int exponent = -16;
        switch (which) {
        case HEAVY: exponent += (int)(more % 5) * (more & 0x100 ? 1 : -1); break;
        case SHIFTED: bell += 8000000; break;
        case TINY: exponent = -125; break;
        case DENORMAL: bell /= 16; exponent = -149; break;
        case HUGE_ONES: exponent = 109; break;
        case MIXED:
            bell = i / 64 % 5 == 0 ? 0 : i / 64 % 5 == 1 ? 4096 : bell / (1 << (i / 64 % 7 * 2));
            break;
        default: break;
        }
        weights[i] = (float)bell * power_of_two(exponent);
    }
}

static void make_column_weights(float *weights) {
    uint64_t state = 99;
    size_t i;
    for (i = 0; i < COLS; i++) {
        uint64_t random = test_random(&state);
        weights[i] = (float)(random & 0xFFFF) * power_of_two((int)(random >> 60) - 16);
        weights[i] = random >> 20 & 15 ? weights[i] : 0.0f;
    }
}

/* One line of the file. */
static void describe(aq_context *context, const aq_crc32_tables *tables, kind which,
                     const aq_quant_spec *spec, int weighted, char *line) {
    static float weights[ROWS * COLS], column_weights[COLS], decoded[ROWS * COLS];
    static uint8_t codes[ROWS * 780], params[ROWS * 25 * 8], extra[ROWS * 4];
    aq_quant_layout layout;
    aq_quality quality;
    aq_status status;
    double sums[5];
    memset(&quality, 0, sizeof quality);
    make_weights(which, weights);
    make_column_weights(column_weights);
    aq_quantized_size(spec, ROWS, COLS, &layout, NULL);
    status = aq_quantize(context, spec, weights, AQ_DTYPE_F32, ROWS, COLS,
                         weighted ? column_weights : NULL, codes, params, extra, &quality, NULL);
    sprintf(line, "%s %s %s %u %u %s %s", kind_names[which], aq_code_name(spec->code),
            aq_param_type_name(spec->params), (unsigned)spec->bits, (unsigned)spec->group_size,
            weighted ? "weighted" : "plain", aq_status_name(status));
    if (status == AQ_OK) {
        aq_dequantize(context, spec, codes, params, extra, ROWS, COLS, AQ_DTYPE_F32, decoded, NULL);
        aq_little_endian(decoded, ROWS * COLS, 4);
        sums[0] = quality.dot;
        sums[1] = quality.original;
        sums[2] = quality.quantized;
        sums[3] = quality.error;
        sums[4] = quality.max_error;
        aq_little_endian(sums, 5, 8);
        sprintf(line + strlen(line), " %08lx %08lx %08lx %08lx %08lx",
                (unsigned long)aq_crc32(tables, 0, codes, (size_t)layout.code_bytes),
                (unsigned long)aq_crc32(tables, 0, params, (size_t)layout.param_bytes),
                (unsigned long)aq_crc32(tables, 0, extra, (size_t)layout.extra_bytes),
                (unsigned long)aq_crc32(tables, 0, decoded, sizeof decoded),
                (unsigned long)aq_crc32(tables, 0, sums, sizeof sums));
    }
    strcat(line, "\n");
}

/* Compares with the file, or prints; the number of lines that differ. */
static unsigned long all_lines(aq_context *context, FILE *file) {
    static const uint32_t bits[3] = {2, 4, 8}, groups[4] = {32, 64, 128, 256};
    aq_crc32_tables tables;
    unsigned long different = 0;
    int which, weighted, code, params, b, g;
    aq_crc32_init(&tables);
    for (which = 0; which < (int)KINDS; which++) {
        for (weighted = 0; weighted < (which <= (int)HEAVY ? 2 : 1); weighted++) {
            for (code = 0; code < 2; code++) {
                for (params = 0; params < 3; params++) {
                    for (b = 0; b < 3; b++) {
                        for (g = 0; g < 4; g++) {
                            aq_quant_spec spec;
                            char line[LINE], expected[LINE] = "";
                            spec.code = (aq_code)code;
                            spec.params = (aq_param_type)params;
                            spec.bits = bits[b];
                            spec.group_size = groups[g];
                            spec.fit = AQ_FIT_LEAST_SQUARES;
                            describe(context, &tables, (kind)which, &spec, weighted, line);
                            if (!file) {
                                fputs(line, stdout);
                            } else if (!fgets(expected, LINE, file) || strcmp(line, expected)) {
                                if (different++ < 5) {
                                    printf("got      %sexpected %s", line, expected);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    return different;
}

TEST(golden) {
    static const char path[] = "tests/fixtures/quant_golden.txt";
    int isa;
    for (isa = (int)AQ_ISA_SCALAR; isa <= (int)AQ_ISA_NEON; isa++) {
        aq_context *context = NULL;
        FILE *file;
        char rest[LINE];
        if (aq_context_create((aq_isa)isa, NULL, &context, NULL) != AQ_OK) {
            continue; /* this build or this machine lacks it */
        }
        file = fopen(path, "r");
        CHECK(file != NULL);
        if (file) {
            CHECK(all_lines(context, file) == 0);
            CHECK(fgets(rest, LINE, file) == NULL);
            fclose(file);
        }
        aq_context_destroy(context);
    }
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--write") == 0) {
        return (int)all_lines(NULL, NULL);
    }
    RUN(golden);
    return test_end();
}
