/* What public functions do not take: each argument in turn is refused with a message that names the
 * function or the layer, and nothing is written. */
#include "test.h"

#define COLS 64

static aq_error err;

/* Refused with that status, and a message that holds the word. */
#define REFUSED(call, status, word)                                                                \
    do {                                                                                           \
        memset(&err, 0, sizeof err);                                                               \
        CHECK_STATUS(call, status);                                                                \
        CHECK(strstr(err.message, word) != NULL);                                                  \
    } while (0)

/* Statistics of two timesteps, all the same. */
static float twos[2 * COLS];
static const int64_t steps[2] = {0, 999};
static const uint64_t step_rows[2] = {1, 1};

static aq_calibration_layer layer_of(void) {
    aq_calibration_layer layer;
    size_t i;
    for (i = 0; i < 2 * COLS; i++) {
        twos[i] = 2.0f;
    }
    memset(&layer, 0, sizeof layer);
    layer.name = "layer";
    layer.channels = COLS;
    layer.timestep_count = 2;
    layer.timesteps = steps;
    layer.rows = step_rows;
    layer.min = layer.max = layer.mean = layer.std = twos;
    layer.absmax = layer.sqmean = layer.pooled_absmax = layer.pooled_sqmean = twos;
    return layer;
}

TEST(equalizing) {
    static float weights[2 * COLS], scales[COLS];
    const aq_quant_spec spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 32, AQ_FIT_LEAST_SQUARES, 0, 0};
    const aq_status bad = AQ_ERR_ARGUMENT;
    aq_calibration_layer layer = layer_of();
    aq_equalization out;
#define EQUALIZE(spec, weights, dtype, rows, cols, layer, migration, bits, scales, out)            \
    aq_equalize(NULL, spec, weights, dtype, rows, cols, layer, migration, bits, scales, out, &err)
    REFUSED(EQUALIZE(NULL, weights, AQ_DTYPE_F32, 2, COLS, &layer, 0.5, 8, scales, &out),
            bad, "aq_equalize");
    REFUSED(EQUALIZE(&spec, NULL, AQ_DTYPE_F32, 2, COLS, &layer, 0.5, 8, scales, &out),
            bad, "aq_equalize");
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_I8, 2, COLS, &layer, 0.5, 8, scales, &out),
            bad, "float");
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_F32, 2, COLS, NULL, 0.5, 8, scales, &out),
            bad, "aq_equalize");
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_F32, 2, COLS, &layer, 1.5, 8, scales, &out),
            bad, "migration");
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_F32, 2, COLS, &layer, -0.5, 8, scales, &out),
            bad, "migration");
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_F32, 2, COLS, &layer, 0.5, 5, scales, &out),
            bad, "activation_bits");
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_F32, 2, COLS, &layer, 0.5, 8, NULL, &out),
            bad, "aq_equalize");
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_F32, 2, COLS, &layer, 0.5, 8, scales, NULL),
            bad, "aq_equalize");
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_F32, 0, COLS, &layer, 0.5, 8, scales, &out),
            AQ_ERR_SHAPE, "layer");
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_F32, 2, 0, &layer, 0.5, 8, scales, &out),
            AQ_ERR_SHAPE, "64 channels");
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_F32, 2, 32, &layer, 0.5, 8, scales, &out),
            AQ_ERR_SHAPE, "[2, 32]");
    layer.pooled_sqmean = NULL;
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_F32, 2, COLS, &layer, 0.5, 8, scales, &out),
            bad, "act_sqmean");
    layer = layer_of();
    layer.pooled_absmax = NULL;
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_F32, 2, COLS, &layer, 0.5, 8, scales, &out),
            bad, "act_absmax");
    layer = layer_of();
    layer.absmax = NULL;
    REFUSED(EQUALIZE(&spec, weights, AQ_DTYPE_F32, 2, COLS, &layer, 0.5, 8, scales, &out),
            bad, "act_absmax");
#undef EQUALIZE
    CHECK(scales[0] == 0.0f && scales[COLS - 1] == 0.0f);
}

