/* A stretch of one row: widening, ranges, fit and codes, with the groups that F32 sums cannot hold
 * set apart. */
#include "tile.h"

#define AQ_TILE_LEAST 0x2B800000u /* bits of 2^-40 */
#define AQ_TILE_MOST 0x53800000u  /* bits of 2^40 */

static float aq_power_of_two(int exponent) { /* −126 … 127 */
    return aq_simd_float((uint32_t)(exponent + 127) << 23);
}

AQ_LIB float aq_scale_by(float value, int exponent) {
    int half = exponent / 2;
    if (exponent == 0) {
        return value;
    }
    return value * aq_power_of_two(half) * aq_power_of_two(exponent - half);
}

/* The exponent that brings a magnitude (its bits) into [1, 2); 0 when it can stay as it is. */
static int aq_tile_exponent(uint32_t absmax) {
    int exponent = 127;
    if (absmax == 0 || (absmax >= AQ_TILE_LEAST && absmax <= AQ_TILE_MOST)) {
        return 0;
    }
    if (absmax >= 0x800000u) {
        return 127 - (int)(absmax >> 23);
    }
    for (; absmax < 0x800000u; absmax <<= 1) {
        exponent++;
    }
    return exponent - 1;
}

static size_t aq_tile_length(const aq_row_job *job, const aq_tile *tile, size_t index) {
    size_t begin = index * job->spec.group_size;
    return tile->count - begin < job->spec.group_size ? tile->count - begin
                                                      : job->spec.group_size;
}

/* Asks for weights two stretches ahead, also of the row behind; of memory that is not there a processor
 * fetches nothing. (The next stretch is too near: that costs more than it gains.) */
static void aq_tile_ask(const aq_row_job *job, const uint8_t *from, size_t count) {
#if defined(__GNUC__)
    size_t i, size = aq_dtype_size(job->dtype);
    uintptr_t at = (uintptr_t)from + 2 * AQ_TILE_WEIGHTS * size;
    for (i = 0; i < count * size; i += 64) {
        __builtin_prefetch((const void *)(at + i));
    }
#else
    (void)job;
    (void)from;
    (void)count;
#endif
}

static void aq_tile_widen(const aq_row_job *job, const uint8_t *from, aq_tile *tile) {
    aq_widen(job->kernels, job->dtype, from, tile->x, tile->count);
    tile->halves = NULL;
}

/* The ranges, and the values themselves unless they stay narrow. */
static void aq_tile_look(const aq_row_job *job, const uint8_t *from, aq_tile *tile) {
    size_t group = job->spec.group_size;
    tile->halves = from;
    if (!job->narrow || job->measure) {
        aq_tile_widen(job, from, tile);
    }
    if (job->dtype == AQ_DTYPE_BF16) {
        job->kernels->range_bf16(from, tile->count, group, tile->range);
    } else {
        job->kernels->range(tile->x, tile->count, group, tile->range);
    }
}

AQ_LIB bool aq_tile_load(const aq_row_job *job, const void *row, size_t begin, aq_tile *tile,
                         size_t *bad) {
    size_t i, group = job->spec.group_size;
    const uint8_t *from = (const uint8_t *)row + begin * aq_dtype_size(job->dtype);
    tile->begin = begin;
    tile->count = job->cols - begin < AQ_TILE_WEIGHTS ? job->cols - begin : AQ_TILE_WEIGHTS;
    tile->group_count = (tile->count + group - 1) / group;
    tile->own_codes = false;
    tile->plain = true;
    aq_tile_ask(job, from, tile->count);
    aq_tile_look(job, from, tile);
    for (i = 0; i < tile->group_count; i++) {
        const aq_simd_range *range = &tile->range[i];
        aq_tile_group *own = &tile->group[i];
        if (range->absmax >= 0x7F800000u) {
            aq_tile_widen(job, from, tile);
            for (i *= group; (aq_simd_bits(tile->x[i]) & 0x7F800000u) != 0x7F800000u; i++) {
            }
            *bad = begin + i;
            return false;
        }
        own->exponent = aq_tile_exponent(range->absmax);
        own->constant = !(range->high > range->low);
        tile->own_codes = tile->own_codes || own->exponent != 0;
        tile->plain = tile->plain && own->exponent == 0 && !own->constant;
    }
    if (tile->own_codes && tile->halves) {
        aq_tile_widen(job, from, tile);
    }
    return true;
}

