/* resident.c: actors in memory: loading, writing, eviction.
 *
 * Invariant: an actor whose rows have not all committed stays in memory, so loading one never meets uncommitted rows. An
 * actor with work in flight (a running turn, an activity) has an outbox row and stays too; recovery begins with those.
 * Crash, eviction and failover take one path: load the document, fold the journal, let the guest replay.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

static void used_now(struct loom *l, struct resident *r) {
    r->used_at = l->env->mono_ms(l->env);
    TAILQ_REMOVE(&l->lru, r, lru);
    TAILQ_INSERT_TAIL(&l->lru, r, lru);
}

void resident_touch(struct loom *l, struct resident *r, bool document) {
    r->document_dirty |= document;
    used_now(l, r);
    if (!r->dirty) STAILQ_INSERT_TAIL(&l->dirty, r, flush);
    r->dirty = true;
}

void resident_queue(struct loom *l, struct resident *r) {
    if (!r->queued) STAILQ_INSERT_TAIL(r->exec ? &l->runnable : &l->guestless, r, run);
    r->queued = true;
}

void resident_status(struct loom *l, struct resident *r, enum actor_status status, struct str reason) {
    size_t n = reason.n < sizeof r->a->reason - 1 ? reason.n : sizeof r->a->reason - 1;
    while (n > 0 && n < reason.n && ((unsigned char)reason.p[n] & 0xc0) == 0x80) n--; /* not within a character */
    r->a->status = status;
    memcpy(r->a->reason, reason.p ? reason.p : "", n);
    r->a->reason[n] = '\0';
    resident_touch(l, r, true);
}

/* ---- loading ---- */

struct load {
    struct resident *r;
    struct error *err;
    int rc;
};

static bool load_entries(void *ctx, struct str key, struct str value) {
    struct load *s = ctx;
    s->rc = journal_load(s->r->a, key, value, s->err);
    return s->rc >= 0;
}

/* The journal rows from the one that begins with entry `from`. */
int journal_rows(struct loom *l, const struct actor *a, uint64_t from, row_fn fn, void *ctx, struct error *err) {
    struct str first = journal_key(&l->scratch, a->full, from), end = journal_key(&l->scratch, a->full, UINT64_MAX);
    return rows_scan(l, ROW_JOURNAL, first, end, fn, ctx, err);
}

static struct str state_key(struct loom *l, const struct actor *a) {
    return say(l, "%j%js", a->full, STR("\0"));
}

int resident_state(struct loom *l, struct actor *a, struct error *err) {
    struct str row = rows_get(l, ROW_ACTOR, state_key(l, a));
    if (!row.p) return error_set(err, LOOM_E_DAMAGED, "the state of %s is missing from the store", a->id);
    state_set(a, yyjson_obj_get(look(l, row), "state"));
    return 0;
}

static void drop(struct loom *l, struct resident *r) {
    map_remove(&l->actors, r->a->full);
    TAILQ_REMOVE(&l->lru, r, lru);
    resident_drop_guest(l, r);
    mail_free(r);
    actor_free(r->a);
    free(r);
}

static bool in_flight(const struct resident *r) {
    const struct actor *a = r->a;
    bool counted = r->queued && r->starts > 0; /* its mail may be what takes the worker down */
    bool running = a->turn ? a->status == ACTOR_RUNNING || r->queued : counted;
    for (size_t i = 0; a->turn && a->status == ACTOR_SUSPENDED && !running && i < a->turn->promise_count; i++)
        running = a->turn->promises[i].kind <= PROMISE_CALL && a->turn->promises[i].done_at == ENTRY_NEVER;
    return running;
}

static int load(struct loom *l, struct resident *r, struct str text, struct error *err) {
    struct load s = {r, err, 0};
    int rc = actor_read(r->a, text, err);
    uint64_t known = r->a->cursor;
    r->a->cursor = r->a->from - 1;
    if (rc >= 0 && r->a->state_apart) rc = resident_state(l, r->a, err);
    if (rc >= 0) rc = journal_rows(l, r->a, r->a->from, load_entries, &s, err);
    if (rc >= 0) rc = s.rc;
    if (rc >= 0 && r->a->cursor < known)
        rc = error_set(err, LOOM_E_DAMAGED, "the journal of %s ends before its entry %zu", r->a->id, (size_t)known);
    if (rc >= 0) rc = mail_load(l, r, err);
    r->in_outbox = in_flight(r);
    return rc;
}

struct resident *resident_get(struct loom *l, struct str full, bool create, struct error *err) {
    struct resident *r = map_get(&l->actors, full);
    struct actor *a = r ? NULL : actor_new(full);
    if (!a) return r;
    struct str text;
    int rc = rows_load(l, ROW_ACTOR, full, &text, err);
    r = mem_alloc(sizeof *r);
    r->a = a;
    r->used_at = l->env->mono_ms(l->env);
    map_put(&l->actors, a->full, r);
    TAILQ_INSERT_TAIL(&l->lru, r, lru);
    if (rc == 1)
        rc = load(l, r, text, err);
    else if (rc == 0 && !create)
        rc = error_set(err, LOOM_E_NOT_FOUND, "there is no actor %s", r->a->id);
    if (rc >= 0) return r;
    drop(l, r);
    return NULL;
}

struct resident *resident_by_id(struct loom *l, struct str full) {
    struct error err = {.code = "not_found"};
    struct resident *r = resident_get(l, full, false, &err);
    if (!r && strcmp(err.code, "not_found") != 0)
        log_event(LOG_ERROR, "actor cannot be loaded", "\"actor\":%q,\"code\":%z,\"detail\":%z", full, err.code,
                  err.message);
    return r;
}

/* ---- writing ---- */

