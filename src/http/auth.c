/* auth.c: who may do what. On loopback without keys everybody on this machine may do everything, but a browser led here by a
 * foreign name or page may not: Host and Origin must name this machine (DNS rebinding). With keys, and always beyond loopback,
 * a request needs `Authorization: Bearer KEY`; only the SHA-256 of a key is kept. A key bound to a namespace decides it.
 */
#include "http/internal.h"
#include <string.h>

static int key_read(yyjson_val *v, struct http_key *key, size_t index, struct error *err) {
    struct str hex = json_str(v, "sha256"), ns = json_str(v, "namespace"), role = json_str(v, "role");
    key->admin = str_eq(role, STR("admin"));
    if (!key->admin && !str_eq(role, STR("user")))
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "keys[%zu].role must be \"admin\" or \"user\"", index);
    if (ns.n >= sizeof key->ns)
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "keys[%zu].namespace is longer than 64 bytes", index);
    memcpy(key->ns, ns.p ? ns.p : "", ns.n);
    for (size_t i = 0; i < 64; i++) {
        int digit = hex.n == 64 ? http_hex(hex.p[i]) : -1;
        if (digit < 0)
            return error_set(err, LOOM_E_INVALID_DOCUMENT,
                             "keys[%zu].sha256 must be 64 hex digits: printf %%s KEY | sha256sum", index);
        key->sha256[i / 2] = (uint8_t)(key->sha256[i / 2] << 4 | digit);
    }
    return 0;
}

int http_keys_read(struct str json, struct http_keys *out, struct error *err) {
    *out = (struct http_keys){0};
    if (!json.p) return 0;
    yyjson_doc *doc = json_parse(json, err);
    if (!doc) return LOOM_E_INVALID_JSON;
    yyjson_val *list = yyjson_obj_get(yyjson_doc_get_root(doc), "keys"), *v;
    size_t i, n;
    int rc = 0;
    if (yyjson_arr_size(list) == 0)
        rc = error_set(err, LOOM_E_INVALID_DOCUMENT,
                       "The keys file must be {\"keys\": [{\"sha256\", \"namespace\", \"role\"}]} with a key");
    else
        out->list = mem_alloc(yyjson_arr_size(list) * sizeof *out->list);
    yyjson_arr_foreach(list, i, n, v) {
        if (rc == 0) rc = key_read(v, &out->list[out->count++], i, err);
    }
    yyjson_doc_free(doc);
    return rc;
}

/* Looks at every key to the end: the time tells nothing. */
static const struct http_key *find_key(const struct http_keys *keys, struct str secret) {
    uint8_t hash[32];
    sha256(secret, hash);
    const struct http_key *found = NULL;
    for (size_t i = 0; i < keys->count; i++) {
        volatile uint8_t different = 0;
        for (size_t k = 0; k < sizeof hash; k++) different |= hash[k] ^ keys->list[i].sha256[k];
        if (!different) found = &keys->list[i];
    }
    return found;
}

static bool host_is_local(struct str host) {
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
    const char *colon = host.n && host.p[host.n - 1] != ']' ? memrchr(host.p, ':', host.n) : NULL;
    int64_t port = 0;
    if (colon) {
        struct str digits = {colon + 1, (size_t)(host.p + host.n - colon) - 1};
        if (digits.n && (digits.p[0] == '-' || !http_integer(digits, &port))) return false;
        host.n = (size_t)(colon - host.p);
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (http_same(host, names[i])) return true;
    return false;
}

static bool origin_is_local(struct str origin) {
    size_t scheme = str_starts(origin, STR("http://")) ? 7 : str_starts(origin, STR("https://")) ? 8 : 0;
    return scheme && host_is_local((struct str){origin.p + scheme, origin.n - scheme});
}

/* The key of the request, or NULL after answering. */
static const struct http_key *require_key(struct http_conn *c) {
    struct str given = c->head.headers[HTTP_AUTHORIZATION];
    bool bearer = given.n > 7 && http_same((struct str){given.p, 7}, "bearer ");
    const struct http_key *key = bearer ? find_key(&c->server->keys, (struct str){given.p + 7, given.n - 7}) : NULL;
    if (key) return key;
    buf_str(&c->extra, STR("WWW-Authenticate: Bearer\r\n"));
    http_problem(c, 0, LOOM_E_UNAUTHORIZED,
                 given.p ? "This API key is not known here" : "Send the header Authorization: Bearer KEY");
    return NULL;
}

bool http_authorize(struct http_conn *c, const struct http_route *route) {
    struct http_server *s = c->server;
    bool all = route && route->all, admin_only = all || str_eq(c->head.method, STR("PUT"));
    struct str host = c->head.headers[HTTP_HOST], origin = c->head.headers[HTTP_ORIGIN],
               ns = c->head.headers[HTTP_NAMESPACE];
    if (s->loopback && ((host.p && !host_is_local(host)) || (origin.p && !origin_is_local(origin)))) {
        http_problem(c, 0, LOOM_E_FORBIDDEN,
                     "Host and Origin must be localhost, 127.0.0.1 or [::1]: this worker listens on loopback only");
        return false;
    }
    if (s->keys.count && !(route && route->open)) {
        const struct http_key *key = require_key(c);
        if (!key) return false;
        struct str bound = str_of(key->ns);
        if ((admin_only && !key->admin) || (bound.n && (all || (ns.p && !str_eq(ns, bound))))) {
            http_problem(c, 0, LOOM_E_FORBIDDEN,
                         admin_only && !key->admin ? "This needs a key with the role admin"
                         : all                     ? "This needs a key that is bound to no namespace"
                                                   : "This API key is bound to another namespace");
            return false;
        }
        if (bound.n) ns = bound;
    }
    c->request.ns = (struct loom_str){ns.p, ns.n};
    return true;
}
