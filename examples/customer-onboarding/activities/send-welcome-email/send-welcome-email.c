/* Mails a welcome to the owner of a new account. The host names the mail after the activity's idempotency key. */
#include <loom/guest.h>

LOOM_ACTIVITY(send_welcome_email) {
    loom_json account = loom_input();
    loom_string email = loom_text(loom_get(account, "/email")), name = loom_text(loom_get(account, "/name"));
    loom_must(loom_http("{'url':'smtp://','body':{'to':'%t','subject':'Welcome!','text':'Welcome, %t! Your account is ready.'}}",
                        email, name));
    loom_return("{'sent':'%t'}", email);
}
