/* test_determinism.c: every guest that ships runs twice with the same answers, and asks for the same with the same memory. */
#include "runtime/runtime.h"
#include "support/guests.h"
#include "wasm/executor.h"
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* ---- a host whose answers depend on nothing but the questions ---- */

/* What any of the guests looks for in an input, a result or a body. */
#define THING                                                                                              \
    "{'id':7,'how':'charge','name':'Ada','email':'ada@example.com','userId':'u-1','to':'ada@example.com'," \
    "'subject':'s','text':'one two one','url':'https://example.com/','by':'Bob','approved':true,'full':true}"

struct host {
    const char *input, *config;
    int status; /* of each HTTP answer */
    uint64_t promises, numbers;
};

static void await_answer(yyjson_val *arg, struct buf *out) {
    yyjson_val *list = yyjson_obj_get(arg, "promises"), *id;
    bool any = str_eq(json_str(arg, "mode"), STR("any"));
    size_t i, n;
    yyjson_arr_foreach(list, i, n, id) if (!any || i == 0) buf_json(out, "%s{'promise':%v,'ok':" THING "}",
                                                                    any ? ""
                                                                    : i ? ","
                                                                        : "[",
                                                                    id);
    if (!any) buf_char(out, ']');
}

/* False: the op does not come back. */
static bool host_answer(struct host *h, struct str name, struct str arg, struct buf *out) {
    static const char *const ends[] = {"return", "finish", "fail", "continue"};
    static const char *const promising[] = {"activity", "actor.call", "child.spawn", "event.wait", "timer"};
    yyjson_doc *doc = yyjson_read(arg.p, arg.n, 0);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (str_eq(name, str_of(ends[i]))) return yyjson_doc_free(doc), false;
    for (size_t i = 0; i < sizeof promising / sizeof *promising; i++)
        if (str_eq(name, str_of(promising[i]))) buf_json(out, "%u", ++h->promises);
    if (str_eq(name, STR("await"))) await_answer(yyjson_doc_get_root(doc), out);
    if (str_eq(name, STR("random")) && arg.n && arg.p[0] != 'n') {
        buf_char(out, '\'');
        for (int64_t i = yyjson_get_sint(yyjson_doc_get_root(doc)); i > 0; i--) buf_json(out, "a%u", ++h->numbers % 10);
        buf_char(out, '\'');
    }
    if (str_eq(name, STR("http"))) buf_json(out, "{'status':%d,'headers':{},'body':" THING "}", (int64_t)h->status);
    if (str_eq(name, STR("input"))) buf_str(out, str_of(h->input));
    if (str_eq(name, STR("config"))) buf_str(out, str_of(h->config));
    if (str_eq(name, STR("self"))) buf_str(out, STR("{'id':'t/k','type':'t','key':'k','attempt':1}"));
    if (!out->n) buf_str(out, STR("null"));
    for (size_t i = 0; i < out->n; i++) out->p[i] = out->p[i] == '\'' ? '"' : out->p[i];
    yyjson_doc_free(doc);
    return true;
}

/* ---- runs ---- */

/* A line for each op: its name and argument, size and hash of the linear memory. */
static struct buf trace(struct exec_module *m, struct host h) {
    struct buf lines = {0}, out = {0};
    struct error err = {0};
    struct exec *x = exec_new(m, (struct exec_limits){.memory_mb = 64}, 7, &err);
    enum exec_state state;
    for (bool goes_on = true; goes_on;) {
        do state = exec_run(x, 1234);
        while (state == EXEC_SLICE);
        if (state == EXEC_TRAP) err = *exec_trap(x);
        if (state != EXEC_OP) fail_msg("the guest ended without a word: %s", err.message);
        struct str name, arg,
            memory = {(char *)wasmtime_memory_data(x->context, &x->memory),
                      wasmtime_memory_data_size(x->context, &x->memory)};
        exec_op(x, &name, &arg);
        buf_json(&lines, "%j %j %u %u\n", name, arg, (uint64_t)memory.n, hash64(memory, 0));
        buf_clear(&out);
        goes_on = host_answer(&h, name, arg, &out);
        if (goes_on) exec_answer(x, true, buf_view(&out));
    }
    exec_free(x);
    buf_free(&out);
    return lines;
}

