/* engine.c: Wasmtime's engine: its settings, the pool of memories and stacks, and the ticker that ends slices.
 *
 * A slot reserves all that 32 bits can address, so that compiled code needs no bounds checks (a third less time in loops
 * over memory); only what a guest touches costs memory. What a freed slot keeps covers the stack of 32 KB that our linking
 * puts first, and the data behind it: madvise and the faults after it would be 40 % of an instance's cost.
 * The ticker raises the epoch twice a slice while an instance runs. When none has run for IDLE_TICKS it sleeps, so that an
 * idle server wakes never; who finds it asleep wakes it. With slices by fuel there is no ticker.
 *
 * When a guest is gone its pages are not given back: that, and the page faults of the next one, took two thirds of the time
 * of a short guest, and on several threads more (each must forget them). Only what was written is put right.
 *
 * Deliberately off: threads, SIMD, several memories, 64-bit memories.
 */
#include "wasm/executor.h"
#include <loomdeps.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum {
    STACK_BYTES = 192 << 10,       /* of a fiber */
    GUEST_STACK_BYTES = 128 << 10, /* of these a guest may use so many; host functions need the rest */
    KEEP_DIRTY = 256 << 10,        /* of the pages a guest changed: put right by hand when its slot is freed */
    KEEP_BLIND = 48 << 10,         /* of a memory's start, where the kernel does not tell which pages these are */
    GUARD_BYTES = 32 << 20,
    SLOTS_MAX = 10500, /* six mappings each, of the 65,530 that a process may have; malloc needs some, too */
    IDLE_TICKS = 50,
    FRAMES_MAX = 8, /* that a trap names */
};
static const uint64_t RESERVE_BYTES = 4ULL << 30;

static void *ticker_main(void *arg) {
    struct exec_engine *e = arg;
    struct timespec tick = {.tv_nsec = TICK_US * 1000};
    for (unsigned idle = 0; !atomic_load(&e->stop); idle = atomic_load(&e->running) ? 0 : idle + 1) {
        nanosleep(&tick, NULL);
        wasmtime_engine_increment_epoch(e->wasm);
        atomic_fetch_add(&e->ticks, 1);
        if (idle < IDLE_TICKS) continue;
        atomic_store(&e->asleep, true);
        bool woken = atomic_load(&e->running) && atomic_exchange(&e->asleep, false);
        if (!woken) sem_wait(&e->wake);
        idle = 0;
    }
    return NULL;
}

/* Wasmtime aborts when it cannot reserve its pool, so try that first. */
static bool room_for(uint32_t slots) {
    size_t bytes = (slots + 1) * (RESERVE_BYTES + GUARD_BYTES);
    void *room = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room != MAP_FAILED) munmap(room, bytes);
    return room != MAP_FAILED;
}

static void pool_configure(wasm_config_t *c, const struct exec_engine *e) {
    wasmtime_pooling_allocation_config_t *p = wasmtime_pooling_allocation_config_new();
    wasmtime_pooling_allocation_config_total_core_instances_set(p, e->slots);
    wasmtime_pooling_allocation_config_total_memories_set(p, e->slots);
    wasmtime_pooling_allocation_config_total_tables_set(p, e->slots);
    wasmtime_pooling_allocation_config_total_stacks_set(p, e->slots);
    wasmtime_pooling_allocation_config_table_elements_set(p, TABLE_ELEMENTS);
    wasmtime_pooling_allocation_config_max_memory_size_set(p, (size_t)MEMORY_MB << 20);
    size_t keep = loom_pool_scan(p) ? KEEP_DIRTY : KEEP_BLIND;
    wasmtime_pooling_allocation_config_linear_memory_keep_resident_set(p, keep);
    wasmtime_pooling_allocation_config_table_keep_resident_set(p, keep);
    wasmtime_pooling_allocation_strategy_set(c, p);
    wasmtime_pooling_allocation_config_delete(p);
}

/* Relaxed SIMD must go before SIMD does: a wrong order, like any other misuse, aborts. */
static wasm_engine_t *wasm_new(const struct exec_engine *e) {
    wasm_config_t *c = wasm_config_new();
    wasmtime_config_wasm_relaxed_simd_set(c, false);
    wasmtime_config_wasm_simd_set(c, false);
    wasmtime_config_wasm_multi_memory_set(c, false);
    wasmtime_config_wasm_memory64_set(c, false);
    wasmtime_config_cranelift_nan_canonicalization_set(c, true);
    wasmtime_config_native_unwind_info_set(c, false);
    wasmtime_config_consume_fuel_set(c, e->fuel > 0);
    wasmtime_config_epoch_interruption_set(c, !e->fuel);
    wasmtime_config_async_stack_size_set(c, STACK_BYTES);
    wasmtime_config_max_wasm_stack_set(c, GUEST_STACK_BYTES);
    wasmtime_config_memory_reservation_set(c, RESERVE_BYTES);
    wasmtime_config_memory_guard_size_set(c, GUARD_BYTES);
    loom_trap_names(c, FRAMES_MAX);
    pool_configure(c, e);
    return wasm_engine_new_with_config(c);
}

struct exec_engine *exec_engine_new(uint32_t slots, uint32_t fuel, struct error *err) {
    struct exec_engine *e = mem_alloc(sizeof *e);
    e->slots = slots ? slots : SLOTS_MAX;
    e->fuel = fuel;
    while (e->slots && !room_for(e->slots)) e->slots /= 2;
    if (!e->slots) {
        error_set(err, LOOM_E_INTERNAL, "no address space for a guest (4 GB); raise the limit (ulimit -v)");
        free(e);
        return NULL;
    }
    e->wasm = wasm_new(e);
    e->linker = wasmtime_linker_new(e->wasm);
    host_link(e->linker);
    sem_init(&e->wake, 0, 0);
    if (!e->fuel) pthread_create(&e->ticker, NULL, ticker_main, e);
    return e;
}

void exec_engine_free(struct exec_engine *e) {
    if (!e) return;
    atomic_store(&e->stop, true);
    sem_post(&e->wake);
    if (!e->fuel) pthread_join(e->ticker, NULL);
    sem_destroy(&e->wake);
    struct exec_module *m;
    for (size_t i = 0; (m = map_next(&e->modules, &i)) != NULL;) exec_module_free(m);
    map_free(&e->modules);
    wasmtime_linker_delete(e->linker);
    wasm_engine_delete(e->wasm);
    free(e);
}

uint32_t exec_engine_share(const struct exec_engine *e) {
    return e->slots - e->slots / 24 - (e->slots > 1);
}

const char *exec_artefact_key(struct exec_engine *e) {
    return e->fuel ? "wasmtime-" WASMTIME_VERSION "-names-fuel" : "wasmtime-" WASMTIME_VERSION "-names-epoch";
}
