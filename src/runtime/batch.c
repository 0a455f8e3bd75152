/* batch.c: the open batch, group commit, and the effects that wait for it.
 *
 * Rows collect in the open batch by key, so that a later write supersedes an earlier one and a row that comes and goes
 * within one batch is never written. Two batches can be on their way to the disk (flights) while one fills: one is written
 * while the disk syncs the one before. A load sees open, then the flights, then the store; a scan sees what has been written.
 * Batches are written in order; an effect carries the number of the batch that was open when it was made and is released
 * when that one has been synced. An open batch without rows counts as committed when all before it have. Values of 256 KiB
 * and more become blobs; the writer syncs a blob before the row that names it commits.
 * A failed commit drops all that was ahead of the disk (actors, definitions); nothing runs until a probe commits again. A
 * failed read does the same: who could not read may have decided wrongly.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

enum { FAULTS_MAX = 3 }; /* failed reads with no commit in between before Loom stops */

struct pending_row {
    struct row row;
    bool fresh; /* the store has no such row */
};
struct pending {
    struct item item;   /* comes back from the writer through the inbox */
    struct map rows;    /* kind as a byte, key → row */
    struct batch batch; /* the same rows, once it is closed */
    enum commit_outcome outcome;
    bool back; /* from its writer */
    struct error err;
    int64_t us;
};

void pending_free(struct pending *p) {
    if (!p) return;
    map_free(&p->rows);
    item_free(&p->item);
}

/* ---- rows ---- */

static struct str kinded(struct loom *l, enum row_kind kind, struct str key) {
    char *p = arena_alloc(&l->scratch, key.n + 1);
    p[0] = (char)kind;
    memcpy(p + 1, key.p, key.n);
    return (struct str){p, key.n + 1};
}

void rows_put(struct loom *l, enum row_kind kind, struct str key, struct str value, bool fresh) {
    struct pending *p = l->open;
    struct str full = kinded(l, kind, key);
    struct pending_row *row = map_get(&p->rows, full);
    if (row && row->fresh && !value.p) {
        map_remove(&p->rows, full);
        return;
    }
    if (!row) {
        row = arena_alloc(&p->item.mem, sizeof *row);
        full = arena_dup(&p->item.mem, full);
        *row = (struct pending_row){{kind, {full.p + 1, key.n}, STR_NONE}, fresh};
        map_put(&p->rows, full, row);
    }
    row->row.value = value.p ? arena_dup(&p->item.mem, value) : STR_NONE;
}

void rows_delete(struct loom *l, enum row_kind kind, struct str key) {
    rows_put(l, kind, key, STR_NONE, false);
}

/* A value that names a blob becomes the blob's bytes, in `out`. */
static int resolve(struct loom *l, struct str *value, struct buf *out, struct error *err) {
    struct str hash = str_starts(*value, STR("{\"$blob\":")) ? entry_word(*value, "$blob") : STR_NONE;
    if (hash.n != 64) return 1;
    const char *hex = say(l, "%j", hash).p;
    int rc = l->blobs->ops->get(l->blobs, hex, out, err);
    if (rc == LOOM_E_NOT_FOUND)
        return error_set(err, LOOM_E_DAMAGED, "the blob %s, which a row names, is gone; restore it from a backup", hex);
    *value = buf_view(out);
    return rc < 0 ? rc : 1;
}

static struct pending_row *uncommitted(const struct loom *l, struct str full) {
    struct pending_row *row = map_get(&l->open->rows, full);
    for (int i = 1; !row && i >= 0; i--)
        if (l->flights[i]) row = map_get(&l->flights[i]->rows, full);
    return row;
}

int store_fault(struct loom *l, int rc, const struct error *err) {
    if (rc == LOOM_E_STORE || rc == LOOM_E_DISK_FULL) l->fault = *err;
    return rc;
}

struct scan {
    struct loom *l;
    enum row_kind kind;
    row_fn fn;
    void *ctx;
    struct error *err;
    int rc;
};

