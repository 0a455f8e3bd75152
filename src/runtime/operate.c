/* operate.c: the operator's op table: what HTTP, the CLI and programs ask of the engine.
 *
 * Every answer, also one that changes nothing, is an effect: it may rest on what has not committed yet.
 */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The actor of the request, or NULL with the answer given. */
static struct resident *target(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct resident *r = NULL;
    if (actor_check_name(ns_of(req), "the namespace", &err) == 0 &&
        actor_check_name(lent(req->type), "the actor type", &err) == 0 && actor_check_key(lent(req->key), &err) == 0)
        r = resident_get(l, ns_of(req), lent(req->type), lent(req->key), false, &err);
    if (!r) reply_error(l, req, &err);
    return r;
}

static struct str full_id(struct loom *l, const struct loom_request *req) {
    return say(l, "%j/%j/%j", ns_of(req), lent(req->type), lent(req->key));
}

/* ---- messages ---- */

static int check_request(const struct loom_request *req, struct str id, struct error *err) {
    for (size_t i = 0; i < id.n; i++)
        if ((unsigned char)id.p[i] < 0x20)
            return error_set(err, LOOM_E_INVALID_ARGUMENT, "a message id has no control characters; byte %zu is one",
                             i);
    if (id.n > 256 || (id.p && id.n == 0))
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "a message id has 1 to 256 bytes, this one has %zu", id.n);
    if (req->delay_ms < 0 || req->ttl_ms < 0 || req->timeout_ms < 0)
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "delayMs, ttlMs and timeoutMs cannot be negative");
    if (req->body.n > BODY_MAX)
        return error_set(err, LOOM_E_TOO_LARGE, "the input has %zu bytes; at most %d are accepted", req->body.n,
                         BODY_MAX);
    return 0;
}

static int deliver(struct loom *l, const struct loom_request *req, struct str event, struct str id, struct str *id_out,
                   struct error *err) {
    struct message m = {
        .ns = ns_of(req), .type = lent(req->type), .key = lent(req->key), .id = id, .event = event, .outside = true};
    struct buf data = {0};
    m.correlation = lent(req->correlation);
    m.traceparent = lent(req->traceparent);
    m.version = lent(req->version);
    m.delay_ms = req->delay_ms;
    m.ttl_ms = req->ttl_ms;
    m.priority = req->priority;
    m.run = str_starts(m.type, STR("workflow."));
    int rc = check_request(req, id, err);
    if (rc == 0) rc = json_normalize(req->body.p ? lent(req->body) : STR("null"), &data, err);
    m.data = buf_view(&data);
    if (rc == 0) rc = mail_deliver(l, &m, id_out, err);
    buf_free(&data);
    return rc;
}

/* A duplicate gets the original reply; in flight it waits for it. */
static bool answer_known(struct loom *l, const struct loom_request *req, struct str id) {
    struct str text = message_row(l, full_id(l, req), id);
    yyjson_val *row = text.p ? look(l, text) : NULL, *reply = yyjson_obj_get(row, "reply"),
               *error = yyjson_obj_get(row, "error");
    if (!reply && !error) return false;
    reply_send(l, req, reply_status(reply != NULL, error), json_text_of(reply ? reply : error, &l->scratch), id);
    return true;
}

static void do_call(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct str id;
    int rc = deliver(l, req, STR_NONE, lent(req->id), &id, &err);
    if (rc < 0)
        reply_error(l, req, &err);
    else if (rc == 0 || !answer_known(l, req, id))
        waiter_add(l, req, full_id(l, req), id);
}

static void accept_message(struct loom *l, const struct loom_request *req, struct str event, struct str id) {
    struct error err;
    struct str made;
    if (deliver(l, req, event, id, &made, &err) < 0)
        reply_error(l, req, &err);
    else
        reply_send(l, req, 202,
                   say(l, "{\"messageId\":%q,\"actorId\":\"%j/%j\"}", made, lent(req->type), lent(req->key)), made);
}

static void do_send(struct loom *l, const struct loom_request *req) {
    accept_message(l, req, STR_NONE, lent(req->id));
}

static void do_event(struct loom *l, const struct loom_request *req) {
    struct error err;
    if (req->id.n >= 1 && req->id.n <= 256) {
        accept_message(l, req, lent(req->id), lent(req->event_id));
        return;
    }
    error_set(&err, LOOM_E_INVALID_ARGUMENT, "the event's type has 1 to 256 bytes");
    reply_error(l, req, &err);
}

