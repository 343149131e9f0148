/* One tensor of a run: read in chunks, quantized on all cores, written where it belongs, measured
 * on the way; stored wider or raised to more bits when it has to be.
 *
 * Every task reads, quantizes and writes its own rows, so reading, computing and writing overlap
 * without queues. A task that meets parameters which do not fit ends the attempt, and the tensor
 * starts again at the same place of the output. */
#include "../quant/rotate.h"
#include "../quant/trellis.h"
#include "../simd/simd.h"
#include "method.h"
#include "policy.h"
#include "run.h"

#include <math.h>

#ifndef ARROWQUANT_NO_STDIO

/* Ends an attempt: not an error of the caller's, and never returned to him. */
#define AQ_TRY_WIDER AQ_STATUS_COUNT
/* F32 rows of an equalized tensor: divided, original, dequantized. */
#define AQ_EQUALIZED_BUFFERS 3u

typedef struct aq_tensor_job {
    aq_run *run;
    const aq_plan_tensor *tensor;
    aq_quant_spec spec;
    aq_quant_layout layout;
    aq_fp8_scale scale;
    uint64_t block_rows, chunk_rows;
    size_t chunk_count;
    aq_block_outcome *outcomes; /* a block each */
    size_t block_count;
    aq_part parts[AQ_PARTS_MAX];
    size_t part_count;
    uint64_t part_offset[AQ_PARTS_MAX];     /* in the output file */
    size_t made_bytes[AQ_PARTS_MAX];        /* in a worker's buffer, MADE parts */
    unsigned char *side[AQ_PARTS_MAX];      /* CLOSED parts: what their rows leave */
    uint32_t (*crcs)[AQ_PARTS_MAX];         /* a chunk each */
    size_t in_bytes, f32_bytes, code_bytes, param_bytes, extra_bytes; /* buffers of a worker */
    const float *column_weights;            /* NULL: all columns alike */
    const aq_factor *factor;                /* NULL: no feedback, so not by GPTQ */
    const aq_factor *judge;                 /* not by GPTQ, but its output is to be measured */
    size_t space_offset;                    /* work space of GPTQ or a trellis in a worker's buffer */
    double *energies;                       /* GPTQ: [2][rows], signal and error of the output */
    float *scales;                          /* of job->scale */
    size_t scale_count;
} aq_tensor_job;

/* ---- quantizing */

static aq_status aq_outcome_status(const aq_tensor_job *job, const aq_block_outcome *outcome,
                                   uint64_t first_row, aq_error *err) {
    const aq_plan_tensor *tensor = job->tensor;
    if (outcome->not_finite) {
        uint64_t index = first_row * tensor->cols + outcome->bad_index;
        const char *what = outcome->bad_value != outcome->bad_value ? "NaN" : "infinity";
        return aq_fail_tensor(err, AQ_ERR_QUANTIZATION, tensor->name, index,
                              "%s: tensor %s holds %s at element %llu (row %llu, column %llu); "
                              "repair the model, or keep the tensor with layer_bits: 16",
                              job->run->input.path, tensor->name, what, (unsigned long long)index,
                              (unsigned long long)(index / tensor->cols),
                              (unsigned long long)(index % tensor->cols));
    }
    return outcome->needs_f32 || outcome->needs_wide ? AQ_TRY_WIDER : AQ_OK;
}

/* Rows that have been read, and where what becomes of them goes. */
typedef struct aq_row_view {
    const unsigned char *in;  /* what is quantized */
    aq_dtype dtype;
    const unsigned char *raw; /* as read */
    unsigned char *codes, *params, *extra;
    size_t bad; /* index of a weight that is not finite and so was not rotated; SIZE_MAX: none known */
    double bad_value;
} aq_row_view;

/* Rows as read, to F32; FP8 weights scaled. */
static void aq_widen_rows(const aq_tensor_job *job, const unsigned char *raw, uint64_t row,
                          uint64_t rows, float *out) {
    uint64_t cols = job->tensor->cols;
    aq_to_f32(job->run->context, job->tensor->dtype, raw, out, (size_t)(rows * cols));
    if (job->scale.values) aq_fp8_apply(&job->scale, out, row, rows, cols);
}

/* Rows row … row + rows − 1 of a chunk that begins at chunk_row; FP8 weights scaled, columns of
 * an equalized tensor divided, rows of a rotated one turned. */
