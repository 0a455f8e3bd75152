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
#include <arpa/inet.h>
#include <curl/curl.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { ANSWER_MAX = 2 * 1024 * 1024, REDIRECTS_MAX = 5, TIMEOUT_MS = 30000, IDLE_CONNECTIONS = 256 };

struct header {
    const char *line; /* as curl takes it */
    size_t name_len;
    bool credential, entity; /* not sent to another origin; not sent without a body */
};

struct transfer {
    uint64_t id;
    struct net_client *client;
    struct transfer *next; /* in the inbox */
    struct arena arena;
    struct net_policy *policy;
    struct destination to;
    const char *method;
    struct str body;    /* .p NULL: none */
    size_t sent;        /* of a mail */
    struct buf headers; /* of struct header */
    bool mail, too_large, has_secret;
    int redirects;
    int64_t deadline;
    CURL *easy;
    struct curl_slist *lines, *connect_to, *recipients;
    struct buf answer;  /* HTTP: the body; SMTP: the server's last line */
    struct error error; /* .code set: refused, before the start or while connecting */
    char detail[CURL_ERROR_SIZE];
    void *ctx;
    void (*done)(void *ctx, bool ok, struct str json);
};

struct net_client {
    struct env *env;
    struct arena arena; /* of what loom.json says; immutable */
    struct network network;
    struct secrets secrets;
    struct destination mail_server; /* .host.p NULL: none */
    struct str mail_from, mail_user, mail_password;
    CURLM *multi;
    pthread_t thread;
    struct map open;      /* the net thread's transfers by id */
    pthread_mutex_t lock; /* guards what follows */
    struct transfer *inbox, **inbox_end;
    struct buf cancels; /* of uint64_t */
    uint64_t last_id;
    bool stopping;
};

/* ---- preparing: any thread ---- */

static bool header_given(const struct transfer *t, const char *name) {
    const struct header *h = (const struct header *)(const void *)t->headers.p;
    for (size_t i = 0; i < t->headers.n / sizeof *h; i++) {
        if (strlen(name) == h[i].name_len && !strncasecmp(h[i].line, name, h[i].name_len)) return true;
    }
    return false;
}

static int header_add(struct transfer *t, struct str name, struct str value) {
    static const char *const ours[] = {
        "host",    "content-length", "transfer-encoding", "connection",          "expect", "upgrade", "te",
        "trailer", "keep-alive",     "proxy-connection",  "proxy-authorization", NULL};
    if (!header_name_ok(name) || !value.p || !printable(value))
        return error_set(&t->error, LOOM_E_INVALID_ARGUMENT,
                         "headers: \"%.*s\" is not a header's name, or its value is not one line of text",
                         (int)(name.n > 64 ? 64 : name.n), name.p);
    if (word_find(ours, name))
        return error_set(&t->error, LOOM_E_DENIED, "headers: %.*s is set by Loom and cannot be given", (int)name.n,
                         name.p);
    struct buf line = {0};
    buf_str(&line, name);
    buf_str(&line, value.n ? STR(": ") : STR(";")); /* ';' is curl's way to say "empty" */
    int rc = secrets_expand(&t->client->secrets, t->policy, &t->to, name, value, &line, &t->error);
    bool secret = secret_mentioned(value), cookie = name.n == 6 && !strncasecmp(name.p, "cookie", 6);
    struct header h = {.line = arena_dup(&t->arena, buf_view(&line)).p,
                       .name_len = name.n,
                       .credential = secret || secret_header(name) || cookie,
                       .entity = name.n > 8 && !strncasecmp(name.p, "content-", 8)};
    buf_add(&t->headers, &h, sizeof h);
    buf_free(&line);
    t->has_secret = t->has_secret || secret;
    return rc;
}

static int header_default(struct transfer *t, const char *name, struct str value) {
    return value.p && !header_given(t, name) ? header_add(t, str_of(name), value) : 0;
}

static int headers_prepare(struct transfer *t, const struct net_request *r) {
    int rc = 0;
    size_t i, n;
    yyjson_val *key, *value;
    if (r->headers && !yyjson_is_obj(r->headers))
        return error_set(&t->error, LOOM_E_INVALID_ARGUMENT, "headers: expected an object of strings");
    yyjson_obj_foreach(r->headers, i, n, key, value) {
        struct str name = {yyjson_get_str(key), yyjson_get_len(key)},
                   text = {yyjson_get_str(value), yyjson_get_len(value)};
        if ((rc = header_add(t, name, text)) != 0) return rc;
    }
    if (r->body_json && r->body.p) rc = header_default(t, "content-type", STR("application/json"));
    if (!rc) rc = header_default(t, "idempotency-key", r->idempotency_key);
    return rc ? rc : header_default(t, "traceparent", r->traceparent);
}

