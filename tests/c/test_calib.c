/* The observer and its sketch: against figures computed here the plain way, in any order and from
 * several threads, and what is refused. */
#include "test.h"

#define ROWS 96u
#define CHANNELS 40u

static float data[ROWS * CHANNELS];

static void make_data(uint64_t seed, double spread, double offset) {
    uint64_t state = seed;
    for (size_t i = 0; i < ROWS * CHANNELS; i++)
        data[i] = (float)(offset + spread * test_normal(&state) *
                                       (i % CHANNELS == 3 ? 20.0 : 1.0));
    for (size_t r = 0; r < ROWS; r++) data[r * CHANNELS + 7] = 0.0f; /* a dead channel */
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static void check_layer(const aq_calibration *calibration, const aq_calibration_layer *layer,
                        size_t at, double tolerance) {
    double sum = 0, square = 0, low = 1e300, high = -1e300;
    size_t c = CHANNELS;
    for (size_t i = 0; i < ROWS * CHANNELS; i++) {
        sum += (double)data[i];
        if ((double)data[i] < low) low = (double)data[i];
        if ((double)data[i] > high) high = (double)data[i];
    }
    double mean = sum / (ROWS * CHANNELS);
    for (size_t i = 0; i < ROWS * CHANNELS; i++)
        square += ((double)data[i] - mean) * ((double)data[i] - mean);
    CHECK((double)layer->min[at] == low && (double)layer->max[at] == high);
    CHECK_RANGE(mean - tolerance, layer->mean[at], mean + tolerance);
    double deviation = sqrt(square / (ROWS * CHANNELS));
    CHECK_RANGE(deviation * (1 - 1e-6) - 2e-45, layer->std[at], deviation * (1 + 1e-6) + 2e-45);
    for (size_t k = 0; k < c; k++) {
        double squares = 0, most = 0, least = 1e300, largest = -1e300;
        for (size_t r = 0; r < ROWS; r++) {
            double x = (double)data[r * c + k];
            squares += x * x / ROWS;
            if (fabs(x) > most) most = fabs(x);
            if (x < least) least = x;
            if (x > largest) largest = x;
        }
        CHECK((double)layer->absmax[at * c + k] == most);
        CHECK((double)layer->channel_min[at * c + k] == least);
        CHECK((double)layer->channel_max[at * c + k] == largest);
        CHECK_RANGE(squares * (1 - 1e-6) - 1e-38, layer->sqmean[at * c + k],
                    squares * (1 + 1e-6) + 1e-38);
    }
    static float sorted[ROWS * CHANNELS];
    memcpy(sorted, data, sizeof(sorted));
    qsort(sorted, ROWS * CHANNELS, sizeof(float), compare_floats);
    double largest = fabs(high) > fabs(low) ? fabs(high) : fabs(low);
    for (size_t p = 0; p < calibration->percentile_count; p++) {
        double rank = (double)calibration->percentile_points[p] / 100.0 * (ROWS * CHANNELS - 1);
        double lower = (double)sorted[(size_t)rank];
        double upper = (double)sorted[(size_t)ceil(rank)];
        double found = (double)layer->percentiles[at * calibration->percentile_count + p];
        double slack_low = fabs(lower) / 32 + largest / 1024 + 1e-30;
        double slack_high = fabs(upper) / 32 + largest / 1024 + 1e-30;
        CHECK_RANGE(lower - slack_low, found, upper + slack_high);
    }
}

/* Rows in pieces of any size, any order of timesteps. */
TEST(figures) {
    static const struct { double spread, offset; } cases[] = { { 1, 0 },     { 1e-6, 3 },
                                                               { 1e6, -1e5 }, { 1e-30, 0 },
                                                               { 1, 1000 },  { 1e-42, 0 } };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        aq_observer *observer;
        aq_calibration *calibration;
        make_data(i + 1, cases[i].spread, cases[i].offset);
        CHECK_STATUS(aq_observer_create(NULL, NULL, &observer, NULL), AQ_OK);
        for (int t = 3; t >= 0; t--) {
            for (size_t r = 0, take = 1; r < ROWS; r += take, take = take * 2 + (size_t)t) {
                if (take > ROWS - r) take = ROWS - r;
                CHECK_STATUS(aq_observer_feed(observer, "layer", t * 10, AQ_DTYPE_F32,
                                              data + r * CHANNELS, take, CHANNELS, NULL), AQ_OK);
            }
        }
        CHECK_STATUS(aq_observer_calibration(observer, &calibration, NULL), AQ_OK);
        aq_observer_destroy(observer);
        const aq_calibration_layer *layer = aq_calibration_find(calibration, "net/layer.weight");
        CHECK(layer && layer->timestep_count == 4 && layer->channels == CHANNELS);
        for (size_t t = 0; layer && t < 4; t++) {
            CHECK(layer->timesteps[t] == (int64_t)t * 10 && layer->rows[t] == ROWS);
            check_layer(calibration, layer, t,
                        1e-6 * (fabs(cases[i].offset) + cases[i].spread) + 1e-44);
        }
        CHECK(!aq_calibration_find(calibration, "laye") && !aq_calibration_find(calibration, ""));
        CHECK(layer && !layer->has_hessian);
        aq_calibration_close(calibration);
    }
}