static bool scan_row(void *ctx, struct str key, struct str value) {
    struct scan *s = ctx;
    struct buf blob = {0};
    int rc = value.p
                 ? resolve(s->l, &value, &blob, s->err)
                 : error_set(s->err, LOOM_E_DAMAGED, "the %s row %.*s does not match its checksum; its bytes are kept",
                             row_kind_name(s->kind), (int)key.n, key.p);
    bool goes_on = rc < 0 || s->fn(s->ctx, key, value);
    if (rc < 0) s->rc = rc; /* the others are still visited */
    buf_free(&blob);
    return goes_on;
}

int rows_scan(struct loom *l, enum row_kind kind, struct str from, struct str to, row_fn fn, void *ctx,
              struct error *err) {
    struct scan s = {l, kind, fn, ctx, err, 0};
    int rc = l->store->ops->scan(l->store, kind, from, to, scan_row, &s, err);
    return store_fault(l, rc < 0 ? rc : s.rc, err);
}

int rows_prefix(struct loom *l, enum row_kind kind, struct str prefix, row_fn fn, void *ctx, struct error *err) {
    char *end = memcpy(arena_alloc(&l->scratch, prefix.n), prefix.p, prefix.n); /* the smallest key above all with it */
    end[prefix.n - 1]++;
    return rows_scan(l, kind, prefix, (struct str){end, prefix.n}, fn, ctx, err);
}

static bool first_row(void *ctx, struct str key, struct str value) {
    (void)key;
    buf_str(ctx, value);
    return false;
}

int rows_stored(struct loom *l, enum row_kind kind, struct str key, struct str *out, struct error *err) {
    struct buf value = {0};
    int rc = rows_scan(l, kind, key, say(l, "%j%j", key, STR("\0")), first_row, &value, err);
    *out = value.n ? kept(l, &value) : STR_NONE;
    return rc < 0 ? rc : out->p != NULL;
}

int rows_load(struct loom *l, enum row_kind kind, struct str key, struct str *out, struct error *err) {
    struct pending_row *row = uncommitted(l, kinded(l, kind, key));
    if (!row) return rows_stored(l, kind, key, out, err);
    *out = row->row.value;
    return out->p != NULL;
}

struct str rows_get(struct loom *l, enum row_kind kind, struct str key) {
    struct str value;
    struct error err;
    if (rows_load(l, kind, key, &value, &err) < 0)
        log_event(LOG_ERROR, "row cannot be read", "\"kind\":%z,\"code\":%z,\"detail\":%z", row_kind_name(kind),
                  err.code, err.message);
    return value;
}

/* ---- effects ---- */

void effect_add(struct loom *l, struct item *item, void (*fn)(struct loom *, struct item *)) {
    item->fn = fn;
    item->seq = l->open_seq;
    STAILQ_INSERT_TAIL(&l->effects, item, next);
}

bool batch_idle(const struct loom *l) {
    return !l->flights[0] && l->open->rows.count == 0 && STAILQ_EMPTY(&l->dirty) && !l->fault.code[0];
}

static void effect_release(struct loom *l, struct item *e, bool committed) {
    STAILQ_REMOVE_HEAD(&l->effects, next);
    e->committed = committed;
    e->fn(l, e);
}

void effects_release(struct loom *l) {
    for (struct item *e; (e = STAILQ_FIRST(&l->effects)) != NULL; effect_release(l, e, true)) {
        bool idle = e->seq == l->open_seq && batch_idle(l);
        if (e->seq > l->committed && !idle && !SABOTAGE("ack before sync")) break;
    }
    if (l->pool) activity_wake(l->pool);
}

void batch_forget(struct loom *l) {
    attempts_fail(l);
    for (struct item *e; (e = STAILQ_FIRST(&l->effects)) != NULL;) effect_release(l, e, e->seq <= l->committed);
    for (int i = 0; i < 2; i++) pending_free(l->flights[i]);
    pending_free(l->open);
    l->flights[0] = l->flights[1] = l->job = NULL;
    l->refuse = false;
    l->open = item_new(sizeof *l->open);
    resident_drop_all(l);
}

