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
#include <errno.h>
#include <netdb.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
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

struct header {
    struct str name, value; /* with handles */
};

struct transfer {
    uint64_t id;
    struct net_client *client;
    struct transfer *next; /* in the inbox */
    struct arena arena;
    const struct net_policy *policy;
    struct destination to;
    const char *method;
    struct str body; /* .p NULL: none */
    struct header *headers;
    size_t header_count;
    bool is_mail, foreign; /* foreign: redirected to another origin */
    int redirects;
    int64_t deadline;
    CURL *easy;
    struct curl_slist *lines, *connect_to;
    struct mail mail;
    struct buf answer;  /* HTTP: the body; SMTP: the server's last line */
    struct error error; /* .code set: refused before the start, or by a callback */
    char detail[CURL_ERROR_SIZE];
    void *ctx;
    void (*done)(void *ctx, bool ok, struct str json);
};

struct net_client {
    struct env *env;
    struct arena arena;
    yyjson_doc *config; /* loom.json; immutable, as all that is made from it */
    yyjson_val *network, *mail;
    const char *ca_file;
    struct secrets secrets;
    struct destination mail_server;
    CURLM *multi;
    pthread_t thread;
    struct map open;      /* the net thread's transfers by id */
    pthread_mutex_t lock; /* guards what follows */
    struct transfer *inbox, **inbox_end;
    struct buf cancels; /* of uint64_t */
    uint64_t last_id;
    bool stopping;
};

#define REFUSE(t, code, ...) error_set(&(t)->error, LOOM_E_##code, __VA_ARGS__)

/* ---- preparing: on the caller's thread; for a redirect on the net thread ---- */

/* Adds a header; a default only if there is a value and the guest gave none of its own. */
static void header_add(struct transfer *t, struct str name, struct str value, bool as_default) {
    for (size_t i = 0; as_default && i < t->header_count; i++) {
        if (word_in((const char *[]){name.p, NULL}, t->headers[i].name)) return;
    }
    if (value.p)
        t->headers[t->header_count++] = (struct header){arena_dup(&t->arena, name), arena_dup(&t->arena, value)};
}

static bool header_ok(const struct header *h) {
    bool ok = h->name.n > 0;
    for (size_t i = 0; i < h->name.n; i++)
        ok = ok && h->name.p[i] > 0x20 && h->name.p[i] < 0x7f && !strchr("\"(),/:;<=>?@[\\]{}", h->name.p[i]);
    for (size_t i = 0; i < h->value.n; i++)
        ok = ok && ((unsigned char)h->value.p[i] >= 0x20 || h->value.p[i] == '\t') && h->value.p[i] != 0x7f;
    return ok;
}

/* The line of a header as curl takes it; what may not go to another origin is left out there. */
static int header_line(struct transfer *t, const struct header *h) {
    static const char *const ours[] = {
        "host",    "content-length", "transfer-encoding", "connection",          "expect", "upgrade", "te",
        "trailer", "keep-alive",     "proxy-connection",  "proxy-authorization", NULL};
    static const char *const cookie[] = {"cookie", NULL};
    bool secret = secret_mentioned(h->value);
    if (!header_ok(h))
        return REFUSE(t, INVALID_ARGUMENT, "headers: \"%.100s\" is not a name, or its value is not one line",
                      h->name.p);
    if (word_in(ours, h->name)) return REFUSE(t, DENIED, "headers: Loom itself sets %s", h->name.p);
    if (t->foreign && (secret || secret_header(h->name) || word_in(cookie, h->name))) return 0;
    if (t->redirects && !t->body.p && h->name.n > 8 && !strncasecmp(h->name.p, "content-", 8)) return 0;
    struct buf line = {0};
    buf_json(&line, h->value.n ? "%j: " : "%j;", h->name); /* ';' is curl's way to say "empty" */
    int rc = secrets_expand(&t->client->secrets, t->policy, &t->to, h->name, h->value, &line, &t->error);
    buf_char(&line, 0);
    if (!rc) t->lines = curl_slist_append(t->lines, line.p);
    buf_free(&line);
    /* Over http a secret may go only because the place may be private: then it must be. */
    if (secret && !t->to.connect_to && str_eq(t->to.scheme, STR("http"))) t->to.reach = REACH_PRIVATE;
    return rc;
}

