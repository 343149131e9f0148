/* Products with INT8 activations: exact integer dots of each group, scaled in F32 in one order. */
#include "infer.h"

/* Where the pieces of scratch begin. All of it is the size of `end`. */
typedef struct aq_int8_shared {
    size_t stride;                     /* of a token's INT8 values */
    size_t sums, scales, zeros, ones, end;
} aq_int8_shared;

typedef struct aq_int8_own {
    size_t rows, params, dots, dots_turned, codes, acc, end;
} aq_int8_own;

/* Fewer tokens go one by one. */
#define AQ_INT8_TILE_TOKENS 4u

AQ_LIB size_t aq_piece(uint64_t *end, uint64_t count, uint64_t size, bool *fits) {
    uint64_t begin = *end, bytes = 0;
    *fits = *fits && aq_mul_u64(count, size, &bytes) &&
            aq_add_u64(bytes, AQ_LINEAR_LINE - 1u, &bytes) &&
            aq_add_u64(begin, bytes / AQ_LINEAR_LINE * AQ_LINEAR_LINE, end) && *end <= SIZE_MAX;
    return (size_t)begin;
}

static bool aq_int8_shared_pieces(const aq_weights *weights, size_t tokens, aq_int8_shared *out) {
    bool fits = true;
    uint64_t end = 0;
    uint64_t stride = ((uint64_t)weights->cols + AQ_ARRANGED - 1) / AQ_ARRANGED * AQ_ARRANGED;
    if (weights->infer->tiles) { /* tokens 4096 bytes apart would share one place of the first cache */
        stride += AQ_LINEAR_LINE;
    }
    out->stride = (size_t)stride;
    (void)aq_piece(&end, tokens, stride, &fits);
    out->sums = aq_piece(&end, tokens, (uint64_t)weights->groups * 4, &fits);
    out->scales = aq_piece(&end, tokens, 4, &fits);
    out->zeros = aq_piece(&end, tokens, 4, &fits);
    out->ones = aq_piece(&end, stride, 1, &fits);
    out->end = (size_t)end;
    return fits;
}

static bool aq_int8_own_pieces(const aq_weights *weights, size_t tokens, aq_int8_own *out) {
    bool fits = true;
    uint64_t end = 0, block = (uint64_t)weights->groups * AQ_LINEAR_ROWS;
    uint64_t whole = (uint64_t)aq_groups_up(weights->groups) * AQ_LINEAR_ROWS;
    uint64_t token = ((uint64_t)weights->cols + 63) / 64 * 80; /* F32 and INT8, in preparation */
    out->rows = aq_piece(&end, block * 8 > token ? block * 8 : token, 1, &fits);
    out->params = aq_piece(&end, block * 2, 4, &fits);
    out->dots = aq_piece(&end, whole, 4, &fits);
    out->dots_turned = aq_piece(&end, block, 4, &fits);
    out->codes = aq_piece(&end, block, 4, &fits);
    out->acc = aq_piece(&end, weights->infer->tiles && tokens >= AQ_INT8_TILE_TOKENS
                                  ? tokens < AQ_TASK_TOKENS ? tokens : AQ_TASK_TOKENS : 0,
                        2 * 4 * AQ_LINEAR_ROWS, &fits);
    out->end = (size_t)end;
    return fits;
}

AQ_LIB bool aq_int8_scratch(const aq_weights *weights, size_t tokens, size_t *shared, size_t *own) {
    aq_int8_shared pieces;
    aq_int8_own others;
    if (!aq_int8_shared_pieces(weights, tokens, &pieces) || !aq_int8_own_pieces(weights, tokens, &others)) {
        return false;
    }
    *shared = pieces.end;
    *own = others.end;
    return true;
}

/* ---- activations */

