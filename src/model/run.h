/* A run of a plan: what its threads share while tensors are quantized, copied and written. */
#ifndef AQ_RUN_H
#define AQ_RUN_H

#include "../base/crc32.h"
#include "../base/text.h"
#include "../base/thread.h"
#include "../quant/gptq.h"
#include "../quant/linear.h"
#include "plan.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* Progress of any long call: bytes done of bytes in all, told to the caller's function. */
typedef struct aq_meter {
    aq_progress_fn report;
    void *user;
    aq_phase phase;
    const char *layer;
    uint64_t done, total;
    double started, last;
    double fraction; /* never goes back */
} aq_meter;

AQ_LIB void aq_meter_begin(aq_meter *meter, aq_progress_fn report, void *user, uint64_t total);
/* From the calling thread only: `extra` bytes beyond meter->done. Forced, or ten times a second.
 * AQ_ERR_CANCELLED when the caller's function wants to stop. */
AQ_LIB aq_status aq_meter_tell(aq_meter *meter, uint64_t extra, bool forced, aq_error *err);

/* One stored tensor of an output shard. */
typedef struct aq_stored {
    aq_st_output output;
    uint32_t crc32;
} aq_stored;

#define AQ_WRITEBACK_BYTES ((uint64_t)8 << 20) /* so much at least is handed to the device at once */

/* One output file while it is written. */
typedef struct aq_shard_writer {
    aq_file file;
    uint64_t data_start; /* of the header's room */
    uint64_t cursor;     /* data bytes written so far */
    uint64_t file_bytes; /* of the file when it is done */
    aq_stored *stored;
    size_t stored_count, stored_capacity, stored_first; /* first: of this file */
} aq_shard_writer;

typedef struct aq_run {
    aq_context local; /* stands in for NULL */
    aq_context *context;
    aq_plan *plan;
    aq_meter meter;
    aq_crc32_tables crc;
    uint32_t threads;
    uint64_t memory_limit;   /* bytes for all workers' buffers together */
    bool hard_limit;         /* the user set it */
    size_t chunk_blocks;     /* blocks a task takes at once */
    bool measuring;          /* nothing is written */
    unsigned char *buffer;   /* workers × buffer_size, grows */
    size_t buffer_size, buffer_bytes;
    aq_file input;
    uint32_t input_shard;    /* whose file is open */
    aq_factor factor;        /* of the second moments in use last */
    const aq_calibration_layer *factor_of; /* NULL: none */
    float *hessian;          /* H of that factor, which refers to it; NULL: not needed any more */
    size_t hessian_bytes;
    uint32_t factor_rotation;
    const float *factor_scales; /* of the input that it is for; NULL: as it is */
    aq_shard_writer out;
    size_t *output_ends;     /* [i]: number of stored tensors after output i */
    size_t finished;         /* outputs that are done, from the first on */
    aq_builder journal;      /* its text so far */
    size_t first_line;       /* bytes of the line that names plan and input */
} aq_run;

/* model/execute.c: threads, limits, meter; aq_run_free also of a run that failed */
AQ_LIB void aq_run_init(aq_run *run, aq_context *context, aq_plan *plan, aq_progress_fn progress,
                        void *user);
AQ_LIB void aq_run_free(aq_run *run);
/* Buffers of `size` bytes for at most run->threads workers; *workers says how many fit. */
AQ_LIB aq_status aq_run_buffers(aq_run *run, const aq_plan_tensor *tensor, uint64_t size,
                                uint32_t *workers, aq_error *err);
AQ_LIB aq_status aq_run_stored(aq_run *run, const char *name, const char *suffix, aq_dtype dtype,
                               uint32_t rank, const uint64_t *shape, uint64_t bytes, uint32_t crc,
                               aq_error *err);
/* model/run_copy.c: bytes of a tensor from the open input, turned as the plan says */
AQ_LIB aq_status aq_run_read(aq_run *run, const aq_plan_tensor *tensor, uint64_t offset, void *data,
                             size_t size, aq_error *err);
/* A kept tensor as it is, or as tensor->output_dtype; `scale` is that of an FP8
 * weight to be folded in, or has no values */
