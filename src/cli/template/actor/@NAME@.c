/* An actor: one message at a time, its state kept for good. A crash between two lines changes nothing. */
#include <loom/guest.h>

LOOM_ACTOR(@IDENT@) {
    int64_t count = loom_int(loom_state("/count")) + loom_int(loom_get(loom_input(), "/add"));
    loom_set("/count", "%l", count);
    loom_return("{'count':%l}", count);
}
