/* The observer: activations in, rows by rows, from any thread; figures of each layer and timestep
 * out. Memory depends on layers, timesteps and channels, never on how much is fed. */
#include "calib.h"

#include "../quant/linear.h"
#include "../quant/quant.h"
#include "../simd/simd.h"

#define AQ_FEED_PIECE 1024u /* values that are converted at once */
#define AQ_FEED_LANES 16u
#define AQ_MOMENT_ROWS 128u /* rows whose products are added at once, in F32 */

struct aq_observer {
    aq_context *context; /* as given */
    aq_context local;    /* what NULL stands for */
    struct aq_guard *guard; /* of the list of layers */
    aq_gathering gathering;
    bool moments;
};

ARROWQUANT_API aq_status aq_observer_create(aq_context *context, const aq_observer_options *options,
                                            aq_observer **out, aq_error *err) {
    static const float usual[] = { 0.01f, 0.1f, 1.0f, 5.0f, 25.0f, 50.0f, 75.0f, 95.0f, 99.0f,
                                   99.9f, 99.99f };
    if (!out) return aq_fail(err, AQ_ERR_ARGUMENT, "aq_observer_create: out is NULL");
    *out = NULL;
    aq_observer *observer = (aq_observer *)aq_alloc(context, sizeof(*observer));
    if (!observer) return aq_fail_memory(err, sizeof(*observer));
    memset(observer, 0, sizeof(*observer));
    observer->context = aq_context_resolved(context, &observer->local);
    observer->gathering.context = context;
    observer->moments = options && options->second_moments;
    observer->guard = aq_guard_create(context);
    aq_status status = observer->guard ? AQ_OK : aq_fail_memory(err, sizeof(void *));
    if (status == AQ_OK && options && options->percentiles)
        status = aq_gathering_points(&observer->gathering, options->percentiles,
                                     options->percentile_count, err);
    else if (status == AQ_OK)
        status = aq_gathering_points(&observer->gathering, usual,
                                     sizeof(usual) / sizeof(usual[0]), err);
    if (status == AQ_OK) *out = observer;
    else aq_observer_destroy(observer);
    return status;
}

ARROWQUANT_API void aq_observer_destroy(aq_observer *observer) {
    if (!observer) return;
    const aq_context *context = observer->gathering.context;
    aq_gathering_free(&observer->gathering);
    aq_guard_destroy(context, observer->guard);
    aq_free(context, observer, sizeof(*observer));
}

/* ---- feeding */

typedef struct aq_feed {
    const aq_observer *observer;
    const char *layer;
    int64_t timestep;
    aq_dtype dtype;
    const unsigned char *data;
    uint64_t rows, channels;
} aq_feed;

/* `count` values from element `first` on, as F32. */
static void aq_feed_read(const aq_feed *feed, uint64_t first, size_t count, float *out) {
    aq_to_f32(feed->observer->context, feed->dtype,
              feed->data + (size_t)first * aq_dtype_size(feed->dtype), out, count);
}

/* Nothing is taken of data that is not finite; the largest magnitude otherwise. */
static aq_status aq_feed_check(const aq_feed *feed, float *largest, aq_error *err) {
    float piece[AQ_FEED_PIECE];
    uint64_t count = feed->rows * feed->channels;
    *largest = 0.0f;
    for (uint64_t done = 0; done < count;) {
        size_t take = count - done < AQ_FEED_PIECE ? (size_t)(count - done) : AQ_FEED_PIECE;
        aq_feed_read(feed, done, take, piece);
        for (size_t i = 0; i < take; i++) {
            float magnitude = piece[i] < 0.0f ? -piece[i] : piece[i];
            if (magnitude - magnitude != 0.0f)
                return aq_fail_tensor(err, AQ_ERR_ARGUMENT, feed->layer, done + i,
                                      "layer %s, timestep %lld: element %llu (row %llu, channel "
                                      "%llu) is NaN or beyond F32; nothing of this call is taken",
                                      feed->layer, (long long)feed->timestep,
                                      (unsigned long long)(done + i),
                                      (unsigned long long)((done + i) / feed->channels),
                                      (unsigned long long)((done + i) % feed->channels));
            if (magnitude > *largest) *largest = magnitude;
        }
        done += take;
    }
    return AQ_OK;
}

