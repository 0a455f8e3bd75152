/* fuzz.c: what strangers' bytes meet, as targets of libFuzzer: one program, FUZZ=NAME chooses the row of the table at the
 * end. A target is more than "does not crash": must() states what has to hold for any input, and ends the program.
 *
 * Guests of Loom's own (the SDK's reader, WDL) run natively, on stacks of their own, their ops answered from here. The
 * targets with an engine send it what a client or a guest would; it evicts at every await, so each is a test of replay.
 */
#include "guests.h"
#include "http/internal.h"
#include "net/parts.h"
#include "runtime/runtime.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Noreturn void broken(const char *what, int line) {
    fprintf(stderr, "line %d: this must hold: %s\n", line, what);
    abort();
}

static bool same_text(const struct buf *a, const struct buf *b) {
    return str_eq(buf_view(a), buf_view(b));
}

/* The next line, without its end. */
static struct str next_line(struct str *rest) {
    return http_take_until(rest, '\n');
}

/* ---- native guests, with answers from here ---- */

struct play {
    struct str input;
    struct arena mem;
    struct buf said; /* each op and its argument, a line each */
    int ops, promises;
    bool failed; /* it ended by `fail` */
};

/* The answer to await: what each promise came to depends on its number only. */
static struct str settled(struct play *p, yyjson_val *arg) {
    static const char *const values[] = {"null", "7", "\"x\"", "[1,{\"a\":true}]", "{\"b\":{\"c\":-2.5e3}}"};
    bool any = str_eq(json_str(arg, "mode"), STR("any"));
    struct str all = STR("");
    yyjson_val *promise;
    size_t i, n;
    yyjson_arr_foreach(yyjson_obj_get(arg, "promises"), i, n, promise) {
        int64_t id = yyjson_get_sint(promise);
        struct str one = arena_json(&p->mem, "{\"promise\":%d,%s%s}", id, id % 4 ? "\"ok\":" : "\"error\":",
                                    id % 4 ? values[id % 5] : "{\"code\":\"no\",\"message\":\"\",\"retryable\":false}");
        all = arena_json(&p->mem, "%j%s%j", all, i ? "," : "", one);
        if (any) return one;
    }
    return arena_json(&p->mem, "[%j]", all);
}

/* False: the guest has ended. */
static bool answer(struct play *p, struct exec *x) {
    struct str name, arg, result = STR("null");
    exec_op(x, &name, &arg);
    yyjson_doc *doc = arg.n ? json_parse(arg, NULL) : NULL;
    yyjson_val *value = yyjson_doc_get_root(doc);
    must(doc || arg.n == 0 ||
         json_in(&p->mem, arg)); /* our guests write JSON, though it may be too deep or too large */
    buf_json(&p->said, "%j %j\n", name, arg);
    p->failed = str_eq(name, STR("fail"));
    bool end = p->failed || str_eq(name, STR("return"));
    if (str_eq(name, STR("input")) || str_eq(name, STR("config"))) result = p->input;
    if (str_eq(name, STR("await"))) result = settled(p, value);
    if (str_eq(name, STR("activity")) || str_eq(name, STR("child.spawn")) || str_eq(name, STR("timer")) ||
        str_eq(name, STR("event.wait")))
        result = arena_json(&p->mem, "%d", (int64_t)++p->promises);
    yyjson_doc_free(doc);
    exec_answer(x, true, result);
    must(++p->ops < 10000); /* it ends */
    return !end;
}

static void play(struct play *p, void (*run)(void), struct str input) {
    struct error err;
    struct exec_module *m = exec_module_native(run);
    struct exec *x = exec_new(m, (struct exec_limits){0}, 7, &err);
    *p = (struct play){.input = input};
    must(x);
    while (exec_run(x, 1234) == EXEC_OP && answer(p, x)) continue;
    exec_free(x);
    exec_module_free(m);
}

static void play_free(struct play *p) {
    arena_free(&p->mem);
    buf_free(&p->said);
}

/* ---- json: one verdict, one way of writing; yyjson, the schema checker and the SDK read the same ---- */

