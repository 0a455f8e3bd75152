/* An activity: a function of its input, tried again when it fails in a way that may pass. */
#include <loom/guest.h>

LOOM_ACTIVITY(greet) {
    loom_return("{'text':'Hello, %t!'}", loom_text(loom_get(loom_input(), "/name")));
}
