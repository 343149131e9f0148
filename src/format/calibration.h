/* Calibration files: statistics as safetensors, activations as JSON lines. docs/CALIBRATION.md is
 * the specification. */
#ifndef AQ_CALIBRATION_FILE_H
#define AQ_CALIBRATION_FILE_H

#include "../calib/calib.h"
#include "safetensors.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* Second moments of a layer in one file, or in memory; several are weighed by their rows. */
typedef struct aq_moment_part {
    const aq_file *file;
    const aq_st_tensor *tensor;
    const aq_calibration *memory;       /* NULL: in the file */
    const aq_calibration_layer *layer;  /* there */
    uint64_t rows; /* 0: unknown */
    struct aq_moment_part *next;
} aq_moment_part;

typedef struct aq_moment_list {
    const char *name;
    uint64_t channels;
    aq_moment_part *first;
    struct aq_moment_list *next;
} aq_moment_list;

/* Files that are being merged. */
typedef struct aq_calibration_reader {
    aq_context *context;
    aq_arena *arena;       /* lives as long as the calibration */
    aq_gathering *gathering;
    aq_moment_list *moments;
    uint32_t samples;
} aq_calibration_reader;

/* format/calibration_read.c: adds a safetensors file, which stays open as `file` */
AQ_LIB aq_status aq_calibration_read(aq_calibration_reader *reader, const char *path,
                                     aq_file *file, aq_error *err);
/* A float tensor as F32, or an integer one as I64, in the arena. */
AQ_LIB aq_status aq_st_read_floats(const aq_context *context, const aq_file *file,
                                   const aq_st_tensor *tensor, float *out, aq_error *err);
/* format/calibration_jsonl.c: activations from JSON lines, gathered */
AQ_LIB aq_status aq_calibration_read_lines(aq_calibration_reader *reader, const char *path,
                                           aq_calibration **out, aq_error *err);
/* Notes where second moments of a layer are. */
AQ_LIB aq_status aq_moment_note(aq_calibration_reader *reader, const char *path,
                                const aq_calibration_layer *layer, const aq_moment_part *from,
                                aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_CALIBRATION_FILE_H */
