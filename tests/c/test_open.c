/* Models read back: opened, verified, dequantized, compared. */
#include "test.h"

static char root[512];

static const char *at(const char *name) {
    static char paths[8][1024];
    static unsigned next;
    char *path = paths[next++ % 8];
    aq_format(path, sizeof(paths[0]), "%s/%s", root, name);
    return path;
}

static void put_text(const char *name, const char *text) {
    CHECK_STATUS(aq_write_text(at(name), text, strlen(text), NULL), AQ_OK);
}

typedef struct source {
    const char *name;
    aq_dtype dtype;
    uint32_t rank;
    uint64_t shape[4];
} source;

/* Normal values of a float dtype; of the others, FP8 included, small positive bytes. */
static void fill(unsigned char *data, size_t bytes, aq_dtype dtype, uint64_t *state) {
    static aq_context *context; /* NULL would ask the CPU for each value */
    if (!context) CHECK_STATUS(aq_context_create(AQ_ISA_AUTO, NULL, &context, NULL), AQ_OK);
    size_t size = aq_dtype_size(dtype);
    bool is_float = dtype == AQ_DTYPE_F32 || dtype == AQ_DTYPE_F16 || dtype == AQ_DTYPE_BF16;
    for (size_t i = 0; i < bytes; i += is_float ? size : 1) {
        if (is_float) {
            float value = (float)test_normal(state) * 0.05f;
            aq_from_f32(context, dtype, &value, data + i, 1);
        } else {
            data[i] = (unsigned char)(test_random(state) % 100);
        }
    }
    if (is_float) aq_little_endian(data, bytes / size, size);
}

static void put_file(const char *name, const source *sources, size_t count, uint64_t seed) {
    aq_st_output outputs[16];
    uint64_t end = 0, capacity = 0, state = seed;
    aq_file file = AQ_FILE_CLOSED;
    for (size_t i = 0; i < count; i++) {
        uint64_t bytes = aq_dtype_size(sources[i].dtype);
        for (uint32_t d = 0; d < sources[i].rank; d++) bytes *= sources[i].shape[d];
        outputs[i].name = sources[i].name;
        outputs[i].dtype = sources[i].dtype;
        outputs[i].rank = sources[i].rank;
        outputs[i].shape = sources[i].shape;
        outputs[i].begin = end;
        outputs[i].end = end += bytes;
    }
    const char *metadata = "{\"format\":\"pt\"}";
    CHECK_STATUS(aq_st_header_size(NULL, outputs, count, metadata, &capacity, NULL), AQ_OK);
    CHECK_STATUS(aq_file_create(&file, at(name), NULL), AQ_OK);
    CHECK_STATUS(aq_st_write_header(NULL, &file, capacity, outputs, count, metadata, NULL), AQ_OK);
    for (size_t i = 0; i < count; i++) {
        size_t bytes = (size_t)(outputs[i].end - outputs[i].begin);
        unsigned char *data = (unsigned char *)malloc(bytes + 1);
        fill(data, bytes, outputs[i].dtype, &state);
        CHECK_STATUS(aq_file_write(&file, 8 + capacity + outputs[i].begin, data, bytes, NULL),
                     AQ_OK);
        free(data);
    }
    CHECK_STATUS(aq_file_close(&file, NULL), AQ_OK);
}

