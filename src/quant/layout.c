/* Names of types and codes, and the sizes of a quantized tensor's parts. */
#include "quant.h"

ARROWQUANT_API const char *aq_dtype_name(aq_dtype dtype) {
    switch (dtype) {
#define AQ_DTYPE_NAME(id, value, name, size) case id: return name;
        AQ_DTYPE_LIST(AQ_DTYPE_NAME)
#undef AQ_DTYPE_NAME
    case AQ_DTYPE_COUNT: break;
    }
    return "unknown";
}

ARROWQUANT_API size_t aq_dtype_size(aq_dtype dtype) {
    switch (dtype) {
#define AQ_DTYPE_SIZE(id, value, name, size) case id: return size;
        AQ_DTYPE_LIST(AQ_DTYPE_SIZE)
#undef AQ_DTYPE_SIZE
    case AQ_DTYPE_COUNT: break;
    }
    return 0;
}

AQ_LIB bool aq_dtype_is_float(aq_dtype dtype) {
    return dtype == AQ_DTYPE_F64 || dtype == AQ_DTYPE_F32 || dtype == AQ_DTYPE_F16 ||
           dtype == AQ_DTYPE_BF16 || dtype == AQ_DTYPE_F8_E4M3 || dtype == AQ_DTYPE_F8_E5M2;
}

/* The block codes, from AQ_CODE_Q8_0 on. */
typedef struct aq_block_info {
    const char *name;
    uint32_t bits, weights, bytes;
} aq_block_info;

static const aq_block_info aq_block_infos[AQ_CODE_COUNT - AQ_CODE_Q8_0] = {
    { "Q8_0", 8, 32, 34 },   { "Q4_0", 4, 32, 18 },  { "Q4_1", 4, 32, 20 },
    { "Q4_K", 4, 256, 144 }, { "Q2_K", 2, 256, 84 },
};

AQ_LIB bool aq_code_is_block(aq_code code) {
    return code >= AQ_CODE_Q8_0 && code < AQ_CODE_COUNT;
}

AQ_LIB uint32_t aq_block_weights(aq_code code) {
    return aq_block_infos[code - AQ_CODE_Q8_0].weights;
}

AQ_LIB uint32_t aq_block_bytes(aq_code code) {
    return aq_block_infos[code - AQ_CODE_Q8_0].bytes;
}

ARROWQUANT_API aq_quant_spec aq_block_spec(aq_code code) {
    aq_quant_spec spec;
    memset(&spec, 0, sizeof spec);
    if (aq_code_is_block(code)) {
        spec.code = code;
        spec.params = AQ_PARAM_F16;
        spec.bits = aq_block_infos[code - AQ_CODE_Q8_0].bits;
        spec.group_size = aq_block_infos[code - AQ_CODE_Q8_0].weights;
    }
    return spec;
}

ARROWQUANT_API const char *aq_code_name(aq_code code) {
    if (aq_code_is_block(code)) {
        return aq_block_infos[code - AQ_CODE_Q8_0].name;
    }
    switch (code) {
    case AQ_CODE_AFFINE: return "affine";
    case AQ_CODE_SYMMETRIC: return "symmetric";
    case AQ_CODE_ZERO_POINT: return "zero_point";
    case AQ_CODE_RESIDUAL: return "residual";
    case AQ_CODE_TRELLIS: return "trellis";
    default: return "unknown";
    }
}

AQ_LIB const char *aq_param_type_name(aq_param_type type) {
    switch (type) {
    case AQ_PARAM_F16: return "F16";
    case AQ_PARAM_F32: return "F32";
    case AQ_PARAM_Q8: return "Q8";
    case AQ_PARAM_BF16: return "BF16";
    }
    return "unknown";
}

static aq_status aq_group_size_check(const aq_quant_spec *spec, aq_error *err) {
    if (spec->group_size != 32 && spec->group_size != 64 && spec->group_size != 128 &&
        spec->group_size != 256) {
        return aq_fail(err, AQ_ERR_GROUP_SIZE, "group size is %u; use 32, 64, 128 or 256",
                       (unsigned)spec->group_size);
    }
    return AQ_OK;
}

