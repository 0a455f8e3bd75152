/* ops.c: the op table of actors, the only door out of a guest.
 *
 * A row is a name, a function, how its argument is read and a doc line; guest docs, help and the API reference are
 * printed from it. A journaled op first builds its entry's text (without `at`), then asks record(): a replaying guest must
 * repeat the entry word for word and nothing else happens; for a live one it is appended, and then the op acts.
 * What depends on the registry never fails at once: the promise fails, and that is an entry.
 */
#include "runtime/runtime.h"

#include <assert.h>
#include <string.h>

enum { ENTRIES_MAX = 1000000, TURN_BYTES_MAX = 256 << 20 };

static enum op_outcome answer(struct op_call *c, struct str json) {
    c->out = json;
    return OP_OK;
}

static enum op_outcome refuse(struct op_call *c) {
    c->out = error_text(c->l, &c->err);
    return OP_ERROR;
}

static enum op_outcome bad(struct op_call *c, const char *why) {
    error_set(&c->err, LOOM_E_INVALID_ARGUMENT, "op %.*s: %s", (int)c->name.n, c->name.p, why);
    return refuse(c);
}

/* The argument's fields, each `,"name":value`; those that are absent or null are left out, or null after a '!'. */
static void add_fields(struct op_call *c, const char *names, struct buf *out) {
    for (size_t n; *names; names += n + (names[n] == ' ')) {
        n = strcspn(names, " ");
        bool always = names[n - 1] == '!';
        struct str name = {names, n - always};
        yyjson_val *v = yyjson_obj_getn(c->value, name.p, name.n);
        if (yyjson_is_null(v)) v = NULL;
        if (v || always) buf_json(out, v ? ",\"%j\":%v" : ",\"%j\":null", name, v);
    }
}

/* A journaled op: `body` and the argument's `more` fields are its entry. A replaying guest must repeat it word for word;
 * for a live one it is appended, and then the op acts. Answers `out`, or without it the promise that the op gives. */
static enum op_outcome journaled(struct op_call *c, struct str body, const char *more, void (*act)(struct op_call *c),
                                 struct str out) {
    struct actor *a = c->r->a;
    struct buf *text = &c->l->saying;
    buf_clear(text);
    buf_str(text, body);
    add_fields(c, more, text);
    struct str entry = buf_view(text); /* until something else is said */
    int rc = journal_repeat(a, entry, &c->err);
    a->turn->ops_asked++;
    if (rc == 0 && (a->turn->entries >= ENTRIES_MAX || a->turn->bytes >= TURN_BYTES_MAX))
        rc = error_set(&c->err, LOOM_E_TOO_LARGE,
                       "the turn of %s has %" PRIu64
                       " entries and %zu bytes of journal; end turns with `continue` before "
                       "%d entries or 256 MB",
                       a->id, a->turn->entries, a->turn->bytes, ENTRIES_MAX);
    if (rc < 0) {
        turn_pause(c->l, c->r, &c->err);
        return OP_ENDED;
    }
    if (rc == 0) {
        journal_append(a, loom_now(c->l), entry);
        if (act) act(c);
        if (!out.p) promise_deadline(c->l, c->r, c->id);
    }
    return answer(c, out.p ? out : say(c->l, "%u", ++a->turn->promises_given));
}

/* An id that is the same in every replay: from the actor and the turn, hashed once, and the place in it. */
static struct str place_id(struct loom *l, const struct actor *a, const char *what, uint64_t n) {
    struct turn *t = a->turn;
    uint8_t hash[32];
    if (!t->name[0]) {
        sha256(say(l, "%s\n%u", a->id, t->number), hash);
        hex_encode(hash, 16, t->name);
    }
    return say(l, "%s-%s%u", t->name, what, n);
}

struct str activity_key(struct loom *l, const struct actor *a, uint64_t promise) {
    return place_id(l, a, "a", promise);
}

/* ---- reading ---- */

static struct str or_null(struct str json) {
    return json.p ? json : STR("null");
}

static enum op_outcome op_input(struct op_call *c) {
    return answer(c, or_null(entry_field(c->r->a->turn->started, "input")));
}

