/* http_client.c: one thread that drives all transfers (curl multi).
 *
 * net_send() checks and prepares a request on the caller's thread, so that refusals cost the net thread nothing; the
 * transfer then belongs to the net thread, which alone ends it: done() comes once, from there. Only `lock` is shared.
 *
 * Redirects are followed here and not by curl, since each hop must pass the policy; credentials stay with the origin they
 * were meant for. Environment proxies, .netrc, cookies, HTTP authentication and protocols other than http(s) and smtp(s) do
 * not exist here. Connections are kept alive. There is no limit on open transfers but the process's file descriptors.
 */
#include "net/parts.h"
#include <ctype.h>
#include <fnmatch.h>
#include <netdb.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ANSWER_MAX = 2 * 1024 * 1024, REDIRECTS_MAX = 5, TIMEOUT_MS = 30000, IDLE_CONNECTIONS = 256 };

/* Schema of what loom.json says about the network, mail and secrets; what else it holds is not for this room. */
static const char schema[] =
    "{'type':'object','properties':{'network':{'type':'object','additionalProperties':false,'properties':{"
    "'allowPrivate':{'type':['boolean','array'],'items':" SCHEMA_HOST "},'caFile':{'type':'string'},"
    "'connectTo':{'type':'object','propertyNames':" SCHEMA_HOST ",'additionalProperties':" SCHEMA_HOST "}}},"
    "'mail':{'type':'object','required':['server'],'additionalProperties':false,'properties':{"
    "'server':{'type':'string','pattern':'^smtps?://'},'from':{'type':'string'," SCHEMA_MAILBOX "}}},"
    "'secrets':{'type':'object','propertyNames':{'pattern':'^[A-Za-z0-9_.-]{1,64}$'},'additionalProperties':{"
    "'type':'object','required':['hosts'],'oneOf':[{'required':['env']},{'required':['file']}],"
    "'additionalProperties':false,'properties':{'env':{'type':'string'},'file':{'type':'string'},"
    "'hosts':{'type':'array','minItems':1,'items':" SCHEMA_HOST "},"
    "'headers':{'type':'array','minItems':1,'items':{'type':'string'}}}}}}}";

struct order { /* from other threads to the net thread */
    struct transfer *start;
    uint64_t id; /* without start: cancel this one; 0: stop */
};

struct net_client {
    struct env *env;
    struct arena arena; /* of what loom.json says; immutable */
    yyjson_val *network, *mail;
    const char *ca_file;
    struct secret *secrets;
    struct destination mail_server;
    CURLM *multi;
    pthread_t thread;
    struct map open;      /* the net thread's transfers by id */
    pthread_mutex_t lock; /* guards what follows */
    struct buf orders;
    uint64_t last_id;
};

#define REFUSE(t, code, ...) error_set(&(t)->error, LOOM_E_##code, __VA_ARGS__)

void list_add(struct arena *a, struct curl_slist **list, const char *text) {
    while (*list) list = &(*list)->next;
    *list = arena_alloc(a, sizeof **list);
    (*list)->data = (char *)text;
}

/* ---- preparing: on the caller's thread; for a redirect on the net thread ---- */

static struct str line_name(struct curl_slist *line) {
    return (struct str){line->data, strcspn(line->data, ":;")};
}

static int header_add(struct transfer *t, struct str name, struct str value) {
    static const char token[] = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    static const char *const ours[] = {
        "host",    "content-length", "transfer-encoding", "connection",          "expect", "upgrade", "te",
        "trailer", "keep-alive",     "proxy-connection",  "proxy-authorization", NULL};
    if (!name.n || strspn(name.p, token) != name.n || !value.p || strcspn(value.p, CONTROLS) != value.n)
        return REFUSE(t, INVALID_ARGUMENT, "headers: \"%.100s\" is not a name, or its value is not text in one line",
                      name.p);
    if (word_in(ours, name)) return REFUSE(t, DENIED, "headers: Loom itself sets %s", name.p);
    const char *format = value.n ? "%j: %j" : "%j;"; /* ';' is curl's way to say "empty" */
    list_add(&t->arena, &t->headers, arena_json(&t->arena, format, name, value).p);
    return 0;
}

