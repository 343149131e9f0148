/* Convolutions: patches of the image become the tokens of a linear layer. */
#include "infer.h"

/* Positions of the result that are gathered at once. */
#ifdef ARROWQUANT_NO_THREADS
#  define AQ_CONV_TOKENS 16u
#else
#  define AQ_CONV_TOKENS 256u
#endif

typedef struct aq_conv_run {
    const aq_conv2d *conv;
    size_t channels, height, width, out_height, out_width, element;
    const uint8_t *image; /* [channels, height, width] */
} aq_conv_run;

static aq_status aq_conv_check(const aq_conv2d *conv, aq_error *err) {
    uint64_t area;
    if (!conv || !conv->kernel_height || !conv->kernel_width || !conv->stride_y ||
        !conv->stride_x || !conv->dilation_y || !conv->dilation_x) {
        return aq_fail(err, AQ_ERR_ARGUMENT,
                       "aq_conv2d: kernel, stride and dilation must be 1 or more each");
    }
    area = (uint64_t)conv->kernel_height * conv->kernel_width;
    if (conv->linear.cols == 0 || conv->linear.cols % area != 0) {
        return aq_fail(err, AQ_ERR_SHAPE,
                       "%s: %llu columns are no multiple of a kernel of %u by %u",
                       conv->linear.name ? conv->linear.name : "aq_conv2d",
                       (unsigned long long)conv->linear.cols, (unsigned)conv->kernel_height,
                       (unsigned)conv->kernel_width);
    }
    return AQ_OK;
}

/* One dimension of the result; false when the kernel does not fit. */
static bool aq_conv_length(uint64_t length, uint32_t kernel, uint32_t stride, uint32_t padding,
                           uint32_t dilation, uint64_t *out) {
    uint64_t reach = (uint64_t)(kernel - 1u) * dilation + 1, padded;
    if (!aq_add_u64(length, 2 * (uint64_t)padding, &padded) || padded < reach) {
        return false;
    }
    *out = (padded - reach) / stride + 1;
    return true;
}

ARROWQUANT_API aq_status aq_conv2d_size(const aq_conv2d *conv, uint64_t height, uint64_t width,
                                        uint64_t *out_height, uint64_t *out_width, aq_error *err) {
    aq_status status = aq_conv_check(conv, err);
    if (status != AQ_OK) {
        return status;
    }
    if (!aq_conv_length(height, conv->kernel_height, conv->stride_y, conv->padding_y,
                        conv->dilation_y, out_height) ||
        !aq_conv_length(width, conv->kernel_width, conv->stride_x, conv->padding_x,
                        conv->dilation_x, out_width)) {
        return aq_fail(err, AQ_ERR_SHAPE, "%s: a kernel of %u by %u does not fit into [%llu, %llu]",
                       conv->linear.name ? conv->linear.name : "aq_conv2d",
                       (unsigned)conv->kernel_height, (unsigned)conv->kernel_width,
                       (unsigned long long)height, (unsigned long long)width);
    }
    return AQ_OK;
}

/* Tokens at once, and the pieces of scratch: patches, results, and the linear layer's own. */
typedef struct aq_conv_pieces {
    size_t tokens, patches, results, linear, total;
} aq_conv_pieces;

static bool aq_conv_lay_out(const aq_context *context, const aq_conv2d *conv, uint64_t positions,
                            aq_conv_pieces *out) {
    uint64_t cols = conv->linear.cols, rows = conv->linear.rows, total = 0;
    out->tokens = (size_t)(positions < AQ_CONV_TOKENS ? positions : AQ_CONV_TOKENS);
    out->linear = aq_linear_scratch_size(context, &conv->linear, out->tokens);
    /* what the linear layer allows is far from overflowing 64 bits */
    if (!out->linear || cols > SIZE_MAX / 8 / AQ_CONV_TOKENS ||
        rows > SIZE_MAX / 8 / AQ_CONV_TOKENS) {
        return false;
    }
    out->patches = (size_t)(out->tokens * cols * 4 + AQ_LINEAR_LINE) / AQ_LINEAR_LINE *
                   AQ_LINEAR_LINE;
    out->results = (size_t)(out->tokens * rows * 4 + AQ_LINEAR_LINE) / AQ_LINEAR_LINE *
                   AQ_LINEAR_LINE;
    if (!aq_add_u64(out->patches, out->results, &total) ||
        !aq_add_u64(total, out->linear, &total) || total > SIZE_MAX - AQ_LINEAR_LINE) {
        return false;
    }
    out->total = (size_t)total + AQ_LINEAR_LINE;
    return true;
}

ARROWQUANT_API size_t aq_conv2d_scratch_size(const aq_context *context, const aq_conv2d *conv,
                                             uint64_t height, uint64_t width) {
    uint64_t out_height = 0, out_width = 0, positions = 0;
    aq_conv_pieces pieces;
    if (aq_conv2d_size(conv, height, width, &out_height, &out_width, NULL) != AQ_OK ||
        !aq_mul_u64(out_height, out_width, &positions) ||
        !aq_conv_lay_out(context, conv, positions, &pieces)) {
        return 0;
    }
    return pieces.total;
}

