/* Trellis codes in, weights out: parts of strips. */
#include "trellis.h"

#ifdef ARROWQUANT_NO_THREADS /* a small stack */
#  define AQ_TRELLIS_RUN 32u
#  define AQ_TRELLIS_LINES 2u
#else
#  define AQ_TRELLIS_RUN 256u
#  define AQ_TRELLIS_LINES 16u
#endif
#define AQ_TRELLIS_COLUMNS 16u

AQ_LIB float aq_trellis_stored(const aq_quant_spec *spec, const uint8_t *row_params, size_t group) {
    const uint8_t *from = row_params + group * (spec->params == AQ_PARAM_F32 ? 4u : 2u);
    uint32_t low = (uint32_t)from[0] | (uint32_t)from[1] << 8;
    return spec->params == AQ_PARAM_F32
               ? aq_simd_float(low | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24)
               : aq_simd_from_f16((uint16_t)low);
}

/* Columns of one group, at most AQ_TRELLIS_RUN rows. */
static void aq_trellis_decode_run(const struct aq_kernels *kernels, const aq_quant_spec *spec,
                                  const aq_trellis_part *part, size_t row_param_bytes, float *out,
                                  size_t stride) {
    const aq_trellis_code *code = aq_trellis_code_of(spec->bits, spec->states);
    const struct aq_trellis_kernels *own = aq_simd_trellis(kernels);
    const size_t ring = part->height * code->bits;
    int8_t values[AQ_TRELLIS_COLUMNS * AQ_TRELLIS_COLUMN];
    float scales[AQ_TRELLIS_RUN];
    size_t begin, i, count;
    for (i = 0; i < part->rows; i++) {
        scales[i] = aq_trellis_stored(spec, part->params + (part->first + i) * row_param_bytes,
                                      part->begin / spec->group_size);
    }
    for (begin = 0; begin < part->count; begin += count) {
        count = part->count - begin;
        count = count < AQ_TRELLIS_COLUMNS ? count : AQ_TRELLIS_COLUMNS;
        for (i = 0; i < count; i++) {
            own->values(code, part->codes, (part->begin + begin + i) * ring, part->height,
                        part->first, part->rows, values + i * AQ_TRELLIS_COLUMN);
        }
        own->spread(values, part->rows, count, scales, out + begin, stride);
    }
}

AQ_LIB void aq_trellis_decode(const struct aq_kernels *kernels, const aq_quant_spec *spec,
                              const aq_trellis_part *part, float *out, size_t stride) {
    size_t groups = (part->cols + spec->group_size - 1) / spec->group_size;
    size_t row_param_bytes = groups * (spec->params == AQ_PARAM_F32 ? 4u : 2u);
    aq_trellis_part run = *part;
    size_t row, i;
    for (row = 0; row < part->rows; row += run.rows) {
        run.first = part->first + row;
        run.rows = part->rows - row < AQ_TRELLIS_RUN ? part->rows - row : AQ_TRELLIS_RUN;
        for (i = 0; i < part->count; i += run.count) {
            size_t left = part->count - i;
            run.begin = part->begin + i;
            run.count = spec->group_size - run.begin % spec->group_size;
            run.count = run.count < left ? run.count : left;
            aq_trellis_decode_run(kernels, spec, &run, row_param_bytes, out + row * stride + i,
                                  stride);
        }
    }
}

/* Some rows of a strip, stretch by stretch of 256 columns; the sums are added row by row. */
static void aq_trellis_measure_rows(const struct aq_kernels *kernels, const aq_quant_spec *spec,
                                    const uint8_t *weights, aq_dtype dtype, aq_trellis_part *part,
                                    aq_quality *quality) {
    float decoded[AQ_TRELLIS_LINES * AQ_SIMD_GROUP_MAX], line[AQ_SIMD_GROUP_MAX];
    aq_quality sums[AQ_TRELLIS_LINES];
    size_t row, size = aq_dtype_size(dtype);
    memset(sums, 0, sizeof sums);
    for (part->begin = 0; part->begin < part->cols; part->begin += part->count) {
        size_t left = part->cols - part->begin;
        part->count = left < AQ_SIMD_GROUP_MAX ? left : AQ_SIMD_GROUP_MAX;
        aq_trellis_decode(kernels, spec, part, decoded, AQ_SIMD_GROUP_MAX);
        for (row = 0; row < part->rows; row++) {
            size_t at = (part->first + row) * part->cols + part->begin;
            aq_widen(kernels, dtype, weights + at * size, line, part->count);
            aq_compare_run(kernels, line, decoded + row * AQ_SIMD_GROUP_MAX, part->count,
                           &sums[row]);
        }
    }
    for (row = 0; row < part->rows; row++) {
        aq_quality_add(quality, &sums[row]);
    }
}

AQ_LIB void aq_trellis_measure(const struct aq_kernels *kernels, const aq_quant_spec *spec,
                               const void *weights, aq_dtype dtype, uint64_t rows, uint64_t cols,
                               const void *codes, const void *params, aq_quality *quality) {
    const uint8_t *from = (const uint8_t *)weights;
    aq_quant_layout layout;
    aq_trellis_part part;
    if (aq_quantized_size(spec, rows, cols, &layout, NULL) != AQ_OK || !cols) {
        return;
    }
    memset(&part, 0, sizeof part);
    part.cols = (size_t)cols;
    part.codes = (const uint8_t *)codes;
    part.params = (const uint8_t *)params;
    for (; rows; rows -= part.height) {
        part.height = rows < AQ_TRELLIS_ROWS ? (size_t)rows : AQ_TRELLIS_ROWS;
        for (part.first = 0; part.first < part.height; part.first += part.rows) {
            size_t left = part.height - part.first;
            part.rows = left < AQ_TRELLIS_LINES ? left : AQ_TRELLIS_LINES;
            aq_trellis_measure_rows(kernels, spec, from, dtype, &part, quality);
        }
        from += part.height * part.cols * aq_dtype_size(dtype);
        part.codes += part.height * (size_t)layout.row_code_bytes;
        part.params += part.height * (size_t)layout.row_param_bytes;
    }
}

#undef AQ_TRELLIS_RUN
#undef AQ_TRELLIS_LINES
#undef AQ_TRELLIS_COLUMNS
