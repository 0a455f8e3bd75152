/* activity.c: attempts of activities: a pool of threads with one run queue. Where an attempt stands is its phase:
 *
 *     QUEUED ─► RUNNING ─► ENDED: done()          RUNNING ─► QUEUED: its slice is over
 *                  └─► PARKED: waits for the network and needs no thread ─► QUEUED
 *
 * With `reuse` one that has ended lies IDLE instead, until its instance serves the next attempt of its kind.
 *
 * Invariants: phases change in move() only, under the pool's mutex; an attempt is run by one thread at a time; done() is
 * called once, without a lock held. Deadlines need no timer: a guest that runs meets its own at the end of a slice, one
 * that is parked gets the network's `timeout`. A guest's ops are the rows of ACTIVITY_OPS; all else is a trap.
 *
 * Deliberately not here: retries, schemas, journaling (the runtime's), what may be reached (net's).
 */
#include "net/net.h"
#include "observe/observe.h"
#include "wasm/exec.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <unistd.h>

enum { FAIR_MS = 2, IDLE_MAX = 32, FIRST_BYTES = 80, RANDOM_MAX_BYTES = 256 };

enum phase { RUNNING /* in no list */, QUEUED, PARKED, IDLE, ENDED };

struct activity {
    struct activity_pool *pool;
    struct activity_spec spec;
    struct exec *exec; /* NULL until an instance was free */
    uint64_t random;   /* state of its generator */
    uint32_t https;    /* http ops so far */
    bool told;         /* it has had a go since it was cancelled */
    bool starved;      /* it found no free instance */
    atomic_bool cancelled;
    struct buf result, text; /* of the attempt; of the op */
    struct error error;      /* of the op, or why the attempt failed; code "": none */

    /* Under the pool's mutex: */
    enum phase phase;
    TAILQ_ENTRY(activity) link;
    uint64_t net_id; /* of its last http op */
};

struct activity_pool {
    struct env *env;
    struct net_client *net;
    pthread_t *threads;
    unsigned thread_count;
    atomic_bool stopping;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    TAILQ_HEAD(list, activity) in[ENDED]; /* one per phase */
    unsigned live, idle;                  /* begun, and done() has not yet returned; lying idle */
};

static void move(struct activity *a, enum phase to) {
    struct activity_pool *p = a->pool;
    if (a->phase != RUNNING) TAILQ_REMOVE(&p->in[a->phase], a, link);
    if (to != RUNNING) TAILQ_INSERT_TAIL(&p->in[to], a, link);
    if (a->phase == IDLE) p->idle--;
    if (to == IDLE) p->idle++;
    a->phase = to;
    if (to == QUEUED) pthread_cond_signal(&p->wake);
}

static void enqueue(struct activity *a) {
    struct activity_pool *p = a->pool;
    pthread_mutex_lock(&p->mutex);
    move(a, QUEUED);
    pthread_mutex_unlock(&p->mutex);
}

static enum phase fail(struct activity *a, enum phase next, int code, const char *message) {
    error_set(&a->error, code, "%.*s: %s", (int)a->spec.name.n, a->spec.name.p, message);
    return next;
}

static int64_t mono_ms(const struct activity *a) {
    return a->pool->env->mono_ms(a->pool->env);
}

/* ---- ops: each gets its argument, fills a->text with the result or a->error, and tells the next phase ---- */

#define ANSWER(...) (buf_json(&a->text, __VA_ARGS__), RUNNING)

static enum phase op_input(struct activity *a, yyjson_val *v) {
    (void)v;
    return ANSWER("%j", a->spec.input.n ? a->spec.input : STR("null"));
}

static enum phase note(struct activity *a, int level, yyjson_val *v) {
    json_write(v, &a->text);
    if (a->spec.note) a->spec.note(a->spec.ctx, level, buf_view(&a->text));
    buf_clear(&a->text);
    return ANSWER("null");
}

/* Levels are told apart by their first letter: trace, debug, info, warn, error, fatal. */
static enum phase op_log(struct activity *a, yyjson_val *v) {
    static const char letters[] = "tdiwef";
    struct str level = json_str(v, "level");
    const char *at = level.n ? memchr(letters, level.p[0], 6) : NULL;
    return note(a, at ? LOG_TRACE + 10 * (int)(at - letters) : LOG_INFO, v);
}

static enum phase op_progress(struct activity *a, yyjson_val *v) {
    return note(a, 0, v);
}

static enum phase op_heartbeat(struct activity *a, yyjson_val *v) {
    (void)v;
    return ANSWER("{\"cancelled\":%b}", atomic_load(&a->cancelled));
}

static enum phase op_now(struct activity *a, yyjson_val *v) {
    (void)v;
    return ANSWER("%d", a->pool->env->now_ms(a->pool->env));
}

