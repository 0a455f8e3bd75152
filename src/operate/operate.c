/* operate.c: the operator's op table: what HTTP, the CLI and programs ask of the engine.
 *
 * Every answer, also one that changes nothing, is an effect: it may rest on what has not committed yet.
 */
#include "operate/operate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct str full_id(struct loom *l, const struct loom_request *req) {
    return say(l, "%j/%j/%j", ns_of(req), lent(req->type), lent(req->key));
}

/* The actor of the request in memory, to be changed; or NULL with the answer given. */
static struct resident *target(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct resident *r = NULL;
    if (actor_check_id(full_id(l, req), &err) == 0) r = resident_get(l, full_id(l, req), false, &err);
    if (!r) reply_error(l, req, &err);
    return r;
}

/* ---- messages ---- */

static int check_request(const struct loom_request *req, struct str id, struct error *err) {
    if (id.p && actor_check_text(id, "a message id", err) < 0) return LOOM_E_INVALID_ARGUMENT;
    if (req->delay_ms < 0 || req->ttl_ms < 0 || req->timeout_ms < 0)
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "delayMs, ttlMs and timeoutMs cannot be negative");
    if (req->body.n > BODY_MAX)
        return error_set(err, LOOM_E_TOO_LARGE, "the input has %zu bytes; at most %d are accepted", req->body.n,
                         BODY_MAX);
    return 0;
}

/* *id: given, or absent and then made. */
static int deliver(struct loom *l, const struct loom_request *req, struct str event, struct str *id,
                   struct error *err) {
    struct message m = {.to = full_id(l, req), .id = *id, .event = event, .outside = true};
    struct buf data = {0};
    m.correlation = lent(req->correlation);
    m.traceparent = lent(req->traceparent);
    m.version = lent(req->version);
    m.delay_ms = req->delay_ms;
    m.ttl_ms = req->ttl_ms;
    m.priority = req->priority;
    int rc = check_request(req, m.id, err);
    if (rc == 0) rc = json_normalize(req->body.p ? lent(req->body) : STR("null"), &data, err);
    m.data = buf_view(&data);
    if (rc == 0) rc = mail_deliver(l, &m, err);
    *id = m.id;
    buf_free(&data);
    return rc;
}

/* A duplicate gets the original reply; in flight it waits for it. */
static bool answer_known(struct loom *l, const struct loom_request *req, struct str id) {
    struct str text = rows_get(l, ROW_INBOX, dedup_key(l, full_id(l, req), id));
    yyjson_val *row = text.p ? look(l, text) : NULL, *reply = yyjson_obj_get(row, "reply"),
               *error = yyjson_obj_get(row, "error");
    if (!reply && !error) return false;
    reply_send(l, req, reply_status(reply != NULL, error), json_text_of(reply ? reply : error, &l->scratch), id);
    return true;
}

static void do_call(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct str id = lent(req->id);
    int rc = deliver(l, req, STR_NONE, &id, &err);
    if (rc < 0)
        reply_error(l, req, &err);
    else if (rc == 0 || !answer_known(l, req, id))
        waiter_add(l, req, full_id(l, req), id);
}

static void accept_message(struct loom *l, const struct loom_request *req, struct str event, struct str id) {
    struct error err;
    if (deliver(l, req, event, &id, &err) < 0)
        reply_error(l, req, &err);
    else
        reply_send(l, req, 202, say(l, "{\"messageId\":%q,\"actorId\":\"%j/%j\"}", id, lent(req->type), lent(req->key)),
                   id);
}

static void do_send(struct loom *l, const struct loom_request *req) {
    accept_message(l, req, STR_NONE, lent(req->id));
}

static void do_event(struct loom *l, const struct loom_request *req) {
    struct error err;
    if (actor_check_text(lent(req->id), "an event's type", &err) < 0)
        reply_error(l, req, &err);
    else
        accept_message(l, req, lent(req->id), lent(req->event_id));
}

/* A run's message id is its key, whichever of the two is given: starting it again is a duplicate, with another input a
 * conflict. */
static void do_run(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct loom_request run = *req;
    struct str key = req->key.p  ? lent(req->key)
                     : req->id.p ? lent(req->id)
                                 : message_id_new(l),
               type = say(l, "workflow.%j", lent(req->type)), id = req->id.p ? lent(req->id) : key;
    run.type = (struct loom_str){type.p, type.n};
    run.key = (struct loom_str){key.p, key.n};
    if (deliver(l, &run, STR_NONE, &id, &err) < 0)
        reply_error(l, req, &err);
    else
        reply_send(l, req, 202, say(l, "{\"id\":%q,\"actorId\":\"%j/%j\",\"messageId\":%q}", key, type, key, id), id);
}

