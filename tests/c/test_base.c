/* Errors, the formatter, allocation, arenas, CRC-32. */
#include "test.h"

TEST(statuses_have_name_text_and_hint) {
    CHECK_STR(aq_version(), AQ_VERSION);
    CHECK_STR(aq_status_name(AQ_OK), "ok");
    CHECK_STR(aq_status_name(AQ_ERR_BIT_WIDTH), "bit_width");
    CHECK_STR(aq_status_text(AQ_ERR_BIT_WIDTH), "invalid bit width");
    CHECK_STR(aq_status_hint(AQ_ERR_BIT_WIDTH), "use 2, 4 or 8; a trellis has 3, too");
    CHECK_STR(aq_status_name(AQ_ERR_EXISTS), "exists");
    CHECK_STR(aq_status_name(AQ_STATUS_COUNT), "unknown");
    for (int i = 0; i < (int)AQ_STATUS_COUNT; i++) {
        CHECK(aq_status_name((aq_status)i)[0] != 0);
        CHECK(i == 0 || aq_status_hint((aq_status)i)[0] != 0);
    }
}

TEST(formats_what_it_promises) {
    char text[200];
    size_t size = aq_format(text, sizeof(text), "%s|%.*s|%c|%d|%u|%llu|%lld|%zu|%x|%%", "ab", 2,
                            "cdef", 'g', -12, 34u, 18446744073709551615ULL,
                            -9223372036854775807LL - 1, (size_t)56, 0xBEEFu);
    CHECK_STR(text, "ab|cd|g|-12|34|18446744073709551615|-9223372036854775808|56|beef|%");
    CHECK(size == strlen(text));
    aq_format(text, sizeof(text), "%ld %lu %d %u %s", -5L, 6UL, 0, 4294967295u, "");
    CHECK_STR(text, "-5 6 0 4294967295 ");
    CHECK(aq_format(NULL, 0, "%s", "twelve chars") == 12);
}

TEST(format_truncates_between_characters) {
    char text[6];
    CHECK(aq_format(text, sizeof(text), "abc\xC3\xA9") == 5);
    CHECK_STR(text, "abc\xC3\xA9");
    CHECK(aq_format(text, sizeof(text), "abcd\xC3\xA9") == 6);
    CHECK_STR(text, "abcd");
    CHECK(aq_format(text, sizeof(text), "ab\xF0\x9F\x98\x80") == 6);
    CHECK_STR(text, "ab");
    CHECK(aq_format(text, sizeof(text), "abcdefgh") == 8);
    CHECK_STR(text, "abcde");
    CHECK(aq_format(text, 1, "abcdefgh") == 8);
    CHECK_STR(text, "");
}

TEST(fail_fills_the_error) {
    aq_error err;
    memset(&err, 'x', sizeof(err));
    CHECK_STATUS(aq_fail(&err, AQ_ERR_IO, "%s: no", "file"), AQ_ERR_IO);
    CHECK(err.status == AQ_ERR_IO && err.offset == 0);
    CHECK_STR(err.message, "file: no");
    CHECK_STR(err.tensor, "");
    CHECK_STATUS(aq_fail_tensor(&err, AQ_ERR_QUANTIZATION, "a.weight", 7, "at %d", 7),
                 AQ_ERR_QUANTIZATION);
    CHECK_STR(err.tensor, "a.weight");
    CHECK(err.offset == 7);
    CHECK_STATUS(aq_fail(NULL, AQ_ERR_IO, "%s", "nobody hears"), AQ_ERR_IO);
    CHECK_STATUS(aq_fail_memory(&err, 77), AQ_ERR_OUT_OF_MEMORY);
    CHECK(strstr(err.message, "77") != NULL);
}

TEST(fail_may_quote_the_error_itself) {
    aq_error err;
    aq_fail_tensor(&err, AQ_ERR_IO, "name", 1, "inner");
    aq_fail_tensor(&err, AQ_ERR_IO, err.tensor, 2, "outer: %s", err.message);
    CHECK_STR(err.message, "outer: inner");
    CHECK_STR(err.tensor, "name");
}