static enum op_outcome op_config(struct op_call *c) {
    return answer(c, or_null(json_text_of(yyjson_obj_get(c->r->definition->doc, "config"), &c->l->scratch)));
}

static enum op_outcome op_self(struct op_call *c) {
    struct actor *a = c->r->a;
    yyjson_val *message = look(c->l, a->turn->message);
    return answer(c, say(c->l,
                         "{\"id\":%q,\"namespace\":%q,\"type\":%q,\"key\":%q,\"messageId\":%j,\"sender\":%Q,"
                         "\"parentActorId\":%Q,\"correlationId\":%Q,\"attempt\":%d}",
                         a->name, a->ns, a->type, a->key, entry_field(a->turn->started, "messageId"),
                         json_str(message, "sender"), str_of(a->parent), json_str(message, "correlationId"),
                         (int64_t)a->turn->attempt));
}

static enum op_outcome op_now(struct op_call *c) {
    return answer(c, say(c->l, "%d", c->r->a->turn->now));
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
    int64_t n = yyjson_get_sint(c->value);
    uint8_t bytes[256];
    char hex[513];
    if (!yyjson_is_int(c->value)) return answer(c, say(c->l, "%f", (double)(next_random(t) >> 11) * 0x1p-53));
    if (n < 1 || n > 256)
        return bad(c, say(c->l, "%d bytes; use 1 to 256, or no argument for a number in [0, 1)", n).p);
    for (int64_t i = 0; i < n; i++) bytes[i] = (uint8_t)(next_random(t) >> 32);
    hex_encode(bytes, (size_t)n, hex);
    return answer(c, say(c->l, "%z", hex));
}

/* ---- state ---- */

static enum op_outcome op_state_get(struct op_call *c) {
    if (c->value && !yyjson_is_str(c->value))
        return bad(c, "the argument is a JSON Pointer as a string, \"\" for the whole state");
    yyjson_mut_val *v = yyjson_mut_doc_ptr_getn(c->r->a->state, c->value ? yyjson_get_str(c->value) : "",
                                                yyjson_get_len(c->value));
    struct buf text = {0};
    if (v) json_write_mut(v, &text);
    return answer(c, v ? kept(c->l, &text) : STR("null"));
}

static enum op_outcome op_state_patch(struct op_call *c) {
    struct buf inverse = {0};
    if (state_patch(c->r->a, c->value, &inverse, &c->err) < 0) return refuse(c);
    struct str body = say(c->l, "{\"type\":\"state_patches\",\"patches\":%v,\"inversePatches\":%j", c->value,
                          buf_view(&inverse));
    buf_free(&inverse);
    c->r->a->patch_bytes += body.n;
    return journaled(c, body, "", NULL, STR("null"));
}

/* ---- what finishes later ---- */

static void begin_activity(struct op_call *c) {
    attempt_schedule(c->l, c->r, c->id, c->value);
}

static enum op_outcome op_activity(struct op_call *c) {
    yyjson_val *retry = yyjson_obj_get(c->value, "retry");
    struct retry_policy policy = retry_default;
    if (retry_policy_read(retry, &policy, &c->err) < 0) return refuse(c);
    return journaled(c, say(c->l, "{\"type\":\"activity_scheduled\",\"activityId\":%u", c->id),
                     "name label version timeoutMs retry input!", begin_activity, STR_NONE);
}

static enum op_outcome op_timer(struct op_call *c) {
    int64_t delay = json_int(c->value, "delayMs", -1);
    if (delay < 0) return bad(c, "field delayMs is missing or negative: milliseconds until the timer fires");
    return journaled(c, say(c->l, "{\"type\":\"timer_set\",\"promise\":%u,\"delayMs\":%d", c->id, delay), "", NULL,
                     STR_NONE);
}

static void begin_wait(struct op_call *c) {
    mail_bind(c->l, c->r, c->id, json_str(c->value, "type"));
}

static enum op_outcome op_event_wait(struct op_call *c) {
    struct str type = json_str(c->value, "type");
    return journaled(c, say(c->l, "{\"type\":\"event_awaited\",\"promise\":%u,\"event\":%q", c->id, type), "timeoutMs",
                     begin_wait, STR_NONE);
}

