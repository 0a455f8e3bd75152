/* json.c: strict I-JSON in, one way of writing out.
 *
 * yyjson reads without recursion; what it lets through is refused by one pass over its flat array of values, before
 * anything recursive touches them: depth, duplicate names, numbers beyond double. Integers beyond 64 bits stay raw text.
 * A document that passed may be walked recursively: its depth is at most JSON_DEPTH_MAX.
 */
#include "base/base.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading ---- */

static struct str text_of(yyjson_val *v) {
    return (struct str){unsafe_yyjson_get_raw(v), unsafe_yyjson_get_len(v)};
}

/* Raw text is what yyjson could not hold: an integer beyond 64 bits, or a number beyond double. */
static bool fits_double(struct str digits) {
    char z[320] = "";
    if (digits.n >= sizeof z) return false;
    memcpy(z, digits.p, digits.n);
    return !strpbrk(z, ".eE") && isfinite(strtod(z, NULL));
}

/* A name that stands a second time, or NULL. Looking through all names is fastest for the usual small object. */
static yyjson_val *duplicate_name(yyjson_val *obj) {
    yyjson_val *name, *value, *found = NULL;
    struct map names = {0};
    size_t i, n;
    yyjson_obj_foreach(obj, i, n, name, value) {
        struct str text = text_of(name);
        bool large = n > 16;
        if (large ? map_get(&names, text) != NULL : yyjson_obj_getn(obj, text.p, text.n) != value) found = name;
        if (large) map_put(&names, text, name);
    }
    map_free(&names);
    return found;
}

/* The first value that I-JSON or our limits forbid, with the reason; NULL when there is none. */
static yyjson_val *first_fault(yyjson_doc *doc, const char **reason) {
    yyjson_val *open_end[JSON_DEPTH_MAX], *fault;
    size_t depth = 0;
    yyjson_val *end = unsafe_yyjson_get_next(doc->root);
    for (yyjson_val *v = doc->root; v < end; v++) {
        while (depth && v == open_end[depth - 1]) depth--;
        if (unsafe_yyjson_is_ctn(v)) {
            *reason = "nested deeper than 100 levels";
            if (depth == JSON_DEPTH_MAX) return v;
            open_end[depth++] = unsafe_yyjson_get_next(v);
            *reason = "this name occurs twice in one object";
            if (yyjson_is_obj(v) && (fault = duplicate_name(v)) != NULL) return fault;
        } else if (unsafe_yyjson_is_raw(v) && !fits_double(text_of(v))) {
            *reason = "this number is beyond what a double holds";
            return v;
        }
    }
    return NULL;
}

yyjson_doc *json_parse(struct str text, struct error *err) {
    yyjson_read_err e;
    const char *reason = NULL;
    /* Without YYJSON_READ_INSITU the text is only read; the parameter lacks const for the sake of that flag. */
    yyjson_doc *doc = yyjson_read_opts((char *)(uintptr_t)text.p, text.n, YYJSON_READ_BIGNUM_AS_RAW, NULL, &e);
    if (!doc) {
        error_set(err, LOOM_E_INVALID_JSON, "not JSON: %s at byte %zu", e.msg, e.pos);
        return NULL;
    }
    yyjson_val *fault = first_fault(doc, &reason);
    if (!fault) return doc;
    struct str at = unsafe_yyjson_is_ctn(fault) ? STR("") : text_of(fault);
    error_set(err, LOOM_E_INVALID_JSON, "not JSON that Loom accepts: %s%s%.*s", reason, at.n ? ": " : "",
              at.n > 80 ? 80 : (int)at.n, at.p);
    yyjson_doc_free(doc);
    return NULL;
}

static void *arena_take(void *a, size_t size) {
    return arena_alloc(a, size);
}

static void *arena_take_more(void *a, void *p, size_t old_size, size_t size) {
    return memcpy(arena_alloc(a, size), p, old_size);
}

static void keep(void *ctx, void *p) {
    (void)ctx, (void)p;
}

yyjson_val *json_in(struct arena *a, struct str text) {
    yyjson_alc alc = {arena_take, arena_take_more, keep, a};
    return yyjson_doc_get_root(
        yyjson_read_opts((char *)(uintptr_t)text.p, text.n, YYJSON_READ_BIGNUM_AS_RAW, &alc, NULL));
}

/* ---- writing: straight into the buffer, by an allocator that gives its free room ---- */

static void *room(void *ctx, size_t size) {
    return buf_reserve(ctx, size);
}

static void *more_room(void *ctx, void *p, size_t old_size, size_t size) {
    (void)p, (void)old_size;
    return buf_reserve(ctx, size);
}

bool json_write(const yyjson_val *v, struct buf *out) {
    size_t n; /* 0 when it failed */
    yyjson_val_write_opts(v, 0, &(yyjson_alc){room, more_room, keep, out}, &n, NULL);
    out->n += n;
    return n > 0;
}

bool json_write_mut(const yyjson_mut_val *v, struct buf *out) {
    size_t n;
    yyjson_mut_val_write_opts(v, 0, &(yyjson_alc){room, more_room, keep, out}, &n, NULL);
    out->n += n;
    return n > 0;
}

int json_normalize(struct str text, struct buf *out, struct error *err) {
    yyjson_doc *doc = json_parse(text, err);
    if (!doc) return LOOM_E_INVALID_JSON;
    json_write(doc->root, out);
    yyjson_doc_free(doc);
    return LOOM_OK;
}

struct str json_text_of(yyjson_val *v, struct arena *a) {
    return v ? arena_json(a, "%v", v) : STR_NONE;
}

/* ---- fields ---- */

struct str json_str(yyjson_val *obj, const char *key) {
    yyjson_val *v = yyjson_obj_get(obj, key);
    return yyjson_is_str(v) ? text_of(v) : STR_NONE;
}

int64_t json_int(yyjson_val *obj, const char *key, int64_t absent) {
    yyjson_val *v = yyjson_obj_get(obj, key);
    if (yyjson_is_int(v)) return yyjson_is_uint(v) && yyjson_get_uint(v) > INT64_MAX ? absent : yyjson_get_sint(v);
    double f = yyjson_get_real(v);
    return yyjson_is_real(v) && fabs(f) <= 0x1p53 && trunc(f) >= f && trunc(f) <= f ? (int64_t)f : absent;
}

bool json_bool(yyjson_val *obj, const char *key, bool absent) {
    yyjson_val *v = yyjson_obj_get(obj, key);
    return yyjson_is_bool(v) ? yyjson_get_bool(v) : absent;
}