/* A folder of two shards, quantized as `q`. */
static const source first_shard[] = {
    { "blocks.0.to_q.weight", AQ_DTYPE_BF16, 2, { 60, 130, 0, 0 } },
    { "blocks.0.to_q.bias", AQ_DTYPE_BF16, 1, { 61, 0, 0, 0 } },
    { "blocks.0.steps", AQ_DTYPE_I64, 1, { 3, 0, 0, 0 } },
    { "blocks.0.conv.weight", AQ_DTYPE_F16, 4, { 7, 33, 3, 3 } },
};
static const source second_shard[] = {
    { "blocks.1.to_q.weight", AQ_DTYPE_F32, 2, { 3000, 200, 0, 0 } },
    { "blocks.1.fp8.weight", AQ_DTYPE_F8_E4M3, 2, { 64, 128, 0, 0 } },
    { "blocks.1.fp8.weight_scale", AQ_DTYPE_F32, 1, { 64, 0, 0, 0 } },
    { "blocks.1.kept.weight", AQ_DTYPE_F8_E5M2, 2, { 64, 128, 0, 0 } },
    { "blocks.1.kept.weight_scale", AQ_DTYPE_F32, 0, { 0, 0, 0, 0 } },
    { "blocks.1.none", AQ_DTYPE_F32, 2, { 0, 7, 0, 0 } },
    { "blocks.1.bytes", AQ_DTYPE_U8, 1, { 9000001, 0, 0, 0 } }, /* more than one piece, and odd */
};
static const char config_text[] = "{\n  \"_class_name\": \"DiT\",\n  \"x\": 1.50\n}\n";

static aq_config config_of(uint32_t bits, uint32_t parameter_bits, bool symmetric) {
    static const aq_layer_bits keep[] = { { "blocks.1.kept.weight", 16 } };
    aq_config config = aq_config_from_profile(AQ_PROFILE_LOCAL);
    config.bit_width = bits;
    config.parameter_bits = parameter_bits;
    config.symmetric = symmetric;
    config.group_size = 64;
    config.min_accuracy = 0.25;
    config.layer_bits = keep;
    config.layer_bits_count = 1;
    config.overwrite = true;
    return config;
}

static void make_models(void) {
    aq_error err;
    CHECK_STATUS(aq_make_folder(at("in"), NULL), AQ_OK);
    put_text("in/config.json", config_text);
    put_text("in/tokenizer.json", "{}");
    put_text("in/model.safetensors.index.json",
             "{\"metadata\":{\"total_size\":1,\"k\":\"v\"},\"weight_map\":{"
             "\"blocks.0.to_q.weight\":\"a.safetensors\",\"blocks.0.to_q.bias\":\"a.safetensors\","
             "\"blocks.0.steps\":\"a.safetensors\",\"blocks.0.conv.weight\":\"a.safetensors\","
             "\"blocks.1.to_q.weight\":\"b.safetensors\",\"blocks.1.fp8.weight\":\"b.safetensors\","
             "\"blocks.1.fp8.weight_scale\":\"b.safetensors\","
             "\"blocks.1.kept.weight\":\"b.safetensors\","
             "\"blocks.1.kept.weight_scale\":\"b.safetensors\",\"blocks.1.none\":\"b.safetensors\","
             "\"blocks.1.bytes\":\"b.safetensors\"}}");
    put_file("in/a.safetensors", first_shard, 4, 1);
    put_file("in/b.safetensors", second_shard, 7, 2);
    aq_config config = config_of(4, 16, false);
    aq_status status = aq_quantize_model(NULL, at("in"), at("q"), &config, NULL, NULL, NULL, &err);
    if (status != AQ_OK) printf("%s\n", err.message);
    CHECK(status == AQ_OK);
}

TEST(opens_plain_and_quantized) {
    aq_model *plain, *model;
    CHECK_STATUS(aq_model_open(NULL, at("in"), &plain, NULL), AQ_OK);
    CHECK_STATUS(aq_model_open(NULL, at("q"), &model, NULL), AQ_OK);
    CHECK(!plain->quantized && plain->tensor_count == 11);
    CHECK(model->quantized && model->tensor_count == 10); /* without the scale that was folded in */
    CHECK(model->weight_bytes + 2000000 < plain->weight_bytes);
    const aq_tensor *tensor = NULL;
    const char *before = "";
    size_t count = 0, quantized = 0;
    while ((tensor = aq_model_next(model, tensor)) != NULL) {
        CHECK(strcmp(before, tensor->name) < 0);
        CHECK(aq_model_find(model, tensor->name) == tensor);
        before = tensor->name;
        count++;
        quantized += tensor->quantized;
    }
    CHECK(count == 10 && quantized == 4);
    CHECK(aq_model_find(model, "blocks.0.to_q.weight.aq_codes") == NULL);
    CHECK(aq_model_find(model, "nothing") == NULL && aq_model_find(NULL, "x") == NULL);
    tensor = aq_model_find(model, "blocks.0.conv.weight");
    CHECK(tensor && tensor->quantized && tensor->dtype == AQ_DTYPE_F16 && tensor->rank == 4);
    CHECK(tensor && tensor->rows == 7 && tensor->cols == 297 && tensor->shape[1] == 33);
    CHECK_STR(tensor ? tensor->code_name : "", "affine");
    CHECK_STR(tensor ? tensor->file : "", "a.safetensors");
    CHECK(tensor && tensor->bytes == tensor->layout.code_bytes + tensor->layout.param_bytes);
    CHECK_RANGE(0.99, tensor ? tensor->cosine_similarity : 0, 1);
    tensor = aq_model_find(model, "blocks.0.to_q.bias");
    CHECK(tensor && !tensor->quantized && isnan(tensor->cosine_similarity) && tensor->bytes == 122);
    aq_model_close(plain);
    aq_model_close(model);
    aq_model_close(NULL);
}

