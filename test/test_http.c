/* test_http.c: the HTTP door, over real sockets, in front of an engine that only tells what reached it.
 *
 * The engine behind loom.h is played by a thread: `call` answers its body, every other op the fields it was given, as JSON. Some
 * keys mean something: "hold" waits for let_go(), "fail" fails as a guest would, "busy" as a full engine would.
 */
#include "http/internal.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- the engine ---- */

struct asked {
    struct asked *next;
    struct buf reply, id;
    int status;
    bool held;
    loom_reply_fn fn;
    void *ctx;
};

struct loom {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct asked *first, **last;
    bool closing, let_go;
    int answered;
    struct http_server *server;
    loom_event_fn event_fn;
    void *event_ctx;
};

static struct str s_of(struct loom_str s) {
    return (struct str){s.p, s.n};
}

static void describe(const struct loom_request *q, struct buf *out) {
    buf_json(out, "{\"op\":%z,\"ns\":%Q,\"type\":%Q,\"key\":%Q,\"id\":%Q,\"eventId\":%Q,\"version\":%Q,", q->op,
             s_of(q->ns), s_of(q->type), s_of(q->key), s_of(q->id), s_of(q->event_id), s_of(q->version));
    buf_json(out, "\"correlation\":%Q,\"traceparent\":%Q,\"after\":%Q,\"status\":%Q,", s_of(q->correlation),
             s_of(q->traceparent), s_of(q->after), s_of(q->status));
    buf_json(out,
             "\"delayMs\":%d,\"ttlMs\":%d,\"timeoutMs\":%d,\"at\":%d,\"from\":%d,\"limit\":%d,\"priority\":%d,"
             "\"replace\":%b,\"body\":%Q}",
             q->delay_ms, q->ttl_ms, q->timeout_ms, q->at, q->from, q->limit, (int64_t)q->priority, q->replace,
             q->body.n < 1000 ? s_of(q->body) : STR("(long)"));
}

