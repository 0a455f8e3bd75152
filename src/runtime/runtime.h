/* runtime.h: the engine of one shard. Everything here belongs to the loop's thread unless it says otherwise.
 *
 * The one rule: nothing leaves before its batch commits. The loop runs ahead of the disk; what leaves the shard is an
 * effect that carries the number of the open batch and is released when that batch has committed.
 */
#ifndef LOOM_RUNTIME_H
#define LOOM_RUNTIME_H

#include "actor/actor.h"
#include "base/base.h"
#include "loom/loom.h"
#include "net/net.h"
#include "observe/observe.h"
#include "patterns/policy.h"
#include "storage/storage.h"
#include "wasm/exec.h"
#include <loomdeps.h>

#include <pthread.h>
#include <sys/queue.h>

enum { BATCH_BYTES_MAX = 4 << 20, BATCH_ROWS_MAX = 10000, BLOB_MIN = 256 << 10 };
enum { IDLE_CHECK_MS = 1000, BODY_MAX = 2 << 20 };

/* ---- definitions and modules (registry.c) ---- */
struct definition {
    const char *kind; /* kind_activity or kind_actor */
    struct str ns, name, version, text;
    char hash[65];  /* of the text; "": its batch was lost */
    uint64_t order; /* of deployment */
    yyjson_val *doc;
    struct exec_limits limits; /* for an activity cpu_ms is the wall time of an attempt, too */
    struct retry_policy retry; /* actor types: max_attempts 1 unless given */
    yyjson_val *policy;        /* activity: NULL when it is pure */
    struct loom_schema *input, *output;
    char resolved[65]; /* hash that wasmBlobUrl named when l->modules_put was resolved_at; "native" */
    uint64_t resolved_at;
    struct exec_module *native; /* registered in process; otherwise the module comes from wasmBlobUrl */
    bool reuse;
    struct definition *older; /* deployed before it under the same name */
    struct arena mem;         /* holds all of it, the struct too */
};

/* ---- one message, waiting ---- */
struct mail {
    struct str key; /* of its row */
    yyjson_val *doc;
    struct str id, event; /* message id; event type, absent for activate */
    int64_t due, expires; /* 0: at once, never */
    struct arena mem;
};

/* An actor in memory, with what the engine needs to run it. */
struct resident {
    struct actor *a;
    struct exec *exec;             /* suspended or running guest; NULL: to be made (and replayed) */
    struct definition *definition; /* of the open turn or the last; NULL: not looked up yet */
    struct mail *mail;             /* sorted by key: events, then the others, each by priority and arrival */
    size_t mail_count;
    bool queued; /* runnable or guestless */
    bool dirty;  /* tail or document go into the open batch */
    bool document_dirty;
    bool reload; /* its guest is gone in mid-turn: it must leave memory and be loaded before it runs again */
    /* evict_always: ops of this guest; the last one at which a guest of this turn was evicted */
    uint32_t ops, evicted_at;
    bool in_outbox; /* the store has an outbox row */
    int32_t starts; /* times a worker died with this actor in flight and the journal at starts_cursor */
    uint64_t starts_cursor;
    uint64_t seq;    /* last batch that holds rows of it */
    int64_t used_at; /* monotonic ms */
    size_t bytes;    /* of the resident guest */
    STAILQ_ENTRY(resident) run, flush;
    TAILQ_ENTRY(resident) lru;
};

/* ---- what the loop does later: what comes from other threads (the inbox), and effects ---- */
struct item {
    void (*fn)(struct loom *l, struct item *item); /* frees it, or hands it on */
    STAILQ_ENTRY(item) next;
    uint64_t seq;     /* an effect: the batch that it waits for */
    bool committed;   /* that batch has; else the effect was dropped with it */
    struct arena mem; /* holds all of it, and the struct that begins with it */
};
STAILQ_HEAD(items, item);

/* ALARM_LOADED has no row, for a load can derive it again: retries, time limits of activities, calls and children. */
enum alarm_kind { ALARM_PROMISE, ALARM_LOADED, ALARM_MAIL };

struct pending; /* uncommitted rows of one batch (batch.c) */

struct loom {
    struct loom_config config;
    /* The parts it is opened on: */
    struct env *env;
    struct store *store;
    struct blob_store *blobs;
    struct exec_engine *engine; /* with the modules by hash; several looms of a process may share it; NULL: its own */
    const char *cache_dir;      /* compiled artefacts; NULL: memory only */
    int64_t name;               /* of this process: its pid */

