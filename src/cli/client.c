/* client.c: the door to a Loom, and the commands that only go through it.
 *
 * A command fills a loom_request, as an embedding program would. In process it goes to loom_submit; over HTTP the table
 * `routes` says which method and path the op has, with the fields of the request in path and query.
 */
#include "cli/cli.h"
#include <curl/curl.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* %t type · %k key · %i id · behind ?: options that go into the query */
static const struct route {
    const char *op, *method, *path;
} routes[] = {
    {"call", "POST", "/v1/actors/%t/%k/call?timeoutMs&priority&ttlMs"},
    {"send", "POST", "/v1/actors/%t/%k/send?delayMs&priority&ttlMs"},
    {"event", "POST", "/v1/actors/%t/%k/events/%i?delayMs&priority&ttlMs"},
    {"message", "GET", "/v1/actors/%t/%k/messages/%i"},
    {"get", "GET", "/v1/actors/%t/%k"},
    {"state", "GET", "/v1/actors/%t/%k/state?at"},
    {"journal", "GET", "/v1/actors/%t/%k/journal?from&limit"},
    {"cancel", "POST", "/v1/actors/%t/%k/cancel"},
    {"resume", "POST", "/v1/actors/%t/%k/resume"},
    {"fork", "POST", "/v1/actors/%t/%k/fork"},
    {"actors", "GET", "/v1/actors?type&status&limit&after"},
    {"module.put", "PUT", "/v1/modules/%t/%k?replace"},
    {"module.list", "GET", "/v1/modules"},
    {"activity.put", "PUT", "/v1/activities/%t/%k?replace"},
    {"actor-type.put", "PUT", "/v1/actor-types/%t/%k?replace"},
    {"workflow.put", "PUT", "/v1/workflows/%t/%k?replace"},
    {"definitions", "GET", "/v1/workflows"},
    {"run", "POST", "/v1/workflows/%t/runs?key&version"},
    {"debug", "POST", "/v1/debug/%t?actor&delayMs"},
    {"ready", "GET", "/readyz"},
};

/* ---- in process ---- */
struct waiting {
    sem_t come;
    struct answer *out;
};

static void on_reply(void *ctx, const struct loom_reply *reply) {
    struct waiting *w = ctx;
    buf_add(&w->out->body, reply->body.p, reply->body.n);
    w->out->status = reply->status;
    sem_post(&w->come);
}

static void ask_here(struct loom *l, struct loom_request r, struct answer *out) {
    struct waiting w = {.out = out};
    sem_init(&w.come, 0, 0);
    r.reply = on_reply;
    r.ctx = &w;
    loom_submit(l, &r);
    while (sem_wait(&w.come))
        ;
    sem_destroy(&w.come);
}

/* ---- over HTTP ---- */
static void add_escaped(struct buf *out, struct loom_str s) {
    char *text = s.n ? curl_easy_escape(NULL, s.p, (int)s.n) : NULL;
    buf_str(out, str_of(text));
    curl_free(text);
}

/* One name=value of the query, when the route takes it and it is set. */
static void add_query(struct buf *url, const char *taken, const char *name, struct str value) {
    const char *at = strstr(taken, name);
    size_t n = strlen(name);
    if (!at || (at[n] && at[n] != '&') || !value.n) return;
    buf_json(url, "%s%s=", memchr(url->p, '?', url->n) ? "&" : "?", name);
    add_escaped(url, loom_of(value));
}

/* An option's value as text; empty when it is not set. */
static struct str option_text(const struct option *q, const struct options *o, struct arena *a) {
    const char *field = (const char *)o + q->at;
    switch (q->kind) {
    case OPTION_TEXT: return STR_NONE;
    case OPTION_STR: return *(const struct str *)field;
    case OPTION_BOOL: return *(const bool *)field ? STR("true") : STR_NONE;
    case OPTION_INT32:
        return *(const int32_t *)field ? arena_json(a, "%d", (int64_t) * (const int32_t *)field) : STR_NONE;
    case OPTION_INT: return *(const int64_t *)field > 0 ? arena_json(a, "%d", *(const int64_t *)field) : STR_NONE;
    }
    return STR_NONE;
}

static void add_url(struct buf *url, const struct door *d, const struct route *route, const struct loom_request *r) {
    struct arena a = {0};
    struct options *o = arena_alloc(&a, sizeof *o);
    o->request = *r;
    const char *p = route->path;
    buf_str(url, str_of(d->url));
    while (url->n && url->p[url->n - 1] == '/') url->n--;
    for (; *p && *p != '?'; p++)
        if (*p != '%')
            buf_char(url, *p);
        else
            p++, add_escaped(url, *p == 't' ? r->type : *p == 'k' ? r->key : r->id);
    for (const struct option *q = options; q->name; q++)
        if (q->query) add_query(url, p, q->query, option_text(q, o, &a));
    add_query(url, p, "key", (struct str){r->key.p, r->key.n});
    add_query(url, p, "actor", (struct str){r->key.p, r->key.n});
    buf_char(url, '\0');
    arena_free(&a);
}

