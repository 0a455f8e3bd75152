/* array_store.c: rows in a sorted array, changed wholly or not at all, with faults on order. It is what every other
 * store is compared with, so it is as plain as can be. */
#include "support/array_store.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct array_row {
    enum row_kind kind;
    struct str key, value; /* owned */
    uint64_t sum;
};

struct array_store {
    struct store base;
    struct array_faults *disk;
    pthread_mutex_t lock;
};

static struct array_store *self(struct store *s) {
    return (struct array_store *)s;
}

static struct str copy(struct str s) {
    return (struct str){str_dup(s), s.n};
}

static void row_free(struct array_row *r) {
    free((void *)(uintptr_t)r->key.p);
    free((void *)(uintptr_t)r->value.p);
}

/* Index of the first row that is not before (kind, key). */
static size_t lower(const struct array_faults *d, enum row_kind kind, struct str key) {
    size_t low = 0, high = d->count;
    while (low < high) {
        size_t mid = (low + high) / 2;
        const struct array_row *r = &d->rows[mid];
        bool before = r->kind != kind ? r->kind < kind : str_cmp(r->key, key) < 0;
        low = before ? mid + 1 : low;
        high = before ? high : mid;
    }
    return low;
}

static bool is_at(const struct array_faults *d, size_t i, enum row_kind kind, struct str key) {
    return i < d->count && d->rows[i].kind == kind && str_eq(d->rows[i].key, key);
}

static bool whole(const struct array_row *r) {
    return row_sum(r->kind, r->key, r->value) == r->sum;
}

static void apply(struct array_faults *d, const struct row *r) {
    size_t i = lower(d, r->kind, r->key);
    if (is_at(d, i, r->kind, r->key)) {
        row_free(&d->rows[i]);
        memmove(&d->rows[i], &d->rows[i + 1], (--d->count - i) * sizeof *d->rows);
    }
    if (!r->value.p) return;
    if (d->count == d->cap) {
        d->cap = d->cap ? d->cap * 2 : 64;
        d->rows = mem_grow(d->rows, d->cap * sizeof *d->rows);
    }
    memmove(&d->rows[i + 1], &d->rows[i], (d->count++ - i) * sizeof *d->rows);
    d->rows[i] = (struct array_row){r->kind, copy(r->key), copy(r->value), row_sum(r->kind, r->key, r->value)};
}

static enum commit_outcome commit_locked(struct array_faults *d, const struct batch *b, struct error *err) {
    bool stale = b->term != d->term, updates = SABOTAGE("no term in update"), deletes = SABOTAGE("no term in delete");
    if (stale && !updates && !deletes) {
        error_set(err, LOOM_E_CONFLICT, "another writer has taken the store; this one must stop");
        return COMMIT_CONFLICT;
    }
    d->commits++;
    bool fails = d->fail_at && (d->commits == d->fail_at || (d->forever && d->commits > d->fail_at));
    if (fails) error_set(err, LOOM_E_STORE, "commit %llu was told to fail", (unsigned long long)d->commits);
    if (fails && !d->applied) return d->outcome;
    for (size_t i = 0; i < b->count; i++)
        if (!stale || (b->rows[i].value.p ? updates : deletes)) apply(d, &b->rows[i]);
    d->seq = b->seq;
    return fails ? d->outcome : COMMIT_OK;
}

static enum commit_outcome array_commit(struct store *base, const struct batch *b, struct error *err) {
    struct array_store *s = self(base);
    pthread_mutex_lock(&s->lock);
    enum commit_outcome outcome = commit_locked(s->disk, b, err);
    pthread_mutex_unlock(&s->lock);
    return outcome;
}

/* What a power loss takes is for stores that have a disk to show. */
static enum commit_outcome array_sync(struct store *base, struct error *err) {
    (void)base, (void)err;
    return COMMIT_OK;
}

static int array_claim(struct store *base, struct str writer, uint64_t *term, uint64_t *seq, struct error *err) {
    (void)writer, (void)err;
    struct array_store *s = self(base);
    pthread_mutex_lock(&s->lock);
    *term = ++s->disk->term;
    *seq = s->disk->seq;
    pthread_mutex_unlock(&s->lock);
    return LOOM_OK;
}

static int array_scan(struct store *base, enum row_kind kind, struct str from, struct str to, row_fn fn, void *ctx,
                      struct error *err) {
    (void)err;
    struct array_store *s = self(base);
    struct array_faults *d = s->disk;
    pthread_mutex_lock(&s->lock);
    for (size_t i = lower(d, kind, from); i < d->count && d->rows[i].kind == kind; i++) {
        struct array_row *r = &d->rows[i];
        if ((to.p && str_cmp(r->key, to) >= 0) || !fn(ctx, r->key, whole(r) ? r->value : STR_NONE)) break;
    }
    pthread_mutex_unlock(&s->lock);
    return LOOM_OK;
}

static void array_close(struct store *base) {
    pthread_mutex_destroy(&self(base)->lock);
    free(base);
}

static const struct store_ops array_ops = {array_claim, array_commit, array_sync, array_scan, array_close};

struct store *store_array_open(struct array_faults *disk) {
    struct array_store *s = mem_alloc(sizeof *s);
    s->base.ops = &array_ops;
    s->disk = disk;
    pthread_mutex_init(&s->lock, NULL);
    return &s->base;
}

bool array_damage(struct array_faults *d, enum row_kind kind, struct str key, struct str behind) {
    size_t i = lower(d, kind, key);
    if (!is_at(d, i, kind, key)) return false;
    struct str value = d->rows[i].value;
    const char *at = behind.n ? memmem(value.p, value.n, behind.p, behind.n) : value.p + value.n - 1;
    if (at) *(char *)(uintptr_t)(at + behind.n) ^= 1;
    return at;
}

void array_copy(struct array_faults *to, const struct array_faults *from) {
    *to = (struct array_faults){.term = from->term, .seq = from->seq, .count = from->count, .cap = from->count + 1};
    to->rows = mem_alloc(to->cap * sizeof *to->rows);
    for (size_t i = 0; i < from->count; i++) {
        const struct array_row *r = &from->rows[i];
        to->rows[i] = (struct array_row){r->kind, copy(r->key), copy(r->value), r->sum};
    }
}

bool array_any(const struct array_faults *d, enum row_kind kind, struct str prefix) {
    size_t i = lower(d, kind, prefix);
    return i < d->count && d->rows[i].kind == kind && str_starts(d->rows[i].key, prefix);
}

void array_free(struct array_faults *d) {
    for (size_t i = 0; i < d->count; i++) row_free(&d->rows[i]);
    free(d->rows);
    *d = (struct array_faults){0};
}

struct found {
    struct buf *out;
    int rc;
};

static bool found_row(void *ctx, struct str key, struct str value) {
    struct found *f = ctx;
    (void)key;
    f->rc = value.p ? 1 : LOOM_E_DAMAGED;
    buf_str(f->out, value);
    return false;
}

int store_load(struct store *s, enum row_kind kind, struct str key, struct buf *out, struct error *err) {
    struct buf next = {0}; /* the smallest key above this one */
    struct found f = {out, 0};
    buf_str(&next, key);
    buf_char(&next, '\0');
    int rc = s->ops->scan(s, kind, key, buf_view(&next), found_row, &f, err);
    buf_free(&next);
    return rc < 0 ? rc : f.rc;
}
