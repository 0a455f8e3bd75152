/* replay.c: are the stored states and replies what the modules make of the journals?
 *
 * An engine in memory gets the definitions of actor types and the modules. Each turn becomes, there, what a crash at its end
 * would have left: the state before it and its entries without the last. It is loaded, folded and replayed as after any
 * crash. Then the state must be what the journal's patches make of the one before, byte for byte, and a turn that ended
 * must end again, with the same entry. There are no activities in that engine, and no batch of a turn commits: nothing leaves.
 * Not replayed: a turn that its worker ended (limit_time, poison, cancelled while paused), and native guests.
 */
#include "cli/cli.h"
#include "cli/image.h"
#include "observe/observe.h"
#include "runtime/runtime.h"
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

enum { SLICES_MAX = 100000 };

struct replay {
    struct item item;
    sem_t done;
    struct image *im;
    struct loom *l;
    struct arena mem;      /* of one actor: its entries */
    struct actor *a;       /* as stored; its state goes along with the turns */
    struct str *entries;   /* texts */
    uint64_t first, count; /* number of the first, how many */
    uint64_t from, to;     /* the turn: indices, `to` behind its last entry */
    bool ended;            /* its last entry ends it */
    bool definitions;      /* the item brings rows of the registry and not a turn */
    int64_t actors, turns, ops, skipped;
};

static yyjson_val *entry_at(struct replay *p, uint64_t i, struct arena *mem) {
    return json_in(mem, p->entries[i]);
}

/* ---- in the engine ---- */

/* Rows as a crash before entry `to` would have left them. */
static void put_turn(struct replay *p, uint64_t to) {
    struct loom *l = p->l;
    struct actor *a = actor_new(p->a->full);
    struct buf state = {0}, doc = {0}, row = {0};
    yyjson_val *started = entry_at(p, p->from, &p->mem);
    json_write_mut(yyjson_mut_doc_get_root(p->a->state), &state);
    a->status = ACTOR_RUNNING;
    a->run = p->a->run;
    a->from = a->last_turn = a->last_row = p->first + p->from;
    a->state_at = a->cursor = a->from - 1;
    a->turns = (uint64_t)json_int(started, "turn", 1) - 1;
    a->created_at = p->a->created_at;
    a->activated_at = json_int(started, "at", 0);
    a->correlation = str_dup(str_of(p->a->correlation));
    a->parent = str_dup(str_of(p->a->parent));
    actor_row(a, buf_view(&state), &doc);
    buf_str(&row, STR("{\"prev\":\"0\",\"entries\":["));
    for (uint64_t i = p->from; i < to; i++) buf_json(&row, "%s%j", i > p->from ? "," : "", p->entries[i]);
    buf_str(&row, STR("]}"));
    rows_put(l, ROW_ACTOR, a->full, buf_view(&doc), false);
    rows_put(l, ROW_JOURNAL, journal_key(&l->scratch, a->full, a->from), buf_view(&row), false);
    batch_close(l, true);
    rows_delete(l, ROW_JOURNAL, journal_key(&l->scratch, a->full, a->from)); /* when the next one's commit */
    actor_free(a);
    buf_free(&state);
    buf_free(&doc);
    buf_free(&row);
}

/* Those that are in no row yet; NULL: there are none. */
static yyjson_val *tail_entries(const struct actor *a, struct arena *mem) {
    return a->tail.n ? yyjson_obj_get(json_in(mem, arena_json(mem, "%j]}", buf_view(&a->tail))), "entries") : NULL;
}

/* Takes back what the guest did beyond the recorded entries, when its turn is still open. */
static void take_back(struct actor *a, struct arena *mem) {
    yyjson_val *tail = tail_entries(a, mem);
    for (size_t i = yyjson_arr_size(tail); i-- > 0;) {
        yyjson_val *inverse = yyjson_obj_get(yyjson_arr_get(tail, i), "inversePatches");
        if (inverse) patch_apply(a->state, inverse, NULL, NULL);
    }
}

static void compare(struct replay *p, struct resident *r, struct str expected) {
    struct arena *mem = &p->mem;
    struct actor *a = r->a;
    struct buf state = {0};
    uint64_t turn = (uint64_t)json_int(entry_at(p, p->from, mem), "turn", 0);
    yyjson_val *tail = tail_entries(a, mem);
    if (a->status == ACTOR_PAUSED) {
        image_fault(p->im, "turn %u of %s: %s", turn, a->id, a->reason);
        return;
    }
    if (p->ended && a->turn) {
        image_fault(p->im, "turn %u of %s has ended, and does not end when it is replayed", turn, a->id);
        return;
    }
    if (a->turn && journal_replaying(a)) {
        image_fault(p->im, "turn %u of %s stops before the journal's end", turn, a->id);
        return;
    }
    if (p->ended) {
        struct str was = entry_body(p->entries[p->to - 1]),
                   is = tail ? entry_body(json_text_of(yyjson_arr_get_last(tail), mem)) : STR_NONE;
        if (!str_eq(was, is))
            image_fault(p->im, "turn %u of %s ended with %j} and ends with %j}", turn, a->id, was, is);
    } else {
        take_back(a, mem);
    }
    json_write_mut(yyjson_mut_doc_get_root(a->state), &state);
    if (!str_eq(buf_view(&state), expected))
        image_fault(p->im, "turn %u of %s leads to the state %j, and its journal to %j", turn, a->id, buf_view(&state),
                    expected);
    buf_free(&state);
}