TEST(dtypes) {
    static unsigned char bytes[ROWS * CHANNELS * 8];
    static const aq_dtype dtypes[] = { AQ_DTYPE_F64, AQ_DTYPE_F16, AQ_DTYPE_BF16, AQ_DTYPE_F8_E4M3 };
    for (size_t i = 0; i < 4; i++) {
        aq_observer *observer;
        aq_calibration *calibration;
        make_data(9, 1, 0);
        for (size_t k = 0; k < ROWS * CHANNELS; k++) { /* values that every one of them holds */
            data[k] = (float)((int)(data[k] * 2)) * 0.5f;
            if (fabs((double)data[k]) > 8) data[k] = 8;
            double wide = (double)data[k];
            if (dtypes[i] == AQ_DTYPE_F64) memcpy(bytes + 8 * k, &wide, 8);
        }
        if (dtypes[i] == AQ_DTYPE_F16 || dtypes[i] == AQ_DTYPE_BF16) {
            aq_from_f32(NULL, dtypes[i], data, bytes, ROWS * CHANNELS);
        } else if (dtypes[i] == AQ_DTYPE_F8_E4M3) {
            for (size_t k = 0; k < ROWS * CHANNELS; k++) {
                bytes[k] = (unsigned char)(k % 127);
                aq_to_f32(NULL, AQ_DTYPE_F8_E4M3, bytes + k, data + k, 1);
            }
        }
        CHECK_STATUS(aq_observer_create(NULL, NULL, &observer, NULL), AQ_OK);
        CHECK_STATUS(aq_observer_feed(observer, "x", 0, dtypes[i], bytes, ROWS, CHANNELS, NULL),
                     AQ_OK);
        CHECK_STATUS(aq_observer_calibration(observer, &calibration, NULL), AQ_OK);
        check_layer(calibration, &calibration->layers[0], 0, 1e-4);
        aq_calibration_close(calibration);
        aq_observer_destroy(observer);
    }
}

/* ---- threads */

typedef struct feeding {
    aq_observer *observer;
} feeding;

static aq_status feed_row(void *user, size_t index, uint32_t worker, aq_error *err) {
    const feeding *job = (const feeding *)user;
    (void)worker;
    size_t row = index * 37 % ROWS; /* another order than by rows */
    aq_status status = aq_observer_feed(job->observer, "same", 0, AQ_DTYPE_F32,
                                        data + row * CHANNELS, 1, CHANNELS, err);
    char name[32];
    aq_format(name, sizeof(name), "own.%zu", row);
    if (status == AQ_OK)
        status = aq_observer_feed(job->observer, name, (int64_t)row, AQ_DTYPE_F32,
                                  data + row * CHANNELS, 1, CHANNELS, err);
    return status;
}

