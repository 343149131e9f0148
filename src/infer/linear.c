/* The forward pass of a linear layer: scratch, threads, and products with float activations. */
#include "infer.h"

#include "../base/thread.h"
#include "../quant/trellis.h"

/* Multiply-adds that are worth a task of their own. */
#define AQ_TASK_PRODUCTS ((size_t)1 << 18)
#ifdef ARROWQUANT_NO_THREADS
#  define AQ_FLOAT_ROWS ((size_t)2) /* decoded at once: small memory */
#else
#  define AQ_FLOAT_ROWS ((size_t)16)
#endif

static size_t aq_size_min(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Up to the next multiple of a line; false when it overflows. */
static bool aq_line_up(uint64_t bytes, size_t *out) {
    uint64_t up = 0;
    if (!aq_add_u64(bytes, AQ_LINEAR_LINE - 1u, &up) || up > SIZE_MAX) {
        return false;
    }
    *out = (size_t)up / AQ_LINEAR_LINE * AQ_LINEAR_LINE;
    return true;
}

/* Rows that are decoded at once: a strip of a trellis, whose columns are decoded as a whole. */
static size_t aq_float_rows(const aq_weights *weights) {
#ifndef ARROWQUANT_NO_THREADS
    if (weights->trellis) {
        return AQ_TRELLIS_ROWS;
    }
#endif
    (void)weights;
    return AQ_FLOAT_ROWS;
}

static bool aq_float_scratch(const aq_weights *weights, size_t tokens, size_t *shared,
                             size_t *own) {
    uint64_t bytes = 0;
    size_t stretch = aq_size_min(weights->cols, AQ_LINEAR_STRETCH);
    return aq_mul_u64(tokens, weights->cols, &bytes) && aq_mul_u64(bytes, sizeof(float), &bytes) &&
           aq_line_up(bytes, shared) &&
           aq_line_up((uint64_t)aq_float_rows(weights) * stretch * sizeof(float), own);
}

/* Both kinds of activations at once, so that the caller need not know which. */
static bool aq_forward_scratch(const aq_weights *weights, size_t tokens, uint32_t threads,
                               size_t *shared, size_t *own, uint64_t *total) {
    size_t other_shared = 0, other_own = 0;
    if (!aq_float_scratch(weights, tokens, shared, own)) {
        return false;
    }
    if (weights->linear->quantized) {
        if (!(weights->trellis ? aq_trellis_scratch : aq_int8_scratch)(weights, tokens, &other_shared,
                                                                       &other_own)) {
            return false;
        }
        *shared = *shared > other_shared ? *shared : other_shared;
        *own = *own > other_own ? *own : other_own;
    }
    return aq_mul_u64(*own, threads, total) && aq_add_u64(*total, *shared, total) &&
           aq_add_u64(*total, AQ_LINEAR_LINE, total) && *total <= SIZE_MAX;
}

ARROWQUANT_API size_t aq_linear_scratch_size(const aq_context *context, const aq_linear *linear,
                                             uint64_t tokens) {
    aq_weights weights;
    size_t shared = 0, own = 0;
    uint64_t total = 0;
    if (tokens > SIZE_MAX || aq_weights_open(context, linear, &weights, NULL) != AQ_OK ||
        !aq_forward_scratch(&weights, (size_t)tokens, aq_thread_count(context), &shared, &own,
                            &total)) {
        return 0;
    }
    return (size_t)total;
}

/* ---- float activations */

AQ_LIB void aq_forward_widen(const aq_forward *run, size_t token, float *out) {
    const struct aq_kernels *kernels = run->weights.kernels;
    const float *scales = run->weights.linear->input_scales;
    size_t i, cols = run->weights.cols;
    const uint8_t *x = run->x + token * cols * aq_dtype_size(run->dtype);
    switch (run->dtype) {
    case AQ_DTYPE_F16: kernels->f16_to_f32(x, out, cols); break;
    case AQ_DTYPE_BF16: kernels->bf16_to_f32(x, out, cols); break;
    default: memcpy(out, x, cols * sizeof *out); break;
    }
    for (i = 0; scales && i < cols; i++) {
        out[i] *= scales[i];
    }
    aq_trellis_turn(&run->weights, out);
}

static void aq_float_block(const aq_forward *run, size_t row, size_t rows, size_t token,
                           size_t tokens, uint8_t *own) {
    const aq_weights *weights = &run->weights;
    const size_t cols = weights->cols, stride = weights->rows;
    float *decoded = (float *)(void *)own, *y = run->y + token * stride + row;
    size_t begin, i, t, n;
    for (t = 0; t < tokens; t++) {
        memset(y + t * stride, 0, rows * sizeof *y);
    }
    for (begin = 0; begin < cols; begin += AQ_LINEAR_STRETCH) {
        size_t count = aq_size_min(cols - begin, AQ_LINEAR_STRETCH);
        aq_weights_decode_rows(weights, row, rows, begin, count, decoded);
        weights->infer->product(decoded, count, rows, run->wide + token * cols + begin, cols,
                                tokens, count, y, stride);
    }
    for (begin = 0; weights->linear->bias && begin < rows; begin += n) {
        float bias[AQ_LINEAR_ROWS];
        n = aq_size_min(rows - begin, AQ_LINEAR_ROWS);
        aq_weights_bias(weights, row + begin, n, bias);
        for (t = 0; t < tokens; t++) {
            for (i = 0; i < n; i++) {
                y[t * stride + begin + i] += bias[i];
            }
        }
    }
}

/* ---- tasks */

static aq_status aq_forward_prepare(void *user, size_t index, uint32_t worker, aq_error *err) {
    const aq_forward *run = (const aq_forward *)user;
    size_t token = index * run->task_tokens, end = token + run->task_tokens;
    aq_simd_mode mode = aq_simd_mode_enter();
    (void)err;
    for (end = aq_size_min(end, run->tokens); token < end; token++) {
        if (run->activation.type == AQ_ACTIVATION_FLOAT) {
            aq_forward_widen(run, token,
                             (float *)(void *)run->shared + token * run->weights.cols);
        } else {
            (run->weights.trellis ? aq_trellis_prepare : aq_int8_prepare)(
                run, token, run->own + worker * run->own_bytes);
        }
    }
    aq_simd_mode_leave(mode);
    return AQ_OK;
}

static aq_status aq_forward_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    const aq_forward *run = (const aq_forward *)user;
    size_t token = index / run->row_tasks * run->task_tokens;
    size_t tokens = aq_size_min(run->tokens - token, run->task_tokens);
    size_t row = index % run->row_tasks * run->task_rows;
    size_t end = aq_size_min(row + run->task_rows, run->weights.rows);
    aq_simd_mode mode = aq_simd_mode_enter();
    (void)err;
    for (; row < end; row += run->block_rows) {
        run->block(run, row, aq_size_min(end - row, run->block_rows), token, tokens,
                   run->own + worker * run->own_bytes);
    }
    aq_simd_mode_leave(mode);
    return AQ_OK;
}