static size_t on_body(char *p, size_t size, size_t n, void *ctx) {
    buf_add(ctx, p, size * n);
    return size * n;
}

static void add_header(struct curl_slist **list, const char *name, struct loom_str value) {
    struct buf line = {0};
    if (!value.n) return;
    buf_json(&line, "%s: %j", name, (struct str){value.p, value.n});
    buf_char(&line, '\0');
    *list = curl_slist_append(*list, line.p);
    buf_free(&line);
}

static struct curl_slist *headers(const struct door *d, const struct loom_request *r) {
    struct curl_slist *list = curl_slist_append(NULL, "Expect:");
    bool module = strcmp(r->op, "module.put") == 0;
    list = curl_slist_append(list, module ? "Content-Type: application/wasm" : "Content-Type: application/json");
    add_header(&list, "Loom-Namespace", r->ns);
    add_header(&list, "Idempotency-Key", strcmp(r->op, "event") ? r->id : r->event_id);
    struct buf bearer = {0};
    if (d->key) buf_json(&bearer, "Bearer %s", d->key);
    add_header(&list, "Authorization", (struct loom_str){bearer.p, bearer.n});
    buf_free(&bearer);
    return list;
}

static void ask_there(const struct door *d, const struct loom_request *r, struct answer *out) {
    const struct route *route = routes;
    while (strcmp(route->op, r->op)) route++;
    struct buf url = {0};
    add_url(&url, d, route, r);
    struct curl_slist *list = headers(d, r);
    CURL *curl = curl_easy_init();
    curl_easy_setopt(curl, CURLOPT_URL, url.p);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, list);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, route->method);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, 5000L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &out->body);
    if (strcmp(route->method, "GET")) {
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->body.n);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, r->body.n ? r->body.p : "");
    }
    long status = 0;
    if (curl_easy_perform(curl) == CURLE_OK) curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_cleanup(curl);
    curl_slist_free_all(list);
    buf_free(&url);
    out->status = (int)status;
}

/* ---- the door ---- */
struct door door_remote(const struct cli *c) {
    return (struct door){.url = c->o.url ? c->o.url : "http://127.0.0.1:7100", .key = c->o.key};
}

bool ask(const struct door *d, const struct loom_request *r, struct answer *out) {
    *out = (struct answer){0};
    if (d->loom)
        ask_here(d->loom, *r, out);
    else
        ask_there(d, r, out);
    out->doc = yyjson_read(out->body.p, out->body.n, YYJSON_READ_BIGNUM_AS_RAW);
    out->root = yyjson_doc_get_root(out->doc);
    return out->status >= 200 && out->status <= 299;
}

bool ask_ok(const struct door *d, const struct loom_request *r, struct answer *out) {
    bool ok = ask(d, r, out);
    if (!ok) print_problem(d, NULL, out->status, out->root);
    return ok;
}

void answer_free(struct answer *a) {
    yyjson_doc_free(a->doc);
    buf_free(&a->body);
}

void print_problem(const struct door *d, const char *place, int status, yyjson_val *error) {
    struct str code = json_str(error, "code"), message = json_str(error, "message"), detail = json_str(error, "detail");
    message = message.p ? message : detail.p ? detail : STR("the answer is not one of Loom's");
    if (status == 0)
        fail("no Loom answers at %s; start one with `loom dev`, or say where it is with --url", d->url);
    else
        fail("%s%s%.*s (%.*s)%s", place ? place : "", place ? ": " : "", (int)message.n, message.p, (int)code.n,
             code.p ? code.p : "", status == 401 ? "; give the API key with --key or LOOM_API_KEY" : "");
}

static struct loom_str text(const char *z) {
    return loom_of(str_of(z));
}

struct loom_request request_of(const struct cli *c, const char *op) {
    struct loom_request r = c->o.request;
    r.op = op;
    return r;
}

/* ---- commands on one actor ---- */

void request_actor(struct loom_request *r, struct str id) {
    const char *slash = memchr(id.p, '/', id.n);
    r->type = (struct loom_str){id.p, slash ? (size_t)(slash - id.p) : id.n};
    r->key = slash ? (struct loom_str){slash + 1, id.n - r->type.n - 1} : (struct loom_str){0};
}

