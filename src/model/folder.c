/* Opening a model folder: its kind, its components, their weight files, everything else. */
#include "folder.h"

#include "../base/text.h"
#include "../format/sort.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_FOLDER_DEPTH 16u
#define AQ_SMALL_JSON ((uint64_t)64 << 20) /* config.json and model_index.json are kilobytes */

/* Lists of paths that grow while a folder is walked. */
typedef struct aq_path_list {
    const char **items;
    size_t count, capacity;
} aq_path_list;

typedef struct aq_walk {
    aq_arena *arena;
    const aq_config *config;
    aq_folder *folder;
    aq_path_list others, subfolders, skipped, skipped_why, wanted;
    size_t component_capacity;
} aq_walk;

static aq_status aq_list_add(aq_arena *arena, aq_path_list *list, const char *item,
                             aq_error *err) {
    if (!item) return aq_fail_memory(err, 0);
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 16;
        const char **items = (const char **)aq_arena_alloc(arena, capacity * sizeof(char *));
        if (!items) return aq_fail_memory(err, capacity * sizeof(char *));
        if (list->count) memcpy(items, list->items, list->count * sizeof(char *));
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = item;
    return AQ_OK;
}

/* "prefix" + name, where prefix is "" or ends in "/" */
static char *aq_relative(aq_arena *arena, const char *prefix, const char *name) {
    size_t a = strlen(prefix), b = strlen(name);
    char *path = (char *)aq_arena_alloc(arena, a + b + 1);
    if (!path) return NULL;
    memcpy(path, prefix, a);
    memcpy(path + a, name, b);
    return path;
}

static bool aq_name_listed(const aq_path_list *list, const char *name) {
    for (size_t i = 0; i < list->count; i++) {
        if (strcmp(list->items[i], name) == 0) return true;
    }
    return false;
}

static aq_status aq_read_json(aq_walk *walk, const char *relative, aq_json_node **out,
                              aq_error *err) {
    char *path = aq_path_join(walk->arena, walk->folder->root, relative);
    char *text;
    size_t size;
    if (!path) return aq_fail_memory(err, 0);
    aq_status status = aq_read_text(walk->arena, path, AQ_SMALL_JSON, &text, &size, err);
    if (status != AQ_OK) return status;
    status = aq_json_parse(walk->arena, text, size, path, AQ_ERR_METADATA, out, err);
    if (status != AQ_OK) return status;
    if ((*out)->type != AQ_JSON_OBJECT)
        return aq_fail(err, AQ_ERR_METADATA, "%s: not a JSON object", path);
    return AQ_OK;
}

/* ---- carrying over */

static aq_status aq_walk_others(aq_walk *walk, const char *prefix, const aq_path_list *except,
                                const char *chosen, uint32_t depth, aq_error *err);

static aq_status aq_walk_skip(aq_walk *walk, const char *relative, const char *why,
                              aq_error *err) {
    aq_status status = aq_list_add(walk->arena, &walk->skipped, relative, err);
    if (status != AQ_OK) return status;
    return aq_list_add(walk->arena, &walk->skipped_why, why, err);
}

static aq_status aq_walk_entry(aq_walk *walk, const char *prefix, const aq_folder_entry *entry,
                               const char *chosen, uint32_t depth, aq_error *err) {
    char *relative = aq_relative(walk->arena, prefix, entry->name);
    const char *why = NULL;
    aq_path_list none;
    if (!relative) return aq_fail_memory(err, 0);
    memset(&none, 0, sizeof(none));
    if (entry->kind == AQ_PATH_FILE) {
        if (chosen) why = aq_weight_file_to_skip(entry->name, chosen);
        if (strcmp(relative, "arrowquant_report.json") == 0) why = "report of an earlier run";
        if (why) return aq_walk_skip(walk, relative, why, err);
        return aq_list_add(walk->arena, &walk->others, relative, err);
    }
    if (entry->kind != AQ_PATH_FOLDER)
        return aq_walk_skip(walk, relative, "neither a file nor a folder", err);
    if (entry->name[0] == '.') return aq_walk_skip(walk, relative, "a hidden folder", err);
    aq_status status = aq_list_add(walk->arena, &walk->subfolders, relative, err);
    if (status != AQ_OK) return status;
    relative = aq_relative(walk->arena, relative, "/");
    if (!relative) return aq_fail_memory(err, 0);
    return aq_walk_others(walk, relative, &none, NULL, depth + 1, err);
}

