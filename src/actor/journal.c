/* journal.c: the ordered entries of an actor, and the one function that lets an entry change a turn.
 *
 * An entry is {"type", …, "at"}. Types marked `op` were caused by a guest's op, in program order; a replaying guest must
 * repeat them word for word (without `at`). Types with an id field open, retry or settle a promise. The rest is history.
 * A row holds the entries that one batch added (several rows when they are many): {"prev":CHECKSUM OF THE ROW BEFORE,
 * "entries":[…]}, under the actor's id, NUL, and the first entry's number in 16 hex digits. Entry numbers are dense from 1.
 * Not here: what follows from an entry (messages, attempts, timers); the runtime does that once, when it is live.
 */
#include "actor/actor.h"

#include <stdlib.h>
#include <string.h>

/* What an entry does to its turn. Up to ACT_DROP an op of the guest caused it, from ACT_DROP to ACT_ERROR it names a promise. */
enum act { ACT_NONE, ACT_OPEN, ACT_DROP, ACT_RETRY, ACT_OK, ACT_ERROR, ACT_START, ACT_SUSPEND, ACT_CANCEL, ACT_END };

struct entry_type {
    const char *name;
    enum act act;
    enum promise_kind kind; /* of the promise that it opens, retries or settles */
};

static const struct entry_type entry_types[] = {
    {"activity_scheduled", ACT_OPEN, PROMISE_ACTIVITY},
    {"activity_completed", ACT_OK, PROMISE_ACTIVITY},
    {"state_patches", ACT_NONE, 0},
    {"turn_started", ACT_START, 0},
    {"turn_completed", ACT_END, 0},
    {"turn_finished", ACT_END, 0},
    {"turn_continued", ACT_END, 0},
    {"turn_failed", ACT_END, 0},
    {"turn_cancelled", ACT_END, 0},
    {"activity_failed", ACT_ERROR, PROMISE_ACTIVITY},
    {"activity_retry", ACT_RETRY, PROMISE_ACTIVITY},
    {"call_sent", ACT_OPEN, PROMISE_CALL},
    {"call_completed", ACT_OK, PROMISE_CALL},
    {"call_failed", ACT_ERROR, PROMISE_CALL},
    {"message_sent", ACT_NONE, 0},
    {"child_spawned", ACT_OPEN, PROMISE_CHILD},
    {"child_completed", ACT_OK, PROMISE_CHILD},
    {"child_failed", ACT_ERROR, PROMISE_CHILD},
    {"event_awaited", ACT_OPEN, PROMISE_EVENT},
    {"event_received", ACT_OK, PROMISE_EVENT},
    {"event_timed_out", ACT_ERROR, PROMISE_EVENT},
    {"timer_set", ACT_OPEN, PROMISE_TIMER},
    {"timer_fired", ACT_OK, PROMISE_TIMER},
    {"suspended", ACT_SUSPEND, 0},
    {"person_awaited", ACT_OPEN, PROMISE_SUSPEND},
    {"resumed", ACT_OK, PROMISE_SUSPEND},
    {"promise_cancelled", ACT_DROP, 0},
    {"cancel_requested", ACT_CANCEL, 0},
    {"emitted", ACT_NONE, 0},
};

static const struct entry_type *find_type(struct str name) {
    for (size_t i = 0; i < sizeof entry_types / sizeof *entry_types; i++)
        if (str_is(name, entry_types[i].name)) return &entry_types[i];
    return NULL;
}

const char *promise_field(enum promise_kind kind) {
    return kind == PROMISE_ACTIVITY ? "activityId" : "promise";
}

const char *entry_settling(enum promise_kind kind, bool ok) {
    const struct entry_type *type = entry_types;
    while (type->kind != kind || type->act != (ok ? ACT_OK : ACT_ERROR)) type++;
    return type->name;
}

/* ---- fields of an entry: text that Loom wrote, minified, so that nothing has to be parsed for a look at it ---- */

