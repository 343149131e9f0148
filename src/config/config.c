/* Profiles, access to fields through the table, equality, copies. */
#include "fields.h"

#include "../base/text.h"

static const aq_field aq_field_table[AQ_FIELD_COUNT] = {
#define AQ_FIELD_ROW(id, kind, member, path, low, high, edge, local, cloud, env, status, doc)      \
    {path, env, doc, AQ_KIND_##kind, status, (double)(low), (double)(high),                        \
     {(double)(edge), (double)(local), (double)(cloud)}},
    AQ_CONFIG_FIELDS(AQ_FIELD_ROW)
#undef AQ_FIELD_ROW
};

static const char *const aq_profile_names[] = {"edge", "local", "cloud"};
static const char *const aq_modality_names[] = {"unknown", "text", "code", "image", "audio"};
static const char *const aq_interpolation_names[] = {"linear", "cubic", "sigmoid"};
static const char *const aq_method_names[] = {"auto", "ptq", "r2q", "gptq", "trellis"};
static const char *const aq_output_format_names[] = {"native", "gguf", "compressed-tensors",
                                                     "arrow"};
static const char *const aq_time_cut_names[] = {"uniform", "optimal"};
static const char *const aq_range_names[] = {"min_max", "percentile", "least_error"};
static const char *const aq_fit_names[] = {"least_squares", "fast"};
static const char *const aq_gguf_type_names[] = {"auto", "F32", "F16", "BF16", "Q8_0", "Q4_0",
                                                 "Q4_1", "Q4_K", "Q2_K"};

/* ------------------------------------------------------------------ names */

AQ_LIB const char *aq_field_value_name(aq_field_kind kind, unsigned value) {
    if (kind == AQ_KIND_PROFILE && value < 3) return aq_profile_names[value];
    if (kind == AQ_KIND_MODALITY && value < 5) return aq_modality_names[value];
    if (kind == AQ_KIND_INTERPOLATION && value < 3) return aq_interpolation_names[value];
    if (kind == AQ_KIND_METHOD && value < 5) return aq_method_names[value];
    if (kind == AQ_KIND_OUTPUT_FORMAT && value < 4) return aq_output_format_names[value];
    if (kind == AQ_KIND_TIME_CUT && value < 2) return aq_time_cut_names[value];
    if (kind == AQ_KIND_RANGE && value < 3) return aq_range_names[value];
    if (kind == AQ_KIND_FIT && value < 2) return aq_fit_names[value];
    if (kind == AQ_KIND_GGUF_TYPE && value < 9) return aq_gguf_type_names[value];
    return NULL;
}

ARROWQUANT_API const char *aq_fit_name(aq_fit fit) {
    const char *name = aq_field_value_name(AQ_KIND_FIT, (unsigned)fit);
    return name ? name : "unknown";
}

ARROWQUANT_API const char *aq_profile_name(aq_profile profile) {
    const char *name = aq_field_value_name(AQ_KIND_PROFILE, (unsigned)profile);
    return name ? name : "unknown";
}

ARROWQUANT_API const char *aq_modality_name(aq_modality modality) {
    const char *name = aq_field_value_name(AQ_KIND_MODALITY, (unsigned)modality);
    return name ? name : "unknown";
}

ARROWQUANT_API const char *aq_method_name(aq_method method) {
    const char *name = aq_field_value_name(AQ_KIND_METHOD, (unsigned)method);
    return name ? name : "unknown";
}

ARROWQUANT_API const char *aq_output_format_name(aq_output_format format) {
    const char *name = aq_field_value_name(AQ_KIND_OUTPUT_FORMAT, (unsigned)format);
    return name ? name : "unknown";
}

ARROWQUANT_API const char *aq_gguf_type_choice_name(aq_gguf_type_choice type) {
    const char *name = aq_field_value_name(AQ_KIND_GGUF_TYPE, (unsigned)type);
    return name ? name : "unknown";
}

ARROWQUANT_API aq_status aq_profile_from_name(const char *name, aq_profile *out, aq_error *err) {
    unsigned i;
    if (!name || !out) return aq_fail(err, AQ_ERR_ARGUMENT, "aq_profile_from_name: NULL");
    for (i = 0; i < 3; i++) {
        if (strcmp(name, aq_profile_names[i]) != 0) continue;
        *out = (aq_profile)i;
        return AQ_OK;
    }
    return aq_field_fail_text(AQ_FIELD_deployment_profile, NULL, name, strlen(name), err);
}

/* ----------------------------------------------------------------- fields */

