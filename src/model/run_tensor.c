/* One tensor of a run: read in chunks, quantized on all cores, written where it belongs, measured
 * on the way; stored wider or raised to more bits when it has to be.
 *
 * Every task reads, quantizes and writes its own rows, so reading, computing and writing overlap
 * without queues. A task that meets parameters which do not fit ends the attempt, and the tensor
 * starts again at the same place of the output. */
#include "run.h"

#include <math.h>

#ifndef ARROWQUANT_NO_STDIO

/* Ends an attempt: not an error of the caller's, and never returned to him. */
#define AQ_TRY_WIDER AQ_STATUS_COUNT

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
    uint32_t (*crcs)[3];        /* a chunk each: codes, params, extra */
    uint64_t code_offset, param_offset, extra_offset; /* in the output file */
    size_t in_bytes, f32_bytes, code_bytes, param_bytes, extra_bytes; /* buffers of a worker */
} aq_tensor_job;

/* ---- buffers and stored tensors */

AQ_LIB aq_status aq_run_buffers(aq_run *run, const aq_plan_tensor *tensor, uint64_t size,
                                uint32_t *workers, aq_error *err) {
    uint64_t rounded = (size + 63) & ~(uint64_t)63;
    uint64_t count = run->memory_limit / (rounded ? rounded : 1);
    if (count > run->threads) count = run->threads;
    if (!count && run->hard_limit)
        return aq_fail_tensor(err, AQ_ERR_OUT_OF_MEMORY, tensor->name, 0,
                              "%s: its rows are so long that one worker needs %llu MB; "
                              "max_memory_limit_mb allows %llu", tensor->name,
                              (unsigned long long)(rounded / 1000000 + 1),
                              (unsigned long long)(run->memory_limit / 1000000));
    if (!count) count = 1;
    *workers = (uint32_t)count;
    if (rounded > SIZE_MAX / count) return aq_fail_memory(err, SIZE_MAX);
    if (rounded * count > run->buffer_bytes) {
        aq_free(run->context, run->buffer, run->buffer_bytes);
        run->buffer_bytes = 0;
        run->buffer = (unsigned char *)aq_alloc(run->context, (size_t)(rounded * count));
        if (!run->buffer) return aq_fail_memory(err, (size_t)(rounded * count));
        run->buffer_bytes = (size_t)(rounded * count);
    }
    run->buffer_size = (size_t)rounded;
    return AQ_OK;
}

AQ_LIB aq_status aq_run_stored(aq_run *run, const char *name, const char *suffix, aq_dtype dtype,
                               uint32_t rank, const uint64_t *shape, uint64_t bytes, uint32_t crc,
                               aq_error *err) {
    aq_arena *arena = &run->plan->state->arena;
    aq_shard_writer *out = &run->out;
    size_t size = strlen(name) + strlen(suffix) + 1;
    char *full = (char *)aq_arena_alloc(arena, size);
    uint64_t *copy = (uint64_t *)aq_arena_alloc(arena, (rank + 1) * sizeof(uint64_t));
    if (!full || !copy) return aq_fail_memory(err, size);
    aq_format(full, size, "%s%s", name, suffix);
    for (uint32_t i = 0; i < rank; i++) copy[i] = shape[i];
    if (out->stored_count == out->stored_capacity) {
        size_t capacity = out->stored_capacity ? out->stored_capacity * 2 : 64;
        aq_stored *grown = (aq_stored *)aq_resize(run->context, out->stored,
                                                  out->stored_capacity * sizeof(aq_stored),
                                                  capacity * sizeof(aq_stored));
        if (!grown) return aq_fail_memory(err, capacity * sizeof(aq_stored));
        out->stored = grown;
        out->stored_capacity = capacity;
    }
    aq_stored *stored = &out->stored[out->stored_count++];
    stored->output.name = full;
    stored->output.dtype = dtype;
    stored->output.rank = rank;
    stored->output.shape = copy;
    stored->output.begin = out->cursor;
    stored->output.end = out->cursor + bytes;
    stored->crc32 = crc;
    out->cursor += bytes;
    return AQ_OK;
}

