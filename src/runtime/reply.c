/* reply.c: answers to those outside, and the callers that wait for one.
 *
 * An answer is an effect: it leaves when the batch that was open when it was made has committed. A caller waits under the
 * key of its message's dedup row; callers of one message form a list.
 */
#include "runtime/runtime.h"

#include <string.h>

struct reply {
    struct item item; /* while it waits, its seq is that of the batch that holds the message */
    loom_reply_fn fn;
    void *ctx;
    int status;
    struct str body, message_id;
    /* while it waits: */
    struct reply *next; /* of the same message */
    struct str key;     /* as the dedup row's: message id \n namespace/type/key */
    int64_t deadline;   /* monotonic */
};

static struct reply *reply_new(const struct loom_request *req, struct str message_id) {
    struct reply *r = item_new(sizeof *r);
    r->fn = req->reply;
    r->ctx = req->ctx;
    r->message_id = arena_dup(&r->item.mem, message_id);
    return r;
}

static void reply_release(struct loom *l, struct item *item) {
    struct reply *r = (struct reply *)item;
    struct error err;
    if (!item->committed) {
        error_set(&err,
                  l->failed ? l->failed
                  : l->stop ? LOOM_E_STOPPING
                            : LOOM_E_BUSY,
                  l->stop ? "Loom stops; repeat the request with the same message id after its restart"
                          : "the disk does not take it now; repeat the request with the same message id");
        r->status = error_kind(str_of(err.code))->status;
        r->body = error_text(l, &err);
    }
    struct loom_reply out = {r->status, {r->body.p, r->body.n}, {r->message_id.p, r->message_id.n}};
    if (r->fn) r->fn(r->ctx, &out);
    l->released = true;
    item_free(item);
}

void reply_refuse(struct loom *l, const struct loom_request *req) {
    reply_release(l, &reply_new(req, STR_NONE)->item);
}

static void reply_give(struct loom *l, struct reply *r, int status, struct str body) {
    r->status = status;
    r->body = arena_dup(&r->item.mem, body);
    effect_add(l, &r->item, reply_release);
}

void reply_send(struct loom *l, const struct loom_request *req, int status, struct str body, struct str message_id) {
    reply_give(l, reply_new(req, message_id), status, body);
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

static void waiter_put(struct loom *l, struct reply *w) {
    if (l->waiters.count == 0 || w->deadline < l->waiters_due) l->waiters_due = w->deadline;
    w->next = map_get(&l->waiters, w->key);
    map_put(&l->waiters, w->key, w);
}

void waiter_add(struct loom *l, const struct loom_request *req, struct str full_id, struct str message_id) {
    struct reply *w = reply_new(req, message_id);
    w->key = arena_dup(&w->item.mem, dedup_key(l, full_id, message_id));
    w->deadline = l->env->mono_ms(l->env) + (req->timeout_ms > 0 ? req->timeout_ms : 30000);
    w->item.seq = l->open_seq;
    waiter_put(l, w);
}

void waiters_answer(struct loom *l, struct str key, bool ok, struct str json) {
    struct reply *w = map_remove(&l->waiters, key);
    int status = w ? reply_status(ok, ok ? NULL : look(l, json)) : 0;
    for (struct reply *next; w; w = next) {
        next = w->next;
        reply_give(l, w, status, json);
    }
}

void waiters_sift(struct loom *l, enum waiters_why why) {
    struct map old = l->waiters;
    struct reply *w, *next;
    int64_t now = l->env->mono_ms(l->env);
    if (why == WAITERS_LATE && (old.count == 0 || now < l->waiters_due)) return;
    l->waiters = (struct map){0};
    for (size_t i = 0; (w = map_next(&old, &i)) != NULL;)
        for (; w; w = next) {
            next = w->next;
            if (why == WAITERS_LATE ? w->deadline > now : why == WAITERS_UNCOMMITTED && w->item.seq <= l->committed)
                waiter_put(l, w);
            else if (why == WAITERS_LATE)
                reply_give(l, w, 202,
                           say(l, "{\"messageId\":%q,\"actorId\":%z}", w->message_id,
                               strchr(w->key.p + w->message_id.n, '/') + 1));
            else
                reply_release(l, &w->item);
        }
    map_free(&old);
}