TEST(long_paths_keep_their_tail) {
    static char path[3000], tensor[600];
    aq_error err;
    memset(path, 'p', sizeof(path) - 1);
    memcpy(path + sizeof(path) - 13, "/model.tensor", 13);
    path[sizeof(path) - 1] = 0;
    memset(tensor, 't', sizeof(tensor) - 1);
    memcpy(tensor + sizeof(tensor) - 8, ".weight", 8);
    aq_fail_tensor(&err, AQ_ERR_IO, tensor, 0, "%s: expected %s, found %d; write it again", path,
                   "this", 5);
    CHECK(strlen(err.message) == sizeof(err.message) - 1);
    CHECK(strncmp(err.message, "\xE2\x80\xA6" "ppp", 6) == 0);
    CHECK(strstr(err.message, "/model.tenso: expected this, found 5; write it again") != NULL);
    CHECK(strlen(err.tensor) == sizeof(err.tensor) - 1);
    CHECK(aq_ends_with(err.tensor, "ttt.weight"));
}

TEST(cut_paths_stay_utf8) {
    static char path[2001];
    aq_error err;
    for (size_t i = 0; i < 1000; i++) memcpy(path + 2 * i, "\xC3\xA9", 2);
    for (int extra = 0; extra < 4; extra++) {
        aq_fail(&err, AQ_ERR_IO, "%s%.*s", path, extra, "abcd");
        CHECK(aq_is_utf8(err.message, strlen(err.message), NULL));
        CHECK(strlen(err.message) >= sizeof(err.message) - 3);
        CHECK(strncmp(err.message, "\xE2\x80\xA6", 3) == 0);
    }
}

TEST(messages_hold_no_control_characters) {
    aq_error err;
    aq_fail_tensor(&err, AQ_ERR_IO, "a\nb", 0, "%s!", "x\x1B[31m\r\n\x7Fy");
    CHECK_STR(err.message, "x?[31m???y!");
    CHECK_STR(err.tensor, "a?b");
}

/* An allocator that counts, checks sizes, and can fail. */
typedef struct counter {
    size_t live, calls, fail_at; /* fail_at: number of the call that fails; 0 none */
} counter;

static void *counter_resize(void *user, void *pointer, size_t old_size, size_t new_size) {
    counter *count = (counter *)user;
    if (new_size) {
        count->calls++;
        if (count->calls == count->fail_at) return NULL;
    }
    CHECK(pointer || !old_size);
    count->live -= old_size;
    if (!new_size) {
        free(pointer);
        return NULL;
    }
    count->live += new_size;
    char *moved = (char *)realloc(pointer, new_size);
    if (moved && new_size > old_size) memset(moved + old_size, 0xCD, new_size - old_size);
    return moved;
}

static aq_context context_of(counter *count) {
    aq_context context;
    memset(&context, 0, sizeof(context));
    memset(count, 0, sizeof(*count));
    context.allocator.resize = counter_resize;
    context.allocator.user = count;
    return context;
}

TEST(allocation_goes_through_the_context) {
    counter count;
    aq_context context = context_of(&count);
    void *p = aq_alloc(&context, 10);
    CHECK(count.live == 10);
    p = aq_resize(&context, p, 10, 30);
    CHECK(count.live == 30);
    aq_free(&context, p, 30);
    aq_free(&context, NULL, 5);
    CHECK(count.live == 0 && count.calls == 2);
    p = aq_resize(&context, aq_alloc(&context, 0), 0, 0);
    CHECK(p != NULL);
    aq_free(&context, p, 0);
    CHECK(count.live == 0);
    p = aq_resize(NULL, aq_alloc(NULL, 3), 3, 300);
    CHECK(p != NULL);
    aq_free(NULL, p, 300);
    char *text = (char *)aq_alloc(&context, 6);
    aq_text_free(&context, text, 5);
    CHECK(count.live == 0);
}

