/* The C SDK for guests: reading and building JSON, the shorthands of ops, and the example of guest.h's first page. */
#include "support/fake_host.h"

#include "../builtin/activities/echo.c"
#include "../builtin/activities/email-sender.c"
#include "../builtin/activities/http-request.c"
#include "../examples/hello/activities/greet/greet.c"
#include "../examples/hello/actors/hello/hello.c"
#include "../examples/hello/actors/review/review.c"

#include <loom/guest_yyjson.h>

static loom_json json(const char *text) {
    return loom_format("%j", (loom_json){text, strlen(text)});
}
#define assert_json(value, expected)                                               \
    do {                                                                           \
        loom_json got_ = (value);                                                  \
        char text_[256];                                                           \
        snprintf(text_, sizeof(text_), "%.*s", (int)got_.n, got_.n ? got_.p : ""); \
        assert_string_equal(text_, expected);                                      \
    } while (0)

static void run_read(void) {
    loom_json v = json("{ \"a\" : [1, {\"b/~c\": \"x\"} ,[ ] ] , \"k\\u0065y\":true,\"s\":\"}]\\\"\", \"n\":null }");
    assert_json(loom_get(v, ""), v.p);
    assert_json(loom_get(v, "/a/0"), "1");
    assert_json(loom_get(v, "/a/1/b~1~0c"), "\"x\"");
    assert_json(loom_get(v, "/a/2"), "[ ]");
    assert_json(loom_get(v, "/a/3"), "");
    assert_json(loom_get(v, "/key"), "true");
    assert_json(loom_get(v, "/s"), "\"}]\\\"\"");
    assert_json(loom_get(v, "/nowhere/0"), "");
    assert_json(loom_get(v, "/s/0"), "");
    assert_true(loom_is_null(loom_get(v, "/n")) && loom_is_null(loom_get(v, "/m")));
    assert_true(loom_bool(loom_get(v, "/key")) && !loom_bool(loom_get(v, "/m")));
    assert_true(loom_is(loom_get(v, "/s"), "}]\"") && !loom_is(loom_get(v, "/s"), "}]"));
    loom_json names = json("{\"\\t\":1,\"\\\\t\":2}"); /* a tab; a backslash and a t */
    assert_true(loom_int(loom_get(names, "/\t")) == 1 && loom_int(loom_get(names, "/\\t")) == 2);
    assert_int_equal(loom_count(v), 4);
    assert_int_equal(loom_count(loom_get(v, "/a")), 3);
    assert_int_equal(
        loom_count(json("[]")) + loom_count(json("{ }")) + loom_count(json("7")) + loom_count((loom_json){0}), 0);
}
static void test_read(void **state) {
    (void)state;
    host_play(run_read, (const char *const[]){NULL});
}

static void run_text(void) {
    loom_string s = loom_text(json("\"a\\n\\t\\\"\\\\\\/\\u00e9\\u20AC\\ud83d\\ude00\\u0000z\""));
    assert_int_equal(s.n, 17);
    assert_memory_equal(s.p, "a\n\t\"\\/\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\0z", 18);
    assert_string_equal(loom_text(json("[1]")).p, "[1]");
    assert_string_equal(loom_text((loom_json){0}).p, "");
    assert_json(loom_format("'%t'", s), "\"a\\u000a\\u0009\\\"\\\\/\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\\u0000z\"");
}
static void test_text(void **state) {
    (void)state;
    host_play(run_text, (const char *const[]){NULL});
}

/* Text of any length with an odd character at any place goes out as JSON and comes back, and cut off it is not read past its end. */
static void run_places(void) {
    static const char odd[] = "\"\\\n\x01 ~";
    char raw[140];
    for (size_t n = 1; n < sizeof raw; n += n == 20 ? 100 : 1)
        for (size_t at = 0; at < n; at++)
            for (size_t i = 0; odd[i]; i++) {
                memset(raw, 'x', n);
                raw[at] = odd[i];
                loom_string text = {raw, n};
                loom_json v = loom_format("['%t','%t',%d]", text, text, 7);
                loom_string back = loom_text(loom_item(v, 1));
                yyjson_doc *doc = yyjson_read(v.p, v.n, 0);
                assert_non_null(doc);
                yyjson_doc_free(doc);
                assert_int_equal(loom_int(loom_item(v, 2)), 7);
                assert_int_equal(back.n, n);
                assert_memory_equal(back.p, raw, n);
                char *cut = memcpy(malloc(at + 2), v.p, at + 2);
                assert_true(loom_value(cut + 1, cut + at + 2).n <= at + 1);
                free(cut);
            }
}
static void test_places(void **state) {
    (void)state;
    host_play(run_places, (const char *const[]){NULL});
}

