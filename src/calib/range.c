/* Integers for activations: the range that they cover, by limits, percentile or least expected error. */
#include "calib.h"

#include "../simd/simd.h"

#include <math.h>

AQ_LIB aq_activation_grid aq_activation_grid_of(double low, double high, uint32_t levels) {
    const double tiny = 1.1754943508222875e-38; /* the least normal float */
    aq_activation_grid grid;
    if (low > 0.0) low = 0.0; /* zero is always one of the integers */
    if (high < 0.0) high = 0.0;
    double scale = (high - low) / (double)levels;
    grid.scale = (float)(scale > tiny ? scale : tiny);
    double zero = rint(-low / (double)grid.scale);
    grid.zero_point = (int32_t)(zero < (double)levels ? zero : (double)levels);
    return grid;
}

/* ∫ (v − v̂)² dv from 0 to u, in steps of the grid, whose whole numbers are low … high: exact, inside
 * (each step adds 1/12) and where it clips. */
AQ_SIMD_EXACT static double aq_rounding_integral(double u, double low, double high) {
    AQ_SIMD_EXACT_BODY
    const double magic = 6755399441055744.0; /* 1.5·2^52: adding it rounds to whole numbers */
    double nearest = u < low ? low : u > high ? high : u;
    nearest = (nearest + magic) - magic;
    double apart = u - nearest;
    return nearest * (1.0 / 12.0) + apart * apart * apart * (1.0 / 3.0);
}

AQ_SIMD_EXACT AQ_LIB double aq_activation_error(const aq_distribution *of,
                                                const aq_activation_grid *grid, uint32_t levels) {
    AQ_SIMD_EXACT_BODY
    double scale = (double)grid->scale, sum = 0.0, inverse = 1.0 / scale;
    double low = -(double)grid->zero_point, high = low + (double)levels;
    if (!of->cells) return of->count * scale * scale / 12.0;
    for (size_t cell = 0; cell < AQ_SKETCH_CELLS; cell++) {
        double from, to;
        if (!of->cells[cell]) continue;
        aq_sketch_cell(of->top, cell, &from, &to);
        if (cell > AQ_SKETCH_SIDE) {
            double swap = from;
            from = -to;
            to = -swap;
        } else if (!cell) {
            from = -to;
        }
        if (from < of->min) from = of->min;
        if (to > of->max) to = of->max;
        from *= inverse;
        to *= inverse;
        if (to - from > 1e-6) {
            sum += (double)of->cells[cell] / (to - from) *
                   (aq_rounding_integral(to, low, high) - aq_rounding_integral(from, low, high));
        } else {
            double nearest = from < low ? low : from > high ? high : rint(from);
            sum += (double)of->cells[cell] * (from - nearest) * (from - nearest);
        }
    }
    return sum * scale * scale;
}

/* Both limits drawn in together, by the share out of `steps` that serves best. */
AQ_SIMD_EXACT static double aq_least_share(const aq_distribution *of, uint32_t levels,
                                           unsigned steps, double *least) {
    AQ_SIMD_EXACT_BODY
    double share = 1.0;
    *least = -1.0;
    for (unsigned i = 0; i < steps; i++) {
        double part = 1.0 - (double)i / (double)steps;
        aq_activation_grid grid = aq_activation_grid_of(of->min * part, of->max * part, levels);
        double error = aq_activation_error(of, &grid, levels);
        if (*least >= 0.0 && error >= *least) continue;
        *least = error;
        share = part;
    }
    return share;
}

/* The best of 24 ends between `from` and `to`, the other end being fixed; `from` when none is better
 * than *least. */
AQ_SIMD_EXACT static double aq_search_end(const aq_distribution *of, double from, double to,
                                          double other, bool is_high, uint32_t levels,
                                          double *least) {
    AQ_SIMD_EXACT_BODY
    const unsigned steps = 24;
    double best = from;
    for (unsigned i = 0; i < steps; i++) {
        double end = from + (to - from) * ((double)i / (double)steps);
        aq_activation_grid grid = is_high ? aq_activation_grid_of(other, end, levels)
                                          : aq_activation_grid_of(end, other, levels);
        double error = aq_activation_error(of, &grid, levels);
        if (error >= *least) continue;
        *least = error;
        best = end;
    }
    return best;
}

/* Coordinate descent from the limits: both ends together, then one after the other, each time in a
 * neighbourhood that shrinks. */
AQ_SIMD_EXACT static aq_activation_grid aq_least_error(const aq_distribution *of, uint32_t levels) {
    AQ_SIMD_EXACT_BODY
    aq_activation_grid grid;
    double least, share = aq_least_share(of, levels, 32, &least);
    double low = of->min * share, high = of->max * share;
    for (unsigned round = 0; round < 3; round++) {
        double reach = round ? 0.1 : 0.5;
        double outer = high + (of->max - high) * reach, inner = high * (1.0 - reach);
        double found = aq_search_end(of, outer, inner, low, true, levels, &least);
        grid = aq_activation_grid_of(low, found, levels);
        if (aq_activation_error(of, &grid, levels) <= least) high = found;
        outer = low + (of->min - low) * reach;
        inner = low * (1.0 - reach);
        found = aq_search_end(of, outer, inner, high, false, levels, &least);
        grid = aq_activation_grid_of(found, high, levels);
        if (aq_activation_error(of, &grid, levels) <= least) low = found;
    }
    return aq_activation_grid_of(low, high, levels);
}

AQ_LIB aq_activation_grid aq_activation_fit(const aq_distribution *of, aq_activation_range range,
                                            double percentile, uint32_t levels) {
    if (!of->cells || range == AQ_RANGE_MIN_MAX || !(of->max > of->min))
        return aq_activation_grid_of(of->min, of->max, levels);
    if (range == AQ_RANGE_LEAST_ERROR) return aq_least_error(of, levels);
    double low = aq_sketch_percentile(of->cells, of->top, 100.0 - percentile, of->min, of->max);
    double high = aq_sketch_percentile(of->cells, of->top, percentile, of->min, of->max);
    return aq_activation_grid_of(low, high, levels);
}

AQ_LIB double aq_activation_cost(const aq_distribution *of, aq_activation_range range,
                                 double percentile, uint32_t levels) {
    double least;
    if (of->cells && range == AQ_RANGE_LEAST_ERROR && of->max > of->min) {
        (void)aq_least_share(of, levels, 12, &least);
        return least;
    }
    aq_activation_grid grid = aq_activation_fit(of, range, percentile, levels);
    return aq_activation_error(of, &grid, levels);
}
