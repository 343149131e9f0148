/* Where the tables of src/simd/trellis_tables.c come from.
 *
 *     trellis_tables [BITS STATES]                    what each of them reaches, and what training on from it gives
 *     trellis_tables BITS STATES ROUNDS [SEED]        tables from random ones, e.g. 2 256 400
 *
 * Gaussian weights are coded by the search; what a state stands for is linear in the tables' entries, so
 * they are then solved for least squares; and so on by turns. Each round starts from random tables, or
 * from the best ones moved at random; one that falls behind is given up. The best tables are rounded to
 * integers, and each entry is moved by one as long as that gains. Sequences are open here, so figures lie
 * a little above those of whole tensors, which also store scales.
 *
 * The tables in use are the best of such runs, which were stopped by the clock, so no seed gives them back:
 * with 2 bits and 256 states they reach 11.10 dB, trained on 11.11, and 300 rounds of seed 1 reach 11.08. */
#define ARROWQUANT_IMPLEMENTATION
#define ARROWQUANT_STATIC
#include "../arrowquant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define ROWS 1024u
#define SEQUENCES 256u
#define ENTRIES 48u

static uint64_t random_state;

static double uniform(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return ((double)(random_state >> 11) + 0.5) / 9007199254740992.0;
}

static double gaussian(void) {
    return sqrt(-2.0 * log(uniform())) * cos(6.283185307179586 * uniform());
}

static void seed_random(uint64_t seed) {
    int i;
    random_state = (seed + 1) * UINT64_C(0x9E3779B97F4A7C15);
    for (i = 0; i < 100; i++) {
        (void)uniform();
    }
}

/* ---- a set of tables at work */

typedef struct trainer {
    const struct aq_trellis_kernels *kernels;
    aq_trellis_code code; /* bits, states, mix, deviation; its tables are not looked at */
    double entries[ENTRIES];
    aq_trellis_search search;
    void *memory;
    uint16_t *least;
    uint8_t *choices;
    float *weights;       /* [SEQUENCES][ROWS] */
    int16_t *targets;
    double products[ENTRIES][ENTRIES], cross[ENTRIES]; /* normal equations of the last coding */
} trainer;

static void *take(uint8_t **at, size_t bytes) {
    uint8_t *taken = *at;
    *at += (bytes + 63) / 64 * 64;
    return taken;
}

static void trainer_open(trainer *t, const aq_trellis_code *code) {
    const size_t states = (size_t)1 << code->state_bits, ends = states >> code->bits;
    const double most = code->bits == 4 ? 256.0 : 128.0;
    uint8_t *at;
    size_t i;
    memset(t, 0, sizeof *t);
    t->kernels = aq_simd_trellis(aq_simd_kernels(NULL));
    t->code = *code;
    t->memory = malloc(6 * states + ROWS * ends + 6 * ROWS * SEQUENCES + 1024);
    if (!t->memory) {
        exit(1);
    }
    at = (uint8_t *)t->memory + (64 - (uintptr_t)t->memory % 64) % 64;
    t->search.bits = code->bits;
    t->search.state_bits = code->state_bits;
    t->search.values = (int16_t *)take(&at, 2 * states);
    t->search.costs = (uint16_t *)take(&at, 2 * states);
    t->least = (uint16_t *)take(&at, 2 * ends);
    t->choices = (uint8_t *)take(&at, ROWS * ends);
    t->weights = (float *)take(&at, 4 * ROWS * SEQUENCES);
    t->targets = (int16_t *)take(&at, 2 * ROWS * SEQUENCES);
    seed_random(777); /* the same weights for every run */
    for (i = 0; i < ROWS * SEQUENCES; i++) {
        double x = code->deviation * gaussian(), aim = rint(2.0 * x);
        t->weights[i] = (float)x;
        t->targets[i] = (int16_t)(aim > most ? most : aim < -most ? -most : aim);
    }
}

