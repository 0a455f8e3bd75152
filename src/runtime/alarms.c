/* alarms.c: everything that happens later, one heap by wall-clock time.
 *
 * An alarm is its key: due time in 16 hex digits, NUL, the actor's id, NUL, kind, turn and promise. A durable alarm is also
 * a row with that key. Rows due beyond the horizon are not in memory; the heap is filled from them as time goes on, so a
 * million waiting actors cost nothing. Alarms are not removed when what they guard has ended: firing then finds nothing to
 * do. Those that a load can derive again (retries, time limits of activities and calls) have no row.
 */
#include "runtime/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HORIZON_MS = 60000 };

static struct str alarm_key(struct loom *l, int64_t due, enum alarm_kind kind, struct resident *r, uint64_t id) {
    uint64_t turn = kind == ALARM_MAIL ? 0 : r->a->turn->number;
    return say(l, "%x%j%j%j%d/%u/%u", due, STR("\0"), r->a->full, STR("\0"), (int64_t)kind, turn, id);
}

static int64_t due_of(const char *key) {
    return (int64_t)strtoull(key, NULL, 16);
}

static void heap_swap(struct loom *l, size_t a, size_t b) {
    char *key = l->alarms[a];
    l->alarms[a] = l->alarms[b];
    l->alarms[b] = key;
}

static bool earlier(struct loom *l, size_t a, size_t b) {
    return strcmp(l->alarms[a], l->alarms[b]) < 0; /* up to the NUL behind the time */
}

static void heap_push(struct loom *l, struct str key) {
    l->alarms = mem_room(l->alarms, l->alarm_count, sizeof *l->alarms);
    size_t i = l->alarm_count++;
    l->alarms[i] = str_dup(key);
    for (; i > 0 && earlier(l, i, (i - 1) / 2); i = (i - 1) / 2) heap_swap(l, i, (i - 1) / 2);
}

static char *heap_pop(struct loom *l) {
    char *top = l->alarms[0];
    l->alarms[0] = l->alarms[--l->alarm_count];
    for (size_t i = 0, child; (child = 2 * i + 1) < l->alarm_count; i = child) {
        if (child + 1 < l->alarm_count && earlier(l, child + 1, child)) child++;
        if (!earlier(l, child, i)) break;
        heap_swap(l, i, child);
    }
    return top;
}

void alarm_set(struct loom *l, int64_t due, enum alarm_kind kind, struct resident *r, uint64_t id) {
    struct str key = alarm_key(l, due, kind, r, id);
    if (kind != ALARM_LOADED && !SABOTAGE("timer only in memory")) rows_put(l, ROW_TIMER, key, STR("{}"), true);
    if (kind == ALARM_LOADED || due < l->horizon + HORIZON_MS) /* the next extension may come before the row commits */
        heap_push(l, key);
}

void alarm_clear(struct loom *l, int64_t due, enum alarm_kind kind, struct resident *r, uint64_t id) {
    rows_delete(l, ROW_TIMER, alarm_key(l, due, kind, r, id));
}

/* Waits and timers have a row, for nothing else brings their actor back. */
void promise_deadline(struct loom *l, struct resident *r, uint64_t id) {
    struct promise *p = turn_promise(r->a->turn, id);
    if (p->done_at == ENTRY_NEVER && p->deadline)
        alarm_set(l, p->deadline, p->kind >= PROMISE_EVENT ? ALARM_PROMISE : ALARM_LOADED, r, id);
}

int64_t alarms_next(struct loom *l) {
    return l->alarm_count > 0 && due_of(l->alarms[0]) < l->horizon ? due_of(l->alarms[0]) : l->horizon;
}

static bool load_row(void *ctx, struct str key, struct str value) {
    (void)value;
    heap_push(ctx, key);
    return true;
}

/* Brings the rows that come due in the next stretch of time into the heap. */
static void extend(struct loom *l, int64_t until) {
    struct error err;
    int rc = rows_scan(l, ROW_TIMER, say(l, "%x", l->horizon), say(l, "%x", until), load_row, l, &err);
    if (rc < 0) log_event(LOG_ERROR, "timers cannot be read", "\"detail\":%z", err.message);
    if (rc == 0 || rc == LOOM_E_DAMAGED) l->horizon = until;
}

void alarms_recover(struct loom *l) {
    alarms_free(l);
    extend(l, loom_now(l) + HORIZON_MS);
}

void alarms_free(struct loom *l) {
    for (size_t i = 0; i < l->alarm_count; i++) free(l->alarms[i]);
    free(l->alarms);
    l->alarms = NULL;
    l->alarm_count = 0;
    l->horizon = 0;
}

static void deadline_passed(struct loom *l, struct resident *r, uint64_t id) {
    struct promise *p = turn_promise(r->a->turn, id);
    bool ok = p->kind == PROMISE_TIMER;
    struct error late;
    if (!ok)
        error_set(&late, LOOM_E_TIMEOUT, "waited %" PRId64 " ms in vain for %s",
                  json_int(look(l, p->entry), "timeoutMs", 0), promise_name(l, p).p);
    promise_abandon(l, r, id);
    promise_done(l, r, id, ok, ok ? STR("null") : error_text(l, &late), STR_NONE);
}

static void fire(struct loom *l, const char *key) {
    const char *id = key + 17, *rest = id + strlen(id) + 1;
    unsigned kind = ALARM_PROMISE;
    uint64_t turn = 0, promise = 0;
    sscanf(rest, "%u/%" SCNu64 "/%" SCNu64, &kind, &turn, &promise);
    if (kind != ALARM_LOADED) rows_delete(l, ROW_TIMER, (struct str){key, (size_t)(rest - key) + strlen(rest)});
    struct resident *r = kind == ALARM_MAIL ? resident_by_id(l, str_of(id))
                                            : promise_owner(l, str_of(id), turn, promise);
    if (r && kind == ALARM_MAIL) {
        mail_due(l, r);
        resident_queue(l, r);
    } else if (r && r->a->status != ACTOR_PAUSED) {
        if (turn_promise(r->a->turn, promise)->deadline == due_of(key))
            deadline_passed(l, r, promise);
        else
            attempt_schedule(l, r, promise, NULL);
    }
}

void alarms_fire(struct loom *l) {
    int64_t now = loom_now(l);
    if (now >= l->horizon - HORIZON_MS / 2) extend(l, now + HORIZON_MS);
    while (l->alarm_count > 0 && due_of(l->alarms[0]) <= now && !batch_full(l)) {
        char *key = heap_pop(l);
        fire(l, key);
        free(key);
    }
}
