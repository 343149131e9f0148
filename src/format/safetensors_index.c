/* *.safetensors.index.json: which shard of a model holds which tensor. */
#include "safetensors.h"

#include "../base/text.h"
#include "json_member.h"
#include "sort.h"

#ifndef ARROWQUANT_NO_STDIO

typedef struct aq_index_pair {
    const char *tensor, *shard;
    size_t order; /* in the file */
    uint32_t number; /* of the shard */
} aq_index_pair;

typedef struct aq_index_parser {
    aq_arena *arena;
    aq_arena scratch;
    aq_json_reader json;
    const char *path;
    aq_index_pair *pairs;
    size_t count;
    aq_st_index *out;
    aq_error *err;
} aq_index_parser;

/* A plain file name: it must not lead out of the model's folder, on any system. */
static bool aq_index_is_plain(const char *name) {
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) return false;
    return strpbrk(name, "/\\:") == NULL;
}

static aq_status aq_index_decode(aq_index_parser *parser, aq_arena *arena,
                                 const aq_json_event *event, const char **out) {
    size_t size = 0;
    *out = aq_json_decode(arena, event->text, event->size, &size);
    if (!*out) return aq_fail_memory(parser->err, event->size);
    if (strlen(*out) == size) return AQ_OK;
    return aq_fail(parser->err, AQ_ERR_METADATA,
                   "%s: weight_map holds a name with a NUL after \"%s\"; write the index again",
                   parser->path, *out);
}

static aq_status aq_index_pair_read(aq_index_parser *parser, aq_json_event *event,
                                    aq_index_pair *pair) {
    aq_status status = aq_json_next(&parser->json, event, parser->err);
    if (status == AQ_OK) status = aq_index_decode(parser, parser->arena, event, &pair->tensor);
    if (status == AQ_OK) status = aq_json_next(&parser->json, event, parser->err);
    if (status != AQ_OK) return status;
    if (event->type != AQ_JSON_STRING)
        return aq_fail_tensor(parser->err, AQ_ERR_METADATA, pair->tensor, 0,
                              "%s: tensor %s: weight_map should give a file name, found %s; write "
                              "the index again", parser->path, pair->tensor,
                              aq_json_type_text(event->type));
    status = aq_index_decode(parser, &parser->scratch, event, &pair->shard);
    if (status != AQ_OK || aq_index_is_plain(pair->shard)) return status;
    return aq_fail_tensor(parser->err, AQ_ERR_METADATA, pair->tensor, 0,
                          "%s: tensor %s: shard \"%s\" should be the plain name of a file beside "
                          "the index; write the index again", parser->path, pair->tensor,
                          pair->shard);
}

static aq_status aq_index_weight_map(aq_index_parser *parser, aq_json_event *event) {
    size_t bytes = 0;
    if (event->type != AQ_JSON_OBJECT)
        return aq_fail(parser->err, AQ_ERR_METADATA,
                       "%s: weight_map should be an object, found %s; write the index again",
                       parser->path, aq_json_type_text(event->type));
    aq_status status = aq_json_count(&parser->json, &parser->count, parser->err);
    if (status != AQ_OK) return status;
    if (aq_mul_size(parser->count + 1, sizeof(*parser->pairs), &bytes))
        parser->pairs = (aq_index_pair *)aq_arena_alloc(&parser->scratch, bytes);
    if (!parser->pairs) return aq_fail_memory(parser->err, bytes);
    for (size_t i = 0; i < parser->count; i++) {
        parser->pairs[i].order = i;
        status = aq_index_pair_read(parser, event, &parser->pairs[i]);
        if (status != AQ_OK) return status;
    }
    return aq_json_next(&parser->json, event, parser->err);
}

