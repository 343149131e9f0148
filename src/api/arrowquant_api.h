#ifndef ARROWQUANT_API_H
#define ARROWQUANT_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AQ_VERSION_MAJOR 0
#define AQ_VERSION_MINOR 1
#define AQ_VERSION_PATCH 0
#define AQ_VERSION "0.1.0"

#ifndef ARROWQUANT_API
#  ifdef ARROWQUANT_STATIC
#    if defined(__GNUC__) || defined(__clang__)
#      define ARROWQUANT_API static __attribute__((unused))
#    else
#      define ARROWQUANT_API static
#    endif
#  else
#    define ARROWQUANT_API extern
#  endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ================================================================ errors */

/* X(constant, value, name, text, hint): the hint says what to do about it. */
#define AQ_STATUS_LIST(X)                                                                          \
    X(AQ_OK, 0, "ok", "success", "")                                                               \
    X(AQ_ERR_BIT_WIDTH, 1, "bit_width", "invalid bit width", "use 2, 4 or 8; a trellis has 3, too") \
    X(AQ_ERR_TIME_GROUPS, 2, "time_groups", "invalid number of time groups", "use 1 to 100")       \
    X(AQ_ERR_GROUP_SIZE, 3, "group_size", "invalid group size", "use 32, 64, 128 or 256")          \
    X(AQ_ERR_ACCURACY, 4, "accuracy", "invalid accuracy threshold", "use a number from 0 to 1")    \
    X(AQ_ERR_CONFIGURATION, 5, "configuration", "invalid configuration",                           \
      "see `aq config` for every field, its range and its default")                                \
    X(AQ_ERR_UNKNOWN_MODALITY, 6, "unknown_modality", "the model's modality cannot be told",       \
      "set `modality` to text, code, image or audio")                                              \
    X(AQ_ERR_MODEL_NOT_FOUND, 7, "model_not_found", "no model there",                              \
      "give a model folder, a .safetensors file or a .safetensors.index.json")                     \
    X(AQ_ERR_METADATA, 8, "metadata", "model metadata is missing or malformed",                    \
      "repair the named file or download it again")                                                \
    X(AQ_ERR_QUANTIZATION, 9, "quantization", "quantization failed",                               \
      "the message names the tensor; keep it with `layer_bits`, or lower the gate")                \
    X(AQ_ERR_VALIDATION, 10, "validation", "quality is below the threshold",                       \
      "use more bits, a smaller group size, or a lower threshold")                                 \
    X(AQ_ERR_IO, 11, "io", "a file could not be read or written",                                  \
      "check the path, its permissions and the free space")                                        \
    X(AQ_ERR_ARROW, 12, "arrow", "invalid Arrow data", "check the schema against docs/FORMATS.md") \
    X(AQ_ERR_SHAPE, 13, "shape", "shapes do not agree", "compare the shapes in the message")       \
    X(AQ_ERR_OUT_OF_MEMORY, 14, "out_of_memory", "out of memory",                                  \
      "use enable_streaming, fewer threads, or raise max_memory_limit_mb")                         \
    X(AQ_ERR_CANCELLED, 15, "cancelled", "cancelled", "nothing was left behind; run it again")     \
    X(AQ_ERR_UNSUPPORTED, 16, "unsupported", "not supported", "the message names what is")         \
    X(AQ_ERR_CORRUPT, 17, "corrupt", "the file is corrupt", "download or write the file again")    \
    X(AQ_ERR_ARGUMENT, 18, "argument", "invalid argument", "see the function's comment")           \
    X(AQ_ERR_EXISTS, 19, "exists", "the output exists already",                                    \
      "choose another path, or set `overwrite`")

typedef enum aq_status {
#define AQ_STATUS_ENUM(id, value, name, text, hint) id = value,
    AQ_STATUS_LIST(AQ_STATUS_ENUM)
#undef AQ_STATUS_ENUM
    AQ_STATUS_COUNT
} aq_status;

/* What went wrong, owned by the caller; every fallible function takes one as its last argument,
 * NULL allowed. `message` names file, tensor, expected, found and remedy; a path that is too long
 * keeps its tail. `tensor` is "" and `offset` 0 where they mean nothing. Untouched on success. */
typedef struct aq_error {
    aq_status status;
    char message[1024];
    char tensor[256];
    uint64_t offset; /* byte offset in the file, or index of the element in the tensor */
} aq_error;

ARROWQUANT_API const char *aq_status_name(aq_status status); /* "bit_width", … */
ARROWQUANT_API const char *aq_status_text(aq_status status); /* "invalid bit width", … */
ARROWQUANT_API const char *aq_status_hint(aq_status status); /* "use 1 to 100", … */
ARROWQUANT_API const char *aq_version(void);                 /* AQ_VERSION of the implementation */

/* =============================================================== context */

/* Every allocation of a call goes through one of these. `resize(user, NULL, 0, n)` allocates,
 * `resize(user, p, old, n)` moves, `resize(user, p, old, 0)` frees and returns NULL. A failed
 * allocation returns NULL and leaves p as it was. Must be callable from several threads. */
typedef struct aq_allocator {
    void *(*resize)(void *user, void *pointer, size_t old_size, size_t new_size);
    void *user;
} aq_allocator;

typedef enum aq_isa { AQ_ISA_AUTO, AQ_ISA_SCALAR, AQ_ISA_AVX2, AQ_ISA_AVX512, AQ_ISA_NEON } aq_isa;

typedef enum aq_log_level { AQ_LOG_INFO, AQ_LOG_WARNING } aq_log_level;

/* One line, no newline; called from the thread that called the library. */
typedef void (*aq_log_fn)(void *user, aq_log_level level, const char *message);

struct aq_kernels; /* the function table of one ISA, see src/simd */

/* Shared by any number of threads once created; only `cancel_requested` changes. A NULL context
 * everywhere means the defaults: best ISA, malloc, all cores, no log. */
typedef struct aq_context {
    aq_allocator allocator;
    const struct aq_kernels *kernels;
    aq_isa isa;           /* the one in use, never AUTO */
    uint32_t num_threads; /* 0: all cores */
    aq_log_fn log;
    void *log_user;
    int cancel_requested; /* set through aq_context_cancel */
} aq_context;

/* `isa` AUTO honours the environment variable ARROW_QUANT_ISA (scalar|avx2|avx512|neon); naming an
 * ISA that this machine lacks is AQ_ERR_UNSUPPORTED. `allocator` NULL means ARROWQUANT_MALLOC.
 * The caller may set num_threads, log and log_user afterwards, before the first use. */
ARROWQUANT_API aq_status aq_context_create(aq_isa isa, const aq_allocator *allocator,
                                           aq_context **out, aq_error *err);
ARROWQUANT_API void aq_context_destroy(aq_context *context); /* NULL allowed */

/* Asks the calls that use this context to stop with AQ_ERR_CANCELLED; returns at once, may be
 * called from any thread and from a signal handler. Stays set until aq_context_reset_cancel. */
ARROWQUANT_API void aq_context_cancel(aq_context *context);
ARROWQUANT_API void aq_context_reset_cancel(aq_context *context);
ARROWQUANT_API const char *aq_isa_name(aq_isa isa); /* "scalar", "avx2", … */

/* Frees what a function of this library returned as text; `size` as returned with it. */
ARROWQUANT_API void aq_text_free(aq_context *context, char *text, size_t size);

/* ================================================================ tensors */

/* X(constant, value, safetensors name, bytes an element) */
#define AQ_DTYPE_LIST(X)                                                                           \
    X(AQ_DTYPE_F64, 0, "F64", 8)                                                                   \
    X(AQ_DTYPE_F32, 1, "F32", 4)                                                                   \
    X(AQ_DTYPE_F16, 2, "F16", 2)                                                                   \
    X(AQ_DTYPE_BF16, 3, "BF16", 2)                                                                 \
    X(AQ_DTYPE_F8_E4M3, 4, "F8_E4M3", 1)                                                           \
    X(AQ_DTYPE_F8_E5M2, 5, "F8_E5M2", 1)                                                           \
    X(AQ_DTYPE_I8, 6, "I8", 1)                                                                     \
    X(AQ_DTYPE_I16, 7, "I16", 2)                                                                   \
    X(AQ_DTYPE_I32, 8, "I32", 4)                                                                   \
    X(AQ_DTYPE_I64, 9, "I64", 8)                                                                   \
    X(AQ_DTYPE_U8, 10, "U8", 1)                                                                    \
    X(AQ_DTYPE_U16, 11, "U16", 2)                                                                  \
    X(AQ_DTYPE_U32, 12, "U32", 4)                                                                  \
    X(AQ_DTYPE_U64, 13, "U64", 8)                                                                  \
    X(AQ_DTYPE_BOOL, 14, "BOOL", 1)

typedef enum aq_dtype {
#define AQ_DTYPE_ENUM(id, value, name, size) id = value,
    AQ_DTYPE_LIST(AQ_DTYPE_ENUM)
#undef AQ_DTYPE_ENUM
    AQ_DTYPE_COUNT
} aq_dtype;

ARROWQUANT_API const char *aq_dtype_name(aq_dtype dtype); /* "BF16", … */
ARROWQUANT_API size_t aq_dtype_size(aq_dtype dtype);      /* bytes an element; 0 when unknown */

