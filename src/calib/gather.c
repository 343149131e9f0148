/* Figures of layers by timestep, found or made by name, and merged. */
#include "calib.h"
#include "../simd/simd.h"

/* One piece: the widest elements first, so that all are aligned. */
static aq_step *aq_step_new(const aq_context *context, uint64_t channels, unsigned fields,
                            size_t points) {
    if (channels > SIZE_MAX / 64 || points > SIZE_MAX / 64) return NULL;
    size_t c = (size_t)channels, bytes = sizeof(aq_step);
    if (fields & AQ_HAS_SQUARES) bytes += c * sizeof(double);
    if (fields & AQ_HAS_SKETCH) bytes += AQ_SKETCH_CELLS * sizeof(uint64_t);
    if (fields & AQ_HAS_ABSMAX) bytes += c * sizeof(float);
    if (fields & AQ_HAS_LIMITS) bytes += 2 * c * sizeof(float);
    if (fields & AQ_HAS_PERCENTILES) bytes += points * sizeof(float);
    char *piece = (char *)aq_alloc(context, bytes);
    aq_step *step = (aq_step *)(void *)piece;
    if (!piece) return NULL;
    memset(piece, 0, bytes);
    step->bytes = bytes;
    piece += sizeof(aq_step);
    if (fields & AQ_HAS_SQUARES) {
        step->squares = (double *)(void *)piece;
        piece += c * sizeof(double);
    }
    if (fields & AQ_HAS_SKETCH) {
        step->sketch = (uint64_t *)(void *)piece;
        piece += AQ_SKETCH_CELLS * sizeof(uint64_t);
    }
    if (fields & AQ_HAS_ABSMAX) {
        step->absmax = (float *)(void *)piece;
        piece += c * sizeof(float);
    }
    if (fields & AQ_HAS_LIMITS) {
        step->low = (float *)(void *)piece;
        step->high = step->low + c;
        piece += 2 * c * sizeof(float);
    }
    if (fields & AQ_HAS_PERCENTILES) step->percentiles = (float *)(void *)piece;
    return step;
}

static size_t aq_moment_bytes(uint64_t channels) {
    return (size_t)channels * (size_t)channels * sizeof(double);
}

static void aq_gathered_free(aq_gathered *layer) {
    const aq_context *context = layer->context;
    for (size_t i = 0; i < layer->step_count; i++)
        aq_free(context, layer->steps[i], layer->steps[i]->bytes);
    aq_free(context, layer->steps, layer->step_capacity * sizeof(aq_step *));
    aq_free(context, layer->moments, aq_moment_bytes(layer->channels));
    aq_guard_destroy(context, layer->guard);
    if (layer->name) aq_free(context, layer->name, strlen(layer->name) + 1);
    aq_free(context, layer, sizeof(*layer));
}

AQ_LIB void aq_gathering_free(aq_gathering *gathering) {
    for (size_t i = 0; i < gathering->layer_count; i++) aq_gathered_free(gathering->layers[i]);
    aq_free(gathering->context, gathering->layers,
            gathering->layer_capacity * sizeof(aq_gathered *));
    aq_free(gathering->context, gathering->points, gathering->point_count * sizeof(float));
    gathering->layers = NULL;
    gathering->points = NULL;
    gathering->layer_count = gathering->layer_capacity = gathering->point_count = 0;
}

AQ_LIB aq_status aq_gathering_points(aq_gathering *gathering, const float *points, size_t count,
                                     aq_error *err) {
    float before = -1.0f;
    for (size_t i = 0; i < count; i++) {
        if (!(points[i] >= 0.0f && points[i] <= 100.0f && points[i] > before))
            return aq_fail(err, AQ_ERR_ARGUMENT, "percentile %zu is not a number from 0 to 100 "
                           "above the one before it", i);
        before = points[i];
    }
    if (!count) return AQ_OK;
    float *copy = count > SIZE_MAX / 64 ? NULL
                                        : (float *)aq_alloc(gathering->context, count * sizeof(float));
    if (!copy) return aq_fail_memory(err, count * sizeof(float));
    memcpy(copy, points, count * sizeof(float));
    gathering->points = copy;
    gathering->point_count = count;
    return AQ_OK;
}

/* Room for one more pointer at `at`. */
static bool aq_pointer_gap(const aq_context *context, void ***items, size_t *count,
                           size_t *capacity, size_t at) {
    if (*count == *capacity) {
        size_t more = *capacity ? *capacity * 2 : 16;
        void **grown = (void **)aq_resize(context, *items, *capacity * sizeof(void *),
                                          more * sizeof(void *));
        if (!grown) return false;
        *items = grown;
        *capacity = more;
    }
    memmove(*items + at + 1, *items + at, (*count - at) * sizeof(void *));
    (*count)++;
    return true;
}

