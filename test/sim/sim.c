/* sim.c: the whole engine, its WASM guests included, in one thread and one seed.
 *
 * usage: sim SEED [COUNT]     that many seeds from there; COUNT 0: on and on
 *        sim sabotage         plants each fault of `switches` and says how many seeds it takes to find it
 */
#include "sim.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <support/guests.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { STEPS_CHAOS = 1500, STEPS_MAX = 100000, DEATHS_MAX = 1000, SEEDS_MAX = 2000 };

const char *sabotage;
static uint64_t current_seed;
static struct world *current_world;

void sim_fails(struct sim *s, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    if (getenv("SIM_LOG")) check_print(s);
    fprintf(stderr, "seed %" PRIu64 " step %" PRIu64 ": ", s->seed, s->steps);
    vfprintf(stderr, fmt, ap);
    char why[100] = "";
    if (sabotage) vsnprintf(why, sizeof why, fmt, again);
    printf("%.*s", (int)strcspn(why, "\n"), why);
    fprintf(stderr, "\nrepeat it: make sim SEED=%" PRIu64 "\n", s->seed);
    va_end(ap);
    exit(1);
}

void sim_says(struct sim *s, const char *fmt, ...) {
    if (!getenv("SIM_LOG")) return;
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "step %" PRIu64 ": ", s->steps);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}

/* An assertion of the engine: the seed is what matters. */
static void on_abort(int signal) {
    (void)signal;
    fprintf(stderr, "seed %" PRIu64 ": the engine aborted\nrepeat it: make sim SEED=%" PRIu64 "\n", current_seed,
            current_seed);
}

/* ---- what every seed begins with: the guests, deployed once ---- */

/* Instances at once: as many as there are, or so few that actors and activities wait for each other's. */
enum { ENGINES = 4 };
static const uint32_t slots[ENGINES] = {0, 1, 2, 5};

static struct {
    struct exec_engine *engine[ENGINES];
    struct blob_store *blobs;
    struct array_faults rows;
} deployed;

static void ok(void *ctx, const struct loom_reply *reply) {
    if (reply->status >= 300) {
        fprintf(stderr, "%s: %d %.*s\n", (const char *)ctx, reply->status, (int)reply->body.n, reply->body.p);
        exit(1);
    }
}

static void deploy(struct world *w, const char *op, const char *name, struct str body) {
    for (int i = 0; i < SPACES; i++) {
        struct loom_request req = {.op = op,
                                   .ns = {namespaces[i], strlen(namespaces[i])},
                                   .type = {name, strlen(name)},
                                   .key = {"1", 1},
                                   .body = {body.p, body.n},
                                   .reply = ok,
                                   .ctx = (void *)(uintptr_t)name};
        loom_submit(w->l, &req);
    }
    while (world_step(w)) continue;
}

static struct store *on_rows(struct world *w, struct error *err) {
    struct sim *s = (struct sim *)w;
    (void)err;
    return s->store = store_array_open(&s->rows);
}

static void begin(struct sim *s, uint64_t seed) {
    static const char project[] = "{\"network\":{\"connectTo\":{\"bank.test:443\":\"127.0.0.1:9\"}},"
                                  "\"secrets\":{\"BANK_KEY\":{\"env\":\"BANK_KEY\",\"hosts\":[\"bank.test\"]}}}";
    *s = (struct sim){.seed = seed};
    world_init(&s->w, seed);
    s->w.config = (struct loom_config){.store = "memory", .project = project, .threads = 1};
    s->w.under = on_rows;
    s->w.blobs = deployed.blobs;
    s->w.engine = deployed.engine[0];
    s->w.sent = load_bank;
}

static void deploy_all(struct sim *s) {
    struct buf node = guest_c("#include <test/sim/guests/node.c>\n"),
               pay = guest_c("#include <test/sim/guests/pay.c>\n"), order = {0}, type = {0}, activity = {0};
    if (!path_read("test/sim/guests/order.json", &order)) abort();
    world_open(&s->w);
    deploy(&s->w, "module.put", "node", buf_view(&node));
    deploy(&s->w, "module.put", "pay", buf_view(&pay));
    buf_json(&type, NODE, "1", (int64_t)0);
    buf_json(&activity, PAY, "1", (int64_t)0);
    deploy(&s->w, "actor-type.put", "node", buf_view(&type));
    deploy(&s->w, "activity.put", "pay", buf_view(&activity));
    deploy(&s->w, "workflow.put", "order", buf_view(&order));
    world_close(&s->w);
    world_free(&s->w);
    buf_free(&node);
    buf_free(&pay);
    buf_free(&order);
    buf_free(&type);
    buf_free(&activity);
}

