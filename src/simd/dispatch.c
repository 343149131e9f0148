/* The table of each ISA, and the choice of one. */
#include "neon.h"
#include "simd.h"
#include "x86.h"

#if defined(AQ_HAVE_AVX2) && defined(_MSC_VER)
#  include <intrin.h>
#endif
#if defined(AQ_HAVE_DOTPROD) && !defined(__ARM_FEATURE_DOTPROD)
#  include <sys/auxv.h>
#endif

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
    aq_scalar_range_bf16,
    aq_scalar_encode_bf16,
    aq_scalar_compare,
    NULL,
    NULL,
    aq_scalar_update,
    aq_scalar_hadamard,
    aq_scalar_strips_load,
    aq_scalar_strips_sums,
    aq_scalar_strips_codes,
    "scalar",
    aq_scalar_dot,
    aq_scalar_dot_codes,
    aq_scalar_unpack,
};

#if defined(AQ_HAVE_AVX2)
static const struct aq_kernels aq_avx2_kernels = {
    "avx2",
    aq_avx2_f16_to_f32,
    aq_avx2_bf16_to_f32,
    aq_avx2_f8_e4m3_to_f32,
    aq_avx2_f8_e5m2_to_f32,
    aq_avx2_f32_to_f16,
    aq_avx2_f32_to_bf16,
    aq_avx2_range,
    aq_avx2_fit_affine,
    aq_avx2_fit_symmetric,
    aq_avx2_encode,
    aq_avx2_decode,
    aq_avx2_range_bf16,
    aq_avx2_encode_bf16,
    aq_avx2_compare,
    aq_avx2_stream,
    aq_avx2_decode_past,
    aq_avx2_update,
    aq_avx2_hadamard,
    aq_avx2_strips_load,
    aq_avx2_strips_sums,
    aq_avx2_strips_codes,
    "avx2",
    aq_avx2_dot,
    aq_avx2_dot_codes,
    aq_avx2_unpack,
};
#endif

/* Tables of one ISA that differ in their dots alone: `dots` says what these use. */
#if defined(AQ_HAVE_AVX512)
#  define AQ_AVX512_TABLE(dots, dot, dot_codes, unpack)                                            \
      {                                                                                            \
          "avx512", aq_avx512_f16_to_f32, aq_avx512_bf16_to_f32, aq_avx512_f8_e4m3_to_f32,         \
              aq_avx512_f8_e5m2_to_f32, aq_avx512_f32_to_f16, aq_avx512_f32_to_bf16,               \
              aq_avx512_range, aq_avx512_fit_affine, aq_avx512_fit_symmetric, aq_avx512_encode,    \
              aq_avx512_decode, aq_avx2_range_bf16, aq_avx2_encode_bf16, aq_avx512_compare,        \
              aq_avx512_stream, aq_avx512_decode_past, aq_avx512_update, aq_avx2_hadamard,         \
              aq_avx512_strips_load, aq_avx512_strips_sums, aq_avx512_strips_codes, dots, dot,     \
              dot_codes, unpack                                                                    \
      }
static const struct aq_kernels aq_avx512_kernels = AQ_AVX512_TABLE("avx2", aq_avx2_dot,
                                                                   aq_avx2_dot_codes,
                                                                   aq_avx2_unpack);
#  if defined(AQ_HAVE_VNNI)
static const struct aq_kernels aq_vnni_kernels = AQ_AVX512_TABLE("vnni", aq_vnni_dot,
                                                                 aq_vnni_dot_codes,
                                                                 aq_vnni_unpack);
#  endif
#  undef AQ_AVX512_TABLE
#endif

#if defined(AQ_HAVE_NEON)
#  define AQ_NEON_TABLE(dots, dot, dot_codes)                                                      \
      {                                                                                            \
          "neon", aq_neon_f16_to_f32, aq_neon_bf16_to_f32, aq_neon_f8_e4m3_to_f32,                 \
              aq_neon_f8_e5m2_to_f32, aq_neon_f32_to_f16, aq_neon_f32_to_bf16, aq_neon_range,      \
              aq_neon_fit_affine, aq_neon_fit_symmetric, aq_neon_encode, aq_neon_decode,           \
              aq_neon_range_bf16, aq_neon_encode_bf16,                                             \
              aq_neon_compare, NULL, NULL, aq_neon_update, aq_neon_hadamard, aq_neon_strips_load,  \
              aq_neon_strips_sums, aq_neon_strips_codes, dots, dot, dot_codes, aq_neon_unpack      \
      }
static const struct aq_kernels aq_neon_kernels = AQ_NEON_TABLE("neon", aq_neon_dot,
                                                               aq_neon_dot_codes);
