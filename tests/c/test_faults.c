/* Memory that fails: each allocation of a small run of each public function fails in turn, once alone
 * and once with all that follow. The status says so, nothing leaks, no output appears, an earlier one
 * stays, and the next call works. Functions without a context: tool_malloc.c. */
/* Faults of reading a journal, after which a shard is made again; more where each piece of an arena is an
 * allocation of its own. */
#if defined(AQ_ARENA_FIRST)
#  define JOURNAL_FAULTS 105
#else
#  define JOURNAL_FAULTS 5
#endif

#include "test.h"

#ifdef ARROWQUANT_NO_STDIO
int main(void) { return test_end(); }
#else

/* ---- the allocator */

typedef struct memory {
    size_t bytes, blocks;   /* now */
    size_t largest;         /* single request so far */
    unsigned long requests; /* since it was armed */
    unsigned long fail_at;  /* the request that fails, from 1 */
    bool armed, lasting, hit;
    unsigned long wrong; /* sizes handed back that are not those of the block */
} memory;

static memory m;
#define HEAD 32u /* keeps alignment; the block's size stands in it */

static void *memory_resize(void *user, void *pointer, size_t old_size, size_t new_size) {
    unsigned char *block = pointer ? (unsigned char *)pointer - HEAD : NULL;
    size_t size = 0;
    (void)user;
    if (block) {
        memcpy(&size, block, sizeof(size));
        m.wrong += size != old_size;
    }
    if (!new_size) {
        if (block) {
            m.bytes -= size;
            m.blocks--;
            memset(block, 0xDD, HEAD + size);
            free(block);
        }
        return NULL;
    }
    if (m.armed) {
        m.requests++;
        if (m.requests == m.fail_at || (m.lasting && m.requests > m.fail_at)) {
            m.hit = true;
            return NULL;
        }
    }
    unsigned char *moved = (unsigned char *)malloc(HEAD + new_size);
    if (!moved) return NULL;
    memset(moved + HEAD, 0xA5, new_size); /* nobody may count on zeros */
    if (block) {
        memcpy(moved + HEAD, block + HEAD, size < new_size ? size : new_size);
        m.bytes -= size;
        m.blocks--;
        free(block);
    }
    memcpy(moved, &new_size, sizeof(new_size));
    m.bytes += new_size;
    m.blocks++;
    if (new_size > m.largest) m.largest = new_size;
    return moved + HEAD;
}

static aq_status armed(aq_status status) { /* around the call under test: armed(call) after arm() */
    m.armed = false;
    return status;
}

static void arm(void) { m.armed = true; }

/* ---- models */

static char root[512];
static aq_context *context;

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
    uint64_t shape[2];
} source;

static void put_file(const char *name, const source *sources, size_t count) {
    aq_st_output outputs[8];
    uint64_t end = 0, capacity = 0, state = count;
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
    for (uint64_t i = 0; i < end; i += 2) { /* small normal numbers, whatever the float type */
        unsigned char pair[2];
        pair[0] = (unsigned char)(test_random(&state) % 64);
        pair[1] = (unsigned char)(0x3C + test_random(&state) % 2);
        if (test_random(&state) % 2) pair[1] = (unsigned char)(pair[1] | 0x80);
        CHECK_STATUS(aq_file_write(&file, 8 + capacity + i, pair, 2, NULL), AQ_OK);
    }
    CHECK_STATUS(aq_file_close(&file, NULL), AQ_OK);
}

static const source first_shard[] = {
    { "blocks.0.to_q.weight", AQ_DTYPE_BF16, 2, { 8, 64 } },
    { "blocks.0.to_q.bias", AQ_DTYPE_BF16, 1, { 8, 0 } },
};
static const source second_shard[] = {
    { "blocks.1.fp8.weight", AQ_DTYPE_F8_E4M3, 2, { 8, 128 } },
    { "blocks.1.fp8.weight_scale", AQ_DTYPE_F32, 0, { 0, 0 } },
    { "blocks.1.to_q.weight", AQ_DTYPE_F32, 2, { 8, 64 } },
};

static void make_models(void) {
    static const char *const folders[] = { "sharded", "pipe", "pipe/transformer", "pipe/vae",
                                           "numbered", "numbered/.cache", "numbered/more" };
    for (unsigned i = 0; i < 7; i++) CHECK_STATUS(aq_make_folder(at(folders[i]), NULL), AQ_OK);
    put_text("sharded/config.json", "{\"architectures\": [\"XForCausalLM\"]}");
    put_text("sharded/metadata.json", "{\"modality\": \" Text\"}");
    put_text("sharded/tokenizer.json", "{}");
    put_text("sharded/model.safetensors.index.json",
             "{\"metadata\":{\"total_size\":1,\"k\":\"v\"},\"weight_map\":{"
             "\"blocks.0.to_q.weight\":\"a.safetensors\",\"blocks.0.to_q.bias\":\"a.safetensors\","
             "\"blocks.1.fp8.weight\":\"b.safetensors\",\"blocks.1.to_q.weight\":\"b.safetensors\","
             "\"blocks.1.fp8.weight_scale\":\"b.safetensors\"}}");
    put_file("sharded/a.safetensors", first_shard, 2);
    put_file("sharded/b.safetensors", second_shard, 3);
    put_text("pipe/model_index.json", "{\"_class_name\":\"XPipeline\"}");
    put_text("pipe/vae/config.json", "{}");
    put_text("pipe/transformer/config.json", "{\"_class_name\": \"X\"}");
    put_file("pipe/transformer/diffusion_pytorch_model.safetensors", first_shard, 2);
    put_file("one.safetensors", second_shard, 3);
    put_text("numbered/more/vocab.txt", "a\n");
    put_text("numbered/arrowquant_report.json", "{}");
    put_file("numbered/model-00001-of-00002.safetensors", first_shard, 2);
    put_file("numbered/model-00002-of-00002.safetensors", second_shard, 3);
}

