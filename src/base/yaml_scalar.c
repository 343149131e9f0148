/* What an unquoted YAML 1.1 scalar means, by the rules of PyYAML's safe loader. */
#include "yaml.h"

#include "text.h"

#include <math.h>

#define AQ_YAML_NUMBER_SIZE 400u /* longer numbers are refused: no allocation here */
#define AQ_YAML_SEXAGESIMAL_PARTS 9u /* 60^8 and its products are still exact */

static bool aq_yaml_is_digit(char c) { return c >= '0' && c <= '9'; }

static bool aq_yaml_is_word(const aq_yaml_node *node, const char *const *words, size_t count) {
    size_t i;
    for (i = 0; i < count; i++)
        if (aq_text_equal(node->text, node->size, words[i])) return true;
    return false;
}

/* The characters of [0-9_] that begin at `from`. */
static size_t aq_yaml_digit_run(const char *text, size_t size, size_t from) {
    size_t i = from;
    while (i < size && (aq_yaml_is_digit(text[i]) || text[i] == '_')) i++;
    return i - from;
}

static size_t aq_yaml_count_digits(const char *text, size_t size, size_t from, size_t most) {
    size_t i = from;
    while (i < size && i - from < most && aq_yaml_is_digit(text[i])) i++;
    return i - from;
}

static bool aq_yaml_is_char(const char *text, size_t size, size_t at, const char *set) {
    return at < size && text[at] != '\0' && strchr(set, text[at]) != NULL;
}

/* Z, or a sign with one or two digits and perhaps :dd, up to the end. */
static bool aq_yaml_is_zone(const char *text, size_t size, size_t at) {
    size_t digits;
    while (aq_yaml_is_char(text, size, at, " \t")) at++;
    if (at == size) return true;
    if (text[at] == 'Z') return at + 1 == size;
    if (!aq_yaml_is_char(text, size, at, "+-")) return false;
    digits = aq_yaml_count_digits(text, size, at + 1, 2);
    at += 1 + digits;
    if (digits == 0 || at == size) return digits != 0;
    return text[at] == ':' && aq_yaml_count_digits(text, size, at + 1, 3) == 2 && at + 3 == size;
}

/* 2024-01-31, or a date and a time of day with optional fraction and zone. */
static bool aq_yaml_is_timestamp(const char *text, size_t size) {
    size_t at = 5, month, day, digits;
    if (aq_yaml_count_digits(text, size, 0, 5) != 4 || !aq_yaml_is_char(text, size, 4, "-"))
        return false;
    month = aq_yaml_count_digits(text, size, at, 2);
    at += month;
    if (month == 0 || !aq_yaml_is_char(text, size, at, "-")) return false;
    day = aq_yaml_count_digits(text, size, at + 1, 2);
    at += 1 + day;
    if (day == 0) return false;
    if (at == size) return month == 2 && day == 2;
    if (aq_yaml_is_char(text, size, at, "Tt")) {
        at++;
    } else {
        if (!aq_yaml_is_char(text, size, at, " \t")) return false;
        while (aq_yaml_is_char(text, size, at, " \t")) at++;
    }
    digits = aq_yaml_count_digits(text, size, at, 2);
    at += digits;
    if (digits == 0 || !aq_yaml_is_char(text, size, at, ":")) return false;
    if (aq_yaml_count_digits(text, size, at + 1, 2) != 2) return false;
    if (!aq_yaml_is_char(text, size, at + 3, ":")) return false;
    if (aq_yaml_count_digits(text, size, at + 4, 2) != 2) return false;
    at += 6;
    if (aq_yaml_is_char(text, size, at, ".")) {
        at++;
        while (at < size && aq_yaml_is_digit(text[at])) at++;
    }
    return aq_yaml_is_zone(text, size, at);
}

/* The shape of a decimal number: sign, digits, groups of base 60, fraction, exponent. */
typedef struct aq_yaml_shape {
    size_t start;  /* after the sign */
    size_t groups; /* :dd parts */
    bool point, exponent, whole; /* whole: the scalar is nothing else */
} aq_yaml_shape;

