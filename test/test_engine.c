/* The semantics of turns, one sentence per test. Most guests are scripts (support/script.h); test_engine_evict.c runs the
 * same tests with WASM in place of native scripts and with a replay at every await. */
#include "support/engine.h"
#include "support/script.h"
#include <sys/wait.h>

#define SCRIPT_TYPE "{'actorType':'script','version':'1','wasmBlobUrl':'module:script@1'}"

/* A loom with the script as actor type `script` (native or WASM), `wasm` and as activity `act`. */
static struct loom *open_scripts(const char *store) {
    struct loom *l = open_at(store);
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
    struct loom_request add = with_id(about("call", "script/a", "[['state.patch',[{'op':'add','path':'/n','value':1}]],['random',4]]"), "m1");
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
    struct loom_request wait = with_id(about("call", "script/a", "[['event.wait',{'type':'go'}],['await',{'promises':[1],'mode':'any'}]]"), "m");
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
    (void)state; /* A used id with another input is a conflict, before and after the reply, for calls, sends and events. */
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
    (void)state; /* An event never starts a turn; it waits, past other mail, for a wait of its type, also of a later turn. */
    struct loom *l = open_scripts("memory");
    send_event(l, "script/a", "go", "1");
    send_event(l, "script/a", "go", "2");
    send_event(l, "script/a", "other", "3");
    expect_field(l, "script/a", "/status", "'idle'");
    assert_int_equal(entries_of(l, "script/a", "turn_started"), 0);
    expect_call(l, "script/a", "[]", "[]");
    expect_call(l, "script/a", "[['event.wait',{'type':'go'}],['await',{'promises':[1],'mode':'any'}]]", "[1,{'promise':1,'ok':1}]");
    expect_call(l, "script/a", "[['event.wait',{'type':'go'}],['event.wait',{'type':'other'}],['await',{'promises':[1,2],'mode':'all'}]]",
                "[1,2,[{'promise':1,'ok':2},{'promise':2,'ok':3}]]");
    loom_close(l);
}