static struct loom_request actor_request(const struct cli *c, const char *op) {
    struct loom_request r = request_of(c, op);
    request_actor(&r, str_of(c->args[0]));
    return r;
}

/* Asks and prints the answer: JSON, or for people `done`. */
static int ask_and_print(const struct cli *c, const struct loom_request *r, const char *done) {
    struct door d = door_remote(c);
    struct answer a;
    bool ok = ask_ok(&d, r, &a);
    struct str id = json_str(a.root, "messageId");
    if (ok && c->o.json)
        print_json(a.root, false);
    else if (ok)
        printf("%s✓%s %s%s%.*s\n", paint(GREEN), paint(PLAIN), done, id.n ? ", message " : "", (int)id.n,
               id.n ? id.p : "");
    answer_free(&a);
    return ok ? EXIT_OK : EXIT_FAILED;
}

/* One command for all ops that change an actor and answer nothing to see. */
int command_operate(struct cli *c) {
    struct loom_request r = actor_request(c, c->command);
    struct buf body = {0};
    int body_at = 1;
    if (strcmp(r.op, "event") == 0) r.event_id = r.id, r.id = text(c->args[1]), body_at = 2;
    if (strcmp(r.op, "cancel") == 0)
        buf_json(&body, "{\"reason\":%z}", c->o.reason ? c->o.reason : "cancelled by an operator");
    else if (strcmp(r.op, "fork") == 0)
        buf_json(&body, c->o.request.from ? "{\"key\":%z,\"from\":%d}" : "{\"key\":%z}", c->args[1], c->o.request.from);
    else if (!json_argument(c->arg_count > body_at ? c->args[body_at] : "null", &body))
        return EXIT_FAILED;
    r.body = loom_of(buf_view(&body));
    r.from = 0;
    int code = ask_and_print(c, &r, "durable");
    buf_free(&body);
    return code;
}

/* Prints the reply or error that a message has by now; −1: none yet. */
static int print_outcome(const struct cli *c, const struct door *d, yyjson_val *message) {
    yyjson_val *reply = yyjson_obj_get(message, "reply"), *error = yyjson_obj_get(message, "error");
    if (reply)
        print_json(reply, !c->o.json);
    else if (error)
        print_problem(d, NULL, 422, error);
    return reply ? EXIT_OK : error ? EXIT_FAILED : -1;
}

/* A worker that is being restarted. */
static bool away(const struct answer *a) {
    return a->status == 0 || a->status == 503;
}

/* Prints the journal from r.from on; answers the cursor behind it, −1 after an error, which has been printed.
 * `patient`: that the worker is away is none. */
static int64_t print_journal(const struct door *d, struct loom_request r, struct view *v, bool json, bool patient) {
    struct answer a;
    r.op = "journal", r.id = (struct loom_str){0};
    bool ok = ask(d, &r, &a), later = patient && away(&a);
    if (!ok && !later) print_problem(d, NULL, a.status, a.root);
    yyjson_val *entries = yyjson_obj_get(a.root, "entries");
    if (ok && json)
        print_json(a.root, false);
    else
        view_timeline(v, entries);
    int64_t next = ok || later ? json_int(yyjson_arr_get_last(entries), "cursor", r.from - 1) + 1 : -1;
    answer_free(&a);
    return next;
}

int await_reply(const struct cli *c, const struct door *d, struct loom_request r, bool live) {
    enum { LOST_MAX = 300 }; /* times that a worker may be found away */
    struct view view = {0};
    int code = -1, lost = 0;
    for (r.from = 0; code < 0;) {
        struct answer a;
        r.op = "message";
        bool ok = ask(d, &r, &a);
        lost = away(&a) ? lost + 1 : 0;
        bool wait = lost > 0 && lost <= LOST_MAX;
        if (ok && live)
            ok = (r.from = print_journal(d, r, &view, false, true)) >= 0;
        else if (!ok && !wait)
            print_problem(d, NULL, a.status, a.root);
        code = ok ? print_outcome(c, d, a.root) : wait ? -1 : EXIT_FAILED;
        answer_free(&a);
        if (code < 0) usleep(d->loom ? 20000 : 100000);
    }
    view_free(&view);
    return code;
}

int command_call(struct cli *c) {
    struct door d = door_remote(c);
    struct buf body = {0};
    struct answer a;
    struct loom_request r = actor_request(c, "call");
    if (!json_argument(c->args[1] ? c->args[1] : "null", &body)) return EXIT_FAILED;
    r.body = loom_of(buf_view(&body));
    bool ok = ask_ok(&d, &r, &a);
    int code = ok ? EXIT_OK : EXIT_FAILED;
    r.id = loom_of(json_str(a.root, "messageId"));
    if (a.status == 202 && !r.timeout_ms) { /* it takes longer than the door holds a call */
        if (isatty(2))
            fprintf(stderr, "still waiting; after Ctrl-C --id %.*s asks for the same reply\n", (int)r.id.n, r.id.p);
        code = await_reply(c, &d, r, false);
    } else if (ok)
        print_json(a.root, !c->o.json);
    answer_free(&a);
    buf_free(&body);
    return code;
}