/* A run's message id is its key: starting it again is a duplicate, with another input a conflict. */
static void do_run(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct loom_request run = *req;
    char made[33];
    struct str key = req->key.p ? lent(req->key) : str_of(loom_random_id(l, made)),
               type = say(l, "workflow.%j", lent(req->type)), id;
    run.type = (struct loom_str){type.p, type.n};
    run.key = (struct loom_str){key.p, key.n};
    if (deliver(l, &run, STR_NONE, req->id.p ? lent(req->id) : key, &id, &err) < 0)
        reply_error(l, req, &err);
    else
        reply_send(l, req, 202, say(l, "{\"id\":%q,\"actorId\":\"%j/%j\",\"messageId\":%q}", key, type, key, id), id);
}

static void do_message(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct str full = full_id(l, req), id = lent(req->id), text = message_row(l, full, id);
    if (!text.p) {
        error_set(&err, LOOM_E_NOT_FOUND, "%.*s got no message %.*s, or its 24 hours are over", (int)full.n, full.p,
                  (int)id.n, id.p);
        reply_error(l, req, &err);
        return;
    }
    yyjson_val *row = look(l, text), *reply = yyjson_obj_get(row, "reply"), *error = yyjson_obj_get(row, "error");
    struct resident *r = resident_by_id(l, full);
    bool running = r && r->a->turn && str_eq(json_str(yyjson_doc_get_root(r->a->turn->started), "messageId"), id);
    struct str end = reply || error ? say(l, ",\"%s\":%j", reply ? "reply" : "error",
                                          json_text_of(reply ? reply : error, &l->scratch))
                                    : STR("");
    reply_send(
        l, req, 200,
        say(l, "{\"messageId\":%q,\"status\":%q%j}", id, running ? STR("running") : json_str(row, "status"), end), id);
}

/* ---- looking ---- */

struct reading {
    struct buf out;
    int64_t from, limit, count, next;
    bool numbers; /* each entry with its cursor */
};

static bool read_entries(void *ctx, struct str key, struct str value) {
    struct reading *s = ctx;
    int64_t number = (int64_t)journal_key_number(key);
    struct arena mem = {0};
    yyjson_val *entry;
    size_t i, n;
    yyjson_arr_foreach(yyjson_obj_get(json_in(&mem, value), "entries"), i, n, entry) {
        if (number++ < s->from) continue;
        if (s->count == s->limit) {
            s->next = number - 1;
            break;
        }
        struct str text = json_text_of(entry, &mem);
        buf_str(&s->out, s->count++ ? STR(",") : STR(""));
        if (s->numbers)
            buf_json(&s->out, "{\"cursor\":%d,%j", number - 1, (struct str){text.p + 1, text.n - 1});
        else
            buf_str(&s->out, text);
    }
    arena_free(&mem);
    return s->next == 0;
}

static int read_journal(struct loom *l, struct resident *r, struct reading *s, struct error *err) {
    resident_flush(l, r);
    return journal_rows(l, r->a, 0, read_entries, s, err);
}

static struct str state_now(struct loom *l, const struct actor *a) {
    struct buf text = {0};
    state_text(a, &text);
    struct str state = arena_dup(&l->scratch, buf_view(&text));
    buf_free(&text);
    return state;
}

static void do_get(struct loom *l, const struct loom_request *req) {
    struct resident *r = target(l, req);
    struct error err;
    if (!r) return;
    struct buf out = {0};
    struct reading s = {.limit = 1000};
    uint64_t first = r->a->last_turn;
    s.from = (int64_t)(r->a->cursor >= first + 1000 ? r->a->cursor - 999 : first);
    if (read_journal(l, r, &s, &err) < 0) {
        reply_error(l, req, &err);
    } else {
        actor_document(r->a, say(l, "[%j]", buf_view(&s.out)), state_now(l, r->a), &out);
        reply_send(l, req, 200, buf_view(&out), STR_NONE);
    }
    buf_free(&s.out);
    buf_free(&out);
}

struct patches {
    struct arena mem;
    yyjson_val **inverse;
    size_t count;
    uint64_t after;
};

