/* storage.h: what Loom asks of a store. A store is rows (kind, key) → JSON text, changed only by atomic batches.
 *
 * No backend knows what an actor is. One thread at a time commits, two may sync, while `scan` runs on the loop's:
 * all without the caller's help. Every row carries a checksum (row_sum)
 * that the backend keeps beside it and compares at each read.
 */
#ifndef LOOM_STORAGE_H
#define LOOM_STORAGE_H

#include "base/base.h"

/* A store's format number. Another one is refused: `loom debug dump` and `restore` bring an older store into ours, for what we
 * write there an older Loom would misread. 2: rows leave out what their key says and what is as in a first turn. 3: pages have
 * checksums (pages.c). */
enum { STORE_FORMAT = 3 };

#define ROW_KINDS(X)                                                                                        \
    X(ACTOR, "actor")       /* ns/type/key → the actor document without its entries */                    \
    X(JOURNAL, "journal")   /* actor id \0 first entry's number → the entries of one batch */             \
    X(MAILBOX, "mailbox")   /* "m" or "e" actor id \0 order → a message that waits */                     \
    X(TIMER, "timer")       /* due time \0 actor id \0 what → an alarm that must survive */               \
    X(OUTBOX, "outbox")     /* actor id → the actor has work in flight: recovery begins here */           \
    X(INBOX, "inbox")       /* message id \n actor id → hash of the input and the reply: deduplication */ \
    X(MODULE, "module")     /* ns/name/version → hash and size of a WASM file */                          \
    X(LEASE, "lease")       /* who owns the shard, its term, whether it stopped cleanly */                  \
    X(REGISTRY, "registry") /* kind/ns/name/version → a definition */
enum row_kind {
    ROW_NONE,
#define X(id, name) ROW_##id,
    ROW_KINDS(X)
#undef X
        ROW_KIND_END
};
const char *row_kind_name(enum row_kind kind);

/* One change: value.p == NULL deletes. */
struct row {
    enum row_kind kind;
    struct str key, value;
};
uint64_t row_sum(enum row_kind kind, struct str key, struct str value);
bool path_sync(const char *path);                  /* fsync of a file or folder; false with errno */
bool folder_sync(const char *path);                /* the same of the folder in which it stands: its name is durable */
bool path_read(const char *path, struct buf *out); /* appended; false: errno says why */
bool path_write(const char *path, struct str bytes); /* wholly and synced, or not at all; its folder is not synced */
bool fd_read(int fd, struct buf *out);               /* to the end */

/* Batches commit in order of `seq`; `term` is the fencing number that claim() gave. */
struct batch {
    uint64_t term, seq;
    struct row *rows;
    size_t count;
};

enum commit_outcome {
    COMMIT_OK,
    COMMIT_CONFLICT, /* another writer owns the shard: this one must stop */
    COMMIT_FAILED,   /* nothing was written; trying again later may help */
    COMMIT_FULL,     /* as FAILED: no space on the disk */
    COMMIT_FATAL,    /* an fsync failed: what the disk holds is unknown; the process must exit */
};

/* Called by scan for each row, in bytewise key order; returns false to stop. Key and value live until it returns.
 * value.p == NULL: the row is damaged, only its key can be told. It must not call the store. */
typedef bool (*row_fn)(void *ctx, struct str key, struct str value);

struct store {
    const struct store_ops *ops;
};
struct store_ops {
    /* Takes the shard for `writer`: raises the term and answers it with the last committed seq. */
    int (*claim)(struct store *s, struct str writer, uint64_t *term, uint64_t *seq, struct error *err);
    /* OK: the batch is there for reads and for what comes after this process, but a power loss may still take it. */
    enum commit_outcome (*commit)(struct store *s, const struct batch *b, struct error *err);
    /* OK or FATAL: every commit that had returned is on the disk. May run beside a commit, and beside itself. */
    enum commit_outcome (*sync)(struct store *s, struct error *err);
    /* Rows with from ≤ key < to (to.p NULL: no upper end). 0, or STORE; a damaged row stops nothing, see row_fn. */
    int (*scan)(struct store *s, enum row_kind kind, struct str from, struct str to, row_fn fn, void *ctx,
                struct error *err);
    void (*close)(struct store *s);
};

/* SQLite: WAL, synchronous=FULL, one writer. path NULL: in memory. Beside PATH it keeps PATH.lock and, after a
 * failed fsync, PATH.fsync-failed. CONFLICT: the file is in use (by which pid), of a newer format, or older than what was
 * seen here (accept_restored: go on all the same). */
struct store *store_sqlite_open(const char *path, struct env *env, bool accept_restored, struct error *err);
/* A checkpoint beside the commits, which a thread does now and then; where env starts none, whoever opened the store. */
void store_sqlite_keep(struct store *s);

/* ---- blobs: content-addressed bytes, named by SHA-256 in hex ---- */
struct blob_store {
    const struct blob_ops *ops;
};
struct blob_ops {
    int (*put)(struct blob_store *s, struct str bytes, char hex[65], struct error *err); /* durable when it returns */
    int (*get)(struct blob_store *s, const char *hex, struct buf *out,
               struct error *err); /* hash checked: NOT_FOUND, DAMAGED */
    void (*close)(struct blob_store *s);
};
/* Files DIR/ab/cdef…; each synced, file and folder. dir NULL: in memory. */
struct blob_store *blob_file_open(const char *dir, struct error *err);

#endif
