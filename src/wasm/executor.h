/* executor.h: what the files of this folder share and nobody else sees.
 *
 * A guest that wants something calls exec_ask(), from its own stack, and is suspended until exec_answer(). The shims
 * (wasi.c, native.c) ask in the same way, so outside of this folder there is only one kind of guest.
 */
#ifndef LOOM_EXECUTOR_H
#define LOOM_EXECUTOR_H

#include "wasm/exec.h"
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <wasmtime.h>

enum { TABLE_ELEMENTS = 100000, FUEL_PER_MS = 1000000 };

struct exec_engine {
    struct exec_config config; /* with the defaults filled in */
    wasm_engine_t *wasm;
    wasmtime_linker_t *linker;
    atomic_uint live; /* instances */
    char artefact_key[96];

    /* The ticker raises the epoch while an instance runs, and sleeps otherwise. */
    pthread_t ticker;
    sem_t wake;
    atomic_uint running; /* instances inside exec_run() */
    atomic_bool asleep, stop;
};

struct exec_module {
    atomic_uint refs;
    void (*native)(void); /* NULL: WASM, described by the rest */
    struct exec_engine *engine;
    wasmtime_module_t *module;
    wasmtime_instance_pre_t *pre;
    uint64_t memory_min; /* bytes of linear memory at the start */
    const char *entry;   /* "run" or "_start" */
    bool initialize;     /* exports _initialize */
    bool again;          /* exports `again`: run(), wherever in the program the last run was left */
};

/* What the guest does: each is one call into it, in this order. FLUSH: run() is over, its last words are being logged. */
enum exec_phase { PHASE_START, PHASE_INITIALIZE, PHASE_RUN, PHASE_FLUSH, PHASE_END, PHASE_TRAP };

struct native;
struct exec {
    struct exec_module *module;
    struct exec_limits limits;
    enum exec_phase phase;

    /* The op in progress: asked, then answered. */
    bool asked, answered, ok;
    bool exited; /* by proc_exit(0) */
    struct str name, arg;
    struct buf answer;
    struct buf result;  /* of the last `op`: what `take` copies; .p NULL: none yet */
    struct error *trap; /* why it trapped; malloc'd */

    struct native *native;

    wasmtime_store_t *store;
    wasmtime_context_t *context;
    wasmtime_call_future_t *future; /* of the phase; it keeps pointers to the four below */
    wasmtime_instance_t instance;
    wasmtime_func_t func;
    wasmtime_memory_t memory; /* once the guest has passed a pointer */
    bool memory_known;
    wasm_trap_t *trap_ret;
    wasmtime_error_t *error_ret;
    int64_t used_us; /* CPU time of this stretch */
    uint64_t fuel;   /* left, when slices go by fuel */

    /* The host function that waits: its results, and what it does with the answer (true: it is done). */
    wasmtime_val_t *results;
    bool (*then)(struct exec *x);

    /* WASI: output up to the next newline and whether it is an error, the op's text, where random bytes go. */
    struct buf line, text;
    bool line_error;
    uint8_t *to;
    size_t left;
};

/* ---- engine.c ---- */
void engine_enter(struct exec_engine *e); /* an instance runs: the epoch must rise */
void engine_leave(struct exec_engine *e);

/* ---- executor.c ---- */
/* Suspends the guest with an op; `then` is called with the answer in x->ok and x->answer. */
void exec_ask(struct exec *x, struct str name, struct str arg, bool (*then)(struct exec *x));
/* Where error_set() puts why the guest traps: NULL when that is known already. */
struct error *exec_trapping(struct exec *x);
int exec_op_result(struct exec *x); /* the answer becomes the result; what `op` returns */

/* ---- host.c ---- */
/* A host function: answers its WASM result. When it set a trap the guest gets that instead. */
enum { HOST_ASKED = -1 };
typedef const wasmtime_val_t *host_args;
#define U32(i) ((uint32_t)args[i].of.i32)
struct host_row {
    const char *names, *params, *results; /* names between spaces; types a letter each: i is i32, I is i64 */
    int (*fn)(struct exec *x, wasmtime_caller_t *caller, host_args args);
    int code; /* what it answers when it does nothing: fn NULL */
};
void host_link(wasmtime_linker_t *linker); /* everything a guest may import */
/* The guest's bytes at ptr; NULL when they are not all its own, then its trap is `bad_pointer`. */
uint8_t *host_memory(struct exec *x, wasmtime_caller_t *caller, uint32_t ptr, uint64_t len);
bool host_return(struct exec *x, int code); /* the function that asked is done: true, for `then` */

/* ---- module.c ---- */
/* The innermost cause of one of the two, without frames. */
void exec_wasm_error(const wasmtime_error_t *error, const wasm_trap_t *trap, char *out, size_t cap);

/* ---- wasi.c ---- */
extern const struct host_row wasi_rows[], wasi_env_rows[]; /* each ends with a NULL name */
bool wasi_flush(struct exec *x); /* asks to log an unfinished line; false when there is none */

/* ---- native.c ---- */
struct exec *native_new(struct exec *x); /* answers x */
void native_free(struct exec *x);
enum exec_state native_run(struct exec *x);

#endif
