/* Uses an installed arrowquant.h: see CMakeLists.txt and Makefile beside it. Prints how 4 bits treat
 * a ramp of 256 numbers. */
#define ARROWQUANT_IMPLEMENTATION
#include <arrowquant.h>

#include <stdio.h>

int main(void) {
    float ramp[256];
    unsigned char codes[128], params[8];
    aq_quant_spec spec = { AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 128, AQ_FIT_LEAST_SQUARES, 0, 0 };
    aq_quality quality;
    aq_error err;
    for (int i = 0; i < 256; i++) ramp[i] = (float)i / 255.0f;
    if (aq_quantize(NULL, &spec, ramp, AQ_DTYPE_F32, 1, 256, NULL, codes, params, NULL, &quality,
                    &err)) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    printf("arrowquant %s: SQNR %.2f dB\n", aq_version(), aq_quality_sqnr_db(&quality));
    return 0;
}
