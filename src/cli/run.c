/* run.c: work that has an end: `run` follows a workflow to its result, `test` runs the cases of a project.
 *
 * `run` goes to the Loom at --url if one answers. Otherwise it opens an engine in this process, with the project around
 * the file, and its store in memory unless --store says where. It follows the run by reading its journal, which works
 * the same on both sides of the door and across a restart of the server.
 *
 * test.json: [{"input", "expect" or "error": code, "key"?}], each case an actor of its own unless it names a key. An
 * activity is tested through a workflow of one step, as only actors can be called.
 */
#include "cli/cli.h"
#include "net/net.h"
#include "observe/observe.h"
#include <stdlib.h>
#include <string.h>

int run_start(const struct cli *c, const struct door *d, struct str name, const char *input, bool follow) {
    struct buf body = {0};
    struct answer a = {0};
    struct loom_request r = request_of(c, "run");
    r.type = loom_of(name);
    r.key = r.id; /* the run's key makes it happen once */
    r.id = (struct loom_str){0};
    bool ok = json_argument(input ? input : "{}", &body);
    r.body = loom_of(buf_view(&body));
    ok = ok && ask_ok(d, &r, &a);
    int code = ok ? EXIT_OK : EXIT_FAILED;
    r.id = loom_of(json_str(a.root, "messageId"));
    struct str id = json_str(a.root, "actorId");
    if (ok && follow && !c->o.json && !d->loom) /* here in this process no event can reach it */
        printf("%s%.*s%s  (an event for it: loom event %.*s EVENT JSON)\n", paint(BOLD), (int)id.n, id.p, paint(PLAIN),
               (int)id.n, id.p);
    request_actor(&r, id);
    if (ok && follow)
        code = await_reply(c, d, r, !c->o.json);
    else if (ok)
        print_json(a.root, !c->o.json);
    answer_free(&a);
    buf_free(&body);
    return code;
}

static bool is_file(const char *name) {
    size_t n = strlen(name);
    return n > 5 && strcmp(name + n - 5, ".json") == 0;
}

/* Deploys the file, if it is one, and runs it through the door. */
static int run_through(const struct cli *c, const struct door *d) {
    const char *target = c->args[0];
    struct buf name = {0};
    bool ok = !is_file(target) || workflow_put(target, d, c->o.request.replace || d->loom, SHOW_NOTHING, &name);
    int code = ok ? run_start(c, d, is_file(target) ? buf_view(&name) : str_of(target), c->o.input, true) : EXIT_FAILED;
    buf_free(&name);
    return code;
}

/* The same with an engine of our own and the project around the file. */
static int run_here(const struct cli *c) {
    const char *target = c->args[0], *slash = strrchr(target, '/');
    char *folder = is_file(target) && slash ? str_dup((struct str){target, (size_t)(slash - target)})
                                            : str_dup(STR("."));
    char *dir = project_find(folder);
    struct project p;
    struct loom_config config = {.store = c->o.store ? c->o.store : "memory"};
    struct door d = {0};
    bool ok = (dir || is_file(target)) ||
              fail("there is no project here that could have the workflow %s; go into one, start `loom dev`, or name a "
                   "file",
                   target) == EXIT_OK;
    ok = ok && project_open(&p, dir ? dir : ".", dir != NULL) && (!dir || project_build(&p, c->o.json));
    if (ok && (d.loom = project_engine(&p, config))) ok = project_deploy(&p, &d, true, SHOW_NOTHING);
    int code = d.loom && ok ? run_through(c, &d) : EXIT_FAILED;
    if (d.loom) loom_close(d.loom);
    project_close(&p);
    free(dir);
    free(folder);
    return code;
}

int command_run(struct cli *c) {
    struct door d = door_remote(c);
    struct answer a = {0};
    struct loom_request ready = {.op = "ready"};
    bool there = !c->o.store && ask(&d, &ready, &a);
    bool refused = !there && !c->o.store && (c->o.url || a.status);
    if (refused) print_problem(&d, NULL, a.status, a.root);
    answer_free(&a);
    log_open(2, LOG_ERROR);
    if (refused) return EXIT_FAILED;
    return there ? run_through(c, &d) : run_here(c);
}

/* ---- test ---- */

struct tested {
    struct door door;
    int64_t passed, failed;
};

