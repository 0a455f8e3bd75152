/* verify.c: is what a store holds whole, and does it fit together?
 *
 * Three passes. First SQLite's own structure. Then every row: its checksum, its JSON, its blob; timers, mail and the outbox
 * are remembered. Then each actor: its document is read and its journal folded by the code that loads it in a worker, and
 * whatever it waits for must have what will wake it: a row in the outbox, a timer, or a message at the other actor. At last
 * what names actors and modules: messages, deduplication, timers, definitions.
 */
#include "actor/actor.h"
#include "cli/image.h"
#include "runtime/runtime.h"
#include <stdlib.h>
#include <string.h>

struct actor_seen {
    int64_t mail;
    bool ended;
};

struct check {
    struct image *im;
    enum row_kind kind;
    struct arena mem;                   /* of what the maps hold */
    struct map actors;                  /* id → struct actor_seen; the others are sets: */
    struct map timers, outbox, modules; /* actor \0 what; actor; SHA-256 that must be there */
    struct map mail, dedup;             /* actor \n message id, also of open turns; message id \n actor */
    struct buf waits;                   /* who must answer \0 who waits \0: looked up at the end */
    int64_t rows[ROW_KIND_END], journals, entries, turns, promises, messages, modules_seen;
    struct actor *a;       /* the one being read */
    uint64_t cursor, link; /* where its document says that the journal ends, and the checksum of the row that does */
    uint64_t next, chain;  /* number of the entry that must come, 0: any; checksum of the row before */
    int64_t at;
    bool foldable, cursor_met;
};

static void remember(struct check *c, struct map *m, struct str key, void *value) {
    map_put(m, arena_dup(&c->mem, key), value);
}

static void structure(struct image *im) {
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_prepare_v2(im->db, "PRAGMA integrity_check(100)", -1, &q, NULL);
    while (rc == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW) {
        const char *line = (const char *)sqlite3_column_text(q, 0);
        if (strcmp(line, "ok") != 0) image_fault(im, "SQLite: %s", line);
    }
    sqlite3_finalize(q);
    if (sqlite3_errcode(im->db) != SQLITE_OK) image_fault(im, "SQLite: %s", sqlite3_errmsg(im->db));
    if (im->pages.damaged && im->format >= STORE_FORMAT)
        image_fault(im, "page %d of loom.db does not match its checksum", im->pages.damaged);
}

/* ---- rows by themselves ---- */

static struct str mail_actor(struct str key) {
    const char *nul = key.n ? memchr(key.p, '\0', key.n) : NULL;
    return nul ? (struct str){key.p + 1, (size_t)(nul - key.p) - 1} : STR_NONE;
}

static bool see_row(void *ctx, struct str key, struct str value) {
    struct check *c = ctx;
    struct arena mem = {0};
    yyjson_val *v = json_in(&mem, value);
    c->rows[c->kind]++;
    if (value.p && !v) image_fault(c->im, "the %s row %q is not JSON", row_kind_name(c->kind), key);
    if (c->kind == ROW_TIMER && key.n > 17)
        remember(c, &c->timers, (struct str){key.p + 17, key.n - 17}, c);
    else if (c->kind == ROW_OUTBOX)
        remember(c, &c->outbox, key, c);
    else if (c->kind == ROW_MAILBOX && mail_actor(key).p && key.p[0] != 'd')
        remember(c, &c->mail, arena_json(&mem, "%j\n%j", mail_actor(key), json_str(v, "messageId")), c);
    arena_free(&mem);
    return true;
}

/* ---- actors ---- */

