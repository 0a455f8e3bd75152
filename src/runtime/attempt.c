/* attempt.c: activities, attempt by attempt.
 *
 * An attempt that can reach the outside starts when the entry of its attempt is durable: its start is an effect. One that
 * cannot (no policy) may run at once, its first slice on the loop. The result comes back through the inbox and is applied
 * only if actor, turn, promise and attempt number still fit; until the batch with its entry has committed it is kept, so
 * that a failed commit can apply it again.
 * Retry is policy_next on the error; each further attempt is an activity_retry entry. An attempt that was running when the
 * worker died is `interrupted`: tried again under the same number twice, the third time it counts.
 */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { INTERRUPTED_MAX = 3 };

struct attempt {
    struct item item; /* comes back through the inbox */
    struct loom *l;
    struct arena mem; /* holds all of it, the struct too */
    struct str id;    /* idempotency key; with `number` the attempt's name */
    struct str actor, input, correlation, traceparent;
    uint64_t turn, promise;
    int32_t number;
    uint64_t seq;                  /* batch that made it */
    bool effect;                   /* can reach the outside */
    bool held;                     /* it has ended, but the store takes no batch */
    bool cancelled, inside, ended; /* inside: activity_start has not returned; ended and inside under the loop's lock */
    struct exec_module *code;
    struct definition *definition;
    struct activity *running;
    struct buf result;
    struct error *err; /* NULL: it has a result */
};

static void attempt_free(struct attempt *a) {
    struct arena mem = a->mem;
    exec_module_unref(a->code);
    buf_free(&a->result);
    arena_free(&mem);
}

static void forget(struct loom *l, struct attempt *a) {
    if (map_get(&l->attempts, a->id) == a) map_remove(&l->attempts, a->id);
}

/* The actor whose open promise this attempt still is, or NULL. */
static struct resident *owner(struct loom *l, const struct attempt *a) {
    struct resident *r = resident_by_id(l, a->actor);
    struct turn *t = r ? r->a->turn : NULL;
    struct promise *p = t && t->number == a->turn ? turn_promise(t, a->promise) : NULL;
    return p && p->done_at == ENTRY_NEVER && p->attempt == a->number ? r : NULL;
}

static yyjson_val *asked(struct loom *l, const struct promise *p) {
    return look(l, (struct str){p->entry, p->entry_n});
}

static struct definition *definition_of(struct loom *l, const struct resident *r, yyjson_val *entry) {
    return registry_find(l, "activity", r->a->ns, json_str(entry, "name"), json_str(entry, "version"));
}

/* The attempt failed: another one, or the end of the promise. The call's `retry` goes before the definition's policy. */
static void attempt_failed(struct loom *l, struct resident *r, uint64_t id, const struct error *err) {
    struct promise *p = turn_promise(r->a->turn, id);
    struct definition *d = definition_of(l, r, asked(l, p));
    struct retry_policy base = d ? d->retry : retry_default, policy = base;
    yyjson_val *retry = yyjson_obj_get(asked(l, p), "retry");
    if (retry && retry_policy_read(retry, &base, &policy, NULL) < 0) policy = base;
    bool same = strcmp(err->code, "interrupted") == 0 && p->interrupted + 1 < INTERRUPTED_MAX;
    uint64_t dice;
    l->env->random(l->env, &dice, sizeof dice);
    int64_t wait = same ? 0 : retry_next(&policy, p->attempt, err->retryable, (double)(dice >> 11) * 0x1p-53);
    metric_add(METRIC_ACTIVITIES_FAILED, 1);
    if (wait < 0) {
        promise_done(l, r, id, false, error_text(l, err));
        return;
    }
    journal_append(
        r->a, loom_now(l),
        say(l,
            "{\"type\":\"activity_retry\",\"activityId\":%u,\"attempt\":%d,\"interrupted\":%d,\"due\":%d,\"error\":%j",
            id, (int64_t)p->attempt + !same, (int64_t)(same ? p->interrupted + 1 : 0), wait ? loom_now(l) + wait : 0,
            error_text(l, err)));
    resident_touch(l, r, false);
    attempt_schedule(l, r, id);
}