static aq_status aq_index_metadata(aq_index_parser *parser, const aq_json_event *event) {
    size_t begin = 0, end = 0;
    if (event->type == AQ_JSON_NULL) return AQ_OK;
    if (event->type != AQ_JSON_OBJECT)
        return aq_fail(parser->err, AQ_ERR_METADATA,
                       "%s: metadata should be an object, found %s; write the index again",
                       parser->path, aq_json_type_text(event->type));
    aq_status status = aq_json_pass_slice(&parser->json, event, &begin, &end, parser->err);
    if (status != AQ_OK) return status;
    parser->out->metadata_size = end - begin;
    parser->out->metadata = aq_arena_copy(parser->arena, parser->json.text + begin, end - begin);
    return parser->out->metadata ? AQ_OK : aq_fail_memory(parser->err, end - begin);
}

enum { AQ_INDEX_WEIGHT_MAP = 1, AQ_INDEX_METADATA = 2 };

static aq_status aq_index_object(aq_index_parser *parser) {
    aq_json_event event;
    unsigned fields = 0;
    aq_status status = aq_json_next(&parser->json, &event, parser->err);
    if (status != AQ_OK) return status;
    if (event.type != AQ_JSON_OBJECT)
        return aq_fail(parser->err, AQ_ERR_METADATA,
                       "%s: an index should be a JSON object, found %s; write it again",
                       parser->path, aq_json_type_text(event.type));
    for (;;) {
        unsigned field = 0;
        status = aq_json_next(&parser->json, &event, parser->err);
        if (status != AQ_OK) return status;
        if (event.type == AQ_JSON_OBJECT_END) break;
        if (aq_json_is(&event, "weight_map")) field = AQ_INDEX_WEIGHT_MAP;
        if (aq_json_is(&event, "metadata")) field = AQ_INDEX_METADATA;
        if (fields & field)
            return aq_fail(parser->err, AQ_ERR_METADATA,
                           "%s: %.*s is given twice; write the index again", parser->path,
                           (int)event.size, event.text);
        fields |= field;
        status = aq_json_next(&parser->json, &event, parser->err);
        if (status != AQ_OK) return status;
        if (field == AQ_INDEX_WEIGHT_MAP) status = aq_index_weight_map(parser, &event);
        else if (field == AQ_INDEX_METADATA) status = aq_index_metadata(parser, &event);
        else status = aq_json_pass(&parser->json, &event, parser->err);
        if (status != AQ_OK) return status;
    }
    if (!(fields & AQ_INDEX_WEIGHT_MAP))
        return aq_fail(parser->err, AQ_ERR_METADATA,
                       "%s: no weight_map; this is not the index of a sharded model", parser->path);
    return aq_json_next(&parser->json, &event, parser->err);
}

static int aq_index_by_shard(const void *a, const void *b) {
    const aq_index_pair *first = (const aq_index_pair *)a, *second = (const aq_index_pair *)b;
    int order = strcmp(first->shard, second->shard);
    if (order) return order;
    return first->order < second->order ? -1 : first->order > second->order;
}

static int aq_index_by_order(const void *a, const void *b) {
    const aq_index_pair *first = (const aq_index_pair *)a, *second = (const aq_index_pair *)b;
    return first->order < second->order ? -1 : first->order > second->order;
}

static int aq_index_by_tensor(const void *a, const void *b) {
    return strcmp(((const aq_index_pair *)a)->tensor, ((const aq_index_pair *)b)->tensor);
}

