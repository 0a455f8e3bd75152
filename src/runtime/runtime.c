/* runtime.c: the loop of one shard: inbox, timers, runnable actors, batch, effects; opening, shutdown.
 *
 * One pass: take what came from other threads, fire timers, let each of the runnable actors have one turn or one slice,
 * close the batch if the writer is free. While both batches are full nothing runs. After a failed commit nothing runs
 * either until the store takes a batch again; reads go on.
 */
#include "runtime/runtime.h"

#include <stdlib.h>

enum { RUNS_PER_PASS = 256, PASS_US = 500, IDLE_MS = 60000 };

int64_t loom_now(struct loom *l) {
    return l->env->now_ms(l->env);
}

uint64_t loom_order(struct loom *l) {
    return (l->open_seq << 20) | l->arrivals++;
}

struct str say(struct loom *l, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    buf_clear(&l->saying);
    buf_json_v(&l->saying, fmt, ap);
    va_end(ap);
    struct str s = arena_dup(&l->scratch, buf_view(&l->saying));
    return s.p ? s : STR("");
}

struct str random_id(struct loom *l) {
    uint64_t bits[2];
    l->env->random(l->env, bits, sizeof bits);
    return say(l, "%x%x", bits[0], bits[1]);
}

struct str message_id_new(struct loom *l) {
    struct str time = say(l, "%x", (uint64_t)loom_now(l)), dice = random_id(l);
    return say(l, "%j%j", (struct str){time.p + 4, 12}, (struct str){dice.p, 20});
}

struct str kept(struct loom *l, struct buf *b) {
    struct str s = arena_dup(&l->scratch, buf_view(b));
    buf_free(b);
    return s.p ? s : STR("");
}

struct str ns_of(const struct loom_request *req) {
    return req->ns.p ? lent(req->ns) : STR("default");
}

/* ---- inbox ---- */

void *item_new(size_t size) {
    struct arena mem = {0};
    struct item *item = arena_alloc(&mem, size);
    item->mem = mem;
    return item;
}

void item_free(struct item *item) {
    struct arena mem = item->mem; /* the item is in it */
    arena_free(&mem);
}

void loom_post(struct loom *l, struct item *item, void (*fn)(struct loom *, struct item *)) {
    item->fn = fn;
    pthread_mutex_lock(&l->lock);
    if (STAILQ_EMPTY(&l->inbox)) pthread_cond_signal(&l->wake);
    STAILQ_INSERT_TAIL(&l->inbox, item, next);
    pthread_mutex_unlock(&l->lock);
}

static bool inbox_empty(struct loom *l) {
    pthread_mutex_lock(&l->lock);
    bool empty = STAILQ_EMPTY(&l->inbox);
    pthread_mutex_unlock(&l->lock);
    return empty;
}

/* ---- one pass ---- */

/* Whose first actor runs next: those without a guest take turns with the others, while there is room for one. */
static struct actors *next_queue(struct loom *l, int i) {
    bool room = l->guests < l->guests_max && !STAILQ_EMPTY(&l->guestless);
    return room && (i % 2 == 0 || STAILQ_EMPTY(&l->runnable)) ? &l->guestless : &l->runnable;
}

int64_t loom_rests(struct loom *l) {
    bool runs = !STAILQ_EMPTY(next_queue(l, 0)) && (batch_ready(l) || !batch_full(l));
    int64_t wait = alarms_next(l) - loom_now(l), late = l->waiters_due - l->env->mono_ms(l->env),
            check = residents_pressed(l) ? 10 : IDLE_CHECK_MS;
    if (!inbox_empty(l)) return 0;
    if (l->failed) return 100;
    if (l->waiters.count > 0 && late < wait) wait = late;
    if (!TAILQ_EMPTY(&l->lru) && check < wait) wait = check;
    return runs || batch_due(l) || wait < 0 ? 0 : wait;
}

/* Runs what the inbox holds; how many there were. */
static size_t run_inbox(struct loom *l) {
    struct items items = STAILQ_HEAD_INITIALIZER(items);
    size_t count = 0;
    pthread_mutex_lock(&l->lock);
    STAILQ_CONCAT(&items, &l->inbox);
    pthread_mutex_unlock(&l->lock);
    for (struct item *item; (item = STAILQ_FIRST(&items)) != NULL; count++) {
        STAILQ_REMOVE_HEAD(&items, next);
        item->fn(l, item);
        arena_reset(&l->scratch);
    }
    return count;
}

static void run_actors(struct loom *l) {
    int64_t from = l->env->mono_us(l->env);
    struct actors *queue;
    l->guests_max = exec_engine_share(l->engine);
    for (int i = 0; i < RUNS_PER_PASS && !STAILQ_EMPTY(queue = next_queue(l, i)) && !batch_full(l); i++) {
        if (batch_ready(l) && l->env->mono_us(l->env) - from > PASS_US) return; /* the disk waits for a batch */
        struct resident *r = STAILQ_FIRST(queue);
        STAILQ_REMOVE_HEAD(queue, run);
        r->queued = false;
        turn_step(l, r);
        arena_reset(&l->scratch);
    }
}

/* Once per pass, and not per answer. */
static void tell(struct loom *l) {
    if (l->released && l->config.flushed) l->config.flushed(l->config.flushed_ctx);
    l->released = false;
}

