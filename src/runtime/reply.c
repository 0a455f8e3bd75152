/* reply.c: answers to those outside, and the callers that wait for one.
 *
 * An answer is an effect: it leaves when the batch that was open when it was made has committed. A caller waits under the
 * key of its message's dedup row; callers of one message form a list.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

struct reply {
    struct arena mem;
    loom_reply_fn fn;
    void *ctx;
    int status;
    struct str body, message_id;
};

static const char safe_to_repeat[] = "the store did not take the batch; repeat the request with the same message id";

static void reply_release(struct loom *l, void *ctx, bool committed) {
    struct reply *r = ctx;
    struct error err;
    if (!committed) {
        int code = l->failed_code ? l->failed_code : LOOM_E_NOT_COMMITTED;
        error_set(&err, code, "%s", safe_to_repeat);
        r->status = error_kind(str_of(err.code))->status;
        r->body = error_text(l, &err);
    }
    struct loom_reply out = {r->status, {r->body.p, r->body.n}, {r->message_id.p, r->message_id.n}};
    r->fn(r->ctx, &out);
    struct arena mem = r->mem;
    arena_free(&mem);
}

static void reply_queue(struct loom *l, loom_reply_fn fn, void *ctx, int status, struct str body, struct str id) {
    struct arena mem = {0};
    struct reply *r = arena_alloc(&mem, sizeof *r);
    *r = (struct reply){
        .fn = fn, .ctx = ctx, .status = status, .body = arena_dup(&mem, body), .message_id = arena_dup(&mem, id)};
    r->mem = mem;
    if (fn)
        effect_add(l, reply_release, r);
    else
        arena_free(&mem);
}

void reply_send(struct loom *l, const struct loom_request *req, int status, struct str body, struct str message_id) {
    reply_queue(l, req->reply, req->ctx, status, body, message_id);
}

struct str error_text(struct loom *l, const struct error *err) {
    return say(l, "{\"code\":%z,\"message\":%z,\"retryable\":%b}", err->code, err->message, err->retryable);
}

void reply_error(struct loom *l, const struct loom_request *req, const struct error *err) {
    reply_send(l, req, error_kind(str_of(err->code))->status, error_text(l, err), STR_NONE);
}

/* The HTTP status of a message's end: 5xx are only Loom's own. */
int reply_status(bool ok, yyjson_val *error) {
    int status = ok ? 200 : error_kind(json_str(error, "code"))->status;
    return status >= 500 ? 422 : status;
}

/* ---- callers that wait ---- */

struct waiter {
    struct waiter *next; /* of the same message */
    struct str key;      /* as the dedup row's: message id \n actor id */
    loom_reply_fn fn;
    void *ctx;
    int64_t deadline; /* monotonic */
    uint64_t seq;     /* batch that holds the message */
};

void waiter_add(struct loom *l, const struct loom_request *req, struct str full_id, struct str message_id) {
    struct str key = dedup_key(l, full_id, message_id);
    struct waiter *w = mem_alloc(sizeof *w);
    int64_t span = req->timeout_ms > 0 ? req->timeout_ms : 30000;
    *w = (struct waiter){map_get(&l->waiters, key),
                         {str_dup(key), key.n},
                         req->reply,
                         req->ctx,
                         l->env->mono_ms(l->env) + span,
                         l->open_seq};
    if (l->waiters.count == 0 || w->deadline < l->waiters_due) l->waiters_due = w->deadline;
    map_put(&l->waiters, w->key, w);
}

static void waiter_answer(struct loom *l, struct waiter *w, int status, struct str body) {
    const char *end = memchr(w->key.p, '\n', w->key.n);
    reply_queue(l, w->fn, w->ctx, status, body, (struct str){w->key.p, (size_t)(end - w->key.p)});
    free((char *)w->key.p);
    free(w);
}

void waiters_answer(struct loom *l, struct str key, bool ok, struct str json) {
    struct waiter *w = map_remove(&l->waiters, key);
    int status = w ? reply_status(ok, ok ? NULL : look(l, json)) : 0;
    for (struct waiter *next; w; w = next) {
        next = w->next;
        waiter_answer(l, w, status, json);
    }
}

/* {"messageId","actorId"} of a waiter's key. */
static struct str still_running(struct loom *l, struct str key) {
    const char *end = memchr(key.p, '\n', key.n);
    const char *name = (const char *)memchr(end, '/', key.n - (size_t)(end - key.p)) + 1;
    return say(l, "{\"messageId\":%q,\"actorId\":%q}", (struct str){key.p, (size_t)(end - key.p)},
               (struct str){name, key.n - (size_t)(name - key.p)});
}

enum waiters_why { WAITERS_LATE, WAITERS_UNCOMMITTED, WAITERS_ALL };

/* Answers the waiters that `why` concerns; the others stay. */
static void waiters_sift(struct loom *l, enum waiters_why why, int status, struct str body) {
    struct map old = l->waiters;
    struct waiter *w;
    int64_t now = l->env->mono_ms(l->env);
    l->waiters = (struct map){0};
    l->waiters_due = INT64_MAX;
    for (size_t i = 0; (w = map_next(&old, &i)) != NULL;)
        for (struct waiter *next; w; w = next) {
            next = w->next;
            bool late = why == WAITERS_LATE && w->deadline <= now;
            if (late || why == WAITERS_ALL || (why == WAITERS_UNCOMMITTED && w->seq > l->committed)) {
                waiter_answer(l, w, status, late ? still_running(l, w->key) : body);
                continue;
            }
            w->next = map_get(&l->waiters, w->key);
            map_put(&l->waiters, w->key, w);
            l->waiters_due = w->deadline < l->waiters_due ? w->deadline : l->waiters_due;
        }
    map_free(&old);
}

void waiters_timeout(struct loom *l) {
    if (l->waiters.count > 0 && l->env->mono_ms(l->env) >= l->waiters_due) waiters_sift(l, WAITERS_LATE, 202, STR_NONE);
}

void waiters_fail(struct loom *l, bool all) {
    struct error err;
    error_set(&err, all ? LOOM_E_STOPPING : l->failed_code, "%s",
              all ? "Loom stops; the message is safe, ask for its reply after the restart" : safe_to_repeat);
    waiters_sift(l, all ? WAITERS_ALL : WAITERS_UNCOMMITTED, error_kind(str_of(err.code))->status, error_text(l, &err));
}
