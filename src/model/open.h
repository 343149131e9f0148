/* An opened model: what stands behind aq_model, shared by the files that read it. */
#ifndef AQ_OPEN_H
#define AQ_OPEN_H

#include "../calib/calib.h"
#include "../format/compressed_tensors.h"
#include "../format/gguf.h"
#include "../format/native.h"
#include "folder.h"
#include "fp8.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* One mapped weight file. */
typedef struct aq_model_shard {
    const char *path; /* relative to the folder */
    const aq_component *component;
    const aq_st_file *file;
    const aq_st_tensor **by_name;
    aq_map map;
    bool native_present;
    aq_native native;
    const aq_ct_config *compressed; /* of its component; NULL: not compressed-tensors */
    bool is_gguf;
    aq_gguf gguf; /* then `file` has no tensors */
} aq_model_shard;

/* Static integers of a layer's input; they have memory of their own. */
typedef struct aq_opened_groups {
    aq_time_groups groups;
    struct aq_opened_groups *next;
} aq_opened_groups;

struct aq_model_state {
    aq_arena arena;
    aq_opened_groups *groups;
    aq_context *context;
    aq_folder folder;
    const char *variant; /* of the weight files' names, or NULL */
    aq_model_shard *shards;
    size_t shard_count;
    size_t *tensor_shard;          /* of model->tensors[i]: its shard */
    const char **tensor_own_name;  /* without "component/" */
};

/* aq_model_open with the components and the variant of `config`, which may be NULL. Without
 * components: those that are quantized, or the denoiser. Without a variant: that of a quantized
 * model's files, or none. */
AQ_LIB aq_status aq_model_open_with(aq_context *context, const char *path, const aq_config *config,
                                    aq_model **out, aq_error *err);
/* model/open.c: gives a tensor static integers for its input, copied: `count` groups as in the native
 * format. AQ_ERR_CORRUPT names `file` and `offset`. */
AQ_LIB aq_status aq_open_groups(struct aq_model_state *state, const int32_t *starts,
                                const float *scales, const int32_t *zeros, uint32_t count,
                                const char *file, uint64_t offset, aq_tensor *tensor,
                                aq_error *err);
/* model/open_gguf.c: fills a tensor from one of a GGUF shard, but for its name. */
AQ_LIB void aq_open_gguf_tensor(const aq_model_shard *shard, const aq_gguf_tensor *from,
                                aq_tensor *out);
/* Rows as F32 on the calling thread alone. */
AQ_LIB aq_status aq_tensor_rows_f32(const aq_context *context, const aq_tensor *tensor,
                                    uint64_t first_row, uint64_t row_count, float *out,
                                    aq_error *err);
/* Elements of a kept float tensor as F32; the file's bytes need no alignment. */
AQ_LIB void aq_stored_f32(const aq_context *context, aq_dtype dtype, const void *data, float *out,
                          size_t count);

/* model/open_compressed.c: the layer whose packed tensor is in this file; *own_name is the weight's */
AQ_LIB bool aq_ct_is_packed(const char *name);
AQ_LIB aq_status aq_ct_open_layer(aq_model *model, const aq_model_shard *shard,
                                  const aq_st_tensor *packed, const char **own_name,
                                  aq_tensor *out, aq_error *err);
/* Whether a tensor of this name belongs to such a layer. */
AQ_LIB aq_status aq_ct_is_part(const aq_model *model, const aq_model_shard *shard,
                               const char *name, bool *part, aq_error *err);

/* model/open_arrow.c: whether `path` is an Arrow IPC file, by name or content; opens model->path */
AQ_LIB aq_status aq_open_is_arrow(const char *path, bool *arrow, aq_error *err);
AQ_LIB aq_status aq_open_arrow(aq_model *model, aq_error *err);

/* The tensor that scales a kept FP8 weight, or NULL (model/open_fp8.c). */
AQ_LIB const aq_tensor *aq_model_fp8_scale(const aq_model *model, const aq_tensor *weight);
/* That scale as F32 in the arena; out->values is NULL for a tensor that has none. The weight with
 * its scale folded in is what was quantized, and what a reader means by it. */
AQ_LIB aq_status aq_model_load_scale(const aq_context *context, aq_arena *arena,
                                     const aq_model *model, const aq_tensor *weight,
                                     aq_fp8_scale *out, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_OPEN_H */