/* The state behind the turn, by its patches. */
static struct str patch_forward(struct replay *p) {
    struct buf text = {0};
    for (uint64_t i = p->from; i < p->to; i++) {
        yyjson_val *patches = yyjson_obj_get(entry_at(p, i, &p->mem), "patches");
        if (patches) patch_apply(p->a->state, patches, NULL, NULL);
    }
    json_write_mut(yyjson_mut_doc_get_root(p->a->state), &text);
    struct str s = arena_dup(&p->mem, buf_view(&text));
    buf_free(&text);
    return s;
}

/* How many entries the guest has made good; the end, and a rollback before it, must come again. */
static uint64_t recorded(struct replay *p) {
    uint64_t to = p->to - p->ended;
    if (p->ended && to > p->from && json_bool(entry_at(p, to - 1, &p->mem), "rollback", false)) to--;
    return to;
}

static void replay_turn(struct loom *l, struct replay *p) {
    uint64_t to = recorded(p), end = p->first + to - 1;
    put_turn(p, to);
    struct str expected = patch_forward(p);
    struct resident *r = resident_by_id(l, p->a->full);
    for (int i = 0; r && i < SLICES_MAX && r->a->turn && r->a->status < ACTOR_PAUSED; i++) {
        if (!turn_resumable(r) || (!p->ended && r->a->cursor > end)) break;
        turn_step(l, r);
    }
    if (r)
        compare(p, r, expected);
    else
        image_fault(p->im, "%s cannot be loaded for a replay", p->a->id);
    batch_forget(l);
    alarms_free(l);
}

static bool put_registry(void *ctx, struct str key, struct str value) {
    struct replay *p = ctx;
    if (!value.p || str_starts(key, STR("activity/"))) return true;
    rows_put(p->l, str_starts(key, STR("actor-type/")) ? ROW_REGISTRY : ROW_MODULE, key, value, true);
    return true;
}

static void on_loop(struct loom *l, struct item *item) {
    struct replay *p = (struct replay *)item;
    struct error err;
    if (p->definitions) {
        image_scan(p->im, ROW_MODULE, STR(""), STR_NONE, put_registry, p);
        image_scan(p->im, ROW_REGISTRY, STR(""), STR_NONE, put_registry, p);
        batch_close(l, true);
        if (registry_open(l, &err) < 0) image_fault(p->im, "%s", err.message);
    } else {
        replay_turn(l, p);
    }
    sem_post(&p->done);
}

static void run_on_loop(struct replay *p) {
    loom_post(p->l, &p->item, on_loop);
    while (sem_wait(&p->done)) continue;
}

/* ---- an actor ---- */

static bool keep_entries(void *ctx, struct str key, struct str value) {
    struct replay *p = ctx;
    yyjson_val *entry;
    size_t i, n;
    if (!value.p) return false; /* a damaged row, which has been told: what follows is not replayed */
    if (p->count == 0) p->first = journal_key_number(key);
    yyjson_arr_foreach(yyjson_obj_get(json_in(&p->mem, value), "entries"), i, n, entry) {
        p->entries = mem_room(p->entries, p->count, sizeof *p->entries);
        p->entries[p->count++] = json_text_of(entry, &p->mem);
    }
    return true;
}

/* The stored state, and that before the first kept entry: back by inverse patches, and forth again to see that it is one. */
static bool rewind_state(struct replay *p) {
    struct actor *a = p->a;
    struct buf stored = {0}, again = {0};
    uint64_t until = a->state_at >= p->first ? a->state_at - p->first + 1 : 0;
    json_write_mut(yyjson_mut_doc_get_root(a->state), &stored);
    for (uint64_t i = until; i-- > 0;) {
        yyjson_val *inverse = i < p->count ? yyjson_obj_get(entry_at(p, i, &p->mem), "inversePatches") : NULL;
        if (inverse) patch_apply(a->state, inverse, NULL, NULL);
    }
    yyjson_mut_doc *first = yyjson_mut_doc_mut_copy(a->state, NULL);
    for (uint64_t i = 0; i < until && i < p->count; i++) {
        yyjson_val *patches = yyjson_obj_get(entry_at(p, i, &p->mem), "patches");
        if (patches) patch_apply(a->state, patches, NULL, NULL);
    }
    json_write_mut(yyjson_mut_doc_get_root(a->state), &again);
    bool same = str_eq(buf_view(&stored), buf_view(&again));
    if (!same)
        image_fault(p->im, "the stored state of %s is %j, and its journal leads to %j", a->id, buf_view(&stored),
                    buf_view(&again));
    yyjson_mut_doc_free(a->state);
    a->state = first;
    buf_free(&stored);
    buf_free(&again);
    return same;
}

