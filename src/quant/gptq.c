/* GPTQ (Frantar et al., arXiv 2210.17323): the codes of a row are chosen column by column, the error
 * of each taken out of the columns that follow. The parameters of a group are fixed beforehand, by
 * weighted least squares, and belong to the columns as they lie in the layer, so that readers need no
 * index of groups. Afterwards both are solved again (gptq_refit.c), but for AQ_FIT_FAST. */
#include "gptq_space.h"

#include "blocks.h"
#include "trellis.h"

static size_t aq_space_groups(const aq_quant_spec *spec, const aq_factor *factor) {
    return (factor->n + spec->group_size - 1) / spec->group_size;
}

static uint64_t aq_space_round(uint64_t bytes) {
    return (bytes + 63) & ~(uint64_t)63;
}

AQ_LIB uint64_t aq_gptq_bytes(const aq_quant_spec *spec, const aq_factor *factor, uint64_t rows) {
    uint64_t wide = (rows + AQ_PANEL - 1) / AQ_PANEL * AQ_PANEL, padded = factor->padded;
    uint64_t groups = aq_space_groups(spec, factor);
    return 64 + 2 * wide * padded * sizeof(float) + 2 * wide * groups * sizeof(float) +
           2 * aq_space_round(factor->n * sizeof(float)) + wide * padded +
           aq_space_round(factor->n) + wide * sizeof(double) + aq_trellis_sweep_bytes(spec, wide) +
           aq_refit_bytes(spec, factor->n);
}

AQ_LIB void aq_space_open(aq_gptq_space *space, const aq_quant_spec *spec, const aq_factor *factor,
                          uint64_t rows, void *memory) {
    size_t line = (size_t)aq_space_round(factor->n * sizeof(float)) / sizeof(float);
    space->rows = (size_t)rows;
    space->panels = (space->rows + AQ_PANEL - 1) / AQ_PANEL;
    space->wide = AQ_PANEL * space->panels;
    space->groups = aq_space_groups(spec, factor);
    space->x = (float *)aq_align_64(memory);
    space->sums = space->x + space->wide * factor->padded;
    space->scale = space->sums + space->wide * factor->padded;
    space->min = space->scale + space->wide * space->groups;
    space->line = space->min + space->wide * space->groups;
    space->other = space->line + line;
    space->energy = (double *)(void *)(space->other + line);
    space->codes = (uint8_t *)(space->energy + space->wide);
    space->flat = space->codes + space->wide * factor->padded;
    space->rest = space->flat + (size_t)aq_space_round(factor->n);
}

/* ---- rows into panels */

/* Puts a line of the layer into row `row` of x, by place. */
static void aq_space_put(aq_gptq_space *space, const aq_factor *factor, size_t row,
                         const float *line) {
    float *to = space->x + row / AQ_PANEL * (AQ_PANEL * factor->padded) + row % AQ_PANEL;
    size_t place;
    for (place = 0; place < factor->n; place++) {
        to[AQ_PANEL * place] = line[factor->order[place]];
    }
}

static void aq_space_clear(aq_gptq_space *space, const aq_factor *factor) {
    size_t panel = AQ_PANEL * factor->padded, last = space->panels - 1, p;
    if (space->rows % AQ_PANEL) {
        memset(space->x + last * panel, 0, panel * sizeof *space->x);
    }
    for (p = 0; p < space->panels; p++) { /* places behind the last column */
        memset(space->x + p * panel + AQ_PANEL * factor->n, 0,
               AQ_PANEL * (factor->padded - factor->n) * sizeof *space->x);
    }
}

AQ_LIB void aq_space_weights(const aq_context *context, aq_gptq_space *space,
                             const aq_factor *factor, const void *weights, aq_dtype dtype) {
    size_t row, row_bytes = factor->n * aq_dtype_size(dtype);
    const struct aq_kernels *kernels = aq_kernels_of(context);
    aq_space_clear(space, factor);
    for (row = 0; row < space->rows; row++) {
        aq_widen(kernels, dtype, (const uint8_t *)weights + row * row_bytes, space->line,
                 factor->n);
        aq_space_put(space, factor, row, space->line);
    }
}

