/* aq: the command-line tool of ArrowQuant, written over nothing but the public API.
 * Build: cc -O2 examples/aq.c -o aq -lpthread -lm */
#if !defined(_WIN32) && !defined(_DEFAULT_SOURCE)
#  define _DEFAULT_SOURCE
#endif
#define ARROWQUANT_IMPLEMENTATION
#include "../arrowquant.h"

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#  include <io.h>
#else
#  include <sys/ioctl.h>
#  include <unistd.h>
#endif

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_SIGNAL = 128 };

/* ================================================================ commands and their flags */

enum {
    QUANTIZE = 1 << 0,
    VALIDATE = 1 << 1,
    INSPECT = 1 << 2,
    DEQUANTIZE = 1 << 3,
    CONFIG = 1 << 4,
    DIFF = 1 << 5,
    HELP = 1 << 6,
    CONVERT = 1 << 7,
    MARKOV = 1 << 8,
    EXPORT_C = 1 << 9,
    CONFIGURED = QUANTIZE | CONFIG,
    READING = VALIDATE | INSPECT | DEQUANTIZE | DIFF | CONVERT | MARKOV,
    EVERY = CONFIGURED | READING
};

typedef enum flag_id {
    FLAG_FIELD, /* sets a field of the config: to its value, or to `constant` */
    FLAG_PROFILE,
    FLAG_CONFIG,
    FLAG_SET,
    FLAG_COMPONENTS,
    FLAG_CALIBRATION,
    FLAG_LAYER_BITS,
    FLAG_KEEP,
    FLAG_GATE, /* a field, and tells validate to use the gates given */
    FLAG_DTYPE,
    FLAG_ONLY,
    FLAG_PREFIX,
    FLAG_DRY_RUN,
    FLAG_LAYERS,
    FLAG_VERIFY,
    FLAG_CPU,
    FLAG_THRESHOLD,
    FLAG_JSON,
    FLAG_TSV,
    FLAG_QUIET,
    FLAG_ISA,
    FLAG_HELP
} flag_id;

typedef struct flag {
    const char *name;
    const char *value; /* what the help calls it; NULL: a switch */
    int commands;
    flag_id id;
    const char *field, *constant;
    const char *help;
} flag;

static const flag FLAGS[] = {
    { "--profile", "NAME", CONFIGURED, FLAG_PROFILE, NULL, NULL,
      "edge (INT2), local (INT4, the default) or cloud (INT8)" },
    { "--config", "FILE", CONFIGURED, FLAG_CONFIG, NULL, NULL, "read a YAML config" },
    { "--bits", "N", CONFIGURED, FLAG_FIELD, "bit_width", NULL, "bits a weight: 2, 4 or 8; 3 with --method trellis" },
    { "--group-size", "N", CONFIGURED, FLAG_FIELD, "group_size", NULL,
      "weights that share a scale: 32, 64, 128 or 256" },
    { "--format", "NAME", CONFIGURED | CONVERT, FLAG_FIELD, "format", NULL,
      "native (the default), gguf, compressed-tensors or arrow" },
    { "--method", "NAME", CONFIGURED, FLAG_FIELD, "method", NULL,
      "auto (the default), ptq, r2q, gptq or trellis: how codes are chosen" },
    { "--trellis-states", "N", CONFIGURED, FLAG_FIELD, "trellis_states", NULL,
      "states of a trellis: 256, 1024 (the default; edge: 256) or 4096" },
    { "--target-bits", "N", CONFIGURED, FLAG_FIELD, "target_bits", NULL,
      "choose bits by layer: so many stored bits a weight on average" },
    { "--target-size-mb", "N", CONFIGURED, FLAG_FIELD, "target_model_size_mb", NULL,
      "choose bits by layer: an output of at most so many MB" },
    { "--gguf-type", "NAME", CONFIGURED, FLAG_FIELD, "gguf_type", NULL,
      "Q8_0, Q4_0, Q4_1, Q4_K, Q2_K, F16, BF16 or F32" },
    { "--symmetric", NULL, CONFIGURED, FLAG_FIELD, "symmetric", "true",
      "a scale and no minimum for each group" },
    { "--fast", NULL, CONFIGURED, FLAG_FIELD, "fit", "fast",
      "scales from each group's range, no least-squares search" },
    { "--parameter-bits", "N", CONFIGURED, FLAG_FIELD, "parameter_bits", NULL,
      "bits of a scale or minimum: 16 or 8" },
    { "--min-accuracy", "X", CONFIGURED | VALIDATE, FLAG_GATE, "min_accuracy", NULL,
      "least cosine similarity of a layer, 0 to 1" },
    { "--min-sqnr-db", "X", CONFIGURED | VALIDATE, FLAG_GATE, "min_sqnr_db", NULL,
      "least SQNR of a layer in dB" },
    { "--fail-fast", NULL, CONFIGURED, FLAG_FIELD, "fail_fast", "true",
      "a layer below a gate is an error, not given more bits" },
    { "--quantize-sensitive", NULL, CONFIGURED, FLAG_FIELD, "skip_sensitive_layers", "false",
      "quantize embeddings, norms, first and last layers too" },
    { "--layer-bits", "PATTERN=BITS", CONFIGURED, FLAG_LAYER_BITS, NULL, NULL,
      "bits of matching layers: 2, 3, 4, 8 or 16; repeatable" },
    { "--keep", "NAME|PATTERN", CONFIGURED, FLAG_KEEP, NULL, NULL,
      "leave a layer, or what matches a glob, as it is; repeatable" },
    { "--components", "A,B", CONFIGURED, FLAG_COMPONENTS, NULL, NULL,
      "folders of a pipeline to quantize, not the denoiser" },
    { "--variant", "NAME", CONFIGURED, FLAG_FIELD, "variant", NULL,
      "read the files of a variant: fp16" },
    { "--calibration", "FILE", CONFIGURED | INSPECT, FLAG_CALIBRATION, NULL, NULL,
      "activation statistics of a real run; repeatable" },
    { "--time-groups", "N", CONFIGURED, FLAG_FIELD, "num_time_groups", NULL,
      "groups of timesteps with activation scales of their own" },
    { "--time-cut", "NAME", CONFIGURED, FLAG_FIELD, "time_cut", NULL,
      "uniform (the default), or optimal for the error" },
    { "--threshold", "X", MARKOV, FLAG_THRESHOLD, NULL, NULL,
      "relative jump of a scale that is a violation; 0.3" },
    { "--modality", "NAME", CONFIGURED, FLAG_FIELD, "modality", NULL,
      "text, code, image or audio, when it is not detected" },
    { "--set", "FIELD=VALUE", CONFIGURED, FLAG_SET, NULL, NULL,
      "set any field that `aq config` shows; repeatable" },
    { "--max-memory", "MB", CONFIGURED, FLAG_FIELD, "max_memory_limit_mb", NULL,
      "stay below this much memory" },
    { "--streaming", NULL, CONFIGURED, FLAG_FIELD, "enable_streaming", "true",
      "smaller blocks in memory, the same result" },
    { "--threads", "N", EVERY, FLAG_FIELD, "num_threads", NULL, "threads; 0 is all cores" },
    { "--isa", "NAME", EVERY, FLAG_ISA, NULL, NULL,
      "instructions to use: auto, scalar, avx2, avx512 or neon" },
    { "--dtype", "NAME", DEQUANTIZE, FLAG_DTYPE, NULL, NULL, "f32 (the default), f16 or bf16" },
    { "--only", "PATTERN", EXPORT_C, FLAG_ONLY, NULL, NULL,
      "export layers whose weight's name matches a glob (* and ?); repeatable" },
    { "--prefix", "NAME", EXPORT_C, FLAG_PREFIX, NULL, NULL,
      "what the names in the header begin with; default: model" },
    { "--overwrite", NULL, CONFIGURED | DEQUANTIZE | CONVERT | EXPORT_C, FLAG_FIELD,
      "overwrite", "true",
      "replace an existing output when the new one is complete" },
    { "--resume", NULL, CONFIGURED, FLAG_FIELD, "resume", "true",
      "take up what an interrupted run to the same OUT finished" },
    { "--dry-run", NULL, QUANTIZE, FLAG_DRY_RUN, NULL, NULL,
      "show the plan and the predicted size, write nothing" },
    { "--verify", NULL, INSPECT, FLAG_VERIFY, NULL, NULL, "compare the data with its checksums" },
    { "--cpu", NULL, INSPECT, FLAG_CPU, NULL, NULL, "show the instruction sets usable here" },
    { "--layers", NULL, QUANTIZE | VALIDATE, FLAG_LAYERS, NULL, NULL, "list every layer" },
    { "--json", NULL, READING | QUANTIZE, FLAG_JSON, NULL, NULL, "print one JSON object" },
    { "--tsv", NULL, QUANTIZE | VALIDATE | INSPECT | DIFF | MARKOV, FLAG_TSV, NULL, NULL,
      "print a line of names and lines of tab-separated values" },
    { "--quiet", NULL, READING | QUANTIZE | EXPORT_C, FLAG_QUIET, NULL, NULL,
      "no progress and no summary; errors only" },
    { "--help", NULL, EVERY | HELP | EXPORT_C, FLAG_HELP, NULL, NULL, "show this help" },
};
static const size_t FLAG_COUNT = sizeof FLAGS / sizeof FLAGS[0];

typedef struct tool tool;

typedef struct command {
    const char *name;
    int bit;
    const char *arguments;
    size_t min_paths, max_paths;
    const char *summary;
    const char *details;
    int (*run)(tool *);
} command;

static int run_quantize(tool *t);
static int run_validate(tool *t);
static int run_inspect(tool *t);
static int run_dequantize(tool *t);
static int run_convert(tool *t);
static int run_export_c(tool *t);
static int run_config(tool *t);
static int run_diff(tool *t);
static int run_markov(tool *t);
static int run_help(tool *t);

#define PRECEDENCE                                                                                 \
    "The profile gives the defaults; a config file overrides them, environment variables\n"        \
    "(ARROW_QUANT_BIT_WIDTH and its kin) override the file, and flags override everything.\n"

static const command COMMANDS[] = {
    { "quantize", QUANTIZE, "MODEL OUT", 1, 2, "quantize a model",
      "MODEL is a folder (Hugging Face or diffusers), a .safetensors file or a\n"
      ".safetensors.index.json. OUT appears only when it is complete; MODEL is never touched.\n"
      "OUT may be left out with --dry-run.\n\n" PRECEDENCE,
      run_quantize },
    { "validate", VALIDATE, "ORIGINAL QUANTIZED", 2, 2,
      "compare a quantized model with its original",
      "Every quantized layer must reach the gates the model was quantized with, or those given\n"
      "here instead. Exit status 1 when one does not.\n",
      run_validate },
    { "inspect", INSPECT, "PATH", 0, 1, "list the tensors of a model",
      "PATH is a quantized or a plain model; it may be left out with --cpu, and with\n"
      "--calibration, which lists the layers of statistics files.\n", run_inspect },
    { "dequantize", DEQUANTIZE, "QUANTIZED OUT", 2, 2,
      "write a quantized model as plain safetensors",
      "OUT has the original tensor names and loads in any tool.\n", run_dequantize },
    { "convert", CONVERT, "QUANTIZED OUT", 2, 2, "write a quantized model in another format",
      "Only where no number has to be rounded; the message names the layer where one would.\n"
      "Native and compressed-tensors become each other, any model a table (--format arrow).\n",
      run_convert },
    { "export-c", EXPORT_C, "MODEL OUT.h", 2, 2,
      "write a model as const arrays in a C header",
      "Each matrix, quantized or not, becomes an aq_linear with its bias, for aq_linear_forward on\n"
      "a machine without files. Include the header after arrowquant.h.\n",
      run_export_c },
    { "config", CONFIG, "", 0, 0, "print the effective config as YAML",
      "The output is a complete, commented config for --config.\n\n" PRECEDENCE, run_config },
    { "diff", DIFF, "A B", 2, 2, "compare two models tensor by tensor",
      "A and B may each be quantized or not. SQNR is that of B against A.\n", run_diff },
    { "markov", MARKOV, "QUANTIZED", 1, 1, "show how activation scales jump between time groups",
      "For each layer that has time groups: smoothness (1: no jumps) and violations.\n", run_markov },
    { "help", HELP, "[COMMAND]", 0, 1, "show the flags of a command", "", run_help },
};
static const size_t COMMAND_COUNT = sizeof COMMANDS / sizeof COMMANDS[0];

