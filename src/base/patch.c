/* patch.c: JSON Pointer (RFC 6901) and JSON Patch (RFC 6902): lookup, apply with inverse, diff.
 *
 * An operation is made of edits: insert, remove, replace. Each edit is recorded and can be undone exactly, place among
 * its siblings included: a patch that fails leaves the document as it was, to the byte. The inverse patch gives back
 * equal values, but RFC 6902 cannot say where a member stood: members that it adds again come last.
 *
 * Values that are replaced or removed stay in the document's pool until it is freed: a long-lived document is renewed
 * by its owner (write and parse, or copy) now and then. Walks are recursive; JSON_DEPTH_MAX bounds them, and apply
 * refuses to nest deeper.
 */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

/* ---- pointers ---- */

static bool pointer_ok(struct str p) {
    for (size_t i = 0; i < p.n; i++)
        if (p.p[i] == '~' && (i + 1 == p.n || (p.p[i + 1] != '0' && p.p[i + 1] != '1'))) return false;
    return p.n == 0 || p.p[0] == '/';
}

/* Takes "/token" off the front of rest. */
static bool next_token(struct str *rest, struct str *token) {
    if (rest->n == 0) return false;
    const char *from = rest->p + 1, *slash = memchr(from, '/', rest->n - 1);
    size_t n = slash ? (size_t)(slash - from) : rest->n - 1;
    *token = (struct str){from, n};
    *rest = (struct str){from + n, rest->n - 1 - n};
    return true;
}

static void token_unescape(struct str token, struct buf *name) {
    for (size_t i = 0; i < token.n; i++)
        buf_char(name, token.p[i] != '~' ? token.p[i] : token.p[++i] == '0' ? '~' : '/');
}

static bool token_is(struct str token, const char *name, size_t n) {
    if (!memchr(token.p, '~', token.n)) return str_eq(token, (struct str){name, n});
    struct buf plain = {0};
    token_unescape(token, &plain);
    bool same = str_eq(buf_view(&plain), (struct str){name, n});
    buf_free(&plain);
    return same;
}

/* An array index: digits without leading zeros; SIZE_MAX for anything else. */
static size_t token_index(struct str token) {
    size_t index = 0;
    if (token.n == 0 || token.n > 9 || (token.n > 1 && token.p[0] == '0')) return SIZE_MAX;
    for (size_t i = 0; i < token.n; i++) {
        if (token.p[i] < '0' || token.p[i] > '9') return SIZE_MAX;
        index = index * 10 + (size_t)(token.p[i] - '0');
    }
    return index;
}

yyjson_val *json_at(yyjson_val *root, struct str pointer) {
    yyjson_val *v = pointer_ok(pointer) ? root : NULL;
    for (struct str token; v && next_token(&pointer, &token);) {
        yyjson_obj_iter it = yyjson_obj_iter_with(v);
        yyjson_val *name = NULL;
        if (yyjson_is_arr(v)) {
            v = yyjson_arr_get(v, token_index(token));
            continue;
        }
        while ((name = yyjson_obj_iter_next(&it)) && !token_is(token, yyjson_get_str(name), yyjson_get_len(name)))
            ;
        v = name ? yyjson_obj_iter_get_val(name) : NULL;
    }
    return v;
}

/* Where a pointer leads. */
struct place {
    struct str path, token;       /* token: the last one, empty for the root */
    yyjson_mut_val *parent;       /* NULL for the root */
    yyjson_mut_val *name, *value; /* the member's name; value NULL: nothing there (yet) */
    size_t index;                 /* among the parent's children; SIZE_MAX: no place in this array */
    size_t depth;                 /* containers around it */
};