/* Kept until the batch with its entry has committed; should that fail, it is applied again. */
static void attempt_release(struct loom *l, void *ctx, bool committed) {
    struct attempt *a = ctx;
    if (!committed && a->seq <= l->committed)
        loom_post(l, &a->item);
    else
        attempt_free(a);
}

static void attempt_done(struct loom *l, struct item *item) {
    struct attempt *a = (struct attempt *)item;
    if (l->failed && !l->stop && a->seq <= l->committed && !a->cancelled) {
        a->held = true;
        map_put(&l->attempts, a->id, a); /* for the recovery it still runs */
        return;
    }
    forget(l, a);
    struct resident *r = a->cancelled || l->failed || l->stop ? NULL : owner(l, a);
    if (!r) {
        attempt_free(a);
        return;
    }
    resident_touch(l, r, false);
    struct error err;
    if (a->err)
        attempt_failed(l, r, a->promise, a->err);
    else if (definition_check(a->definition, false, buf_view(&a->result), &err) < 0)
        attempt_failed(l, r, a->promise, &err);
    else
        promise_done(l, r, a->promise, true, buf_view(&a->result));
    effect_add(l, attempt_release, a);
}

/* On any thread. */
static void activity_ended(void *ctx, struct str result, const struct error *error) {
    struct attempt *a = ctx;
    if (error)
        *(a->err = arena_alloc(&a->mem, sizeof *error)) = *error;
    else
        buf_str(&a->result, result);
    pthread_mutex_lock(&a->l->lock); /* from here on nobody touches a->running */
    a->ended = true;
    bool inside = a->inside;
    pthread_mutex_unlock(&a->l->lock);
    if (!inside) loom_post(a->l, &a->item);
}

static void activity_note(void *ctx, int level, struct str json) {
    struct attempt *a = ctx;
    log_event(level ? (enum log_level)level : LOG_INFO, level ? "activity" : "progress",
              "\"actor\":%q,\"activity\":%q,\"correlationId\":%Q,\"guest\":%j", a->actor, a->definition->name,
              a->correlation, json);
}

static void attempt_start(struct loom *l, struct attempt *a) {
    struct definition *d = a->definition;
    struct activity_spec spec = {.module = a->code,
                                 .limits = {.memory_mb = d->limits.memory_mb},
                                 .key = SABOTAGE("key not from position") ? say(l, "%u", loom_order(l)) : a->id,
                                 .ns = d->ns,
                                 .name = d->name,
                                 .input = SABOTAGE("retry with changed input") && a->number > 1 ? STR("{}") : a->input,
                                 .policy = d->policy,
                                 .reuse = d->reuse};
    spec.correlation = a->correlation;
    spec.traceparent = a->traceparent;
    spec.deadline_mono_ms = l->env->mono_ms(l->env) + d->limits.cpu_ms;
    spec.ctx = a;
    spec.done = activity_ended;
    spec.note = activity_note;
    l->env->random(l->env, &spec.seed, sizeof spec.seed);
    metric_add(METRIC_ACTIVITIES_STARTED, 1);
    a->inside = true;
    struct activity *running = activity_start(l->pool, &spec, !a->effect);
    pthread_mutex_lock(&l->lock);
    bool ended = a->ended;
    a->inside = false;
    a->running = running;
    pthread_mutex_unlock(&l->lock);
    if (ended) attempt_done(l, &a->item);
}

static void start_released(struct loom *l, void *ctx, bool committed) {
    struct attempt *a = ctx;
    if (committed && !a->cancelled && !l->stop) {
        attempt_start(l, a);
        return;
    }
    forget(l, a);
    attempt_free(a);
}

