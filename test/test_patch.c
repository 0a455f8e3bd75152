/* test_patch.c: RFC 6902, each patch also undone by its inverse, by failure, and found again by diff. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/base.h"

#include <stdio.h>
#include <string.h>

static yyjson_doc *parse(struct str text) {
    struct error err = {0};
    yyjson_doc *doc = json_parse(text, &err);
    if (!doc) fail_msg("%.*s: %s", (int)text.n, text.p, err.message);
    return doc;
}

static int apply(yyjson_mut_doc *doc, struct str patch, struct buf *inverse, struct error *err) {
    yyjson_doc *p = parse(patch);
    int rc = patch_apply(doc, p->root, inverse, err);
    yyjson_doc_free(p);
    return rc;
}

static bool is(yyjson_mut_doc *doc, const char *text) {
    yyjson_doc *want = parse(str_of(text));
    yyjson_mut_doc *copy = yyjson_doc_mut_copy(want, NULL);
    bool same = yyjson_mut_equals(doc->root, copy->root);
    yyjson_mut_doc_free(copy);
    yyjson_doc_free(want);
    return same;
}

static yyjson_mut_doc *mutable(const char *text) {
    yyjson_doc *doc = parse(str_of(text));
    yyjson_mut_doc *copy = yyjson_doc_mut_copy(doc, NULL);
    yyjson_doc_free(doc);
    return copy;
}

/* Applies, takes back with the inverse, and goes the same way by diff. */
static void good(const char *from, const char *patch, const char *to) {
    struct error err = {0};
    struct buf inverse = {0}, diff = {0};
    yyjson_mut_doc *doc = mutable(from);
    if (apply(doc, str_of(patch), &inverse, &err) != LOOM_OK) fail_msg("%s: %s", patch, err.message);
    if (!is(doc, to)) fail_msg("%s on %s did not give %s", patch, from, to);
    assert_int_equal(apply(doc, buf_view(&inverse), NULL, &err), LOOM_OK);
    if (!is(doc, from)) fail_msg("%.*s did not give back %s", (int)inverse.n, inverse.p, from);
    yyjson_doc *a = parse(str_of(from)), *b = parse(str_of(to));
    patch_diff(a->root, b->root, &diff);
    assert_int_equal(apply(doc, buf_view(&diff), NULL, &err), LOOM_OK);
    if (!is(doc, to)) fail_msg("the diff %.*s did not give %s", (int)diff.n, diff.p, to);
    yyjson_doc_free(a);
    yyjson_doc_free(b);
    yyjson_mut_doc_free(doc);
    buf_free(&inverse);
    buf_free(&diff);
}

/* Fails with these words, and leaves the document as it was, to the byte. */
static void bad(const char *from, const char *patch, const char *words) {
    struct error err = {0};
    struct buf inverse = {0}, after = {0};
    yyjson_mut_doc *doc = mutable(from);
    assert_int_equal(apply(doc, str_of(patch), &inverse, &err), LOOM_E_INVALID_ARGUMENT);
    if (!strstr(err.message, words)) fail_msg("%s: expected \"%s\" in: %s", patch, words, err.message);
    assert_int_equal(inverse.n, 0);
    json_write_mut(doc->root, &after);
    if (!str_eq(buf_view(&after), str_of(from))) fail_msg("%s left %.*s", patch, (int)after.n, after.p);
    yyjson_mut_doc_free(doc);
    buf_free(&after);
}