/* Prepares the activations, then multiplies. Threads only where a task is worth one. */
static aq_status aq_forward_run(aq_forward *run, aq_error *err) {
    const size_t cols = run->weights.cols ? run->weights.cols : 1;
    aq_status status = AQ_OK;
    const bool is_float = run->activation.type == AQ_ACTIVATION_FLOAT;
    size_t tasks, work, unit;
    run->block = is_float             ? aq_float_block
                 : run->weights.trellis ? aq_trellis_forward : aq_int8_block;
    run->block_rows = is_float             ? aq_float_rows(&run->weights)
                      : run->weights.trellis ? AQ_TRELLIS_ROWS : AQ_LINEAR_ROWS;
    if (!run->wide) {
        run->task_tokens = AQ_TASK_PRODUCTS / 8 / cols + 1;
        tasks = (run->tokens + run->task_tokens - 1) / run->task_tokens;
        status = aq_parallel_for(run->context, run->threads, tasks, aq_forward_prepare, run, err);
        run->wide = (const float *)(const void *)run->shared;
    }
    if (status != AQ_OK) {
        return status;
    }
    run->task_tokens = aq_size_min(run->tokens, AQ_TASK_TOKENS);
    unit = run->block_rows > AQ_LINEAR_ROWS ? run->block_rows : AQ_LINEAR_ROWS;
    work = AQ_TASK_PRODUCTS / unit / run->task_tokens / cols + 1;
    run->task_rows = work * unit;
    run->row_tasks = (run->weights.rows + run->task_rows - 1) / run->task_rows;
    tasks = (run->tokens + run->task_tokens - 1) / run->task_tokens * run->row_tasks;
    return aq_parallel_for(run->context, run->threads, tasks, aq_forward_task, run, err);
}