/* How a group of weights is coded. The files name it, so that later codes can be added. */
typedef enum aq_code {
    AQ_CODE_AFFINE,    /* w = scale·q + min,          q in 0 … 2^bits − 1 */
    AQ_CODE_SYMMETRIC, /* w = scale·(q − 2^(bits−1)), q in 0 … 2^bits − 1 */
    AQ_CODE_ZERO_POINT, /* w = scale·(q − zero),       q and zero in 0 … 2^bits − 1 */
    AQ_CODE_RESIDUAL,   /* w = ±a ± b, 2 bits: bit 1 of q is the sign of a, bit 0 that of b; a and b
                           stand in place of scale and min. F16 and F32 parameters only */
    AQ_CODE_TRELLIS,    /* w = scale·value(state), 2, 3 or 4 bits: the codes of a column are one sequence
                           that runs down a strip of 256 rows, and every window of 8, 10 or 12 bits of it
                           is the state of a row: docs/FORMAT.md. F16 and F32 parameters only */
    /* The blocks of GGUF files, docs/FORMATS.md: everything is in `codes`, F16 parameters among them;
     * bits and group_size must be those given here, columns a multiple of group_size. */
    AQ_CODE_Q8_0, /* 8 bits, blocks of 32:  w = d·q */
    AQ_CODE_Q4_0, /* 4 bits, blocks of 32:  w = d·(q − 8) */
    AQ_CODE_Q4_1, /* 4 bits, blocks of 32:  w = d·q + m */
    AQ_CODE_Q4_K, /* 4 bits, blocks of 256: w = d·s·q − m·t, s and t of 6 bits for each 32 weights */
    AQ_CODE_Q2_K, /* 2 bits, blocks of 256: the same, s and t of 4 bits for each 16 weights */
    AQ_CODE_COUNT
} aq_code;

/* How the parameters of a group are stored. */
typedef enum aq_param_type {
    AQ_PARAM_F16, /* scale and min as F16; |scale| < 2^-14 and |min| > 65504 do not fit */
    AQ_PARAM_F32, /* scale and min as F32 */
    AQ_PARAM_Q8,  /* 8-bit scale and min against an F16 pair per row; see aq_quantize */
    AQ_PARAM_BF16 /* the scale as BF16; symmetric and zero-point codes only */
} aq_param_type;

/* How a group's parameters are found. What is stored, and so reading it back, is the same. */
typedef enum aq_fit {
    AQ_FIT_LEAST_SQUARES, /* least (weighted) squared error */
    AQ_FIT_FAST           /* from the least and the greatest weight: a multiple of the speed at 2 and 4
                             bits, but 0.8 dB worse at 4 bits and groups of 128, 3 to 4 dB at 2. Affine:
                             scale = (greatest − least)/(2^bits − 1), min centred. Symmetric: the largest
                             magnitude becomes code −8 at 4 bits, ±1 at 2 and ±127 at 8. Trellis: one
                             search instead of two. With second moments nothing is solved again */
} aq_fit;

typedef struct aq_quant_spec {
    aq_code code;
    aq_param_type params;
    uint32_t bits;       /* 2, 4 or 8; 2, 3 or 4 of a trellis */
    uint32_t group_size; /* 32, 64, 128 or 256 */
    aq_fit fit;          /* of aq_quantize; aq_dequantize does not look at it */
    uint32_t states;     /* of a trellis: 256, 1024 or 4096; 0 for other codes */
    uint32_t rotation;   /* of a trellis: seed of the random rotation of the layer's input, 0: none. See
                            docs/FORMAT.md */
} aq_quant_spec;

/* The spec of a block code: its bits and group size, F16 parameters. Other codes: zeros. */
ARROWQUANT_API aq_quant_spec aq_block_spec(aq_code code);
ARROWQUANT_API const char *aq_code_name(aq_code code); /* "affine", "symmetric", "Q8_0", … */

/* Sizes of the three buffers of one quantized tensor seen as [rows, cols]; groups run along cols,
 * the last one of a row may be short. All buffers hold the bytes of the file format (little
 * endian), on every machine. */
typedef struct aq_quant_layout {
    uint64_t rows, cols;
    uint64_t groups;           /* a row: ceil(cols / group_size) */
    uint64_t row_code_bytes;   /* codes LSB first, padded to whole 32-bit words */
    uint64_t row_param_bytes;  /* [groups, 2] (scale, min), [groups, 1] when symmetric, or of each
                                  group the scale and one byte, the zero point; [groups, 1] scales
                                  of a trellis */
    uint64_t row_extra_bytes;  /* Q8 only: F16 [2] (scale, min), or [1] when symmetric */
    uint64_t code_bytes, param_bytes, extra_bytes; /* the whole tensor: rows × the above */
} aq_quant_layout;

/* Raw sums over a tensor, from which the quality figures follow. */
typedef struct aq_quality {
    double dot;       /* Σ w·ŵ */
    double original;  /* Σ w² */
    double quantized; /* Σ ŵ² */
    double error;     /* Σ (w − ŵ)² */
    double max_error; /* max |w − ŵ| */
    uint64_t count;   /* elements */
} aq_quality;

ARROWQUANT_API double aq_quality_cosine(const aq_quality *quality);  /* two zero vectors: 1 */
ARROWQUANT_API double aq_quality_sqnr_db(const aq_quality *quality); /* no error: +infinity */
ARROWQUANT_API void aq_quality_add(aq_quality *total, const aq_quality *part);

/* Fills `out`; AQ_ERR_BIT_WIDTH, AQ_ERR_GROUP_SIZE, or AQ_ERR_SHAPE when a size overflows or the
 * columns are not whole blocks. */
ARROWQUANT_API aq_status aq_quantized_size(const aq_quant_spec *spec, uint64_t rows, uint64_t cols,
                                           aq_quant_layout *out, aq_error *err);

/* Quantizes weights [rows, cols] of a float dtype, row-major, in this machine's byte order, into
 * the caller's buffers of the sizes that aq_quantized_size gives (`extra` may be NULL unless the
 * parameters are Q8). Allocates nothing, but for a trellis. Parameters minimise the squared error, each
 * column weighted by column_weights[cols] (mean squared activations, say) unless that is NULL, which it
 * must be with AQ_FIT_FAST.
 * `quality` may be NULL. The result is the same, bit for bit, on every ISA and for every thread
 * count. Large tensors use context->num_threads threads.
 * A trellis allocates: some 400 KiB a thread (1.4 MiB with 4,096 states), and 4·rows·cols bytes with a
 * rotation, which takes no column_weights. With ARROWQUANT_NO_STDIO the context's own allocator gives
 * them, and must be set.
 * Q8: scale = S·(u + 1)/256 and min = M·i/128 with u (uint8) and i (int8) the two bytes of a group
 * and S, M the row's F16 pair; symmetric: scale = S·i/128. All these products are exact in F32.
 * Errors: AQ_ERR_QUANTIZATION for NaN or infinity (err->offset is the index), and for parameters
 * that do not fit the chosen type (the message says so; use AQ_PARAM_F32, which always fits). */
ARROWQUANT_API aq_status aq_quantize(aq_context *context, const aq_quant_spec *spec,
                                     const void *weights, aq_dtype dtype, uint64_t rows,
                                     uint64_t cols, const float *column_weights, void *codes,
                                     void *params, void *extra, aq_quality *quality,
                                     aq_error *err);

/* What a layer puts out on the inputs x that a Hessian H = Σ x·xᵀ/n stands for, and what rounding its
 * weights does to that: output_error / output_signal is ‖(W − Ŵ)X‖²/‖WX‖². */
typedef struct aq_gptq_result {
    aq_quality quality;   /* of the weights themselves */
    double output_signal; /* Σ over rows of w·H·wᵀ */
    double output_error;  /* Σ over rows of (w − ŵ)·H·(w − ŵ)ᵀ */
    double damping;       /* part of H's mean diagonal that was added to its diagonal */
} aq_gptq_result;

/* As aq_quantize, with the second moments of the layer's input: hessian [cols, cols], F32, symmetric,
 * the mean of x·xᵀ over input rows x (any positive multiple of it does as well). The parameters of a
 * group minimise the squared error weighted by H's diagonal; then the columns are rounded one after
 * the other, by descending diagonal, and the error of each is made up for by those that follow: GPTQ,
 * arXiv 2210.17323. H is damped by 1 % of its mean diagonal, tenfold more until its Cholesky factor
 * exists. A column whose input is always 0 is rounded to nearest. Then, group by group, scale and min
 * are solved again for the whole H and the codes there are, each code is chosen again with all others
 * as they are (arXiv 2309.01885), and scale and min once more: a fifth less error of the output at 2
 * bits, up to a tenth at 4. AQ_FIT_FAST leaves that out: half the time. The weights' own error grows a
 * little; that of the output falls several times.
 * Bit-identical on every ISA and for every thread count. `result` may be NULL, which saves a third of
 * the time. Allocates about 4·cols² bytes while H is factored, then 2·cols², and 9·cols bytes for each
 * row at work (at most 256 a thread) and half a megabyte a thread at most.
 * Errors: as aq_quantize; AQ_ERR_QUANTIZATION also for NaN, infinity or a negative diagonal in H
 * (err->offset is the index), and for an H that damping does not mend. */
