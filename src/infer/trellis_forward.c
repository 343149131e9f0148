/* Layers in a trellis code: INT8 activations against the integers of the code, a strip at a time. The
 * float path is that of all codes (linear.c); both turn the input as the weights are turned. */
#include "infer.h"

#include "../quant/rotate.h"
#include "../quant/trellis.h"

/* Tokens taken together, so that a column's codes are decoded once for them. */
#ifdef ARROWQUANT_NO_THREADS
#  define AQ_TRELLIS_TOKENS 4u /* small memory */
#else
#  define AQ_TRELLIS_TOKENS 64u
#endif

#define AQ_TRELLIS_LINE 64u /* scales of a row that are widened at once */

typedef struct aq_trellis_shared {
    size_t stride;          /* of a token's INT8 values */
    size_t scales, end;
} aq_trellis_shared;

typedef struct aq_trellis_own {
    size_t token, params, dots, end;
} aq_trellis_own;

static bool aq_trellis_pieces(const aq_weights *weights, size_t tokens, aq_trellis_shared *shared,
                              aq_trellis_own *own) {
    bool fits = true;
    uint64_t end = 0;
    shared->stride = weights->cols;
    (void)aq_piece(&end, tokens, weights->cols, &fits);
    shared->scales = aq_piece(&end, tokens, 4, &fits);
    shared->end = (size_t)end;
    end = 0;
    own->token = aq_piece(&end, weights->cols, 4, &fits);
    own->params = aq_piece(&end, weights->groups, 4 * AQ_TRELLIS_ROWS, &fits);
    own->dots = aq_piece(&end, tokens < AQ_TRELLIS_TOKENS ? tokens : AQ_TRELLIS_TOKENS,
                         4 * AQ_TRELLIS_ROWS, &fits);
    own->end = (size_t)end;
    return fits;
}

AQ_LIB bool aq_trellis_scratch(const aq_weights *weights, size_t tokens, size_t *shared,
                               size_t *own) {
    aq_trellis_shared pieces;
    aq_trellis_own others;
    bool fits = aq_trellis_pieces(weights, tokens, &pieces, &others);
    *shared = pieces.end;
    *own = others.end;
    return fits;
}

AQ_LIB void aq_trellis_turn(const aq_weights *weights, float *x) {
    if (weights->trellis && weights->linear->spec.rotation) {
        aq_rotate_rows(weights->kernels, weights->linear->spec.rotation, x, 1, weights->cols);
    }
}

/* The strip that a row lies in. */
static void aq_trellis_strip(const aq_weights *weights, size_t row, aq_trellis_part *part) {
    const size_t first = row / AQ_TRELLIS_ROWS * AQ_TRELLIS_ROWS;
    const size_t left = weights->rows - first;
    memset(part, 0, sizeof *part);
    part->codes = (const uint8_t *)weights->linear->codes +
                  first * (size_t)weights->layout.row_code_bytes;
    part->params = (const uint8_t *)weights->linear->params +
                   first * (size_t)weights->layout.row_param_bytes;
    part->height = left < AQ_TRELLIS_ROWS ? left : AQ_TRELLIS_ROWS;
    part->cols = weights->cols;
    part->first = row - first;
}

AQ_LIB void aq_trellis_weights(const aq_weights *weights, size_t row, size_t rows, size_t begin,
                               size_t count, float *out) {
    aq_trellis_part part;
    aq_trellis_strip(weights, row, &part);
    part.rows = rows;
    part.begin = begin;
    part.count = count;
    aq_trellis_decode(weights->kernels, &weights->linear->spec, &part, out, count);
}

AQ_LIB void aq_trellis_row(const aq_weights *weights, size_t row, float *out) {
    const aq_linear *linear = weights->linear;
    aq_trellis_rows(weights->kernels, &linear->spec, linear->codes, linear->params, linear->rows,
                    linear->cols, row, 1, out);
}

AQ_LIB void aq_trellis_prepare(const aq_forward *run, size_t token, uint8_t *own) {
    const aq_weights *weights = &run->weights;
    aq_trellis_shared at;
    aq_trellis_own others;
    float *x, inverse = 0.0f, scale;
    (void)aq_trellis_pieces(weights, run->tokens, &at, &others);
    x = (float *)(void *)(own + others.token);
    aq_forward_widen(run, token, x);
    scale = aq_int8_symmetric(weights, x, &inverse);
    weights->infer->to_int8(x, weights->cols, inverse, 0,
                            (int8_t *)run->shared + token * at.stride);
    memcpy(run->shared + at.scales + 4 * token, &scale, 4);
}

