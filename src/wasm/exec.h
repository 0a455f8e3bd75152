/* exec.h: guests as things that run until they want something. One interface for WASM and native guests.
 *
 * An exec is one instance of one program on its own stack. exec_run() goes on until the guest asks for an op, has used
 * its slice, ends or traps; the op is answered from outside with exec_answer(). The caller's thread runs it; an exec may
 * move between threads while it does not run.
 */
#ifndef LOOM_EXEC_H
#define LOOM_EXEC_H

#include "base/base.h"
#include "loom/loom.h"
#include <stdatomic.h>
#include <sys/queue.h>

struct exec_engine; /* Wasmtime's engine, linker and pool: one per process, shared by all threads */
struct exec_module; /* compiled and pre-instantiated program, or a native one */
struct exec;        /* one instance */

/* slots: instances alive at once, fewer if they find no address space; 0: 10,500.
 * fuel: slices of so much instead of the ticker thread, so that runs repeat exactly; 0: none. */
struct exec_engine *exec_engine_new(uint32_t slots, uint32_t fuel, struct error *err);
void exec_engine_free(struct exec_engine *e); /* also the modules that it keeps */
/* How many instances actors may keep while they wait: the others are for activities, or those would wait for ever. */
uint32_t exec_engine_share(const struct exec_engine *e);

/* Compiles WASM bytes to an artefact for this engine (4–12 ms and up: not on the loop). INVALID_MODULE names the reason:
 * not WASM, truncated, missing export `memory` or `run`, an import that Loom does not have. */
int exec_compile(struct exec_engine *e, struct str wasm, struct buf *artefact, struct error *err);
/* The same in a child process (`program` = path of an executable that calls exec_compile_child when argv[1] is
 * "--compile-module"), with limits of time and memory; program NULL: in this process. */
int exec_compile_apart(struct exec_engine *e, const char *program, struct str wasm, struct buf *artefact,
                       struct error *err);
/* The child: WASM bytes from in_fd, the artefact, or what is wrong, to out_fd; the exit code. */
int exec_compile_child(int in_fd, int out_fd);
/* A short text that names engine version and settings: part of an artefact's cache key. */
const char *exec_artefact_key(struct exec_engine *e);

/* Loads an artefact that this machine made itself. NULL with INVALID_MODULE. The engine keeps it, to be found under that name
 * (at most 64 bytes); without a name it is the caller's. */
struct exec_module *exec_module_load(struct exec_engine *e, struct str name, struct str artefact, struct error *err);
struct exec_module *exec_module_kept(const struct exec_engine *e, struct str name);
struct exec_module *exec_module_native(void (*run)(void)); /* a native guest: guest.h's loom_run_NAME */
void exec_module_free(struct exec_module *m);              /* after all its instances; NULL is fine */

struct exec_limits {
    uint32_t memory_mb; /* memory.grow gives −1 beyond it; 0: 256 */
    uint32_t cpu_ms;    /* of one stretch between two suspensions; then EXEC_TRAP limit_time; 0: none */
};
/* seed: of what a WASI program takes for randomness. NULL with BUSY when no slot is free: evict and try again. */
struct exec *exec_new(struct exec_module *m, struct exec_limits limits, uint64_t seed, struct error *err);
void exec_free(struct exec *x); /* at any time it does not run; unwinds a suspended guest */

enum exec_state {
    EXEC_OP,    /* the guest asked for an op: exec_op(), then exec_answer() or exec_free() */
    EXEC_SLICE, /* it used its slice: run it again later */
    EXEC_END,   /* run() returned, or the guest exited */
    EXEC_TRAP,  /* exec_trap() says why: trap, bad_pointer, limit_time */
};
enum exec_state exec_run(struct exec *x, int64_t now_ms); /* now: what a WASI program takes for the time */
/* The op asked for: name and argument as the guest gave them (unchecked bytes), valid until exec_answer(). */
void exec_op(const struct exec *x, struct str *name, struct str *arg);
/* Result (ok) or error JSON of the op; copied. exec_run() goes on with it. */
void exec_answer(struct exec *x, bool ok, struct str json);
/* After EXEC_END, or at an op of a module that exports `again`: the run begins anew, with the memory as it is. False: it
 * cannot (native guests, programs, one that exited). */
bool exec_again(struct exec *x);
void exec_suspended(struct exec *x);                 /* it will wait long: the CPU time of the stretch begins anew */
const struct error *exec_trap(const struct exec *x); /* valid until exec_free() */
size_t exec_bytes(const struct exec *x);             /* resident memory, estimated: stack and linear memory in use */

/* ---- activities: stateless guests that run off the loop ---- */
struct net_client;

/* One attempt, from its start to its end: one struct, its owner's. Who starts it fills in the first part and lets all of it
 * live, and what it points to, until it has ended; then `ok` and `text` are what came of it, and he frees text. */
struct activity {
    struct exec_module *module;
    uint32_t memory_mb, time_ms; /* time: of all, from its first instruction to its end, waits included */
    struct str key;              /* idempotency key of the activity: equal in all attempts */
    struct str name, actor, correlation, traceparent;
    struct str input;                  /* JSON text */
    yyjson_val *policy;                /* network, mail and secrets it may use; NULL: none (a pure activity) */
    const void *reuse;                 /* its instance may serve others with this mark and module; NULL: none */
    void (*ended)(struct activity *a); /* on any thread */

    bool ok;         /* of its last op and, when it has ended, of the attempt */
    struct buf text; /* the result, or error JSON */
    atomic_bool cancelled;

    /* activity.c's: */
    struct activity_pool *pool;
    struct exec *exec; /* NULL until an instance was free */
    int64_t deadline;  /* monotonic ms; 0: it has not run yet */
    uint32_t https;    /* http ops so far */
    bool told;         /* it has had a go since it was cancelled */
    uint64_t net_id;   /* of the http op that it is parked in; 0: it is not */
    TAILQ_ENTRY(activity) link;
};
/* threads 0: one per core; where env starts none, activity_step is theirs to do. */
struct activity_pool *activity_pool_new(struct env *env, struct net_client *net, unsigned threads);
/* Lets one attempt run for its share of a thread. False: none is runnable; wait: until one is, or the pool stops. */
bool activity_step(struct activity_pool *p, bool wait);
void activity_pool_free(struct activity_pool *p); /* all attempts end with `interrupted` */
/* here: its first share runs on the caller's thread; true: it has ended there, and ended() is not called. Otherwise it waits
 * for a thread: when all that start together have, activity_wake() wakes those that sleep. (One wake-up for each was most
 * of an attempt's context switches: the thread woken took the core from the one that had more to start.) */
bool activity_start(struct activity_pool *p, struct activity *a, bool here);
void activity_wake(struct activity_pool *p);
/* Asks it to stop: heartbeat answers {"cancelled":true}, network requests are cut, it ends with `cancelled`. Nothing but the
 * flag changes when it has not started yet or has ended. */
void activity_cancel(struct activity_pool *p, struct activity *a);

extern const struct loom_op_doc activity_ops[]; /* rows for the docs, the last without a name */

#endif