/* ---- commit ---- */

bool batch_full(const struct loom *l) {
    return l->open->rows.count >= BATCH_ROWS_MAX || l->open->item.mem.bytes >= BATCH_BYTES_MAX;
}

static int by_row(const void *a, const void *b) {
    const struct row *x = a, *y = b;
    return x->kind != y->kind ? (int)x->kind - (int)y->kind : str_cmp(x->key, y->key);
}

static enum commit_outcome move_to_blobs(struct loom *l, struct pending *p) {
    for (struct row *row = p->batch.rows; row < p->batch.rows + p->batch.count; row++) {
        if (row->value.n < BLOB_MIN) continue;
        char hex[65];
        int rc = l->blobs->ops->put(l->blobs, row->value, hex, &p->err);
        if (rc < 0) return rc == LOOM_E_DISK_FULL ? COMMIT_FULL : COMMIT_FAILED;
        row->value = arena_json(&p->item.mem, "{\"$blob\":%z,\"size\":%u}", hex, (uint64_t)row->value.n);
    }
    return COMMIT_OK;
}

/* On a writer's thread, or on the loop's when nothing else waits. Nothing is written on top of what failed. */
static void commit(struct loom *l, struct pending *p) {
    p->us = -l->env->mono_us(l->env);
    p->outcome = COMMIT_FAILED;
    if (l->refuse) return;
    qsort(p->batch.rows, p->batch.count, sizeof *p->batch.rows, by_row);
    p->outcome = move_to_blobs(l, p);
    if (p->outcome == COMMIT_OK) p->outcome = l->store->ops->commit(l->store, &p->batch, &p->err);
    l->refuse = p->outcome != COMMIT_OK;
}

static void sync(struct loom *l, struct pending *p) {
    if (p->outcome == COMMIT_OK) p->outcome = l->store->ops->sync(l->store, &p->err);
    p->us += l->env->mono_us(l->env);
}

/* Of what this process may not go on from, it dies. */
static bool is_fatal(struct loom *l, enum commit_outcome outcome) {
    static const char *const why[] = {
        [COMMIT_FATAL] = "the disk lost a write; Loom stops, and checks the store at its next start",
        [COMMIT_CONFLICT] = "another worker owns the store; this one stops",
        [COMMIT_FAILED] = "the store cannot be read, again and again; Loom stops: check the disk",
    };
    bool again = l->fault.code[0] && outcome == COMMIT_FAILED && ++l->faults > FAULTS_MAX;
    if (outcome != COMMIT_FATAL && outcome != COMMIT_CONFLICT && !again) return false;
    log_event(LOG_FATAL, why[outcome], "");
    l->env->die(70);
    return true;
}

static void commit_failed(struct loom *l, enum commit_outcome outcome, const struct error *err) {
    if (!l->failed)
        log_event(LOG_ERROR, l->fault.code[0] ? "read failed" : "commit failed", "\"code\":%z,\"detail\":%z", err->code,
                  err->message);
    metric_add(METRIC_COMMITS_FAILED, 1);
    if (is_fatal(l, outcome)) return;
    l->fault = *err;
    l->fault.code[0] = '\0';
    l->modules_put++; /* what was resolved may rest on what did not commit */
    l->failed = outcome == COMMIT_FULL ? LOOM_E_DISK_FULL : LOOM_E_NOT_COMMITTED;
    l->probe_at = l->env->mono_ms(l->env) + 500;
    registry_forget(l);
    batch_forget(l);
    waiters_sift(l, WAITERS_UNCOMMITTED);
}