/* What the guest has not given itself. */
static int header_default(struct transfer *t, struct str name, struct str value) {
    for (struct curl_slist *h = t->headers; h; h = h->next) {
        if (same_word(line_name(h), name)) return 0;
    }
    return value.p ? header_add(t, name, arena_dup(&t->arena, value)) : 0; /* a copy ends with a NUL */
}

/* Makes the lines of a hop: values take the places of their handles; what may not go to another origin stays here. */
static int lines_make(struct transfer *t) {
    static const char *const credentials[] = {"authorization", "x-api-key", "api-key", "cookie", NULL};
    int rc = 0;
    t->lines = NULL;
    list_add(&t->arena, &t->lines, "Expect:"); /* of curl's own: none */
    list_add(&t->arena, &t->lines, "Content-Type:");
    for (struct curl_slist *h = t->headers; h && !rc; h = h->next) {
        struct str line = str_of(h->data), name = line_name(h);
        if (t->foreign && (secret_mentioned(line) || word_in(credentials, name))) continue;
        if (t->redirects && !t->body.p && !strncasecmp(name.p, "content-", 8)) continue;
        rc = secrets_expand(t, &line);
        list_add(&t->arena, &t->lines, line.p);
    }
    return rc;
}

/* Finds the way to a URL and asks the policy. */
static int http_aim(struct transfer *t, struct str url) {
    struct destination from = t->to;
    int rc = destination_find(t->client->network, "http", url, &t->arena, &t->to, &t->error);
    if (rc) return rc;
    t->foreign = t->foreign || (from.url.p && (from.tls != t->to.tls || !same_word(from.place, t->to.place)));
    if (!host_listed(yyjson_obj_get(t->policy, "network"), &t->to))
        return REFUSE(t, DENIED, "%.200s is not in the activity's capabilities.network", t->to.place.p);
    return lines_make(t);
}

static int http_prepare(struct transfer *t, const struct net_request *r) {
    static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", NULL};
    size_t i, n;
    yyjson_val *name, *v;
    t->method = r->method.p ? word_in(methods, r->method) : "GET";
    if (!t->method) return REFUSE(t, INVALID_ARGUMENT, "method \"%.20s\" is not one of HTTP's", r->method.p);
    if (r->headers && !yyjson_is_obj(r->headers))
        return REFUSE(t, INVALID_ARGUMENT, "headers: expected an object of strings");
    int rc = 0;
    yyjson_obj_foreach(r->headers, i, n, name, v) {
        if (!rc) rc = header_add(t, str_in(name), str_in(v));
    }
    if (!rc) rc = header_default(t, STR("Content-Type"), r->body_json ? STR("application/json") : STR_NONE);
    if (!rc) rc = header_default(t, STR("Idempotency-Key"), r->idempotency_key);
    if (!rc) rc = header_default(t, STR("traceparent"), r->traceparent);
    if (r->body.p || t->method[0] == 'P') t->body = arena_dup(&t->arena, r->body.p ? r->body : STR(""));
    return rc ? rc : http_aim(t, r->url);
}

static int mail_prepare(struct transfer *t, const struct net_request *r) {
    struct net_client *c = t->client;
    if (!json_bool(t->policy, "mail", false))
        return REFUSE(t, DENIED, "the activity's capabilities do not include mail");
    if (!c->mail) return REFUSE(t, DENIED, "loom.json names no mail.server (\"smtp://HOST:PORT\")");
    t->to = c->mail_server;
    return mail_compose(t, r->body, json_str(c->mail, "from"), r->idempotency_key, c->env->now_ms(c->env));
}