/* ---- the public functions */

static aq_status aq_forward_check(const aq_forward *run, aq_error *err) {
    const aq_activation *activation = &run->activation;
    const char *name = run->weights.linear->name ? run->weights.linear->name : "aq_linear_forward";
    if (run->dtype != AQ_DTYPE_F32 && run->dtype != AQ_DTYPE_F16 && run->dtype != AQ_DTYPE_BF16) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: activations in %s; use F32, F16 or BF16", name,
                       aq_dtype_name(run->dtype));
    }
    if (activation->type == AQ_ACTIVATION_STATIC && run->weights.trellis) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED,
                       "%s: static activations do not fit a trellis code, whose inputs are rotated; "
                       "use dynamic ones", name);
    }
    if (activation->type == AQ_ACTIVATION_STATIC) {
        if (!(activation->scale > 0.0f && activation->scale <= FLT_MAX)) {
            return aq_fail(err, AQ_ERR_ARGUMENT,
                           "%s: the scale of the activations is not positive and finite", name);
        }
        if (activation->zero_point < -128 || activation->zero_point > 128) {
            return aq_fail(err, AQ_ERR_ARGUMENT,
                           "%s: the zero point of the activations is %d; use -128 … 128", name,
                           (int)activation->zero_point);
        }
    } else if (activation->type != AQ_ACTIVATION_FLOAT &&
               activation->type != AQ_ACTIVATION_DYNAMIC) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "%s: activation type %d is not known", name,
                       (int)activation->type);
    }
    if (!run->x || !run->y) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "%s: %s is NULL", name, run->x ? "y" : "x");
    }
    return AQ_OK;
}

/* Cuts the caller's scratch. */
static aq_status aq_forward_lay_out(aq_forward *run, void *scratch, size_t scratch_bytes,
                                    aq_error *err) {
    size_t shared = 0, skip;
    uint64_t total = 0;
    if (!aq_forward_scratch(&run->weights, run->tokens, run->threads, &shared, &run->own_bytes,
                            &total)) {
        return aq_fail(err, AQ_ERR_SHAPE, "the scratch for %llu tokens does not fit this machine",
                       (unsigned long long)run->tokens);
    }
    if (!scratch || scratch_bytes < total) {
        return aq_fail(err, AQ_ERR_ARGUMENT,
                       "scratch of %llu bytes; aq_linear_scratch_size asks for %llu",
                       scratch ? (unsigned long long)scratch_bytes : 0ull,
                       (unsigned long long)total);
    }
    skip = (size_t)((AQ_LINEAR_LINE - (uintptr_t)scratch % AQ_LINEAR_LINE) % AQ_LINEAR_LINE);
    run->shared = (uint8_t *)scratch + skip;
    run->own = run->shared + shared;
    return AQ_OK;
}

ARROWQUANT_API aq_status aq_linear_forward(aq_context *context, const aq_linear *linear,
                                           const void *x, aq_dtype dtype, uint64_t tokens,
                                           const aq_activation *activation, float *y,
                                           void *scratch, size_t scratch_bytes, aq_error *err) {
    aq_forward run;
    aq_status status;
    memset(&run, 0, sizeof run);
    status = aq_weights_open(context, linear, &run.weights, err);
    if (status != AQ_OK) {
        return status;
    }
    if (tokens > SIZE_MAX) {
        return aq_fail(err, AQ_ERR_SHAPE, "%llu tokens do not fit this machine's memory",
                       (unsigned long long)tokens);
    }
    if (tokens == 0 || linear->rows == 0) {
        return AQ_OK;
    }
    run.context = context;
    run.x = (const uint8_t *)x;
    run.dtype = dtype;
    run.tokens = (size_t)tokens;
    run.y = y;
    run.threads = aq_thread_count(context);
    run.activation.type = AQ_ACTIVATION_FLOAT;
    if (activation) {
        run.activation = *activation;
    }
    status = aq_forward_check(&run, err);
    if (status == AQ_OK) {
        status = aq_forward_lay_out(&run, scratch, scratch_bytes, err);
    }
    if (status != AQ_OK) {
        return status;
    }
    if (!linear->quantized) {
        run.activation.type = AQ_ACTIVATION_FLOAT;
    }
    if (run.activation.type == AQ_ACTIVATION_FLOAT && dtype == AQ_DTYPE_F32 &&
        !linear->input_scales && !(run.weights.trellis && linear->spec.rotation) &&
        (uintptr_t)x % sizeof(float) == 0) {
        run.wide = (const float *)x;
    }
    return aq_forward_run(&run, err);
}

