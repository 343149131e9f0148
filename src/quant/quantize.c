/* Weights in, codes and parameters out: rows of a block, then blocks over threads. */
#include "blocks.h"
#include "rotate.h"
#include "trellis.h"

#include "../base/thread.h"

#ifdef ARROWQUANT_NO_THREADS
#  define AQ_FIT_CACHE 64u
#  define AQ_WAVE_BLOCKS 4u
#else
#  define AQ_FIT_CACHE 512u
#  define AQ_WAVE_BLOCKS 64u
#endif

/* Where the parts of one row go. */
typedef struct aq_row_parts {
    uint8_t *codes, *params, *extra;
    size_t param_bytes; /* a group */
} aq_row_parts;

AQ_LIB bool aq_outcome_is_final(const aq_block_outcome *outcome) {
    return outcome->not_finite || outcome->needs_f32 || outcome->needs_wide;
}

static void aq_outcome_note(aq_block_outcome *outcome, aq_fit_kind kind, uint64_t index) {
    if (kind == AQ_FIT_GOOD) {
        return;
    }
    if (!outcome->needs_f32 && !outcome->needs_wide) {
        outcome->bad_index = index;
    }
    outcome->needs_f32 = outcome->needs_f32 || kind == AQ_FIT_NEEDS_F32;
    outcome->needs_wide = outcome->needs_wide || kind == AQ_FIT_NEEDS_WIDE;
}

/* False when a weight is not finite. */
static bool aq_row_load(const aq_row_job *job, const void *weights, size_t begin,
                        uint64_t row_begin, aq_tile *tile, aq_block_outcome *outcome) {
    size_t bad = 0;
    if (aq_tile_load(job, weights, begin, tile, &bad)) {
        return true;
    }
    outcome->not_finite = true;
    outcome->bad_index = row_begin + bad;
    outcome->bad_value = (double)tile->x[bad - begin];
    return false;
}

static void aq_row_code(const aq_row_job *job, const aq_tile *tile, const aq_simd_grid *grids,
                        uint8_t *codes, aq_quality *quality) {
    float decoded[AQ_TILE_WEIGHTS];
    codes += tile->begin * job->spec.bits / 8;
    aq_tile_encode(job, tile, grids, codes);
    if (job->measure) {
        job->kernels->decode(codes, tile->count, job->spec.group_size, job->spec.bits,
                             job->symmetric, grids, decoded);
        aq_compare_run(job->kernels, tile->x, decoded, tile->count, quality);
    }
}

/* F16 and F32 parameters: each tile stands alone. */
static void aq_row_direct(const aq_row_job *job, const void *weights, uint64_t row_begin,
                          const aq_row_parts *parts, aq_quality *quality,
                          aq_block_outcome *outcome) {
    aq_tile tile;
    aq_simd_grid grids[AQ_TILE_GROUPS];
    aq_fit_kind kinds[AQ_TILE_GROUPS];
    uint8_t *params = parts->params;
    size_t begin, i;
    for (begin = 0; begin < job->cols; begin += AQ_TILE_WEIGHTS) {
        if (!aq_row_load(job, weights, begin, row_begin, &tile, outcome)) {
            return;
        }
        aq_tile_fit(job, &tile);
        (job->spec.code == AQ_CODE_ZERO_POINT ? aq_grids_zero_point
         : job->spec.params == AQ_PARAM_F32   ? aq_grids_f32 : aq_grids_f16)(job, &tile, grids,
                                                                             kinds, params);
        for (i = 0; i < tile.group_count; i++, params += parts->param_bytes) {
            aq_outcome_note(outcome, kinds[i], row_begin + begin + i * job->spec.group_size);
        }
        aq_row_code(job, &tile, grids, parts->codes, quality);
    }
}