AQ_LIB const aq_field *aq_field_at(aq_field_id id) { return &aq_field_table[id]; }

AQ_LIB aq_field_id aq_field_find(const char *path, size_t size) {
    unsigned i;
    for (i = 0; i < AQ_FIELD_COUNT; i++)
        if (aq_text_equal(path, size, aq_field_table[i].path)) break;
    return (aq_field_id)i;
}

AQ_LIB void *aq_field_of(aq_config *config, aq_field_id id) {
    switch (id) {
#define AQ_FIELD_CASE(id, kind, member, path, low, high, edge, local, cloud, env, status, doc)     \
    case AQ_FIELD_##id: return &config->member;
        AQ_CONFIG_FIELDS(AQ_FIELD_CASE)
#undef AQ_FIELD_CASE
    default: return NULL;
    }
}

AQ_LIB const void *aq_field_of_const(const aq_config *config, aq_field_id id) {
    switch (id) {
#define AQ_FIELD_CASE(id, kind, member, path, low, high, edge, local, cloud, env, status, doc)     \
    case AQ_FIELD_##id: return &config->member;
        AQ_CONFIG_FIELDS(AQ_FIELD_CASE)
#undef AQ_FIELD_CASE
    default: return NULL;
    }
}

AQ_LIB size_t *aq_field_count_of(aq_config *config, aq_field_id id) {
    switch (id) {
    case AQ_FIELD_calibration: return &config->calibration_count;
    case AQ_FIELD_components: return &config->component_count;
    case AQ_FIELD_sensitive_layers: return &config->sensitive_layer_count;
    case AQ_FIELD_sensitive_patterns: return &config->sensitive_pattern_count;
    case AQ_FIELD_layer_bits: return &config->layer_bits_count;
    default: return NULL;
    }
}

AQ_LIB size_t aq_field_count(const aq_config *config, aq_field_id id) {
    switch (id) {
    case AQ_FIELD_calibration: return config->calibration_count;
    case AQ_FIELD_components: return config->component_count;
    case AQ_FIELD_sensitive_layers: return config->sensitive_layer_count;
    case AQ_FIELD_sensitive_patterns: return config->sensitive_pattern_count;
    case AQ_FIELD_layer_bits: return config->layer_bits_count;
    default: return 0;
    }
}

AQ_LIB bool aq_field_is_text(aq_field_kind kind) {
    return kind == AQ_KIND_NAME || kind == AQ_KIND_TEXT_LIST || kind == AQ_KIND_FOLDER_LIST ||
           kind == AQ_KIND_BITS_LIST;
}

AQ_LIB double aq_field_number(const aq_config *config, aq_field_id id) {
    const void *member = aq_field_of_const(config, id);
    switch (aq_field_table[id].kind) {
    case AQ_KIND_BOOL: return *(const bool *)member ? 1.0 : 0.0;
    case AQ_KIND_INT:
    case AQ_KIND_BITS:
    case AQ_KIND_STATES: return (double)*(const uint32_t *)member;
    case AQ_KIND_SIZE: return (double)*(const uint64_t *)member;
    case AQ_KIND_FLOAT:
    case AQ_KIND_FLOAT_OR_NONE: return *(const double *)member;
    case AQ_KIND_PROFILE: return (double)*(const aq_profile *)member;
    case AQ_KIND_MODALITY: return (double)*(const aq_modality *)member;
    case AQ_KIND_INTERPOLATION: return (double)*(const aq_interpolation *)member;
    case AQ_KIND_METHOD: return (double)*(const aq_method *)member;
    case AQ_KIND_OUTPUT_FORMAT: return (double)*(const aq_output_format *)member;
    case AQ_KIND_FIT: return (double)*(const aq_fit *)member;
    case AQ_KIND_GGUF_TYPE: return (double)*(const aq_gguf_type_choice *)member;
    case AQ_KIND_TIME_CUT: return (double)*(const aq_time_cut *)member;
    case AQ_KIND_RANGE: return (double)*(const aq_activation_range *)member;
    case AQ_KIND_NAME: return *(const char *const *)member ? 1.0 : 0.0;
    default: return aq_field_count(config, id) != 0 ? 1.0 : 0.0;
    }
}