static void run_numbers(void) {
    static const struct {
        const char *text;
        double number;
        int64_t integer;
    } cases[] = {
        {"0", 0, 0},
        {"-12", -12, -12},
        {"12.75", 12.75, 12},
        {"-1.5e3", -1500, -1500},
        {"1E-2", 0.01, 0},
        {"0.1", 0.1, 0},
        {"9007199254740993", 9007199254740992.0, 9007199254740993},
        {"9223372036854775807", 9223372036854775808.0, INT64_MAX},
        {"-9223372036854775808", -9223372036854775808.0, INT64_MIN},
        {"9223372036854775808", 9223372036854775808.0, INT64_MAX},
        {"1e300", 1e300, INT64_MAX},
        {"123456789012345678901234567890", 123456789012345678901234567890.0, INT64_MAX},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        double got = loom_number(json(cases[i].text)), wanted = cases[i].number;
        assert_true(got == wanted || (got / wanted > 1 - 1e-14 && got / wanted < 1 + 1e-14));
        assert_true(loom_int(json(cases[i].text)) == cases[i].integer);
    }
    assert_true(loom_int((loom_json){0}) == 0 && loom_number(json("\"7\"")) == 0);
    const double out[] = {0, -3, 12.5, -0.1, 0.30000000000000004, 1e-7, 2.5e300, 123456.789, 1e15, 4e-320};
    for (size_t i = 0; i < sizeof(out) / sizeof(*out); i++) {
        double back = strtod(loom_format("%f", out[i]).p, NULL);
        assert_true(back == out[i] || (back / out[i] > 1 - 1e-14 && back / out[i] < 1 + 1e-14) || i == 9);
    }
    assert_json(loom_format("[%f,%f,%f]", 3.0, 12.5, 1.0 / 0.0), "[3,125e-1,null]");
}
static void test_numbers(void **state) {
    (void)state;
    host_play(run_numbers, (const char *const[]){NULL});
}

static void run_format(void) {
    loom_json v = loom_format("{'a':%d,'b':%l,'c':%b,'d':'%s','e':%j,'f':%j%m%m,'p':'5%%'}", -7, (int64_t)1 << 40, true,
                              "it's \"so\"", json("[1]"), (loom_json){0}, "g", json("2"), "h", (loom_json){0});
    assert_json(v, "{\"a\":-7,\"b\":1099511627776,\"c\":true,\"d\":\"it's "
                   "\\\"so\\\"\",\"e\":[1],\"f\":null,\"g\":2,\"p\":\"5%\"}");
}
static void test_format(void **state) {
    (void)state;
    host_play(run_format, (const char *const[]){NULL});
}

/* The example at the top of guest.h. */
LOOM_ACTOR(support) {
    loom_json question = loom_input();
    loom_set("/question", "%j", question);

    int draft = loom_activity("openai-chat", "{'prompt': 'Answer politely: %t'}", loom_text(question));
    loom_json answer = loom_must(loom_await(draft));
    loom_set("/answer", "%j", answer);

    loom_result review = loom_await(loom_wait_event("approved", 24 * 3600 * 1000));
    if (!review.ok) loom_fail("not_approved", false, "'nobody approved the answer within a day'");
    loom_return("{'answer': %j, 'by': %j}", answer, loom_get(review.value, "/user"));
}
static void test_agent(void **state) {
    (void)state;
    PLAY(loom_run_support, "input null -> 'How?'",
         "state.patch [{'op':'add','path':'/question','value':'How?'}] -> null",
         "activity {'name':'openai-chat','input':{'prompt': 'Answer politely: How?'}} -> 1",
         "await {'promises':[1],'mode':'any'} -> {'promise':1,'ok':'So.'}",
         "state.patch [{'op':'add','path':'/answer','value':'So.'}] -> null",
         "event.wait {'type':'approved','timeoutMs':86400000} -> 2",
         "await {'promises':[2],'mode':'any'} -> {'promise':2,'ok':{'user':'ann'}}",
         "return {'answer': 'So.', 'by': 'ann'}");
    PLAY(loom_run_support, "*input -> 'How?'", "*state.patch -> null", "*activity -> 1",
         "await {'promises':[1],'mode':'any'} -> "
         "{'promise':1,'error':{'code':'http_500','message':'m','retryable':true}}",
         "fail {'code':'http_500','message':'m','retryable':true}");
    PLAY(loom_run_support, "*input -> 'How?'", "*state.patch -> null", "*activity -> 1", "*event.wait -> 2",
         "await {'promises':[1],'mode':'any'} -> {'promise':1,'ok':'So.'}",
         "await {'promises':[2],'mode':'any'} -> {'promise':2,'error':{'code':'timeout'}}",
         "fail {'code':'not_approved','message':'nobody approved the answer within a day','retryable':false}");
}

