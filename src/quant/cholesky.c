/* The factor of a damped Hessian: H = R·D·Rᵀ, R upper triangular in the order of descending diagonals.
 *
 * Turned around, this is the ordinary Cholesky factor: index i of the work stands for place
 * padded − 1 − i, and the lower triangle L of it gives R_kj = L_ik/L_kk. Blocked by AQ_LAZY columns;
 * the panels below a block, and then those that it updates, are shared by the threads. */
#include "linear.h"

#include "../base/thread.h"

#include <math.h>

/* The lower triangle while it is made, panel by panel: panel p has 32·(p + 1) columns. */
typedef struct aq_cholesky {
    const struct aq_kernels *kernels;
    const float *hessian;
    const aq_factor *factor;
    float *lower;
    float damping;     /* absolute, what is added to the diagonal */
    float behind;      /* the diagonal behind the last column */
    size_t begin, end; /* the block at work */
    size_t panels;
    uint32_t threads;
} aq_cholesky;

static float *aq_lower_panel(const aq_cholesky *work, size_t panel) {
    return work->lower + AQ_PANEL * AQ_PANEL * (panel * (panel + 1) / 2);
}

/* Floats of the lower triangle, and of the strips of R, which take as much. */
static uint64_t aq_triangle_floats(uint64_t padded) {
    uint64_t panels = padded / AQ_PANEL;
    return AQ_PANEL * AQ_PANEL * (panels * (panels + 1) / 2);
}

static uint64_t aq_padded(uint64_t n) {
    return (n + AQ_PANEL - 1) / AQ_PANEL * AQ_PANEL;
}

AQ_LIB uint64_t aq_factor_bytes(uint64_t n) {
    uint64_t padded = aq_padded(n);
    return 2 * sizeof(float) * aq_triangle_floats(padded) + 4 * sizeof(float) * padded + 128;
}

AQ_LIB const float *aq_factor_strip(const aq_factor *factor, size_t strip) {
    return factor->strips + AQ_STRIP * AQ_STRIP * (strip * (strip + 1) / 2);
}

/* ---- the Hessian's diagonal: checks, order, damping */

static aq_status aq_hessian_check(const float *hessian, size_t n, aq_error *err) {
    size_t i, count = n * n;
    for (i = 0; i < count; i++) {
        bool finite = (aq_simd_bits(hessian[i]) & 0x7F800000u) != 0x7F800000u;
        if (!finite || (i % (n + 1) == 0 && hessian[i] < 0.0f)) {
            return aq_fail_tensor(err, AQ_ERR_QUANTIZATION, "", i,
                                  "the Hessian holds %s at [%zu, %zu], expected finite second "
                                  "moments of the layer's input; calibrate again",
                                  finite ? "a negative square" : "NaN or infinity", i / n, i % n);
        }
    }
    return AQ_OK;
}

/* By descending diagonal, equal ones by column: sorted by merging runs. `spare` is as long. */
static void aq_order_columns(const float *diagonal, uint32_t *order, uint32_t *spare, size_t n) {
    size_t width, i;
    for (i = 0; i < n; i++) {
        order[i] = (uint32_t)i;
    }
    for (width = 1; width < n; width *= 2) {
        for (i = 0; i < n; i += 2 * width) {
            size_t middle = n - i < width ? n : i + width;
            size_t end = n - i < 2 * width ? n : i + 2 * width;
            size_t left = i, right = middle, to;
            for (to = i; to < end; to++) {
                bool take = right == end || (left < middle && diagonal[order[left]] >=
                                                                  diagonal[order[right]]);
                spare[to] = take ? order[left++] : order[right++];
            }
        }
        memcpy(order, spare, n * sizeof *order);
    }
}

/* ---- the triangle */

