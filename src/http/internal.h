/* internal.h: what the files of this folder share. A connection handles one request at a time:
 *
 *   HEAD ─► BODY ─► ENGINE ─► SENDING ─► HEAD, or LINGER: our side is shut, we wait for the client to close
 *      └─► any step may answer at once: SENDING         STREAM: server-sent events until one side goes
 */
#ifndef LOOM_HTTP_INTERNAL_H
#define LOOM_HTTP_INTERNAL_H

#include "http/http.h"
#include <pthread.h>
#include <semaphore.h>

enum {
    HTTP_HEAD_MAX = 16 << 10,
    HTTP_BODY_MAX = 2 << 20,
    HTTP_MODULE_MAX = 32 << 20,
    HTTP_UNSENT_MAX = 1 << 20, /* of a stream; then it is closed and the client resumes with Last-Event-ID */
};

struct http_conn;

/* ---- parse.c ---- */

/* The headers that Loom reads; each may come once. */
#define HTTP_HEADERS(X)                       \
    X(HOST, "Host")                           \
    X(CONNECTION, "Connection")               \
    X(CONTENT_LENGTH, "Content-Length")       \
    X(TRANSFER_ENCODING, "Transfer-Encoding") \
    X(CONTENT_TYPE, "Content-Type")           \
    X(EXPECT, "Expect")                       \
    X(ORIGIN, "Origin")                       \
    X(AUTHORIZATION, "Authorization")         \
    X(IDEMPOTENCY_KEY, "Idempotency-Key")     \
    X(NAMESPACE, "Loom-Namespace")            \
    X(CORRELATION, "Loom-Correlation-Id")     \
    X(TRACEPARENT, "traceparent")             \
    X(LAST_EVENT_ID, "Last-Event-ID")
enum http_header {
#define X(id, name) HTTP_##id,
    HTTP_HEADERS(X)
#undef X
        HTTP_HEADER_COUNT
};

struct http_head { /* slices of the text that was parsed */
    struct str method, path, query;
    struct str headers[HTTP_HEADER_COUNT];
    bool keep_alive, chunked;
    size_t content_length;
};

struct http_chunks { /* positions in the buffer that is decoded in place; zero at the start of a body */
    size_t in, out;  /* raw bytes read, bytes of the body written; what lies between is used up */
    size_t left;     /* of the current chunk */
    enum { CHUNK_SIZE, CHUNK_DATA, CHUNK_END, CHUNK_LAST } at;
};

size_t http_head_end(struct str in); /* length of the head with its empty line, 0 while that has not come */
int http_head_parse(struct str text, struct http_head *head, struct error *err); /* 0 or the HTTP status of a refusal */
int http_chunks_decode(struct http_chunks *c, char *p, size_t n); /* 1 whole, 0 more to come, −1 malformed */

bool http_unescape(struct str *s, bool query); /* %XX in place; false: malformed, or a control character */
bool http_integer(struct str s, int64_t *out); /* decimal digits, perhaps after a minus */
int http_hex(char c);                          /* the digit's value, −1: none */
bool http_same(struct str a, const char *z);   /* equal but for ASCII case */
struct str http_trim(struct str s);
struct str http_take_until(struct str *rest, char stop); /* rest goes on behind the first `stop` */

/* ---- auth.c ---- */

struct http_key {
    uint8_t sha256[32];
    char ns[65]; /* empty: any */
    bool admin;
};
struct http_keys {
    struct http_key *list;
    size_t count;
};
int http_keys_read(struct str json, struct http_keys *out, struct error *err);
struct http_route;
/* May this request be made? Sets its namespace. route NULL: there is none. false: answered. */
bool http_authorize(struct http_conn *c, const struct http_route *route);

/* ---- server.c ---- */

enum http_body { BODY_NONE, BODY_JSON, BODY_JSON_OR_NULL, BODY_WASM };