/* Finds the destination of the request or of a redirect and asks the policy. */
static int http_aim(struct transfer *t, struct str url) {
    int rc = network_find(&t->client->network, url, &t->arena, &t->to, &t->error);
    if (rc) return rc;
    if (!str_starts(t->to.scheme, STR("http")))
        return error_set(&t->error, LOOM_E_DENIED,
                         "mail goes to \"smtp://\", the project's own mail server, not to %.200s", t->to.host.p);
    if (!net_host_allowed(t->policy, t->to.host, t->to.port))
        return error_set(&t->error, LOOM_E_DENIED, "%s%.*s:%d is not in the activity's capabilities.network",
                         t->redirects ? "redirected: " : "", (int)(t->to.host.n > 200 ? 200 : t->to.host.n),
                         t->to.host.p, t->to.port);
    return 0;
}

static int http_prepare(struct transfer *t, const struct net_request *r) {
    static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", NULL};
    t->method = r->method.p ? word_find(methods, r->method) : "GET";
    if (!t->method)
        return error_set(&t->error, LOOM_E_INVALID_ARGUMENT,
                         "method: expected GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS");
    if (r->body.p || t->method[0] == 'P') t->body = arena_dup(&t->arena, r->body.p ? r->body : STR(""));
    int rc = http_aim(t, r->url);
    return rc ? rc : headers_prepare(t, r);
}

static struct str mail_key(struct transfer *t, const struct net_request *r) {
    size_t i, n;
    yyjson_val *key, *value;
    yyjson_obj_foreach(r->headers, i, n, key, value) {
        if (!strcasecmp(yyjson_get_str(key), "idempotency-key") && yyjson_is_str(value))
            return (struct str){yyjson_get_str(value), yyjson_get_len(value)};
    }
    if (r->idempotency_key.n) return r->idempotency_key;
    uint64_t random;
    t->client->env->random(t->client->env, &random, sizeof random);
    return arena_json(&t->arena, "%u", random);
}

static int mail_prepare(struct transfer *t, const struct net_request *r) {
    struct net_client *c = t->client;
    struct mail mail = {0};
    if (!t->policy->mail) return error_set(&t->error, LOOM_E_DENIED, "the activity's capabilities do not include mail");
    if (!c->mail_server.host.p)
        return error_set(&t->error, LOOM_E_DENIED, "loom.json names no mail.server (\"smtp://HOST:PORT\")");
    yyjson_doc *doc = json_parse(r->body.p ? r->body : STR(""), &t->error);
    if (!doc) return LOOM_E_INVALID_JSON;
    int64_t now = c->env->now_ms(c->env);
    int rc = mail_compose(yyjson_doc_get_root(doc), c->mail_from, mail_key(t, r), now, &t->arena, &mail, &t->error);
    yyjson_doc_free(doc);
    if (rc) return rc;
    t->to = c->mail_server;
    t->body = mail.text;
    for (size_t i = 0; i < mail.to.count; i++) t->recipients = curl_slist_append(t->recipients, mail.to.items[i].p);
    curl_easy_setopt(t->easy, CURLOPT_MAIL_FROM, mail.from.p);
    return 0;
}

static int prepare(struct transfer *t, const struct net_request *r) {
    if (secret_mentioned(r->url) || secret_mentioned(r->body))
        return error_set(&t->error, LOOM_E_DENIED,
                         "a secret's handle stands in the url or the body; it may stand only in a header");
    struct str url = r->url;
    while (url.n > 7 && url.p[url.n - 1] == '/') url.n--;
    t->mail = str_eq(url, STR("smtp://")) || str_eq(url, STR("smtp://mail"));
    return t->mail ? mail_prepare(t, r) : http_prepare(t, r);
}

/* ---- curl's callbacks ---- */

