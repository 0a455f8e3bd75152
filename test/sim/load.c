/* load.c: the clients, what they ask for, and the bank. */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t roll(struct sim *s, uint64_t n) {
    return world_roll(&s->w, n);
}

/* ---- what is asked for, and what must come of it ---- */

/* One is the beginning of the other. */
const char *const namespaces[SPACES] = {"default", "default-2"};

static struct who *new_who(struct sim *s, const char *type, const char *key) {
    struct who *who = &s->who[s->who_count++];
    *who = (struct who){.status = "idle"};
    snprintf(who->full, sizeof who->full, "%s/%s/%s", s->in->name, type, key);
    who->name = strchr(who->full, '/') + 1;
    return who;
}

static struct request *new_request(struct sim *s, const char *op, const char *target) {
    struct request *r = &s->requests[s->request_count];
    *r = (struct request){.s = s, .op = op, .ns = s->in->name, .after = -1};
    snprintf(r->target, sizeof r->target, "%s", target);
    snprintf(r->id, sizeof r->id, "r%d", s->in->requests++);
    s->request_count++;
    s->open_requests++;
    return r;
}

static void must_pay(struct sim *s, const char *id, bool refused) {
    snprintf(s->due[s->due_count].id, sizeof s->due[0].id, "%s", id);
    s->due[s->due_count++].refused = refused;
}

static bool room(const struct sim *s, const struct who *who) {
    return who->bits < BITS_MAX && s->who_count < WHO_MAX - 4 && s->request_count < REQUESTS_MAX - 8 &&
           s->due_count < PAID_MAX - 8;
}

static int64_t program(struct sim *s, struct buf *out, struct who *who, int level, int depth, bool *fails);

/* Errors are worth something, too (node.c). What comes an hour late comes too late, whatever goes wrong until then. */
enum { TIMEOUT = 3, EXPIRED = 5, CANCELLED = 7, EXISTS = 9, LATE_MS = 3600000 };

/* A program that must never run: its bit would show. */
static void never(struct buf *out, struct who *who) {
    buf_json(out, "{\"n\":0,\"bit\":%d,\"do\":[]}", (int64_t)who->bits++);
}

static void text(struct buf *out, size_t n) {
    buf_char(out, '"');
    memset(buf_reserve(out, n), 'x', n);
    out->n += n;
    buf_char(out, '"');
}

/* A call or message to the other, if any, whose time is over before it may begin, or a promise that is given up. */
static int64_t in_vain(struct sim *s, struct buf *out, struct who *other, const char *name) {
    int64_t soon = 1 + (int64_t)roll(s, 3000), later = LATE_MS + soon;
    switch (other ? roll(s, 7) : 4 + roll(s, 3)) {
    case 0:
        buf_json(out, "[\"call\",%z,", other->name);
        never(out, other);
        buf_json(out, ",%d,%d]", soon, later);
        return TIMEOUT;
    case 1:
        buf_json(out, "[\"call\",%z,", other->name);
        never(out, other);
        buf_json(out, ",0,%d,%d]", later, soon);
        s->expired++;
        return EXPIRED;
    case 2:
        buf_json(out, "[\"send\",%z,", other->name);
        never(out, other);
        buf_json(out, ",0,%d,%d]", later, soon);
        s->expired++;
        return 0;
    case 3:
        buf_json(out, "[\"drop\",[\"call\",%z,", other->name);
        never(out, other);
        buf_json(out, ",0,%d]]", later);
        return CANCELLED;
    case 4: buf_json(out, "[\"drop\",[\"timer\",%d]]", later); return CANCELLED;
    case 5: buf_json(out, "[\"wait\",\"%s-never\",%d]", name, soon); return TIMEOUT;
    default:
        buf_json(out, "[\"drop\",[\"child\",%z,{\"n\":0,\"bit\":0,\"do\":[[\"wait\",\"never\"]]}]]", name);
        new_who(s, "node", name)->status = "cancelled";
        return CANCELLED;
    }
}

