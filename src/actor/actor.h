/* actor.h: an actor, its open turn and its journal as data. Pure: this room knows neither engine, store nor guest.
 *
 * The journal is the truth. Whatever happens to a turn is first an entry (a JSON object with `type` and `at`), and
 * fold() in journal.c is the only code that lets an entry change the turn: live, right after the entry was appended, and at
 * load, entry by entry. So live state and recovered state cannot differ.
 */
#ifndef LOOM_ACTOR_H
#define LOOM_ACTOR_H

#include "base/base.h"

enum actor_status {
    ACTOR_IDLE,
    ACTOR_RUNNING,
    ACTOR_SUSPENDED,
    ACTOR_PAUSED,
    ACTOR_COMPLETED,
    ACTOR_FAILED,
    ACTOR_CANCELLED,
};
const char *actor_status_name(enum actor_status s);
int actor_status_of(struct str name); /* −1: none is called so */

enum promise_kind { PROMISE_ACTIVITY = 1, PROMISE_CALL, PROMISE_CHILD, PROMISE_EVENT, PROMISE_TIMER, PROMISE_SUSPEND };

#define ENTRY_NEVER UINT64_MAX

/* What an op that finishes later left behind. Ids count from 1 within the turn. */
struct promise {
    enum promise_kind kind;
    bool ok;
    uint64_t done_at;    /* number of the entry that settled it; ENTRY_NEVER while open */
    int64_t done_ms;     /* and its `at` */
    struct str result;   /* JSON text: value, or error when !ok; malloc'd */
    struct str entry;    /* JSON text of the op's entry, while open; malloc'd */
    int32_t attempt;     /* activity: attempts begun */
    int32_t interrupted; /* activity: times the worker died in this attempt */
    int64_t due;         /* activity: when the next attempt starts; 0: at once */
    int64_t deadline;    /* timer: when it fires; others: when they time out; 0: never */
};

/* An op of the journal that a replaying guest must repeat: its text without `at`. */
struct recorded {
    struct str text;
    uint64_t number;
};

struct turn {
    uint64_t number;         /* of the actor's turns, from 1 */
    char name[33];           /* hash of actor and number, what ids made in the turn begin with; "": not needed yet */
    int32_t attempt;         /* from 1; more than 1 when the actor's retryPolicy tries the message again */
    struct str started;      /* text of the turn_started entry: input, message, module, definition; malloc'd */
    struct str message;      /* what it says of the message; within `started` */
    uint64_t random[2];      /* the generator's state, at first the journaled seed */
    int64_t now;             /* highest `at` handed to the guest */
    uint64_t ops_asked;      /* journaled ops that the guest has asked for so far */
    uint64_t promises_given; /* promise ids that the guest has seen so far; fewer than there are while it replays */
    struct promise *promises;
    size_t promise_count;
    uint64_t cancel_at;   /* entry of a cancel request that no blocking op has taken yet; ENTRY_NEVER: none */
    int64_t cancel_ms;    /* and its `at` */
    struct str cancelled; /* why a cancel was requested in this turn, JSON text; malloc'd; .p NULL: it was not */
    uint64_t entries;
    size_t bytes; /* of journal text */
    /* Replay: ops still to be repeated. Empty when the guest is live. */
    struct recorded *ops;
    size_t op_count, op_next;
    struct arena op_text;
    /* What the guest waits for; await_count 0: it does not wait. */
    uint32_t *await;
    size_t await_count;
    bool await_any;
    uint64_t suspended; /* the entry that says so; 0: none since the last op or answer */
    /* State at the turn's start, kept from the first patch on: what the document row holds while the turn is open. */
    struct buf before;
};

struct actor {
    char *id;                             /* ns/type/key; the other names point into it */
    struct str full, ns, type, key, name; /* name = type/key */
    /* durable: the actor document */
    enum actor_status status;
    char reason[256];   /* suspendReason */
    bool run;           /* ends with its turn */
    uint64_t cursor;    /* number of the last entry */
    uint64_t turns;     /* turns begun; the open one is the last of them */
    uint64_t last_turn; /* first entry of the last of them */
    uint64_t last_row;  /* and the row that holds it */
    uint64_t from;      /* first entry number of the journal row from which load rebuilds the rest */
    uint64_t kept;      /* first entry that the journal still has */
    uint64_t state_at;  /* the stored state is the one after this entry */
    uint64_t chain;     /* checksum of the last journal row */
    int64_t created_at, activated_at;
    char *correlation, *parent; /* malloc'd or NULL */
    yyjson_mut_doc *state;      /* live; during replay as far as the guest has come */
    size_t patch_bytes;         /* patches since the state was last written whole */
    bool state_apart;           /* the state has a row of its own (it is not small) */
    int64_t at;                 /* highest `at` of its entries */
    /* bookkeeping */
    struct turn *turn; /* open turn or NULL */
    struct buf tail;   /* the row of the entries that are in none yet, without its end; empty: there are none */
    uint64_t row;      /* first entry number of the row being written or read */
};