/* Deploys a workflow of one step that runs the activity; answers its type. */
static struct str wrap_activity(struct tested *t, struct str activity, struct str input, int64_t number,
                                struct arena *a) {
    struct str text = arena_json(
        a,
        "{\"name\":\"test-%d\",\"version\":\"1\",\"steps\":[{\"type\":\"activity\",\"activity\":%q,"
        "\"input\":%j,\"output\":\"result\"}],\"output\":\"{{ result }}\"}",
        number, activity, input);
    struct loom_request r = {.op = "workflow.put",
                             .type = loom_of(arena_json(a, "test-%d", number)),
                             .key = {"1", 1},
                             .body = loom_of(text),
                             .replace = true,
                             .at = -1};
    struct answer answer;
    ask_ok(&t->door, &r, &answer);
    answer_free(&answer);
    return arena_json(a, "workflow.test-%d", number);
}

static void run_case(struct tested *t, const struct unit *u, yyjson_val *test, int64_t number) {
    struct arena mem = {0};
    struct answer a;
    struct str input = json_text_of(yyjson_obj_get(test, "input"), &mem), key = json_str(test, "key");
    bool actor = strcmp(unit_folder(u), "actors") == 0;
    int64_t run = t->passed + t->failed + 1;
    input = input.p ? input : STR("null");
    struct loom_request r = {.op = "call", .at = -1, .timeout_ms = 60000, .body = loom_of(input)};
    r.type = loom_of(actor ? u->name : wrap_activity(t, u->name, input, run, &mem));
    r.key = loom_of(key.p ? key : arena_json(&mem, "test-%d", run));
    bool good = ask(&t->door, &r, &a) && a.status == 200;
    yyjson_val *expect = yyjson_obj_get(test, "expect"), *code = yyjson_obj_get(test, "error");
    bool pass = code ? !good && yyjson_equals(yyjson_obj_get(a.root, "code"), code)
                     : good && (!expect || yyjson_equals(a.root, expect));
    printf("%s%s%s %s/%.*s, case %lld\n", paint(pass ? GREEN : RED), pass ? "ok" : "not ok", paint(PLAIN),
           unit_folder(u), (int)u->name.n, u->name.p, (long long)number);
    if (!pass) printf("    expected %s\n    got      %.*s\n", json_text_of(test, &mem).p, (int)a.body.n, a.body.p);
    t->passed += pass;
    t->failed += !pass;
    answer_free(&a);
    arena_free(&mem);
}

static const char cases_schema[] =
    "{'type':'array','items':{'type':'object','additionalProperties':false,'properties':{"
    "'input':{},'expect':{},'error':{'type':'string'},'key':{'type':'string'}}}}";

static bool test_unit(struct tested *t, const struct unit *u) {
    struct arena a = {0};
    struct buf text = {0};
    struct error err = {0};
    const char *path = arena_json(&a, "%s/test.json", u->folder).p;
    bool there = u->wasm && path_read(path, &text);
    yyjson_doc *doc = there ? json_parse(buf_view(&text), &err) : NULL;
    yyjson_val *cases = yyjson_doc_get_root(doc), *test;
    bool ok = !there || (doc && schema_check(cases_schema, cases, LOOM_E_INVALID_DOCUMENT, path, &err) == 0);
    if (!ok) fail("%s%s%s", doc ? "" : path, doc ? "" : ": ", err.message);
    size_t i, n;
    yyjson_arr_foreach(ok ? cases : NULL, i, n, test) run_case(t, u, test, (int64_t)i + 1);
    yyjson_doc_free(doc);
    buf_free(&text);
    arena_free(&a);
    return ok;
}

int command_test(struct cli *c) {
    struct project p;
    struct tested t = {0};
    log_open(2, LOG_ERROR);
    bool ok = project_open(&p, c->arg_count ? c->args[0] : ".", true) && project_build(&p, false);
    if (ok && (t.door.loom = project_engine(&p, (struct loom_config){.store = "memory"})))
        ok = project_deploy(&p, &t.door, true, SHOW_NOTHING);
    for (size_t i = 0; ok && t.door.loom && i < p.count; i++) ok = test_unit(&t, &p.units[i]);
    if (t.door.loom) loom_close(t.door.loom);
    project_close(&p);
    if (ok && t.door.loom)
        printf("%s%lld passed, %lld failed%s\n", paint(t.failed ? RED : GREEN), (long long)t.passed,
               (long long)t.failed, paint(PLAIN));
    return ok && t.door.loom && t.passed && !t.failed ? EXIT_OK : EXIT_FAILED;
}