static aq_row_view aq_view_rows(const aq_tensor_job *job, unsigned char *buffer,
                                uint64_t chunk_row, uint64_t row, uint64_t rows) {
    uint64_t cols = job->tensor->cols, skip = row - chunk_row;
    aq_row_view view;
    view.dtype = job->tensor->dtype;
    view.bad = SIZE_MAX;
    view.bad_value = 0.0;
    view.in = view.raw = buffer + (size_t)(skip * cols * aq_dtype_size(view.dtype));
    view.codes = buffer + job->in_bytes + job->f32_bytes;
    view.params = view.codes + job->code_bytes + (size_t)(skip * job->layout.row_param_bytes);
    view.extra = view.codes + job->code_bytes + job->param_bytes +
                 (size_t)(skip * job->layout.row_extra_bytes);
    view.codes += (size_t)(skip * job->layout.row_code_bytes);
    if (job->f32_bytes) {
        float *wide = (float *)(void *)(buffer + job->in_bytes);
        aq_widen_rows(job, view.raw, row, rows, wide);
        if (job->tensor->input_scales)
            aq_fold_columns(wide, rows, cols, job->tensor->input_scales);
        if (aq_spec_rotation(&job->spec))
            view.bad = aq_rotate_finite(aq_kernels_of(job->run->context), job->spec.rotation, wide,
                                        (size_t)rows, (size_t)cols, &view.bad_value);
        view.in = (const unsigned char *)wide;
        view.dtype = AQ_DTYPE_F32;
    }
    return view;
}

/* What rounding these rows did to the output. */
static void aq_judge_rows(aq_tensor_job *job, unsigned char *buffer, const aq_row_view *view,
                          uint64_t row, uint64_t rows) {
    const aq_quant_layout *layout = &job->layout;
    for (uint64_t done = 0; done < rows; done += AQ_GPTQ_ROWS) {
        uint64_t count = rows - done < AQ_GPTQ_ROWS ? rows - done : AQ_GPTQ_ROWS;
        aq_output_sums sums;
        sums.signal = job->energies + (size_t)(row + done);
        sums.error = job->energies + (size_t)(job->tensor->rows + row + done);
        aq_output_block(job->run->context, job->judge, &job->spec,
                        view->in + (size_t)(done * layout->cols * aq_dtype_size(view->dtype)),
                        view->dtype, count, view->codes + (size_t)(done * layout->row_code_bytes),
                        view->params + (size_t)(done * layout->row_param_bytes),
                        view->extra + (size_t)(done * layout->row_extra_bytes),
                        buffer + job->space_offset, &sums);
    }
}

static void aq_view_outcome(const aq_row_view *view, aq_block_outcome *outcome) {
    memset(outcome, 0, sizeof(*outcome));
    outcome->not_finite = view->bad != SIZE_MAX;
    outcome->bad_index = outcome->not_finite ? view->bad : 0;
    outcome->bad_value = view->bad_value;
}

/* Rows of a trellis, strip by strip. */
static void aq_run_strips(const aq_tensor_job *job, const aq_row_view *view, uint64_t rows,
                          void *space, aq_block_outcome *outcome) {
    const aq_quant_layout *layout = &job->layout;
    size_t row_bytes = (size_t)layout->cols * aq_dtype_size(view->dtype);
    aq_quality total;
    memset(&total, 0, sizeof(total));
    aq_view_outcome(view, outcome);
    for (uint64_t done = 0; done < rows && !aq_outcome_is_final(outcome); done += AQ_TRELLIS_ROWS) {
        uint64_t count = rows - done < AQ_TRELLIS_ROWS ? rows - done : AQ_TRELLIS_ROWS;
        aq_trellis_block(job->run->context, &job->spec, view->in + (size_t)done * row_bytes,
                         view->dtype, count, layout->cols, job->column_weights,
                         view->codes + (size_t)(done * layout->row_code_bytes),
                         view->params + (size_t)(done * layout->row_param_bytes), space, outcome);
        outcome->bad_index += done * layout->cols;
        aq_quality_add(&total, &outcome->quality);
    }
    outcome->quality = total;
}

/* Quality against the weights as they were, because that is what a reader gets back. `row` is that of
 * the view, `done` rows of it are behind. */
static void aq_measure_equalized(aq_tensor_job *job, unsigned char *buffer, const aq_row_view *view,
                                 uint64_t row, uint64_t done, uint64_t count, aq_quality *quality) {
    const aq_quant_layout *layout = &job->layout;
    size_t part = job->f32_bytes / AQ_EQUALIZED_BUFFERS;
    float *original = (float *)(void *)(buffer + job->in_bytes + part);
    float *back = (float *)(void *)(buffer + job->in_bytes + 2 * part);
    aq_widen_rows(job, view->raw + (size_t)(done * layout->cols * aq_dtype_size(job->tensor->dtype)),
                  row + done, count, original);
    aq_dequantize_block(job->run->context, &job->spec,
                        view->codes + (size_t)(done * layout->row_code_bytes),
                        view->params + (size_t)(done * layout->row_param_bytes),
                        view->extra + (size_t)(done * layout->row_extra_bytes), count, layout->cols,
                        back);
    aq_unfold_columns(back, count, layout->cols, job->tensor->input_scales);
    aq_compare_block(job->run->context, original, back, count, layout->cols, quality);
}

