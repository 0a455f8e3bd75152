/* email-sender.c: hands {to, subject, text, html?, from?} to the project's mail server; `to` is an address or a list.
 * Returns {"status": 250}, the server's answer. A mail that had to be sent twice carries the same Message-ID both times.
 */
#include <loom/guest.h>

LOOM_ACTIVITY(email_sender) {
    loom_json answer = loom_must(loom_http("{'method':'POST','url':'smtp://','body':%j}", loom_input()));
    loom_return("{'status':%j}", loom_get(answer, "/status"));
}
