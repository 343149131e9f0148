/* Profiles, setting, checks, explicit fields, equality, ownership. */
#include "test.h"

static aq_error err;

static aq_config from(const char *text) {
    aq_config config = aq_config_from_profile(AQ_PROFILE_LOCAL);
    memset(&err, 0, sizeof err);
    (void)aq_config_from_yaml(NULL, text, strlen(text), "c.yaml", &config, &err);
    return config;
}

static void rejects(const char *text, aq_status status, const char *message) {
    aq_config config = from(text);
    CHECK(err.status == status);
    CHECK_STR(err.message, message);
    CHECK(config.owned == NULL);
    aq_config_free(&config);
}

static void rejects_set(const char *name, const char *value, aq_status status,
                        const char *message) {
    aq_config config = aq_config_from_profile(AQ_PROFILE_LOCAL), before = config;
    memset(&err, 0, sizeof err);
    CHECK_STATUS(aq_config_set(&config, name, value, &err), status);
    CHECK_STR(err.message, message);
    CHECK(aq_config_equal(&config, &before) && config.explicit_fields == 0);
    aq_config_free(&config);
}

TEST(profiles) {
    aq_config edge = aq_config_from_profile(AQ_PROFILE_EDGE);
    aq_config local = aq_config_from_profile(AQ_PROFILE_LOCAL);
    aq_config cloud = aq_config_from_profile(AQ_PROFILE_CLOUD);
    CHECK(edge.bit_width == 2 && local.bit_width == 4 && cloud.bit_width == 8);
    CHECK(edge.num_time_groups == 5 && local.num_time_groups == 10 && cloud.num_time_groups == 20);
    CHECK(edge.group_size == 256 && local.group_size == 128 && cloud.group_size == 64);
    CHECK(edge.min_accuracy == 0.65 && local.min_accuracy == 0.85 && cloud.min_accuracy == 0.95);
    CHECK(edge.calibration_samples == 32 && local.calibration_samples == 128);
    CHECK(cloud.calibration_samples == 512);
    CHECK(edge.enable_time_aware && local.enable_time_aware && cloud.enable_time_aware);
    CHECK(!edge.enable_spatial && local.enable_spatial && cloud.enable_spatial);
    CHECK(edge.enable_streaming && !local.enable_streaming && !cloud.enable_streaming);
    CHECK(!local.fail_fast && local.num_threads == 0 && !local.symmetric && !local.overwrite);
    CHECK(local.parameter_bits == 16 && local.skip_sensitive_layers);
    CHECK(local.min_sqnr_db != local.min_sqnr_db);
    CHECK(local.modality == AQ_MODALITY_UNKNOWN && local.variant == NULL);
    CHECK(local.markov_validation.enabled && local.markov_validation.log_violations);
    CHECK(local.markov_validation.smoothness_threshold == 0.3);
    CHECK(!local.boundary_smoothing.enabled && local.boundary_smoothing.window_size == 5);
    CHECK(local.boundary_smoothing.interpolation == AQ_INTERPOLATION_LINEAR);
    CHECK(edge.deployment_profile == AQ_PROFILE_EDGE && edge.explicit_fields == 0);
    CHECK_STATUS(aq_config_validate(&edge, &err), AQ_OK);
    CHECK_STATUS(aq_config_validate(&local, &err), AQ_OK);
    CHECK_STATUS(aq_config_validate(&cloud, &err), AQ_OK);
    CHECK_STATUS(aq_config_validate(NULL, &err), AQ_OK);
}

TEST(names) {
    aq_profile profile = AQ_PROFILE_EDGE;
    CHECK_STATUS(aq_profile_from_name("cloud", &profile, &err), AQ_OK);
    CHECK(profile == AQ_PROFILE_CLOUD);
    CHECK_STATUS(aq_profile_from_name("Cloud", &profile, &err), AQ_ERR_CONFIGURATION);
    CHECK_STR(err.message, "deployment_profile: expected edge, local or cloud, found the text "
                           "\"Cloud\"");
    CHECK_STR(aq_profile_name(AQ_PROFILE_EDGE), "edge");
    CHECK_STR(aq_modality_name(AQ_MODALITY_AUDIO), "audio");
    CHECK_STR(aq_modality_name(AQ_MODALITY_UNKNOWN), "unknown");
}

