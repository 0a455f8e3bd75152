/* executor.c: WASM guests on fibers. One engine per process holds Wasmtime's pool of memories and stacks and the linker
 * with the two imports `op` and `take`; an instance is a store, a call in progress and the op it waits for.
 *
 * Invariants: a guest waits in at most one op. Its memory does not move while it waits, so name and argument of the op are
 * pointers into it. Every poll is bounded: by the epoch that the ticker raises (a slice ends at the second tick) or by fuel.
 * The CPU time of a stretch is the sum of its polls, none counted longer than a slice: a busy machine kills nobody.
 *
 * Deliberately not here: threads, SIMD, several memories, files and sockets, profiling.
 */
#include "wasm/executor.h"
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum {
    STACK_BYTES = 192 << 10,       /* of a fiber */
    GUEST_STACK_BYTES = 128 << 10, /* of these a guest may use so many; host functions need the rest */
    MAPPINGS_PER_GUEST = 5,
    SLOTS_MAX = 12000,
    TABLE_ELEMENTS = 100000,
    KEEP_RESIDENT = 8 << 10, /* of a memory's first bytes: zeroed by hand when its slot is freed, not given back */
    IDLE_TICKS = 50,         /* without a running instance, then the ticker sleeps */
    FUEL_PER_MS = 1000000,
    GUARD_BYTES = 32 << 20,
    INSTANCE_BYTES = 12 << 10, /* a suspended instance's stack, store and bookkeeping (measured) */
};

/* A slot reserves all that 32 bits can address, so that the code needs no bounds checks (a third less time in loops over
 * memory); only what a guest touches costs memory. */
static const uint64_t RESERVE_BYTES = 4ULL << 30;

/* ---- engine ---- */

/* Half a slice is a tick: a deadline of two ticks lies between half a slice and a whole one away. */
static void *ticker_main(void *arg) {
    struct exec_engine *e = arg;
    struct timespec tick = {.tv_nsec = (long)e->config.slice_ms * 1000000 / 2};
    for (unsigned idle = 0;;) {
        nanosleep(&tick, NULL);
        wasmtime_engine_increment_epoch(e->wasm);
        idle = atomic_load(&e->running) ? 0 : idle + 1;
        if (idle < IDLE_TICKS && !atomic_load(&e->asleep)) continue;
        pthread_mutex_lock(&e->mutex);
        atomic_store(&e->asleep, true);
        while (!e->stop && atomic_load(&e->asleep) && !atomic_load(&e->running)) pthread_cond_wait(&e->wake, &e->mutex);
        atomic_store(&e->asleep, false);
        bool stop = e->stop;
        pthread_mutex_unlock(&e->mutex);
        if (stop) return NULL;
        idle = 0;
    }
}

static void ticker_wake(struct exec_engine *e) {
    pthread_mutex_lock(&e->mutex);
    atomic_store(&e->asleep, false);
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->mutex);
}

/* Wasmtime aborts when it cannot reserve its pool, so try that first. */
static bool room_for(uint32_t slots) {
    size_t bytes = (slots + 1) * (RESERVE_BYTES + GUARD_BYTES);
    void *room = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return false;
    munmap(room, bytes);
    return true;
}

static uint32_t slots_of_machine(void) {
    unsigned long maps = 65530;
    FILE *f = fopen("/proc/sys/vm/max_map_count", "re");
    if (f && fscanf(f, "%lu", &maps) != 1) maps = 65530;
    if (f) fclose(f);
    uint32_t slots = maps / MAPPINGS_PER_GUEST < SLOTS_MAX ? (uint32_t)(maps / MAPPINGS_PER_GUEST) : SLOTS_MAX;
    while (slots > 64 && !room_for(slots)) slots /= 2;
    return slots;
}

