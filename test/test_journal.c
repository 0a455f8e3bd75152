/* Actor, journal and state as pure data: what is appended and what is loaded come to the same. */
#include "actor/actor.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define STARTED                                                                                        \
    "{\"type\":\"turn_started\",\"turn\":1,\"attempt\":1,\"messageId\":\"m\",\"input\":null,\"seed\":" \
    "\"000102030405060708090a0b0c0d0e0f\",\"message\":{}"

static void appendf(struct actor *a, int64_t now_ms, const char *fmt, ...) {
    struct buf body = {0};
    va_list ap;
    va_start(ap, fmt);
    buf_json_v(&body, fmt, ap);
    va_end(ap);
    journal_append(a, now_ms, buf_view(&body));
    buf_free(&body);
}

static struct actor *fresh(void) {
    return actor_new(STR("default/order/7"));
}

static void append(struct actor *a, int64_t at, const char *body) {
    journal_append(a, at, str_of(body));
}

/* The tail as a row, then as if its batch had closed. */
static void close_row(struct actor *a, struct buf *key, struct buf *row) {
    struct arena mem = {0};
    buf_str(key, journal_key(&mem, a->full, a->row));
    buf_str(row, journal_row(a));
    arena_free(&mem);
    buf_clear(&a->tail);
}

static void expect_state(const struct actor *a, const char *json) {
    struct buf text = {0};
    json_write_mut(yyjson_mut_doc_get_root(a->state), &text);
    buf_char(&text, '\0');
    assert_string_equal(text.p, json);
    buf_free(&text);
}

/* Patches the live state and appends the entry, as the op does. */
static void patch(struct actor *a, const char *ops) {
    struct buf inverse = {0};
    yyjson_doc *doc = yyjson_read(ops, strlen(ops), YYJSON_READ_BIGNUM_AS_RAW);
    assert_int_equal(state_patch(a, yyjson_doc_get_root(doc), &inverse, NULL), 0);
    appendf(a, 5, "{\"type\":\"state_patches\",\"patches\":%s,\"inversePatches\":%j", ops, buf_view(&inverse));
    yyjson_doc_free(doc);
    buf_free(&inverse);
}

static void entries_have_numbers_and_times(void **state) {
    (void)state; /* Entries are numbered from 1, and their time never goes back though the clock does. */
    struct actor *a = fresh();
    append(a, 100, STARTED);
    append(a, 50, "{\"type\":\"timer_set\",\"promise\":1,\"delayMs\":10");
    append(a, 120, "{\"type\":\"timer_fired\",\"promise\":1,\"result\":null");
    assert_int_equal(a->cursor, 3);
    assert_int_equal(a->at, 120);
    struct promise *p = turn_promise(a->turn, 1);
    assert_int_equal(p->deadline, 110);
    assert_int_equal(p->done_at, 3);
    assert_true(p->ok);
    assert_null(turn_promise(a->turn, 0));
    assert_null(turn_promise(a->turn, 2));
    actor_free(a);
}

static void first_completion_counts(void **state) {
    (void)state; /* A promise is settled by its first completing entry; later ones change nothing. */
    struct actor *a = fresh();
    append(a, 1, STARTED);
    append(a, 1, "{\"type\":\"activity_scheduled\",\"activityId\":1,\"name\":\"n\",\"input\":1");
    append(a, 1,
           "{\"type\":\"activity_retry\",\"activityId\":1,\"attempt\":2,\"interrupted\":0,\"due\":9,\"error\":{}");
    assert_int_equal(turn_promise(a->turn, 1)->attempt, 2);
    assert_int_equal(turn_promise(a->turn, 1)->due, 9);
    append(a, 1, "{\"type\":\"promise_cancelled\",\"promise\":1");
    append(a, 1, "{\"type\":\"activity_completed\",\"activityId\":1,\"result\":7");
    struct promise *p = turn_promise(a->turn, 1);
    assert_false(p->ok);
    assert_int_equal(p->done_at, 4);
    assert_non_null(memmem(p->result.p, p->result.n, "cancelled", 9));
    actor_free(a);
}

