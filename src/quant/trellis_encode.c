/* Weights in, trellis codes out: a column of a strip, then a whole strip with its scales. */
#include "trellis.h"

#include <math.h>

#define AQ_TRELLIS_SEAM 24u  /* rows on either side of a ring's seam that decide how it is closed */
#define AQ_TRELLIS_LITTLE 64u /* rings of so few rows are closed more than once */
#define AQ_TRELLIS_TURNS 4u
#define AQ_TRELLIS_SHORT 12u /* rings of so many bits are searched sequence by sequence */

AQ_LIB uint64_t aq_spec_block_rows(const aq_quant_spec *spec, uint64_t cols) {
    uint64_t rows = aq_block_rows(cols);
    if (spec->code != AQ_CODE_TRELLIS) {
        return rows;
    }
    return rows < AQ_TRELLIS_ROWS ? AQ_TRELLIS_ROWS : rows / AQ_TRELLIS_ROWS * AQ_TRELLIS_ROWS;
}

/* Takes `size` bytes, aligned to 64, off a space; with a NULL one it only counts them. */
static void *aq_trellis_take(uint8_t **space, uint64_t *used, size_t size) {
    void *taken = *space ? *space + *used : NULL;
    *used += (size + 63u) / 64u * 64u;
    return taken;
}

static uint64_t aq_trellis_split(aq_trellis *out, const aq_quant_spec *spec, uint8_t *space) {
    size_t states = spec->states, ends = states >> spec->bits;
    uint64_t used = 0;
    out->search.values = (int16_t *)aq_trellis_take(&space, &used, 2 * states);
    out->search.costs = (uint16_t *)aq_trellis_take(&space, &used, 2 * states);
    out->least = (uint16_t *)aq_trellis_take(&space, &used, 2 * ends);
    out->choices = (uint8_t *)aq_trellis_take(&space, &used, AQ_TRELLIS_ROWS * ends);
    out->digits = (uint8_t *)aq_trellis_take(&space, &used, AQ_TRELLIS_ROWS);
    out->targets = (int16_t *)aq_trellis_take(&space, &used, 2 * AQ_TRELLIS_ROWS);
    out->values = (int8_t *)aq_trellis_take(&space, &used, AQ_TRELLIS_ROWS);
    out->lines = (float *)aq_trellis_take(&space, &used,
                                          4 * spec->group_size * AQ_TRELLIS_ROWS);
    out->coded = (int8_t *)aq_trellis_take(&space, &used, spec->group_size * AQ_TRELLIS_ROWS);
    out->sums = (double *)aq_trellis_take(&space, &used, 16 * AQ_TRELLIS_ROWS);
    out->scales = (float *)aq_trellis_take(&space, &used, 4 * AQ_TRELLIS_ROWS);
    return used;
}

AQ_LIB uint64_t aq_trellis_bytes(const aq_quant_spec *spec) {
    aq_trellis none;
    return spec->code == AQ_CODE_TRELLIS ? aq_trellis_split(&none, spec, NULL) + 64u : 0u;
}

AQ_LIB void aq_trellis_open(aq_trellis *out, const struct aq_kernels *kernels,
                            const aq_quant_spec *spec, size_t rows, size_t cols, void *space) {
    uint32_t state;
    memset(out, 0, sizeof *out);
    out->kernels = kernels;
    out->own = aq_simd_trellis(kernels);
    out->code = aq_trellis_code_of(spec->bits, spec->states);
    out->rows = rows;
    out->cols = cols;
    (void)aq_trellis_split(out, spec, (uint8_t *)space + (64u - (uintptr_t)space % 64u) % 64u);
    out->search.bits = spec->bits;
    out->search.state_bits = out->code->state_bits;
    for (state = 0; state < spec->states; state++) {
        out->search.values[state] = (int16_t)(2 * aq_trellis_value(out->code, state));
    }
}

/* ---- one column */

