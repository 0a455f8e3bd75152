/* journal.c: the ordered entries of an actor, and the one function that lets an entry change a turn.
 *
 * An entry is {"type", …, "at"}. Types marked `op` were caused by a guest's op, in program order; a replaying guest must
 * repeat them word for word (without `at`). Types with an id field open, retry or settle a promise. The rest is history.
 * A row holds all entries that one batch added: {"prev":CHECKSUM OF THE ROW BEFORE,"entries":[…]}, under the actor's id,
 * NUL, and the first entry's number in 16 hex digits. Entry numbers are dense from 1.
 * Not here: what follows from an entry (messages, attempts, timers); the runtime does that once, when it is live.
 */
#include "actor/actor.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum act { ACT_NONE, ACT_START, ACT_OPEN, ACT_RETRY, ACT_OK, ACT_ERROR, ACT_DROP, ACT_SUSPEND, ACT_CANCEL, ACT_END };

struct entry_type {
    const char *name;
    bool op;
    enum act act;
    enum promise_kind kind; /* of the promise that it opens, retries or settles */
};

static const struct entry_type entry_types[] = {
    {"activity_scheduled", true, ACT_OPEN, PROMISE_ACTIVITY},
    {"activity_completed", false, ACT_OK, PROMISE_ACTIVITY},
    {"state_patches", true, ACT_NONE, 0},
    {"turn_started", false, ACT_START, 0},
    {"turn_completed", false, ACT_END, 0},
    {"turn_finished", false, ACT_END, 0},
    {"turn_continued", false, ACT_END, 0},
    {"turn_failed", false, ACT_END, 0},
    {"turn_cancelled", false, ACT_END, 0},
    {"activity_failed", false, ACT_ERROR, PROMISE_ACTIVITY},
    {"activity_retry", false, ACT_RETRY, PROMISE_ACTIVITY},
    {"call_sent", true, ACT_OPEN, PROMISE_CALL},
    {"call_completed", false, ACT_OK, PROMISE_CALL},
    {"call_failed", false, ACT_ERROR, PROMISE_CALL},
    {"message_sent", true, ACT_NONE, 0},
    {"child_spawned", true, ACT_OPEN, PROMISE_CHILD},
    {"child_completed", false, ACT_OK, PROMISE_CHILD},
    {"child_failed", false, ACT_ERROR, PROMISE_CHILD},
    {"event_awaited", true, ACT_OPEN, PROMISE_EVENT},
    {"event_received", false, ACT_OK, PROMISE_EVENT},
    {"event_timed_out", false, ACT_ERROR, PROMISE_EVENT},
    {"timer_set", true, ACT_OPEN, PROMISE_TIMER},
    {"timer_fired", false, ACT_OK, PROMISE_TIMER},
    {"suspended", false, ACT_SUSPEND, 0},
    {"person_awaited", true, ACT_OPEN, PROMISE_SUSPEND},
    {"resumed", false, ACT_OK, PROMISE_SUSPEND},
    {"promise_cancelled", true, ACT_DROP, 0},
    {"cancel_requested", false, ACT_CANCEL, 0},
    {"emitted", true, ACT_NONE, 0},
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

/* ---- the turn ---- */

static uint64_t hex_word(struct str s, size_t at) {
    char digits[17] = {0};
    if (s.n >= at + 16) memcpy(digits, s.p + at, 16);
    return strtoull(digits, NULL, 16);
}

static void turn_open(struct actor *a, yyjson_val *entry, struct str text, uint64_t number) {
    struct turn *t = mem_alloc(sizeof *t);
    t->started = yyjson_read(text.p, text.n, YYJSON_READ_BIGNUM_AS_RAW);
    t->number = (uint64_t)json_int(entry, "turn", 0);
    t->attempt = (int32_t)json_int(entry, "attempt", 1);
    t->first = number;
    t->row = a->row;
    a->last_turn = number;
    a->last_row = a->row;
    t->at = t->now = json_int(entry, "at", 0);
    t->cancel_at = ENTRY_NEVER;
    struct str seed = json_str(entry, "seed");
    for (int i = 0; i < 2; i++) t->random[i] = t->seed[i] = hex_word(seed, (size_t)i * 16);
    turn_free(a->turn);
    a->turn = t;
    a->turns = t->number;
}

void turn_free(struct turn *t) {
    if (!t) return;
    for (size_t i = 0; i < t->promise_count; i++) {
        free(t->promises[i].result);
        free(t->promises[i].entry);
    }
    free(t->promises);
    free(t->ops);
    free(t->await);
    buf_free(&t->before);
    arena_free(&t->op_text);
    yyjson_doc_free(t->started);
    free(t);
}

struct promise *turn_promise(struct turn *t, uint64_t id) {
    return id >= 1 && id <= t->promise_count ? &t->promises[id - 1] : NULL;
}

yyjson_val *turn_message(const struct turn *t) {
    return yyjson_obj_get(yyjson_doc_get_root(t->started), "message");
}

/* The text of an entry without its last field, `at`, and its closing brace. */
static struct str without_at(struct str text) {
    const char *at = memrchr(text.p, ',', text.n);
    size_t n = at && strncmp(at, ",\"at\":", 6) == 0 ? (size_t)(at - text.p) : text.n - 1;
    return (struct str){text.p, n};
}

/* The value of the last field before `at`, as it stands; all fields before it are scalars. */
static struct str value_of(struct str text, struct str name) {
    const char *field = memmem(text.p, text.n, name.p, name.n);
    size_t from = field ? (size_t)(field - text.p) + name.n : 0;
    return field ? (struct str){text.p + from, without_at(text).n - from} : STR("null");
}

static void promise_open(struct turn *t, enum promise_kind kind, yyjson_val *entry, struct str text) {
    if (t->promise_count == t->promise_cap) {
        t->promise_cap = t->promise_cap ? t->promise_cap * 2 : 4;
        t->promises = mem_grow(t->promises, t->promise_cap * sizeof *t->promises);
    }
    struct promise *p = &t->promises[t->promise_count++];
    *p = (struct promise){.kind = kind, .done_at = ENTRY_NEVER, .attempt = 1};
    int64_t span = json_int(entry, kind == PROMISE_TIMER ? "delayMs" : "timeoutMs", 0);
    p->deadline = span > 0 || kind == PROMISE_TIMER ? json_int(entry, "at", 0) + span : 0;
    p->entry = str_dup(text);
    p->entry_n = text.n;
}

static void promise_settle(struct promise *p, bool ok, struct str value, uint64_t number, int64_t at) {
    if (!p || p->done_at != ENTRY_NEVER) return;
    p->ok = ok;
    p->done_at = number;
    p->done_ms = at;
    p->result = str_dup(value);
    p->result_n = value.n;
    free(p->entry);
    p->entry = NULL;
}

static const char error_cancelled[] = "{\"code\":\"cancelled\",\"message\":\"it was cancelled\",\"retryable\":false}";

static void promise_retry(struct promise *p, yyjson_val *entry) {
    if (!p || p->done_at != ENTRY_NEVER) return;
    p->attempt = (int32_t)json_int(entry, "attempt", 1);
    p->interrupted = (int32_t)json_int(entry, "interrupted", 0);
    p->due = json_int(entry, "due", 0);
}

static void cancel_all(struct turn *t, uint64_t number, int64_t at) {
    t->cancelled = true;
    t->cancel_at = number;
    t->cancel_ms = at;
    for (size_t i = 0; i < t->promise_count; i++)
        promise_settle(&t->promises[i], false, str_of(error_cancelled), number, at);
}

/* Keeps an op's text so that the replaying guest can be held against it. */
static void record_op(struct turn *t, struct str text, uint64_t number) {
    if (t->op_count == t->op_cap) {
        t->op_cap = t->op_cap ? t->op_cap * 2 : 16;
        t->ops = mem_grow(t->ops, t->op_cap * sizeof *t->ops);
    }
    t->ops[t->op_count++] = (struct recorded){arena_dup(&t->op_text, without_at(text)), number};
}

static void turn_close(struct actor *a, bool loading) {
    if (loading) state_patch_recorded(a->state, a->turn, 0, a->state_at);
    turn_free(a->turn);
    a->turn = NULL;
}

static void fold(struct actor *a, yyjson_val *entry, struct str text, uint64_t number, bool loading) {
    const struct entry_type *type = find_type(json_str(entry, "type"));
    int64_t at = json_int(entry, "at", 0);
    a->at = at;
    if (type && type->act == ACT_START) turn_open(a, entry, text, number);
    struct turn *t = a->turn;
    if (!type || !t) return;
    t->at = at;
    t->entries++;
    if (type->op) t->suspend_written = false;
    if (loading && type->op) record_op(t, text, number);
    struct promise *p = turn_promise(t, (uint64_t)json_int(entry, promise_field(type->kind), 0));
    switch (type->act) {
    case ACT_OPEN: promise_open(t, type->kind, entry, text); break;
    case ACT_RETRY: promise_retry(p, entry); break;
    case ACT_OK: promise_settle(p, true, value_of(text, STR(",\"result\":")), number, at); break;
    case ACT_ERROR: promise_settle(p, false, value_of(text, STR(",\"error\":")), number, at); break;
    case ACT_DROP: promise_settle(p, false, str_of(error_cancelled), number, at); break;
    case ACT_SUSPEND: t->suspend_written = true; break;
    case ACT_CANCEL: cancel_all(t, number, at); break;
    case ACT_END: turn_close(a, loading); break;
    case ACT_NONE:
    case ACT_START: break;
    }
}

bool turn_settled(const struct turn *t, uint64_t *entry, bool *cancel) {
    uint64_t done = t->await_any ? ENTRY_NEVER : 0;
    for (size_t i = 0; i < t->await_count; i++) {
        uint64_t at = t->promises[t->await[i] - 1].done_at;
        bool better = t->await_any ? at < done : at > done;
        done = better ? at : done;
    }
    *cancel = t->cancel_at != ENTRY_NEVER && t->cancel_at <= done;
    *entry = *cancel ? t->cancel_at : done;
    return *entry != ENTRY_NEVER;
}

/* ---- writing ---- */

void journal_append(struct actor *a, int64_t now_ms, struct str body) {
    int64_t at = now_ms > a->at ? now_ms : a->at;
    if (a->tail_first == 0)
        a->row = a->tail_first = a->cursor + 1;
    else
        buf_char(&a->tail, ',');
    size_t start = a->tail.n;
    buf_json(&a->tail, "%j,\"at\":%d}", body, at);
    a->cursor++;
    struct str text = {a->tail.p + start, a->tail.n - start};
    yyjson_doc *doc = yyjson_read(text.p, text.n, YYJSON_READ_BIGNUM_AS_RAW);
    assert(doc && "an entry is JSON");
    fold(a, yyjson_doc_get_root(doc), text, a->cursor, false);
    if (a->turn) a->turn->bytes += text.n;
    yyjson_doc_free(doc);
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
                         "entry %" PRIu64 " of %s is %.*s} but the program now asks for %.*s}; deploy the version that "
                         "wrote it, then resume, or cancel",
                         op->number, a->id, (int)(op->text.n < 350 ? op->text.n : 350), op->text.p,
                         (int)(body.n < 350 ? body.n : 350), body.p);
    if (++t->op_next == t->op_count) {
        t->op_next = t->op_count = 0;
        arena_free(&t->op_text);
    }
    return 1;
}