/* The range of a token, 0 included; absmax from 0x7F800000 on: infinity or NaN. */
static aq_simd_range aq_token_range(const struct aq_kernels *kernels, const float *x, size_t count) {
    aq_simd_range ranges[16], all = {0.0f, 0.0f, 0};
    const size_t each = sizeof ranges / sizeof *ranges * AQ_SIMD_GROUP_MAX;
    size_t begin, i, n;
    for (begin = 0; begin < count; begin += n) {
        n = count - begin < each ? count - begin : each;
        kernels->range(x + begin, n, AQ_SIMD_GROUP_MAX, ranges);
        for (i = 0; i * AQ_SIMD_GROUP_MAX < n; i++) {
            all.absmax = ranges[i].absmax > all.absmax ? ranges[i].absmax : all.absmax;
            all.low = ranges[i].low < all.low ? ranges[i].low : all.low;
            all.high = ranges[i].high > all.high ? ranges[i].high : all.high;
        }
    }
    return all;
}

/* How a token becomes integers. */
typedef struct aq_int8_grid {
    float scale, inverse;
    int32_t zero;
} aq_int8_grid;

/* A token whose values lie on one side of 0 but for a quarter of the other: all 256 integers on its
 * range, where a scale of its own for both sides would leave near half of them unused. (What GELU
 * and SiLU give is such.) */
AQ_SIMD_EXACT static aq_int8_grid aq_one_sided_grid(float low, float high) {
    AQ_SIMD_EXACT_BODY
    aq_int8_grid grid;
    float width = high - low;
    grid.scale = width / 255.0f;
    grid.inverse = 255.0f / width;
    grid.zero = aq_simd_round(-128.0f - low * grid.inverse, -128, 127);
    return grid;
}

/* Values too small for an inverse count as zeros; a value that is not finite makes the scale one
 * that spreads. */
static aq_int8_grid aq_int8_grid_of(const aq_activation *activation, const aq_simd_range *range) {
    const uint32_t infinite = 0x7F800000u, least = 0x03800000u, most = 0x7E800000u;
    aq_int8_grid grid = {0.0f, 0.0f, 0};
    if (activation->type == AQ_ACTIVATION_STATIC) {
        grid.zero = activation->zero_point;
    }
    if (range->absmax >= infinite) {
        grid.scale = aq_simd_float(0x7FC00000u);
    } else if (activation->type == AQ_ACTIVATION_STATIC) {
        grid.scale = activation->scale;
        grid.inverse = 1.0f / activation->scale;
    } else if (range->absmax >= least) { /* 2^-120; the difference of two below 2^126 is finite */
        if (range->absmax < most && (-4.0f * range->low <= range->high ||
                                     4.0f * range->high <= -range->low)) {
            return aq_one_sided_grid(range->low, range->high);
        }
        grid.scale = aq_simd_float(range->absmax) / 127.0f;
        grid.inverse = 127.0f / aq_simd_float(range->absmax);
    }
    return grid;
}

AQ_LIB float aq_int8_symmetric(const aq_weights *weights, const float *x, float *inverse) {
    const aq_activation dynamic = {AQ_ACTIVATION_DYNAMIC, 0.0f, 0};
    aq_simd_range range = aq_token_range(weights->kernels, x, weights->cols);
    aq_int8_grid grid;
    range.high = aq_simd_float(range.absmax);
    range.low = -range.high;
    grid = aq_int8_grid_of(&dynamic, &range);
    *inverse = grid.inverse;
    return grid.scale;
}

static void aq_int8_sums(const aq_weights *weights, const int8_t *q, int32_t zero, int32_t *sums) {
    const size_t group = weights->linear->spec.group_size;
    size_t i;
    aq_scalar_group_sums(q, weights->cols, group, sums);
    for (i = 0; zero != 0 && i < weights->groups; i++) {
        size_t length = weights->cols - i * group;
        sums[i] -= zero * (int32_t)(length < group ? length : group);
    }
}

