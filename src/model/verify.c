/* Compares stored tensors with the checksums in the metadata. */
#include "../base/crc32.h"
#include "../base/thread.h"
#include "open.h"
#include "run.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_VERIFY_CHUNK ((uint64_t)4 << 20)
#define AQ_VERIFY_WINDOW 64u /* chunks between two looks at progress and cancellation */

typedef struct aq_verify_job {
    aq_crc32_tables tables;
    aq_meter meter;
    const unsigned char *data; /* of the window */
    uint64_t size;
    uint32_t crcs[AQ_VERIFY_WINDOW];
} aq_verify_job;

static aq_status aq_verify_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    aq_verify_job *job = (aq_verify_job *)user;
    uint64_t begin = index * AQ_VERIFY_CHUNK, left = job->size - begin;
    job->crcs[index] = aq_crc32(&job->tables, 0, job->data + (size_t)begin,
                                (size_t)(left < AQ_VERIFY_CHUNK ? left : AQ_VERIFY_CHUNK));
    return worker ? AQ_OK : aq_meter_tell(&job->meter, begin, false, err);
}

static aq_status aq_verify_crc(aq_context *context, aq_verify_job *job, const unsigned char *data,
                               uint64_t size, uint32_t *out, aq_error *err) {
    const uint64_t window = AQ_VERIFY_CHUNK * AQ_VERIFY_WINDOW;
    uint32_t crc = 0;
    while (size) {
        job->data = data;
        job->size = size < window ? size : window;
        uint64_t chunks = (job->size + AQ_VERIFY_CHUNK - 1) / AQ_VERIFY_CHUNK;
        uint32_t threads = chunks > 1 ? aq_thread_count(context) : 1;
        aq_status status =
            aq_parallel_for(context, threads, (size_t)chunks, aq_verify_task, job, err);
        if (status != AQ_OK) return status;
        for (uint64_t i = 0; i < chunks; i++) {
            uint64_t left = job->size - i * AQ_VERIFY_CHUNK;
            crc = aq_crc32_join(crc, job->crcs[i], left < AQ_VERIFY_CHUNK ? left : AQ_VERIFY_CHUNK);
        }
        job->meter.done += job->size;
        data += job->size;
        size -= job->size;
    }
    *out = crc;
    return AQ_OK;
}

static aq_status aq_verify_shard(aq_context *context, aq_verify_job *job,
                                 const aq_model_shard *shard, size_t *checked, aq_error *err) {
    for (size_t i = 0; i < shard->native.checksum_count; i++) {
        const aq_native_checksum *checksum = &shard->native.checksums[i];
        const aq_st_tensor *stored =
            aq_st_find(shard->by_name, shard->file->tensor_count, checksum->name);
        uint32_t crc = 0;
        if (!stored)
            return aq_fail_tensor(err, AQ_ERR_CORRUPT, checksum->name, 0,
                                  "%s: tensor %s has a checksum but is not there; quantize the "
                                  "model again", shard->file->path, checksum->name);
        job->meter.layer = checksum->name;
        aq_status status = aq_verify_crc(
            context, job, (const unsigned char *)shard->map.data + (size_t)stored->offset,
            stored->bytes, &crc, err);
        if (status == AQ_OK) status = aq_meter_tell(&job->meter, 0, false, err);
        if (status != AQ_OK) return status;
        if (crc != checksum->crc32)
            return aq_fail_tensor(err, AQ_ERR_CORRUPT, checksum->name, stored->offset,
                                  "%s: tensor %s: its bytes have the CRC-32 %x, expected %x; the "
                                  "file is damaged: copy it or quantize the model again",
                                  shard->file->path, checksum->name, crc, checksum->crc32);
        ++*checked;
    }
    return AQ_OK;
}

static uint64_t aq_verify_total(const aq_model *model) {
    uint64_t total = 0;
    for (size_t i = 0; i < model->tensor_count; i++) total += model->tensors[i].bytes;
    return total;
}

ARROWQUANT_API aq_status aq_model_verify(aq_context *context, const aq_model *model,
                                         aq_progress_fn progress, void *user, size_t *checked,
                                         aq_error *err) {
    if (!model) return aq_fail(err, AQ_ERR_ARGUMENT, "aq_model_verify: model must not be NULL");
    size_t count = 0;
    aq_verify_job *job = (aq_verify_job *)aq_alloc(context, sizeof(*job));
    if (!job) return aq_fail_memory(err, sizeof(*job));
    aq_crc32_init(&job->tables);
    aq_meter_begin(&job->meter, progress, user, aq_verify_total(model));
    job->meter.phase = AQ_PHASE_VERIFY;
    aq_status status = aq_meter_tell(&job->meter, 0, true, err);
    for (size_t s = 0; status == AQ_OK && s < model->state->shard_count; s++)
        status = aq_verify_shard(context, job, &model->state->shards[s], &count, err);
    job->meter.layer = "";
    job->meter.done = job->meter.total;
    if (status == AQ_OK) status = aq_meter_tell(&job->meter, 0, true, err);
    if (checked) *checked = count;
    aq_free(context, job, sizeof(*job));
    return status;
}

#undef AQ_VERIFY_CHUNK
#undef AQ_VERIFY_WINDOW
#endif /* ARROWQUANT_NO_STDIO */