AQ_LIB void aq_space_sweep(const aq_context *context, aq_gptq_space *space,
                           const aq_factor *factor, const aq_rounding *rounding, double *out) {
    size_t row;
    memset(space->energy, 0, space->wide * sizeof *space->energy);
    aq_feedback(aq_kernels_of(context), factor, rounding, space->x, space->sums, space->panels,
                out ? space->energy : NULL);
    for (row = 0; out && row < space->rows; row++) {
        out[row] = space->energy[row] > 0.0 ? space->energy[row] : 0.0; /* what damping left */
    }
}

/* ---- the nearest code */

typedef struct aq_nearest {
    const aq_gptq_space *space;
    size_t group_size;
    float least, most; /* codes less `half` */
    float half;
} aq_nearest;

/* Halves to even, as in the kernels: |value| is small. A NaN, of sums beyond F32, becomes `least`. */
AQ_SIMD_EXACT static void aq_nearest_column(void *user, size_t place, size_t column,
                                            const float *target, float *rounded, size_t rows) {
    AQ_SIMD_EXACT_BODY
    const aq_nearest *nearest = (const aq_nearest *)user;
    const float *scale = nearest->space->scale + column / nearest->group_size * rows;
    const float *min = nearest->space->min + column / nearest->group_size * rows;
    uint8_t *codes = nearest->space->codes + place * rows;
    float least = nearest->least, most = nearest->most, half = nearest->half;
    size_t i;
    for (i = 0; i < rows; i++) {
        float code = (target[i] - min[i]) / scale[i];
        code = code > least ? code : least;
        code = code < most ? code : most;
        code = (code + 12582912.0f) - 12582912.0f;
        rounded[i] = scale[i] * code + min[i];
        codes[i] = (uint8_t)(int32_t)(code + half);
    }
}

static void aq_nearest_open(aq_nearest *nearest, const aq_gptq_space *space,
                            const aq_quant_spec *spec) {
    bool symmetric = spec->code == AQ_CODE_SYMMETRIC;
    float count = (float)(1u << spec->bits);
    nearest->space = space;
    nearest->group_size = spec->group_size;
    nearest->half = symmetric ? 0.5f * count : 0.0f;
    nearest->least = 0.0f - nearest->half;
    nearest->most = count - 1.0f - nearest->half;
}

/* The grids of all rows, from the bytes that a reader gets. */
static void aq_space_grids(const aq_context *context, aq_gptq_space *space,
                           const aq_quant_spec *spec, const aq_quant_layout *layout,
                           const uint8_t *params, const uint8_t *extra) {
    size_t param_bytes = (size_t)(layout->row_param_bytes / layout->groups), row, begin, i;
    const struct aq_kernels *kernels = aq_kernels_of(context);
    aq_simd_grid grids[AQ_TILE_GROUPS];
    for (row = 0; row < space->wide; row++) {
        bool real = row < space->rows;
        for (begin = 0; begin < space->groups; begin += AQ_TILE_GROUPS) {
            size_t left = space->groups - begin;
            size_t count = left < AQ_TILE_GROUPS ? left : AQ_TILE_GROUPS;
            if (real) {
                aq_grids_read(kernels, spec, params + begin * param_bytes, extra, count, grids);
            }
            for (i = 0; i < count; i++) {
                space->scale[(begin + i) * space->wide + row] = real ? grids[i].scale : 1.0f;
                space->min[(begin + i) * space->wide + row] = real ? grids[i].min : 0.0f;
            }
        }
        if (real) {
            params += (size_t)layout->row_param_bytes;
            extra = extra ? extra + (size_t)layout->row_extra_bytes : NULL;
        }
    }
}

/* x becomes ŵ − w, from codes and grids as a reader has them. */
AQ_SIMD_EXACT static void aq_space_errors(const aq_context *context, aq_gptq_space *space,
                                          const aq_factor *factor, const aq_quant_spec *spec,
                                          const void *weights, aq_dtype dtype) {
    AQ_SIMD_EXACT_BODY
    float half = spec->code == AQ_CODE_SYMMETRIC ? 0.5f * (float)(1u << spec->bits) : 0.0f;
    size_t place, row;
    aq_space_weights(context, space, factor, weights, dtype);
    for (place = 0; place < factor->n; place++) {
        size_t at = factor->order[place] / spec->group_size * space->wide;
        for (row = 0; row < space->rows; row++) {
            float *x = space->x + row / AQ_PANEL * (AQ_PANEL * factor->padded) +
                       AQ_PANEL * place + row % AQ_PANEL;
            float code = (float)space->codes[place * space->wide + row] - half;
            *x = (space->scale[at + row] * code + space->min[at + row]) - *x;
        }
    }
}