static curl_socket_t open_socket(void *ctx, curlsocktype purpose, struct curl_sockaddr *at) {
    (void)purpose;
    struct transfer *t = ctx;
    char text[64] = "";
    if (address_reach(&at->addr) & t->to.reach) return socket(at->family, at->socktype | SOCK_CLOEXEC, at->protocol);
    getnameinfo(&at->addr, at->addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST);
    if (t->to.reach == REACH_PRIVATE)
        error_set(&t->error, LOOM_E_DENIED, "a secret goes to %.200s (%s) only over https", t->to.host.p, text);
    else
        error_set(&t->error, LOOM_E_DENIED,
                  "%.200s has the private address %s; network.allowPrivate in loom.json can allow the host",
                  t->to.host.p, text);
    return CURL_SOCKET_BAD;
}

static size_t take_body(char *p, size_t size, size_t n, void *ctx) {
    struct transfer *t = ctx;
    t->too_large = t->answer.n + size * n > ANSWER_MAX;
    if (t->too_large) return 0;
    buf_add(&t->answer, p, size * n);
    return size * n;
}

static size_t take_mail_reply(char *p, size_t size, size_t n, void *ctx) {
    struct transfer *t = ctx;
    buf_clear(&t->answer);
    buf_add(&t->answer, p, size * n > 400 ? 400 : size * n);
    return size * n;
}

static size_t give_mail(char *p, size_t size, size_t n, void *ctx) {
    struct transfer *t = ctx;
    size_t rest = t->body.n - t->sent, take = rest < size * n ? rest : size * n;
    memcpy(p, t->body.p + t->sent, take);
    t->sent += take;
    return take;
}

/* ---- starting: the options of every transfer, then of a hop ---- */

static void common_options(struct transfer *t) {
    CURL *e = t->easy;
    curl_easy_setopt(e, CURLOPT_PRIVATE, t);
    curl_easy_setopt(e, CURLOPT_ERRORBUFFER, t->detail);
    curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e, CURLOPT_QUICK_EXIT, 1L); /* do not wait for the resolver's thread when a transfer ends early */
    curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, t->mail ? "smtp,smtps" : "http,https");
    curl_easy_setopt(e, CURLOPT_PROXY, "");
    curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(e, CURLOPT_USERAGENT, "loom");
    curl_easy_setopt(e, CURLOPT_OPENSOCKETFUNCTION, open_socket);
    curl_easy_setopt(e, CURLOPT_OPENSOCKETDATA, t);
    curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(e, CURLOPT_WRITEDATA, t);
    if (!t->client->network.ca_file) return;
    curl_easy_setopt(e, CURLOPT_CAINFO, t->client->network.ca_file);
    curl_easy_setopt(e, CURLOPT_CAPATH, NULL);
}

static void mail_options(struct transfer *t) {
    struct net_client *c = t->client;
    curl_easy_setopt(t->easy, CURLOPT_MAIL_RCPT, t->recipients);
    curl_easy_setopt(t->easy, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(t->easy, CURLOPT_READFUNCTION, give_mail);
    curl_easy_setopt(t->easy, CURLOPT_READDATA, t);
    curl_easy_setopt(t->easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)t->body.n);
    curl_easy_setopt(t->easy, CURLOPT_HEADERFUNCTION, take_mail_reply);
    curl_easy_setopt(t->easy, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(t->easy, CURLOPT_FORBID_REUSE,
                     1L); /* a mail cannot be begun again on a connection that went stale */
    curl_easy_setopt(t->easy, CURLOPT_USE_SSL, (long)(c->mail_user.p ? CURLUSESSL_ALL : CURLUSESSL_TRY));
    if (!c->mail_user.p) return;
    curl_easy_setopt(t->easy, CURLOPT_USERNAME, c->mail_user.p);
    curl_easy_setopt(t->easy, CURLOPT_PASSWORD, c->mail_password.p);
}

static void http_options(struct transfer *t) {
    const struct header *h = (const struct header *)(const void *)t->headers.p;
    /* Over http a secret went in only because the place may be private: then it must be. */
    if (t->has_secret && !t->to.connect_to && str_eq(t->to.scheme, STR("http"))) t->to.reach = REACH_PRIVATE;
    curl_slist_free_all(t->lines);
    t->lines = curl_slist_append(NULL, "Expect:");
    if (t->body.p && !header_given(t, "content-type")) t->lines = curl_slist_append(t->lines, "Content-Type:");
    for (size_t i = 0; i < t->headers.n / sizeof *h; i++) t->lines = curl_slist_append(t->lines, h[i].line);
    curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, t->lines);
    curl_easy_setopt(t->easy, CURLOPT_HTTPGET, 1L);
    if (t->body.p) {
        curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, t->body.p);
        curl_easy_setopt(t->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)t->body.n);
    }
    curl_easy_setopt(t->easy, CURLOPT_NOBODY, (long)!strcmp(t->method, "HEAD"));
    curl_easy_setopt(t->easy, CURLOPT_CUSTOMREQUEST, t->method);
    curl_easy_setopt(t->easy, CURLOPT_FRESH_CONNECT, (long)(t->to.reach == REACH_PRIVATE));
}