/* Rows of one panel, damped. Places behind the last column are a diagonal matrix. */
static aq_status aq_cholesky_gather(void *user, size_t index, uint32_t worker, aq_error *err) {
    const aq_cholesky *work = (const aq_cholesky *)user;
    const aq_factor *factor = work->factor;
    size_t last = factor->padded - 1, lane, j, columns;
    float *panel = aq_lower_panel(work, work->panels - 1 - index);
    (void)worker;
    (void)err;
    index = work->panels - 1 - index; /* long ones first */
    columns = AQ_PANEL * (index + 1);
    for (lane = 0; lane < AQ_PANEL; lane++) {
        size_t i = AQ_PANEL * index + lane, place = last - i;
        bool real = place < factor->n;
        const float *row = work->hessian + (real ? factor->order[place] * factor->n : 0);
        for (j = 0; j < columns; j++) {
            size_t other = last - j;
            bool both = real && other < factor->n;
            panel[AQ_PANEL * j + lane] = both     ? row[factor->order[other]]
                                         : i == j ? work->behind : 0.0f;
        }
        if (real) {
            panel[AQ_PANEL * i + lane] += factor->added[place];
        }
    }
    return AQ_OK;
}

/* Columns of the block in one panel, when all above it have theirs. On the diagonal it finds the
 * pivots; false when one has lost its digits: each is at least the damping in exact arithmetic. */
static bool aq_cholesky_panel(const aq_cholesky *work, size_t index) {
    float *panel = aq_lower_panel(work, index);
    size_t end = AQ_PANEL * (index + 1) < work->end ? AQ_PANEL * (index + 1) : work->end;
    size_t strip, j, i;
    for (strip = work->begin; strip < end; strip += AQ_STRIP) {
        const float *other = aq_lower_panel(work, strip / AQ_PANEL) + strip % AQ_PANEL;
        work->kernels->update(panel + AQ_PANEL * strip, panel + AQ_PANEL * work->begin,
                              other + AQ_PANEL * work->begin, AQ_PANEL, strip - work->begin,
                              AQ_STRIP);
        for (j = strip; j < strip + AQ_STRIP; j++) {
            float *column = panel + AQ_PANEL * j, root;
            work->kernels->update(column, panel + AQ_PANEL * strip,
                                  other + AQ_PANEL * strip + (j - strip), AQ_PANEL, j - strip, 1);
            if (j / AQ_PANEL == index) {
                if (!(column[j % AQ_PANEL] >= 0.5f * work->damping)) {
                    return false;
                }
                column[j % AQ_PANEL] = sqrtf(column[j % AQ_PANEL]);
            }
            root = aq_lower_panel(work, j / AQ_PANEL)[AQ_PANEL * j + j % AQ_PANEL];
            for (i = j / AQ_PANEL == index ? j % AQ_PANEL + 1 : 0; i < AQ_PANEL; i++) {
                column[i] /= root;
            }
        }
    }
    return true;
}

static aq_status aq_cholesky_below(void *user, size_t index, uint32_t worker, aq_error *err) {
    const aq_cholesky *work = (const aq_cholesky *)user;
    (void)worker;
    (void)err;
    (void)aq_cholesky_panel(work, work->end / AQ_PANEL + index);
    return AQ_OK;
}

/* Subtracts the block's part from the rest of one panel, the longest first. */
static aq_status aq_cholesky_update(void *user, size_t index, uint32_t worker, aq_error *err) {
    const aq_cholesky *work = (const aq_cholesky *)user;
    size_t number = work->panels - 1 - index, strip;
    float *panel = aq_lower_panel(work, number);
    (void)worker;
    (void)err;
    for (strip = work->end; strip < AQ_PANEL * (number + 1); strip += AQ_STRIP) {
        const float *other = aq_lower_panel(work, strip / AQ_PANEL) + strip % AQ_PANEL;
        work->kernels->update(panel + AQ_PANEL * strip, panel + AQ_PANEL * work->begin,
                              other + AQ_PANEL * work->begin, AQ_PANEL, work->end - work->begin,
                              AQ_STRIP);
    }
    return AQ_OK;
}

/* Runs one step over panels, each thread in the library's floating-point mode. */
typedef struct aq_cholesky_step {
    aq_cholesky *work;
    aq_task_fn task;
} aq_cholesky_step;