static struct exec_engine *engines[2]; /* slices by the clock; slices by fuel, and short */

static struct exec_module *load_in(struct exec_engine *e, struct str wasm) {
    struct buf artefact = {0};
    struct exec_module *m = NULL;
    struct error err;
    if (exec_compile(e, wasm, &artefact, &err) || !(m = exec_module_load(e, STR_NONE, buf_view(&artefact), &err)))
        fail_msg("%s", err.message);
    buf_free(&artefact);
    return m;
}

/* Again in the slot that the first run has left, and with slices that end elsewhere. */
static void same_twice(const char *name, struct str wasm, const char *input, const char *config) {
    static const int statuses[] = {200, 201, 202, 404, 500};
    struct exec_module *m[] = {load_in(engines[0], wasm), load_in(engines[1], wasm)};
    size_t ops = 0;
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        struct host h = {input, config, statuses[i], 0, 0};
        struct buf first = trace(m[0], h), again = trace(m[0], h), sliced = trace(m[1], h);
        for (size_t k = 0; k < first.n; k++) ops += first.p[k] == '\n';
        if (!str_eq(buf_view(&first), buf_view(&again)) || !str_eq(buf_view(&first), buf_view(&sliced)))
            fail_msg("%s, status %d: first\n%.*s\nagain\n%.*s\nsliced\n%.*s", name, statuses[i], (int)first.n, first.p,
                     (int)again.n, again.p, (int)sliced.n, sliced.p);
        buf_free(&first);
        buf_free(&again);
        buf_free(&sliced);
    }
    print_message("%s: %zu ops\n", name, ops);
    exec_module_free(m[0]);
    exec_module_free(m[1]);
}

static char *thing;

static void fault_23_built_in_guests(void **state) {
    (void)state;
    struct buf workflow = {0};
    if (!path_read("examples/customer-onboarding/workflows/customer-onboarding.json", &workflow)) abort();
    buf_char(&workflow, '\0');
    for (size_t i = 0; i < builtin_module_count; i++) {
        const struct builtin_file *b = &builtin_modules[i];
        bool check = strcmp(b->path, "wdl-check") == 0;
        same_twice(b->path, (struct str){(const char *)b->start, (size_t)(b->end - b->start)},
                   check ? workflow.p : thing, workflow.p);
    }
    buf_free(&workflow);
}

static void fault_23_example_guests(void **state) {
    (void)state;
    glob_t sources;
    glob("examples/*/a*/*/*.c", 0, NULL, &sources);
    glob("test/guests/a*/*/*.c", GLOB_APPEND, NULL, &sources);
    assert_true(sources.gl_pathc >= 12);
    for (size_t i = 0; i < sources.gl_pathc; i++) {
        char include[256];
        snprintf(include, sizeof include, "#include <%s>\n", sources.gl_pathv[i]);
        struct buf wasm = guest_c(include);
        same_twice(sources.gl_pathv[i], buf_view(&wasm), thing, "null");
        buf_free(&wasm);
    }
    globfree(&sources);
}

static void fault_23_rust_example(void **state) {
    (void)state;
    struct buf wasm = {0};
    if (system("cargo build --quiet --locked --release --target wasm32-unknown-unknown --target-dir build/rust "
               "--manifest-path examples/rust-activity/activities/word-count/Cargo.toml") != 0)
        skip(); /* without that target, or the way to its crates */
    assert_true(path_read("build/rust/wasm32-unknown-unknown/release/word_count.wasm", &wasm));
    same_twice("word-count", buf_view(&wasm), thing, "null");
    buf_free(&wasm);
}

static int set_up(void **state) {
    (void)state;
    struct error err;
    thing = quoted(THING);
    engines[0] = exec_engine_new(1, 0, &err);
    engines[1] = exec_engine_new(1, 5000, &err);
    return engines[0] && engines[1] ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    exec_engine_free(engines[0]);
    exec_engine_free(engines[1]);
    free(thing);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fault_23_built_in_guests),
        cmocka_unit_test(fault_23_example_guests),
        cmocka_unit_test(fault_23_rust_example),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