static void awaiting(void **state) {
    (void)
        state; /* `any` is settled by the lowest completing entry, `all` by the highest, either by a cancel before it. */
    struct actor *a = fresh();
    append(a, 1, STARTED);
    for (int i = 1; i <= 3; i++)
        appendf(a, 1, "{\"type\":\"event_awaited\",\"promise\":%d,\"event\":\"x\"", (int64_t)i);
    struct turn *t = a->turn;
    t->await = mem_alloc(3 * sizeof *t->await);
    memcpy(t->await, (uint32_t[]){1, 2, 3}, 3 * sizeof *t->await);
    t->await_count = 3;
    t->await_any = true;
    assert_true(turn_settled(t) == ENTRY_NEVER);
    append(a, 1, "{\"type\":\"event_received\",\"promise\":3,\"result\":1");
    append(a, 1, "{\"type\":\"event_received\",\"promise\":1,\"result\":1");
    assert_int_equal(turn_settled(t), 5);
    t->await_any = false;
    assert_true(turn_settled(t) == ENTRY_NEVER);
    append(a, 1, "{\"type\":\"event_timed_out\",\"promise\":2,\"error\":{\"code\":\"timeout\"}");
    assert_int_equal(turn_settled(t), 7);
    append(a, 1, "{\"type\":\"cancel_requested\",\"reason\":null");
    assert_int_equal(turn_settled(t), 7);
    appendf(a, 1, "{\"type\":\"event_awaited\",\"promise\":4,\"event\":\"x\"");
    t->await[0] = 4;
    assert_int_equal(turn_settled(t), t->cancel_at);
    t->await_count = 0;
    actor_free(a);
}

static void loading_repeats_everything(void **state) {
    (void)
        state; /* Rows loaded in order give the same turn; the guest must repeat the ops word for word, then it is live. */
    struct actor *a = fresh(), *b = fresh();
    struct buf key[2] = {{0}, {0}}, row[2] = {{0}, {0}};
    append(a, 1, STARTED);
    patch(a, "[{\"op\":\"add\",\"path\":\"/n\",\"value\":1}]");
    close_row(a, &key[0], &row[0]);
    append(a, 8, "{\"type\":\"timer_set\",\"promise\":1,\"delayMs\":2");
    append(a, 9, "{\"type\":\"timer_fired\",\"promise\":1,\"result\":null");
    close_row(a, &key[1], &row[1]);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(journal_key_number(buf_view(&key[i])), i ? 3 : 1);
        assert_int_equal(journal_load(b, buf_view(&key[i]), buf_view(&row[i]), NULL), 0);
    }
    assert_int_equal(b->cursor, a->cursor);
    assert_int_equal(b->at, a->at);
    assert_int_equal(b->chain, a->chain);
    assert_int_equal(turn_promise(b->turn, 1)->done_at, 4);
    expect_state(b, "{}"); /* the guest's own patches bring it back */
    assert_true(journal_replaying(b));
    struct error err;
    assert_int_equal(journal_repeat(b, STR("{\"type\":\"timer_set\",\"promise\":1,\"delayMs\":2"), &err),
                     LOOM_E_MISMATCH);
    assert_non_null(strstr(err.message, "state_patches"));
    assert_non_null(strstr(err.message, "timer_set"));
    assert_int_equal(journal_repeat(b,
                                    STR("{\"type\":\"state_patches\",\"patches\":[{\"op\":\"add\",\"path\":\"/"
                                        "n\",\"value\":1}],\"inversePatches\":[{\"op\":\"remove\",\"path\":\"/n\"}]"),
                                    &err),
                     1);
    assert_int_equal(journal_repeat(b, STR("{\"type\":\"timer_set\",\"promise\":1,\"delayMs\":2"), &err), 1);
    assert_false(journal_replaying(b));
    assert_int_equal(journal_repeat(b, STR("{\"type\":\"timer_set\",\"promise\":2,\"delayMs\":2"), &err), 0);
    for (int i = 0; i < 2; i++) {
        buf_free(&key[i]);
        buf_free(&row[i]);
    }
    actor_free(a);
    actor_free(b);
}

