/* compile.c: from WASM bytes to an artefact: machine code for this engine, which exec_module_load() only maps.
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

int exec_compile(struct exec_engine *e, struct str wasm, struct buf *artefact, struct error *err) {
    if (!str_starts(wasm, STR("\0asm"))) {
        return error_set(err, LOOM_E_INVALID_MODULE, "not a WASM module: it must begin with the bytes 00 61 73 6d");
    }
    struct exec_module *m;
    wasm_byte_vec_t bytes;
    int rc = module_new(e, wasm, wasmtime_module_new, &m, err);
    if (rc) return rc;
    if (wasmtime_module_serialize(m->module, &bytes)) abort(); /* out of memory */
    buf_add(artefact, bytes.data, bytes.size);
    wasm_byte_vec_delete(&bytes);
    exec_module_unref(m);
    return 0;
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
