/* The trellis code's kernels in plain C: the reference, and what small machines run. */
#include "trellis.h"

AQ_SIMD_LIB int32_t aq_trellis_value(const aq_trellis_code *code, uint32_t state) {
    uint32_t a = state & 15u, b = state >> 4 & 15u, c = state >> 8;
    return code->table[0][a] + code->table[1][b] + code->table[2][c ^ (code->mix & (a ^ b))];
}

/* cost = least + (target − value)², for every state. */
static void aq_trellis_costs(const aq_trellis_search *search, int32_t target,
                             const uint16_t *least) {
    uint32_t state, states = 1u << search->state_bits;
    for (state = 0; state < states; state++) {
        int32_t distance = target - search->values[state];
        uint32_t cost;
        distance = distance < 0 ? -distance : distance;
        distance = distance > 255 ? 255 : distance;
        cost = least[state >> search->bits] + (uint32_t)(distance * distance);
        search->costs[state] = (uint16_t)(cost > 65535u ? 65535u : cost);
    }
}

/* The cheapest of the states that differ in their top bits alone; the least of all. */
static uint16_t aq_trellis_choose(const aq_trellis_search *search, uint16_t *least,
                                  uint8_t *choices) {
    uint32_t ends = 1u << (search->state_bits - search->bits), i, u;
    uint16_t low = 65535u;
    for (u = 0; u < ends; u++) {
        uint16_t best = search->costs[u];
        uint8_t choice = 0;
        for (i = 1; i < 1u << search->bits; i++) {
            if (search->costs[u + i * ends] < best) {
                best = search->costs[u + i * ends];
                choice = (uint8_t)i;
            }
        }
        least[u] = best;
        choices[u] = choice;
        low = best < low ? best : low;
    }
    return low;
}

AQ_SIMD_LIB void aq_scalar_trellis_search(const aq_trellis_search *search, const int16_t *targets,
                                          size_t count, uint16_t *least, uint8_t *choices) {
    size_t ends = (size_t)1 << (search->state_bits - search->bits), u;
    while (count--) {
        uint16_t low;
        aq_trellis_costs(search, targets[count], least);
        low = aq_trellis_choose(search, least, choices + count * ends);
        for (u = 0; u < ends && count % 8 == 0; u++) {
            least[u] = (uint16_t)(least[u] - low);
        }
    }
}

/* At most 8 bits from bit `at` on, of bytes that hold them. */
static uint32_t aq_trellis_bits(const uint8_t *codes, size_t at, uint32_t bits) {
    uint32_t shift = (uint32_t)(at % 8), word = codes[at / 8];
    if (shift + bits > 8) {
        word |= (uint32_t)codes[at / 8 + 1] << 8;
    }
    return word >> shift & ((1u << bits) - 1u);
}

AQ_SIMD_LIB void aq_scalar_trellis_values(const aq_trellis_code *code, const uint8_t *codes,
                                          size_t at, size_t height, size_t first, size_t rows,
                                          int8_t *out) {
    uint32_t state = 0, bits = code->bits, filled;
    size_t row, next = first; /* the row whose own bits come next */
    for (filled = 0; filled < code->state_bits; filled += bits, next = (next + 1) % height) {
        state |= aq_trellis_bits(codes, at + next * bits, bits) << filled;
    }
    for (row = 0; row < rows; row++, next = (next + 1) % height) {
        out[row] = (int8_t)aq_trellis_value(code, state & ((1u << code->state_bits) - 1u));
        state = state >> bits | aq_trellis_bits(codes, at + next * bits, bits) << (filled - bits);
    }
}

AQ_SIMD_LIB void aq_scalar_trellis_dots(const aq_trellis_code *code, const uint8_t *codes,
                                        size_t height, size_t column, size_t count,
                                        const int8_t *x, size_t x_step, size_t tokens,
                                        int32_t *out) {
    int8_t values[AQ_TRELLIS_COLUMN];
    size_t i, row, token;
    memset(out, 0, tokens * height * sizeof *out);
    for (i = 0; i < count; i++) {
        aq_scalar_trellis_values(code, codes, (column + i) * height * code->bits, height, 0,
                                 height, values);
        for (token = 0; token < tokens; token++) {
            int32_t factor = x[token * x_step + i];
            for (row = 0; row < height; row++) {
                out[token * height + row] += factor * values[row];
            }
        }
    }
}

AQ_SIMD_LIB void aq_scalar_trellis_spread(const int8_t *values, size_t rows, size_t columns,
                                          const float *scales, float *out, size_t stride) {
    size_t row, i;
    for (row = 0; row < rows; row++, out += stride) {
        for (i = 0; i < columns; i++) {
            out[i] = scales[row] * (float)values[i * AQ_TRELLIS_COLUMN + row];
        }
    }
}
