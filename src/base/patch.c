/* patch.c: JSON Pointer (RFC 6901) and JSON Patch (RFC 6902): lookup, and apply with inverse.
 *
 * An operation is made of edits. An edit exchanges what is at a place (perhaps nothing) with something else, and the same
 * exchange again undoes it exactly, place among its siblings included: a patch that fails leaves the document as it was,
 * to the byte. The inverse patch gives back equal values, but RFC 6902 cannot say where a member stood: members that it
 * adds again come last.
 *
 * Values that are replaced or removed stay in the document's pool until it is freed: a long-lived document is renewed
 * by its owner (write and parse, or copy) now and then. `test` takes 1 and 1.0 for equal, inside of arrays and objects
 * it does not. Walks are recursive; JSON_DEPTH_MAX bounds them, and apply refuses to nest deeper.
 */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

/* ---- pointers ---- */

/* Takes "/token" off the front of rest and unescapes it into name, a NUL behind it; false when rest begins otherwise. */
static bool next_name(struct str *rest, struct buf *name) {
    const char *p = rest->p, *end = p + rest->n;
    buf_clear(name);
    if (*p++ != '/') return false;
    for (; p < end && *p != '/'; p++) {
        bool escaped = *p == '~';
        if (escaped && (++p == end || (*p != '0' && *p != '1'))) return false;
        buf_char(name, !escaped ? *p : *p == '0' ? '~' : '/');
    }
    *buf_reserve(name, 1) = 0;
    *rest = (struct str){p, (size_t)(end - p)};
    return true;
}

/* Digits without leading zeros; SIZE_MAX for anything else. */
static size_t array_index(const struct buf *name) {
    bool number = name->n > 0 && name->n < 10 && strspn(name->p, "0123456789") == name->n;
    return number && (name->n == 1 || name->p[0] != '0') ? strtoul(name->p, NULL, 10) : SIZE_MAX;
}

yyjson_val *json_at(yyjson_val *v, struct str pointer) {
    struct buf name = {0};
    while (v && pointer.n > 0)
        v = !next_name(&pointer, &name) ? NULL
            : yyjson_is_arr(v)          ? yyjson_arr_get(v, array_index(&name))
                                        : yyjson_obj_getn(v, name.p, name.n);
    buf_free(&name);
    return v;
}

/* Where a pointer leads. */
struct place {
    struct str path;
    yyjson_mut_val *parent;       /* NULL for the root */
    yyjson_mut_val *name, *value; /* the member's name; value NULL: nothing there (yet) */
    size_t index;                 /* among the parent's children; an array may have no such index */
    size_t depth;                 /* containers around it */
};

static void find_element(struct place *p, const struct buf *name) {
    p->index = str_eq(buf_view(name), STR("-")) ? yyjson_mut_arr_size(p->parent) : array_index(name);
    p->value = yyjson_mut_arr_get(p->parent, p->index);
}

static void find_member(struct place *p, const struct buf *name) {
    yyjson_mut_obj_iter it = yyjson_mut_obj_iter_with(p->parent);
    p->value = yyjson_mut_obj_iter_getn(&it, name->p, name->n);
    p->name = p->value ? it.cur : NULL;
    p->index = p->value ? it.idx - 1 : it.max;
}

/* NULL, or why the pointer leads nowhere; name gets the last token. A place without a value is a place all the same. */
static const char *resolve(yyjson_mut_val *root, struct str path, struct place *p, struct buf *name) {
    static const char malformed[] = "it needs a JSON Pointer: \"\" or /name/0/…";
    *p = (struct place){.path = path, .value = root};
    while (path.n > 0) {
        if (!next_name(&path, name)) return malformed;
        if (!yyjson_mut_is_ctn(p->value)) return "there is no object or array around this place";
        *p = (struct place){.path = p->path, .parent = p->value, .depth = p->depth + 1};
        (yyjson_mut_is_arr(p->parent) ? find_element : find_member)(p, name);
    }
    return path.p ? NULL : malformed;
}

yyjson_mut_val *json_mut_at(yyjson_mut_val *root, struct str pointer) {
    struct place p;
    struct buf name = {0};
    const char *fault = resolve(root, pointer, &p, &name);
    buf_free(&name);
    return fault ? NULL : p.value;
}

/* ---- edits ---- */

struct edit {
    struct place at;
    yyjson_mut_val *other; /* what belongs there on the other side of the edit; NULL: nothing */
    size_t text;           /* where its inverse begins in work.texts */
};

struct work {
    yyjson_mut_doc *doc;
    struct buf edits; /* of struct edit, each done */
    struct buf texts; /* their inverse operations, in the order of the edits */
    struct buf name;  /* the last token of the place in hand */
};

static void exchange(struct edit *e) {
    struct place *at = &e->at;
    yyjson_mut_val *was = at->value, *now = e->other;
    bool array = yyjson_mut_is_arr(at->parent);
    if (was && now) { /* both nodes stay where they hang, only what they hold changes sides */
        yyjson_mut_val held = *was;
        was->tag = now->tag;
        was->uni = now->uni;
        now->tag = held.tag;
        now->uni = held.uni;
        return;
    }
    if (now && array) yyjson_mut_arr_insert(at->parent, now, at->index);
    if (now && !array) yyjson_mut_obj_insert(at->parent, at->name, now, at->index);
    if (was && array) yyjson_mut_arr_remove(at->parent, at->index);
    if (was && !array) yyjson_mut_obj_remove(at->parent, at->name);
    at->value = now;
    e->other = was;
}

