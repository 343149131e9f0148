/* Files, folders, renames and locks, on POSIX systems. */
#include "test.h"

#if defined(ARROWQUANT_NO_STDIO) || defined(_WIN32)
int main(void) { return test_end(); }
#else

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __cplusplus /* hidden by -std=c99 */
extern int symlink(const char *to, const char *path);
extern int kill(pid_t process, int number);
#endif

static char root[100];
static aq_error err;

/* ROOT/name; eight of them may be in use at once */
static const char *at(const char *name) {
    static char paths[8][400];
    static unsigned next;
    char *path = paths[next++ % 8];
    aq_format(path, sizeof(paths[0]), "%s/%s", root, name);
    return path;
}

static void put(const char *name, const char *text) {
    CHECK_STATUS(aq_write_text(at(name), text, strlen(text), &err), AQ_OK);
}

static bool holds(const char *name, const char *text) {
    aq_arena arena;
    char *found;
    size_t size;
    aq_arena_init(&arena, NULL);
    bool same = aq_read_text(&arena, at(name), 1000, &found, &size, NULL) == AQ_OK &&
                size == strlen(text) && strcmp(found, text) == 0;
    aq_arena_free(&arena);
    return same;
}

static size_t entries(const char *name) {
    aq_arena arena;
    aq_folder_entry *list;
    size_t count = 999;
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_list_folder(&arena, name, &list, &count, &err), AQ_OK);
    aq_arena_free(&arena);
    return count;
}

TEST(reads_and_writes_at_offsets) {
    aq_file file = AQ_FILE_CLOSED;
    char data[10];
    uint64_t size = 7;
    CHECK_STATUS(aq_file_create(&file, at("a"), &err), AQ_OK);
    CHECK_STATUS(aq_file_write(&file, 4, "four", 4, &err), AQ_OK);
    CHECK_STATUS(aq_file_write(&file, 0, "zero", 4, &err), AQ_OK);
    CHECK_STATUS(aq_file_write(&file, 8, NULL, 0, &err), AQ_OK);
    CHECK_STATUS(aq_file_read(&file, 2, data, 4, &err), AQ_OK);
    CHECK(memcmp(data, "rofo", 4) == 0);
    CHECK_STATUS(aq_file_truncate(&file, 6, &err), AQ_OK);
    CHECK_STATUS(aq_file_sync(&file, &err), AQ_OK);
    CHECK_STATUS(aq_file_close(&file, &err), AQ_OK);
    CHECK_STATUS(aq_file_close(&file, &err), AQ_OK);
    CHECK(holds("a", "zerofo"));
    CHECK_STATUS(aq_file_open(&file, at("a"), &size, &err), AQ_OK);
    CHECK(size == 6);
    CHECK_STATUS(aq_file_read(&file, 4, data, 3, &err), AQ_ERR_CORRUPT);
    CHECK(strstr(err.message, at("a")) && strstr(err.message, "ends at byte 6") && err.offset == 6);
    CHECK_STATUS(aq_file_read(&file, UINT64_MAX - 1, data, 3, &err), AQ_ERR_IO);
    CHECK_STATUS(aq_file_read(&file, 100, data, 0, &err), AQ_OK);
    CHECK_STATUS(aq_file_write(&file, 0, "x", 1, &err), AQ_ERR_IO); /* opened for reading */
    CHECK_STATUS(aq_file_close(&file, &err), AQ_OK);
    CHECK_STATUS(aq_file_create(&file, at("a"), &err), AQ_ERR_EXISTS);
    CHECK(holds("a", "zerofo"));
}

TEST(offsets_beyond_4_gib) {
    aq_file file = AQ_FILE_CLOSED;
    const uint64_t far = (UINT64_C(1) << 33) + 5;
    uint64_t size;
    char data[6];
    CHECK_STATUS(aq_file_create(&file, at("large"), &err), AQ_OK);
    CHECK_STATUS(aq_file_write(&file, far, "distant", 7, &err), AQ_OK); /* a hole, no space used */
    CHECK_STATUS(aq_file_read(&file, far + 1, data, 6, &err), AQ_OK);
    CHECK(memcmp(data, "istant", 6) == 0);
    CHECK_STATUS(aq_file_close(&file, &err), AQ_OK);
    CHECK_STATUS(aq_file_open(&file, at("large"), &size, &err), AQ_OK);
    CHECK(size == far + 7);
    CHECK_STATUS(aq_file_close(&file, &err), AQ_OK);
    CHECK(aq_path_kind_of(at("large")) == AQ_PATH_FILE);
    CHECK_STATUS(aq_remove_tree(NULL, at("large"), &err), AQ_OK);
}

