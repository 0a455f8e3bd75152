/* test_crash_points.c: the whole engine, killed or refused by its disk at every single operation, comes to the same end.
 *
 * A scenario that uses everything (calls, one-way and delayed messages, events, timers, activities with and without
 * capabilities, parallel ones, children, `continue`, a failing turn, a workflow with compensation) runs undisturbed
 * first. Then it runs once for each operation of the store and each way in which it can fail; clients repeat, under the
 * same message ids, what was not acknowledged. Each run must end with the same replies and the same actors, with the
 * same effects at the provider under the same keys, and with nothing left to do.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "support/array_store.h"
#include "support/guests.h"
#include "support/sim_disk.h"
#include "support/world.h"

#include <stdio.h>

#define HTTP(what) \
    "['activity',{'name':'http-request','input':{'url':'https://provider.example/" what "','method':'POST'}}]"
#define AWAIT(n)  "['await',{'promises':[" n "],'mode':'all'}]"
#define PUT(name) "['state.patch',[{'op':'add','path':'/" name "','value':true}]]"

/* ---- the scenario ---- */

struct request {
    const char *op, *type, *key, *id;
    int64_t delay_ms;
    const char *body; /* ' for " */
    int status;       /* of the answer; 0: none yet */
    char *answer;
    bool asked;
};

/* clang-format off */
static struct request requests[] = {
    {.op = "call", .type = "script", .key = "a", .id = "r0", .body =
        "[" PUT("begun") "," HTTP("one") "," AWAIT("1") ",['activity',{'name':'echo','input':{'x':1}}],"
        HTTP("two") "," HTTP("three") "," AWAIT("2,3,4") ","
        "['actor.call',{'to':'script/b','input':[" PUT("called") "," HTTP("four") "," AWAIT("1") "]}]," AWAIT("5") ","
        "['child.spawn',{'type':'script','key':'c','input':[['timer',{'delayMs':20}]," AWAIT("1") "," PUT("child") "]}],"
        "['timer',{'delayMs':50}]," AWAIT("6,7") ",['event.wait',{'type':'go'}]," AWAIT("8") "," PUT("done") "]"},
    {.op = "event", .type = "script", .key = "a", .id = "r1", .body = "{'n':1}"},
    {.op = "send", .type = "script", .key = "d", .id = "r2", .body =
        "[['actor.send',{'to':'script/e','input':[" PUT("sent") "]}],"
        "['actor.send',{'to':'script/e','delayMs':30,'input':[" PUT("late") "]}]," PUT("sender") "]"},
    {.op = "send", .type = "script", .key = "h", .id = "r3", .delay_ms = 40, .body =
        "[" PUT("delayed") "," HTTP("five") "," AWAIT("1") "]"},
    {.op = "call", .type = "script", .key = "f", .id = "r4", .body =
        "[" PUT("first") ",['continue',[" PUT("second") "," HTTP("six") "," AWAIT("1") "]]]"},
    {.op = "call", .type = "script", .key = "g", .id = "r5", .body =
        "[" PUT("undone") "," HTTP("seven") "," AWAIT("1") ",['fail',{'code':'sold_out','message':'none'}]]"},
    {.op = "run", .type = "order", .key = "w", .id = "r6", .body = "{'id':7}"},
};
/* clang-format on */
enum { REQUESTS = sizeof requests / sizeof *requests };

static const char order[] =
    "{'name':'order','version':'1','steps':["
    "{'id':'reserve','type':'activity','activity':'http-request','input':{'url':'https://provider.example/"
    "reserve','method':'POST'},"
    "'compensation':{'activity':'http-request','input':{'url':'https://provider.example/release','method':'POST'}}},"
    "{'id':'both','type':'parallel','branches':["
    "[{'id':'l','type':'activity','activity':'http-request','input':{'url':'https://provider.example/"
    "left','method':'POST'}}],"
    "[{'id':'r','type':'wait','duration':25}]]},"
    "{'id':'ship','type':'activity','activity':'http-request','input':{'url':'https://provider.example/"
    "refused','method':'POST'}}]}";

/* ---- one run ---- */

enum disk { ARRAY, FILES, READS };
enum { SEEDS = 5 };