static void pool_configure(wasm_config_t *c, const struct exec_config *config) {
    wasmtime_pooling_allocation_config_t *p = wasmtime_pooling_allocation_config_new();
    wasmtime_pooling_allocation_config_total_core_instances_set(p, config->slots);
    wasmtime_pooling_allocation_config_total_memories_set(p, config->slots);
    wasmtime_pooling_allocation_config_total_tables_set(p, config->slots);
    wasmtime_pooling_allocation_config_total_stacks_set(p, config->slots);
    wasmtime_pooling_allocation_config_table_elements_set(p, TABLE_ELEMENTS);
    wasmtime_pooling_allocation_config_max_memory_size_set(p, (size_t)config->memory_mb << 20);
    wasmtime_pooling_allocation_config_linear_memory_keep_resident_set(p, KEEP_RESIDENT);
    wasmtime_pooling_allocation_config_table_keep_resident_set(p, KEEP_RESIDENT);
    wasmtime_pooling_allocation_strategy_set(c, p);
    wasmtime_pooling_allocation_config_delete(p);
}

/* Relaxed SIMD must go before SIMD does: a wrong order, like any other misuse, aborts. */
static wasm_engine_t *wasm_new(const struct exec_config *config) {
    wasm_config_t *c = wasm_config_new();
    wasmtime_config_wasm_relaxed_simd_set(c, false);
    wasmtime_config_wasm_simd_set(c, false);
    wasmtime_config_wasm_multi_memory_set(c, false);
    wasmtime_config_wasm_memory64_set(c, false);
    wasmtime_config_cranelift_nan_canonicalization_set(c, true);
    wasmtime_config_native_unwind_info_set(c, false);
    wasmtime_config_consume_fuel_set(c, config->fuel);
    wasmtime_config_epoch_interruption_set(c, !config->fuel);
    wasmtime_config_async_stack_size_set(c, STACK_BYTES);
    wasmtime_config_max_wasm_stack_set(c, GUEST_STACK_BYTES);
    wasmtime_config_memory_reservation_set(c, RESERVE_BYTES);
    wasmtime_config_memory_guard_size_set(c, GUARD_BYTES);
    pool_configure(c, config);
    return wasm_engine_new_with_config(c);
}

static void op_begin(void *env, wasmtime_caller_t *caller, const wasmtime_val_t *args, size_t nargs,
                     wasmtime_val_t *results, size_t nresults, wasm_trap_t **trap, wasmtime_async_continuation_t *k);
static wasm_trap_t *take(void *env, wasmtime_caller_t *caller, const wasmtime_val_t *args, size_t nargs,
                         wasmtime_val_t *results, size_t nresults);

wasm_functype_t *exec_functype(const char *params, const char *results) {
    wasm_valtype_vec_t vec[2];
    const char *letters[2] = {params, results};
    for (int side = 0; side < 2; side++) {
        wasm_valtype_vec_new_uninitialized(&vec[side], strlen(letters[side]));
        for (size_t i = 0; i < vec[side].size; i++) {
            vec[side].data[i] = wasm_valtype_new(letters[side][i] == 'I' ? WASM_I64 : WASM_I32);
        }
    }
    return wasm_functype_new(&vec[0], &vec[1]);
}

static wasmtime_linker_t *linker_new(wasm_engine_t *wasm) {
    wasmtime_linker_t *linker = wasmtime_linker_new(wasm);
    wasm_functype_t *type = exec_functype("iiii", "i");
    wasmtime_linker_define_async_func(linker, "loom", 4, "op", 2, type, op_begin, NULL, NULL);
    wasm_functype_delete(type);
    type = exec_functype("i", "");
    wasmtime_linker_define_func(linker, "loom", 4, "take", 4, type, take, NULL, NULL);
    wasm_functype_delete(type);
    wasi_link(linker);
    return linker;
}

struct exec_engine *exec_engine_new(const struct exec_config *config, struct error *err) {
    struct exec_engine *e = mem_alloc(sizeof *e);
    e->config = *config;
    if (!e->config.slots) e->config.slots = slots_of_machine();
    if (!e->config.memory_mb) e->config.memory_mb = 256;
    if (!e->config.slice_ms) e->config.slice_ms = 2;
    if (!room_for(e->config.slots)) {
        error_set(err, LOOM_E_INTERNAL, "no address space for %u guests; raise the limit (ulimit -v)", e->config.slots);
        free(e);
        return NULL;
    }
    e->wasm = wasm_new(&e->config);
    e->linker = linker_new(e->wasm);
    snprintf(e->artefact_key, sizeof e->artefact_key, "wasmtime-" WASMTIME_VERSION "-%u-%s", e->config.memory_mb,
             e->config.fuel ? "fuel" : "epoch");
    atomic_init(&e->asleep, true);
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->wake, NULL);
    pthread_create(&e->ticker, NULL, ticker_main, e);
    return e;
}

