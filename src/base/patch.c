/* patch.c: JSON Pointer (RFC 6901) and JSON Patch (RFC 6902): lookup, apply with inverse, diff.
 *
 * An operation is made of edits: insert, remove, replace. Each edit is recorded and can be undone exactly, place among
 * its siblings included: a patch that fails leaves the document as it was, to the byte. The inverse patch gives back
 * equal values, but RFC 6902 cannot say where a member stood: members that it adds again come last.
 *
 * Values that are replaced or removed stay in the document's pool until it is freed: a long-lived document is renewed
 * by its owner (write and parse, or copy) now and then. `test` takes 1 and 1.0 for equal, inside of arrays and objects
 * it does not. Walks are recursive; JSON_DEPTH_MAX bounds them, and apply refuses to nest deeper.
 */
#include "base/base.h"

#include <string.h>

/* ---- pointers ---- */

static bool pointer_ok(struct str p) {
    bool ok = p.n == 0 || p.p[0] == '/';
    for (size_t i = 0; i < p.n; i++)
        ok = ok && (p.p[i] != '~' || (i + 1 < p.n && (p.p[i + 1] == '0' || p.p[i + 1] == '1')));
    return ok;
}

/* Takes "/token" off the front of rest and unescapes it into name; false at the end. */
static bool next_name(struct str *rest, struct buf *name) {
    const char *p = rest->p, *end = p + rest->n;
    if (rest->n == 0) return false;
    buf_clear(name);
    buf_reserve(name, rest->n);
    for (p++; p < end && *p != '/'; p++) buf_char(name, *p != '~' ? *p : *++p == '0' ? '~' : '/');
    *rest = (struct str){p, (size_t)(end - p)};
    return true;
}

/* Digits without leading zeros; SIZE_MAX for anything else. */
static size_t array_index(const struct buf *name) {
    size_t index = 0;
    bool ok = name->n > 0 && name->n < 10 && (name->n == 1 || name->p[0] != '0');
    for (size_t i = 0; i < name->n && ok; i++) {
        ok = name->p[i] >= '0' && name->p[i] <= '9';
        index = index * 10 + (size_t)(name->p[i] - '0');
    }
    return ok ? index : SIZE_MAX;
}

yyjson_val *json_at(yyjson_val *root, struct str pointer) {
    struct buf name = {0};
    yyjson_val *v = pointer_ok(pointer) ? root : NULL;
    while (v && next_name(&pointer, &name))
        v = yyjson_is_arr(v) ? yyjson_arr_get(v, array_index(&name)) : yyjson_obj_getn(v, name.p, name.n);
    buf_free(&name);
    return v;
}

/* Where a pointer leads. */
struct place {
    struct str path;
    yyjson_mut_val *parent;       /* NULL for the root */
    yyjson_mut_val *name, *value; /* the member's name; value NULL: nothing there (yet) */
    size_t index;                 /* among the parent's children; SIZE_MAX: no place in this array */
    size_t depth;                 /* containers around it */
};

static void find_element(struct place *p, const struct buf *name) {
    size_t len = yyjson_mut_arr_size(p->parent);
    size_t index = str_eq(buf_view(name), STR("-")) ? len : array_index(name);
    p->value = yyjson_mut_arr_get(p->parent, index);
    p->index = index > len ? SIZE_MAX : index;
}

static void find_member(struct place *p, const struct buf *name) {
    yyjson_mut_obj_iter it = yyjson_mut_obj_iter_with(p->parent);
    for (yyjson_mut_val *n; !p->value && (n = yyjson_mut_obj_iter_next(&it)) != NULL;)
        if (yyjson_mut_equals_strn(n, name->p, name->n)) {
            p->name = n;
            p->value = yyjson_mut_obj_iter_get_val(n);
        } else {
            p->index++;
        }
}

/* NULL, or why the pointer leads nowhere; name gets the last token. A place without a value is a place all the same. */
static const char *resolve(yyjson_mut_val *root, struct str path, struct place *p, struct buf *name) {
    *p = (struct place){.path = path, .value = root};
    if (!path.p || !pointer_ok(path)) return "it needs a JSON Pointer: \"\" or /name/0/…";
    while (next_name(&path, name)) {
        if (!yyjson_mut_is_ctn(p->value)) return "there is no object or array around this place";
        *p = (struct place){.path = p->path, .parent = p->value, .depth = p->depth + 1};
        (yyjson_mut_is_arr(p->parent) ? find_element : find_member)(p, name);
    }
    return NULL;
}

yyjson_mut_val *json_mut_at(yyjson_mut_val *root, struct str pointer) {
    struct place p;
    struct buf name = {0};
    const char *fault = resolve(root, pointer, &p, &name);
    buf_free(&name);
    return fault ? NULL : p.value;
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
    struct buf texts; /* their inverse operations, in the order of the edits */
    struct buf name;  /* the last token of the place in hand */
};

