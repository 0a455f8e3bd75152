/* host.c: the door of a WASM guest: how host functions are called, and Loom's own, `op` and `take`.
 *
 * All are asynchronous for Wasmtime, since any may ask an op: `call` runs on the guest's stack, and while the op waits for
 * its answer Wasmtime polls `go_on`. A pointer from the guest is used only after host_memory() has checked it.
 */
#include "wasm/executor.h"
#include <assert.h>
#include <string.h>

uint8_t *host_memory(struct exec *x, wasmtime_caller_t *caller, uint32_t ptr, uint64_t len) {
    wasmtime_extern_t export;
    if (!x->memory_known) {
        x->memory_known = wasmtime_caller_export_get(caller, "memory", 6, &export);
        assert(x->memory_known); /* exec_module_load() has seen it */
        x->memory = export.of.memory;
    }
    size_t size = wasmtime_memory_data_size(x->context, &x->memory);
    if (len <= size && ptr <= size - len) return wasmtime_memory_data(x->context, &x->memory) + ptr;
    error_set(exec_trapping(x), LOOM_E_BAD_POINTER, "%u + %llu is beyond the guest's memory of %zu bytes", ptr,
              (unsigned long long)len, size);
    return NULL;
}

bool host_return(struct exec *x, int code) {
    x->results[0] = (wasmtime_val_t){.kind = WASMTIME_I32, .of.i32 = code};
    return true;
}

static bool op_answered(struct exec *x) {
    return host_return(x, exec_op_result(x));
}

static int op(struct exec *x, wasmtime_caller_t *caller, host_args args) {
    struct str name = {(const char *)host_memory(x, caller, U32(0), U32(1)), U32(1)};
    struct str arg = {(const char *)host_memory(x, caller, U32(2), U32(3)), U32(3)};
    if (!x->trap) exec_ask(x, name, arg, op_answered);
    return HOST_ASKED;
}

static int take(struct exec *x, wasmtime_caller_t *caller, host_args args) {
    uint8_t *to = host_memory(x, caller, U32(0), x->result.n);
    if (!x->result.p)
        error_set(exec_trapping(x), LOOM_E_TRAP, "take was called before an op had a result");
    else if (to)
        memcpy(to, x->result.p, x->result.n);
    return 0;
}

static const struct host_row loom_rows[] = {
    {"op", "iiii", "i", .fn = op},
    {"take", "i", "", .fn = take},
    {.names = NULL},
};

/* Called by Wasmtime at each poll while a host function waits. */
static bool go_on(void *env) {
    struct exec *x = env;
    if (!x->asked) return true;
    if (!x->answered) return false;
    x->asked = false;
    return x->then(x);
}

static void call(void *env, wasmtime_caller_t *caller, host_args args, size_t nargs, wasmtime_val_t *results,
                 size_t nresults, wasm_trap_t **trap, wasmtime_async_continuation_t *k) {
    (void)nargs;
    const struct host_row *row = env;
    struct exec *x = wasmtime_context_get_data(wasmtime_caller_context(caller));
    x->results = results;
    *k = (wasmtime_async_continuation_t){.callback = go_on, .env = x};
    int code = row->fn ? row->fn(x, caller, args) : row->code;
    if (x->trap)
        *trap = wasmtime_trap_new(x->trap->message, strlen(x->trap->message));
    else if (nresults && code != HOST_ASKED)
        host_return(x, code);
}

static wasm_valtype_vec_t types_of(const char *letters) {
    wasm_valtype_vec_t types;
    wasm_valtype_vec_new_uninitialized(&types, strlen(letters));
    for (size_t i = 0; i < types.size; i++) types.data[i] = wasm_valtype_new(letters[i] == 'I' ? WASM_I64 : WASM_I32);
    return types;
}

static void link_rows(wasmtime_linker_t *linker, const char *module, const struct host_row *row) {
    for (; row->names; row++) {
        wasm_valtype_vec_t params = types_of(row->params), results = types_of(row->results);
        wasm_functype_t *type = wasm_functype_new(&params, &results);
        for (const char *name = row->names; *name;) {
            size_t n = strcspn(name, " ");
            wasmtime_linker_define_async_func(linker, module, strlen(module), name, n, type, call,
                                              (void *)(uintptr_t)row, NULL);
            name += n + strspn(name + n, " ");
        }
        wasm_functype_delete(type);
    }
}

void host_link(wasmtime_linker_t *linker) {
    link_rows(linker, "loom", loom_rows);
    link_rows(linker, "wasi_snapshot_preview1", wasi_rows);
    link_rows(linker, "env", wasi_env_rows);
}