void exec_engine_free(struct exec_engine *e) {
    if (!e) return;
    pthread_mutex_lock(&e->mutex);
    e->stop = true;
    atomic_store(&e->asleep, true);
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->mutex);
    pthread_join(e->ticker, NULL);
    pthread_mutex_destroy(&e->mutex);
    pthread_cond_destroy(&e->wake);
    wasmtime_linker_delete(e->linker);
    wasm_engine_delete(e->wasm);
    free(e);
}

const char *exec_artefact_key(struct exec_engine *e) {
    return e->artefact_key;
}

/* ---- modules ---- */

int exec_module_load(struct exec_engine *e, struct str artefact, struct exec_module **out, struct error *err) {
    struct exec_module *m = mem_alloc(sizeof *m);
    atomic_init(&m->refs, 1);
    m->engine = e;
    wasmtime_error_t *error = wasmtime_module_deserialize(e->wasm, (const uint8_t *)artefact.p, artefact.n, &m->module);
    if (!error) error = wasmtime_linker_instantiate_pre(e->linker, m->module, &m->pre);
    char why[256];
    if (error) {
        exec_wasm_error(error, NULL, why, sizeof why);
        wasmtime_error_delete(error);
        exec_module_unref(m);
        return error_set(err, LOOM_E_INVALID_MODULE, "the artefact cannot be loaded, compile the module again: %s",
                         why);
    }
    int rc = exec_module_check(m, err);
    if (rc) {
        exec_module_unref(m);
        return rc;
    }
    *out = m;
    return 0;
}

struct exec_module *exec_module_ref(struct exec_module *m) {
    atomic_fetch_add(&m->refs, 1);
    return m;
}

void exec_module_unref(struct exec_module *m) {
    if (!m || atomic_fetch_sub(&m->refs, 1) != 1) return;
    if (m->pre) wasmtime_instance_pre_delete(m->pre);
    if (m->module) wasmtime_module_delete(m->module);
    free(m);
}

/* ---- instances ---- */

static void set_trap(struct exec *x, int code, const char *fmt, va_list ap) {
    char message[900];
    vsnprintf(message, sizeof message, fmt, ap);
    x->trap = mem_alloc(sizeof *x->trap);
    error_set(x->trap, code, "%s", message);
}

void exec_fail(struct exec *x, int code, const char *fmt, ...) {
    if (x->trap) return;
    va_list ap;
    va_start(ap, fmt);
    set_trap(x, code, fmt, ap);
    va_end(ap);
}

/* Starts the call that is the phase's. */
static void enter(struct exec *x, enum exec_phase phase) {
    struct exec_module *m = x->module;
    x->phase = phase;
    if (phase == PHASE_START) {
        x->future = wasmtime_instance_pre_instantiate_async(m->pre, x->context, &x->instance, &x->trap_ret,
                                                            &x->error_ret);
        return;
    }
    const char *name = phase == PHASE_INITIALIZE ? "_initialize" : m->entry;
    wasmtime_extern_t export;
    bool found = wasmtime_instance_export_get(x->context, &x->instance, name, strlen(name), &export);
    assert(found && export.kind == WASMTIME_EXTERN_FUNC); /* exec_module_check() has seen it */
    x->func = export.of.func;
    x->future = wasmtime_func_call_async(x->context, &x->func, NULL, 0, NULL, 0, &x->trap_ret, &x->error_ret);
}

