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
#include <strings.h>
#include <unistd.h>

enum { FAIR_MS = 2, IDLE_MAX = 32, HTTP_TIMEOUT_MS = 60000, FIRST_BYTES = 80, RANDOM_MAX_BYTES = 256 };

struct activity {
    struct activity_pool *pool;
    struct activity_spec spec;
    struct exec *exec; /* NULL until an instance was free */
    uint64_t random;   /* state of its generator */
    uint32_t https;    /* http ops so far */
    bool returned;     /* by op `return`, in an instance that may be used again */
    bool told;         /* it has had a go since it was cancelled */
    struct buf result;
    atomic_bool cancelled;

    /* Under the pool's mutex: */
    struct activity *queued_next, *live_prev, *live_next;
    bool answered, parked; /* its http op: the answer came, no thread has it */
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

/* What an op, or a go on a thread, comes to. */
enum verdict { GO_ON, PARKED, AGAIN, NO_ROOM, ENDED };

static void enqueue(struct activity_pool *p, struct activity *a) {
    a->queued_next = NULL;
    if (p->first)
        p->last->queued_next = a;
    else
        p->first = a;
    p->last = a;
    pthread_cond_signal(&p->wake);
}

/* ---- instances that serve again ---- */

static bool limits_equal(struct exec_limits a, struct exec_limits b) {
    return a.memory_mb == b.memory_mb && a.cpu_ms == b.cpu_ms;
}

static struct exec *idle_take(struct activity_pool *p, const struct activity_spec *spec) {
    struct exec *x = NULL;
    pthread_mutex_lock(&p->mutex);
    for (unsigned i = p->idle_count; i-- > 0 && !x;) {
        struct idle *slot = &p->idle[i];
        if (slot->module != spec->module || !limits_equal(slot->limits, spec->limits)) continue;
        if (!str_eq(str_of(slot->ns), spec->ns)) continue;
        x = slot->exec;
        free(slot->ns);
        memmove(slot, slot + 1, (--p->idle_count - i) * sizeof *slot);
    }
    pthread_mutex_unlock(&p->mutex);
    if (x) exec_suspended(x);
    return x;
}

static void idle_drop_oldest(struct activity_pool *p) {
    exec_free(p->idle[0].exec);
    free(p->idle[0].ns);
    memmove(p->idle, p->idle + 1, --p->idle_count * sizeof *p->idle);
}

static void idle_put(struct activity_pool *p, struct activity *a) {
    pthread_mutex_lock(&p->mutex);
    if (p->idle_count == IDLE_MAX) idle_drop_oldest(p);
    p->idle[p->idle_count++] = (struct idle){a->exec, a->spec.module, a->spec.limits, str_dup(a->spec.ns)};
    pthread_mutex_unlock(&p->mutex);
}

/* ---- the end of an attempt ---- */

static enum verdict finish(struct activity *a, const struct error *err) {
    struct activity_pool *p = a->pool;
    struct error cancelled;
    if (atomic_load(&a->cancelled)) {
        error_set(&cancelled, LOOM_E_CANCELLED, "%.*s was cancelled", (int)a->spec.name.n, a->spec.name.p);
        err = &cancelled;
    }
    exec_free(a->exec);
    a->spec.done(a->spec.ctx, err ? STR_NONE : a->result.n ? buf_view(&a->result) : STR("null"), err);
    pthread_mutex_lock(&p->mutex);
    if (a->live_prev)
        a->live_prev->live_next = a->live_next;
    else
        p->live = a->live_next;
    if (a->live_next) a->live_next->live_prev = a->live_prev;
    if (!p->live) pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->mutex);
    exec_module_unref(a->spec.module);
    buf_free(&a->result);
    free(a);
    return ENDED;
}

static enum verdict finish_error(struct activity *a, int code, const char *message) {
    struct error err;
    error_set(&err, code, "%.*s: %s", (int)a->spec.name.n, a->spec.name.p, message);
    return finish(a, &err);
}

static enum verdict finish_trap(struct activity *a) {
    struct error err;
    exec_trap(a->exec, &err);
    return finish(a, &err);
}

/* run() is over: the instance may serve again. */
static enum verdict finish_end(struct activity *a) {
    if (a->spec.reuse && exec_reusable(a->exec)) {
        idle_put(a->pool, a);
        a->exec = NULL;
    }
    return finish(a, NULL);
}

/* ---- ops: each gets its argument as text and parsed ---- */

static enum verdict answer(struct activity *a, const char *fmt, ...) {
    struct buf text = {0};
    va_list ap;
    va_start(ap, fmt);
    buf_json_v(&text, fmt, ap);
    va_end(ap);
    exec_answer(a->exec, true, buf_view(&text));
    buf_free(&text);
    return GO_ON;
}

