/* engine.c: Loom through its library API, without HTTP.
 *
 *     engine MEASURE GUESTS STORE [ARGUMENT…]      GUESTS: folder of the compiled bench/guest/, STORE: folder of the store
 *
 * Each measure is a row of `measures` below; the stores of `seed`, `count` and `journal` are what other measures open.
 */
#include "bench.h"

#include <malloc.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define DATA "{\"text\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}"
_Static_assert(sizeof DATA == 101, "W1's echo carries 100 bytes");
enum { STEPS = 100, ACTORS = 1000 };

struct bench {
    const char *guests, *store;
    char **args;
    struct loom_config config;
    struct loom *loom;
};

static struct loom_str str(const char *z) {
    return (struct loom_str){z, strlen(z)};
}

/* ---- a closed loop: so many requests, so many at a time; each reply submits the next ---- */

struct load {
    struct loom *loom;
    const char *op, *type, *body, *event;
    int first, total, keys; /* request i goes to actor (first + i) % keys; keys 0: an actor of its own */
    int at_once;
    bool named; /* each with a message id made from the actor's key, so that it can be repeated */
    atomic_int next, done;
    double *sent, *took; /* µs, one per request */
    pthread_mutex_t lock;
    pthread_cond_t ready;
};
struct sent {
    struct load *load;
    int i;
};

static void submit_next(struct load *d);

static void answered(void *ctx, const struct loom_reply *reply) {
    struct sent *s = ctx;
    struct load *d = s->load;
    if (reply->status >= 400 || (reply->status == 202 && strcmp(d->op, "call") == 0)) {
        fprintf(stderr, "bench: %s answered %d: %.*s\n", d->op, reply->status, (int)reply->body.n, reply->body.p);
        _exit(1);
    }
    d->took[s->i] = now_us() - d->sent[s->i];
    free(s);
    submit_next(d);
    if (atomic_fetch_add(&d->done, 1) + 1 < d->total) return;
    pthread_mutex_lock(&d->lock);
    pthread_cond_signal(&d->ready);
    pthread_mutex_unlock(&d->lock);
}

static void submit_next(struct load *d) {
    int i = atomic_fetch_add(&d->next, 1);
    if (i >= d->total) return;
    char key[16], id[32];
    struct sent *s = malloc(sizeof *s);
    *s = (struct sent){d, i};
    snprintf(key, sizeof key, "%07d", d->keys ? (d->first + i) % d->keys : d->first + i);
    snprintf(id, sizeof id, "m%s", key);
    struct loom_request r = {.op = d->op, .type = str(d->type), .key = str(key), .body = str(d->body), .at = -1};
    r.timeout_ms = 600000;
    r.id = d->event ? str(d->event) : d->named ? str(id) : (struct loom_str){0};
    r.reply = answered;
    r.ctx = s;
    d->sent[i] = now_us();
    loom_submit(d->loom, &r);
}

static void load_begin(struct load *d) {
    d->sent = malloc((size_t)d->total * sizeof *d->sent);
    d->took = malloc((size_t)d->total * sizeof *d->took);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->ready, NULL);
    for (int i = 0; i < d->at_once; i++) submit_next(d);
}

static void load_end(struct load *d) {
    pthread_mutex_lock(&d->lock);
    while (atomic_load(&d->done) < d->total) pthread_cond_wait(&d->ready, &d->lock);
    pthread_mutex_unlock(&d->lock);
}

static void load_free(struct load *d) {
    free(d->sent);
    free(d->took);
}

/* Seconds. */
static double load_run(struct load *d) {
    double from = now_us();
    load_begin(d);
    load_end(d);
    return (now_us() - from) / 1e6;
}

/* ---- the engine ---- */

static void one(struct loom *l, struct loom_request r, void (*look)(void *, const struct loom_reply *), void *ctx);

struct wait {
    void (*look)(void *, const struct loom_reply *);
    void *ctx;
    pthread_mutex_t lock;
    pthread_cond_t ready;
    bool done;
};

static void one_answered(void *ctx, const struct loom_reply *reply) {
    struct wait *w = ctx;
    if (reply->status >= 400) {
        fprintf(stderr, "bench: answered %d: %.*s\n", reply->status, (int)reply->body.n, reply->body.p);
        _exit(1);
    }
    if (w->look) w->look(w->ctx, reply);
    pthread_mutex_lock(&w->lock);
    w->done = true;
    pthread_cond_signal(&w->ready);
    pthread_mutex_unlock(&w->lock);
}

