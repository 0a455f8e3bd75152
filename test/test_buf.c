/* test_buf.c: bytes, JSON templates, arenas, errors, hashes, the env. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/base.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static void expect_json(const char *want, const char *fmt, ...) {
    struct buf b = {0};
    va_list ap;
    va_start(ap, fmt);
    buf_json_v(&b, fmt, ap);
    va_end(ap);
    buf_char(&b, 0);
    assert_string_equal(b.p, want);
    buf_free(&b);
}

/* Goal: strings compare by bytes, a prefix first, NULs and empty ones included. */
static void strings_compare(void **state) {
    (void)state;
    assert_true(str_eq(STR_NONE, STR("")));
    assert_false(str_eq(STR("a"), STR("a\0")));
    assert_true(str_cmp(STR("a"), STR("a\0")) < 0);
    assert_true(str_cmp(STR("\xFF"), STR("a")) > 0);
    assert_int_equal(str_cmp(STR_NONE, STR("")), 0);
    assert_true(str_starts(STR("abc"), STR("ab")));
    assert_true(str_starts(STR("abc"), STR_NONE));
    assert_false(str_starts(STR("a"), STR("ab")));
    assert_null(str_of(NULL).p);
    char *copy = str_dup(STR("x\0y"));
    assert_memory_equal(copy, "x\0y", 4);
    free(copy);
}

/* Goal: a buffer grows over many small and one large addition, and clearing keeps its memory. */
static void buffers_grow(void **state) {
    (void)state;
    struct buf b = {0};
    static char big[100000];
    for (int i = 0; i < 1000; i++) buf_char(&b, (char)('a' + i % 26));
    buf_add(&b, big, sizeof big);
    buf_str(&b, STR("end"));
    buf_str(&b, STR_NONE);
    assert_int_equal(b.n, 1000 + sizeof big + 3);
    assert_memory_equal(b.p + 998, "kl\0\0", 4);
    size_t cap = b.cap;
    buf_clear(&b);
    assert_int_equal(b.cap, cap);
    memcpy(buf_reserve(&b, 3), "abc", 3);
    b.n += 3;
    assert_true(str_eq(buf_view(&b), STR("abc")));
    buf_free(&b);
    assert_null(b.p);
}

/* Goal: every directive of a template, at its limits. */
static void templates_write_json(void **state) {
    (void)state;
    expect_json("{\"a\":\"x\\\"\\\\\\n\\u0000\\u001F\"}", "{\"a\":%q}", STR("x\"\\\n\0\x1f"));
    expect_json("[\"\",null,\"\"]", "[%q,%Q,%Q]", STR_NONE, STR_NONE, STR(""));
    expect_json("{\"v\":[1,2]}100%", "{\"v\":%j}100%%", STR("[1,2]"));
    expect_json("7,", "%v,%v", &(yyjson_val){YYJSON_TYPE_NUM | YYJSON_SUBTYPE_UINT, {.u64 = 7}}, NULL);
    expect_json("\"z\"raw\"\"", "%z%s%z", "z", "raw", (const char *)NULL);
    expect_json("-9223372036854775808 9223372036854775807", "%d %d", INT64_MIN, INT64_MAX);
    expect_json("18446744073709551615", "%u", UINT64_MAX);
    expect_json("00000000000000ff ffffffffffffffff", "%x %x", (uint64_t)255, UINT64_MAX);
    expect_json("0.1 1e300 -0.0 null null", "%f %f %f %f %f", 0.1, 1e300, -0.0, (double)NAN, (double)INFINITY);
    expect_json("true false", "%b %b", 1, 0);
    expect_json("\"\xC3\xA9\xF0\x9F\x98\x80\"", "%q", STR("\xC3\xA9\xF0\x9F\x98\x80"));
}

/* Goal: bytes that are not UTF-8 cannot break the JSON around them. */
static void templates_survive_bad_utf8(void **state) {
    (void)state;
    expect_json("\"a?b\"", "%q",
                STR("a\xFF"
                    "b"));
    expect_json("\"???\"", "%z", "\xED\xA0\x80");
    expect_json("\"??\\\"??\"", "%q", STR("\xC3\xA9\"\xC0\x80"));
}

/* Goal: a list has room for one more at each length, also after it has become shorter, and keeps what it holds. */
static void lists_have_room_for_one_more(void **state) {
    (void)state;
    size_t *list = NULL, n = 0;
    for (int round = 0; round < 3; round++) {
        for (; n < 1000; n++) {
            list = mem_room(list, n, sizeof *list);
            list[n] = n;
        }
        for (size_t i = 0; i < n; i++) assert_int_equal(list[i], i);
        n = (size_t)round * 37;
    }
    free(list);
}