/* Adds the quality of rows to that of the blocks they are in. */
static void aq_measure_rows(aq_tensor_job *job, unsigned char *buffer, const aq_row_view *view,
                            uint64_t row, uint64_t rows) {
    const aq_quant_layout *layout = &job->layout;
    uint64_t done, count;
    for (done = 0; done < rows; done += count) {
        uint64_t at = row + done, left = job->block_rows - at % job->block_rows;
        aq_block_outcome *outcome = &job->outcomes[at / job->block_rows];
        count = rows - done < left ? rows - done : left;
        if (at % job->block_rows == 0) memset(outcome, 0, sizeof(*outcome));
        if (job->tensor->input_scales) {
            aq_measure_equalized(job, buffer, view, row, done, count, &outcome->quality);
            continue;
        }
        aq_measure_block(job->run->context, &job->spec,
                         view->in + (size_t)(done * layout->cols * aq_dtype_size(view->dtype)),
                         view->dtype, count, layout->cols,
                         view->codes + (size_t)(done * layout->row_code_bytes),
                         view->params + (size_t)(done * layout->row_param_bytes),
                         view->extra + (size_t)(done * layout->row_extra_bytes),
                         &outcome->quality);
    }
}

/* One block of rows, already read, into the worker's buffers. */
static aq_status aq_run_rows(aq_tensor_job *job, unsigned char *buffer, uint64_t chunk_row,
                             uint64_t row, uint64_t rows, aq_error *err) {
    aq_row_view view = aq_view_rows(job, buffer, chunk_row, row, rows);
    aq_block_outcome *outcome = &job->outcomes[row / job->block_rows];
    memset(outcome, 0, sizeof(*outcome));
    if (job->spec.code == AQ_CODE_TRELLIS)
        aq_run_strips(job, &view, rows, buffer + job->space_offset, outcome);
    else
        aq_quantize_block(job->run->context, &job->spec, view.in, view.dtype, rows,
                          job->tensor->cols, job->column_weights, view.codes, view.params,
                          view.extra, outcome);
    aq_status status = aq_outcome_status(job, outcome, row, err);
    if (status == AQ_OK && job->judge) aq_judge_rows(job, buffer, &view, row, rows);
    if (status == AQ_OK && job->tensor->input_scales) aq_measure_rows(job, buffer, &view, row, rows);
    return status;
}

/* As aq_run_rows, by GPTQ: some panels of rows, which do not care for blocks. */
static aq_status aq_run_gptq(aq_tensor_job *job, unsigned char *buffer, uint64_t chunk_row,
                             uint64_t row, uint64_t rows, aq_error *err) {
    aq_row_view view = aq_view_rows(job, buffer, chunk_row, row, rows);
    aq_block_outcome outcome;
    aq_output_sums sums;
    sums.signal = job->energies + (size_t)row;
    sums.error = job->energies + (size_t)(job->tensor->rows + row);
    aq_view_outcome(&view, &outcome);
    if (!outcome.not_finite)
        aq_gptq_block(job->run->context, job->factor, &job->spec, view.in, view.dtype, rows,
                      view.codes, view.params, view.extra, buffer + job->space_offset, &outcome,
                      &sums);
    aq_status status = aq_outcome_status(job, &outcome, row, err);
    if (status == AQ_OK) aq_measure_rows(job, buffer, &view, row, rows);
    return status;
}

/* The bytes of a chunk's rows in one part, made if need be; NULL when they stay in memory. */
static const unsigned char *aq_part_bytes(aq_tensor_job *job, size_t part, unsigned char *buffer,
                                          const aq_part_rows *rows, uint64_t *size) {
    const aq_container *container = job->run->plan->state->container;
    const aq_part *p = &job->parts[part];
    unsigned char *made = buffer + job->in_bytes + job->f32_bytes + job->code_bytes +
                          job->param_bytes + job->extra_bytes;
    switch (p->source) {
    case AQ_PART_CODES: *size = rows->count * job->layout.row_code_bytes; return rows->codes;
    case AQ_PART_PARAMS: *size = rows->count * job->layout.row_param_bytes; return rows->params;
    case AQ_PART_EXTRA: *size = rows->count * job->layout.row_extra_bytes; return rows->extra;
    case AQ_PART_MADE: break;
    case AQ_PART_CLOSED:
        if (p->row_bytes)
            container->make(rows, part, job->side[part] + (size_t)(rows->first * p->row_bytes));
        return NULL;
    }
    for (size_t i = 0; i < part; i++) made += job->made_bytes[i];
    container->make(rows, part, made);
    *size = rows->count * p->row_bytes;
    return made;
}

/* Bytes of a row in the file. */
static uint64_t aq_part_row_bytes(const aq_tensor_job *job, const aq_part *part) {
    switch (part->source) {
    case AQ_PART_CODES: return job->layout.row_code_bytes;
    case AQ_PART_PARAMS: return job->layout.row_param_bytes;
    case AQ_PART_EXTRA: return job->layout.row_extra_bytes;
    case AQ_PART_MADE: return part->row_bytes;
    case AQ_PART_CLOSED: break;
    }
    return 0;
}

/* Within a long tensor: what lies before the end of each so many chunks. */
static void aq_begin_rows(const aq_tensor_job *job, size_t chunk, uint64_t end, uint64_t size) {
    uint64_t step = AQ_WRITEBACK_BYTES / size + 1;
    if ((chunk + 1) % step == 0 && end >= step * size)
        aq_file_begin_sync(&job->run->out.file, end - step * size, step * size);
}

