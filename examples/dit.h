/* The forward pass of a class-conditional DiT (diffusers' DiTTransformer2DModel) over aq_linear, and
 * the small pieces around it: layer norm, softmax attention, GELU, SiLU, embeddings of timestep,
 * class and position. Plain C, nothing allocated: copy what you need. Include arrowquant.h first. */
#ifndef DIT_H
#define DIT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* ---- pieces of any transformer */

/* (x − mean) / √(variance + eps), then ·(1 + scale) + shift: adaptive layer norm without weights. */
static void dit_layer_norm(const float *x, size_t n, float eps, const float *shift,
                           const float *scale, float *out) {
    double sum = 0.0, squares = 0.0;
    float mean, inverse;
    size_t i;
    for (i = 0; i < n; i++) sum += (double)x[i];
    mean = (float)(sum / (double)n);
    for (i = 0; i < n; i++) squares += (double)(x[i] - mean) * (double)(x[i] - mean);
    inverse = (float)(1.0 / sqrt(squares / (double)n + (double)eps));
    for (i = 0; i < n; i++) out[i] = (x[i] - mean) * inverse * (1.0f + scale[i]) + shift[i];
}

static void dit_silu(float *x, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) x[i] = x[i] / (1.0f + expf(-x[i]));
}

/* The tanh form ("gelu-approximate"); x/2·(1 + tanh(u)) is x·sigmoid(2u). */
static void dit_gelu(float *x, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) {
        float u = 1.5957691216f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
        x[i] = x[i] / (1.0f + expf(-u));
    }
}

/* Cosines, then sines, of t·10000^(−i / (half − 1)). */
static void dit_timestep_embedding(float t, size_t n, float *out) {
    size_t half = n / 2, i;
    for (i = 0; i < half; i++) {
        float angle = t * expf(-9.210340372f * (float)i / (float)(half - 1));
        out[i] = cosf(angle);
        out[half + i] = sinf(angle);
    }
}

/* Of one position of the image: a half for the column, a half for the row; each sines, then
 * cosines, of place·10000^(−i / quarter). */
static void dit_position_embedding(size_t row, size_t column, size_t n, float *out) {
    size_t quarter = n / 4, i;
    for (i = 0; i < quarter; i++) {
        double rate = pow(10000.0, -(double)i / (double)quarter);
        out[i] = (float)sin((double)column * rate);
        out[quarter + i] = (float)cos((double)column * rate);
        out[2 * quarter + i] = (float)sin((double)row * rate);
        out[3 * quarter + i] = (float)cos((double)row * rate);
    }
}

/* softmax(q·kᵀ/√size)·v of one head for `tokens` tokens that lie `stride` apart; `weights` holds
 * `tokens` numbers. `out` has the same stride. */
static void dit_attention(const float *q, const float *k, const float *v, size_t tokens,
                          size_t size, size_t stride, float *weights, float *out) {
    float factor = 1.0f / sqrtf((float)size);
    size_t i, j, c;
    for (i = 0; i < tokens; i++, q += stride, out += stride) {
        float most = -INFINITY, sum = 0.0f;
        for (j = 0; j < tokens; j++) {
            float dot = 0.0f;
            for (c = 0; c < size; c++) dot += q[c] * k[j * stride + c];
            weights[j] = dot * factor;
            if (weights[j] > most) most = weights[j];
        }
        for (j = 0; j < tokens; j++) sum += weights[j] = expf(weights[j] - most);
        for (c = 0; c < size; c++) out[c] = 0.0f;
        for (j = 0; j < tokens; j++) {
            float share = weights[j] / sum;
            for (c = 0; c < size; c++) out[c] += share * v[j * stride + c];
        }
    }
}

/* ---- the model */

#define DIT_FREQUENCIES 256 /* of the timestep embedding */