TEST(opens_a_single_file) {
    aq_model *model;
    aq_error err;
    CHECK_STATUS(aq_model_open(NULL, at("q/a.safetensors"), &model, NULL), AQ_OK);
    CHECK(model->quantized && model->tensor_count == 4);
    aq_model_close(model);
    CHECK_STATUS(aq_model_open(NULL, at("in/config.json"), &model, &err), AQ_ERR_UNSUPPORTED);
    CHECK(model == NULL);
    CHECK_STATUS(aq_model_open(NULL, at("nowhere"), &model, &err), AQ_ERR_MODEL_NOT_FOUND);
}

TEST(rows_agree_with_the_whole) {
    aq_model *model;
    CHECK_STATUS(aq_model_open(NULL, at("q"), &model, NULL), AQ_OK);
    for (size_t i = 0; i < model->tensor_count; i++) {
        const aq_tensor *tensor = &model->tensors[i];
        size_t elements = (size_t)(tensor->rows * tensor->cols);
        float *whole = (float *)malloc(elements * 4 + 4), *row = (float *)malloc(elements * 4 + 4);
        uint16_t *half = (uint16_t *)malloc(elements * 2 + 2), expected;
        if (!tensor->quantized && !aq_dtype_is_float(tensor->dtype)) {
            CHECK_STATUS(aq_tensor_dequantize(NULL, tensor, 0, 1, AQ_DTYPE_F32, whole, NULL),
                         AQ_ERR_UNSUPPORTED);
        } else {
            CHECK_STATUS(aq_tensor_dequantize(NULL, tensor, 0, tensor->rows, AQ_DTYPE_F32, whole,
                                              NULL), AQ_OK);
            CHECK_STATUS(aq_tensor_dequantize(NULL, tensor, 0, tensor->rows, AQ_DTYPE_BF16, half,
                                              NULL), AQ_OK);
            for (uint64_t r = 0; r < tensor->rows; r += 1 + tensor->rows / 5) {
                CHECK_STATUS(aq_tensor_dequantize(NULL, tensor, r, 1, AQ_DTYPE_F32, row, NULL),
                             AQ_OK);
                CHECK(memcmp(row, whole + r * tensor->cols, (size_t)tensor->cols * 4) == 0);
                aq_from_f32(NULL, AQ_DTYPE_BF16, row, &expected, 1);
                CHECK(half[r * tensor->cols] == expected);
            }
        }
        CHECK_STATUS(aq_tensor_dequantize(NULL, tensor, 1, tensor->rows, AQ_DTYPE_F32, whole, NULL),
                     AQ_ERR_ARGUMENT);
        CHECK_STATUS(aq_tensor_dequantize(NULL, tensor, 0, 0, AQ_DTYPE_I8, whole, NULL),
                     AQ_ERR_ARGUMENT);
        free(whole);
        free(row);
        free(half);
    }
    aq_model_close(model);
}

/* ---- damage */

