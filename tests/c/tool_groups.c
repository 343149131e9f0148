/* What becomes of random groups of weights, as checksums that every machine must give:
 *
 *     groups ISA FIRST COUNT     blocks FIRST … FIRST + COUNT − 1 of some 10,000 groups each
 *
 * (or the same three words in AQ_GROUPS). A block is made of its number alone. Its rows are quantized
 * and dequantized by the kernels of the ISA; a line has the block's number, how many groups it had, and the CRC-32
 * of all codes, scales, mins and dequantized weights, as they lie in a file. tests/groups.py compares the
 * lines of many machines, so each machine does only its own kernels' work.
 */
#include "rows.h"

#define BLOCK 10000u /* groups */
#define MOST 1024u   /* weights in a row */

static aq_crc32_tables tables;

static uint32_t add_floats(uint32_t crc, const float *values, size_t count) {
    static uint8_t bytes[4 * MOST];
    size_t i;
    for (i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, &values[i], sizeof word);
        bytes[4 * i] = (uint8_t)word;
        bytes[4 * i + 1] = (uint8_t)(word >> 8);
        bytes[4 * i + 2] = (uint8_t)(word >> 16);
        bytes[4 * i + 3] = (uint8_t)(word >> 24);
    }
    return aq_crc32(&tables, crc, bytes, 4 * count);
}

/* The last group of a row has every length in turn; parameters of all types, fits of both kinds. */
static aq_quant_spec spec_of(unsigned long round, size_t *count, uint64_t *state) {
    static const uint32_t bits[3] = {2, 4, 8}, sizes[4] = {32, 64, 128, 256};
    aq_quant_spec spec;
    memset(&spec, 0, sizeof spec);
    spec.group_size = sizes[random_below(state, 4)];
    spec.bits = bits[random_below(state, 3)];
    spec.code = random_below(state, 3) ? AQ_CODE_AFFINE : AQ_CODE_SYMMETRIC;
    spec.params = (aq_param_type)random_below(state, 3);
    spec.fit = random_below(state, 4) ? AQ_FIT_LEAST_SQUARES : AQ_FIT_FAST;
    *count = 1 + round % spec.group_size +
             spec.group_size * random_below(state, MOST / spec.group_size);
    return spec;
}

/* The largest magnitude of each group to 1 … 2^12, by powers of two: most such rows have parameters that
 * 16 bits can hold. */
static void limit(float *x, size_t count, size_t group) {
    size_t begin, i;
    for (begin = 0; begin < count; begin += group) {
        size_t length = count - begin < group ? count - begin : group;
        float most = 0.0f;
        for (i = 0; i < length; i++) {
            most = fabsf(x[begin + i]) > most ? fabsf(x[begin + i]) : most;
        }
        while (most >= 4096.0f || (most > 0.0f && most < 1.0f)) {
            float factor = most < 1.0f ? 4096.0f : 1.0f / 4096.0f;
            most *= factor;
            for (i = 0; i < length; i++) {
                x[begin + i] *= factor;
            }
        }
    }
}

/* One row through quantizing and back; with F32 where other parameters would not fit. */
static uint32_t add_row(aq_context *context, aq_quant_spec *spec, const float *row,
                        const float *columns, size_t count, uint32_t crc) {
    static uint8_t codes[MOST + 4], params[32 * 8], extra[4];
    static float back[MOST];
    aq_quant_layout layout;
    aq_error err;
    aq_status status = aq_quantize(context, spec, row, AQ_DTYPE_F32, 1, count, columns, codes,
                                   params, extra, NULL, &err);
    if (status == AQ_ERR_QUANTIZATION && spec->params != AQ_PARAM_F32) {
        spec->params = AQ_PARAM_F32;
        return add_row(context, spec, row, columns, count, ~crc);
    }
    if (status != AQ_OK || aq_quantized_size(spec, 1, count, &layout, &err) != AQ_OK ||
        aq_dequantize(context, spec, codes, params, extra, 1, count, AQ_DTYPE_F32, back, &err) !=
            AQ_OK) {
        printf("%s\n", err.message);
        exit(1);
    }
    crc = aq_crc32(&tables, crc, codes, (size_t)layout.code_bytes);
    crc = aq_crc32(&tables, crc, params, (size_t)layout.param_bytes);
    crc = aq_crc32(&tables, crc, extra, (size_t)layout.extra_bytes);
    return add_floats(crc, back, count);
}

static void run_block(aq_context *context, unsigned long block) {
    static float row[MOST], columns[MOST];
    uint64_t state = (uint64_t)block << 32;
    unsigned long round = 0, groups = 0;
    uint32_t crc = 0;
    while (groups < BLOCK) {
        size_t count;
        aq_quant_spec spec = spec_of(round++, &count, &state);
        bool weighted = spec.fit != AQ_FIT_FAST && random_below(&state, 2);
        fill_row(row, count, spec.group_size, 0, &state);
        if (spec.params != AQ_PARAM_F32) {
            limit(row, count, spec.group_size);
        }
        if (weighted) {
            fill_weights(columns, count, spec.group_size, &state);
            if (!random_below(&state, 16)) {
                make_faint(row, columns, count, spec.group_size, &state);
            }
        }
        crc = add_row(context, &spec, row, weighted ? columns : NULL, count, crc);
        groups += (unsigned long)((count + spec.group_size - 1) / spec.group_size);
    }
    printf("%lu %lu %08lx\n", block, groups, (unsigned long)crc);
    fflush(stdout);
}

int main(int argc, char **argv) {
    const char *variable = getenv("AQ_GROUPS");
    char name[16];
    unsigned long first, count, i;
    aq_context *context;
    aq_error err;
    if (argc == 4) {
        snprintf(name, sizeof name, "%s", argv[1]);
        first = strtoul(argv[2], NULL, 10);
        count = strtoul(argv[3], NULL, 10);
    } else if (!variable || sscanf(variable, "%15s %lu %lu", name, &first, &count) != 3) {
        printf("groups ISA FIRST COUNT\n");
        return 2;
    }
    if (aq_context_create(test_isa(name), NULL, &context, &err) != AQ_OK) {
        printf("%s\n", err.message);
        return 1;
    }
    context->num_threads = 1;
    aq_crc32_init(&tables);
    for (i = first; i < first + count; i++) {
        run_block(context, i);
    }
    aq_context_destroy(context);
    return 0;
}
