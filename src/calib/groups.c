/* Groups of timesteps: where they are cut, and the integers of each. */
#include "calib.h"
#include "../simd/simd.h"

#include <math.h>

#define AQ_CUT_BLOCKS 128u /* more observed timesteps are first joined into so many */

typedef struct aq_grouping {
    const aq_context *context;
    const aq_calibration_layer *layer;
    const aq_time_options *options;
    uint64_t *cells;     /* of a range of timesteps */
    size_t first[AQ_TIME_GROUPS_MAX + 1]; /* of each group: its first observed timestep */
} aq_grouping;

static double aq_step_weight(const aq_calibration_layer *layer, size_t i) {
    return (layer->rows ? (double)layer->rows[i] : 1.0) * (double)layer->channels;
}

/* Adds observed timestep i to a distribution; `of->cells` is the scratch, or NULL. */
AQ_SIMD_EXACT static void aq_distribution_add(aq_distribution *of, uint64_t *cells,
                                              const aq_calibration_layer *layer, size_t i) {
    AQ_SIMD_EXACT_BODY
    if (!(of->count > 0.0) || (double)layer->min[i] < of->min) of->min = (double)layer->min[i];
    if (!(of->count > 0.0) || (double)layer->max[i] > of->max) of->max = (double)layer->max[i];
    of->count += aq_step_weight(layer, i);
    if (cells)
        aq_sketch_merge(cells, &of->top, layer->sketch + i * AQ_SKETCH_CELLS, layer->sketch_top[i]);
    of->cells = cells;
}

static void aq_distribution_start(aq_distribution *of, uint64_t *cells) {
    memset(of, 0, sizeof(*of));
    if (cells) memset(cells, 0, AQ_SKETCH_CELLS * sizeof(uint64_t));
}

/* Observed timesteps begin … end − 1. */
static aq_distribution aq_distribution_of(const aq_grouping *grouping, size_t begin, size_t end) {
    aq_distribution of;
    aq_distribution_start(&of, grouping->cells);
    for (size_t i = begin; i < end; i++)
        aq_distribution_add(&of, grouping->cells, grouping->layer, i);
    return of;
}

/* ---- the optimal cut */

/* Expected error at 8 bits of all ranges of blocks: cost[i·n + j], blocks i … j. */
static void aq_cut_costs(const aq_grouping *grouping, const size_t *blocks, size_t n,
                         double *cost) {
    const aq_time_options *options = grouping->options;
    for (size_t i = 0; i < n; i++) {
        aq_distribution of;
        aq_distribution_start(&of, grouping->cells);
        for (size_t j = i; j < n; j++) {
            for (size_t k = blocks[j]; k < blocks[j + 1]; k++)
                aq_distribution_add(&of, grouping->cells, grouping->layer, k);
            cost[i * n + j] =
                aq_activation_cost(&of, options->range, options->percentile, 255);
        }
    }
}

/* best[g·(n + 1) + j]: least cost of blocks 0 … j − 1 in g groups; from[…]: where the last begins. */
static void aq_cut_solve(const double *cost, size_t n, size_t groups, double *best, size_t *from) {
    for (size_t j = 1; j <= n; j++) {
        best[(n + 1) + j] = cost[j - 1];
        from[(n + 1) + j] = 0;
    }
    for (size_t g = 2; g <= groups; g++) {
        for (size_t j = g; j <= n; j++) {
            double least = -1.0;
            for (size_t i = g - 1; i < j; i++) {
                double sum = best[(g - 1) * (n + 1) + i] + cost[i * n + j - 1];
                if (least >= 0.0 && sum >= least) continue;
                least = sum;
                from[g * (n + 1) + j] = i;
            }
            best[g * (n + 1) + j] = least;
        }
    }
}