/* One step of a program; what it adds to the program's sum. A program that is tried again does only what may be repeated. */
static int64_t step(struct sim *s, struct buf *out, struct who *who, int level, int depth, bool repeats) {
    char name[24], id[40];
    bool fails = false;
    int token = ++s->in->tokens,
        other = level + 1 < NODES ? level + 1 + (int)roll(s, (uint64_t)(NODES - level - 1)) : NODES;
    uint64_t what = roll(s, 16);
    if (repeats || depth > 2 || !room(s, s->in->peers)) what = 6 + what % 3;
    if (what < 2 && (other == NODES || !room(s, &s->in->peers[other]))) what = 6;
    snprintf(name, sizeof name, "t%d", token);
    if (what < 2) {
        buf_json(out, "[\"call\",%z,", s->in->peers[other].name);
        int64_t n = program(s, out, &s->in->peers[other], other, depth + 1, &fails);
        buf_str(out, STR("]"));
        return fails ? 0 : n;
    }
    if (what == 2) {
        other = (int)roll(s, NODES);
        buf_json(out, "[\"send\",%z,", s->in->peers[other].name);
        program(s, out, &s->in->peers[other], other, depth + 1, &fails);
        buf_json(out, ",0,%d,%d,%d]", (int64_t)roll(s, 2) * (int64_t)roll(s, 3000), (int64_t)roll(s, 2) * LATE_MS * 9,
                 (int64_t)roll(s, 5) - 2);
        return 0;
    }
    if (what == 3) {
        struct who *child = new_who(s, "node", name);
        buf_json(out, "[\"child\",%z,", name);
        int64_t n = program(s, out, child, level, depth + 1, &fails);
        buf_str(out, STR("]"));
        child->status = fails ? "failed" : "completed";
        return fails ? 0 : n;
    }
    if (what == 4 || what == 5) {
        snprintf(id, sizeof id, "%s.%s", s->in->name, name);
        must_pay(s, id, false);
        buf_json(out, "[\"pay\",{\"id\":%z,\"n\":%d}]", id, (int64_t)token);
        return token;
    }
    if (what == 9 && who < s->in->peers + NODES) {
        struct request *r = new_request(s, "event", who->name);
        snprintf(r->id, sizeof r->id, "%s", name);
        buf_json(&r->body, "%d", (int64_t)token);
        buf_json(out, "[\"wait\",%z]", name);
        return token;
    }
    if (what == 10 || what == 11)
        return in_vain(s, out, other < NODES && room(s, &s->in->peers[other]) ? &s->in->peers[other] : NULL, name);
    if (what == 12) {
        bool fat = s->on_disk && !s->fat; /* beyond 256 KiB: a blob */
        size_t n = fat ? (300 << 10) + roll(s, 999) : 0;
        buf_json(out, fat ? "[\"fat\"," : "[\"pad\",");
        text(out, fat ? n : roll(s, 40) << 10); /* 16 KiB and more: a state with a row of its own */
        buf_char(out, ']');
        s->fat |= fat;
        return (int64_t)n;
    }
    if (what == 13) { /* an event that may come before or after the wait for it begins */
        buf_json(out, "[\"tell\",%z,%z,%d,%d],[\"wait\",%z]", who->name, name, (int64_t)token,
                 (int64_t)roll(s, 2) * (int64_t)roll(s, 3000), name);
        return token;
    }
    if (what == 14) { /* it exists: this is it */
        buf_json(out, "[\"child\",%z,", strchr(who->name, '/') + 1);
        never(out, who);
        buf_char(out, ']');
        return EXISTS;
    }
    if (what == 6)
        buf_json(out, "[\"echo\",%d]", (int64_t)token);
    else if (what == 7)
        buf_json(out, "[\"timer\",%d]", (int64_t)roll(s, 3000));
    else
        buf_str(out, STR("[\"await\"]"));
    return what == 6 ? token : 0;
}

static int64_t program(struct sim *s, struct buf *out, struct who *who, int level, int depth, bool *fails) {
    int64_t token = ++s->in->tokens, sum = token;
    int bit = who->bits++;
    uint64_t how = roll(s, 12);
    bool repeats = how == 0;
    *fails = how == 1;
    if (!*fails) who->total |= (uint64_t)1 << bit;
    buf_json(out, "{\"n\":%d,\"bit\":%d,\"do\":[", token, (int64_t)bit);
    for (uint64_t i = 0, n = roll(s, 5); i < n; i++) {
        if (i) buf_char(out, ',');
        sum += step(s, out, who, level, depth, repeats);
    }
    buf_json(out, "]%s%s", repeats ? ",\"tries\":3" : "", *fails ? ",\"fail\":true" : "");
    if (how == 2 && who->bits < BITS_MAX) {
        buf_str(out, STR(",\"next\":"));
        sum = program(s, out, who, level, depth + 1, fails);
    }
    buf_char(out, '}');
    return sum;
}