static aq_status aq_trellis_spec_check(const aq_quant_spec *spec, aq_error *err) {
    if (spec->bits != 2 && spec->bits != 3 && spec->bits != 4) {
        return aq_fail(err, AQ_ERR_BIT_WIDTH, "bit width is %u; a trellis has 2, 3 or 4",
                       (unsigned)spec->bits);
    }
    if (spec->states != 256 && spec->states != 1024 && spec->states != 4096) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "a trellis of %u states; use 256, 1024 or 4096",
                       (unsigned)spec->states);
    }
    if (spec->params != AQ_PARAM_F16 && spec->params != AQ_PARAM_F32) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "the code %s has no %s parameters; use AQ_PARAM_F16 "
                       "or AQ_PARAM_F32", aq_code_name(spec->code),
                       aq_param_type_name(spec->params));
    }
    return aq_group_size_check(spec, err);
}

/* A block code leaves nothing to choose. */
static aq_status aq_block_spec_check(const aq_quant_spec *spec, aq_error *err) {
    aq_quant_spec right = aq_block_spec(spec->code);
    if (spec->bits != right.bits) {
        return aq_fail(err, AQ_ERR_BIT_WIDTH, "bit width is %u; %s has %u", (unsigned)spec->bits,
                       aq_code_name(spec->code), (unsigned)right.bits);
    }
    if (spec->group_size != right.group_size) {
        return aq_fail(err, AQ_ERR_GROUP_SIZE, "group size is %u; %s has %u",
                       (unsigned)spec->group_size, aq_code_name(spec->code),
                       (unsigned)right.group_size);
    }
    if (spec->params != AQ_PARAM_F16) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s has F16 parameters alone; use AQ_PARAM_F16",
                       aq_code_name(spec->code));
    }
    return AQ_OK;
}

AQ_LIB aq_status aq_spec_check(const aq_quant_spec *spec, aq_error *err) {
    if (!spec) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "the quantization spec is NULL");
    }
    if (aq_code_is_block(spec->code)) {
        return aq_block_spec_check(spec, err);
    }
    if (spec->code == AQ_CODE_TRELLIS) {
        return aq_trellis_spec_check(spec, err);
    }
    if (spec->bits != 2 && spec->bits != 4 && spec->bits != 8) {
        return aq_fail(err, AQ_ERR_BIT_WIDTH, "bit width is %u; use 2, 4 or 8",
                       (unsigned)spec->bits);
    }
    if (aq_group_size_check(spec, err) != AQ_OK) {
        return AQ_ERR_GROUP_SIZE;
    }
    if (spec->code != AQ_CODE_AFFINE && spec->code != AQ_CODE_SYMMETRIC &&
        spec->code != AQ_CODE_ZERO_POINT && spec->code != AQ_CODE_RESIDUAL) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED,
                       "code %d is not known; use AQ_CODE_AFFINE, AQ_CODE_SYMMETRIC, "
                       "AQ_CODE_ZERO_POINT, AQ_CODE_RESIDUAL or AQ_CODE_TRELLIS", (int)spec->code);
    }
    if (spec->params != AQ_PARAM_F16 && spec->params != AQ_PARAM_F32 &&
        spec->params != AQ_PARAM_Q8 && spec->params != AQ_PARAM_BF16) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED,
                       "parameter type %d is not known; use AQ_PARAM_F16, AQ_PARAM_BF16, "
                       "AQ_PARAM_F32 or AQ_PARAM_Q8", (int)spec->params);
    }
    if ((spec->code == AQ_CODE_AFFINE && spec->params == AQ_PARAM_BF16) ||
        (spec->code == AQ_CODE_RESIDUAL &&
         (spec->params == AQ_PARAM_BF16 || spec->params == AQ_PARAM_Q8)) ||
        (spec->code == AQ_CODE_ZERO_POINT && spec->params == AQ_PARAM_Q8)) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "the code %s has no %s parameters; use AQ_PARAM_F16 "
                       "or AQ_PARAM_F32", aq_code_name(spec->code),
                       aq_param_type_name(spec->params));
    }
    if (spec->code == AQ_CODE_RESIDUAL && spec->bits != 2) {
        return aq_fail(err, AQ_ERR_BIT_WIDTH, "bit width is %u; the residual code has 2",
                       (unsigned)spec->bits);
    }
    return AQ_OK;
}

