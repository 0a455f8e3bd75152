/* module.c: modules: from WASM bytes to an artefact, machine code for this engine; from an artefact to a program that is
 * ready to be instantiated, shared by all threads.
 *
 * Whether a program can be a guest is decided here, for a fresh one as for an artefact: what it imports must be in
 * host.c's tables (the linker tells), and it must export its memory and an entry: `run`, or `_start` of a WASI program.
 *
 * A compiler that reads strangers' bytes is the part most worth a wall, so the server compiles in a child process with
 * limits of time and memory: its own executable again, which reads a letter (f: slices by fuel) and the module from a
 * file in memory and writes the artefact, or what is wrong, to another. Dying of a limit is an answer too.
 *
 * Deliberately not here: a cache; whoever calls keeps artefacts under exec_artefact_key() and the module's hash.
 */
#include "storage/storage.h"
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

/* Fills in what the exports tell; of functions those count that have neither parameters nor results. */
static int read_exports(struct exec_module *m, struct error *err) {
    wasm_exporttype_vec_t exports;
    bool memory = false, initialize = false, again = false, run = false, start = false;
    wasmtime_module_exports(m->module, &exports);
    for (size_t i = 0; i < exports.size; i++) {
        const wasm_externtype_t *type = wasm_exporttype_type(exports.data[i]);
        const wasm_functype_t *f = wasm_externtype_as_functype_const(type);
        struct str name = {wasm_exporttype_name(exports.data[i])->data, wasm_exporttype_name(exports.data[i])->size};
        bool call = f && wasm_functype_params(f)->size == 0 && wasm_functype_results(f)->size == 0;
        memory |= wasm_externtype_kind(type) == WASM_EXTERN_MEMORY && str_is(name, "memory");
        initialize |= call && str_is(name, "_initialize");
        again |= call && str_is(name, "again");
        run |= call && str_is(name, "run");
        start |= call && str_is(name, "_start");
    }
    wasm_exporttype_vec_delete(&exports);
    m->calls[0] = initialize ? "_initialize" : NULL;
    m->calls[initialize] = run ? "run" : "_start";
    m->again[0] = again ? "again" : run ? "run" : NULL;
    if (memory && (run || start)) return 0;
    return error_set(err, LOOM_E_INVALID_MODULE, "the module does not export %s",
                     memory ? "a function \"run\" without parameters and results; guest.h names it so"
                            : "its memory under the name \"memory\"");
}

typedef wasmtime_error_t *reader(wasm_engine_t *e, const uint8_t *bytes, size_t n, wasmtime_module_t **out);

/* A module from what `read` understands: WASM bytes or an artefact. */
static struct exec_module *module_new(struct exec_engine *e, struct str bytes, reader *read, struct error *err) {
    struct exec_module *m = mem_alloc(sizeof *m);
    char why[512];
    m->engine = e;
    wasmtime_error_t *error = read(e->wasm, (const uint8_t *)bytes.p, bytes.n, &m->module);
    if (!error) error = wasmtime_linker_instantiate_pre(e->linker, m->module, &m->pre);
    if (error) exec_wasm_error(error, NULL, why, sizeof why);
    int rc = error ? error_set(err, LOOM_E_INVALID_MODULE, "%s", why) : read_exports(m, err);
    if (error) wasmtime_error_delete(error);
    if (rc == 0) return m;
    exec_module_free(m);
    return NULL;
}

struct exec_module *exec_module_load(struct exec_engine *e, struct str name, struct str artefact, struct error *err) {
    struct exec_module *m = module_new(e, artefact, wasmtime_module_deserialize, err);
    if (!m || !name.n) return m;
    snprintf(m->name, sizeof m->name, "%.*s", (int)name.n, name.p);
    map_put(&e->modules, str_of(m->name), m);
    return m;
}

struct exec_module *exec_module_kept(const struct exec_engine *e, struct str name) {
    return map_get(&e->modules, name);
}

void exec_module_free(struct exec_module *m) {
    if (!m) return;
    if (m->pre) wasmtime_instance_pre_delete(m->pre);
    if (m->module) wasmtime_module_delete(m->module);
    free(m);
}

/* ---- compiling ---- */

int exec_compile(struct exec_engine *e, struct str wasm, struct buf *artefact, struct error *err) {
    if (!str_starts(wasm, STR("\0asm")))
        return error_set(err, LOOM_E_INVALID_MODULE, "not a WASM module: it must begin with the bytes 00 61 73 6d");
    wasm_byte_vec_t bytes;
    struct exec_module *m = module_new(e, wasm, wasmtime_module_new, err);
    if (!m) return LOOM_E_INVALID_MODULE;
    if (wasmtime_module_serialize(m->module, &bytes)) abort(); /* out of memory */
    buf_add(artefact, bytes.data, bytes.size);
    wasm_byte_vec_delete(&bytes);
    exec_module_free(m);
    return 0;
}

/* ---- in a child process ---- */

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
    struct error err;
    fd_read(in_fd, &in);
    if (in.n == 0) return 2;
    struct exec_engine *e = exec_engine_new(1, in.p[0] == 'f', &err);
    limit_self();
    int rc = e ? exec_compile(e, (struct str){in.p + 1, in.n - 1}, &out, &err) : -1;
    if (rc) buf_str(&out, str_of(err.message));
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

int exec_compile_apart(struct exec_engine *e, const char *program, struct str wasm, struct buf *artefact,
                       struct error *err) {
    if (!program) return exec_compile(e, wasm, artefact, err);
    struct buf text = {0};
    int in = memfd_create("module", MFD_CLOEXEC), out = memfd_create("artefact", MFD_CLOEXEC);
    buf_char(&text, e->fuel ? 'f' : 'e');
    buf_str(&text, wasm);
    if (pwrite(in, text.p, text.n, 0) != (ssize_t)text.n) abort(); /* out of memory */
    int status = run_child(program, in, out), rc = 0;
    if (status < 0) rc = error_set(err, LOOM_E_INTERNAL, "cannot start %s to compile: %s", program, strerror(errno));
    struct buf *printed = status ? &text : artefact;
    buf_clear(printed);
    lseek(out, 0, SEEK_SET);
    fd_read(out, printed);
    if (status > 0 && text.n)
        rc = error_set(err, LOOM_E_INVALID_MODULE, "%.*s", (int)text.n, text.p);
    else if (status > 0)
        rc = error_set(err, LOOM_E_INVALID_MODULE, "it takes more than %d s or %d MB to compile", COMPILE_SECONDS,
                       COMPILE_MB);
    close(in);
    close(out);
    buf_free(&text);
    return rc;
}
