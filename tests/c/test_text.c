/* The builder, UTF-8, globs, edit distance, numbers. */
#include "test.h"

static size_t allowed; /* allocations until one fails */

static void *limited_resize(void *user, void *pointer, size_t old_size, size_t new_size) {
    (void)user;
    (void)old_size;
    if (!new_size) {
        free(pointer);
        return NULL;
    }
    if (!allowed) return NULL;
    allowed--;
    return realloc(pointer, new_size);
}

TEST(builder_grows) {
    aq_builder builder;
    aq_error err;
    char *text;
    size_t size, expected = 0;
    aq_builder_init(&builder, NULL);
    for (int i = 0; i < 3000; i++) {
        aq_append_format(&builder, "%d,", i);
        expected += (size_t)aq_format(NULL, 0, "%d,", i);
    }
    aq_append(&builder, NULL, 0);
    aq_append_string(&builder, "end");
    aq_append_double(&builder, 0.1);
    CHECK_STATUS(aq_builder_finish(&builder, &text, &size, &err), AQ_OK);
    CHECK(size == expected + 6 && strlen(text) == size);
    CHECK(aq_ends_with(text, "2998,2999,end0.1"));
    aq_text_free(NULL, text, size);
}

TEST(builder_fails_at_the_end) {
    aq_context context;
    aq_error err;
    char *text;
    size_t size;
    memset(&context, 0, sizeof(context));
    context.allocator.resize = limited_resize;
    for (size_t limit = 0; limit < 100; limit++) {
        aq_builder builder;
        allowed = limit;
        aq_builder_init(&builder, &context);
        for (int i = 0; i < 500; i++) aq_append_string(&builder, "hello");
        aq_append_json_string(&builder, "\x01", 1);
        aq_status status = aq_builder_finish(&builder, &text, &size, &err);
        CHECK(status == AQ_OK || status == AQ_ERR_OUT_OF_MEMORY);
        CHECK(builder.data == NULL);
        if (limit == 0) CHECK(status == AQ_ERR_OUT_OF_MEMORY);
        if (status != AQ_OK) continue;
        CHECK(size == 2508);
        aq_text_free(&context, text, size);
        break;
    }
    aq_builder empty;
    allowed = 10;
    aq_builder_init(&empty, &context);
    CHECK_STATUS(aq_builder_finish(&empty, &text, &size, &err), AQ_OK);
    CHECK_STR(text, "");
    aq_text_free(&context, text, size);
}

static void check_json_string(const char *text, size_t size, const char *expected) {
    aq_builder builder;
    char *out;
    size_t out_size;
    aq_builder_init(&builder, NULL);
    aq_append_json_string(&builder, text, size);
    CHECK_STATUS(aq_builder_finish(&builder, &out, &out_size, NULL), AQ_OK);
    CHECK_STR(out, expected);
    aq_text_free(NULL, out, out_size);
}

TEST(json_strings_are_escaped) {
    check_json_string("", 0, "\"\"");
    check_json_string("a\"b\\c/d\b\f\n\r\t", 12, "\"a\\\"b\\\\c/d\\b\\f\\n\\r\\t\"");
    check_json_string("\0\x01\x1F\x7F", 4, "\"\\u0000\\u0001\\u001f\x7F\"");
    check_json_string("\xC3\xA9\xF0\x9F\x98\x80", 6, "\"\xC3\xA9\xF0\x9F\x98\x80\"");
    check_json_string("a\xFF" "b\xC3", 4, "\"a\xEF\xBF\xBD" "b\xEF\xBF\xBD\"");
}

TEST(json_doubles_have_no_nan) {
    static const double values[] = { 1.5, -0.0, 1e300 * 1e300, -1e300 * 1e300 };
    static const char *const texts[] = { "1.5", "-0.0", "null", "null" };
    for (size_t i = 0; i < 4; i++) {
        aq_builder builder;
        char *out;
        size_t size;
        aq_builder_init(&builder, NULL);
        aq_append_json_double(&builder, values[i]);
        CHECK_STATUS(aq_builder_finish(&builder, &out, &size, NULL), AQ_OK);
        CHECK_STR(out, texts[i]);
        aq_text_free(NULL, out, size);
    }
}

