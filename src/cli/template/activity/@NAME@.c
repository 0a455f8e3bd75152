/* An activity: stateless; the place for work on the outside world, as far as activity.json grants it. */
#include <loom/guest.h>

LOOM_ACTIVITY(@IDENT@) {
    loom_string name = loom_text(loom_get(loom_input(), "/name"));
    loom_return("{'text':'Hello, %t!'}", name);
}
