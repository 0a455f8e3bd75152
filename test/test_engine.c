/* The semantics of turns, one sentence per test. Most guests are scripts (support/script.h); test_engine_evict.c runs the
 * same tests with WASM in place of native scripts and with a replay at every await. */
#include "observe/observe.h"
#include "storage/storage.h"
#include "support/engine.h"
#include "support/script.h"
#include <errno.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <sys/wait.h>

/* A loom with the script as actor type `script` (native or WASM), `wasm` and as activity `act`. */
static struct loom *open_scripts(const char *store) {
    struct loom *l = open_at(store);
    if (NATIVE_ONLY) return l; /* main() has registered them */
    deploy_module(l, false, "wasm", script_wasm(), NULL);
    deploy_module(l, true, "act", script_wasm(), NULL);
    if (ENGINE_EVICT) deploy_module(l, false, "script", script_wasm(), NULL);
    return l;
}

static void expect_call(struct loom *l, const char *actor, const char *in, const char *out) {
    expect(l, "call", actor, in, 200, out);
}

/* ---- deduplication ---- */

static struct loom_request with_id(struct loom_request req, const char *id) {
    req.id = text(id);
    return req;
}

static void same_message_same_reply(void **state) {
    (void)state; /* A message id that was used answers with its first reply, and the guest does not run again. */
    struct loom *l = open_scripts("memory");
    struct loom_request add = with_id(
        about("call", "script/a", "[['state.patch',[{'op':'add','path':'/n','value':1}]],['random',4]]"), "m1");
    struct answer first = ask(l, add), second = ask(l, add);
    assert_int_equal(first.status, 200);
    assert_string_equal(first.body, second.body);
    assert_string_equal(first.id, "m1");
    answer_free(&first);
    answer_free(&second);
    assert_int_equal(entries_of(l, "script/a", "turn_started"), 1);
    struct loom_request bad = with_id(about("call", "script/a", "[['fail',{'code':'odd','message':'m'}]]"), "m2");
    expect_code(l, bad, 422, "odd");
    expect_code(l, bad, 422, "odd");
    assert_int_equal(entries_of(l, "script/a", "turn_started"), 2);
    loom_close(l);
}

static void same_message_in_flight(void **state) {
    (void)state; /* While the first is in flight a duplicate waits for its reply; both get it. */
    struct loom *l = open_scripts("memory");
    struct answer first, second;
    struct loom_request wait = with_id(
        about("call", "script/a", "[['event.wait',{'type':'go'}],['await',{'promises':[1],'mode':'any'}]]"), "m");
    submit(l, wait, &first);
    submit(l, wait, &second);
    wait_status(l, "script/a", "suspended");
    expect_request(l, with_id(about("event", "script/a", "7"), "go"), 202, NULL);
    await_answer(&first);
    await_answer(&second);
    check(&first, 200, "[1,{'promise':1,'ok':7}]");
    check(&second, 200, "[1,{'promise':1,'ok':7}]");
    loom_close(l);
}

static void same_id_other_input(void **state) {
    (void)
        state; /* A used id with another input is a conflict, before and after the reply, for calls, sends and events. */
    struct loom *l = open_scripts("memory");
    expect_request(l, with_id(about("call", "script/a", "[]"), "m"), 200, "[]");
    expect_code(l, with_id(about("call", "script/a", "[['now']]"), "m"), 409, "idempotency_conflict");
    expect_code(l, with_id(about("send", "script/a", "[['now']]"), "m"), 409, "idempotency_conflict");
    struct loom_request event = with_id(about("event", "script/a", "1"), "go");
    event.event_id = text("m");
    expect_code(l, event, 409, "idempotency_conflict");
    event.event_id = text("e");
    expect_request(l, event, 202, NULL);
    expect_request(l, event, 202, NULL);
    event.body = text("2");
    expect_code(l, event, 409, "idempotency_conflict");
    expect_request(l, with_id(about("call", "script/b", "[['self']]"), "m"), 200, NULL); /* ids are per actor */
    loom_close(l);
}

/* ---- events ---- */

static void send_event(struct loom *l, const char *actor, const char *type, const char *data) {
    expect_request(l, with_id(about("event", actor, data), type), 202, NULL);
}

static void events_wait_for_a_wait(void **state) {
    (void)
        state; /* An event never starts a turn; it waits, past other mail, for a wait of its type, also of a later turn. */
    struct loom *l = open_scripts("memory");
    send_event(l, "script/a", "go", "1");
    send_event(l, "script/a", "go", "2");
    send_event(l, "script/a", "other", "3");
    expect_field(l, "script/a", "/status", "'idle'");
    assert_int_equal(entries_of(l, "script/a", "turn_started"), 0);
    expect_call(l, "script/a", "[]", "[]");
    expect_call(l, "script/a", "[['event.wait',{'type':'go'}],['await',{'promises':[1],'mode':'any'}]]",
                "[1,{'promise':1,'ok':1}]");
    expect_call(
        l, "script/a",
        "[['event.wait',{'type':'go'}],['event.wait',{'type':'other'}],['await',{'promises':[1,2],'mode':'all'}]]",
        "[1,2,[{'promise':1,'ok':2},{'promise':2,'ok':3}]]");
    loom_close(l);
}

static void waits_in_order(void **state) {
    (void)state; /* Waits of one type are served in the order of their ops, events in the order of their arrival. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    submit(l,
           about("call", "script/a",
                 "[['event.wait',{'type':'x'}],['event.wait',{'type':'x'}],['event.wait',{'type':'x'}],['await',{'"
                 "promises':[3,1,2],'mode':'all'}]]"),
           &a);
    wait_status(l, "script/a", "suspended");
    for (int i = 1; i <= 3; i++) {
        char data[2] = {(char)('0' + i)};
        send_event(l, "script/a", "x", data);
    }
    await_answer(&a);
    check(&a, 200, "[1,2,3,[{'promise':3,'ok':3},{'promise':1,'ok':1},{'promise':2,'ok':2}]]");
    loom_close(l);
}

static void event_timeout(void **state) {
    (void)
        state; /* A wait with timeoutMs fails with `timeout` and says what did not come; an event that comes later waits for another wait. */
    struct loom *l = open_scripts("memory");
    expect_call(
        l, "script/a", "[['event.wait',{'type':'x','timeoutMs':5}],['await',{'promises':[1],'mode':'any'}]]",
        "[1,{'promise':1,'error':{'code':'timeout','message':'waited 5 ms in vain for event x','retryable':true}}]");
    send_event(l, "script/a", "x", "1");
    expect_call(l, "script/a",
                "[['event.wait',{'type':'x','timeoutMs':60000}],['await',{'promises':[1],'mode':'any'}]]",
                "[1,{'promise':1,'ok':1}]");
    loom_close(l);
}

/* ---- await ---- */

static void await_modes(void **state) {
    (void)state; /* `any` answers with the promise that was settled first, `all` with all in the order asked for. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a",
                "[['timer',{'delayMs':60000}],['timer',{'delayMs':1}],['await',{'promises':[1,2],'mode':'any'}],['"
                "timer',{'delayMs':0}],['await',{'promises':[3,2],'mode':'any'}],"
                "['await',{'promises':[3,2],'mode':'all'}],['await',{'promises':[2]}]]",
                "[1,2,{'promise':2,'ok':null},3,{'promise':2,'ok':null},[{'promise':3,'ok':null},{'promise':2,'ok':"
                "null}],[{'promise':2,'ok':null}]]");
    expect_call(l, "script/a",
                "[['await',{'promises':[1]}],['await',{'promises':[]}],['timer',{'delayMs':0}],['await',{'promises':[2]"
                "}],['await',{'promises':[1],'mode':'some'}]]",
                "[{'error':'invalid_argument'},{'error':'invalid_argument'},1,{'error':'invalid_argument'},{'error':'"
                "invalid_argument'}]");
    loom_close(l);
}

static void unawaited_is_cancelled(void **state) {
    (void)
        state; /* What a turn did not await is cancelled at its end: no timer fires, no event is taken, no child goes on. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a",
                "[['timer',{'delayMs':3}],['event.wait',{'type':'x'}],['child.spawn',{'type':'script','key':'c','input'"
                ":[['event.wait',{'type':'y'}],['must',['await',{'promises':[1],'mode':'any'}]]]}]]",
                "[1,2,3]");
    wait_status(l, "script/c", "cancelled");
    int fired = entries_of(l, "script/a", "timer_fired"); /* where each op is a replay, perhaps while the turn ran */
    send_event(l, "script/a", "x", "5");
    expect_call(l, "script/a",
                "[['timer',{'delayMs':10}],['await',{'promises':[1]}],['event.wait',{'type':'x'}],['await',{'promises':"
                "[2],'mode':'any'}]]",
                "[1,[{'promise':1,'ok':null}],2,{'promise':2,'ok':5}]");
    assert_int_equal(entries_of(l, "script/a", "timer_fired"), fired + 1);
    loom_close(l);
}

static void cancel_a_promise(void **state) {
    (void)
        state; /* A promise that was cancelled gives `cancelled` to an await, and what completes it later is ignored. */
    struct loom *l = open_scripts("memory");
    expect_call(
        l, "script/a",
        "[['timer',{'delayMs':100}],['cancel',{'promise':1}],['timer',{'delayMs':120}],['await',{'promises':[1,2],"
        "'mode':'all'}],['cancel',{'promise':9}]]",
        "[1,null,2,[{'promise':1,'error':{'code':'cancelled','message':'it was "
        "cancelled','retryable':false}},{'promise':2,'ok':null}],{'error':'invalid_argument'}]");
    assert_int_equal(entries_of(l, "script/a", "timer_fired"), 1);
    loom_close(l);
}

/* ---- cancelling a turn ---- */

#define WAIT_X "['event.wait',{'type':'x'}],['await',{'promises':[1],'mode':'any'}]"

