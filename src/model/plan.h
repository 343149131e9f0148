/* What stands behind an aq_plan, shared by the files that make, execute and commit it. */
#ifndef AQ_PLAN_H
#define AQ_PLAN_H

#include "../base/text.h"
#include "../calib/calib.h"
#include "container.h"
#include "fp8.h"
#include "staging.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

#define AQ_NO_TENSOR ((size_t)-1)

/* Lines for the user, in an arena. */
typedef struct aq_notes {
    const char **items;
    size_t count, capacity;
} aq_notes;

struct aq_plan_state {
    aq_arena arena;
    aq_context *context;
    const aq_container *container;
    void *container_state;               /* what the container's prepare left (arena), or NULL */
    aq_folder folder;
    aq_calibration *calibration;         /* NULL: data-free */
    aq_component **shard_component;      /* of each shard of the plan */
    const aq_st_file **shard_file;
    const aq_st_tensor *const **by_name; /* of each shard: its tensors sorted by name */
    aq_notes notes;
    uint64_t other_bytes;                /* of the files that are carried over */
    bool executed, committed;
    bool shared;                         /* several processes make its shards */
    aq_staging staging;
    const char *output_path;             /* as given */
    double started, seconds;
    uint64_t output_bytes;               /* of the components' weight files */
};

AQ_LIB aq_status aq_note(aq_arena *arena, aq_notes *notes, aq_error *err, const char *format, ...)
    AQ_PRINTF(4, 5);
/* The name that messages and results show: "component/name" when there are several. */
AQ_LIB const char *aq_plan_display_name(const aq_plan *plan, const aq_plan_tensor *tensor,
                                        aq_arena *arena);
/* The spec of a tensor at `bits` under this config. */
AQ_LIB aq_quant_spec aq_plan_spec(const aq_config *config, uint32_t bits);
/* model/plan_checks.c: what this version cannot do, and inputs that are quantized already */
AQ_LIB aq_status aq_plan_check_config(aq_plan *plan, aq_error *err);
AQ_LIB aq_status aq_plan_check_input(aq_plan *plan, aq_error *err);
/* model/plan_calibration.c: opens the statistics and gives each matrix those of its input */
AQ_LIB aq_status aq_plan_calibrate(aq_plan *plan, aq_error *err);
/* Tells of quantized layers that have none. */
AQ_LIB aq_status aq_note_data_free(aq_plan *plan, aq_error *err);
/* model/plan_equalize.c: scales for the inputs of the quantized layers that gain by them, measured;
 * before the time groups, which are those of the scaled inputs */
AQ_LIB aq_status aq_plan_equalize(aq_plan *plan, aq_error *err);
AQ_LIB aq_status aq_note_equalization(aq_plan *plan, aq_error *err);
/* model/plan_time.c: static integers for the inputs of the quantized layers that have statistics */
AQ_LIB aq_status aq_plan_time_groups(aq_plan *plan, aq_error *err);
AQ_LIB void aq_plan_free_time_groups(aq_plan *plan);
/* What they are like, for the user. */
AQ_LIB aq_status aq_note_time_groups(aq_plan *plan, aq_error *err);
/* model/plan_fp8.c: finds the scale tensors of FP8 weights */
AQ_LIB aq_status aq_plan_find_scales(aq_plan *plan, aq_error *err);
AQ_LIB aq_fp8_shape aq_plan_shape(const aq_plan *plan, const aq_plan_tensor *tensor);

/* model/container.c. What becomes of a tensor at its bits: spec and bytes, or kept when the container
 * has no code for it. */
AQ_LIB aq_status aq_plan_store(aq_plan *plan, aq_plan_tensor *tensor, aq_error *err);
/* The same in a trellis code, which the native format has at 2, 3 and 4 bits. */
AQ_LIB aq_status aq_plan_store_trellis(aq_plan *plan, aq_plan_tensor *tensor, aq_error *err);
/* The tensor is kept: its dtype and bytes in the output. */
AQ_LIB aq_status aq_plan_keep(aq_plan *plan, aq_plan_tensor *tensor, aq_error *err);
/* Tensors that are stored as one are stored alike: *level is false when one of them is wider than the
 * others, which have now got as many bits. */
AQ_LIB aq_status aq_stack_level(aq_plan *plan, const size_t *stack, size_t count, bool *level,
                                aq_error *err);
/* Outputs, offsets, the predicted size. */
AQ_LIB aq_status aq_plan_lay_out(aq_plan *plan, aq_error *err);
/* Indices of an output's tensors in the order they are written (arena). */
AQ_LIB aq_status aq_output_order(aq_plan *plan, size_t output, size_t **order, aq_error *err);
AQ_LIB uint64_t aq_container_align(const aq_container *container, uint64_t offset);
/* model/container_native.c: tensors by aq_st_write_rank, in input order within a rank */
AQ_LIB aq_status aq_native_order(aq_plan *plan, size_t output, size_t *order, aq_error *err);

/* model/result.c */
/* A member of a tensor's object: strength and errors of its equalization; nothing without. */
AQ_LIB void aq_append_equalization(aq_builder *json, const aq_plan_tensor *tensor);
AQ_LIB aq_status aq_plan_report(const aq_plan *plan, char **text, size_t *size, aq_error *err);
AQ_LIB aq_status aq_plan_result(const aq_plan *plan, aq_result *out, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_PLAN_H */
