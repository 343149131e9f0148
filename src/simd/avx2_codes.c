/* AVX2 kernels: codes from weights and weights from codes, with packing, 32 at a time. The rest of a
 * row is left to the scalar kernels. */
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

typedef struct aq_avx2_coder {
    __m256 min, inverse, low, high;
    __m256i zero; /* 16 bits each */
} aq_avx2_coder;

/* Codes of 8 values as 32-bit integers, still counted from zero. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_encode8(const aq_avx2_coder *coder, const float *x) {
    AQ_SIMD_EXACT_BODY
    __m256 value = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x), coder->min), coder->inverse);
    value = _mm256_min_ps(coder->high, _mm256_max_ps(coder->low, value));
    return _mm256_cvtps_epi32(value);
}

/* Codes of 32 values as bytes, in order. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_encode32(const aq_avx2_coder *coder, const float *x) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i a = _mm256_packs_epi32(aq_avx2_encode8(coder, x), aq_avx2_encode8(coder, x + 8));
    __m256i b = _mm256_packs_epi32(aq_avx2_encode8(coder, x + 16), aq_avx2_encode8(coder, x + 24));
    __m256i codes = _mm256_packus_epi16(_mm256_add_epi16(a, coder->zero),
                                        _mm256_add_epi16(b, coder->zero));
    return _mm256_permutevar8x32_epi32(codes, order);
}

/* The low halves of 16 or 8 integers, as their least bytes. */
AQ_AVX2_INLINE static inline __m128i aq_avx2_bytes16(__m256i value) {
    return _mm_packus_epi16(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
}

/* Writes bits · 4 bytes. */
AQ_AVX2_INLINE static inline void aq_avx2_pack32(__m256i codes, uint32_t bits, uint8_t *out) {
    if (bits == 8) {
        _mm256_storeu_si256((__m256i *)(void *)out, codes);
    } else if (bits == 4) {
        codes = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x1001)); /* 1, 16 */
        _mm_storeu_si128((__m128i *)(void *)out, aq_avx2_bytes16(codes));
    } else {
        __m128i half;
        codes = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x0401)); /* 1, 4 */
        codes = _mm256_madd_epi16(codes, _mm256_set1_epi32(0x100001));  /* 1, 16 */
        half = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
        _mm_storel_epi64((__m128i *)(void *)out, _mm_packus_epi16(half, half));
    }
}

AQ_AVX2_INLINE static inline void aq_avx2_encode_bits(const float *x, size_t count, size_t group,
                                                      uint32_t bits, bool symmetric,
                                                      const aq_simd_grid *grids, uint8_t *out) {
    const uint32_t levels = 1u << bits, zero = symmetric ? levels / 2 : 0u;
    aq_avx2_coder coder;
    size_t begin, length, i;
    coder.low = _mm256_set1_ps(0.0f - (float)zero);
    coder.high = _mm256_set1_ps((float)(levels - 1u - zero));
    coder.zero = _mm256_set1_epi16((short)zero);
    for (begin = 0; begin < count; begin += length, grids++, out += (length * bits + 7) / 8) {
        coder.min = _mm256_set1_ps(symmetric ? 0.0f : grids->min);
        coder.inverse = _mm256_set1_ps(1.0f / grids->scale);
        length = count - begin < group ? count - begin : group;
        for (i = 0; i + 32 <= length; i += 32) {
            aq_avx2_pack32(aq_avx2_encode32(&coder, x + begin + i), bits, out + i / 8 * bits);
        }
        if (i < length) {
            aq_scalar_encode(x + begin + i, length - i, group, bits, symmetric, grids,
                             out + i / 8 * bits);
        }
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_encode(const float *x, size_t count, size_t group, uint32_t bits,
                                        bool symmetric, const aq_simd_grid *grids, void *codes) {
    uint8_t *out = (uint8_t *)codes;
    switch (bits) {
    case 2: aq_avx2_encode_bits(x, count, group, 2, symmetric, grids, out); break;
    case 4: aq_avx2_encode_bits(x, count, group, 4, symmetric, grids, out); break;
    default: aq_avx2_encode_bits(x, count, group, 8, symmetric, grids, out); break;
    }
}

/* What 8 codes decode to. */
AQ_AVX2_INLINE static inline __m256 aq_avx2_decode8(__m256i codes, const aq_simd_grid *grid,
                                                    uint32_t bits, bool symmetric) {
    AQ_SIMD_EXACT_BODY
    const __m256i zero = _mm256_set1_epi32(symmetric ? 1 << (bits - 1) : 0);
    __m256 value = _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, zero));
    value = _mm256_mul_ps(_mm256_set1_ps(grid->scale), value);
    return symmetric ? value : _mm256_add_ps(value, _mm256_set1_ps(grid->min));
}

