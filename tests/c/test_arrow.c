/* Arrow: the C data interface, its release rules, tables of others, IPC and what is wrong with it. */
#include "test.h"

#ifdef ARROWQUANT_NO_STDIO
int main(void) { return test_end(); }
#else

#include "arrow_walk.h"

/* ---- export */

static int released;
static void count_release(void *user) {
    ++*(int *)user;
}

static const int64_t shapes[3][2] = { { 2, 32 }, { 1, 64 }, { 4, 32 } };
static unsigned char all_codes[128];
static float all_scales[16], all_mins[16];

/* Three layers whose parts lie end to end, as one call would have made them. */
static void make_layers(aq_arrow_layer *layers) {
    static const aq_arrow_time_group times[2] = { { 0, 500, 0.5f, 3.0f }, { 500, 1000, 0.25f, 4.0f } };
    static const char *const names[] = { "a.weight", "b.weight", "c.\xC3\xA9.weight" };
    size_t codes = 0, groups = 0;
    memset(layers, 0, 3 * sizeof(*layers));
    for (size_t i = 0; i < 3; i++) {
        aq_arrow_layer *layer = &layers[i];
        layer->name = names[i];
        layer->shape = shapes[i];
        layer->rank = 2;
        layer->bit_width = 4;
        layer->group_size = 32;
        layer->data = all_codes + codes;
        layer->data_bytes = (uint64_t)(shapes[i][0] * shapes[i][1] / 2);
        layer->groups = (uint64_t)(shapes[i][0] * shapes[i][1] / 32);
        layer->scales = all_scales + groups;
        layer->zero_points = all_mins + groups;
        layer->mins = i == 1 ? NULL : all_mins + groups;
        layer->method = "ptq";
        layer->dtype = "BF16";
        layer->cosine_similarity = 0.99 + (double)i / 1000;
        layer->sqnr_db = i == 2 ? (double)NAN : 20.0;
        codes += (size_t)layer->data_bytes;
        groups += (size_t)layer->groups;
    }
    layers[0].time_groups = times;
    layers[0].time_group_count = 2;
    for (size_t i = 0; i < sizeof(all_codes); i++) all_codes[i] = (unsigned char)(i * 7);
    for (size_t i = 0; i < 16; i++) all_scales[i] = (float)i + 0.5f;
}

static const char *const metadata[] = { "key", "value", "empty", "" };

static aq_status export_them(aq_context *context, const aq_arrow_layer *layers, size_t count,
                             struct ArrowSchema *schema, struct ArrowArray *array, aq_error *err) {
    aq_arrow_owner owner;
    owner.release = count_release;
    owner.user = &released;
    return aq_arrow_export_layers(context, layers, count, metadata, 4, owner, schema, array, err);
}

static int32_t offset_at(const struct ArrowArray *array, size_t index) {
    return ((const int32_t *)array->buffers[1])[index];
}