static void flip(const char *name, uint64_t offset) {
    FILE *file = fopen(at(name), "r+b");
    if (!file) {
        CHECK(file != NULL);
        return;
    }
    fseek(file, (long)offset, SEEK_SET);
    int byte = fgetc(file);
    fseek(file, (long)offset, SEEK_SET);
    fputc(byte ^ 1, file);
    fclose(file);
}

TEST(verify_names_the_damaged_tensor) {
    aq_model *model;
    aq_error err;
    aq_arena arena;
    aq_st_file file;
    size_t checked = 0;
    CHECK_STATUS(aq_model_open(NULL, at("q"), &model, NULL), AQ_OK);
    CHECK_STATUS(aq_model_verify(NULL, model, NULL, NULL, &checked, NULL), AQ_OK);
    CHECK(checked == 14); /* 4 × 2 parts and 6 kept */
    aq_model_close(model);
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_st_read_header(&arena, at("q/b.safetensors"), &file, NULL), AQ_OK);
    for (size_t i = 0; i < file.tensor_count; i++) {
        const aq_st_tensor *tensor = &file.tensors[i];
        if (!tensor->bytes) continue;
        flip("q/b.safetensors", tensor->offset + tensor->bytes - 1);
        CHECK_STATUS(aq_model_open(NULL, at("q"), &model, NULL), AQ_OK);
        CHECK_STATUS(aq_model_verify(NULL, model, NULL, NULL, &checked, &err), AQ_ERR_CORRUPT);
        CHECK_STR(err.tensor, tensor->name);
        CHECK(strstr(err.message, "b.safetensors") != NULL);
        aq_model_close(model);
        flip("q/b.safetensors", tensor->offset + tensor->bytes - 1);
    }
    aq_arena_free(&arena);
}

static void replace(const char *name, const char *from, const char *to) { /* of one length */
    aq_arena arena;
    char *text;
    size_t size;
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_read_text(&arena, at(name), 1u << 30, &text, &size, NULL), AQ_OK);
    for (size_t i = 0; i + strlen(from) <= size; i++) {
        if (memcmp(text + i, from, strlen(from)) != 0) continue;
        memcpy(text + i, to, strlen(to));
        break;
    }
    CHECK_STATUS(aq_write_text(at(name), text, size, NULL), AQ_OK);
    aq_arena_free(&arena);
}

TEST(refuses_what_it_cannot_read) {
    aq_model *model;
    aq_error err;
    replace("q/a.safetensors", "\\\"affine\\\"", "\\\"affina\\\"");
    CHECK_STATUS(aq_model_open(NULL, at("q"), &model, &err), AQ_ERR_UNSUPPORTED);
    CHECK(strstr(err.message, "affina") && strstr(err.message, err.tensor) && *err.tensor);
    replace("q/a.safetensors", "\\\"affina\\\"", "\\\"affine\\\"");
    replace("q/a.safetensors", "\\\"version\\\":1", "\\\"version\\\":7");
    CHECK_STATUS(aq_model_open(NULL, at("q"), &model, &err), AQ_ERR_METADATA);
    CHECK(strstr(err.message, "version 7") && strstr(err.message, "a.safetensors"));
    replace("q/a.safetensors", "\\\"version\\\":7", "\\\"version\\\":1");
    replace("q/a.safetensors", "\\\"bits\\\":4", "\\\"bits\\\":2");
    CHECK_STATUS(aq_model_open(NULL, at("q"), &model, &err), AQ_ERR_CORRUPT);
    replace("q/a.safetensors", "\\\"bits\\\":2", "\\\"bits\\\":4");
    CHECK_STATUS(aq_model_open(NULL, at("q"), &model, &err), AQ_OK);
    aq_model_close(model);
}

/* ---- dequantized models */

/* What dequantizing must give: rows as aq_tensor_dequantize has them, a kept FP8 weight times its
 * scale of one element. */
