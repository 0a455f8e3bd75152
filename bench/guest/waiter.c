/* A minimal actor that waits for an event and answers what came with it. */
#include <loom/guest.h>

LOOM_ACTOR(waiter) {
    loom_return("%j", loom_must(loom_await(loom_wait_event("go", 0))));
}
