/* routes.c: the one table of routes. Matching, arguments, limits, answers and /openapi.json all come from it: a new route is a
 * row. A row names an op of the operator's op table (loom_ops("operator")) or a function of this folder.
 */
#include "http/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void answer_health(struct http_conn *c);
static void answer_metrics(struct http_conn *c);
static void answer_openapi(struct http_conn *c);
static void answer_page(struct http_conn *c);

/* A route of the engine, and one of this folder. */
#define ENGINE(method_, path_, fields_, op_, body_, query_, ok_, doc_, ...)                                        \
    {                                                                                                              \
        .method = method_, .path = path_, .fields = fields_, .op = op_, .body = body_, .query = query_, .ok = ok_, \
        .doc = doc_, __VA_ARGS__                                                                                   \
    }
#define LOCAL(path_, local_, makes_, query_, doc_, ...)                                                               \
    {                                                                                                                 \
        .method = "GET", .path = path_, .fields = "", .local = local_, .makes = makes_, .query = query_, .ok = "200", \
        .doc = doc_, __VA_ARGS__                                                                                      \
    }

#define ACTOR     "/v1/actors/{type}/{key}"
#define VERSION   "/{name}/{version}"
#define STORE_DOC "Store it; other content under the same version is refused unless replace"

/* Rows of one path stand together. */
static const struct http_route routes[] = {
    ENGINE("POST", ACTOR "/call", "tk", "call", BODY_JSON, "timeoutMs priority ttlMs", "200 202",
           "Deliver a message and wait for the actor's reply; 202 when it takes longer than timeoutMs", .keyed = true),
    ENGINE("POST", ACTOR "/send", "tk", "send", BODY_JSON_OR_NULL, "delayMs priority ttlMs", "202",
           "Deliver a message; answers once it is durable", .keyed = true),
    ENGINE("POST", ACTOR "/events/{eventType}", "tki", "event", BODY_JSON_OR_NULL, "delayMs priority ttlMs", "202",
           "Deliver an event; answers once it is durable", .keyed = true),
    ENGINE("GET", ACTOR, "tk", "get", BODY_NONE, "", "200", "The actor document"),
    ENGINE("GET", ACTOR "/state", "tk", "state", BODY_NONE, "at", "200", "The actor's state, now or at a past moment"),
    ENGINE("GET", ACTOR "/journal", "tk", "journal", BODY_NONE, "from limit", "200", "The actor's journal"),
    ENGINE("GET", ACTOR "/messages/{messageId}", "tki", "message", BODY_NONE, "", "200",
           "A message's status and reply"),
    ENGINE("POST", ACTOR "/cancel", "tk", "cancel", BODY_JSON_OR_NULL, "", "202", "Cancel its turn: {\"reason\"}"),
    ENGINE("POST", ACTOR "/resume", "tk", "resume", BODY_JSON_OR_NULL, "", "202", "Resume it with the body as data"),
    ENGINE("POST", ACTOR "/fork", "tk", "fork", BODY_JSON, "", "202",
           "Copy it as of a journal entry: {\"from\": cursor, \"key\": new key}"),
    ENGINE("GET", "/v1/actors", "", "actors", BODY_NONE, "type status limit after", "200", "Find actors"),
    ENGINE("GET", "/v1/modules", "", "module.list", BODY_NONE, "", "200", "List the modules"),
    ENGINE("PUT", "/v1/modules" VERSION, "tk", "module.put", BODY_WASM, "replace", "200 201", STORE_DOC),
    ENGINE("GET", "/v1/activities", "", "definitions", BODY_NONE, "", "200", "List the activities", .type = "activity"),
    ENGINE("GET", "/v1/activities" VERSION, "kv", "definition", BODY_NONE, "", "200", "An activity",
           .type = "activity"),
    ENGINE("PUT", "/v1/activities" VERSION, "tk", "activity.put", BODY_JSON, "replace", "200 201", STORE_DOC),
    ENGINE("GET", "/v1/actor-types", "", "definitions", BODY_NONE, "", "200", "List the actor types",
           .type = "actor-type"),
    ENGINE("GET", "/v1/actor-types" VERSION, "kv", "definition", BODY_NONE, "", "200", "An actor type",
           .type = "actor-type"),
    ENGINE("PUT", "/v1/actor-types" VERSION, "tk", "actor-type.put", BODY_JSON, "replace", "200 201", STORE_DOC),
    ENGINE("GET", "/v1/workflows", "", "definitions", BODY_NONE, "", "200", "List the workflows", .type = "workflow"),
    ENGINE("GET", "/v1/workflows" VERSION, "kv", "definition", BODY_NONE, "", "200", "A workflow", .type = "workflow"),
    ENGINE("PUT", "/v1/workflows" VERSION, "tk", "workflow.put", BODY_JSON, "replace", "200 201", STORE_DOC),
    ENGINE("POST", "/v1/workflows/{name}/runs", "t", "run", BODY_JSON_OR_NULL, "key version", "202",
           "Start a run of a workflow; the body is its input", .keyed = true),
    ENGINE("GET", "/v1/workflows/{name}/runs/{id}", "tk", "get", BODY_NONE, "", "200", "A run", .type = "workflow."),
    ENGINE("POST", "/v1/debug/{verb}", "t", "debug", BODY_JSON_OR_NULL, "actor delayMs", "200",
           "Examine the store: digest, verify, replay, dump; or make a worker fail that allows it: panic, stall",
           .all = true),
    ENGINE("GET", "/readyz", "", "ready", BODY_NONE, "", "200", "Requests are taken", .open = true),
    LOCAL("/healthz", answer_health, NULL, "", "The process lives", .open = true),
    LOCAL("/metrics", answer_metrics, "text/plain; version=0.0.4", "", "Metrics for Prometheus"),
    LOCAL("/openapi.json", answer_openapi, NULL, "", "This description", .open = true),
    LOCAL("/", answer_page, "text/html; charset=utf-8", "", "The dashboard", .open = true),
    LOCAL("/v1/stream", http_stream_open, "text/event-stream", "actor from",
          "Journal entries as server-sent events; the header Last-Event-ID resumes"),
};
enum { ROUTES = sizeof routes / sizeof *routes };