static aq_yaml_shape aq_yaml_shape_of(const char *text, size_t size) {
    aq_yaml_shape shape;
    size_t at = aq_yaml_is_char(text, size, 0, "+-") ? 1u : 0u, digits;
    memset(&shape, 0, sizeof shape);
    shape.start = at;
    if (at < size && text[at] == '.') {
        /* PyYAML reads .5 as a number, but -.5 as text */
        if (at != 0 || at + 1 >= size || !aq_yaml_is_digit(text[at + 1])) return shape;
    } else {
        if (at >= size || !aq_yaml_is_digit(text[at])) return shape;
        at += aq_yaml_digit_run(text, size, at);
        while (aq_yaml_is_char(text, size, at, ":")) {
            digits = aq_yaml_count_digits(text, size, at + 1, 2);
            if (digits == 0 || (digits == 2 && text[at + 1] > '5')) return shape;
            at += 1 + digits;
            shape.groups++;
        }
    }
    if (aq_yaml_is_char(text, size, at, ".")) {
        shape.point = true;
        at += 1 + aq_yaml_digit_run(text, size, at + 1);
        if (aq_yaml_is_char(text, size, at, "eE") && aq_yaml_is_char(text, size, at + 1, "+-")) {
            digits = aq_yaml_count_digits(text, size, at + 2, size);
            shape.exponent = digits != 0;
            at += digits != 0 ? 2 + digits : 0;
        }
    }
    shape.whole = at == size && !(shape.exponent && shape.groups != 0);
    return shape;
}

static unsigned aq_yaml_digit_value(char c) {
    if (aq_yaml_is_digit(c)) return (unsigned)(c - '0');
    return (unsigned)((c | 0x20) - 'a') + 10u;
}

/* Reads all of `text` as digits of `base`, skipping '_'; "1:30" goes on in base 60. */
static const char *aq_yaml_read_int(aq_yaml_node *node, size_t from, unsigned base) {
    uint64_t value = 0, part = 0;
    size_t i, digits = 0, groups = 0;
    for (i = from; i < node->size; i++) {
        char c = node->text[i];
        if (c == '_') continue;
        if (c == ':') {
            value = groups++ == 0 ? part : value;
            part = 0;
            if (!aq_mul_u64(value, 60, &value)) return "an integer beyond 64 bits";
            continue;
        }
        digits++;
        if (!aq_mul_u64(part, base, &part) || !aq_add_u64(part, aq_yaml_digit_value(c), &part))
            return "an integer beyond 64 bits";
        if (groups != 0 && (i + 1 == node->size || node->text[i + 1] == ':') &&
            !aq_add_u64(value, part, &value))
            return "an integer beyond 64 bits";
    }
    if (digits == 0) return "a number without digits";
    node->type = AQ_YAML_INT;
    node->magnitude = groups == 0 ? part : value;
    node->negative = node->text[0] == '-' && node->magnitude != 0;
    node->number = (double)node->magnitude;
    if (node->negative) node->number = -node->number;
    return NULL;
}

/* Digits without '_' from `from` to `end`, with a digit on both sides of the point. */
static bool aq_yaml_read_decimal(const char *text, size_t from, size_t end, double *out) {
    char digits[AQ_YAML_NUMBER_SIZE + 4];
    size_t i, size = 0;
    bool fraction = false;
    if (from < end && text[from] == '.') digits[size++] = '0';
    for (i = from; i < end; i++) {
        if (text[i] == '_') continue;
        if (fraction && !aq_yaml_is_digit(text[i])) digits[size++] = '0';
        fraction = text[i] == '.';
        digits[size++] = text[i];
    }
    if (fraction) digits[size++] = '0';
    return aq_parse_double(digits, size, out);
}

static const char *aq_yaml_read_float(aq_yaml_node *node, const aq_yaml_shape *shape) {
    size_t end = node->size, start = node->size, parts = 0;
    double base = 1.0, part;
    volatile double sum = 0.0, product; /* no contraction into a fused multiply-add */
    if (node->size > AQ_YAML_NUMBER_SIZE) return "a number of more than 400 characters";
    if (shape->groups >= AQ_YAML_SEXAGESIMAL_PARTS) return "a number with too many ':' parts";
    if (shape->groups == 0) {
        if (!aq_yaml_read_decimal(node->text, shape->start, end, &part)) return "not a number";
        sum = part;
    } else {
        for (; parts <= shape->groups; parts++) { /* from the last part, as PyYAML adds them */
            while (start > shape->start && node->text[start - 1] != ':') start--;
            if (!aq_yaml_read_decimal(node->text, start, end, &part)) return "not a number";
            product = part * base;
            sum = sum + product;
            base *= 60.0;
            end = start > 0 ? start - 1 : 0;
            start = end;
        }
    }
    node->type = AQ_YAML_FLOAT;
    node->number = node->text[0] == '-' ? -sum : sum;
    return NULL;
}

