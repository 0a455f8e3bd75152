/* activity.c: attempts of activities: a pool of threads with one run queue. An attempt is a guest and where it stands:
 *
 *     queued ─► running ─► ended: done()          running ─► queued: its slice is over
 *                  └─► parked: waits for the network and needs no thread ─► queued
 *
 * Invariants: an attempt is run by one thread at a time and moves between threads only through the pool's mutex; done()
 * is called once, without a lock held. Deadlines need no timer: a guest that runs meets its own at the end of a slice, one
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
#include <unistd.h>

enum { FAIR_MS = 2, IDLE_MAX = 32, FIRST_BYTES = 80, RANDOM_MAX_BYTES = 256 };

struct activity {
    struct activity_pool *pool;
    struct activity_spec spec;
    struct exec *exec; /* NULL until an instance was free */
    uint64_t random;   /* state of its generator */
    uint32_t https;    /* http ops so far */
    bool returned;     /* by op `return`, in an instance that may serve again: it is to come out of run() */
    bool ended;        /* it came out of run() */
    bool told;         /* it has had a go since it was cancelled */
    atomic_bool cancelled;
    struct buf result, text; /* of the attempt; of the op */
    struct error error;      /* of the op, or why the attempt failed; code "": none */

    /* Under the pool's mutex: */
    struct activity *queued_next, *live_prev, *live_next;
    bool answered, parked; /* its http op: the answer came; no thread has it */
    uint64_t net_id;
};

/* An instance whose run() has ended, for the next attempt of the same kind. */
struct idle {
    struct exec *exec;
    struct exec_module *module;
    struct exec_limits limits;
    char *ns;
};

struct activity_pool {
    struct env *env;
    struct net_client *net;
    pthread_t *threads;
    unsigned thread_count;
    atomic_bool stopping;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct activity *first, *last; /* the run queue */
    struct activity *live;         /* all attempts */
    struct idle idle[IDLE_MAX];    /* the oldest first */
    unsigned idle_count;
};

/* What an op comes to (the first two answer it), or a go on a thread (the others). */
enum verdict { ANSWER, REFUSE, PARKED, AGAIN, NO_ROOM, ENDED };

static enum verdict fail(struct activity *a, enum verdict verdict, int code, const char *message) {
    error_set(&a->error, code, "%.*s: %s", (int)a->spec.name.n, a->spec.name.p, message);
    return verdict;
}

static int64_t mono_ms(const struct activity *a) {
    return a->pool->env->mono_ms(a->pool->env);
}

/* ---- instances that serve again ---- */

static struct exec *idle_remove(struct activity_pool *p, unsigned i) {
    struct exec *x = p->idle[i].exec;
    free(p->idle[i].ns);
    memmove(&p->idle[i], &p->idle[i + 1], (--p->idle_count - i) * sizeof p->idle[i]);
    return x;
}

static struct exec *idle_take(struct activity_pool *p, const struct activity_spec *spec) {
    struct exec *x = NULL;
    pthread_mutex_lock(&p->mutex);
    for (unsigned i = p->idle_count; i-- > 0 && !x;) {
        const struct idle *slot = &p->idle[i];
        bool fits = slot->module == spec->module && !memcmp(&slot->limits, &spec->limits, sizeof slot->limits);
        if (fits && str_eq(str_of(slot->ns), spec->ns)) x = idle_remove(p, i);
    }
    pthread_mutex_unlock(&p->mutex);
    if (x) exec_suspended(x);
    return x;
}

static void idle_put(struct activity_pool *p, const struct activity_spec *spec, struct exec *x) {
    pthread_mutex_lock(&p->mutex);
    struct exec *oldest = p->idle_count == IDLE_MAX ? idle_remove(p, 0) : NULL;
    p->idle[p->idle_count++] = (struct idle){x, spec->module, spec->limits, str_dup(spec->ns)};
    pthread_mutex_unlock(&p->mutex);
    exec_free(oldest);
}

/* ---- ops: each gets its argument, fills a->text with the result, or refuses with an error ---- */