static void attempt_new(struct loom *l, struct resident *r, uint64_t id, struct definition *d, struct exec_module *code,
                        struct str input) {
    yyjson_val *message = turn_message(r->a->turn);
    struct arena mem = {0};
    struct attempt *a = arena_alloc(&mem, sizeof *a);
    *a = (struct attempt){.item.fn = attempt_done,
                          .l = l,
                          .turn = r->a->turn->number,
                          .promise = id,
                          .seq = l->open_seq,
                          .code = code,
                          .definition = d};
    a->id = arena_dup(&mem, activity_key(l, r->a, id));
    a->actor = arena_dup(&mem, r->a->full);
    a->input = arena_dup(&mem, input);
    a->correlation = arena_dup(&mem, json_str(message, "correlationId"));
    a->traceparent = arena_dup(&mem, json_str(message, "traceparent"));
    a->number = turn_promise(r->a->turn, id)->attempt;
    a->effect = d->policy || d->native;
    a->mem = mem;
    map_put(&l->attempts, a->id, a);
    if (a->effect)
        effect_add(l, start_released, a);
    else
        attempt_start(l, a);
}

void attempt_schedule(struct loom *l, struct resident *r, uint64_t id) {
    struct promise *p = turn_promise(r->a->turn, id);
    struct error err;
    if (!p || p->done_at != ENTRY_NEVER || p->kind != PROMISE_ACTIVITY ||
        map_get(&l->attempts, activity_key(l, r->a, id)))
        return;
    if (p->due > loom_now(l)) {
        alarm_set(l, p->due, ALARM_RETRY, r->a->full, r->a->turn->number, id, false);
        return;
    }
    yyjson_val *entry = asked(l, p);
    struct str input = json_text_of(yyjson_obj_get(entry, "input"), &l->scratch), name = json_str(entry, "name"),
               version = json_str(entry, "version");
    struct definition *d = definition_of(l, r, entry);
    int rc = d ? definition_check(d, true, input, &err)
               : error_set(&err, LOOM_E_NOT_FOUND, "no activity %s is deployed in namespace %.*s; deploy it",
                           say(l, "%j%s%j", name, version.p ? " version " : "", version.p ? version : STR("")).p,
                           (int)r->a->ns.n, r->a->ns.p);
    struct exec_module *code = rc == 0 ? definition_module(l, d, STR_NONE, NULL, &err) : NULL;
    if (code)
        attempt_new(l, r, id, d, code, input);
    else
        promise_done(l, r, id, false, error_text(l, &err));
}

void attempt_recover(struct loom *l, struct resident *r) {
    struct turn *t = r->a->turn;
    struct error err;
    error_set(&err, LOOM_E_INTERRUPTED, "the worker stopped while the attempt ran");
    for (uint64_t id = 1; t && id <= t->promise_count; id++) {
        struct promise *p = turn_promise(t, id);
        if (p->done_at != ENTRY_NEVER) continue;
        promise_deadline(l, r, id); /* timers and waits have a row already, but not those of a fork */
        if (p->kind != PROMISE_ACTIVITY || map_get(&l->attempts, activity_key(l, r->a, id))) continue;
        if (p->due > loom_now(l))
            attempt_schedule(l, r, id);
        else
            attempt_failed(l, r, id, &err);
    }
}

static void stop_running(struct attempt *a) {
    a->cancelled = true;
    pthread_mutex_lock(&a->l->lock);
    if (a->running && !a->ended) activity_cancel(a->running);
    pthread_mutex_unlock(&a->l->lock);
}

void attempt_cancel(struct loom *l, const struct resident *r, uint64_t promise) {
    struct attempt *a = map_remove(&l->attempts, activity_key(l, r->a, promise));
    if (a) stop_running(a);
}

void attempts_fail(struct loom *l) {
    struct map old = l->attempts;
    struct attempt *a;
    l->attempts = (struct map){0};
    for (size_t i = 0; (a = map_next(&old, &i)) != NULL;) {
        if (a->seq <= l->committed)
            map_put(&l->attempts, a->id, a);
        else
            stop_running(a);
    }
    map_free(&old);
}

void attempts_resume(struct loom *l) {
    struct attempt *a;
    for (size_t i = 0; (a = map_next(&l->attempts, &i)) != NULL;)
        if (a->held) {
            a->held = false;
            loom_post(l, &a->item);
        }
}
