/* sim.h: what a simulated run consists of.
 *
 * A seed decides everything: who asks whom for what (load.c), what goes wrong and when (sim.c), and so what must come of
 * it (check.c), which is known before anything runs: every program adds a bit of its own to its actor's total, every
 * payment has an id of its own, and every reply is the sum of what it led to.
 */
#ifndef LOOM_TEST_SIM_H
#define LOOM_TEST_SIM_H

#include "support/array_store.h"
#include "support/sim_disk.h"
#include "support/world.h"

enum { NODES = 5, SPACES = 2, WHO_MAX = 72, BITS_MAX = 50, REQUESTS_MAX = 128, PAID_MAX = 256 };
#define CANARY "sk-canary-7f3a"

/* What is deployed: %z version, %d any number. */
#define NODE                                                                                            \
    "{\"actorType\":\"node\",\"version\":%z,\"wasmBlobUrl\":\"module:node@1\",\"config\":%d,"           \
    "\"defaultState\":{\"total\":0,\"seen\":[]},\"retryPolicy\":{\"maxAttempts\":5,\"backoffMs\":100}," \
    "\"journalRetention\":20}"
#define PAY                                                                                                 \
    "{\"activityName\":\"pay\",\"version\":%z,\"wasmBlobUrl\":\"module:pay@1\",\"limits\":{"                \
    "\"maxExecutionMs\":3000%d},\"capabilities\":{\"network\":[\"bank.test\"],\"secrets\":[\"BANK_KEY\"]}," \
    "\"retryPolicy\":{\"maxAttempts\":100,\"backoffMs\":50,\"maxBackoffMs\":2000}}"

/* An actor, and what it must hold at the end. */
struct who {
    char full[64];         /* namespace/type/key */
    const char *name;      /* type/key, in it */
    int bits;              /* given so far */
    uint64_t total, maybe; /* maybe: bits that need not be there */
    const char *status;
};

/* A namespace. In all of them actors, messages and events are called the same; what is paid is not. */
struct space {
    const char *name;
    struct who *peers; /* its nodes, that call each other; NULL: nothing is done in it */
    int tokens, requests;
};

/* What a client wants, until it has a definite answer. */
struct request {
    struct sim *s;
    const char *op, *ns;
    char target[48], id[24];
    struct buf body;
    int after;      /* not before this one is answered; −1: at once */
    char want[24];  /* the reply, or a part of the error; "": any success */
    char until[24]; /* it is asked again until the answer holds this; "": any does */
    int64_t delay_ms, timeout_ms;
    int32_t priority;
    bool flying, fails;
    struct who *gains; /* has its bits for sure if this succeeds; else this must be `cancelled` */
    uint64_t asked;    /* times */
    struct buf answer;
    int status; /* 0: none yet */
};

/* What the bank has seen under one key. */
struct payment {
    char key[96];
    char id[40];
    char *input;
    int times;
};

struct sim {
    struct world w;
    uint64_t seed;
    struct array_faults rows; /* the store, or */
    bool on_disk, failing;    /* SQLite's files; a fault of theirs is to come or has struck */
    struct store *store;      /* as it was opened last */
    bool chaos;               /* things go wrong */
    int fault_percent;        /* of commits */
    int crash_every;          /* steps, on average */
    bool spared;              /* not now */
    uint64_t steps, deaths, seq;
    struct loom *zombie;              /* a process that does not know yet that another has its store */
    struct space spaces[SPACES], *in; /* the one for which something is thought of */
    struct who who[WHO_MAX];
    int who_count;
    struct request requests[REQUESTS_MAX];
    int request_count, open_requests;
    struct payment paid[PAID_MAX];
    int paid_count;
    struct {
        char id[40];
        bool refused;
    } due[PAID_MAX]; /* payments that must be there at the end */
    int due_count;
    int expired;        /* messages that become dead letters */
    bool fat;           /* there is a message beyond 256 KiB */
    struct map journal; /* key → hash of the row: it never changes */
};

/* Ends the process with the seed and why. */
_Noreturn void sim_fails(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* What happens, when the environment has SIM_LOG. */
void sim_says(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* load.c */
void load_make(struct sim *s);
void load_step(struct sim *s); /* a client asks, perhaps */
void load_bank(struct world *w, uint64_t id, struct str url, struct str key, struct str auth, struct str body);
extern const char *const namespaces[SPACES];
/* And waits for the answer: the status. what: an actor's full id, or a namespace. at: a moment, -1: now. */
int load_ask(struct sim *s, const char *op, const char *what, int64_t at, struct buf *out);
void load_free(struct sim *s);

/* disk.c */
void disk_begin(struct sim *s); /* the files as disk_keep has kept them, or none */
void disk_end(struct sim *s);
void disk_keep(void);
void disk_free(void);
void disk_start(struct sim *s); /* before each start of a process */
void disk_step(struct sim *s);  /* something begins or ceases to fail, perhaps */

/* check.c */
void check_commit(struct world *w, const struct batch *b); /* at every commit */
void check_forget(struct sim *s);                          /* all that was told of commits */
void check_store(struct sim *s);                           /* after every recovery */
bool check_rests(struct sim *s, struct buf *what);         /* nothing is under way; otherwise what, for example */
void check_print(struct sim *s);                           /* all rows, to stderr */
void check_end(struct sim *s);                             /* what was foretold has come */
void check_damage(struct sim *s);                          /* a changed byte never gives a wrong value */

#endif