static struct {
    enum disk disk;
    uint64_t seed; /* of the world: in which order things happen */
    int fault;     /* enum fault of a commit, or enum sim_fault of an operation */
    uint64_t at;
    int then; /* a second fault, so many commits after the first, or at that operation of the next life; after 0: none */
    uint64_t after;
    bool struck_again;
} now;

static struct world w;
static struct array_faults rows;
static struct exec_engine *engine;
static struct map effects; /* key of a request to the provider → its url; both in the arena */
static struct arena effect_mem;

static const char *fault_name(void) {
    static const char *const commits[] = {"none", "error", "full", "killed", "killed_by", "sync_lost", "sync_kept"};
    return now.disk == FILES ? sim_fault_names[now.fault] : commits[now.fault];
}

/* What a failure says is how to have it again. */
static void failed(void) {
    fail_msg(" (%s); again: DISK=%d WORLD=%llu FAULT=%d AT=%llu THEN=%d AFTER=%llu build/asan/test/test_crash_points",
             fault_name(), (int)now.disk, (unsigned long long)now.seed, now.fault, (unsigned long long)now.at, now.then,
             (unsigned long long)now.after);
}

#define must(condition, ...) \
    if (!(condition)) fprintf(stderr, __VA_ARGS__), failed()

static int64_t answer_ms = 5; /* what the provider takes */

static bool gone(void) {
    return !w.l || w.dead || (now.disk == FILES && sim_dead());
}

static void answered(void *ctx, const struct loom_reply *reply) {
    struct request *r = ctx;
    if (gone()) return; /* nobody hears the dead */
    r->asked = false;
    if (r->status || reply->status >= 500) return; /* it is asked again */
    r->status = reply->status;
    r->answer = str_dup(lent(reply->body));
}

static void ask(struct request *r) {
    char *body = r->body ? quoted(r->body) : NULL;
    bool event = strcmp(r->op, "event") == 0;
    struct loom_str id = {r->id, r->id ? strlen(r->id) : 0}, go = {"go", 2};
    r->asked = true;
    loom_submit(w.l, &(struct loom_request){.op = r->op,
                                            .type = {r->type, r->type ? strlen(r->type) : 0},
                                            .key = {r->key, r->key ? strlen(r->key) : 0},
                                            .id = event ? go : id,
                                            .event_id = id,
                                            .body = {body, body ? strlen(body) : 0},
                                            .delay_ms = r->delay_ms,
                                            .timeout_ms = 600000,
                                            .limit = 1000,
                                            .at = -1,
                                            .reply = answered,
                                            .ctx = r});
    free(body);
}

/* The provider: what it is sent is an effect; one word is refused for good. */
static void sent(struct world *world, uint64_t id, struct str url, struct str key, struct str auth, struct str body) {
    (void)auth, (void)body;
    if (gone()) return;
    const char *known = map_get(&effects, key);
    must(key.n > 0, "a request without a key");
    must(!known || str_eq(str_of(known), url), "one key for two effects: %s and %.*s", known, (int)url.n, url.p);
    if (!known) map_put(&effects, arena_dup(&effect_mem, key), (char *)(uintptr_t)arena_dup(&effect_mem, url).p);
    bool refused = memmem(url.p, url.n, "refused", 7);
    world_answer(world, id, answer_ms, true,
                 refused ? STR("{\"status\":400,\"headers\":{},\"body\":null}")
                         : STR("{\"status\":200,\"headers\":{},\"body\":{\"ok\":true}}"));
}

static struct store *files(struct world *world, struct error *err) {
    bool power = sim_dead() && (now.struck_again ? now.then : now.fault) == SIM_POWER;
    if (sim_dead()) {
        sim_restart(power);
        if (now.after && !now.struck_again) sim_fail((enum sim_fault)now.then, now.after);
        now.struck_again = true;
    }
    if (now.fault == SIM_FULL && world->opened > 5) sim_fail(SIM_NONE, 0); /* space returns */
    if (world->blobs) world->blobs->ops->close(world->blobs);
    world->blobs = blob_file_open(SIM_ROOT "/blobs", err);
    return world->blobs ? store_sqlite_open(SIM_ROOT "/loom.db", &world->env, false, err) : NULL;
}

