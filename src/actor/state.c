/* state.c: an actor's JSON state, changed only by RFC 6902 patches whose inverses are known.
 *
 * Stored whole while small, or when the patches since it was last written outweigh half of it; otherwise the journal's
 * patches carry it (the document's stateCursor says from where).
 */
#include "actor/actor.h"

void state_set(struct actor *a, yyjson_val *value) {
    yyjson_mut_doc_free(a->state);
    a->state = yyjson_mut_doc_new(NULL);
    a->state->root = value ? yyjson_val_mut_copy(a->state, value) : yyjson_mut_obj(a->state);
}

void state_text_stored(const struct actor *a, struct buf *out) {
    if (a->turn && a->turn->before.n)
        buf_str(out, buf_view(&a->turn->before));
    else
        json_write_mut(yyjson_mut_doc_get_root(a->state), out);
}

static void keep_before(struct actor *a) {
    if (!a->turn->before.n) json_write_mut(yyjson_mut_doc_get_root(a->state), &a->turn->before);
}

int state_patch(struct actor *a, yyjson_val *patch, struct buf *inverse, struct error *err) {
    keep_before(a);
    return patch_apply(a->state, patch, inverse, err);
}

void state_patch_rest(struct actor *a, bool keep_start) {
    struct turn *t = a->turn;
    struct arena mem = {0};
    if (keep_start) keep_before(a);
    for (; t->op_next < t->op_count; t->op_next++) {
        struct recorded *op = &t->ops[t->op_next];
        struct str patches = entry_field(op->text, "patches");
        if (op->number > a->state_at && patches.p) patch_apply(a->state, json_in(&mem, patches), NULL, NULL);
    }
    arena_free(&mem);
}

/* The whole text: what was read again later has its members in the order of what stayed in memory. */
void state_rollback(struct actor *a, int64_t now_ms) {
    struct str before = buf_view(&a->turn->before);
    struct arena mem = {0};
    struct buf now = {0};
    json_write_mut(yyjson_mut_doc_get_root(a->state), &now);
    if (before.n && !str_eq(before, buf_view(&now))) {
        journal_append(
            a, now_ms,
            arena_json(&mem,
                       "{\"type\":\"state_patches\",\"patches\":[{\"op\":\"replace\",\"path\":\"\",\"value\":%j}],"
                       "\"inversePatches\":[{\"op\":\"replace\",\"path\":\"\",\"value\":%j}],\"rollback\":true",
                       before, buf_view(&now)));
        a->patch_bytes += before.n;
        state_set(a, json_in(&mem, before));
    }
    arena_free(&mem);
    buf_free(&now);
}