/* R2Q: groups are fitted and coded one by one. */
static void aq_row_residual(const aq_row_job *job, const void *weights, uint64_t row_begin,
                            const aq_row_parts *parts, aq_quality *quality,
                            aq_block_outcome *outcome) {
    float decoded[AQ_TILE_WEIGHTS];
    aq_tile tile;
    aq_simd_grid grids[AQ_TILE_GROUPS];
    uint8_t *params = parts->params;
    size_t begin, i, group = job->spec.group_size;
    for (begin = 0; begin < job->cols; begin += AQ_TILE_WEIGHTS) {
        uint8_t *codes = parts->codes + begin * job->spec.bits / 8;
        if (!aq_row_load(job, weights, begin, row_begin, &tile, outcome)) {
            return;
        }
        for (i = 0; i < tile.group_count; i++, params += parts->param_bytes) {
            size_t at = i * group, left = tile.count - at;
            const float *own = job->column_weights ? job->column_weights + begin + at : NULL;
            aq_outcome_note(outcome,
                            aq_residual_fit(job, tile.x + at, own, left < group ? left : group,
                                            &grids[i], params),
                            row_begin + begin + at);
        }
        aq_residual_encode(tile.x, tile.count, group, grids, codes);
        if (job->measure) {
            aq_residual_decode(codes, tile.count, group, grids, decoded);
            aq_compare_run(job->kernels, tile.x, decoded, tile.count, quality);
        }
    }
}

/* Fits a row for Q8: scales go into the pair, the first fits into the cache. */
static bool aq_row_q8_scales(const aq_row_job *job, const void *weights, uint64_t row_begin,
                             aq_tile *tile, aq_simd_fit *cache, aq_q8_row *pair,
                             aq_block_outcome *outcome) {
    size_t begin, i, index = 0;
    for (begin = 0; begin < job->cols; begin += AQ_TILE_WEIGHTS) {
        if (!aq_row_load(job, weights, begin, row_begin, tile, outcome)) {
            return false;
        }
        aq_tile_fit(job, tile);
        for (i = 0; i < tile->group_count; i++, index++) {
            aq_outcome_note(outcome, aq_q8_add_scale(pair, &tile->group[i]),
                            row_begin + begin + i * job->spec.group_size);
            if (index < AQ_FIT_CACHE) {
                cache[index] = tile->group[i].fit;
            }
        }
    }
    aq_outcome_note(outcome, aq_q8_close_scale(job, pair), row_begin);
    return !aq_outcome_is_final(outcome);
}

/* The fits of a tile: from the cache, or the same ones made again. */
static const aq_simd_fit *aq_row_q8_fits(const aq_row_job *job, const void *weights, size_t begin,
                                         aq_tile *tile, const aq_simd_fit *cache,
                                         aq_simd_fit *again) {
    size_t first = begin / job->spec.group_size, i, bad;
    if (first + AQ_TILE_WEIGHTS / job->spec.group_size <= AQ_FIT_CACHE) {
        return cache + first;
    }
    (void)aq_tile_load(job, weights, begin, tile, &bad); /* was finite before */
    aq_tile_fit(job, tile);
    for (i = 0; i < tile->group_count; i++) {
        again[i] = tile->group[i].fit;
    }
    return again;
}

