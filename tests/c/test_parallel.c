/* One context in many threads: several models quantized at once, one model read by all, cancelling
 * from another thread. Made to be run under a race detector too. */
#include "test.h"

#if defined(ARROWQUANT_NO_STDIO) || defined(ARROWQUANT_NO_THREADS) || defined(_WIN32)
int main(void) { return test_end(); }
#else
#include <pthread.h>

#define THREADS 4u
#define COLS 256u
#define ROWS 64u
#define LAYERS 6u

static char root[512];

static void path_of(char *path, const char *name, unsigned number) {
    aq_format(path, 600, "%s/%s%u%s", root, name, number, ".safetensors");
}

static void make_model(void) {
    static float weights[ROWS * COLS];
    static const uint64_t shape[2] = { ROWS, COLS };
    static char names[LAYERS][32];
    aq_st_output outputs[LAYERS];
    uint64_t capacity = 0, state = 7;
    aq_file file = AQ_FILE_CLOSED;
    char path[600];
    for (unsigned i = 0; i < LAYERS; i++) {
        aq_format(names[i], sizeof(names[i]), "blocks.%u.weight", i);
        outputs[i].name = names[i];
        outputs[i].dtype = AQ_DTYPE_F32;
        outputs[i].rank = 2;
        outputs[i].shape = shape;
        outputs[i].begin = i * sizeof(weights);
        outputs[i].end = (i + 1) * sizeof(weights);
    }
    path_of(path, "in", 0);
    CHECK_STATUS(aq_st_header_size(NULL, outputs, LAYERS, NULL, &capacity, NULL), AQ_OK);
    CHECK_STATUS(aq_file_create(&file, path, NULL), AQ_OK);
    CHECK_STATUS(aq_st_write_header(NULL, &file, capacity, outputs, LAYERS, NULL, NULL), AQ_OK);
    for (unsigned i = 0; i < LAYERS; i++) {
        for (unsigned k = 0; k < ROWS * COLS; k++) weights[k] = (float)test_normal(&state);
        aq_little_endian(weights, ROWS * COLS, sizeof(float));
        CHECK_STATUS(aq_file_write(&file, 8 + capacity + outputs[i].begin, weights, sizeof(weights),
                                   NULL), AQ_OK);
    }
    CHECK_STATUS(aq_file_close(&file, NULL), AQ_OK);
}

typedef struct worker {
    pthread_t thread;
    unsigned number;
    aq_context *context;
    const aq_model *model;
    aq_status status;
    unsigned long calls;
    aq_error err;
} worker;

static void run_all(worker *workers, unsigned count, void *(*body)(void *), aq_context *context,
                    const aq_model *model) {
    for (unsigned i = 0; i < count; i++) {
        memset(&workers[i], 0, sizeof(workers[i]));
        workers[i].number = i;
        workers[i].context = context;
        workers[i].model = model;
        CHECK(pthread_create(&workers[i].thread, NULL, body, &workers[i]) == 0);
    }
    for (unsigned i = 0; i < count; i++) CHECK(pthread_join(workers[i].thread, NULL) == 0);
}

#ifdef __cplusplus
extern "C" {
#endif

static int count_calls(void *user, const aq_progress *progress) {
    worker *self = (worker *)user;
    (void)progress;
    self->calls++;
    return 0;
}

static void *quantize_one(void *argument) {
    worker *self = (worker *)argument;
    aq_config config = aq_config_from_profile(AQ_PROFILE_EDGE);
    char in[600], out[600];
    config.min_accuracy = 0;
    config.num_threads = 2;
    path_of(in, "in", 0);
    path_of(out, "out", self->number);
    self->status = aq_quantize_model(self->context, in, out, &config, count_calls, self, NULL,
                                     &self->err);
    return NULL;
}

static void *quantize_for_ever(void *argument) { /* until it is cancelled */
    worker *self = (worker *)argument;
    char out[600];
    path_of(out, "out", self->number);
    do {
        (void)aq_remove_tree(NULL, out, NULL);
        (void)quantize_one(self);
    } while (self->status == AQ_OK);
    return NULL;
}

static void *cancel_soon(void *argument) {
    double begin = aq_clock_seconds();
    while (aq_clock_seconds() - begin < 0.05) {}
    aq_context_cancel((aq_context *)argument);
    return NULL;
}

static void *read_all(void *argument) {
    worker *self = (worker *)argument;
    static const aq_dtype dtypes[] = { AQ_DTYPE_F32, AQ_DTYPE_F16, AQ_DTYPE_BF16 };
    float *values = (float *)malloc(ROWS * COLS * sizeof(float));
    const aq_tensor *tensor = NULL;
    while (values && (tensor = aq_model_next(self->model, tensor)) != NULL) {
        if (aq_tensor_dequantize(self->context, tensor, 0, tensor->rows,
                                 dtypes[self->number % 3], values, &self->err) != AQ_OK)
            self->status = AQ_ERR_CORRUPT;
        self->calls++;
    }
    if (aq_model_verify(self->context, self->model, NULL, NULL, NULL, &self->err) != AQ_OK)
        self->status = AQ_ERR_CORRUPT;
    free(values);
    return NULL;
}

#ifdef __cplusplus
}
#endif

