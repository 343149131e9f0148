/* The multiple-choice knapsack: bits by layer under a budget (Kellerer, Pferschy and Pisinger, "Knapsack
 * Problems", chapter 11).
 *
 * A Lagrange multiplier, a price of a byte, is found by bisection; it gives a feasible choice and, for
 * any partial choice, a lower bound of what it can still become. Then items are added one by one to a
 * list of partial choices, of which those that are larger and worse than another fall out, and those
 * whose bound is no better than the best choice known. That leaves few. Should there be more than fit
 * the list, those of the best bounds stay, and the best bound that left is what remains unproven. */
#include "knapsack.h"

#include "../simd/simd.h"

#define AQ_STATES_MAX 8192u
#define AQ_STATE_LISTS (1u + 4u + 4u + 2u * AQ_OPTIONS) /* of aq_state_room */
#define AQ_PRICE_STEPS 200u

/* A partial choice, and the one it was made from. */
typedef struct aq_state {
    uint64_t bytes;
    double error, bound;
    uint32_t parent;
    uint8_t option;
} aq_state;

typedef struct aq_trace {
    uint32_t parent;
    uint8_t option;
} aq_trace;

typedef struct aq_sack {
    const aq_option *options;
    size_t items;
    uint64_t budget;
    uint64_t *least;  /* [items + 1] bytes that items i … need at least */
    double *rest;     /* [items + 1] Σ over items i … of the least error + price·bytes */
    double price;
    double best;      /* error of the choice in `picked` */
    uint8_t *picked;
    double lost;      /* the least bound that fell out of a full list */
} aq_sack;

/* ---- prices */

/* The option of least error + price·bytes; of equals the smaller one. */
AQ_SIMD_EXACT static uint8_t aq_sack_option(const aq_option *options, double price,
                                            double *value) {
    AQ_SIMD_EXACT_BODY
    uint8_t best = 0;
    unsigned i;
    *value = -1.0;
    for (i = 0; i < AQ_OPTIONS; i++) {
        double cost;
        if (options[i].bytes == AQ_NO_OPTION) continue;
        cost = price * (double)options[i].bytes;
        cost = cost + options[i].error;
        if (*value < 0.0 || cost < *value ||
            (!(cost > *value) && options[i].bytes < options[best].bytes)) {
            *value = cost;
            best = (uint8_t)i;
        }
    }
    return best;
}

/* What all items take at this price: bytes, error, and the options if wanted. */
static uint64_t aq_sack_at(const aq_sack *sack, double price, uint8_t *picked, double *error) {
    uint64_t bytes = 0;
    size_t i;
    *error = 0.0;
    for (i = 0; i < sack->items; i++) {
        const aq_option *options = sack->options + i * AQ_OPTIONS;
        double value;
        uint8_t option = aq_sack_option(options, price, &value);
        bytes += options[option].bytes;
        *error += options[option].error;
        if (picked) picked[i] = option;
    }
    return bytes;
}

/* The lowest price at which everything fits, nearly; its choice is the first that is known. */
AQ_SIMD_EXACT static void aq_sack_price(aq_sack *sack) {
    AQ_SIMD_EXACT_BODY
    double low = 0.0, high = 1.0, error;
    unsigned step;
    if (aq_sack_at(sack, 0.0, sack->picked, &sack->best) <= sack->budget) {
        sack->price = 0.0;
        return;
    }
    for (step = 0; step < 1100u && aq_sack_at(sack, high, NULL, &error) > sack->budget; step++) {
        low = high;
        high *= 2.0;
    }
    for (step = 0; step < AQ_PRICE_STEPS; step++) {
        double middle = low + 0.5 * (high - low);
        if (aq_sack_at(sack, middle, NULL, &error) <= sack->budget) high = middle;
        else low = middle;
    }
    sack->price = high;
    (void)aq_sack_at(sack, high, sack->picked, &sack->best);
}

/* Spends what is left on the option that gains most, again and again. */
static void aq_sack_fill(aq_sack *sack) {
    uint64_t used = 0;
    size_t i;
    for (i = 0; i < sack->items; i++) used += sack->options[i * AQ_OPTIONS + sack->picked[i]].bytes;
    for (;;) {
        double gain = 0.0;
        size_t item = 0;
        uint8_t option = 0;
        for (i = 0; i < sack->items; i++) {
            const aq_option *options = sack->options + i * AQ_OPTIONS, *now;
            unsigned o;
            now = &options[sack->picked[i]];
            for (o = 0; o < AQ_OPTIONS; o++) {
                if (options[o].bytes == AQ_NO_OPTION || options[o].bytes > now->bytes +
                    (sack->budget - used) || !(now->error - options[o].error > gain))
                    continue;
                gain = now->error - options[o].error;
                item = i;
                option = (uint8_t)o;
            }
        }
        if (!(gain > 0.0)) break;
        used -= sack->options[item * AQ_OPTIONS + sack->picked[item]].bytes;
        sack->picked[item] = option;
        used += sack->options[item * AQ_OPTIONS + option].bytes;
    }
    sack->best = 0.0;
    for (i = 0; i < sack->items; i++)
        sack->best += sack->options[i * AQ_OPTIONS + sack->picked[i]].error;
}

