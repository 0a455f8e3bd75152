/* test_json.c: what is let in, what is refused, and that it comes out as it should. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void expect_text(struct str text, struct str want) {
    struct buf out = {0};
    struct error err = {0};
    if (json_normalize(text, &out, &err) != LOOM_OK) fail_msg("%.*s: %s", (int)text.n, text.p, err.message);
    if (!str_eq(buf_view(&out), want)) fail_msg("%.*s became %.*s", (int)text.n, text.p, (int)out.n, out.p);
    buf_free(&out);
}

static void refused(struct str text, const char *words) {
    struct error err = {0};
    assert_null(json_parse(text, &err));
    assert_string_equal(err.code, "invalid_json");
    if (!strstr(err.message, words)) fail_msg("%.*s: expected \"%s\" in: %s", (int)text.n, text.p, words, err.message);
}

/* Goal: good text comes out minified and otherwise the same. */
static void fault_26_good_text_is_kept(void **state) {
    (void)state;
    const struct {
        struct str in, out;
    } rows[] = {
        {STR(" { \"a\" : [ 1 , true , null ] } "), STR("{\"a\":[1,true,null]}")},
        {STR("\"\\u0000\\u0041\\/\""), STR("\"\\u0000A/\"")},
        {STR("\"\\uD83D\\uDE00\xEF\xBF\xBE\xF4\x8F\xBF\xBF\""),
         STR("\"\xF0\x9F\x98\x80\xEF\xBF\xBE\xF4\x8F\xBF\xBF\"")},
        {STR("[0,-0,-0.0,1.0,1e2,9223372036854775807,-9223372036854775808,18446744073709551615]"),
         STR("[0,0,-0.0,1.0,100.0,9223372036854775807,-9223372036854775808,18446744073709551615]")},
        {STR("[123456789012345678901234567890,-18446744073709551616]"),
         STR("[123456789012345678901234567890,-18446744073709551616]")},
        {STR("[1.7976931348623157e308,5e-324,1e-999]"), STR("[1.7976931348623157e308,5e-324,0.0]")},
        {STR("{\"\":{\"\":{}},\"a\":{\"a\":1}}"), STR("{\"\":{\"\":{}},\"a\":{\"a\":1}}")},
        {STR("[{\"a\":1},{\"a\":1}]"), STR("[{\"a\":1},{\"a\":1}]")},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) expect_text(rows[i].in, rows[i].out);
}

/* Goal: what I-JSON forbids is refused, with the reason. */
static void fault_26_bad_text_is_refused(void **state) {
    (void)state;
    refused(STR_NONE, "not JSON");
    refused(STR(""), "not JSON");
    refused(STR("{\"a\":1,}"), "at byte 6");
    refused(STR("[1] x"), "at byte");
    refused(STR("\"\xFF\""), "at byte 1");
    refused(STR("\"\xC0\x80\""), "at byte");
    refused(STR("\"\xED\xA0\x80\""), "at byte");
    refused(STR("\"\\uD800\""), "at byte");
    refused(STR("\"\\uDC00x\""), "at byte");
    refused(STR("\"a\nb\""), "at byte");
    refused(STR("NaN"), "at byte");
    refused(STR("[01]"), "at byte");
    refused(STR("\xEF\xBB\xBF{}"), "at byte 0");
    refused(STR("[1e309]"), "beyond what a double holds: 1e309");
    refused(STR("-1.5E999"), "beyond what a double holds");
    refused(STR("{\"a\":1,\"b\":2,\"a\":3}"), "occurs twice in one object: a");
    refused(STR("{\"a\":1,\"\\u0061\":2}"), "occurs twice");
    refused(STR("[{\"x\":{\"\":0,\"\":0}}]"), "occurs twice in one object");
}

/* Goal: integers keep their text as long as a double could hold them, and are refused beyond. */
static void huge_integers(void **state) {
    (void)state;
    char digits[400];
    memset(digits, '9', sizeof digits);
    expect_text((struct str){digits, 308}, (struct str){digits, 308});
    refused((struct str){digits, 309}, "beyond what a double holds");
    refused((struct str){digits, 400}, "beyond what a double holds");
    digits[0] = '1';
    memset(digits + 1, '0', sizeof digits - 1);
    expect_text((struct str){digits, 309}, (struct str){digits, 309});
    refused((struct str){digits, 310}, "beyond what a double holds");
}

static char *nested(size_t depth, const char *open, const char *middle, const char *close) {
    struct buf b = {0};
    for (size_t i = 0; i < depth; i++) buf_str(&b, str_of(open));
    buf_str(&b, str_of(middle));
    for (size_t i = 0; i < depth; i++) buf_str(&b, str_of(close));
    buf_char(&b, 0);
    return b.p;
}

/* Goal: 100 levels are read, 101 and a million are refused without recursion. */
static void fault_25_depth_is_limited(void **state) {
    (void)state;
    const struct {
        size_t depth;
        const char *open, *middle, *close;
        bool good;
    } rows[] = {{100, "[", "", "]", true},          {101, "[", "", "]", false},    {99, "{\"a\":", "{}", "}", true},
                {100, "{\"a\":", "{}", "}", false}, {99, "[{},", "[]", "]", true}, {1000000, "[", "", "]", false},
                {100, "{\"a\":", "1", "}", true}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *text = nested(rows[i].depth, rows[i].open, rows[i].middle, rows[i].close);
        if (rows[i].good)
            expect_text(str_of(text), str_of(text));
        else
            refused(str_of(text), "nested deeper than 100 levels");
        free(text);
    }
}