static aq_config config_of(void) {
    aq_config config = aq_config_from_profile(AQ_PROFILE_LOCAL);
    config.group_size = 32;
    config.min_accuracy = 0;
    config.num_threads = 1;
    return config;
}

/* ---- the runs */

typedef struct run {
    const char *name;
    aq_status (*call)(aq_error *err);
    const char *model, *output; /* for `call` to use; the output does not exist before */
    unsigned long harmless; /* so many faults at most may end well: they only hit a cleaning up */
} run;

static const run *now;
static unsigned long faults_total;

/* What the runs of a test find and leave, all of them copies in `root`; NULL: nothing. */
static const char *earlier;     /* the output before, and after a failure */
static const char *interrupted; /* the temporary folder of an interrupted run */
static const char *wanted;      /* the output after a success */

/* Temporaries beside the output; removed on demand. */
static size_t left_overs(bool removed) {
    aq_arena arena;
    aq_folder_entry *entries = NULL;
    size_t count = 0, found = 0;
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_list_folder(&arena, root, &entries, &count, NULL), AQ_OK);
    for (size_t i = 0; i < count; i++) {
        if (!strstr(entries[i].name, "tmp-")) continue;
        found++;
        if (removed) CHECK_STATUS(aq_remove_tree(NULL, at(entries[i].name), NULL), AQ_OK);
    }
    aq_arena_free(&arena);
    return found;
}

static void copy_tree(const char *from, const char *to) {
    aq_arena arena;
    aq_folder_entry *entries = NULL;
    size_t count = 0, size = 0;
    char *text = NULL;
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_make_folder(to, NULL), AQ_OK);
    CHECK_STATUS(aq_list_folder(&arena, from, &entries, &count, NULL), AQ_OK);
    for (size_t i = 0; i < count; i++) {
        char *path = aq_path_join(&arena, from, entries[i].name);
        char *copied = aq_path_join(&arena, to, entries[i].name);
        if (entries[i].kind == AQ_PATH_FOLDER) {
            copy_tree(path, copied);
            continue;
        }
        CHECK_STATUS(aq_read_text(&arena, path, 1 << 20, &text, &size, NULL), AQ_OK);
        CHECK_STATUS(aq_write_text(copied, text, size, NULL), AQ_OK);
    }
    aq_arena_free(&arena);
}

/* Both folders hold the same files, byte for byte. */
static bool same_tree(const char *one, const char *other) {
    aq_arena arena;
    aq_folder_entry *entries = NULL, *others = NULL;
    size_t count = 0, other_count = 0, sizes[2];
    char *texts[2];
    aq_arena_init(&arena, NULL);
    bool same = aq_list_folder(&arena, one, &entries, &count, NULL) == AQ_OK &&
                aq_list_folder(&arena, other, &others, &other_count, NULL) == AQ_OK &&
                count == other_count;
    for (size_t i = 0; same && i < count; i++) {
        char *a = aq_path_join(&arena, one, entries[i].name);
        char *b = aq_path_join(&arena, other, entries[i].name);
        if (entries[i].kind == AQ_PATH_FOLDER) {
            same = same_tree(a, b);
            continue;
        }
        same = aq_read_text(&arena, a, 1 << 20, &texts[0], &sizes[0], NULL) == AQ_OK &&
               aq_read_text(&arena, b, 1 << 20, &texts[1], &sizes[1], NULL) == AQ_OK &&
               sizes[0] == sizes[1] && memcmp(texts[0], texts[1], sizes[0]) == 0;
    }
    aq_arena_free(&arena);
    return same;
}

static void before_call(void) {
    if (earlier) copy_tree(at(earlier), at(now->output));
    if (interrupted) {
        copy_tree(at(interrupted), at(".out.aq-tmp-1-1-0"));
        put_text(".out.aq-tmp-1-1-0.lock", "");
    }
}

/* As it must be, whatever the call said. */
static bool output_is_right(aq_status status) {
    if (!now->output) return true;
    if (status == AQ_OK) return !wanted || same_tree(at(now->output), at(wanted));
    if (earlier) return same_tree(at(now->output), at(earlier));
    return aq_path_kind_of(at(now->output)) == AQ_PATH_NONE;
}

