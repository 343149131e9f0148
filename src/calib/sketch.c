/* The sketch of a distribution: counts of floats by exponent and leading bits of mantissa (as
 * DDSketch has it, Masson, Rim and Lee 2019, with the buckets that the float format gives). */
#include "calib.h"

#include "../simd/simd.h"

AQ_LIB int32_t aq_sketch_bucket(float magnitude) {
    int32_t bucket = (int32_t)((aq_simd_bits(magnitude) & 0x7FFFFFFFu) >> AQ_SKETCH_SHIFT);
    /* the lowest buckets all belong to cell 0, so that none is below it */
    return bucket < (int32_t)AQ_SKETCH_SIDE ? (int32_t)AQ_SKETCH_SIDE : bucket;
}

AQ_LIB void aq_sketch_raise(uint64_t *cells, int32_t *top, int32_t bucket) {
    if (bucket <= *top) return;
    size_t by = (size_t)(bucket - *top);
    size_t lost = by < AQ_SKETCH_SIDE ? by : AQ_SKETCH_SIDE;
    for (size_t side = 0; side < 2; side++) {
        uint64_t *first = cells + 1 + side * AQ_SKETCH_SIDE;
        for (size_t i = 0; i < lost; i++) cells[0] += first[i];
        memmove(first, first + lost, (AQ_SKETCH_SIDE - lost) * sizeof(*first));
        memset(first + (AQ_SKETCH_SIDE - lost), 0, lost * sizeof(*first));
    }
    *top = bucket;
}

static size_t aq_sketch_place(int32_t top, uint32_t bits) {
    int32_t cell = (int32_t)((bits & 0x7FFFFFFFu) >> AQ_SKETCH_SHIFT) - top + (int32_t)AQ_SKETCH_SIDE;
    if (cell <= 0) return 0;
    return (size_t)cell + (bits >> 31 ? AQ_SKETCH_SIDE : 0);
}

AQ_LIB void aq_sketch_add(uint64_t *cells, int32_t top, const float *values, size_t count) {
    for (size_t i = 0; i < count; i++) cells[aq_sketch_place(top, aq_simd_bits(values[i]))]++;
}

AQ_LIB void aq_sketch_merge(uint64_t *cells, int32_t *top, const uint64_t *other,
                            int32_t other_top) {
    aq_sketch_raise(cells, top, other_top);
    size_t lower = (size_t)(*top - other_top);
    cells[0] += other[0];
    for (size_t side = 0; side < 2; side++) {
        for (size_t i = 1; i <= AQ_SKETCH_SIDE; i++) {
            size_t to = i > lower ? i - lower + side * AQ_SKETCH_SIDE : 0;
            cells[to] += other[side * AQ_SKETCH_SIDE + i];
        }
    }
}

AQ_LIB void aq_sketch_cell(int32_t top, size_t cell, double *low, double *high) {
    size_t place = cell > AQ_SKETCH_SIDE ? cell - AQ_SKETCH_SIDE : cell;
    uint32_t bucket = (uint32_t)top - AQ_SKETCH_SIDE + (uint32_t)place;
    *low = place ? (double)aq_simd_float(bucket << AQ_SKETCH_SHIFT) : 0.0;
    /* the bucket above the largest float is infinity's */
    *high = bucket + 1 < 0x7F800000u >> AQ_SKETCH_SHIFT
                ? (double)aq_simd_float((bucket + 1) << AQ_SKETCH_SHIFT)
                : 340282346638528859811704183484516925440.0;
}

AQ_LIB uint64_t aq_sketch_total(const uint64_t *cells) {
    uint64_t total = 0;
    for (size_t i = 0; i < AQ_SKETCH_CELLS; i++) total += cells[i];
    return total;
}

AQ_SIMD_EXACT AQ_LIB double aq_sketch_percentile(const uint64_t *cells, int32_t top, double percent,
                                                 double min, double max) {
    AQ_SIMD_EXACT_BODY
    uint64_t total = aq_sketch_total(cells), seen = 0;
    if (!total) return min;
    double rank = percent / 100.0 * (double)(total - 1), value = max;
    for (size_t i = 0; i < AQ_SKETCH_CELLS; i++) {
        /* from the most negative to zero to the most positive */
        size_t cell = i < AQ_SKETCH_SIDE ? 2 * AQ_SKETCH_SIDE - i : i - AQ_SKETCH_SIDE;
        double low, high;
        if (rank >= (double)(seen + cells[cell])) {
            seen += cells[cell];
            continue;
        }
        aq_sketch_cell(top, cell, &low, &high);
        if (cell > AQ_SKETCH_SIDE) {
            double swap = low;
            low = -high;
            high = -swap;
        } else if (!cell) {
            low = -high;
        }
        double part = (rank - (double)seen + 0.5) / (double)cells[cell];
        value = low + (high - low) * (part < 1.0 ? part : 1.0);
        break;
    }
    return value < min ? min : value > max ? max : value;
}