static uint64_t next_random(struct activity *a) { /* splitmix64 */
    uint64_t z = a->random += 0x9E3779B97F4A7C15U;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

static enum phase op_random(struct activity *a, yyjson_val *v) {
    uint64_t bytes[RANDOM_MAX_BYTES / 8], n = yyjson_get_uint(v);
    char hex[2 * RANDOM_MAX_BYTES + 1];
    if (yyjson_is_null(v)) return ANSWER("%f", (double)(next_random(a) >> 11) * 0x1p-53);
    if (n < 1 || n > RANDOM_MAX_BYTES) {
        return fail(a, RUNNING, LOOM_E_INVALID_ARGUMENT, "random takes null or how many bytes, 1 to 256");
    }
    for (size_t i = 0; i * 8 < n; i++) bytes[i] = next_random(a);
    hex_encode((const uint8_t *)bytes, n, hex);
    return ANSWER("%z", hex);
}

static enum phase op_return(struct activity *a, yyjson_val *v) {
    json_write(v, &a->result);
    return ENDED;
}

static enum phase op_fail(struct activity *a, yyjson_val *v) {
    struct str code = json_str(v, "code"), message = json_str(v, "message");
    error_set(&a->error, LOOM_E_FAILED, "%.*s", (int)message.n, message.n ? message.p : "");
    if (code.n) snprintf(a->error.code, sizeof a->error.code, "%.*s", (int)code.n, code.p);
    a->error.retryable = json_bool(v, "retryable", false);
    return ENDED;
}

static enum phase op_secret(struct activity *a, yyjson_val *v) {
    struct buf handle = {0};
    struct str name = {yyjson_get_str(v), yyjson_get_len(v)};
    if (!net_secret_handle(a->pool->net, a->spec.policy, name, &handle, &a->error))
        buf_json(&a->text, "%q", buf_view(&handle));
    buf_free(&handle);
    return RUNNING;
}

/* On the net thread. */
static void http_done(void *ctx, bool ok, struct str json) {
    struct activity *a = ctx;
    exec_answer(a->exec, ok, json);
    enqueue(a);
}

/* Once parked another thread may have the attempt at any time: it is not touched again. http_done() comes from the net
 * thread, without a lock of net's, so the pool's may be held here. */
static enum phase park(struct activity *a, const struct net_request *r) {
    struct activity_pool *p = a->pool;
    pthread_mutex_lock(&p->mutex);
    move(a, PARKED);
    a->net_id = net_send(p->net, r);
    if (atomic_load(&a->cancelled) || atomic_load(&p->stopping)) net_cancel(p->net, a->net_id);
    pthread_mutex_unlock(&p->mutex);
    return PARKED;
}

/* What is wrong with the request or not granted is net's to say. */
static enum phase op_http(struct activity *a, yyjson_val *v) {
    struct buf key = {0};
    yyjson_val *body = yyjson_obj_get(v, "body");
    bool json = body && !yyjson_is_null(body) && !yyjson_is_str(body);
    int64_t left = a->spec.deadline_mono_ms - mono_ms(a), timeout = json_int(v, "timeoutMs", left);
    if (timeout <= 0 || timeout > left) timeout = left > 0 ? left : 1;
    if (json) json_write(body, &a->text);
    buf_json(&key, "%j-%u", a->spec.key, (uint64_t)++a->https);
    struct net_request request = {
        .policy = a->spec.policy,
        .method = json_str(v, "method"),
        .url = json_str(v, "url"),
        .headers = yyjson_obj_get(v, "headers"),
        .body = json ? buf_view(&a->text) : json_str(v, "body"),
        .body_json = json,
        .idempotency_key = buf_view(&key),
        .traceparent = a->spec.traceparent,
        .timeout_ms = timeout,
        .ctx = a,
        .done = http_done,
    };
    enum phase phase = park(a, &request);
    buf_free(&key);
    return phase;
}

#define ACTIVITY_OPS(X)                                                          \
    X(input, "null", "the activity's input")                                     \
    X(http, "{method, url, headers?, body?, timeoutMs?}",                        \
      "sends a request, mail with smtp://: {status, headers, body}")             \
    X(secret, "name", "a handle that stands for a secret in a request's header") \
    X(log, "{level, msg, …}", "a line of the worker's log")                      \
    X(heartbeat, "details", "{cancelled}: whether the activity shall stop")      \
    X(progress, "details", "tells how far it is")                                \
    X(now, "null", "milliseconds since 1970")                                    \
    X(random, "null or n", "a number in [0, 1), or n bytes (1 to 256) as hex")   \
    X(return, "value", "ends the activity with its result")                      \
    X(fail, "{code, message, retryable}", "ends the attempt with an error")

const struct op_doc activity_ops[] = {
#define X(name, argument, doc) {#name, argument, doc},
    ACTIVITY_OPS(X)
#undef X
        {NULL, NULL, NULL},
};

static enum phase (*const op_functions[])(struct activity *a, yyjson_val *v) = {
#define X(name, argument, doc) op_##name,
    ACTIVITY_OPS(X)
#undef X
};

/* The argument is not JSON: an ending fails the attempt, any other op is refused. */
static enum phase bad_argument(struct activity *a, bool ending, struct str arg, const struct error *why) {
    int n = (int)(arg.n < FIRST_BYTES ? arg.n : FIRST_BYTES);
    error_set(&a->error, ending ? LOOM_E_INVALID_OUTPUT : LOOM_E_INVALID_ARGUMENT, "%.*s: %s: %.*s",
              (int)a->spec.name.n, a->spec.name.p, why->message, n, arg.p);
    return ending ? ENDED : RUNNING;
}

static enum phase run_op(struct activity *a) {
    struct str name, arg;
    struct error why;
    size_t i = 0;
    exec_op(a->exec, &name, &arg);
    while (activity_ops[i].name && !str_is(name, activity_ops[i].name)) i++;
    if (!activity_ops[i].name) {
        error_set(&a->error, LOOM_E_UNKNOWN_OP, "activities have no op \"%.*s\"", (int)name.n, name.p);
        return ENDED;
    }
    buf_clear(&a->text);
    bool ending = op_functions[i] == op_return || op_functions[i] == op_fail;
    yyjson_doc *doc = json_parse(arg, &why);
    enum phase next = doc ? op_functions[i](a, yyjson_doc_get_root(doc)) : bad_argument(a, ending, arg, &why);
    yyjson_doc_free(doc);
    if (next != RUNNING) return next;
    bool ok = !a->error.code[0];
    if (!ok) error_json(&a->error, &a->text);
    exec_answer(a->exec, ok, buf_view(&a->text));
    a->error.code[0] = '\0';
    return RUNNING;
}

/* ---- instances that serve again ---- */

static void discard(struct activity *a) {
    if (!a) return;
    exec_free(a->exec);
    exec_module_unref(a->spec.module);
    buf_free(&a->result);
    buf_free(&a->text);
    free(a);
}

/* Takes the instance of one that lies idle: same module, limits and namespace, which a->text holds there. */
static void take_idle(struct activity *a) {
    struct activity_pool *p = a->pool;
    const struct activity_spec *mine = &a->spec;
    pthread_mutex_lock(&p->mutex);
    struct activity *i = TAILQ_LAST(&p->in[IDLE], list);
    while (i && (i->spec.module != mine->module || !str_eq(buf_view(&i->text), mine->ns) ||
                 memcmp(&i->spec.limits, &mine->limits, sizeof mine->limits) != 0)) {
        i = TAILQ_PREV(i, list, link);
    }
    if (i) {
        move(i, RUNNING);
        a->exec = i->exec;
        i->exec = NULL;
    }
    pthread_mutex_unlock(&p->mutex);
    discard(i);
}

/* The oldest makes room. */
static void lie_idle(struct activity *a) {
    struct activity_pool *p = a->pool;
    buf_clear(&a->text);
    buf_str(&a->text, a->spec.ns);
    pthread_mutex_lock(&p->mutex);
    move(a, IDLE);
    struct activity *oldest = p->idle > IDLE_MAX ? TAILQ_FIRST(&p->in[IDLE]) : NULL;
    if (oldest) move(oldest, RUNNING);
    pthread_mutex_unlock(&p->mutex);
    discard(oldest);
}

/* ---- running ---- */

/* Whether the attempt must end although its guest could go on; a->error says why. */
static bool is_over(struct activity *a) {
    if (atomic_load(&a->pool->stopping))
        fail(a, ENDED, LOOM_E_INTERRUPTED, "the worker is shutting down");
    else if (mono_ms(a) >= a->spec.deadline_mono_ms)
        fail(a, ENDED, LOOM_E_TIMEOUT, "it took longer than its limit");
    return a->error.code[0];
}

/* An instance for the attempt; while all are in use it stays queued. */
static enum phase get_instance(struct activity *a) {
    if (a->starved) a->pool->env->pause(1000);
    if (a->spec.reuse) take_idle(a);
    if (!a->exec) a->exec = exec_new(a->spec.module, a->spec.limits, &a->error);
    a->starved = !a->exec && !strcmp(a->error.code, "busy");
    if (a->starved) a->error.code[0] = '\0';
    return a->exec ? RUNNING : a->starved ? QUEUED : ENDED;
}

static enum phase step(struct activity *a) {
    switch (exec_run(a->exec)) {
    case EXEC_OP: return run_op(a);
    case EXEC_SLICE: return QUEUED;
    case EXEC_END: return ENDED;
    case EXEC_TRAP: break;
    }
    exec_trap(a->exec, &a->error);
    return ENDED;
}

/* Until the attempt ends, is parked, or has had its share of the thread. */
static enum phase go(struct activity *a) {
    int64_t start = mono_ms(a);
    enum phase next = a->told ? ENDED : RUNNING;
    a->told = atomic_load(&a->cancelled);
    while (next == RUNNING) {
        if (is_over(a)) return ENDED;
        if (mono_ms(a) - start >= FAIR_MS) return QUEUED;
        next = a->exec ? step(a) : get_instance(a);
    }
    return next;
}

static void finish(struct activity *a) {
    struct activity_pool *p = a->pool;
    struct activity_spec spec = a->spec;
    if (atomic_load(&a->cancelled)) fail(a, ENDED, LOOM_E_CANCELLED, "it was cancelled");
    struct buf result = a->result;
    struct error error = a->error;
    a->result = (struct buf){0};
    if (spec.reuse && a->exec && exec_again(a->exec))
        lie_idle(a);
    else
        discard(a);
    struct str json = result.n ? buf_view(&result) : STR("null");
    spec.done(spec.ctx, error.code[0] ? STR_NONE : json, error.code[0] ? &error : NULL);
    buf_free(&result);
    pthread_mutex_lock(&p->mutex);
    if (!--p->live && atomic_load(&p->stopping)) pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->mutex);
}