/* Numbers the shards by first appearance. `sorted` holds all pairs, in any order. */
static aq_status aq_index_shards(aq_index_parser *parser, const void **sorted) {
    size_t count = parser->count, shards = 0;
    aq_sort_pointers(sorted, count, aq_index_by_shard);
    /* Of each run of equal shards the first pair appears first in the file. */
    const void **firsts =
        (const void **)aq_arena_alloc(&parser->scratch, (count + 1) * sizeof(*firsts));
    if (!firsts) return aq_fail_memory(parser->err, count * sizeof(*firsts));
    for (size_t i = 0; i < count; i++) {
        const aq_index_pair *pair = (const aq_index_pair *)sorted[i];
        if (!shards || strcmp(((const aq_index_pair *)firsts[shards - 1])->shard, pair->shard) != 0)
            firsts[shards++] = pair;
    }
    aq_sort_pointers(firsts, shards, aq_index_by_order);
    const char **names =
        (const char **)aq_arena_alloc(parser->arena, (shards + 1) * sizeof(*names));
    if (!names) return aq_fail_memory(parser->err, shards * sizeof(*names));
    for (size_t i = 0; i < shards; i++) {
        size_t first = ((const aq_index_pair *)firsts[i])->order;
        parser->pairs[first].number = (uint32_t)i;
        names[i] = aq_arena_string(parser->arena, parser->pairs[first].shard);
        if (!names[i]) return aq_fail_memory(parser->err, strlen(parser->pairs[first].shard));
    }
    for (size_t i = 1; i < count; i++) { /* the numbers go along the runs */
        const aq_index_pair *before = (const aq_index_pair *)sorted[i - 1];
        const aq_index_pair *pair = (const aq_index_pair *)sorted[i];
        if (strcmp(before->shard, pair->shard) == 0)
            parser->pairs[pair->order].number = before->number;
    }
    parser->out->shards = names;
    parser->out->shard_count = shards;
    return AQ_OK;
}

static aq_status aq_index_arrange(aq_index_parser *parser) {
    size_t count = parser->count;
    aq_st_index *out = parser->out;
    const void **sorted =
        (const void **)aq_arena_alloc(&parser->scratch, (count + 1) * sizeof(*sorted));
    out->entries =
        (aq_st_index_entry *)aq_arena_alloc(parser->arena, (count + 1) * sizeof(*out->entries));
    if (!sorted || !out->entries) return aq_fail_memory(parser->err, count * sizeof(*out->entries));
    for (size_t i = 0; i < count; i++) sorted[i] = &parser->pairs[i];
    aq_status status = aq_index_shards(parser, sorted);
    if (status != AQ_OK) return status;
    aq_sort_pointers(sorted, count, aq_index_by_tensor);
    for (size_t i = 0; i < count; i++) {
        const aq_index_pair *pair = (const aq_index_pair *)sorted[i];
        if (i && strcmp(out->entries[i - 1].tensor, pair->tensor) == 0)
            return aq_fail_tensor(parser->err, AQ_ERR_METADATA, pair->tensor, 0,
                                  "%s: tensor %s is in weight_map twice; write the index again",
                                  parser->path, pair->tensor);
        out->entries[i].tensor = pair->tensor;
        out->entries[i].shard = pair->number;
    }
    out->entry_count = count;
    return AQ_OK;
}

AQ_LIB aq_status aq_st_parse_index(aq_arena *arena, const char *text, size_t size,
                                   const char *path, aq_st_index *out, aq_error *err) {
    aq_index_parser parser;
    memset(&parser, 0, sizeof(parser));
    memset(out, 0, sizeof(*out));
    parser.arena = arena;
    aq_arena_init(&parser.scratch, arena->context);
    parser.path = path;
    parser.out = out;
    parser.err = err;
    aq_json_open(&parser.json, text, size, path);
    parser.json.failure = AQ_ERR_METADATA;
    aq_status status = aq_index_object(&parser);
    if (status == AQ_OK) status = aq_index_arrange(&parser);
    aq_arena_free(&parser.scratch);
    return status;
}

AQ_LIB aq_status aq_st_read_index(aq_arena *arena, const char *path, aq_st_index *out,
                                  aq_error *err) {
    aq_arena scratch;
    char *text = NULL;
    size_t size = 0;
    aq_arena_init(&scratch, arena->context);
    aq_status status = aq_read_text(&scratch, path, AQ_ST_INDEX_LIMIT, &text, &size, err);
    if (status == AQ_OK) status = aq_st_parse_index(arena, text, size, path, out, err);
    aq_arena_free(&scratch);
    return status;
}