static aq_status aq_cut_optimal(aq_grouping *grouping, size_t *count, aq_error *err) {
    size_t observed = grouping->layer->timestep_count;
    size_t n = observed < AQ_CUT_BLOCKS ? observed : AQ_CUT_BLOCKS;
    size_t groups = *count < n ? *count : n, blocks[AQ_CUT_BLOCKS + 1];
    size_t table = (groups + 1) * (n + 1);
    size_t bytes = n * n * sizeof(double) + table * (sizeof(double) + sizeof(size_t));
    double *cost = (double *)aq_alloc(grouping->context, bytes);
    if (!cost) return aq_fail_memory(err, bytes);
    double *best = cost + n * n;
    size_t *from = (size_t *)(void *)(best + table);
    for (size_t i = 0; i <= n; i++) blocks[i] = i * observed / n;
    aq_cut_costs(grouping, blocks, n, cost);
    aq_cut_solve(cost, n, groups, best, from);
    grouping->first[groups] = observed;
    for (size_t g = groups, j = n; g > 0; g--) {
        j = from[g * (n + 1) + j];
        grouping->first[g - 1] = blocks[j];
    }
    *count = groups;
    aq_free(grouping->context, cost, bytes);
    return AQ_OK;
}

/* ---- groups and their integers */

static aq_status aq_groups_alloc(const aq_context *context, aq_time_groups *out, aq_error *err) {
    size_t groups = out->count, cells = groups * out->channel_groups;
    size_t bytes = groups * 2 * sizeof(double) + cells * 2 * (sizeof(float) + sizeof(int32_t)) +
                   groups * sizeof(int32_t) + out->total_timesteps;
    char *piece = (char *)aq_alloc(context, bytes);
    if (!piece) return aq_fail_memory(err, bytes);
    memset(piece, 0, bytes);
    out->context = context;
    out->bytes = bytes;
    out->error[0] = (double *)(void *)piece;
    out->error[1] = out->error[0] + groups;
    out->scale[0] = (float *)(void *)(out->error[1] + groups);
    out->scale[1] = out->scale[0] + cells;
    out->zero_point[0] = (int32_t *)(void *)(out->scale[1] + cells);
    out->zero_point[1] = out->zero_point[0] + cells;
    out->starts = out->zero_point[1] + cells;
    out->lookup = (uint8_t *)(void *)(out->starts + groups);
    return AQ_OK;
}

ARROWQUANT_API void aq_time_groups_free(aq_time_groups *groups) {
    if (!groups || !groups->error[0]) return;
    aq_free(groups->context, groups->error[0], groups->bytes);
    memset(groups, 0, sizeof(*groups));
}

static void aq_groups_lookup(aq_time_groups *groups) {
    uint32_t g = 0;
    for (uint32_t t = 0; t < groups->total_timesteps; t++) {
        while (g + 1 < groups->count && (int64_t)t >= groups->starts[g + 1]) g++;
        groups->lookup[t] = (uint8_t)g;
    }
}

/* Which observed timesteps a uniform group holds; the nearest one when there is none. */
static void aq_uniform_members(const aq_grouping *grouping, const aq_time_groups *groups,
                               uint32_t g, size_t *begin, size_t *end) {
    const aq_calibration_layer *layer = grouping->layer;
    size_t n = layer->timestep_count, i = 0;
    int64_t low = groups->starts[g], high = groups->total_timesteps;
    if (g + 1 < groups->count) high = groups->starts[g + 1];
    if (g == 0) low = INT64_MIN;
    if (g + 1 == groups->count) high = INT64_MAX;
    while (i < n && layer->timesteps[i] < low) i++;
    *begin = i;
    while (i < n && layer->timesteps[i] < high) i++;
    *end = i;
    if (*end > *begin) return;
    if (*begin == n) *begin = n - 1;
    else if (*begin && (double)low - (double)layer->timesteps[*begin - 1] <=
                           (double)layer->timesteps[*begin] - ((double)high - 1.0))
        --*begin;
    *end = *begin + 1;
}