typedef struct dit_block {
    aq_linear time_1, time_2, classes; /* the embedding: MLP of the timestep, table of the classes */
    aq_linear modulation;
    aq_linear q, k, v, out;
    aq_linear up, down;
} dit_block;

/* Layers in the order in which they are listed, and their names in a diffusers folder. The names of
 * a block's begin with transformer_blocks.N. */
#define DIT_BLOCK_LAYERS 10
static const char *const DIT_BLOCK_NAMES[DIT_BLOCK_LAYERS] = {
    "norm1.emb.timestep_embedder.linear_1", "norm1.emb.timestep_embedder.linear_2",
    "norm1.emb.class_embedder.embedding_table", "norm1.linear",
    "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2",
};
static aq_linear *dit_block_layer(dit_block *block, size_t i) {
    aq_linear *layers[DIT_BLOCK_LAYERS];
    layers[0] = &block->time_1;
    layers[1] = &block->time_2;
    layers[2] = &block->classes;
    layers[3] = &block->modulation;
    layers[4] = &block->q;
    layers[5] = &block->k;
    layers[6] = &block->v;
    layers[7] = &block->out;
    layers[8] = &block->up;
    layers[9] = &block->down;
    return layers[i];
}

/* Integers for the input of a layer at a timestep: AQ_ACTIVATION_STATIC. 0 when it fails. */
typedef int (*dit_activation_fn)(const void *user, const aq_linear *layer, float timestep,
                                 aq_activation *out, aq_error *err);

typedef struct dit {
    size_t channels, out_channels, size, patch, width, heads, classes; /* classes without "none" */
    float norm_eps;
    size_t block_count;
    dit_block *blocks;
    aq_conv2d patches;             /* pos_embed.proj */
    aq_linear final_modulation, final; /* proj_out_1, proj_out_2 */
    aq_context *context;
    aq_activation_type activation;
    dit_activation_fn find_activation; /* or NULL */
    const void *user;
} dit;

static size_t dit_tokens(const dit *model) {
    return model->size / model->patch * (model->size / model->patch);
}

/* Buffers of one forward pass, cut from one piece of memory. */
typedef struct dit_memory {
    float *hidden, *normed, *q, *k, *v, *wide; /* [images · tokens, …] */
    float *condition, *silenced, *shifts;      /* [images, …] */
    float *small;                              /* embedding of the timestep, rows of attention */
    void *scratch;
    size_t scratch_bytes;
    aq_error err;
} dit_memory;

static size_t dit_most(size_t a, size_t b) {
    return a > b ? a : b;
}

static size_t dit_scratch_bytes(const dit *model, size_t images) {
    size_t tokens = images * dit_tokens(model), most, i, b;
    most = dit_most(aq_conv2d_scratch_size(model->context, &model->patches, model->size,
                                           model->size),
                    aq_linear_scratch_size(model->context, &model->final, tokens));
    most = dit_most(most, aq_linear_scratch_size(model->context, &model->final_modulation, images));
    for (b = 0; b < model->block_count; b++) {
        for (i = 0; i < DIT_BLOCK_LAYERS; i++) {
            most = dit_most(most, aq_linear_scratch_size(
                                      model->context, dit_block_layer(&model->blocks[b], i),
                                      i < 4 ? images : tokens));
        }
    }
    return most;
}

