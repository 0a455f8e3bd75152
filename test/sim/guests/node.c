/* An actor that does what its message says, so that the simulator can foretell every state and every reply.
 * {"n": what it adds to its caller's sum, "bit": which bit of its total, "do": [[what, …]…], "tries"?, "fail"?, "next"?}
 */
#include <loom/guest.h>

static int open_promises[64], open_count;
static int64_t sum;

static loom_json value_of(loom_json ok) {
    return loom_kind(ok) == '{' ? loom_get(ok, "/n") : ok;
}

static void await_open(void) {
    if (open_count == 0) return;
    loom_json all = loom_must(loom_await_all(open_promises, (size_t)open_count));
    for (struct loom_each it = loom_each(all); loom_next(&it);) sum += loom_int(value_of(loom_get(it.value, "/ok")));
    open_count = 0;
}

static void step(loom_json s) {
    loom_json what = loom_item(s, 0), a = loom_item(s, 1), b = loom_item(s, 2);
    int promise = 0;
    if (loom_is(what, "call")) promise = loom_do_int("actor.call", "{'to':%j,'input':%j,'timeoutMs':0}", a, b);
    if (loom_is(what, "child")) promise = loom_do_int("child.spawn", "{'type':'node','key':%j,'input':%j}", a, b);
    if (loom_is(what, "pay")) promise = loom_activity("pay", "%j", a);
    if (loom_is(what, "echo")) promise = loom_activity("echo", "%j", a);
    if (loom_is(what, "timer")) promise = loom_timer(loom_int(a));
    if (loom_is(what, "wait")) promise = loom_do_int("event.wait", "{'type':%j}", a);
    if (loom_is(what, "send")) loom_do("actor.send", "{'to':%j,'input':%j,'delayMs':%j}", a, b, loom_item(s, 3));
    if (loom_is(what, "pad")) loom_set("/pad", "%j", a);
    if (loom_is(what, "await")) await_open();
    if (promise) open_promises[open_count++] = promise;
}

LOOM_ACTOR(node) {
    loom_json in = loom_input(), bit = loom_get(in, "/bit"), next = loom_get(in, "/next");
    sum = loom_int(loom_get(in, "/n"));
    loom_patch("[{'op':'add','path':'/total','value':%l},{'op':'add','path':'/seen/-','value':%j}]",
               loom_int(loom_state("/total")) + ((int64_t)1 << loom_int(bit)), bit);
    for (struct loom_each it = loom_each(loom_get(in, "/do")); loom_next(&it);) step(it.value);
    await_open();
    if (loom_int(loom_get(loom_self(), "/attempt")) < loom_int(loom_get(in, "/tries")))
        loom_fail("again", true, "'not yet'");
    if (loom_bool(loom_get(in, "/fail"))) loom_fail("told", false, "'as it was told'");
    if (next.n) loom_continue("%j", next);
    loom_return("%l", sum);
}
