/* Activation statistics: what an observer gathers, and what a calibration shows of it. */
#ifndef AQ_CALIB_H
#define AQ_CALIB_H

#include "../base/base.h"
#include "../base/thread.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the sketch (calib/sketch.c): a histogram of floats, cells of a fixed relative width
 *
 * A value's bucket is its magnitude's upper bits: exponent and 5 bits of mantissa. Cells 1 … 320 hold
 * the positive values of the 320 buckets up to `top`, that of the largest magnitude; 321 … 640 the
 * negative ones; cell 0 all that is nearer to zero (below 2^-10 of the largest magnitude). Counts
 * of the same values in any order and grouping are the same, and two sketches merge exactly. */

#define AQ_SKETCH_SIDE 320u
#define AQ_SKETCH_SHIFT 18u /* 23 − 5 bits of mantissa that are dropped */

AQ_LIB int32_t aq_sketch_bucket(float magnitude);
/* Makes `top` at least that bucket; what gets too near to zero moves into cell 0. */
AQ_LIB void aq_sketch_raise(uint64_t *cells, int32_t *top, int32_t bucket);
/* Finite values only, all of magnitudes that fit below `top`. */
AQ_LIB void aq_sketch_add(uint64_t *cells, int32_t top, const float *values, size_t count);
AQ_LIB void aq_sketch_merge(uint64_t *cells, int32_t *top, const uint64_t *other,
                            int32_t other_top);
/* The magnitudes between which a cell's values lie. */
AQ_LIB void aq_sketch_cell(int32_t top, size_t cell, double *low, double *high);
AQ_LIB uint64_t aq_sketch_total(const uint64_t *cells);
/* `percent` 0 … 100 of the values lie below it, by linear interpolation in a cell; within min … max. */
AQ_LIB double aq_sketch_percentile(const uint64_t *cells, int32_t top, double percent, double min,
                                   double max);

/* ---- gathered figures (calib/gather.c) */

/* Of one layer at one timestep. Arrays may be NULL: not known. */
typedef struct aq_step {
    int64_t timestep;
    uint64_t rows;  /* 0: unknown */
    double weight;  /* rows; 1 when unknown */
    double min, max, mean, spread; /* spread: variance × weight */
    float *absmax, *low, *high;    /* [channels] */
    double *squares;               /* [channels]: Σ x² */
    float *percentiles;            /* as given with the points of the gathering */
    uint64_t *sketch;
    int32_t top;
    uint64_t feeds;
    size_t bytes; /* of the piece that holds step and arrays */
} aq_step;

typedef struct aq_gathered {
    const aq_context *context;
    char *name;
    uint64_t channels;
    aq_step **steps; /* ascending timesteps */
    size_t step_count, step_capacity;
    double *moments; /* [channels, channels], upper triangle: Σ x·xᵀ; or NULL */
    uint64_t moment_rows;
    struct aq_guard *guard;
} aq_gathered;

typedef struct aq_gathering {
    const aq_context *context;
    aq_gathered **layers; /* sorted by name */
    size_t layer_count, layer_capacity;
    float *points; /* of percentiles */
    size_t point_count;
} aq_gathering;

AQ_LIB void aq_gathering_free(aq_gathering *gathering);
AQ_LIB aq_status aq_gathering_points(aq_gathering *gathering, const float *points, size_t count,
                                     aq_error *err);
/* Found or made. */
AQ_LIB aq_status aq_gathering_layer(aq_gathering *gathering, const char *name, uint64_t channels,
                                    aq_gathered **out, aq_error *err);
#define AQ_HAS_ABSMAX 1u
#define AQ_HAS_LIMITS 2u
#define AQ_HAS_SQUARES 4u
#define AQ_HAS_SKETCH 8u
#define AQ_HAS_PERCENTILES 16u
/* Found, or made with the arrays that `fields` names. */
AQ_LIB aq_status aq_gathered_step(aq_gathered *layer, int64_t timestep, unsigned fields,
                                  size_t points, aq_step **out, aq_error *err);