static void set_up(void) {
    static struct sim s;
    struct error err;
    setenv("BANK_KEY", CANARY, 1);
    deployed.blobs = blob_file_open(NULL, &err);
    for (int i = ENGINES - 1; i >= 0; i--) {
        deployed.engine[i] = exec_engine_new(slots[i], 2000000, &err);
        array_free(&s.rows);
        begin(&s, 0);
        s.w.engine = deployed.engine[i];
        deploy_all(&s);
    }
    array_copy(&deployed.rows, &s.rows);
    array_free(&s.rows);
    begin(&s, 0);
    disk_begin(&s);
    deploy_all(&s);
    disk_keep();
    disk_end(&s);
}

/* A native guest, so that it can take its process down: once it is durable, since what is not dies with the process. */
extern int32_t loom_native_op(const char *name, size_t name_len, const char *arg, size_t arg_len);

static void poison(void) {
    static const char timer[] = "{\"delayMs\":5}", await[] = "{\"promises\":[1]}";
    loom_native_op("timer", 5, timer, strlen(timer));
    loom_native_op("await", 5, await, strlen(await));
    current_world->dead = true;
}

/* ---- what goes wrong ---- */

static enum fault fault(struct world *w) {
    struct sim *s = (struct sim *)w;
    if (!s->chaos || (int)world_roll(w, 100) >= s->fault_percent) return FAULT_NONE;
    return s->spared ? FAULT_NONE : (enum fault)(1 + world_roll(w, FAULT_SYNC_KEPT));
}

/* Until it opens. Each second recovery is left alone: otherwise chance would look like a message that kills its worker. */
static void start(struct sim *s) {
    struct error err;
    s->w.mono_us += (int64_t)world_roll(&s->w, 2000) * 1000;
    do {
        s->spared = ++s->deaths % 2 == 0;
        if (s->deaths > DEATHS_MAX) sim_fails(s, "the process has died %d times: %s", DEATHS_MAX, err.message);
        if (s->on_disk) disk_start(s);
    } while (!world_try(&s->w, &err));
    s->spared = false;
    check_store(s);
}

/* The process that has lost its store goes on until it notices, or for a while. */
static void zombie_step(struct sim *s) {
    if (!s->zombie || world_roll(&s->w, 3)) return;
    struct pending *p = NULL;
    if (world_roll(&s->w, 2))
        loom_pass(s->zombie);
    else
        p = batch_write(s->zombie, false);
    if (p) batch_sync(s->zombie, p);
    if (!s->w.dead && s->chaos && world_roll(&s->w, 50)) return;
    s->w.dead = true;
    loom_abandon(s->zombie);
    s->w.dead = false;
    s->zombie = NULL;
}

static void go_wrong(struct sim *s) {
    if (!s->chaos || world_roll(&s->w, (uint64_t)s->crash_every)) return;
    uint64_t how = world_roll(&s->w, 4);
    if (how == 0)
        world_close(&s->w);
    else if (how == 1 && !s->zombie)
        s->zombie = world_zombie(&s->w);
    else
        world_crash(&s->w);
}

/* ---- one seed ---- */

static void one_step(struct sim *s) {
    s->steps++;
    s->w.jump_max_ms = s->open_requests ? 10000 : 0; /* clients do not wait for hours */
    load_step(s);
    zombie_step(s);
    if (s->on_disk) disk_step(s);
    world_step(&s->w);
    if (s->w.l) go_wrong(s);
    if (!s->w.l) start(s);
}

