/* activity.c: attempts of activities: a pool of threads with one run queue. Where an attempt stands is its phase:
 *
 *     QUEUED ─► RUNNING ─► ENDED: its owner's         RUNNING ─► QUEUED: its slice is over
 *                  └─► PARKED: waits for the network and needs no thread ─► QUEUED
 *
 * Invariants: an attempt is in one of the two lists, or run by one thread, or its owner's; once it has ended the pool does
 * not touch it again. Deadlines need no timer: a guest that runs meets its own at the end of a slice, one that is parked
 * gets the network's `timeout`. A guest's ops are the rows of ACTIVITY_OPS; all else is a trap.
 *
 * Deliberately not here: retries, schemas, journaling (the runtime's), what may be reached (net's).
 */
#include "net/net.h"
#include "observe/observe.h"
#include "wasm/exec.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FAIR_MS = 2, IDLE_MAX = 32, FIRST_BYTES = 80, RANDOM_MAX_BYTES = 256 };

enum phase { RUNNING, QUEUED, PARKED, ENDED };

/* An instance that waits for the next attempt of its kind. */
struct idle {
    struct exec *exec;
    const struct exec_module *module;
    const void *reuse;
};

struct activity_pool {
    struct env *env;
    struct net_client *net;
    pthread_t *threads;
    unsigned thread_count;
    uint64_t seed; /* of instances: one system call for all of them */
    bool started;  /* some, since activity_wake() */
    atomic_bool stopping;
    pthread_mutex_t mutex; /* guards what follows, and the last part of each attempt */
    pthread_cond_t wake;
    TAILQ_HEAD(, activity) queued[2], parked; /* of queued the second: those for whom no instance was free */
    struct idle idle[IDLE_MAX + 1];           /* the oldest first */
    unsigned idle_count;
};

/* Who begins wakes nobody, see activity_wake(). */
static void enqueue(struct activity *a) {
    struct activity_pool *p = a->pool; /* once queued, `a` is another thread's */
    pthread_mutex_lock(&p->mutex);
    if (a->net_id) TAILQ_REMOVE(&p->parked, a, link);
    a->net_id = 0;
    TAILQ_INSERT_TAIL(&p->queued[a->deadline && !a->exec], a, link);
    if (a->deadline) pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->mutex);
}

/* The op fails or, when the next phase is ENDED, the attempt. */
static enum phase fail(struct activity *a, enum phase next, const struct error *why) {
    a->ok = false;
    buf_clear(&a->text);
    error_json(why, &a->text);
    return next;
}

static enum phase refuse(struct activity *a, enum phase next, int code, const char *message) {
    struct error why;
    error_set(&why, code, "%.*s: %s", (int)a->name.n, a->name.p, message);
    return fail(a, next, &why);
}

static int64_t mono_ms(const struct activity *a) {
    return a->pool->env->mono_ms(a->pool->env);
}

/* ---- ops: each gets its argument, fills in a->text and a->ok, and tells the next phase ---- */

#define ANSWER(...) (buf_json(&a->text, __VA_ARGS__), RUNNING)

static enum phase op_input(struct activity *a, yyjson_val *v) {
    (void)v;
    return ANSWER("%j", a->input);
}

static enum phase note(struct activity *a, enum log_level level, const char *what, yyjson_val *v) {
    log_event(level, what, "\"actor\":%q,\"activity\":%q,\"correlationId\":%Q,\"guest\":%v", a->actor, a->name,
              a->correlation, v);
    return ANSWER("null");
}

static enum phase op_log(struct activity *a, yyjson_val *v) {
    return note(a, log_level_of(json_str(v, "level")), "activity", v);
}

static enum phase op_progress(struct activity *a, yyjson_val *v) {
    return note(a, LOG_INFO, "progress", v);
}

static enum phase op_heartbeat(struct activity *a, yyjson_val *v) {
    (void)v;
    return ANSWER("{\"cancelled\":%b}", atomic_load(&a->cancelled));
}

static enum phase op_now(struct activity *a, yyjson_val *v) {
    (void)v;
    return ANSWER("%d", a->pool->env->now_ms(a->pool->env));
}

static enum phase op_random(struct activity *a, yyjson_val *v) {
    struct env *env = a->pool->env;
    uint8_t bytes[RANDOM_MAX_BYTES];
    char hex[2 * RANDOM_MAX_BYTES + 1];
    uint64_t n = yyjson_is_null(v) ? sizeof n : yyjson_get_uint(v);
    if (n < 1 || n > RANDOM_MAX_BYTES)
        return refuse(a, RUNNING, LOOM_E_INVALID_ARGUMENT, "random takes null or how many bytes, 1 to 256");
    env->random(env, bytes, n);
    hex_encode(bytes, n, hex);
    if (!yyjson_is_null(v)) return ANSWER("%z", hex);
    memcpy(&n, bytes, sizeof n);
    return ANSWER("%f", (double)(n >> 11) * 0x1p-53);
}

static enum phase op_return(struct activity *a, yyjson_val *v) {
    json_write(v, &a->text);
    return ENDED;
}

