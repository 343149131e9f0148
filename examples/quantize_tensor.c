/* Quantizes one matrix in memory at 2, 4 and 8 bits, reads it back and prints the quality. The
 * library allocates nothing here: sizes first, then buffers of ours.
 * Build and run: cc -O2 examples/quantize_tensor.c -o quantize_tensor -lpthread -lm
 *                ./quantize_tensor */
#define ARROWQUANT_IMPLEMENTATION
#include "../arrowquant.h"

#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 256, COLS = 1000 }; /* no multiple of the group size: the last group is short */

/* A bell-shaped weight of standard deviation 0.02, as layers have them. */
static float next_weight(uint32_t *state) {
    double sum = 0;
    int i;
    for (i = 0; i < 12; i++) {
        *state = *state * 1664525u + 1013904223u;
        sum += *state / 4294967296.0;
    }
    return (float)(0.02 * (sum - 6));
}

static aq_status try_bits(uint32_t bits, const float *weights, float *back, aq_error *err) {
    aq_quant_spec spec = { AQ_CODE_AFFINE, AQ_PARAM_F16, bits, 128, AQ_FIT_LEAST_SQUARES, 0, 0 };
    aq_quant_layout layout;
    aq_quality quality;
    void *codes, *params;
    aq_status status = aq_quantized_size(&spec, ROWS, COLS, &layout, err);
    if (status) return status;
    codes = malloc((size_t)layout.code_bytes);
    params = malloc((size_t)layout.param_bytes);
    if (!codes || !params) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    status = aq_quantize(NULL, &spec, weights, AQ_DTYPE_F32, ROWS, COLS, NULL, codes, params, NULL,
                         &quality, err);
    if (!status)
        status = aq_dequantize(NULL, &spec, codes, params, NULL, ROWS, COLS, AQ_DTYPE_F32, back,
                               err);
    if (!status)
        printf("%u bits: %6.3f stored a weight, SQNR %5.2f dB, cosine %.6f, w[0] %+.5f -> %+.5f\n",
               (unsigned)bits,
               8.0 * (double)(layout.code_bytes + layout.param_bytes) / (ROWS * COLS),
               aq_quality_sqnr_db(&quality), aq_quality_cosine(&quality), (double)weights[0],
               (double)back[0]);
    free(codes);
    free(params);
    return status;
}

int main(void) {
    static float weights[ROWS * COLS], back[ROWS * COLS];
    uint32_t state = 1, bits, i;
    aq_error err;
    for (i = 0; i < ROWS * COLS; i++) weights[i] = next_weight(&state);
    for (bits = 2; bits <= 8; bits *= 2) {
        if (try_bits(bits, weights, back, &err)) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
    }
    return 0;
}