/* ================================================================ state of a run */

typedef struct given {
    const flag *which;
    const char *value; /* NULL for a switch */
} given;

typedef struct meter {
    bool enabled, bar;
    int phase;         /* of the last line; -1: none yet */
    double last_fraction, last_time;
    size_t drawn;      /* characters on the bar's line */
} meter;

struct tool {
    const command *chosen;
    const char *paths[2];
    size_t path_count;
    given *flags;
    size_t flag_count;
    aq_context *context;
    aq_config config;
    aq_layer_bits *layer_bits; /* storage of the config's lists */
    const char **layers, **patterns, **calibration;
    char **texts;
    size_t text_count;
    meter progress;
};

static const given *find_flag(const tool *t, flag_id id) {
    size_t i = t->flag_count;
    while (i > 0)
        if (t->flags[--i].which->id == id) return &t->flags[i];
    return NULL;
}

static bool has(const tool *t, flag_id id) {
    return find_flag(t, id) != NULL;
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (!memory) {
        fputs("aq: out of memory\n", stderr);
        exit(EXIT_FAILED);
    }
    return memory;
}

static char *copy_text(const char *text, size_t size) {
    char *copy = (char *)allocate(size + 1, 1);
    memcpy(copy, text, size);
    return copy;
}

/* ================================================================ messages */

/* Names come from files: nothing in them may steer a terminal. */
static void put_clean(FILE *stream, const char *text) {
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        fputc(c < 32 || c == 127 ? '?' : c, stream);
    }
}

static int report(const aq_error *err, const char *prefix) {
    const char *hint = aq_status_hint(err->status);
    if (err->status == AQ_ERR_EXISTS) hint = "choose another path, or give --overwrite";
    fputs("aq: ", stderr);
    if (prefix) fprintf(stderr, "%s: ", prefix);
    put_clean(stderr, err->message);
    fputc('\n', stderr);
    if (hint && *hint) fprintf(stderr, "hint: %s\n", hint);
    return EXIT_FAILED;
}

#if defined(__GNUC__) || defined(__clang__)
__attribute__((format(printf, 2, 3)))
#endif
static int usage_error(const char *hint, const char *format, ...) {
    va_list arguments;
    fputs("aq: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\nhint: %s\n", hint);
    return EXIT_USAGE;
}

static size_t smallest(size_t a, size_t b, size_t c) {
    size_t least = a < b ? a : b;
    return least < c ? least : c;
}

/* Edits that turn a into b; names longer than 63 characters are far from everything. */
static size_t distance(const char *a, const char *b) {
    size_t row[64], i, j, n = strlen(a), m = strlen(b);
    if (n > 63 || m > 63) return 64;
    for (j = 0; j <= m; j++) row[j] = j;
    for (i = 1; i <= n; i++) {
        size_t corner = row[0];
        row[0] = i;
        for (j = 1; j <= m; j++) {
            size_t above = row[j];
            row[j] = smallest(above + 1, row[j - 1] + 1, corner + (a[i - 1] != b[j - 1] ? 1u : 0u));
            corner = above;
        }
    }
    return row[m];
}

static const char *nearest_flag(const char *name, int commands) {
    const char *best = NULL;
    size_t i, least = 64;
    for (i = 0; i < FLAG_COUNT; i++) {
        size_t d = distance(name, FLAGS[i].name);
        /* "--group" means "--group-size" */
        if (strlen(name) > 3 && strncmp(name, FLAGS[i].name, strlen(name)) == 0) d = 1;
        if ((FLAGS[i].commands & commands) && d < least) {
            least = d;
            best = FLAGS[i].name;
        }
    }
    return least <= 3 ? best : NULL;
}

static const command *nearest_command(const char *name) {
    const command *best = NULL;
    size_t i, least = 64;
    for (i = 0; i < COMMAND_COUNT; i++) {
        size_t d = distance(name, COMMANDS[i].name);
        if (d < least) {
            least = d;
            best = &COMMANDS[i];
        }
    }
    return least <= 3 ? best : NULL;
}

/* ================================================================ help */

static void print_overview(FILE *stream) {
    size_t i;
    fprintf(stream, "aq %s: quantizes diffusion models to 2, 4 or 8 bits and proves the quality\n\n"
                    "usage: aq COMMAND ...\n\n", aq_version());
    for (i = 0; i < COMMAND_COUNT; i++) {
        char left[64];
        snprintf(left, sizeof left, "%s %s", COMMANDS[i].name, COMMANDS[i].arguments);
        fprintf(stream, "  %-28s %s\n", left, COMMANDS[i].summary);
    }
    fputs("  --version                    show the version\n\n"
          "`aq help COMMAND` shows the flags of a command.\n"
          "Exit status: 0 done, 1 failed, 2 wrong usage, 128 + signal when interrupted.\n", stream);
}

static void print_command_help(const command *c) {
    size_t i;
    printf("usage: aq %s %s%s\n\n%c%s.\n", c->name, c->arguments,
           c->bit == HELP ? "" : *c->arguments ? " [FLAGS]" : "[FLAGS]",
           c->summary[0] - 'a' + 'A', c->summary + 1);
    if (*c->details) printf("\n%s", c->details);
    printf("\n");
    for (i = 0; i < FLAG_COUNT; i++) {
        char left[64];
        if (!(FLAGS[i].commands & c->bit)) continue;
        snprintf(left, sizeof left, "%s%s%s", FLAGS[i].name, FLAGS[i].value ? " " : "",
                 FLAGS[i].value ? FLAGS[i].value : "");
        printf("  %-27s %s\n", left, FLAGS[i].help);
    }
}

static const command *find_command(const char *name) {
    size_t i;
    for (i = 0; i < COMMAND_COUNT; i++)
        if (strcmp(name, COMMANDS[i].name) == 0) return &COMMANDS[i];
    return NULL;
}

static int unknown_command(const char *name) {
    const command *near_by = nearest_command(name);
    char hint[96];
    if (near_by)
        snprintf(hint, sizeof hint, "did you mean `aq %s`?", near_by->name);
    else
        snprintf(hint, sizeof hint, "`aq help` lists the commands");
    return usage_error(hint, "unknown command: %s", name);
}

static int run_help(tool *t) {
    const command *c;
    if (has(t, FLAG_HELP)) {
        print_command_help(t->chosen);
        return EXIT_OK;
    }
    if (t->path_count == 0) {
        print_overview(stdout);
        return EXIT_OK;
    }
    c = find_command(t->paths[0]);
    if (!c) return unknown_command(t->paths[0]);
    print_command_help(c);
    return EXIT_OK;
}

/* ================================================================ arguments */

static int unknown_flag(const tool *t, const char *name) {
    const char *near_by = nearest_flag(name, t->chosen->bit);
    char hint[160];
    if (near_by)
        snprintf(hint, sizeof hint, "did you mean %s?", near_by);
    else
        snprintf(hint, sizeof hint, "`aq help %s` lists its flags", t->chosen->name);
    return usage_error(hint, "unknown flag for %s: %s", t->chosen->name, name);
}

static const flag *lookup_flag(const char *name, size_t size, int commands) {
    size_t i;
    for (i = 0; i < FLAG_COUNT; i++)
        if ((FLAGS[i].commands & commands) && strlen(FLAGS[i].name) == size &&
            memcmp(FLAGS[i].name, name, size) == 0)
            return &FLAGS[i];
    return NULL;
}

/* One flag at argv[*i], as `--name value` or `--name=value`; leaves *i at its last argument. */
static int parse_flag(tool *t, int argc, char **argv, int *i) {
    const char *text = argv[*i];
    const char *equals = strchr(text, '=');
    size_t size = equals ? (size_t)(equals - text) : strlen(text);
    char name[64];
    given *g = &t->flags[t->flag_count];
    g->which = lookup_flag(text, size, t->chosen->bit);
    g->value = NULL;
    snprintf(name, sizeof name, "%.*s", (int)(size < 63 ? size : 63), text);
    if (!g->which) return unknown_flag(t, name);
    if (!g->which->value && equals)
        return usage_error("leave out the = and what follows", "%s takes no value", name);
    if (g->which->value && equals) {
        g->value = equals + 1;
    } else if (g->which->value) {
        if (*i + 1 >= argc || strncmp(argv[*i + 1], "--", 2) == 0) {
            char hint[96];
            snprintf(hint, sizeof hint, "write %s %s", name, g->which->value);
            return usage_error(hint, "%s needs a value", name);
        }
        g->value = argv[++*i];
    }
    t->flag_count++;
    return EXIT_OK;
}

static int check_paths(const tool *t, size_t path_count) {
    const command *c = t->chosen;
    size_t least = c->min_paths;
    char hint[96];
    if (has(t, FLAG_HELP)) return EXIT_OK;
    if (c->bit == QUANTIZE && !has(t, FLAG_DRY_RUN)) least = 2;
    if (c->bit == INSPECT && !has(t, FLAG_CPU) && !has(t, FLAG_CALIBRATION)) least = 1;
    snprintf(hint, sizeof hint, "usage: aq %s %s", c->name, c->arguments);
    if (path_count < least) return usage_error(hint, "%s: too few arguments", c->name);
    if (path_count > c->max_paths)
        return usage_error(hint, "%s: too many arguments", c->name);
    if (has(t, FLAG_JSON) && has(t, FLAG_TSV))
        return usage_error("choose one of them", "--json and --tsv exclude each other");
    return EXIT_OK;
}

static int parse_arguments(tool *t, int argc, char **argv) {
    size_t path_count = 0;
    bool flags_end = false;
    int i;
    t->flags = (given *)allocate((size_t)argc, sizeof *t->flags);
    for (i = 2; i < argc; i++) {
        const char *text = strcmp(argv[i], "-h") == 0 ? "--help" : argv[i];
        if (!flags_end && strcmp(text, "--") == 0) {
            flags_end = true;
        } else if (!flags_end && text[0] == '-' && text[1] != 0) {
            int status;
            argv[i] = (char *)text;
            status = parse_flag(t, argc, argv, &i);
            if (status != EXIT_OK) return status;
        } else {
            if (path_count < 2) t->paths[path_count] = text;
            path_count++;
        }
    }
    t->path_count = path_count;
    return check_paths(t, path_count);
}

/* ================================================================ config */

static int flag_error(const aq_error *err, const given *g) {
    char prefix[160];
    snprintf(prefix, sizeof prefix, "%s%s%.80s", g->which->name, g->value ? " " : "",
             g->value ? g->value : "");
    report(err, prefix);
    return EXIT_USAGE;
}

static char *keep_text(tool *t, const char *text, size_t size) {
    char *copy = copy_text(text, size);
    t->texts[t->text_count++] = copy;
    return copy;
}

/* --set FIELD=VALUE */
static int apply_set(tool *t, const given *g) {
    const char *equals = strchr(g->value, '=');
    aq_error err;
    if (!equals || equals == g->value)
        return usage_error("for example --set calibration_samples=64",
                           "--set %s: expected FIELD=VALUE", g->value);
    if (aq_config_set(&t->config, keep_text(t, g->value, (size_t)(equals - g->value)), equals + 1,
                      &err))
        return flag_error(&err, g);
    return EXIT_OK;
}

