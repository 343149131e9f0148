/* Kernels of the trellis code: the search for the cheapest path, and what its windows stand for. One
 * table of functions an ISA; integers alone, so every ISA gives the same bits.
 *
 * A column of `rows` weights is a ring of rows·bits bits, LSB first. Row t reads the window of
 * state_bits bits that begins at bit t·bits, running on at the ring's first bit after its last: that
 * is its state. So a state shares all but `bits` bits with the next one, and each weight is chosen
 * from all states while only `bits` bits of it are its own: trellis-coded quantization with a
 * tail-biting bitshift trellis (Marcellin & Fischer 1990; Tseng et al., arXiv 2406.11235).
 *
 * What a state stands for is a sum of small integers, looked up by four bits each: 16-entry tables are
 * what byte shuffles of every ISA take, and the integers keep products exact. The third of them sees all
 * of the state, folded: without it the values of successive states are too much alike (0.15 dB with 256
 * states, 0.4 dB with 1,024). */
#ifndef AQ_SIMD_TRELLIS_H
#define AQ_SIMD_TRELLIS_H

#include "neon.h"
#include "x86.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_TRELLIS_TABLES 3u
#define AQ_TRELLIS_STATES 4096u /* at most */
#define AQ_TRELLIS_COLUMN 256u  /* rows at most */

/* With the state as three numbers of four bits, low ones first, the last one short or 0,
 * value(a, b, c) = table[0][a] + table[1][b] + table[2][c ^ (mix & (a ^ b))]: in ±63 with 2 and 3 bits, in
 * ±127 with 4. */
typedef struct aq_trellis_code {
    uint32_t bits, state_bits; /* 2, 3, 4; 8, 10, 12 */
    uint32_t mix;              /* 15, or 0 */
    float deviation;           /* the standard deviation of the weights that these values suit */
    int8_t table[AQ_TRELLIS_TABLES][16];
} aq_trellis_code;

/* NULL for bits and states that there are none of. */
AQ_SIMD_LIB const aq_trellis_code *aq_trellis_code_of(uint32_t bits, uint32_t states);
AQ_SIMD_LIB int32_t aq_trellis_value(const aq_trellis_code *code, uint32_t state);

/* The trellis seen by the search, which goes from a column's end to its beginning. Work space of the
 * caller's: both arrays hold one entry a state, aligned to 64 bytes. */
typedef struct aq_trellis_search {
    uint32_t bits, state_bits;
    int16_t *values; /* 2·value(state) */
    uint16_t *costs;
} aq_trellis_search;

struct aq_trellis_kernels {
    const char *name;
    /* `count` rows, the last one first. least[u], u a state's low state_bits − bits bits: the cost of
     * the cheapest way on from there to the end of the column, before the call and after it. The cost
     * of a row is the square of |target − values[state]|, at most 255. Sums stop at 65535; the least
     * one is taken off all after rows whose index is a multiple of 8. choices[count][least's length]:
     * the top bits of the state that the cheapest way goes through, the smallest where several are.
     * Targets lie in ±128 with 2 and 3 bits, in ±256 with 4. `choices` is aligned to 64 bytes. */
    void (*search)(const aq_trellis_search *search, const int16_t *targets, size_t count,
                   uint16_t *least, uint8_t *choices);
    /* The values of `rows` rows from `first` on, of the column of `height` rows that begins at bit
     * `at` of `codes`. */
    void (*values)(const aq_trellis_code *code, const uint8_t *codes, size_t at, size_t height,
                   size_t first, size_t rows, int8_t *out);
    /* out[tokens][height] = Σ value·x over `count` (at most 256) columns from `column` on, exact. The
     * x of a token lie x_step apart from those of the one before it. */
    void (*dots)(const aq_trellis_code *code, const uint8_t *codes, size_t height, size_t column,
                 size_t count, const int8_t *x, size_t x_step, size_t tokens, int32_t *out);
    /* out[row·stride + column] = scales[row]·value for 16 columns, whose `rows` (at most 256) values
     * lie AQ_TRELLIS_COLUMN apart; `columns` of them are wanted, the others may hold anything. */
    void (*spread)(const int8_t *values, size_t rows, size_t columns, const float *scales,
                   float *out, size_t stride);
};

/* Those that go with the table. */
AQ_SIMD_LIB const struct aq_trellis_kernels *aq_simd_trellis(const struct aq_kernels *kernels);

AQ_SIMD_LIB void aq_scalar_trellis_search(const aq_trellis_search *search, const int16_t *targets,
                                          size_t count, uint16_t *least, uint8_t *choices);
AQ_SIMD_LIB void aq_scalar_trellis_values(const aq_trellis_code *code, const uint8_t *codes,
                                          size_t at, size_t height, size_t first, size_t rows,
                                          int8_t *out);
AQ_SIMD_LIB void aq_scalar_trellis_dots(const aq_trellis_code *code, const uint8_t *codes,
                                        size_t height, size_t column, size_t count,
                                        const int8_t *x, size_t x_step, size_t tokens,
                                        int32_t *out);
AQ_SIMD_LIB void aq_scalar_trellis_spread(const int8_t *values, size_t rows, size_t columns,
                                          const float *scales, float *out, size_t stride);

#if defined(AQ_HAVE_AVX2)
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_trellis_spread(const int8_t *values, size_t rows, size_t columns,
                                                const float *scales, float *out, size_t stride);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_trellis_values(const aq_trellis_code *code, const uint8_t *codes,
                                                size_t at, size_t height, size_t first,
                                                size_t rows, int8_t *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_trellis_dots(const aq_trellis_code *code, const uint8_t *codes,
                                              size_t height, size_t column, size_t count,
                                              const int8_t *x, size_t x_step, size_t tokens,
                                              int32_t *out);
AQ_AVX2 AQ_SIMD_LIB void aq_avx2_trellis_search(const aq_trellis_search *search,
                                                const int16_t *targets, size_t count,
                                                uint16_t *least, uint8_t *choices);
#endif

#if defined(AQ_HAVE_NEON)
AQ_SIMD_LIB void aq_neon_trellis_search(const aq_trellis_search *search, const int16_t *targets,
                                        size_t count, uint16_t *least, uint8_t *choices);
AQ_SIMD_LIB void aq_neon_trellis_values(const aq_trellis_code *code, const uint8_t *codes,
                                        size_t at, size_t height, size_t first, size_t rows,
                                        int8_t *out);
AQ_SIMD_LIB void aq_neon_trellis_dots(const aq_trellis_code *code, const uint8_t *codes,
                                      size_t height, size_t column, size_t count, const int8_t *x,
                                      size_t x_step, size_t tokens, int32_t *out);
AQ_SIMD_LIB void aq_neon_trellis_spread(const int8_t *values, size_t rows, size_t columns,
                                        const float *scales, float *out, size_t stride);
#endif

#ifdef __cplusplus
}
#endif
#endif /* AQ_SIMD_TRELLIS_H */