/* The strip's scales: [groups][256]. */
static void aq_trellis_scales(const aq_weights *weights, const aq_trellis_part *part, float *out) {
    const bool wide = weights->linear->spec.params == AQ_PARAM_F32;
    const size_t each = (size_t)weights->layout.row_param_bytes;
    float line[AQ_TRELLIS_LINE];
    size_t row, group, i, count;
    for (row = 0; row < part->height; row++) {
        for (group = 0; group < weights->groups; group += count) {
            count = weights->groups - group;
            count = count < AQ_TRELLIS_LINE ? count : AQ_TRELLIS_LINE;
            aq_widen_file(weights->kernels, wide ? AQ_DTYPE_F32 : AQ_DTYPE_F16,
                          part->params + row * each + group * (wide ? 4u : 2u), line, count);
            for (i = 0; i < count; i++) {
                out[(group + i) * AQ_TRELLIS_ROWS + row] = line[i];
            }
        }
    }
}

AQ_SIMD_EXACT static void aq_trellis_gain(const float *scales, const int32_t *dots, size_t rows,
                                          float *y) {
    AQ_SIMD_EXACT_BODY
    size_t i;
    for (i = 0; i < rows; i++) {
        y[i] += scales[i] * (float)dots[i];
    }
}

AQ_SIMD_EXACT static void aq_trellis_finish(const float *bias, float scale, size_t rows, float *y) {
    AQ_SIMD_EXACT_BODY
    size_t i;
    for (i = 0; i < rows; i++) {
        y[i] = y[i] * scale + bias[i];
    }
}

/* A strip by at most AQ_TRELLIS_TOKENS tokens: the groups in ascending order. */
static void aq_trellis_tokens(const aq_forward *run, const aq_trellis_part *part, const int8_t *x,
                              size_t tokens, const float *scales, int32_t *dots, float *y) {
    const aq_weights *weights = &run->weights;
    const aq_quant_spec *spec = &weights->linear->spec;
    const aq_trellis_code *code = aq_trellis_code_of(spec->bits, spec->states);
    size_t group, t;
    for (t = 0; t < tokens; t++) {
        memset(y + t * weights->rows, 0, part->height * sizeof *y);
    }
    for (group = 0; group < weights->groups; group++) {
        const size_t begin = group * spec->group_size, left = weights->cols - begin;
        aq_simd_trellis(weights->kernels)
            ->dots(code, part->codes, part->height, begin,
                   left < spec->group_size ? left : spec->group_size, x + begin, weights->cols,
                   tokens, dots);
        for (t = 0; t < tokens; t++) {
            aq_trellis_gain(scales + group * AQ_TRELLIS_ROWS, dots + t * part->height, part->height,
                            y + t * weights->rows);
        }
    }
}

AQ_LIB void aq_trellis_forward(const aq_forward *run, size_t row, size_t rows, size_t token,
                               size_t tokens, uint8_t *own) {
    const aq_weights *weights = &run->weights;
    float bias[AQ_TRELLIS_ROWS], scale, *scales;
    aq_trellis_shared at;
    aq_trellis_own others;
    aq_trellis_part part;
    size_t i, t, n;
    (void)rows;
    (void)aq_trellis_pieces(weights, run->tokens, &at, &others);
    aq_trellis_strip(weights, row, &part);
    scales = (float *)(void *)(own + others.params);
    aq_trellis_scales(weights, &part, scales);
    aq_weights_bias(weights, row, part.height, bias);
    for (t = token; t < token + tokens; t += n) {
        float *y = run->y + t * weights->rows + row;
        n = token + tokens - t < AQ_TRELLIS_TOKENS ? token + tokens - t : AQ_TRELLIS_TOKENS;
        aq_trellis_tokens(run, &part, (const int8_t *)run->shared + t * at.stride, n, scales,
                          (int32_t *)(void *)(own + others.dots), y);
        for (i = 0; i < n; i++) {
            memcpy(&scale, run->shared + at.scales + 4 * (t + i), 4);
            aq_trellis_finish(bias, scale, part.height, y + i * weights->rows);
        }
    }
}

#undef AQ_TRELLIS_TOKENS
#undef AQ_TRELLIS_LINE