TEST(what_is_no_file_is_refused) {
    aq_file file = AQ_FILE_CLOSED;
    aq_map map;
    CHECK_STATUS(aq_file_open(&file, at("missing"), NULL, &err), AQ_ERR_IO);
    CHECK(strstr(err.message, "missing: cannot open: no such file") != NULL && file.handle == -1);
    CHECK_STATUS(aq_file_open(&file, root, NULL, &err), AQ_ERR_IO);
    CHECK(strstr(err.message, "is a folder") != NULL && file.handle == -1);
    CHECK(mkfifo(at("pipe"), 0600) == 0);
    CHECK_STATUS(aq_file_open(&file, at("pipe"), NULL, &err), AQ_ERR_IO); /* and does not wait */
    CHECK(aq_path_kind_of(at("pipe")) == AQ_PATH_OTHER);
    CHECK_STATUS(aq_write_text(at("pipe"), "x", 1, &err), AQ_ERR_IO);
    CHECK_STATUS(aq_write_text("/dev/null", "x", 1, &err), AQ_ERR_IO);
    CHECK_STATUS(aq_map_file(&map, at("missing"), &err), AQ_ERR_IO);
    CHECK_STATUS(aq_file_create(&file, at("no/such/folder"), &err), AQ_ERR_IO);
    CHECK_STATUS(aq_remove_tree(NULL, at("pipe"), &err), AQ_OK);
}

TEST(maps) {
    aq_map map;
    put("m", "mapped");
    CHECK_STATUS(aq_map_file(&map, at("m"), &err), AQ_OK);
    CHECK(map.size == 6 && memcmp(map.data, "mapped", 6) == 0);
    aq_unmap_file(&map);
    aq_unmap_file(&map);
    put("m", "");
    CHECK_STATUS(aq_map_file(&map, at("m"), &err), AQ_OK);
    CHECK(map.size == 0 && map.data == NULL);
    aq_unmap_file(&map);
}

TEST(texts_are_replaced_whole) {
    aq_arena arena;
    char *text;
    size_t size, before;
    put("t", "old");
    before = entries(root);
    put("t", "newer");
    CHECK(holds("t", "newer") && entries(root) == before);
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_read_text(&arena, at("t"), 5, &text, &size, &err), AQ_OK);
    CHECK_STATUS(aq_read_text(&arena, at("t"), 4, &text, &size, &err), AQ_ERR_CORRUPT);
    CHECK(strstr(err.message, "at most 4") != NULL);
    aq_arena_free(&arena);
    CHECK_STATUS(aq_write_text(root, "x", 1, &err), AQ_ERR_IO);
    CHECK_STATUS(aq_write_text(at("none/t"), "x", 1, &err), AQ_ERR_IO);
    CHECK(entries(root) == before);
    CHECK(symlink("t", at("link")) == 0);
    CHECK_STATUS(aq_write_text(at("link"), "x", 1, &err), AQ_ERR_IO);
    CHECK(holds("t", "newer"));
}

