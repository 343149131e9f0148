/* Failing memory without an allocator of the caller's: each call of malloc and realloc that the library
 * makes fails in turn, once alone and once with all that follow, in the functions that take no context
 * and in others with a NULL one; and some functions call neither. Arguments: a model to quantize, and
 * where to. The environment sets fields of the configuration. */
#include <stddef.h>

static void *failing_malloc(size_t size);
static void *failing_realloc(void *pointer, size_t size);
static void counted_free(void *pointer);
#define ARROWQUANT_MALLOC(size) failing_malloc(size)
#define ARROWQUANT_REALLOC(pointer, size) failing_realloc(pointer, size)
#define ARROWQUANT_FREE(pointer) counted_free(pointer)
#include "test.h"

static unsigned long requests, fail_at, blocks, faults_total;
static bool lasting, hit;
static const char *model, *output;

static bool fails(void) {
    requests++;
    if (requests != fail_at && !(lasting && requests > fail_at)) return false;
    hit = true;
    return true;
}

static void *failing_malloc(size_t size) {
    void *block = fails() ? NULL : malloc(size);
    blocks += block != NULL;
    return block;
}

static void *failing_realloc(void *pointer, size_t size) {
    if (!pointer) return failing_malloc(size);
    return fails() ? NULL : realloc(pointer, size);
}

static void counted_free(void *pointer) {
    blocks -= pointer != NULL;
    free(pointer);
}

/* ---- what is called: everything is freed again, so that a block left is a leak */

static aq_status set_fields(const char *const (*fields)[2], size_t count, aq_error *err) {
    aq_config config = aq_config_from_profile(AQ_PROFILE_LOCAL), before = config;
    aq_status status = AQ_OK;
    for (size_t i = 0; status == AQ_OK && i < count; i++) {
        before = config; /* shares what the config owns */
        status = aq_config_set(&config, fields[i][0], fields[i][1], err);
    }
    if (status != AQ_OK) CHECK(aq_config_equal(&config, &before));
    aq_config_free(&config);
    return status;
}

static aq_status call_set(aq_error *err) {
    static const char *const fields[][2] = {
        { "bit_width", "8" },
        { "variant", "fp16" },
        { "sensitive_layers", "[embed, lm_head, \"a: b\"]" },
        { "layer_bits", "{\"*.q_proj\": 8, b: 16}" },
        { "sensitive_layers", "[]" },
        { "deployment_profile", "edge" },
    };
    return set_fields(fields, sizeof(fields) / sizeof(fields[0]), err);
}

static aq_status call_set_list(aq_error *err) { /* the first thing that the config owns */
    static const char *const fields[][2] = { { "components", "[transformer, vae]" } };
    return set_fields(fields, 1, err);
}

static aq_status call_from_yaml(aq_error *err) {
    static const char yaml[] = "deployment_profile: edge\nlayer_bits: {\"a*\": 8, b: 16}\n"
                               "sensitive_layers: [a.b, c]\nvariant: fp16\n";
    aq_config config;
    aq_status status = aq_config_from_yaml(NULL, yaml, sizeof(yaml) - 1, "yaml", &config, err);
    if (status == AQ_OK) aq_config_free(&config);
    return status;
}

static aq_status call_context(aq_error *err) {
    aq_context *made = NULL;
    aq_status status = aq_context_create(AQ_ISA_AUTO, NULL, &made, err);
    aq_context_destroy(made);
    return status;
}

static aq_status call_quantize(aq_error *err) {
    aq_config config = aq_config_from_profile(AQ_PROFILE_EDGE);
    config.num_threads = 1;
    config.overwrite = true;
    return aq_quantize_model(NULL, model, output, &config, NULL, NULL, NULL, err);
}

/* ---- faults */

static bool one_fault(const char *name, aq_status (*call)(aq_error *err)) {
    aq_error err;
    memset(&err, 0, sizeof(err));
    requests = 0;
    hit = false;
    aq_status status = call(&err);
    bool refused = status == AQ_ERR_OUT_OF_MEMORY && err.message[0];
    if (blocks || (hit ? status != AQ_OK && !refused : status != AQ_OK)) {
        test_broken = 1;
        printf("%s: allocation %lu%s: %s (%s), %lu blocks leaked\n", name, fail_at,
               lasting ? " and all after it" : "", aq_status_name(status), err.message, blocks);
    }
    return hit;
}

static void every_fault(const char *name, aq_status (*call)(aq_error *err)) {
    unsigned long faults = 0;
    for (unsigned i = 0; i < 2; i++) {
        lasting = i != 0;
        for (fail_at = 1; one_fault(name, call); fail_at++) faults++;
    }
    fail_at = 0;
    CHECK(faults > 0);
    faults_total += faults;
    printf("%-36s %6lu faults\n", name, faults);
}

TEST(functions) {
    every_fault("aq_config_set", call_set);
    every_fault("aq_config_set, first list", call_set_list);
    every_fault("aq_config_from_yaml, no context", call_from_yaml);
    every_fault("aq_context_create, no allocator", call_context);
    every_fault("aq_quantize_model, no context", call_quantize);
}

TEST(nothing_allocated) {
    static float weights[4 * 300], plain[4 * 300];
    static uint32_t codes[4 * 300];
    static float params[4 * 64 * 2];
    aq_quant_spec spec;
    aq_quality quality;
    aq_config config = aq_config_from_profile(AQ_PROFILE_LOCAL);
    uint64_t state = 1;
    memset(&spec, 0, sizeof(spec));
    spec.bits = 4;
    spec.group_size = 128;
    spec.fit = AQ_FIT_LEAST_SQUARES;
    spec.params = AQ_PARAM_F32;
    for (unsigned i = 0; i < 1200; i++) weights[i] = (float)(test_random(&state) % 1000) - 500.0f;
    requests = 0;
    CHECK_STATUS(aq_quantize(NULL, &spec, weights, AQ_DTYPE_F32, 4, 300, NULL, codes, params, NULL,
                             &quality, NULL), AQ_OK);
    CHECK_STATUS(aq_dequantize(NULL, &spec, codes, params, NULL, 4, 300, AQ_DTYPE_F32, plain, NULL),
                 AQ_OK);
    CHECK_STATUS(aq_config_apply_env(&config, NULL), AQ_OK);
    CHECK(config.bit_width == 8);
    CHECK_STATUS(aq_config_validate(&config, NULL), AQ_OK);
    CHECK(requests == 0);
}

int main(int count, char **words) {
    if (count != 3) return 2;
    model = words[1];
    output = words[2];
    RUN(functions);
    RUN(nothing_allocated);
    printf("%lu faults of malloc, %lu blocks leaked\n", faults_total, blocks);
    return test_end();
}
