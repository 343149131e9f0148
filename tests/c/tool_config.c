/* Configurations for tests that compare them with PyYAML, and the maker of docs/CONFIG.md.
 *   tool_config yaml               reads YAML on stdin
 *   tool_config load PATH          reads a file
 *   tool_config env                the local profile with the environment applied
 *   tool_config set [NAME VALUE]…  the local profile with fields set
 *   tool_config random SEED COUNT  random configs, each saved, loaded again and compared
 *   tool_config template PROFILE   a profile as YAML
 *   tool_config docs               docs/CONFIG.md
 * Configs are printed as a line of JSON: {"values": {path: value}, "explicit": [paths]}, with
 * "yaml" after `random`; errors as {"status": name, "error": message}. */
#include "test.h"

static void print_string(const char *text) {
    for (printf("\""); *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 0x20 || c == '"' || c == '\\')
            printf("\\u%04x", (unsigned)c);
        else
            putchar(c);
    }
    printf("\"");
}

static void print_number(double number) {
    if (number != number)
        printf("null");
    else
        printf("%.17g", number);
}

static void print_list(const aq_config *config, aq_field_id id) {
    const void *member = aq_field_of_const(config, id);
    bool bits = aq_field_at(id)->kind == AQ_KIND_BITS_LIST;
    size_t i, count = aq_field_count(config, id);
    printf(bits ? "{" : "[");
    for (i = 0; i < count; i++) {
        if (i != 0) printf(", ");
        if (bits) {
            print_string((*(const aq_layer_bits *const *)member)[i].pattern);
            printf(": %u", (unsigned)(*(const aq_layer_bits *const *)member)[i].bits);
        } else {
            print_string((*(const char *const *const *)member)[i]);
        }
    }
    printf(bits ? "}" : "]");
}

static void print_value(const aq_config *config, aq_field_id id) {
    aq_field_kind kind = aq_field_at(id)->kind;
    double number = aq_field_number(config, id);
    if (kind == AQ_KIND_BOOL)
        printf(number != 0.0 ? "true" : "false");
    else if (kind == AQ_KIND_NAME && *(const char *const *)aq_field_of_const(config, id))
        print_string(*(const char *const *)aq_field_of_const(config, id));
    else if (kind == AQ_KIND_NAME)
        printf("null");
    else if (aq_field_is_text(kind))
        print_list(config, id);
    else if (aq_field_value_name(kind, 0))
        print_string(aq_field_value_name(kind, (unsigned)number));
    else
        print_number(number);
}

static void print_config(const aq_config *config, const char *yaml) {
    unsigned i, shown = 0;
    printf("{\"values\": {");
    for (i = 0; i < AQ_FIELD_COUNT; i++) {
        printf("%s\"%s\": ", i != 0 ? ", " : "", aq_field_at((aq_field_id)i)->path);
        print_value(config, (aq_field_id)i);
    }
    printf("}, \"explicit\": [");
    for (i = 0; i < AQ_FIELD_COUNT; i++)
        if (config->explicit_fields >> i & 1u)
            printf("%s\"%s\"", shown++ != 0 ? ", " : "", aq_field_at((aq_field_id)i)->path);
    printf("]");
    if (yaml) {
        printf(", \"yaml\": ");
        print_string(yaml);
    }
    printf("}\n");
}

static int print_result(aq_status status, aq_config *config, const aq_error *err) {
    if (status == AQ_OK) {
        print_config(config, NULL);
        aq_config_free(config);
        return 0;
    }
    printf("{\"status\": \"%s\", \"error\": ", aq_status_name(status));
    print_string(err->message);
    printf("}\n");
    return 0;
}

/* ----------------------------------------------------------------- random */

static const char *const words[] = {
    "a", "unet", "yes", "No", "null", "~", "1", "1.5", "0x1", "1e3", "2024-01-31", "<<", "=", "-",
    "- a", "a: b", "a #b", "#a", " a", "a ", "it's", "\"q\"", "back\\slash", "tab\there", "a\nb",
    "\xC3\xA9", "\xF0\x9F\x98\x80", "\xC2\x85", "\xE2\x80\xA8", "\xEF\xBB\xBF", "\x07", "\x7F",
    "blocks.*.attn", "[a-z]*", "{a}", "&a", "*", "!a", "|", ">", "%a", "@a", "`a", "?", ":", ",",
    "---", "...", "transformer.blocks.0.attn.to_q.weight", "true", "on", ".inf", ".nan", "a,b",
    "\xEF\xBF\xBE", "_x/y-z.w"};
#define WORDS (sizeof words / sizeof words[0])

static uint64_t below(uint64_t *state, uint64_t count) { return test_random(state) % count; }