AQ_LIB void aq_int8_prepare(const aq_forward *run, size_t token, uint8_t *own) {
    const aq_weights *weights = &run->weights;
    const size_t cols = weights->cols;
    aq_int8_shared at;
    aq_int8_grid grid;
    aq_simd_range range;
    float *x = (float *)(void *)own;
    int8_t *q = (int8_t *)own + (cols + 15) / 16 * 64;
    (void)aq_int8_shared_pieces(weights, run->tokens, &at);
    aq_forward_widen(run, token, x);
    range = aq_token_range(weights->kernels, x, cols);
    grid = aq_int8_grid_of(&run->activation, &range);
    weights->infer->to_int8(x, cols, grid.inverse, grid.zero, q);
    aq_weights_arrange(weights, q, (int8_t *)run->shared + token * at.stride);
    aq_int8_sums(weights, q, grid.zero,
                 (int32_t *)(void *)(run->shared + at.sums) + token * weights->groups);
    memcpy(run->shared + at.scales + 4 * token, &grid.scale, 4);
    memcpy(run->shared + at.zeros + 4 * token, &grid.zero, 4);
    if (token == 0) {
        memset(q, 1, cols);
        aq_weights_arrange(weights, q, (int8_t *)run->shared + at.ones);
    }
}

/* ---- products */

/* What does not change over the tokens of a block of rows. */
typedef struct aq_int8_job {
    const aq_weights *weights;
    aq_int8_shared shared;
    aq_int8_own own;
    const uint8_t *activations;
    uint8_t *scratch;
    size_t row, rows;
    bool zeros; /* some of these tokens have a zero point */
    float bias[AQ_LINEAR_ROWS];
} aq_int8_job;

/* Σ code·q of the block's rows, turned: [groups][16]. */
static void aq_int8_dots(const aq_int8_job *job, const int8_t *q, int32_t *out) {
    const size_t groups = job->weights->groups;
    int32_t *dots = (int32_t *)(void *)(job->scratch + job->own.dots);
    if (aq_is_interleaved(job->weights)) {
        aq_linear_interleaved lines;
        aq_interleaved_job(job->weights, job->row, &lines);
        lines.x = q;
        lines.out = out;
        job->weights->infer->interleaved(&lines);
        return;
    }
    aq_weights_dots(job->weights, job->row, job->rows, q, dots);
    job->weights->infer->transpose((const uint32_t *)(const void *)dots, aq_groups_up(groups), groups,
                                   (uint32_t *)(void *)out);
}

/* Scales and mins of the block's rows, turned: [groups][2][16]. */
static void aq_int8_params(const aq_int8_job *job) {
    const size_t each = 2 * job->weights->groups;
    float *rows = (float *)(void *)(job->scratch + job->own.rows);
    if (aq_is_interleaved(job->weights) &&
        aq_interleaved_params(job->weights, job->row, rows,
                              (float *)(void *)(job->scratch + job->own.params))) {
        return;
    }
    aq_weights_params(job->weights, job->row, job->rows, rows);
    job->weights->infer->transpose((const uint32_t *)(const void *)rows, each, each,
                                   (uint32_t *)(void *)(job->scratch + job->own.params));
}

AQ_SIMD_EXACT static void aq_int8_finish(const aq_int8_job *job, const float *acc, float scale,
                                         float *y) {
    AQ_SIMD_EXACT_BODY
    size_t i;
    for (i = 0; i < job->rows; i++) {
        float sum = (acc[i] + acc[AQ_LINEAR_ROWS + i]) * scale;
        y[i] = sum + job->bias[i];
    }
}

/* The same where the weights lie interleaved, in one pass. */
static void aq_int8_lines(const aq_int8_job *job, const aq_linear_combine *combine, const int8_t *q,
                          float *acc) {
    aq_linear_interleaved lines;
    aq_interleaved_job(job->weights, job->row, &lines);
    if (lines.param_bytes == 0) {
        lines.params = (const uint8_t *)combine->params;
        lines.param_bytes = sizeof(float);
        lines.values = 2;
    }
    lines.x = q;
    lines.sums = combine->sums;
    lines.codes_turned = combine->codes;
    lines.zero = combine->zero;
    lines.acc = acc;
    job->weights->infer->interleaved(&lines);
}

