/* Activations as JSON lines: {"layer": name, "timestep": t, "data": […], "shape": […]}, one record a
 * line, fed to an observer. */
#include "calibration.h"

#include "../base/text.h"
#include "json_member.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_LINE_LIMIT ((size_t)1 << 28) /* bytes of a record */
#define AQ_LINE_READ ((size_t)65536)
#define AQ_SHAPE_LIMIT 16u

typedef struct aq_lines {
    aq_context *context;
    aq_file file;
    uint64_t size, offset;  /* of the file; of the next read */
    aq_builder text;        /* read, and not yet used up: from `begin` on */
    size_t begin;
    uint64_t number;        /* of the line */
    aq_observer *observer;
    uint32_t samples;
} aq_lines;

/* One record; values in the order of the text. */
typedef struct aq_record {
    const char *layer;
    int64_t timestep;
    bool has_timestep, has_data, has_shape;
    float *values;
    size_t count, capacity;
    size_t last;          /* length of the innermost arrays */
    uint64_t shape[AQ_SHAPE_LIMIT];
    size_t rank;
} aq_record;

static aq_status aq_line_bad(const aq_lines *lines, const char *layer, const char *what,
                             aq_error *err) {
    return aq_fail_tensor(err, AQ_ERR_CORRUPT, layer ? layer : "", lines->number,
                          "%s, line %llu: %s; expected {\"layer\": name, \"timestep\": integer, "
                          "\"data\": [numbers], \"shape\": [rows, channels]}", lines->file.path,
                          (unsigned long long)lines->number, what);
}

static aq_status aq_record_value(const aq_lines *lines, aq_record *record,
                                 const aq_json_event *event, aq_error *err) {
    double value;
    if (event->type != AQ_JSON_NUMBER || !aq_parse_double(event->text, event->size, &value))
        return aq_line_bad(lines, record->layer, "data holds something that is no number", err);
    if (record->count == record->capacity) {
        size_t capacity = record->capacity ? record->capacity * 2 : 1024;
        float *grown = (float *)aq_resize(lines->context, record->values,
                                          record->capacity * sizeof(float),
                                          capacity * sizeof(float));
        if (!grown) return aq_fail_memory(err, capacity * sizeof(float));
        record->values = grown;
        record->capacity = capacity;
    }
    record->values[record->count++] = (float)value;
    return AQ_OK;
}

/* Arrays of any depth; the innermost ones, which hold the numbers, are of one length. */
static aq_status aq_record_data(const aq_lines *lines, aq_record *record, aq_json_reader *json,
                                aq_json_event *event, aq_error *err) {
    size_t depth = 0, length = 0;
    bool innermost = false;
    aq_status status = AQ_OK;
    if (event->type != AQ_JSON_ARRAY)
        return aq_line_bad(lines, record->layer, "data is no array", err);
    record->has_data = true;
    for (;;) {
        if (event->type == AQ_JSON_ARRAY) {
            if (innermost)
                return aq_line_bad(lines, record->layer, "data mixes numbers and arrays", err);
            depth++;
            length = 0;
        } else if (event->type == AQ_JSON_ARRAY_END) {
            if (innermost && record->last && record->last != length)
                return aq_line_bad(lines, record->layer, "rows of data differ in length", err);
            if (innermost) record->last = length;
            innermost = false;
            if (--depth == 0) return AQ_OK;
        } else {
            status = aq_record_value(lines, record, event, err);
            innermost = true;
            length++;
        }
        if (status == AQ_OK) status = aq_json_next(json, event, err);
        if (status != AQ_OK) return status;
    }
}

static aq_status aq_record_shape(const aq_lines *lines, aq_record *record, aq_json_reader *json,
                                 aq_json_event *event, aq_error *err) {
    if (event->type != AQ_JSON_ARRAY)
        return aq_line_bad(lines, record->layer, "shape is no array", err);
    record->has_shape = true;
    for (record->rank = 0;; record->rank++) {
        aq_status status = aq_json_next(json, event, err);
        if (status != AQ_OK) return status;
        if (event->type == AQ_JSON_ARRAY_END) break;
        if (record->rank == AQ_SHAPE_LIMIT || event->type != AQ_JSON_NUMBER ||
            !aq_parse_u64(event->text, event->size, &record->shape[record->rank]))
            return aq_line_bad(lines, record->layer, "shape is no list of whole numbers", err);
    }
    return AQ_OK;
}