/* Goal: each operation on objects, arrays and the root. */
static void operations_do_what_the_rfc_says(void **state) {
    (void)state;
    good("{}", "[]", "{}");
    good("{}", "[{\"op\":\"add\",\"path\":\"/a\",\"value\":1}]", "{\"a\":1}");
    good("{\"a\":1}", "[{\"op\":\"add\",\"path\":\"/a\",\"value\":[2]}]", "{\"a\":[2]}");
    good("{\"a\":{}}", "[{\"op\":\"add\",\"path\":\"/a/\",\"value\":null}]", "{\"a\":{\"\":null}}");
    good("[1,3]", "[{\"op\":\"add\",\"path\":\"/1\",\"value\":2}]", "[1,2,3]");
    good("[1,3]", "[{\"op\":\"add\",\"path\":\"/2\",\"value\":4}]", "[1,3,4]");
    good("[]", "[{\"op\":\"add\",\"path\":\"/-\",\"value\":[]},{\"op\":\"add\",\"path\":\"/0/-\",\"value\":7}]",
         "[[7]]");
    good("1", "[{\"op\":\"add\",\"path\":\"\",\"value\":{\"a\":2}}]", "{\"a\":2}");
    good("{\"a\":1}", "[{\"op\":\"replace\",\"path\":\"\",\"value\":\"x\"}]", "\"x\"");
    good("{\"a\":1,\"b\":2}", "[{\"op\":\"remove\",\"path\":\"/a\"}]", "{\"b\":2}");
    good("[1,2,3]", "[{\"op\":\"remove\",\"path\":\"/2\"},{\"op\":\"remove\",\"path\":\"/0\"}]", "[2]");
    good("[1]", "[{\"op\":\"remove\",\"path\":\"/0\"},{\"op\":\"add\",\"path\":\"/-\",\"value\":2}]", "[2]");
    good("[1,[2]]", "[{\"op\":\"replace\",\"path\":\"/1/0\",\"value\":{}}]", "[1,[{}]]");
    good("{\"a\":{\"b\":1},\"c\":2}", "[{\"op\":\"move\",\"from\":\"/a/b\",\"path\":\"/c\"}]", "{\"a\":{},\"c\":1}");
    good("{\"a\":1}", "[{\"op\":\"move\",\"from\":\"/a\",\"path\":\"/a\"}]", "{\"a\":1}");
    good("[1,2,3]", "[{\"op\":\"move\",\"from\":\"/0\",\"path\":\"/2\"}]", "[2,3,1]");
    good("{\"a\":{\"b\":1}}", "[{\"op\":\"move\",\"from\":\"/a\",\"path\":\"\"}]", "{\"b\":1}");
    good("{\"a\":[1]}",
         "[{\"op\":\"copy\",\"from\":\"/a\",\"path\":\"/b\"},{\"op\":\"add\",\"path\":\"/b/0\",\"value\":0}]",
         "{\"a\":[1],\"b\":[0,1]}");
    good("{\"a\":1}", "[{\"op\":\"copy\",\"from\":\"\",\"path\":\"/a\"}]", "{\"a\":{\"a\":1}}");
    good("{\"a/b\":{\"m~n\":1}}", "[{\"op\":\"replace\",\"path\":\"/a~1b/m~0n\",\"value\":2}]",
         "{\"a/b\":{\"m~n\":2}}");
    good("{\"0\":1}", "[{\"op\":\"remove\",\"path\":\"/0\",\"comment\":\"x\",\"value\":5}]", "{}");
    good("{\"n\":99999999999999999999}", "[{\"op\":\"add\",\"path\":\"/m\",\"value\":99999999999999999999}]",
         "{\"n\":99999999999999999999,\"m\":99999999999999999999}");
}

/* Goal: test compares as the RFC says: numbers by value, objects without order. */
static void test_compares(void **state) {
    (void)state;
    const char *doc = "{\"a\":{\"x\":1,\"y\":[\"2\"]},\"f\":1.0,\"n\":null,\"i\":9007199254740993}";
    good(doc, "[{\"op\":\"test\",\"path\":\"/a\",\"value\":{\"y\":[\"2\"],\"x\":1}}]", doc);
    good(doc, "[{\"op\":\"test\",\"path\":\"/f\",\"value\":1},{\"op\":\"test\",\"path\":\"/n\",\"value\":null}]", doc);
    bad(doc, "[{\"op\":\"test\",\"path\":\"/a/x\",\"value\":\"1\"}]", "another one");
    bad(doc, "[{\"op\":\"test\",\"path\":\"/a/y\",\"value\":[]}]", "another one");
    bad(doc, "[{\"op\":\"test\",\"path\":\"/n\",\"value\":false}]", "another one");
    bad(doc, "[{\"op\":\"test\",\"path\":\"/i\",\"value\":9007199254740992}]", "another one");
    bad(doc, "[{\"op\":\"test\",\"path\":\"/none\",\"value\":null}]", "nothing at this place");
}

