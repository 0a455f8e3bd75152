/* Takes an account back: the compensation of create-user-account. One that is not there is deleted already. */
#include <loom/guest.h>

LOOM_ACTIVITY(delete_user_account) {
    loom_string id = loom_text(loom_input());
    loom_json answer = loom_must(loom_http("{'method':'DELETE','url':'https://api.example.com/accounts/%t'}", id));
    int64_t status = loom_int(loom_get(answer, "/status"));
    if (status != 200 && status != 404)
        loom_fail("delete_refused", status >= 500, "'the account service answered %l'", status);
    loom_return("{'userId':'%t','deleted':true}", id);
}