static void clear_output(void) {
    if (now->output) CHECK_STATUS(aq_remove_tree(NULL, at(now->output), NULL), AQ_OK);
    if (earlier || interrupted) (void)left_overs(true); /* or the next run would take them up */
}

/* One fault; false when the call came through without meeting it. */
static bool one_fault(unsigned long number, bool lasting, unsigned long *well) {
    aq_error err;
    size_t bytes = m.bytes, blocks = m.blocks;
    memset(&err, 0, sizeof(err));
    before_call();
    m.requests = 0;
    m.fail_at = number;
    m.lasting = lasting;
    m.hit = false;
    aq_status status = now->call(&err);
    m.armed = false;
    bool good = m.bytes == bytes && m.blocks == blocks && !m.wrong;
    if (!m.hit) {
        good = good && status == AQ_OK && !left_overs(false);
    } else if (status == AQ_OK) {
        ++*well;
    } else {
        good = good && status == AQ_ERR_OUT_OF_MEMORY && err.status == status && err.message[0];
    }
    good = good && output_is_right(status);
    if (!good) {
        test_broken = 1;
        printf("%s: allocation %lu%s: %s (%s), %llu bytes and %llu blocks leaked, %lu wrong sizes, "
               "%u left over\n", now->name, number, lasting ? " and all after it" : "",
               aq_status_name(status), err.message, (unsigned long long)(m.bytes - bytes),
               (unsigned long long)(m.blocks - blocks), m.wrong, (unsigned)left_overs(false));
    }
    clear_output();
    return m.hit && number < 100000;
}

static void every_fault(const run *it) {
    unsigned long faults[2] = { 0, 0 }, well = 0, most = 0;
    unsigned long step = test_brief() ? 7 : 1; /* all of them where nothing is emulated */
    now = it;
    for (unsigned lasting = 0; lasting < 2; lasting++) {
        while (one_fault(step * faults[lasting] + 1, lasting != 0, &well)) faults[lasting]++;
        most += faults[lasting];
    }
    if (well > it->harmless) {
        test_broken = 1;
        printf("%s: %lu faults ended well, at most %lu may\n", it->name, well, it->harmless);
    }
    CHECK(most > 0);
    faults_total += most;
    printf("%-44s %6lu faults, %lu of them harmless\n", it->name, most, well);
}

/* ---- what is called */

static aq_status call_context_create(aq_error *err) {
    aq_allocator allocator = { memory_resize, NULL };
    aq_context *made = NULL;
    arm();
    aq_status status = armed(aq_context_create(AQ_ISA_AUTO, &allocator, &made, err));
    aq_context_destroy(made);
    return status;
}

static const char yaml[] = "deployment_profile: edge\nlayer_bits: {\"a*\": 8, b: 16}\n"
                           "sensitive_layers: [a.b, c]\nvariant: fp16\n";

static aq_status call_from_yaml(aq_error *err) {
    aq_config config;
    arm();
    aq_status status =
        armed(aq_config_from_yaml(context, yaml, sizeof(yaml) - 1, "yaml", &config, err));
    if (status == AQ_OK) aq_config_free(&config);
    return status;
}

static aq_status call_to_yaml(aq_error *err) {
    aq_config config = config_of();
    char *text = NULL;
    size_t size = 0;
    arm();
    aq_status status = armed(aq_config_to_yaml(context, &config, &text, &size, err));
    if (status == AQ_OK) aq_text_free(context, text, size);
    return status;
}

static aq_status call_load_yaml(aq_error *err) {
    aq_config config;
    put_text("config.yaml", yaml);
    arm();
    aq_status status = armed(aq_config_load_yaml(context, at("config.yaml"), &config, err));
    if (status == AQ_OK) aq_config_free(&config);
    return status;
}

static aq_status call_save_yaml(aq_error *err) {
    aq_config config = config_of();
    arm();
    return armed(aq_config_save_yaml(context, &config, at(now->output), err));
}

static aq_status call_config_set(aq_error *err) { /* a loaded config: its memory is the context's */
    static char list[4096];
    aq_config config;
    size_t size = 0;
    list[size++] = '[';
    for (unsigned i = 0; i < 100; i++)
        size += aq_format(list + size, sizeof(list) - size, "%s\"blocks.%u.attn.to_q\"", i ? ", " : "",
                          i);
    aq_format(list + size, sizeof(list) - size, "]");
    CHECK_STATUS(aq_config_from_yaml(context, yaml, sizeof(yaml) - 1, "yaml", &config, NULL), AQ_OK);
    arm();
    aq_status status = armed(aq_config_set(&config, "sensitive_layers", list, err));
    CHECK(config.sensitive_layer_count == (status == AQ_OK ? 100 : 2));
    if (status != AQ_OK) CHECK_STR(config.sensitive_layers[1], "c");
    aq_config_free(&config);
    return status;
}

static aq_status call_config_get(aq_error *err) {
    aq_config config;
    char *text = NULL;
    size_t size = 0;
    CHECK_STATUS(aq_config_from_yaml(NULL, yaml, sizeof(yaml) - 1, "yaml", &config, NULL), AQ_OK);
    arm();
    aq_status status =
        armed(aq_config_get(context, &config, "sensitive_layers", &text, &size, err));
    if (status == AQ_OK) aq_text_free(context, text, size);
    aq_config_free(&config);
    return status;
}

