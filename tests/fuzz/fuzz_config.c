/* Configurations: an input whose first byte is the number of a field is a value for it, anything else
 * is YAML. What is accepted is valid or says why not, in which case it is not written; what is written and read
 * again is the same.
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_config.c \
 *         $(find src -name '*.c') -o build/fuzz/config -lm -lpthread */
#include "fuzz.h"

static void again(aq_context *context, const aq_config *config) {
    aq_config second;
    aq_error err;
    char *text = NULL;
    size_t size = 0;
    /* Values that their fields take may not go together: 3 bits need a method that has them. */
    aq_status valid = aq_config_validate(config, &err);
    FUZZ_CHECK(aq_config_to_yaml(context, config, &text, &size, &err) == valid);
    if (valid != AQ_OK) {
        FUZZ_CHECK(err.message[0] && !text);
        return;
    }
    FUZZ_CHECK(aq_config_from_yaml(context, text, size, "again", &second, &err) == AQ_OK);
    FUZZ_CHECK(aq_config_equal(config, &second));
    aq_config_free(&second);
    aq_text_free(context, text, size);
}

static void set(const uint8_t *data, size_t size) {
    aq_config config = aq_config_from_profile(AQ_PROFILE_EDGE);
    aq_error err;
    char value[257];
    const aq_field *field = aq_field_at((aq_field_id)data[0]);
    size_t length = size - 1 < 256 ? size - 1 : 256;
    memcpy(value, data + 1, length);
    value[length] = 0;
    if (aq_config_set(&config, field->path, value, &err) == AQ_OK) again(NULL, &config);
    else FUZZ_CHECK(err.message[0]);
    aq_config_free(&config);
}

static void read_yaml(const char *text, size_t size) {
    aq_context context;
    fuzz_memory memory;
    aq_error err;
    aq_config config;
    fuzz_context(&context, &memory);
    aq_status status = aq_config_from_yaml(&context, text, size, "fuzz.yaml", &config, &err);
    fuzz_check_error(status, &err, "fuzz.yaml");
    if (status == AQ_OK) {
        again(&context, &config);
        aq_config_free(&config);
    }
    FUZZ_CHECK(memory.now == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size && data[0] < AQ_FIELD_COUNT) set(data, size);
    else read_yaml((const char *)data, size);
    return 0;
}
