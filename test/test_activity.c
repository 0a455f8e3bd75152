/* Attempts of activities: a guest that runs a script of ops, a pool, the real network client and a small HTTP server. */
#include "net/net.h"
#include "observe/observe.h"
#include "support/attempt.h"
#include "support/guests.h"
#include "wasm/exec.h"
#include <arpa/inet.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <cmocka.h>

static struct exec_engine *engine;
static struct exec_module *script;
static struct net_client *net;
static yyjson_doc *grants; /* what the policy refers to */
static yyjson_val *policy;

/* ---- what came of attempts ---- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

/* An attempt and what came of it. */
struct outcome {
    struct activity run; /* first */
    int ended;
    char actor[20], result[4096];
    struct error error;
};

static void on_end(struct activity *run) {
    struct outcome *o = (struct outcome *)run;
    yyjson_doc *doc = yyjson_read(run->text.p, run->text.n, 0);
    yyjson_val *error = run->ok ? NULL : yyjson_doc_get_root(doc);
    assert_true(run->ok || yyjson_is_obj(error));
    pthread_mutex_lock(&mutex);
    o->ended++;
    snprintf(o->result, sizeof o->result, "%.*s", run->ok ? (int)run->text.n : 0, run->text.p);
    snprintf(o->error.code, sizeof o->error.code, "%s", error ? json_str(error, "code").p : "");
    snprintf(o->error.message, sizeof o->error.message, "%s", error ? json_str(error, "message").p : "");
    o->error.retryable = json_bool(error, "retryable", false);
    buf_free(&run->text);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
    yyjson_doc_free(doc);
}

static void wait_for(struct outcome *o) {
    pthread_mutex_lock(&mutex);
    while (!o->ended) pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
}

/* What the attempt has said: "LEVEL MSG GUEST'S JSON; " for each line of the log. */
static FILE *log_file;

static struct buf notes_of(const struct outcome *o) {
    char line[4096];
    struct buf notes = {0};
    rewind(log_file);
    while (fgets(line, sizeof line, log_file)) {
        yyjson_doc *doc = yyjson_read(line, strlen(line), 0);
        yyjson_val *root = yyjson_doc_get_root(doc);
        if (str_is(json_str(root, "actor"), o->actor))
            buf_json(&notes, "%d %j %v; ", json_int(root, "level", 0), json_str(root, "msg"),
                     yyjson_obj_get(root, "guest"));
        yyjson_doc_free(doc);
    }
    buf_char(&notes, '\0');
    return notes;
}

static void expect_notes(const struct outcome *o, const char *text) {
    struct buf notes = notes_of(o);
    assert_string_equal(notes.p, text);
    buf_free(&notes);
}

static void wait_for_note(const struct outcome *o) {
    for (bool found = false; !found; usleep(1000)) {
        struct buf notes = notes_of(o);
        found = notes.n > 1;
        buf_free(&notes);
    }
}

/* An attempt of the script with this input, to be started. */
static struct activity *prepare(struct outcome *o, const char *input) {
    static int count;
    *o = (struct outcome){.run = {.module = script,
                                  .memory_mb = 4,
                                  .time_ms = 30000,
                                  .key = STR("KEY"),
                                  .name = STR("script@1"),
                                  .input = str_of(input),
                                  .ended = on_end}};
    snprintf(o->actor, sizeof o->actor, "actor-%d", ++count);
    o->run.actor = str_of(o->actor);
    return &o->run;
}

static void start(struct activity_pool *p, struct activity *a) {
    activity_start(p, a, false);
    activity_wake(p);
}

/* On this thread as far as it goes. */
static bool start_here(struct activity_pool *p, struct activity *a) {
    bool ended = activity_start(p, a, true);
    if (ended) on_end(a);
    return ended;
}

/* Runs a script to its end, with or without capabilities. */
static void run_script(struct activity_pool *p, struct outcome *o, yyjson_val *may, const char *input) {
    prepare(o, input)->policy = may;
    start(p, &o->run);
    wait_for(o);
}

