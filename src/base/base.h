/* base.h: the words every room speaks: bytes, buffers, arenas, JSON, errors, hashes, the env.
 *
 * Ownership, once for the whole code base: arguments are borrowed until the call returns; who keeps, copies.
 * A `struct str` never owns its bytes. Out of memory aborts: recovery after a crash is the product.
 */
#ifndef LOOM_BASE_H
#define LOOM_BASE_H

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <yyjson.h>

/* ---- str: a run of bytes, not NUL-terminated, possibly holding NULs ---- */
struct str {
    const char *p;
    size_t n;
};
#define STR(literal) ((struct str){(literal), sizeof(literal) - 1})
#define STR_NONE     ((struct str){NULL, 0})
struct str str_of(const char *z); /* NULL gives STR_NONE */
bool str_eq(struct str a, struct str b);
bool str_is(struct str s, const char *z);
int str_cmp(struct str a, struct str b); /* bytewise, as memcmp; a prefix sorts first */
bool str_starts(struct str s, struct str prefix);
char *str_dup(struct str s); /* malloc'd and NUL-terminated; the caller frees. NULL when .p is */

void *mem_alloc(size_t n);         /* zeroed; aborts when there is none */
void *mem_grow(void *p, size_t n); /* realloc that aborts */
/* A list of `count` things of that size, with room for one more. It grows by doubling. */
void *mem_room(void *list, size_t count, size_t size);

/* ---- buf: a growing run of bytes that owns them; zero-initialise, buf_free when done ---- */
struct buf {
    char *p;
    size_t n, cap;
};
void buf_add(struct buf *b, const void *p, size_t n);
void buf_str(struct buf *b, struct str s);
void buf_char(struct buf *b, char c);
char *buf_reserve(struct buf *b, size_t n); /* room for n bytes behind .n; the caller raises .n by what it fills */
void buf_clear(struct buf *b);              /* keeps the memory */
void buf_free(struct buf *b);
struct str buf_view(const struct buf *b);
/* JSON text by template; everything but these is copied as it stands:
 * %q struct str, quoted and escaped · %Q the same, or null when .p is NULL · %j struct str as it is (JSON text)
 * %v yyjson_val *, minified, nothing for NULL · %z const char *, quoted and escaped · %s const char * as it is · %d int64_t · %u uint64_t · %x the same in 16 hex digits · %f double · %b int as true/false · %%
 * The result is valid JSON whatever the bytes: text that is not UTF-8 loses what is beyond ASCII, NaN becomes null. */
void buf_json(struct buf *b, const char *fmt, ...);
void buf_json_v(struct buf *b, const char *fmt, va_list ap);

/* ---- arena: allocations freed together ---- */
struct arena_chunk;
struct arena {
    struct arena_chunk *head;
    size_t bytes; /* taken from malloc so far */
};
void *arena_alloc(struct arena *a, size_t n);                 /* zeroed, aligned to 16 */
struct str arena_dup(struct arena *a, struct str s);          /* NUL-terminated behind .n */
struct str arena_json(struct arena *a, const char *fmt, ...); /* buf_json into the arena */
void arena_reset(struct arena *a); /* as arena_free, but keeps the newest chunk for what comes next */
void arena_free(struct arena *a);

/* ---- map: str → pointer, insertion-ordered iteration is not promised; keys are borrowed from the values' owner ---- */
struct map_slot {
    struct str key;
    void *value;
    uint64_t hash;
};
struct map {
    struct map_slot *slots;
    size_t count, cap; /* cap is a power of two or 0 */
    uint64_t seed;     /* what map_seed was when the map got its first slots */
};
/* Set from a secure source when the program starts: nobody outside can compute keys that collide. Without it (0) the order
 * of iteration repeats from run to run, which the simulator wants. */
extern uint64_t map_seed;
void *map_get(const struct map *m, struct str key);
void map_put(struct map *m, struct str key, void *value); /* replaces key pointer and value */
void *map_remove(struct map *m, struct str key);          /* the removed value or NULL */
void map_free(struct map *m);
/* for (size_t i = 0; (v = map_next(m, &i)) != NULL;) visits every value; the map must not change meanwhile */
void *map_next(const struct map *m, size_t *i);