/* Limits of some channels over observed timesteps; of magnitudes only, when there is no more. */
static void aq_channel_limits(const aq_grouping *grouping, size_t begin, size_t end, size_t first,
                              size_t last, aq_distribution *of) {
    const aq_calibration_layer *layer = grouping->layer;
    size_t c = (size_t)layer->channels;
    bool limits = layer->channel_min && layer->channel_max, started = false;
    memset(of, 0, sizeof(*of));
    for (size_t i = begin; i < end; i++) {
        for (size_t k = first; k < last; k++) {
            double low = limits ? (double)layer->channel_min[i * c + k]
                                : -(double)layer->absmax[i * c + k];
            double high = limits ? (double)layer->channel_max[i * c + k] : -low;
            if (low < (double)layer->min[i]) low = (double)layer->min[i];
            if (high > (double)layer->max[i]) high = (double)layer->max[i];
            if (!started || low < of->min) of->min = low;
            if (!started || high > of->max) of->max = high;
            started = true;
        }
        of->count += aq_step_weight(layer, i) * (double)(last - first) / (double)c;
    }
}

static void aq_group_fit(const aq_grouping *grouping, size_t begin, size_t end,
                         aq_time_groups *out, uint32_t g) {
    const aq_time_options *options = grouping->options;
    size_t c = (size_t)grouping->layer->channels;
    for (unsigned w = 0; w < 2; w++) {
        uint32_t levels = w ? 15 : 255;
        double sum = 0.0, count = 0.0;
        for (uint32_t k = 0; k < out->channel_groups; k++) {
            aq_distribution of;
            size_t first = (size_t)k * options->channel_group, last = first + options->channel_group;
            if (out->channel_groups == 1) of = aq_distribution_of(grouping, begin, end);
            else aq_channel_limits(grouping, begin, end, first, last < c ? last : c, &of);
            aq_activation_grid grid =
                aq_activation_fit(&of, options->range, options->percentile, levels);
            out->scale[w][g * out->channel_groups + k] = grid.scale;
            out->zero_point[w][g * out->channel_groups + k] = grid.zero_point;
            sum += aq_activation_error(&of, &grid, levels);
            count += of.count;
        }
        out->error[w][g] = sum / count;
    }
}

static aq_status aq_groups_check(const aq_calibration_layer *layer, const aq_time_options *options,
                                 aq_error *err) {
    if (!options->num_time_groups || options->num_time_groups > AQ_TIME_GROUPS_MAX)
        return aq_fail_tensor(err, AQ_ERR_TIME_GROUPS, layer->name, 0,
                              "num_time_groups: expected an integer from 1 to %u, found %u",
                              AQ_TIME_GROUPS_MAX, (unsigned)options->num_time_groups);
    if (!options->total_timesteps || options->total_timesteps > 1000000)
        return aq_fail_tensor(err, AQ_ERR_TIME_GROUPS, layer->name, 0,
                              "total_timesteps: expected an integer from 1 to 1000000, found %u",
                              (unsigned)options->total_timesteps);
    if (!(options->percentile >= 50.0 && options->percentile <= 100.0) &&
        options->range == AQ_RANGE_PERCENTILE)
        return aq_fail_tensor(err, AQ_ERR_ARGUMENT, layer->name, 0,
                              "percentile: expected a number from 50 to 100");
    if (!layer->timestep_count || (options->channel_group && !layer->absmax && !layer->channel_min))
        return aq_fail_tensor(err, AQ_ERR_ARGUMENT, layer->name, 0,
                              "layer %s: its statistics know no timesteps%s", layer->name,
                              layer->timestep_count ? " by channel" : "");
    return AQ_OK;
}

static aq_status aq_groups_fill(aq_grouping *grouping, aq_time_groups *out, aq_error *err) {
    const aq_time_options *options = grouping->options;
    const aq_calibration_layer *layer = grouping->layer;
    size_t count = options->num_time_groups;
    if (count > options->total_timesteps) count = options->total_timesteps;
    bool optimal = options->cut == AQ_TIME_CUT_OPTIMAL;
    aq_status status = optimal ? aq_cut_optimal(grouping, &count, err) : AQ_OK;
    out->count = (uint32_t)count;
    out->total_timesteps = options->total_timesteps;
    out->channel_group = options->channel_group;
    out->channel_groups = 1;
    if (options->channel_group)
        out->channel_groups =
            (uint32_t)((layer->channels + options->channel_group - 1) / options->channel_group);
    if (status == AQ_OK) status = aq_groups_alloc(grouping->context, out, err);
    for (uint32_t g = 0; status == AQ_OK && g < count; g++) {
        out->starts[g] = (int32_t)((uint64_t)g * options->total_timesteps / count);
        if (!optimal || !g) continue;
        double left = (double)layer->timesteps[grouping->first[g] - 1];
        double start = ceil((left + (double)layer->timesteps[grouping->first[g]]) / 2.0);
        double most = (double)options->total_timesteps;
        out->starts[g] = (int32_t)(start < 0.0 ? 0.0 : start > most ? most : start);
    }
    for (uint32_t g = 0; status == AQ_OK && g < count; g++) {
        size_t begin = grouping->first[g], end = grouping->first[g + 1];
        if (!optimal) aq_uniform_members(grouping, out, g, &begin, &end);
        aq_group_fit(grouping, begin, end, out, g);
    }
    if (status == AQ_OK) aq_groups_lookup(out);
    return status;
}