static uint64_t run(uint64_t seed) {
    static struct sim s;
    current_seed = seed;
    current_world = &s.w;
    begin(&s, seed);
    if (world_roll(&s.w, 2)) s.w.engine = deployed.engine[world_roll(&s.w, ENGINES)];
    if (seed % 4)
        array_copy(&s.rows, &deployed.rows);
    else
        disk_begin(&s);
    s.seq = seed % 4 ? s.rows.seq : 0;
    s.w.fault = fault;
    s.w.committed = check_commit;
    s.w.config.evict_always = world_roll(&s.w, 3) == 0;
    s.w.config.memory_budget = world_roll(&s.w, 4) == 0;
    s.w.config.idle_ms = world_roll(&s.w, 2) ? 50 : 60000;
    s.chaos = true;
    s.fault_percent = (int)world_roll(&s.w, 12);
    s.crash_every = 20 << world_roll(&s.w, 7);
    load_make(&s);
    start(&s);
    for (uint64_t chaos = world_roll(&s.w, STEPS_CHAOS); s.steps < chaos;) one_step(&s);
    s.chaos = false;
    struct buf what = {0};
    while (s.zombie || s.open_requests > 0 || !check_rests(&s, &what)) {
        if (s.steps > STEPS_MAX)
            sim_fails(&s, "%d requests are open and the engine does not rest: %.*s", s.open_requests, (int)what.n,
                      what.p);
        one_step(&s);
    }
    buf_free(&what);
    world_crash(&s.w);
    start(&s);
    check_end(&s);
    check_damage(&s);
    world_close(&s.w);
    uint64_t trace = s.w.trace;
    world_free(&s.w);
    load_free(&s);
    check_forget(&s);
    array_free(&s.rows);
    if (s.on_disk) disk_end(&s);
    return trace;
}

/* ---- sabotage ---- */

static const char *const switches[] = {"ack before sync",
                                       "no term in update",
                                       "no term in delete",
                                       "no term in SQL",
                                       "no dedup",
                                       "attempt counted after the run",
                                       "timer only in memory",
                                       "snapshot without its journal position",
                                       "rollback not checked",
                                       "key not from position",
                                       "retry with changed input",
                                       "secret journaled",
                                       "checksum skipped",
                                       "checkpoint not synced"},
                         elsewhere[] = "needs a cluster: UNKNOWN as failed, UNKNOWN as success, wall clock for leases\n"
                                       "needs a language model's stream: partial stream accepted\n";

/* In a process of its own, which ends at the first seed that finds it. */
static bool is_found(const char *name) {
    int status = 0;
    uint64_t *seeds = mmap(NULL, sizeof *seeds, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        printf("%-38s ", name);
        fflush(stdout);
        freopen("/dev/null", "w", stderr);
        sabotage = name;
        set_up();
        for (*seeds = 1; *seeds <= SEEDS_MAX; ++*seeds) run(*seeds);
        exit(0);
    }
    waitpid(pid, &status, 0);
    printf(status ? ": %" PRIu64 " seeds\n" : "NOT FOUND in %" PRIu64 " seeds\n", *seeds);
    return status;
}

static int all_found(void) {
    int missed = 0;
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) missed += !is_found(switches[i]);
    fputs(elsewhere, stdout);
    return missed;
}

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1, count = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    log_open(2, getenv("SIM_LOG") ? LOG_INFO : LOG_FATAL + 1);
    signal(SIGABRT, on_abort);
    loom_register_actor("poison", poison);
    if (argc > 1 && strcmp(argv[1], "sabotage") == 0) return all_found();
    set_up();
    for (uint64_t i = 0; count == 0 || i < count; i++) {
        uint64_t trace = run(seed + i);
        if (count == 1 && run(seed + i) != trace) {
            printf("seed %" PRIu64 " went two ways\n", seed);
            return 1;
        }
        if (count == 1) printf("seed %" PRIu64 ": trace %016" PRIx64 "\n", seed, trace);
        if (count != 1 && (i + 1) % 100 == 0) printf("%" PRIu64 " seeds, the last one %" PRIu64 "\n", i + 1, seed + i);
    }
    array_free(&deployed.rows);
    disk_free();
    for (int i = 0; i < ENGINES; i++) exec_engine_free(deployed.engine[i]);
    deployed.blobs->ops->close(deployed.blobs);
    return 0;
}