/* Which entries a state's value is the sum of. */
static void entries_of(const aq_trellis_code *code, uint32_t state, uint32_t out[3]) {
    uint32_t a = state & 15u, b = state >> 4 & 15u, c = state >> 8;
    out[0] = a;
    out[1] = 16 + b;
    out[2] = 32 + (c ^ (code->mix & (a ^ b)));
}

static void set_values(trainer *t) {
    const int most = t->code.bits == 4 ? 2 * 127 : 2 * 63;
    uint32_t state, parts[3];
    for (state = 0; state < 1u << t->code.state_bits; state++) {
        int value;
        entries_of(&t->code, state, parts);
        value = (int)rint(2.0 * (t->entries[parts[0]] + t->entries[parts[1]] + t->entries[parts[2]]));
        value = value > most ? most : value < -most ? -most : value;
        t->search.values[state] = (int16_t)value;
    }
}

/* Codes sequences from `first` on; their ratio of signal to error in dB. */
static double code_some(trainer *t, size_t first, size_t count) {
    const uint32_t low = t->code.state_bits - t->code.bits;
    double power = 0.0, error = 0.0;
    size_t sequence, row, i, k;
    memset(t->products, 0, sizeof t->products);
    memset(t->cross, 0, sizeof t->cross);
    for (sequence = first; sequence < first + count; sequence++) {
        const float *weights = t->weights + sequence % SEQUENCES * ROWS;
        uint32_t end = 0, u;
        memset(t->least, 0, sizeof *t->least << low);
        t->kernels->search(&t->search, t->targets + sequence % SEQUENCES * ROWS, ROWS, t->least,
                           t->choices);
        for (u = 1; u < 1u << low; u++) {
            end = t->least[u] < t->least[end] ? u : end;
        }
        for (row = 0; row < ROWS; row++) {
            uint32_t state = end | (uint32_t)t->choices[(row << low) + end] << low, parts[3];
            double x = (double)weights[row], rest = x - 0.5 * t->search.values[state];
            power += x * x;
            error += rest * rest;
            entries_of(&t->code, state, parts);
            for (i = 0; i < 3; i++) {
                t->cross[parts[i]] += x;
                for (k = 0; k < 3; k++) {
                    t->products[parts[i]][parts[k]] += 1.0;
                }
            }
            end = state >> t->code.bits;
        }
    }
    return 10.0 * log10(power / error);
}

/* The entries of least squares for the last coding, by elimination; each table's mean is 0, but for what
 * they share. */
static void solve(trainer *t) {
    static double system[ENTRIES][ENTRIES + 1];
    double total = 0.0;
    size_t i, j, k;
    for (i = 0; i < ENTRIES; i++) {
        memcpy(system[i], t->products[i], sizeof t->products[i]);
        system[i][i] += 1e-2;
        system[i][ENTRIES] = t->cross[i];
    }
    for (i = 0; i < ENTRIES; i++) {
        double pivot = system[i][i];
        for (j = i; j <= ENTRIES; j++) {
            system[i][j] /= pivot;
        }
        for (k = 0; k < ENTRIES; k++) {
            double factor = system[k][i];
            for (j = i; k != i && j <= ENTRIES; j++) {
                system[k][j] -= factor * system[i][j];
            }
        }
    }
    for (k = 0; k < 3; k++) {
        double mean = 0.0;
        for (j = 0; j < 16; j++) {
            mean += system[16 * k + j][ENTRIES] / 16.0;
        }
        for (j = 0; j < 16; j++) {
            t->entries[16 * k + j] = system[16 * k + j][ENTRIES] - mean;
        }
        total += mean;
    }
    for (i = 0; i < ENTRIES; i++) {
        t->entries[i] += total / 3.0;
    }
}

/* ---- training */

/* One round from the entries there are; false when it falls behind `best`. */
static bool train_round(trainer *t, size_t round, double best, double *found) {
    const size_t some = t->code.state_bits <= 8 ? 16 : t->code.state_bits <= 10 ? 12 : 8;
    size_t turn;
    set_values(t);
    for (turn = 0; turn < 12; turn++) {
        *found = code_some(t, 5 * round + turn * some, some);
        solve(t);
        set_values(t);
        if ((turn == 3 && *found < best - 0.5) || (turn == 7 && *found < best - 0.2)) {
            return false;
        }
    }
    for (turn = 0; turn < 5 && *found >= best - 0.12; turn++) {
        *found = code_some(t, 48 * turn, 48);
        solve(t);
        set_values(t);
    }
    *found = code_some(t, 0, 96);
    return *found > best;
}