static void fuzz_json(struct str in) {
    struct error err;
    struct buf once = {0}, twice = {0};
    if (json_normalize(in, &once, &err) < 0) return;
    must(json_normalize(buf_view(&once), &twice, &err) == 0 && same_text(&once, &twice));
    char why[200];
    struct loom_schema *any = loom_schema_new("true", 4, why, sizeof why);
    must(loom_schema_check(any, once.p, once.n, why, sizeof why) == 0);
    loom_schema_free(any);
    yyjson_doc *doc = json_parse(buf_view(&once), &err);
    expected = yyjson_doc_get_root(doc);
    struct play p;
    play(&p, run_compare, buf_view(&once));
    play_free(&p);
    yyjson_doc_free(doc);
    buf_free(&once);
    buf_free(&twice);
}

/* ---- patch: [document, patch…]. All or nothing, and undone exactly ---- */

static void write_mut(yyjson_mut_doc *doc, struct buf *out) {
    buf_clear(out);
    must(json_write_mut(yyjson_mut_doc_get_root(doc), out));
}

/* `text` is a patch that makes `doc` equal to `want`. */
static void leads_to(yyjson_mut_doc *doc, const struct buf *text, const struct buf *want) {
    struct error err;
    struct buf now = {0};
    yyjson_doc *patch = json_parse(buf_view(text), &err), *w = json_parse(buf_view(want), &err);
    must(patch && patch_apply(doc, yyjson_doc_get_root(patch), NULL, &err) == 0);
    write_mut(doc, &now);
    yyjson_doc *n = json_parse(buf_view(&now), &err);
    must(yyjson_equals(yyjson_doc_get_root(n), yyjson_doc_get_root(w)));
    yyjson_doc_free(n);
    yyjson_doc_free(w);
    yyjson_doc_free(patch);
    buf_free(&now);
}

static void patch_one(yyjson_mut_doc *doc, yyjson_val *patch) {
    struct error err;
    struct buf before = {0}, after = {0}, inverse = {0};
    write_mut(doc, &before);
    int rc = patch_apply(doc, patch, &inverse, &err);
    write_mut(doc, &after);
    if (rc < 0) {
        must(same_text(&before, &after) && inverse.n == 0);
    } else {
        yyjson_doc *from = json_parse(buf_view(&after), &err), *to = json_parse(buf_view(&before), &err);
        must(from && to); /* it is still what the door would let in: not too deep, no name twice */
        yyjson_mut_doc *copy = yyjson_doc_mut_copy(from, NULL);
        leads_to(copy, &inverse, &before);
        yyjson_mut_doc_free(copy);
        yyjson_doc_free(from);
        yyjson_doc_free(to);
    }
    buf_free(&before);
    buf_free(&after);
    buf_free(&inverse);
}

static void fuzz_patch(struct str in) {
    yyjson_doc *doc = json_parse(in, NULL);
    yyjson_val *list = yyjson_doc_get_root(doc), *v;
    size_t i, n;
    yyjson_mut_doc *target = yyjson_mut_doc_new(NULL);
    yyjson_mut_doc_set_root(target, yyjson_val_mut_copy(target, yyjson_arr_get_first(list)));
    yyjson_arr_foreach(list, i, n, v) {
        if (i > 0) patch_one(target, v);
    }
    yyjson_mut_doc_free(target);
    yyjson_doc_free(doc);
}

/* ---- template: [names, template]. What the check at upload passes can be computed, and comes out as JSON ---- */

static void fuzz_template(struct str in) {
    struct buf text = {0};
    if (json_normalize(in, &text, NULL) < 0) return;
    struct play p;
    play(&p, run_template, buf_view(&text));
    play_free(&p);
    buf_free(&text);
}

/* ---- wdl: a document that schema and check pass runs to its end, twice in the same way ---- */

static struct loom_schema *wdl_schema(void) {
    static struct loom_schema *schema;
    char why[200];
    for (size_t i = 0; !schema; i++) {
        const struct builtin_file *f = &builtin_files[i];
        if (strcmp(f->path, "wdl/schema.json") == 0)
            schema = loom_schema_new((const char *)f->start, (size_t)(f->end - f->start), why, sizeof why);
    }
    return schema;
}

