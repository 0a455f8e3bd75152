/* secrets.c: values that guests may use but never see.
 *
 * loom.json: secrets {NAME: {env | file, hosts: […], headers: […]}}. A guest holds the handle "{{secret:NAME}}"; the host
 * puts the value in its place on the way out, only if the activity's definition lists the secret, the request goes to one
 * of the secret's hosts over https (or http that loom.json itself sends to a private place), and the header is one of the
 * secret's. On the way back every value that stands in an answer or an error becomes its handle again, so that no value
 * enters a journal. Not found there: values that the remote side encoded (base64, hex) or cut before echoing them.
 */
#include "net/parts.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { SECRET_BYTES_MAX = 65536 };

bool secret_header(struct str name) {
    static const char *const headers[] = {"authorization", "x-api-key", "api-key", NULL};
    return word_find(headers, name) != NULL;
}

bool secret_mentioned(struct str text) {
    return text.n && memmem(text.p, text.n, SECRET_HANDLE, sizeof SECRET_HANDLE - 1);
}

const struct secret *secret_find(const struct secrets *s, struct str name) {
    for (size_t i = 0; i < s->count; i++) {
        if (str_eq(s->items[i].name, name)) return &s->items[i];
    }
    return NULL;
}

static bool listed(const struct net_policy *p, struct str name) {
    for (size_t i = 0; p && i < p->secret_count; i++) {
        if (str_eq(p->secrets[i], name)) return true;
    }
    return false;
}

/* ---- out: handles become values ---- */

static bool header_fits(const struct secret *s, struct str header) {
    for (size_t i = 0; i < s->header_count; i++) {
        if (s->headers[i].n == header.n && !strncasecmp(s->headers[i].p, header.p, header.n)) return true;
    }
    return s->header_count == 0 && secret_header(header);
}

static int permit(const struct secrets *all, const struct net_policy *p, const struct destination *to,
                  struct str header, struct str name, struct error *err) {
    int n = (int)(name.n > 64 ? 64 : name.n);
    const struct secret *s = secret_find(all, name);
    if (!s || !listed(p, name))
        return error_set(err, LOOM_E_DENIED,
                         "secret %.*s: the activity's capabilities.secrets and loom.json must list it", n, name.p);
    if (!host_listed((struct strings){s->hosts, s->host_count}, to->host, to->port))
        return error_set(err, LOOM_E_DENIED,
                         "secret %.*s may not go to %.200s:%d; secrets.%.*s.hosts in loom.json lists its hosts", n,
                         name.p, to->host.p, to->port, n, name.p);
    if (!header_fits(s, header))
        return error_set(
            err, LOOM_E_DENIED,
            "secret %.*s may not stand in the header %.*s for %.200s; see secrets.%.*s.headers in loom.json", n, name.p,
            (int)(header.n > 64 ? 64 : header.n), header.p, to->host.p, n, name.p);
    if (!str_eq(to->scheme, STR("https")) && !(to->reach & REACH_PRIVATE))
        return error_set(err, LOOM_E_DENIED, "secret %.*s goes to %.200s only over https", n, name.p, to->host.p);
    return 0;
}

int secrets_expand(const struct secrets *all, const struct net_policy *p, const struct destination *to,
                   struct str header, struct str value, struct buf *out, struct error *err) {
    const char *at = value.p, *end = value.p + value.n, *open;
    while ((open = memmem(at, (size_t)(end - at), SECRET_HANDLE, sizeof SECRET_HANDLE - 1)) != NULL) {
        struct str name = {open + sizeof SECRET_HANDLE - 1, 0};
        const char *close = memmem(name.p, (size_t)(end - name.p), "}}", 2);
        if (!close) break;
        name.n = (size_t)(close - name.p);
        int rc = permit(all, p, to, header, name, err);
        if (rc) return rc;
        buf_add(out, at, (size_t)(open - at));
        buf_str(out, secret_find(all, name)->value);
        at = close + 2;
    }
    buf_add(out, at, (size_t)(end - at));
    return 0;
}

int secret_handle(const struct secrets *all, const struct net_policy *p, struct str name, struct buf *out,
                  struct error *err) {
    int n = (int)(name.n > 64 ? 64 : name.n);
    if (!listed(p, name))
        return error_set(err, LOOM_E_DENIED, "secret %.*s is not in the activity's capabilities.secrets", n, name.p);
    if (!secret_find(all, name))
        return error_set(err, LOOM_E_NOT_FOUND, "secret %.*s is not in loom.json's secrets", n, name.p);
    buf_json(out, SECRET_HANDLE "%j}}", name);
    return 0;
}

/* ---- back: values become handles ---- */

bool json_quote(struct str s, struct buf *out) {
    yyjson_mut_val v = {0};
    size_t n = 0;
    yyjson_mut_set_strn(&v, s.p ? s.p : "", s.n);
    char *text = yyjson_mut_val_write(&v, 0, &n);
    if (text) buf_add(out, text, n);
    free(text);
    return text != NULL;
}

