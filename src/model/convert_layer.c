/* One layer in another format: its codes as they are, its parameters as the other format has them, if
 * they can be said there without rounding. */
#include "convert.h"

#include "../base/text.h"
#include "../quant/quant.h"

#ifndef ARROWQUANT_NO_STDIO

typedef struct aq_recode {
    aq_arena *arena;
    const aq_tensor *tensor;
    const char *name;
    aq_dtype dtype; /* the model's */
    aq_layer_numbers numbers;
    aq_converted_part *parts;
    size_t count;
    aq_error *err;
} aq_recode;

static aq_status aq_recode_refuse(const aq_recode *recode, const char *why) {
    return aq_fail_tensor(recode->err, AQ_ERR_UNSUPPORTED, recode->name, 0,
                          "layer %s: %s; quantize the original for that format instead",
                          recode->name, why);
}

static aq_status aq_recode_part(aq_recode *recode, const char *suffix, aq_dtype dtype,
                                uint32_t rank, uint64_t d0, uint64_t d1, uint64_t d2,
                                const void *data, void **made) {
    aq_converted_part *part = &recode->parts[recode->count++];
    size_t size = strlen(recode->name) + strlen(suffix) + 1;
    char *name = (char *)aq_arena_alloc(recode->arena, size);
    uint64_t *shape = (uint64_t *)aq_arena_alloc(recode->arena, 3 * sizeof(uint64_t));
    if (!name || !shape) return aq_fail_memory(recode->err, size);
    aq_format(name, size, "%s%s", recode->name, suffix);
    shape[0] = d0;
    shape[1] = d1;
    shape[2] = d2;
    part->name = name;
    part->dtype = dtype;
    part->rank = rank;
    part->shape = shape;
    part->bytes = aq_dtype_size(dtype);
    for (uint32_t i = 0; i < rank; i++) part->bytes *= shape[i]; /* no more than the source has */
    part->data = data;
    if (data) return AQ_OK;
    *made = aq_arena_alloc(recode->arena, (size_t)part->bytes);
    part->data = *made;
    return *made ? AQ_OK : aq_fail_memory(recode->err, (size_t)part->bytes);
}

AQ_LIB aq_status aq_convert_numbers(aq_arena *arena, const aq_tensor *tensor,
                                    aq_layer_numbers *out, aq_error *err) {
    out->groups = tensor->layout.rows * tensor->layout.groups;
    size_t bytes = (size_t)out->groups * sizeof(float);
    out->scales = (float *)aq_arena_alloc(arena, bytes);
    out->mins = (float *)aq_arena_alloc(arena, bytes);
    out->zeros = (float *)aq_arena_alloc(arena, bytes);
    if (!out->scales || !out->mins || !out->zeros) return aq_fail_memory(err, bytes);
    return aq_quant_parameters(NULL, &tensor->spec, tensor->params, tensor->extra, tensor->rows,
                               tensor->cols, out->scales, out->mins, out->zeros, err);
}

AQ_LIB bool aq_convert_put(const float *values, uint64_t count, aq_dtype dtype, size_t step,
                           unsigned char *out) {
    size_t size = aq_dtype_size(dtype);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t stored = 0; /* room for any float */
        float back;
        aq_from_f32(NULL, dtype, &values[i], &stored, 1);
        aq_to_f32(NULL, dtype, &stored, &back, 1);
        if (back != values[i]) return false;
        aq_little_endian(&stored, 1, size);
        memcpy(out + (size_t)i * step * size, &stored, size);
    }
    return true;
}

/* ---- to compressed-tensors */

/* An affine group is one of theirs when its minimum is a whole number of steps below zero. */
static bool aq_recode_whole_zeros(const aq_recode *recode) {
    float top = (float)((1u << recode->tensor->spec.bits) - 1u);
    for (uint64_t i = 0; i < recode->numbers.groups; i++) {
        float zero = recode->numbers.zeros[i];
        if (!(zero >= 0.0f && zero <= top) || zero != (float)(int32_t)zero) return false;
        if ((double)recode->numbers.scales[i] * (double)zero != 0.0 - (double)recode->numbers.mins[i]) return false;
    }
    return true;
}

static aq_status aq_recode_zero_points(aq_recode *recode) {
    const aq_quant_layout *layout = &recode->tensor->layout;
    uint32_t bits = recode->tensor->spec.bits;
    unsigned char *zeros = (unsigned char *)aq_arena_alloc(recode->arena, (size_t)recode->numbers.groups);
    void *made = NULL;
    if (!zeros) return aq_fail_memory(recode->err, (size_t)recode->numbers.groups);
    for (uint64_t i = 0; i < recode->numbers.groups; i++) zeros[i] = (unsigned char)recode->numbers.zeros[i];
    aq_status status =
        aq_recode_part(recode, AQ_CT_ZERO_POINT, AQ_DTYPE_I32, 2,
                       (layout->rows + 32 / bits - 1) / (32 / bits), layout->groups, 0, NULL, &made);
    if (status == AQ_OK)
        aq_ct_pack_zeros(zeros, layout->rows, layout->groups, bits, (unsigned char *)made);
    return status;
}

