/* Which files of a folder hold its weights: Hugging Face's and diffusers' names, with variants. */
#include "folder.h"

#include "../base/text.h"

#ifndef ARROWQUANT_NO_STDIO

/* Names under which libraries save weights. Only these take a variant: in "sd_xl_base_1.0" the dot
 * means nothing. */
static const char *const aq_weight_stems[] = {
    "model", "diffusion_pytorch_model", "pytorch_model", "pytorch_lora_weights", "adapter_model",
};
#define AQ_WEIGHT_STEM_COUNT (sizeof(aq_weight_stems) / sizeof(aq_weight_stems[0]))

static const char *const aq_legacy_endings[] = { ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5" };
#define AQ_LEGACY_COUNT (sizeof(aq_legacy_endings) / sizeof(aq_legacy_endings[0]))

static bool aq_is_safetensors(const aq_folder_entry *entry) {
    return entry->kind == AQ_PATH_FILE && aq_ends_with(entry->name, ".safetensors");
}

static bool aq_is_legacy(const char *name) {
    for (size_t i = 0; i < AQ_LEGACY_COUNT; i++) {
        if (aq_ends_with(name, aq_legacy_endings[i])) return true;
    }
    return false;
}

static const aq_folder_entry *aq_entry_named(const aq_folder_entry *entries, size_t count,
                                             const char *name) {
    for (size_t i = 0; i < count; i++) {
        if (entries[i].kind == AQ_PATH_FILE && strcmp(entries[i].name, name) == 0)
            return &entries[i];
    }
    return NULL;
}

static bool aq_all_digits(const char *text, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
    }
    return true;
}

/* Where "-00001-of-00004" stands in a name; 0: nowhere. */
static size_t aq_shard_mark(const char *name) {
    size_t size = strlen(name);
    for (size_t i = 1; i + 15 <= size; i++) {
        if (name[i] == '-' && aq_all_digits(name + i + 1, 5) && memcmp(name + i + 6, "-of-", 4) == 0 &&
            aq_all_digits(name + i + 10, 5))
            return i;
    }
    return 0;
}

static size_t aq_decimal5(const char *text) {
    size_t value = 0;
    for (size_t i = 0; i < 5; i++) value = value * 10 + (size_t)(text[i] - '0');
    return value;
}

/* "model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors",
 * "model-00001-of-00002.fp16.safetensors" */
AQ_LIB bool aq_name_variant(const char *name, const char **variant, size_t *size) {
    size_t body = strlen(name);
    if (!aq_ends_with(name, ".safetensors")) return false;
    body -= strlen(".safetensors");
    for (size_t i = 0; i < AQ_WEIGHT_STEM_COUNT; i++) {
        size_t stem = strlen(aq_weight_stems[i]);
        if (body < stem || memcmp(name, aq_weight_stems[i], stem) != 0) continue;
        size_t mark = aq_shard_mark(name);
        if (mark && mark + 15 > body) continue;
        size_t begin = stem, end = body;
        if (mark == stem) begin = stem + 15;
        else if (mark) end = mark;
        *variant = name + begin + 1;
        *size = 0;
        if (begin == end) return true;
        if (name[begin] != '.') continue;
        *size = end - begin - 1;
        return true;
    }
    return false;
}

static bool aq_variant_is(const char *name, const char *wanted) {
    const char *variant;
    size_t size;
    if (!aq_name_variant(name, &variant, &size)) return false;
    return aq_text_equal(variant, size, wanted ? wanted : "");
}

static aq_status aq_one_weight(aq_arena *arena, const char *name, aq_weight_files *out,
                               aq_error *err) {
    out->shards = (const char **)aq_arena_alloc(arena, sizeof(char *));
    if (!out->shards) return aq_fail_memory(err, sizeof(char *));
    out->shards[0] = name;
    out->shard_count = 1;
    return AQ_OK;
}

/* Shards "X-0000i-of-0000n" without an index: all of them must be there. */
static aq_status aq_unindexed_shards(aq_arena *arena, const char *folder,
                                     const aq_folder_entry *entries, size_t count,
                                     const char *variant, aq_weight_files *out, aq_error *err) {
    const char *first = NULL;
    size_t total = 0, found = 0;
    for (size_t i = 0; i < count && !first; i++) {
        if (aq_is_safetensors(&entries[i]) && aq_shard_mark(entries[i].name) &&
            aq_variant_is(entries[i].name, variant))
            first = entries[i].name;
    }
    if (!first) return AQ_OK;
    size_t mark = aq_shard_mark(first);
    total = aq_decimal5(first + mark + 10);
    out->shards = (const char **)aq_arena_alloc(arena, count * sizeof(char *));
    if (!out->shards) return aq_fail_memory(err, count * sizeof(char *));
    for (size_t i = 0; i < count; i++) {
        const char *name = entries[i].name;
        if (!aq_is_safetensors(&entries[i]) || aq_shard_mark(name) != mark ||
            memcmp(name, first, mark) != 0 || strcmp(name + mark + 6, first + mark + 6) != 0)
            continue;
        size_t number = aq_decimal5(name + mark + 1);
        if (number != found + 1) break;
        out->shards[found++] = name;
    }
    if (found != total)
        return aq_fail(err, AQ_ERR_MODEL_NOT_FOUND,
                       "%s: shard %zu of %zu is missing (%s gives the number); copy all shards and "
                       "the .safetensors.index.json", folder, found + 1, total, first);
    out->shard_count = found;
    return AQ_OK;
}