TEST(time_groups) {
    aq_calibration_layer layer = layer_of();
    aq_time_options good, options;
    aq_time_groups groups;
    aq_activation activation;
    memset(&good, 0, sizeof good);
    good.num_time_groups = 2;
    good.total_timesteps = 1000;
    good.percentile = 99.0f;
    REFUSED(aq_time_groups_make(NULL, NULL, &good, &groups, &err), AQ_ERR_ARGUMENT, "NULL");
    REFUSED(aq_time_groups_make(NULL, &layer, NULL, &groups, &err), AQ_ERR_ARGUMENT, "NULL");
    REFUSED(aq_time_groups_make(NULL, &layer, &good, NULL, &err), AQ_ERR_ARGUMENT, "NULL");
    options = good;
    options.num_time_groups = 0;
    REFUSED(aq_time_groups_make(NULL, &layer, &options, &groups, &err),
            AQ_ERR_TIME_GROUPS, "num_time_groups");
    options.num_time_groups = AQ_TIME_GROUPS_MAX + 1;
    REFUSED(aq_time_groups_make(NULL, &layer, &options, &groups, &err),
            AQ_ERR_TIME_GROUPS, "num_time_groups");
    options = good;
    options.total_timesteps = 0;
    REFUSED(aq_time_groups_make(NULL, &layer, &options, &groups, &err),
            AQ_ERR_TIME_GROUPS, "total_timesteps");
    options.total_timesteps = 1000001;
    REFUSED(aq_time_groups_make(NULL, &layer, &options, &groups, &err),
            AQ_ERR_TIME_GROUPS, "1000001");
    options = good;
    options.range = AQ_RANGE_PERCENTILE;
    options.percentile = 49.0f;
    REFUSED(aq_time_groups_make(NULL, &layer, &options, &groups, &err),
            AQ_ERR_ARGUMENT, "percentile");
    options.percentile = 101.0f;
    REFUSED(aq_time_groups_make(NULL, &layer, &options, &groups, &err),
            AQ_ERR_ARGUMENT, "percentile");
    options = good;
    options.channel_group = 8;
    layer.absmax = NULL;
    REFUSED(aq_time_groups_make(NULL, &layer, &options, &groups, &err),
            AQ_ERR_ARGUMENT, "by channel");
    layer.timestep_count = 0;
    REFUSED(aq_time_groups_make(NULL, &layer, &good, &groups, &err),
            AQ_ERR_ARGUMENT, "no timesteps");
    memset(&groups, 0, sizeof groups);
    REFUSED(aq_time_activation(NULL, 0, &activation, &err), AQ_ERR_ARGUMENT, "aq_time_activation");
    REFUSED(aq_time_activation(&groups, 0, NULL, &err), AQ_ERR_ARGUMENT, "aq_time_activation");
    REFUSED(aq_time_activation(&groups, 0, &activation, &err),
            AQ_ERR_ARGUMENT, "aq_time_activation");
}

TEST(statistics) {
    static float data[COLS];
    aq_observer *observer;
    aq_calibration *calibration;
    CHECK_STATUS(aq_observer_create(NULL, NULL, &observer, &err), AQ_OK);
    REFUSED(aq_observer_feed(NULL, "x", 0, AQ_DTYPE_F32, data, 1, COLS, &err),
            AQ_ERR_ARGUMENT, "aq_observer_feed");
    REFUSED(aq_observer_feed(observer, NULL, 0, AQ_DTYPE_F32, data, 1, COLS, &err),
            AQ_ERR_ARGUMENT, "NULL");
    REFUSED(aq_observer_feed(observer, "x", 0, AQ_DTYPE_F32, NULL, 1, COLS, &err),
            AQ_ERR_ARGUMENT, "NULL");
    REFUSED(aq_observer_feed(observer, "x", 0, AQ_DTYPE_F32, data, UINT64_C(1) << 62, 2, &err),
            AQ_ERR_SHAPE, "layer x");
    REFUSED(aq_observer_feed(observer, "x", 0, AQ_DTYPE_F32, data, 1, UINT64_C(1) << 33, &err),
            AQ_ERR_SHAPE, "channels");
    REFUSED(aq_observer_calibration(NULL, &calibration, &err),
            AQ_ERR_ARGUMENT, "aq_observer_calibration");
    REFUSED(aq_observer_calibration(observer, NULL, &err),
            AQ_ERR_ARGUMENT, "aq_observer_calibration");
    REFUSED(aq_observer_merge(observer, NULL, &err), AQ_ERR_ARGUMENT, "aq_observer_merge");
    CHECK_STATUS(aq_observer_calibration(observer, &calibration, &err), AQ_OK);
    CHECK(calibration->layer_count == 0);
    REFUSED(aq_observer_merge(NULL, calibration, &err), AQ_ERR_ARGUMENT, "aq_observer_merge");
    CHECK(!aq_calibration_find(NULL, "x") && !aq_calibration_find(calibration, NULL));
    REFUSED(aq_calibration_hessian(NULL, NULL, NULL, data, &err), AQ_ERR_ARGUMENT, "NULL");
    REFUSED(aq_calibration_hessian(NULL, calibration, NULL, data, &err), AQ_ERR_ARGUMENT, "NULL");
#ifndef ARROWQUANT_NO_STDIO
    REFUSED(aq_observer_load(NULL, "x", &err), AQ_ERR_ARGUMENT, "aq_observer_load");
    REFUSED(aq_observer_load(observer, NULL, &err), AQ_ERR_ARGUMENT, "aq_observer_load");
    REFUSED(aq_observer_save(NULL, "x", &err), AQ_ERR_ARGUMENT, "aq_observer_save");
    REFUSED(aq_observer_save(observer, NULL, &err), AQ_ERR_ARGUMENT, "aq_observer_save");
#endif
    aq_calibration_close(calibration);
    aq_observer_destroy(observer);
}

