/* Kernels: the arithmetic that decides every code and sum, as one table of functions an ISA. The
 * scalar table is the reference; every other one gives the same bits. Depends on nothing. */
#ifndef AQ_SIMD_H
#define AQ_SIMD_H

#include <float.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__FAST_MATH__) || defined(_M_FP_FAST)
#  error "ArrowQuant needs IEEE arithmetic: compile without -ffast-math"
#endif
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#  error "ArrowQuant needs plain floats: i386 -msse2 -mfpmath=sse, s390x -fexcess-precision=fast"
#endif

/* Linkage of internal functions, equal in effect to AQ_LIB of base/: static in both headers. */
#ifndef AQ_SIMD_LIB
#  if !defined(AQ_AMALGAMATED) && !defined(AQ_SIMD_IMPLEMENTATION_INCLUDED)
#    define AQ_SIMD_LIB extern
#  elif defined(__GNUC__) || defined(__clang__)
#    define AQ_SIMD_LIB static __attribute__((unused))
#  else
#    define AQ_SIMD_LIB static
#  endif
#endif

/* A product and a sum must round twice: AQ_SIMD_EXACT stands before each function with float
 * arithmetic, AQ_SIMD_EXACT_BODY is the first line of its body. */
#if defined(__GNUC__) && !defined(__clang__)
#  define AQ_SIMD_EXACT __attribute__((optimize("fp-contract=off")))
#else
#  define AQ_SIMD_EXACT
#endif
#if defined(__clang__)
#  define AQ_SIMD_EXACT_BODY _Pragma("clang fp contract(off)")
#elif defined(_MSC_VER)
#  define AQ_SIMD_EXACT_BODY __pragma(fp_contract(off))
#else
#  define AQ_SIMD_EXACT_BODY
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Element i of a group goes to lane i % 16; at the end lane i takes lane i + 8, then + 4, + 2, + 1.
 * All sums are F32 and start at +0. */
#define AQ_SIMD_LANES 16u
#define AQ_SIMD_GROUP_MAX 256u /* the longest group, and the most that one `compare` takes */

/* What one pass over a group finds. */
typedef struct aq_simd_range {
    float low, high;   /* the sign of a zero is not defined */
    uint32_t absmax;   /* bits of the largest magnitude; from 0x7F800000 on: infinity or NaN */
} aq_simd_range;

/* w ≈ scale·(q − code) + mean: the best min for any scale near this one is mean − scale·code.
 * Symmetric: mean and code are 0. */
typedef struct aq_simd_fit {
    double mean; /* a float is too short for groups that are narrow and far from zero */
    float scale, code;
} aq_simd_fit;

/* A group's parameters as a reader sees them. Affine: ŵ = scale·q + min. Symmetric:
 * ŵ = scale·(q − 2^(bits−1)), and min is not read. */
typedef struct aq_simd_grid {
    float scale, min;
} aq_simd_grid;

/* 1 / scale, but finite: a group whose weight lies on values 2^-86 of its largest has a scale below
 * 2^-128, and 0·∞ would be no code. */
static inline float aq_simd_inverse(float scale) {
    float inverse = 1.0f / scale;
    inverse = inverse > FLT_MAX ? FLT_MAX : inverse;
    return inverse < -FLT_MAX ? -FLT_MAX : inverse;
}

typedef struct aq_simd_sums {
    float dot;       /* Σ a·b */
    float first;     /* Σ a² */
    float second;    /* Σ b² */
    float error;     /* Σ (a − b)² */
    float max_error; /* max |a − b| */
} aq_simd_sums;

/* 256 weights as 16 strips of 16, strip i in lane i of each array; `x` and `weights` are transposed,
 * one step of all strips after the other. */
