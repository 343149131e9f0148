/* Doubles as text and back, exactly, by big-integer arithmetic: independent of locale, rounding
 * mode and libc, and small. */
#include "text.h"

/* No halfway point between doubles has more significant digits than 767, so that what comes after
 * AQ_DIGITS_KEPT only matters by being zero or not. The limbs hold 10^781 and 5^1111. */
#define AQ_DIGITS_KEPT 780
#define AQ_BIG_LIMBS 84

typedef struct aq_big {
    size_t size; /* limbs in use, the last one not zero */
    uint32_t limb[AQ_BIG_LIMBS];
} aq_big;

static void aq_big_set(aq_big *big, uint64_t value) {
    big->size = 0;
    for (; value; value >>= 32) big->limb[big->size++] = (uint32_t)value;
}

static void aq_big_multiply(aq_big *big, uint32_t factor, uint32_t add) {
    uint64_t carry = add;
    for (size_t i = 0; i < big->size; i++) {
        carry += (uint64_t)big->limb[i] * factor;
        big->limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry) big->limb[big->size++] = (uint32_t)carry;
}

static void aq_big_multiply_5(aq_big *big, unsigned power) {
    for (; power >= 13; power -= 13) aq_big_multiply(big, 1220703125u, 0); /* 5^13 */
    for (; power; power--) aq_big_multiply(big, 5, 0);
}

static void aq_big_shift(aq_big *big, size_t bits) {
    size_t limbs = bits / 32;
    aq_big_multiply(big, (uint32_t)1 << bits % 32, 0);
    if (!limbs || !big->size) return;
    memmove(big->limb + limbs, big->limb, big->size * sizeof(big->limb[0]));
    memset(big->limb, 0, limbs * sizeof(big->limb[0]));
    big->size += limbs;
}

static int aq_big_compare(const aq_big *a, const aq_big *b) {
    if (a->size != b->size) return a->size < b->size ? -1 : 1;
    for (size_t i = a->size; i-- > 0;) {
        if (a->limb[i] != b->limb[i]) return a->limb[i] < b->limb[i] ? -1 : 1;
    }
    return 0;
}

/* a −= b, where a >= b */
static void aq_big_subtract(aq_big *a, const aq_big *b) {
    uint64_t borrow = 0;
    for (size_t i = 0; i < a->size; i++) {
        uint64_t difference = (uint64_t)a->limb[i] - (i < b->size ? b->limb[i] : 0u) - borrow;
        a->limb[i] = (uint32_t)difference;
        borrow = difference >> 63;
    }
    while (a->size && !a->limb[a->size - 1]) a->size--;
}

