/* policy.h: retry as a pure function (state, outcome, now) → decision. */
#ifndef LOOM_POLICY_H
#define LOOM_POLICY_H

#include "base/base.h"

struct retry_policy {
    int64_t max_attempts; /* 1: no retry */
    int64_t backoff_ms;   /* before the second attempt; doubles */
    int64_t max_backoff_ms;
};
extern const struct retry_policy retry_default; /* 5 attempts, 200 ms doubling, 30 s at most */
/* What {"maxAttempts","backoffMs","maxBackoffMs"} has takes the place of *p; NULL has nothing. INVALID_DOCUMENT names the field. */
int retry_policy_read(yyjson_val *doc, struct retry_policy *p, struct error *err);
/* Wait in ms before the attempt after `attempt` (counted from 1) that failed, or −1 when it is final.
 * Jitter: between half and the whole of the backoff, from `random` in [0, 1). */
int64_t retry_next(const struct retry_policy *p, int64_t attempt, bool retryable, double random);

#endif