ARROWQUANT_API aq_status aq_time_activation(const aq_time_groups *groups, int64_t timestep,
                                            aq_activation *out, aq_error *err) {
    uint32_t group;
    if (!groups || !out || groups->count == 0) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_time_activation: %s",
                       !out ? "out is NULL" : "there are no groups; make them first");
    }
    if (groups->channel_groups != 1) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED,
                       "aq_time_activation: %u groups of channels; make the time groups with "
                       "channel_group 0", (unsigned)groups->channel_groups);
    }
    group = aq_time_group_of(groups, timestep);
    out->type = AQ_ACTIVATION_STATIC;
    out->scale = groups->scale[0][group];
    out->zero_point = groups->zero_point[0][group] - 128; /* of codes from 0 to 255 */
    return AQ_OK;
}

ARROWQUANT_API aq_status aq_linear_row(aq_context *context, const aq_linear *linear, uint64_t row,
                                       float *out, aq_error *err) {
    aq_weights weights;
    size_t begin;
    aq_status status = aq_weights_open(context, linear, &weights, err);
    if (status != AQ_OK) {
        return status;
    }
    if (row >= linear->rows || !out) {
        return aq_fail(err, out ? AQ_ERR_SHAPE : AQ_ERR_ARGUMENT, "%s: row %llu of %llu%s",
                       linear->name ? linear->name : "aq_linear_row", (unsigned long long)row,
                       (unsigned long long)linear->rows, out ? "" : ", out is NULL");
    }
    {
        aq_simd_mode mode = aq_simd_mode_enter();
        if (weights.trellis) {
            aq_trellis_row(&weights, (size_t)row, out);
        }
        for (begin = weights.trellis ? weights.cols : 0; begin < weights.cols;
             begin += AQ_LINEAR_STRETCH) {
            aq_weights_decode(&weights, (size_t)row, begin,
                              aq_size_min(weights.cols - begin, AQ_LINEAR_STRETCH), out + begin);
        }
        for (begin = 0; linear->input_scales && begin < weights.cols; begin++) {
            out[begin] *= linear->input_scales[begin];
        }
        aq_simd_mode_leave(mode);
    }
    return AQ_OK;
}

#ifndef ARROWQUANT_NO_STDIO
static aq_status aq_linear_take_bias(const aq_tensor *bias, aq_linear *out, aq_error *err) {
    if (bias->quantized || bias->rows * bias->cols != out->rows) {
        return aq_fail_tensor(err, AQ_ERR_SHAPE, bias->name, 0,
                              "%s: a bias of %llu plain numbers is expected, %llu%s found",
                              bias->name, (unsigned long long)out->rows,
                              (unsigned long long)(bias->rows * bias->cols),
                              bias->quantized ? ", quantized," : "");
    }
    out->bias = bias->data;
    out->bias_dtype = bias->dtype;
    return AQ_OK;
}

ARROWQUANT_API aq_status aq_linear_from_tensors(const aq_tensor *weight, const aq_tensor *bias,
                                                aq_linear *out, aq_error *err) {
    aq_linear linear;
    aq_weights checked;
    aq_status status = AQ_OK;
    if (!weight || !out) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_linear_from_tensors: %s is NULL",
                       weight ? "out" : "weight");
    }
    memset(&linear, 0, sizeof linear);
    linear.name = weight->name;
    linear.rows = weight->rows;
    linear.cols = weight->cols;
    linear.quantized = weight->quantized;
    linear.dtype = weight->dtype;
    if (weight->quantized) {
        linear.spec = weight->spec;
        linear.codes = weight->codes;
        linear.params = weight->params;
        linear.extra = weight->extra;
        linear.input_scales = weight->input_scales;
    } else {
        linear.data = weight->data;
    }
    if (bias) {
        status = aq_linear_take_bias(bias, &linear, err);
    }
    if (status == AQ_OK) {
        status = aq_weights_open(NULL, &linear, &checked, err);
    }
    if (status == AQ_OK) {
        *out = linear;
    }
    return status;
}
#endif

#undef AQ_TASK_PRODUCTS
#undef AQ_FLOAT_ROWS
