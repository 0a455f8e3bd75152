/* sqlite.c: the store in one SQLite file, or in memory.
 *
 * PRAGMA user_version is the format. meta has one row: the store's id, who owns it (writer, term) and the last committed
 * seq. rows has all rows; sum is row_sum of kind, key and value. A view per kind makes them readable in the sqlite3
 * shell: key is the part before the first NUL, part what follows.
 *
 * rows has a rowid on purpose: new values then fill a few pages at the end and only the small index is touched at random
 * places. As a table WITHOUT ROWID the same batch wrote 2.5 times the bytes and took 2 to 4 times as long.
 *
 * A commit is one transaction that first takes `meta` where the term is still the writer's, so a writer that lost the
 * shard changes nothing. Three connections: the writer's (store thread), the reader's (loop) and the keeper's, which brings
 * the WAL into the file on a thread of its own; in memory they are one. Each has a mutex.
 *
 * Beside the file PATH stand files that keep it whole. PATH.lock ("%-10d %s %020llu\n") is flock'ed by the process that it
 * names. Behind the pid stand the store's id and its last seq, written without sync: a store that knows less is an old
 * copy. PATH.fsync-failed says that the page cache may differ from the disk; the next open copies what it reads into a
 * new, synced file, PATH.rewritten, before anything is acknowledged.
 *
 * Not here: retries, caching, any idea of what a row means.
 */
#include "storage/pages.h"
#include "storage/storage.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* SQLite's own 1,000 pages checkpoint every few batches when each batch touches a hundred pages; 4,000 (16 MB of WAL)
 * writes a page that changes often once instead of many times, and a recovery still reads it in a tenth of a second. Small
 * batches gain nothing from that, and wait: until a checkpoint lets the WAL begin anew each makes its file longer, and a sync
 * that has a new length to write takes twice as long. */
enum { CHECKPOINT_PAGES = 4000, REST_PAGES = 500, WAL_PAGES_MAX = 16000 };
enum { SMALL_BATCH_PAGES = 16, SMALL_CHECKPOINT_PAGES = 1000 };

enum { NAME_BYTES = 4096, PID_BYTES = 11 };

static_assert(SQLITE_VERSION_NUMBER >= 3051003, "older versions of SQLite can lose a commit when the WAL is reset");

enum { Q_BEGIN, Q_COMMIT, Q_ROLLBACK, Q_CLAIM, Q_FENCE, Q_PUT, Q_DELETE, Q_SCAN, Q_META, Q_END };
static const char *const queries[Q_END] = {
    [Q_BEGIN] = "BEGIN IMMEDIATE",
    [Q_COMMIT] = "COMMIT",
    [Q_ROLLBACK] = "ROLLBACK",
    [Q_CLAIM] = "UPDATE meta SET term = term + 1, writer = ? RETURNING term, seq",
    [Q_FENCE] = "UPDATE meta SET seq = ?2 WHERE term = ?1",
    [Q_PUT] = ("INSERT INTO rows VALUES (?, ?, ?, ?)"
               " ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value, sum = excluded.sum"),
    [Q_DELETE] = "DELETE FROM rows WHERE kind = ? AND key = ?",
    [Q_SCAN] = "SELECT key, value, sum FROM rows WHERE kind = ? AND key >= ? AND key < ? ORDER BY key",
    [Q_META] = "SELECT id, seq FROM meta",
};

struct side {
    sqlite3 *db;
    const char *path; /* the store's */
    struct pages pages;
    pthread_mutex_t lock;
    sqlite3_stmt *stmt[Q_END];
};

struct sqlite_store {
    struct store base;
    struct env *env;
    char *path; /* NULL: in memory */
    char id[33];
    _Atomic uint64_t written; /* the last seq that was committed */
    sqlite3_file *wal;        /* the writer's; NULL in memory */
    pthread_mutex_t sync_lock;
    uint64_t seq;    /* the last seq on the disk; as the next, under sync_lock */
    int64_t seen_at; /* when write_seen wrote; -1: it may not yet */
    int lock_fd;
    int pages;               /* of the WAL, after the last commit */
    atomic_bool sync_failed; /* also of a checkpoint: the next commit says FATAL */
    struct side writer, file_reader, *reader;

    /* Checkpoints have a thread and a connection of their own, so that commits go on meanwhile. */
    struct side keeper;
    unsigned long thread;
    sem_t wake;
    atomic_int kept;       /* pages of the WAL that it has brought into the file */
    atomic_bool due, stop; /* told to it with `wake` */
};