/* Rows in memory of which so many reads in a row fail, from the at-th on. */
static struct store *readable;
static uint64_t reads;
static struct str unreadable; /* or the row of this actor, always */

static bool read_fails(struct error *err) {
    bool fails = ++reads >= now.at && reads < now.at + (uint64_t)now.fault;
    if (fails) error_set(err, LOOM_E_STORE, "read %llu was told to fail", (unsigned long long)reads);
    return fails;
}

static int read_scan(struct store *s, enum row_kind kind, struct str from, struct str to, row_fn fn, void *ctx,
                     struct error *err) {
    if (unreadable.p && str_eq(from, unreadable)) return error_set(err, LOOM_E_STORE, "it cannot be read");
    return read_fails(err) ? LOOM_E_STORE : readable->ops->scan(s, kind, from, to, fn, ctx, err);
}

static struct store *reading(struct world *world, struct error *err) {
    static struct store_ops ops;
    static struct store array;
    struct store *s = world_array(world, err);
    array = *s;
    readable = &array;
    ops = *array.ops;
    ops.scan = read_scan;
    s->ops = &ops;
    return s;
}

static enum fault at_commit(struct world *world) {
    bool first = now.disk == ARRAY && world->commits == now.at;
    bool second = now.disk == ARRAY && now.after && world->commits == now.at + now.after;
    now.struck_again = now.struck_again || second;
    return (enum fault)(first ? now.fault : second ? now.then : FAULT_NONE);
}

/* One thing happens; a process that its disk has killed is dropped. */
static void step(void) {
    if (!w.l) world_open(&w);
    if (!gone()) world_step(&w);
    if (w.l && gone()) world_crash(&w);
}

/* Until the request is answered; asked again after each crash and each refusal. */
static void settle(struct request *r) {
    for (int i = 0; !r->status; i++) {
        must(i < 100000, "%s %s stays without an answer", r->op, r->id ? r->id : "");
        uint64_t life = w.opened;
        if (w.l && !gone() && !r->asked && i % 16 == 0) ask(r);
        step();
        if (w.opened != life || !w.l) r->asked = false;
    }
}

static struct str text_of(struct request r) {
    settle(&r);
    must(r.status == 200, "%s: %d %s", r.op, r.status, r.answer);
    return str_of(r.answer);
}

/* What there is to compare: the replies, every actor's status and state, the provider's effects. */
static struct buf outcome(void) {
    struct buf out = {0};
    for (size_t i = 0; i < REQUESTS; i++)
        buf_json(&out, "%z %d %s\n", requests[i].id, (int64_t)requests[i].status, requests[i].answer);
    struct str list = text_of((struct request){.op = "actors"});
    yyjson_doc *doc = yyjson_read(list.p, list.n, 0);
    size_t i, n;
    yyjson_val *a, *all = yyjson_obj_get(yyjson_doc_get_root(doc), "actors");
    yyjson_arr_foreach(all, i, n, a) {
        char *type = str_dup(json_str(a, "id")), *slash = strchr(type, '/');
        *slash = '\0';
        struct str state = text_of((struct request){.op = "state", .type = type, .key = slash + 1});
        buf_json(&out, "%s/%s %q %j\n", type, slash + 1, json_str(a, "status"), state);
        free((char *)(uintptr_t)state.p);
        free(type);
    }
    yyjson_doc_free(doc);
    free((char *)(uintptr_t)list.p);
    buf_json(&out, "%d effects\n", (int64_t)effects.count);
    return out;
}

static bool nothing_left(void) {
    return !w.l->failed && w.answer_count == 0 && batch_idle(w.l) && STAILQ_EMPTY(&w.l->runnable) &&
           w.l->attempts.count == 0 && alarms_next(w.l) > loom_now(w.l) + 1000;
}