/* Sums in lanes, so that the compiler may take several at once and the result is one. */
typedef struct aq_feed_sums {
    double first[AQ_FEED_LANES], second[AQ_FEED_LANES]; /* Σ (x − pivot), Σ (x − pivot)² */
    double pivot;
    float low, high;
} aq_feed_sums;

AQ_SIMD_EXACT static void aq_feed_sum(aq_feed_sums *sums, const float *x, size_t count) {
    AQ_SIMD_EXACT_BODY
    size_t i = 0;
    for (; i + AQ_FEED_LANES <= count; i += AQ_FEED_LANES) {
        for (size_t lane = 0; lane < AQ_FEED_LANES; lane++) {
            double apart = (double)x[i + lane] - sums->pivot;
            sums->first[lane] += apart;
            sums->second[lane] += apart * apart;
        }
    }
    for (; i < count; i++) {
        double apart = (double)x[i] - sums->pivot;
        sums->first[i % AQ_FEED_LANES] += apart;
        sums->second[i % AQ_FEED_LANES] += apart * apart;
    }
    for (i = 0; i < count; i++) {
        if (x[i] < sums->low) sums->low = x[i];
        if (x[i] > sums->high) sums->high = x[i];
    }
}

AQ_SIMD_EXACT static void aq_feed_channels(aq_step *step, const float *x, size_t first,
                                           size_t count, bool fresh) {
    AQ_SIMD_EXACT_BODY
    float *absmax = step->absmax + first, *low = step->low + first, *high = step->high + first;
    double *squares = step->squares + first;
    for (size_t i = 0; i < count; i++) {
        float magnitude = x[i] < 0.0f ? -x[i] : x[i];
        squares[i] += (double)x[i] * (double)x[i];
        if (fresh || magnitude > absmax[i]) absmax[i] = magnitude;
        if (fresh || x[i] < low[i]) low[i] = x[i];
        if (fresh || x[i] > high[i]) high[i] = x[i];
    }
}

/* What this call's rows alone come to. */
AQ_SIMD_EXACT static void aq_feed_figures(const aq_feed *feed, const aq_feed_sums *sums,
                                          aq_step *out) {
    AQ_SIMD_EXACT_BODY
    double first = 0.0, second = 0.0, count = (double)feed->rows * (double)feed->channels;
    for (size_t lane = 0; lane < AQ_FEED_LANES; lane++) {
        first += sums->first[lane];
        second += sums->second[lane];
    }
    double mean = first / count, variance = second / count - mean * mean;
    memset(out, 0, sizeof(*out));
    out->rows = feed->rows;
    out->weight = (double)feed->rows;
    out->min = (double)sums->low;
    out->max = (double)sums->high;
    out->mean = sums->pivot + mean;
    out->spread = variance > 0.0 ? variance * out->weight : 0.0;
}

static void aq_feed_step(const aq_feed *feed, float largest, aq_step *step) {
    float piece[AQ_FEED_PIECE];
    aq_feed_sums sums;
    aq_step fed;
    bool fresh = !(step->weight > 0.0);
    memset(&sums, 0, sizeof(sums));
    aq_feed_read(feed, 0, 1, piece);
    sums.low = sums.high = piece[0];
    sums.pivot = fresh ? (double)piece[0] : step->mean;
    aq_sketch_raise(step->sketch, &step->top, aq_sketch_bucket(largest));
    for (uint64_t row = 0; row < feed->rows; row++) {
        for (uint64_t at = 0; at < feed->channels;) {
            uint64_t left = feed->channels - at;
            size_t take = left < AQ_FEED_PIECE ? (size_t)left : AQ_FEED_PIECE;
            aq_feed_read(feed, row * feed->channels + at, take, piece);
            aq_feed_sum(&sums, piece, take);
            aq_feed_channels(step, piece, (size_t)at, take, fresh && row == 0);
            aq_sketch_add(step->sketch, step->top, piece, take);
            at += take;
        }
    }
    aq_feed_figures(feed, &sums, &fed);
    aq_step_merge_figures(step, &fed);
}

/* ---- second moments: the upper triangle of Σ x·xᵀ
 *
 * By the blocked linear algebra of quant/: each element is a chain of fused multiply-adds in F32 over
 * AQ_MOMENT_ROWS rows of a call, in their order, which is then added to its sum in F64. So the sums are the
 * same whatever the ISA and the threads. */

