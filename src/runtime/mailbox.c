/* mailbox.c: messages that wait for an actor, and deduplication.
 *
 * A message is a row until its turn starts (then the journal has it) or an open wait takes it. Row key: 'm' (activate) or
 * 'e' (event), the actor's id, NUL, priority and arrival in hex, so that key order is mailbox order; 'd' for dead letters.
 * A message from outside also has a dedup row (kind inbox): the hash of its input, its status and, once known, the reply.
 * Messages between actors need none: they leave and arrive in one batch.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

enum { MAILBOX_MAX = 10000 };

static struct str mail_key(struct loom *l, struct str actor, bool event, int32_t priority, uint64_t arrival) {
    struct str first = say(l, "%x", (uint64_t)((uint32_t)priority ^ 0x80000000u));
    return say(l, "%s%j%j%s%x", event ? "e" : "m", actor, STR("\0"), first.p + 8, arrival);
}

/* The message id first: those that Loom makes rise with time, so that their rows lie together on the disk. */
struct str dedup_key(struct loom *l, struct str actor, struct str message_id) {
    return say(l, "%j\n%j", message_id, actor);
}

/* ---- in memory ---- */

static void mail_insert(struct resident *r, struct mail m) {
    r->mail = mem_room(r->mail, r->mail_count, sizeof *r->mail);
    size_t i = r->mail_count++;
    for (; i > 0 && str_cmp(m.key, r->mail[i - 1].key) < 0; i--) r->mail[i] = r->mail[i - 1];
    r->mail[i] = m;
}

static struct mail mail_read(struct str key, struct str text) {
    struct mail m = {0};
    m.key = arena_dup(&m.mem, key);
    m.doc = json_in(&m.mem, text);
    yyjson_val *meta = yyjson_obj_get(m.doc, "metadata");
    m.id = json_str(m.doc, "messageId");
    m.event = key.p[0] == 'e' ? json_str(yyjson_obj_get(m.doc, "payload"), "eventType") : STR_NONE;
    m.due = json_int(m.doc, "due", 0);
    int64_t ttl = json_int(meta, "ttl", 0);
    m.expires = ttl > 0 ? json_int(meta, "timestamp", 0) + ttl : 0;
    return m;
}

static bool load_row(void *ctx, struct str key, struct str value) {
    mail_insert(ctx, mail_read(key, value));
    return true;
}

int mail_load(struct loom *l, struct resident *r, struct error *err) {
    int rc = rows_prefix(l, ROW_MAILBOX, say(l, "e%j%j", r->a->full, STR("\0")), load_row, r, err);
    return rc < 0 ? rc : rows_prefix(l, ROW_MAILBOX, say(l, "m%j%j", r->a->full, STR("\0")), load_row, r, err);
}

void mail_free(struct resident *r) {
    for (size_t i = 0; i < r->mail_count; i++) arena_free(&r->mail[i].mem);
    free(r->mail);
}

void mail_remove(struct loom *l, struct resident *r, struct mail *m) {
    rows_delete(l, ROW_MAILBOX, m->key);
    arena_free(&m->mem);
    memmove(m, m + 1, (size_t)(r->mail + --r->mail_count - m) * sizeof *m);
}

void mail_dead_letter(struct loom *l, struct resident *r, struct mail *m, const char *code, const char *why) {
    rows_put(l, ROW_MAILBOX, say(l, "d%j", (struct str){m->key.p + 1, m->key.n - 1}),
             say(l, "{\"reason\":%z,\"at\":%d,\"message\":%v}", code, loom_now(l), m->doc), true);
    log_event(LOG_WARN, "dead letter", "\"actor\":%q,\"correlationId\":%Q,\"messageId\":%q,\"reason\":%z,\"detail\":%z",
              r->a->full, json_str(m->doc, "correlationId"), m->id, code, why);
    metric_add(METRIC_DEAD_LETTERS, 1);
    resident_touch(l, r, false);
    reply_to(l, r, m->doc, m->id, false, say(l, "{\"code\":%z,\"message\":%z,\"retryable\":false}", code, why));
    mail_remove(l, r, m);
}

static void mail_expire(struct loom *l, struct resident *r) {
    int64_t now = loom_now(l);
    for (size_t i = 0; i < r->mail_count;)
        if (r->mail[i].expires && r->mail[i].expires <= now)
            mail_dead_letter(l, r, &r->mail[i], "expired", "its time to live ended before it was handled");
        else
            i++;
}

struct mail *mail_next(struct loom *l, struct resident *r, struct str event) {
    int64_t now = loom_now(l);
    mail_expire(l, r);
    for (size_t i = 0; i < r->mail_count; i++) {
        struct mail *m = &r->mail[i];
        bool wanted = event.p ? m->event.p && str_eq(m->event, event) : !m->event.p;
        if (wanted && m->due <= now) return m;
    }
    return NULL;
}

void mail_bind(struct loom *l, struct resident *r, uint64_t promise, struct str type) {
    struct mail *m = mail_next(l, r, type);
    if (!m) return;
    promise_done(l, r, promise, true, json_text_of(yyjson_ptr_get(m->doc, "/payload/data"), &l->scratch), m->id);
    mail_remove(l, r, m);
}

