/* AVX-512 kernels: codes from weights and weights from codes, with packing. */
#include "x86.h"

#if defined(AQ_HAVE_AVX512)
AQ_X86_BEGIN

typedef struct aq_avx512_coder {
    __m512 min, inverse, low, high;
    __m512i zero; /* 16 bits each */
} aq_avx512_coder;

/* Codes of 16 values as 32-bit integers, still counted from zero. */
AQ_AVX512_INLINE static inline __m512i aq_avx512_encode16(const aq_avx512_coder *coder, __m512 x) {
    AQ_SIMD_EXACT_BODY
    __m512 value = _mm512_mul_ps(_mm512_sub_ps(x, coder->min), coder->inverse);
    value = _mm512_min_ps(coder->high, _mm512_max_ps(coder->low, value));
    return _mm512_cvtps_epi32(value);
}

/* Codes of 32 values as 16-bit integers, in order. */
AQ_AVX512_INLINE static inline __m512i aq_avx512_encode32(const aq_avx512_coder *coder, __m512 a,
                                                          __m512 b) {
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    __m512i codes = _mm512_packs_epi32(aq_avx512_encode16(coder, a), aq_avx512_encode16(coder, b));
    return _mm512_permutexvar_epi64(order, _mm512_add_epi16(codes, coder->zero));
}

/* Writes bits · 4 bytes. */
AQ_AVX512_INLINE static inline void aq_avx512_pack32(__m512i codes, uint32_t bits, uint8_t *out) {
    if (bits == 8) {
        _mm256_storeu_si256((__m256i *)(void *)out, _mm512_cvtepi16_epi8(codes));
    } else if (bits == 4) {
        codes = _mm512_madd_epi16(codes, _mm512_set1_epi32(0x100001)); /* 1, 16 */
        _mm_storeu_si128((__m128i *)(void *)out, _mm512_cvtepi32_epi8(codes));
    } else {
        codes = _mm512_madd_epi16(codes, _mm512_set1_epi32(0x40001)); /* 1, 4 */
        codes = _mm512_or_si512(codes, _mm512_srli_epi64(codes, 28));
        _mm_storel_epi64((__m128i *)(void *)out, _mm512_cvtepi64_epi8(codes));
    }
}

AQ_AVX512_INLINE static inline void aq_avx512_encode_bits(const float *x, size_t count,
                                                          size_t group, uint32_t bits,
                                                          bool symmetric,
                                                          const aq_simd_grid *grids,
                                                          uint8_t *out) {
    const uint32_t levels = 1u << bits, zero = symmetric ? levels / 2 : 0u;
    aq_avx512_coder coder;
    size_t begin, length, i;
    coder.low = _mm512_set1_ps(0.0f - (float)zero);
    coder.high = _mm512_set1_ps((float)(levels - 1u - zero));
    coder.zero = _mm512_set1_epi16((short)zero);
    for (begin = 0; begin < count; begin += length, grids++, out += (length * bits + 7) / 8) {
        coder.min = _mm512_set1_ps(symmetric ? 0.0f : grids->min);
        coder.inverse = _mm512_set1_ps(aq_simd_inverse(grids->scale));
        length = count - begin < group ? count - begin : group;
        for (i = 0; i + 32 <= length; i += 32) {
            const float *from = x + begin + i;
            aq_avx512_pack32(aq_avx512_encode32(&coder, _mm512_loadu_ps(from),
                                                _mm512_loadu_ps(from + 16)),
                             bits, out + i / 8 * bits);
        }
        if (i < length) { /* the last bytes of the row, with zeros behind the last code */
            uint8_t packed[32];
            __mmask32 lanes = (1u << (length - i)) - 1u;
            __m512 a = _mm512_maskz_loadu_ps((__mmask16)(lanes & 0xFFFFu), x + begin + i);
            __m512 b = _mm512_maskz_loadu_ps((__mmask16)(lanes >> 16), x + begin + i + 16);
            __m512i codes = _mm512_maskz_mov_epi16(lanes, aq_avx512_encode32(&coder, a, b));
            aq_avx512_pack32(codes, bits, packed);
            memcpy(out + i / 8 * bits, packed, ((length - i) * bits + 7) / 8);
        }
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_encode(const float *x, size_t count, size_t group,
                                            uint32_t bits, bool symmetric,
                                            const aq_simd_grid *grids, void *codes) {
    uint8_t *out = (uint8_t *)codes;
    switch (bits) {
    case 2: aq_avx512_encode_bits(x, count, group, 2, symmetric, grids, out); break;
    case 4: aq_avx512_encode_bits(x, count, group, 4, symmetric, grids, out); break;
    default: aq_avx512_encode_bits(x, count, group, 8, symmetric, grids, out); break;
    }
}

/* What 16 codes decode to. */
AQ_AVX512_INLINE static inline __m512 aq_avx512_decode16(__m512i codes, const aq_simd_grid *grid,
                                                         uint32_t bits, bool symmetric) {
    AQ_SIMD_EXACT_BODY
    const __m512i zero = _mm512_set1_epi32(symmetric ? 1 << (bits - 1) : 0);
    __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero));
    value = _mm512_mul_ps(_mm512_set1_ps(grid->scale), value);
    return symmetric ? value : _mm512_add_ps(value, _mm512_set1_ps(grid->min));
}

/* 32 weights from bits · 4 bytes. The few weights that a code of 2 or 4 bits can mean are looked up
 * in `table`. */
