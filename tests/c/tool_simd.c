/* What tests/py/test_simd.py asks about the kernels of this machine:
 *
 *     simd list        the ISAs it has, the best first
 *     simd run ISA     quantizes and dequantizes with that ISA (or auto: what ARROW_QUANT_ISA says);
 *                      prints the ISA that was used and checksums of the results, or the error
 */
#include "test.h"

#define ROWS 5u
#define COLS 777u

static const char *const names[] = {"avx512", "avx2", "neon", "scalar"};

static int list(void) {
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        if (aq_simd_kernels(names[i])) {
            printf("%s\n", names[i]);
        }
    }
    return 0;
}

static int run(const char *name) {
    static float weights[ROWS * COLS], back[ROWS * COLS];
    static uint8_t codes[ROWS * (COLS + 4)], params[ROWS * 25 * 4];
    aq_crc32_tables tables;
    aq_context *context;
    aq_error err;
    uint64_t state = 11;
    uint32_t bits;
    size_t i;
    if (aq_context_create(test_isa(name), NULL, &context, &err) != AQ_OK) {
        printf("%s\n", err.message);
        return 1;
    }
    for (i = 0; i < ROWS * COLS; i++) {
        weights[i] = (float)(0.1 * test_normal(&state));
    }
    aq_crc32_init(&tables);
    printf("%s", aq_isa_name(context->isa));
    for (bits = 2; bits <= 8; bits *= 2) {
        aq_quant_spec spec;
        aq_quality quality;
        spec.code = AQ_CODE_AFFINE;
        spec.params = AQ_PARAM_F16;
        spec.bits = bits;
        spec.group_size = 32;
        spec.fit = AQ_FIT_LEAST_SQUARES;
        memset(codes, 0, sizeof codes);
        if (aq_quantize(context, &spec, weights, AQ_DTYPE_F32, ROWS, COLS, NULL, codes, params,
                        NULL, &quality, &err) != AQ_OK ||
            aq_dequantize(context, &spec, codes, params, NULL, ROWS, COLS, AQ_DTYPE_F32, back,
                          &err) != AQ_OK) {
            printf(" %s\n", err.message);
            return 1;
        }
        printf(" %08lx %08lx %08lx %a", (unsigned long)aq_crc32(&tables, 0, codes, sizeof codes),
               (unsigned long)aq_crc32(&tables, 0, params, sizeof params),
               (unsigned long)aq_crc32(&tables, 0, back, sizeof back), quality.error);
    }
    printf("\n");
    aq_context_destroy(context);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "list") == 0) {
        return list();
    }
    return argc == 3 && strcmp(argv[1], "run") == 0 ? run(argv[2]) : 2;
}