TEST(layers) {
    static const float weights[2 * COLS] = {1.0f}, x[COLS] = {1.0f};
    static float y[2];
    static uint8_t scratch[1 << 16];
    const aq_activation odd = {AQ_ACTIVATION_STATIC, 1.0f, -129};
    aq_tensor tensor;
    aq_linear linear, out;
    memset(&linear, 0, sizeof linear);
    memset(&tensor, 0, sizeof tensor);
    linear.name = "proj";
    linear.rows = 2;
    linear.cols = COLS;
    linear.dtype = AQ_DTYPE_F32;
    linear.data = weights;
    CHECK(aq_linear_scratch_size(NULL, &linear, 1) <= sizeof scratch);
    REFUSED(aq_linear_forward(NULL, &linear, NULL, AQ_DTYPE_F32, 1, NULL, y, scratch,
            sizeof scratch, &err),
            AQ_ERR_ARGUMENT, "x is NULL");
    REFUSED(aq_linear_forward(NULL, &linear, x, AQ_DTYPE_F32, 1, NULL, NULL, scratch,
            sizeof scratch, &err),
            AQ_ERR_ARGUMENT, "y is NULL");
    REFUSED(aq_linear_forward(NULL, &linear, x, AQ_DTYPE_F32, 1, &odd, y, scratch, sizeof scratch,
            &err),
            AQ_ERR_ARGUMENT, "zero");
    REFUSED(aq_linear_row(NULL, &linear, 0, NULL, &err), AQ_ERR_ARGUMENT, "out is NULL");
    REFUSED(aq_linear_row(NULL, &linear, 2, y, &err), AQ_ERR_SHAPE, "row 2");
    REFUSED(aq_linear_from_tensors(NULL, NULL, &out, &err), AQ_ERR_ARGUMENT, "weight is NULL");
    REFUSED(aq_linear_from_tensors(&tensor, NULL, NULL, &err), AQ_ERR_ARGUMENT, "out is NULL");
    CHECK_STATUS(aq_quantized_size(NULL, 1, 1, NULL, &err), AQ_ERR_ARGUMENT);
    CHECK(y[0] == 0.0f && y[1] == 0.0f);
}

