/* The tables of the forward pass, one for each instruction set. */
#include "forward.h"

static const struct aq_linear_kernels aq_linear_scalar = {
    "scalar", aq_scalar_product, aq_scalar_to_int8, aq_scalar_transpose, aq_scalar_combine,
    NULL, NULL, NULL, NULL,
};

#if defined(AQ_HAVE_AVX2)
static const struct aq_linear_kernels aq_linear_avx2 = {
    "avx2", aq_avx2_product, aq_avx2_to_int8, aq_avx2_transpose, aq_avx2_combine,
    aq_avx2_arrange, aq_avx2_dots, aq_avx2_tiles, aq_avx2_interleaved,
};
#endif
#if defined(AQ_HAVE_AVX512)
static const struct aq_linear_kernels aq_linear_avx512 = {
    "avx512", aq_avx512_product, aq_avx512_to_int8, aq_avx512_transpose, aq_avx512_combine,
    aq_avx2_arrange, aq_avx2_dots, aq_avx2_tiles, aq_avx2_interleaved,
};
#endif
#if defined(AQ_HAVE_VNNI)
static const struct aq_linear_kernels aq_linear_vnni = {
    "avx512", aq_avx512_product, aq_avx512_to_int8, aq_avx512_transpose, aq_avx512_combine,
    aq_vnni_arrange, aq_vnni_dots, aq_vnni_tiles, aq_vnni_interleaved,
};
#endif
#if defined(AQ_HAVE_NEON)
static const struct aq_linear_kernels aq_linear_neon = {
    "neon", aq_neon_product, aq_neon_to_int8, aq_neon_transpose, aq_neon_combine,
    NULL, NULL, NULL, NULL,
};
#endif

static const struct aq_linear_kernels *const aq_linear_tables[] = {
#if defined(AQ_HAVE_AVX2)
    &aq_linear_avx2,
#endif
#if defined(AQ_HAVE_AVX512)
    &aq_linear_avx512,
#endif
#if defined(AQ_HAVE_NEON)
    &aq_linear_neon,
#endif
    &aq_linear_scalar,
};

AQ_SIMD_LIB const struct aq_linear_kernels *aq_simd_linear(const struct aq_kernels *kernels) {
    const size_t count = sizeof aq_linear_tables / sizeof *aq_linear_tables;
    size_t i;
#if defined(AQ_HAVE_VNNI)
    if (strcmp(kernels->dots, "vnni") == 0) {
        return &aq_linear_vnni;
    }
#endif
    for (i = 0; i + 1 < count; i++) {
        if (strcmp(kernels->name, aq_linear_tables[i]->name) == 0) {
            return aq_linear_tables[i];
        }
    }
    return &aq_linear_scalar;
}
