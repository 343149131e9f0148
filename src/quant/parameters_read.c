/* The parameters of all groups as numbers, for those who show or exchange them. */
#include "quant.h"
#include "tile.h"

ARROWQUANT_API aq_status aq_quant_parameters(aq_context *context, const aq_quant_spec *spec,
                                             const void *params, const void *extra, uint64_t rows,
                                             uint64_t cols, float *scales, float *mins,
                                             float *zero_points, aq_error *err) {
    const struct aq_kernels *kernels = aq_kernels_of(context);
    aq_quant_layout layout;
    aq_status status = aq_quantized_size(spec, rows, cols, &layout, err);
    if (status != AQ_OK) return status;
    if (layout.rows && layout.groups && aq_code_is_block(spec->code))
        return aq_fail(err, AQ_ERR_UNSUPPORTED,
                       "%s keeps the parameters of a block among its codes; dequantize it, or read them there",
                       aq_code_name(spec->code));
    if (layout.rows && layout.groups && (!params || (spec->params == AQ_PARAM_Q8 && !extra)))
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_quant_parameters: NULL");
    if (spec->code == AQ_CODE_RESIDUAL)
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "the residual code has neither scale nor minimum");
    const uint8_t *from = (const uint8_t *)params, *row_extra = (const uint8_t *)extra;
    size_t groups = (size_t)layout.groups, at = 0;
    size_t bytes = groups ? (size_t)layout.row_param_bytes / groups : 0;
    bool trellis = spec->code == AQ_CODE_TRELLIS;
    float middle = trellis ? 0.0f : (float)(1u << (spec->bits - 1));
    bool symmetric = trellis || spec->code == AQ_CODE_SYMMETRIC;
    bool stored = spec->code == AQ_CODE_ZERO_POINT; /* behind the scale */
    for (uint64_t row = 0; row < rows; row++) {
        for (size_t g = 0; g < groups; g += AQ_TILE_GROUPS) {
            aq_simd_grid grids[AQ_TILE_GROUPS];
            size_t count = groups - g < AQ_TILE_GROUPS ? groups - g : AQ_TILE_GROUPS;
            aq_grids_read(kernels, spec, from, row_extra, count, grids);
            for (size_t i = 0; i < count; i++, at++) {
                float min = symmetric ? -middle * grids[i].scale : grids[i].min;
                if (scales) scales[at] = grids[i].scale;
                if (mins) mins[at] = min;
                if (zero_points)
                    zero_points[at] = symmetric ? middle
                                      : stored  ? (float)from[(i + 1) * bytes - 1]
                                                : -min / grids[i].scale;
            }
            from += count * bytes;
        }
        if (row_extra) row_extra += layout.row_extra_bytes;
    }
    return AQ_OK;
}
