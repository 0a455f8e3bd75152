/* test_disk.c: what a store and its blobs keep when the disk under them fails, at every operation and in every way.
 *
 * A script of random batches, blobs, closing and opening runs once undisturbed, which tells how many operations it has.
 * Then it runs again for each operation and each fault. Whatever happens, the store opens again afterwards and holds every
 * batch that it acknowledged, and of the last one that it did not, everything or nothing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "storage/storage.h"
#include "support/array_store.h"
#include "support/sim_disk.h"
#include "support/sqlite_whole.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCHES = 6, ROWS = 6, SEED = 1, KEYS = 30 };

static const char path[] = SIM_ROOT "/store", blob_path[] = SIM_ROOT "/blobs";

/* ---- a clock of its own, so that a run repeats exactly ---- */

static int64_t clock_us;

static int64_t now_ms(struct env *env) {
    (void)env;
    return (clock_us += 400) / 1000;
}

static int64_t now_us(struct env *env) {
    (void)env;
    return clock_us += 400;
}

static void no_random(struct env *env, void *out, size_t n) {
    (void)env;
    memset(out, 7, n);
}

static bool no_thread(struct env *env, unsigned long *id, void *(*fn)(void *), void *arg) {
    (void)env, (void)id, (void)fn, (void)arg;
    return false;
}

static struct env clockwork = {
    .now_ms = now_ms, .mono_ms = now_ms, .mono_us = now_us, .random = no_random, .thread = no_thread};

/* ---- what is tested and what it is compared with ---- */

struct world {
    struct store *store;
    struct blob_store *blobs;
    uint64_t term, seq;
    struct array_faults sure, doubt; /* what was acknowledged; with the batch that was not, too */
    struct error err;
};

static struct {
    enum sim_fault fault;
    uint64_t at, seed;
    enum sim_fault second_fault; /* while the store opens again */
    uint64_t second;
} now;

#define must(w, condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            fail_msg("%s (%s); again: FAULT=%s AT=%llu SEED=%llu SECOND=%s SECOND_AT=%llu build/asan/test/test_disk",  \
                     #condition, (w)->err.message, sim_fault_names[now.fault], (unsigned long long)now.at,             \
                     (unsigned long long)now.seed, sim_fault_names[now.second_fault], (unsigned long long)now.second); \
    } while (0)

struct step {
    struct row rows[ROWS];
    char keys[ROWS][16], values[ROWS][5000], hex[65];
    size_t count;
};

/* The i-th batch is the same in every run. Its first row names a blob, which is put before. */
static struct step *step_make(int i) {
    static struct step s;
    uint64_t dice = hash64(STR("step"), (uint64_t)i);
    char bytes[600];
    memset(bytes, 'a' + i, sizeof bytes);
    sha256_hex((struct str){bytes, sizeof bytes}, s.hex);
    s.rows[0] = (struct row){ROW_MODULE, str_of(s.hex), STR("1")};
    for (s.count = 1; s.count < ROWS; s.count++) {
        struct row *r = &s.rows[s.count];
        dice = hash64(STR("row"), dice);
        int n = snprintf(s.keys[s.count], sizeof s.keys[0], "key-%u", (unsigned)(dice >> 20) % KEYS);
        size_t size = s.count == 1 ? sizeof s.values[0] : (size_t)(dice >> 30) % 200;
        memset(s.values[s.count], 'A' + i, size);
        *r = (struct row){ROW_ACTOR, {s.keys[s.count], (size_t)n}, {s.values[s.count], size}};
        if ((dice >> 40) % 5 == 0) r->value = STR_NONE;
    }
    return &s;
}

static void remember(struct array_faults *model, const struct step *s) {
    struct store *m = store_array_open(model);
    struct batch b = {model->term, model->seq + 1, (struct row *)(uintptr_t)s->rows, s->count};
    assert_int_equal(m->ops->commit(m, &b, NULL), COMMIT_OK);
    m->ops->close(m);
}

static bool print_row(void *out, struct str key, struct str value) {
    buf_json(out, "%q=%u\n", key, hash64(value, 0));
    return true;
}

