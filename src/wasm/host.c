/* host.c: the door of a WASM guest: how host functions are called, and Loom's own, `op` and `take`.
 *
 * Only `op` waits, so only `op` is asynchronous for Wasmtime: it runs on the guest's stack, and until it has its answer
 * Wasmtime polls `op_state`. A pointer from the guest is used only after host_memory() has checked it.
 */
#include "wasm/executor.h"
#include <assert.h>
#include <loomdeps.h>
#include <string.h>

uint8_t *host_memory(struct exec *x, uint32_t ptr, uint64_t len) {
    size_t size = wasmtime_memory_data_size(x->context, &x->memory);
    if (len <= size && ptr <= size - len) return wasmtime_memory_data(x->context, &x->memory) + ptr;
    error_set(exec_trapping(x), LOOM_E_BAD_POINTER, "%u + %llu is beyond the guest's memory of %zu bytes", ptr,
              (unsigned long long)len, size);
    return NULL;
}

/* The guest that calls; a start function may be the first to, so its memory is looked up here. */
static struct exec *exec_of(wasmtime_caller_t *caller) {
    struct exec *x = wasmtime_context_get_data(wasmtime_caller_context(caller));
    wasmtime_extern_t export;
    if (x->memory.store_id) return x;
    bool found = wasmtime_caller_export_get(caller, "memory", 6, &export);
    assert(found); /* exec_module_load() has seen it */
    x->memory = export.of.memory;
    return x;
}

static void *op(wasmtime_caller_t *caller, uint32_t name, uint32_t name_n, uint32_t arg, uint32_t arg_n) {
    struct exec *x = exec_of(caller);
    struct str what = {(const char *)host_memory(x, name, name_n), name_n};
    struct str with = {(const char *)host_memory(x, arg, arg_n), arg_n};
    if (!x->trap) exec_ask(x, what, with);
    return x;
}

static enum loom_op op_state(void *guest, int32_t *code) {
    const struct exec *x = guest;
    *code = x->code;
    return x->over ? LOOM_OP_OVER : x->trap ? LOOM_OP_TRAP : x->asked ? LOOM_OP_WAITS : LOOM_OP_ANSWERED;
}

static int take(struct exec *x, host_args args) {
    uint8_t *to = host_memory(x, U32(0), x->result.n);
    if (!x->result.p)
        error_set(exec_trapping(x), LOOM_E_TRAP, "take was called before an op had a result");
    else if (to)
        memcpy(to, x->result.p, x->result.n);
    return 0;
}

static const struct host_row take_row = {"take", "i", "", .module = "loom", .fn = take};

static wasm_trap_t *call(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values, size_t n) {
    const struct host_row *row = env;
    struct exec *x = exec_of(caller);
    int code = row->fn ? row->fn(x, values) : row->code;
    if (n) values[0].i32 = code;
    return x->trap ? wasmtime_trap_new(x->trap->message, strlen(x->trap->message)) : NULL;
}

static wasm_functype_t *type_of(const char *params, const char *results) {
    wasm_valtype_vec_t types[2];
    for (int i = 0; i < 2; i++) {
        const char *letters = i ? results : params;
        wasm_valtype_vec_new_uninitialized(&types[i], strlen(letters));
        for (size_t k = 0; letters[k]; k++)
            types[i].data[k] = wasm_valtype_new(letters[k] == 'I' ? WASM_I64 : WASM_I32);
    }
    return wasm_functype_new(&types[0], &types[1]);
}

static void link_row(wasmtime_linker_t *linker, const struct host_row *row) {
    const char *module = row->module ? row->module : "wasi_snapshot_preview1";
    wasm_functype_t *type = type_of(row->params, row->results);
    for (const char *name = row->names; *name;) {
        size_t n = strcspn(name, " ");
        wasmtime_linker_define_func_unchecked(linker, module, strlen(module), name, n, type, call,
                                              (void *)(uintptr_t)row, NULL);
        name += n + strspn(name + n, " ");
    }
    wasm_functype_delete(type);
}

void host_link(wasmtime_linker_t *linker) {
    loom_link_op(linker, op, op_state);
    link_row(linker, &take_row);
    for (const struct host_row *row = wasi_rows; row->names; row++) link_row(linker, row);
}
