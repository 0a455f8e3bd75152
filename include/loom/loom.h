/* loom.h: Loom as a library. A worker in your process: open it, send it requests, close it.
 *
 * Threads: every function may be called from any thread. Callbacks come on Loom's own threads and must be quick.
 * Ownership: arguments are borrowed until the call returns; what a callback is given lives until it returns.
 */
#ifndef LOOM_H
#define LOOM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LOOM_VERSION "0.1.0"

#ifdef __cplusplus
extern "C" {
#endif

struct loom; /* one engine: one shard, one store */

/* Bytes, not NUL-terminated. .p NULL means absent. */
struct loom_str {
    const char *p;
    size_t n;
};

struct loom_config {
    const char *store;       /* folder of the store, created if missing; "memory": nothing outlives the process */
    const char *project;     /* loom.json as JSON text, or NULL: network, mail, secrets (see docs/quickstart.md) */
    const char *project_dir; /* what relative paths in it refer to */
    const char *compiler;    /* executable that handles --compile-module (the loom command); NULL: compile in process */
    uint64_t memory_budget;  /* bytes of resident guests before the least recently used are evicted; 0: 256 MB */
    uint32_t idle_ms;        /* an idle actor leaves memory after this long; 0: 60,000 */
    uint32_t threads;        /* activity threads; 0: one per core */
    bool evict_always; /* evict each guest after every op, from a turn's 200th on at each await: for tests of replay */
    bool accept_restored; /* start although the store is older than what was seen here before */
    bool debug;           /* allow the op `debug` to make this worker fail: panic, stall */
    void (*flushed)(
        void *ctx); /* after each group of replies, on the engine's thread: wake your own loop once; may be NULL */
    void *flushed_ctx;
};

/* Opens the store, recovers, starts the threads. NULL on failure; message says what, which thing, and what to do. */
struct loom *loom_open(const struct loom_config *config, char *message, size_t message_cap);
/* Graceful: takes no more work, ends running slices, commits, stops activities (they resume at the next start). */
void loom_close(struct loom *l);

/* What came of a request. status is HTTP's. body is JSON: the value, or {"code","message","retryable"} when status ≥ 400. */
struct loom_reply {
    int status;
    struct loom_str body;
    struct loom_str message_id; /* call, send, event, run: absent otherwise */
};
typedef void (*loom_reply_fn)(void *ctx, const struct loom_reply *reply);

/* A request to the engine. `op` is a row of the operator's op table (loom_ops()): call, send, event, … Fields that an op
 * does not use stay zero. */
struct loom_request {
    const char *op;
    struct loom_str ns;        /* absent: "default" */
    struct loom_str type, key; /* the actor; or for definitions: type = name, key = version */
    struct loom_str id;        /* message id (absent: Loom makes one), or the event's type for `event` */
    struct loom_str event_id;  /* for `event`: the message id */
    struct loom_str body;      /* JSON text, or module bytes */
    struct loom_str version;   /* run: version of the workflow */
    struct loom_str correlation, traceparent;
    struct loom_str after, status; /* queries */
    int64_t delay_ms, ttl_ms;
    int64_t timeout_ms; /* call: answer 202 when it takes longer; 0: 30,000 */
    int64_t at;         /* a past moment as a journal cursor, −1: now (0 counts as −1 for ops other than state) */
    int64_t from, limit;
    int32_t priority;
    bool replace;
    loom_reply_fn reply; /* called exactly once, when all that the answer rests on is durable; may be NULL */
    void *ctx;
};
/* Takes the request; reply comes later, never inside this call. */
void loom_submit(struct loom *l, const struct loom_request *request);

/* One event of the stream: a journal entry or a change of an actor. */
struct loom_event {
    int64_t id;            /* rises; for one actor: its journal cursor */
    struct loom_str actor; /* type/key */
    struct loom_str ns;
    struct loom_str json; /* {"actor", "cursor", "entry": {…}} */
};
typedef void (*loom_event_fn)(void *ctx, const struct loom_event *event);
/* Committed journal entries as they come; actor absent: of all actors (of the namespace). from ≥ 0: first the recorded ones with an id > from
 * (of one actor: from its journal; of all: from the last 10,000). On the engine's thread. Answers a handle for loom_unsubscribe. */
uint64_t loom_subscribe(struct loom *l, struct loom_str ns, struct loom_str actor, int64_t from, loom_event_fn fn,
                        void *ctx);
/* After it returns fn is not called any more. Not from within fn. */
void loom_unsubscribe(struct loom *l, uint64_t handle);

/* Native guests: the same source as WASM, compiled into the process (guest.h names the entry). For all looms of the
 * process, before loom_open: what an open turn runs must be known when it is recovered. Again under a name: replaced. */
int loom_register_actor(const char *type, void (*run)(void));
int loom_register_activity(const char *name, void (*run)(void));

/* The op tables as data, for help and docs; each array ends with a NULL name. who: "operator", "actor" or "activity". */
struct loom_op_doc {
    const char *name, *argument, *doc;
};
const struct loom_op_doc *loom_ops(const char *who);

/* Prometheus text of this process's metrics; the caller frees. */
char *loom_metrics(void);

#ifdef __cplusplus
}
#endif
#endif