static int print_rows(struct store *s, struct buf *out, struct error *err) {
    int rc = LOOM_OK;
    buf_clear(out);
    for (int kind = ROW_NONE + 1; kind < ROW_KIND_END && rc == LOOM_OK; kind++) {
        buf_json(out, "%s\n", row_kind_name((enum row_kind)kind));
        rc = s->ops->scan(s, (enum row_kind)kind, STR_NONE, STR_NONE, print_row, out, err);
    }
    return rc;
}

static bool holds(struct world *w, struct array_faults *model) {
    struct store *m = store_array_open(model);
    struct buf want = {0}, got = {0};
    must(w, print_rows(m, &want, &w->err) == LOOM_OK);
    must(w, print_rows(w->store, &got, &w->err) == LOOM_OK);
    bool same = str_eq(buf_view(&want), buf_view(&got));
    m->ops->close(m);
    buf_free(&want);
    buf_free(&got);
    return same;
}

static bool blob_is_there(void *ctx, struct str key, struct str value) {
    struct world *w = ctx;
    struct buf out = {0};
    char hex[65];
    (void)value;
    snprintf(hex, sizeof hex, "%.*s", (int)key.n, key.p);
    must(w, w->blobs->ops->get(w->blobs, hex, &out, &w->err) == LOOM_OK);
    buf_free(&out);
    return true;
}

static void close_all(struct world *w) {
    if (w->store) w->store->ops->close(w->store);
    if (w->blobs) w->blobs->ops->close(w->blobs);
    w->store = NULL;
    w->blobs = NULL;
}

static bool open_all(struct world *w) {
    w->err = (struct error){0};
    w->store = store_sqlite_open(path, &clockwork, false, &w->err);
    w->blobs = w->store ? blob_file_open(blob_path, &w->err) : NULL;
    if (w->blobs && w->store->ops->claim(w->store, STR("tester"), &w->term, &w->seq, &w->err) == LOOM_OK) return true;
    close_all(w);
    return false;
}

/* ---- the script ---- */

/* What the process does then: goes on, tries again, or ends. */
enum verdict { GOES_ON, AGAIN, ENDS };

static enum verdict commit_step(struct world *w, int i) {
    struct step *s = step_make(i);
    char bytes[600], hex[65];
    memset(bytes, 'a' + i, sizeof bytes);
    int put = w->blobs->ops->put(w->blobs, (struct str){bytes, sizeof bytes}, hex, &w->err);
    if (put < 0) return sim_dead() ? ENDS : AGAIN;
    struct batch b = {w->term, w->seq + 1, s->rows, s->count};
    array_free(&w->doubt);
    array_copy(&w->doubt, &w->sure);
    remember(&w->doubt, s);
    enum commit_outcome outcome = w->store->ops->commit(w->store, &b, &w->err);
    if (outcome == COMMIT_OK) outcome = w->store->ops->sync(w->store, &w->err);
    if (sim_dead() && outcome != COMMIT_OK) return ENDS;
    must(w, outcome == COMMIT_OK || sim_struck());
    must(w, outcome != COMMIT_FULL || now.fault == SIM_FULL || now.fault == SIM_FULL_ONCE);
    if (outcome == COMMIT_FATAL) return ENDS;
    if (outcome != COMMIT_OK) return AGAIN;
    remember(&w->sure, s);
    w->seq++;
    return GOES_ON;
}

/* One life of the process; where it stood when it ended. A full disk has space again when it was met three times; errors that
 * stay end the process. */
static int live(struct world *w, int from, bool closes) {
    int met = 0;
    for (int i = from; i < BATCHES; met++) {
        if (met >= 3 && (now.fault == SIM_EIO || now.fault == SIM_READ_EIO)) return i;
        if (met >= 3) sim_fail(SIM_NONE, 0);
        if (!w->store && !open_all(w)) {
            must(w, sim_struck());
            if (sim_dead() || now.fault == SIM_SYNC || met > 3) return i;
            continue;
        }
        enum verdict verdict = commit_step(w, i);
        must(w, met <= 4);
        if (verdict == ENDS) return i;
        if (verdict == AGAIN && now.fault < SIM_READ_EIO_ONCE) must(w, holds(w, &w->sure));
        if (verdict == AGAIN) continue;
        met = 0;
        if (++i == BATCHES / 2) close_all(w);
    }
    if (closes) close_all(w);
    return BATCHES;
}

