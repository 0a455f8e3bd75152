/* Opens an account. A repeated attempt carries the same Idempotency-Key, so the service opens one account only. */
#include <loom/guest.h>

LOOM_ACTIVITY(create_user_account) {
    loom_json answer =
        loom_must(loom_http("{'method':'POST','url':'https://api.example.com/accounts','body':%j}", loom_input()));
    int64_t status = loom_int(loom_get(answer, "/status"));
    if (status != 201)
        loom_fail("account_refused", status >= 500, "'the account service answered %l'", status);
    loom_return("%j", loom_get(answer, "/body"));
}