/* Did the worker end this turn, and not its program? */
static bool ended_by_worker(yyjson_val *end) {
    yyjson_val *error = yyjson_obj_get(end, "error");
    struct str code = json_str(error, "code");
    return str_eq(code, STR("limit_time")) || str_eq(code, STR("poison")) ||
           str_eq(json_str(error, "message"), STR("an operator cancelled the paused actor"));
}

static void bring_module(struct replay *p, struct str hash) {
    struct buf bytes = {0};
    char hex[65], made[65];
    snprintf(hex, sizeof hex, "%.*s", (int)hash.n, hash.p);
    if (p->im->blobs && p->im->blobs->ops->get(p->im->blobs, hex, &bytes, NULL) == 0)
        p->l->blobs->ops->put(p->l->blobs, buf_view(&bytes), made, NULL);
    buf_free(&bytes);
}

static bool ends_turn(yyjson_val *entry) {
    struct str type = json_str(entry, "type");
    return str_starts(type, STR("turn_")) && !str_is(type, "turn_started");
}

/* What comes before the first start of a turn that is kept is left out, too. */
static void replay_turns(struct replay *p) {
    for (p->from = 0; p->from < p->count; p->from = p->to) {
        yyjson_val *started = entry_at(p, p->from, &p->mem), *end = NULL;
        for (p->to = p->from + 1, p->ended = ends_turn(started); p->to < p->count && !p->ended; p->to++) {
            end = entry_at(p, p->to, &p->mem);
            p->ended = ends_turn(end);
        }
        struct str module = json_str(started, "moduleHash");
        if (module.n != 64 || (p->ended && ended_by_worker(end))) {
            p->skipped++;
            patch_forward(p);
            continue;
        }
        bring_module(p, module);
        run_on_loop(p);
        p->turns++;
        p->ops += (int64_t)(p->to - p->from);
    }
}

static bool replay_actor(void *ctx, struct str key, struct str value) {
    struct replay *p = ctx;
    struct error err;
    if (memchr(key.p, '\0', key.n)) return true; /* a large state */
    struct actor *a = p->a = actor_new(key);
    struct buf state = {0};
    p->count = p->first = 0;
    bool ok = value.p && actor_read(a, value, &err) == 0;
    if (value.p && !ok) image_fault(p->im, "%s", err.message);
    image_scan(p->im, ROW_JOURNAL, journal_key(&p->mem, key, 0), journal_key(&p->mem, key, UINT64_MAX), keep_entries,
               p);
    if (ok && a->state_apart && image_load(p->im, ROW_ACTOR, arena_json(&p->mem, "%j%js", key, STR("\0")), &state))
        state_set(a, yyjson_obj_get(json_in(&p->mem, buf_view(&state)), "state"));
    if (ok && p->count && rewind_state(p)) replay_turns(p);
    p->actors++;
    actor_free(a);
    buf_free(&state);
    arena_reset(&p->mem);
    return true;
}

void image_replay(struct image *im, struct str actor, struct buf *report) {
    struct loom_config config = {.store = "memory", .compiler = own_path()};
    char message[1024];
    struct replay p = {.im = im, .definitions = true};
    struct buf end = {0};
    log_open(2, LOG_FATAL);
    p.l = loom_open(&config, message, sizeof message);
    if (!p.l) {
        image_fault(im, "%s", message);
        buf_str(report, STR("\"replayed\":{}"));
        return;
    }
    sem_init(&p.done, 0, 0);
    run_on_loop(&p);
    p.definitions = false;
    buf_json(&end, "%j%j", actor, STR("\0"));
    image_scan(im, ROW_ACTOR, actor.p ? actor : STR(""), actor.p ? buf_view(&end) : STR_NONE, replay_actor, &p);
    if (actor.p && !p.actors) image_fault(im, "there is no actor %j", actor);
    loom_close(p.l);
    sem_destroy(&p.done);
    buf_json(report, "\"replayed\":{\"actors\":%d,\"turns\":%d,\"entries\":%d,\"turns left out\":%d}", p.actors,
             p.turns, p.ops, p.skipped);
    free(p.entries);
    arena_free(&p.mem);
    buf_free(&end);
}