/* The event that an open wait waits for; .p NULL: the promise is none. */
static struct str awaited(struct loom *l, const struct promise *p) {
    if (p->kind != PROMISE_EVENT || p->done_at != ENTRY_NEVER) return STR_NONE;
    return json_str(look(l, p->entry), "event");
}

void mail_due(struct loom *l, struct resident *r) {
    mail_expire(l, r);
    for (uint64_t i = 1; r->a->turn && i <= r->a->turn->promise_count; i++) {
        struct str event = awaited(l, turn_promise(r->a->turn, i));
        if (event.p) mail_bind(l, r, i, event);
    }
}

/* ---- delivery ---- */

static struct str input_hash(struct loom *l, const struct message *m) {
    return say(l, "%x", hash64(m->data, hash64(m->event, 0)));
}

/* 1: the same message was here before; negative: another one was. */
static int duplicate(struct loom *l, const struct message *m, struct error *err) {
    struct str row;
    int rc = rows_load(l, ROW_INBOX, dedup_key(l, m->to, m->id), &row, err);
    if (rc <= 0 || SABOTAGE("no dedup")) return rc < 0 ? rc : 0;
    if (str_eq(json_str(look(l, row), "hash"), input_hash(l, m))) return 1;
    return error_set(err, LOOM_E_IDEMPOTENCY_CONFLICT,
                     "message id %.*s was used for %.*s with another input; use a new id for a new input", (int)m->id.n,
                     m->id.p, (int)m->to.n, m->to.p);
}

static struct str write_message(struct loom *l, const struct message *m, const struct resident *r, int64_t due) {
    struct buf b = {0};
    buf_json(&b, "{\"messageId\":%q,\"actorId\":%q,\"messageType\":%z,\"correlationId\":%q,", m->id, r->a->name,
             m->event.p ? "event" : "activate", m->correlation.p ? m->correlation : m->id);
    buf_json(&b, "\"payload\":{\"eventType\":%Q,\"data\":%j},", m->event, m->data);
    buf_json(&b, "\"metadata\":{\"timestamp\":%d,\"sender\":%Q,\"priority\":%d,\"ttl\":%d}", loom_now(l), m->sender,
             (int64_t)m->priority, m->ttl_ms);
    if (m->reply_to.p) buf_json(&b, ",\"replyTo\":%j", m->reply_to);
    if (m->chain.p) buf_json(&b, ",\"chain\":%j", m->chain);
    if (m->version.p) buf_json(&b, ",\"version\":%q", m->version);
    if (m->traceparent.p) buf_json(&b, ",\"traceparent\":%q", m->traceparent);
    buf_json(&b, ",\"due\":%d,\"attempt\":%d,\"outside\":%b}", due, (int64_t)(m->attempt ? m->attempt : 1), m->outside);
    return kept(l, &b);
}

/* The open wait that takes the event at once; 0: none. */
static uint64_t open_wait(struct loom *l, const struct resident *r, const struct message *m) {
    struct turn *t = r->a->turn;
    for (uint64_t i = 1; t && m->event.p && m->delay_ms == 0 && i <= t->promise_count; i++) {
        struct str event = awaited(l, turn_promise(t, i));
        if (event.p && str_eq(event, m->event)) return i;
    }
    return 0;
}

static int check_target(struct loom *l, const struct message *m, struct error *err) {
    struct str ns, type, key;
    if (actor_check_id(m->to, err) < 0) return LOOM_E_INVALID_ARGUMENT;
    actor_parts(m->to, &ns, &type, &key);
    struct definition *d = registry_find(l, "actor-type", ns, type, m->version, STR(""));
    if (!d)
        return error_set(err, LOOM_E_NOT_FOUND, "no actor type %s is deployed in namespace %.*s; deploy it first",
                         say(l, "%j%s%j", type, m->version.p ? " version " : "", m->version.p ? m->version : STR("")).p,
                         (int)ns.n, ns.p);
    return m->event.p ? 0 : definition_check(d, true, m->data, err);
}

static int check_actor(const struct message *m, const struct resident *r, bool waited_for, struct error *err) {
    if (m->spawn && r->a->created_at)
        return error_set(err, LOOM_E_EXISTS, "actor %s exists already; choose another key", r->a->id);
    if (r->a->status >= ACTOR_COMPLETED)
        return error_set(err, LOOM_E_CONFLICT, "actor %s is %s and takes no more messages", r->a->id,
                         actor_status_name(r->a->status));
    if (m->outside && !waited_for && r->mail_count >= MAILBOX_MAX)
        return error_set(err, LOOM_E_MAILBOX_FULL, "the mailbox of %s holds %d messages; try again later", r->a->id,
                         MAILBOX_MAX);
    return 0;
}