/* They come back in any order. After a failure both must be back, for the writers read their rows. */
static void commit_done(struct loom *l, struct item *item) {
    struct pending *p = (struct pending *)item;
    for (p->back = true; (p = l->flights[0]) != NULL && p->back;) {
        if (p->outcome != COMMIT_OK && !SABOTAGE("rollback not checked")) {
            if (!l->flights[1] || l->flights[1]->back) commit_failed(l, p->outcome, &p->err);
            return;
        }
        metric_add(METRIC_COMMIT_US, p->us);
        metric_add(METRIC_BATCHES, 1);
        metric_add(METRIC_ROWS, (int64_t)p->batch.count);
        l->committed = p->batch.seq;
        if (!l->failed) l->faults = 0;
        l->flights[0] = l->flights[1];
        l->flights[1] = NULL;
        pending_free(p);
        effects_release(l);
    }
}

bool batch_ready(const struct loom *l) {
    return !__atomic_load_n(&l->job, __ATOMIC_RELAXED) && !l->flights[1] && !(l->settle && l->flights[0]);
}

bool batch_due(const struct loom *l) {
    return batch_ready(l) && (l->open->rows.count > 0 || !STAILQ_EMPTY(&l->dirty));
}

void batch_close(struct loom *l, bool here) {
    if (!batch_ready(l)) return;
    residents_flush(l);
    if (l->fault.code[0]) { /* what was decided on that read must not commit */
        enum commit_outcome outcome = strcmp(l->fault.code, "disk_full") ? COMMIT_FAILED : COMMIT_FULL;
        if (!l->flights[0]) commit_failed(l, outcome, &l->fault);
        return;
    }
    if (l->open->rows.count == 0) {
        effects_release(l);
        return;
    }
    struct pending *p = l->flights[l->flights[0] != NULL] = l->open;
    struct pending_row *row;
    p->batch.term = l->term;
    p->batch.seq = l->open_seq++;
    p->batch.rows = arena_alloc(&p->item.mem, p->rows.count * sizeof *p->batch.rows);
    for (size_t i = 0; (row = map_next(&p->rows, &i)) != NULL;) p->batch.rows[p->batch.count++] = row->row;
    l->open = item_new(sizeof *l->open);
    l->arrivals = 0;
    if (here && !l->flights[1]) {
        commit(l, p);
        sync(l, p);
        commit_done(l, &p->item);
        return;
    }
    pthread_mutex_lock(&l->lock);
    __atomic_store_n(&l->job, p, __ATOMIC_RELAXED);
    pthread_cond_signal(&l->writer_wake);
    pthread_mutex_unlock(&l->lock);
}

void batch_probe(struct loom *l) {
    struct error err;
    uint64_t before = l->committed;
    effects_release(l);
    if (l->env->mono_ms(l->env) < l->probe_at) return;
    rows_put(l, ROW_LEASE, STR("probe"), say(l, "{\"at\":%d}", loom_now(l)), false);
    batch_close(l, true);
    if (l->committed == before) return;
    l->failed = 0;
    log_event(LOG_INFO, "the store takes batches again", "");
    if (recover(l, false, &err) < 0) {
        log_event(LOG_FATAL, "recovery failed", "\"detail\":%z", err.message);
        l->env->die(70);
    }
    attempts_resume(l);
}

struct pending *batch_write(struct loom *l, bool wait) {
    pthread_mutex_lock(&l->writing);
    pthread_mutex_lock(&l->lock);
    while (wait && !l->job && !l->writer_stop) pthread_cond_wait(&l->writer_wake, &l->lock);
    struct pending *p = l->job;
    pthread_mutex_unlock(&l->lock);
    if (p) {
        commit(l, p);
        pthread_mutex_lock(&l->lock);
        __atomic_store_n(&l->job, NULL, __ATOMIC_RELAXED);
        pthread_cond_signal(&l->wake);
        pthread_mutex_unlock(&l->lock);
    }
    pthread_mutex_unlock(&l->writing);
    return p;
}

void batch_sync(struct loom *l, struct pending *p) {
    sync(l, p);
    loom_post(l, &p->item, commit_done);
}