static void fuzz_wdl(struct str in) {
    struct buf doc = {0};
    char why[200];
    if (json_normalize(in, &doc, NULL) < 0) return;
    if (loom_schema_check(wdl_schema(), doc.p, doc.n, why, sizeof why) == 0) {
        struct play check, run, again;
        play(&check, loom_run_wdl_check, buf_view(&doc));
        if (!check.failed) {
            play(&run, loom_run_wdl, buf_view(&doc));
            play(&again, loom_run_wdl, buf_view(&doc));
            must(same_text(&run.said, &again.said));
            play_free(&run);
            play_free(&again);
        }
        play_free(&check);
    }
    buf_free(&doc);
}

/* ---- http: a head, and the body of a chunked request. However the bytes are cut, they are read the same ---- */

static void decode(struct str in, size_t step, struct buf *body, int *verdict) {
    struct buf raw = {0};
    struct http_chunks c = {0};
    *verdict = 0;
    buf_str(&raw, in);
    for (size_t n = 0; n < in.n && *verdict == 0;) {
        n = n + step < in.n ? n + step : in.n;
        *verdict = http_chunks_decode(&c, raw.p, n);
        must(c.out <= c.in && c.in <= n);
    }
    if (*verdict == 1) buf_add(body, raw.p, c.out);
    buf_free(&raw);
}

