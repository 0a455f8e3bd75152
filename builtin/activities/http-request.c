/* http-request.c: one HTTP request. {url, method?, headers?, body?, timeoutMs?, full?} → the body of a 2xx (parsed when it is
 * JSON), or with full: true the whole answer {status, headers, body}. Any other status fails with `http_STATUS`;
 * 408, 429 and 5xx may be tried again.
 */
#include <loom/guest.h>

LOOM_ACTIVITY(http_request) {
    loom_json in = loom_input(), method = loom_get(in, "/method"), url = loom_get(in, "/url");
    if (!method.n) method = loom_format("'GET'");
    loom_json answer = loom_must(loom_http("{'method':%j,'url':%j%m%m%m}", method, url, "headers",
                                           loom_get(in, "/headers"), "body", loom_get(in, "/body"), "timeoutMs",
                                           loom_get(in, "/timeoutMs")));
    loom_json body = loom_get(answer, "/body");
    int status = (int)loom_int(loom_get(answer, "/status"));
    if (status >= 200 && status < 300) loom_return("%j", loom_bool(loom_get(in, "/full")) ? answer : body);

    loom_string shown = loom_text(body);
    if (shown.n > 300) shown.n = 300;
    while (shown.n > 0 && (shown.p[shown.n] & 0xC0) == 0x80) shown.n--; /* cut between characters */
    loom_fail(loom_text(loom_format("'http_%d'", status)).p, status == 408 || status == 429 || status >= 500,
              "'%t %t answered %d: %t'", loom_text(method), loom_text(url), status, shown);
}