/* ---- errors: one table row per code: name, HTTP status, retryable, what to do ---- */
#define LOOM_ERRORS(X)                                                                                               \
    X(INVALID_ARGUMENT, "invalid_argument", 400, false, "An argument is not what was expected")                      \
    X(INVALID_JSON, "invalid_json", 400, false, "The text is not JSON that Loom accepts")                            \
    X(INVALID_INPUT, "invalid_input", 400, false, "The input does not match the schema")                             \
    X(INVALID_OUTPUT, "invalid_output", 422, false, "The guest's output is not JSON or does not match the schema")   \
    X(INVALID_DOCUMENT, "invalid_document", 400, false, "A definition or workflow document is wrong")                \
    X(INVALID_MODULE, "invalid_module", 400, false, "The file is not a WASM module that Loom can run")               \
    X(UNAUTHORIZED, "unauthorized", 401, false, "No valid API key was given")                                        \
    X(FORBIDDEN, "forbidden", 403, false, "Not allowed")                                                             \
    X(NOT_FOUND, "not_found", 404, false, "There is no such thing")                                                  \
    X(METHOD_NOT_ALLOWED, "method_not_allowed", 405, false, "The route does not know this method")                   \
    X(EXISTS, "exists", 409, false, "It exists already")                                                             \
    X(CONFLICT, "conflict", 409, false, "The state of the thing does not allow this")                                \
    X(IDEMPOTENCY_CONFLICT, "idempotency_conflict", 409, false, "The message id was used with another input")        \
    X(DEADLOCK, "deadlock", 409, false, "The call would wait for itself")                                            \
    X(TOO_LARGE, "too_large", 413, false, "More bytes than Loom accepts")                                            \
    X(UNSUPPORTED_MEDIA, "unsupported_media_type", 415, false, "The content type is not what the route takes")       \
    X(FAILED, "failed", 422, false, "The guest failed")                                                              \
    X(CANCELLED, "cancelled", 422, false, "It was cancelled")                                                        \
    X(EXPIRED, "expired", 422, false, "The message's time to live ended before it was handled")                      \
    X(TRAP, "trap", 422, false, "The guest trapped")                                                                 \
    X(BAD_POINTER, "bad_pointer", 422, false, "The guest passed a pointer outside its memory")                       \
    X(UNKNOWN_OP, "unknown_op", 422, false, "The guest asked for an op that it does not have")                       \
    X(LIMIT_TIME, "limit_time", 422, false, "The guest used more CPU time than its limit")                           \
    X(TIMEOUT, "timeout", 422, true, "It took longer than its limit")                                                \
    X(INTERRUPTED, "interrupted", 422, true, "The worker stopped while it ran")                                      \
    X(NETWORK, "network", 422, true, "The remote side could not be reached")                                         \
    X(DENIED, "denied", 422, false, "The capability is missing")                                                     \
    X(MISMATCH, "replay_mismatch", 409, false, "The program does not do what its journal says")                      \
    X(MAILBOX_FULL, "mailbox_full", 429, true, "The actor's mailbox is full")                                        \
    X(INTERNAL, "internal", 500, false, "A fault of Loom")                                                           \
    X(DAMAGED, "damaged", 500, false, "Stored bytes do not match their checksum")                                    \
    X(BUSY, "busy", 503, true, "Loom has more work than it can hold")                                                \
    X(NOT_COMMITTED, "not_committed", 503, true, "The store refused the batch; repeating with the same key is safe") \
    X(STOPPING, "stopping", 503, true, "Loom is shutting down")                                                      \
    X(STORE, "store", 500, true, "The store cannot be read or written")                                              \
    X(DISK_FULL, "disk_full", 507, true, "The disk is full; free space, Loom goes on by itself")

