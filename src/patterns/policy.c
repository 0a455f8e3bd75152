/* policy.c: retry as a pure function. No clock, no randomness of its own: the caller passes both, so that replay and
 * tests decide the same. */
#include "patterns/policy.h"

#include <limits.h>
#include <math.h>

const struct retry_policy retry_default = {.max_attempts = 5, .backoff_ms = 200, .max_backoff_ms = 30000};

#define YEAR_MS ((int64_t)1 << 35) /* and more: a longer backoff is a mistake */

/* An integer field between low and high; an absent one leaves *out as it is. */
static int read_field(yyjson_val *doc, const char *name, int64_t low, int64_t high, int64_t *out, struct error *err) {
    if (!yyjson_obj_get(doc, name)) return LOOM_OK;
    *out = json_int(doc, name, low - 1);
    if (*out >= low && *out <= high) return LOOM_OK;
    return error_set(err, LOOM_E_INVALID_DOCUMENT, "retryPolicy.%s: expected an integer from %lld to %lld", name,
                     (long long)low, (long long)high);
}

int retry_policy_read(yyjson_val *doc, struct retry_policy *p, struct error *err) {
    if (doc && !yyjson_is_obj(doc))
        return error_set(err, LOOM_E_INVALID_DOCUMENT,
                         "retryPolicy: expected an object such as {\"maxAttempts\":5,\"backoffMs\":200}");
    int rc = read_field(doc, "maxAttempts", 1, INT32_MAX, &p->max_attempts, err);
    if (rc == LOOM_OK) rc = read_field(doc, "backoffMs", 0, YEAR_MS, &p->backoff_ms, err);
    return rc < 0 ? rc : read_field(doc, "maxBackoffMs", 0, YEAR_MS, &p->max_backoff_ms, err);
}

int64_t retry_next(const struct retry_policy *p, int64_t attempt, bool retryable, double random) {
    if (!retryable || attempt >= p->max_attempts) return -1;
    double backoff = fmin(ldexp((double)p->backoff_ms, (int)attempt - 1), (double)p->max_backoff_ms);
    return (int64_t)(backoff / 2 + random * backoff / 2);
}
