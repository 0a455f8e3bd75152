/* test_blob.c: blobs in files and in memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "storage/storage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct fixture {
    char dir[64], blobs[80];
    struct blob_store *files, *memory;
};

static int set_up(void **state) {
    struct fixture *f = mem_alloc(sizeof *f);
    strcpy(f->dir, "/tmp/loom-blob-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->blobs, sizeof f->blobs, "%s/blobs", f->dir);
    f->files = blob_file_open(f->blobs, NULL);
    f->memory = blob_file_open(NULL, NULL);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    char command[128];
    f->files->ops->close(f->files);
    f->memory->ops->close(f->memory);
    snprintf(command, sizeof command, "rm -r %s", f->dir);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

static void round_trip(struct blob_store *s, struct str bytes) {
    char hex[65], want[65];
    struct buf out = {0};
    buf_char(&out, '>');
    for (int i = 0; i < 2; i++) assert_int_equal(s->ops->put(s, bytes, hex, NULL), LOOM_OK);
    sha256_hex(bytes, want);
    assert_string_equal(hex, want);
    assert_int_equal(s->ops->get(s, hex, &out, NULL), LOOM_OK);
    assert_int_equal(out.p[0], '>');
    assert_true(str_eq((struct str){out.p + 1, out.n - 1}, bytes));
    buf_free(&out);
}

/* Goal: any bytes come back, put twice or not, after a new opening too. */
static void blobs_come_back(void **state) {
    struct fixture *f = *state;
    static char big[300 * 1024];
    for (size_t i = 0; i < sizeof big; i++) big[i] = (char)(i * 7);
    struct str bytes[] = {STR(""), STR("a\0b"), {big, sizeof big}, {big, 65536}};
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
            round_trip(f->files, bytes[i]);
            round_trip(f->memory, bytes[i]);
        }
        f->files->ops->close(f->files);
        f->files = blob_file_open(f->blobs, NULL);
    }
}

/* Goal: what is not there, or is no name at all, is not found; no name leads out of the folder. */
static void strange_names_are_not_found(void **state) {
    struct fixture *f = *state;
    const char *const names[] = {"",
                                 "a",
                                 "../../../../etc/passwd",
                                 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                                 "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
                                 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b8550",
                                 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855x",
                                 "../44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b8550"};
    struct buf out = {0};
    struct error err;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_int_equal(f->files->ops->get(f->files, names[i], &out, &err), LOOM_E_NOT_FOUND);
        assert_int_equal(f->memory->ops->get(f->memory, names[i], &out, &err), LOOM_E_NOT_FOUND);
    }
    assert_int_equal(out.n, 0);
}

/* Goal: a file that does not match its name is reported as damaged, and nothing of it is handed out. */
static void damaged_files_are_reported(void **state) {
    struct fixture *f = *state;
    char hex[65], path[200];
    struct buf out = {0};
    struct error err;
    f->files->ops->put(f->files, STR("precious"), hex, NULL);
    snprintf(path, sizeof path, "%s/%.2s/%s", f->blobs, hex, hex + 2);
    assert_int_equal(truncate(path, 4), 0);
    assert_int_equal(f->files->ops->get(f->files, hex, &out, &err), LOOM_E_DAMAGED);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(out.n, 0);
    buf_free(&out);
}

/* Goal: a file that cannot be read is an error of the disk, not a damaged blob. */
static void unreadable_files_are_no_damage(void **state) {
    struct fixture *f = *state;
    char hex[65], path[200];
    struct buf out = {0};
    struct error err;
    f->files->ops->put(f->files, STR("precious"), hex, NULL);
    snprintf(path, sizeof path, "%s/%.2s/%s", f->blobs, hex, hex + 2);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(f->files->ops->get(f->files, hex, &out, &err), LOOM_E_STORE);
    assert_non_null(strstr(err.message, "Is a directory"));
    assert_int_equal(out.n, 0);
    buf_free(&out);
}

/* Goal: a folder that cannot be used is named. */
static void unusable_folders_are_named(void **state) {
    struct fixture *f = *state;
    char path[200], hex[65];
    struct error err;
    snprintf(path, sizeof path, "%s/none/blobs", f->dir);
    assert_null(blob_file_open(path, &err));
    assert_non_null(strstr(err.message, path));
    assert_int_equal(rmdir(f->blobs), 0);
    assert_int_equal(f->files->ops->put(f->files, STR("x"), hex, &err), LOOM_E_STORE);
    assert_non_null(strstr(err.message, "No such file or directory"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(blobs_come_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(strange_names_are_not_found, set_up, tear_down),
        cmocka_unit_test_setup_teardown(damaged_files_are_reported, set_up, tear_down),
        cmocka_unit_test_setup_teardown(unreadable_files_are_no_damage, set_up, tear_down),
        cmocka_unit_test_setup_teardown(unusable_folders_are_named, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