static bool collect_patches(void *ctx, struct str key, struct str value) {
    struct patches *p = ctx;
    uint64_t number = journal_key_number(key);
    yyjson_val *entry;
    size_t i, n;
    yyjson_arr_foreach(yyjson_obj_get(json_in(&p->mem, value), "entries"), i, n, entry) {
        if (number++ <= p->after || !yyjson_obj_get(entry, "inversePatches")) continue;
        p->inverse = mem_grow(p->inverse, (p->count + 1) * sizeof *p->inverse);
        p->inverse[p->count++] = yyjson_obj_get(entry, "inversePatches");
    }
    return true;
}

/* The state as it was after an entry: from now backwards by the inverse patches. */
int state_at(struct loom *l, struct resident *r, int64_t at, struct str *out, struct error *err) {
    struct patches p = {.after = (uint64_t)at};
    struct buf text = {0};
    resident_flush(l, r);
    int rc = journal_rows(l, r->a, 0, collect_patches, &p, err);
    yyjson_doc *now = yyjson_read(state_now(l, r->a).p, state_now(l, r->a).n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_mut_doc *state = yyjson_doc_mut_copy(now, NULL);
    while (p.count > 0) patch_apply(state, p.inverse[--p.count], NULL, NULL);
    json_write_mut(yyjson_mut_doc_get_root(state), &text);
    *out = arena_dup(&l->scratch, buf_view(&text));
    yyjson_mut_doc_free(state);
    yyjson_doc_free(now);
    free(p.inverse);
    arena_free(&p.mem);
    buf_free(&text);
    return rc;
}

static void do_state(struct loom *l, const struct loom_request *req) {
    struct resident *r = target(l, req);
    struct error err;
    struct str out = STR_NONE;
    int rc = 0;
    if (!r) return;
    if (req->at < 0)
        out = state_now(l, r->a);
    else if ((uint64_t)req->at > r->a->cursor)
        rc = error_set(&err, LOOM_E_INVALID_ARGUMENT,
                       "at=%" PRId64 " is beyond the journal of %s, which ends at %" PRIu64, req->at, r->a->id,
                       r->a->cursor);
    else
        rc = state_at(l, r, req->at, &out, &err);
    if (rc < 0)
        reply_error(l, req, &err);
    else
        reply_send(l, req, 200, out, STR_NONE);
}

static void do_journal(struct loom *l, const struct loom_request *req) {
    struct resident *r = target(l, req);
    struct error err;
    if (!r) return;
    struct reading s = {
        .from = req->from, .limit = req->limit > 0 && req->limit <= 10000 ? req->limit : 1000, .numbers = true};
    if (read_journal(l, r, &s, &err) < 0)
        reply_error(l, req, &err);
    else
        reply_send(
            l, req, 200,
            say(l, "{\"entries\":[%j],\"next\":%j}", buf_view(&s.out), s.next ? say(l, "%d", s.next) : STR("null")),
            STR_NONE);
    buf_free(&s.out);
}

struct query {
    struct loom *l;
    struct buf out;
    struct str type, status, last;
    int64_t limit, count;
    bool more;
};

static bool read_actor(void *ctx, struct str key, struct str value) {
    struct query *q = ctx;
    if (memchr(key.p, '\0', key.n)) return true; /* a large state's row */
    struct arena mem = {0};
    yyjson_val *doc = json_in(&mem, value);
    struct str type = json_str(doc, "actorType"), status = json_str(doc, "status");
    bool wanted = (!q->type.p || str_eq(q->type, type)) && (!q->status.p || str_eq(q->status, status));
    q->more = wanted && q->count == q->limit;
    if (wanted && !q->more) {
        buf_json(
            &q->out, "%s{\"id\":%q,\"actorType\":%q,\"status\":%q,\"suspendReason\":%Q,\"cursor\":%d,\"metadata\":%j}",
            q->count++ ? "," : "", json_str(doc, "id"), type, status, json_str(doc, "suspendReason"),
            json_int(yyjson_obj_get(doc, "journal"), "cursor", 0), json_text_of(yyjson_obj_get(doc, "metadata"), &mem));
        q->last = arena_dup(&q->l->scratch, json_str(doc, "id"));
    }
    arena_free(&mem);
    return !q->more;
}

static void do_actors(struct loom *l, const struct loom_request *req) {
    struct query q = {.l = l,
                      .type = lent(req->type),
                      .status = lent(req->status),
                      .limit = req->limit > 0 && req->limit <= 1000 ? req->limit : 100};
    struct error err;
    struct str prefix = q.type.p ? say(l, "%j/%j", ns_of(req), q.type) : ns_of(req);
    /* Behind the last one seen and its state row; '0' is what follows '/'. */
    struct str from = req->after.p ? say(l, "%j/%j\1", ns_of(req), lent(req->after)) : say(l, "%j/", prefix);
    residents_flush(l, false);
    int rc = rows_scan(l, ROW_ACTOR, from, say(l, "%j0", prefix), read_actor, &q, &err);
    if (rc < 0 && rc != LOOM_E_DAMAGED)
        reply_error(l, req, &err);
    else
        reply_send(l, req, 200, say(l, "{\"actors\":[%j],\"next\":%Q}", buf_view(&q.out), q.more ? q.last : STR_NONE),
                   STR_NONE);
    buf_free(&q.out);
}

/* ---- operating ---- */

static void done(struct loom *l, const struct loom_request *req, struct resident *r) {
    reply_send(l, req, 202, say(l, "{\"actorId\":%q,\"status\":%z}", r->a->name, actor_status_name(r->a->status)),
               STR_NONE);
}

/* The request's body, checked, as text in the scratch; .p NULL: refused, and answered. */
static struct str body_of(struct loom *l, const struct loom_request *req) {
    struct buf text = {0};
    struct error err;
    int rc = json_normalize(req->body.p ? lent(req->body) : STR("null"), &text, &err);
    if (rc < 0) reply_error(l, req, &err);
    struct str body = rc < 0 ? STR_NONE : arena_dup(&l->scratch, buf_view(&text));
    buf_free(&text);
    return body;
}

static void do_cancel(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct resident *r = target(l, req);
    struct str body = r ? body_of(l, req) : STR_NONE;
    if (!body.p) return;
    struct str reason = json_str(look(l, body), "reason");
    if (r->a->status >= ACTOR_COMPLETED || (!r->a->turn && !r->a->run)) {
        error_set(&err, LOOM_E_CONFLICT, "actor %s is %s: there is nothing to cancel", r->a->id,
                  actor_status_name(r->a->status));
        reply_error(l, req, &err);
        return;
    }
    turn_cancel(l, r, reason.p ? reason : STR("cancelled by an operator"));
    done(l, req, r);
}

/* A paused actor goes on: its deadlines count again, attempts that ended meanwhile are made anew. */
static void unpause(struct loom *l, struct resident *r) {
    struct turn *t = r->a->turn;
    resident_status(l, r, t ? ACTOR_RUNNING : ACTOR_IDLE, STR_NONE);
    for (uint64_t i = 1; t && i <= t->promise_count; i++) {
        struct promise *p = turn_promise(t, i);
        if (p->done_at == ENTRY_NEVER && p->deadline && (p->kind == PROMISE_EVENT || p->kind == PROMISE_TIMER))
            alarm_set(l, p->deadline, ALARM_PROMISE, r->a->full, t->number, i, true);
    }
    attempt_recover(l, r);
    resident_queue(l, r);
}

/* The promise of a suspend that waits, or 0. */
static uint64_t person_awaited(struct turn *t) {
    for (uint64_t i = 1; t && i <= t->promise_count; i++)
        if (turn_promise(t, i)->kind == PROMISE_SUSPEND && turn_promise(t, i)->done_at == ENTRY_NEVER) return i;
    return 0;
}

static void do_resume(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct resident *r = target(l, req);
    struct str data = r ? body_of(l, req) : STR_NONE;
    if (!data.p) return;
    uint64_t promise = person_awaited(r->a->turn);
    if (r->a->status != ACTOR_PAUSED && !promise) {
        error_set(&err, LOOM_E_CONFLICT,
                  "actor %s is %s and waits for nobody: only a paused actor or one that called suspend is resumed",
                  r->a->id, actor_status_name(r->a->status));
        reply_error(l, req, &err);
        return;
    }
    if (r->a->status == ACTOR_PAUSED)
        unpause(l, r);
    else
        promise_done(l, r, promise, "resumed", true, data);
    done(l, req, r);
}

/* A new actor with the open or last turn's entries up to `from`; it goes on from there, live. */
static void do_fork(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct resident *r = target(l, req), *made = NULL;
    struct str body = r ? body_of(l, req) : STR_NONE;
    if (!body.p) return;
    struct str key = json_str(look(l, body), "key");
    int rc = key.p ? actor_check_key(key, &err)
                   : error_set(&err, LOOM_E_INVALID_ARGUMENT, "field key is missing: the new actor's key");
    if (rc == 0) rc = resident_fork(l, r, key, json_int(look(l, body), "from", (int64_t)r->a->cursor), &made, &err);
    if (rc < 0)
        reply_error(l, req, &err);
    else
        done(l, req, made);
}

static void do_put_activity(struct loom *l, const struct loom_request *req) {
    registry_op_put(l, req, "activity");
}

static void do_put_actor_type(struct loom *l, const struct loom_request *req) {
    registry_op_put(l, req, "actor-type");
}

static void do_put_workflow(struct loom *l, const struct loom_request *req) {
    registry_op_put(l, req, "workflow");
}

static void do_ready(struct loom *l, const struct loom_request *req) {
    reply_send(l, req, 200, STR("{\"ready\":true}"), STR_NONE);
}

static const struct operator_row {
    const char *name;
    void (*fn)(struct loom *l, const struct loom_request *req);
    bool reads; /* changes nothing: allowed while the store takes no batch */
    const char *argument, *doc;
} operator_ops[] = {
    {"call", do_call, false, "type, key, body; id, timeout_ms, priority, ttl_ms, version",
     "Delivers a message and answers with its reply, or 202 when that takes longer."},
    {"send", do_send, false, "type, key, body; id, delay_ms, priority, ttl_ms, version",
     "Delivers a message; answers once it is durable."},
    {"event", do_event, false, "type, key, id = event type, body; event_id, ttl_ms",
     "Delivers an event to a wait of its type."},
    {"message", do_message, true, "type, key, id", "What became of a message: status and reply or error."},
    {"get", do_get, true, "type, key", "The actor document with the entries of its current turn."},
    {"state", do_state, true, "type, key; at", "The state, now or after a past entry."},
    {"journal", do_journal, true, "type, key; from, limit", "Journal entries by number."},
    {"actors", do_actors, true, "type, status, limit, after", "Actors of a namespace."},
    {"cancel", do_cancel, false, "type, key; body {reason}",
     "Cancels the open turn, so that the guest cleans up and ends."},
    {"resume", do_resume, false, "type, key; body",
     "Lets a paused or suspended actor go on; the body is what suspend returns."},
    {"fork", do_fork, false, "type, key, body {key, from}", "Makes a new actor from the journal up to an entry."},
    {"run", do_run, false, "type = workflow; key, version, body", "Starts a workflow run."},
    {"module.put", registry_op_module_put, false, "type = name, key = version, body = bytes; replace",
     "Uploads and compiles a WASM module."},
    {"module.list", registry_op_modules, true, "", "The modules of a namespace."},
    {"activity.put", do_put_activity, false, "type = name, key = version, body; replace",
     "Deploys an activity's definition."},
    {"actor-type.put", do_put_actor_type, false, "type = name, key = version, body; replace",
     "Deploys an actor type's definition."},
    {"workflow.put", do_put_workflow, false, "type = name, key = version, body; replace",
     "Checks and deploys a workflow document."},
    {"definitions", registry_op_list, true, "type = activity | actor-type | workflow", "What is deployed."},
    {"definition", registry_op_get, true, "type = kind, key = name; version", "A definition's document."},
    {"ready", do_ready, false, "", "Answers when Loom takes work."},
};
enum { OPERATOR_OPS = sizeof operator_ops / sizeof *operator_ops };

void operate(struct loom *l, const struct loom_request *req) {
    const struct operator_row *row = operator_ops;
    struct error err;
    while (row < operator_ops + OPERATOR_OPS && strcmp(row->name, req->op) != 0) row++;
    if (row == operator_ops + OPERATOR_OPS)
        error_set(&err, LOOM_E_NOT_FOUND, "there is no operator op \"%s\"", req->op);
    else if (l->failed && !row->reads)
        error_set(&err, l->failed_code,
                  "the store takes no batch at the moment; repeat the request with the same message id");
    else if (!row->reads && l->flight && batch_full(l))
        error_set(&err, LOOM_E_BUSY, "the disk is behind; try again");
    else {
        row->fn(l, req);
        return;
    }
    reply_error(l, req, &err);
}

const struct loom_op_doc *operator_op_docs(void) {
    static struct loom_op_doc docs[OPERATOR_OPS + 1];
    for (size_t i = 0; i < OPERATOR_OPS; i++)
        docs[i] = (struct loom_op_doc){operator_ops[i].name, operator_ops[i].argument, operator_ops[i].doc};
    return docs;
}
