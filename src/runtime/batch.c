/* batch.c: the open batch, group commit, and the effects that wait for it.
 *
 * Rows collect in the open batch by key, so that a later write supersedes an earlier one and a row that comes and goes
 * within one batch is never written. One batch is on its way to the disk (flight) while one fills. A load sees open, then
 * flight, then the store; a scan sees what has committed. Batches commit in order; an effect carries the number of the
 * batch that was open when it was made and is released when that one has committed. An open batch without rows counts as
 * committed when all before it have. Values of 256 KiB and more become blobs; the writer syncs a blob before the row that
 * names it commits.
 * A failed commit drops all that was ahead of the disk (resident_drop_all); nothing runs until a probe commits again. A
 * failed read does the same: who could not read may have decided wrongly.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

enum { FAULTS_MAX = 3 }; /* failed reads with no commit in between before Loom stops */

struct pending_row {
    struct str key, value; /* key with the kind as first byte; value.p NULL: deleted */
    bool fresh;            /* the store has no such row */
};
struct pending {
    struct map rows;
    struct arena mem;
};
struct commit_job {
    struct item item; /* comes back through the inbox */
    struct batch batch;
    struct buf *blobs; /* texts that point to blobs, one per large row */
    enum commit_outcome outcome;
    struct error err;
    int64_t us;
};

struct pending *pending_new(void) {
    return mem_alloc(sizeof(struct pending));
}

void pending_free(struct pending *p) {
    if (!p) return;
    map_free(&p->rows);
    arena_free(&p->mem);
    free(p);
}

/* ---- rows ---- */

static struct str kinded(enum row_kind kind, struct str key, char *space, size_t cap, struct arena *mem) {
    char *p = key.n + 1 <= cap ? space : arena_alloc(mem, key.n + 1);
    p[0] = (char)kind;
    memcpy(p + 1, key.p, key.n);
    return (struct str){p, key.n + 1};
}

void rows_put(struct loom *l, enum row_kind kind, struct str key, struct str value, bool fresh) {
    struct pending *p = l->open;
    char space[512];
    struct str full = kinded(kind, key, space, sizeof space, &p->mem);
    struct pending_row *row = map_get(&p->rows, full);
    if (row && row->fresh && !value.p) {
        map_remove(&p->rows, full);
        return;
    }
    if (!row) {
        row = arena_alloc(&p->mem, sizeof *row);
        row->key = arena_dup(&p->mem, full);
        row->fresh = fresh;
        map_put(&p->rows, row->key, row);
    }
    row->value = value.p ? arena_dup(&p->mem, value) : STR_NONE;
}

void rows_delete(struct loom *l, enum row_kind kind, struct str key) {
    rows_put(l, kind, key, STR_NONE, false);
}

static int resolve(struct loom *l, struct str value, struct buf *out, struct error *err) {
    static const char mark[] = "{\"$blob\":\"";
    enum { MARK = sizeof mark - 1 };
    char hex[65] = {0};
    if (!str_starts(value, str_of(mark)) || value.n < MARK + 64) {
        buf_str(out, value);
        return 1;
    }
    memcpy(hex, value.p + MARK, 64);
    int rc = l->blobs->ops->get(l->blobs, hex, out, err);
    if (rc == LOOM_E_NOT_FOUND)
        return error_set(err, LOOM_E_DAMAGED, "the blob %s, which a row names, is gone; restore it from a backup", hex);
    return rc < 0 ? rc : 1;
}

static struct pending_row *uncommitted(const struct loom *l, struct str full) {
    struct pending_row *row = map_get(&l->open->rows, full);
    return row || !l->flight ? row : map_get(&l->flight->rows, full);
}

int store_fault(struct loom *l, int rc, const struct error *err) {
    if (rc == LOOM_E_STORE || rc == LOOM_E_DISK_FULL) l->fault = *err;
    return rc;
}

int rows_stored(struct loom *l, enum row_kind kind, struct str key, struct buf *out, struct error *err) {
    struct buf raw = {0};
    int rc = l->store->ops->load(l->store, kind, key, &raw, err);
    if (rc == 1) rc = resolve(l, buf_view(&raw), out, err);
    store_fault(l, rc, err);
    buf_free(&raw);
    return rc;
}

int rows_load(struct loom *l, enum row_kind kind, struct str key, struct buf *out, struct error *err) {
    char space[512];
    struct pending_row *row = uncommitted(l, kinded(kind, key, space, sizeof space, &l->open->mem));
    if (row) {
        buf_str(out, row->value);
        return row->value.p != NULL;
    }
    return rows_stored(l, kind, key, out, err);
}

struct str rows_get(struct loom *l, enum row_kind kind, struct str key) {
    struct buf out = {0};
    struct error err;
    int rc = rows_load(l, kind, key, &out, &err);
    if (rc < 0)
        log_event(LOG_ERROR, "row cannot be read", "\"kind\":%z,\"code\":%z,\"detail\":%z", row_kind_name(kind),
                  err.code, err.message);
    struct str value = rc == 1 ? arena_dup(&l->scratch, buf_view(&out)) : STR_NONE;
    buf_free(&out);
    return value;
}

