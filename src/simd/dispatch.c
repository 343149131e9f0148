/* The table of each ISA, and the choice of one. */
#include "simd.h"

static const struct aq_kernels aq_scalar_kernels = {
    "scalar",
    aq_scalar_f16_to_f32,
    aq_scalar_bf16_to_f32,
    aq_scalar_f8_e4m3_to_f32,
    aq_scalar_f8_e5m2_to_f32,
    aq_scalar_f32_to_f16,
    aq_scalar_f32_to_bf16,
    aq_scalar_range,
    aq_scalar_fit_affine,
    aq_scalar_fit_symmetric,
    aq_scalar_encode,
    aq_scalar_decode,
    aq_scalar_compare,
};

AQ_SIMD_LIB const struct aq_kernels *aq_simd_kernels(const char *name) {
    if (!name || strcmp(name, aq_scalar_kernels.name) == 0) {
        return &aq_scalar_kernels;
    }
    return NULL;
}
