/* What a field may hold, and the messages when it holds something else. */
#include "fields.h"

#include "../base/text.h"

#define AQ_FOUND_TEXT 112     /* room for what was found, in a message */
#define AQ_FOUND_LIMIT 80u    /* bytes of a text that a message shows */
#define AQ_PATTERN_LIMIT 255u /* bytes; escaped it must still be a YAML key of 1024 characters */

/* --------------------------------------------------------------- messages */

static const char *aq_field_names(aq_field_kind kind, char buffer[AQ_RANGE_TEXT]) {
    size_t used = 0;
    unsigned i;
    for (i = 0; aq_field_value_name(kind, i) && used < AQ_RANGE_TEXT; i++) {
        const char *join = i == 0 ? "" : aq_field_value_name(kind, i + 1) ? ", " : " or ";
        used += aq_format(buffer + used, AQ_RANGE_TEXT - used, "%s%s", join,
                          aq_field_value_name(kind, i));
    }
    return buffer;
}

static bool aq_field_is_width(const aq_field *field) {
    return (field->kind == AQ_KIND_BITS || field->kind == AQ_KIND_BITS_LIST) && field->low < 3.0;
}

static const char *aq_field_powers(const aq_field *field, char buffer[AQ_RANGE_TEXT]) {
    size_t used = 0;
    unsigned value, step = field->kind == AQ_KIND_STATES ? 4u : 2u;
    for (value = (unsigned)field->low; value <= (unsigned)field->high && used < AQ_RANGE_TEXT;
         value *= step) {
        const char *join = value == (unsigned)field->low            ? ""
                           : value * step > (unsigned)field->high ? " or "
                                                                  : ", ";
        used += aq_format(buffer + used, AQ_RANGE_TEXT - used, "%s%u%s", join, value,
                          value == 2 && aq_field_is_width(field) ? ", 3" : "");
    }
    return buffer;
}

AQ_LIB const char *aq_field_range(aq_field_id id, char buffer[AQ_RANGE_TEXT]) {
    const aq_field *field = aq_field_at(id);
    char powers[AQ_RANGE_TEXT];
    switch (field->kind) {
    case AQ_KIND_BOOL: return "true or false";
    case AQ_KIND_INT:
    case AQ_KIND_SIZE:
        (void)aq_format(buffer, AQ_RANGE_TEXT, "an integer from %u to %u", (unsigned)field->low,
                        (unsigned)field->high);
        return buffer;
    case AQ_KIND_BITS:
    case AQ_KIND_STATES: return aq_field_powers(field, buffer);
    case AQ_KIND_FLOAT:
    case AQ_KIND_FLOAT_OR_NONE:
        (void)aq_format(buffer, AQ_RANGE_TEXT, "a number from %u to %u%s", (unsigned)field->low,
                        (unsigned)field->high, field->kind == AQ_KIND_FLOAT ? "" : ", or null");
        return buffer;
    case AQ_KIND_NAME: return "a name of letters, digits, '.', '_' and '-', or null";
    case AQ_KIND_TEXT_LIST: return "a list of texts";
    case AQ_KIND_FOLDER_LIST: return "a list of folder names";
    case AQ_KIND_BITS_LIST:
        (void)aq_format(buffer, AQ_RANGE_TEXT, "a map from pattern to %s",
                        aq_field_powers(field, powers));
        return buffer;
    default: return aq_field_names(field->kind, buffer);
    }
}

static const char *aq_origin_place(const aq_field_origin *origin, char buffer[32]) {
    if (!origin || !origin->source) return "";
    if (origin->line == 0) return ": ";
    (void)aq_format(buffer, 32, ":%u:%u: ", (unsigned)origin->line, (unsigned)origin->column);
    return buffer;
}

AQ_LIB aq_status aq_field_fail(aq_field_id id, const aq_field_origin *origin, const char *found,
                               aq_error *err) {
    const aq_field *field = aq_field_at(id);
    char range[AQ_RANGE_TEXT], place[32];
    return aq_fail(err, field->status, "%s%s%s: expected %s, found %s",
                   origin && origin->source ? origin->source : "", aq_origin_place(origin, place),
                   field->path, aq_field_range(id, range), found);
}

AQ_LIB aq_status aq_field_fail_text(aq_field_id id, const aq_field_origin *origin,
                                    const char *text, size_t size, aq_error *err) {
    char found[AQ_FOUND_TEXT], shown[AQ_FOUND_LIMIT + 1];
    size_t i, cut = size < AQ_FOUND_LIMIT ? size : AQ_FOUND_LIMIT, bad = 0;
    if (!aq_is_utf8(text, size, NULL))
        return aq_field_fail(id, origin, "text that is not UTF-8", err);
    if (!aq_is_utf8(text, cut, &bad)) cut = bad; /* not within a character */
    for (i = 0; i < cut; i++)
        shown[i] = (unsigned char)text[i] < 0x20u || text[i] == 0x7F ? '?' : text[i];
    shown[cut] = '\0';
    (void)aq_format(found, sizeof found, "the text \"%s%s\"", shown, cut < size ? "..." : "");
    return aq_field_fail(id, origin, found, err);
}

