/* Random rotations of rows and of second moments. */
#include "rotate.h"

#include "../simd/simd.h"

AQ_LIB uint32_t aq_spec_rotation(const aq_quant_spec *spec) {
    return spec->code == AQ_CODE_TRELLIS ? spec->rotation : 0u;
}

/* Word k of the signs that belong to a seed. */
static uint64_t aq_rotate_word(uint32_t seed, uint64_t k) {
    uint64_t z = seed + (k + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static void aq_rotate_signs(uint32_t seed, uint64_t word, float *x, size_t n) {
    size_t begin, i;
    for (begin = 0; begin < n; begin += 64) {
        uint64_t signs = aq_rotate_word(seed, word++);
        size_t count = n - begin < 64 ? n - begin : 64;
        for (i = 0; i < count; i++) {
            uint32_t bits;
            memcpy(&bits, x + begin + i, sizeof bits);
            bits ^= (uint32_t)(signs >> i & 1u) << 31;
            memcpy(x + begin + i, &bits, sizeof bits);
        }
    }
}

/* The largest power of two within n, and one over its root. */
static size_t aq_rotate_part(size_t n, float *scale) {
    size_t part = 1;
    *scale = 1.0f;
    while (part <= n / 4) {
        part *= 4;
        *scale *= 0.5f;
    }
    if (part <= n / 2) {
        part *= 2;
        *scale *= 0.707106781f;
    }
    return part;
}

AQ_LIB void aq_rotate_rows(const struct aq_kernels *kernels, uint32_t seed, float *x, size_t rows,
                           size_t n) {
    float scale;
    size_t part = aq_rotate_part(n, &scale), row;
    for (row = 0; seed && n && row < rows; row++, x += n) {
        aq_rotate_signs(seed, 0, x, n);
        kernels->hadamard(x, part, scale);
        if (part < n) {
            aq_rotate_signs(seed, (n + 63) / 64, x + n - part, part);
            kernels->hadamard(x + n - part, part, scale);
        }
    }
}

AQ_LIB size_t aq_rotate_finite(const struct aq_kernels *kernels, uint32_t seed, float *x, size_t rows,
                               size_t n, double *value) {
    size_t i;
    for (i = 0; i < rows * n; i++) {
        if ((aq_simd_bits(x[i]) & 0x7F800000u) == 0x7F800000u) {
            *value = (double)x[i];
            return i;
        }
    }
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_rotate_rows(kernels, seed, x, rows, n);
    aq_simd_mode_leave(mode);
    return SIZE_MAX;
}

AQ_LIB void aq_rotate_back(const struct aq_kernels *kernels, uint32_t seed, float *x, size_t rows,
                           size_t n) {
    float scale;
    size_t part = aq_rotate_part(n, &scale), row;
    for (row = 0; seed && n && row < rows; row++, x += n) {
        if (part < n) {
            kernels->hadamard(x + n - part, part, scale);
            aq_rotate_signs(seed, (n + 63) / 64, x + n - part, part);
        }
        kernels->hadamard(x, part, scale);
        aq_rotate_signs(seed, 0, x, n);
    }
}

AQ_LIB void aq_rotate_hessian(const struct aq_kernels *kernels, uint32_t seed, float *hessian,
                              size_t n) {
    size_t i, j;
    if (!seed) {
        return;
    }
    aq_rotate_rows(kernels, seed, hessian, n, n);
    for (i = 0; i < n; i++) {
        for (j = 0; j < i; j++) {
            float kept = hessian[i * n + j];
            hessian[i * n + j] = hessian[j * n + i];
            hessian[j * n + i] = kept;
        }
    }
    aq_rotate_rows(kernels, seed, hessian, n, n);
    for (i = 0; i < n; i++) {
        for (j = 0; j < i; j++) {
            hessian[i * n + j] = hessian[j * n + i];
        }
        if (hessian[i * (n + 1)] < 0.0f) { /* of an input that is always 0: rounding */
            hessian[i * (n + 1)] = 0.0f;
        }
    }
}