/* ---- partial choices */

static int aq_state_order(const aq_state *a, const aq_state *b) {
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1;
    return a->error < b->error ? -1 : a->error > b->error;
}

/* Two sorted runs into one. */
static void aq_state_merge(const aq_state *a, size_t a_count, const aq_state *b, size_t b_count,
                           aq_state *out) {
    size_t i = 0, j = 0;
    while (i < a_count || j < b_count) {
        if (j == b_count || (i < a_count && aq_state_order(&a[i], &b[j]) <= 0)) *out++ = a[i++];
        else *out++ = b[j++];
    }
}

/* Each partial choice with one more option, as far as it may lead to something better. */
AQ_SIMD_EXACT static size_t aq_state_extend(const aq_sack *sack, const aq_state *from,
                                            size_t count, size_t item, uint8_t option,
                                            aq_state *out) {
    AQ_SIMD_EXACT_BODY
    const aq_option *with = sack->options + item * AQ_OPTIONS + option;
    size_t i, made = 0;
    if (with->bytes == AQ_NO_OPTION) return 0;
    for (i = 0; i < count; i++) {
        aq_state *to = &out[made];
        double left, paid;
        to->bytes = from[i].bytes + with->bytes;
        if (to->bytes > sack->budget || sack->budget - to->bytes < sack->least[item + 1]) continue;
        to->error = from[i].error + with->error;
        left = (double)(sack->budget - to->bytes);
        paid = sack->price * left;
        to->bound = (to->error + sack->rest[item + 1]) - paid;
        to->bound = to->bound > to->error ? to->bound : to->error;
        to->parent = (uint32_t)i;
        to->option = option;
        made += to->bound < sack->best;
    }
    return made;
}

/* Drops what is no smaller and no better than one before it. */
static size_t aq_state_thin(aq_state *states, size_t count) {
    size_t i, kept = 0;
    for (i = 0; i < count; i++) {
        if (!kept || states[i].error < states[kept - 1].error) states[kept++] = states[i];
    }
    return kept;
}

/* Of too many, those of the best bounds; the bound below which they lie is found by bisection. */
AQ_SIMD_EXACT static size_t aq_state_cut(aq_sack *sack, aq_state *states, size_t count) {
    AQ_SIMD_EXACT_BODY
    double low = 0.0, high = sack->best;
    size_t i, kept = 0;
    unsigned step;
    if (count <= AQ_STATES_MAX) return count;
    for (step = 0; step < 100u; step++) {
        double middle = low + 0.5 * (high - low);
        size_t below = 0;
        for (i = 0; i < count; i++) below += states[i].bound < middle;
        if (below <= AQ_STATES_MAX) low = middle;
        else high = middle;
    }
    for (i = 0; i < count; i++) {
        if (states[i].bound < low) states[kept++] = states[i];
        else if (states[i].bound < sack->lost) sack->lost = states[i].bound;
    }
    return kept;
}

/* Room for the lists: the one at work, and those of all options before they are one. */
typedef struct aq_state_room {
    aq_state *now, *spare, *four, *half, *options;
} aq_state_room;

static size_t aq_state_step(aq_sack *sack, aq_state_room *room, size_t count, size_t item) {
    aq_state *parts[AQ_OPTIONS];
    size_t counts[AQ_OPTIONS], all;
    uint8_t option;
    for (option = 0; option < AQ_OPTIONS; option++) {
        parts[option] = room->options + option * (size_t)AQ_STATES_MAX;
        counts[option] = aq_state_extend(sack, room->now, count, item, option, parts[option]);
    }
    aq_state_merge(parts[0], counts[0], parts[1], counts[1], room->half);
    aq_state_merge(parts[2], counts[2], parts[3], counts[3], room->half + 2 * AQ_STATES_MAX);
    all = counts[0] + counts[1] + counts[2] + counts[3];
    aq_state_merge(room->half, counts[0] + counts[1], room->half + 2 * AQ_STATES_MAX,
                   counts[2] + counts[3], room->four);
    aq_state_merge(room->four, all, parts[4], counts[4], room->spare);
    all = aq_state_thin(room->spare, all + counts[4]);
    all = aq_state_cut(sack, room->spare, all);
    memcpy(room->now, room->spare, all * sizeof(aq_state));
    return all;
}

