/* The calibration: what was gathered as arrays a layer, pooled, and found by name. */
#include "calib.h"
#include "../simd/simd.h"

#include <float.h>
#include <math.h>

/* Calibration and state in one piece. */
typedef struct aq_calibration_storage {
    aq_calibration calibration;
    struct aq_calibration_state state;
} aq_calibration_storage;

AQ_LIB aq_status aq_calibration_new(const aq_context *context, aq_calibration **out,
                                    aq_error *err) {
    aq_calibration_storage *storage =
        (aq_calibration_storage *)aq_alloc(context, sizeof(*storage));
    *out = NULL;
    if (!storage) return aq_fail_memory(err, sizeof(*storage));
    memset(storage, 0, sizeof(*storage));
    storage->calibration.state = &storage->state;
    aq_arena_init(&storage->state.arena, context);
    *out = &storage->calibration;
    return AQ_OK;
}

ARROWQUANT_API void aq_calibration_close(aq_calibration *calibration) {
    if (!calibration) return;
    struct aq_calibration_state *state = calibration->state;
    const aq_context *context = state->arena.context;
    if (state->close) state->close(state);
    aq_arena_free(&state->arena);
    aq_free(context, calibration, sizeof(aq_calibration_storage));
}

/* ---- from what was gathered */

static void *aq_calib_array(aq_arena *arena, size_t a, size_t b, size_t size, bool *failed) {
    size_t bytes = 0;
    void *piece = NULL;
    if (aq_mul_size(a, b, &bytes) && aq_mul_size(bytes, size, &bytes))
        piece = aq_arena_alloc(arena, bytes ? bytes : 1);
    if (!piece) *failed = true;
    return piece;
}

/* Which arrays all steps of a layer have. */
static unsigned aq_gathered_fields(const aq_gathered *layer, bool *rows) {
    unsigned fields = ~0u;
    *rows = layer->step_count > 0;
    for (size_t i = 0; i < layer->step_count; i++) {
        const aq_step *step = layer->steps[i];
        if (!step->absmax) fields &= ~AQ_HAS_ABSMAX;
        if (!step->low) fields &= ~AQ_HAS_LIMITS;
        if (!step->squares) fields &= ~AQ_HAS_SQUARES;
        if (!step->sketch) fields &= ~AQ_HAS_SKETCH;
        if (!step->percentiles) fields &= ~AQ_HAS_PERCENTILES;
        if (!step->rows) *rows = false;
    }
    return layer->step_count ? fields : 0;
}

typedef struct aq_layer_arrays {
    int64_t *timesteps;
    uint64_t *rows, *sketch;
    int32_t *sketch_top;
    float *min, *max, *mean, *std, *absmax, *sqmean, *low, *high, *percentiles;
} aq_layer_arrays;

static bool aq_layer_arrays_make(aq_arena *arena, const aq_gathered *layer, unsigned fields,
                                 bool rows, size_t points, aq_layer_arrays *out) {
    size_t t = layer->step_count, c = (size_t)layer->channels;
    bool failed = false;
    memset(out, 0, sizeof(*out));
    out->timesteps = (int64_t *)aq_calib_array(arena, t, 1, sizeof(int64_t), &failed);
    out->min = (float *)aq_calib_array(arena, t, 4, sizeof(float), &failed);
    if (rows) out->rows = (uint64_t *)aq_calib_array(arena, t, 1, sizeof(uint64_t), &failed);
    if (fields & AQ_HAS_ABSMAX)
        out->absmax = (float *)aq_calib_array(arena, t, c, sizeof(float), &failed);
    if (fields & AQ_HAS_SQUARES)
        out->sqmean = (float *)aq_calib_array(arena, t, c, sizeof(float), &failed);
    if (fields & AQ_HAS_LIMITS) {
        out->low = (float *)aq_calib_array(arena, t, c, sizeof(float), &failed);
        out->high = (float *)aq_calib_array(arena, t, c, sizeof(float), &failed);
    }
    if (fields & AQ_HAS_SKETCH) {
        out->sketch = (uint64_t *)aq_calib_array(arena, t, AQ_SKETCH_CELLS, sizeof(uint64_t),
                                                 &failed);
        out->sketch_top = (int32_t *)aq_calib_array(arena, t, 1, sizeof(int32_t), &failed);
    }
    if (points && fields & (AQ_HAS_PERCENTILES | AQ_HAS_SKETCH))
        out->percentiles = (float *)aq_calib_array(arena, t, points, sizeof(float), &failed);
    if (failed) return false;
    out->max = out->min + t;
    out->mean = out->max + t;
    out->std = out->mean + t;
    return true;
}

