/* ops.c: the op table of actors, the only door out of a guest.
 *
 * A row is a name, a function, how its argument is read and a doc line; guest docs, help and the API reference are printed
 * from it. A journaled op first builds its entry's text (without `at`), then asks record(): a replaying guest must repeat
 * the entry word for word and nothing else happens; a live one appends it, and then the op acts.
 * What depends on the registry never fails at once: the promise fails, and that is an entry.
 */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ENTRIES_MAX = 1000000, TURN_BYTES_MAX = 256 << 20 };
enum record { REPEATED, LIVE, STOPPED };

static enum op_outcome bad(struct op_call *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static enum op_outcome bad(struct op_call *c, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    error_set(&c->err, LOOM_E_INVALID_ARGUMENT, "op %.*s: %s", (int)c->name.n, c->name.p, text);
    error_json(&c->err, &c->out);
    return OP_ERROR;
}

static enum op_outcome pause_here(struct op_call *c) {
    turn_pause(c->l, c->r, &c->err);
    return OP_ENDED;
}

static enum record record(struct op_call *c, const struct buf *body) {
    struct actor *a = c->r->a;
    int rc = journal_repeat(a, buf_view(body), &c->err);
    if (rc < 0)
        return STOPPED;
    a->turn->ops_asked++;
    if (rc == 1)
        return REPEATED;
    if (a->turn->entries >= ENTRIES_MAX || a->turn->bytes >= TURN_BYTES_MAX) {
        error_set(&c->err, LOOM_E_TOO_LARGE, "the turn of %s has %" PRIu64 " entries and %zu bytes of journal; end it with `continue` before %d entries or 256 MB", a->id,
                  a->turn->entries, a->turn->bytes, ENTRIES_MAX);
        return STOPPED;
    }
    journal_append(a, loom_now(c->l), buf_view(body));
    return LIVE;
}

/* An id that is the same in every replay: from the actor, the turn and the place in it. */
static void place_id(const struct actor *a, const char *what, uint64_t n, char out[33]) {
    char text[512];
    uint8_t hash[32];
    int len = snprintf(text, sizeof text, "%s\n%" PRIu64 "\n%" PRId32 "\n%s%" PRIu64, a->id, a->turn->number, a->turn->attempt, what, n);
    sha256((struct str){text, (size_t)len}, hash);
    hex_encode(hash, 16, out);
}

void activity_key(const struct actor *a, uint64_t promise, char out[33]) {
    place_id(a, "activity", promise, out);
}

static enum op_outcome give_promise(struct op_call *c) {
    buf_json(&c->out, "%u", ++c->r->a->turn->promises_given);
    return OP_OK;
}

static uint64_t next_promise(const struct op_call *c) {
    return c->r->a->turn->promises_given + 1;
}

static void field(struct buf *body, yyjson_val *arg, const char *name) {
    yyjson_val *v = yyjson_obj_get(arg, name);
    if (!v || yyjson_is_null(v))
        return;
    buf_json(body, ",\"%s\":", name);
    json_write(v, body);
}

/* A field that is always there, null when the guest left it out. */
static void value_field(struct buf *body, yyjson_val *arg, const char *name) {
    buf_json(body, ",\"%s\":", name);
    if (yyjson_obj_get(arg, name))
        json_write(yyjson_obj_get(arg, name), body);
    else
        buf_str(body, STR("null"));
}

/* ---- reading ---- */

static yyjson_val *started(const struct op_call *c) {
    return yyjson_doc_get_root(c->r->a->turn->started);
}

static enum op_outcome op_input(struct op_call *c) {
    json_write(yyjson_obj_get(started(c), "input"), &c->out);
    return OP_OK;
}

static enum op_outcome op_config(struct op_call *c) {
    yyjson_val *config = yyjson_obj_get(yyjson_doc_get_root(c->r->definition->doc), "config");
    if (config)
        json_write(config, &c->out);
    else
        buf_str(&c->out, STR("null"));
    return OP_OK;
}

static enum op_outcome op_self(struct op_call *c) {
    struct actor *a = c->r->a;
    yyjson_val *message = turn_message(a->turn);
    buf_json(&c->out, "{\"id\":%q,\"namespace\":%q,\"type\":%q,\"key\":%q,\"messageId\":%q,\"sender\":%Q,\"parentActorId\":%Q,\"correlationId\":%Q,\"attempt\":%d}", a->name,
             a->ns, a->type, a->key, json_str(started(c), "messageId"), json_str(message, "sender"), str_of(a->parent), json_str(message, "correlationId"),
             (int64_t)a->turn->attempt);
    return OP_OK;
}

static enum op_outcome op_now(struct op_call *c) {
    buf_json(&c->out, "%d", c->r->a->turn->now);
    return OP_OK;
}

/* xoroshiro128+ (Blackman and Vigna), seeded from the journal. */
static uint64_t next_random(struct turn *t) {
    uint64_t a = t->random[0], b = t->random[1], sum = a + b;
    b ^= a;
    t->random[0] = ((a << 24) | (a >> 40)) ^ b ^ (b << 16);
    t->random[1] = (b << 37) | (b >> 27);
    return sum;
}

static enum op_outcome op_random(struct op_call *c) {
    struct turn *t = c->r->a->turn;
    if (!yyjson_is_int(c->value)) {
        buf_json(&c->out, "%f", (double)(next_random(t) >> 11) * 0x1p-53);
        return OP_OK;
    }
    int64_t n = yyjson_get_sint(c->value);
    if (n < 1 || n > 256)
        return bad(c, "the number of bytes is %" PRId64 "; use 1 to 256, or no argument for a number in [0, 1)", n);
    uint8_t bytes[256];
    char hex[513];
    for (int64_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)(next_random(t) >> 32);
    hex_encode(bytes, (size_t)n, hex);
    buf_json(&c->out, "%z", hex);
    return OP_OK;
}

/* ---- state ---- */

static enum op_outcome op_state_get(struct op_call *c) {
    if (c->value && !yyjson_is_str(c->value))
        return bad(c, "the argument is a JSON Pointer as a string, \"\" for the whole state");
    struct str pointer = {yyjson_get_str(c->value), yyjson_get_len(c->value)};
    yyjson_mut_val *v = json_mut_at(yyjson_mut_doc_get_root(c->r->a->state), pointer.p ? pointer : STR(""));
    if (v)
        json_write_mut(v, &c->out);
    else
        buf_str(&c->out, STR("null"));
    return OP_OK;
}

static enum op_outcome op_state_patch(struct op_call *c) {
    struct buf body = {0}, inverse = {0};
    if (state_patch(c->r->a, c->value, &inverse, &c->err) < 0) {
        error_json(&c->err, &c->out);
        buf_free(&inverse);
        return OP_ERROR;
    }
    buf_json(&body, "{\"type\":\"state_patches\",\"patches\":");
    json_write(c->value, &body);
    buf_json(&body, ",\"inversePatches\":%j", buf_view(&inverse));
    c->r->a->patch_bytes += body.n;
    enum record how = record(c, &body);
    buf_str(&c->out, STR("null"));
    buf_free(&body);
    buf_free(&inverse);
    return how == STOPPED ? pause_here(c) : OP_OK;
}

/* ---- what finishes later ---- */

static enum op_outcome op_activity(struct op_call *c) {
    struct str name = json_str(c->value, "name");
    if (!name.p)
        return bad(c, "field name is missing: the activity's name");
    uint64_t id = next_promise(c);
    struct buf body = {0};
    buf_json(&body, "{\"type\":\"activity_scheduled\",\"activityId\":%u,\"name\":%q", id, name);
    static const char *const fields[] = {"label", "version", "timeoutMs", "retry"};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        field(&body, c->value, fields[i]);
    value_field(&body, c->value, "input");
    enum record how = record(c, &body);
    buf_free(&body);
    if (how == STOPPED)
        return pause_here(c);
    if (how == LIVE) {
        struct promise *p = turn_promise(c->r->a->turn, id);
        if (p->deadline)
            alarm_set(c->l, p->deadline, ALARM_PROMISE, c->r->a->full, c->r->a->turn->number, id, false);
        attempt_schedule(c->l, c->r, id);
    }
    return give_promise(c);
}

static enum op_outcome op_timer(struct op_call *c) {
    int64_t delay = json_int(c->value, "delayMs", -1);
    if (delay < 0)
        return bad(c, "field delayMs is missing or negative: milliseconds until the timer fires");
    uint64_t id = next_promise(c);
    struct buf body = {0};
    buf_json(&body, "{\"type\":\"timer_set\",\"promise\":%u,\"delayMs\":%d", id, delay);
    enum record how = record(c, &body);
    buf_free(&body);
    if (how == STOPPED)
        return pause_here(c);
    if (how == LIVE)
        alarm_set(c->l, turn_promise(c->r->a->turn, id)->deadline, ALARM_PROMISE, c->r->a->full, c->r->a->turn->number, id, true);
    return give_promise(c);
}

static enum op_outcome op_event_wait(struct op_call *c) {
    struct str type = json_str(c->value, "type");
    struct loom *l = c->l;
    struct resident *r = c->r;
    if (!type.p || type.n == 0)
        return bad(c, "field type is missing: the event's type");
    uint64_t id = next_promise(c);
    struct buf body = {0};
    buf_json(&body, "{\"type\":\"event_awaited\",\"promise\":%u,\"event\":%q", id, type);
    field(&body, c->value, "timeoutMs");
    enum record how = record(c, &body);
    buf_free(&body);
    if (how == STOPPED)
        return pause_here(c);
    struct mail *m = how == LIVE ? mail_event(l, r, type) : NULL;
    if (m) {
        yyjson_doc *doc = yyjson_read(m->text, m->text_n, YYJSON_READ_BIGNUM_AS_RAW);
        struct buf data = {0};
        json_write(yyjson_obj_get(yyjson_obj_get(yyjson_doc_get_root(doc), "payload"), "data"), &data);
        promise_event(l, r, id, str_of(m->id), buf_view(&data));
        mail_remove(l, r, m);
        buf_free(&data);
        yyjson_doc_free(doc);
    } else if (how == LIVE && turn_promise(r->a->turn, id)->deadline) {
        alarm_set(l, turn_promise(r->a->turn, id)->deadline, ALARM_PROMISE, r->a->full, r->a->turn->number, id, true);
    }
    return give_promise(c);
}

/* ---- other actors ---- */

static bool split_target(struct str to, struct str *type, struct str *key) {
    const char *slash = to.p ? memchr(to.p, '/', to.n) : NULL;
    if (!slash)
        return false;
    *type = (struct str){to.p, (size_t)(slash - to.p)};
    *key = (struct str){slash + 1, to.n - type->n - 1};
    return true;
}

/* The actors that wait for this turn, and this one. */
static void chain_write(const struct actor *a, struct buf *out) {
    yyjson_val *chain = yyjson_obj_get(turn_message(a->turn), "chain"), *v;
    size_t i, n;
    buf_char(out, '[');
    yyjson_arr_foreach(chain, i, n, v) {
        json_write(v, out);
        buf_char(out, ',');
    }
    buf_json(out, "%q]", a->name);
}

static bool in_chain(const struct actor *a, struct str target) {
    yyjson_val *chain = yyjson_obj_get(turn_message(a->turn), "chain"), *v;
    size_t i, n;
    yyjson_arr_foreach(chain, i, n, v) {
        if (str_eq((struct str){yyjson_get_str(v), yyjson_get_len(v)}, target))
            return true;
    }
    return str_eq(a->name, target);
}

enum sending { SEND_ONE_WAY, SEND_CALL, SEND_SPAWN };

/* Delivers what a live op sends; a refusal settles its promise, or is a log line when nobody waits. */
static void deliver(struct op_call *c, enum sending how, struct str to, struct str id, uint64_t promise) {
    struct actor *a = c->r->a;
    struct buf data = {0}, reply = {0}, chain = {0}, made = {0}, correlation = {0}, traceparent = {0};
    yyjson_val *input = yyjson_obj_get(c->value, "input"), *message = turn_message(a->turn);
    if (input)
        json_write(input, &data);
    else
        buf_str(&data, STR("null"));
    buf_str(&correlation, json_str(message, "correlationId"));
    buf_str(&traceparent, json_str(message, "traceparent"));
    struct message m = {.ns = a->ns, .id = id, .event = how == SEND_ONE_WAY ? json_str(c->value, "event") : STR_NONE, .data = buf_view(&data), .sender = a->name,
                        .correlation = correlation.n ? buf_view(&correlation) : STR_NONE, .traceparent = traceparent.n ? buf_view(&traceparent) : STR_NONE,
                        .delay_ms = json_int(c->value, "delayMs", 0), .ttl_ms = json_int(c->value, "ttlMs", 0), .priority = (int32_t)json_int(c->value, "priority", 0),
                        .run = how == SEND_SPAWN, .spawn = how == SEND_SPAWN, .parent = how == SEND_SPAWN ? a->name : STR_NONE};
    split_target(to, &m.type, &m.key);
    if (how != SEND_ONE_WAY) {
        buf_json(&reply, "{\"actor\":%q,\"turn\":%u,\"promise\":%u}", a->full, a->turn->number, promise);
        m.reply_to = buf_view(&reply);
    }
    if (how == SEND_CALL) {
        chain_write(a, &chain);
        m.chain = buf_view(&chain);
    }
    int rc = 0;
    if (how == SEND_CALL && in_chain(a, to))
        rc = error_set(&c->err, LOOM_E_DEADLOCK, "%.*s waits for this turn; the call would never return", (int)to.n, to.p);
    if (rc == 0)
        rc = mail_deliver(c->l, &m, &made, &c->err);
    if (rc < 0 && how == SEND_ONE_WAY) {
        log_event(LOG_WARN, "message not delivered", "\"actor\":%q,\"to\":%q,\"code\":%z,\"detail\":%z", a->full, to, c->err.code, c->err.message);
    } else if (rc < 0) {
        struct buf error = {0};
        error_json(&c->err, &error);
        promise_done(c->l, c->r, promise, how == SEND_CALL ? "call_failed" : "child_failed", false, buf_view(&error));
        buf_free(&error);
    }
    struct buf *all[] = {&data, &reply, &chain, &made, &correlation, &traceparent};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        buf_free(all[i]);
}

static enum op_outcome send_to(struct op_call *c, bool call) {
    struct str to = json_str(c->value, "to"), type, key;
    if (!split_target(to, &type, &key))
        return bad(c, "field to is missing or not \"type/key\"");
    struct actor *a = c->r->a;
    uint64_t id = next_promise(c);
    char message_id[33];
    place_id(a, "message", a->turn->ops_asked, message_id);
    struct buf body = {0};
    if (call)
        buf_json(&body, "{\"type\":\"call_sent\",\"promise\":%u,\"messageId\":%z,\"to\":%q,\"timeoutMs\":%d", id, message_id, to, json_int(c->value, "timeoutMs", 60000));
    else
        buf_json(&body, "{\"type\":\"message_sent\",\"messageId\":%z,\"to\":%q", message_id, to);
    static const char *const fields[] = {"event", "delayMs", "priority", "ttlMs"};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        field(&body, c->value, fields[i]);
    value_field(&body, c->value, "input");
    enum record how = record(c, &body);
    buf_free(&body);
    if (how == STOPPED)
        return pause_here(c);
    if (how == LIVE)
        deliver(c, call ? SEND_CALL : SEND_ONE_WAY, to, str_of(message_id), id);
    if (!call) {
        buf_json(&c->out, "%z", message_id);
        return OP_OK;
    }
    struct promise *p = turn_promise(a->turn, id);
    if (how == LIVE && p->done_at == ENTRY_NEVER && p->deadline)
        alarm_set(c->l, p->deadline, ALARM_PROMISE, a->full, a->turn->number, id, false);
    return give_promise(c);
}

static enum op_outcome op_call(struct op_call *c) {
    return send_to(c, true);
}

static enum op_outcome op_send(struct op_call *c) {
    return send_to(c, false);
}

static enum op_outcome op_spawn(struct op_call *c) {
    struct str type = json_str(c->value, "type"), key = json_str(c->value, "key");
    struct actor *a = c->r->a;
    if (!type.p)
        return bad(c, "field type is missing: the actor type of the child");
    uint64_t id = next_promise(c);
    char made[33], message_id[33];
    place_id(a, "child", a->turn->ops_asked, made);
    place_id(a, "message", a->turn->ops_asked, message_id);
    struct buf body = {0}, child = {0};
    buf_json(&child, "%j/%j", type, key.p ? key : str_of(made));
    buf_json(&body, "{\"type\":\"child_spawned\",\"promise\":%u,\"childId\":%q,\"actorType\":%q", id, buf_view(&child), type);
    field(&body, c->value, "label");
    value_field(&body, c->value, "input");
    enum record how = record(c, &body);
    if (how == LIVE)
        deliver(c, SEND_SPAWN, buf_view(&child), str_of(message_id), id);
    buf_free(&body);
    buf_free(&child);
    return how == STOPPED ? pause_here(c) : give_promise(c);
}

/* ---- waiting ---- */

static void await_begin(struct turn *t, const uint32_t *ids, size_t n, bool any) {
    t->await = mem_grow(t->await, (n + 1) * sizeof *t->await);
    memcpy(t->await, ids, n * sizeof *ids);
    t->await_count = n;
    t->await_any = any;
}

static enum op_outcome op_await(struct op_call *c) {
    struct turn *t = c->r->a->turn;
    yyjson_val *list = yyjson_obj_get(c->value, "promises"), *v;
    struct str mode = json_str(c->value, "mode");
    bool any = str_eq(mode, STR("any"));
    size_t i, n = yyjson_arr_size(list);
    if (n == 0)
        return bad(c, "field promises is missing or empty: a list of promise ids");
    if (mode.p && !any && !str_eq(mode, STR("all")))
        return bad(c, "mode is \"%.*s\"; use \"all\" or \"any\"", (int)mode.n, mode.p);
    uint32_t *ids = mem_alloc(n * sizeof *ids);
    enum op_outcome o = OP_WAIT;
    yyjson_arr_foreach(list, i, n, v) {
        uint64_t id = yyjson_get_uint(v);
        if (o == OP_WAIT && (id < 1 || id > t->promises_given))
            o = bad(c, "there is no promise %" PRIu64 "; this turn has given %" PRIu64, id, t->promises_given);
        ids[i] = (uint32_t)id;
    }
    if (o == OP_WAIT)
        await_begin(t, ids, n, any);
    free(ids);
    return o;
}

static enum op_outcome op_suspend(struct op_call *c) {
    struct str reason = json_str(c->value, "reason");
    uint64_t id = next_promise(c);
    struct buf body = {0};
    buf_json(&body, "{\"type\":\"person_awaited\",\"promise\":%u,\"reason\":%q", id, reason.p ? reason : STR("a person"));
    enum record how = record(c, &body);
    buf_free(&body);
    if (how == STOPPED)
        return pause_here(c);
    c->r->a->turn->promises_given++;
    await_begin(c->r->a->turn, &(uint32_t){(uint32_t)id}, 1, true);
    return OP_WAIT;
}

static void write_settled(struct op_call *c, uint32_t id) {
    struct promise *p = turn_promise(c->r->a->turn, id);
    buf_json(&c->out, "{\"promise\":%u,\"%s\":%j}", (uint64_t)id, p->ok ? "ok" : "error", (struct str){p->result, p->result_n});
}

enum op_outcome op_await_result(struct op_call *c) {
    struct turn *t = c->r->a->turn;
    uint64_t entry;
    bool cancel;
    turn_settled(t, &entry, &cancel);
    if (cancel) {
        t->now = t->cancel_ms > t->now ? t->cancel_ms : t->now;
        t->cancel_at = ENTRY_NEVER;
        error_set(&c->err, LOOM_E_CANCELLED, "the turn was cancelled; clean up and return");
        error_json(&c->err, &c->out);
        return OP_ERROR;
    }
    struct promise *last = NULL;
    for (size_t i = 0; i < t->await_count; i++) {
        struct promise *p = turn_promise(t, t->await[i]);
        if (p->done_at <= entry && p->done_ms > t->now)
            t->now = p->done_ms;
        last = p->done_at == entry ? p : last;
    }
    if (last->kind == PROMISE_SUSPEND) {
        buf_add(&c->out, last->result, last->result_n);
        return last->ok ? OP_OK : OP_ERROR;
    }
    if (t->await_any) {
        write_settled(c, (uint32_t)(last - t->promises) + 1);
        return OP_OK;
    }
    for (size_t i = 0; i < t->await_count; i++) {
        buf_char(&c->out, i ? ',' : '[');
        write_settled(c, t->await[i]);
    }
    buf_char(&c->out, ']');
    return OP_OK;
}

static enum op_outcome op_cancel(struct op_call *c) {
    uint64_t id = (uint64_t)json_int(c->value, "promise", 0);
    if (id < 1 || id > c->r->a->turn->promises_given)
        return bad(c, "there is no promise %" PRIu64, id);
    struct buf body = {0};
    buf_json(&body, "{\"type\":\"promise_cancelled\",\"promise\":%u", id);
    if (!journal_replaying(c->r->a))
        promise_abandon(c->l, c->r, id);
    enum record how = record(c, &body);
    buf_free(&body);
    buf_str(&c->out, STR("null"));
    return how == STOPPED ? pause_here(c) : OP_OK;
}

/* ---- saying ---- */

struct line {
    int level;
    struct buf fields, msg;
};

static void line_release(struct loom *l, void *ctx, bool committed) {
    struct line *line = ctx;
    (void)l;
    if (committed)
        log_event((enum log_level)line->level, line->msg.n ? line->msg.p : "guest", "%j", buf_view(&line->fields));
    buf_free(&line->fields);
    buf_free(&line->msg);
    free(line);
}

static int log_level_of(yyjson_val *v) {
    static const char *const names[] = {"trace", "debug", "info", "warn", "error", "fatal"};
    for (int i = 0; i < 6; i++)
        if (yyjson_equals_str(v, names[i]))
            return (i + 1) * 10;
    int64_t n = yyjson_is_int(v) ? yyjson_get_sint(v) : LOG_INFO;
    return n >= LOG_TRACE && n <= LOG_FATAL ? (int)n : LOG_INFO;
}

static enum op_outcome op_log(struct op_call *c) {
    int level = log_level_of(yyjson_obj_get(c->value, "level"));
    buf_str(&c->out, STR("null"));
    if (journal_replaying(c->r->a) || !log_on((enum log_level)level))
        return OP_OK;
    struct line *line = mem_alloc(sizeof *line);
    line->level = level;
    buf_json(&line->fields, "\"actor\":%q,\"correlationId\":%Q,\"guest\":", c->r->a->full, json_str(turn_message(c->r->a->turn), "correlationId"));
    json_write(c->value, &line->fields);
    buf_str(&line->msg, json_str(c->value, "msg"));
    buf_add(&line->msg, "", 1);
    effect_add(c->l, line_release, line);
    return OP_OK;
}

static enum op_outcome op_emit(struct op_call *c) {
    struct str channel = json_str(c->value, "channel");
    if (!channel.p)
        return bad(c, "field channel is missing");
    struct buf body = {0};
    buf_json(&body, "{\"type\":\"emitted\",\"channel\":%q", channel);
    value_field(&body, c->value, "data");
    enum record how = record(c, &body);
    buf_free(&body);
    buf_str(&c->out, STR("null"));
    return how == STOPPED ? pause_here(c) : OP_OK;
}

/* ---- ending ---- */

/* An ending's argument is arbitrary JSON; what is not JSON fails the turn. */
static enum op_outcome end_with(struct op_call *c, enum turn_end how) {
    struct buf value = {0};
    int rc = 0;
    if (c->arg.n == 0)
        buf_str(&value, STR("null"));
    else if (c->arg.n > BODY_MAX)
        rc = error_set(&c->err, LOOM_E_INVALID_OUTPUT, "the value given to %.*s has %zu bytes; at most %d are allowed", (int)c->name.n, c->name.p, c->arg.n, BODY_MAX);
    else if (json_normalize(c->arg, &value, &c->err) < 0) {
        struct error why = c->err;
        rc = error_set(&c->err, LOOM_E_INVALID_OUTPUT, "the value given to %.*s is not JSON (%.300s); it begins with %.*s", (int)c->name.n, c->name.p, why.message,
                       (int)(c->arg.n < 80 ? c->arg.n : 80), c->arg.p);
    } else if (how == END_RETURN || how == END_FINISH) {
        rc = definition_check(c->r->definition, false, buf_view(&value), &c->err);
    }
    if (rc < 0) {
        buf_clear(&value);
        error_json(&c->err, &value);
        how = END_FAIL;
    }
    turn_end(c->l, c->r, how, buf_view(&value));
    buf_free(&value);
    return OP_ENDED;
}

static enum op_outcome op_return(struct op_call *c) {
    return end_with(c, END_RETURN);
}

static enum op_outcome op_finish(struct op_call *c) {
    return end_with(c, END_FINISH);
}

static enum op_outcome op_continue(struct op_call *c) {
    return end_with(c, END_CONTINUE);
}

static enum op_outcome op_fail(struct op_call *c) {
    struct str code = json_str(c->value, "code"), message = json_str(c->value, "message");
    struct buf value = {0};
    buf_json(&value, "{\"code\":%q,\"message\":%q,\"retryable\":%b", code.p ? code : STR("failed"), message.p ? message : STR(""), json_bool(c->value, "retryable", false));
    field(&value, c->value, "detail");
    buf_char(&value, '}');
    turn_end(c->l, c->r, END_FAIL, buf_view(&value));
    buf_free(&value);
    return OP_ENDED;
}

/* ---- the table ---- */

enum argument { ARG_NONE, ARG_ANY, ARG_OBJECT, ARG_ARRAY, ARG_RAW };

static const struct op_row {
    const char *name;
    enum op_outcome (*fn)(struct op_call *c);
    enum argument takes;
    const char *argument, *doc;
} actor_ops[] = {
    {"input", op_input, ARG_NONE, "", "The message's data."},
    {"state.get", op_state_get, ARG_ANY, "\"/pointer\"", "The value at a JSON Pointer of the state, or null."},
    {"state.patch", op_state_patch, ARG_ARRAY, "[RFC 6902 operations]", "Changes the state; the journal keeps the patch and its inverse. Returns null."},
    {"activity", op_activity, ARG_OBJECT, "{name, input, version?, timeoutMs?, retry?, label?}", "Starts an activity. Returns a promise."},
    {"await", op_await, ARG_OBJECT, "{promises: [id…], mode: \"all\"|\"any\"}", "Waits. Returns an array of, or one, {promise, ok} or {promise, error}."},
    {"actor.call", op_call, ARG_OBJECT, "{to: \"type/key\", input, timeoutMs?, delayMs?, priority?, ttlMs?}", "Sends a message and returns a promise of its reply."},
    {"actor.send", op_send, ARG_OBJECT, "{to: \"type/key\", input, event?, delayMs?, priority?, ttlMs?}", "Sends a message or an event. Returns the message id."},
    {"child.spawn", op_spawn, ARG_OBJECT, "{type, key?, input, label?}", "Starts a new run. Returns a promise of its result."},
    {"event.wait", op_event_wait, ARG_OBJECT, "{type, timeoutMs?}", "Returns a promise of the next event of the type."},
    {"timer", op_timer, ARG_OBJECT, "{delayMs}", "Returns a promise that is kept after delayMs."},
    {"cancel", op_cancel, ARG_OBJECT, "{promise}", "Gives up a promise and stops what it started."},
    {"suspend", op_suspend, ARG_OBJECT, "{reason}", "Waits until someone resumes the actor. Returns the resume's data."},
    {"self", op_self, ARG_NONE, "", "{id, namespace, type, key, messageId, sender, parentActorId, correlationId, attempt}."},
    {"config", op_config, ARG_NONE, "", "The definition's config, or null."},
    {"now", op_now, ARG_NONE, "", "Milliseconds since 1970: the latest moment that the journal has shown this guest."},
    {"random", op_random, ARG_ANY, "n?", "A number in [0, 1), or n bytes in hex; the same in every replay."},
    {"log", op_log, ARG_OBJECT, "{level, msg, …}", "A log line, once its batch has committed."},
    {"emit", op_emit, ARG_OBJECT, "{channel, data}", "An event for those who watch the stream."},
    {"return", op_return, ARG_RAW, "value", "Ends the turn with a reply. Does not come back."},
    {"finish", op_finish, ARG_RAW, "value", "Ends the turn and completes the actor. Does not come back."},
    {"continue", op_continue, ARG_RAW, "input", "Ends the turn without a reply and starts the next one with the input. Does not come back."},
    {"fail", op_fail, ARG_OBJECT, "{code, message, retryable}", "Fails the turn: the state goes back to its start. Does not come back."},
};

static const struct op_row *find_op(struct str name) {
    for (size_t i = 0; i < sizeof actor_ops / sizeof *actor_ops; i++)
        if (str_eq(name, str_of(actor_ops[i].name)))
            return &actor_ops[i];
    return NULL;
}

static enum op_outcome unknown_op(struct op_call *c) {
    struct buf json = {0};
    error_set(&c->err, LOOM_E_UNKNOWN_OP, "actors have no op \"%.*s\"; see `loom help ops`", (int)(c->name.n < 64 ? c->name.n : 64), c->name.p);
    if (journal_replaying(c->r->a))
        return pause_here(c);
    error_json(&c->err, &json);
    turn_end(c->l, c->r, END_FAIL, buf_view(&json));
    buf_free(&json);
    return OP_ENDED;
}

enum op_outcome op_run(struct op_call *c) {
    const struct op_row *row = find_op(c->name);
    metric_add(METRIC_OPS, 1);
    if (!row)
        return unknown_op(c);
    if (c->arg.n > BODY_MAX && row->takes != ARG_RAW)
        return bad(c, "the argument has %zu bytes; at most %d are allowed", c->arg.n, BODY_MAX);
    yyjson_doc *doc = NULL;
    if (row->takes != ARG_NONE && row->takes != ARG_RAW && c->arg.n > 0) {
        doc = json_parse(c->arg, &c->err);
        if (!doc)
            return bad(c, "the argument is not JSON: %s", c->err.message);
        c->value = yyjson_doc_get_root(doc);
    }
    bool fits = row->takes != ARG_OBJECT || yyjson_is_obj(c->value);
    fits = fits && (row->takes != ARG_ARRAY || yyjson_is_arr(c->value));
    enum op_outcome o = fits ? row->fn(c) : bad(c, "the argument is not %s", row->argument);
    yyjson_doc_free(doc);
    return o;
}

static struct loom_op_doc docs[sizeof actor_ops / sizeof *actor_ops + 1];

const struct loom_op_doc *actor_op_docs(void) {
    for (size_t i = 0; i < sizeof actor_ops / sizeof *actor_ops; i++)
        docs[i] = (struct loom_op_doc){actor_ops[i].name, actor_ops[i].argument, actor_ops[i].doc};
    return docs;
}