static void step(struct place *p, struct str token) {
    *p = (struct place){.path = p->path, .token = token, .parent = p->value, .depth = p->depth + 1};
    if (yyjson_mut_is_arr(p->parent)) {
        size_t len = yyjson_mut_arr_size(p->parent);
        p->index = str_eq(token, STR("-")) ? len : token_index(token);
        p->value = yyjson_mut_arr_get(p->parent, p->index);
        p->index = p->index > len ? SIZE_MAX : p->index;
        return;
    }
    yyjson_mut_obj_iter it = yyjson_mut_obj_iter_with(p->parent);
    for (yyjson_mut_val *name; (name = yyjson_mut_obj_iter_next(&it)) != NULL; p->index++)
        if (token_is(token, yyjson_mut_get_str(name), yyjson_mut_get_len(name))) {
            p->name = name;
            p->value = yyjson_mut_obj_iter_get_val(name);
            return;
        }
}

/* NULL, or why the pointer leads nowhere. A last token without a value is a place all the same. */
static const char *resolve(yyjson_mut_val *root, struct str path, struct place *p) {
    *p = (struct place){.path = path, .value = root};
    if (!path.p || !pointer_ok(path)) return "not a JSON Pointer; expected \"\" or /name/0/…";
    for (struct str token; next_token(&path, &token);) {
        if (!yyjson_mut_is_ctn(p->value)) return "there is no object or array around it";
        step(p, token);
    }
    return NULL;
}

yyjson_mut_val *json_mut_at(yyjson_mut_val *root, struct str pointer) {
    struct place p;
    return resolve(root, pointer, &p) ? NULL : p.value;
}

/* ---- edits ---- */

enum edit_kind { INSERTED, REMOVED, REPLACED };

struct edit {
    enum edit_kind kind;
    struct place at;
    yyjson_mut_val *old; /* REMOVED, REPLACED: holds what was there */
    size_t text;         /* where its inverse begins in work.texts */
};

struct work {
    yyjson_mut_doc *doc;
    struct buf edits; /* of struct edit */
    struct buf texts; /* inverse operations, in the order of the edits */
    bool inverse;
};

static void record(struct work *w, enum edit_kind kind, const struct place *at, yyjson_mut_val *old) {
    static const char *const undo[] = {"remove", "add", "replace"};
    struct edit e = {kind, *at, old, w->texts.n};
    buf_add(&w->edits, &e, sizeof e);
    if (!w->inverse) return;
    struct buf path = {0}; /* "-" becomes the index that it meant */
    buf_add(&path, at->path.p, at->path.n - at->token.n);
    if (yyjson_mut_is_arr(at->parent))
        buf_json(&path, "%u", (uint64_t)at->index);
    else
        buf_str(&path, at->token);
    buf_json(&w->texts, "{\"op\":%z,\"path\":%q", undo[kind], buf_view(&path));
    if (old) {
        buf_str(&w->texts, STR(",\"value\":"));
        json_write_mut(old, &w->texts);
    }
    buf_char(&w->texts, '}');
    buf_free(&path);
}

/* Exchanges what two nodes hold; each stays where it hangs. */
static void swap(yyjson_mut_val *a, yyjson_mut_val *b) {
    yyjson_mut_val was = *a;
    a->tag = b->tag;
    a->uni = b->uni;
    b->tag = was.tag;
    b->uni = was.uni;
}

static void unlink_child(const struct place *p) {
    if (p->name)
        yyjson_mut_obj_remove(p->parent, p->name);
    else
        yyjson_mut_arr_remove(p->parent, p->index);
}

static void link_child(const struct place *p, yyjson_mut_val *value) {
    if (p->name)
        yyjson_mut_obj_insert(p->parent, p->name, value, p->index);
    else
        yyjson_mut_arr_insert(p->parent, value, p->index);
}

static void undo(const struct edit *e) {
    if (e->kind == INSERTED)
        unlink_child(&e->at);
    else if (e->kind == REMOVED)
        link_child(&e->at, e->old);
    else
        swap(e->at.value, e->old);
}

static size_t height(yyjson_mut_val *v) {
    size_t max = 0, i, n;
    yyjson_mut_val *name, *child;
    if (yyjson_mut_is_obj(v)) yyjson_mut_obj_foreach(v, i, n, name, child) {
            size_t h = height(child);
            max = h > max ? h : max;
        }
    else
        yyjson_mut_arr_foreach(v, i, n, child) {
            size_t h = height(child);
            max = h > max ? h : max;
        }
    return max + yyjson_mut_is_ctn(v);
}