ARROWQUANT_API aq_status aq_quantize_gptq(aq_context *context, const aq_quant_spec *spec,
                                          const void *weights, aq_dtype dtype, uint64_t rows,
                                          uint64_t cols, const float *hessian, void *codes,
                                          void *params, void *extra, aq_gptq_result *result,
                                          aq_error *err);
/* Measures a tensor that was quantized by whatever method. */
ARROWQUANT_API aq_status aq_measure_output(aq_context *context, const aq_quant_spec *spec,
                                           const void *weights, aq_dtype dtype, uint64_t rows,
                                           uint64_t cols, const float *hessian, const void *codes,
                                           const void *params, const void *extra,
                                           aq_gptq_result *result, aq_error *err);

/* The inverse, into `out` [rows, cols] of dtype F32, F16 or BF16 (computed in F32, rounded once).
 * To dequantize some rows, pass pointers to their first row; of a trellis whole strips alone can be
 * read, so from a multiple of 256 to another one or to the last row. Allocates nothing, but a row a
 * thread when a rotated trellis goes to F16 or BF16. */
ARROWQUANT_API aq_status aq_dequantize(aq_context *context, const aq_quant_spec *spec,
                                       const void *codes, const void *params, const void *extra,
                                       uint64_t rows, uint64_t cols, aq_dtype dtype, void *out,
                                       aq_error *err);

/* The parameters of each group as F32: w = scale·q + min = scale·(q − zero point), each array
 * [rows, groups] or NULL. A symmetric code's zero point is 2^(bits−1). */
ARROWQUANT_API aq_status aq_quant_parameters(aq_context *context, const aq_quant_spec *spec,
                                             const void *params, const void *extra, uint64_t rows,
                                             uint64_t cols, float *scales, float *mins,
                                             float *zero_points, aq_error *err);

/* ============================================================== inference */

/* How the activations x of a layer enter its product. */
typedef enum aq_activation_type {
    AQ_ACTIVATION_FLOAT,   /* as they are; weights are decoded on the fly */
    AQ_ACTIVATION_DYNAMIC, /* INT8, the scale from each token's largest magnitude; a token on one side of
                            * 0 takes a zero point and the scale of its range (docs/INFERENCE.md) */
    AQ_ACTIVATION_STATIC   /* INT8, scale and zero point as given */
} aq_activation_type;

/* INT8: q = clamp(round(x·(1/scale)) + zero_point, −128, 127), halves to even, stands for
 * scale·(q − zero_point). */
typedef struct aq_activation {
    aq_activation_type type;
    float scale;        /* STATIC only: positive, finite */
    int32_t zero_point; /* STATIC only: −128 … 128 */
} aq_activation;

/* The weights of a linear layer, y = W·x + b, and what goes with them: a description of memory that
 * stays the caller's, so it may be const, in flash, and in a mapped file. Fill it with zeros, then
 * with what applies, or use aq_linear_from_tensors. Everything but input_scales is little endian,
 * as in files, at any address. */
typedef struct aq_linear {
    const char *name;    /* for messages; or NULL */
    uint64_t rows, cols; /* outputs and inputs */
    bool quantized;
    aq_quant_spec spec;                 /* when quantized, as these: see aq_quantized_size */
    const void *codes, *params, *extra;
    aq_dtype dtype;                     /* when not: F32, F16 or BF16 */
    const void *data;                   /* [rows, cols] */
    aq_dtype bias_dtype;
    const void *bias;                   /* [rows] of F32, F16 or BF16; or NULL */
    const float *input_scales;          /* [cols]: x is multiplied by them first; or NULL */
    const void *interleaved;            /* from aq_linear_repack; or NULL */
} aq_linear;

/* Bytes of scratch that aq_linear_forward needs for so many tokens, for any activations of any
 * dtype; 0 when the layer is malformed. Depends on the context's number of threads. */
ARROWQUANT_API size_t aq_linear_scratch_size(const aq_context *context, const aq_linear *linear,
                                             uint64_t tokens);

/* y [tokens, rows] = x [tokens, cols]·Wᵀ + b, in F32, for x of dtype F32, F16 or BF16 in this
 * machine's byte order. Allocates nothing; `scratch` may be at any address. `activation` NULL means
 * FLOAT. Large products use context->num_threads threads.
 * FLOAT: the weights are those that aq_dequantize gives. INT8: products of integers are summed
 * exactly within each group of weights, then scaled in F32. INT8 takes quantized weights only;
 * others are multiplied as FLOAT; a trellis takes no STATIC ones (AQ_ERR_UNSUPPORTED). A token with a
 * NaN or an infinity in x gives NaN in all its y when activations are INT8. A token's y does not
 * depend on the other tokens, nor on ISA or number of threads: the same bits. */
ARROWQUANT_API aq_status aq_linear_forward(aq_context *context, const aq_linear *linear,
                                           const void *x, aq_dtype dtype, uint64_t tokens,
                                           const aq_activation *activation, float *y,
                                           void *scratch, size_t scratch_bytes, aq_error *err);
/* An interleaved copy of the codes (and parameters, when they are F16 or F32 of an affine or symmetric
 * code), 16 rows side by side, with which INT8 products read one stream: faster where a layer is multiplied
 * with few tokens, for about the layer's size of memory. The size in bytes; 0 where there are no kernels
 * for it (scalar code and NEON, a trellis, weights that are not quantized) or nothing to copy. */
ARROWQUANT_API size_t aq_linear_repacked_size(const aq_context *context, const aq_linear *linear);
/* Fills `memory`, the caller's, at any address, of `bytes` (at least that size; AQ_ERR_ARGUMENT), and makes
 * *out the same layer with the copy; `out` may be `linear`. Where the size is 0 nothing is copied and *out is
 * as before. The memory must stay, unmoved, while *out is used, and so must codes and params: products with
 * FLOAT activations, and a context whose instruction set has no such kernels, take those. All results have
 * the same bits with the copy as without. */
ARROWQUANT_API aq_status aq_linear_repack(aq_context *context, const aq_linear *linear, void *memory,
                                          size_t bytes, aq_linear *out, aq_error *err);
/* One row of the weights as F32 [cols], times input_scales: embedding tables. Needs no scratch. */
ARROWQUANT_API aq_status aq_linear_row(aq_context *context, const aq_linear *linear, uint64_t row,
                                       float *out, aq_error *err);

/* A 2-D convolution, NCHW, without groups: weights [out, in, kernel_height, kernel_width] seen as
 * rows = out, cols = in·kernel_height·kernel_width. Zeros stand around the image. */
typedef struct aq_conv2d {
    aq_linear linear;
    uint32_t kernel_height, kernel_width;
    uint32_t stride_y, stride_x;
    uint32_t padding_y, padding_x;
    uint32_t dilation_y, dilation_x; /* 1: none */
} aq_conv2d;

/* Height and width of the result; AQ_ERR_SHAPE when the kernel is larger than the padded image. */
ARROWQUANT_API aq_status aq_conv2d_size(const aq_conv2d *conv, uint64_t height, uint64_t width,
                                        uint64_t *out_height, uint64_t *out_width, aq_error *err);
ARROWQUANT_API size_t aq_conv2d_scratch_size(const aq_context *context, const aq_conv2d *conv,
                                             uint64_t height, uint64_t width);
/* y [images, out, out_height, out_width] from x [images, in, height, width]; else as
 * aq_linear_forward, a position of the result being a token. */
ARROWQUANT_API aq_status aq_conv2d_forward(aq_context *context, const aq_conv2d *conv,
                                           const void *x, aq_dtype dtype, uint64_t images,
                                           uint64_t height, uint64_t width,
                                           const aq_activation *activation, float *y,
                                           void *scratch, size_t scratch_bytes, aq_error *err);

/* ================================================================= config */

typedef enum aq_profile { AQ_PROFILE_EDGE, AQ_PROFILE_LOCAL, AQ_PROFILE_CLOUD } aq_profile;

typedef enum aq_modality {
    AQ_MODALITY_UNKNOWN, /* in a config: detect it */
    AQ_MODALITY_TEXT,
    AQ_MODALITY_CODE,
    AQ_MODALITY_IMAGE,
    AQ_MODALITY_AUDIO
} aq_modality;

/* How the codes of a layer are chosen. Whatever it is, a reader sees codes and parameters. */
typedef enum aq_method {
    AQ_METHOD_AUTO, /* in a config: by bits, modality and what statistics there are */
    AQ_METHOD_PTQ,  /* least squares; each column weighted by its mean square, if that is known */
    AQ_METHOD_R2Q,  /* 2 bits: two 1-bit residual steps, w ≈ ±a ± b */
    AQ_METHOD_GPTQ, /* feedback of rounding errors by second moments, see aq_quantize_gptq */
    AQ_METHOD_TRELLIS /* 2, 3, 4 bits: AQ_CODE_TRELLIS, rows rotated; with feedback where second moments
                         are known. Native format only; 8 bits are as with auto */
} aq_method;

typedef enum aq_interpolation {
    AQ_INTERPOLATION_LINEAR,
    AQ_INTERPOLATION_CUBIC,
    AQ_INTERPOLATION_SIGMOID
} aq_interpolation;

