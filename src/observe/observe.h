/* observe.h: what happened, once: a record that becomes a log line (Pino's format) and counts in a metric (Prometheus). */
#ifndef LOOM_OBSERVE_H
#define LOOM_OBSERVE_H

#include "base/base.h"

enum log_level { LOG_TRACE = 10, LOG_DEBUG = 20, LOG_INFO = 30, LOG_WARN = 40, LOG_ERROR = 50, LOG_FATAL = 60 };

#define METRICS(X)                                                                                            \
    X(MESSAGES, "loom_messages_total", "counter", "Messages accepted")                                        \
    X(TURNS_STARTED, "loom_turns_started_total", "counter", "Turns started")                                  \
    X(TURNS_COMPLETED, "loom_turns_completed_total", "counter", "Turns that returned, finished or continued") \
    X(TURNS_FAILED, "loom_turns_failed_total", "counter", "Turns that failed or were cancelled")              \
    X(REPLAYS, "loom_replays_total", "counter", "Turns rebuilt from their journal")                           \
    X(EVICTIONS, "loom_evictions_total", "counter", "Guest instances freed to make room")                     \
    X(OPS, "loom_ops_total", "counter", "Ops of guests")                                                      \
    X(ACTIVITIES_STARTED, "loom_activity_attempts_total", "counter", "Activity attempts started")             \
    X(ACTIVITIES_FAILED, "loom_activity_attempts_failed_total", "counter", "Activity attempts that failed")   \
    X(BATCHES, "loom_batches_total", "counter", "Batches committed")                                          \
    X(ROWS, "loom_rows_total", "counter", "Rows written")                                                     \
    X(COMMIT_US, "loom_commit_seconds_total", "counter", "Time spent in commits")                             \
    X(COMMITS_FAILED, "loom_commits_failed_total", "counter", "Batches that the store refused")               \
    X(DEAD_LETTERS, "loom_dead_letters_total", "counter", "Messages given up")                                \
    X(HTTP_REQUESTS, "loom_http_requests_total", "counter", "HTTP requests answered")                         \
    X(ACTORS_LOADED, "loom_actors_loaded", "gauge", "Actors in memory")                                       \
    X(GUESTS_RESIDENT, "loom_guests_resident", "gauge", "Guest instances in memory")                          \
    X(GUEST_BYTES, "loom_guest_bytes", "gauge", "Estimated bytes of resident guests")                         \
    X(TIMERS, "loom_timers", "gauge", "Timers in memory")
enum metric {
#define X(id, name, type, help) METRIC_##id,
    METRICS(X)
#undef X
        METRIC_END
};

/* Process-wide, as file descriptors and signals are. Thread-safe. */
void log_open(int fd, enum log_level level); /* fd −1: silent */
bool log_on(enum log_level level);
enum log_level log_level_of(struct str name); /* told by its first letter; else "info" */
/* One line {"level","time","pid","hostname",…fields,"msg"}; fields_fmt is buf_json's ("\"actor\":%q"), "" for none. */
void log_event(enum log_level level, const char *msg, const char *fields_fmt, ...);
void metric_add(enum metric m, int64_t n);
void metric_set(enum metric m, int64_t value);
int64_t metric_get(enum metric m);
void metrics_write(struct buf *out); /* Prometheus text format 0.0.4 */

#endif
