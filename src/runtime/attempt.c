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
    char id[33]; /* idempotency key; with `number` the attempt's name */
    char *actor;
    uint64_t turn, promise;
    int32_t number;
    uint64_t seq; /* batch that made it */
    bool effect;  /* can reach the outside */
    bool cancelled, inside, ended; /* inside: activity_start has not returned; ended and inside under the loop's lock */
    struct exec_module *code;
    struct definition *definition;
    struct buf input, correlation, traceparent;
    struct activity *running;
    bool ok;
    struct buf result; /* or error JSON */
    struct error err;
};

static void attempt_free(struct attempt *a) {
    exec_module_unref(a->code);
    buf_free(&a->input);
    buf_free(&a->correlation);
    buf_free(&a->traceparent);
    buf_free(&a->result);
    free(a->actor);
    free(a);
}

static struct resident *owner(struct loom *l, const struct attempt *a, struct promise **p) {
    struct resident *r = resident_by_id(l, str_of(a->actor));
    struct turn *t = r ? r->a->turn : NULL;
    *p = t && t->number == a->turn ? turn_promise(t, a->promise) : NULL;
    return *p && (*p)->done_at == ENTRY_NEVER && (*p)->attempt == a->number ? r : NULL;
}

/* The retry rule of an activity: the call's `retry`, else the definition's policy. */
static struct retry_policy rule(const struct promise *p, const struct definition *d) {
    struct retry_policy base = d ? d->retry : retry_default, out = base;
    yyjson_doc *doc = yyjson_read(p->entry, p->entry_n, 0);
    yyjson_val *retry = yyjson_obj_get(yyjson_doc_get_root(doc), "retry");
    if (retry && retry_policy_read(retry, &base, &out, NULL) < 0)
        out = base; /* the op has checked it when it was given */
    yyjson_doc_free(doc);
    return out;
}

static double dice(struct loom *l) {
    uint64_t n;
    l->env->random(l->env, &n, sizeof n);
    return (double)(n >> 11) * 0x1p-53;
}

static void fail_promise(struct loom *l, struct resident *r, uint64_t id, const struct error *err) {
    struct buf json = {0};
    error_json(err, &json);
    promise_done(l, r, id, "activity_failed", false, buf_view(&json));
    buf_free(&json);
}

/* The attempt failed: another one, or the end of the promise. */
static void attempt_failed(struct loom *l, struct resident *r, uint64_t id, const struct definition *d, const struct error *err, struct str json) {
    struct promise *p = turn_promise(r->a->turn, id);
    struct retry_policy policy = rule(p, d);
    bool interrupted = str_eq(str_of(err->code), STR("interrupted"));
    bool same = interrupted && p->interrupted + 1 < INTERRUPTED_MAX;
    int64_t wait = same ? 0 : retry_next(&policy, p->attempt, err->retryable, dice(l));
    metric_add(METRIC_ACTIVITIES_FAILED, 1);
    if (wait < 0) {
        promise_done(l, r, id, "activity_failed", false, json);
        return;
    }
    journal_appendf(r->a, loom_now(l), "{\"type\":\"activity_retry\",\"activityId\":%u,\"attempt\":%d,\"interrupted\":%d,\"due\":%d,\"error\":%j", id,
                    (int64_t)(same ? p->attempt : p->attempt + 1), (int64_t)(same ? p->interrupted + 1 : 0), wait ? loom_now(l) + wait : 0, json);
    resident_touch(l, r, false);
    attempt_schedule(l, r, id);
}

static void attempt_release(struct loom *l, void *ctx, bool committed) {
    struct attempt *a = ctx;
    if (!committed && a->seq <= l->committed) {
        loom_post(l, &a->item);
        return;
    }
    attempt_free(a);
}

