/* Mixed precision: bits by layer, so that the sum of the layers' errors is least under a budget of
 * bytes. Every layer is quantized in memory with 2, 4 and 8 bits, and 3 with a trellis, by the method
 * that it will have, and its error measured: that of its output where second moments are known, else
 * that of its weights, each relative to what it is an error of. Entropy is told and decides nothing. */
#include "../quant/knapsack.h"
#include "method.h"
#include "run.h"
#include "../simd/simd.h"

#include <math.h>

#ifndef ARROWQUANT_NO_STDIO

#define AQ_ENTROPY_BINS 256u
#define AQ_ENTROPY_WEIGHTS 65536u

static const uint32_t aq_option_bits[AQ_OPTIONS] = { 2, 3, 4, 8, 16 };

/* A layer whose bits are to be chosen, of aq_option_bits. */
typedef struct aq_candidate {
    aq_plan_tensor *tensor;
    bool by_output;
    double entropy; /* of 256 equal cells between least and greatest weight, 0 … 1 */
} aq_candidate;

typedef struct aq_allocation {
    aq_plan *plan;
    aq_run run;
    aq_candidate *candidates;
    aq_option *options; /* [count][AQ_OPTIONS] */
    uint8_t *picked;
    size_t count;
    uint64_t weights;
} aq_allocation;

AQ_LIB bool aq_plan_has_budget(const aq_config *config) {
    return config->target_model_size_mb != 0 || config->target_bits == config->target_bits;
}

/* ---- measuring */

/* Least and greatest weight, or how many fall into each cell between them. */
static aq_status aq_entropy_pass(aq_run *run, const aq_plan_tensor *tensor, float *buffer,
                                 aq_simd_range *range, uint64_t *cells, aq_error *err) {
    const struct aq_kernels *kernels = aq_kernels_of(run->context);
    size_t size = aq_dtype_size(tensor->dtype);
    uint64_t total = tensor->bytes / size;
    float *wide = buffer + AQ_ENTROPY_WEIGHTS * 2;
    for (uint64_t at = 0; at < total; at += AQ_ENTROPY_WEIGHTS) {
        uint64_t left = total - at;
        size_t count = left < AQ_ENTROPY_WEIGHTS ? (size_t)left : AQ_ENTROPY_WEIGHTS;
        aq_simd_range part;
        aq_status status =
            aq_file_read(&run->input, tensor->offset + at * size, buffer, count * size, err);
        if (status != AQ_OK) return status;
        aq_little_endian(buffer, count, size);
        aq_to_f32(run->context, tensor->dtype, buffer, wide, count);
        for (size_t i = 0; cells && i < count; i++) {
            double part_of = ((double)wide[i] - (double)range->low) /
                             ((double)range->high - (double)range->low);
            double cell = part_of * AQ_ENTROPY_BINS;
            cells[cell < AQ_ENTROPY_BINS - 1 ? (size_t)(cell > 0.0 ? cell : 0.0)
                                             : AQ_ENTROPY_BINS - 1]++;
        }
        if (cells) continue;
        kernels->range(wide, count, count, &part);
        if (part.absmax >= 0x7F800000u) return AQ_OK; /* the run will say so */
        if (at == 0 || part.low < range->low) range->low = part.low;
        if (at == 0 || part.high > range->high) range->high = part.high;
    }
    return AQ_OK;
}

static aq_status aq_entropy(aq_run *run, const aq_plan_tensor *tensor, double *entropy,
                            aq_error *err) {
    uint64_t cells[AQ_ENTROPY_BINS] = { 0 }, total = tensor->rows * tensor->cols;
    size_t bytes = 3 * AQ_ENTROPY_WEIGHTS * sizeof(float);
    float *buffer = (float *)aq_alloc(run->context, bytes);
    aq_simd_range range;
    if (!buffer) return aq_fail_memory(err, bytes);
    memset(&range, 0, sizeof(range));
    *entropy = 0.0;
    aq_status status = aq_entropy_pass(run, tensor, buffer, &range, NULL, err);
    if (status == AQ_OK && range.high > range.low) {
        status = aq_entropy_pass(run, tensor, buffer, &range, cells, err);
        for (size_t i = 0; i < AQ_ENTROPY_BINS; i++) {
            double part = (double)cells[i] / (double)total;
            if (cells[i]) *entropy -= part * aq_log10(part) / (8.0 * aq_log10(2.0));
        }
    }
    aq_free(run->context, buffer, bytes);
    return status;
}

/* What the layer is at these bits: stored bytes and error; no option when no code fits, when it would
 * not be smaller than the layer as it is, and when it misses a gate. */
