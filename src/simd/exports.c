/* The functions of arrowquant_simd.h: the table's own, by rows. */
#include "arrowquant_simd_api.h"
#include "simd.h"

static const struct aq_kernels *aq_simd_best(const struct aq_kernels *kernels) {
    return kernels ? kernels : aq_simd_kernels(NULL);
}

ARROWQUANT_SIMD_API const struct aq_kernels *aq_simd_open(const char *isa) {
    return aq_simd_kernels(isa);
}

ARROWQUANT_SIMD_API const char *aq_simd_name(const struct aq_kernels *kernels) {
    return aq_simd_best(kernels)->name;
}

/* Whether F32 sums of squares hold: 2^-40 … 2^40, by the bits of the magnitude. */
static bool aq_simd_holds(uint32_t absmax) {
    return absmax >= 0x2B800000u && absmax <= 0x53800000u;
}

static bool aq_simd_fit_group(const struct aq_kernels *kernels, const float *weights,
                              const float *column_weights, size_t count, uint32_t bits,
                              bool symmetric, aq_simd_group *out) {
    aq_simd_range range, live;
    aq_simd_fit fit;
    kernels->range(weights, count, AQ_SIMD_GROUP_MAX, &range);
    if (range.absmax >= 0x7F800000u) {
        return false;
    }
    if (!(range.high > range.low)) {
        bool is_scale = symmetric && range.absmax != 0;
        out->scale = is_scale ? range.low : 1.0f;
        out->min = is_scale || range.absmax == 0 ? 0.0f : range.low;
        return true;
    }
    if (!aq_simd_holds(range.absmax)) {
        return false;
    }
    if (column_weights) {
        kernels->range(column_weights, count, AQ_SIMD_GROUP_MAX, &live);
        if (live.low < 0.0f || (live.absmax != 0 && !aq_simd_holds(live.absmax))) {
            return false;
        }
        column_weights = live.absmax ? column_weights : NULL;
    }
    (symmetric ? kernels->fit_symmetric : kernels->fit_affine)(
        weights, column_weights, count, AQ_SIMD_GROUP_MAX, bits, &range, &fit);
    out->scale = fit.scale;
    out->min = symmetric ? 0.0f : aq_simd_best_min(&fit, fit.scale);
    return true;
}

ARROWQUANT_SIMD_API bool aq_simd_fit_row(const struct aq_kernels *kernels, const float *weights,
                                         const float *column_weights, size_t cols,
                                         size_t group_size, unsigned bits, bool symmetric,
                                         aq_simd_group *groups) {
    aq_simd_mode mode = aq_simd_mode_enter();
    bool good = true;
    size_t begin, count;
    for (begin = 0; begin < cols && good; begin += count, groups++) {
        count = cols - begin < group_size ? cols - begin : group_size;
        good = aq_simd_fit_group(aq_simd_best(kernels), weights + begin,
                                 column_weights ? column_weights + begin : NULL, count, bits,
                                 symmetric, groups);
    }
    aq_simd_mode_leave(mode);
    return good;
}

ARROWQUANT_SIMD_API void aq_simd_encode_row(const struct aq_kernels *kernels, const float *weights,
                                            size_t cols, size_t group_size, unsigned bits,
                                            bool symmetric, const aq_simd_group *groups,
                                            void *codes) {
    aq_simd_mode mode = aq_simd_mode_enter();
    size_t begin, count;
    for (begin = 0; begin < cols; begin += count, groups++) {
        aq_simd_grid grid;
        count = cols - begin < group_size ? cols - begin : group_size;
        grid.scale = groups->scale;
        grid.min = groups->min;
        aq_simd_best(kernels)->encode(weights + begin, count, group_size, bits, symmetric, &grid,
                                      (uint8_t *)codes + begin * bits / 8);
    }
    aq_simd_mode_leave(mode);
}

