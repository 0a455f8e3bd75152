/* sqlite.c: the store in one SQLite file, or in memory.
 *
 * Format 1 (PRAGMA user_version): meta has one row: the store's id, who owns it (writer, term) and the last committed
 * seq. rows has all rows; sum is row_sum of kind, key and value. A view per kind makes them readable in the sqlite3
 * shell: key is the part before the first NUL, part what follows.
 *
 * rows has a rowid on purpose: new values then fill a few pages at the end and only the small index is touched at random
 * places. As a table WITHOUT ROWID the same batch wrote 2.5 times the bytes and took 2 to 4 times as long.
 *
 * A commit is one transaction that first takes `meta` where the term is still the writer's, so a writer that lost the
 * shard changes nothing. Two connections: the writer's (store thread) and the reader's (loop); in memory they are one.
 * Each has a mutex.
 *
 * Beside PATH: PATH.lock is flock'ed and holds our pid. PATH.seen holds the id and the last seq, written without sync
 * at most once a second: a file that knows less than it is an old copy. PATH.fsync-failed says that the page cache may
 * differ from the disk; the next open copies what it reads into a new, synced file before anything is acknowledged.
 *
 * Not here: retries, caching, any idea of what a row means. A key damaged on disk can make its row absent; verify finds it.
 */
#include "storage/storage.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* SQLite's own 1,000 pages checkpoint every few batches when each batch touches a hundred pages; 4,000 (16 MB of WAL)
 * writes a page that changes often once instead of many times, and a recovery still reads it in a tenth of a second. */
enum { CHECKPOINT_PAGES = 4000 };

static_assert(SQLITE_VERSION_NUMBER >= 3051003, "older versions of SQLite can lose a commit when the WAL is reset");

enum { Q_BEGIN, Q_COMMIT, Q_ROLLBACK, Q_CLAIM, Q_FENCE, Q_PUT, Q_DELETE, Q_LOAD, Q_SCAN, Q_META, Q_VERIFY, Q_END };
static const char *const queries[Q_END] = {
    [Q_BEGIN] = "BEGIN IMMEDIATE",
    [Q_COMMIT] = "COMMIT",
    [Q_ROLLBACK] = "ROLLBACK",
    [Q_CLAIM] = "UPDATE meta SET term = term + 1, writer = ? RETURNING term, seq",
    [Q_FENCE] = "UPDATE meta SET seq = ?2 WHERE term = ?1",
    [Q_PUT] = ("INSERT INTO rows VALUES (?, ?, ?, ?)"
               " ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value, sum = excluded.sum"),
    [Q_DELETE] = "DELETE FROM rows WHERE kind = ? AND key = ?",
    [Q_LOAD] = "SELECT key, value, sum FROM rows WHERE kind = ? AND key = ?",
    [Q_SCAN] = "SELECT key, value, sum FROM rows WHERE kind = ? AND key >= ? ORDER BY key",
    [Q_META] = "SELECT id, seq FROM meta",
    [Q_VERIFY] = "PRAGMA integrity_check(1)",
};

struct side {
    sqlite3 *db;
    const char *path; /* the store's */
    pthread_mutex_t lock;
    sqlite3_stmt *stmt[Q_END];
};

struct sqlite_store {
    struct store base;
    struct env *env;
    char *path; /* NULL: in memory */
    char id[33];
    uint64_t seq;
    int64_t seen_at;
    int lock_fd, seen_fd, wal_pages;
    bool sync_failed; /* also of a checkpoint: the next commit says FATAL */
    struct side writer, file_reader, *reader;
};

/* PATH.suffix; the caller frees. */
static char *beside(const char *path, const char *suffix) {
    size_t n = strlen(path) + strlen(suffix) + 2;
    char *name = mem_alloc(n);
    snprintf(name, n, "%s.%s", path, suffix);
    return name;
}

static struct sqlite_store *self(struct store *s) {
    return (struct sqlite_store *)s;
}

/* ---- statements ---- */

static void bind_key(sqlite3_stmt *q, enum row_kind kind, struct str key) {
    sqlite3_bind_int(q, 1, (int)kind);
    sqlite3_bind_blob64(q, 2, key.p ? key.p : "", key.n, SQLITE_STATIC);
}

static struct str column(sqlite3_stmt *q, int i) {
    const char *p = sqlite3_column_blob(q, i);
    return (struct str){p ? p : "", (size_t)sqlite3_column_bytes(q, i)};
}