/* ---- copying */

typedef struct aq_copy_job {
    aq_run *run;
    const aq_plan_tensor *tensor;
    uint64_t chunk, target;
    uint32_t *crcs;
} aq_copy_job;

static aq_status aq_copy_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    aq_copy_job *job = (aq_copy_job *)user;
    aq_run *run = job->run;
    uint64_t begin = (uint64_t)index * job->chunk;
    uint64_t left = job->tensor->bytes - begin;
    size_t size = (size_t)(left < job->chunk ? left : job->chunk);
    unsigned char *buffer = run->buffer + worker * run->buffer_size;
    aq_status status = aq_file_read(&run->input, job->tensor->offset + begin, buffer, size, err);
    if (status != AQ_OK) return status;
    job->crcs[index] = aq_crc32(&run->crc, 0, buffer, size);
    status = aq_file_write(&run->out.file, job->target + begin, buffer, size, err);
    if (status != AQ_OK || worker) return status;
    return aq_meter_tell(&run->meter, begin + size, false, err);
}

/* The tensor as it is, byte for byte. */
static aq_status aq_copy_tensor(aq_run *run, const aq_plan_tensor *tensor, aq_error *err) {
    aq_copy_job job;
    uint32_t workers, crc = 0;
    job.run = run;
    job.tensor = tensor;
    job.chunk = run->chunk_blocks * (uint64_t)AQ_BLOCK_WEIGHTS * 2;
    if (job.chunk > tensor->bytes) job.chunk = tensor->bytes ? tensor->bytes : 1;
    job.target = run->out.data_start + run->out.cursor;
    uint64_t chunks = tensor->bytes / job.chunk + (tensor->bytes % job.chunk != 0);
    size_t crc_bytes = (size_t)chunks * sizeof(uint32_t);
    aq_status status = aq_run_buffers(run, tensor, job.chunk, &workers, err);
    if (status != AQ_OK) return status;
    job.crcs = (uint32_t *)aq_alloc(run->context, crc_bytes + 1);
    if (!job.crcs) return aq_fail_memory(err, crc_bytes);
    status = aq_parallel_for(run->context, workers, (size_t)chunks, aq_copy_task, &job, err);
    for (uint64_t i = 0; status == AQ_OK && i < chunks; i++) {
        uint64_t left = tensor->bytes - i * job.chunk;
        crc = aq_crc32_join(crc, job.crcs[i], left < job.chunk ? left : job.chunk);
    }
    aq_free(run->context, job.crcs, crc_bytes + 1);
    if (status != AQ_OK) return status;
    return aq_run_stored(run, tensor->name, "", tensor->dtype, tensor->rank, tensor->shape,
                         tensor->bytes, crc, err);
}

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

/* One block of rows, already read, into the worker's buffers. */
static aq_status aq_run_rows(aq_tensor_job *job, unsigned char *buffer, uint64_t chunk_row,
                                  uint64_t row, uint64_t rows, aq_error *err) {
    const aq_context *context = job->run->context;
    uint64_t cols = job->tensor->cols, skip = row - chunk_row;
    const unsigned char *in =
        buffer + (size_t)(skip * cols * aq_dtype_size(job->tensor->dtype));
    unsigned char *codes = buffer + job->in_bytes + job->f32_bytes;
    unsigned char *params = codes + job->code_bytes, *extra = params + job->param_bytes;
    aq_dtype dtype = job->tensor->dtype;
    if (job->scale.values) {
        float *wide = (float *)(void *)(buffer + job->in_bytes);
        aq_to_f32(context, dtype, in, wide, (size_t)(rows * cols));
        aq_fp8_apply(&job->scale, wide, row, rows, cols);
        in = (const unsigned char *)wide;
        dtype = AQ_DTYPE_F32;
    }
    aq_block_outcome *outcome = &job->outcomes[row / job->block_rows];
    memset(outcome, 0, sizeof(*outcome));
    aq_quantize_block(context, &job->spec, in, dtype, rows, cols, NULL,
                      codes + (size_t)(skip * job->layout.row_code_bytes),
                      params + (size_t)(skip * job->layout.row_param_bytes),
                      extra + (size_t)(skip * job->layout.row_extra_bytes), outcome);
    return aq_outcome_status(job, outcome, row, err);
}