static void do_message(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct str full = full_id(l, req), id = lent(req->id), text;
    int rc = rows_load(l, ROW_INBOX, dedup_key(l, full, id), &text, &err);
    if (rc == 0)
        error_set(&err, LOOM_E_NOT_FOUND, "%.*s got no message %.*s, or its 24 hours are over", (int)full.n, full.p,
                  (int)id.n, id.p);
    if (rc <= 0) {
        reply_error(l, req, &err);
        return;
    }
    yyjson_val *row = look(l, text), *reply = yyjson_obj_get(row, "reply"), *error = yyjson_obj_get(row, "error");
    struct resident *r = resident_by_id(l, full);
    bool running = r && r->a->turn && str_eq(json_str(look(l, r->a->turn->started), "messageId"), id);
    struct str status = running ? STR("running") : json_str(row, "status");
    struct str end = reply || error ? say(l, ",\"%s\":%v", reply ? "reply" : "error", reply ? reply : error) : STR("");
    reply_send(l, req, 200, say(l, "{\"messageId\":%q,\"status\":%q%j}", id, status.p ? status : STR("queued"), end),
               id);
}

/* ---- looking ---- */

/* Reads show the last commit: the rows of the store, no guest and nothing speculative. */
static struct actor *stored_actor(struct loom *l, const struct loom_request *req, struct error *err) {
    struct str text;
    if (actor_check_id(full_id(l, req), err) < 0) return NULL;
    struct actor *a = actor_new(full_id(l, req));
    int rc = rows_stored(l, ROW_ACTOR, a->full, &text, err);
    if (rc == 0) rc = error_set(err, LOOM_E_NOT_FOUND, "there is no actor %s", a->id);
    if (rc > 0) rc = actor_read(a, text, err);
    if (rc >= 0) return a;
    actor_free(a);
    return NULL;
}

struct reading {
    struct buf out;
    int64_t from, limit, count, next, first, last; /* first, last: of the rows seen */
    bool numbers;                                  /* each entry with its cursor */
};

static bool read_entries(void *ctx, struct str key, struct str value) {
    struct reading *s = ctx;
    int64_t number = (int64_t)journal_key_number(key);
    struct arena mem = {0};
    yyjson_val *entry;
    size_t i, n;
    yyjson_arr_foreach(yyjson_obj_get(json_in(&mem, value), "entries"), i, n, entry) {
        if (s->first == 0) s->first = number;
        s->last = number;
        if (number++ < s->from) continue;
        if (s->count == s->limit) {
            s->next = number - 1;
            break;
        }
        struct str text = json_text_of(entry, &mem);
        if (s->count++) buf_char(&s->out, ',');
        if (s->numbers)
            buf_json(&s->out, "{\"cursor\":%d,%j", number - 1, (struct str){text.p + 1, text.n - 1});
        else
            buf_str(&s->out, text);
    }
    arena_free(&mem);
    return s->next == 0;
}

/* Entries from s->from on. The row that holds it begins somewhat earlier: farther back until it is found. */
static int read_journal(struct loom *l, const struct actor *a, struct reading *s, struct error *err) {
    struct reading empty = *s;
    int rc = 0;
    for (int64_t back = 100;; back *= 16) {
        int64_t row = s->from > back ? s->from - back : 0;
        rc = journal_rows(l, a, (uint64_t)row, read_entries, s, err);
        if (rc < 0 || row == 0 || (s->first > 0 && s->first <= s->from)) return rc;
        buf_free(&s->out);
        *s = empty;
    }
}

struct patches {
    struct arena mem;
    yyjson_val **list;
    size_t count;
    uint64_t from, to; /* those of the entries from + 1 to `to`, or backwards when from > to */
};

static bool collect_patches(void *ctx, struct str key, struct str value) {
    struct patches *p = ctx;
    uint64_t number = journal_key_number(key);
    bool back = p->from > p->to;
    yyjson_val *entry;
    size_t i, n;
    yyjson_arr_foreach(yyjson_obj_get(json_in(&p->mem, value), "entries"), i, n, entry) {
        yyjson_val *patch = yyjson_obj_get(entry, back ? "inversePatches" : "patches");
        bool inside = number > (back ? p->to : p->from) && number <= (back ? p->from : p->to);
        number++;
        if (!patch || !inside) continue;
        p->list = mem_grow(p->list, (p->count + 1) * sizeof *p->list);
        p->list[p->count++] = patch;
    }
    return true;
}