AQ_LIB void aq_field_put_number(aq_config *config, aq_field_id id, double number) {
    void *member = aq_field_of(config, id);
    switch (aq_field_table[id].kind) {
    case AQ_KIND_BOOL: *(bool *)member = number != 0.0; break;
    case AQ_KIND_INT:
    case AQ_KIND_BITS:
    case AQ_KIND_STATES: *(uint32_t *)member = (uint32_t)number; break;
    case AQ_KIND_SIZE: *(uint64_t *)member = (uint64_t)number; break;
    case AQ_KIND_FLOAT:
    case AQ_KIND_FLOAT_OR_NONE: *(double *)member = number; break;
    case AQ_KIND_PROFILE: *(aq_profile *)member = (aq_profile)(unsigned)number; break;
    case AQ_KIND_MODALITY: *(aq_modality *)member = (aq_modality)(unsigned)number; break;
    case AQ_KIND_INTERPOLATION:
        *(aq_interpolation *)member = (aq_interpolation)(unsigned)number;
        break;
    case AQ_KIND_METHOD: *(aq_method *)member = (aq_method)(unsigned)number; break;
    case AQ_KIND_OUTPUT_FORMAT:
        *(aq_output_format *)member = (aq_output_format)(unsigned)number;
        break;
    case AQ_KIND_FIT: *(aq_fit *)member = (aq_fit)(unsigned)number; break;
    case AQ_KIND_GGUF_TYPE:
        *(aq_gguf_type_choice *)member = (aq_gguf_type_choice)(unsigned)number;
        break;
    case AQ_KIND_TIME_CUT: *(aq_time_cut *)member = (aq_time_cut)(unsigned)number; break;
    case AQ_KIND_RANGE:
        *(aq_activation_range *)member = (aq_activation_range)(unsigned)number;
        break;
    default: break;
    }
}

static bool aq_same_number(double a, double b) {
    return a == b || (a != a && b != b);
}

AQ_LIB bool aq_field_is_default(const aq_config *config, aq_field_id id) {
    unsigned profile = (unsigned)config->deployment_profile;
    if (profile > 2) return false;
    return aq_same_number(aq_field_number(config, id), aq_field_table[id].defaults[profile]);
}

AQ_LIB bool aq_config_is_explicit(const aq_config *config, aq_field_id id) {
    return (config->explicit_fields >> (unsigned)id & 1u) != 0 || !aq_field_is_default(config, id);
}

/* --------------------------------------------------------------- profiles */

ARROWQUANT_API aq_config aq_config_from_profile(aq_profile profile) {
    aq_config config;
    unsigned i;
    memset(&config, 0, sizeof config);
    if ((unsigned)profile > 2) profile = AQ_PROFILE_LOCAL;
    for (i = 0; i < AQ_FIELD_COUNT; i++)
        if (!aq_field_is_text(aq_field_table[i].kind))
            aq_field_put_number(&config, (aq_field_id)i, aq_field_table[i].defaults[profile]);
    config.variant = config.gguf_architecture = NULL; /* where NULL is not all zero bits */
    config.calibration = config.components = config.sensitive_layers = config.sensitive_patterns = NULL;
    config.layer_bits = NULL;
    config.owned = NULL;
    return config;
}

AQ_LIB void aq_config_change_profile(aq_config *config, aq_profile profile) {
    aq_config old = *config;
    unsigned i;
    for (i = 0; i < AQ_FIELD_COUNT; i++) {
        aq_field_id id = (aq_field_id)i;
        if (!aq_field_is_text(aq_field_table[i].kind) && !aq_config_is_explicit(&old, id))
            aq_field_put_number(config, id, aq_field_table[i].defaults[profile]);
    }
    config->deployment_profile = profile;
}

/* --------------------------------------------------------------- equality */

static bool aq_same_text(const char *a, const char *b) {
    return a == b || (a && b && strcmp(a, b) == 0);
}

static bool aq_same_texts(const char *const *a, const char *const *b, size_t count) {
    size_t i;
    for (i = 0; i < count; i++)
        if (!aq_same_text(a[i], b[i])) return false;
    return true;
}

static bool aq_same_layer_bits(const aq_layer_bits *a, const aq_layer_bits *b, size_t count) {
    size_t i;
    for (i = 0; i < count; i++)
        if (a[i].bits != b[i].bits || !aq_same_text(a[i].pattern, b[i].pattern)) return false;
    return true;
}

static bool aq_same_field(const aq_config *a, const aq_config *b, aq_field_id id) {
    const void *x = aq_field_of_const(a, id), *y = aq_field_of_const(b, id);
    size_t count = aq_field_count(a, id);
    if (count != aq_field_count(b, id)) return false;
    switch (aq_field_table[id].kind) {
    case AQ_KIND_SIZE: return *(const uint64_t *)x == *(const uint64_t *)y;
    case AQ_KIND_NAME: return aq_same_text(*(const char *const *)x, *(const char *const *)y);
    case AQ_KIND_TEXT_LIST:
    case AQ_KIND_FOLDER_LIST:
        return aq_same_texts(*(const char *const *const *)x, *(const char *const *const *)y,
                             count);
    case AQ_KIND_BITS_LIST:
        return aq_same_layer_bits(*(const aq_layer_bits *const *)x,
                                  *(const aq_layer_bits *const *)y, count);
    default: return aq_same_number(aq_field_number(a, id), aq_field_number(b, id));
    }
}