/* Until every request is answered and nothing moves any more. A disk that was full has space again after a while. */
static void live(void) {
    for (int quiet = 0, i = 0; quiet < 5; i++) {
        must(i < 200000, "it does not come to an end: %zu answers, %zu attempts, idle %d, alarm in %lld",
             w.answer_count, w.l->attempts.count, batch_idle(w.l), (long long)(alarms_next(w.l) - loom_now(w.l)));
        if (now.disk == FILES && now.fault == SIM_FULL && w.mono_us > 1005000000) sim_fail(SIM_NONE, 0);
        if (!w.l) world_open(&w);
        uint64_t life = w.opened;
        bool all = true;
        if (getenv("VERBOSE") && i % 20000 == 0)
            for (int k = 0; k < REQUESTS; k++)
                print_message("%s %d %s\n", requests[k].id, requests[k].status,
                              requests[k].answer ? requests[k].answer : "-");
        for (struct request *r = requests; r < requests + REQUESTS; r++) {
            if (!r->status && !r->asked && world_roll(&w, 12) == 0)
                ask(r); /* so that they meet each other in many ways */
            all = all && r->status;
        }
        step();
        for (size_t r = 0; r < REQUESTS && (!w.l || w.opened != life); r++) requests[r].asked = false;
        quiet = all && w.l && !gone() && nothing_left() ? quiet + 1 : 0;
    }
}

/* ---- a store with everything deployed, made once for each kind ---- */

static struct sim_image *deployed_files;
static struct array_faults deployed_rows;
static struct blob_store *memory;

static void forget(void) {
    for (struct request *r = requests; r < requests + REQUESTS; r++) {
        free(r->answer);
        r->answer = NULL;
        r->status = 0;
        r->asked = false;
    }
    map_free(&effects);
    arena_free(&effect_mem);
}

static void world_end(void) {
    if (w.l) world_crash(&w);
    if (w.blobs && w.blobs != memory) w.blobs->ops->close(w.blobs);
    world_free(&w);
    w = (struct world){0};
}

static void world_begin(void) {
    world_end(); /* what a failed run left */
    forget();
    world_init(&w, now.seed);
    w.engine = engine;
    w.ctx = &rows;
    w.blobs = now.disk == FILES ? NULL : memory;
    w.under = now.disk == FILES ? files : now.disk == READS ? reading : world_array;
    reads = 0;
    w.fault = at_commit;
    w.sent = sent;
}

static void put(const char *op, const char *name, const char *body) {
    struct request r = {.op = op, .type = name, .key = "1", .body = body};
    settle(&r);
    must(r.status == 201, "%s %s: %d %s", op, name, r.status, r.answer);
    free(r.answer);
}

static void put_module(const char *name, struct str wasm) {
    struct request r = {.op = "module.put"};
    loom_submit(w.l, &(struct loom_request){.op = r.op,
                                            .type = {name, strlen(name)},
                                            .key = {"1", 1},
                                            .body = {wasm.p, wasm.n},
                                            .reply = answered,
                                            .ctx = &r});
    r.asked = true;
    settle(&r);
    free(r.answer);
}

static void deploy(enum disk disk) {
    now.disk = disk;
    now.seed = 1;
    now.fault = 0;
    sim_format(1);
    world_begin();
    world_open(&w);
    put_module("script", script_wasm());
    put("actor-type.put", "script",
        "{'actorType':'script','version':'1','wasmBlobUrl':'module:script@1','journalRetention':0}");
    put("workflow.put", "order", order);
    world_close(&w);
    world_end();
    if (disk == FILES) {
        sim_restart(true);
        deployed_files = sim_save();
    } else {
        array_copy(&deployed_rows, &rows);
    }
}

/* ---- runs ---- */

static struct buf expected;
static uint64_t commits, operations;

static void run(int fault, uint64_t at) {
    now.fault = fault;
    now.at = at;
    now.struck_again = false;
    if (now.disk == FILES) {
        sim_load(deployed_files);
        sim_restart(false);
        sim_fail((enum sim_fault)fault, at);
    } else {
        array_free(&rows);
        array_copy(&rows, &deployed_rows);
    }
    world_begin();
    live();
    if (fault == 0) commits = w.commits;
    if (fault == 0) operations = sim_operations();
    struct buf out = outcome();
    if (getenv("VERBOSE")) print_message("%.*s", (int)out.n, out.p);
    if (!expected.n) {
        expected = out;
        world_end();
        return;
    }
    must(str_eq(buf_view(&out), buf_view(&expected)), "undisturbed:\n%.*s\nnow:\n%.*s", (int)expected.n, expected.p,
         (int)out.n, out.p);
    buf_free(&out);
    world_crash(&w);
    world_open(&w); /* what is read again is what was there, and recovery finds nothing to do */
    out = outcome();
    must(str_eq(buf_view(&out), buf_view(&expected)), "undisturbed:\n%.*s\nafter a last crash:\n%.*s", (int)expected.n,
         expected.p, (int)out.n, out.p);
    buf_free(&out);
    world_end();
}