TEST(arena_gives_zeroed_aligned_memory) {
    counter count;
    aq_context context = context_of(&count);
    aq_arena arena;
    uint64_t state = 1;
    aq_arena_init(&arena, &context);
    for (int i = 0; i < 2000; i++) {
        size_t size = (size_t)(test_random(&state) % (i % 50 == 0 ? 20000u : 60u));
        unsigned char *piece = (unsigned char *)aq_arena_alloc(&arena, size);
        CHECK(piece != NULL && (uintptr_t)piece % 16 == 0);
        if (!piece) break;
        for (size_t k = 0; k < size; k++) CHECK(piece[k] == 0);
        if (size) memset(piece, 0xAB, size);
    }
    CHECK_STR(aq_arena_string(&arena, "hello"), "hello");
    CHECK_STR(aq_arena_copy(&arena, "hello", 2), "he");
    CHECK_STR(aq_arena_copy(&arena, NULL, 0), "");
    CHECK(TEST_PIECES ? count.calls > 2000 : count.calls < 60);
    CHECK(aq_arena_alloc(&arena, SIZE_MAX) == NULL);
    CHECK(aq_arena_alloc(&arena, SIZE_MAX - 40) == NULL);
    CHECK(aq_arena_copy(&arena, "", SIZE_MAX) == NULL);
    aq_arena_free(&arena);
    CHECK(count.live == 0);
    aq_arena_free(&arena);
    count.fail_at = count.calls + 1;
    CHECK(aq_arena_alloc(&arena, 1) == NULL);
    CHECK(aq_arena_alloc(&arena, 1) != NULL);
    aq_arena_free(&arena);
    CHECK(count.live == 0);
}

/* As on machines whose malloc aligns to 8 bytes. */
static void *shifted_resize(void *user, void *pointer, size_t old_size, size_t new_size) {
    size_t shift = *(size_t *)user;
    (void)old_size;
    if (!new_size) {
        free((char *)pointer - shift);
        return NULL;
    }
    char *block = (char *)malloc(new_size + shift);
    return block ? block + shift : NULL;
}

TEST(arena_aligns_what_malloc_does_not) {
    aq_context context;
    memset(&context, 0, sizeof(context));
    context.allocator.resize = shifted_resize;
    for (size_t shift = 0; shift <= 8; shift += 8) {
        aq_arena arena;
        context.allocator.user = &shift;
        aq_arena_init(&arena, &context);
        for (size_t i = 0; i < 50; i++) {
            char *piece = (char *)aq_arena_alloc(&arena, 1000 * i);
            CHECK(piece != NULL && (uintptr_t)piece % 16 == 0);
            if (piece) memset(piece, 1, 1000 * i);
        }
        aq_arena_free(&arena);
    }
}

TEST(overflow_is_told) {
    size_t s = 5;
    uint64_t u = 5;
    CHECK(!aq_mul_size(SIZE_MAX, 2, &s) && s == 5);
    CHECK(aq_mul_size(SIZE_MAX, 1, &s) && s == SIZE_MAX);
    CHECK(aq_mul_size(0, SIZE_MAX, &s) && s == 0);
    CHECK(!aq_mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 32, &u) && u == 5);
    CHECK(aq_mul_u64(UINT64_C(1) << 32, 0xFFFFFFFFu, &u) && u == UINT64_C(0xFFFFFFFF00000000));
    CHECK(!aq_add_u64(UINT64_MAX, 1, &u) && u == UINT64_C(0xFFFFFFFF00000000));
    CHECK(aq_add_u64(UINT64_MAX - 1, 1, &u) && u == UINT64_MAX);
}

