/* stream.c: committed journal entries as server-sent events:
 *
 *   id: 17
 *   data: {"actor":"order/7","cursor":17,"entry":{…}}
 *
 * A comment comes every 15 s of silence. A client that leaves more than 1 MB unsent is cut off behind a whole event; it comes
 * back with Last-Event-ID and goes on from there, as EventSource does by itself. The answer has no length: it ends with the
 * connection.
 */
#include "http/internal.h"
#include <string.h>

/* On the engine's thread. */
static void on_event(void *ctx, const struct loom_event *event) {
    struct http_conn *c = ctx;
    pthread_mutex_lock(&c->server->lock);
    c->overflow |= c->inbox.n > HTTP_UNSENT_MAX;
    if (!c->overflow)
        buf_json(&c->inbox, "id: %d\ndata: %j\n\n", event->id, (struct str){event->json.p, event->json.n});
    http_queue(c);
    pthread_mutex_unlock(&c->server->lock);
    http_wake(c->server);
}

void http_stream_open(struct http_conn *c) {
    struct loom_request *q = &c->request;
    struct str last = c->head.headers[HTTP_LAST_EVENT_ID], actor = {q->key.p, q->key.n},
               type = http_take_until(&actor, '/');
    if (q->key.p && (type.n == 0 || actor.n == 0 || memchr(actor.p, '/', actor.n))) {
        http_problem(c, 0, LOOM_E_INVALID_ARGUMENT, "The query parameter actor must be type/key");
    } else if (last.n && (!http_integer(last, &q->from) || q->from < 0)) {
        http_problem(c, 0, LOOM_E_INVALID_ARGUMENT, "The header Last-Event-ID must be the integer id of an event");
    } else if (c->server->draining) {
        http_stopping(c);
    } else {
        buf_clear(&c->inbox);
        c->overflow = false;
        c->close_after = true;
        http_respond(c, 200, NULL, STR_NONE);
        if (str_eq(c->head.method, STR("HEAD"))) return;
        buf_str(&c->out, STR("retry: 1000\n\n"));
        http_phase(c, HTTP_AT_STREAM);
        c->subscription = loom_subscribe(c->server->loom, q->ns, q->key, q->from, on_event, c);
    }
}

void http_stream_close(struct http_conn *c) {
    loom_unsubscribe(c->server->loom, c->subscription);
}

void http_stream_end(struct http_conn *c) {
    http_stream_close(c);
    http_phase(c, HTTP_AT_SENDING);
}

void http_stream_take(struct http_conn *c) {
    pthread_mutex_lock(&c->server->lock);
    buf_str(&c->out, buf_view(&c->inbox));
    buf_clear(&c->inbox);
    bool overflow = c->overflow;
    pthread_mutex_unlock(&c->server->lock);
    if (overflow || c->out.n - c->sent > HTTP_UNSENT_MAX) http_stream_end(c);
}

void http_stream_beat(struct http_conn *c) {
    if (c->sent == c->out.n && c->server->now - c->since >= 15000) buf_str(&c->out, STR(": still here\n\n"));
}