static void at_every_commit(enum fault fault) {
    uint64_t runs = 0;
    now.disk = ARRAY;
    for (now.seed = 1; now.seed <= SEEDS; now.seed++) {
        run(FAULT_NONE, 0);
        uint64_t n = commits;
        for (uint64_t at = 1; at <= n; at++, runs++) run((int)fault, at);
    }
    now.seed = 1;
    print_message("%llu runs\n", (unsigned long long)runs);
}

static void at_every_operation(enum sim_fault fault) {
    now.disk = FILES;
    run(SIM_NONE, 0);
    uint64_t n = operations;
    bool *strikes = mem_alloc(n + 1);
    for (uint64_t at = 1; at <= n; at++) strikes[at] = sim_strikes(fault, at);
    size_t runs = 0;
    for (uint64_t at = 1; at <= n; at++)
        if (strikes[at]) run((int)fault, at), runs++;
    free(strikes);
    print_message("%llu operations, %zu runs\n", (unsigned long long)n, runs);
}

/* A world in which nothing is wrong, on the deployed rows. */
static void begin(enum disk disk) {
    now.disk = disk;
    now.seed = 1;
    now.fault = 0;
    array_free(&rows);
    array_copy(&rows, &deployed_rows);
    world_begin();
}

/* One read fails, or so many that the worker gives up. */
static void fault_05_every_read_fails(void **state) {
    (void)state;
    static const int lengths[] = {1, 40};
    now.disk = READS;
    run(0, 0);
    uint64_t n = reads;
    for (uint64_t at = 1; at <= n; at++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) run(lengths[i], at);
    print_message("%llu reads\n", (unsigned long long)n);
}

/* A worker that cannot read a row whenever it tries gives up; the next one, that can, goes on. */
static void fault_05_one_row_is_never_read(void **state) {
    (void)state;
    struct request call = {.op = "call", .type = "script", .key = "z", .id = "z", .body = "[['return',1]]"};
    begin(READS);
    unreadable = STR("default/script/z");
    for (int i = 0; w.opened < 2; i++) {
        must(i < 100000, "the worker goes on and on");
        if (w.l && !gone() && !call.asked) ask(&call);
        step();
    }
    unreadable = STR_NONE;
    must(!call.status, "%d %s", call.status, call.answer);
    call.asked = false;
    settle(&call);
    must(call.status == 200, "%d %s", call.status, call.answer);
    free(call.answer);
    world_end();
}

/* A value that is kept as a blob is refused, or there and whole, wherever its disk is full or fails. */
static void fault_04_and_05_large_values(void **state) {
    (void)state;
    static const enum sim_fault faults[] = {SIM_FULL_ONCE, SIM_EIO_ONCE};
    static char body[300100] = "[['return','", want[300003];
    memset(body + strlen(body), 'x', 300000);
    strcat(body, "']]");
    memset(want, 'x', 300002);
    want[0] = want[300001] = '"';
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        bool struck = true;
        for (uint64_t at = 1; struck; at++) {
            struct request call = {.op = "call", .type = "script", .key = "z", .id = "z", .body = body};
            begin(FILES);
            sim_load(deployed_files);
            sim_restart(false);
            world_open(&w);
            sim_fail(faults[i], sim_operations() + at);
            for (int life = 0; life < 2; life++) { /* the second has nothing but what is stored */
                settle(&call);
                must(call.status == 200 && strcmp(call.answer, want) == 0, "%d %.100s", call.status, call.answer);
                free(call.answer);
                call.status = 0;
                if (life == 0) struck = sim_struck();
                world_crash(&w);
            }
            world_end();
        }
    }
}

