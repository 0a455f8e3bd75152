/* runtime.c: the loop of one shard: inbox, timers, runnable actors, batch, effects; opening, shutdown.
 *
 * One pass: take what came from other threads, fire timers, let each of the runnable actors have one turn or one slice,
 * close the batch if the writer is free. While both batches are full nothing runs. After a failed commit nothing runs
 * either until the store takes a batch again; reads go on.
 */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS_PER_PASS = 256, PASS_US = 4000, IDLE_MS = 60000 };

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

const char *loom_random_id(struct loom *l, char out[33]) {
    uint8_t bytes[16];
    l->env->random(l->env, bytes, sizeof bytes);
    hex_encode(bytes, sizeof bytes, out);
    return out;
}

const char *loom_message_id(struct loom *l, char out[33]) {
    char time[17];
    snprintf(time, sizeof time, "%012" PRIx64, (uint64_t)loom_now(l));
    loom_random_id(l, out);
    memcpy(out, time, 12);
    return out;
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

void loom_post(struct loom *l, struct item *item) {
    item->next = NULL;
    pthread_mutex_lock(&l->lock);
    bool first = !l->inbox;
    __atomic_store_n(l->inbox_tail, item, __ATOMIC_RELAXED); /* pass() looks without the lock */
    l->inbox_tail = &item->next;
    if (first) pthread_cond_signal(&l->wake);
    pthread_mutex_unlock(&l->lock);
}

/* ---- one pass ---- */

/* Has anything to do but wait for the disk or the inbox? */
static bool busy(struct loom *l) {
    return l->run_head && !l->failed && !(l->flight && batch_full(l));
}

int64_t loom_rests(struct loom *l) {
    int64_t now = loom_now(l), wait = alarms_next(l) - now;
    if (l->inbox || busy(l)) return 0;
    if (l->waiters.count > 0 && l->waiters_due - l->env->mono_ms(l->env) < wait)
        wait = l->waiters_due - l->env->mono_ms(l->env);
    int64_t check = l->guest_bytes > l->config.memory_budget ? 10 : IDLE_CHECK_MS;
    if (l->oldest && wait > check) wait = check;
    return l->failed ? 100 : wait < 0 ? 0 : wait;
}

static struct item *take_inbox(struct loom *l) {
    pthread_mutex_lock(&l->lock);
    struct item *items = l->inbox;
    l->inbox = NULL;
    l->inbox_tail = &l->inbox;
    pthread_mutex_unlock(&l->lock);
    return items;
}

/* Runs what the inbox holds; how many there were. */
static size_t run_inbox(struct loom *l) {
    size_t count = 0;
    for (struct item *items = take_inbox(l), *next; items; items = next, count++) {
        next = items->next;
        items->fn(l, items);
        arena_reset(&l->scratch);
    }
    return count;
}

static void run_actors(struct loom *l) {
    int64_t from = l->env->mono_us(l->env);
    for (int i = 0; i < RUNS_PER_PASS && l->run_head && !batch_full(l); i++) {
        if (!l->flight && l->env->mono_us(l->env) - from > PASS_US) return; /* the disk waits for a batch */
        struct resident *r = l->run_head;
        l->run_head = r->run_next;
        if (!l->run_head) l->run_tail = &l->run_head;
        r->queued = false;
        turn_step(l, r);
        arena_reset(&l->scratch);
    }
}

void loom_pass(struct loom *l) {
    size_t count = run_inbox(l);
    waiters_timeout(l);
    if (l->failed) {
        batch_probe(l);
        effects_release(l);
    } else {
        alarms_fire(l);
        mail_forget(l);
        run_actors(l);
        residents_evict(l, 0);
        /* A lone request commits on this thread: a hop to the writer and back would cost more than it hides. */
        batch_close(l, count <= 1 && !l->run_head && !__atomic_load_n(&l->inbox, __ATOMIC_RELAXED));
    }
    if (l->released && l->config.flushed) l->config.flushed(l->config.flushed_ctx);
    l->released = false;
}

/* ---- the threads ---- */

static void wait(struct loom *l) {
    pthread_mutex_lock(&l->lock);
    int64_t ms = loom_rests(l), until = ms > 0 ? l->env->mono_us(l->env) + ms * 1000 : 0;
    if (ms > 0) pthread_cond_timedwait(&l->wake, &l->lock, &(struct timespec){until / 1000000, until % 1000000 * 1000});
    pthread_mutex_unlock(&l->lock);
}

static void *loop_main(void *arg) {
    struct loom *l = arg;
    for (; !l->stop; loom_pass(l)) wait(l);
    run_inbox(l);
    return NULL;
}

static void *writer_main(void *arg) {
    while (batch_write(arg, true)) continue;
    return NULL;
}

/* ---- open and close ---- */

static int open_parts(struct loom *l, const struct loom_parts *parts, struct error *err) {
    yyjson_doc *project = l->config.project ? json_parse(str_of(l->config.project), err) : NULL;
    if (l->config.project && !project) return LOOM_E_INVALID_DOCUMENT;
    int rc = l->store->ops->claim(l->store, str_of(l->name), &l->term, &l->committed, err);
    l->open_seq = l->committed + 1;
    l->net = rc < 0 ? NULL : net_client_new(l->env, yyjson_doc_get_root(project), l->config.project_dir, err);
    yyjson_doc_free(project);
    l->code = parts->code || !l->net ? parts->code : code_new(&(struct exec_config){0}, err);
    if (!l->net || !l->code) return LOOM_E_INTERNAL;
    l->pool = activity_pool_new(l->env, l->net, l->config.threads);
    return registry_open(l, err);
}

/* Nothing is written. committed: what is still in flight has been. */
static void release(struct loom *l, bool committed) {
    if (l->pool) activity_pool_free(l->pool);
    if (l->net) net_client_free(l->net);
    run_inbox(l);
    while (l->effect_count > 0) { /* answers to what came too late */
        struct effect e = effect_take(l);
        e.release(l, e.ctx, committed);
    }
    run_inbox(l);
    resident_drop_all(l);
    alarms_free(l);
    registry_free(l);
    stream_free(l);
    if (l->own_code) code_free(l->code);
    l->store->ops->close(l->store);
    l->blobs->ops->close(l->blobs);
    pending_free(l->open);
    pending_free(l->flight);
    map_free(&l->attempts);
    map_free(&l->waiters);
    free(l->sweep_from);
    arena_free(&l->scratch);
    buf_free(&l->saying);
    free(l->effects);
    free(l->cache_dir);
    free((char *)l->config.store);
    free((char *)l->config.project);
    free((char *)l->config.project_dir);
    free((char *)l->config.compiler);
    free(l);
}

static const char *copy_or_null(const char *z) {
    return z ? str_dup(str_of(z)) : NULL;
}

static struct loom *engine_new(const struct loom_config *config, const struct loom_parts *parts) {
    struct loom *l = mem_alloc(sizeof *l);
    pthread_condattr_t monotonic;
    l->config = *config;
    l->config.store = copy_or_null(config->store);
    l->config.project = copy_or_null(config->project);
    l->config.project_dir = copy_or_null(config->project_dir);
    l->config.compiler = copy_or_null(config->compiler);
    l->config.memory_budget = config->memory_budget ? config->memory_budget : 256u << 20;
    l->config.idle_ms = config->idle_ms ? config->idle_ms : IDLE_MS;
    l->env = parts->env;
    l->store = parts->store;
    l->blobs = parts->blobs;
    l->own_code = !parts->code;
    l->cache_dir = parts->cache_dir;
    snprintf(l->name, sizeof l->name, "%d", (int)parts->name);
    pthread_mutex_init(&l->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&l->wake, &monotonic);
    pthread_cond_init(&l->writer_wake, NULL);
    pthread_condattr_destroy(&monotonic);
    l->modules_put = 1;
    l->inbox_tail = &l->inbox;
    l->run_tail = &l->run_head;
    l->dirty_tail = &l->dirty_head;
    l->open = pending_new();
    stream_open(l);
    return l;
}

struct loom *loom_open_in(const struct loom_config *config, const struct loom_parts *parts, struct error *err) {
    struct loom *l = engine_new(config, parts);
    if (open_parts(l, parts, err) < 0 || recover_start(l, err) < 0) {
        release(l, false);
        return NULL;
    }
    l->threads = l->env->thread(l->env, &l->writer, writer_main, l) && l->env->thread(l->env, &l->loop, loop_main, l);
    return l;
}

static void stop_now(struct loom *l, struct item *item) {
    l->stop = true;
    free(item);
}

void loom_close(struct loom *l) {
    struct item *item = mem_alloc(sizeof *item);
    item->fn = stop_now;
    loom_post(l, item);
    if (l->threads)
        pthread_join(l->loop, NULL);
    else
        loop_main(l);
    pthread_mutex_lock(&l->lock);
    l->writer_stop = true;
    pthread_cond_signal(&l->writer_wake);
    pthread_mutex_unlock(&l->lock);
    if (l->threads)
        pthread_join(l->writer, NULL);
    else
        writer_main(l);
    attempts_resume(l);
    for (run_inbox(l); l->helpers > 0; run_inbox(l)) wait(l);
    if (!l->failed) {
        recover_lease(l, true);
        batch_close(l, true);
    }
    waiters_fail(l, true);
    effects_release(l);
    if (l->config.flushed) l->config.flushed(l->config.flushed_ctx);
    release(l, true);
}

void loom_abandon(struct loom *l) {
    l->stop = true;
    batch_drop(l);
    attempts_resume(l);
    waiters_fail(l, true);
    release(l, false);
}