    bool own_engine;
    struct net_client *net;
    struct activity_pool *pool;
    struct arena mem; /* of the configuration */

    pthread_mutex_t lock;    /* guards the inbox and the writers' slot */
    pthread_mutex_t writing; /* held by the writer that writes */
    pthread_cond_t wake, writer_wake;
    struct items inbox;
    bool stop, writer_stop;
    uint32_t helpers;           /* threads that will still post an item */
    pthread_t loop, writers[2]; /* 0: whoever opened the engine does their steps */

    /* batch.c */
    uint64_t term, open_seq, committed; /* the open batch's number; the last one that committed */
    struct pending *open, *flights[2];  /* rows being collected; rows on their way to the disk or NULL, older first */
    struct pending *job;                /* the flight that is not written yet: set by the loop, cleared by a writer */
    bool refuse;                        /* a batch was not written: nor is the one after it */
    bool settle;                        /* no batch is closed until the disk has all that was written */
    uint32_t arrivals;                  /* within the open batch */
    struct items effects;
    bool released;      /* replies went out since the last flush callback */
    int failed;         /* the last commit did, as which error: nothing runs until the store takes a batch again */
    struct error fault; /* the last failed read or commit; code "": of a commit, or it has been dealt with */
    int faults;
    int64_t probe_at;

    struct map actors; /* full id → struct resident */
    STAILQ_HEAD(actors, resident)
    runnable, guestless, dirty;             /* guestless: runnable, when there is room for their guest */
    TAILQ_HEAD(residents, resident) lru;    /* the least recently used one first */
    int64_t idle_at;                        /* monotonic: when idle actors are looked for again */
    size_t guests, guest_bytes, guests_max; /* max: less when a guest of this pass found no instance */

    char **alarms; /* heap of keys: due time, actor, kind, turn, promise (alarms.c) */
    size_t alarm_count;
    int64_t horizon; /* durable alarms due before it are in the heap */

    uint64_t modules_put;   /* counts uploads, from 1 */
    struct map definitions; /* registry.c: kind/ns/name → newest definition */
    struct buf saying;      /* say()'s room */
    struct arena scratch;   /* texts and documents that live until the current item or slice is done */
    struct map attempts;    /* idempotency key → struct attempt (attempt.c) */
    int64_t sweep_at;       /* mailbox.c: when the next slice of dedup rows is looked at, and where it begins */
    char *sweep_from;
    struct map waiters;             /* callers that wait for a reply (mailbox.c) */
    int64_t waiters_due;            /* no waiter times out before it (monotonic) */
    struct subscriber *subscribers; /* stream.c; guarded by stream_lock, as the ring is */
    struct stream_event *ring;
    /* Set once someone has subscribed: takes the tail of the open batch. */
    void (*publish)(struct loom *l, struct resident *r);
    uint64_t ring_next; /* id of the next event */
    pthread_mutex_t stream_lock;
    uint64_t subscriber_ids;
};

/* ---- runtime.c: loop, activation, residency ---- */
/* loom_open (src/operate/open.c) in two steps: whoever opens it fills in the parts between them. It then owns the store and
 * the blobs. Where env starts no threads, he does their steps, in any order, as the simulator does: loom_pass, batch_write
 * and batch_sync of what it gave, activity_step(l->pool) and net_step(l->net) with net_answer. */