static bool aq_yaml_all_of(const char *text, size_t size, size_t from, const char *set) {
    size_t i;
    for (i = from; i < size; i++)
        if (!aq_yaml_is_char(text, size, i, set)) return false;
    return from < size;
}

/* A scalar that begins with a digit, a sign or a point; stays a STRING when it is no number. */
static const char *aq_yaml_resolve_number(aq_yaml_node *node) {
    static const char *const infinities[] = {".inf", ".Inf", ".INF", "+.inf", "+.Inf",
                                             "+.INF", "-.inf", "-.Inf", "-.INF"};
    static const char *const nans[] = {".nan", ".NaN", ".NAN"};
    const char *text = node->text;
    size_t size = node->size, at;
    aq_yaml_shape shape;
    if (aq_yaml_is_word(node, infinities, sizeof infinities / sizeof infinities[0])) {
        node->type = AQ_YAML_FLOAT;
        node->number = text[0] == '-' ? -(double)INFINITY : (double)INFINITY;
        return NULL;
    }
    if (aq_yaml_is_word(node, nans, sizeof nans / sizeof nans[0])) {
        node->type = AQ_YAML_FLOAT;
        node->number = (double)NAN;
        return NULL;
    }
    if (aq_yaml_is_timestamp(text, size))
        return "a timestamp, which is not supported; quote it if it is meant as text";
    shape = aq_yaml_shape_of(text, size);
    at = shape.start;
    if (at + 1 < size && text[at] == '0') {
        if (text[at + 1] == 'b' && aq_yaml_all_of(text, size, at + 2, "01_"))
            return aq_yaml_read_int(node, at + 2, 2);
        if (text[at + 1] == 'x' && aq_yaml_all_of(text, size, at + 2, "0123456789abcdefABCDEF_"))
            return aq_yaml_read_int(node, at + 2, 16);
        if (aq_yaml_all_of(text, size, at + 1, "01234567_"))
            return aq_yaml_read_int(node, at, 8);
    }
    if (!shape.whole) return NULL;
    if (shape.point) return aq_yaml_read_float(node, &shape);
    if (text[at] == '0' && at + 1 < size) return NULL; /* 08 and 0:30 are text */
    return aq_yaml_read_int(node, at, 10);
}

/* Fills type and value from node->text and ->size. NULL, or why the scalar is refused. */
AQ_LIB const char *aq_yaml_resolve(aq_yaml_node *node) {
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL"};
    static const char *const yes[] = {"yes", "Yes", "YES", "true", "True",
                                      "TRUE", "on", "On", "ON"};
    static const char *const no[] = {"no", "No", "NO", "false", "False",
                                     "FALSE", "off", "Off", "OFF"};
    node->type = AQ_YAML_STRING;
    if (aq_yaml_is_word(node, nulls, sizeof nulls / sizeof nulls[0])) {
        node->type = AQ_YAML_NULL;
        return NULL;
    }
    node->boolean = aq_yaml_is_word(node, yes, sizeof yes / sizeof yes[0]);
    if (node->boolean || aq_yaml_is_word(node, no, sizeof no / sizeof no[0])) {
        node->type = AQ_YAML_BOOL;
        return NULL;
    }
    if (aq_text_equal(node->text, node->size, "<<"))
        return "a merge key, which is not supported; write the keys out";
    if (aq_text_equal(node->text, node->size, "="))
        return "a lone '=', which YAML reserves; quote it";
    if (aq_yaml_is_char(node->text, node->size, 0, "+-.0123456789"))
        return aq_yaml_resolve_number(node);
    return NULL;
}

#undef AQ_YAML_NUMBER_SIZE
#undef AQ_YAML_SEXAGESIMAL_PARTS