static void new_message(struct sim *s) {
    int to = (int)roll(s, NODES);
    struct who *who = &s->in->peers[to];
    if (!room(s, who)) return;
    struct request *r = new_request(s, roll(s, 3) ? "call" : "send", who->name);
    r->delay_ms = roll(s, 4) ? 0 : (int64_t)roll(s, 3000);
    r->timeout_ms = roll(s, 4) ? 0 : 1 + (int64_t)roll(s, 3000);
    r->priority = (int32_t)roll(s, 5) - 2;
    int64_t sum = program(s, &r->body, who, to, 0, &r->fails);
    if (roll(s, 3) == 0) { /* its reply is there to be asked for, whatever has died since */
        struct request *looks = new_request(s, "message", r->target);
        snprintf(looks->id, sizeof looks->id, "%s", r->id);
        snprintf(looks->until, sizeof looks->until, r->fails ? "\"status\":\"failed\"" : "\"reply\":%lld}",
                 (long long)sum);
    }
    if (strcmp(r->op, "send") == 0)
        r->fails = false;
    else
        snprintf(r->want, sizeof r->want, r->fails ? "told" : "%lld", (long long)sum);
}

/* A message that takes its worker down whenever it runs: it is given up. */
static void new_poison(struct sim *s) {
    struct request *r = new_request(s, "call", "poison/p");
    buf_str(&r->body, STR("null"));
    r->fails = true;
    snprintf(r->want, sizeof r->want, "poison");
}

/* An operator looks until the actor waits, and does something with it. */
static struct request *new_look(struct sim *s, const char *actor, const char *op) {
    struct request *looks = new_request(s, "get", actor), *then = new_request(s, op, actor);
    snprintf(looks->until, sizeof looks->until, "\"status\":\"suspended\"");
    then->after = (int)(looks - s->requests);
    return then;
}

static void new_cancel(struct sim *s, const char *actor) {
    buf_str(&new_look(s, actor, "cancel")->body, STR("{}"));
}

/* A call to an actor of its own; what: its program's steps. */
static struct request *new_lonely(struct sim *s, struct who **who, const char *steps) {
    char key[24];
    snprintf(key, sizeof key, "t%d", ++s->in->tokens);
    *who = new_who(s, "node", key);
    struct request *r = new_request(s, "call", (*who)->name);
    buf_json(&r->body, "{\"n\":0,\"bit\":%d,\"do\":[%s]}", (int64_t)(*who)->bits++, steps);
    return r;
}

/* A turn that is cancelled while it waits: it fails, and its state goes back. */
static void new_cancelled(struct sim *s) {
    struct who *who;
    struct request *r = new_lonely(s, &who, "[\"wait\",\"never\"]");
    r->fails = true;
    snprintf(r->want, sizeof r->want, "cancelled");
    new_cancel(s, who->name);
}

/* One that is cancelled at any time: before its end, or it is too late. */
static void new_interrupted(struct sim *s) {
    struct who *who;
    struct request *r = new_lonely(s, &who, "[\"echo\",5],[\"timer\",700],[\"await\"],[\"echo\",6]"), *cancel;
    r->gains = who;
    who->total = who->maybe = 1;
    snprintf(r->want, sizeof r->want, "11");
    cancel = new_request(s, "cancel", who->name);
    buf_str(&cancel->body, STR("{}"));
}

/* A turn that waits for a person, who says a number. */
static void new_suspended(struct sim *s) {
    struct who *who;
    struct request *r = new_lonely(s, &who, "[\"echo\",3],[\"suspend\"]");
    who->total = 1;
    snprintf(r->want, sizeof r->want, "%d", 3 + s->in->tokens);
    buf_json(&new_look(s, who->name, "resume")->body, "%d", (int64_t)s->in->tokens);
}