/* ---- statements ---- */

static void bind_key(sqlite3_stmt *q, enum row_kind kind, struct str key) {
    sqlite3_bind_int(q, 1, (int)kind);
    sqlite3_bind_blob64(q, 2, key.p ? key.p : "", key.n, SQLITE_STATIC);
}

static struct str column(sqlite3_stmt *q, int i) {
    const char *p = sqlite3_column_blob(q, i);
    return (struct str){p ? p : "", (size_t)sqlite3_column_bytes(q, i)};
}

/* Runs a statement that has no rows. */
static int run(struct side *side, int query) {
    int rc = sqlite3_step(side->stmt[query]);
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

static int sqlite_error(struct side *side, const char *done, int rc, struct error *err) {
    bool full = rc == SQLITE_FULL || rc == SQLITE_IOERR_SHMSIZE, corrupt = (rc & 0xFF) == SQLITE_CORRUPT;
    const char *hint = full ? "; free some space" : "";
    char page[32] = "";
    if (corrupt && side->pages.damaged) snprintf(page, sizeof page, ", page %lld", (long long)side->pages.damaged);
    if (corrupt || rc == SQLITE_NOTADB)
        hint =
            "; stop Loom: `loom debug verify --store DIR` tells what is damaged, `loom debug dump` and `restore` bring "
            "what is readable into a new store";
    return error_set(err, full ? LOOM_E_DISK_FULL : LOOM_E_STORE,
                     "the store %s cannot be %s: %s (SQLite's error %d%s)%s", side->path, done, sqlite3_errstr(rc), rc,
                     page, hint);
}

/* ---- reading ---- */

static bool row_whole(sqlite3_stmt *q, enum row_kind kind) {
    return row_sum(kind, column(q, 0), column(q, 1)) == (uint64_t)sqlite3_column_int64(q, 2);
}

static int sqlite_scan(struct store *base, enum row_kind kind, struct str from, struct str to, row_fn fn, void *ctx,
                       struct error *err) {
    struct side *side = ((struct sqlite_store *)base)->reader;
    sqlite3_stmt *q = hold(side, Q_SCAN);
    int rc;
    if (!to.p) to = STR("\xff\xff\xff\xff"); /* above every key: they are UTF-8 */
    bind_key(q, kind, from);
    sqlite3_bind_blob64(q, 3, to.p, to.n, SQLITE_STATIC);
    while ((rc = sqlite3_step(q)) == SQLITE_ROW && fn(ctx, column(q, 0), row_whole(q, kind) ? column(q, 1) : STR_NONE))
        continue;
    rc = rc == SQLITE_ROW || rc == SQLITE_DONE ? LOOM_OK : sqlite_error(side, "read", rc, err);
    release(side, q);
    return rc;
}

/* ---- writing ---- */

/* What the page cache holds may now differ from the disk: no commit any more, and the next open rewrites the store. */
static void notice_sync_error(struct sqlite_store *s, int rc) {
    if (rc != SQLITE_IOERR_FSYNC && rc != SQLITE_IOERR_DIR_FSYNC) return;
    char marker[NAME_BYTES];
    s->sync_failed = true;
    if (!s->path) return;
    snprintf(marker, sizeof marker, "%s.fsync-failed", s->path);
    close(open(marker, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    path_sync(marker);
}

static enum commit_outcome sync_lost(struct error *err) {
    error_set(err, LOOM_E_STORE, "the disk failed to sync; start Loom again, it then rewrites the store");
    return COMMIT_FATAL;
}

static enum commit_outcome commit_failed(struct sqlite_store *s, int rc, struct error *err) {
    notice_sync_error(s, rc);
    rc = sqlite_error(&s->writer, "written", rc, err);
    if (!sqlite3_get_autocommit(s->writer.db)) run(&s->writer, Q_ROLLBACK);
    return s->sync_failed ? sync_lost(err) : rc == LOOM_E_DISK_FULL ? COMMIT_FULL : COMMIT_FAILED;
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

/* How many pages of the WAL are in the file then. */
static int checkpoint(struct sqlite_store *s, sqlite3 *db) {
    int pages, done = 0;
    notice_sync_error(s, sqlite3_wal_checkpoint_v2(db, NULL, SQLITE_CHECKPOINT_PASSIVE, &pages, &done));
    return done;
}

void store_sqlite_keep(struct store *base) {
    struct sqlite_store *s = (struct sqlite_store *)base;
    s->due = false;
    s->kept = checkpoint(s, s->keeper.db);
}

static void *keeper_main(void *arg) {
    struct sqlite_store *s = arg;
    for (sem_wait(&s->wake); !s->stop; sem_wait(&s->wake)) store_sqlite_keep(arg);
    return NULL;
}

static void keeper_tell(struct sqlite_store *s, atomic_bool *what) {
    if (!atomic_exchange(what, true)) sem_post(&s->wake);
}

/* Called after each commit. Ours, not SQLite's, because that one would hide a failed fsync and try it again. While commits
 * go on the keeper never has all of the WAL, and it would grow for ever: the little that is left then a commit does itself. */
static int committed(void *ctx, sqlite3 *db, const char *name, int pages) {
    struct sqlite_store *s = ctx;
    (void)name;
    bool due = pages >= (pages - s->pages < SMALL_BATCH_PAGES ? SMALL_CHECKPOINT_PAGES : CHECKPOINT_PAGES);
    bool last = pages - s->kept < REST_PAGES || pages >= WAL_PAGES_MAX;
    s->pages = pages;
    if (due && last) checkpoint(s, db);
    if (!due || last)
        s->kept = 0;
    else
        keeper_tell(s, &s->due);
    return SQLITE_OK;
}

/* Unless that was done less than so many ms ago. */
static void write_seen(struct sqlite_store *s, int64_t pause_ms) {
    int64_t now = s->env->mono_ms(s->env);
    if (s->seen_at < 0 || now - s->seen_at < pause_ms) return;
    s->seen_at = now;
    char line[80];
    int n = snprintf(line, sizeof line, "%s %020llu\n", s->id, (unsigned long long)s->seq);
    if (pwrite(s->lock_fd, line, (size_t)n, PID_BYTES) != n) return; /* it only helps to notice an old copy */
}

static enum commit_outcome sqlite_commit(struct store *base, const struct batch *b, struct error *err) {
    struct sqlite_store *s = (struct sqlite_store *)base;
    struct side *w = &s->writer;
    sqlite3_stmt *fence = hold(w, Q_FENCE);
    int rc = s->sync_failed ? SQLITE_IOERR_FSYNC : run(w, Q_BEGIN);
    sqlite3_bind_int64(fence, 1, (sqlite3_int64)b->term);
    sqlite3_bind_int64(fence, 2, (sqlite3_int64)b->seq);
    if (rc == SQLITE_OK) rc = run(w, Q_FENCE);
    bool ours = rc == SQLITE_OK && (sqlite3_changes(w->db) == 1 || SABOTAGE("no term in SQL"));
    for (size_t i = 0; ours && i < b->count && rc == SQLITE_OK; i++) rc = write_row(w, &b->rows[i]);
    if (rc == SQLITE_OK) rc = run(w, ours ? Q_COMMIT : Q_ROLLBACK);
    enum commit_outcome outcome = rc != SQLITE_OK ? commit_failed(s, rc, err) : ours ? COMMIT_OK : COMMIT_CONFLICT;
    if (outcome == COMMIT_CONFLICT)
        error_set(err, LOOM_E_CONFLICT, "another writer has taken the store; this one must stop");
    if (outcome == COMMIT_OK) s->written = b->seq;
    release(w, fence);
    return outcome;
}

/* What SQLite's own commit does with synchronous=FULL, but without holding up the next commit. */
static enum commit_outcome sqlite_sync(struct store *base, struct error *err) {
    struct sqlite_store *s = (struct sqlite_store *)base;
    uint64_t seq = s->written;
    if (s->wal) notice_sync_error(s, s->wal->pMethods->xSync(s->wal, SQLITE_SYNC_NORMAL));
    if (s->sync_failed) return sync_lost(err);
    pthread_mutex_lock(&s->sync_lock);
    if (seq > s->seq) s->seq = seq;
    write_seen(s, 1000);
    pthread_mutex_unlock(&s->sync_lock);
    return COMMIT_OK;
}

static int sqlite_claim(struct store *base, struct str writer, uint64_t *term, uint64_t *seq, struct error *err) {
    struct sqlite_store *s = (struct sqlite_store *)base;
    struct side *w = &s->writer;
    sqlite3_stmt *q = hold(w, Q_CLAIM);
    sqlite3_bind_text64(q, 1, writer.p, writer.n, SQLITE_STATIC, SQLITE_UTF8);
    int rc = sqlite3_step(q);
    *term = (uint64_t)sqlite3_column_int64(q, 0);
    *seq = (uint64_t)sqlite3_column_int64(q, 1);
    if (rc == SQLITE_ROW) rc = sqlite3_step(q);
    if (rc != SQLITE_DONE) notice_sync_error(s, rc);
    rc = rc == SQLITE_DONE ? LOOM_OK : sqlite_error(w, "read", rc, err);
    release(w, q);
    if (rc < 0) return rc;
    /* Told only now: what a killed process left in the page cache may not have been on the disk before. */
    s->written = *seq;
    if (s->path) sqlite3_file_control(w->db, NULL, SQLITE_FCNTL_JOURNAL_POINTER, &s->wal);
    if (s->path) s->seen_at = 0;
    return sqlite_sync(base, err) == COMMIT_OK ? LOOM_OK : LOOM_E_STORE;
}

/* ---- what stands beside the file ---- */

/* A process that was killed may hold its lock for a moment longer: we try for two seconds before we refuse. */
enum { LOCK_TRIES = 40, LOCK_PAUSE_US = 50000 };

static int lock_store(const char *path, struct error *err) {
    char name[NAME_BYTES], pid[PID_BYTES] = "?";
    snprintf(name, sizeof name, "%s.lock", path);
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600), rc = LOOM_E_STORE;
    bool locked = false;
    for (int i = 0; fd >= 0 && !locked && i < LOCK_TRIES; i++) {
        if (i > 0) usleep(LOCK_PAUSE_US);
        locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
    }
    if (locked && dprintf(fd, "%-*d ", PID_BYTES - 1, (int)getpid()) == PID_BYTES) return fd;
    if (fd >= 0 && !locked) {
        if (pread(fd, pid, sizeof pid - 1, 0) > 0) pid[strcspn(pid, " ")] = 0;
        rc = error_set(err, LOOM_E_CONFLICT, "the store %s is in use by process %s; stop it or use another folder",
                       path, pid);
    } else {
        error_set(err, rc, "cannot write %s: %s", name, strerror(errno));
    }
    close(fd);
    return rc;
}

/* What can be read, the WAL included, as a new file. The old ones stay as they are: after a power loss they are all there is. */
static int copy_store(const char *path, const char *fresh, struct error *err) {
    char part[NAME_BYTES + 8], sql[2 * NAME_BYTES];
    struct pages pages = {0};
    sqlite3 *db;
    snprintf(part, sizeof part, "%s.part", fresh);
    sqlite3_snprintf(sizeof sql, sql, "VACUUM INTO %Q", part);
    unlink(part);
    bool read = sqlite3_open(path, &db) == SQLITE_OK;
    pages_check(db, &pages);
    sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    read = read && sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK;
    bool done = read && path_sync(part) && rename(part, fresh) == 0 && folder_sync(fresh);
    if (!done)
        error_set(err, LOOM_E_STORE, "cannot rewrite %s after a failed fsync: %s", path,
                  read ? strerror(errno) : sqlite3_errmsg(db));
    sqlite3_close(db);
    return done ? LOOM_OK : LOOM_E_STORE;
}

/* Once the copy has its name it is the store, and a crash goes on from there. The WAL goes first, so that it never lies
 * beside a file to which it does not belong; nor does its index, which who still has the old files goes on writing. */
static int rewrite_store(const char *path, const char *marker, struct error *err) {
    char fresh[NAME_BYTES], wal[NAME_BYTES], index[NAME_BYTES];
    snprintf(fresh, sizeof fresh, "%s.rewritten", path);
    snprintf(wal, sizeof wal, "%s-wal", path);
    snprintf(index, sizeof index, "%s-shm", path);
    if (access(fresh, F_OK) != 0 && copy_store(path, fresh, err) < 0) return LOOM_E_STORE;
    bool done = (unlink(wal) == 0 || errno == ENOENT) && (unlink(index) == 0 || errno == ENOENT) && folder_sync(path) &&
                rename(fresh, path) == 0 && folder_sync(path) && unlink(marker) == 0;
    return done ? LOOM_OK : error_set(err, LOOM_E_STORE, "cannot put %s in its place: %s", fresh, strerror(errno));
}

/* A process whose fsync failed leaves no mark on a disk that takes nothing more. What it wrote to the WAL may then be in the page
 * cache only, where it counts as clean: written once more it is on the disk before anything follows it. */
static int rewrite_wal(const char *path, struct error *err) {
    char wal[NAME_BYTES];
    struct buf bytes = {0};
    snprintf(wal, sizeof wal, "%s-wal", path);
    int fd = open(wal, O_RDWR | O_CLOEXEC);
    bool done = fd < 0 ? errno == ENOENT
                       : fd_read(fd, &bytes) && pwrite(fd, bytes.p, bytes.n, 0) == (ssize_t)bytes.n && fsync(fd) == 0;
    if (!done) error_set(err, LOOM_E_STORE, "cannot rewrite %s: %s", wal, strerror(errno));
    if (fd >= 0) close(fd);
    buf_free(&bytes);
    return done ? LOOM_OK : LOOM_E_STORE;
}

static int take_file(const char *path, struct error *err) {
    char marker[NAME_BYTES];
    snprintf(marker, sizeof marker, "%s.fsync-failed", path);
    int lock = lock_store(path, err), rc = LOOM_OK;
    if (lock >= 0) rc = access(marker, F_OK) == 0 ? rewrite_store(path, marker, err) : rewrite_wal(path, err);
    if (rc < 0) close(lock);
    return rc < 0 ? rc : lock;
}

/* ---- opening ---- */

static const char pragmas[] = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                              "PRAGMA wal_autocheckpoint = 0; PRAGMA cell_size_check = ON; PRAGMA busy_timeout = 5000;"
                              "PRAGMA user_version;";

static const char schema[] =
    "CREATE TABLE meta (id TEXT, writer TEXT, term INTEGER, seq INTEGER);"
    "INSERT INTO meta VALUES (lower(hex(randomblob(16))), '', 0, 0);"
    "CREATE TABLE rows (kind INTEGER, key BLOB, value TEXT, sum INTEGER, PRIMARY KEY (kind, key));";

static const char view[] =
    "CREATE VIEW %s AS SELECT CAST(substr(key, 1, nul - 1) AS TEXT) AS key, CAST(substr(key, nul + 1) AS TEXT) AS part,"
    " value FROM (SELECT *, ifnull(nullif(instr(key, x'00'), 0), length(key) + 1) AS nul FROM rows WHERE kind = %d);";

static int create(sqlite3 *db) {
    struct buf sql = {0};
    buf_str(&sql, STR("BEGIN IMMEDIATE;"));
    buf_json(&sql, schema);
    for (int kind = ROW_NONE + 1; kind < ROW_KIND_END; kind++)
        buf_json(&sql, view, row_kind_name((enum row_kind)kind), (int64_t)kind);
    buf_json(&sql, "PRAGMA user_version = %d; COMMIT;", (int64_t)STORE_FORMAT);
    buf_char(&sql, 0);
    int rc = sqlite3_exec(db, sql.p, NULL, NULL, NULL);
    buf_free(&sql);
    return rc;
}

/* Called for each answer of the pragmas; the last is the format. */
static int read_int(void *out, int n, char **values, char **names) {
    (void)n, (void)names;
    *(int *)out = atoi(values[0]);
    return 0;
}

/* One connection on a file of our format, which the first one makes. */
static int open_side(struct side *side, const char *path, struct error *err) {
    static const char older[] = "make a new one of it: loom debug dump --store DIR | loom debug restore - --store NEW";
    int format = 0, flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
    side->path = path ? path : ":memory:";
    pthread_mutex_init(&side->lock, NULL);
    int rc = sqlite3_open_v2(side->path, &side->db, flags, NULL);
    if (rc == SQLITE_OK) pages_check(side->db, &side->pages);
    side->pages.lenient = true; /* until we know that the file is of our format */
    if (rc == SQLITE_OK) rc = sqlite3_exec(side->db, pragmas, read_int, &format, NULL);
    if (SABOTAGE("checkpoint not synced")) sqlite3_exec(side->db, "PRAGMA synchronous = OFF", NULL, NULL, NULL);
    if (rc == SQLITE_OK && format != 0 && format != STORE_FORMAT)
        return error_set(err, LOOM_E_CONFLICT, "the store %s has format %d, this Loom's is %d; %s", path, format,
                         STORE_FORMAT, format > STORE_FORMAT ? "use a newer Loom" : older);
    if (side->pages.damaged) rc = SQLITE_CORRUPT;
    side->pages.lenient = false;
    if (rc == SQLITE_OK && format == 0) rc = create(side->db);
    for (int q = 0; q < Q_END && rc == SQLITE_OK; q++)
        rc = sqlite3_prepare_v3(side->db, queries[q], -1, SQLITE_PREPARE_PERSISTENT, &side->stmt[q], NULL);
    return rc == SQLITE_OK ? LOOM_OK : sqlite_error(side, "read", rc, err);
}

static void close_side(struct side *side) {
    for (int q = 0; q < Q_END; q++) sqlite3_finalize(side->stmt[q]);
    sqlite3_close(side->db);
}

/* CONFLICT when the store's id and seq are not what was seen here last, or later. */
static int check_seen(struct sqlite_store *s, bool accept_restored, struct error *err) {
    sqlite3_stmt *q = hold(s->reader, Q_META);
    char line[80] = "", seen_id[33];
    unsigned long long seen;
    int rc = sqlite3_step(q);
    rc = rc == SQLITE_ROW ? LOOM_OK : sqlite_error(s->reader, "read", rc, err);
    snprintf(s->id, sizeof s->id, "%s", rc == LOOM_OK ? (const char *)sqlite3_column_text(q, 0) : "");
    s->seq = (uint64_t)sqlite3_column_int64(q, 1);
    release(s->reader, q);
    bool known = pread(s->lock_fd, line, sizeof line - 1, PID_BYTES) > 0 &&
                 sscanf(line, "%32s %llu", seen_id, &seen) == 2;
    if (rc < 0 || accept_restored || !known || (strcmp(seen_id, s->id) == 0 && seen <= s->seq)) return rc;
    return error_set(
        err, LOOM_E_CONFLICT,
        "the store %s is older than what was seen here, as a restored backup is, or one whose WAL is damaged "
        "(it ends at batch %llu, seen was %llu of store %s); if that is meant, start with --accept-restored",
        s->path, (unsigned long long)s->seq, seen, seen_id);
}

static void sqlite_close(struct store *base) {
    struct sqlite_store *s = (struct sqlite_store *)base;
    write_seen(s, 0);
    keeper_tell(s, &s->stop);
    if (s->thread) pthread_join(s->thread, NULL);
    if (s->sync_failed) /* what the page cache holds must not be taken for durable */
        sqlite3_db_config(s->writer.db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    close_side(&s->keeper);
    close_side(&s->file_reader);
    close_side(&s->writer);
    if (s->path) close(s->lock_fd);
    free(s->path);
    free(s);
}

static const struct store_ops sqlite_ops = {sqlite_claim, sqlite_commit, sqlite_sync, sqlite_scan, sqlite_close};

struct store *store_sqlite_open(const char *path, struct env *env, bool accept_restored, struct error *err) {
    struct sqlite_store *s = mem_alloc(sizeof *s);
    *s = (struct sqlite_store){.base.ops = &sqlite_ops, .env = env, .seen_at = -1};
    sem_init(&s->wake, 0, 0);
    s->path = str_dup(str_of(path));
    s->reader = path ? &s->file_reader : &s->writer;
    int rc = s->lock_fd = path ? take_file(path, err) : LOOM_OK;
    if (rc >= 0) rc = open_side(&s->writer, s->path, err);
    if (rc >= 0 && path) rc = open_side(&s->file_reader, s->path, err);
    if (rc >= 0 && path && !folder_sync(path)) /* SQLite does this too, but does not tell when it fails */
        rc = error_set(err, LOOM_E_STORE, "the folder of %s cannot be synced: %s", path, strerror(errno));
    if (rc >= 0 && path) rc = check_seen(s, accept_restored, err);
    if (rc >= 0 && path) rc = open_side(&s->keeper, s->path, err);
    if (rc >= 0) sqlite3_wal_hook(s->writer.db, committed, s);
    if (rc >= 0)
        sqlite3_exec(s->writer.db, "PRAGMA synchronous = NORMAL", NULL, NULL, NULL); /* sqlite_sync() does it */
    if (rc >= 0 && path) env->thread(env, &s->thread, keeper_main, s);
    if (rc >= 0) return &s->base;
    s->sync_failed = true; /* who is refused brings nothing into the file */
    notice_sync_error(s, sqlite3_extended_errcode(s->writer.db));
    notice_sync_error(s, sqlite3_extended_errcode(s->file_reader.db));
    sqlite_close(&s->base);
    return NULL;
}
