/* The first actor: counts visits in its state, and lets an activity find the words. */
#include <loom/guest.h>

LOOM_ACTOR(hello) {
    int64_t visits = loom_int(loom_state("/visits")) + 1;
    loom_set("/visits", "%l", visits);

    int greeting = loom_activity("greet", "%j", loom_input());
    loom_json text = loom_get(loom_must(loom_await(greeting)), "/text");
    loom_return("{'text':%j,'visits':%l}", text, visits);
}