static enum verdict answer_error(struct activity *a, const struct error *err) {
    struct buf text = {0};
    error_json(err, &text);
    exec_answer(a->exec, false, buf_view(&text));
    buf_free(&text);
    return GO_ON;
}

static enum verdict refuse(struct activity *a, int code, const char *message) {
    struct error err;
    error_set(&err, code, "%s", message);
    return answer_error(a, &err);
}

static enum verdict op_input(struct activity *a, struct str arg, yyjson_val *v) {
    (void)arg, (void)v;
    exec_answer(a->exec, true, a->spec.input.n ? a->spec.input : STR("null"));
    return GO_ON;
}

static enum verdict op_log(struct activity *a, struct str arg, yyjson_val *v) {
    static const struct {
        const char *name;
        int level;
    } levels[] = {{"trace", LOG_TRACE}, {"debug", LOG_DEBUG}, {"info", LOG_INFO},
                  {"warn", LOG_WARN},   {"error", LOG_ERROR}, {"fatal", LOG_FATAL}};
    int level = LOG_INFO;
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        if (str_eq(json_str(v, "level"), str_of(levels[i].name))) level = levels[i].level;
    }
    if (a->spec.note) a->spec.note(a->spec.ctx, level, arg);
    return answer(a, "null");
}

static enum verdict op_progress(struct activity *a, struct str arg, yyjson_val *v) {
    (void)v;
    if (a->spec.note) a->spec.note(a->spec.ctx, 0, arg);
    return answer(a, "null");
}

static enum verdict op_heartbeat(struct activity *a, struct str arg, yyjson_val *v) {
    (void)arg, (void)v;
    return answer(a, "{\"cancelled\":%b}", atomic_load(&a->cancelled));
}

static enum verdict op_now(struct activity *a, struct str arg, yyjson_val *v) {
    (void)arg, (void)v;
    return answer(a, "%d", a->pool->env->now_ms(a->pool->env));
}