/* The state after entry `at`: from the stored one forwards by patches, or backwards by their inverses. */
static int state_after(struct loom *l, struct actor *a, uint64_t at, struct str *out, struct error *err) {
    struct patches p = {.from = a->state_at, .to = at};
    struct buf text = {0};
    int rc = a->state_apart ? resident_state(l, a, err) : 0;
    bool back = p.from > p.to;
    if (rc >= 0) rc = journal_rows(l, a, back ? 0 : a->from, collect_patches, &p, err);
    for (size_t i = 0; i < p.count; i++) patch_apply(a->state, p.list[back ? p.count - 1 - i : i], NULL, NULL);
    json_write_mut(yyjson_mut_doc_get_root(a->state), &text);
    *out = kept(l, &text);
    free(p.list);
    arena_free(&p.mem);
    return rc;
}

/* entry ≤ 0: none. */
static int is_kept(const struct actor *a, int64_t entry, struct error *err) {
    if (entry <= 0 || (uint64_t)entry >= a->kept) return 0;
    return error_set(err, LOOM_E_NOT_FOUND,
                     "entry %" PRId64 " of %s was removed (journalRetention): the journal begins with %" PRIu64, entry,
                     a->id, a->kept);
}

/* The document's cursor is the one of its last change; entries may have followed. */
static int64_t last_entry(struct loom *l, const struct actor *a, struct error *err) {
    struct reading s = {.from = INT64_MAX, .limit = INT64_MAX};
    int rc = journal_rows(l, a, a->last_row, read_entries, &s, err);
    return rc < 0 ? rc : s.last;
}

static void do_get(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct buf out = {0};
    struct str state;
    struct actor *a = stored_actor(l, req, &err);
    struct reading s = {.limit = 1000};
    int64_t last = a ? last_entry(l, a, &err) : LOOM_E_NOT_FOUND;
    int rc = last < 0 ? (int)last : 0;
    if (rc >= 0) {
        a->cursor = (uint64_t)last;
        s.from = last - (int64_t)a->last_turn >= 1000 ? last - 999 : (int64_t)a->last_turn;
        rc = read_journal(l, a, &s, &err);
    }
    if (rc >= 0) rc = state_after(l, a, a->cursor, &state, &err);
    if (rc < 0) {
        reply_error(l, req, &err);
    } else {
        actor_document(a, buf_view(&s.out), state, &out);
        reply_send(l, req, 200, buf_view(&out), STR_NONE);
    }
    actor_free(a);
    buf_free(&s.out);
    buf_free(&out);
}

static void do_state(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct str out;
    struct actor *a = stored_actor(l, req, &err);
    int64_t last = a ? last_entry(l, a, &err) : LOOM_E_NOT_FOUND;
    int rc = last < 0 ? (int)last : 0;
    if (rc >= 0 && req->at > last)
        rc = error_set(&err, LOOM_E_INVALID_ARGUMENT,
                       "at=%" PRId64 " is beyond the journal of %s, which ends at %" PRId64, req->at, a->id, last);
    if (rc >= 0) rc = is_kept(a, req->at + 1, &err);
    if (rc >= 0) rc = state_after(l, a, (uint64_t)(req->at < 0 ? last : req->at), &out, &err);
    if (rc < 0)
        reply_error(l, req, &err);
    else
        reply_send(l, req, 200, out, STR_NONE);
    actor_free(a);
}

static void do_journal(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct actor *a = stored_actor(l, req, &err);
    struct reading s = {.from = req->from, .limit = req->limit > 0 && req->limit <= 10000 ? req->limit : 1000};
    s.numbers = true;
    if (!a || is_kept(a, req->from, &err) < 0 || read_journal(l, a, &s, &err) < 0)
        reply_error(l, req, &err);
    else
        reply_send(
            l, req, 200,
            say(l, "{\"entries\":[%j],\"next\":%j}", buf_view(&s.out), s.next ? say(l, "%d", s.next) : STR("null")),
            STR_NONE);
    actor_free(a);
    buf_free(&s.out);
}

struct query {
    struct loom *l;
    struct buf out;
    struct str type, last;
    int status; /* −1: any */
    int64_t limit, count;
    bool more;
};