static void aq_layer_fill_step(const aq_gathering *gathering, const aq_gathered *layer, size_t i,
                               const aq_layer_arrays *to) {
    const aq_step *step = layer->steps[i];
    size_t c = (size_t)layer->channels, points = gathering->point_count;
    to->timesteps[i] = step->timestep;
    to->min[i] = (float)step->min;
    to->max[i] = (float)step->max;
    to->mean[i] = (float)step->mean;
    to->std[i] = step->weight > 0.0 ? (float)sqrt(step->spread / step->weight) : 0.0f;
    if (to->rows) to->rows[i] = step->rows;
    if (to->absmax) memcpy(to->absmax + i * c, step->absmax, c * sizeof(float));
    if (to->low) memcpy(to->low + i * c, step->low, c * sizeof(float));
    if (to->high) memcpy(to->high + i * c, step->high, c * sizeof(float));
    for (size_t k = 0; to->sqmean && k < c; k++) {
        double square = step->squares[k] / step->weight;
        to->sqmean[i * c + k] = square < (double)FLT_MAX ? (float)square : FLT_MAX;
    }
    if (to->sketch) {
        memcpy(to->sketch + i * AQ_SKETCH_CELLS, step->sketch, AQ_SKETCH_CELLS * sizeof(uint64_t));
        to->sketch_top[i] = step->top;
    }
    for (size_t k = 0; to->percentiles && k < points; k++)
        to->percentiles[i * points + k] =
            step->sketch ? (float)aq_sketch_percentile(step->sketch, step->top,
                                                       (double)gathering->points[k], step->min,
                                                       step->max)
                         : step->percentiles[k];
}

static aq_status aq_layer_fill(aq_arena *arena, const aq_gathering *gathering,
                               const aq_gathered *layer, aq_calibration_layer *out,
                               aq_error *err) {
    aq_layer_arrays arrays;
    bool rows;
    unsigned fields = aq_gathered_fields(layer, &rows);
    memset(out, 0, sizeof(*out));
    out->name = aq_arena_string(arena, layer->name);
    out->channels = layer->channels;
    if (!out->name || !aq_layer_arrays_make(arena, layer, fields, rows, gathering->point_count,
                                            &arrays))
        return aq_fail_memory(err, (size_t)layer->channels);
    for (size_t i = 0; i < layer->step_count; i++)
        aq_layer_fill_step(gathering, layer, i, &arrays);
    out->timestep_count = layer->step_count;
    if (!layer->step_count) return AQ_OK;
    out->timesteps = arrays.timesteps;
    out->rows = arrays.rows;
    out->min = arrays.min;
    out->max = arrays.max;
    out->mean = arrays.mean;
    out->std = arrays.std;
    out->absmax = arrays.absmax;
    out->sqmean = arrays.sqmean;
    out->channel_min = arrays.low;
    out->channel_max = arrays.high;
    out->percentiles = arrays.percentiles;
    out->sketch = arrays.sketch;
    out->sketch_top = arrays.sketch_top;
    return AQ_OK;
}

