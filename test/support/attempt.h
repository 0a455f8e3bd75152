/* attempt.h: an activity that does what its input says: a list of [op, argument]; the result is what each came to. The same
 * source native (included) and WASM. Steps of its own: ["spin"] and ["trap"] misbehave, ["beat"] waits to be cancelled. */
#include <loom/guest.h>

static loom_json attempt_step(loom_string op, loom_json arg) {
#ifdef __wasm__
    if (loom_same(op.p, op.n, "spin", 4))
        for (volatile int i = 0;; i++) {
        }
    if (loom_same(op.p, op.n, "trap", 4)) __builtin_trap();
#endif
    if (loom_same(op.p, op.n, "beat", 4)) {
        while (!loom_heartbeat("null")) loom_progress("1");
        loom_progress("'seen'");
        return (loom_json){0};
    }
    loom_result r = loom_op(op.p, "%j", arg);
    return r.ok ? r.value : loom_format("{'error':%j}", loom_get(r.value, "/code"));
}

LOOM_ACTIVITY(attempt) {
    loom_json all = {0};
    for (struct loom_each it = loom_each(loom_input()); loom_next(&it);) {
        loom_json one = attempt_step(loom_text(loom_item(it.value, 0)), loom_item(it.value, 1));
        if (one.n) all = all.n ? loom_format("%j,%j", all, one) : one;
    }
    loom_return("[%j]", all);
}
