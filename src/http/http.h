/* http.h: the HTTP door of a worker: JSON in and out, server-sent events, metrics, the dashboard.
 *
 * It speaks to the engine only through loom.h. One thread serves all connections.
 */
#ifndef LOOM_HTTP_H
#define LOOM_HTTP_H

#include "base/base.h"
#include "loom/loom.h"

struct http_server;

struct http_config {
    const char *listen; /* ADDR:PORT, [ADDR]:PORT or localhost:PORT; port 0: any free one */
    struct loom *loom;  /* opened before http_start */
    struct str keys;    /* {"keys": [{"sha256", "namespace", "role"}]} as JSON; absent: open, on loopback only */
    struct str page;    /* the dashboard's HTML, served at "/"; absent: none */
    struct env *env;    /* NULL: env_system() */
    uint32_t request_timeout_ms; /* for a request to arrive, plus 1 s per 64 KiB that has; 0: 10,000 */
};

/* Listens and serves. 0, or an error that says what to do; *out is set before the first request is taken. */
int http_start(const struct http_config *config, struct http_server **out, struct error *err);
int http_port(const struct http_server *s);

/* For loom_config: .flushed = http_flushed, .flushed_ctx = the address of the server pointer that http_start fills
 * (NULL until then). Replies and events lie in a list until this wakes the server's thread, once per group. */
void http_flushed(void *server_pointer);

/* To stop: http_drain (nothing reaches the engine after it returns), loom_close (whose replies still go out), http_stop. */
void http_drain(struct http_server *s);
void http_stop(struct http_server *s);

#endif