static void hop_start(struct transfer *t) {
    int64_t rest = t->deadline - t->client->env->mono_ms(t->client->env);
    t->error.code[0] = 0;
    if (t->mail)
        mail_options(t);
    else
        http_options(t);
    curl_slist_free_all(t->connect_to);
    t->connect_to = t->to.connect_to ? curl_slist_append(NULL, t->to.connect_to) : NULL;
    curl_easy_setopt(t->easy, CURLOPT_CONNECT_TO, t->connect_to);
    curl_easy_setopt(t->easy, CURLOPT_URL, t->to.url.p);
    curl_easy_setopt(t->easy, CURLOPT_TIMEOUT_MS, (long)(rest > 0 ? rest : 1));
    curl_multi_add_handle(t->client->multi, t->easy);
}

/* ---- ending ---- */

/* JSON text of a remote side's bytes; what is not UTF-8 is taken for Latin-1, as HTTP's headers were. */
static void header_quote(struct str s, struct buf *out) {
    struct buf utf8 = {0};
    if (json_quote(s, out)) return;
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];
        if (c >= 0x80) buf_char(&utf8, (char)(0xc0 | c >> 6));
        buf_char(&utf8, (char)(c >= 0x80 ? 0x80 | (c & 0x3f) : c));
    }
    json_quote(buf_view(&utf8), out);
    buf_free(&utf8);
}

static void headers_write(CURL *easy, struct buf *out) {
    struct curl_header *h = NULL, *more;
    buf_char(out, '{');
    while ((h = curl_easy_nextheader(easy, CURLH_HEADER, -1, h)) != NULL) {
        if (h->index) continue; /* was joined to the first of its name */
        struct buf name = {0}, value = {0};
        for (const char *p = h->name; *p; p++) buf_char(&name, *p >= 'A' && *p <= 'Z' ? (char)(*p + 32) : *p);
        for (size_t i = 0; i < h->amount; i++) {
            if (curl_easy_header(easy, h->name, i, CURLH_HEADER, -1, &more)) continue;
            if (i) buf_add(&value, ", ", 2);
            buf_str(&value, str_of(more->value));
        }
        if (out->n > 1) buf_char(out, ',');
        header_quote(buf_view(&name), out);
        buf_char(out, ':');
        header_quote(buf_view(&value), out);
        buf_free(&name);
        buf_free(&value);
    }
    buf_char(out, '}');
}

static bool json_type(const char *type) {
    size_t n = type ? strcspn(type, "; \t") : 0;
    return (n == 16 && !strncasecmp(type, "application/json", n)) || (n > 5 && !strncasecmp(type + n - 5, "+json", 5));
}

static bool body_json(struct transfer *t, struct buf *out) {
    yyjson_doc *doc = json_parse(buf_view(&t->answer), NULL);
    if (!doc) return false;
    json_write(yyjson_doc_get_root(doc), out);
    yyjson_doc_free(doc);
    size_t n = out->n;
    secrets_redact(&t->client->secrets, t->policy, true, out);
    if (n == out->n) return true;
    doc = json_parse(buf_view(out), NULL); /* no more if the value stood outside of a string */
    if (!doc) buf_clear(out);
    yyjson_doc_free(doc);
    return doc != NULL;
}

/* Writes the body; false: as base64. */
static bool body_write(struct transfer *t, struct buf *out) {
    char *type = NULL;
    const struct secrets *secrets = &t->client->secrets;
    curl_easy_getinfo(t->easy, CURLINFO_CONTENT_TYPE, &type);
    if (json_type(type) && body_json(t, out)) return true;
    secrets_redact(secrets, t->policy, false, &t->answer);
    if (json_quote(buf_view(&t->answer), out)) return true;
    buf_char(out, '"');
    base64(buf_view(&t->answer), 0, out);
    buf_char(out, '"');
    return false;
}