static void fuzz_head(struct str text) {
    struct http_head head, again;
    struct error err;
    struct buf copy = {0};
    int status = http_head_parse(text, &head, &err);
    must(status == 0 || (status >= 400 && status < 600));
    if (status) return;
    const char *version = (const char *)memchr(text.p, '\r', text.n) - 8;
    buf_json(&copy, "%j %j?%j %j\r\n", head.method, head.path, head.query, (struct str){version, 8});
#define X(id, name) \
    if (head.headers[HTTP_##id].p) buf_json(&copy, "%s: %j\r\n", name, head.headers[HTTP_##id]);
    HTTP_HEADERS(X)
#undef X
    buf_str(&copy, STR("\r\n"));
    must(http_head_end(buf_view(&copy)) == copy.n && http_head_parse(buf_view(&copy), &again, &err) == 0);
    must(head.content_length == again.content_length && head.chunked == again.chunked);
    must(str_eq(head.path, again.path) && str_eq(head.query, again.query));
    struct str path = {(char *)(uintptr_t)copy.p + head.method.n + 1, head.path.n};
    if (http_unescape(&path, false)) must(path.n <= head.path.n);
    buf_free(&copy);
}

static void fuzz_http(struct str in) {
    size_t n = http_head_end(in);
    for (size_t i = 0; i < n; i++) must(http_head_end((struct str){in.p, i}) == 0);
    if (n) fuzz_head((struct str){in.p, n});
    struct str rest = {in.p + n, in.n - n};
    struct buf whole = {0}, parts = {0};
    int one, other;
    decode(rest, rest.n + 1, &whole, &one);
    decode(rest, 1, &parts, &other);
    must(one == other && same_text(&whole, &parts));
    buf_free(&whole);
    buf_free(&parts);
}

/* ---- journal: a document's line, then the entries of a row a line. Damaged, or what a live actor would be ---- */

static struct actor *new_actor(void) {
    return actor_new(STR("n/t/k"));
}

static void same_turns(const struct turn *a, const struct turn *b) {
    must((a != NULL) == (b != NULL));
    if (!a) return;
    must(a->number == b->number && a->entries == b->entries && a->now == b->now);
    must(a->promise_count == b->promise_count && a->cancel_at == b->cancel_at);
    for (size_t i = 0; i < a->promise_count; i++) {
        const struct promise *p = &a->promises[i], *q = &b->promises[i];
        must(p->kind == q->kind && p->ok == q->ok && p->done_at == q->done_at && p->attempt == q->attempt);
        must(str_eq(p->result, q->result));
    }
}

/* Appended live, its row loaded into another one: both are the same, and the guest that repeats its ops is live. */
static void fold_twice(struct str entries) {
    struct actor *live = new_actor(), *loaded = new_actor();
    struct arena mem = {0};
    struct error err;
    yyjson_doc *doc = json_parse(entries, NULL);
    yyjson_val *entry;
    size_t i, n;
    yyjson_arr_foreach(yyjson_doc_get_root(doc), i, n, entry) {
        if (!yyjson_is_obj(entry) || yyjson_obj_size(entry) == 0 || yyjson_obj_get(entry, "at")) continue;
        struct str text = arena_json(&mem, "%v", entry);
        journal_append(live, (int64_t)i, (struct str){text.p, text.n - 1});
    }
    if (live->tail.n > 0) must(journal_load(loaded, journal_key(&mem, loaded->full, 1), journal_row(live), &err) == 0);
    must(live->cursor == loaded->cursor && live->at == loaded->at && live->turns == loaded->turns);
    same_turns(live->turn, loaded->turn);
    while (loaded->turn && journal_replaying(loaded)) {
        struct str op = arena_dup(&mem, loaded->turn->ops[loaded->turn->op_next].text);
        must(journal_repeat(loaded, op, &err) == 1);
    }
    yyjson_doc_free(doc);
    arena_free(&mem);
    actor_free(live);
    actor_free(loaded);
}

static void fuzz_journal(struct str in) {
    struct actor *a = new_actor(), *b = new_actor();
    struct buf text = {0}, again = {0};
    struct arena mem = {0};
    struct error err;
    struct str document = next_line(&in);
    int read = actor_read(a, document, &err);
    uint64_t all = a->cursor | a->from | a->state_at | a->turns | a->last_turn | a->last_row;
    if (read == 0 && all <= INT64_MAX) { /* else Loom has not written it */
        struct buf state = {0};
        must(json_write_mut(yyjson_mut_doc_get_root(a->state), &state));
        actor_row(a, buf_view(&state), &text);
        must(actor_read(b, buf_view(&text), &err) == 0);
        actor_row(b, buf_view(&state), &again);
        must(same_text(&text, &again));
        buf_free(&state);
    }
    uint64_t number = a->from;
    while (in.n) {
        struct str line = next_line(&in);
        fold_twice(line);
        char prev[17];
        snprintf(prev, sizeof prev, "%016llx", (unsigned long long)a->chain);
        struct str row = arena_json(&mem, "{\"prev\":%z,\"entries\":%j}", prev, line);
        if (journal_load(a, journal_key(&mem, a->full, number), row, &err) < 0) {
            must(strcmp(err.code, "damaged") == 0);
            break;
        }
        number = a->cursor + 1;
    }
    arena_free(&mem);
    buf_free(&text);
    buf_free(&again);
    actor_free(a);
    actor_free(b);
}

/* ---- module: refused, or it runs within its limits whatever it asks for ---- */

static void fuzz_module(struct str in) {
    static struct exec_engine *e;
    struct buf artefact = {0};
    struct error err;
    if (!e) e = exec_engine_new(4, 0, &err);
    if (exec_compile(e, in, &artefact, &err) == 0) {
        struct exec_module *m = exec_module_load(e, STR_NONE, buf_view(&artefact), &err);
        must(m);
        struct exec *x = exec_new(m, (struct exec_limits){.memory_mb = 2, .cpu_ms = 20}, 7, &err);
        enum exec_state s = EXEC_SLICE;
        for (int i = 0; x && i < 1000 && (s == EXEC_OP || s == EXEC_SLICE); i++) {
            s = exec_run(x, 1234);
            if (s == EXEC_OP) exec_answer(x, i % 3 > 0, STR("[1,2]"));
            if (s == EXEC_TRAP) err = *exec_trap(x);
        }
        exec_free(x);
        exec_module_free(m);
    }
    buf_free(&artefact);
}

/* ---- destination: a URL. However an address is spelled, what is checked is what would be connected to ---- */

static void fuzz_destination(struct str in) {
    struct arena mem = {0};
    struct error err;
    struct destination to, again;
    struct in_addr loose, strict;
    if (destination_find(NULL, "http", in, &mem, &to, &err) == 0) {
        must(str_starts(to.url, to.tls ? STR("https://") : STR("http://")) && to.reach == REACH_PUBLIC);
        must(destination_find(NULL, "http", to.url, &mem, &again, &err) == 0);
        must(str_eq(to.host, again.host) && str_eq(to.place, again.place) && to.tls == again.tls);
        if (inet_aton(to.host.p, &loose))
            must(inet_pton(AF_INET, to.host.p, &strict) == 1 && loose.s_addr == strict.s_addr);
        yyjson_doc *rules = json_parse(arena_json(&mem, "[%q]", to.host), NULL);
        must(host_listed(yyjson_doc_get_root(rules), &to));
        yyjson_doc_free(rules);
    }
    arena_free(&mem);
}

/* loom.json: refused with a field's name, or a client that starts and ends. */
static void fuzz_project(struct str in) {
    struct error err = {0};
    yyjson_doc *doc = json_parse(in, NULL);
    if (doc && !memmem(in.p, in.n, "\"file\"", 6) && !memmem(in.p, in.n, "\\u", 2)) { /* no paths made by chance */
        struct net_client *c = net_client_new(env_system(), yyjson_doc_get_root(doc), "/nonexistent", &err);
        must(c || strcmp(err.code, "invalid_document") == 0);
        if (c) net_client_free(c);
    }
    yyjson_doc_free(doc);
}

/* ---- with an engine: opened anew now and then, because it keeps what it was given ---- */

enum { RUNS_PER_ENGINE = 500 };

static struct loom *engine;
static struct http_server *server;
static unsigned runs;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

struct reply {
    int status;
    struct buf body;
};

static void on_reply(void *ctx, const struct loom_reply *r) {
    struct reply *to = ctx;
    pthread_mutex_lock(&lock);
    to->status = r->status;
    buf_str(&to->body, (struct str){r->body.p, r->body.n});
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* Waits for the reply, or ms milliseconds. */
static bool replied(struct reply *r, int ms) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)ms * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&lock);
    while (!r->status && pthread_cond_timedwait(&changed, &lock, &until) == 0) continue;
    bool done = r->status != 0;
    pthread_mutex_unlock(&lock);
    return done;
}