static uint64_t next_random(struct activity *a) { /* splitmix64 */
    uint64_t z = a->random += 0x9E3779B97F4A7C15U;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

static enum verdict op_random(struct activity *a, struct str arg, yyjson_val *v) {
    (void)arg;
    if (yyjson_is_null(v)) return answer(a, "%f", (double)(next_random(a) >> 11) * 0x1p-53);
    uint64_t bytes[RANDOM_MAX_BYTES / 8], n = yyjson_is_uint(v) ? yyjson_get_uint(v) : 0;
    if (n < 1 || n > RANDOM_MAX_BYTES)
        return refuse(a, LOOM_E_INVALID_ARGUMENT, "random takes null, or 1 to 256 bytes");
    for (size_t i = 0; i * 8 < n; i++) bytes[i] = next_random(a);
    char hex[2 * RANDOM_MAX_BYTES + 1];
    hex_encode((const uint8_t *)bytes, n, hex);
    return answer(a, "%z", hex);
}

static enum verdict op_return(struct activity *a, struct str arg, yyjson_val *v) {
    (void)arg;
    json_write(v, &a->result);
    if (!a->spec.reuse || !exec_reusable(a->exec)) return finish(a, NULL);
    a->returned = true;
    return answer(a, "null");
}

static enum verdict op_fail(struct activity *a, struct str arg, yyjson_val *v) {
    (void)arg;
    struct error err;
    struct str code = json_str(v, "code"), message = json_str(v, "message");
    error_set(&err, LOOM_E_FAILED, "%.*s", (int)message.n, message.n ? message.p : "");
    if (code.n) snprintf(err.code, sizeof err.code, "%.*s", (int)code.n, code.p);
    err.retryable = json_bool(v, "retryable", false);
    return finish(a, &err);
}

static enum verdict op_secret(struct activity *a, struct str arg, yyjson_val *v) {
    (void)arg;
    struct error err;
    struct buf handle = {0};
    struct str name = {yyjson_get_str(v), yyjson_get_len(v)};
    if (!name.p) return refuse(a, LOOM_E_INVALID_ARGUMENT, "secret takes the secret's name, a string");
    if (!a->spec.policy) return refuse(a, LOOM_E_DENIED, "the activity's definition grants no secrets");
    int rc = net_secret_handle(a->pool->net, a->spec.policy, name, &handle, &err);
    enum verdict verdict = rc ? answer_error(a, &err) : answer(a, "%q", buf_view(&handle));
    buf_free(&handle);
    return verdict;
}

/* On the net thread, perhaps before net_send() has returned: then the sender goes on by itself. */
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

/* Sends, and parks the attempt unless the answer is there already. Once it is parked it may end at any time. */
static enum verdict send_request(struct activity *a, const struct net_request *r) {
    struct activity_pool *p = a->pool;
    a->answered = false;
    uint64_t id = net_send(p->net, r);
    pthread_mutex_lock(&p->mutex);
    bool parked = a->parked = !a->answered;
    bool stop = parked && (atomic_load(&a->cancelled) || atomic_load(&p->stopping));
    a->net_id = id;
    pthread_mutex_unlock(&p->mutex);
    if (stop) net_cancel(p->net, id);
    return parked ? PARKED : GO_ON;
}

/* Why the headers are no object of strings, or NULL; *keyed: one of them is Idempotency-Key. */
static const char *check_headers(yyjson_val *headers, bool *keyed) {
    size_t i, n;
    yyjson_val *name, *value;
    if (headers && !yyjson_is_obj(headers)) return "http: headers must be an object of strings";
    yyjson_obj_foreach(headers, i, n, name, value) {
        if (!yyjson_is_str(value)) return "http: the value of every header must be a string";
        if (!strcasecmp(yyjson_get_str(name), "idempotency-key")) *keyed = true;
    }
    return NULL;
}

static enum verdict op_http(struct activity *a, struct str arg, yyjson_val *v) {
    (void)arg;
    struct env *env = a->pool->env;
    yyjson_val *headers = yyjson_obj_get(v, "headers"), *body = yyjson_obj_get(v, "body");
    struct str url = json_str(v, "url"), method = json_str(v, "method");
    bool keyed = false;
    const char *wrong = url.p ? check_headers(headers, &keyed) : "http: url must be a string";
    if (wrong) return refuse(a, LOOM_E_INVALID_ARGUMENT, wrong);
    if (!a->spec.policy) return refuse(a, LOOM_E_DENIED, "the activity's definition grants no network");
    if (!a->spec.policy->mail && url.n > 7 && !strncasecmp(url.p, "smtp://", 7)) {
        return refuse(a, LOOM_E_DENIED, "the activity's definition does not grant the capability mail");
    }
    struct buf text = {0}, key = {0};
    bool as_json = body && !yyjson_is_null(body) && !yyjson_is_str(body);
    if (as_json) json_write(body, &text);
    buf_str(&key, a->spec.key);
    buf_json(&key, "-%u", (uint64_t)++a->https);
    int64_t left = a->spec.deadline_mono_ms - env->mono_ms(env), timeout = json_int(v, "timeoutMs", HTTP_TIMEOUT_MS);
    struct net_request r = {
        .policy = a->spec.policy,
        .method = method.p ? method : STR("GET"),
        .url = url,
        .headers = headers,
        .body = as_json ? buf_view(&text) : (struct str){yyjson_get_str(body), yyjson_get_len(body)},
        .body_json = as_json,
        .idempotency_key = keyed ? STR_NONE : buf_view(&key),
        .traceparent = a->spec.traceparent,
        .timeout_ms = timeout > 0 && timeout < left ? timeout : left,
        .ctx = a,
        .done = http_done,
    };
    enum verdict verdict = send_request(a, &r);
    buf_free(&text);
    buf_free(&key);
    return verdict;
}

#define ACTIVITY_OPS(X)                                                          \
    X(input, "null", "the activity's input")                                     \
    X(http, "{method, url, headers?, body?, timeoutMs?}",                        \
      "sends a request (or mail, with an smtp:// url): {status, headers, body}") \
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

static enum verdict (*const op_functions[])(struct activity *a, struct str arg, yyjson_val *v) = {
#define X(name, argument, doc) op_##name,
    ACTIVITY_OPS(X)
#undef X
};

static enum verdict invalid_argument(struct activity *a, struct str name, struct str arg, const struct error *why) {
    struct error err;
    int n = (int)(arg.n < FIRST_BYTES ? arg.n : FIRST_BYTES);
    if (!str_eq(name, STR("return")) && !str_eq(name, STR("fail"))) return answer_error(a, why);
    error_set(&err, LOOM_E_INVALID_OUTPUT, "%.*s: %s: %.*s", (int)a->spec.name.n, a->spec.name.p, why->message, n,
              arg.p);
    return finish(a, &err);
}

static enum verdict run_op(struct activity *a) {
    struct str name, arg;
    struct error err;
    exec_op(a->exec, &name, &arg);
    for (size_t i = 0; activity_ops[i].name; i++) {
        if (!str_eq(name, str_of(activity_ops[i].name))) continue;
        yyjson_doc *doc = json_parse(arg, &err);
        if (!doc) {
            error_set(&err, LOOM_E_INVALID_ARGUMENT, "%s", err.message);
            return invalid_argument(a, name, arg, &err);
        }
        enum verdict verdict = op_functions[i](a, arg, yyjson_doc_get_root(doc));
        yyjson_doc_free(doc);
        return verdict;
    }
    error_set(&err, LOOM_E_UNKNOWN_OP, "%.*s: activities have no op \"%.*s\"", (int)a->spec.name.n, a->spec.name.p,
              (int)(name.n < FIRST_BYTES ? name.n : FIRST_BYTES), name.p);
    return finish(a, &err);
}

/* ---- running ---- */

/* What ends an attempt from outside, looked at before each stretch; 0: nothing. */
static enum verdict interrupted(struct activity *a, bool slice_over) {
    struct env *env = a->pool->env;
    if (atomic_load(&a->pool->stopping)) return finish_error(a, LOOM_E_INTERRUPTED, "the worker is shutting down");
    if (slice_over && a->told) return finish(a, NULL);
    a->told = atomic_load(&a->cancelled);
    if (env->mono_ms(env) < a->spec.deadline_mono_ms) return GO_ON;
    return finish_error(a, LOOM_E_TIMEOUT, "the attempt took longer than limits.maxExecutionMs");
}

/* An instance for the attempt: NO_ROOM when none is free, ENDED when it cannot have one. */
static enum verdict get_instance(struct activity *a) {
    struct error err;
    if (a->exec) return GO_ON;
    if (a->spec.reuse) a->exec = idle_take(a->pool, &a->spec);
    if (!a->exec) a->exec = exec_new(a->spec.module, a->spec.limits, &err);
    if (a->exec) return GO_ON;
    return strcmp(err.code, error_name(LOOM_E_BUSY)) != 0 ? finish(a, &err) : NO_ROOM;
}

/* One go: until the attempt ends, is parked, or has had its share of the thread. */
static enum verdict run(struct activity *a) {
    struct env *env = a->pool->env;
    int64_t start = env->mono_ms(env);
    enum verdict verdict = interrupted(a, true);
    if (verdict == GO_ON) verdict = get_instance(a);
    while (verdict == GO_ON) {
        enum exec_state state = exec_run(a->exec);
        if (state == EXEC_END) return finish_end(a);
        if (a->returned) return finish(a, NULL);
        if (state == EXEC_TRAP) return finish_trap(a);
        if (state == EXEC_SLICE) return AGAIN;
        verdict = run_op(a);
        if (verdict == GO_ON) verdict = interrupted(a, false);
        if (verdict == GO_ON && env->mono_ms(env) - start >= FAIR_MS) return AGAIN;
    }
    return verdict;
}

static void *thread_main(void *arg) {
    struct activity_pool *p = arg;
    pthread_mutex_lock(&p->mutex);
    for (;;) {
        while (!p->first && !(atomic_load(&p->stopping) && !p->live)) pthread_cond_wait(&p->wake, &p->mutex);
        struct activity *a = p->first;
        if (!a) break;
        p->first = a->queued_next;
        pthread_mutex_unlock(&p->mutex);
        enum verdict verdict = run(a);
        if (verdict == NO_ROOM) usleep(1000);
        pthread_mutex_lock(&p->mutex);
        if (verdict == AGAIN || verdict == NO_ROOM) enqueue(p, a);
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
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

/* Cuts the network requests of one parked attempt after the other; each then ends on a thread of the pool. */
static void cut_parked(struct activity_pool *p) {
    for (;;) {
        pthread_mutex_lock(&p->mutex);
        struct activity *a = p->live;
        while (a && (!a->parked || !a->net_id)) a = a->live_next;
        uint64_t id = a ? a->net_id : 0;
        if (a) a->net_id = 0;
        pthread_mutex_unlock(&p->mutex);
        if (!a) return;
        net_cancel(p->net, id);
    }
}

void activity_pool_free(struct activity_pool *p) {
    if (!p) return;
    atomic_store(&p->stopping, true);
    cut_parked(p);
    pthread_mutex_lock(&p->mutex);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->mutex);
    for (unsigned i = 0; i < p->thread_count; i++) pthread_join(p->threads[i], NULL);
    while (p->idle_count) idle_drop_oldest(p);
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
    pthread_mutex_unlock(&p->mutex);
    if (inline_slice && run(a) == ENDED) return NULL;
    pthread_mutex_lock(&p->mutex);
    enqueue(p, a);
    pthread_mutex_unlock(&p->mutex);
    return a;
}

void activity_cancel(struct activity *a) {
    struct activity_pool *p = a->pool;
    atomic_store(&a->cancelled, true);
    pthread_mutex_lock(&p->mutex);
    uint64_t id = a->parked ? a->net_id : 0;
    pthread_mutex_unlock(&p->mutex);
    if (id) net_cancel(p->net, id);
}