TEST(threads) {
    aq_observer_options options;
    aq_calibration *calibration;
    feeding job;
    memset(&options, 0, sizeof(options));
    options.second_moments = true;
    make_data(4, 1, 0.5);
    CHECK_STATUS(aq_observer_create(NULL, &options, &job.observer, NULL), AQ_OK);
    CHECK_STATUS(aq_parallel_for(NULL, 4, ROWS, feed_row, &job, NULL), AQ_OK);
    CHECK_STATUS(aq_observer_calibration(job.observer, &calibration, NULL), AQ_OK);
    aq_observer_destroy(job.observer);
    CHECK(calibration->layer_count == ROWS + 1);
    const aq_calibration_layer *layer = aq_calibration_find(calibration, "same");
    CHECK(layer && layer->rows[0] == ROWS);
    if (layer) check_layer(calibration, layer, 0, 1e-6);
    static float moments[CHANNELS * CHANNELS];
    CHECK(layer && layer->has_hessian && layer->hessian_rows == ROWS);
    CHECK_STATUS(aq_calibration_hessian(NULL, calibration, layer, moments, NULL), AQ_OK);
    for (size_t i = 0; i < CHANNELS; i++) {
        for (size_t j = 0; j < CHANNELS; j++) {
            double sum = 0;
            for (size_t r = 0; r < ROWS; r++)
                sum += (double)data[r * CHANNELS + i] * (double)data[r * CHANNELS + j];
            CHECK_RANGE(sum / ROWS - 1e-5, moments[i * CHANNELS + j], sum / ROWS + 1e-5);
        }
    }
    aq_calibration_close(calibration);
}

/* Second moments of more rows and channels than are summed at once, against sums in F64; the same
 * bits with every instruction set and number of threads. */
TEST(moments_are_the_same_everywhere) {
    enum { MANY = 150, WIDE = 515 };
    static float rows[MANY * WIDE], first[WIDE * WIDE], moments[WIDE * WIDE];
    aq_observer_options options;
    uint32_t state = 1;
    size_t tried = 0;
    memset(&options, 0, sizeof(options));
    options.second_moments = true;
    for (size_t i = 0; i < MANY * WIDE; i++) {
        state = state * 1664525u + 1013904223u;
        rows[i] = (float)(int32_t)state / 2147483648.0f + 0.25f;
    }
    for (unsigned isa = AQ_ISA_AUTO; isa <= AQ_ISA_NEON; isa++) {
        aq_context *context = NULL;
        aq_observer *observer;
        aq_calibration *calibration;
        if (aq_context_create((aq_isa)isa, NULL, &context, NULL) != AQ_OK) continue;
        context->num_threads = isa == AQ_ISA_AUTO ? 3 : 1;
        CHECK_STATUS(aq_observer_create(context, &options, &observer, NULL), AQ_OK);
        CHECK_STATUS(aq_observer_feed(observer, "wide", 0, AQ_DTYPE_F32, rows, MANY, WIDE, NULL), AQ_OK);
        CHECK_STATUS(aq_observer_calibration(observer, &calibration, NULL), AQ_OK);
        CHECK_STATUS(aq_calibration_hessian(context, calibration, &calibration->layers[0],
                                            tried ? moments : first, NULL), AQ_OK);
        CHECK(!tried++ || memcmp(first, moments, sizeof(first)) == 0);
        aq_calibration_close(calibration);
        aq_observer_destroy(observer);
        aq_context_destroy(context);
    }
    CHECK(tried >= 2);
    for (size_t i = 0; i < WIDE; i += 7) {
        for (size_t j = 0; j < WIDE; j++) {
            double sum = 0;
            for (size_t r = 0; r < MANY; r++)
                sum += (double)rows[r * WIDE + i] * (double)rows[r * WIDE + j];
            CHECK_RANGE(sum / (double)MANY - 3e-7, first[i * WIDE + j], sum / (double)MANY + 3e-7);
        }
    }
}