static aq_status aq_moments_fill(aq_calibration *calibration, const aq_gathered *layer,
                                 size_t index, aq_calibration_layer *out, aq_error *err) {
    size_t c = (size_t)layer->channels;
    bool failed = false;
    float *to = (float *)aq_calib_array(&calibration->state->arena, c, c, sizeof(float), &failed);
    if (failed) return aq_fail_memory(err, c * c * sizeof(float));
    for (size_t i = 0; i < c; i++) {
        for (size_t j = i; j < c; j++)
            to[i * c + j] = to[j * c + i] =
                (float)(layer->moments[i * c + j] / (double)layer->moment_rows);
    }
    calibration->state->moments[index] = to;
    out->has_hessian = true;
    out->hessian_rows = layer->moment_rows;
    out->owner = index;
    return AQ_OK;
}

AQ_LIB aq_status aq_calibration_fill(aq_calibration *calibration, const aq_gathering *gathering,
                                     bool with_moments, aq_error *err) {
    aq_arena *arena = &calibration->state->arena;
    size_t count = gathering->layer_count;
    bool failed = false;
    aq_calibration_layer *layers = (aq_calibration_layer *)aq_calib_array(
        arena, count, 1, sizeof(aq_calibration_layer), &failed);
    calibration->state->moments = (const float **)aq_calib_array(arena, count, 1,
                                                                 sizeof(float *), &failed);
    float *points = (float *)aq_calib_array(arena, gathering->point_count, 1, sizeof(float),
                                            &failed);
    if (failed) return aq_fail_memory(err, count * sizeof(aq_calibration_layer));
    if (gathering->point_count)
        memcpy(points, gathering->points, gathering->point_count * sizeof(float));
    calibration->percentile_points = points;
    calibration->percentile_count = gathering->point_count;
    calibration->layers = layers;
    aq_status status = AQ_OK;
    for (size_t i = 0; status == AQ_OK && i < count; i++) {
        const aq_gathered *layer = gathering->layers[i];
        aq_guard_enter(layer->guard);
        status = aq_layer_fill(arena, gathering, layer, &layers[i], err);
        if (status == AQ_OK && with_moments && layer->moments && layer->moment_rows)
            status = aq_moments_fill(calibration, layer, i, &layers[i], err);
        aq_guard_leave(layer->guard);
    }
    calibration->layer_count = count;
    return status;
}

/* ---- pooled figures, shared second moments */

AQ_SIMD_EXACT static aq_status aq_pool_channels(aq_arena *arena, aq_calibration_layer *layer,
                                                aq_error *err) {
    AQ_SIMD_EXACT_BODY
    size_t t = layer->timestep_count, c = (size_t)layer->channels;
    bool failed = false;
    float *absmax = NULL, *sqmean = NULL;
    if (layer->absmax) absmax = (float *)aq_calib_array(arena, c, 1, sizeof(float), &failed);
    if (layer->sqmean) sqmean = (float *)aq_calib_array(arena, c, 1, sizeof(float), &failed);
    if (failed) return aq_fail_memory(err, c * sizeof(float));
    for (size_t k = 0; k < c && (absmax || sqmean); k++) {
        double sum = 0.0, weight = 0.0;
        for (size_t i = 0; i < t; i++) {
            double rows = layer->rows ? (double)layer->rows[i] : 1.0;
            if (absmax && layer->absmax[i * c + k] > absmax[k]) absmax[k] = layer->absmax[i * c + k];
            if (sqmean) sum += (double)layer->sqmean[i * c + k] * rows;
            weight += rows;
        }
        if (sqmean) sqmean[k] = (float)(sum / weight);
    }
    layer->pooled_absmax = absmax;
    layer->pooled_sqmean = sqmean;
    return AQ_OK;
}