/* A fork from somewhere near the start of a turn that is over, and mail to it: one of them comes first. */
static void new_forked(struct sim *s) {
    struct who *who;
    struct request *r = new_lonely(s, &who, "[\"echo\",4],[\"timer\",300],[\"await\"],[\"echo\",5]"), *fork;
    char from[48];
    snprintf(from, sizeof from, "%s", who->name);
    int first = (int)(r - s->requests);
    who->total = 1;
    snprintf(r->want, sizeof r->want, "9");
    r = new_lonely(s, &who, "[\"echo\",7]");
    snprintf(r->want, sizeof r->want, "7");
    buf_clear(&r->body);
    buf_json(&r->body, "{\"n\":0,\"bit\":%d,\"do\":[[\"echo\",7]]}", (int64_t)who->bits++);
    fork = new_request(s, "fork", from);
    buf_json(&fork->body, "{\"key\":%z,\"from\":%d}", strchr(who->name, '/') + 1, 1 + (int64_t)roll(s, 4));
    r->after = fork->after = first;
    who->total = 3;
    who->maybe = 1;
}

/* A definition is replaced while its turns are under way: by one that says something else, and means the same. */
static void new_deployment(struct sim *s) {
    bool node = roll(s, 2);
    struct request *r = new_request(s, node ? "actor-type.put" : "activity.put", node ? "node/" : "pay/1");
    if (node) snprintf(r->target, sizeof r->target, "node/%d", 1 + (int)roll(s, 2));
    buf_json(&r->body, node ? NODE : PAY, node ? r->target + 5 : "1", (int64_t)s->in->tokens);
}

static void pays(struct sim *s, const char *key, const char *what, bool refused) {
    char id[40];
    snprintf(id, sizeof id, "%s.%s%s", s->in->name, key, what);
    must_pay(s, id, refused);
}

/* A run that pays twice, waits for an approval and pays again. Where the last payment is refused, or the run is cancelled
 * while it waits, it pays back, the last one first. */
static void new_order(struct sim *s) {
    char key[24];
    if (!room(s, s->in->peers)) return;
    bool refused = roll(s, 2), cancelled = roll(s, 3) == 0;
    snprintf(key, sizeof key, "w%d%s", ++s->in->tokens, refused ? "-no" : "");
    struct who *run = new_who(s, "workflow.order", key);
    run->status = cancelled ? "cancelled" : refused ? "failed" : "completed";
    struct request *r = new_request(s, "run", "order/"), *approval;
    snprintf(r->target, sizeof r->target, "order/%s", key);
    buf_json(&r->body, "{\"id\":\"%s.%s\"}", s->in->name, key);
    pays(s, key, "", false);
    pays(s, key, "-deposit", false);
    if (cancelled) {
        new_cancel(s, run->name);
    } else {
        approval = new_request(s, "event", run->name);
        approval->after = (int)(r - s->requests);
        snprintf(approval->id, sizeof approval->id, "approved");
        buf_str(&approval->body, STR("true"));
        pays(s, key, "-ship", refused);
    }
    if (!cancelled && !refused) return;
    pays(s, key, "-deposit-refund", false);
    pays(s, key, "-refund", false);
}

void load_make(struct sim *s) {
    static const char *const keys[NODES] = {"a", "b", "c", "d", "e"};
    uint64_t spaces = 1 + roll(s, SPACES);
    for (uint64_t n = spaces; n-- > 0;) {
        s->in = &s->spaces[n];
        *s->in = (struct space){.name = namespaces[n], .peers = &s->who[s->who_count]};
        for (int i = 0; i < NODES; i++) new_who(s, "node", keys[i]);
    }
    if (roll(s, 8) == 0) new_poison(s);
    static void (*const others[])(struct sim * s) = {new_order,     new_order,  new_order,       new_cancelled,
                                                     new_suspended, new_forked, new_interrupted, new_deployment};
    for (uint64_t i = 0, n = 4 + roll(s, 10); i < n; i++) {
        uint64_t what = roll(s, 24);
        s->in = &s->spaces[roll(s, spaces)];
        if (!room(s, s->in->peers)) break;
        (what < sizeof others / sizeof *others ? others[what] : new_message)(s);
    }
}

/* ---- asking until there is an answer ---- */

static struct loom_str lend(const char *z, size_t n) {
    return (struct loom_str){z, n};
}