static aq_status aq_write_part(aq_tensor_job *job, uint64_t offset, const unsigned char *data,
                               uint64_t size, uint32_t *crc, aq_error *err) {
    *crc = aq_crc32(&job->run->crc, 0, data, (size_t)size);
    if (!size) return AQ_OK;
    return aq_file_write(&job->run->out.file, offset, data, (size_t)size, err);
}

static aq_status aq_run_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    aq_tensor_job *job = (aq_tensor_job *)user;
    aq_run *run = job->run;
    const aq_quant_layout *layout = &job->layout;
    uint64_t first = (uint64_t)index * job->chunk_rows;
    uint64_t left = job->tensor->rows - first;
    uint64_t rows = left < job->chunk_rows ? left : job->chunk_rows;
    uint64_t row_bytes = job->tensor->cols * aq_dtype_size(job->tensor->dtype);
    unsigned char *buffer = run->buffer + worker * run->buffer_size;
    aq_status status = aq_file_read(&run->input, job->tensor->offset + first * row_bytes, buffer,
                                    (size_t)(rows * row_bytes), err);
    if (status != AQ_OK) return status;
    aq_little_endian(buffer, (size_t)(rows * job->tensor->cols),
                     aq_dtype_size(job->tensor->dtype));
    for (uint64_t r = 0; r < rows; r += job->block_rows) {
        uint64_t count = rows - r < job->block_rows ? rows - r : job->block_rows;
        status = aq_run_rows(job, buffer, first, first + r, count, err);
        if (status != AQ_OK) return status;
    }
    const unsigned char *codes = buffer + job->in_bytes + job->f32_bytes;
    const unsigned char *params = codes + job->code_bytes, *extra = params + job->param_bytes;
    uint32_t *crcs = job->crcs[index];
    status = aq_write_part(job, job->code_offset + first * layout->row_code_bytes, codes,
                           rows * layout->row_code_bytes, &crcs[0], err);
    if (status == AQ_OK)
        status = aq_write_part(job, job->param_offset + first * layout->row_param_bytes, params,
                               rows * layout->row_param_bytes, &crcs[1], err);
    if (status == AQ_OK)
        status = aq_write_part(job, job->extra_offset + first * layout->row_extra_bytes, extra,
                               rows * layout->row_extra_bytes, &crcs[2], err);
    if (status != AQ_OK || worker) return status;
    return aq_meter_tell(&run->meter, (first + rows) * row_bytes, false, err);
}

static size_t aq_aligned(uint64_t size) {
    return (size_t)((size + 63) & ~(uint64_t)63);
}

