/* executor.h: what the files of this folder share and nobody else sees.
 *
 * A guest that wants something calls exec_ask(), from its own stack, and is suspended until exec_answer(), be it a WASM
 * guest (host.c) or a native one.
 */
#ifndef LOOM_EXECUTOR_H
#define LOOM_EXECUTOR_H

#include "wasm/exec.h"
#include <pthread.h>
#include <semaphore.h>
#include <wasmtime.h>

enum { TABLE_ELEMENTS = 100000, MEMORY_MB = 256 /* at most, of a guest */, SLICE_US = 2000, TICK_US = SLICE_US / 2 };

struct exec_engine {
    uint32_t slots, fuel;
    wasm_engine_t *wasm;
    wasmtime_linker_t *linker;
    struct map modules; /* that it keeps */

    /* The ticker raises the epoch while an instance runs, and sleeps otherwise. */
    pthread_t ticker;
    sem_t wake;
    atomic_uint running, ticks; /* instances inside exec_run() */
    atomic_bool asleep, stop;
};

struct exec_module {
    void (*native)(void); /* NULL: WASM, described by the rest */
    struct exec_engine *engine;
    char name[65]; /* under which the engine keeps it */
    wasmtime_module_t *module;
    wasmtime_instance_pre_t *pre;
    const char *calls[3]; /* exports to be called: _initialize, if there is one, and `run` or `_start`; NULL ends */
    const char *again[2]; /* for another run: `again`, wherever in the program the last one was left, or `run` */
};

struct exec {
    struct exec_module *module;
    struct exec_limits limits;
    const char *const *calls; /* exports still to be called */
    enum exec_state state;    /* SLICE while it is not over */
    bool exited, line_error;  /* by proc_exit(0); the output in `line` is an error */

    /* The op in progress: asked, then answered. */
    bool asked, over; /* over: it shall unwind the guest */
    int32_t code;     /* what `op` returns */
    struct str name, arg;
    struct buf result;  /* what `take` copies; .p NULL: none yet */
    struct error *trap; /* why it trapped; malloc'd */

    struct native *native;

    wasmtime_store_t *store;
    wasmtime_context_t *context;
    wasmtime_call_future_t *future; /* of the call in progress; it keeps pointers to what is below */
    wasmtime_instance_t instance;
    wasmtime_func_t func; /* the export `called` */
    const char *called;
    wasm_trap_t *trap_ret;
    wasmtime_error_t *error_ret;
    wasmtime_memory_t memory; /* once the guest has called the host; else of store 0 */
    int64_t used_us;          /* CPU time of this stretch */

    /* WASI: clock, state of its randomness; output up to the next newline; arguments of the op `log`, each with its NUL,
     * and how many bytes of them were logged. */
    int64_t now_ms;
    uint64_t seed;
    struct buf line, logs;
    size_t logged;
};

/* ---- executor.c ---- */
void exec_ask(struct exec *x, struct str name, struct str arg); /* suspends the guest with an op */
/* Where error_set() puts why the guest traps: NULL when that is known already. */
struct error *exec_trapping(struct exec *x);

/* ---- host.c ---- */
/* A host function that does not wait: answers its WASM result. When it set a trap the guest gets that instead. */
typedef const wasmtime_val_raw_t *host_args;
#define U32(k) ((uint32_t)args[k].i32)
struct host_row {
    /* Names between spaces; types a letter each: i is i32, I is i64; module NULL: WASI's. */
    const char *names, *params, *results, *module;
    int (*fn)(struct exec *x, host_args args);
    int code; /* what it answers when it does nothing: fn NULL */
};
void host_link(wasmtime_linker_t *linker); /* everything a guest may import */
/* The guest's bytes at ptr; NULL when they are not all its own, then its trap is `bad_pointer`. */
uint8_t *host_memory(struct exec *x, uint32_t ptr, uint64_t len);

/* ---- module.c ---- */
/* The innermost cause of one of the two, without frames. */
void exec_wasm_error(const wasmtime_error_t *error, const wasm_trap_t *trap, char *out, size_t cap);

/* ---- wasi.c ---- */
extern const struct host_row wasi_rows[]; /* ends with a NULL name */
void wasi_log_lines(struct exec *x, bool all);

/* ---- native.c ---- */
struct exec *native_new(struct exec *x); /* answers x */
void native_free(struct exec *x);
bool native_poll(struct exec *x); /* until it asks an op; true: it has ended */

#endif