struct loom *loom_new(const struct loom_config *config);
struct loom *loom_start(struct loom *l, struct error *err); /* l, or NULL: it is freed */
void loom_pass(struct loom *l);                             /* one pass of the loop; never waits */
int64_t loom_rests(struct loom *l); /* ms until a pass has something to do unless the inbox gets an item; 0: now */
void loom_abandon(struct loom *l);  /* a crash: everything is freed, nothing written; what would have left is dropped */
int64_t loom_now(struct loom *l);
struct str random_id(struct loom *l);                 /* 128 random bits in hex */
struct str message_id_new(struct loom *l);            /* 80 of them, behind the time */
uint64_t loom_order(struct loom *l);                  /* rises with every call and over restarts */
struct str say(struct loom *l, const char *fmt, ...); /* buf_json's template into the scratch */
static inline yyjson_val *look(struct loom *l, struct str text) {
    return json_in(&l->scratch, text);
}
static inline struct str lent(struct loom_str s) {
    return (struct str){s.p, s.n};
}
struct str kept(struct loom *l, struct buf *b); /* its bytes, moved into the scratch */
struct str ns_of(const struct loom_request *req);
void *item_new(size_t size); /* zeroed; it begins with a struct item */
void item_free(struct item *item);
void loom_post(struct loom *l, struct item *item, void (*fn)(struct loom *, struct item *)); /* any thread */
/* NULL: NOT_FOUND, DAMAGED. */
struct resident *resident_get(struct loom *l, struct str full, bool create, struct error *err);
struct resident *resident_by_id(struct loom *l, struct str full);       /* existing or NULL */
void resident_queue(struct loom *l, struct resident *r);                /* let it run */
void resident_touch(struct loom *l, struct resident *r, bool document); /* it has something for the open batch */
void resident_status(struct loom *l, struct resident *r, enum actor_status status, struct str reason);
/* Journal and document rows of all that are dirty, into the open batch, which ends. */
void residents_flush(struct loom *l);
void resident_flush_tail(struct loom *l, struct resident *r); /* its entries so far, as a row of the open batch */
bool residents_pressed(const struct loom *l); /* there is no room for another guest, or those here are too large */
void residents_evict(struct loom *l);         /* then those go that were used least recently */
void resident_drop_guest(struct loom *l, struct resident *r);
/* The actor loaded anew, or NULL: not yet, it is queued. */
struct resident *resident_again(struct loom *l, struct resident *r);
void resident_put_outbox(struct loom *l, struct resident *r);           /* counts its starts */
int resident_state(struct loom *l, struct actor *a, struct error *err); /* a large state, from its own row */
int journal_rows(struct loom *l, const struct actor *a, uint64_t from, row_fn fn, void *ctx, struct error *err);
void resident_drop_all(struct loom *l); /* after a failed commit: memory is ahead of the truth */

/* ---- recover.c ---- */
int recover_start(struct loom *l, struct error *err); /* at opening; what was counted is durable when it returns */
void recover_lease(struct loom *l, bool clean);       /* says in the store whether this worker stopped cleanly */
int recover(struct loom *l, bool unclean, struct error *err);
void recover_actor(struct loom *l, struct str full, bool unclean); /* loads it and lets it go on */

/* ---- turn.c: a turn from message to end ---- */
void turn_step(struct loom *l, struct resident *r); /* one slice */
enum turn_end { END_RETURN, END_FINISH, END_CONTINUE, END_FAIL };
/* value: JSON; END_FAIL: error JSON. */
void turn_end(struct loom *l, struct resident *r, enum turn_end how, struct str value);
/* Fails a live turn, pauses a replaying one. */
void turn_trapped(struct loom *l, struct resident *r, const struct error *err);
void turn_pause(struct loom *l, struct resident *r, const struct error *why);
/* The actor in whose open turn, of that number, the promise is open; NULL: none. */
struct resident *promise_owner(struct loom *l, struct str actor, uint64_t turn, uint64_t promise);
/* An entry that settles a promise, and what follows: the guest goes on. json: result or error; event: id of one that came. */
void promise_done(struct loom *l, struct resident *r, uint64_t promise, bool ok, struct str json, struct str event);
/* The worker fails a turn whose guest may still have to replay. */
void turn_give_up(struct loom *l, struct resident *r, const char *code, const char *why);
void turn_cancel(struct loom *l, struct resident *r, struct str reason);
/* Undoes what an open promise started outside the journal. */
void promise_abandon(struct loom *l, struct resident *r, uint64_t id);
bool turn_resumable(struct resident *r); /* its await is settled */
/* A log line about the open turn, once its batch has committed. more: JSON fields. */
void turn_log(struct loom *l, const struct resident *r, enum log_level level, struct str msg, struct str more);
struct str promise_name(struct loom *l, const struct promise *p); /* what an open one waits for: "event TYPE" */

/* ---- ops.c: the guest's op table ---- */
enum op_outcome { OP_OK, OP_ERROR, OP_WAIT, OP_ENDED };
struct op_call {
    struct loom *l;
    struct resident *r;
    struct str name, arg;   /* as the guest gave them */
    yyjson_val *value;      /* arg parsed, for ops that take JSON */
    uint64_t id;            /* of the promise that it may give */
    struct str to, message; /* of a message that it sends: target and id */
    struct str out;         /* result or error JSON, in the scratch */
    struct error err;
};
enum op_outcome op_run(struct op_call *c);
enum op_outcome op_await_result(struct op_call *c); /* the answer of a settled await or suspend */