/* ---- other actors ---- */

/* The actors that wait for this turn, and this one before them, as a JSON array. */
static struct str chain_with_self(struct op_call *c) {
    struct str chain = entry_field(c->r->a->turn->message, "chain");
    return chain.p ? say(c->l, "[%q,%j", c->r->a->name, (struct str){chain.p + 1, chain.n - 1})
                   : say(c->l, "[%q]", c->r->a->name);
}

/* Delivers what a live op sends; a refusal settles its promise, or is a log line when nobody waits. */
static void deliver(struct op_call *c) {
    struct actor *a = c->r->a;
    yyjson_val *message = look(c->l, a->turn->message);
    struct promise *p = turn_promise(a->turn, c->id); /* none: it goes one way */
    struct message m = {.to = say(c->l, "%j/%j", a->ns, c->to), .id = c->message, .sender = a->name};
    m.data = or_null(json_text_of(yyjson_obj_get(c->value, "input"), &c->l->scratch));
    m.event = p ? STR_NONE : json_str(c->value, "event");
    m.correlation = json_str(message, "correlationId");
    m.traceparent = json_str(message, "traceparent");
    m.delay_ms = json_int(c->value, "delayMs", 0);
    m.ttl_ms = json_int(c->value, "ttlMs", 0);
    m.priority = (int32_t)json_int(c->value, "priority", 0);
    m.spawn = p && p->kind == PROMISE_CHILD;
    if (p) m.reply_to = say(c->l, "{\"actor\":%q,\"turn\":%u,\"promise\":%u}", a->full, a->turn->number, c->id);
    if (p && !m.spawn) m.chain = chain_with_self(c);
    struct str quoted = say(c->l, "%q", c->to);
    bool member = m.chain.p && memmem(m.chain.p, m.chain.n, quoted.p, quoted.n);
    int rc = member ? error_set(&c->err, LOOM_E_DEADLOCK, "%.*s waits for this turn; the call would never return",
                                (int)c->to.n, c->to.p)
                    : mail_deliver(c->l, &m, &c->err);
    if (rc < 0 && !p)
        turn_log(c->l, c->r, LOG_ERROR, STR("message not delivered"),
                 say(c->l, "\"to\":%q,\"code\":%z,\"detail\":%z", c->to, c->err.code, c->err.message));
    else if (rc < 0)
        promise_done(c->l, c->r, c->id, false, error_text(c->l, &c->err), STR_NONE);
}

/* To whom the argument says, under an id of this place; false: it does not say. */
static bool address(struct op_call *c) {
    c->to = json_str(c->value, "to");
    c->message = place_id(c->l, c->r->a, "m", c->r->a->turn->ops_asked);
    return c->to.p && memchr(c->to.p, '/', c->to.n);
}

static enum op_outcome op_call(struct op_call *c) {
    if (!address(c)) return bad(c, "field to is not \"type/key\"");
    struct str body = say(c->l, "{\"type\":\"call_sent\",\"promise\":%u,\"messageId\":%q,\"to\":%q,\"timeoutMs\":%d",
                          c->id, c->message, c->to, json_int(c->value, "timeoutMs", 60000));
    return journaled(c, body, "delayMs priority ttlMs input!", deliver, STR_NONE);
}

static enum op_outcome op_send(struct op_call *c) {
    if (!address(c)) return bad(c, "field to is not \"type/key\"");
    return journaled(c, say(c->l, "{\"type\":\"message_sent\",\"messageId\":%q,\"to\":%q", c->message, c->to),
                     "event delayMs priority ttlMs input!", deliver, say(c->l, "%q", c->message));
}

static enum op_outcome op_spawn(struct op_call *c) {
    struct str type = json_str(c->value, "type"), key = json_str(c->value, "key");
    address(c);
    if (!key.p) key = place_id(c->l, c->r->a, "c", c->r->a->turn->ops_asked);
    c->to = say(c->l, "%j/%j", type, key);
    return journaled(
        c, say(c->l, "{\"type\":\"child_spawned\",\"promise\":%u,\"childId\":%q,\"actorType\":%q", c->id, c->to, type),
        "label input!", deliver, STR_NONE);
}

