/* The search of the trellis code on AVX2: 16 states at once. The states that lead to the same next
 * states, but for their top bits, stand one under the other in as many vectors. */
#include "trellis.h"
#include "x86.h"

#if defined(AQ_HAVE_AVX2)

/* least[state >> bits] for 16 states from a multiple of 16 on. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_trellis_least(const uint16_t *least, uint32_t bits) {
    const __m256i four = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 4, 5, 4,
                                          5, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7);
    const __m256i two = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2,
                                         3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3);
    int64_t quad;
    int32_t pair;
    if (bits == 2) {
        memcpy(&quad, least, sizeof quad);
        return _mm256_shuffle_epi8(_mm256_set1_epi64x(quad), four);
    }
    if (bits == 3) {
        memcpy(&pair, least, sizeof pair);
        return _mm256_shuffle_epi8(_mm256_set1_epi32(pair), two);
    }
    return _mm256_set1_epi16((short)*least);
}

/* The costs of 16 states from `state` on. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_trellis_cost(const int16_t *values, const uint16_t *least,
                                                     size_t state, uint32_t bits, __m256i target) {
    __m256i distance = _mm256_sub_epi16(
        target, _mm256_load_si256((const __m256i *)(const void *)(values + state)));
    if (bits == 4) {
        distance = _mm256_min_epi16(_mm256_abs_epi16(distance), _mm256_set1_epi16(255));
    }
    return _mm256_adds_epu16(aq_avx2_trellis_least(least + (state >> bits), bits),
                             _mm256_mullo_epi16(distance, distance));
}

/* a where the mask's bits are set, else b. (avx2_convert.c says why not by _mm256_blendv_epi8.) */
AQ_AVX2_INLINE static inline __m256i aq_avx2_trellis_choose(__m256i mask, __m256i a, __m256i b) {
    return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b));
}

/* The cheapest of 2^bits vectors of states and which it is, as 16-bit lanes. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_trellis_cheapest(const int16_t *values,
                                                         const uint16_t *least, size_t state,
                                                         size_t ends, uint32_t bits,
                                                         __m256i target, __m256i *choice) {
    __m256i best = aq_avx2_trellis_cost(values, least, state, bits, target);
    uint32_t i;
    *choice = _mm256_setzero_si256();
    if (bits == 2) {
        __m256i c1 = aq_avx2_trellis_cost(values, least, state + ends, bits, target);
        __m256i c2 = aq_avx2_trellis_cost(values, least, state + 2 * ends, bits, target);
        __m256i c3 = aq_avx2_trellis_cost(values, least, state + 3 * ends, bits, target);
        __m256i low = _mm256_min_epu16(best, c1), high = _mm256_min_epu16(c2, c3);
        __m256i is_first = _mm256_cmpeq_epi16(low, best), is_third = _mm256_cmpeq_epi16(high, c2);
        __m256i least_of = _mm256_min_epu16(low, high);
        __m256i is_low = _mm256_cmpeq_epi16(least_of, low);
        __m256i is_even = aq_avx2_trellis_choose(is_low, is_first, is_third);
        *choice = _mm256_add_epi16(_mm256_add_epi16(is_low, is_low),
                                   _mm256_add_epi16(is_even, _mm256_set1_epi16(3)));
        return least_of;
    }
    for (i = 1; i < 1u << bits; i++) {
        __m256i cost = aq_avx2_trellis_cost(values, least, state + i * ends, bits, target);
        __m256i lower = _mm256_min_epu16(best, cost);
        *choice = aq_avx2_trellis_choose(_mm256_cmpeq_epi16(lower, best), *choice,
                                         _mm256_set1_epi16((short)i));
        best = lower;
    }
    return best;
}

/* One row; returns the least costs of all, a lane each. */
AQ_AVX2_INLINE static inline __m256i aq_avx2_trellis_row(const int16_t *values, const uint16_t *least,
                                                    size_t ends, uint32_t bits, int16_t target,
                                                    uint16_t *out, uint8_t *choices) {
    __m256i aim = _mm256_set1_epi16(target), low = _mm256_set1_epi16(-1);
    size_t u;
    for (u = 0; u < ends; u += 16) {
        __m256i choice, best = aq_avx2_trellis_cheapest(values, least, u, ends, bits, aim, &choice);
        low = _mm256_min_epu16(low, best);
        _mm256_storeu_si256((__m256i *)(void *)(out + u), best);
        _mm_storeu_si128((__m128i *)(void *)(choices + u),
                         _mm_packus_epi16(_mm256_castsi256_si128(choice),
                                          _mm256_extracti128_si256(choice, 1)));
    }
    return low;
}

AQ_AVX2 static void aq_avx2_trellis_lower(uint16_t *least, size_t ends, __m256i low) {
    __m128i half = _mm_min_epu16(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    __m256i all = _mm256_broadcastw_epi16(_mm_minpos_epu16(half));
    size_t u;
    for (u = 0; u < ends; u += 16) {
        __m256i *at = (__m256i *)(void *)(least + u);
        _mm256_storeu_si256(at, _mm256_sub_epi16(_mm256_loadu_si256(at), all));
    }
}

AQ_AVX2_INLINE static inline void aq_avx2_trellis_rows(const aq_trellis_search *search,
                                                  const int16_t *targets, size_t count,
                                                  uint16_t *least, uint8_t *choices,
                                                  uint32_t bits, size_t ends) {
    uint16_t *from = least, *to = search->costs, *swap;
    while (count--) {
        __m256i low = aq_avx2_trellis_row(search->values, from, ends, bits, targets[count], to,
                                     choices + count * ends);
        if (count % 8 == 0) {
            aq_avx2_trellis_lower(to, ends, low);
        }
        swap = from;
        from = to;
        to = swap;
    }
    if (from != least) {
        memcpy(least, from, ends * sizeof *least);
    }
}

AQ_AVX2 AQ_SIMD_LIB void aq_avx2_trellis_search(const aq_trellis_search *search,
                                                const int16_t *targets, size_t count,
                                                uint16_t *least, uint8_t *choices) {
    size_t ends = (size_t)1 << (search->state_bits - search->bits);
    if (search->bits == 2 && ends == 64) {
        aq_avx2_trellis_rows(search, targets, count, least, choices, 2, 64);
    } else if (search->bits == 2) {
        aq_avx2_trellis_rows(search, targets, count, least, choices, 2, ends);
    } else if (search->bits == 3) {
        aq_avx2_trellis_rows(search, targets, count, least, choices, 3, ends);
    } else {
        aq_avx2_trellis_rows(search, targets, count, least, choices, 4, ends);
    }
}

#endif