/* Codes of all rows to their bytes, LSB first. */
static void aq_space_pack(const aq_gptq_space *space, const aq_factor *factor, uint32_t bits,
                          const aq_quant_layout *layout, uint8_t *out) {
    size_t per_byte = 8 / bits, row, place, i;
    for (row = 0; row < space->rows; row++, out += (size_t)layout->row_code_bytes) {
        for (place = 0; place < factor->n; place++) {
            space->flat[factor->order[place]] = space->codes[place * space->wide + row];
        }
        memset(out, 0, (size_t)layout->row_code_bytes);
        for (i = 0; i < factor->n; i++) {
            out[i / per_byte] |= (uint8_t)(space->flat[i] << (i % per_byte * bits));
        }
    }
}

/* ---- blocks */

AQ_LIB void aq_gptq_block(const aq_context *context, const aq_factor *factor,
                          const aq_quant_spec *spec, const void *weights, aq_dtype dtype,
                          uint64_t rows, void *codes, void *params, void *extra, void *space,
                          aq_block_outcome *outcome, const aq_output_sums *sums) {
    aq_quant_layout layout;
    aq_gptq_space work;
    aq_nearest nearest;
    aq_rounding rounding;
    bool refit = aq_gptq_refits(spec) && factor->hessian;
    if (spec->code == AQ_CODE_TRELLIS) {
        aq_gptq_strip(context, factor, spec, weights, dtype, rows, codes, params, space, outcome,
                      sums);
        return;
    }
    aq_quantize_block(context, spec, weights, dtype, rows, factor->n, factor->diagonal, codes,
                      params, extra, outcome);
    if (aq_outcome_is_final(outcome) ||
        aq_quantized_size(spec, rows, factor->n, &layout, NULL) != AQ_OK) {
        return;
    }
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_space_open(&work, spec, factor, rows, space);
    aq_space_weights(context, &work, factor, weights, dtype);
    if (sums->signal) {
        aq_space_sweep(context, &work, factor, NULL, sums->signal);
    }
    aq_space_grids(context, &work, spec, &layout, (const uint8_t *)params,
                   layout.extra_bytes ? (const uint8_t *)extra : NULL);
    aq_nearest_open(&nearest, &work, spec);
    rounding.round = aq_nearest_column;
    rounding.user = &nearest;
    aq_space_sweep(context, &work, factor, &rounding, refit ? NULL : sums->error);
    if (refit) {
        aq_gptq_refit(context, &work, factor, spec, &layout, params,
                      layout.extra_bytes ? extra : NULL);
    }
    if (refit && sums->error) {
        aq_space_errors(context, &work, factor, spec, weights, dtype);
        aq_space_sweep(context, &work, factor, NULL, sums->error);
    }
    aq_space_pack(&work, factor, spec->bits, &layout, (uint8_t *)codes);
    aq_simd_mode_leave(mode);
}

static void aq_output_strip_row(const struct aq_kernels *kernels, const aq_quant_spec *spec,
                                uint64_t height, size_t cols, size_t row, const void *codes,
                                const void *params, float *out) {
    aq_trellis_part part;
    part.codes = (const uint8_t *)codes;
    part.params = (const uint8_t *)params;
    part.height = (size_t)height;
    part.cols = part.count = cols;
    part.first = row;
    part.rows = 1;
    part.begin = 0;
    aq_trellis_decode(kernels, spec, &part, out, cols);
}

