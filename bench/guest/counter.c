/* The actor of W2: adds its input to the state and answers the sum. */
#include <loom/guest.h>

LOOM_ACTOR(counter) {
    int64_t sum = loom_int(loom_state("/sum")) + loom_int(loom_input());
    loom_set("/sum", "%l", sum);
    loom_return("%l", sum);
}