static enum phase op_fail(struct activity *a, yyjson_val *v) {
    struct str code = json_str(v, "code"), message = json_str(v, "message");
    struct error why;
    error_set(&why, LOOM_E_FAILED, "%.*s", (int)message.n, message.n ? message.p : "");
    if (code.n) snprintf(why.code, sizeof why.code, "%.*s", (int)code.n, code.p);
    why.retryable = json_bool(v, "retryable", false);
    return fail(a, ENDED, &why);
}

static enum phase op_secret(struct activity *a, yyjson_val *v) {
    struct buf handle = {0};
    struct error why;
    struct str name = {yyjson_get_str(v), yyjson_get_len(v)};
    int rc = net_secret_handle(a->pool->net, a->policy, name, &handle, &why);
    if (rc == 0) buf_json(&a->text, "%q", buf_view(&handle));
    buf_free(&handle);
    return rc == 0 ? RUNNING : fail(a, RUNNING, &why);
}

/* On the net thread. */
static void http_done(void *ctx, bool ok, struct str json) {
    struct activity *a = ctx;
    exec_answer(a->exec, ok, json);
    enqueue(a);
}

/* Once parked another thread may have the attempt at any time: it is not touched again. http_ended() comes from the net
 * thread, without a lock of net's, so the pool's may be held here. */