/* Finds the way to a URL, asks the policy, and makes the header lines for it. */
static int http_aim(struct transfer *t, struct str url) {
    struct destination from = t->to;
    int rc = destination_find(t->client->network, url, &t->arena, &t->to, &t->error);
    if (rc) return rc;
    if (from.host.p &&
        (!str_eq(from.scheme, t->to.scheme) || from.port != t->to.port || strcasecmp(from.host.p, t->to.host.p)))
        t->foreign = true;
    if (t->to.scheme.p[0] != 'h') return REFUSE(t, DENIED, "mail goes to \"smtp://\", the project's own server");
    if (!net_host_allowed(t->policy, t->to.host, t->to.port))
        return REFUSE(t, DENIED, "%.200s:%d is not in the activity's capabilities.network", t->to.host.p, t->to.port);
    curl_slist_free_all(t->lines);
    t->lines = curl_slist_append(NULL, "Expect:");
    if (t->body.p)
        t->lines = curl_slist_append(t->lines, "Content-Type:"); /* none but the guest's, which comes later */
    for (size_t i = 0; !rc && i < t->header_count; i++) rc = header_line(t, &t->headers[i]);
    return rc;
}

static int http_prepare(struct transfer *t, const struct net_request *r) {
    static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", NULL};
    size_t i, n;
    yyjson_val *key, *v;
    t->method = r->method.p ? word_in(methods, r->method) : "GET";
    if (!t->method) return REFUSE(t, INVALID_ARGUMENT, "method \"%.20s\" is not one of HTTP's", r->method.p);
    if (r->headers && !yyjson_is_obj(r->headers))
        return REFUSE(t, INVALID_ARGUMENT, "headers: expected an object of strings");
    t->headers = arena_alloc(&t->arena, (yyjson_obj_size(r->headers) + 3) * sizeof *t->headers);
    yyjson_obj_foreach(r->headers, i, n, key, v) {
        if (!yyjson_is_str(v))
            return REFUSE(t, INVALID_ARGUMENT, "headers: \"%.100s\" must be a string", yyjson_get_str(key));
        header_add(t, str_in(key), str_in(v), false);
    }
    header_add(t, STR("Content-Type"), r->body_json && r->body.p ? STR("application/json") : STR_NONE, true);
    header_add(t, STR("Idempotency-Key"), r->idempotency_key, true);
    header_add(t, STR("traceparent"), r->traceparent, true);
    if (r->body.p || t->method[0] == 'P') t->body = arena_dup(&t->arena, r->body.p ? r->body : STR(""));
    return http_aim(t, r->url);
}

static int mail_prepare(struct transfer *t, const struct net_request *r) {
    struct net_client *c = t->client;
    char hash[65];
    struct str key = r->idempotency_key;
    size_t i, n;
    yyjson_val *name, *v;
    if (!t->policy || !t->policy->mail) return REFUSE(t, DENIED, "the activity's capabilities do not include mail");
    if (!c->mail) return REFUSE(t, DENIED, "loom.json names no mail.server (\"smtp://HOST:PORT\")");
    yyjson_obj_foreach(r->headers, i, n, name, v) {
        if (word_in((const char *[]){"idempotency-key", NULL}, str_in(name))) key = str_in(v);
    }
    sha256_hex(r->body, hash);
    if (!key.n) key = str_of(hash); /* the mail itself */
    t->to = c->mail_server;
    return mail_compose(t->easy, r->body, json_str(c->mail, "from"), key, c->env->now_ms(c->env), &t->arena, &t->mail,
                        &t->error);
}