TEST(layers_in_place) {
    aq_arrow_layer layers[3];
    struct ArrowSchema schema;
    struct ArrowArray array;
    make_layers(layers);
    CHECK_STATUS(export_them(NULL, layers, 3, &schema, &array, NULL), AQ_OK);
    CHECK(array.length == 3 && array.n_children == AQ_COLUMNS && schema.n_children == AQ_COLUMNS);
    CHECK_STR(schema.children[1]->name, "quantized_data");
    const struct ArrowArray *data = array.children[AQ_COLUMN_DATA];
    const struct ArrowArray *scales = array.children[AQ_COLUMN_SCALES];
    const struct ArrowArray *mins = array.children[AQ_COLUMN_MINS];
    CHECK(data->buffers[2] == all_codes); /* no copy */
    CHECK(scales->children[0]->buffers[1] == all_scales);
    CHECK(offset_at(data, 1) == 32 && offset_at(data, 2) == 64 && offset_at(data, 3) == 128);
    CHECK(offset_at(scales, 3) == 8 && scales->null_count == 0 && !scales->buffers[0]);
    CHECK(mins->children[0]->buffers[1] != all_mins); /* b has none: gathered */
    CHECK(mins->null_count == 1 && *(const unsigned char *)mins->buffers[0] == 0xFD);
    CHECK(offset_at(mins, 1) == 2 && offset_at(mins, 2) == 2 && offset_at(mins, 3) == 6);
    CHECK(array.children[AQ_COLUMN_SHAPE]->children[0]->buffers[1] == shapes);
    CHECK(((const uint8_t *)array.children[AQ_COLUMN_BITS]->buffers[1])[2] == 4);
    CHECK(array.children[AQ_COLUMN_SQNR]->null_count == 1);
    const struct ArrowArray *times = array.children[AQ_COLUMN_TIME_GROUPS];
    CHECK(times->null_count == 2 && offset_at(times, 1) == 2 && offset_at(times, 3) == 2);
    CHECK(((const int32_t *)times->children[0]->children[1]->buffers[1])[1] == 1000);
    CHECK(((const float *)times->children[0]->children[2]->buffers[1])[0] == 0.5f);
    arrow_walk(&schema, &array);
    released = 0;
    schema.release(&schema);
    CHECK(released == 0 && !schema.release);
    array.release(&array);
    CHECK(released == 1 && !array.release);
}

TEST(layers_elsewhere) { /* one that lies apart is gathered with the others */
    aq_arrow_layer layers[3];
    struct ArrowSchema schema;
    struct ArrowArray array;
    unsigned char apart[32];
    make_layers(layers);
    memset(apart, 0xEE, sizeof(apart));
    layers[1].data = apart;
    CHECK_STATUS(export_them(NULL, layers, 3, &schema, &array, NULL), AQ_OK);
    const unsigned char *joined =
        (const unsigned char *)array.children[AQ_COLUMN_DATA]->buffers[2];
    CHECK(joined != all_codes && memcmp(joined, all_codes, 32) == 0);
    CHECK(memcmp(joined + 32, apart, 32) == 0 && memcmp(joined + 64, all_codes + 64, 64) == 0);
    schema.release(&schema);
    array.release(&array);
    CHECK_STATUS(export_them(NULL, layers + 1, 1, &schema, &array, NULL), AQ_OK); /* alone: not */
    CHECK(array.children[AQ_COLUMN_DATA]->buffers[2] == apart);
    schema.release(&schema);
    array.release(&array);
    CHECK_STATUS(export_them(NULL, layers, 0, &schema, &array, NULL), AQ_OK);
    CHECK(array.length == 0);
    arrow_walk(&schema, &array);
    schema.release(&schema);
    array.release(&array);
}

TEST(children_move) { /* a consumer keeps a column and gives back the rest, in any order */
    for (int first = 0; first < 2; first++) {
        aq_arrow_layer layers[3];
        struct ArrowSchema schema, field;
        struct ArrowArray array, column;
        make_layers(layers);
        released = 0;
        CHECK_STATUS(export_them(NULL, layers, 3, &schema, &array, NULL), AQ_OK);
        column = *array.children[AQ_COLUMN_DATA];
        array.children[AQ_COLUMN_DATA]->release = NULL;
        field = *schema.children[AQ_COLUMN_DATA];
        schema.children[AQ_COLUMN_DATA]->release = NULL;
        if (first) {
            column.release(&column);
            field.release(&field);
            CHECK(released == 0);
        }
        array.release(&array);
        schema.release(&schema);
        if (!first) {
            CHECK(released == 0);
            CHECK_STR(field.name, "quantized_data");
            CHECK(((const unsigned char *)column.buffers[2])[127] == all_codes[127]);
            column.release(&column);
            field.release(&field);
        }
        CHECK(released == 1);
    }
}