static void expect_result(struct activity_pool *p, yyjson_val *may, const char *input, const char *result) {
    struct outcome o;
    run_script(p, &o, may, input);
    if (o.error.code[0]) fail_msg("%s: %s", o.error.code, o.error.message);
    assert_string_equal(o.result, result);
}

static void expect_error(struct activity_pool *p, const char *input, const char *code, bool retryable,
                         const char *text) {
    struct outcome o;
    run_script(p, &o, NULL, input);
    assert_string_equal(o.error.code, code);
    assert_int_equal(o.error.retryable, retryable);
    if (!strstr(o.error.message, text)) fail_msg("\"%s\" lacks \"%s\"", o.error.message, text);
}

/* ---- a server: /echo tells what it was sent, /never does not answer ---- */

static int server_fd, server_port;
static atomic_int waiting;

static void header_of(const char *request, const char *name, char *out, size_t cap) {
    const char *at = strcasestr(request, name);
    snprintf(out, cap, "%.*s", at ? (int)strcspn(at + strlen(name), "\r") : 0, at ? at + strlen(name) : "");
}

static void *serve(void *arg) {
    int fd = (int)(intptr_t)arg;
    char request[4096] = "", key[100], type[100], body[600], answer[1000];
    for (size_t n = 0; !strstr(request, "\r\n\r\n") || (strstr(request, "POST") && !strstr(request, "!"));) {
        ssize_t got = recv(fd, request + n, sizeof request - 1 - n, 0);
        if (got <= 0) break;
        n += (size_t)got;
        request[n] = 0;
    }
    const char *blank = strstr(request, "\r\n\r\n");
    header_of(request, "\r\nIdempotency-Key: ", key, sizeof key);
    header_of(request, "\r\nContent-Type: ", type, sizeof type);
    if (strstr(request, "/never")) {
        waiting++;
        recv(fd, request, 1, 0);
    } else if (blank) {
        int n = snprintf(body, sizeof body, "{\"key\":\"%s\",\"type\":\"%s\",\"bytes\":%zu}", key, type,
                         strlen(blank + 4));
        n = snprintf(answer, sizeof answer,
                     "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                     "Connection: close\r\n\r\n%s",
                     n, body);
        send(fd, answer, (size_t)n, MSG_NOSIGNAL);
    }
    close(fd);
    return NULL;
}

static void *accept_all(void *arg) {
    for (int fd; (fd = accept(server_fd, NULL, NULL)) >= 0;) {
        pthread_t t;
        pthread_create(&t, NULL, serve, (void *)(intptr_t)fd);
        pthread_detach(t);
    }
    return arg;
}

static pthread_t server;

/* The guest of attempt.h as WASM. */
static struct buf attempt_wasm(void) {
    return guest_build(
        "clang --target=wasm32 -std=c11 -O2 -mbulk-memory -nostdlib -Iinclude -I. -Wl,--no-entry %s -o %s", ".c",
        "#include <test/support/attempt.h>\n");
}

static struct exec_module *module_of(struct buf wasm) {
    struct buf artefact = {0};
    struct error err;
    exec_compile(engine, buf_view(&wasm), &artefact, &err);
    struct exec_module *m = exec_module_load(engine, STR_NONE, buf_view(&artefact), &err);
    if (!m) fail_msg("%s", err.message);
    buf_free(&wasm);
    buf_free(&artefact);
    return m;
}

static int open_all(void **state) {
    (void)state;
    struct error err;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof address;
    server_fd = socket(AF_INET, SOCK_STREAM, 0);
    bind(server_fd, (struct sockaddr *)&address, n);
    listen(server_fd, 1024);
    getsockname(server_fd, (struct sockaddr *)&address, &n);
    server_port = ntohs(address.sin_port);
    pthread_create(&server, NULL, accept_all, NULL);
    log_file = tmpfile();
    log_open(fileno(log_file), LOG_INFO);
    engine = exec_engine_new(300, 0, &err);
    script = NATIVE_ONLY ? exec_module_native(loom_run_attempt) : module_of(attempt_wasm());
    setenv("TEST_TOKEN", "top-secret", 1);
    yyjson_doc *config = json_parse(STR("{\"network\":{\"allowPrivate\":true},\"secrets\":{\"token\":"
                                        "{\"env\":\"TEST_TOKEN\",\"hosts\":[\"127.0.0.1\"]}}}"),
                                    &err);
    net = net_client_new(env_system(), yyjson_doc_get_root(config), ".", &err);
    yyjson_doc_free(config);
    grants = json_parse(STR("{\"network\":[\"127.0.0.1\"],\"secrets\":[\"token\"]}"), &err);
    if (!net || net_policy(yyjson_doc_get_root(grants), &policy, &err)) fail_msg("%s", err.message);
    return 0;
}