struct str journal_key(struct arena *mem, struct str actor_id, uint64_t number) {
    char digits[17];
    snprintf(digits, sizeof digits, "%016" PRIx64, number);
    return arena_json(mem, "%j%j%s", actor_id, STR("\0"), digits);
}

uint64_t journal_key_number(struct str key) {
    return key.n > 16 ? hex_word(key, key.n - 16) : 0;
}

void journal_row(const struct actor *a, struct buf *out) {
    char prev[17];
    snprintf(prev, sizeof prev, "%016" PRIx64, a->chain);
    buf_json(out, "{\"prev\":%z,\"entries\":[%j]}", prev, buf_view(&a->tail));
}

int journal_load(struct actor *a, struct str key, struct str row, struct error *err) {
    uint64_t number = journal_key_number(key);
    yyjson_doc *doc = yyjson_read(row.p, row.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *root = yyjson_doc_get_root(doc), *entries = yyjson_obj_get(root, "entries"), *entry;
    bool first = number == a->from;
    bool linked = first || (number == a->cursor + 1 && hex_word(json_str(root, "prev"), 0) == a->chain);
    if (!yyjson_is_arr(entries) || !linked) {
        yyjson_doc_free(doc);
        return error_set(
            err, LOOM_E_DAMAGED,
            "the journal of %s is broken at entry %" PRIu64 ": %s; the actor is stopped, its bytes are kept", a->id,
            number, linked ? "the row has no entries" : "the row does not follow the one before it");
    }
    a->row = number;
    a->cursor = number - 1;
    struct buf text = {0};
    size_t i, n;
    yyjson_arr_foreach(entries, i, n, entry) {
        buf_clear(&text);
        json_write(entry, &text);
        fold(a, entry, buf_view(&text), ++a->cursor, true);
        if (a->turn) a->turn->bytes += text.n;
    }
    buf_free(&text);
    a->chain = hash64(row, 0);
    yyjson_doc_free(doc);
    return 0;
}