static const struct query_param {
    const char *name;
    enum { TEXT, INTEGER, INTEGER32, FLAG } kind;
    size_t offset; /* in struct loom_request */
    int64_t min, max;
    const char *doc;
} params[] = {
#define DAYS(n)     ((n)*INT64_C(86400000))
#define FIELD(name) offsetof(struct loom_request, name)
    {"timeoutMs", INTEGER, FIELD(timeout_ms), 1, DAYS(1), "Answer 202 after this long; 30,000 otherwise"},
    {"delayMs", INTEGER, FIELD(delay_ms), 0, DAYS(36500), "Deliver it this much later"},
    {"ttlMs", INTEGER, FIELD(ttl_ms), 1, DAYS(36500), "Give it up when it was not handled by then"},
    {"priority", INTEGER32, FIELD(priority), INT32_MIN, INT32_MAX, "Lower comes first; 0 otherwise"},
    {"at", INTEGER, FIELD(at), 0, INT64_MAX, "A journal cursor"},
    {"from", INTEGER, FIELD(from), 0, INT64_MAX, "A journal cursor"},
    {"limit", INTEGER, FIELD(limit), 1, 10000, "How many at most"},
    {"after", TEXT, FIELD(after), 0, 0, "The `next` of the page before"},
    {"status", TEXT, FIELD(status), 0, 0, "idle, running, suspended, paused, completed, failed or cancelled"},
    {"type", TEXT, FIELD(type), 0, 0, "An actor type"},
    {"key", TEXT, FIELD(key), 0, 0, "The run's id; otherwise the Idempotency-Key, or one that Loom makes"},
    {"version", TEXT, FIELD(version), 0, 0, "The last deployed one otherwise"},
    {"actor", TEXT, FIELD(key), 0, 0, "type/key; all actors otherwise"},
    {"replace", FLAG, FIELD(replace), 0, 0, "true: the version may get other content"},
};
enum { PARAMS = sizeof params / sizeof *params };

