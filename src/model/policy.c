/* The policy: what is never quantized, what is sensitive, what the config says about a layer.
 *
 * A tensor's name is read as a path of modules, "transformer_blocks.0.attn1.to_q.weight", and each
 * module as words: "proj_out_1" is proj, out. Words are compared whole. */
#include "policy.h"

#include "../base/text.h"
#include "../quant/quant.h"

#ifndef ARROWQUANT_NO_STDIO

typedef enum aq_word_scope {
    AQ_SCOPE_ANY,   /* any module of the path */
    AQ_SCOPE_OWNER, /* the module that owns the tensor */
    AQ_SCOPE_OUTER, /* a module outside of the numbered blocks: only there "first" and "last" */
    AQ_SCOPE_EDGE   /* outside of them, as the module's last word: img_in, proj_out_1 */
} aq_word_scope;

typedef struct aq_sensitive_word {
    const char *word;
    aq_word_scope scope;
    const char *rule;
} aq_sensitive_word;

static const aq_sensitive_word aq_sensitive_words[] = {
    { "embed", AQ_SCOPE_ANY, "embedding" },        { "embeds", AQ_SCOPE_ANY, "embedding" },
    { "embedding", AQ_SCOPE_ANY, "embedding" },    { "embeddings", AQ_SCOPE_ANY, "embedding" },
    { "embedder", AQ_SCOPE_ANY, "embedding" },     { "embedders", AQ_SCOPE_ANY, "embedding" },
    { "wte", AQ_SCOPE_ANY, "embedding" },          { "wpe", AQ_SCOPE_ANY, "embedding" },
    { "emb", AQ_SCOPE_OUTER, "embedding" },        { "norm", AQ_SCOPE_OWNER, "norm" },
    { "layernorm", AQ_SCOPE_OWNER, "norm" },       { "rmsnorm", AQ_SCOPE_OWNER, "norm" },
    { "groupnorm", AQ_SCOPE_OWNER, "norm" },       { "batchnorm", AQ_SCOPE_OWNER, "norm" },
    { "ln", AQ_SCOPE_OWNER, "norm" },              { "bn", AQ_SCOPE_OWNER, "norm" },
    { "head", AQ_SCOPE_ANY, "head" },              { "classifier", AQ_SCOPE_OUTER, "head" },
    { "final", AQ_SCOPE_OUTER, "last projection" }, { "out", AQ_SCOPE_EDGE, "last projection" },
    { "in", AQ_SCOPE_EDGE, "first projection" },
};
#define AQ_SENSITIVE_COUNT (sizeof(aq_sensitive_words) / sizeof(aq_sensitive_words[0]))