static aq_status call_config_clone(aq_error *err) {
    aq_config config, copy;
    CHECK_STATUS(aq_config_from_yaml(NULL, yaml, sizeof(yaml) - 1, "yaml", &config, NULL), AQ_OK);
    arm();
    aq_status status = armed(aq_config_clone(context, &config, &copy, err));
    if (status == AQ_OK) {
        CHECK(aq_config_equal(&config, &copy));
        aq_config_free(&copy);
    }
    aq_config_free(&config);
    return status;
}

static aq_plan *plan_of(void) {
    aq_plan *plan = NULL;
    aq_config config = config_of();
    CHECK_STATUS(aq_plan_create(context, at(now->model), &config, &plan, NULL), AQ_OK);
    return plan;
}

static aq_status call_plan_create(aq_error *err) {
    aq_plan *plan = NULL;
    aq_config config = config_of();
    arm();
    aq_status status = armed(aq_plan_create(context, at(now->model), &config, &plan, err));
    if (status != AQ_OK) CHECK(plan == NULL);
    aq_plan_destroy(plan);
    return status;
}

static aq_status call_plan_to_json(aq_error *err) {
    aq_plan *plan = plan_of();
    char *text = NULL;
    size_t size = 0;
    arm();
    aq_status status = armed(aq_plan_to_json(context, plan, &text, &size, err));
    if (status == AQ_OK) aq_text_free(context, text, size);
    aq_plan_destroy(plan);
    return status;
}

static aq_status call_execute(aq_error *err) {
    aq_plan *plan = plan_of();
    arm();
    aq_status status = armed(aq_plan_execute(context, plan, at(now->output), NULL, NULL, err));
    aq_plan_destroy(plan);
    return status;
}

/* Begun by one plan, the second shard made by another, the first by the one that began. */
static aq_status call_shared(aq_error *err) {
    aq_plan *plan = plan_of(), *other = plan_of();
    const char *folder = NULL;
    aq_error ignored;
    CHECK_STATUS(aq_plan_execute_output(context, other, root, 9, NULL, NULL, &ignored),
                 AQ_ERR_ARGUMENT);
    arm();
    aq_status status = aq_plan_begin(context, plan, at(now->output), &folder, err);
    if (status == AQ_OK)
        status = aq_plan_execute_output(context, other, folder, 1, NULL, NULL, err);
    if (status == AQ_OK)
        status = aq_plan_execute(context, plan, at(now->output), NULL, NULL, err);
    armed(status);
    aq_plan_destroy(other);
    aq_plan_destroy(plan);
    return status;
}

static aq_status call_commit(aq_error *err) {
    aq_plan *plan = plan_of();
    aq_result result;
    CHECK_STATUS(aq_plan_execute(context, plan, at(now->output), NULL, NULL, NULL), AQ_OK);
    arm();
    aq_status status = armed(aq_plan_commit(context, plan, &result, err));
    if (status == AQ_OK) aq_result_free(&result);
    aq_plan_destroy(plan);
    return status;
}

static aq_status call_quantize(aq_error *err) {
    aq_config config = config_of();
    aq_result result;
    arm();
    aq_status status = aq_quantize_model(context, at(now->model), at(now->output), &config, NULL,
                                         NULL, &result, err);
    armed(status);
    if (status == AQ_OK) aq_result_free(&result);
    return status;
}

static aq_status call_quantize_gates(aq_error *err) { /* every layer is raised, or kept at last */
    aq_config config = config_of();
    config.bit_width = 2;
    config.min_sqnr_db = 100;
    config.parameter_bits = 8;
    config.symmetric = true;
    config.enable_streaming = true;
    arm();
    return armed(aq_quantize_model(context, at(now->model), at(now->output), &config, NULL, NULL,
                                   NULL, err));
}

static aq_status call_quantize_compressed(aq_error *err) {
    aq_config config = config_of();
    config.output_format = AQ_OUTPUT_COMPRESSED_TENSORS;
    arm();
    return armed(aq_quantize_model(context, at(now->model), at(now->output), &config, NULL, NULL,
                                   NULL, err));
}

static aq_status call_quantize_arrow(aq_error *err) {
    aq_config config = config_of();
    config.output_format = AQ_OUTPUT_ARROW;
    arm();
    return armed(aq_quantize_model(context, at(now->model), at(now->output), &config, NULL, NULL,
                                   NULL, err));
}

static aq_config config_again(void) { /* notes at the end; see keep_interrupted */
    aq_config config = config_of();
    config.bit_width = 2;
    config.min_sqnr_db = 30;
    config.overwrite = true;
    config.resume = true;
    return config;
}

static aq_status call_quantize_again(aq_error *err) { /* overwrites and takes up what there is */
    aq_config config = config_again();
    aq_result result;
    arm();
    aq_status status = armed(aq_quantize_model(context, at(now->model), at(now->output), &config,
                                               NULL, NULL, &result, err));
    if (status == AQ_OK) {
        if (interrupted && !m.hit)
            CHECK(strncmp(result.notes[result.note_count - 1], "taken up", 8) == 0);
        aq_result_free(&result);
    }
    return status;
}