/* ---- matching ---- */

/* Does the path fit the pattern? The {parts} go to vars, still escaped. */
static bool path_matches(const char *pattern, struct str path, struct str *vars) {
    const char *p = path.p, *end = path.p + path.n;
    while (*pattern) {
        if (*pattern == '{') {
            const char *slash = memchr(p, '/', (size_t)(end - p)), *stop = slash ? slash : end;
            *vars++ = (struct str){p, (size_t)(stop - p)};
            if (stop == p) return false;
            p = stop;
            pattern = strchr(pattern, '}') + 1;
        } else if (p == end || *p++ != *pattern++) {
            return false;
        }
    }
    return p == end;
}

/* NULL when there is none; `allow` then is the header that lists the methods the path does know, if it is known. */
static const struct http_route *find_route(struct str method, struct str path, struct str *vars, struct buf *allow) {
    if (str_eq(method, STR("HEAD"))) method = STR("GET");
    for (const struct http_route *r = routes; r < routes + ROUTES; r++) {
        if (!path_matches(r->path, path, vars)) continue;
        if (str_eq(method, str_of(r->method))) {
            buf_clear(allow);
            return r;
        }
        buf_json(allow, "%s%s", allow->n ? ", " : "Allow: ", r->method);
    }
    if (allow->n) buf_str(allow, STR("\r\n"));
    return NULL;
}

static bool no_route(struct http_conn *c) {
    bool known = c->extra.n > 0;
    struct str method = c->head.method, path = c->head.path;
    http_problem(c, 0, known ? LOOM_E_METHOD_NOT_ALLOWED : LOOM_E_NOT_FOUND,
                 known ? "%.*s is not a method of %.*s; the header Allow lists those it has"
                       : "There is no route %.*s %.*s; GET /openapi.json describes all of them",
                 (int)method.n, method.p, (int)path.n, path.p);
    return false;
}

/* ---- arguments ---- */

static bool read_path(struct http_conn *c, struct str *vars) {
    const struct http_route *r = c->route;
    struct loom_request *q = &c->request;
    if (r->type) q->type = (struct loom_str){r->type, strlen(r->type)};
    for (const char *f = r->fields; *f; f++, vars++) {
        struct str v = *vars;
        if (!http_unescape(&v, false) || memchr(v.p, '/', v.n)) {
            http_problem(c, 0, LOOM_E_INVALID_ARGUMENT,
                         "A part of the path is not percent-encoded UTF-8 without control characters and /");
            return false;
        }
        if (*f == 't' && r->type) v = arena_json(&c->arena, "%s%j", r->type, v);
        struct loom_str *field = *f == 't' ? &q->type : *f == 'k' ? &q->key : *f == 'v' ? &q->version : &q->id;
        *field = (struct loom_str){v.p, v.n};
    }
    return true;
}

static bool list_has(const char *list, const char *word) {
    size_t n = strlen(word);
    for (const char *p = list; (p = strstr(p, word)) != NULL; p += n)
        if ((p == list || p[-1] == ' ') && (p[n] == ' ' || p[n] == 0)) return true;
    return false;
}

static bool set_param(struct loom_request *q, const struct query_param *p, struct str value) {
    void *field = (char *)q + p->offset;
    int64_t n = 0;
    if (p->kind == TEXT) {
        *(struct loom_str *)field = (struct loom_str){value.p, value.n};
        return true;
    }
    if (p->kind == FLAG) {
        *(bool *)field = str_eq(value, STR("true"));
        return *(bool *)field || str_eq(value, STR("false"));
    }
    if (!http_integer(value, &n) || n < p->min || n > p->max) return false;
    if (p->kind == INTEGER32)
        *(int32_t *)field = (int32_t)n;
    else
        *(int64_t *)field = n;
    return true;
}

