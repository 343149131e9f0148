/* The tables of the trellis code, one for each instruction set. */
#include "trellis.h"

static const struct aq_trellis_kernels aq_trellis_scalar = {
    "scalar", aq_scalar_trellis_search, aq_scalar_trellis_values, aq_scalar_trellis_dots,
};

AQ_SIMD_LIB const struct aq_trellis_kernels *aq_simd_trellis(const struct aq_kernels *kernels) {
    (void)kernels;
    return &aq_trellis_scalar;
}