static bool read_actor(void *ctx, struct str key, struct str value) {
    struct query *q = ctx;
    if (memchr(key.p, '\0', key.n)) return true; /* a large state's row */
    struct actor *a = actor_new(key);
    bool wanted = a && actor_read(a, value, NULL) == 0 && (!q->type.p || str_eq(q->type, a->type)) &&
                  (q->status < 0 || q->status == (int)a->status);
    q->more = wanted && q->count == q->limit;
    if (wanted && !q->more) {
        buf_json(&q->out, "%s{\"id\":%q,\"actorType\":%q,\"status\":%z,\"suspendReason\":%Q,\"metadata\":",
                 q->count++ ? "," : "", a->name, a->type, actor_status_name(a->status),
                 a->reason[0] ? str_of(a->reason) : STR_NONE);
        actor_metadata(a, &q->out);
        buf_char(&q->out, '}');
        q->last = arena_dup(&q->l->scratch, a->name);
    }
    actor_free(a);
    return !q->more;
}

static void do_actors(struct loom *l, const struct loom_request *req) {
    struct query q = {.l = l,
                      .type = lent(req->type),
                      .status = actor_status_of(lent(req->status)),
                      .limit = req->limit <= 0     ? 100
                               : req->limit < 1000 ? req->limit
                                                   : 1000};
    struct error err;
    int rc = actor_check_name(ns_of(req), "the namespace", &err);
    if (rc == 0 && req->status.p && q.status < 0)
        rc = error_set(&err, LOOM_E_INVALID_ARGUMENT,
                       "the status is \"%.*s\"; use idle, running, suspended, paused, completed, failed or cancelled",
                       (int)req->status.n, req->status.p);
    struct str prefix = q.type.p ? say(l, "%j/%j", ns_of(req), q.type) : ns_of(req);
    /* Behind the last one seen and its state row; '0' is what follows '/'. */
    struct str from = req->after.p ? say(l, "%j/%j\1", ns_of(req), lent(req->after)) : say(l, "%j/", prefix);
    if (rc == 0) rc = rows_scan(l, ROW_ACTOR, from, say(l, "%j0", prefix), read_actor, &q, &err);
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
    return rc < 0 ? STR_NONE : kept(l, &text);
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
    resident_status(l, r, r->a->turn ? ACTOR_RUNNING : ACTOR_IDLE, STR_NONE);
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
        promise_done(l, r, promise, true, data, STR_NONE);
    done(l, req, r);
}

/* A new actor with the last turn's entries up to `from`, in memory and as a row, as if it had been loaded. */
static int fork_actor(struct loom *l, struct actor *a, struct str key, int64_t from, struct str *full,
                      struct error *err) {
    struct reading s = {.from = (int64_t)a->last_turn};
    s.limit = from < 0 ? INT64_MAX : from - s.from + 1;
    struct str state;
    int rc = read_journal(l, a, &s, err);
    if (rc >= 0 && (s.limit < 1 || s.count == 0 || (from >= 0 && s.count < s.limit)))
        rc = error_set(err, LOOM_E_INVALID_ARGUMENT,
                       "from is %" PRId64 "; the last turn of %s has the entries %" PRIu64 " to %" PRId64, from, a->id,
                       a->last_turn, s.last);
    if (rc >= 0) rc = state_after(l, a, a->last_turn - 1, &state, err);
    *full = say(l, "%j/%j/%j", a->ns, a->type, key);
    struct resident *r = rc < 0 ? NULL : resident_get(l, *full, true, err);
    if (rc >= 0 && !r) rc = LOOM_E_DAMAGED;
    if (r && r->a->created_at)
        rc = error_set(err, LOOM_E_EXISTS, "actor %s exists already; choose another key", r->a->id);
    if (rc >= 0) {
        struct actor *made = r->a;
        made->status = ACTOR_RUNNING;
        made->run = a->run;
        made->from = a->last_turn;
        made->state_at = made->cursor = a->last_turn - 1;
        made->turns = a->turns;
        made->last_turn = a->last_turn;
        made->created_at = made->activated_at = loom_now(l);
        made->correlation = str_dup(str_of(a->correlation));
        state_set(made, look(l, state));
        struct str first = journal_key(&l->scratch, made->full, a->last_turn),
                   row = say(l, "{\"prev\":\"0\",\"entries\":[%j]}", buf_view(&s.out));
        rows_put(l, ROW_JOURNAL, first, row, true);
        resident_touch(l, r, true);
        rc = journal_load(made, first, row, err);
        if (!made->turn) { /* it has ended: nothing is to be run */
            made->status = a->status;
            memcpy(made->reason, a->reason, sizeof made->reason);
        }
    }
    buf_free(&s.out);
    return rc;
}