/* The heap knows of a timer shortly before it is due; one that is far away fires then all the same, also after a crash. */
static void far_timer(void **state) {
    (void)state;
    enum { FAR_MS = 500 * 1000 };
    struct request call = {.op = "call", .type = "script", .key = "z", .id = "z"};
    call.body = "[['timer',{'delayMs':500000}],['await',{'promises':[1]}]]";
    begin(ARRAY);
    int64_t from = w.env.mono_ms(&w.env);
    world_open(&w);
    ask(&call);
    for (int i = 0; i < 100; i++) step();
    world_crash(&w);
    world_open(&w);
    ask(&call);
    settle(&call);
    int64_t took = w.env.mono_ms(&w.env) - from;
    must(call.status == 200 && took >= FAR_MS && took < FAR_MS + 1000, "%d after %lld ms", call.status,
         (long long)took);
    free(call.answer);
    world_end();
}

static int journal_rows_written;

static void count_rows(struct world *world, const struct batch *b) {
    (void)world;
    for (size_t i = 0; i < b->count; i++) journal_rows_written += b->rows[i].kind == ROW_JOURNAL;
}

/* Where more guests wait than there are slots, those that have waited longest make room, no more of them than are needed,
 * and all come to their end. A turn begins when there is an instance for it: with its first wait it is one row. */
static void more_guests_than_slots(void **state) {
    (void)state;
    enum { GUESTS = 26 };
    static const uint32_t slots[] = {3, 20};
    for (size_t s = 0; s < 2; s++) {
        struct error err;
        struct request calls[GUESTS], go = {.op = "event", .type = "script", .id = "go"};
        char names[GUESTS][2];
        begin(ARRAY);
        w.engine = exec_engine_new(slots[s], 2000000, &err);
        w.committed = count_rows;
        w.jump_max_ms = 10; /* or the callers would give up */
        world_open(&w);
        journal_rows_written = 0;
        int64_t evicted = metric_get(METRIC_EVICTIONS), stay = exec_engine_share(w.engine) - 1;
        for (int i = 0; i < GUESTS; i++) {
            strcpy(names[i], (char[]){(char)('a' + i), '\0'});
            calls[i] = (struct request){.op = "call", .type = "script", .key = names[i], .id = names[i]};
            calls[i].body = "[['event.wait',{'type':'go'}],['await',{'promises':[1]}]]";
            ask(&calls[i]);
        }
        for (int i = 0; i < 3000; i++) step();
        evicted = metric_get(METRIC_EVICTIONS) - evicted;
        must(journal_rows_written == GUESTS, "%d rows", journal_rows_written);
        must(evicted == GUESTS - stay, "%lld evicted", (long long)evicted);
        for (int i = 0; i < GUESTS; i++) {
            go.key = names[i];
            go.status = 0;
            settle(&go);
            free(go.answer);
            settle(&calls[i]);
            must(calls[i].status == 200, "%d %s", calls[i].status, calls[i].answer);
            free(calls[i].answer);
        }
        struct exec_engine *own = w.engine;
        world_end();
        exec_engine_free(own);
    }
}

#define STEP(n) HTTP(n) "," AWAIT(n)

/* Guests that only wait for an activity do not evict each other at each step, although they are more than the slots. */
static void more_working_guests_than_slots(void **state) {
    (void)state;
    enum { GUESTS = 8 };
    struct error err;
    struct request calls[GUESTS];
    char names[GUESTS][2];
    begin(ARRAY);
    answer_ms = 0;
    w.engine = exec_engine_new(5, 2000000, &err);
    world_open(&w);
    int64_t replays = metric_get(METRIC_REPLAYS);
    for (int i = 0; i < GUESTS; i++) {
        strcpy(names[i], (char[]){(char)('a' + i), '\0'});
        calls[i] = (struct request){.op = "call", .type = "script", .key = names[i], .id = names[i]};
        calls[i].body = "[" STEP("1") "," STEP("2") "," STEP("3") "," STEP("4") "," STEP("5") "," STEP("6") "]";
        ask(&calls[i]);
    }
    for (int i = 0; i < GUESTS; i++) {
        settle(&calls[i]);
        must(calls[i].status == 200, "%d %s", calls[i].status, calls[i].answer);
        free(calls[i].answer);
    }
    replays = metric_get(METRIC_REPLAYS) - replays;
    must(replays <= 2 * GUESTS, "%lld replays", (long long)replays);
    struct exec_engine *own = w.engine;
    world_end();
    exec_engine_free(own);
    answer_ms = 5;
}

