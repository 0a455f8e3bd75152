/* test_storage.c: one set of promises that every store keeps, then what only the file can lose. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "storage/storage.h"
#include "support/array_store.h"
#include "support/sqlite_whole.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- faults of the operating system, injected where SQLite calls it ---- */

static bool disk_full;
static const char *_Atomic sync_fails; /* for files whose name ends so; the store syncs on two threads */

static int sync_or_fail(int fd, long call) {
    char link[64], name[256] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const char *fails = sync_fails;
    ssize_t len = fails ? readlink(link, name, sizeof name - 1) : 0;
    size_t end = fails ? strlen(fails) : 0;
    errno = EIO;
    return fails && len >= (ssize_t)end && strcmp(name + len - end, fails) == 0 ? -1 : (int)syscall(call, fd);
}

int fsync(int fd) {
    return sync_or_fail(fd, SYS_fsync);
}

int fdatasync(int fd) {
    return sync_or_fail(fd, SYS_fdatasync);
}

static ssize_t full_pwrite(int fd, const void *p, size_t n, off_t at) {
    errno = ENOSPC;
    return disk_full ? -1 : pwrite(fd, p, n, at);
}

/* ---- fixture: one store of each sort behind the same test ---- */

enum sort { FILE_STORE, MEMORY_STORE, ARRAY_STORE };

struct fixture {
    enum sort sort;
    char dir[64], path[80];
    struct array_faults disk;
    struct store *store;
    uint64_t term, seq;
    struct error err;
};

static struct store *try_open(struct fixture *f) {
    const char *path = f->sort == FILE_STORE ? f->path : NULL;
    return f->sort == ARRAY_STORE ? store_array_open(&f->disk) : store_sqlite_open(path, env_system(), false, &f->err);
}

static void claim(struct fixture *f) {
    assert_int_equal(f->store->ops->claim(f->store, STR("tester"), &f->term, &f->seq, &f->err), LOOM_OK);
}

static void open_store(struct fixture *f) {
    f->store = try_open(f);
    if (!f->store) fail_msg("%s", f->err.message);
    claim(f);
}

static void close_store(struct fixture *f) {
    if (f->store) f->store->ops->close(f->store);
    f->store = NULL;
}