ARROWQUANT_SIMD_API void aq_simd_decode_row(const struct aq_kernels *kernels, const void *codes,
                                            size_t cols, size_t group_size, unsigned bits,
                                            bool symmetric, const aq_simd_group *groups,
                                            float *out) {
    aq_simd_mode mode = aq_simd_mode_enter();
    size_t begin, count;
    for (begin = 0; begin < cols; begin += count, groups++) {
        aq_simd_grid grid;
        count = cols - begin < group_size ? cols - begin : group_size;
        grid.scale = groups->scale;
        grid.min = groups->min;
        aq_simd_best(kernels)->decode((const uint8_t *)codes + begin * bits / 8, count, group_size,
                                      bits, symmetric, &grid, out + begin);
    }
    aq_simd_mode_leave(mode);
}

ARROWQUANT_SIMD_API void aq_simd_compare_rows(const struct aq_kernels *kernels, const float *a,
                                              const float *b, size_t count,
                                              aq_simd_figures *figures) {
    aq_simd_mode mode = aq_simd_mode_enter();
    size_t begin, length;
    memset(figures, 0, sizeof *figures);
    for (begin = 0; begin < count; begin += length) {
        aq_simd_sums sums;
        length = count - begin < AQ_SIMD_GROUP_MAX ? count - begin : AQ_SIMD_GROUP_MAX;
        aq_simd_best(kernels)->compare(a + begin, b + begin, length, &sums);
        figures->dot += (double)sums.dot;
        figures->original += (double)sums.first;
        figures->quantized += (double)sums.second;
        figures->error += (double)sums.error;
        if ((double)sums.max_error > figures->max_error) {
            figures->max_error = (double)sums.max_error;
        }
    }
    aq_simd_mode_leave(mode);
}

ARROWQUANT_SIMD_API int32_t aq_simd_dot(const struct aq_kernels *kernels, const int8_t *a,
                                        const int8_t *b, size_t count) {
    return aq_simd_best(kernels)->dot(a, b, count);
}

ARROWQUANT_SIMD_API void aq_simd_dot_rows(const struct aq_kernels *kernels, const void *codes,
                                          size_t row_bytes, size_t rows, unsigned bits,
                                          const int8_t *x, size_t cols, size_t group_size,
                                          int32_t *out) {
    aq_simd_best(kernels)->dot_codes(codes, row_bytes, rows, bits, x, cols, group_size, out);
}

ARROWQUANT_SIMD_API void aq_simd_sum_groups(const int8_t *x, size_t cols, size_t group_size,
                                            int32_t *out) {
    aq_scalar_group_sums(x, cols, group_size, out);
}

ARROWQUANT_SIMD_API void aq_simd_unpack_row(const struct aq_kernels *kernels, const void *codes,
                                            size_t cols, unsigned bits, uint8_t *out) {
    aq_simd_best(kernels)->unpack(codes, cols, bits, out);
}

ARROWQUANT_SIMD_API void aq_simd_widen_f16(const struct aq_kernels *kernels, const void *in,
                                           float *out, size_t count) {
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_simd_best(kernels)->f16_to_f32(in, out, count);
    aq_simd_mode_leave(mode);
}

ARROWQUANT_SIMD_API void aq_simd_widen_bf16(const struct aq_kernels *kernels, const void *in,
                                            float *out, size_t count) {
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_simd_best(kernels)->bf16_to_f32(in, out, count);
    aq_simd_mode_leave(mode);
}

ARROWQUANT_SIMD_API void aq_simd_widen_f8_e4m3(const struct aq_kernels *kernels, const void *in,
                                               float *out, size_t count) {
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_simd_best(kernels)->f8_e4m3_to_f32(in, out, count);
    aq_simd_mode_leave(mode);
}

ARROWQUANT_SIMD_API void aq_simd_widen_f8_e5m2(const struct aq_kernels *kernels, const void *in,
                                               float *out, size_t count) {
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_simd_best(kernels)->f8_e5m2_to_f32(in, out, count);
    aq_simd_mode_leave(mode);
}

ARROWQUANT_SIMD_API void aq_simd_narrow_f16(const struct aq_kernels *kernels, const float *in,
                                            void *out, size_t count) {
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_simd_best(kernels)->f32_to_f16(in, out, count);
    aq_simd_mode_leave(mode);
}

ARROWQUANT_SIMD_API void aq_simd_narrow_bf16(const struct aq_kernels *kernels, const float *in,
                                             void *out, size_t count) {
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_simd_best(kernels)->f32_to_bf16(in, out, count);
    aq_simd_mode_leave(mode);
}
