/* AVX-512 kernels: F16, BF16 and F8 to and from F32. */
#include "x86.h"

#if defined(AQ_HAVE_AVX512)
AQ_X86_BEGIN

AQ_AVX512_INLINE static inline __m256i aq_avx512_to_f16(__m512 value) {
    return _mm512_maskz_cvtps_ph(0xFFFFu, value, _MM_FROUND_TO_NEAREST_INT);
}

AQ_AVX512_INLINE static inline __m512 aq_avx512_bf16(__m256i halves) {
    __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
    __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF));
    __mmask16 nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7F800000));
    return _mm512_castsi512_ps(
        _mm512_mask_or_epi32(bits, nan, bits, _mm512_set1_epi32(0x400000)));
}

AQ_AVX512_INLINE static inline __m256i aq_avx512_to_bf16(__m512 value) {
    __m512i bits = _mm512_castps_si512(value), even, rounded;
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    rounded = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7FFF)));
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

/* As an F16 of a smaller exponent, so that subnormals need no care; then times 2^8. */
AQ_AVX512_INLINE static inline __m512 aq_avx512_e4m3(__m128i bytes) {
    __m256i wide = _mm256_cvtepu8_epi16(bytes), half;
    __m256i magnitude = _mm256_and_si256(wide, _mm256_set1_epi16(0x7F));
    __m256i sign = _mm256_slli_epi16(_mm256_xor_si256(wide, magnitude), 8);
    half = _mm256_mask_mov_epi16(_mm256_slli_epi16(magnitude, 7),
                                 _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7F)),
                                 _mm256_set1_epi16(0x7E00));
    return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(sign, half)), _mm512_set1_ps(256.0f));
}

AQ_AVX512_INLINE static inline __m512 aq_avx512_e5m2(__m128i bytes) {
    return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 8));
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_f16_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i + 16 <= count; i += 16) {
        __m256i halves = _mm256_loadu_si256((const __m256i *)(const void *)(from + 2 * i));
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(halves));
    }
    if (i < count) {
        __mmask16 lanes = aq_avx512_lanes(count - i);
        _mm512_mask_storeu_ps(out + i, lanes,
                              _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, from + 2 * i)));
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_bf16_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i + 16 <= count; i += 16) {
        __m256i halves = _mm256_loadu_si256((const __m256i *)(const void *)(from + 2 * i));
        _mm512_storeu_ps(out + i, aq_avx512_bf16(halves));
    }
    if (i < count) {
        __mmask16 lanes = aq_avx512_lanes(count - i);
        _mm512_mask_storeu_ps(out + i, lanes,
                              aq_avx512_bf16(_mm256_maskz_loadu_epi16(lanes, from + 2 * i)));
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_f8_e4m3_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i + 16 <= count; i += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(from + i));
        _mm512_storeu_ps(out + i, aq_avx512_e4m3(bytes));
    }
    if (i < count) {
        __mmask16 lanes = aq_avx512_lanes(count - i);
        _mm512_mask_storeu_ps(out + i, lanes,
                              aq_avx512_e4m3(_mm_maskz_loadu_epi8(lanes, from + i)));
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_f8_e5m2_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i + 16 <= count; i += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(from + i));
        _mm512_storeu_ps(out + i, aq_avx512_e5m2(bytes));
    }
    if (i < count) {
        __mmask16 lanes = aq_avx512_lanes(count - i);
        _mm512_mask_storeu_ps(out + i, lanes,
                              aq_avx512_e5m2(_mm_maskz_loadu_epi8(lanes, from + i)));
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_f32_to_f16(const float *in, void *out, size_t count) {
    uint8_t *to = (uint8_t *)out;
    size_t i;
    for (i = 0; i + 16 <= count; i += 16) {
        _mm256_storeu_si256((__m256i *)(void *)(to + 2 * i),
                            aq_avx512_to_f16(_mm512_loadu_ps(in + i)));
    }
    if (i < count) {
        __mmask16 lanes = aq_avx512_lanes(count - i);
        _mm256_mask_storeu_epi16(to + 2 * i, lanes,
                                 aq_avx512_to_f16(_mm512_maskz_loadu_ps(lanes, in + i)));
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_f32_to_bf16(const float *in, void *out, size_t count) {
    uint8_t *to = (uint8_t *)out;
    size_t i;
    for (i = 0; i + 16 <= count; i += 16) {
        _mm256_storeu_si256((__m256i *)(void *)(to + 2 * i),
                            aq_avx512_to_bf16(_mm512_loadu_ps(in + i)));
    }
    if (i < count) {
        __mmask16 lanes = aq_avx512_lanes(count - i);
        _mm256_mask_storeu_epi16(to + 2 * i, lanes,
                                 aq_avx512_to_bf16(_mm512_maskz_loadu_ps(lanes, in + i)));
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_stream(const void *in, void *out, size_t bytes) {
    const uint8_t *from = (const uint8_t *)in;
    uint8_t *to = (uint8_t *)out;
    size_t head = (0u - (uintptr_t)out) % 64, i;
    if (bytes == 0) {
        _mm_sfence();
        return;
    }
    head = head < bytes ? head : bytes;
    memcpy(to, from, head);
    for (i = head; i + 64 <= bytes; i += 64) {
        _mm512_stream_si512((__m512i *)(void *)(to + i), _mm512_loadu_si512(from + i));
    }
    memcpy(to + i, from + i, bytes - i);
}

AQ_X86_END
#endif /* AQ_HAVE_AVX512 */
