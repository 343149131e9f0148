/* ggml's CPU library as a peer in benchmarks, opened at run time from where the user has it: nothing
 * of it is here but the names and argument lists of its public C functions. */
#ifndef GGML_PEER_H
#define GGML_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { PEER_Q4_0 = 2, PEER_Q8_0 = 8, PEER_Q2_K = 10, PEER_IQ2_XXS = 16, PEER_F32 = 0 };

static const char *peer_type_name(int type) {
    return type == PEER_Q4_0 ? "Q4_0" : type == PEER_Q8_0 ? "Q8_0" : type == PEER_Q2_K ? "Q2_K" : "IQ2_XXS";
}

/* Bytes of a matrix. */
static size_t peer_matrix_bytes(int type, size_t rows, size_t cols) {
    return type == PEER_Q4_0   ? rows * cols / 32 * 18
           : type == PEER_Q8_0 ? rows * cols / 32 * 34
           : type == PEER_Q2_K ? rows * cols / 256 * 84 : rows * cols / 256 * 66;
}

#ifdef _WIN32

static bool peer_is_repacked(int type) { return (void)type, false; }
static bool peer_open(const char *paths) { return (void)paths, false; }
static const char *peer_note(void) { return ""; }
static size_t peer_bytes(int type, size_t rows, size_t cols) {
    return (void)peer_matrix_bytes(type, rows, cols), (size_t)0;
}
static void peer_vec_dot(int type, size_t rows, size_t cols, const void *w, const float *x,
                         float *y, void *scratch) {
    (void)type, (void)rows, (void)cols, (void)w, (void)x, (void)y, (void)scratch;
}
static bool peer_prepare_product(int type, size_t rows, size_t cols, const void *w) {
    return (void)type, (void)rows, (void)cols, (void)w, false;
}
static void peer_product(int type, size_t rows, size_t cols, size_t tokens, const float *x,
                         float *y) {
    (void)type, (void)rows, (void)cols, (void)tokens, (void)x, (void)y;
}

#else
#include <dlfcn.h>

typedef struct peer_traits { /* of a type, as its CPU library returns them */
    void (*from_float)(const float *x, void *y, int64_t count);
    void (*vec_dot)(int count, float *sum, size_t, const void *x, size_t, const void *y, size_t,
                    int rows);
    int vec_dot_type;
    int64_t rows;
} peer_traits;

typedef struct peer_parameters {
    size_t bytes;
    void *memory;
    bool no_alloc;
} peer_parameters;

static struct {
    void *libraries[8];
    size_t count;
    char note[256];
    const peer_traits *(*traits)(int type);
    void *(*init)(peer_parameters parameters);
    void *(*tensor)(void *context, int type, int64_t cols, int64_t rows);
    void *(*product)(void *context, void *a, void *b);
    void *(*graph)(void *context);
    void (*expand)(void *graph, void *tensor);
    void *(*place)(void *context, void *buffer_type);
    void (*set)(void *tensor, const void *data, size_t offset, size_t size);
    void (*get)(const void *tensor, void *data, size_t offset, size_t size);
    int (*compute)(void *backend, void *graph);
    void *backend;
    void *context, *weights;
    void *run[32], *ins[32], *outs[32];   /* of the matrix products, by type */
    bool repacked[32];
} peer;

static bool peer_find(const char *name, void *function, size_t size) {
    size_t i;
    for (i = 0; i < peer.count; i++) {
        void *found = dlsym(peer.libraries[i], name);
        if (found) {
            memcpy(function, &found, size);
            return true;
        }
    }
    return false;
}
#define PEER_FIND(name, function) peer_find(name, &(function), sizeof(function))

/* What the library was built for: its authors' functions tell. */
static void peer_describe(void) {
    static const char *const names[] = {"avx2", "avx512", "avx512_vnni", "neon", "dotprod"};
    size_t i, used;
    used = (size_t)snprintf(peer.note, sizeof peer.note, "ggml's library is built with:");
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        char name[64];
        int (*has)(void) = NULL;
        snprintf(name, sizeof name, "ggml_cpu_has_%s", names[i]);
        if (PEER_FIND(name, has) && has() && used < sizeof peer.note) {
            used += (size_t)snprintf(peer.note + used, sizeof peer.note - used, " %s", names[i]);
        }
    }
}

/* `paths`: libraries, separated by colons, each after those it needs; NULL: none. */
static bool peer_open(const char *paths) {
    void (*start)(void) = NULL;
    while (paths && *paths && peer.count < 8) {
        const char *end = strchr(paths, ':');
        size_t size = end ? (size_t)(end - paths) : strlen(paths);
        char path[1024];
        snprintf(path, sizeof path, "%.*s", (int)size, paths);
        peer.libraries[peer.count] = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
        if (!peer.libraries[peer.count]) {
            fprintf(stderr, "%s\n", dlerror());
            return false;
        }
        peer.count++;
        paths += size + (end ? 1 : 0);
    }
    if (!peer.count || !PEER_FIND("ggml_cpu_init", start) ||
        !PEER_FIND("ggml_get_type_traits_cpu", peer.traits)) {
        peer.traits = NULL;
        return false;
    }
    start();
    peer_describe();
    return true;
}