ARROWQUANT_API aq_status aq_time_groups_make(aq_context *context,
                                             const aq_calibration_layer *layer,
                                             const aq_time_options *options, aq_time_groups *out,
                                             aq_error *err) {
    if (!layer || !options || !out)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_time_groups_make: layer, options and out must not "
                       "be NULL");
    memset(out, 0, sizeof(*out));
    aq_status status = aq_groups_check(layer, options, err);
    if (status != AQ_OK) return status;
    aq_grouping grouping;
    size_t bytes = AQ_SKETCH_CELLS * sizeof(uint64_t);
    memset(&grouping, 0, sizeof(grouping));
    grouping.context = context;
    grouping.layer = layer;
    grouping.options = options;
    if (layer->sketch && options->range != AQ_RANGE_MIN_MAX) {
        grouping.cells = (uint64_t *)aq_alloc(context, bytes);
        if (!grouping.cells) return aq_fail_memory(err, bytes);
    }
    status = aq_groups_fill(&grouping, out, err);
    aq_free(context, grouping.cells, bytes);
    return status;
}

static bool aq_groups_good(const int32_t *starts, const float *scales, const int32_t *zeros,
                           uint32_t count) {
    bool good = count && count <= AQ_TIME_GROUPS_MAX && starts[0] == 0 && starts[count] > 0 &&
                starts[count] <= 1000000;
    for (uint32_t g = 0; g < count && good; g++) {
        good = starts[g] <= starts[g + 1]; /* one may be empty after rounding */
        for (uint32_t w = 0; w < 2 && good; w++) {
            float scale = scales[w * count + g];
            int32_t zero = zeros[w * count + g];
            good = scale > 0.0f && scale - scale == 0.0f && zero >= 0 && zero <= (w ? 15 : 255);
        }
    }
    return good;
}

AQ_LIB bool aq_time_groups_load(const aq_context *context, const int32_t *starts,
                                const float *scales, const int32_t *zeros, uint32_t count,
                                aq_time_groups *out, bool *failed) {
    memset(out, 0, sizeof(*out));
    *failed = false;
    if (!aq_groups_good(starts, scales, zeros, count)) return false;
    out->count = count;
    out->total_timesteps = (uint32_t)starts[count];
    out->channel_groups = 1;
    if (aq_groups_alloc(context, out, NULL) != AQ_OK) {
        *failed = true;
        return false;
    }
    memcpy(out->starts, starts, count * sizeof(int32_t));
    for (unsigned w = 0; w < 2; w++) {
        double nan = 0.0;
        memcpy(out->scale[w], scales + w * count, count * sizeof(float));
        memcpy(out->zero_point[w], zeros + w * count, count * sizeof(int32_t));
        for (uint32_t g = 0; g < count; g++) out->error[w][g] = nan / nan; /* not stored */
    }
    aq_groups_lookup(out);
    return true;
}

ARROWQUANT_API uint32_t aq_time_group_of(const aq_time_groups *groups, int64_t timestep) {
    if (timestep < 0) timestep = 0;
    if (timestep >= (int64_t)groups->total_timesteps) timestep = (int64_t)groups->total_timesteps - 1;
    return groups->lookup[timestep];
}

#undef AQ_CUT_BLOCKS