static void check_all(struct world *w) {
    must(w, open_all(w));
    must(w, sqlite_whole(path));
    bool sure = holds(w, &w->sure);
    must(w, sure || holds(w, &w->doubt));
    if (!sure) {
        array_free(&w->sure);
        array_copy(&w->sure, &w->doubt);
    }
    must(w, w->store->ops->scan(w->store, ROW_MODULE, STR_NONE, STR_NONE, blob_is_there, w, &w->err) == LOOM_OK);
}

static struct world world;

/* A new world; what a failed test left open is closed. */
static struct world *begin(enum sim_fault fault, uint64_t at, uint64_t seed) {
    close_all(&world);
    array_free(&world.sure);
    array_free(&world.doubt);
    now.fault = fault;
    now.at = at;
    now.seed = seed;
    clock_us = 0;
    sim_format(seed);
    sim_fail(fault, at);
    return &world;
}

static int end(void **state) {
    (void)state;
    begin(SIM_NONE, 0, 0);
    return 0;
}

/* A life with the fault, one without, and then the power goes while the store is open. */
static void run(enum sim_fault fault, uint64_t at, uint64_t seed) {
    struct world *w = begin(fault, at, seed);
    int i = live(w, 0, true);
    close_all(w);
    sim_restart(fault == SIM_POWER || fault == SIM_EIO);
    check_all(w);
    live(w, i, false);
    sim_kill();
    close_all(w);
    sim_restart(true);
    check_all(w);
}

/* As run, with a second fault while the store opens again. False: the opening has fewer operations. */
static bool run_twice(const struct sim_image *after, const struct world *so_far, uint64_t second) {
    struct world *w = &world;
    sim_load(after);
    array_free(&w->sure);
    array_free(&w->doubt);
    array_copy(&w->sure, &so_far->sure);
    array_copy(&w->doubt, &so_far->doubt);
    now.second = second;
    sim_fail(now.second_fault, second);
    bool opened = open_all(w), struck = sim_struck();
    must(w, opened || struck);
    close_all(w);
    sim_restart(now.second_fault == SIM_POWER);
    check_all(w);
    close_all(w);
    sim_restart(true);
    check_all(w);
    close_all(w);
    return struck;
}

static size_t with_second_faults(enum sim_fault first, uint64_t at, uint64_t seed) {
    static const enum sim_fault seconds[] = {SIM_POWER, SIM_KILL, SIM_SYNC};
    struct world *w = begin(first, at, seed), so_far = {0};
    live(w, 0, true);
    close_all(w);
    sim_restart(first == SIM_POWER);
    array_copy(&so_far.sure, &w->sure);
    array_copy(&so_far.doubt, &w->doubt);
    struct sim_image *after = sim_save();
    size_t runs = 0,
           ways = first == SIM_SYNC && !getenv("SOAK") && !getenv("SECOND") ? 1 : sizeof seconds / sizeof *seconds;
    for (size_t i = 0; i < ways; i++) {
        now.second_fault = seconds[i];
        for (uint64_t m = 1; run_twice(after, &so_far, m); m++) runs++;
    }
    now.second_fault = SIM_NONE;
    now.second = 0;
    sim_image_free(after);
    array_free(&so_far.sure);
    array_free(&so_far.doubt);
    return runs;
}

/* After a failed sync the store is rewritten; what a power loss then leaves depends on the dice, so each has several. */
static void fault_03_fault_while_opening_after_a_fault(void **state) {
    (void)state;
    run(SIM_NONE, 0, SEED);
    live(begin(SIM_NONE, 0, SEED), 0, true);
    uint64_t runs = 0, count = sim_operations(), stride = getenv("SOAK") ? 1 : 41, seeds = getenv("SOAK") ? 20 : 1;
    bool *syncs = mem_alloc(count + 1);
    for (uint64_t at = 1; at <= count; at++) syncs[at] = sim_strikes(SIM_SYNC, at);
    for (uint64_t at = 1; at <= count; at++) {
        for (uint64_t s = 0; syncs[at] && s < seeds; s++) runs += with_second_faults(SIM_SYNC, at, at * 100 + 2 + s);
        if (at % stride) continue;
        runs += with_second_faults(SIM_KILL, at, SEED + at);
        runs += with_second_faults(SIM_POWER, at, SEED + at);
    }
    free(syncs);
    print_message("%llu runs\n", (unsigned long long)runs);
}