/* Goal: an arena gives zeroed, aligned memory of any size, and counts it. */
static void arenas_hand_out_memory(void **state) {
    (void)state;
    struct arena a = {0};
    for (size_t n = 0; n < 3000; n += 7) {
        char *p = arena_alloc(&a, n);
        assert_int_equal((uintptr_t)p % 16, 0);
        for (size_t i = 0; i < n; i++) assert_int_equal(p[i], 0);
        if (n) memset(p, 'x', n);
    }
    memset(arena_alloc(&a, 1000000), 1, 1000000);
    assert_true(a.bytes > 1500000 && a.bytes < 3000000);
    assert_string_equal(arena_dup(&a, STR("text")).p, "text");
    assert_null(arena_dup(&a, STR_NONE).p);
    assert_string_equal(arena_json(&a, "{\"a\":%q}", STR("x")).p, "{\"a\":\"x\"}");
    arena_free(&a);
    assert_int_equal(a.bytes, 0);
    arena_free(&a);
}

/* Goal: an error has its code's name, status and title; a guest's own word is a 422. */
static void errors_come_from_the_table(void **state) {
    (void)state;
    struct error e;
    assert_int_equal(error_set(&e, LOOM_E_NOT_FOUND, "no %s", "x"), LOOM_E_NOT_FOUND);
    assert_string_equal(e.code, "not_found");
    assert_string_equal(e.message, "no x");
    assert_false(e.retryable);
    assert_int_equal(error_set(NULL, LOOM_E_BUSY, "x"), LOOM_E_BUSY);
    error_set(&e, LOOM_E_BUSY, "%2000d", 1);
    assert_true(e.retryable && strlen(e.message) == sizeof e.message - 1);
    assert_int_equal(error_kind(STR("not_found"))->status, 404);
    assert_int_equal(error_kind(STR("disk_full"))->status, 507);
    assert_int_equal(error_kind(STR("my_own"))->status, 422);
    assert_int_equal(error_kind(STR("ok"))->status, 422);
    assert_string_equal(error_kind(STR("my_own"))->title, "The guest failed");
    error_set(&e, -9999, "x");
    assert_string_equal(e.code, "internal");
    error_set(&e, LOOM_OK, "x");
    assert_string_equal(e.code, "ok");
    struct buf b = {0};
    error_set(&e, LOOM_E_TIMEOUT, "\"slow\"");
    error_json(&e, &b);
    assert_true(str_eq(buf_view(&b), STR("{\"code\":\"timeout\",\"message\":\"\\\"slow\\\"\",\"retryable\":true}")));
    buf_free(&b);
}

static void *hash_thread(void *out) {
    sha256_hex(STR("abc"), out);
    return NULL;
}

/* Goal: SHA-256 as the standard has it, on any thread. */
static void sha256_is_the_standard(void **state) {
    (void)state;
    char hex[65], other[65];
    pthread_t thread;
    pthread_create(&thread, NULL, hash_thread, other);
    pthread_join(thread, NULL);
    sha256_hex(STR_NONE, hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    sha256_hex(STR("abc"), hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_string_equal(hex, other);
}

/* Goal: hash64 is fixed for ever (it stands on disk), and each bit of the input, its length and the seed counts. */
static void hash64_is_fixed_and_sees_every_bit(void **state) {
    (void)state;
    char bytes[100] = {0};
    assert_int_equal(hash64(STR("loom"), 0), 0xcdc0b6421c52c35bu);
    assert_int_equal(hash64(STR("the quick brown fox jumps over the lazy dog"), 7), 0xa367aa4b82ec8ac4u);
    for (size_t n = 0; n <= sizeof bytes; n++) {
        uint64_t whole = hash64((struct str){bytes, n}, 1);
        assert_int_not_equal(whole, hash64((struct str){bytes, n}, 2));
        assert_int_not_equal(whole, hash64((struct str){bytes, n < sizeof bytes ? n + 1 : n - 1}, 1));
        for (size_t bit = 0; bit < n * 8; bit++) {
            bytes[bit / 8] ^= (char)(1 << bit % 8);
            assert_int_not_equal(whole, hash64((struct str){bytes, n}, 1));
            bytes[bit / 8] ^= (char)(1 << bit % 8);
        }
    }
}

/* Goal: the machine's clocks and random source work. */
static void env_is_alive(void **state) {
    (void)state;
    struct env *env = env_system();
    char a[1000], b[1000];
    env->random(env, a, sizeof a);
    env->random(env, b, sizeof b);
    assert_memory_not_equal(a, b, sizeof a);
    assert_memory_not_equal(a + 900, b + 900, 100);
    assert_true(env->now_ms(env) > 1700000000000);
    int64_t ms = env->mono_ms(env), us = env->mono_us(env);
    assert_true(us / 1000 >= ms && us / 1000 < ms + 60000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_compare),        cmocka_unit_test(buffers_grow),
        cmocka_unit_test(templates_write_json),   cmocka_unit_test(templates_survive_bad_utf8),
        cmocka_unit_test(arenas_hand_out_memory), cmocka_unit_test(errors_come_from_the_table),
        cmocka_unit_test(sha256_is_the_standard), cmocka_unit_test(hash64_is_fixed_and_sees_every_bit),
        cmocka_unit_test(env_is_alive),           cmocka_unit_test(lists_have_room_for_one_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
