/* compile.c: from WASM bytes to an artefact, machine code for this engine, and from artefacts to modules.
 *
 * A compiler that reads strangers' bytes is the part most worth a wall, so the server compiles in a child process with
 * limits of time and memory: its own executable again, which reads settings and module from one file in memory and
 * writes the artefact, or an error as JSON, to another. Dying of a limit is an answer too.
 *
 * Deliberately not here: a cache; whoever calls keeps artefacts under exec_artefact_key() and the module's hash.
 */
#include "wasm/executor.h"
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { COMPILE_SECONDS = 60, COMPILE_MB = 2048 };

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

/* ---- modules ---- */

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

/* Links the module, which is NULL when it comes with an error, and checks what it exports. */
static int module_finish(struct exec_module *m, wasmtime_error_t *error, struct error *err) {
    wasm_exporttype_vec_t exports;
    char why[512];
    if (!error) error = wasmtime_linker_instantiate_pre(m->engine->linker, m->module, &m->pre);
    if (error) {
        exec_wasm_error(error, NULL, why, sizeof why);
        wasmtime_error_delete(error);
        return error_set(err, LOOM_E_INVALID_MODULE, "%s", why);
    }
    wasmtime_module_exports(m->module, &exports);
    const wasm_externtype_t *memory = export_of(&exports, "memory", WASM_EXTERN_MEMORY);
    if (memory) m->memory_min = wasmtime_memorytype_minimum(wasm_externtype_as_memorytype_const(memory)) << 16;
    m->initialize = exports_call(&exports, "_initialize");
    m->entry = exports_call(&exports, "run") ? "run" : exports_call(&exports, "_start") ? "_start" : NULL;
    wasm_exporttype_vec_delete(&exports);
    if (memory && m->entry) return 0;
    return error_set(err, LOOM_E_INVALID_MODULE, "the module does not export %s",
                     memory ? "a function \"run\" without parameters and results; guest.h names it so"
                            : "its memory under the name \"memory\"");
}

int exec_module_load(struct exec_engine *e, struct str artefact, struct exec_module **out, struct error *err) {
    struct exec_module *m = mem_alloc(sizeof *m);
    atomic_init(&m->refs, 1);
    m->engine = e;
    int rc = module_finish(m, wasmtime_module_deserialize(e->wasm, (const void *)artefact.p, artefact.n, &m->module),
                           err);
    if (rc)
        exec_module_unref(m);
    else
        *out = m;
    return rc;
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

int exec_compile(struct exec_engine *e, struct str wasm, struct buf *artefact, struct error *err) {
    if (!str_starts(wasm, STR("\0asm"))) {
        return error_set(err, LOOM_E_INVALID_MODULE, "not a WASM module: it must begin with the bytes 00 61 73 6d");
    }
    struct exec_module *m = mem_alloc(sizeof *m);
    wasm_byte_vec_t bytes;
    atomic_init(&m->refs, 1);
    m->engine = e;
    int rc = module_finish(m, wasmtime_module_new(e->wasm, (const void *)wasm.p, wasm.n, &m->module), err);
    wasmtime_error_t *error = rc ? NULL : wasmtime_module_serialize(m->module, &bytes);
    if (error) abort(); /* out of memory */
    if (!rc) {
        buf_add(artefact, bytes.data, bytes.size);
        wasm_byte_vec_delete(&bytes);
    }
    exec_module_unref(m);
    return rc;
}

/* ---- in a child process ---- */

static void read_all(int fd, struct buf *out) {
    char part[65536];
    for (ssize_t n; (n = read(fd, part, sizeof part)) > 0;) buf_add(out, part, (size_t)n);
}

/* Memory is limited beyond what the process has reserved by now, which is terabytes. */
static void limit_self(void) {
    rlim_t pages = 0, bytes = (rlim_t)COMPILE_MB << 20;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%lu", &pages) == 1) bytes += pages * (rlim_t)sysconf(_SC_PAGESIZE);
    if (f) fclose(f);
    setrlimit(RLIMIT_AS, &(struct rlimit){bytes, bytes});
    setrlimit(RLIMIT_CPU, &(struct rlimit){COMPILE_SECONDS, COMPILE_SECONDS});
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
}

int exec_compile_child(int in_fd, int out_fd) {
    struct buf in = {0}, out = {0};
    struct exec_config config;
    struct error err;
    read_all(in_fd, &in);
    if (in.n < sizeof config) return 2;
    memcpy(&config, in.p, sizeof config);
    config.slots = 1;
    struct exec_engine *e = exec_engine_new(&config, &err);
    limit_self();
    int rc = e ? exec_compile(e, (struct str){in.p + sizeof config, in.n - sizeof config}, &out, &err) : -1;
    if (rc) error_json(&err, &out);
    bool written = write(out_fd, out.p, out.n) == (ssize_t)out.n;
    exec_engine_free(e);
    buf_free(&in);
    buf_free(&out);
    return written && !rc ? 0 : 1;
}

/* Runs the child on the two files; how it ended, −1 when it could not be started (errno). */
static int run_child(const char *program, int in, int out) {
    char name[] = "loom", flag[] = "--compile-module", *argv[] = {name, flag, NULL};
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int status = 1;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in, 0);
    posix_spawn_file_actions_adddup2(&actions, out, 1);
    errno = posix_spawn(&pid, program, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (errno) return -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    return status;
}

/* The reason that the child wrote, or that it died of a limit. */
static int child_error(struct str answer, struct error *err) {
    yyjson_doc *doc = json_parse(answer, NULL);
    struct str message = json_str(yyjson_doc_get_root(doc), "message");
    if (message.n)
        error_set(err, LOOM_E_INVALID_MODULE, "%.*s", (int)message.n, message.p);
    else
        error_set(err, LOOM_E_INVALID_MODULE, "it takes more than %d s or %d MB to compile", COMPILE_SECONDS,
                  COMPILE_MB);
    yyjson_doc_free(doc);
    return LOOM_E_INVALID_MODULE;
}

int exec_compile_apart(struct exec_engine *e, const char *program, struct str wasm, struct buf *artefact,
                       struct error *err) {
    if (!program) return exec_compile(e, wasm, artefact, err);
    struct buf text = {0};
    int in = memfd_create("module", MFD_CLOEXEC), out = memfd_create("artefact", MFD_CLOEXEC), rc = 0;
    buf_add(&text, &e->config, sizeof e->config);
    buf_str(&text, wasm);
    if (pwrite(in, text.p, text.n, 0) != (ssize_t)text.n) abort(); /* out of memory */
    int status = run_child(program, in, out);
    if (status == -1) rc = error_set(err, LOOM_E_INTERNAL, "cannot start %s to compile: %s", program, strerror(errno));
    buf_clear(&text);
    lseek(out, 0, SEEK_SET);
    read_all(out, &text);
    if (status == 0)
        buf_str(artefact, buf_view(&text));
    else if (!rc)
        rc = child_error(buf_view(&text), err);
    close(in);
    close(out);
    buf_free(&text);
    return rc;
}