static int prepare(struct transfer *t, const struct net_request *r) {
    if (secret_mentioned(r->url) || secret_mentioned(r->body))
        return REFUSE(t, DENIED, "a secret's handle stands in the url or the body; it may stand only in a header");
    return str_eq(r->url, STR("smtp://")) ? mail_prepare(t, r) : http_prepare(t, r);
}

/* ---- curl's callbacks ---- */

static curl_socket_t open_socket(void *ctx, curlsocktype purpose, struct curl_sockaddr *at) {
    (void)purpose;
    struct transfer *t = ctx;
    char text[64] = "";
    if (address_reach(&at->addr) & t->to.reach) return socket(at->family, at->socktype | SOCK_CLOEXEC, at->protocol);
    getnameinfo(&at->addr, at->addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST);
    REFUSE(t, DENIED,
           t->to.reach == REACH_PRIVATE
               ? "a secret goes to %.200s (%s) only over https"
               : "%.200s has the private address %s; network.allowPrivate in loom.json can allow it",
           t->to.host.p, text);
    return CURL_SOCKET_BAD;
}

/* Takes a piece of an HTTP body, or a line of the mail server: only its last one counts. */
static size_t take(char *p, size_t size, size_t n, void *ctx) {
    struct transfer *t = ctx;
    if (!t->method) buf_clear(&t->answer);
    if (t->answer.n + size * n > ANSWER_MAX) {
        REFUSE(t, TOO_LARGE, "the answer of %.200s has more than 2 MB", t->to.host.p);
        return 0;
    }
    buf_add(&t->answer, p, size * n);
    return size * n;
}

/* ---- starting ---- */

static void hop_start(struct transfer *t) {
    CURL *e = t->easy;
    int64_t rest = t->deadline - t->client->env->mono_ms(t->client->env);
    struct curl_slist *connect_to = NULL;
    if (t->to.connect_to) list_add(&t->arena, &connect_to, t->to.connect_to);
    t->error.code[0] = 0;
    curl_easy_setopt(e, CURLOPT_PRIVATE, t);
    curl_easy_setopt(e, CURLOPT_URL, t->to.url.p);
    curl_easy_setopt(e, CURLOPT_CONNECT_TO, connect_to);
    curl_easy_setopt(e, CURLOPT_HTTPHEADER, t->lines);
    curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, (long)(rest > 0 ? rest : 1));
    curl_easy_setopt(e, CURLOPT_ERRORBUFFER, t->detail);
    curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e, CURLOPT_QUICK_EXIT, 1L); /* do not wait for the resolver's thread when a transfer ends early */
    curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, t->method ? "http,https" : "smtp,smtps");
    curl_easy_setopt(e, CURLOPT_PROXY, "");
    curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(e, CURLOPT_USERAGENT, "loom");
    curl_easy_setopt(e, CURLOPT_OPENSOCKETFUNCTION, open_socket);
    curl_easy_setopt(e, CURLOPT_OPENSOCKETDATA, t);
    curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(e, CURLOPT_WRITEDATA, t);
    if (t->client->ca_file) curl_easy_setopt(e, CURLOPT_CAINFO, t->client->ca_file);
    if (t->client->ca_file) curl_easy_setopt(e, CURLOPT_CAPATH, NULL);
    if (t->method) {
        curl_easy_setopt(e, CURLOPT_HTTPGET, 1L);
        curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)t->body.n);
        if (t->body.p) curl_easy_setopt(e, CURLOPT_POSTFIELDS, t->body.p);
        curl_easy_setopt(e, CURLOPT_NOBODY, (long)!strcmp(t->method, "HEAD"));
        curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, t->method);
        curl_easy_setopt(e, CURLOPT_FRESH_CONNECT, (long)(t->to.reach == REACH_PRIVATE));
    } else {
        curl_easy_setopt(e, CURLOPT_MAIL_RCPT, t->recipients);
        curl_easy_setopt(e, CURLOPT_MIMEPOST, t->mime);
        curl_easy_setopt(e, CURLOPT_FORBID_REUSE, 1L); /* what went stale cannot be begun again */
        curl_easy_setopt(e, CURLOPT_USE_SSL, (long)CURLUSESSL_TRY);
        curl_easy_setopt(e, CURLOPT_HEADERDATA, t); /* the server's lines go to take() */
    }
    curl_multi_add_handle(t->client->multi, e);
}