static aq_gathered *aq_gathered_new(const aq_context *context, const char *name,
                                    uint64_t channels) {
    aq_gathered *layer = (aq_gathered *)aq_alloc(context, sizeof(*layer));
    if (!layer) return NULL;
    memset(layer, 0, sizeof(*layer));
    layer->context = context;
    layer->channels = channels;
    layer->name = (char *)aq_alloc(context, strlen(name) + 1);
    if (layer->name) memcpy(layer->name, name, strlen(name) + 1);
    layer->guard = aq_guard_create(context);
    if (layer->guard && layer->name) return layer;
    aq_gathered_free(layer);
    return NULL;
}

AQ_LIB aq_status aq_gathering_layer(aq_gathering *gathering, const char *name, uint64_t channels,
                                    aq_gathered **out, aq_error *err) {
    size_t low = 0, high = gathering->layer_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        aq_gathered *layer = gathering->layers[middle];
        int order = strcmp(layer->name, name);
        if (order == 0) {
            *out = layer;
            if (layer->channels == channels) return AQ_OK;
            return aq_fail_tensor(err, AQ_ERR_SHAPE, name, 0,
                                  "layer %s: its input has %llu channels here and had %llu before; "
                                  "statistics of one model belong together", name,
                                  (unsigned long long)channels,
                                  (unsigned long long)layer->channels);
        }
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    aq_gathered *made = aq_gathered_new(gathering->context, name, channels);
    void **items = (void **)gathering->layers;
    if (!made) return aq_fail_memory(err, sizeof(aq_gathered));
    bool room = aq_pointer_gap(gathering->context, &items, &gathering->layer_count,
                               &gathering->layer_capacity, low);
    gathering->layers = (aq_gathered **)items;
    if (!room) {
        aq_gathered_free(made);
        return aq_fail_memory(err, sizeof(void *));
    }
    gathering->layers[low] = *out = made;
    return AQ_OK;
}

AQ_LIB aq_status aq_gathered_step(aq_gathered *layer, int64_t timestep, unsigned fields,
                                  size_t points, aq_step **out, aq_error *err) {
    size_t low = 0, high = layer->step_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        *out = layer->steps[middle];
        if ((*out)->timestep == timestep) return AQ_OK;
        if ((*out)->timestep < timestep) low = middle + 1;
        else high = middle;
    }
    aq_step *made = aq_step_new(layer->context, layer->channels, fields, points);
    void **items = (void **)layer->steps;
    if (!made) return aq_fail_memory(err, (size_t)layer->channels);
    bool room = aq_pointer_gap(layer->context, &items, &layer->step_count, &layer->step_capacity,
                               low);
    layer->steps = (aq_step **)items;
    if (!room) {
        aq_free(layer->context, made, made->bytes);
        return aq_fail_memory(err, sizeof(void *));
    }
    made->timestep = timestep;
    layer->steps[low] = *out = made;
    return AQ_OK;
}

AQ_LIB unsigned aq_step_has(const aq_step *step) {
    return (step->absmax ? AQ_HAS_ABSMAX : 0u) | (step->low ? AQ_HAS_LIMITS : 0u) |
           (step->squares ? AQ_HAS_SQUARES : 0u) | (step->sketch ? AQ_HAS_SKETCH : 0u) |
           (step->percentiles ? AQ_HAS_PERCENTILES : 0u);
}

/* ---- merging */

/* A step as a calibration shows it; the arrays are its own. */
static aq_step aq_step_of(const aq_calibration_layer *layer, size_t i) {
    aq_step step;
    size_t at = i * (size_t)layer->channels;
    memset(&step, 0, sizeof(step));
    step.timestep = layer->timesteps[i];
    step.rows = layer->rows ? layer->rows[i] : 0;
    step.weight = step.rows ? (double)step.rows : 1.0;
    step.min = (double)layer->min[i];
    step.max = (double)layer->max[i];
    step.mean = (double)layer->mean[i];
    step.spread = (double)layer->std[i] * (double)layer->std[i] * step.weight;
    if (layer->absmax) step.absmax = (float *)(uintptr_t)(layer->absmax + at);
    if (layer->channel_min) step.low = (float *)(uintptr_t)(layer->channel_min + at);
    if (layer->channel_max) step.high = (float *)(uintptr_t)(layer->channel_max + at);
    return step;
}