static void do_fork(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct actor *a = stored_actor(l, req, &err);
    struct str body = a ? body_of(l, req) : STR_NONE, full = STR_NONE;
    if (a && !body.p) {
        actor_free(a);
        return;
    }
    struct str key = a ? json_str(look(l, body), "key") : STR_NONE;
    int rc = a ? 0 : LOOM_E_NOT_FOUND;
    if (a && !key.p) rc = error_set(&err, LOOM_E_INVALID_ARGUMENT, "field key is missing: the new actor's key");
    if (rc == 0) rc = actor_check_key(key, &err);
    if (rc == 0) rc = fork_actor(l, a, key, json_int(look(l, body), "from", -1), &full, &err);
    actor_free(a);
    if (rc < 0) {
        reply_error(l, req, &err);
        return;
    }
    recover_actor(l, full, false);
    done(l, req, resident_by_id(l, full));
}

static void do_put_activity(struct loom *l, const struct loom_request *req) {
    deploy_definition(l, req, "activity");
}

static void do_put_actor_type(struct loom *l, const struct loom_request *req) {
    deploy_definition(l, req, "actor-type");
}

static void do_put_workflow(struct loom *l, const struct loom_request *req) {
    deploy_definition(l, req, "workflow");
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
    {"module.put", deploy_module, false, "type = name, key = version, body = bytes; replace",
     "Uploads and compiles a WASM module."},
    {"module.list", deploy_modules, true, "", "The modules of a namespace."},
    {"activity.put", do_put_activity, false, "type = name, key = version, body; replace",
     "Deploys an activity's definition."},
    {"actor-type.put", do_put_actor_type, false, "type = name, key = version, body; replace",
     "Deploys an actor type's definition."},
    {"workflow.put", do_put_workflow, false, "type = name, key = version, body; replace",
     "Checks and deploys a workflow document."},
    {"definitions", deploy_list, true, "type = activity | actor-type | workflow", "What is deployed."},
    {"definition", deploy_get, true, "type = kind, key = name; version", "A definition's document."},
    {"ready", do_ready, false, "", "Answers when Loom takes work."},
    {"debug", debug_store, true, "type = digest | verify | replay | dump | panic | stall; key = actor, delay_ms",
     "Examines the store, or makes a worker fail that was started with `debug`."},
};
enum { OPERATOR_OPS = sizeof operator_ops / sizeof *operator_ops };

static void operate(struct loom *l, const struct loom_request *req) {
    const struct operator_row *row = operator_ops;
    struct error err;
    while (row < operator_ops + OPERATOR_OPS && strcmp(row->name, req->op) != 0) row++;
    if (row == operator_ops + OPERATOR_OPS) {
        error_set(&err, LOOM_E_NOT_FOUND, "there is no operator op \"%s\"", req->op);
        reply_error(l, req, &err);
    } else if (l->stop || (!row->reads && (l->failed || (!batch_ready(l) && batch_full(l))))) {
        reply_refuse(l, req);
    } else {
        row->fn(l, req);
    }
}

static const struct loom_op_doc *operator_op_docs(void) {
    static struct loom_op_doc docs[OPERATOR_OPS + 1];
    for (size_t i = 0; i < OPERATOR_OPS; i++)
        docs[i] = (struct loom_op_doc){operator_ops[i].name, operator_ops[i].argument, operator_ops[i].doc};
    return docs;
}

/* ---- from any thread ---- */

struct submission {
    struct item item;
    struct loom_request req;
};

struct loom_request request_copy(struct arena *mem, const struct loom_request *req) {
    struct loom_request copy = *req;
    struct loom_str *texts[] = {&copy.ns,          &copy.type,  &copy.key,     &copy.id,
                                &copy.event_id,    &copy.body,  &copy.version, &copy.correlation,
                                &copy.traceparent, &copy.after, &copy.status};
    copy.op = arena_dup(mem, str_of(req->op)).p;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) texts[i]->p = arena_dup(mem, lent(*texts[i])).p;
    return copy;
}

static void submitted(struct loom *l, struct item *item) {
    struct submission *s = (struct submission *)item;
    operate(l, &s->req);
    item_free(item);
}

void loom_submit(struct loom *l, const struct loom_request *request) {
    struct submission *s = item_new(sizeof *s);
    s->req = request_copy(&s->item.mem, request);
    loom_post(l, &s->item, submitted);
}

const struct loom_op_doc *loom_ops(const char *who) {
    if (strcmp(who, "actor") == 0) return actor_op_docs();
    return strcmp(who, "activity") == 0 ? activity_ops : operator_op_docs();
}

char *loom_metrics(void) {
    struct buf out = {0};
    metrics_write(&out);
    buf_char(&out, '\0');
    return out.p;
}