struct scan {
    struct loom *l;
    row_fn fn;
    void *ctx;
    struct error *err;
    int rc;
};

static bool scan_row(void *ctx, struct str key, struct str value) {
    struct scan *s = ctx;
    struct buf whole = {0};
    int rc = value.p ? resolve(s->l, value, &whole, s->err)
                     : error_set(s->err, LOOM_E_DAMAGED, "row %.*s does not match its checksum; its bytes are kept",
                                 (int)key.n, key.p);
    bool goes_on = rc < 0 || s->fn(s->ctx, key, buf_view(&whole));
    if (rc < 0) s->rc = rc; /* the others are still visited */
    buf_free(&whole);
    return goes_on;
}

int rows_scan(struct loom *l, enum row_kind kind, struct str from, struct str to, row_fn fn, void *ctx,
              struct error *err) {
    struct scan s = {l, fn, ctx, err, 0};
    int rc = l->store->ops->scan(l->store, kind, from, to, scan_row, &s, err);
    return store_fault(l, rc < 0 ? rc : s.rc, err);
}

int rows_prefix(struct loom *l, enum row_kind kind, struct str prefix, row_fn fn, void *ctx, struct error *err) {
    char *end = memcpy(arena_alloc(&l->scratch, prefix.n), prefix.p, prefix.n); /* the smallest key above all with it */
    end[prefix.n - 1]++;
    return rows_scan(l, kind, prefix, (struct str){end, prefix.n}, fn, ctx, err);
}

/* ---- effects ---- */

void effect_add(struct loom *l, void (*release)(struct loom *, void *, bool), void *ctx) {
    if (l->effect_count == l->effect_cap) {
        size_t cap = l->effect_cap ? l->effect_cap * 2 : 64;
        struct effect *grown = mem_alloc(cap * sizeof *grown);
        for (size_t i = 0; i < l->effect_count; i++) grown[i] = l->effects[(l->effect_head + i) % l->effect_cap];
        free(l->effects);
        l->effects = grown;
        l->effect_cap = cap;
        l->effect_head = 0;
    }
    l->effects[(l->effect_head + l->effect_count++) % l->effect_cap] = (struct effect){l->open_seq, release, ctx};
}

struct effect effect_take(struct loom *l) {
    struct effect e = l->effects[l->effect_head];
    l->effect_head = (l->effect_head + 1) % l->effect_cap;
    l->effect_count--;
    l->released = true;
    return e;
}

bool batch_idle(const struct loom *l) {
    return !l->flight && l->open->rows.count == 0 && !l->dirty_head && !l->fault.code[0];
}

void effects_release(struct loom *l) {
    while (l->effect_count > 0) {
        uint64_t seq = l->effects[l->effect_head].seq, idle = seq == l->open_seq && batch_idle(l);
        if (seq > l->committed && !idle && !SABOTAGE("ack before sync")) break;
        struct effect e = effect_take(l);
        e.release(l, e.ctx, true);
    }
    activity_wake(l->pool);
}

/* ---- commit ---- */

bool batch_full(const struct loom *l) {
    return l->open->rows.count >= BATCH_ROWS_MAX || l->open->mem.bytes >= BATCH_BYTES_MAX;
}

static int by_row(const void *a, const void *b) {
    const struct row *x = a, *y = b;
    return x->kind != y->kind ? (int)x->kind - (int)y->kind : str_cmp(x->key, y->key);
}

static int move_to_blobs(struct loom *l, struct commit_job *job) {
    job->blobs = mem_alloc((job->batch.count + 1) * sizeof *job->blobs);
    for (size_t i = 0; i < job->batch.count; i++) {
        struct row *row = &job->batch.rows[i];
        if (row->value.n < BLOB_MIN) continue;
        char hex[65];
        int rc = l->blobs->ops->put(l->blobs, row->value, hex, &job->err);
        if (rc < 0) return rc;
        buf_json(&job->blobs[i], "{\"$blob\":%z,\"size\":%u}", hex, (uint64_t)row->value.n);
        row->value = buf_view(&job->blobs[i]);
    }
    return 0;
}

/* On the writer's thread, or on the loop's when nothing else waits. */
static void job_run(struct loom *l, struct commit_job *job) {
    int64_t from = l->env->mono_us(l->env);
    qsort(job->batch.rows, job->batch.count, sizeof *job->batch.rows, by_row);
    int rc = move_to_blobs(l, job);
    if (rc < 0)
        job->outcome = rc == LOOM_E_DISK_FULL ? COMMIT_FULL : COMMIT_FAILED;
    else
        job->outcome = l->store->ops->commit(l->store, &job->batch, &job->err);
    job->us = l->env->mono_us(l->env) - from;
}

