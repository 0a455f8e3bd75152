/* mailbox.c: messages that wait for an actor, deduplication, and the callers that wait for a reply.
 *
 * A message is a row until its turn starts (then the journal has it) or an open wait takes it. Row key: 'm' (activate) or
 * 'e' (event), the actor's id, NUL, priority and arrival in hex, so that key order is mailbox order. `arrival` rises over
 * restarts because it begins with the batch's number.
 * A message from outside also has a dedup row (kind inbox): the hash of its input, its status and, once known, the reply.
 * Messages between actors need none: they leave and arrive in one batch.
 */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- rows ---- */

static void mail_key(struct str actor, bool event, int32_t priority, uint64_t arrival, struct buf *key) {
    char order[32];
    buf_char(key, event ? 'e' : 'm');
    buf_str(key, actor);
    int n = snprintf(order, sizeof order, "%c%08" PRIx32 "%016" PRIx64, '\0', (uint32_t)priority ^ 0x80000000u, arrival);
    buf_add(key, order, (size_t)n);
}

static void dedup_key(struct str actor, struct str message_id, struct buf *key) {
    buf_str(key, actor);
    buf_char(key, '\n');
    buf_str(key, message_id);
}

static int mail_order(const struct mail *a, const struct mail *b) {
    if (a->priority != b->priority)
        return a->priority < b->priority ? -1 : 1;
    return a->arrival < b->arrival ? -1 : 1;
}

static void mail_insert(struct resident *r, struct mail m) {
    if (r->mail_count == r->mail_cap) {
        r->mail_cap = r->mail_cap ? r->mail_cap * 2 : 4;
        r->mail = mem_grow(r->mail, r->mail_cap * sizeof *r->mail);
    }
    size_t i = r->mail_count++;
    for (; i > 0 && mail_order(&m, &r->mail[i - 1]) < 0; i--)
        r->mail[i] = r->mail[i - 1];
    r->mail[i] = m;
}

static char *field_dup(yyjson_val *obj, const char *key) {
    struct str s = json_str(obj, key);
    return s.p ? str_dup(s) : NULL;
}