/* Appends " in f < g < run" to the trap's message: the innermost functions with their names. */
static void add_backtrace(struct exec *x) {
    wasm_frame_vec_t frames;
    if (x->trap_ret)
        wasm_trap_trace(x->trap_ret, &frames);
    else
        wasmtime_error_wasm_trace(x->error_ret, &frames);
    char *message = x->trap->message;
    size_t n = strlen(message), cap = sizeof x->trap->message;
    for (size_t i = 0; i < frames.size && i < 8 && n < cap; i++) {
        const wasm_name_t *name = wasmtime_frame_func_name(frames.data[i]);
        const char *before = i ? " < " : " in ";
        if (name)
            n += (size_t)snprintf(message + n, cap - n, "%s%.*s", before, (int)name->size, name->data);
        else
            n += (size_t)snprintf(message + n, cap - n, "%sfunc %u", before, wasm_frame_func_index(frames.data[i]));
    }
    wasm_frame_vec_delete(&frames);
}

static void end_call(struct exec *x) {
    if (x->future) wasmtime_call_future_delete(x->future);
    if (x->trap_ret) wasm_trap_delete(x->trap_ret);
    if (x->error_ret) wasmtime_error_delete(x->error_ret);
    x->future = NULL;
    x->trap_ret = NULL;
    x->error_ret = NULL;
    x->asked = false;
}

/* The guest will not run again: x->trap says why. */
static enum exec_state stop(struct exec *x) {
    end_call(x);
    x->phase = PHASE_TRAP;
    return EXEC_TRAP;
}

/* The call has ended: well, by proc_exit, or with a trap of WASM (trap_ret) or of a host function (error_ret). */
static void next_phase(struct exec *x) {
    if ((x->trap_ret || x->error_ret) && !x->exited) {
        char why[256];
        exec_wasm_error(x->error_ret, x->trap_ret, why, sizeof why);
        exec_fail(x, LOOM_E_TRAP, "%s", why);
        add_backtrace(x);
        stop(x);
        return;
    }
    end_call(x);
    if (x->phase == PHASE_RUN || x->exited)
        x->phase = PHASE_FLUSH;
    else
        enter(x, x->phase == PHASE_START && x->module->initialize ? PHASE_INITIALIZE : PHASE_RUN);
}

/* One poll of the call, and its CPU time; true when the call has ended. */
static bool poll_call(struct exec *x) {
    struct exec_engine *e = x->module->engine;
    struct timespec from, to;
    if (!e->config.fuel) wasmtime_context_set_epoch_deadline(x->context, 2);
    atomic_fetch_add(&e->running, 1);
    if (atomic_load(&e->asleep) && !e->config.fuel) ticker_wake(e);
    clock_gettime(CLOCK_MONOTONIC, &from);
    bool done = wasmtime_call_future_poll(x->future);
    clock_gettime(CLOCK_MONOTONIC, &to);
    atomic_fetch_sub(&e->running, 1);
    int64_t used_us = (to.tv_sec - from.tv_sec) * 1000000 + (to.tv_nsec - from.tv_nsec) / 1000;
    if (e->config.fuel) {
        uint64_t left;
        wasmtime_context_get_fuel(x->context, &left);
        used_us = (int64_t)((x->fuel - left) * 1000 / FUEL_PER_MS);
        x->fuel = left;
    } else if (used_us > (int64_t)e->config.slice_ms * 1000) {
        used_us = (int64_t)e->config.slice_ms * 1000;
    }
    x->used_us += used_us;
    return done;
}

/* Goes on until the guest wants something or its slice is over. */
static enum exec_state step(struct exec *x) {
    if (x->phase == PHASE_END) enter(x, PHASE_RUN);
    while (x->phase <= PHASE_RUN) {
        if (x->asked && !x->answered) return EXEC_OP;
        if (poll_call(x)) {
            next_phase(x);
        } else if (x->limits.cpu_ms && x->used_us > (int64_t)x->limits.cpu_ms * 1000) {
            exec_fail(x, LOOM_E_LIMIT_TIME, "the guest ran for its limit of %u ms without a pause", x->limits.cpu_ms);
            stop(x);
        } else {
            return x->asked ? EXEC_OP : EXEC_SLICE;
        }
    }
    if (x->phase == PHASE_TRAP) return EXEC_TRAP;
    if ((x->asked && !x->answered) || wasi_flush(x)) return EXEC_OP;
    x->asked = false;
    x->phase = PHASE_END;
    return EXEC_END;
}

