/* echo.c: returns its input. */
#include <loom/guest.h>

LOOM_ACTIVITY(echo) {
    loom_return("%j", loom_input());
}
