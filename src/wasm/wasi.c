/* wasi.c: as much of WASI preview 1 as Rust, Go and C with wasi-libc need to start, and AssemblyScript's abort; none of it
 * is real.
 *
 * What a program may learn or tell is the same in every replay: output lines become the op `log` (stdout "info", stderr
 * "error"), before whatever the guest does next; the clock is what exec_run() was told, random bytes come from the
 * exec's seed. There are no arguments, no environment, no files, no sockets; poll_oneoff() finds everything ready at
 * once, for a guest waits by ops. proc_exit(0) ends the guest as coming out of run() does, any other code is a trap.
 *
 * Invariant: nothing here asks the operating system for anything.
 */
#include "wasm/executor.h"
#include <string.h>

enum { WASI_OK = 0, WASI_BADF = 8, WASI_INVAL = 28, LINE_MAX_BYTES = 65536, RANDOM_MAX_BYTES = 65536 };

/* The n lower bytes of the value. */
static void put(uint8_t *to, uint64_t value, size_t n) {
    if (to) memcpy(to, &value, n);
}

static uint32_t get32(const uint8_t *from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* ---- output ---- */

/* Each line becomes the argument of an op, for exec_run() to ask; `all`: also what lacks its newline. */
void wasi_log_lines(struct exec *x, bool all) {
    size_t from = 0;
    while (from < x->line.n) {
        const char *line = x->line.p + from, *end = memchr(line, '\n', x->line.n - from);
        if (!end && !all) break;
        size_t n = end ? (size_t)(end - line) : x->line.n - from;
        buf_json(&x->logs, "{\"level\":%z,\"msg\":%q}", x->line_error ? "error" : "info", (struct str){line, n});
        buf_char(&x->logs, '\0');
        from += end ? n + 1 : n;
    }
    x->line.n -= from;
    if (from) memmove(x->line.p, x->line.p + from, x->line.n);
}

/* A line that is too long is cut. One call takes what it takes whenever it comes: a replay is cut into other slices. */
static int fd_write(struct exec *x, host_args args) {
    const uint8_t *vectors = host_memory(x, U32(1), U32(2) * 8ULL);
    uint8_t *written = host_memory(x, U32(3), 4);
    size_t sum = 0;
    if (U32(0) != 1 && U32(0) != 2) return WASI_BADF;
    x->line_error = U32(0) == 2;
    for (uint32_t i = 0; !x->trap && i < U32(2) && sum < LINE_MAX_BYTES; i++) {
        size_t n = get32(vectors + i * 8 + 4), room = LINE_MAX_BYTES - x->line.n;
        const uint8_t *p = host_memory(x, get32(vectors + i * 8), n);
        if (n > room) n = room;
        if (p) buf_add(&x->line, p, n);
        wasi_log_lines(x, x->line.n == LINE_MAX_BYTES);
        sum += n;
    }
    put(written, sum, 4);
    return WASI_OK;
}

/* ---- clock, randomness, end ---- */

static int clock_time_get(struct exec *x, host_args args) {
    put(host_memory(x, U32(2), 8), (uint64_t)x->now_ms * 1000000, 8);
    return WASI_OK;
}

static int random_get(struct exec *x, host_args args) {
    uint8_t *to = host_memory(x, U32(0), U32(1));
    if (U32(1) > RANDOM_MAX_BYTES) return WASI_INVAL;
    for (uint32_t i = 0; to && i < U32(1); i++, x->seed++)
        to[i] = (uint8_t)hash64((struct str){(const char *)&x->seed, sizeof x->seed}, 0);
    return WASI_OK;
}

static int proc_exit(struct exec *x, host_args args) {
    x->exited = U32(0) == 0;
    error_set(exec_trapping(x), LOOM_E_TRAP, "the guest exited with code %u", U32(0));
    return 0;
}

/* AssemblyScript's strings are UTF-16 with their length in bytes before them. */
static int as_abort(struct exec *x, host_args args) {
    char text[200] = "";
    const uint8_t *head = U32(0) >= 4 ? host_memory(x, U32(0) - 4, 4) : NULL;
    const uint8_t *p = head ? host_memory(x, U32(0), get32(head)) : NULL;
    for (size_t i = 0; p && i < get32(head) / 2 && i < sizeof text - 1; i++)
        text[i] = p[2 * i + 1] == 0 && p[2 * i] >= ' ' && p[2 * i] < 127 ? (char)p[2 * i] : '?';
    error_set(exec_trapping(x), LOOM_E_TRAP, "abort: %s at line %u:%u", text, U32(2), U32(3));
    return 0;
}

/* ---- the rest ---- */

static int sizes_get(struct exec *x, host_args args) {
    put(host_memory(x, U32(0), 4), 0, 4);
    put(host_memory(x, U32(1), 4), 0, 4);
    return WASI_OK;
}

/* Standard input is at its end. */
static int fd_read(struct exec *x, host_args args) {
    if (U32(0) != 0) return WASI_BADF;
    put(host_memory(x, U32(3), 4), 0, 4);
    return WASI_OK;
}

/* The three standard streams are character devices, to be read and written only. */
static int fd_fdstat_get(struct exec *x, host_args args) {
    uint8_t *stat = host_memory(x, U32(1), 24);
    if (!stat || U32(0) > 2) return WASI_BADF;
    memcpy(stat, (uint8_t[24]){[0] = 2, [8] = 1 << 1 | 1 << 6}, 24);
    return WASI_OK;
}

/* Each subscription (48 bytes) gets its event (32 bytes): user data and type. */
static int poll_oneoff(struct exec *x, host_args args) {
    const uint8_t *in = host_memory(x, U32(0), U32(2) * 48ULL);
    uint8_t *out = host_memory(x, U32(1), U32(2) * 32ULL);
    for (uint32_t i = 0; in && out && i < U32(2); i++) {
        uint8_t event[32] = {[10] = in[i * 48 + 8]};
        memcpy(event, in + i * 48, 8);
        memcpy(out + i * 32, event, sizeof event);
    }
    put(host_memory(x, U32(3), 4), U32(2), 4);
    return WASI_OK;
}

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
    {"abort", "iiii", "", .module = "env", .fn = as_abort},
    {.names = NULL},
};