TEST(yaml_sets_fields) {
    aq_config c = from("group_size: 64\n"
                       "deployment_profile: edge # applies first\n"
                       "layer_bits: {'b.*': 8, a: 16}\n"
                       "components: [unet, vae]\n"
                       "sensitive_layers:\n- x.y\n"
                       "min_sqnr_db: 12\n"
                       "variant: fp16\n"
                       "modality: image\n"
                       "thermodynamic:\n"
                       "  validation:\n"
                       "  boundary_smoothing: {window_size: 7, interpolation: cubic}\n");
    CHECK_STR(err.message, "");
    CHECK(c.deployment_profile == AQ_PROFILE_EDGE && c.bit_width == 2 && c.group_size == 64);
    CHECK(c.layer_bits_count == 2 && c.layer_bits[0].bits == 8 && c.layer_bits[1].bits == 16);
    CHECK_STR(c.layer_bits[0].pattern, "b.*");
    CHECK(c.component_count == 2 && c.sensitive_layer_count == 1);
    CHECK_STR(c.components[1], "vae");
    CHECK_STR(c.sensitive_layers[0], "x.y");
    CHECK(c.min_sqnr_db == 12.0 && c.modality == AQ_MODALITY_IMAGE);
    CHECK_STR(c.variant, "fp16");
    CHECK(c.boundary_smoothing.window_size == 7);
    CHECK(c.boundary_smoothing.interpolation == AQ_INTERPOLATION_CUBIC);
    CHECK(aq_config_is_explicit(&c, AQ_FIELD_group_size));
    CHECK(aq_config_is_explicit(&c, AQ_FIELD_layer_bits));
    CHECK(!aq_config_is_explicit(&c, AQ_FIELD_bit_width));
    CHECK(!aq_config_is_explicit(&c, AQ_FIELD_markov_enabled));
    aq_config_free(&c);
    CHECK(c.owned == NULL && c.components == NULL);
    aq_config_free(&c);
    aq_config_free(NULL);
}

TEST(none) {
    aq_config c = from("min_sqnr_db: none\nvariant: ~\nmodality: null\n");
    CHECK(c.min_sqnr_db != c.min_sqnr_db && !c.variant && c.modality == AQ_MODALITY_UNKNOWN);
    CHECK(aq_config_is_explicit(&c, AQ_FIELD_min_sqnr_db));
    CHECK(aq_config_is_explicit(&c, AQ_FIELD_variant));
    aq_config_free(&c);
    c = from("");
    CHECK(err.status == AQ_OK && c.explicit_fields == 0);
    c = from("thermodynamic:\n");
    CHECK(err.status == AQ_OK && c.explicit_fields == 0);
}