/* ---- waiting ---- */

static enum op_outcome op_await(struct op_call *c) {
    struct turn *t = c->r->a->turn;
    yyjson_val *list = yyjson_obj_get(c->value, "promises"), *v;
    struct str mode = json_str(c->value, "mode");
    bool any = str_eq(mode, STR("any"));
    size_t i, n = yyjson_arr_size(list);
    if (n == 0) return bad(c, "field promises is missing or empty: a list of promise ids");
    if (mode.p && !any && !str_eq(mode, STR("all")))
        return bad(c, say(c->l, "mode is %q; use \"all\" or \"any\"", mode).p);
    t->await = mem_grow(t->await, n * sizeof *t->await);
    yyjson_arr_foreach(list, i, n, v) {
        uint64_t id = yyjson_get_uint(v);
        if (id < 1 || id > t->promises_given)
            return bad(c, say(c->l, "there is no promise %u; this turn has given %u", id, t->promises_given).p);
        t->await[i] = (uint32_t)id;
    }
    t->await_count = n;
    t->await_any = any;
    return OP_WAIT;
}

static enum op_outcome op_suspend(struct op_call *c) {
    struct turn *t = c->r->a->turn;
    struct str reason = json_str(c->value, "reason");
    struct str body = say(c->l, "{\"type\":\"person_awaited\",\"promise\":%u,\"reason\":%q", c->id,
                          reason.p ? reason : STR("a person"));
    if (journaled(c, body, "", NULL, STR_NONE) == OP_ENDED) return OP_ENDED;
    t->await = mem_grow(t->await, sizeof *t->await);
    t->await[0] = (uint32_t)c->id;
    t->await_count = 1;
    t->await_any = true;
    return OP_WAIT;
}

static struct str settled(struct op_call *c, uint32_t id) {
    struct promise *p = turn_promise(c->r->a->turn, id);
    return say(c->l, "{\"promise\":%u,\"%s\":%j}", (uint64_t)id, p->ok ? "ok" : "error", p->result);
}

enum op_outcome op_await_result(struct op_call *c) {
    struct turn *t = c->r->a->turn;
    uint64_t entry = turn_settled(t);
    if (entry == t->cancel_at) {
        t->now = t->cancel_ms > t->now ? t->cancel_ms : t->now;
        t->cancel_at = ENTRY_NEVER;
        error_set(&c->err, LOOM_E_CANCELLED, "the turn was cancelled; clean up and return");
        return refuse(c);
    }
    struct promise *last = NULL;
    struct buf all = {0};
    for (size_t i = 0; i < t->await_count; i++) {
        struct promise *p = turn_promise(t, t->await[i]);
        if (p->done_at <= entry && p->done_ms > t->now) t->now = p->done_ms;
        last = p->done_at == entry ? p : last;
        if (!t->await_any) buf_json(&all, "%s%j", i ? "," : "[", settled(c, t->await[i]));
    }
    buf_char(&all, ']');
    struct str list = kept(c->l, &all);
    assert(last && "a settled await has a promise that settled it");
    if (last->kind != PROMISE_SUSPEND)
        return answer(c, t->await_any ? settled(c, (uint32_t)(last - t->promises) + 1) : list);
    answer(c, say(c->l, "%j", last->result));
    return last->ok ? OP_OK : OP_ERROR;
}

static enum op_outcome op_cancel(struct op_call *c) {
    uint64_t id = (uint64_t)json_int(c->value, "promise", 0);
    if (id < 1 || id > c->r->a->turn->promises_given) return bad(c, say(c->l, "there is no promise %u", id).p);
    if (!journal_replaying(c->r->a)) promise_abandon(c->l, c->r, id);
    return journaled(c, say(c->l, "{\"type\":\"promise_cancelled\",\"promise\":%u", id), "", NULL, STR("null"));
}

/* ---- saying ---- */

struct line {
    struct item item;
    enum log_level level;
    struct str fields, msg;
};

static void line_release(struct loom *l, struct item *item) {
    struct line *line = (struct line *)item;
    (void)l;
    if (item->committed) log_event(line->level, line->msg.p, "%j", line->fields);
    item_free(item);
}

