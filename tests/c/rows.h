/* Random rows of weights, each group of a kind of its own, the same on every machine. */
#ifndef AQ_TEST_ROWS_H
#define AQ_TEST_ROWS_H

#include "test.h"

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t random_below(uint64_t *state, uint32_t limit) {
    return (uint32_t)((test_random(state) >> 32) % limit);
}

/* A sum of uniform numbers is quicker than a logarithm, and near enough. */
static inline float random_normal(uint64_t *state) {
    uint64_t word = test_random(state);
    int sum = (int)(word & 0xFFFF) + (int)(word >> 16 & 0xFFFF) + (int)(word >> 32 & 0xFFFF) +
              (int)(word >> 48) - 131070;
    return (float)sum / 37837.0f;
}

enum { GAUSSIAN, OFFSET, HEAVY, CONSTANT, FEW, SPARSE, ZEROS, TINY, HUGE_ONES, ANY_BITS, KINDS };

static inline float any_finite(uint64_t *state) {
    uint32_t bits = (uint32_t)test_random(state);
    return float_of((bits & 0x7F800000u) == 0x7F800000u ? bits & 0xBFFFFFFFu : bits);
}

/* `tame`: the largest magnitude of every group lies in 2^-40 … 2^40, as the fits ask. */
static inline void fill(float *x, size_t count, int kind, int tame, uint64_t *state) {
    float scale = float_of((uint32_t)(127 - 30 + random_below(state, 60)) << 23);
    float middle = random_normal(state) * 8.0f;
    size_t i;
    for (i = 0; i < count; i++) {
        float z = random_normal(state), square = z * z;
        switch (tame && kind >= TINY ? kind % 3 : kind) {
        case GAUSSIAN: x[i] = z * scale; break;
        case OFFSET: x[i] = (z + middle) * scale; break;
        case HEAVY: x[i] = z / (0.01f + square) * random_normal(state) * scale; break;
        case CONSTANT: x[i] = middle * scale + scale; break;
        case FEW: x[i] = (float)((int)(z * 1.5f)) * scale; break;
        case SPARSE: x[i] = random_below(state, 16) ? 0.0f : z * scale; break;
        case ZEROS: x[i] = z < 0.0f ? -0.0f : z < 1.0f ? 0.0f : scale; break;
        case TINY: x[i] = float_of((uint32_t)test_random(state) & 0x81FFFFFFu); break;
        case HUGE_ONES: x[i] = z * 1e37f; break;
        default: x[i] = any_finite(state); break;
        }
    }
}

/* Every group a kind of its own, and its largest magnitude where a fit takes it. */
static inline void fill_row(float *x, size_t count, size_t group, int tame, uint64_t *state) {
    size_t begin;
    for (begin = 0; begin < count; begin += group) {
        size_t length = count - begin < group ? count - begin : group, i;
        uint32_t draw = random_below(state, 2 * KINDS);
        fill(x + begin, length, draw < KINDS ? (int)draw : GAUSSIAN, tame, state);
        if (tame) {
            float most = 0.0f;
            for (i = 0; i < length; i++) {
                most = fabsf(x[begin + i]) > most ? fabsf(x[begin + i]) : most;
            }
            if (!(most >= 9.1e-13f && most <= 1e12f)) {
                x[begin + random_below(state, (uint32_t)length)] = 1.0f;
            }
            for (i = 0; i < length && most > 1e12f; i++) {
                x[begin + i] *= 1e-12f;
            }
        }
    }
}

static inline void fill_weights(float *weights, size_t count, size_t group, uint64_t *state) {
    size_t i;
    for (i = 0; i < count; i++) {
        float z = random_normal(state);
        weights[i] = random_below(state, 8) ? z * z : 0.0f;
        if (i % group == 0) {
            weights[i] += 0.01f; /* the largest of a group is not 0 */
        }
    }
}

/* Lets nothing weigh but what is far below the largest value of its group: hardly a fit, or a code, has
 * an inverse of such a scale. */
static inline void make_faint(float *x, float *weights, size_t count, size_t group, uint64_t *state) {
    size_t begin, i;
    for (begin = 0; begin < count; begin += group) {
        size_t length = count - begin < group ? count - begin : group, largest = begin;
        for (i = begin; i < begin + length; i++) {
            largest = fabsf(x[i]) > fabsf(x[largest]) ? i : largest;
        }
        for (i = begin; i < begin + length && length > 1; i++) {
            if (i != largest) {
                x[i] = float_of((uint32_t)test_random(state) & 0x81FFFFFFu); /* below 2^-122 */
                weights[i] += 0.01f;
            }
        }
        weights[largest] = length > 1 ? 0.0f : weights[largest];
    }
}

#endif