static aq_status aq_measure_option(aq_allocation *work, aq_candidate *candidate, uint32_t bits,
                                   uint64_t kept_bytes, aq_option *option, aq_error *err) {
    aq_plan_tensor tensor = *candidate->tensor;
    bool usable = true;
    tensor.bits = bits;
    option->bytes = AQ_NO_OPTION;
    option->error = 0.0;
    if (bits == 3 && work->plan->config.method != AQ_METHOD_TRELLIS) return AQ_OK;
    aq_status status = aq_plan_store(work->plan, &tensor, err);
    if (status != AQ_OK || tensor.bits != bits) return status;
    status = aq_run_measure(&work->run, &tensor, &usable, err);
    if (status != AQ_OK || !usable || tensor.output_bytes >= kept_bytes) return status;
    bool output = tensor.output_signal > 0.0;
    double error = output ? tensor.output_error / tensor.output_signal
                   : tensor.quality.original > 0.0
                       ? tensor.quality.error / tensor.quality.original : 0.0;
    if (!(error >= 0.0 && error < HUGE_VAL)) error = 1e300;
    candidate->by_output = output;
    option->bytes = tensor.output_bytes;
    option->error = error;
    return AQ_OK;
}

static aq_status aq_measure_candidate(aq_allocation *work, size_t index, aq_error *err) {
    aq_candidate *candidate = &work->candidates[index];
    aq_option *options = work->options + index * AQ_OPTIONS;
    aq_plan_tensor kept = *candidate->tensor;
    aq_status status = aq_plan_keep(work->plan, &kept, err);
    if (status == AQ_OK) status = aq_run_input(&work->run, kept.shard, err);
    if (status == AQ_OK) status = aq_entropy(&work->run, &kept, &candidate->entropy, err);
    for (uint32_t i = 0; status == AQ_OK && i < AQ_OPTIONS - 1; i++)
        status = aq_measure_option(work, candidate, aq_option_bits[i], kept.output_bytes,
                                   &options[i], err);
    options[AQ_OPTIONS - 1].bytes = kept.scale == AQ_NO_TENSOR ? kept.output_bytes : AQ_NO_OPTION;
    options[AQ_OPTIONS - 1].error = 0.0;
    return status;
}

/* ---- budget */

/* Bytes for the candidates: what the config allows less all that is not theirs. */
static aq_status aq_budget_bytes(const aq_allocation *work, uint64_t *budget, aq_error *err) {
    const aq_plan *plan = work->plan;
    const aq_config *config = &plan->config;
    uint64_t fixed = plan->predicted_output_bytes, limit = UINT64_MAX;
    for (size_t i = 0; i < work->count; i++) fixed -= work->candidates[i].tensor->output_bytes;
    *budget = UINT64_MAX - 1;
    if (config->target_bits == config->target_bits)
        *budget = (uint64_t)(config->target_bits * (double)work->weights / 8.0);
    if (!config->target_model_size_mb) return AQ_OK;
    if (config->target_model_size_mb <= UINT64_MAX / 1000000)
        limit = config->target_model_size_mb * 1000000;
    if (limit < fixed)
        return aq_fail(err, AQ_ERR_CONFIGURATION, "target_model_size_mb: %llu MB are less than the "
                       "%llu MB of what is not quantized",
                       (unsigned long long)config->target_model_size_mb,
                       (unsigned long long)(fixed / 1000000 + 1));
    if (limit - fixed < *budget) *budget = limit - fixed;
    return AQ_OK;
}

static aq_status aq_budget_fail(const aq_allocation *work, const aq_error *failure,
                                aq_error *err) {
    const aq_config *config = &work->plan->config;
    return aq_fail(err, AQ_ERR_CONFIGURATION, "%s: %s; allow more, lower the gates, or use a larger "
                   "group_size", config->target_model_size_mb ? "target_model_size_mb" : "target_bits",
                   failure->message);
}

/* ---- the choice */

AQ_SIMD_EXACT static aq_status aq_candidate_detail(aq_allocation *work, size_t index,
                                                   aq_error *err) {
    AQ_SIMD_EXACT_BODY
    aq_candidate *candidate = &work->candidates[index];
    const aq_option *options = work->options + index * AQ_OPTIONS;
    bool three = work->plan->config.method == AQ_METHOD_TRELLIS;
    char number[AQ_OPTIONS][AQ_DOUBLE_TEXT], text[320];
    for (size_t i = 0; i < AQ_OPTIONS - 1; i++) {
        double error = options[i].error, places = 1.0;
        while (error > 0.0 && error * places < 100.0) places *= 10.0; /* three digits */
        aq_format_double(floor(error * places + 0.5) / places, number[i]);
        if (options[i].bytes == AQ_NO_OPTION) aq_format(number[i], sizeof(number[i]), "-");
    }
    aq_format_double(floor(candidate->entropy * 1000.0 + 0.5) / 1000.0, number[AQ_OPTIONS - 1]);
    aq_format(text, sizeof(text), "%s error at 2, %s4, 8 bits: %s%s%s, %s, %s; entropy %s",
              candidate->by_output ? "output" : "weight", three ? "3, " : "", number[0],
              three ? ", " : "", three ? number[1] : "", number[2], number[3],
              number[AQ_OPTIONS - 1]);
    candidate->tensor->detail = aq_arena_string(&work->plan->state->arena, text);
    return candidate->tensor->detail ? AQ_OK : aq_fail_memory(err, sizeof(text));
}