static void record(struct work *w, enum edit_kind kind, const struct place *at, yyjson_mut_val *old) {
    static const char *const inverse[] = {"remove", "add", "replace"};
    struct edit e = {kind, *at, old, w->texts.n};
    struct buf path = {0};
    buf_str(&path, at->path);
    if (yyjson_mut_is_arr(at->parent)) { /* "-" becomes the index that it meant */
        path.n -= w->name.n;
        buf_json(&path, "%u", (uint64_t)at->index);
    }
    buf_json(&w->texts, "{\"op\":%z,\"path\":%q%s", inverse[kind], buf_view(&path), old ? ",\"value\":" : "");
    json_write_mut(old, &w->texts);
    buf_char(&w->texts, '}');
    buf_free(&path);
    buf_add(&w->edits, &e, sizeof e);
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

/* Levels of containers. A container's ring holds its elements, or names and values in turn. */
static size_t height(yyjson_mut_val *v) {
    size_t max = 0, left = yyjson_mut_is_ctn(v) ? yyjson_mut_get_len(v) << yyjson_mut_is_obj(v) : 0;
    for (yyjson_mut_val *child = v->uni.ptr; left-- > 0; child = child->next) {
        size_t h = height(child);
        max = h > max ? h : max;
    }
    return max + yyjson_mut_is_ctn(v);
}

/* ---- operations on a place: each answers NULL or why it cannot be done ---- */

static const char *replace(struct work *w, struct place *at, yyjson_mut_val *value) {
    swap(at->value, value);
    record(w, REPLACED, at, value);
    return NULL;
}

static const char *add(struct work *w, struct place *at, yyjson_mut_val *value) {
    if (at->value && !yyjson_mut_is_arr(at->parent)) return replace(w, at, value);
    if (at->index == SIZE_MAX) return "the array has no such index";
    if (yyjson_mut_is_obj(at->parent)) at->name = yyjson_mut_strncpy(w->doc, w->name.p, w->name.n);
    link_child(at, value);
    record(w, INSERTED, at, NULL);
    return NULL;
}

static const char *take(struct work *w, struct place *at, yyjson_mut_val *unused) {
    (void)unused;
    if (!at->parent) return "the whole document cannot be removed, only replaced";
    unlink_child(at);
    record(w, REMOVED, at, at->value);
    return NULL;
}

static const char *test(struct work *w, struct place *at, yyjson_mut_val *value) {
    (void)w;
    bool real = yyjson_mut_is_real(at->value) || yyjson_mut_is_real(value);
    bool same = real && yyjson_mut_is_num(at->value) && yyjson_mut_is_num(value)
                    ? yyjson_mut_get_num(at->value) == yyjson_mut_get_num(value)
                    : yyjson_mut_equals(at->value, value);
    return same ? NULL : "the value there is another one";
}

enum source { NONE, VALUE, COPY, MOVE };

static const struct op {
    const char *name;
    enum source source; /* of its value: the field "value", or what is at "from" */
    bool exists;        /* something must be at "path" already */
    const char *(*run)(struct work *w, struct place *at, yyjson_mut_val *value);
} ops[] = {
    {"add", VALUE, false, add}, {"replace", VALUE, true, replace}, {"test", VALUE, true, test},
    {"copy", COPY, false, add}, {"move", MOVE, false, add},        {"remove", NONE, true, take},
};

/* The operation's value as a node that hangs nowhere. */
static const char *value_of(struct work *w, const struct op *op, yyjson_val *line, yyjson_mut_val **value) {
    struct str path = json_str(line, "path"), from = json_str(line, "from");
    struct place p;
    if (op->source == VALUE) {
        *value = yyjson_val_mut_copy(w->doc, yyjson_obj_get(line, "value"));
        return *value ? NULL : "it needs a value";
    }
    if (op->source == NONE) return NULL;
    const char *fault = resolve(w->doc->root, from, &p, &w->name);
    if (fault || !p.value) return fault ? fault : "there is nothing at \"from\"";
    *value = op->source == COPY ? yyjson_mut_val_mut_copy(w->doc, p.value) : p.value;
    if (op->source == COPY) return NULL;
    if (path.n > from.n && str_starts(path, from) && path.p[from.n] == '/') return "a value cannot move into itself";
    return take(w, &p, NULL);
}

static const char *run(struct work *w, yyjson_val *line) {
    struct str name = json_str(line, "op");
    const struct op *op = ops, *end = ops + sizeof ops / sizeof *ops;
    yyjson_mut_val *value = NULL;
    struct place at;
    while (op < end && !str_eq(name, str_of(op->name))) op++;
    if (op == end) return "its op is not add, remove, replace, move, copy or test";
    const char *fault = value_of(w, op, line, &value);
    if (!fault) fault = resolve(w->doc->root, json_str(line, "path"), &at, &w->name);
    if (fault) return fault;
    if (op->exists && !at.value) return "there is nothing at this place";
    if (value && at.depth + height(value) > JSON_DEPTH_MAX) return "the document would nest deeper than 100 levels";
    return op->run(w, &at, value);
}

/* ---- patches ---- */

static void write_inverse(const struct work *w, const struct edit *edits, size_t count, struct buf *out) {
    size_t end = w->texts.n;
    buf_char(out, '[');
    for (size_t i = count; i-- > 0; end = edits[i].text)
        buf_json(out, "%j%s", (struct str){w->texts.p + edits[i].text, end - edits[i].text}, i ? "," : "");
    buf_char(out, ']');
}

int patch_apply(yyjson_mut_doc *doc, yyjson_val *patch, struct buf *inverse, struct error *err) {
    struct work w = {.doc = doc};
    const char *fault = yyjson_is_arr(patch) ? NULL : "a patch is an array of operations (RFC 6902)";
    yyjson_arr_iter it = yyjson_arr_iter_with(patch);
    yyjson_val *line = NULL;
    while (!fault && (line = yyjson_arr_iter_next(&it)) != NULL) fault = run(&w, line);
    const struct edit *edits = (const void *)w.edits.p;
    size_t count = w.edits.n / sizeof *edits;
    if (fault) {
        struct str path = json_str(line, "path");
        error_set(err, LOOM_E_INVALID_ARGUMENT, "patch operation %zu at \"%.*s\": %s", it.idx - (line != NULL),
                  path.n > 200 ? 200 : (int)path.n, path.n ? path.p : "", fault);
        while (count-- > 0) undo(&edits[count]);
    } else if (inverse) {
        write_inverse(&w, edits, count, inverse);
    }
    buf_free(&w.edits);
    buf_free(&w.texts);
    buf_free(&w.name);
    return fault ? LOOM_E_INVALID_ARGUMENT : LOOM_OK;
}

/* ---- diff ---- */

struct diff {
    struct buf path, *out;
    const char *comma;
};

static void diff_arrays(struct diff *d, yyjson_val *from, yyjson_val *to);
static void diff_objects(struct diff *d, yyjson_val *from, yyjson_val *to);

/* The difference at d->path; NULL: absent on that side. */
static void diff_values(struct diff *d, yyjson_val *from, yyjson_val *to) {
    if (yyjson_is_obj(from) && yyjson_is_obj(to)) {
        diff_objects(d, from, to);
    } else if (yyjson_is_arr(from) && yyjson_is_arr(to)) {
        diff_arrays(d, from, to);
    } else if (!yyjson_equals(from, to)) {
        const char *op = !from ? "add" : !to ? "remove" : "replace";
        buf_json(d->out, "%s{\"op\":%z,\"path\":%q%s", d->comma, op, buf_view(&d->path), to ? ",\"value\":" : "");
        json_write(to, d->out);
        buf_char(d->out, '}');
        d->comma = ",";
    }
}

static void diff_member(struct diff *d, yyjson_val *name, yyjson_val *from, yyjson_val *to) {
    size_t n = d->path.n;
    buf_char(&d->path, '/');
    for (const char *c = yyjson_get_str(name), *end = c + yyjson_get_len(name); c < end; c++)
        buf_str(&d->path, *c == '~' ? STR("~0") : *c == '/' ? STR("~1") : (struct str){c, 1});
    diff_values(d, from, to);
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
    yyjson_obj_foreach(to, i, n, name, value) {
        diff_member(d, name, yyjson_obj_iter_getn(&in_from, yyjson_get_str(name), yyjson_get_len(name)), value);
    }
}

static void diff_element(struct diff *d, size_t index, yyjson_val *from, yyjson_val *to) {
    size_t n = d->path.n;
    buf_json(&d->path, "/%u", (uint64_t)index);
    diff_values(d, from, to);
    d->path.n = n;
}

/* The lengths differ where the first difference is: exact for appending, for taking from the front, for one hole. */
static void diff_arrays(struct diff *d, yyjson_val *from, yyjson_val *to) {
    size_t from_n = yyjson_arr_size(from), to_n = yyjson_arr_size(to), i = 0;
    yyjson_val *a = yyjson_arr_get_first(from), *b = yyjson_arr_get_first(to);
    for (; i < from_n && i < to_n && yyjson_equals(a, b); i++) {
        a = unsafe_yyjson_get_next(a);
        b = unsafe_yyjson_get_next(b);
    }
    for (; from_n > to_n; from_n--, a = unsafe_yyjson_get_next(a)) diff_element(d, i, a, NULL);
    for (; from_n < to_n; from_n++, i++, b = unsafe_yyjson_get_next(b)) diff_element(d, i, NULL, b);
    for (; i < to_n; i++, a = unsafe_yyjson_get_next(a), b = unsafe_yyjson_get_next(b)) diff_element(d, i, a, b);
}

void patch_diff(yyjson_val *from, yyjson_val *to, struct buf *out) {
    struct diff d = {.out = out, .comma = ""};
    buf_char(out, '[');
    diff_values(&d, from, to);
    buf_char(out, ']');
    buf_free(&d.path);
}
