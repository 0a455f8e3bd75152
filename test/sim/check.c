/* check.c: what must hold at every commit, after every recovery and at the end. I1–I10 are the invariants of
 * docs/architecture.md, Simulator. */
#include "cli/image.h"
#include "sim.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- every commit: I3 (in part), I4, no secret ---- */

void check_commit(struct world *w, const struct batch *b) {
    struct sim *s = (struct sim *)w;
    if (b->term != w->term) sim_fails(s, "a writer of term %" PRIu64 " has committed", b->term);
    if (b->seq <= s->seq) sim_fails(s, "batch %" PRIu64 " came after %" PRIu64, b->seq, s->seq);
    s->seq = b->seq;
    sim_says(s, "batch %d of term %d, %d rows", (int)b->seq, (int)b->term, (int)b->count);
    for (size_t i = 0; i < b->count; i++) {
        const struct row *r = &b->rows[i];
        if (r->value.p && memmem(r->value.p, r->value.n, CANARY, strlen(CANARY)))
            sim_fails(s, "the %s row %.*s holds the secret", row_kind_name(r->kind), (int)r->key.n, r->key.p);
        if (r->kind != ROW_JOURNAL || !r->value.p) continue; /* verify knows which may go */
        uintptr_t sum = (uintptr_t)row_sum(r->kind, r->key, r->value) | 1,
                  old = (uintptr_t)map_get(&s->journal, r->key);
        if (old && old != sum) sim_fails(s, "the journal row %.*s has changed", (int)r->key.n, r->key.p);
        if (!old) map_put(&s->journal, (struct str){str_dup(r->key), r->key.n}, (void *)sum);
    }
}

/* At the end of a run. */
void check_forget(struct sim *s) {
    s->seq = 0;
    for (size_t i = 0; i < s->journal.cap; i++)
        if (s->journal.slots[i].value) free((char *)(uintptr_t)s->journal.slots[i].key.p);
    map_free(&s->journal);
}

static struct sim *examined;

/* ---- every recovery: `loom debug verify` on the rows (I3, I8) ---- */

struct copied {
    struct str key, value;
};
struct copies {
    struct arena mem;
    struct copied *rows;
    size_t count, cap;
};

/* A large value is a blob. */
static struct str whole(struct arena *mem, struct str value) {
    struct buf blob = {0};
    struct error err;
    if (!str_starts(value, STR("{\"$blob\":"))) return value;
    char *hex = str_dup(json_str(json_in(mem, value), "$blob"));
    if (examined->w.blobs->ops->get(examined->w.blobs, hex, &blob, &err) < 0) sim_fails(examined, "%s", err.message);
    value = arena_dup(mem, buf_view(&blob));
    buf_free(&blob);
    free(hex);
    return value;
}

static bool copy_row(void *ctx, struct str key, struct str value) {
    struct copies *c = ctx;
    if (c->count == c->cap) {
        c->cap = c->cap ? c->cap * 2 : 64;
        c->rows = mem_grow(c->rows, c->cap * sizeof *c->rows);
    }
    c->rows[c->count++] = (struct copied){arena_dup(&c->mem, key), value.p ? arena_dup(&c->mem, value) : STR_NONE};
    return true;
}

/* verify.c sees the store through these three, as it sees a file through debug.c's. */
void image_scan(struct image *im, enum row_kind kind, struct str from, struct str to, row_fn fn, void *ctx) {
    struct copies c = {0};
    struct error err;
    bool more = true, was = sim_pause(true);
    if (examined->store->ops->scan(examined->store, kind, from, to, copy_row, &c, &err) < 0)
        image_fault(im, "%s", err.message);
    for (size_t i = 0; i < c.count && more; i++) {
        if (!c.rows[i].value.p) image_fault(im, "a row of %s is damaged", row_kind_name(kind));
        more = fn(ctx, c.rows[i].key, whole(&c.mem, c.rows[i].value));
    }
    sim_pause(was);
    free(c.rows);
    arena_free(&c.mem);
}

bool image_load(struct image *im, enum row_kind kind, struct str key, struct buf *out) {
    struct error err;
    bool was = sim_pause(true);
    int rc = store_load(examined->store, kind, key, out, &err);
    sim_pause(was);
    if (rc < 0) image_fault(im, "the %s row %q cannot be read", row_kind_name(kind), key);
    return rc == 1;
}

void image_fault(struct image *im, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    buf_json_v(&im->faults, fmt, ap);
    va_end(ap);
    sim_fails(examined, "%.*s", (int)im->faults.n, im->faults.p);
}

void check_store(struct sim *s) {
    struct image im = {.blobs = s->w.blobs};
    struct buf report = {0};
    bool was = sim_pause(true);
    examined = s;
    if (sqlite3_open(s->on_disk ? SIM_ROOT "/loom.db" : ":memory:", &im.db) != SQLITE_OK) abort();
    image_verify(&im, &report);
    sqlite3_close(im.db);
    sim_pause(was);
    buf_free(&report);
}

/* ---- the end ---- */