/* An integer, perhaps written as 980.0. */
static aq_status aq_record_timestep(const aq_lines *lines, aq_record *record,
                                    const aq_json_event *event, aq_error *err) {
    double value;
    if (event->type != AQ_JSON_NUMBER || !aq_parse_double(event->text, event->size, &value) ||
        !(value >= -9e15 && value <= 9e15) || (double)(int64_t)value != value)
        return aq_line_bad(lines, record->layer, "timestep is no integer", err);
    record->timestep = (int64_t)value;
    record->has_timestep = true;
    return AQ_OK;
}

static aq_status aq_record_layer(const aq_lines *lines, aq_record *record, aq_arena *arena,
                                 const aq_json_event *event, aq_error *err) {
    size_t size = 0;
    if (event->type != AQ_JSON_STRING || !event->size)
        return aq_line_bad(lines, NULL, "layer is no name", err);
    record->layer = aq_json_decode(arena, event->text, event->size, &size);
    if (!record->layer) return aq_fail_memory(err, event->size);
    return strlen(record->layer) == size ? AQ_OK : aq_line_bad(lines, NULL, "layer is no name", err);
}

static aq_status aq_record_read(const aq_lines *lines, aq_record *record, aq_arena *arena,
                                aq_json_reader *json, aq_error *err) {
    aq_json_event event;
    aq_status status = aq_json_next(json, &event, err);
    if (status == AQ_OK && event.type != AQ_JSON_OBJECT)
        status = aq_line_bad(lines, NULL, "no object", err);
    while (status == AQ_OK) {
        aq_json_event key;
        status = aq_json_next(json, &key, err);
        if (status != AQ_OK || key.type == AQ_JSON_OBJECT_END) break;
        status = aq_json_next(json, &event, err);
        if (status != AQ_OK) break;
        if ((aq_json_is(&key, "layer") && record->layer) ||
            (aq_json_is(&key, "timestep") && record->has_timestep) ||
            (aq_json_is(&key, "data") && record->has_data) ||
            (aq_json_is(&key, "shape") && record->has_shape))
            status = aq_line_bad(lines, record->layer, "a member is there twice", err);
        else if (aq_json_is(&key, "layer"))
            status = aq_record_layer(lines, record, arena, &event, err);
        else if (aq_json_is(&key, "timestep"))
            status = aq_record_timestep(lines, record, &event, err);
        else if (aq_json_is(&key, "data"))
            status = aq_record_data(lines, record, json, &event, err);
        else if (aq_json_is(&key, "shape"))
            status = aq_record_shape(lines, record, json, &event, err);
        else
            status = aq_json_pass(json, &event, err);
    }
    return status == AQ_OK ? aq_json_next(json, &event, err) : status; /* and nothing behind it */
}

static aq_status aq_record_feed(const aq_lines *lines, aq_record *record, aq_error *err) {
    uint64_t channels = record->last, total = 1;
    if (!record->layer || !record->has_timestep || !record->has_data)
        return aq_line_bad(lines, record->layer, "layer, timestep or data is missing", err);
    if (record->has_shape) {
        bool fits = record->rank > 0;
        for (size_t i = 0; i < record->rank && fits; i++)
            fits = aq_mul_u64(total, record->shape[i], &total);
        if (!fits || total != record->count)
            return aq_line_bad(lines, record->layer, "shape does not fit the amount of data", err);
        channels = record->shape[record->rank - 1];
    }
    if (!record->count || !channels)
        return aq_line_bad(lines, record->layer, "data is empty", err);
    if (lines->samples &&
        aq_observer_feeds(lines->observer, record->layer, record->timestep) >= lines->samples)
        return AQ_OK;
    aq_error failure; /* which does not know the file */
    aq_status status =
        aq_observer_feed(lines->observer, record->layer, record->timestep, AQ_DTYPE_F32,
                         record->values, record->count / channels, channels, &failure);
    if (status == AQ_OK) return AQ_OK;
    return aq_fail_tensor(err, status, record->layer, lines->number, "%s, line %llu: %s",
                          lines->file.path, (unsigned long long)lines->number, failure.message);
}