/* ---- batch.c: rows, group commit, effects ---- */
/* fresh: no such row exists. */
void rows_put(struct loom *l, enum row_kind kind, struct str key, struct str value, bool fresh);
void rows_delete(struct loom *l, enum row_kind kind, struct str key);
/* 1, 0 or negative; the value lives as long as the scratch. */
int rows_load(struct loom *l, enum row_kind kind, struct str key, struct str *out, struct error *err);
/* The same; .p NULL: none, or a fault that is logged. */
struct str rows_get(struct loom *l, enum row_kind kind, struct str key);
/* As rows_load, but as the last commit left it, without what is pending. */
int rows_stored(struct loom *l, enum row_kind kind, struct str key, struct str *out, struct error *err);
/* Answers rc; when it is a fault of the store, the open batch will be dropped. */
int store_fault(struct loom *l, int rc, const struct error *err);
/* Committed rows from ≤ key < to in key order. A damaged row is passed over; DAMAGED then names one when all others were visited. */
int rows_scan(struct loom *l, enum row_kind kind, struct str from, struct str to, row_fn fn, void *ctx,
              struct error *err);
int rows_prefix(struct loom *l, enum row_kind kind, struct str prefix, row_fn fn, void *ctx, struct error *err);
void batch_close(struct loom *l, bool here); /* hands the open batch to a writer, or commits it here if none flies */
bool batch_ready(const struct loom *l);      /* the writer is free */
bool batch_due(const struct loom *l);        /* and there is something to write */
bool batch_full(const struct loom *l);
bool batch_idle(const struct loom *l);                  /* nothing uncommitted */
void batch_probe(struct loom *l);                       /* after a failure: does the store take a batch again? */
struct pending *batch_write(struct loom *l, bool wait); /* a writer: writes what it was handed; NULL: nothing (more) */
void batch_sync(struct loom *l, struct pending *p);     /* and has it synced, while another may write */
void effect_add(struct loom *l, struct item *item, void (*fn)(struct loom *, struct item *));
void effects_release(struct loom *l); /* those whose batch has committed */
void batch_forget(struct loom *l);    /* back to the last commit: what was ahead of it leaves memory */
void pending_free(struct pending *p); /* NULL is fine */

/* ---- mailbox.c ---- */
struct message {
    struct str to;    /* target: ns/type/key */
    struct str id;    /* absent: made, in the scratch */
    struct str event; /* event type; absent: activate */
    struct str data;  /* JSON text, normalized */
    struct str sender, correlation, traceparent;
    struct str reply_to; /* JSON {"actor","turn","attempt","promise"} or absent */
    struct str chain;    /* JSON array of waiting actors or absent */
    struct str version;  /* of the actor type; absent: the last deployed */
    int64_t delay_ms, ttl_ms;
    int32_t priority;
    int32_t attempt; /* 0: the first */
    bool spawn;      /* makes a child, which must not exist yet */
    bool outside;    /* from a client: deduplicated, mailbox limit applies */
};
/* Brings the message to its target. 0: accepted. 1: a duplicate. Negative: err. */
int mail_deliver(struct loom *l, struct message *m, struct error *err);
/* Puts it in a mailbox unchecked: one that was checked before and goes on (retry, continue). */
void mail_put(struct loom *l, struct resident *r, const struct message *m);
/* The time of a message has come, or is over: an event goes to the wait that is open for it, the expired become dead letters. */
void mail_due(struct loom *l, struct resident *r);
/* The next event of that type, absent: the next activate message, due and not expired; NULL: none. */
struct mail *mail_next(struct loom *l, struct resident *r, struct str event);
/* Settles the wait with the oldest buffered event of the type, if there is one. */
void mail_bind(struct loom *l, struct resident *r, uint64_t promise, struct str type);
void mail_remove(struct loom *l, struct resident *r, struct mail *m);
void mail_dead_letter(struct loom *l, struct resident *r, struct mail *m, const char *code, const char *why);
int mail_load(struct loom *l, struct resident *r, struct error *err);
void mail_forget(struct loom *l); /* dedup rows whose 24 hours are over, a slice at a time */
void mail_free(struct resident *r);
struct str dedup_key(struct loom *l, struct str actor, struct str message_id);
/* The end of a message: to the actor that called, or to the dedup row and the callers outside. */
void reply_to(struct loom *l, struct resident *r, yyjson_val *message, struct str message_id, bool ok, struct str json);