static int set_up(void **state) {
    struct fixture *f = mem_alloc(sizeof *f);
    f->sort = *(enum sort *)*state;
    strcpy(f->dir, "/tmp/loom-storage-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof f->path, "%s/store", f->dir);
    open_store(f);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    char command[128];
    sync_fails = NULL;
    disk_full = false;
    close_store(f);
    array_free(&f->disk);
    snprintf(command, sizeof command, "rm -r %s", f->dir);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

static enum commit_outcome commit(struct fixture *f, struct row *rows, size_t count) {
    struct batch b = {f->term, f->seq + 1, rows, count};
    enum commit_outcome outcome = f->store->ops->commit(f->store, &b, &f->err);
    if (outcome == COMMIT_OK) outcome = f->store->ops->sync(f->store, &f->err);
    f->seq += outcome == COMMIT_OK;
    return outcome;
}

static void put(struct fixture *f, enum row_kind kind, struct str key, struct str value) {
    if (commit(f, &(struct row){kind, key, value}, 1) != COMMIT_OK) fail_msg("%s", f->err.message);
}

static void expect(struct fixture *f, enum row_kind kind, struct str key, struct str value) {
    struct buf out = {0};
    int rc = store_load(f->store, kind, key, &out, &f->err);
    assert_int_equal(rc, value.p ? 1 : 0);
    assert_true(str_eq(buf_view(&out), value));
    buf_free(&out);
}

static bool collect(void *ctx, struct str key, struct str value) {
    buf_json(ctx, "%q=%q;", key, value);
    if (!value.p) buf_str(ctx, STR("damaged;"));
    return true;
}

static bool collect_one(void *ctx, struct str key, struct str value) {
    collect(ctx, key, value);
    return false;
}

static void scan(struct fixture *f, struct str from, struct str to, row_fn fn, struct buf *out) {
    buf_clear(out);
    assert_int_equal(f->store->ops->scan(f->store, ROW_TIMER, from, to, fn, out, &f->err), LOOM_OK);
}

static void expect_scan(struct fixture *f, struct str from, struct str to, const char *text) {
    struct buf out = {0};
    scan(f, from, to, collect, &out);
    buf_char(&out, 0);
    assert_string_equal(out.p, text);
    buf_free(&out);
}

/* ---- what every store does ---- */

/* Goal: a row is there after its commit, changed by the next, gone after a delete; kinds do not mix. */
static void rows_come_change_and_go(void **state) {
    struct fixture *f = *state;
    expect(f, ROW_ACTOR, STR("a"), STR_NONE);
    put(f, ROW_ACTOR, STR("a"), STR("{\"n\":1}"));
    expect(f, ROW_ACTOR, STR("a"), STR("{\"n\":1}"));
    expect(f, ROW_JOURNAL, STR("a"), STR_NONE);
    put(f, ROW_ACTOR, STR("a"), STR("2"));
    expect(f, ROW_ACTOR, STR("a"), STR("2"));
    put(f, ROW_ACTOR, STR("a"), STR_NONE);
    expect(f, ROW_ACTOR, STR("a"), STR_NONE);
    put(f, ROW_ACTOR, STR("never there"), STR_NONE);
}

/* Goal: a batch may change one row several times; the last change counts. */
static void last_change_of_a_batch_counts(void **state) {
    struct fixture *f = *state;
    struct row rows[] = {{ROW_ACTOR, STR("a"), STR("1")},
                         {ROW_ACTOR, STR("b"), STR("1")},
                         {ROW_ACTOR, STR("a"), STR("2")},
                         {ROW_ACTOR, STR("b"), STR_NONE}};
    assert_int_equal(commit(f, rows, 4), COMMIT_OK);
    expect(f, ROW_ACTOR, STR("a"), STR("2"));
    expect(f, ROW_ACTOR, STR("b"), STR_NONE);
}

/* Goal: an empty batch commits and raises seq. */
static void empty_batch_raises_seq(void **state) {
    struct fixture *f = *state;
    assert_int_equal(commit(f, NULL, 0), COMMIT_OK);
    uint64_t seq = f->seq;
    claim(f);
    assert_int_equal(f->seq, seq);
}

/* Goal: scans are in bytewise order, hold `from`, leave out `to`, and stop when told. */
static void scan_is_ordered_and_half_open(void **state) {
    struct fixture *f = *state;
    struct buf out = {0};
    struct row rows[] = {{ROW_TIMER, STR("b"), STR("3")},     {ROW_TIMER, STR("a\0z"), STR("2")},
                         {ROW_TIMER, STR("a"), STR("1")},     {ROW_TIMER, STR("\xC3\xA9"), STR("5")},
                         {ROW_TIMER, STR("b\xFF"), STR("4")}, {ROW_OUTBOX, STR("a"), STR("other")},
                         {ROW_TIMER, STR(""), STR("0")}};
    assert_int_equal(commit(f, rows, 7), COMMIT_OK);
    expect_scan(f, STR_NONE, STR_NONE,
                "\"\"=\"0\";\"a\"=\"1\";\"a\\u0000z\"=\"2\";\"b\"=\"3\";\"b?\"=\"4\";\"\xC3\xA9\"=\"5\";");
    expect_scan(f, STR("a"), STR("b"), "\"a\"=\"1\";\"a\\u0000z\"=\"2\";");
    expect_scan(f, STR("a\0"), STR("a\1"), "\"a\\u0000z\"=\"2\";");
    expect_scan(f, STR("b"), STR("b"), "");
    expect_scan(f, STR("x"), STR("a"), "");
    expect_scan(f, STR("\xFF"), STR_NONE, "");
    scan(f, STR_NONE, STR_NONE, collect_one, &out);
    assert_true(str_eq(buf_view(&out), STR("\"\"=\"0\";")));
    buf_free(&out);
}

/* Goal: JSON text comes back byte for byte, whatever characters it holds, and however large it is. */
static void bytes_come_back_as_they_were(void **state) {
    struct fixture *f = *state;
    const struct str values[] = {STR("\"\\u0000\""),
                                 STR("\"\xF4\x8F\xBF\xBF\""),
                                 STR("123456789012345678901234567890"),
                                 STR("\"\xEF\xBF\xBE\x7F\""),
                                 STR("1E400"),
                                 STR(" [ ] "),
                                 STR("\"\xC2\x80'--\""),
                                 STR("-0.0"),
                                 STR("")};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        put(f, ROW_ACTOR, STR("v"), values[i]);
        expect(f, ROW_ACTOR, STR("v"), values[i]);
    }
    struct str big = {mem_alloc(300 * 1024), 300 * 1024};
    for (size_t i = 0; i < big.n; i++) ((char *)(uintptr_t)big.p)[i] = (char)(32 + i % 90);
    put(f, ROW_ACTOR, STR("big"), big);
    expect(f, ROW_ACTOR, STR("big"), big);
    char key[300];
    memset(key, 'k', sizeof key);
    put(f, ROW_ACTOR, (struct str){key, sizeof key}, STR("1"));
    expect(f, ROW_ACTOR, (struct str){key, sizeof key}, STR("1"));
    free((void *)(uintptr_t)big.p);
}

/* Goal: a writer whose term is over changes nothing, neither by writing nor by deleting. */
static void stale_term_changes_nothing(void **state) {
    struct fixture *f = *state;
    put(f, ROW_ACTOR, STR("a"), STR("1"));
    struct fixture old = *f;
    claim(f);
    assert_true(f->term > old.term);
    assert_int_equal(f->seq, old.seq);
    struct row change[] = {{ROW_ACTOR, STR("b"), STR("1")}, {ROW_ACTOR, STR("a"), STR_NONE}};
    assert_int_equal(commit(&old, change, 2), COMMIT_CONFLICT);
    assert_string_equal(old.err.code, "conflict");
    assert_int_equal(commit(&old, change + 1, 1), COMMIT_CONFLICT);
    expect(f, ROW_ACTOR, STR("a"), STR("1"));
    expect(f, ROW_ACTOR, STR("b"), STR_NONE);
    put(f, ROW_ACTOR, STR("b"), STR("2"));
    expect(f, ROW_ACTOR, STR("b"), STR("2"));
}

/* Goal: what was committed is there after closing and opening, with its seq and a higher term. */
static void reopened_store_knows_everything(void **state) {
    struct fixture *f = *state;
    if (f->sort == MEMORY_STORE) return;
    put(f, ROW_ACTOR, STR("a"), STR("1"));
    uint64_t term = f->term, seq = f->seq;
    close_store(f);
    open_store(f);
    assert_true(f->term > term);
    assert_int_equal(f->seq, seq);
    expect(f, ROW_ACTOR, STR("a"), STR("1"));
}

#define ON_EACH(test)                                                                            \
    {#test " (file)", test, set_up, tear_down, (void *)(uintptr_t)&sorts[FILE_STORE]},           \
        {#test " (memory)", test, set_up, tear_down, (void *)(uintptr_t)&sorts[MEMORY_STORE]}, { \
#test " (array)", test, set_up, tear_down, (void *)(uintptr_t)&sorts[ARRAY_STORE]        \
    }
#define ON(sort, test) \
    { #test, test, set_up, tear_down, (void *)(uintptr_t)&sorts[sort] }
static const enum sort sorts[] = {FILE_STORE, MEMORY_STORE, ARRAY_STORE};

/* ---- random operations, the same on all three ---- */

static uint64_t dice;

static uint32_t roll(uint32_t n) {
    dice = hash64(STR("dice"), dice);
    return (uint32_t)(dice >> 20) % n;
}

/* Short keys over few letters, so that they collide, hold NULs and are prefixes of each other. */
static struct str random_key(char key[4]) {
    size_t n = roll(4);
    for (size_t i = 0; i < n; i++) key[i] = "\0ab\xFF"[roll(4)];
    return (struct str){key, n};
}

static void random_batch(struct fixture stores[3]) {
    static char keys[20][4], values[20][64];
    struct row rows[20];
    size_t count = roll(20);
    for (size_t i = 0; i < count; i++) {
        int n = snprintf(values[i], sizeof values[i], "{\"v\":%u}", roll(1000));
        rows[i] = (struct row){roll(3) ? ROW_TIMER : ROW_ACTOR, random_key(keys[i]),
                               roll(4) ? (struct str){values[i], (size_t)n} : STR_NONE};
    }
    bool stale = roll(10) == 0;
    for (int i = 0; i < 3; i++) {
        stores[i].term -= stale;
        assert_int_equal(commit(&stores[i], rows, count), stale ? COMMIT_CONFLICT : COMMIT_OK);
        stores[i].term += stale;
    }
}

static void compare(struct fixture stores[3]) {
    char a[4], b[4];
    struct str from = random_key(a), to = roll(3) ? random_key(b) : STR_NONE;
    row_fn fn = roll(8) ? collect : collect_one;
    struct buf want = {0}, got = {0};
    scan(&stores[ARRAY_STORE], from, to, fn, &want);
    for (int i = FILE_STORE; i < ARRAY_STORE; i++) {
        scan(&stores[i], from, to, fn, &got);
        assert_true(str_eq(buf_view(&got), buf_view(&want)));
    }
    buf_free(&want);
    buf_free(&got);
}

/* Goal: 1,000 random batches leave the same rows in all stores, closing and opening the file in between. */
static void random_operations_agree(void **state) {
    struct fixture *f = *state, stores[3] = {*f, {.sort = MEMORY_STORE}, {.sort = ARRAY_STORE}};
    env_system()->random(env_system(), &dice, sizeof dice);
    print_message("seed %llu\n", (unsigned long long)dice);
    for (int i = MEMORY_STORE; i <= ARRAY_STORE; i++) open_store(&stores[i]);
    for (int i = 0; i < 1000; i++) {
        random_batch(stores);
        compare(stores);
        if (roll(100) == 0) {
            close_store(&stores[FILE_STORE]);
            open_store(&stores[FILE_STORE]);
        }
    }
    for (int i = MEMORY_STORE; i <= ARRAY_STORE; i++) close_store(&stores[i]);
    array_free(&stores[ARRAY_STORE].disk);
    *f = stores[FILE_STORE];
}

/* ---- faults ---- */

/* Goal: the array store fails the commit it was told to, with or without its rows. */
static void array_store_fails_on_order(void **state) {
    struct fixture *f = *state;
    f->disk.fail_at = 2;
    f->disk.outcome = COMMIT_FATAL;
    put(f, ROW_ACTOR, STR("a"), STR("1"));
    assert_int_equal(commit(f, &(struct row){ROW_ACTOR, STR("a"), STR("2")}, 1), COMMIT_FATAL);
    expect(f, ROW_ACTOR, STR("a"), STR("1"));
    put(f, ROW_ACTOR, STR("a"), STR("3"));
    f->disk = (struct array_faults){.fail_at = 4,
                                    .forever = true,
                                    .applied = true,
                                    .outcome = COMMIT_FATAL,
                                    .commits = 3,
                                    .term = f->disk.term,
                                    .seq = f->disk.seq,
                                    .rows = f->disk.rows,
                                    .count = f->disk.count,
                                    .cap = f->disk.cap};
    assert_int_equal(commit(f, &(struct row){ROW_ACTOR, STR("a"), STR("4")}, 1), COMMIT_FATAL);
    expect(f, ROW_ACTOR, STR("a"), STR("4"));
    assert_int_equal(commit(f, NULL, 0), COMMIT_FATAL);
    array_damage(&f->disk, ROW_ACTOR, STR("a"), STR_NONE);
    assert_int_equal(store_load(f->store, ROW_ACTOR, STR("a"), &(struct buf){0}, &f->err), LOOM_E_DAMAGED);
}

/* Goal: a second process is refused and told who holds the store. */
static void fault_10_second_process_is_refused(void **state) {
    struct fixture *f = *state;
    char pid[32], byte;
    int ready[2];
    close_store(f);
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        bool opened = try_open(f) != NULL;
        if (write(ready[1], "x", 1) == 1) pause();
        _exit(opened ? 0 : 1);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_null(try_open(f));
    snprintf(pid, sizeof pid, "in use by process %d;", (int)child);
    assert_string_equal(f->err.code, "conflict");
    assert_non_null(strstr(f->err.message, pid));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    open_store(f);
    close(ready[0]);
    close(ready[1]);
}

/* Goal: a process that is just dying does not keep the next one out. */
static void dying_process_is_waited_for(void **state) {
    struct fixture *f = *state;
    char byte;
    int ready[2];
    close_store(f);
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        bool opened = try_open(f) != NULL;
        if (write(ready[1], "x", 1) == 1) usleep(300000);
        _exit(opened ? 0 : 1);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    open_store(f);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    close(ready[0]);
    close(ready[1]);
}

static void sql(const char *path, const char *text) {
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, text, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
}

static void refused(struct fixture *f, const char *code, const char *words) {
    assert_null(try_open(f));
    assert_string_equal(f->err.code, code);
    if (!strstr(f->err.message, words)) fail_msg("expected \"%s\" in: %s", words, f->err.message);
}

/* Goal: a store of a newer format is refused, with both numbers. */
static void newer_format_is_refused(void **state) {
    struct fixture *f = *state;
    close_store(f);
    sql(f->path, "PRAGMA user_version = 7");
    refused(f, "conflict", "has format 7, this Loom's is 3; use a newer Loom");
}

/* Goal: a store of an older format is refused with what brings it over (golden.sh does that). */
static void older_format_is_refused(void **state) {
    struct fixture *f = *state;
    close_store(f);
    sql(f->path, "PRAGMA user_version = 2");
    refused(f, "conflict", "make a new one of it: loom debug dump --store DIR | loom debug restore");
}

/* Goal: what is not a store, or cannot be opened, is refused by name. */
static void other_files_are_refused(void **state) {
    struct fixture *f = *state;
    close_store(f);
    int fd = open(f->path, O_WRONLY | O_TRUNC);
    assert_int_equal(write(fd,
                           "this is a text and no store, long enough to be read as a header of one, or so; it goes on "
                           "for more than a hundred bytes",
                           120),
                     120);
    close(fd);
    refused(f, "store", "tells what is damaged");
    snprintf(f->path, sizeof f->path, "%s/none/store", f->dir);
    refused(f, "store", "No such file or directory");
}

static struct str read_file(const char *path) {
    struct stat st;
    int fd = open(path, O_RDONLY);
    assert_int_equal(fstat(fd, &st), 0);
    char *p = mem_alloc((size_t)st.st_size);
    assert_int_equal(read(fd, p, (size_t)st.st_size), st.st_size);
    close(fd);
    return (struct str){p, (size_t)st.st_size};
}

static void write_file(const char *path, struct str bytes) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(write(fd, bytes.p, bytes.n), (ssize_t)bytes.n);
    close(fd);
}

/* Goal: an older copy put in the store's place is refused, until that is said to be meant. */
static void restored_backup_is_refused(void **state) {
    struct fixture *f = *state;
    put(f, ROW_ACTOR, STR("a"), STR("1"));
    close_store(f);
    struct str backup = read_file(f->path);
    open_store(f);
    put(f, ROW_ACTOR, STR("a"), STR("2"));
    close_store(f);
    write_file(f->path, backup);
    refused(f, "conflict", "--accept-restored");
    refused(f, "conflict", "it ends at batch 1, seen was 2");
    f->store = store_sqlite_open(f->path, env_system(), true, &f->err);
    assert_non_null(f->store);
    claim(f);
    close_store(f);
    open_store(f);
    expect(f, ROW_ACTOR, STR("a"), STR("1"));
    close_store(f);
    unlink(f->path);
    refused(f, "conflict", "--accept-restored");
    free((void *)(uintptr_t)backup.p);
}

/* Goal: a full disk refuses the batch as a whole, reads go on, and writing resumes by itself. */
static void full_disk_heals(void **state) {
    struct fixture *f = *state;
    sqlite3_vfs *vfs = sqlite3_vfs_find(NULL);
    put(f, ROW_ACTOR, STR("a"), STR("1"));
    vfs->xSetSystemCall(vfs, "pwrite", (sqlite3_syscall_ptr)full_pwrite);
    vfs->xSetSystemCall(vfs, "pwrite64", (sqlite3_syscall_ptr)full_pwrite);
    disk_full = true;
    struct row rows[] = {{ROW_ACTOR, STR("a"), STR("2")}, {ROW_ACTOR, STR("b"), STR("2")}};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(commit(f, rows, 2), COMMIT_FULL);
        assert_string_equal(f->err.code, "disk_full");
        expect(f, ROW_ACTOR, STR("a"), STR("1"));
        expect(f, ROW_ACTOR, STR("b"), STR_NONE);
    }
    disk_full = false;
    assert_int_equal(commit(f, rows, 2), COMMIT_OK);
    expect(f, ROW_ACTOR, STR("b"), STR("2"));
    vfs->xSetSystemCall(vfs, NULL, NULL);
}

/* Goal: after a failed fsync nothing is written any more; the next open copies the store into a new, synced file. */
static void failed_fsync_rewrites_the_store(void **state) {
    struct fixture *f = *state;
    struct stat before, after;
    char marker[100];
    snprintf(marker, sizeof marker, "%s.fsync-failed", f->path);
    put(f, ROW_ACTOR, STR("a"), STR("1"));
    sync_fails = "store-wal";
    assert_int_equal(commit(f, &(struct row){ROW_ACTOR, STR("a"), STR("2")}, 1), COMMIT_FATAL);
    sync_fails = NULL;
    assert_int_equal(commit(f, &(struct row){ROW_ACTOR, STR("a"), STR("3")}, 1), COMMIT_FATAL);
    assert_int_equal(access(marker, F_OK), 0);
    close_store(f);
    assert_int_equal(stat(f->path, &before), 0);
    open_store(f);
    assert_int_equal(stat(f->path, &after), 0);
    assert_int_not_equal(before.st_ino, after.st_ino);
    assert_int_equal(access(marker, F_OK), -1);
    put(f, ROW_ACTOR, STR("b"), STR("4"));
    close_store(f);
    open_store(f);
    expect(f, ROW_ACTOR, STR("b"), STR("4"));
    struct buf a = {0}; /* the refused batch may be there or not, as after any crash */
    assert_int_equal(store_load(f->store, ROW_ACTOR, STR("a"), &a, NULL), 1);
    assert_true(str_eq(buf_view(&a), STR("1")) || str_eq(buf_view(&a), STR("2")));
    buf_free(&a);
}

/* Goal: a failed fsync of a checkpoint is noticed too; the batch that meets it is there wholly or not at all. */
static void failed_checkpoint_is_fatal(void **state) {
    struct fixture *f = *state;
    size_t n = 200 * 1024;
    char *big = mem_alloc(n);
    enum commit_outcome outcome = COMMIT_OK;
    int batches = 0;
    sync_fails = "/store";
    for (; batches < 200 && outcome == COMMIT_OK; batches++) {
        memset(big, 'a' + batches % 26, n);
        outcome = commit(f, &(struct row){ROW_ACTOR, STR("a"), {big, n}}, 1);
    }
    assert_int_equal(outcome, COMMIT_FATAL);
    assert_true(batches > 40);
    sync_fails = NULL;
    close_store(f);
    open_store(f);
    assert_in_range(f->seq, batches - 1, batches);
    memset(big, 'a' + (int)(f->seq - 1) % 26, n);
    expect(f, ROW_ACTOR, STR("a"), (struct str){big, n});
    free(big);
}

/* ---- damage ---- */

enum { ROWS = 150 };

static struct str row_key(int i, char key[32]) {
    return (struct str){key, (size_t)snprintf(key, 32, "default/order/%d", i)};
}

static struct str row_value(int i, char value[64]) {
    return (struct str){value, (size_t)snprintf(value, 64, "{\"order\":%d,\"text\":\"%d%d%d\"}", i, i * 7, i * 77, i)};
}

/* Never a wrong value, nor one that is not there; answers how many rows cannot be read. */
static int read_damaged(struct fixture *f) {
    int unreadable = 0;
    for (int i = 0; i < ROWS; i++) {
        char key[32], value[64];
        struct buf out = {0};
        int rc = store_load(f->store, ROW_ACTOR, row_key(i, key), &out, &f->err);
        assert_int_not_equal(rc, 0);
        if (rc == 1) assert_true(str_eq(buf_view(&out), row_value(i, value)));
        unreadable += rc < 0;
        buf_free(&out);
    }
    return unreadable;
}

static bool check_row(void *ctx, struct str key, struct str value) {
    char text[64], number[8] = "";
    (void)ctx;
    if (!value.p) return true;
    assert_true(key.n > 14 && key.n < 20);
    memcpy(number, key.p + 14, key.n - 14);
    assert_true(str_eq(value, row_value(atoi(number), text)));
    return true;
}

/* Goal: whichever byte of the file flips, no read gives a wrong value or finds nothing; what the index cannot tell is refused
 * with the page named. */
static void flipped_bytes_never_give_a_wrong_value(void **state) {
    struct fixture *f = *state;
    char key[32], value[64];
    for (int i = 0; i < ROWS; i++) put(f, ROW_ACTOR, row_key(i, key), row_value(i, value));
    close_store(f);
    struct str whole = read_file(f->path);
    int refusals = 0, pages = 0, rows = 0, runs = 0;
    for (size_t at = 0; at < whole.n; at += 61) {
        char *byte = (char *)(uintptr_t)whole.p + at;
        *byte ^= (char)(1 << at % 8);
        write_file(f->path, whole);
        *byte ^= (char)(1 << at % 8);
        f->err.message[0] = '\0';
        f->store = store_sqlite_open(f->path, env_system(), true, &f->err);
        runs++;
        if (!f->store) {
            refusals++;
            continue;
        }
        int unreadable = read_damaged(f);
        char page[32];
        snprintf(page, sizeof page, "page %zu)", at / 4096 + 1);
        bool named = strstr(f->err.message, page) != NULL;
        if (unreadable > 1) assert_true(named);
        pages += named;
        rows += unreadable == 1;
        f->store->ops->scan(f->store, ROW_ACTOR, STR_NONE, STR_NONE, check_row, NULL, &f->err);
        close_store(f);
    }
    print_message("%d flips: %d refused at open, %d with a page named, %d hit one row\n", runs, refusals, pages, rows);
    assert_true(refusals && pages && rows);
    free((void *)(uintptr_t)whole.p);
    write_file(f->path, STR(""));
}

/* Goal: a damaged value is reported with its key, and a scan goes on behind it. */
static void damaged_row_is_named(void **state) {
    struct fixture *f = *state;
    put(f, ROW_TIMER, STR("a"), STR("1"));
    put(f, ROW_TIMER, STR("b"), STR("2"));
    close_store(f);
    sql(f->path, "UPDATE rows SET value = '7' WHERE key = x'61'");
    open_store(f);
    struct buf out = {0};
    assert_int_equal(store_load(f->store, ROW_TIMER, STR("a"), &out, &f->err), LOOM_E_DAMAGED);
    assert_int_equal(out.n, 0);
    expect_scan(f, STR_NONE, STR_NONE, "\"a\"=\"\";damaged;\"b\"=\"2\";");
    assert_true(sqlite_whole(f->path));
}

static int print_row(void *out, int n, char **values, char **names) {
    (void)names;
    for (int i = 0; i < n; i++) buf_json(out, "%s|", values[i]);
    return 0;
}

/* Goal: people can read the rows with the sqlite3 shell, the key split at its first NUL. */
static void views_are_readable(void **state) {
    struct fixture *f = *state;
    struct buf out = {0};
    sqlite3 *db;
    put(f, ROW_ACTOR, STR("default/order/1"), STR("{\"status\":\"idle\"}"));
    put(f, ROW_JOURNAL,
        STR("default/order/1\0"
            "0007"),
        STR("[{\"type\":\"timer_set\"}]"));
    assert_int_equal(sqlite3_open(f->path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "SELECT key, part, value ->> 'status' FROM actor", print_row, &out, NULL),
                     SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "SELECT key, part, value FROM journal", print_row, &out, NULL), SQLITE_OK);
    assert_true(str_eq(buf_view(&out), STR("default/order/1||idle|default/order/1|0007|[{\"type\":\"timer_set\"}]|")));
    sqlite3_close(db);
    buf_free(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_EACH(rows_come_change_and_go),
        ON_EACH(last_change_of_a_batch_counts),
        ON_EACH(empty_batch_raises_seq),
        ON_EACH(scan_is_ordered_and_half_open),
        ON_EACH(bytes_come_back_as_they_were),
        ON_EACH(stale_term_changes_nothing),
        ON_EACH(reopened_store_knows_everything),
        ON(FILE_STORE, random_operations_agree),
        ON(ARRAY_STORE, array_store_fails_on_order),
        ON(FILE_STORE, fault_10_second_process_is_refused),
        ON(FILE_STORE, dying_process_is_waited_for),
        ON(FILE_STORE, newer_format_is_refused),
        ON(FILE_STORE, older_format_is_refused),
        ON(FILE_STORE, other_files_are_refused),
        ON(FILE_STORE, restored_backup_is_refused),
        ON(FILE_STORE, full_disk_heals),
        ON(FILE_STORE, failed_fsync_rewrites_the_store),
        ON(FILE_STORE, failed_checkpoint_is_fatal),
        ON(FILE_STORE, damaged_row_is_named),
        ON(FILE_STORE, flipped_bytes_never_give_a_wrong_value),
        ON(FILE_STORE, views_are_readable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