TEST(yaml_errors) {
    rejects("bit_width: 5", AQ_ERR_BIT_WIDTH,
            "c.yaml:1:12: bit_width: expected 2, 3, 4 or 8, found 5");
    rejects("a: &x 1", AQ_ERR_CONFIGURATION,
            "c.yaml:1:4: an anchor, which is not supported; quote the text if it begins with &");
    rejects("bit_width: 4.0", AQ_ERR_BIT_WIDTH,
            "c.yaml:1:12: bit_width: expected 2, 3, 4 or 8, found 4.0");
    rejects("bit_width: '4'", AQ_ERR_BIT_WIDTH,
            "c.yaml:1:12: bit_width: expected 2, 3, 4 or 8, found the text \"4\"");
    rejects("num_time_groups: 101", AQ_ERR_TIME_GROUPS,
            "c.yaml:1:18: num_time_groups: expected an integer from 1 to 100, found 101");
    rejects("\n\ngroup_size: 100", AQ_ERR_GROUP_SIZE,
            "c.yaml:3:13: group_size: expected 32, 64, 128 or 256, found 100");
    rejects("min_accuracy: .nan", AQ_ERR_ACCURACY,
            "c.yaml:1:15: min_accuracy: expected a number from 0 to 1, found .nan");
    rejects("fail_fast: 1", AQ_ERR_CONFIGURATION,
            "c.yaml:1:12: fail_fast: expected true or false, found 1");
    rejects("fail_fast: yes\nmin_accuracy: yes", AQ_ERR_ACCURACY,
            "c.yaml:2:15: min_accuracy: expected a number from 0 to 1, found true");
    rejects("num_threads: -1", AQ_ERR_CONFIGURATION,
            "c.yaml:1:14: num_threads: expected an integer from 0 to 1024, found -1");
    rejects("variant: a b", AQ_ERR_CONFIGURATION,
            "c.yaml:1:10: variant: expected a name of letters, digits, '.', '_' and '-', or null, "
            "found the text \"a b\"");
    rejects("components: unet", AQ_ERR_CONFIGURATION,
            "c.yaml:1:13: components: expected a list of folder names, found the text \"unet\"");
    rejects("components: [unet, ../x]", AQ_ERR_CONFIGURATION,
            "c.yaml:1:20: components: expected a list of folder names, found the text \"../x\"");
    rejects("sensitive_layers: [a, 1]", AQ_ERR_CONFIGURATION,
            "c.yaml:1:23: sensitive_layers: expected a list of texts, found 1");
    rejects("layer_bits: {a: 5}", AQ_ERR_BIT_WIDTH,
            "c.yaml:1:17: layer_bits: expected a map from pattern to 2, 3, 4, 8 or 16, found 5");
    rejects("layer_bits: {yes: 4}", AQ_ERR_BIT_WIDTH,
            "c.yaml:1:14: layer_bits: expected a map from pattern to 2, 3, 4, 8 or 16, found a "
            "pattern that YAML does not read as text; quote it");
    rejects("layer_bits: [a]", AQ_ERR_BIT_WIDTH,
            "c.yaml:1:13: layer_bits: expected a map from pattern to 2, 3, 4, 8 or 16, found a list");
    rejects("- a", AQ_ERR_CONFIGURATION,
            "c.yaml:1:1: expected a map of fields such as \"bit_width: 4\"");
    rejects("thermodynamic: 3", AQ_ERR_CONFIGURATION,
            "c.yaml:1:16: thermodynamic: expected a map of fields, one on each line");
    rejects("bit_width: 2\nbit_width: 4", AQ_ERR_CONFIGURATION,
            "c.yaml:2:1: a second key \"bit_width\"; the first is on line 1, column 1");
    rejects("sensitive_layers: [\"a\\0b\"]", AQ_ERR_CONFIGURATION,
            "c.yaml:1:20: sensitive_layers: expected a list of texts, found the text \"a?b\"");
    rejects("deployment_profile: big\nbit_width: 5", AQ_ERR_CONFIGURATION,
            "c.yaml:1:21: deployment_profile: expected edge, local or cloud, found the text "
            "\"big\"");
}

TEST(suggestions) {
    rejects("bit_widht: 4", AQ_ERR_CONFIGURATION,
            "c.yaml:1:1: unknown field \"bit_widht\"; did you mean \"bit_width\"?");
    rejects("bit_width: 4\ngroupsize: 4", AQ_ERR_CONFIGURATION,
            "c.yaml:2:1: unknown field \"groupsize\"; did you mean \"group_size\"?");
    rejects("termodynamic: {}", AQ_ERR_CONFIGURATION,
            "c.yaml:1:1: unknown field \"termodynamic\"; did you mean \"thermodynamic\"?");
    rejects("thermodynamic:\n  validatoin: {}", AQ_ERR_CONFIGURATION,
            "c.yaml:2:3: unknown field \"thermodynamic.validatoin\"; did you mean "
            "\"thermodynamic.validation\"?");
    rejects("window_size: 3", AQ_ERR_CONFIGURATION,
            "c.yaml:1:1: unknown field \"window_size\"; did you mean "
            "\"thermodynamic.boundary_smoothing.window_size\"?");
    rejects("zzzzzzzzzzzz: 4", AQ_ERR_CONFIGURATION,
            "c.yaml:1:1: unknown field \"zzzzzzzzzzzz\"; `aq config` lists every field");
    rejects("thermodynamic.validation.enabled: true", AQ_ERR_CONFIGURATION,
            "c.yaml:1:1: write \"thermodynamic.validation.enabled\" as maps within maps, one for "
            "each dot");
    rejects_set("bits_width", "4", AQ_ERR_CONFIGURATION,
                "unknown field \"bits_width\"; did you mean \"bit_width\"?");
}

