/* AVX-512 VNNI kernels of the forward pass: dots of packed codes with INT8 activations, row by row for
 * few tokens, 16 rows at a time for many. Codes are taken 64 bytes at a time, in planes: the first
 * code of every byte, the second, …; the activations are laid out accordingly. */
#include "forward.h"
#include "x86.h"

#if defined(AQ_HAVE_VNNI)
AQ_X86_BEGIN

#define AQ_VNNI_AHEAD 2048 /* bytes between what is read and what is fetched */

/* 256 values in four planes, 128 in two, 64 as they are. */
AQ_VNNI_INLINE static inline void aq_vnni_arrange_chunk(const int8_t *x, uint32_t bits,
                                                        int8_t *out) {
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    const __m512i even = _mm512_set1_epi16(0x00FF);
    const size_t planes = 8u / bits;
    __m512i v[4], part[4];
    size_t i;
    for (i = 0; i < planes; i++) {
        v[i] = _mm512_loadu_si512((const void *)(x + 64 * i));
    }
    if (bits == 2) { /* even and odd values of each half, then again */
        for (i = 0; i < 4; i += 2) {
            part[i / 2] = _mm512_packus_epi16(_mm512_and_si512(v[i], even),
                                              _mm512_and_si512(v[i + 1], even));
            part[i / 2 + 2] = _mm512_packus_epi16(_mm512_srli_epi16(v[i], 8),
                                                  _mm512_srli_epi16(v[i + 1], 8));
        }
        for (i = 0; i < 4; i++) {
            part[i] = _mm512_permutexvar_epi64(order, part[i]);
        }
        v[0] = _mm512_packus_epi16(_mm512_and_si512(part[0], even),
                                   _mm512_and_si512(part[1], even));
        v[2] = _mm512_packus_epi16(_mm512_srli_epi16(part[0], 8), _mm512_srli_epi16(part[1], 8));
        v[1] = _mm512_packus_epi16(_mm512_and_si512(part[2], even),
                                   _mm512_and_si512(part[3], even));
        v[3] = _mm512_packus_epi16(_mm512_srli_epi16(part[2], 8), _mm512_srli_epi16(part[3], 8));
    } else if (bits == 4) {
        part[0] = _mm512_packus_epi16(_mm512_and_si512(v[0], even), _mm512_and_si512(v[1], even));
        v[1] = _mm512_packus_epi16(_mm512_srli_epi16(v[0], 8), _mm512_srli_epi16(v[1], 8));
        v[0] = part[0];
    }
    for (i = 0; i < planes; i++) {
        _mm512_storeu_si512((void *)(out + 64 * i),
                            bits == 8 ? v[i] : _mm512_permutexvar_epi64(order, v[i]));
    }
}

AQ_VNNI AQ_SIMD_LIB void aq_vnni_arrange(const int8_t *x, size_t count, uint32_t bits,
                                         int8_t *out) {
    const size_t whole = 512u / bits;
    int8_t rest[256];
    size_t begin;
    for (begin = 0; begin < count; begin += whole) {
        const int8_t *from = x + begin;
        if (count - begin < whole) {
            memset(rest, 0, sizeof rest);
            memcpy(rest, from, count - begin);
            from = rest;
        }
        switch (bits) {
        case 2: aq_vnni_arrange_chunk(from, 2, out + begin); break;
        case 4: aq_vnni_arrange_chunk(from, 4, out + begin); break;
        default: aq_vnni_arrange_chunk(from, 8, out + begin); break;
        }
    }
}

/* Plane `plane` of 64 bytes, one byte a code. */
AQ_VNNI_INLINE static inline __m512i aq_vnni_plane(__m512i packed, uint32_t bits, size_t plane) {
    const __m512i mask = _mm512_set1_epi8((char)((1 << bits) - 1));
    switch (plane * bits) {
    case 0: break;
    case 2: packed = _mm512_srli_epi16(packed, 2); break;
    case 4: packed = _mm512_srli_epi16(packed, 4); break;
    default: packed = _mm512_srli_epi16(packed, 6); break;
    }
    return bits == 8 ? packed : _mm512_and_si512(packed, mask);
}

/* ---- row by row */

/* Adds 64 bytes of codes, of which `left` are there; sums of four bytes in 16 lanes. */
AQ_VNNI_INLINE static inline __m512i aq_vnni_chunk(__m512i sum, const uint8_t *codes, size_t left,
                                                   uint32_t bits, const int8_t *x) {
    const size_t planes = 8u / bits;
    __m512i packed = left < 64 ? _mm512_maskz_loadu_epi8((UINT64_C(1) << left) - 1u, codes)
                               : _mm512_loadu_si512((const void *)codes);
    size_t plane;
    AQ_UNROLL
    for (plane = 0; plane < planes; plane++) {
        sum = _mm512_dpbusd_epi32(sum, aq_vnni_plane(packed, bits, plane),
                                  _mm512_loadu_si512((const void *)(x + 64 * plane)));
    }
    return sum;
}