/* The quote that ends the string whose first one is at p; `end` when there is none. */
static const char *string_end(const char *p, const char *end) {
    bool escaped = true;
    while (escaped && (p = memchr(p + 1, '"', (size_t)(end - p - 1))) != NULL) {
        escaped = false;
        for (const char *back = p; *--back == '\\';) escaped = !escaped;
    }
    return p ? p : end;
}

/* The ',', ':' or closing bracket behind the value that begins at p; `end` when there is none. */
static const char *value_end(const char *p, const char *end) {
    for (size_t depth = 0; p < end; p++) {
        if (*p == '"')
            p = string_end(p, end);
        else if (*p == '{' || *p == '[')
            depth++;
        else if (depth == 0 && (*p == ',' || *p == ':' || *p == '}' || *p == ']'))
            return p;
        else if (*p == '}' || *p == ']')
            depth--;
    }
    return end;
}

struct str entry_field(struct str object, const char *name) {
    const char *end = object.p + object.n, *colon, *stop;
    for (const char *p = object.p; p < end; p = stop) { /* at '{' or ',', then the name in quotes */
        colon = value_end(p + 1, end);
        stop = colon < end ? value_end(colon + 1, end) : end;
        if (stop > colon && colon - p >= 3 && str_is((struct str){p + 2, (size_t)(colon - p) - 3}, name))
            return (struct str){colon + 1, (size_t)(stop - colon) - 1};
    }
    return STR_NONE;
}

struct str entry_word(struct str object, const char *name) {
    struct str value = entry_field(object, name);
    return value.n > 2 && value.p[0] == '"' ? (struct str){value.p + 1, value.n - 2} : STR_NONE;
}

static int64_t integer(struct str digits) {
    uint64_t n = 0;
    for (size_t i = 0; i < digits.n && digits.p[i] >= '0' && digits.p[i] <= '9'; i++)
        n = n * 10 + (uint64_t)(digits.p[i] - '0');
    return (int64_t)n;
}

static int64_t field_int(struct str object, const char *name, int64_t absent) {
    struct str value = entry_field(object, name);
    return value.p ? integer(value) : absent;
}

/* ---- the turn ---- */

static uint64_t hex_word(struct str s, size_t at) {
    char digits[17] = {0};
    if (s.n >= at + 16) memcpy(digits, s.p + at, 16);
    return strtoull(digits, NULL, 16);
}

static void turn_open(struct actor *a, struct str entry, uint64_t number) {
    struct turn *t = mem_alloc(sizeof *t);
    t->started = (struct str){str_dup(entry), entry.n};
    t->message = entry_field(t->started, "message");
    t->number = (uint64_t)field_int(entry, "turn", 0);
    t->attempt = (int32_t)field_int(entry, "attempt", 1);
    t->now = a->at;
    t->cancel_at = ENTRY_NEVER;
    for (size_t i = 0; i < 2; i++) t->random[i] = hex_word(entry_word(entry, "seed"), i * 16);
    turn_free(a->turn);
    a->turn = t;
    a->turns = t->number;
    a->last_turn = number;
    a->last_row = a->row;
}

void turn_free(struct turn *t) {
    if (!t) return;
    for (size_t i = 0; i < t->promise_count; i++) {
        free((char *)t->promises[i].result.p);
        free((char *)t->promises[i].entry.p);
    }
    free(t->promises);
    free(t->ops);
    free(t->await);
    buf_free(&t->before);
    arena_free(&t->op_text);
    free((char *)t->started.p);
    free((char *)t->cancelled.p);
    free(t);
}

struct promise *turn_promise(struct turn *t, uint64_t id) {
    return id >= 1 && id <= t->promise_count ? &t->promises[id - 1] : NULL;
}

