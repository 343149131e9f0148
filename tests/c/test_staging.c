/* Output that is whole or absent. */
#include "test.h"

static char root[512];

static void path_of(char *out, const char *name) {
    aq_format(out, 1024, "%s/%s", root, name);
}
static void put(const char *name, const char *text) {
    char path[1024];
    path_of(path, name);
    CHECK_STATUS(aq_write_text(path, text, strlen(text), NULL), AQ_OK);
}
static bool there(const char *name) {
    char path[1024];
    path_of(path, name);
    return aq_path_kind_of(path) != AQ_PATH_NONE;
}
static size_t entries(void) {
    aq_arena arena;
    aq_folder_entry *list;
    size_t count = 999;
    aq_arena_init(&arena, NULL);
    CHECK_STATUS(aq_list_folder(&arena, root, &list, &count, NULL), AQ_OK);
    aq_arena_free(&arena);
    return count;
}
static void fresh(void) {
    char path[1024];
    aq_remove_tree(NULL, root, NULL);
    CHECK_STATUS(aq_make_folder(root, NULL), AQ_OK);
    path_of(path, "in");
    CHECK_STATUS(aq_make_folder(path, NULL), AQ_OK);
    put("in/config.json", "{}");
}
/* begins, puts one file into the temporary folder */
static aq_status begin(aq_staging *staging, const char *target, bool overwrite, aq_error *err) {
    char in[1024], out[1024], file[2048];
    path_of(in, "in");
    path_of(out, target);
    aq_status status = aq_staging_begin(staging, NULL, in, out, NULL, overwrite, false, err);
    if (status != AQ_OK) return status;
    aq_format(file, sizeof(file), "%s/config.json", staging->folder);
    CHECK_STATUS(aq_write_text(file, "{\"new\":1}", 9, NULL), AQ_OK);
    return AQ_OK;
}

TEST(commit_makes_it_visible) {
    aq_staging staging;
    aq_error err;
    fresh();
    CHECK_STATUS(begin(&staging, "out", false, &err), AQ_OK);
    CHECK(!there("out"));
    CHECK_STATUS(aq_staging_commit(&staging, &err), AQ_OK);
    aq_staging_end(&staging);
    CHECK(there("out/config.json"));
    CHECK(entries() == 2);
}

TEST(abandoned_leaves_nothing) {
    aq_staging staging;
    fresh();
    CHECK_STATUS(begin(&staging, "out", false, NULL), AQ_OK);
    CHECK(entries() == 3 || entries() == 4); /* in, the folder, its lock */
    aq_staging_end(&staging);
    aq_staging_end(&staging); /* twice is allowed */
    CHECK(entries() == 1);
}

TEST(existing_output) {
    aq_staging staging;
    aq_error err;
    char path[1024];
    fresh();
    path_of(path, "out");
    CHECK_STATUS(aq_make_folder(path, NULL), AQ_OK);
    put("out/config.json", "{\"old\":1}");
    CHECK_STATUS(begin(&staging, "out", false, &err), AQ_ERR_EXISTS);
    CHECK(strstr(err.message, "overwrite") != NULL);
    CHECK_STATUS(begin(&staging, "out", true, &err), AQ_OK);
    CHECK_STATUS(aq_staging_commit(&staging, &err), AQ_OK);
    aq_staging_end(&staging);
    aq_arena arena;
    char *text = NULL;
    size_t size;
    aq_arena_init(&arena, NULL);
    path_of(path, "out/config.json");
    CHECK_STATUS(aq_read_text(&arena, path, 100, &text, &size, NULL), AQ_OK);
    CHECK_STR(text, "{\"new\":1}");
    aq_arena_free(&arena);
    CHECK(entries() == 2);
}

TEST(never_replaces_what_is_no_model) {
    aq_staging staging;
    aq_error err;
    char path[1024];
    fresh();
    path_of(path, "home");
    CHECK_STATUS(aq_make_folder(path, NULL), AQ_OK);
    put("home/letters.txt", "dear");
    CHECK_STATUS(begin(&staging, "home", true, &err), AQ_ERR_EXISTS);
    put("file", "x");
    CHECK_STATUS(begin(&staging, "file", true, &err), AQ_ERR_EXISTS);
    CHECK(there("home/letters.txt"));
    CHECK(there("file"));
}

TEST(output_and_input_apart) {
    aq_staging staging;
    aq_error err;
    fresh();
    CHECK_STATUS(begin(&staging, "in", true, &err), AQ_ERR_IO);
    CHECK_STATUS(begin(&staging, "in/out", false, &err), AQ_ERR_IO);
    CHECK_STATUS(begin(&staging, ".", true, &err), AQ_ERR_IO);
    CHECK_STATUS(begin(&staging, "in2", false, &err), AQ_OK); /* a prefix is not a parent */
    aq_staging_end(&staging);
    CHECK_STATUS(begin(&staging, "nowhere/out", false, &err), AQ_ERR_IO);
    CHECK(entries() == 1);
}

TEST(left_overs_are_removed_and_living_ones_are_not) {
    aq_staging first, second;
    char path[1024];
    fresh();
    path_of(path, ".out.aq-tmp-99-0");
    CHECK_STATUS(aq_make_folder(path, NULL), AQ_OK);
    put(".out.aq-tmp-99-0/part", "x");
    put(".out.aq-tmp-99-0.lock", "");
    path_of(path, ".out.aq-tmp-98-0"); /* its lock is gone already */
    CHECK_STATUS(aq_make_folder(path, NULL), AQ_OK);
    path_of(path, ".out2.aq-tmp-98-0"); /* of another output */
    CHECK_STATUS(aq_make_folder(path, NULL), AQ_OK);
    CHECK_STATUS(begin(&first, "out", false, NULL), AQ_OK);
    CHECK(!there(".out.aq-tmp-99-0") && !there(".out.aq-tmp-99-0.lock"));
    CHECK(!there(".out.aq-tmp-98-0"));
    CHECK(there(".out2.aq-tmp-98-0"));
    CHECK_STATUS(begin(&second, "out", false, NULL), AQ_OK);
    CHECK(aq_path_kind_of(first.folder) == AQ_PATH_FOLDER);
    CHECK_STATUS(aq_staging_commit(&second, NULL), AQ_OK);
    aq_staging_end(&second);
    CHECK_STATUS(aq_staging_commit(&first, NULL), AQ_ERR_EXISTS);
    aq_staging_end(&first);
    CHECK(there("out/config.json"));
}

int main(int argc, char **argv) {
    const char *folder = getenv("TMPDIR");
    (void)argc;
    (void)argv;
    aq_format(root, sizeof(root), "%s/staging_test-%llu", folder && *folder ? folder : "/tmp",
              (unsigned long long)aq_process_id());
    RUN(commit_makes_it_visible);
    RUN(abandoned_leaves_nothing);
    RUN(existing_output);
    RUN(never_replaces_what_is_no_model);
    RUN(output_and_input_apart);
    RUN(left_overs_are_removed_and_living_ones_are_not);
    aq_remove_tree(NULL, root, NULL);
    return test_end();
}