typedef struct aq_moment_job {
    const struct aq_kernels *kernels;
    const float *panels; /* rows by panels of 32 channels: [panel][count][32], zeros at the end */
    size_t count, channels;
    double *sums;
} aq_moment_job;

static void aq_moment_pack(const float *rows, size_t count, size_t channels, float *panels) {
    for (size_t first = 0; first < channels; first += AQ_PANEL) {
        size_t width = channels - first < AQ_PANEL ? channels - first : AQ_PANEL;
        for (size_t r = 0; r < count; r++, panels += AQ_PANEL) {
            memcpy(panels, rows + r * channels + first, width * sizeof(float));
            memset(panels + width, 0, (AQ_PANEL - width) * sizeof(float));
        }
    }
}

/* The columns of one panel, above the diagonal. */
AQ_SIMD_EXACT static aq_status aq_moment_task(void *user, size_t index, uint32_t worker,
                                              aq_error *err) {
    AQ_SIMD_EXACT_BODY
    const aq_moment_job *job = (const aq_moment_job *)user;
    const float *panel = job->panels + index * job->count * AQ_PANEL;
    size_t c = job->channels, first = index * AQ_PANEL;
    size_t last = c - first < AQ_PANEL ? c : first + AQ_PANEL;
    float tile[AQ_PANEL * AQ_STRIP];
    aq_simd_mode mode = aq_simd_mode_enter();
    (void)worker;
    (void)err;
    for (size_t i = 0; i < last; i += AQ_STRIP) {
        size_t columns = c - i < AQ_STRIP ? c - i : AQ_STRIP;
        memset(tile, 0, sizeof(tile));
        const float *strip = job->panels + i / AQ_PANEL * job->count * AQ_PANEL + i % AQ_PANEL;
        job->kernels->update(tile, panel, strip, AQ_PANEL, job->count, columns);
        for (size_t k = 0; k < columns && i + k < last; k++) {
            double *sums = job->sums + (i + k) * c;
            size_t from = i + k > first ? i + k : first;
            for (size_t j = from; j < last; j++) sums[j] -= (double)tile[k * AQ_PANEL + (j - first)];
        }
    }
    aq_simd_mode_leave(mode);
    return AQ_OK;
}

/* Room for some rows, twice: as they are, and by panels. */
static bool aq_moment_space(size_t channels, size_t *bytes) {
    size_t padded = (channels + AQ_PANEL - 1) / AQ_PANEL * AQ_PANEL;
    return aq_mul_size(AQ_MOMENT_ROWS * 2 * sizeof(float), padded, bytes) && *bytes <= SIZE_MAX - 128;
}

static aq_status aq_feed_moments(const aq_feed *feed, aq_gathered *layer, float *space,
                                 aq_error *err) {
    aq_context *context = feed->observer->context;
    aq_moment_job job;
    aq_status status = AQ_OK;
    size_t channels = (size_t)feed->channels;
    size_t padded = (channels + AQ_PANEL - 1) / AQ_PANEL * AQ_PANEL;
    float *panels = (float *)aq_align_64(space), *rows = panels + AQ_MOMENT_ROWS * padded;
    job.kernels = aq_kernels_of(context);
    job.panels = panels;
    job.channels = channels;
    job.sums = layer->moments;
    uint32_t threads = channels < 512 ? 1 : aq_thread_count(context);
    for (uint64_t done = 0; done < feed->rows;) {
        uint64_t left = feed->rows - done;
        job.count = left < AQ_MOMENT_ROWS ? (size_t)left : AQ_MOMENT_ROWS;
        aq_feed_read(feed, done * channels, job.count * channels, rows);
        aq_moment_pack(rows, job.count, channels, panels);
        /* not to be stopped half-way: what is in the sums must be what is counted */
        status = aq_parallel_for(NULL, threads, padded / AQ_PANEL, aq_moment_task, &job, err);
        if (status != AQ_OK) return status;
        done += job.count;
    }
    layer->moment_rows += feed->rows;
    return status;
}

