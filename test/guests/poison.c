/* A program with native guests that call abort(): {"die": "now"} in the turn's first step, {"die": "later"} after a timer.
 *
 *     poison STORE send    opens the store, sends two such messages and three good ones, each to be handled soon
 *     poison STORE         opens it again; ends well when all five are settled, and prints how
 */
#include <loom/guest.h>
#include <loom/loom.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

LOOM_ACTOR(victim) {
    loom_string die = loom_text(loom_get(loom_input(), "/die"));
    if (loom_same(die.p, die.n, "later", 5)) loom_await(loom_timer(50));
    if (die.n) abort();
    loom_set("/handled", "true");
    loom_return("'well'");
}

static const struct {
    const char *key, *id, *body;
    int priority;
} messages[] = {
    {"now", "bad", "{\"die\":\"now\"}", 0},
    {"now", "good", "{}", 1},
    {"later", "bad", "{\"die\":\"later\"}", 0},
    {"later", "good", "{}", 1},
    {"bystander", "good", "{}", 0},
};
enum { MESSAGES = sizeof messages / sizeof *messages };

static struct loom_str str(const char *z) {
    return (struct loom_str){z, strlen(z)};
}

struct answer {
    pthread_mutex_t lock;
    int status;
    char body[2000];
};

static void answered(void *ctx, const struct loom_reply *r) {
    struct answer *a = ctx;
    snprintf(a->body, sizeof a->body, "%.*s", (int)r->body.n, r->body.p ? r->body.p : "");
    a->status = r->status;
    pthread_mutex_unlock(&a->lock);
}

static void ask(struct loom *l, struct loom_request r, struct answer *a) {
    pthread_mutex_init(&a->lock, NULL);
    pthread_mutex_lock(&a->lock);
    r.type = str("victim");
    r.reply = answered;
    r.ctx = a;
    loom_submit(l, &r);
    pthread_mutex_lock(&a->lock); /* until answered() opens it */
}

static int settled(struct loom *l, int i, struct answer *a) {
    ask(l, (struct loom_request){.op = "message", .key = str(messages[i].key), .id = str(messages[i].id)}, a);
    return strstr(a->body, "\"completed\"") || strstr(a->body, "\"failed\"");
}

int main(int argc, char **argv) {
    char why[1000];
    struct answer a;
    loom_register_actor("victim", loom_run_victim);
    struct loom *l = loom_open(&(struct loom_config){.store = argv[1]}, why, sizeof why);
    if (!l) return fprintf(stderr, "%s\n", why), 2;
    for (int i = 0; i < MESSAGES && argc > 2; i++) {
        ask(l,
            (struct loom_request){.op = "send",
                                  .key = str(messages[i].key),
                                  .id = str(messages[i].id),
                                  .body = str(messages[i].body),
                                  .delay_ms = 300,
                                  .priority = messages[i].priority},
            &a);
        if (a.status != 202) return fprintf(stderr, "%s\n", a.body), 3;
    }
    for (int i = 0, tries = 0; i < MESSAGES && tries < 500; tries++)
        if (settled(l, i, &a))
            printf("%s %s %s\n", messages[i].key, messages[i].id, a.body), i++;
        else
            usleep(20000);
    loom_close(l);
    return 0;
}