static void ended_turns_change_the_state(void **state) {
    (void)
        state; /* Loading a turn that ended applies its patches, a failed one's with its way back, and leaves nothing open. */
    struct actor *a = fresh(), *b = fresh();
    struct buf key = {0}, row = {0}, entry = {0};
    append(a, 1, STARTED);
    patch(a, "[{\"op\":\"add\",\"path\":\"/n\",\"value\":1}]");
    append(a, 1, "{\"type\":\"turn_completed\",\"result\":null");
    append(a, 1, STARTED);
    patch(a, "[{\"op\":\"replace\",\"path\":\"/n\",\"value\":2}]");
    patch(a, "[{\"op\":\"add\",\"path\":\"/m\",\"value\":[1]}]");
    uint64_t before = a->cursor;
    state_rollback(a, 1);
    assert_int_equal(a->cursor, before + 1);
    append(a, 1, "{\"type\":\"turn_failed\",\"error\":{}");
    assert_null(a->turn);
    expect_state(a, "{\"n\":1}");
    close_row(a, &key, &row);
    assert_int_equal(journal_load(b, buf_view(&key), buf_view(&row), NULL), 0);
    assert_null(b->turn);
    expect_state(b, "{\"n\":1}");
    buf_free(&key);
    buf_free(&row);
    buf_free(&entry);
    actor_free(a);
    actor_free(b);
}

static void damaged_rows(void **state) {
    (void)state; /* A row that was changed, lost or put elsewhere stops the load with the actor and the entry named. */
    struct actor *a = fresh();
    struct buf key[3] = {{0}, {0}, {0}}, row[3] = {{0}, {0}, {0}};
    append(a, 1, STARTED);
    for (int i = 0; i < 3; i++) {
        appendf(a, 1, "{\"type\":\"emitted\",\"channel\":\"c\",\"data\":%d", (int64_t)i);
        close_row(a, &key[i], &row[i]);
    }
    struct error err;
    struct actor *gap = fresh(), *changed = fresh(), *text = fresh();
    assert_int_equal(journal_load(gap, buf_view(&key[0]), buf_view(&row[0]), &err), 0);
    assert_int_equal(journal_load(gap, buf_view(&key[2]), buf_view(&row[2]), &err), LOOM_E_DAMAGED);
    assert_non_null(strstr(err.message, "default/order/7"));
    assert_non_null(strstr(err.message, "entry 4"));
    *(char *)memchr(row[0].p, 'c', row[0].n) = 'd';
    assert_int_equal(journal_load(changed, buf_view(&key[0]), buf_view(&row[0]), &err), 0);
    assert_int_equal(journal_load(changed, buf_view(&key[1]), buf_view(&row[1]), &err), LOOM_E_DAMAGED);
    assert_int_equal(journal_load(text, buf_view(&key[0]), STR("{\"prev\":"), &err), LOOM_E_DAMAGED);
    struct actor *all[] = {a, gap, changed, text};
    for (int i = 0; i < 4; i++) actor_free(all[i]);
    for (int i = 0; i < 3; i++) {
        buf_free(&key[i]);
        buf_free(&row[i]);
    }
}

static void fields_of_an_entry(void **state) {
    (void)
        state; /* A field is found whatever strings and values stand before it, and a text that ends anywhere is no harm. */
    static const char text[] =
        "{\"type\":\"x\",\"a\":\"\\\\\\\"},{\\\"b\\\":1\",\"c\":{\"b\":[2,{\"b\":\"]\"}]},\"b\":-4,\"d\":\"\\\\\"}";
    struct str entry = str_of(text);
    assert_true(str_eq(entry_word(entry, "type"), STR("x")));
    assert_true(str_eq(entry_field(entry, "c"), STR("{\"b\":[2,{\"b\":\"]\"}]}")));
    assert_true(str_eq(entry_field(entry, "b"), STR("-4")));
    assert_true(str_eq(entry_word(entry, "d"), STR("\\\\")));
    assert_null(entry_word(entry, "b").p);
    assert_null(entry_field(entry, "x").p);
    assert_null(entry_field(STR_NONE, "b").p);
    for (size_t n = 0; n < entry.n; n++) {
        char *cut = memcpy(malloc(n + !n), text, n);
        struct str value = entry_field((struct str){cut, n}, "d");
        assert_true(!value.p || value.p + value.n <= cut + n);
        free(cut);
    }
}