static bool same_files(unsigned a, unsigned b) {
    char path[600], *text[2] = { NULL, NULL };
    size_t size[2] = { 0, 0 };
    aq_arena arena;
    aq_arena_init(&arena, NULL);
    path_of(path, "out", a);
    CHECK_STATUS(aq_read_text(&arena, path, 1 << 30, &text[0], &size[0], NULL), AQ_OK);
    path_of(path, "out", b);
    CHECK_STATUS(aq_read_text(&arena, path, 1 << 30, &text[1], &size[1], NULL), AQ_OK);
    bool same = text[0] && text[1] && size[0] == size[1] && memcmp(text[0], text[1], size[0]) == 0;
    aq_arena_free(&arena);
    return same;
}

TEST(several_models_at_once) {
    worker workers[THREADS];
    aq_context *context = NULL;
    CHECK_STATUS(aq_context_create(AQ_ISA_AUTO, NULL, &context, NULL), AQ_OK);
    run_all(workers, THREADS, quantize_one, context, NULL);
    for (unsigned i = 0; i < THREADS; i++) {
        CHECK_STATUS(workers[i].status, AQ_OK);
        if (workers[i].status != AQ_OK) printf("%s\n", workers[i].err.message);
        CHECK(workers[i].calls > 0 && same_files(0, i));
    }
    aq_context_destroy(context);
}

TEST(one_model_read_by_all) {
    worker workers[THREADS];
    aq_context *context = NULL;
    aq_model *model = NULL;
    char path[600];
    path_of(path, "out", 0);
    CHECK_STATUS(aq_context_create(AQ_ISA_AUTO, NULL, &context, NULL), AQ_OK);
    CHECK_STATUS(aq_model_open(context, path, &model, NULL), AQ_OK);
    run_all(workers, THREADS, read_all, context, model);
    for (unsigned i = 0; i < THREADS; i++) {
        CHECK_STATUS(workers[i].status, AQ_OK);
        CHECK(workers[i].calls == LAYERS);
    }
    aq_model_close(model);
    aq_context_destroy(context);
}

TEST(cancelled_from_another_thread) {
    worker workers[THREADS];
    pthread_t canceller;
    aq_context *context = NULL;
    aq_arena arena;
    aq_folder_entry *entries = NULL;
    size_t count = 0;
    CHECK_STATUS(aq_context_create(AQ_ISA_AUTO, NULL, &context, NULL), AQ_OK);
    for (unsigned round = 0; round < 3; round++) {
        CHECK(pthread_create(&canceller, NULL, cancel_soon, context) == 0);
        run_all(workers, THREADS, quantize_for_ever, context, NULL);
        CHECK(pthread_join(canceller, NULL) == 0);
        for (unsigned i = 0; i < THREADS; i++) CHECK_STATUS(workers[i].status, AQ_ERR_CANCELLED);
        aq_context_reset_cancel(context);
    }
    aq_context_destroy(context);
    aq_arena_init(&arena, NULL); /* input and finished outputs, no temporaries */
    CHECK_STATUS(aq_list_folder(&arena, root, &entries, &count, NULL), AQ_OK);
    for (size_t i = 0; i < count; i++) CHECK(entries[i].name[0] != '.');
    aq_arena_free(&arena);
}

int main(void) {
    const char *folder = getenv("TMPDIR");
    if (aq_path_kind_of("/dev/shm") == AQ_PATH_FOLDER) folder = "/dev/shm"; /* syncs cost nothing */
    aq_format(root, sizeof(root), "%s/aq-parallel-%llu", folder && *folder ? folder : "/tmp",
              (unsigned long long)aq_process_id());
    if (aq_make_folder(root, NULL) != AQ_OK) return 1;
    make_model();
    RUN(several_models_at_once);
    RUN(one_model_read_by_all);
    RUN(cancelled_from_another_thread);
    aq_remove_tree(NULL, root, NULL);
    if (!test_failed)
        printf("figure: one context in %u threads: %u models quantized alike, %u layers read, %u runs "
               "cancelled\n", THREADS, THREADS, THREADS * LAYERS, 3 * THREADS);
    return test_end();
}
#endif