/* a += b, where a holds b->size limbs and one more */
static void aq_big_add(aq_big *a, const aq_big *b) {
    uint64_t carry = 0;
    for (size_t i = 0; i < b->size || carry; i++) {
        if (i == a->size) a->limb[a->size++] = 0;
        carry += (uint64_t)a->limb[i] + (i < b->size ? b->limb[i] : 0u);
        a->limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

static size_t aq_big_bits(const aq_big *big) {
    if (!big->size) return 0;
    size_t bits = (big->size - 1) * 32;
    for (uint32_t top = big->limb[big->size - 1]; top; top >>= 1) bits++;
    return bits;
}

/* ---- shortest digits of a double (Steele and White 1990, with the reader rounding to even) */

/* The state of the digit generator: value / 10^k = rest / unit, neighbours half-way at margin. */
typedef struct aq_digits {
    aq_big rest, unit, margin; /* margin: below; above it is the same or twice as far */
    bool uneven, even;
} aq_digits;

/* Is value + margin above at or beyond the unit? */
static bool aq_digits_high(const aq_digits *state) {
    aq_big sum = state->rest;
    aq_big_add(&sum, &state->margin);
    if (state->uneven) aq_big_add(&sum, &state->margin);
    int order = aq_big_compare(&sum, &state->unit);
    return state->even ? order >= 0 : order > 0;
}

static bool aq_digits_low(const aq_digits *state) {
    int order = aq_big_compare(&state->rest, &state->margin);
    return state->even ? order <= 0 : order < 0;
}

/* Sets value = mantissa · 2^power up; returns k with 10^(k−1) <= value < 10^k (the neighbour above
 * counting as the value where it decides). */
static int aq_digits_begin(aq_digits *state, uint64_t mantissa, int power) {
    int top = power - 1, k, twos;
    for (uint64_t m = mantissa; m; m >>= 1) top++;
    /* floor(top · log10 2) */
    int64_t scaled = (int64_t)top * 1262611;
    k = (int)((scaled - (scaled < 0 ? 4194303 : 0)) / 4194304) + 1;
    aq_big_set(&state->rest, mantissa);
    aq_big_shift(&state->rest, 2);
    aq_big_set(&state->margin, state->uneven ? 1 : 2);
    aq_big_set(&state->unit, 4);
    if (k >= 0) {
        aq_big_multiply_5(&state->unit, (unsigned)k);
    } else {
        aq_big_multiply_5(&state->rest, (unsigned)-k);
        aq_big_multiply_5(&state->margin, (unsigned)-k);
    }
    twos = power - k;
    if (twos >= 0) {
        aq_big_shift(&state->rest, (size_t)twos);
        aq_big_shift(&state->margin, (size_t)twos);
    } else {
        aq_big_shift(&state->unit, (size_t)-twos);
    }
    while (aq_digits_high(state)) {
        aq_big_multiply(&state->unit, 10, 0);
        k++;
    }
    return k;
}

/* Fills digits[18], returns how many. */
static size_t aq_digits_run(aq_digits *state, char *digits) {
    size_t count = 0;
    for (;;) {
        char digit = '0';
        aq_big_multiply(&state->rest, 10, 0);
        aq_big_multiply(&state->margin, 10, 0);
        for (; aq_big_compare(&state->rest, &state->unit) >= 0; digit++)
            aq_big_subtract(&state->rest, &state->unit);
        bool low = aq_digits_low(state), high = aq_digits_high(state);
        if (low && high) { /* both this digit and the next would do: the nearer one */
            aq_big_multiply(&state->rest, 2, 0);
            int order = aq_big_compare(&state->rest, &state->unit);
            high = order > 0 || (order == 0 && (digit - '0') % 2 != 0);
        }
        if (high) digit++;
        digits[count++] = digit;
        if (low || high) return count;
    }
}

/* digits · 10^(k − count) in the style of Python's repr. */
static size_t aq_digits_print(const char *digits, size_t count, int k, char *buffer) {
    char *out = buffer;
    if (k > 16 || k < -3) {
        int exponent = k - 1;
        *out++ = digits[0];
        if (count > 1) {
            *out++ = '.';
            memcpy(out, digits + 1, count - 1);
            out += count - 1;
        }
        *out++ = 'e';
        *out++ = exponent < 0 ? '-' : '+';
        if (exponent < 0) exponent = -exponent;
        if (exponent >= 100) *out++ = (char)('0' + exponent / 100);
        *out++ = (char)('0' + exponent / 10 % 10);
        *out++ = (char)('0' + exponent % 10);
        return (size_t)(out - buffer);
    }
    int size = (int)count, i = 0;
    if (k <= 0) {
        *out++ = '0';
        *out++ = '.';
        for (; k < 0; k++) *out++ = '0';
    } else {
        for (; i < k; i++) *out++ = i < size ? digits[i] : '0';
        *out++ = '.';
        if (i >= size) *out++ = '0';
    }
    for (; i < size; i++) *out++ = digits[i];
    return (size_t)(out - buffer);
}

AQ_LIB size_t aq_format_double(double value, char buffer[AQ_DOUBLE_TEXT]) {
    uint64_t bits, fraction;
    char digits[20], *out = buffer;
    size_t size;
    memcpy(&bits, &value, sizeof(bits));
    unsigned exponent = (unsigned)(bits >> 52) & 0x7FFu;
    fraction = bits & UINT64_C(0xFFFFFFFFFFFFF);
    if (bits >> 63 && !(exponent == 0x7FF && fraction)) *out++ = '-';
    if (exponent == 0x7FF) {
        memcpy(out, fraction ? "nan" : "inf", 3);
        size = 3;
    } else if (!exponent && !fraction) {
        memcpy(out, "0.0", 3);
        size = 3;
    } else {
        aq_digits state;
        state.even = fraction % 2 == 0;
        state.uneven = !fraction && exponent > 1;
        if (exponent) fraction |= UINT64_C(1) << 52;
        int k = aq_digits_begin(&state, fraction, exponent ? (int)exponent - 1075 : -1074);
        size_t count = aq_digits_run(&state, digits);
        size = aq_digits_print(digits, count, k, out);
    }
    out[size] = 0;
    return (size_t)(out - buffer) + size;
}

/* ---- text to double */

/* Decimal text, taken apart: digits · 10^exponent. */
typedef struct aq_decimal {
    aq_big digits;
    int64_t count; /* digits in it, without leading zeros */
    int64_t exponent;
    bool more; /* a digit that is not zero did not fit */
} aq_decimal;

static bool aq_decimal_digit(const char *text, size_t size, size_t position) {
    return position < size && text[position] >= '0' && text[position] <= '9';
}

/* A run of digits, at least one; each is worth `step` powers of ten less than the one before. */
static bool aq_decimal_run(aq_decimal *decimal, const char *text, size_t size, size_t *position,
                           int step) {
    size_t start = *position;
    for (; aq_decimal_digit(text, size, *position); (*position)++) {
        uint32_t digit = (uint32_t)(text[*position] - '0');
        decimal->exponent -= step;
        if (decimal->count < AQ_DIGITS_KEPT) {
            aq_big_multiply(&decimal->digits, 10, digit);
            if (decimal->digits.size) decimal->count++;
        } else {
            decimal->exponent++;
            if (digit) decimal->more = true;
        }
    }
    return *position > start;
}

static bool aq_decimal_read(aq_decimal *decimal, const char *text, size_t size) {
    size_t position = 0;
    aq_big_set(&decimal->digits, 0);
    decimal->count = decimal->exponent = 0;
    decimal->more = false;
    if (!aq_decimal_run(decimal, text, size, &position, 0)) return false;
    if (position < size && text[position] == '.') {
        position++;
        if (!aq_decimal_run(decimal, text, size, &position, 1)) return false;
    }
    if (position < size && (text[position] == 'e' || text[position] == 'E')) {
        int64_t exponent = 0;
        bool negative;
        position++;
        negative = position < size && text[position] == '-';
        if (negative || (position < size && text[position] == '+')) position++;
        if (!aq_decimal_digit(text, size, position)) return false;
        for (; aq_decimal_digit(text, size, position); position++) {
            /* beyond that no text is long enough to make up for it */
            if (exponent < INT64_C(100000000000000000))
                exponent = exponent * 10 + (text[position] - '0');
        }
        decimal->exponent += negative ? -exponent : exponent;
    }
    return position == size;
}

/* The leading 64 bits of a / b as a fraction 1 <= q / 2^63 < 2; returns the power of two that goes
 * with it. *exact tells whether nothing is left. */
static int aq_big_divide(aq_big *a, aq_big *b, uint64_t *quotient, bool *exact) {
    size_t a_bits = aq_big_bits(a), b_bits = aq_big_bits(b);
    int power = (int)a_bits - (int)b_bits;
    if (a_bits > b_bits)
        aq_big_shift(b, a_bits - b_bits);
    else
        aq_big_shift(a, b_bits - a_bits);
    if (aq_big_compare(a, b) < 0) {
        aq_big_shift(a, 1);
        power--;
    }
    *quotient = 0;
    for (int i = 0; i < 64; i++) {
        *quotient <<= 1;
        if (aq_big_compare(a, b) >= 0) {
            aq_big_subtract(a, b);
            *quotient |= 1;
        }
        aq_big_shift(a, 1);
    }
    *exact = a->size == 0;
    return power;
}

/* q / 2^63 · 2^power to the nearest double, ties to even. */
static uint64_t aq_double_round(uint64_t q, int power, bool exact) {
    unsigned drop = 11;
    uint64_t kept, rest, half;
    if (power > 1023) return UINT64_C(0x7FF) << 52;
    if (power < -1022) drop += (unsigned)(-1022 - power);
    if (drop > 64) return 0;
    kept = drop < 64 ? q >> drop : 0;
    rest = drop < 64 ? q & ((UINT64_C(1) << drop) - 1) : q;
    half = UINT64_C(1) << (drop - 1);
    if (rest > half || (rest == half && (!exact || kept % 2))) kept++;
    /* the leading bit of `kept` adds the last 1 to the exponent, as does a carry */
    return (power < -1022 ? 0 : (uint64_t)(power + 1022) << 52) + kept;
}

AQ_LIB bool aq_parse_double(const char *text, size_t size, double *out) {
    aq_decimal decimal;
    uint64_t bits = 0, quotient;
    size_t sign = size && (text[0] == '-' || text[0] == '+') ? 1 : 0;
    if (!aq_decimal_read(&decimal, text + sign, size - sign)) return false;
    if (decimal.more) {
        aq_big_multiply(&decimal.digits, 10, 1);
        decimal.count++;
        decimal.exponent--;
    }
    int64_t magnitude = decimal.count + decimal.exponent; /* value < 10^magnitude */
    if (decimal.digits.size && magnitude > 310) {
        bits = UINT64_C(0x7FF) << 52;
    } else if (decimal.digits.size && magnitude > -330) {
        aq_big divisor;
        bool exact;
        int exponent = (int)decimal.exponent;
        aq_big_set(&divisor, 1);
        if (exponent > 0)
            aq_big_multiply_5(&decimal.digits, (unsigned)exponent);
        else
            aq_big_multiply_5(&divisor, (unsigned)-exponent);
        int power = aq_big_divide(&decimal.digits, &divisor, &quotient, &exact);
        bits = aq_double_round(quotient, power + exponent, exact);
    }
    if (sign && text[0] == '-') bits |= UINT64_C(1) << 63;
    memcpy(out, &bits, sizeof(*out));
    return true;
}

AQ_LIB bool aq_parse_u64(const char *text, size_t size, uint64_t *out) {
    uint64_t value = 0;
    if (!size) return false;
    for (size_t i = 0; i < size; i++) {
        if (!aq_decimal_digit(text, size, i)) return false;
        uint64_t digit = (uint64_t)(text[i] - '0');
        if (value > (UINT64_MAX - digit) / 10) return false;
        value = value * 10 + digit;
    }
    *out = value;
    return true;
}

#undef AQ_DIGITS_KEPT
#undef AQ_BIG_LIMBS