static aq_status aq_candidate_settle(aq_allocation *work, size_t index, aq_error *err) {
    aq_plan_tensor *tensor = work->candidates[index].tensor;
    aq_status status;
    tensor->bits = aq_option_bits[work->picked[index]];
    status = tensor->bits == 16 ? aq_plan_keep(work->plan, tensor, err)
                                : aq_plan_store(work->plan, tensor, err);
    if (status != AQ_OK) return status;
    tensor->reason = AQ_REASON_BUDGET;
    tensor->output_bytes = work->options[index * AQ_OPTIONS + work->picked[index]].bytes;
    return aq_candidate_detail(work, index, err);
}

AQ_SIMD_EXACT static aq_status aq_allocate_choose(aq_allocation *work, aq_error *err) {
    AQ_SIMD_EXACT_BODY
    aq_plan *plan = work->plan;
    uint64_t budget, used = 0;
    double error = 0.0, bound = 0.0;
    char numbers[3][AQ_DOUBLE_TEXT];
    aq_error failure;
    aq_status status = aq_budget_bytes(work, &budget, err);
    if (status != AQ_OK) return status;
    memset(&failure, 0, sizeof(failure));
    status = aq_knapsack(plan->state->context, work->options, work->count, budget, work->picked,
                         &error, &bound, &failure);
    if (status == AQ_ERR_CONFIGURATION) return aq_budget_fail(work, &failure, err);
    if (status != AQ_OK) {
        if (err) *err = failure;
        return status;
    }
    for (size_t i = 0; status == AQ_OK && i < work->count; i++) {
        used += work->options[i * AQ_OPTIONS + work->picked[i]].bytes;
        status = aq_candidate_settle(work, i, err);
    }
    aq_format_double(floor(8e3 * (double)used / (double)work->weights + 0.5) / 1e3, numbers[0]);
    aq_format_double(floor(error * 1e6 + 0.5) / 1e6, numbers[1]);
    aq_format_double(floor(bound * 1e6 + 0.5) / 1e6, numbers[2]);
    if (status == AQ_OK)
        status = aq_note(&plan->state->arena, &plan->state->notes, err,
                         "bits chosen by measured errors: %s stored bits a weight over %zu layers, sum "
                         "of errors %s, no choice of this size has less than %s", numbers[0],
                         work->count, numbers[1], numbers[2]);
    return status;
}

/* ---- all of it */

static aq_status aq_allocate_open(aq_allocation *work, aq_error *err) {
    aq_plan *plan = work->plan;
    aq_arena *arena = &plan->state->arena;
    size_t most = plan->tensor_count + 1;
    work->candidates = (aq_candidate *)aq_arena_alloc(arena, most * sizeof(aq_candidate));
    work->options = (aq_option *)aq_arena_alloc(arena, most * AQ_OPTIONS * sizeof(aq_option));
    work->picked = (uint8_t *)aq_arena_alloc(arena, most);
    if (!work->candidates || !work->options || !work->picked)
        return aq_fail_memory(err, most * AQ_OPTIONS * sizeof(aq_option));
    for (size_t i = 0; i < plan->tensor_count; i++) {
        aq_plan_tensor *tensor = &plan->tensors[i];
        if (tensor->bits == 16 || tensor->reason != AQ_REASON_QUANTIZED) continue;
        work->candidates[work->count++].tensor = tensor;
        work->weights += tensor->rows * tensor->cols;
    }
    return AQ_OK;
}

AQ_LIB aq_status aq_plan_allocate(aq_plan *plan, aq_error *err) {
    aq_allocation work;
    memset(&work, 0, sizeof(work));
    work.plan = plan;
    aq_status status = aq_allocate_open(&work, err);
    if (status != AQ_OK || !work.count) return status;
    aq_run_init(&work.run, plan->state->context, plan, NULL, NULL);
    for (size_t i = 0; status == AQ_OK && i < work.count; i++)
        status = aq_measure_candidate(&work, i, err);
    (void)aq_file_close(&work.run.input, NULL);
    aq_run_free(&work.run);
    return status == AQ_OK ? aq_allocate_choose(&work, err) : status;
}

#undef AQ_ENTROPY_BINS
#undef AQ_ENTROPY_WEIGHTS
#endif /* ARROWQUANT_NO_STDIO */
