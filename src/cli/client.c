/* client.c: the door to a Loom, and the commands that only go through it.
 *
 * A command fills a loom_request, as an embedding program would. In process it goes to loom_submit; over HTTP the table
 * `routes` says which method and path the op has, with the fields of the request in path and query.
 */
#include "cli/cli.h"
#include <curl/curl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* %t type · %k key · %i id · %d the plural of a kind of definition · behind ?: fields of the request, sent unless zero */
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
    {"definitions", "GET", "/v1/%d"},
    {"run", "POST", "/v1/workflows/%t/runs?key&version"},
    {"ready", "GET", "/readyz"},
};

/* ---- in process ---- */
struct answer {
    pthread_mutex_t lock;
    pthread_cond_t come;
    int status; /* 0: not yet */
    struct buf *body;
};

static void on_reply(void *ctx, const struct loom_reply *reply) {
    struct answer *a = ctx;
    pthread_mutex_lock(&a->lock);
    buf_add(a->body, reply->body.p, reply->body.n);
    a->status = reply->status;
    pthread_cond_signal(&a->come);
    pthread_mutex_unlock(&a->lock);
}

static int ask_here(struct loom *l, const struct loom_request *request, struct buf *body) {
    struct answer a = {.lock = PTHREAD_MUTEX_INITIALIZER, .come = PTHREAD_COND_INITIALIZER, .body = body};
    struct loom_request r = *request;
    r.reply = on_reply;
    r.ctx = &a;
    loom_submit(l, &r);
    pthread_mutex_lock(&a.lock);
    while (!a.status) pthread_cond_wait(&a.come, &a.lock);
    pthread_mutex_unlock(&a.lock);
    return a.status;
}

/* ---- over HTTP ---- */
static void add_escaped(struct buf *out, struct loom_str s) {
    char *text = s.n ? curl_easy_escape(NULL, s.p, (int)s.n) : NULL;
    buf_str(out, str_of(text));
    curl_free(text);
}

static void add_query(struct buf *url, const char *names, const struct loom_request *r) {
    const struct {
        const char *name;
        int64_t number;
        struct loom_str text;
    } fields[] = {
        {"timeoutMs", r->timeout_ms, {0}},
        {"priority", r->priority, {0}},
        {"ttlMs", r->ttl_ms, {0}},
        {"delayMs", r->delay_ms, {0}},
        {"from", r->from, {0}},
        {"limit", r->limit, {0}},
        {"at", r->at > 0 ? r->at : 0, {0}},
        {"type", 0, r->type},
        {"status", 0, r->status},
        {"after", 0, r->after},
        {"key", 0, r->key},
        {"version", 0, r->version},
        {"replace", 0, r->replace ? (struct loom_str){"true", 4} : (struct loom_str){0}},
    };
    char mark = '?';
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const char *at = strstr(names, fields[i].name);
        size_t n = strlen(fields[i].name);
        if (!at || (at[n] && at[n] != '&') || (!fields[i].number && !fields[i].text.n)) continue;
        buf_char(url, mark), mark = '&';
        buf_json(url, "%s=", fields[i].name);
        if (fields[i].number) buf_json(url, "%d", fields[i].number);
        add_escaped(url, fields[i].text);
    }
}

static void add_url(struct buf *url, const struct door *d, const struct route *route, const struct loom_request *r) {
    size_t n = strlen(d->url);
    buf_add(url, d->url, n && d->url[n - 1] == '/' ? n - 1 : n);
    const char *p = route->path;
    for (; *p && *p != '?'; p++) {
        if (*p != '%')
            buf_char(url, *p);
        else if (*++p == 'd')
            buf_json(url, "%s",
                     r->type.p[0] == 'w'                          ? "workflows"
                     : r->type.p[2] == 't' && r->type.p[3] == 'o' ? "actor-types"
                                                                  : "activities");
        else
            add_escaped(url, *p == 't' ? r->type : *p == 'k' ? r->key : r->id);
    }
    if (*p) add_query(url, p + 1, r);
    buf_char(url, '\0');
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

/* problem+json → the error shape that loom_submit answers. */
static void problem_to_error(struct buf *body, size_t from, long status) {
    yyjson_doc *doc = yyjson_read(body->p + from, body->n - from, 0);
    yyjson_val *root = yyjson_doc_get_root(doc);
    struct str detail = json_str(root, "detail"), code = json_str(root, "code"), title = json_str(root, "title");
    struct buf error = {0};
    buf_json(&error, "{\"code\":%q,\"message\":%q,\"retryable\":%b}", code.p ? code : STR("http"),
             detail.p  ? detail
             : title.p ? title
                       : STR("the answer is not one of Loom's"),
             (int)json_bool(root, "retryable", status >= 500));
    body->n = from;
    buf_str(body, buf_view(&error));
    buf_free(&error);
    yyjson_doc_free(doc);
}

static int ask_there(const struct door *d, const struct loom_request *r, struct buf *body) {
    const struct route *route = routes;
    while (strcmp(route->op, r->op)) route++;
    size_t from = body->n;
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
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, body);
    if (strcmp(route->method, "GET")) {
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->body.n);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, r->body.n ? r->body.p : "");
    }
    long status = 0;
    if (curl_easy_perform(curl) == CURLE_OK) curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    if (status >= 300) problem_to_error(body, from, status);
    curl_easy_cleanup(curl);
    curl_slist_free_all(list);
    buf_free(&url);
    return (int)status;
}