/* Goal: duplicates are found at each size of an object, wherever they stand. */
static void duplicates_are_found_in_large_objects(void **state) {
    (void)state;
    for (int count = 2; count <= 40; count++)
        for (int twin = 0; twin < count; twin++) {
            struct buf b = {0};
            for (int i = 0; i < count; i++) buf_json(&b, "%s\"name%d\":0", i ? "," : "{", (int64_t)i);
            size_t whole = b.n;
            buf_char(&b, '}');
            expect_text(buf_view(&b), buf_view(&b));
            b.n = whole;
            buf_json(&b, ",\"name%d\":1}", (int64_t)twin);
            refused(buf_view(&b), "occurs twice");
            buf_free(&b);
        }
}

/* Goal: a JSON Pointer finds what RFC 6901 says, in both kinds of documents. */
static void pointers_lead(void **state) {
    (void)state;
    const char *text = "{\"foo\":[\"bar\",\"baz\"],\"\":0,\"a/b\":1,\"c%d\":2,\"m~n\":8,\"o\":{\"~1\":9}}";
    const struct {
        const char *pointer, *want;
    } rows[] = {{"/foo", "[\"bar\",\"baz\"]"},
                {"/foo/0", "\"bar\""},
                {"/", "0"},
                {"/a~1b", "1"},
                {"/c%d", "2"},
                {"/m~0n", "8"},
                {"/o/~01", "9"},
                {"/foo/2", ""},
                {"/foo/01", ""},
                {"/foo/-", ""},
                {"/foo/-1", ""},
                {"/foo/1e0", ""},
                {"foo", ""},
                {"/m~n", ""},
                {"/m~", ""},
                {"/foo/0/x", ""},
                {"/none/x", ""},
                {"/foo/", ""},
                {"/foo/9999999999999", ""}};
    yyjson_doc *doc = json_parse(str_of(text), NULL);
    yyjson_mut_doc *copy = yyjson_doc_mut_copy(doc, NULL);
    assert_ptr_equal(yyjson_doc_ptr_get(doc, ""), doc->root);
    assert_ptr_equal(yyjson_mut_doc_ptr_get(copy, ""), copy->root);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct buf a = {0}, b = {0};
        json_write(yyjson_doc_ptr_get(doc, rows[i].pointer), &a);
        json_write_mut(yyjson_mut_doc_ptr_get(copy, rows[i].pointer), &b);
        if (!str_eq(buf_view(&a), str_of(rows[i].want)) || !str_eq(buf_view(&b), str_of(rows[i].want)))
            fail_msg("%s gave %.*s and %.*s", rows[i].pointer, (int)a.n, a.p ? a.p : "", (int)b.n, b.p ? b.p : "");
        buf_free(&a);
        buf_free(&b);
    }
    yyjson_mut_doc_free(copy);
    yyjson_doc_free(doc);
}

/* Goal: fields are read with their default when absent or of another type. */
static void fields_have_defaults(void **state) {
    (void)state;
    yyjson_doc *doc = json_parse(
        STR("{\"s\":\"x\\u0000y\",\"i\":-5,\"r\":7.0,\"f\":7.5,\"b\":true,\"u\":18446744073709551615,"
            "\"big\":99999999999999999999}"),
        NULL);
    struct arena a = {0};
    yyjson_val *o = doc->root;
    assert_true(str_eq(json_str(o, "s"), STR("x\0y")));
    assert_null(json_str(o, "i").p);
    assert_null(json_str(o, "none").p);
    assert_null(json_str(NULL, "none").p);
    assert_int_equal(json_int(o, "i", 1), -5);
    assert_int_equal(json_int(o, "r", 1), 7);
    assert_int_equal(json_int(o, "f", 1), 1);
    assert_int_equal(json_int(o, "u", 1), 1);
    assert_int_equal(json_int(o, "big", 1), 1);
    assert_int_equal(json_int(o, "s", 1), 1);
    assert_true(json_bool(o, "b", false));
    assert_true(json_bool(o, "s", true));
    assert_string_equal(json_text_of(yyjson_obj_get(o, "s"), &a).p, "\"x\\u0000y\"");
    assert_null(json_text_of(NULL, &a).p);
    arena_free(&a);
    yyjson_doc_free(doc);
}

/* Goal: what JSON cannot hold is not written, and the buffer stays as it was. */
static void unwritable_values_are_refused(void **state) {
    (void)state;
    struct buf b = {0};
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    buf_char(&b, 'x');
    assert_false(json_write_mut(yyjson_mut_real(doc, 1e308 * 10), &b));
    assert_false(json_write_mut(yyjson_mut_strn(doc, "\xFF", 1), &b));
    assert_false(json_write(NULL, &b));
    assert_true(str_eq(buf_view(&b), STR("x")));
    assert_true(json_write_mut(yyjson_mut_int(doc, 7), &b));
    assert_true(str_eq(buf_view(&b), STR("x7")));
    yyjson_mut_doc_free(doc);
    buf_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fault_26_good_text_is_kept),
        cmocka_unit_test(fault_26_bad_text_is_refused),
        cmocka_unit_test(huge_integers),
        cmocka_unit_test(fault_25_depth_is_limited),
        cmocka_unit_test(duplicates_are_found_in_large_objects),
        cmocka_unit_test(pointers_lead),
        cmocka_unit_test(fields_have_defaults),
        cmocka_unit_test(unwritable_values_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