static enum verdict answer(struct activity *a, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    buf_json_v(&a->text, fmt, ap);
    va_end(ap);
    return ANSWER;
}

static enum verdict op_input(struct activity *a, yyjson_val *v) {
    (void)v;
    return answer(a, "%j", a->spec.input.n ? a->spec.input : STR("null"));
}

static enum verdict note(struct activity *a, int level, yyjson_val *v) {
    json_write(v, &a->text);
    if (a->spec.note) a->spec.note(a->spec.ctx, level, buf_view(&a->text));
    buf_clear(&a->text);
    return answer(a, "null");
}

/* Levels are told apart by their first letter: trace, debug, info, warn, error, fatal. */
static enum verdict op_log(struct activity *a, yyjson_val *v) {
    static const char letters[] = "tdiwef";
    struct str level = json_str(v, "level");
    const char *at = level.n ? memchr(letters, level.p[0], 6) : NULL;
    return note(a, at ? LOG_TRACE + 10 * (int)(at - letters) : LOG_INFO, v);
}

static enum verdict op_progress(struct activity *a, yyjson_val *v) {
    return note(a, 0, v);
}

static enum verdict op_heartbeat(struct activity *a, yyjson_val *v) {
    (void)v;
    return answer(a, "{\"cancelled\":%b}", atomic_load(&a->cancelled));
}

static enum verdict op_now(struct activity *a, yyjson_val *v) {
    (void)v;
    return answer(a, "%d", a->pool->env->now_ms(a->pool->env));
}