static void answer_write(struct transfer *t, struct buf *out) {
    struct buf headers = {0}, body = {0};
    long status = 0;
    if (t->mail) {
        buf_str(out, STR("{\"status\":250,\"headers\":{},\"body\":null}"));
        return;
    }
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    headers_write(t->easy, &headers);
    secrets_redact(&t->client->secrets, t->policy, true, &headers);
    bool text = body_write(t, &body);
    buf_json(out, "{\"status\":%d,\"headers\":%j,\"body\":%j%s}", (int64_t)status, buf_view(&headers), buf_view(&body),
             text ? "" : ",\"bodyEncoding\":\"base64\"");
    buf_free(&headers);
    buf_free(&body);
}

static void error_write(struct transfer *t, struct buf *out) {
    struct buf message = {0};
    buf_str(&message, str_of(t->error.message));
    secrets_redact(&t->client->secrets, t->policy, false, &message);
    snprintf(t->error.message, sizeof t->error.message, "%.*s", (int)message.n, message.p);
    buf_free(&message);
    error_json(&t->error, out);
}

/* The only end of a transfer; ok: with its answer, otherwise with t->error. */
static void transfer_end(struct transfer *t, bool ok) {
    struct buf json = {0};
    if (ok)
        answer_write(t, &json);
    else
        error_write(t, &json);
    map_remove(&t->client->open, (struct str){(char *)&t->id, sizeof t->id});
    curl_multi_remove_handle(t->client->multi, t->easy);
    t->done(t->ctx, ok, buf_view(&json));
    curl_easy_cleanup(t->easy);
    curl_slist_free_all(t->lines);
    curl_slist_free_all(t->connect_to);
    curl_slist_free_all(t->recipients);
    buf_free(&t->headers);
    buf_free(&t->answer);
    buf_free(&json);
    arena_free(&t->arena);
    free(t->policy);
    free(t);
}

static void failed(struct transfer *t, CURLcode rc) {
    const char *reason = t->detail[0] ? t->detail : curl_easy_strerror(rc), *ca = t->client->network.ca_file;
    bool untrusted = rc == CURLE_PEER_FAILED_VERIFICATION || rc == CURLE_SSL_CACERT_BADFILE;
    long status = 0;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    if (rc == CURLE_COULDNT_CONNECT && t->error.code[0]) return; /* open_socket refused it */
    error_set(&t->error,
              t->too_large                     ? LOOM_E_TOO_LARGE
              : rc == CURLE_OPERATION_TIMEDOUT ? LOOM_E_TIMEOUT
                                               : LOOM_E_NETWORK,
              "%.200s:%d: %.300s%s%.300s", t->to.host.p, t->to.port,
              t->too_large ? "the answer has more than 2 MB" : reason,
              untrusted ? "; trusted are only the CAs of " : "",
              !untrusted ? ""
              : ca       ? ca
                         : "this system (network.caFile in loom.json names another)");
    if (untrusted || rc == CURLE_USE_SSL_FAILED) t->error.retryable = false;
    if (!t->mail || status < 400 || rc == CURLE_OPERATION_TIMEDOUT) return;
    snprintf(t->error.code, sizeof t->error.code, "smtp_%ld", status);
    snprintf(t->error.message, sizeof t->error.message, "the mail server %.200s says: %.*s", t->to.host.p,
             (int)t->answer.n, t->answer.p);
    t->error.retryable = status < 500;
}

static void headers_drop(struct transfer *t, bool credentials, bool entity) {
    struct header *h = (struct header *)(void *)t->headers.p;
    size_t kept = 0;
    for (size_t i = 0; i < t->headers.n / sizeof *h; i++) {
        if (!(credentials && h[i].credential) && !(entity && h[i].entity)) h[kept++] = h[i];
    }
    t->headers.n = kept * sizeof *h;
    t->has_secret = t->has_secret && !credentials;
}

