/* Calibration files read, merged and written, for tests that know the answers.
 *     calib show FILE…            every figure as one JSON object; second moments as sums
 *     calib merge OUT FILE…       merges files into one */
#include "test.h"

static int fail(const aq_error *err) {
    printf("{\"error\":\"%s\",\"tensor\":\"%s\",\"message\":\"%s\"}\n", aq_status_name(err->status),
           err->tensor, err->message);
    return 1;
}

static void put_floats(const char *name, const float *values, size_t count) {
    printf(",\"%s\":", name);
    if (!values) {
        printf("null");
        return;
    }
    printf("[");
    for (size_t i = 0; i < count; i++) printf(i ? ",%.9g" : "%.9g", (double)values[i]);
    printf("]");
}

static int put_moments(const aq_calibration *calibration, const aq_calibration_layer *layer) {
    aq_error err;
    size_t c = (size_t)layer->channels;
    float *moments = (float *)malloc(c * c * sizeof(float));
    if (!moments) return 1;
    if (aq_calibration_hessian(NULL, calibration, layer, moments, &err) != AQ_OK) {
        free(moments);
        return fail(&err);
    }
    double total = 0, trace = 0;
    for (size_t i = 0; i < c * c; i++) total += (double)moments[i] * (double)(1 + i % 7);
    for (size_t i = 0; i < c; i++) trace += (double)moments[i * c + i];
    printf(",\"hessian_total\":%.17g,\"hessian_trace\":%.17g,\"hessian_rows\":%llu", total, trace,
           (unsigned long long)layer->hessian_rows);
    free(moments);
    return 0;
}

static int put_layer(const aq_calibration *calibration, const aq_calibration_layer *layer) {
    size_t t = layer->timestep_count, c = (size_t)layer->channels;
    printf("\"%s\":{\"channels\":%llu,\"timesteps\":[", layer->name,
           (unsigned long long)layer->channels);
    for (size_t i = 0; i < t; i++) printf(i ? ",%lld" : "%lld", (long long)layer->timesteps[i]);
    printf("],\"rows\":[");
    for (size_t i = 0; layer->rows && i < t; i++)
        printf(i ? ",%llu" : "%llu", (unsigned long long)layer->rows[i]);
    printf("]");
    put_floats("min", layer->min, t);
    put_floats("max", layer->max, t);
    put_floats("mean", layer->mean, t);
    put_floats("std", layer->std, t);
    put_floats("absmax", layer->absmax, t * c);
    put_floats("sqmean", layer->sqmean, t * c);
    put_floats("channel_min", layer->channel_min, t * c);
    put_floats("channel_max", layer->channel_max, t * c);
    put_floats("percentiles", layer->percentiles, t * calibration->percentile_count);
    put_floats("pooled_absmax", layer->pooled_absmax, c);
    put_floats("pooled_sqmean", layer->pooled_sqmean, c);
    if (layer->has_hessian && put_moments(calibration, layer)) return 1;
    printf("}");
    return 0;
}

static int show(const aq_calibration *calibration) {
    printf("{\"layers\":{");
    for (size_t i = 0; i < calibration->layer_count; i++) {
        if (i) printf(",");
        if (put_layer(calibration, &calibration->layers[i])) return 1;
    }
    printf("}");
    put_floats("points", calibration->percentile_points, calibration->percentile_count);
    printf("}\n");
    return 0;
}

int main(int argc, char **argv) {
    aq_calibration *calibration;
    aq_error err;
    int first = argc > 1 && strcmp(argv[1], "merge") == 0 ? 3 : 2, done = 0;
    if (argc <= first) return 2;
    const char *samples = getenv("SAMPLES");
    if (aq_calibration_open(NULL, (const char *const *)(argv + first), (size_t)(argc - first),
                            samples ? (uint32_t)atoi(samples) : 0, &calibration, &err) != AQ_OK)
        return fail(&err);
    if (first == 2) done = show(calibration);
    else if (aq_calibration_save(NULL, calibration, argv[2], &err) != AQ_OK) done = fail(&err);
    aq_calibration_close(calibration);
    return done;
}
