/* executor.h: what the files of this folder share and nobody else sees.
 *
 * A guest that wants something calls exec_ask(), from its own stack, and is suspended until exec_answer(). The shims
 * (wasi.c, native.c) ask in the same way, so outside of this folder there is only one kind of guest.
 */
#ifndef LOOM_EXECUTOR_H
#define LOOM_EXECUTOR_H

#include "wasm/exec.h"
#include <pthread.h>
#include <stdatomic.h>
#include <wasmtime.h>

struct exec_engine {
    struct exec_config config; /* with the defaults filled in */
    wasm_engine_t *wasm;
    wasmtime_linker_t *linker;
    atomic_uint live; /* instances */
    char artefact_key[96];

    /* The ticker raises the epoch while an instance runs, and sleeps otherwise. */
    pthread_t ticker;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    atomic_uint running; /* instances inside exec_run() */
    atomic_bool asleep;
    bool stop;
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
};

/* What the guest does: each is one call into it, in this order. FLUSH: run() is over, its last words are being logged. */
enum exec_phase { PHASE_START, PHASE_INITIALIZE, PHASE_RUN, PHASE_FLUSH, PHASE_END, PHASE_TRAP };

struct native;
struct exec {
    struct exec_module *module;
    struct exec_limits limits;
    enum exec_phase phase;

    /* The op in progress: asked, then answered; the result stays for `take` until the next one. */
    bool asked, answered, ok;
    bool has_result; /* `take` may copy it */
    struct str name, arg;
    struct buf result;
    struct error *trap; /* why it trapped; malloc'd */

    struct native *native;

    wasmtime_store_t *store;
    wasmtime_context_t *context;
    wasmtime_instance_t instance;
    wasmtime_call_future_t *future; /* of the phase; it keeps pointers to the four below */
    wasmtime_func_t func;
    wasm_trap_t *trap_ret;
    wasmtime_error_t *error_ret;
    int64_t used_us; /* CPU time of this stretch */
    uint64_t fuel;   /* left, when slices go by fuel */

    /* The host function that waits: its results, and what it does with the answer (true: it is done). */
    wasmtime_val_t *results;
    bool (*then)(struct exec *x);

    /* WASI: output up to the next newline, the call's arguments, the text of the op asked for. */
    bool exited;
    struct buf line, text;
    struct wasi_call {
        uint8_t *to;
        size_t left;
        int level;
    } wasi;
};

/* ---- for host functions ---- */
struct exec *exec_of(wasmtime_caller_t *caller);
/* The guest's bytes at ptr, or NULL: then the trap `bad_pointer` is set and the host function returns exec_host_trap(). */
uint8_t *exec_memory(struct exec *x, wasmtime_caller_t *caller, uint32_t ptr, uint64_t len);
void exec_fail(struct exec *x, int code, const char *fmt, ...); /* sets the trap unless there is one */
wasm_trap_t *exec_host_trap(struct exec *x);
/* Suspends the guest with an op; `then` is called with the answer in x->ok and x->result. */
void exec_ask(struct exec *x, struct str name, struct str arg, bool (*then)(struct exec *x));
/* An asynchronous host function begins (called first) and goes on when its op is answered. */
void exec_host_begin(struct exec *x, wasmtime_val_t *results, wasmtime_async_continuation_t *k);
/* A function type of parameters, one letter each (i: i32, I: i64), and results. */
wasm_functype_t *exec_functype(const char *params, const char *results);

/* ---- compile.c ---- */
int exec_module_check(struct exec_module *m, struct error *err); /* its exports; fills in what they tell */
/* The innermost cause, without frames. */
void exec_wasm_error(const wasmtime_error_t *error, const wasm_trap_t *trap, char *out, size_t cap);

/* ---- wasi.c ---- */
void wasi_link(wasmtime_linker_t *linker);
bool wasi_flush(struct exec *x); /* asks to log an unfinished line; false when there is none */

/* ---- native.c ---- */
void native_new(struct exec *x);
void native_free(struct exec *x);
enum exec_state native_run(struct exec *x);

#endif