/* One go, and what follows from it; one that is parked may be another thread's by now. */
static enum phase run(struct activity *a) {
    enum phase next = go(a);
    if (next == ENDED) finish(a);
    if (next == QUEUED) enqueue(a);
    return next;
}

bool activity_step(struct activity_pool *p, bool wait) {
    struct activity *a;
    pthread_mutex_lock(&p->mutex);
    while (!(a = TAILQ_FIRST(&p->in[QUEUED])) && wait && !(atomic_load(&p->stopping) && !p->live))
        pthread_cond_wait(&p->wake, &p->mutex);
    if (a) move(a, RUNNING);
    pthread_mutex_unlock(&p->mutex);
    if (a) run(a);
    return a;
}

static void *thread_main(void *arg) {
    while (activity_step(arg, true)) continue;
    return NULL;
}

struct activity_pool *activity_pool_new(struct env *env, struct net_client *net, unsigned threads) {
    struct activity_pool *p = mem_alloc(sizeof *p);
    p->env = env;
    p->net = net;
    if (!threads) threads = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    p->threads = mem_alloc(threads * sizeof *p->threads);
    for (int i = 0; i < ENDED; i++) TAILQ_INIT(&p->in[i]);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->wake, NULL);
    while (p->thread_count < threads && env->thread(env, &p->threads[p->thread_count], thread_main, p))
        p->thread_count++;
    return p;
}