/* Writes a chunk of rows that has been quantized. */
static aq_status aq_write_rows(aq_tensor_job *job, size_t chunk, unsigned char *buffer,
                               uint64_t first, uint64_t count, aq_error *err) {
    aq_part_rows rows;
    aq_status status = AQ_OK;
    if (job->run->measuring) return AQ_OK;
    rows.tensor = job->tensor;
    rows.spec = &job->spec;
    rows.layout = &job->layout;
    rows.first = first;
    rows.count = count;
    rows.codes = buffer + job->in_bytes + job->f32_bytes;
    rows.params = rows.codes + job->code_bytes;
    rows.extra = rows.params + job->param_bytes;
    for (size_t i = 0; status == AQ_OK && i < job->part_count; i++) {
        uint64_t size = 0, offset = first * aq_part_row_bytes(job, &job->parts[i]);
        const unsigned char *data = aq_part_bytes(job, i, buffer, &rows, &size);
        job->crcs[chunk][i] = 0;
        if (!size) continue;
        job->crcs[chunk][i] = aq_crc32(&job->run->crc, 0, data, (size_t)size);
        status = aq_file_write(&job->run->out.file, job->part_offset[i] + offset, data,
                               (size_t)size, err);
        aq_begin_rows(job, chunk, job->part_offset[i] + offset + size, size);
    }
    return status;
}

static aq_status aq_run_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    aq_tensor_job *job = (aq_tensor_job *)user;
    aq_run *run = job->run;
    uint64_t first = (uint64_t)index * job->chunk_rows;
    uint64_t left = job->tensor->rows - first;
    uint64_t rows = left < job->chunk_rows ? left : job->chunk_rows;
    uint64_t row_bytes = job->tensor->cols * aq_dtype_size(job->tensor->dtype);
    unsigned char *buffer = run->buffer + worker * run->buffer_size;
    aq_status status = aq_run_read(run, job->tensor, first * row_bytes, buffer,
                                   (size_t)(rows * row_bytes), err);
    if (status != AQ_OK) return status;
    aq_little_endian(buffer, (size_t)(rows * job->tensor->cols),
                     aq_dtype_size(job->tensor->dtype));
    uint64_t step = job->factor ? AQ_GPTQ_ROWS : job->block_rows;
    for (uint64_t r = 0; r < rows; r += step) {
        uint64_t count = rows - r < step ? rows - r : step;
        if (aq_is_cancelled(run->context)) return aq_fail(err, AQ_ERR_CANCELLED, "cancelled");
        status = (job->factor ? aq_run_gptq : aq_run_rows)(job, buffer, first, first + r, count,
                                                           err);
        if (status != AQ_OK) return status;
    }
    status = aq_write_rows(job, index, buffer, first, rows, err);
    if (status != AQ_OK || worker) return status;
    return aq_meter_tell(&run->meter, (first + rows) * row_bytes, false, err);
}

static size_t aq_aligned(uint64_t size) {
    return (size_t)((size + 63) & ~(uint64_t)63);
}

static void aq_job_free_sides(aq_tensor_job *job) {
    for (size_t i = 0; i < job->part_count; i++) {
        if (job->side[i])
            aq_free(job->run->context, job->side[i],
                    (size_t)(job->parts[i].row_bytes * job->tensor->rows));
        job->side[i] = NULL;
    }
}

/* Where the parts lie, and what they need of a worker's buffer and of memory. */
static aq_status aq_job_parts(aq_tensor_job *job, uint64_t *made_bytes, aq_error *err) {
    const aq_plan_tensor *tensor = job->tensor;
    aq_run *run = job->run;
    uint64_t offset = run->out.data_start + run->out.cursor;
    aq_job_free_sides(job);
    job->part_count = 0;
    aq_status status = run->plan->state->container->parts(run->plan, tensor, &job->spec, &job->layout,
                                                          job->parts, &job->part_count, err);
    *made_bytes = 0;
    for (size_t i = 0; status == AQ_OK && i < job->part_count; i++) {
        const aq_part *part = &job->parts[i];
        job->part_offset[i] = offset;
        offset += part->bytes;
        job->made_bytes[i] = 0;
        if (part->source == AQ_PART_MADE)
            job->made_bytes[i] = aq_aligned(job->chunk_rows * part->row_bytes);
        *made_bytes += job->made_bytes[i];
        if (part->source != AQ_PART_CLOSED || !part->row_bytes) continue;
        uint64_t bytes = 0;
        if (aq_mul_u64(part->row_bytes, tensor->rows, &bytes) && bytes <= SIZE_MAX)
            job->side[i] = (unsigned char *)aq_alloc(run->context, (size_t)bytes);
        if (!job->side[i]) status = aq_fail_memory(err, (size_t)bytes);
    }
    return status;
}