AQ_LIB void aq_output_block(const aq_context *context, const aq_factor *factor,
                            const aq_quant_spec *spec, const void *weights, aq_dtype dtype,
                            uint64_t rows, const void *codes, const void *params,
                            const void *extra, void *space, const aq_output_sums *sums) {
    aq_gptq_space work;
    aq_quant_layout layout;
    size_t row, i, row_bytes = factor->n * aq_dtype_size(dtype);
    const struct aq_kernels *kernels = aq_kernels_of(context);
    if (aq_quantized_size(spec, rows, factor->n, &layout, NULL) != AQ_OK) {
        return;
    }
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_space_open(&work, spec, factor, rows, space);
    aq_space_weights(context, &work, factor, weights, dtype);
    if (sums->signal) {
        aq_space_sweep(context, &work, factor, NULL, sums->signal);
    }
    for (row = 0; row < work.rows; row++) {
        size_t extra_at = row * (size_t)layout.row_extra_bytes;
        aq_widen(kernels, dtype, (const uint8_t *)weights + row * row_bytes, work.line, factor->n);
        if (spec->code == AQ_CODE_TRELLIS) {
            aq_output_strip_row(kernels, spec, rows, factor->n, row, codes, params, work.other);
        } else {
            aq_dequantize_block(context, spec,
                                (const uint8_t *)codes + row * (size_t)layout.row_code_bytes,
                                (const uint8_t *)params + row * (size_t)layout.row_param_bytes,
                                layout.extra_bytes ? (const uint8_t *)extra + extra_at : NULL, 1,
                                factor->n, work.other);
        }
        for (i = 0; i < factor->n; i++) {
            work.line[i] = work.other[i] - work.line[i];
        }
        aq_space_put(&work, factor, row, work.line);
    }
    if (sums->error) {
        aq_space_sweep(context, &work, factor, NULL, sums->error);
    }
    aq_simd_mode_leave(mode);
}

/* A stretch of a row as a reader sees it. */
static void aq_measure_decode(const struct aq_kernels *kernels, const aq_quant_spec *spec,
                              const uint8_t *codes, const uint8_t *params, const uint8_t *extra,
                              size_t count, float *out) {
    aq_simd_grid grids[AQ_TILE_GROUPS];
    aq_grids_read(kernels, spec, params, extra, (count + spec->group_size - 1) / spec->group_size,
                  grids);
    if (spec->code == AQ_CODE_RESIDUAL) {
        aq_residual_decode(codes, count, spec->group_size, grids, out);
    } else {
        kernels->decode(codes, count, spec->group_size, spec->bits,
                        spec->code == AQ_CODE_SYMMETRIC, grids, out);
    }
}

AQ_LIB void aq_measure_block(const aq_context *context, const aq_quant_spec *spec,
                             const void *weights, aq_dtype dtype, uint64_t rows, uint64_t cols,
                             const void *codes, const void *params, const void *extra,
                             aq_quality *quality) {
    const struct aq_kernels *kernels = aq_kernels_of(context);
    float first[AQ_TILE_WEIGHTS], second[AQ_TILE_WEIGHTS];
    aq_quant_layout layout;
    size_t begin, size = aq_dtype_size(dtype), param_bytes;
    uint64_t row;
    if (aq_quantized_size(spec, rows, cols, &layout, NULL) != AQ_OK || !cols) {
        return;
    }
    param_bytes = (size_t)(layout.row_param_bytes / layout.groups);
    aq_simd_mode mode = aq_simd_mode_enter();
    if (spec->code == AQ_CODE_TRELLIS) {
        aq_trellis_measure(kernels, spec, weights, dtype, rows, cols, codes, params, quality);
        rows = 0;
    }
    for (row = 0; row < rows; row++) {
        const uint8_t *from = (const uint8_t *)weights + (size_t)(row * cols) * size;
        const uint8_t *code = (const uint8_t *)codes + (size_t)(row * layout.row_code_bytes);
        const uint8_t *param = (const uint8_t *)params + (size_t)(row * layout.row_param_bytes);
        const uint8_t *pair = layout.extra_bytes ? (const uint8_t *)extra +
                                                       (size_t)(row * layout.row_extra_bytes)
                                                 : NULL;
        aq_quality sums;
        memset(&sums, 0, sizeof sums);
        for (begin = 0; begin < cols; begin += AQ_TILE_WEIGHTS) {
            size_t left = (size_t)cols - begin;
            size_t count = left < AQ_TILE_WEIGHTS ? left : AQ_TILE_WEIGHTS;
            aq_widen(kernels, dtype, from + begin * size, first, count);
            if (aq_code_is_block(spec->code)) {
                aq_blocks_decode(kernels, spec->code,
                                 code + begin / spec->group_size * aq_block_bytes(spec->code),
                                 count, second);
            } else {
                aq_measure_decode(kernels, spec, code + begin * spec->bits / 8,
                                  param + begin / spec->group_size * param_bytes, pair, count,
                                  second);
            }
            aq_compare_run(kernels, first, second, count, &sums);
        }
        aq_quality_add(quality, &sums);
    }
    aq_simd_mode_leave(mode);
}
