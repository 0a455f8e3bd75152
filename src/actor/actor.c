/* actor.c: the actor document, the JSON that GET answers and the store keeps.
 *
 * Shape: id, partitionKey (the namespace), actorType, status, suspendReason, journal {entries, cursor}, state,
 * metadata {correlationId, parentActorId, createdAt, lastActivatedAt, activationCount}. The stored text leaves out the
 * entries, which have rows of their own, what the row's key says, and what is null, false, {} or as in a first turn. It
 * adds to `journal` what load needs: from, kept, stateCursor, turns, lastTurn, lastRow, chain, apart, run.
 * Invariant: while a turn is open the stored state is the one at the turn's start.
 */
#include "actor/actor.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const status_names[] = {"idle",      "running", "suspended", "paused",
                                           "completed", "failed",  "cancelled"};

const char *actor_status_name(enum actor_status s) {
    return status_names[s];
}

int actor_status_of(struct str name) {
    int s = ACTOR_CANCELLED;
    while (s >= 0 && !str_is(name, status_names[s])) s--;
    return s;
}

bool actor_parts(struct str id, struct str *ns, struct str *type, struct str *key) {
    const char *end = id.p + id.n, *first = id.n ? memchr(id.p, '/', id.n) : NULL,
               *second = first ? memchr(first + 1, '/', (size_t)(end - first) - 1) : NULL;
    if (!second) return false;
    *ns = (struct str){id.p, (size_t)(first - id.p)};
    *type = (struct str){first + 1, (size_t)(second - first) - 1};
    *key = (struct str){second + 1, (size_t)(end - second) - 1};
    return true;
}

struct actor *actor_new(struct str id) {
    struct str ns, type, key;
    if (!actor_parts(id, &ns, &type, &key)) return NULL;
    struct actor *a = mem_alloc(sizeof *a);
    a->id = str_dup(id);
    a->full = (struct str){a->id, id.n};
    a->name = (struct str){a->id + ns.n + 1, id.n - ns.n - 1};
    actor_parts(a->full, &a->ns, &a->type, &a->key);
    a->from = a->kept = 1;
    state_set(a, NULL);
    return a;
}

void actor_free(struct actor *a) {
    if (!a) return;
    turn_free(a->turn);
    yyjson_mut_doc_free(a->state);
    buf_free(&a->tail);
    free(a->correlation);
    free(a->parent);
    free(a->id);
    free(a);
}

int actor_check_name(struct str name, const char *what, struct error *err) {
    bool ok = name.n >= 1 && name.n <= 64;
    for (size_t i = 0; ok && i < name.n; i++) {
        char c = name.p[i];
        bool alnum = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        ok = alnum || (i > 0 && (c == '.' || c == '_' || c == '-'));
    }
    if (ok) return 0;
    return error_set(
        err, LOOM_E_INVALID_ARGUMENT,
        "%s \"%.*s\" is not a name; use 1 to 64 of a-z, 0-9, '.', '_', '-', starting with a letter or digit", what,
        (int)(name.n < 80 ? name.n : 80), name.p ? name.p : "");
}

int actor_check_text(struct str text, const char *what, struct error *err) {
    if (!text.p || text.n < 1 || text.n > 256)
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "%s has 1 to 256 bytes, this one has %zu", what, text.n);
    for (size_t i = 0; i < text.n; i++)
        if ((unsigned char)text.p[i] < 0x20 || text.p[i] == 0x7f)
            return error_set(err, LOOM_E_INVALID_ARGUMENT, "%s has no control characters; byte %zu is one", what, i);
    struct buf quoted = {0}; /* only UTF-8 can be written */
    yyjson_val v = {(uint64_t)text.n << YYJSON_TAG_BIT | YYJSON_TYPE_STR, {.str = text.p}};
    bool utf8 = json_write(&v, &quoted);
    buf_free(&quoted);
    return utf8 ? 0 : error_set(err, LOOM_E_INVALID_ARGUMENT, "%s is UTF-8 text; this is not", what);
}

int actor_check_key(struct str key, struct error *err) {
    if (key.p && memchr(key.p, '/', key.n))
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "a key has no '/'; this one is \"%.*s\"",
                         (int)(key.n < 80 ? key.n : 80), key.p);
    return actor_check_text(key, "a key", err);
}

int actor_check_id(struct str id, struct error *err) {
    struct str ns, type, key;
    if (!actor_parts(id, &ns, &type, &key))
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "\"%.*s\" is not namespace/type/key", (int)id.n, id.p);
    int rc = actor_check_name(ns, "the namespace", err);
    if (rc == 0) rc = actor_check_name(type, "the actor type", err);
    return rc == 0 ? actor_check_key(key, err) : rc;
}

