/* The activity of W1: answers its input. */
#include <loom/guest.h>

LOOM_ACTIVITY(echo) {
    loom_return("%j", loom_input());
}