/* The diagonal of the second moments, where nothing else tells the mean squares. */
static aq_status aq_pool_moments(aq_calibration *calibration, aq_calibration_layer *layer,
                                 aq_error *err) {
    aq_arena *arena = &calibration->state->arena;
    size_t c = (size_t)layer->channels, bytes = 0;
    bool failed = false;
    float *sqmean = (float *)aq_calib_array(arena, c, 1, sizeof(float), &failed);
    float *whole = NULL;
    if (aq_mul_size(c, c, &bytes) && aq_mul_size(bytes, sizeof(float), &bytes))
        whole = (float *)aq_alloc(arena->context, bytes);
    if (failed || !whole) {
        aq_free(arena->context, whole, bytes);
        return aq_fail_memory(err, bytes);
    }
    aq_status status = aq_calibration_hessian((aq_context *)(uintptr_t)arena->context, calibration,
                                              layer, whole, err);
    for (size_t i = 0; status == AQ_OK && i < c; i++) sqmean[i] = whole[i * c + i];
    aq_free(arena->context, whole, bytes);
    layer->pooled_sqmean = sqmean;
    return status;
}

static bool aq_same_floats(const float *a, const float *b, size_t count) {
    return (!a && !b) || (a && b && memcmp(a, b, count * sizeof(float)) == 0);
}

/* The same input: every figure is the same to the bit, those of the channels among them. */
static bool aq_same_input(const aq_calibration_layer *a, const aq_calibration_layer *b) {
    size_t t = a->timestep_count;
    if (a->channels != b->channels || t != b->timestep_count || !t || !a->sqmean) return false;
    size_t all = t * (size_t)a->channels;
    return memcmp(a->timesteps, b->timesteps, t * sizeof(int64_t)) == 0 &&
           aq_same_floats(a->min, b->min, t) && aq_same_floats(a->max, b->max, t) &&
           aq_same_floats(a->mean, b->mean, t) && aq_same_floats(a->std, b->std, t) &&
           aq_same_floats(a->absmax, b->absmax, all) && aq_same_floats(a->sqmean, b->sqmean, all);
}

/* By a name in two parts. */
static const aq_calibration_layer *aq_calibration_joined(const aq_calibration *calibration,
                                                         const char *stem, size_t stem_size,
                                                         const char *rest) {
    size_t low = 0, high = calibration->layer_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const char *found = calibration->layers[middle].name;
        int order = strncmp(found, stem, stem_size);
        if (order == 0) order = strcmp(found + stem_size, rest);
        if (order == 0) return &calibration->layers[middle];
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

/* The projection beside it that has the same input in a self-attention. */
static const aq_calibration_layer *aq_calibration_sibling(const aq_calibration *calibration,
                                                          const char *name, size_t length) {
    static const char *const pairs[][2] = { { "attn1.to_k", "attn1.to_q" },
                                            { "attn1.to_v", "attn1.to_q" },
                                            { "self_attn.k_proj", "self_attn.q_proj" },
                                            { "self_attn.v_proj", "self_attn.q_proj" } };
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        size_t size = strlen(pairs[i][0]);
        if (length >= size && memcmp(name + length - size, pairs[i][0], size) == 0)
            return aq_calibration_joined(calibration, name, length - size, pairs[i][1]);
    }
    return NULL;
}

static void aq_share_moments(aq_calibration *calibration, aq_calibration_layer *layer) {
    const aq_calibration_layer *other = NULL;
    for (size_t i = 0; i < calibration->layer_count && !other; i++) {
        const aq_calibration_layer *candidate = &calibration->layers[i];
        if (candidate->has_hessian && aq_same_input(layer, candidate)) other = candidate;
    }
    if (!other && !layer->timestep_count) {
        other = aq_calibration_sibling(calibration, layer->name, strlen(layer->name));
        if (other && (!other->has_hessian || other->channels != layer->channels)) other = NULL;
    }
    if (!other) return;
    layer->has_hessian = true;
    layer->hessian_rows = other->hessian_rows;
    layer->owner = other->owner;
}