static void expected_values(const aq_model *model, const aq_tensor *x, aq_dtype dtype,
                            unsigned char *out) {
    const aq_tensor *scale = strcmp(x->name, "blocks.1.kept.weight") == 0
                                 ? aq_model_find(model, "blocks.1.kept.weight_scale") : NULL;
    size_t count = (size_t)(x->rows * x->cols);
    float *values = (float *)malloc((count + 1) * sizeof(float)), factor = 1.0f;
    if (scale) CHECK_STATUS(aq_tensor_dequantize(NULL, scale, 0, 1, AQ_DTYPE_F32, &factor, NULL), AQ_OK);
    CHECK_STATUS(aq_tensor_dequantize(NULL, x, 0, x->rows, AQ_DTYPE_F32, values, NULL), AQ_OK);
    for (size_t i = 0; i < count && scale; i++) values[i] *= factor;
    aq_from_f32(NULL, dtype, values, out, count);
    aq_little_endian(out, count, aq_dtype_size(dtype));
    free(values);
}

static void same_values(const aq_model *a, const aq_model *b, aq_dtype dtype) {
    for (size_t i = 0; i < a->tensor_count; i++) {
        const aq_tensor *x = &a->tensors[i], *y = aq_model_find(b, x->name);
        if (strcmp(x->name, "blocks.1.kept.weight_scale") == 0) {
            CHECK(y == NULL); /* folded in */
            continue;
        }
        if (!y) {
            CHECK(y != NULL);
            continue;
        }
        bool as_is = !x->quantized && !aq_dtype_is_float(x->dtype);
        CHECK(y->dtype == (as_is ? x->dtype : dtype) && y->rank == x->rank);
        CHECK((uintptr_t)y->data % aq_dtype_size(y->dtype) == 0);
        if (as_is) {
            CHECK(x->bytes == y->bytes && memcmp(x->data, y->data, (size_t)x->bytes) == 0);
            continue;
        }
        CHECK(y->bytes == x->rows * x->cols * aq_dtype_size(dtype));
        unsigned char *values = (unsigned char *)malloc((size_t)y->bytes + 1);
        expected_values(a, x, dtype, values);
        CHECK(y->bytes == 0 || memcmp(values, y->data, (size_t)y->bytes) == 0);
        free(values);
    }
}

TEST(dequantizes_a_folder) {
    static const aq_dtype dtypes[] = { AQ_DTYPE_F32, AQ_DTYPE_F16, AQ_DTYPE_BF16 };
    aq_model *model;
    aq_arena arena;
    char *text;
    size_t size;
    aq_error err;
    CHECK_STATUS(aq_model_open(NULL, at("q"), &model, NULL), AQ_OK);
    for (unsigned i = 0; i < 3; i++) {
        aq_model *plain = NULL;
        aq_status status = aq_dequantize_model(NULL, at("q"), at("plain"), dtypes[i], i > 0, NULL,
                                               NULL, &err);
        if (status != AQ_OK) printf("%s\n", err.message);
        CHECK_STATUS(aq_model_open(NULL, at("plain"), &plain, NULL), AQ_OK);
        if (!plain) continue;
        CHECK(!plain->quantized && plain->tensor_count + 1 == model->tensor_count);
        same_values(model, plain, dtypes[i]);
        aq_model_close(plain);
    }
    aq_model_close(model);
    CHECK_STATUS(aq_dequantize_model(NULL, at("q"), at("plain"), AQ_DTYPE_F32, false, NULL, NULL,
                                     NULL), AQ_ERR_EXISTS);
    CHECK_STATUS(aq_dequantize_model(NULL, at("in"), at("other"), AQ_DTYPE_F32, false, NULL, NULL,
                                     &err), AQ_ERR_METADATA);
    CHECK_STATUS(aq_dequantize_model(NULL, at("q"), at("other"), AQ_DTYPE_I8, false, NULL, NULL,
                                     NULL), AQ_ERR_ARGUMENT);
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_read_text(&arena, at("plain/config.json"), 10000, &text, &size, NULL), AQ_OK);
    CHECK_STR(text, config_text);
    CHECK_STATUS(aq_read_text(&arena, at("plain/model.safetensors.index.json"), 10000, &text, &size,
                              NULL), AQ_OK);
    CHECK(strstr(text, "\"k\": \"v\"") && strstr(text, "\"blocks.1.none\": \"b.safetensors\""));
    CHECK(aq_path_kind_of(at("plain/tokenizer.json")) == AQ_PATH_FILE);
    CHECK(aq_path_kind_of(at("plain/arrowquant_report.json")) == AQ_PATH_NONE);
    aq_arena_free(&arena);
}