/* The parts of a path: what a key in the map `prefix` could have been. */
typedef struct aq_suggestion {
    const char *path;
    size_t size;     /* of the path's part that is suggested */
    size_t distance; /* twice the edits, and a penalty */
} aq_suggestion;

static void aq_suggest(aq_suggestion *best, const char *path, size_t size, const char *name,
                       size_t name_size, const char *key, size_t key_size, size_t penalty) {
    size_t longer = name_size > key_size ? name_size : key_size;
    size_t distance = aq_edit_distance(name, name_size, key, key_size);
    if (distance * 2 > longer) return;
    if (best->path && distance * 2 + penalty >= best->distance) return;
    best->path = path;
    best->size = size;
    best->distance = distance * 2 + penalty;
}

/* Looks for names in the same map first, then for last names anywhere, then for whole paths. */
static aq_suggestion aq_find_suggestion(const char *prefix, const char *key, size_t size) {
    aq_suggestion best = {NULL, 0, 0};
    unsigned i;
    for (i = 0; i < AQ_FIELD_COUNT; i++) {
        const char *path = aq_field_at((aq_field_id)i)->path, *dot, *last = strrchr(path, '.');
        size_t before = prefix ? strlen(prefix) : 0;
        if (prefix && strncmp(path, prefix, before) == 0) {
            dot = strchr(path + before, '.');
            if (dot)
                aq_suggest(&best, path, (size_t)(dot - path), path + before,
                           (size_t)(dot - path) - before, key, size, 0);
            else
                aq_suggest(&best, path, strlen(path), path + before, strlen(path) - before, key,
                           size, 0);
        }
        last = last ? last + 1 : path;
        aq_suggest(&best, path, strlen(path), last, strlen(last), key, size, 1);
        aq_suggest(&best, path, strlen(path), path, strlen(path), key, size, 1);
    }
    return best;
}

AQ_LIB aq_status aq_field_fail_unknown(const aq_field_origin *origin, const char *prefix,
                                       const char *key, size_t size, aq_error *err) {
    aq_suggestion best = aq_find_suggestion(prefix, key, size);
    const char *source = origin && origin->source ? origin->source : "";
    char place[32];
    int shown = (int)(size < AQ_FOUND_LIMIT ? size : AQ_FOUND_LIMIT);
    if (best.path)
        return aq_fail(err, AQ_ERR_CONFIGURATION,
                       "%s%sunknown field \"%s%.*s\"; did you mean \"%.*s\"?", source,
                       aq_origin_place(origin, place), prefix ? prefix : "", shown, key,
                       (int)best.size, best.path);
    return aq_fail(err, AQ_ERR_CONFIGURATION,
                   "%s%sunknown field \"%s%.*s\"; `aq config` lists every field", source,
                   aq_origin_place(origin, place), prefix ? prefix : "", shown, key);
}

/* ----------------------------------------------------------------- values */

AQ_LIB bool aq_field_fits(aq_field_id id, double number) {
    const aq_field *field = aq_field_at(id);
    unsigned value;
    if (number != number) return field->kind == AQ_KIND_FLOAT_OR_NONE;
    if (!(number >= field->low && number <= field->high)) return false;
    value = (unsigned)number;
    if (field->kind == AQ_KIND_STATES && (value & 0x55555555u) == 0) return false;
    if (value == 3 && aq_field_is_width(field)) return true;
    if (field->kind != AQ_KIND_BITS && field->kind != AQ_KIND_BITS_LIST &&
        field->kind != AQ_KIND_STATES)
        return true;
    return (value & (value - 1u)) == 0;
}

static bool aq_is_name(const char *text, size_t size) {
    size_t i;
    for (i = 0; i < size; i++) {
        char c = text[i];
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) continue;
        if (c != '.' && c != '_' && c != '-') return false;
    }
    return true;
}

