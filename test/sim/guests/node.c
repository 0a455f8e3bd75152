/* An actor that does what its message says, so that the simulator can foretell every state and every reply.
 * {"n": what it adds to its caller's sum, "bit": which bit of its total, "do": [[what, …]…], "tries"?, "fail"?, "next"?}
 * A promise that fails adds to the sum what its error's code stands for.
 */
#include <loom/guest.h>

static int open_promises[64], open_count;
static int64_t sum;

static int64_t worth(loom_json done) {
    loom_json ok = loom_get(done, "/ok"), code = loom_get(done, "/error/code");
    if (!code.n) return loom_int(loom_kind(ok) == '{' ? loom_get(ok, "/n") : ok);
    return loom_is(code, "timeout")     ? 3
           : loom_is(code, "expired")   ? 5
           : loom_is(code, "cancelled") ? 7
           : loom_is(code, "exists")    ? 9
                                        : 0;
}

static void await_open(void) {
    if (open_count == 0) return;
    loom_json all = loom_must(loom_await_all(open_promises, (size_t)open_count));
    for (struct loom_each it = loom_each(all); loom_next(&it);) sum += worth(it.value);
    open_count = 0;
}

/* The promise that the step gives, or 0. */
static int step(loom_json s) {
    loom_json what = loom_item(s, 0), a = loom_item(s, 1), b = loom_item(s, 2);
    int64_t timeout = loom_int(loom_item(s, 3)), delay = loom_int(loom_item(s, 4)), ttl = loom_int(loom_item(s, 5)),
            priority = loom_int(loom_item(s, 6));
    if (loom_is(what, "call"))
        return loom_do_int("actor.call", "{'to':%j,'input':%j,'timeoutMs':%l,'delayMs':%l,'ttlMs':%l}", a, b, timeout,
                           delay, ttl);
    if (loom_is(what, "child")) return loom_do_int("child.spawn", "{'type':'node','key':%j,'input':%j}", a, b);
    if (loom_is(what, "pay")) return loom_activity("pay", "%j", a);
    if (loom_is(what, "echo")) /* its own policy gives up when the worker has died with it three times */
        return loom_do_int("activity", "{'name':'echo','input':%j,'retry':{'maxAttempts':100,'backoffMs':50}}", a);
    if (loom_is(what, "timer")) return loom_timer(loom_int(a));
    if (loom_is(what, "wait")) return loom_do_int("event.wait", "{'type':%j,'timeoutMs':%l}", a, loom_int(b));
    if (loom_is(what, "send"))
        loom_do("actor.send", "{'to':%j,'input':%j,'delayMs':%l,'ttlMs':%l,'priority':%l}", a, b, delay, ttl, priority);
    if (loom_is(what, "tell"))
        loom_do("actor.send", "{'to':%j,'event':%j,'input':%l,'delayMs':%l}", a, b, timeout, delay);
    if (loom_is(what, "suspend")) sum += loom_int(loom_do("suspend", "{'reason':'a person'}"));
    if (loom_is(what, "pad")) loom_set("/pad", "%j", a);
    if (loom_is(what, "fat")) sum += (int64_t)loom_text(a).n;
    if (loom_is(what, "await")) await_open();
    if (!loom_is(what, "drop")) return 0;
    int promise = step(a);
    loom_cancel(promise);
    return promise;
}

LOOM_ACTOR(node) {
    loom_json in = loom_input(), bit = loom_get(in, "/bit"), next = loom_get(in, "/next");
    sum = loom_int(loom_get(in, "/n"));
    loom_patch("[{'op':'add','path':'/total','value':%l},{'op':'add','path':'/seen/-','value':%j}]",
               loom_int(loom_state("/total")) + ((int64_t)1 << loom_int(bit)), bit);
    for (struct loom_each it = loom_each(loom_get(in, "/do")); loom_next(&it);) {
        int promise = step(it.value);
        if (promise) open_promises[open_count++] = promise;
    }
    await_open();
    if (loom_int(loom_get(loom_self(), "/attempt")) < loom_int(loom_get(in, "/tries")))
        loom_fail("again", true, "'not yet'");
    if (loom_bool(loom_get(in, "/fail"))) loom_fail("told", false, "'as it was told'");
    if (next.n) loom_continue("%j", next);
    loom_return("%l", sum);
}