static uint64_t next_random(struct activity *a) { /* splitmix64 */
    uint64_t z = a->random += 0x9E3779B97F4A7C15U;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

static enum verdict op_random(struct activity *a, yyjson_val *v) {
    uint64_t bytes[RANDOM_MAX_BYTES / 8], n = yyjson_is_uint(v) ? yyjson_get_uint(v) : 0;
    char hex[2 * RANDOM_MAX_BYTES + 1];
    if (yyjson_is_null(v)) return answer(a, "%f", (double)(next_random(a) >> 11) * 0x1p-53);
    if (n < 1 || n > RANDOM_MAX_BYTES) {
        return fail(a, REFUSE, LOOM_E_INVALID_ARGUMENT, "random takes null or how many bytes, 1 to 256");
    }
    for (size_t i = 0; i * 8 < n; i++) bytes[i] = next_random(a);
    hex_encode((const uint8_t *)bytes, n, hex);
    return answer(a, "%z", hex);
}

static enum verdict op_return(struct activity *a, yyjson_val *v) {
    json_write(v, &a->result);
    a->returned = a->spec.reuse && exec_reusable(a->exec);
    return a->returned ? answer(a, "null") : ENDED;
}

static enum verdict op_fail(struct activity *a, yyjson_val *v) {
    struct str code = json_str(v, "code"), message = json_str(v, "message");
    error_set(&a->error, LOOM_E_FAILED, "%.*s", (int)message.n, message.n ? message.p : "");
    if (code.n) snprintf(a->error.code, sizeof a->error.code, "%.*s", (int)code.n, code.p);
    a->error.retryable = json_bool(v, "retryable", false);
    return ENDED;
}

static enum verdict op_secret(struct activity *a, yyjson_val *v) {
    struct buf handle = {0};
    struct str name = {yyjson_get_str(v), yyjson_get_len(v)};
    int rc = net_secret_handle(a->pool->net, a->spec.policy, name, &handle, &a->error);
    if (!rc) answer(a, "%q", buf_view(&handle));
    buf_free(&handle);
    return rc ? REFUSE : ANSWER;
}

static void enqueue(struct activity_pool *p, struct activity *a) {
    a->queued_next = NULL;
    *(p->first ? &p->last->queued_next : &p->first) = a;
    p->last = a;
    pthread_cond_signal(&p->wake);
}

/* On the net thread, perhaps before net_send() has returned: then the sender queues the attempt. */
static void http_done(void *ctx, bool ok, struct str json) {
    struct activity *a = ctx;
    struct activity_pool *p = a->pool;
    exec_answer(a->exec, ok, json);
    pthread_mutex_lock(&p->mutex);
    a->answered = true;
    if (a->parked) enqueue(p, a);
    a->parked = false;
    pthread_mutex_unlock(&p->mutex);
}

/* Once the attempt is parked another thread may have it at any time: it is not touched again. */
static enum verdict http_send(struct activity *a, const struct net_request *r) {
    struct activity_pool *p = a->pool;
    a->answered = false;
    uint64_t id = net_send(p->net, r);
    pthread_mutex_lock(&p->mutex);
    bool stop = atomic_load(&a->cancelled) || atomic_load(&p->stopping);
    if (a->answered) enqueue(p, a);
    a->parked = !a->answered;
    a->net_id = id;
    pthread_mutex_unlock(&p->mutex);
    if (stop) net_cancel(p->net, id);
    return PARKED;
}

/* What is wrong with the request or not granted is net's to say. */
static enum verdict op_http(struct activity *a, yyjson_val *v) {
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
    enum verdict verdict = http_send(a, &request);
    buf_free(&key);
    return verdict;
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

static enum verdict (*const op_functions[])(struct activity *a, yyjson_val *v) = {
#define X(name, argument, doc) op_##name,
    ACTIVITY_OPS(X)
#undef X
};

/* The argument is not JSON: an ending fails the attempt, any other op is refused. */
static enum verdict bad_argument(struct activity *a, struct str name, struct str arg, const struct error *why) {
    bool ending = str_eq(name, STR("return")) || str_eq(name, STR("fail"));
    int n = (int)(arg.n < FIRST_BYTES ? arg.n : FIRST_BYTES);
    error_set(&a->error, ending ? LOOM_E_INVALID_OUTPUT : LOOM_E_INVALID_ARGUMENT, "%.*s: %s: %.*s",
              (int)a->spec.name.n, a->spec.name.p, why->message, n, arg.p);
    return ending ? ENDED : REFUSE;
}

static enum verdict run_op(struct activity *a) {
    struct str name, arg;
    struct error err;
    size_t i = 0;
    exec_op(a->exec, &name, &arg);
    while (activity_ops[i].name && !str_eq(name, str_of(activity_ops[i].name))) i++;
    if (!activity_ops[i].name) {
        error_set(&a->error, LOOM_E_UNKNOWN_OP, "activities have no op \"%.*s\"", (int)name.n, name.p);
        return ENDED;
    }
    buf_clear(&a->text);
    yyjson_doc *doc = json_parse(arg, &err);
    enum verdict verdict = doc ? op_functions[i](a, yyjson_doc_get_root(doc)) : bad_argument(a, name, arg, &err);
    yyjson_doc_free(doc);
    if (verdict > REFUSE) return verdict;
    if (verdict == REFUSE) error_json(&a->error, &a->text);
    exec_answer(a->exec, verdict == ANSWER, buf_view(&a->text));
    a->error.code[0] = '\0';
    return verdict;
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

static enum verdict get_instance(struct activity *a) {
    if (a->spec.reuse) a->exec = idle_take(a->pool, &a->spec);
    if (!a->exec) a->exec = exec_new(a->spec.module, a->spec.limits, &a->error);
    if (a->exec || strcmp(a->error.code, "busy") != 0) return a->exec ? ANSWER : ENDED;
    a->error.code[0] = '\0';
    return NO_ROOM;
}

/* Until the attempt ends, is parked, or has had its share of the thread. */
static enum verdict go(struct activity *a) {
    int64_t start = mono_ms(a);
    enum verdict verdict = a->told ? ENDED : ANSWER;
    a->told = atomic_load(&a->cancelled);
    if (!a->exec && verdict == ANSWER) verdict = get_instance(a);
    while (verdict <= REFUSE) {
        if (is_over(a)) return ENDED;
        if (mono_ms(a) - start >= FAIR_MS) return AGAIN;
        enum exec_state state = exec_run(a->exec);
        a->ended = state == EXEC_END;
        if (a->ended || a->returned) return ENDED;
        if (state == EXEC_TRAP) exec_trap(a->exec, &a->error);
        if (state != EXEC_OP) return state == EXEC_TRAP ? ENDED : AGAIN;
        verdict = run_op(a);
    }
    return verdict;
}

static void finish(struct activity *a) {
    struct activity_pool *p = a->pool;
    bool again = a->ended && a->spec.reuse && exec_reusable(a->exec);
    if (again)
        idle_put(p, &a->spec, a->exec);
    else
        exec_free(a->exec);
    if (atomic_load(&a->cancelled)) fail(a, ENDED, LOOM_E_CANCELLED, "it was cancelled");
    struct str result = a->result.n ? buf_view(&a->result) : STR("null");
    a->spec.done(a->spec.ctx, a->error.code[0] ? STR_NONE : result, a->error.code[0] ? &a->error : NULL);
    pthread_mutex_lock(&p->mutex);
    *(a->live_prev ? &a->live_prev->live_next : &p->live) = a->live_next;
    if (a->live_next) a->live_next->live_prev = a->live_prev;
    if (!p->live && atomic_load(&p->stopping)) pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->mutex);
    exec_module_unref(a->spec.module);
    buf_free(&a->result);
    buf_free(&a->text);
    free(a);
}

/* One go, and what follows from it. */
static enum verdict run(struct activity_pool *p, struct activity *a) {
    enum verdict verdict = go(a);
    if (verdict == ENDED) finish(a);
    if (verdict == AGAIN || verdict == NO_ROOM) {
        pthread_mutex_lock(&p->mutex);
        enqueue(p, a);
        pthread_mutex_unlock(&p->mutex);
    }
    return verdict;
}

static void *thread_main(void *arg) {
    struct activity_pool *p = arg;
    for (;;) {
        pthread_mutex_lock(&p->mutex);
        while (!p->first && !(atomic_load(&p->stopping) && !p->live)) pthread_cond_wait(&p->wake, &p->mutex);
        struct activity *a = p->first;
        if (a) p->first = a->queued_next;
        pthread_mutex_unlock(&p->mutex);
        if (!a) return NULL;
        if (run(p, a) == NO_ROOM) usleep(1000);
    }
}

struct activity_pool *activity_pool_new(struct env *env, struct net_client *net, unsigned threads) {
    struct activity_pool *p = mem_alloc(sizeof *p);
    p->env = env;
    p->net = net;
    p->thread_count = threads ? threads : (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    p->threads = mem_alloc(p->thread_count * sizeof *p->threads);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->wake, NULL);
    for (unsigned i = 0; i < p->thread_count; i++) pthread_create(&p->threads[i], NULL, thread_main, p);
    return p;
}

/* The threads go on until every attempt has ended; those that are parked are cut off from the network first. */
void activity_pool_free(struct activity_pool *p) {
    if (!p) return;
    atomic_store(&p->stopping, true);
    pthread_mutex_lock(&p->mutex);
    for (struct activity *a = p->live; a; a = a->live_next) {
        if (a->parked) net_cancel(p->net, a->net_id);
    }
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->mutex);
    for (unsigned i = 0; i < p->thread_count; i++) pthread_join(p->threads[i], NULL);
    while (p->idle_count) exec_free(idle_remove(p, 0));
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
    a->live_next = p->live;
    if (p->live) p->live->live_prev = a;
    p->live = a;
    if (!inline_slice) enqueue(p, a);
    pthread_mutex_unlock(&p->mutex);
    return inline_slice && run(p, a) == ENDED ? NULL : a;
}

void activity_cancel(struct activity *a) {
    struct activity_pool *p = a->pool;
    pthread_mutex_lock(&p->mutex);
    atomic_store(&a->cancelled, true);
    if (a->parked) net_cancel(p->net, a->net_id);
    pthread_mutex_unlock(&p->mutex);
}
