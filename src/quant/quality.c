/* Sums over pairs of weights, and the figures that follow from them. */
#include "tile.h"

#include <math.h>

ARROWQUANT_API double aq_quality_cosine(const aq_quality *quality) {
    double cosine;
    if (quality->original == 0.0 && quality->quantized == 0.0) {
        return 1.0;
    }
    if (quality->original == 0.0 || quality->quantized == 0.0) {
        return 0.0;
    }
    cosine = quality->dot / (sqrt(quality->original) * sqrt(quality->quantized));
    return cosine > 1.0 ? 1.0 : cosine < -1.0 ? -1.0 : cosine;
}

/* Of a value > 0; one that is not finite is returned as it is. The figure is stored in files, and
 * the C libraries' log10 differ in the last place. */
AQ_SIMD_EXACT AQ_LIB double aq_log10(double value) {
    AQ_SIMD_EXACT_BODY
    const uint64_t exponent_bits = UINT64_C(0x7FF) << 52;
    double exponent = 0.0, ratio, square, sum = 0.0, term;
    uint64_t bits;
    if (value < DBL_MIN) {
        value *= 18014398509481984.0; /* 2^54 */
        exponent = -54.0;
    }
    memcpy(&bits, &value, sizeof bits);
    if (bits >= exponent_bits) {
        return value;
    }
    exponent += (double)(bits >> 52) - 1023.0;
    bits = (bits & ~exponent_bits) | UINT64_C(1023) << 52;
    memcpy(&value, &bits, sizeof value);
    if (value > 1.4142135623730951) {
        value *= 0.5;
        exponent += 1.0;
    }
    ratio = (value - 1.0) / (value + 1.0); /* ln value = 2·(ratio + ratio³/3 + ratio⁵/5 …) */
    square = ratio * ratio;
    for (term = 21.0; term > 0.0; term -= 2.0) {
        sum = sum * square + 1.0 / term;
    }
    return exponent * 0.30102999566398119521 + ratio * sum * 0.86858896380650365530;
}

ARROWQUANT_API double aq_quality_sqnr_db(const aq_quality *quality) {
    if (quality->error == 0.0) {
        return HUGE_VAL;
    }
    if (quality->original == 0.0) {
        return -HUGE_VAL;
    }
    return 10.0 * (aq_log10(quality->original) - aq_log10(quality->error));
}

ARROWQUANT_API void aq_quality_add(aq_quality *total, const aq_quality *part) {
    total->dot += part->dot;
    total->original += part->original;
    total->quantized += part->quantized;
    total->error += part->error;
    total->max_error = part->max_error > total->max_error ? part->max_error : total->max_error;
    total->count += part->count;
}

/* For values whose squares F32 cannot hold. */
AQ_SIMD_EXACT static void aq_compare_wide(const float *first, const float *second, size_t count,
                                          aq_quality *total) {
    AQ_SIMD_EXACT_BODY
    aq_quality sums;
    size_t i;
    memset(&sums, 0, sizeof sums);
    for (i = 0; i < count; i++) {
        double a = (double)first[i], b = (double)second[i], difference = a - b;
        double magnitude = difference < 0.0 ? -difference : difference;
        sums.dot += a * b;
        sums.original += a * a;
        sums.quantized += b * b;
        sums.error += difference * difference;
        sums.max_error = magnitude > sums.max_error ? magnitude : sums.max_error;
    }
    aq_quality_add(total, &sums);
}

/* Whether F32 sums of squares this large have lost nothing that matters, in either direction. */
static bool aq_sum_is_sound(float sum) {
    return sum >= 8.881784197001252e-16f && sum <= 1.2676506002282294e+30f; /* 2^-50 … 2^100 */
}

AQ_LIB void aq_compare_run(const struct aq_kernels *kernels, const float *first,
                           const float *second, size_t count, aq_quality *quality) {
    size_t begin, length;
    for (begin = 0; begin < count; begin += length) {
        aq_simd_sums sums;
        length = count - begin < AQ_SIMD_GROUP_MAX ? count - begin : AQ_SIMD_GROUP_MAX;
        kernels->compare(first + begin, second + begin, length, &sums);
        if (aq_sum_is_sound(sums.first) && aq_sum_is_sound(sums.second)) {
            quality->dot += (double)sums.dot;
            quality->original += (double)sums.first;
            quality->quantized += (double)sums.second;
            quality->error += (double)sums.error;
            quality->max_error = (double)sums.max_error > quality->max_error
                                     ? (double)sums.max_error : quality->max_error;
        } else {
            aq_compare_wide(first + begin, second + begin, length, quality);
        }
        quality->count += length;
    }
}

AQ_LIB void aq_compare_block(const aq_context *context, const float *first, const float *second,
                             uint64_t rows, uint64_t cols, aq_quality *quality) {
    const struct aq_kernels *kernels = aq_kernels_of(context);
    aq_simd_mode mode = aq_simd_mode_enter();
    uint64_t row;
    for (row = 0; row < rows; row++) {
        aq_quality sums;
        memset(&sums, 0, sizeof sums);
        aq_compare_run(kernels, first + (size_t)(row * cols), second + (size_t)(row * cols),
                       (size_t)cols, &sums);
        aq_quality_add(quality, &sums);
    }
    aq_simd_mode_leave(mode);
}