/* Q8 parameters: three passes, since the row's pair rests on every group. */
static void aq_row_q8(const aq_row_job *job, const void *weights, uint64_t row_begin,
                      const aq_row_parts *parts, aq_quality *quality, aq_block_outcome *outcome) {
    aq_tile tile;
    aq_simd_fit cache[AQ_FIT_CACHE], again[AQ_TILE_GROUPS];
    aq_simd_grid grids[AQ_TILE_GROUPS];
    aq_q8_row pair;
    uint8_t *params = parts->params;
    size_t begin, i, groups, bad;
    aq_q8_open(&pair);
    if (!aq_row_q8_scales(job, weights, row_begin, &tile, cache, &pair, outcome)) {
        return;
    }
    for (begin = 0; begin < job->cols && !job->symmetric; begin += AQ_TILE_WEIGHTS) {
        const aq_simd_fit *fits = aq_row_q8_fits(job, weights, begin, &tile, cache, again);
        size_t left = job->cols - begin < AQ_TILE_WEIGHTS ? job->cols - begin : AQ_TILE_WEIGHTS;
        groups = (left + job->spec.group_size - 1) / job->spec.group_size;
        for (i = 0; i < groups; i++) {
            aq_q8_add_min(job, &pair, &fits[i]);
        }
    }
    aq_outcome_note(outcome, aq_q8_close_min(job, &pair, parts->extra), row_begin);
    if (aq_outcome_is_final(outcome)) {
        return;
    }
    for (begin = 0; begin < job->cols; begin += AQ_TILE_WEIGHTS) {
        const aq_simd_fit *fits = aq_row_q8_fits(job, weights, begin, &tile, cache, again);
        if (fits != again && job->cols > AQ_TILE_WEIGHTS) {
            (void)aq_tile_load(job, weights, begin, &tile, &bad);
        }
        for (i = 0; i < tile.group_count; i++, params += parts->param_bytes) {
            aq_q8_grid(job, &pair, &fits[i], &grids[i], params);
        }
        aq_row_code(job, &tile, grids, parts->codes, quality);
    }
}

static void aq_quantize_rows(const aq_row_job *job, const aq_quant_layout *layout,
                             const void *weights, uint64_t rows, void *codes, void *params,
                             void *extra, aq_block_outcome *outcome) {
    size_t row_bytes = job->cols * aq_dtype_size(job->dtype);
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_row_parts parts;
    uint64_t row;
    memset(outcome, 0, sizeof *outcome);
    parts.codes = (uint8_t *)codes;
    parts.params = (uint8_t *)params;
    parts.extra = (uint8_t *)extra;
    parts.param_bytes = layout->groups ? (size_t)(layout->row_param_bytes / layout->groups) : 0u;
    for (row = 0; row < rows && job->cols && !aq_outcome_is_final(outcome); row++) {
        const uint8_t *from = (const uint8_t *)weights + (size_t)row * row_bytes;
        aq_quality sums;
        memset(&sums, 0, sizeof sums);
        memset(parts.codes + (size_t)layout->row_code_bytes - 4, 0, 4); /* the padding */
        if (aq_code_is_block(job->spec.code)) {
            aq_row_blocks(job, from, row * job->cols, parts.codes, &sums, outcome);
        } else {
            (job->spec.code == AQ_CODE_RESIDUAL ? aq_row_residual
             : job->spec.params == AQ_PARAM_Q8  ? aq_row_q8 : aq_row_direct)(
                job, from, row * job->cols, &parts, &sums, outcome);
        }
        aq_quality_add(&outcome->quality, &sums);
        parts.codes += (size_t)layout->row_code_bytes;
        if (parts.params) {
            parts.params += (size_t)layout->row_param_bytes;
        }
        if (parts.extra) {
            parts.extra += (size_t)layout->row_extra_bytes;
        }
    }
    aq_simd_mode_leave(mode);
}

static void aq_row_job_init(aq_row_job *job, const aq_context *context, const aq_quant_spec *spec,
                            aq_dtype dtype, uint64_t cols, const float *column_weights) {
    job->kernels = aq_kernels_of(context);
    job->spec = *spec;
    job->symmetric = spec->code == AQ_CODE_SYMMETRIC;
    job->fast = spec->fit == AQ_FIT_FAST;
    job->measure = true;
    job->dtype = dtype;
    job->narrow = dtype == AQ_DTYPE_BF16 && job->fast &&
                  (spec->code == AQ_CODE_AFFINE || spec->code == AQ_CODE_SYMMETRIC);
    job->cols = (size_t)cols;
    job->column_weights = column_weights;
}

AQ_LIB void aq_quantize_block(const aq_context *context, const aq_quant_spec *spec,
                              const void *weights, aq_dtype dtype, uint64_t rows, uint64_t cols,
                              const float *column_weights, void *codes, void *params, void *extra,
                              aq_block_outcome *outcome) {
    aq_row_job job;
    aq_quant_layout layout;
    memset(outcome, 0, sizeof *outcome);
    if (aq_quantized_size(spec, rows, cols, &layout, NULL) != AQ_OK) {
        return;
    }
    aq_row_job_init(&job, context, spec, dtype, cols, column_weights);
    aq_quantize_rows(&job, &layout, weights, rows, codes, params, extra, outcome);
}