/* ---- what is refused leaves no trace */

TEST(refused) {
    aq_observer *observer;
    aq_calibration *calibration;
    aq_error err;
    float points[2] = { 50, 50 };
    aq_observer_options options;
    memset(&options, 0, sizeof(options));
    options.percentiles = points;
    options.percentile_count = 2;
    CHECK_STATUS(aq_observer_create(NULL, &options, &observer, &err), AQ_ERR_ARGUMENT);
    CHECK(!observer && strstr(err.message, "percentile 1"));
    CHECK_STATUS(aq_observer_create(NULL, NULL, NULL, &err), AQ_ERR_ARGUMENT);
    make_data(2, 1, 0);
    CHECK_STATUS(aq_observer_create(NULL, NULL, &observer, &err), AQ_OK);
    CHECK_STATUS(aq_observer_feed(observer, "x", 5, AQ_DTYPE_F32, data, 3, CHANNELS, &err), AQ_OK);
    data[CHANNELS + 2] = NAN;
    CHECK_STATUS(aq_observer_feed(observer, "x", 5, AQ_DTYPE_F32, data, 3, CHANNELS, &err),
                 AQ_ERR_ARGUMENT);
    CHECK(err.offset == CHANNELS + 2 && strstr(err.message, "(row 1, channel 2)"));
    CHECK_STR(err.tensor, "x");
    data[CHANNELS + 2] = INFINITY;
    CHECK_STATUS(aq_observer_feed(observer, "y", 5, AQ_DTYPE_F32, data, 3, CHANNELS, &err),
                 AQ_ERR_ARGUMENT);
    double huge = 1e300;
    CHECK_STATUS(aq_observer_feed(observer, "y", 5, AQ_DTYPE_F64, &huge, 1, 1, &err),
                 AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_observer_feed(observer, "x", 5, AQ_DTYPE_F32, data, 1, 8, &err), AQ_ERR_SHAPE);
    CHECK(strstr(err.message, "8 channels here and had 40 before"));
    CHECK_STATUS(aq_observer_feed(observer, "x", 5, AQ_DTYPE_I8, data, 1, 8, &err), AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_observer_feed(observer, "x", 5, AQ_DTYPE_F32, data, 1, 0, &err), AQ_ERR_SHAPE);
    CHECK_STATUS(aq_observer_feed(observer, "x", 5, AQ_DTYPE_F32, data, UINT64_MAX, CHANNELS, &err),
                 AQ_ERR_SHAPE);
    CHECK_STATUS(aq_observer_feed(observer, "", 5, AQ_DTYPE_F32, data, 1, 8, &err), AQ_ERR_ARGUMENT);
    CHECK_STATUS(aq_observer_feed(observer, "z", 5, AQ_DTYPE_F32, NULL, 0, 8, &err), AQ_OK);
    CHECK_STATUS(aq_observer_calibration(observer, &calibration, &err), AQ_OK);
    CHECK(calibration->layer_count == 1 && calibration->layers[0].timestep_count == 1 &&
          calibration->layers[0].rows[0] == 3);
    CHECK_STATUS(aq_calibration_hessian(NULL, calibration, &calibration->layers[0], data, &err),
                 AQ_ERR_ARGUMENT);
    aq_calibration_close(calibration);
    aq_observer_destroy(observer);
    aq_observer_destroy(NULL);
    aq_calibration_close(NULL);
}