static void replace(struct buf *text, struct str value, struct str name) {
    struct buf out = {0};
    const char *at = text->p, *end = text->p + text->n, *hit;
    while (text->n && (hit = memmem(at, (size_t)(end - at), value.p, value.n)) != NULL) {
        buf_add(&out, at, (size_t)(hit - at));
        buf_json(&out, SECRET_HANDLE "%j}}", name);
        at = hit + value.n;
    }
    if (!out.n) return;
    buf_add(&out, at, (size_t)(end - at));
    buf_free(text);
    *text = out;
}

void secrets_redact(const struct secrets *all, const struct net_policy *p, bool json, struct buf *text) {
    for (size_t i = 0; i < all->count; i++) {
        const struct secret *s = &all->items[i];
        struct buf quoted = {0};
        if (!listed(p, s->name)) continue;
        if (!json)
            replace(text, s->value, s->name);
        else if (json_quote(s->value, &quoted))
            replace(text, (struct str){quoted.p + 1, quoted.n - 2}, s->name);
        buf_free(&quoted);
    }
}

/* ---- loom.json ---- */

static int value_read(yyjson_val *doc, const char *dir, struct arena *a, struct secret *s, struct error *err) {
    struct str env = json_str(doc, "env"), file = json_str(doc, "file");
    const char *name = s->name.p;
    if (!env.p == !file.p)
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "secrets.%s must have either env or file, a string", name);
    if (env.p) {
        const char *value = getenv(arena_dup(a, env).p);
        if (!value || !*value)
            return error_set(err, LOOM_E_INVALID_DOCUMENT,
                             "secret %s: the environment variable %s is not set; set it and start again", name, env.p);
        s->value = arena_dup(a, str_of(value));
        return 0;
    }
    const char *path = path_in(dir, file, a);
    FILE *f = fopen(path, "re");
    char *bytes = arena_alloc(a, SECRET_BYTES_MAX);
    size_t n = f ? fread(bytes, 1, SECRET_BYTES_MAX, f) : 0;
    int failed = !f || ferror(f) ? errno : 0;
    if (f) fclose(f);
    while (n && (bytes[n - 1] == '\n' || bytes[n - 1] == '\r')) n--;
    if (failed || n == 0 || n == SECRET_BYTES_MAX)
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "secret %s: the file %s %s", name, path,
                         failed ? strerror(failed) : "must hold 1 to 65,535 bytes");
    s->value = (struct str){bytes, n};
    return 0;
}

static int secret_read(yyjson_val *doc, const char *dir, struct arena *a, struct secret *s, struct error *err) {
    static const char *const known[] = {"env", "file", "hosts", "headers", NULL};
    const char *field = arena_json(a, "secrets.%j", s->name).p;
    struct strings hosts, headers;
    int rc = fields_check(doc, known, field, err);
    if (!rc) rc = strings_read(yyjson_obj_get(doc, "hosts"), true, arena_json(a, "%s.hosts", field).p, a, &hosts, err);
    if (!rc)
        rc = strings_read(yyjson_obj_get(doc, "headers"), false, arena_json(a, "%s.headers", field).p, a, &headers,
                          err);
    if (!rc && hosts.count == 0)
        rc = error_set(err, LOOM_E_INVALID_DOCUMENT, "%s.hosts must list the hosts that may get the value", field);
    if (!rc) rc = value_read(doc, dir, a, s, err);
    if (rc) return rc;
    if (!printable(s->value))
        return error_set(err, LOOM_E_INVALID_DOCUMENT,
                         "%s: the value holds a control character, which no header can carry", field);
    s->hosts = hosts.items, s->host_count = hosts.count;
    s->headers = headers.items, s->header_count = headers.count;
    return 0;
}

static int longer_first(const void *a, const void *b) {
    const struct secret *x = a, *y = b;
    return (x->value.n < y->value.n) - (x->value.n > y->value.n);
}

int secrets_read(yyjson_val *doc, const char *dir, struct arena *a, struct secrets *out, struct error *err) {
    if (doc && !yyjson_is_obj(doc))
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "secrets must be an object of NAME: {env | file, hosts}");
    out->items = arena_alloc(a, (yyjson_obj_size(doc) + 1) * sizeof *out->items);
    size_t i, n;
    yyjson_val *key, *value;
    yyjson_obj_foreach(doc, i, n, key, value) {
        struct secret *s = &out->items[out->count++];
        s->name = arena_dup(a, (struct str){yyjson_get_str(key), yyjson_get_len(key)});
        if (!header_name_ok(s->name))
            return error_set(err, LOOM_E_INVALID_DOCUMENT,
                             "\"%.100s\" is not a name for a secret; use letters, digits, '_', '-'", s->name.p);
        int rc = secret_read(value, dir, a, s, err);
        if (rc) return rc;
    }
    qsort(out->items, out->count, sizeof *out->items, longer_first);
    return 0;
}
