/* Quantizes a file of raw weights for tests/py/test_quant_reference.py:
 *
 *     quant affine|symmetric F16|F32|Q8 BITS GROUP ROWS COLS DTYPE WEIGHTS COLUMN_WEIGHTS|- OUT
 *
 * writes codes, parameters, row parameters, decoded F32, then dot, original, quantized, error and
 * max_error as F64. Prints one line, "ok" or the error. */
#include "test.h"

static void *read_file(const char *path, size_t size) {
    FILE *file = fopen(path, "rb");
    void *data = malloc(size + 1);
    if (!file || !data || fread(data, 1, size, file) != size) {
        printf("cannot read %s\n", path);
        exit(2);
    }
    fclose(file);
    return data;
}

static aq_dtype dtype_of(const char *name) {
    int i;
    for (i = 0; i < (int)AQ_DTYPE_COUNT; i++) {
        if (strcmp(name, aq_dtype_name((aq_dtype)i)) == 0) {
            return (aq_dtype)i;
        }
    }
    printf("no such type: %s\n", name);
    exit(2);
}

int main(int argc, char **argv) {
    aq_quant_spec spec;
    aq_quant_layout layout;
    aq_quality quality;
    aq_error err;
    uint64_t rows, cols;
    aq_dtype dtype;
    void *weights, *column_weights = NULL;
    uint8_t *out;
    float *decoded;
    double figures[5];
    size_t parts, count;
    FILE *file;
    if (argc != 11) {
        return 2;
    }
    spec.code = strcmp(argv[1], "affine") == 0 ? AQ_CODE_AFFINE : AQ_CODE_SYMMETRIC;
    spec.params = strcmp(argv[2], "F16") == 0   ? AQ_PARAM_F16
                  : strcmp(argv[2], "F32") == 0 ? AQ_PARAM_F32 : AQ_PARAM_Q8;
    spec.bits = (uint32_t)strtoul(argv[3], NULL, 10);
    spec.group_size = (uint32_t)strtoul(argv[4], NULL, 10);
    rows = strtoul(argv[5], NULL, 10);
    cols = strtoul(argv[6], NULL, 10);
    dtype = dtype_of(argv[7]);
    count = (size_t)(rows * cols);
    weights = read_file(argv[8], count * aq_dtype_size(dtype));
    if (strcmp(argv[9], "-") != 0) {
        column_weights = read_file(argv[9], (size_t)cols * sizeof(float));
    }
    if (aq_quantized_size(&spec, rows, cols, &layout, &err) != AQ_OK) {
        printf("%s\n", err.message);
        return 1;
    }
    parts = (size_t)(layout.code_bytes + layout.param_bytes + layout.extra_bytes);
    out = (uint8_t *)malloc(parts + 1);
    decoded = (float *)malloc(count * sizeof *decoded + 1);
    if (!out || !decoded ||
        aq_quantize(NULL, &spec, weights, dtype, rows, cols, (const float *)column_weights, out,
                    out + layout.code_bytes, out + layout.code_bytes + layout.param_bytes,
                    &quality, &err) != AQ_OK ||
        aq_dequantize(NULL, &spec, out, out + layout.code_bytes,
                      out + layout.code_bytes + layout.param_bytes, rows, cols, AQ_DTYPE_F32,
                      decoded, &err) != AQ_OK) {
        printf("%s: %s\n", aq_status_name(err.status), err.message);
        return 1;
    }
    figures[0] = quality.dot;
    figures[1] = quality.original;
    figures[2] = quality.quantized;
    figures[3] = quality.error;
    figures[4] = quality.max_error;
    file = fopen(argv[10], "wb");
    if (!file || fwrite(out, 1, parts, file) != parts ||
        fwrite(decoded, sizeof *decoded, count, file) != count ||
        fwrite(figures, sizeof *figures, 5, file) != 5 || fclose(file) != 0) {
        printf("cannot write %s\n", argv[10]);
        return 2;
    }
    printf("ok\n");
    free(weights);
    free(column_weights);
    free(out);
    free(decoded);
    return test_broken;
}