static void train(trainer *t, size_t rounds) {
    double best_entries[ENTRIES], best = 0.0, found;
    size_t round, i;
    for (round = 0; round < rounds; round++) {
        bool fresh = best <= 0.0 || uniform() < (3 * round < rounds ? 0.6 : 0.1);
        double step = 0.5 * uniform() * uniform() * (double)t->code.deviation;
        for (i = 0; i < ENTRIES; i++) {
            t->entries[i] = fresh ? 0.67 * (double)t->code.deviation * gaussian()
                                  : best_entries[i] + step * gaussian();
        }
        if (train_round(t, round, best, &found)) {
            best = found;
            memcpy(best_entries, t->entries, sizeof best_entries);
        }
    }
    memcpy(t->entries, best_entries, sizeof best_entries);
    set_values(t);
}

/* Integers, and each moved by one as long as that gains on a quarter of the sequences. */
static double climb(trainer *t) {
    double best, found;
    bool gain = true;
    size_t i;
    int step;
    for (i = 0; i < ENTRIES; i++) {
        t->entries[i] = rint(t->entries[i]);
    }
    set_values(t);
    best = code_some(t, 0, SEQUENCES / 4);
    while (gain) {
        gain = false;
        for (i = 0; i < ENTRIES; i++) {
            for (step = -1; step <= 1; step += 2) {
                t->entries[i] += step;
                set_values(t);
                found = code_some(t, 0, SEQUENCES / 4);
                gain = gain || found > best + 1e-5;
                if (found > best + 1e-5) best = found;
                else t->entries[i] -= step;
            }
        }
    }
    set_values(t);
    return code_some(t, 0, SEQUENCES);
}

static void print_tables(const trainer *t) {
    size_t i;
    for (i = 0; i < ENTRIES; i++) {
        printf("%s%d%s", i % 16 ? ", " : "    {", (int)t->entries[i], i % 16 == 15 ? "},\n" : "");
    }
}

/* The tables in use: as they are, and trained on from there. */
static void check(uint32_t bits, uint32_t states) {
    trainer t;
    double now, more;
    size_t i;
    trainer_open(&t, aq_trellis_code_of(bits, states));
    for (i = 0; i < ENTRIES; i++) {
        t.entries[i] = t.code.table[i / 16][i % 16];
    }
    set_values(&t);
    now = code_some(&t, 0, SEQUENCES);
    for (i = 0; i < 10; i++) {
        solve(&t);
        set_values(&t);
        (void)code_some(&t, 0, SEQUENCES);
    }
    more = climb(&t);
    printf("%u bits, %4u states: %.3f dB, trained on %.3f dB\n", bits, states, now, more);
    fflush(stdout);
    free(t.memory);
}

int main(int argc, char **argv) {
    const aq_trellis_code *code;
    uint32_t bits, states;
    trainer t;
    if (argc < 3) {
        for (bits = 2; bits <= 4; bits++) {
            for (states = 256; states <= 4096; states *= 4) {
                check(bits, states);
            }
        }
        return 0;
    }
    code = aq_trellis_code_of((uint32_t)atoi(argv[1]), (uint32_t)atoi(argv[2]));
    if (!code) {
        fprintf(stderr, "2, 3 or 4 bits; 256, 1024 or 4096 states\n");
        return 2;
    }
    if (argc < 4) {
        check(code->bits, 1u << code->state_bits);
        return 0;
    }
    trainer_open(&t, code);
    seed_random(argc > 4 ? strtoull(argv[4], NULL, 10) : 1);
    train(&t, (size_t)atoi(argv[3]));
    printf("%.3f dB\n", climb(&t));
    print_tables(&t);
    free(t.memory);
    return 0;
}