/* Bytes for so many images at once; with `memory` not NULL, `block` of that many bytes is cut. */
static size_t dit_lay_out(const dit *model, size_t images, void *block, dit_memory *memory) {
    const size_t width = model->width, tokens = images * dit_tokens(model);
    const size_t sizes[10] = {
        tokens * width, tokens * width, tokens * width, tokens * width, tokens * width,
        dit_most(tokens * (size_t)model->blocks[0].up.rows, tokens * (size_t)model->final.rows),
        images * width, images * width, images * 6 * width,
        DIT_FREQUENCIES + 2 * width + dit_tokens(model)};
    float **places[10];
    float *at = (float *)block;
    size_t i, total = 0;
    if (memory) {
        places[0] = &memory->hidden;
        places[1] = &memory->normed;
        places[2] = &memory->q;
        places[3] = &memory->k;
        places[4] = &memory->v;
        places[5] = &memory->wide;
        places[6] = &memory->condition;
        places[7] = &memory->silenced;
        places[8] = &memory->shifts;
        places[9] = &memory->small;
    }
    for (i = 0; i < 10; i++) {
        if (memory) *places[i] = at + total;
        total += sizes[i];
    }
    if (memory) {
        memory->scratch = at + total;
        memory->scratch_bytes = dit_scratch_bytes(model, images);
        memset(&memory->err, 0, sizeof memory->err);
    }
    return total * sizeof(float) + dit_scratch_bytes(model, images);
}

static int dit_linear(const dit *model, const aq_linear *layer, const float *x, size_t tokens,
                      float timestep, float *y, dit_memory *m) {
    aq_activation activation;
    memset(&activation, 0, sizeof activation);
    activation.type = model->activation;
    if (model->find_activation &&
        !model->find_activation(model->user, layer, timestep, &activation, &m->err)) {
        return 0;
    }
    return aq_linear_forward(model->context, layer, x, AQ_DTYPE_F32, tokens, &activation, y,
                             m->scratch, m->scratch_bytes, &m->err) == AQ_OK;
}

/* m->silenced = SiLU(embedding of the timestep + embedding of the class) of each image. */
static int dit_condition(const dit *model, const dit_block *block, float timestep,
                         const int *classes, size_t images, dit_memory *m) {
    const size_t width = model->width;
    float *time = m->small + DIT_FREQUENCIES, *middle = time + width;
    size_t image, i;
    dit_timestep_embedding(timestep, DIT_FREQUENCIES, m->small);
    if (!dit_linear(model, &block->time_1, m->small, 1, timestep, middle, m)) return 0;
    dit_silu(middle, width);
    if (!dit_linear(model, &block->time_2, middle, 1, timestep, time, m)) return 0;
    for (image = 0; image < images; image++) {
        float *row = m->silenced + image * width;
        if (aq_linear_row(model->context, &block->classes, (uint64_t)classes[image], row,
                          &m->err)) {
            return 0;
        }
        for (i = 0; i < width; i++) row[i] += time[i];
    }
    dit_silu(m->silenced, images * width);
    return 1;
}

/* m->normed from m->hidden, by the shift and scale of each image. */
static void dit_modulate(const dit *model, float eps, size_t images, size_t shift, size_t scale,
                         size_t parts, dit_memory *m) {
    const size_t width = model->width, tokens = dit_tokens(model);
    size_t i;
    for (i = 0; i < images * tokens; i++) {
        const float *shifts = m->shifts + i / tokens * parts * width;
        dit_layer_norm(m->hidden + i * width, width, eps, shifts + shift * width,
                       shifts + scale * width, m->normed + i * width);
    }
}

/* m->hidden += gate of each image · values */
static void dit_add_gated(const dit *model, size_t images, size_t gate, const float *values,
                          dit_memory *m) {
    const size_t width = model->width, tokens = dit_tokens(model);
    size_t i, c;
    for (i = 0; i < images * tokens; i++) {
        const float *gates = m->shifts + i / tokens * 6 * width + gate * width;
        for (c = 0; c < width; c++) m->hidden[i * width + c] += gates[c] * values[i * width + c];
    }
}

