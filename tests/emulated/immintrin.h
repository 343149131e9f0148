/* In front of the compiler's own <immintrin.h>: AVX-512 on a machine that has AVX2 alone, by SIMDe. What
 * the kernels of src/simd compute can so be tested at speed where there is no such processor; their
 * instructions are tests/bare.py's business. For gcc, with -mavx2 -mfma -mf16c -ffp-contract=off. */
#ifndef AQ_EMULATED_IMMINTRIN_H
#define AQ_EMULATED_IMMINTRIN_H
#pragma GCC system_header

#include_next <immintrin.h>

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

/* ---- what SIMDe has not, and masked loads and stores: its stores write zeros where nothing is to be
 * written. Lane by lane. */

typedef union aq_lanes {
    uint8_t u8[64];
    uint16_t u16[32];
    uint32_t u32[16];
    float f32[16];
} aq_lanes;

#define AQ_LANES(name, value) aq_lanes name; memcpy(&name, &(value), sizeof(value))
/* Lane i of `out`, which is 0 at first, for each i; then `out` as the result. */
#define AQ_EACH(type, lanes, lane)           \
    aq_lanes out;                            \
    type result;                             \
    memset(&out, 0, sizeof out);             \
    for (int i = 0; i < (lanes); i++) lane;  \
    memcpy(&result, &out, sizeof result);    \
    return result

static inline __m128i aq_cvtepi32_epi8(__m512i a) {
    AQ_LANES(in, a);
    AQ_EACH(__m128i, 16, out.u8[i] = (uint8_t)in.u32[i]);
}

static inline __m128i aq_cvtepi64_epi8(__m512i a) {
    AQ_LANES(in, a);
    AQ_EACH(__m128i, 8, out.u8[i] = in.u8[8 * i]);
}

static inline __m256i aq_cvtepi32_epi16(__m512i a) {
    AQ_LANES(in, a);
    AQ_EACH(__m256i, 16, out.u16[i] = (uint16_t)in.u32[i]);
}

static inline __m512i aq_cvtepu8_epi16(__m256i a) {
    AQ_LANES(in, a);
    AQ_EACH(__m512i, 32, out.u16[i] = in.u8[i]);
}

static inline __m512i aq_cvtepu8_epi32(__m128i a) {
    AQ_LANES(in, a);
    AQ_EACH(__m512i, 16, out.u32[i] = in.u8[i]);
}

/* To nearest even, whatever the mode that is asked for: it is the only one. */
static inline __m256i aq_maskz_cvtps_ph(__mmask16 mask, __m512 a) {
    AQ_LANES(in, a);
    __m128i first = _mm256_cvtps_ph(_mm256_loadu_ps(in.f32), 0);
    __m128i second = _mm256_cvtps_ph(_mm256_loadu_ps(in.f32 + 8), 0);
    AQ_LANES(low, first);
    AQ_LANES(high, second);
    AQ_EACH(__m256i, 16, out.u16[i] = !(mask >> i & 1) ? 0 : i < 8 ? low.u16[i] : high.u16[i - 8]);
}

static inline __m512 aq_permutevar_ps(__m512 a, __m512i b) {
    AQ_LANES(in, a);
    AQ_LANES(which, b);
    AQ_EACH(__m512, 16, out.f32[i] = in.f32[(i & ~3) | (int)(which.u32[i] & 3u)]);
}

static inline __m512 aq_permute_ps(__m512 a, int which) {
    AQ_LANES(in, a);
    AQ_EACH(__m512, 16, out.f32[i] = in.f32[(i & ~3) | (which >> 2 * (i & 3) & 3)]);
}

static inline __mmask16 aq_cmpeq_epi16(__m256i a, __m256i b) {
    AQ_LANES(first, a);
    AQ_LANES(second, b);
    unsigned result = 0;
    for (int i = 0; i < 16; i++) result |= (unsigned)(first.u16[i] == second.u16[i]) << i;
    return (__mmask16)result;
}

/* Lanes that are not wanted are neither read nor written. */
static inline __m512i aq_maskz_loadu_epi8(uint64_t mask, const void *from) {
    AQ_EACH(__m512i, 64, if (mask >> i & 1) out.u8[i] = ((const uint8_t *)from)[i]);
}

