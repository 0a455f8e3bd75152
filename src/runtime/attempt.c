/* attempt.c: activities, attempt by attempt.
 *
 * An attempt that can reach the outside starts when the entry of its attempt is durable: its start is an effect. One that
 * cannot (no policy) may run at once, its first slice on the loop, as a lone one's is. It comes back through the inbox, unless it has ended in
 * that slice, and its result is applied only if actor, turn, promise and attempt number still fit. One whose entry was
 * durable is kept until what its result led to has committed, so that a failed commit can apply it again.
 * Retry is retry_next on the error; each further attempt is an activity_retry entry. An attempt that was running when the
 * worker died is `interrupted`: tried again under the same number twice, the third time it counts.
 */
#include "runtime/runtime.h"

/* With fewer instances than ROOMY, those that lie idle for reuse could be all that are left to activities. */
enum { INTERRUPTED_MAX = 3, ROOMY = 800 };

struct attempt {
    struct item item;    /* comes back through the inbox */
    struct activity run; /* its key is the attempt's name */
    struct loom *l;
    struct definition *definition;
    uint64_t turn, promise, seq; /* seq: of the batch that made it */
    int32_t number;
    bool held; /* it has ended, but the store takes no batch */
};

static void attempt_free(struct attempt *a) {
    buf_free(&a->run.text);
    item_free(&a->item);
}

/* Removes it from what runs. */
static void forget(struct loom *l, struct attempt *a) {
    if (map_get(&l->attempts, a->run.key) == a) map_remove(&l->attempts, a->run.key);
}

/* The one that runs and counts. */
static struct attempt *attempt_of(struct loom *l, struct str key) {
    struct attempt *a = map_get(&l->attempts, key);
    return a && !a->run.cancelled ? a : NULL;
}

static struct definition *definition_of(struct loom *l, const struct resident *r, yyjson_val *entry) {
    return registry_find(l, "activity", r->a->ns, json_str(entry, "name"), json_str(entry, "version"), STR(""));
}

/* The attempt failed with that error (JSON): another one, or the end of the promise. The call's `retry` goes before the
 * definition's policy. */
static void attempt_failed(struct loom *l, struct resident *r, uint64_t id, struct str error) {
    struct promise *p = turn_promise(r->a->turn, id);
    yyjson_val *entry = look(l, p->entry), *why = look(l, error), *retry = yyjson_obj_get(entry, "retry");
    struct definition *d = definition_of(l, r, entry);
    struct retry_policy policy = d ? d->retry : retry_default;
    retry_policy_read(retry, &policy, NULL); /* the op was refused otherwise */
    bool same = str_is(json_str(why, "code"), "interrupted") && p->interrupted + 1 < INTERRUPTED_MAX;
    uint64_t dice;
    l->env->random(l->env, &dice, sizeof dice);
    int64_t wait =
        same ? 0 : retry_next(&policy, p->attempt, json_bool(why, "retryable", false), (double)(dice >> 11) * 0x1p-53);
    metric_add(METRIC_ACTIVITIES_FAILED, 1);
    if (wait < 0) {
        promise_done(l, r, id, false, error, STR_NONE);
        return;
    }
    struct str body = say(
        l, "{\"type\":\"activity_retry\",\"activityId\":%u,\"attempt\":%d,\"interrupted\":%d,\"due\":%d,\"error\":%j",
        id, (int64_t)p->attempt + !same, (int64_t)(same ? p->interrupted + 1 : 0), wait ? loom_now(l) + wait : 0,
        error);
    journal_append(r->a, loom_now(l), body);
    resident_touch(l, r, false);
    attempt_schedule(l, r, id, entry);
}

/* Its result is there: to be applied, or to be applied again because that did not commit, or (committed) to be forgotten. */
static void attempt_done(struct loom *l, struct item *item) {
    struct attempt *a = (struct attempt *)item;
    struct str result = buf_view(&a->run.text);
    struct error err;
    bool counts = !item->committed && !l->stop && !a->run.cancelled;
    if (counts && l->failed && a->seq <= l->committed) {
        a->held = true;
        map_put(&l->attempts, a->run.key, a); /* for the recovery it still runs */
        return;
    }
    forget(l, a);
    struct resident *r = counts && !l->failed ? promise_owner(l, a->run.actor, a->turn, a->promise) : NULL;
    if (r && turn_promise(r->a->turn, a->promise)->attempt != a->number) r = NULL;
    if (r) {
        resident_touch(l, r, false);
        if (a->run.ok && definition_check(a->definition, false, result, &err) == 0)
            promise_done(l, r, a->promise, true, result, STR_NONE);
        else
            attempt_failed(l, r, a->promise, a->run.ok ? error_text(l, &err) : result);
    }
    if (r && a->seq < l->open_seq)
        effect_add(l, item, attempt_done);
    else
        attempt_free(a);
}

/* On any thread. */
static void attempt_ended(struct activity *run) {
    struct attempt *a = (struct attempt *)((char *)run - offsetof(struct attempt, run));
    loom_post(a->l, &a->item, attempt_done);
}

