/* A whole diffusion transformer on a Cortex-M: weights packed in flash, one forward pass, no heap.
 * `model.h` is made by aq export-c --prefix digits (see README.md here). The same file compiled on a PC
 * prints the same lines but for the last: compare them.
 *
 * The first line sums up one layer with INT8 activations and is the same to the last bit everywhere;
 * the passes call expf, sinf and cosf, in whose last bit C libraries differ. */
#define ARROWQUANT_NO_STDIO
#define ARROWQUANT_NO_THREADS
#define ARROWQUANT_NO_SIMD
#define ARROWQUANT_STATIC
#define ARROWQUANT_IMPLEMENTATION
#include "../../arrowquant.h"

#include "../dit.h"
#include "model.h" /* by -I, or beside this file */

#include <stdio.h>

#ifdef __arm__
/* SysTick of Cortex-M counts down with the processor's clock, 24 bits. */
#  define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#  define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#  define SYST_CVR (*(volatile uint32_t *)0xE000E018u)
static uint32_t wraps;
void SysTick_Handler(void);
void SysTick_Handler(void) { wraps++; }
static void start_clock(void) {
    wraps = 0;
    SYST_RVR = 0xFFFFFFu;
    SYST_CVR = 0;
    SYST_CSR = 7; /* on, interrupt, processor clock */
}
static uint64_t ticks(void) { return (uint64_t)wraps * 0x1000000u + (0xFFFFFFu - SYST_CVR); }
#else
static void start_clock(void) {}
static uint64_t ticks(void) { return 0; }
#endif

/* ---- the model: layers are found by name, everything else is known */

enum { SIZE = 8, WIDTH = 128, BLOCKS = 4, MEMORY = 131072 };

static dit_block blocks[BLOCKS];
static uint32_t memory[MEMORY / 4];

static int find(const char *prefix, const char *name, aq_linear *out) {
    char full[128];
    size_t i;
    snprintf(full, sizeof full, "%s%s%s.weight", prefix, *prefix ? "." : "", name);
    for (i = 0; i < digits_layer_count; i++) {
        if (strcmp(digits_layers[i].name, full) == 0) {
            *out = digits_layers[i];
            return 1;
        }
    }
    printf("no layer %s\n", full);
    return 0;
}

static int load(dit *model) {
    char prefix[32];
    size_t b, i;
    memset(model, 0, sizeof *model);
    model->channels = model->out_channels = 1;
    model->size = SIZE;
    model->patch = 2;
    model->width = WIDTH;
    model->heads = 4;
    model->classes = 10;
    model->norm_eps = 1e-5f;
    model->block_count = BLOCKS;
    model->blocks = blocks;
    model->activation = AQ_ACTIVATION_DYNAMIC;
    model->patches.kernel_height = model->patches.kernel_width = 2;
    model->patches.stride_y = model->patches.stride_x = 2;
    model->patches.dilation_y = model->patches.dilation_x = 1;
    for (b = 0; b < BLOCKS; b++) {
        snprintf(prefix, sizeof prefix, "transformer_blocks.%u", (unsigned)b);
        for (i = 0; i < DIT_BLOCK_LAYERS; i++) {
            if (!find(prefix, DIT_BLOCK_NAMES[i], dit_block_layer(&blocks[b], i))) return 0;
        }
    }
    return find("", "pos_embed.proj", &model->patches.linear) &&
           find("", "proj_out_1", &model->final_modulation) &&
           find("", "proj_out_2", &model->final);
}

/* Something like an image, the same everywhere. */
static void make_image(float *x, size_t count) {
    uint32_t state = 1;
    size_t i;
    for (i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)((int32_t)(state >> 16) - 32768) * (1.0f / 32768.0f);
    }
}

/* FNV-1a of the bits of one layer's results. */
static int check_layer(const dit *model, dit_memory *m) {
    float x[WIDTH * 2], y[4 * WIDTH * 2];
    const aq_linear *layer = &model->blocks[0].up;
    aq_activation activation = {AQ_ACTIVATION_DYNAMIC, 0.0f, 0};
    uint32_t hash = 2166136261u, bits;
    uint64_t begin;
    size_t i;
    make_image(x, WIDTH * 2);
    begin = ticks();
    if (aq_linear_forward(NULL, layer, x, AQ_DTYPE_F32, 2, &activation, y, m->scratch,
                          m->scratch_bytes, &m->err)) {
        return 0;
    }
    begin = ticks() - begin;
    for (i = 0; i < 2 * (size_t)layer->rows; i++) {
        memcpy(&bits, &y[i], 4);
        hash = (hash ^ bits) * 16777619u;
    }
    printf("layer [%u, %u] x 2 tokens: %08lx\n", (unsigned)layer->rows, (unsigned)layer->cols,
           (unsigned long)hash);
    if (begin) printf("ticks of the layer: %lu\n", (unsigned long)begin);
    return 1;
}

static int run(void) {
    static float x[SIZE * SIZE], eps[SIZE * SIZE];
    dit_memory m;
    dit model;
    uint64_t begin;
    int label = 3, i;
    if (!load(&model)) return 0;
    if (dit_lay_out(&model, 1, NULL, NULL) > sizeof memory) {
        printf("%u bytes of memory are needed\n", (unsigned)dit_lay_out(&model, 1, NULL, NULL));
        return 0;
    }
    (void)dit_lay_out(&model, 1, memory, &m);
    if (!check_layer(&model, &m)) return printf("%s\n", m.err.message), 0;
    make_image(x, SIZE * SIZE);
    begin = ticks();
    if (!dit_forward(&model, x, 500.0f, &label, 1, eps, &m)) {
        return printf("%s\n", m.err.message), 0;
    }
    begin = ticks() - begin;
    for (i = 0; i < SIZE * SIZE; i++) {
        printf("%ld%c", (long)(eps[i] * 1e5f), i % SIZE == SIZE - 1 ? '\n' : ' ');
    }
    if (begin) printf("ticks of the pass: %lu\n", (unsigned long)begin);
    printf("working memory: %u bytes\n", (unsigned)dit_lay_out(&model, 1, NULL, NULL));
    return 1;
}

#ifdef __arm__
extern void initialise_monitor_handles(void);
#endif

int main(void) {
    int good;
#ifdef __arm__
    initialise_monitor_handles(); /* printf goes to the debugger, here to qemu */
#endif
    start_clock();
    good = run();
    return good ? 0 : 1;
}