/* Sizes, offsets and buffers of an attempt with job->spec. */
static aq_status aq_job_prepare(aq_tensor_job *job, uint32_t *workers, aq_error *err) {
    const aq_plan_tensor *tensor = job->tensor;
    aq_run *run = job->run;
    aq_status status =
        aq_quantized_size(&job->spec, tensor->rows, tensor->cols, &job->layout, err);
    if (status != AQ_OK) return status;
    const aq_quant_layout *layout = &job->layout;
    uint64_t row_bytes = tensor->cols * aq_dtype_size(tensor->dtype);
    uint64_t rows = job->chunk_rows;
    job->in_bytes = aq_aligned(rows * row_bytes);
    job->f32_bytes = job->scale.values ? aq_aligned(job->block_rows * tensor->cols * 4) : 0;
    job->code_bytes = aq_aligned(rows * layout->row_code_bytes);
    job->param_bytes = aq_aligned(rows * layout->row_param_bytes);
    job->extra_bytes = aq_aligned(rows * layout->row_extra_bytes);
    job->code_offset = run->out.data_start + run->out.cursor;
    job->extra_offset = job->code_offset + layout->code_bytes;
    job->param_offset = job->extra_offset + layout->extra_bytes;
    return aq_run_buffers(run, tensor, (uint64_t)job->in_bytes + job->f32_bytes + job->code_bytes +
                          job->param_bytes + job->extra_bytes, workers, err);
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
        job->spec.params = job->spec.params == AQ_PARAM_Q8 ? AQ_PARAM_F16 : AQ_PARAM_F32;
    }
    memset(quality, 0, sizeof(*quality));
    for (size_t i = 0; status == AQ_OK && i < job->block_count; i++)
        aq_quality_add(quality, &job->outcomes[i].quality);
    return status;
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

static aq_status aq_store_parts(aq_tensor_job *job, aq_error *err) {
    const aq_plan_tensor *tensor = job->tensor;
    const aq_quant_layout *layout = &job->layout;
    bool q8 = job->spec.params == AQ_PARAM_Q8, symmetric = job->spec.code == AQ_CODE_SYMMETRIC;
    uint64_t per_group = symmetric ? 1 : 2, shape[3];
    uint32_t crc[3] = { 0, 0, 0 };
    for (size_t i = 0; i < job->chunk_count; i++) {
        uint64_t left = tensor->rows - (uint64_t)i * job->chunk_rows;
        uint64_t rows = left < job->chunk_rows ? left : job->chunk_rows;
        crc[0] = aq_crc32_join(crc[0], job->crcs[i][0], rows * layout->row_code_bytes);
        crc[1] = aq_crc32_join(crc[1], job->crcs[i][1], rows * layout->row_param_bytes);
        crc[2] = aq_crc32_join(crc[2], job->crcs[i][2], rows * layout->row_extra_bytes);
    }
    shape[0] = tensor->rows;
    shape[1] = layout->row_code_bytes / 4;
    aq_status status = aq_run_stored(job->run, tensor->name, AQ_CODES_SUFFIX, AQ_DTYPE_I32, 2,
                                     shape, layout->code_bytes, crc[0], err);
    if (status != AQ_OK) return status;
    shape[1] = per_group;
    if (q8)
        status = aq_run_stored(job->run, tensor->name, AQ_EXTRA_SUFFIX, AQ_DTYPE_F16, 2, shape,
                               layout->extra_bytes, crc[2], err);
    if (status != AQ_OK) return status;
    aq_dtype dtype = q8 ? (symmetric ? AQ_DTYPE_I8 : AQ_DTYPE_U8)
                        : (job->spec.params == AQ_PARAM_F32 ? AQ_DTYPE_F32 : AQ_DTYPE_F16);
    shape[1] = layout->groups;
    shape[2] = per_group;
    return aq_run_stored(job->run, tensor->name, AQ_PARAMS_SUFFIX, dtype, 3, shape,
                         layout->param_bytes, crc[1], err);
}

/* At the bits planned; below a gate at more, and at last not at all. */
static aq_status aq_job_run(aq_tensor_job *job, aq_plan_tensor *tensor, aq_error *err) {
    aq_run *run = job->run;
    const aq_config *config = &run->plan->config;
    for (;;) {
        aq_quality quality;
        job->spec = aq_plan_spec(config, tensor->bits);
        aq_param_type asked = job->spec.params;
        aq_status status = aq_job_attempt(job, &quality, err);
        if (status != AQ_OK) return status;
        const char *gate = aq_missed_gate(config, &quality);
        if (!*gate) {
            tensor->spec = job->spec;
            tensor->quality = quality;
            tensor->wide_params = job->spec.params != asked && job->spec.params == AQ_PARAM_F16;
            tensor->f32_params = job->spec.params == AQ_PARAM_F32;
            tensor->output_bytes =
                job->layout.code_bytes + job->layout.param_bytes + job->layout.extra_bytes;
            return aq_store_parts(job, err);
        }
        status = aq_describe_miss(run, tensor, tensor->bits, &quality, gate, err);
        if (status != AQ_OK) return status;
        tensor->reason = tensor->bits < 8 ? AQ_REASON_RAISED : AQ_REASON_KEPT_BY_GATE;
        tensor->bits *= 2;
        if (tensor->bits < 16) continue;
        tensor->output_bytes = tensor->bytes;
        return AQ_OK;
    }
}

