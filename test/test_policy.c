/* test_policy.c: when a failed attempt is tried again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "patterns/policy.h"

#include <string.h>

static int read(const char *text, struct retry_policy *out, struct error *err) {
    yyjson_doc *doc = json_parse(str_of(text), err);
    *out = retry_default;
    int rc = retry_policy_read(doc->root, out, err);
    yyjson_doc_free(doc);
    return rc;
}

/* Goal: the wait doubles up to its limit, jitter takes at most half of it, and the last attempt is final. */
static void backoff_doubles_to_its_limit(void **state) {
    (void)state;
    const struct retry_policy p = {.max_attempts = 100, .backoff_ms = 200, .max_backoff_ms = 1000};
    const int64_t whole[] = {200, 400, 800, 1000, 1000};
    for (int32_t i = 0; i < 5; i++) {
        assert_int_equal(retry_next(&p, i + 1, true, 0), whole[i] / 2);
        assert_in_range(retry_next(&p, i + 1, true, 0.999999), whole[i] - 1, whole[i]);
    }
    assert_int_equal(retry_next(&p, 99, true, 0), 500);
    assert_int_equal(retry_next(&p, 100, true, 0), -1);
    assert_int_equal(retry_next(&p, 1, false, 0), -1);
    assert_int_equal(retry_next(&retry_default, 4, true, 0), 800);
    assert_int_equal(retry_next(&retry_default, 5, true, 0), -1);
    const struct retry_policy endless = {INT32_MAX, 1000, INT64_MAX / 4};
    assert_int_equal(retry_next(&endless, INT32_MAX - 1, true, 0), INT64_MAX / 8 + 1);
}

/* Goal: fields that are absent stay as they are. */
static void absent_fields_are_the_defaults(void **state) {
    (void)state;
    struct retry_policy p = retry_default;
    assert_int_equal(retry_policy_read(NULL, &p, NULL), LOOM_OK);
    assert_memory_equal(&p, &retry_default, sizeof p);
    assert_int_equal(read("{\"maxAttempts\":3,\"backoffMs\":0}", &p, NULL), LOOM_OK);
    assert_int_equal(p.max_attempts, 3);
    assert_int_equal(p.backoff_ms, 0);
    assert_int_equal(p.max_backoff_ms, retry_default.max_backoff_ms);
    assert_int_equal(retry_next(&p, 1, true, 0.5), 0);
}

/* Goal: a wrong field is named, with what was expected. */
static void wrong_fields_are_named(void **state) {
    (void)state;
    const struct {
        const char *text, *words;
    } rows[] = {{"[]", "expected an object"},
                {"{\"maxAttempts\":0}", "retryPolicy.maxAttempts: expected an integer from 1 to 2147483647"},
                {"{\"maxAttempts\":\"5\"}", "retryPolicy.maxAttempts"},
                {"{\"maxAttempts\":2147483648}", "retryPolicy.maxAttempts"},
                {"{\"backoffMs\":-1}", "retryPolicy.backoffMs: expected an integer from 0"},
                {"{\"backoffMs\":1.5}", "retryPolicy.backoffMs"},
                {"{\"maxBackoffMs\":1e300}", "retryPolicy.maxBackoffMs"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct retry_policy p;
        struct error err = {0};
        assert_int_equal(read(rows[i].text, &p, &err), LOOM_E_INVALID_DOCUMENT);
        if (!strstr(err.message, rows[i].words)) fail_msg("%s: %s", rows[i].text, err.message);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(backoff_doubles_to_its_limit),
        cmocka_unit_test(absent_fields_are_the_defaults),
        cmocka_unit_test(wrong_fields_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
