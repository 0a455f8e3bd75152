/* secrets.c: values that guests may use but never see.
 *
 * loom.json: secrets {NAME: {env | file, hosts: […], headers: […]}}. A guest holds the handle "{{secret:NAME}}"; the host
 * puts the value in its place on the way out, only if the activity's definition lists the secret, the request goes to one
 * of the secret's hosts over https (or http that loom.json itself sends to a private place), and the header is one of the
 * secret's. On the way back every value that stands in an answer or an error becomes its handle again, so that no value
 * enters a journal. Not found there: values that the remote side encoded (base64, hex) or cut before echoing them.
 */
#include "net/parts.h"
#include "storage/storage.h"
#include <stdlib.h>
#include <string.h>

enum { SECRET_BYTES_MIN = 6 }; /* shorter ones would be found everywhere in answers */

bool secret_mentioned(struct str text) {
    return text.n && memmem(text.p, text.n, SECRET_HANDLE, sizeof SECRET_HANDLE - 1);
}

int secret_find(const struct secret *all, yyjson_val *policy, struct str name, const struct secret **out,
                struct error *err) {
    bool granted = false;
    size_t i, n;
    yyjson_val *v;
    yyjson_arr_foreach(yyjson_obj_get(policy, "secrets"), i, n, v)
        granted = granted || yyjson_equals_strn(v, name.p, name.n);
    for (*out = all; granted && (*out)->name.p; (*out)++) {
        if (str_eq((*out)->name, name)) return 0;
    }
    return error_set(err, granted ? LOOM_E_NOT_FOUND : LOOM_E_DENIED, "secret %.*s is not in %s",
                     (int)(name.n > 64 ? 64 : name.n), name.p,
                     granted ? "loom.json's secrets" : "the activity's capabilities.secrets");
}

/* ---- out: handles become values ---- */

static int permit(const struct secret *s, struct destination *to, struct str header, struct error *err) {
    const char *why = !host_listed(s->hosts, to)                 ? ": not in its hosts in loom.json"
                      : !listed(s->headers, header)              ? " in this header: not in its headers in loom.json"
                      : !to->tls && !(to->reach & REACH_PRIVATE) ? " only over https"
                                                                 : NULL;
    if (why) return error_set(err, LOOM_E_DENIED, "secret %s may not go to %.200s%s", s->name.p, to->host.p, why);
    if (!to->tls && !to->connect_to) to->reach = REACH_PRIVATE; /* it may go only because the place may be private */
    return 0;
}

int secrets_expand(struct transfer *t, struct str *line) {
    struct str header = {line->p, strcspn(line->p, ":;")};
    struct buf out = {0};
    const char *at = line->p, *open, *close;
    int rc = 0;
    while (!rc && (open = strstr(at, SECRET_HANDLE)) != NULL && (close = strstr(open, "}}")) != NULL) {
        const char *name = open + strlen(SECRET_HANDLE);
        const struct secret *s;
        rc = secret_find(t->secrets, t->policy, (struct str){name, (size_t)(close - name)}, &s, &t->error);
        if (!rc) rc = permit(s, &t->to, header, &t->error);
        if (!rc) buf_json(&out, "%j%j", (struct str){at, (size_t)(open - at)}, s->value);
        at = close + 2;
    }
    if (out.n) *line = arena_json(&t->arena, "%j%s", buf_view(&out), at);
    buf_free(&out);
    return rc;
}

/* ---- back: values become handles ---- */

static struct str replaced(struct arena *a, struct str text, struct str value, struct str handle) {
    struct buf out = {0};
    const char *at = text.p, *end = text.p + text.n, *hit;
    while (text.n && (hit = memmem(at, (size_t)(end - at), value.p, value.n)) != NULL) {
        buf_add(&out, at, (size_t)(hit - at));
        buf_str(&out, handle);
        at = hit + value.n;
    }
    if (!out.n) return text;
    buf_add(&out, at, (size_t)(end - at));
    text = arena_dup(a, buf_view(&out));
    buf_free(&out);
    return text;
}

struct str secrets_redact(struct transfer *t, struct str text) {
    for (const struct secret *s = t->secrets, *found; s->name.p && !SABOTAGE("secret journaled"); s++) {
        if (secret_find(t->secrets, t->policy, s->name, &found, NULL)) continue;
        struct str handle = arena_json(&t->arena, SECRET_HANDLE "%j}}", s->name);
        struct str quoted = arena_json(&t->arena, "%q", s->value);
        text = replaced(&t->arena, text, (struct str){quoted.p + 1, quoted.n - 2}, handle);
        text = replaced(&t->arena, text, s->value, handle);
    }
    return text;
}

/* ---- loom.json ---- */

static int value_read(yyjson_val *doc, const char *dir, struct arena *a, struct secret *s, struct error *err) {
    struct str env = json_str(doc, "env");
    const char *source = env.p ? env.p : path_in(dir, json_str(doc, "file"), a);
    struct buf bytes = {0};
    buf_str(&bytes, str_of(env.p ? getenv(source) : NULL));
    if (!env.p) path_read(source, &bytes);
    s->value = arena_json(a, "%j", buf_view(&bytes));
    buf_free(&bytes);
    s->value.n = s->value.p ? strcspn(s->value.p, CONTROLS) : 0;
    if (s->value.n >= SECRET_BYTES_MIN && strchr("\r\n", s->value.p[s->value.n])) return 0;
    return error_set(err, LOOM_E_INVALID_DOCUMENT,
                     "secret %s: the %s %s must hold a line of 6 bytes or more; set it and start again", s->name.p,
                     env.p ? "environment variable" : "file", source);
}

static int longer_first(const void *a, const void *b) {
    const struct secret *x = a, *y = b;
    return (x->value.n < y->value.n) - (x->value.n > y->value.n);
}

int secrets_read(yyjson_val *doc, const char *dir, struct arena *a, struct secret **out, struct error *err) {
    size_t i, n;
    yyjson_val *name, *v, *usual = json_in(a, STR("[\"authorization\",\"x-api-key\",\"api-key\"]"));
    *out = arena_alloc(a, (yyjson_obj_size(doc) + 1) * sizeof **out);
    yyjson_obj_foreach(doc, i, n, name, v) {
        struct secret *s = &(*out)[i];
        yyjson_val *headers = yyjson_obj_get(v, "headers");
        *s = (struct secret){str_in(name), STR_NONE, yyjson_obj_get(v, "hosts"), headers ? headers : usual};
        int rc = value_read(v, dir, a, s, err);
        if (rc) return rc;
    }
    qsort(*out, yyjson_obj_size(doc), sizeof **out, longer_first);
    return 0;
}
