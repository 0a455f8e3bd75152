/* The activity of W1: answers its input. It comes back from `return` and frees what it took, so that with `reuse` the
 * same instance serves the next attempt. */
#include <loom/guest.h>

LOOM_ACTIVITY(echo) {
    void *mark = loom_mark();
    loom_op("return", "%j", loom_input());
    loom_release(mark);
}
