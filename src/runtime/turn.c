/* turn.c: a turn from its message to its end.
 *
 * A guest runs in slices on the loop. It leaves a slice by an op that waits, by using up its time, by ending or by a
 * trap. Whether it is live or replaying is the journal's business: ops.c asks journal_repeat before anything else.
 * A trap in a live turn fails the turn; a trap while replaying, a program that no longer fits its journal, or a turn
 * beyond its limits pauses the actor: the journal is kept for an operator.
 */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPS_PER_SLICE = 256 };

/* ---- start ---- */

static void seed_hex(struct loom *l, char out[33]) {
    uint8_t seed[16];
    l->env->random(l->env, seed, sizeof seed);
    hex_encode(seed, sizeof seed, out);
}

static void write_started(struct loom *l, struct resident *r, const struct definition *d, const char *module, yyjson_val *mail, struct buf *out) {
    char seed[33];
    struct buf data = {0};
    yyjson_val *meta = yyjson_obj_get(mail, "metadata");
    seed_hex(l, seed);
    json_write(yyjson_obj_get(yyjson_obj_get(mail, "payload"), "data"), &data);
    buf_json(out, "{\"type\":\"turn_started\",\"turn\":%u,\"attempt\":%d,\"messageId\":%q,\"input\":%j,\"moduleHash\":%z,\"definition\":%z,", r->a->turns + 1,
             json_int(mail, "attempt", 1), json_str(mail, "messageId"), buf_view(&data), module, d->hash);
    buf_json(out, "\"limits\":{\"maxMemoryMB\":%u,\"maxExecutionMs\":%u},\"seed\":%z,", (uint64_t)d->limits.memory_mb, (uint64_t)d->limits.cpu_ms, seed);
    buf_json(out, "\"message\":{\"correlationId\":%q,\"sender\":%Q,\"outside\":%b,\"priority\":%d", json_str(mail, "correlationId"), json_str(meta, "sender"),
             json_bool(mail, "outside", false), json_int(meta, "priority", 0));
    static const char *const carried[] = {"replyTo", "chain", "traceparent", "version"};
    for (size_t i = 0; i < sizeof carried / sizeof *carried; i++) {
        yyjson_val *v = yyjson_obj_get(mail, carried[i]);
        if (!v)
            continue;
        buf_json(out, ",\"%s\":", carried[i]);
        json_write(v, out);
    }
    buf_char(out, '}');
    buf_free(&data);
}