static int stop(void *user, const aq_progress *progress) {
    ++*(int *)user;
    return progress->fraction > 0.3;
}

TEST(a_cancelled_dequantization_leaves_nothing) {
    int calls = 0;
    aq_folder_entry *entries;
    size_t before, after;
    aq_arena arena;
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_list_folder(&arena, root, &entries, &before, NULL), AQ_OK);
    CHECK_STATUS(aq_dequantize_model(NULL, at("q"), at("cancelled"), AQ_DTYPE_F32, false, stop,
                                     &calls, NULL), AQ_ERR_CANCELLED);
    CHECK_STATUS(aq_list_folder(&arena, root, &entries, &after, NULL), AQ_OK);
    CHECK(calls > 0 && before == after);
    aq_arena_free(&arena);
}

/* ---- comparing */

TEST(validation_repeats_what_was_recorded) {
    aq_validation result;
    aq_model *model;
    CHECK_STATUS(aq_validate_quality(NULL, at("in"), at("q"), NULL, NULL, NULL, &result, NULL),
                 AQ_OK);
    CHECK_STATUS(aq_model_open(NULL, at("q"), &model, NULL), AQ_OK);
    CHECK(result.passed && result.layer_count == 4);
    CHECK_RANGE(0.99, result.min_cosine_similarity, 1);
    CHECK_RANGE(15, result.sqnr_db, 30);
    CHECK_RANGE(1.1, result.compression_ratio, 8);
    CHECK_RANGE((double)model->weight_bytes, result.model_size_mb * 1e6 + 0.5,
                (double)model->weight_bytes + 1);
    for (size_t i = 0; i < result.layer_count; i++) {
        const aq_tensor *tensor = aq_model_find(model, result.layers[i].name);
        CHECK(tensor && tensor->cosine_similarity == result.layers[i].cosine_similarity);
        CHECK(tensor && tensor->sqnr_db == result.layers[i].sqnr_db);
        CHECK(result.layers[i].bits == 4 && result.layers[i].max_error > 0);
    }
    aq_model_close(model);
    aq_validation_free(&result);
    aq_validation_free(&result);
    aq_validation_free(NULL);
}

TEST(gates_come_from_the_config_or_the_record) {
    aq_validation result;
    aq_config config = config_of(4, 16, false);
    config.min_accuracy = 0.9999;
    CHECK_STATUS(aq_validate_quality(NULL, at("in"), at("q"), &config, NULL, NULL, &result, NULL),
                 AQ_OK);
    CHECK(!result.passed && !result.layers[0].passed);
    aq_validation_free(&result);
    config.min_accuracy = 0;
    config.min_sqnr_db = 60;
    CHECK_STATUS(aq_validate_quality(NULL, at("in"), at("q"), &config, NULL, NULL, &result, NULL),
                 AQ_OK);
    CHECK(!result.passed);
    aq_validation_free(&result);
    replace("q/config.json", "\"min_accuracy\": 0.25", "\"min_accuracy\": 1.00");
    CHECK_STATUS(aq_validate_quality(NULL, at("in"), at("q"), NULL, NULL, NULL, &result, NULL),
                 AQ_OK);
    CHECK(!result.passed);
    aq_validation_free(&result);
    replace("q/config.json", "\"min_accuracy\": 1.00", "\"min_accuracy\": 0.25");
}