TEST(set) {
    aq_config c = aq_config_from_profile(AQ_PROFILE_LOCAL);
    CHECK_STATUS(aq_config_set(&c, "bit_width", "0b10", &err), AQ_OK);
    CHECK_STATUS(aq_config_set(&c, "min_accuracy", "1", &err), AQ_OK);
    CHECK_STATUS(aq_config_set(&c, "thermodynamic.validation.enabled", " off ", &err), AQ_OK);
    CHECK(c.bit_width == 2 && c.min_accuracy == 1.0 && !c.markov_validation.enabled);
    CHECK(c.owned == NULL);
    CHECK_STATUS(aq_config_set(&c, "components", "[unet, 'v a e']", &err), AQ_OK);
    CHECK(c.component_count == 2 && c.owned != NULL);
    CHECK_STR(c.components[1], "v a e");
    CHECK_STATUS(aq_config_set(&c, "components", "[]", &err), AQ_OK);
    CHECK(c.component_count == 0 && c.components == NULL);
    CHECK_STATUS(aq_config_set(&c, "layer_bits", "{'*': 4}", &err), AQ_OK);
    CHECK(c.layer_bits_count == 1 && c.layer_bits[0].bits == 4);
    CHECK_STATUS(aq_config_set(&c, "variant", "'16'", &err), AQ_OK);
    CHECK_STR(c.variant, "16");
    CHECK(c.explicit_fields == (UINT64_C(1) << AQ_FIELD_bit_width |
                                UINT64_C(1) << AQ_FIELD_min_accuracy |
                                UINT64_C(1) << AQ_FIELD_markov_enabled |
                                UINT64_C(1) << AQ_FIELD_components |
                                UINT64_C(1) << AQ_FIELD_layer_bits |
                                UINT64_C(1) << AQ_FIELD_variant));
    aq_config_free(&c);
    rejects_set("bit_width", "16", AQ_ERR_BIT_WIDTH, "bit_width: expected 2, 3, 4 or 8, found 16");
    rejects_set("bit_width", "", AQ_ERR_BIT_WIDTH, "bit_width: expected 2, 3, 4 or 8, found nothing");
    rejects_set("group_size", "[", AQ_ERR_CONFIGURATION,
                "group_size:1:2: a '[' or '{' that is never closed");
    CHECK_STATUS(aq_config_set(NULL, "bit_width", "4", &err), AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_config_set(&c, NULL, "4", &err), AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_config_set(&c, "bit_width", NULL, NULL), AQ_ERR_ARGUMENT);
}

/* Another profile changes what nobody has set. */
TEST(set_profile) {
    aq_config c = aq_config_from_profile(AQ_PROFILE_LOCAL);
    c.num_time_groups = 33;
    CHECK_STATUS(aq_config_set(&c, "group_size", "128", &err), AQ_OK);
    CHECK_STATUS(aq_config_set(&c, "deployment_profile", "edge", &err), AQ_OK);
    CHECK(c.deployment_profile == AQ_PROFILE_EDGE && c.bit_width == 2);
    CHECK(c.group_size == 128 && c.num_time_groups == 33);
}

TEST(validate) {
    static const char *const good[] = {"a", "b"};
    static const char *const bad[] = {"a", "", NULL};
    aq_layer_bits layers[2] = {{"a", 2}, {"b", 5}};
    aq_config c = aq_config_from_profile(AQ_PROFILE_LOCAL);
    char pattern[300];
    c.components = good;
    c.component_count = 2;
    c.layer_bits = layers;
    c.layer_bits_count = 1;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_OK);
    c.layer_bits_count = 2;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_BIT_WIDTH);
    CHECK_STR(err.message, "layer_bits: expected a map from pattern to 2, 3, 4, 8 or 16, found 5 for "
                           "\"b\"");
    layers[1].bits = 3;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_BIT_WIDTH);
    CHECK_STR(err.message, "layer_bits: 3 bits for \"b\" need method: trellis, which is auto; the "
                           "others have 2, 4, 8 or 16");
    c.method = AQ_METHOD_TRELLIS;
    c.bit_width = 3;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_OK);
    c.method = AQ_METHOD_GPTQ;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_BIT_WIDTH);
    CHECK_STR(err.message, "bit_width: 3 bits need method: trellis, which is gptq; the others have 2, "
                           "4 or 8");
    c.bit_width = 4;
    memset(pattern, 'p', sizeof pattern - 1);
    pattern[sizeof pattern - 1] = '\0';
    layers[1].bits = 4;
    layers[1].pattern = pattern;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_BIT_WIDTH);
    pattern[255] = '\0';
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_OK);
    c.sensitive_patterns = bad;
    c.sensitive_pattern_count = 2;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_CONFIGURATION);
    CHECK_STR(err.message, "sensitive_patterns: expected a list of texts, found the text \"\"");
    c.sensitive_patterns = bad + 2;
    c.sensitive_pattern_count = 1;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_CONFIGURATION);
    c.sensitive_patterns = NULL;
    CHECK_STATUS(aq_config_validate(&c, NULL), AQ_ERR_CONFIGURATION);
    c.sensitive_pattern_count = 0;
    c.bit_width = 0;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_BIT_WIDTH);
    c.bit_width = 6;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_BIT_WIDTH);
    c.bit_width = 4;
    c.num_time_groups = 0;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_TIME_GROUPS);
    c.num_time_groups = 10;
    c.min_accuracy = (double)NAN;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_ACCURACY);
    c.min_accuracy = 1.5;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_ACCURACY);
    CHECK_STR(err.message, "min_accuracy: expected a number from 0 to 1, found 1.5");
    c.min_accuracy = 1.0;
    c.max_memory_limit_mb = UINT64_MAX;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_CONFIGURATION);
    CHECK_STR(err.message, "max_memory_limit_mb: expected an integer from 0 to 1000000000, found "
                           "18446744073709551615");
    c.max_memory_limit_mb = 0;
    c.variant = "\xFF";
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_ERR_CONFIGURATION);
    c.variant = "fp16";
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_OK);
}