static bool turn_start(struct loom *l, struct resident *r, struct mail *m) {
    struct error err;
    char module[65] = "";
    yyjson_doc *doc = yyjson_read(m->text, m->text_n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *mail = yyjson_doc_get_root(doc);
    struct definition *d = registry_find(l, "actor-type", r->a->ns, r->a->type, json_str(mail, "version"));
    struct exec_module *code = d ? definition_module(l, d, STR_NONE, module, &err) : NULL;
    if (!code) {
        yyjson_doc_free(doc);
        mail_dead_letter(l, r, m, d ? str_of(err.code) : STR("not_found"));
        return false;
    }
    exec_module_unref(code);
    struct buf body = {0};
    write_started(l, r, d, module, mail, &body);
    if (r->a->turns == 0 && yyjson_obj_get(yyjson_doc_get_root(d->doc), "defaultState")) {
        struct buf state = {0};
        json_write(yyjson_obj_get(yyjson_doc_get_root(d->doc), "defaultState"), &state);
        state_set(r->a, buf_view(&state));
        buf_free(&state);
    }
    mail_remove(l, r, m);
    yyjson_doc_free(doc);
    r->definition = d;
    r->a->activations++;
    r->a->activated_at = loom_now(l);
    journal_append(r->a, loom_now(l), buf_view(&body));
    resident_status(l, r, ACTOR_RUNNING, STR_NONE);
    metric_add(METRIC_TURNS_STARTED, 1);
    buf_free(&body);
    return true;
}

/* ---- activation ---- */

static bool activate(struct loom *l, struct resident *r) {
    struct error err;
    if (r->rewind && resident_rewind(l, r, &err) < 0) {
        turn_pause(l, r, &err);
        return false;
    }
    struct turn *t = r->a->turn;
    yyjson_val *started = yyjson_doc_get_root(t->started), *limits = yyjson_obj_get(started, "limits");
    struct exec_limits lim = {(uint32_t)json_int(limits, "maxMemoryMB", 64), (uint32_t)json_int(limits, "maxExecutionMs", 10000)};
    if (t->op_count > 0) {
        lim.cpu_ms *= 10;
        metric_add(METRIC_REPLAYS, 1);
    }
    if (!r->definition)
        r->definition = registry_by_hash(l, json_str(started, "definition"), r->a->type);
    if (!r->definition) {
        error_set(&err, LOOM_E_NOT_FOUND, "the definition that %s runs is gone; deploy it again and resume", r->a->id);
        turn_pause(l, r, &err);
        return false;
    }
    struct exec_module *code = definition_module(l, r->definition, json_str(started, "moduleHash"), NULL, &err);
    if (!code) {
        turn_pause(l, r, &err);
        return false;
    }
    r->exec = exec_new(code, lim, &err);
    if (!r->exec && str_eq(str_of(err.code), STR("busy"))) {
        residents_evict(l, 16);
        r->exec = exec_new(code, lim, &err);
    }
    exec_module_unref(code);
    if (!r->exec) {
        if (str_eq(str_of(err.code), STR("busy")))
            resident_queue(l, r);
        else
            turn_pause(l, r, &err);
        return false;
    }
    t->await_count = 0;
    t->ops_asked = t->promises_given = 0;
    t->now = json_int(started, "at", 0);
    memcpy(t->random, t->seed, sizeof t->random);
    r->cpu_us = 0;
    r->fresh = true;
    l->guests++;
    return true;
}

/* ---- slices ---- */

static void trapped(struct loom *l, struct resident *r, struct error *err) {
    if (journal_replaying(r->a)) {
        turn_pause(l, r, err);
        return;
    }
    struct buf json = {0};
    error_json(err, &json);
    turn_end(l, r, END_FAIL, buf_view(&json));
    buf_free(&json);
}

/* What a waiting guest gets once its await is settled. */
static bool answer_await(struct loom *l, struct resident *r) {
    uint64_t entry;
    bool cancel;
    if (!turn_settled(r->a->turn, &entry, &cancel))
        return false;
    struct op_call c = {.l = l, .r = r};
    enum op_outcome o = op_await_result(&c);
    exec_answer(r->exec, o == OP_OK, buf_view(&c.out));
    buf_free(&c.out);
    r->a->turn->await_count = 0;
    r->a->turn->suspend_written = false;
    if (r->a->status == ACTOR_SUSPENDED)
        resident_status(l, r, ACTOR_RUNNING, STR_NONE);
    return true;
}

bool turn_resumable(struct resident *r) {
    uint64_t entry;
    bool cancel;
    return r->a->turn && (r->a->turn->await_count == 0 || turn_settled(r->a->turn, &entry, &cancel));
}

/* The guest waits: name the reason, account for its memory. */
static void suspend(struct loom *l, struct resident *r) {
    struct turn *t = r->a->turn;
    static const char *const waits[] = {[PROMISE_EVENT] = "event", [PROMISE_TIMER] = "timer", [PROMISE_CHILD] = "child", [PROMISE_SUSPEND] = ""};
    exec_suspended(r->exec);
    r->cpu_us = 0;
    l->guest_bytes -= r->bytes;
    r->bytes = exec_bytes(r->exec);
    l->guest_bytes += r->bytes;
    for (size_t i = 0; i < t->await_count && !t->suspend_written; i++) {
        struct promise *p = turn_promise(t, t->await[i]);
        if (p->done_at != ENTRY_NEVER || p->kind < PROMISE_CHILD)
            continue;
        yyjson_doc *doc = yyjson_read(p->entry, p->entry_n, 0);
        yyjson_val *e = yyjson_doc_get_root(doc);
        struct str what = json_str(e, p->kind == PROMISE_EVENT ? "event" : p->kind == PROMISE_CHILD ? "childId" : "reason");
        struct buf reason = {0};
        buf_json(&reason, "%s%s%j", waits[p->kind], what.p && waits[p->kind][0] ? " " : "", what.p ? what : STR(""));
        journal_appendf(r->a, loom_now(l), "{\"type\":\"suspended\",\"reason\":%q", buf_view(&reason));
        resident_status(l, r, ACTOR_SUSPENDED, buf_view(&reason));
        buf_free(&reason);
        yyjson_doc_free(doc);
    }
}

/* One op; true: the slice goes on. */
static bool serve_op(struct loom *l, struct resident *r) {
    struct op_call c = {.l = l, .r = r};
    exec_op(r->exec, &c.name, &c.arg);
    enum op_outcome o = op_run(&c);
    bool goes_on = o == OP_OK || o == OP_ERROR;
    if (goes_on)
        exec_answer(r->exec, o == OP_OK, buf_view(&c.out));
    else if (o == OP_WAIT && !(goes_on = answer_await(l, r)))
        suspend(l, r);
    buf_free(&c.out);
    if (o == OP_WAIT && l->config.evict_always && !journal_replaying(r->a) && !(goes_on && r->fresh)) {
        resident_drop_guest(l, r);
        if (goes_on)
            resident_queue(l, r);
        return false;
    }
    r->fresh &= o != OP_WAIT;
    return goes_on;
}

static void run_slice(struct loom *l, struct resident *r) {
    struct error err;
    int64_t from = l->env->mono_us(l->env);
    for (int i = 0; i < OPS_PER_SLICE; i++) {
        switch (exec_run(r->exec)) {
        case EXEC_OP:
            if (!serve_op(l, r))
                return;
            break;
        case EXEC_SLICE:
            resident_queue(l, r);
            return;
        case EXEC_END:
            turn_end(l, r, END_RETURN, STR("null"));
            return;
        case EXEC_TRAP:
            exec_trap(r->exec, &err);
            trapped(l, r, &err);
            return;
        }
    }
    r->cpu_us += l->env->mono_us(l->env) - from;
    if (r->cpu_us / 1000 > (journal_replaying(r->a) ? 10 : 1) * (int64_t)r->definition->limits.cpu_ms) {
        error_set(&err, LOOM_E_LIMIT_TIME, "the guest ran %" PRId64 " ms without waiting; its limit is %u ms", r->cpu_us / 1000, r->definition->limits.cpu_ms);
        trapped(l, r, &err);
        return;
    }
    resident_queue(l, r);
}

void turn_step(struct loom *l, struct resident *r) {
    struct actor *a = r->a;
    if (a->status >= ACTOR_PAUSED || (a->turn && !turn_resumable(r)))
        return;
    if (!a->turn) {
        struct mail *m = mail_next(l, r);
        if (!m || !turn_start(l, r, m)) {
            if (m && r->mail_count > 0)
                resident_queue(l, r);
            return;
        }
    }
    resident_touch(l, r, false);
    if (!r->exec && !activate(l, r))
        return;
    if (a->turn->await_count > 0 && !answer_await(l, r))
        return;
    run_slice(l, r);
}

/* ---- promises ---- */

static void wake(struct loom *l, struct resident *r) {
    resident_touch(l, r, false);
    if (turn_resumable(r) && r->a->status != ACTOR_PAUSED)
        resident_queue(l, r);
}

void promise_done(struct loom *l, struct resident *r, uint64_t id, const char *type, bool ok, struct str json) {
    struct promise *p = r->a->turn ? turn_promise(r->a->turn, id) : NULL;
    if (!p || p->done_at != ENTRY_NEVER)
        return;
    journal_appendf(r->a, loom_now(l), "{\"type\":%z,\"%s\":%u,\"%s\":%j", type, p->kind == PROMISE_ACTIVITY ? "activityId" : "promise", id, ok ? "result" : "error", json);
    wake(l, r);
}

void promise_event(struct loom *l, struct resident *r, uint64_t id, struct str message_id, struct str data) {
    journal_appendf(r->a, loom_now(l), "{\"type\":\"event_received\",\"promise\":%u,\"messageId\":%q,\"result\":%j", id, message_id, data);
    wake(l, r);
}

static void cancel_child(struct loom *l, struct resident *r, yyjson_val *entry) {
    struct buf id = {0};
    buf_json(&id, "%j/%j", r->a->ns, json_str(entry, "childId"));
    struct resident *child = resident_by_id(l, buf_view(&id));
    if (child)
        turn_cancel(l, child, STR("the parent was cancelled"));
    buf_free(&id);
}

static void withdraw_call(struct loom *l, struct resident *r, yyjson_val *entry) {
    struct buf id = {0};
    buf_json(&id, "%j/%j", r->a->ns, json_str(entry, "to"));
    struct resident *target = resident_by_id(l, buf_view(&id));
    struct str message = json_str(entry, "messageId");
    for (size_t i = 0; target && i < target->mail_count; i++)
        if (str_eq(str_of(target->mail[i].id), message)) {
            resident_touch(l, target, false);
            mail_remove(l, target, &target->mail[i]);
            break;
        }
    buf_free(&id);
}

void promise_abandon(struct loom *l, struct resident *r, uint64_t id) {
    struct turn *t = r->a->turn;
    struct promise *p = turn_promise(t, id);
    if (!p || p->done_at != ENTRY_NEVER)
        return;
    yyjson_doc *doc = yyjson_read(p->entry, p->entry_n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *entry = yyjson_doc_get_root(doc);
    switch (p->kind) {
    case PROMISE_ACTIVITY:
        attempt_cancel(l, r, id);
        break;
    case PROMISE_EVENT:
    case PROMISE_TIMER:
        if (p->deadline)
            alarm_clear(l, p->deadline, ALARM_PROMISE, r->a->full, t->number, id);
        break;
    case PROMISE_CHILD:
        cancel_child(l, r, entry);
        break;
    case PROMISE_CALL:
        withdraw_call(l, r, entry);
        break;
    case PROMISE_SUSPEND:
        break;
    }
    yyjson_doc_free(doc);
}

static void abandon_all(struct loom *l, struct resident *r) {
    for (uint64_t i = 1; i <= r->a->turn->promise_count; i++)
        promise_abandon(l, r, i);
}

void turn_cancel(struct loom *l, struct resident *r, struct str reason) {
    if (r->a->status >= ACTOR_COMPLETED)
        return;
    resident_touch(l, r, true);
    if (!r->a->turn) {
        while (r->a->run && r->mail_count > 0)
            mail_dead_letter(l, r, &r->mail[0], STR("cancelled"));
        if (r->a->run)
            resident_status(l, r, ACTOR_CANCELLED, reason);
        return;
    }
    if (r->a->turn->cancelled && r->a->status != ACTOR_PAUSED)
        return;
    abandon_all(l, r);
    journal_appendf(r->a, loom_now(l), "{\"type\":\"cancel_requested\",\"reason\":%Q", reason);
    if (r->a->status == ACTOR_PAUSED) {
        struct buf why = {0};
        buf_json(&why, "{\"code\":\"cancelled\",\"message\":\"an operator cancelled the paused actor\",\"retryable\":false}");
        r->a->turn->op_count = r->a->turn->op_next = 0;
        turn_end(l, r, END_FAIL, buf_view(&why));
        buf_free(&why);
        return;
    }
    wake(l, r);
}

void turn_pause(struct loom *l, struct resident *r, const struct error *why) {
    struct buf reason = {0};
    buf_json(&reason, "%s: %s", why->code, why->message);
    log_event(LOG_ERROR, "actor paused", "\"actor\":%q,\"reason\":%q", r->a->full, buf_view(&reason));
    resident_drop_guest(l, r);
    r->definition = NULL;
    resident_status(l, r, ACTOR_PAUSED, buf_view(&reason));
    buf_free(&reason);
}

/* ---- end ---- */

/* What the end of a turn still needs of its message after the fold has closed the turn. */
struct origin {
    yyjson_doc *started;
    uint64_t turn;
    bool cancelled;
};

static void reply_to_actor(struct loom *l, struct resident *r, yyjson_val *to, bool ok, struct str json) {
    struct resident *caller = resident_by_id(l, json_str(to, "actor"));
    struct turn *t = caller ? caller->a->turn : NULL;
    (void)r;
    if (!t || t->number != (uint64_t)json_int(to, "turn", 0))
        return;
    struct promise *p = turn_promise(t, (uint64_t)json_int(to, "promise", 0));
    if (!p)
        return;
    bool child = p->kind == PROMISE_CHILD;
    promise_done(l, caller, (uint64_t)json_int(to, "promise", 0), ok ? (child ? "child_completed" : "call_completed") : (child ? "child_failed" : "call_failed"), ok, json);
}

static void reply(struct loom *l, struct resident *r, const struct origin *o, bool ok, struct str json) {
    yyjson_val *root = yyjson_doc_get_root(o->started), *message = yyjson_obj_get(root, "message"), *to = yyjson_obj_get(message, "replyTo");
    if (to)
        reply_to_actor(l, r, to, ok, json);
    if (json_bool(message, "outside", false))
        mail_replied(l, r->a, json_str(root, "messageId"), ok, json);
}

/* The same message again: after a failure with a retryPolicy, or with a new input after `continue`. */
static void again(struct loom *l, struct resident *r, const struct origin *o, struct str input, int64_t delay, int32_t attempt) {
    yyjson_val *root = yyjson_doc_get_root(o->started), *message = yyjson_obj_get(root, "message");
    struct buf to = {0}, chain = {0}, data = {0}, id = {0};
    if (yyjson_obj_get(message, "replyTo"))
        json_write(yyjson_obj_get(message, "replyTo"), &to);
    if (yyjson_obj_get(message, "chain"))
        json_write(yyjson_obj_get(message, "chain"), &chain);
    if (!input.p)
        json_write(yyjson_obj_get(root, "input"), &data);
    struct message m = {.ns = r->a->ns, .type = r->a->type, .key = r->a->key, .id = json_str(root, "messageId"), .data = input.p ? input : buf_view(&data),
                        .sender = json_str(message, "sender"), .correlation = json_str(message, "correlationId"), .traceparent = json_str(message, "traceparent"),
                        .reply_to = to.n ? buf_view(&to) : STR_NONE, .chain = chain.n ? buf_view(&chain) : STR_NONE, .version = json_str(message, "version"),
                        .delay_ms = delay, .priority = INT32_MIN, .attempt = attempt, .again = true, .replied_outside = json_bool(message, "outside", false)};
    struct error err;
    if (mail_deliver(l, &m, &id, &err) < 0) {
        struct buf json = {0};
        error_json(&err, &json);
        reply(l, r, o, false, buf_view(&json));
        buf_free(&json);
    }
    buf_free(&to);
    buf_free(&chain);
    buf_free(&data);
    buf_free(&id);
}

static void settle_status(struct loom *l, struct resident *r, enum turn_end how, bool cancelled, struct str json) {
    enum actor_status end = how == END_FAIL ? ACTOR_FAILED : ACTOR_COMPLETED;
    bool over = r->a->run || how == END_FINISH;
    struct str reason = STR_NONE;
    yyjson_doc *doc = how == END_FAIL ? yyjson_read(json.p, json.n, 0) : NULL;
    if (over && doc)
        reason = json_str(yyjson_doc_get_root(doc), "message");
    if (how == END_CONTINUE)
        over = false;
    resident_status(l, r, !over ? ACTOR_IDLE : cancelled ? ACTOR_CANCELLED : end, reason);
    yyjson_doc_free(doc);
}

/* Wait before the message is tried again, or −1. */
static int64_t retry_wait(struct loom *l, const struct resident *r, const struct origin *o, struct str json) {
    (void)l;
    if (o->cancelled || !r->definition || r->definition->retry.max_attempts <= 1)
        return -1;
    yyjson_doc *doc = yyjson_read(json.p, json.n, 0);
    bool retryable = json_bool(yyjson_doc_get_root(doc), "retryable", false);
    yyjson_doc_free(doc);
    return retry_next(&r->definition->retry, (int32_t)json_int(yyjson_doc_get_root(o->started), "attempt", 1), retryable, 1.0);
}

static void append_end(struct loom *l, struct resident *r, enum turn_end how, bool cancelled, int64_t wait, struct str value) {
    static const char *const types[] = {"turn_completed", "turn_finished", "turn_continued", "turn_failed"};
    static const char *const fields[] = {"result", "result", "input", "error"};
    struct buf body = {0};
    buf_json(&body, "{\"type\":%z,\"%s\":%j", cancelled && how != END_CONTINUE ? "turn_cancelled" : types[how], fields[how], value);
    if (wait >= 0)
        buf_json(&body, ",\"retryInMs\":%d", wait);
    journal_append(r->a, loom_now(l), buf_view(&body));
    buf_free(&body);
}

void turn_end(struct loom *l, struct resident *r, enum turn_end how, struct str value) {
    struct turn *t = r->a->turn;
    struct error err;
    if (journal_replaying(r->a)) {
        error_set(&err, LOOM_E_MISMATCH, "the program of %s ended although its journal holds %zu more ops, the next one %.*s}; deploy the version that wrote it, then resume, or cancel",
                  r->a->id, t->op_count - t->op_next, (int)(t->ops[t->op_next].text.n < 350 ? t->ops[t->op_next].text.n : 350), t->ops[t->op_next].text.p);
        turn_pause(l, r, &err);
        return;
    }
    struct origin o = {t->started, t->number, t->cancelled};
    resident_touch(l, r, true);
    abandon_all(l, r);
    if (how == END_FAIL) {
        struct buf entry = {0};
        state_rollback(r->a, &entry);
        if (entry.n)
            journal_append(r->a, loom_now(l), buf_view(&entry));
        buf_free(&entry);
    }
    int64_t wait = how == END_FAIL ? retry_wait(l, r, &o, value) : -1;
    t->started = NULL; /* the origin owns it now */
    append_end(l, r, how, o.cancelled, wait, value);
    metric_add(how == END_FAIL || o.cancelled ? METRIC_TURNS_FAILED : METRIC_TURNS_COMPLETED, 1);
    resident_drop_guest(l, r);
    if (wait >= 0 || how == END_CONTINUE) {
        resident_status(l, r, ACTOR_IDLE, STR_NONE);
        again(l, r, &o, how == END_CONTINUE ? value : STR_NONE, wait > 0 ? wait : 0, how == END_CONTINUE ? 1 : (int32_t)json_int(yyjson_doc_get_root(o.started), "attempt", 1) + 1);
    } else {
        settle_status(l, r, how, o.cancelled, value);
        struct str cancelled = STR("{\"code\":\"cancelled\",\"message\":\"it was cancelled\",\"retryable\":false}");
        bool ok = how != END_FAIL && !o.cancelled;
        reply(l, r, &o, ok, ok || how == END_FAIL ? value : cancelled);
    }
    r->definition = NULL;
    yyjson_doc_free(o.started);
    if (r->mail_count > 0)
        resident_queue(l, r);
}