static aq_status call_quantize_budget(aq_error *err) { /* bits by layer: everything is measured */
    aq_config config = config_of();
    config.target_bits = 7;
    arm();
    return armed(aq_quantize_model(context, at(now->model), at(now->output), &config, NULL, NULL,
                                   NULL, err));
}

/* ---- statistics */

static float activations[4 * 64];

static aq_observer *observer_of(void) {
    aq_observer_options options;
    aq_observer *observer = NULL;
    memset(&options, 0, sizeof(options));
    options.second_moments = true;
    CHECK_STATUS(aq_observer_create(context, &options, &observer, NULL), AQ_OK);
    return observer;
}

static aq_status feed_some(aq_observer *observer, aq_error *err) {
    aq_status status = AQ_OK;
    for (int64_t t = 0; status == AQ_OK && t < 1000; t += 300) {
        activations[0] += 1.0f;
        status = aq_observer_feed(observer, "blocks.0.to_q", t, AQ_DTYPE_F32, activations, 4, 64, err);
        if (status == AQ_OK)
            status = aq_observer_feed(observer, "blocks.1.to_q", t, AQ_DTYPE_F32, activations, 3, 64,
                                      err);
    }
    return status;
}

static void make_statistics(void) {
    uint64_t state = 1;
    aq_observer *observer = observer_of();
    for (size_t i = 0; i < 4 * 64; i++) activations[i] = (float)test_normal(&state);
    CHECK_STATUS(feed_some(observer, NULL), AQ_OK);
    CHECK_STATUS(aq_observer_save(observer, at("statistics.safetensors"), NULL), AQ_OK);
    aq_observer_destroy(observer);
    put_text("other.jsonl", "{\"layer\": \"c\", \"timestep\": 7, \"data\": [[1, 2], [3, 4]]}\n\n"
             "{\"shape\": [1, 4], \"layer\": \"b\\u0041\", \"timestep\": 7, \"data\": [1, 2, 3, 4]}\n");
}

static aq_status call_observe(aq_error *err) {
    aq_observer *observer = NULL;
    aq_calibration *calibration = NULL;
    aq_observer_options options;
    memset(&options, 0, sizeof(options));
    options.second_moments = true;
    arm();
    aq_status status = aq_observer_create(context, &options, &observer, err);
    if (status == AQ_OK) status = feed_some(observer, err);
    if (status == AQ_OK) status = aq_observer_load(observer, at("statistics.safetensors"), err);
    if (status == AQ_OK) status = aq_observer_calibration(observer, &calibration, err);
    if (status == AQ_OK) status = aq_observer_save(observer, at(now->output), err);
    armed(status);
    aq_calibration_close(calibration);
    aq_observer_destroy(observer);
    return status;
}

static aq_status call_calibration(aq_error *err) {
    static float moments[64 * 64];
    const char *paths[2];
    aq_calibration *calibration = NULL;
    paths[0] = at("statistics.safetensors");
    paths[1] = at("other.jsonl");
    arm();
    aq_status status = aq_calibration_open(context, paths, 2, 5, &calibration, err);
    if (status == AQ_OK)
        status = aq_calibration_hessian(context, calibration,
                                        aq_calibration_find(calibration, "blocks.1.to_q.weight"),
                                        moments, err);
    armed(status);
    aq_calibration_close(calibration);
    return status;
}

static aq_status call_time_groups(aq_error *err) {
    const char *path = at("statistics.safetensors");
    aq_quant_spec spec;
    aq_time_options options = { 3, 1000, AQ_TIME_CUT_OPTIMAL, AQ_RANGE_LEAST_ERROR, 99.9, 0 };
    aq_calibration *calibration = NULL;
    aq_time_groups groups;
    aq_equalization found;
    float scales[64];
    memset(&groups, 0, sizeof(groups));
    memset(&spec, 0, sizeof(spec));
    spec.bits = 4;
    spec.group_size = 32;
    CHECK_STATUS(aq_calibration_open(context, &path, 1, 0, &calibration, NULL), AQ_OK);
    const aq_calibration_layer *layer = aq_calibration_find(calibration, "blocks.1.to_q");
    arm();
    aq_status status = aq_time_groups_make(context, layer, &options, &groups, err);
    if (status == AQ_OK)
        status = aq_equalize(context, &spec, activations, AQ_DTYPE_F32, 4, 64, layer, (double)NAN, 8,
                             scales, &found, err);
    armed(status);
    aq_time_groups_free(&groups);
    aq_calibration_close(calibration);
    return status;
}

static aq_config calibrated(const char *const *path) {
    aq_config config = config_of();
    config.calibration = path;
    config.calibration_count = 1;
    config.boundary_smoothing.enabled = true;
    return config;
}