struct str entry_body(struct str text) {
    const char *at = memrchr(text.p, ',', text.n);
    return (struct str){text.p, at && strncmp(at, ",\"at\":", 6) == 0 ? (size_t)(at - text.p) : text.n - 1};
}

static struct str malloced(struct str s) {
    return (struct str){str_dup(s), s.n};
}

static void promise_open(struct turn *t, enum promise_kind kind, struct str entry, int64_t at) {
    t->promises = mem_room(t->promises, t->promise_count, sizeof *t->promises);
    struct promise *p = &t->promises[t->promise_count++];
    *p = (struct promise){.kind = kind, .done_at = ENTRY_NEVER, .attempt = 1};
    int64_t span = field_int(entry, kind == PROMISE_TIMER ? "delayMs" : "timeoutMs", 0);
    p->deadline = span > 0 || kind == PROMISE_TIMER ? at + span : 0;
    p->entry = malloced(entry);
}

static void promise_settle(struct promise *p, bool ok, struct str value, uint64_t number, int64_t at) {
    if (!p || p->done_at != ENTRY_NEVER) return;
    p->ok = ok;
    p->done_at = number;
    p->done_ms = at;
    p->result = malloced(value.p ? value : STR("null"));
    free((char *)p->entry.p);
    p->entry = STR_NONE;
}

static const char error_cancelled[] = "{\"code\":\"cancelled\",\"message\":\"it was cancelled\",\"retryable\":false}";

static void promise_retry(struct promise *p, struct str entry) {
    if (!p || p->done_at != ENTRY_NEVER) return;
    p->attempt = (int32_t)field_int(entry, "attempt", 1);
    p->interrupted = (int32_t)field_int(entry, "interrupted", 0);
    p->due = field_int(entry, "due", 0);
}

static void cancel_all(struct turn *t, struct str reason, uint64_t number, int64_t at) {
    free((char *)t->cancelled.p);
    t->cancelled = malloced(reason.p ? reason : STR("null"));
    t->cancel_at = number;
    t->cancel_ms = at;
    for (size_t i = 0; i < t->promise_count; i++)
        promise_settle(&t->promises[i], false, str_of(error_cancelled), number, at);
}

/* Keeps an op's text so that the replaying guest can be held against it. */
static void record_op(struct turn *t, struct str text, uint64_t number) {
    t->ops = mem_room(t->ops, t->op_count, sizeof *t->ops);
    t->ops[t->op_count++] = (struct recorded){arena_dup(&t->op_text, entry_body(text)), number};
}

static void turn_close(struct actor *a, bool loading) {
    if (loading) state_patch_rest(a, false);
    turn_free(a->turn);
    a->turn = NULL;
}

static void fold(struct actor *a, struct str entry, uint64_t number, int64_t at, bool loading) {
    const struct entry_type *type = find_type(entry_word(entry, "type"));
    a->at = at;
    if (type && type->act == ACT_START) turn_open(a, entry, number);
    struct turn *t = a->turn;
    if (!type || !t) return;
    t->entries++;
    t->bytes += entry.n;
    bool op = type->act <= ACT_DROP, of_promise = type->act >= ACT_DROP && type->act <= ACT_ERROR;
    if (op) t->suspended = 0;
    if (op && loading) record_op(t, entry, number);
    uint64_t id = of_promise ? (uint64_t)field_int(entry, promise_field(type->kind), 0) : 0;
    struct promise *p = turn_promise(t, id);
    switch (type->act) {
    case ACT_OPEN: promise_open(t, type->kind, entry, at); break;
    case ACT_RETRY: promise_retry(p, entry); break;
    case ACT_OK: promise_settle(p, true, entry_field(entry, "result"), number, at); break;
    case ACT_ERROR: promise_settle(p, false, entry_field(entry, "error"), number, at); break;
    case ACT_DROP: promise_settle(p, false, str_of(error_cancelled), number, at); break;
    case ACT_SUSPEND: t->suspended = number; break;
    case ACT_CANCEL: cancel_all(t, entry_field(entry, "reason"), number, at); break;
    case ACT_END: turn_close(a, loading); break;
    case ACT_NONE:
    case ACT_START: break;
    }
}