static bool bad_param(struct http_conn *c, struct str name, const struct query_param *p) {
    const char *known = c->route->query;
    if (!p)
        http_problem(c, 0, LOOM_E_INVALID_ARGUMENT, "Unknown query parameter %.*s; this route %s%s", (int)name.n,
                     name.p, *known ? "takes: " : "takes none", known);
    else if (p->kind == INTEGER || p->kind == INTEGER32)
        http_problem(c, 0, LOOM_E_INVALID_ARGUMENT,
                     "The query parameter %s must come once and be an integer from %lld to %lld", p->name,
                     (long long)p->min, (long long)p->max);
    else
        http_problem(c, 0, LOOM_E_INVALID_ARGUMENT, "The query parameter %s must come once and be %s", p->name,
                     p->kind == FLAG ? "true or false" : "percent-encoded text");
    return false;
}

static bool read_query(struct http_conn *c) {
    unsigned seen = 0;
    struct str rest = c->head.query;
    while (rest.n) {
        struct str value = http_take_until(&rest, '&'), name = http_take_until(&value, '=');
        const struct query_param *p = NULL;
        bool readable = http_unescape(&name, true) && http_unescape(&value, true);
        for (size_t i = 0; i < PARAMS; i++)
            if (str_eq(name, str_of(params[i].name)) && list_has(c->route->query, params[i].name)) p = &params[i];
        unsigned bit = p ? 1u << (p - params) : 0;
        if (!p || !readable || (seen & bit) || !set_param(&c->request, p, value)) return bad_param(c, name, p);
        seen |= bit;
    }
    return true;
}

/* An id from a header: 1 to 256 printable ASCII characters. */
static bool read_id(struct http_conn *c, enum http_header header, const char *name, struct loom_str *out) {
    struct str v = c->head.headers[header];
    bool good = v.n > 0 && v.n <= 256;
    for (size_t i = 0; good && i < v.n; i++) good = v.p[i] >= 0x20 && v.p[i] < 0x7f;
    if (v.p && !good) {
        http_problem(c, 0, LOOM_E_INVALID_ARGUMENT, "The header %s must be 1 to 256 printable ASCII characters", name);
        return false;
    }
    *out = (struct loom_str){v.p, v.n};
    return true;
}

/* 00-TRACE-SPAN-FLAGS in lower-case hex; as the specification wants, anything else is as if it had not come. */
static void read_traceparent(struct http_conn *c) {
    static const char shape[] = "00-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-xxxxxxxxxxxxxxxx-xx";
    struct str v = c->head.headers[HTTP_TRACEPARENT];
    if (v.n != sizeof shape - 1) return;
    for (size_t i = 0; i < v.n; i++) {
        bool hex = (v.p[i] >= '0' && v.p[i] <= '9') || (v.p[i] >= 'a' && v.p[i] <= 'f');
        if (shape[i] == 'x' ? !hex : v.p[i] != shape[i]) return;
    }
    c->request.traceparent = (struct loom_str){v.p, v.n};
}

static bool read_headers(struct http_conn *c) {
    struct loom_request *q = &c->request;
    bool event = q->id.p != NULL; /* there the path's id is the event's type */
    struct loom_str ignored, *id = !c->route->keyed ? &ignored : event ? &q->event_id : &q->id;
    read_traceparent(c);
    return read_id(c, HTTP_CORRELATION, "Loom-Correlation-Id", &q->correlation) &&
           read_id(c, HTTP_IDEMPOTENCY_KEY, "Idempotency-Key", id);
}