/* Everything below root/prefix but the names in `except`. */
static aq_status aq_walk_others(aq_walk *walk, const char *prefix, const aq_path_list *except,
                                const char *chosen, uint32_t depth, aq_error *err) {
    aq_folder_entry *entries;
    size_t count;
    char *path = aq_path_join(walk->arena, walk->folder->root, prefix);
    if (!path) return aq_fail_memory(err, 0);
    if (depth > AQ_FOLDER_DEPTH)
        return aq_fail(err, AQ_ERR_METADATA, "%s: folders nested deeper than %u, perhaps a link "
                       "that leads back", path, AQ_FOLDER_DEPTH);
    aq_status status = aq_list_folder(walk->arena, path, &entries, &count, err);
    for (size_t i = 0; status == AQ_OK && i < count; i++) {
        if (aq_name_listed(except, entries[i].name)) continue;
        status = aq_walk_entry(walk, prefix, &entries[i], chosen, depth, err);
    }
    return status;
}

/* ---- weights */

/* Every tensor of the index is in the shard it names, and the other way round. */
static aq_status aq_check_index(const aq_folder *folder, const aq_component *component,
                                aq_error *err) {
    size_t in_files = 0;
    for (size_t s = 0; s < component->shard_count; s++) in_files += component->files[s].tensor_count;
    const aq_st_index *index = &component->index_data;
    for (size_t s = 0; s < component->shard_count; s++) {
        const aq_st_file *file = &component->files[s];
        const char *base = aq_path_base(component->shards[s]);
        for (size_t t = 0; t < file->tensor_count; t++) {
            const char *name = file->tensors[t].name;
            size_t low = 0, high = index->entry_count;
            while (low < high) {
                size_t middle = low + (high - low) / 2;
                if (strcmp(index->entries[middle].tensor, name) < 0) low = middle + 1;
                else high = middle;
            }
            if (low == index->entry_count || strcmp(index->entries[low].tensor, name) != 0)
                return aq_fail_tensor(err, AQ_ERR_METADATA, name, 0,
                                      "%s/%s: tensor %s is in %s but not in the index; download "
                                      "the index again", folder->root, component->index, name, base);
            const char *said = index->shards[index->entries[low].shard];
            if (strcmp(said, base) != 0)
                return aq_fail_tensor(err, AQ_ERR_METADATA, name, 0,
                                      "%s/%s: tensor %s should be in %s but is in %s",
                                      folder->root, component->index, name, said, base);
        }
    }
    if (in_files != index->entry_count)
        return aq_fail(err, AQ_ERR_METADATA,
                       "%s/%s: names %zu tensors, the shards hold %zu; a shard is incomplete or "
                       "belongs to another model", folder->root, component->index,
                       index->entry_count, in_files);
    return AQ_OK;
}

/* No index: a tensor that stands in two shards would be written twice. */
static aq_status aq_check_unique(aq_arena *arena, const aq_folder *folder,
                                 const aq_component *component, aq_error *err) {
    const aq_st_tensor *const **sorted;
    if (component->shard_count < 2) return AQ_OK;
    sorted = (const aq_st_tensor *const **)aq_arena_alloc(
        arena, component->shard_count * sizeof(*sorted));
    if (!sorted) return aq_fail_memory(err, component->shard_count * sizeof(*sorted));
    for (size_t s = 0; s < component->shard_count; s++) {
        sorted[s] = aq_st_sort_by_name(arena, &component->files[s]);
        if (!sorted[s]) return aq_fail_memory(err, 0);
        for (size_t t = 0; t < component->files[s].tensor_count; t++) {
            const char *name = component->files[s].tensors[t].name;
            for (size_t other = 0; other < s; other++) {
                if (aq_st_find(sorted[other], component->files[other].tensor_count, name))
                    return aq_fail_tensor(err, AQ_ERR_METADATA, name, 0,
                                          "%s: tensor %s is in both %s and %s", folder->root, name,
                                          component->shards[other], component->shards[s]);
            }
        }
    }
    return AQ_OK;
}

