/* Kept tensors of a run: copied byte for byte, or converted to the dtype that the output format
 * wants. And what all tensors need: buffers, and the list of what has been stored. */
#include "run.h"

#include <float.h>
#include <math.h>

#ifndef ARROWQUANT_NO_STDIO

/* Ends an attempt: a value does not fit the dtype. Never returned to the caller. */
#define AQ_TOO_NARROW AQ_STATUS_COUNT

/* ---- buffers and stored tensors */

AQ_LIB aq_status aq_run_buffers(aq_run *run, const aq_plan_tensor *tensor, uint64_t size,
                                uint32_t *workers, aq_error *err) {
    uint64_t rounded = (size + 63) & ~(uint64_t)63;
    uint64_t held = run->hard_limit && run->factor_of
                        ? run->factor.memory_bytes + (uint64_t)run->hessian_bytes : 0;
    uint64_t limit = run->memory_limit > held ? run->memory_limit - held : 0;
    uint64_t count = limit / (rounded ? rounded : 1);
    if (count > run->threads) count = run->threads;
    if (!count && run->hard_limit)
        return aq_fail_tensor(err, AQ_ERR_OUT_OF_MEMORY, tensor->name, 0,
                              "%s: its rows are so long that one worker needs %llu MB; "
                              "max_memory_limit_mb allows %llu", tensor->name,
                              (unsigned long long)(rounded / 1000000 + 1),
                              (unsigned long long)(limit / 1000000));
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

AQ_LIB aq_status aq_run_read(aq_run *run, const aq_plan_tensor *tensor, uint64_t offset, void *data,
                             size_t size, aq_error *err) {
    uint64_t begin = offset + tensor->turn;
    if (begin >= tensor->bytes) begin -= tensor->bytes;
    uint64_t left = tensor->bytes - begin;
    size_t first = left < size ? (size_t)left : size;
    aq_status status = aq_file_read(&run->input, tensor->offset + begin, data, first, err);
    if (status != AQ_OK || first == size) return status;
    return aq_file_read(&run->input, tensor->offset, (unsigned char *)data + first, size - first,
                        err);
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
    aq_status status = aq_run_read(run, job->tensor, begin, buffer, size, err);
    if (status != AQ_OK) return status;
    job->crcs[index] = aq_crc32(&run->crc, 0, buffer, size);
    status = aq_file_write(&run->out.file, job->target + begin, buffer, size, err);
    if (status != AQ_OK || worker) return status;
    return aq_meter_tell(&run->meter, begin + size, false, err);
}

/* The tensor as it is, byte for byte. */
AQ_LIB aq_status aq_copy_tensor(aq_run *run, const aq_plan_tensor *tensor, aq_error *err) {
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
    return aq_run_stored(run, tensor->output_name, "", tensor->dtype, tensor->rank, tensor->shape,
                         tensor->bytes, crc, err);
}

/* ---- converting */

typedef struct aq_convert_job {
    aq_run *run;
    const aq_plan_tensor *tensor;
    const aq_fp8_scale *scale;
    aq_dtype dtype;
    uint64_t unit, step, count; /* elements that stay together: a row with a scale, else 1; units */
    size_t in_bytes, f32_bytes; /* buffers of a worker */
    uint64_t target;
    uint32_t *crcs;
} aq_convert_job;

/* The first magnitude that becomes infinite. */
static float aq_dtype_limit(aq_dtype dtype) {
    if (dtype == AQ_DTYPE_F16) return 65520.0f;
    return dtype == AQ_DTYPE_BF16 ? 3.3961775e38f : (float)INFINITY;
}

/* Whether a finite value would become infinite. */
static bool aq_overflows(const float *values, size_t count, aq_dtype dtype) {
    const float limit = aq_dtype_limit(dtype), most = FLT_MAX;
    for (size_t i = 0; i < count; i++) {
        float magnitude = values[i] < 0 ? -values[i] : values[i];
        if (magnitude >= limit && magnitude <= most) return true;
    }
    return false;
}

static aq_status aq_convert_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    aq_convert_job *job = (aq_convert_job *)user;
    aq_run *run = job->run;
    const aq_plan_tensor *tensor = job->tensor;
    size_t in_size = aq_dtype_size(tensor->dtype), out_size = aq_dtype_size(job->dtype);
    uint64_t first = (uint64_t)index * job->step, left = job->count - first;
    uint64_t units = left < job->step ? left : job->step;
    size_t elements = (size_t)(units * job->unit);
    unsigned char *buffer = run->buffer + worker * run->buffer_size;
    float *values = (float *)(void *)(buffer + job->in_bytes);
    unsigned char *out = buffer + job->in_bytes + job->f32_bytes;
    uint64_t begin = first * job->unit;
    aq_status status = aq_run_read(run, tensor, begin * in_size, buffer, elements * in_size, err);
    if (status != AQ_OK) return status;
    aq_little_endian(buffer, elements, in_size);
    aq_to_f32(run->context, tensor->dtype, buffer, values, elements);
    if (job->scale->values) aq_fp8_apply(job->scale, values, first, units, tensor->cols);
    if (aq_overflows(values, elements, job->dtype)) return AQ_TOO_NARROW;
    aq_from_f32(run->context, job->dtype, values, out, elements);
    aq_little_endian(out, elements, out_size);
    job->crcs[index] = aq_crc32(&run->crc, 0, out, elements * out_size);
    status = aq_file_write(&run->out.file, job->target + begin * out_size, out,
                           elements * out_size, err);
    if (status != AQ_OK || worker) return status;
    return aq_meter_tell(&run->meter, (begin + elements) * in_size, false, err);
}

