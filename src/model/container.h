/* What an output format decides: which code a tensor gets, which stored parts come of it, what the
 * header says and what lies beside the weights. The pipeline does the rest for all of them: reading,
 * quantizing in blocks, placing, writing, checksums, gates, journal, commit. */
#ifndef AQ_CONTAINER_H
#define AQ_CONTAINER_H

#include "../base/text.h"
#include "folder.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

struct aq_run;

#define AQ_PARTS_MAX 8u
#define AQ_PART_RANK 4u

/* Where the bytes of a part come from. */
typedef enum aq_part_source {
    AQ_PART_CODES,  /* aq_quantize's three buffers, row by row, as they are */
    AQ_PART_PARAMS,
    AQ_PART_EXTRA,
    AQ_PART_MADE,   /* from `make`, row by row */
    AQ_PART_CLOSED  /* from `close`, when all rows are done: small */
} aq_part_source;

/* One stored piece of a quantized tensor. Parts lie one behind the other in the order given. */
typedef struct aq_part {
    aq_part_source source;
    const char *suffix;   /* after the tensor's output name */
    aq_dtype dtype;       /* what it says in the header, if the format has such */
    uint32_t rank;
    uint64_t shape[AQ_PART_RANK];
    uint64_t row_bytes;   /* MADE: of each row. CLOSED: what `make` leaves of each row for `close` */
    uint64_t bytes;       /* in the file; not known before (0) only when nothing else follows */
} aq_part;

/* Rows of a tensor that have just been quantized. */
typedef struct aq_part_rows {
    const aq_plan_tensor *tensor;
    const aq_quant_spec *spec;
    const aq_quant_layout *layout;
    uint64_t first, count;
    const unsigned char *codes, *params, *extra;
} aq_part_rows;

/* Every function may be NULL where a line says so. They are called from the calling thread, but for
 * `make`, which any worker calls. */
typedef struct aq_container {
    aq_output_format format;
    const char *extension; /* of an output that is one file: ".safetensors" */
    /* An output path with that extension is one file, even if the input is a folder. */
    bool single_file;
    uint32_t alignment;    /* a power of two: each tensor begins so, zeros stand between; 1: none */
    /* NULL, or refuses what this format cannot do, before the input is looked at */
    aq_status (*check)(aq_plan *plan, aq_error *err);
    /* NULL: a file of the same path for each shard. Else fills plan->outputs. */
    aq_status (*outputs)(aq_plan *plan, aq_error *err);
    /* NULL, or output names, architecture and the like, when tensors and bits are known */
    aq_status (*prepare)(aq_plan *plan, aq_error *err);
    /* The spec for `tensor` at `bits`. spec->bits may differ: 16 says that no code fits the tensor.
     * Then, or when another code than usual is taken, *detail says why (arena); else unchanged. */
    aq_status (*spec)(aq_plan *plan, const aq_plan_tensor *tensor, uint32_t bits,
                      aq_quant_spec *spec, const char **detail, aq_error *err);
    /* NULL: every dtype stays. Else the dtype of a tensor that is not quantized. */
    aq_status (*keep)(aq_plan *plan, const aq_plan_tensor *tensor, aq_dtype *dtype, aq_error *err);
    /* NULL: none. The dtype to store a kept tensor in when a value is beyond the range of `dtype`. */
    aq_dtype (*wider)(aq_dtype dtype);
    /* The parts of a quantized tensor, at most AQ_PARTS_MAX; depends on spec and shape alone. */
    aq_status (*parts)(const aq_plan *plan, const aq_plan_tensor *tensor, const aq_quant_spec *spec,
                       const aq_quant_layout *layout, aq_part *parts, size_t *count,
                       aq_error *err);
    /* NULL without MADE parts and CLOSED parts with row_bytes: fills rows->count × row_bytes of part
     * `index`. */
    void (*make)(const aq_part_rows *rows, size_t index, unsigned char *out);
    /* NULL without CLOSED parts: `rows` is what `make` left of all rows (NULL if row_bytes is 0),
     * `out` takes part->bytes. */
    aq_status (*close)(struct aq_run *run, const aq_plan_tensor *tensor, const aq_part *part,
                       size_t index, const unsigned char *rows, unsigned char *out, aq_error *err);
    /* The order in which an output's tensors are written: indices into plan->tensors. */
    aq_status (*order)(aq_plan *plan, size_t output, size_t *order, aq_error *err);
    /* Where the data of an output begins: room for the header, whatever becomes of the tensors. */
    aq_status (*data_start)(aq_plan *plan, size_t output, uint64_t *bytes, aq_error *err);
    /* Header or footer, when all tensors are written; the file ends at *end, which starts as the end
     * of the data. */
    aq_status (*finish)(struct aq_run *run, size_t output, uint64_t *end, aq_error *err);
    /* What lies beside a component's weights: config.json, index. */
    aq_status (*beside)(struct aq_run *run, const aq_component *component, aq_error *err);
} aq_container;

/* NULL: this build does not have it. */
AQ_LIB const aq_container *aq_container_of(aq_output_format format);
/* model/container_native.c; others may use what suits them */
AQ_LIB const aq_container *aq_container_native(void);
AQ_LIB const aq_container *aq_container_compressed(void);
AQ_LIB const aq_container *aq_container_gguf(void); /* model/container_gguf.c */
AQ_LIB const aq_container *aq_container_arrow(void);
/* The spec of a trellis in the native format, rotated. */
AQ_LIB aq_quant_spec aq_native_trellis(const aq_config *config, uint32_t bits);
AQ_LIB bool aq_native_trellis_rows(uint64_t rows); /* enough of them for one */
/* AQ_ERR_UNSUPPORTED: method: trellis in a format that has no code for it. */
AQ_LIB aq_status aq_refuse_trellis(const char *format, aq_error *err);
/* Carries config.json over with `value` (JSON) as its quantization_config; NULL: as it is. */
AQ_LIB aq_status aq_beside_config(struct aq_run *run, const aq_component *component,
                                  const char *value, aq_error *err);
/* Writes the component's index, if it has one, over all that was stored. */
AQ_LIB aq_status aq_beside_index(struct aq_run *run, const aq_component *component, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_CONTAINER_H */
