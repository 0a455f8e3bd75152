/* turn.c: a turn from its message to its end.
 *
 * A guest runs in slices on the loop. It leaves a slice by an op that waits, by using up its time, by ending or by a trap.
 * Whether it is live or replaying is the journal's business: ops.c asks journal_repeat before anything else. A trap in a
 * live turn fails the turn; a trap while replaying, a program that no longer fits its journal, or a turn beyond its limits
 * pauses the actor: the journal is kept for an operator.
 */
#include "runtime/runtime.h"

#include <assert.h>
#include <string.h>

enum {
    OPS_PER_SLICE = 256,
    SLICE_US = 2000,
    /* A row of the journal that has reached so much ends before the next slice, or before the next turn: a load begins with
     * the row in which the open turn does, whatever else is in it. */
    ROW_BYTES = 64 << 10,
    ROW_BYTES_BEFORE = 4 << 10,
    EVICTED_OPS = 200, /* each replay is longer than the last */
    PIN_DIGITS = 16    /* of a definition's hash, to tell it from others of its name */
};

/* ---- start ---- */

static struct str started_entry(struct loom *l, struct resident *r, const struct definition *d, yyjson_val *mail) {
    static const char *const carried[] = {"correlationId", "outside", "replyTo", "chain", "traceparent", "version"};
    struct str sender = json_str(yyjson_obj_get(mail, "metadata"), "sender");
    int64_t attempt = json_int(mail, "attempt", 1);
    struct str message = sender.p ? say(l, ",\"sender\":%q", sender) : STR("");
    for (size_t i = 0; i < sizeof carried / sizeof *carried; i++)
        if (yyjson_obj_get(mail, carried[i]))
            message = say(l, "%j,\"%s\":%v", message, carried[i], yyjson_obj_get(mail, carried[i]));
    return say(l,
               "{\"type\":\"turn_started\",\"turn\":%u%j,\"messageId\":%q,\"moduleHash\":%z,\"definition\":%q,"
               "\"seed\":%q,\"message\":{%j},\"input\":%v",
               r->a->turns + 1, attempt > 1 ? say(l, ",\"attempt\":%d", attempt) : STR(""), json_str(mail, "messageId"),
               d->resolved, (struct str){d->hash, PIN_DIGITS}, random_id(l), (struct str){message.p + 1, message.n - 1},
               yyjson_obj_get(yyjson_obj_get(mail, "payload"), "data"));
}

static bool turn_start(struct loom *l, struct resident *r, struct mail *m) {
    struct error err;
    struct definition *d = registry_find(l, "actor-type", r->a->ns, r->a->type, json_str(m->doc, "version"), STR(""));
    struct exec_module *code = d ? definition_module(l, d, STR_NONE, &err) : NULL;
    if (!d) error_set(&err, LOOM_E_NOT_FOUND, "the actor type is not deployed any more");
    if (!code) {
        mail_dead_letter(l, r, m, err.code, err.message);
        resident_queue(l, r);
        return false;
    }
    if (r->a->turns == 0) state_set(r->a, yyjson_obj_get(d->doc, "defaultState"));
    struct str entry = started_entry(l, r, d, m->doc);
    mail_remove(l, r, m);
    r->definition = d;
    r->ops = r->evicted_at = 0;
    r->a->activated_at = loom_now(l);
    journal_append(r->a, loom_now(l), entry);
    resident_status(l, r, ACTOR_RUNNING, STR_NONE);
    metric_add(METRIC_TURNS_STARTED, 1);
    return true;
}

/* ---- activation ---- */

/* An instance of the turn's program, with the limits of its definition; false: none is free, or the actor is paused. */
static bool activate(struct loom *l, struct resident *r) {
    struct turn *t = r->a->turn;
    struct definition *d = r->definition;
    struct error err;
    if (!d) d = registry_find(l, kind_actor, r->a->ns, r->a->type, STR_NONE, entry_word(t->started, "definition"));
    if (!d)
        error_set(&err, LOOM_E_NOT_FOUND, "the definition that %s runs is gone; deploy it again and resume", r->a->id);
    r->definition = d;
    struct exec_module *code = d ? definition_module(l, d, entry_word(t->started, "moduleHash"), &err) : NULL;
    struct exec_limits limits = d ? d->limits : (struct exec_limits){0};
    if (t->op_count > 0) limits.cpu_ms *= 10;
    r->exec = code ? exec_new(code, limits, t->random[0], &err) : NULL;
    if (r->exec) {
        metric_add(METRIC_REPLAYS, t->op_count > 0);
        l->guests++;
    } else if (strcmp(err.code, "busy") != 0) {
        turn_pause(l, r, &err);
    } else {
        l->guests_max = l->guests;
        resident_queue(l, r);
    }
    return r->exec;
}

/* ---- slices ---- */

