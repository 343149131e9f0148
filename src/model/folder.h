/* A model as it lies on disk: which weight files belong to it, which other files go along. */
#ifndef AQ_FOLDER_H
#define AQ_FOLDER_H

#include "../base/json.h"
#include "../format/native.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

typedef enum aq_folder_kind {
    AQ_FOLDER_PLAIN,    /* config.json and weights */
    AQ_FOLDER_PIPELINE, /* model_index.json and component folders */
    AQ_FOLDER_FILE      /* a bare .safetensors file; root is its folder */
} aq_folder_kind;

/* One set of weights: the folder itself, or a component of a pipeline. */
typedef struct aq_component {
    const char *name;       /* "" for a plain folder */
    const char *index;      /* relative path of the index file, or NULL */
    aq_st_index index_data; /* when index */
    const char **shards;    /* relative paths, sorted */
    aq_st_file *files;      /* their headers */
    size_t shard_count;
    const char *config;        /* relative path of config.json, or NULL */
    aq_json_node *config_json; /* when config: its parsed object */
} aq_component;

/* A file that is left behind, and why. */
typedef struct aq_skipped_file {
    const char *path;
    const char *why;
} aq_skipped_file;

typedef struct aq_folder {
    aq_folder_kind kind;
    const char *root;            /* folder of everything below */
    aq_component *components;    /* those to quantize; of a quantized model, those that are */
    size_t component_count;
    const char **others;         /* relative paths of files to carry over unchanged */
    size_t other_count;
    const char **subfolders;     /* relative paths of folders, parents first */
    size_t subfolder_count;
    aq_skipped_file *skipped;
    size_t skipped_count;
    aq_modality modality; /* the config's, metadata.json's, by class or tensor names; or UNKNOWN */
} aq_folder;

/* Looks at `path`, reads the headers of the components to quantize (config->components, or the
 * denoiser), and checks that index and shards agree. Everything lives in the arena. */
AQ_LIB aq_status aq_folder_open(aq_arena *arena, const char *path, const aq_config *config,
                                aq_folder *out, aq_error *err);

/* model/weights.c: which files of one folder hold its weights. `prefix` is the folder's path
 * relative to root, with a final "/", or "". */
typedef struct aq_weight_files {
    const char *index;   /* file name, or NULL */
    const char **shards; /* file names, sorted; NULL until the index is read */
    size_t shard_count;
} aq_weight_files;

AQ_LIB aq_status aq_choose_weights(aq_arena *arena, const char *folder,
                                   const aq_folder_entry *entries, size_t entry_count,
                                   const char *variant, aq_weight_files *out, aq_error *err);
/* The variant in a weight file's name, in place. False when the name is not one that libraries give
 * to weights; *size 0: no variant. */
AQ_LIB bool aq_name_variant(const char *name, const char **variant, size_t *size);
/* NULL: carry the file over; else why it is left behind. `chosen`: a chosen weight file or index of
 * the same folder. */
AQ_LIB const char *aq_weight_file_to_skip(const char *name, const char *chosen);

/* model/modality.c; the last look is at tensor names */
AQ_LIB aq_status aq_detect_modality(aq_arena *arena, const aq_config *config,
                                    const aq_folder *folder, aq_modality *out, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_FOLDER_H */