TEST(comparing_lists_what_is_missing) {
    aq_validation result;
    char *text;
    size_t size;
    aq_json_node *tree;
    aq_arena arena;
    CHECK_STATUS(aq_compare_models(NULL, at("in"), at("q/a.safetensors"), NULL, NULL, &result,
                                   NULL), AQ_OK);
    CHECK(result.layer_count == 3 && result.only_in_first_count == 5);
    CHECK(result.only_in_second_count == 0 && result.passed);
    CHECK_STR(result.only_in_first[0], "blocks.1.bytes");
    CHECK_STR(result.only_in_first[1], "blocks.1.fp8.weight");
    CHECK_STR(result.layers[1].name, "blocks.0.to_q.bias");
    CHECK(result.layers[1].cosine_similarity == 1 && isinf(result.layers[1].sqnr_db));
    CHECK(result.layers[1].bits == 16 && result.layers[0].bits == 4);
    CHECK_STATUS(aq_validation_to_json(NULL, &result, &text, &size, NULL), AQ_OK);
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_json_parse(&arena, text, size, "json", AQ_ERR_CORRUPT, &tree, NULL), AQ_OK);
    CHECK(aq_json_get(tree, "only_in_first")->count == 5);
    CHECK(aq_json_get(tree, "layers")->count == 3);
    CHECK(aq_json_get(aq_json_get(tree, "layers")->first->next, "sqnr_db")->type == AQ_JSON_NULL);
    aq_arena_free(&arena);
    aq_text_free(NULL, text, size);
    aq_validation_free(&result);
    CHECK_STATUS(aq_compare_models(NULL, at("q"), at("q"), NULL, NULL, &result, NULL), AQ_OK);
    CHECK(isinf(result.sqnr_db) && result.compression_ratio == 1 && result.layer_count == 8);
    aq_validation_free(&result);
}

TEST(models_that_do_not_belong_together) {
    static const source other[] = {
        { "blocks.0.to_q.weight", AQ_DTYPE_F32, 2, { 60, 131, 0, 0 } },
    };
    aq_validation result;
    aq_error err;
    put_file("other.safetensors", other, 1, 3);
    CHECK_STATUS(aq_validate_quality(NULL, at("other.safetensors"), at("q"), NULL, NULL, NULL,
                                     &result, &err), AQ_ERR_VALIDATION);
    CHECK_STR(err.tensor, "blocks.0.conv.weight");
    CHECK_STATUS(aq_compare_models(NULL, at("other.safetensors"), at("q"), NULL, NULL, &result,
                                   &err), AQ_ERR_SHAPE);
    CHECK(strstr(err.message, "60 x 131") && strstr(err.message, "60 x 130"));
    CHECK_STATUS(aq_validate_quality(NULL, at("in"), at("in"), NULL, NULL, NULL, &result, &err),
                 AQ_ERR_METADATA);
    CHECK(result.layers == NULL && result.owned == NULL);
}

TEST(components_of_a_pipeline) {
    static const source one[] = { { "blocks.0.to_q.weight", AQ_DTYPE_F32, 2, { 64, 128, 0, 0 } } };
    static const char *const both[] = { "transformer", "text_encoder" };
    static const char *const folders[] = { "pipe", "pipe/transformer", "pipe/text_encoder" };
    aq_model *model;
    aq_validation result;
    aq_error err;
    for (unsigned i = 0; i < 3; i++) CHECK_STATUS(aq_make_folder(at(folders[i]), NULL), AQ_OK);
    put_text("pipe/model_index.json", "{\"_class_name\":\"XPipeline\"}");
    put_text("pipe/transformer/config.json", config_text);
    put_text("pipe/text_encoder/config.json", config_text);
    put_file("pipe/transformer/diffusion_pytorch_model.safetensors", one, 1, 4);
    put_file("pipe/text_encoder/model.safetensors", one, 1, 5);
    for (size_t count = 2; count > 0; count--) { /* both, then only the text encoder */
        aq_config config = config_of(8, 16, false);
        config.components = both + 2 - count;
        config.component_count = count;
        const char *name =
            count == 2 ? "text_encoder/blocks.0.to_q.weight" : "blocks.0.to_q.weight";
        aq_status status =
            aq_quantize_model(NULL, at("pipe"), at("pipe-q"), &config, NULL, NULL, NULL, &err);
        if (status != AQ_OK) printf("%s\n", err.message);
        CHECK_STATUS(aq_model_open(NULL, at("pipe-q"), &model, NULL), AQ_OK);
        CHECK(model->quantized && model->tensor_count == count);
        const aq_tensor *tensor = aq_model_find(model, name);
        CHECK(tensor && tensor->quantized);
        CHECK_STR(tensor ? tensor->file : "", "text_encoder/model.safetensors");
        aq_model_close(model);
        CHECK_STATUS(aq_validate_quality(NULL, at("pipe"), at("pipe-q"), NULL, NULL, NULL, &result,
                                         NULL), AQ_OK);
        CHECK(result.passed && result.layer_count == count && result.min_cosine_similarity > 0.999);
        aq_validation_free(&result);
        CHECK_STATUS(aq_compare_models(NULL, at("pipe"), at("pipe-q"), NULL, NULL, &result, NULL),
                     AQ_OK);
        CHECK(result.layer_count == count && !result.only_in_first_count);
        aq_validation_free(&result);
        CHECK_STATUS(aq_dequantize_model(NULL, at("pipe-q"), at("pipe-plain"), AQ_DTYPE_F32, true,
                                         NULL, NULL, NULL), AQ_OK);
        CHECK_STATUS(aq_model_open(NULL, at("pipe-plain"), &model, NULL), AQ_OK);
        CHECK(!model->quantized && model->tensor_count == 1); /* the denoiser is shown */
        aq_model_close(model);
        CHECK(aq_path_kind_of(at("pipe-plain/text_encoder/model.safetensors")) == AQ_PATH_FILE);
    }
}

