/* CRC-32 of long data, 64 bytes at a time: carry-less products on x86-64, the CRC-32 instructions of
 * AArch64. The method of the former: "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
 * Instruction", Gopal and others, Intel 2009. */
#include "crc32.h"

#include "../simd/neon.h"
#include "../simd/x86.h"

#if defined(AQ_HAVE_AVX2)

#  if defined(_MSC_VER)
#    include <intrin.h>
#  endif
#  if defined(__GNUC__) || defined(__clang__)
#    define AQ_PCLMUL __attribute__((target("pclmul,sse2")))
#    define AQ_PCLMUL_INLINE __attribute__((target("pclmul,sse2"), always_inline))
#  else
#    define AQ_PCLMUL
#    define AQ_PCLMUL_INLINE
#  endif

/* `at` moved by a distance, and `next` added. A half of 64 bits times x^n is its product with
 * x^(n - 32) modulo the polynomial, which is reflected and one bit further up in `powers`. */
AQ_PCLMUL_INLINE static inline __m128i aq_crc32_fold(__m128i at, __m128i powers, __m128i next) {
    __m128i first = _mm_clmulepi64_si128(at, powers, 0x00);
    __m128i second = _mm_clmulepi64_si128(at, powers, 0x11);
    return _mm_xor_si128(_mm_xor_si128(first, second), next);
}

AQ_PCLMUL static uint32_t aq_crc32_by_products(uint32_t crc, const unsigned char *bytes,
                                               size_t size) {
    const __m128i by_512 = _mm_set_epi64x(0x1C6E41596, 0x154442BD4); /* x^480, x^544 */
    const __m128i by_128 = _mm_set_epi64x(0x0CCAA009E, 0x1751997D0); /* x^96, x^160 */
    const __m128i *in = (const __m128i *)(const void *)bytes;
    __m128i a = _mm_xor_si128(_mm_loadu_si128(in), _mm_cvtsi32_si128((int)crc));
    __m128i b = _mm_loadu_si128(in + 1), c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
    uint32_t rest[4];
    for (size -= 64, in += 4; size; size -= 64, in += 4) {
        a = aq_crc32_fold(a, by_512, _mm_loadu_si128(in));
        b = aq_crc32_fold(b, by_512, _mm_loadu_si128(in + 1));
        c = aq_crc32_fold(c, by_512, _mm_loadu_si128(in + 2));
        d = aq_crc32_fold(d, by_512, _mm_loadu_si128(in + 3));
    }
    a = aq_crc32_fold(a, by_128, b);
    a = aq_crc32_fold(a, by_128, c);
    a = aq_crc32_fold(a, by_128, d);
    _mm_storeu_si128((__m128i *)(void *)rest, a);
    crc = 0; /* what is left stands for all the bytes, and is divided bit by bit */
    for (int i = 0; i < 4; i++) {
        crc ^= rest[i];
        for (int bit = 0; bit < 32; bit++) crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1u)));
    }
    return crc;
}

AQ_LIB aq_crc32_fn aq_crc32_fast(void) {
#  if defined(_MSC_VER)
    int word[4];
    __cpuid(word, 1);
    return (uint32_t)word[2] & 2u ? aq_crc32_by_products : NULL;
#  else
    uint32_t a = 1, b, c = 0, d;
    __asm__ __volatile__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return c & 2u ? aq_crc32_by_products : NULL; /* PCLMULQDQ */
#  endif
}
#  undef AQ_PCLMUL
#  undef AQ_PCLMUL_INLINE

#elif defined(AQ_HAVE_NEON) && defined(__linux__) && (defined(__GNUC__) || defined(__clang__))

#  include <sys/auxv.h>

static uint32_t aq_crc32_by_words(uint32_t crc, const unsigned char *bytes, size_t size) {
    for (; size; size -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, sizeof word);
        __asm__(".arch_extension crc\n\tcrc32x %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    }
    return crc;
}

AQ_LIB aq_crc32_fn aq_crc32_fast(void) {
    return getauxval(AT_HWCAP) & 1ul << 7 ? aq_crc32_by_words : NULL; /* HWCAP_CRC32 */
}

#else

AQ_LIB aq_crc32_fn aq_crc32_fast(void) {
    return NULL;
}

#endif