static aq_status aq_cholesky_task(void *user, size_t index, uint32_t worker, aq_error *err) {
    aq_cholesky_step *step = (aq_cholesky_step *)user;
    aq_simd_mode mode = aq_simd_mode_enter();
    aq_status status = step->task(step->work, index, worker, err);
    aq_simd_mode_leave(mode);
    return status;
}

static aq_status aq_cholesky_each(aq_context *context, aq_cholesky *work, aq_task_fn task,
                                  size_t count, aq_error *err) {
    aq_cholesky_step step;
    step.work = work;
    step.task = task;
    return aq_parallel_for(context, count > 1 ? work->threads : 1, count,
                           aq_cholesky_task, &step, err);
}

/* Fills and factors the triangle; *good is false when more damping is needed. */
static aq_status aq_cholesky_run(aq_context *context, aq_cholesky *work, bool *good,
                                 aq_error *err) {
    size_t padded = work->factor->padded, panel;
    aq_status status = aq_cholesky_each(context, work, aq_cholesky_gather, work->panels, err);
    *good = true;
    for (work->begin = 0; status == AQ_OK && work->begin < padded; work->begin = work->end) {
        work->end = padded - work->begin < AQ_LAZY ? padded : work->begin + AQ_LAZY;
        aq_simd_mode mode = aq_simd_mode_enter();
        for (panel = work->begin / AQ_PANEL; panel < work->end / AQ_PANEL && *good; panel++) {
            *good = aq_cholesky_panel(work, panel);
        }
        aq_simd_mode_leave(mode);
        if (!*good) {
            return AQ_OK;
        }
        status = aq_cholesky_each(context, work, aq_cholesky_below,
                                  work->panels - work->end / AQ_PANEL, err);
        if (status == AQ_OK) {
            status = aq_cholesky_each(context, work, aq_cholesky_update,
                                      work->panels - work->end / AQ_PANEL, err);
        }
    }
    return status;
}

/* ---- R from L */

/* One strip of R: column `place` of it is column padded − 1 − place of L, upside down. */
static aq_status aq_cholesky_strip(void *user, size_t index, uint32_t worker, aq_error *err) {
    const aq_cholesky *work = (const aq_cholesky *)user;
    const aq_factor *factor = work->factor;
    size_t strip = factor->padded / AQ_STRIP - 1 - index, last = factor->padded - 1, panel, j, i;
    float *out = factor->strips + AQ_STRIP * AQ_STRIP * (strip * (strip + 1) / 2);
    (void)worker;
    (void)err;
    for (j = 0; j < AQ_STRIP; j++) {
        size_t place = AQ_STRIP * strip + j, column = last - place;
        float root = aq_lower_panel(work, column / AQ_PANEL)[AQ_PANEL * column + column % AQ_PANEL];
        factor->pivots[place] = root * root;
        for (panel = column / AQ_PANEL; panel < work->panels; panel++) {
            const float *from = aq_lower_panel(work, panel) + AQ_PANEL * column;
            for (i = 0; i < AQ_PANEL; i++) {
                size_t row = AQ_PANEL * panel + i;
                if (row > column) {
                    out[AQ_STRIP * (last - row) + j] = from[i] / root;
                }
            }
        }
        for (i = place; i < AQ_STRIP * (strip + 1); i++) { /* at and below the diagonal */
            out[AQ_STRIP * i + j] = i == place ? 1.0f : 0.0f;
        }
    }
    return AQ_OK;
}

/* ---- all of it */

AQ_LIB void *aq_align_64(void *pointer) {
    return (unsigned char *)pointer + (64 - (uintptr_t)pointer % 64) % 64;
}