AQ_AVX2_INLINE static inline __m256i aq_avx2_word(const uint8_t *in) {
    int word;
    memcpy(&word, in, sizeof word);
    return _mm256_set1_epi32(word);
}

/* Where `past` is not 0: past the caches, to an address aligned to so many bytes. */
AQ_AVX2_INLINE static inline void aq_avx2_put(float *out, __m256 value, uint32_t past) {
    if (past == 0) {
        _mm256_storeu_ps(out, value);
    } else if (past == 64) {
        _mm256_stream_ps(out, value);
    } else {
        _mm_stream_ps(out, _mm256_castps256_ps128(value));
        _mm_stream_ps(out + 4, _mm256_extractf128_ps(value, 1));
    }
}

/* 32 weights from bits · 4 bytes. The four that a code of 2 bits can mean are looked up in `table`. */
AQ_AVX2_INLINE static inline void aq_avx2_decode32(const uint8_t *in, __m256 table,
                                                   const aq_simd_grid *grid, uint32_t bits,
                                                   bool symmetric, uint32_t past, float *out) {
    const __m256i shift2 = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    const __m256i shift4 = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    size_t i;
    for (i = 0; i < 4; i++) {
        __m256 value;
        if (bits == 8) {
            __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)(in + 8 * i));
            value = aq_avx2_decode8(_mm256_cvtepu8_epi32(bytes), grid, bits, symmetric);
        } else if (bits == 4) {
            __m256i codes = _mm256_srlv_epi32(aq_avx2_word(in + 4 * i), shift4);
            value = aq_avx2_decode8(_mm256_and_si256(codes, _mm256_set1_epi32(15)), grid, bits,
                                    symmetric);
        } else {
            __m256i word = aq_avx2_word(in + 4 * (i / 2));
            word = i % 2 ? _mm256_srli_epi32(word, 16) : word;
            value = _mm256_permutevar_ps(table, _mm256_srlv_epi32(word, shift2));
        }
        aq_avx2_put(out + 8 * i, value, past);
    }
}

AQ_AVX2_INLINE static inline void aq_avx2_decode_bits(const uint8_t *in, size_t count,
                                                      size_t group, uint32_t bits, bool symmetric,
                                                      const aq_simd_grid *grids, uint32_t past,
                                                      float *out) {
    const __m256i codes = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
    size_t begin, length, i;
    for (begin = 0; begin < count; begin += length, grids++, in += (length * bits + 7) / 8) {
        const __m256 table = aq_avx2_decode8(codes, grids, bits, symmetric);
        length = count - begin < group ? count - begin : group;
        for (i = 0; i + 32 <= length; i += 32) {
            aq_avx2_decode32(in + i / 8 * bits, table, grids, bits, symmetric, past,
                             out + begin + i);
        }
        if (i < length) {
            aq_scalar_decode(in + i / 8 * bits, length - i, group, bits, symmetric, grids,
                             out + begin + i);
        }
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_decode(const void *codes, size_t count, size_t group,
                                        uint32_t bits, bool symmetric, const aq_simd_grid *grids,
                                        float *out) {
    const uint8_t *in = (const uint8_t *)codes;
    switch (bits) {
    case 2: aq_avx2_decode_bits(in, count, group, 2, symmetric, grids, 0, out); break;
    case 4: aq_avx2_decode_bits(in, count, group, 4, symmetric, grids, 0, out); break;
    default: aq_avx2_decode_bits(in, count, group, 8, symmetric, grids, 0, out); break;
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_decode_past(const void *codes, size_t count, size_t group,
                                             uint32_t bits, bool symmetric,
                                             const aq_simd_grid *grids, float *out) {
    const uint8_t *in = (const uint8_t *)codes;
    if ((uintptr_t)out % 64 == 0) {
        switch (bits) {
        case 2: aq_avx2_decode_bits(in, count, group, 2, symmetric, grids, 64, out); break;
        case 4: aq_avx2_decode_bits(in, count, group, 4, symmetric, grids, 64, out); break;
        default: aq_avx2_decode_bits(in, count, group, 8, symmetric, grids, 64, out); break;
        }
    } else {
        switch (bits) {
        case 2: aq_avx2_decode_bits(in, count, group, 2, symmetric, grids, 16, out); break;
        case 4: aq_avx2_decode_bits(in, count, group, 4, symmetric, grids, 16, out); break;
        default: aq_avx2_decode_bits(in, count, group, 8, symmetric, grids, 16, out); break;
        }
    }
}

#endif /* AQ_HAVE_AVX2 */