/* ---- looking ---- */

static int ask_for_table(const struct cli *c, struct loom_request r, const char *list, const char *cols) {
    struct door d = door_remote(c);
    struct answer a;
    bool ok = ask_ok(&d, &r, &a);
    if (ok && c->o.json)
        print_json(a.root, false);
    else if (ok)
        print_table(yyjson_obj_get(a.root, list), cols);
    if (ok && !c->o.json && json_str(a.root, "next").n)
        printf("%sand more: --limit N shows up to 1000, --type and --status choose%s\n", paint(DIM), paint(PLAIN));
    answer_free(&a);
    return ok ? EXIT_OK : EXIT_FAILED;
}

int command_actors(struct cli *c) {
    return ask_for_table(c, request_of(c, "actors"), "actors", "id status suspendReason");
}

int command_modules(struct cli *c) {
    return ask_for_table(c, request_of(c, "module.list"), "modules", "name version size sha256:12");
}

/* For people without the journal's entries, which `loom journal` shows better. */
static int show_actor(const struct cli *c, const struct loom_request *r) {
    struct door d = door_remote(c);
    struct answer a;
    bool ok = ask_ok(&d, r, &a);
    yyjson_mut_doc *doc = ok && !c->o.json ? yyjson_doc_mut_copy(a.doc, NULL) : NULL;
    yyjson_mut_obj_remove_key(yyjson_mut_obj_get(yyjson_mut_doc_get_root(doc), "journal"), "entries");
    char *text = yyjson_mut_write(doc, YYJSON_WRITE_PRETTY_TWO_SPACES, NULL);
    if (text)
        puts(text);
    else if (ok)
        print_json(a.root, false);
    free(text);
    yyjson_mut_doc_free(doc);
    answer_free(&a);
    return ok ? EXIT_OK : EXIT_FAILED;
}

int command_inspect(struct cli *c) {
    struct loom_request r = actor_request(c, c->o.request.at >= 0 ? "state" : "get");
    return show_actor(c, &r);
}

int command_journal(struct cli *c) {
    struct door d = door_remote(c);
    struct loom_request r = actor_request(c, "journal");
    struct view view = {0};
    int64_t end = r.limit ? r.from + r.limit : INT64_MAX, next = print_journal(&d, r, &view, c->o.json, false);
    while (next > r.from && next < end && !c->o.json) r.from = next, next = print_journal(&d, r, &view, false, false);
    view_free(&view);
    return next >= 0 ? EXIT_OK : EXIT_FAILED;
}

/* ---- workflow ---- */

static int workflow_list(struct cli *c) {
    struct loom_request r = request_of(c, "definitions");
    r.type = text("workflow");
    return ask_for_table(c, r, "definitions", "name version hash:12");
}

static int workflow_deploy(struct cli *c) {
    struct door d = door_remote(c);
    struct buf name = {0};
    bool ok = workflow_put(c->args[1], &d, c->o.request.replace, SHOW_ALL, &name);
    buf_free(&name);
    return ok ? EXIT_OK : EXIT_FAILED;
}

static int workflow_run(struct cli *c) {
    struct door d = door_remote(c);
    return run_start(c, &d, str_of(c->args[1]), c->args[2], false);
}

static int workflow_get(struct cli *c) {
    struct arena a = {0};
    struct loom_request r = request_of(c, "get");
    r.type = loom_of(arena_json(&a, "workflow.%s", c->args[1]));
    r.key = text(c->args[2]);
    int code = show_actor(c, &r);
    arena_free(&a);
    return code;
}

int command_workflow(struct cli *c) {
    static const struct {
        const char *name;
        int arg_min, arg_max;
        int (*run)(struct cli *);
    } verbs[] = {{"list", 1, 1, workflow_list},
                 {"deploy", 2, 2, workflow_deploy},
                 {"run", 2, 3, workflow_run},
                 {"get", 3, 3, workflow_get}};
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        if (strcmp(verbs[i].name, c->args[0]) == 0 && c->arg_count >= verbs[i].arg_min &&
            c->arg_count <= verbs[i].arg_max)
            return verbs[i].run(c);
    return fail_usage(c, "loom workflow: `%s` with %d arguments is not one of its forms", c->args[0], c->arg_count - 1);
}