void turn_trapped(struct loom *l, struct resident *r, const struct error *err) {
    if (journal_replaying(r->a))
        turn_pause(l, r, err);
    else
        turn_end(l, r, END_FAIL, error_text(l, err));
}

/* What a waiting guest gets once its await is settled. One that was settled before the turn's last suspension is replayed. */
static bool answer_await(struct loom *l, struct resident *r) {
    struct op_call c = {.l = l, .r = r};
    struct turn *t = r->a->turn;
    if (!turn_resumable(r)) return false;
    bool goes_on = turn_settled(t) > t->suspended;
    enum op_outcome o = op_await_result(&c);
    exec_answer(r->exec, o == OP_OK, c.out);
    t->await_count = 0;
    if (goes_on) t->suspended = 0;
    if (goes_on && r->a->status == ACTOR_SUSPENDED) resident_status(l, r, ACTOR_RUNNING, STR_NONE);
    return true;
}

bool turn_resumable(struct resident *r) {
    return r->a->turn && (r->a->turn->await_count == 0 || turn_settled(r->a->turn) != ENTRY_NEVER);
}

struct str promise_name(struct loom *l, const struct promise *p) {
    static const char *const kinds[] = {"", "activity ", "actor ", "child ", "event ", "timer", ""};
    static const char *const fields[] = {"", "name", "to", "childId", "event", "", "reason"};
    struct str what = json_str(look(l, p->entry), fields[p->kind]);
    return say(l, "%s%j", kinds[p->kind], what.p ? what : STR(""));
}

/* The guest waits: name the reason, account for its memory. */
static void suspend(struct loom *l, struct resident *r) {
    struct turn *t = r->a->turn;
    exec_suspended(r->exec);
    for (size_t i = 0; i < t->await_count && !t->suspended; i++) {
        struct promise *p = turn_promise(t, t->await[i]);
        if (p->done_at != ENTRY_NEVER || p->kind < PROMISE_CHILD) continue;
        struct str reason = promise_name(l, p);
        journal_append(r->a, loom_now(l), say(l, "{\"type\":\"suspended\",\"reason\":%q", reason));
        resident_status(l, r, ACTOR_SUSPENDED, reason);
    }
    if (r->bytes > 0 && r->a->status != ACTOR_SUSPENDED) return; /* asking the kernel costs more than a short wait */
    l->guest_bytes -= r->bytes;
    r->bytes = exec_bytes(r->exec);
    l->guest_bytes += r->bytes;
}

/* One op; true: the slice goes on. */
static bool serve_op(struct loom *l, struct resident *r) {
    struct op_call c = {.l = l, .r = r};
    exec_op(r->exec, &c.name, &c.arg);
    enum op_outcome o = op_run(&c);
    if (o == OP_ENDED) return false;
    bool goes_on = o != OP_WAIT;
    if (goes_on)
        exec_answer(r->exec, o == OP_OK, c.out);
    else if (!(goes_on = answer_await(l, r)))
        suspend(l, r);
    if (l->config.evict_always && r->starts < 2 && ++r->ops > r->evicted_at && (r->ops < EVICTED_OPS || o == OP_WAIT)) {
        r->evicted_at = r->ops; /* once at each op, or it would never get past it; not when it runs alone */
        resident_drop_guest(l, r);
        if (goes_on) resident_queue(l, r);
        return false;
    }
    return goes_on;
}

static void run_slice(struct loom *l, struct resident *r) {
    struct error err;
    int64_t from = l->env->mono_us(l->env);
    for (int i = 0; i < OPS_PER_SLICE; i++) {
        if (i % 16 == 15 && l->env->mono_us(l->env) - from > SLICE_US) break;
        switch (exec_run(r->exec, r->a->turn->now)) {
        case EXEC_OP:
            if (!serve_op(l, r)) return;
            break;
        case EXEC_SLICE: resident_queue(l, r); return;
        case EXEC_END: turn_end(l, r, END_RETURN, STR("null")); return;
        case EXEC_TRAP:
            err = *exec_trap(r->exec); /* the guest goes before it has been told */
            turn_trapped(l, r, &err);
            return;
        }
    }
    resident_queue(l, r);
}

void turn_step(struct loom *l, struct resident *r) {
    if (r->reload && (r = resident_again(l, r)) == NULL) return;
    struct actor *a = r->a;
    if (a->tail.n >= (a->turn ? ROW_BYTES : ROW_BYTES_BEFORE)) resident_flush_tail(l, r);
    if (r->in_outbox) resident_touch(l, r, false); /* with nothing to do it leaves the outbox */
    if (a->status >= ACTOR_PAUSED || (a->turn && !turn_resumable(r))) return;
    if (!a->turn) {
        struct mail *m = mail_next(l, r, STR_NONE);
        if (!m || !turn_start(l, r, m)) return;
    }
    assert(a->turn && "turn_started opens a turn");
    resident_touch(l, r, false);
    if (!r->exec && !activate(l, r)) return;
    if (a->turn->await_count == 0 || answer_await(l, r)) run_slice(l, r);
}