static aq_status aq_recode_compressed(aq_recode *recode) {
    const aq_tensor *tensor = recode->tensor;
    const aq_quant_layout *layout = &tensor->layout;
    bool symmetric = tensor->spec.code == AQ_CODE_SYMMETRIC;
    aq_dtype dtype = recode->dtype;
    void *shape = NULL, *scales = NULL;
    if (tensor->rank != 2 || !aq_ends_with(recode->name, ".weight"))
        return aq_recode_refuse(recode, "compressed-tensors has weights of linear layers only");
    if (tensor->time_groups)
        return aq_recode_refuse(recode, "compressed-tensors has no place for its time groups");
    if (tensor->cols % tensor->spec.group_size)
        return aq_recode_refuse(recode, "its columns are no multiple of the group size");
    if (!symmetric && !aq_recode_whole_zeros(recode))
        return aq_recode_refuse(recode, "its minimums are no whole numbers of steps, as "
                                "compressed-tensors wants them");
    aq_status status = aq_recode_part(recode, AQ_CT_SHAPE, AQ_DTYPE_I64, 1, 2, 0, 0, NULL, &shape);
    for (unsigned i = 0; status == AQ_OK && i < 16; i++)
        ((unsigned char *)shape)[i] =
            (unsigned char)((i < 8 ? tensor->rows : tensor->cols) >> (8 * (i % 8)));
    if (status == AQ_OK)
        status = aq_recode_part(recode, AQ_CT_PACKED, AQ_DTYPE_I32, 2, layout->rows,
                                layout->row_code_bytes / 4, 0, tensor->codes, NULL);
    if (status == AQ_OK && !symmetric) status = aq_recode_zero_points(recode);
    if (status == AQ_OK)
        status = aq_recode_part(recode, AQ_CT_SCALE, dtype, 2, layout->rows, layout->groups, 0, NULL,
                                &scales);
    if (status != AQ_OK) return status;
    if (aq_convert_put(recode->numbers.scales, recode->numbers.groups, dtype, 1, (unsigned char *)scales))
        return AQ_OK;
    return aq_recode_refuse(recode, "a scale is no number of the model's dtype, as "
                            "compressed-tensors wants it");
}

/* ---- to the native format */

/* scale·q + min gives scale·(q − zero) when both products are exact: 16 significant bits at most. */
static bool aq_recode_short_scales(const aq_recode *recode) {
    for (uint64_t i = 0; i < recode->numbers.groups; i++) {
        uint32_t bits;
        memcpy(&bits, &recode->numbers.scales[i], sizeof(bits));
        if (bits & 0xFFu) return false;
    }
    return true;
}

/* Whether the readers of F16 parameters take them all: normal numbers, exactly. */
static bool aq_recode_f16(const aq_recode *recode, bool symmetric, unsigned char *out) {
    size_t step = symmetric ? 1 : 2;
    for (uint64_t i = 0; i < recode->numbers.groups; i++)
        if (recode->numbers.scales[i] > -6.103515625e-05f && recode->numbers.scales[i] < 6.103515625e-05f)
            return false;
    return aq_convert_put(recode->numbers.scales, recode->numbers.groups, AQ_DTYPE_F16, step, out) &&
           (symmetric ||
            aq_convert_put(recode->numbers.mins, recode->numbers.groups, AQ_DTYPE_F16, step, out + 2));
}

/* Static integers of the input, as the native format stores them. */
static aq_status aq_recode_groups(aq_recode *recode) {
    const aq_time_groups *groups = recode->tensor->time_groups;
    void *starts = NULL, *scales = NULL, *zeros = NULL;
    size_t n = groups ? groups->count : 0;
    if (!groups) return AQ_OK;
    aq_status status = aq_recode_part(recode, AQ_ACT_STARTS_SUFFIX, AQ_DTYPE_I32, 1, n + 1, 0, 0,
                                      NULL, &starts);
    if (status == AQ_OK)
        status = aq_recode_part(recode, AQ_ACT_SCALES_SUFFIX, AQ_DTYPE_F32, 2, 2, n, 0, NULL,
                                &scales);
    if (status == AQ_OK)
        status = aq_recode_part(recode, AQ_ACT_ZEROS_SUFFIX, AQ_DTYPE_I32, 2, 2, n, 0, NULL,
                                &zeros);
    if (status != AQ_OK) return status;
    int32_t total = (int32_t)groups->total_timesteps;
    memcpy(starts, groups->starts, n * 4);
    memcpy((unsigned char *)starts + 4 * n, &total, 4);
    for (size_t w = 0; w < 2; w++) {
        memcpy((unsigned char *)scales + 4 * n * w, groups->scale[w], 4 * n);
        memcpy((unsigned char *)zeros + 4 * n * w, groups->zero_point[w], 4 * n);
    }
    aq_little_endian(starts, n + 1, 4);
    aq_little_endian(scales, 2 * n, 4);
    aq_little_endian(zeros, 2 * n, 4);
    return AQ_OK;
}