void mail_put(struct loom *l, struct resident *r, const struct message *m) {
    int64_t due = m->delay_ms > 0 ? loom_now(l) + m->delay_ms : 0;
    uint64_t arrival = loom_order(l);
    struct str key = mail_key(l, r->a->full, m->event.p != NULL, m->priority, arrival);
    struct str text = write_message(l, m, r, due);
    rows_put(l, ROW_MAILBOX, key, text, true);
    struct mail mail = mail_read(key, text);
    mail_insert(r, mail);
    if (due) alarm_set(l, due, ALARM_MAIL, r, arrival);
    if (mail.expires) alarm_set(l, mail.expires, ALARM_MAIL, r, arrival);
    if (!r->a->turn) resident_queue(l, r);
}

int mail_deliver(struct loom *l, struct message *m, struct error *err) {
    int rc = check_target(l, m, err);
    if (rc == 0 && m->outside && m->id.p) rc = duplicate(l, m, err);
    if (!m->id.p) m->id = message_id_new(l);
    if (rc != 0) return rc;
    struct resident *r = resident_get(l, m->to, true, err);
    uint64_t wait = r ? open_wait(l, r, m) : 0;
    if (!r || (rc = check_actor(m, r, wait, err)) != 0) return r ? rc : LOOM_E_STORE;
    if (r->a->created_at == 0) {
        r->a->created_at = loom_now(l);
        r->a->run = m->spawn || (m->outside && str_starts(r->a->type, STR("workflow.")));
        r->a->correlation = str_dup(m->correlation.p ? m->correlation : m->id);
        r->a->parent = m->spawn ? str_dup(m->sender) : NULL;
        r->document_dirty = true;
    }
    resident_touch(l, r, false);
    metric_add(METRIC_MESSAGES, 1);
    if (m->outside) {
        struct str hash = input_hash(l, m);
        rows_put(l, ROW_INBOX, dedup_key(l, m->to, m->id),
                 m->event.p ? say(l, "{\"hash\":%q,\"status\":\"completed\",\"at\":%d}", hash, loom_now(l))
                            : say(l, "{\"hash\":%q}", hash),
                 true);
    }
    if (wait) {
        promise_abandon(l, r, wait);
        promise_done(l, r, wait, true, m->data, m->id);
    } else {
        mail_put(l, r, m);
    }
    return 0;
}

/* ---- forgetting: a reply is known for 24 hours ---- */

enum { SWEEP_ROWS = 1000, DEDUP_MS = 24 * 3600 * 1000 };

struct sweep {
    struct loom *l;
    struct str next; /* where the next slice begins; .p NULL: the rows have ended */
    size_t seen;
};

static bool sweep_row(void *ctx, struct str key, struct str value) {
    struct sweep *s = ctx;
    if (s->seen++ == SWEEP_ROWS) {
        s->next = arena_dup(&s->l->scratch, key);
        return false;
    }
    yyjson_val *row = look(s->l, value);
    if (json_int(row, "at", INT64_MAX) <= loom_now(s->l) - DEDUP_MS && !str_eq(json_str(row, "status"), STR("queued")))
        rows_delete(s->l, ROW_INBOX, key);
    return true;
}

void mail_forget(struct loom *l) {
    int64_t now = l->env->mono_ms(l->env);
    if (now < l->sweep_at) return;
    struct sweep s = {.l = l};
    struct error err;
    struct str from = l->sweep_from ? str_of(l->sweep_from) : STR("");
    if (rows_scan(l, ROW_INBOX, from, STR_NONE, sweep_row, &s, &err) < 0)
        log_event(LOG_ERROR, "deduplication rows cannot be read", "\"detail\":%z", err.message);
    free(l->sweep_from);
    l->sweep_from = str_dup(s.next);
    l->sweep_at = now + (s.next.p ? 1000 : 60000);
}

/* ---- the end of a message ---- */

static void reply_outside(struct loom *l, const struct actor *a, struct str message_id, bool ok, struct str json) {
    struct str key = dedup_key(l, a->full, message_id), row = rows_get(l, ROW_INBOX, key);
    if (row.p)
        rows_put(l, ROW_INBOX, key,
                 say(l, "{\"hash\":%q,\"status\":%z,\"at\":%d,\"%s\":%j}", json_str(look(l, row), "hash"),
                     ok ? "completed" : "failed", loom_now(l), ok ? "reply" : "error", json),
                 false);
    waiters_answer(l, key, ok, json);
}

static void reply_to_actor(struct loom *l, yyjson_val *to, bool ok, struct str json) {
    uint64_t turn = (uint64_t)json_int(to, "turn", 0), id = (uint64_t)json_int(to, "promise", 0);
    struct resident *caller = promise_owner(l, json_str(to, "actor"), turn, id);
    if (caller) promise_done(l, caller, id, ok, json, STR_NONE);
}

void reply_to(struct loom *l, struct resident *r, yyjson_val *message, struct str message_id, bool ok,
              struct str json) {
    yyjson_val *to = yyjson_obj_get(message, "replyTo");
    if (to) reply_to_actor(l, to, ok, json);
    if (json_bool(message, "outside", false)) reply_outside(l, r->a, message_id, ok, json);
}