/* Runs a statement whose rows, if any, do not matter. */
static int run(struct side *side, int query) {
    int rc;
    while ((rc = sqlite3_step(side->stmt[query])) == SQLITE_ROW)
        ;
    sqlite3_reset(side->stmt[query]);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

static sqlite3_stmt *hold(struct side *side, int query) {
    pthread_mutex_lock(&side->lock);
    return side->stmt[query];
}

static void release(struct side *side, sqlite3_stmt *q) {
    sqlite3_reset(q);
    pthread_mutex_unlock(&side->lock);
}

static int read_error(struct side *side, struct error *err) {
    int rc = sqlite3_errcode(side->db) & 0xFF;
    bool damaged = rc == SQLITE_CORRUPT || rc == SQLITE_NOTADB;
    return error_set(err, LOOM_E_STORE, "the store %s cannot be read: %s (%s)%s", side->path, sqlite3_errmsg(side->db),
                     sqlite3_errstr(sqlite3_extended_errcode(side->db)),
                     damaged ? "; the file is damaged: stop Loom, save what is readable with `sqlite3 FILE .recover`" : "");
}

/* ---- reading ---- */

static bool row_whole(sqlite3_stmt *q, enum row_kind kind) {
    return row_sum(kind, column(q, 0), column(q, 1)) == (uint64_t)sqlite3_column_int64(q, 2);
}

static int sqlite_load(struct store *base, enum row_kind kind, struct str key, struct buf *out, struct error *err) {
    struct side *side = self(base)->reader;
    sqlite3_stmt *q = hold(side, Q_LOAD);
    bind_key(q, kind, key);
    int step = sqlite3_step(q), rc = step == SQLITE_ROW;
    if (step == SQLITE_ROW && row_whole(q, kind))
        buf_str(out, column(q, 1));
    else if (step == SQLITE_ROW)
        rc = error_set(err, LOOM_E_DAMAGED, "the %s row \"%.*s\" does not match its checksum", row_kind_name(kind),
                       (int)key.n, key.p);
    else if (step != SQLITE_DONE)
        rc = read_error(side, err);
    release(side, q);
    return rc;
}

static int sqlite_scan(struct store *base, enum row_kind kind, struct str from, struct str to, row_fn fn, void *ctx,
                       struct error *err) {
    struct side *side = self(base)->reader;
    sqlite3_stmt *q = hold(side, Q_SCAN);
    int rc;
    bind_key(q, kind, from);
    while ((rc = sqlite3_step(q)) == SQLITE_ROW) {
        struct str key = column(q, 0);
        if ((to.p && str_cmp(key, to) >= 0) || !fn(ctx, key, row_whole(q, kind) ? column(q, 1) : STR_NONE)) break;
    }
    rc = rc == SQLITE_ROW || rc == SQLITE_DONE ? LOOM_OK : read_error(side, err);
    release(side, q);
    return rc;
}

/* ---- writing ---- */

static void write_seen(struct sqlite_store *s, int64_t now) {
    char line[64];
    int n = snprintf(line, sizeof line, "%s %020llu\n", s->id, (unsigned long long)s->seq);
    s->seen_at = now;
    if (pwrite(s->seen_fd, line, (size_t)n, 0) != n)
        s->seen_at = 0; /* next time; it only helps to notice an old copy */
}

/* Leaves the marker that makes the next open rewrite the store. */
static void mark_sync_failed(struct sqlite_store *s) {
    s->sync_failed = true;
    if (!s->path) return;
    char *marker = beside(s->path, "fsync-failed");
    close(open(marker, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    path_sync(marker);
    free(marker);
}

static bool is_sync_error(int rc) {
    return rc == SQLITE_IOERR_FSYNC || rc == SQLITE_IOERR_DIR_FSYNC;
}

static enum commit_outcome commit_failed(struct sqlite_store *s, struct error *err) {
    sqlite3 *db = s->writer.db;
    int rc = sqlite3_extended_errcode(db);
    bool full = rc == SQLITE_FULL || rc == SQLITE_IOERR_SHMSIZE;
    error_set(err, full ? LOOM_E_DISK_FULL : LOOM_E_STORE, "the batch was not written: %s (%s)", sqlite3_errmsg(db),
              sqlite3_errstr(rc));
    if (is_sync_error(rc)) mark_sync_failed(s);
    if (!sqlite3_get_autocommit(db)) run(&s->writer, Q_ROLLBACK);
    return s->sync_failed ? COMMIT_FATAL : full ? COMMIT_FULL : COMMIT_FAILED;
}

static int write_row(struct side *w, const struct row *r) {
    sqlite3_stmt *q = w->stmt[r->value.p ? Q_PUT : Q_DELETE];
    bind_key(q, r->kind, r->key);
    if (r->value.p) {
        sqlite3_bind_text64(q, 3, r->value.p, r->value.n, SQLITE_STATIC, SQLITE_UTF8);
        sqlite3_bind_int64(q, 4, (sqlite3_int64)row_sum(r->kind, r->key, r->value));
    }
    return run(w, r->value.p ? Q_PUT : Q_DELETE);
}

static int remember_wal(void *ctx, sqlite3 *db, const char *name, int pages) {
    (void)db, (void)name;
    ((struct sqlite_store *)ctx)->wal_pages = pages;
    return SQLITE_OK;
}

static enum commit_outcome commit_locked(struct sqlite_store *s, const struct batch *b, struct error *err) {
    struct side *w = &s->writer;
    int rc = run(w, Q_BEGIN);
    sqlite3_bind_int64(w->stmt[Q_FENCE], 1, (sqlite3_int64)b->term);
    sqlite3_bind_int64(w->stmt[Q_FENCE], 2, (sqlite3_int64)b->seq);
    if (rc == SQLITE_OK) rc = run(w, Q_FENCE);
    if (rc == SQLITE_OK && sqlite3_changes(w->db) != 1) {
        run(w, Q_ROLLBACK);
        error_set(err, LOOM_E_CONFLICT, "another writer has taken the store; this one must stop");
        return COMMIT_CONFLICT;
    }
    for (size_t i = 0; i < b->count && rc == SQLITE_OK; i++) rc = write_row(w, &b->rows[i]);
    if (rc == SQLITE_OK) rc = run(w, Q_COMMIT);
    if (rc != SQLITE_OK) return commit_failed(s, err);
    s->seq = b->seq;
    return COMMIT_OK;
}

/* The checkpoint is ours, not SQLite's, because that one would hide a failed fsync and try it again. */
static enum commit_outcome sqlite_commit(struct store *base, const struct batch *b, struct error *err) {
    struct sqlite_store *s = self(base);
    pthread_mutex_lock(&s->writer.lock);
    enum commit_outcome outcome = COMMIT_FATAL;
    if (s->sync_failed)
        error_set(err, LOOM_E_STORE, "the disk failed to sync; start Loom again, it then rewrites the store");
    else
        outcome = commit_locked(s, b, err);
    int64_t now = s->env->mono_ms(s->env);
    if (outcome == COMMIT_OK && s->path && now - s->seen_at >= 1000) write_seen(s, now);
    if (outcome == COMMIT_OK && s->wal_pages >= CHECKPOINT_PAGES &&
        sqlite3_wal_checkpoint_v2(s->writer.db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL) != SQLITE_OK &&
        is_sync_error(sqlite3_extended_errcode(s->writer.db)))
        mark_sync_failed(s);
    pthread_mutex_unlock(&s->writer.lock);
    return outcome;
}

static int sqlite_claim(struct store *base, struct str writer, uint64_t *term, uint64_t *seq, struct error *err) {
    struct side *w = &self(base)->writer;
    sqlite3_stmt *q = hold(w, Q_CLAIM);
    sqlite3_bind_text64(q, 1, writer.p, writer.n, SQLITE_STATIC, SQLITE_UTF8);
    int rc = sqlite3_step(q);
    *term = (uint64_t)sqlite3_column_int64(q, 0);
    *seq = (uint64_t)sqlite3_column_int64(q, 1);
    if (rc == SQLITE_ROW) rc = sqlite3_step(q);
    rc = rc == SQLITE_DONE ? LOOM_OK : read_error(w, err);
    release(w, q);
    return rc;
}

int store_sqlite_verify(struct store *base, struct error *err) {
    struct side *side = self(base)->reader;
    sqlite3_stmt *q = hold(side, Q_VERIFY);
    int rc = sqlite3_step(q) == SQLITE_ROW ? LOOM_OK : read_error(side, err);
    struct str verdict = rc == LOOM_OK ? column(q, 0) : STR("ok");
    if (!str_eq(verdict, STR("ok")))
        rc = error_set(err, LOOM_E_STORE, "the store is damaged: %.*s; save what is readable with `sqlite3 FILE .recover`",
                       (int)verdict.n, verdict.p);
    release(side, q);
    return rc;
}

/* ---- opening ---- */

static const char pragmas[] = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                              "PRAGMA wal_autocheckpoint = 0; PRAGMA cell_size_check = ON; PRAGMA busy_timeout = 5000;";

static const char schema[] =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE meta (id TEXT, writer TEXT, term INTEGER, seq INTEGER);"
    "INSERT INTO meta VALUES (lower(hex(randomblob(16))), '', 0, 0);"
    "CREATE TABLE rows (kind INTEGER, key BLOB, value TEXT, sum INTEGER, PRIMARY KEY (kind, key));";

static const char view[] =
    "CREATE VIEW %s AS SELECT CAST(substr(key, 1, nul - 1) AS TEXT) AS key, CAST(substr(key, nul + 1) AS TEXT) AS part,"
    " value FROM (SELECT *, ifnull(nullif(instr(key, x'00'), 0), length(key) + 1) AS nul FROM rows WHERE kind = %d);";

static int create(sqlite3 *db) {
    sqlite3_str *sql = sqlite3_str_new(db);
    sqlite3_str_appendall(sql, schema);
    for (int kind = ROW_NONE + 1; kind < ROW_KIND_END; kind++)
        sqlite3_str_appendf(sql, view, row_kind_name((enum row_kind)kind), kind);
    sqlite3_str_appendf(sql, "PRAGMA user_version = %d; COMMIT;", STORE_FORMAT);
    char *text = sqlite3_str_finish(sql);
    int rc = sqlite3_exec(db, text, NULL, NULL, NULL);
    sqlite3_free(text);
    return rc;
}

static int read_int(void *out, int n, char **values, char **names) {
    (void)n, (void)names;
    *(int *)out = atoi(values[0]);
    return 0;
}

/* One connection on a file of our format, which the first one makes. */
static int open_side(struct side *side, const char *path, struct error *err) {
    int format = 0, flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
    side->path = path ? path : ":memory:";
    int rc = sqlite3_open_v2(side->path, &side->db, flags, NULL);
    if (rc == SQLITE_OK) rc = sqlite3_exec(side->db, pragmas, NULL, NULL, NULL);
    if (rc == SQLITE_OK) rc = sqlite3_exec(side->db, "PRAGMA user_version", read_int, &format, NULL);
    if (rc == SQLITE_OK && format > STORE_FORMAT)
        return error_set(err, LOOM_E_CONFLICT, "the store %s has format %d, this Loom knows up to %d; use a newer Loom",
                         path, format, STORE_FORMAT);
    if (rc == SQLITE_OK && format == 0) rc = create(side->db);
    for (int q = 0; q < Q_END && rc == SQLITE_OK; q++)
        rc = sqlite3_prepare_v3(side->db, queries[q], -1, SQLITE_PREPARE_PERSISTENT, &side->stmt[q], NULL);
    return rc == SQLITE_OK ? LOOM_OK : read_error(side, err);
}

static void close_side(struct side *side) {
    for (int q = 0; q < Q_END; q++) sqlite3_finalize(side->stmt[q]);
    sqlite3_close(side->db);
    pthread_mutex_destroy(&side->lock);
}

static int lock_store(struct sqlite_store *s, struct error *err) {
    char pid[32] = "?", *name = beside(s->path, "lock");
    s->lock_fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    free(name);
    if (s->lock_fd < 0) return error_set(err, LOOM_E_STORE, "cannot open %s.lock: %s", s->path, strerror(errno));
    if (flock(s->lock_fd, LOCK_EX | LOCK_NB) == 0) {
        if (ftruncate(s->lock_fd, 0) != 0 || dprintf(s->lock_fd, "%ld", (long)getpid()) < 0)
            return error_set(err, LOOM_E_STORE, "cannot write %s.lock: %s", s->path, strerror(errno));
        return LOOM_OK;
    }
    if (pread(s->lock_fd, pid, sizeof pid - 1, 0) <= 0) pid[0] = '?';
    return error_set(err, LOOM_E_CONFLICT, "the store %s is in use by process %s; stop it or use another folder",
                     s->path, pid);
}

/* After a failed fsync: what is read now goes into a new, synced file that takes the old one's place. Folding the WAL in
 * first leaves no moment in which a WAL lies beside a file that it does not belong to. */
static int rewrite_if_marked(const char *path, struct error *err) {
    char *marker = beside(path, "fsync-failed"), *fresh = beside(path, "rewritten"), *folder = str_dup(str_of(path));
    char *sql = sqlite3_mprintf("PRAGMA journal_mode = DELETE; VACUUM INTO %Q", fresh);
    struct side old = {0};
    int rc = LOOM_OK;
    if (access(marker, F_OK) == 0) {
        unlink(fresh);
        if (sqlite3_open(path, &old.db) != SQLITE_OK || sqlite3_exec(old.db, sql, NULL, NULL, NULL) != SQLITE_OK)
            rc = read_error(&old, err);
        else if (!path_sync(fresh) || rename(fresh, path) != 0 || !path_sync(dirname(folder)) || unlink(marker) != 0)
            rc = error_set(err, LOOM_E_STORE, "cannot rewrite %s after a failed fsync: %s", path, strerror(errno));
        sqlite3_close(old.db);
    }
    sqlite3_free(sql);
    free(marker);
    free(fresh);
    free(folder);
    return rc;
}

static int read_meta(struct sqlite_store *s, struct error *err) {
    sqlite3_stmt *q = hold(s->reader, Q_META);
    int rc = sqlite3_step(q) == SQLITE_ROW ? LOOM_OK : read_error(s->reader, err);
    struct str id = column(q, 0);
    memcpy(s->id, id.p, id.n < sizeof s->id ? id.n : 0);
    s->seq = (uint64_t)sqlite3_column_int64(q, 1);
    release(s->reader, q);
    return rc;
}

/* Compares the store with what PATH.seen says of it. */
static int check_seen(struct sqlite_store *s, bool accept_restored, struct error *err) {
    char line[64] = "", id[33] = "", *name = beside(s->path, "seen");
    unsigned long long seq = 0;
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    bool known = pread(fd, line, sizeof line - 1, 0) > 0 && sscanf(line, "%32s %llu", id, &seq) == 2;
    free(name);
    if (known && !accept_restored && (strcmp(id, s->id) != 0 || seq > s->seq)) {
        close(fd);
        return error_set(
            err, LOOM_E_CONFLICT,
            "the store %s is older than what was seen here, as a restored backup is (it ends at batch %llu, "
            "seen was %llu of store %s); if that is meant, start with --accept-restored",
            s->path, (unsigned long long)s->seq, seq, id);
    }
    s->seen_fd = fd;
    write_seen(s, s->env->mono_ms(s->env));
    return LOOM_OK;
}

static void sqlite_close(struct store *base) {
    struct sqlite_store *s = self(base);
    if (s->seen_fd >= 0) write_seen(s, 0);
    if (s->sync_failed) /* what the page cache holds must not be taken for durable */
        sqlite3_db_config(s->writer.db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    close_side(&s->file_reader);
    close_side(&s->writer);
    close(s->seen_fd);
    close(s->lock_fd);
    free(s->path);
    free(s);
}

static const struct store_ops sqlite_ops = {"sqlite",    sqlite_claim, sqlite_commit,
                                            sqlite_load, sqlite_scan,  sqlite_close};

struct store *store_sqlite_open(const char *path, struct env *env, bool accept_restored, struct error *err) {
    struct sqlite_store *s = mem_alloc(sizeof *s);
    *s = (struct sqlite_store){.base.ops = &sqlite_ops, .env = env, .lock_fd = -1, .seen_fd = -1};
    s->path = path ? str_dup(str_of(path)) : NULL;
    s->reader = path ? &s->file_reader : &s->writer;
    pthread_mutex_init(&s->writer.lock, NULL);
    pthread_mutex_init(&s->file_reader.lock, NULL);
    int rc = path ? lock_store(s, err) : LOOM_OK;
    if (rc == LOOM_OK && path) rc = rewrite_if_marked(path, err);
    if (rc == LOOM_OK) rc = open_side(&s->writer, s->path, err);
    if (rc == LOOM_OK && path) rc = open_side(&s->file_reader, s->path, err);
    if (rc == LOOM_OK) rc = read_meta(s, err);
    if (rc == LOOM_OK && path) rc = check_seen(s, accept_restored, err);
    if (rc == LOOM_OK) {
        sqlite3_wal_hook(s->writer.db, remember_wal, s);
        return &s->base;
    }
    sqlite_close(&s->base);
    return NULL;
}
