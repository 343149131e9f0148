/* What a model makes: text, code, images or audio. Told by the config, by metadata.json, by class
 * names, and last by tensor names. */
#include "folder.h"

#include "../base/text.h"

#ifndef ARROWQUANT_NO_STDIO

typedef struct aq_modality_word {
    const char *word;
    aq_modality modality;
} aq_modality_word;

/* In order: "CodeLlamaForCausalLM" is code before it is text, "AudioLDM…Pipeline" audio before
 * every other pipeline is an image one. */
static const aq_modality_word aq_class_words[] = {
    { "Audio", AQ_MODALITY_AUDIO },       { "Music", AQ_MODALITY_AUDIO },
    { "Speech", AQ_MODALITY_AUDIO },      { "Wave", AQ_MODALITY_AUDIO },
    { "Whisper", AQ_MODALITY_AUDIO },     { "Code", AQ_MODALITY_CODE },
    { "Coder", AQ_MODALITY_CODE },        { "CausalLM", AQ_MODALITY_TEXT },
    { "MaskedLM", AQ_MODALITY_TEXT },     { "LLaDA", AQ_MODALITY_TEXT },
    { "Dream", AQ_MODALITY_TEXT },        { "LMHead", AQ_MODALITY_TEXT },
    { "Pipeline", AQ_MODALITY_IMAGE },    { "Transformer2D", AQ_MODALITY_IMAGE },
    { "Transformer3D", AQ_MODALITY_IMAGE }, { "UNet", AQ_MODALITY_IMAGE },
    { "DiT", AQ_MODALITY_IMAGE },         { "Autoencoder", AQ_MODALITY_IMAGE },
    { "ControlNet", AQ_MODALITY_IMAGE },
};

static const aq_modality_word aq_tensor_words[] = {
    { "lm_head", AQ_MODALITY_TEXT },      { "embed_tokens", AQ_MODALITY_TEXT },
    { "wte.", AQ_MODALITY_TEXT },         { "conv_in.", AQ_MODALITY_IMAGE },
    { "down_blocks", AQ_MODALITY_IMAGE }, { "input_blocks", AQ_MODALITY_IMAGE },
    { "x_embedder", AQ_MODALITY_IMAGE },  { "img_in", AQ_MODALITY_IMAGE },
    { "pos_embed.proj", AQ_MODALITY_IMAGE },
};

#define AQ_COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static aq_modality aq_modality_of_class(const char *name) {
    for (size_t i = 0; name && i < AQ_COUNT_OF(aq_class_words); i++) {
        if (strstr(name, aq_class_words[i].word)) return aq_class_words[i].modality;
    }
    return AQ_MODALITY_UNKNOWN;
}

/* _class_name of diffusers, architectures of transformers */
static aq_modality aq_modality_of_config(const aq_json_node *config) {
    aq_modality found = aq_modality_of_class(aq_json_string(aq_json_get(config, "_class_name")));
    const aq_json_node *list = aq_json_get(config, "architectures");
    if (found != AQ_MODALITY_UNKNOWN || !list || list->type != AQ_JSON_ARRAY) return found;
    for (const aq_json_node *item = list->first; item; item = item->next) {
        found = aq_modality_of_class(aq_json_string(item));
        if (found != AQ_MODALITY_UNKNOWN) return found;
    }
    return AQ_MODALITY_UNKNOWN;
}

static aq_modality aq_modality_of_tensors(const aq_folder *folder) {
    for (size_t w = 0; w < AQ_COUNT_OF(aq_tensor_words); w++) {
        for (size_t c = 0; c < folder->component_count; c++) {
            const aq_component *component = &folder->components[c];
            for (size_t s = 0; s < component->shard_count; s++) {
                for (size_t t = 0; t < component->files[s].tensor_count; t++) {
                    if (strstr(component->files[s].tensors[t].name, aq_tensor_words[w].word))
                        return aq_tensor_words[w].modality;
                }
            }
        }
    }
    return AQ_MODALITY_UNKNOWN;
}

/* "  Image\n" is image; anything that is no modality is UNKNOWN. */
static aq_modality aq_modality_of_text(const char *text) {
    size_t size;
    while (*text == ' ' || *text == '\t' || *text == '\n' || *text == '\r') text++;
    size = strlen(text);
    while (size && strchr(" \t\r\n", text[size - 1])) size--;
    for (int m = AQ_MODALITY_TEXT; m <= AQ_MODALITY_AUDIO; m++) {
        const char *name = aq_modality_name((aq_modality)m);
        size_t i = 0;
        while (i < size && name[i]) {
            char c = text[i];
            if (c >= 'A' && c <= 'Z') c = (char)(c - 'A' + 'a');
            if (c != name[i]) break;
            i++;
        }
        if (i == size && !name[i]) return (aq_modality)m;
    }
    return AQ_MODALITY_UNKNOWN;
}

static aq_status aq_modality_of_file(aq_arena *arena, const aq_folder *folder, const char *name,
                                     bool metadata, aq_modality *out, aq_error *err) {
    char *path = aq_path_join(arena, folder->root, name);
    char *text;
    size_t size;
    aq_json_node *root;
    if (!path) return aq_fail_memory(err, 0);
    if (aq_path_kind_of(path) != AQ_PATH_FILE) return AQ_OK;
    aq_status status = aq_read_text(arena, path, (uint64_t)64 << 20, &text, &size, err);
    if (status != AQ_OK) return status;
    status = aq_json_parse(arena, text, size, path, AQ_ERR_METADATA, &root, err);
    if (status != AQ_OK) return status;
    if (metadata) {
        const char *value = aq_json_string(aq_json_get(root, "modality"));
        if (value) *out = aq_modality_of_text(value);
    } else {
        *out = aq_modality_of_config(root);
    }
    return AQ_OK;
}

AQ_LIB aq_status aq_detect_modality(aq_arena *arena, const aq_config *config,
                                    const aq_folder *folder, aq_modality *out, aq_error *err) {
    aq_status status = AQ_OK;
    *out = config->modality;
    if (*out != AQ_MODALITY_UNKNOWN) return AQ_OK;
    if (folder->kind != AQ_FOLDER_FILE)
        status = aq_modality_of_file(arena, folder, "metadata.json", true, out, err);
    for (size_t c = 0; c < folder->component_count && *out == AQ_MODALITY_UNKNOWN; c++) {
        if (folder->components[c].config_json)
            *out = aq_modality_of_config(folder->components[c].config_json);
    }
    if (status == AQ_OK && *out == AQ_MODALITY_UNKNOWN && folder->kind == AQ_FOLDER_PIPELINE)
        status = aq_modality_of_file(arena, folder, "model_index.json", false, out, err);
    if (status == AQ_OK && *out == AQ_MODALITY_UNKNOWN) *out = aq_modality_of_tensors(folder);
    return status;
}

#undef AQ_COUNT_OF
#endif /* ARROWQUANT_NO_STDIO */