TEST(equality) {
    const char *one[] = {"a"}, *other[] = {"b"};
    aq_config a = aq_config_from_profile(AQ_PROFILE_LOCAL), b = a;
    CHECK(aq_config_equal(&a, &b) && aq_config_equal(NULL, &a)); /* NaN is itself */
    b.explicit_fields = 5;
    CHECK(aq_config_equal(&a, &b));
    b.min_sqnr_db = 1;
    CHECK(!aq_config_equal(&a, &b));
    b = a;
    b.boundary_smoothing.window_size++;
    CHECK(!aq_config_equal(&a, &b));
    b = a;
    a.components = one;
    b.components = other;
    a.component_count = b.component_count = 1;
    CHECK(!aq_config_equal(&a, &b));
    other[0] = "a";
    CHECK(aq_config_equal(&a, &b));
    b.component_count = 0;
    CHECK(!aq_config_equal(&a, &b));
    b = a;
    b.variant = "x";
    CHECK(!aq_config_equal(&a, &b));
    b = a;
    b.max_memory_limit_mb = UINT64_MAX;
    a.max_memory_limit_mb = UINT64_MAX - 1;
    CHECK(!aq_config_equal(&a, &b));
}

static aq_config saved_and_loaded(const aq_config *config) {
    aq_config loaded = aq_config_from_profile(AQ_PROFILE_CLOUD);
    char *text;
    size_t size;
    CHECK_STATUS(aq_config_to_yaml(NULL, config, &text, &size, &err), AQ_OK);
    CHECK_STATUS(aq_config_from_yaml(NULL, text, size, "saved", &loaded, &err), AQ_OK);
    aq_text_free(NULL, text, size);
    return loaded;
}

/* What was explicit stays so, even with the profile's value; a changed member becomes so. */
TEST(saved_explicit_fields) {
    aq_config c = aq_config_from_profile(AQ_PROFILE_EDGE), loaded;
    CHECK_STATUS(aq_config_set(&c, "enable_time_aware", "true", &err), AQ_OK);
    CHECK_STATUS(aq_config_set(&c, "components", "[]", &err), AQ_OK);
    c.fail_fast = true;
    loaded = saved_and_loaded(&c);
    CHECK(aq_config_equal(&c, &loaded));
    CHECK(loaded.explicit_fields == (UINT64_C(1) << AQ_FIELD_deployment_profile |
                                     UINT64_C(1) << AQ_FIELD_enable_time_aware |
                                     UINT64_C(1) << AQ_FIELD_components |
                                     UINT64_C(1) << AQ_FIELD_fail_fast));
    CHECK(!aq_config_is_explicit(&c, AQ_FIELD_markov_enabled));
    CHECK(aq_config_is_explicit(&c, AQ_FIELD_enable_time_aware));
    CHECK(aq_config_is_explicit(&c, AQ_FIELD_fail_fast));
    aq_config_free(&loaded);
    aq_config_free(&c);
}

