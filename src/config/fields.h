/* The one table of configuration fields; defaults, checks, YAML, environment and documentation
 * all follow from it. */
#ifndef AQ_FIELDS_H
#define AQ_FIELDS_H

#include "../api/arrowquant_api.h"
#include "../base/base.h"
#include "../base/yaml.h"

#include <math.h>

/* X(id, kind, member, path, low, high, edge, local, cloud, environment, status, doc)
 *   id           AQ_FIELD_<id> names it; its place is its bit in aq_config.explicit_fields
 *   kind         AQ_KIND_<kind>, see aq_field_kind
 *   member       of aq_config; of a list the pointer
 *   path         YAML path, levels separated by dots; also the name for aq_config_set
 *   low, high    least and greatest number; of a BITS field the powers of two between them, and 3 where
 *                2 is one
 *   edge, …      the profiles' defaults; of an enumeration its value; of text and lists 0: none
 *   environment  variable that overrides it, or ""
 *   status       of a value that is refused
 *   doc          one line */
#define AQ_CONFIG_FIELDS(X)                                                                        \
    X(deployment_profile, PROFILE, deployment_profile, "deployment_profile", 0, 2,                 \
      AQ_PROFILE_EDGE, AQ_PROFILE_LOCAL, AQ_PROFILE_CLOUD, "", AQ_ERR_CONFIGURATION,               \
      "where the model will run; gives the defaults of the other fields")                          \
    X(bit_width, BITS, bit_width, "bit_width", 2, 8, 2, 4, 8, "ARROW_QUANT_BIT_WIDTH",             \
      AQ_ERR_BIT_WIDTH, "bits of a quantized weight; 3 with method: trellis alone")                 \
    X(group_size, BITS, group_size, "group_size", 32, 256, 256, 128, 64,                           \
      "ARROW_QUANT_GROUP_SIZE", AQ_ERR_GROUP_SIZE, "weights that share one scale and zero point")  \
    X(symmetric, BOOL, symmetric, "symmetric", 0, 1, 0, 0, 0, "", AQ_ERR_CONFIGURATION,            \
      "a scale only and no zero point: smaller and a little less accurate")                        \
    X(fit, FIT, fit, "fit", 0, 1, AQ_FIT_LEAST_SQUARES, AQ_FIT_LEAST_SQUARES,                      \
      AQ_FIT_LEAST_SQUARES, "", AQ_ERR_CONFIGURATION,                                              \
      "how scales are found: a search for the least error, or fast from each group's range")         \
    X(parameter_bits, BITS, parameter_bits, "parameter_bits", 8, 16, 16, 16, 16, "",               \
      AQ_ERR_CONFIGURATION, "bits of a scale or zero point; 8 shrinks small groups")               \
    X(method, METHOD, method, "method", 0, 4, AQ_METHOD_AUTO, AQ_METHOD_AUTO, AQ_METHOD_AUTO, "",   \
      AQ_ERR_CONFIGURATION, "how codes are chosen; auto: by code and statistics")        \
    X(trellis_states, STATES, trellis_states, "trellis_states", 256, 4096, 256, 1024, 1024, "",    \
      AQ_ERR_CONFIGURATION, "states of a trellis; more are slower and more accurate")        \
    X(min_accuracy, FLOAT, min_accuracy, "min_accuracy", 0, 1, 0.65, 0.85, 0.95,                   \
      "ARROW_QUANT_MIN_ACCURACY", AQ_ERR_ACCURACY,                                                 \
      "least cosine similarity of each layer; one below it gets more bits")                        \
    X(min_sqnr_db, FLOAT_OR_NONE, min_sqnr_db, "min_sqnr_db", 0, 200, NAN, NAN, NAN, "",           \
      AQ_ERR_CONFIGURATION, "least signal-to-quantization-noise ratio of each layer in dB")        \
    X(fail_fast, BOOL, fail_fast, "fail_fast", 0, 1, 0, 0, 0, "ARROW_QUANT_FAIL_FAST",             \
      AQ_ERR_CONFIGURATION, "a layer below a gate is an error, not a reason for more bits")        \
    X(num_time_groups, INT, num_time_groups, "num_time_groups", 1, 100, 5, 10, 20,                 \
      "ARROW_QUANT_NUM_TIME_GROUPS", AQ_ERR_TIME_GROUPS,                                           \
      "groups of timesteps with activation scales of their own")                                   \
    X(time_cut, TIME_CUT, time_cut, "time_cut", 0, 1, AQ_TIME_CUT_UNIFORM, AQ_TIME_CUT_UNIFORM,    \
      AQ_TIME_CUT_UNIFORM, "", AQ_ERR_CONFIGURATION,                                               \
      "how timesteps are cut into groups; optimal: for the least expected error")                  \
    X(activation_range, RANGE, activation_range, "activation_range", 0, 2, AQ_RANGE_LEAST_ERROR,   \
      AQ_RANGE_LEAST_ERROR, AQ_RANGE_LEAST_ERROR, "", AQ_ERR_CONFIGURATION,                        \
      "what activation scales cover; without a sketch in the statistics: min and max")             \
    X(activation_percentile, FLOAT, activation_percentile, "activation_percentile", 50, 100, 99.9, \
      99.9, 99.9, "", AQ_ERR_CONFIGURATION, "of activation_range: percentile")                     \
    X(calibration, TEXT_LIST, calibration, "calibration", 0, 0, 0, 0, 0, "",                       \
      AQ_ERR_CONFIGURATION, "files of activation statistics from a real run of the model")         \
    X(calibration_samples, INT, calibration_samples, "calibration_samples", 1, 1000000, 32, 128,   \
      512, "ARROW_QUANT_CALIBRATION_SAMPLES", AQ_ERR_CONFIGURATION,                                \
      "most records of JSON lines that are taken for each layer and timestep")                                                    \
    X(enable_time_aware, BOOL, enable_time_aware, "enable_time_aware", 0, 1, 1, 1, 1, "",          \
      AQ_ERR_CONFIGURATION, "keep activation statistics for each group of timesteps")              \
    X(enable_spatial, BOOL, enable_spatial, "enable_spatial", 0, 1, 0, 1, 1, "",                   \
      AQ_ERR_CONFIGURATION, "equalize channels by their activations before quantizing")            \
    X(skip_sensitive_layers, BOOL, skip_sensitive_layers, "skip_sensitive_layers", 0, 1, 1, 1, 1,  \
      "", AQ_ERR_CONFIGURATION, "keep embeddings, norms, first and last projections, heads")       \
    X(sensitive_layers, TEXT_LIST, sensitive_layers, "sensitive_layers", 0, 0, 0, 0, 0, "",        \
      AQ_ERR_CONFIGURATION, "whole names of tensors or modules to keep as well")                   \
    X(sensitive_patterns, TEXT_LIST, sensitive_patterns, "sensitive_patterns", 0, 0, 0, 0, 0, "",  \
      AQ_ERR_CONFIGURATION, "patterns (* ? [a-z]) of tensor names to keep as well")                \
    X(layer_bits, BITS_LIST, layer_bits, "layer_bits", 2, 16, 0, 0, 0, "", AQ_ERR_BIT_WIDTH,       \
      "bits by name or pattern, the first match wins; 16 keeps a layer")                           \
    X(modality, MODALITY, modality, "modality", 0, 4, AQ_MODALITY_UNKNOWN, AQ_MODALITY_UNKNOWN,    \
      AQ_MODALITY_UNKNOWN, "", AQ_ERR_CONFIGURATION, "what the model makes; unknown: detect it")   \
    X(components, FOLDER_LIST, components, "components", 0, 0, 0, 0, 0, "", AQ_ERR_CONFIGURATION,  \
      "folders of a pipeline to quantize; none: the denoiser")                                     \
    X(variant, NAME, variant, "variant", 0, 0, 0, 0, 0, "", AQ_ERR_CONFIGURATION,                  \
      "variant of the weight files to read, such as fp16")                                         \
    X(output_format, OUTPUT_FORMAT, output_format, "format", 0, 3, AQ_OUTPUT_NATIVE,               \
      AQ_OUTPUT_NATIVE, AQ_OUTPUT_NATIVE, "", AQ_ERR_CONFIGURATION,                                \
      "what the output is: our own safetensors, or what other programs load")                      \
    X(gguf_type, GGUF_TYPE, gguf_type, "gguf_type", 0, 8, AQ_GGUF_TYPE_AUTO, AQ_GGUF_TYPE_AUTO,    \
      AQ_GGUF_TYPE_AUTO, "", AQ_ERR_CONFIGURATION,                                                 \
      "type of quantized GGUF tensors; auto: by bits")                                              \
    X(gguf_architecture, NAME, gguf_architecture, "gguf_architecture", 0, 0, 0, 0, 0, "",          \
      AQ_ERR_CONFIGURATION, "general.architecture of a GGUF file; null: detect it")                 \
    X(num_threads, INT, num_threads, "num_threads", 0, 1024, 0, 0, 0, "ARROW_QUANT_NUM_THREADS",   \
      AQ_ERR_CONFIGURATION, "threads; 0: all cores")                                               \
    X(enable_streaming, BOOL, enable_streaming, "enable_streaming", 0, 1, 1, 0, 0,                 \
      "ARROW_QUANT_ENABLE_STREAMING", AQ_ERR_CONFIGURATION,                                        \
      "smaller blocks in memory; the same bytes out")                                              \
    X(max_memory_limit_mb, SIZE, max_memory_limit_mb, "max_memory_limit_mb", 0, 1000000000, 0, 0,  \
      0, "ARROW_QUANT_MAX_MEMORY_MB", AQ_ERR_CONFIGURATION, "most memory in MB; 0: no limit")      \
    X(target_bits, FLOAT_OR_NONE, target_bits, "target_bits", 0, 16, NAN, NAN, NAN, "",            \
      AQ_ERR_CONFIGURATION, "wanted mean of stored bits a weight; bits are chosen by layer")       \
    X(target_model_size_mb, SIZE, target_model_size_mb, "target_model_size_mb", 0, 1000000000, 0,  \
      0, 0, "", AQ_ERR_CONFIGURATION, "wanted size of the output in MB; 0: none")                  \
    X(overwrite, BOOL, overwrite, "overwrite", 0, 1, 0, 0, 0, "", AQ_ERR_CONFIGURATION,            \
      "replace an output that exists")                                                             \
    X(resume, BOOL, resume, "resume", 0, 1, 0, 0, 0, "", AQ_ERR_CONFIGURATION,                     \
      "take up what an interrupted run to the same output had finished")                           \
    X(markov_enabled, BOOL, markov_validation.enabled, "thermodynamic.validation.enabled", 0,      \
      1, 1, 1, 1, "", AQ_ERR_CONFIGURATION, "measure jumps between neighbouring time groups")      \
    X(markov_smoothness_threshold, FLOAT, markov_validation.smoothness_threshold,                  \
      "thermodynamic.validation.smoothness_threshold", 0, 1, 0.3, 0.3, 0.3, "",                    \
      AQ_ERR_CONFIGURATION, "relative jump of a scale that counts as a violation")                 \
    X(markov_log_violations, BOOL, markov_validation.log_violations,                               \
      "thermodynamic.validation.log_violations", 0, 1, 1, 1, 1, "", AQ_ERR_CONFIGURATION,          \
      "tell of each violation")                                                                    \
    X(smoothing_enabled, BOOL, boundary_smoothing.enabled,                                         \
      "thermodynamic.boundary_smoothing.enabled", 0, 1, 0, 0, 0, "", AQ_ERR_CONFIGURATION,         \
      "smooth parameters across the boundaries of time groups")                                    \
    X(smoothing_window_size, INT, boundary_smoothing.window_size,                                  \
      "thermodynamic.boundary_smoothing.window_size", 1, 20, 5, 5, 5, "", AQ_ERR_CONFIGURATION,    \
      "time groups around a boundary that are smoothed")                                           \
    X(smoothing_interpolation, INTERPOLATION, boundary_smoothing.interpolation,                    \
      "thermodynamic.boundary_smoothing.interpolation", 0, 2, AQ_INTERPOLATION_LINEAR,             \
      AQ_INTERPOLATION_LINEAR, AQ_INTERPOLATION_LINEAR, "", AQ_ERR_CONFIGURATION,                  \
      "shape of the smoothing")

