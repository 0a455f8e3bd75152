/* alarms.c: everything that happens later, one heap by wall-clock time.
 *
 * A durable alarm also has a row: due time in 16 hex digits, NUL, the actor's id, NUL, kind, turn and promise; its value
 * is empty JSON. Rows due beyond the horizon are not in memory; the heap is filled from them as time goes on, so a million
 * waiting actors cost nothing. Alarms are not removed when what they guard has ended: firing then finds nothing to do.
 * Those that a load can derive again (retries, time limits of activities and calls) have no row.
 */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HORIZON_MS = 60000 };

static void alarm_key(int64_t due, enum alarm_kind kind, struct str actor, uint64_t turn, uint64_t promise,
                      struct buf *key) {
    char text[64];
    snprintf(text, sizeof text, "%016" PRIx64, (uint64_t)due);
    buf_add(key, text, 17);
    buf_str(key, actor);
    int n = snprintf(text, sizeof text, "%c%d/%" PRIu64 "/%" PRIu64, '\0', (int)kind, turn, promise);
    buf_add(key, text, (size_t)n);
}

static void heap_swap(struct loom *l, size_t a, size_t b) {
    struct alarm t = l->alarms[a];
    l->alarms[a] = l->alarms[b];
    l->alarms[b] = t;
}

static void heap_push(struct loom *l, struct alarm alarm) {
    if (l->alarm_count == l->alarm_cap) {
        l->alarm_cap = l->alarm_cap ? l->alarm_cap * 2 : 64;
        l->alarms = mem_grow(l->alarms, l->alarm_cap * sizeof *l->alarms);
    }
    size_t i = l->alarm_count++;
    l->alarms[i] = alarm;
    for (; i > 0 && l->alarms[(i - 1) / 2].due > l->alarms[i].due; i = (i - 1) / 2) heap_swap(l, i, (i - 1) / 2);
}

static struct alarm heap_pop(struct loom *l) {
    struct alarm top = l->alarms[0];
    l->alarms[0] = l->alarms[--l->alarm_count];
    for (size_t i = 0;;) {
        size_t least = i, left = 2 * i + 1, right = left + 1;
        if (left < l->alarm_count && l->alarms[left].due < l->alarms[least].due) least = left;
        if (right < l->alarm_count && l->alarms[right].due < l->alarms[least].due) least = right;
        if (least == i) return top;
        heap_swap(l, i, least);
        i = least;
    }
}

void alarm_set(struct loom *l, int64_t due, enum alarm_kind kind, struct str actor, uint64_t turn, uint64_t promise,
               bool durable) {
    if (durable) {
        struct buf key = {0};
        alarm_key(due, kind, actor, turn, promise, &key);
        rows_put(l, ROW_TIMER, buf_view(&key), STR("{}"), true);
        buf_free(&key);
    }
    if (!durable || due < l->horizon + HORIZON_MS) /* the next extension may come before the row commits */
        heap_push(l, (struct alarm){due, kind, str_dup(actor), turn, promise, durable});
}

void alarm_clear(struct loom *l, int64_t due, enum alarm_kind kind, struct str actor, uint64_t turn, uint64_t promise) {
    struct buf key = {0};
    alarm_key(due, kind, actor, turn, promise, &key);
    rows_delete(l, ROW_TIMER, buf_view(&key));
    buf_free(&key);
}

int64_t alarms_next(struct loom *l) {
    return l->alarm_count > 0 && l->alarms[0].due < l->horizon ? l->alarms[0].due : l->horizon;
}

static bool load_row(void *ctx, struct str key, struct str value) {
    struct loom *l = ctx;
    (void)value;
    struct alarm a = {.durable = true};
    a.due = (int64_t)strtoull(key.p, NULL, 16);
    const char *id = key.p + 17, *end = memchr(id, '\0', key.n - 17);
    int kind = 0;
    if (!end || sscanf(end + 1, "%d/%" SCNu64 "/%" SCNu64, &kind, &a.turn, &a.promise) != 3) return true;
    a.kind = (enum alarm_kind)kind;
    a.actor = str_dup((struct str){id, (size_t)(end - id)});
    heap_push(l, a);
    return true;
}

/* Brings the rows that come due in the next stretch of time into the heap. */
static int extend(struct loom *l, int64_t now, struct error *err) {
    char from[17], to[17];
    int64_t until = now + HORIZON_MS;
    snprintf(from, sizeof from, "%016" PRIx64, (uint64_t)l->horizon);
    snprintf(to, sizeof to, "%016" PRIx64, (uint64_t)until);
    int rc = rows_scan(l, ROW_TIMER, (struct str){from, 16}, (struct str){to, 16}, load_row, l, err);
    if (rc >= 0) l->horizon = until;
    return rc;
}

int alarms_recover(struct loom *l, struct error *err) {
    alarms_free(l);
    l->horizon = 0;
    return extend(l, loom_now(l), err);
}

void alarms_free(struct loom *l) {
    for (size_t i = 0; i < l->alarm_count; i++) free(l->alarms[i].actor);
    free(l->alarms);
    l->alarms = NULL;
    l->alarm_count = l->alarm_cap = 0;
}

static void deadline_passed(struct loom *l, struct resident *r, uint64_t id) {
    struct promise *p = turn_promise(r->a->turn, id);
    if (!p || p->done_at != ENTRY_NEVER) return;
    static const char *const types[] = {
        [PROMISE_ACTIVITY] = "activity_failed", [PROMISE_CALL] = "call_failed",  [PROMISE_CHILD] = "child_failed",
        [PROMISE_EVENT] = "event_timed_out",    [PROMISE_TIMER] = "timer_fired", [PROMISE_SUSPEND] = "resumed"};
    bool ok = p->kind == PROMISE_TIMER;
    promise_abandon(l, r, id);
    promise_done(l, r, id, types[p->kind], ok,
                 ok ? STR("null")
                    : STR("{\"code\":\"timeout\",\"message\":\"nothing came within timeoutMs\",\"retryable\":true}"));
}

static void fire(struct loom *l, const struct alarm *alarm) {
    struct str id = str_of(alarm->actor);
    if (alarm->durable) alarm_clear(l, alarm->due, alarm->kind, id, alarm->turn, alarm->promise);
    struct resident *r = resident_by_id(l, id);
    if (!r) return;
    if (alarm->kind == ALARM_MAIL) {
        mail_expire(l, r);
        resident_queue(l, r);
    } else if (!r->a->turn || r->a->turn->number != alarm->turn || r->a->status == ACTOR_PAUSED) {
        return;
    } else if (alarm->kind == ALARM_RETRY) {
        attempt_schedule(l, r, alarm->promise);
    } else {
        deadline_passed(l, r, alarm->promise);
    }
}

void alarms_fire(struct loom *l) {
    int64_t now = loom_now(l);
    if (now >= l->horizon - HORIZON_MS / 2) {
        struct error err;
        if (extend(l, now, &err) < 0) log_event(LOG_ERROR, "timers cannot be read", "\"detail\":%z", err.message);
    }
    while (l->alarm_count > 0 && l->alarms[0].due <= now && !batch_full(l)) {
        struct alarm alarm = heap_pop(l);
        fire(l, &alarm);
        free(alarm.actor);
    }
    metric_set(METRIC_TIMERS, (int64_t)l->alarm_count);
}