TEST(layers_refused) {
    aq_arrow_layer layers[3];
    struct ArrowSchema schema;
    struct ArrowArray array;
    aq_error err;
    aq_arrow_owner nobody = { NULL, NULL };
    released = 0;
    memset(&schema, 0, sizeof(schema));
    make_layers(layers);
    layers[1].name = NULL;
    CHECK_STATUS(export_them(NULL, layers, 3, &schema, &array, &err), AQ_ERR_ARGUMENT);
    CHECK(strstr(err.message, "layer 1 has no name") != NULL && !schema.release);
    make_layers(layers);
    layers[0].name = "\xFF";
    CHECK_STATUS(export_them(NULL, layers, 3, &schema, &array, &err), AQ_ERR_ARGUMENT);
    make_layers(layers);
    layers[2].data_bytes = (uint64_t)INT32_MAX - 63;
    CHECK_STATUS(export_them(NULL, layers, 3, &schema, &array, &err), AQ_ERR_UNSUPPORTED);
    CHECK(strstr(err.message, "quantized_data") != NULL);
    CHECK_STATUS(aq_arrow_export_layers(NULL, layers, 1, metadata, 3, nobody, &schema,
                                        &array, &err), AQ_ERR_ARGUMENT);
    CHECK(released == 0);
}

/* ---- import */

typedef struct table {
    struct ArrowSchema schema, fields[3], items[2], *field_list[3], *item_list[2][1];
    struct ArrowArray array, columns[3], values[2], *column_list[3], *value_list[2][1];
    const void *none[1], *names[4], *lists[2][2], *numbers[2][2];
} table;

static void no_release_schema(struct ArrowSchema *schema) { schema->release = NULL; }
static void no_release_array(struct ArrowArray *array) { array->release = NULL; }

static void put_field(struct ArrowSchema *schema, const char *format, const char *name) {
    memset(schema, 0, sizeof(*schema));
    schema->format = format;
    schema->name = name;
    schema->release = no_release_schema;
}

static void put_array(struct ArrowArray *array, int64_t length, int64_t count,
                      const void **buffers) {
    memset(array, 0, sizeof(*array));
    array->length = length;
    array->n_buffers = count;
    array->buffers = buffers;
    array->release = no_release_array;
}

static const float numbers[10] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 };
static const int64_t extents[4] = { 2, 3, 4, 1 };
static const int32_t name_offsets[3] = { 0, 1, 3 }, list_offsets[3] = { 0, 6, 10 };
static const int32_t extent_offsets[3] = { 0, 2, 4 };

static void make_table(table *t) {
    put_field(&t->schema, "+s", "");
    put_field(&t->fields[0], "u", "layer_name");
    put_field(&t->fields[1], "+l", "weights");
    put_field(&t->fields[2], "+l", "shape");
    put_field(&t->items[0], "f", "item");
    put_field(&t->items[1], "l", "item");
    t->none[0] = NULL;
    t->names[0] = NULL;
    t->names[1] = name_offsets;
    t->names[2] = "abb";
    t->lists[0][0] = t->lists[1][0] = t->numbers[0][0] = t->numbers[1][0] = NULL;
    t->lists[0][1] = list_offsets;
    t->lists[1][1] = extent_offsets;
    t->numbers[0][1] = numbers;
    t->numbers[1][1] = extents;
    put_array(&t->array, 2, 1, t->none);
    put_array(&t->columns[0], 2, 3, t->names);
    for (int i = 0; i < 2; i++) {
        put_array(&t->columns[1 + i], 2, 2, t->lists[i]);
        put_array(&t->values[i], i ? 4 : 10, 2, t->numbers[i]);
        t->item_list[i][0] = &t->items[i];
        t->value_list[i][0] = &t->values[i];
        t->fields[1 + i].n_children = t->columns[1 + i].n_children = 1;
        t->fields[1 + i].children = t->item_list[i];
        t->columns[1 + i].children = t->value_list[i];
    }
    for (int i = 0; i < 3; i++) {
        t->field_list[i] = &t->fields[i];
        t->column_list[i] = &t->columns[i];
    }
    t->schema.n_children = t->array.n_children = 3;
    t->schema.children = t->field_list;
    t->array.children = t->column_list;
}