/* 2·target/scale, where the search looks for it. A zero scale: nothing is to be met, all are alike. */
AQ_SIMD_EXACT static void aq_trellis_targets(aq_trellis *trellis, const float *target,
                                             const float *scale) {
    AQ_SIMD_EXACT_BODY
    int32_t most = trellis->code->bits == 4 ? 256 : 128;
    size_t row;
    for (row = 0; row < trellis->rows; row++) {
        float x = 0.0f;
        if (scale[row] != 0.0f) {
            x = 2.0f * target[row] / scale[row];
            x = x > -1e6f ? (x < 1e6f ? x : 1e6f) : -1e6f;
        }
        trellis->targets[row] = (int16_t)aq_simd_round(x, -most, most);
    }
}

/* Follows the choices of `rows` rows from the low state bits `end` on: the rows' own bits. Returns the
 * low bits behind them. */
static uint32_t aq_trellis_follow(const aq_trellis *trellis, const uint8_t *choices, size_t rows,
                                  uint32_t end, uint8_t *digits) {
    uint32_t bits = trellis->search.bits, low = trellis->search.state_bits - bits;
    size_t row;
    for (row = 0; row < rows; row++) {
        uint32_t state = end | (uint32_t)choices[(row << low) + end] << low;
        digits[row] = (uint8_t)(state & ((1u << bits) - 1u));
        end = state >> bits;
    }
    return end;
}

/* The low state bits at the ring's seam: those of the cheapest way through the rows around it. */
static uint32_t aq_trellis_seam(aq_trellis *trellis) {
    int16_t around[2 * AQ_TRELLIS_SEAM];
    size_t i, rows = trellis->rows, ends = (size_t)1 << (trellis->search.state_bits -
                                                        trellis->search.bits);
    uint32_t best = 0;
    for (i = 0; i < AQ_TRELLIS_SEAM; i++) {
        around[AQ_TRELLIS_SEAM + i] = trellis->targets[i % rows];
        around[AQ_TRELLIS_SEAM - 1 - i] = trellis->targets[rows - 1 - i % rows];
    }
    memset(trellis->least, 0, ends * sizeof *trellis->least);
    trellis->own->search(&trellis->search, around, 2 * AQ_TRELLIS_SEAM, trellis->least,
                         trellis->choices);
    for (i = 1; i < ends; i++) {
        best = trellis->least[i] < trellis->least[best] ? (uint32_t)i : best;
    }
    return aq_trellis_follow(trellis, trellis->choices, AQ_TRELLIS_SEAM, best, trellis->digits);
}

/* The cheapest ring whose low state bits at row `start` are `seam`. Whatever the search did (its sums
 * stop at 65535), every sequence of bits is a valid ring. */
static void aq_trellis_close(aq_trellis *trellis, size_t start, uint32_t seam) {
    size_t ends = (size_t)1 << (trellis->search.state_bits - trellis->search.bits);
    size_t rows = trellis->rows, i;
    int16_t turned[AQ_TRELLIS_ROWS];
    uint8_t digits[AQ_TRELLIS_ROWS];
    for (i = 0; i < rows; i++) {
        turned[i] = trellis->targets[(start + i) % rows];
    }
    memset(trellis->least, 0xFF, ends * sizeof *trellis->least);
    trellis->least[seam] = 0;
    trellis->own->search(&trellis->search, turned, rows, trellis->least, trellis->choices);
    (void)aq_trellis_follow(trellis, trellis->choices, rows, seam, digits);
    for (i = 0; i < rows; i++) {
        trellis->digits[(start + i) % rows] = digits[i];
    }
}

/* Long rings: what surrounds the seam decides it. Short ones are closed again at other rows, where the
 * bits found so far decide: each time the ring can only become cheaper. */