/* What the native format says of a layer's input: its scales, when equalized, and static integers. */
static aq_status aq_recode_input(aq_recode *recode, aq_native_tensor *native) {
    const aq_tensor *tensor = recode->tensor;
    void *made = NULL;
    if (tensor->input_scales) {
        native->input = AQ_NATIVE_SCALED;
        aq_status status = aq_recode_part(recode, AQ_INPUT_SCALES_SUFFIX, AQ_DTYPE_F32, 1,
                                          tensor->cols, 0, 0, NULL, &made);
        if (status != AQ_OK) return status;
        memcpy(made, tensor->input_scales, (size_t)tensor->cols * sizeof(float));
        aq_little_endian(made, (size_t)tensor->cols, sizeof(float));
    }
    return aq_recode_groups(recode);
}

static aq_status aq_recode_native(aq_recode *recode, aq_native_tensor *native) {
    const aq_tensor *tensor = recode->tensor;
    const aq_quant_layout *layout = &tensor->layout;
    bool symmetric = tensor->spec.code == AQ_CODE_SYMMETRIC;
    uint64_t per_group = symmetric ? 1 : 2;
    void *made = NULL;
    if (tensor->spec.code == AQ_CODE_ZERO_POINT && !aq_recode_short_scales(recode))
        return aq_recode_refuse(recode, "its scales have more bits than a minimum in F32 can hold");
    memset(native, 0, sizeof(*native));
    native->name = recode->name;
    native->spec = tensor->spec;
    native->spec.code = symmetric ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE;
    native->spec.params = AQ_PARAM_F16;
    native->code = aq_code_name(native->spec.code);
    native->known = true;
    native->dtype = tensor->dtype;
    native->rank = tensor->rank;
    native->shape = tensor->shape;
    native->method = tensor->method;
    native->cosine_similarity = tensor->cosine_similarity;
    native->sqnr_db = tensor->sqnr_db;
    aq_status status =
        aq_recode_part(recode, AQ_CODES_SUFFIX, AQ_DTYPE_I32, 2, layout->rows,
                       layout->row_code_bytes / 4, 0, tensor->codes, NULL);
    if (status == AQ_OK)
        status = aq_recode_part(recode, AQ_PARAMS_SUFFIX, AQ_DTYPE_F16, 3, layout->rows,
                                layout->groups, per_group, NULL, &made);
    if (status != AQ_OK || aq_recode_f16(recode, symmetric, (unsigned char *)made))
        return status == AQ_OK ? aq_recode_input(recode, native) : status;
    recode->count--; /* in F32 they always are what they are */
    native->spec.params = AQ_PARAM_F32;
    status = aq_recode_part(recode, AQ_PARAMS_SUFFIX, AQ_DTYPE_F32, 3, layout->rows, layout->groups,
                            per_group, NULL, &made);
    if (status != AQ_OK) return status;
    (void)aq_convert_put(recode->numbers.scales, recode->numbers.groups, AQ_DTYPE_F32, (size_t)per_group,
                        (unsigned char *)made);
    if (!symmetric)
        (void)aq_convert_put(recode->numbers.mins, recode->numbers.groups, AQ_DTYPE_F32, 2,
                            (unsigned char *)made + 4);
    return aq_recode_input(recode, native);
}

AQ_LIB aq_status aq_convert_layer(aq_arena *arena, const aq_tensor *tensor, const char *name,
                                  aq_output_format format, aq_dtype dtype,
                                  aq_converted_part *parts, size_t *count,
                                  aq_native_tensor *native, aq_error *err) {
    aq_recode recode;
    aq_tensor native_form;
    memset(&recode, 0, sizeof(recode));
    aq_status status = aq_convert_blocks(arena, tensor, name, &native_form, err);
    if (status != AQ_OK) return status;
    recode.arena = arena;
    recode.tensor = &native_form;
    recode.name = name;
    recode.dtype = dtype;
    recode.parts = parts;
    recode.err = err;
    if (tensor->input_scales && format != AQ_OUTPUT_NATIVE)
        return aq_recode_refuse(&recode, "its input is equalized, and the format has no place for the "
                                         "scales of that");
    status = aq_convert_numbers(arena, &native_form, &recode.numbers, err);
    if (status == AQ_OK)
        status = format == AQ_OUTPUT_COMPRESSED_TENSORS ? aq_recode_compressed(&recode)
                                                        : aq_recode_native(&recode, native);
    *count = recode.count;
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