/* --calibration stands in place of a file's list: statistics are of one model and one run. */
static void apply_calibration(tool *t) {
    size_t i, count = 0;
    t->calibration = (const char **)allocate(t->flag_count, sizeof *t->calibration);
    for (i = 0; i < t->flag_count; i++)
        if (t->flags[i].which->id == FLAG_CALIBRATION) t->calibration[count++] = t->flags[i].value;
    if (!count) return;
    t->config.calibration = t->calibration;
    t->config.calibration_count = count;
}

/* --components A,B as a YAML list */
static int apply_components(tool *t, const given *g) {
    size_t used = 0, i, size = strlen(g->value);
    char *list = (char *)allocate(4 * size + 8, 1);
    aq_status status;
    aq_error err;
    list[used++] = '[';
    list[used++] = '"';
    for (i = 0; i < size; i++) {
        char c = g->value[i];
        if (c == ',') {
            memcpy(list + used, "\", \"", 4);
            used += 4;
            continue;
        }
        if (c == '"' || c == '\\') list[used++] = '\\';
        list[used++] = c;
    }
    memcpy(list + used, "\"]", 2);
    status = aq_config_set(&t->config, "components", list, &err);
    free(list);
    return status ? flag_error(&err, g) : EXIT_OK;
}

static int parse_layer_bits(tool *t, const given *g, aq_layer_bits *out) {
    const char *equals = strrchr(g->value, '=');
    if (!equals || equals == g->value ||
        (strcmp(equals, "=2") && strcmp(equals, "=3") && strcmp(equals, "=4") &&
         strcmp(equals, "=8") && strcmp(equals, "=16")))
        return usage_error("for example --layer-bits '*.attn1.*=8'",
                           "--layer-bits %s: expected PATTERN=BITS with 2, 3, 4, 8 or 16 bits",
                           g->value);
    out->pattern = keep_text(t, g->value, (size_t)(equals - g->value));
    out->bits = (uint32_t)strtoul(equals + 1, NULL, 10);
    return EXIT_OK;
}

/* What --keep names joins sensitive_layers, or sensitive_patterns when it is a glob. */
static void apply_keep(tool *t) {
    aq_config *c = &t->config;
    size_t i, layer_count = c->sensitive_layer_count, pattern_count = c->sensitive_pattern_count;
    t->layers = (const char **)allocate(layer_count + t->flag_count, sizeof *t->layers);
    t->patterns = (const char **)allocate(pattern_count + t->flag_count, sizeof *t->patterns);
    for (i = 0; i < layer_count; i++) t->layers[i] = c->sensitive_layers[i];
    for (i = 0; i < pattern_count; i++) t->patterns[i] = c->sensitive_patterns[i];
    for (i = 0; i < t->flag_count; i++) {
        if (t->flags[i].which->id != FLAG_KEEP) continue;
        if (strpbrk(t->flags[i].value, "*?[\\"))
            t->patterns[pattern_count++] = t->flags[i].value;
        else
            t->layers[layer_count++] = t->flags[i].value;
    }
    c->sensitive_layers = t->layers;
    c->sensitive_layer_count = layer_count;
    c->sensitive_patterns = t->patterns;
    c->sensitive_pattern_count = pattern_count;
}

/* Patterns given as flags stand before those of a file: the first match wins. */
static int apply_layer_bits(tool *t) {
    aq_config *c = &t->config;
    size_t i, count = 0;
    t->layer_bits = (aq_layer_bits *)allocate(c->layer_bits_count + t->flag_count,
                                              sizeof *t->layer_bits);
    for (i = 0; i < t->flag_count; i++) {
        if (t->flags[i].which->id != FLAG_LAYER_BITS) continue;
        if (parse_layer_bits(t, &t->flags[i], &t->layer_bits[count++])) return EXIT_USAGE;
    }
    for (i = 0; i < c->layer_bits_count; i++) t->layer_bits[count++] = c->layer_bits[i];
    c->layer_bits = t->layer_bits;
    c->layer_bits_count = count;
    return EXIT_OK;
}

static int apply_flags(tool *t) {
    size_t i;
    aq_error err;
    t->texts = (char **)allocate(t->flag_count, sizeof *t->texts);
    for (i = 0; i < t->flag_count; i++) {
        const given *g = &t->flags[i];
        int status = EXIT_OK;
        if (g->which->field) {
            const char *value = g->value ? g->value : g->which->constant;
            if (aq_config_set(&t->config, g->which->field, value, &err))
                status = flag_error(&err, g);
        } else if (g->which->id == FLAG_SET) {
            status = apply_set(t, g);
        } else if (g->which->id == FLAG_COMPONENTS) {
            status = apply_components(t, g);
        }
        if (status != EXIT_OK) return status;
    }
    apply_keep(t);
    apply_calibration(t);
    return apply_layer_bits(t);
}

/* Profile, file, environment, flags: each overrides those before it. */
static int build_config(tool *t) {
    const given *profile_flag = find_flag(t, FLAG_PROFILE), *file = find_flag(t, FLAG_CONFIG);
    bool configured = (t->chosen->bit & CONFIGURED) != 0;
    aq_profile profile = AQ_PROFILE_LOCAL;
    int status;
    aq_error err;
    if (profile_flag && aq_profile_from_name(profile_flag->value, &profile, &err))
        return flag_error(&err, profile_flag);
    if (!file) {
        t->config = aq_config_from_profile(profile);
    } else {
        if (aq_config_load_yaml(t->context, file->value, &t->config, &err))
            return report(&err, NULL);
        if (profile_flag &&
            aq_config_set(&t->config, "deployment_profile", profile_flag->value, &err))
            return flag_error(&err, profile_flag);
    }
    if (configured && aq_config_apply_env(&t->config, &err)) return report(&err, NULL);
    status = apply_flags(t);
    if (status != EXIT_OK) return status;
    if (configured && aq_config_validate(&t->config, &err)) return report(&err, NULL);
    t->context->num_threads = t->config.num_threads;
    return EXIT_OK;
}

static int create_context(tool *t) {
    static const aq_isa KNOWN[] = { AQ_ISA_AUTO, AQ_ISA_SCALAR, AQ_ISA_AVX2, AQ_ISA_AVX512,
                                    AQ_ISA_NEON };
    const given *g = find_flag(t, FLAG_ISA);
    aq_isa isa = AQ_ISA_AUTO;
    aq_error err;
    if (g) {
        size_t i = 0, count = sizeof KNOWN / sizeof KNOWN[0];
        while (i < count && strcmp(g->value, aq_isa_name(KNOWN[i])) != 0) i++;
        if (i == count)
            return usage_error("use auto, scalar, avx2, avx512 or neon",
                               "--isa %s: no such instruction set", g->value);
        isa = KNOWN[i];
    }
    if (aq_context_create(isa, NULL, &t->context, &err)) return report(&err, NULL);
    return EXIT_OK;
}

/* ================================================================ progress */

static bool is_terminal(void) {
    const char *term = getenv("TERM");
    if (term && strcmp(term, "dumb") == 0) return false;
#ifdef _WIN32
    return _isatty(_fileno(stderr)) != 0;
#else
    return isatty(STDERR_FILENO) != 0;
#endif
}

static size_t terminal_width(void) {
    const char *columns = getenv("COLUMNS");
    unsigned long width = columns ? strtoul(columns, NULL, 10) : 0;
#if !defined(_WIN32) && defined(TIOCGWINSZ)
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) width = size.ws_col;
#endif
    return width >= 20 && width <= 400 ? (size_t)width : 80;
}

static void format_eta(char *text, size_t size, double seconds) {
    unsigned s;
    if (!(seconds >= 0) || seconds > 360000) {
        snprintf(text, size, "eta -");
        return;
    }
    s = (unsigned)(seconds + 0.5);
    if (s >= 3600)
        snprintf(text, size, "eta %u:%02u:%02u", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, size, "eta %u:%02u", s / 60, s % 60);
}

static double megabytes_per_second(const aq_progress *p) {
    return p->elapsed_s > 0 ? (double)p->bytes_done / p->elapsed_s / 1e6 : 0;
}

/* The end of `layer` that fits, since names differ there; UTF-8 is not cut in the middle. */
static size_t append_layer(char *line, size_t used, size_t width, const char *layer) {
    size_t size = strlen(layer), room = width > used + 2 ? width - used - 2 : 0, i;
    const char *from = layer;
    if (room < 8 || size == 0) return used;
    if (size > room) from = layer + (size - room + 2);
    while (((unsigned char)*from & 0xc0) == 0x80) from++;
    used += (size_t)sprintf(line + used, "  %s", size > room ? ".." : "");
    for (i = 0; from[i]; i++) line[used++] = (unsigned char)from[i] < 32 ? '?' : from[i];
    return used;
}

/* As much as the terminal is wide: phase and percentage always, the bar, the rate and the layer
 * where there is room. */
static void draw_bar(meter *m, const aq_progress *p) {
    char line[512], eta[32];
    size_t width = terminal_width() - 1, used, drawn, i;
    size_t cells = width >= 70 ? 24 : width >= 50 ? 10 : 0;
    used = (size_t)sprintf(line, "%-10s ", aq_phase_name(p->phase));
    if (cells > 0) line[used++] = '[';
    for (i = 0; i < cells; i++)
        line[used++] = (double)i < p->fraction * (double)cells ? '#' : '.';
    if (cells > 0) line[used++] = ']';
    used += (size_t)sprintf(line + used, " %3.0f%%", floor(p->fraction * 100));
    if (cells > 0) used += (size_t)sprintf(line + used, "  %.0f MB/s", megabytes_per_second(p));
    format_eta(eta, sizeof eta, p->eta_s);
    if (used + strlen(eta) + 2 <= width) used += (size_t)sprintf(line + used, "  %s", eta);
    used = append_layer(line, used, width, p->layer ? p->layer : "");
    drawn = used;
    while (used < m->drawn && used < width) line[used++] = ' ';
    line[used] = 0;
    fprintf(stderr, "\r%s", line);
    fflush(stderr);
    m->drawn = drawn;
}

static void print_progress_line(meter *m, const aq_progress *p) {
    bool due = (int)p->phase != m->phase || p->elapsed_s >= m->last_time + 5 ||
               (p->fraction >= 1 && m->last_fraction < 1) ||
               (p->fraction >= m->last_fraction + 0.1 && p->elapsed_s >= m->last_time + 0.5);
    char eta[32];
    if (!due) return;
    format_eta(eta, sizeof eta, p->eta_s);
    fprintf(stderr, "%s %.0f%%", aq_phase_name(p->phase), floor(p->fraction * 100));
    if (p->bytes_total > 0)
        fprintf(stderr, "  %.1f of %.1f MB  %.0f MB/s  %s", (double)p->bytes_done / 1e6,
                (double)p->bytes_total / 1e6, megabytes_per_second(p), eta);
    if (p->layer && *p->layer) {
        fputs("  ", stderr);
        put_clean(stderr, p->layer);
    }
    fputc('\n', stderr);
    fflush(stderr);
    m->phase = (int)p->phase;
    m->last_fraction = p->fraction;
    m->last_time = p->elapsed_s;
}

static int show_progress(void *user, const aq_progress *p) {
    meter *m = (meter *)user;
    if (!m->enabled) return 0;
    if (m->bar)
        draw_bar(m, p);
    else
        print_progress_line(m, p);
    return 0;
}

static void end_progress(meter *m) {
    if (m->drawn > 0) fprintf(stderr, "\r%*s\r", (int)m->drawn, "");
    fflush(stderr);
    m->drawn = 0;
}

/* ================================================================ interruption */

