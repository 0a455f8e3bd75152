/* The workflow of W1: {"steps", "activity", "data"} runs the activity so many times in sequence; with "wait" it then waits
 * for the event "go", with "left" it goes on with a new turn as long as turns are left. */
#include <loom/guest.h>

LOOM_ACTOR(steps) {
    loom_json input = loom_input(), data = loom_get(input, "/data"), left = loom_get(input, "/left");
    loom_string activity = loom_text(loom_get(input, "/activity"));
    int64_t steps = loom_int(loom_get(input, "/steps"));
    for (int64_t i = 0; i < steps; i++) {
        void *mark = loom_mark();
        loom_must(loom_await(loom_activity(activity.p, "%j", data)));
        loom_release(mark);
    }
    if (loom_bool(loom_get(input, "/wait"))) loom_must(loom_await(loom_wait_event("go", 0)));
    if (loom_int(left) > 1)
        loom_continue("{'steps':%l,'activity':'%t','data':%j,'left':%l}", steps, activity, data, loom_int(left) - 1);
    loom_return("%l", steps);
}
