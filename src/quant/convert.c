/* Float types to and from F32, and the byte order of files. */
#include "tile.h"

/* Rounds to F32; IEEE conversion gives infinity beyond its range. */
static void aq_f64_to_f32(const void *in, float *out, size_t count) {
    const uint8_t *from = (const uint8_t *)in;
    size_t i;
    for (i = 0; i < count; i++) {
        double value;
        memcpy(&value, from + 8 * i, sizeof value);
        out[i] = (float)value;
    }
}

AQ_LIB void aq_widen(const struct aq_kernels *kernels, aq_dtype dtype, const void *in, float *out,
                     size_t count) {
    if (count == 0) {
        return;
    }
    switch (dtype) {
    case AQ_DTYPE_F64: aq_f64_to_f32(in, out, count); break;
    case AQ_DTYPE_F32: memcpy(out, in, count * sizeof *out); break;
    case AQ_DTYPE_F16: kernels->f16_to_f32(in, out, count); break;
    case AQ_DTYPE_BF16: kernels->bf16_to_f32(in, out, count); break;
    case AQ_DTYPE_F8_E4M3: kernels->f8_e4m3_to_f32(in, out, count); break;
    case AQ_DTYPE_F8_E5M2: kernels->f8_e5m2_to_f32(in, out, count); break;
    default: memset(out, 0, count * sizeof *out); break; /* callers ask aq_dtype_is_float */
    }
}

AQ_LIB void aq_to_f32(const aq_context *context, aq_dtype dtype, const void *in, float *out,
                      size_t count) {
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_widen(aq_kernels_of(context), dtype, in, out, count);
    aq_simd_mode_leave(mode);
}

AQ_LIB void aq_from_f32(const aq_context *context, aq_dtype dtype, const float *in, void *out,
                        size_t count) {
    const struct aq_kernels *kernels = aq_kernels_of(context);
    aq_simd_mode mode;
    if (count == 0) {
        return;
    }
    mode = aq_simd_mode_enter();
    switch (dtype) {
    case AQ_DTYPE_F32: memcpy(out, in, count * sizeof *in); break;
    case AQ_DTYPE_F16: kernels->f32_to_f16(in, out, count); break;
    case AQ_DTYPE_BF16: kernels->f32_to_bf16(in, out, count); break;
    default: memset(out, 0, count * aq_dtype_size(dtype)); break;
    }
    aq_simd_mode_leave(mode);
}

AQ_LIB void aq_little_endian(void *data, size_t count, size_t element_size) {
    uint16_t probe = 1;
    uint8_t first, *bytes = (uint8_t *)data;
    size_t i, j;
    memcpy(&first, &probe, 1);
    if (first == 1 || element_size < 2) {
        return;
    }
    for (i = 0; i < count; i++, bytes += element_size) {
        for (j = 0; j < element_size / 2; j++) {
            uint8_t byte = bytes[j];
            bytes[j] = bytes[element_size - 1 - j];
            bytes[element_size - 1 - j] = byte;
        }
    }
}