static inline __m128i aq_maskz_loadu_epi8_128(uint32_t mask, const void *from) {
    AQ_EACH(__m128i, 16, if (mask >> i & 1) out.u8[i] = ((const uint8_t *)from)[i]);
}

static inline __m256i aq_maskz_loadu_epi16_256(__mmask16 mask, const void *from) {
    AQ_EACH(__m256i, 16, if (mask >> i & 1) memcpy(&out.u16[i], (const char *)from + 2 * i, 2));
}

static inline __m512i aq_maskz_loadu_epi32(__mmask16 mask, const void *from) {
    AQ_EACH(__m512i, 16, if (mask >> i & 1) memcpy(&out.u32[i], (const char *)from + 4 * i, 4));
}

static inline __m512 aq_maskz_loadu_ps(__mmask16 mask, const void *from) {
    AQ_EACH(__m512, 16, if (mask >> i & 1) memcpy(&out.f32[i], (const char *)from + 4 * i, 4));
}

static inline __m512 aq_mask_loadu_ps(__m512 other, __mmask16 mask, const void *from) {
    AQ_LANES(in, other);
    AQ_EACH(__m512, 16, memcpy(&out.f32[i], mask >> i & 1 ? (const char *)from + 4 * i
                                                          : (const char *)&in.f32[i], 4));
}

static inline void aq_mask_cvtepi32_storeu_epi8(void *to, __mmask16 mask, __m512i a) {
    AQ_LANES(in, a);
    for (int i = 0; i < 16; i++) {
        if (mask >> i & 1) ((uint8_t *)to)[i] = (uint8_t)in.u32[i];
    }
}

static inline void aq_mask_storeu_ps(void *to, __mmask16 mask, __m512 a) {
    AQ_LANES(in, a);
    for (int i = 0; i < 16; i++) {
        if (mask >> i & 1) memcpy((char *)to + 4 * i, &in.f32[i], 4);
    }
}

static inline void aq_mask_storeu_epi16_256(void *to, __mmask16 mask, __m256i a) {
    AQ_LANES(in, a);
    for (int i = 0; i < 16; i++) {
        if (mask >> i & 1) memcpy((char *)to + 2 * i, &in.u16[i], 2);
    }
}

#undef AQ_EACH
#undef AQ_LANES
#undef _mm512_mask_loadu_ps
#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#undef _mm256_maskz_loadu_epi16
#undef _mm256_mask_storeu_epi16
#define _mm512_mask_loadu_ps aq_mask_loadu_ps
#define _mm512_maskz_loadu_ps aq_maskz_loadu_ps
#define _mm512_mask_storeu_ps aq_mask_storeu_ps
#define _mm256_maskz_loadu_epi16 aq_maskz_loadu_epi16_256
#define _mm256_mask_storeu_epi16 aq_mask_storeu_epi16_256
#undef _mm512_permute_ps
#define _mm512_cvtepi32_epi8 aq_cvtepi32_epi8
#define _mm512_cvtepi64_epi8 aq_cvtepi64_epi8
#define _mm512_cvtepi32_epi16 aq_cvtepi32_epi16
#define _mm512_cvtepu8_epi16 aq_cvtepu8_epi16
#define _mm512_cvtepu8_epi32 aq_cvtepu8_epi32
#define _mm512_maskz_cvtps_ph(lanes, a, mode) aq_maskz_cvtps_ph(lanes, a)
#define _mm512_permutevar_ps aq_permutevar_ps
#define _mm512_permute_ps aq_permute_ps
#define _mm256_cmpeq_epi16_mask aq_cmpeq_epi16
#define _mm512_maskz_loadu_epi8 aq_maskz_loadu_epi8
#define _mm_maskz_loadu_epi8 aq_maskz_loadu_epi8_128
#define _mm512_maskz_loadu_epi32 aq_maskz_loadu_epi32
#define _mm512_mask_cvtepi32_storeu_epi8 aq_mask_cvtepi32_storeu_epi8
#define _mm512_stream_ps(to, a) _mm512_storeu_ps(to, a)
#define _mm512_stream_si512(to, a) _mm512_storeu_si512(to, a)

/* No function may be compiled for the processor that is not there, and all alike, to be inlined. */
#define target(features)
#define optimize(switches)

#endif /* AQ_EMULATED_IMMINTRIN_H */