static aq_context *interruptible;
static volatile sig_atomic_t caught_signal;

static void on_signal(int number) {
    caught_signal = number;
    aq_context_cancel(interruptible);
}

/* The first signal asks the library to stop and clean up, a second one kills. */
static void catch_signals(aq_context *context) {
#ifdef _WIN32
    interruptible = context;
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
#else
    static const int NUMBERS[] = { SIGINT, SIGTERM, SIGHUP };
    size_t i;
    interruptible = context;
    for (i = 0; i < sizeof NUMBERS / sizeof NUMBERS[0]; i++) {
        struct sigaction action, old;
        if (sigaction(NUMBERS[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN) continue;
        memset(&action, 0, sizeof action);
        action.sa_handler = on_signal;
        action.sa_flags = SA_RESTART | (int)SA_RESETHAND;
        sigemptyset(&action.sa_mask);
        sigaction(NUMBERS[i], &action, NULL);
    }
#endif
}

static int run_error(tool *t, const aq_error *err) {
    end_progress(&t->progress);
    report(err, NULL);
    return err->status == AQ_ERR_CANCELLED && caught_signal ? EXIT_SIGNAL + (int)caught_signal
                                                            : EXIT_FAILED;
}

/* ================================================================ figures and tables */

typedef char number[48];

static const char *show_bytes(number out, uint64_t bytes) {
    double b = (double)bytes;
    if (bytes < 1000)
        snprintf(out, sizeof(number), "%u B", (unsigned)bytes);
    else if (bytes < 1000000)
        snprintf(out, sizeof(number), "%.1f kB", b / 1e3);
    else if (b < 1e9)
        snprintf(out, sizeof(number), "%.2f MB", b / 1e6);
    else
        snprintf(out, sizeof(number), "%.2f GB", b / 1e9);
    return out;
}

static const char *show_figure(number out, double value, int digits) {
    if (isnan(value))
        snprintf(out, sizeof(number), "-");
    else if (isinf(value))
        snprintf(out, sizeof(number), "inf");
    else
        snprintf(out, sizeof(number), "%.*f", digits, value);
    return out;
}

static const char *show_count(number out, uint64_t count) {
    snprintf(out, sizeof(number), "%llu", (unsigned long long)count);
    return out;
}

#define MAX_COLUMNS 12

/* Rows of text under named columns, printed aligned or as tab-separated values. */
typedef struct table {
    size_t columns, cell_count, capacity;
    const char *names[MAX_COLUMNS];
    bool right[MAX_COLUMNS];
    char **cells;
} table;

static void add_column(table *t, const char *name, bool right) {
    t->names[t->columns] = name;
    t->right[t->columns++] = right;
}

static void add_cell(table *t, const char *text) {
    if (t->cell_count == t->capacity) {
        size_t capacity = t->capacity * 2 + 64;
        char **cells = (char **)allocate(capacity, sizeof *cells);
        if (t->cells) memcpy(cells, t->cells, t->cell_count * sizeof *cells);
        free(t->cells);
        t->cells = cells;
        t->capacity = capacity;
    }
    t->cells[t->cell_count++] = copy_text(text, strlen(text));
}

static void free_table(table *t) {
    size_t i;
    for (i = 0; i < t->cell_count; i++) free(t->cells[i]);
    free(t->cells);
}

static size_t columns_of(const char *text) {
    size_t count = 0;
    for (; *text; text++) count += ((unsigned char)*text & 0xc0) != 0x80;
    return count;
}

static void print_cell(const char *text, size_t width, bool right, bool last) {
    size_t pad = width - columns_of(text);
    if (right) printf("%*s", (int)pad, "");
    put_clean(stdout, text);
    if (!right && !last) printf("%*s", (int)pad, "");
    if (!last) fputs("  ", stdout);
}

static void print_aligned(const table *t, const char *indent) {
    size_t width[MAX_COLUMNS], i, c;
    for (c = 0; c < t->columns; c++) width[c] = columns_of(t->names[c]);
    for (i = 0; i < t->cell_count; i++) {
        size_t size = columns_of(t->cells[i]);
        if (size > width[i % t->columns]) width[i % t->columns] = size;
    }
    fputs(indent, stdout);
    for (c = 0; c < t->columns; c++)
        print_cell(t->names[c], width[c], t->right[c], c + 1 == t->columns);
    for (i = 0; i < t->cell_count; i++) {
        c = i % t->columns;
        if (c == 0) printf("\n%s", indent);
        print_cell(t->cells[i], width[c], t->right[c], c + 1 == t->columns);
    }
    putchar('\n');
}

static void print_tsv(const table *t) {
    size_t i;
    for (i = 0; i < t->columns; i++) printf("%s%c", t->names[i], i + 1 < t->columns ? '\t' : '\n');
    for (i = 0; i < t->cell_count; i++) {
        put_clean(stdout, t->cells[i]);
        putchar((i + 1) % t->columns != 0 ? '\t' : '\n');
    }
}

static void print_table(const tool *t, const table *rows, const char *indent) {
    if (has(t, FLAG_TSV))
        print_tsv(rows);
    else
        print_aligned(rows, indent);
}

static int print_text(tool *t, aq_status status, char *text, size_t size, const aq_error *err) {
    if (status) return run_error(t, err);
    fwrite(text, 1, size, stdout);
    if (size == 0 || text[size - 1] != '\n') putchar('\n');
    aq_text_free(t->context, text, size);
    return EXIT_OK;
}

/* ================================================================ quantize */

/* "blocks.17.attn.weight" -> "blocks.*.attn.weight", so that the copies of a block are one line. */
static char *family_of(const char *name) {
    char *family = copy_text(name, strlen(name)), *to = family;
    while (*name) {
        if (*name >= '0' && *name <= '9' && (to == family || to[-1] == '.')) {
            const char *end = name;
            while (*end >= '0' && *end <= '9') end++;
            if (*end == '.') {
                *to++ = '*';
                name = end;
                continue;
            }
        }
        *to++ = *name++;
    }
    *to = 0;
    return family;
}

/* The tensors of a plan as they are listed: "component/name" when there are several components. */
typedef struct listing {
    const aq_plan *plan;
    char **names, **families;
} listing;

static size_t folder_size(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

static bool several_components(const aq_plan *plan) {
    size_t i;
    for (i = 1; i < plan->shard_count; i++) {
        const char *first = plan->shards[0].path, *path = plan->shards[i].path;
        if (folder_size(first) != folder_size(path) ||
            strncmp(first, path, folder_size(path)) != 0)
            return true;
    }
    return false;
}

static char *listed_name(const aq_plan *plan, const aq_plan_tensor *x, bool with_component) {
    const char *path = plan->shards[x->shard].path;
    size_t folder = with_component ? folder_size(path) : 0, size = strlen(x->name);
    char *name = (char *)allocate(folder + size + 1, 1);
    memcpy(name, path, folder);
    memcpy(name + folder, x->name, size);
    return name;
}

static void begin_listing(listing *l, const aq_plan *plan) {
    bool with_component = several_components(plan);
    size_t i;
    l->plan = plan;
    l->names = (char **)allocate(plan->tensor_count, sizeof *l->names);
    l->families = (char **)allocate(plan->tensor_count, sizeof *l->families);
    for (i = 0; i < plan->tensor_count; i++) {
        l->names[i] = listed_name(plan, &plan->tensors[i], with_component);
        l->families[i] = family_of(l->names[i]);
    }
}

static void end_listing(listing *l) {
    size_t i;
    for (i = 0; i < l->plan->tensor_count; i++) {
        free(l->names[i]);
        free(l->families[i]);
    }
    free(l->names);
    free(l->families);
}

static bool same_family(const listing *l, size_t a, size_t b) {
    const aq_plan_tensor *x = &l->plan->tensors[a], *y = &l->plan->tensors[b];
    return x->reason == y->reason && x->bits == y->bits &&
           strcmp(l->families[a], l->families[b]) == 0 && strcmp(x->detail, y->detail) == 0;
}

/* One line for tensor i and those after it that differ in the numbers of their blocks only. */
static void print_family(const listing *l, size_t i) {
    const aq_plan_tensor *x = &l->plan->tensors[i];
    size_t k, count = 0;
    for (k = 0; k < i; k++)
        if (same_family(l, i, k)) return;
    for (k = i; k < l->plan->tensor_count; k++) count += same_family(l, i, k);
    fputs("    ", stdout);
    put_clean(stdout, count > 1 ? l->families[i] : l->names[i]);
    if (count > 1) printf("  x %llu", (unsigned long long)count);
    if (x->reason == AQ_REASON_LAYER_BITS) printf("  %u bits", (unsigned)x->bits);
    if (*x->detail) {
        fputs("  (", stdout);
        put_clean(stdout, x->detail);
        putchar(')');
    }
    putchar('\n');
}

static size_t count_reason(const aq_plan *plan, aq_reason reason) {
    size_t i, count = 0;
    for (i = 0; i < plan->tensor_count; i++) count += plan->tensors[i].reason == reason;
    return count;
}

/* Every tensor that is not quantized as the config asks, by reason. Integers and vectors are never
 * quantized and only counted. */
static void print_exceptions(const aq_plan *plan) {
    static const aq_reason REASONS[] = { AQ_REASON_NOT_FLOAT,        AQ_REASON_NOT_MATRIX,
                                         AQ_REASON_NO_GAIN,          AQ_REASON_SENSITIVE,
                                         AQ_REASON_SENSITIVE_CONFIG, AQ_REASON_LAYER_BITS,
                                         AQ_REASON_SCALE_TENSOR };
    listing l;
    size_t r, i;
    begin_listing(&l, plan);
    for (r = 0; r < sizeof REASONS / sizeof REASONS[0]; r++) {
        size_t count = count_reason(plan, REASONS[r]);
        if (count == 0) continue;
        printf("  %llu tensor%s  %s\n", (unsigned long long)count, count == 1 ? "" : "s",
               aq_reason_text(REASONS[r]));
        if (REASONS[r] == AQ_REASON_NOT_FLOAT || REASONS[r] == AQ_REASON_NOT_MATRIX) continue;
        for (i = 0; i < plan->tensor_count; i++)
            if (plan->tensors[i].reason == REASONS[r]) print_family(&l, i);
    }
    end_listing(&l);
}

static void print_notes(const char *const *notes, size_t count) {
    size_t i;
    for (i = 0; i < count; i++) {
        fputs("note: ", stdout);
        put_clean(stdout, notes[i]);
        putchar('\n');
    }
}

static void print_spec(const aq_plan *plan) {
    const aq_config *c = &plan->config;
    bool trellis = false, steps = false; /* what the plan chose, layer by layer */
    size_t i;
    if (c->output_format == AQ_OUTPUT_GGUF) {
        if (c->gguf_type != AQ_GGUF_TYPE_AUTO)
            printf("GGUF, %s", aq_gguf_type_choice_name(c->gguf_type));
        else
            printf("GGUF, %u bits", (unsigned)c->bit_width);
        return;
    }
    printf("INT%u, ", (unsigned)c->bit_width);
    for (i = 0; i < plan->tensor_count; i++) {
        if (plan->tensors[i].bits == 16) continue;
        if (plan->tensors[i].spec.code == AQ_CODE_TRELLIS) trellis = true;
        else steps = true;
    }
    if (steps || !trellis) printf("%s", c->symmetric ? "symmetric" : "affine");
    if (trellis)
        printf("%strellis of %u states", steps ? " and " : "", (unsigned)c->trellis_states);
    printf(", group size %u, %u-bit parameters%s", (unsigned)c->group_size,
           (unsigned)c->parameter_bits, c->fit == AQ_FIT_FAST ? ", fast fit" : "");
}

static int print_plan(tool *t, const aq_plan *plan) {
    static const uint32_t BITS[] = { 2, 3, 4, 8, 16 };
    size_t b, i;
    number in, out;
    printf("plan for ");
    put_clean(stdout, plan->model_path);
    printf("\n  size     %s -> %s predicted, ratio %.2f\n", show_bytes(in, plan->input_bytes),
           show_bytes(out, plan->predicted_output_bytes),
           plan->predicted_output_bytes > 0
               ? (double)plan->input_bytes / (double)plan->predicted_output_bytes
               : 0);
    printf("  code     ");
    print_spec(plan);
    printf("\n  modality %s\n", aq_modality_name(plan->modality));
    for (b = 0; b < sizeof BITS / sizeof BITS[0]; b++) {
        size_t count = 0;
        for (i = 0; i < plan->tensor_count; i++)
            count += plan->tensors[i].bits == BITS[b];
        if (count == 0) continue;
        printf("  %llu tensor%s ", (unsigned long long)count, count == 1 ? "" : "s");
        if (BITS[b] == 16)
            puts("kept as they are");
        else
            printf("at %u bits\n", (unsigned)BITS[b]);
    }
    puts("not quantized as asked:");
    print_exceptions(plan);
    print_notes(plan->notes, plan->note_count);
    (void)t;
    return EXIT_OK;
}

static int dry_run(tool *t, const aq_plan *plan) {
    char *text = NULL;
    size_t size = 0;
    aq_error err;
    aq_status status;
    if (has(t, FLAG_JSON)) {
        status = aq_plan_to_json(t->context, plan, &text, &size, &err);
        return print_text(t, status, text, size, &err);
    }
    return print_plan(t, plan);
}

/* `asked`: the bits of each tensor before the run. */
static void print_raised(const aq_plan *plan, const uint32_t *asked) {
    listing l;
    size_t i;
    begin_listing(&l, plan);
    for (i = 0; i < plan->tensor_count; i++) {
        const aq_plan_tensor *x = &plan->tensors[i];
        number cosine, sqnr;
        if (x->reason != AQ_REASON_RAISED && x->reason != AQ_REASON_KEPT_BY_GATE) continue;
        fputs("    ", stdout);
        put_clean(stdout, l.names[i]);
        if (x->reason == AQ_REASON_RAISED)
            printf("  %u -> %u bits, cosine %s, SQNR %s dB\n", (unsigned)asked[i],
                   (unsigned)x->bits, show_figure(cosine, aq_quality_cosine(&x->quality), 6),
                   show_figure(sqnr, aq_quality_sqnr_db(&x->quality), 2));
        else
            printf("  %u bits -> %s\n", (unsigned)asked[i], aq_reason_text(x->reason));
    }
    end_listing(&l);
}

static void print_worst(const aq_result *r) {
    const aq_layer_result *worst = NULL;
    number cosine, sqnr;
    size_t i;
    for (i = 0; i < r->layer_count; i++) {
        const aq_layer_result *l = &r->layers[i];
        if (l->bits < 16 && (!worst || l->sqnr_db < worst->sqnr_db)) worst = l;
    }
    if (!worst) return;
    printf("  worst    cosine %s, SQNR %s dB: ", show_figure(cosine, worst->cosine_similarity, 6),
           show_figure(sqnr, worst->sqnr_db, 2));
    put_clean(stdout, worst->name);
    putchar('\n');
}

static void print_layer_table(const tool *t, const aq_result *r) {
    table rows = { 0, 0, 0, { NULL }, { false }, NULL };
    number text;
    size_t i;
    add_column(&rows, "layer", false);
    add_column(&rows, "bits", true);
    add_column(&rows, "cosine", true);
    add_column(&rows, "sqnr_db", true);
    add_column(&rows, "max_error", true);
    add_column(&rows, "bytes", true);
    add_column(&rows, "reason", false);
    for (i = 0; i < r->layer_count; i++) {
        const aq_layer_result *l = &r->layers[i];
        add_cell(&rows, l->name);
        add_cell(&rows, l->bits < 16 ? show_count(text, l->bits) : "-");
        add_cell(&rows, show_figure(text, l->cosine_similarity, 6));
        add_cell(&rows, show_figure(text, l->sqnr_db, 2));
        add_cell(&rows, show_figure(text, l->max_error, 6));
        add_cell(&rows, show_count(text, l->output_bytes));
        add_cell(&rows, aq_reason_text(l->reason));
    }
    print_table(t, &rows, "");
    free_table(&rows);
}

static void print_summary(const tool *t, const aq_plan *plan, const uint32_t *asked,
                          const aq_result *r) {
    number in, out, cosine, sqnr;
    size_t changed = count_reason(plan, AQ_REASON_RAISED) +
                     count_reason(plan, AQ_REASON_KEPT_BY_GATE);
    put_clean(stdout, r->quantized_path);
    printf("\n  size     %s -> %s, ratio %.2f\n", show_bytes(in, plan->input_bytes),
           show_bytes(out, (uint64_t)(r->model_size_mb * 1e6 + 0.5)), r->compression_ratio);
    printf("  code     ");
    print_spec(plan);
    printf("\n  bits     %.3f stored a weight, parameters included\n", r->bits_per_weight);
    printf("  quality  mean cosine %s, SQNR %s dB\n", show_figure(cosine, r->cosine_similarity, 6),
           show_figure(sqnr, r->sqnr_db, 2));
    print_worst(r);
    printf("  layers   %llu quantized, %llu kept, %llu raised\n",
           (unsigned long long)r->layers_quantized, (unsigned long long)r->layers_kept,
           (unsigned long long)r->layers_raised);
    printf("  modality %s\n  time     %.2f s\n", aq_modality_name(r->modality),
           r->quantization_time_s);
    if (changed > 0) {
        puts("changed by the quality gates:");
        print_raised(plan, asked);
    }
    puts("not quantized as asked:");
    print_exceptions(plan);
    print_notes(r->notes, r->note_count);
    if (has(t, FLAG_LAYERS)) print_layer_table(t, r);
}

static void print_result_tsv(const aq_result *r) {
    table row = { 0, 0, 0, { NULL }, { false }, NULL };
    static const char *const NAMES[] = { "quantized_path", "compression_ratio", "cosine_similarity",
        "model_size_mb", "modality", "bit_width", "quantization_time_s", "bits_per_weight",
        "sqnr_db", "layers_quantized", "layers_kept", "layers_raised" };
    number text;
    size_t i;
    for (i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) add_column(&row, NAMES[i], false);
    add_cell(&row, r->quantized_path);
    add_cell(&row, show_figure(text, r->compression_ratio, 4));
    add_cell(&row, show_figure(text, r->cosine_similarity, 6));
    add_cell(&row, show_figure(text, r->model_size_mb, 6));
    add_cell(&row, aq_modality_name(r->modality));
    add_cell(&row, show_count(text, r->bit_width));
    add_cell(&row, show_figure(text, r->quantization_time_s, 3));
    add_cell(&row, show_figure(text, r->bits_per_weight, 4));
    add_cell(&row, show_figure(text, r->sqnr_db, 3));
    add_cell(&row, show_count(text, r->layers_quantized));
    add_cell(&row, show_count(text, r->layers_kept));
    add_cell(&row, show_count(text, r->layers_raised));
    print_tsv(&row);
    free_table(&row);
}

static int print_result(tool *t, const aq_plan *plan, const uint32_t *asked, const aq_result *r) {
    char *text = NULL;
    size_t size = 0;
    aq_error err;
    aq_status status;
    if (has(t, FLAG_JSON)) {
        status = aq_result_to_json(t->context, r, has(t, FLAG_LAYERS), &text, &size, &err);
        return print_text(t, status, text, size, &err);
    }
    if (has(t, FLAG_TSV) && has(t, FLAG_LAYERS))
        print_layer_table(t, r);
    else if (has(t, FLAG_TSV))
        print_result_tsv(r);
    else if (!has(t, FLAG_QUIET))
        print_summary(t, plan, asked, r);
    return EXIT_OK;
}

static uint32_t *bits_of_plan(const aq_plan *plan) {
    uint32_t *bits = (uint32_t *)allocate(plan->tensor_count, sizeof *bits);
    size_t i;
    for (i = 0; i < plan->tensor_count; i++) bits[i] = plan->tensors[i].bits;
    return bits;
}

static int execute_plan(tool *t, aq_plan *plan) {
    uint32_t *asked = bits_of_plan(plan);
    aq_result result;
    aq_error err;
    int code;
    aq_status status = aq_plan_execute(t->context, plan, t->paths[1], show_progress, &t->progress,
                                       &err);
    if (!status) status = aq_plan_commit(t->context, plan, &result, &err);
    end_progress(&t->progress);
    if (status) {
        code = run_error(t, &err);
    } else {
        code = print_result(t, plan, asked, &result);
        aq_result_free(&result);
    }
    free(asked);
    return code;
}

static int run_quantize(tool *t) {
    aq_plan *plan = NULL;
    aq_error err;
    int code;
    if (aq_plan_create(t->context, t->paths[0], &t->config, &plan, &err)) return run_error(t, &err);
    code = has(t, FLAG_DRY_RUN) ? dry_run(t, plan) : execute_plan(t, plan);
    aq_plan_destroy(plan);
    return code;
}

/* ================================================================ validate and diff */

static void add_difference_columns(table *rows, bool gates) {
    add_column(rows, "layer", false);
    add_column(rows, "bits", true);
    add_column(rows, "cosine", true);
    add_column(rows, "sqnr_db", true);
    add_column(rows, "max_error", true);
    if (gates) add_column(rows, "passed", false);
}

static void add_difference(table *rows, const aq_tensor_difference *d, bool gates) {
    number text;
    add_cell(rows, d->name);
    add_cell(rows, d->bits < 16 ? show_count(text, d->bits) : "-");
    add_cell(rows, show_figure(text, d->cosine_similarity, 6));
    add_cell(rows, show_figure(text, d->sqnr_db, 2));
    add_cell(rows, show_figure(text, d->max_error, 6));
    if (gates) add_cell(rows, d->passed ? "yes" : "no");
}

static void print_differences(const tool *t, const aq_validation *v, bool gates, bool failed_only) {
    table rows = { 0, 0, 0, { NULL }, { false }, NULL };
    size_t i;
    add_difference_columns(&rows, gates);
    for (i = 0; i < v->layer_count; i++)
        if (!failed_only || !v->layers[i].passed) add_difference(&rows, &v->layers[i], gates);
    if (rows.cell_count > 0 || has(t, FLAG_TSV)) print_table(t, &rows, "");
    free_table(&rows);
}

static void print_names(const char *title, const char *const *names, size_t count) {
    size_t i;
    if (count == 0) return;
    printf("%s (%llu):\n", title, (unsigned long long)count);
    for (i = 0; i < count; i++) {
        fputs("  ", stdout);
        put_clean(stdout, names[i]);
        putchar('\n');
    }
}

static void print_validation(const tool *t, const aq_validation *v) {
    number mean, least, sqnr;
    size_t i, failed = 0;
    for (i = 0; i < v->layer_count; i++) failed += !v->layers[i].passed;
    if (v->passed)
        printf("passed: %llu layers reach the gates\n", (unsigned long long)v->layer_count);
    else
        printf("not passed: %llu of %llu layers are below the gates\n", (unsigned long long)failed,
               (unsigned long long)v->layer_count);
    printf("  quality  mean cosine %s (least %s), SQNR %s dB\n",
           show_figure(mean, v->cosine_similarity, 6),
           show_figure(least, v->min_cosine_similarity, 6), show_figure(sqnr, v->sqnr_db, 2));
    printf("  size     %.2f MB, ratio %.2f\n", v->model_size_mb, v->compression_ratio);
    if (has(t, FLAG_LAYERS))
        print_differences(t, v, true, false);
    else if (!v->passed)
        print_differences(t, v, true, true);
}

static int print_validation_json(tool *t, const aq_validation *v) {
    char *text = NULL;
    size_t size = 0;
    aq_error err;
    aq_status status = aq_validation_to_json(t->context, v, &text, &size, &err);
    return print_text(t, status, text, size, &err);
}

static int run_validate(tool *t) {
    bool gates_given = has(t, FLAG_GATE);
    aq_validation v;
    aq_error err;
    int code = EXIT_OK;
    if (aq_validate_quality(t->context, t->paths[0], t->paths[1], gates_given ? &t->config : NULL,
                            show_progress, &t->progress, &v, &err))
        return run_error(t, &err);
    end_progress(&t->progress);
    if (has(t, FLAG_JSON))
        code = print_validation_json(t, &v);
    else if (has(t, FLAG_TSV))
        print_differences(t, &v, true, false);
    else if (!has(t, FLAG_QUIET))
        print_validation(t, &v);
    if (!v.passed) code = EXIT_FAILED;
    aq_validation_free(&v);
    return code;
}

static void print_diff(const tool *t, const aq_validation *v) {
    number mean, sqnr;
    print_differences(t, v, false, false);
    if (has(t, FLAG_TSV)) return;
    print_names("only in A", v->only_in_first, v->only_in_first_count);
    print_names("only in B", v->only_in_second, v->only_in_second_count);
    printf("%llu tensors compared, mean cosine %s, SQNR %s dB\n",
           (unsigned long long)v->layer_count, show_figure(mean, v->cosine_similarity, 6),
           show_figure(sqnr, v->sqnr_db, 2));
}

static int run_diff(tool *t) {
    aq_validation v;
    aq_error err;
    int code = EXIT_OK;
    if (aq_compare_models(t->context, t->paths[0], t->paths[1], show_progress, &t->progress, &v,
                          &err))
        return run_error(t, &err);
    end_progress(&t->progress);
    if (has(t, FLAG_JSON))
        code = print_validation_json(t, &v);
    else if (!has(t, FLAG_QUIET))
        print_diff(t, &v);
    aq_validation_free(&v);
    return code;
}

/* ================================================================ inspect */

typedef struct totals {
    uint64_t quantized, weights, quantized_weights, bytes, quantized_bytes;
} totals;

static const char *parameters_name(aq_param_type type) {
    return type == AQ_PARAM_F16 ? "F16" : type == AQ_PARAM_F32 ? "F32" : "Q8";
}

static totals total_of(const aq_model *model) {
    totals sum = { 0, 0, 0, 0, 0 };
    const aq_tensor *x = NULL;
    while ((x = aq_model_next(model, x)) != NULL) {
        sum.weights += x->rows * x->cols;
        sum.bytes += x->bytes;
        if (!x->quantized) continue;
        sum.quantized++;
        sum.quantized_weights += x->rows * x->cols;
        sum.quantized_bytes += x->bytes;
    }
    return sum;
}

static double bits_of(const totals *sum) {
    return sum->quantized_weights > 0
               ? 8 * (double)sum->quantized_bytes / (double)sum->quantized_weights
               : NAN;
}

static void show_shape(char *text, size_t size, const aq_tensor *x) {
    size_t used = 0;
    uint32_t i;
    text[0] = 0;
    for (i = 0; i < x->rank && used + 24 < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%llu", i > 0 ? "x" : "",
                                 (unsigned long long)x->shape[i]);
    if (x->rank == 0) snprintf(text, size, "scalar");
}

/* "affine", "trellis 1024, rotated", … */
static void show_code(char *text, size_t size, const aq_tensor *x) {
    if (x->spec.code == AQ_CODE_TRELLIS)
        snprintf(text, size, "%s %u%s", x->code_name, (unsigned)x->spec.states,
                 x->spec.rotation ? ", rotated" : "");
    else
        snprintf(text, size, "%s", x->quantized ? x->code_name : "-");
}

static void add_tensor(table *rows, const aq_tensor *x) {
    char shape[256], code[64];
    number text;
    show_shape(shape, sizeof shape, x);
    add_cell(rows, x->name);
    add_cell(rows, shape);
    add_cell(rows, aq_dtype_name(x->dtype));
    add_cell(rows, show_count(text, x->quantized ? x->spec.bits : 8 * aq_dtype_size(x->dtype)));
    show_code(code, sizeof code, x);
    add_cell(rows, code);
    add_cell(rows, x->quantized ? show_count(text, x->spec.group_size) : "-");
    add_cell(rows, x->quantized ? parameters_name(x->spec.params) : "-");
    add_cell(rows, show_count(text, x->bytes));
    add_cell(rows, show_figure(text, x->quantized ? x->cosine_similarity : NAN, 6));
    add_cell(rows, show_figure(text, x->quantized ? x->sqnr_db : NAN, 2));
}

static void print_tensors(const tool *t, const aq_model *model) {
    table rows = { 0, 0, 0, { NULL }, { false }, NULL };
    const aq_tensor *x = NULL;
    add_column(&rows, "tensor", false);
    add_column(&rows, "shape", false);
    add_column(&rows, "dtype", false);
    add_column(&rows, "bits", true);
    add_column(&rows, "code", false);
    add_column(&rows, "group", true);
    add_column(&rows, "params", false);
    add_column(&rows, "bytes", true);
    add_column(&rows, "cosine", true);
    add_column(&rows, "sqnr_db", true);
    while ((x = aq_model_next(model, x)) != NULL) add_tensor(&rows, x);
    print_table(t, &rows, "");
    free_table(&rows);
}

static void json_string(const char *text) {
    putchar('"');
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 32)
            printf("\\u%04x", (unsigned)c);
        else
            putchar(c);
    }
    putchar('"');
}

static void json_number(double value) {
    if (isnan(value) || isinf(value))
        fputs("null", stdout);
    else
        printf("%.17g", value);
}

static void json_time_groups(const aq_time_groups *groups) {
    uint32_t i;
    unsigned w;
    printf(", \"time_groups\": {\"total_timesteps\": %u, \"starts\": [",
           (unsigned)groups->total_timesteps);
    for (i = 0; i < groups->count; i++) printf("%s%ld", i ? ", " : "", (long)groups->starts[i]);
    for (w = 0; w < 2; w++) {
        printf("], \"scales_%d\": [", w ? 4 : 8);
        for (i = 0; i < groups->count; i++) {
            if (i) fputs(", ", stdout);
            json_number((double)groups->scale[w][i]);
        }
        printf("], \"zero_points_%d\": [", w ? 4 : 8);
        for (i = 0; i < groups->count; i++)
            printf("%s%ld", i ? ", " : "", (long)groups->zero_point[w][i]);
    }
    fputs("]}", stdout);
}

static void json_tensor(const aq_tensor *x) {
    uint32_t i;
    fputs("{\"name\": ", stdout);
    json_string(x->name);
    fputs(", \"shape\": [", stdout);
    for (i = 0; i < x->rank; i++)
        printf("%s%llu", i > 0 ? ", " : "", (unsigned long long)x->shape[i]);
    printf("], \"dtype\": \"%s\", \"quantized\": %s, \"bytes\": %llu, \"file\": ",
           aq_dtype_name(x->dtype), x->quantized ? "true" : "false", (unsigned long long)x->bytes);
    json_string(x->file);
    if (x->quantized) {
        printf(", \"bits\": %u, \"code\": ", (unsigned)x->spec.bits);
        json_string(x->code_name);
        if (x->spec.code == AQ_CODE_TRELLIS)
            printf(", \"states\": %u, \"rotation\": %u", (unsigned)x->spec.states,
                   (unsigned)x->spec.rotation);
        printf(", \"group_size\": %u, \"parameters\": \"%s\", \"method\": ",
               (unsigned)x->spec.group_size, parameters_name(x->spec.params));
        json_string(x->method);
        fputs(", \"cosine_similarity\": ", stdout);
        json_number(x->cosine_similarity);
        fputs(", \"sqnr_db\": ", stdout);
        json_number(x->sqnr_db);
    }
    if (x->input_scales) fputs(", \"equalized\": true", stdout);
    if (x->time_groups) json_time_groups(x->time_groups);
    putchar('}');
}

static void json_model(const aq_model *model, bool verified, size_t checked) {
    totals sum = total_of(model);
    const aq_tensor *x = NULL;
    fputs("\"path\": ", stdout);
    json_string(model->path);
    printf(", \"quantized\": %s, \"modality\": \"%s\", \"weight_bytes\": %llu, "
           "\"tensor_count\": %llu, \"quantized_count\": %llu, \"weights\": %llu, "
           "\"bits_per_weight\": ",
           model->quantized ? "true" : "false", aq_modality_name(model->modality),
           (unsigned long long)model->weight_bytes, (unsigned long long)model->tensor_count,
           (unsigned long long)sum.quantized, (unsigned long long)sum.weights);
    json_number(bits_of(&sum));
    if (verified) printf(", \"verified\": %llu", (unsigned long long)checked);
    fputs(", \"tensors\": [", stdout);
    while ((x = aq_model_next(model, x)) != NULL) {
        if (x != model->tensors) fputs(", ", stdout);
        json_tensor(x);
    }
    putchar(']');
}

static void print_model(const tool *t, const aq_model *model) {
    totals sum = total_of(model);
    number bytes, stored;
    print_tensors(t, model);
    if (has(t, FLAG_TSV)) return;
    printf("%llu tensors of %llu weights, %s stored, files %s, modality %s\n",
           (unsigned long long)model->tensor_count, (unsigned long long)sum.weights,
           show_bytes(bytes, sum.bytes), show_bytes(stored, model->weight_bytes),
           aq_modality_name(model->modality));
    if (sum.quantized > 0)
        printf("%llu quantized: %.0f %% of the weights, %.3f stored bits each\n",
               (unsigned long long)sum.quantized,
               100 * (double)sum.quantized_weights / (double)sum.weights, bits_of(&sum));
}

static const aq_isa ISAS[] = { AQ_ISA_SCALAR, AQ_ISA_AVX2, AQ_ISA_AVX512, AQ_ISA_NEON };

static bool isa_usable(aq_isa isa) {
    aq_context *context = NULL;
    bool usable = aq_context_create(isa, NULL, &context, NULL) == AQ_OK;
    aq_context_destroy(context);
    return usable;
}

static void print_cpu(const tool *t) {
    const char *separator = "";
    size_t i;
    if (has(t, FLAG_JSON))
        printf("\"cpu\": {\"isa\": \"%s\", \"usable\": [", aq_isa_name(t->context->isa));
    else
        printf("instructions in use: %s\nusable here:", aq_isa_name(t->context->isa));
    for (i = 0; i < sizeof ISAS / sizeof ISAS[0]; i++) {
        if (!isa_usable(ISAS[i])) continue;
        if (has(t, FLAG_JSON))
            printf("%s\"%s\"", separator, aq_isa_name(ISAS[i]));
        else
            printf(" %s", aq_isa_name(ISAS[i]));
        separator = ", ";
    }
    fputs(has(t, FLAG_JSON) ? "]}" : "\n", stdout);
}

static void print_inspection(const tool *t, const aq_model *model, size_t checked) {
    bool json = has(t, FLAG_JSON), verify = has(t, FLAG_VERIFY);
    if (json) putchar('{');
    if (has(t, FLAG_CPU) && !has(t, FLAG_TSV)) {
        print_cpu(t);
        if (json && model) fputs(", ", stdout);
    }
    if (model && json)
        json_model(model, verify, checked);
    else if (model && !has(t, FLAG_QUIET))
        print_model(t, model);
    if (json) puts("}");
    if (json || !model || !verify || has(t, FLAG_QUIET) || has(t, FLAG_TSV)) return;
    if (checked > 0)
        printf("%llu stored tensors agree with their checksums\n", (unsigned long long)checked);
    else
        puts("no checksums in these files");
}

/* ---- statistics files */

static const char *show_least(const float *values, size_t count, bool greatest, number out) {
    float found = count ? values[0] : 0.0f;
    size_t i;
    for (i = 1; i < count; i++)
        if (greatest ? values[i] > found : values[i] < found) found = values[i];
    if (!count) return "-";
    snprintf(out, sizeof(number), "%.6g", (double)found);
    return out;
}

static void add_statistics(table *rows, const aq_calibration_layer *x) {
    unsigned long long seen = 0;
    number text;
    size_t i;
    add_cell(rows, x->name);
    snprintf(text, sizeof text, "%llu", (unsigned long long)x->channels);
    add_cell(rows, text);
    snprintf(text, sizeof text, "%llu", (unsigned long long)x->timestep_count);
    add_cell(rows, text);
    for (i = 0; x->rows && i < x->timestep_count; i++) seen += (unsigned long long)x->rows[i];
    snprintf(text, sizeof text, seen ? "%llu" : "-", seen);
    add_cell(rows, text);
    add_cell(rows, show_least(x->min, x->timestep_count, false, text));
    add_cell(rows, show_least(x->max, x->timestep_count, true, text));
    add_cell(rows, x->sketch ? "yes" : "no");
    add_cell(rows, x->has_hessian ? "yes" : "no");
}

static void json_statistics(const aq_calibration_layer *x) {
    size_t i;
    fputs("{\"name\": ", stdout);
    json_string(x->name);
    printf(", \"channels\": %llu, \"timesteps\": [", (unsigned long long)x->channels);
    for (i = 0; i < x->timestep_count; i++)
        printf("%s%lld", i ? ", " : "", (long long)x->timesteps[i]);
    fputs("], \"rows\": ", stdout);
    for (i = 0; x->rows && i < x->timestep_count; i++)
        printf("%s%llu", i ? ", " : "[", (unsigned long long)x->rows[i]);
    fputs(x->rows && x->timestep_count ? "]" : "null", stdout);
    printf(", \"sketch\": %s, \"second_moments\": %s}", x->sketch ? "true" : "false",
           x->has_hessian ? "true" : "false");
}

static int inspect_calibration(tool *t) {
    table rows = { 0, 0, 0, { NULL }, { false }, NULL };
    static const char *const names[] = { "layer", "channels", "timesteps", "rows", "min", "max",
                                         "sketch", "second_moments" };
    aq_calibration *calibration = NULL;
    aq_error err;
    size_t i;
    apply_calibration(t);
    if (aq_calibration_open(t->context, t->config.calibration, t->config.calibration_count, 0,
                            &calibration, &err))
        return run_error(t, &err);
    if (has(t, FLAG_JSON)) {
        fputs("{\"layers\": [", stdout);
        for (i = 0; i < calibration->layer_count; i++) {
            fputs(i ? ",\n  " : "\n  ", stdout);
            json_statistics(&calibration->layers[i]);
        }
        puts("]}");
    } else if (!has(t, FLAG_QUIET)) {
        for (i = 0; i < sizeof names / sizeof names[0]; i++)
            add_column(&rows, names[i], i > 0 && i < 6);
        for (i = 0; i < calibration->layer_count; i++)
            add_statistics(&rows, &calibration->layers[i]);
        print_table(t, &rows, "");
        free_table(&rows);
    }
    aq_calibration_close(calibration);
    return EXIT_OK;
}

static int run_inspect(tool *t) {
    aq_model *model = NULL;
    size_t checked = 0;
    aq_error err;
    aq_status status = AQ_OK;
    if (has(t, FLAG_CALIBRATION)) {
        if (t->path_count > 0)
            return usage_error("give one or the other", "inspect: a PATH and --calibration exclude "
                               "each other");
        return inspect_calibration(t);
    }
    if (t->path_count > 0) status = aq_model_open(t->context, t->paths[0], &model, &err);
    if (!status && model && has(t, FLAG_VERIFY))
        status = aq_model_verify(t->context, model, show_progress, &t->progress, &checked, &err);
    end_progress(&t->progress);
    if (!status) print_inspection(t, model, checked);
    aq_model_close(model);
    return status ? run_error(t, &err) : EXIT_OK;
}

/* ================================================================ markov */

static double total_score(const aq_model *model, double threshold, size_t *layers,
                          size_t *violations) {
    const aq_tensor *x = NULL;
    double sum = 0.0;
    *layers = *violations = 0;
    while ((x = aq_model_next(model, x)) != NULL) {
        aq_markov m;
        if (!x->time_groups) continue;
        aq_markov_measure(x->time_groups->scale[0], x->time_groups->zero_point[0],
                          x->time_groups->count, threshold, &m);
        sum += m.smoothness_score;
        *violations += m.violation_count;
        ++*layers;
    }
    return *layers ? sum / (double)*layers : 1.0;
}

static void json_markov(const aq_tensor *x, const aq_markov *m) {
    uint32_t i;
    fputs("{\"name\": ", stdout);
    json_string(x->name);
    printf(", \"groups\": %u, \"smoothness_score\": ", (unsigned)x->time_groups->count);
    json_number(m->smoothness_score);
    printf(", \"violation_count\": %u, \"is_valid\": %s, \"boundary_scores\": [",
           (unsigned)m->violation_count, m->is_valid ? "true" : "false");
    for (i = 0; i < m->boundary_count; i++) {
        if (i) fputs(", ", stdout);
        json_number(m->boundary_scores[i]);
    }
    fputs("], \"violations\": [", stdout);
    for (i = 0; i < m->violation_count; i++) {
        const aq_markov_violation *v = &m->violations[i];
        printf("%s{\"boundary_idx\": %u, \"scale_jump\": ", i ? ", " : "", (unsigned)v->boundary);
        json_number(v->scale_jump);
        fputs(", \"zero_point_jump\": ", stdout);
        json_number(v->zero_point_jump);
        printf(", \"severity\": \"%s\"}", aq_severity_name(v->severity));
    }
    fputs("]}", stdout);
}

static void add_markov(table *rows, const aq_tensor *x, const aq_markov *m) {
    const aq_markov_violation *worst = NULL;
    number text;
    uint32_t i;
    for (i = 0; i < m->violation_count; i++)
        if (!worst || m->violations[i].scale_jump > worst->scale_jump) worst = &m->violations[i];
    add_cell(rows, x->name);
    snprintf(text, sizeof text, "%u", (unsigned)x->time_groups->count);
    add_cell(rows, text);
    add_cell(rows, show_figure(text, m->smoothness_score, 4));
    snprintf(text, sizeof text, "%u", (unsigned)m->violation_count);
    add_cell(rows, text);
    add_cell(rows, worst ? show_figure(text, worst->scale_jump, 3) : "-");
    add_cell(rows, worst ? aq_severity_name(worst->severity) : "-");
}

static void print_markov(const tool *t, const aq_model *model, double threshold) {
    table rows = { 0, 0, 0, { NULL }, { false }, NULL };
    static const char *const names[] = { "layer", "groups", "smoothness", "violations", "worst_jump",
                                         "severity" };
    const aq_tensor *x = NULL;
    size_t i, layers, violations, done = 0;
    double score = total_score(model, threshold, &layers, &violations);
    if (has(t, FLAG_JSON)) {
        fputs("{\"smoothness_score\": ", stdout);
        json_number(score);
        printf(", \"violation_count\": %llu, \"is_valid\": %s, \"layers\": [",
               (unsigned long long)violations, violations ? "false" : "true");
    }
    for (i = 0; i < sizeof names / sizeof names[0]; i++) add_column(&rows, names[i], i > 0 && i < 5);
    while ((x = aq_model_next(model, x)) != NULL) {
        aq_markov m;
        if (!x->time_groups) continue;
        aq_markov_measure(x->time_groups->scale[0], x->time_groups->zero_point[0],
                          x->time_groups->count, threshold, &m);
        if (!has(t, FLAG_JSON)) {
            add_markov(&rows, x, &m);
            continue;
        }
        fputs(done++ ? ",\n  " : "\n  ", stdout);
        json_markov(x, &m);
    }
    if (has(t, FLAG_JSON)) {
        puts("]}");
    } else if (!has(t, FLAG_QUIET)) {
        print_table(t, &rows, "");
        if (!has(t, FLAG_TSV))
            printf("smoothness %.4f over %llu layers, %llu violations\n", score,
                   (unsigned long long)layers, (unsigned long long)violations);
    }
    free_table(&rows);
}

static int run_markov(tool *t) {
    const given *g = find_flag(t, FLAG_THRESHOLD);
    aq_model *model = NULL;
    double threshold = 0.3;
    char *end = NULL;
    size_t layers, violations;
    aq_error err;
    if (g) {
        threshold = strtod(g->value, &end);
        if (end == g->value || *end || !(threshold >= 0.0 && threshold <= 1.0))
            return usage_error("use a number from 0 to 1", "--threshold %s: no such threshold",
                               g->value);
    }
    if (aq_model_open(t->context, t->paths[0], &model, &err)) return run_error(t, &err);
    (void)total_score(model, threshold, &layers, &violations);
    if (layers) print_markov(t, model, threshold);
    aq_model_close(model);
    if (layers) return EXIT_OK;
    fprintf(stderr, "aq: %s has no time groups\nhint: quantize with --calibration\n", t->paths[0]);
    return EXIT_FAILED;
}

/* ================================================================ dequantize and config */

static bool parse_dtype(const given *g, aq_dtype *out) {
    *out = AQ_DTYPE_F32;
    if (!g || strcmp(g->value, "f32") == 0) return true;
    *out = AQ_DTYPE_F16;
    if (strcmp(g->value, "f16") == 0) return true;
    *out = AQ_DTYPE_BF16;
    return strcmp(g->value, "bf16") == 0;
}

static void print_dequantized(const tool *t, aq_dtype dtype, uint64_t bytes) {
    number size;
    if (has(t, FLAG_JSON)) {
        fputs("{\"output_path\": ", stdout);
        json_string(t->paths[1]);
        printf(", \"dtype\": \"%s\", \"model_size_mb\": ", aq_dtype_name(dtype));
        json_number((double)bytes / 1e6);
        puts("}");
    } else if (!has(t, FLAG_QUIET)) {
        put_clean(stdout, t->paths[1]);
        printf("  %s of %s weights\n", show_bytes(size, bytes), aq_dtype_name(dtype));
    }
}

static int run_dequantize(tool *t) {
    const given *g = find_flag(t, FLAG_DTYPE);
    aq_model *model = NULL;
    aq_dtype dtype;
    aq_error err;
    if (!parse_dtype(g, &dtype))
        return usage_error("use f32, f16 or bf16", "--dtype %s: not a float type", g->value);
    if (aq_dequantize_model(t->context, t->paths[0], t->paths[1], dtype, t->config.overwrite,
                            show_progress, &t->progress, &err))
        return run_error(t, &err);
    end_progress(&t->progress);
    if (aq_model_open(t->context, t->paths[1], &model, &err)) return run_error(t, &err);
    print_dequantized(t, dtype, model->weight_bytes);
    aq_model_close(model);
    return EXIT_OK;
}

static int run_convert(tool *t) {
    aq_model *model = NULL;
    aq_error err;
    if (aq_convert_model(t->context, t->paths[0], t->paths[1], t->config.output_format,
                         t->config.overwrite, show_progress, &t->progress, &err))
        return run_error(t, &err);
    end_progress(&t->progress);
    if (aq_model_open(t->context, t->paths[1], &model, &err)) return run_error(t, &err);
    if (has(t, FLAG_JSON)) {
        fputs("{\"output_path\": ", stdout);
        json_string(t->paths[1]);
        printf(", \"format\": \"%s\", \"model_size_mb\": ",
               aq_output_format_name(t->config.output_format));
        json_number((double)model->weight_bytes / 1e6);
        puts("}");
    } else if (!has(t, FLAG_QUIET)) {
        number size;
        put_clean(stdout, t->paths[1]);
        printf("  %s, %s\n", show_bytes(size, model->weight_bytes),
               aq_output_format_name(t->config.output_format));
    }
    aq_model_close(model);
    return EXIT_OK;
}

/* ================================================================ export-c */

static bool matches(const char *pattern, const char *name) {
    for (; *pattern && *pattern != '*'; pattern++, name++)
        if (!*name || (*pattern != '?' && *pattern != *name)) return false;
    if (!*pattern) return !*name;
    for (;; name++) {
        if (matches(pattern + 1, name)) return true;
        if (!*name) return false;
    }
}

static bool is_exported(const tool *t, const aq_tensor *tensor) {
    const char *name = tensor->name;
    size_t size = strlen(name), i;
    bool all = true;
    if (tensor->rank < 2 || size < 8 || strcmp(name + size - 7, ".weight") != 0) return false;
    for (i = 0; i < t->flag_count; i++) {
        if (t->flags[i].which->id != FLAG_ONLY) continue;
        all = false;
        if (matches(t->flags[i].value, name)) return true;
    }
    return all;
}

static void export_bytes(FILE *out, const char *prefix, const char *part, size_t index,
                         const void *data, uint64_t size) {
    const uint8_t *bytes = (const uint8_t *)data;
    uint64_t i;
    if (!size) return;
    fprintf(out, "static const uint8_t %s_%s_%lu[%llu] = {", prefix, part, (unsigned long)index,
            (unsigned long long)size);
    for (i = 0; i < size; i++) fprintf(out, "%s%u,", i % 24 ? "" : "\n", bytes[i]);
    fputs("\n};\n", out);
}

/* Scales of the input, as the compiler's own floats: nine digits give back each of them. */
static void export_floats(FILE *out, const char *prefix, size_t index, const float *values,
                          uint64_t count) {
    uint64_t i;
    fprintf(out, "static const float %s_scales_%lu[%llu] = {", prefix, (unsigned long)index,
            (unsigned long long)count);
    for (i = 0; i < count; i++) fprintf(out, "%s%.9ef,", i % 6 ? " " : "\n", (double)values[i]);
    fputs("\n};\n", out);
}

static void export_name(FILE *out, const char *name) {
    for (; *name; name++)
        if (*name == '"' || *name == '\\' || (unsigned char)*name < 32) fputc('?', out);
        else fputc(*name, out);
}

static const char *dtype_constant(aq_dtype dtype) {
    return dtype == AQ_DTYPE_F16 ? "AQ_DTYPE_F16" : dtype == AQ_DTYPE_BF16 ? "AQ_DTYPE_BF16"
                                                                          : "AQ_DTYPE_F32";
}

static const aq_tensor *bias_of(const aq_model *model, const aq_tensor *weight) {
    const aq_tensor *bias;
    size_t size = strlen(weight->name) - 6; /* with the dot, without "weight" */
    char *name = (char *)allocate(size + 5, 1);
    memcpy(name, weight->name, size);
    memcpy(name + size, "bias", 5);
    bias = aq_model_find(model, name);
    free(name);
    return bias;
}

/* The arrays of a layer. */
static void export_arrays(FILE *out, const char *prefix, size_t index, const aq_linear *layer) {
    aq_quant_layout layout;
    memset(&layout, 0, sizeof layout);
    if (layer->quantized) {
        (void)aq_quantized_size(&layer->spec, layer->rows, layer->cols, &layout, NULL);
        export_bytes(out, prefix, "codes", index, layer->codes, layout.code_bytes);
        export_bytes(out, prefix, "params", index, layer->params, layout.param_bytes);
        export_bytes(out, prefix, "extra", index, layer->extra, layout.extra_bytes);
    } else {
        export_bytes(out, prefix, "data", index, layer->data,
                     layer->rows * layer->cols * aq_dtype_size(layer->dtype));
    }
    if (layer->bias)
        export_bytes(out, prefix, "bias", index, layer->bias,
                     layer->rows * aq_dtype_size(layer->bias_dtype));
    if (layer->input_scales) export_floats(out, prefix, index, layer->input_scales, layer->cols);
}

static void export_pointer(FILE *out, const char *prefix, const char *part, size_t index,
                           bool there) {
    if (there) fprintf(out, " %s_%s_%lu,", prefix, part, (unsigned long)index);
    else fputs(" NULL,", out);
}

/* Its aq_linear, member by member. */
static void export_layer(FILE *out, const char *prefix, size_t index, const aq_linear *layer) {
    static const char *const params[] = {"AQ_PARAM_F16", "AQ_PARAM_F32", "AQ_PARAM_Q8"};
    bool packed = layer->quantized, some = layer->rows && layer->cols;
    fputs("    { \"", out);
    export_name(out, layer->name);
    fprintf(out, "\", %lluu, %lluu, %s,\n      { %s, %s, %u, %u, AQ_FIT_LEAST_SQUARES, %u, %u },",
            (unsigned long long)layer->rows, (unsigned long long)layer->cols,
            packed ? "true" : "false",
            packed && layer->spec.code == AQ_CODE_SYMMETRIC ? "AQ_CODE_SYMMETRIC"
            : packed && layer->spec.code == AQ_CODE_TRELLIS ? "AQ_CODE_TRELLIS" : "AQ_CODE_AFFINE",
            params[packed ? layer->spec.params : AQ_PARAM_F16], packed ? layer->spec.bits : 8,
            packed ? layer->spec.group_size : 32,
            packed && layer->spec.code == AQ_CODE_TRELLIS ? layer->spec.states : 0,
            packed && layer->spec.code == AQ_CODE_TRELLIS ? layer->spec.rotation : 0);
    export_pointer(out, prefix, "codes", index, packed && some);
    export_pointer(out, prefix, "params", index, packed && some);
    export_pointer(out, prefix, "extra", index,
                   packed && some && layer->spec.params == AQ_PARAM_Q8);
    fprintf(out, "\n      %s,", dtype_constant(layer->dtype));
    export_pointer(out, prefix, "data", index, !packed && some);
    fprintf(out, " %s,", dtype_constant(layer->bias_dtype));
    export_pointer(out, prefix, "bias", index, layer->bias && layer->rows);
    export_pointer(out, prefix, "scales", index, layer->input_scales && layer->cols);
    fputs(" NULL },\n", out);
}

static int export_all(tool *t, const aq_model *model, FILE *out, const char *prefix) {
    size_t count = 0, i;
    const aq_tensor *tensor = NULL;
    aq_linear *layers = (aq_linear *)allocate(model->tensor_count, sizeof *layers);
    aq_error err;
    int status = EXIT_OK;
    fprintf(out, "/* Written by aq export-c: include it after arrowquant.h. */\n");
    while (status == EXIT_OK && (tensor = aq_model_next(model, tensor)) != NULL) {
        if (!is_exported(t, tensor)) continue;
        if (aq_linear_from_tensors(tensor, bias_of(model, tensor), &layers[count], &err))
            status = run_error(t, &err);
        else export_arrays(out, prefix, count, &layers[count]), count++;
    }
    if (status == EXIT_OK && count == 0)
        status = usage_error("`aq inspect` lists the tensors", "no layer of the model is wanted");
    if (status == EXIT_OK) {
        fprintf(out, "#define %s_layer_count %luu\nstatic const aq_linear %s_layers[%lu] = {\n",
                prefix, (unsigned long)count, prefix, (unsigned long)count);
        for (i = 0; i < count; i++) export_layer(out, prefix, i, &layers[i]);
        fputs("};\n", out);
        if (!find_flag(t, FLAG_QUIET))
            printf("%lu layers in %s\n", (unsigned long)count, t->paths[1]);
    }
    free(layers);
    return status;
}

static bool is_identifier(const char *name) {
    const char *letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_";
    if (!*name || !strchr(letters, *name)) return false;
    for (; *name; name++)
        if (!strchr(letters, *name) && !strchr("0123456789", *name)) return false;
    return true;
}

static int run_export_c(tool *t) {
    const given *g = find_flag(t, FLAG_PREFIX);
    const char *prefix = g ? g->value : "model", *path = t->paths[1];
    aq_model *model = NULL;
    aq_error err;
    FILE *out;
    int status;
    if (!is_identifier(prefix))
        return usage_error("use letters, digits and _", "--prefix %s: not a C name", prefix);
    out = t->config.overwrite ? NULL : fopen(path, "rb");
    if (out) {
        fclose(out);
        return usage_error("choose another path, or give --overwrite", "%s exists already", path);
    }
    if (aq_model_open(t->context, t->paths[0], &model, &err)) return run_error(t, &err);
    out = fopen(path, "wb");
    if (!out) {
        aq_model_close(model);
        fprintf(stderr, "aq: %s cannot be written\nhint: check the path\n", path);
        return EXIT_FAILED;
    }
    status = export_all(t, model, out, prefix);
    aq_model_close(model);
    if ((ferror(out) | fclose(out)) != 0 && status == EXIT_OK) {
        fprintf(stderr, "aq: %s could not be written\nhint: check the free space\n", path);
        status = EXIT_FAILED;
    }
    if (status != EXIT_OK) remove(path);
    return status;
}

static int run_config(tool *t) {
    char *text = NULL;
    size_t size = 0;
    aq_error err;
    aq_status status = aq_config_to_yaml(t->context, &t->config, &text, &size, &err);
    return print_text(t, status, text, size, &err);
}

/* ================================================================ main */

/* What the summary of `quantize` says as notes goes to standard error when there is no summary. */
static void log_line(void *user, aq_log_level level, const char *message) {
    tool *t = (tool *)user;
    if (level != AQ_LOG_WARNING) return;
    end_progress(&t->progress);
    fputs("note: ", stderr);
    put_clean(stderr, message);
    fputc('\n', stderr);
}

static int run(tool *t) {
    int status;
    if (has(t, FLAG_HELP)) {
        print_command_help(t->chosen);
        return EXIT_OK;
    }
    status = create_context(t);
    if (status == EXIT_OK) status = build_config(t);
    if (status != EXIT_OK) return status;
    t->progress.enabled = !has(t, FLAG_QUIET);
    t->progress.bar = is_terminal();
    t->progress.phase = -1;
    t->context->log_user = t;
    if (!has(t, FLAG_QUIET) && (has(t, FLAG_JSON) || has(t, FLAG_TSV))) t->context->log = log_line;
    catch_signals(t->context);
    return t->chosen->run(t);
}

static void clean_up(tool *t) {
    size_t i;
    for (i = 0; i < t->text_count; i++) free(t->texts[i]);
    aq_config_free(&t->config);
    aq_context_destroy(t->context);
    free(t->texts);
    free(t->layer_bits);
    free((void *)t->layers);
    free((void *)t->patterns);
    free((void *)t->calibration);
    free(t->flags);
}

int main(int argc, char **argv) {
    tool t;
    int status;
    memset(&t, 0, sizeof t);
    if (argc < 2) {
        print_overview(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("aq %s\n", aq_version());
        return EXIT_OK;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_overview(stdout);
        return EXIT_OK;
    }
    t.chosen = find_command(argv[1]);
    if (!t.chosen) return unknown_command(argv[1]);
    status = parse_arguments(&t, argc, argv);
    if (status == EXIT_OK) status = t.chosen->bit == HELP ? run_help(&t) : run(&t);
    clean_up(&t);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == EXIT_OK) {
        fputs("aq: standard output could not be written\nhint: check the free space\n", stderr);
        status = EXIT_FAILED;
    }
    return status;
}