static struct mail mail_read(struct str key, struct str text) {
    struct mail m = {.key = str_dup(key), .key_n = key.n, .text = str_dup(text), .text_n = text.n};
    yyjson_doc *doc = yyjson_read(text.p, text.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *root = yyjson_doc_get_root(doc), *meta = yyjson_obj_get(root, "metadata");
    m.id = field_dup(root, "messageId");
    m.event = key.p[0] == 'e' ? field_dup(yyjson_obj_get(root, "payload"), "eventType") : NULL;
    m.priority = (int32_t)json_int(meta, "priority", 0);
    m.arrival = key.n > 16 ? strtoull(m.key + key.n - 16, NULL, 16) : 0;
    m.due = json_int(root, "due", 0);
    int64_t ttl = json_int(meta, "ttl", 0);
    m.expires = ttl > 0 ? json_int(meta, "timestamp", 0) + ttl : 0;
    yyjson_doc_free(doc);
    return m;
}

static void mail_release(struct mail *m) {
    free(m->key);
    free(m->text);
    free(m->id);
    free(m->event);
}

static bool load_row(void *ctx, struct str key, struct str value) {
    mail_insert(ctx, mail_read(key, value));
    return true;
}

int mail_load(struct loom *l, struct resident *r, struct error *err) {
    int rc = 0;
    for (const char *kind = "em"; *kind && rc >= 0; kind++) {
        struct buf from = {0}, to = {0};
        buf_char(&from, *kind);
        buf_str(&from, r->a->full);
        buf_char(&from, '\0');
        rows_prefix_end(buf_view(&from), &to);
        rc = rows_scan(l, ROW_MAILBOX, buf_view(&from), buf_view(&to), load_row, r, err);
        buf_free(&from);
        buf_free(&to);
    }
    return rc;
}

void mail_free(struct resident *r) {
    for (size_t i = 0; i < r->mail_count; i++)
        mail_release(&r->mail[i]);
    free(r->mail);
}

void mail_remove(struct loom *l, struct resident *r, struct mail *m) {
    rows_delete(l, ROW_MAILBOX, (struct str){m->key, m->key_n});
    mail_release(m);
    size_t i = (size_t)(m - r->mail);
    memmove(m, m + 1, (--r->mail_count - i) * sizeof *m);
}

void mail_dead_letter(struct loom *l, struct resident *r, struct mail *m, struct str reason) {
    struct buf key = {0}, value = {0};
    buf_char(&key, 'd');
    buf_add(&key, m->key + 1, m->key_n - 1);
    buf_json(&value, "{\"reason\":%q,\"at\":%d,\"message\":%j}", reason, loom_now(l), (struct str){m->text, m->text_n});
    rows_put(l, ROW_MAILBOX, buf_view(&key), buf_view(&value), true);
    log_event(LOG_WARN, "dead letter", "\"actor\":%q,\"messageId\":%z,\"reason\":%q", r->a->full, m->id, reason);
    metric_add(METRIC_DEAD_LETTERS, 1);
    buf_clear(&value);
    buf_json(&value, "{\"code\":%q,\"message\":\"the message was given up\",\"retryable\":false}", reason);
    mail_replied(l, r->a, str_of(m->id), false, buf_view(&value));
    buf_free(&key);
    buf_free(&value);
    mail_remove(l, r, m);
}

static bool usable(struct loom *l, struct resident *r, struct mail *m, int64_t now) {
    if (m->expires == 0 || m->expires > now)
        return m->due <= now;
    mail_dead_letter(l, r, m, STR("expired"));
    return false;
}

static struct mail *first_usable(struct loom *l, struct resident *r, struct str event) {
    int64_t now = loom_now(l);
    for (size_t i = 0; i < r->mail_count;) {
        struct mail *m = &r->mail[i];
        size_t before = r->mail_count;
        bool wanted = event.p ? m->event && str_eq(str_of(m->event), event) : !m->event;
        if (wanted && usable(l, r, m, now))
            return m;
        i += r->mail_count == before; /* an expired one is gone: the next stands in its place */
    }
    return NULL;
}

struct mail *mail_next(struct loom *l, struct resident *r) {
    return first_usable(l, r, STR_NONE);
}

struct mail *mail_event(struct loom *l, struct resident *r, struct str type) {
    return first_usable(l, r, type);
}

/* ---- delivery ---- */

static void make_id(struct loom *l, struct buf *out) {
    uint8_t bytes[16];
    char hex[33];
    l->env->random(l->env, bytes, sizeof bytes);
    hex_encode(bytes, sizeof bytes, hex);
    buf_add(out, hex, 32);
}

static void input_hash(const struct message *m, char out[17]) {
    snprintf(out, 17, "%016" PRIx64, hash64(m->data, hash64(m->event, 0)));
}

/* 1: the same message was here before; negative: another one was. */
static int duplicate(struct loom *l, const struct message *m, struct str full, struct str id, struct error *err) {
    struct buf row = {0};
    int rc = message_status(l, full, id, &row, err);
    if (rc == 1) {
        char hash[17];
        input_hash(m, hash);
        yyjson_doc *doc = yyjson_read(row.p, row.n, YYJSON_READ_BIGNUM_AS_RAW);
        if (!str_eq(json_str(yyjson_doc_get_root(doc), "hash"), str_of(hash)))
            rc = error_set(err, LOOM_E_IDEMPOTENCY_CONFLICT, "message id %.*s was used for %.*s with another input; use a new id for a new input",
                           (int)id.n, id.p, (int)full.n, full.p);
        yyjson_doc_free(doc);
    }
    buf_free(&row);
    return rc;
}

static void write_message(struct loom *l, const struct message *m, struct resident *r, struct str id, int64_t due, struct buf *out) {
    buf_json(out, "{\"messageId\":%q,\"actorId\":%q,\"messageType\":%z,\"correlationId\":%q,\"payload\":{\"eventType\":%Q,\"data\":%j},", id, r->a->name,
             m->event.p ? "event" : "activate", m->correlation.p ? m->correlation : id, m->event, m->data);
    buf_json(out, "\"metadata\":{\"timestamp\":%d,\"sender\":%Q,\"priority\":%d,\"ttl\":%d}", loom_now(l), m->sender, (int64_t)m->priority, m->ttl_ms);
    if (m->reply_to.p)
        buf_json(out, ",\"replyTo\":%j", m->reply_to);
    if (m->chain.p)
        buf_json(out, ",\"chain\":%j", m->chain);
    if (m->version.p)
        buf_json(out, ",\"version\":%q", m->version);
    if (m->traceparent.p)
        buf_json(out, ",\"traceparent\":%q", m->traceparent);
    if (due)
        buf_json(out, ",\"due\":%d", due);
    if (m->attempt)
        buf_json(out, ",\"attempt\":%d", (int64_t)m->attempt);
    buf_json(out, ",\"outside\":%b}", m->outside || m->replied_outside);
}

/* An open wait of the event's type takes it at once. */
static bool bind_event(struct loom *l, struct resident *r, const struct message *m, struct str id) {
    struct turn *t = r->a->turn;
    for (uint64_t i = 1; t && !m->delay_ms && i <= t->promise_count; i++) {
        struct promise *p = turn_promise(t, i);
        if (p->kind != PROMISE_EVENT || p->done_at != ENTRY_NEVER)
            continue;
        yyjson_doc *doc = yyjson_read(p->entry, p->entry_n, 0);
        bool same = str_eq(json_str(yyjson_doc_get_root(doc), "event"), m->event);
        yyjson_doc_free(doc);
        if (!same)
            continue;
        promise_abandon(l, r, i);
        promise_event(l, r, i, id, m->data);
        return true;
    }
    return false;
}

static int check_target(struct loom *l, const struct message *m, struct error *err) {
    if (actor_check_name(m->ns, "the namespace", err) < 0 || actor_check_name(m->type, "the actor type", err) < 0 || actor_check_key(m->key, err) < 0)
        return LOOM_E_INVALID_ARGUMENT;
    struct definition *d = registry_find(l, "actor-type", m->ns, m->type, m->version);
    if (!d)
        return error_set(err, LOOM_E_NOT_FOUND, "no actor type %.*s%s%.*s is deployed in namespace %.*s; deploy it, or look at the names that are (loom actors, GET /v1/actor-types)",
                         (int)m->type.n, m->type.p, m->version.p ? " version " : "", (int)m->version.n, m->version.p ? m->version.p : "", (int)m->ns.n, m->ns.p);
    return m->event.p ? 0 : definition_check(d, true, m->data, err);
}

static int check_actor(const struct message *m, const struct resident *r, bool existed, struct error *err) {
    if (m->spawn && existed)
        return error_set(err, LOOM_E_EXISTS, "actor %s exists already; choose another key", r->a->id);
    if (r->a->status >= ACTOR_COMPLETED)
        return error_set(err, LOOM_E_CONFLICT, "actor %s is %s and takes no more messages", r->a->id, actor_status_name(r->a->status));
    if (m->outside && r->mail_count >= MAILBOX_MAX)
        return error_set(err, LOOM_E_MAILBOX_FULL, "the mailbox of %s holds %d messages; try again later", r->a->id, MAILBOX_MAX);
    return 0;
}

static void new_actor(struct resident *r, const struct message *m, struct str id, int64_t now) {
    r->a->created_at = now;
    r->a->run = m->run;
    r->a->correlation = str_dup(m->correlation.p ? m->correlation : id);
    r->a->parent = m->parent.p ? str_dup(m->parent) : NULL;
    r->document_dirty = true;
}

int mail_deliver(struct loom *l, const struct message *m, struct buf *id_out, struct error *err) {
    struct buf id = {0}, full = {0}, text = {0}, key = {0};
    int64_t now = loom_now(l), due = m->delay_ms > 0 ? now + m->delay_ms : 0;
    if (m->id.p)
        buf_str(&id, m->id);
    else
        make_id(l, &id);
    buf_json(&full, "%j/%j/%j", m->ns, m->type, m->key);
    int rc = m->again ? 0 : check_target(l, m, err);
    if (rc == 0 && m->outside && m->id.p)
        rc = duplicate(l, m, buf_view(&full), buf_view(&id), err);
    if (rc != 0)
        goto out;
    struct resident *r = resident_get(l, m->ns, m->type, m->key, true, err);
    rc = r ? check_actor(m, r, r->a->created_at != 0, err) : -1;
    if (rc != 0)
        goto out;
    if (r->a->created_at == 0)
        new_actor(r, m, buf_view(&id), now);
    resident_touch(l, r, false);
    if (m->outside) {
        char hash[17];
        input_hash(m, hash);
        dedup_key(r->a->full, buf_view(&id), &key);
        buf_json(&text, "{\"hash\":%z,\"status\":%z,\"at\":%d}", hash, m->event.p ? "completed" : "queued", now);
        rows_put(l, ROW_INBOX, buf_view(&key), buf_view(&text), true);
    }
    metric_add(METRIC_MESSAGES, 1);
    if (!m->event.p || !bind_event(l, r, m, buf_view(&id))) {
        buf_clear(&key);
        buf_clear(&text);
        mail_key(r->a->full, m->event.p != NULL, m->priority, (l->open_seq << 20) | l->arrivals++, &key);
        write_message(l, m, r, buf_view(&id), due, &text);
        rows_put(l, ROW_MAILBOX, buf_view(&key), buf_view(&text), true);
        mail_insert(r, mail_read(buf_view(&key), buf_view(&text)));
        if (due)
            alarm_set(l, due, ALARM_MAIL, r->a->full, 0, l->arrivals, true);
        if (m->ttl_ms > 0)
            alarm_set(l, now + m->ttl_ms, ALARM_MAIL, r->a->full, 0, l->arrivals, true);
        if (!m->event.p && !r->a->turn)
            resident_queue(l, r);
    }
out:
    if (rc >= 0)
        buf_str(id_out, buf_view(&id));
    buf_free(&id);
    buf_free(&full);
    buf_free(&text);
    buf_free(&key);
    return rc;
}

/* ---- replies ---- */

struct reply {
    loom_reply_fn fn;
    void *ctx;
    int status;
    struct buf body, message_id;
};

static struct loom_str lent(const struct buf *b) {
    return (struct loom_str){b->n ? b->p : NULL, b->n};
}

static void reply_release(struct loom *l, void *ctx, bool committed) {
    struct reply *r = ctx;
    if (!committed) {
        struct error err;
        error_set(&err, l->failed_code ? l->failed_code : LOOM_E_NOT_COMMITTED, "the store did not take the batch; repeat the request with the same message id");
        buf_clear(&r->body);
        error_json(&err, &r->body);
        r->status = error_status(str_of(err.code));
    }
    struct loom_reply out = {r->status, lent(&r->body), lent(&r->message_id)};
    r->fn(r->ctx, &out);
    buf_free(&r->body);
    buf_free(&r->message_id);
    free(r);
}

static void reply_queue(struct loom *l, loom_reply_fn fn, void *ctx, int status, struct str body, struct str message_id) {
    if (!fn)
        return;
    struct reply *r = mem_alloc(sizeof *r);
    *r = (struct reply){.fn = fn, .ctx = ctx, .status = status};
    buf_str(&r->body, body);
    buf_str(&r->message_id, message_id);
    effect_add(l, reply_release, r);
}

void reply_send(struct loom *l, const struct loom_request *req, int status, struct str body, struct str message_id) {
    reply_queue(l, req->reply, req->ctx, status, body, message_id);
}

void reply_error(struct loom *l, const struct loom_request *req, const struct error *err) {
    struct buf body = {0};
    error_json(err, &body);
    reply_send(l, req, error_status(str_of(err->code)), buf_view(&body), STR_NONE);
    buf_free(&body);
}

/* ---- callers that wait ---- */

struct waiter {
    struct waiter *next; /* of the same message */
    char *key;
    size_t key_n, actor_n;
    loom_reply_fn fn;
    void *ctx;
    int64_t deadline; /* monotonic */
    uint64_t seq;     /* batch that holds the message */
};

static struct str waiter_message(const struct waiter *w) {
    return (struct str){w->key + w->actor_n + 1, w->key_n - w->actor_n - 1};
}

void waiter_add(struct loom *l, const struct loom_request *req, struct str full_id, struct str message_id) {
    struct buf key = {0};
    dedup_key(full_id, message_id, &key);
    struct waiter *w = mem_alloc(sizeof *w);
    int64_t span = req->timeout_ms > 0 ? req->timeout_ms : 30000;
    *w = (struct waiter){map_get(&l->waiters, buf_view(&key)), key.p, key.n, full_id.n, req->reply, req->ctx, l->env->mono_ms(l->env) + span, l->open_seq};
    if (l->waiters.count == 0 || w->deadline < l->waiters_due)
        l->waiters_due = w->deadline;
    map_put(&l->waiters, (struct str){w->key, w->key_n}, w);
}

static void waiter_answer(struct loom *l, struct waiter *w, int status, struct str body) {
    reply_queue(l, w->fn, w->ctx, status, body, waiter_message(w));
    free(w->key);
    free(w);
}

/* Answers the waiters that `pick` chooses; the others stay. */
static void waiters_sift(struct loom *l, bool (*pick)(struct loom *, struct waiter *), int status, struct str body) {
    struct map old = l->waiters;
    struct waiter *w;
    l->waiters = (struct map){0};
    l->waiters_due = INT64_MAX;
    for (size_t i = 0; (w = map_next(&old, &i)) != NULL;)
        for (struct waiter *next; w; w = next) {
            next = w->next;
            struct str key = {w->key, w->key_n};
            if (pick(l, w)) {
                struct buf pending = {0};
                struct str message = waiter_message(w);
                if (!body.p)
                    buf_json(&pending, "{\"messageId\":%q,\"actorId\":%q}", message,
                             (struct str){strchr(w->key, '/') + 1, w->actor_n - (size_t)(strchr(w->key, '/') + 1 - w->key)});
                waiter_answer(l, w, status, body.p ? body : buf_view(&pending));
                buf_free(&pending);
                continue;
            }
            w->next = map_get(&l->waiters, key);
            map_put(&l->waiters, key, w);
            l->waiters_due = w->deadline < l->waiters_due ? w->deadline : l->waiters_due;
        }
    map_free(&old);
}

static bool pick_late(struct loom *l, struct waiter *w) {
    return w->deadline <= l->env->mono_ms(l->env);
}

static bool pick_uncommitted(struct loom *l, struct waiter *w) {
    return w->seq > l->committed;
}

static bool pick_all(struct loom *l, struct waiter *w) {
    (void)l;
    return w != NULL;
}

void waiters_timeout(struct loom *l) {
    if (l->waiters.count > 0 && l->env->mono_ms(l->env) >= l->waiters_due)
        waiters_sift(l, pick_late, 202, STR_NONE);
}

void waiters_fail(struct loom *l, bool all) {
    struct error err;
    struct buf body = {0};
    int code = all ? LOOM_E_STOPPING : l->failed_code;
    error_set(&err, code, all ? "Loom stops; the message is safe, ask for its reply after the restart" : "the store did not take the batch; repeat the request with the same message id");
    error_json(&err, &body);
    waiters_sift(l, all ? pick_all : pick_uncommitted, error_status(str_of(err.code)), buf_view(&body));
    buf_free(&body);
}

void mail_replied(struct loom *l, struct actor *a, struct str message_id, bool ok, struct str json) {
    struct buf key = {0}, row = {0}, value = {0};
    dedup_key(a->full, message_id, &key);
    if (rows_load(l, ROW_INBOX, buf_view(&key), &row, NULL) == 1) {
        yyjson_doc *doc = yyjson_read(row.p, row.n, YYJSON_READ_BIGNUM_AS_RAW);
        buf_json(&value, "{\"hash\":%q,\"status\":%z,\"at\":%d,\"%s\":%j}", json_str(yyjson_doc_get_root(doc), "hash"), ok ? "completed" : "failed", loom_now(l),
                 ok ? "reply" : "error", json);
        rows_put(l, ROW_INBOX, buf_view(&key), buf_view(&value), false);
        yyjson_doc_free(doc);
    }
    struct waiter *w = map_remove(&l->waiters, buf_view(&key));
    int status = 200;
    if (w && !ok) {
        yyjson_doc *doc = yyjson_read(json.p, json.n, YYJSON_READ_BIGNUM_AS_RAW);
        int known = error_status(json_str(yyjson_doc_get_root(doc), "code"));
        status = known >= 500 ? 422 : known;
        yyjson_doc_free(doc);
    }
    for (struct waiter *next; w; w = next) {
        next = w->next;
        waiter_answer(l, w, status, json);
    }
    buf_free(&key);
    buf_free(&row);
    buf_free(&value);
}

int message_status(struct loom *l, struct str full_id, struct str message_id, struct buf *out, struct error *err) {
    struct buf key = {0};
    dedup_key(full_id, message_id, &key);
    int rc = rows_load(l, ROW_INBOX, buf_view(&key), out, err);
    buf_free(&key);
    return rc;
}