static void aq_trellis_search_column(aq_trellis *trellis) {
    uint32_t bits = trellis->search.bits, low = trellis->search.state_bits - bits, turn, i;
    size_t rows = trellis->rows;
    aq_trellis_close(trellis, 0, aq_trellis_seam(trellis));
    for (turn = 1; turn < AQ_TRELLIS_TURNS && rows <= AQ_TRELLIS_LITTLE; turn++) {
        size_t start = rows * turn / AQ_TRELLIS_TURNS;
        uint32_t seam = 0;
        for (i = 0; i < low; i += bits) {
            seam |= (uint32_t)trellis->digits[(start + i / bits) % rows] << i;
        }
        aq_trellis_close(trellis, start, seam & ((1u << low) - 1u));
    }
}

/* Rings of a few bits: each of their sequences is tried. */
static void aq_trellis_try_all(aq_trellis *trellis) {
    uint32_t bits = trellis->search.bits, length = (uint32_t)trellis->rows * bits;
    uint32_t ring, best_ring = 0, most = ~UINT32_C(0), best = most;
    size_t row;
    for (ring = 0; ring < 1u << length; ring++) {
        uint8_t bytes[2];
        int8_t values[AQ_TRELLIS_SHORT];
        uint32_t sum = 0;
        bytes[0] = (uint8_t)(ring & 0xFFu);
        bytes[1] = (uint8_t)(ring >> 8);
        aq_scalar_trellis_values(trellis->code, bytes, 0, trellis->rows, 0, trellis->rows, values);
        for (row = 0; row < trellis->rows; row++) {
            int32_t distance = trellis->targets[row] - 2 * values[row];
            sum += (uint32_t)(distance * distance);
        }
        best_ring = sum < best ? ring : best_ring;
        best = sum < best ? sum : best;
    }
    for (row = 0; row < trellis->rows; row++) {
        trellis->digits[row] = (uint8_t)(best_ring >> (bits * (uint32_t)row) & ((1u << bits) - 1u));
    }
}

/* The digits as bits of the strip, in place of what was there. */
static void aq_trellis_put(const aq_trellis *trellis, size_t at, uint8_t *codes) {
    size_t row, bits = trellis->search.bits;
    uint32_t mask = (1u << bits) - 1u;
    for (row = 0; row < trellis->rows; row++, at += bits) {
        uint32_t shift = (uint32_t)(at % 8), word = (uint32_t)trellis->digits[row] << shift;
        codes[at / 8] = (uint8_t)((codes[at / 8] & ~(mask << shift)) | word);
        if (shift + bits > 8) {
            codes[at / 8 + 1] = (uint8_t)((codes[at / 8 + 1] & ~(mask << shift >> 8)) | word >> 8);
        }
    }
}

/* Column `column` coded for the targets; its values. */
static void aq_trellis_code_column(aq_trellis *trellis, size_t column, uint8_t *codes,
                                   int8_t *values) {
    size_t length = trellis->rows * trellis->search.bits;
    if (length <= AQ_TRELLIS_SHORT) {
        aq_trellis_try_all(trellis);
    } else {
        aq_trellis_search_column(trellis);
    }
    aq_trellis_put(trellis, column * length, codes);
    trellis->own->values(trellis->code, codes, column * length, trellis->rows, 0, trellis->rows,
                         values);
}

AQ_SIMD_EXACT AQ_LIB void aq_trellis_column(aq_trellis *trellis, size_t column,
                                            const float *target, const float *scale,
                                            float *rounded, uint8_t *codes) {
    AQ_SIMD_EXACT_BODY
    size_t row;
    aq_trellis_targets(trellis, target, scale);
    aq_trellis_code_column(trellis, column, codes, trellis->values);
    for (row = 0; row < trellis->rows; row++) {
        rounded[row] = scale[row] * (float)trellis->values[row];
    }
}

/* ---- scales */

AQ_LIB double aq_trellis_scale(const aq_trellis_code *code, double mean_square) {
    return sqrt(mean_square) / (double)code->deviation;
}

