/* Quantizes a file of raw weights for tests/py/test_quant_reference.py and test_gptq.py:
 *
 *     quant CODE[-fast] F16|F32|Q8 BITS GROUP ROWS COLS DTYPE WEIGHTS COLUMN_WEIGHTS|- OUT
 *
 * writes codes, parameters, row parameters, decoded F32, then dot, original, quantized, error and
 * max_error as F64. Prints one line, "ok" or the error. GPTQ:HESSIAN in place of the column weights
 * quantizes with that Hessian, MEASURE:HESSIAN only measures the output with it; then output_signal,
 * output_error and damping follow. */
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

static aq_code code_of(const char *name) {
    int i;
    for (i = 0; i < (int)AQ_CODE_COUNT; i++) {
        const char *code = aq_code_name((aq_code)i);
        size_t size = strlen(code);
        if (strncmp(name, code, size) == 0 && (name[size] == 0 || name[size] == '-')) {
            return (aq_code)i;
        }
    }
    printf("no such code: %s\n", name);
    exit(2);
}

int main(int argc, char **argv) {
    aq_quant_spec spec;
    aq_quant_layout layout;
    aq_gptq_result result;
    aq_quality quality;
    aq_error err;
    uint64_t rows, cols;
    aq_dtype dtype;
    void *weights, *column_weights = NULL;
    float *hessian = NULL;
    uint8_t *out;
    float *decoded;
    double figures[8];
    int gptq;
    size_t parts, count;
    FILE *file;
    if (argc != 11) {
        return 2;
    }
    spec.code = code_of(argv[1]);
    spec.params = strcmp(argv[2], "F16") == 0   ? AQ_PARAM_F16
                  : strcmp(argv[2], "F32") == 0 ? AQ_PARAM_F32 : AQ_PARAM_Q8;
    spec.bits = (uint32_t)strtoul(argv[3], NULL, 10);
    spec.group_size = (uint32_t)strtoul(argv[4], NULL, 10);
    spec.fit = strstr(argv[1], "-fast") ? AQ_FIT_FAST : AQ_FIT_LEAST_SQUARES;
    rows = strtoul(argv[5], NULL, 10);
    cols = strtoul(argv[6], NULL, 10);
    dtype = dtype_of(argv[7]);
    count = (size_t)(rows * cols);
    weights = read_file(argv[8], count * aq_dtype_size(dtype));
    gptq = strncmp(argv[9], "GPTQ:", 5) == 0;
    if (strchr(argv[9], ':')) {
        hessian = (float *)read_file(strchr(argv[9], ':') + 1, (size_t)(cols * cols) * sizeof(float));
    } else if (strcmp(argv[9], "-") != 0) {
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
        (gptq ? aq_quantize_gptq(NULL, &spec, weights, dtype, rows, cols, hessian, out,
                                 out + layout.code_bytes,
                                 out + layout.code_bytes + layout.param_bytes, &result, &err)
              : aq_quantize(NULL, &spec, weights, dtype, rows, cols, (const float *)column_weights,
                            out, out + layout.code_bytes,
                            out + layout.code_bytes + layout.param_bytes, &quality, &err)) !=
            AQ_OK ||
        (hessian && !gptq &&
         aq_measure_output(NULL, &spec, weights, dtype, rows, cols, hessian, out,
                           out + layout.code_bytes, out + layout.code_bytes + layout.param_bytes,
                           &result, &err) != AQ_OK) ||
        aq_dequantize(NULL, &spec, out, out + layout.code_bytes,
                      out + layout.code_bytes + layout.param_bytes, rows, cols, AQ_DTYPE_F32,
                      decoded, &err) != AQ_OK) {
        printf("%s: %s\n", aq_status_name(err.status), err.message);
        return 1;
    }
    memset(figures, 0, sizeof figures);
    if (hessian) {
        quality = result.quality;
        figures[5] = result.output_signal;
        figures[6] = result.output_error;
        figures[7] = result.damping;
    }
    figures[0] = quality.dot;
    figures[1] = quality.original;
    figures[2] = quality.quantized;
    figures[3] = quality.error;
    figures[4] = quality.max_error;
    file = fopen(argv[10], "wb");
    if (!file || fwrite(out, 1, parts, file) != parts ||
        fwrite(decoded, sizeof *decoded, count, file) != count ||
        fwrite(figures, sizeof *figures, hessian ? 8 : 5, file) != (hessian ? 8u : 5u) ||
        fclose(file) != 0) {
        printf("cannot write %s\n", argv[10]);
        return 2;
    }
    printf("ok\n");
    free(weights);
    free(column_weights);
    free(hessian);
    free(out);
    free(decoded);
    return test_broken;
}
