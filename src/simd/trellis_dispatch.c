/* The tables of the trellis code, one for each instruction set. */
#include "trellis.h"
#include "x86.h"

static const struct aq_trellis_kernels aq_trellis_scalar = {
    "scalar", aq_scalar_trellis_search, aq_scalar_trellis_values, aq_scalar_trellis_dots,
    aq_scalar_trellis_spread,
};

#if defined(AQ_HAVE_AVX2)
static const struct aq_trellis_kernels aq_trellis_avx2 = {
    "avx2", aq_avx2_trellis_search, aq_avx2_trellis_values, aq_avx2_trellis_dots,
    aq_avx2_trellis_spread,
};
#endif

#if defined(AQ_HAVE_NEON)
static const struct aq_trellis_kernels aq_trellis_neon = {
    "neon", aq_neon_trellis_search, aq_neon_trellis_values, aq_neon_trellis_dots,
    aq_neon_trellis_spread,
};
#endif

AQ_SIMD_LIB const struct aq_trellis_kernels *aq_simd_trellis(const struct aq_kernels *kernels) {
#if defined(AQ_HAVE_AVX2)
    if (strcmp(kernels->name, "avx2") == 0 || strcmp(kernels->name, "avx512") == 0) {
        return &aq_trellis_avx2;
    }
#endif
#if defined(AQ_HAVE_NEON)
    if (strcmp(kernels->name, "neon") == 0) {
        return &aq_trellis_neon;
    }
#endif
    (void)kernels;
    return &aq_trellis_scalar;
}