/* Sizes, offsets and buffers of an attempt with job->spec. */
static aq_status aq_job_prepare(aq_tensor_job *job, uint32_t *workers, aq_error *err) {
    const aq_plan_tensor *tensor = job->tensor;
    uint64_t made_bytes = 0;
    aq_status status =
        aq_quantized_size(&job->spec, tensor->rows, tensor->cols, &job->layout, err);
    if (status == AQ_OK) status = aq_job_parts(job, &made_bytes, err);
    if (status != AQ_OK) return status;
    const aq_quant_layout *layout = &job->layout;
    uint64_t row_bytes = tensor->cols * aq_dtype_size(tensor->dtype);
    uint64_t rows = job->chunk_rows;
    job->in_bytes = aq_aligned(rows * row_bytes);
    uint64_t wide_rows = job->factor ? AQ_GPTQ_ROWS : job->block_rows;
    if (wide_rows > rows) wide_rows = rows;
    job->f32_bytes = 0;
    if (job->scale.values || aq_spec_rotation(&job->spec) || tensor->input_scales)
        job->f32_bytes = aq_aligned(wide_rows * tensor->cols * 4) *
                         (tensor->input_scales ? AQ_EQUALIZED_BUFFERS : 1);
    job->code_bytes = aq_aligned(rows * layout->row_code_bytes);
    job->param_bytes = aq_aligned(rows * layout->row_param_bytes);
    job->extra_bytes = aq_aligned(rows * layout->row_extra_bytes);
    uint64_t bytes = (uint64_t)job->in_bytes + job->f32_bytes + job->code_bytes +
                     job->param_bytes + job->extra_bytes + made_bytes;
    job->space_offset = (size_t)bytes;
    if (job->factor || job->judge)
        bytes += aq_gptq_bytes(&job->spec, job->factor ? job->factor : job->judge,
                               rows < AQ_GPTQ_ROWS ? rows : AQ_GPTQ_ROWS);
    else bytes += aq_trellis_bytes(&job->spec);
    return aq_run_buffers(job->run, tensor, bytes, workers, err);
}

/* Whether other parameter types can hold what this one cannot, and the format has them. */
static bool aq_job_widens(const aq_tensor_job *job) {
    const aq_quant_spec *spec = &job->spec;
    if (job->run->plan->state->container->format == AQ_OUTPUT_COMPRESSED_TENSORS) return false;
    return (spec->code == AQ_CODE_AFFINE || spec->code == AQ_CODE_SYMMETRIC ||
            spec->code == AQ_CODE_RESIDUAL || spec->code == AQ_CODE_TRELLIS) &&
           spec->params != AQ_PARAM_F32;
}

/* Quantizes with the narrowest parameters that fit, from those asked for upwards. */
static aq_status aq_job_attempt(aq_tensor_job *job, aq_quality *quality, aq_error *err) {
    aq_status status;
    for (;;) {
        aq_error failure;
        uint32_t workers;
        status = aq_job_prepare(job, &workers, err);
        if (status != AQ_OK) return status;
        status = aq_parallel_for(job->run->context, workers, job->chunk_count, aq_run_task,
                                 job, &failure);
        if (status != AQ_TRY_WIDER) {
            if (status != AQ_OK && err) *err = failure;
            break;
        }
        if (!aq_job_widens(job)) return AQ_TRY_WIDER;
        job->spec.params = job->spec.params == AQ_PARAM_Q8 ? AQ_PARAM_F16 : AQ_PARAM_F32;
    }
    memset(quality, 0, sizeof(*quality));
    for (size_t i = 0; status == AQ_OK && i < job->block_count; i++)
        aq_quality_add(quality, &job->outcomes[i].quality);
    return status;
}

/* Weights or feedback for tensor->method; without a usable factor `auto` has another method. */
static aq_status aq_job_method(aq_tensor_job *job, aq_plan_tensor *tensor, aq_error *err) {
    aq_run *run = job->run;
    size_t bytes = (size_t)tensor->rows * 2 * sizeof(double);
    bool possible = aq_gptq_is_possible(run->plan, tensor), usable = true;
    bool gptq = tensor->method == AQ_METHOD_GPTQ ||
                (tensor->method == AQ_METHOD_TRELLIS && possible);
    job->factor = job->judge = NULL;
    job->column_weights = NULL; /* columns that are mixed have none */
    if (tensor->statistics && !aq_spec_rotation(&tensor->spec))
        job->column_weights = tensor->statistics->pooled_sqmean;
    tensor->output_signal = tensor->output_error = 0.0;
    if (!gptq && !(run->measuring && possible)) return AQ_OK;
    aq_status status = AQ_OK;
    if (gptq && tensor->spec.code == AQ_CODE_TRELLIS)
        status = aq_run_rotation(run, tensor, &job->scale, err);
    job->spec.rotation = tensor->spec.rotation;
    if (status == AQ_OK) status = aq_run_factor(run, tensor, &usable, err);
    if (status != AQ_OK) return status;
    if (!usable && gptq) {
        if (tensor->method == AQ_METHOD_GPTQ) tensor->method = AQ_METHOD_PTQ;
        tensor->method_detail = "second moments are not positive definite";
    }
    if (!usable) return AQ_OK;
    job->factor = gptq ? &run->factor : NULL;
    job->judge = gptq ? NULL : &run->factor;
    if (!job->energies) job->energies = (double *)aq_alloc(run->context, bytes);
    return job->energies ? AQ_OK : aq_fail_memory(err, bytes);
}

