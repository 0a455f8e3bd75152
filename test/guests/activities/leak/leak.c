/* Tries to carry a secret home: in a log line, by an echo of its header, by its result. */
#include <loom/guest.h>

LOOM_ACTIVITY(leak) {
    loom_string key = loom_secret("BANK_KEY");
    loom_log("info", "'the key is %t'", key);
    loom_json answer = loom_must(loom_http("{'method':'POST','url':'http://bank.test/echo','headers':{'Authorization':"
                                           "'Bearer %t'},'body':%j}",
                                           key, loom_input()));
    loom_return("{'key':'%t','answer':%j}", key, answer);
}
