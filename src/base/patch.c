/* patch.c: JSON Patch (RFC 6902): apply with inverse, wholly or not at all. Places are found by yyjson's JSON Pointer.
 *
 * An operation is made of edits. An edit knows what stood at its place and what stands there now; taken back one after the
 * other they leave the document as it was, to the byte. The inverse patch gives back equal values, but RFC 6902 cannot say
 * where a member stood: members that it adds again come last.
 *
 * Values that are replaced or removed stay in the document's pool until it is freed: a long-lived document is renewed
 * by its owner (write and parse, or copy) now and then. `test` takes 1 and 1.0 for equal, inside of arrays and objects
 * it does not. Walks are recursive; JSON_DEPTH_MAX bounds them, and apply refuses to nest deeper.
 */
#include "base/base.h"

#include <string.h>

/* ---- edits ---- */

struct edit {
    struct str path;               /* "-" has become the index that it meant */
    yyjson_mut_val *was, *now;     /* NULL: nothing */
    yyjson_mut_val *parent, *name; /* of a member that was removed */
    size_t index;                  /* and where it stood */
};

struct work {
    yyjson_mut_doc *doc;
    struct buf edits; /* of struct edit, each done */
    struct arena mem; /* for their paths */
};

/* Exchanges what stands at a place with `now`, or puts it there, or removes what is there. */
static const char *edit(struct work *w, struct str path, yyjson_ptr_ctx *at, yyjson_mut_val *was, yyjson_mut_val *now) {
    struct edit e = {path, was, now, at->ctn, NULL, 0};
    bool array = yyjson_mut_is_arr(at->ctn);
    if (!at->ctn && !now) return "the whole document cannot be removed, only replaced";
    if (!was && array && path.p[path.n - 1] == '-')
        e.path = arena_json(&w->mem, "%j%u", (struct str){path.p, path.n - 1}, (uint64_t)yyjson_mut_arr_size(at->ctn));
    if (!now && !array) {
        e.name = at->pre->next->next;
        for (yyjson_mut_val *name = at->ctn->uni.ptr; name != at->pre; name = name->next->next) e.index++;
    }
    if (!was)
        yyjson_mut_doc_ptr_addx(w->doc, path.p, path.n, now, false, NULL, NULL);
    else if (!now)
        yyjson_ptr_ctx_remove(at);
    else if (!yyjson_ptr_ctx_replace(at, now))
        yyjson_mut_doc_set_root(w->doc, now);
    buf_add(&w->edits, &e, sizeof e);
    return NULL;
}

static void undo(yyjson_mut_doc *doc, const struct edit *e) {
    if (e->was && e->now)
        yyjson_mut_doc_ptr_replacex(doc, e->path.p, e->path.n, e->was, NULL, NULL);
    else if (e->now)
        yyjson_mut_doc_ptr_removex(doc, e->path.p, e->path.n, NULL, NULL);
    else if (e->name)
        yyjson_mut_obj_insert(e->parent, e->name, e->was, e->index);
    else
        yyjson_mut_doc_ptr_addx(doc, e->path.p, e->path.n, e->was, false, NULL, NULL);
}

/* The operation that takes an edit back. */
static void write_inverse(const struct edit *e, struct buf *out) {
    const char *op = !e->was ? "remove" : !e->now ? "add" : "replace";
    buf_json(out, "{\"op\":%z,\"path\":%q%s", op, e->path, e->was ? ",\"value\":" : "");
    json_write_mut(e->was, out);
    buf_char(out, '}');
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

static bool too_deep(struct str path, yyjson_mut_val *value) {
    size_t levels = height(value);
    for (size_t i = 0; i < path.n; i++) levels += path.p[i] == '/';
    return levels > JSON_DEPTH_MAX;
}

static bool same(yyjson_mut_val *a, yyjson_mut_val *b) {
    bool real = yyjson_mut_is_real(a) || yyjson_mut_is_real(b);
    if (real && yyjson_mut_is_num(a) && yyjson_mut_is_num(b)) return yyjson_mut_get_num(a) == yyjson_mut_get_num(b);
    return yyjson_mut_equals(a, b);
}

/* What stands at a place; NULL with a fault unless something could stand there. */
static yyjson_mut_val *find(struct work *w, struct str path, yyjson_ptr_ctx *at, const char **fault) {
    yyjson_ptr_err err;
    yyjson_mut_val *found = yyjson_mut_doc_ptr_getx(w->doc, path.p, path.n, at, &err);
    if (!found && !at->ctn)
        *fault = path.p && err.code == YYJSON_PTR_ERR_RESOLVE
                     ? "there is no object or array around this place, or no such index"
                     : "it needs a JSON Pointer: \"\" or /name/0/…";
    return found;
}

/* A copy of what is at "from"; a move takes that away. */
static const char *value_from(struct work *w, yyjson_val *line, bool move, yyjson_mut_val **value) {
    struct str path = json_str(line, "path"), from = json_str(line, "from");
    const char *fault = NULL;
    yyjson_ptr_ctx at = {0};
    yyjson_mut_val *found = find(w, from, &at, &fault);
    if (!found) return fault ? fault : "there is nothing at \"from\"";
    *value = yyjson_mut_val_mut_copy(w->doc, found);
    if (!move) return NULL;
    if (path.n > from.n && str_starts(path, from) && path.p[from.n] == '/') return "a value cannot move into itself";
    return edit(w, from, &at, found, NULL);
}

static const char *run(struct work *w, yyjson_val *line) {
    struct str name = json_str(line, "op"), path = json_str(line, "path");
    yyjson_mut_val *value = yyjson_val_mut_copy(w->doc, yyjson_obj_get(line, "value")), *was = NULL;
    const char *fault = NULL;
    yyjson_ptr_ctx at = {0};
    enum op op = 0;
    while (op < OP_END && !str_is(name, op_names[op])) op++;
    if (op == OP_END) return "its op is not add, remove, replace, move, copy or test";
    if (op == COPY || op == MOVE) fault = value_from(w, line, op == MOVE, &value);
    if (op == REMOVE) value = NULL;
    if (!fault && op != REMOVE && !value) return "it needs a value";
    if (!fault) was = find(w, path, &at, &fault);
    if (fault) return fault;
    if (op >= REPLACE && !was) return "there is nothing at this place";
    if (op == TEST) return same(was, value) ? NULL : "the value there is another one";
    if (value && too_deep(path, value)) return "the document would nest deeper than 100 levels";
    if (op < REPLACE && yyjson_mut_is_arr(at.ctn)) was = NULL; /* the others make room */
    return edit(w, path, &at, was, value);
}

/* ---- patches ---- */

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
        while (count-- > 0) undo(doc, &edits[count]);
    } else if (inverse) {
        buf_char(inverse, '[');
        for (; count > 0; buf_str(inverse, --count ? STR(",") : STR(""))) write_inverse(&edits[count - 1], inverse);
        buf_char(inverse, ']');
    }
    buf_free(&w.edits);
    arena_free(&w.mem);
    return fault ? LOOM_E_INVALID_ARGUMENT : LOOM_OK;
}