TEST(a_variant_is_found_again) {
    static const source one[] = { { "blocks.0.to_q.weight", AQ_DTYPE_F32, 2, { 64, 128, 0, 0 } } };
    aq_validation result;
    aq_model *model = NULL;
    aq_config config = config_of(8, 16, false);
    CHECK_STATUS(aq_make_folder(at("var"), NULL), AQ_OK);
    put_file("var/model.fp16.safetensors", one, 1, 6);
    config.variant = "fp16";
    CHECK_STATUS(aq_quantize_model(NULL, at("var"), at("var-q"), &config, NULL, NULL, NULL, NULL),
                 AQ_OK);
    CHECK_STATUS(aq_model_open(NULL, at("var-q"), &model, NULL), AQ_OK);
    CHECK(model && model->quantized && model->tensor_count == 1);
    aq_model_close(model);
    CHECK_STATUS(aq_validate_quality(NULL, at("var"), at("var-q"), NULL, NULL, NULL, &result, NULL),
                 AQ_OK);
    CHECK(result.passed && result.layer_count == 1);
    aq_validation_free(&result);
    put_file("var/model.safetensors", one, 1, 7); /* another model beside it */
    CHECK_STATUS(aq_compare_models(NULL, at("var"), at("var-q"), NULL, NULL, &result, NULL), AQ_OK);
    CHECK_RANGE(0.999, result.min_cosine_similarity, 1);
    aq_validation_free(&result);
    CHECK_STATUS(aq_dequantize_model(NULL, at("var-q"), at("var-plain"), AQ_DTYPE_F16, false, NULL,
                                     NULL, NULL), AQ_OK);
    CHECK(aq_path_kind_of(at("var-plain/model.fp16.safetensors")) == AQ_PATH_FILE);
}

int main(void) {
    const char *folder = getenv("TMPDIR");
    aq_format(root, sizeof(root), "%s/aq-open-%llu", folder && *folder ? folder : "/tmp",
              (unsigned long long)aq_process_id());
    if (aq_make_folder(root, NULL) != AQ_OK) return 1;
    make_models();
    RUN(opens_plain_and_quantized);
    RUN(opens_a_single_file);
    RUN(rows_agree_with_the_whole);
    RUN(verify_names_the_damaged_tensor);
    RUN(refuses_what_it_cannot_read);
    RUN(dequantizes_a_folder);
    RUN(a_cancelled_dequantization_leaves_nothing);
    RUN(validation_repeats_what_was_recorded);
    RUN(gates_come_from_the_config_or_the_record);
    RUN(comparing_lists_what_is_missing);
    RUN(models_that_do_not_belong_together);
    RUN(components_of_a_pipeline);
    RUN(a_variant_is_found_again);
    aq_remove_tree(NULL, root, NULL);
    return test_end();
}