/* One row of one channel; then nothing but zeros. */
TEST(one_sample) {
    aq_observer *observer;
    aq_calibration *calibration;
    float one = -2.5f, zeros[64];
    memset(zeros, 0, sizeof(zeros));
    CHECK_STATUS(aq_observer_create(NULL, NULL, &observer, NULL), AQ_OK);
    CHECK_STATUS(aq_observer_feed(observer, "a", -7, AQ_DTYPE_F32, &one, 1, 1, NULL), AQ_OK);
    CHECK_STATUS(aq_observer_feed(observer, "b", 0, AQ_DTYPE_F32, zeros, 4, 16, NULL), AQ_OK);
    CHECK_STATUS(aq_observer_calibration(observer, &calibration, NULL), AQ_OK);
    const aq_calibration_layer *a = &calibration->layers[0], *b = &calibration->layers[1];
    CHECK(a->min[0] == -2.5f && a->max[0] == -2.5f && a->mean[0] == -2.5f && a->std[0] == 0.0f);
    CHECK(a->percentiles[0] == -2.5f && a->percentiles[calibration->percentile_count - 1] == -2.5f);
    CHECK(a->timesteps[0] == -7 && a->sqmean[0] == 6.25f);
    CHECK(b->min[0] == 0.0f && b->max[0] == 0.0f && b->std[0] == 0.0f && b->percentiles[3] == 0.0f);
    aq_calibration_close(calibration);
    aq_observer_destroy(observer);
}

/* ---- the sketch */

TEST(sketch_in_any_order) {
    static uint64_t first[AQ_SKETCH_CELLS], second[AQ_SKETCH_CELLS], third[AQ_SKETCH_CELLS];
    int32_t top_first = 0, top_second = 0, top_third = 0;
    memset(first, 0, sizeof(first));
    memset(second, 0, sizeof(second));
    memset(third, 0, sizeof(third));
    uint64_t state = 3;
    static float values[2000];
    for (size_t i = 0; i < 2000; i++) values[i] = (float)(test_normal(&state) * exp(4 * test_normal(&state)));
    for (size_t i = 0; i < 2000; i++) { /* one by one, as the top grows */
        aq_sketch_raise(first, &top_first, aq_sketch_bucket((float)fabs((double)values[i])));
        aq_sketch_add(first, top_first, &values[i], 1);
        uint64_t *half = i % 2 ? second : third;
        int32_t *top = i % 2 ? &top_second : &top_third;
        aq_sketch_raise(half, top, aq_sketch_bucket((float)fabs((double)values[1999 - i])));
        aq_sketch_add(half, *top, &values[1999 - i], 1);
    }
    aq_sketch_merge(second, &top_second, third, top_third);
    CHECK(top_first == top_second && memcmp(first, second, sizeof(first)) == 0);
    CHECK(aq_sketch_total(first) == 2000);
    for (size_t cell = 1; cell <= AQ_SKETCH_SIDE; cell++) {
        double low, high;
        aq_sketch_cell(top_first, cell, &low, &high);
        CHECK(low > 0 && high > low && high - low <= low / 32);
    }
}

TEST(sketch_at_the_ends) {
    uint64_t cells[AQ_SKETCH_CELLS];
    float ends[] = { 3.402823466e38f, -3.402823466e38f, 1e-45f, 0.0f, -0.0f };
    int32_t top = 0;
    double low, high;
    memset(cells, 0, sizeof(cells));
    aq_sketch_raise(cells, &top, aq_sketch_bucket(ends[0]));
    aq_sketch_add(cells, top, ends, 5);
    CHECK(cells[0] == 3 && cells[AQ_SKETCH_SIDE] == 1 && cells[2 * AQ_SKETCH_SIDE] == 1);
    aq_sketch_cell(top, AQ_SKETCH_SIDE, &low, &high);
    CHECK(high >= (double)ends[0] && low < (double)ends[0] && high < 3.5e38);
    CHECK(aq_sketch_percentile(cells, top, 0, (double)ends[1], (double)ends[0]) < -3e38);
    CHECK(aq_sketch_percentile(cells, top, 100, (double)ends[1], (double)ends[0]) > 3e38);
}

int main(void) {
    RUN(figures);
    RUN(dtypes);
    RUN(threads);
    RUN(moments_are_the_same_everywhere);
    RUN(refused);
    RUN(one_sample);
    RUN(sketch_in_any_order);
    RUN(sketch_at_the_ends);
    return test_end();
}
