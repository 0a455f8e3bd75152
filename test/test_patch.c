/* test_patch.c: RFC 6902, each patch also undone by its inverse and by failure. */
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

/* Applies, and takes back with the inverse. */
static void good(const char *from, const char *patch, const char *to) {
    struct error err = {0};
    struct buf inverse = {0};
    yyjson_mut_doc *doc = mutable(from);
    if (apply(doc, str_of(patch), &inverse, &err) != LOOM_OK) fail_msg("%s: %s", patch, err.message);
    if (!is(doc, to)) fail_msg("%s on %s did not give %s", patch, from, to);
    assert_int_equal(apply(doc, buf_view(&inverse), NULL, &err), LOOM_OK);
    if (!is(doc, from)) fail_msg("%.*s did not give back %s", (int)inverse.n, inverse.p, from);
    yyjson_mut_doc_free(doc);
    buf_free(&inverse);
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
        {"{\"op\":\"replace\",\"path\":\"/b/9\",\"value\":1}", "no such index"},
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
    uint32_t sort = depth > 3 ? 2 : roll(depth ? 4 : 2), n = roll(6), first = roll(4);
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

static void random_path(struct buf *b) {
    static const char *const names[] = {"a", "b~1c", "~0d", "", "e", "0", "1", "2", "-"};
    for (uint32_t n = roll(5) / 2; n > 0; n--) buf_json(b, "/%s", names[roll(9)]);
}

static void random_operation(struct buf *b) {
    static const char *const ops[] = {"add", "remove", "replace", "move", "copy", "test"};
    buf_json(b, "{\"op\":%z,\"path\":\"", ops[roll(6)]);
    random_path(b);
    buf_json(b, "\",\"from\":\"");
    random_path(b);
    buf_json(b, "\",\"value\":");
    random_value(b, 2);
    buf_char(b, '}');
}

/* Goal: random patches either apply and are undone by their inverse, or leave each byte as it was, also after good ones. */
static void random_patches_are_undone(void **state) {
    (void)state;
    env_system()->random(env_system(), &dice, sizeof dice);
    print_message("seed %llu\n", (unsigned long long)dice);
    int applied = 0;
    for (int i = 0; i < 20000; i++) {
        struct buf from = {0}, patch = {0}, inverse = {0}, text = {0};
        struct error err;
        random_value(&from, 0);
        buf_char(&from, 0);
        yyjson_mut_doc *doc = mutable(from.p);
        buf_clear(&from);
        json_write_mut(doc->root, &from);
        buf_char(&from, 0);
        buf_char(&patch, '[');
        for (uint32_t n = roll(4); n > 0; n--) {
            random_operation(&patch);
            buf_char(&patch, ',');
        }
        buf_json(&text, "%j{\"op\":\"none\"}]", buf_view(&patch));
        assert_int_equal(apply(doc, buf_view(&text), NULL, &err), LOOM_E_INVALID_ARGUMENT);
        buf_clear(&text);
        json_write_mut(doc->root, &text);
        assert_true(str_eq(buf_view(&text), str_of(from.p)));
        if (patch.n > 1) patch.n--;
        buf_char(&patch, ']');
        if (apply(doc, buf_view(&patch), &inverse, &err) == LOOM_OK) {
            applied += patch.n > 2;
            if (apply(doc, buf_view(&inverse), NULL, &err) != LOOM_OK || !is(doc, from.p))
                fail_msg("%.*s does not undo %.*s on %s", (int)inverse.n, inverse.p, (int)patch.n, patch.p, from.p);
        }
        yyjson_mut_doc_free(doc);
        buf_free(&from);
        buf_free(&patch);
        buf_free(&inverse);
        buf_free(&text);
    }
    assert_true(applied > 1000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operations_do_what_the_rfc_says), cmocka_unit_test(test_compares),
        cmocka_unit_test(wrong_patches_change_nothing),    cmocka_unit_test(depth_stays_readable),
        cmocka_unit_test(random_patches_are_undone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