TEST(cannot_save) {
    aq_layer_bits layers[2] = {{"same", 2}, {"same", 4}};
    aq_config c = aq_config_from_profile(AQ_PROFILE_LOCAL);
    char *text;
    size_t size;
    c.bit_width = 5;
    CHECK_STATUS(aq_config_to_yaml(NULL, &c, &text, &size, &err), AQ_ERR_BIT_WIDTH);
    c.bit_width = 4;
    c.layer_bits = layers;
    c.layer_bits_count = 2;
    CHECK_STATUS(aq_config_validate(&c, &err), AQ_OK);
    CHECK_STATUS(aq_config_to_yaml(NULL, &c, &text, &size, &err), AQ_ERR_CONFIGURATION);
}

TEST(copies) {
    aq_config c = from("components: [unet]\nlayer_bits: {a: 2, b: 4}\nvariant: fp16\n"
                       "sensitive_layers: [x]\nsensitive_patterns: ['y*', z]\n");
    aq_config copy;
    aq_arena arena;
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_config_copy(&arena, &c, &copy, &err), AQ_OK);
    CHECK(aq_config_equal(&c, &copy) && copy.explicit_fields == c.explicit_fields);
    CHECK(copy.owned == NULL);
    aq_config_free(&c);
    CHECK_STR(copy.layer_bits[1].pattern, "b");
    CHECK_STR(copy.sensitive_patterns[0], "y*");
    CHECK_STR(copy.variant, "fp16");
    aq_arena_free(&arena);
}

typedef struct counting {
    size_t left, live;
} counting;

static void *count_resize(void *user, void *pointer, size_t old_size, size_t new_size) {
    counting *state = (counting *)user;
    void *moved;
    if (new_size == 0) {
        if (pointer) state->live -= old_size;
        free(pointer);
        return NULL;
    }
    if (state->left == 0) return NULL;
    state->left--;
    moved = realloc(pointer, new_size);
    if (moved) state->live += new_size - (pointer ? old_size : 0);
    return moved;
}

/* Every allocation failing in turn: a clean error, nothing left behind. */
TEST(memory_that_runs_out) {
    static const char text[] = "components: [unet]\nlayer_bits: {a: 2}\nvariant: x\n"
                               "sensitive_layers: [x]\nsensitive_patterns: [y]\n";
    aq_context context;
    counting state;
    aq_config c;
    size_t i, size;
    char *out;
    aq_status status = AQ_ERR_OUT_OF_MEMORY;
    memset(&context, 0, sizeof context);
    context.allocator.resize = count_resize;
    context.allocator.user = &state;
    for (i = 0; status == AQ_ERR_OUT_OF_MEMORY && i < 100; i++) {
        state.left = i;
        state.live = 0;
        status = aq_config_from_yaml(&context, text, sizeof text - 1, "c", &c, &err);
        if (status != AQ_OK) CHECK(state.live == 0);
    }
    CHECK(status == AQ_OK && i > 1);
    status = AQ_ERR_OUT_OF_MEMORY;
    for (i = 0; status == AQ_ERR_OUT_OF_MEMORY && i < 100; i++) {
        size_t before = state.live;
        state.left = i;
        status = aq_config_to_yaml(&context, &c, &out, &size, &err);
        if (status != AQ_OK) CHECK(state.live == before);
    }
    CHECK(status == AQ_OK && i > 1);
    aq_text_free(&context, out, size);
    aq_config_free(&c);
    CHECK(state.live == 0);
}

static const char *got(const aq_config *config, const char *name) {
    static char value[512];
    char *text = NULL;
    size_t size = 0;
    memset(&err, 0, sizeof err);
    value[0] = '\0';
    if (aq_config_get(NULL, config, name, &text, &size, &err) != AQ_OK) return err.message;
    aq_format(value, sizeof value, "%s", text);
    CHECK(strlen(text) == size);
    aq_text_free(NULL, text, size);
    return value;
}

