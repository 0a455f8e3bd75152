/* raw.c: what SQLite alone does here with the same pragmas and a fixed minimal payload: the limit of every figure.
 *
 *     raw DIR ROWS_PER_COMMIT…      for each number n of rows: commits of n rows
 *
 * W1 (raw_w1_N): per commit one new journal row for each of N runs, with one step: 100 bytes scheduled, 100 bytes of result.
 * W2 (raw_w2_N): per commit N messages, each the state row of one of 1,000 actors and a new row for deduplication.
 * commit_us: a commit of one W1 row. Keys come as the engine's do: journal rows by run, deduplication by random id.
 */
#include "bench.h"

#include <sqlite3.h>
#include <unistd.h>

enum { ACTORS = 1000, CHECKPOINT_PAGES = 4000 };

static const char entry[] = /* 240 bytes */
    "{\"type\":\"activity_completed\",\"result\":"
    "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}"
    "{\"type\":\"activity_scheduled\",\"input\":"
    "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}";

struct raw {
    sqlite3 *db;
    sqlite3_stmt *begin, *commit, *put;
    int pages;
    unsigned long long order;
};

static int remember(void *ctx, sqlite3 *db, const char *name, int pages) {
    (void)db, (void)name;
    ((struct raw *)ctx)->pages = pages;
    return SQLITE_OK;
}

static void check(struct raw *r, int rc) {
    if (rc != SQLITE_OK && rc != SQLITE_DONE && rc != SQLITE_ROW) die("sqlite", sqlite3_errmsg(r->db));
}

static void run(struct raw *r, sqlite3_stmt *q) {
    check(r, sqlite3_step(q));
    sqlite3_reset(q);
}

static void raw_open(struct raw *r, const char *path) {
    unlink(path);
    check(r, sqlite3_open(path, &r->db));
    check(r, sqlite3_exec(r->db,
                          "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;"
                          "CREATE TABLE rows (key BLOB PRIMARY KEY, value TEXT)",
                          NULL, NULL, NULL));
    sqlite3_wal_hook(r->db, remember, r);
    check(r, sqlite3_prepare_v2(r->db, "BEGIN IMMEDIATE", -1, &r->begin, NULL));
    check(r, sqlite3_prepare_v2(r->db, "COMMIT", -1, &r->commit, NULL));
    check(r, sqlite3_prepare_v2(r->db, "INSERT OR REPLACE INTO rows VALUES (?, ?)", -1, &r->put, NULL));
}

static void raw_close(struct raw *r) {
    sqlite3_finalize(r->begin);
    sqlite3_finalize(r->commit);
    sqlite3_finalize(r->put);
    sqlite3_close(r->db);
    *r = (struct raw){0};
}

static void put(struct raw *r, const char *key, int key_n, int value_n) {
    sqlite3_bind_blob(r->put, 1, key, key_n, SQLITE_STATIC);
    sqlite3_bind_text(r->put, 2, entry, value_n, SQLITE_STATIC);
    run(r, r->put);
}

static void put_step(struct raw *r, int i) {
    char key[64];
    put(r, key, snprintf(key, sizeof key, "default/steps/%06d %012llu", i, r->order), sizeof entry - 1);
}

static void put_message(struct raw *r, int i) {
    char key[64];
    (void)i;
    put(r, key, snprintf(key, sizeof key, "default/counter/%03ld", random() % ACTORS), 200);
    put(r, key, snprintf(key, sizeof key, "default/counter/id %016lx%08lx", (random() << 31) ^ random(), random()), 60);
}

/* Commits per second, over half a second, checkpoints included. */
static double commits(struct raw *r, int n, void (*one)(struct raw *, int)) {
    double from = now_us(), end;
    int count = 0;
    do {
        run(r, r->begin);
        for (int i = 0; i < n; i++) one(r, i);
        run(r, r->commit);
        if (r->pages >= CHECKPOINT_PAGES)
            check(r, sqlite3_wal_checkpoint_v2(r->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL));
        r->order++;
        count++;
        end = now_us();
    } while (end - from < 500e3);
    return count / (end - from) * 1e6;
}

int main(int argc, char **argv) {
    struct raw r = {0};
    char path[4096], key[64];
    if (argc < 3) die("usage", "raw DIR ROWS_PER_COMMIT...");
    snprintf(path, sizeof path, "%s/raw.db", argv[1]);
    raw_open(&r, path);
    print("commit_us", 1e6 / commits(&r, 1, put_step));
    raw_close(&r);
    for (int i = 2; i < argc; i++) {
        int n = atoi(argv[i]);
        raw_open(&r, path);
        snprintf(key, sizeof key, "raw_w1_%d", n);
        print(key, n * commits(&r, n, put_step));
        raw_close(&r);
        raw_open(&r, path);
        snprintf(key, sizeof key, "raw_w2_%d", n);
        print(key, n * commits(&r, n, put_message));
        raw_close(&r);
    }
    unlink(path);
    return 0;
}
