/* engine.h: a loom for tests: open it, ask it and wait for the answer. JSON is written with ' for ". */
#ifndef TEST_ENGINE_H
#define TEST_ENGINE_H

#include "base/base.h"
#include "guests.h"
#include <loom/loom.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#ifndef ENGINE_EVICT
#define ENGINE_EVICT false
#endif

static pthread_mutex_t engine_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t engine_changed = PTHREAD_COND_INITIALIZER;

struct answer {
    int status; /* 0: not yet */
    char *body, *id;
};

static void answer_free(struct answer *a) {
    free(a->body);
    free(a->id);
    *a = (struct answer){0};
}

static struct loom_str text(const char *z) {
    return (struct loom_str){z, z ? strlen(z) : 0};
}

static void on_reply(void *ctx, const struct loom_reply *reply) {
    struct answer *a = ctx;
    pthread_mutex_lock(&engine_lock);
    a->body = str_dup((struct str){reply->body.p, reply->body.n});
    a->id = str_dup((struct str){reply->message_id.p, reply->message_id.n});
    a->status = reply->status;
    pthread_cond_broadcast(&engine_changed);
    pthread_mutex_unlock(&engine_lock);
}

/* Submits; the answer comes into *a, which must stay. The body is in test's writing. */
static void submit(struct loom *l, struct loom_request req, struct answer *a) {
    char *body = req.body.p ? quoted(req.body.p) : NULL;
    *a = (struct answer){0};
    req.body = text(body);
    req.reply = on_reply;
    req.ctx = a;
    loom_submit(l, &req);
    free(body);
}

static void await_answer(struct answer *a) {
    pthread_mutex_lock(&engine_lock);
    while (!a->status) pthread_cond_wait(&engine_changed, &engine_lock);
    pthread_mutex_unlock(&engine_lock);
}

static bool answered(struct answer *a) {
    pthread_mutex_lock(&engine_lock);
    bool done = a->status != 0;
    pthread_mutex_unlock(&engine_lock);
    return done;
}

static struct answer ask(struct loom *l, struct loom_request req) {
    struct answer a;
    submit(l, req, &a);
    await_answer(&a);
    return a;
}

/* A request about the actor "type/key". */
static struct loom_request about(const char *op, const char *actor, const char *body) {
    const char *slash = strchr(actor, '/');
    return (struct loom_request){
        .op = op, .type = {actor, (size_t)(slash - actor)}, .key = text(slash + 1), .body = text(body), .at = -1};
}

static void check(struct answer *a, int status, const char *body) {
    char *want = body ? quoted(body) : NULL;
    if (a->status != status || (want && strcmp(a->body, want) != 0))
        fail_msg("expected %d %s, got %d %s", status, want ? want : "", a->status, a->body);
    free(want);
    answer_free(a);
}

static void expect_request(struct loom *l, struct loom_request req, int status, const char *body) {
    struct answer a = ask(l, req);
    check(&a, status, body);
}

static void expect(struct loom *l, const char *op, const char *actor, const char *in, int status, const char *out) {
    expect_request(l, about(op, actor, in), status, out);
}

static void check_code(struct answer *a, int status, const char *code) {
    char *mark = quoted("'code':'"), *at = strstr(a->body, mark);
    if (a->status != status || !at || strncmp(at + strlen(mark), code, strlen(code)) != 0)
        fail_msg("expected %d %s, got %d %s", status, code, a->status, a->body);
    free(mark);
    answer_free(a);
}

/* The answer is an error with this code. */
static void expect_code(struct loom *l, struct loom_request req, int status, const char *code) {
    struct answer a = ask(l, req);
    check_code(&a, status, code);
}

/* What a JSON pointer of the actor document holds, as text; the caller frees. */
static char *looked_up(struct loom *l, const char *actor, const char *pointer) {
    struct answer a = ask(l, about("get", actor, NULL));
    yyjson_doc *doc = yyjson_read(a.body, strlen(a.body), 0);
    struct buf out = {0};
    yyjson_val *v = yyjson_doc_ptr_get(doc, pointer);
    if (v) json_write(v, &out);
    buf_char(&out, '\0');
    yyjson_doc_free(doc);
    answer_free(&a);
    return out.p;
}