TEST(numbers_both_ways) {
    /* the differential test against Python is tests/py/test_numbers.py */
    static const double values[] = { 0.0, 1.0, 0.1, 1e16, 1e22, 5e-324, 123456.789, 1e-5, 0.0001 };
    static const char *const texts[] = { "0.0", "1.0", "0.1", "1e+16", "1e+22", "5e-324",
                                         "123456.789", "1e-05", "0.0001" };
    char buffer[AQ_DOUBLE_TEXT];
    double value = 7;
    uint64_t whole = 7;
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        CHECK(aq_format_double(values[i], buffer) == strlen(texts[i]));
        CHECK_STR(buffer, texts[i]);
        CHECK(aq_parse_double(texts[i], strlen(texts[i]), &value));
        CHECK(memcmp(&value, &values[i], sizeof(value)) == 0);
    }
    CHECK(!aq_parse_double("1.5x", 4, &value) && aq_parse_double("1.5x", 3, &value));
    CHECK(!aq_parse_double("", 0, &value) && !aq_parse_double("nan", 3, &value));
    CHECK(aq_parse_double("1e400", 5, &value) && value > 1.7976931348623157e308);
    CHECK(aq_parse_u64("18446744073709551615", 20, &whole) && whole == UINT64_MAX);
    CHECK(!aq_parse_u64("18446744073709551616", 20, &whole) && whole == UINT64_MAX);
    CHECK(!aq_parse_u64("99999999999999999999", 20, &whole));
    CHECK(aq_parse_u64("000", 3, &whole) && whole == 0);
    CHECK(!aq_parse_u64("", 0, &whole) && !aq_parse_u64("-1", 2, &whole));
    CHECK(!aq_parse_u64("+1", 2, &whole) && !aq_parse_u64("1 ", 2, &whole));
}

TEST(utf8_is_checked) {
    static const char *const good[] = { "", "abc", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80",
                                        "\xED\x9F\xBF", "\xEE\x80\x80", "\xEF\xBF\xBF",
                                        "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF" };
    static const char *const bad[] = { "\x80", "\xC0\x80", "\xC1\xBF", "\xC2", "\xC2\x41",
                                       "\xE0\x9F\xBF", "\xE2\x82", "\xED\xA0\x80", "\xED\xBF\xBF",
                                       "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80",
                                       "\xFE", "\xFF", "\xF0\x9F\x98" };
    size_t at = 99;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        CHECK(aq_is_utf8(good[i], strlen(good[i]), &at));
    CHECK(at == 99);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char text[16];
        aq_format(text, sizeof(text), "ab%s", "");
        memcpy(text + 2, bad[i], strlen(bad[i]) + 1);
        CHECK(!aq_is_utf8(text, strlen(text), &at));
        CHECK(at == 2);
        CHECK(!aq_is_utf8(text, strlen(text), NULL));
    }
    CHECK(aq_is_utf8("a\0b", 3, NULL));
}

TEST(text_comparisons) {
    CHECK(aq_text_equal("abc", 3, "abc") && !aq_text_equal("abc", 2, "abc"));
    CHECK(!aq_text_equal("abd", 3, "abc") && aq_text_equal(NULL, 0, ""));
    CHECK(aq_ends_with("x.weight", ".weight") && aq_ends_with("a", "") && aq_ends_with("", ""));
    CHECK(!aq_ends_with("weight", ".weight") && !aq_ends_with("x.weights", ".weight"));
}