/* ---- the door ---- */
struct door door_remote(const struct cli *c) {
    return (struct door){.url = c->o.url ? c->o.url : "http://127.0.0.1:7100", .key = c->o.key};
}

int ask(const struct door *d, const struct loom_request *r, struct buf *body) {
    return d->loom ? ask_here(d->loom, r, body) : ask_there(d, r, body);
}

void print_problem(const struct door *d, int status, struct str body) {
    if (status == 0) {
        fail("no Loom answers at %s; start one with `loom dev`, or say where it is with --url", d->url);
        return;
    }
    yyjson_doc *doc = yyjson_read(body.p, body.n, 0);
    yyjson_val *root = yyjson_doc_get_root(doc);
    struct str code = json_str(root, "code"), message = json_str(root, "message");
    fail("%.*s (%.*s)%s", (int)message.n, message.p ? message.p : "", (int)code.n, code.p ? code.p : "",
         status == 401 ? "; give the API key with --key or LOOM_API_KEY" : "");
    yyjson_doc_free(doc);
}

bool ask_ok(const struct door *d, const struct loom_request *r, struct buf *body) {
    size_t from = body->n;
    int status = ask(d, r, body);
    if (status < 200 || status > 299) print_problem(d, status, (struct str){body->p + from, body->n - from});
    return status >= 200 && status <= 299;
}

static struct loom_str text(const char *z) {
    return (struct loom_str){z, z ? strlen(z) : 0};
}

struct loom_request request_of(const struct cli *c, const char *op) {
    const struct options *o = &c->o;
    return (struct loom_request){.op = op,
                                 .ns = text(o->ns),
                                 .id = text(o->id),
                                 .version = text(o->version),
                                 .status = text(o->status),
                                 .delay_ms = o->delay,
                                 .ttl_ms = o->ttl,
                                 .timeout_ms = o->timeout,
                                 .at = o->at,
                                 .from = o->from,
                                 .limit = o->limit,
                                 .priority = (int32_t)o->priority,
                                 .replace = o->replace};
}

/* ---- commands on one actor ---- */

static struct loom_request actor_request(const struct cli *c, const char *op) {
    struct loom_request r = request_of(c, op);
    const char *slash = strchr(c->args[0], '/');
    r.type = (struct loom_str){c->args[0], slash ? (size_t)(slash - c->args[0]) : 0};
    r.key = text(slash ? slash + 1 : NULL);
    return r;
}

/* Asks and prints the answer: JSON, or `done` for people. */
static int ask_and_print(const struct cli *c, const struct loom_request *r, const char *done) {
    struct door d = door_remote(c);
    struct buf answer = {0};
    bool ok = ask_ok(&d, r, &answer);
    if (ok && (!done || c->o.json))
        print_json(buf_view(&answer), !c->o.json);
    else if (ok)
        printf("%s✓%s %s\n", paint(GREEN), paint(PLAIN), done);
    buf_free(&answer);
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
        buf_json(&body, c->o.from ? "{\"key\":%z,\"from\":%d}" : "{\"key\":%z}", c->args[1], c->o.from);
    else if (!json_argument(c->arg_count > body_at ? c->args[body_at] : "null", &body))
        return EXIT_FAILED;
    r.body = (struct loom_str){body.p, body.n};
    r.from = 0;
    int code = ask_and_print(c, &r, "durable");
    buf_free(&body);
    return code;
}