/* Where the timesteps 0 … T − 1 are cut into G contiguous groups. */
typedef enum aq_time_cut {
    AQ_TIME_CUT_UNIFORM, /* group i starts at ⌊i·T/G⌋ */
    AQ_TIME_CUT_OPTIMAL  /* least expected error over what was observed, by dynamic programming */
} aq_time_cut;

/* What range of values a group's integers cover. */
typedef enum aq_activation_range {
    AQ_RANGE_MIN_MAX,
    AQ_RANGE_PERCENTILE, /* of the sketch: 100 − percentile … percentile */
    AQ_RANGE_LEAST_ERROR /* least expected squared error over the sketch, clipping included */
} aq_activation_range;

/* What a run writes. */
typedef enum aq_output_format {
    AQ_OUTPUT_NATIVE,             /* safetensors with our codes, docs/FORMAT.md */
    AQ_OUTPUT_GGUF,
    AQ_OUTPUT_COMPRESSED_TENSORS,
    AQ_OUTPUT_ARROW
} aq_output_format;

/* The type of a GGUF file's quantized tensors. F32, F16 and BF16 quantize nothing. */
typedef enum aq_gguf_type_choice {
    AQ_GGUF_TYPE_AUTO, /* 2 bits: Q2_K; 4: Q4_K, with groups of 32 Q4_1 (symmetric: Q4_0); 8: Q8_0 */
    AQ_GGUF_TYPE_F32,
    AQ_GGUF_TYPE_F16,
    AQ_GGUF_TYPE_BF16,
    AQ_GGUF_TYPE_Q8_0,
    AQ_GGUF_TYPE_Q4_0,
    AQ_GGUF_TYPE_Q4_1,
    AQ_GGUF_TYPE_Q4_K,
    AQ_GGUF_TYPE_Q2_K
} aq_gguf_type_choice;

/* Bits of the layers whose name matches `pattern` (a whole tensor name, or a glob with * ? [ ]);
 * 16 keeps them. The first match wins. */
typedef struct aq_layer_bits {
    const char *pattern;
    uint32_t bits; /* 2, 4, 8 or 16; 3 with AQ_METHOD_TRELLIS */
} aq_layer_bits;

/* Every switch of a run. Fill it with aq_config_from_profile, then change fields at will. Strings
 * and lists are borrowed from the caller, except after a load (then aq_config_free frees them). */
typedef struct aq_config {
    aq_profile deployment_profile;
    uint32_t bit_width;           /* 2, 4 or 8; 3 with AQ_METHOD_TRELLIS */
    uint32_t group_size;          /* 32, 64, 128 or 256 */
    uint32_t num_time_groups;     /* 1 … 100 */
    aq_time_cut time_cut;
    aq_activation_range activation_range;
    double activation_percentile; /* of AQ_RANGE_PERCENTILE, 50 … 100 */
    uint32_t calibration_samples; /* 1 … 1,000,000 */
    uint32_t num_threads;         /* 0: all cores */
    uint32_t parameter_bits;      /* 16 or 8 */
    double min_accuracy;          /* least cosine similarity of a layer, 0 … 1 */
    double min_sqnr_db;           /* least SQNR of a layer in dB; NaN: no such gate */
    bool symmetric;
    aq_fit fit;
    bool enable_time_aware;
    bool enable_spatial;
    bool enable_streaming; /* smaller blocks in memory; the same bytes out */
    bool fail_fast;        /* a layer below a gate is an error, not a reason for more bits */
    bool skip_sensitive_layers;
    bool overwrite;
    bool resume; /* take up what an interrupted run to the same output had finished */
    aq_modality modality;
    aq_output_format output_format; /* YAML: format */
    aq_method method;
    uint32_t trellis_states;       /* 256, 1024 or 4096 */
    double target_bits;            /* mean stored bits a weight, see aq_plan_create; NaN: none */
    aq_gguf_type_choice gguf_type;
    uint64_t target_model_size_mb; /* 0: none */
    uint64_t max_memory_limit_mb;  /* 0: none */

    struct {
        bool enabled;
        bool log_violations;
        double smoothness_threshold; /* 0 … 1 */
    } markov_validation;             /* YAML: thermodynamic.validation */
    struct {
        bool enabled;
        uint32_t window_size; /* 1 … 20 */
        aq_interpolation interpolation;
    } boundary_smoothing; /* YAML: thermodynamic.boundary_smoothing */

    const char *const *calibration;      /* files for aq_calibration_open; none: data-free */
    size_t calibration_count;
    const char *gguf_architecture;       /* general.architecture; NULL: detect it */
    const char *variant;                 /* "fp16": read model.fp16.safetensors; NULL: none */
    const char *const *components;       /* pipeline folders to quantize; none: the denoiser */
    size_t component_count;
    const char *const *sensitive_layers; /* whole tensor or module names to keep */
    size_t sensitive_layer_count;
    const char *const *sensitive_patterns; /* globs over tensor names to keep */
    size_t sensitive_pattern_count;
    const aq_layer_bits *layer_bits;
    size_t layer_bits_count;

    uint64_t explicit_fields; /* bit i: field i of the table was set by a file, the environment or
                                 aq_config_set, not by the profile */
    void *owned;              /* storage of a loaded config, freed by aq_config_free */
} aq_config;

ARROWQUANT_API aq_config aq_config_from_profile(aq_profile profile);
ARROWQUANT_API aq_status aq_profile_from_name(const char *name, aq_profile *out, aq_error *err);
ARROWQUANT_API const char *aq_profile_name(aq_profile profile);
ARROWQUANT_API const char *aq_fit_name(aq_fit fit);                /* "least_squares", "fast" */
ARROWQUANT_API const char *aq_modality_name(aq_modality modality); /* "unknown", "text", … */
ARROWQUANT_API const char *aq_method_name(aq_method method); /* "auto", "ptq", … */
ARROWQUANT_API const char *aq_output_format_name(aq_output_format format); /* "native", "gguf", … */
ARROWQUANT_API const char *aq_gguf_type_choice_name(aq_gguf_type_choice type); /* "auto", "F32", … */

/* Sets one field by its name (a dotted path for nested ones, as in YAML) from text that is read as
 * a YAML value. AQ_ERR_CONFIGURATION and its kin name the field, the range and what was found; an
 * unknown name suggests the nearest. Names and lists are copied, so that aq_config_free is due
 * afterwards; a new deployment_profile changes the fields that have not been set. */
ARROWQUANT_API aq_status aq_config_set(aq_config *config, const char *name, const char *value,
                                       aq_error *err);

/* The value of a field as JSON text: true, 4, 0.85, null, "edge", ["a"], {"pattern": 4}. YAML reads
 * it too, so aq_config_set takes it back. Free with aq_text_free. */
ARROWQUANT_API aq_status aq_config_get(aq_context *context, const aq_config *config,
                                       const char *name, char **text, size_t *size,
                                       aq_error *err);

/* One field, as a command line or a binding presents it. */
typedef struct aq_config_field {
    const char *name;        /* for aq_config_set and aq_config_get */
    const char *type;        /* "boolean", "integer", "number", "choice", "text", "list", "map" */
    const char *environment; /* the variable that overrides it, or "" */
    const char *doc;         /* one line */
} aq_config_field;

/* Field `index` in the order of the table, which is its bit in explicit_fields; false past the
 * last one. */
ARROWQUANT_API bool aq_config_field_at(size_t index, aq_config_field *out);

/* A copy that owns its strings and lists; aq_config_free, before the context goes. */
ARROWQUANT_API aq_status aq_config_clone(aq_context *context, const aq_config *config,
                                         aq_config *out, aq_error *err);

/* Reads YAML text of `size` bytes; `source` names it in messages. `deployment_profile` in it
 * applies first, the other keys override it. *out is filled only on success; aq_config_free frees
 * it, before the context goes. */
ARROWQUANT_API aq_status aq_config_from_yaml(aq_context *context, const char *text, size_t size,
                                             const char *source, aq_config *out, aq_error *err);
/* Writes the config as commented YAML; loading it gives an equal config. Free with aq_text_free. */
ARROWQUANT_API aq_status aq_config_to_yaml(aq_context *context, const aq_config *config,
                                           char **text, size_t *size, aq_error *err);
#ifndef ARROWQUANT_NO_STDIO
ARROWQUANT_API aq_status aq_config_load_yaml(aq_context *context, const char *path, aq_config *out,
                                             aq_error *err);
ARROWQUANT_API aq_status aq_config_save_yaml(aq_context *context, const aq_config *config,
                                             const char *path, aq_error *err);
#endif

/* Overrides fields from ARROW_QUANT_BIT_WIDTH and its kin; a bad value is an error. */
ARROWQUANT_API aq_status aq_config_apply_env(aq_config *config, aq_error *err);
ARROWQUANT_API aq_status aq_config_validate(const aq_config *config, aq_error *err);
ARROWQUANT_API bool aq_config_equal(const aq_config *a, const aq_config *b);
ARROWQUANT_API void aq_config_free(aq_config *config); /* NULL and never-loaded ones allowed */

/* ============================================================ calibration */

/* What a layer's input was, in a real run of the model: figures by timestep, over all rows (tokens,
 * patches, samples) that were fed at it. An array that is not known is NULL. All belong to the
 * calibration. */
