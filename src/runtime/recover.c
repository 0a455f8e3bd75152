/* recover.c: what goes on after a start, and what is given up.
 *
 * Recovery begins with the outbox (actors with work in flight) and the mail that waits; timers come from their rows. All
 * of it is loading, folding and replaying: the path of an eviction too. After an unclean start each of these actors counts
 * the attempt, durably, before anything runs; one that was in flight at three deaths in a row without a new entry is what
 * takes the worker down: its message is given up.
 */
#include "runtime/runtime.h"

#include <string.h>

struct found {
    struct map ids;
    struct arena mem;
    int64_t now;
};

/* A row of the outbox or, if it is due, of the mailbox: "m", actor id, NUL, … */
static bool find(void *ctx, struct str key, struct str value) {
    struct found *f = ctx;
    struct arena mem = {0};
    const char *end = memchr(key.p, '\0', key.n);
    struct str id = arena_dup(&f->mem, end ? (struct str){key.p + 1, (size_t)(end - key.p) - 1} : key);
    if (json_int(json_in(&mem, value), "due", 0) <= f->now) map_put(&f->ids, id, (char *)id.p);
    arena_free(&mem);
    return true;
}

/* After an unclean start, what was running counts the attempt before it runs; the third time without a new entry it is
 * given up: it may be what takes the worker down. */
static void count_start(struct loom *l, struct resident *r) {
    struct str text = rows_get(l, ROW_OUTBOX, r->a->full);
    yyjson_val *row = look(l, text.p ? text : STR("{}"));
    bool still = (uint64_t)json_int(row, "cursor", 0) == r->a->cursor;
    r->starts = still ? (int32_t)json_int(row, "starts", 0) : 0;
    if (r->starts++ < 3) return;
    static const char why[] = "the worker died 3 times while this message ran; it was given up";
    r->starts = 0;
    if (r->a->turn) {
        metric_add(METRIC_DEAD_LETTERS, 1);
        turn_give_up(l, r, "poison", why);
    } else if (mail_next(l, r, STR_NONE)) {
        mail_dead_letter(l, r, mail_next(l, r, STR_NONE), "poison", why);
    }
}

/* One that was running at two deaths in a row runs by itself until it waits, so that the count of the one that takes the
 * worker down rises and that of no other. */
static void run_alone(struct loom *l, struct resident *r) {
    if (!SABOTAGE("attempt counted after the run")) batch_close(l, true);
    residents_evict(l);
    for (int i = 0; i < 1000 && !l->failed; i++) {
        turn_step(l, r);
        if (!r->a->turn || r->a->status >= ACTOR_PAUSED || !turn_resumable(r)) break;
    }
    if (l->failed) return;
    resident_drop_guest(l, r); /* it is queued as one that has none */
    r->starts = 0;
    resident_put_outbox(l, r);
}

void recover_actor(struct loom *l, struct str id, bool unclean) {
    struct resident *r = resident_by_id(l, id);
    if (!r || l->failed) return;
    if (unclean) count_start(l, r);
    attempt_recover(l, r);
    r->starts_cursor = r->a->cursor;
    r->in_outbox = true; /* also when it was found by its mail: a row that is not there may be deleted */
    resident_put_outbox(l, r);
    resident_touch(l, r, false);
    resident_queue(l, r);
    if (r->starts > 1) run_alone(l, r);
}

/* A damaged row stops its actor, not the shard. */
static int passed(int rc, const struct error *err) {
    if (rc != LOOM_E_DAMAGED) return rc;
    log_event(LOG_ERROR, "a damaged row was passed over", "\"detail\":%z", err->message);
    return 0;
}

int recover(struct loom *l, bool unclean, struct error *err) {
    struct found f = {.now = loom_now(l)};
    alarms_recover(l);
    int rc = passed(rows_scan(l, ROW_OUTBOX, STR(""), STR_NONE, find, &f, err), err);
    if (rc >= 0) rc = passed(rows_prefix(l, ROW_MAILBOX, STR("m"), find, &f, err), err);
    char *id;
    for (size_t i = 0; (id = map_next(&f.ids, &i)) != NULL;)
        if (rc >= 0) recover_actor(l, str_of(id), unclean);
    if (f.ids.count > 0)
        log_event(LOG_INFO, "recovered", "\"actors\":%u,\"unclean\":%b", (uint64_t)f.ids.count, unclean);
    map_free(&f.ids);
    arena_free(&f.mem);
    return rc;
}

void recover_lease(struct loom *l, bool clean) {
    rows_put(l, ROW_LEASE, STR("worker"), say(l, "{\"pid\":%d,\"clean\":%b,\"at\":%d}", l->name, clean, loom_now(l)),
             false);
}

int recover_start(struct loom *l, struct error *err) {
    struct str lease = rows_get(l, ROW_LEASE, STR("worker"));
    bool unclean = lease.p && !json_bool(look(l, lease), "clean", false);
    recover_lease(l, false);
    int rc = recover(l, unclean, err);
    if (rc < 0) return rc;
    if (unclean) alarms_fire(l); /* durable before what they wake runs: that may be what takes the worker down */
    batch_close(l, true);        /* counted attempts are durable before anything runs */
    return l->failed ? error_set(err, l->failed, "%s", l->fault.message) : 0;
}