static aq_status aq_job_scale(aq_tensor_job *job, float **values, size_t *count, aq_error *err) {
    aq_run *run = job->run;
    const aq_plan *plan = run->plan;
    const aq_plan_tensor *scale = &plan->tensors[job->tensor->scale];
    size_t element = aq_dtype_size(scale->dtype);
    aq_arena *arena = &plan->state->arena;
    aq_fp8_shape weight_shape = aq_plan_shape(run->plan, job->tensor);
    aq_fp8_shape scale_shape = aq_plan_shape(run->plan, scale);
    aq_status status = aq_fp8_scale_shape(&weight_shape, &scale_shape, &job->scale, err);
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
    job->scale.values = *values;
    return status;
}

static aq_status aq_quantize_tensor(aq_run *run, aq_plan_tensor *tensor, aq_error *err) {
    aq_tensor_job job;
    float *scales = NULL;
    size_t scale_count = 0;
    aq_status status = AQ_OK;
    memset(&job, 0, sizeof(job));
    job.run = run;
    job.tensor = tensor;
    job.block_rows = aq_block_rows(tensor->cols);
    job.block_count = (size_t)((tensor->rows - 1) / job.block_rows + 1);
    job.chunk_rows = job.block_rows * run->chunk_blocks;
    if (job.chunk_rows > tensor->rows) job.chunk_rows = tensor->rows;
    job.chunk_count = (size_t)((tensor->rows - 1) / job.chunk_rows + 1);
    if (tensor->scale != AQ_NO_TENSOR) status = aq_job_scale(&job, &scales, &scale_count, err);
    size_t outcome_bytes = job.block_count * sizeof(aq_block_outcome);
    size_t crc_bytes = job.chunk_count * sizeof(*job.crcs);
    job.outcomes = (aq_block_outcome *)aq_alloc(run->context, outcome_bytes);
    job.crcs = (uint32_t (*)[3])aq_alloc(run->context, crc_bytes);
    if (status == AQ_OK && (!job.outcomes || !job.crcs)) status = aq_fail_memory(err, outcome_bytes);
    if (status == AQ_OK) status = aq_job_run(&job, tensor, err);
    aq_free(run->context, job.crcs, crc_bytes);
    aq_free(run->context, job.outcomes, outcome_bytes);
    aq_free(run->context, scales, scale_count * sizeof(float));
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

AQ_LIB aq_status aq_run_tensor(aq_run *run, aq_plan_tensor *tensor, aq_error *err) {
    aq_status status = AQ_OK;
    run->meter.layer = tensor->name;
    if (tensor->reason == AQ_REASON_SCALE_TENSOR) {
        run->meter.done += tensor->bytes;
        return AQ_OK;
    }
    bool planned = tensor->bits < 16;
    if (planned) status = aq_quantize_tensor(run, tensor, err);
    if (status == AQ_OK && tensor->bits == 16) status = aq_copy_tensor(run, tensor, err);
    if (status == AQ_OK && tensor->bits == 16 && planned && tensor->scale != AQ_NO_TENSOR)
        status = aq_keep_scale(run, tensor, err);
    if (status != AQ_OK) return status;
    run->meter.done += tensor->bytes;
    return aq_meter_tell(&run->meter, 0, false, err);
}

#undef AQ_TRY_WIDER
#endif /* ARROWQUANT_NO_STDIO */