/* The threads go on until every attempt has ended; those that are parked are cut off from the network first. */
void activity_pool_free(struct activity_pool *p) {
    struct activity *a;
    if (!p) return;
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->stopping, true);
    for (a = TAILQ_FIRST(&p->in[PARKED]); a; a = TAILQ_NEXT(a, link)) net_cancel(p->net, a->net_id);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->mutex);
    while (!p->thread_count && p->live) {
        net_step(p->net);
        activity_step(p, false);
    }
    for (unsigned i = 0; i < p->thread_count; i++) pthread_join(p->threads[i], NULL);
    for (struct activity *i = TAILQ_FIRST(&p->in[IDLE]); i; i = a) {
        a = TAILQ_NEXT(i, link);
        discard(i);
    }
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->wake);
    free(p->threads);
    free(p);
}

struct activity *activity_start(struct activity_pool *p, const struct activity_spec *spec, bool inline_slice) {
    struct activity *a = mem_alloc(sizeof *a);
    a->pool = p;
    a->spec = *spec;
    a->random = spec->seed;
    exec_module_ref(spec->module);
    pthread_mutex_lock(&p->mutex);
    p->live++;
    if (!inline_slice) move(a, QUEUED);
    pthread_mutex_unlock(&p->mutex);
    return inline_slice && run(a) == ENDED ? NULL : a;
}

void activity_cancel(struct activity *a) {
    struct activity_pool *p = a->pool;
    pthread_mutex_lock(&p->mutex);
    atomic_store(&a->cancelled, true);
    if (a->phase == PARKED) net_cancel(p->net, a->net_id);
    pthread_mutex_unlock(&p->mutex);
}
