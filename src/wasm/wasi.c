/* wasi.c: as much of WASI preview 1 as Rust, Go and C with wasi-libc need to start, and AssemblyScript's abort; none of it
 * is real.
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

enum { WASI_OK = 0, WASI_BADF = 8, WASI_IO = 29 };
enum { LINE_MAX_BYTES = 65536, RANDOM_MAX_BYTES = 256 };

static void put32(uint8_t *to, size_t value) {
    uint32_t bytes = (uint32_t)value;
    if (to) memcpy(to, &bytes, sizeof bytes);
}

static uint32_t get32(const uint8_t *from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* ---- output ---- */

static bool log_next(struct exec *x);

/* Asks to log the first n bytes of x->line, and takes them out with `skip` bytes behind them. */
static void log_line(struct exec *x, size_t n, size_t skip) {
    const char *level = x->line_error ? "error" : "info";
    buf_clear(&x->text);
    buf_json(&x->text, "{\"level\":%z,\"msg\":%q}", level, (struct str){x->line.p, n});
    x->line.n -= n + skip;
    memmove(x->line.p, x->line.p + n + skip, x->line.n);
    exec_ask(x, STR("log"), buf_view(&x->text), log_next);
}

static bool log_next(struct exec *x) {
    const char *end = x->line.n ? memchr(x->line.p, '\n', x->line.n) : NULL;
    if (!end && x->line.n < LINE_MAX_BYTES) return host_return(x, WASI_OK);
    log_line(x, end ? (size_t)(end - x->line.p) : x->line.n, end ? 1 : 0);
    return false;
}

bool wasi_flush(struct exec *x) {
    if (!x->line.n) return false;
    log_line(x, x->line.n, 0);
    return true;
}

static int fd_write(struct exec *x, wasmtime_caller_t *caller, host_args args) {
    const uint8_t *vectors = host_memory(x, caller, U32(1), U32(2) * 8ULL);
    uint8_t *written = host_memory(x, caller, U32(3), 4);
    size_t before = x->line.n;
    if (U32(0) != 1 && U32(0) != 2) return WASI_BADF;
    for (uint32_t i = 0; vectors && i < U32(2) && x->line.n < LINE_MAX_BYTES; i++) {
        size_t n = get32(vectors + i * 8 + 4), room = LINE_MAX_BYTES - x->line.n;
        const uint8_t *p = host_memory(x, caller, get32(vectors + i * 8), n);
        if (p) buf_add(&x->line, p, n < room ? n : room);
    }
    if (x->trap) return WASI_IO;
    put32(written, x->line.n - before);
    x->line_error = U32(0) == 2;
    return log_next(x) ? WASI_OK : HOST_ASKED;
}

/* ---- clock, randomness, end ---- */

static bool clock_answered(struct exec *x) {
    buf_char(&x->answer, '\0');
    uint64_t ns = (uint64_t)strtoll(x->answer.p, NULL, 10) * 1000000;
    memcpy(x->to, &ns, sizeof ns);
    return host_return(x, x->ok ? WASI_OK : WASI_IO);
}

static int clock_time_get(struct exec *x, wasmtime_caller_t *caller, host_args args) {
    x->to = host_memory(x, caller, U32(2), 8);
    if (x->to) exec_ask(x, STR("now"), STR("null"), clock_answered);
    return HOST_ASKED;
}

static bool random_answered(struct exec *x);

static int ask_random(struct exec *x) {
    if (x->left == 0) return WASI_OK;
    buf_clear(&x->text);
    buf_json(&x->text, "%u", (uint64_t)(x->left < RANDOM_MAX_BYTES ? x->left : RANDOM_MAX_BYTES));
    exec_ask(x, STR("random"), buf_view(&x->text), random_answered);
    return HOST_ASKED;
}

/* The answer is a string of hexadecimal digits. */
static bool random_answered(struct exec *x) {
    size_t n = (x->answer.n - 1) / 2;
    if (!x->ok || x->answer.n < 4 || n > x->left) return host_return(x, WASI_IO);
    for (const char *p = x->answer.p + 1; n > 0; n--, p += 2, x->left--) {
        *x->to++ = (uint8_t)strtoul((char[]){p[0], p[1], 0}, NULL, 16);
    }
    return ask_random(x) == WASI_OK && host_return(x, WASI_OK);
}

static int random_get(struct exec *x, wasmtime_caller_t *caller, host_args args) {
    x->to = host_memory(x, caller, U32(0), U32(1));
    x->left = U32(1);
    return x->trap ? WASI_IO : ask_random(x);
}

static int proc_exit(struct exec *x, wasmtime_caller_t *caller, host_args args) {
    (void)caller;
    x->exited = U32(0) == 0;
    error_set(exec_trapping(x), LOOM_E_TRAP, "the guest exited with code %u", U32(0));
    return HOST_ASKED;
}

