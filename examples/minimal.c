/* Quantizes a model folder with the defaults (INT4, groups of 128) and says how good the result is.
 * Build and run: cc -O2 examples/minimal.c -o minimal -lpthread -lm && ./minimal MODEL OUT */
#define ARROWQUANT_IMPLEMENTATION
#include "../arrowquant.h"

#include <stdio.h>

int main(int argc, char **argv) {
    aq_result result;
    aq_error err;
    if (argc != 3) {
        fprintf(stderr, "usage: minimal MODEL OUT\n");
        return 2;
    }
    if (aq_quantize_model(NULL, argv[1], argv[2], NULL, NULL, NULL, &result, &err)) {
        fprintf(stderr, "%s\n%s\n", err.message, aq_status_hint(err.status));
        return 1;
    }
    printf("%.2f times smaller, %.2f bits a weight, cosine similarity %.4f\n",
           result.compression_ratio, result.bits_per_weight, result.cosine_similarity);
    aq_result_free(&result);
    return 0;
}