/* Rows in order, so that the sums are the same however they were shared out. */
static void aq_job_output_error(const aq_tensor_job *job, aq_plan_tensor *tensor) {
    size_t rows = (size_t)tensor->rows;
    for (size_t i = 0; (job->factor || job->judge) && i < rows; i++) {
        tensor->output_signal += job->energies[i];
        tensor->output_error += job->energies[rows + i];
    }
}

/* "" when the quality passes the config's gates, else which gate it misses */
static const char *aq_missed_gate(const aq_config *config, const aq_quality *quality) {
    if (aq_quality_cosine(quality) < config->min_accuracy) return "min_accuracy";
    if (config->min_sqnr_db == config->min_sqnr_db &&
        aq_quality_sqnr_db(quality) < config->min_sqnr_db)
        return "min_sqnr_db";
    return "";
}

static aq_status aq_describe_miss(aq_run *run, aq_plan_tensor *tensor, uint32_t bits,
                                  const aq_quality *quality, const char *gate, aq_error *err) {
    const aq_config *config = &run->plan->config;
    bool cosine = strcmp(gate, "min_accuracy") == 0;
    char measured[AQ_DOUBLE_TEXT], wanted[AQ_DOUBLE_TEXT], text[160];
    double value = cosine ? aq_quality_cosine(quality) : aq_quality_sqnr_db(quality);
    double places = cosine ? 1e6 : 1e3;
    aq_format_double(floor(value * places) / places, measured);
    aq_format_double(cosine ? config->min_accuracy : config->min_sqnr_db, wanted);
    aq_format(text, sizeof(text), "%u bits: %s %s < %s", bits, cosine ? "cosine" : "SQNR dB",
              measured, wanted);
    if (config->fail_fast)
        return aq_fail_tensor(err, AQ_ERR_VALIDATION, tensor->name, 0,
                              "tensor %s at %s; give it more bits (layer_bits), lower %s, or leave "
                              "fail_fast off so that it is raised", tensor->name, text, gate);
    tensor->detail = aq_arena_string(&run->plan->state->arena, text);
    return tensor->detail ? AQ_OK : aq_fail_memory(err, sizeof(text));
}

/* A part that is written when the rows are done. */
static aq_status aq_close_part(aq_tensor_job *job, size_t index, uint32_t *crc, aq_error *err) {
    aq_run *run = job->run;
    const aq_part *part = &job->parts[index];
    unsigned char *data = (unsigned char *)aq_alloc(run->context, (size_t)part->bytes + 1);
    if (!data) return aq_fail_memory(err, (size_t)part->bytes);
    aq_status status = run->plan->state->container->close(run, job->tensor, part, index,
                                                          job->side[index], data, err);
    if (status == AQ_OK && part->bytes) {
        *crc = aq_crc32(&run->crc, 0, data, (size_t)part->bytes);
        status = aq_file_write(&run->out.file, job->part_offset[index], data, (size_t)part->bytes,
                               err);
    }
    aq_free(run->context, data, (size_t)part->bytes + 1);
    return status;
}

static aq_status aq_store_parts(aq_tensor_job *job, aq_error *err) {
    const aq_plan_tensor *tensor = job->tensor;
    aq_status status = AQ_OK;
    for (size_t p = 0; status == AQ_OK && p < job->part_count; p++) {
        const aq_part *part = &job->parts[p];
        uint64_t row_bytes = aq_part_row_bytes(job, part);
        uint32_t crc = 0;
        for (size_t i = 0; i < job->chunk_count; i++) {
            uint64_t left = tensor->rows - (uint64_t)i * job->chunk_rows;
            uint64_t rows = left < job->chunk_rows ? left : job->chunk_rows;
            crc = aq_crc32_join(crc, job->crcs[i][p], rows * row_bytes);
        }
        if (part->source == AQ_PART_CLOSED) status = aq_close_part(job, p, &crc, err);
        if (status == AQ_OK)
            status = aq_run_stored(job->run, tensor->output_name, part->suffix, part->dtype,
                                   part->rank, part->shape, part->bytes, crc, err);
    }
    return status;
}

/* The format has no wider parameters, and these do not fit. */
static aq_status aq_job_give_up(aq_run *run, aq_plan_tensor *tensor, aq_error *err) {
    tensor->reason = AQ_REASON_FORMAT;
    tensor->detail = "a scale does not fit the format's parameters";
    return aq_plan_keep(run->plan, tensor, err);
}