static int close_all(void **state) {
    (void)state;
    log_open(-1, LOG_FATAL);
    fclose(log_file);
    net_client_free(net);
    yyjson_doc_free(grants);
    exec_module_free(script);
    exec_engine_free(engine);
    shutdown(server_fd, SHUT_RDWR);
    pthread_join(server, NULL);
    close(server_fd);
    return 0;
}

/* ---- ops ---- */

static void runs_inline(void **state) {
    (void)state; /* A pure activity that is done within its slice has ended when activity_start() returns. */
    NEEDS_WASM();
    struct activity_pool *p = activity_pool_new(env_system(), net, 1);
    struct outcome o;
    bool ended = start_here(p, prepare(&o, "[[\"input\", null]]"));
    assert_true(!ended || o.ended == 1); /* a slow machine may need a second slice */
    wait_for(&o);
    assert_string_equal(o.result, "[[[\"input\",null]]]");
    struct activity *a = prepare(&o, "[[\"spin\", null]]");
    a->time_ms = 50;
    assert_false(start_here(p, a)); /* the rest of it runs on the pool */
    wait_for(&o);
    assert_string_equal(o.error.code, "timeout");
    activity_pool_free(p);
}

static void simple_ops(void **state) {
    (void)state; /* What needs no capability works without one. */
    struct activity_pool *p = activity_pool_new(env_system(), net, 2);
    struct outcome o;
    run_script(p, &o, NULL,
               "[[\"random\",null],[\"random\",3],[\"random\",0],[\"random\",257],[\"heartbeat\",1],[\"now\",null]]");
    double number, again;
    char hex[10], rest[100];
    long long now;
    assert_int_equal(sscanf(o.result,
                            "[%lf,\"%6[0-9a-f]\",{\"error\":\"invalid_argument\"},{\"error\":\"invalid_argument\"},"
                            "{\"cancelled\":false},%lld%s",
                            &number, hex, &now, rest),
                     4);
    assert_true(number >= 0 && number < 1);
    assert_true(llabs(now - (long long)env_system()->now_ms(env_system())) < 60000);
    run_script(p, &o, NULL, "[[\"random\",null]]");
    assert_int_equal(sscanf(o.result, "[%lf]", &again), 1);
    assert_true(number != again);
    run_script(p, &o, NULL, "[[\"log\",{\"level\":\"warn\",\"msg\":\"m\"}],[\"progress\",[5]],[\"log\",{}]]");
    assert_string_equal(o.result, "[null,null,null]");
    expect_notes(&o, "40 activity {\"level\":\"warn\",\"msg\":\"m\"}; 30 progress [5]; 30 activity {}; ");
    activity_pool_free(p);
}

static void endings(void **state) {
    (void)state; /* Each way to end tells what happened: fail, trap, unknown op, output that is not JSON. */
    NEEDS_WASM();
    struct activity_pool *p = activity_pool_new(env_system(), net, 2);
    expect_error(p, "[[\"fail\",{\"code\":\"no_money\",\"message\":\"none left\",\"retryable\":true}]]", "no_money",
                 true, "none left");
    expect_error(p, "[[\"fail\",7]]", "failed", false, "");
    expect_error(p, "[[\"trap\",null]]", "trap", false,
                 "wasm `unreachable` instruction executed in loom_activity_attempt");
    expect_error(p, "[[\"state.get\",\"\"]]", "unknown_op", false, "activities have no op \"state.get\"");
    expect_error(p, "[[\"return\",[1,2,,3]]]", "invalid_output", false, ": [1,2,,3]");
    expect_result(p, NULL, "[[\"return\", {\"a\" : 1.0} ]]", "{\"a\":1.0}");
    activity_pool_free(p);
}