/* A whole tensor at work. */
typedef struct aq_quantize_run {
    aq_row_job job;
    aq_quant_layout layout;
    const uint8_t *weights;
    uint8_t *codes, *params, *extra;
    uint64_t block_rows, first_block;
    const aq_context *context;
    uint8_t *spaces;    /* of a trellis, one a thread */
    float *rotated;     /* the weights, when they are to be */
    size_t space_bytes;
    aq_block_outcome outcomes[AQ_WAVE_BLOCKS];
} aq_quantize_run;

/* A block of a trellis, strip by strip. */
static void aq_quantize_strips(const aq_quantize_run *run, uint64_t first, uint64_t rows,
                               void *space, aq_block_outcome *outcome) {
    size_t row_bytes = run->job.cols * aq_dtype_size(run->job.dtype);
    aq_quality total;
    uint64_t done, count;
    memset(&total, 0, sizeof total);
    memset(outcome, 0, sizeof *outcome);
    for (done = 0; done < rows && !aq_outcome_is_final(outcome); done += count) {
        count = rows - done < AQ_TRELLIS_ROWS ? rows - done : AQ_TRELLIS_ROWS;
        aq_trellis_block(run->context, &run->job.spec,
                         run->weights + (size_t)(first + done) * row_bytes, run->job.dtype, count,
                         run->layout.cols, run->job.column_weights,
                         run->codes + (size_t)((first + done) * run->layout.row_code_bytes),
                         run->params + (size_t)((first + done) * run->layout.row_param_bytes),
                         space, outcome);
        outcome->bad_index += done * run->layout.cols;
        aq_quality_add(&total, &outcome->quality);
    }
    outcome->quality = total;
}

static aq_status aq_quantize_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    aq_quantize_run *run = (aq_quantize_run *)user;
    uint64_t first = (run->first_block + index) * run->block_rows;
    uint64_t rows = run->layout.rows - first < run->block_rows ? run->layout.rows - first
                                                               : run->block_rows;
    size_t row_bytes = run->job.cols * aq_dtype_size(run->job.dtype);
    (void)err;
    if (run->spaces) {
        aq_quantize_strips(run, first, rows, run->spaces + worker * run->space_bytes,
                           &run->outcomes[index]);
        return AQ_OK;
    }
    aq_quantize_rows(&run->job, &run->layout, run->weights + (size_t)first * row_bytes, rows,
                     run->codes + (size_t)(first * run->layout.row_code_bytes),
                     run->params ? run->params + (size_t)(first * run->layout.row_param_bytes)
                                 : NULL,
                     run->extra ? run->extra + (size_t)(first * run->layout.row_extra_bytes) : NULL,
                     &run->outcomes[index]);
    return AQ_OK;
}

AQ_LIB aq_status aq_outcome_fail(const aq_block_outcome *outcome, uint64_t first_row,
                                 uint64_t cols, aq_param_type params, aq_error *err) {
    uint64_t index = first_row * cols + outcome->bad_index;
    unsigned long long row = (unsigned long long)(index / cols);
    unsigned long long col = (unsigned long long)(index % cols);
    if (outcome->not_finite) {
        const char *what = outcome->bad_value > 0.0   ? "infinity"
                           : outcome->bad_value < 0.0 ? "-infinity" : "NaN";
        return aq_fail_tensor(err, AQ_ERR_QUANTIZATION, "", index,
                              "the weight at [%llu, %llu] is %s, expected a finite number; repair "
                              "or download the model again", row, col, what);
    }
    if (outcome->needs_f32) {
        return aq_fail_tensor(err, AQ_ERR_QUANTIZATION, "", index,
                              "the scale or minimum of the group at [%llu, %llu] does not fit %s; "
                              "use AQ_PARAM_F32", row, col, aq_param_type_name(params));
    }
    return aq_fail_tensor(err, AQ_ERR_QUANTIZATION, "", index,
                          "the group at [%llu, %llu] is constant, which Q8 parameters cannot hold; "
                          "use AQ_PARAM_F16 or AQ_PARAM_F32", row, col);
}