static void cancel_a_turn(void **state) {
    (void)
        state; /* A cancel settles the blocking op once with `cancelled`; later ops work, so the guest cleans up; the turn ends cancelled. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    submit(l,
           about("call", "script/a",
                 "[" WAIT_X ",['state.patch',[{'op':'add','path':'/"
                 "undone','value':true}]],['timer',{'delayMs':1}],['await',{'promises':[2],'mode':'any'}]]"),
           &a);
    wait_status(l, "script/a", "suspended");
    expect(l, "cancel", "script/a", "{'reason':'no'}", 202, NULL);
    await_answer(&a);
    check_code(&a, 422, "cancelled");
    wait_status(l, "script/a", "idle");
    expect(l, "state", "script/a", NULL, 200, "{'undone':true}");
    assert_int_equal(entries_of(l, "script/a", "timer_fired"), 1);
    assert_int_equal(entries_of(l, "script/a", "turn_cancelled"), 1);
    expect_code(l, about("cancel", "script/a", NULL), 409, "conflict");
    expect_call(l, "script/a", "[['state.get','/undone']]", "[true]");
    loom_close(l);
}

static void cancelled_and_continued(void **state) {
    (void)state; /* A cancelled turn that ends with `continue` goes on: the next turn runs, and its reply counts. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    submit(l, about("call", "script/a", "[" WAIT_X ",['continue',[['return',7]]]]"), &a);
    wait_status(l, "script/a", "suspended");
    expect(l, "cancel", "script/a", NULL, 202, NULL);
    await_answer(&a);
    check(&a, 200, "7");
    assert_int_equal(entries_of(l, "script/a", "turn_continued"), 1);
    assert_int_equal(entries_of(l, "script/a", "turn_completed"), 1);
    loom_close(l);
}

static void cancel_a_run(void **state) {
    (void)
        state; /* A cancelled run ends cancelled and shows the operator's reason, which its parent's promise fails with;
                  * also one whose program fails then with an error of its own. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    submit(l,
           about("call", "script/p",
                 "[['child.spawn',{'type':'script','key':'c','input':[" WAIT_X
                 "]}],['await',{'promises':[1],'mode':'any'}]]"),
           &a);
    wait_status(l, "script/c", "suspended");
    expect_field(l, "script/p", "/suspendReason", "'child script/c'");
    expect(l, "cancel", "script/c", "{'reason':'no \\'letter\\''}", 202, NULL);
    await_answer(&a);
    check(&a, 200, "[1,{'promise':1,'error':{'code':'cancelled','message':'no \\'letter\\'','retryable':false}}]");
    expect_field(l, "script/c", "/status", "'cancelled'");
    expect_field(l, "script/c", "/suspendReason", "'no \\'letter\\''");
    static const char *const ends[][3] = {
        {"['must',['await',{'promises':[1],'mode':'any'}]]", "cancelled", "cancelled by an operator"},
        {"['await',{'promises':[1],'mode':'any'}],['fail',{'code':'odd','message':'m'}]", "odd", "m"}};
    for (int i = 0; i < 2; i++) {
        char in[400], child[] = "script/d0", want[200];
        child[8] = (char)('0' + i);
        snprintf(in, sizeof in,
                 "[['child.spawn',{'type':'script','key':'%s','input':[['event.wait',{'type':'x'}],%s]}],"
                 "['await',{'promises':[1],'mode':'any'}]]",
                 child + 7, ends[i][0]);
        snprintf(want, sizeof want, "[1,{'promise':1,'error':{'code':'%s','message':'%s','retryable':false}}]",
                 ends[i][1], ends[i][2]);
        submit(l, about("call", "script/p", in), &a);
        wait_status(l, child, "suspended");
        expect(l, "cancel", child, NULL, 202, NULL);
        await_answer(&a);
        check(&a, 200, want);
        expect_field(l, child, "/status", "'cancelled'");
        expect_field(l, child, "/suspendReason", "'cancelled by an operator'");
    }
    loom_close(l);
}

/* ---- restart ---- */

static void restart_with_call(void **state) {
    (void)
        state; /* A call times out after a restart, also while its actor is suspended because it waits for a timer, too. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    expect(l, "send", "script/a",
           "[['timer',{'delayMs':3600000}],['actor.call',{'to':'script/b','input':[" WAIT_X
           "],'timeoutMs':500}],['await',"
           "{'promises':[1,2],'mode':'any'}],['must',['finish',1]]]",
           202, NULL);
    wait_status(l, "script/a", "suspended");
    loom_close(l);
    l = open_scripts(dir);
    wait_status(l, "script/a", "completed");
    assert_int_equal(entries_of(l, "script/a", "call_failed"), 1);
    loom_close(l);
    remove_folder(dir);
}

static void restart_says_nothing_twice(void **state) {
    (void)state; /* A suspended turn that is replayed, because mail waits behind it, has the same journal as before. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    expect(l, "send", "script/a",
           "[['event.wait',{'type':'x'}],['event.wait',{'type':'y'}],['await',{'promises':[1]}],['await',{'promises':["
           "2]}]]",
           202, NULL);
    wait_status(l, "script/a", "suspended");
    send_event(l, "script/a", "x", "1");
    wait_field(l, "script/a", "/suspendReason", "'event y'");
    expect(l, "send", "script/a", "[]", 202, NULL);
    loom_close(l);
    l = open_scripts(dir);
    expect_field(l, "script/a", "/status", "'suspended'");
    send_event(l, "script/a", "y", "1");
    wait_field(l, "script/a", "/metadata/activationCount", "2");
    assert_int_equal(entries_of(l, "script/a", "suspended"), 2);
    loom_close(l);
    remove_folder(dir);
}

static void restart_while_waiting(void **state) {
    (void)
        state; /* A turn that waits goes on after a restart as if nothing had happened: state, promises, randomness, time, events. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    expect(l, "send", "script/a",
           "[['state.patch',[{'op':'add','path':'/"
           "n','value':1}]],['random',8],['now'],['event.wait',{'type':'x'}],['timer',{'delayMs':1}],['await',{'"
           "promises':[2],'mode':'any'}],"
           "['await',{'promises':[1],'mode':'any'}],['state.get',''],['random',8],['must',['actor.call',{'to':'script/"
           "b','input':[['state.get','']]}]],['await',{'promises':[3],'mode':'any'}]]",
           202, NULL);
    wait_status(l, "script/a", "suspended");
    wait_field(l, "script/a", "/suspendReason", "'event x'");
    loom_close(l);
    l = open_scripts(dir);
    expect_field(l, "script/a", "/status", "'suspended'");
    expect(l, "state", "script/a", NULL, 200, "{'n':1}");
    send_event(l, "script/a", "x", "{'y':1}");
    wait_status(l, "script/a", "idle");
    assert_int_equal(entries_of(l, "script/a", "turn_completed"), 1);
    loom_close(l);
    l = open_scripts(dir);
    expect_call(l, "script/a", "[['state.get','']]", "[{'n':1}]");
    loom_close(l);
    remove_folder(dir);
}

static void restart_with_mail(void **state) {
    (void)
        state; /* Mail that waits survives a restart in its order, delayed mail is not early, and duplicates still get the first reply. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    struct loom_request later = about("send", "script/a",
                                      "[['state.patch',[{'op':'add','path':'/log/-','value':'late'}]],['finish',0]]");
    expect_call(l, "script/a", "[['state.patch',[{'op':'add','path':'/log','value':[]}]]]", "[null]");
    expect_request(l, with_id(about("call", "script/a", "[['random',4]]"), "m"), 200, NULL);
    struct answer before = ask(l, with_id(about("call", "script/a", "[['random',4]]"), "m"));
    expect(l, "send", "script/a", "[" WAIT_X "]", 202, NULL);
    wait_status(l, "script/a", "suspended");
    later.delay_ms = 100;
    later.priority = 1; /* last also when the restart took longer than that */
    expect_request(l, later, 202, NULL);
    expect(l, "send", "script/a", "[['state.patch',[{'op':'add','path':'/log/-','value':1}]]]", 202, NULL);
    expect(l, "send", "script/a", "[['state.patch',[{'op':'add','path':'/log/-','value':2}]]]", 202, NULL);
    loom_close(l);
    l = open_scripts(dir);
    struct answer after = ask(l, with_id(about("call", "script/a", "[['random',4]]"), "m"));
    assert_string_equal(before.body, after.body);
    answer_free(&before);
    answer_free(&after);
    send_event(l, "script/a", "x", "1");
    wait_status(l, "script/a", "completed");
    expect(l, "state", "script/a", NULL, 200, "{'log':[1,2,'late']}");
    loom_close(l);
    remove_folder(dir);
}

static void restart_with_timer(void **state) {
    (void)state; /* A timer that came due while nothing ran fires at the start; one that is not due yet is not early. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    expect(l, "send", "script/a",
           "[['timer',{'delayMs':1}],['timer',{'delayMs':300}],['now'],['await',{'promises':[2],'mode':'any'}],['now'],"
           "['await',{'promises':[1],'mode':'any'}],['must',['finish',1]]]",
           202, NULL);
    expect(l, "send", "script/b", "[['timer',{'delayMs':50}],['await',{'promises':[1],'mode':'any'}],['finish',1]]",
           202, NULL);
    wait_status(l, "script/a", "suspended");
    loom_close(l);
    usleep(60000);
    l = open_scripts(dir);
    wait_status(l, "script/b", "completed");
    wait_status(l, "script/a", "completed");
    struct answer a = ask(l, about("journal", "script/a", NULL));
    yyjson_doc *doc = yyjson_read(a.body, strlen(a.body), 0);
    yyjson_val *entries = yyjson_obj_get(yyjson_doc_get_root(doc), "entries"), *e;
    int64_t set[3] = {0}, fired[3] = {0};
    size_t i, n;
    yyjson_arr_foreach(entries, i, n, e) {
        int64_t id = json_int(e, "promise", 0);
        if (str_eq(json_str(e, "type"), STR("timer_set"))) set[id] = json_int(e, "at", 0);
        if (str_eq(json_str(e, "type"), STR("timer_fired"))) fired[id] = json_int(e, "at", 0);
    }
    assert_true(fired[1] >= set[1] + 1);
    assert_true(fired[2] >= set[2] + 300);
    yyjson_doc_free(doc);
    answer_free(&a);
    loom_close(l);
    remove_folder(dir);
}

static void many_timers_at_once(void **state) {
    (void)
        state; /* More timers than a batch holds, all due at a restart, all fire; one await takes all their results. */
    enum { MANY = 10100 };
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    struct buf in = {0};
    buf_json(&in, "[['times',%d,['timer',{'delayMs':900}]],['must',['await',{'promises':[1", (int64_t)MANY);
    for (int i = 2; i <= MANY; i++) buf_json(&in, ",%d", (int64_t)i);
    buf_add(&in, "]}]],['finish',1]]", sizeof "]}]],['finish',1]]");
    expect(l, "send", "script/a", in.p, 202, NULL);
    wait_status(l, "script/a", "suspended");
    loom_close(l);
    usleep(900000);
    l = open_scripts(dir);
    wait_status(l, "script/a", "completed");
    loom_close(l);
    buf_free(&in);
    remove_folder(dir);
}

/* What the store held at this moment: as after kill -9. */
static char *copy_folder(const char *dir) {
    char line[256];
    char *copy = make_folder();
    snprintf(line, sizeof line, "cp -r %s/. %s && rm -f %s/loom.db.lock", dir, copy, copy);
    if (system(line) != 0) abort();
    return copy;
}

static void unclean_restart(void **state) {
    (void)
        state; /* What was acknowledged before a kill is there after it and finishes: a running turn, a wait, queued mail. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    expect(l, "send", "script/a",
           "[['state.patch',[{'op':'add','path':'/n','value':1}]]," WAIT_X
           ",['state.patch',[{'op':'add','path':'/x','value':1}]]]",
           202, NULL);
    expect(l, "send", "script/a", "[['finish',null]]", 202, NULL);
    wait_status(l, "script/a", "suspended");
    send_event(l, "script/b", "x", "1");
    char *copy = copy_folder(dir);
    loom_close(l);
    l = open_scripts(copy);
    expect_field(l, "script/a", "/status", "'suspended'");
    send_event(l, "script/a", "x", "1");
    wait_status(l, "script/a", "completed");
    expect(l, "state", "script/a", NULL, 200, "{'n':1,'x':1}");
    expect_call(l, "script/b", "[" WAIT_X "]", "[1,{'promise':1,'ok':1}]");
    loom_close(l);
    remove_folder(copy);
    remove_folder(dir);
}

/* ---- turns that end in every way ---- */

static void failing_rolls_back(void **state) {
    (void)
        state; /* A turn that fails answers with the guest's code, and the state is as before it; what was sent stands. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a", "[['state.patch',[{'op':'add','path':'/n','value':[1,2]}]]]", "[null]");
    struct answer a = ask(
        l, about("call", "script/a",
                 "[['state.patch',[{'op':'add','path':'/n/-','value':3},{'op':'remove','path':'/n/"
                 "0'}]],['state.patch',[{'op':'replace','path':'','value':{'all':'new'}}]],"
                 "['actor.send',{'to':'script/b','input':[['state.patch',[{'op':'add','path':'/got','value':true}]]]}],"
                 "['timer',{'delayMs':0}],['await',{'promises':[1]}],['fail',{'code':'no_stock','message':'sold "
                 "out','retryable':true}]]"));
    check(&a, 422, "{'code':'no_stock','message':'sold out','retryable':true}");
    expect(l, "state", "script/a", NULL, 200, "{'n':[1,2]}");
    expect_field(l, "script/a", "/status", "'idle'");
    wait_field(l, "script/b", "/state/got", "true");
    expect_call(l, "script/a", "[['state.get','/n']]", "[[1,2]]");
    loom_close(l);
}

static void finishing(void **state) {
    (void)state; /* An actor that finished takes no more messages, but a duplicate still gets its reply. */
    struct loom *l = open_scripts("memory");
    struct loom_request last = with_id(about("call", "script/a", "[['finish',{'bye':1}]]"), "last");
    expect_request(l, last, 200, "{'bye':1}");
    expect_request(l, last, 200, "{'bye':1}");
    expect_field(l, "script/a", "/status", "'completed'");
    expect_code(l, about("call", "script/a", "[]"), 409, "conflict");
    expect_code(l, about("send", "script/a", "[]"), 409, "conflict");
    expect_code(l, with_id(about("event", "script/a", "1"), "x"), 409, "conflict");
    expect_code(l, about("cancel", "script/a", NULL), 409, "conflict");
    loom_close(l);
}

static void continuing(void **state) {
    (void)
        state; /* `continue` starts the next turn with a new input; the caller gets the last turn's reply; state and buffered events carry over. */
    struct loom *l = open_scripts("memory");
    send_event(l, "script/a", "x", "9");
    expect(l, "call", "script/a",
           "[['state.patch',[{'op':'add','path':'/n','value':1}]],['continue',[['state.get','/n']," WAIT_X
           ",['continue',[['self'],['return','end']]]]]]",
           200, "'end'");
    assert_int_equal(entries_of(l, "script/a", "turn_continued"), 2);
    assert_int_equal(entries_of(l, "script/a", "turn_started"), 3);
    expect_field(l, "script/a", "/journal/entries/0/turn", "3");
    loom_close(l);
}

static void retrying_actor(void **state) {
    (void)
        state; /* An actor type with a retryPolicy tries a message again while the failure is retryable, from the state before. */
    struct loom *l = open_scripts("memory");
    deploy_module(l, false, "patient", script_wasm(), "'retryPolicy':{'maxAttempts':3,'backoffMs':1}");
    expect_code(
        l,
        about("call", "patient/a",
              "[['state.patch',[{'op':'add','path':'/n','value':1}]],['fail',{'code':'busy_now','retryable':true}]]"),
        422, "busy_now");
    assert_int_equal(entries_of(l, "patient/a", "turn_started"), 3);
    expect(l, "state", "patient/a", NULL, 200, "{}");
    expect_code(l, about("call", "patient/b", "[['fail',{'code':'never'}]]"), 422, "never");
    assert_int_equal(entries_of(l, "patient/b", "turn_started"), 1);
    expect_field(l, "patient/a", "/journal/entries/0/attempt", "3");
    loom_close(l);
}

static void suspending(void **state) {
    (void)state; /* `suspend` waits for a resume and gives its data; nobody is resumed who does not wait. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    submit(l, about("call", "script/a", "[['suspend',{'reason':'needs Bob'}],['suspend',{}]]"), &a);
    wait_field(l, "script/a", "/suspendReason", "'needs Bob'");
    expect(l, "resume", "script/a", "{'by':'Bob'}", 202, NULL);
    wait_field(l, "script/a", "/suspendReason", "'a person'");
    expect(l, "resume", "script/a", NULL, 202, NULL);
    await_answer(&a);
    check(&a, 200, "[{'by':'Bob'},null]");
    expect_code(l, about("resume", "script/a", NULL), 409, "conflict");
    expect_code(l, about("resume", "script/none", NULL), 404, "not_found");
    loom_close(l);
}

/* ---- the mailbox ---- */

static void mailbox_order(void **state) {
    (void)state; /* Lower priority numbers go first, equal ones in order of arrival; delayed ones when they are due. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a", "[['state.patch',[{'op':'add','path':'/log','value':[]}]]]", "[null]");
    expect(l, "send", "script/a", "[" WAIT_X "]", 202, NULL);
    wait_status(l, "script/a", "suspended");
    static const int32_t priorities[] = {0, 5, -1, 0, INT32_MAX, -7};
    for (int i = 0; i < 6; i++) {
        char body[128];
        snprintf(body, sizeof body, "[['state.patch',[{'op':'add','path':'/log/-','value':%d}]]]", i);
        struct loom_request send = about("send", "script/a", body);
        send.priority = priorities[i];
        expect_request(l, send, 202, NULL);
    }
    struct loom_request late = about("call", "script/a", "[['state.get','/log']]");
    struct answer a;
    late.delay_ms = 300;
    late.priority = INT32_MIN;
    submit(l, late, &a);
    send_event(l, "script/a", "x", "1");
    await_answer(&a);
    check(&a, 200, "[[5,2,0,3,1,4]]");
    loom_close(l);
}

static void time_to_live(void **state) {
    (void)
        state; /* A message whose ttl ends before its turn is a dead letter: its caller gets `expired`, the rest goes on; an expired event binds to no wait. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    expect(l, "send", "script/a", "[" WAIT_X "]", 202, NULL);
    wait_status(l, "script/a", "suspended");
    struct loom_request mortal = about("call", "script/a", "[['now']]"),
                        event = with_id(about("event", "script/a", "1"), "y");
    mortal.ttl_ms = event.ttl_ms = 10;
    submit(l, mortal, &a);
    expect_request(l, event, 202, NULL);
    await_answer(&a);
    check_code(&a, 422, "expired");
    usleep(15000);
    send_event(l, "script/a", "x", "1");
    expect(l, "call", "script/a", "[['event.wait',{'type':'y','timeoutMs':1}],['await',{'promises':[1],'mode':'any'}]]",
           200, NULL);
    assert_int_equal(entries_of(l, "script/a", "event_timed_out"), 1);
    assert_int_equal(entries_of(l, "script/a", "turn_started"), 2);
    loom_close(l);
}

static void message_status(void **state) {
    (void)
        state; /* A message can be asked about: queued, running, completed with its reply, failed with its error, unknown. */
    struct loom *l = open_scripts("memory");
    expect_request(l, with_id(about("send", "script/a", "[" WAIT_X "]"), "one"), 202,
                   "{'messageId':'one','actorId':'script/a'}");
    expect_request(l, with_id(about("send", "script/a", "[['fail',{'code':'odd','message':'m'}]]"), "two"), 202, NULL);
    wait_status(l, "script/a", "suspended");
    expect_request(l, with_id(about("message", "script/a", NULL), "one"), 200,
                   "{'messageId':'one','status':'running'}");
    expect_request(l, with_id(about("message", "script/a", NULL), "two"), 200, "{'messageId':'two','status':'queued'}");
    send_event(l, "script/a", "x", "1");
    expect_code(l, with_id(about("call", "script/a", "[['fail',{'code':'odd','message':'m'}]]"), "two"), 422, "odd");
    expect_request(l, with_id(about("message", "script/a", NULL), "one"), 200,
                   "{'messageId':'one','status':'completed','reply':[1,{'promise':1,'ok':1}]}");
    expect_request(l, with_id(about("message", "script/a", NULL), "two"), 200,
                   "{'messageId':'two','status':'failed','error':{'code':'odd','message':'m','retryable':false}}");
    expect_code(l, with_id(about("message", "script/a", NULL), "none"), 404, "not_found");
    loom_close(l);
}

static void slow_call(void **state) {
    (void)
        state; /* A call that takes longer than timeoutMs answers 202 with the message's id; asking again gets the reply. */
    struct loom *l = open_scripts("memory");
    struct loom_request call = with_id(about("call", "script/a", "[" WAIT_X "]"), "slow");
    call.timeout_ms = 5;
    expect_request(l, call, 202, "{'messageId':'slow','actorId':'script/a'}");
    send_event(l, "script/a", "x", "1");
    call.timeout_ms = 0;
    expect_request(l, call, 200, "[1,{'promise':1,'ok':1}]");
    loom_close(l);
}

/* ---- actors among themselves ---- */

static void calls(void **state) {
    (void)
        state; /* An actor calls another: reply, failure with its code, unknown type, and a chain that would wait for itself. */
    struct loom *l = open_scripts("memory");
    expect_call(
        l, "script/a",
        "[['actor.call',{'to':'script/b','input':[['return',{'x':1}]]}],['await',{'promises':[1],'mode':'any'}]]",
        "[1,{'promise':1,'ok':{'x':1}}]");
    expect_call(l, "script/a",
                "[['actor.call',{'to':'script/"
                "b','input':[['fail',{'code':'odd','message':'m','retryable':true}]]}],['await',{'promises':[1],'mode':"
                "'any'}]]",
                "[1,{'promise':1,'error':{'code':'odd','message':'m','retryable':true}}]");
    struct answer a = ask(
        l, about("call", "script/a",
                 "[['actor.call',{'to':'nobody/b','input':1}],['await',{'promises':[1]}],['actor.call',{'to':'script/"
                 "a','input':[]}],['await',{'promises':[2]}],"
                 "['actor.call',{'to':'script/b','input':[['actor.call',{'to':'script/"
                 "a','input':[]}],['await',{'promises':[1]}]]}],['await',{'promises':[3]}],"
                 "['actor.call',{'to':'x'}]]"));
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body, "\"promise\":1,\"error\":{\"code\":\"not_found\""));
    assert_non_null(strstr(a.body, "\"promise\":2,\"error\":{\"code\":\"deadlock\""));
    assert_non_null(strstr(a.body, "\"promise\":3,\"ok\":[1,[{\"promise\":1,\"error\":{\"code\":\"deadlock\""));
    assert_non_null(strstr(a.body, "{\"error\":\"invalid_argument\"}]"));
    answer_free(&a);
    loom_close(l);
}

static void call_times_out(void **state) {
    (void)state; /* A call with timeoutMs fails with `timeout`; what the other replies later is dropped. */
    struct loom *l = open_scripts("memory");
    expect(l, "call", "script/a",
           "[['actor.call',{'to':'script/b','timeoutMs':5,'input':[" WAIT_X
           "]}],['await',{'promises':[1],'mode':'any'}]]",
           200,
           "[1,{'promise':1,'error':{'code':'timeout','message':'waited 5 ms in vain for actor "
           "script/b','retryable':true}}]");
    send_event(l, "script/b", "x", "1");
    wait_status(l, "script/b", "idle");
    assert_int_equal(entries_of(l, "script/a", "call_completed"), 0);
    loom_close(l);
}

static void withdrawn_call(void **state) {
    (void)state; /* A cancelled call that has not begun is withdrawn. */
    struct loom *l = open_scripts("memory");
    expect(l, "send", "script/b", "[" WAIT_X "]", 202, NULL);
    wait_status(l, "script/b", "suspended");
    expect(l, "call", "script/a", "[['actor.call',{'to':'script/b','input':[]}],['cancel',{'promise':1}]]", 200,
           "[1,null]");
    send_event(l, "script/b", "x", "1");
    wait_status(l, "script/b", "idle");
    expect_call(l, "script/b", "[]", "[]");
    assert_int_equal(entries_of(l, "script/b", "turn_started"), 2);
    loom_close(l);
}

static void children(void **state) {
    (void)
        state; /* A child is a run: its reply settles the promise, a failure fails it, an existing key fails with `exists`; it ends with its turn. */
    struct loom *l = open_scripts("memory");
    struct answer a = ask(
        l, about("call", "script/p",
                 "[['child.spawn',{'type':'script','key':'one','input':[['self']]}],['await',{'promises':[1],'mode':'"
                 "any'}],['child.spawn',{'type':'script','input':[['fail',{'code':'odd'}]]}],"
                 "['await',{'promises':[2],'mode':'any'}],['child.spawn',{'type':'script','key':'one','input':[]}],['"
                 "await',{'promises':[3],'mode':'any'}],"
                 "['child.spawn',{'type':'nobody','input':1}],['await',{'promises':[4],'mode':'any'}]]"));
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body, "\"parentActorId\":\"script/p\""));
    assert_non_null(strstr(a.body, "{\"promise\":2,\"error\":{\"code\":\"odd\""));
    assert_non_null(strstr(a.body, "{\"promise\":3,\"error\":{\"code\":\"exists\""));
    assert_non_null(strstr(a.body, "{\"promise\":4,\"error\":{\"code\":\"not_found\""));
    answer_free(&a);
    expect_field(l, "script/one", "/status", "'completed'");
    expect_code(l, about("call", "script/one", "[]"), 409, "conflict");
    a = ask(l, (struct loom_request){.op = "actors", .type = text("script"), .status = text("failed")});
    assert_non_null(strstr(a.body, "\"status\":\"failed\""));
    assert_non_null(strstr(a.body, "\"parentActorId\":\"script/p\""));
    answer_free(&a);
    loom_close(l);
}