static void nothing_returned(void **state) {
    (void)state; /* Coming out of run without an ending op returns null. */
    NEEDS_WASM();
    struct buf wasm = guest_wat("(module (memory (export \"memory\") 1) (func (export \"run\")))"), artefact = {0};
    struct activity_pool *p = activity_pool_new(env_system(), net, 1);
    struct outcome o;
    struct activity *a = prepare(&o, "null");
    exec_compile(engine, buf_view(&wasm), &artefact, NULL);
    struct exec_module *module = a->module = exec_module_load(engine, STR_NONE, buf_view(&artefact), NULL);
    assert_non_null(module);
    start_here(p, a);
    wait_for(&o);
    assert_string_equal(o.result, "null");
    activity_pool_free(p);
    exec_module_free(module);
    buf_free(&wasm);
    buf_free(&artefact);
}

/* ---- network ---- */

static void http_keys_and_bodies(void **state) {
    (void)
        state; /* The k-th request carries KEY-k unless the guest gave a key; a body that is no string goes as JSON. */
    struct activity_pool *p = activity_pool_new(env_system(), net, 2);
    struct outcome o;
    char input[1000];
    snprintf(input, sizeof input,
             "[[\"http\",{\"url\":\"http://127.0.0.1:%d/echo\"}],"
             "[\"http\",{\"url\":\"http://127.0.0.1:%d/echo\",\"headers\":{\"idempotency-KEY\":\"mine\"}}],"
             "[\"http\",{\"url\":\"http://127.0.0.1:%d/echo\",\"method\":\"POST\",\"body\":{\"a\":\"!\"}}],"
             "[\"http\",{\"url\":\"http://127.0.0.1:%d/echo\",\"method\":\"POST\",\"body\":\"text!\"}]]",
             server_port, server_port, server_port, server_port);
    run_script(p, &o, policy, input);
    assert_non_null(strstr(o.result, "{\"key\":\"KEY-1\",\"type\":\"\",\"bytes\":0}"));
    assert_non_null(strstr(o.result, "{\"key\":\"mine\",\"type\":\"\",\"bytes\":0}"));
    assert_non_null(strstr(o.result, "{\"key\":\"KEY-3\",\"type\":\"application/json\",\"bytes\":9}"));
    assert_non_null(strstr(o.result, "{\"key\":\"KEY-4\","));
    assert_non_null(strstr(o.result, "\"bytes\":5}"));
    assert_non_null(strstr(o.result, "\"status\":200"));
    activity_pool_free(p);
}

static void capabilities(void **state) {
    (void)state; /* What the definition does not grant is denied, and the activity may go on. */
    struct activity_pool *p = activity_pool_new(env_system(), net, 2);
    expect_result(p, NULL, "[[\"http\",{\"url\":\"http://127.0.0.1/\"}],[\"secret\",\"token\"],[\"secret\",1]]",
                  "[{\"error\":\"denied\"},{\"error\":\"denied\"},{\"error\":\"denied\"}]");
    expect_result(p, policy,
                  "[[\"http\",{\"url\":\"smtp://mail\"}],[\"http\",{\"url\":\"http://localhost:1/\"}],"
                  "[\"secret\",\"other\"],[\"secret\",\"token\"]]",
                  "[{\"error\":\"denied\"},{\"error\":\"denied\"},{\"error\":\"denied\"},\"{{secret:token}}\"]");
    expect_result(
        p, policy,
        "[[\"http\",{}],[\"http\",{\"url\":\"http://127.0.0.1/\",\"headers\":[]}],"
        "[\"http\",{\"url\":\"http://127.0.0.1/\",\"headers\":{\"a\":1}}]]",
        "[{\"error\":\"invalid_argument\"},{\"error\":\"invalid_argument\"},{\"error\":\"invalid_argument\"}]");
    activity_pool_free(p);
}

static char never_answered[200];