/* One vector of sums: a chunk with several groups in it, or the chunks of one group. */
AQ_VNNI_INLINE static inline __m512i aq_vnni_sums(const uint8_t *codes, uint32_t bits, size_t bytes,
                                                  const int8_t *x) {
    __m512i sum = _mm512_setzero_si512();
    size_t at;
    AQ_UNROLL
    for (at = 0; at < bytes; at += 64) {
        sum = aq_vnni_chunk(sum, codes + at, 64, bits, x + at * (8u / bits));
    }
    return sum;
}

/* The same of any number of bytes, of which only `left` are there. */
AQ_VNNI_INLINE static inline __m512i aq_vnni_part_of(const uint8_t *codes, size_t left,
                                                     uint32_t bits, size_t bytes, const int8_t *x) {
    __m512i sum = _mm512_setzero_si512();
    size_t at;
    for (at = 0; at < bytes && at < left; at += 64) {
        sum = aq_vnni_chunk(sum, codes + at, left - at, bits, x + at * (8u / bits));
    }
    return sum;
}

/* Quarter k of the result: the sums of quarter k of a, b, c and d. */
AQ_VNNI_INLINE static inline __m512i aq_vnni_fold4(const __m512i *v) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]),
                                  _mm512_unpackhi_epi32(v[0], v[1]));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]),
                                  _mm512_unpackhi_epi32(v[2], v[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

/* Neighbouring quarters of a, then of b, added. */
AQ_VNNI_INLINE static inline __m512i aq_vnni_fold2(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
}

/* The sums of 16 groups, in order: `four` is what fold4 made of each four of 4, 8 or 16 vectors. */
AQ_VNNI_INLINE static inline __m512i aq_vnni_in_order(const __m512i *four, size_t vectors) {
    if (vectors == 16) {
        return aq_vnni_fold2(aq_vnni_fold2(four[0], four[1]), aq_vnni_fold2(four[2], four[3]));
    }
    if (vectors == 8) {
        return _mm512_permutexvar_epi32(
            _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15),
            aq_vnni_fold2(four[0], four[1]));
    }
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), four[0]);
}

/* The same of two vectors: neighbouring lanes added. */
AQ_VNNI_INLINE static inline __m512i aq_vnni_pairs_in_order(__m512i a, __m512i b) {
    const __m512 low = _mm512_castsi512_ps(a), high = _mm512_castsi512_ps(b);
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15),
        _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(low, high, 0x88)),
                         _mm512_castps_si512(_mm512_shuffle_ps(low, high, 0xDD))));
}

/* The sums of 16 groups. */
AQ_VNNI_INLINE static inline __m512i aq_vnni_groups16(const uint8_t *codes, uint32_t bits,
                                                      size_t group_bytes, const int8_t *x) {
    const size_t step = group_bytes < 64 ? 64 : group_bytes; /* bytes of a vector of sums */
    const size_t vectors = 16 * group_bytes / step;
    __m512i v[4], four[4];
    size_t i, k;
    AQ_UNROLL
    for (i = 0; i < vectors; i += 4) {
        AQ_UNROLL
        for (k = 0; k < 4; k++) {
            const size_t at = (i + k) * step;
            v[k] = i + k < vectors ? aq_vnni_sums(codes + at, bits, step, x + at * (8u / bits))
                                   : _mm512_setzero_si512();
        }
        if (vectors > 2) {
            four[i / 4] = aq_vnni_fold4(v);
        }
    }
    return vectors > 2 ? aq_vnni_in_order(four, vectors) : aq_vnni_pairs_in_order(v[0], v[1]);
}

/* The same at the end of a row, where the bytes `left` are there: one copy of this code for a width,
 * whatever the group. */
AQ_VNNI_INLINE static inline void aq_vnni_last_of(const uint8_t *codes, size_t left, uint32_t bits,
                                                  size_t group_bytes, const int8_t *x,
                                                  int32_t *out) {
    const size_t step = group_bytes < 64 ? 64 : group_bytes;
    const size_t vectors = 16 * group_bytes / step;
    __m512i v[16], four[4];
    size_t i, at;
    for (i = 0, at = 0; i < 16; i++, at += step) {
        v[i] = i < vectors && at < left
                   ? aq_vnni_part_of(codes + at, left - at, bits, step, x + at * (8u / bits))
                   : _mm512_setzero_si512();
    }
    for (i = 0; i < 4; i++) {
        four[i] = aq_vnni_fold4(v + 4 * i);
    }
    _mm512_storeu_si512((void *)out, vectors > 2 ? aq_vnni_in_order(four, vectors)
                                                 : aq_vnni_pairs_in_order(v[0], v[1]));
}