/* At the bits planned; below a gate at more, and at last not at all. */
static aq_status aq_job_run(aq_tensor_job *job, aq_plan_tensor *tensor, aq_error *err) {
    aq_run *run = job->run;
    const aq_config *config = &run->plan->config;
    for (;;) {
        aq_quality quality;
        job->spec = tensor->spec;
        aq_param_type asked = job->spec.params;
        aq_status status = aq_job_method(job, tensor, err);
        if (status == AQ_OK) status = aq_job_attempt(job, &quality, err);
        if (status == AQ_TRY_WIDER) return aq_job_give_up(run, tensor, err);
        if (status != AQ_OK) return status;
        const char *gate = aq_missed_gate(config, &quality);
        if (!*gate) {
            tensor->spec = job->spec;
            tensor->quality = quality;
            aq_job_output_error(job, tensor);
            tensor->wide_params = job->spec.params != asked && job->spec.params == AQ_PARAM_F16;
            tensor->f32_params = job->spec.params != asked && job->spec.params == AQ_PARAM_F32;
            tensor->output_bytes = 0;
            for (size_t i = 0; i < job->part_count; i++)
                tensor->output_bytes += job->parts[i].bytes;
            return aq_store_parts(job, err);
        }
        status = aq_describe_miss(run, tensor, tensor->bits, &quality, gate, err);
        if (status != AQ_OK) return status;
        const char *detail = tensor->detail;
        tensor->reason = tensor->bits < 8 ? AQ_REASON_RAISED : AQ_REASON_KEPT_BY_GATE;
        tensor->bits = aq_more_bits(config, tensor->bits);
        if (tensor->bits == 16) return aq_plan_keep(run->plan, tensor, err);
        status = aq_plan_store(run->plan, tensor, err);
        if (status != AQ_OK || tensor->bits == 16) return status;
        tensor->detail = detail; /* the gate that was missed says more than the code's */
    }
}

AQ_LIB aq_status aq_run_scale(aq_run *run, const aq_plan_tensor *weight, aq_fp8_scale *out,
                              float **values, size_t *count, aq_error *err) {
    const aq_plan *plan = run->plan;
    const aq_plan_tensor *scale = &plan->tensors[weight->scale];
    if (weight->turn && scale->bytes > aq_dtype_size(scale->dtype))
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, weight->name, 0,
                              "tensor %s: its halves change places in this format, which is not done "
                              "to FP8 weights with more than one scale", weight->name);
    size_t element = aq_dtype_size(scale->dtype);
    aq_arena *arena = &plan->state->arena;
    aq_fp8_shape weight_shape = aq_plan_shape(run->plan, weight);
    aq_fp8_shape scale_shape = aq_plan_shape(run->plan, scale);
    aq_status status = aq_fp8_scale_shape(&weight_shape, &scale_shape, out, err);
    if (status != AQ_OK) return status;
    *count = (size_t)(scale->bytes / element);
    void *raw = aq_alloc(run->context, (size_t)scale->bytes);
    *values = (float *)aq_alloc(run->context, *count * sizeof(float));
    char *path = aq_path_join(arena, plan->state->folder.root, plan->shards[scale->shard].path);
    if (!raw || !*values || !path) status = aq_fail_memory(err, (size_t)scale->bytes);
    aq_file file = AQ_FILE_CLOSED;
    uint64_t size;
    if (status == AQ_OK) status = aq_file_open(&file, path, &size, err);
    if (status == AQ_OK)
        status = aq_file_read(&file, scale->offset, raw, (size_t)scale->bytes, err);
    (void)aq_file_close(&file, NULL);
    if (status == AQ_OK) {
        aq_little_endian(raw, *count, element);
        aq_to_f32(run->context, scale->dtype, raw, *values, *count);
    }
    aq_free(run->context, raw, (size_t)scale->bytes);
    out->values = *values;
    return status;
}

/* What a job has besides its attempts. */
static aq_status aq_job_open(aq_tensor_job *job, aq_run *run, aq_plan_tensor *tensor,
                             aq_error *err) {
    aq_status status = AQ_OK;
    memset(job, 0, sizeof(*job));
    job->run = run;
    job->tensor = tensor;
    if (tensor->scale != AQ_NO_TENSOR)
        status = aq_run_scale(run, tensor, &job->scale, &job->scales, &job->scale_count, err);
    if (status == AQ_OK) status = aq_run_choose(run, tensor, &job->scale, err);
    job->block_rows = aq_spec_block_rows(&tensor->spec, tensor->cols);
    job->block_count = (size_t)((tensor->rows - 1) / job->block_rows + 1);
    job->chunk_rows = job->block_rows * run->chunk_blocks;
    if (tensor->spec.code == AQ_CODE_TRELLIS) job->chunk_rows = job->block_rows; /* large, and slow */
    if (job->chunk_rows > tensor->rows) job->chunk_rows = tensor->rows;
    job->chunk_count = (size_t)((tensor->rows - 1) / job->chunk_rows + 1);
    size_t outcome_bytes = job->block_count * sizeof(aq_block_outcome);
    job->outcomes = (aq_block_outcome *)aq_alloc(run->context, outcome_bytes);
    job->crcs = (uint32_t (*)[AQ_PARTS_MAX])aq_alloc(run->context,
                                                     job->chunk_count * sizeof(*job->crcs));
    if (status == AQ_OK && (!job->outcomes || !job->crcs))
        status = aq_fail_memory(err, outcome_bytes);
    return status;
}

