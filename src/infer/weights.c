/* The weights of a layer: packed codes of any kind behind a few functions, or plain floats. */
#include "infer.h"

#include "../quant/tile.h"

static bool aq_weights_plain(aq_dtype dtype) {
    return dtype == AQ_DTYPE_F32 || dtype == AQ_DTYPE_F16 || dtype == AQ_DTYPE_BF16;
}

static const char *aq_linear_title(const aq_linear *linear) {
    return linear->name ? linear->name : "aq_linear";
}

static aq_status aq_weights_missing(const aq_linear *linear, const aq_quant_layout *layout,
                                    aq_error *err) {
    const char *what = NULL;
    if (linear->rows && linear->cols) {
        what = !linear->quantized                       ? (linear->data ? NULL : "data")
               : !linear->codes                         ? "codes"
               : !linear->params                        ? "params"
               : !linear->extra && layout->extra_bytes  ? "extra" : NULL;
    }
    return what ? aq_fail(err, AQ_ERR_ARGUMENT, "%s: %s is NULL; set what belongs to the weights",
                          aq_linear_title(linear), what)
                : AQ_OK;
}

AQ_LIB aq_status aq_weights_open(const aq_context *context, const aq_linear *linear,
                                 aq_weights *out, aq_error *err) {
    aq_status status = AQ_OK;
    uint64_t bytes = 0;
    if (!linear) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "the layer is NULL");
    }
    memset(out, 0, sizeof *out);
    if (linear->quantized &&
        (linear->spec.code == AQ_CODE_RESIDUAL || aq_code_is_block(linear->spec.code))) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: no kernels for the code %s; dequantize the layer, "
                       "or quantize it by ptq or gptq", aq_linear_title(linear),
                       aq_code_name(linear->spec.code));
    }
    if (linear->quantized) {
        status = aq_quantized_size(&linear->spec, linear->rows, linear->cols, &out->layout, err);
    } else if (!aq_weights_plain(linear->dtype)) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: weights in %s; use F32, F16 or BF16",
                       aq_linear_title(linear), aq_dtype_name(linear->dtype));
    }
    if (status != AQ_OK) {
        return status;
    }
    if (linear->bias && !aq_weights_plain(linear->bias_dtype)) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: bias in %s; use F32, F16 or BF16",
                       aq_linear_title(linear), aq_dtype_name(linear->bias_dtype));
    }
    if (!aq_mul_u64(linear->rows, linear->cols, &bytes) || !aq_mul_u64(bytes, 4, &bytes) ||
        bytes > SIZE_MAX) {
        return aq_fail(err, AQ_ERR_SHAPE, "%s: [%llu, %llu] does not fit this machine's memory",
                       aq_linear_title(linear), (unsigned long long)linear->rows,
                       (unsigned long long)linear->cols);
    }
    out->linear = linear;
    out->rows = (size_t)linear->rows;
    out->cols = (size_t)linear->cols;
    out->groups = (size_t)out->layout.groups;
    if (linear->quantized && linear->spec.code == AQ_CODE_SYMMETRIC) {
        out->half = 1 << (linear->spec.bits - 1u);
    }
    out->trellis = linear->quantized && linear->spec.code == AQ_CODE_TRELLIS;
    out->kernels = aq_kernels_of(context);
    out->infer = aq_simd_linear(out->kernels);
#if defined(AQ_HAVE_AVX2)
    if (linear->quantized && !out->trellis && linear->interleaved && out->infer->interleaved &&
        aq_interleaved_layout(out, &out->interleaving)) {
        out->interleaved = (const uint8_t *)linear->interleaved;
    }
#endif
    return aq_weights_missing(linear, &out->layout, err);
}

AQ_LIB void aq_widen_file(const struct aq_kernels *kernels, aq_dtype dtype, const void *in,
                          float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    uint16_t halves[256];
    size_t i, n;
    if (dtype == AQ_DTYPE_F32) {
        memcpy(out, in, count * sizeof *out);
        aq_little_endian(out, count, sizeof *out);
        return;
    }
    for (i = 0; i < count; i += n) {
        n = count - i < 256 ? count - i : 256;
        memcpy(halves, from + 2 * i, 2 * n);
        aq_little_endian(halves, n, 2);
        if (dtype == AQ_DTYPE_F16) {
            kernels->f16_to_f32(halves, out + i, n);
        } else {
            kernels->bf16_to_f32(halves, out + i, n);
        }
    }
}

static const uint8_t *aq_weights_row_params(const aq_weights *weights, size_t row) {
    return (const uint8_t *)weights->linear->params +
           row * (size_t)weights->layout.row_param_bytes;
}

static const uint8_t *aq_weights_row_extra(const aq_weights *weights, size_t row) {
    const uint8_t *extra = (const uint8_t *)weights->linear->extra;
    return extra ? extra + row * (size_t)weights->layout.row_extra_bytes : NULL;
}

AQ_LIB void aq_weights_decode(const aq_weights *weights, size_t row, size_t begin, size_t count,
                              float *out) {
    const aq_linear *linear = weights->linear;
    const aq_quant_spec *spec = &linear->spec;
    aq_simd_grid grids[AQ_TILE_GROUPS];
    size_t param_bytes, size, n;
    if (!linear->quantized) {
        size = aq_dtype_size(linear->dtype);
        aq_widen_file(weights->kernels, linear->dtype,
                      (const uint8_t *)linear->data + (row * weights->cols + begin) * size, out,
                      count);
        return;
    }
    param_bytes = (size_t)(weights->layout.row_param_bytes / weights->layout.groups);
    for (; count > 0; begin += n, count -= n, out += n) {
        n = count < AQ_TILE_WEIGHTS ? count : AQ_TILE_WEIGHTS;
        aq_grids_read(weights->kernels, spec,
                      aq_weights_row_params(weights, row) + begin / spec->group_size * param_bytes,
                      aq_weights_row_extra(weights, row),
                      (n + spec->group_size - 1) / spec->group_size, grids);
        weights->kernels->decode((const uint8_t *)linear->codes +
                                     row * (size_t)weights->layout.row_code_bytes +
                                     begin * spec->bits / 8,
                                 n, spec->group_size, spec->bits, weights->half != 0, grids, out);
    }
}