static aq_status aq_block_size(const aq_quant_spec *spec, uint64_t rows, uint64_t cols,
                               aq_quant_layout *out, aq_error *err) {
    aq_quant_layout layout;
    uint64_t weights;
    memset(&layout, 0, sizeof layout);
    layout.rows = rows;
    layout.cols = cols;
    layout.groups = cols / spec->group_size;
    if (cols % spec->group_size) {
        return aq_fail(err, AQ_ERR_SHAPE, "%llu columns are no multiple of %u, the block of %s",
                       (unsigned long long)cols, (unsigned)spec->group_size,
                       aq_code_name(spec->code));
    }
    if (!aq_mul_u64(layout.groups, aq_block_bytes(spec->code), &layout.row_code_bytes) ||
        !aq_mul_u64(layout.row_code_bytes, rows, &layout.code_bytes) ||
        !aq_mul_u64(rows, cols, &weights)) {
        return aq_fail(err, AQ_ERR_SHAPE, "[%llu, %llu] is too large: its size needs over 64 bits",
                       (unsigned long long)rows, (unsigned long long)cols);
    }
    *out = layout;
    return AQ_OK;
}

ARROWQUANT_API aq_status aq_quantized_size(const aq_quant_spec *spec, uint64_t rows, uint64_t cols,
                                           aq_quant_layout *out, aq_error *err) {
    aq_quant_layout layout;
    uint64_t words, values, param, zero, weights;
    aq_status status = aq_spec_check(spec, err);
    if (status != AQ_OK) {
        return status;
    }
    if (!out) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_quantized_size: out is NULL");
    }
    if (aq_code_is_block(spec->code)) {
        return aq_block_size(spec, rows, cols, out, err);
    }
    words = cols / 32u * spec->bits + (cols % 32u * spec->bits + 31u) / 32u;
    values = spec->code == AQ_CODE_AFFINE || spec->code == AQ_CODE_RESIDUAL ? 2u : 1u;
    param = spec->params == AQ_PARAM_F32 ? 4u : spec->params == AQ_PARAM_Q8 ? 1u : 2u;
    zero = spec->code == AQ_CODE_ZERO_POINT ? 1u : 0u;
    layout.rows = rows;
    layout.cols = cols;
    layout.groups = cols / spec->group_size + (cols % spec->group_size != 0);
    layout.row_param_bytes = layout.groups * (values * param + zero); /* at most cols / 4 + 8: no overflow */
    layout.row_extra_bytes = spec->params == AQ_PARAM_Q8 ? 2u * values : 0u;
    if (!aq_mul_u64(words, 4u, &layout.row_code_bytes) ||
        !aq_mul_u64(layout.row_code_bytes, rows, &layout.code_bytes) ||
        !aq_mul_u64(layout.row_param_bytes, rows, &layout.param_bytes) ||
        !aq_mul_u64(layout.row_extra_bytes, rows, &layout.extra_bytes) ||
        !aq_mul_u64(rows, cols, &weights)) {
        return aq_fail(err, AQ_ERR_SHAPE, "[%llu, %llu] is too large: its size needs over 64 bits",
                       (unsigned long long)rows, (unsigned long long)cols);
    }
    *out = layout;
    return AQ_OK;
}

AQ_LIB uint64_t aq_block_rows(uint64_t cols) {
    return cols == 0 || cols > AQ_BLOCK_WEIGHTS ? 1u : AQ_BLOCK_WEIGHTS / cols;
}
