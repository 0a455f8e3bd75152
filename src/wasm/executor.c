/* executor.c: WASM guests on fibers. An instance is a store, a call in progress and the op that the guest waits for.
 *
 * Invariants: a guest waits in at most one op. Its memory does not move while it waits, so name and argument of the op are
 * pointers into it. Every poll is bounded: by the epoch that the ticker raises (a slice ends at the second tick) or by fuel.
 * The CPU time of a stretch is how often the ticker met the guest running: looking at a clock at each poll would be 3 % of
 * a step. No poll counts longer than a slice: a busy machine kills nobody.
 * Wasmtime keeps pointers to parts of struct exec while a call is in progress, so it never moves.
 *
 * Deliberately not here: what ops do, what guests import (host.c), profiling.
 */
#include "wasm/executor.h"
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* A suspended instance's stack, store, page tables and bookkeeping, as measured. */
enum { INSTANCE_BYTES = 12 << 10, FUEL_PER_US = 1000 };

/* ---- ops ---- */

void exec_ask(struct exec *x, struct str name, struct str arg) {
    x->name = name;
    x->arg = arg;
    x->asked = true;
}

/* What the guest has written comes before what it asks. */
void exec_op(const struct exec *x, struct str *name, struct str *arg) {
    *name = x->logs.n ? STR("log") : x->name;
    *arg = x->logs.n ? str_of(x->logs.p + x->logged) : x->arg;
}

void exec_answer(struct exec *x, bool ok, struct str json) {
    if (x->logs.n) {
        x->logged += strlen(x->logs.p + x->logged) + 1;
        if (x->logged < x->logs.n) return;
        buf_free(&x->logs);
        x->logged = 0;
        return;
    }
    assert(x->asked);
    buf_clear(&x->result);
    buf_str(&x->result, json);
    buf_char(&x->result, '\0'); /* so that an empty result is one, too */
    x->result.n = json.n;
    x->code = ok ? (int32_t)json.n : -1 - (int32_t)json.n;
    x->asked = false;
}

/* ---- calls into the guest ---- */

static void call_next(struct exec *x) {
    wasmtime_extern_t export;
    const char *name = *x->calls++;
    if (name != x->called) {
        bool found = wasmtime_instance_export_get(x->context, &x->instance, name, strlen(name), &export);
        assert(found); /* exec_module_load() has seen it */
        x->func = export.of.func;
        x->called = name;
    }
    x->future = wasmtime_func_call_async(x->context, &x->func, NULL, 0, NULL, 0, &x->trap_ret, &x->error_ret);
}

/* A call that is in progress is unwound: by the op that it waits in, which tells Wasmtime to want no backtrace. */
static void leave(struct exec *x, enum exec_state state) {
    x->over = x->future && x->asked;
    if (x->over) wasmtime_call_future_poll(x->future);
    if (x->future) wasmtime_call_future_delete(x->future);
    if (x->trap_ret) wasm_trap_delete(x->trap_ret);
    if (x->error_ret) wasmtime_error_delete(x->error_ret);
    x->future = NULL;
    x->trap_ret = NULL;
    x->error_ret = NULL;
    x->asked = x->over = false;
    x->state = state;
}

struct error *exec_trapping(struct exec *x) {
    if (x->trap) return NULL;
    return x->trap = mem_alloc(sizeof *x->trap);
}

/* The call has ended with a trap of WASM (trap_ret) or of a host function (error_ret): "why in f < g < run". */
static void trapped(struct exec *x) {
    char why[256];
    wasm_frame_vec_t frames;
    exec_wasm_error(x->error_ret, x->trap_ret, why, sizeof why);
    const char *remedy = strstr(why, "exceeds memory limits") ? "; raise limits.maxMemoryMB" : "";
    error_set(exec_trapping(x), LOOM_E_TRAP, "%s%s", why, remedy);
    if (x->trap_ret)
        wasm_trap_trace(x->trap_ret, &frames);
    else
        wasmtime_error_wasm_trace(x->error_ret, &frames);
    char *message = x->trap->message;
    size_t n = strlen(message), cap = sizeof x->trap->message;
    for (size_t i = 0; i < frames.size && n < cap; i++) {
        const wasm_name_t *name = wasmtime_frame_func_name(frames.data[i]);
        n += (size_t)snprintf(message + n, cap - n, "%s%.*s", i ? " < " : " in ", name ? (int)name->size : 1,
                              name ? name->data : "?");
    }
    wasm_frame_vec_delete(&frames);
    leave(x, EXEC_TRAP);
}

static void call_ended(struct exec *x) {
    bool more = !x->exited && *x->calls;
    if ((x->trap_ret || x->error_ret) && !x->exited) {
        trapped(x);
        return;
    }
    leave(x, more ? EXEC_SLICE : EXEC_END);
    if (more) call_next(x);
}

/* One poll of the call, and its CPU time: the ticks within it, by fuel its whole slices; true when the call has ended.
 * The ticker must not sleep meanwhile. */