static void attempt_done(struct loom *l, struct item *item) {
    struct attempt *a = (struct attempt *)item;
    struct promise *p;
    if (map_get(&l->attempts, str_of(a->id)) == a)
        map_remove(&l->attempts, str_of(a->id));
    if (l->failed && a->seq <= l->committed) {
        effect_add(l, attempt_release, a); /* applied again after the recovery */
        return;
    }
    struct resident *r = a->cancelled || l->failed || l->stop ? NULL : owner(l, a, &p);
    if (!r) {
        attempt_free(a);
        return;
    }
    if (a->ok && definition_check(a->definition, false, buf_view(&a->result), &a->err) < 0) {
        a->ok = false;
        buf_clear(&a->result);
        error_json(&a->err, &a->result);
    }
    resident_touch(l, r, false);
    if (a->ok)
        promise_done(l, r, a->promise, "activity_completed", true, buf_view(&a->result));
    else
        attempt_failed(l, r, a->promise, a->definition, &a->err, buf_view(&a->result));
    effect_add(l, attempt_release, a);
}

/* On any thread. */
static void activity_ended(void *ctx, struct str result, const struct error *error) {
    struct attempt *a = ctx;
    a->ok = !error;
    if (error) {
        a->err = *error;
        error_json(error, &a->result);
    } else {
        buf_str(&a->result, result);
    }
    pthread_mutex_lock(&a->l->lock); /* from here on nobody touches a->running */
    a->ended = true;
    bool inside = a->inside;
    pthread_mutex_unlock(&a->l->lock);
    if (!inside)
        loom_post(a->l, &a->item);
}

static void stop_running(struct attempt *a) {
    a->cancelled = true;
    pthread_mutex_lock(&a->l->lock);
    if (a->running && !a->ended)
        activity_cancel(a->running);
    pthread_mutex_unlock(&a->l->lock);
}

static void activity_note(void *ctx, int level, struct str json) {
    struct attempt *a = ctx;
    if (level > 0)
        log_event((enum log_level)level, "activity", "\"actor\":%z,\"activity\":%z,\"correlationId\":%Q,\"guest\":%j", a->actor, a->definition->name,
                  a->correlation.n ? buf_view(&a->correlation) : STR_NONE, json);
    else
        log_event(LOG_INFO, "progress", "\"actor\":%z,\"activity\":%z,\"progress\":%j", a->actor, a->definition->name, json);
}

static void attempt_start(struct loom *l, struct attempt *a) {
    struct definition *d = a->definition;
    struct activity_spec spec = {.module = a->code, .limits = d->limits, .deadline_mono_ms = l->env->mono_ms(l->env) + d->wall_ms, .key = str_of(a->id), .ns = str_of(d->ns),
                                 .name = str_of(d->name), .correlation = buf_view(&a->correlation), .traceparent = buf_view(&a->traceparent), .input = buf_view(&a->input),
                                 .policy = d->policy, .reuse = d->reuse, .ctx = a, .done = activity_ended, .note = activity_note};
    l->env->random(l->env, &spec.seed, sizeof spec.seed);
    metric_add(METRIC_ACTIVITIES_STARTED, 1);
    a->inside = true;
    struct activity *running = activity_start(l->pool, &spec, !a->effect);
    pthread_mutex_lock(&l->lock);
    bool ended = a->ended;
    a->inside = false;
    a->running = running;
    pthread_mutex_unlock(&l->lock);
    if (ended)
        attempt_done(l, &a->item);
}

static void start_released(struct loom *l, void *ctx, bool committed) {
    struct attempt *a = ctx;
    if (committed && !a->cancelled) {
        attempt_start(l, a);
        return;
    }
    if (map_get(&l->attempts, str_of(a->id)) == a)
        map_remove(&l->attempts, str_of(a->id));
    attempt_free(a);
}

