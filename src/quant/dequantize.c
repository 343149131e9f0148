/* Codes and parameters in, weights out. */
#include "blocks.h"
#include "rotate.h"
#include "trellis.h"

#include "../base/thread.h"

/* So many F32 are in no cache any more when the caller comes to read them. (With 16-bit results the
 * arithmetic takes longer than the writing.) */
#define AQ_STREAM_WEIGHTS (UINT64_C(8) << 20)

/* What does not change over a tensor. */
typedef struct aq_dequantize_run {
    const struct aq_kernels *kernels;
    aq_quant_spec spec;
    aq_quant_layout layout;
    const uint8_t *codes, *params, *extra;
    aq_dtype dtype;
    uint8_t *out;
    bool direct; /* F32, aligned: decoded in place */
    bool stream; /* F32, past the caches; rows aligned to 16 bytes in place */
    float *lines; /* of rotated rows that are not direct: one row a thread */
    uint64_t block_rows;
} aq_dequantize_run;

/* A stretch of a row to where it belongs. */
static void aq_dequantize_put(const aq_dequantize_run *run, const float *decoded, size_t count,
                              uint8_t *out) {
    switch (run->dtype) {
    case AQ_DTYPE_F16: run->kernels->f32_to_f16(decoded, out, count); break;
    case AQ_DTYPE_BF16: run->kernels->f32_to_bf16(decoded, out, count); break;
    default:
        if (run->stream) {
            run->kernels->stream(decoded, out, count * sizeof *decoded);
        } else {
            memcpy(out, decoded, count * sizeof *decoded);
        }
        break;
    }
}

/* An F32 scale of others may have all of its 24 bits: scale·q + min would round thrice, where
 * scale·(q − zero), which their readers compute, rounds once. */
static void aq_dequantize_zero_point(const aq_dequantize_run *run, const uint8_t *codes,
                                     const uint8_t *params, size_t count, float *out) {
    aq_simd_grid grids[AQ_TILE_GROUPS];
    size_t i, g, group = run->spec.group_size, groups = (count + group - 1) / group;
    aq_grids_read(run->kernels, &run->spec, params, NULL, groups, grids);
    for (g = 0; g < groups; g++) {
        size_t end = (g + 1) * group < count ? (g + 1) * group : count;
        float scale = grids[g].scale;
        aq_simd_grid steps;
        steps.scale = 1.0f;
        steps.min = 0.0f - (float)params[g * 5 + 4];
        run->kernels->decode(codes + g * group * run->spec.bits / 8, end - g * group, group,
                             run->spec.bits, false, &steps, out + g * group);
        for (i = g * group; i < end; i++) {
            out[i] *= scale;
        }
    }
}

static void aq_dequantize_row(const aq_dequantize_run *run, uint64_t row, uint8_t *out) {
    const aq_quant_layout *layout = &run->layout;
    const uint8_t *codes = run->codes + (size_t)(row * layout->row_code_bytes);
    const uint8_t *params = run->params ? run->params + (size_t)(row * layout->row_param_bytes)
                                        : NULL;
    const uint8_t *extra = run->extra ? run->extra + (size_t)(row * layout->row_extra_bytes) : NULL;
    size_t begin, cols = (size_t)layout->cols, group = run->spec.group_size;
    size_t param_bytes = (size_t)(layout->row_param_bytes / layout->groups);
    bool blocks = aq_code_is_block(run->spec.code);
    aq_simd_grid grids[AQ_TILE_GROUPS];
    float buffer[AQ_TILE_WEIGHTS + 16], *decoded;
    /* Placed in a cache line as the result is: else `stream` takes twice as long. */
    decoded = buffer + ((uintptr_t)out - (uintptr_t)buffer) % 64 / sizeof *buffer;
    bool past = run->stream && (uintptr_t)out % 16 == 0;
    for (begin = 0; begin < cols; begin += AQ_TILE_WEIGHTS) {
        size_t count = cols - begin < AQ_TILE_WEIGHTS ? cols - begin : AQ_TILE_WEIGHTS;
        uint8_t *to = out + begin * aq_dtype_size(run->dtype);
        float *into = past || run->direct ? (float *)(void *)to : decoded;
        if (blocks) {
            aq_blocks_decode(run->kernels, run->spec.code,
                             codes + begin / group * aq_block_bytes(run->spec.code), count, into);
        } else if (run->spec.code == AQ_CODE_ZERO_POINT && run->spec.params == AQ_PARAM_F32) {
            aq_dequantize_zero_point(run, codes + begin * run->spec.bits / 8,
                                     params + begin / group * param_bytes, count, into);
        } else {
            aq_grids_read(run->kernels, &run->spec, params + begin / group * param_bytes, extra,
                          (count + group - 1) / group, grids);
            if (run->spec.code == AQ_CODE_RESIDUAL) {
                aq_residual_decode(codes + begin * run->spec.bits / 8, count, group, grids, into);
            } else {
                (past ? run->kernels->decode_past : run->kernels->decode)(
                    codes + begin * run->spec.bits / 8, count, group, run->spec.bits,
                    run->spec.code == AQ_CODE_SYMMETRIC, grids, into);
            }
        }
        if (!past && !run->direct) {
            aq_dequantize_put(run, decoded, count, to);
        }
    }
}

