/* The native format's own words: what __metadata__["arrowquant"] of each safetensors file says
 * about the quantized tensors in it. docs/FORMAT.md is the specification. */
#ifndef AQ_NATIVE_H
#define AQ_NATIVE_H

#include "safetensors.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

#define AQ_NATIVE_VERSION 1
#define AQ_NATIVE_KEY "arrowquant"
#define AQ_CODES_SUFFIX ".aq_codes"      /* I32 [rows, words] */
#define AQ_PARAMS_SUFFIX ".aq_params"    /* F16, F32, Q8: U8, symmetric: I8; [rows, groups, 2|1] */
#define AQ_EXTRA_SUFFIX ".aq_row_params" /* Q8 only: F16 [rows, 2|1] */
#define AQ_INPUT_SCALES_SUFFIX ".aq_input_scales" /* F32 [cols] */
#define AQ_ACT_STARTS_SUFFIX ".aq_act_starts" /* I32 [time groups + 1]: starts, and T */
#define AQ_ACT_SCALES_SUFFIX ".aq_act_scales" /* F32 [2, time groups]: of 8 bits, of 4 */
#define AQ_ACT_ZEROS_SUFFIX ".aq_act_zeros"   /* I32 [2, time groups] */

#define AQ_NATIVE_SCALED "scales" /* it is multiplied by the part of that name */

typedef struct aq_native_tensor {
    const char *name;
    const char *code; /* as written; `known` false when this library does not read it */
    bool known;
    aq_quant_spec spec; /* when known */
    aq_dtype dtype;     /* of the original */
    uint32_t rank;
    const uint64_t *shape;
    const char *method;
    const char *input; /* what is done to the layer's input: AQ_NATIVE_SCALED, or NULL: nothing */
    double cosine_similarity, sqnr_db; /* +infinity is written as null */
} aq_native_tensor;

typedef struct aq_native_checksum {
    const char *name; /* of a stored tensor: "x.weight.aq_codes", "x.bias" */
    uint32_t crc32;   /* of its bytes in the file */
} aq_native_checksum;

typedef struct aq_native {
    aq_native_tensor *tensors;
    size_t tensor_count;
    aq_native_checksum *checksums;
    size_t checksum_count;
} aq_native;

/* The JSON text of the whole __metadata__ object: the input's own members (`original` is its JSON
 * text or NULL; an "arrowquant" member in it is replaced) and ours as one string. */
AQ_LIB aq_status aq_native_write(const aq_context *context, const aq_native *native,
                                 const char *original, char **text, size_t *size, aq_error *err);
/* The most bytes that aq_native_write can give for these names, ranks, codes and methods, whatever
 * bits, figures and checksums: the header's space is reserved before they are known. A sum over
 * tensors and checksums: listing every possible one bounds any choice of them. */
AQ_LIB uint64_t aq_native_bound(const aq_native *native, const char *original);
/* The metadata without our member, for a file that is plain again; *text NULL when nothing is left.
 * Else free it as aq_native_write's. */
AQ_LIB aq_status aq_native_remove(const aq_context *context, const char *original, char **text,
                                  size_t *size, aq_error *err);

/* Reads it back. *present tells whether the file has our metadata at all. A version from the
 * future, a malformed object: AQ_ERR_METADATA naming the file. Unknown members are ignored. */
AQ_LIB aq_status aq_native_read(aq_arena *arena, const aq_st_file *file, bool *present,
                                aq_native *out, aq_error *err);
/* Finds the parts of `tensor` in the file and checks dtype, shape and size of each against the
 * layout. parts[0] codes, [1] params, [2] row params or NULL. AQ_ERR_UNSUPPORTED names an unknown
 * code, or what is to be done to the input. `by_name`: the file's tensors sorted by name. */
AQ_LIB aq_status aq_native_parts(const aq_native_tensor *tensor, const aq_st_file *file,
                                 const aq_st_tensor *const *by_name, aq_quant_layout *layout,
                                 const aq_st_tensor *parts[3], aq_error *err);
/* The tensors that hold static integers for the layer's input (starts, scales, zero points), checked
 * in dtype and shape; found[0] NULL: there are none. */
AQ_LIB aq_status aq_native_activations(const aq_native_tensor *tensor, const aq_st_file *file,
                                       const aq_st_tensor *const *by_name,
                                       const aq_st_tensor *found[3], aq_error *err);
/* The part that holds the scales of the layer's input; *found NULL: it has none. */
AQ_LIB aq_status aq_native_input_scales(const aq_native_tensor *tensor, const aq_st_file *file,
                                        const aq_st_tensor *const *by_name,
                                        const aq_st_tensor **found, aq_error *err);
/* Whether a stored name is that of a part of a quantized tensor. */
AQ_LIB bool aq_native_is_part(const char *name);
/* Pointers to the file's tensors, sorted by name; NULL: no memory. */
AQ_LIB const aq_st_tensor **aq_st_sort_by_name(aq_arena *arena, const aq_st_file *file);
AQ_LIB const aq_st_tensor *aq_st_find(const aq_st_tensor *const *by_name, size_t count,
                                      const char *name);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_NATIVE_H */