/* RFC 9110, 15.4: what changes on the way to the next hop. 0, or t->error says why there is none. */
static int redirect(struct transfer *t, const char *url, long status) {
    struct destination from = t->to;
    if (++t->redirects > REDIRECTS_MAX) {
        error_set(&t->error, LOOM_E_NETWORK, "%.200s: more than %d redirects", t->to.host.p, REDIRECTS_MAX);
        t->error.retryable = false;
        return LOOM_E_NETWORK;
    }
    int rc = http_aim(t, str_of(url));
    if (rc) return rc;
    bool other = !str_eq(from.scheme, t->to.scheme) || from.port != t->to.port || from.host.n != t->to.host.n ||
                 strncasecmp(from.host.p, t->to.host.p, from.host.n) != 0;
    bool get = (status == 303 && strcmp(t->method, "HEAD")) || (status < 303 && !strcmp(t->method, "POST"));
    if (get) {
        t->method = "GET";
        t->body = STR_NONE;
    }
    headers_drop(t, other, get);
    return 0;
}

static void transfer_ended(struct transfer *t, CURLcode rc) {
    long status = 0;
    char *url = NULL;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(t->easy, CURLINFO_REDIRECT_URL, &url);
    if (rc != CURLE_OK) failed(t, rc);
    bool moved = rc == CURLE_OK && url && (status == 307 || status == 308 || (status >= 301 && status <= 303));
    if (moved && redirect(t, url, status) == 0) {
        curl_multi_remove_handle(t->client->multi, t->easy);
        buf_clear(&t->answer);
        hop_start(t);
        return;
    }
    transfer_end(t, rc == CURLE_OK && !moved);
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
    *t = (struct transfer){.client = c, .policy = net_policy_copy(r->policy), .ctx = r->ctx, .done = r->done};
    t->deadline = c->env->mono_ms(c->env) + (r->timeout_ms > 0 ? r->timeout_ms : TIMEOUT_MS);
    t->easy = curl_easy_init();
    if (!t->easy) abort(); /* out of memory */
    if (prepare(t, r) == 0) common_options(t);
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
    return secret_handle(&c->secrets, policy, name, out, err);
}

static int mail_read(struct net_client *c, yyjson_val *doc, struct error *err) {
    static const char *const known[] = {"server", "from", "user", "password", NULL};
    int rc = fields_check(doc, known, "mail", err);
    struct str password = json_str(doc, "password");
    if (rc || !doc) return rc;
    rc = network_find(&c->network, json_str(doc, "server"), &c->arena, &c->mail_server, err);
    if (rc || !str_starts(c->mail_server.scheme, STR("smtp")))
        return error_set(err, LOOM_E_INVALID_DOCUMENT,
                         "mail.server: expected \"smtp://HOST:PORT\" or \"smtps://HOST:PORT\"");
    c->mail_server.reach |= REACH_PRIVATE;
    c->mail_from = arena_dup(&c->arena, json_str(doc, "from"));
    if (!json_str(doc, "user").p) return 0;
    const struct secret *s = secret_find(&c->secrets, password);
    if (!s || !host_listed((struct strings){s->hosts, s->host_count}, c->mail_server.host, c->mail_server.port))
        return error_set(err, LOOM_E_INVALID_DOCUMENT,
                         "mail.password: expected the name of one of the secrets, whose hosts list the mail server");
    c->mail_user = arena_dup(&c->arena, json_str(doc, "user"));
    c->mail_password = s->value;
    return 0;
}

struct net_client *net_client_new(struct env *env, yyjson_val *config, const char *dir, struct error *err) {
    struct net_client *c = mem_alloc(sizeof *c);
    sigset_t all, before;
    *c = (struct net_client){.env = env, .inbox_end = &c->inbox};
    if (network_read(yyjson_obj_get(config, "network"), dir, &c->arena, &c->network, err) ||
        secrets_read(yyjson_obj_get(config, "secrets"), dir, &c->arena, &c->secrets, err) ||
        mail_read(c, yyjson_obj_get(config, "mail"), err)) {
        arena_free(&c->arena);
        free(c);
        return NULL;
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    pthread_mutex_init(&c->lock, NULL);
    c->multi = curl_multi_init();
    if (!c->multi) abort(); /* out of memory */
    curl_multi_setopt(c->multi, CURLMOPT_MAXCONNECTS, (long)IDLE_CONNECTIONS);
    sigfillset(&all); /* signals are for the program's own threads; a broken pipe is for nobody */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&c->thread, NULL, net_thread, c)) abort(); /* out of memory */
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
    arena_free(&c->arena);
    free(c);
}
