/* secrets.c: values that guests may use but never see.
 *
 * loom.json: secrets {NAME: {env | file, hosts: […], headers: […]}}. A guest holds the handle "{{secret:NAME}}"; the host
 * puts the value in its place on the way out, only if the activity's definition lists the secret, the request goes to one
 * of the secret's hosts over https (or http that loom.json itself sends to a private place), and the header is one of the
 * secret's. On the way back every value that stands in an answer or an error becomes its handle again, so that no value
 * enters a journal. Not found there: values that the remote side encoded (base64, hex) or cut before echoing them.
 */
#include "net/parts.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SECRET_BYTES_MIN = 6, SECRET_BYTES_MAX = 65536 }; /* shorter ones would be found everywhere in answers */

bool secret_mentioned(struct str text) {
    return text.n && memmem(text.p, text.n, SECRET_HANDLE, sizeof SECRET_HANDLE - 1);
}

int secret_find(const struct secrets *all, const struct net_policy *p, struct str name, const struct secret **out,
                struct error *err) {
    int n = (int)(name.n > 64 ? 64 : name.n);
    if (!p || !word_listed(p->secrets, name))
        return error_set(err, LOOM_E_DENIED, "secret %.*s is not in the activity's capabilities.secrets", n, name.p);
    for (size_t i = 0; i < all->count; i++) {
        *out = &all->items[i];
        if (str_eq((*out)->name, name)) return 0;
    }
    return error_set(err, LOOM_E_NOT_FOUND, "secret %.*s is not in loom.json's secrets", n, name.p);
}

/* ---- out: handles become values ---- */

static int permit(const struct secret *s, struct destination *to, struct str header, struct error *err) {
    const char *why = NULL;
    if (!host_listed(s->hosts, to->host, to->port))
        why = ": not in its hosts in loom.json";
    else if (!word_listed(s->headers, header))
        why = " in this header: not in its headers in loom.json";
    else if (!to->tls && !(to->reach & REACH_PRIVATE))
        why = " only over https";
    if (why) return error_set(err, LOOM_E_DENIED, "secret %s may not go to %.200s%s", s->name.p, to->host.p, why);
    if (!to->tls && !to->connect_to) to->reach = REACH_PRIVATE; /* it may go only because the place may be private */
    return 0;
}

int secrets_expand(const struct secrets *all, const struct net_policy *p, struct destination *to, struct str line,
                   struct buf *out, struct error *err) {
    struct str header = {line.p, strcspn(line.p, ":;")};
    const char *at = line.p, *end = line.p + line.n, *open, *close;
    while ((open = strstr(at, SECRET_HANDLE)) != NULL && (close = strstr(open, "}}")) != NULL) {
        const char *name = open + sizeof SECRET_HANDLE - 1;
        const struct secret *s;
        int rc = secret_find(all, p, (struct str){name, (size_t)(close - name)}, &s, err);
        if (!rc) rc = permit(s, to, header, err);
        if (rc) return rc;
        buf_add(out, at, (size_t)(open - at));
        buf_str(out, s->value);
        at = close + 2;
    }
    buf_add(out, at, (size_t)(end - at));
    return 0;
}

/* ---- back: values become handles ---- */

static bool replace(struct buf *text, struct str value, struct str name) {
    struct buf out = {0};
    const char *at = text->p, *end = text->p + text->n, *hit;
    while (text->n && (hit = memmem(at, (size_t)(end - at), value.p, value.n)) != NULL) {
        buf_add(&out, at, (size_t)(hit - at));
        buf_json(&out, SECRET_HANDLE "%j}}", name);
        at = hit + value.n;
    }
    if (!out.n) return false;
    buf_add(&out, at, (size_t)(end - at));
    buf_free(text);
    *text = out;
    return true;
}

bool secrets_redact(const struct secrets *all, const struct net_policy *p, struct buf *text) {
    bool found = false;
    for (size_t i = 0; i < all->count; i++) {
        const struct secret *s;
        struct buf quoted = {0};
        if (secret_find(all, p, all->items[i].name, &s, NULL)) continue;
        buf_json(&quoted, "%q", s->value);
        found = replace(text, (struct str){quoted.p + 1, quoted.n - 2}, s->name) || found;
        found = replace(text, s->value, s->name) || found;
        buf_free(&quoted);
    }
    return found;
}

/* ---- loom.json ---- */

static int value_read(yyjson_val *doc, const char *dir, struct arena *a, struct secret *s, struct error *err) {
    struct str env = json_str(doc, "env");
    char *bytes = arena_alloc(a, SECRET_BYTES_MAX + 1);
    const char *source = env.p ? env.p : path_in(dir, json_str(doc, "file"), a);
    FILE *f = env.p ? NULL : fopen(source, "re");
    if (env.p && getenv(source)) snprintf(bytes, SECRET_BYTES_MAX, "%s", getenv(source));
    if (f) {
        bytes[fread(bytes, 1, SECRET_BYTES_MAX, f)] = 0;
        fclose(f);
    }
    s->value = (struct str){bytes, strcspn(bytes, CONTROLS)};
    if (s->value.n >= SECRET_BYTES_MIN && strchr("\r\n", bytes[s->value.n])) return 0; /* or the end */
    return error_set(err, LOOM_E_INVALID_DOCUMENT,
                     "secret %s: the %s %s must hold a line of 6 bytes or more; set it and start again", s->name.p,
                     env.p ? "environment variable" : "file", source);
}

static int longer_first(const void *a, const void *b) {
    const struct secret *x = a, *y = b;
    return (x->value.n < y->value.n) - (x->value.n > y->value.n);
}

int secrets_read(yyjson_val *doc, const char *dir, struct arena *a, struct secrets *out, struct error *err) {
    size_t i, n;
    yyjson_val *key, *value, *usual = json_in(a, STR("[\"authorization\",\"x-api-key\",\"api-key\"]"));
    out->items = arena_alloc(a, (yyjson_obj_size(doc) + 1) * sizeof *out->items);
    yyjson_obj_foreach(doc, i, n, key, value) {
        struct secret *s = &out->items[out->count++];
        yyjson_val *headers = yyjson_obj_get(value, "headers");
        *s = (struct secret){.name = str_in(key), .hosts = yyjson_obj_get(value, "hosts")};
        s->headers = headers ? headers : usual;
        int rc = value_read(value, dir, a, s, err);
        if (rc) return rc;
    }
    qsort(out->items, out->count, sizeof *out->items, longer_first);
    return 0;
}