/* One row of a rotated strip, which is turned back as a whole. */
static void aq_dequantize_turned(const aq_dequantize_run *run, aq_trellis_part *part, uint32_t worker,
                                 uint8_t *to) {
    float *line = run->lines + worker * part->cols;
    part->begin = 0;
    part->count = part->cols;
    aq_trellis_decode(run->kernels, &run->spec, part, line, part->cols);
    aq_rotate_back(run->kernels, run->spec.rotation, line, 1, part->cols);
    aq_dequantize_put(run, line, part->cols, to);
}

/* Rows of a trellis, whole strips. */
static void aq_dequantize_strips(const aq_dequantize_run *run, uint64_t first, uint64_t rows,
                                 uint32_t worker) {
    float decoded[AQ_TILE_WEIGHTS];
    const size_t size = aq_dtype_size(run->dtype);
    aq_trellis_part part;
    uint64_t done;
    memset(&part, 0, sizeof part);
    part.cols = (size_t)run->layout.cols;
    for (done = 0; done < rows; done += part.height) {
        uint64_t at = first + done;
        part.codes = run->codes + (size_t)(at * run->layout.row_code_bytes);
        part.params = run->params + (size_t)(at * run->layout.row_param_bytes);
        part.height = rows - done < AQ_TRELLIS_ROWS ? (size_t)(rows - done) : AQ_TRELLIS_ROWS;
        if (run->direct) {
            part.rows = part.height;
            part.count = part.cols;
            float *out = (float *)(void *)run->out + (size_t)at * part.cols;
            aq_trellis_decode(run->kernels, &run->spec, &part, out, part.cols);
            aq_rotate_back(run->kernels, run->spec.rotation, out, part.height, part.cols);
            continue;
        }
        for (part.first = 0; part.first < part.height; part.first++) {
            uint8_t *to = run->out + ((size_t)at + part.first) * part.cols * size;
            part.rows = 1;
            if (run->lines) {
                aq_dequantize_turned(run, &part, worker, to);
                continue;
            }
            for (part.begin = 0; part.begin < part.cols; part.begin += part.count) {
                size_t left = part.cols - part.begin;
                part.count = left < AQ_TILE_WEIGHTS ? left : AQ_TILE_WEIGHTS;
                aq_trellis_decode(run->kernels, &run->spec, &part, decoded, part.count);
                aq_dequantize_put(run, decoded, part.count, to + part.begin * size);
            }
        }
    }
}

static void aq_dequantize_rows(const aq_dequantize_run *run, uint64_t first, uint64_t rows,
                               uint32_t worker) {
    size_t row_bytes = (size_t)run->layout.cols * aq_dtype_size(run->dtype);
    aq_simd_mode mode = aq_simd_mode_enter();
    uint64_t row;
    if (run->spec.code == AQ_CODE_TRELLIS && row_bytes) {
        aq_dequantize_strips(run, first, rows, worker);
        rows = 0;
    }
    for (row = first; row < first + rows && row_bytes; row++) {
        aq_dequantize_row(run, row, run->out + (size_t)row * row_bytes);
    }
    if (run->stream) {
        run->kernels->stream(NULL, NULL, 0);
    }
    aq_simd_mode_leave(mode);
}