static void submit(struct loom_request q, struct reply *r) {
    *r = (struct reply){0};
    q.reply = on_reply;
    q.ctx = r;
    loom_submit(engine, &q);
}

static int ask(struct loom_request q, struct buf *body) {
    struct reply r;
    submit(q, &r);
    must(replied(&r, 20000));
    if (body)
        *body = r.body;
    else
        buf_free(&r.body);
    must(r.status >= 200 && r.status != 500);
    return r.status;
}

static void engine_close(void) {
    if (server) http_drain(server);
    if (engine) loom_close(engine);
    if (server) http_stop(server);
    server = NULL;
    engine = NULL;
}

static void engine_open(bool door) {
    char message[1200];
    struct error err;
    if (runs++ % RUNS_PER_ENGINE) return;
    if (runs == 1) atexit(engine_close);
    engine_close();
    engine = loom_open(&(struct loom_config){.store = "memory",
                                             .evict_always = true,
                                             .threads = 1,
                                             .flushed = door ? http_flushed : NULL,
                                             .flushed_ctx = &server},
                       message, sizeof message);
    must(engine);
    if (door) must(http_start(&(struct http_config){.listen = "127.0.0.1:0", .loom = engine}, &server, &err) == 0);
}

/* definition: a definition or workflow is refused, or deployed as it was written. */
static void fuzz_definition(struct str in) {
    engine_open(false);
    struct buf text = {0}, got = {0};
    if (json_normalize(in, &text, NULL) < 0) return;
    yyjson_doc *doc = json_parse(buf_view(&text), NULL);
    yyjson_val *v = yyjson_doc_get_root(doc);
    struct str activity = json_str(v, "activityName"), actor = json_str(v, "actorType"),
               name = activity.p ? activity
                      : actor.p  ? actor
                                 : json_str(v, "name"),
               version = json_str(v, "version");
    const char *kind = activity.p ? "activity" : actor.p ? "actor-type" : "workflow";
    struct loom_request q = {.op = activity.p ? "activity.put"
                                   : actor.p  ? "actor-type.put"
                                              : "workflow.put",
                             .type = {name.p, name.n},
                             .key = {version.p, version.n},
                             .body = {text.p, text.n},
                             .replace = true};
    int status = ask(q, NULL);
    if (status < 400) {
        struct loom_request back = {.op = "definition", .type = {kind, strlen(kind)}, .key = q.type, .version = q.key};
        must(ask(back, &got) == 200 && same_text(&text, &got));
    }
    yyjson_doc_free(doc);
    buf_free(&text);
    buf_free(&got);
}