static int aq_index_by_output(const void *a, const void *b) {
    return strcmp(((const aq_st_index_output *)a)->tensor, ((const aq_st_index_output *)b)->tensor);
}

/* The other members of the metadata that the input's index had, as they were written. */
static aq_status aq_index_append_metadata(aq_builder *builder, const char *metadata,
                                          uint64_t total_size, aq_error *err) {
    aq_json_reader json;
    aq_json_event key, value;
    aq_append_format(builder, "{\n  \"metadata\": {\n    \"total_size\": %llu",
                     (unsigned long long)total_size);
    if (!metadata) return AQ_OK;
    aq_json_open(&json, metadata, strlen(metadata), "metadata of the index");
    json.failure = AQ_ERR_METADATA;
    aq_status status = aq_json_next(&json, &key, err);
    while (status == AQ_OK) {
        size_t begin = 0, end = 0;
        status = aq_json_next(&json, &key, err);
        if (status != AQ_OK || key.type != AQ_JSON_KEY) break;
        status = aq_json_next(&json, &value, err);
        if (status == AQ_OK) status = aq_json_pass_slice(&json, &value, &begin, &end, err);
        if (status != AQ_OK || aq_json_is(&key, "total_size")) continue;
        aq_append_string(builder, ",\n    \"");
        aq_append(builder, key.text, key.size);
        aq_append_string(builder, "\": ");
        aq_append(builder, metadata + begin, end - begin);
    }
    return status;
}

static aq_status aq_index_append_map(aq_builder *builder, const void *const *sorted, size_t count,
                                     const char *path, aq_error *err) {
    aq_append_string(builder, "\n  },\n  \"weight_map\": {");
    for (size_t i = 0; i < count; i++) {
        const aq_st_index_output *entry = (const aq_st_index_output *)sorted[i];
        if (i && aq_index_by_output(sorted[i - 1], entry) == 0)
            return aq_fail_tensor(err, AQ_ERR_ARGUMENT, entry->tensor, 0,
                                  "%s: two tensors are called %s", path, entry->tensor);
        aq_append_string(builder, i ? ",\n    " : "\n    ");
        aq_append_json_string(builder, entry->tensor, strlen(entry->tensor));
        aq_append(builder, ": ", 2);
        aq_append_json_string(builder, entry->shard, strlen(entry->shard));
    }
    aq_append_string(builder, "\n  }\n}\n");
    return AQ_OK;
}

AQ_LIB aq_status aq_st_write_index(const aq_context *context, const char *path,
                                   const aq_st_index_output *entries, size_t count,
                                   uint64_t total_size, const char *metadata, aq_error *err) {
    aq_arena scratch;
    aq_builder builder;
    char *text = NULL;
    size_t size = 0;
    aq_status status = AQ_OK;
    aq_arena_init(&scratch, context);
    aq_builder_init(&builder, context);
    const void **sorted = (const void **)aq_arena_alloc(&scratch, (count + 1) * sizeof(*sorted));
    if (!sorted) status = aq_fail_memory(err, count * sizeof(*sorted));
    if (status == AQ_OK) {
        for (size_t i = 0; i < count; i++) sorted[i] = &entries[i];
        aq_sort_pointers(sorted, count, aq_index_by_output);
        status = aq_index_append_metadata(&builder, metadata, total_size, err);
    }
    if (status == AQ_OK) status = aq_index_append_map(&builder, sorted, count, path, err);
    if (status == AQ_OK) {
        status = aq_builder_finish(&builder, &text, &size, err);
        if (status == AQ_OK) status = aq_write_text(path, text, size, err);
        if (text) aq_free(context, text, size + 1);
    } else {
        aq_builder_free(&builder);
    }
    aq_arena_free(&scratch);
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
