/* guests.c: guests for fuzz.c: WDL as it is built in, and some that state what must hold inside of a guest. */
#include "../../builtin/activities/wdl-check.c"
#include "../../builtin/wdl/wdl.c"

#include "guests.h"
#include <string.h>

yyjson_val *expected;

static void compare(loom_json v, yyjson_val *want) {
    struct loom_each it = loom_each(v);
    yyjson_val *name, *value;
    size_t i, n;
    must(v.n > 0);
    if (yyjson_is_str(want)) {
        loom_string text = loom_text(v);
        must(yyjson_equals_strn(want, text.p, text.n));
    }
    if (yyjson_is_sint(want)) must(loom_int(v) == yyjson_get_sint(want));
    if (yyjson_is_ctn(want)) must(loom_count(v) == unsafe_yyjson_get_len(want));
    yyjson_arr_foreach(want, i, n, value) {
        must(loom_next(&it));
        compare(it.value, value);
    }
    yyjson_obj_foreach(want, i, n, name, value) {
        must(loom_next(&it));
        compare(it.key, name);
        must(loom_member(v, yyjson_get_str(name), yyjson_get_len(name)).p == it.value.p);
        compare(it.value, value);
    }
}

void run_compare(void) {
    compare(loom_input(), expected);
    loom_return("null");
}

static bool member_root(void *ctx, loom_string name, loom_json *value) {
    *value = loom_member(*(loom_json *)ctx, name.p, name.n);
    return value->n > 0;
}

void run_template(void) {
    loom_json input = loom_input(), names = loom_item(input, 0), template = loom_item(input, 1);
    struct expr dry = {.root = member_root, .ctx = &names, .dry = true}, e = {.root = member_root, .ctx = &names};
    template_fill(&dry, template);
    loom_json v = template_fill(&e, template);
    if (!dry.code) must(!e.code || !loom_same(e.code, loom_length(e.code), "bad_expression", 14));
    if (e.code) v = e.message;
    struct arena mem = {0};
    if (v.n) must(json_in(&mem, (struct str){v.p, v.n}));
    arena_free(&mem);
    loom_return("null");
}

struct str script;
char script_input[40];

void run_script(void) {
    struct str rest = script, input;
    loom_json given = loom_input();
    input = (struct str){given.p, given.n};
    while (str_eq(input, str_of(script_input)) && rest.n) {
        const char *end = memchr(rest.p, '\n', rest.n), *arg = memchr(rest.p, ' ', rest.n);
        size_t line = end ? (size_t)(end - rest.p) : rest.n,
               name = arg && (size_t)(arg - rest.p) < line ? (size_t)(arg - rest.p) : line;
        int32_t n = loom_native_op(rest.p, name, rest.p + name + (name < line), line - name - (name < line));
        rest = (struct str){rest.p + line + (end != NULL), rest.n - line - (end != NULL)};
        size_t len = n < 0 ? (size_t)(-1 - n) : (size_t)n;
        char *text = loom_native_alloc(len + 1);
        loom_native_take(text);
        if (n < 0 && memmem(text, len, "\"cancelled\"", 11)) break;
    }
    loom_return("null");
}

void run_echo(void) {
    loom_return("%j", loom_input());
}