static void attempt_new(struct loom *l, struct resident *r, uint64_t id, struct definition *d, struct exec_module *code, struct str input) {
    struct promise *p = turn_promise(r->a->turn, id);
    yyjson_val *message = turn_message(r->a->turn);
    struct attempt *a = mem_alloc(sizeof *a);
    a->item.fn = attempt_done;
    a->l = l;
    activity_key(r->a, id, a->id);
    a->actor = str_dup(r->a->full);
    a->turn = r->a->turn->number;
    a->promise = id;
    a->number = p->attempt;
    a->seq = l->open_seq;
    a->effect = d->policy != NULL || d->native != NULL;
    a->code = code;
    a->definition = d;
    buf_str(&a->input, input);
    buf_str(&a->correlation, json_str(message, "correlationId"));
    buf_str(&a->traceparent, json_str(message, "traceparent"));
    map_put(&l->attempts, str_of(a->id), a);
    if (a->effect)
        effect_add(l, start_released, a);
    else
        attempt_start(l, a);
}

void attempt_schedule(struct loom *l, struct resident *r, uint64_t id) {
    struct promise *p = turn_promise(r->a->turn, id);
    char key[33];
    if (!p || p->done_at != ENTRY_NEVER || p->kind != PROMISE_ACTIVITY)
        return;
    activity_key(r->a, id, key);
    if (map_get(&l->attempts, str_of(key)))
        return;
    if (p->due > loom_now(l)) {
        alarm_set(l, p->due, ALARM_RETRY, r->a->full, r->a->turn->number, id, false);
        return;
    }
    struct error err;
    struct buf input = {0};
    yyjson_doc *doc = yyjson_read(p->entry, p->entry_n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *entry = yyjson_doc_get_root(doc);
    struct str name = json_str(entry, "name"), version = json_str(entry, "version");
    struct definition *d = registry_find(l, "activity", r->a->ns, name, version);
    json_write(yyjson_obj_get(entry, "input"), &input);
    int rc = d ? definition_check(d, true, buf_view(&input), &err)
               : error_set(&err, LOOM_E_NOT_FOUND, "no activity %.*s%s%.*s is deployed in namespace %.*s; deploy it", (int)name.n, name.p, version.p ? " version " : "",
                           (int)version.n, version.p ? version.p : "", (int)r->a->ns.n, r->a->ns.p);
    struct exec_module *code = rc == 0 ? definition_module(l, d, STR_NONE, NULL, &err) : NULL;
    if (code)
        attempt_new(l, r, id, d, code, buf_view(&input));
    else
        fail_promise(l, r, id, &err);
    yyjson_doc_free(doc);
    buf_free(&input);
}

void attempt_recover(struct loom *l, struct resident *r) {
    struct turn *t = r->a->turn;
    for (uint64_t id = 1; t && id <= t->promise_count; id++) {
        struct promise *p = turn_promise(t, id);
        char key[33];
        if (p->done_at != ENTRY_NEVER)
            continue;
        if (p->deadline && (p->kind == PROMISE_ACTIVITY || p->kind == PROMISE_CALL))
            alarm_set(l, p->deadline, ALARM_PROMISE, r->a->full, t->number, id, false);
        if (p->kind != PROMISE_ACTIVITY)
            continue;
        activity_key(r->a, id, key);
        if (map_get(&l->attempts, str_of(key)))
            continue;
        if (p->due > loom_now(l)) {
            attempt_schedule(l, r, id);
            continue;
        }
        struct error err;
        struct buf json = {0};
        error_set(&err, LOOM_E_INTERRUPTED, "the worker stopped while the attempt ran");
        error_json(&err, &json);
        attempt_failed(l, r, id, NULL, &err, buf_view(&json));
        buf_free(&json);
    }
}

void attempt_cancel(struct loom *l, const struct resident *r, uint64_t promise) {
    char key[33];
    activity_key(r->a, promise, key);
    struct attempt *a = map_remove(&l->attempts, str_of(key));
    if (!a)
        return;
    stop_running(a);
}

void attempts_fail(struct loom *l) {
    struct map old = l->attempts;
    struct attempt *a;
    l->attempts = (struct map){0};
    for (size_t i = 0; (a = map_next(&old, &i)) != NULL;) {
        if (a->seq <= l->committed) {
            map_put(&l->attempts, str_of(a->id), a);
            continue;
        }
        stop_running(a);
    }
    map_free(&old);
}
