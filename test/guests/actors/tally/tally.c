/* A counter that names what it counted: each call adds its id to the state, once if Loom keeps its word.
 * {"id", "how"?: "charge" pays at the bank, "nap" sleeps, "ask" makes another tally do the same}
 */
#include <loom/guest.h>

LOOM_ACTOR(tally) {
    loom_json in = loom_input(), id = loom_get(in, "/id"), paid = {0};
    char how = *loom_text(loom_get(in, "/how")).p;
    loom_set("/ids/-", "%j", id);
    if (how == 'c') paid = loom_must(loom_await(loom_activity("charge", "{'id':%j}", id)));
    if (how == 'n') loom_must(loom_await(loom_timer(20)));
    if (how == 'a') loom_must(loom_await(loom_call("tally/asked", "{'id':%j}", id)));
    loom_return("{'id':%j,'count':%d%m}", id, (int)loom_count(loom_state("/ids")), "paid", paid);
}
