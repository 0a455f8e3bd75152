/* module.c: modules: programs ready to be instantiated, shared by all threads, counted references.
 *
 * Whether a program can be a guest is decided here, for a fresh one as for an artefact: what it imports must be in
 * host.c's tables (the linker tells), and it must export its memory and an entry: `run`, or `_start` of a WASI program.
 */
#include "wasm/executor.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Wasmtime prints a chain of causes, the innermost on the last line; "1: " and "wasm trap: " are its decoration. */
void exec_wasm_error(const wasmtime_error_t *error, const wasm_trap_t *trap, char *out, size_t cap) {
    wasm_byte_vec_t text;
    if (error)
        wasmtime_error_message(error, &text);
    else
        wasm_trap_message(trap, &text);
    const char *p = text.data, *end = p + text.size;
    while (end > p && (end[-1] == '\0' || end[-1] == '\n')) end--;
    const char *line = memrchr(p, '\n', (size_t)(end - p));
    if (line) p = line + 1;
    snprintf(out, cap, "%.*s", (int)(end - p), p);
    wasm_byte_vec_delete(&text);
    p = out + strspn(out, " 0123456789:");
    if (!strncmp(p, "wasm trap: ", 11)) p += 11;
    memmove(out, p, strlen(p) + 1);
}

/* The export with this name and kind, NULL when there is none; it lives as long as `exports`. */
static const wasm_externtype_t *export_of(const wasm_exporttype_vec_t *exports, const char *name,
                                          wasm_externkind_t kind) {
    for (size_t i = 0; i < exports->size; i++) {
        const wasm_name_t *n = wasm_exporttype_name(exports->data[i]);
        const wasm_externtype_t *type = wasm_exporttype_type(exports->data[i]);
        if (n->size == strlen(name) && !memcmp(n->data, name, n->size) && wasm_externtype_kind(type) == kind)
            return type;
    }
    return NULL;
}

/* Whether the module exports `name` as a function without parameters and results. */
static bool exports_call(const wasm_exporttype_vec_t *exports, const char *name) {
    const wasm_externtype_t *type = export_of(exports, name, WASM_EXTERN_FUNC);
    const wasm_functype_t *func = type ? wasm_externtype_as_functype_const(type) : NULL;
    return func && wasm_functype_params(func)->size == 0 && wasm_functype_results(func)->size == 0;
}

/* Fills in what the exports tell. */
static int read_exports(struct exec_module *m, struct error *err) {
    wasm_exporttype_vec_t exports;
    wasmtime_module_exports(m->module, &exports);
    const wasm_externtype_t *memory = export_of(&exports, "memory", WASM_EXTERN_MEMORY);
    if (memory) m->memory_min = wasmtime_memorytype_minimum(wasm_externtype_as_memorytype_const(memory)) << 16;
    m->initialize = exports_call(&exports, "_initialize");
    m->again = exports_call(&exports, "again");
    m->entry = exports_call(&exports, "run") ? "run" : exports_call(&exports, "_start") ? "_start" : NULL;
    wasm_exporttype_vec_delete(&exports);
    if (memory && m->entry) return 0;
    return error_set(err, LOOM_E_INVALID_MODULE, "the module does not export %s",
                     memory ? "a function \"run\" without parameters and results; guest.h names it so"
                            : "its memory under the name \"memory\"");
}

int module_new(struct exec_engine *e, struct str bytes, module_reader *read, struct exec_module **out,
               struct error *err) {
    struct exec_module *m = mem_alloc(sizeof *m);
    char why[512];
    atomic_init(&m->refs, 1);
    m->engine = e;
    wasmtime_error_t *error = read(e->wasm, (const uint8_t *)bytes.p, bytes.n, &m->module);
    if (!error) error = wasmtime_linker_instantiate_pre(e->linker, m->module, &m->pre);
    if (error) exec_wasm_error(error, NULL, why, sizeof why);
    int rc = error ? error_set(err, LOOM_E_INVALID_MODULE, "%s", why) : read_exports(m, err);
    if (error) wasmtime_error_delete(error);
    if (rc)
        exec_module_unref(m);
    else
        *out = m;
    return rc;
}

int exec_module_load(struct exec_engine *e, struct str artefact, struct exec_module **out, struct error *err) {
    return module_new(e, artefact, wasmtime_module_deserialize, out, err);
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