/* Sums, and a buffer for some rows; everything that may fail is done before anything is taken. */
static aq_status aq_moments_make(aq_gathered *layer, float **rows, size_t *row_bytes,
                                 aq_error *err) {
    size_t c = (size_t)layer->channels, bytes = 0;
    if (!aq_mul_size(c, c, &bytes) || !aq_mul_size(bytes, sizeof(double), &bytes) ||
        !aq_moment_space(c, row_bytes))
        return aq_fail_memory(err, SIZE_MAX);
    if (!layer->moments) {
        layer->moments = (double *)aq_alloc(layer->context, bytes);
        if (!layer->moments) return aq_fail_memory(err, bytes);
        memset(layer->moments, 0, bytes);
    }
    *row_bytes += 64; /* to align it */
    *rows = (float *)aq_alloc(layer->context, *row_bytes);
    return *rows ? AQ_OK : aq_fail_memory(err, *row_bytes);
}

static aq_status aq_feed_layer(const aq_feed *feed, float largest, aq_gathered *layer,
                               aq_error *err) {
    const unsigned fields = AQ_HAS_ABSMAX | AQ_HAS_LIMITS | AQ_HAS_SQUARES | AQ_HAS_SKETCH;
    float *rows = NULL;
    size_t row_bytes = 0;
    aq_step *step = NULL;
    aq_status status = AQ_OK;
    if (feed->observer->moments) status = aq_moments_make(layer, &rows, &row_bytes, err);
    if (status == AQ_OK) status = aq_gathered_step(layer, feed->timestep, fields, 0, &step, err);
    if (status == AQ_OK && aq_step_has(step) != fields)
        status = aq_fail_tensor(err, AQ_ERR_METADATA, feed->layer, 0,
                                "layer %s, timestep %lld: a file was loaded that has no sketch or "
                                "no limits of its channels; what is observed cannot be added to it",
                                feed->layer, (long long)feed->timestep);
    if (status == AQ_OK && rows) status = aq_feed_moments(feed, layer, rows, err);
    if (status == AQ_OK) {
        aq_feed_step(feed, largest, step);
        step->feeds++;
    }
    aq_free(layer->context, rows, row_bytes);
    return status;
}

ARROWQUANT_API aq_status aq_observer_feed(aq_observer *observer, const char *layer,
                                          int64_t timestep, aq_dtype dtype, const void *data,
                                          uint64_t rows, uint64_t channels, aq_error *err) {
    aq_feed feed;
    aq_gathered *found = NULL;
    float largest;
    uint64_t count, bytes;
    if (!observer || !layer || !*layer || (!data && rows))
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_observer_feed: observer, layer and data must not "
                       "be NULL, and a layer has a name");
    if (!aq_dtype_is_float(dtype))
        return aq_fail_tensor(err, AQ_ERR_ARGUMENT, layer, 0, "aq_observer_feed: layer %s: %s is no "
                              "float type", layer, aq_dtype_name(dtype));
    if (!channels || channels > UINT32_MAX || !aq_mul_u64(rows, channels, &count) ||
        !aq_mul_u64(count, aq_dtype_size(dtype), &bytes) || bytes > SIZE_MAX ||
        rows > UINT64_C(1) << 53)
        return aq_fail_tensor(err, AQ_ERR_SHAPE, layer, 0, "aq_observer_feed: layer %s: %llu rows of "
                              "%llu channels", layer, (unsigned long long)rows,
                              (unsigned long long)channels);
    if (!rows) return AQ_OK;
    feed.observer = observer;
    feed.layer = layer;
    feed.timestep = timestep;
    feed.dtype = dtype;
    feed.data = (const unsigned char *)data;
    feed.rows = rows;
    feed.channels = channels;
    aq_status status = aq_feed_check(&feed, &largest, err);
    if (status != AQ_OK) return status;
    aq_guard_enter(observer->guard);
    status = aq_gathering_layer(&observer->gathering, layer, channels, &found, err);
    aq_guard_leave(observer->guard);
    if (status != AQ_OK) return status;
    aq_guard_enter(found->guard);
    status = aq_feed_layer(&feed, largest, found, err);
    aq_guard_leave(found->guard);
    return status;
}

AQ_LIB uint64_t aq_observer_feeds(aq_observer *observer, const char *layer, int64_t timestep) {
    uint64_t feeds = 0;
    aq_guard_enter(observer->guard);
    for (size_t i = 0; i < observer->gathering.layer_count; i++) {
        aq_gathered *found = observer->gathering.layers[i];
        if (strcmp(found->name, layer) != 0) continue;
        aq_guard_enter(found->guard);
        for (size_t k = 0; k < found->step_count; k++) {
            if (found->steps[k]->timestep == timestep) feeds = found->steps[k]->feeds;
        }
        aq_guard_leave(found->guard);
    }
    aq_guard_leave(observer->guard);
    return feeds;
}