static void children_end_with_parent(void **state) {
    (void)state; /* When the parent is cancelled its children are. */
    struct loom *l = open_scripts("memory");
    expect(l, "send", "script/p",
           "[['child.spawn',{'type':'script','key':'c','input':[" WAIT_X "]}],['await',{'promises':[1],'mode':'any'}]]",
           202, NULL);
    wait_status(l, "script/c", "suspended");
    expect(l, "cancel", "script/p", NULL, 202, NULL);
    wait_status(l, "script/c", "cancelled");
    wait_status(l, "script/p", "idle");
    loom_close(l);
}

/* ---- activities ---- */

static atomic_int flaky_calls;

/* Fails as often as its input says, retryable, then answers. */
static void flaky(void) {
    if (++flaky_calls <= loom_int(loom_input())) loom_fail("shaky", true, "'not yet'");
    loom_return("'done'");
}

static atomic_int stubborn_calls;

static void stubborn(void) {
    stubborn_calls++;
    loom_fail("never", false, "'no'");
}

static void garbage(void) {
    loom_native_op("return", 6, "{\"a\":", 5);
}

/* Runs one activity in an actor and looks for `part` in what came of it. */
static void expect_activity(struct loom *l, const char *key, const char *activity, const char *part) {
    char actor[80], in[1024];
    snprintf(actor, sizeof actor, "script/%s", key);
    snprintf(in, sizeof in, "[['activity',%s],['await',{'promises':[1],'mode':'any'}]]", activity);
    struct answer a = ask(l, about("call", actor, in));
    char *want = quoted(part);
    if (a.status != 200 || !strstr(a.body, want)) fail_msg("expected %s, got %d %s", want, a.status, a.body);
    free(want);
    answer_free(&a);
}

static void activities(void **state) {
    (void)
        state; /* An activity's value or error settles its promise; unknown ones and ones refused by the schema fail the promise, not the op. */
    struct loom *l = open_scripts("memory");
    expect_activity(l, "a", "{'name':'act','input':[['return',{'x':1}]]}", "[1,{'promise':1,'ok':{'x':1}}]");
    expect_activity(l, "a", "{'name':'echo','input':'hello'}", "'ok':'hello'");
    expect_activity(l, "a", "{'name':'act','input':[['fail',{'code':'odd','message':'m'}]]}", "'error':{'code':'odd'");
    expect_activity(l, "a", "{'name':'nothing','input':1}", "'error':{'code':'not_found'");
    expect_activity(l, "a", "{'name':'act','version':'9','input':1}", "'error':{'code':'not_found'");
    deploy(l, "activity.put", "strict", "1",
           "{'activityName':'strict','version':'1','wasmBlobUrl':'module:act@1','inputSchema':{'type':'array'},'"
           "outputSchema':{'type':'integer'}}",
           false);
    expect_activity(l, "a", "{'name':'strict','input':'text'}", "'error':{'code':'invalid_input'");
    expect_activity(l, "a", "{'name':'strict','input':[['return','text']]}", "'error':{'code':'invalid_output'");
    expect_activity(l, "a", "{'name':'strict','input':[['return',7]]}", "'ok':7");
    loom_close(l);
}

static void activity_retries(void **state) {
    (void)
        state; /* A retryable failure is tried again as often as the policy says, each with its entry; a final one is not. */
    NEEDS_WASM();
    struct loom *l = open_scripts("memory");
    flaky_calls = stubborn_calls = 0;
    expect_activity(l, "a", "{'name':'flaky','input':2,'retry':{'backoffMs':1}}", "'ok':'done'");
    assert_int_equal(flaky_calls, 3);
    assert_int_equal(entries_of(l, "script/a", "activity_retry"), 2);
    flaky_calls = 0;
    expect_activity(l, "b", "{'name':'flaky','input':9,'retry':{'maxAttempts':2,'backoffMs':1}}",
                    "'error':{'code':'shaky'");
    assert_int_equal(flaky_calls, 2);
    expect_activity(l, "c", "{'name':'stubborn','input':null,'retry':{'backoffMs':1}}", "'error':{'code':'never'");
    assert_int_equal(stubborn_calls, 1);
    expect_activity(l, "d", "{'name':'garbage','input':null,'retry':{'backoffMs':1}}",
                    "'error':{'code':'invalid_output'");
    expect_activity(l, "e", "{'name':'act','input':[['trap']],'retry':{'backoffMs':1}}", "'error':{'code':'trap'");
    assert_int_equal(entries_of(l, "script/e", "activity_retry"), 0);
    loom_close(l);
}

static void activity_timeout(void **state) {
    (void)
        state; /* timeoutMs bounds all attempts with their backoff; maxExecutionMs one attempt, which may be tried again. */
    struct loom *l = open_scripts("memory");
    flaky_calls = 0;
    expect_activity(l, "a",
                    "{'name':'flaky','input':1000000,'timeoutMs':50,'retry':{'maxAttempts':1000000,'backoffMs':5}}",
                    "'error':{'code':'timeout'");
    int after = flaky_calls;
    deploy(l, "activity.put", "brief", "1",
           "{'activityName':'brief','version':'1','wasmBlobUrl':'module:act@1','limits':{'maxExecutionMs':20},'"
           "retryPolicy':{'maxAttempts':2,'backoffMs':1}}",
           false);
    expect_activity(l, "b", "{'name':'brief','input':[['spin']]}", "'error':{'code':'timeout'");
    assert_int_equal(entries_of(l, "script/b", "activity_retry"), 1);
    assert_true(flaky_calls <= after + 1);
    loom_close(l);
}