static void aq_dequantize_run_init(aq_dequantize_run *run, const aq_context *context,
                                   const aq_quant_spec *spec, const void *codes,
                                   const void *params, const void *extra, aq_dtype dtype,
                                   void *out) {
    run->kernels = aq_kernels_of(context);
    run->spec = *spec;
    run->codes = (const uint8_t *)codes;
    run->params = (const uint8_t *)params;
    run->extra = (const uint8_t *)extra;
    run->dtype = dtype;
    run->out = (uint8_t *)out;
    run->lines = NULL;
    run->spec.rotation = aq_spec_rotation(spec);
    run->stream = run->kernels->stream != NULL && dtype == AQ_DTYPE_F32 && !run->spec.rotation &&
                  run->layout.rows * run->layout.cols >= AQ_STREAM_WEIGHTS;
    run->direct = dtype == AQ_DTYPE_F32 && (uintptr_t)out % sizeof(float) == 0 && !run->stream;
    run->block_rows = aq_spec_block_rows(spec, run->layout.cols);
}

AQ_LIB void aq_dequantize_block(const aq_context *context, const aq_quant_spec *spec,
                                const void *codes, const void *params, const void *extra,
                                uint64_t rows, uint64_t cols, float *out) {
    aq_dequantize_run run;
    if (aq_quantized_size(spec, rows, cols, &run.layout, NULL) == AQ_OK) {
        aq_dequantize_run_init(&run, context, spec, codes, params, extra, AQ_DTYPE_F32, out);
        aq_dequantize_rows(&run, 0, rows, 0);
    }
}

static aq_status aq_dequantize_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    const aq_dequantize_run *run = (const aq_dequantize_run *)user;
    uint64_t first = (uint64_t)index * run->block_rows;
    (void)err;
    aq_dequantize_rows(run, first, run->layout.rows - first < run->block_rows
                                       ? run->layout.rows - first : run->block_rows, worker);
    return AQ_OK;
}

static aq_status aq_dequantize_check(const aq_dequantize_run *run, aq_error *err) {
    const aq_quant_layout *layout = &run->layout;
    uint64_t bytes = 0;
    if (run->dtype != AQ_DTYPE_F32 && run->dtype != AQ_DTYPE_F16 && run->dtype != AQ_DTYPE_BF16) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "cannot dequantize to %s; use F32, F16 or BF16",
                       aq_dtype_name(run->dtype));
    }
    if (!aq_mul_u64(layout->rows * layout->cols, aq_dtype_size(run->dtype), &bytes) ||
        bytes > SIZE_MAX) {
        return aq_fail(err, AQ_ERR_SHAPE, "[%llu, %llu] does not fit this machine's memory",
                       (unsigned long long)layout->rows, (unsigned long long)layout->cols);
    }
    if (bytes && (!run->codes || (!run->params && layout->param_bytes) ||
                  (!run->extra && layout->extra_bytes) || !run->out)) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_dequantize: %s is NULL",
                       !run->codes    ? "codes"
                       : !run->params ? "params"
                       : !run->out    ? "out" : "extra, which Q8 parameters need,");
    }
    return AQ_OK;
}

ARROWQUANT_API aq_status aq_dequantize(aq_context *context, const aq_quant_spec *spec,
                                       const void *codes, const void *params, const void *extra,
                                       uint64_t rows, uint64_t cols, aq_dtype dtype, void *out,
                                       aq_error *err) {
    aq_dequantize_run run;
    aq_status status = aq_quantized_size(spec, rows, cols, &run.layout, err);
    uint64_t blocks;
    uint32_t threads;
    size_t line_bytes = 0;
    if (status != AQ_OK) {
        return status;
    }
    aq_dequantize_run_init(&run, context, spec, codes, params, extra, dtype, out);
    status = aq_dequantize_check(&run, err);
    if (status != AQ_OK || rows == 0 || cols == 0) {
        return status;
    }
    blocks = rows / run.block_rows + (rows % run.block_rows != 0);
    threads = aq_thread_count(context);
    if (run.spec.rotation && !run.direct) {
        line_bytes = (size_t)cols * sizeof(float) * threads;
        run.lines = (float *)aq_alloc_work(context, line_bytes);
        if (!run.lines) {
            return aq_fail_memory(err, line_bytes);
        }
    }
    status = aq_parallel_for(context, threads, (size_t)blocks, aq_dequantize_task, &run, err);
    aq_free_work(context, run.lines, line_bytes);
    return status;
}

#undef AQ_STREAM_WEIGHTS