static aq_status call_quantize_calibrated(aq_error *err) {
    const char *path = at("statistics.safetensors");
    aq_config config = calibrated(&path);
    aq_model *model = NULL;
    arm();
    aq_status status = aq_quantize_model(context, at(now->model), at(now->output), &config, NULL,
                                         NULL, NULL, err);
    armed(status);
    if (status != AQ_OK) return status;
    CHECK_STATUS(aq_model_open(context, at(now->output), &model, NULL), AQ_OK);
    const aq_tensor *tensor = aq_model_find(model, "blocks.0.to_q.weight");
    CHECK(tensor && tensor->time_groups && tensor->time_groups->count == 10);
    aq_model_close(model);
    return status;
}

static aq_status call_result_to_json(aq_error *err) {
    aq_config config = config_of();
    aq_result result;
    char *text = NULL;
    size_t size = 0;
    CHECK_STATUS(aq_quantize_model(context, at(now->model), at(now->output), &config, NULL, NULL,
                                   &result, NULL), AQ_OK);
    CHECK_STATUS(aq_remove_tree(NULL, at(now->output), NULL), AQ_OK);
    arm();
    aq_status status = armed(aq_result_to_json(context, &result, true, &text, &size, err));
    if (status == AQ_OK) aq_text_free(context, text, size);
    aq_result_free(&result);
    return status;
}

static aq_status call_open(aq_error *err) {
    aq_model *model = NULL;
    arm();
    aq_status status = armed(aq_model_open(context, at(now->model), &model, err));
    if (status == AQ_OK) CHECK(model->quantized == (strstr(now->model, "q-") != NULL));
    aq_model_close(model);
    return status;
}

static aq_status call_verify(aq_error *err) {
    aq_model *model = NULL;
    size_t checked = 0;
    CHECK_STATUS(aq_model_open(context, at(now->model), &model, NULL), AQ_OK);
    arm();
    aq_status status = armed(aq_model_verify(context, model, NULL, NULL, &checked, err));
    if (status == AQ_OK) CHECK(checked > 0);
    aq_model_close(model);
    return status;
}

static aq_status call_validate(aq_error *err) {
    aq_validation result;
    char name[256];
    aq_format(name, sizeof(name), "q-%s", now->model);
    arm();
    aq_status status = aq_validate_quality(context, at(now->model), at(name), NULL, NULL, NULL,
                                           &result, err);
    armed(status);
    if (status == AQ_OK) CHECK(result.layer_count > 0);
    if (status == AQ_OK) aq_validation_free(&result);
    return status;
}

static aq_status call_compare(aq_error *err) {
    aq_validation result;
    char name[256];
    aq_format(name, sizeof(name), "q-%s", now->model);
    arm();
    aq_status status =
        armed(aq_compare_models(context, at(name), at(now->model), NULL, NULL, &result, err));
    if (status == AQ_OK) CHECK(result.layer_count > 0 && result.only_in_first_count == 0);
    if (status == AQ_OK) aq_validation_free(&result);
    return status;
}

static aq_status call_validation_to_json(aq_error *err) {
    aq_validation result;
    char *text = NULL, name[256];
    size_t size = 0;
    aq_format(name, sizeof(name), "q-%s", now->model);
    CHECK_STATUS(aq_compare_models(context, at(now->model), at(name), NULL, NULL, &result, NULL),
                 AQ_OK);
    arm();
    aq_status status = armed(aq_validation_to_json(context, &result, &text, &size, err));
    if (status == AQ_OK) aq_text_free(context, text, size);
    aq_validation_free(&result);
    return status;
}

static aq_status call_dequantize(aq_error *err) {
    arm();
    return armed(aq_dequantize_model(context, at(now->model), at(now->output), AQ_DTYPE_BF16, false,
                                     NULL, NULL, err));
}

/* ---- tests */

TEST(configurations) {
    static const run runs[] = {
        { "aq_context_create", call_context_create, NULL, NULL, 0 },
        { "aq_config_from_yaml", call_from_yaml, NULL, NULL, 0 },
        { "aq_config_to_yaml", call_to_yaml, NULL, NULL, 0 },
        { "aq_config_load_yaml", call_load_yaml, NULL, NULL, 0 },
        { "aq_config_save_yaml", call_save_yaml, NULL, "saved.yaml", 0 },
        { "aq_config_set", call_config_set, NULL, NULL, 0 },
        { "aq_config_get", call_config_get, NULL, NULL, 0 },
        { "aq_config_clone", call_config_clone, NULL, NULL, 0 },
    };
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) every_fault(&runs[i]);
}

/* The harmless faults of a single file hit the removal of its temporary folder, which is empty by
 * then; the next run removes it. */