/* ---- reply.c ---- */
void reply_send(struct loom *l, const struct loom_request *req, int status, struct str body, struct str message_id);
void reply_error(struct loom *l, const struct loom_request *req, const struct error *err);
void reply_refuse(struct loom *l, const struct loom_request *req); /* at once, as if its batch had not committed */
struct str error_text(struct loom *l, const struct error *err);    /* {"code","message","retryable"} in the scratch */
int reply_status(bool ok, yyjson_val *error);
void waiter_add(struct loom *l, const struct loom_request *req, struct str full_id, struct str message_id);
void waiters_answer(struct loom *l, struct str key, bool ok, struct str json);
/* Answers those whose time is over, those whose message has not committed, or all: Loom stops. */
enum waiters_why { WAITERS_LATE, WAITERS_UNCOMMITTED, WAITERS_ALL };
void waiters_sift(struct loom *l, enum waiters_why why);

/* ---- alarms.c ---- */
/* id: of a promise of the open turn, or of what came by mail. */
void alarm_set(struct loom *l, int64_t due, enum alarm_kind kind, struct resident *r, uint64_t id);
/* Its row; the alarm itself then finds nothing to do. */
void alarm_clear(struct loom *l, int64_t due, enum alarm_kind kind, struct resident *r, uint64_t id);
void promise_deadline(struct loom *l, struct resident *r, uint64_t id); /* the alarm of an open one that has one */
void alarms_fire(struct loom *l);
int64_t alarms_next(struct loom *l); /* wall ms of the next one; INT64_MAX: none */
void alarms_recover(struct loom *l); /* in memory are those that have a row, and no others */
void alarms_free(struct loom *l);

/* ---- attempt.c: activities ---- */
/* The promise's next attempt, as policy and rule say. entry: what was asked for; NULL: it is read from the journal. */
void attempt_schedule(struct loom *l, struct resident *r, uint64_t promise, yyjson_val *entry);
/* After load: running attempts go on, the others were interrupted. */
void attempt_recover(struct loom *l, struct resident *r);
void attempt_cancel(struct loom *l, const struct resident *r, uint64_t promise);
void attempts_fail(struct loom *l);   /* a commit failed: drop those that are not durable */
void attempts_resume(struct loom *l); /* the store takes batches again: apply what has ended meanwhile */
struct str activity_key(struct loom *l, const struct actor *a, uint64_t promise);

/* ---- registry.c ---- */
int registry_open(struct loom *l, struct error *err);
void registry_free(struct loom *l);
/* The last deployed one of the version, absent: of any, whose hash begins so; else a built-in one. NULL: none. */
struct definition *registry_find(struct loom *l, const char *kind, struct str ns, struct str name, struct str version,
                                 struct str hash);
void registry_forget(struct loom *l); /* those that did not commit, which attempts may still end with, is not found */
int definition_check(const struct definition *d, bool input, struct str json, struct error *err);
/* Its code, which stays until the engine is closed; pinned: a module's hash, absent: what wasmBlobUrl says now, which is then
 * d->resolved. */
struct exec_module *definition_module(struct loom *l, struct definition *d, struct str pinned, struct error *err);
/* Checks and deploys a definition; refused: the error. created: nothing of this content was there. */
struct definition *registry_put(struct loom *l, const char *kind, const struct loom_request *req, struct str name,
                                struct str text, bool *created, struct error *err);
/* The compiled form of a module: from the cache, else compiled now (wasm absent: its bytes are fetched). Any thread. */
int module_artefact(struct loom *l, const char *hash, struct str wasm, bool anew, struct buf *artefact,
                    struct error *err);
extern const char kind_activity[], kind_actor[];
struct builtin_file {
    const char *path; /* or a module's name */
    const unsigned char *start, *end;
};
extern const struct builtin_file builtin_modules[];
extern const size_t builtin_module_count;
extern const struct builtin_file builtin_files[];
extern const size_t builtin_file_count;
struct str builtin_module(struct str name, const char *hash); /* by either; .p NULL: none */

/* ---- the room src/operate, the operator's door ---- */
void stream_open(struct loom *l);
void stream_free(struct loom *l);
const struct loom_op_doc *actor_op_docs(void);

#endif
