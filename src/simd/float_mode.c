/* The thread's floating-point mode: whatever the host program set, results are the same. */
#include "simd.h"

#if defined(__GNUC__) && (defined(__x86_64__) || (defined(__i386__) && defined(__SSE__)))
#  define AQ_MODE_X86 1
#elif defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
#  include <xmmintrin.h>
#  define AQ_MODE_X86 1
#elif defined(__GNUC__) && defined(__aarch64__)
#  define AQ_MODE_AARCH64 1
#elif defined(__GNUC__) && defined(__arm__) && defined(__ARM_FP)
#  define AQ_MODE_ARM 1
#elif !defined(__arm__)
#  include <fenv.h>
#  if defined(FE_TONEAREST)
#    define AQ_MODE_FENV 1
#  endif
#endif

/* The word that governs rounding, denormals and traps; its bits to clear and to set; how it is read
 * and written. */
#if defined(AQ_MODE_X86)
#  define AQ_MODE_CLEAR UINT64_C(0xE040) /* flush to zero, rounding, denormals are zero */
#  define AQ_MODE_SET UINT64_C(0x1F80)   /* no exception traps */
static uint64_t aq_mode_read(void) {
#  if defined(_MSC_VER)
    return _mm_getcsr();
#  else
    uint32_t word;
    __asm__ __volatile__("stmxcsr %0" : "=m"(word) : : "memory");
    return word;
#  endif
}
static void aq_mode_write(uint64_t mode) {
#  if defined(_MSC_VER)
    _mm_setcsr((unsigned)mode);
#  else
    uint32_t word = (uint32_t)mode;
    __asm__ __volatile__("ldmxcsr %0" : : "m"(word) : "memory");
#  endif
}
#elif defined(AQ_MODE_AARCH64)
#  define AQ_MODE_CLEAR UINT64_C(0x07C89F03) /* AHP, DN, FZ, rounding, FZ16, traps, AH, FIZ */
static uint64_t aq_mode_read(void) {
    uint64_t word;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(word) : : "memory");
    return word;
}
static void aq_mode_write(uint64_t mode) {
    __asm__ __volatile__("msr fpcr, %0" : : "r"(mode) : "memory");
}
#elif defined(AQ_MODE_ARM)
#  define AQ_MODE_CLEAR UINT64_C(0x03C89F00) /* DN, FZ, rounding, FZ16, traps */
static uint64_t aq_mode_read(void) {
    uint32_t word;
    __asm__ __volatile__("vmrs %0, fpscr" : "=r"(word) : : "memory");
    return word;
}
static void aq_mode_write(uint64_t mode) {
    __asm__ __volatile__("vmsr fpscr, %0" : : "r"((uint32_t)mode) : "memory");
}
#elif defined(AQ_MODE_FENV)
#  define AQ_MODE_CLEAR (~UINT64_C(0))
static uint64_t aq_mode_read(void) {
    return (uint64_t)(fegetround() - FE_TONEAREST);
}
static void aq_mode_write(uint64_t mode) {
    (void)fesetround(FE_TONEAREST + (int)mode);
}
#else
#  define AQ_MODE_CLEAR UINT64_C(0)
static uint64_t aq_mode_read(void) {
    return 0;
}
static void aq_mode_write(uint64_t mode) {
    (void)mode;
}
#endif

#ifndef AQ_MODE_SET
#  define AQ_MODE_SET UINT64_C(0)
#endif

AQ_SIMD_LIB aq_simd_mode aq_simd_mode_enter(void) {
    aq_simd_mode mode;
    uint64_t wanted;
    mode.saved = aq_mode_read();
    wanted = (mode.saved & ~AQ_MODE_CLEAR) | AQ_MODE_SET;
    if (wanted != mode.saved) {
        aq_mode_write(wanted);
    }
    return mode;
}

AQ_SIMD_LIB void aq_simd_mode_leave(aq_simd_mode mode) {
    if (((mode.saved & ~AQ_MODE_CLEAR) | AQ_MODE_SET) != mode.saved) {
        aq_mode_write(mode.saved);
    }
}

#undef AQ_MODE_CLEAR
#undef AQ_MODE_SET
#undef AQ_MODE_X86
#undef AQ_MODE_AARCH64
#undef AQ_MODE_ARM
#undef AQ_MODE_FENV