static bool check_body(struct http_conn *c) {
    const struct http_head *h = &c->head;
    struct str type = h->headers[HTTP_CONTENT_TYPE];
    if (!h->chunked && !h->content_length) return true;
    const char *want = c->route->body == BODY_WASM ? "application/wasm" : "application/json";
    struct str media = http_take_until(&type, ';');
    if (c->route->body == BODY_NONE)
        http_problem(c, 0, LOOM_E_INVALID_ARGUMENT, "%s %s takes no body", c->route->method, c->route->path);
    else if (!http_same(http_trim(media), want))
        http_problem(c, 0, LOOM_E_UNSUPPORTED_MEDIA, "The body must come with Content-Type: %s", want);
    else if (h->content_length > http_body_max(c))
        http_too_large(c);
    else
        return true;
    return false;
}

size_t http_body_max(const struct http_conn *c) {
    return c->route->body == BODY_WASM ? HTTP_MODULE_MAX : HTTP_BODY_MAX;
}

void http_too_large(struct http_conn *c) {
    http_problem(c, 0, LOOM_E_TOO_LARGE, "The body is larger than the %zu bytes that this route takes",
                 http_body_max(c));
}

void http_stopping(struct http_conn *c) {
    http_problem(c, 0, LOOM_E_STOPPING, "This worker is shutting down; send the request again");
}

bool http_admit(struct http_conn *c) {
    struct str vars[3];
    c->request = (struct loom_request){.at = -1};
    const struct http_route *r = c->route = find_route(c->head.method, c->head.path, vars, &c->extra);
    if (!http_authorize(c, r)) return false;
    if (!r) return no_route(c);
    if (r->local == http_stream_open) c->request.from = -1;
    return read_query(c) && read_path(c, vars) && read_headers(c) && check_body(c);
}

/* ---- to the engine and back ---- */

/* On the engine's thread. */
static void on_reply(void *ctx, const struct loom_reply *reply) {
    struct http_conn *c = ctx;
    buf_clear(&c->inbox);
    buf_add(&c->inbox, reply->message_id.p, reply->message_id.n);
    buf_add(&c->inbox, reply->body.p, reply->body.n);
    c->id_n = reply->message_id.n;
    c->status = reply->status;
    pthread_mutex_lock(&c->server->lock);
    http_queue(c);
    pthread_mutex_unlock(&c->server->lock);
}

void http_dispatch(struct http_conn *c, struct str body) {
    const struct http_route *r = c->route;
    if (r->local) {
        r->local(c);
    } else if (c->server->draining) {
        http_stopping(c);
    } else if (body.n == 0 && (r->body == BODY_JSON || r->body == BODY_WASM)) {
        http_problem(c, 0, LOOM_E_INVALID_ARGUMENT, "The body is empty; %s %s takes %s", r->method, r->path,
                     r->body == BODY_WASM ? "a WASM module" : "JSON, for example {} or null");
    } else {
        if (body.n == 0 && r->body == BODY_JSON_OR_NULL) body = STR("null");
        c->request.op = r->op;
        c->request.body = (struct loom_str){body.p, body.n};
        c->request.reply = on_reply;
        c->request.ctx = c;
        http_phase(c, HTTP_AT_ENGINE);
        loom_submit(c->server->loom, &c->request);
    }
}

void http_answer(struct http_conn *c) {
    struct str id = {c->inbox.p, c->id_n}, body = {c->inbox.p + c->id_n, c->inbox.n - c->id_n};
    if (id.n) buf_json(&c->extra, "Loom-Message-Id: %j\r\n", id);
    if (c->status < 400) {
        http_respond(c, c->status, NULL, body);
        return;
    }
    struct error e = {.code = "internal", .message = "The engine gave no reason"};
    yyjson_doc *doc = yyjson_read(body.p, body.n, 0);
    yyjson_val *root = yyjson_doc_get_root(doc);
    struct str code = json_str(root, "code"), message = json_str(root, "message");
    if (code.p) snprintf(e.code, sizeof e.code, "%.*s", (int)code.n, code.p);
    if (message.p) snprintf(e.message, sizeof e.message, "%.*s", (int)message.n, message.p);
    e.retryable = json_bool(root, "retryable", false);
    yyjson_doc_free(doc);
    http_fail(c, c->status, &e);
}