static void aq_job_close(aq_tensor_job *job) {
    const aq_context *context = job->run->context;
    aq_job_free_sides(job);
    if (job->energies)
        aq_free(context, job->energies, (size_t)job->tensor->rows * 2 * sizeof(double));
    aq_free(context, job->crcs, job->chunk_count * sizeof(*job->crcs));
    aq_free(context, job->outcomes, job->block_count * sizeof(aq_block_outcome));
    aq_free(context, job->scales, job->scale_count * sizeof(float));
}

static aq_status aq_quantize_tensor(aq_run *run, aq_plan_tensor *tensor, aq_error *err) {
    aq_tensor_job job;
    aq_status status = aq_job_open(&job, run, tensor, err);
    if (status == AQ_OK) status = aq_job_run(&job, tensor, err);
    if (status == AQ_OK && tensor->bits == 16 && tensor->output_dtype != tensor->dtype)
        status = aq_convert_tensor(run, tensor, &job.scale, err);
    aq_job_close(&job);
    return status;
}

AQ_LIB aq_status aq_run_measure(aq_run *run, aq_plan_tensor *tensor, bool *usable, aq_error *err) {
    aq_tensor_job job;
    aq_status status = aq_job_open(&job, run, tensor, err);
    *usable = true;
    run->measuring = true;
    job.spec = tensor->spec;
    if (status == AQ_OK) status = aq_job_method(&job, tensor, err);
    if (status == AQ_OK) status = aq_job_attempt(&job, &tensor->quality, err);
    run->measuring = false;
    if (status == AQ_TRY_WIDER) {
        *usable = false;
        status = AQ_OK;
    } else if (status == AQ_OK) {
        aq_job_output_error(&job, tensor);
        *usable = !*aq_missed_gate(&run->plan->config, &tensor->quality);
        tensor->output_bytes = 0;
        for (size_t i = 0; i < job.part_count; i++) tensor->output_bytes += job.parts[i].bytes;
    }
    aq_job_close(&job);
    return status;
}

/* An FP8 weight kept by a gate needs the scale that was to be folded into it. */
static aq_status aq_keep_scale(aq_run *run, const aq_plan_tensor *weight, aq_error *err) {
    const aq_plan *plan = run->plan;
    aq_plan_tensor *scale = &run->plan->tensors[weight->scale];
    uint64_t size;
    aq_file weights = run->input;
    char *path = aq_path_join(&plan->state->arena, plan->state->folder.root,
                              plan->shards[scale->shard].path);
    if (!path) return aq_fail_memory(err, 0);
    aq_status status = aq_file_open(&run->input, path, &size, err);
    if (status == AQ_OK) status = aq_copy_tensor(run, scale, err);
    (void)aq_file_close(&run->input, NULL);
    run->input = weights;
    scale->detail = "kept with its weight";
    scale->output_bytes = scale->bytes;
    return status;
}

/* A tensor that was never to be quantized. */
static aq_status aq_keep_tensor(aq_run *run, aq_plan_tensor *tensor, aq_error *err) {
    aq_fp8_scale scale;
    float *scales = NULL;
    size_t count = 0;
    aq_status status = AQ_OK;
    if (tensor->output_dtype == tensor->dtype) return aq_copy_tensor(run, tensor, err);
    memset(&scale, 0, sizeof(scale));
    if (tensor->scale != AQ_NO_TENSOR)
        status = aq_run_scale(run, tensor, &scale, &scales, &count, err);
    if (status == AQ_OK) status = aq_convert_tensor(run, tensor, &scale, err);
    aq_free(run->context, scales, count * sizeof(float));
    return status;
}

AQ_LIB aq_status aq_run_tensor(aq_run *run, aq_plan_tensor *tensor, aq_error *err) {
    aq_status status = AQ_OK;
    run->meter.layer = tensor->name;
    if (tensor->reason == AQ_REASON_SCALE_TENSOR) {
        run->meter.done += tensor->bytes;
        return AQ_OK;
    }
    if (tensor->bits == 16) {
        status = aq_keep_tensor(run, tensor, err);
    } else {
        status = aq_quantize_tensor(run, tensor, err);
        if (status == AQ_OK && tensor->bits == 16 && tensor->output_dtype == tensor->dtype) {
            status = aq_copy_tensor(run, tensor, err);
            if (status == AQ_OK && tensor->scale != AQ_NO_TENSOR)
                status = aq_keep_scale(run, tensor, err);
        }
    }
    if (status != AQ_OK) return status;
    run->meter.done += tensor->bytes;
    return aq_meter_tell(&run->meter, 0, false, err);
}

#undef AQ_TRY_WIDER
#undef AQ_EQUALIZED_BUFFERS
#endif /* ARROWQUANT_NO_STDIO */
