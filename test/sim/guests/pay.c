/* Takes money: the bank must see one input per idempotency key, and nobody else the bank's key. */
#include <loom/guest.h>

LOOM_ACTIVITY(pay) {
    loom_json answer = loom_must(loom_http("{'method':'POST','url':'https://bank.test/pay','headers':{'Authorization':"
                                           "'Bearer %t'},'body':%j}",
                                           loom_secret("BANK_KEY"), loom_input()));
    int status = (int)loom_int(loom_get(answer, "/status"));
    if (status != 200) loom_fail("refused", status >= 500, "'the bank answered %d'", status);
    loom_return("%j", loom_get(answer, "/body"));
}