/* ---- promises ---- */

static void wake(struct loom *l, struct resident *r) {
    resident_touch(l, r, false);
    if (turn_resumable(r) && r->a->status != ACTOR_PAUSED) resident_queue(l, r);
}

struct resident *promise_owner(struct loom *l, struct str actor, uint64_t turn, uint64_t id) {
    struct resident *r = resident_by_id(l, actor);
    struct turn *t = r ? r->a->turn : NULL;
    struct promise *p = t && t->number == turn ? turn_promise(t, id) : NULL;
    return p && p->done_at == ENTRY_NEVER ? r : NULL;
}

void promise_done(struct loom *l, struct resident *r, uint64_t id, bool ok, struct str json, struct str event) {
    struct promise *p = r->a->turn ? turn_promise(r->a->turn, id) : NULL;
    if (!p || p->done_at != ENTRY_NEVER) return;
    struct str from = event.p ? say(l, ",\"messageId\":%q", event) : STR("");
    journal_append(r->a, loom_now(l),
                   say(l, "{\"type\":%z,\"%s\":%u%j,\"%s\":%j", entry_settling(p->kind, ok), promise_field(p->kind), id,
                       from, ok ? "result" : "error", json));
    wake(l, r);
}

static void withdraw_call(struct loom *l, struct resident *target, struct str message_id) {
    for (size_t i = 0; target && i < target->mail_count; i++)
        if (str_eq(target->mail[i].id, message_id)) {
            resident_touch(l, target, false);
            mail_remove(l, target, &target->mail[i]);
            return;
        }
}

void promise_abandon(struct loom *l, struct resident *r, uint64_t id) {
    struct promise *p = turn_promise(r->a->turn, id);
    if (!p || p->done_at != ENTRY_NEVER) return;
    yyjson_val *entry = look(l, p->entry);
    struct str other = json_str(entry, p->kind == PROMISE_CHILD ? "childId" : "to");
    struct resident *target = other.p ? resident_by_id(l, say(l, "%j/%j", r->a->ns, other)) : NULL;
    if (p->kind == PROMISE_ACTIVITY)
        attempt_cancel(l, r, id);
    else if (p->kind == PROMISE_CHILD && target)
        turn_cancel(l, target, STR("the parent gave it up"));
    else if (p->kind == PROMISE_CALL)
        withdraw_call(l, target, json_str(entry, "messageId"));
    else if (p->deadline)
        alarm_clear(l, p->deadline, ALARM_PROMISE, r, id);
}

static void abandon_all(struct loom *l, struct resident *r) {
    for (uint64_t i = 1; i <= r->a->turn->promise_count; i++) promise_abandon(l, r, i);
}

/* ---- end ---- */

void turn_give_up(struct loom *l, struct resident *r, const char *code, const char *why) {
    state_patch_rest(r->a, true);
    turn_end(l, r, END_FAIL, say(l, "{\"code\":%z,\"message\":%z,\"retryable\":false}", code, why));
}

void turn_cancel(struct loom *l, struct resident *r, struct str reason) {
    if (r->a->status >= ACTOR_COMPLETED) return;
    resident_touch(l, r, true);
    if (!r->a->turn) {
        while (r->a->run && r->mail_count > 0)
            mail_dead_letter(l, r, &r->mail[0], "cancelled", "the run was cancelled before it began");
        if (r->a->run) resident_status(l, r, ACTOR_CANCELLED, reason);
        return;
    }
    bool paused = r->a->status == ACTOR_PAUSED;
    if (r->a->turn->cancelled.p && !paused) return;
    abandon_all(l, r);
    journal_append(r->a, loom_now(l), say(l, "{\"type\":\"cancel_requested\",\"reason\":%Q", reason));
    if (paused)
        turn_give_up(l, r, "cancelled", "an operator cancelled the paused actor");
    else
        wake(l, r);
}

void turn_pause(struct loom *l, struct resident *r, const struct error *why) {
    turn_log(l, r, LOG_ERROR, STR("actor paused"), say(l, "\"code\":%z,\"detail\":%z", why->code, why->message));
    resident_drop_guest(l, r);
    resident_status(l, r, ACTOR_PAUSED, say(l, "%s: %s", why->code, why->message));
}

