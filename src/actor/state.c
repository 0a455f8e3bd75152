/* state.c: an actor's JSON state, changed only by RFC 6902 patches whose inverses are known.
 *
 * Stored whole while small, or when the patches since it was last written outweigh half of it; otherwise the journal's
 * patches carry it (the document's stateCursor says from where).
 */
#include "actor/actor.h"

#include <stdlib.h>
#include <string.h>

static yyjson_mut_doc *read_mutable(struct str text) {
    yyjson_doc *doc = yyjson_read(text.p, text.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_mut_doc *m = yyjson_doc_mut_copy(doc, NULL);
    yyjson_doc_free(doc);
    return m;
}

void state_set(struct actor *a, struct str text) {
    yyjson_mut_doc_free(a->state);
    a->state = read_mutable(text);
}

void state_patch_recorded(yyjson_mut_doc *state, const struct turn *t, size_t next, uint64_t state_at) {
    for (size_t i = next; i < t->op_count; i++) {
        struct recorded *op = &t->ops[i];
        if (op->number <= state_at || !str_starts(op->text, STR("{\"type\":\"state_patches\""))) continue;
        struct buf whole = {0};
        buf_json(&whole, "%j}", op->text);
        yyjson_doc *doc = yyjson_read(whole.p, whole.n, YYJSON_READ_BIGNUM_AS_RAW);
        patch_apply(state, yyjson_obj_get(yyjson_doc_get_root(doc), "patches"), NULL, NULL);
        yyjson_doc_free(doc);
        buf_free(&whole);
    }
}

void state_text_stored(const struct actor *a, struct buf *out) {
    if (a->turn && a->turn->before)
        buf_add(out, a->turn->before, a->turn->before_n);
    else
        json_write_mut(yyjson_mut_doc_get_root(a->state), out);
}

int state_patch(struct actor *a, yyjson_val *patch, struct buf *inverse, struct error *err) {
    struct turn *t = a->turn;
    struct buf before = {0};
    if (!t->before) state_text_stored(a, &before);
    int rc = patch_apply(a->state, patch, inverse, err);
    if (rc < 0 || t->before) {
        buf_free(&before);
        return rc;
    }
    t->before = before.p;
    t->before_n = before.n;
    return 0;
}

void state_rollback(struct actor *a, struct buf *entry) {
    struct turn *t = a->turn;
    if (!t->before) return;
    struct buf now = {0};
    json_write_mut(yyjson_mut_doc_get_root(a->state), &now);
    yyjson_doc *from = yyjson_read(now.p, now.n, YYJSON_READ_BIGNUM_AS_RAW),
               *to = yyjson_read(t->before, t->before_n, YYJSON_READ_BIGNUM_AS_RAW);
    buf_json(entry, "{\"type\":\"state_patches\",\"patches\":");
    patch_diff(yyjson_doc_get_root(from), yyjson_doc_get_root(to), entry);
    buf_json(entry, ",\"inversePatches\":");
    patch_diff(yyjson_doc_get_root(to), yyjson_doc_get_root(from), entry);
    buf_json(entry, ",\"rollback\":true");
    yyjson_doc_free(from);
    yyjson_doc_free(to);
    buf_free(&now);
    state_set(a, (struct str){t->before, t->before_n});
}