TEST(weights_in_place) {
    table t;
    aq_arrow_weights rows[2];
    make_table(&t);
    CHECK_STATUS(aq_arrow_import_weights(&t.schema, &t.array, rows, NULL), AQ_OK);
    CHECK(rows[0].weights == numbers && rows[1].weights == numbers + 6); /* no copy */
    CHECK(rows[1].name_size == 2 && memcmp(rows[1].name, "bb", 2) == 0);
    CHECK(rows[0].rows == 2 && rows[0].cols == 3 && rows[1].rows == 4 && rows[1].cols == 1);
    CHECK(rows[0].shape == extents && rows[0].rank == 2 && rows[0].dtype == AQ_DTYPE_F32);
    t.schema.n_children = t.array.n_children = 2; /* no shapes */
    CHECK_STATUS(aq_arrow_import_weights(&t.schema, &t.array, rows, NULL), AQ_OK);
    CHECK(rows[0].rows == 1 && rows[0].cols == 6 && !rows[0].shape);
    make_table(&t); /* the second row alone: by the batch's offset, then by the columns' */
    t.array.offset = 1;
    t.array.length = 1;
    CHECK_STATUS(aq_arrow_import_weights(&t.schema, &t.array, rows, NULL), AQ_OK);
    CHECK(rows[0].weights == numbers + 6 && rows[0].cols == 1);
    t.array.offset = 0;
    for (int i = 0; i < 3; i++) {
        t.columns[i].offset = 1;
        t.columns[i].length = 1;
    }
    CHECK_STATUS(aq_arrow_import_weights(&t.schema, &t.array, rows, NULL), AQ_OK);
    CHECK(rows[0].weights == numbers + 6 && rows[0].name_size == 2);
}

TEST(weights_of_other_types) {
    static const int64_t large[3] = { 0, 6, 10 };
    static const char far_name[] = "a name that is longer than twelve bytes";
    static const int64_t sizes[1] = { sizeof(far_name) - 1 };
    int32_t views[8];
    table t;
    aq_arrow_weights rows[2];
    make_table(&t);
    t.fields[1].format = "+L";
    t.lists[0][1] = large;
    t.items[0].format = "g";
    t.fields[0].format = "vu";
    t.columns[0].n_buffers = 4;
    memset(views, 0, sizeof(views));
    views[0] = 1;
    memcpy(&views[1], "x", 1);
    views[4] = (int32_t)sizeof(far_name) - 1;
    memcpy(&views[5], far_name, 4);
    t.names[1] = views;
    t.names[2] = far_name;
    t.names[3] = sizes;
    CHECK_STATUS(aq_arrow_import_weights(&t.schema, &t.array, rows, NULL), AQ_OK);
    CHECK(rows[0].dtype == AQ_DTYPE_F64 && rows[0].count == 6);
    CHECK(rows[0].name_size == 1 && *rows[0].name == 'x');
    CHECK(rows[1].name == far_name && rows[1].name_size == sizeof(far_name) - 1);
    views[6] = 1; /* a buffer that is not there */
    CHECK_STATUS(aq_arrow_import_weights(&t.schema, &t.array, rows, NULL), AQ_ERR_ARROW);
    make_table(&t);
    t.fields[1].format = "+w:5";
    t.columns[1].n_buffers = 1;
    t.schema.n_children = t.array.n_children = 2;
    CHECK_STATUS(aq_arrow_import_weights(&t.schema, &t.array, rows, NULL), AQ_OK);
    CHECK(rows[1].weights == numbers + 5 && rows[1].count == 5);
}

