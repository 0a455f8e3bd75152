/* Workflow documents: expressions and templates, the interpreter played step by step, the check, the schema. */
#include "support/fake_host.h"

#include "../builtin/activities/wdl-check.c"
#include "../builtin/wdl/wdl.c"

#include <loomdeps.h>

/* ---- expressions ---- */

static bool test_root(void *ctx, loom_string name, loom_json *value) {
    loom_json v = loom_member(*(loom_json *)ctx, name.p, name.n);
    *value = v;
    return v.n > 0;
}
static const char *expression_cases[][2] = {
    {"a", "{\"b\":[1,{\"odd name\":\"x\"}]}"},
    {"a.b[1]['odd name']", "\"x\""},
    {" a . b [ 0 ] ", "1"},
    {"a['b'][m]", "{\"odd name\":\"x\"}"},
    {"s", "\"te\\\"xt\""},
    {"n == 2.50", "true"},
    {"n == 2.5000000000000001e0 || false", "true"},
    {"big == 9007199254740992", "false"},
    {"n > 2 && n < 3 && n >= 2.5 && n <= 2.5", "true"},
    {"-1 < 0 && 1e2 > 99", "true"},
    {"s == 'te\\\"xt'", "true"},
    {"s != \"other\"", "true"},
    {"'b' > 'abc' && 'ab' < 'abc' && !('a' < 'a')", "true"},
    {"s == 1", "false"},
    {"z == null && t == true && z != t", "true"},
    {"!t || !!t", "true"},
    {"t && (z == 1 || t)", "true"},
    {"false && a.nothing", "false"},
    {"true || a.nothing == 1", "true"},
    {"has(a.nothing) || has(a.b[7])", "false"},
    {"has(a.b[1]) && has(z)", "true"},
    {"1 in a.b && !(2 in [0].x)", "!bad_expression"},
    {"2 in list && !(3 in list) && 'x' in list", "true"},
    {"'b' in a && !('c' in a)", "true"},
    {"size(list) == 3 && size(a) == 1 && size('h\xC3\xA4') == 3", "true"},
    {"s.contains('xt') && !s.contains('tx')", "true"},
    {"int in list", "!unresolved_path"},
    {"information", "7"},
    {"true1", "!unresolved_path"},
    {"a.c", "!unresolved_path"},
    {"a.b.c.d", "!unresolved_path"},
    {"nope", "!unresolved_path"},
    {"a == a", "!type_mismatch"},
    {"n && t", "!type_mismatch"},
    {"!n", "!type_mismatch"},
    {"s < 3", "!type_mismatch"},
    {"t < t", "!type_mismatch"},
    {"1 in 'text'", "!type_mismatch"},
    {"size(3)", "!type_mismatch"},
    {"n.contains('x')", "!type_mismatch"},
    {"", "!bad_expression"},
    {"n +", "!bad_expression"},
    {"(n", "!bad_expression"},
    {"n == ", "!bad_expression"},
    {"n = 1", "!bad_expression"},
    {"a.", "!bad_expression"},
    {"a[", "!bad_expression"},
    {"a[0", "!bad_expression"},
    {"a[]", "!bad_expression"},
    {"'open", "!bad_expression"},
    {"1.", "!bad_expression"},
    {"-01", "!bad_expression"},
    {"1e", "!bad_expression"},
    {"-", "!bad_expression"},
    {"s.upper('x')", "!bad_expression"},
    {"a-b", "!bad_expression"},
    {"((((((((((((((((1))))))))))))))))", "!bad_expression"},
};
static struct expr scope(loom_json *roots, const char *text) {
    *roots = (loom_json){text, strlen(text)};
    return (struct expr){.root = test_root, .ctx = roots};
}
#define ROOTS                                                                                             \
    "{\"a\":{\"b\":[1,{\"odd name\":\"x\"}]},\"s\":\"te\\\"xt\",\"n\":2.5,\"t\":true,\"z\":null,\"m\":1," \
    "\"list\":[1,2,\"x\"],\"big\":9007199254740993,\"information\":7}"
static void run_expressions(void) {
    for (size_t i = 0; i < sizeof(expression_cases) / sizeof(*expression_cases); i++) {
        loom_json roots;
        struct expr e = scope(&roots, ROOTS);
        loom_json v = expr_eval(&e, loom_chars(expression_cases[i][0]));
        char got[512];
        snprintf(got, sizeof(got), "%s: %s%.*s", expression_cases[i][0], e.code ? "!" : "", e.code ? 20 : (int)v.n,
                 e.code ? e.code
                 : v.n  ? v.p
                        : "");
        char expected[512];
        snprintf(expected, sizeof(expected), "%s: %s", expression_cases[i][0], expression_cases[i][1]);
        assert_string_equal(got, expected);
    }
}
static void test_expressions(void **state) {
    (void)state;
    host_play(run_expressions, (const char *const[]){NULL});
}

