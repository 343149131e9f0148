/* Lines in, lines out: "f BITS" formats the double with these 16 hexadecimal digits, "p TEXT"
 * parses and answers its bits, or "refused". */
#include "test.h"

static void answer_format(const char *text) {
    char buffer[AQ_DOUBLE_TEXT];
    unsigned long long bits = strtoull(text, NULL, 16);
    double value;
    memcpy(&value, &bits, sizeof(value));
    size_t size = aq_format_double(value, buffer);
    if (size != strlen(buffer) || size >= AQ_DOUBLE_TEXT) test_broken = 1;
    puts(buffer);
}

static void answer_parse(const char *text) {
    unsigned long long bits;
    double value;
    size_t size = strlen(text);
    char *exact = (char *)malloc(size ? size : 1); /* so that a read past the end is seen */
    if (!exact) abort();
    memcpy(exact, text, size);
    if (aq_parse_double(exact, size, &value)) {
        memcpy(&bits, &value, sizeof(bits));
        printf("%016llx\n", bits);
    } else {
        puts("refused");
    }
    free(exact);
}

int main(void) {
    static char line[1 << 16];
    while (fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (line[0] == 'f')
            answer_format(line + 2);
        else
            answer_parse(line + 2);
    }
    return test_broken;
}