AQ_LIB aq_fit_kind aq_trellis_store(aq_param_type params, double scale, float *stored,
                                    uint8_t *out) {
    float narrow = (float)scale;
    if (params == AQ_PARAM_F32) {
        *stored = narrow;
        aq_put_f32(out, narrow);
        return AQ_FIT_GOOD;
    }
    aq_put_u16(out, aq_simd_to_f16(narrow));
    *stored = aq_simd_from_f16(aq_simd_to_f16(narrow));
    if (narrow == 0.0f) {
        return AQ_FIT_GOOD;
    }
    narrow = *stored < 0.0f ? 0.0f - *stored : *stored;
    return narrow >= 6.103515625e-05f && narrow <= 65504.0f ? AQ_FIT_GOOD : AQ_FIT_NEEDS_F32;
}

/* A strip at work on one of its groups of columns. */
typedef struct aq_trellis_group {
    aq_trellis *trellis;
    const aq_quant_spec *spec;
    const float *column_weights; /* of the group, or NULL */
    size_t index, begin, count;  /* columns */
    uint8_t *codes, *params;     /* of the strip */
    size_t row_param_bytes;
} aq_trellis_group;

/* Weights to [columns][rows]. False when one is not finite. */
static bool aq_trellis_gather(const aq_trellis_group *group, const uint8_t *weights, aq_dtype dtype,
                              aq_block_outcome *outcome) {
    const struct aq_kernels *kernels = group->trellis->kernels;
    size_t size = aq_dtype_size(dtype), rows = group->trellis->rows, cols = group->trellis->cols;
    float line[AQ_SIMD_GROUP_MAX], *to = group->trellis->lines;
    size_t row, i;
    for (row = 0; row < rows; row++) {
        aq_simd_range range;
        aq_widen(kernels, dtype, weights + (row * cols + group->begin) * size, line, group->count);
        kernels->range(line, group->count, AQ_SIMD_GROUP_MAX, &range);
        if (range.absmax >= 0x7F800000u) {
            for (i = 0; (aq_simd_bits(line[i]) & 0x7F800000u) != 0x7F800000u; i++) {
            }
            outcome->not_finite = true;
            outcome->bad_index = row * cols + group->begin + i;
            outcome->bad_value = (double)line[i];
            return false;
        }
        for (i = 0; i < group->count; i++) {
            to[i * rows + row] = line[i];
        }
    }
    return true;
}

/* Stores a scale a row; false where one does not fit. */
static bool aq_trellis_put_scale(const aq_trellis_group *group, size_t row, double scale,
                                 aq_block_outcome *outcome) {
    aq_trellis *trellis = group->trellis;
    size_t size = group->spec->params == AQ_PARAM_F32 ? 4u : 2u;
    uint8_t *to = group->params + row * group->row_param_bytes + group->index * size;
    if (aq_trellis_store(group->spec->params, scale, &trellis->scales[row], to) == AQ_FIT_GOOD) {
        return true;
    }
    outcome->needs_f32 = true;
    outcome->bad_index = row * trellis->cols + group->begin;
    return false;
}

AQ_SIMD_EXACT static bool aq_trellis_guess(const aq_trellis_group *group,
                                           aq_block_outcome *outcome) {
    AQ_SIMD_EXACT_BODY
    aq_trellis *trellis = group->trellis;
    size_t row, i, rows = trellis->rows;
    memset(trellis->sums, 0, rows * sizeof *trellis->sums);
    for (i = 0; i < group->count; i++) {
        const float *line = trellis->lines + i * rows;
        for (row = 0; row < rows; row++) {
            trellis->sums[row] += (double)line[row] * (double)line[row];
        }
    }
    for (row = 0; row < rows; row++) {
        double scale = aq_trellis_scale(trellis->code, trellis->sums[row] / (double)group->count);
        if (!aq_trellis_put_scale(group, row, scale, outcome)) {
            return false;
        }
    }
    return true;
}