typedef struct aq_simd_strips {
    float x[256], weights[256];      /* weights: when weighted */
    float low[16], high[16];         /* of x */
    float weight[16], sum[16], square[16]; /* Σ w, Σ w·x, Σ w·x² */
    float base[16], inverse[16];     /* of strips_sums: c = clamp(rint((x − base)·inverse), 0, most);
                                        both finite */
    float code[16], code2[16], cross[16];  /* Σ w·c, Σ w·c², Σ w·c·x */
    bool weighted;
} aq_simd_strips;

/* `count` values of one row are cut into groups of `group` (a multiple of 32, at most 256); the
 * last one may be short. Arrays of ranges, fits and grids hold one entry a group. Pointers to
 * floats are aligned as floats, others not at all. `bits` is 2, 4 or 8. */
struct aq_kernels {
    const char *name;
    /* Exact; a NaN comes out quiet with its sign. */
    void (*f16_to_f32)(const void *in, float *out, size_t count);
    void (*bf16_to_f32)(const void *in, float *out, size_t count);
    void (*f8_e4m3_to_f32)(const void *in, float *out, size_t count);
    void (*f8_e5m2_to_f32)(const void *in, float *out, size_t count);
    /* To nearest, halves to even; beyond the largest: infinity. */
    void (*f32_to_f16)(const float *in, void *out, size_t count);
    void (*f32_to_bf16)(const float *in, void *out, size_t count);
    void (*range)(const float *x, size_t count, size_t group, aq_simd_range *out);
    /* Least squares. A group's largest magnitude must lie in 2^-40 … 2^40, unless low == high,
     * which gives {1, low, 0}. `weights` is NULL, or as long as x: finite, ≥ 0, in each group the
     * largest in 2^-40 … 2^40. `ranges` are those of x. NULL weights mean ones, to the bit. */
    void (*fit_affine)(const float *x, const float *weights, size_t count, size_t group,
                       uint32_t bits, const aq_simd_range *ranges, aq_simd_fit *out);
    void (*fit_symmetric)(const float *x, const float *weights, size_t count, size_t group,
                          uint32_t bits, const aq_simd_range *ranges, aq_simd_fit *out);
    /* q = clamp(rint((x − min)·(1/scale))), packed LSB first from the first byte on. Each group
     * begins on a byte; bits behind the last code of its last byte are 0. */
    void (*encode)(const float *x, size_t count, size_t group, uint32_t bits, bool symmetric,
                   const aq_simd_grid *grids, void *codes);
    void (*decode)(const void *codes, size_t count, size_t group, uint32_t bits, bool symmetric,
                   const aq_simd_grid *grids, float *out);
    /* range and encode of BF16, without the detour of F32. low and high of a group that is not finite
     * mean nothing; encode takes finite values. */
    void (*range_bf16)(const void *in, size_t count, size_t group, aq_simd_range *out);
    void (*encode_bf16)(const void *in, size_t count, size_t group, uint32_t bits, bool symmetric,
                        const aq_simd_grid *grids, void *codes);
    /* count ≤ 256 */
    void (*compare)(const float *a, const float *b, size_t count, aq_simd_sums *out);
    /* Or NULL. Copies past the caches, for what is not read again soon; the two do not overlap. A
     * call with 0 bytes, after the last one, makes it visible to other threads. */
    void (*stream)(const void *in, void *out, size_t bytes);
    /* NULL when `stream` is. As decode, past the caches; `out` is aligned to 16 bytes, and a call
     * of `stream` with 0 bytes is due in the end. */
    void (*decode_past)(const void *codes, size_t count, size_t group, uint32_t bits,
                        bool symmetric, const aq_simd_grid *grids, float *out);
    /* Linear algebra on panels: columns of 32 values, one behind the other. For each of `columns`
     * (at most 8) columns j of c:
     * c[32·j + i] −= a[32·k + i]·b[b_step·k + j], k ascending, each step one fused multiply-add. */
    void (*update)(float *c, const float *a, const float *b, size_t b_step, size_t depth,
                   size_t columns);
    /* The Walsh-Hadamard transform of `count` values, a power of two, in place: the steps 1, 2, 4 …
     * each make a + b and a − b of values so far apart; then all are multiplied by `scale`. */
    void (*hadamard)(float *x, size_t count, float scale);
    /* Of 256 weights: `weights` is NULL or as long as x. Everything down to `square`. */
    void (*strips_load)(const float *x, const float *weights, aq_simd_strips *out);
    /* The three sums over codes; `most` is the greatest code. */
    void (*strips_sums)(aq_simd_strips *strips, float most);
    /* The codes themselves, a byte each, in the order of x. */
    void (*strips_codes)(const aq_simd_strips *strips, float most, const float *x, uint8_t *codes);
    const char *dots; /* which instructions the three below use: "scalar", "avx2", "vnni" … */
    /* Exact: Σ a·b. count ≤ 65536 */
    int32_t (*dot)(const int8_t *a, const int8_t *b, size_t count);
    /* Exact: Σ code·x of each group of each row, codes as they are stored: 0 … 2^bits − 1. Rows of
     * `count` packed codes lie row_bytes apart; x has `count` values. out[rows][groups] */
    void (*dot_codes)(const void *codes, size_t row_bytes, size_t rows, uint32_t bits,
                      const int8_t *x, size_t count, size_t group, int32_t *out);
    /* Packed codes, one byte each: for many x, unpack once and call dot_codes with 8 bits. */
    void (*unpack)(const void *codes, size_t count, uint32_t bits, uint8_t *out);
};