static void randomize_number(aq_config *config, aq_field_id id, uint64_t *state) {
    const aq_field *field = aq_field_at(id);
    double number;
    switch (field->kind) {
    case AQ_KIND_BITS:
    case AQ_KIND_STATES:
        number = field->low;
        while (number < field->high && below(state, 2)) number *= field->kind == AQ_KIND_BITS ? 2 : 4;
        break;
    case AQ_KIND_FLOAT_OR_NONE:
    case AQ_KIND_FLOAT:
        number = field->low + (field->high - field->low) * test_uniform(state);
        if (below(state, 4) == 0) number = field->low + (number - field->low) * 1e-9;
        if (below(state, 8) == 0) number = field->high;
        if (below(state, 8) == 0 && field->kind == AQ_KIND_FLOAT_OR_NONE) number = (double)NAN;
        break;
    default:
        number = field->low + (double)below(state, (uint64_t)(field->high - field->low) + 1);
        break;
    }
    aq_field_put_number(config, id, number);
}

/* Lists of up to 4 words; patterns all differ. */
static void randomize_lists(aq_config *config, const char *lists[3][4], aq_layer_bits layers[4],
                            uint64_t *state) {
    static const char *const folders[] = {"unet", "transformer", "a b", "vae:", "\xC3\xA9", "1"};
    static const char *const variants[] = {"fp16", "1", "no", "ema", "1.5", "a-b_c", "1e3", "null"};
    size_t i, count, first = (size_t)below(state, WORDS);
    for (i = 0; i < 4; i++) {
        lists[0][i] = folders[below(state, 6)];
        lists[1][i] = words[below(state, WORDS)];
        lists[2][i] = words[below(state, WORDS)];
        layers[i].pattern = words[(first + i) % WORDS];
        layers[i].bits = 2u << below(state, 4);
    }
    config->calibration = lists[1];
    config->calibration_count = (size_t)below(state, 5);
    config->components = lists[0];
    config->sensitive_layers = lists[1];
    config->sensitive_patterns = lists[2];
    config->layer_bits = layers;
    config->component_count = (size_t)below(state, 5);
    config->sensitive_layer_count = (size_t)below(state, 5);
    config->sensitive_pattern_count = (size_t)below(state, 5);
    count = (size_t)below(state, 5);
    config->layer_bits_count = count;
    if (below(state, 2)) config->variant = variants[below(state, 8)];
    if (below(state, 2)) config->gguf_architecture = variants[below(state, 8)];
}

static int random_configs(uint64_t seed, unsigned long count) {
    uint64_t state = seed;
    for (; count != 0; count--) {
        const char *lists[3][4];
        aq_layer_bits layers[4];
        aq_config config = aq_config_from_profile((aq_profile)below(&state, 3)), loaded;
        aq_error err;
        char *text;
        size_t size;
        unsigned i;
        for (i = 1; i < AQ_FIELD_COUNT; i++) {
            if (!aq_field_is_text(aq_field_at((aq_field_id)i)->kind) && below(&state, 2))
                randomize_number(&config, (aq_field_id)i, &state);
            if (below(&state, 4) == 0) config.explicit_fields |= UINT64_C(1) << i;
        }
        if (below(&state, 2)) randomize_lists(&config, lists, layers, &state);
        if (aq_config_to_yaml(NULL, &config, &text, &size, &err) != AQ_OK ||
            aq_config_from_yaml(NULL, text, size, "saved", &loaded, &err) != AQ_OK) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
        for (i = 1; i < AQ_FIELD_COUNT; i++) {
            bool set = (loaded.explicit_fields >> i & 1u) != 0;
            if (set != aq_config_is_explicit(&config, (aq_field_id)i)) {
                fprintf(stderr, "%s: explicit is not as it was\n",
                        aq_field_at((aq_field_id)i)->path);
                return 1;
            }
        }
        if (!aq_config_equal(&config, &loaded) || strlen(text) != size) {
            fprintf(stderr, "not equal after loading:\n%s\n", text);
            return 1;
        }
        print_config(&loaded, text);
        aq_config_free(&loaded);
        aq_text_free(NULL, text, size);
    }
    return 0;
}

/* ------------------------------------------------------------------- docs */

static void print_cell(const char *text) {
    for (; *text; text++) {
        if (*text == '|') putchar('\\');
        putchar(*text);
    }
}

static const char *kind_name(aq_field_kind kind) {
    switch (kind) {
    case AQ_KIND_BOOL: return "boolean";
    case AQ_KIND_INT:
    case AQ_KIND_BITS:
    case AQ_KIND_STATES:
    case AQ_KIND_SIZE: return "integer";
    case AQ_KIND_FLOAT:
    case AQ_KIND_FLOAT_OR_NONE: return "number";
    case AQ_KIND_PROFILE:
    case AQ_KIND_MODALITY:
    case AQ_KIND_INTERPOLATION:
    case AQ_KIND_METHOD:
    case AQ_KIND_OUTPUT_FORMAT:
    case AQ_KIND_FIT:
    case AQ_KIND_TIME_CUT:
    case AQ_KIND_RANGE:
    case AQ_KIND_GGUF_TYPE: return "choice";
    case AQ_KIND_NAME: return "text";
    case AQ_KIND_BITS_LIST: return "map";
    default: return "list";
    }
}