AQ_VNNI static void aq_vnni_last2(const uint8_t *codes, size_t left, size_t group_bytes,
                                  const int8_t *x, int32_t *out) {
    aq_vnni_last_of(codes, left, 2, group_bytes, x, out);
}

AQ_VNNI static void aq_vnni_last4(const uint8_t *codes, size_t left, size_t group_bytes,
                                  const int8_t *x, int32_t *out) {
    aq_vnni_last_of(codes, left, 4, group_bytes, x, out);
}

AQ_VNNI static void aq_vnni_last8(const uint8_t *codes, size_t left, size_t group_bytes,
                                  const int8_t *x, int32_t *out) {
    aq_vnni_last_of(codes, left, 8, group_bytes, x, out);
}

AQ_VNNI_INLINE static inline void aq_vnni_rows(const aq_linear_dots *job, uint32_t bits,
                                               size_t group_bytes) {
    const size_t batch = 16 * group_bytes;
    size_t row, at, i;
    for (row = 0; row < job->rows; row++) {
        const uint8_t *codes = job->codes + row * job->row_bytes;
        int32_t *out = job->out + row * job->out_stride;
        for (at = 0; at < job->next_bytes; at += 64) {
            _mm_prefetch((const char *)(job->next + row * job->next_bytes + at), _MM_HINT_T0);
        }
        for (at = 0; at + batch <= job->row_bytes; at += batch, out += 16) {
            for (i = 0; i < batch; i += 64) {
                _mm_prefetch((const char *)(codes + at + i + AQ_VNNI_AHEAD), _MM_HINT_T1);
            }
            _mm512_storeu_si512((void *)out, aq_vnni_groups16(codes + at, bits, group_bytes,
                                                              job->x + at * (8u / bits)));
        }
        if (at < job->row_bytes) {
            (bits == 2 ? aq_vnni_last2 : bits == 4 ? aq_vnni_last4 : aq_vnni_last8)(
                codes + at, job->row_bytes - at, group_bytes, job->x + at * (8u / bits), out);
        }
    }
}

AQ_VNNI AQ_SIMD_LIB void aq_vnni_dots(const aq_linear_dots *job) {
    switch (job->bits * 1000u + job->group) {
    case 2032: aq_vnni_rows(job, 2, 8); break;
    case 2064: aq_vnni_rows(job, 2, 16); break;
    case 2128: aq_vnni_rows(job, 2, 32); break;
    case 2256: aq_vnni_rows(job, 2, 64); break;
    case 4032: aq_vnni_rows(job, 4, 16); break;
    case 4064: aq_vnni_rows(job, 4, 32); break;
    case 4128: aq_vnni_rows(job, 4, 64); break;
    case 4256: aq_vnni_rows(job, 4, 128); break;
    case 8032: aq_vnni_rows(job, 8, 32); break;
    case 8064: aq_vnni_rows(job, 8, 64); break;
    case 8128: aq_vnni_rows(job, 8, 128); break;
    default: aq_vnni_rows(job, 8, 256); break;
    }
}

/* ---- interleaved rows: a line of 64 bytes holds four bytes of each of 16 */

/* Sixteen parameters, F16 or F32. */
AQ_VNNI_INLINE static inline __m512 aq_vnni_params16(const uint8_t *from, size_t bytes) {
    return bytes == 2 ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from))
                      : _mm512_loadu_ps((const void *)from);
}

/* What the accumulators gain by the dots of a group: acc[0] scales, [1] mins. */
AQ_VNNI_INLINE static inline void aq_vnni_gain(const aq_linear_interleaved *job, size_t group,
                                               __m512i dots, __m512 *acc) {
    AQ_SIMD_EXACT_BODY
    const size_t bytes = job->param_bytes, values = job->values;
    const uint8_t *params = job->params + group * values * 16 * bytes;
    const int32_t total = job->sums[group];
    dots = _mm512_sub_epi32(dots, _mm512_set1_epi32(job->half * total));
    if (job->zero != 0) {
        const __m512i codes = _mm512_loadu_si512((const void *)(job->codes_turned + 16 * group));
        dots = _mm512_sub_epi32(dots, _mm512_mullo_epi32(_mm512_set1_epi32(job->zero), codes));
    }
    acc[0] = _mm512_add_ps(acc[0], _mm512_mul_ps(aq_vnni_params16(params, bytes),
                                                 _mm512_cvtepi32_ps(dots)));
    if (values == 2) {
        acc[1] = _mm512_add_ps(acc[1], _mm512_mul_ps(aq_vnni_params16(params + 16 * bytes, bytes),
                                                     _mm512_set1_ps((float)total)));
    }
}

