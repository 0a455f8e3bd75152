/* actor.c: the actor document, the JSON that GET answers and the store keeps.
 *
 * Shape: id, partitionKey (the namespace), actorType, status, suspendReason, journal {entries, cursor}, state,
 * metadata {correlationId, parentActorId, createdAt, lastActivatedAt, activationCount}. The stored text leaves out the
 * entries, which have rows of their own, and adds to `journal` what load needs: from, stateCursor, turns, lastTurn, lastRow, chain,
 * apart, run.
 * Invariant: while a turn is open the stored state is the one at the turn's start.
 */
#include "actor/actor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const status_names[] = {"idle",      "running", "suspended", "paused",
                                           "completed", "failed",  "cancelled"};

const char *actor_status_name(enum actor_status s) {
    return status_names[s];
}

struct actor *actor_new(struct str ns, struct str type, struct str key) {
    struct actor *a = mem_alloc(sizeof *a);
    struct buf id = {0};
    buf_json(&id, "%j/%j/%j", ns, type, key);
    buf_char(&id, '\0');
    a->id = id.p;
    a->full = (struct str){a->id, id.n - 1};
    a->ns = (struct str){a->id, ns.n};
    a->type = (struct str){a->id + ns.n + 1, type.n};
    a->key = (struct str){a->type.p + type.n + 1, key.n};
    a->name = (struct str){a->type.p, type.n + 1 + key.n};
    a->from = 1;
    state_set(a, STR("{}"));
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

/* Of text with bytes beyond ASCII: quoting leaves UTF-8 as it is and takes them from what is not. */
static bool is_utf8(struct str s) {
    struct buf quoted = {0};
    bool beyond = false;
    buf_json(&quoted, "%q", s);
    for (size_t i = 0; i < quoted.n; i++) beyond |= (unsigned char)quoted.p[i] >= 0x80;
    buf_free(&quoted);
    return beyond;
}

int actor_check_text(struct str text, const char *what, struct error *err) {
    bool ascii = true;
    if (!text.p || text.n < 1 || text.n > 256)
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "%s has 1 to 256 bytes, this one has %zu", what, text.n);
    for (size_t i = 0; i < text.n; i++) {
        ascii &= (unsigned char)text.p[i] < 0x80;
        if ((unsigned char)text.p[i] < 0x20 || text.p[i] == 0x7f)
            return error_set(err, LOOM_E_INVALID_ARGUMENT, "%s has no control characters; byte %zu is one", what, i);
    }
    return ascii || is_utf8(text) ? 0 : error_set(err, LOOM_E_INVALID_ARGUMENT, "%s is UTF-8 text; this is not", what);
}

int actor_check_key(struct str key, struct error *err) {
    if (key.p && memchr(key.p, '/', key.n))
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "a key has no '/'; this one is \"%.*s\"",
                         (int)(key.n < 80 ? key.n : 80), key.p);
    return actor_check_text(key, "a key", err);
}

int actor_check_id(struct str ns, struct str type, struct str key, struct error *err) {
    int rc = actor_check_name(ns, "the namespace", err);
    if (rc == 0) rc = actor_check_name(type, "the actor type", err);
    return rc == 0 ? actor_check_key(key, err) : rc;
}

void actor_document(const struct actor *a, struct str entries, struct str state, struct buf *out) {
    buf_json(out, "{\"id\":%q,\"partitionKey\":%q,\"actorType\":%q,\"status\":%z,\"suspendReason\":%Q,\"journal\":{",
             a->name, a->ns, a->type, actor_status_name(a->status), a->reason[0] ? str_of(a->reason) : STR_NONE);
    if (entries.p)
        buf_json(out, "\"entries\":%j,\"cursor\":%u}", entries, a->cursor);
    else
        buf_json(out,
                 "\"cursor\":%u,\"from\":%u,\"stateCursor\":%u,\"turns\":%u,\"lastTurn\":%u,\"lastRow\":%u,\"chain\":%"
                 "d,\"apart\":%b,"
                 "\"run\":%b}",
                 a->cursor, a->from, a->state_at, a->turns, a->last_turn, a->last_row, (int64_t)a->chain,
                 a->state_apart, a->run);
    if (state.p) buf_json(out, ",\"state\":%j", state);
    buf_json(out,
             ",\"metadata\":{\"correlationId\":%Q,\"parentActorId\":%Q,\"createdAt\":%d,\"lastActivatedAt\":%d,"
             "\"activationCount\":%u}}",
             str_of(a->correlation), str_of(a->parent), a->created_at, a->activated_at, a->activations);
}

static bool read_status(struct actor *a, struct str name) {
    for (size_t i = 0; i < sizeof status_names / sizeof *status_names; i++)
        if (str_eq(name, str_of(status_names[i]))) {
            a->status = (enum actor_status)i;
            return true;
        }
    return false;
}

static char *dup_or_null(struct str s) {
    return s.p ? str_dup(s) : NULL;
}

int actor_read(struct actor *a, struct str text, struct error *err) {
    yyjson_doc *doc = yyjson_read(text.p, text.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *root = yyjson_doc_get_root(doc), *journal = yyjson_obj_get(root, "journal"),
               *meta = yyjson_obj_get(root, "metadata"), *state = yyjson_obj_get(root, "state");
    if (!journal || !meta || !read_status(a, json_str(root, "status"))) {
        yyjson_doc_free(doc);
        return error_set(err, LOOM_E_DAMAGED,
                         "the document of actor %s is not an actor's; its bytes are kept in the store", a->id);
    }
    struct str reason = json_str(root, "suspendReason");
    snprintf(a->reason, sizeof a->reason, "%.*s", (int)reason.n, reason.p ? reason.p : "");
    a->cursor = (uint64_t)json_int(journal, "cursor", 0);
    a->from = (uint64_t)json_int(journal, "from", 1);
    a->state_at = (uint64_t)json_int(journal, "stateCursor", 0);
    a->turns = (uint64_t)json_int(journal, "turns", 0);
    a->last_turn = (uint64_t)json_int(journal, "lastTurn", 0);
    a->last_row = (uint64_t)json_int(journal, "lastRow", 0);
    a->chain = (uint64_t)json_int(journal, "chain", 0);
    a->state_apart = json_bool(journal, "apart", false);
    a->run = json_bool(journal, "run", false);
    a->correlation = dup_or_null(json_str(meta, "correlationId"));
    a->parent = dup_or_null(json_str(meta, "parentActorId"));
    a->created_at = json_int(meta, "createdAt", 0);
    a->at = a->activated_at = json_int(meta, "lastActivatedAt", 0);
    a->activations = (uint64_t)json_int(meta, "activationCount", 0);
    if (state) {
        yyjson_mut_doc_free(a->state);
        a->state = yyjson_mut_doc_new(NULL);
        yyjson_mut_doc_set_root(a->state, yyjson_val_mut_copy(a->state, state));
    }
    yyjson_doc_free(doc);
    return 0;
}
