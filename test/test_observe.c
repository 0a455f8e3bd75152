/* test_observe.c: log lines as Pino writes them, metrics as Prometheus reads them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "observe/observe.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

static int ends[2];

static int open_pipe(void **state) {
    (void)state;
    assert_int_equal(pipe(ends), 0);
    log_open(ends[1], LOG_INFO);
    return 0;
}

static int close_pipe(void **state) {
    (void)state;
    log_open(-1, LOG_INFO);
    close(ends[0]);
    close(ends[1]);
    return 0;
}

/* What one read finds: all that was written so far. */
static struct str read_log(void) {
    static char text[65536];
    ssize_t n = read(ends[0], text, sizeof text - 1);
    text[n] = 0;
    return (struct str){text, (size_t)n};
}

/* Goal: one line with level, time, pid and hostname first, the fields, and msg last. */
static void line_is_pinos(void **state) {
    (void)state;
    char host[256];
    gethostname(host, sizeof host);
    log_event(LOG_WARN, "slow", "\"actor\":%q,\"ms\":%d", STR("order/1"), (int64_t)42);
    struct str line = read_log();
    yyjson_doc *doc = json_parse((struct str){line.p, line.n - 1}, NULL);
    assert_int_equal(line.p[line.n - 1], '\n');
    assert_int_equal(json_int(doc->root, "level", 0), 40);
    assert_int_equal(json_int(doc->root, "pid", 0), getpid());
    assert_true(json_int(doc->root, "time", 0) > 1700000000000);
    assert_true(str_eq(json_str(doc->root, "hostname"), str_of(host)));
    assert_true(str_starts(line, STR("{\"level\":40,\"time\":")));
    assert_non_null(strstr(line.p, ",\"actor\":\"order/1\",\"ms\":42,\"msg\":\"slow\"}\n"));
    yyjson_doc_free(doc);
}

/* Goal: nothing that a stranger names makes a second line or breaks the JSON. */
static void lines_cannot_be_forged(void **state) {
    (void)state;
    log_event(LOG_INFO, "a\n{\"level\":60}", "\"x\":%q", STR("\"\n\r\x1b[31m\0\xFF"));
    struct str line = read_log();
    yyjson_doc *doc = json_parse((struct str){line.p, line.n - 1}, NULL);
    assert_non_null(doc);
    assert_ptr_equal(memchr(line.p, '\n', line.n), line.p + line.n - 1);
    for (size_t i = 0; i + 1 < line.n; i++) assert_true((unsigned char)line.p[i] >= 0x20);
    assert_true(str_eq(json_str(doc->root, "msg"), STR("a\n{\"level\":60}")));
    yyjson_doc_free(doc);
}

/* Goal: levels below the one asked for are silent; so is a log without a file. */
static void quiet_levels_write_nothing(void **state) {
    (void)state;
    log_event(LOG_DEBUG, "quiet", "");
    log_event(LOG_INFO, "loud", "");
    assert_null(strstr(read_log().p, "quiet"));
    assert_true(log_on(LOG_INFO) && !log_on(LOG_DEBUG));
    log_open(-1, LOG_TRACE);
    assert_false(log_on(LOG_FATAL));
    log_event(LOG_FATAL, "nowhere", "");
}

static void *write_lines(void *name) {
    for (int i = 0; i < 50; i++) log_event(LOG_INFO, name, "\"i\":%d", (int64_t)i);
    for (int i = 0; i < 1000; i++) metric_add(METRIC_OPS, 1);
    return NULL;
}

/* Goal: lines and counts of two threads stay whole. */
static void threads_do_not_mix(void **state) {
    (void)state;
    pthread_t other;
    int64_t before = metric_get(METRIC_OPS);
    pthread_create(&other, NULL, write_lines, (char[]){"one"});
    write_lines((char[]){"two"});
    pthread_join(other, NULL);
    assert_int_equal(metric_get(METRIC_OPS), before + 2000);
    struct str log = read_log();
    int lines = 0;
    for (char *at = (char *)(uintptr_t)log.p, *end; (end = strchr(at, '\n')) != NULL; at = end + 1, lines++) {
        yyjson_doc *doc = json_parse((struct str){at, (size_t)(end - at)}, NULL);
        assert_non_null(doc);
        yyjson_doc_free(doc);
    }
    assert_int_equal(lines, 100);
}

/* Goal: counters and gauges with their help and type, one row each. */
static void metrics_are_prometheus_text(void **state) {
    (void)state;
    struct buf out = {0};
    metric_add(METRIC_MESSAGES, 3);
    metric_add(METRIC_MESSAGES, 2);
    metric_set(METRIC_ACTORS_LOADED, -7);
    metrics_write(&out);
    buf_char(&out, 0);
    assert_non_null(strstr(out.p, "# HELP loom_messages_total Messages accepted\n# TYPE loom_messages_total counter\n"
                                  "loom_messages_total 5\n"));
    assert_non_null(strstr(out.p, "# TYPE loom_actors_loaded gauge\nloom_actors_loaded -7\n"));
    buf_free(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(line_is_pinos, open_pipe, close_pipe),
        cmocka_unit_test_setup_teardown(lines_cannot_be_forged, open_pipe, close_pipe),
        cmocka_unit_test_setup_teardown(quiet_levels_write_nothing, open_pipe, close_pipe),
        cmocka_unit_test_setup_teardown(threads_do_not_mix, open_pipe, close_pipe),
        cmocka_unit_test(metrics_are_prometheus_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
