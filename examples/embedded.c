/* One layer quantized to INT4 and back in static buffers: no heap, no files, no threads.
 *
 *     cc -O2 -o embedded examples/embedded.c -lm
 *     arm-none-eabi-gcc -Os -mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 \
 *         -ffunction-sections -fdata-sections -Wl,--gc-sections --specs=nano.specs \
 *         --specs=nosys.specs -o embedded.elf examples/embedded.c -lm
 *
 * The exit status is 0 when the result is as good as INT4 should be. */
#define ARROWQUANT_NO_STDIO
#define ARROWQUANT_NO_THREADS
#define ARROWQUANT_STATIC
#define ARROWQUANT_IMPLEMENTATION
#include "../arrowquant.h"

#if !defined(__arm__) || defined(__linux__)
#  include <stdio.h>
#  define EMBEDDED_HOSTED 1
#endif

#define ROWS 16
#define COLS 256
#define GROUP 64

static float weights[ROWS * COLS], restored[ROWS * COLS];
static uint8_t codes[ROWS * COLS / 2];              /* layout.code_bytes */
static uint8_t params[ROWS * (COLS / GROUP) * 2 * 2]; /* layout.param_bytes: scale and min in F16 */

/* Something like a trained layer: a bell of values between −0.12 and 0.12. */
static void make_layer(void) {
    uint32_t state = 1;
    int i, j;
    for (i = 0; i < ROWS * COLS; i++) {
        int32_t sum = 0;
        for (j = 0; j < 4; j++) {
            state = state * 1664525u + 1013904223u;
            sum += (int32_t)(state >> 16) - 32768;
        }
        weights[i] = (float)sum * (0.03f / 32768.0f);
    }
}

int main(void) {
    aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 4, GROUP, AQ_FIT_LEAST_SQUARES, 0, 0};
    aq_quant_layout layout;
    aq_quality quality;
    make_layer();
    if (aq_quantized_size(&spec, ROWS, COLS, &layout, NULL) != AQ_OK ||
        layout.code_bytes > sizeof codes || layout.param_bytes > sizeof params) {
        return 1;
    }
    if (aq_quantize(NULL, &spec, weights, AQ_DTYPE_F32, ROWS, COLS, NULL, codes, params, NULL,
                    &quality, NULL) != AQ_OK ||
        aq_dequantize(NULL, &spec, codes, params, NULL, ROWS, COLS, AQ_DTYPE_F32, restored,
                      NULL) != AQ_OK) {
        return 1;
    }
#ifdef EMBEDDED_HOSTED
    printf("%u weights, %u bytes in F32, %u quantized; cosine %.5f, SQNR %.2f dB\n",
           (unsigned)quality.count, (unsigned)sizeof weights,
           (unsigned)(layout.code_bytes + layout.param_bytes), aq_quality_cosine(&quality),
           aq_quality_sqnr_db(&quality));
#endif
    return quality.error * 100.0 < quality.original ? 0 : 1; /* over 20 dB */
}