void actor_metadata(const struct actor *a, struct buf *out) {
    buf_json(
        out,
        "{\"correlationId\":%Q,\"parentActorId\":%Q,\"createdAt\":%d,\"lastActivatedAt\":%d,\"activationCount\":%u}",
        str_of(a->correlation), str_of(a->parent), a->created_at, a->activated_at, a->turns);
}

void actor_document(const struct actor *a, struct str entries, struct str state, struct buf *out) {
    buf_json(out, "{\"id\":%q,\"partitionKey\":%q,\"actorType\":%q,\"status\":%z,\"suspendReason\":%Q,", a->name, a->ns,
             a->type, actor_status_name(a->status), a->reason[0] ? str_of(a->reason) : STR_NONE);
    buf_json(out, "\"journal\":{\"entries\":[%j],\"cursor\":%u},\"state\":%j,\"metadata\":", entries, a->cursor, state);
    actor_metadata(a, out);
    buf_char(out, '}');
}

/* What load needs besides the cursor, numbers of the row's `journal`, and what each is where it is absent: as in an actor's
 * first turn. */
static const struct {
    const char *name;
    size_t offset;
    uint64_t absent;
} numbers[] = {
    {"from", offsetof(struct actor, from), 1},          {"turns", offsetof(struct actor, turns), 1},
    {"lastTurn", offsetof(struct actor, last_turn), 1}, {"lastRow", offsetof(struct actor, last_row), 1},
    {"chain", offsetof(struct actor, chain), 0},        {"stateCursor", offsetof(struct actor, state_at), 0},
    {"kept", offsetof(struct actor, kept), 1},
};
enum { NUMBERS = sizeof numbers / sizeof *numbers };

static uint64_t *number(const struct actor *a, size_t i) {
    return (uint64_t *)((char *)(uintptr_t)a + numbers[i].offset);
}

void actor_row(const struct actor *a, struct str state, struct buf *out) {
    buf_json(out, "{\"status\":%z,\"journal\":{\"cursor\":%u", actor_status_name(a->status), a->cursor);
    for (size_t i = 0; i < NUMBERS; i++)
        if (*number(a, i) != numbers[i].absent) buf_json(out, ",\"%s\":%d", numbers[i].name, (int64_t)*number(a, i));
    buf_json(out, "%s%s}", a->state_apart ? ",\"apart\":true" : "", a->run ? ",\"run\":true" : "");
    if (a->reason[0]) buf_json(out, ",\"suspendReason\":%z", a->reason);
    if (state.p && !str_eq(state, STR("{}"))) buf_json(out, ",\"state\":%j", state);
    buf_json(out, ",\"metadata\":{\"createdAt\":%d,\"lastActivatedAt\":%d", a->created_at, a->activated_at);
    if (a->correlation) buf_json(out, ",\"correlationId\":%z", a->correlation);
    if (a->parent) buf_json(out, ",\"parentActorId\":%z", a->parent);
    buf_json(out, "}}");
}

int actor_read(struct actor *a, struct str text, struct error *err) {
    yyjson_doc *doc = yyjson_read(text.p, text.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *root = yyjson_doc_get_root(doc), *journal = yyjson_obj_get(root, "journal"),
               *meta = yyjson_obj_get(root, "metadata"), *state = yyjson_obj_get(root, "state");
    struct str reason = json_str(root, "suspendReason");
    int status = actor_status_of(json_str(root, "status"));
    if (!journal || !meta || status < 0) {
        yyjson_doc_free(doc);
        return error_set(err, LOOM_E_DAMAGED,
                         "the document of actor %s is not an actor's; its bytes are kept in the store", a->id);
    }
    snprintf(a->reason, sizeof a->reason, "%.*s", (int)reason.n, reason.p ? reason.p : "");
    a->status = (enum actor_status)status;
    a->cursor = (uint64_t)json_int(journal, "cursor", 0);
    for (size_t n = 0; n < NUMBERS; n++)
        *number(a, n) = (uint64_t)json_int(journal, numbers[n].name, (int64_t)numbers[n].absent);
    a->state_apart = json_bool(journal, "apart", false);
    a->run = json_bool(journal, "run", false);
    a->correlation = str_dup(json_str(meta, "correlationId"));
    a->parent = str_dup(json_str(meta, "parentActorId"));
    a->created_at = json_int(meta, "createdAt", 0);
    a->at = a->activated_at = json_int(meta, "lastActivatedAt", 0);
    state_set(a, state);
    yyjson_doc_free(doc);
    return 0;
}