/* Blocks have no wider parameters to turn to. */
static aq_status aq_block_fail(const aq_quantize_run *run, const aq_block_outcome *outcome,
                               uint64_t first_row, aq_error *err) {
    uint64_t index = first_row * run->layout.cols + outcome->bad_index;
    return aq_fail_tensor(err, AQ_ERR_QUANTIZATION, "", index,
                          "the block at [%llu, %llu] does not fit %s: its scale is beyond F16; keep "
                          "the tensor as it is", (unsigned long long)(index / run->layout.cols),
                          (unsigned long long)(index % run->layout.cols),
                          aq_code_name(run->job.spec.code));
}

AQ_LIB aq_status aq_column_weights_check(const float *weights, uint64_t cols, aq_error *err) {
    uint64_t i;
    for (i = 0; weights && i < cols; i++) {
        uint32_t bits = aq_simd_bits(weights[i]);
        if (bits >= 0x7F800000u && bits != 0x80000000u) { /* negative numbers have the top bit */
            return aq_fail_tensor(err, AQ_ERR_ARGUMENT, "", i,
                                  "the weight of column %llu is negative, NaN or infinite; "
                                  "expected a finite number ≥ 0", (unsigned long long)i);
        }
    }
    return AQ_OK;
}

static aq_status aq_quantize_check(const aq_quantize_run *run, aq_error *err) {
    const aq_quant_layout *layout = &run->layout;
    uint64_t bytes = 0;
    if (!aq_dtype_is_float(run->job.dtype)) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED,
                       "weights of type %s cannot be quantized; expected a float type",
                       aq_dtype_name(run->job.dtype));
    }
    if (!aq_mul_u64(layout->rows * layout->cols, aq_dtype_size(run->job.dtype), &bytes) ||
        bytes > SIZE_MAX || layout->code_bytes > SIZE_MAX || layout->param_bytes > SIZE_MAX) {
        return aq_fail(err, AQ_ERR_SHAPE, "[%llu, %llu] does not fit this machine's memory",
                       (unsigned long long)layout->rows, (unsigned long long)layout->cols);
    }
    if (bytes && (!run->weights || !run->codes || (!run->params && layout->param_bytes) ||
                  (!run->extra && layout->extra_bytes))) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_quantize: %s is NULL",
                       !run->weights  ? "weights"
                       : !run->codes  ? "codes"
                       : !run->params ? "params" : "extra, which Q8 parameters need,");
    }
    if (run->job.spec.fit != AQ_FIT_LEAST_SQUARES && run->job.spec.fit != AQ_FIT_FAST) {
        return aq_fail(err, AQ_ERR_ARGUMENT,
                       "aq_quantize: the spec's fit is %d; expected AQ_FIT_LEAST_SQUARES or "
                       "AQ_FIT_FAST", (int)run->job.spec.fit);
    }
    if (run->job.fast && run->job.column_weights) {
        return aq_fail(err, AQ_ERR_ARGUMENT,
                       "aq_quantize: the fast fit cannot heed column weights; pass NULL, or use "
                       "AQ_FIT_LEAST_SQUARES");
    }
    return aq_column_weights_check(run->job.column_weights, layout->cols, err);
}