/* Asked again, it answers the same. */
static bool lasting(const struct request *r) {
    return !r->until[0] && strcmp(r->op, "cancel") != 0 && strcmp(r->op, "resume") != 0 && strcmp(r->op, "fork") != 0 &&
           !strstr(r->op, ".put");
}

/* The process stops, dies, or the store does not take it: the client asks again under the same id. A call that takes
 * long is answered 202. */
static bool definite(const struct request *r, int status, struct str body) {
    bool there = !r->until[0] || (status == 200 && memmem(body.p, body.n, r->until, strlen(r->until)));
    return status < 500 && there && !(status == 202 && strcmp(r->op, "call") == 0);
}

static void answered(void *ctx, const struct loom_reply *reply) {
    struct request *r = ctx;
    struct sim *s = r->s;
    struct str body = {reply->body.p, reply->body.n};
    r->flying = false;
    world_mark(&s->w, body);
    sim_says(s, "%s %s answered %d %.*s", r->op, r->id, reply->status, (int)body.n, body.p);
    if (memmem(body.p ? body.p : "", body.n, CANARY, strlen(CANARY))) sim_fails(s, "a reply holds the secret");
    if (s->w.dead || !definite(r, reply->status, body))
        return;      /* what comes from a process that has died never left it */
    if (r->status) { /* I2 */
        if (r->status / 100 != reply->status / 100 || !str_eq(buf_view(&r->answer), body))
            sim_fails(s, "%s %s: the answer was %d %.*s and is now %d %.*s", r->op, r->id, r->status, (int)r->answer.n,
                      r->answer.p, reply->status, (int)body.n, body.p);
        return;
    }
    if (r->gains && reply->status < 300) r->gains->maybe = 0;
    if (r->gains && reply->status >= 300) snprintf(r->want, sizeof r->want, "cancelled"), r->fails = true;
    bool right = r->fails ? reply->status >= 400 && memmem(body.p, body.n, r->want, strlen(r->want))
                          : reply->status < 300 && (!r->want[0] || str_is(body, r->want));
    /* An earlier one had come, its answer was lost; or the actor is done, or not there yet. */
    if (!lasting(r)) right |= reply->status == 409 || (strcmp(r->op, "cancel") == 0 && reply->status == 404);
    if (!right)
        sim_fails(s, "%s to %s/%s (%s): expected %s, got %d %.*s", r->op, r->ns, r->target, r->id,
                  r->fails     ? "the failure"
                  : r->want[0] ? r->want
                               : "success",
                  reply->status, (int)body.n, body.p);
    r->status = reply->status;
    buf_str(&r->answer, body);
    s->open_requests--;
}

static void ask(struct sim *s, struct request *r) {
    const char *slash = strchr(r->target, '/');
    char id[80];
    snprintf(id, sizeof id, "%s-%s", r->id, r->target); /* of the event's message; "type/key" is no id */
    for (char *p = id; *p; p++) *p = *p == '/' ? '.' : *p;
    bool event = strcmp(r->op, "event") == 0;
    struct loom_request req = {.op = r->op,
                               .ns = lend(r->ns, strlen(r->ns)),
                               .type = lend(r->target, (size_t)(slash - r->target)),
                               .key = lend(slash + 1, strlen(slash + 1)),
                               .id = lend(r->id, strlen(r->id)),
                               .body = lend(r->body.p, r->body.n),
                               .delay_ms = r->delay_ms,
                               .timeout_ms = r->timeout_ms,
                               .priority = r->priority,
                               .replace = true,
                               .at = -1,
                               .reply = answered,
                               .ctx = r};
    if (event) req.event_id = lend(id, strlen(id));
    r->flying = true;
    sim_says(s, "%s %s to %s/%s: %.*s", r->op, r->id, r->ns, r->target, (int)r->body.n, r->body.p);
    r->asked++;
    loom_submit(s->w.l, &req);
}

void load_step(struct sim *s) {
    if (roll(s, 4)) return;
    struct request *r = &s->requests[roll(s, (uint64_t)s->request_count)];
    /* Once more: to see whether the answer is still the same, or will be. */
    bool again = (r->status || r->flying) && lasting(r) && s->chaos && roll(s, 8) == 0;
    bool may = r->after < 0 || s->requests[r->after].status;
    if (may && (again || (!r->flying && !r->status))) ask(s, r);
}