/* Which of the arrays a step has. */
AQ_LIB unsigned aq_step_has(const aq_step *step);
/* Adds min, max, mean, spread, rows and weight of another. */
AQ_LIB void aq_step_merge_figures(aq_step *to, const aq_step *from);
/* Adds what a calibration knows of a layer, but for second moments. `source` names it in messages. */
AQ_LIB aq_status aq_gathering_add(aq_gathering *gathering, const aq_calibration *calibration,
                                  const aq_calibration_layer *layer, const char *source,
                                  aq_error *err);

/* How often this layer and timestep has been fed (calib/observer.c). */
AQ_LIB uint64_t aq_observer_feeds(aq_observer *observer, const char *layer, int64_t timestep);

/* ---- integers for activations (calib/range.c) */

typedef struct aq_activation_grid {
    float scale;
    int32_t zero_point;
} aq_activation_grid;

/* A distribution: a sketch, or NULL and only its limits and how many values. */
typedef struct aq_distribution {
    const uint64_t *cells;
    int32_t top;
    double min, max, count;
} aq_distribution;

/* The integers 0 … levels that cover low … high and zero, which is one of them. */
AQ_LIB aq_activation_grid aq_activation_grid_of(double low, double high, uint32_t levels);
/* Σ (x − x̂)² expected over the distribution. Without a sketch: as if all of it were rounded and none
 * clipped. */
AQ_LIB double aq_activation_error(const aq_distribution *of, const aq_activation_grid *grid,
                                  uint32_t levels);
/* The error of the fit below, or nearly so: least error is looked for at 12 places only. */
AQ_LIB double aq_activation_cost(const aq_distribution *of, aq_activation_range range,
                                 double percentile, uint32_t levels);
AQ_LIB aq_activation_grid aq_activation_fit(const aq_distribution *of, aq_activation_range range,
                                            double percentile, uint32_t levels);

/* ---- equalization (calib/equalize.c): the inverse of aq_fold_columns, w·s rounded once */
AQ_LIB void aq_unfold_columns(float *weights, uint64_t rows, uint64_t cols, const float *scales);

/* ---- groups from what a file holds (calib/groups.c): starts and T, scales of 8 and 4 bits, zero
 * points, in this machine's byte order. False unless they are what aq_time_groups_make could give, as
 * far as order and ranges go; then nothing is left to free. NULL memory: *failed. */
AQ_LIB bool aq_time_groups_load(const aq_context *context, const int32_t *starts,
                                const float *scales, const int32_t *zeros, uint32_t count,
                                aq_time_groups *out, bool *failed);

/* ---- the calibration (calib/calibration.c) */

/* Reads second moments of layer->owner into out. */
typedef aq_status (*aq_moments_fn)(aq_context *context, const aq_calibration *calibration,
                                   const aq_calibration_layer *layer, float *out, aq_error *err);

struct aq_calibration_state {
    aq_arena arena;
    aq_moments_fn read;            /* NULL: moments[owner] */
    const float **moments;
    void (*close)(struct aq_calibration_state *state); /* or NULL */
    void *source;                  /* of read and close */
};

AQ_LIB aq_status aq_calibration_new(const aq_context *context, aq_calibration **out, aq_error *err);
/* Fills it from what was gathered; with the second moments, if wanted. */
AQ_LIB aq_status aq_calibration_fill(aq_calibration *calibration, const aq_gathering *gathering,
                                     bool with_moments, aq_error *err);
/* Pooled arrays and shared second moments, once the layers are there. */
AQ_LIB aq_status aq_calibration_finish(aq_calibration *calibration, aq_error *err);
/* Symmetric, finite, no negative diagonal: makes it so, or AQ_ERR_CORRUPT. */
AQ_LIB aq_status aq_moments_check(float *moments, uint64_t channels, const char *source,
                                  const char *name, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* AQ_CALIB_H */