LOOM_ACTOR(everything) {
    assert_true(loom_is(loom_get(loom_self(), "/key"), "k") && loom_is_null(loom_config()));
    assert_int_equal(loom_int(loom_state("/n")), 4);
    loom_patch("[{'op':'remove','path':'/n'}]");
    int both[] = {loom_call("counter/a", "{'add':%d}", 1), loom_spawn("child", "null")};
    loom_result r = loom_await_all(both, 2);
    assert_true(r.ok);
    struct loom_each it = loom_each(r.value);
    assert_true(loom_next(&it) && loom_settled(it.value).ok && loom_next(&it) && !loom_settled(it.value).ok &&
                !loom_next(&it));
    assert_int_equal(loom_settled(it.value).promise, 2);
    loom_send("counter/a", "'hi'");
    loom_cancel(loom_timer(50));
    loom_emit("news", "[]");
    loom_log("info", "'at %l'", loom_now());
    assert_true(loom_random() == 0.25);
    assert_true(loom_int(loom_get(loom_suspend("ask").value, "/x")) == 1);
    int late = loom_wait_event("go", 0);
    r = loom_await(late);
    assert_true(!r.ok && r.promise == 0 && loom_is(loom_get(r.value, "/code"), "cancelled"));
    loom_continue("{'round':%d}", 2);
}
static void test_ops(void **state) {
    (void)state;
    PLAY(loom_run_everything, "self null -> {'key':'k'}", "config null -> null", "state.get '/n' -> 4",
         "state.patch [{'op':'remove','path':'/n'}] -> null", "actor.call {'to':'counter/a','input':{'add':1}} -> 1",
         "child.spawn {'type':'child','input':null} -> 2",
         "await {'promises':[1,2],'mode':'all'} -> [{'promise':1,'ok':null},{'promise':2,'error':{'code':'x'}}]",
         "actor.send {'to':'counter/a','input':'hi'} -> 'id'", "timer {'delayMs':50} -> 3",
         "cancel {'promise':3} -> null", "emit {'channel':'news','data':[]} -> null", "now null -> 1700000000000",
         "log {'level':'info','msg':'at 1700000000000'} -> null", "random null -> 0.25",
         "suspend {'reason':'ask'} -> {'x':1}", "event.wait {'type':'go'} -> 4",
         "await {'promises':[4],'mode':'any'} -> !{'code':'cancelled','message':'m','retryable':false}",
         "continue {'round':2}");
    PLAY(loom_run_everything, "self null -> !{'code':'odd','message':'m'}", "fail {'code':'odd','message':'m'}");
}

LOOM_ACTIVITY(outside) {
    loom_string key = loom_secret("API_KEY");
    loom_progress("{'done':%d}", 1);
    if (loom_heartbeat("null")) loom_fail("stopped", true, "'%t'", key);
    loom_finish("null");
}
static void test_activity_ops(void **state) {
    (void)state;
    PLAY(loom_run_outside, "secret 'API_KEY' -> '{{secret:API_KEY}}'", "progress {'done':1} -> null",
         "heartbeat null -> {'cancelled':true}",
         "fail {'code':'stopped','message':'{{secret:API_KEY}}','retryable':true}");
}

static void test_hello(void **state) {
    (void)state;
    PLAY(loom_run_greet, "input null -> {'name':'Ada'}", "return {'text':'Hello, Ada!'}");
    PLAY(loom_run_hello, "state.get '/visits' -> 4", "state.patch [{'op':'add','path':'/visits','value':5}] -> null",
         "input null -> {'name':'Ada'}", "activity {'name':'greet','input':{'name':'Ada'}} -> 1",
         "await {'promises':[1],'mode':'any'} -> {'promise':1,'ok':{'text':'Hi'}}", "return {'text':'Hi','visits':5}");
}