static aq_status aq_no_weights(const char *folder, const aq_folder_entry *entries, size_t count,
                               const char *variant, aq_error *err) {
    const char *other = NULL, *legacy = NULL;
    size_t other_size = 0;
    for (size_t i = 0; i < count; i++) {
        const char *found;
        size_t size;
        if (entries[i].kind != AQ_PATH_FILE) continue;
        if (aq_name_variant(entries[i].name, &found, &size) && !other) {
            other = found;
            other_size = size;
        } else if (aq_is_legacy(entries[i].name) && !legacy) {
            legacy = entries[i].name;
        }
    }
    if (other && other_size)
        return aq_fail(err, AQ_ERR_MODEL_NOT_FOUND,
                       "%s: no weights of variant \"%s\", but of variant \"%.*s\"; choose it with "
                       "`variant` (--variant %.*s)", folder, variant ? variant : "",
                       (int)other_size, other, (int)other_size, other);
    if (other)
        return aq_fail(err, AQ_ERR_MODEL_NOT_FOUND,
                       "%s: no weights of variant \"%s\", but some without a variant; leave "
                       "`variant` out", folder, variant ? variant : "");
    if (legacy)
        return aq_fail(err, AQ_ERR_UNSUPPORTED,
                       "%s: weights are in %s, a pickle; only safetensors is read. Load the model "
                       "and save it with safe_serialization=True", folder, legacy);
    return aq_fail(err, AQ_ERR_MODEL_NOT_FOUND, "%s: no .safetensors file in it", folder);
}

/* The index of known stems, then a single file, then numbered shards, then the only file, then the
 * only GGUF file. */
AQ_LIB aq_status aq_choose_weights(aq_arena *arena, const char *folder,
                                   const aq_folder_entry *entries, size_t entry_count,
                                   const char *variant, aq_weight_files *out, aq_error *err) {
    char name[256];
    memset(out, 0, sizeof(*out));
    if (variant && !*variant) variant = NULL;
    for (size_t i = 0; i < AQ_WEIGHT_STEM_COUNT; i++) {
        const aq_folder_entry *entry;
        aq_format(name, sizeof(name), "%s.safetensors.index%s%s.json", aq_weight_stems[i],
                  variant ? "." : "", variant ? variant : "");
        entry = aq_entry_named(entries, entry_count, name);
        if (entry) {
            out->index = entry->name;
            return AQ_OK;
        }
        aq_format(name, sizeof(name), "%s%s%s.safetensors", aq_weight_stems[i],
                  variant ? "." : "", variant ? variant : "");
        entry = aq_entry_named(entries, entry_count, name);
        if (entry) return aq_one_weight(arena, entry->name, out, err);
    }
    aq_status status =
        aq_unindexed_shards(arena, folder, entries, entry_count, variant, out, err);
    if (status != AQ_OK || out->shard_count) return status;

    const char *only = NULL, *second = NULL;
    for (size_t i = 0; i < entry_count && !variant; i++) {
        const char *found;
        size_t size;
        if (!aq_is_safetensors(&entries[i]) || aq_name_variant(entries[i].name, &found, &size))
            continue;
        if (only) second = entries[i].name;
        else only = entries[i].name;
    }
    if (second)
        return aq_fail(err, AQ_ERR_METADATA,
                       "%s: several weight files (%s, %s, …) and no index; name one of them",
                       folder, only, second);
    if (only) return aq_one_weight(arena, only, out, err);
    for (size_t i = 0; i < entry_count && !variant; i++) {
        if (entries[i].kind != AQ_PATH_FILE || !aq_ends_with(entries[i].name, ".gguf")) continue;
        if (only)
            return aq_fail(err, AQ_ERR_METADATA, "%s: several GGUF files (%s, %s, …); name one of "
                           "them", folder, only, entries[i].name);
        only = entries[i].name;
    }
    if (only) return aq_one_weight(arena, only, out, err);
    return aq_no_weights(folder, entries, entry_count, variant, err);
}

/* The known stem that a file name begins with, or NULL. */
static const char *aq_weight_stem(const char *name) {
    for (size_t i = 0; i < AQ_WEIGHT_STEM_COUNT; i++) {
        size_t stem = strlen(aq_weight_stems[i]);
        if (strncmp(name, aq_weight_stems[i], stem) == 0 && (name[stem] == '.' || name[stem] == '-'))
            return aq_weight_stems[i];
    }
    return NULL;
}

AQ_LIB const char *aq_weight_file_to_skip(const char *name, const char *chosen) {
    const char *stem = aq_weight_stem(name);
    if (!stem) return NULL;
    if (aq_is_legacy(name) || aq_ends_with(name, ".bin.index.json"))
        return "the same weights as a pickle";
    if (aq_weight_stem(chosen) != stem) return NULL;
    if (aq_ends_with(name, ".safetensors")) return "another variant of the weights";
    if (strstr(name, ".safetensors.index.") != NULL) return "index of another variant";
    return NULL;
}

#undef AQ_WEIGHT_STEM_COUNT
#undef AQ_LEGACY_COUNT

#endif /* ARROWQUANT_NO_STDIO */