static aq_status aq_line_take(aq_lines *lines, const char *text, size_t size, aq_error *err) {
    char source[640];
    aq_arena arena;
    aq_json_reader json;
    aq_record record;
    size_t i = 0;
    lines->number++;
    while (i < size && (text[i] == ' ' || text[i] == '\t' || text[i] == '\r')) i++;
    if (i == size) return AQ_OK; /* an empty line */
    memset(&record, 0, sizeof(record));
    aq_arena_init(&arena, lines->context);
    aq_format(source, sizeof(source), "%s, record in line %llu", lines->file.path,
              (unsigned long long)lines->number);
    aq_json_open(&json, text, size, source);
    aq_status status = aq_record_read(lines, &record, &arena, &json, err);
    if (status == AQ_OK) status = aq_record_feed(lines, &record, err);
    aq_free(lines->context, record.values, record.capacity * sizeof(float));
    aq_arena_free(&arena);
    return status;
}

/* Takes the lines that are whole; the rest moves to the front. */
static aq_status aq_lines_take(aq_lines *lines, bool last, aq_error *err) {
    aq_status status = AQ_OK;
    const char *data = lines->text.data;
    while (status == AQ_OK && lines->begin < lines->text.size) {
        size_t left = lines->text.size - lines->begin;
        const char *end = (const char *)memchr(data + lines->begin, '\n', left);
        if (!end && !last) break;
        size_t size = end ? (size_t)(end - (data + lines->begin)) : left;
        status = aq_line_take(lines, data + lines->begin, size, err);
        lines->begin += end ? size + 1 : size;
    }
    if (lines->begin) {
        memmove(lines->text.data, data + lines->begin, lines->text.size - lines->begin);
        lines->text.size -= lines->begin;
        lines->begin = 0;
    }
    return status;
}

static aq_status aq_lines_read(aq_lines *lines, aq_error *err) {
    char piece[4096];
    aq_status status = AQ_OK;
    while (status == AQ_OK && lines->offset < lines->size) {
        size_t before = lines->text.size, taken = 0;
        for (; taken < AQ_LINE_READ && lines->offset < lines->size && status == AQ_OK;) {
            uint64_t left = lines->size - lines->offset;
            size_t take = left < sizeof(piece) ? (size_t)left : sizeof(piece);
            status = aq_file_read(&lines->file, lines->offset, piece, take, err);
            if (status == AQ_OK) aq_append(&lines->text, piece, take);
            lines->offset += take;
            taken += take;
        }
        if (status == AQ_OK && lines->text.failed) return aq_fail_memory(err, before + taken);
        if (status == AQ_OK && before > AQ_LINE_LIMIT)
            return aq_line_bad(lines, NULL, "a record is longer than 256 MiB; split it", err);
        /* a long line is looked through once, not again with each piece */
        if (status == AQ_OK && (lines->offset == lines->size ||
                                memchr(lines->text.data + before, '\n', taken)))
            status = aq_lines_take(lines, lines->offset == lines->size, err);
    }
    return status;
}

AQ_LIB aq_status aq_calibration_read_lines(aq_calibration_reader *reader, const char *path,
                                           aq_calibration **out, aq_error *err) {
    aq_lines lines;
    aq_observer_options options;
    memset(&lines, 0, sizeof(lines));
    memset(&options, 0, sizeof(options));
    options.second_moments = true;
    lines.context = reader->context;
    lines.samples = reader->samples;
    lines.file.handle = -1;
    aq_builder_init(&lines.text, reader->context);
    aq_status status = aq_observer_create(reader->context, &options, &lines.observer, err);
    if (status == AQ_OK) status = aq_file_open(&lines.file, path, &lines.size, err);
    if (status == AQ_OK) status = aq_lines_read(&lines, err);
    (void)aq_file_close(&lines.file, NULL);
    aq_builder_free(&lines.text);
    if (status == AQ_OK) status = aq_observer_calibration(lines.observer, out, err);
    aq_observer_destroy(lines.observer);
    if (status == AQ_OK && !(*out)->layer_count)
        return aq_fail(err, AQ_ERR_METADATA, "%s: there is no record in it", path);
    return status;
}

#undef AQ_LINE_LIMIT
#undef AQ_LINE_READ
#undef AQ_SHAPE_LIMIT
#endif /* ARROWQUANT_NO_STDIO */