/* An attempt that waits for an answer that never comes. */
static struct activity *park(struct activity_pool *p, struct outcome *o, uint32_t ms) {
    if (!never_answered[0]) /* once: earlier attempts read it */
        snprintf(never_answered, sizeof never_answered,
                 "[[\"http\",{\"url\":\"http://127.0.0.1:%d/never\"}],[\"progress\",\"after\"]]", server_port);
    struct activity *a = prepare(o, never_answered);
    a->policy = policy;
    a->time_ms = ms;
    start(p, a);
    return a;
}

static void many_waits_one_thread(void **state) {
    (void)state; /* Attempts that wait for the network take no thread: one serves them all, and others meanwhile. */
    enum { COUNT = 100 };
    static struct outcome waits[COUNT];
    struct activity_pool *p = activity_pool_new(env_system(), net, 1);
    int before = waiting;
    for (int i = 0; i < COUNT; i++) park(p, &waits[i], 60000);
    while (waiting - before < COUNT) usleep(1000);
    expect_result(p, NULL, "[[\"heartbeat\",null]]", "[{\"cancelled\":false}]");
    activity_pool_free(p);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(waits[i].ended, 1);
        assert_string_equal(waits[i].error.code, "interrupted");
        assert_true(waits[i].error.retryable);
    }
}

static void deadlines(void **state) {
    (void)state; /* An attempt ends with `timeout` at its deadline, whether it runs or waits. */
    NEEDS_WASM();
    struct activity_pool *p = activity_pool_new(env_system(), net, 1);
    struct outcome running, parked;
    prepare(&running, "[[\"spin\",null]]")->time_ms = 50;
    park(p, &parked, 100);
    start_here(p, &running.run);
    wait_for(&running);
    wait_for(&parked);
    assert_string_equal(running.error.code, "timeout");
    assert_true(running.error.retryable);
    assert_string_equal(parked.error.code, "timeout");
    expect_notes(&parked, "");
    activity_pool_free(p);
}

static void cancelling(void **state) {
    (void)state; /* A cancelled attempt sees it by heartbeat, its requests are cut, and it ends with `cancelled`. */
    struct activity_pool *p = activity_pool_new(env_system(), net, 1);
    struct outcome parked, looping, beating;
    int before = waiting;
    struct activity *a = park(p, &parked, 60000);
    while (waiting == before) usleep(1000);
    activity_cancel(p, a);
    wait_for(&parked);
    assert_string_equal(parked.error.code, "cancelled");
    activity_cancel(p, a); /* once more, when it has ended: nothing happens */
    if (!NATIVE_ONLY) {    /* natively nothing spins */
        start(p, prepare(&looping, "[[\"progress\",1],[\"spin\",null]]"));
        wait_for_note(&looping);
        activity_cancel(p, &looping.run);
        wait_for(&looping);
        assert_string_equal(looping.error.code, "cancelled");
    }
    start(p, prepare(&beating, "[[\"beat\",null]]"));
    wait_for_note(&beating);
    activity_cancel(p, &beating.run);
    wait_for(&beating);
    assert_string_equal(beating.error.code, "cancelled");
    assert_int_equal(parked.ended + beating.ended, 2);
    activity_pool_free(p);
}

static void shutdown_ends_all(void **state) {
    (void)state; /* activity_pool_free() ends what runs, waits and is queued, each once, with `interrupted`. */
    NEEDS_WASM();
    static struct outcome o[60];
    struct activity_pool *p = activity_pool_new(env_system(), net, 2);
    for (int i = 0; i < 60; i++) {
        if (i % 3 == 0)
            park(p, &o[i], 60000);
        else if (i % 3 == 1)
            start_here(p, prepare(&o[i], "[[\"spin\",null]]"));
        else
            start(p, prepare(&o[i], "[[\"spin\",null]]"));
    }
    activity_pool_free(p);
    for (int i = 0; i < 60; i++) {
        assert_int_equal(o[i].ended, 1);
        assert_string_equal(o[i].error.code, "interrupted");
    }
}