/* Fits one group from copies of its values and weights that F32 sums can hold. */
static void aq_tile_fit_group(const aq_row_job *job, aq_tile *tile, size_t index,
                              int weight_exponent, const float *weights) {
    float x[AQ_SIMD_GROUP_MAX], w[AQ_SIMD_GROUP_MAX];
    size_t i, begin = index * job->spec.group_size, length = aq_tile_length(job, tile, index);
    aq_tile_group *own = &tile->group[index];
    aq_simd_range range;
    for (i = 0; i < length; i++) {
        x[i] = aq_scale_by(tile->x[begin + i], own->exponent);
        w[i] = weights ? aq_scale_by(weights[begin + i], weight_exponent) : 1.0f;
    }
    job->kernels->range(x, length, AQ_SIMD_GROUP_MAX, &range);
    if (job->symmetric) {
        job->kernels->fit_symmetric(x, w, length, AQ_SIMD_GROUP_MAX, job->spec.bits, &range,
                                    &own->fit);
    } else {
        job->kernels->fit_affine(x, w, length, AQ_SIMD_GROUP_MAX, job->spec.bits, &range,
                                 &own->fit);
    }
}

/* Parameters from the range: affine, the outer codes fall on the extremes; symmetric, the largest
 * magnitude falls on the outermost code, at 4 bits on −8 whatever its sign (at 2 bits that would
 * miss ternary weights, at 8 it is not worth a negative scale). */
static void aq_tile_fit_fast(const aq_row_job *job, aq_tile *tile) {
    const float top = (float)((1u << job->spec.bits) - 1u);
    const float half = (float)(1u << (job->spec.bits - 1u));
    size_t i;
    for (i = 0; i < tile->group_count; i++) {
        aq_tile_group *own = &tile->group[i];
        float low = aq_scale_by(tile->range[i].low, own->exponent);
        float high = aq_scale_by(tile->range[i].high, own->exponent);
        float largest = 0.0f - low > high ? low : high;
        if (own->constant) {
            own->fit.scale = 1.0f;
        } else if (!job->symmetric) {
            own->fit.scale = (high - low) / top;
        } else if (job->spec.bits == 4) {
            own->fit.scale = largest / (0.0f - half);
        } else {
            own->fit.scale = (largest < 0.0f ? 0.0f - largest : largest) / (half - 1.0f);
        }
        own->fit.mean = own->constant     ? (double)low
                        : job->symmetric ? 0.0 : 0.5 * ((double)low + (double)high);
        own->fit.code = own->constant || job->symmetric ? 0.0f : 0.5f * top;
    }
}

AQ_LIB void aq_tile_fit(const aq_row_job *job, aq_tile *tile) {
    const float *weights = job->column_weights ? job->column_weights + tile->begin : NULL;
    aq_simd_range live[AQ_TILE_GROUPS];
    aq_simd_fit fits[AQ_TILE_GROUPS];
    bool own_fits = tile->own_codes;
    size_t i;
    if (job->fast) {
        aq_tile_fit_fast(job, tile);
        return;
    }
    if (weights) {
        job->kernels->range(weights, tile->count, job->spec.group_size, live);
        for (i = 0; i < tile->group_count; i++) {
            own_fits = own_fits || live[i].absmax == 0 || aq_tile_exponent(live[i].absmax) != 0;
        }
    }
    if (!own_fits) {
        (job->symmetric ? job->kernels->fit_symmetric : job->kernels->fit_affine)(
            tile->x, weights, tile->count, job->spec.group_size, job->spec.bits, tile->range, fits);
        for (i = 0; i < tile->group_count; i++) {
            tile->group[i].fit = fits[i];
        }
        return;
    }
    for (i = 0; i < tile->group_count; i++) {
        bool weighted = weights && live[i].absmax != 0; /* no weight at all: all alike */
        aq_tile_fit_group(job, tile, i, weighted ? aq_tile_exponent(live[i].absmax) : 0,
                          weighted ? weights : NULL);
    }
}

AQ_LIB void aq_tile_encode(const aq_row_job *job, const aq_tile *tile, const aq_simd_grid *grids,
                           uint8_t *codes) {
    float x[AQ_SIMD_GROUP_MAX];
    size_t i, index, group = job->spec.group_size;
    if (tile->halves) {
        job->kernels->encode_bf16(tile->halves, tile->count, group, job->spec.bits, job->symmetric,
                                  grids, codes);
        return;
    }
    if (!tile->own_codes) {
        job->kernels->encode(tile->x, tile->count, group, job->spec.bits, job->symmetric, grids,
                             codes);
        return;
    }
    for (index = 0; index < tile->group_count; index++) {
        size_t length = aq_tile_length(job, tile, index);
        int exponent = tile->group[index].exponent;
        aq_simd_grid grid;
        grid.scale = aq_scale_by(grids[index].scale, exponent);
        grid.min = aq_scale_by(grids[index].min, exponent);
        for (i = 0; i < length; i++) {
            x[i] = aq_scale_by(tile->x[index * group + i], exponent);
        }
        job->kernels->encode(x, length, group, job->spec.bits, job->symmetric, &grid,
                             codes + index * (group * job->spec.bits / 8));
    }
}

#undef AQ_TILE_LEAST
#undef AQ_TILE_MOST