static void aq_int8_token(const aq_int8_job *job, size_t token, float *y) {
    const uint8_t *shared = job->activations;
    const int8_t *q = (const int8_t *)shared + token * job->shared.stride;
    float acc[2 * AQ_LINEAR_ROWS] = {0.0f}, scale;
    aq_linear_combine combine;
    memcpy(&scale, shared + job->shared.scales + 4 * token, 4);
    memcpy(&combine.zero, shared + job->shared.zeros + 4 * token, 4);
    combine.dots = (const int32_t *)(const void *)(job->scratch + job->own.dots_turned);
    combine.codes = (const int32_t *)(const void *)(job->scratch + job->own.codes);
    combine.sums = (const int32_t *)(const void *)(shared + job->shared.sums) +
                   token * job->weights->groups;
    combine.params = (const float *)(const void *)(job->scratch + job->own.params);
    combine.groups = job->weights->groups;
    combine.half = job->weights->half;
    if (aq_is_interleaved(job->weights)) {
        aq_int8_lines(job, &combine, q, acc);
    } else {
        aq_int8_dots(job, q, (int32_t *)(void *)(job->scratch + job->own.dots_turned));
        job->weights->infer->combine(&combine, acc);
    }
    aq_int8_finish(job, acc, scale, y);
}

/* Many tokens at once; false where there is no kernel for it. */
static bool aq_int8_tokens(const aq_int8_job *job, size_t token, size_t tokens, float *y) {
    const uint8_t *shared = job->activations;
    const aq_weights *weights = job->weights;
    aq_linear_tiles tiles;
    size_t i;
    float scale;
    if (tokens < AQ_INT8_TILE_TOKENS || !aq_weights_tiles(weights, job->row, job->rows, &tiles)) {
        return false;
    }
    tiles.x = (const int8_t *)shared + token * job->shared.stride;
    tiles.x_stride = job->shared.stride;
    tiles.tokens = tokens;
    tiles.sums = (const int32_t *)(const void *)(shared + job->shared.sums) +
                 token * weights->groups;
    tiles.zeros = job->zeros ? (const int32_t *)(const void *)(shared + job->shared.zeros) + token
                             : NULL;
    tiles.codes_turned = (const int32_t *)(const void *)(job->scratch + job->own.codes);
    tiles.params = (const float *)(const void *)(job->scratch + job->own.params);
    tiles.acc = (float *)(void *)(job->scratch + job->own.acc);
    memset(tiles.acc, 0, tokens * 2 * AQ_LINEAR_ROWS * sizeof(float));
    weights->infer->tiles(&tiles);
    for (i = 0; i < tokens; i++) {
        memcpy(&scale, shared + job->shared.scales + 4 * (token + i), 4);
        aq_int8_finish(job, tiles.acc + i * 2 * AQ_LINEAR_ROWS, scale, y + i * weights->rows);
    }
    return true;
}

AQ_LIB void aq_int8_block(const aq_forward *run, size_t row, size_t rows, size_t token,
                          size_t tokens, uint8_t *own) {
    float *y = run->y + token * run->weights.rows + row;
    const int32_t *zeros;
    aq_int8_job job;
    size_t i;
    job.weights = &run->weights;
    (void)aq_int8_shared_pieces(&run->weights, run->tokens, &job.shared);
    (void)aq_int8_own_pieces(&run->weights, run->tokens, &job.own);
    job.activations = run->shared;
    job.scratch = own;
    job.row = row;
    job.rows = rows;
    job.zeros = false;
    zeros = (const int32_t *)(const void *)(run->shared + job.shared.zeros) + token;
    for (i = 0; i < tokens; i++) {
        job.zeros = job.zeros || zeros[i] != 0;
    }
    aq_weights_bias(&run->weights, row, rows, job.bias);
    if (rows < AQ_LINEAR_ROWS) { /* the other lanes count with zeros */
        memset(own, 0, job.own.end);
    }
    if (!aq_is_interleaved(&run->weights) || run->weights.interleaving.size == 0 ||
        tokens >= AQ_INT8_TILE_TOKENS) { /* else they are read with the codes */
        aq_int8_params(&job);
    }
    if (job.zeros) {
        aq_int8_dots(&job, (const int8_t *)run->shared + job.shared.ones,
                     (int32_t *)(void *)(own + job.own.codes));
    }
    if (aq_int8_tokens(&job, token, tokens, y)) {
        return;
    }
    for (i = 0; i < tokens; i++) {
        aq_int8_token(&job, token + i, y + i * run->weights.rows);
    }
}

#undef AQ_INT8_TILE_TOKENS