/* A GGUF file is read when the model is opened; here it has a size and no tensors. */
static aq_status aq_gguf_stand_in(const char *path, aq_st_file *out, aq_error *err) {
    aq_file file = AQ_FILE_CLOSED;
    memset(out, 0, sizeof(*out));
    out->path = path;
    aq_status status = aq_file_open(&file, path, &out->file_size, err);
    (void)aq_file_close(&file, NULL);
    return status;
}

static aq_status aq_read_headers(aq_walk *walk, aq_component *component, aq_error *err) {
    aq_arena *arena = walk->arena;
    component->files = (aq_st_file *)aq_arena_alloc(arena, component->shard_count * sizeof(aq_st_file));
    if (!component->files) return aq_fail_memory(err, component->shard_count * sizeof(aq_st_file));
    for (size_t i = 0; i < component->shard_count; i++) {
        char *path = aq_path_join(arena, walk->folder->root, component->shards[i]);
        if (!path) return aq_fail_memory(err, 0);
        if (component->index && aq_path_kind_of(path) != AQ_PATH_FILE)
            return aq_fail(err, AQ_ERR_MODEL_NOT_FOUND,
                           "%s/%s: names the shard %s, which is not there; download it again",
                           walk->folder->root, component->index, component->shards[i]);
        aq_status status = aq_ends_with(path, ".gguf")
                               ? aq_gguf_stand_in(path, &component->files[i], err)
                               : aq_st_read_header(arena, path, &component->files[i], err);
        if (status != AQ_OK) return status;
    }
    return component->index ? aq_check_index(walk->folder, component, err)
                            : aq_check_unique(arena, walk->folder, component, err);
}

static int aq_compare_shard_names(const void *a, const void *b) {
    return strcmp((const char *)a, (const char *)b);
}

static aq_status aq_load_index(aq_walk *walk, const char *prefix, aq_component *component,
                               aq_error *err) {
    aq_arena *arena = walk->arena;
    char *path = aq_path_join(arena, walk->folder->root, component->index);
    if (!path) return aq_fail_memory(err, 0);
    aq_status status = aq_st_read_index(arena, path, &component->index_data, err);
    if (status != AQ_OK) return status;
    size_t count = component->index_data.shard_count;
    if (!count) return aq_fail(err, AQ_ERR_METADATA, "%s: names no shard", path);
    const void **sorted = (const void **)aq_arena_alloc(arena, count * sizeof(*sorted));
    component->shards = (const char **)aq_arena_alloc(arena, count * sizeof(char *));
    if (!sorted || !component->shards) return aq_fail_memory(err, count * sizeof(char *));
    for (size_t i = 0; i < count; i++) {
        sorted[i] = aq_relative(arena, prefix, component->index_data.shards[i]);
        if (!sorted[i]) return aq_fail_memory(err, 0);
    }
    aq_sort_pointers(sorted, count, aq_compare_shard_names);
    for (size_t i = 0; i < count; i++) component->shards[i] = (const char *)sorted[i];
    component->shard_count = count;
    return AQ_OK;
}

/* Adds the component whose folder is root/prefix; `files` says which weights. */
static aq_status aq_add_component(aq_walk *walk, const char *name, const char *prefix,
                                  const aq_weight_files *files, aq_error *err) {
    aq_arena *arena = walk->arena;
    aq_folder *folder = walk->folder;
    aq_component *component = &folder->components[folder->component_count];
    aq_path_list except;
    aq_status status = AQ_OK;
    memset(&except, 0, sizeof(except));
    component->name = name;
    if (files->index) {
        component->index = aq_relative(arena, prefix, files->index);
        if (!component->index) return aq_fail_memory(err, 0);
        status = aq_list_add(arena, &except, files->index, err);
        if (status == AQ_OK) status = aq_load_index(walk, prefix, component, err);
        if (status != AQ_OK) return status;
    } else {
        component->shard_count = files->shard_count;
        component->shards = (const char **)aq_arena_alloc(arena, files->shard_count * sizeof(char *));
        if (!component->shards) return aq_fail_memory(err, 0);
        for (size_t i = 0; i < files->shard_count; i++) {
            component->shards[i] = aq_relative(arena, prefix, files->shards[i]);
            if (!component->shards[i]) return aq_fail_memory(err, 0);
        }
    }
    for (size_t i = 0; status == AQ_OK && i < component->shard_count; i++)
        status = aq_list_add(arena, &except, aq_path_base(component->shards[i]), err);
    if (status == AQ_OK) status = aq_read_headers(walk, component, err);
    if (status != AQ_OK) return status;
    folder->component_count++;
    if (folder->kind == AQ_FOLDER_FILE) return AQ_OK;

    char *config = aq_relative(arena, prefix, "config.json");
    char *path = config ? aq_path_join(arena, folder->root, config) : NULL;
    if (!path) return aq_fail_memory(err, 0);
    if (aq_path_kind_of(path) == AQ_PATH_FILE) {
        component->config = config;
        status = aq_read_json(walk, config, &component->config_json, err);
        if (status == AQ_OK) status = aq_list_add(arena, &except, "config.json", err);
        if (status != AQ_OK) return status;
    }
    return aq_walk_others(walk, prefix, &except, except.items[0], 0, err);
}

