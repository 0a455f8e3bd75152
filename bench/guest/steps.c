/* The workflow of W1: {"steps", "activity", "data"} runs the activity so many times in sequence; with "left" it goes on with
 * a new turn as long as turns are left; with "wait" the last turn then waits for the event "go". */
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
    bool wait = loom_bool(loom_get(input, "/wait"));
    if (loom_int(left) > 1)
        loom_continue("{'steps':%l,'activity':'%t','data':%j,'left':%l,'wait':%b}", steps, activity, data,
                      loom_int(left) - 1, wait);
    if (wait) loom_must(loom_await(loom_wait_event("go", 0)));
    loom_return("%l", steps);
}