AQ_AVX512_INLINE static inline void aq_avx512_decode32(const uint8_t *in, __m512 table,
                                                       const aq_simd_grid *grid, uint32_t bits,
                                                       bool symmetric, __m512 *a, __m512 *b) {
    const __m512i shift2 = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28,
                                             30);
    const __m512i shift4 = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24,
                                             28);
    const __m512i words = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    if (bits == 8) {
        *a = aq_avx512_decode16(
            _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)in)), grid, bits,
            symmetric);
        *b = aq_avx512_decode16(
            _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(in + 16))), grid,
            bits, symmetric);
    } else if (bits == 4) {
        __m512i all = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)in));
        __m512i low = _mm512_permutexvar_epi32(words, all);
        __m512i high = _mm512_permutexvar_epi32(_mm512_add_epi32(words, _mm512_set1_epi32(2)),
                                                all);
        *a = _mm512_permutexvar_ps(_mm512_srlv_epi32(low, shift4), table);
        *b = _mm512_permutexvar_ps(_mm512_srlv_epi32(high, shift4), table);
    } else {
        __m128i all = _mm_loadl_epi64((const __m128i *)(const void *)in);
        __m512i low = _mm512_broadcastd_epi32(all);
        __m512i high = _mm512_broadcastd_epi32(_mm_srli_epi64(all, 32));
        *a = _mm512_permutevar_ps(table, _mm512_srlv_epi32(low, shift2));
        *b = _mm512_permutevar_ps(table, _mm512_srlv_epi32(high, shift2));
    }
}

/* Where `past` is not 0: past the caches, to an address aligned to so many bytes. */
AQ_AVX512_INLINE static inline void aq_avx512_put(float *out, __m512 value, uint32_t past) {
    if (past == 0) {
        _mm512_storeu_ps(out, value);
    } else if (past == 64) {
        _mm512_stream_ps(out, value);
    } else {
        _mm_stream_ps(out, _mm512_castps512_ps128(value));
        _mm_stream_ps(out + 4, _mm512_extractf32x4_ps(value, 1));
        _mm_stream_ps(out + 8, _mm512_extractf32x4_ps(value, 2));
        _mm_stream_ps(out + 12, _mm512_extractf32x4_ps(value, 3));
    }
}

AQ_AVX512_INLINE static inline void aq_avx512_decode_bits(const uint8_t *in, size_t count,
                                                          size_t group, uint32_t bits,
                                                          bool symmetric,
                                                          const aq_simd_grid *grids, uint32_t past,
                                                          float *out) {
    const __m512i every = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i codes = _mm512_and_si512(every, _mm512_set1_epi32((1 << bits) - 1));
    size_t begin, length, i;
    __m512 a, b;
    for (begin = 0; begin < count; begin += length, grids++, in += (length * bits + 7) / 8) {
        __m512 table = aq_avx512_decode16(codes, grids, bits, symmetric);
        length = count - begin < group ? count - begin : group;
        for (i = 0; i + 32 <= length; i += 32) {
            aq_avx512_decode32(in + i / 8 * bits, table, grids, bits, symmetric, &a, &b);
            aq_avx512_put(out + begin + i, a, past);
            aq_avx512_put(out + begin + i + 16, b, past);
        }
        if (i < length) {
            uint8_t packed[32] = {0};
            uint32_t lanes = (1u << (length - i)) - 1u;
            memcpy(packed, in + i / 8 * bits, ((length - i) * bits + 7) / 8);
            aq_avx512_decode32(packed, table, grids, bits, symmetric, &a, &b);
            _mm512_mask_storeu_ps(out + begin + i, (__mmask16)(lanes & 0xFFFFu), a);
            _mm512_mask_storeu_ps(out + begin + i + 16, (__mmask16)(lanes >> 16), b);
        }
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_decode(const void *codes, size_t count, size_t group,
                                            uint32_t bits, bool symmetric,
                                            const aq_simd_grid *grids, float *out) {
    const uint8_t *in = (const uint8_t *)codes;
    switch (bits) {
    case 2: aq_avx512_decode_bits(in, count, group, 2, symmetric, grids, 0, out); break;
    case 4: aq_avx512_decode_bits(in, count, group, 4, symmetric, grids, 0, out); break;
    default: aq_avx512_decode_bits(in, count, group, 8, symmetric, grids, 0, out); break;
    }
}

AQ_AVX512 AQ_SIMD_LIB void aq_avx512_decode_past(const void *codes, size_t count, size_t group,
                                                 uint32_t bits, bool symmetric,
                                                 const aq_simd_grid *grids, float *out) {
    const uint8_t *in = (const uint8_t *)codes;
    if ((uintptr_t)out % 64 == 0) {
        switch (bits) {
        case 2: aq_avx512_decode_bits(in, count, group, 2, symmetric, grids, 64, out); break;
        case 4: aq_avx512_decode_bits(in, count, group, 4, symmetric, grids, 64, out); break;
        default: aq_avx512_decode_bits(in, count, group, 8, symmetric, grids, 64, out); break;
        }
    } else {
        switch (bits) {
        case 2: aq_avx512_decode_bits(in, count, group, 2, symmetric, grids, 16, out); break;
        case 4: aq_avx512_decode_bits(in, count, group, 4, symmetric, grids, 16, out); break;
        default: aq_avx512_decode_bits(in, count, group, 8, symmetric, grids, 16, out); break;
        }
    }
}

AQ_X86_END
#endif /* AQ_HAVE_AVX512 */