static void expect_field(struct loom *l, const char *actor, const char *pointer, const char *value) {
    char *got = looked_up(l, actor, pointer), *want = quoted(value);
    if (strcmp(got, want) != 0) fail_msg("%s%s is %s, expected %s", actor, pointer, got, want);
    free(got);
    free(want);
}

/* Waits until the actor document holds the value. */
static void wait_field(struct loom *l, const char *actor, const char *pointer, const char *value) {
    char *want = quoted(value);
    for (int i = 0;; i++) {
        char *got = looked_up(l, actor, pointer);
        bool same = strcmp(got, want) == 0;
        if (!same && i > 20000) fail_msg("%s%s stays %s, expected %s", actor, pointer, got, want);
        free(got);
        if (same) break;
        usleep(1000);
    }
    free(want);
}

static void wait_status(struct loom *l, const char *actor, const char *status) {
    char want[32];
    snprintf(want, sizeof want, "'%s'", status);
    wait_field(l, actor, "/status", want);
}

/* How many entries of this type the actor's journal has. */
static int entries_of(struct loom *l, const char *actor, const char *type) {
    struct answer a = ask(l, about("journal", actor, NULL));
    char mark[80];
    int n = 0;
    snprintf(mark, sizeof mark, "\"type\":\"%s\"", type);
    for (const char *p = a.body; (p = strstr(p, mark)) != NULL; p++) n++;
    answer_free(&a);
    return n;
}

static void deploy(struct loom *l, const char *kind_op, const char *name, const char *version, const char *doc,
                   bool replace) {
    if (NATIVE_ONLY) loom_close(l);
    NEEDS_WASM();
    struct answer a = ask(
        l, (struct loom_request){
               .op = kind_op, .type = text(name), .key = text(version), .body = text(doc), .replace = replace});
    if (a.status != 200 && a.status != 201) fail_msg("%s %s: %d %s", kind_op, name, a.status, a.body);
    answer_free(&a);
}

static void upload(struct loom *l, const char *name, const char *version, struct str wasm, bool replace) {
    if (NATIVE_ONLY) loom_close(l);
    NEEDS_WASM();
    struct answer a = {0};
    loom_submit(l, &(struct loom_request){.op = "module.put",
                                          .type = text(name),
                                          .key = text(version),
                                          .body = {wasm.p, wasm.n},
                                          .replace = replace,
                                          .reply = on_reply,
                                          .ctx = &a});
    await_answer(&a);
    if (a.status != 200 && a.status != 201) fail_msg("module %s: %d %s", name, a.status, a.body);
    answer_free(&a);
}

/* Deploys an actor type (or activity) NAME whose module NAME@1 is given; extra: further members of the definition. */
static void deploy_module(struct loom *l, bool activity, const char *name, struct str wasm, const char *extra) {
    char doc[2048];
    upload(l, name, "1", wasm, true);
    snprintf(doc, sizeof doc, "{'%s':'%s','version':'1','wasmBlobUrl':'module:%s@1'%s%s}",
             activity ? "activityName" : "actorType", name, name, extra ? "," : "", extra ? extra : "");
    deploy(l, activity ? "activity.put" : "actor-type.put", name, "1", doc, true);
}

static void deploy_wat(struct loom *l, const char *name, const char *wat, const char *extra) {
    struct buf wasm = guest_wat(wat);
    deploy_module(l, false, name, buf_view(&wasm), extra);
    buf_free(&wasm);
}

static struct loom *open_with(struct loom_config config) {
    char message[1200];
    config.evict_always |= ENGINE_EVICT;
    struct loom *l = loom_open(&config, message, sizeof message);
    if (!l) fail_msg("loom_open: %s", message);
    return l;
}

static struct loom *open_at(const char *store) {
    return open_with((struct loom_config){.store = store});
}

/* A folder for a store, removed by remove_folder. */
static char *make_folder(void) {
    char *dir = str_dup(STR("/tmp/loom-engine-XXXXXX"));
    if (!mkdtemp(dir)) abort();
    return dir;
}

static void remove_folder(char *dir) {
    char line[128];
    snprintf(line, sizeof line, "rm -rf %s", dir);
    if (system(line) != 0) abort();
    free(dir);
}

#endif