/* The same message again: after a failure with a retryPolicy, or with a new input after `continue`. */
static void again(struct loom *l, struct resident *r, yyjson_val *started, struct str input, int64_t delay,
                  int32_t attempt) {
    yyjson_val *message = yyjson_obj_get(started, "message");
    struct message m = {.id = json_str(started, "messageId"), .data = input, .delay_ms = delay, .attempt = attempt};
    m.sender = json_str(message, "sender");
    m.correlation = json_str(message, "correlationId");
    m.traceparent = json_str(message, "traceparent");
    m.version = json_str(message, "version");
    m.reply_to = json_text_of(yyjson_obj_get(message, "replyTo"), &l->scratch);
    m.chain = json_text_of(yyjson_obj_get(message, "chain"), &l->scratch);
    m.priority = INT32_MIN;
    m.outside = json_bool(message, "outside", false);
    mail_put(l, r, &m);
}

struct forgetting {
    struct loom *l;
    struct actor *a;
};

/* The row before it goes. */
static bool forget_row(void *ctx, struct str key, struct str value) {
    struct forgetting *f = ctx;
    uint64_t number = journal_key_number(key);
    (void)value;
    if (number > f->a->kept) rows_delete(f->l, ROW_JOURNAL, journal_key(&f->l->scratch, f->a->full, f->a->kept));
    f->a->kept = number;
    return true;
}

/* The journal of ended turns goes, but for so many entries and what a load needs. */
static void forget_entries(struct loom *l, struct actor *a, uint64_t keep) {
    uint64_t limit = a->cursor > keep ? a->cursor + 1 - keep : 0;
    struct forgetting f = {l, a};
    struct error err;
    if (limit > a->from) limit = a->from;
    if (limit > a->kept)
        rows_scan(l, ROW_JOURNAL, journal_key(&l->scratch, a->full, a->kept),
                  journal_key(&l->scratch, a->full, limit + 1), forget_row, &f, &err);
}

void turn_end(struct loom *l, struct resident *r, enum turn_end how, struct str value) {
    static const char *const types[] = {"turn_completed", "turn_finished", "turn_continued", "turn_failed"};
    static const char *const fields[] = {"result", "result", "input", "error"};
    struct turn *t = r->a->turn;
    struct error err;
    if (journal_replaying(r->a)) { /* a program that ends before its journal does is another program */
        journal_repeat(r->a, say(l, "{\"type\":%z", types[how]), &err);
        turn_pause(l, r, &err);
        return;
    }
    bool fail = how == END_FAIL, goes_on = how == END_CONTINUE, cancelled = t->cancelled.p && !goes_on;
    bool over = r->a->run || how == END_FINISH, retries = fail && !cancelled && r->definition;
    struct str failure = value;
    if (cancelled) failure = say(l, "{\"code\":\"cancelled\",\"message\":%j,\"retryable\":false}", t->cancelled);
    yyjson_val *started = look(l, t->started), *error = fail || cancelled ? look(l, failure) : NULL;
    int64_t wait = retries ? retry_next(&r->definition->retry, t->attempt, json_bool(error, "retryable", false), 1.0)
                           : -1;
    struct str retry = wait >= 0 ? say(l, ",\"retryInMs\":%d", wait) : STR("");
    resident_touch(l, r, true);
    abandon_all(l, r);
    if (fail) state_rollback(r->a, loom_now(l));
    if (fail && !cancelled)
        turn_log(l, r, LOG_WARN, STR("turn failed"),
                 say(l, "\"turn\":%u,\"messageId\":%q,\"code\":%q,\"detail\":%q%j", t->number,
                     json_str(started, "messageId"), json_str(error, "code"), json_str(error, "message"), retry));
    journal_append(
        r->a, loom_now(l),
        say(l, "{\"type\":%z,\"%s\":%j%j", cancelled ? "turn_cancelled" : types[how], fields[how], value, retry));
    metric_add(error ? METRIC_TURNS_FAILED : METRIC_TURNS_COMPLETED, 1);
    if (r->definition) forget_entries(l, r->a, (uint64_t)json_int(r->definition->doc, "journalRetention", INT64_MAX));
    resident_drop_guest(l, r);
    if (goes_on || wait >= 0) {
        resident_status(l, r, ACTOR_IDLE, STR_NONE);
        again(l, r, started, goes_on ? value : json_text_of(yyjson_obj_get(started, "input"), &l->scratch), wait,
              goes_on ? 1 : (int32_t)json_int(started, "attempt", 1) + 1);
    } else {
        enum actor_status end = cancelled ? ACTOR_CANCELLED : fail ? ACTOR_FAILED : ACTOR_COMPLETED;
        resident_status(l, r, over ? end : ACTOR_IDLE, over ? json_str(error, "message") : STR_NONE);
        /* A program that fails with the cancellation only hands it on. */
        reply_to(l, r, yyjson_obj_get(started, "message"), json_str(started, "messageId"), !error,
                 fail && !str_is(json_str(look(l, value), "code"), "cancelled") ? value : failure);
    }
    if (r->mail_count > 0) resident_queue(l, r);
}