static void more_attempts_than_slots(void **state) {
    (void)state; /* Attempts that find no free instance wait for one. */
    NEEDS_WASM();
    static struct outcome o[100];
    struct error err;
    struct exec_engine *e = exec_engine_new(3, 0, &err);
    struct buf wasm = attempt_wasm(), artefact = {0};
    exec_compile(e, buf_view(&wasm), &artefact, &err);
    struct exec_module *m = exec_module_load(e, STR_NONE, buf_view(&artefact), &err);
    assert_non_null(m);
    struct activity_pool *p = activity_pool_new(env_system(), net, 2);
    char input[200];
    snprintf(input, sizeof input, "[[\"http\",{\"url\":\"http://127.0.0.1:%d/echo\"}]]", server_port);
    for (int i = 0; i < 100; i++) {
        struct activity *a = prepare(&o[i], input);
        a->module = m;
        a->policy = policy;
        start(p, a);
    }
    for (int i = 0; i < 100; i++) wait_for(&o[i]);
    for (int i = 0; i < 100; i++) assert_string_equal(o[i].error.code, "");
    activity_pool_free(p);
    exec_module_free(m);
    exec_engine_free(e);
    buf_free(&wasm);
    buf_free(&artefact);
}

static bool no_thread(struct env *env, unsigned long *id, void *(*fn)(void *), void *arg) {
    (void)env, (void)id, (void)fn, (void)arg;
    return false;
}

static void waiting_for_an_instance(void **state) {
    (void)state; /* Attempts that wait for an instance are not in the way of one that has its own. */
    NEEDS_WASM();
    static struct outcome o[20];
    struct env one_thread = *env_system();
    struct error err;
    one_thread.thread = no_thread;
    struct exec_engine *e = exec_engine_new(1, 0, &err), *all = engine;
    engine = e;
    struct exec_module *m = module_of(attempt_wasm());
    engine = all;
    struct activity_pool *p = activity_pool_new(&one_thread, net, 1);
    char input[200];
    snprintf(input, sizeof input, "[[\"http\",{\"url\":\"http://127.0.0.1:%d/echo\"}]]", server_port);
    for (int i = 0; i < 20; i++) {
        struct activity *a = prepare(&o[i], i ? "[]" : input);
        a->module = m;
        a->policy = policy;
        activity_start(p, a, false);
    }
    for (int i = 0; i < 20; i++) activity_step(p, false);
    for (int i = 0; i < 10 && !o[0].ended;
         i++) { /* one go or a few: a slow machine cuts it short. The others are more */
        while (__atomic_load_n(&o[0].run.net_id, __ATOMIC_ACQUIRE)) usleep(100);
        activity_step(p, false);
    }
    assert_int_equal(o[0].ended, 1);
    while (activity_step(p, false)) continue;
    for (int i = 0; i < 20; i++) assert_string_equal(o[i].error.code, "");
    activity_pool_free(p);
    exec_module_free(m);
    exec_engine_free(e);
}

/* Counts its attempts in a static variable; takes much heap, and stack in a call that does not come back. */
static const char counter_source[] =
    "#include <loom/guest.h>\n"
    "static int attempts;\n"
    "__attribute__((noinline)) static void deeper(volatile char *above, loom_json input) {\n"
    "    volatile char room[2000] = {above ? *above : 1};\n"
    "    if (!above) deeper(room, input);\n"
    "    if (loom_is(input, \"trap\")) __builtin_trap();\n"
    "    if (loom_is(input, \"fail\")) loom_fail(\"no\", false, \"'%d'\", attempts);\n"
    "    loom_return(\"%d\", room[0] * attempts);\n"
    "}\n"
    "LOOM_ACTIVITY(counter) {\n"
    "    char *heap = loom_alloc(100000);\n"
    "    for (int i = 0; i < 100000; i++) heap[i] = 1;\n"
    "    attempts++;\n"
    "    if (loom_is(loom_input(), \"come out\")) return;\n"
    "    deeper(NULL, loom_input());\n"
    "}\n";

/* One attempt with reuse, on this thread as far as it goes. */
static void attempt(struct activity_pool *p, struct exec_module *m, const void *mark, const char *input,
                    struct outcome *o) {
    struct activity *a = prepare(o, input);
    a->module = m;
    a->reuse = mark;
    a->memory_mb = 1; /* what an attempt leaves would not fit ten times */
    start_here(p, a);
    wait_for(o);
}

