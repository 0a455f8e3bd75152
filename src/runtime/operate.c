/* operate.c: the operator's op table: what HTTP, the CLI and programs ask of the engine.
 *
 * Every answer, also one that changes nothing, is an effect: it may rest on what has not committed yet.
 */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct str own(struct loom_str s) {
    return (struct str){s.p, s.n};
}

static struct str ns_of(const struct loom_request *req) {
    return req->ns.p ? own(req->ns) : STR("default");
}

/* The actor of the request, or NULL with the answer given. */
static struct resident *target(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct resident *r = NULL;
    if (actor_check_name(ns_of(req), "the namespace", &err) == 0 && actor_check_name(own(req->type), "the actor type", &err) == 0 && actor_check_key(own(req->key), &err) == 0)
        r = resident_get(l, ns_of(req), own(req->type), own(req->key), false, &err);
    if (!r)
        reply_error(l, req, &err);
    return r;
}

static void accepted(struct loom *l, const struct loom_request *req, struct str id) {
    struct buf body = {0};
    buf_json(&body, "{\"messageId\":%q,\"actorId\":\"%j/%j\"}", id, own(req->type), own(req->key));
    reply_send(l, req, 202, buf_view(&body), id);
    buf_free(&body);
}

/* A duplicate gets the original reply; in flight it waits for it. */
static bool answer_known(struct loom *l, const struct loom_request *req, struct str full, struct str id) {
    struct buf row = {0}, body = {0};
    bool known = false;
    if (message_status(l, full, id, &row, NULL) == 1) {
        yyjson_doc *doc = yyjson_read(row.p, row.n, YYJSON_READ_BIGNUM_AS_RAW);
        yyjson_val *root = yyjson_doc_get_root(doc), *reply = yyjson_obj_get(root, "reply"), *error = yyjson_obj_get(root, "error");
        known = reply || error;
        if (known) {
            json_write(reply ? reply : error, &body);
            int status = reply ? 200 : error_status(json_str(error, "code"));
            reply_send(l, req, status >= 500 ? 422 : status, buf_view(&body), id);
        }
        yyjson_doc_free(doc);
    }
    buf_free(&row);
    buf_free(&body);
    return known;
}

static int check_message_id(struct str id, struct error *err) {
    for (size_t i = 0; i < id.n; i++)
        if ((unsigned char)id.p[i] < 0x20)
            return error_set(err, LOOM_E_INVALID_ARGUMENT, "a message id has no control characters; byte %zu is one", i);
    return id.n <= 256 && (!id.p || id.n > 0) ? 0 : error_set(err, LOOM_E_INVALID_ARGUMENT, "a message id has 1 to 256 bytes, this one has %zu", id.n);
}

static int check_times(const struct loom_request *req, struct error *err) {
    if (req->delay_ms < 0 || req->ttl_ms < 0 || req->timeout_ms < 0)
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "delayMs, ttlMs and timeoutMs cannot be negative");
    return 0;
}

static int deliver(struct loom *l, const struct loom_request *req, struct str event, struct str id, bool run, struct buf *id_out, struct error *err) {
    struct buf data = {0};
    struct message m = {.ns = ns_of(req), .type = own(req->type), .key = own(req->key), .id = id, .event = event, .correlation = own(req->correlation),
                        .traceparent = own(req->traceparent), .delay_ms = req->delay_ms, .ttl_ms = req->ttl_ms, .priority = req->priority, .version = own(req->version), .run = run,
                        .outside = true};
    int rc = check_message_id(id, err);
    if (rc == 0)
        rc = check_times(req, err);
    if (rc == 0 && req->body.n > BODY_MAX)
        rc = error_set(err, LOOM_E_TOO_LARGE, "the input has %zu bytes; at most %d are accepted", req->body.n, BODY_MAX);
    if (rc == 0 && !req->body.p)
        buf_str(&data, STR("null"));
    else if (rc == 0)
        rc = json_normalize(own(req->body), &data, err);
    m.data = buf_view(&data);
    if (rc == 0)
        rc = mail_deliver(l, &m, id_out, err);
    buf_free(&data);
    return rc;
}

