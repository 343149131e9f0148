/* Rows of block codes: weights in, blocks out, and back. Blocks of 32 weights are fitted as groups of
 * the affine and symmetric codes are and hold the same numbers; superblocks have a fit of their own. */
#include "blocks.h"

#define AQ_BLOCK_32 32u
#define AQ_K_LIMIT 2.68435456e8f /* 2^28: what is larger fits no F16 scale, and its square no sum */

/* What a block of 32 is as a native group: bits, and whether there is a min. */
static uint32_t aq_block_bits(aq_code code) {
    return code == AQ_CODE_Q8_0 ? 8u : 4u;
}

static bool aq_block_is_symmetric(aq_code code) {
    return code != AQ_CODE_Q4_1;
}

static uint32_t aq_block_head(aq_code code) {
    return aq_block_is_symmetric(code) ? 2u : 4u;
}

AQ_LIB void aq_blocks_from_native(aq_code code, const void *codes, const void *params,
                                  size_t blocks, void *out) {
    const uint8_t *from = (const uint8_t *)codes, *param = (const uint8_t *)params;
    uint8_t *to = (uint8_t *)out;
    uint32_t head = aq_block_head(code);
    size_t i;
    for (; blocks; blocks--) {
        memcpy(to, param, head);
        param += head;
        to += head;
        if (code == AQ_CODE_Q8_0) {
            for (i = 0; i < 32; i++) {
                to[i] = from[i] ^ 0x80u;
            }
        } else { /* byte j holds weights j and j + 16, not 2j and 2j + 1 */
            for (i = 0; i < 8; i++) {
                to[2 * i] = (uint8_t)((from[i] & 15) | (from[i + 8] & 15) << 4);
                to[2 * i + 1] = (uint8_t)(from[i] >> 4 | (from[i + 8] & 0xF0));
            }
        }
        from += 4 * aq_block_bits(code);
        to += 4 * aq_block_bits(code);
    }
}

AQ_LIB void aq_blocks_to_native(aq_code code, const void *in, size_t blocks, void *codes,
                                void *params) {
    const uint8_t *from = (const uint8_t *)in;
    uint8_t *to = (uint8_t *)codes, *param = (uint8_t *)params;
    uint32_t head = aq_block_head(code);
    size_t i;
    for (; blocks; blocks--) {
        memcpy(param, from, head);
        param += head;
        from += head;
        if (code == AQ_CODE_Q8_0) {
            for (i = 0; i < 32; i++) {
                to[i] = from[i] ^ 0x80u;
            }
        } else {
            for (i = 0; i < 8; i++) {
                to[i] = (uint8_t)((from[2 * i] & 15) | (from[2 * i + 1] & 15) << 4);
                to[i + 8] = (uint8_t)(from[2 * i] >> 4 | (from[2 * i + 1] & 0xF0));
            }
        }
        from += 4 * aq_block_bits(code);
        to += 4 * aq_block_bits(code);
    }
}

/* ---- decoding */

static void aq_blocks_decode_32(const struct aq_kernels *kernels, aq_code code, const uint8_t *in,
                                size_t count, float *out) {
    uint8_t codes[AQ_TILE_WEIGHTS], params[4 * AQ_TILE_GROUPS];
    aq_simd_grid grids[AQ_TILE_GROUPS];
    aq_quant_spec spec;
    size_t blocks = count / AQ_BLOCK_32;
    spec.code = aq_block_is_symmetric(code) ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE;
    spec.params = AQ_PARAM_F16;
    spec.bits = aq_block_bits(code);
    spec.group_size = AQ_BLOCK_32;
    aq_blocks_to_native(code, in, blocks, codes, params);
    aq_grids_read(kernels, &spec, params, NULL, blocks, grids);
    kernels->decode(codes, count, AQ_BLOCK_32, spec.bits, spec.code == AQ_CODE_SYMMETRIC, grids,
                    out);
}

AQ_LIB void aq_blocks_decode(const struct aq_kernels *kernels, aq_code code, const uint8_t *in,
                             size_t count, float *out) {
    size_t i;
    if (aq_block_weights(code) == AQ_BLOCK_32) {
        aq_blocks_decode_32(kernels, code, in, count, out);
        return;
    }
    for (i = 0; i < count; i += AQ_K_WEIGHTS, in += aq_block_bytes(code)) {
        aq_k_decode(code, in, out + i);
    }
}

/* ---- encoding */

