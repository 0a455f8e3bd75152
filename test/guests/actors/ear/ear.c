/* Hears events of type `tick` for ever, a turn each, and keeps them; "stop" ends it. */
#include <loom/guest.h>

LOOM_ACTOR(ear) {
    loom_json heard = loom_must(loom_await(loom_wait_event("tick", 0)));
    if (loom_same(heard.p, heard.n, "\"stop\"", 6)) loom_return("%d", (int)loom_count(loom_state("/heard")));
    loom_set("/heard/-", "%j", heard);
    loom_continue("null");
}