static bool see_journal(void *ctx, struct str key, struct str value) {
    struct check *c = ctx;
    struct actor *a = c->a;
    struct arena mem = {0};
    struct error err;
    uint64_t number = journal_key_number(key);
    yyjson_val *row = json_in(&mem, value), *entry;
    char chain[17];
    size_t i, n;
    c->rows[ROW_JOURNAL]--; /* the rest belongs to no actor */
    if (!value.p) {         /* told already; what follows cannot be judged */
        c->next = c->link = 0;
        c->foldable = false;
        return true;
    }
    snprintf(chain, sizeof chain, "%016" PRIx64, c->chain);
    if (!c->next && c->link && number != a->kept &&
        !str_eq(json_str(row, "prev"), STR("0"))) /* a fork begins with its last turn */
        image_fault(c->im, "journal of %s: it begins with entry %u", a->id, number);
    if (c->next && number != c->next)
        image_fault(c->im, "journal of %s: entry %u is missing, %u follows", a->id, c->next, number);
    else if (c->next && !str_eq(json_str(row, "prev"), str_of(chain)))
        image_fault(c->im, "journal of %s: the row at entry %u does not link to the one before it", a->id, number);
    yyjson_arr_foreach(yyjson_obj_get(row, "entries"), i, n, entry) {
        int64_t at = json_int(entry, "at", -1);
        if (!json_str(entry, "type").p || at < c->at)
            image_fault(c->im, "journal of %s: entry %u has no type, or a time before its predecessor's", a->id,
                        number + i);
        c->at = at > c->at ? at : c->at;
        c->entries++;
    }
    c->next = number + yyjson_arr_size(yyjson_obj_get(row, "entries"));
    c->chain = hash64(value, 0);
    c->cursor_met |= c->next == c->cursor + 1 && c->chain == c->link;
    if (number >= a->from && c->foldable && journal_load(a, key, value, &err) < 0) {
        image_fault(c->im, "%s", err.message);
        c->foldable = false;
    }
    arena_free(&mem);
    return true;
}

static bool has_timer(struct check *c, struct str actor, enum alarm_kind kind, uint64_t turn, uint64_t promise) {
    struct arena mem = {0};
    bool there = map_get(&c->timers, arena_json(&mem, "%j%j%d/%u/%u", actor, STR("\0"), (int64_t)kind, turn, promise));
    arena_free(&mem);
    return there;
}

/* What will wake the actor when this promise is kept. */
static bool see_promise(struct check *c, struct actor *a, uint64_t id) {
    struct promise *p = turn_promise(a->turn, id);
    if (p->done_at != ENTRY_NEVER) return false;
    struct arena mem = {0};
    yyjson_val *entry = json_in(&mem, p->entry);
    bool paused = a->status == ACTOR_PAUSED;
    c->promises++;
    if ((p->kind == PROMISE_TIMER || p->kind == PROMISE_EVENT) && p->deadline && !paused &&
        !has_timer(c, a->full, ALARM_PROMISE, a->turn->number, id))
        image_fault(c->im, "%s waits for promise %u, and no timer will wake it", a->id, id);
    if (p->kind == PROMISE_CALL)
        buf_json(&c->waits, "%j/%j\n%j%j%j%j", a->ns, json_str(entry, "to"), json_str(entry, "messageId"), STR("\0"),
                 a->full, STR("\0"));
    if (p->kind == PROMISE_CHILD)
        buf_json(&c->waits, "%j/%j%j%j%j", a->ns, json_str(entry, "childId"), STR("\0"), a->full, STR("\0"));
    arena_free(&mem);
    return p->kind <= PROMISE_CALL;
}

static void see_turn(struct check *c, struct actor *a) {
    bool flying = a->status == ACTOR_RUNNING;
    struct arena mem = {0};
    yyjson_val *started = json_in(&mem, a->turn->started);
    c->turns++;
    remember(c, &c->mail, arena_json(&mem, "%j\n%j", a->full, json_str(started, "messageId")), c);
    struct str module = json_str(started, "moduleHash");
    if (module.n == 64) remember(c, &c->modules, module, c);
    for (uint64_t id = 1; id <= a->turn->promise_count; id++)
        flying |= see_promise(c, a, id) && a->status < ACTOR_PAUSED;
    if (flying && !map_get(&c->outbox, a->full))
        image_fault(c->im, "%s is under way and not in the outbox: a restart would not go on with it", a->id);
    arena_free(&mem);
}

