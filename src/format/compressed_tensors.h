/* compressed-tensors, "pack-quantized": names of a layer's tensors, zero points, and layers found in a
 * checkpoint of anybody's. */
#ifndef AQ_COMPRESSED_TENSORS_H
#define AQ_COMPRESSED_TENSORS_H

#include "../base/json.h"
#include "safetensors.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* after "….weight" */
#define AQ_CT_PACKED "_packed"          /* I32 [rows, ceil(cols·bits/32)], LSB first */
#define AQ_CT_SCALE "_scale"            /* the model's dtype [rows, groups] */
#define AQ_CT_SHAPE "_shape"            /* I64 [2] */
#define AQ_CT_ZERO_POINT "_zero_point"  /* I32 [ceil(rows·bits/32), groups], packed along rows */
#define AQ_CT_G_INDEX "_g_idx"          /* an order of columns: not read */
#define AQ_CT_GROUP_SIZES (32u | 64u | 128u | 256u)

/* Zero points [rows, groups], a byte each, into 32-bit words along the rows. */
AQ_LIB void aq_ct_pack_zeros(const unsigned char *zeros, uint64_t rows, uint64_t groups,
                             uint32_t bits, unsigned char *out);
AQ_LIB unsigned char aq_ct_zero(const unsigned char *packed, uint64_t groups, uint32_t bits,
                                uint64_t row, uint64_t group);

/* What quantization_config says. `present` false: it is of another method, or absent. */
typedef struct aq_ct_config {
    bool present;
    bool bits[9];      /* [b]: some group has b bits */
    bool symmetric[2]; /* [s]: some group is affine (0), symmetric (1) */
    uint32_t group_sizes; /* the sum of those that some group has */
} aq_ct_config;

/* Another format than pack-quantized, activations, other strategies and types: AQ_ERR_UNSUPPORTED. */
AQ_LIB aq_status aq_ct_read_config(const aq_json_node *config, const char *path, aq_ct_config *out,
                                   aq_error *err);

/* The dtype that a loader will give the scales of a tensor: the model's by its config.json (NULL: none),
 * else the tensor's. */
AQ_LIB aq_dtype aq_ct_scale_dtype(const aq_json_node *config, aq_dtype tensor);

/* The tensors of one layer, NULL where absent. */
typedef struct aq_ct_layer {
    const aq_st_tensor *packed, *scale, *shape, *zero_point;
} aq_ct_layer;

/* Checks dtypes and shapes against each other and the config, and finds what they mean. `extents` are
 * the two numbers that the shape tensor holds. `name` is the weight's, `path` the file's. */
AQ_LIB aq_status aq_ct_check_layer(const aq_ct_config *config, const aq_ct_layer *layer,
                                   const uint64_t extents[2], const char *name, const char *path,
                                   aq_quant_spec *spec, aq_quant_layout *layout, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_COMPRESSED_TENSORS_H */