static void asked(void *ctx, const struct loom_reply *reply) {
    struct request *r = ctx;
    r->flying = false;
    r->status = reply->status;
    buf_clear(&r->answer);
    buf_add(&r->answer, reply->body.p, reply->body.n);
}

int load_ask(struct sim *s, const char *op, const char *what, int64_t at, struct buf *out) {
    struct request r = {.s = s};
    struct str ns = str_of(what), type = STR_NONE, key = STR_NONE;
    actor_parts(ns, &ns, &type, &key);
    struct loom_request req = {.op = op,
                               .ns = lend(ns.p, ns.n),
                               .type = lend(type.p, type.n),
                               .key = lend(key.p, key.n),
                               .limit = 1000,
                               .at = at,
                               .reply = asked,
                               .ctx = &r};
    loom_submit(s->w.l, &req);
    while (!r.status) world_step(&s->w);
    buf_free(out);
    *out = r.answer;
    return r.status;
}

void load_free(struct sim *s) {
    for (int i = 0; i < s->request_count; i++) {
        buf_free(&s->requests[i].body);
        buf_free(&s->requests[i].answer);
    }
    for (int i = 0; i < s->paid_count; i++) free(s->paid[i].input);
}

/* ---- the bank ---- */

static struct payment *payment_of(struct sim *s, struct str key) {
    for (int i = 0; i < s->paid_count; i++)
        if (str_is(key, s->paid[i].key)) return &s->paid[i];
    if (s->paid_count == PAID_MAX) sim_fails(s, "the bank has seen too many keys");
    struct payment *p = &s->paid[s->paid_count++];
    *p = (struct payment){0};
    snprintf(p->key, sizeof p->key, "%.*s", (int)key.n, key.p);
    return p;
}

static bool ends(struct str s, const char *with) {
    size_t n = strlen(with);
    return s.n >= n && memcmp(s.p + s.n - n, with, n) == 0;
}

static bool is_paid(struct sim *s, const char *id) {
    for (int i = 0; i < s->paid_count; i++)
        if (strcmp(s->paid[i].id, id) == 0) return true;
    return false;
}

/* Books what comes, then answers, says so wrongly, or does not answer. */
void load_bank(struct world *w, uint64_t request, struct str url, struct str key, struct str auth, struct str body) {
    struct sim *s = (struct sim *)w;
    struct arena mem = {0};
    yyjson_val *in = json_in(&mem, body);
    struct str id = json_str(in, "id");
    struct payment *p = payment_of(s, key);
    if (!str_is(auth, "Bearer " CANARY)) sim_fails(s, "the bank got the wrong secret: %.*s", (int)auth.n, auth.p);
    (void)url;
    if (p->times++ == 0) {
        p->input = str_dup(body);
        snprintf(p->id, sizeof p->id, "%.*s", (int)id.n, id.p);
        char before[64] = "";
        if (ends(id, "-refund") && !ends(id, "-deposit-refund"))
            snprintf(before, sizeof before, "%.*s-deposit-refund", (int)id.n - 7, id.p);
        if (before[0] && !is_paid(s, before)) sim_fails(s, "%s came before %s", p->id, before);
    } else if (!str_is(body, p->input)) { /* I5 */
        sim_fails(s, "under the key %s the bank got %s, then %.*s", p->key, p->input, (int)body.n, body.p);
    }
    int64_t after = (int64_t)roll(s, roll(s, 5) ? 50 : 4000);
    uint64_t how = s->chaos ? roll(s, 8) : 9;
    struct str answer = arena_json(&mem, "{\"status\":200,\"headers\":{},\"body\":{\"n\":%d,\"echo\":%q}}",
                                   json_int(in, "n", 0), auth);
    if (ends(id, "-no-ship")) answer = STR("{\"status\":402,\"headers\":{},\"body\":null}");
    if (how == 0) answer = STR("{\"status\":503,\"headers\":{},\"body\":null}");
    if (how == 1) answer = STR("{\"code\":\"timeout\",\"message\":\"no answer\",\"retryable\":true}");
    world_answer(w, request, after, how != 1, answer);
    arena_free(&mem);
}