static bool see_actor(void *ctx, struct str key, struct str value) {
    struct check *c = ctx;
    struct error err;
    struct arena mem = {0};
    if (memchr(key.p, '\0', key.n)) return true; /* a large state */
    struct actor *a = c->a = actor_new(key);
    if (!a) {
        image_fault(c->im, "%q is not an actor's id", key);
        return true;
    }
    struct actor_seen *seen = arena_alloc(&c->mem, sizeof *seen);
    remember(c, &c->actors, key, seen);
    c->next = c->chain = 0;
    c->at = 0;
    c->foldable = value.p && actor_read(a, value, &err) == 0;
    c->cursor_met = false;
    c->cursor = a->cursor, c->link = a->chain;
    if (value.p && !c->foldable) image_fault(c->im, "%s", err.message);
    image_scan(c->im, ROW_JOURNAL, journal_key(&mem, key, 0), journal_key(&mem, key, UINT64_MAX), see_journal, c);
    c->journals += c->next > 0;
    if (c->foldable && c->link && !c->cursor_met) /* 0: nothing yet, or only what a fork brought */
        image_fault(c->im, "%s ends at entry %u of its journal, and no row with its checksum does", a->id, c->cursor);
    struct buf state = {0};
    if (c->foldable && a->state_apart &&
        !image_load(c->im, ROW_ACTOR, arena_json(&mem, "%j%js", key, STR("\0")), &state))
        image_fault(c->im, "the state of %s is missing", a->id);
    bool open = a->status >= ACTOR_RUNNING && a->status <= ACTOR_PAUSED;
    if (c->foldable && open != (a->turn != NULL))
        image_fault(c->im, "%s is %s and its journal has %s turn", a->id, actor_status_name(a->status),
                    a->turn ? "an open" : "no open");
    if (c->foldable && a->turn) see_turn(c, a);
    seen->ended = a->status >= ACTOR_COMPLETED;
    seen->mail = a->turn != NULL;
    buf_free(&state);
    arena_free(&mem);
    actor_free(a);
    return true;
}

/* ---- what names others ---- */

static bool see_mail(void *ctx, struct str key, struct str value) {
    struct check *c = ctx;
    struct arena mem = {0};
    if (!value.p) return true;
    struct str actor = mail_actor(key), order = {key.p + key.n - 16, 16};
    yyjson_val *row = json_in(&mem, value), *m = key.p[0] == 'd' ? yyjson_obj_get(row, "message") : row;
    struct actor_seen *seen = actor.p ? map_get(&c->actors, actor) : NULL;
    const char *slash = actor.p ? memchr(actor.p, '/', actor.n) : NULL;
    struct str name = slash ? (struct str){slash + 1, (size_t)(actor.p + actor.n - slash) - 1} : STR_NONE;
    int64_t due = json_int(m, "due", 0);
    char digits[17];
    snprintf(digits, sizeof digits, "%.*s", (int)order.n, order.p);
    if (!seen || !str_eq(json_str(m, "actorId"), name))
        image_fault(c->im, "message %q waits for %q, which there is not", json_str(m, "messageId"), actor);
    else if (key.p[0] != 'd')
        seen->mail++;
    if (key.p[0] != 'd' && due > env_system()->now_ms(env_system()) &&
        !has_timer(c, actor, ALARM_MAIL, 0, strtoull(digits, NULL, 16)))
        image_fault(c->im, "message %q of %q is due later, and no timer will deliver it", json_str(m, "messageId"),
                    actor);
    if (key.p[0] == 'm' && json_bool(m, "outside", false))
        remember(c, &c->dedup, arena_json(&mem, "%j\n%j", json_str(m, "messageId"), actor), c);
    c->messages++;
    arena_free(&mem);
    return true;
}

static bool see_dedup(void *ctx, struct str key, struct str value) {
    struct check *c = ctx;
    struct arena mem = {0};
    if (!value.p) return true;
    const char *nl = memrchr(key.p, '\n', key.n);
    struct str id = {key.p, nl ? (size_t)(nl - key.p) : 0}, actor = {nl ? nl + 1 : key.p, nl ? key.n - id.n - 1 : 0};
    yyjson_val *v = json_in(&mem, value);
    struct str status = json_str(v, "status");
    bool queued = !status.p || str_eq(status, STR("queued"));
    if (!map_get(&c->actors, actor))
        image_fault(c->im, "message %q is known for %q, which there is not", id, actor);
    else if (queued && !map_get(&c->mail, arena_json(&mem, "%j\n%j", actor, id)))
        image_fault(c->im, "message %q to %q was accepted, has no reply, and is nowhere", id, actor);
    if (!queued && map_get(&c->dedup, key))
        image_fault(c->im, "message %q to %q has a reply and waits still", id, actor);
    map_remove(&c->dedup, key);
    arena_free(&mem);
    return true;
}

static bool see_timer(void *ctx, struct str key, struct str value) {
    struct check *c = ctx;
    (void)value;
    struct str rest = key.n > 17 ? (struct str){key.p + 17, key.n - 17} : STR_NONE;
    const char *nul = rest.p ? memchr(rest.p, '\0', rest.n) : NULL;
    if (!nul || !map_get(&c->actors, (struct str){rest.p, (size_t)(nul - rest.p)}))
        image_fault(c->im, "timer %q names no actor", key);
    return true;
}

static bool see_outbox(void *ctx, struct str key, struct str value) {
    struct check *c = ctx;
    (void)value;
    if (!map_get(&c->actors, key)) image_fault(c->im, "the outbox names %q, which there is not", key);
    return true;
}