/* ---- actor.c: the document ---- */
struct actor *actor_new(struct str id); /* ns/type/key; NULL: it is not one */
void actor_free(struct actor *a);       /* also its turn */
/* Names: type [a-z0-9][a-z0-9._-]{0,63} (a namespace too), key 1–256 bytes of UTF-8 without control characters or '/'. */
int actor_check_name(struct str name, const char *what, struct error *err);
int actor_check_key(struct str key, struct error *err);
int actor_check_id(struct str id, struct error *err);
bool actor_parts(struct str id, struct str *ns, struct str *type, struct str *key); /* false: it has fewer than three */
int actor_check_text(struct str text, const char *what, struct error *err);         /* a key that may hold a '/' */
/* Document text as GET answers it; entries: comma-separated. */
void actor_document(const struct actor *a, struct str entries, struct str state, struct buf *out);
void actor_metadata(const struct actor *a, struct buf *out); /* its part of that name */
/* As stored: no entries, but what load needs. state.p NULL: left out. */
void actor_row(const struct actor *a, struct str state, struct buf *out);
/* Reads the stored text into a fresh actor; DAMAGED names what is missing. */
int actor_read(struct actor *a, struct str text, struct error *err);

/* ---- journal.c ---- */
/* Appends an entry to the open batch's tail and folds it. `body` is the entry without its closing brace and `at`. */
void journal_append(struct actor *a, int64_t now_ms, struct str body);
/* Compares an op of a replaying guest with its entry: 1 repeated (fold already knows it), 0 the guest is live: append it,
 * MISMATCH with both sides in err. */
int journal_repeat(struct actor *a, struct str body, struct error *err);
bool journal_replaying(const struct actor *a);
/* A field of an entry's text as it stands, JSON; .p NULL: absent. */
struct str entry_field(struct str entry, const char *name);
struct str entry_word(struct str entry, const char *name); /* of a string without escapes, what stands in its quotes */
struct str entry_body(struct str entry);                   /* without its last field, `at`, and its closing brace */
const char *entry_settling(enum promise_kind kind, bool ok); /* the type of the entry that does */
const char *promise_field(enum promise_kind kind);           /* where an entry names its promise */
/* Ends the tail (there is one), which is then the chain's last row, {"prev":HEX,"entries":[…]}; the caller clears it. */
struct str journal_row(struct actor *a);
struct str journal_key(struct arena *mem, struct str actor_id, uint64_t number);
uint64_t journal_key_number(struct str key);
/* Loads one row (in order): checks chain and density, folds the entries; patches before the open turn change the state.
 * DAMAGED names the actor and the entry. */
int journal_load(struct actor *a, struct str key, struct str row, struct error *err);
/* The open turn, made by the fold of turn_started; ended by turn_completed and the like. */
void turn_free(struct turn *t);
struct promise *turn_promise(struct turn *t, uint64_t id); /* NULL: no such id */
/* The entry that settled what the guest awaits, perhaps the cancel request (cancel_at); ENTRY_NEVER: wait on. */
uint64_t turn_settled(const struct turn *t);

/* ---- state.c ---- */
enum { STATE_SMALL = 16 * 1024 };
void state_set(struct actor *a, yyjson_val *value); /* whole; NULL: {} */
/* The state to be stored: at the open turn's start, or now. */
void state_text_stored(const struct actor *a, struct buf *out);
/* Back to the turn's start, by an entry that says so unless nothing has changed. */
void state_rollback(struct actor *a, int64_t now_ms);
/* Applies a patch; its inverse (JSON array) is appended to `inverse`. INVALID_ARGUMENT names operation and path. */
int state_patch(struct actor *a, yyjson_val *patch, struct buf *inverse, struct error *err);
/* The patches of recorded ops that no guest has repeated are applied, and none need be repeated any more: the turn has ended
 * or its worker ends it, which then wants the state at its start. */
void state_patch_rest(struct actor *a, bool keep_start);

#endif