/* ---- poison ---- */

static bool deadly;

/* The door of native guests; guest.h has words that the engine has, too. */
int32_t loom_native_op(const char *name, size_t name_len, const char *arg, size_t arg_len);
void loom_native_take(void *to);

static int32_t op(const char *name, const char *arg) {
    return loom_native_op(name, strlen(name), arg, strlen(arg));
}

/* Takes the process down, in a slice that is not its first, at once or when its timer has fired; a program that has
 * changed meanwhile ends early. */
static void killer(void) {
    char how[32] = "";
    op("input", "");
    loom_native_take(how);
    if (strstr(how, "changed") && w.opened > 3) op("return", "\"early\"");
    if (!strstr(how, "mail")) op("timer", "{\"delayMs\":20}");
    if (!strstr(how, "mail")) op("await", "{\"promises\":[1]}");
    for (int i = 0; i < 600; i++) op("now", "null");
    if (deadly) w.dead = true;
    op("return", "\"alive\"");
}

/* A message, or a turn, in whose course the worker died again and again is given up, and says so; later mail goes on. */
static void fault_16_poison(void **state) {
    (void)state;
    static const char *const kinds[] = {"'mail'", "'turn'", "'changed'"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        begin(ARRAY);
        deadly = true;
        struct request sent_one = {
            .op = "send", .type = "killer", .key = "k", .id = "r", .delay_ms = 20, .body = kinds[i]};
        struct request again = sent_one, status = {.op = "get", .type = "killer", .key = "k"};
        settle(&sent_one);
        must(sent_one.status == 202, "%d %s", sent_one.status, sent_one.answer);
        for (int k = 0; k < 300; k++) step();
        must(w.opened >= 4 && w.opened < 12, "%llu lives", (unsigned long long)w.opened);
        deadly = false;
        settle(&status);
        if (i == 2) {
            must(strstr(status.answer, "\"status\":\"paused\""), "%s", status.answer);
        } else {
            again.op = "call";
            again.delay_ms = 0;
            settle(&again);
            must(again.status == 422 && strstr(again.answer, "poison"), "%s %llu: %d %s", kinds[i],
                 (unsigned long long)w.opened, again.status, again.answer);
            struct request later = {.op = "call", .type = "killer", .key = "k", .id = "later", .body = "'mail'"};
            settle(&later);
            must(later.status == 200, "%d %s", later.status, later.answer);
            free(later.answer);
        }
        free(again.answer);
        free(status.answer);
        free(sent_one.answer);
        world_end();
    }
}

/* Every pair: the second fault at each commit, or at each operation of the life, that follows; until none is left to strike. */
static size_t pairs_from(int fault, uint64_t at, int then) {
    now.then = then;
    size_t runs = 0;
    for (now.after = 1, now.struck_again = true; now.struck_again; now.after++, runs++) {
        run(fault, at);
        if (now.disk == FILES && !sim_struck()) now.struck_again = false;
    }
    now.after = 0;
    return runs;
}

/* A recovery that fails, too: two kills at any two commits; in a soak any two faults, and any two kills of the disk. */
static void fault_03_faults_in_pairs(void **state) {
    (void)state;
    bool soak = getenv("SOAK") != NULL;
    size_t runs = 0;
    now.disk = ARRAY;
    run(FAULT_NONE, 0);
    uint64_t n = commits;
    int from = soak ? FAULT_ERROR : FAULT_KILLED, to = soak ? FAULT_SYNC_KEPT : FAULT_KILLED_BY;
    for (int first = from; first <= to; first++)
        for (int then = from; then <= to; then++) {
            for (uint64_t at = 1; at <= n; at++) runs += pairs_from(first, at, then);
            if (soak) print_message("fault %d, then %d: %zu runs\n", first, then, runs);
        }
    now.disk = FILES;
    if (soak) run(SIM_NONE, 0);
    n = soak ? operations : 0;
    for (uint64_t at = 1; at <= n; at++)
        for (int then = SIM_KILL; then <= SIM_POWER; then++) {
            runs += pairs_from(at % 2 ? SIM_KILL : SIM_POWER, at, then);
            print_message("%llu of %llu operations, %zu runs\n", (unsigned long long)at, (unsigned long long)n, runs);
        }
    print_message("%zu runs\n", runs);
}