/* The operation that leads to the other side of an edit. */
static void write_operation(const struct edit *e, struct buf *out) {
    const char *op = !e->other ? "remove" : !e->at.value ? "add" : "replace";
    struct buf path = {0};
    buf_str(&path, e->at.path);
    if (yyjson_mut_is_arr(e->at.parent)) { /* "-" becomes the index that it meant */
        while (path.p[path.n - 1] != '/') path.n--;
        buf_json(&path, "%u", (uint64_t)e->at.index);
    }
    buf_json(out, "{\"op\":%z,\"path\":%q%s", op, buf_view(&path), e->other ? ",\"value\":" : "");
    json_write_mut(e->other, out);
    buf_char(out, '}');
    buf_free(&path);
}

static const char *edit(struct work *w, struct place *at, yyjson_mut_val *value) {
    struct edit e = {*at, value, w->texts.n};
    if (!value && !at->parent) return "the whole document cannot be removed, only replaced";
    if (yyjson_mut_is_obj(at->parent) && !at->name) e.at.name = yyjson_mut_strncpy(w->doc, w->name.p, w->name.n);
    exchange(&e);
    write_operation(&e, &w->texts);
    buf_add(&w->edits, &e, sizeof e);
    return NULL;
}

/* ---- operations ---- */

enum op { ADD, COPY, MOVE, REPLACE, REMOVE, TEST, OP_END }; /* from REPLACE on, something must be there already */
static const char *const op_names[OP_END] = {"add", "copy", "move", "replace", "remove", "test"};

/* Levels of containers. A container's ring holds its elements, or names and values in turn. */
static size_t height(yyjson_mut_val *v) {
    size_t max = 0, left = yyjson_mut_is_ctn(v) ? yyjson_mut_get_len(v) << yyjson_mut_is_obj(v) : 0;
    for (yyjson_mut_val *child = v->uni.ptr; left-- > 0; child = child->next) {
        size_t h = height(child);
        max = h > max ? h : max;
    }
    return max + yyjson_mut_is_ctn(v);
}

static bool same(yyjson_mut_val *a, yyjson_mut_val *b) {
    bool real = yyjson_mut_is_real(a) || yyjson_mut_is_real(b);
    if (real && yyjson_mut_is_num(a) && yyjson_mut_is_num(b)) return yyjson_mut_get_num(a) == yyjson_mut_get_num(b);
    return yyjson_mut_equals(a, b);
}

/* A copy of what is at "from"; a move takes that away. */
static const char *value_from(struct work *w, yyjson_val *line, bool move, yyjson_mut_val **value) {
    struct str path = json_str(line, "path"), from = json_str(line, "from");
    struct place at;
    const char *fault = resolve(w->doc->root, from, &at, &w->name);
    if (fault || !at.value) return fault ? fault : "there is nothing at \"from\"";
    *value = yyjson_mut_val_mut_copy(w->doc, at.value);
    if (!move) return NULL;
    if (path.n > from.n && str_starts(path, from) && path.p[from.n] == '/') return "a value cannot move into itself";
    return edit(w, &at, NULL);
}

static const char *run(struct work *w, yyjson_val *line) {
    struct str name = json_str(line, "op");
    yyjson_mut_val *value = yyjson_val_mut_copy(w->doc, yyjson_obj_get(line, "value"));
    const char *fault = NULL;
    struct place at;
    enum op op = 0;
    while (op < OP_END && !str_eq(name, str_of(op_names[op]))) op++;
    if (op == OP_END) return "its op is not add, remove, replace, move, copy or test";
    if (op == COPY || op == MOVE) fault = value_from(w, line, op == MOVE, &value);
    if (op == REMOVE) value = NULL;
    if (!fault && op != REMOVE && !value) return "it needs a value";
    if (!fault) fault = resolve(w->doc->root, json_str(line, "path"), &at, &w->name);
    if (fault) return fault;
    if (op >= REPLACE && !at.value) return "there is nothing at this place";
    if (op == TEST) return same(at.value, value) ? NULL : "the value there is another one";
    if (value && at.depth + height(value) > JSON_DEPTH_MAX) return "the document would nest deeper than 100 levels";
    if (op < REPLACE && yyjson_mut_is_arr(at.parent)) at.value = NULL; /* the others make room */
    if (!at.value && at.index > yyjson_mut_get_len(at.parent)) return "the array has no such index";
    return edit(w, &at, value);
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
    struct edit *edits = (void *)w.edits.p;
    size_t count = w.edits.n / sizeof *edits;
    if (fault) {
        struct str path = json_str(line, "path");
        error_set(err, LOOM_E_INVALID_ARGUMENT, "patch operation %zu at \"%.*s\": %s", it.idx - (line != NULL),
                  path.n > 200 ? 200 : (int)path.n, path.n ? path.p : "", fault);
        while (count-- > 0) exchange(&edits[count]);
    } else if (inverse) {
        write_inverse(&w, edits, count, inverse);
    }
    buf_free(&w.edits);
    buf_free(&w.texts);
    buf_free(&w.name);
    return fault ? LOOM_E_INVALID_ARGUMENT : LOOM_OK;
}