void http_fail(struct http_conn *c, int status, const struct error *e) {
    struct buf body = {0};
    struct loom_str trace = c->request.traceparent, correlation = c->request.correlation;
    buf_json(&body, "{\"type\":\"about:blank\",\"title\":%z,\"status\":%d,\"detail\":%z,\"code\":%z,\"retryable\":%b",
             error_kind(str_of(e->code))->title, (int64_t)status, e->message, e->code, e->retryable);
    if (correlation.p) buf_json(&body, ",\"correlationId\":%q", (struct str){correlation.p, correlation.n});
    if (trace.p) buf_json(&body, ",\"traceId\":%q", (struct str){trace.p + 3, 32});
    buf_char(&body, '}');
    if (status == 429 || status == 503) buf_str(&c->extra, STR("Retry-After: 1\r\n"));
    http_respond(c, status, "application/problem+json", buf_view(&body));
    buf_free(&body);
}

void http_problem(struct http_conn *c, int status, int code, const char *fmt, ...) {
    struct error e;
    char detail[sizeof e.message];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(detail, sizeof detail, fmt, ap);
    va_end(ap);
    error_set(&e, code, "%s", detail);
    http_fail(c, status ? status : error_kind(str_of(e.code))->status, &e);
}

/* ---- answers of this folder ---- */

static void answer_health(struct http_conn *c) {
    http_respond(c, 200, NULL, STR("{\"alive\":true}"));
}

static void answer_metrics(struct http_conn *c) {
    char *text = loom_metrics();
    http_respond(c, 200, NULL, str_of(text));
    free(text);
}

/* The page's script and style run by a nonce made for this answer; it stands wherever the page says {{nonce}}. */
static void answer_page(struct http_conn *c) {
    struct str rest = c->server->page, mark = STR("{{nonce}}");
    if (!rest.p) {
        http_problem(c, 0, LOOM_E_NOT_FOUND, "This worker has no dashboard; GET /openapi.json describes the routes");
        return;
    }
    uint8_t random[16];
    char nonce[33];
    c->server->env->random(c->server->env, random, sizeof random);
    hex_encode(random, sizeof random, nonce);
    struct buf page = {0};
    for (const char *at; (at = memmem(rest.p, rest.n, mark.p, mark.n)) != NULL;) {
        buf_json(&page, "%j%s", (struct str){rest.p, (size_t)(at - rest.p)}, nonce);
        rest = (struct str){at + mark.n, rest.n - (size_t)(at - rest.p) - mark.n};
    }
    buf_str(&page, rest);
    buf_json(
        &c->extra,
        "Content-Security-Policy: default-src 'none'; script-src 'nonce-%s'; style-src 'nonce-%s'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\nReferrer-Policy: "
        "no-referrer\r\n",
        nonce, nonce);
    http_respond(c, 200, NULL, buf_view(&page));
    buf_free(&page);
}

static void openapi_parameter(struct buf *b, const char *in, struct str name, const char *schema, const char *doc) {
    bool path = strcmp(in, "path") == 0;
    buf_json(b, "%s{\"name\":%q,\"in\":%z,\"required\":%b,\"schema\":%s,\"description\":%z}",
             b->p[b->n - 1] == '[' ? "" : ",", name, in, path, schema, doc);
}