static void reuse(void **state) {
    (void)
        state; /* With reuse an instance serves the next attempt with its mark, whatever the last one left of its stack
                  * and heap; not one with another mark or module, not after a trap. */
    NEEDS_WASM();
    static const char marks[41], *const a = &marks[0], *const b = &marks[40];
    const struct {
        const void *mark;
        const char *input, *result, *code;
    } cases[] = {
        {a, "null", "1", ""}, {a, "null", "2", ""},      {b, "null", "1", ""}, {a, "\"come out\"", "null", ""},
        {a, "null", "4", ""}, {a, "\"fail\"", "", "no"}, {a, "null", "6", ""}, {a, "\"trap\"", "", "trap"},
        {a, "null", "1", ""}, {b, "null", "2", ""},
    };
    struct activity_pool *p = activity_pool_new(env_system(), net, 1);
    struct exec_module *m = module_of(guest_c(counter_source));
    struct outcome o;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        attempt(p, m, cases[i].mark, cases[i].input, &o);
        assert_string_equal(o.error.code, cases[i].code);
        assert_string_equal(o.result, cases[i].result);
    }
    for (int i = 0; i < 200; i++) attempt(p, m, b, "null", &o);
    assert_string_equal(o.result, "202");
    struct exec_module *other = module_of(guest_c(counter_source));
    attempt(p, other, b, "null", &o);
    assert_string_equal(o.result, "1");
    for (int i = 1; i < 40; i++) { /* more marks than instances are kept */
        attempt(p, m, &marks[i], "null", &o);
        assert_string_equal(o.result, "1");
    }
    attempt(p, m, &marks[39], "null", &o);
    assert_string_equal(o.result, "2");
    attempt(p, m, &marks[1], "null", &o);
    assert_string_equal(o.result, "1");
    activity_pool_free(p);
    exec_module_free(other);
    exec_module_free(m);
}

static void reuse_without_sdk(void **state) {
    (void)state; /* A module that does not export `again` serves again only when it comes out of run(). */
    NEEDS_WASM();
    struct activity_pool *p = activity_pool_new(env_system(), net, 1);
    struct exec_module *m = module_of(guest_wat(
        "(module (import \"loom\" \"op\" (func $op (param i32 i32 i32 i32) (result i32))) (memory (export \"memory\") "
        "1)"
        "(data (i32.const 0) \"return0\") (global $n (mut i32) (i32.const 0)) (func (export \"run\")"
        "(global.set $n (i32.add (global.get $n) (i32.const 1))) (if (i32.eq (global.get $n) (i32.const 2)) (then"
        "(i32.store8 (i32.const 6) (i32.add (i32.const 48) (global.get $n)))"
        "(drop (call $op (i32.const 0) (i32.const 6) (i32.const 6) (i32.const 1))) unreachable))))"));
    static const char *const results[] = {"null", "2", "null", "2"};
    struct outcome o;
    for (int i = 0; i < 4; i++) {
        attempt(p, m, "mark", "null", &o);
        assert_string_equal(o.result, results[i]);
    }
    activity_pool_free(p);
    exec_module_free(m);
}

static void op_table(void **state) {
    (void)state; /* The op table documents each op. */
    int n = 0;
    for (const struct loom_op_doc *op = activity_ops; op->name; op++, n++) assert_true(op->argument[0] && op->doc[0]);
    assert_int_equal(n, 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_inline),
        cmocka_unit_test(simple_ops),
        cmocka_unit_test(endings),
        cmocka_unit_test(nothing_returned),
        cmocka_unit_test(http_keys_and_bodies),
        cmocka_unit_test(capabilities),
        cmocka_unit_test(many_waits_one_thread),
        cmocka_unit_test(deadlines),
        cmocka_unit_test(cancelling),
        cmocka_unit_test(shutdown_ends_all),
        cmocka_unit_test(more_attempts_than_slots),
        cmocka_unit_test(waiting_for_an_instance),
        cmocka_unit_test(reuse),
        cmocka_unit_test(reuse_without_sdk),
        cmocka_unit_test(op_table),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