typedef struct aq_calibration_layer {
    const char *name;   /* of the module: the weight's name without ".weight" */
    uint64_t channels;  /* of the input: columns of the weight */
    size_t timestep_count;     /* 0: only the second moments are known */
    const int64_t *timesteps;  /* [timesteps], ascending */
    const uint64_t *rows;      /* [timesteps] fed at each; NULL: unknown, taken as equal */
    const float *min, *max, *mean, *std;        /* [timesteps], over all channels */
    const float *absmax, *sqmean;               /* [timesteps, channels]; sqmean: mean square */
    const float *channel_min, *channel_max;     /* [timesteps, channels] */
    const float *percentiles;  /* [timesteps, percentile_count], in the order of the points */
    const uint64_t *sketch;    /* [timesteps, AQ_SKETCH_CELLS]; how many values fell where */
    const int32_t *sketch_top; /* [timesteps]; see docs/CALIBRATION.md */
    const float *pooled_absmax; /* [channels], over all timesteps */
    const float *pooled_sqmean; /* [channels], over all timesteps by their rows, or the diagonal of
                                   the second moments: what weights a column in aq_quantize */
    bool has_hessian;          /* aq_calibration_hessian gives XᵀX / n */
    uint64_t hessian_rows;     /* n; 0: unknown */
    size_t owner;              /* private: where the second moments are */
} aq_calibration_layer;

#define AQ_SKETCH_CELLS 641u

typedef struct aq_calibration {
    const aq_calibration_layer *layers; /* sorted by name */
    size_t layer_count;
    const float *percentile_points;     /* 0 … 100, ascending */
    size_t percentile_count;
    struct aq_calibration_state *state; /* private */
} aq_calibration;

/* The layer of that name: a module, or a weight ("….weight"), with or without a component in front
 * ("transformer/…"). NULL: not there. */
ARROWQUANT_API const aq_calibration_layer *aq_calibration_find(const aq_calibration *calibration,
                                                               const char *name);
/* XᵀX / n of the layer's input into out [channels, channels]: symmetric, finite, no negative
 * diagonal. Read from the file at each call, so that only the caller's copy takes memory; may be
 * called from several threads. AQ_ERR_ARGUMENT without has_hessian, AQ_ERR_CORRUPT naming the
 * tensor when the stored numbers are none of that. */
ARROWQUANT_API aq_status aq_calibration_hessian(aq_context *context,
                                                const aq_calibration *calibration,
                                                const aq_calibration_layer *layer, float *out,
                                                aq_error *err);
ARROWQUANT_API void aq_calibration_close(aq_calibration *calibration); /* NULL allowed */

/* Gathers such figures while a model runs, in any runtime that shows its activations. */
typedef struct aq_observer aq_observer;

typedef struct aq_observer_options {
    bool second_moments;      /* XᵀX too: 8 · channels² bytes a layer */
    const float *percentiles; /* 0 … 100, ascending; NULL: 0.01, 0.1, 1, 5, 25, 50 and their mirror */
    size_t percentile_count;
} aq_observer_options;

/* `options` NULL: no second moments. */
ARROWQUANT_API aq_status aq_observer_create(aq_context *context, const aq_observer_options *options,
                                            aq_observer **out, aq_error *err);
ARROWQUANT_API void aq_observer_destroy(aq_observer *observer); /* NULL allowed */
/* Adds `rows` rows (tokens, patches, samples) of the input of `layer` at `timestep`, any float dtype
 * in this machine's byte order, row-major [rows, channels]. From any number of threads at once; what
 * is kept of a layer and timestep is 5 KB and 20 bytes a channel, however much is fed. Counts,
 * extremes and percentiles do not depend on the order; means and squares only by the last bits of a
 * double; second moments, whose products are summed in F32 for up to 128 rows of a call and then in F64,
 * by the last bits of a float, and neither on ISA nor on threads. No rows: nothing to do. Percentiles are exact to 1/32 of their value, or to 2^-10 of the
 * largest magnitude. NaN, or beyond F32: AQ_ERR_ARGUMENT naming the element, and nothing is taken.
 * Another number of channels than before: AQ_ERR_SHAPE. */
ARROWQUANT_API aq_status aq_observer_feed(aq_observer *observer, const char *layer,
                                          int64_t timestep, aq_dtype dtype, const void *data,
                                          uint64_t rows, uint64_t channels, aq_error *err);
/* What has been gathered so far. The calibration stands on its own. */
ARROWQUANT_API aq_status aq_observer_calibration(aq_observer *observer, aq_calibration **out,
                                                 aq_error *err);
/* Adds what a calibration knows, weighed by its rows. */
ARROWQUANT_API aq_status aq_observer_merge(aq_observer *observer,
                                           const aq_calibration *calibration, aq_error *err);

/* ---- activations by groups of timesteps */

#define AQ_TIME_GROUPS_MAX 100u

typedef struct aq_time_options {
    uint32_t num_time_groups; /* 1 … 100; more than T gives T */
    uint32_t total_timesteps; /* T, 1 … 1,000,000 */
    aq_time_cut cut;
    aq_activation_range range; /* without a sketch, and with channel groups: min and max */
    double percentile;         /* 50 … 100 */
    uint32_t channel_group;    /* neighbouring channels that share a scale; 0: all of them */
} aq_time_options;

/* Static integers for the input of a layer: x ≈ scale·(q − zero_point), q in 0 … 255 or 0 … 15, and so
 * is the zero point. (For aq_activation, whose q are signed, subtract 128 from an 8-bit one.) */
typedef struct aq_time_groups {
    uint32_t count, total_timesteps;
    uint32_t channel_group, channel_groups; /* channel_groups: 1, or ⌈channels / channel_group⌉ */
    int32_t *starts;          /* [count], the first is 0 */
    uint8_t *lookup;          /* [total_timesteps]: the group of each timestep */
    float *scale[2];          /* [count, channel_groups]: of 8 bits, of 4 bits */
    int32_t *zero_point[2];
    double *error[2];         /* [count]: expected mean squared error of an element; of an opened
                                 model: NaN */
    const aq_context *context; /* private */
    size_t bytes;
} aq_time_groups;

/* Groups and their integers from what was observed of a layer. A group in which nothing was observed
 * takes the nearest timestep's; the optimal cut makes no more groups than there are observed timesteps,
 * and starts each one half-way between two of them. A range of zero width has a tiny positive
 * scale. AQ_ERR_TIME_GROUPS; AQ_ERR_ARGUMENT when the layer has no timesteps. */
ARROWQUANT_API aq_status aq_time_groups_make(aq_context *context,
                                             const aq_calibration_layer *layer,
                                             const aq_time_options *options, aq_time_groups *out,
                                             aq_error *err);
ARROWQUANT_API void aq_time_groups_free(aq_time_groups *groups); /* NULL and zeroed allowed */
/* The group of a timestep, in O(1); those outside of 0 … T − 1 count as the ends. */
ARROWQUANT_API uint32_t aq_time_group_of(const aq_time_groups *groups, int64_t timestep);
/* The static INT8 activation of a timestep for aq_linear_forward, in O(1). AQ_ERR_UNSUPPORTED when
 * groups of channels have scales of their own. */
ARROWQUANT_API aq_status aq_time_activation(const aq_time_groups *groups, int64_t timestep,
                                            aq_activation *out, aq_error *err);

/* How smooth the parameters of neighbouring groups are. */
typedef enum aq_severity { AQ_SEVERITY_LOW, AQ_SEVERITY_MEDIUM, AQ_SEVERITY_HIGH } aq_severity;

typedef struct aq_markov_violation {
    uint32_t boundary; /* between this group and the next */
    double scale_jump;      /* |Δscale| / scale of the left group */
    double zero_point_jump; /* |Δzero point| / 255 */
    aq_severity severity;   /* scale_jump > 0.5: high; > 0.3: medium */
} aq_markov_violation;

typedef struct aq_markov {
    double smoothness_score; /* mean boundary score; 1 without boundaries */
    bool is_valid;           /* no violation */
    uint32_t boundary_count, violation_count;
    double boundary_scores[AQ_TIME_GROUPS_MAX]; /* 1 − min(1, (scale_jump + zero_point_jump) / 2) */
    aq_markov_violation violations[AQ_TIME_GROUPS_MAX]; /* scale_jump above the threshold */
} aq_markov;

ARROWQUANT_API const char *aq_severity_name(aq_severity severity); /* "low", "medium", "high" */
/* `count` groups, at most AQ_TIME_GROUPS_MAX. Changes nothing. */
ARROWQUANT_API void aq_markov_measure(const float *scales, const int32_t *zero_points,
                                      uint32_t count, double threshold, aq_markov *out);
/* Turns the step at each boundary into a ramp over L groups left and R right of it, as many as there
 * are up to `window` (1 … 20): position k of them takes the share f(k / (L + R + 1)) of the step, f
 * linear, cubic (3α² − 2α³) or sigmoid (1 / (1 + exp(3 − 6α))). The steps are those of the parameters
 * as they were. Each new value lies between the least and the largest old one; equal ones stay. */
ARROWQUANT_API aq_status aq_smooth_boundaries(float *scales, int32_t *zero_points, uint32_t count,
                                              uint32_t window, aq_interpolation interpolation,
                                              aq_error *err);