void loom_pass(struct loom *l) {
    size_t count = run_inbox(l);
    waiters_sift(l, WAITERS_LATE);
    if (l->failed) {
        batch_probe(l);
    } else {
        alarms_fire(l);
        mail_forget(l);
        run_actors(l);
        /* A lone request commits on this thread: a hop to the writer and back would cost more than it hides. */
        batch_close(l, count <= 1 && STAILQ_EMPTY(next_queue(l, 0)) && inbox_empty(l));
        residents_evict(l);
    }
    metric_set(METRIC_ACTORS_LOADED, (int64_t)l->actors.count);
    metric_set(METRIC_GUESTS_RESIDENT, (int64_t)l->guests);
    metric_set(METRIC_GUEST_BYTES, (int64_t)l->guest_bytes);
    metric_set(METRIC_TIMERS, (int64_t)l->alarm_count);
    tell(l);
}

/* ---- the threads ---- */

static void wait(struct loom *l) {
    int64_t ms = loom_rests(l), until = l->env->mono_us(l->env) + ms * 1000;
    struct timespec time = {until / 1000000, until % 1000000 * 1000};
    pthread_mutex_lock(&l->lock);
    if (ms > 0 && STAILQ_EMPTY(&l->inbox) && !batch_due(l))
        pthread_cond_clockwait(&l->wake, &l->lock, CLOCK_MONOTONIC, &time);
    pthread_mutex_unlock(&l->lock);
}

static void *loop_main(void *arg) {
    struct loom *l = arg;
    for (; !l->stop; loom_pass(l)) wait(l);
    run_inbox(l);
    return NULL;
}

static void *writer_main(void *arg) {
    for (struct pending *p; (p = batch_write(arg, true)) != NULL;) batch_sync(arg, p);
    return NULL;
}

/* ---- open and close ---- */

static int open_parts(struct loom *l, struct error *err) {
    yyjson_doc *project = l->config.project ? json_parse(str_of(l->config.project), err) : NULL;
    if (l->config.project && !project) return LOOM_E_INVALID_DOCUMENT;
    int rc = l->store->ops->claim(l->store, say(l, "%d", l->name), &l->term, &l->committed, err);
    l->open_seq = l->committed + 1;
    l->net = rc < 0 ? NULL : net_client_new(l->env, yyjson_doc_get_root(project), l->config.project_dir, err);
    yyjson_doc_free(project);
    l->own_engine = !l->engine;
    if (l->net && l->own_engine) l->engine = exec_engine_new(0, 0, err);
    if (!l->net || !l->engine) return LOOM_E_INTERNAL;
    l->pool = activity_pool_new(l->env, l->net, l->config.threads);
    return registry_open(l, err);
}

/* Nothing is written. */
static void release(struct loom *l) {
    attempts_resume(l);
    run_inbox(l); /* a commit that failed still cancels attempts */
    if (l->pool) activity_pool_free(l->pool);
    l->pool = NULL;
    if (l->net) net_client_free(l->net);
    run_inbox(l);
    waiters_sift(l, WAITERS_ALL);
    effects_release(l);
    tell(l);
    batch_forget(l);
    run_inbox(l);
    alarms_free(l);
    registry_free(l);
    stream_free(l);
    if (l->own_engine) exec_engine_free(l->engine);
    l->store->ops->close(l->store);
    l->blobs->ops->close(l->blobs);
    pending_free(l->open);
    map_free(&l->attempts);
    map_free(&l->waiters);
    free(l->sweep_from);
    arena_free(&l->scratch);
    buf_free(&l->saying);
    arena_free(&l->mem);
    free(l);
}

struct loom *loom_new(const struct loom_config *config) {
    struct loom *l = mem_alloc(sizeof *l);
    const char **texts[] = {&l->config.store, &l->config.project, &l->config.project_dir, &l->config.compiler};
    l->config = *config;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) *texts[i] = arena_dup(&l->mem, str_of(*texts[i])).p;
    l->config.memory_budget = config->memory_budget ? config->memory_budget : 256u << 20;
    l->config.idle_ms = config->idle_ms ? config->idle_ms : IDLE_MS;
    pthread_mutex_init(&l->lock, NULL);
    pthread_mutex_init(&l->writing, NULL);
    pthread_cond_init(&l->wake, NULL);
    pthread_cond_init(&l->writer_wake, NULL);
    l->modules_put = 1;
    STAILQ_INIT(&l->inbox);
    STAILQ_INIT(&l->effects);
    batch_forget(l);
    return l;
}

struct loom *loom_start(struct loom *l, struct error *err) {
    stream_open(l);
    if (open_parts(l, err) < 0 || recover_start(l, err) < 0) {
        release(l);
        return NULL;
    }
    if (l->env->thread(l->env, &l->writers[0], writer_main, l) &&
        l->env->thread(l->env, &l->writers[1], writer_main, l))
        l->env->thread(l->env, &l->loop, loop_main, l);
    return l;
}

static void stop_now(struct loom *l, struct item *item) {
    l->stop = true;
    item_free(item);
}

void loom_close(struct loom *l) {
    loom_post(l, item_new(sizeof(struct item)), stop_now);
    if (l->loop)
        pthread_join(l->loop, NULL);
    else
        loop_main(l);
    pthread_mutex_lock(&l->lock);
    l->writer_stop = true;
    pthread_cond_broadcast(&l->writer_wake);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < 2 && l->writers[i]; i++) pthread_join(l->writers[i], NULL);
    writer_main(l); /* for those who have no threads */
    for (run_inbox(l); l->helpers > 0; run_inbox(l)) wait(l);
    if (!l->failed) {
        recover_lease(l, true);
        batch_close(l, true);
    }
    release(l);
}

void loom_abandon(struct loom *l) {
    l->stop = true;
    release(l);
}
