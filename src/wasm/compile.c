/* compile.c: from WASM bytes to an artefact, machine code for this engine, which exec_module_load() only maps.
 *
 * A compiler that reads strangers' bytes is the part most worth a wall, so the server compiles in a child process with
 * limits of time and memory: its own executable again, which reads the settings and the module from a socket and answers
 * the artefact, or an error as JSON and exit code 1. Dying of a limit is an answer too.
 *
 * Deliberately not here: a cache; whoever calls keeps artefacts under exec_artefact_key() and the module's hash.
 */
#include "wasm/executor.h"
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { COMPILE_SECONDS = 60, COMPILE_MB = 2048 };

extern char **environ;

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
    p = out + strspn(out, " 0123456789:");
    if (!strncmp(p, "wasm trap: ", 11)) p += 11;
    memmove(out, p, strlen(p) + 1);
    wasm_byte_vec_delete(&text);
}

/* The named export, if it has the kind; its type lives as long as `exports`. */
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
    if (!type) return false;
    const wasm_functype_t *func = wasm_externtype_as_functype_const(type);
    return wasm_functype_params(func)->size == 0 && wasm_functype_results(func)->size == 0;
}

int exec_module_check(struct exec_module *m, struct error *err) {
    wasm_exporttype_vec_t exports;
    wasmtime_module_exports(m->module, &exports);
    const wasm_externtype_t *memory = export_of(&exports, "memory", WASM_EXTERN_MEMORY);
    if (memory) m->memory_min = wasmtime_memorytype_minimum(wasm_externtype_as_memorytype_const(memory)) << 16;
    m->initialize = exports_call(&exports, "_initialize");
    m->entry = exports_call(&exports, "run") ? "run" : exports_call(&exports, "_start") ? "_start" : NULL;
    wasm_exporttype_vec_delete(&exports);
    if (!memory) return error_set(err, LOOM_E_INVALID_MODULE, "the module does not export its memory as \"memory\"");
    if (m->entry) return 0;
    return error_set(
        err, LOOM_E_INVALID_MODULE,
        "the module does not export a function \"run\" without parameters and results; mark the entry with "
        "export_name(\"run\") or use guest.h");
}

/* What is told apart before the compiler looks: each beginner's mistake gets its own words. */
static int check_bytes(struct str wasm, struct error *err) {
    static const char core[8] = "\0asm\1\0\0", component[8] = "\0asm\r\0\1";
    if (wasm.n < 4 || memcmp(wasm.p, core, 4) != 0) {
        return error_set(err, LOOM_E_INVALID_MODULE, "not a WASM module: it must begin with the bytes 00 61 73 6d");
    }
    if (wasm.n < 8) return error_set(err, LOOM_E_INVALID_MODULE, "the module is truncated after %zu bytes", wasm.n);
    if (!memcmp(wasm.p, component, 8)) {
        return error_set(err, LOOM_E_INVALID_MODULE, "this is a WASM component; Loom runs core modules");
    }
    return 0;
}

int exec_compile(struct exec_engine *e, struct str wasm, struct buf *artefact, struct error *err) {
    int rc = check_bytes(wasm, err);
    if (rc) return rc;
    struct exec_module m = {.engine = e};
    wasm_byte_vec_t bytes;
    wasmtime_error_t *error = wasmtime_module_new(e->wasm, (const uint8_t *)wasm.p, wasm.n, &m.module);
    if (!error) error = wasmtime_linker_instantiate_pre(e->linker, m.module, &m.pre);
    if (!error) rc = exec_module_check(&m, err);
    if (!error && !rc) error = wasmtime_module_serialize(m.module, &bytes);
    if (error) {
        char why[512];
        exec_wasm_error(error, NULL, why, sizeof why);
        wasmtime_error_delete(error);
        rc = error_set(err, LOOM_E_INVALID_MODULE, "%s", why);
    } else if (!rc) {
        buf_add(artefact, bytes.data, bytes.size);
        wasm_byte_vec_delete(&bytes);
    }
    if (m.pre) wasmtime_instance_pre_delete(m.pre);
    if (m.module) wasmtime_module_delete(m.module);
    return rc;
}

/* ---- in a child process ---- */

static bool send_all(int fd, const void *p, size_t n) {
    for (const char *at = p; n > 0;) {
        ssize_t sent = send(fd, at, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) return false;
        at += sent;
        n -= (size_t)sent;
    }
    return true;
}

static void read_all(int fd, struct buf *out) {
    char part[65536];
    for (ssize_t n; (n = read(fd, part, sizeof part)) != 0;) {
        if (n > 0)
            buf_add(out, part, (size_t)n);
        else if (errno != EINTR)
            return;
    }
}

/* Memory is limited beyond what the process has reserved by now: sanitizers reserve terabytes. */
static void limit_self(void) {
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%lu", &pages) != 1) pages = 0;
    if (f) fclose(f);
    rlim_t bytes = pages * (rlim_t)sysconf(_SC_PAGESIZE) + ((rlim_t)COMPILE_MB << 20);
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
    bool sent = send_all(out_fd, out.p, out.n);
    exec_engine_free(e);
    buf_free(&in);
    buf_free(&out);
    return sent && !rc ? 0 : 1;
}

/* The child with both ends of its work on one socket; −1 when it cannot be started. */
static pid_t start_child(const char *program, int *fd) {
    int pair[2];
    pid_t pid = -1;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return -1;
    char name[] = "loom", flag[] = "--compile-module", *argv[] = {name, flag, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pair[1], 0);
    posix_spawn_file_actions_adddup2(&actions, pair[1], 1);
    if (posix_spawn(&pid, program, &actions, NULL, argv, environ) != 0) pid = -1;
    posix_spawn_file_actions_destroy(&actions);
    close(pair[1]);
    *fd = pair[0];
    if (pid < 0) close(pair[0]);
    return pid;
}

/* How the child ended, as an error; what it wrote is the artefact or the error's JSON. */
static int child_outcome(int status, struct str answer, struct buf *artefact, struct error *err) {
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        buf_str(artefact, answer);
        return 0;
    }
    yyjson_doc *doc = json_parse(answer, NULL);
    struct str message = json_str(yyjson_doc_get_root(doc), "message");
    if (message.p)
        error_set(err, LOOM_E_INVALID_MODULE, "%.*s", (int)message.n, message.p);
    else
        error_set(err, LOOM_E_INVALID_MODULE, "the module cannot be compiled within %d s and %d MB", COMPILE_SECONDS,
                  COMPILE_MB);
    yyjson_doc_free(doc);
    return LOOM_E_INVALID_MODULE;
}

int exec_compile_apart(struct exec_engine *e, const char *program, struct str wasm, struct buf *artefact,
                       struct error *err) {
    if (!program) return exec_compile(e, wasm, artefact, err);
    int rc = check_bytes(wasm, err), fd, status;
    if (rc) return rc;
    pid_t pid = start_child(program, &fd);
    if (pid < 0)
        return error_set(err, LOOM_E_INTERNAL, "cannot start %s to compile a module: %s", program, strerror(errno));
    struct buf answer = {0};
    if (send_all(fd, &e->config, sizeof e->config)) send_all(fd, wasm.p, wasm.n);
    shutdown(fd, SHUT_WR);
    read_all(fd, &answer);
    close(fd);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    rc = child_outcome(status, buf_view(&answer), artefact, err);
    buf_free(&answer);
    return rc;
}