static void unknown_entries(void **state) {
    (void)
        state; /* An entry of a type that this version does not know, or of a promise that is not there, changes nothing. */
    static const char row[] =
        "{\"prev\":\"0000000000000000\",\"entries\":[{\"type\":\"older\",\"at\":1}," STARTED ",\"at\":1},"
        "{\"type\":\"newer\",\"at\":2},{\"type\":\"activity_completed\",\"activityId\":1,\"result\":1,\"at\":2},"
        "{\"type\":\"activity_retry\",\"activityId\":1,\"attempt\":2,\"at\":2},"
        "{\"type\":\"activity_scheduled\",\"activityId\":1,\"name\":\"n\"},{\"type\":\"activity_completed\","
        "\"activityId\":1},{\"type\":\"activity_retry\",\"activityId\":1,\"attempt\":2,\"at\":2},"
        "{\"type\":\"emitted\",\"channel\":\"c\",\"data\":1}]}";
    struct actor *a = fresh();
    struct error err;
    assert_int_equal(journal_key_number(STR("short")), 0);
    assert_int_equal(journal_load(a,
                                  STR("default/order/7\0"
                                      "0000000000000001"),
                                  str_of(row), &err),
                     0);
    assert_int_equal(a->cursor, 9);
    assert_int_equal(a->turn->promise_count, 1);
    struct promise *p = turn_promise(a->turn, 1);
    assert_int_equal(p->done_at, 7);
    assert_int_equal(p->attempt, 1);
    assert_memory_equal(p->result.p, "null", 4);
    assert_int_equal(a->turn->op_count, 2);
    assert_int_equal(journal_load(a,
                                  STR("default/order/7\0"
                                      "000000000000000a"),
                                  STR("{\"prev\":\"\",\"entries\":[]}"), &err),
                     LOOM_E_DAMAGED);
    actor_free(a);
}

static void long_ops_are_cut(void **state) {
    (void)state; /* What is said of an op that does not fit its entry is cut, however long the two are. */
    struct actor *a = fresh(), *b = fresh();
    struct buf key = {0}, row = {0}, op = {0};
    struct error err;
    buf_str(&op, STR("{\"type\":\"emitted\",\"channel\":\""));
    for (int i = 0; i < 1000; i++) buf_char(&op, 'c');
    buf_char(&op, '"');
    append(a, 1, STARTED);
    journal_append(a, 1, buf_view(&op));
    close_row(a, &key, &row);
    assert_int_equal(journal_load(b, buf_view(&key), buf_view(&row), &err), 0);
    buf_str(&op, STR(",\"data\":1"));
    assert_int_equal(journal_repeat(b, buf_view(&op), &err), LOOM_E_MISMATCH);
    assert_non_null(strstr(err.message, "then resume, or cancel"));
    struct buf *all[] = {&key, &row, &op};
    for (int i = 0; i < 3; i++) buf_free(all[i]);
    actor_free(a);
    actor_free(b);
}

static void documents(void **state) {
    (void)
        state; /* The stored document is read back the same; what is not one is damaged; the answered one has the user's shape. */
    struct actor *a = fresh(), *b = fresh(), *c = fresh();
    struct buf stored = {0}, again = {0}, answered = {0};
    struct error err;
    append(a, 1, STARTED);
    patch(a, "[{\"op\":\"add\",\"path\":\"/n\",\"value\":12345678901234567890123}]");
    append(a, 1, "{\"type\":\"turn_completed\",\"result\":null");
    a->status = ACTOR_PAUSED;
    strcpy(a->reason, "why \"not\"");
    a->correlation = str_dup(STR("c"));
    a->created_at = 3;
    a->activated_at = 4;
    struct buf text = {0};
    state_text_stored(a, &text);
    actor_row(a, buf_view(&text), &stored);
    assert_int_equal(actor_read(b, buf_view(&stored), &err), 0);
    actor_row(b, buf_view(&text), &again);
    assert_true(str_eq(buf_view(&stored), buf_view(&again)));
    expect_state(b, "{\"n\":12345678901234567890123}");
    actor_document(a, STR(""), buf_view(&text), &answered);
    buf_char(&answered, '\0');
    assert_string_equal(answered.p,
                        "{\"id\":\"order/"
                        "7\",\"partitionKey\":\"default\",\"actorType\":\"order\",\"status\":\"paused\","
                        "\"suspendReason\":\"why \\\"not\\\"\",\"journal\":{\"entries\":[],\"cursor\":3},"
                        "\"state\":{\"n\":12345678901234567890123},\"metadata\":{\"correlationId\":\"c\","
                        "\"parentActorId\":null,\"createdAt\":3,\"lastActivatedAt\":4,\"activationCount\":1}}");
    assert_int_equal(actor_read(c, STR("{\"status\":\"odd\",\"journal\":{},\"metadata\":{}}"), &err), LOOM_E_DAMAGED);
    assert_int_equal(actor_read(c, STR("{\"status\":\"idle\",\"journal\":{}}"), &err), LOOM_E_DAMAGED);
    assert_int_equal(actor_read(c, STR("x"), &err), LOOM_E_DAMAGED);
    struct buf *all[] = {&stored, &again, &answered, &text};
    for (int i = 0; i < 4; i++) buf_free(all[i]);
    actor_free(a);
    actor_free(b);
    actor_free(c);
}