/* The patch under one position of the result, in the order of the weights. */
static void aq_conv_gather(const aq_conv_run *run, size_t position, uint8_t *out) {
    const aq_conv2d *conv = run->conv;
    const size_t size = run->element;
    /* relative to the image: wraps around where it is before its beginning */
    const size_t top = position / run->out_width * conv->stride_y - conv->padding_y;
    const size_t left = position % run->out_width * conv->stride_x - conv->padding_x;
    size_t channel, y, x;
    for (channel = 0; channel < run->channels; channel++) {
        for (y = 0; y < conv->kernel_height; y++) {
            size_t from_y = top + y * conv->dilation_y;
            for (x = 0; x < conv->kernel_width; x++, out += size) {
                size_t from_x = left + x * conv->dilation_x;
                if (from_y < run->height && from_x < run->width) {
                    size_t from = (channel * run->height + from_y) * run->width + from_x;
                    memcpy(out, run->image + from * size, size);
                } else {
                    memset(out, 0, size);
                }
            }
        }
    }
}

/* One image; `patches`, `results` and `own` are pieces of scratch. */
static aq_status aq_conv_image(aq_context *context, const aq_conv_run *run,
                               const aq_conv_pieces *pieces, aq_dtype dtype,
                               const aq_activation *activation, float *y, uint8_t *scratch,
                               aq_error *err) {
    const size_t positions = run->out_height * run->out_width;
    const size_t rows = (size_t)run->conv->linear.rows, cols = (size_t)run->conv->linear.cols;
    float *results = (float *)(void *)(scratch + pieces->patches);
    aq_status status = AQ_OK;
    size_t begin, i, row, n;
    for (begin = 0; begin < positions && status == AQ_OK; begin += n) {
        n = positions - begin < pieces->tokens ? positions - begin : pieces->tokens;
        for (i = 0; i < n; i++) {
            aq_conv_gather(run, begin + i, scratch + i * cols * run->element);
        }
        status = aq_linear_forward(context, &run->conv->linear, scratch, dtype, n, activation,
                                   results, scratch + pieces->patches + pieces->results,
                                   pieces->linear, err);
        for (i = 0; i < n && status == AQ_OK; i++) {
            for (row = 0; row < rows; row++) {
                y[row * positions + begin + i] = results[i * rows + row];
            }
        }
    }
    return status;
}

ARROWQUANT_API aq_status aq_conv2d_forward(aq_context *context, const aq_conv2d *conv,
                                           const void *x, aq_dtype dtype, uint64_t images,
                                           uint64_t height, uint64_t width,
                                           const aq_activation *activation, float *y,
                                           void *scratch, size_t scratch_bytes, aq_error *err) {
    uint64_t out_height = 0, out_width = 0, image;
    size_t need = aq_conv2d_scratch_size(context, conv, height, width), bytes;
    aq_conv_pieces pieces;
    aq_conv_run run;
    uint8_t *at;
    aq_status status = aq_conv2d_size(conv, height, width, &out_height, &out_width, err);
    if (status != AQ_OK || images == 0) {
        return status;
    }
    if (!x || !y || !scratch || need == 0 || scratch_bytes < need) {
        return aq_fail(err, AQ_ERR_ARGUMENT,
                       need ? "aq_conv2d_forward: x, y or scratch is NULL, or scratch is smaller "
                              "than the %llu bytes of aq_conv2d_scratch_size"
                            : "aq_conv2d_forward: the layer is malformed (scratch size %llu)",
                       (unsigned long long)need);
    }
    (void)aq_conv_lay_out(context, conv, out_height * out_width, &pieces);
    run.conv = conv;
    run.channels = (size_t)(conv->linear.cols / conv->kernel_height / conv->kernel_width);
    run.height = (size_t)height;
    run.width = (size_t)width;
    run.out_height = (size_t)out_height;
    run.out_width = (size_t)out_width;
    run.element = aq_dtype_size(dtype) < 4 ? 2 : 4; /* another dtype is refused further on */
    at = (uint8_t *)scratch + (AQ_LINEAR_LINE - (uintptr_t)scratch % AQ_LINEAR_LINE) %
                                  AQ_LINEAR_LINE;
    bytes = run.channels * run.height * run.width * run.element;
    for (image = 0; image < images && status == AQ_OK; image++) {
        run.image = (const uint8_t *)x + (size_t)image * bytes;
        status = aq_conv_image(context, &run, &pieces, dtype, activation,
                               y + (size_t)image * conv->linear.rows * run.out_height *
                                       run.out_width,
                               at, err);
    }
    return status;
}

#undef AQ_CONV_TOKENS