uint64_t turn_settled(const struct turn *t) {
    uint64_t done = t->await_any ? ENTRY_NEVER : 0;
    for (size_t i = 0; i < t->await_count; i++) {
        uint64_t at = t->promises[t->await[i] - 1].done_at;
        if (t->await_any ? at < done : at > done) done = at;
    }
    return t->cancel_at < done ? t->cancel_at : done;
}

/* ---- writing ---- */

void journal_append(struct actor *a, int64_t now_ms, struct str body) {
    int64_t at = now_ms > a->at ? now_ms : a->at;
    if (a->tail.n == 0) a->row = a->cursor + 1;
    buf_json(&a->tail, a->tail.n ? "," : a->chain ? "{\"prev\":\"%x\",\"entries\":[" : "{\"entries\":[", a->chain);
    size_t start = a->tail.n;
    buf_json(&a->tail, "%j,\"at\":%d}", body, at);
    a->cursor++;
    fold(a, (struct str){a->tail.p + start, a->tail.n - start}, a->cursor, at, false);
}

bool journal_replaying(const struct actor *a) {
    return a->turn->op_next < a->turn->op_count;
}

int journal_repeat(struct actor *a, struct str body, struct error *err) {
    struct turn *t = a->turn;
    if (t->op_next == t->op_count) return 0;
    struct recorded *op = &t->ops[t->op_next];
    if (!str_eq(op->text, body))
        return error_set(err, LOOM_E_MISMATCH,
                         "the program of %s asks for %.*s} where its entry %" PRIu64
                         " is %.*s}; deploy the version that wrote it, then resume, or cancel",
                         a->id, (int)(body.n < 350 ? body.n : 350), body.p, op->number,
                         (int)(op->text.n < 350 ? op->text.n : 350), op->text.p);
    if (++t->op_next == t->op_count) {
        t->op_next = t->op_count = 0;
        arena_free(&t->op_text);
    }
    return 1;
}

struct str journal_key(struct arena *mem, struct str actor_id, uint64_t number) {
    return arena_json(mem, "%j%j%x", actor_id, STR("\0"), number);
}

uint64_t journal_key_number(struct str key) {
    return key.n > 16 ? hex_word(key, key.n - 16) : 0;
}

struct str journal_row(struct actor *a) {
    buf_str(&a->tail, STR("]}"));
    a->chain = hash64(buf_view(&a->tail), 0);
    return buf_view(&a->tail);
}

int journal_load(struct actor *a, struct str key, struct str row, struct error *err) {
    uint64_t number = journal_key_number(key);
    struct str entries = entry_field(row, "entries");
    const char *end = entries.p + entries.n;
    bool list = entries.n >= 2 && entries.p[0] == '[' && end[-1] == ']', first = number == a->from;
    bool linked = first || (number == a->cursor + 1 && hex_word(entry_word(row, "prev"), 0) == a->chain);
    if (!list || !linked)
        return error_set(
            err, LOOM_E_DAMAGED,
            "the journal of %s is broken at entry %" PRIu64 ": %s; the actor is stopped, its bytes are kept", a->id,
            number, linked ? "the row has no entries" : "the row does not follow the one before it");
    a->row = number;
    a->cursor = number - 1;
    for (const char *p = entries.p + 1, *next; p < end && *p == '{'; p = next + 1) {
        next = value_end(p, end);
        struct str entry = {p, (size_t)(next - p)}, body = entry_body(entry);
        size_t at = body.n + sizeof ",\"at\":" - 1;
        fold(a, entry, ++a->cursor, at < entry.n ? integer((struct str){p + at, entry.n - at}) : a->at, true);
    }
    a->chain = hash64(row, 0);
    return 0;
}
