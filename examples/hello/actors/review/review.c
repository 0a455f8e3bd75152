/* The shape of an agent: it drafts by an activity, waits up to a day for a person's word, and replies. Kill the worker
 * while it waits: it waits on.
 *
 *     loom call review/letter-1 '{"name": "Ada"}'
 *     loom event review/letter-1 reviewed '{"by": "Bob", "approved": true}'
 */
#include <loom/guest.h>

LOOM_ACTOR(review) {
    int greeting = loom_activity("greet", "%j", loom_input());
    loom_json draft = loom_must(loom_await(greeting));
    loom_set("/draft", "%j", draft);

    loom_json review = loom_must(loom_await(loom_wait_event("reviewed", 24 * 3600 * 1000)));
    loom_json by = loom_get(review, "/by");
    if (!loom_bool(loom_get(review, "/approved"))) loom_fail("refused", false, "'%t refused the draft'", loom_text(by));

    loom_set("/approvedBy", "%j", by);
    loom_return("{'letter':%j,'approvedBy':%j}", loom_get(draft, "/text"), by);
}