TEST(kinds_and_links) {
    CHECK_STATUS(aq_make_folder(at("folder"), &err), AQ_OK);
    CHECK_STATUS(aq_make_folder(at("folder"), &err), AQ_ERR_EXISTS);
    put("file", "x");
    CHECK(symlink("folder", at("to_folder")) == 0 && symlink("file", at("to_file")) == 0);
    CHECK(symlink("nothing", at("dangling")) == 0);
    CHECK(aq_path_kind_of(at("folder")) == AQ_PATH_FOLDER && !aq_path_is_link(at("folder")));
    CHECK(aq_path_kind_of(at("file")) == AQ_PATH_FILE && !aq_path_is_link(at("file")));
    CHECK(aq_path_kind_of(at("to_folder")) == AQ_PATH_FOLDER && aq_path_is_link(at("to_folder")));
    CHECK(aq_path_kind_of(at("to_file")) == AQ_PATH_FILE && aq_path_is_link(at("to_file")));
    CHECK(aq_path_kind_of(at("dangling")) == AQ_PATH_NONE && aq_path_is_link(at("dangling")));
    CHECK(aq_path_kind_of(at("absent")) == AQ_PATH_NONE && !aq_path_is_link(at("absent")));
    CHECK(aq_path_kind_of("/dev/null") == AQ_PATH_OTHER);
    CHECK_STATUS(aq_sync_folder(at("folder"), &err), AQ_OK);
    CHECK_STATUS(aq_sync_folder(at("absent"), &err), AQ_ERR_IO);
}

TEST(lists_sorted) {
    aq_arena arena;
    aq_folder_entry *list;
    size_t count;
    char name[32];
    CHECK_STATUS(aq_make_folder(at("list"), &err), AQ_OK);
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_list_folder(&arena, at("list"), &list, &count, &err), AQ_OK);
    CHECK(count == 0);
    for (unsigned i = 0; i < 100; i++) {
        aq_file file = AQ_FILE_CLOSED;
        aq_format(name, sizeof(name), "list/%u%u", i * 37 % 100, i);
        CHECK_STATUS(aq_file_create(&file, at(name), &err), AQ_OK);
        CHECK_STATUS(aq_file_write(&file, 0, name, i % 3, &err), AQ_OK);
        CHECK_STATUS(aq_file_close(&file, &err), AQ_OK);
    }
    CHECK_STATUS(aq_make_folder(at("list/z"), &err), AQ_OK);
    CHECK(symlink("z", at("list/\xC3\xA9")) == 0);
    CHECK_STATUS(aq_list_folder(&arena, at("list"), &list, &count, &err), AQ_OK);
    CHECK(count == 102);
    for (size_t i = 1; i < count; i++) CHECK(strcmp(list[i - 1].name, list[i].name) < 0);
    CHECK_STR(list[0].name, "00");
    CHECK(list[0].kind == AQ_PATH_FILE && list[0].size == 0);
    CHECK(list[100].kind == AQ_PATH_FOLDER && list[101].kind == AQ_PATH_FOLDER);
    CHECK_STR(list[101].name, "\xC3\xA9");
    CHECK_STATUS(aq_list_folder(&arena, at("absent"), &list, &count, &err), AQ_ERR_IO);
    aq_arena_free(&arena);
}

TEST(paths_are_joined_and_split) {
    static const struct {
        const char *path, *parent, *base;
    } cases[] = {
        { "a", ".", "a" }, { "a/b", "a", "b" }, { "/a", "/", "a" }, { "a/b/", "a", "b/" },
        { "a//b", "a", "b" }, { "/a/b/c.d", "/a/b", "c.d" }, { "../x", "..", "x" },
        { "/", "/", "/" },
    };
    aq_arena arena;
    aq_arena_init(&arena, NULL);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CHECK_STR(aq_path_parent(&arena, cases[i].path), cases[i].parent);
        if (i < 7) CHECK_STR(aq_path_base(cases[i].path), cases[i].base);
    }
    CHECK_STR(aq_path_join(&arena, "a", "b"), "a/b");
    CHECK_STR(aq_path_join(&arena, "a/", "b"), "a/b");
    CHECK_STR(aq_path_join(&arena, "/", "b"), "/b");
    CHECK_STR(aq_path_join(&arena, "", "b"), "b");
    aq_arena_free(&arena);
}