/* ---- channels */

/* What equalizing the channels of a layer brings, relative to the energy of its output. */
typedef struct aq_equalization {
    double migration;     /* the strength that was used; NaN: none helps, all scales are 1 */
    double error;         /* expected, of the weights and, if wanted, the activations */
    double error_without; /* the same with all scales 1 */
} aq_equalization;

/* Scales of the input channels that move difficulty between weights and activations (SmoothQuant,
 * Xiao et al. 2023; DiTAS for diffusion): the input is multiplied by s, the columns of the weight are
 * divided by it, and the product stays. s = max|W|^(1−m) / max|X|^m, of each channel, with the migration
 * strength m in 0 … 1, then scaled to a geometric mean of 1; m = 0.5 gives sqrt(max|W| / max|X|). A
 * channel without weights or without activations has s = 1. NaN as `migration` searches 0, 0.05 … 1
 * and "none" for the least expected error of the output: that of weights quantized by `spec` (on up
 * to 64 rows), plus that of static activations of `activation_bits` (8, 4, or 0: not quantized).
 * weights [rows, cols] of any float dtype; the layer needs `absmax` and `pooled_sqmean`, and
 * as many channels as there are columns. */
ARROWQUANT_API aq_status aq_equalize(aq_context *context, const aq_quant_spec *spec,
                                     const void *weights, aq_dtype dtype, uint64_t rows,
                                     uint64_t cols, const aq_calibration_layer *layer,
                                     double migration, uint32_t activation_bits,
                                     float *input_scales, aq_equalization *out, aq_error *err);
/* Divides column c of weights [rows, cols] by scales[c]. */
ARROWQUANT_API void aq_fold_columns(float *weights, uint64_t rows, uint64_t cols,
                                    const float *scales);
/* Multiplies the affine parameters of the norm before the layer (bias may be NULL), in place of its
 * input: the norm's output then comes out equalized. */
ARROWQUANT_API void aq_fold_norm(float *weight, float *bias, uint64_t channels,
                                 const float *scales);
/* x·(1 − alpha) + mean·alpha, the mean over all `count` values. */
ARROWQUANT_API void aq_smooth_activations(float *x, size_t count, double alpha);
#ifndef ARROWQUANT_NO_STDIO
/* To and from a calibration file; loading adds to what is there. */
ARROWQUANT_API aq_status aq_observer_save(aq_observer *observer, const char *path, aq_error *err);
ARROWQUANT_API aq_status aq_observer_load(aq_observer *observer, const char *path, aq_error *err);
/* Opens statistics files and merges them: safetensors as docs/CALIBRATION.md describes and
 * aq_observer_save writes, which stay open for second moments; and files named *.jsonl, whose lines
 * {"layer": name, "timestep": t, "data": […], "shape": [rows, channels]} hold activations. Of these
 * the first `samples` records of each layer and timestep are taken; 0: all.
 * A layer that says nothing of its own second moments has those of a layer whose statistics are the
 * same bit for bit (its input is the same), or of to_q or q_proj beside it, where it is to_k, to_v,
 * k_proj or v_proj of a self-attention.
 * Errors: AQ_ERR_CORRUPT and AQ_ERR_SHAPE naming file and tensor for NaN, infinity, impossible
 * figures (min > max, a negative mean square) and shapes that disagree, in one file or between two. */
ARROWQUANT_API aq_status aq_calibration_open(aq_context *context, const char *const *paths,
                                             size_t count, uint32_t samples, aq_calibration **out,
                                             aq_error *err);
/* Writes it as one file, second moments included; replaces `path` in one step. */
ARROWQUANT_API aq_status aq_calibration_save(aq_context *context,
                                             const aq_calibration *calibration, const char *path,
                                             aq_error *err);
#endif

#ifndef ARROWQUANT_NO_STDIO
/* ================================================================= models */

typedef enum aq_phase {
    AQ_PHASE_PLAN,
    AQ_PHASE_QUANTIZE,
    AQ_PHASE_COPY,
    AQ_PHASE_COMMIT,
    AQ_PHASE_VALIDATE,
    AQ_PHASE_DEQUANTIZE,
    AQ_PHASE_VERIFY
} aq_phase;

typedef struct aq_progress {
    double fraction; /* 0 … 1 of the whole call */
    aq_phase phase;
    const char *layer; /* the tensor or file at work, or "" */
    uint64_t bytes_done, bytes_total;
    double elapsed_s;
    double eta_s; /* NaN while unknown */
} aq_progress;

/* Called only from the thread that called the library, some ten times a second, at each change of
 * phase and at the end. Non-zero cancels the call. */
typedef int (*aq_progress_fn)(void *user, const aq_progress *progress);

ARROWQUANT_API const char *aq_phase_name(aq_phase phase);

/* Why a tensor has the bits that it has. */
typedef enum aq_reason {
    AQ_REASON_QUANTIZED,        /* as the config asks */
    AQ_REASON_NOT_FLOAT,        /* kept: integers and booleans */
    AQ_REASON_NOT_MATRIX,       /* kept: scalars, 1-D tensors and empty ones */
    AQ_REASON_NO_GAIN,          /* kept: codes and parameters would be no smaller */
    AQ_REASON_SENSITIVE,        /* kept: embedding, norm, first or last projection, head */
    AQ_REASON_SENSITIVE_CONFIG, /* kept: named by sensitive_layers or sensitive_patterns */
    AQ_REASON_LAYER_BITS,       /* bits given by layer_bits */
    AQ_REASON_RAISED,           /* more bits than asked: below min_accuracy or min_sqnr_db */
    AQ_REASON_KEPT_BY_GATE,     /* kept: below the gates even at 8 bits */
    AQ_REASON_SCALE_TENSOR,     /* consumed: the scale of an FP8 weight, folded into it */
    AQ_REASON_FORMAT,           /* kept: the output format has no code that fits its shape */
    AQ_REASON_BUDGET            /* bits chosen under target_bits or target_model_size_mb */
} aq_reason;

ARROWQUANT_API const char *aq_reason_text(aq_reason reason);

/* One input tensor of a plan and, after the run, what became of it. */
typedef struct aq_plan_tensor {
    const char *name;
    uint32_t shard; /* index into aq_plan.shards */
    aq_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    uint64_t rows, cols;
    uint64_t offset, bytes;     /* in the input shard's file */
    const aq_calibration_layer *statistics; /* of its layer's input, or NULL: data-free */
    const struct aq_time_groups *time_groups; /* static integers for that input, or NULL */
    /* [cols]: the input is multiplied by them, the columns of the weight are divided; then statistics
     * and time_groups are those of the equalized input. NULL: not equalized. */
    const float *input_scales;
    aq_equalization equalization; /* with input_scales: strength and errors that decided */
    size_t scale;               /* FP8: index of the tensor that scales it, or SIZE_MAX */
    uint32_t bits;              /* 2, 3, 4, 8; 16: kept as it is */
    aq_quant_spec spec;         /* when bits < 16 */
    aq_reason reason;
    const char *detail;         /* which rule or pattern decided, or "" */
    const char *output_name;    /* in the output file: its own, unless the format has other names */
    aq_dtype output_dtype;      /* of a kept tensor in the output: its own, unless the format says */
    /* A format may stack tensors along their first dimension under one output_name: then this is the
     * index of the first of them, and their bytes follow one another. Else the tensor's own index. */
    size_t output_leader;
    uint32_t output_slot;       /* its place in the stack, from 0 */
    uint64_t turn;              /* the input is read from this byte on, and then from the start */
    uint64_t output_offset, output_bytes; /* in the output file's data, predicted before the run */
    aq_method method;           /* when bits < 16; never AUTO */
    const char *method_detail;  /* why this method */
    aq_quality quality;         /* after the run, when bits < 16 */
    double output_signal, output_error; /* after the run, by GPTQ: as in aq_gptq_result; else 0 */
    bool f32_params, wide_params; /* after the run: the parameters were stored wider than asked */
} aq_plan_tensor;

/* One safetensors file of the input. */
typedef struct aq_plan_shard {
    const char *path;     /* relative to the model folder */
    const char *metadata; /* of the input, JSON object text or NULL */
    uint64_t file_bytes;  /* of the input */
    size_t first_tensor, tensor_count;
} aq_plan_shard;

/* One file of the output: what becomes of the tensors of consecutive shards. In the native format
 * each shard has one of the same path. */
typedef struct aq_plan_output {
    const char *path;     /* relative to the output folder */
    size_t first_shard, shard_count;
    size_t first_tensor, tensor_count;
} aq_plan_output;

/* What a run will do. Made by aq_plan_create, read by anyone, changed by nobody else. */
typedef struct aq_plan {
    const char *model_path; /* as given */
    aq_config config;       /* effective, validated */
    aq_modality modality;
    aq_plan_tensor *tensors;
    size_t tensor_count;
    aq_plan_shard *shards;
    size_t shard_count;
    aq_plan_output *outputs;
    size_t output_count;
    const char *const *notes; /* what a user should know: data-free defaults, skipped files, … */
    size_t note_count;
    uint64_t input_bytes;            /* of the quantized components' weight files */
    uint64_t predicted_output_bytes; /* of the same, when no layer is raised */
    struct aq_plan_state *state;     /* private */
} aq_plan;