void turn_log(struct loom *l, const struct resident *r, enum log_level level, struct str msg, struct str more) {
    struct line *line = item_new(sizeof *line);
    line->level = level;
    line->msg = arena_dup(&line->item.mem, msg);
    line->fields = arena_json(&line->item.mem, "\"actor\":%q,\"correlationId\":%Q,%j", r->a->full,
                              json_str(look(l, r->a->turn->message), "correlationId"), more);
    effect_add(l, &line->item, line_release);
}

static enum op_outcome op_log(struct op_call *c) {
    enum log_level level = log_level_of(json_str(c->value, "level"));
    struct str msg = json_str(c->value, "msg");
    if (!journal_replaying(c->r->a) && log_on(level))
        turn_log(c->l, c->r, level, msg.p ? msg : STR("guest"), say(c->l, "\"guest\":%v", c->value));
    return answer(c, STR("null"));
}

static enum op_outcome op_emit(struct op_call *c) {
    return journaled(c, STR("{\"type\":\"emitted\""), "channel data!", NULL, STR("null"));
}

/* ---- ending ---- */

/* An ending's argument is arbitrary JSON; what is not JSON, or not as the schema says, fails the turn. */
static enum op_outcome op_end(struct op_call *c) {
    enum turn_end how = c->name.p[0] == 'r' ? END_RETURN : c->name.p[0] == 'f' ? END_FINISH : END_CONTINUE;
    struct buf value = {0};
    struct error why;
    int rc = 0;
    if (c->arg.n > BODY_MAX)
        rc = error_set(&c->err, LOOM_E_INVALID_OUTPUT, "the value given to %.*s has %zu bytes; at most %d are allowed",
                       (int)c->name.n, c->name.p, c->arg.n, BODY_MAX);
    else if (json_normalize(c->arg.n ? c->arg : STR("null"), &value, &why) < 0)
        rc = error_set(&c->err, LOOM_E_INVALID_OUTPUT,
                       "the value given to %.*s is not JSON (%.300s); it begins with %.*s", (int)c->name.n, c->name.p,
                       why.message, (int)(c->arg.n < 80 ? c->arg.n : 80), c->arg.p);
    else if (how != END_CONTINUE)
        rc = definition_check(c->r->definition, false, buf_view(&value), &c->err);
    turn_end(c->l, c->r, rc < 0 ? END_FAIL : how, rc < 0 ? error_text(c->l, &c->err) : buf_view(&value));
    buf_free(&value);
    return OP_ENDED;
}

static enum op_outcome op_fail(struct op_call *c) {
    struct str code = json_str(c->value, "code"), message = json_str(c->value, "message");
    struct buf error = {0};
    buf_json(&error, "{\"code\":%q,\"message\":%q,\"retryable\":%b", code.p ? code : STR("failed"),
             message.p ? message : STR(""), json_bool(c->value, "retryable", false));
    add_fields(c, "detail", &error);
    buf_char(&error, '}');
    turn_end(c->l, c->r, END_FAIL, kept(c->l, &error));
    return OP_ENDED;
}

/* ---- the table ---- */

/* The argument's form is what its doc begins with: '{' an object, '[' an array, nothing: not looked at. A first field that
 * is described by a string must be one. An ending's argument is op_end's to read. */