AQ_LIB aq_status aq_field_check_text(aq_field_id id, const aq_field_origin *origin,
                                     const char *text, size_t size, aq_error *err) {
    aq_field_kind kind = aq_field_at(id)->kind;
    bool good = size != 0 && memchr(text, '\0', size) == NULL && aq_is_utf8(text, size, NULL);
    if (good && kind == AQ_KIND_NAME) good = aq_is_name(text, size);
    if (good && kind == AQ_KIND_FOLDER_LIST)
        good = text[0] != '.' && !memchr(text, '/', size) && !memchr(text, '\\', size);
    if (good && kind == AQ_KIND_BITS_LIST && size > AQ_PATTERN_LIMIT)
        return aq_field_fail(id, origin, "a pattern of more than 255 bytes", err);
    return good ? AQ_OK : aq_field_fail_text(id, origin, text, size, err);
}

static aq_status aq_field_check_item(aq_field_id id, const char *text, aq_error *err) {
    if (!text) return aq_field_fail(id, NULL, "NULL", err);
    return aq_field_check_text(id, NULL, text, strlen(text), err);
}

static aq_status aq_field_check_layer(const aq_layer_bits *layer, aq_error *err) {
    char found[AQ_FOUND_TEXT];
    aq_status status = aq_field_check_item(AQ_FIELD_layer_bits, layer->pattern, err);
    if (status != AQ_OK || aq_field_fits(AQ_FIELD_layer_bits, (double)layer->bits)) return status;
    (void)aq_format(found, sizeof found, "%u for \"%s\"", (unsigned)layer->bits, layer->pattern);
    return aq_field_fail(AQ_FIELD_layer_bits, NULL, found, err);
}

static aq_status aq_field_check_list(const aq_config *config, aq_field_id id, aq_error *err) {
    const void *member = aq_field_of_const(config, id);
    size_t i, count = aq_field_count(config, id);
    bool bits = aq_field_at(id)->kind == AQ_KIND_BITS_LIST;
    const aq_layer_bits *layers = bits ? *(const aq_layer_bits *const *)member : NULL;
    const char *const *texts = bits ? NULL : *(const char *const *const *)member;
    aq_status status = AQ_OK;
    if (count != 0 && !layers && !texts) return aq_field_fail(id, NULL, "NULL", err);
    for (i = 0; i < count && status == AQ_OK; i++)
        status = bits ? aq_field_check_layer(&layers[i], err)
                      : aq_field_check_item(id, texts[i], err);
    return status;
}

static aq_status aq_field_check(const aq_config *config, aq_field_id id, aq_error *err) {
    aq_field_kind kind = aq_field_at(id)->kind;
    char found[AQ_FOUND_TEXT];
    double number;
    if (kind == AQ_KIND_NAME) {
        const char *name = *(const char *const *)aq_field_of_const(config, id);
        return name ? aq_field_check_item(id, name, err) : AQ_OK;
    }
    if (aq_field_is_text(kind)) return aq_field_check_list(config, id, err);
    number = aq_field_number(config, id);
    if (aq_field_fits(id, number)) return AQ_OK;
    if (kind == AQ_KIND_FLOAT || kind == AQ_KIND_FLOAT_OR_NONE)
        (void)aq_format_double(number, found);
    else if (kind == AQ_KIND_SIZE)
        (void)aq_format(found, sizeof found, "%llu",
                        (unsigned long long)*(const uint64_t *)aq_field_of_const(config, id));
    else
        (void)aq_format(found, sizeof found, "%lld", (long long)number);
    return aq_field_fail(id, NULL, found, err);
}

/* 3 bits are a trellis code's alone. */
static aq_status aq_check_three_bits(const aq_config *config, aq_error *err) {
    size_t i;
    if (config->method == AQ_METHOD_TRELLIS) return AQ_OK;
    if (config->bit_width == 3)
        return aq_fail(err, AQ_ERR_BIT_WIDTH, "bit_width: 3 bits need method: trellis, which is %s; "
                       "the others have 2, 4 or 8", aq_method_name(config->method));
    for (i = 0; i < config->layer_bits_count; i++)
        if (config->layer_bits[i].bits == 3)
            return aq_fail(err, AQ_ERR_BIT_WIDTH, "layer_bits: 3 bits for \"%s\" need method: "
                           "trellis, which is %s; the others have 2, 4, 8 or 16",
                           config->layer_bits[i].pattern, aq_method_name(config->method));
    return AQ_OK;
}

ARROWQUANT_API aq_status aq_config_validate(const aq_config *config, aq_error *err) {
    unsigned i;
    aq_status status = AQ_OK;
    if (!config) return AQ_OK; /* the local profile */
    for (i = 0; i < AQ_FIELD_COUNT && status == AQ_OK; i++)
        status = aq_field_check(config, (aq_field_id)i, err);
    return status == AQ_OK ? aq_check_three_bits(config, err) : status;
}

#undef AQ_FOUND_TEXT
#undef AQ_FOUND_LIMIT
#undef AQ_PATTERN_LIMIT
