/* Makes a token and mails the link that proves the address. The token comes from the turn's journaled seed, so a replay
 * makes the same one, and the mail goes out once. */
#include <loom/guest.h>

LOOM_ACTOR(email_verification_agent) {
    loom_json input = loom_input();
    loom_string email = loom_text(loom_get(input, "/email")), user = loom_text(loom_get(input, "/userId"));
    loom_string token = loom_text(loom_do("random", "16"));
    loom_set("/token", "'%t'", token);

    int mail = loom_activity("email-sender",
                             "{'to':'%t','subject':'Please verify your address',"
                             "'text':'https://example.com/verify?user=%t&token=%t'}",
                             email, user, token);
    loom_must(loom_await(mail));
    loom_return("{'userId':'%t','sentTo':'%t'}", user, email);
}
