/* test_map.c: the hash table against a plain list. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/base.h"

#include <stdio.h>
#include <string.h>

enum { KEYS = 500 };
static char keys[KEYS][12];
static int values[KEYS];
static bool present[KEYS];

static struct str key(int i) {
    return (struct str){keys[i], (size_t)snprintf(keys[i], sizeof keys[i], "key %d", i)};
}

static void compare(const struct map *m) {
    size_t count = 0, seen = 0;
    for (int i = 0; i < KEYS; i++) {
        assert_ptr_equal(map_get(m, key(i)), present[i] ? &values[i] : NULL);
        count += present[i];
    }
    for (size_t i = 0; map_next(m, &i) != NULL;) seen++;
    assert_int_equal(m->count, count);
    assert_int_equal(seen, count);
}

/* Goal: 20,000 random puts and removes agree with a list, whatever the seed. */
static void random_changes_agree(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 3; seed++) {
        struct map m = {0};
        map_seed = seed;
        memset(present, 0, sizeof present);
        for (uint64_t i = 0; i < 20000; i++) {
            uint64_t dice = hash64(STR("dice"), i);
            int k = (int)(dice % KEYS);
            bool put = (dice >> 32) % 100 < (i / 4000 % 2 ? 20 : 60);
            if (put)
                map_put(&m, key(k), &values[k]);
            else
                assert_ptr_equal(map_remove(&m, key(k)), present[k] ? &values[k] : NULL);
            present[k] = put;
            if (i % 500 == 0) compare(&m);
        }
        compare(&m);
        map_free(&m);
    }
    map_seed = 0;
}

/* Goal: an empty map answers; a put replaces; keys may be empty or hold NULs. */
static void edges_of_a_map(void **state) {
    (void)state;
    struct map m = {0};
    size_t i = 0;
    int a, b;
    assert_null(map_get(&m, STR("a")));
    assert_null(map_remove(&m, STR("a")));
    assert_null(map_next(&m, &i));
    map_put(&m, STR_NONE, &a);
    map_put(&m, STR("\0"), &b);
    assert_ptr_equal(map_get(&m, STR("")), &a);
    map_put(&m, STR(""), &b);
    assert_ptr_equal(map_remove(&m, STR("")), &b);
    assert_int_equal(m.count, 1);
    map_free(&m);
    assert_int_equal(m.cap, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_changes_agree),
        cmocka_unit_test(edges_of_a_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