/* Goal: a wrong patch names its operation and changes nothing, not even the order of members. */
static void wrong_patches_change_nothing(void **state) {
    (void)state;
    const char *doc = "{\"a\":1,\"b\":[1,2],\"c\":{\"d\":[]}}";
    const struct {
        const char *op, *words;
    } rows[] = {
        {"{\"op\":\"remove\",\"path\":\"/x\"}", "patch operation 6 at \"/x\": there is nothing at this place"},
        {"{\"op\":\"remove\",\"path\":\"\"}", "cannot be removed"},
        {"{\"op\":\"replace\",\"path\":\"/b/9\",\"value\":1}", "nothing at this place"},
        {"{\"op\":\"replace\",\"path\":\"/b/-\",\"value\":1}", "nothing at this place"},
        {"{\"op\":\"add\",\"path\":\"/b/9\",\"value\":1}", "no such index"},
        {"{\"op\":\"add\",\"path\":\"/b/01\",\"value\":1}", "no such index"},
        {"{\"op\":\"add\",\"path\":\"/b/1e0\",\"value\":1}", "no such index"},
        {"{\"op\":\"add\",\"path\":\"/x/y\",\"value\":1}", "no object or array around"},
        {"{\"op\":\"add\",\"path\":\"/k/y\",\"value\":1}", "no object or array around"},
        {"{\"op\":\"add\",\"path\":\"a\",\"value\":1}", "JSON Pointer"},
        {"{\"op\":\"add\",\"path\":\"/a~\",\"value\":1}", "JSON Pointer"},
        {"{\"op\":\"add\",\"path\":\"/a~2\",\"value\":1}", "JSON Pointer"},
        {"{\"op\":\"add\",\"value\":1}", "JSON Pointer"},
        {"{\"op\":\"add\",\"path\":\"/a\"}", "needs a value"},
        {"{\"op\":\"move\",\"path\":\"/a\"}", "JSON Pointer"},
        {"{\"op\":\"move\",\"from\":\"/c\",\"path\":\"/c/d\"}", "into itself"},
        {"{\"op\":\"move\",\"from\":\"\",\"path\":\"/c\"}", "into itself"},
        {"{\"op\":\"copy\",\"from\":\"/x\",\"path\":\"/a\"}", "nothing at \"from\""},
        {"{\"op\":\"spam\",\"path\":\"/a\"}", "its op is not"},
        {"{\"path\":\"/a\"}", "its op is not"},
        {"7", "its op is not"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char patch[1000];
        snprintf(patch, sizeof patch,
                 "[{\"op\":\"move\",\"from\":\"/a\",\"path\":\"/k\"},{\"op\":\"remove\",\"path\":\"/b/0\"},"
                 "{\"op\":\"replace\",\"path\":\"/c\",\"value\":{\"d\":[{}],\"e\":2}},"
                 "{\"op\":\"add\",\"path\":\"/c/d/0/z\",\"value\":2},{\"op\":\"copy\",\"from\":\"\",\"path\":\"/b/-\"},"
                 "{\"op\":\"remove\",\"path\":\"/c/e\"},%s]",
                 rows[i].op);
        bad(doc, patch, rows[i].words);
    }
    bad(doc, "{\"op\":\"remove\"}", "a patch is an array");
}

/* Goal: no patch makes a document deeper than what can be read again. */
static void depth_stays_readable(void **state) {
    (void)state;
    struct buf deep = {0}, patch = {0};
    for (int i = 0; i < 60; i++) buf_char(&deep, '[');
    for (int i = 0; i < 60; i++) buf_char(&deep, ']');
    buf_json(&patch,
             "[{\"op\":\"add\",\"path\":\"/a\",\"value\":%j},{\"op\":\"copy\",\"from\":\"\",\"path\":\"/b\"},"
             "{\"op\":\"copy\",\"from\":\"/a\",\"path\":\"",
             buf_view(&deep));
    buf_str(&patch, STR("/b/a"));
    for (int i = 0; i < 59; i++) buf_str(&patch, STR("/0"));
    buf_str(&patch, STR("/0\"}]"));
    buf_char(&patch, 0);
    bad("{\"x\":1}", patch.p, "deeper than 100");
    buf_free(&deep);
    buf_free(&patch);
}

static uint64_t dice;

static uint32_t roll(uint32_t n) {
    dice = hash64(STR("dice"), dice);
    return (uint32_t)(dice >> 20) % n;
}

static void random_value(struct buf *b, int depth) {
    static const char *const leaves[] = {"0", "1", "2.5", "null", "true", "\"x\"", "[]", "{}", "99999999999999999999"};
    uint32_t sort = depth > 3 ? 2 : roll(4), n = roll(5), first = roll(4);
    if (sort >= 2) {
        buf_str(b, str_of(leaves[roll(9)]));
        return;
    }
    buf_char(b, sort ? '[' : '{');
    for (uint32_t i = 0; i < n; i++) {
        buf_json(b, i ? "," : "");
        if (!sort) buf_json(b, "\"%s\":", ((const char *[]){"a", "b/c", "~d", "", "e"})[(first + i) % 5]);
        random_value(b, depth + 1);
    }
    buf_char(b, sort ? ']' : '}');
}

/* Goal: between 3,000 pairs of random documents the diff leads there, its inverse back, and a failure nowhere. */
static void random_documents_go_both_ways(void **state) {
    (void)state;
    env_system()->random(env_system(), &dice, sizeof dice);
    print_message("seed %llu\n", (unsigned long long)dice);
    for (int i = 0; i < 3000; i++) {
        struct buf from = {0}, to = {0}, diff = {0};
        random_value(&from, 0);
        random_value(&to, 0);
        yyjson_doc *a = parse(buf_view(&from)), *b = parse(buf_view(&to));
        patch_diff(a->root, b->root, &diff);
        buf_clear(&from);
        json_write(a->root, &from);
        buf_char(&from, 0);
        buf_char(&to, 0);
        buf_char(&diff, 0);
        good(from.p, diff.p, to.p);
        diff.n -= 2;
        buf_json(&diff, "%s{\"op\":\"none\"}]%s", diff.n > 1 ? "," : "", "");
        buf_char(&diff, 0);
        bad(from.p, diff.p, "its op is not");
        yyjson_doc_free(a);
        yyjson_doc_free(b);
        buf_free(&from);
        buf_free(&to);
        buf_free(&diff);
    }
}

static void expect_diff(const char *from, const char *to, const char *want) {
    struct buf diff = {0};
    yyjson_doc *a = parse(str_of(from)), *b = parse(str_of(to));
    patch_diff(a->root, b->root, &diff);
    if (!str_eq(buf_view(&diff), str_of(want))) fail_msg("%s to %s: %.*s", from, to, (int)diff.n, diff.p);
    yyjson_doc_free(a);
    yyjson_doc_free(b);
    buf_free(&diff);
}

/* Goal: the usual changes give small patches. */
static void diffs_are_small(void **state) {
    (void)state;
    expect_diff("{\"a\":1}", "{\"a\":1}", "[]");
    expect_diff("{\"a\":1,\"b\":2}", "{\"b\":2,\"a\":1}", "[]");
    expect_diff("{\"a/~\":{\"b\":1}}", "{\"a/~\":{\"b\":2}}",
                "[{\"op\":\"replace\",\"path\":\"/a~1~0/b\",\"value\":2}]");
    expect_diff("[1,2,3]", "[1,2,3,4]", "[{\"op\":\"add\",\"path\":\"/3\",\"value\":4}]");
    expect_diff("[1,2,3]", "[2,3]", "[{\"op\":\"remove\",\"path\":\"/0\"}]");
    expect_diff("[1,2,3]", "[1,5,3]", "[{\"op\":\"replace\",\"path\":\"/1\",\"value\":5}]");
    expect_diff("[1,2,3]", "[0,1,2,3]", "[{\"op\":\"add\",\"path\":\"/0\",\"value\":0}]");
    expect_diff("1", "1.0", "[{\"op\":\"replace\",\"path\":\"\",\"value\":1.0}]");
    expect_diff("[]", "{}", "[{\"op\":\"replace\",\"path\":\"\",\"value\":{}}]");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operations_do_what_the_rfc_says), cmocka_unit_test(test_compares),
        cmocka_unit_test(wrong_patches_change_nothing),    cmocka_unit_test(depth_stays_readable),
        cmocka_unit_test(random_documents_go_both_ways),   cmocka_unit_test(diffs_are_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
