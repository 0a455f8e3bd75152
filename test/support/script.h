/* script.h: a guest that does what its input says, so that a test is one line. The same source native (included) and WASM.
 *
 * The input is a list of steps [op, argument]; the reply is the list of what each came to, an error as {"error": code}.
 * Steps of its own: ["must", [op, argument]] fails with the op's error; ["spin"], ["trap"], ["grow"], ["deep"] misbehave;
 * ["times", n, step] repeats a step.
 */
#include <loom/guest.h>

static void script_misbehave(loom_string op) {
#ifdef __wasm__
    if (loom_same(op.p, op.n, "spin", 4))
        for (volatile int i = 0;; i++) {
        }
    if (loom_same(op.p, op.n, "trap", 4)) __builtin_trap();
#endif
    if (loom_same(op.p, op.n, "grow", 4))
        while (loom_alloc(65536)) {
        }
}

static loom_json script_step(loom_json step) {
    loom_string op = loom_text(loom_item(step, 0));
    loom_json arg = loom_item(step, 1);
    script_misbehave(op);
    if (loom_same(op.p, op.n, "times", 5)) {
        for (int64_t n = loom_int(arg); n > 0; n--) script_step(loom_item(step, 2));
        return loom_format("null");
    }
    bool must = loom_same(op.p, op.n, "must", 4);
    if (must) {
        op = loom_text(loom_item(arg, 0));
        arg = loom_item(arg, 1);
    }
    loom_result r = loom_op(op.p, "%j", arg);
    if (must) loom_must(r);
    return r.ok ? r.value : loom_format("{'error':%j}", loom_get(r.value, "/code"));
}

LOOM_ACTOR(script) {
    loom_json all = {0};
    for (struct loom_each it = loom_each(loom_input()); loom_next(&it);) {
        loom_json one = script_step(it.value);
        all = all.n ? loom_format("%j,%j", all, one) : one;
    }
    if (!all.n) loom_return("[]");
    loom_return("[%j]", all);
}