static char aq_lower(char c) {
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool aq_is_digit(char c) {
    return c >= '0' && c <= '9';
}

/* The next word of module[*at … size): letters up to "_", "-" or the end, digits at its end cut off
 * ("norm1" is norm). False at the end. */
static bool aq_next_word(const char *module, size_t size, size_t *at, const char **word,
                         size_t *word_size) {
    while (*at < size) {
        size_t begin = *at, end = begin;
        while (end < size && module[end] != '_' && module[end] != '-') end++;
        *at = end + 1;
        while (end > begin && aq_is_digit(module[end - 1])) end--;
        if (end > begin) {
            *word = module + begin;
            *word_size = end - begin;
            return true;
        }
    }
    return false;
}

static bool aq_word_is(const char *word, size_t size, const char *other) {
    for (size_t i = 0; i < size; i++) {
        if (aq_lower(word[i]) != other[i]) return false; /* also where `other` ends */
    }
    return other[size] == 0;
}

/* The rule by which one module makes its tensor sensitive. */
static const char *aq_module_rule(const char *module, size_t size, bool owner, bool outer) {
    const char *word = NULL, *next = NULL;
    size_t word_size = 0, next_size = 0, at = 0;
    bool first_is_to = false, more = aq_next_word(module, size, &at, &word, &word_size);
    for (size_t number = 0; more; number++) {
        if (!number) first_is_to = aq_word_is(word, word_size, "to"); /* to_out of an attention */
        more = aq_next_word(module, size, &at, &next, &next_size);
        for (size_t i = 0; i < AQ_SENSITIVE_COUNT; i++) {
            const aq_sensitive_word *known = &aq_sensitive_words[i];
            if ((known->scope == AQ_SCOPE_OWNER && !owner) ||
                (known->scope >= AQ_SCOPE_OUTER && !outer) ||
                (known->scope == AQ_SCOPE_EDGE && (more || first_is_to)))
                continue;
            if (aq_word_is(word, word_size, known->word)) return known->rule;
        }
        word = next;
        word_size = next_size;
    }
    return NULL;
}

AQ_LIB const char *aq_sensitive_rule(const char *name) {
    const char *module = name;
    bool outer = true;
    if (strstr(name, "input_blocks.0.0.")) return "first projection"; /* the original UNet names */
    for (;;) {
        const char *dot = strchr(module, '.');
        size_t size = dot ? (size_t)(dot - module) : strlen(module);
        bool number = size > 0;
        /* the last part is the parameter ("weight"), unless the name has one part only */
        if (!dot && module != name) return NULL;
        for (size_t i = 0; i < size; i++) number = number && aq_is_digit(module[i]);
        bool owner = !dot || !strchr(dot + 1, '.');
        const char *rule = number ? NULL : aq_module_rule(module, size, owner, outer);
        if (rule) return rule;
        if (number) outer = false;
        if (!dot) return NULL;
        module = dot + 1;
    }
}

AQ_LIB uint32_t aq_more_bits(const aq_config *config, uint32_t bits) {
    if (bits == 2 && config->method == AQ_METHOD_TRELLIS) return 3;
    return bits == 3 ? 4 : 2 * bits;
}

AQ_LIB bool aq_names_layer(const char *entry, const char *tensor) {
    size_t size = strlen(entry);
    return strncmp(entry, tensor, size) == 0 && (tensor[size] == 0 || tensor[size] == '.');
}

static bool aq_decide_by_config(const aq_config *config, const char *name, aq_decision *out) {
    for (size_t i = 0; i < config->layer_bits_count; i++) {
        const char *pattern = config->layer_bits[i].pattern;
        if (!aq_glob_match(pattern, name) && !aq_names_layer(pattern, name)) continue;
        out->bits = config->layer_bits[i].bits;
        out->reason = AQ_REASON_LAYER_BITS;
        out->detail = pattern;
        return true;
    }
    out->bits = 16;
    out->reason = AQ_REASON_SENSITIVE_CONFIG;
    for (size_t i = 0; i < config->sensitive_layer_count; i++) {
        out->detail = config->sensitive_layers[i];
        if (aq_names_layer(out->detail, name)) return true;
    }
    for (size_t i = 0; i < config->sensitive_pattern_count; i++) {
        out->detail = config->sensitive_patterns[i];
        if (aq_glob_match(out->detail, name)) return true;
    }
    return false;
}

AQ_LIB aq_decision aq_decide(const aq_config *config, const char *name, aq_dtype dtype,
                             uint32_t rank, uint64_t rows, uint64_t cols) {
    aq_decision decision;
    decision.bits = 16;
    decision.detail = "";
    decision.reason = AQ_REASON_NOT_FLOAT;
    if (!aq_dtype_is_float(dtype)) return decision;
    decision.reason = AQ_REASON_NOT_MATRIX;
    if (rank < 2 || !rows || !cols) return decision;
    if (aq_decide_by_config(config, name, &decision)) return decision;
    const char *rule = config->skip_sensitive_layers ? aq_sensitive_rule(name) : NULL;
    decision.reason = rule ? AQ_REASON_SENSITIVE : AQ_REASON_QUANTIZED;
    decision.detail = rule ? rule : "";
    decision.bits = rule ? 16 : config->bit_width;
    return decision;
}

#undef AQ_SENSITIVE_COUNT
#endif /* ARROWQUANT_NO_STDIO */