static void job_free(struct commit_job *job) {
    for (size_t i = 0; job->blobs && i < job->batch.count; i++) buf_free(&job->blobs[i]);
    free(job->blobs);
    free(job->batch.rows);
    free(job);
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
    log_event(LOG_ERROR, l->fault.code[0] ? "read failed" : "commit failed", "\"code\":%z,\"detail\":%z", err->code,
              err->message);
    metric_add(METRIC_COMMITS_FAILED, 1);
    if (is_fatal(l, outcome)) return;
    l->fault.code[0] = '\0';
    l->failed = true;
    l->modules_put++; /* what was resolved may rest on what did not commit */
    l->failed_code = outcome == COMMIT_FULL ? LOOM_E_DISK_FULL : LOOM_E_NOT_COMMITTED;
    l->probe_at = l->env->mono_ms(l->env) + 200;
    while (l->effect_count > 0) {
        struct effect e = effect_take(l);
        e.release(l, e.ctx, e.seq <= l->committed);
    }
    pending_free(l->flight);
    pending_free(l->open);
    l->flight = NULL;
    l->open = pending_new();
    waiters_fail(l, false);
    attempts_fail(l);
    resident_drop_all(l);
}

static void job_done(struct loom *l, struct item *item) {
    struct commit_job *job = (struct commit_job *)item;
    metric_add(METRIC_COMMIT_US, job->us);
    if (job->outcome == COMMIT_OK || SABOTAGE("rollback not checked")) {
        l->committed = job->batch.seq;
        l->faults = 0;
        metric_add(METRIC_BATCHES, 1);
        metric_add(METRIC_ROWS, (int64_t)job->batch.count);
        pending_free(l->flight);
        l->flight = NULL;
        effects_release(l);
    } else {
        commit_failed(l, job->outcome, &job->err);
    }
    job_free(job);
}

static struct str bare(const struct pending_row *row) {
    return (struct str){row->key.p + 1, row->key.n - 1};
}

static struct commit_job *job_new(struct loom *l, struct pending *p) {
    struct commit_job *job = mem_alloc(sizeof *job);
    job->item.fn = job_done;
    job->batch = (struct batch){.term = l->term, .seq = l->open_seq};
    job->batch.rows = mem_alloc((p->rows.count + 1) * sizeof *job->batch.rows);
    struct pending_row *row;
    for (size_t i = 0; (row = map_next(&p->rows, &i)) != NULL;)
        job->batch.rows[job->batch.count++] = (struct row){(enum row_kind)row->key.p[0], bare(row), row->value};
    return job;
}

void batch_close(struct loom *l, bool here) {
    if (l->flight) return;
    residents_flush(l);
    if (l->fault.code[0]) { /* what was decided on that read must not commit */
        commit_failed(l, strcmp(l->fault.code, "disk_full") ? COMMIT_FAILED : COMMIT_FULL, &l->fault);
        return;
    }
    if (l->open->rows.count == 0) {
        effects_release(l);
        return;
    }
    struct commit_job *job = job_new(l, l->open);
    l->flight = l->open;
    l->open = pending_new();
    l->open_seq++;
    l->arrivals = 0;
    if (here) {
        job_run(l, job);
        job_done(l, &job->item);
        return;
    }
    pthread_mutex_lock(&l->lock);
    l->job = job;
    pthread_cond_signal(&l->writer_wake);
    pthread_mutex_unlock(&l->lock);
}

void batch_probe(struct loom *l) {
    if (l->env->mono_ms(l->env) < l->probe_at) return;
    l->probe_at = l->env->mono_ms(l->env) + 500;
    struct buf value = {0};
    struct error err;
    buf_json(&value, "{\"at\":%d}", loom_now(l));
    struct row row = {ROW_LEASE, STR("probe"), buf_view(&value)};
    struct batch batch = {.term = l->term, .seq = l->open_seq, .rows = &row, .count = 1};
    enum commit_outcome outcome = l->store->ops->commit(l->store, &batch, &err);
    if (!is_fatal(l, outcome) && outcome == COMMIT_OK) {
        l->committed = l->open_seq++;
        l->failed = false;
        log_event(LOG_INFO, "the store takes batches again", "");
        if (recover(l, &err) < 0) {
            log_event(LOG_FATAL, "recovery failed", "\"detail\":%z", err.message);
            l->env->die(70);
        }
        attempts_resume(l);
    }
    buf_free(&value);
}

static struct commit_job *job_take(struct loom *l, bool wait) {
    pthread_mutex_lock(&l->lock);
    while (wait && !l->job && !l->writer_stop) pthread_cond_wait(&l->writer_wake, &l->lock);
    struct commit_job *job = l->job;
    l->job = NULL;
    pthread_mutex_unlock(&l->lock);
    return job;
}

bool batch_write(struct loom *l, bool wait) {
    struct commit_job *job = job_take(l, wait);
    if (!job) return false;
    job_run(l, job);
    loom_post(l, &job->item);
    return true;
}

void batch_drop(struct loom *l) {
    struct commit_job *job = job_take(l, false);
    if (job) job_free(job);
}
