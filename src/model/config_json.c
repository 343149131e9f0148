/* Edits one member of config.json and leaves every other byte alone. */
#include "config_json.h"

#include "../format/json_member.h"

#ifndef ARROWQUANT_NO_STDIO

/* Where things stand in the text; all are offsets. */
typedef struct aq_config_places {
    size_t open, close;   /* the object's braces */
    size_t first_key;     /* the first member's opening quote; `close` in an empty object */
    size_t last_end;      /* end of the last member's value */
    bool found;
    size_t before;             /* end of the value before the member, or behind the open brace */
    size_t key_begin;          /* the member's opening quote */
    size_t value_begin, value_end;
    bool is_first;
} aq_config_places;

static aq_status aq_config_find(const char *text, size_t size, const char *source, const char *key,
                                aq_config_places *places, aq_error *err) {
    aq_json_reader json;
    aq_json_event event, value;
    aq_json_open(&json, text, size, source);
    json.failure = AQ_ERR_METADATA;
    memset(places, 0, sizeof(*places));
    aq_status status = aq_json_next(&json, &event, err);
    if (status != AQ_OK) return status;
    if (event.type != AQ_JSON_OBJECT)
        return aq_fail(err, AQ_ERR_METADATA, "%s: expected a JSON object, found %s; repair it",
                       source, aq_json_type_text(event.type));
    while (text[places->open] != '{') places->open++;
    places->last_end = places->open + 1;
    for (bool first = true;; first = false) {
        size_t begin = 0, end = 0;
        status = aq_json_next(&json, &event, err);
        if (status != AQ_OK) return status;
        if (event.type != AQ_JSON_KEY) break;
        size_t quote = (size_t)(event.text - text) - 1;
        if (first) places->first_key = quote;
        status = aq_json_next(&json, &value, err);
        if (status == AQ_OK) status = aq_json_pass_slice(&json, &value, &begin, &end, err);
        if (status != AQ_OK) return status;
        if (aq_json_is(&event, key)) {
            if (places->found)
                return aq_fail(err, AQ_ERR_METADATA, "%s: it holds %s twice; repair it", source,
                               key);
            places->found = true;
            places->is_first = first;
            places->before = places->last_end;
            places->key_begin = quote;
            places->value_begin = begin;
            places->value_end = end;
        }
        places->last_end = end;
    }
    status = aq_json_next(&json, &event, err);
    if (status != AQ_OK) return status;
    places->close = places->last_end;
    while (text[places->close] != '}') places->close++;
    if (!places->first_key) places->first_key = places->close;
    return AQ_OK;
}

/* text[0, from) + five pieces + text[to, size) */
static aq_status aq_config_splice(aq_arena *arena, const char *text, size_t size, size_t from,
                                  size_t to, const char *const pieces[5], const size_t sizes[5],
                                  char **out, size_t *out_size, aq_error *err) {
    size_t total = from + (size - to);
    for (unsigned i = 0; i < 5; i++) total += sizes[i];
    char *result = (char *)aq_arena_alloc(arena, total + 1);
    if (!result) return aq_fail_memory(err, total + 1);
    size_t at = from;
    memcpy(result, text, from);
    for (unsigned i = 0; i < 5; i++) {
        if (sizes[i]) memcpy(result + at, pieces[i], sizes[i]);
        at += sizes[i];
    }
    memcpy(result + at, text + to, size - to);
    *out = result;
    *out_size = total;
    return AQ_OK;
}

AQ_LIB aq_status aq_config_json_set(aq_arena *arena, const char *text, size_t size,
                                    const char *source, const char *key, const char *value,
                                    char **out, size_t *out_size, aq_error *err) {
    aq_config_places places;
    const char *pieces[5] = { "", "", "\": ", value, "\n" };
    size_t sizes[5] = { 0, 0, 3, strlen(value), 0 };
    aq_status status = aq_config_find(text, size, source, key, &places, err);
    if (status != AQ_OK) return status;
    if (places.found) {
        sizes[2] = 0;
        return aq_config_splice(arena, text, size, places.value_begin, places.value_end, pieces,
                                sizes, out, out_size, err);
    }
    pieces[1] = key;
    sizes[1] = strlen(key);
    if (places.first_key == places.close) {
        pieces[0] = "\n  \"";
        sizes[0] = 4;
        sizes[4] = 1;
        return aq_config_splice(arena, text, size, places.open + 1, places.close, pieces, sizes,
                                out, out_size, err);
    }
    /* Comma, then what stands between the brace and the first key, its quote included. */
    size_t gap = places.first_key - places.open;
    char *lead = aq_arena_copy(arena, text + places.open, gap + 1);
    if (!lead) return aq_fail_memory(err, gap + 2);
    lead[0] = ',';
    pieces[0] = lead;
    sizes[0] = gap + 1;
    return aq_config_splice(arena, text, size, places.last_end, places.last_end, pieces, sizes, out,
                            out_size, err);
}

AQ_LIB aq_status aq_config_json_remove(aq_arena *arena, const char *text, size_t size,
                                       const char *source, const char *key, char **out,
                                       size_t *out_size, aq_error *err) {
    aq_config_places places;
    const char *const pieces[5] = { "", "", "", "", "" };
    const size_t sizes[5] = { 0, 0, 0, 0, 0 };
    aq_status status = aq_config_find(text, size, source, key, &places, err);
    if (status != AQ_OK) return status;
    size_t from = size, to = size;
    if (places.found && !places.is_first) { /* from the end of the value before: takes the comma */
        from = places.before;
        to = places.value_end;
    } else if (places.found && places.value_end == places.last_end) { /* the only one */
        from = places.open + 1;
        to = places.close;
    } else if (places.found) { /* the first one: up to the next key's quote */
        from = places.key_begin;
        to = places.value_end;
        while (text[to] != '"') to++;
    }
    return aq_config_splice(arena, text, size, from, to, pieces, sizes, out, out_size, err);
}

#endif /* ARROWQUANT_NO_STDIO */