static void test_review(void **state) {
    (void)state;
#define DRAFTED                                                                    \
    "*input -> {'name':'Ada'}", "*activity -> 1", "*event.wait -> 2",              \
        "await {'promises':[1],'mode':'any'} -> {'promise':1,'ok':{'text':'Hi'}}", \
        "state.patch [{'op':'add','path':'/draft','value':{'text':'Hi'}}] -> null"
    PLAY(loom_run_review, DRAFTED,
         "await {'promises':[2],'mode':'any'} -> {'promise':2,'ok':{'by':'Bob','approved':true}}",
         "state.patch [{'op':'add','path':'/approvedBy','value':'Bob'}] -> null",
         "return {'letter':'Hi','approvedBy':'Bob'}");
    PLAY(loom_run_review, DRAFTED, "await {'promises':[2],'mode':'any'} -> {'promise':2,'ok':{'by':'Bob'}}",
         "fail {'code':'refused','message':'Bob refused the draft','retryable':false}");
    PLAY(loom_run_review, DRAFTED, "await {'promises':[2],'mode':'any'} -> {'promise':2,'error':{'code':'timeout'}}",
         "fail {'code':'timeout'}");
}

/* yyjson works on the guest's own memory, growing blocks included. */
LOOM_ACTIVITY(tree) {
    loom_json in = loom_input();
    yyjson_alc alc = loom_yyjson_alc();
    yyjson_doc *doc = yyjson_read_opts((char *)(uintptr_t)in.p, in.n, 0, &alc, NULL);
    yyjson_mut_doc *out = yyjson_doc_mut_copy(doc, &alc);
    yyjson_mut_val *list = yyjson_mut_doc_get_root(out);
    for (int i = 0; i < 500; i++) yyjson_mut_arr_add_int(out, list, i);
    loom_json text = {0};
    text.p = yyjson_mut_write_opts(out, 0, &alc, &text.n, NULL);
    loom_return("[%d,%j,%j]", (int)loom_count(text), loom_get(text, "/0"), loom_get(text, "/500"));
}
static void test_yyjson(void **state) {
    (void)state;
    PLAY(loom_run_tree, "input null -> [{'a':1}]", "return [501,{'a':1},499]");
}

static void test_email_sender(void **state) {
    (void)state;
    PLAY(loom_run_email_sender, "input null -> {'to':'a@b.c','subject':'s','text':'t'}",
         "http {'method':'POST','url':'smtp://','body':{'to':'a@b.c','subject':'s','text':'t'}} -> "
         "{'status':250,'headers':{},'body':null}",
         "return {'status':250}");
}

static void test_echo(void **state) {
    (void)state;
    PLAY(loom_run_echo, "input null -> {'a':[1]}", "return {'a':[1]}");
}

static void test_http_request(void **state) {
    (void)state;
    PLAY(loom_run_http_request, "input null -> {'url':'https://a/b'}",
         "http {'method':'GET','url':'https://a/b'} -> "
         "{'status':200,'headers':{},'body':{'x':1}}",
         "return {'x':1}");
    PLAY(loom_run_http_request,
         "input null -> {'url':'https://a','method':'POST','headers':{'h':'v'},'body':[1],'timeoutMs':5,'full':true}",
         "http {'method':'POST','url':'https://a','headers':{'h':'v'},'body':[1],'timeoutMs':5} -> "
         "{'status':201,'headers':{},'body':''}",
         "return {'status':201,'headers':{},'body':''}");
    PLAY(loom_run_http_request, "*input -> {'url':'https://a'}",
         "*http -> {'status':404,'headers':{},'body':{'why':'gone'}}",
         "fail {'code':'http_404','message':'GET https://a answered 404: {\\'why\\':\\'gone\\'}','retryable':false}");
    const char *retried[] = {"408", "429", "500", "503"};
    for (size_t i = 0; i < sizeof(retried) / sizeof(*retried); i++) {
        char http[96], failure[160];
        snprintf(http, sizeof(http), "*http -> {'status':%s,'headers':{},'body':''}", retried[i]);
        snprintf(failure, sizeof(failure),
                 "fail {'code':'http_%s','message':'GET https://a answered %s: ','retryable':true}", retried[i],
                 retried[i]);
        PLAY(loom_run_http_request, "*input -> {'url':'https://a'}", http, failure);
    }
    PLAY(loom_run_http_request, "*input -> {'url':'https://a'}",
         "*http -> !{'code':'denied','message':'m','retryable':false}",
         "fail {'code':'denied','message':'m','retryable':false}");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),    cmocka_unit_test(test_text),         cmocka_unit_test(test_places),
        cmocka_unit_test(test_numbers), cmocka_unit_test(test_format),       cmocka_unit_test(test_agent),
        cmocka_unit_test(test_ops),     cmocka_unit_test(test_activity_ops), cmocka_unit_test(test_hello),
        cmocka_unit_test(test_review),  cmocka_unit_test(test_yyjson),       cmocka_unit_test(test_email_sender),
        cmocka_unit_test(test_echo),    cmocka_unit_test(test_http_request),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
