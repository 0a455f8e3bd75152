/* wasi.c: as much of WASI preview 1 as Rust, Go, AssemblyScript and C with wasi-libc need to start, and nothing real.
 *
 * What a program may learn or tell goes through the same ops as everything else, so that it is journaled and replayed:
 * output lines are op `log` (stdout "info", stderr "error"), the clock is op `now`, random bytes are op `random`. There
 * are no arguments, no environment, no files, no sockets; poll_oneoff() finds everything ready at once, for a guest waits
 * by ops. proc_exit(0) ends the guest as coming out of run() does, any other code is a trap.
 *
 * Invariant: nothing here asks the operating system for anything.
 */
#include "wasm/executor.h"
#include <stdlib.h>
#include <string.h>

enum { WASI_OK = 0, WASI_BADF = 8, WASI_IO = 29, WASI_NOSYS = 52, WASI_SPIPE = 70 };
enum { ASKED = -1, LINE_MAX_BYTES = 65536, RANDOM_MAX = 256 };

#define U32(i) ((uint32_t)args[i].of.i32)
typedef const wasmtime_val_t *wasi_args;

static void put32(uint8_t *to, uint32_t value) {
    if (to) memcpy(to, &value, sizeof value);
}

static uint32_t get32(const uint8_t *from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static bool answer(struct exec *x, int code) {
    x->results[0] = (wasmtime_val_t){.kind = WASMTIME_I32, .of.i32 = code};
    return true;
}

/* ---- output ---- */

static bool log_next(struct exec *x);

/* Asks to log the first n bytes of x->line, and takes them out with `skip` bytes behind them. */
static void log_line(struct exec *x, size_t n, size_t skip) {
    buf_clear(&x->text);
    buf_json(&x->text, "{\"level\":%z,\"msg\":%q}", x->wasi.level == 2 ? "error" : "info", (struct str){x->line.p, n});
    x->line.n -= n + skip;
    memmove(x->line.p, x->line.p + n + skip, x->line.n);
    exec_ask(x, STR("log"), buf_view(&x->text), log_next);
}

static bool log_next(struct exec *x) {
    char *end = x->line.n ? memchr(x->line.p, '\n', x->line.n) : NULL;
    if (end)
        log_line(x, (size_t)(end - x->line.p), 1);
    else if (x->line.n >= LINE_MAX_BYTES)
        log_line(x, x->line.n, 0);
    else
        return answer(x, WASI_OK);
    return false;
}

bool wasi_flush(struct exec *x) {
    if (x->line.n) log_line(x, x->line.n, 0);
    return x->asked && !x->answered;
}

static int fd_write(struct exec *x, wasmtime_caller_t *caller, wasi_args args) {
    if (U32(0) != 1 && U32(0) != 2) return WASI_BADF;
    const uint8_t *vectors = exec_memory(x, caller, U32(1), U32(2) * 8ULL);
    uint8_t *written = exec_memory(x, caller, U32(3), 4);
    size_t before = x->line.n;
    for (uint32_t i = 0; vectors && i < U32(2) && x->line.n < LINE_MAX_BYTES; i++) {
        size_t n = get32(vectors + i * 8 + 4), room = LINE_MAX_BYTES - x->line.n;
        const uint8_t *p = exec_memory(x, caller, get32(vectors + i * 8), n);
        if (p) buf_add(&x->line, p, n < room ? n : room);
    }
    put32(written, (uint32_t)(x->line.n - before));
    x->wasi.level = (int)U32(0);
    if (x->trap) return WASI_IO;
    return log_next(x) ? WASI_OK : ASKED;
}

/* ---- clock, randomness, end ---- */

static bool clock_answered(struct exec *x) {
    buf_char(&x->result, '\0');
    uint64_t ns = (uint64_t)strtoll(x->result.p, NULL, 10) * 1000000;
    memcpy(x->wasi.to, &ns, sizeof ns);
    return answer(x, x->ok ? WASI_OK : WASI_IO);
}

static int clock_time_get(struct exec *x, wasmtime_caller_t *caller, wasi_args args) {
    x->wasi.to = exec_memory(x, caller, U32(2), 8);
    if (x->wasi.to) exec_ask(x, STR("now"), STR("null"), clock_answered);
    return ASKED;
}

static void ask_random(struct exec *x);

static bool random_answered(struct exec *x) {
    size_t n = x->wasi.left < RANDOM_MAX ? x->wasi.left : RANDOM_MAX;
    if (!x->ok || x->result.n != 2 * n + 2) return answer(x, WASI_IO);
    for (size_t i = 0; i < n; i++) {
        char pair[3] = {x->result.p[1 + 2 * i], x->result.p[2 + 2 * i], 0};
        x->wasi.to[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    x->wasi.to += n;
    x->wasi.left -= n;
    if (x->wasi.left == 0) return answer(x, WASI_OK);
    ask_random(x);
    return false;
}

static void ask_random(struct exec *x) {
    buf_clear(&x->text);
    buf_json(&x->text, "%u", (uint64_t)(x->wasi.left < RANDOM_MAX ? x->wasi.left : RANDOM_MAX));
    exec_ask(x, STR("random"), buf_view(&x->text), random_answered);
}

static int random_get(struct exec *x, wasmtime_caller_t *caller, wasi_args args) {
    x->wasi.to = exec_memory(x, caller, U32(0), U32(1));
    x->wasi.left = U32(1);
    if (x->trap || !x->wasi.left) return WASI_OK;
    ask_random(x);
    return ASKED;
}

static int proc_exit(struct exec *x, wasmtime_caller_t *caller, wasi_args args) {
    (void)caller;
    if (U32(0) == 0)
        x->exited = true;
    else
        exec_fail(x, LOOM_E_TRAP, "the guest exited with code %u", U32(0));
    return ASKED;
}

/* AssemblyScript's strings are UTF-16 with their length in bytes before them. */
static int as_abort(struct exec *x, wasmtime_caller_t *caller, wasi_args args) {
    char text[200] = "";
    const uint8_t *head = U32(0) >= 4 ? exec_memory(x, caller, U32(0) - 4, 4) : NULL;
    size_t n = head ? get32(head) / 2 : 0;
    const uint8_t *p = n ? exec_memory(x, caller, U32(0), n * 2) : NULL;
    for (size_t i = 0; p && i < n && i < sizeof text - 1; i++) {
        text[i] = p[2 * i + 1] == 0 && p[2 * i] >= ' ' && p[2 * i] < 127 ? (char)p[2 * i] : '?';
    }
    exec_fail(x, LOOM_E_TRAP, "abort: %s at line %u:%u", text, U32(2), U32(3));
    return ASKED;
}

/* ---- the rest ---- */

static int sizes_get(struct exec *x, wasmtime_caller_t *caller, wasi_args args) {
    put32(exec_memory(x, caller, U32(0), 4), 0);
    put32(exec_memory(x, caller, U32(1), 4), 0);
    return WASI_OK;
}

/* Standard input is at its end. */
static int fd_read(struct exec *x, wasmtime_caller_t *caller, wasi_args args) {
    if (U32(0) != 0) return WASI_BADF;
    put32(exec_memory(x, caller, U32(3), 4), 0);
    return WASI_OK;
}

/* The three standard streams are character devices, to be read and written only. */
static int fd_fdstat_get(struct exec *x, wasmtime_caller_t *caller, wasi_args args) {
    uint8_t *stat = exec_memory(x, caller, U32(1), 24);
    if (!stat || U32(0) > 2) return WASI_BADF;
    memset(stat, 0, 24);
    stat[0] = 2;
    stat[8] = 1 << 1 | 1 << 6;
    return WASI_OK;
}

/* Each subscription (48 bytes) gets its event (32 bytes): user data and type. */
static int poll_oneoff(struct exec *x, wasmtime_caller_t *caller, wasi_args args) {
    const uint8_t *in = exec_memory(x, caller, U32(0), U32(2) * 48ULL);
    uint8_t *out = exec_memory(x, caller, U32(1), U32(2) * 32ULL), *count = exec_memory(x, caller, U32(3), 4);
    for (uint32_t i = 0; in && out && i < U32(2); i++) {
        uint8_t event[32] = {[10] = in[i * 48 + 8]};
        memcpy(event, in + i * 48, 8);
        memcpy(out + i * 32, event, sizeof event);
    }
    put32(count, U32(2));
    return WASI_OK;
}

static const struct wasi_row {
    const char *name, *params;
    int code; /* the answer of a function that does nothing */
    int (*fn)(struct exec *x, wasmtime_caller_t *caller, wasi_args args);
} rows[] =
    {
        {"args_get", "ii", WASI_OK, NULL},
        {"args_sizes_get", "ii", 0, sizes_get},
        {"clock_res_get", "ii", WASI_NOSYS, NULL},
        {"clock_time_get", "iIi", 0, clock_time_get},
        {"environ_get", "ii", WASI_OK, NULL},
        {"environ_sizes_get", "ii", 0, sizes_get},
        {"fd_advise", "iIIi", WASI_BADF, NULL},
        {"fd_allocate", "iII", WASI_BADF, NULL},
        {"fd_close", "i", WASI_OK, NULL},
        {"fd_datasync", "i", WASI_BADF, NULL},
        {"fd_fdstat_get", "ii", 0, fd_fdstat_get},
        {"fd_fdstat_set_flags", "ii", WASI_OK, NULL},
        {"fd_fdstat_set_rights", "iII", WASI_BADF, NULL},
        {"fd_filestat_get", "ii", WASI_BADF, NULL},
        {"fd_filestat_set_size", "iI", WASI_BADF, NULL},
        {"fd_filestat_set_times", "iIIi", WASI_BADF, NULL},
        {"fd_pread", "iiiIi", WASI_BADF, NULL},
        {"fd_prestat_dir_name", "iii", WASI_BADF, NULL},
        {"fd_prestat_get", "ii", WASI_BADF, NULL},
        {"fd_pwrite", "iiiIi", WASI_BADF, NULL},
        {"fd_read", "iiii", 0, fd_read},
        {"fd_readdir", "iiiIi", WASI_BADF, NULL},
        {"fd_renumber", "ii", WASI_BADF, NULL},
        {"fd_seek", "iIii", WASI_SPIPE, NULL},
        {"fd_sync", "i", WASI_BADF, NULL},
        {"fd_tell", "ii", WASI_SPIPE, NULL},
        {"fd_write", "iiii", 0, fd_write},
        {"path_create_directory", "iii", WASI_BADF, NULL},
        {"path_filestat_get", "iiiii", WASI_BADF, NULL},
        {"path_filestat_set_times", "iiiiIIi", WASI_BADF, NULL},
        {"path_link", "iiiiiii", WASI_BADF, NULL},
        {"path_open", "iiiiiIIii", WASI_BADF, NULL},
        {"path_readlink", "iiiiii", WASI_BADF, NULL},
        {"path_remove_directory", "iii", WASI_BADF, NULL},
        {"path_rename", "iiiiii", WASI_BADF, NULL},
        {"path_symlink", "iiiii", WASI_BADF, NULL},
        {"path_unlink_file", "iii", WASI_BADF, NULL},
        {"poll_oneoff", "iiii", 0, poll_oneoff},
        {"proc_raise", "i", WASI_NOSYS, NULL},
        {"random_get", "ii", 0, random_get},
        {"sched_yield", "", WASI_OK, NULL},
        {"sock_accept", "iii", WASI_BADF, NULL},
        {"sock_recv", "iiiiii", WASI_BADF, NULL},
        {"sock_send", "iiiii", WASI_BADF, NULL},
        {"sock_shutdown", "ii", WASI_BADF, NULL},
},
  exit_row = {"proc_exit", "i", 0, proc_exit}, abort_row = {"abort", "iiii", 0, as_abort};

static void begin(void *env, wasmtime_caller_t *caller, wasi_args args, size_t nargs, wasmtime_val_t *results,
                  size_t nresults, wasm_trap_t **trap, wasmtime_async_continuation_t *k) {
    (void)nargs;
    const struct wasi_row *row = env;
    struct exec *x = exec_of(caller);
    exec_host_begin(x, results, k);
    int code = row->fn ? row->fn(x, caller, args) : row->code;
    if (x->trap)
        *trap = exec_host_trap(x);
    else if (x->exited)
        *trap = wasmtime_trap_new("exit", 4);
    else if (nresults && code != ASKED)
        answer(x, code);
}

static void define(wasmtime_linker_t *linker, const char *module, const struct wasi_row *row, const char *results) {
    wasm_functype_t *type = exec_functype(row->params, results);
    wasmtime_linker_define_async_func(linker, module, strlen(module), row->name, strlen(row->name), type, begin,
                                      (void *)(uintptr_t)row, NULL);
    wasm_functype_delete(type);
}

void wasi_link(wasmtime_linker_t *linker) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) define(linker, "wasi_snapshot_preview1", &rows[i], "i");
    define(linker, "wasi_snapshot_preview1", &exit_row, "");
    define(linker, "env", &abort_row, "");
}