#define AQ_SIMD_PANEL 32u /* values of a column of `update` */
#define AQ_SIMD_STRIP 8u  /* columns that it takes at once */

/* How the fit searches: start i has the scale range / divisor[i] and a grid whose code
 * (2^bits − 1)/2 + shift[i] falls on the middle of the range. The start with the best solution is
 * alternated (codes, solution, codes …) up to `rounds` times, as long as it gains. */
#define AQ_SIMD_STARTS_MAX 5u
typedef struct aq_simd_recipe {
    uint32_t starts, rounds;
    float divisor[AQ_SIMD_STARTS_MAX];
    float shift[AQ_SIMD_STARTS_MAX];
} aq_simd_recipe;

AQ_SIMD_LIB const aq_simd_recipe *aq_simd_affine_recipe(uint32_t bits, size_t group);
AQ_SIMD_LIB const aq_simd_recipe *aq_simd_symmetric_recipe(uint32_t bits, size_t group);

/* ---- choice of a table (dispatch.c) */

/* By name: "scalar"; NULL: the best for this machine. NULL is returned when this build or machine
 * lacks it. */
AQ_SIMD_LIB const struct aq_kernels *aq_simd_kernels(const char *name);

/* ---- the thread's floating-point mode (float_mode.c) */

/* Round to nearest, denormals kept; _leave puts back what _enter found. */
typedef struct aq_simd_mode {
    uint64_t saved;
} aq_simd_mode;
AQ_SIMD_LIB aq_simd_mode aq_simd_mode_enter(void);
AQ_SIMD_LIB void aq_simd_mode_leave(aq_simd_mode mode);

/* ---- single values (scalar_convert.c, scalar_fit.c) */

AQ_SIMD_LIB uint32_t aq_simd_bits(float value);
AQ_SIMD_LIB float aq_simd_float(uint32_t bits);
AQ_SIMD_LIB float aq_simd_from_f16(uint16_t half);
AQ_SIMD_LIB uint16_t aq_simd_to_f16(float value);
AQ_SIMD_LIB uint16_t aq_simd_to_bf16(float value);
/* The best min for a scale near fit's: mean − scale·code, rounded once. */
AQ_SIMD_LIB float aq_simd_best_min(const aq_simd_fit *fit, float scale);
/* Clamped to low … high (within ±2^22), then to the nearest integer, halves to even. */
AQ_SIMD_LIB int32_t aq_simd_round(float value, int32_t low, int32_t high);
/* The sum of 16 lanes, which it overwrites, in the order that every ISA follows. */
AQ_SIMD_LIB float aq_scalar_fold(float *lane);