static aq_status aq_open_plain(aq_walk *walk, const char *prefix, const char *name,
                               aq_error *err) {
    aq_folder_entry *entries;
    size_t count;
    aq_weight_files files;
    char *path = aq_path_join(walk->arena, walk->folder->root, prefix);
    if (!path) return aq_fail_memory(err, 0);
    aq_status status = aq_list_folder(walk->arena, path, &entries, &count, err);
    if (status != AQ_OK) return status;
    status = aq_choose_weights(walk->arena, path, entries, count, walk->config->variant, &files, err);
    if (status != AQ_OK) return status;
    return aq_add_component(walk, name, prefix, &files, err);
}

/* ---- pipelines */

static bool aq_is_denoiser(const char *name) {
    return strcmp(name, "transformer") == 0 || strcmp(name, "unet") == 0 ||
           strcmp(name, "transformer_2") == 0;
}

static aq_status aq_choose_components(aq_walk *walk, const aq_folder_entry *entries, size_t count,
                                      aq_error *err) {
    const aq_config *config = walk->config;
    aq_status status = AQ_OK;
    for (size_t i = 0; status == AQ_OK && i < count; i++) {
        bool wanted = false;
        if (entries[i].kind != AQ_PATH_FOLDER) continue;
        for (size_t c = 0; c < config->component_count; c++)
            wanted = wanted || strcmp(config->components[c], entries[i].name) == 0;
        if (config->component_count ? wanted : aq_is_denoiser(entries[i].name))
            status = aq_list_add(walk->arena, &walk->wanted, entries[i].name, err);
    }
    for (size_t c = 0; status == AQ_OK && c < config->component_count; c++) {
        if (!aq_name_listed(&walk->wanted, config->components[c]))
            return aq_fail(err, AQ_ERR_MODEL_NOT_FOUND, "%s: no component folder \"%s\" in the "
                           "pipeline; see its model_index.json", walk->folder->root,
                           config->components[c]);
    }
    if (status == AQ_OK && !walk->wanted.count)
        return aq_fail(err, AQ_ERR_MODEL_NOT_FOUND,
                       "%s: the pipeline has no transformer/ or unet/ folder; name the components "
                       "to quantize with `components` (--components)", walk->folder->root);
    return status;
}

static aq_status aq_open_pipeline(aq_walk *walk, aq_error *err) {
    aq_folder *folder = walk->folder;
    aq_folder_entry *entries;
    size_t count;
    aq_json_node *index;
    aq_status status = aq_read_json(walk, "model_index.json", &index, err);
    if (status != AQ_OK) return status;
    status = aq_list_folder(walk->arena, folder->root, &entries, &count, err);
    if (status == AQ_OK) status = aq_choose_components(walk, entries, count, err);
    if (status == AQ_OK) status = aq_walk_others(walk, "", &walk->wanted, NULL, 0, err);
    if (status != AQ_OK) return status;
    folder->components = (aq_component *)aq_arena_alloc(
        walk->arena, walk->wanted.count * sizeof(aq_component));
    if (!folder->components) return aq_fail_memory(err, 0);
    for (size_t i = 0; i < walk->wanted.count; i++) {
        const char *name = walk->wanted.items[i];
        char *prefix = aq_relative(walk->arena, name, "/");
        if (!prefix) return aq_fail_memory(err, 0);
        status = aq_list_add(walk->arena, &walk->subfolders, name, err);
        if (status == AQ_OK) status = aq_open_plain(walk, prefix, name, err);
        if (status != AQ_OK) return status;
    }
    return AQ_OK;
}