/* ---- ending ---- */

struct str base64(struct arena *a, struct str s) {
    char *text = arena_alloc(a, s.n / 3 * 4 + 5);
    return (struct str){text, (size_t)EVP_EncodeBlock((unsigned char *)text, (const unsigned char *)s.p, (int)s.n)};
}

static void headers_write(CURL *easy, struct buf *out) {
    struct curl_header *h = NULL, *more;
    struct buf value = {0};
    while ((h = curl_easy_nextheader(easy, CURLH_HEADER, -1, h)) != NULL) {
        if (h->index) continue; /* was joined to the first of its name */
        buf_clear(&value);
        for (size_t i = 0; i < h->amount && !curl_easy_header(easy, h->name, i, CURLH_HEADER, -1, &more); i++)
            buf_json(&value, i ? ", %s" : "%s", more->value);
        size_t name = out->n;
        buf_json(out, out->p[name - 1] == '{' ? "%z:" : ",%z:", h->name);
        for (; name < out->n; name++) out->p[name] = (char)tolower(out->p[name]);
        buf_json(out, "%q", buf_view(&value));
    }
    buf_free(&value);
}

/* The text's normal form takes its place; false, and it stays, when it is not JSON. */
static bool normalize(struct arena *a, struct str *text) {
    struct buf json = {0};
    bool ok = !json_normalize(*text, &json, NULL);
    if (ok) *text = arena_dup(a, buf_view(&json));
    buf_free(&json);
    return ok;
}

static void answer_write(struct transfer *t, struct buf *out) {
    struct str body = buf_view(&t->answer);
    yyjson_mut_val text = {0};
    char *type = NULL;
    long status = 0;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(t->easy, CURLINFO_CONTENT_TYPE, &type);
    bool json = type && !fnmatch("*[/+]json*", type, FNM_CASEFOLD) && normalize(&t->arena, &body);
    struct str clean = secrets_redact(t, body);
    json = json && (clean.p == body.p || normalize(&t->arena, &clean)); /* outside of strings a handle cannot stand */
    yyjson_mut_set_strn(&text, clean.n ? clean.p : "", clean.n);
    buf_json(out, "{\"status\":%d,\"headers\":{", (int64_t)status);
    headers_write(t->easy, out);
    buf_json(out, json ? "},\"body\":%j" : "},\"body\":", clean);
    if (!json && !json_write_mut(&text, out)) /* not UTF-8 */
        buf_json(out, "\"%j\",\"bodyEncoding\":\"base64\"", base64(&t->arena, clean));
    buf_char(out, '}');
}

/* The only end of a transfer. */
static void transfer_done(struct transfer *t, bool ok, struct str json) {
    map_remove(&t->client->open, (struct str){(char *)&t->id, sizeof t->id});
    curl_multi_remove_handle(t->client->multi, t->easy);
    t->done(t->ctx, ok, secrets_redact(t, json));
    curl_easy_cleanup(t->easy);
    curl_mime_free(t->mime);
    buf_free(&t->answer);
    arena_free(&t->arena);
    free(t);
}

/* With its answer, or with t->error. */
static void transfer_end(struct transfer *t, bool ok) {
    struct buf json = {0};
    if (!ok)
        error_json(&t->error, &json);
    else if (t->method)
        answer_write(t, &json);
    else
        buf_str(&json, STR("{\"status\":250,\"headers\":{},\"body\":null}"));
    transfer_done(t, ok, buf_view(&json));
    buf_free(&json);
}

void net_answer(struct net_client *c, uint64_t id, bool ok, struct str json) {
    struct transfer *t = map_get(&c->open, (struct str){(char *)&id, sizeof id});
    if (t) transfer_done(t, ok, json);
}