/* Each change makes a table that is refused with a message that holds the word. */
TEST(weights_refused) {
    static const int32_t backwards[3] = { 0, 6, 4 }, negative[3] = { -1, 6, 10 }, far_off[3] = { 0, 6, 99 };
    static const unsigned char second_null[1] = { 1 }, all_null[2] = { 0, 0 };
    static const int64_t wrong[4] = { 2, 3, 4, 2 }, below[4] = { 2, 3, -4, -1 };
    static const char *const words[] = {
        "released", "record batch", "no column layer_name", "two columns", "no column weights",
        "dictionary", "a list", "formats", "is null", "element 0 is null", "do not go forward",
        "do not go forward", "ends at element 99", "shape", "shape", "rows", "string", "is null",
    };
    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        table t;
        aq_arrow_weights rows[2];
        aq_error err;
        memset(&err, 0, sizeof(err));
        make_table(&t);
        switch (i) {
        case 0: t.array.release = NULL; break;
        case 1: t.schema.format = "f"; break;
        case 2: t.fields[0].name = "name"; break;
        case 3: t.fields[0].name = "weights"; break;
        case 4: t.fields[1].name = NULL; break;
        case 5: t.fields[1].dictionary = &t.items[0]; break;
        case 6: t.fields[1].format = "f"; break;
        case 7: t.items[0].format = "i"; break;
        case 8: t.lists[0][0] = second_null; t.columns[1].null_count = 1; break;
        case 9: t.numbers[0][0] = all_null; t.values[0].null_count = -1; break;
        case 10: t.lists[0][1] = backwards; break;
        case 11: t.lists[0][1] = negative; break;
        case 12: t.lists[0][1] = far_off; break;
        case 13: t.numbers[1][1] = wrong; break;
        case 14: t.numbers[1][1] = below; break;
        case 15: t.columns[1].length = 1; break;
        case 16: t.fields[0].format = "i"; break;
        default: t.names[0] = second_null; t.columns[0].null_count = 1; break;
        }
        if (i == 3) t.fields[1].name = "layer_name", t.fields[2].name = "layer_name";
        aq_status status = aq_arrow_import_weights(&t.schema, &t.array, rows, &err);
        CHECK(status == (i == 13 || i == 14 ? AQ_ERR_SHAPE : AQ_ERR_ARROW));
        if (!strstr(err.message, words[i])) printf("case %u: %s\n", i, err.message);
        CHECK(strstr(err.message, words[i]) != NULL);
    }
}

/* ---- IPC */

static char folder[512];