/* The scales that suit the codes best: Σ a·w·value / Σ a·value². */
AQ_SIMD_EXACT static bool aq_trellis_solve(const aq_trellis_group *group,
                                           aq_block_outcome *outcome) {
    AQ_SIMD_EXACT_BODY
    aq_trellis *trellis = group->trellis;
    size_t row, i, rows = trellis->rows;
    double *cross = trellis->sums, *square = trellis->sums + rows;
    memset(cross, 0, 2 * rows * sizeof *cross);
    for (i = 0; i < group->count; i++) {
        const float *line = trellis->lines + i * rows;
        const int8_t *values = trellis->coded + i * rows;
        double weight = group->column_weights ? (double)group->column_weights[i] : 1.0;
        for (row = 0; row < rows; row++) {
            double value = weight * (double)values[row];
            cross[row] += value * (double)line[row];
            square[row] += value * (double)values[row];
        }
    }
    for (row = 0; row < rows; row++) {
        if (square[row] > 0.0 && trellis->scales[row] != 0.0f &&
            !aq_trellis_put_scale(group, row, cross[row] / square[row], outcome)) {
            return false;
        }
    }
    return true;
}

static void aq_trellis_code_group(const aq_trellis_group *group) {
    aq_trellis *trellis = group->trellis;
    size_t i, rows = trellis->rows;
    for (i = 0; i < group->count; i++) {
        aq_trellis_targets(trellis, trellis->lines + i * rows, trellis->scales);
        aq_trellis_code_column(trellis, group->begin + i, group->codes, trellis->coded + i * rows);
    }
}

AQ_LIB void aq_trellis_block(const aq_context *context, const aq_quant_spec *spec,
                             const void *weights, aq_dtype dtype, uint64_t rows, uint64_t cols,
                             const float *column_weights, void *codes, void *params, void *space,
                             aq_block_outcome *outcome) {
    aq_quant_layout layout;
    aq_trellis trellis;
    aq_trellis_group group;
    uint32_t round, rounds = spec->fit == AQ_FIT_FAST ? 1u : 2u;
    memset(outcome, 0, sizeof *outcome);
    if (aq_quantized_size(spec, rows, cols, &layout, NULL) != AQ_OK || !rows || !cols) {
        return;
    }
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_trellis_open(&trellis, aq_kernels_of(context), spec, (size_t)rows, (size_t)cols, space);
    memset(&group, 0, sizeof group);
    group.trellis = &trellis;
    group.spec = spec;
    group.codes = (uint8_t *)codes;
    group.params = (uint8_t *)params;
    group.row_param_bytes = (size_t)layout.row_param_bytes;
    memset(codes, 0, (size_t)layout.code_bytes);
    for (; group.begin < trellis.cols && !aq_outcome_is_final(outcome); group.index++) {
        group.count = trellis.cols - group.begin;
        group.count = group.count < spec->group_size ? group.count : spec->group_size;
        group.column_weights = column_weights ? column_weights + group.begin : NULL;
        if (aq_trellis_gather(&group, (const uint8_t *)weights, dtype, outcome) &&
            aq_trellis_guess(&group, outcome)) {
            for (round = 0; round < rounds; round++) {
                aq_trellis_code_group(&group);
                if (!aq_trellis_solve(&group, outcome)) {
                    break;
                }
            }
        }
        group.begin += group.count;
    }
    if (!aq_outcome_is_final(outcome)) {
        aq_trellis_measure(trellis.kernels, spec, weights, dtype, rows, cols, codes, params,
                           &outcome->quality);
    }
    aq_simd_mode_leave(mode);
}

#undef AQ_TRELLIS_SEAM
#undef AQ_TRELLIS_LITTLE
#undef AQ_TRELLIS_TURNS
#undef AQ_TRELLIS_SHORT