typedef struct aq_layer_result {
    const char *name;
    uint32_t bits; /* 16: kept */
    aq_reason reason;
    const char *detail; /* rule, pattern or missed gate, or "" */
    double cosine_similarity, sqnr_db, max_error; /* NaN when kept; SQNR may be infinite */
    aq_method method;          /* AUTO when kept */
    const char *method_detail; /* why this method, or "" */
    double output_error;       /* ‖(W − Ŵ)X‖²/‖WX‖² on the calibration's inputs; NaN: not measured */
    uint64_t weights, output_bytes;
} aq_layer_result;

/* What a run did. The first seven are those of ArrowQuant V2. Freed by aq_result_free. */
typedef struct aq_result {
    const char *quantized_path;
    double compression_ratio;   /* input over output bytes of the quantized components */
    double cosine_similarity;   /* mean over the quantized layers */
    double model_size_mb;       /* output of the quantized components, 10^6 bytes */
    aq_modality modality;
    uint32_t bit_width;
    double quantization_time_s;
    double bits_per_weight;     /* of the quantized tensors, all parameters counted */
    double sqnr_db;             /* over all quantized weights together */
    uint64_t layers_quantized, layers_kept, layers_raised;
    aq_layer_result *layers;    /* matrices of the quantized components, in file order */
    size_t layer_count;
    const char *const *notes;   /* from the plan and the run */
    size_t note_count;
    void *owned;
} aq_result;

/* Opens the model at `model_path` (a Hugging Face folder, a diffusers pipeline folder, a
 * .safetensors file or a .safetensors.index.json) and decides what becomes of each tensor. Reads
 * headers only, but to equalize channels (enable_spatial with calibration: up to 256 rows of each
 * layer) and with target_bits or target_model_size_mb: then every layer that is to be quantized
 * as usual is quantized in memory with 2, 4 and 8 bits (and 3 with AQ_METHOD_TRELLIS), and each gets the bits (or is kept) that make
 * the sum of their relative errors least: errors of their outputs where second moments are known, else
 * of their weights. target_bits bounds the mean of stored bits a weight over these layers, parameters
 * counted; target_model_size_mb the output of the components. `config` NULL: the local profile. */
ARROWQUANT_API aq_status aq_plan_create(aq_context *context, const char *model_path,
                                        const aq_config *config, aq_plan **out, aq_error *err);
/* The plan as one JSON object. Free with aq_text_free. */
ARROWQUANT_API aq_status aq_plan_to_json(aq_context *context, const aq_plan *plan, char **text,
                                         size_t *size, aq_error *err);
/* Quantizes into a temporary folder beside `output_path`; nothing is visible there before
 * aq_plan_commit, which makes it durable and renames it. `progress` may be NULL. */
ARROWQUANT_API aq_status aq_plan_execute(aq_context *context, aq_plan *plan,
                                         const char *output_path, aq_progress_fn progress,
                                         void *user, aq_error *err);
/* A run that several processes share, on machines that see the same paths. The one that will commit
 * begins: *folder, the temporary folder beside `output_path`, lives as long as the plan. Each of
 * plan->outputs is then made by anyone who has made a plan of his own from the same model path and
 * config (one plan, one output). At last the first calls aq_plan_execute with the same output path,
 * which makes the outputs that are missing or do not fit, and aq_plan_commit. The bytes are those
 * of a run in one process. */
ARROWQUANT_API aq_status aq_plan_begin(aq_context *context, aq_plan *plan, const char *output_path,
                                       const char **folder, aq_error *err);
ARROWQUANT_API aq_status aq_plan_execute_output(aq_context *context, aq_plan *plan,
                                                const char *folder, size_t output,
                                                aq_progress_fn progress, void *user,
                                                aq_error *err);
/* `result` may be NULL. */
ARROWQUANT_API aq_status aq_plan_commit(aq_context *context, aq_plan *plan, aq_result *result,
                                        aq_error *err);
/* Frees the plan; what was executed and not committed is removed. NULL allowed. */
ARROWQUANT_API void aq_plan_destroy(aq_plan *plan);

/* The three steps in one. */
ARROWQUANT_API aq_status aq_quantize_model(aq_context *context, const char *model_path,
                                           const char *output_path, const aq_config *config,
                                           aq_progress_fn progress, void *user, aq_result *result,
                                           aq_error *err);
ARROWQUANT_API void aq_result_free(aq_result *result); /* NULL allowed */
/* The result as one JSON object (`with_layers`: the list of layers too). aq_text_free. */
ARROWQUANT_API aq_status aq_result_to_json(aq_context *context, const aq_result *result,
                                           bool with_layers, char **text, size_t *size,
                                           aq_error *err);

/* ------------------------------------------------------------ reading back */

/* One tensor of an opened model. Pointers lead into the mapped file and live as long as it; they
 * are those of the file, so perhaps not aligned: hand them to aq_dequantize or copy them. */
typedef struct aq_tensor {
    const char *name;
    aq_dtype dtype; /* of the original */
    uint32_t rank;
    const uint64_t *shape;
    uint64_t rows, cols;
    bool quantized;
    aq_quant_spec spec;         /* when quantized */
    aq_quant_layout layout;     /* when quantized */
    const char *code_name;      /* "affine", "symmetric"; NULL when not quantized */
    const char *method;         /* "ptq", …; NULL when not quantized */
    const void *codes, *params, *extra; /* when quantized */
    /* [cols]: codes and params are of the weights divided by them, column by column, and the layer's
     * input is to be multiplied by them; aq_tensor_dequantize gives the original weights. NULL: none */
    const float *input_scales;
    const struct aq_time_groups *time_groups; /* static integers for the layer's input (times
                                                 input_scales, when there are some), or NULL */
    const void *data;           /* when not: `bytes` bytes of `dtype`, little endian */
    uint64_t bytes;             /* stored, all parts together */
    double cosine_similarity, sqnr_db; /* as recorded when it was written; NaN when not quantized */
    const char *file;           /* relative path of its shard */
} aq_tensor;

typedef struct aq_model {
    const char *path;
    bool quantized;            /* has layers that are coded, by this library or another */
    aq_modality modality;
    const aq_tensor *tensors;  /* sorted by name */
    size_t tensor_count;
    uint64_t weight_bytes;     /* of all weight files */
    struct aq_model_state *state; /* private */
} aq_model;

/* Opens a folder or file written by this library, a plain model, a folder with compressed-tensors
 * ("pack-quantized"), or a table of layers in an Arrow IPC file; the files are mapped. In a
 * diffusers pipeline the tensors of the quantized components (or of the denoiser) are shown; with
 * more than one component their names start with "component/". */
ARROWQUANT_API aq_status aq_model_open(aq_context *context, const char *path, aq_model **out,
                                       aq_error *err);
ARROWQUANT_API const aq_tensor *aq_model_find(const aq_model *model, const char *name);
/* `previous` NULL starts; NULL ends. */
ARROWQUANT_API const aq_tensor *aq_model_next(const aq_model *model, const aq_tensor *previous);
/* Rows first_row … first_row + row_count − 1 as F32, F16 or BF16 into `out`. A kept float tensor
 * is converted; an integer one is AQ_ERR_UNSUPPORTED. */
ARROWQUANT_API aq_status aq_tensor_dequantize(aq_context *context, const aq_tensor *tensor,
                                              uint64_t first_row, uint64_t row_count,
                                              aq_dtype dtype, void *out, aq_error *err);
/* The layer of a weight and its bias (NULL: none), which stay the model's. Convolution weights
 * count as [d0, d1·d2·…]. AQ_ERR_SHAPE, AQ_ERR_UNSUPPORTED (FP8 weights, say). */
ARROWQUANT_API aq_status aq_linear_from_tensors(const aq_tensor *weight, const aq_tensor *bias,
                                                aq_linear *out, aq_error *err);
/* Compares each stored tensor with the checksum in the metadata: AQ_ERR_CORRUPT names the first
 * that differs. *checked (may be NULL) counts the stored tensors that had a checksum. */
ARROWQUANT_API aq_status aq_model_verify(aq_context *context, const aq_model *model,
                                         aq_progress_fn progress, void *user, size_t *checked,
                                         aq_error *err);
ARROWQUANT_API void aq_model_close(aq_model *model); /* NULL allowed */

/* Writes the same weights in another format: native, compressed-tensors, GGUF (a file) and tables of
 * layers in Arrow (a file) to each other, and every model to such a table; docs/FORMATS.md says what fits
 * where. Codes stay as they are; where a parameter would have to be rounded, or time groups would be
 * lost, AQ_ERR_UNSUPPORTED names the layer and says why. */
ARROWQUANT_API aq_status aq_convert_model(aq_context *context, const char *input_path,
                                          const char *output_path, aq_output_format format,
                                          bool overwrite, aq_progress_fn progress, void *user,
                                          aq_error *err);

/* ------------------------------------------------------------------- Arrow */

/* The Arrow C data and stream interfaces: fixed structs that pyarrow, polars, DuckDB and others
 * exchange tables by, without copies. Whoever holds one calls its `release` once; a consumer may
 * move a struct away (copy it, set `release` of the source to NULL). What this library hands out
 * frees itself through the context's allocator, which must live until then; the context need not. */