/* All items, then the best way back. */
static aq_status aq_sack_search(aq_sack *sack, aq_arena *arena, aq_error *err) {
    size_t bytes = (sack->items + 1) * sizeof(aq_trace *), count = 1, item, i, best = 0;
    aq_trace **traces = (aq_trace **)aq_arena_alloc(arena, bytes);
    aq_state *states = (aq_state *)aq_arena_alloc(arena, AQ_STATE_LISTS * (size_t)AQ_STATES_MAX *
                                                             sizeof(aq_state));
    aq_state_room room;
    if (!traces || !states) return aq_fail_memory(err, AQ_STATE_LISTS * AQ_STATES_MAX * sizeof(aq_state));
    room.now = states;
    room.spare = states + AQ_STATES_MAX;
    room.four = room.spare + AQ_OPTIONS * AQ_STATES_MAX;
    room.half = room.four + 4 * AQ_STATES_MAX;
    room.options = room.half + 4 * AQ_STATES_MAX;
    for (item = 0; item < sack->items && count; item++) {
        count = aq_state_step(sack, &room, count, item);
        traces[item] = (aq_trace *)aq_arena_alloc(arena, (count + 1) * sizeof(aq_trace));
        if (!traces[item]) return aq_fail_memory(err, count * sizeof(aq_trace));
        for (i = 0; i < count; i++) {
            traces[item][i].parent = room.now[i].parent;
            traces[item][i].option = room.now[i].option;
        }
    }
    if (!count) return AQ_OK; /* nothing beats what is known */
    for (i = 1; i < count; i++) best = room.now[i].error < room.now[best].error ? i : best;
    sack->best = room.now[best].error;
    for (item = sack->items; item-- > 0;) {
        sack->picked[item] = traces[item][best].option;
        best = traces[item][best].parent;
    }
    return AQ_OK;
}

/* ---- the whole */

static aq_status aq_sack_open(aq_sack *sack, aq_arena *arena, aq_error *err) {
    size_t i, bytes = (sack->items + 1) * sizeof(uint64_t);
    unsigned o;
    sack->least = (uint64_t *)aq_arena_alloc(arena, bytes);
    sack->rest = (double *)aq_arena_alloc(arena, bytes);
    if (!sack->least || !sack->rest) return aq_fail_memory(err, 2 * bytes);
    for (i = sack->items; i-- > 0;) {
        uint64_t least = AQ_NO_OPTION;
        for (o = 0; o < AQ_OPTIONS; o++) {
            uint64_t size = sack->options[i * AQ_OPTIONS + o].bytes;
            least = size < least ? size : least;
        }
        if (least == AQ_NO_OPTION || !aq_add_u64(sack->least[i + 1], least, &sack->least[i]))
            return aq_fail(err, AQ_ERR_CONFIGURATION, "item %zu of the budget has no option", i);
    }
    if (sack->least[0] <= sack->budget) return AQ_OK;
    return aq_fail(err, AQ_ERR_CONFIGURATION, "the budget is %llu bytes, the smallest choice takes "
                   "%llu", (unsigned long long)sack->budget, (unsigned long long)sack->least[0]);
}

AQ_LIB aq_status aq_knapsack(const aq_context *context, const aq_option *options, size_t items,
                             uint64_t budget, uint8_t *picked, double *error, double *bound,
                             aq_error *err) {
    aq_arena arena;
    aq_sack sack;
    size_t i;
    memset(&sack, 0, sizeof sack);
    sack.options = options;
    sack.items = items;
    sack.budget = budget;
    sack.picked = picked;
    aq_arena_init(&arena, context);
    aq_status status = aq_sack_open(&sack, &arena, err);
    if (status == AQ_OK && items) {
        aq_sack_price(&sack);
        aq_sack_fill(&sack);
        for (i = items; i-- > 0;) {
            double value;
            (void)aq_sack_option(options + i * AQ_OPTIONS, sack.price, &value);
            sack.rest[i] = sack.rest[i + 1] + value;
        }
        sack.lost = sack.best;
        status = aq_sack_search(&sack, &arena, err);
    }
    if (status == AQ_OK) {
        *error = sack.best;
        *bound = sack.lost < sack.best ? sack.lost : sack.best;
    }
    aq_arena_free(&arena);
    return status;
}

#undef AQ_STATES_MAX
#undef AQ_STATE_LISTS
#undef AQ_PRICE_STEPS