TEST(writing) {
    static const run runs[] = {
        { "aq_plan_create, shards", call_plan_create, "sharded", NULL, 0 },
        { "aq_plan_create, numbered shards", call_plan_create, "numbered", NULL, 0 },
        { "aq_plan_create, pipeline", call_plan_create, "pipe", NULL, 0 },
        { "aq_plan_create, file", call_plan_create, "one.safetensors", NULL, 0 },
        { "aq_plan_create, index", call_plan_create, "sharded/model.safetensors.index.json", NULL,
          0 },
        { "aq_plan_to_json", call_plan_to_json, "sharded", NULL, 0 },
        { "aq_plan_execute, shards", call_execute, "sharded", "out", 0 },
        { "aq_plan_execute_output", call_shared, "sharded", "out", JOURNAL_FAULTS },
        { "aq_plan_commit", call_commit, "sharded", "out", 0 },
        { "aq_quantize_model, shards", call_quantize, "sharded", "out", 0 },
        { "aq_quantize_model, numbered shards", call_quantize, "numbered", "out", 0 },
        { "aq_quantize_model, pipeline", call_quantize, "pipe", "out", 0 },
        { "aq_quantize_model, file", call_quantize, "one.safetensors", "out.safetensors", 3 },
        { "aq_quantize_model, gates", call_quantize_gates, "sharded", "out", 0 },
        { "aq_quantize_model, compressed-tensors", call_quantize_compressed, "sharded", "out", 0 },
        { "aq_quantize_model, Arrow", call_quantize_arrow, "sharded", "out", 0 },
        { "aq_quantize_model, budget", call_quantize_budget, "sharded", "out", 0 },
        { "aq_observer_…", call_observe, NULL, "out.safetensors", 0 },
        { "aq_calibration_open", call_calibration, NULL, NULL, 0 },
        { "aq_time_groups_make, aq_equalize", call_time_groups, NULL, NULL, 0 },
        { "aq_quantize_model, calibrated", call_quantize_calibrated, "sharded", "out", 0 },
        { "aq_result_to_json", call_result_to_json, "one.safetensors", "out.safetensors", 0 },
    };
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) every_fault(&runs[i]);
}

/* The first note comes when all shards are finished and the journal is still there: the temporary
 * folder is copied then, as a killed run would leave it. */
static void keep_interrupted(void *user, aq_log_level level, const char *message) {
    aq_arena arena;
    aq_folder_entry *entries = NULL;
    size_t count = 0;
    (void)level;
    (void)message;
    if (*(bool *)user) return;
    *(bool *)user = true;
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_list_folder(&arena, root, &entries, &count, NULL), AQ_OK);
    for (size_t i = 0; i < count; i++)
        if (strstr(entries[i].name, "tmp-") && !aq_ends_with(entries[i].name, ".lock"))
            copy_tree(at(entries[i].name), at("interrupted"));
    aq_arena_free(&arena);
}

/* As if the kill had come one shard earlier: the last line of the journal is not there yet. */
static void cut_journal(void) {
    aq_arena arena;
    char *text = NULL;
    size_t size = 0;
    aq_arena_init(&arena, NULL);
    copy_tree(at("interrupted"), at("interrupted-earlier"));
    CHECK_STATUS(aq_read_text(&arena, at("interrupted/.aq-journal"), 1 << 20, &text, &size, NULL),
                 AQ_OK);
    while (size > 1 && text[size - 2] != '\n') size--;
    CHECK_STATUS(aq_write_text(at("interrupted-earlier/.aq-journal"), text, size - 1, NULL), AQ_OK);
    aq_arena_free(&arena);
}

/* Where memory fails while the journal is read, the shard is made again; after the commit, the replaced
 * output stays for the next run to remove. Both end well, with the right output. */
TEST(writing_again) {
    static const run runs[] = {
        { "aq_quantize_model, overwriting", call_quantize_again, "sharded", "out", 60 },
        { "aq_quantize_model, 2 of 2 shards taken up", call_quantize_again, "sharded", "out", 250 },
        { "aq_quantize_model, 1 of 2 shards taken up", call_quantize_again, "sharded", "out", 250 },
        { "aq_quantize_model, taken up, overwriting", call_quantize_again, "sharded", "out", 250 },
    };
    static const char *const before[] = { "q-earlier", NULL, NULL, "q-earlier" };
    static const char *const left[] = { NULL, "interrupted", "interrupted-earlier", "interrupted" };
    bool kept = false;
    aq_config config = config_of(), again = config_again();
    CHECK_STATUS(aq_quantize_model(NULL, at("sharded"), at("q-earlier"), &config, NULL, NULL, NULL,
                                   NULL), AQ_OK);
    context->log = keep_interrupted;
    context->log_user = &kept;
    CHECK_STATUS(aq_quantize_model(context, at("sharded"), at("q-again"), &again, NULL, NULL, NULL,
                                   NULL), AQ_OK);
    context->log = NULL;
    CHECK(kept);
    cut_journal();
    wanted = "q-again";
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
        earlier = before[i];
        interrupted = left[i];
        every_fault(&runs[i]);
    }
    wanted = earlier = interrupted = NULL;
}