#define COMMIT(name, fault)          \
    static void name(void **state) { \
        (void)state;                 \
        at_every_commit(fault);      \
    }
#define OPERATION(name, fault)       \
    static void name(void **state) { \
        (void)state;                 \
        at_every_operation(fault);   \
    }
COMMIT(fault_01_killed_before_every_commit, FAULT_KILLED)
COMMIT(fault_01_killed_after_every_commit, FAULT_KILLED_BY)
COMMIT(fault_04_full_at_every_commit, FAULT_FULL)
COMMIT(fault_05_error_at_every_commit, FAULT_ERROR)
COMMIT(fault_06_sync_lost_at_every_commit, FAULT_SYNC_LOST)
COMMIT(fault_06_sync_kept_at_every_commit, FAULT_SYNC_KEPT)
OPERATION(fault_01_killed_at_every_operation, SIM_KILL)
OPERATION(fault_02_power_lost_at_every_operation, SIM_POWER)
OPERATION(fault_04_full_at_every_operation, SIM_FULL_ONCE)
OPERATION(fault_04_full_from_every_operation, SIM_FULL)
OPERATION(fault_05_io_error_at_every_operation, SIM_EIO_ONCE)
OPERATION(fault_06_sync_fails_at_every_operation, SIM_SYNC)

static void one_run(void **state) {
    (void)state;
    now.disk = (enum disk)atoi(getenv("DISK"));
    now.seed = strtoull(getenv("WORLD"), NULL, 10);
    run(0, 0);
    now.then = getenv("THEN") ? atoi(getenv("THEN")) : 0;
    now.after = getenv("AFTER") ? strtoull(getenv("AFTER"), NULL, 10) : 0;
    run(atoi(getenv("FAULT")), strtoull(getenv("AT"), NULL, 10));
}

static int set_up(void **state) {
    (void)state;
    struct error err;
    loom_register_actor("killer", killer);
    engine = exec_engine_new(64, 2000000, &err);
    memory = blob_file_open(NULL, &err);
    deploy(ARRAY);
    deploy(FILES);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    forget();
    buf_free(&expected);
    array_free(&rows);
    array_free(&deployed_rows);
    sim_image_free(deployed_files);
    sim_format(1);
    memory->ops->close(memory);
    exec_engine_free(engine);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fault_01_killed_before_every_commit),
        cmocka_unit_test(fault_01_killed_after_every_commit),
        cmocka_unit_test(fault_04_full_at_every_commit),
        cmocka_unit_test(fault_05_error_at_every_commit),
        cmocka_unit_test(fault_06_sync_lost_at_every_commit),
        cmocka_unit_test(fault_06_sync_kept_at_every_commit),
        cmocka_unit_test(fault_01_killed_at_every_operation),
        cmocka_unit_test(fault_02_power_lost_at_every_operation),
        cmocka_unit_test(fault_04_full_at_every_operation),
        cmocka_unit_test(fault_04_full_from_every_operation),
        cmocka_unit_test(fault_05_io_error_at_every_operation),
        cmocka_unit_test(fault_06_sync_fails_at_every_operation),
        cmocka_unit_test(fault_05_every_read_fails),
        cmocka_unit_test(fault_05_one_row_is_never_read),
        cmocka_unit_test(fault_04_and_05_large_values),
        cmocka_unit_test(far_timer),
        cmocka_unit_test(more_guests_than_slots),
        cmocka_unit_test(more_working_guests_than_slots),
        cmocka_unit_test(fault_16_poison),
        cmocka_unit_test(fault_03_faults_in_pairs),
    };
    if (getenv("DISK")) {
        const struct CMUnitTest one[] = {cmocka_unit_test(one_run)};
        return cmocka_run_group_tests(one, set_up, tear_down);
    }
    cmocka_set_test_filter(getenv("CASE"));
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