/* A string that is one expression keeps the value's type; otherwise values become text; names of members stay. */
static void run_templates(void) {
    static const char *cases[][2] = {
        {"{\"x\": \"{{ a }}\"}", "{\"x\": {\"b\":[1,{\"odd name\":\"x\"}]}}"},
        {"\"{{n}}\"", "2.5"},
        {"[\"{{ list }} and {{ s }} and {{z}}\"]", "[\"[1,2,\\\"x\\\"] and te\\\"xt and null\"]"},
        {"\"{{ s }}{{ n }}\"", "\"te\\\"xt2.5\""},
        {"\" {{ n }}\"", "\" 2.5\""},
        {"\"\\u0041\\n{{ a['b'][0] }}\"", "\"A\\u000a1\""},
        {"{\"{{ n }}\" : \"{{ n }}\"}", "{\"{{ n }}\" : 2.5}"},
        {"\"{{ '{{' }}\"", "\"{{\""},
        {"\"}} { {\"", "\"}} { {\""},
        {"\"{{ n \"", "!bad_expression"},
        {"[1,\"{{ nope }}\"]", "!unresolved_path"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        loom_json roots;
        struct expr e = scope(&roots, ROOTS);
        loom_json v = template_fill(&e, (loom_json){cases[i][0], strlen(cases[i][0])});
        char got[256];
        snprintf(got, sizeof(got), "%s%.*s", e.code ? "!" : "", e.code ? 20 : (int)v.n, e.code ? e.code : v.p);
        assert_string_equal(got, cases[i][1]);
    }
    loom_json roots;
    struct expr e = scope(&roots, ROOTS);
    template_fill(&e, loom_format("'{{ a.c.d }}'"));
    assert_string_equal(loom_text(e.message).p, "there is no `a.c.d`, in `a.c.d`");
}
static void test_templates(void **state) {
    (void)state;
    host_play(run_templates, (const char *const[]){NULL});
}

/* ---- runs: a document, and what the interpreter asks of its host ---- */

#define RUN(steps, ...)                                                                                          \
    PLAY(loom_run_wdl, "*config -> {'name':'w','version':'1','steps':[" steps "]}", "*input -> {'x':{'y':[3]}}", \
         "*self -> {'key':'run-1'}", __VA_ARGS__)
#define AWAIT(list, settled) "await {'promises':[" list "],'mode':'any'} -> {'promise':" settled "}"

static void test_sequence(void **state) {
    (void)state;
    RUN("{'id':'a','type':'activity','activity':'one','input':{'v':'{{ input.x }}','id':'{{ workflow.id "
        "}}'},'output':'first',"
        "'version':'2.0.0','timeout':5000,'retryPolicy':{'maxAttempts':2}},"
        "{'type':'activity','activity':'two','input':'{{ first.n }}'},"
        "{'id':'c','type':'agent','agentType':'helper','key':'k-{{ first.n }}','input':'n is {{ first.n "
        "}}','output':'second'}",
        "activity "
        "{'name':'one','input':{'v':{'y':[3]},'id':'run-1'},'label':'a','version':'2.0.0','timeoutMs':5000,'retry':{'"
        "maxAttempts':2}} -> 1",
        AWAIT("1", "1,'ok':{'n':7}"), "activity {'name':'two','input':7,'label':'2'} -> 2", AWAIT("2", "2,'ok':null"),
        "child.spawn {'type':'helper','input':'n is 7','label':'c','key':'k-7'} -> 3", AWAIT("3", "3,'ok':'done'"),
        "return {'first':{'n':7},'second':'done'}");
}

static void test_output(void **state) {
    (void)state;
    PLAY(loom_run_wdl,
         "*config -> {'name':'w','version':'1','steps':[{'type':'wait','duration':10}],'output':{'r':'{{ input }}'}}",
         "*input -> 5", "*self -> {'key':'k'}", "timer {'delayMs':10} -> 1", AWAIT("1", "1,'ok':null"),
         "return {'r':5}");
    PLAY(loom_run_wdl,
         "*config -> "
         "{'name':'w','version':'1','steps':[{'type':'activity','activity':'a','compensation':{'activity':'b'}}],"
         "'output':'{{ input.z }}'}",
         "*input -> {}", "*self -> {'key':'k'}", "activity {'name':'a','input':null,'label':'1'} -> 1",
         AWAIT("1", "1,'ok':null"), "activity {'name':'b','input':null,'label':'1.compensation'} -> 2",
         AWAIT("2", "2,'ok':null"),
         "fail {'code':'unresolved_path','message':'output: there is no `input.z`, in `input.z`','retryable':false}");
}

static void test_wait(void **state) {
    (void)state;
    RUN("{'type':'wait','event':'paid-{{ input.x.y[0] }}','timeout':60,'output':'paid'}",
        "event.wait {'type':'paid-3','timeoutMs':60} -> 1", AWAIT("1", "1,'ok':{'by':'ann'}"),
        "return {'paid':{'by':'ann'}}");
}

#define STEP(id, extra)     "{'id':'" id "','type':'activity','activity':'do-" id "'" extra "}"
#define UNDO(id)            ",'compensation':{'activity':'undo-" id "','input':'" id "'}"
#define DO(id, promise)     "activity {'name':'do-" id "','input':null,'label':'" id "'} -> " promise
#define UNDONE(id, promise) "activity {'name':'undo-" id "','input':'" id "','label':'" id ".compensation'} -> " promise

/* A wait that times out fails its step, and what was done is undone, the last first. */
static void test_compensation(void **state) {
    (void)state;
    RUN(STEP("a", UNDO("a")) "," STEP("b", UNDO("b")) "," STEP("n",
                                                               "") ",{'id':'w','type':'wait','event':'e','timeout':9}",
        DO("a", "1"), AWAIT("1", "1,'ok':1"), DO("b", "2"), AWAIT("2", "2,'ok':2"), DO("n", "3"),
        AWAIT("3", "3,'ok':3"), "event.wait {'type':'e','timeoutMs':9} -> 4",
        AWAIT("4", "4,'error':{'code':'timeout','message':'no event e within 9 ms'}"), UNDONE("b", "5"),
        AWAIT("5", "5,'ok':null"), UNDONE("a", "6"), AWAIT("6", "6,'ok':null"),
        "fail {'code':'timeout','message':'step w (wait): no event e within 9 ms','retryable':false}");
}

/* A compensation that fails is told, and the others go on. */
static void test_compensation_fails(void **state) {
    (void)state;
    RUN(STEP("a", UNDO("a")) "," STEP("b", UNDO("b")) "," STEP("c", ""), DO("a", "1"), AWAIT("1", "1,'ok':1"),
        DO("b", "2"), AWAIT("2", "2,'ok':2"), DO("c", "3"),
        AWAIT("3", "3,'error':{'code':'odd','message':'why','retryable':true}"), UNDONE("b", "4"),
        AWAIT("4", "4,'error':{'code':'stuck','message':'no key'}"),
        "log {'level':'error','msg':'compensation of step b failed: no key'} -> null", UNDONE("a", "5"),
        AWAIT("5", "5,'ok':null"),
        "fail {'code':'odd','message':'step c (activity): why; compensation of step b failed: no "
        "key','retryable':false}");
}

static void test_unresolved(void **state) {
    (void)state;
    RUN(STEP("a", ",'input':'{{ input.x.z }}'"), "fail {'code':'unresolved_path','message':'step a (activity): there "
                                                 "is no `input.x.z`, in `input.x.z`','retryable':false}");
    RUN(STEP("a", ""),
        "activity {'name':'do-a','input':null,'label':'a'} -> !{'code':'invalid_argument','message':'m'}",
        "fail {'code':'invalid_argument','message':'step a (activity): m','retryable':false}");
}

/* Branches run at the same time, each at its own pace; the result is the list of what they gave. */
static void test_parallel(void **state) {
    (void)state;
    RUN("{'id':'p','type':'parallel','output':'both','branches':[[" STEP("a", "") "," STEP(
            "b", ",'output':'last'") "],[{'type':'wait','event':'e'}]]},"
                                     "{'type':'activity','activity':'z','input':'{{ both }}'}",
        DO("a", "1"), "event.wait {'type':'e'} -> 2", AWAIT("1,2", "2,'ok':'event'"), AWAIT("1", "1,'ok':null"),
        DO("b", "3"), AWAIT("3", "3,'ok':{'k':1}"), "activity {'name':'z','input':[{'k':1},'event'],'label':'2'} -> 4",
        AWAIT("4", "4,'ok':0"), "return {'last':{'k':1},'both':[{'k':1},'event']}");
}

/* The failure of one branch cancels the others; what had completed by then is compensated in reverse order. */
static void test_parallel_fails(void **state) {
    (void)state;
    RUN("{'id':'p','type':'parallel','branches':[[" STEP("a", UNDO("a")) "," STEP("c", "") "],[" STEP(
            "b", UNDO("b")) "],"
                            "[{'type':'activity','activity':'slow','compensation':{'activity':'no'}}]]}",
        DO("a", "1"), DO("b", "2"), "activity {'name':'slow','input':null,'label':'p.3.1'} -> 3",
        AWAIT("1,2,3", "1,'ok':1"), DO("c", "4"), AWAIT("4,2,3", "4,'error':{'code':'odd','message':'why'}"),
        "cancel {'promise':2} -> null", "cancel {'promise':3} -> null",
        AWAIT("2,3", "3,'error':{'code':'cancelled','message':'m'}"), AWAIT("2", "2,'ok':2"), UNDONE("b", "5"),
        AWAIT("5", "5,'ok':null"), UNDONE("a", "6"), AWAIT("6", "6,'ok':null"),
        "fail {'code':'odd','message':'step c (activity): why','retryable':false}");
}

static void test_condition(void **state) {
    (void)state;
    RUN("{'id':'c','type':'condition','if':'{{ input.x.y[0] > 2 "
        "}}','output':'r','then':[{'type':'activity','activity':'yes'}],"
        "'else':[{'type':'activity','activity':'no'}]}",
        "activity {'name':'yes','input':null,'label':'c.then.1'} -> 1", AWAIT("1", "1,'ok':'Y'"), "return {'r':'Y'}");
    RUN("{'type':'condition','if':'has(input.q)','then':[{'type':'activity','activity':'yes'}],"
        "'else':[{'type':'parallel','branches':[[{'type':'activity','activity':'no'}]]}]}",
        "activity {'name':'no','input':null,'label':'1.else.1.1.1'} -> 1", AWAIT("1", "1,'ok':'N'"), "return {}");
    RUN("{'type':'condition','if':false,'then':[{'type':'activity','activity':'yes'}],'output':'r'}",
        "return {'r':null}");
    RUN("{'id':'c','type':'condition','if':'input.x','then':[{'type':'activity','activity':'yes'}]}",
        "fail {'code':'type_mismatch','message':'step c (condition): {\\'y\\':[3]} is neither true nor "
        "false','retryable':false}");
}

/* A cancelled run cancels what is under way, compensates, and ends with the code `cancelled`. */
static void test_cancelled(void **state) {
    (void)state;
    RUN(STEP("a", UNDO("a")) "," STEP("b", ""), DO("a", "1"), AWAIT("1", "1,'ok':1"), DO("b", "2"),
        "await {'promises':[2],'mode':'any'} -> !{'code':'cancelled','message':'cancelled by ann'}",
        "cancel {'promise':2} -> null", AWAIT("2", "2,'error':{'code':'cancelled','message':'m'}"), UNDONE("a", "3"),
        AWAIT("3", "3,'ok':null"), "fail {'code':'cancelled','message':'cancelled by ann','retryable':false}");
    /* one that comes during a compensation does not prevent it */
    RUN(STEP("a", UNDO("a")) "," STEP("b", ""), DO("a", "1"), AWAIT("1", "1,'ok':1"), DO("b", "2"),
        AWAIT("2", "2,'error':{'code':'odd','message':'m'}"), UNDONE("a", "3"),
        "await {'promises':[3],'mode':'any'} -> !{'code':'cancelled','message':'m'}", UNDONE("a", "4"),
        AWAIT("4", "4,'ok':null"), "fail {'code':'odd','message':'step b (activity): m','retryable':false}");
}

static char *file_text(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot open %s: run the test from the project's folder", path);
    char *text = calloc(1, 65536);
    assert_true(fread(text, 1, 65535, f) > 0);
    fclose(f);
    return text;
}

static void test_customer_onboarding(void **state) {
    (void)state;
    char *document = file_text("examples/customer-onboarding/workflows/customer-onboarding.json"),
         *config = calloc(1, 70000);
    snprintf(config, 70000, "*config -> %s", document);
#define ONBOARDED                                                                                                     \
    config, "*input -> null", "*self -> {'key':'c1'}",                                                                \
        "activity {'name':'http-request','input':{\n        'url': 'https://api.example.com/forms/signup',\n        " \
        "'method': 'POST'\n      },"                                                                                  \
        "'label':'collect-info'} -> 1",                                                                               \
        AWAIT("1", "1,'ok':{'email':'ann@example.com'}"),                                                             \
        "activity {'name':'create-user-account','input':{'email':'ann@example.com'},'label':'create-account'} -> 2",  \
        AWAIT("2", "2,'ok':{'userId':'u1'}"),                                                                         \
        "child.spawn {'type':'email-verification-agent','input':{\n        'email': 'ann@example.com',\n        "     \
        "'userId': 'u1'\n      },'label':'send-verification'} -> 3",                                                  \
        AWAIT("3", "3,'ok':{'sent':true}"), "event.wait {'type':'email_verified','timeoutMs':3600000} -> 4"
    PLAY(loom_run_wdl, ONBOARDED, AWAIT("4", "4,'ok':{}"),
         "activity {'name':'send-welcome-email','input':{'userId':'u1'},'label':'notify-success.1.1'} -> 5",
         "activity {'name':'log-event','input':{\n              'event': 'user_onboarded'\n            "
         "},'label':'notify-success.2.1'} -> 6",
         AWAIT("5,6", "6,'ok':null"), AWAIT("5", "5,'ok':null"),
         "return {'userInfo':{'email':'ann@example.com'},'account':{'userId':'u1'}}");
    PLAY(loom_run_wdl, ONBOARDED, AWAIT("4", "4,'error':{'code':'timeout','message':'m'}"),
         "activity {'name':'delete-user-account','input':'u1','label':'create-account.compensation'} -> 5",
         AWAIT("5", "5,'ok':null"),
         "fail {'code':'timeout','message':'step wait-verification (wait): m','retryable':false}");
    free(document);
    free(config);
}

/* ---- what is refused at upload ---- */

#define CHECK(steps, verdict) PLAY(loom_run_wdl_check, "*input -> {'steps':[" steps "],'output':'{{ r }}'}", verdict)
#define INVALID(message)      "fail {'code':'invalid_workflow','message':'" message "','retryable':false}"
#define A(extra)              "{'type':'activity','activity':'a'" extra "}"
#define R                     A(",'output':'r'")

static void test_check(void **state) {
    (void)state;
    CHECK(R, "return null");
    CHECK(A(",'input':['{{ input.a }}','{{ workflow.id }}']") "," R "," A(
              ",'input':'{{ r[0] }}','compensation':{'activity':'u','input':'{{ r }}'}"),
          "return null");
    CHECK(A(",'output':'x','compensation':{'activity':'u','input':'{{ x }}'}") "," R, "return null");
    CHECK(A(""), INVALID("output: nothing here is called `r`, in `r`; known here: input, workflow"));
    CHECK(A(",'id':'s','input':{'k':'{{ r.x }}'}") "," R,
          INVALID("step s: nothing here is called `r`, in `r.x`; known here: input, workflow"));
    CHECK(A(",'id':'s'") "," A(",'id':'s'"), INVALID("step s: another step has this id already"));
    CHECK(A("") "," A(",'id':'1'"), INVALID("step 1: another step has this id already"));
    CHECK(R "," R, INVALID("step 2: the name `r` is taken: choose another for the output"));
    CHECK(A(",'output':'input'"), INVALID("step 1: the name `input` is taken: choose another for the output"));
    CHECK(A(",'output':'in'"), INVALID("step 1: `in` is a word of expressions: choose another name for the output"));
    CHECK(A(",'id':'s','input':'{{ a b }}'"),
          INVALID("step s: nothing here is called `a`, in `a b`; known here: input, workflow"));
    CHECK(R "," A(",'id':'s','input':'{{ r r }}'"),
          INVALID("step s: expected an operator or the end, found `r`, in `r r`; known here: input, workflow, r"));
    CHECK(R "," A(",'id':'s','input':'x {{ r'"),
          INVALID("step s: `{{` without `}}` in `x {{ r`; known here: input, workflow, r"));
    /* both sides of && are looked at, though nothing is computed */
    CHECK("{'id':'c','type':'condition','if':'input.n > 1 && q','then':[" R "]}",
          INVALID("step c: nothing here is called `q`, in `input.n > 1 && q`; known here: input, workflow"));
    CHECK("{'id':'c','type':'condition','if':'input.n in input.l || !has(input.z.y)','then':[" R
          "],'else':[" A(",'id':'x','output':'y'") "]}",
          "return null");
    /* neighbours in a parallel step do not see each other's outputs; what comes later does */
    CHECK("{'id':'p','type':'parallel','branches':[[" R
          "],[" A(",'output':'q'") "," A(",'input':'{{ q }}'") "]]}," A(",'input':'{{ r }}{{ q }}'"),
          "return null");
    CHECK("{'id':'p','type':'parallel','branches':[[" R "],[" A(",'input':'{{ r }}'") "]]}",
          INVALID("step p.2.1: nothing here is called `r`, in `r`; known here: input, workflow"));
    CHECK("{'id':'p','type':'parallel','branches':[[" R "],[" R "]]}",
          INVALID("step p.2.1: the name `r` is taken: choose another for the output"));
}

static const struct {
    const char *steps, *error; /* NULL: fits; otherwise a part of the message */
} schema_cases[] = {
    {"[{'type':'activity','activity':'a','input':{},'output':'x','compensation':{'activity':'b'},'timeout':1,'"
     "retryPolicy':{'maxAttempts':1}}]",
     NULL},
    {"[{'type':'agent','agentType':'a','key':'{{ input.k "
     "}}'},{'type':'wait','event':'e'},{'type':'wait','duration':5}]",
     NULL},
    {"[{'type':'parallel','branches':[[{'type':'condition','if':'x','then':[{'type':'wait','event':'e'}]}]]}]", NULL},
    {"[]", "/steps: "},
    {"[{'type':'activty','activity':'a'}]", "/steps/0/type: "},
    {"[{'activity':'a'}]", "\"type\" is a required property"},
    {"[{'type':'wait','event':'e'},{'type':'activity'}]", "/steps/1: \"activity\" is a required property"},
    {"[{'type':'agent'}]", "\"agentType\" is a required property"},
    {"[{'type':'parallel'}]", "\"branches\" is a required property"},
    {"[{'type':'parallel','branches':[[{'type':'wait'}]]}]", "/steps/0/branches/0/0: \"event\" is a required property"},
    {"[{'type':'condition','then':[{'type':'wait','event':'e'}]}]", "\"if\" is a required property"},
    {"[{'type':'activity','activity':'a','inptu':1}]", "inptu"},
    {"[{'type':'wait','event':'e','duration':5}]", "event"},
    {"[{'type':'activity','activity':'a','output':'user-info'}]", "/steps/0/output: "},
    {"[{'type':'activity','activity':'a','compensation':{}}]",
     "/steps/0/compensation: \"activity\" is a required property"},
    {"[{'type':'activity','activity':'a','timeout':-1}]", "/steps/0/timeout: "},
    {"[{'type':'activity','activity':'a','id':'a b'}]", "/steps/0/id: "},
};
static void test_schema(void **state) {
    (void)state;
    char *schema_text = file_text("builtin/wdl/schema.json"), err[1024] = "";
    struct loom_schema *schema = loom_schema_new(schema_text, strlen(schema_text), err, sizeof(err));
    assert_string_equal(err, "");
    for (size_t i = 0; i < sizeof(schema_cases) / sizeof(*schema_cases); i++) {
        char document[1024];
        int n = snprintf(document, sizeof(document), "{'name':'w','version':'1.0.0','steps':%s}",
                         schema_cases[i].steps);
        host_copy(document, sizeof(document), document, (size_t)n);
        int verdict = loom_schema_check(schema, document, (size_t)n, err, sizeof(err));
        if (verdict != (schema_cases[i].error ? -1 : 0) || (verdict && !strstr(err, schema_cases[i].error)))
            fail_msg("%s: %s", document, verdict ? err : "fits");
    }
    char *document = file_text("examples/customer-onboarding/workflows/customer-onboarding.json");
    assert_int_equal(loom_schema_check(schema, document, strlen(document), err, sizeof(err)), 0);
    loom_schema_free(schema);
    free(document);
    free(schema_text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expressions),
        cmocka_unit_test(test_templates),
        cmocka_unit_test(test_sequence),
        cmocka_unit_test(test_output),
        cmocka_unit_test(test_wait),
        cmocka_unit_test(test_compensation),
        cmocka_unit_test(test_compensation_fails),
        cmocka_unit_test(test_unresolved),
        cmocka_unit_test(test_parallel),
        cmocka_unit_test(test_parallel_fails),
        cmocka_unit_test(test_condition),
        cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_customer_onboarding),
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_schema),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