static enum phase park(struct activity *a, const struct net_request *r) {
    struct activity_pool *p = a->pool;
    pthread_mutex_lock(&p->mutex);
    TAILQ_INSERT_TAIL(&p->parked, a, link);
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
    int64_t left = a->deadline - mono_ms(a), timeout = json_int(v, "timeoutMs", left);
    if (timeout <= 0 || timeout > left) timeout = left > 0 ? left : 1;
    if (json) json_write(body, &a->text);
    a->https = SABOTAGE("key not from position") ? (uint32_t)mono_ms(a) : a->https + 1;
    buf_json(&key, "%j-%u", a->key, (uint64_t)a->https);
    struct net_request request = {
        .policy = a->policy,
        .method = json_str(v, "method"),
        .url = json_str(v, "url"),
        .headers = yyjson_obj_get(v, "headers"),
        .body = json ? buf_view(&a->text) : json_str(v, "body"),
        .body_json = json,
        .idempotency_key = buf_view(&key),
        .traceparent = a->traceparent,
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

const struct loom_op_doc activity_ops[] = {
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

/* An argument that is not JSON: an ending fails the attempt, any other op is refused. */
static enum phase run_op(struct activity *a) {
    struct str name, arg;
    struct error invalid, why;
    size_t i = 0;
    exec_op(a->exec, &name, &arg);
    while (activity_ops[i].name && !str_is(name, activity_ops[i].name)) i++;
    if (!activity_ops[i].name) {
        error_set(&why, LOOM_E_UNKNOWN_OP, "activities have no op \"%.*s\"", (int)name.n, name.p);
        return fail(a, ENDED, &why);
    }
    bool ends = op_functions[i] == op_return || op_functions[i] == op_fail;
    yyjson_doc *doc = json_parse(arg, &invalid);
    if (!doc)
        error_set(&why, ends ? LOOM_E_INVALID_OUTPUT : LOOM_E_INVALID_ARGUMENT, "%.*s: %s: %.*s", (int)a->name.n,
                  a->name.p, invalid.message, (int)(arg.n < FIRST_BYTES ? arg.n : FIRST_BYTES), arg.p);
    enum phase next = doc ? op_functions[i](a, yyjson_doc_get_root(doc)) : fail(a, ends ? ENDED : RUNNING, &why);
    yyjson_doc_free(doc);
    if (next == RUNNING) exec_answer(a->exec, a->ok, buf_view(&a->text));
    return next;
}

/* ---- instances that serve again ---- */

/* Takes the one of the attempt's kind that has lain for the shortest time. */
static struct exec *take_idle(struct activity *a) {
    struct activity_pool *p = a->pool;
    struct exec *found = NULL;
    pthread_mutex_lock(&p->mutex);
    for (unsigned i = p->idle_count; i-- > 0 && !found;) {
        struct idle *at = &p->idle[i];
        if (at->module != a->module || at->reuse != a->reuse) continue;
        found = at->exec;
        memmove(at, at + 1, (--p->idle_count - i) * sizeof *at);
    }
    pthread_mutex_unlock(&p->mutex);
    return found;
}

/* The oldest makes room. */
static void lie_idle(struct activity *a) {
    struct activity_pool *p = a->pool;
    struct exec *oldest = NULL;
    pthread_mutex_lock(&p->mutex);
    p->idle[p->idle_count++] = (struct idle){a->exec, a->module, a->reuse};
    if (p->idle_count > IDLE_MAX) {
        oldest = p->idle[0].exec;
        memmove(p->idle, p->idle + 1, --p->idle_count * sizeof *p->idle);
    }
    pthread_mutex_unlock(&p->mutex);
    exec_free(oldest);
}

/* ---- running ---- */

/* An instance for the attempt; while all are in use it stays queued. */
static enum phase get_instance(struct activity *a) {
    struct error why;
    struct activity_pool *p = a->pool;
    if (a->reuse && (a->exec = take_idle(a)) != NULL) return RUNNING;
    uint64_t seed = hash64(a->key, p->seed + (uint64_t)a->deadline);
    a->exec = exec_new(a->module, (struct exec_limits){.memory_mb = a->memory_mb}, seed, &why);
    return a->exec ? RUNNING : strcmp(why.code, "busy") == 0 ? QUEUED : fail(a, ENDED, &why);
}

static enum phase step(struct activity *a, int64_t now_ms) {
    if (!a->exec) return get_instance(a);
    enum exec_state state = exec_run(a->exec, now_ms);
    a->ok = true;
    buf_clear(&a->text);
    switch (state) {
    case EXEC_OP: return run_op(a);
    case EXEC_SLICE: return QUEUED;
    case EXEC_END: buf_str(&a->text, STR("null")); return ENDED;
    case EXEC_TRAP: break;
    }
    return fail(a, ENDED, exec_trap(a->exec));
}

/* Until the attempt ends, is parked, or has had its share of the thread. */
static enum phase go(struct activity *a) {
    int64_t start = mono_ms(a), now_ms = a->pool->env->now_ms(a->pool->env);
    if (a->deadline && !a->exec) a->pool->env->pause(1000); /* there was none for it */
    if (!a->exec) a->deadline = start + a->time_ms;
    if (a->told) return ENDED;
    a->told = atomic_load(&a->cancelled);
    for (int64_t now = start;; now = mono_ms(a)) {
        if (atomic_load(&a->pool->stopping)) return refuse(a, ENDED, LOOM_E_INTERRUPTED, "the worker is shutting down");
        if (now >= a->deadline) return refuse(a, ENDED, LOOM_E_TIMEOUT, "it took longer than its limit");
        if (now - start >= FAIR_MS) return QUEUED;
        enum phase next = step(a, now_ms);
        if (next != RUNNING) return next; /* once parked it is not touched again */
    }
}

/* One go, and what follows from it; true: it has ended. One that is parked or queued is another thread's by now. */
static bool run(struct activity *a) {
    enum phase next = go(a);
    if (next == QUEUED) enqueue(a);
    if (next != ENDED) return false;
    if (atomic_load(&a->cancelled)) refuse(a, ENDED, LOOM_E_CANCELLED, "it was cancelled");
    if (a->reuse && a->exec && exec_again(a->exec))
        lie_idle(a);
    else
        exec_free(a->exec);
    return true;
}

bool activity_step(struct activity_pool *p, bool wait) {
    struct activity *a;
    pthread_mutex_lock(&p->mutex);
    while (!(a = TAILQ_FIRST(&p->queued[0])) && !(a = TAILQ_FIRST(&p->queued[1])) && wait &&
           !(atomic_load(&p->stopping) && TAILQ_EMPTY(&p->parked)))
        pthread_cond_wait(&p->wake, &p->mutex);
    if (a)
        TAILQ_REMOVE(&p->queued[a->deadline && !a->exec], a, link);
    else
        pthread_cond_signal(&p->wake); /* the next thread may end, too */
    pthread_mutex_unlock(&p->mutex);
    if (!a) return false;
    if (run(a)) a->ended(a);
    return true;
}

static void *thread_main(void *arg) {
    while (activity_step(arg, true)) continue;
    return NULL;
}

struct activity_pool *activity_pool_new(struct env *env, struct net_client *net, unsigned threads) {
    struct activity_pool *p = mem_alloc(sizeof *p);
    p->env = env;
    p->net = net;
    env->random(env, &p->seed, sizeof p->seed);
    if (!threads) threads = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    p->threads = mem_alloc(threads * sizeof *p->threads);
    TAILQ_INIT(&p->queued[0]);
    TAILQ_INIT(&p->queued[1]);
    TAILQ_INIT(&p->parked);
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
    TAILQ_FOREACH(a, &p->parked, link) net_cancel(p->net, a->net_id);
    pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->mutex);
    while (!p->thread_count && (activity_step(p, false) || !TAILQ_EMPTY(&p->parked))) net_step(p->net);
    for (unsigned i = 0; i < p->thread_count; i++) pthread_join(p->threads[i], NULL);
    for (unsigned i = 0; i < p->idle_count; i++) exec_free(p->idle[i].exec);
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->wake);
    free(p->threads);
    free(p);
}

bool activity_start(struct activity_pool *p, struct activity *a, bool here) {
    a->pool = p;
    if (here) return run(a);
    p->started = true;
    enqueue(a);
    return false;
}

void activity_wake(struct activity_pool *p) {
    if (p->started) pthread_cond_broadcast(&p->wake);
    p->started = false;
}

void activity_cancel(struct activity_pool *p, struct activity *a) {
    pthread_mutex_lock(&p->mutex);
    atomic_store(&a->cancelled, true);
    net_cancel(p->net, a->net_id);
    pthread_mutex_unlock(&p->mutex);
}