/* Waits for the reply of a message that took longer than the door holds a call. */
static int await_reply(const struct cli *c, const struct door *d, struct loom_request r, struct buf *body) {
    yyjson_doc *doc = yyjson_read(body->p, body->n, 0);
    char *id = str_dup(json_str(yyjson_doc_get_root(doc), "messageId"));
    yyjson_doc_free(doc);
    r.op = "message";
    r.id = text(id);
    int code = EXIT_FAILED;
    for (bool wait = true; wait; doc = NULL) {
        body->n = 0;
        wait = ask_ok(d, &r, body);
        doc = yyjson_read(body->p, body->n, 0);
        yyjson_val *root = yyjson_doc_get_root(doc), *reply = yyjson_obj_get(root, "reply"),
                   *error = yyjson_obj_get(root, "error");
        struct buf text_of = {0};
        if (wait && (reply || error)) json_write(reply ? reply : error, &text_of);
        if (text_of.n && reply)
            print_json(buf_view(&text_of), !c->o.json), code = EXIT_OK;
        else if (text_of.n)
            print_problem(d, 422, buf_view(&text_of));
        wait = wait && !text_of.n;
        buf_free(&text_of);
        yyjson_doc_free(doc);
        if (wait) usleep(200000);
    }
    free(id);
    return code;
}

int command_call(struct cli *c) {
    struct door d = door_remote(c);
    struct buf body = {0}, answer = {0};
    struct loom_request r = actor_request(c, "call");
    int code = EXIT_FAILED;
    if (json_argument(c->args[1] ? c->args[1] : "null", &body)) {
        r.body = (struct loom_str){body.p, body.n};
        int status = ask(&d, &r, &answer);
        if (status == 202 && !c->o.timeout)
            code = await_reply(c, &d, r, &answer);
        else if (status >= 200 && status <= 299)
            print_json(buf_view(&answer), !c->o.json), code = EXIT_OK;
        else
            print_problem(&d, status, buf_view(&answer));
    }
    buf_free(&body);
    buf_free(&answer);
    return code;
}

/* ---- looking ---- */

/* Asks for {list: [objects]} and prints the columns (fields of the objects, separated by spaces) as a table. */
static int print_table(const struct cli *c, const struct loom_request *r, const char *list, const char *columns) {
    struct door d = door_remote(c);
    struct buf answer = {0};
    if (!ask_ok(&d, r, &answer)) return buf_free(&answer), EXIT_FAILED;
    yyjson_doc *doc = yyjson_read(answer.p, answer.n, 0);
    yyjson_val *rows = yyjson_obj_get(yyjson_doc_get_root(doc), list), *row;
    if (c->o.json) print_json(buf_view(&answer), false);
    size_t i, n, shown = c->o.json ? 0 : yyjson_arr_size(rows);
    char name[32];
    int used;
    for (const char *p = columns; shown && sscanf(p, " %31[^:]:%*d%n", name, &used) == 1; p += used)
        printf("%s%-*s%s ", paint(DIM), atoi(strchr(p, ':') + 1), name, paint(PLAIN));
    if (shown) putchar('\n');
    yyjson_arr_foreach(rows, i, n, row) {
        for (const char *p = columns; shown && sscanf(p, " %31[^:]:%*d%n", name, &used) == 1; p += used) {
            struct str s = json_str(row, name);
            char number[32] = "";
            if (!s.p && yyjson_is_int(yyjson_obj_get(row, name)))
                snprintf(number, sizeof number, "%lld", (long long)json_int(row, name, 0));
            printf("%-*.*s ", atoi(strchr(p, ':') + 1), s.p ? (int)s.n : 31, s.p ? s.p : number);
        }
        if (shown) putchar('\n');
    }
    if (!shown && !c->o.json) printf("no %s\n", list);
    yyjson_doc_free(doc);
    buf_free(&answer);
    return EXIT_OK;
}

int command_actors(struct cli *c) {
    struct loom_request r = request_of(c, "actors");
    r.type = text(c->o.type);
    return print_table(c, &r, "actors", "id:48 status:10 suspendReason:32");
}

int command_modules(struct cli *c) {
    struct loom_request r = request_of(c, "module.list");
    return print_table(c, &r, "modules", "name:32 version:10 size:9 sha256:64");
}

/* The document for people: one line of what it is, then its state. */
static void print_actor(yyjson_val *doc, struct str state) {
    struct str id = json_str(doc, "id"), status = json_str(doc, "status"), reason = json_str(doc, "suspendReason");
    yyjson_val *meta = yyjson_obj_get(doc, "metadata");
    struct str parent = json_str(meta, "parentActorId");
    char created[32];
    format_clock(json_int(meta, "createdAt", 0), created);
    printf("%s%.*s%s  %.*s%s%.*s\n", paint(BOLD), (int)id.n, id.p, paint(PLAIN), (int)status.n, status.p,
           reason.n ? ": " : "", (int)reason.n, reason.p ? reason.p : "");
    printf("%screated %s, journal at %lld, %lld activations%s%.*s%s\n", paint(DIM), created,
           (long long)json_int(yyjson_obj_get(doc, "journal"), "cursor", 0),
           (long long)json_int(meta, "activationCount", 0), parent.n ? ", child of " : "", (int)parent.n,
           parent.p ? parent.p : "", paint(PLAIN));
    print_json(state, true);
}