TEST(values_as_json) {
    aq_config c = from("deployment_profile: edge\nmin_sqnr_db: 12.5\nvariant: fp16\n"
                       "components: [unet, vae]\nlayer_bits: {'a\"*': 2, b: 16}\n"
                       "max_memory_limit_mb: 512\nmodality: image\n");
    CHECK_STR(got(&c, "deployment_profile"), "\"edge\"");
    CHECK_STR(got(&c, "bit_width"), "2");
    CHECK_STR(got(&c, "min_accuracy"), "0.65");
    CHECK_STR(got(&c, "min_sqnr_db"), "12.5");
    CHECK_STR(got(&c, "enable_streaming"), "true");
    CHECK_STR(got(&c, "symmetric"), "false");
    CHECK_STR(got(&c, "variant"), "\"fp16\"");
    CHECK_STR(got(&c, "layer_bits"), "{\"a\\\"*\": 2, \"b\": 16}");
    CHECK_STR(got(&c, "sensitive_layers"), "[]");
    CHECK_STR(got(&c, "max_memory_limit_mb"), "512");
    CHECK_STR(got(&c, "modality"), "\"image\"");
    CHECK_STR(got(&c, "thermodynamic.boundary_smoothing.interpolation"), "\"linear\"");
    CHECK(strstr(got(&c, "bit_widht"), "bit_width") != NULL);
    CHECK_STATUS(err.status, AQ_ERR_CONFIGURATION);
    CHECK_STATUS(aq_config_get(NULL, &c, NULL, NULL, NULL, &err), AQ_ERR_ARGUMENT);
    aq_config_free(&c);
    c = aq_config_from_profile(AQ_PROFILE_LOCAL);
    CHECK_STR(got(&c, "min_sqnr_db"), "null");
    CHECK_STR(got(&c, "variant"), "null");
    CHECK_STR(got(&c, "layer_bits"), "{}");
}

/* What is read can be set again, for every field; the copy owns what it holds. */
TEST(clones) {
    aq_config c = from("sensitive_layers: [a, b]\nsensitive_patterns: ['*.x']\nvariant: fp16\n"
                       "components: [unet]\nlayer_bits: {b: 16}\nmin_sqnr_db: 9\n");
    aq_config copy, again = aq_config_from_profile(AQ_PROFILE_LOCAL);
    aq_config_field field;
    size_t i;
    CHECK_STATUS(aq_config_clone(NULL, &c, &copy, &err), AQ_OK);
    CHECK(copy.explicit_fields == c.explicit_fields && copy.owned != c.owned);
    CHECK(copy.layer_bits != c.layer_bits && copy.variant != c.variant);
    for (i = 0; aq_config_field_at(i, &field); i++) {
        CHECK(field.doc[0] && field.type[0] && field.environment);
        if ((c.explicit_fields >> i & 1u) != 0)
            CHECK_STATUS(aq_config_set(&again, field.name, got(&c, field.name), &err), AQ_OK);
    }
    CHECK(i == (size_t)AQ_FIELD_COUNT && again.explicit_fields == c.explicit_fields);
    CHECK(!aq_config_field_at(i, &field) && !aq_config_field_at(0, NULL));
    aq_config_free(&c);
    CHECK(aq_config_equal(&copy, &again));
    CHECK_STR(copy.layer_bits[0].pattern, "b");
    CHECK_STATUS(aq_config_clone(NULL, NULL, &copy, &err), AQ_ERR_ARGUMENT);
    aq_config_free(&copy);
    aq_config_free(&again);
}

TEST(every_field_is_described) {
    char range[AQ_RANGE_TEXT];
    unsigned i, j;
    CHECK(AQ_FIELD_COUNT <= 64);
    for (i = 0; i < AQ_FIELD_COUNT; i++) {
        aq_field_id id = (aq_field_id)i;
        CHECK(aq_field_at(id)->doc[0] != '\0');
        CHECK(strlen(aq_field_range(id, range)) + 1 < AQ_RANGE_TEXT);
        CHECK(aq_field_find(aq_field_at(id)->path, strlen(aq_field_at(id)->path)) == id);
        for (j = 0; j < i; j++) {
            const char *env = aq_field_at(id)->environment;
            CHECK(env[0] == '\0' || strcmp(env, aq_field_at((aq_field_id)j)->environment) != 0);
        }
    }
}

int main(void) {
    RUN(profiles);
    RUN(names);
    RUN(yaml_sets_fields);
    RUN(none);
    RUN(yaml_errors);
    RUN(suggestions);
    RUN(set);
    RUN(set_profile);
    RUN(validate);
    RUN(equality);
    RUN(saved_explicit_fields);
    RUN(cannot_save);
    RUN(copies);
    RUN(memory_that_runs_out);
    RUN(values_as_json);
    RUN(clones);
    RUN(every_field_is_described);
    return test_end();
}