static int prepare(struct transfer *t, const struct net_request *r) {
    struct str url = r->url;
    if (secret_mentioned(r->url) || secret_mentioned(r->body))
        return REFUSE(t, DENIED, "a secret's handle stands in the url or the body; it may stand only in a header");
    while (url.n > 7 && url.p[url.n - 1] == '/') url.n--;
    t->is_mail = str_eq(url, STR("smtp://")) || str_eq(url, STR("smtp://mail"));
    return t->is_mail ? mail_prepare(t, r) : http_prepare(t, r);
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

static size_t take_body(char *p, size_t size, size_t n, void *ctx) {
    struct transfer *t = ctx;
    if (t->answer.n + size * n > ANSWER_MAX) {
        REFUSE(t, TOO_LARGE, "the answer of %.200s has more than 2 MB", t->to.host.p);
        return 0;
    }
    buf_add(&t->answer, p, size * n);
    return size * n;
}

static size_t take_reply(char *p, size_t size, size_t n, void *ctx) {
    struct transfer *t = ctx;
    buf_clear(&t->answer);
    buf_add(&t->answer, p, size * n);
    return size * n;
}

/* ---- starting ---- */

static void mail_options(struct transfer *t) {
    CURL *e = t->easy;
    curl_easy_setopt(e, CURLOPT_MAIL_FROM, t->mail.from.p);
    curl_easy_setopt(e, CURLOPT_MAIL_RCPT, t->mail.to);
    curl_easy_setopt(e, CURLOPT_HTTPHEADER, t->mail.headers);
    curl_easy_setopt(e, CURLOPT_MIMEPOST, t->mail.mime);
    curl_easy_setopt(e, CURLOPT_FORBID_REUSE, 1L); /* a mail cannot be begun again on a connection that went stale */
    curl_easy_setopt(e, CURLOPT_USE_SSL, (long)CURLUSESSL_TRY);
    curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, take_reply);
    curl_easy_setopt(e, CURLOPT_HEADERDATA, t);
}

static void http_options(struct transfer *t) {
    CURL *e = t->easy;
    curl_easy_setopt(e, CURLOPT_HTTPHEADER, t->lines);
    curl_easy_setopt(e, CURLOPT_HTTPGET, 1L);
    curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)t->body.n);
    if (t->body.p) curl_easy_setopt(e, CURLOPT_POSTFIELDS, t->body.p);
    curl_easy_setopt(e, CURLOPT_NOBODY, (long)!strcmp(t->method, "HEAD"));
    curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, t->method);
    curl_easy_setopt(e, CURLOPT_FRESH_CONNECT, (long)(t->to.reach == REACH_PRIVATE));
}

static void hop_start(struct transfer *t) {
    CURL *e = t->easy;
    int64_t rest = t->deadline - t->client->env->mono_ms(t->client->env);
    curl_slist_free_all(t->connect_to);
    t->connect_to = t->to.connect_to ? curl_slist_append(NULL, t->to.connect_to) : NULL;
    t->error.code[0] = 0;
    curl_easy_setopt(e, CURLOPT_PRIVATE, t);
    curl_easy_setopt(e, CURLOPT_URL, t->to.url.p);
    curl_easy_setopt(e, CURLOPT_CONNECT_TO, t->connect_to);
    curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, (long)(rest > 0 ? rest : 1));
    curl_easy_setopt(e, CURLOPT_ERRORBUFFER, t->detail);
    curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e, CURLOPT_QUICK_EXIT, 1L); /* do not wait for the resolver's thread when a transfer ends early */
    curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, t->is_mail ? "smtp,smtps" : "http,https");
    curl_easy_setopt(e, CURLOPT_PROXY, "");
    curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(e, CURLOPT_USERAGENT, "loom");
    curl_easy_setopt(e, CURLOPT_OPENSOCKETFUNCTION, open_socket);
    curl_easy_setopt(e, CURLOPT_OPENSOCKETDATA, t);
    curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(e, CURLOPT_WRITEDATA, t);
    if (t->client->ca_file) curl_easy_setopt(e, CURLOPT_CAINFO, t->client->ca_file);
    if (t->client->ca_file) curl_easy_setopt(e, CURLOPT_CAPATH, NULL);
    if (t->is_mail)
        mail_options(t);
    else
        http_options(t);
    curl_multi_add_handle(t->client->multi, e);
}