static bool poll_call(struct exec *x) {
    struct exec_engine *e = x->module->engine;
    unsigned before = atomic_load(&e->ticks);
    wasmtime_context_set_epoch_deadline(x->context, 2);
    atomic_fetch_add(&e->running, 1);
    if (atomic_load(&e->asleep) && atomic_exchange(&e->asleep, false)) sem_post(&e->wake);
    bool done = wasmtime_call_future_poll(x->future);
    atomic_fetch_sub(&e->running, 1);
    int64_t used_us = (int64_t)(atomic_load(&e->ticks) - before) * TICK_US;
    if (e->fuel) used_us = done || x->asked ? 0 : e->fuel / FUEL_PER_US;
    x->used_us += used_us < SLICE_US ? used_us : SLICE_US;
    return done;
}

/* Until the guest wants something, has used its slice or is over. */
enum exec_state exec_run(struct exec *x, int64_t now_ms) {
    x->now_ms = now_ms;
    while (x->state == EXEC_SLICE && !x->asked && !x->logs.n) {
        if (x->native ? native_poll(x) : poll_call(x)) {
            call_ended(x);
        } else if (x->limits.cpu_ms && x->used_us > (int64_t)x->limits.cpu_ms * 1000) {
            error_set(exec_trapping(x), LOOM_E_LIMIT_TIME, "the guest ran for its limit of %u ms without a pause",
                      x->limits.cpu_ms);
            leave(x, EXEC_TRAP);
        } else {
            break;
        }
    }
    if (x->state != EXEC_SLICE) wasi_log_lines(x, true);
    return x->asked || x->logs.n ? EXEC_OP : x->state;
}

/* ---- instances ---- */

static void store_new(struct exec *x) {
    struct exec_engine *e = x->module->engine;
    int64_t memory_max = (int64_t)(x->limits.memory_mb ? x->limits.memory_mb : MEMORY_MB) << 20;
    x->store = wasmtime_store_new(e->wasm, x, NULL);
    x->context = wasmtime_store_context(x->store);
    wasmtime_store_limiter(x->store, memory_max, TABLE_ELEMENTS, 1, 1, 1);
    if (!e->fuel) {
        wasmtime_context_epoch_deadline_async_yield_and_update(x->context, 2);
        return;
    }
    wasmtime_context_set_fuel(x->context, UINT64_MAX / 2);
    wasmtime_context_fuel_async_yield_interval(x->context, e->fuel);
}

/* The instance exists, or the reason why it does not; false when no slot is free, or the machine has no memory now. */
static bool instantiate(struct exec *x) {
    char why[256] = "";
    x->future = wasmtime_instance_pre_instantiate_async(x->module->pre, x->context, &x->instance, &x->trap_ret,
                                                        &x->error_ret);
    if (!poll_call(x)) return true; /* the module's start function wants more */
    if (x->error_ret && !x->trap) exec_wasm_error(x->error_ret, NULL, why, sizeof why); /* not in a guest's words */
    if (strstr(why, "maximum concurrent") || strstr(why, "os error 12")) return false;
    call_ended(x);
    return true;
}

struct exec *exec_new(struct exec_module *m, struct exec_limits limits, uint64_t seed, struct error *err) {
    struct exec *x = mem_alloc(sizeof *x);
    x->module = m;
    x->limits = limits;
    x->seed = seed;
    x->state = EXEC_SLICE;
    x->calls = m->calls;
    if (m->native) return native_new(x);
    store_new(x);
    if (instantiate(x)) return x;
    exec_free(x);
    error_set(err, LOOM_E_BUSY, "there is no room for another instance; one must end or be evicted first");
    return NULL;
}

void exec_free(struct exec *x) {
    if (!x) return;
    leave(x, EXEC_TRAP);
    if (x->store) wasmtime_store_delete(x->store);
    if (x->native) native_free(x);
    buf_free(&x->result);
    buf_free(&x->line);
    buf_free(&x->logs);
    free(x->trap);
    free(x);
}

bool exec_again(struct exec *x) {
    const struct exec_module *m = x->module;
    bool in_op = x->asked && !*x->calls && *m->again && !strcmp(*m->again, "again");
    bool ended = x->state == EXEC_END && !x->exited && *m->again;
    if (!in_op && !ended) return false;
    leave(x, EXEC_SLICE);
    exec_suspended(x);
    x->calls = m->again;
    call_next(x);
    return true;
}

void exec_suspended(struct exec *x) {
    x->used_us = 0;
    buf_free(&x->result);
}

const struct error *exec_trap(const struct exec *x) {
    return x->trap;
}

/* Linear memory counts as far as its pages are there. */
size_t exec_bytes(const struct exec *x) {
    unsigned char there[MEMORY_MB << 8];
    size_t bytes = INSTANCE_BYTES, size = x->memory.store_id ? wasmtime_memory_data_size(x->context, &x->memory) : 0;
    if (size == 0 || mincore(wasmtime_memory_data(x->context, &x->memory), size, there)) return bytes;
    for (size_t i = 0; i < size >> 12; i++) bytes += (size_t)(there[i] & 1) << 12;
    return bytes;
}