int command_inspect(struct cli *c) {
    struct door d = door_remote(c);
    struct buf answer = {0}, state = {0};
    struct loom_request r = actor_request(c, "get");
    int code = EXIT_FAILED;
    if (ask_ok(&d, &r, &answer)) {
        r.op = "state";
        if (c->o.at >= 0 || !c->o.json) code = ask_ok(&d, &r, &state) ? EXIT_OK : EXIT_FAILED;
        yyjson_doc *doc = yyjson_read(answer.p, answer.n, 0);
        if (c->o.json)
            print_json(buf_view(c->o.at >= 0 ? &state : &answer), false), code = c->o.at >= 0 ? code : EXIT_OK;
        else if (code == EXIT_OK)
            print_actor(yyjson_doc_get_root(doc), buf_view(&state));
        yyjson_doc_free(doc);
    }
    buf_free(&answer);
    buf_free(&state);
    return code;
}

static void print_timeline(struct view *v, yyjson_val *entries, int64_t *zero) {
    yyjson_val *entry;
    size_t i, n;
    yyjson_arr_foreach(entries, i, n, entry) {
        struct buf line = {0};
        char clock[32], since[32];
        int64_t at = json_int(entry, "at", 0);
        *zero = *zero ? *zero : at;
        format_clock(at, clock);
        format_ms(at - *zero, since);
        view_entry(v, STR_NONE, entry, &line);
        printf("%s%5lld  %s %10s%s  %.*s\n", paint(DIM), (long long)json_int(entry, "cursor", 0), clock, since,
               paint(PLAIN), (int)line.n, line.p);
        buf_free(&line);
    }
}

int command_journal(struct cli *c) {
    struct door d = door_remote(c);
    struct buf answer = {0};
    struct view view = {0};
    struct loom_request r = actor_request(c, "journal");
    int64_t zero = 0, left = c->o.limit;
    bool ok = true;
    for (bool more = true; more;) {
        answer.n = 0;
        if (!(ok = ask_ok(&d, &r, &answer))) break;
        yyjson_doc *doc = yyjson_read(answer.p, answer.n, 0);
        yyjson_val *root = yyjson_doc_get_root(doc), *entries = yyjson_obj_get(root, "entries");
        if (c->o.json)
            print_json(buf_view(&answer), false);
        else
            print_timeline(&view, entries, &zero);
        r.from = json_int(root, "next", 0);
        left -= (int64_t)yyjson_arr_size(entries);
        more = r.from && !c->o.json && (!c->o.limit || left > 0);
        r.limit = c->o.limit ? left : 0;
        yyjson_doc_free(doc);
    }
    view_free(&view);
    buf_free(&answer);
    return ok ? EXIT_OK : EXIT_FAILED;
}

/* ---- workflow ---- */

static int workflow_list(struct cli *c) {
    struct loom_request r = request_of(c, "definitions");
    r.type = text("workflow");
    return print_table(c, &r, "definitions", "name:40 version:10 hash:64");
}

static int workflow_deploy(struct cli *c) {
    struct door d = door_remote(c);
    struct buf name = {0};
    bool ok = workflow_put(c->args[1], &d, c->o.replace, true, &name);
    buf_free(&name);
    return ok ? EXIT_OK : EXIT_FAILED;
}

static int workflow_run(struct cli *c) {
    struct buf body = {0};
    if (!json_argument(c->arg_count > 2 ? c->args[2] : "{}", &body)) return EXIT_FAILED;
    struct loom_request r = request_of(c, "run");
    r.type = text(c->args[1]);
    r.key = r.id; /* the run's key makes it happen once */
    r.id = (struct loom_str){0};
    r.body = (struct loom_str){body.p, body.n};
    int code = ask_and_print(c, &r, NULL);
    buf_free(&body);
    return code;
}

static int workflow_get(struct cli *c) {
    struct buf actor = {0};
    buf_json(&actor, "workflow.%s/%s", c->args[1], c->args[2]);
    buf_char(&actor, '\0');
    c->args[0] = actor.p;
    int code = command_inspect(c);
    buf_free(&actor);
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