static int dit_block_forward(const dit *model, const dit_block *block, float timestep,
                             const int *classes, size_t images, dit_memory *m) {
    const size_t width = model->width, tokens = dit_tokens(model), all = images * tokens;
    const size_t head = width / model->heads;
    size_t image, h;
    if (!dit_condition(model, block, timestep, classes, images, m) ||
        !dit_linear(model, &block->modulation, m->silenced, images, timestep, m->shifts, m)) {
        return 0;
    }
    dit_modulate(model, 1e-6f, images, 0, 1, 6, m);
    if (!dit_linear(model, &block->q, m->normed, all, timestep, m->q, m) ||
        !dit_linear(model, &block->k, m->normed, all, timestep, m->k, m) ||
        !dit_linear(model, &block->v, m->normed, all, timestep, m->v, m)) {
        return 0;
    }
    for (image = 0; image < images; image++) {
        for (h = 0; h < model->heads; h++) {
            size_t at = image * tokens * width + h * head;
            dit_attention(m->q + at, m->k + at, m->v + at, tokens, head, width, m->small,
                          m->normed + at);
        }
    }
    if (!dit_linear(model, &block->out, m->normed, all, timestep, m->q, m)) return 0;
    dit_add_gated(model, images, 2, m->q, m);
    dit_modulate(model, model->norm_eps, images, 3, 4, 6, m);
    if (!dit_linear(model, &block->up, m->normed, all, timestep, m->wide, m)) return 0;
    dit_gelu(m->wide, all * (size_t)block->up.rows);
    if (!dit_linear(model, &block->down, m->wide, all, timestep, m->q, m)) return 0;
    dit_add_gated(model, images, 5, m->q, m);
    return 1;
}

/* Patches of the images as tokens, with their places added. */
static int dit_embed(const dit *model, const float *x, size_t images, dit_memory *m) {
    const size_t width = model->width, tokens = dit_tokens(model);
    const size_t side = model->size / model->patch;
    size_t image, t, c;
    if (aq_conv2d_forward(model->context, &model->patches, x, AQ_DTYPE_F32, images, model->size,
                          model->size, NULL, m->normed, m->scratch, m->scratch_bytes, &m->err)) {
        return 0;
    }
    for (t = 0; t < tokens; t++) {
        dit_position_embedding(t / side, t % side, width, m->small);
        for (image = 0; image < images; image++) {
            const float *from = m->normed + image * width * tokens + t;
            float *to = m->hidden + (image * tokens + t) * width;
            for (c = 0; c < width; c++) to[c] = from[c * tokens] + m->small[c];
        }
    }
    return 1;
}

/* out [images, out_channels, size, size] from m->wide [images · tokens, patch · patch · out]. */
static void dit_unpatch(const dit *model, size_t images, float *out, const dit_memory *m) {
    const size_t side = model->size / model->patch, p = model->patch, n = model->out_channels;
    size_t image, y, x, c;
    for (image = 0; image < images; image++) {
        for (y = 0; y < model->size; y++) {
            for (x = 0; x < model->size; x++) {
                const float *token = m->wide + ((image * side + y / p) * side + x / p) * p * p * n;
                for (c = 0; c < n; c++) {
                    out[((image * n + c) * model->size + y) * model->size + x] =
                        token[(y % p * p + x % p) * n + c];
                }
            }
        }
    }
}

/* The noise in x [images, channels, size, size] at a timestep, as out_channels images. 0 when it
 * fails; then m->err says why. */
static int dit_forward(const dit *model, const float *x, float timestep, const int *classes,
                       size_t images, float *out, dit_memory *m) {
    const size_t all = images * dit_tokens(model);
    size_t b;
    if (!dit_embed(model, x, images, m)) return 0;
    for (b = 0; b < model->block_count; b++) {
        if (!dit_block_forward(model, &model->blocks[b], timestep, classes, images, m)) return 0;
    }
    if (!dit_condition(model, &model->blocks[0], timestep, classes, images, m) ||
        !dit_linear(model, &model->final_modulation, m->silenced, images, timestep, m->shifts,
                    m)) {
        return 0;
    }
    dit_modulate(model, 1e-6f, images, 0, 1, 2, m);
    if (!dit_linear(model, &model->final, m->normed, all, timestep, m->wide, m)) return 0;
    dit_unpatch(model, images, out, m);
    return 1;
}

#endif