/* The blocks of one tile whose groups are fitted. False when a parameter does not fit. */
static bool aq_tile_blocks(const aq_row_job *native, aq_code code, aq_tile *tile, uint8_t *out,
                           size_t *bad) {
    uint8_t codes[AQ_TILE_WEIGHTS], params[4 * AQ_TILE_GROUPS];
    aq_simd_grid grids[AQ_TILE_GROUPS];
    aq_fit_kind kinds[AQ_TILE_GROUPS];
    size_t i;
    aq_tile_fit(native, tile);
    aq_grids_block(native, tile, grids, kinds, params);
    for (i = 0; i < tile->group_count; i++) {
        if (kinds[i] != AQ_FIT_GOOD) {
            *bad = i * AQ_BLOCK_32;
            return false;
        }
    }
    aq_tile_encode(native, tile, grids, codes);
    aq_blocks_from_native(code, codes, params, tile->group_count, out);
    return true;
}

/* Weights of any size as what the search takes: the largest lies in 0.5 … 1. All zero: NULL. */
static const float *aq_k_weights(const float *weights, float *scaled) {
    uint32_t most = 0;
    size_t i;
    int exponent;
    for (i = 0; weights && i < AQ_K_WEIGHTS; i++) {
        uint32_t bits = aq_simd_bits(weights[i]) & 0x7FFFFFFFu;
        most = bits > most ? bits : most;
    }
    if (most < 0x00800000u) { /* none, zeros, or nothing but denormals */
        return NULL;
    }
    exponent = 126 - (int)(most >> 23);
    for (i = 0; i < AQ_K_WEIGHTS; i++) {
        scaled[i] = aq_scale_by(weights[i], exponent);
    }
    return scaled;
}

static bool aq_tile_superblocks(const aq_row_job *job, const aq_tile *tile, uint8_t *out,
                                size_t *bad) {
    const aq_k_kind *kind = aq_k_kind_of(job->spec.code);
    float scaled[AQ_K_WEIGHTS];
    uint8_t codes[AQ_K_WEIGHTS];
    aq_k_fit fit;
    size_t i, j;
    for (i = 0; i < tile->count; i += AQ_K_WEIGHTS, out += aq_block_bytes(job->spec.code)) {
        const float *weights = job->column_weights ? job->column_weights + tile->begin + i : NULL;
        for (j = 0; j < tile->group_count; j++) {
            if (aq_simd_float(tile->range[j].absmax) > AQ_K_LIMIT) {
                *bad = j * job->spec.group_size;
                return false;
            }
        }
        aq_k_search(job->kernels, kind, tile->x + i, aq_k_weights(weights, scaled), &fit, codes);
        if ((aq_simd_bits(fit.d) & 0x7F800000u) == 0x7F800000u ||
            (aq_simd_bits(fit.dmin) & 0x7F800000u) == 0x7F800000u) {
            *bad = i;
            return false;
        }
        aq_k_pack(job->spec.code, &fit, codes, out);
    }
    return true;
}

AQ_LIB void aq_row_blocks(const aq_row_job *job, const void *weights, uint64_t row_begin,
                          uint8_t *out, aq_quality *quality, aq_block_outcome *outcome) {
    bool super = job->spec.group_size != AQ_BLOCK_32;
    aq_row_job native = *job;
    float decoded[AQ_TILE_WEIGHTS];
    aq_tile tile;
    size_t begin, bad = 0;
    native.spec.code = aq_block_is_symmetric(job->spec.code) ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE;
    native.symmetric = native.spec.code == AQ_CODE_SYMMETRIC;
    for (begin = 0; begin < job->cols; begin += tile.count) {
        if (!aq_tile_load(&native, weights, begin, &tile, &bad)) {
            outcome->not_finite = true;
            outcome->bad_index = row_begin + bad;
            outcome->bad_value = (double)tile.x[bad - begin];
            return;
        }
        if (!(super ? aq_tile_superblocks(job, &tile, out, &bad)
                    : aq_tile_blocks(&native, job->spec.code, &tile, out, &bad))) {
            outcome->needs_f32 = true;
            outcome->bad_index = row_begin + begin + bad;
            return;
        }
        if (job->measure) {
            aq_blocks_decode(job->kernels, job->spec.code, out, tile.count, decoded);
            aq_compare_run(job->kernels, tile.x, decoded, tile.count, quality);
        }
        out += tile.count / job->spec.group_size * aq_block_bytes(job->spec.code);
    }
}

#undef AQ_BLOCK_32
#undef AQ_K_LIMIT