/* ---- ending ---- */

void base64(struct str s, struct buf *out) {
    for (size_t i = 0, n; i < s.n; i += n) {
        unsigned char text[80];
        n = s.n - i < 57 ? s.n - i : 57;
        buf_add(out, text, (size_t)EVP_EncodeBlock(text, (const unsigned char *)s.p + i, (int)n));
    }
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
        buf_json(out, name ? ",%z" : "%z", h->name);
        for (; name < out->n; name++) out->p[name] = (char)tolower(out->p[name]);
        buf_json(out, ":%q", buf_view(&value));
    }
    buf_free(&value);
}

/* An answer that is JSON; not if a secret stands outside of its strings, where a handle cannot stand. */
static bool json_body(struct transfer *t, struct buf *out) {
    char *type = NULL;
    curl_easy_getinfo(t->easy, CURLINFO_CONTENT_TYPE, &type);
    size_t n = type ? strcspn(type, "; \t") : 0;
    if (!(n == 16 && !strncasecmp(type, "application/json", n)) && !(n > 5 && !strncasecmp(type + n - 5, "+json", 5)))
        return false;
    yyjson_doc *doc = json_parse(buf_view(&t->answer), NULL);
    if (doc) json_write(yyjson_doc_get_root(doc), out);
    if (doc && secrets_redact(&t->client->secrets, t->policy, true, out)) {
        yyjson_doc_free(doc);
        doc = json_parse(buf_view(out), NULL);
    }
    yyjson_doc_free(doc);
    return doc != NULL;
}

static void answer_write(struct transfer *t, struct buf *out) {
    struct buf headers = {0}, body = {0};
    yyjson_mut_val text = {0};
    const struct secrets *secrets = &t->client->secrets;
    long status = 0;
    const char *end = "";
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    headers_write(t->easy, &headers);
    secrets_redact(secrets, t->policy, true, &headers);
    if (!json_body(t, &body)) {
        buf_clear(&body);
        secrets_redact(secrets, t->policy, false, &t->answer);
        yyjson_mut_set_strn(&text, t->answer.n ? t->answer.p : "", t->answer.n);
        if (!json_write_mut(&text, &body)) { /* not UTF-8 */
            buf_char(&body, '"');
            base64(buf_view(&t->answer), &body);
            end = "\",\"bodyEncoding\":\"base64\"";
        }
    }
    buf_json(out, "{\"status\":%d,\"headers\":{%j},\"body\":%j%s}", (int64_t)status, buf_view(&headers),
             buf_view(&body), end);
    buf_free(&headers);
    buf_free(&body);
}

/* The only end of a transfer: with its answer, or with t->error. */
static void transfer_end(struct transfer *t, bool ok) {
    struct buf json = {0};
    if (ok && t->is_mail)
        buf_str(&json, STR("{\"status\":250,\"headers\":{},\"body\":null}"));
    else if (ok)
        answer_write(t, &json);
    else
        error_json(&t->error, &json);
    if (!ok) secrets_redact(&t->client->secrets, t->policy, true, &json);
    map_remove(&t->client->open, (struct str){(char *)&t->id, sizeof t->id});
    curl_multi_remove_handle(t->client->multi, t->easy);
    t->done(t->ctx, ok, buf_view(&json));
    curl_easy_cleanup(t->easy);
    curl_slist_free_all(t->lines);
    curl_slist_free_all(t->connect_to);
    curl_slist_free_all(t->mail.to);
    curl_slist_free_all(t->mail.headers);
    curl_mime_free(t->mail.mime);
    buf_free(&t->answer);
    buf_free(&json);
    arena_free(&t->arena);
    free(t);
}