TEST(convolutions) {
    static const float weights[4 * 9] = {1.0f}, x[64] = {1.0f};
    static float y[4 * 64];
    static uint8_t scratch[1 << 16];
    uint64_t height, width;
    uint32_t *fields[6];
    aq_conv2d conv;
    size_t i;
    memset(&conv, 0, sizeof conv);
    conv.linear.name = "conv";
    conv.linear.rows = 4;
    conv.linear.cols = 9;
    conv.linear.dtype = AQ_DTYPE_F32;
    conv.linear.data = weights;
    fields[0] = &conv.kernel_height, fields[1] = &conv.kernel_width;
    fields[2] = &conv.stride_y, fields[3] = &conv.stride_x;
    fields[4] = &conv.dilation_y, fields[5] = &conv.dilation_x;
    for (i = 0; i < 6; i++) {
        *fields[i] = i < 2 ? 3 : 1;
    }
    REFUSED(aq_conv2d_size(NULL, 8, 8, &height, &width, &err), AQ_ERR_ARGUMENT, "");
    for (i = 0; i < 6; i++) {
        const uint32_t kept = *fields[i];
        *fields[i] = 0;
        CHECK(aq_conv2d_size(&conv, 8, 8, &height, &width, &err) != AQ_OK);
        CHECK(aq_conv2d_scratch_size(NULL, &conv, 8, 8) == 0);
        *fields[i] = kept;
    }
    CHECK_STATUS(aq_conv2d_size(&conv, 8, 8, &height, &width, &err), AQ_OK);
    CHECK(height == 6 && width == 6);
    CHECK(aq_conv2d_size(&conv, 8, 2, &height, &width, &err) == AQ_ERR_SHAPE);
    CHECK(aq_conv2d_size(&conv, 2, 8, &height, &width, &err) == AQ_ERR_SHAPE);
    CHECK(aq_conv2d_size(&conv, UINT64_MAX, 8, &height, &width, &err) == AQ_OK); /* no padding to overflow */
    conv.padding_y = 1;
    CHECK(aq_conv2d_size(&conv, UINT64_MAX, 8, &height, &width, &err) == AQ_ERR_SHAPE);
    conv.padding_y = 0;
    CHECK(aq_conv2d_scratch_size(NULL, &conv, 8, 8) <= sizeof scratch);
#define CONV(x, y, scratch, bytes)                                                                 \
    aq_conv2d_forward(NULL, &conv, x, AQ_DTYPE_F32, 1, 8, 8, NULL, y, scratch, bytes, &err)
    REFUSED(CONV(NULL, y, scratch, sizeof scratch), AQ_ERR_ARGUMENT, "conv");
    REFUSED(CONV(x, NULL, scratch, sizeof scratch), AQ_ERR_ARGUMENT, "conv");
    REFUSED(CONV(x, y, NULL, sizeof scratch), AQ_ERR_ARGUMENT, "conv");
    REFUSED(CONV(x, y, scratch, 1), AQ_ERR_ARGUMENT, "conv");
#undef CONV
    CHECK(y[0] == 0.0f);
}

#ifndef ARROWQUANT_NO_STDIO
TEST(comparisons) {
    aq_validation out;
    char *text;
    size_t size;
    memset(&out, 0, sizeof out);
    REFUSED(aq_validate_quality(NULL, NULL, "b", NULL, NULL, NULL, &out, &err),
            AQ_ERR_ARGUMENT, "aq_validate_quality");
    REFUSED(aq_validate_quality(NULL, "a", NULL, NULL, NULL, NULL, &out, &err),
            AQ_ERR_ARGUMENT, "aq_validate_quality");
    REFUSED(aq_validate_quality(NULL, "a", "b", NULL, NULL, NULL, NULL, &err),
            AQ_ERR_ARGUMENT, "aq_validate_quality");
    REFUSED(aq_compare_models(NULL, NULL, "b", NULL, NULL, &out, &err),
            AQ_ERR_ARGUMENT, "aq_compare_models");
    REFUSED(aq_compare_models(NULL, "a", NULL, NULL, NULL, &out, &err),
            AQ_ERR_ARGUMENT, "aq_compare_models");
    REFUSED(aq_compare_models(NULL, "a", "b", NULL, NULL, NULL, &err),
            AQ_ERR_ARGUMENT, "aq_compare_models");
    REFUSED(aq_validation_to_json(NULL, NULL, &text, &size, &err), AQ_ERR_ARGUMENT, "NULL");
    REFUSED(aq_validation_to_json(NULL, &out, NULL, &size, &err), AQ_ERR_ARGUMENT, "NULL");
    REFUSED(aq_validation_to_json(NULL, &out, &text, NULL, &err), AQ_ERR_ARGUMENT, "NULL");
}
#endif

int main(void) {
    RUN(equalizing);
    RUN(time_groups);
    RUN(statistics);
    RUN(layers);
    RUN(convolutions);
#ifndef ARROWQUANT_NO_STDIO
    RUN(comparisons);
#endif
    return test_end();
}