/* ---- entry */

static aq_status aq_open_file(aq_walk *walk, const char *path, aq_error *err) {
    aq_folder *folder = walk->folder;
    aq_weight_files files;
    const char *name = aq_path_base(path);
    memset(&files, 0, sizeof(files));
    folder->root = aq_path_parent(walk->arena, path);
    if (!folder->root) return aq_fail_memory(err, 0);
    if (strstr(name, ".safetensors.index.") && aq_ends_with(name, ".json")) {
        folder->kind = AQ_FOLDER_PLAIN;
        files.index = name;
    } else if (aq_ends_with(name, ".safetensors") || aq_ends_with(name, ".gguf")) {
        folder->kind = AQ_FOLDER_FILE;
        files.shards = &name;
        files.shard_count = 1;
    } else {
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: only .safetensors and .gguf files are read; load the "
                       "model and save it with safe_serialization=True", path);
    }
    return aq_add_component(walk, "", "", &files, err);
}

static aq_status aq_open_any(aq_walk *walk, const char *path, aq_error *err) {
    aq_folder *folder = walk->folder;
    aq_path_kind kind = aq_path_kind_of(path);
    if (kind == AQ_PATH_FILE) return aq_open_file(walk, path, err);
    if (kind != AQ_PATH_FOLDER)
        return aq_fail(err, AQ_ERR_MODEL_NOT_FOUND, "%s: no such file or folder; give a model "
                       "folder, a .safetensors file or a .safetensors.index.json", path);
    folder->root = path;
    char *pipeline = aq_path_join(walk->arena, path, "model_index.json");
    if (!pipeline) return aq_fail_memory(err, 0);
    if (aq_path_kind_of(pipeline) == AQ_PATH_FILE) {
        folder->kind = AQ_FOLDER_PIPELINE;
        return aq_open_pipeline(walk, err);
    }
    folder->kind = AQ_FOLDER_PLAIN;
    if (walk->config->component_count)
        return aq_fail(err, AQ_ERR_CONFIGURATION, "%s: has no model_index.json, so it has no "
                       "components; leave `components` out", path);
    return aq_open_plain(walk, "", "", err);
}

static aq_status aq_pair_skipped(aq_walk *walk, aq_error *err) {
    aq_folder *folder = walk->folder;
    folder->skipped_count = walk->skipped.count;
    if (!walk->skipped.count) return AQ_OK;
    folder->skipped = (aq_skipped_file *)aq_arena_alloc(
        walk->arena, walk->skipped.count * sizeof(aq_skipped_file));
    if (!folder->skipped) return aq_fail_memory(err, 0);
    for (size_t i = 0; i < walk->skipped.count; i++) {
        folder->skipped[i].path = walk->skipped.items[i];
        folder->skipped[i].why = walk->skipped_why.items[i];
    }
    return AQ_OK;
}

AQ_LIB aq_status aq_folder_open(aq_arena *arena, const char *path, const aq_config *config,
                                aq_folder *out, aq_error *err) {
    aq_walk walk;
    memset(&walk, 0, sizeof(walk));
    memset(out, 0, sizeof(*out));
    walk.arena = arena;
    walk.config = config;
    walk.folder = out;
    path = aq_arena_string(arena, path);
    out->components = (aq_component *)aq_arena_alloc(arena, sizeof(aq_component));
    if (!path || !out->components) return aq_fail_memory(err, 0);
    aq_status status = aq_open_any(&walk, path, err);
    if (status == AQ_OK) status = aq_pair_skipped(&walk, err);
    if (status != AQ_OK) return status;
    out->others = walk.others.items;
    out->other_count = walk.others.count;
    out->subfolders = walk.subfolders.items;
    out->subfolder_count = walk.subfolders.count;
    return aq_detect_modality(arena, config, out, &out->modality, err);
}

#undef AQ_FOLDER_DEPTH
#undef AQ_SMALL_JSON

#endif /* ARROWQUANT_NO_STDIO */