static void failed(struct transfer *t, CURLcode rc, long status) {
    const char *ca = t->client->ca_file ? t->client->ca_file
                                        : "the system's CAs (network.caFile in loom.json names another)";
    bool untrusted = rc == CURLE_PEER_FAILED_VERIFICATION || rc == CURLE_SSL_CACERT_BADFILE,
         late = rc == CURLE_OPERATION_TIMEDOUT;
    if (t->error.code[0] && (rc == CURLE_COULDNT_CONNECT || rc == CURLE_WRITE_ERROR)) return; /* a callback said why */
    error_set(&t->error, late ? LOOM_E_TIMEOUT : LOOM_E_NETWORK, "%.200s:%d: %.300s%s%.300s", t->to.host.p, t->to.port,
              t->detail[0] ? t->detail : curl_easy_strerror(rc), untrusted ? "; trusted is only " : "",
              untrusted ? ca : "");
    if (untrusted || rc == CURLE_USE_SSL_FAILED) t->error.retryable = false;
    if (!t->is_mail || status < 400 || late) return;
    snprintf(t->error.code, sizeof t->error.code, "smtp_%ld", status);
    snprintf(t->error.message, sizeof t->error.message, "the mail server %.200s says: %.*s", t->to.host.p,
             (int)(t->answer.n < 500 ? t->answer.n : 500), t->answer.p);
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

static void transfer_ended(struct transfer *t, CURLcode rc) {
    long status = 0;
    char *url = NULL;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(t->easy, CURLINFO_REDIRECT_URL, &url);
    bool moved = rc == CURLE_OK && url && (status == 307 || status == 308 || (status >= 301 && status <= 303));
    if (rc != CURLE_OK) failed(t, rc, status);
    if (!moved || redirect(t, url, status) != 0) transfer_end(t, rc == CURLE_OK && !moved);
}

/* ---- the net thread ---- */

static void transfer_cancel(struct transfer *t, const char *why) {
    error_set(&t->error, LOOM_E_CANCELLED, "the request was cancelled: %s", why);
    transfer_end(t, false);
}

/* Takes what others left since the last pass; false: the client stops. */
static bool inbox_take(struct net_client *c) {
    pthread_mutex_lock(&c->lock);
    struct transfer *t = c->inbox;
    struct buf cancels = c->cancels;
    bool stopping = c->stopping;
    c->inbox = NULL;
    c->inbox_end = &c->inbox;
    c->cancels = (struct buf){0};
    pthread_mutex_unlock(&c->lock);
    for (struct transfer *next; t; t = next) {
        next = t->next;
        map_put(&c->open, (struct str){(char *)&t->id, sizeof t->id}, t);
        if (t->error.code[0])
            transfer_end(t, false);
        else
            hop_start(t);
    }
    for (size_t i = 0; i < cancels.n; i += sizeof(uint64_t)) {
        t = map_get(&c->open, (struct str){cancels.p + i, sizeof(uint64_t)});
        if (t) transfer_cancel(t, "its activity ended");
    }
    buf_free(&cancels);
    return !stopping;
}

static void *net_thread(void *ctx) {
    struct net_client *c = ctx;
    struct transfer *t;
    while (inbox_take(c)) {
        int running, left;
        CURLMsg *m;
        curl_multi_perform(c->multi, &running);
        while ((m = curl_multi_info_read(c->multi, &left)) != NULL) {
            curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &t);
            transfer_ended(t, m->data.result);
        }
        curl_multi_poll(c->multi, NULL, 0, 60000, NULL);
    }
    for (size_t i = 0; (t = map_next(&c->open, &i)) != NULL; i = 0) transfer_cancel(t, "the worker stops");
    return NULL;
}

/* ---- the door ---- */