static const char *peer_note(void) {
    return peer.note;
}

static bool peer_is_repacked(int type) {
    return peer.repacked[type];
}

static size_t peer_bytes(int type, size_t rows, size_t cols) {
    return peer.traits ? peer_matrix_bytes(type, rows, cols) : 0;
}

/* y = W·x, row by row, x quantized as the type wants it. */
static void peer_vec_dot(int type, size_t rows, size_t cols, const void *w, const float *x,
                         float *y, void *scratch) {
    const peer_traits *traits = peer.traits(type);
    const size_t bytes = peer_matrix_bytes(type, 1, cols);
    size_t row;
    peer.traits(traits->vec_dot_type)->from_float(x, scratch, (int64_t)cols);
    for (row = 0; row < rows; row++) {
        traits->vec_dot((int)cols, y + row, 0, (const uint8_t *)w + row * bytes, 0, scratch, 0, 1);
    }
}

/* The CPU as a device, and its buffer type that repacks weights for this machine, or NULL. */
static void *peer_repacking(void **device) {
    void *(*cpu)(void) = NULL, *(*find)(void *, const char *) = NULL, *registry;
    void *(*device_of)(void *, size_t) = NULL;
    const char *(*name_of)(void *) = NULL;
    void **(*extra)(void *) = NULL;
    void **types, *found;
    if (!PEER_FIND("ggml_backend_cpu_reg", cpu) ||
        !PEER_FIND("ggml_backend_reg_dev_get", device_of) ||
        !PEER_FIND("ggml_backend_reg_get_proc_address", find) ||
        !PEER_FIND("ggml_backend_buft_name", name_of)) {
        return NULL;
    }
    registry = cpu();
    *device = device_of(registry, 0);
    found = find(registry, "ggml_backend_dev_get_extra_bufts");
    memcpy(&extra, &found, sizeof extra);
    for (types = extra ? extra(*device) : NULL; types && *types; types++) {
        if (strstr(name_of(*types), "REPACK")) {
            return *types;
        }
    }
    return NULL;
}

static bool peer_functions(void) {
    void *(*backend)(void) = NULL;
    void (*threads)(void *, int) = NULL;
    if (!PEER_FIND("ggml_init", peer.init) || !PEER_FIND("ggml_new_tensor_2d", peer.tensor) ||
        !PEER_FIND("ggml_mul_mat", peer.product) || !PEER_FIND("ggml_new_graph", peer.graph) ||
        !PEER_FIND("ggml_build_forward_expand", peer.expand) ||
        !PEER_FIND("ggml_backend_alloc_ctx_tensors_from_buft", peer.place) ||
        !PEER_FIND("ggml_backend_tensor_set", peer.set) ||
        !PEER_FIND("ggml_backend_tensor_get", peer.get) ||
        !PEER_FIND("ggml_backend_graph_compute", peer.compute) ||
        !PEER_FIND("ggml_backend_cpu_init", backend) ||
        !PEER_FIND("ggml_backend_cpu_set_n_threads", threads)) {
        return false;
    }
    if (!peer.backend) {
        peer.backend = backend();
        threads(peer.backend, 1);
    }
    return peer.backend != NULL;
}

/* Weights in a kind of memory, and their product with 32 vectors. */
static bool peer_place_weights(int type, size_t rows, size_t cols, void *where) {
    peer_parameters parameters = {(size_t)1 << 20, NULL, true};
    void *context = peer.init(parameters);
    peer.weights = peer.tensor(context, type, (int64_t)cols, (int64_t)rows);
    if (!peer.place(context, where)) {
        return false;
    }
    peer.context = peer.init(parameters);
    peer.ins[type] = peer.tensor(peer.context, PEER_F32, (int64_t)cols, 32);
    peer.outs[type] = peer.product(peer.context, peer.weights, peer.ins[type]);
    return true;
}

/* A graph with one product, the matrix repacked where the library does that for its type. */
static bool peer_prepare_product(int type, size_t rows, size_t cols, const void *w) {
    void *(*plain)(void) = NULL, *where, *device = NULL;
    bool (*supports)(void *, const void *) = NULL;
    if (!peer.traits || !peer_functions() || !PEER_FIND("ggml_backend_cpu_buffer_type", plain) ||
        !PEER_FIND("ggml_backend_dev_supports_op", supports)) {
        return false;
    }
    where = peer_repacking(&device);
    peer.repacked[type] = where && peer_place_weights(type, rows, cols, where) &&
                          supports(device, peer.outs[type]);
    if (!peer.repacked[type] && !peer_place_weights(type, rows, cols, plain())) {
        return false;
    }
    peer.set(peer.weights, w, 0, peer_matrix_bytes(type, rows, cols));
    peer.run[type] = peer.graph(peer.context);
    peer.expand(peer.run[type], peer.outs[type]);
    return peer.place(peer.context, plain()) != NULL;
}

static void peer_product(int type, size_t rows, size_t cols, size_t tokens, const float *x,
                         float *y) {
    peer.set(peer.ins[type], x, 0, cols * tokens * sizeof *x);
    peer.compute(peer.backend, peer.run[type]);
    peer.get(peer.outs[type], y, 0, rows * tokens * sizeof *y);
}

#undef PEER_FIND
#endif
#endif