static void print_default(aq_field_id id, int profile) {
    aq_config config = aq_config_from_profile((aq_profile)profile);
    aq_field_kind kind = aq_field_at(id)->kind;
    char text[AQ_DOUBLE_TEXT];
    double number = aq_field_number(&config, id);
    if (kind == AQ_KIND_BOOL)
        printf(number != 0.0 ? "true" : "false");
    else if (aq_field_value_name(kind, 0))
        printf("%s", aq_field_value_name(kind, (unsigned)number));
    else if (aq_field_is_text(kind) || number != number)
        printf("none");
    else if (kind == AQ_KIND_FLOAT) {
        (void)aq_format_double(number, text);
        printf("%s", text);
    } else
        printf("%.0f", number);
}

static void print_docs(void) {
    char range[AQ_RANGE_TEXT];
    unsigned i;
    int profile;
    printf("# Configuration\n\n"
           "Every field, from the table in `src/config/fields.h`. The profile gives the defaults; "
           "a file, the environment\nand the program override them, in this order as the `aq` "
           "tool applies them. `aq config` prints a commented\nfile; "
           "[examples/config.example.yaml](../examples/config.example.yaml) is one that sets "
           "everything.\n\n"
           "| Field | Type | Values | edge | local | cloud | Environment | Meaning |\n"
           "|---|---|---|---|---|---|---|---|\n");
    for (i = 0; i < AQ_FIELD_COUNT; i++) {
        const aq_field *field = aq_field_at((aq_field_id)i);
        printf("| `%s` | %s | ", field->path, kind_name(field->kind));
        print_cell(aq_field_range((aq_field_id)i, range));
        for (profile = 0; profile < 3; profile++) {
            printf(" | ");
            print_default((aq_field_id)i, profile);
        }
        printf(field->environment[0] ? " | `%s` | " : " | %s | ", field->environment);
        print_cell(field->doc);
        printf(" |\n");
    }
    printf("\nA dot in a name is a level of the YAML file:\n\n"
           "```yaml\n"
           "deployment_profile: edge\n"
           "group_size: 128\n"
           "layer_bits:\n"
           "  \"*.proj_out.weight\": 8   # the first pattern that matches a tensor's name wins\n"
           "  \"blocks.0.*\": 16         # 16 keeps the layer as it is\n"
           "thermodynamic:\n"
           "  validation:\n"
           "    smoothness_threshold: 0.2\n"
           "```\n\n"
           "The file is YAML as PyYAML's `safe_load` reads it (`yes` and `on` are booleans, `1e-3` "
           "is text and `1.0e-3` a\nnumber), without anchors, aliases, tags, merge keys, complex "
           "keys, timestamps, texts over several lines and\nsecond documents. An unknown field, a "
           "duplicate one, a value of another type or out of its range is an error\nthat names "
           "line and column. `deployment_profile` applies first, wherever it stands. In the "
           "environment a value is\nwritten as in the file. MB is 10^6 bytes.\n");
}

/* ------------------------------------------------------------------- main */

static char input[1 << 20];

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    aq_config config = aq_config_from_profile(AQ_PROFILE_LOCAL);
    aq_status status = AQ_OK;
    aq_error err;
    int i;
    memset(&err, 0, sizeof err);
    if (strcmp(mode, "docs") == 0) {
        print_docs();
        return 0;
    }
    if (strcmp(mode, "random") == 0 && argc == 4)
        return random_configs((uint64_t)strtoul(argv[2], NULL, 10), strtoul(argv[3], NULL, 10));
    if (strcmp(mode, "template") == 0 && argc == 3) {
        aq_profile profile;
        char *text = NULL;
        size_t size = 0;
        if (aq_profile_from_name(argv[2], &profile, &err) != AQ_OK) return 2;
        config = aq_config_from_profile(profile);
        if (aq_config_to_yaml(NULL, &config, &text, &size, &err) != AQ_OK) return 1;
        fwrite(text, 1, size, stdout);
        aq_text_free(NULL, text, size);
        return 0;
    }
    if (strcmp(mode, "yaml") == 0) {
        size_t size = fread(input, 1, sizeof input, stdin);
        return print_result(aq_config_from_yaml(NULL, input, size, "stdin", &config, &err),
                            &config, &err);
    }
#ifndef ARROWQUANT_NO_STDIO
    if (strcmp(mode, "load") == 0 && argc == 3)
        return print_result(aq_config_load_yaml(NULL, argv[2], &config, &err), &config, &err);
#endif
    if (strcmp(mode, "env") == 0)
        return print_result(aq_config_apply_env(&config, &err), &config, &err);
    if (strcmp(mode, "set") == 0) {
        for (i = 2; i + 1 < argc && status == AQ_OK; i += 2)
            status = aq_config_set(&config, argv[i], argv[i + 1], &err);
        i = print_result(status, &config, &err);
        aq_config_free(&config);
        return i;
    }
    fprintf(stderr, "see the top of tool_config.c\n");
    return 2;
}