static aq_status aq_factor_allocate(aq_factor *out, aq_error *err) {
    size_t padded = out->padded;
    uint64_t triangle = aq_triangle_floats(padded);
    uint64_t bytes = (triangle + 4 * (uint64_t)padded) * sizeof(float) + 64;
    float *at;
    if (bytes > SIZE_MAX || padded > UINT32_MAX) {
        return aq_fail_memory(err, SIZE_MAX);
    }
    out->memory = aq_alloc(out->context, (size_t)bytes);
    if (!out->memory) {
        return aq_fail_memory(err, (size_t)bytes);
    }
    out->memory_bytes = (size_t)bytes;
    at = (float *)aq_align_64(out->memory);
    out->strips = at;
    out->pivots = at + (size_t)triangle;
    out->added = out->pivots + padded;
    out->diagonal = out->added + padded;
    out->order = (uint32_t *)(void *)(out->diagonal + padded);
    return AQ_OK;
}

AQ_LIB void aq_factor_free(aq_factor *factor) {
    aq_free(factor->context, factor->memory, factor->memory_bytes);
    memset(factor, 0, sizeof *factor);
}

/* The diagonal and the order of the columns; the mean of the squares. */
static double aq_factor_open(aq_factor *out, const float *hessian) {
    double sum = 0.0;
    size_t i;
    for (i = 0; i < out->n; i++) {
        out->diagonal[i] = hessian[i * (out->n + 1)];
        sum += (double)out->diagonal[i];
        out->dead += out->diagonal[i] == 0.0f;
    }
    aq_order_columns(out->diagonal, out->order, (uint32_t *)(void *)out->strips, out->n);
    return sum / (double)out->n;
}

/* What each place gets on its diagonal. A dead column has no part in the output: any diagonal does. */
AQ_SIMD_EXACT static void aq_factor_damp(aq_factor *out, double mean, double damping) {
    AQ_SIMD_EXACT_BODY
    size_t place;
    out->damping = damping;
    for (place = 0; place < out->padded; place++) {
        bool dead = place < out->n && out->diagonal[out->order[place]] == 0.0f;
        out->added[place] = place < out->n ? (float)(damping * mean + (dead ? mean : 0.0)) : 0.0f;
        if (place < out->n && !(out->added[place] > 0.0f)) {
            out->added[place] = 1.0f; /* nothing is ever put in, or almost nothing */
        }
    }
}

AQ_LIB aq_status aq_factor_make(aq_context *context, uint32_t threads, const float *hessian,
                                size_t n, aq_factor *out, aq_error *err) {
    aq_cholesky work;
    aq_status status = aq_hessian_check(hessian, n, err);
    bool good = false;
    uint32_t step;
    double mean, damping = AQ_DAMPING;
    memset(out, 0, sizeof *out);
    out->context = context;
    out->n = n;
    out->padded = (size_t)aq_padded(n);
    size_t bytes = (size_t)aq_triangle_floats(out->padded) * sizeof(float) + 64;
    if (status == AQ_OK) {
        status = aq_factor_allocate(out, err);
    }
    void *memory = status == AQ_OK ? aq_alloc(context, bytes) : NULL;
    if (status == AQ_OK && !memory) {
        status = aq_fail_memory(err, bytes);
    }
    memset(&work, 0, sizeof work);
    if (status == AQ_OK) {
        work.lower = (float *)aq_align_64(memory);
        work.kernels = aq_kernels_of(context);
        work.threads = threads;
        work.hessian = hessian;
        work.factor = out;
        work.panels = out->padded / AQ_PANEL;
        mean = aq_factor_open(out, hessian);
        for (step = 0; status == AQ_OK && !good && step < AQ_DAMPING_STEPS; step++, damping *= 10.0) {
            aq_factor_damp(out, mean, damping);
            work.damping = (float)(damping * mean);
            work.behind = mean > 0.0 ? (float)mean : 1.0f;
            status = aq_cholesky_run(context, &work, &good, err);
        }
        if (status == AQ_OK && !good) {
            status = aq_fail(err, AQ_ERR_QUANTIZATION, "the Hessian is not one of real inputs: no "
                             "damping makes it positive definite; calibrate again");
        }
    }
    if (status == AQ_OK) {
        status = aq_cholesky_each(context, &work, aq_cholesky_strip, out->padded / AQ_STRIP, err);
    }
    aq_free(context, memory, bytes);
    if (status != AQ_OK) {
        aq_factor_free(out);
    }
    return status;
}