#ifdef __cplusplus
extern "C" {
#endif

typedef enum aq_field_id {
#define AQ_FIELD_ENUM(id, kind, member, path, low, high, edge, local, cloud, env, status, doc)     \
    AQ_FIELD_##id,
    AQ_CONFIG_FIELDS(AQ_FIELD_ENUM)
#undef AQ_FIELD_ENUM
    AQ_FIELD_COUNT
} aq_field_id;

typedef enum aq_field_kind {
    AQ_KIND_BOOL,
    AQ_KIND_INT,           /* uint32_t */
    AQ_KIND_BITS,          /* uint32_t, a power of two, or 3 bits */
    AQ_KIND_STATES,        /* uint32_t, a power of four */
    AQ_KIND_SIZE,          /* uint64_t */
    AQ_KIND_FLOAT,         /* double */
    AQ_KIND_FLOAT_OR_NONE, /* double, NaN: none */
    AQ_KIND_PROFILE,
    AQ_KIND_MODALITY,
    AQ_KIND_INTERPOLATION,
    AQ_KIND_METHOD,
    AQ_KIND_OUTPUT_FORMAT,
    AQ_KIND_FIT,
    AQ_KIND_GGUF_TYPE,
    AQ_KIND_TIME_CUT,
    AQ_KIND_RANGE,
    AQ_KIND_NAME,        /* const char *, NULL: none; letters, digits, '.', '_', '-' */
    AQ_KIND_TEXT_LIST,   /* const char *const * */
    AQ_KIND_FOLDER_LIST, /* the same, of folder names without separators */
    AQ_KIND_BITS_LIST    /* const aq_layer_bits * */
} aq_field_kind;

typedef struct aq_field {
    const char *path, *environment, *doc;
    aq_field_kind kind;
    aq_status status;
    double low, high;
    double defaults[3]; /* by profile */
} aq_field;

/* Where a value came from, for messages. */
typedef struct aq_field_origin {
    const char *source;    /* a file, a variable; NULL: nothing to name */
    uint32_t line, column; /* 0: the source has no lines */
} aq_field_origin;

/* ---- the table (config/config.c) */

AQ_LIB const aq_field *aq_field_at(aq_field_id id);
/* AQ_FIELD_COUNT when there is none of that path. */
AQ_LIB aq_field_id aq_field_find(const char *path, size_t size);
/* The member of a field, of the type that its kind says; and the count of a list, else NULL. */
AQ_LIB void *aq_field_of(aq_config *config, aq_field_id id);
AQ_LIB const void *aq_field_of_const(const aq_config *config, aq_field_id id);
AQ_LIB size_t *aq_field_count_of(aq_config *config, aq_field_id id);
AQ_LIB size_t aq_field_count(const aq_config *config, aq_field_id id);
/* A number, switch or enumeration as a number; text and lists: 0 when there is none, else 1. */
AQ_LIB double aq_field_number(const aq_config *config, aq_field_id id);
AQ_LIB void aq_field_put_number(aq_config *config, aq_field_id id, double number);
AQ_LIB bool aq_field_is_text(aq_field_kind kind); /* a name or a list: no number */
/* True when the value is the one of the config's profile. */
AQ_LIB bool aq_field_is_default(const aq_config *config, aq_field_id id);
/* The name of an enumeration's value; NULL when there is no such value, or no enumeration. */
AQ_LIB const char *aq_field_value_name(aq_field_kind kind, unsigned value);
/* True when a file, the environment or aq_config_set gave the value, or when it is not the default
 * of the config's profile. */
AQ_LIB bool aq_config_is_explicit(const aq_config *config, aq_field_id id);
/* Other defaults for all fields that are not explicit. */
AQ_LIB void aq_config_change_profile(aq_config *config, aq_profile profile);
/* The arena that the config owns, made when it has none; NULL: no memory. */
AQ_LIB aq_arena *aq_config_arena(const aq_context *context, aq_config *config);
/* Deep copy: strings and lists go into the arena, `to` owns nothing. */
AQ_LIB aq_status aq_config_copy(aq_arena *arena, const aq_config *from, aq_config *to,
                                aq_error *err);

/* ---- checks (config/config_check.c) */

#define AQ_RANGE_TEXT 128
/* "2, 3, 4 or 8", "an integer from 1 to 100", … */
AQ_LIB const char *aq_field_range(aq_field_id id, char buffer[AQ_RANGE_TEXT]);
/* "…: bit_width: expected 2, 3, 4 or 8, found " and what was found. */
AQ_LIB aq_status aq_field_fail(aq_field_id id, const aq_field_origin *origin, const char *found,
                               aq_error *err);
/* The same, when a text was found; it is cut when it is long. */
AQ_LIB aq_status aq_field_fail_text(aq_field_id id, const aq_field_origin *origin,
                                    const char *text, size_t size, aq_error *err);
AQ_LIB bool aq_field_fits(aq_field_id id, double number);
/* One text of a field: a list's item, a pattern, a name. */
AQ_LIB aq_status aq_field_check_text(aq_field_id id, const aq_field_origin *origin,
                                     const char *text, size_t size, aq_error *err);
/* Fails and names what may have been meant. `prefix` is the path of the map that holds the key,
 * "" or with a dot at its end; NULL: `key` is a whole path. */
AQ_LIB aq_status aq_field_fail_unknown(const aq_field_origin *origin, const char *prefix,
                                       const char *key, size_t size, aq_error *err);

/* ---- values from text (config/config_set.c) */

/* Assigns a YAML value and marks the field explicit; only text and lists take memory, in the
 * arena that the config owns. The config's values change only on success. */
AQ_LIB aq_status aq_field_assign(const aq_context *context, aq_config *config, aq_field_id id,
                                 const aq_yaml_node *value, const char *source, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* AQ_FIELDS_H */
