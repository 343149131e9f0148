/* safetensors: one file read (header only, data by pread or map), one file written as a stream,
 * and the index of a sharded model. Every rule of the reference reader is checked, and more:
 * docs/FORMAT.md lists where this reader is stricter. */
#ifndef AQ_SAFETENSORS_H
#define AQ_SAFETENSORS_H

#include "../base/file.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of a JSON header, at most: the reference reader's limit. */
#define AQ_ST_HEADER_LIMIT 100000000u
#define AQ_ST_INDEX_LIMIT 100000000u

typedef struct aq_st_tensor {
    const char *name; /* 0-terminated; a name with NUL inside is refused */
    aq_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    uint64_t offset; /* of the first byte, from the start of the file */
    uint64_t bytes;
} aq_st_tensor;

typedef struct aq_st_file {
    const char *path;
    aq_st_tensor *tensors; /* in the order of their data */
    size_t tensor_count;
    const char *metadata; /* __metadata__ as JSON object text, or NULL */
    size_t metadata_size;
    uint64_t data_start, file_size;
} aq_st_file;

/* Reads and checks the header; keeps nothing open. Memory comes from the arena and is bounded by
 * the header's size. Malformed: AQ_ERR_CORRUPT naming file and tensor. An unknown dtype:
 * AQ_ERR_UNSUPPORTED. */
AQ_LIB aq_status aq_st_read_header(aq_arena *arena, const char *path, aq_st_file *out,
                                   aq_error *err);
/* The same from memory (a map, a fuzzer): `data` holds the whole file. */
AQ_LIB aq_status aq_st_parse(aq_arena *arena, const void *data, uint64_t size, const char *path,
                             aq_st_file *out, aq_error *err);
/* The decoded value of a key of the metadata, or NULL. */
AQ_LIB aq_status aq_st_metadata_value(aq_arena *arena, const aq_st_file *file, const char *key,
                                      const char **value, aq_error *err);

/* *.safetensors.index.json */
typedef struct aq_st_index_entry {
    const char *tensor;
    uint32_t shard; /* index into shards */
} aq_st_index_entry;

typedef struct aq_st_index {
    const char **shards; /* file names, plain (no folder, no ".."), in order of first appearance */
    size_t shard_count;
    aq_st_index_entry *entries; /* sorted by tensor name */
    size_t entry_count;
    const char *metadata; /* the "metadata" member as JSON text, or NULL */
    size_t metadata_size;
} aq_st_index;

AQ_LIB aq_status aq_st_read_index(aq_arena *arena, const char *path, aq_st_index *out,
                                  aq_error *err);
/* The same from memory; `path` names it in messages. */
AQ_LIB aq_status aq_st_parse_index(aq_arena *arena, const char *text, size_t size,
                                   const char *path, aq_st_index *out, aq_error *err);

/* One line of an index to be written. */
typedef struct aq_st_index_output {
    const char *tensor, *shard;
} aq_st_index_output;

/* Writes an index: weight_map sorted by tensor name (the order of `entries` does not matter; two of
 * one name are AQ_ERR_ARGUMENT), metadata.total_size = bytes of all tensors. The other members of
 * `metadata` (JSON object text as aq_st_index gives it, or NULL) are kept. */
AQ_LIB aq_status aq_st_write_index(const aq_context *context, const char *path,
                                   const aq_st_index_output *entries, size_t count,
                                   uint64_t total_size, const char *metadata, aq_error *err);

/* One tensor of a file to be written; data offsets relative to the data section. No reader may
 * count on more than byte alignment: holes are refused by the reference reader, and the sizes of
 * layers are not known before they are measured. All the same the usual file is aligned, when
 * - the parts of a layer follow one another as codes, row_params, params, and
 * - the tensors of a file are ordered by aq_st_write_rank, in input order within a rank. */
typedef struct aq_st_output {
    const char *name;
    aq_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    uint64_t begin, end;
} aq_st_output;

/* 0: kept, 8-byte elements; 1: kept, 4-byte; 2: quantized; 3: kept, 2-byte; 4: kept, 1-byte. */
AQ_LIB uint32_t aq_st_write_rank(aq_dtype dtype, bool quantized);
/* Writes a header of exactly `capacity` bytes (padded with spaces) for tensors that are given in
 * data order without holes (else AQ_ERR_ARGUMENT); `metadata` is the JSON text of an object, or
 * NULL. Fails with AQ_ERR_QUANTIZATION when it does not fit, or when the capacity is above the
 * format's limit. The file's data starts at 8 + capacity. */
AQ_LIB aq_status aq_st_write_header(const aq_context *context, const aq_file *file,
                                    uint64_t capacity, const aq_st_output *tensors, size_t count,
                                    const char *metadata, aq_error *err);
/* Bytes (a multiple of 8) of exactly that header, without reserve. */
AQ_LIB aq_status aq_st_header_size(const aq_context *context, const aq_st_output *tensors,
                                   size_t count, const char *metadata, uint64_t *size,
                                   aq_error *err);
/* Bytes (a multiple of 8) that hold that header whatever the offsets, dtypes and extents are: only
 * names and ranks count. The bound is a sum over the tensors: where several outcomes are possible
 * (a layer's parts, or the layer kept as it is), listing them all bounds each of them. */
AQ_LIB uint64_t aq_st_header_bound(const aq_st_output *tensors, size_t count,
                                   uint64_t metadata_size);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_SAFETENSORS_H */