TEST(globs) {
    static const struct {
        const char *pattern, *name;
        bool match;
    } cases[] = {
        { "", "", true }, { "", "a", false }, { "a", "a", true }, { "a", "ab", false },
        { "a", "", false }, { "*", "", true }, { "*", "a.b.c", true }, { "**", "x", true },
        { "?", "a", true }, { "?", "", false }, { "?", "ab", false }, { "?", "\xC3\xA9", true },
        { "??", "\xC3\xA9", false }, { "*??", "\xC3\xA9", false }, { "*?", "\xC3\xA9", true },
        { "*??", "\xE2\x82\xAC", false }, { "*?", "\xE2\x82\xAC", true },
        { "blocks.*.weight", "blocks.3.attn.weight", true },
        { "blocks.*.weight", "blocks.weight", false },
        { "blocks.?.weight", "blocks.12.weight", false },
        { "*.bias", "a.bias", true }, { "*.bias", "a.bias2", false },
        { "*a*b", "xaxxb", true }, { "*a*b", "xbxxa", false }, { "*ab*ab*", "abab", true },
        { "*ab*ab*", "aba", false }, { "a*a", "a", false }, { "a*", "a", true },
        { "[a-c]x", "bx", true }, { "[a-c]x", "dx", false }, { "[!a-c]x", "dx", true },
        { "[!a-c]x", "ax", false }, { "[]x]", "]", true }, { "[!]]", "]", false },
        { "[!]]", "a", true }, { "[a-]", "-", true }, { "[-a]", "-", true }, { "[a", "[a", true },
        { "[a", "a", false }, { "[", "[", true }, { "[]", "[]", true }, { "[\\]]", "]", true },
        { "x[0-9][0-9]", "x07", true }, { "x[0-9][0-9]", "x7", false },
        { "\\*", "*", true }, { "\\*", "a", false }, { "\\[a]", "[a]", true }, { "\\", "\\", true },
        { "[\xC3\xA0-\xC3\xAF]", "\xC3\xA9", true }, { "[\xC3\xA0-\xC3\xAF]", "\xC3\xB1", false },
        { "\xFF?", "\xFF\xFE", true }, { "a?c", "a.c", true }, { "*.[qk].*", "l.0.q.weight", true },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (aq_glob_match(cases[i].pattern, cases[i].name) != cases[i].match)
            printf("\"%s\" and \"%s\":\n", cases[i].pattern, cases[i].name);
        CHECK(aq_glob_match(cases[i].pattern, cases[i].name) == cases[i].match);
    }
}

TEST(globs_do_not_blow_up) {
    static char pattern[401], name[20001];
    for (size_t i = 0; i < 400; i += 2) memcpy(pattern + i, "*a", 2);
    pattern[399] = 'b';
    memset(name, 'a', 20000);
    CHECK(!aq_glob_match(pattern, name));
    name[19999] = 'b';
    CHECK(aq_glob_match(pattern, name));
}

TEST(edit_distances) {
    static char long_a[50], long_b[50];
    CHECK(aq_edit_distance("", 0, "", 0) == 0);
    CHECK(aq_edit_distance("abc", 3, "", 0) == 3 && aq_edit_distance("", 0, "abc", 3) == 3);
    CHECK(aq_edit_distance("kitten", 6, "sitting", 7) == 3);
    CHECK(aq_edit_distance("bit_widht", 9, "bit_width", 9) == 2);
    CHECK(aq_edit_distance("group_sise", 10, "group_size", 10) == 1);
    memset(long_a, 'a', sizeof(long_a));
    memset(long_b, 'a', sizeof(long_b));
    CHECK(aq_edit_distance(long_a, 50, long_b, 50) == 0);
    CHECK(aq_edit_distance(long_a, 50, long_b, 40) == 10);
    CHECK(aq_edit_distance(long_a, 50, long_b, 10) == 40);
}

int main(void) {
    RUN(builder_grows);
    RUN(builder_fails_at_the_end);
    RUN(json_strings_are_escaped);
    RUN(json_doubles_have_no_nan);
    RUN(numbers_both_ways);
    RUN(utf8_is_checked);
    RUN(text_comparisons);
    RUN(globs);
    RUN(globs_do_not_blow_up);
    RUN(edit_distances);
    return test_end();
}
