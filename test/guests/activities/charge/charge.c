/* Takes money: the bank must see one input per idempotency key. */
#include <loom/guest.h>

LOOM_ACTIVITY(charge) {
    loom_json answer = loom_must(
        loom_http("{'method':'POST','url':'http://bank.test/charge','body':%j}", loom_input()));
    int status = (int)loom_int(loom_get(answer, "/status"));
    if (status != 200) loom_fail("refused", status >= 500, "'the bank answered %d'", status);
    loom_return("%j", loom_get(answer, "/body"));
}