/* Puts value at a place: over what is there, or as a new child; into an array always as a new one, unless `over`. */
static const char *put(struct work *w, struct place *p, yyjson_mut_val *value, bool over) {
    if (p->depth + height(value) > JSON_DEPTH_MAX) return "the document would nest deeper than 100 levels";
    if (p->index == SIZE_MAX) return "the array has no such index";
    if (p->value && (over || !yyjson_mut_is_arr(p->parent))) {
        swap(p->value, value);
        record(w, REPLACED, p, value);
        return NULL;
    }
    if (yyjson_mut_is_obj(p->parent)) {
        struct buf name = {0};
        token_unescape(p->token, &name);
        p->name = yyjson_mut_strncpy(w->doc, name.p ? name.p : "", name.n);
        buf_free(&name);
    }
    link_child(p, value);
    record(w, INSERTED, p, NULL);
    return NULL;
}

static const char *take(struct work *w, const struct place *p) {
    if (!p->parent) return "the whole document cannot be removed; replace it";
    unlink_child(p);
    record(w, REMOVED, p, p->value);
    return NULL;
}

/* ---- test ---- */

static bool same_number(void *a, void *b) {
    yyjson_val *x = a, *y = b;
    if (unsafe_yyjson_is_int(a) && unsafe_yyjson_is_int(b))
        return x->uni.u64 == y->uni.u64 &&
               (unsafe_yyjson_get_subtype(a) == unsafe_yyjson_get_subtype(b) || x->uni.i64 >= 0);
    return unsafe_yyjson_get_num(a) == unsafe_yyjson_get_num(b);
}

/* Equal as RFC 6902 means it: numbers by value, objects without regard to order. */
static bool same(yyjson_mut_val *a, yyjson_val *b) {
    size_t i, n;
    yyjson_mut_val *name, *child;
    yyjson_val *other = b + 1;
    yyjson_obj_iter it = yyjson_obj_iter_with(b);
    yyjson_type type = unsafe_yyjson_get_type(a);
    if (type != unsafe_yyjson_get_type(b)) return false;
    if (type == YYJSON_TYPE_NUM) return same_number(a, b);
    if (unsafe_yyjson_get_len(a) != unsafe_yyjson_get_len(b)) return false;
    if (type == YYJSON_TYPE_STR || type == YYJSON_TYPE_RAW)
        return memcmp(a->uni.str, b->uni.str, unsafe_yyjson_get_len(a)) == 0;
    yyjson_mut_obj_foreach(a, i, n, name, child) {
        other = yyjson_obj_iter_getn(&it, yyjson_mut_get_str(name), yyjson_mut_get_len(name));
        if (!other || !same(child, other)) return false;
    }
    yyjson_mut_arr_foreach(a, i, n, child) {
        if (!same(child, other)) return false;
        other = unsafe_yyjson_get_next(other);
    }
    return unsafe_yyjson_get_subtype(a) == unsafe_yyjson_get_subtype(b);
}

/* ---- operations: each answers NULL or why it cannot be done ---- */

struct op {
    struct str path, from;
    yyjson_val *value;
};

static const char *resolve_value(struct work *w, struct str path, struct place *p) {
    const char *fault = resolve(w->doc->root, path, p);
    return fault || p->value ? fault : "there is nothing at this place";
}

static const char *op_add(struct work *w, const struct op *op) {
    struct place p;
    const char *fault = resolve(w->doc->root, op->path, &p);
    return fault ? fault : put(w, &p, yyjson_val_mut_copy(w->doc, op->value), false);
}

static const char *op_replace(struct work *w, const struct op *op) {
    struct place p;
    const char *fault = resolve_value(w, op->path, &p);
    return fault ? fault : put(w, &p, yyjson_val_mut_copy(w->doc, op->value), true);
}

