/* AVX2 kernels: codes from weights and weights from codes, with packing, 32 at a time. The rest of a
 * row is left to the scalar kernels. */
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

typedef struct aq_avx2_coder {
    __m256 min, inverse, high;
    __m256i zero; /* 16 bits each */
} aq_avx2_coder;

/* Codes of 8 values as 32-bit integers, still counted from zero. Those below the least one, and
 * 0x80000000 for what no integer holds, are left to the packing, which saturates. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_encode8(const aq_avx2_coder *coder, __m256 x) {
    AQ_SIMD_EXACT_BODY
    __m256 value = _mm256_mul_ps(_mm256_sub_ps(x, coder->min), coder->inverse);
    return _mm256_cvtps_epi32(_mm256_min_ps(coder->high, value));
}

/* Codes of twice 8 values as 16-bit integers: half of the first, half of the second, and so on. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_encode16(const aq_avx2_coder *coder, __m256 first,
                                                      __m256 second) {
    __m256i codes = _mm256_packs_epi32(aq_avx2_encode8(coder, first),
                                       aq_avx2_encode8(coder, second));
    return _mm256_add_epi16(codes, coder->zero);
}

/* Codes of 32 values as bytes, in order. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_encode32(const aq_avx2_coder *coder, const float *x) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i a = aq_avx2_encode16(coder, _mm256_loadu_ps(x), _mm256_loadu_ps(x + 8));
    __m256i b = aq_avx2_encode16(coder, _mm256_loadu_ps(x + 16), _mm256_loadu_ps(x + 24));
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order);
}

/* The same of 16 BF16, in order. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_encode16_bf16(const aq_avx2_coder *coder,
                                                           const uint8_t *in) {
    const __m256i none = _mm256_setzero_si256();
    __m256i halves = _mm256_loadu_si256((const __m256i *)(const void *)in);
    return aq_avx2_encode16(coder, _mm256_castsi256_ps(_mm256_unpacklo_epi16(none, halves)),
                            _mm256_castsi256_ps(_mm256_unpackhi_epi16(none, halves)));
}

AQ_AVX2_INLINE static inline __m256i aq_avx2_encode32_bf16(const aq_avx2_coder *coder,
                                                           const uint8_t *in) {
    __m256i a = aq_avx2_encode16_bf16(coder, in), b = aq_avx2_encode16_bf16(coder, in + 32);
    return _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xD8);
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

/* `in` holds F32, or BF16 when `narrow`. */
AQ_AVX2_INLINE static inline void aq_avx2_encode_bits(const uint8_t *in, bool narrow, size_t count,
                                                      size_t group, uint32_t bits, bool symmetric,
                                                      const aq_simd_grid *grids, uint8_t *out) {
    const uint32_t levels = 1u << bits, zero = symmetric ? levels / 2 : 0u;
    const size_t size = narrow ? 2 : 4;
    aq_avx2_coder coder;
    size_t length, i;
    coder.high = _mm256_set1_ps((float)(levels - 1u - zero));
    coder.zero = _mm256_set1_epi16((short)zero);
    for (; count > 0; count -= length, grids++, out += (length * bits + 7) / 8) {
        coder.min = _mm256_set1_ps(symmetric ? 0.0f : grids->min);
        coder.inverse = _mm256_set1_ps(aq_simd_inverse(grids->scale));
        length = count < group ? count : group;
        for (i = 0; i + 32 <= length; i += 32, in += 32 * size) {
            aq_avx2_pack32(narrow ? aq_avx2_encode32_bf16(&coder, in)
                                  : aq_avx2_encode32(&coder, (const float *)(const void *)in),
                           bits, out + i / 8 * bits);
        }
        if (i < length && narrow) {
            aq_scalar_encode_bf16(in, length - i, group, bits, symmetric, grids,
                                  out + i / 8 * bits);
        } else if (i < length) {
            aq_scalar_encode((const float *)(const void *)in, length - i, group, bits, symmetric,
                             grids, out + i / 8 * bits);
        }
        in += (length - i) * size;
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_encode(const float *x, size_t count, size_t group, uint32_t bits,
                                        bool symmetric, const aq_simd_grid *grids, void *codes) {
    const uint8_t *in = (const uint8_t *)(const void *)x;
    uint8_t *out = (uint8_t *)codes;
    switch (bits) {
    case 2: aq_avx2_encode_bits(in, false, count, group, 2, symmetric, grids, out); break;
    case 4: aq_avx2_encode_bits(in, false, count, group, 4, symmetric, grids, out); break;
    default: aq_avx2_encode_bits(in, false, count, group, 8, symmetric, grids, out); break;
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_encode_bf16(const void *halves, size_t count, size_t group,
                                             uint32_t bits, bool symmetric,
                                             const aq_simd_grid *grids, void *codes) {
    const uint8_t *in = (const uint8_t *)halves;
    uint8_t *out = (uint8_t *)codes;
    switch (bits) {
    case 2: aq_avx2_encode_bits(in, true, count, group, 2, symmetric, grids, out); break;
    case 4: aq_avx2_encode_bits(in, true, count, group, 4, symmetric, grids, out); break;
    default: aq_avx2_encode_bits(in, true, count, group, 8, symmetric, grids, out); break;
    }
}

/* A group's parameters in registers. As long as they are read from memory, compilers have to suppose
 * that each store has changed them. */
typedef struct aq_avx2_decoder {
    __m256 scale, min;
    __m256 table; /* 2 bits: the four weights that there are, twice */
} aq_avx2_decoder;

/* What 8 codes decode to. */
AQ_AVX2_INLINE static inline __m256 aq_avx2_decode8(const aq_avx2_decoder *decoder, __m256i codes,
                                                    uint32_t bits, bool symmetric) {
    AQ_SIMD_EXACT_BODY
    if (symmetric) {
        codes = _mm256_sub_epi32(codes, _mm256_set1_epi32(1 << (bits - 1)));
        return _mm256_mul_ps(decoder->scale, _mm256_cvtepi32_ps(codes));
    }
    return _mm256_add_ps(_mm256_mul_ps(decoder->scale, _mm256_cvtepi32_ps(codes)), decoder->min);
}

AQ_AVX2_INLINE static inline aq_avx2_decoder aq_avx2_decoder_of(const aq_simd_grid *grid,
                                                                uint32_t bits, bool symmetric) {
    const __m256i codes = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
    aq_avx2_decoder decoder;
    decoder.scale = _mm256_set1_ps(grid->scale);
    decoder.min = symmetric ? _mm256_setzero_ps() : _mm256_set1_ps(grid->min);
    decoder.table = _mm256_setzero_ps();
    if (bits == 2) {
        decoder.table = aq_avx2_decode8(&decoder, codes, bits, symmetric);
    }
    return decoder;
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

/* The eight weights from `at` on, of 32 that begin at `in`. */
AQ_AVX2_INLINE static inline __m256 aq_avx2_weights8(const aq_avx2_decoder *decoder,
                                                     const uint8_t *in, uint32_t at, uint32_t bits,
                                                     bool symmetric) {
    const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    const __m256i odd = _mm256_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30);
    __m256i codes;
    if (bits == 2) {
        codes = aq_avx2_word(in + at / 16 * 4);
        return _mm256_permutevar_ps(decoder->table,
                                    _mm256_srlv_epi32(codes, at % 16 ? odd : even));
    }
    if (bits == 4) {
        codes = _mm256_srlv_epi32(aq_avx2_word(in + at / 2), _mm256_add_epi32(even, even));
        codes = _mm256_and_si256(codes, _mm256_set1_epi32(15));
    } else {
        codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(in + at)));
    }
    return aq_avx2_decode8(decoder, codes, bits, symmetric);
}

/* 32 weights from bits · 4 bytes, written out: compilers leave so short a loop as it is. */
AQ_AVX2_INLINE static inline void aq_avx2_decode32(const aq_avx2_decoder *decoder,
                                                   const uint8_t *in, uint32_t bits,
                                                   bool symmetric, uint32_t past, float *out) {
    aq_avx2_put(out, aq_avx2_weights8(decoder, in, 0, bits, symmetric), past);
    aq_avx2_put(out + 8, aq_avx2_weights8(decoder, in, 8, bits, symmetric), past);
    aq_avx2_put(out + 16, aq_avx2_weights8(decoder, in, 16, bits, symmetric), past);
    aq_avx2_put(out + 24, aq_avx2_weights8(decoder, in, 24, bits, symmetric), past);
}

AQ_AVX2_INLINE static inline void aq_avx2_decode_groups(const uint8_t *in, size_t count,
                                                        size_t group, uint32_t bits, bool symmetric,
                                                        const aq_simd_grid *grids, uint32_t past,
                                                        float *out) {
    size_t begin, length, i;
    for (begin = 0; begin < count; begin += length, grids++, in += (length * bits + 7) / 8) {
        const aq_avx2_decoder decoder = aq_avx2_decoder_of(grids, bits, symmetric);
        length = count - begin < group ? count - begin : group;
        for (i = 0; i + 32 <= length; i += 32) {
            aq_avx2_decode32(&decoder, in + i / 8 * bits, bits, symmetric, past, out + begin + i);
        }
        if (i < length) {
            aq_scalar_decode(in + i / 8 * bits, length - i, group, bits, symmetric, grids,
                             out + begin + i);
        }
    }
}

AQ_AVX2_INLINE static inline void aq_avx2_decode_bits(const uint8_t *in, size_t count,
                                                      size_t group, uint32_t bits, bool symmetric,
                                                      const aq_simd_grid *grids, uint32_t past,
                                                      float *out) {
    if (symmetric) {
        aq_avx2_decode_groups(in, count, group, bits, true, grids, past, out);
    } else {
        aq_avx2_decode_groups(in, count, group, bits, false, grids, past, out);
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