AQ_VNNI_INLINE static inline void aq_vnni_interleaved_of(const aq_linear_interleaved *job,
                                                         uint32_t bits) {
    const size_t lines = job->row_bytes / 4, width = job->group * bits / 32;
    __m512 acc[2];
    size_t at = 0, end, plane, group;
    acc[0] = acc[1] = _mm512_setzero_ps();
    for (group = 0; at < lines; group++) {
        __m512i sum = _mm512_setzero_si512();
        for (end = lines - at < width ? lines : at + width; at < end; at++) {
            const __m512i line = _mm512_loadu_si512((const void *)(job->codes + 64 * at));
            const int8_t *x = job->x + at / 16 * 64 * (8u / bits) + at % 16 * 4;
            _mm_prefetch((const char *)(job->codes + 64 * at + AQ_VNNI_AHEAD), _MM_HINT_T0);
            AQ_UNROLL
            for (plane = 0; plane < 8u / bits; plane++) {
                int32_t four;
                memcpy(&four, x + 64 * plane, 4);
                sum = _mm512_dpbusd_epi32(sum, aq_vnni_plane(line, bits, plane),
                                          _mm512_set1_epi32(four));
            }
        }
        if (job->out) {
            _mm512_storeu_si512((void *)(job->out + 16 * group), sum);
        } else {
            aq_vnni_gain(job, group, sum, acc);
        }
    }
    if (!job->out) {
        _mm512_storeu_ps(job->acc, acc[0]);
        _mm512_storeu_ps(job->acc + 16, acc[1]);
    }
}

AQ_VNNI AQ_SIMD_LIB void aq_vnni_interleaved(const aq_linear_interleaved *given) {
    const aq_linear_interleaved own = *given, *job = &own; /* which no store can change */
    switch (job->bits) {
    case 2: aq_vnni_interleaved_of(job, 2); break;
    case 4: aq_vnni_interleaved_of(job, 4); break;
    default: aq_vnni_interleaved_of(job, 8); break;
    }
}

/* ---- 16 rows at a time */

/* One group of 16 rows by `tokens` tokens, at most 8: what the accumulators gain. `codes` are
 * [dwords][planes] vectors of 16 rows by 4 codes; the group's are `dwords` of them from `first` on. */
AQ_VNNI_INLINE static inline void aq_vnni_tile(const aq_linear_tiles *job, const __m512i *codes,
                                               size_t dwords, size_t planes, const int8_t *x,
                                               size_t group, size_t token, size_t tokens) {
    AQ_SIMD_EXACT_BODY
    const float *params = job->params + 32 * group;
    const __m512 scales = _mm512_loadu_ps(params), mins = _mm512_loadu_ps(params + 16);
    __m512i sum[8];
    size_t i, plane, t;
    AQ_UNROLL
    for (t = 0; t < tokens; t++) {
        sum[t] = _mm512_setzero_si512();
    }
    for (i = 0; i < dwords; i++) {
        AQ_UNROLL
        for (plane = 0; plane < planes; plane++) {
            const __m512i weights = codes[i * planes + plane];
            const int8_t *from = x + (i / 16 * planes + plane) * 64 + i % 16 * 4;
            AQ_UNROLL
            for (t = 0; t < tokens; t++) {
                int32_t four;
                memcpy(&four, from + t * job->x_stride, 4);
                sum[t] = _mm512_dpbusd_epi32(sum[t], weights, _mm512_set1_epi32(four));
            }
        }
    }
    AQ_UNROLL
    for (t = 0; t < tokens; t++) {
        float *acc = job->acc + (token + t) * 32;
        const int32_t total = job->sums[(token + t) * job->groups + group];
        __m512i dots = _mm512_sub_epi32(sum[t], _mm512_set1_epi32(job->half * total));
        if (job->zeros) {
            dots = _mm512_sub_epi32(
                dots, _mm512_mullo_epi32(_mm512_set1_epi32(job->zeros[token + t]),
                                         _mm512_loadu_si512((const void *)(job->codes_turned +
                                                                           16 * group))));
        }
        _mm512_storeu_ps(acc, _mm512_add_ps(_mm512_loadu_ps(acc),
                                            _mm512_mul_ps(scales, _mm512_cvtepi32_ps(dots))));
        _mm512_storeu_ps(acc + 16,
                         _mm512_add_ps(_mm512_loadu_ps(acc + 16),
                                       _mm512_mul_ps(mins, _mm512_set1_ps((float)total))));
    }
}