static void failed(struct transfer *t, CURLcode rc, long status) {
    bool untrusted = rc == CURLE_PEER_FAILED_VERIFICATION || rc == CURLE_SSL_CACERT_BADFILE,
         late = rc == CURLE_OPERATION_TIMEDOUT;
    if (t->error.code[0] && (rc == CURLE_COULDNT_CONNECT || rc == CURLE_WRITE_ERROR)) return; /* a callback said why */
    error_set(&t->error, late ? LOOM_E_TIMEOUT : LOOM_E_NETWORK, "%.200s: %.300s%s", t->to.place.p,
              t->detail[0] ? t->detail : curl_easy_strerror(rc),
              untrusted ? "; whom to trust says network.caFile in loom.json, or else the system" : "");
    t->error.retryable = !untrusted && rc != CURLE_USE_SSL_FAILED;
    if (t->method || status < 400 || late) return;
    REFUSE(t, NETWORK, "the mail server %.200s says: %.*s", t->to.host.p, (int)t->answer.n, t->answer.p);
    snprintf(t->error.code, sizeof t->error.code, "smtp_%ld", status);
    t->error.retryable = status < 500;
}

/* Goes on to the next hop (RFC 9110, 15.4), or t->error says why there is none. */
static int redirect(struct transfer *t, const char *url, long status) {
    if (t->redirects++ == REDIRECTS_MAX)
        return REFUSE(t, DENIED, "%.200s redirects more than %d times", t->to.host.p, REDIRECTS_MAX);
    if ((status == 303 && strcmp(t->method, "HEAD") != 0) || (status < 303 && !strcmp(t->method, "POST"))) {
        t->method = "GET";
        t->body = STR_NONE;
    }
    int rc = http_aim(t, str_of(url));
    if (rc) return rc;
    curl_multi_remove_handle(t->client->multi, t->easy);
    buf_clear(&t->answer);
    hop_start(t);
    return 0;
}

static void hop_ended(CURL *easy, CURLcode rc) {
    struct transfer *t;
    long status = 0;
    char *url = NULL;
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, &t);
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(easy, CURLINFO_REDIRECT_URL, &url);
    if (rc != CURLE_OK) failed(t, rc, status);
    if (rc != CURLE_OK || !url || redirect(t, url, status) != 0) transfer_end(t, rc == CURLE_OK && !url);
}

/* ---- the net thread ---- */

static void transfer_cancel(struct transfer *t, const char *why) {
    REFUSE(t, CANCELLED, "the request was cancelled: %s", why);
    transfer_end(t, false);
}

static void transfer_start(struct transfer *t) {
    struct env *env = t->client->env;
    map_put(&t->client->open, (struct str){(char *)&t->id, sizeof t->id}, t);
    if (t->error.code[0])
        transfer_end(t, false);
    else if (env->send)
        env->send(env, t->id, t->to.url, t->lines, t->body);
    else
        hop_start(t);
}

bool net_step(struct net_client *c) {
    bool go = true;
    pthread_mutex_lock(&c->lock);
    struct buf orders = c->orders;
    c->orders = (struct buf){0};
    pthread_mutex_unlock(&c->lock);
    for (struct order *o = (void *)orders.p; (char *)o < orders.p + orders.n; o++) {
        struct transfer *t = o->start ? NULL : map_get(&c->open, (struct str){(char *)&o->id, sizeof o->id});
        if (o->start) transfer_start(o->start);
        if (t) transfer_cancel(t, "its activity ended");
        go = go && o->id;
    }
    buf_free(&orders);
    return go;
}

static void *net_thread(void *ctx) {
    struct net_client *c = ctx;
    sigset_t all;
    sigfillset(&all); /* signals are for the program's own threads; a broken pipe is for nobody */
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    while (net_step(c)) {
        int running, left;
        CURLMsg *m;
        curl_multi_perform(c->multi, &running);
        while ((m = curl_multi_info_read(c->multi, &left)) != NULL) hop_ended(m->easy_handle, m->data.result);
        curl_multi_poll(c->multi, NULL, 0, 60000, NULL);
    }
    return NULL;
}