AQ_LIB aq_status aq_copy_tensor(aq_run *run, const aq_plan_tensor *tensor, aq_error *err);
AQ_LIB aq_status aq_convert_tensor(aq_run *run, aq_plan_tensor *tensor, const aq_fp8_scale *scale,
                                   aq_error *err);
/* model/run_gptq.c: run->factor for this tensor, made unless it is there. Moments that are not fit for
 * it are AQ_ERR_QUANTIZATION; with method auto *usable is false instead. */
AQ_LIB aq_status aq_run_factor(aq_run *run, const aq_plan_tensor *tensor, bool *usable,
                               aq_error *err);
AQ_LIB void aq_run_factor_free(aq_run *run);
/* model/run_trials.c: for a trellis with second moments decides tensor->spec.rotation. */
AQ_LIB aq_status aq_run_rotation(aq_run *run, aq_plan_tensor *tensor, const aq_fp8_scale *scale,
                                 aq_error *err);
/* With method auto, before anything else is done: a trellis in place of GPTQ, where 2 bits err less so and
 * are stored in no more bytes. */
AQ_LIB aq_status aq_run_choose(aq_run *run, aq_plan_tensor *tensor, const aq_fp8_scale *scale,
                               aq_error *err);
/* H of the layer's input into out [cols, cols]: of the equalized one, where it is equalized. */
AQ_LIB aq_status aq_run_hessian(aq_run *run, const aq_plan_tensor *tensor, float *out,
                                aq_error *err);
/* model/run_tensor.c: the scale of an FP8 weight, read; *values is to be freed. */
AQ_LIB aq_status aq_run_scale(aq_run *run, const aq_plan_tensor *weight, aq_fp8_scale *out,
                              float **values, size_t *count, aq_error *err);
/* model/run_tensor.c: quantizes or copies one tensor at the writer's cursor */
AQ_LIB aq_status aq_run_tensor(aq_run *run, aq_plan_tensor *tensor, aq_error *err);
/* Quantizes it with tensor->spec and writes nothing: fills quality, output sums and output_bytes.
 * *usable is false when no parameters fit, or a gate is missed. */
AQ_LIB aq_status aq_run_measure(aq_run *run, aq_plan_tensor *tensor, bool *usable, aq_error *err);
/* model/run_output.c: "folder/relative" of the input or the output, in the plan's arena */
AQ_LIB aq_status aq_run_path(aq_run *run, bool output, const char *relative, char **path,
                             aq_error *err);
/* Opens the input file that a tensor is read from; the one before it is closed. */
AQ_LIB aq_status aq_run_input(aq_run *run, uint32_t shard, aq_error *err);
/* One output file, and what lies beside the weights. */
AQ_LIB aq_status aq_run_output(aq_run *run, size_t output, aq_error *err);
/* model/container_native.c: the header over what was stored in this file, in the room before
 * data_start; `metadata` is the JSON text of an object, or NULL */
AQ_LIB aq_status aq_finish_safetensors(aq_run *run, const char *metadata, aq_error *err);
/* Folders first; then, after the outputs, config.json and index of each component, and the files
 * that are carried over. */
AQ_LIB aq_status aq_run_folders(aq_run *run, aq_error *err);
AQ_LIB aq_status aq_run_component_files(aq_run *run, aq_error *err);
AQ_LIB aq_status aq_run_others(aq_run *run, aq_error *err);
/* model/journal.c: begins the journal, and in a folder that was taken up fills run->finished and
 * all that the finished outputs left, and removes all else; adds an output; removes the journal
 * before the commit */
AQ_LIB aq_status aq_journal_begin(aq_run *run, aq_error *err);
AQ_LIB aq_status aq_journal_add(aq_run *run, size_t output, aq_error *err);
AQ_LIB aq_status aq_journal_remove(aq_run *run, aq_error *err);
/* An output that another process made: the record it leaves beside it, and its taking over; false
 * when there is none that fits */
AQ_LIB aq_status aq_journal_write_part(aq_run *run, size_t output, aq_error *err);
AQ_LIB bool aq_journal_take_part(aq_run *run, size_t output);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_RUN_H */