static void restart_during_backoff(void **state) {
    (void)state; /* A retry that waits for its backoff goes on after a restart, and counts on. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    flaky_calls = 0;
    expect(l, "send", "script/a",
           "[['activity',{'name':'flaky','input':2,'retry':{'backoffMs':150}}],['must',['await',{'promises':[1],'mode':"
           "'any'}]],['finish',1]]",
           202, NULL);
    while (entries_of(l, "script/a", "activity_retry") < 1) usleep(1000);
    loom_close(l);
    l = open_scripts(dir);
    wait_status(l, "script/a", "completed");
    assert_int_equal(flaky_calls, 3);
    assert_true(entries_of(l, "script/a", "activity_retry") >= 2);
    loom_close(l);
    remove_folder(dir);
}

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static int gate_calls;

/* Waits at the gate. */
static void gated(void) {
    __atomic_add_fetch(&gate_calls, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
    loom_return("'through'");
}

static void restart_during_attempt(void **state) {
    (void)
        state; /* An attempt that ran when the worker died is made again, as interrupted, and the actor gets one result. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    gate_calls = 0;
    pthread_mutex_lock(&gate);
    expect(l, "send", "script/a",
           "[['activity',{'name':'gated','input':null}],['must',['await',{'promises':[1],'mode':'any'}]],['finish',1]]",
           202, NULL);
    while (__atomic_load_n(&gate_calls, __ATOMIC_SEQ_CST) < 1) usleep(1000);
    expect_field(l, "script/a", "/status", "'running'");
    char *copy = copy_folder(dir);
    pthread_mutex_unlock(&gate);
    loom_close(l);
    l = open_scripts(copy);
    wait_status(l, "script/a", "completed");
    assert_int_equal(entries_of(l, "script/a", "activity_completed"), 1);
    assert_int_equal(entries_of(l, "script/a", "activity_retry"), 1);
    assert_int_equal(gate_calls, 2);
    loom_close(l);
    remove_folder(copy);
    remove_folder(dir);
}

/* ---- guests that misbehave ---- */

#define WAT(body)                                                                                                 \
    "(module (import \"loom\" \"op\" (func $op (param i32 i32 i32 i32) (result i32))) (import \"loom\" \"take\" " \
    "(func $take (param i32))) (memory (export \"memory\") 1)"                                                    \
    "(data (i32.const 0) \"inputawaitreturn{]nonsuch\")" body ")"
#define RUN(body) WAT("(func (export \"run\") " body ")")

static void fault_18_to_24_misbehaving_guests(void **state) {
    (void)
        state; /* A guest that traps, loops, overflows, asks for nonsense or returns garbage fails its own turn with the right code; others go on. */
    struct loom *l = open_scripts("memory");
    static const struct {
        const char *name, *wat, *code;
    } guests[] = {
        {"traps", RUN("unreachable"), "trap"},
        {"divides", RUN("(drop (i32.div_u (i32.const 1) (i32.const 0)))"), "trap"},
        {"loops", RUN("(loop (br 0))"), "limit_time"},
        {"asks-on", RUN("(loop (drop (call $op (i32.const 0) (i32.const 5) (i32.const 0) (i32.const 0))) (br 0))"),
         "limit_time"},
        {"overflows", WAT("(func $f (export \"run\") (call $f))"), "trap"},
        {"no-op", RUN("(drop (call $op (i32.const 18) (i32.const 7) (i32.const 0) (i32.const 0)))"), "unknown_op"},
        {"takes", RUN("(call $take (i32.const 0))"), "trap"},
        {"garbage", RUN("(drop (call $op (i32.const 10) (i32.const 6) (i32.const 16) (i32.const 2)))"),
         "invalid_output"},
        {"name-out", RUN("(drop (call $op (i32.const 65535) (i32.const 5) (i32.const 0) (i32.const 0)))"),
         "bad_pointer"},
        {"name-wraps", RUN("(drop (call $op (i32.const -1) (i32.const 5) (i32.const 0) (i32.const 0)))"),
         "bad_pointer"},
        {"arg-out", RUN("(drop (call $op (i32.const 0) (i32.const 5) (i32.const 65536) (i32.const 1)))"),
         "bad_pointer"},
        {"arg-empty-out", RUN("(drop (call $op (i32.const 0) (i32.const 5) (i32.const 65537) (i32.const 0)))"),
         "bad_pointer"},
        {"arg-huge", RUN("(drop (call $op (i32.const 0) (i32.const 5) (i32.const 1) (i32.const -1)))"), "bad_pointer"},
        {"take-out",
         RUN("(drop (call $op (i32.const 0) (i32.const 5) (i32.const 0) (i32.const 0))) (call $take (i32.const "
             "65534))"),
         "bad_pointer"},
        {"grows", RUN("(loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable"), "trap"},
    };
    expect(l, "send", "script/quiet", "[" WAIT_X "]", 202, NULL);
    for (size_t i = 0; i < sizeof guests / sizeof *guests; i++) {
        char actor[64];
        snprintf(actor, sizeof actor, "%s/a", guests[i].name);
        deploy_wat(l, guests[i].name, guests[i].wat, "'limits':{'maxExecutionMs':40,'maxMemoryMB':2}");
        struct answer bad, good;
        submit(l, about("call", actor, "null"), &bad);
        submit(l, about("call", "script/good", "[['state.get','']]"), &good);
        await_answer(&bad);
        await_answer(&good);
        check(&good, 200, "[{}]");
        if (bad.status != 422) fail_msg("%s: %d %s", guests[i].name, bad.status, bad.body);
        check_code(&bad, 422, guests[i].code);
        wait_status(l, actor, "idle");
    }
    send_event(l, "script/quiet", "x", "1");
    wait_status(l, "script/quiet", "idle");
    loom_close(l);
}

/* A guest that gives the text to an op, which must refuse it, and then returns it. */
static void deploy_teller(struct loom *l, const char *name, struct str said) {
    struct buf wat = {0};
    buf_str(&wat, STR("(module (import \"loom\" \"op\" (func $op (param i32 i32 i32 i32) (result i32)))"
                      "(memory (export \"memory\") 4) (data (i32.const 0) \"emitreturn\") (data (i32.const 16) \""));
    for (size_t i = 0; i < said.n; i++) {
        char hex[4];
        snprintf(hex, sizeof hex, "\\%02x", (unsigned char)said.p[i]);
        buf_add(&wat, hex, 3);
    }
    buf_json(&wat,
             "\") (func (export \"run\") (if (i32.ge_s (call $op (i32.const 0) (i32.const 4) (i32.const 16) (i32.const "
             "%u)) (i32.const 0)) (then unreachable)) (drop (call $op (i32.const 4) (i32.const 6) (i32.const 16) "
             "(i32.const %u)))))",
             (uint64_t)said.n, (uint64_t)said.n);
    buf_char(&wat, 0);
    deploy_wat(l, name, wat.p, "'retryPolicy':{'maxAttempts':3,'backoffMs':1}");
    buf_free(&wat);
}

static void fault_24_to_26_odd_json_from_a_guest(void **state) {
    (void)
        state; /* What a guest says is checked as what comes from outside: to an op it is an error that the guest sees; as
                  * a result it fails the turn, finally, with its first bytes in the journal. */
    struct loom *l = open_scripts("memory");
    char *deep = mem_alloc(100000);
    memset(deep, '[', 100000);
    struct str texts[] = {STR("{]"),
                          STR("'single'"),
                          STR("\"\xff\""),
                          STR("\"\xed\xa0\x80\""),
                          STR("\"\\ud800\""),
                          STR("[1e400]"),
                          STR("{\"channel\":\"c\",\"channel\":\"d\"}"),
                          STR("{} {}"),
                          {deep, 100000}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char name[16], actor[20];
        snprintf(name, sizeof name, "teller%zu", i);
        snprintf(actor, sizeof actor, "%s/a", name);
        deploy_teller(l, name, texts[i]);
        expect_code(l, about("call", actor, "null"), 422, "invalid_output");
        assert_int_equal(entries_of(l, actor, "turn_started"), 1);
        struct answer a = ask(l, about("journal", actor, NULL));
        assert_non_null(strstr(a.body, "it begins with "));
        answer_free(&a);
    }
    free(deep);
    loom_close(l);
}

static void guest_arguments(void **state) {
    (void)state; /* Bad arguments of ops are errors that the guest sees, and leave no entry. */
    struct loom *l = open_scripts("memory");
    expect_call(
        l, "script/a",
        "[['activity',{}],['timer',{'delayMs':-1}],['timer',7],['event.wait',{}],['actor.call',{}],['child.spawn',{}],["
        "'state.patch',{}],['state.patch',[{'op':'remove','path':'/none'}]],"
        "['state.get',7],['random',0],['random',257],['emit',{}],['await',{'promises':['1']}]]",
        "[{'error':'invalid_argument'},{'error':'invalid_argument'},{'error':'invalid_argument'},{'error':'invalid_"
        "argument'},{'error':'invalid_argument'},{'error':'invalid_argument'},"
        "{'error':'invalid_argument'},{'error':'invalid_argument'},{'error':'invalid_argument'},{'error':'invalid_"
        "argument'},{'error':'invalid_argument'},{'error':'invalid_argument'},{'error':'invalid_argument'}]");
    expect_field(l, "script/a", "/journal/cursor", "2");
    loom_close(l);
}

/* ---- programs that change ---- */

static void first_program(void) {
    loom_set("/n", "1");
    loom_must(loom_await(loom_wait_event("x", 0)));
    loom_set("/n", "2");
    loom_finish("'first'");
}

static void second_program(void) {
    loom_set("/n", "7");
    loom_must(loom_await(loom_wait_event("x", 0)));
    loom_finish("'second'");
}

static void short_program(void) {
    loom_return("'short'");
}

static void long_program(void) {
    loom_set("/n", "1");
    loom_wait_event("y", 0);
    loom_must(loom_await(loom_wait_event("x", 0)));
    loom_return("'long'");
}

static void asking_program(void) {
    loom_set("/n", "1");
    loom_op("suspend", "{}");
    loom_return("'asked'");
}

static void fault_27_changed_program(void **state) {
    (void)
        state; /* A program that does not fit its journal is paused with both sides shown and no effect; the old version, resumed, goes on. */
    char *dir = make_folder();
    loom_register_actor("program", first_program);
    struct loom *l = open_at(dir);
    expect(l, "send", "program/a", "null", 202, NULL);
    wait_status(l, "program/a", "suspended");
    loom_close(l);
    void (*changed[])(void) = {second_program, short_program, long_program, asking_program};
    for (int i = 0; i < 4; i++) {
        loom_register_actor("program", changed[i]);
        l = open_at(dir);
        if (i == 0)
            send_event(l, "program/a", "x", "1");
        else
            expect(l, "resume", "program/a", NULL, 202, NULL);
        wait_status(l, "program/a", "paused");
        char *why = looked_up(l, "program/a", "/suspendReason");
        assert_non_null(strstr(why, "replay_mismatch"));
        free(why);
        expect(l, "state", "program/a", NULL, 200, "{'n':1}");
        loom_close(l);
    }
    loom_register_actor("program", first_program);
    l = open_at(dir);
    expect_field(l, "program/a", "/status", "'paused'");
    expect(l, "resume", "program/a", NULL, 202, NULL);
    wait_status(l, "program/a", "completed");
    expect(l, "state", "program/a", NULL, 200, "{'n':2}");
    loom_close(l);
    remove_folder(dir);
}

static void hot_reload(void **state) {
    (void)
        state; /* A suspended actor finishes on the module it started with, the next turn runs the new one; the next attempt of an activity too. */
    struct loom *l = open_scripts("memory");
    struct buf one = guest_c("#include <loom/guest.h>\nLOOM_ACTOR(v) { loom_must(loom_await(loom_wait_event(\"x\", "
                             "0))); loom_return(\"1\"); }\n");
    struct buf two = guest_c("#include <loom/guest.h>\nLOOM_ACTOR(v) { loom_return(\"2\"); }\n");
    struct answer a;
    deploy_module(l, false, "v", buf_view(&one), NULL);
    deploy_module(l, true, "w", buf_view(&two), NULL);
    submit(l, about("call", "v/a", "null"), &a);
    wait_status(l, "v/a", "suspended");
    deploy_module(l, false, "v", buf_view(&two), "'description':'new'");
    expect(l, "call", "v/b", "null", 200, "2");
    send_event(l, "v/a", "x", "1");
    await_answer(&a);
    check(&a, 200, "1");
    expect(l, "call", "v/a", "null", 200, "2");
    expect_activity(l, "a", "{'name':'w','input':null}", "'ok':2");
    struct buf three = guest_c("#include <loom/guest.h>\nLOOM_ACTIVITY(v) { loom_return(\"3\"); }\n");
    deploy_module(l, true, "w", buf_view(&three), NULL);
    expect_activity(l, "a", "{'name':'w','input':null}", "'ok':3");
    buf_free(&one);
    buf_free(&two);
    buf_free(&three);
    loom_close(l);
}

/* ---- large things ---- */

/* {"big":"xxx…"} or a step that stores so many bytes. */
static char *repeated(const char *before, size_t n, const char *after) {
    struct buf b = {0};
    buf_str(&b, str_of(before));
    memset(buf_reserve(&b, n), 'x', n);
    b.n += n;
    buf_str(&b, str_of(after));
    buf_char(&b, '\0');
    return b.p;
}

static void large_state(void **state) {
    (void)
        state; /* A state above 16 KiB has a row of its own, small patches do not write it again, and it is whole after restarts. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    char *grow = repeated("[['state.patch',[{'op':'add','path':'/big','value':'", 40000,
                          "'},{'op':'add','path':'/n','value':[]}]]]");
    expect_call(l, "script/a", grow, "[null]");
    free(grow);
    char want[64] = "[[]]";
    for (int round = 1; round <= 3; round++) {
        for (int i = 0; i < 3; i++)
            expect_call(l, "script/a", "[['state.patch',[{'op':'add','path':'/n/-','value':1}]]]", "[null]");
        expect(l, "send", "script/a",
               "[['state.patch',[{'op':'add','path':'/n/-','value':2}]]," WAIT_X
               ",['state.patch',[{'op':'add','path':'/n/-','value':3}]]]",
               202, NULL);
        wait_status(l, "script/a", "suspended");
        loom_close(l);
        l = open_scripts(dir);
        snprintf(want, sizeof want, "%d", round * 5 - 2);
        expect_field(l, "script/a", "/state/n/3", "2");
        send_event(l, "script/a", "x", "1");
        wait_status(l, "script/a", "idle");
        expect_code(l,
                    about("call", "script/a", "[['state.patch',[{'op':'replace','path':'/n','value':0}]],['fail',{}]]"),
                    422, "failed");
        if (round < 3) {
            loom_close(l);
            l = open_scripts(dir);
        }
    }
    expect_call(l, "script/a", "[['state.get','/n']]", "[[1,1,1,2,3,1,1,1,2,3,1,1,1,2,3]]");
    expect_code(l, about("call", "script/a", "[['state.patch',[{'op':'remove','path':'/big'}]],['fail',{}]]"), 422,
                "failed");
    loom_close(l);
    l = open_scripts(dir);
    expect_call(l, "script/a",
                "[['state.get','/n/14'],['state.patch',[{'op':'remove','path':'/big'}]],['state.get','/n/0']]",
                "[3,null,1]");
    loom_close(l);
    remove_folder(dir);
}

static void large_payload(void **state) {
    (void)
        state; /* Inputs, results and states of 256 KiB and more are kept as blobs and come back the same after a restart. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    char *in = repeated("[['state.patch',[{'op':'add','path':'','value':'", 400000,
                        "'}]],['event.wait',{'type':'x'}],['await',{'promises':[1],'mode':'any'}],['state.get','']]");
    char *event = repeated("'", 300000, "'"), *out = repeated("[null,1,{'promise':1,'ok':'", 300000, "'},'");
    struct buf want = {0};
    buf_str(&want, str_of(out));
    memset(buf_reserve(&want, 400000), 'x', 400000);
    want.n += 400000;
    buf_add(&want, "']", 3);
    struct loom_request call = with_id(about("call", "script/a", in), "m");
    call.timeout_ms = 1;
    expect_request(l, call, 202, NULL);
    wait_status(l, "script/a", "suspended");
    loom_close(l);
    l = open_scripts(dir);
    send_event(l, "script/a", "x", event);
    call.timeout_ms = 0;
    expect_request(l, call, 200, want.p);
    loom_close(l);
    l = open_scripts(dir);
    expect_request(l, call, 200, want.p);
    free(in);
    free(event);
    free(out);
    buf_free(&want);
    loom_close(l);
    remove_folder(dir);
}

/* ---- time travel and fork ---- */

static int rows_with(const char *dir, const char *condition) {
    char path[64], sql[256];
    sqlite3 *db;
    sqlite3_stmt *q;
    snprintf(path, sizeof path, "%s/loom.db", dir);
    snprintf(sql, sizeof sql, "SELECT count(*) FROM rows WHERE kind = %d AND (%s)", (int)ROW_JOURNAL, condition);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &q, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    int n = sqlite3_column_int(q, 0);
    sqlite3_finalize(q);
    sqlite3_close(db);
    return n;
}

static void time_travel(void **state) {
    (void)
        state; /* The state after any past entry can be asked for, also past failed turns; a moment beyond the journal is refused. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a",
                "[['state.patch',[{'op':'add','path':'/n','value':1}]],['state.patch',[{'op':'replace','path':'/"
                "n','value':2}]]]",
                "[null,null]");
    expect_code(
        l,
        about("call", "script/a", "[['state.patch',[{'op':'replace','path':'/n','value':9}]],['fail',{'code':'odd'}]]"),
        422, "odd");
    expect_call(l, "script/a", "[['state.patch',[{'op':'replace','path':'/n','value':3}]]]", "[null]");
    static const char *const past[] = {NULL,      "{}",      "{'n':1}", "{'n':2}", "{'n':2}", "{'n':2}",
                                       "{'n':9}", "{'n':2}", "{'n':2}", "{'n':2}", "{'n':3}", "{'n':3}"};
    for (int64_t at = 1; at <= 11; at++) {
        struct loom_request look = about("state", "script/a", NULL);
        look.at = at;
        expect_request(l, look, 200, past[at]);
    }
    struct loom_request look = about("state", "script/a", NULL);
    look.at = 12;
    expect_code(l, look, 400, "invalid_argument");
    loom_close(l);
}

static void journal_retention(void **state) {
    (void)
        state; /* What a type's journalRetention leaves is bounded over many turns, can be read and travelled through, and
                  * says that what came before was removed; the actor goes on from it after a restart. */
    char *dir = make_folder(), set[80];
    struct loom *l = open_scripts(dir);
    deploy_module(l, false, "short", script_wasm(), "'journalRetention':6");
    for (int i = 1; i <= 20; i++) {
        snprintf(set, sizeof set, "[['state.patch',[{'op':'add','path':'/n','value':%d}]]]", i);
        expect_call(l, "short/a", set, "[null]");
    }
    assert_in_range(entries_of(l, "short/a", "turn_started"), 2, 3);
    struct loom_request look = about("state", "short/a", NULL), entries = about("journal", "short/a", NULL);
    look.at = 54;
    expect_request(l, look, 200, "{'n':18}");
    look.at = 30;
    expect_code(l, look, 404, "not_found");
    entries.from = 30;
    expect_code(l, entries, 404, "not_found");
    entries.from = 60;
    expect_request(l, entries, 200, NULL);
    loom_close(l);
    l = open_scripts(dir);
    expect(l, "state", "short/a", NULL, 200, "{'n':20}");
    expect_call(l, "short/a", "[['state.patch',[{'op':'add','path':'/n','value':21}]]]", "[null]");
    expect_code(l, look, 404, "not_found");
    assert_in_range(entries_of(l, "short/a", "turn_started"), 2, 3);
    loom_close(l);
    assert_in_range(rows_with(dir, "instr(key, CAST('/short/' AS BLOB))"), 1, 9);
    remove_folder(dir);
}

static void forking(void **state) {
    (void)state; /* A fork is a new actor with the journal up to an entry; it goes on from there on its own. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a", "[['state.patch',[{'op':'add','path':'/before','value':1}]]]", "[null]");
    expect(l, "send", "script/a",
           "[['state.patch',[{'op':'add','path':'/n','value':1}]]," WAIT_X
           ",['state.patch',[{'op':'add','path':'/x','value':1}]]]",
           202, NULL);
    wait_status(l, "script/a", "suspended");
    send_event(l, "script/a", "x", "1");
    wait_status(l, "script/a", "idle");
    expect(l, "fork", "script/a", "{'key':'b','from':6}", 202, NULL);
    wait_status(l, "script/b", "suspended");
    expect(l, "state", "script/b", NULL, 200, "{'before':1,'n':1}");
    send_event(l, "script/b", "x", "2");
    wait_status(l, "script/b", "idle");
    expect(l, "state", "script/b", NULL, 200, "{'before':1,'n':1,'x':1}");
    expect(l, "state", "script/a", NULL, 200, "{'before':1,'n':1,'x':1}");
    expect_code(l, about("fork", "script/a", "{'key':'b'}"), 409, "exists");
    expect_code(l, about("fork", "script/a", "{'key':'c','from':99}"), 400, "invalid_argument");
    expect_code(l, about("fork", "script/a", "{}"), 400, "invalid_argument");
    expect_call(l, "script/b", "[]", "[]");
    expect(l, "fork", "script/a", "{'key':'whole'}", 202,
           "{'actorId':'script/whole','status':'idle'}"); /* no turn to end */
    wait_status(l, "script/whole", "idle");
    expect(l, "state", "script/whole", NULL, 200, "{'before':1,'n':1,'x':1}");
    expect_call(l, "script/whole", "[['state.get','/x']]", "[1]");
    expect_call(l, "script/t", "[['timer',{'delayMs':20}],['await',{'promises':[1]}]]",
                "[1,[{'promise':1,'ok':null}]]");
    expect(l, "fork", "script/t", "{'key':'u','from':2}", 202, NULL); /* its timer fires, too */
    wait_status(l, "script/u", "idle");
    assert_int_equal(entries_of(l, "script/u", "timer_fired"), 1);
    loom_close(l);
}

/* Makes what is known of a message as old as can be. */
static void age_message(const char *dir, struct str key, const char *status) {
    struct arena mem = {0};
    struct error err;
    uint64_t term, seq;
    struct store *s = store_sqlite_open(arena_json(&mem, "%s/loom.db", dir).p, env_system(), false, &err);
    assert_non_null(s);
    assert_int_equal(s->ops->claim(s, STR("test"), &term, &seq, &err), 0);
    struct row row = {ROW_INBOX, key, arena_json(&mem, "{\"hash\":\"0\",\"status\":%z,\"at\":1,\"reply\":1}", status)};
    assert_int_equal(s->ops->commit(s, &(struct batch){term, seq + 1, &row, 1}, &err), COMMIT_OK);
    s->ops->close(s);
    arena_free(&mem);
}

static void replies_are_forgotten(void **state) {
    (void)
        state; /* 24 hours after its reply a message id is unknown again, however many there are; a younger one is not, nor one without a reply. */
    enum { MANY = 1100 };
    static struct answer many[MANY];
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    for (int i = 0; i < MANY; i++) submit(l, about("send", "script/b", "[]"), &many[i]);
    for (int i = 0; i < MANY; i++) {
        await_answer(&many[i]);
        answer_free(&many[i]);
    }
    struct loom_request old = with_id(about("call", "script/a", "[]"), "old"),
                        young = with_id(about("call", "script/a", "[]"), "young");
    expect_request(l, old, 200, "[]");
    expect_request(l, young, 200, "[]");
    loom_close(l);
    age_message(dir, STR("old\ndefault/script/a"), "completed");
    age_message(dir, STR("waits\ndefault/script/c"), "queued");
    l = open_scripts(dir);
    old.op = young.op = "message";
    for (int i = 0; i < 1000; i++) {
        struct answer a = ask(l, old);
        int status = a.status;
        answer_free(&a);
        if (status == 404) break;
        usleep(10000);
    }
    expect_code(l, old, 404, "not_found");
    expect_request(l, young, 200, "{'messageId':'young','status':'completed','reply':[]}");
    expect_request(l, with_id(about("message", "script/c", NULL), "waits"), 200, NULL);
    loom_close(l);
    remove_folder(dir);
}

/* ---- a store that has decayed ---- */

/* Changes the store of a loom that is closed; %d is a kind of rows. */
static void decay(const char *dir, const char *sql, enum row_kind kind) {
    char path[64], statement[256];
    sqlite3 *db;
    snprintf(path, sizeof path, "%s/loom.db", dir);
    snprintf(statement, sizeof statement, sql, (int)kind);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, statement, NULL, NULL, NULL), SQLITE_OK);
    assert_true(sqlite3_changes(db) > 0);
    assert_int_equal(sqlite3_exec(db, "VACUUM", NULL, NULL, NULL), SQLITE_OK); /* or Loom refuses its pages */
    sqlite3_close(db);
}

#define DAMAGED(key) "UPDATE rows SET sum = sum + 1 WHERE kind = %d AND instr(key, CAST('" key "' AS BLOB))"
#define DELETED(key) "DELETE FROM rows WHERE kind = %d AND instr(key, CAST('" key "' AS BLOB))"

static void damaged_rows_stop_their_actors(void **state) {
    (void)state; /* An actor of which a row is damaged or missing says so and does nothing; the others, even one that it
                  * has called, go on. */
    static const struct {
        const char *actor, *sql;
        enum row_kind kind;
    } damaged[] = {
        {"script/document", DAMAGED("script/document"), ROW_ACTOR},
        {"script/journal", DAMAGED("script/journal"), ROW_JOURNAL},
        {"script/mail", DAMAGED("mdefault/script/mail"), ROW_MAILBOX},
        {"script/event", DAMAGED("edefault/script/event"), ROW_MAILBOX},
        {"script/state", DELETED("script/state' || char(0) || 's"), ROW_ACTOR},
        {"script/lost", DELETED("script/lost"), ROW_JOURNAL},
        {"script/blob", NULL, ROW_JOURNAL},
    };
    enum { COUNT = sizeof damaged / sizeof *damaged };
    const char *wait = "[['timer',{'delayMs':150}],['actor.call',{'to':'script/called','input':[" WAIT_X
                       "]}],['event.wait',{'type':'x'}],['await',{'promises':[1,3]}],['return','";
    char *dir = make_folder(), *grow = repeated("[['state.patch',[{'op':'add','path':'/big','value':'", 20000, "'}]]]"),
         *small = repeated(wait, 1, "']]"), *large = repeated(wait, 300000, "']]"), line[128];
    struct loom *l = open_scripts(dir);
    struct loom_request once = with_id(about("call", "script/once", "[]"), "once");
    expect_request(l, once, 200, "[]");
    for (int i = 0; i <= COUNT; i++) {
        const char *actor = i < COUNT ? damaged[i].actor : "script/whole";
        expect_call(l, actor, grow, "[null]");
        expect(l, "send", actor, i == COUNT || damaged[i].sql ? small : large, 202, NULL);
        expect(l, "send", actor, "[['finish',1]]", 202, NULL);
        send_event(l, actor, "y", "1");
        wait_status(l, actor, "suspended");
    }
    loom_close(l);
    for (int i = 0; i < COUNT; i++)
        if (damaged[i].sql) decay(dir, damaged[i].sql, damaged[i].kind);
    decay(dir, DAMAGED("once"), ROW_INBOX);
    snprintf(line, sizeof line, "find %s/blobs -size +250k -delete", dir);
    assert_int_equal(system(line), 0);
    l = open_scripts(dir);
    for (int i = 0; i < COUNT; i++) {
        struct answer a = ask(l, with_id(about("call", damaged[i].actor, "[]"), "m"));
        if (a.status != 500) fail_msg("%s: %d %s", damaged[i].actor, a.status, a.body);
        check_code(&a, 500, "damaged");
        send_event(l, "script/called", "x", "1");
    }
    expect_code(l, once, 500, "damaged"); /* it may have been done */
    once.op = "message";
    expect_code(l, once, 500, "damaged");
    assert_int_equal(entries_of(l, "script/once", "turn_started"), 1);
    send_event(l, "script/called", "x", "1");
    send_event(l, "script/whole", "x", "1");
    wait_status(l, "script/whole", "completed");
    wait_status(l, "script/called", "idle");
    loom_close(l);
    free(grow);
    free(small);
    free(large);
    remove_folder(dir);
}

static void lost_definitions(void **state) {
    (void)state; /* Without their definitions an open turn pauses, mail becomes a dead letter, an activity fails;
                  * deployed again, the turn goes on. */
    NEEDS_WASM();
    static const char *const lost[] = {"actor-type/default/wasm/", "activity/default/act/"};
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    struct loom_request late = with_id(about("send", "wasm/mail", "[]"), "late");
    late.delay_ms = 200;
    expect_request(l, late, 202, NULL);
    expect(l, "send", "wasm/turn", "[['timer',{'delayMs':200}],['await',{'promises':[1]}],['finish',1]]", 202, NULL);
    struct loom_request runs = with_id(
        about("send", "script/a", "[['activity',{'name':'act','input':[['spin']]}],['await',{'promises':[1]}]]"),
        "runs");
    expect_request(l, runs, 202, NULL);
    wait_status(l, "wasm/turn", "suspended");
    wait_status(l, "script/a", "running");
    loom_close(l);
    for (int i = 0; i < 2; i++) {
        char sql[128];
        snprintf(sql, sizeof sql, DELETED("%s"), ROW_REGISTRY, lost[i]);
        decay(dir, sql, ROW_REGISTRY);
    }
    l = open_at(dir);
    wait_status(l, "wasm/turn", "paused");
    expect_field(l, "wasm/turn", "/suspendReason",
                 "'not_found: the definition that default/wasm/turn runs is gone; deploy it again and resume'");
    expect_code(l, about("call", "wasm/mail", "[]"), 404, "not_found");
    late.op = "message";
    for (bool failed = false; !failed; usleep(1000)) {
        struct answer a = ask(l, late);
        failed = strstr(a.body, "\"failed\"") && strstr(a.body, "not deployed any more");
        answer_free(&a);
    }
    runs.op = "call";
    struct answer a = ask(l, runs);
    if (!strstr(a.body, "no activity act is deployed")) fail_msg("%d %s", a.status, a.body);
    answer_free(&a);
    deploy_module(l, false, "wasm", script_wasm(), NULL);
    expect(l, "resume", "wasm/turn", NULL, 202, NULL);
    wait_status(l, "wasm/turn", "completed");
    loom_close(l);
    remove_folder(dir);
}

/* Puts the text into the place of every compiled module of the cache; sealed: with the checksum that is right for it. */
static void spoil_cache(const char *cache, struct str bytes, bool sealed) {
    char file[64], line[256];
    struct buf b = {0};
    uint8_t sum[32];
    sha256(bytes, sum);
    buf_str(&b, bytes);
    if (sealed) buf_add(&b, sum, sizeof sum);
    snprintf(file, sizeof file, "%s/spoilt", cache);
    snprintf(line, sizeof line, "for f in %s/loom/modules/*.cwasm; do cp %s $f; done", cache, file);
    assert_true(path_write(file, buf_view(&b)));
    assert_int_equal(system(line), 0);
    buf_free(&b);
}

static void spoiled_cache(void **state) {
    (void)state; /* A compiled module of the cache that is cut, or that does not load, is compiled anew; where the store
                  * has lost the module, too, the turn pauses until it is uploaded again. */
    NEEDS_WASM();
    char *dir = make_folder(), *cache = make_folder(), line[128];
    setenv("XDG_CACHE_HOME", cache, 1);
    struct loom *l = open_scripts(dir);
    expect(l, "send", "wasm/a", "[" WAIT_X ",['finish',1]]", 202, NULL);
    wait_status(l, "wasm/a", "suspended");
    for (int i = 0; i < 3; i++) {
        loom_close(l);
        spoil_cache(cache, i == 1 ? STR("of another machine") : STR("cut"), i == 1);
        snprintf(line, sizeof line, "mv %s/blobs %s/lost", dir, dir);
        if (i == 2) assert_int_equal(system(line), 0);
        l = open_at(dir);
        if (i < 2) expect_call(l, "wasm/b", "[['return',1]]", "1");
    }
    send_event(l, "wasm/a", "x", "1");
    wait_status(l, "wasm/a", "paused");
    upload(l, "wasm", "1", script_wasm(), true);
    expect(l, "resume", "wasm/a", NULL, 202, NULL);
    wait_status(l, "wasm/a", "completed");
    loom_close(l);
    unsetenv("XDG_CACHE_HOME");
    remove_folder(cache);
    remove_folder(dir);
}

/* ---- residency ---- */

static void small_budget(void **state) {
    (void)
        state; /* With almost no memory for guests the least recently used are evicted, and all get the same results. */
    enum { COUNT = 40 };
    static struct answer a[COUNT];
    struct loom *l = open_with((struct loom_config){.store = "memory", .memory_budget = 1, .idle_ms = 1});
    deploy_module(l, false, "wasm", script_wasm(), NULL);
    for (int i = 0; i < COUNT; i++) {
        char actor[32], in[256];
        snprintf(actor, sizeof actor, "wasm/%d", i);
        snprintf(in, sizeof in,
                 "[['state.patch',[{'op':'add','path':'/n','value':%d}]]," WAIT_X
                 ",['timer',{'delayMs':1}],['await',{'promises':[2],'mode':'any'}],['state.get','/n']]",
                 i);
        submit(l, about("call", actor, in), &a[i]);
    }
    for (int i = 0; i < COUNT; i++) {
        char actor[32];
        snprintf(actor, sizeof actor, "wasm/%d", i);
        send_event(l, actor, "x", "1");
    }
    for (int i = 0; i < COUNT; i++) {
        char want[128];
        snprintf(want, sizeof want, "[null,1,{'promise':1,'ok':1},2,{'promise':2,'ok':null},%d]", i);
        await_answer(&a[i]);
        check(&a[i], 200, want);
    }
    loom_close(l);
}

static void idle_actors_leave(void **state) {
    (void)state; /* Idle actors leave memory, however many, and come back with their state at the next message. */
    enum { MANY = 2000 };
    static struct answer many[MANY];
    struct loom *l = open_with((struct loom_config){.store = "memory", .idle_ms = 1});
    if (ENGINE_EVICT) deploy_module(l, false, "script", script_wasm(), NULL);
    for (int i = 0; i < MANY; i++) {
        char actor[32];
        snprintf(actor, sizeof actor, "script/%d", i);
        submit(l, about("send", actor, "[]"), &many[i]);
    }
    for (int i = 0; i < MANY; i++) {
        await_answer(&many[i]);
        check(&many[i], 202, NULL);
    }
    expect_call(l, "script/a", "[['state.patch',[{'op':'add','path':'/n','value':1}]]]", "[null]");
    for (bool gone = false; !gone; usleep(10000)) {
        char *metrics = loom_metrics();
        const char *at = strstr(metrics, "\nloom_actors_loaded ");
        gone = at && atoi(at + 20) == 0;
        free(metrics);
    }
    expect_call(l, "script/a", "[['state.get','/n']]", "[1]");
    loom_close(l);
}

static void namespaces(void **state) {
    (void)state; /* Namespaces share neither actors nor definitions, and an actor reaches only its own. */
    NEEDS_WASM();
    struct loom *l = open_scripts("memory");
    struct loom_request other = about("call", "script/a", "[['state.get','']]");
    expect_call(l, "script/a", "[['state.patch',[{'op':'add','path':'/n','value':1}]]]", "[null]");
    other.ns = text("other");
    if (!ENGINE_EVICT) expect_request(l, other, 200, "[{}]"); /* native guests belong to all */
    other.type = text("wasm");
    expect_code(l, other, 404, "not_found");
    other.ns = text("Bad Name");
    expect_code(l, other, 400, "invalid_argument");
    loom_close(l);
}

/* ---- the stream ---- */

struct watch {
    int64_t last;
    int count, gaps;
    bool completed;
};

static void on_event(void *ctx, const struct loom_event *event) {
    struct watch *w = ctx;
    pthread_mutex_lock(&engine_lock);
    w->gaps += event->id != w->last + 1;
    w->last = event->id;
    w->count++;
    w->completed |= memmem(event->json.p, event->json.n, "turn_finished", 13) != NULL;
    pthread_cond_broadcast(&engine_changed);
    pthread_mutex_unlock(&engine_lock);
}

static void stream_without_gaps(void **state) {
    (void)state; /* A subscriber from 0 gets every entry once, in order: first the recorded ones, then as they come. */
    struct loom *l = open_scripts("memory");
    struct watch early = {0}, late = {0};
    uint64_t one = loom_subscribe(l, (struct loom_str){0}, text("script/a"), 0, on_event, &early);
    for (int i = 0; i < 20; i++)
        expect(l, "send", "script/a", "[['timer',{'delayMs':1}],['await',{'promises':[1]}]]", 202, NULL);
    uint64_t two = loom_subscribe(l, (struct loom_str){0}, text("script/a"), 0, on_event, &late);
    expect(l, "send", "script/a", "[['finish',null]]", 202, NULL);
    pthread_mutex_lock(&engine_lock);
    while (!early.completed || !late.completed) pthread_cond_wait(&engine_changed, &engine_lock);
    pthread_mutex_unlock(&engine_lock);
    assert_int_equal(early.gaps + late.gaps, 0);
    assert_int_equal(early.count, late.count);
    loom_unsubscribe(l, one);
    loom_unsubscribe(l, two);
    loom_close(l);
}

static void stream_of_large_rows(void **state) {
    (void)state; /* A subscriber gets the recorded entries also where a row is so large that it is kept as a blob. */
    struct loom *l = open_scripts("memory");
    struct watch w = {0};
    char *in = repeated("[['state.patch',[{'op':'add','path':'','value':'", 400000, "'}]],['finish',1]]");
    expect(l, "call", "script/a", in, 200, "1");
    uint64_t handle = loom_subscribe(l, text(NULL), text("script/a"), 0, on_event, &w);
    expect(l, "state", "script/b", NULL, 404, NULL); /* answered behind the subscription */
    loom_unsubscribe(l, handle);
    assert_int_equal(w.count, 3);
    assert_int_equal(w.gaps, 0);
    assert_true(w.completed);
    free(in);
    loom_close(l);
}

/* ---- the end ---- */

static void graceful_shutdown(void **state) {
    (void)state; /* Closing answers who waits with `stopping`; everything accepted is there afterwards. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    struct answer a, b;
    submit(l, with_id(about("call", "script/a", "[" WAIT_X "]"), "m"), &a);
    wait_status(l, "script/a", "suspended");
    submit(l, with_id(about("call", "script/a", "[['return',2]]"), "n"), &b);
    loom_close(l);
    check_code(&a, 503, "stopping");
    check_code(&b, 503, "stopping");
    l = open_scripts(dir);
    send_event(l, "script/a", "x", "1");
    expect_request(l, with_id(about("call", "script/a", "[" WAIT_X "]"), "m"), 200, "[1,{'promise':1,'ok':1}]");
    expect_request(l, with_id(about("call", "script/a", "[['return',2]]"), "n"), 200, "2");
    loom_close(l);
    remove_folder(dir);
}

/* Goal: closing waits for a module that is being compiled: it is answered, and there when the store is opened again. */
static void closing_waits_for_uploads(void **state) {
    (void)state;
    NEEDS_WASM();
    char *dir = make_folder();
    struct buf wasm = guest_wat("(module (memory (export \"memory\") 1) (func (export \"run\")))");
    struct answer a = {0};
    setenv("XDG_CACHE_HOME", dir, 1); /* where nothing is compiled yet */
    struct loom *l = open_at(dir);
    loom_submit(l, &(struct loom_request){.op = "module.put",
                                          .type = text("late"),
                                          .key = text("1"),
                                          .body = {wasm.p, wasm.n},
                                          .reply = on_reply,
                                          .ctx = &a});
    loom_close(l);
    assert_int_equal(a.status, 201);
    answer_free(&a);
    l = open_at(dir);
    upload(l, "late", "1", buf_view(&wasm), false);
    loom_close(l);
    unsetenv("XDG_CACHE_HOME");
    buf_free(&wasm);
    remove_folder(dir);
}

static void bad_requests(void **state) {
    (void)state; /* What is wrong with a request is said with its code, and nothing is made. */
    struct loom *l = open_scripts("memory");
    expect_code(l, about("call", "nobody/a", "1"), 404, "not_found");
    expect_code(l, about("call", "Script/a", "1"), 400, "invalid_argument");
    expect_code(l, about("call", "script/", "1"), 400, "invalid_argument");
    expect_code(l, about("call", "script/a", "{"), 400, "invalid_json");
    expect_code(l, about("call", "script/a", "{'a':1,'a':2}"), 400, "invalid_json");
    expect_code(l, about("get", "script/a", NULL), 404, "not_found");
    expect_code(l, about("nonsense", "script/a", NULL), 404, "not_found");
    char *outside = quoted("{'activityName':'x','version':'1','wasmBlobUrl':"
                           "'sha256:../../../../../../../../../../../../../../../../../../../../etcx'}");
    struct loom_request escaping = {.op = "activity.put", .type = text("x"), .key = text("1"), .body = text(outside)};
    expect_code(l, escaping, 400, "invalid_document");
    free(outside);
    struct loom_request early = about("send", "script/a", "1");
    early.delay_ms = -1;
    expect_code(l, early, 400, "invalid_argument");
    char *big = repeated("'", 2 << 20, "'");
    expect_code(l, about("call", "script/a", big), 413, "too_large");
    free(big);
    expect_code(
        l, (struct loom_request){.op = "module.put", .type = text("m"), .key = text("1"), .body = text("not wasm")},
        400, "invalid_module");
    expect_code(l,
                (struct loom_request){.op = "actor-type.put",
                                      .type = text("t"),
                                      .key = text("1"),
                                      .body = text("{'actorType':'t','version':'1','wasmBlobUrl':'module:none@1'}")},
                404, "not_found");
    expect_code(l,
                (struct loom_request){.op = "actor-type.put",
                                      .type = text("t"),
                                      .key = text("1"),
                                      .body = text("{'actorType':'t','version':'2','wasmBlobUrl':'module:act@1'}")},
                400, "invalid_document");
    expect_code(l, about("get", "script/a", NULL), 404, "not_found");
    loom_close(l);
}

/* ---- a store that refuses ---- */

static _Atomic bool disk_full;
static pthread_mutex_t disk = PTHREAD_MUTEX_INITIALIZER; /* whoever holds it holds up every write */

static ssize_t full_pwrite(int fd, const void *p, size_t n, off_t at) {
    pthread_mutex_lock(&disk);
    pthread_mutex_unlock(&disk);
    errno = ENOSPC;
    return disk_full ? -1 : pwrite(fd, p, n, at);
}

static void fill_disk(bool full) {
    sqlite3_vfs *vfs = sqlite3_vfs_find(NULL);
    vfs->xSetSystemCall(vfs, "pwrite", (sqlite3_syscall_ptr)full_pwrite);
    vfs->xSetSystemCall(vfs, "pwrite64", (sqlite3_syscall_ptr)full_pwrite);
    disk_full = full;
}

/* Repeats a request under its id until Loom takes it. */
static struct answer insist(struct loom *l, struct loom_request req) {
    for (;;) {
        struct answer a = ask(l, req);
        if (a.status != 503 && a.status != 507) return a;
        answer_free(&a);
        usleep(2000);
    }
}

static void full_disk(void **state) {
    (void)
        state; /* On a full disk nothing is acknowledged, reads go on, and work resumes by itself when space returns. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    struct answer waiting;
    submit(l,
           with_id(about("call", "script/a",
                         "[['state.patch',[{'op':'add','path':'/n','value':1}]]," WAIT_X
                         ",['state.patch',[{'op':'add','path':'/n','value':2}]]]"),
                   "w"),
           &waiting);
    wait_status(l, "script/a", "suspended");
    pthread_mutex_lock(&gate);
    expect(l, "send", "script/r",
           "[['activity',{'name':'gated','input':null}],['must',['await',{'promises':[1]}]],['finish',1]]", 202, NULL);
    fill_disk(true);
    expect_code(l, with_id(about("send", "script/b", "[]"), "m"), 507, "disk_full");
    expect_field(l, "script/r", "/status", "'running'");
    pthread_mutex_unlock(&gate);
    expect_code(l, with_id(about("event", "script/a", "1"), "x"), 507, "disk_full");
    expect_code(l, with_id(about("call", "script/a", "[]"), "m"), 507, "disk_full");
    expect(l, "state", "script/a", NULL, 200, "{'n':1}");
    expect_field(l, "script/a", "/status", "'suspended'");
    expect_code(l, about("get", "script/b", NULL), 404, "not_found");
    assert_false(answered(&waiting));
    fill_disk(false);
    struct answer a = insist(l, with_id(about("event", "script/a", "1"), "x"));
    check(&a, 202, NULL);
    await_answer(&waiting);
    check(&waiting, 200, "[null,1,{'promise':1,'ok':1},null]");
    a = insist(l, with_id(about("call", "script/b", "[['return',5]]"), "m"));
    check(&a, 200, "5");
    wait_status(l, "script/r", "completed");
    loom_close(l);
    remove_folder(dir);
}

static void lost_deployment(void **state) {
    (void)state; /* A definition of which the batch was lost is not there: no turn may begin with it. */
    NEEDS_WASM();
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    struct loom_request put = {
        .op = "actor-type.put",
        .type = text("late"),
        .key = text("1"),
        .body = text("{\"actorType\":\"late\",\"version\":\"1\",\"wasmBlobUrl\":\"module:wasm@1\"}")};
    fill_disk(true);
    expect_code(l, put, 507, "disk_full");
    fill_disk(false);
    struct answer a = insist(l, with_id(about("send", "script/a", "[]"), "m"));
    check(&a, 202, NULL);
    expect_code(l, about("call", "late/a", "[]"), 404, "not_found");
    expect_request(l, put, 201, NULL);
    expect_call(l, "late/a", "[]", "[]");
    loom_close(l);
    remove_folder(dir);
}

static double metric(const char *name) {
    char line[64], *metrics = loom_metrics();
    int length = snprintf(line, sizeof line, "\n%s ", name);
    double n = strtod(strstr(metrics, line) + length, NULL);
    free(metrics);
    return n;
}

static void lost_result(void **state) {
    (void)
        state; /* A result whose batch is lost is applied again when the disk has room: its attempt is not made again. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    double failed = metric("loom_commits_failed_total");
    gate_calls = 0;
    fill_disk(false);
    pthread_mutex_lock(&gate);
    expect(l, "send", "script/a",
           "[['activity',{'name':'gated','input':null}],['must',['await',{'promises':[1]}]],['finish',1]]", 202, NULL);
    while (__atomic_load_n(&gate_calls, __ATOMIC_SEQ_CST) < 1) usleep(1000); /* so its entry is durable */
    fill_disk(true);
    pthread_mutex_unlock(&gate);
    while (metric("loom_commits_failed_total") == failed) usleep(1000);
    fill_disk(false);
    wait_status(l, "script/a", "completed");
    assert_int_equal(gate_calls, 1);
    assert_int_equal(entries_of(l, "script/a", "activity_retry"), 0);
    loom_close(l);
    remove_folder(dir);
}

struct pair {
    struct loom *l;
    struct answer answers[2], sent;
};

/* On the loop's thread, so that it finds both at once: a lone one it would commit itself, and wait for the disk. */
static void send_pair(void *ctx, const struct loom_reply *reply) {
    struct pair *p = ctx;
    submit(p->l, about("send", "script/x", "[]"), &p->answers[0]);
    submit(p->l, about("send", "script/y", "[]"), &p->answers[1]);
    on_reply(&p->sent, reply);
}

static void full_batch(void **state) {
    (void)state; /* What is more than a batch holds is refused at once while the disk is behind, and taken later. */
    enum { MANY = 12 };
    static struct answer many[MANY];
    char *dir = make_folder(), *in = repeated("[['return','", 1 << 20, "']]"), actor[MANY][32];
    struct loom *l = open_scripts(dir);
    struct pair pair = {.l = l};
    fill_disk(false);
    pthread_mutex_lock(&disk);
    loom_submit(l, &(struct loom_request){.op = "actors", .reply = send_pair, .ctx = &pair});
    await_answer(&pair.sent);
    check(&pair.sent, 200, NULL);
    for (int i = 0; i < MANY; i++) {
        snprintf(actor[i], sizeof actor[i], "script/%d", i);
        submit(l, with_id(about("send", actor[i], in), "m"), &many[i]);
    }
    await_answer(&many[MANY - 1]);
    check_code(&many[MANY - 1], 503, "busy");
    many[MANY - 1].status = 503;
    assert_false(answered(&many[0]));
    pthread_mutex_unlock(&disk);
    for (int i = 0; i < 2; i++) {
        await_answer(&pair.answers[i]);
        check(&pair.answers[i], 202, NULL);
    }
    for (int i = 0; i < MANY; i++) {
        await_answer(&many[i]);
        if (many[i].status != 503) check(&many[i], 202, NULL);
        answer_free(&many[i]);
        struct answer a = insist(l, with_id(about("call", actor[i], in), "m"));
        check(&a, 200, NULL);
    }
    free(in);
    loom_close(l);
    remove_folder(dir);
}

static void long_batch(void **state) {
    (void)state; /* What a turn appends while the disk is busy has rows of bounded size, and the one in which `continue`
                  * begins a turn holds little of the turn before. */
    if (ENGINE_EVICT) return; /* a guest that was evicted waits for the disk */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    struct answer a;
    double turns = metric("loom_turns_started_total");
    fill_disk(false);
    pthread_mutex_lock(&disk);
    submit(l,
           about("send", "script/a",
                 "[['times',5000,['state.patch',[{'op':'add','path':'/n','value':1}]]],['continue',[" WAIT_X "]]]"),
           &a);
    while (metric("loom_turns_started_total") - turns < 2) usleep(1000);
    pthread_mutex_unlock(&disk);
    await_answer(&a);
    check(&a, 202, NULL);
    wait_status(l, "script/a", "suspended");
    loom_close(l);
    assert_int_equal(rows_with(dir, "instr(value, '\"turn\":2,') > 5000"), 0);
    assert_int_equal(rows_with(dir, "length(value) > 131072 OR value LIKE '%blob%'"), 0);
    remove_folder(dir);
}

static void fork_at_once(void **state) {
    (void)state; /* A fork is there as soon as it was asked for: mail and a second fork find it before it is durable. */
    if (ENGINE_EVICT) return; /* a guest that was evicted waits for the disk */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    struct answer first, forked, again, called, told;
    expect(l, "send", "script/a", "[" WAIT_X ",['state.patch',[{'op':'add','path':'/x','value':1}]]]", 202, NULL);
    wait_status(l, "script/a", "suspended");
    fill_disk(false);
    pthread_mutex_lock(&disk);
    submit(l, about("send", "script/z", "[]"), &first); /* what comes while the loop commits it is taken together */
    submit(l, about("fork", "script/a", "{'key':'b'}"), &forked);
    submit(l, about("fork", "script/a", "{'key':'b'}"), &again);
    submit(l, about("call", "script/b", "[['state.get','']]"), &called);
    submit(l, with_id(about("event", "script/b", "1"), "x"), &told);
    pthread_mutex_unlock(&disk);
    await_answer(&first);
    check(&first, 202, NULL);
    await_answer(&called);
    check(&called, 200, "[{'x':1}]");
    await_answer(&again);
    check_code(&again, 409, "exists");
    await_answer(&forked);
    check(&forked, 202, NULL);
    await_answer(&told);
    check(&told, 202, NULL);
    expect(l, "state", "script/a", NULL, 200, "{}");
    loom_close(l);
    remove_folder(dir);
}

struct client {
    pthread_t thread;
    struct loom *l;
    int number;
};

enum { CLIENTS = 4, ROUNDS = 25 };

/* Each message leaves its id in the state, by way of an activity, a timer and another actor. */
static void *client_main(void *arg) {
    struct client *c = arg;
    for (int i = 0; i < ROUNDS; i++) {
        char id[32], in[1024];
        snprintf(id, sizeof id, "c%d-%d", c->number, i);
        snprintf(in, sizeof in,
                 "[['state.patch',[{'op':'add','path':'/"
                 "%s','value':1}]],['activity',{'name':'act','input':[]}],['activity',{'name':'flaky','input':0}],['"
                 "timer',{'delayMs':1}],['actor.call',{'to':'script/z',"
                 "'input':[['state.patch',[{'op':'test','path':'','value':{}},{'op':'add','path':'/"
                 "never','value':1}]]]}],['await',{'promises':[1,2,3,4],'mode':'all'}],"
                 "['state.patch',[{'op':'test','path':'/%s','value':1},{'op':'replace','path':'/"
                 "%s','value':2}]],['return','%s']]",
                 id, id, id, id);
        char actor[32];
        snprintf(actor, sizeof actor, "script/s%d", (c->number + i) % 3);
        struct answer a = insist(c->l, with_id(about("call", actor, in), id));
        char want[40];
        snprintf(want, sizeof want, "\"%s\"", id);
        if (a.status != 200 || strcmp(a.body, want) != 0) fail_msg("%s: %d %s", id, a.status, a.body);
        answer_free(&a);
    }
    return NULL;
}

static void failing_commits(void **state) {
    (void)
        state; /* While commits fail now and then, clients that repeat under their id get every message done exactly once. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    struct client clients[CLIENTS];
    fill_disk(false);
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = (struct client){.l = l, .number = i};
        pthread_create(&clients[i].thread, NULL, client_main, &clients[i]);
    }
    for (int i = 0; i < 8; i++) {
        usleep(30000);
        fill_disk(true);
        usleep(15000);
        fill_disk(false);
    }
    for (int i = 0; i < CLIENTS; i++) pthread_join(clients[i].thread, NULL);
    int keys = 0;
    for (int i = 0; i < 3; i++) {
        char actor[32];
        snprintf(actor, sizeof actor, "script/s%d", i);
        struct answer a = ask(l, about("state", actor, NULL));
        for (const char *p = a.body; (p = strstr(p, ":2")) != NULL; p++) keys++;
        assert_null(strstr(a.body, ":1"));
        answer_free(&a);
    }
    assert_int_equal(keys, CLIENTS * ROUNDS);
    loom_close(l);
    remove_folder(dir);
}

/* ---- poison ---- */

static _Atomic bool deadly;

/* Takes the process down as soon as it may. */
static void killer(void) {
    if (loom_is(loom_input(), "live")) loom_return("'alive'");
    for (;; loom_await(loom_timer(5)))
        if (deadly) _exit(9);
}

/* Opens the store in a process of its own; the exit code: 9 killed by the guest, 0 lived on. */
static int live(const char *dir, bool first) {
    char name[] = "engine", again[] = "again", once[] = "first";
    char *args[] = {name, (char *)(uintptr_t)dir, first ? once : again, NULL};
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        execv("/proc/self/exe", args);
        _exit(1);
    }
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int child_main(const char *dir, bool first) {
    struct answer a;
    deadly = !first; /* a message dies with the process that it kills before it is durable */
    struct loom *l = open_at(dir);
    if (first) {
        expect_request(l, with_id(about("send", "killer/a", "1"), "poison"), 202, NULL);
        deadly = true;
        pause();
    }
    submit(l, with_id(about("call", "script/a", "[['return',1]]"), "good"), &a);
    await_answer(&a);
    answer_free(&a);
    expect_field(l, "killer/a", "/status", "'idle'");
    _exit(0);
}

static void fault_16_poison(void **state) {
    (void)
        state; /* A message that takes the worker down three times is given up, with its reason; other mail goes on. */
    char *dir = make_folder();
    int lives = 1;
    assert_int_equal(live(dir, true), 9);
    while (live(dir, false) == 9) assert_true(++lives < 12);
    assert_true(lives >= 3);
    struct loom *l = open_at(dir);
    struct loom_request again = with_id(about("call", "killer/a", "1"), "poison");
    expect_code(l, again, 422, "poison");
    expect(l, "call", "killer/a", "'live'", 200, "'alive'");
    expect_request(l, with_id(about("call", "script/a", "[['return',1]]"), "good"), 200, "1");
    loom_close(l);
    remove_folder(dir);
}

/* ---- corners ---- */

static void fault_23_determinism(void **state) {
    (void)
        state; /* Randomness, time and ids are the same in every replay: patches made of them always fit the journal. */
    static const char source[] =
        "#include <loom/guest.h>\n"
        "LOOM_ACTOR(dice) {\n"
        "    for (int i = 0; i < 6; i++) {\n"
        "        loom_patch(\"[{'op':'add','path':'/r%d','value':[%f,%l,%j]}]\", i, loom_random(), loom_now(), "
        "loom_self());\n"
        "        int both[] = {loom_timer(i), loom_spawn(\"script\", \"[['random',4]]\")};\n"
        "        loom_json got = loom_must(loom_await_all(both, 2));\n"
        "        loom_patch(\"[{'op':'add','path':'/g%d','value':[%j,%l]}]\", i, got, loom_now());\n"
        "        loom_result first = loom_await_any(both, 2);\n"
        "        loom_patch(\"[{'op':'add','path':'/f%d','value':%d}]\", i, first.promise);\n"
        "    }\n"
        "    loom_must(loom_await(loom_wait_event(\"x\", 0)));\n"
        "    loom_return(\"%j\", loom_state(\"\"));\n"
        "}\n";
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    struct buf wasm = guest_c(source);
    deploy_module(l, false, "dice", buf_view(&wasm), NULL);
    buf_free(&wasm);
    expect(l, "send", "dice/a", "null", 202, NULL);
    wait_status(l, "dice/a", "suspended");
    wait_field(l, "dice/a", "/suspendReason", "'event x'");
    struct answer before = ask(l, about("state", "dice/a", NULL));
    loom_close(l);
    l = open_scripts(dir);
    send_event(l, "dice/a", "x", "1");
    wait_status(l, "dice/a", "idle");
    struct answer after = ask(l, about("state", "dice/a", NULL));
    assert_string_equal(before.body, after.body);
    assert_int_equal(entries_of(l, "dice/a", "turn_completed"), 1);
    answer_free(&before);
    answer_free(&after);
    loom_close(l);
    remove_folder(dir);
}

static void cancel_a_running_activity(void **state) {
    (void)
        state; /* Cancelling a turn settles its await though an activity is still running, and the late result is ignored. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    gate_calls = 0;
    pthread_mutex_lock(&gate);
    submit(l,
           about("call", "script/a",
                 "[['activity',{'name':'gated','input':null}],['await',{'promises':[1],'mode':'any'}],['await',{'"
                 "promises':[1],'mode':'any'}],['state.patch',[{'op':'add','path':'/c','value':1}]]]"),
           &a);
    while (__atomic_load_n(&gate_calls, __ATOMIC_SEQ_CST) < 1) usleep(1000);
    expect(l, "cancel", "script/a", NULL, 202, NULL);
    await_answer(&a);
    check_code(&a, 422, "cancelled");
    pthread_mutex_unlock(&gate);
    expect_call(l, "script/a", "[['state.get','']]", "[{'c':1}]");
    assert_int_equal(entries_of(l, "script/a", "activity_completed"), 0);
    loom_close(l);
}

static void cancel_paused(void **state) {
    (void)state; /* A paused actor can be cancelled: the turn fails, the state goes back, later mail goes on. */
    char *dir = make_folder();
    loom_register_actor("program", first_program);
    struct loom *l = open_at(dir);
    expect_request(l, with_id(about("send", "program/a", "null"), "m"), 202, NULL);
    wait_status(l, "program/a", "suspended");
    loom_close(l);
    loom_register_actor("program", short_program);
    l = open_at(dir);
    send_event(l, "program/a", "x", "1");
    wait_status(l, "program/a", "paused");
    expect(l, "cancel", "program/a", NULL, 202, NULL);
    wait_status(l, "program/a", "idle");
    expect(l, "state", "program/a", NULL, 200, "{}");
    expect_code(l, with_id(about("call", "program/a", "null"), "m"), 422, "cancelled");
    expect(l, "call", "program/a", "null", 200, "'short'");
    loom_close(l);
    remove_folder(dir);
}

/* Goal: also where the state is too large to be written with each document, and whoever loads the actor later. */
static void cancel_paused_with_a_large_state(void **state) {
    (void)state;
    char *dir = make_folder(), *grow = repeated("[['state.patch',[{'op':'add','path':'/big','value':'", 40000,
                                                "'},{'op':'add','path':'/n','value':0}]]]");
    loom_register_actor("program", loom_run_script);
    struct loom *l = open_at(dir);
    expect_call(l, "program/a", grow, "[null]");
    loom_close(l);
    loom_register_actor("program", first_program);
    l = open_at(dir);
    expect(l, "send", "program/a", "null", 202, NULL);
    wait_status(l, "program/a", "suspended");
    loom_close(l);
    loom_register_actor("program", short_program);
    l = open_at(dir);
    send_event(l, "program/a", "x", "1");
    wait_status(l, "program/a", "paused");
    expect_field(l, "program/a", "/state/n", "1");
    expect(l, "cancel", "program/a", NULL, 202, NULL);
    wait_status(l, "program/a", "idle");
    expect_field(l, "program/a", "/state/n", "0");
    loom_close(l);
    free(grow);
    remove_folder(dir);
}

static char oversized[500];

static void first_wait_program(void) {
    loom_await(loom_wait_event("x", 0));
}

/* Waits on when it is cancelled, and asks for more than an error message shows. */
static void stubborn_program(void) {
    loom_await(loom_wait_event("x", 0));
    loom_await(loom_activity("nothing", "'%s'", oversized));
    loom_await(loom_wait_event("y", 0));
}

static void cancel_twice(void **state) {
    (void)state; /* A turn that was cancelled, went on and was paused can be cancelled again, and then ends. */
    char *dir = make_folder();
    memset(oversized, 'x', sizeof oversized - 1);
    loom_register_actor("program", stubborn_program);
    struct loom *l = open_at(dir);
    expect_request(l, with_id(about("send", "program/a", "null"), "m"), 202, NULL);
    wait_field(l, "program/a", "/suspendReason", "'event x'");
    expect(l, "cancel", "program/a", NULL, 202, NULL);
    wait_field(l, "program/a", "/suspendReason", "'event y'");
    loom_close(l);
    loom_register_actor("program", first_wait_program);
    l = open_at(dir);
    send_event(l, "program/a", "y", "1");
    wait_status(l, "program/a", "paused");
    char *why = looked_up(l, "program/a", "/suspendReason");
    assert_non_null(strstr(why, "asks for {\\\"type\\\":\\\"turn_completed"));
    assert_non_null(strstr(why, "is {\\\"type\\\":\\\"activity_scheduled"));
    free(why);
    expect(l, "cancel", "program/a", NULL, 202, NULL);
    wait_status(l, "program/a", "idle");
    expect_code(l, with_id(about("call", "program/a", "null"), "m"), 422, "cancelled");
    loom_close(l);
    remove_folder(dir);
}

static void unknown_program(void) {
    loom_op("nonsuch", "null");
    loom_return("0");
}

static void pauses_survive(void **state) {
    (void)
        state; /* What would fail a live turn pauses a replaying one, and a paused actor stays paused over restarts and mail. */
    char *dir = make_folder();
    loom_register_actor("program", first_program);
    struct loom *l = open_at(dir);
    expect(l, "send", "program/a", "null", 202, NULL);
    wait_status(l, "program/a", "suspended");
    loom_close(l);
    loom_register_actor("program", unknown_program);
    l = open_at(dir);
    expect_code(l, about("call", "program/b", "null"), 422, "unknown_op");
    send_event(l, "program/a", "x", "1");
    wait_status(l, "program/a", "paused");
    char *why = looked_up(l, "program/a", "/suspendReason");
    assert_non_null(strstr(why, "unknown_op"));
    free(why);
    expect(l, "send", "program/a", "null", 202, NULL);
    loom_close(l);
    loom_register_actor("program", first_program);
    l = open_at(dir);
    expect_field(l, "program/a", "/status", "'paused'");
    expect(l, "resume", "program/a", NULL, 202, NULL);
    wait_status(l, "program/a", "completed");
    loom_close(l);
    remove_folder(dir);
}

static void full_mailbox(void **state) {
    (void)
        state; /* A mailbox holds 10,000 messages; then clients are told to come later, and all that were accepted are handled. */
    enum { MANY = 10005 };
    if (ENGINE_EVICT) return; /* each op would read the 10,000 messages again */
    struct loom *l = open_scripts("memory");
    struct answer *a = calloc(MANY, sizeof *a);
    expect(l, "send", "script/a", "[" WAIT_X "]", 202, NULL);
    wait_status(l, "script/a", "suspended");
    int taken = 0, refused = 0;
    for (int i = 0; i < MANY; i++) submit(l, about("send", "script/a", i == 9999 ? "[['finish',1]]" : "[]"), &a[i]);
    for (int i = 0; i < MANY; i++) {
        await_answer(&a[i]);
        while (a[i].status == 503) { /* the disk is behind */
            answer_free(&a[i]);
            a[i] = ask(l, about("send", "script/a", i == 9999 ? "[['finish',1]]" : "[]"));
        }
        taken += a[i].status == 202;
        refused += a[i].status == 429;
        answer_free(&a[i]);
    }
    assert_int_equal(taken, 10000);
    assert_int_equal(refused, 5);
    send_event(l, "script/a", "x", "1");
    wait_status(l, "script/a", "completed");
    assert_int_equal(taken + refused, MANY);
    free(a);
    loom_close(l);
}

static void sends_in_order(void **state) {
    (void)
        state; /* Messages of one sender to one actor arrive in the order of their ops; a delayed one is not early; an event reaches a wait. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/b", "[['state.patch',[{'op':'add','path':'/log','value':[]}]]]", "[null]");
    expect(l, "call", "script/a",
           "[['actor.send',{'to':'script/b','delayMs':500,'input':[['state.patch',[{'op':'add','path':'/log/"
           "-','value':9}]],['event.wait',{'type':'y'}],['await',{'promises':[1]}],['finish',1]]}],"
           "['actor.send',{'to':'script/b','input':[['state.patch',[{'op':'add','path':'/log/"
           "-','value':1}]]]}],['actor.send',{'to':'script/b','input':[['state.patch',[{'op':'add','path':'/log/"
           "-','value':2}]]]}],"
           "['actor.send',{'to':'script/b','event':'y','input':7}],['actor.send',{'to':'script/"
           "b','priority':-1,'input':[['state.patch',[{'op':'add','path':'/log/-','value':0}]]]}],"
           "['actor.send',{'to':'nobody/b','input':1}]]",
           200, NULL);
    wait_status(l, "script/b", "completed");
    struct answer a = ask(l, about("state", "script/b", NULL));
    assert_true(strcmp(a.body, "{\"log\":[0,1,2,9]}") == 0 || strcmp(a.body, "{\"log\":[1,0,2,9]}") == 0 ||
                strcmp(a.body, "{\"log\":[1,2,0,9]}") == 0);
    answer_free(&a);
    expect(l, "call", "script/a",
           "[['actor.call',{'to':'script/c','ttlMs':5,'input':[" WAIT_X "]}],['actor.call',{'to':'script/"
           "c','ttlMs':5,'timeoutMs':0,'input':[]}],['await',{'promises':[2],'mode':'any'}]]",
           200,
           "[1,2,{'promise':2,'error':{'code':'expired','message':'its time to live ended before it was "
           "handled','retryable':false}}]");
    loom_close(l);
}

static void asking_for_actors(void **state) {
    (void)state; /* Actors are listed by type and status, page by page. */
    struct loom *l = open_scripts("memory");
    for (int i = 0; i < 5; i++) {
        char actor[32];
        snprintf(actor, sizeof actor, "script/k%d", i);
        expect_call(l, actor, i % 2 ? "[['finish',1]]" : "[]", NULL);
    }
    char after[64] = "";
    int seen = 0, pages = 0;
    for (bool more = true; more; pages++) {
        struct answer a = ask(
            l, (struct loom_request){
                   .op = "actors", .type = text("script"), .limit = 2, .after = text(after[0] ? after : NULL)});
        yyjson_doc *doc = yyjson_read(a.body, strlen(a.body), 0);
        seen += (int)yyjson_arr_size(yyjson_obj_get(yyjson_doc_get_root(doc), "actors"));
        struct str next = json_str(yyjson_doc_get_root(doc), "next");
        more = next.p != NULL;
        snprintf(after, sizeof after, "%.*s", (int)next.n, next.p ? next.p : "");
        yyjson_doc_free(doc);
        answer_free(&a);
    }
    assert_int_equal(seen, 5);
    assert_int_equal(pages, 3);
    struct answer a = ask(l, (struct loom_request){.op = "actors", .status = text("completed")});
    assert_non_null(strstr(a.body, "script/k1"));
    assert_null(strstr(a.body, "script/k2"));
    answer_free(&a);
    loom_close(l);
}

static void cancelled_before_it_starts(void **state) {
    (void)state; /* An activity that is cancelled before its attempt is durable never starts. */
    struct loom *l = open_scripts("memory");
    flaky_calls = 0;
    expect_call(l, "script/a",
                "[['activity',{'name':'flaky','input':0}],['cancel',{'promise':1}],['timer',{'delayMs':5}],"
                "['await',{'promises':[2]}]]",
                "[1,null,2,[{'promise':2,'ok':null}]]");
    assert_true(ENGINE_EVICT || flaky_calls == 0); /* evicted in between, it was durable */
    loom_close(l);
}

static void reply_to_an_earlier_turn(void **state) {
    (void)
        state; /* A reply that comes after its turn has ended is dropped, also where a promise of a later turn has its number. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    submit(l,
           about("call", "script/a",
                 "[['actor.call',{'to':'script/b','input':[" WAIT_X "]}],['event.wait',{'type':'go'}],"
                 "['await',{'promises':[2]}],['return',1]]"),
           &a);
    wait_status(l, "script/b", "suspended");
    send_event(l, "script/a", "go", "1");
    await_answer(&a);
    check(&a, 200, "1");
    submit(l,
           about("call", "script/a",
                 "[['actor.call',{'to':'script/c','input':[" WAIT_X ",['return','c']]}],['await',{'promises':[1]}]]"),
           &a);
    wait_status(l, "script/c", "suspended");
    send_event(l, "script/b", "x", "1");
    wait_status(l, "script/b", "idle");
    send_event(l, "script/c", "x", "1");
    await_answer(&a);
    check(&a, 200, "[1,[{'promise':1,'ok':'c'}]]");
    loom_close(l);
}

static void version_and_trace_stay(void **state) {
    (void)state; /* A message's version and trace hold for all turns that it leads to. */
    struct loom *l = open_scripts("memory");
    for (int i = 1; i <= 2; i++) {
        char doc[128], version[2] = {(char)('0' + i)};
        snprintf(doc, sizeof doc, "{'actorType':'two','version':'%d','wasmBlobUrl':'module:wasm@1','config':%d}", i, i);
        deploy(l, "actor-type.put", "two", version, doc, false);
    }
    struct loom_request call = about("call", "two/a", "[['continue',[['config']]]]");
    call.version = text("1");
    call.traceparent = text("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    expect_request(l, call, 200, "[1]");
    expect_field(l, "two/a", "/journal/entries/0/message/traceparent",
                 "'00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'");
    loom_close(l);
}

/* Steps of each kind; the last one fails where n is large. */
static const char all_steps[] =
    "{'name':'all','version':'1','steps':["
    "{'id':'a','type':'activity','activity':'act','input':[['return',{'n':'{{ input.n }}'}]],'output':'a',"
    "'compensation':{'activity':'act','input':[['return','undone']]}},"
    "{'type':'parallel','output':'both','branches':["
    "[{'type':'wait','event':'go'},{'type':'activity','activity':'act','input':[['return','{{ a.n }}']]}],"
    "[{'type':'wait','duration':10},{'type':'agent','agentType':'script','key':'of-{{ workflow.id "
    "}}','input':[['return',"
    "7]],'output':'child'}]]},"
    "{'id':'c','type':'condition','if':'input.n > 2','then':[{'id':'w','type':'wait','event':'never','timeout':20}],"
    "'else':[{'type':'activity','activity':'act','input':[['return','small']],'output':'kind'}]}],"
    "'output':{'a':'{{ a }}','both':'{{ both }}','child':'{{ child }}','kind':'{{ kind }}'}}";

static void workflow_steps(void **state) {
    (void)
        state; /* A workflow with steps of each kind comes to its end, or undoes what it did and says which step failed. */
    NEEDS_WASM();
    struct loom *l = open_scripts("memory");
    struct answer small, large;
    deploy(l, "workflow.put", "all", "1", all_steps, false);
    submit(l, about("call", "workflow.all/small", "{'n':1}"), &small);
    submit(l, about("call", "workflow.all/large", "{'n':5}"), &large);
    send_event(l, "workflow.all/small", "go", "1");
    send_event(l, "workflow.all/large", "go", "1");
    await_answer(&small);
    check(&small, 200, "{'a':{'n':1},'both':[1,7],'child':7,'kind':'small'}");
    await_answer(&large);
    check(&large, 422,
          "{'code':'timeout','message':'step w (wait): waited 20 ms in vain for event never','retryable':false}");
    wait_status(l, "workflow.all/small", "completed");
    wait_status(l, "workflow.all/large", "failed");
    assert_int_equal(entries_of(l, "workflow.all/small", "activity_completed"), 3);
    assert_int_equal(entries_of(l, "workflow.all/large", "activity_completed"), 3);
    expect_field(l, "script/of-large", "/status", "'completed'");
    loom_close(l);
}

static void longest_names(void **state) {
    (void)state; /* Key, type, event type and message id of the greatest length do what short ones do, also after a
                  * restart; longer ones are refused. */
    NEEDS_WASM();
    char *dir = make_folder(), *type = repeated("", 64, ""), *key = repeated("", 256, ""),
         *longer = repeated("", 257, ""), actor[400], in[400];
    struct loom *l = open_scripts(dir);
    snprintf(actor, sizeof actor, "%s/%s", type, key);
    snprintf(in, sizeof in, "[['event.wait',{'type':'%s'}],['await',{'promises':[1]}],['return',1]]", key);
    struct loom_request once = with_id(about("send", actor, in), key), event = about("event", actor, "1");
    event.id = text(key);
    deploy_module(l, false, type, script_wasm(), NULL);
    expect_request(l, once, 202, NULL);
    wait_status(l, actor, "suspended");
    loom_close(l);
    l = open_scripts(dir);
    expect_request(l, event, 202, NULL);
    once.op = "call";
    for (int i = 0; i < 2; i++) expect_request(l, once, 200, "1");
    assert_int_equal(entries_of(l, actor, "turn_started"), 1);
    event.id = text(longer);
    expect_code(l, event, 400, "invalid_argument");
    expect_code(l, with_id(about("call", actor, "[]"), longer), 400, "invalid_argument");
    free(type);
    free(key);
    free(longer);
    loom_close(l);
    remove_folder(dir);
}

/* ---- what is rare ---- */

static const char *oddity;

/* Says to the door of a guest what the SDK never says. */
static void odd(void) {
    static char huge[(2 << 20) + 1];
    if (strcmp(oddity, "end") == 0) return;
    if (strcmp(oddity, "huge argument") == 0 && loom_native_op("emit", 4, huge, sizeof huge) >= 0) return;
    if (strcmp(oddity, "huge reply") == 0) loom_native_op("return", 6, huge, sizeof huge);
    if (strcmp(oddity, "long name") == 0) loom_native_op(huge, 1000, "", 0);
    if (loom_native_op("state.get", 9, "", 0) != 2) return;
    loom_native_op("return", 6, "", 0);
}

static void odd_calls_of_ops(void **state) {
    (void)
        state; /* An op without its argument takes the default, one that is too large is refused, an unknown name is cut. */
    static const char *const codes[][2] = {{"end", NULL},
                                           {"nothing", NULL},
                                           {"huge argument", NULL},
                                           {"huge reply", "invalid_output"},
                                           {"long name", "unknown_op"}};
    struct loom *l = open_scripts("memory");
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        oddity = codes[i][0];
        struct answer a = ask(l, about("call", "odd/a", "1"));
        if (codes[i][1])
            check_code(&a, 422, codes[i][1]);
        else
            check(&a, 200, "null");
    }
    expect_call(l, "script/a",
                "[['activity',{'name':'act','retry':{'maxAttempts':-1}}],['actor.send',{'to':'nowhere'}],"
                "['event.wait',{'type':''}],['cancel',{'promise':0}],['state.get','/none'],['config']]",
                "[{'error':'invalid_document'},{'error':'invalid_argument'},{'error':'invalid_argument'},"
                "{'error':'invalid_argument'},null,null]");
    expect_code(l, about("call", "script/a", "[['fail',{'code':'internal'}]]"), 422, "internal");
    loom_close(l);
}

static void guests_log(void **state) {
    (void)
        state; /* A guest's log line comes once, with its level, when its batch has committed; a quiet level does not. */
    NEEDS_WASM();
    int ends[2];
    char text[65536] = "";
    assert_int_equal(pipe(ends), 0);
    log_open(ends[1], LOG_INFO);
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a",
                "[['log',{'level':'warn','msg':'one'}],['log',{'level':40}],['log',{'level':99,'msg':'two'}],"
                "['log',{'level':5,'msg':'low'}],"
                "['log',{'level':'debug','msg':'quiet'}],['timer',{'delayMs':1}],['await',{'promises':[1]}]]",
                NULL);
    expect_activity(l, "a", "{'name':'act','input':[['log',{'level':'error','msg':'three'}],['progress',{'done':4}]]}",
                    "'ok'");
    loom_close(l);
    log_open(2, LOG_INFO);
    assert_true(read(ends[0], text, sizeof text - 1) > 0);
    static const char *const once[] = {"\"msg\":\"one\"}\n{\"level\":30",
                                       "\"msg\":\"guest\"}\n{\"level\":30",
                                       "\"msg\":\"two\"}\n",
                                       "\"msg\":\"low\"}\n",
                                       "three",
                                       "\"done\":4"};
    for (size_t i = 0; i < sizeof once / sizeof *once; i++) {
        char *at = strstr(text, once[i]);
        bool again = at && !ENGINE_EVICT &&
                     strstr(at + 1, once[i]); /* a replay says what the journal does not yet cover */
        if (!at || again) fail_msg("not once: %s in %s", once[i], text);
    }
    assert_null(strstr(text, "quiet"));
    close(ends[0]);
    close(ends[1]);
}

static void lost_batch_is_not_logged(void **state) {
    (void)state; /* What a guest logged in a batch that did not commit is not logged; done again, it is there once. */
    char *dir = make_folder(), text[65536] = "";
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    struct loom *l = open_scripts(dir);
    struct loom_request call = with_id(about("call", "script/a", "[['log',{'msg':'said'}]]"), "m");
    log_open(ends[1], LOG_INFO);
    fill_disk(true);
    expect_code(l, call, 507, "disk_full");
    fill_disk(false);
    struct answer a = insist(l, call);
    check(&a, 200, NULL);
    loom_close(l);
    log_open(2, LOG_INFO);
    assert_true(read(ends[0], text, sizeof text - 1) > 0);
    char *said = strstr(text, ",\"msg\":\"said\"");
    assert_true(said && (ENGINE_EVICT || !strstr(said + 1, ",\"msg\":\"said\"")));
    close(ends[0]);
    close(ends[1]);
    remove_folder(dir);
}

/* A turn that fails is one line of the log: of which actor, turn and message, with what error, and when it is tried
 * again; neither a restart nor a batch that is lost makes it two. A dead letter's line has the correlation id as well. */
static void failed_turns_log(void **state) {
    (void)state;
    NEEDS_WASM();
    char *dir = make_folder(), said[65536] = "";
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    struct loom *l = open_scripts(dir);
    deploy_module(l, false, "patient", script_wasm(), "'retryPolicy':{'maxAttempts':2,'backoffMs':1}");
    struct loom_request call = with_id(
        about("call", "patient/a", "[['fail',{'code':'odd','message':'m','retryable':true}]]"), "m1");
    call.correlation = (struct loom_str){"c7", 2};
    log_open(ends[1], LOG_INFO);
    fill_disk(true);
    expect_code(l, call, 507, "disk_full");
    fill_disk(false);
    struct answer a = insist(l, call);
    check_code(&a, 422, "odd");
    loom_close(l);
    l = open_scripts(dir);
    expect_code(l, call, 422, "odd");
    call.id = text("m2");
    call.ttl_ms = 1;
    call.delay_ms = 5;
    expect_code(l, call, 422, "expired");
    loom_close(l);
    log_open(2, LOG_INFO);
    assert_true(read(ends[0], said, sizeof said - 1) > 0);
    int lines = 0;
    for (const char *p = said; (p = strstr(p, "\"msg\":\"turn failed\"")) != NULL; p++) lines++;
    if (lines != 2) fail_msg("not two: %s", said);
    char *dead = quoted("'correlationId':'c7','messageId':'m2','reason':'expired'");
    if (!strstr(said, dead)) fail_msg("no %s in %s", dead, said);
    free(dead);
    for (int turn = 1; turn <= 2; turn++) {
        char want[300];
        snprintf(
            want, sizeof want,
            "'actor':'default/patient/a','correlationId':'c7','turn':%d,'messageId':'m1','code':'odd','detail':'m'%s"
            ",'msg':'turn failed'}",
            turn, turn == 1 ? ",'retryInMs':1" : "");
        char *mark = quoted(want);
        if (!strstr(said, mark)) fail_msg("no %s in %s", mark, said);
        free(mark);
    }
    close(ends[0]);
    close(ends[1]);
    remove_folder(dir);
}

static void cancelled_again(void **state) {
    (void)
        state; /* A second cancel changes nothing, nor does one of an actor that is idle; the promise stays cancelled. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    expect_call(l, "script/idle", "[]", "[]");
    expect_code(l, about("cancel", "script/idle", NULL), 409, "conflict");
    expect_field(l, "script/idle", "/status", "'idle'");
    submit(l, about("call", "script/a", "[['suspend',{}],['await',{'promises':[1]}],['suspend',{'reason':'again'}]]"),
           &a);
    wait_status(l, "script/a", "suspended");
    expect(l, "cancel", "script/a", NULL, 202, NULL);
    wait_field(l, "script/a", "/suspendReason", "'again'");
    expect(l, "cancel", "script/a", NULL, 202, NULL);
    assert_int_equal(entries_of(l, "script/a", "cancel_requested"), 1);
    expect(l, "resume", "script/a", NULL, 202, NULL);
    await_answer(&a);
    check_code(&a, 422, "cancelled");
    loom_close(l);
}

static void withdrawn_from_behind(void **state) {
    (void)
        state; /* Of two calls that wait for an actor the one that is given up is withdrawn, and a retry given up does not come. */
    struct loom *l = open_scripts("memory");
    expect(l, "send", "script/b", "[" WAIT_X "]", 202, NULL);
    wait_status(l, "script/b", "suspended");
    flaky_calls = 0;
    expect(l, "send", "script/a",
           "[['actor.call',{'to':'script/b','input':[['return',1]]}],['actor.call',{'to':'script/b','input':[['return',"
           "2]]}],['activity',{'name':'flaky','input':9,'retry':{'backoffMs':400}}],['timer',{'delayMs':5}],"
           "['await',{'promises':[4]}],['cancel',{'promise':2}],['cancel',{'promise':3}],['timer',{'delayMs':600}],"
           "['await',{'promises':[5]}],['await',{'promises':[1]}]]",
           202, NULL);
    while (entries_of(l, "script/a", "timer_fired") < 2) usleep(1000);
    assert_true(flaky_calls <= 1);
    send_event(l, "script/b", "x", "1");
    wait_status(l, "script/a", "idle");
    wait_status(l, "script/b", "idle");
    assert_int_equal(entries_of(l, "script/b", "turn_started"), 2);
    loom_close(l);
}

static void timed_program(void) {
    int both[] = {loom_timer(30), loom_wait_event("x", 0)};
    loom_must(loom_await_all(both, 2));
    loom_return("'timed'");
}

static void paused_timers_wait(void **state) {
    (void)state; /* What comes due while an actor is paused happens when it is resumed. */
    char *dir = make_folder();
    struct answer a;
    loom_register_actor("program", timed_program);
    struct loom *l = open_at(dir);
    expect(l, "send", "program/a", "null", 202, NULL);
    wait_status(l, "program/a", "suspended");
    loom_close(l);
    loom_register_actor("program", short_program);
    l = open_at(dir);
    send_event(l, "program/a", "x", "1");
    wait_status(l, "program/a", "paused");
    expect_request(l, with_id(about("call", "script/t", "[['timer',{'delayMs':60}],['await',{'promises':[1]}]]"), "t"),
                   200, NULL);
    expect_field(l, "program/a", "/status", "'paused'");
    loom_close(l);
    loom_register_actor("program", timed_program);
    l = open_at(dir);
    expect(l, "resume", "program/a", NULL, 202, NULL);
    wait_status(l, "program/a", "idle");
    submit(l, about("call", "program/b", "null"), &a);
    send_event(l, "program/b", "x", "1");
    await_answer(&a);
    check(&a, 200, "'timed'");
    loom_close(l);
    remove_folder(dir);
}

static struct loom_request put_type(const char *name, const char *version, const char *doc) {
    return (struct loom_request){.op = "actor-type.put", .type = text(name), .key = text(version), .body = text(doc)};
}

static void last_deployed_counts(void **state) {
    (void)state; /* The version deployed last is the one that runs, whatever it is called, also after a restart. */
    static const char *const orders[][3] = {{"3", "2", "1"}, {"2", "3", "1"}, {"1", "2", "3"}};
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    for (size_t i = 0; i < 3; i++)
        for (size_t k = 0; k < 3; k++) {
            char name[8], doc[200];
            snprintf(name, sizeof name, "v%zu", i);
            snprintf(doc, sizeof doc, "{'actorType':'%s','version':'%s','wasmBlobUrl':'module:wasm@1','config':%s}",
                     name, orders[i][k], orders[i][k]);
            deploy(l, "actor-type.put", name, orders[i][k], doc, false);
        }
    expect_call(l, "v0/a", "[['config']]", "[1]");
    loom_close(l);
    l = open_at(dir);
    expect_call(l, "v0/b", "[['config']]", "[1]");
    expect_call(l, "v1/b", "[['config']]", "[1]");
    expect_call(l, "v2/b", "[['config']]", "[3]");
    loom_close(l);
    remove_folder(dir);
}

static void wrong_definitions(void **state) {
    (void)
        state; /* A definition that could not run is refused with its code; one whose module is lost fails its messages. */
    NEEDS_WASM();
    static const char *const wrong[] = {
        "{'actorType':'t','version':'1'}",
        "{'actorType':'t','version':'1','wasmBlobUrl':'module:act'}",
        "{'actorType':'t','version':'1','wasmBlobUrl':'module:act@1','inputSchema':{'type':7}}",
        "{'actorType':'t','version':'1','wasmBlobUrl':'module:act@1','outputSchema':{'type':7}}",
        "{'actorType':'t','version':'1','wasmBlobUrl':'module:act@1','retryPolicy':{'maxAttempts':-1}}",
        "{'actorType':'t','version':'1','wasmBlobUrl':'module:act@1','reuse':true}",
        "{'actorType':'u','version':'1','wasmBlobUrl':'module:act@1'}",
        ("{'actorType':'t','version':'1','wasmBlobUrl':'sha256:"
         "zz11223344556677889900112233445566778899001122334455667788990011'}")};
    struct loom *l = open_scripts("memory");
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char *doc = quoted(wrong[i]);
        expect_code(l, put_type("t", "1", doc), 400, "invalid_document");
        free(doc);
    }
    struct loom_request activity = put_type("x", "1",
                                            "{'activityName':'y','version':'1','wasmBlobUrl':'module:act@1'}");
    activity.op = "activity.put";
    expect_code(l, activity, 400, "invalid_document");
    deploy(l, "actor-type.put", "t", "1",
           "{'actorType':'t','version':'1','wasmBlobUrl':'sha256:"
           "0011223344556677889900112233445566778899001122334455667788990011'}",
           false);
    expect_code(l, about("call", "t/a", "1"), 404, "not_found");
    expect_code(l, put_type("t", "1", "{'actorType':'t','version':'1','wasmBlobUrl':'module:act@1'}"), 409, "exists");
    struct loom_request run = {
        .op = "run", .type = text("none"), .key = text("k"), .version = text("7"), .body = text("1")};
    expect_code(l, run, 404, "not_found");
    assert_int_equal(loom_register_actor("Not A Name", odd), LOOM_E_INVALID_ARGUMENT);
    loom_close(l);
}

static void long_reasons_are_whole(void **state) {
    (void)
        state; /* A suspendReason that is too long is cut between characters, and an event with a delay waits for it. */
    struct loom *l = open_scripts("memory");
    char in[1024] = "[['suspend',{'reason':'";
    for (int i = 0; i < 300; i++) strcat(in, "\303\244");
    strcat(in, "'}]]");
    expect(l, "send", "script/a", in, 202, NULL);
    wait_status(l, "script/a", "suspended");
    char *reason = looked_up(l, "script/a", "/suspendReason");
    assert_int_equal(strlen(reason), 2 + 254);
    free(reason);
    loom_close(l);
}

static void delayed_event(void **state) {
    (void)state; /* An event with a delay reaches the wait that was open before it came due. */
    struct loom *l = open_scripts("memory");
    expect(l, "send", "script/b", "[" WAIT_X "]", 202, NULL);
    wait_status(l, "script/b", "suspended");
    struct loom_request late = about("event", "script/b", "1");
    late.id = text("x");
    late.delay_ms = 30;
    expect_request(l, late, 202, NULL);
    wait_status(l, "script/b", "idle");
    loom_close(l);
}

static void count_flush(void *ctx) {
    ++*(atomic_int *)ctx;
}

static void flushes_and_projects(void **state) {
    (void)
        state; /* `flushed` comes after a group of replies; a request may have no reply; a wrong project is refused. */
    atomic_int flushes = 0;
    char message[1200];
    struct answer first, second;
    struct loom_config config = {.store = "memory", .flushed = count_flush, .flushed_ctx = &flushes};
    struct loom *l = open_with(config);
    if (ENGINE_EVICT) deploy_module(l, false, "script", script_wasm(), NULL);
    submit(l, about("call", "script/a", "[" WAIT_X "]"), &first);
    struct loom_request sooner = about("call", "script/a", "[]");
    sooner.timeout_ms = 5;
    submit(l, sooner, &second);
    await_answer(&second);
    check(&second, 202, NULL);
    loom_submit(l, &(struct loom_request){
                       .op = "event", .type = text("script"), .key = text("a"), .id = text("x"), .body = text("1")});
    await_answer(&first);
    check(&first, 200, NULL);
    loom_close(l);
    assert_true(flushes >= 2);
    config.project = "{";
    assert_null(loom_open(&config, message, sizeof message));
    config.project = "{\"network\":{\"caFile\":\"/nonsuch\"}}";
    assert_null(loom_open(&config, message, sizeof message));
}

static int group(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_message_same_reply),
        cmocka_unit_test(same_message_in_flight),
        cmocka_unit_test(same_id_other_input),
        cmocka_unit_test(events_wait_for_a_wait),
        cmocka_unit_test(waits_in_order),
        cmocka_unit_test(event_timeout),
        cmocka_unit_test(await_modes),
        cmocka_unit_test(unawaited_is_cancelled),
        cmocka_unit_test(cancel_a_promise),
        cmocka_unit_test(cancel_a_turn),
        cmocka_unit_test(cancelled_and_continued),
        cmocka_unit_test(cancel_a_run),
        cmocka_unit_test(restart_says_nothing_twice),
        cmocka_unit_test(restart_while_waiting),
        cmocka_unit_test(restart_with_mail),
        cmocka_unit_test(restart_with_timer),
        cmocka_unit_test(many_timers_at_once),
        cmocka_unit_test(restart_with_call),
        cmocka_unit_test(unclean_restart),
        cmocka_unit_test(failing_rolls_back),
        cmocka_unit_test(finishing),
        cmocka_unit_test(continuing),
        cmocka_unit_test(retrying_actor),
        cmocka_unit_test(suspending),
        cmocka_unit_test(mailbox_order),
        cmocka_unit_test(time_to_live),
        cmocka_unit_test(message_status),
        cmocka_unit_test(slow_call),
        cmocka_unit_test(calls),
        cmocka_unit_test(call_times_out),
        cmocka_unit_test(withdrawn_call),
        cmocka_unit_test(children),
        cmocka_unit_test(children_end_with_parent),
        cmocka_unit_test(activities),
        cmocka_unit_test(activity_retries),
        cmocka_unit_test(activity_timeout),
        cmocka_unit_test(restart_during_backoff),
        cmocka_unit_test(restart_during_attempt),
        cmocka_unit_test(fault_18_to_24_misbehaving_guests),
        cmocka_unit_test(fault_24_to_26_odd_json_from_a_guest),
        cmocka_unit_test(guest_arguments),
        cmocka_unit_test(fault_27_changed_program),
        cmocka_unit_test(hot_reload),
        cmocka_unit_test(large_state),
        cmocka_unit_test(large_payload),
        cmocka_unit_test(time_travel),
        cmocka_unit_test(journal_retention),
        cmocka_unit_test(forking),
        cmocka_unit_test(small_budget),
        cmocka_unit_test(idle_actors_leave),
        cmocka_unit_test(namespaces),
        cmocka_unit_test(stream_without_gaps),
        cmocka_unit_test(stream_of_large_rows),
        cmocka_unit_test(graceful_shutdown),
        cmocka_unit_test(closing_waits_for_uploads),
        cmocka_unit_test(bad_requests),
        cmocka_unit_test(full_disk),
        cmocka_unit_test(lost_deployment),
        cmocka_unit_test(lost_result),
        cmocka_unit_test(full_batch),
        cmocka_unit_test(fork_at_once),
        cmocka_unit_test(long_batch),
        cmocka_unit_test(failing_commits),
        cmocka_unit_test(fault_16_poison),
        cmocka_unit_test(fault_23_determinism),
        cmocka_unit_test(cancel_a_running_activity),
        cmocka_unit_test(cancel_paused),
        cmocka_unit_test(cancel_paused_with_a_large_state),
        cmocka_unit_test(cancel_twice),
        cmocka_unit_test(pauses_survive),
        cmocka_unit_test(full_mailbox),
        cmocka_unit_test(sends_in_order),
        cmocka_unit_test(asking_for_actors),
        cmocka_unit_test(replies_are_forgotten),
        cmocka_unit_test(damaged_rows_stop_their_actors),
        cmocka_unit_test(lost_definitions),
        cmocka_unit_test(spoiled_cache),
        cmocka_unit_test(odd_calls_of_ops),
        cmocka_unit_test(guests_log),
        cmocka_unit_test(lost_batch_is_not_logged),
        cmocka_unit_test(failed_turns_log),
        cmocka_unit_test(cancelled_again),
        cmocka_unit_test(withdrawn_from_behind),
        cmocka_unit_test(cancelled_before_it_starts),
        cmocka_unit_test(reply_to_an_earlier_turn),
        cmocka_unit_test(version_and_trace_stay),
        cmocka_unit_test(workflow_steps),
        cmocka_unit_test(longest_names),
        cmocka_unit_test(paused_timers_wait),
        cmocka_unit_test(last_deployed_counts),
        cmocka_unit_test(wrong_definitions),
        cmocka_unit_test(long_reasons_are_whole),
        cmocka_unit_test(delayed_event),
        cmocka_unit_test(flushes_and_projects),
    };
    cmocka_set_test_filter(getenv("CASE"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv) {
    loom_register_actor("script", loom_run_script);
    if (NATIVE_ONLY) {
        loom_register_actor("wasm", loom_run_script);
        loom_register_activity("act", loom_run_script);
    }
    loom_register_activity("flaky", flaky);
    loom_register_activity("stubborn", stubborn);
    loom_register_activity("garbage", garbage);
    loom_register_activity("gated", gated);
    loom_register_actor("killer", killer);
    loom_register_actor("odd", odd);
    return argc == 3 ? child_main(argv[1], strcmp(argv[2], "first") == 0) : group();
}