static const char *op_remove(struct work *w, const struct op *op) {
    struct place p;
    const char *fault = resolve_value(w, op->path, &p);
    return fault ? fault : take(w, &p);
}

static const char *op_copy(struct work *w, const struct op *op) {
    struct place from, to;
    const char *fault = resolve_value(w, op->from, &from);
    if (!fault) fault = resolve(w->doc->root, op->path, &to);
    return fault ? fault : put(w, &to, yyjson_mut_val_mut_copy(w->doc, from.value), false);
}

static const char *op_move(struct work *w, const struct op *op) {
    struct place from, to;
    const char *fault = resolve_value(w, op->from, &from);
    if (fault || str_eq(op->from, op->path)) return fault;
    if (str_starts(op->path, op->from) && op->path.p[op->from.n] == '/') return "a value cannot move into itself";
    fault = take(w, &from);
    if (!fault) fault = resolve(w->doc->root, op->path, &to);
    return fault ? fault : put(w, &to, from.value, false);
}

static const char *op_test(struct work *w, const struct op *op) {
    struct place p;
    const char *fault = resolve_value(w, op->path, &p);
    return fault || same(p.value, op->value) ? fault : "the value is another one";
}

static const struct {
    const char *name;
    bool from, value; /* fields that it needs besides path */
    const char *(*run)(struct work *w, const struct op *op);
} ops[] = {
    {"add", false, true, op_add},   {"remove", false, false, op_remove}, {"replace", false, true, op_replace},
    {"move", true, false, op_move}, {"copy", true, false, op_copy},      {"test", false, true, op_test},
};

static const char *run(struct work *w, yyjson_val *line) {
    struct op op = {json_str(line, "path"), json_str(line, "from"), yyjson_obj_get(line, "value")};
    struct str name = json_str(line, "op");
    if (!op.path.p) return "it needs a path";
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (str_eq(name, str_of(ops[i].name))) {
            if (ops[i].from && !op.from.p) return "it needs a field \"from\"";
            if (ops[i].value && !op.value) return "it needs a field \"value\"";
            return ops[i].run(w, &op);
        }
    return "its op is not add, remove, replace, move, copy or test";
}

/* The inverse operations, last edit first. */
static void write_inverse(const struct work *w, struct buf *out) {
    const struct edit *edits = (const struct edit *)(const void *)w->edits.p;
    size_t end = w->texts.n;
    buf_char(out, '[');
    for (size_t i = w->edits.n / sizeof *edits; i-- > 0; end = edits[i].text) {
        buf_add(out, w->texts.p + edits[i].text, end - edits[i].text);
        if (i) buf_char(out, ',');
    }
    buf_char(out, ']');
}

int patch_apply(yyjson_mut_doc *doc, yyjson_val *patch, struct buf *inverse, struct error *err) {
    struct work w = {.doc = doc, .inverse = inverse};
    const char *fault = NULL;
    int rc = LOOM_OK;
    yyjson_arr_iter it = yyjson_arr_iter_with(patch);
    yyjson_val *line = NULL;
    if (!yyjson_is_arr(patch))
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "a patch is an array of operations (RFC 6902)");
    while (!fault && (line = yyjson_arr_iter_next(&it)) != NULL) fault = run(&w, line);
    if (fault) {
        struct str op = json_str(line, "op"), path = json_str(line, "path");
        rc = error_set(err, LOOM_E_INVALID_ARGUMENT, "patch operation %zu (%.*s \"%.*s\"): %s", it.idx - 1,
                       op.n > 20 ? 20 : (int)op.n, op.n ? op.p : "", path.n > 200 ? 200 : (int)path.n,
                       path.n ? path.p : "", fault);
        for (size_t i = w.edits.n / sizeof(struct edit); i-- > 0;)
            undo((const struct edit *)(const void *)w.edits.p + i);
    } else if (inverse) {
        write_inverse(&w, inverse);
    }
    buf_free(&w.edits);
    buf_free(&w.texts);
    return rc;
}

/* ---- diff ---- */

struct diff {
    struct buf path, *out;
    bool any;
};