static void openapi_parameters(struct buf *b, const struct http_route *r) {
    static const char *const schemas[] = {"{\"type\":\"string\"}", NULL, NULL, "{\"type\":\"boolean\"}"};
    buf_str(b, STR(",\"parameters\":["));
    for (const char *p = r->path; (p = strchr(p, '{')) != NULL;) {
        const char *end = strchr(++p, '}');
        openapi_parameter(b, "path", (struct str){p, (size_t)(end - p)}, "{\"type\":\"string\",\"minLength\":1}",
                          "Percent-encoded");
    }
    for (size_t i = 0; i < PARAMS; i++) {
        const struct query_param *p = &params[i];
        char range[120];
        snprintf(range, sizeof range, "{\"type\":\"integer\",\"minimum\":%lld,\"maximum\":%lld}", (long long)p->min,
                 (long long)p->max);
        if (list_has(r->query, p->name))
            openapi_parameter(b, "query", str_of(p->name), schemas[p->kind] ? schemas[p->kind] : range, p->doc);
    }
    if (r->keyed)
        openapi_parameter(b, "header", STR("Idempotency-Key"),
                          "{\"type\":\"string\",\"minLength\":1,\"maxLength\":256}",
                          "The message id: repeating the request with it is safe");
    if (r->op && !r->open) openapi_parameter(b, "header", STR("Loom-Namespace"), schemas[TEXT], "`default` otherwise");
    buf_char(b, ']');
}

static void openapi_operation(struct buf *b, const struct http_route *r) {
    char method[8] = {0};
    for (size_t i = 0; r->method[i]; i++) method[i] = (char)(r->method[i] | 0x20);
    buf_json(b, "\"%s\":{\"summary\":%z", method, r->doc);
    openapi_parameters(b, r);
    if (r->body)
        buf_json(b, ",\"requestBody\":{\"required\":%b,\"content\":{%z:{}}}", r->body != BODY_JSON_OR_NULL,
                 r->body == BODY_WASM ? "application/wasm" : "application/json");
    buf_str(b, STR(",\"responses\":{"));
    for (const char *p = r->ok; *p; p += p[3] ? 4 : 3)
        buf_json(b, "\"%j\":{\"description\":\"Done\",\"content\":{%z:{}}},", (struct str){p, 3},
                 r->makes ? r->makes : "application/json");
    buf_str(
        b,
        STR("\"default\":{\"description\":\"Refused or failed\",\"content\":{\"application/problem+json\":{\"schema\":"
            "{\"$ref\":\"#/components/schemas/Problem\"}}}}}"));
    if (r->open) buf_str(b, STR(",\"security\":[]"));
    buf_char(b, '}');
}

static void answer_openapi(struct http_conn *c) {
    struct buf b = {0};
    buf_json(&b,
             "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"Loom\",\"version\":%z},\"security\":[{},{\"key\":[]}],"
             "\"paths\":{",
             LOOM_VERSION);
    for (const struct http_route *r = routes; r < routes + ROUTES; r++) {
        bool same = r > routes && strcmp(r->path, r[-1].path) == 0;
        if (same)
            buf_char(&b, ',');
        else
            buf_json(&b, "%s%z:{", r > routes ? "}," : "", r->path);
        openapi_operation(&b, r);
    }
    buf_str(&b,
            STR("}},\"components\":{\"securitySchemes\":{\"key\":{\"type\":\"http\",\"scheme\":\"bearer\"}},"
                "\"schemas\":{\"Problem\":"
                "{\"type\":\"object\",\"required\":[\"type\",\"title\",\"status\",\"detail\",\"code\",\"retryable\"],"
                "\"properties\":"
                "{\"type\":{\"type\":\"string\"},\"title\":{\"type\":\"string\"},\"status\":{\"type\":\"integer\"},"
                "\"detail\":{\"type\":\"string\"},\"code\":{\"type\":\"string\"},\"retryable\":{\"type\":\"boolean\"},"
                "\"correlationId\":{\"type\":\"string\"},\"traceId\":{\"type\":\"string\"}}}}}}"));
    http_respond(c, 200, NULL, buf_view(&b));
    buf_free(&b);
}