static void at_every_operation(enum sim_fault fault, int seeds) {
    run(SIM_NONE, 0, SEED);
    live(begin(SIM_NONE, 0, SEED), 0, true);
    if (getenv("SOAK")) seeds *= 20;
    size_t runs = 0, count = fault >= SIM_READ_EIO_ONCE && fault <= SIM_READ_SHORT ? sim_reads() : sim_operations();
    bool *strikes = mem_alloc(count + 1);
    for (size_t at = 1; at <= count; at++) strikes[at] = sim_strikes(fault, at);
    for (size_t at = 1; at <= count; at++)
        for (int s = 0; strikes[at] && s < seeds; s++, runs++) run(fault, at, SEED + (uint64_t)s);
    free(strikes);
    print_message("%zu operations, %zu runs\n", count, runs);
}

static void fault_01_kill_at_every_write(void **state) {
    (void)state;
    at_every_operation(SIM_KILL, 1);
}

static void fault_02_power_loss_at_every_write(void **state) {
    (void)state;
    at_every_operation(SIM_POWER, 3);
}

static void fault_04_disk_full_once(void **state) {
    (void)state;
    at_every_operation(SIM_FULL_ONCE, 1);
}

static void fault_04_disk_full_until_healed(void **state) {
    (void)state;
    at_every_operation(SIM_FULL, 1);
}

static void fault_05_io_error_once(void **state) {
    (void)state;
    at_every_operation(SIM_EIO_ONCE, 1);
}

static void fault_05_io_errors_that_stay(void **state) {
    (void)state;
    at_every_operation(SIM_EIO, 1);
}

static void fault_05_read_error_once(void **state) {
    (void)state;
    at_every_operation(SIM_READ_EIO_ONCE, 1);
}

static void fault_05_read_errors_that_stay(void **state) {
    (void)state;
    at_every_operation(SIM_READ_EIO, 1);
}

static void fault_05_short_reads(void **state) {
    (void)state;
    at_every_operation(SIM_READ_SHORT, 1);
}

static void fault_06_every_sync_fails(void **state) {
    (void)state;
    at_every_operation(SIM_SYNC, 4);
}

/* FAULT=name AT=operation SEED=number: that run alone; with SECOND, every second fault after it. */
static void one_run(void **state) {
    (void)state;
    uint64_t at = strtoull(getenv("AT"), NULL, 10), seed = strtoull(getenv("SEED"), NULL, 10);
    const char *second = getenv("SECOND");
    int fault = SIM_FAULT_END - 1;
    while (fault > 0 && strcmp(sim_fault_names[fault], getenv("FAULT")) != 0) fault--;
    if (second && strcmp(second, "none") != 0)
        with_second_faults((enum sim_fault)fault, at, seed);
    else
        run((enum sim_fault)fault, at, seed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(fault_01_kill_at_every_write, end),
        cmocka_unit_test_teardown(fault_02_power_loss_at_every_write, end),
        cmocka_unit_test_teardown(fault_03_fault_while_opening_after_a_fault, end),
        cmocka_unit_test_teardown(fault_04_disk_full_once, end),
        cmocka_unit_test_teardown(fault_04_disk_full_until_healed, end),
        cmocka_unit_test_teardown(fault_05_io_error_once, end),
        cmocka_unit_test_teardown(fault_05_io_errors_that_stay, end),
        cmocka_unit_test_teardown(fault_05_read_error_once, end),
        cmocka_unit_test_teardown(fault_05_read_errors_that_stay, end),
        cmocka_unit_test_teardown(fault_05_short_reads, end),
        cmocka_unit_test_teardown(fault_06_every_sync_fails, end),
    };
    cmocka_set_test_filter(getenv("CASE"));
    const struct CMUnitTest one[] = {cmocka_unit_test_teardown(one_run, end)};
    if (getenv("FAULT")) return cmocka_run_group_tests(one, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