TEST(paths_resolve) {
    aq_arena arena;
    char *path, *real;
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_path_resolve(&arena, root, &real, &err), AQ_OK);
    CHECK_STATUS(aq_path_resolve(&arena, at("to_folder/../file"), &path, &err), AQ_OK);
    CHECK_STR(path, aq_path_join(&arena, real, "file"));
    CHECK_STATUS(aq_path_resolve(&arena, at("to_folder/new//"), &path, &err), AQ_OK);
    CHECK_STR(path, aq_path_join(&arena, real, "folder/new"));
    CHECK_STATUS(aq_path_resolve(&arena, at("dangling"), &path, &err), AQ_OK);
    CHECK_STR(path, aq_path_join(&arena, real, "dangling"));
    CHECK_STATUS(aq_path_resolve(&arena, at("absent/new"), &path, &err), AQ_ERR_IO);
    CHECK_STATUS(aq_path_resolve(&arena, at("absent/.."), &path, &err), AQ_ERR_IO);
    CHECK_STATUS(aq_path_resolve(&arena, "", &path, &err), AQ_ERR_IO);
    CHECK_STATUS(aq_path_resolve(&arena, "not-there-yet", &path, &err), AQ_OK);
    CHECK(path[0] == '/' && aq_ends_with(path, "/not-there-yet"));
    aq_arena_free(&arena);
}

TEST(trees_are_removed_without_following_links) {
    CHECK_STATUS(aq_make_folder(at("kept"), &err), AQ_OK);
    put("kept/precious", "x");
    CHECK_STATUS(aq_make_folder(at("tree"), &err), AQ_OK);
    CHECK_STATUS(aq_make_folder(at("tree/deep"), &err), AQ_OK);
    put("tree/deep/f", "x");
    CHECK(symlink("../kept", at("tree/link")) == 0 && symlink("gone", at("tree/dangling")) == 0);
    CHECK_STATUS(aq_remove_tree(NULL, at("tree"), &err), AQ_OK);
    CHECK(aq_path_kind_of(at("tree")) == AQ_PATH_NONE && holds("kept/precious", "x"));
    CHECK_STATUS(aq_remove_tree(NULL, at("tree"), &err), AQ_OK);
    CHECK(symlink("kept", at("link2")) == 0);
    CHECK_STATUS(aq_remove_tree(NULL, at("link2"), &err), AQ_OK);
    CHECK(holds("kept/precious", "x") && !aq_path_is_link(at("link2")));
    CHECK_STATUS(aq_remove_tree(NULL, at("kept/precious"), &err), AQ_OK);
}

TEST(renames_do_not_replace_by_accident) {
    put("r1", "one");
    put("r2", "two");
    CHECK_STATUS(aq_rename(at("r1"), at("r2"), AQ_RENAME_NOREPLACE, &err), AQ_ERR_EXISTS);
    CHECK(holds("r1", "one") && holds("r2", "two"));
    CHECK_STATUS(aq_rename(at("r1"), at("r3"), AQ_RENAME_NOREPLACE, &err), AQ_OK);
    CHECK(holds("r3", "one") && aq_path_kind_of(at("r1")) == AQ_PATH_NONE);
    CHECK_STATUS(aq_rename(at("r3"), at("r2"), AQ_RENAME_REPLACE, &err), AQ_OK);
    CHECK(holds("r2", "one"));
    CHECK_STATUS(aq_rename(at("r9"), at("r8"), AQ_RENAME_NOREPLACE, &err), AQ_ERR_IO);
    CHECK_STATUS(aq_rename(at("r2"), at("no/r8"), AQ_RENAME_NOREPLACE, &err), AQ_ERR_IO);
    CHECK_STATUS(aq_make_folder(at("d1"), &err), AQ_OK);
    CHECK_STATUS(aq_make_folder(at("d2"), &err), AQ_OK);
    put("d1/x", "first");
    CHECK_STATUS(aq_rename(at("d1"), at("d2"), AQ_RENAME_NOREPLACE, &err), AQ_ERR_EXISTS);
    CHECK_STATUS(aq_rename(at("d1"), at("d3"), AQ_RENAME_NOREPLACE, &err), AQ_OK);
    CHECK(holds("d3/x", "first"));
    put("d2/x", "second");
    aq_status status = aq_rename(at("d2"), at("d3"), AQ_RENAME_EXCHANGE, &err);
    CHECK(status == AQ_OK || status == AQ_ERR_UNSUPPORTED);
    if (status != AQ_OK) return;
    CHECK(holds("d2/x", "first") && holds("d3/x", "second"));
    CHECK_STATUS(aq_rename(at("d2"), at("d9"), AQ_RENAME_EXCHANGE, &err), AQ_ERR_IO);
}