static const char *at(const char *name) {
    static char path[700];
    aq_format(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

/* A stream over one exported batch, given `left` times. */
typedef struct repeat {
    const aq_arrow_layer *layers;
    size_t count;
    int left;
} repeat;

static int repeat_schema(struct ArrowArrayStream *stream, struct ArrowSchema *out) {
    struct ArrowArray array;
    const repeat *r = (const repeat *)stream->private_data;
    if (export_them(NULL, r->layers, r->count, out, &array, NULL) != AQ_OK) return 12;
    array.release(&array);
    return 0;
}

static int repeat_next(struct ArrowArrayStream *stream, struct ArrowArray *out) {
    struct ArrowSchema schema;
    repeat *r = (repeat *)stream->private_data;
    memset(out, 0, sizeof(*out));
    if (r->left < 0) return 5;
    if (!r->left--) return 0;
    if (export_them(NULL, r->layers, r->count, &schema, out, NULL) != AQ_OK) return 12;
    schema.release(&schema);
    return 0;
}

static const char *repeat_error(struct ArrowArrayStream *stream) {
    (void)stream;
    return "no more of it";
}

static void repeat_release(struct ArrowArrayStream *stream) { stream->release = NULL; }

static void make_stream(struct ArrowArrayStream *stream, repeat *r, const aq_arrow_layer *layers,
                        int left) {
    r->layers = layers;
    r->count = 3;
    r->left = left;
    stream->get_schema = repeat_schema;
    stream->get_next = repeat_next;
    stream->get_last_error = repeat_error;
    stream->release = repeat_release;
    stream->private_data = r;
}

/* The file's bytes in memory of exactly that size. */
static unsigned char *load(const char *name, size_t *size) {
    aq_file file;
    uint64_t bytes = 0;
    CHECK_STATUS(aq_file_open(&file, at(name), &bytes, NULL), AQ_OK);
    unsigned char *data = (unsigned char *)malloc((size_t)bytes);
    CHECK_STATUS(aq_file_read(&file, 0, data, (size_t)bytes, NULL), AQ_OK);
    CHECK_STATUS(aq_file_close(&file, NULL), AQ_OK);
    *size = (size_t)bytes;
    return data;
}

static void write_it(const char *name, aq_arrow_ipc kind, int batches) {
    aq_arrow_layer layers[3];
    struct ArrowArrayStream stream;
    repeat r;
    make_layers(layers);
    make_stream(&stream, &r, layers, batches);
    CHECK_STATUS(aq_arrow_ipc_write(NULL, &stream, at(name), kind, NULL), AQ_OK);
}

TEST(ipc_round_trip) {
    for (int kind = 0; kind < 2; kind++) {
        const char *name = kind ? "t.arrows" : "t.arrow";
        struct ArrowArrayStream stream;
        struct ArrowSchema schema;
        struct ArrowArray batches[3], end;
        write_it(name, kind ? AQ_ARROW_STREAM : AQ_ARROW_FILE, 3);
        CHECK_STATUS(aq_arrow_ipc_open(NULL, at(name), &stream, NULL), AQ_OK);
        CHECK(stream.get_schema(&stream, &schema) == 0 && schema.n_children == AQ_COLUMNS);
        CHECK(schema.metadata && memcmp(schema.metadata + 8, "key", 3) == 0);
        for (int i = 0; i < 3; i++)
            CHECK_STATUS(aq_arrow_next(&stream, &batches[i], NULL), AQ_OK);
        CHECK_STATUS(aq_arrow_next(&stream, &end, NULL), AQ_OK);
        CHECK(!end.release);
        stream.release(&stream); /* the arrays keep the file mapped */
        for (int i = 0; i < 3; i++) {
            const struct ArrowArray *data = batches[i].children[AQ_COLUMN_DATA];
            CHECK(batches[i].length == 3 && memcmp(data->buffers[2], all_codes, 128) == 0);
            CHECK((uintptr_t)data->buffers[2] % 64 == 0);
            arrow_walk(&schema, &batches[i]);
            batches[i].release(&batches[i]);
        }
        schema.release(&schema);
    }
}

TEST(ipc_failing_stream) {
    aq_arrow_layer layers[3];
    struct ArrowArrayStream stream;
    repeat r;
    aq_error err;
    make_layers(layers);
    make_stream(&stream, &r, layers, -1);
    CHECK_STATUS(aq_arrow_ipc_write(NULL, &stream, at("never.arrow"), AQ_ARROW_FILE, &err),
                 AQ_ERR_ARROW);
    CHECK(strstr(err.message, "no more of it") != NULL);
    CHECK(aq_path_kind_of(at("never.arrow")) == AQ_PATH_NONE);
}

/* Every single byte changed in several ways, and every length cut: refused, or read within bounds. */
TEST(ipc_every_byte) {
    static const unsigned char changes[] = { 0x01, 0x80, 0xFF, 0x7F };
    unsigned long refused = 0, tried = 0;
    for (int kind = 0; kind < 2; kind++) {
        size_t size;
        int64_t rows;
        aq_error err;
        const char *name = kind ? "s.arrows" : "s.arrow";
        write_it(name, kind ? AQ_ARROW_STREAM : AQ_ARROW_FILE, 1);
        unsigned char *image = load(name, &size);
        CHECK_STATUS(arrow_walk_image(NULL, image, size, "image", &rows, NULL), AQ_OK);
        CHECK(rows == 3);
        size_t step = test_brief() ? 7 : 1;
        for (size_t i = 0; i < size; i += step) {
            for (size_t c = 0; c < sizeof(changes); c++) {
                image[i] ^= changes[c];
                memset(&err, 0, sizeof(err));
                aq_status status = arrow_walk_image(NULL, image, size, "image", &rows, &err);
                tried++;
                refused += status != AQ_OK;
                if (status != AQ_OK) CHECK(err.status == status && err.message[0]);
                image[i] ^= changes[c];
            }
        }
        for (size_t cut = 0; cut < size; cut += 1 + step) {
            unsigned char *part = (unsigned char *)malloc(cut ? cut : 1);
            memcpy(part, image, cut);
            aq_status status = arrow_walk_image(NULL, part, cut, "image", &rows, NULL);
            if (!kind) CHECK(status == AQ_ERR_CORRUPT); /* a stream may end behind any message */
            free(part);
        }
        free(image);
    }
    CHECK(refused > tried / 8);
    printf("%lu of %lu changed files refused\n", refused, tried);
}

/* ---- memory that fails */

static size_t blocks_now;
static unsigned long requests, fail_at;

static void *failing_resize(void *user, void *pointer, size_t old_size, size_t new_size) {
    (void)user;
    (void)old_size;
    if (!new_size) {
        blocks_now -= pointer != NULL;
        free(pointer);
        return NULL;
    }
    if (++requests == fail_at) return NULL;
    if (!pointer) blocks_now++;
    return realloc(pointer, new_size);
}

static aq_status all_of_it(aq_context *context, aq_error *err) {
    aq_arrow_layer layers[3];
    struct ArrowSchema schema;
    struct ArrowArray array;
    struct ArrowArrayStream stream;
    repeat r;
    int64_t rows;
    size_t size;
    make_layers(layers);
    layers[1].data = "0123456789abcdef0123456789abcdef"; /* gathered */
    aq_status status = export_them(context, layers, 3, &schema, &array, err);
    if (status != AQ_OK) return status;
    schema.release(&schema);
    array.release(&array);
    make_stream(&stream, &r, layers, 2);
    status = aq_arrow_ipc_write(context, &stream, at("f.arrow"), AQ_ARROW_FILE, err);
    if (status != AQ_OK) return status;
    unsigned char *image = load("f.arrow", &size);
    status = arrow_walk_image(context, image, size, "image", &rows, err);
    free(image);
    return status;
}

TEST(memory) {
    aq_context context;
    unsigned long faults = 0;
    memset(&context, 0, sizeof(context));
    context.allocator.resize = failing_resize;
    for (fail_at = 1; fail_at < 10000; fail_at++) {
        aq_error err;
        requests = 0;
        memset(&err, 0, sizeof(err));
        aq_status status = all_of_it(&context, &err);
        CHECK(blocks_now == 0);
        if (requests < fail_at) {
            CHECK_STATUS(status, AQ_OK);
            break;
        }
        faults++;
        CHECK(status == AQ_ERR_OUT_OF_MEMORY && err.message[0]);
        CHECK(aq_remove_tree(NULL, at("f.arrow"), NULL) == AQ_OK);
    }
    CHECK(faults > 8);
    printf("%lu allocation faults\n", faults);
}

int main(void) {
    const char *temporary = getenv("TMPDIR");
    if (aq_path_kind_of("/dev/shm") == AQ_PATH_FOLDER) temporary = "/dev/shm";
    aq_format(folder, sizeof(folder), "%s/aq-arrow-%llu",
              temporary && *temporary ? temporary : "/tmp", (unsigned long long)aq_process_id());
    if (aq_make_folder(folder, NULL) != AQ_OK) return 1;
    RUN(layers_in_place);
    RUN(layers_elsewhere);
    RUN(children_move);
    RUN(layers_refused);
    RUN(weights_in_place);
    RUN(weights_of_other_types);
    RUN(weights_refused);
    RUN(ipc_round_trip);
    RUN(ipc_failing_stream);
    RUN(ipc_every_byte);
    RUN(memory);
    aq_remove_tree(NULL, folder, NULL);
    return test_end();
}
#endif