TEST(crc32_is_that_of_zlib) {
    static aq_crc32_tables tables;
    static unsigned char data[1000];
    uint64_t state = 3;
    aq_crc32_init(&tables);
    CHECK(aq_crc32(&tables, 0, NULL, 0) == 0);
    CHECK(aq_crc32(&tables, 0, "123456789", 9) == 0xCBF43926u);
    CHECK(aq_crc32(&tables, 0, "The quick brown fox jumps over the lazy dog", 43) == 0x414FA339u);
    for (size_t i = 0; i < sizeof(data); i++) data[i] = (unsigned char)test_random(&state);
    for (size_t size = 0; size < 100; size++) { /* bit by bit */
        uint32_t crc = 0xFFFFFFFFu;
        for (size_t i = 0; i < size; i++) {
            crc ^= data[i + 1];
            for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1u ? 0xEDB88320u : 0u);
        }
        CHECK(aq_crc32(&tables, 0, data + 1, size) == (crc ^ 0xFFFFFFFFu));
    }
    uint32_t whole = aq_crc32(&tables, 0, data, sizeof(data));
    for (size_t cut = 0; cut <= sizeof(data); cut += cut < 20 ? 1 : 97) {
        uint32_t first = aq_crc32(&tables, 0, data, cut);
        uint32_t second = aq_crc32(&tables, 0, data + cut, sizeof(data) - cut);
        CHECK(aq_crc32(&tables, first, data + cut, sizeof(data) - cut) == whole);
        CHECK(aq_crc32_join(first, second, sizeof(data) - cut) == whole);
    }
    CHECK(aq_crc32_join(whole, 0, 0) == whole);
}

TEST(crc32_by_machine_and_by_table) {
    static aq_crc32_tables fast, plain;
    static unsigned char data[5000];
    uint64_t state = 4;
    aq_crc32_init(&fast);
    aq_crc32_init(&plain);
    plain.fast = NULL;
    for (size_t i = 0; i < sizeof(data); i++) data[i] = (unsigned char)test_random(&state);
    for (size_t size = 0; size <= sizeof(data) - 64; size += size < 1000 ? 1 : 61) {
        const unsigned char *at = data + test_random(&state) % 64; /* aligned to nothing */
        uint32_t begin = (uint32_t)test_random(&state);
        CHECK(aq_crc32(&fast, begin, at, size) == aq_crc32(&plain, begin, at, size));
    }
    memset(data, 0, sizeof(data));
    CHECK(aq_crc32(&fast, 0, data, sizeof(data)) == aq_crc32(&plain, 0, data, sizeof(data)));
    memset(data, 0xFF, sizeof(data));
    CHECK(aq_crc32(&fast, 0, data, sizeof(data)) == aq_crc32(&plain, 0, data, sizeof(data)));
}

TEST(crc32_joins_over_4_gib) {
    /* 2^40 zeros after "a": by joining, as squaring in one go */
    static aq_crc32_tables tables;
    static const unsigned char zeros[1024] = { 0 };
    aq_crc32_init(&tables);
    uint32_t run = aq_crc32(&tables, 0, zeros, sizeof(zeros));
    uint64_t length = sizeof(zeros);
    for (; length < UINT64_C(1) << 40; length *= 2) run = aq_crc32_join(run, run, length);
    uint32_t a = aq_crc32(&tables, 0, "a", 1), stepwise = a;
    uint32_t quarter = aq_crc32(&tables, 0, zeros, sizeof(zeros));
    for (uint64_t n = sizeof(zeros); n < UINT64_C(1) << 38; n *= 2)
        quarter = aq_crc32_join(quarter, quarter, n);
    for (int i = 0; i < 4; i++) stepwise = aq_crc32_join(stepwise, quarter, UINT64_C(1) << 38);
    CHECK(aq_crc32_join(a, run, length) == stepwise);
}

int main(void) {
    RUN(statuses_have_name_text_and_hint);
    RUN(formats_what_it_promises);
    RUN(format_truncates_between_characters);
    RUN(fail_fills_the_error);
    RUN(fail_may_quote_the_error_itself);
    RUN(long_paths_keep_their_tail);
    RUN(cut_paths_stay_utf8);
    RUN(messages_hold_no_control_characters);
    RUN(allocation_goes_through_the_context);
    RUN(arena_gives_zeroed_aligned_memory);
    RUN(arena_aligns_what_malloc_does_not);
    RUN(overflow_is_told);
    RUN(crc32_is_that_of_zlib);
    RUN(crc32_by_machine_and_by_table);
    RUN(crc32_joins_over_4_gib);
    return test_end();
}