/* ops: lines "OP ARGUMENT", asked by an actor word for word. It never ends as one that does not repeat itself. */
static void fuzz_ops(struct str in) {
    char key[20];
    struct reply call;
    struct buf document = {0};
    engine_open(false);
    script = in;
    snprintf(key, sizeof key, "k%u", runs);
    snprintf(script_input, sizeof script_input, "{\"run\":%u}", runs + 1000000);
    struct loom_request q = {.op = "call", .type = {"fuzz", 4}, .key = {key, strlen(key)}, .timeout_ms = 60000};
    q.body = (struct loom_str){script_input, strlen(script_input)};
    submit(q, &call);
    for (int i = 0; !replied(&call, i ? 1 : 4); i++) { /* it waits for what will not come */
        must(i < 2000);
        struct loom_request cancel = {.op = "cancel", .type = q.type, .key = q.key, .body = {"null", 4}};
        ask(cancel, NULL);
    }
    must(call.status != 500);
    struct loom_request get = {.op = "get", .type = q.type, .key = q.key};
    if (ask(get, &document) == 200) {
        yyjson_doc *doc = json_parse(buf_view(&document), NULL);
        must(!str_eq(json_str(yyjson_doc_get_root(doc), "status"), STR("paused"))); /* as a mismatch leaves it */
        yyjson_doc_free(doc);
    }
    buf_free(&document);
    buf_free(&call.body);
}

/* server: bytes on a connection. Each answer is HTTP and no fault of Loom's; afterwards it still serves. */
static struct buf talk(struct str bytes) {
    struct buf got = {0};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)http_port(server))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){.tv_usec = 50000}, sizeof(struct timeval));
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1}, sizeof(struct linger)); /* no TIME_WAIT */
    (void)!send(fd, bytes.p, bytes.n, MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    for (ssize_t n = 1; n > 0; got.n += (size_t)n) {
        n = recv(fd, buf_reserve(&got, 4096), 4096, 0);
        if (n < 0) break;
    }
    close(fd);
    return got;
}

static void fuzz_server(struct str in) {
    engine_open(true);
    struct buf got = talk(in);
    must(got.n == 0 || (str_starts(buf_view(&got), STR("HTTP/1.1 ")) && got.n > 12));
    must(!memmem(got.p, got.n, "HTTP/1.1 500", 12));
    buf_free(&got);
    if (runs % 16) return;
    got = talk(STR("GET /healthz HTTP/1.0\r\n\r\n"));
    must(str_starts(buf_view(&got), STR("HTTP/1.1 200 ")));
    buf_free(&got);
}

/* ---- the table ---- */

static const struct target {
    const char *name;
    void (*run)(struct str in);
} targets[] = {
    {"json", fuzz_json},         {"patch", fuzz_patch},
    {"template", fuzz_template}, {"wdl", fuzz_wdl},
    {"http", fuzz_http},         {"server", fuzz_server},
    {"ops", fuzz_ops},           {"definition", fuzz_definition},
    {"project", fuzz_project},   {"destination", fuzz_destination},
    {"journal", fuzz_journal},   {"module", fuzz_module},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerInitialize(int *argc, char ***argv);
static const struct target *target;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *name = getenv("FUZZ");
    (void)argc, (void)argv;
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++)
        if (name && strcmp(targets[i].name, name) == 0) target = &targets[i];
    if (!target) {
        fprintf(stderr, "FUZZ=NAME chooses the target:");
        for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) fprintf(stderr, " %s", targets[i].name);
        fprintf(stderr, "\n");
        exit(1);
    }
    loom_register_actor("fuzz", run_script);
    loom_register_actor("echo", run_echo);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    target->run((struct str){(const char *)data, n});
    return 0;
}