/* Σ x of each group: what dot_codes' callers need for a min, and for the zero of symmetric codes
 * (scalar_dots.c). */
AQ_SIMD_LIB void aq_scalar_group_sums(const int8_t *x, size_t count, size_t group, int32_t *out);

/* ---- the scalar table's functions */

AQ_SIMD_LIB void aq_scalar_f16_to_f32(const void *in, float *out, size_t count);
AQ_SIMD_LIB void aq_scalar_bf16_to_f32(const void *in, float *out, size_t count);
AQ_SIMD_LIB void aq_scalar_f8_e4m3_to_f32(const void *in, float *out, size_t count);
AQ_SIMD_LIB void aq_scalar_f8_e5m2_to_f32(const void *in, float *out, size_t count);
AQ_SIMD_LIB void aq_scalar_f32_to_f16(const float *in, void *out, size_t count);
AQ_SIMD_LIB void aq_scalar_f32_to_bf16(const float *in, void *out, size_t count);
AQ_SIMD_LIB void aq_scalar_range(const float *x, size_t count, size_t group, aq_simd_range *out);
AQ_SIMD_LIB void aq_scalar_fit_affine(const float *x, const float *weights, size_t count,
                                      size_t group, uint32_t bits, const aq_simd_range *ranges,
                                      aq_simd_fit *out);
AQ_SIMD_LIB void aq_scalar_fit_symmetric(const float *x, const float *weights, size_t count,
                                         size_t group, uint32_t bits, const aq_simd_range *ranges,
                                         aq_simd_fit *out);
AQ_SIMD_LIB void aq_scalar_encode(const float *x, size_t count, size_t group, uint32_t bits,
                                  bool symmetric, const aq_simd_grid *grids, void *codes);
AQ_SIMD_LIB void aq_scalar_decode(const void *codes, size_t count, size_t group, uint32_t bits,
                                  bool symmetric, const aq_simd_grid *grids, float *out);
AQ_SIMD_LIB void aq_scalar_range_bf16(const void *in, size_t count, size_t group,
                                      aq_simd_range *out);
AQ_SIMD_LIB void aq_scalar_encode_bf16(const void *in, size_t count, size_t group, uint32_t bits,
                                       bool symmetric, const aq_simd_grid *grids, void *codes);
AQ_SIMD_LIB void aq_scalar_compare(const float *a, const float *b, size_t count,
                                   aq_simd_sums *out);
AQ_SIMD_LIB void aq_scalar_update(float *c, const float *a, const float *b, size_t b_step,
                                  size_t depth, size_t columns);
AQ_SIMD_LIB void aq_scalar_hadamard(float *x, size_t count, float scale);
AQ_SIMD_LIB void aq_scalar_strips_load(const float *x, const float *weights, aq_simd_strips *out);
AQ_SIMD_LIB void aq_scalar_strips_sums(aq_simd_strips *strips, float most);
AQ_SIMD_LIB void aq_scalar_strips_codes(const aq_simd_strips *strips, float most, const float *x,
                                        uint8_t *codes);
AQ_SIMD_LIB int32_t aq_scalar_dot(const int8_t *a, const int8_t *b, size_t count);
AQ_SIMD_LIB void aq_scalar_dot_codes(const void *codes, size_t row_bytes, size_t rows,
                                     uint32_t bits, const int8_t *x, size_t count, size_t group,
                                     int32_t *out);
AQ_SIMD_LIB void aq_scalar_unpack(const void *codes, size_t count, uint32_t bits, uint8_t *out);

#ifdef __cplusplus
}
#endif
#endif /* AQ_SIMD_H */