static bool print_row(void *ctx, struct str key, struct str value) {
    (void)ctx;
    fprintf(stderr, "%.*s: %.*s\n", (int)key.n, key.p, (int)value.n, value.p);
    return true;
}

void check_print(struct sim *s) {
    struct image im = {0};
    if (!s->w.l) return;
    examined = s;
    for (int kind = ROW_NONE + 1; kind < ROW_KIND_END; kind++)
        if (kind != ROW_REGISTRY) image_scan(&im, (enum row_kind)kind, STR(""), STR_NONE, print_row, NULL);
}

static bool first_row(void *ctx, struct str key, struct str value) {
    buf_json(ctx, "%q:%j", key, value);
    return false;
}

bool check_rests(struct sim *s, struct buf *what) {
    static const struct {
        enum row_kind kind;
        const char *from, *to;
    } busy[] = {{ROW_OUTBOX, "", NULL}, {ROW_MAILBOX, "m", "n"}, {ROW_TIMER, "", NULL}};
    struct image im = {0};
    examined = s;
    buf_clear(what);
    for (size_t i = 0; i < sizeof busy / sizeof *busy && !what->n; i++)
        image_scan(&im, busy[i].kind, str_of(busy[i].from), str_of(busy[i].to), first_row, what);
    return what->n == 0;
}

/* The states that the journal's patches lead through, back and forth (I9), and whether timers kept their time (I7). */
struct history {
    struct sim *s;
    struct arena mem;
    yyjson_mut_doc *state;
    const char *name;
    uint64_t first;
    yyjson_val **entries; /* all that the journal still has */
    size_t count;
    bool turn;           /* the start of the turn is among them */
    int64_t timers[256]; /* of the open turn: due, 0: none or fired */
    uint64_t cursor, at; /* entries so far; when `past` is taken */
    struct buf past;
};

static void entry(struct history *h, yyjson_val *e) {
    struct str type = json_str(e, "type");
    uint64_t id = (uint64_t)json_int(e, "promise", 0) % 256;
    int64_t at = json_int(e, "at", 0);
    yyjson_val *patches = yyjson_obj_get(e, "patches");
    if (patches) patch_apply(h->state, patches, NULL, NULL);
    if (++h->cursor == h->at) json_write_mut(yyjson_mut_doc_get_root(h->state), &h->past);
    if (str_is(type, "turn_started")) memset(h->timers, 0, sizeof h->timers), h->turn = true;
    if (str_is(type, "timer_set")) h->timers[id] = at + json_int(e, "delayMs", 0);
    if (str_is(type, "timer_fired") && h->turn) {
        if (!h->timers[id]) sim_fails(h->s, "timer %d of %s fired twice", (int)id, h->name);
        if (at < h->timers[id]) sim_fails(h->s, "timer %d of %s fired early", (int)id, h->name);
        h->timers[id] = 0;
    }
}

static bool history_row(void *ctx, struct str key, struct str value) {
    struct history *h = ctx;
    size_t i, n;
    yyjson_val *e;
    if (!h->first) h->first = journal_key_number(key);
    yyjson_arr_foreach(yyjson_obj_get(json_in(&h->mem, value), "entries"), i, n, e) {
        h->entries = mem_room(h->entries, h->count, sizeof *h->entries);
        h->entries[h->count++] = e;
    }
    return true;
}

static void expect_state(struct history *h, const char *what, struct str state) {
    struct buf text = {0};
    json_write_mut(yyjson_mut_doc_get_root(h->state), &text);
    if (!str_eq(buf_view(&text), state))
        sim_fails(h->s, "%s is %.*s, and %s is %.*s", h->name, (int)state.n, state.p, what, (int)text.n, text.p);
    buf_free(&text);
}

/* And what it was at some moment (time travel). */
static void check_history(struct sim *s, const char *name, struct str state, uint64_t cursor) {
    struct history h = {.s = s, .name = name, .at = 1 + world_roll(&s->w, cursor)};
    struct buf again = {0};
    struct image im = {0};
    yyjson_doc *doc = yyjson_read(state.p, state.n, 0);
    h.state = yyjson_doc_mut_copy(doc, NULL);
    yyjson_doc_free(doc);
    image_scan(&im, ROW_JOURNAL, journal_key(&h.mem, str_of(name), 0), journal_key(&h.mem, str_of(name), UINT64_MAX),
               history_row, &h);
    for (size_t i = h.count; i-- > 0;) {
        yyjson_val *inverse = yyjson_obj_get(h.entries[i], "inversePatches");
        if (inverse) patch_apply(h.state, inverse, NULL, NULL);
    }
    if (h.first == 1) expect_state(&h, "at its journal's beginning it", STR("{\"total\":0,\"seen\":[]}"));
    h.cursor = h.first - 1;
    if (h.at <= h.cursor) h.at = h.cursor + 1;
    for (size_t i = 0; i < h.count; i++) entry(&h, h.entries[i]);
    expect_state(&h, "at its journal's end it", state);
    if (load_ask(s, "state", name, (int64_t)h.at, &again) != 200 || !str_eq(buf_view(&again), buf_view(&h.past)))
        sim_fails(s, "%s was at %d %.*s, and by its journal %.*s", name, (int)h.at, (int)again.n, again.p,
                  (int)h.past.n, h.past.p);
    yyjson_mut_doc_free(h.state);
    free(h.entries);
    buf_free(&h.past);
    buf_free(&again);
    arena_free(&h.mem);
}