/* Which fields are explicit makes no difference. */
ARROWQUANT_API bool aq_config_equal(const aq_config *a, const aq_config *b) {
    aq_config local = aq_config_from_profile(AQ_PROFILE_LOCAL);
    unsigned i;
    if (!a) a = &local;
    if (!b) b = &local;
    for (i = 0; i < AQ_FIELD_COUNT; i++)
        if (!aq_same_field(a, b, (aq_field_id)i)) return false;
    return true;
}

/* ---------------------------------------------------------------- storage */

AQ_LIB aq_arena *aq_config_arena(const aq_context *context, aq_config *config) {
    aq_arena arena, *owned = (aq_arena *)config->owned;
    if (owned) return owned;
    aq_arena_init(&arena, context);
    owned = (aq_arena *)aq_arena_alloc(&arena, sizeof arena);
    if (!owned) {
        aq_arena_free(&arena);
        return NULL;
    }
    *owned = arena; /* it lives in its own first block */
    config->owned = owned;
    return owned;
}

ARROWQUANT_API void aq_config_free(aq_config *config) {
    aq_arena arena;
    if (!config || !config->owned) return;
    arena = *(aq_arena *)config->owned;
    aq_arena_free(&arena);
    *config = aq_config_from_profile(AQ_PROFILE_LOCAL);
}

static const char *const *aq_copy_texts(aq_arena *arena, const char *const *texts, size_t count) {
    size_t i, size;
    const char **copy = NULL;
    if (aq_mul_size(count, sizeof *copy, &size))
        copy = (const char **)aq_arena_alloc(arena, size);
    for (i = 0; copy && i < count; i++) {
        copy[i] = aq_arena_string(arena, texts[i]);
        if (!copy[i]) return NULL;
    }
    return copy;
}

static const aq_layer_bits *aq_copy_layer_bits(aq_arena *arena, const aq_layer_bits *layers,
                                               size_t count) {
    size_t i, size;
    aq_layer_bits *copy = NULL;
    if (aq_mul_size(count, sizeof *copy, &size))
        copy = (aq_layer_bits *)aq_arena_alloc(arena, size);
    for (i = 0; copy && i < count; i++) {
        copy[i].bits = layers[i].bits;
        copy[i].pattern = aq_arena_string(arena, layers[i].pattern);
        if (!copy[i].pattern) return NULL;
    }
    return copy;
}

AQ_LIB aq_status aq_config_copy(aq_arena *arena, const aq_config *from, aq_config *to,
                                aq_error *err) {
    aq_config copy = *from;
    bool done = true;
    copy.owned = NULL;
    if (from->variant) {
        copy.variant = aq_arena_string(arena, from->variant);
        done = copy.variant != NULL;
    }
    if (done && from->calibration_count != 0) {
        copy.calibration = aq_copy_texts(arena, from->calibration, from->calibration_count);
        done = copy.calibration != NULL;
    }
    if (done && from->gguf_architecture) {
        copy.gguf_architecture = aq_arena_string(arena, from->gguf_architecture);
        done = copy.gguf_architecture != NULL;
    }
    if (done && from->component_count != 0) {
        copy.components = aq_copy_texts(arena, from->components, from->component_count);
        done = copy.components != NULL;
    }
    if (done && from->sensitive_layer_count != 0) {
        copy.sensitive_layers =
            aq_copy_texts(arena, from->sensitive_layers, from->sensitive_layer_count);
        done = copy.sensitive_layers != NULL;
    }
    if (done && from->sensitive_pattern_count != 0) {
        copy.sensitive_patterns =
            aq_copy_texts(arena, from->sensitive_patterns, from->sensitive_pattern_count);
        done = copy.sensitive_patterns != NULL;
    }
    if (done && from->layer_bits_count != 0) {
        copy.layer_bits = aq_copy_layer_bits(arena, from->layer_bits, from->layer_bits_count);
        done = copy.layer_bits != NULL;
    }
    if (!done) return aq_fail_memory(err, sizeof copy);
    *to = copy;
    return AQ_OK;
}