static void do_call(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct buf id = {0}, full = {0};
    int rc = deliver(l, req, STR_NONE, own(req->id), false, &id, &err);
    buf_json(&full, "%j/%j/%j", ns_of(req), own(req->type), own(req->key));
    if (rc < 0)
        reply_error(l, req, &err);
    else if (rc == 0 || !answer_known(l, req, buf_view(&full), buf_view(&id)))
        waiter_add(l, req, buf_view(&full), buf_view(&id));
    buf_free(&id);
    buf_free(&full);
}

static void send_event(struct loom *l, const struct loom_request *req, struct str event, struct str id) {
    struct error err;
    struct buf made = {0};
    if (deliver(l, req, event, id, false, &made, &err) < 0)
        reply_error(l, req, &err);
    else
        accepted(l, req, buf_view(&made));
    buf_free(&made);
}

static void do_send(struct loom *l, const struct loom_request *req) {
    send_event(l, req, STR_NONE, own(req->id));
}

static void do_event(struct loom *l, const struct loom_request *req) {
    struct error err;
    if (req->id.n >= 1 && req->id.n <= 256) {
        send_event(l, req, own(req->id), own(req->event_id));
        return;
    }
    error_set(&err, LOOM_E_INVALID_ARGUMENT, "the event's type has 1 to 256 bytes");
    reply_error(l, req, &err);
}

static void do_run(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct buf id = {0}, type = {0}, key = {0}, body = {0};
    struct loom_request run = *req;
    uint8_t bytes[16];
    char hex[33];
    l->env->random(l->env, bytes, sizeof bytes);
    hex_encode(bytes, sizeof bytes, hex);
    buf_json(&type, "workflow.%j", own(req->type));
    buf_str(&key, req->key.p ? own(req->key) : str_of(hex));
    run.type = (struct loom_str){type.p, type.n};
    run.key = (struct loom_str){key.p, key.n};
    /* A run is a message with one id for its key: starting it again is a duplicate, another input a conflict. */
    if (deliver(l, &run, STR_NONE, req->id.p ? own(req->id) : buf_view(&key), true, &id, &err) < 0) {
        reply_error(l, req, &err);
    } else {
        buf_json(&body, "{\"id\":%q,\"actorId\":\"%j/%j\",\"messageId\":%q}", buf_view(&key), buf_view(&type), buf_view(&key), buf_view(&id));
        reply_send(l, req, 202, buf_view(&body), buf_view(&id));
    }
    buf_free(&id);
    buf_free(&type);
    buf_free(&key);
    buf_free(&body);
}

/* ---- looking ---- */

static void do_message(struct loom *l, const struct loom_request *req) {
    struct buf full = {0}, row = {0}, body = {0};
    struct error err;
    struct str id = own(req->id);
    buf_json(&full, "%j/%j/%j", ns_of(req), own(req->type), own(req->key));
    int rc = message_status(l, buf_view(&full), id, &row, &err);
    if (rc == 0)
        error_set(&err, LOOM_E_NOT_FOUND, "%.*s got no message %.*s, or its 24 hours are over", (int)full.n, full.p, (int)id.n, id.p);
    if (rc <= 0) {
        reply_error(l, req, &err);
    } else {
        yyjson_doc *doc = yyjson_read(row.p, row.n, YYJSON_READ_BIGNUM_AS_RAW);
        yyjson_val *root = yyjson_doc_get_root(doc), *reply = yyjson_obj_get(root, "reply"), *error = yyjson_obj_get(root, "error");
        struct resident *r = resident_by_id(l, buf_view(&full));
        bool running = r && r->a->turn && str_eq(json_str(yyjson_doc_get_root(r->a->turn->started), "messageId"), id);
        buf_json(&body, "{\"messageId\":%q,\"status\":%q", id, running ? STR("running") : json_str(root, "status"));
        if (reply || error) {
            buf_json(&body, ",\"%s\":", reply ? "reply" : "error");
            json_write(reply ? reply : error, &body);
        }
        buf_char(&body, '}');
        reply_send(l, req, 200, buf_view(&body), id);
        yyjson_doc_free(doc);
    }
    buf_free(&full);
    buf_free(&row);
    buf_free(&body);
}