#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

#define ARROW_FLAG_DICTIONARY_ORDERED 1
#define ARROW_FLAG_NULLABLE 2
#define ARROW_FLAG_MAP_KEYS_SORTED 4

struct ArrowSchema {
    const char *format;
    const char *name;
    const char *metadata;
    int64_t flags;
    int64_t n_children;
    struct ArrowSchema **children;
    struct ArrowSchema *dictionary;
    void (*release)(struct ArrowSchema *);
    void *private_data;
};

struct ArrowArray {
    int64_t length;
    int64_t null_count;
    int64_t offset;
    int64_t n_buffers;
    int64_t n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};
#endif /* ARROW_C_DATA_INTERFACE */

#ifndef ARROW_C_STREAM_INTERFACE
#define ARROW_C_STREAM_INTERFACE

struct ArrowArrayStream {
    int (*get_schema)(struct ArrowArrayStream *, struct ArrowSchema *out);
    int (*get_next)(struct ArrowArrayStream *, struct ArrowArray *out);
    const char *(*get_last_error)(struct ArrowArrayStream *);
    void (*release)(struct ArrowArrayStream *);
    void *private_data;
};
#endif /* ARROW_C_STREAM_INTERFACE */

/* Timesteps t_start … t_end − 1 of a time-aware layer, with their activation parameters. */
typedef struct aq_arrow_time_group {
    int32_t t_start, t_end;
    float scale, zero_point;
} aq_arrow_time_group;

/* One row of a table of layers, see docs/FORMATS.md. Pointers are borrowed; strings end with 0. */
typedef struct aq_arrow_layer {
    const char *name;
    const int64_t *shape;
    size_t rank;
    uint8_t bit_width;    /* 2, 4, 8; of a kept tensor the bits of an element */
    uint32_t group_size;  /* 0: kept */
    const void *data;     /* codes as in aq_quantize, or a kept tensor's bytes */
    uint64_t data_bytes;
    const float *scales;  /* `groups` of each, row by row; NULL: the column is null here */
    const float *zero_points, *mins;
    uint64_t groups;
    const char *method;   /* "ptq", …, "kept" */
    const char *dtype;    /* of the original: "BF16", … */
    double cosine_similarity, sqnr_db; /* NaN: null */
    const aq_arrow_time_group *time_groups; /* of 8-bit activations */
    size_t time_group_count; /* 0: null */
    const aq_arrow_time_group *time_groups_4bit; /* as many, or NULL: null */
} aq_arrow_layer;

/* Who owns what the layers point to: `release(user)` is called once, from whatever thread gives back
 * the last exported piece. A zeroed one: the caller keeps everything alive. */
typedef struct aq_arrow_owner {
    void (*release)(void *user);
    void *user;
} aq_arrow_owner;

/* Exports layers as one record batch. A column's parts that lie end to end in memory (those of one
 * layer always do) are exported where they are; others are gathered into a buffer of the export's.
 * `metadata` are `metadata_count` keys and values by turns, for the schema. On failure *schema and
 * *array are untouched, and the owner is not released. A column of 2 GiB or more is
 * AQ_ERR_UNSUPPORTED: export those layers one by one. */
ARROWQUANT_API aq_status aq_arrow_export_layers(aq_context *context, const aq_arrow_layer *layers,
                                                size_t count, const char *const *metadata,
                                                size_t metadata_count, aq_arrow_owner owner,
                                                struct ArrowSchema *schema,
                                                struct ArrowArray *array, aq_error *err);

/* One layer's weights in somebody's table: borrowed, not copied, not 0-terminated. */
typedef struct aq_arrow_weights {
    const char *name;
    size_t name_size;
    const void *weights; /* `count` elements of `dtype`, this machine's byte order */
    aq_dtype dtype;      /* F32, F16 or F64 */
    uint64_t count;
    const int64_t *shape; /* `rank` of them; NULL: the table does not tell */
    size_t rank;
    uint64_t rows, cols; /* as aq_quantize wants them; without a shape [1, count] */
} aq_arrow_weights;

/* Finds layer_name (string, large_string, string_view), weights (list or large_list of float, and
 * half_float or double) and, when it is there, shape (list or large_list of int64) in a record
 * batch, and fills `out` [array->length]. Nothing is copied: the pointers live as long as the array,
 * which stays the caller's. A missing or misshapen column, a null, offsets that do not fit:
 * AQ_ERR_ARROW; a shape that does not fit the weights: AQ_ERR_SHAPE; both name the row. */
ARROWQUANT_API aq_status aq_arrow_import_weights(const struct ArrowSchema *schema,
                                                 const struct ArrowArray *array,
                                                 aq_arrow_weights *out, aq_error *err);

/* The tensors of an opened model as a stream of one record batch a tensor, sorted by name: codes and
 * kept tensors where they lie in the mapped files (codes of GGUF's blocks are made anew), parameters
 * widened to F32, with time groups. On success the stream
 * owns the model and closes it when all is released. */
ARROWQUANT_API aq_status aq_arrow_export_model(aq_context *context, aq_model *model,
                                               struct ArrowArrayStream *stream, aq_error *err);

/* Reads an Arrow IPC file or stream; `path` is mapped, and the arrays lead into it. Everything is
 * checked when it is handed out: what does not fit is EINVAL, and get_last_error tells. Compressed
 * buffers, dictionaries and types that this library has no use for are AQ_ERR_UNSUPPORTED. */
ARROWQUANT_API aq_status aq_arrow_ipc_open(aq_context *context, const char *path,
                                           struct ArrowArrayStream *stream, aq_error *err);
/* The same from memory: 8-byte aligned `data` that the owner keeps until all is released. */
ARROWQUANT_API aq_status aq_arrow_ipc_read(aq_context *context, const void *data, size_t size,
                                           const char *source, aq_arrow_owner owner,
                                           struct ArrowArrayStream *stream, aq_error *err);
/* The next batch; at the end array->release is NULL. Failures of the stream become an aq_error. */
ARROWQUANT_API aq_status aq_arrow_next(struct ArrowArrayStream *stream, struct ArrowArray *array,
                                       aq_error *err);

typedef enum aq_arrow_ipc { AQ_ARROW_FILE, AQ_ARROW_STREAM } aq_arrow_ipc;

/* Writes what the stream gives as an IPC file (or IPC stream): a temporary sibling, renamed when
 * complete. The stream is read to its end; releasing it stays the caller's. */
ARROWQUANT_API aq_status aq_arrow_ipc_write(aq_context *context, struct ArrowArrayStream *stream,
                                            const char *path, aq_arrow_ipc kind, aq_error *err);

/* -------------------------------------------------------------- validation */

typedef struct aq_tensor_difference {
    const char *name;
    double cosine_similarity, sqnr_db, max_error;
    uint32_t bits; /* of the second model's tensor; 16 when not quantized */
    bool passed;
} aq_tensor_difference;

typedef struct aq_validation {
    double cosine_similarity; /* mean over the compared layers */
    double min_cosine_similarity;
    double sqnr_db;           /* over all compared weights together */
    double compression_ratio;
    double model_size_mb;
    bool passed;              /* every layer ≥ the gates */
    aq_tensor_difference *layers;
    size_t layer_count;
    const char *const *only_in_first; /* tensor names */
    size_t only_in_first_count;
    const char *const *only_in_second;
    size_t only_in_second_count;
    void *owned;
} aq_validation;

/* Compares every quantized layer of `quantized_path` with `original_path`, from the files
 * themselves. The gates are those of `config`; NULL: those the model was quantized with (a bare
 * file does not record them; then those of the local profile). A layer
 * below them is passed = false, not an error; a missing tensor or another shape is an error. */
ARROWQUANT_API aq_status aq_validate_quality(aq_context *context, const char *original_path,
                                             const char *quantized_path, const aq_config *config,
                                             aq_progress_fn progress, void *user,
                                             aq_validation *out, aq_error *err);
/* Compares all float tensors that two models have in common; missing ones are listed. There are no
 * gates: `passed` is true. Another shape under the same name is AQ_ERR_SHAPE. */
ARROWQUANT_API aq_status aq_compare_models(aq_context *context, const char *first_path,
                                           const char *second_path, aq_progress_fn progress,
                                           void *user, aq_validation *out, aq_error *err);
ARROWQUANT_API void aq_validation_free(aq_validation *validation); /* NULL allowed */
ARROWQUANT_API aq_status aq_validation_to_json(aq_context *context,
                                               const aq_validation *validation, char **text,
                                               size_t *size, aq_error *err);

/* Writes a quantized model as plain safetensors of dtype F32, F16 or BF16 under the original
 * names, so that any tool loads it. Kept float tensors get that dtype too (FP8 weights with their
 * scales folded in), integers stay. Other files are carried over, quantization_config is removed. A model that is not quantized is AQ_ERR_METADATA. */
ARROWQUANT_API aq_status aq_dequantize_model(aq_context *context, const char *quantized_path,
                                             const char *output_path, aq_dtype dtype,
                                             bool overwrite, aq_progress_fn progress, void *user,
                                             aq_error *err);
#endif /* ARROWQUANT_NO_STDIO */

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_API_H */