AQ_LIB aq_status aq_calibration_finish(aq_calibration *calibration, aq_error *err) {
    aq_arena *arena = &calibration->state->arena;
    aq_calibration_layer *layers = (aq_calibration_layer *)(uintptr_t)calibration->layers;
    aq_status status = AQ_OK;
    for (size_t i = 0; i < calibration->layer_count; i++) {
        if (!layers[i].has_hessian) aq_share_moments(calibration, &layers[i]);
    }
    for (size_t i = 0; status == AQ_OK && i < calibration->layer_count; i++) {
        status = aq_pool_channels(arena, &layers[i], err);
        if (status == AQ_OK && !layers[i].pooled_sqmean && layers[i].has_hessian)
            status = aq_pool_moments(calibration, &layers[i], err);
    }
    return status;
}

/* ---- what callers ask */

ARROWQUANT_API const aq_calibration_layer *aq_calibration_find(const aq_calibration *calibration,
                                                               const char *name) {
    if (!calibration || !name) return NULL;
    for (const char *rest = name; rest;) {
        size_t size = strlen(rest);
        const aq_calibration_layer *found = aq_calibration_joined(calibration, rest, size, "");
        if (size > 7 && strcmp(rest + size - 7, ".weight") == 0) size -= 7;
        if (!found) found = aq_calibration_joined(calibration, rest, size, "");
        if (!found) found = aq_calibration_sibling(calibration, rest, size);
        if (found) return found;
        const char *slash = strchr(rest, '/');
        rest = slash ? slash + 1 : NULL;
    }
    return NULL;
}

AQ_SIMD_EXACT AQ_LIB aq_status aq_moments_check(float *moments, uint64_t channels,
                                                const char *source, const char *name,
                                                aq_error *err) {
    AQ_SIMD_EXACT_BODY
    size_t c = (size_t)channels;
    double most = 0.0;
    for (size_t i = 0; i < c; i++) {
        if ((double)moments[i * c + i] > most) most = (double)moments[i * c + i];
    }
    for (size_t i = 0; i < c; i++) {
        for (size_t j = i; j < c; j++) {
            float a = moments[i * c + j], b = moments[j * c + i];
            /* |xᵢ·xⱼ| is at most the geometric mean of the squares; F16 may have rounded them off */
            double bound = sqrt((double)moments[i * c + i] * (double)moments[j * c + j]);
            double slack = 1e-3 * most + 0.01 * bound;
            bool fits = a - a == 0.0f && b - b == 0.0f && (i != j || a >= 0.0f) &&
                        fabs((double)a) <= bound + slack && fabs((double)a - (double)b) <= slack;
            if (!fits)
                return aq_fail_tensor(err, AQ_ERR_CORRUPT, name, i * c + j,
                                      "%s: layer %s: element (%zu, %zu) of its second moments is no "
                                      "finite number that fits its neighbours in a symmetric "
                                      "matrix XᵀX/n; record them again", source, name, i, j);
            moments[i * c + j] = moments[j * c + i] = a == b ? a : (a + b) * 0.5f;
        }
    }
    return AQ_OK;
}

ARROWQUANT_API aq_status aq_calibration_hessian(aq_context *context,
                                                const aq_calibration *calibration,
                                                const aq_calibration_layer *layer, float *out,
                                                aq_error *err) {
    if (!calibration || !layer || !out)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_calibration_hessian: calibration, layer and out "
                       "must not be NULL");
    if (!layer->has_hessian)
        return aq_fail_tensor(err, AQ_ERR_ARGUMENT, layer->name, 0, "aq_calibration_hessian: "
                              "nothing tells the second moments of layer %s", layer->name);
    const struct aq_calibration_state *state = calibration->state;
    if (state->read) return state->read(context, calibration, layer, out, err);
    size_t c = (size_t)layer->channels;
    memcpy(out, state->moments[layer->owner], c * c * sizeof(float));
    return aq_moments_check(out, layer->channels, "calibration", layer->name, err);
}
