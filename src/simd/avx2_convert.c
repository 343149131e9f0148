/* AVX2 kernels: F16, BF16 and F8 to and from F32. What does not fill a vector is left to the scalar
 * kernels. Bits are chosen with and, andnot, or: GCC (12 and others) folds _mm_blendv_epi8 to a
 * comparison of chars with 0, which is never true under -funsigned-char. */
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

AQ_AVX2_INLINE static inline __m256 aq_avx2_bf16(__m128i halves) {
    __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
    __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF));
    __m256i nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7F800000));
    nan = _mm256_and_si256(nan, _mm256_set1_epi32(0x400000));
    return _mm256_castsi256_ps(_mm256_or_si256(bits, nan));
}

AQ_AVX2_INLINE static inline __m128i aq_avx2_to_bf16(__m256 value) {
    __m256i bits = _mm256_castps_si256(value), even, rounded, quiet;
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    rounded = _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7FFF)));
    quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    rounded = _mm256_or_si256(_mm256_and_si256(nan, quiet), _mm256_andnot_si256(nan, rounded));
    rounded = _mm256_srli_epi32(rounded, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded),
                            _mm256_extracti128_si256(rounded, 1));
}

/* As an F16 of a smaller exponent, so that subnormals need no care; then times 2^8. */
AQ_AVX2_INLINE static inline __m256 aq_avx2_e4m3(__m128i bytes) {
    __m128i wide = _mm_cvtepu8_epi16(bytes), nan, half;
    __m128i magnitude = _mm_and_si128(wide, _mm_set1_epi16(0x7F));
    __m128i sign = _mm_slli_epi16(_mm_xor_si128(wide, magnitude), 8);
    nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7F));
    half = _mm_or_si128(_mm_and_si128(nan, _mm_set1_epi16(0x7E00)),
                        _mm_andnot_si128(nan, _mm_slli_epi16(magnitude, 7)));
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(sign, half)), _mm256_set1_ps(256.0f));
}

AQ_AVX2_INLINE static inline __m256 aq_avx2_e5m2(__m128i bytes) {
    return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(bytes), 8));
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_f16_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)(from + 2 * i));
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
    }
    aq_scalar_f16_to_f32(from + 2 * i, out + i, count - i);
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_bf16_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)(from + 2 * i));
        _mm256_storeu_ps(out + i, aq_avx2_bf16(halves));
    }
    aq_scalar_bf16_to_f32(from + 2 * i, out + i, count - i);
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_f8_e4m3_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)(from + i));
        _mm256_storeu_ps(out + i, aq_avx2_e4m3(bytes));
    }
    aq_scalar_f8_e4m3_to_f32(from + i, out + i, count - i);
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_f8_e5m2_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)(from + i));
        _mm256_storeu_ps(out + i, aq_avx2_e5m2(bytes));
    }
    aq_scalar_f8_e5m2_to_f32(from + i, out + i, count - i);
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_f32_to_f16(const float *in, void *out, size_t count) {
    uint8_t *to = (uint8_t *)out;
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        _mm_storeu_si128((__m128i *)(void *)(to + 2 * i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
    }
    aq_scalar_f32_to_f16(in + i, to + 2 * i, count - i);
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_f32_to_bf16(const float *in, void *out, size_t count) {
    uint8_t *to = (uint8_t *)out;
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        _mm_storeu_si128((__m128i *)(void *)(to + 2 * i),
                         aq_avx2_to_bf16(_mm256_loadu_ps(in + i)));
    }
    aq_scalar_f32_to_bf16(in + i, to + 2 * i, count - i);
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_stream(const void *in, void *out, size_t bytes) {
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
        __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)(from + i));
        __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(from + i + 32));
        _mm256_stream_si256((__m256i *)(void *)(to + i), low);
        _mm256_stream_si256((__m256i *)(void *)(to + i + 32), high);
    }
    memcpy(to + i, from + i, bytes - i);
}

#endif /* AQ_HAVE_AVX2 */