static void see_blob(struct check *c, struct str hash) {
    struct buf bytes = {0};
    struct error err;
    char hex[65];
    snprintf(hex, sizeof hex, "%.*s", (int)hash.n, hash.p);
    c->modules_seen++;
    if (!builtin_module(STR_NONE, hex).p &&
        (!c->im->blobs || c->im->blobs->ops->get(c->im->blobs, hex, &bytes, &err) < 0))
        image_fault(c->im, "module %s: %s", hex, c->im->blobs ? err.message : "there is no folder of blobs");
    buf_free(&bytes);
}

static bool see_module(void *ctx, struct str key, struct str value) {
    struct check *c = ctx;
    struct arena mem = {0};
    if (!value.p) return true;
    struct str hash = json_str(json_in(&mem, value), "sha256");
    if (hash.n != 64) image_fault(c->im, "module %q has no SHA-256", key);
    if (hash.n == 64) remember(c, &c->modules, hash, c);
    arena_free(&mem);
    return true;
}

static bool see_definition(void *ctx, struct str key, struct str value) {
    struct check *c = ctx;
    struct arena mem = {0};
    if (!value.p) return true;
    char hash[65];
    struct str text = json_text_of(yyjson_obj_get(json_in(&mem, value), "doc"), &mem);
    sha256_hex(text.p ? text : STR(""), hash);
    if (key.n < 65 || memcmp(key.p + key.n - 64, hash, 64) != 0)
        image_fault(c->im, "the definition %q is not the text of its hash", key);
    arena_free(&mem);
    return true;
}

/* Calls and children: the other side has the message, or works on it. */
static void see_waits(struct check *c) {
    struct str rest = buf_view(&c->waits);
    while (rest.n) {
        struct str target = {rest.p, strlen(rest.p)},
                   caller = {target.p + target.n + 1, strlen(target.p + target.n + 1)};
        struct actor_seen *seen = map_get(&c->actors, target);
        bool call = memchr(target.p, '\n', target.n);
        if (call ? !map_get(&c->mail, target) : !seen || seen->ended || !seen->mail)
            image_fault(c->im, "%q waits for %q, which will not answer", caller, target);
        rest = (struct str){caller.p + caller.n + 1, rest.n - target.n - caller.n - 2};
    }
}

void image_verify(struct image *im, struct buf *report) {
    static const struct {
        enum row_kind kind;
        row_fn fn;
    } passes[] = {{ROW_ACTOR, see_actor},        {ROW_MAILBOX, see_mail},  {ROW_INBOX, see_dedup},
                  {ROW_TIMER, see_timer},        {ROW_OUTBOX, see_outbox}, {ROW_MODULE, see_module},
                  {ROW_REGISTRY, see_definition}};
    struct check c = {.im = im};
    int64_t rows = 0;
    structure(im);
    for (int kind = ROW_NONE + 1; kind < ROW_KIND_END; kind++) {
        c.kind = (enum row_kind)kind;
        image_scan(im, c.kind, STR(""), STR_NONE, see_row, &c);
        rows += c.rows[kind];
    }
    im->quiet = true;
    for (size_t i = 0; i < sizeof passes / sizeof *passes; i++)
        image_scan(im, passes[i].kind, STR(""), STR_NONE, passes[i].fn, &c);
    if (c.rows[ROW_JOURNAL] > 0) image_fault(im, "%d rows of journal belong to no actor", c.rows[ROW_JOURNAL]);
    see_waits(&c);
    if (c.dedup.count) image_fault(im, "%d waiting messages are not known for deduplication", (int64_t)c.dedup.count);
    for (size_t i = 0; i < c.modules.cap; i++)
        if (c.modules.slots[i].value) see_blob(&c, c.modules.slots[i].key);
    buf_json(report,
             "\"checked\":{\"rows\":%d,\"actors\":%u,\"journals\":%d,\"entries\":%d,\"open turns\":%d,"
             "\"open promises\":%d,\"messages\":%d,\"timers\":%u,\"modules\":%d}",
             rows, (uint64_t)c.actors.count, c.journals, c.entries, c.turns, c.promises, c.messages,
             (uint64_t)c.timers.count, c.modules_seen);
    struct map *maps[] = {&c.actors, &c.timers, &c.mail, &c.dedup, &c.outbox, &c.modules};
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) map_free(maps[i]);
    buf_free(&c.waits);
    arena_free(&c.mem);
}