enum loom_error_code {
    LOOM_OK = 0,
#define X(id, name, status, retryable, title) LOOM_E_##id##_N,
    LOOM_ERRORS(X)
#undef X
};
enum {
#define X(id, name, status, retryable, title) LOOM_E_##id = -(int)LOOM_E_##id##_N,
    LOOM_ERRORS(X)
#undef X
};

struct error_kind {
    const char *name, *title;
    int status;
    bool retryable;
};
/* An error with its details. `code` is a table name or a guest's own word. */
struct error {
    char code[64];
    char message[1024];
    bool retryable;
};
/* Fills e (may be NULL) from the table; returns code. */
int error_set(struct error *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
const struct error_kind *error_kind(struct str name);    /* of a guest's own word: 422, "The guest failed" */
void error_json(const struct error *e, struct buf *out); /* {"code","message","retryable"} */

/* ---- JSON: strict I-JSON reading, one way of writing ---- */
enum { JSON_DEPTH_MAX = 100 };
/* Parses and checks: UTF-8, no lone surrogates, no duplicate names, depth ≤ 100, numbers within double (integers
 * beyond 64 bits keep their text). NULL on failure with INVALID_JSON naming byte and reason. Free: yyjson_doc_free. */
yyjson_doc *json_parse(struct str text, struct error *err);
/* Minified text. False, and nothing written, for what JSON cannot hold: NaN, strings that are not UTF-8. What came from
 * json_parse can always be written. */
bool json_write(const yyjson_val *v, struct buf *out);
bool json_write_mut(const yyjson_mut_val *v, struct buf *out);
int json_normalize(struct str text, struct buf *out, struct error *err); /* parse + write; 0 or LOOM_E_INVALID_JSON */
/* Fields of an object with a default when absent or of another type. */
struct str json_str(yyjson_val *obj, const char *key); /* STR_NONE when absent */
int64_t json_int(yyjson_val *obj, const char *key, int64_t absent);
bool json_bool(yyjson_val *obj, const char *key, bool absent);
/* Text that Loom itself wrote, read without the checks; lives in the arena. NULL when it is not JSON. */
yyjson_val *json_in(struct arena *a, struct str text);
struct str json_text_of(yyjson_val *v, struct arena *a); /* minified text in the arena; STR_NONE for NULL */

/* RFC 6902. Applies `patch` (an array) to `doc` wholly or not at all; appends the inverse patch (an array, JSON text)
 * to `inverse` when that is not NULL. Errors: INVALID_ARGUMENT naming the operation's index and path. */
int patch_apply(yyjson_mut_doc *doc, yyjson_val *patch, struct buf *inverse, struct error *err);

/* ---- hashes ---- */
void sha256(struct str s, uint8_t out[32]);
void hex_encode(const uint8_t *p, size_t n, char *out /* 2n + 1 bytes */);
void sha256_hex(struct str s, char out[65]);
uint64_t hash64(struct str s, uint64_t seed); /* not for security: tables and row checksums */

/* A fault that the simulator's build plants on demand, to see that it is found (test/sim/sabotage.h); here it is never. */
#ifndef SABOTAGE
#define SABOTAGE(name) false
#endif

/* ---- env: the one door to time, randomness and threads; the simulator brings its own ---- */
struct env {
    int64_t (*now_ms)(struct env *);                   /* wall clock, ms since 1970 */
    int64_t (*mono_ms)(struct env *);                  /* monotonic */
    int64_t (*mono_us)(struct env *);                  /* the same in microseconds */
    void (*random)(struct env *, void *out, size_t n); /* secure */
    /* Starts a thread. False: there are none here, and who wanted one does the work himself, step by step. */
    bool (*thread)(struct env *, unsigned long *id, void *(*fn)(void *), void *arg);
    int (*pause)(unsigned us); /* sleeps */
    void (*die)(int code);     /* ends the process at once; where it returns, nothing may leave any more */
    /* Sends a request, checked, its headers (a curl_slist) with secrets in place; net_answer comes later. NULL: curl does. */
    void (*send)(struct env *, uint64_t id, struct str url, void *headers, struct str body);
};
struct env *env_system(void);

#endif