/* ---- out again */

ARROWQUANT_API aq_status aq_observer_calibration(aq_observer *observer, aq_calibration **out,
                                                 aq_error *err) {
    if (!observer || !out)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_observer_calibration: observer and out must not "
                       "be NULL");
    aq_status status = aq_calibration_new(observer->gathering.context, out, err);
    if (status != AQ_OK) return status;
    aq_guard_enter(observer->guard);
    status = aq_calibration_fill(*out, &observer->gathering, true, err);
    aq_guard_leave(observer->guard);
    if (status == AQ_OK) status = aq_calibration_finish(*out, err);
    if (status == AQ_OK) return AQ_OK;
    aq_calibration_close(*out);
    *out = NULL;
    return status;
}

/* Adds second moments that a calibration knows, times their rows. */
AQ_SIMD_EXACT static aq_status aq_observer_add_moments(aq_observer *observer,
                                                       const aq_calibration *calibration,
                                                       const aq_calibration_layer *layer,
                                                       aq_gathered *to, aq_error *err) {
    AQ_SIMD_EXACT_BODY
    size_t c = (size_t)layer->channels, row_bytes, bytes = c * c * sizeof(float);
    float *rows = NULL;
    float *moments = (float *)aq_alloc(observer->gathering.context, bytes);
    aq_status status = moments ? AQ_OK : aq_fail_memory(err, bytes);
    if (status == AQ_OK)
        status = aq_calibration_hessian(observer->context, calibration, layer, moments, err);
    if (status == AQ_OK) status = aq_moments_make(to, &rows, &row_bytes, err);
    if (status == AQ_OK) {
        aq_free(to->context, rows, row_bytes);
        for (size_t i = 0; i < c * c; i++)
            to->moments[i] += (double)moments[i] * (double)layer->hessian_rows;
        to->moment_rows += layer->hessian_rows;
    }
    aq_free(observer->gathering.context, moments, bytes);
    return status;
}

ARROWQUANT_API aq_status aq_observer_merge(aq_observer *observer, const aq_calibration *calibration,
                                           aq_error *err) {
    if (!observer || !calibration)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_observer_merge: observer and calibration must not "
                       "be NULL");
    aq_status status = AQ_OK;
    aq_guard_enter(observer->guard);
    for (size_t i = 0; status == AQ_OK && i < calibration->layer_count; i++) {
        const aq_calibration_layer *layer = &calibration->layers[i];
        aq_gathered *to = NULL;
        status = aq_gathering_add(&observer->gathering, calibration, layer, "aq_observer_merge",
                                  err);
        if (status != AQ_OK || !observer->moments || !layer->has_hessian || !layer->hessian_rows)
            continue;
        status = aq_gathering_layer(&observer->gathering, layer->name, layer->channels, &to, err);
        if (status != AQ_OK) continue;
        aq_guard_enter(to->guard);
        status = aq_observer_add_moments(observer, calibration, layer, to, err);
        aq_guard_leave(to->guard);
    }
    aq_guard_leave(observer->guard);
    return status;
}

#ifndef ARROWQUANT_NO_STDIO
ARROWQUANT_API aq_status aq_observer_load(aq_observer *observer, const char *path, aq_error *err) {
    aq_calibration *calibration = NULL;
    if (!observer || !path)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_observer_load: observer and path must not be NULL");
    aq_status status = aq_calibration_open(observer->context == &observer->local
                                               ? NULL : observer->context, &path, 1, 0,
                                           &calibration, err);
    if (status == AQ_OK) status = aq_observer_merge(observer, calibration, err);
    aq_calibration_close(calibration);
    return status;
}

ARROWQUANT_API aq_status aq_observer_save(aq_observer *observer, const char *path, aq_error *err) {
    aq_calibration *calibration = NULL;
    if (!observer || !path)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_observer_save: observer and path must not be NULL");
    aq_status status = aq_observer_calibration(observer, &calibration, err);
    if (status == AQ_OK)
        status = aq_calibration_save(observer->context == &observer->local ? NULL
                                                                           : observer->context,
                                     calibration, path, err);
    aq_calibration_close(calibration);
    return status;
}
#endif

#undef AQ_FEED_PIECE
#undef AQ_FEED_LANES
#undef AQ_MOMENT_ROWS
