/* FP8 scales: names, shapes, application. */
#include "fp8.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_FP8_BLOCK 128u

static const aq_fp8_name aq_fp8_names[AQ_FP8_NAMES] = {
    { "", "_scale_inv" }, { "", "_scale" }, { "weight", "scale_weight" },
};

AQ_LIB const aq_fp8_name *aq_fp8_name_at(size_t index) {
    return &aq_fp8_names[index];
}

AQ_LIB bool aq_dtype_is_fp8(aq_dtype dtype) {
    return dtype == AQ_DTYPE_F8_E4M3 || dtype == AQ_DTYPE_F8_E5M2;
}

static uint64_t aq_ceil_div(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

AQ_LIB aq_status aq_fp8_scale_shape(const aq_fp8_shape *weight, const aq_fp8_shape *scale,
                                    aq_fp8_scale *out, aq_error *err) {
    uint64_t count = scale->rows * scale->cols;
    memset(out, 0, sizeof(*out));
    out->cols = 1;
    out->col_step = weight->cols;
    if (count == 1) {
        out->row_step = weight->rows;
        return AQ_OK;
    }
    if (count == weight->rows && (scale->rank == 1 || scale->cols == 1)) {
        out->row_step = 1;
        return AQ_OK;
    }
    if (scale->rank == 2 && scale->rows == aq_ceil_div(weight->rows, AQ_FP8_BLOCK) &&
        scale->cols == aq_ceil_div(weight->cols, AQ_FP8_BLOCK)) {
        out->row_step = out->col_step = AQ_FP8_BLOCK;
        out->cols = scale->cols;
        return AQ_OK;
    }
    return aq_fail_tensor(err, AQ_ERR_SHAPE, weight->name, 0,
                          "%s/%s: tensor %s: its scale %s has %llu elements, which is neither one, "
                          "nor one a row (%llu), nor one a block of 128 × 128; download the model "
                          "again", scale->folder, scale->file, weight->name, scale->name,
                          (unsigned long long)count, (unsigned long long)weight->rows);
}

AQ_LIB void aq_fp8_apply(const aq_fp8_scale *scale, float *rows, uint64_t first_row,
                         uint64_t row_count, uint64_t cols) {
    for (uint64_t r = 0; r < row_count; r++) {
        const float *factors = scale->values + (first_row + r) / scale->row_step * scale->cols;
        float *row = rows + r * cols;
        for (uint64_t c = 0; c < cols; c++) row[c] *= factors[c / scale->col_step];
    }
}

#undef AQ_FP8_BLOCK
#endif /* ARROWQUANT_NO_STDIO */