/* 64 bytes of each of 16 rows that lie interleaved, as [16 dwords][planes] vectors. */
AQ_VNNI_INLINE static inline void aq_vnni_take_chunk(const aq_linear_tiles *job, size_t at,
                                                     uint32_t bits, __m512i *out) {
    const size_t planes = 8u / bits, left = (job->row_bytes - at) / 4;
    size_t i, plane;
    for (i = 0; i < 16; i++) {
        const __m512i line = i < left ? _mm512_loadu_si512((const void *)(job->codes + 16 * at + 64 * i))
                                      : _mm512_setzero_si512();
        AQ_UNROLL
        for (plane = 0; plane < planes; plane++) {
            out[i * planes + plane] = aq_vnni_plane(line, bits, plane);
        }
    }
}

/* 64 bytes of each of 16 rows, of which `left` are there, as [16 dwords][planes] vectors. */
AQ_VNNI_INLINE static inline void aq_vnni_turn_chunk(const aq_linear_tiles *job, size_t at,
                                                     uint32_t bits, __m512i *out) {
    const size_t planes = 8u / bits, left = job->row_bytes - at;
    uint32_t packed[256], turned[256];
    size_t i, plane;
    for (i = 0; i < 16; i++) {
        const uint8_t *row = job->codes + (i < job->rows ? i : job->rows - 1) * job->row_bytes + at;
        __mmask64 bytes = left < 64 ? (UINT64_C(1) << left) - 1u : ~UINT64_C(0);
        _mm512_storeu_si512((void *)(packed + 16 * i), _mm512_maskz_loadu_epi8(bytes, row));
        _mm_prefetch((const char *)(row + 256), _MM_HINT_T0);
    }
    aq_avx512_transpose(packed, 16, 16, turned);
    for (i = 0; i < 16; i++) {
        __m512i dword = _mm512_loadu_si512((const void *)(turned + 16 * i));
        AQ_UNROLL
        for (plane = 0; plane < planes; plane++) {
            out[i * planes + plane] = aq_vnni_plane(dword, bits, plane);
        }
    }
}

AQ_VNNI_INLINE static inline void aq_vnni_tiles_of(const aq_linear_tiles *job, uint32_t bits) {
    const size_t planes = 8u / bits, group_bytes = job->group / planes, dwords = group_bytes / 4;
    const size_t span = group_bytes < 64 ? 64 : group_bytes;
    __m512i codes[64];
    size_t at, chunk, i, t, group = 0;
    for (at = 0; at < job->row_bytes; at += span) {
        for (chunk = 0; chunk < span; chunk += 64) {
            if (at + chunk < job->row_bytes && job->interleaved) {
                aq_vnni_take_chunk(job, at + chunk, bits, codes + chunk / 4 * planes);
            } else if (at + chunk < job->row_bytes) {
                aq_vnni_turn_chunk(job, at + chunk, bits, codes + chunk / 4 * planes);
            } else {
                memset(codes + chunk / 4 * planes, 0, 16 * planes * sizeof *codes);
            }
        }
        for (i = 0; i * dwords < span / 4 && group < job->groups; i++, group++) {
            const __m512i *first = codes + i * dwords * planes;
            const int8_t *x = job->x + at * planes + i * dwords * 4;
            for (t = 0; t + 8 <= job->tokens; t += 8) {
                aq_vnni_tile(job, first, dwords, planes, x + t * job->x_stride, group, t, 8);
            }
            for (; t + 4 <= job->tokens; t += 4) {
                aq_vnni_tile(job, first, dwords, planes, x + t * job->x_stride, group, t, 4);
            }
            for (; t < job->tokens; t++) {
                aq_vnni_tile(job, first, dwords, planes, x + t * job->x_stride, group, t, 1);
            }
        }
    }
}

AQ_VNNI AQ_SIMD_LIB void aq_vnni_tiles(const aq_linear_tiles *job) {
    switch (job->bits) {
    case 2: aq_vnni_tiles_of(job, 2); break;
    case 4: aq_vnni_tiles_of(job, 4); break;
    default: aq_vnni_tiles_of(job, 8); break;
    }
}

#undef AQ_VNNI_AHEAD
AQ_X86_END
#endif /* AQ_HAVE_VNNI */