TEST(copies) {
    aq_context context;
    static char data[3000000];
    aq_file file = AQ_FILE_CLOSED;
    aq_map first, second;
    uint64_t state = 5;
    for (size_t i = 0; i < sizeof(data); i++) data[i] = (char)test_random(&state);
    CHECK_STATUS(aq_file_create(&file, at("big"), &err), AQ_OK);
    CHECK_STATUS(aq_file_write(&file, 0, data, sizeof(data), &err), AQ_OK);
    CHECK_STATUS(aq_file_close(&file, &err), AQ_OK);
    CHECK(symlink("big", at("to_big")) == 0);
    CHECK_STATUS(aq_copy_file(NULL, at("to_big"), at("copy"), &err), AQ_OK);
    CHECK(!aq_path_is_link(at("copy")));
    CHECK_STATUS(aq_map_file(&first, at("big"), &err), AQ_OK);
    CHECK_STATUS(aq_map_file(&second, at("copy"), &err), AQ_OK);
    CHECK(first.size == second.size && memcmp(first.data, second.data, sizeof(data)) == 0);
    aq_unmap_file(&first);
    aq_unmap_file(&second);
    CHECK_STATUS(aq_copy_file(NULL, at("big"), at("copy"), &err), AQ_ERR_EXISTS);
    CHECK_STATUS(aq_copy_file(NULL, at("absent"), at("copy2"), &err), AQ_ERR_IO);
    CHECK(aq_path_kind_of(at("copy2")) == AQ_PATH_NONE);
    memset(&context, 0, sizeof(context));
    context.cancel_requested = 1;
    aq_status status = aq_copy_file(&context, at("big"), at("copy3"), &err);
    CHECK(status == AQ_ERR_CANCELLED || status == AQ_OK); /* OK: a reflink takes no time */
    CHECK(status == AQ_OK || aq_path_kind_of(at("copy3")) == AQ_PATH_NONE);
    put("empty", "");
    CHECK_STATUS(aq_copy_file(NULL, at("empty"), at("empty2"), &err), AQ_OK);
    CHECK(holds("empty2", ""));
}

/* A write that the system accepts in part only, then refuses. */
TEST(short_writes_are_continued_and_reported) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct rlimit limit = { 100000, 100000 };
        static char data[150000];
        aq_file file = AQ_FILE_CLOSED;
        signal(SIGXFSZ, SIG_IGN);
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(9);
        if (aq_file_create(&file, at("limited"), NULL) != AQ_OK) _exit(1);
        if (aq_file_write(&file, 0, data, sizeof(data), &err) != AQ_ERR_IO) _exit(2);
        if (!strstr(err.message, "limited: cannot write: larger than")) _exit(3);
        (void)aq_file_close(&file, NULL);
        size_t before = entries(root);
        if (aq_write_text(at("limited2"), data, sizeof(data), &err) != AQ_ERR_IO) _exit(4);
        if (entries(root) != before) _exit(6); /* no temporary is left */
        if (aq_copy_file(NULL, at("big"), at("limited3"), &err) != AQ_ERR_IO) _exit(5);
        _exit(0);
    }
    int result = -1;
    CHECK(waitpid(child, &result, 0) == child && result == 0);
    CHECK(aq_path_kind_of(at("limited2")) == AQ_PATH_NONE);
    CHECK(aq_path_kind_of(at("limited3")) == AQ_PATH_NONE); /* nothing half is left */
}

/* A child that makes a lock, says so, and waits to be killed. */
static pid_t lock_holder(const char *path) {
    int pipes[2];
    char byte = 0;
    if (pipe(pipes) != 0) return -1;
    pid_t child = fork();
    if (child == 0) {
        aq_file lock = AQ_FILE_CLOSED;
        alarm(60); /* should nobody live to kill this */
        byte = aq_lock_create(&lock, path, NULL) == AQ_OK ? 'y' : 'n';
        if (write(pipes[1], &byte, 1) != 1) _exit(1);
        for (;;) pause();
    }
    CHECK(read(pipes[0], &byte, 1) == 1 && byte == 'y');
    close(pipes[0]);
    close(pipes[1]);
    return child;
}

