/* Scalar kernels: sixteen strips of sixteen weights side by side, for formats that fit a superblock
 * of 256 weights as a whole. Strip i is lane i: no sum crosses lanes. */
#include "simd.h"

#define AQ_STRIPS_MAGIC 12582912.0f /* 1.5·2^23: adding and taking it off rounds to an integer */

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_scalar_strips_load(const float *x, const float *weights,
                                                     aq_simd_strips *out) {
    AQ_SIMD_EXACT_BODY
    size_t lane, step;
    for (lane = 0; lane < AQ_SIMD_LANES; lane++) {
        float low = x[16 * lane], high = low, weight = 0.0f, sum = 0.0f, square = 0.0f;
        for (step = 0; step < 16; step++) {
            float value = x[16 * lane + step], w = weights ? weights[16 * lane + step] : 1.0f;
            float product = w * value;
            low = value < low ? value : low;
            high = value > high ? value : high;
            weight += w;
            sum += product;
            square += product * value;
            out->x[16 * step + lane] = value;
            if (weights) {
                out->weights[16 * step + lane] = w;
            }
        }
        out->low[lane] = low;
        out->high[lane] = high;
        out->weight[lane] = weight;
        out->sum[lane] = sum;
        out->square[lane] = square;
    }
    out->weighted = weights != NULL;
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_scalar_strips_sums(aq_simd_strips *strips, float most) {
    AQ_SIMD_EXACT_BODY
    size_t lane, step;
    for (lane = 0; lane < AQ_SIMD_LANES; lane++) {
        float base = strips->base[lane], inverse = strips->inverse[lane];
        float code = 0.0f, code2 = 0.0f, cross = 0.0f;
        for (step = 0; step < 16; step++) {
            float value = strips->x[16 * step + lane], c = (value - base) * inverse, product;
            c = c < 0.0f ? 0.0f : c;
            c = c > most ? most : c;
            c = (c + AQ_STRIPS_MAGIC) - AQ_STRIPS_MAGIC;
            product = strips->weighted ? strips->weights[16 * step + lane] * c : c;
            code += product;
            code2 += product * c;
            cross += product * value;
        }
        strips->code[lane] = code;
        strips->code2[lane] = code2;
        strips->cross[lane] = cross;
    }
}

AQ_SIMD_EXACT AQ_SIMD_LIB void aq_scalar_strips_codes(const aq_simd_strips *strips, float most,
                                                      const float *x, uint8_t *codes) {
    AQ_SIMD_EXACT_BODY
    size_t lane, step;
    for (lane = 0; lane < AQ_SIMD_LANES; lane++) {
        float base = strips->base[lane], inverse = strips->inverse[lane];
        for (step = 0; step < 16; step++) {
            float c = (x[16 * lane + step] - base) * inverse;
            uint32_t bits;
            c = c < 0.0f ? 0.0f : c;
            c = c > most ? most : c;
            c += AQ_STRIPS_MAGIC;
            memcpy(&bits, &c, sizeof bits);
            codes[16 * lane + step] = (uint8_t)(bits & 0xFFu);
        }
    }
}

#undef AQ_STRIPS_MAGIC