static void waits_in_order(void **state) {
    (void)state; /* Waits of one type are served in the order of their ops, events in the order of their arrival. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    submit(l, about("call", "script/a", "[['event.wait',{'type':'x'}],['event.wait',{'type':'x'}],['event.wait',{'type':'x'}],['await',{'promises':[3,1,2],'mode':'all'}]]"), &a);
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
    (void)state; /* A wait with timeoutMs fails with `timeout`; an event that comes later waits for another wait. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a", "[['event.wait',{'type':'x','timeoutMs':5}],['await',{'promises':[1],'mode':'any'}]]",
                "[1,{'promise':1,'error':{'code':'timeout','message':'nothing came within timeoutMs','retryable':true}}]");
    send_event(l, "script/a", "x", "1");
    expect_call(l, "script/a", "[['event.wait',{'type':'x','timeoutMs':60000}],['await',{'promises':[1],'mode':'any'}]]", "[1,{'promise':1,'ok':1}]");
    loom_close(l);
}

/* ---- await ---- */

static void await_modes(void **state) {
    (void)state; /* `any` answers with the promise that was settled first, `all` with all in the order asked for. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a",
                "[['timer',{'delayMs':60000}],['timer',{'delayMs':1}],['await',{'promises':[1,2],'mode':'any'}],['timer',{'delayMs':0}],['await',{'promises':[3,2],'mode':'any'}],"
                "['await',{'promises':[3,2],'mode':'all'}],['await',{'promises':[2]}]]",
                "[1,2,{'promise':2,'ok':null},3,{'promise':2,'ok':null},[{'promise':3,'ok':null},{'promise':2,'ok':null}],[{'promise':2,'ok':null}]]");
    expect_call(l, "script/a", "[['await',{'promises':[1]}],['await',{'promises':[]}],['timer',{'delayMs':0}],['await',{'promises':[2]}],['await',{'promises':[1],'mode':'some'}]]",
                "[{'error':'invalid_argument'},{'error':'invalid_argument'},1,{'error':'invalid_argument'},{'error':'invalid_argument'}]");
    loom_close(l);
}

static void unawaited_is_cancelled(void **state) {
    (void)state; /* What a turn did not await is cancelled at its end: no timer fires, no event is taken, no child goes on. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a", "[['timer',{'delayMs':3}],['event.wait',{'type':'x'}],['child.spawn',{'type':'script','key':'c','input':[['event.wait',{'type':'y'}],['must',['await',{'promises':[1],'mode':'any'}]]]}]]",
                "[1,2,3]");
    wait_status(l, "script/c", "cancelled");
    send_event(l, "script/a", "x", "5");
    expect_call(l, "script/a", "[['timer',{'delayMs':10}],['await',{'promises':[1]}],['event.wait',{'type':'x'}],['await',{'promises':[2],'mode':'any'}]]",
                "[1,[{'promise':1,'ok':null}],2,{'promise':2,'ok':5}]");
    assert_int_equal(entries_of(l, "script/a", "timer_fired"), 1);
    loom_close(l);
}

static void cancel_a_promise(void **state) {
    (void)state; /* A promise that was cancelled gives `cancelled` to an await, and what completes it later is ignored. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a", "[['timer',{'delayMs':1}],['cancel',{'promise':1}],['timer',{'delayMs':20}],['await',{'promises':[1,2],'mode':'all'}],['cancel',{'promise':9}]]",
                "[1,null,2,[{'promise':1,'error':{'code':'cancelled','message':'it was cancelled','retryable':false}},{'promise':2,'ok':null}],{'error':'invalid_argument'}]");
    assert_int_equal(entries_of(l, "script/a", "timer_fired"), 1);
    loom_close(l);
}

/* ---- cancelling a turn ---- */

#define WAIT_X "['event.wait',{'type':'x'}],['await',{'promises':[1],'mode':'any'}]"

static void cancel_a_turn(void **state) {
    (void)state; /* A cancel settles the blocking op once with `cancelled`; later ops work, so the guest cleans up; the turn ends cancelled. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    submit(l, about("call", "script/a", "[" WAIT_X ",['state.patch',[{'op':'add','path':'/undone','value':true}]],['timer',{'delayMs':1}],['await',{'promises':[2],'mode':'any'}]]"), &a);
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

static void cancel_a_run(void **state) {
    (void)state; /* A cancelled run ends cancelled, and its parent's promise fails with `cancelled`. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    submit(l, about("call", "script/p", "[['child.spawn',{'type':'script','key':'c','input':[" WAIT_X "]}],['await',{'promises':[1],'mode':'any'}]]"), &a);
    wait_status(l, "script/c", "suspended");
    expect_field(l, "script/p", "/suspendReason", "'child script/c'");
    expect(l, "cancel", "script/c", NULL, 202, NULL);
    await_answer(&a);
    check(&a, 200, "[1,{'promise':1,'error':{'code':'cancelled','message':'it was cancelled','retryable':false}}]");
    expect_field(l, "script/c", "/status", "'cancelled'");
    loom_close(l);
}

/* ---- restart ---- */

static void restart_while_waiting(void **state) {
    (void)state; /* A turn that waits goes on after a restart as if nothing had happened: state, promises, randomness, time, events. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    expect(l, "send", "script/a",
           "[['state.patch',[{'op':'add','path':'/n','value':1}]],['random',8],['now'],['event.wait',{'type':'x'}],['timer',{'delayMs':1}],['await',{'promises':[2],'mode':'any'}],"
           "['await',{'promises':[1],'mode':'any'}],['state.get',''],['random',8],['must',['actor.call',{'to':'script/b','input':[['state.get','']]}]],['await',{'promises':[3],'mode':'any'}]]",
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
    (void)state; /* Mail that waits survives a restart in its order, delayed mail is not early, and duplicates still get the first reply. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    struct loom_request later = about("send", "script/a", "[['state.patch',[{'op':'add','path':'/log/-','value':'late'}]],['finish',0]]");
    expect_call(l, "script/a", "[['state.patch',[{'op':'add','path':'/log','value':[]}]]]", "[null]");
    expect_request(l, with_id(about("call", "script/a", "[['random',4]]"), "m"), 200, NULL);
    struct answer before = ask(l, with_id(about("call", "script/a", "[['random',4]]"), "m"));
    expect(l, "send", "script/a", "[" WAIT_X "]", 202, NULL);
    wait_status(l, "script/a", "suspended");
    later.delay_ms = 200;
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
    expect(l, "send", "script/a", "[['timer',{'delayMs':1}],['timer',{'delayMs':300}],['now'],['await',{'promises':[2],'mode':'any'}],['now'],['await',{'promises':[1],'mode':'any'}],['must',['finish',1]]]", 202, NULL);
    expect(l, "send", "script/b", "[['timer',{'delayMs':50}],['await',{'promises':[1],'mode':'any'}],['finish',1]]", 202, NULL);
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

/* What the store held at this moment: as after kill -9. */
static char *copy_folder(const char *dir) {
    char line[256];
    char *copy = make_folder();
    snprintf(line, sizeof line, "cp -r %s/. %s && rm -f %s/loom.db.lock", dir, copy, copy);
    if (system(line) != 0) abort();
    return copy;
}

static void unclean_restart(void **state) {
    (void)state; /* What was acknowledged before a kill is there after it and finishes: a running turn, a wait, queued mail. */
    char *dir = make_folder();
    struct loom *l = open_scripts(dir);
    expect(l, "send", "script/a", "[['state.patch',[{'op':'add','path':'/n','value':1}]]," WAIT_X ",['state.patch',[{'op':'add','path':'/x','value':1}]]]", 202, NULL);
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
    (void)state; /* A turn that fails answers with the guest's code, and the state is as before it; what was sent stands. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a", "[['state.patch',[{'op':'add','path':'/n','value':[1,2]}]]]", "[null]");
    struct answer a = ask(l, about("call", "script/a",
                                   "[['state.patch',[{'op':'add','path':'/n/-','value':3},{'op':'remove','path':'/n/0'}]],['state.patch',[{'op':'replace','path':'','value':{'all':'new'}}]],"
                                   "['actor.send',{'to':'script/b','input':[['state.patch',[{'op':'add','path':'/got','value':true}]]]}],"
                                   "['timer',{'delayMs':0}],['await',{'promises':[1]}],['fail',{'code':'no_stock','message':'sold out','retryable':true}]]"));
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
    (void)state; /* `continue` starts the next turn with a new input; the caller gets the last turn's reply; state and buffered events carry over. */
    struct loom *l = open_scripts("memory");
    send_event(l, "script/a", "x", "9");
    expect(l, "call", "script/a", "[['state.patch',[{'op':'add','path':'/n','value':1}]],['continue',[['state.get','/n']," WAIT_X ",['continue',[['self'],['return','end']]]]]]", 200, "'end'");
    assert_int_equal(entries_of(l, "script/a", "turn_continued"), 2);
    assert_int_equal(entries_of(l, "script/a", "turn_started"), 3);
    expect_field(l, "script/a", "/journal/entries/0/turn", "3");
    loom_close(l);
}

static void retrying_actor(void **state) {
    (void)state; /* An actor type with a retryPolicy tries a message again while the failure is retryable, from the state before. */
    struct loom *l = open_scripts("memory");
    deploy_module(l, false, "patient", script_wasm(), "'retryPolicy':{'maxAttempts':3,'backoffMs':1}");
    expect_code(l, about("call", "patient/a", "[['state.patch',[{'op':'add','path':'/n','value':1}]],['fail',{'code':'busy_now','retryable':true}]]"), 422, "busy_now");
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
    late.delay_ms = 30;
    late.priority = INT32_MIN;
    submit(l, late, &a);
    send_event(l, "script/a", "x", "1");
    await_answer(&a);
    check(&a, 200, "[[5,2,0,3,1,4]]");
    loom_close(l);
}

static void time_to_live(void **state) {
    (void)state; /* A message whose ttl ends before its turn is a dead letter: its caller gets `expired`, the rest goes on; an expired event binds to no wait. */
    struct loom *l = open_scripts("memory");
    struct answer a;
    expect(l, "send", "script/a", "[" WAIT_X "]", 202, NULL);
    wait_status(l, "script/a", "suspended");
    struct loom_request mortal = about("call", "script/a", "[['now']]"), event = with_id(about("event", "script/a", "1"), "y");
    mortal.ttl_ms = event.ttl_ms = 10;
    submit(l, mortal, &a);
    expect_request(l, event, 202, NULL);
    await_answer(&a);
    check_code(&a, 422, "expired");
    usleep(15000);
    send_event(l, "script/a", "x", "1");
    expect(l, "call", "script/a", "[['event.wait',{'type':'y','timeoutMs':1}],['await',{'promises':[1],'mode':'any'}]]", 200, NULL);
    assert_int_equal(entries_of(l, "script/a", "event_timed_out"), 1);
    assert_int_equal(entries_of(l, "script/a", "turn_started"), 2);
    loom_close(l);
}

static void message_status(void **state) {
    (void)state; /* A message can be asked about: queued, running, completed with its reply, failed with its error, unknown. */
    struct loom *l = open_scripts("memory");
    expect_request(l, with_id(about("send", "script/a", "[" WAIT_X "]"), "one"), 202, "{'messageId':'one','actorId':'script/a'}");
    expect_request(l, with_id(about("send", "script/a", "[['fail',{'code':'odd','message':'m'}]]"), "two"), 202, NULL);
    wait_status(l, "script/a", "suspended");
    expect_request(l, with_id(about("message", "script/a", NULL), "one"), 200, "{'messageId':'one','status':'running'}");
    expect_request(l, with_id(about("message", "script/a", NULL), "two"), 200, "{'messageId':'two','status':'queued'}");
    send_event(l, "script/a", "x", "1");
    expect_code(l, with_id(about("call", "script/a", "[['fail',{'code':'odd','message':'m'}]]"), "two"), 422, "odd");
    expect_request(l, with_id(about("message", "script/a", NULL), "one"), 200, "{'messageId':'one','status':'completed','reply':[1,{'promise':1,'ok':1}]}");
    expect_request(l, with_id(about("message", "script/a", NULL), "two"), 200, "{'messageId':'two','status':'failed','error':{'code':'odd','message':'m','retryable':false}}");
    expect_code(l, with_id(about("message", "script/a", NULL), "none"), 404, "not_found");
    loom_close(l);
}

static void slow_call(void **state) {
    (void)state; /* A call that takes longer than timeoutMs answers 202 with the message's id; asking again gets the reply. */
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
    (void)state; /* An actor calls another: reply, failure with its code, unknown type, and a chain that would wait for itself. */
    struct loom *l = open_scripts("memory");
    expect_call(l, "script/a", "[['actor.call',{'to':'script/b','input':[['return',{'x':1}]]}],['await',{'promises':[1],'mode':'any'}]]", "[1,{'promise':1,'ok':{'x':1}}]");
    expect_call(l, "script/a", "[['actor.call',{'to':'script/b','input':[['fail',{'code':'odd','message':'m','retryable':true}]]}],['await',{'promises':[1],'mode':'any'}]]",
                "[1,{'promise':1,'error':{'code':'odd','message':'m','retryable':true}}]");
    struct answer a = ask(l, about("call", "script/a", "[['actor.call',{'to':'nobody/b','input':1}],['await',{'promises':[1]}],['actor.call',{'to':'script/a','input':[]}],['await',{'promises':[2]}],"
                                                       "['actor.call',{'to':'script/b','input':[['actor.call',{'to':'script/a','input':[]}],['await',{'promises':[1]}]]}],['await',{'promises':[3]}],"
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
    expect(l, "call", "script/a", "[['actor.call',{'to':'script/b','timeoutMs':5,'input':[" WAIT_X "]}],['await',{'promises':[1],'mode':'any'}]]", 200,
           "[1,{'promise':1,'error':{'code':'timeout','message':'nothing came within timeoutMs','retryable':true}}]");
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
    expect(l, "call", "script/a", "[['actor.call',{'to':'script/b','input':[]}],['cancel',{'promise':1}]]", 200, "[1,null]");
    send_event(l, "script/b", "x", "1");
    wait_status(l, "script/b", "idle");
    expect_call(l, "script/b", "[]", "[]");
    assert_int_equal(entries_of(l, "script/b", "turn_started"), 2);
    loom_close(l);
}

static void children(void **state) {
    (void)state; /* A child is a run: its reply settles the promise, a failure fails it, an existing key fails with `exists`; it ends with its turn. */
    struct loom *l = open_scripts("memory");
    struct answer a = ask(l, about("call", "script/p", "[['child.spawn',{'type':'script','key':'one','input':[['self']]}],['await',{'promises':[1],'mode':'any'}],['child.spawn',{'type':'script','input':[['fail',{'code':'odd'}]]}],"
                                                       "['await',{'promises':[2],'mode':'any'}],['child.spawn',{'type':'script','key':'one','input':[]}],['await',{'promises':[3],'mode':'any'}],"
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
    expect(l, "send", "script/p", "[['child.spawn',{'type':'script','key':'c','input':[" WAIT_X "]}],['await',{'promises':[1],'mode':'any'}]]", 202, NULL);
    wait_status(l, "script/c", "suspended");
    expect(l, "cancel", "script/p", NULL, 202, NULL);
    wait_status(l, "script/c", "cancelled");
    wait_status(l, "script/p", "idle");
    loom_close(l);
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
        cmocka_unit_test(cancel_a_run),
        cmocka_unit_test(restart_while_waiting),
        cmocka_unit_test(restart_with_mail),
        cmocka_unit_test(restart_with_timer),
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(void) {
    loom_register_actor("script", loom_run_script);
    return group();
}