AQ_SIMD_EXACT AQ_LIB void aq_step_merge_figures(aq_step *to, const aq_step *from) {
    AQ_SIMD_EXACT_BODY
    double total = to->weight + from->weight, apart = from->mean - to->mean;
    if (!(to->weight > 0.0)) {
        to->min = from->min;
        to->max = from->max;
        to->mean = from->mean;
        to->spread = from->spread;
    } else {
        /* Chan, Golub and LeVeque 1979 */
        to->spread += from->spread + apart * apart * (to->weight * from->weight / total);
        to->mean += apart * (from->weight / total);
        if (from->min < to->min) to->min = from->min;
        if (from->max > to->max) to->max = from->max;
    }
    to->weight = total;
    to->rows += from->rows;
}

AQ_SIMD_EXACT static void aq_step_merge_channels(aq_step *to, const aq_step *from,
                                                 const float *squares, uint64_t channels,
                                                 bool first) {
    AQ_SIMD_EXACT_BODY
    for (uint64_t c = 0; to->absmax && c < channels; c++) {
        if (first || from->absmax[c] > to->absmax[c]) to->absmax[c] = from->absmax[c];
    }
    for (uint64_t c = 0; to->low && c < channels; c++) {
        if (first || from->low[c] < to->low[c]) to->low[c] = from->low[c];
        if (first || from->high[c] > to->high[c]) to->high[c] = from->high[c];
    }
    for (uint64_t c = 0; to->squares && c < channels; c++)
        to->squares[c] += (double)squares[c] * from->weight;
}

static unsigned aq_layer_fields(const aq_calibration_layer *layer, bool same_points) {
    return (layer->absmax ? AQ_HAS_ABSMAX : 0u) |
           (layer->channel_min && layer->channel_max ? AQ_HAS_LIMITS : 0u) |
           (layer->sqmean ? AQ_HAS_SQUARES : 0u) | (layer->sketch ? AQ_HAS_SKETCH : 0u) |
           (layer->percentiles && same_points ? AQ_HAS_PERCENTILES : 0u);
}

/* What both sides know is what is known. */
static void aq_step_drop(aq_step *step, unsigned fields) {
    if (!(fields & AQ_HAS_ABSMAX)) step->absmax = NULL;
    if (!(fields & AQ_HAS_LIMITS)) step->low = step->high = NULL;
    if (!(fields & AQ_HAS_SQUARES)) step->squares = NULL;
    if (!(fields & AQ_HAS_SKETCH)) step->sketch = NULL;
    if (!(fields & AQ_HAS_PERCENTILES)) step->percentiles = NULL;
}

static bool aq_same_points(const aq_gathering *gathering, const aq_calibration *calibration) {
    if (gathering->point_count != calibration->percentile_count) return false;
    for (size_t i = 0; i < gathering->point_count; i++) {
        if (gathering->points[i] != calibration->percentile_points[i]) return false;
    }
    return true;
}

static aq_status aq_gathered_add(aq_gathered *to, const aq_calibration *calibration,
                                 const aq_calibration_layer *layer, unsigned fields,
                                 const char *source, aq_error *err) {
    size_t points = calibration->percentile_count, c = (size_t)layer->channels;
    for (size_t i = 0; i < layer->timestep_count; i++) {
        aq_step *step = NULL, from = aq_step_of(layer, i);
        aq_status status = aq_gathered_step(to, from.timestep, fields, points, &step, err);
        if (status != AQ_OK) return status;
        bool first = !(step->weight > 0.0);
        if (!first && !step->rows != !from.rows)
            return aq_fail_tensor(err, AQ_ERR_METADATA, layer->name, 0,
                                  "%s: layer %s, timestep %lld: another file has it too, and only "
                                  "one of them says of how many rows (act_rows); they cannot be "
                                  "weighed", source, layer->name, (long long)from.timestep);
        aq_step_drop(step, first ? fields : fields & ~AQ_HAS_PERCENTILES);
        aq_step_merge_channels(step, &from, layer->sqmean ? layer->sqmean + i * c : NULL,
                               layer->channels, first);
        if (step->sketch)
            aq_sketch_merge(step->sketch, &step->top, layer->sketch + i * AQ_SKETCH_CELLS,
                            layer->sketch_top[i]);
        if (step->percentiles)
            memcpy(step->percentiles, layer->percentiles + i * points, points * sizeof(float));
        aq_step_merge_figures(step, &from);
    }
    return AQ_OK;
}

AQ_LIB aq_status aq_gathering_add(aq_gathering *gathering, const aq_calibration *calibration,
                                  const aq_calibration_layer *layer, const char *source,
                                  aq_error *err) {
    aq_gathered *to = NULL;
    unsigned fields = aq_layer_fields(layer, aq_same_points(gathering, calibration));
    aq_status status = aq_gathering_layer(gathering, layer->name, layer->channels, &to, err);
    if (status != AQ_OK) return status;
    aq_guard_enter(to->guard);
    status = aq_gathered_add(to, calibration, layer, fields, source, err);
    aq_guard_leave(to->guard);
    return status;
}