/* AssemblyScript's strings are UTF-16 with their length in bytes before them. */
static int as_abort(struct exec *x, wasmtime_caller_t *caller, host_args args) {
    char text[200] = "";
    const uint8_t *head = U32(0) >= 4 ? host_memory(x, caller, U32(0) - 4, 4) : NULL;
    const uint8_t *p = head ? host_memory(x, caller, U32(0), get32(head)) : NULL;
    for (size_t i = 0; p && i < get32(head) / 2 && i < sizeof text - 1; i++) {
        text[i] = p[2 * i + 1] == 0 && p[2 * i] >= ' ' && p[2 * i] < 127 ? (char)p[2 * i] : '?';
    }
    error_set(exec_trapping(x), LOOM_E_TRAP, "abort: %s at line %u:%u", text, U32(2), U32(3));
    return HOST_ASKED;
}

/* ---- the rest ---- */

static int sizes_get(struct exec *x, wasmtime_caller_t *caller, host_args args) {
    put32(host_memory(x, caller, U32(0), 4), 0);
    put32(host_memory(x, caller, U32(1), 4), 0);
    return WASI_OK;
}

/* Standard input is at its end. */
static int fd_read(struct exec *x, wasmtime_caller_t *caller, host_args args) {
    if (U32(0) != 0) return WASI_BADF;
    put32(host_memory(x, caller, U32(3), 4), 0);
    return WASI_OK;
}

/* The three standard streams are character devices, to be read and written only. */
static int fd_fdstat_get(struct exec *x, wasmtime_caller_t *caller, host_args args) {
    uint8_t *stat = host_memory(x, caller, U32(1), 24);
    if (!stat || U32(0) > 2) return WASI_BADF;
    memcpy(stat, (uint8_t[24]){[0] = 2, [8] = 1 << 1 | 1 << 6}, 24);
    return WASI_OK;
}

/* Each subscription (48 bytes) gets its event (32 bytes): user data and type. */
static int poll_oneoff(struct exec *x, wasmtime_caller_t *caller, host_args args) {
    const uint8_t *in = host_memory(x, caller, U32(0), U32(2) * 48ULL);
    uint8_t *out = host_memory(x, caller, U32(1), U32(2) * 32ULL);
    for (uint32_t i = 0; in && out && i < U32(2); i++) {
        uint8_t event[32] = {[10] = in[i * 48 + 8]};
        memcpy(event, in + i * 48, 8);
        memcpy(out + i * 32, event, sizeof event);
    }
    put32(host_memory(x, caller, U32(3), 4), U32(2));
    return WASI_OK;
}

/* Names between spaces, parameters, results. */
const struct host_row wasi_rows[] = {
    {"args_sizes_get environ_sizes_get", "ii", "i", .fn = sizes_get},
    {"args_get environ_get fd_fdstat_set_flags", "ii", "i", .code = WASI_OK},
    {"clock_time_get", "iIi", "i", .fn = clock_time_get},
    {"fd_close", "i", "i", .code = WASI_OK},
    {"fd_fdstat_get", "ii", "i", .fn = fd_fdstat_get},
    {"fd_read", "iiii", "i", .fn = fd_read},
    {"fd_write", "iiii", "i", .fn = fd_write},
    {"poll_oneoff", "iiii", "i", .fn = poll_oneoff},
    {"proc_exit", "i", "", .fn = proc_exit},
    {"random_get", "ii", "i", .fn = random_get},
    {"sched_yield", "", "i", .code = WASI_OK},
    {"fd_datasync fd_sync proc_raise", "i", "i", .code = WASI_BADF},
    {"clock_res_get fd_filestat_get fd_prestat_get fd_renumber fd_tell sock_shutdown", "ii", "i", .code = WASI_BADF},
    {"fd_prestat_dir_name path_create_directory path_remove_directory path_unlink_file sock_accept", "iii", "i",
     .code = WASI_BADF},
    {"path_filestat_get path_symlink sock_send", "iiiii", "i", .code = WASI_BADF},
    {"path_readlink path_rename sock_recv", "iiiiii", "i", .code = WASI_BADF},
    {"fd_pread fd_pwrite fd_readdir", "iiiIi", "i", .code = WASI_BADF},
    {"fd_allocate fd_fdstat_set_rights", "iII", "i", .code = WASI_BADF},
    {"fd_advise fd_filestat_set_times", "iIIi", "i", .code = WASI_BADF},
    {"fd_filestat_set_size", "iI", "i", .code = WASI_BADF},
    {"fd_seek", "iIii", "i", .code = WASI_BADF},
    {"path_filestat_set_times", "iiiiIIi", "i", .code = WASI_BADF},
    {"path_link", "iiiiiii", "i", .code = WASI_BADF},
    {"path_open", "iiiiiIIii", "i", .code = WASI_BADF},
    {.names = NULL},
};

const struct host_row wasi_env_rows[] = {
    {"abort", "iiii", "", .fn = as_abort},
    {.names = NULL},
};