static aq_status aq_convert_attempt(aq_convert_job *job, uint32_t *crc, aq_error *err) {
    aq_run *run = job->run;
    const aq_plan_tensor *tensor = job->tensor;
    bool rows = job->scale->values != NULL;
    size_t in_size = aq_dtype_size(tensor->dtype), out_size = aq_dtype_size(job->dtype);
    aq_error failure;
    uint32_t workers = 1;
    job->unit = rows ? tensor->cols : 1;
    job->step = rows ? aq_block_rows(tensor->cols) : AQ_BLOCK_WEIGHTS;
    job->count = rows ? tensor->rows : tensor->bytes / in_size;
    uint64_t step = job->step * job->unit;
    job->in_bytes = (size_t)((step * in_size + 63) & ~(uint64_t)63);
    job->f32_bytes = (size_t)((step * sizeof(float) + 63) & ~(uint64_t)63);
    uint64_t tasks = job->count / job->step + (job->count % job->step != 0);
    size_t crc_bytes = (size_t)tasks * sizeof(uint32_t) + 1;
    aq_status status = aq_run_buffers(run, tensor, (uint64_t)job->in_bytes + job->f32_bytes +
                                      step * out_size, &workers, err);
    if (status != AQ_OK) return status;
    job->crcs = (uint32_t *)aq_alloc(run->context, crc_bytes);
    if (!job->crcs) return aq_fail_memory(err, crc_bytes);
    status = aq_parallel_for(run->context, workers, (size_t)tasks, aq_convert_task, job, &failure);
    if (status != AQ_OK && status != AQ_TOO_NARROW && err) *err = failure;
    *crc = 0;
    for (uint64_t i = 0; status == AQ_OK && i < tasks; i++) {
        uint64_t left = job->count - i * job->step;
        uint64_t units = left < job->step ? left : job->step;
        *crc = aq_crc32_join(*crc, job->crcs[i], units * job->unit * out_size);
    }
    aq_free(run->context, job->crcs, crc_bytes);
    return status;
}

AQ_LIB aq_status aq_convert_tensor(aq_run *run, aq_plan_tensor *tensor, const aq_fp8_scale *scale,
                                   aq_error *err) {
    const aq_container *container = run->plan->state->container;
    aq_convert_job job;
    uint32_t crc = 0;
    aq_status status;
    memset(&job, 0, sizeof(job));
    job.run = run;
    job.tensor = tensor;
    job.scale = scale;
    job.target = run->out.data_start + run->out.cursor;
    for (;;) {
        job.dtype = tensor->output_dtype;
        status = aq_convert_attempt(&job, &crc, err);
        if (status != AQ_TOO_NARROW) break;
        tensor->output_dtype = container->wider(job.dtype);
        if (!*tensor->detail) tensor->detail = "beyond the range of the usual dtype";
    }
    if (status != AQ_OK) return status;
    tensor->output_bytes =
        tensor->bytes / aq_dtype_size(tensor->dtype) * aq_dtype_size(tensor->output_dtype);
    return aq_run_stored(run, tensor->output_name, "", tensor->output_dtype, tensor->rank,
                         tensor->shape, tensor->output_bytes, crc, err);
}

#undef AQ_TOO_NARROW
#endif /* ARROWQUANT_NO_STDIO */
