/* observe.c: log lines in Pino's format and metrics in Prometheus's.
 *
 * A line is {"level":30,"time":1700000000000,"pid":1,"hostname":"h", fields…, "msg":"…"} and one write(2): lines of
 * several threads do not mix. buf_json escapes control characters, so a hostile name cannot start a line of its own.
 * Metrics are process-wide atomics without order between them. No buffering, no rotation, no levels per module.
 */
#include "observe/observe.h"

#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* ---- log ---- */

static atomic_int log_fd = -1, log_min = LOG_INFO;
static char hostname[256];

void log_open(int fd, enum log_level level) {
    if (gethostname(hostname, sizeof hostname - 1) != 0) hostname[0] = 0;
    log_min = (int)level;
    log_fd = fd;
}

bool log_on(enum log_level level) {
    return log_fd >= 0 && (int)level >= log_min;
}

enum log_level log_level_of(struct str name) {
    static const char letters[] = "tdiwef"; /* trace, debug, info, warn, error, fatal */
    const char *at = name.n ? strchr(letters, name.p[0]) : NULL;
    return at && *at ? (enum log_level)(LOG_TRACE + 10 * (int)(at - letters)) : LOG_INFO;
}

void log_event(enum log_level level, const char *msg, const char *fields_fmt, ...) {
    if (!log_on(level)) return;
    struct buf line = {0};
    buf_json(&line, "{\"level\":%d,\"time\":%d,\"pid\":%d,\"hostname\":%z,", (int64_t)level,
             env_system()->now_ms(env_system()), (int64_t)getpid(), hostname);
    va_list ap;
    va_start(ap, fields_fmt);
    buf_json_v(&line, fields_fmt, ap);
    va_end(ap);
    buf_json(&line, "%s\"msg\":%z}\n", fields_fmt[0] ? "," : "", msg);
    /* A log that cannot be written must not stop the work; what is left of a half-written line follows it. */
    ssize_t n = 1;
    for (size_t done = 0; done < line.n && n > 0; done += n > 0 ? (size_t)n : 0)
        n = write(log_fd, line.p + done, line.n - done);
    buf_free(&line);
}

/* ---- metrics ---- */

static _Atomic int64_t values[METRIC_END];

void metric_add(enum metric m, int64_t n) {
    atomic_fetch_add_explicit(&values[m], n, memory_order_relaxed);
}

void metric_set(enum metric m, int64_t value) {
    atomic_store_explicit(&values[m], value, memory_order_relaxed);
}

int64_t metric_get(enum metric m) {
    return atomic_load_explicit(&values[m], memory_order_relaxed);
}

void metrics_write(struct buf *out) {
#define X(id, name, type, help)                                                                                   \
    buf_json(out, "# HELP " name " " help "\n# TYPE " name " " type "\n" name " %d%s\n", metric_get(METRIC_##id), \
             METRIC_##id == METRIC_COMMIT_US ? "e-6" : "");
    METRICS(X)
#undef X
}