static void emit(struct diff *d, const char *op, yyjson_val *value) {
    buf_json(d->out, "%s{\"op\":%z,\"path\":%q", d->any ? "," : "", op, buf_view(&d->path));
    if (value) {
        buf_str(d->out, STR(",\"value\":"));
        json_write(value, d->out);
    }
    buf_char(d->out, '}');
    d->any = true;
}

static void diff_values(struct diff *d, yyjson_val *from, yyjson_val *to);

/* One child: a NULL side means that it is absent there. The path gets its token for as long. */
static void diff_child(struct diff *d, yyjson_val *from, yyjson_val *to) {
    if (from && to)
        diff_values(d, from, to);
    else
        emit(d, from ? "remove" : "add", to);
}

static void diff_member(struct diff *d, yyjson_val *name, yyjson_val *from, yyjson_val *to) {
    size_t n = d->path.n;
    buf_char(&d->path, '/');
    for (size_t i = 0; i < yyjson_get_len(name); i++) {
        char c = yyjson_get_str(name)[i];
        buf_str(&d->path, c == '~' ? STR("~0") : c == '/' ? STR("~1") : (struct str){&c, 1});
    }
    diff_child(d, from, to);
    d->path.n = n;
}

static void diff_objects(struct diff *d, yyjson_val *from, yyjson_val *to) {
    yyjson_obj_iter in_from = yyjson_obj_iter_with(from), in_to = yyjson_obj_iter_with(to);
    yyjson_val *name, *value;
    size_t i, n;
    yyjson_obj_foreach(from, i, n, name, value) {
        if (!yyjson_obj_iter_getn(&in_to, yyjson_get_str(name), yyjson_get_len(name)))
            diff_member(d, name, value, NULL);
    }
    yyjson_obj_foreach(to, i, n, name, value)
        diff_member(d, name, yyjson_obj_iter_getn(&in_from, yyjson_get_str(name), yyjson_get_len(name)), value);
}

static void diff_element(struct diff *d, size_t index, yyjson_val *from, yyjson_val *to) {
    size_t n = d->path.n;
    buf_json(&d->path, "/%u", (uint64_t)index);
    diff_child(d, from, to);
    d->path.n = n;
}

static yyjson_val **elements(yyjson_val *arr) {
    yyjson_val **list = mem_alloc((yyjson_arr_size(arr) + 1) * sizeof(yyjson_val *)), *v;
    size_t i, n;
    yyjson_arr_foreach(arr, i, n, v) list[i] = v;
    return list;
}

/* Equal ends are kept; what is between is compared pair by pair, the rest removed from behind or added. */
static void diff_arrays(struct diff *d, yyjson_val *from, yyjson_val *to) {
    size_t from_n = yyjson_arr_size(from), to_n = yyjson_arr_size(to), i = 0;
    yyjson_val **a = elements(from), **b = elements(to);
    while (i < from_n && i < to_n && yyjson_equals(a[i], b[i])) i++;
    while (from_n > i && to_n > i && yyjson_equals(a[from_n - 1], b[to_n - 1])) from_n--, to_n--;
    for (; i < from_n && i < to_n; i++) diff_element(d, i, a[i], b[i]);
    while (from_n-- > to_n) diff_element(d, from_n, a[from_n], NULL);
    for (; i < to_n; i++) diff_element(d, i, NULL, b[i]);
    free(a);
    free(b);
}

static void diff_values(struct diff *d, yyjson_val *from, yyjson_val *to) {
    if (yyjson_is_obj(from) && yyjson_is_obj(to))
        diff_objects(d, from, to);
    else if (yyjson_is_arr(from) && yyjson_is_arr(to))
        diff_arrays(d, from, to);
    else if (!yyjson_equals(from, to))
        emit(d, "replace", to);
}

void patch_diff(yyjson_val *from, yyjson_val *to, struct buf *out) {
    struct diff d = {.out = out};
    buf_char(out, '[');
    diff_values(&d, from, to);
    buf_char(out, ']');
    buf_free(&d.path);
}
