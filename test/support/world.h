/* world.h: a world of its own for an engine, all on the caller's thread and all from one seed: a clock that jumps to the
 * next thing that happens, dice, a store that fails when told to, a network with whatever is on its other side, and crashes.
 *
 *     struct world w;
 *     world_init(&w, seed);
 *     w.under = …, w.fault = …, w.sent = …;            what is beneath the engine, and what goes wrong
 *     world_open(&w);                                  as often as it takes: a crash in the recovery is one more crash
 *     while (…) { loom_submit(w.l, …); world_step(&w); }
 *     world_close(&w) or world_crash(&w); world_free(&w);
 *
 * The same seed and the same calls give the same w.trace: a hash of what was committed, answered and sent.
 */
#ifndef LOOM_TEST_WORLD_H
#define LOOM_TEST_WORLD_H

#include "runtime/runtime.h"

/* What becomes of a commit. */
enum fault {
    FAULT_NONE,
    FAULT_ERROR,     /* refused, nothing written */
    FAULT_FULL,      /* the same: no space */
    FAULT_KILLED,    /* the process dies before it */
    FAULT_KILLED_BY, /* and after it, before anyone is told */
    FAULT_SYNC_LOST, /* the fsync fails: the process ends; the rows are not there */
    FAULT_SYNC_KEPT, /* or they are */
};

struct world_answer;

struct world {
    struct env env; /* the engine's door; first, so that its functions find the rest */
    struct loom *l; /* NULL while the process is dead */
    struct loom_config config;
    uint64_t dice, trace;
    int64_t mono_us, wall_ms; /* the wall clock is so far ahead of the other */
    int64_t sleeps_until;     /* the loop, unless something comes (mono_us) */
    int64_t jump_max_ms;      /* the clock jumps no further; 0: to whatever comes next */
    bool dead;                /* the process died within this step: nothing leaves any more */
    uint64_t commits, opened; /* tried; engines so far */
    uint64_t term;            /* of the last engine that has claimed the store */

    /* Given by whoever makes the world; all may be NULL but `under`, `blobs` and `code`. */
    void *ctx;
    struct store *(*under)(struct world *w, struct error *err); /* the store that the faults are put before */
    struct blob_store *blobs;                                   /* shared, never closed by an engine */
    struct exec_engine *engine;
    enum fault (*fault)(struct world *w);                      /* asked at each commit */
    void (*committed)(struct world *w, const struct batch *b); /* told of each that is synced */
    void (*sent)(struct world *w, uint64_t id, struct str url, struct str key, struct str auth, struct str body);

    bool (*other)(struct world *w);                       /* lets something else happen; false: nothing could */
    void (*closes)(struct world *w, struct store *under); /* told before an engine closes its store */

    struct pending *written[2];   /* batches that no sync has followed yet */
    struct world_answer *answers; /* on their way back */
    size_t answer_count;
};

void world_init(struct world *w, uint64_t seed);
void world_free(struct world *w);
uint64_t world_roll(struct world *w, uint64_t n);   /* 0 … n − 1 */
void world_mark(struct world *w, struct str what);  /* into the trace */
void world_open(struct world *w);                   /* aborts when 100 attempts in a row fail */
bool world_try(struct world *w, struct error *err); /* once */
void world_close(struct world *w);                  /* an orderly stop */
void world_crash(struct world *w);                  /* kill -9 */
struct loom *world_zombie(struct world *w);         /* the engine, still alive but no longer w->l: abandon it later */
/* One thing happens, by dice: a pass of the loop, a commit, its sync, a go of an activity, an answer of the network. False: nothing
 * could, and the clock has jumped to the next thing that will. A process that died in it is gone: w->l is NULL. */
bool world_step(struct world *w);
/* The other side of a request answers after so many ms: JSON as net.h's done() gets it. Only in sent(). */
void world_answer(struct world *w, uint64_t id, int64_t after_ms, bool ok, struct str json);

/* Rows in memory as `under`: what a crash leaves. ctx must be a struct array_faults. */
struct store *world_array(struct world *w, struct error *err);

#endif