enum exec_state exec_run(struct exec *x) {
    return x->native ? native_run(x) : step(x);
}

/* The instance exists, or the reason why it does not; false when the machine has no room for it now. */
static bool instantiate(struct exec *x) {
    enter(x, PHASE_START);
    if (!poll_call(x)) return true; /* the module's start function wants more */
    char why[256] = "";
    if (x->error_ret) exec_wasm_error(x->error_ret, NULL, why, sizeof why);
    if (strstr(why, "os error 12")) return false;
    next_phase(x);
    return true;
}

static void store_new(struct exec *x, uint64_t memory_max) {
    struct exec_engine *e = x->module->engine;
    x->store = wasmtime_store_new(e->wasm, x, NULL);
    x->context = wasmtime_store_context(x->store);
    wasmtime_store_limiter(x->store, (int64_t)memory_max, TABLE_ELEMENTS, 1, 1, 1);
    if (!e->config.fuel) {
        wasmtime_context_epoch_deadline_async_yield_and_update(x->context, 2);
        return;
    }
    x->fuel = UINT64_MAX / 2;
    wasmtime_context_set_fuel(x->context, x->fuel);
    wasmtime_context_fuel_async_yield_interval(x->context, (uint64_t)e->config.slice_ms * FUEL_PER_MS);
}

struct exec *exec_new(struct exec_module *m, struct exec_limits limits, struct error *err) {
    struct exec_engine *e = m->engine;
    if (e && atomic_fetch_add(&e->live, 1) >= e->config.slots) {
        atomic_fetch_sub(&e->live, 1);
        error_set(err, LOOM_E_BUSY, "all %u instances are in use; one must end or be evicted first", e->config.slots);
        return NULL;
    }
    struct exec *x = mem_alloc(sizeof *x);
    x->module = exec_module_ref(m);
    x->limits = limits;
    if (m->native) {
        native_new(x);
        return x;
    }
    uint64_t memory_max = (uint64_t)(limits.memory_mb ? limits.memory_mb : e->config.memory_mb) << 20;
    if (m->memory_min > memory_max) {
        exec_fail(x, LOOM_E_TRAP,
                  "the guest's memory is %llu MB at its start, its limit %llu MB; raise limits.maxMemoryMB",
                  (unsigned long long)(m->memory_min >> 20), (unsigned long long)(memory_max >> 20));
        stop(x);
        return x;
    }
    store_new(x, memory_max);
    if (instantiate(x)) return x;
    exec_free(x);
    error_set(err, LOOM_E_BUSY, "the machine has no memory for another instance; one must end or be evicted first");
    return NULL;
}

void exec_free(struct exec *x) {
    if (!x) return;
    end_call(x); /* unwinds a guest that is suspended */
    if (x->store) wasmtime_store_delete(x->store);
    if (x->native) native_free(x);
    if (x->module->engine) atomic_fetch_sub(&x->module->engine->live, 1);
    exec_module_unref(x->module);
    buf_free(&x->result);
    buf_free(&x->line);
    buf_free(&x->text);
    free(x->trap);
    free(x);
}

bool exec_reusable(const struct exec *x) {
    return x->store && x->phase != PHASE_TRAP && !x->exited && !strcmp(x->module->entry, "run");
}

/* ---- ops ---- */

void exec_op(const struct exec *x, struct str *name, struct str *arg) {
    *name = x->name;
    *arg = x->arg;
}

void exec_answer(struct exec *x, bool ok, struct str json) {
    assert(x->asked && !x->answered);
    buf_str(&x->result, json);
    x->ok = ok;
    x->answered = true;
}

void exec_suspended(struct exec *x) {
    x->used_us = 0;
}

void exec_trap(const struct exec *x, struct error *err) {
    *err = *x->trap;
}

