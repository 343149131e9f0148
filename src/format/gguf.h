/* GGUF version 3: a key-value list and tensors of ggml's types in one file. docs/FORMATS.md says what
 * is read and written. */
#ifndef AQ_GGUF_H
#define AQ_GGUF_H

#include "../base/file.h"
#include "../base/text.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

#define AQ_GGUF_ALIGNMENT 32u
#define AQ_GGUF_NAME_STOCK 63u /* bytes of a tensor's name that ggml itself takes */
#define AQ_GGUF_NAME_MOST 127u /* and the readers of image programs */
#define AQ_GGUF_RANK_STOCK 4u
#define AQ_GGUF_RANK 8u

/* One of ggml's types: a plain dtype, or blocks. */
typedef struct aq_gguf_type {
    const char *name;
    uint32_t id;
    uint32_t weights, bytes; /* of a block; plain: 1 and the size */
    uint32_t bits;           /* nominal bits of a weight */
    aq_dtype dtype;          /* plain: which; AQ_DTYPE_COUNT: blocks */
    aq_code code;            /* blocks that this library decodes; else AQ_CODE_COUNT */
} aq_gguf_type;

AQ_LIB const aq_gguf_type *aq_gguf_type_at(uint32_t id);         /* NULL: unknown */
AQ_LIB const aq_gguf_type *aq_gguf_type_of(aq_dtype dtype);      /* NULL: GGUF has none */
AQ_LIB const aq_gguf_type *aq_gguf_type_of_code(aq_code code);   /* NULL: GGUF has none */

/* ---- reading */

typedef enum aq_gguf_kind {
    AQ_GGUF_U8, AQ_GGUF_I8, AQ_GGUF_U16, AQ_GGUF_I16, AQ_GGUF_U32, AQ_GGUF_I32, AQ_GGUF_F32,
    AQ_GGUF_BOOL, AQ_GGUF_STRING, AQ_GGUF_ARRAY, AQ_GGUF_U64, AQ_GGUF_I64, AQ_GGUF_F64,
    AQ_GGUF_KIND_COUNT
} aq_gguf_kind;

typedef struct aq_gguf_value {
    const char *key;
    aq_gguf_kind kind;
    uint64_t number;      /* bits of a number or truth value, sign-extended; of an array: its count */
    const char *text;     /* of a string */
    aq_gguf_kind element; /* of an array */
    const unsigned char *data; /* of an array: its bytes */
} aq_gguf_value;

typedef struct aq_gguf_tensor {
    const char *name;
    const aq_gguf_type *type;
    uint32_t rank;         /* slowest dimension first, as everywhere in this library */
    const uint64_t *shape;
    uint64_t offset, bytes; /* in the file */
} aq_gguf_tensor;

typedef struct aq_gguf {
    uint32_t version;
    aq_gguf_value *values;
    size_t value_count;
    aq_gguf_tensor *tensors; /* in file order */
    size_t tensor_count;
    uint32_t alignment;
    uint64_t data_start;
} aq_gguf;

/* Checks everything that a reader relies on; `data` holds the whole file and must outlive *out.
 * Malformed: AQ_ERR_CORRUPT naming the file, the key or tensor. A version, byte order or type that
 * is not known: AQ_ERR_UNSUPPORTED. */
AQ_LIB aq_status aq_gguf_parse(aq_arena *arena, const void *data, uint64_t size, const char *path,
                               aq_gguf *out, aq_error *err);
AQ_LIB const aq_gguf_value *aq_gguf_find(const aq_gguf *file, const char *key); /* or NULL */

/* ---- writing: the header as bytes, in the order of the file */

/* One tensor to be written; a dimension that others are stacked along may be given as 0 and set in
 * dims afterwards. */
typedef struct aq_gguf_output {
    const char *name;
    uint32_t type, rank;
    uint64_t shape[AQ_GGUF_RANK]; /* slowest first */
    uint64_t offset;              /* from the data's start */
} aq_gguf_output;

AQ_LIB void aq_gguf_begin(aq_builder *out, uint64_t tensors, uint64_t values);
AQ_LIB void aq_gguf_put_string(aq_builder *out, const char *key, const char *value);
AQ_LIB void aq_gguf_put_u32(aq_builder *out, const char *key, uint32_t value);
AQ_LIB void aq_gguf_put_tensor(aq_builder *out, const aq_gguf_output *tensor);
/* general.file_type: the type that most weights are stored in, as llama.cpp numbers its file types.
 * `weights` by aq_code; `plain` as F32, F16, BF16. */
AQ_LIB uint32_t aq_gguf_file_type(const uint64_t *weights, const uint64_t *plain);
/* Zeros up to where the data starts. */
AQ_LIB void aq_gguf_end(aq_builder *out);

/* ---- names (gguf_names.c) */

/* Which reader's words a model speaks, and how they differ from its own. */
typedef enum aq_gguf_family {
    AQ_GGUF_FAMILY_NONE, /* names stay */
    AQ_GGUF_FAMILY_FLUX,
    AQ_GGUF_FAMILY_SD3,
    AQ_GGUF_FAMILY_WAN,
    AQ_GGUF_FAMILY_UNET
} aq_gguf_family;

typedef struct aq_gguf_architecture {
    const char *name;           /* general.architecture */
    const char *model_class;    /* _class_name of diffusers' config.json, or NULL */
    aq_gguf_family family;
    const char *marks[2];       /* tensor names by which the original form is known, or NULL */
    const char *readers;        /* for the report */
} aq_gguf_architecture;

/* NULL when neither class nor names are known. `has` tells whether the model has such a tensor. */
AQ_LIB const aq_gguf_architecture *
aq_gguf_detect(const char *model_class, bool (*has)(const void *user, const char *name),
               const void *user);

/* What becomes of one name. */
typedef struct aq_gguf_rename {
    char name[256];
    uint32_t slot, slots; /* stacked along the first dimension with slots − 1 others; 1: alone */
    bool turned;          /* its halves along the first dimension change places */
} aq_gguf_rename;

/* What the names of a model depend on. */
typedef struct aq_gguf_naming {
    aq_gguf_family family;
    uint64_t layers_per_block;  /* UNet */
    uint64_t last_block;        /* SD3: number of the last transformer block */
    bool (*has)(const void *user, const char *name);
    const void *user;
} aq_gguf_naming;

/* False when no rule knows the name: it stays. */
AQ_LIB bool aq_gguf_rename_tensor(const aq_gguf_naming *naming, const char *name,
                                  aq_gguf_rename *out);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_GGUF_H */