/* Somebody has asked it, or made it. */
static bool is_there(const struct who *who) {
    return who->bits || strcmp(who->status, "idle") != 0;
}

static void check_who(struct sim *s, struct who *who) {
    struct buf doc = {0}, text = {0};
    struct arena mem = {0};
    if (!is_there(who)) return;
    if (load_ask(s, "get", who->full, -1, &doc) != 200) sim_fails(s, "%s: %.*s", who->full, (int)doc.n, doc.p);
    yyjson_val *v = json_in(&mem, buf_view(&doc)), *state = yyjson_obj_get(v, "state");
    struct str status = json_str(v, "status");
    uint64_t total = (uint64_t)json_int(state, "total", 0), seen = 0;
    size_t i, n;
    yyjson_val *bit;
    if (!str_is(status, who->status))
        sim_fails(s, "%s is %.*s and should be %s", who->full, (int)status.n, status.p, who->status);
    yyjson_arr_foreach(yyjson_obj_get(state, "seen"), i, n, bit) {
        uint64_t one = (uint64_t)1 << yyjson_get_sint(bit);
        if (seen & one) sim_fails(s, "%s has done %d twice", who->full, (int)yyjson_get_sint(bit));
        seen |= one;
    }
    if (total != seen || (seen ^ who->total) & ~who->maybe)
        sim_fails(s, "%s has done %" PRIx64 " (total %" PRIx64 ") and should have done %" PRIx64, who->full, seen,
                  total, who->total);
    json_write(state, &text);
    if (who->bits && json_int(yyjson_obj_get(v, "metadata"), "activationCount", 0))
        check_history(s, who->full, buf_view(&text), (uint64_t)json_int(yyjson_obj_get(v, "journal"), "cursor", 0));
    buf_free(&doc);
    buf_free(&text);
    arena_free(&mem);
}

/* A namespace lists its own actors and no others. */
static void check_space(struct sim *s, const char *ns) {
    struct buf list = {0};
    struct arena mem = {0};
    int there = 0;
    if (load_ask(s, "actors", ns, -1, &list) != 200) sim_fails(s, "%s: %.*s", ns, (int)list.n, list.p);
    size_t n = yyjson_arr_size(yyjson_obj_get(json_in(&mem, buf_view(&list)), "actors"));
    for (int i = 0; i < s->who_count; i++) {
        struct who *who = &s->who[i];
        struct str quoted = arena_json(&mem, "{\"id\":%z", who->name);
        if (!is_there(who) || !str_is(arena_json(&mem, "%s/%s", ns, who->name), who->full)) continue;
        if (!memmem(list.p, list.n, quoted.p, quoted.n)) sim_fails(s, "%s is not listed", who->full);
        there++;
    }
    there += memmem(list.p, list.n, "{\"id\":\"poison/p\"", 16) != NULL;
    if ((size_t)there != n) sim_fails(s, "%s lists %zu actors and has %d: %.*s", ns, n, there, (int)list.n, list.p);
    buf_free(&list);
    arena_free(&mem);
}

/* Each payment under one key (I5), and none that nobody has asked for. */
static void check_bank(struct sim *s) {
    for (int i = 0; i < s->due_count; i++) {
        int keys = 0;
        for (int k = 0; k < s->paid_count; k++) keys += strcmp(s->paid[k].id, s->due[i].id) == 0;
        if (keys != 1) sim_fails(s, "the payment %s has come under %d keys", s->due[i].id, keys);
    }
    if (s->paid_count != s->due_count) sim_fails(s, "%d payments, %d were due", s->paid_count, s->due_count);
}

static bool count_expired(void *ctx, struct str key, struct str value) {
    (void)key;
    *(int *)ctx += memmem(value.p, value.n, "\"reason\":\"expired\"", 18) != NULL;
    return true;
}

void check_end(struct sim *s) {
    struct image im = {0};
    int expired = 0;
    examined = s;
    image_scan(&im, ROW_MAILBOX, STR("d"), STR("e"), count_expired, &expired);
    if (expired != s->expired) sim_fails(s, "%d messages have expired, and %d should have", expired, s->expired);
    for (int i = 0; i < s->who_count; i++) check_who(s, &s->who[i]);
    for (int i = 0; i < SPACES; i++) check_space(s, namespaces[i]);
    check_bank(s);
}

void check_damage(struct sim *s) {
    struct who *who = &s->who[world_roll(&s->w, (uint64_t)s->who_count)];
    struct buf doc = {0};
    if (!s->on_disk && array_damage(&s->rows, ROW_ACTOR, str_of(who->full), STR("\"total\":")) &&
        load_ask(s, "get", who->full, -1, &doc) == 200)
        sim_fails(s, "%s was changed on the disk, and is now %.*s", who->full, (int)doc.n, doc.p);
    buf_free(&doc);
}