TEST(a_lock_dies_with_its_process) {
    aq_file lock = AQ_FILE_CLOSED;
    CHECK(!aq_lock_is_stale(at("lock")));
    CHECK_STATUS(aq_lock_create(&lock, at("lock"), &err), AQ_OK);
    CHECK(!aq_lock_is_stale(at("lock")));
    aq_lock_release(&lock);
    CHECK(aq_path_kind_of(at("lock")) == AQ_PATH_NONE);
    aq_lock_release(&lock);
    const char *path = at("lock");
    pid_t child = lock_holder(path);
    CHECK(!aq_lock_is_stale(path));
    CHECK_STATUS(aq_lock_create(&lock, path, &err), AQ_ERR_EXISTS);
    CHECK(!aq_lock_is_stale(path));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    CHECK(aq_lock_is_stale(path));
    CHECK(aq_lock_is_stale(path)); /* and stays so */
    CHECK_STATUS(aq_lock_create(&lock, path, &err), AQ_ERR_EXISTS);
    CHECK_STATUS(aq_remove_tree(NULL, path, &err), AQ_OK);
}

/* One process makes locks as fast as it can while another removes what it takes for stale: a lock
 * that was granted must never be found stale. */
TEST(a_fresh_lock_is_never_taken_for_stale) {
    pid_t child = fork();
    if (child == 0) {
        char path[200];
        alarm(60);
        for (unsigned i = 0;; i = (i + 1) % 4) {
            aq_format(path, sizeof(path), "%s/race-%u", root, i);
            if (aq_lock_is_stale(path)) (void)aq_remove_tree(NULL, path, NULL);
        }
    }
    unsigned lost = 0, granted = 0;
    for (unsigned i = 0; i < 20000; i++) {
        aq_file lock = AQ_FILE_CLOSED;
        char path[200];
        aq_format(path, sizeof(path), "%s/race-%u", root, i % 4);
        if (aq_lock_create(&lock, path, NULL) != AQ_OK) continue;
        granted++;
        for (int spin = 0; spin < 3; spin++) {
            if (aq_path_kind_of(path) != AQ_PATH_FILE) lost++;
        }
        aq_lock_release(&lock);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    CHECK(lost == 0);
    CHECK(granted > 1000);
}

TEST(the_clock_goes_on) {
    double before = aq_clock_seconds(), after = before;
    for (int i = 0; i < 1000000 && after <= before; i++) after = aq_clock_seconds();
    CHECK(after > before && after - before < 5.0);
    CHECK(aq_process_id() == (uint64_t)getpid());
}

TEST(missing_rights_are_told) {
    aq_file file = AQ_FILE_CLOSED;
    put("secret", "x");
    CHECK(chmod(at("secret"), 0) == 0);
    aq_status status = aq_file_open(&file, at("secret"), NULL, &err);
    CHECK(status == (getuid() == 0 ? AQ_OK : AQ_ERR_IO));
    if (status != AQ_OK) CHECK(strstr(err.message, "permission denied") != NULL);
    (void)aq_file_close(&file, NULL);
}

int main(void) {
    aq_format(root, sizeof(root), "/tmp/aq-test-file-%llu", (unsigned long long)aq_process_id());
    CHECK_STATUS(aq_make_folder(root, &err), AQ_OK);
    RUN(reads_and_writes_at_offsets);
    RUN(offsets_beyond_4_gib);
    RUN(what_is_no_file_is_refused);
    RUN(maps);
    RUN(texts_are_replaced_whole);
    RUN(kinds_and_links);
    RUN(lists_sorted);
    RUN(paths_are_joined_and_split);
    RUN(paths_resolve);
    RUN(trees_are_removed_without_following_links);
    RUN(renames_do_not_replace_by_accident);
    RUN(copies);
    RUN(short_writes_are_continued_and_reported);
    RUN(a_lock_dies_with_its_process);
    RUN(a_fresh_lock_is_never_taken_for_stale);
    RUN(the_clock_goes_on);
    RUN(missing_rights_are_told);
    if (aq_remove_tree(NULL, root, &err) != AQ_OK) {
        printf("%s\n", err.message);
        test_failed++;
    }
    return test_end();
}
#endif