#  if defined(AQ_HAVE_DOTPROD)
static const struct aq_kernels aq_dotprod_kernels = AQ_NEON_TABLE("dotprod", aq_dotprod_dot,
                                                                  aq_dotprod_dot_codes);
#  endif
#  undef AQ_NEON_TABLE
#endif

/* What a table needs of the machine. */
#define AQ_CPU_AVX2 1u
#define AQ_CPU_AVX512 2u
#define AQ_CPU_VNNI 4u
#define AQ_CPU_DOTPROD 8u

typedef struct aq_simd_choice {
    const struct aq_kernels *kernels;
    uint32_t needs; /* AQ_CPU_… */
} aq_simd_choice;

#if defined(AQ_HAVE_AVX2)

/* Registers eax, ebx, ecx, edx of one CPUID leaf. */
static void aq_cpu_id(uint32_t leaf, uint32_t *reg) {
#  if defined(_MSC_VER)
    int word[4];
    size_t i;
    __cpuidex(word, (int)leaf, 0);
    for (i = 0; i < 4; i++) {
        reg[i] = (uint32_t)word[i];
    }
#  else
    __asm__ __volatile__("cpuid"
                         : "=a"(reg[0]), "=b"(reg[1]), "=c"(reg[2]), "=d"(reg[3])
                         : "a"(leaf), "c"(0));
#  endif
}

/* XCR0: the registers that the system saves. */
static uint32_t aq_cpu_saved(void) {
#  if defined(_MSC_VER)
    return (uint32_t)_xgetbv(0);
#  else
    uint32_t low, high;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#  endif
}

static uint32_t aq_cpu_features(void) {
    const uint32_t first = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29; /* FMA, OSXSAVE, AVX, F16C */
    const uint32_t wide = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* AVX-512 F, DQ, BW, VL */
    uint32_t reg[4], saved, features = 0;
    aq_cpu_id(0, reg);
    if (reg[0] < 7) {
        return 0;
    }
    aq_cpu_id(1, reg);
    if ((reg[2] & first) != first) {
        return 0;
    }
    saved = aq_cpu_saved();
    aq_cpu_id(7, reg);
    if ((saved & 0x06u) == 0x06u && (reg[1] & 1u << 5)) {
        features |= AQ_CPU_AVX2;
    }
    if ((saved & 0xE6u) == 0xE6u && (reg[1] & wide) == wide && features) {
        features |= AQ_CPU_AVX512;
        features |= reg[2] & 1u << 11 ? AQ_CPU_VNNI : 0u;
    }
#  if defined(AQ_EMULATED_FEATURES) /* of tests/emulated */
    features |= features ? AQ_EMULATED_FEATURES : 0u;
#  endif
    return features;
}

#elif defined(AQ_HAVE_DOTPROD)

static uint32_t aq_cpu_features(void) {
#  if defined(__ARM_FEATURE_DOTPROD)
    return AQ_CPU_DOTPROD;
#  else
    return getauxval(AT_HWCAP) & 1ul << 20 ? AQ_CPU_DOTPROD : 0u; /* HWCAP_ASIMDDP */
#  endif
}

#else

static uint32_t aq_cpu_features(void) {
    return 0;
}

#endif

/* The best first. */
static const aq_simd_choice aq_simd_choices[] = {
#if defined(AQ_HAVE_VNNI)
    {&aq_vnni_kernels, AQ_CPU_AVX512 | AQ_CPU_VNNI},
#endif
#if defined(AQ_HAVE_AVX512)
    {&aq_avx512_kernels, AQ_CPU_AVX512},
#endif
#if defined(AQ_HAVE_AVX2)
    {&aq_avx2_kernels, AQ_CPU_AVX2},
#endif
#if defined(AQ_HAVE_DOTPROD)
    {&aq_dotprod_kernels, AQ_CPU_DOTPROD},
#endif
#if defined(AQ_HAVE_NEON)
    {&aq_neon_kernels, 0},
#endif
    {&aq_scalar_kernels, 0},
};

AQ_SIMD_LIB const struct aq_kernels *aq_simd_kernels(const char *name) {
    const size_t count = sizeof aq_simd_choices / sizeof aq_simd_choices[0];
    uint32_t features = name && strcmp(name, "scalar") == 0 ? 0u : aq_cpu_features();
    size_t i;
    for (i = 0; i < count; i++) {
        const aq_simd_choice *choice = &aq_simd_choices[i];
        if ((choice->needs & ~features) == 0 &&
            (!name || strcmp(name, choice->kernels->name) == 0)) {
            return choice->kernels;
        }
    }
    return NULL;
}

#undef AQ_CPU_AVX2
#undef AQ_CPU_AVX512
#undef AQ_CPU_VNNI
#undef AQ_CPU_DOTPROD