static void attempt_start(struct loom *l, struct item *item) {
    struct attempt *a = (struct attempt *)item;
    bool native = a->definition->native, pure = !a->run.policy && !native;
    if ((!pure && !item->committed) || a->run.cancelled || l->stop) {
        forget(l, a);
        attempt_free(a);
        return;
    }
    item->committed = false; /* next it waits for the batch with its result */
    metric_add(METRIC_ACTIVITIES_STARTED, 1);
    /* For a lone one a hop to another thread and back would cost more than it hides. */
    if (activity_start(l->pool, &a->run, pure || (l->attempts.count == 1 && !native))) attempt_done(l, item);
}

static struct attempt *attempt_new(struct loom *l, struct resident *r, uint64_t id, struct definition *d,
                                   struct str key) {
    yyjson_val *message = look(l, r->a->turn->message);
    struct attempt *a = item_new(sizeof *a);
    struct arena *mem = &a->item.mem;
    a->run = (struct activity){.memory_mb = d->limits.memory_mb,
                               .time_ms = d->limits.cpu_ms,
                               .name = d->name,
                               .policy = d->policy,
                               .reuse = d->reuse && exec_engine_share(l->engine) > ROOMY ? d : NULL,
                               .ended = attempt_ended};
    a->number = turn_promise(r->a->turn, id)->attempt;
    a->run.key = arena_dup(mem, key);
    a->run.actor = arena_dup(mem, r->a->full);
    a->run.correlation = arena_dup(mem, json_str(message, "correlationId"));
    a->run.traceparent = arena_dup(mem, json_str(message, "traceparent"));
    a->l = l;
    a->definition = d;
    a->turn = r->a->turn->number;
    a->promise = id;
    a->seq = l->open_seq;
    return a;
}

void attempt_schedule(struct loom *l, struct resident *r, uint64_t id, yyjson_val *entry) {
    struct promise *p = turn_promise(r->a->turn, id);
    struct str key = activity_key(l, r->a, id);
    struct error err;
    if (!p || p->done_at != ENTRY_NEVER || p->kind != PROMISE_ACTIVITY || attempt_of(l, key)) return;
    if (p->due > loom_now(l)) {
        alarm_set(l, p->due, ALARM_LOADED, r, id);
        return;
    }
    if (!entry) entry = look(l, p->entry);
    yyjson_val *given = yyjson_obj_get(entry, "input");
    struct str input = given ? json_text_of(given, &l->scratch) : STR("null"), name = json_str(entry, "name"),
               version = json_str(entry, "version");
    struct definition *d = definition_of(l, r, entry);
    int rc = d ? definition_check(d, true, input, &err)
               : error_set(&err, LOOM_E_NOT_FOUND, "no activity %s is deployed in namespace %.*s; deploy it",
                           say(l, "%j%s%j", name, version.p ? " version " : "", version.p ? version : STR("")).p,
                           (int)r->a->ns.n, r->a->ns.p);
    struct exec_module *code = rc == 0 ? definition_module(l, d, STR_NONE, &err) : NULL;
    if (!code) {
        promise_done(l, r, id, false, error_text(l, &err), STR_NONE);
        return;
    }
    struct attempt *a = attempt_new(l, r, id, d, key);
    if (SABOTAGE("retry with changed input") && a->number > 1) input = STR("{}");
    a->run.input = arena_dup(&a->item.mem, input);
    a->run.module = code;
    map_put(&l->attempts, a->run.key, a);
    if (d->policy || d->native)
        effect_add(l, &a->item, attempt_start);
    else
        attempt_start(l, &a->item);
}

void attempt_recover(struct loom *l, struct resident *r) {
    struct turn *t = r->a->turn;
    struct error err;
    error_set(&err, LOOM_E_INTERRUPTED, "the worker stopped while the attempt ran");
    for (uint64_t id = 1; t && id <= t->promise_count; id++) {
        struct promise *p = turn_promise(t, id);
        if (p->done_at != ENTRY_NEVER) continue;
        promise_deadline(l, r, id); /* timers and waits have a row already, but not those of a fork */
        if (p->kind != PROMISE_ACTIVITY || attempt_of(l, activity_key(l, r->a, id))) continue;
        if (p->due > loom_now(l))
            attempt_schedule(l, r, id, NULL);
        else
            attempt_failed(l, r, id, error_text(l, &err));
    }
}

void attempt_cancel(struct loom *l, const struct resident *r, uint64_t promise) {
    struct attempt *a = map_get(&l->attempts, activity_key(l, r->a, promise));
    if (a) activity_cancel(l->pool, &a->run);
}

void attempts_fail(struct loom *l) {
    struct attempt *a;
    for (size_t i = 0; l->pool && (a = map_next(&l->attempts, &i)) != NULL;) /* without a pool none has started */
        if (a->seq > l->committed) activity_cancel(l->pool, &a->run);
}

void attempts_resume(struct loom *l) {
    struct attempt *a;
    for (size_t i = 0; (a = map_next(&l->attempts, &i)) != NULL;)
        if (a->held) {
            a->held = false;
            loom_post(l, &a->item, attempt_done);
        }
}