static const struct op_row {
    const char *name;
    enum op_outcome (*fn)(struct op_call *c);
    const char *argument, *doc;
} actor_ops[] = {
    {"input", op_input, "", "The message's data."},
    {"state.get", op_state_get, "\"/pointer\"", "The value at a JSON Pointer of the state, or null."},
    {"state.patch", op_state_patch, "[RFC 6902 operations]",
     "Changes the state; the journal keeps the patch and its inverse. Returns null."},
    {"activity", op_activity, "{name: \"…\", input?, version?, timeoutMs?, retry?, label?}",
     "Starts an activity. Returns a promise."},
    {"await", op_await, "{promises: [id…], mode?: \"all\"|\"any\"}",
     "Waits. Returns an array of, or one, {promise, ok} or {promise, error}."},
    {"actor.call", op_call, "{to: \"type/key\", input?, timeoutMs?, delayMs?, priority?, ttlMs?}",
     "Sends a message and returns a promise of its reply."},
    {"actor.send", op_send, "{to: \"type/key\", input?, event?, delayMs?, priority?, ttlMs?}",
     "Sends a message or an event. Returns the message id."},
    {"child.spawn", op_spawn, "{type: \"…\", key?, input?, label?}",
     "Starts a new run. Returns a promise of its result."},
    {"event.wait", op_event_wait, "{type: \"…\", timeoutMs?}", "Returns a promise of the next event of the type."},
    {"timer", op_timer, "{delayMs}", "Returns a promise that is kept after delayMs."},
    {"cancel", op_cancel, "{promise}", "Gives up a promise and stops what it started."},
    {"suspend", op_suspend, "{reason?}", "Waits until someone resumes the actor. Returns the resume's data."},
    {"self", op_self, "", "{id, namespace, type, key, messageId, sender, parentActorId, correlationId, attempt}."},
    {"config", op_config, "", "The definition's config, or null."},
    {"now", op_now, "", "Milliseconds since 1970: the latest moment that the journal has shown this guest."},
    {"random", op_random, "n?", "A number in [0, 1), or n bytes in hex; the same in every replay."},
    {"log", op_log, "{level?, msg?, …}", "A log line, once its batch has committed."},
    {"emit", op_emit, "{channel: \"…\", data?}", "An event for those who watch the stream."},
    {"return", op_end, "value", "Ends the turn with a reply. Does not come back."},
    {"finish", op_end, "value", "Ends the turn and completes the actor. Does not come back."},
    {"continue", op_end, "input",
     "Ends the turn without a reply and starts the next one with the input. Does not come back."},
    {"fail", op_fail, "{code?, message?, retryable?, detail?}",
     "Fails the turn: the state goes back to its start. Does not come back."},
};

enum { ACTOR_OPS = sizeof actor_ops / sizeof *actor_ops };

static bool fits(yyjson_val *value, const char *form) {
    size_t n = strcspn(form, ":,}?");
    yyjson_val *first = yyjson_obj_getn(value, form + 1, n ? n - 1 : 0);
    if (form[0] == '[') return yyjson_is_arr(value);
    bool text = strncmp(form + n, ": \"", 3) == 0, said = yyjson_is_str(first) && yyjson_get_len(first) > 0;
    return form[0] != '{' || (yyjson_is_obj(value) && (said || !text));
}

enum op_outcome op_run(struct op_call *c) {
    const struct op_row *row = actor_ops;
    while (row < actor_ops + ACTOR_OPS && !str_is(c->name, row->name)) row++;
    metric_add(METRIC_OPS, 1);
    if (row == actor_ops + ACTOR_OPS) {
        error_set(&c->err, LOOM_E_UNKNOWN_OP, "actors have no op \"%.*s\"; see `loom help ops`",
                  (int)(c->name.n < 64 ? c->name.n : 64), c->name.p);
        turn_trapped(c->l, c->r, &c->err);
        return OP_ENDED;
    }
    if (row->fn == op_end) return op_end(c);
    if (c->arg.n > BODY_MAX)
        return bad(c, say(c->l, "the argument has %u bytes; at most %u are allowed", c->arg.n, (uint64_t)BODY_MAX).p);
    yyjson_doc *doc = NULL;
    struct error why;
    if (row->argument[0] && c->arg.n > 0 && !(doc = json_parse(c->arg, &why)))
        return bad(c, say(c->l, "the argument is not JSON: %s", why.message).p);
    c->value = yyjson_doc_get_root(doc);
    c->id = c->r->a->turn->promises_given + 1;
    enum op_outcome o = fits(c->value, row->argument) ? row->fn(c)
                                                      : bad(c, say(c->l, "the argument is not %s", row->argument).p);
    yyjson_doc_free(doc);
    return o;
}

const struct loom_op_doc *actor_op_docs(void) {
    static struct loom_op_doc docs[ACTOR_OPS + 1];
    for (size_t i = 0; i < ACTOR_OPS; i++)
        docs[i] = (struct loom_op_doc){actor_ops[i].name, actor_ops[i].argument, actor_ops[i].doc};
    return docs;
}