struct http_route { /* a row of the table in routes.c */
    const char *method, *path;
    const char *fields; /* for each {part} of the path the request's field: t type, k key, i id, v version */
    const char *type;   /* stands before the type of the path, or for it */
    const char *op;     /* row of loom_ops("operator"); NULL: `local` answers */
    void (*local)(struct http_conn *c);
    const char *makes; /* content type, NULL: application/json */
    enum http_body body;
    const char *query; /* names of the parameters it takes */
    const char *ok;    /* statuses of success */
    bool open;         /* needs no key */
    bool keyed;        /* Idempotency-Key becomes the message id */
    bool all;          /* it shows or changes all namespaces: needs an admin's key that is bound to none */
    const char *doc;
};

enum http_phase { HTTP_AT_HEAD, HTTP_AT_BODY, HTTP_AT_ENGINE, HTTP_AT_SENDING, HTTP_AT_STREAM, HTTP_AT_LINGER };

struct http_conn {
    struct http_server *server;
    struct http_conn *prev, *next; /* in the server's list of open ones */
    int fd;                        /* −1: closed, and freed as soon as the engine can't reach it */
    uint32_t watched;              /* events that epoll looks for */
    enum http_phase phase;
    bool close_after;
    int64_t since;  /* ms: when the phase began, the request's first byte came, or bytes were last sent */
    struct buf in;  /* what came and is not used: the rest of a head, a body, the next request */
    struct buf out; /* what is to be sent, of which `sent` bytes are gone */
    size_t sent;
    size_t body_n; /* of the request at the engine, at the start of `in` */
    struct http_chunks chunks;

    /* The request, from head to answer. All its slices lie in head_text or the arena, neither of which moves meanwhile. */
    struct buf head_text;
    struct arena arena;
    struct http_head head;
    const struct http_route *route;
    struct loom_request request;
    struct buf extra; /* header lines of the answer */

    /* Handed over by the engine's thread. */
    struct buf inbox; /* the reply: message id, then body; or events in their SSE form */
    size_t id_n;
    int status;
    bool overflow; /* events were dropped */
    bool queued;   /* these two under the server's lock */
    struct http_conn *queue_next;
    uint64_t subscription;
};

enum { HTTP_SERVE, HTTP_DRAIN, HTTP_STOP };

struct http_server {
    struct loom *loom;
    struct env *env;
    struct http_keys keys;
    struct str page;
    uint32_t request_timeout_ms;
    bool loopback, draining;
    int epoll, listener, wake, port;
    pthread_t thread;
    char *scratch;      /* what a read fills */
    int64_t now, swept; /* monotonic ms of this round, of the last sweep */
    char date[32];
    struct http_conn *open, *dead; /* dead ones are freed at the end of the round */

    int command; /* atomic: HTTP_SERVE, … */
    bool woken;  /* atomic: the eventfd is set */
    sem_t drained;
    pthread_mutex_t lock;    /* guards the queue and inboxes of streams */
    struct http_conn *queue; /* have an inbox to look at */
};

void http_phase(struct http_conn *c, enum http_phase phase);
/* type NULL: what the route makes. A body of STR_NONE has no length: it goes on until the connection ends. */
void http_respond(struct http_conn *c, int status, const char *type, struct str body);
void http_queue(struct http_conn *c);  /* from the engine's thread, under the lock: the inbox has something */
void http_wake(struct http_server *s); /* from any thread: look at the queue */

/* ---- routes.c ---- */

bool http_admit(struct http_conn *c); /* a head has come: checks all but the body; false: answered */
void http_dispatch(struct http_conn *c, struct str body); /* the body has come: to the engine, or answers */
void http_answer(struct http_conn *c);                    /* the engine's reply has come */
size_t http_body_max(const struct http_conn *c);
void http_too_large(struct http_conn *c);
void http_stopping(struct http_conn *c);
/* Answers with application/problem+json; status 0: the code's own. */
void http_problem(struct http_conn *c, int status, int code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void http_fail(struct http_conn *c, int status, const struct error *e);

/* ---- stream.c ---- */

void http_stream_open(struct http_conn *c);
void http_stream_close(struct http_conn *c); /* after it no event comes */
void http_stream_end(struct http_conn *c);   /* the same; the answer ends behind what is in `out` */
void http_stream_take(struct http_conn *c);  /* moves events from the inbox to `out` */
void http_stream_beat(struct http_conn *c);

#endif