/* ---- the door ---- */

/* The id of what it starts, or the one given. */
static uint64_t order(struct net_client *c, struct transfer *start, uint64_t id) {
    pthread_mutex_lock(&c->lock);
    bool first = !c->orders.n;
    if (start) id = start->id = ++c->last_id;
    buf_add(&c->orders, &(struct order){start, id}, sizeof(struct order));
    pthread_mutex_unlock(&c->lock);
    if (first) curl_multi_wakeup(c->multi);
    return id;
}

uint64_t net_send(struct net_client *c, const struct net_request *r) {
    struct transfer *t = mem_alloc(sizeof *t);
    *t = (struct transfer){.client = c, .secrets = c->secrets, .policy = r->policy, .ctx = r->ctx, .done = r->done};
    t->easy = curl_easy_init();
    t->deadline = c->env->mono_ms(c->env) + (r->timeout_ms > 0 ? r->timeout_ms : TIMEOUT_MS);
    if (!t->easy) abort(); /* out of memory */
    prepare(t, r);
    return order(c, t, 0);
}

void net_cancel(struct net_client *c, uint64_t id) {
    if (id) order(c, NULL, id);
}

int net_secret_handle(struct net_client *c, yyjson_val *policy, struct str name, struct buf *out, struct error *err) {
    const struct secret *s;
    int rc = secret_find(c->secrets, policy, name, &s, err);
    if (!rc) buf_json(out, SECRET_HANDLE "%j}}", name);
    return rc;
}

static int config_read(struct net_client *c, yyjson_val *config, const char *dir, struct error *err) {
    struct error why;
    int rc = config ? schema_check(schema, config, LOOM_E_INVALID_DOCUMENT, "loom.json", err) : 0;
    if (rc) return rc;
    yyjson_val *root = json_in(&c->arena, json_text_of(config, &c->arena));
    c->network = yyjson_obj_get(root, "network");
    c->mail = yyjson_obj_get(root, "mail");
    struct str ca = json_str(c->network, "caFile");
    if (ca.p && access(c->ca_file = path_in(dir, ca, &c->arena), R_OK))
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "loom.json: /network/caFile: cannot read %s", c->ca_file);
    if (c->mail && destination_find(c->network, "smtp", json_str(c->mail, "server"), &c->arena, &c->mail_server, &why))
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "loom.json: /mail/server: %s", why.message);
    c->mail_server.reach |= REACH_PRIVATE;
    return secrets_read(yyjson_obj_get(root, "secrets"), dir, &c->arena, &c->secrets, err);
}

struct net_client *net_client_new(struct env *env, yyjson_val *config, const char *dir, struct error *err) {
    struct net_client *c = mem_alloc(sizeof *c);
    c->env = env;
    if (config_read(c, config, dir, err)) {
        arena_free(&c->arena);
        free(c);
        return NULL;
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    pthread_mutex_init(&c->lock, NULL);
    c->multi = curl_multi_init();
    curl_multi_setopt(c->multi, CURLMOPT_MAXCONNECTS, (long)IDLE_CONNECTIONS);
    if (!c->multi || (!env->send && !env->thread(env, &c->thread, net_thread, c))) abort(); /* out of memory */
    return c;
}

void net_client_free(struct net_client *c) {
    if (!c) return;
    struct transfer *t;
    order(c, NULL, 0);
    if (!c->env->send) pthread_join(c->thread, NULL);
    net_step(c);
    for (size_t i = 0; (t = map_next(&c->open, &i)) != NULL; i = 0) transfer_cancel(t, "the worker stops");
    curl_multi_cleanup(c->multi);
    curl_global_cleanup();
    pthread_mutex_destroy(&c->lock);
    map_free(&c->open);
    arena_free(&c->arena);
    free(c);
}