uint64_t net_send(struct net_client *c, const struct net_request *r) {
    struct transfer *t = mem_alloc(sizeof *t);
    *t = (struct transfer){.client = c, .policy = r->policy, .ctx = r->ctx, .done = r->done, .easy = curl_easy_init()};
    t->deadline = c->env->mono_ms(c->env) + (r->timeout_ms > 0 ? r->timeout_ms : TIMEOUT_MS);
    if (!t->easy) abort(); /* out of memory */
    prepare(t, r);
    pthread_mutex_lock(&c->lock);
    uint64_t id = t->id = ++c->last_id;
    bool first = !c->inbox;
    *c->inbox_end = t;
    c->inbox_end = &t->next;
    pthread_mutex_unlock(&c->lock);
    if (first) curl_multi_wakeup(c->multi);
    return id;
}

void net_cancel(struct net_client *c, uint64_t id) {
    pthread_mutex_lock(&c->lock);
    buf_add(&c->cancels, &id, sizeof id);
    pthread_mutex_unlock(&c->lock);
    curl_multi_wakeup(c->multi);
}

int net_secret_handle(struct net_client *c, const struct net_policy *policy, struct str name, struct buf *out,
                      struct error *err) {
    const struct secret *s;
    int rc = secret_find(&c->secrets, policy, name, &s, err);
    if (!rc) buf_json(out, SECRET_HANDLE "%j}}", name);
    return rc;
}

static int config_read(struct net_client *c, yyjson_val *config, const char *dir, struct error *err) {
    struct buf text = {0};
    int rc = config ? schema_check(schema, config, LOOM_E_INVALID_DOCUMENT, "loom.json", err) : 0;
    if (rc) return rc;
    json_write(config, &text);
    c->config = json_parse(config ? buf_view(&text) : STR("{}"), NULL);
    buf_free(&text);
    yyjson_val *root = yyjson_doc_get_root(c->config);
    c->network = yyjson_obj_get(root, "network");
    c->mail = yyjson_obj_get(root, "mail");
    if (json_str(c->network, "caFile").p) c->ca_file = path_in(dir, json_str(c->network, "caFile"), &c->arena);
    if (c->ca_file && access(c->ca_file, R_OK))
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "loom.json/network/caFile: cannot read %s: %s", c->ca_file,
                         strerror(errno));
    rc = secrets_read(yyjson_obj_get(root, "secrets"), dir, &c->arena, &c->secrets, err);
    if (!rc && c->mail) rc = destination_find(c->network, json_str(c->mail, "server"), &c->arena, &c->mail_server, err);
    c->mail_server.reach |= REACH_PRIVATE;
    return rc;
}

static void config_free(struct net_client *c) {
    yyjson_doc_free(c->config);
    arena_free(&c->arena);
    free(c);
}

struct net_client *net_client_new(struct env *env, yyjson_val *config, const char *dir, struct error *err) {
    struct net_client *c = mem_alloc(sizeof *c);
    sigset_t all, before;
    *c = (struct net_client){.env = env, .inbox_end = &c->inbox};
    if (config_read(c, config, dir, err)) {
        config_free(c);
        return NULL;
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    pthread_mutex_init(&c->lock, NULL);
    c->multi = curl_multi_init();
    curl_multi_setopt(c->multi, CURLMOPT_MAXCONNECTS, (long)IDLE_CONNECTIONS);
    sigfillset(&all); /* signals are for the program's own threads; a broken pipe is for nobody */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (!c->multi || pthread_create(&c->thread, NULL, net_thread, c)) abort(); /* out of memory */
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return c;
}

void net_client_free(struct net_client *c) {
    if (!c) return;
    pthread_mutex_lock(&c->lock);
    c->stopping = true;
    pthread_mutex_unlock(&c->lock);
    curl_multi_wakeup(c->multi);
    pthread_join(c->thread, NULL);
    curl_multi_cleanup(c->multi);
    curl_global_cleanup();
    pthread_mutex_destroy(&c->lock);
    map_free(&c->open);
    config_free(c);
}