/* Wave by wave, so that the outcomes fit the stack; they are folded in the order of the blocks. */
static aq_status aq_quantize_waves(aq_context *context, aq_quantize_run *run, aq_quality *total,
                                   aq_error *err) {
    uint64_t blocks = run->layout.rows / run->block_rows +
                      (run->layout.rows % run->block_rows != 0);
    for (run->first_block = 0; run->first_block < blocks; run->first_block += AQ_WAVE_BLOCKS) {
        size_t i, count = blocks - run->first_block < AQ_WAVE_BLOCKS
                              ? (size_t)(blocks - run->first_block) : AQ_WAVE_BLOCKS;
        aq_status status = aq_parallel_for(context, aq_thread_count(context), count,
                                           aq_quantize_task, run, err);
        if (status != AQ_OK) {
            return status;
        }
        for (i = 0; i < count; i++) {
            if (aq_outcome_is_final(&run->outcomes[i])) {
                if (run->outcomes[i].needs_f32 && aq_code_is_block(run->job.spec.code)) {
                    return aq_block_fail(run, &run->outcomes[i],
                                         (run->first_block + i) * run->block_rows, err);
                }
                return aq_outcome_fail(&run->outcomes[i], (run->first_block + i) * run->block_rows,
                                       run->layout.cols, run->job.spec.params, err);
            }
            aq_quality_add(total, &run->outcomes[i].quality);
        }
    }
    return AQ_OK;
}

/* Work space for each thread, and the weights in the basis that is coded. */
static aq_status aq_quantize_spaces(const aq_context *context, aq_quantize_run *run,
                                    aq_error *err) {
    size_t bytes = 0;
    if (aq_spec_rotation(&run->job.spec)) {
        if (run->job.column_weights) {
            return aq_fail(err, AQ_ERR_ARGUMENT, "aq_quantize: a rotation mixes the columns, so "
                           "column_weights must be NULL");
        }
        aq_status status = aq_rotated_weights(context, &run->job.spec, run->weights,
                                              run->job.dtype, run->layout.rows, run->layout.cols,
                                              &run->rotated, err);
        if (status != AQ_OK) {
            return status;
        }
        run->weights = (const uint8_t *)run->rotated;
        run->job.dtype = AQ_DTYPE_F32;
    }
    if (!aq_mul_size(run->space_bytes, aq_thread_count(context), &bytes)) {
        return aq_fail_memory(err, run->space_bytes);
    }
    run->spaces = (uint8_t *)aq_alloc_work(context, bytes);
    return run->spaces ? AQ_OK : aq_fail_memory(err, bytes);
}

ARROWQUANT_API aq_status aq_quantize(aq_context *context, const aq_quant_spec *spec,
                                     const void *weights, aq_dtype dtype, uint64_t rows,
                                     uint64_t cols, const float *column_weights, void *codes,
                                     void *params, void *extra, aq_quality *quality,
                                     aq_error *err) {
    aq_quantize_run run;
    aq_quality total;
    aq_status status = aq_quantized_size(spec, rows, cols, &run.layout, err);
    if (status != AQ_OK) {
        return status;
    }
    aq_row_job_init(&run.job, context, spec, dtype, cols, column_weights);
    run.job.measure = quality != NULL;
    run.weights = (const uint8_t *)weights;
    run.codes = (uint8_t *)codes;
    run.params = (uint8_t *)params;
    run.extra = (uint8_t *)extra;
    run.block_rows = aq_spec_block_rows(spec, cols);
    run.context = context;
    run.spaces = NULL;
    run.rotated = NULL;
    run.space_bytes = (size_t)aq_trellis_bytes(spec);
    status = aq_quantize_check(&run, err);
    if (status != AQ_OK) {
        return status;
    }
    memset(&total, 0, sizeof total);
    if (rows && cols && run.space_bytes) {
        status = aq_quantize_spaces(context, &run, err);
    }
    if (rows && cols && status == AQ_OK) {
        status = aq_quantize_waves(context, &run, &total, err);
    }
    if (run.spaces) {
        aq_free_work(context, run.spaces, run.space_bytes * aq_thread_count(context));
    }
    if (run.rotated) {
        aq_free_work(context, run.rotated, (size_t)(rows * cols) * sizeof(float));
    }
    if (status == AQ_OK && quality) {
        *quality = total;
    }
    return status;
}

#undef AQ_FIT_CACHE
#undef AQ_WAVE_BLOCKS