/* The state goes into the document while small; else into a row of its own, written only when the patches outweigh half
 * of it. Answers the text for the document, or STR_NONE. */
static struct str flush_state(struct loom *l, struct actor *a) {
    struct buf b = {0};
    state_text_stored(a, &b);
    struct str state = kept(l, &b);
    bool small = state.n < STATE_SMALL, was_apart = a->state_apart;
    a->state_apart = !small;
    if (!small && was_apart && a->patch_bytes <= state.n / 2) return STR_NONE;
    if (!SABOTAGE("snapshot without its journal position")) a->state_at = a->turn ? a->last_turn - 1 : a->cursor;
    a->from = a->turn ? a->last_row : a->cursor + 1;
    a->patch_bytes = 0;
    if (!small)
        rows_put(l, ROW_ACTOR, state_key(l, a), say(l, "{\"state\":%j}", state), false);
    else if (was_apart)
        rows_delete(l, ROW_ACTOR, state_key(l, a));
    return small ? state : STR_NONE;
}

void resident_put_outbox(struct loom *l, struct resident *r) {
    struct str row = say(l, "{\"starts\":%d,\"cursor\":%u}", (int64_t)r->starts, r->starts_cursor);
    rows_put(l, ROW_OUTBOX, r->a->full, row, !r->in_outbox);
    r->in_outbox = true;
}

static void flush_outbox(struct loom *l, struct resident *r) {
    bool flying = in_flight(r);
    if (flying && !r->in_outbox)
        resident_put_outbox(l, r);
    else if (!flying && r->in_outbox)
        rows_delete(l, ROW_OUTBOX, r->a->full);
    r->in_outbox = flying;
}

void resident_flush_tail(struct loom *l, struct resident *r) {
    struct actor *a = r->a;
    if (a->tail.n == 0) return;
    rows_put(l, ROW_JOURNAL, journal_key(&l->scratch, a->full, a->row), journal_row(a), true);
    if (l->publish) l->publish(l, r);
    buf_free(&a->tail); /* it may be large, and an actor that waits has none */
}

static void flush_document(struct loom *l, struct resident *r) {
    struct buf row = {0};
    actor_row(r->a, flush_state(l, r->a), &row);
    rows_put(l, ROW_ACTOR, r->a->full, buf_view(&row), false);
    r->document_dirty = false;
    buf_free(&row);
}

void residents_flush(struct loom *l) {
    struct resident *r;
    STAILQ_FOREACH(r, &l->dirty, flush) {
        resident_flush_tail(l, r);
        if (r->document_dirty) flush_document(l, r);
        flush_outbox(l, r);
        r->dirty = false;
        r->seq = l->open_seq;
    }
    STAILQ_INIT(&l->dirty);
}

/* ---- leaving memory ---- */

/* What was used within PATIENCE_MS stays: otherwise guests that are about to go on would evict each other, in turn. */
enum { EVICT_STEPS = 1024, PATIENCE_MS = 10 };

void resident_drop_guest(struct loom *l, struct resident *r) {
    if (!r->exec) return;
    exec_free(r->exec);
    r->exec = NULL;
    l->guest_bytes -= r->bytes;
    r->bytes = 0;
    l->guests--;
    r->reload = r->a->turn != NULL;
}

static bool droppable(const struct loom *l, const struct resident *r) {
    return !r->dirty && !r->queued && (r->seq <= l->committed || batch_idle(l));
}

struct resident *resident_again(struct loom *l, struct resident *r) {
    struct str id = say(l, "%j", r->a->full);
    if (!droppable(l, r)) {
        resident_queue(l, r); /* until its rows have committed */
        return NULL;
    }
    uint32_t evicted_at = r->evicted_at;
    bool in_outbox = r->in_outbox;
    drop(l, r);
    if ((r = resident_by_id(l, id)) == NULL) return NULL;
    r->evicted_at = evicted_at;
    r->in_outbox = in_outbox;
    return r;
}

bool residents_pressed(const struct loom *l) {
    return l->guest_bytes > l->config.memory_budget || l->guests >= l->guests_max;
}

void residents_evict(struct loom *l) {
    int64_t now = l->env->mono_ms(l->env), idle = now - l->config.idle_ms;
    size_t steps = EVICT_STEPS;
    bool pressed = residents_pressed(l);
    if (!pressed && now < l->idle_at) return; /* most passes: nothing became idle since the last look */
    l->idle_at = now + IDLE_CHECK_MS;
    struct resident *waits = pressed ? STAILQ_FIRST(&l->guestless) : NULL; /* a guest goes for each of them */
    for (struct resident *r = TAILQ_FIRST(&l->lru), *next; r && steps > 0; r = next) {
        bool over = waits || residents_pressed(l);
        next = TAILQ_NEXT(r, lru);
        if (r->used_at > (over ? now - PATIENCE_MS : idle)) break;
        steps -= over || !r->exec; /* so that idle actors are reached behind guests, which stay until room is needed */
        if (!droppable(l, r)) used_now(l, r);
        if (!droppable(l, r) || (r->exec && !over)) continue;
        metric_add(METRIC_EVICTIONS, r->exec != NULL);
        if (r->exec && waits) waits = STAILQ_NEXT(waits, run);
        drop(l, r);
        l->idle_at = now; /* there may be more */
    }
}

void resident_drop_all(struct loom *l) {
    struct resident *r;
    while ((r = TAILQ_FIRST(&l->lru)) != NULL) drop(l, r);
    map_free(&l->actors);
    STAILQ_INIT(&l->runnable);
    STAILQ_INIT(&l->guestless);
    STAILQ_INIT(&l->dirty);
    TAILQ_INIT(&l->lru);
}