static void state_before_the_turn(void **state) {
    (void)
        state; /* While a turn is open the stored state is the one at its start; a patch that fails changes nothing. */
    struct actor *a = fresh();
    struct buf text = {0};
    struct error err;
    append(a, 1, STARTED);
    state_rollback(a, 1);
    assert_int_equal(a->cursor, 1);
    static const char bad[] = "[{\"op\":\"add\",\"path\":\"/n\",\"value\":1},{\"op\":\"remove\",\"path\":\"/none\"}]";
    yyjson_doc *doc = yyjson_read(bad, sizeof bad - 1, 0);
    struct buf inverse = {0};
    assert_int_equal(state_patch(a, yyjson_doc_get_root(doc), &inverse, &err), LOOM_E_INVALID_ARGUMENT);
    expect_state(a, "{}");
    yyjson_doc_free(doc);
    buf_free(&inverse);
    patch(a, "[{\"op\":\"replace\",\"path\":\"\",\"value\":[1]}]");
    state_text_stored(a, &text);
    buf_char(&text, '\0');
    assert_string_equal(text.p, "{}");
    expect_state(a, "[1]");
    buf_free(&text);
    actor_free(a);
}

static void names_and_keys(void **state) {
    (void)state; /* Names and keys are held to their rules, and what is wrong with them is said. */
    static const char *const good[] = {"a", "0", "a.b_c-d", "workflow.customer-onboarding"};
    static const char *const bad[] = {"", ".a", "-a", "A", "a b", "a/b", "a{", "\303\244"};
    struct error err;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_int_equal(actor_check_name(str_of(good[i]), "the name", &err), 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(actor_check_name(str_of(bad[i]), "the name", &err), LOOM_E_INVALID_ARGUMENT);
    char longest[258];
    memset(longest, 'k', sizeof longest);
    assert_int_equal(actor_check_name((struct str){longest, 64}, "the name", &err), 0);
    assert_int_equal(actor_check_name((struct str){longest, 65}, "the name", &err), LOOM_E_INVALID_ARGUMENT);
    assert_int_equal(actor_check_key((struct str){longest, 256}, &err), 0);
    assert_int_equal(actor_check_key((struct str){longest, 257}, &err), LOOM_E_INVALID_ARGUMENT);
    assert_int_equal(actor_check_key(STR("K\303\244se 1"), &err), 0);
    assert_int_equal(actor_check_key(STR("a/b"), &err), LOOM_E_INVALID_ARGUMENT);
    assert_int_equal(actor_check_key(STR("a\nb"), &err), LOOM_E_INVALID_ARGUMENT);
    assert_int_equal(actor_check_key(STR("\377"), &err), LOOM_E_INVALID_ARGUMENT);
    assert_int_equal(actor_check_key(STR(""), &err), LOOM_E_INVALID_ARGUMENT);
    assert_int_equal(actor_check_key(STR_NONE, &err), LOOM_E_INVALID_ARGUMENT);
    assert_int_equal(actor_check_key(STR("a\177"), &err), LOOM_E_INVALID_ARGUMENT);
    assert_int_equal(actor_check_key(STR("K\303\244se \"1\""), &err), 0);
    assert_int_equal(actor_check_name(STR_NONE, "the name", &err), LOOM_E_INVALID_ARGUMENT);
    longest[0] = '/'; /* what is quoted of it is cut */
    assert_int_equal(actor_check_name((struct str){longest, 257}, "the name", &err), LOOM_E_INVALID_ARGUMENT);
    assert_int_equal(actor_check_key((struct str){longest, 257}, &err), LOOM_E_INVALID_ARGUMENT);
    assert_true(strlen(err.message) < 150);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(entries_have_numbers_and_times),
        cmocka_unit_test(first_completion_counts),
        cmocka_unit_test(awaiting),
        cmocka_unit_test(loading_repeats_everything),
        cmocka_unit_test(ended_turns_change_the_state),
        cmocka_unit_test(damaged_rows),
        cmocka_unit_test(fields_of_an_entry),
        cmocka_unit_test(unknown_entries),
        cmocka_unit_test(long_ops_are_cut),
        cmocka_unit_test(documents),
        cmocka_unit_test(state_before_the_turn),
        cmocka_unit_test(names_and_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
