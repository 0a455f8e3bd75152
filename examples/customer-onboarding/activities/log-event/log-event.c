/* Tells the outside world that something happened. */
#include <loom/guest.h>

LOOM_ACTIVITY(log_event) {
    loom_json answer =
        loom_must(loom_http("{'method':'POST','url':'https://api.example.com/events','body':%j}", loom_input()));
    int64_t status = loom_int(loom_get(answer, "/status"));
    if (status != 202)
        loom_fail("event_refused", status >= 500, "'the event service answered %l'", status);
    loom_return("{'logged':true}");
}