AQ_LIB void aq_weights_decode_rows(const aq_weights *weights, size_t row, size_t rows, size_t begin,
                                   size_t count, float *out) {
    size_t i;
    if (weights->trellis) {
        aq_trellis_weights(weights, row, rows, begin, count, out);
        return;
    }
    for (i = 0; i < rows; i++) {
        aq_weights_decode(weights, row + i, begin, count, out + i * count);
    }
}

static void aq_weights_row_grids(const aq_weights *weights, size_t row, float *out) {
    const uint8_t *params = aq_weights_row_params(weights, row);
    const uint8_t *extra = aq_weights_row_extra(weights, row);
    size_t begin, n, each;
    aq_simd_grid grids[AQ_TILE_GROUPS];
    each = weights->groups ? (size_t)(weights->layout.row_param_bytes / weights->groups) : 0;
    for (begin = 0; begin < weights->groups; begin += n) {
        n = weights->groups - begin < AQ_TILE_GROUPS ? weights->groups - begin : AQ_TILE_GROUPS;
        aq_grids_read(weights->kernels, &weights->linear->spec, params + begin * each, extra, n,
                      grids);
        memcpy(out + 2 * begin, grids, n * sizeof *grids);
    }
}

AQ_LIB void aq_weights_params(const aq_weights *weights, size_t row, size_t count, float *out) {
    const uint16_t one = 1;
    size_t i;
    if (weights->linear->spec.params == AQ_PARAM_F16 &&
        weights->linear->spec.code == AQ_CODE_AFFINE &&
        *(const uint8_t *)&one == 1) { /* as they lie in the file */
        weights->kernels->f16_to_f32(aq_weights_row_params(weights, row), out,
                                     2 * count * weights->groups);
        return;
    }
    for (i = 0; i < count; i++) {
        aq_weights_row_grids(weights, row + i, out + 2 * i * weights->groups);
    }
}

AQ_LIB size_t aq_groups_up(size_t groups) {
    return (groups + AQ_LINEAR_ROWS - 1) / AQ_LINEAR_ROWS * AQ_LINEAR_ROWS;
}

AQ_LIB void aq_weights_arrange(const aq_weights *weights, const int8_t *q, int8_t *out) {
    if (weights->infer->arrange) {
        weights->infer->arrange(q, weights->cols, weights->linear->spec.bits, out);
    } else {
        memcpy(out, q, weights->cols);
    }
}

static const uint8_t *aq_weights_codes(const aq_weights *weights, size_t row) {
    return (const uint8_t *)weights->linear->codes + row * (size_t)weights->layout.row_code_bytes;
}

AQ_LIB void aq_weights_dots(const aq_weights *weights, size_t row, size_t count, const int8_t *q,
                            int32_t *out) {
    const aq_quant_spec *spec = &weights->linear->spec;
    const size_t stride = aq_groups_up(weights->groups);
    aq_linear_dots job;
    size_t i;
    job.codes = aq_weights_codes(weights, row);
    job.row_bytes = (size_t)weights->layout.row_code_bytes;
    job.rows = count;
    job.bits = spec->bits;
    job.group = spec->group_size;
    job.x = q;
    job.out = out;
    job.out_stride = stride;
    job.next = aq_weights_row_params(weights, row) +
               AQ_LINEAR_ROWS * (size_t)weights->layout.row_param_bytes;
    job.next_bytes = (size_t)weights->layout.row_param_bytes;
    if (weights->infer->dots) {
        weights->infer->dots(&job);
        return;
    }
    for (i = 0; i < count; i++) {
        weights->kernels->dot_codes(job.codes + i * job.row_bytes, job.row_bytes, 1, spec->bits, q,
                                    weights->cols, spec->group_size, out + i * stride);
    }
}

AQ_LIB bool aq_weights_tiles(const aq_weights *weights, size_t row, size_t count,
                             aq_linear_tiles *job) {
    if (!weights->infer->tiles || weights->groups == 0) {
        return false;
    }
    job->interleaved = aq_is_interleaved(weights);
    job->codes = job->interleaved ? aq_interleaved_codes(weights, row) : aq_weights_codes(weights, row);
    job->row_bytes = (size_t)weights->layout.row_code_bytes;
    job->rows = job->interleaved ? AQ_LINEAR_ROWS : count;
    job->bits = weights->linear->spec.bits;
    job->group = weights->linear->spec.group_size;
    job->groups = weights->groups;
    job->half = weights->half;
    return true;
}

AQ_LIB void aq_weights_bias(const aq_weights *weights, size_t row, size_t count, float *out) {
    const aq_linear *linear = weights->linear;
    if (linear->bias) {
        aq_widen_file(weights->kernels, linear->bias_dtype,
                      (const uint8_t *)linear->bias + row * aq_dtype_size(linear->bias_dtype), out,
                      count);
    } else {
        memset(out, 0, count * sizeof *out);
    }
}