struct reading {
    struct buf out;
    int64_t from, limit, count, next;
    bool plain; /* entries as they are, without their numbers */
};

static bool read_entries(void *ctx, struct str key, struct str value) {
    struct reading *s = ctx;
    int64_t number = (int64_t)journal_key_number(key);
    yyjson_doc *doc = yyjson_read(value.p, value.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *entry;
    size_t i, n;
    yyjson_arr_foreach(yyjson_obj_get(yyjson_doc_get_root(doc), "entries"), i, n, entry) {
        if (number++ < s->from)
            continue;
        if (s->count == s->limit) {
            s->next = number - 1;
            break;
        }
        if (s->count++ > 0)
            buf_char(&s->out, ',');
        size_t start = s->out.n;
        if (!s->plain)
            buf_json(&s->out, "{\"cursor\":%d,", number - 1);
        struct buf text = {0};
        json_write(entry, &text);
        buf_add(&s->out, text.p + (s->plain ? 0 : 1), text.n - (s->plain ? 0 : 1));
        buf_free(&text);
        (void)start;
    }
    yyjson_doc_free(doc);
    return s->next == 0;
}

/* Entries from a number on. The row that holds `from` may begin up to one batch earlier. */
static int read_journal(struct loom *l, struct resident *r, struct reading *s, struct error *err) {
    struct buf from = {0}, to = {0};
    resident_flush(l, r);
    journal_key(r->a->full, 0, &from);
    journal_key(r->a->full, UINT64_MAX, &to);
    int rc = rows_scan(l, ROW_JOURNAL, buf_view(&from), buf_view(&to), read_entries, s, err);
    buf_free(&from);
    buf_free(&to);
    return rc;
}

static void do_get(struct loom *l, const struct loom_request *req) {
    struct resident *r = target(l, req);
    struct error err;
    if (!r)
        return;
    struct buf state = {0}, out = {0};
    struct reading s = {.limit = 1000, .plain = true};
    uint64_t first = r->a->turn ? r->a->turn->first : r->a->last_turn;
    s.from = (int64_t)(r->a->cursor >= first + 1000 ? r->a->cursor - 999 : first);
    buf_char(&s.out, '[');
    if (read_journal(l, r, &s, &err) < 0) {
        reply_error(l, req, &err);
    } else {
        buf_char(&s.out, ']');
        state_text(r->a, &state);
        actor_document(r->a, buf_view(&s.out), buf_view(&state), &out);
        reply_send(l, req, 200, buf_view(&out), STR_NONE);
    }
    buf_free(&s.out);
    buf_free(&state);
    buf_free(&out);
}

struct patches {
    yyjson_doc **docs;
    size_t count;
    uint64_t after;
};

static bool collect_patches(void *ctx, struct str key, struct str value) {
    struct patches *p = ctx;
    uint64_t number = journal_key_number(key);
    yyjson_doc *doc = yyjson_read(value.p, value.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *entry;
    size_t i, n;
    yyjson_arr_foreach(yyjson_obj_get(yyjson_doc_get_root(doc), "entries"), i, n, entry) {
        yyjson_val *inverse = yyjson_obj_get(entry, "inversePatches");
        if (number++ <= p->after || !inverse)
            continue;
        struct buf text = {0};
        json_write(inverse, &text);
        p->docs = mem_grow(p->docs, (p->count + 1) * sizeof *p->docs);
        p->docs[p->count++] = yyjson_read(text.p, text.n, YYJSON_READ_BIGNUM_AS_RAW);
        buf_free(&text);
    }
    yyjson_doc_free(doc);
    return true;
}

/* The state as it was after an entry: from now backwards by the inverse patches. */
int state_at(struct loom *l, struct resident *r, int64_t at, struct buf *out, struct error *err) {
    struct patches p = {.after = (uint64_t)at};
    struct buf from = {0}, to = {0}, now = {0};
    resident_flush(l, r);
    journal_key(r->a->full, 0, &from);
    journal_key(r->a->full, UINT64_MAX, &to);
    int rc = rows_scan(l, ROW_JOURNAL, buf_view(&from), buf_view(&to), collect_patches, &p, err);
    state_text(r->a, &now);
    yyjson_doc *doc = yyjson_read(now.p, now.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_mut_doc *state = yyjson_doc_mut_copy(doc, NULL);
    while (p.count > 0) {
        yyjson_doc *inverse = p.docs[--p.count];
        patch_apply(state, yyjson_doc_get_root(inverse), NULL, NULL);
        yyjson_doc_free(inverse);
    }
    json_write_mut(yyjson_mut_doc_get_root(state), out);
    yyjson_mut_doc_free(state);
    yyjson_doc_free(doc);
    free(p.docs);
    buf_free(&from);
    buf_free(&to);
    buf_free(&now);
    return rc;
}

static void do_state(struct loom *l, const struct loom_request *req) {
    struct resident *r = target(l, req);
    struct error err;
    struct buf out = {0};
    int rc = 0;
    if (!r)
        return;
    if (req->at < 0)
        state_text(r->a, &out);
    else if ((uint64_t)req->at > r->a->cursor)
        rc = error_set(&err, LOOM_E_INVALID_ARGUMENT, "at=%" PRId64 " is beyond the journal of %s, which ends at %" PRIu64, req->at, r->a->id, r->a->cursor);
    else
        rc = state_at(l, r, req->at, &out, &err);
    if (rc < 0)
        reply_error(l, req, &err);
    else
        reply_send(l, req, 200, buf_view(&out), STR_NONE);
    buf_free(&out);
}

static void do_journal(struct loom *l, const struct loom_request *req) {
    struct resident *r = target(l, req);
    struct error err;
    if (!r)
        return;
    struct reading s = {.from = req->from, .limit = req->limit > 0 && req->limit <= 10000 ? req->limit : 1000};
    buf_str(&s.out, STR("{\"entries\":["));
    if (read_journal(l, r, &s, &err) < 0) {
        reply_error(l, req, &err);
    } else {
        if (s.next)
            buf_json(&s.out, "],\"next\":%d}", s.next);
        else
            buf_str(&s.out, STR("],\"next\":null}"));
        reply_send(l, req, 200, buf_view(&s.out), STR_NONE);
    }
    buf_free(&s.out);
}

struct query {
    struct buf out;
    struct str type, status, last;
    struct buf last_key;
    int64_t limit, count;
    bool more;
};

static bool read_actor(void *ctx, struct str key, struct str value) {
    struct query *q = ctx;
    if (memchr(key.p, '\0', key.n))
        return true; /* a large state's row */
    yyjson_doc *doc = yyjson_read(value.p, value.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *root = yyjson_doc_get_root(doc);
    bool wanted = (!q->type.p || str_eq(q->type, json_str(root, "actorType"))) && (!q->status.p || str_eq(q->status, json_str(root, "status")));
    if (wanted && q->count == q->limit) {
        q->more = true;
    } else if (wanted) {
        buf_json(&q->out, "%s{\"id\":%q,\"actorType\":%q,\"status\":%q,\"suspendReason\":%Q,\"cursor\":%d,\"metadata\":", q->count++ ? "," : "", json_str(root, "id"),
                 json_str(root, "actorType"), json_str(root, "status"), json_str(root, "suspendReason"), json_int(yyjson_obj_get(root, "journal"), "cursor", 0));
        json_write(yyjson_obj_get(root, "metadata"), &q->out);
        buf_char(&q->out, '}');
        buf_clear(&q->last_key);
        buf_str(&q->last_key, json_str(root, "id"));
    }
    yyjson_doc_free(doc);
    return !q->more;
}

static void do_actors(struct loom *l, const struct loom_request *req) {
    struct query q = {.type = own(req->type), .status = own(req->status), .limit = req->limit > 0 && req->limit <= 1000 ? req->limit : 100};
    struct error err;
    struct buf prefix = {0}, from = {0}, to = {0};
    buf_json(&prefix, q.type.p ? "%j/%j/" : "%j/", ns_of(req), q.type);
    rows_prefix_end(buf_view(&prefix), &to);
    buf_str(&from, buf_view(&prefix));
    if (req->after.p) {
        buf_clear(&from);
        buf_json(&from, "%j/%j", ns_of(req), own(req->after));
        buf_char(&from, '\1'); /* behind the key itself and its state row */
    }
    residents_flush(l, false);
    buf_str(&q.out, STR("{\"actors\":["));
    if (rows_scan(l, ROW_ACTOR, buf_view(&from), buf_view(&to), read_actor, &q, &err) < 0) {
        reply_error(l, req, &err);
    } else {
        buf_json(&q.out, "],\"next\":%Q}", q.more ? buf_view(&q.last_key) : STR_NONE);
        reply_send(l, req, 200, buf_view(&q.out), STR_NONE);
    }
    buf_free(&q.out);
    buf_free(&q.last_key);
    buf_free(&prefix);
    buf_free(&from);
    buf_free(&to);
}

/* ---- operating ---- */

static void done(struct loom *l, const struct loom_request *req, struct resident *r) {
    struct buf body = {0};
    buf_json(&body, "{\"actorId\":%q,\"status\":%z}", r->a->name, actor_status_name(r->a->status));
    reply_send(l, req, 202, buf_view(&body), STR_NONE);
    buf_free(&body);
}

static yyjson_doc *body_of(struct loom *l, const struct loom_request *req, struct error *err) {
    yyjson_doc *doc = json_parse(req->body.p ? own(req->body) : STR("null"), err);
    if (!doc)
        reply_error(l, req, err);
    return doc;
}

static void do_cancel(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct resident *r = target(l, req);
    yyjson_doc *doc = r ? body_of(l, req, &err) : NULL;
    if (!doc)
        return;
    struct str reason = json_str(yyjson_doc_get_root(doc), "reason");
    if (r->a->status >= ACTOR_COMPLETED || (!r->a->turn && !r->a->run)) {
        error_set(&err, LOOM_E_CONFLICT, "actor %s is %s: there is nothing to cancel", r->a->id, actor_status_name(r->a->status));
        reply_error(l, req, &err);
    } else {
        turn_cancel(l, r, reason.p ? reason : STR("cancelled by an operator"));
        done(l, req, r);
    }
    yyjson_doc_free(doc);
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

static void do_resume(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct resident *r = target(l, req);
    struct turn *t = r ? r->a->turn : NULL;
    struct buf data = {0};
    if (!r)
        return;
    if (req->body.p && json_normalize(own(req->body), &data, &err) < 0) {
        reply_error(l, req, &err);
        return;
    }
    if (r->a->status == ACTOR_PAUSED) {
        unpause(l, r);
        done(l, req, r);
        buf_free(&data);
        return;
    }
    for (uint64_t i = 1; t && i <= t->promise_count; i++) {
        struct promise *p = turn_promise(t, i);
        if (p->kind != PROMISE_SUSPEND || p->done_at != ENTRY_NEVER)
            continue;
        promise_done(l, r, i, "resumed", true, data.n ? buf_view(&data) : STR("null"));
        done(l, req, r);
        buf_free(&data);
        return;
    }
    error_set(&err, LOOM_E_CONFLICT, "actor %s is %s and waits for nobody: only a paused actor or one that called suspend is resumed", r->a->id, actor_status_name(r->a->status));
    reply_error(l, req, &err);
    buf_free(&data);
}

/* A new actor with the open or last turn's entries up to `from`; it goes on from there, live. */
static void do_fork(struct loom *l, const struct loom_request *req) {
    struct error err;
    struct resident *r = target(l, req);
    yyjson_doc *doc = r ? body_of(l, req, &err) : NULL;
    if (!doc)
        return;
    yyjson_val *body = yyjson_doc_get_root(doc);
    struct str key = json_str(body, "key");
    int64_t from = json_int(body, "from", (int64_t)r->a->cursor);
    struct resident *made = NULL;
    int rc = key.p ? actor_check_key(key, &err) : error_set(&err, LOOM_E_INVALID_ARGUMENT, "field key is missing: the new actor's key");
    if (rc == 0)
        rc = resident_fork(l, r, key, from, &made, &err);
    if (rc < 0)
        reply_error(l, req, &err);
    else
        done(l, req, made);
    yyjson_doc_free(doc);
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
    {"call", do_call, false, "type, key, body; id, timeout_ms, priority, ttl_ms, version", "Delivers a message and answers with its reply, or 202 when that takes longer."},
    {"send", do_send, false, "type, key, body; id, delay_ms, priority, ttl_ms, version", "Delivers a message; answers once it is durable."},
    {"event", do_event, false, "type, key, id = event type, body; event_id, ttl_ms", "Delivers an event to a wait of its type."},
    {"message", do_message, true, "type, key, id", "What became of a message: status and reply or error."},
    {"get", do_get, true, "type, key", "The actor document with the entries of its current turn."},
    {"state", do_state, true, "type, key; at", "The state, now or after a past entry."},
    {"journal", do_journal, true, "type, key; from, limit", "Journal entries by number."},
    {"actors", do_actors, true, "type, status, limit, after", "Actors of a namespace."},
    {"cancel", do_cancel, false, "type, key; body {reason}", "Cancels the open turn, so that the guest cleans up and ends."},
    {"resume", do_resume, false, "type, key; body", "Lets a paused or suspended actor go on; the body is what suspend returns."},
    {"fork", do_fork, false, "type, key, body {key, from}", "Makes a new actor from the journal up to an entry."},
    {"run", do_run, false, "type = workflow; key, version, body", "Starts a workflow run."},
    {"module.put", registry_op_module_put, false, "type = name, key = version, body = bytes; replace", "Uploads and compiles a WASM module."},
    {"module.list", registry_op_modules, true, "", "The modules of a namespace."},
    {"activity.put", do_put_activity, false, "type = name, key = version, body; replace", "Deploys an activity's definition."},
    {"actor-type.put", do_put_actor_type, false, "type = name, key = version, body; replace", "Deploys an actor type's definition."},
    {"workflow.put", do_put_workflow, false, "type = name, key = version, body; replace", "Checks and deploys a workflow document."},
    {"definitions", registry_op_list, true, "type = activity | actor-type | workflow", "What is deployed."},
    {"definition", registry_op_get, true, "type = kind, key = name; version", "A definition's document."},
    {"ready", do_ready, false, "", "Answers when Loom takes work."},
};

void operate(struct loom *l, const struct loom_request *req) {
    struct error err;
    for (size_t i = 0; i < sizeof operator_ops / sizeof *operator_ops; i++) {
        const struct operator_row *row = &operator_ops[i];
        if (strcmp(row->name, req->op) != 0)
            continue;
        if (l->failed && !row->reads)
            error_set(&err, l->failed_code, "the store takes no batch at the moment; repeat the request with the same message id");
        else if (!row->reads && l->flight && batch_full(l))
            error_set(&err, LOOM_E_BUSY, "the disk is behind; try again");
        else {
            row->fn(l, req);
            return;
        }
        reply_error(l, req, &err);
        return;
    }
    error_set(&err, LOOM_E_NOT_FOUND, "there is no operator op \"%s\"", req->op);
    reply_error(l, req, &err);
}

static struct loom_op_doc docs[sizeof operator_ops / sizeof *operator_ops + 1];

const struct loom_op_doc *operator_op_docs(void) {
    for (size_t i = 0; i < sizeof operator_ops / sizeof *operator_ops; i++)
        docs[i] = (struct loom_op_doc){operator_ops[i].name, operator_ops[i].argument, operator_ops[i].doc};
    return docs;
}