/* The model as an Arrow stream into an IPC file, and that file read again. */
static aq_status call_arrow(aq_error *err) {
    struct ArrowArrayStream stream;
    struct ArrowSchema schema;
    struct ArrowArray array;
    aq_model *model = NULL;
    arm();
    aq_status status = aq_model_open(context, at(now->model), &model, err);
    if (status == AQ_OK) {
        status = aq_arrow_export_model(context, model, &stream, err);
        if (status != AQ_OK) aq_model_close(model);
    }
    if (status == AQ_OK) {
        status = aq_arrow_ipc_write(context, &stream, at(now->output), AQ_ARROW_FILE, err);
        stream.release(&stream);
    }
    if (status != AQ_OK) return armed(status);
    status = aq_arrow_ipc_open(context, at(now->output), &stream, err);
    bool opened = status == AQ_OK;
    if (opened && stream.get_schema(&stream, &schema) == 0) schema.release(&schema);
    else if (opened) status = aq_fail_memory(err, sizeof(schema));
    while (status == AQ_OK && (status = aq_arrow_next(&stream, &array, err)) == AQ_OK &&
           array.release)
        array.release(&array);
    if (opened) stream.release(&stream);
    if (status != AQ_OK) CHECK_STATUS(aq_remove_tree(NULL, at(now->output), NULL), AQ_OK);
    return armed(status);
}

static aq_status call_convert(aq_error *err) {
    arm();
    return armed(aq_convert_model(context, at(now->model), at(now->output), AQ_OUTPUT_NATIVE, false,
                                  NULL, NULL, err));
}

TEST(reading) {
    static const run runs[] = {
        { "aq_model_open, plain", call_open, "sharded", NULL, 0 },
        { "aq_model_open, shards", call_open, "q-sharded", NULL, 0 },
        { "aq_model_open, pipeline", call_open, "q-pipe", NULL, 0 },
        { "aq_model_open, compressed-tensors", call_open, "q-ct", NULL, 0 },
        { "aq_model_open, Arrow", call_open, "q-table.arrow", NULL, 0 },
        { "aq_convert_model, shards", call_convert, "q-ct", "out", 0 },
        { "aq_convert_model, table", call_convert, "q-table.arrow", "out", 0 },
        { "aq_model_verify", call_verify, "q-sharded", NULL, 0 },
        { "Arrow: export, write, read", call_arrow, "q-pipe", "out.arrow", 2 },
        { "aq_validate_quality, shards", call_validate, "sharded", NULL, 0 },
        { "aq_validate_quality, pipeline", call_validate, "pipe", NULL, 0 },
        { "aq_compare_models", call_compare, "sharded", NULL, 0 },
        { "aq_validation_to_json", call_validation_to_json, "sharded", NULL, 0 },
        { "aq_dequantize_model, shards", call_dequantize, "q-sharded", "out", 0 },
        { "aq_dequantize_model, pipeline", call_dequantize, "q-pipe", "out", 0 },
        { "aq_dequantize_model, file", call_dequantize, "q-one.safetensors", "out.safetensors", 3 },
    };
    static const char *const models[] = { "sharded", "pipe", "one.safetensors" };
    aq_config config = config_of();
    for (unsigned i = 0; i < 3; i++) {
        char name[256];
        aq_format(name, sizeof(name), "q-%s", models[i]);
        CHECK_STATUS(aq_quantize_model(NULL, at(models[i]), at(name), &config, NULL, NULL, NULL,
                                       NULL), AQ_OK);
    }
    config.output_format = AQ_OUTPUT_COMPRESSED_TENSORS;
    CHECK_STATUS(aq_quantize_model(NULL, at("sharded"), at("q-ct"), &config, NULL, NULL, NULL, NULL),
                 AQ_OK);
    aq_model *model = NULL;
    struct ArrowArrayStream stream;
    CHECK_STATUS(aq_model_open(NULL, at("q-ct"), &model, NULL), AQ_OK);
    CHECK_STATUS(aq_arrow_export_model(NULL, model, &stream, NULL), AQ_OK);
    CHECK_STATUS(aq_arrow_ipc_write(NULL, &stream, at("q-table.arrow"), AQ_ARROW_FILE, NULL), AQ_OK);
    stream.release(&stream);
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) every_fault(&runs[i]);
}

int main(void) {
    const char *folder = getenv("TMPDIR");
    aq_allocator allocator = { memory_resize, NULL };
    if (aq_path_kind_of("/dev/shm") == AQ_PATH_FOLDER) folder = "/dev/shm"; /* syncs cost nothing */
    aq_format(root, sizeof(root), "%s/aq-faults-%llu", folder && *folder ? folder : "/tmp",
              (unsigned long long)aq_process_id());
    if (aq_make_folder(root, NULL) != AQ_OK) return 1;
    if (aq_context_create(AQ_ISA_AUTO, &allocator, &context, NULL) != AQ_OK) return 1;
    context->num_threads = 1;
    make_models();
    make_statistics();
    RUN(configurations);
    RUN(writing);
    RUN(writing_again);
    RUN(reading);
    aq_context_destroy(context);
    if (m.bytes || m.blocks) {
        printf("leaked: %llu bytes\n", (unsigned long long)m.bytes);
        test_failed++;
    }
    printf("figure: %lu allocation faults, %llu bytes leaked, %lu wrong sizes, largest request %llu bytes\n",
           faults_total, (unsigned long long)m.bytes, m.wrong, (unsigned long long)m.largest);
    aq_remove_tree(NULL, root, NULL);
    return test_end();
}
#endif