void loom_submit(struct loom *l, const struct loom_request *q) {
    struct asked *a = mem_alloc(sizeof *a);
    struct str key = s_of(q->key);
    *a = (struct asked){.status = 200, .fn = q->reply, .ctx = q->ctx, .held = str_eq(key, STR("hold"))};
    if (str_eq(key, STR("fail"))) {
        a->status = 422;
        buf_json(&a->reply, "{\"code\":\"card_declined\",\"message\":\"no \\\"money\\\"\",\"retryable\":true}");
    } else if (str_eq(key, STR("busy"))) {
        a->status = 503;
        buf_json(&a->reply, "{\"code\":\"busy\",\"message\":\"full\",\"retryable\":true}");
    } else if (strcmp(q->op, "call") == 0) {
        buf_str(&a->reply, s_of(q->body));
        buf_str(&a->id, q->id.p ? s_of(q->id) : STR("made-id"));
    } else {
        describe(q, &a->reply);
    }
    pthread_mutex_lock(&l->lock);
    *l->last = a;
    l->last = &a->next;
    pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

static struct asked *take_all(struct loom *l) {
    pthread_mutex_lock(&l->lock);
    while (!l->closing && (!l->first || (l->first->held && !l->let_go))) pthread_cond_wait(&l->changed, &l->lock);
    struct asked *list = l->first;
    l->first = NULL;
    l->last = &l->first;
    pthread_mutex_unlock(&l->lock);
    return list;
}

static void *answer_all(void *loom) {
    struct loom *l = loom;
    for (struct asked *a, *next; (a = take_all(l)) != NULL; http_flushed(&l->server)) {
        for (; a; a = next) {
            next = a->next;
            struct loom_reply reply = {a->status, {a->reply.p, a->reply.n}, {a->id.p, a->id.n}};
            __atomic_add_fetch(&l->answered, 1, __ATOMIC_SEQ_CST);
            a->fn(a->ctx, &reply);
            buf_free(&a->reply);
            buf_free(&a->id);
            free(a);
        }
    }
    return NULL;
}

static void let_go(struct loom *l) {
    pthread_mutex_lock(&l->lock);
    l->let_go = true;
    pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

static void emit(struct loom *l, int64_t id, struct str json) {
    struct loom_event e = {.id = id, .json = {json.p, json.n}};
    pthread_mutex_lock(&l->lock);
    if (l->event_fn) l->event_fn(l->event_ctx, &e);
    pthread_mutex_unlock(&l->lock);
}

uint64_t loom_subscribe(struct loom *l, struct loom_str ns, struct loom_str actor, int64_t from, loom_event_fn fn,
                        void *ctx) {
    struct buf told = {0};
    buf_json(&told, "{\"ns\":%Q,\"actor\":%Q,\"from\":%d}", s_of(ns), s_of(actor), from);
    pthread_mutex_lock(&l->lock);
    l->event_fn = fn;
    l->event_ctx = ctx;
    pthread_mutex_unlock(&l->lock);
    emit(l, from + 1, buf_view(&told));
    buf_free(&told);
    return 7;
}

void loom_unsubscribe(struct loom *l, uint64_t handle) {
    assert_int_equal(handle, 7);
    pthread_mutex_lock(&l->lock);
    l->event_fn = NULL;
    pthread_mutex_unlock(&l->lock);
}

char *loom_metrics(void) {
    return str_dup(STR("loom_messages_total 1\n"));
}

static void engine_open(struct loom *l) {
    *l = (struct loom){.last = &l->first};
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    assert_int_equal(pthread_create(&l->thread, NULL, answer_all, l), 0);
}

static void engine_close(struct loom *l) {
    pthread_mutex_lock(&l->lock);
    l->closing = true;
    pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
}

/* ---- the client ---- */

static struct loom loom;
static int port;

static void start_with(struct http_config config) {
    struct error err;
    engine_open(&loom);
    config.listen = config.listen ? config.listen : "127.0.0.1:0";
    config.loom = &loom;
    if (http_start(&config, &loom.server, &err)) fail_msg("%s", err.message);
    port = http_port(loom.server);
}

static int start(void **state) {
    (void)state;
    start_with((struct http_config){.page = STR("<script nonce=\"{{nonce}}\">1</script>{{nonce}}!")});
    return 0;
}

static int stop(void **state) {
    (void)state;
    let_go(&loom);
    http_drain(loom.server);
    engine_close(&loom);
    http_stop(loom.server);
    return 0;
}

static int dial(void) {
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = 20};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static void put(int fd, struct str s) {
    for (ssize_t n; s.n && (n = send(fd, s.p, s.n, MSG_NOSIGNAL)) > 0; s.n -= (size_t)n) s.p += n;
}

struct answer {
    int status; /* 0: none came */
    struct buf text;
    const char *head, *body; /* in text, NUL-terminated */
};

static bool read_more(int fd, struct buf *b, size_t n) {
    char bytes[4096];
    ssize_t got = recv(fd, bytes, n < sizeof bytes ? n : sizeof bytes, 0);
    if (got > 0) buf_add(b, bytes, (size_t)got);
    return got > 0;
}

/* One answer off the connection; its body is as long as it says, or goes to the end when it does not say. */
static struct answer get(int fd) {
    struct answer a = {0};
    while (a.text.n < 4 || memcmp(a.text.p + a.text.n - 4, "\r\n\r\n", 4) != 0)
        if (!read_more(fd, &a.text, 1)) return a;
    size_t head = a.text.n;
    buf_char(&a.text, 0);
    const char *length = strstr(a.text.p, "Content-Length: ");
    size_t left = length ? strtoul(length + 16, NULL, 10) : SIZE_MAX;
    for (size_t before = a.text.n; left && read_more(fd, &a.text, left); before = a.text.n) left -= a.text.n - before;
    buf_char(&a.text, 0);
    a.head = a.text.p;
    a.body = a.text.p + head + 1;
    a.status = atoi(a.text.p + 9);
    return a;
}

static bool at_end(int fd) {
    char c;
    return recv(fd, &c, 1, 0) <= 0;
}

static struct answer ask_raw(struct str request) {
    int fd = dial();
    put(fd, request);
    struct answer a = get(fd);
    close(fd);
    return a;
}

/* headers: whole lines; body NULL: none */
static struct answer ask(const char *method, const char *target, const char *headers, const char *body) {
    struct buf b = {0};
    buf_json(&b, "%s %s HTTP/1.1\r\nHost: localhost\r\n%s", method, target, headers);
    if (body) buf_json(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n", (int64_t)strlen(body));
    buf_json(&b, "\r\n%s", body ? body : "");
    struct answer a = ask_raw(buf_view(&b));
    buf_free(&b);
    return a;
}

static void expect(struct answer a, int status, const char *part) {
    if (a.status != status || (!strstr(a.head, part) && !strstr(a.body, part)))
        fail_msg("expected %d with \"%s\", got %d: %s%s", status, part, a.status, a.head ? a.head : "",
                 a.body ? a.body : "");
    buf_free(&a.text);
}

static void expect_none(struct answer a, const char *part) {
    if (!a.status || strstr(a.head, part) || strstr(a.body, part))
        fail_msg("did not expect \"%s\" in %s%s", part, a.head, a.body);
    buf_free(&a.text);
}

/* ---- requests ---- */

/* A call answers the value itself, and the message id in a header: the client's own or the one Loom made. */
static void test_call(void **state) {
    (void)state;
    expect(ask("POST", "/v1/actors/order/7/call", "", "{\"x\":1}"), 200, "Loom-Message-Id: made-id\r\n");
    expect(ask("POST", "/v1/actors/order/7/call", "", "[1, 2]"), 200, "[1, 2]");
    expect(ask("POST", "/v1/actors/order/7/call", "Idempotency-Key: pay-17\r\n", "1"), 200,
           "Loom-Message-Id: pay-17\r\n");
    expect(ask("POST", "/v1/actors/order/7/call", "Loom-Correlation-Id: c 9\r\n", "1"), 200,
           "Loom-Correlation-Id: c 9\r\n");
}

/* Each route reaches the engine as its op, with path, query and headers in the fields they belong to. */
static void test_fields(void **state) {
    (void)state;
    static const struct {
        const char *method, *target, *headers, *body, *told;
    } cases[] = {
        {"POST", "/v1/actors/a/k/send?delayMs=5&priority=-3&ttlMs=9", "Idempotency-Key: i\r\nLoom-Namespace: n\r\n",
         "{}", "{\"op\":\"send\",\"ns\":\"n\",\"type\":\"a\",\"key\":\"k\",\"id\":\"i\",\"eventId\":null,"},
        {"POST", "/v1/actors/a/k/send?delayMs=5&priority=-3&ttlMs=9", "", NULL,
         "\"delayMs\":5,\"ttlMs\":9,\"timeoutMs\":0,\"at\":-1,\"from\":0,\"limit\":0,\"priority\":-3,\"replace\":false,"
         "\"body\":\"null\"}"},
        {"POST", "/v1/actors/a/k/events/paid", "Idempotency-Key: i\r\n", "1",
         "\"key\":\"k\",\"id\":\"paid\",\"eventId\":\"i\","},
        {"GET", "/v1/actors/a/K%C3%A4se%20+%25", "", NULL,
         "\"op\":\"get\",\"ns\":null,\"type\":\"a\",\"key\":\"K\xc3\xa4se +%\","},
        {"GET", "/v1/actors/a/k", "Idempotency-Key: i\r\n", NULL, "\"id\":null,\"eventId\":null"},
        {"GET", "/v1/actors/a/k/state?at=12", "", NULL, "\"at\":12"},
        {"GET", "/v1/actors/a/k/journal?from=3&limit=10", "", NULL, "\"from\":3,\"limit\":10"},
        {"GET", "/v1/actors/a/k/messages/m%201", "", NULL,
         "\"op\":\"message\",\"ns\":null,\"type\":\"a\",\"key\":\"k\",\"id\":\"m 1\""},
        {"POST", "/v1/actors/a/k/cancel", "", NULL, "\"op\":\"cancel\""},
        {"POST", "/v1/actors/a/k/resume", "", "{\"ok\":true}", "\"body\":\"{\\\"ok\\\":true}\""},
        {"POST", "/v1/actors/a/k/fork", "", "{\"from\":1}", "\"op\":\"fork\""},
        {"GET", "/v1/actors?type=t&status=idle&after=x%2By+z&limit=2", "", NULL,
         "\"type\":\"t\",\"key\":null,\"id\":null,\"eventId\":null,\"version\":null,\"correlation\":null,"
         "\"traceparent\":null,\"after\":\"x+y z\","
         "\"status\":\"idle\""},
        {"GET", "/v1/modules", "", NULL, "\"op\":\"module.list\""},
        {"GET", "/v1/actor-types", "", NULL, "\"op\":\"definitions\",\"ns\":null,\"type\":\"actor-type\""},
        {"GET", "/v1/activities/mail/1.0", "", NULL,
         "\"op\":\"definition\",\"ns\":null,\"type\":\"activity\",\"key\":\"mail\",\"id\":null,\"eventId\":null,"
         "\"version\":\"1.0\""},
        {"PUT", "/v1/activities/mail/1.0?replace=true", "", "{}",
         "\"op\":\"activity.put\",\"ns\":null,\"type\":\"mail\",\"key\":\"1.0\""},
        {"PUT", "/v1/activities/mail/1.0?replace=true", "", "{}", "\"replace\":true"},
        {"PUT", "/v1/workflows/w/1", "", "{}", "\"op\":\"workflow.put\""},
        {"PUT", "/v1/actor-types/w/1", "", "{}", "\"op\":\"actor-type.put\""},
        {"POST", "/v1/workflows/w/runs?key=r1&version=2", "Idempotency-Key: i\r\n", NULL,
         "\"op\":\"run\",\"ns\":null,\"type\":\"w\",\"key\":\"r1\",\"id\":\"i\",\"eventId\":null,\"version\":\"2\""},
        {"GET", "/v1/workflows/w/runs/r1", "", NULL,
         "\"op\":\"get\",\"ns\":null,\"type\":\"workflow.w\",\"key\":\"r1\""},
        {"GET", "/readyz", "", NULL, "\"op\":\"ready\""},
        {"GET", "/v1/actors/a/k", "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n", NULL,
         "\"traceparent\":\"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\""},
        {"GET", "/v1/actors/a/k", "traceparent: 00-zzz\r\n", NULL, "\"traceparent\":null"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect(ask(cases[i].method, cases[i].target, cases[i].headers, cases[i].body), 200, cases[i].told);
}

static void test_module(void **state) {
    (void)state;
    struct buf b = {0};
    buf_json(&b,
             "PUT /v1/modules/echo/1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/wasm\r\nContent-Length: "
             "%d\r\n\r\n",
             (int64_t)5 << 20);
    for (int i = 0; i < 5 << 10; i++) buf_json(&b, "%j", (struct str){(char[1024]){0}, 1024});
    expect(ask_raw(buf_view(&b)), 200, "\"op\":\"module.put\"");
    buf_free(&b);
    expect(ask("PUT", "/v1/modules/echo/1", "", "{}"), 415, "application/wasm");
    expect(ask("PUT", "/v1/modules/echo/1", "Content-Type: application/wasm\r\n", NULL), 400, "takes a WASM module");
}

/* What is asked for wrongly is refused with the name of what is wrong, before the engine hears of it. */
static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *method, *target, *headers, *body;
        int status;
        const char *part;
    } cases[] = {
        {"GET", "/v2/x", "", NULL, 404, "There is no route GET /v2/x"},
        {"GET", "/v1/actors/", "", NULL, 404, "not_found"},
        {"GET", "/v1/actors/a//call", "", NULL, 404, "not_found"},
        {"DELETE", "/v1/actors/a/k", "", NULL, 405, "Allow: GET\r\n"},
        {"GET", "/v1/activities/a/1/x", "", NULL, 404, "not_found"},
        {"POST", "/v1/activities/a/1", "", "{}", 405, "Allow: GET, PUT\r\n"},
        {"POST", "/v1/actors/a/k/send?delay=1", "", NULL, 400,
         "Unknown query parameter delay; this route takes: delayMs priority ttlMs"},
        {"GET", "/v1/actors/a/k?x", "", NULL, 400, "Unknown query parameter x; this route takes none"},
        {"GET", "/v1/actors?limit=ten", "", NULL, 400, "limit must come once and be an integer from 1 to 10000"},
        {"GET", "/v1/actors?limit=0", "", NULL, 400, "limit"},
        {"GET", "/v1/actors?limit=99999999999999999999", "", NULL, 400, "limit"},
        {"GET", "/v1/actors?limit=1&limit=2", "", NULL, 400, "limit must come once"},
        {"GET", "/v1/actors?type=%zz", "", NULL, 400, "type must come once and be percent-encoded"},
        {"PUT", "/v1/workflows/w/1?replace=yes", "", "{}", 400, "true or false"},
        {"GET", "/v1/actors/a/%4", "", NULL, 400, "percent-encoded"},
        {"GET", "/v1/actors/a/%2F", "", NULL, 400, "percent-encoded"},
        {"GET", "/v1/actors/a/..%2f..%2fetc", "", NULL, 400, "percent-encoded"},
        {"GET", "/v1/actors/a/%00", "", NULL, 400, "percent-encoded"},
        {"GET", "/v1/actors/a/%0a", "", NULL, 400, "percent-encoded"},
        {"POST", "/v1/actors/a/k/call", "", NULL, 400, "takes JSON, for example {}"},
        {"POST", "/v1/actors/a/k/call", "Content-Type: text/plain\r\nContent-Length: 2\r\n", NULL, 415,
         "Content-Type: application/json"},
        {"GET", "/v1/actors/a/k", "", "{}", 400, "takes no body"},
        {"POST", "/v1/actors/a/k/call", "Content-Length: 2097153\r\nContent-Type: application/json\r\n", NULL, 413,
         "2097152"},
        {"POST", "/v1/actors/a/k/send", "Idempotency-Key:\r\n", NULL, 400, "Idempotency-Key must be 1 to 256"},
        {"POST", "/v1/actors/a/k/send", "Loom-Correlation-Id: \xff\r\n", NULL, 400, "printable"},
        {"GET", "/v1/stream?actor=x", "", NULL, 400, "type/key"},
        {"GET", "/v1/stream", "Last-Event-ID: x\r\n", NULL, 400, "Last-Event-ID"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct answer a = ask(cases[i].method, cases[i].target, cases[i].headers, cases[i].body);
        assert_non_null(strstr(a.head, "Content-Type: application/problem+json\r\n"));
        expect(a, cases[i].status, cases[i].part);
    }
    assert_int_equal(loom.answered, 0);
}

/* An error of the engine or a guest becomes a problem document with its status, and Retry-After where waiting helps. */
static void test_problems(void **state) {
    (void)state;
    expect(ask("GET", "/v1/actors/a/fail",
               "Loom-Correlation-Id: c\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
               NULL),
           422,
           "\"status\":422,\"detail\":\"no "
           "\\\"money\\\"\",\"code\":\"card_declined\",\"retryable\":true,\"correlationId\":\"c\","
           "\"traceId\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}");
    expect(ask("GET", "/v1/actors/a/busy", "", NULL), 503, "Retry-After: 1\r\n");
    expect_none(ask("GET", "/v1/actors/a/fail", "", NULL), "Retry-After");
}

/* A page that a browser was led to by a foreign name, or that asks from a foreign origin, gets nothing. */
static void test_rebinding(void **state) {
    (void)state;
    expect(ask_raw(STR("GET /healthz HTTP/1.1\r\nHost: evil.example:7100\r\n\r\n")), 403, "forbidden");
    expect(ask_raw(STR("GET /healthz HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n")), 403, "forbidden");
    expect(ask_raw(STR("GET /healthz HTTP/1.1\r\nHost: localhost:80@evil.example\r\n\r\n")), 403, "forbidden");
    expect(ask_raw(STR("GET /healthz HTTP/1.1\r\nHost: [::1]:7100\r\n\r\n")), 200, "alive");
    expect(ask_raw(STR("GET /healthz HTTP/1.1\r\nHost: LOCALHOST\r\n\r\n")), 200, "alive");
    expect(ask("POST", "/v1/actors/a/k/cancel", "Origin: https://evil.example\r\n", NULL), 403, "Origin");
    expect(ask("POST", "/v1/actors/a/k/cancel", "Origin: null\r\n", NULL), 403, "Origin");
    expect(ask("POST", "/v1/actors/a/k/cancel", "Origin: http://127.0.0.1:3000\r\n", NULL), 200, "cancel");
}

/* ---- HTTP itself ---- */

/* What two parsers could read differently is refused, and the connection closed. */
static void test_malformed(void **state) {
    (void)state;
#define CALL "POST /v1/actors/a/k/call HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
#define GET  "GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    static const struct {
        struct str request;
        int status;
    } cases[] = {
        {{"\x16\x03\x01", 3}, 400},
        {STR("GET /healthz\r\n\r\n"), 505},
        {STR("GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"), 400},
        {STR("GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"), 400},
        {STR("GET /health\x01z HTTP/1.1\r\nHost: localhost\r\n\r\n"), 400},
        {STR("GET /\xc3\xa4 HTTP/1.1\r\nHost: localhost\r\n\r\n"), 400},
        {STR("GET /healthz HTTP/2.0\r\nHost: localhost\r\n\r\n"), 505},
        {STR("GET /healthz HTTP/1.1\nHost: localhost\n\n"), 400},
        {STR("GET /healthz HTTP/1.1\r\nHost: localhost\n\r\n"), 400},
        {STR("GET /healthz HTTP/1.1\r\n\r\n"), 400},
        {STR(GET "Host: localhost\r\n\r\n"), 400},
        {STR(GET "X : 1\r\n\r\n"), 400},
        {STR(GET "X\r\n\r\n"), 400},
        {STR(GET ": 1\r\n\r\n"), 400},
        {STR(GET "X: a\r\n b\r\n\r\n"), 400},
        {STR(GET "X: a\0b\r\n\r\n"), 400},
        {STR(GET "X: a\rb\r\n\r\n"), 400},
        {STR(GET "Expect: magic\r\n\r\n"), 417},
        {STR(CALL "Content-Length: 1\r\nContent-Length: 1\r\n\r\n1"), 400},
        {STR(CALL "Content-Length: +1\r\n\r\n1"), 400},
        {STR(CALL "Content-Length: -1\r\n\r\n1"), 400},
        {STR(CALL "Content-Length: 0x1\r\n\r\n1"), 400},
        {STR(CALL "Content-Length: 1, 1\r\n\r\n1"), 400},
        {STR(CALL "Content-Length:\r\n\r\n1"), 400},
        {STR(CALL "Content-Length: 18446744073709551617\r\n\r\n1"), 400},
        {STR(CALL "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n"), 400},
        {STR(CALL "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n"), 400},
        {STR(CALL "Transfer-Encoding: gzip, chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n"), 400},
        {STR(CALL "Transfer-Encoding: identity\r\n\r\n1"), 400},
        {STR(CALL "Transfer-Encoding: xchunked\r\n\r\n1\r\n1\r\n0\r\n\r\n"), 400},
        {STR("POST /v1/actors/a/k/call HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n"), 400},
        {STR(CALL "Transfer-Encoding: chunked\r\n\r\n0x1\r\n1\r\n0\r\n\r\n"), 400},
        {STR(CALL "Transfer-Encoding: chunked\r\n\r\n+1\r\n1\r\n0\r\n\r\n"), 400},
        {STR(CALL "Transfer-Encoding: chunked\r\n\r\n1;a=b\r\n1\r\n0\r\n\r\n"), 400},
        {STR(CALL "Transfer-Encoding: chunked\r\n\r\n1 \r\n1\r\n0\r\n\r\n"), 400},
        {STR(CALL "Transfer-Encoding: chunked\r\n\r\n1\n1\r\n0\r\n\r\n"), 400},
        {STR(CALL "Transfer-Encoding: chunked\r\n\r\n000000001\r\n1\r\n0\r\n\r\n"), 400},
        {STR(CALL "Transfer-Encoding: chunked\r\n\r\n1\r\n12\r\n0\r\n\r\n"), 400},
        {STR(CALL "Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nTrailer: x\r\n\r\n"), 400},
        {STR(CALL "Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"), 413},
        {STR(CALL "Transfer-Encoding: chunked\r\n\r\n\r\n"), 400},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int fd = dial();
        put(fd, cases[i].request);
        struct answer a = get(fd);
        if (a.status != cases[i].status)
            fail_msg("case %zu: %d instead of %d for %s", i, a.status, cases[i].status, cases[i].request.p);
        assert_true(at_end(fd));
        expect(a, cases[i].status, "Connection: close\r\n");
        close(fd);
    }
    assert_int_equal(loom.answered, 0);
}

/* A request may come byte by byte, chunked or not, and several at once; answers come in the requests' order. */
static void test_pieces(void **state) {
    (void)state;
    struct str two = STR("\r\n" CALL
                         "Transfer-Encoding: CHUNKED\r\n\r\n4\r\n[1,2\r\n00A\r\n,3,4,5,6,7\r\n1\r\n]\r\n0\r\n\r\n" CALL
                         "Content-Length: 4\r\n\r\ntrue" GET "\r\n");
    for (int whole = 0; whole < 2; whole++) {
        int fd = dial();
        for (size_t i = 0; i < two.n; i += whole ? two.n : 1) put(fd, (struct str){two.p + i, whole ? two.n : 1});
        expect(get(fd), 200, "[1,2,3,4,5,6,7]");
        expect(get(fd), 200, "true");
        expect(get(fd), 200, "alive");
        close(fd);
    }
}

/* HTTP/1.0 and Connection: close end the connection after the answer; HEAD gets the head; Expect gets its 100. */
static void test_manners(void **state) {
    (void)state;
    static const struct str closing[] = {STR("GET /healthz HTTP/1.0\r\n\r\n"), STR(GET "Connection: x, Close\r\n\r\n")};
    for (size_t i = 0; i < 2; i++) {
        int fd = dial();
        put(fd, closing[i]);
        expect(get(fd), 200, "Connection: close\r\n");
        assert_true(at_end(fd));
        close(fd);
    }
    int fd = dial();
    put(fd, STR("HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
    char head[1000];
    ssize_t n = recv(fd, head, sizeof head, MSG_WAITALL);
    assert_true(n > 4 && memcmp(head + n - 4, "\r\n\r\n", 4) == 0 &&
                memmem(head, (size_t)n, "Content-Length: 14\r\n", 20));
    close(fd);
    fd = dial();
    put(fd, STR(CALL "Expect: 100-continue\r\nContent-Length: 1\r\n\r\n"));
    char continued[25];
    assert_int_equal(recv(fd, continued, sizeof continued, MSG_WAITALL), 25);
    assert_memory_equal(continued, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    put(fd, STR("7"));
    expect(get(fd), 200, "7");
    close(fd);
}

/* Too large a body is refused while it comes, and a client that only writes then still gets to read why. */
static void test_too_large(void **state) {
    (void)state;
    for (int chunked = 0; chunked < 2; chunked++) {
        struct buf b = {0};
        buf_str(&b,
                chunked ? STR(CALL "Transfer-Encoding: chunked\r\n\r\n") : STR(CALL "Content-Length: 3145728\r\n\r\n"));
        for (int i = 0; i < 3 << 10; i++)
            buf_json(&b, "%s%j%s", chunked ? "400\r\n" : "", (struct str){(char[1024]){0}, 1024},
                     chunked ? "\r\n" : "");
        expect(ask_raw(buf_view(&b)), 413, "too_large");
        buf_clear(&b);
        buf_str(&b, chunked ? STR(GET "X: ") : STR("GET /"));
        for (int i = 0; i < 20000; i++) buf_char(&b, 'x');
        expect(ask_raw(buf_view(&b)), 431, "too_large");
        buf_free(&b);
    }
}

/* A client that trickles gets 408; it holds nobody else up. */
static void test_slow(void **state) {
    (void)state;
    start_with((struct http_config){.request_timeout_ms = 100});
    int head = dial(), body = dial();
    put(head, STR("GET /heal"));
    put(body, STR(CALL "Content-Length: 10\r\n\r\n[1"));
    expect(ask("GET", "/healthz", "", NULL), 200, "alive");
    expect(get(head), 408, "timeout");
    expect(get(body), 408, "timeout");
    assert_true(at_end(head) && at_end(body));
    close(head);
    close(body);
    stop(NULL);
}

/* A client may leave while its request is at the engine: the reply finds nobody, the server lives on. */
static void test_gone(void **state) {
    (void)state;
    struct linger reset = {.l_onoff = 1};
    for (int i = 0; i < 20; i++) {
        int fd = dial();
        put(fd, STR("GET /v1/actors/a/hold HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        if (i % 2) setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(fd);
    }
    int half = dial();
    put(half, STR("GET /v1/actors/a/hold HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    shutdown(half, SHUT_WR);
    expect(ask("GET", "/healthz", "", NULL), 200, "alive");
    let_go(&loom);
    expect(get(half), 200, "\"key\":\"hold\"");
    close(half);
}

/* Shutting down: what waits is answered by the engine's end, what comes is refused, streams end. */
static void test_drain(void **state) {
    (void)state;
    start_with((struct http_config){0});
    int waiting = dial(), late = dial(), stream = dial(), idle = dial();
    put(stream, STR("GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    put(waiting, STR("GET /v1/actors/a/hold HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    put(late, STR("GET /v1/actors/a/hold HTTP/1.1\r\nHost: localhost\r\n"));
    expect(ask("GET", "/healthz", "", NULL), 200, "alive");
    http_drain(loom.server);
    put(late, STR("\r\n"));
    expect(get(late), 503, "stopping");
    expect(get(stream), 200, "event-stream");
    assert_true(at_end(idle));
    engine_close(&loom);
    http_stop(loom.server);
    expect(get(waiting), 200, "hold");
    close(waiting);
    close(late);
    close(stream);
    close(idle);
}

/* ---- streams ---- */

static void expect_text(int fd, const char *text) {
    struct buf b = {0};
    while (!memmem(b.p ? b.p : "", b.n, text, strlen(text)))
        if (!read_more(fd, &b, 4096)) fail_msg("the stream ended before \"%s\": %.*s", text, (int)b.n, b.p);
    buf_free(&b);
}

/* Events come with their ids as the engine tells them, from where the client says it stopped. */
static void test_stream(void **state) {
    (void)state;
    int fd = dial();
    put(fd, STR("GET /v1/stream?actor=a/k%20k&from=5 HTTP/1.1\r\nHost: localhost\r\nLoom-Namespace: n\r\n\r\n"));
    expect_text(fd, "id: 6\ndata: {\"ns\":\"n\",\"actor\":\"a/k k\",\"from\":5}\n\n");
    emit(&loom, 8, STR("{\"x\":1}"));
    expect_text(fd, "id: 8\ndata: {\"x\":1}\n\n");
    close(fd);
    fd = dial();
    put(fd, STR("GET /v1/stream?from=5 HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 41\r\n\r\n"));
    expect_text(fd, "id: 42\ndata: {\"ns\":null,\"actor\":null,\"from\":41}\n\n");
    close(fd);
    fd = dial();
    put(fd, STR("GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    expect_text(fd, "\"from\":-1}\n\n");
    close(fd);
}

/* A reader that does not read is cut off behind a whole event, once more than 1 MB waits for it. */
static void test_stream_overflow(void **state) {
    (void)state;
    int fd = dial();
    put(fd, STR("GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    expect_text(fd, "\"from\":-1}\n\n");
    struct buf big = {0}, got = {0};
    for (int i = 0; i < 10000; i++) buf_char(&big, 'x');
    int64_t sent = 0;
    for (bool on = true; on; sent++) {
        usleep(10); /* or the lock is never free for the server */
        emit(&loom, sent, buf_view(&big));
        pthread_mutex_lock(&loom.lock);
        on = loom.event_fn != NULL;
        pthread_mutex_unlock(&loom.lock);
    }
    assert_true(sent >= 100);
    while (read_more(fd, &got, 4096)) {
    }
    assert_true(got.n > HTTP_UNSENT_MAX && memcmp(got.p + got.n - 3, "x\n\n", 3) == 0);
    buf_free(&got);
    buf_free(&big);
    close(fd);
}

/* ---- who may ---- */

#define KEYS                                                                                                           \
    "{\"keys\":[{\"sha256\":\"2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683\",\"role\":\"admin\"}," \
    "{\"sha256\":\"04f8996da763b7a969b1028ee3007569eaf3a635486ddab211d512c85b9df8fb\",\"role\":\"user\","              \
    "\"namespace\":\"team\"}]}"

/* With keys nothing but the open routes goes without one; a key's role and namespace bind. */
static void test_keys(void **state) {
    (void)state;
    start_with((struct http_config){.listen = "0.0.0.0:0", .keys = STR(KEYS)});
#define ADMIN "Authorization: Bearer key\r\n"
#define USER  "Authorization: bearer user\r\n"
    static const char *const routes[] = {"/v1/actors/a/k", "/v1/actors",  "/metrics",
                                         "/v1/stream",     "/v1/modules", "/nowhere"};
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        expect(ask("GET", routes[i], "", NULL), 401, "WWW-Authenticate: Bearer\r\n");
        expect(ask("GET", routes[i], "Authorization: Bearer wrong\r\n", NULL), 401, "unauthorized");
        expect(ask("GET", routes[i], "Authorization: Basic key\r\n", NULL), 401, "unauthorized");
    }
    expect(ask("GET", "/healthz", "", NULL), 200, "alive");
    expect(ask("GET", "/v1/actors/a/k", ADMIN "Loom-Namespace: x\r\n", NULL), 200, "\"ns\":\"x\"");
    expect(ask("GET", "/v1/actors/a/k", USER, NULL), 200, "\"ns\":\"team\"");
    expect(ask("GET", "/v1/actors/a/k", USER "Loom-Namespace: team\r\n", NULL), 200, "\"ns\":\"team\"");
    expect(ask("GET", "/v1/actors/a/k", USER "Loom-Namespace: x\r\n", NULL), 403, "another namespace");
    expect(ask("PUT", "/v1/workflows/w/1", USER, "{}"), 403, "role admin");
    expect(ask("PUT", "/v1/workflows/w/1", ADMIN, "{}"), 200, "workflow.put");
    stop(NULL);
}

/* What can't be started says why and what to do. */
static void test_start_refused(void **state) {
    (void)state;
    char taken[32];
    snprintf(taken, sizeof taken, "127.0.0.1:%d", port);
    const struct {
        const char *listen, *keys, *part;
    } cases[] = {
        {"0.0.0.0:0", NULL, "--keys FILE"},
        {"[::]:0", NULL, "API keys are required"},
        {taken, NULL, "choose another port"},
        {"7100", NULL, "give ADDR:PORT"},
        {"127.0.0.1:70000", NULL, "give ADDR:PORT"},
        {"127.0.0.1:", NULL, "give ADDR:PORT"},
        {"[::1:0", NULL, "give ADDR:PORT"},
        {"127.0.0.1:0", "{", ""},
        {"127.0.0.1:0", "{}", "keys"},
        {"127.0.0.1:0", "{\"keys\":[{\"sha256\":\"00\",\"role\":\"user\"}]}", "keys[0].sha256 must be 64 hex digits"},
        {"127.0.0.1:0", "{\"keys\":[{\"role\":\"king\"}]}", "keys[0].role"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct http_config config = {.listen = cases[i].listen, .loom = &loom, .keys = str_of(cases[i].keys)};
        struct http_server *s = NULL;
        struct error err;
        assert_int_not_equal(http_start(&config, &s, &err), 0);
        assert_null(s);
        if (!strstr(err.message, cases[i].part)) fail_msg("case %zu: %s", i, err.message);
    }
}

/* ---- pages ---- */

/* Each answer of the page carries its own nonce, in the policy and wherever the page asks for it. */
static void test_page(void **state) {
    (void)state;
    struct answer a = ask("GET", "/", "", NULL);
    const char *nonce = strstr(a.head, "script-src 'nonce-");
    char page[200];
    assert_non_null(nonce);
    snprintf(page, sizeof page, "<script nonce=\"%.32s\">1</script>%.32s!", nonce + 18, nonce + 18);
    assert_string_equal(a.body, page);
    struct answer b = ask("GET", "/", "", NULL);
    assert_string_not_equal(a.body, b.body);
    buf_free(&a.text);
    buf_free(&b.text);
    expect(ask("GET", "/metrics", "", NULL), 200, "loom_messages_total 1\n");
}

/* The description is JSON, and holds every path with its parameters. */
static void test_openapi(void **state) {
    (void)state;
    struct answer a = ask("GET", "/openapi.json", "", NULL);
    yyjson_doc *doc = json_parse(str_of(a.body), NULL);
    assert_non_null(doc);
    yyjson_val *call = yyjson_doc_ptr_get(doc, "/paths/~1v1~1actors~1{type}~1{key}~1call/post");
    assert_int_equal(yyjson_arr_size(yyjson_obj_get(call, "parameters")), 7);
    yyjson_val *put = yyjson_doc_ptr_get(
        doc, "/paths/~1v1~1modules~1{name}~1{version}/put/requestBody/content/application~1wasm");
    assert_non_null(put);
    yyjson_doc_free(doc);
    buf_free(&a.text);
}

/* Whatever bytes come, the parsers only ever say yes, no or more, and stay within them. */
static void test_parsers(void **state) {
    (void)state;
    const struct str seeds[] = {STR(CALL "Content-Length: 4\r\nConnection: a,b\r\n\r\n"),
                                STR("4\r\nabcd\r\n0A\r\n0123456789\r\n0\r\n\r\n"), STR("/%41%e4%zz?a=%20+b")};
    uint64_t random = 42;
    for (int round = 0; round < 30000; round++) {
        struct str seed = seeds[round % 3];
        char *bytes = str_dup(seed);
        for (int k = 0; k < 1 + round % 4; k++) {
            random = random * UINT64_C(6364136223846793005) + 1;
            bytes[(random >> 33) % seed.n] = "\r\n\0 :;%0Af,-/G"[(random >> 20) % 14];
        }
        struct str text = {bytes, seed.n - (random >> 40) % 4};
        char *exact = memcpy(mem_alloc(text.n), text.p, text.n);
        text.p = exact;
        struct http_head head;
        struct http_chunks chunks = {0};
        struct error err;
        assert_true(http_head_end(text) <= text.n);
        http_head_parse(text, &head, &err);
        http_chunks_decode(&chunks, exact, text.n);
        assert_true(chunks.out <= chunks.in && chunks.in <= text.n);
        http_unescape(&text, true);
        free(exact);
        free(bytes);
    }
}

int main(void) {
#define WITH_SERVER(test) cmocka_unit_test_setup_teardown(test, start, stop)
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_call),       WITH_SERVER(test_fields),        WITH_SERVER(test_module),
        WITH_SERVER(test_refusals),   WITH_SERVER(test_problems),      WITH_SERVER(test_rebinding),
        WITH_SERVER(test_malformed),  WITH_SERVER(test_pieces),        WITH_SERVER(test_manners),
        WITH_SERVER(test_too_large),  cmocka_unit_test(test_slow),     WITH_SERVER(test_gone),
        cmocka_unit_test(test_drain), WITH_SERVER(test_stream),        WITH_SERVER(test_stream_overflow),
        cmocka_unit_test(test_keys),  WITH_SERVER(test_start_refused), WITH_SERVER(test_page),
        WITH_SERVER(test_openapi),    cmocka_unit_test(test_parsers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