/* Linear memory counts as far as its pages are there; mincore() looks at 16 MB at a time. */
size_t exec_bytes(const struct exec *x) {
    wasmtime_extern_t memory;
    if (!x->store) return INSTANCE_BYTES;
    if (!wasmtime_instance_export_get(x->context, &x->instance, "memory", 6, &memory)) return INSTANCE_BYTES;
    uint8_t *base = wasmtime_memory_data(x->context, &memory.of.memory);
    size_t size = wasmtime_memory_data_size(x->context, &memory.of.memory), pages = 0;
    unsigned char there[4096];
    for (size_t at = 0; at < size; at += sizeof there << 12) {
        size_t n = size - at < sizeof there << 12 ? size - at : sizeof there << 12;
        if (mincore(base + at, n, there)) continue;
        for (size_t i = 0; i < n >> 12; i++) pages += there[i] & 1;
    }
    return INSTANCE_BYTES + x->result.cap + (pages << 12);
}

struct exec *exec_of(wasmtime_caller_t *caller) {
    return wasmtime_context_get_data(wasmtime_caller_context(caller));
}

uint8_t *exec_memory(struct exec *x, wasmtime_caller_t *caller, uint32_t ptr, uint64_t len) {
    wasmtime_extern_t memory;
    bool found = wasmtime_caller_export_get(caller, "memory", 6, &memory);
    assert(found); /* exec_module_check() has seen it */
    size_t size = wasmtime_memory_data_size(x->context, &memory.of.memory);
    if (len <= size && ptr <= size - len) return wasmtime_memory_data(x->context, &memory.of.memory) + ptr;
    exec_fail(x, LOOM_E_BAD_POINTER, "%u + %llu is beyond the guest's memory of %zu bytes", ptr,
              (unsigned long long)len, size);
    return NULL;
}

wasm_trap_t *exec_host_trap(struct exec *x) {
    return wasmtime_trap_new(x->trap->message, strlen(x->trap->message));
}

/* Called by Wasmtime at each poll while the host function waits. */
static bool host_continue(void *env) {
    struct exec *x = env;
    if (x->asked && !x->answered) return false;
    if (!x->asked) return true;
    x->asked = false;
    return x->then(x);
}

void exec_host_begin(struct exec *x, wasmtime_val_t *results, wasmtime_async_continuation_t *k) {
    x->results = results;
    *k = (wasmtime_async_continuation_t){.callback = host_continue, .env = x};
}

void exec_ask(struct exec *x, struct str name, struct str arg, bool (*then)(struct exec *x)) {
    buf_free(&x->result);
    x->name = name;
    x->arg = arg;
    x->then = then;
    x->asked = true;
    x->answered = false;
    x->has_result = false;
}

static bool op_end(struct exec *x) {
    int32_t n = (int32_t)x->result.n;
    x->results[0] = (wasmtime_val_t){.kind = WASMTIME_I32, .of.i32 = x->ok ? n : -1 - n};
    x->has_result = true;
    return true;
}

static void op_begin(void *env, wasmtime_caller_t *caller, const wasmtime_val_t *args, size_t nargs,
                     wasmtime_val_t *results, size_t nresults, wasm_trap_t **trap, wasmtime_async_continuation_t *k) {
    (void)env, (void)nargs, (void)nresults;
    struct exec *x = exec_of(caller);
    exec_host_begin(x, results, k);
    struct str name = {.n = (uint32_t)args[1].of.i32}, arg = {.n = (uint32_t)args[3].of.i32};
    name.p = (const char *)exec_memory(x, caller, (uint32_t)args[0].of.i32, name.n);
    arg.p = (const char *)exec_memory(x, caller, (uint32_t)args[2].of.i32, arg.n);
    if (name.p && arg.p)
        exec_ask(x, name, arg, op_end);
    else
        *trap = exec_host_trap(x);
}

static wasm_trap_t *take(void *env, wasmtime_caller_t *caller, const wasmtime_val_t *args, size_t nargs,
                         wasmtime_val_t *results, size_t nresults) {
    (void)env, (void)nargs, (void)results, (void)nresults;
    struct exec *x = exec_of(caller);
    uint8_t *to = exec_memory(x, caller, (uint32_t)args[0].of.i32, x->result.n);
    if (!x->has_result) exec_fail(x, LOOM_E_TRAP, "take was called before an op had a result");
    if (x->trap) return exec_host_trap(x);
    if (x->result.n) memcpy(to, x->result.p, x->result.n);
    return NULL;
}