/* One request, waited for. */
static void one(struct loom *l, struct loom_request r, void (*look)(void *, const struct loom_reply *), void *ctx) {
    struct wait w = {look, ctx, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
    r.reply = one_answered;
    r.ctx = &w;
    loom_submit(l, &r);
    pthread_mutex_lock(&w.lock);
    while (!w.done) pthread_cond_wait(&w.ready, &w.lock);
    pthread_mutex_unlock(&w.lock);
}

static void put(struct bench *b, const char *op, const char *name, struct loom_str body) {
    one(b->loom, (struct loom_request){.op = op, .type = str(name), .key = str("1.0.0"), .body = body, .replace = true},
        NULL, NULL);
}

static void put_module(struct bench *b, const char *name) {
    static char bytes[1 << 20];
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.wasm", b->guests, name);
    FILE *f = fopen(path, "rb");
    if (!f) die("cannot open", path);
    put(b, "module.put", name, (struct loom_str){bytes, fread(bytes, 1, sizeof bytes, f)});
    fclose(f);
}

static void put_definition(struct bench *b, const char *op, const char *field, const char *name, const char *module,
                           const char *more) {
    char text[1024];
    snprintf(text, sizeof text, "{\"%s\":\"%s\",\"version\":\"1.0.0\",\"wasmBlobUrl\":\"module:%s@1.0.0\"%s}", field,
             name, module, more);
    put(b, op, name, str(text));
}

static void start(struct bench *b) {
    char message[1024];
    b->config.store = b->store;
    b->loom = loom_open(&b->config, message, sizeof message);
    if (!b->loom) die("loom_open", message);
}

static void deploy(struct bench *b) {
    static const char *const actors[] = {"steps", "counter", "waiter"};
    for (size_t i = 0; i < 3; i++) {
        put_module(b, actors[i]);
        put_definition(b, "actor-type.put", "actorType", actors[i], actors[i],
                       ",\"limits\":{\"maxMemoryMB\":16,\"maxExecutionMs\":60000}");
    }
    put_module(b, "echo");
    put_definition(b, "activity.put", "activityName", "effects", "echo",
                   ",\"capabilities\":{\"network\":[\"127.0.0.1\"]}");
    put_definition(b, "activity.put", "activityName", "pure", "echo", "");
    put_definition(b, "activity.put", "activityName", "reuse", "echo", ",\"reuse\":true");
    put(b, "workflow.put", "waiter",
        str("{\"name\":\"waiter\",\"version\":\"1.0.0\",\"steps\":["
            "{\"id\":\"echo\",\"type\":\"activity\",\"activity\":\"pure\",\"input\":\"{{ input "
            "}}\",\"output\":\"sent\"},"
            "{\"id\":\"go\",\"type\":\"wait\",\"event\":\"go\"}]}"));
}

static void start_new(struct bench *b) {
    start(b);
    deploy(b);
}

static double metric(const char *name) {
    char *text = loom_metrics(), line[64];
    snprintf(line, sizeof line, "\n%s ", name);
    char *at = strstr(text, line);
    double value = at ? strtod(at + strlen(line), NULL) : 0;
    free(text);
    return value;
}

static double rss_bytes(void) {
    FILE *f = fopen("/proc/self/statm", "r");
    long size, pages = 0;
    malloc_trim(0);
    if (!f || fscanf(f, "%ld %ld", &size, &pages) != 2) die("cannot read", "/proc/self/statm");
    fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

/* CPU of all threads, µs. */
static double cpu_us(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static int arg(const struct bench *b, int i) {
    return b->args[i] ? atoi(b->args[i]) : 0;
}

/* ---- measures ---- */

/* steps ACTIVITY AT_ONCE RUNS: W1. */
static void measure_steps(struct bench *b) {
    char body[512];
    int runs = arg(b, 2);
    start_new(b);
    snprintf(body, sizeof body, "{\"steps\":%d,\"activity\":\"%s\",\"data\":" DATA "}", STEPS, b->args[0]);
    struct load warm = {.loom = b->loom, .op = "call", .type = "steps", .body = body, .total = 8, .at_once = 8};
    load_run(&warm);
    double batches = metric("loom_batches_total"), rows = metric("loom_rows_total");
    double commit_s = metric("loom_commit_seconds_total"), cpu = cpu_us();
    struct load d = {
        .loom = b->loom, .op = "call", .type = "steps", .body = body, .first = 8, .total = runs, .at_once = arg(b, 1)};
    double s = load_run(&d);
    batches = metric("loom_batches_total") - batches;
    print("steps_per_s", runs * STEPS / s);
    print("cpu_us", (cpu_us() - cpu) / runs / STEPS);
    print("step_us", s * 1e6 / runs / STEPS * (arg(b, 1) == 1 ? 1 : 0));
    print("turn_p50_us", percentile(d.took, (size_t)d.total, 0.5));
    print("steps_per_commit", runs * STEPS / batches);
    print("rows_per_commit", (metric("loom_rows_total") - rows) / batches);
    print("commit_busy", (metric("loom_commit_seconds_total") - commit_s) / s);
    loom_close(b->loom);
}

/* messages AT_ONCE COUNT: W2 without HTTP. */
static void measure_messages(struct bench *b) {
    int total = arg(b, 1);
    start_new(b);
    struct load warm = {
        .loom = b->loom, .op = "call", .type = "counter", .body = "1", .total = ACTORS, .keys = ACTORS, .at_once = 64};
    load_run(&warm);
    double batches = metric("loom_batches_total"), rows = metric("loom_rows_total"), cpu = cpu_us();
    struct load d = {.loom = b->loom,
                     .op = "call",
                     .type = "counter",
                     .body = "1",
                     .total = total,
                     .keys = ACTORS,
                     .at_once = arg(b, 0)};
    double s = load_run(&d);
    batches = metric("loom_batches_total") - batches;
    print("msgs_per_s", total / s);
    print("cpu_us", (cpu_us() - cpu) / total);
    print("p50_us", percentile(d.took, (size_t)total, 0.5));
    print("p99_us", percentile(d.took, (size_t)total, 0.99));
    print("msgs_per_commit", total / batches);
    print("rows_per_commit", (metric("loom_rows_total") - rows) / batches);
    loom_close(b->loom);
}

/* count: 200 counters that activation opens. */
static void measure_count(struct bench *b) {
    start_new(b);
    struct load d = {.loom = b->loom, .op = "call", .type = "counter", .body = "1", .total = 200, .at_once = 64};
    load_run(&d);
    loom_close(b->loom);
}

/* activation: the first call after a start, then calls to actors that are not in memory; each with its commit. */
static void measure_activation(struct bench *b) {
    start(b);
    struct load cold = {.loom = b->loom, .op = "call", .type = "counter", .body = "1", .total = 1, .at_once = 1};
    load_run(&cold);
    print("activation_cold_us", cold.took[0]);
    struct load warm = {
        .loom = b->loom, .op = "call", .type = "counter", .body = "1", .first = 1, .total = 199, .at_once = 1};
    load_run(&warm);
    print("activation_warm_us", percentile(warm.took, 199, 0.5));
    loom_close(b->loom);
}

/* overhead: what a pure step costs over a turn without steps, with a fresh instance each. */
static void measure_overhead(struct bench *b) {
    double p50[2];
    start_new(b);
    for (int with = 0; with < 2; with++) {
        char body[512];
        snprintf(body, sizeof body, "{\"steps\":%d,\"activity\":\"pure\",\"data\":" DATA "}", with ? STEPS : 0);
        struct load d = {.loom = b->loom, .op = "call", .type = "steps", .body = body, .first = with * 200};
        d.total = 200, d.at_once = 1;
        load_run(&d);
        p50[with] = percentile(d.took, 200, 0.5);
        load_free(&d);
    }
    print("wasm_overhead_us", (p50[1] - p50[0]) / STEPS);
    loom_close(b->loom);
}

static double store_bytes(const struct bench *b) {
    char path[4096];
    struct stat st;
    snprintf(path, sizeof path, "%s/loom.db", b->store);
    return stat(path, &st) == 0 ? (double)st.st_size : 0;
}

/* journal STEPS TURNS [RETENTION]: one actor that has done so many steps in each of so many turns and waits; replay opens it. */
static void measure_journal(struct bench *b) {
    char body[512], retention[64];
    start_new(b);
    snprintf(retention, sizeof retention, ",\"journalRetention\":%s", b->args[2] ? b->args[2] : "");
    if (b->args[2]) put_definition(b, "actor-type.put", "actorType", "steps", "steps", retention);
    snprintf(body, sizeof body, "{\"steps\":%d,\"activity\":\"reuse\",\"wait\":true,\"left\":%d,\"data\":" DATA "}",
             arg(b, 0), arg(b, 1));
    struct loom_request r = {.op = "send", .type = str("steps"), .key = str("long"), .id = str("m"), .body = str(body)};
    one(b->loom, r, NULL, NULL);
    while (metric("loom_activity_attempts_total") < (double)arg(b, 0) * arg(b, 1)) usleep(1000);
    usleep(50000);
    loom_close(b->loom);
    print("journal_disk_mb", store_bytes(b) / 1e6);
}

static void look_cursor(void *ctx, const struct loom_reply *reply) {
    char text[4096];
    size_t n = reply->body.n < sizeof text - 1 ? reply->body.n : sizeof text - 1;
    memcpy(text, reply->body.p + reply->body.n - n, n);
    text[n] = '\0';
    char *at = strstr(text, "\"cursor\":");
    *(double *)ctx = at ? strtod(at + 9, NULL) : 0;
}

/* replay: from the event to the turn's end: load, checksums, replay, commit. */
static void measure_replay(struct bench *b) {
    double entries = 0, from;
    struct loom_request event = {.op = "event", .type = str("steps"), .key = str("long"), .id = str("go")};
    start(b);
    from = now_us();
    event.body = str("null");
    one(b->loom, event, NULL, NULL);
    while (metric("loom_turns_completed_total") == 0) usleep(50);
    print("replay_us", now_us() - from);
    struct loom_request get = {.op = "get", .type = str("steps"), .key = str("long"), .at = -1};
    one(b->loom, get, look_cursor, &entries);
    print("replay_entries", entries);
    loom_close(b->loom);
}

static void seed(struct bench *b, const char *type, int first, int n, int at_once) {
    struct load d = {.loom = b->loom, .op = "send", .type = type, .body = "null", .total = n, .at_once = at_once};
    d.named = true;
    d.first = first;
    double before = metric("loom_turns_started_total");
    load_run(&d);
    while (metric("loom_turns_started_total") - before < n) usleep(1000);
    for (double ops = 0; ops < metric("loom_ops_total"); usleep(500000)) ops = metric("loom_ops_total"); /* all wait */
    load_free(&d);
}

/* suspended TYPE N BUDGET: memory of N actors that wait for an event, and the time to let them all go on. With a budget
 * as many have waited and gone before, twice, and more of them at a time: what the pool of instances and malloc keep is there. */
static void measure_suspended(struct bench *b) {
    int n = arg(b, 1);
    b->config.memory_budget = b->args[2] ? strtoull(b->args[2], NULL, 10) : 0;
    b->config.idle_ms = b->args[2] ? 200 : 0;
    start_new(b);
    struct load warm = {.loom = b->loom, .op = "call", .type = "counter", .body = "1", .total = ACTORS, .at_once = 64};
    load_run(&warm);
    load_free(&warm);
    for (int i = 1; b->args[2] && i <= 2; i++) {
        seed(b, b->args[0], i * n, n, 2048);
        usleep(2500000);
    }
    double before = rss_bytes();
    seed(b, b->args[0], 0, n, 1024);
    usleep(b->args[2] ? 2500000 : 300000);
    print("bytes", (rss_bytes() - before) / n);
    print("guests", metric("loom_guests_resident"));
    struct load events = {.loom = b->loom, .op = "event", .type = b->args[0], .body = "1", .event = "go"};
    events.total = n, events.at_once = 1024;
    double ended = metric("loom_turns_completed_total"), from = now_us();
    load_begin(&events);
    load_end(&events);
    while (metric("loom_turns_completed_total") - ended < n) usleep(200);
    print("resume_ms", (now_us() - from) / 1e3);
    loom_close(b->loom);
}

/* seed N: a store with N actors that wait; recover opens it. */
static void measure_seed(struct bench *b) {
    double from = now_us();
    b->config.memory_budget = 1;
    b->config.idle_ms = 100;
    start_new(b);
    double empty = store_bytes(b);
    seed(b, "waiter", 0, arg(b, 0), 1024);
    loom_close(b->loom);
    print("seed_s", (now_us() - from) / 1e6);
    print("disk_bytes", (store_bytes(b) - empty) / arg(b, 0));
}

static void measure_recover(struct bench *b) {
    double from = now_us();
    start(b);
    print("recover_ms", (now_us() - from) / 1e3);
    struct loom_request event = {.op = "event", .type = str("waiter"), .key = str("0000007"), .id = str("go")};
    event.body = str("1");
    one(b->loom, event, NULL, NULL);
    print("recover_first_ms", (now_us() - from) / 1e3);
    print("recover_rss_mb", rss_bytes() / 1e6);
    loom_close(b->loom);
}

static const struct {
    const char *name;
    void (*run)(struct bench *);
} measures[] = {
    {"steps", measure_steps},           {"messages", measure_messages},   {"count", measure_count},
    {"activation", measure_activation}, {"overhead", measure_overhead},   {"journal", measure_journal},
    {"replay", measure_replay},         {"suspended", measure_suspended}, {"seed", measure_seed},
    {"recover", measure_recover},
};

int main(int argc, char **argv) {
    if (argc < 4) die("usage", "engine MEASURE GUESTS STORE [ARGUMENT...]");
    struct bench b = {.guests = argv[2], .store = argv[3], .args = argv + 4};
    for (size_t i = 0; i < sizeof measures / sizeof *measures; i++)
        if (strcmp(measures[i].name, argv[1]) == 0) return measures[i].run(&b), 0;
    die("no such measure", argv[1]);
}
