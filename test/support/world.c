/* world.c: see world.h. */
#include "support/world.h"
#include "support/array_store.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct world *current; /* die() is told nothing else */

/* ---- dice and trace ---- */

static uint64_t roll64(struct world *w) { /* splitmix64 */
    uint64_t z = w->dice += 0x9E3779B97F4A7C15U;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

uint64_t world_roll(struct world *w, uint64_t n) {
    return roll64(w) % n;
}

void world_mark(struct world *w, struct str what) {
    w->trace = hash64(what, w->trace);
}

/* ---- env ---- */

static struct world *of(struct env *env) {
    return (struct world *)env;
}

/* Time passes a little whenever someone looks. */
static int64_t mono_us(struct env *env) {
    return of(env)->mono_us += (int64_t)world_roll(of(env), 40);
}

static int64_t mono_ms(struct env *env) {
    return of(env)->mono_us / 1000;
}

static int64_t now_ms(struct env *env) {
    return of(env)->mono_us / 1000 + of(env)->wall_ms;
}

static void dice(struct env *env, void *out, size_t n) {
    for (char *p = out; n > 0;) {
        uint64_t word = roll64(of(env));
        size_t part = n < sizeof word ? n : sizeof word;
        memcpy(p, &word, part);
        p += part;
        n -= part;
    }
}

static bool no_thread(struct env *env, unsigned long *id, void *(*fn)(void *), void *arg) {
    (void)env, (void)id, (void)fn, (void)arg;
    return false;
}

static int pause_us(unsigned us) {
    current->mono_us += us;
    return 0;
}

static void die(int code) {
    (void)code;
    current->dead = true;
}

/* ---- network ---- */

struct world_answer {
    uint64_t id;
    int64_t due_ms;
    bool ok;
    struct str json; /* owned */
};

static struct str header(const struct curl_slist *lines, const char *name) {
    size_t n = strlen(name);
    for (; lines; lines = lines->next)
        if (strncasecmp(lines->data, name, n) == 0 && lines->data[n] == ':') return str_of(lines->data + n + 2);
    return STR_NONE;
}

static void send_request(struct env *env, uint64_t id, struct str url, void *headers, struct str body) {
    struct world *w = of(env);
    if (w->dead) return;
    world_mark(w, url);
    world_mark(w, body);
    if (w->sent) w->sent(w, id, url, header(headers, "Idempotency-Key"), header(headers, "Authorization"), body);
}

void world_answer(struct world *w, uint64_t id, int64_t after_ms, bool ok, struct str json) {
    w->answers = mem_grow(w->answers, (w->answer_count + 1) * sizeof *w->answers);
    w->answers[w->answer_count++] = (struct world_answer){
        id, w->mono_us / 1000 + after_ms, ok, {str_dup(json), json.n}};
}

static bool answer_one(struct world *w) {
    net_step(w->l->net);
    size_t due = 0;
    for (size_t i = 0; i < w->answer_count; i++) due += w->answers[i].due_ms <= w->mono_us / 1000;
    if (due == 0) return false;
    size_t pick = world_roll(w, due), i = 0;
    while (w->answers[i].due_ms > w->mono_us / 1000 || pick-- > 0) i++;
    struct world_answer a = w->answers[i];
    w->answers[i] = w->answers[--w->answer_count];
    net_answer(w->l->net, a.id, a.ok, a.json);
    free((char *)(uintptr_t)a.json.p);
    return true;
}

static void drop_answers(struct world *w) {
    while (w->answer_count > 0) free((char *)(uintptr_t)w->answers[--w->answer_count].json.p);
}

/* ---- the store: faults before another one ---- */

struct faulty {
    struct store base;
    struct world *w;
    struct store *under;
    const struct batch *written[2]; /* and not synced yet */
};

static struct faulty *faulty(struct store *s) {
    return (struct faulty *)s;
}

static int refuse(struct world *w, struct error *err) {
    return error_set(err, LOOM_E_STORE, "the world refuses it%s", w->dead ? ": the process is dead" : "");
}

static enum commit_outcome apply(struct faulty *f, const struct batch *b, struct error *err) {
    enum commit_outcome outcome = f->under->ops->commit(f->under, b, err);
    if (outcome != COMMIT_OK) return outcome;
    for (size_t i = 0; i < b->count; i++) {
        world_mark(f->w, b->rows[i].key);
        world_mark(f->w, b->rows[i].value);
    }
    f->written[f->written[0] != NULL] = b;
    return COMMIT_OK;
}

static enum commit_outcome commit(struct store *s, const struct batch *b, struct error *err) {
    static const enum commit_outcome outcomes[] = {COMMIT_OK,     COMMIT_FAILED, COMMIT_FULL, COMMIT_FAILED,
                                                   COMMIT_FAILED, COMMIT_FATAL,  COMMIT_FATAL};
    struct faulty *f = faulty(s);
    struct world *w = f->w;
    refuse(w, err);
    if (w->dead) return COMMIT_FAILED;
    w->commits++;
    enum fault fault = w->fault ? w->fault(w) : FAULT_NONE;
    if (fault == FAULT_NONE) return apply(f, b, err);
    if (fault == FAULT_KILLED_BY || fault == FAULT_SYNC_KEPT) apply(f, b, err);
    w->dead = fault == FAULT_KILLED || fault == FAULT_KILLED_BY;
    return outcomes[fault];
}

static enum commit_outcome sync(struct store *s, struct error *err) {
    struct faulty *f = faulty(s);
    refuse(f->w, err);
    enum commit_outcome outcome = f->w->dead ? COMMIT_FAILED : f->under->ops->sync(f->under, err);
    for (int i = 0; i < 2 && outcome == COMMIT_OK; i++) {
        if (f->written[i] && f->w->committed) f->w->committed(f->w, f->written[i]);
        f->written[i] = NULL;
    }
    return outcome;
}

static int claim(struct store *s, struct str writer, uint64_t *term, uint64_t *seq, struct error *err) {
    int rc = faulty(s)->under->ops->claim(faulty(s)->under, writer, term, seq, err);
    if (rc >= 0) faulty(s)->w->term = *term;
    return rc;
}

static int scan(struct store *s, enum row_kind kind, struct str from, struct str to, row_fn fn, void *ctx,
                struct error *err) {
    return faulty(s)->under->ops->scan(faulty(s)->under, kind, from, to, fn, ctx, err);
}

static void close_store(struct store *s) {
    struct world *w = faulty(s)->w;
    if (w->closes) w->closes(w, faulty(s)->under);
    faulty(s)->under->ops->close(faulty(s)->under);
    free(s);
}

static struct store *faulty_open(struct world *w, struct error *err) {
    static const struct store_ops ops = {claim, commit, sync, scan, close_store};
    struct store *under = w->under(w, err);
    if (!under) return NULL;
    struct faulty *f = mem_alloc(sizeof *f);
    *f = (struct faulty){.base = {&ops}, .w = w, .under = under};
    return &f->base;
}

struct store *world_array(struct world *w, struct error *err) {
    (void)err;
    return store_array_open(w->ctx);
}

/* Blobs outlive the engines: the same content is the same blob in every world. */
struct lasting {
    struct blob_store base;
    struct blob_store *under;
};

static int blob_put(struct blob_store *s, struct str bytes, char hex[65], struct error *err) {
    struct blob_store *under = ((struct lasting *)s)->under;
    return under->ops->put(under, bytes, hex, err);
}

static int blob_get(struct blob_store *s, const char *hex, struct buf *out, struct error *err) {
    struct blob_store *under = ((struct lasting *)s)->under;
    return under->ops->get(under, hex, out, err);
}

static void blob_close(struct blob_store *s) {
    free(s);
}

static struct blob_store *lasting_open(struct blob_store *under) {
    static const struct blob_ops ops = {blob_put, blob_get, blob_close};
    struct lasting *b = mem_alloc(sizeof *b);
    *b = (struct lasting){{&ops}, under};
    return &b->base;
}

/* ---- life and death ---- */

void world_init(struct world *w, uint64_t seed) {
    *w = (struct world){
        .env = {now_ms, mono_ms, mono_us, dice, no_thread, pause_us, die, send_request}, .dice = seed, .trace = seed};
    w->mono_us = 1000000000;
    w->wall_ms = 1700000000000;
    map_seed = 0; /* so that maps are walked in the same order each time */
    current = w;
}

bool world_try(struct world *w, struct error *err) {
    w->dead = false;
    struct store *store = faulty_open(w, err);
    drop_answers(w); /* to an engine that was */
    w->opened++;
    w->l = NULL;
    if (!store) return false;
    struct loom *l = loom_new(&w->config);
    l->env = &w->env;
    l->store = store;
    l->blobs = lasting_open(w->blobs);
    l->engine = w->engine;
    l->name = 1;
    w->l = loom_start(l, err);
    if (w->l && w->dead) world_crash(w);
    return w->l;
}

void world_open(struct world *w) {
    struct error err = {0};
    for (int i = 0; i < 100; i++)
        if (world_try(w, &err)) return;
    fprintf(stderr, "the engine does not open: %s\n", err.message);
    abort();
}

static bool sync_one(struct world *w) {
    if (!w->written[0]) return false;
    size_t pick = w->written[1] ? world_roll(w, 2) : 0;
    batch_sync(w->l, w->written[pick]);
    if (pick == 0) w->written[0] = w->written[1];
    w->written[1] = NULL;
    return true;
}

static bool write_one(struct world *w) {
    struct pending *p = w->written[1] ? NULL : batch_write(w->l, false);
    if (p) w->written[w->written[0] != NULL] = p;
    return p;
}

void world_close(struct world *w) {
    while (sync_one(w)) continue;
    loom_close(w->l);
    w->l = NULL;
}

void world_crash(struct world *w) {
    w->dead = true;
    loom_abandon(w->l);
    w->l = NULL;
    w->written[0] = w->written[1] = NULL;
}

struct loom *world_zombie(struct world *w) {
    struct loom *l = w->l;
    while (sync_one(w)) continue;
    w->l = NULL;
    return l;
}

void world_free(struct world *w) {
    drop_answers(w);
    free(w->answers);
    current = NULL;
}

/* ---- what happens next ---- */

static void pass(struct world *w) {
    loom_pass(w->l);
    w->sleeps_until = w->mono_us + loom_rests(w->l) * 1000;
}

static void jump(struct world *w) {
    int64_t ms = loom_rests(w->l), now = w->mono_us / 1000;
    for (size_t i = 0; i < w->answer_count; i++)
        if (w->answers[i].due_ms - now < ms) ms = w->answers[i].due_ms - now;
    if (w->jump_max_ms && ms > w->jump_max_ms) ms = w->jump_max_ms;
    w->mono_us += (ms > 0 ? ms : 1) * 1000;
    pass(w);
}

static bool one_of(struct world *w, uint64_t what) {
    switch (what) {
    case 0:
        if (loom_rests(w->l) > 0 && w->mono_us < w->sleeps_until) return false;
        pass(w);
        return true;
    case 1: return write_one(w);
    case 3: return sync_one(w);
    case 2: return activity_step(w->l->pool, false);
    case 4: return w->other && w->other(w);
    default: return answer_one(w);
    }
}

bool world_step(struct world *w) {
    uint64_t first = world_roll(w, 6);
    bool done = false;
    w->mono_us += (int64_t)world_roll(w, 300);
    for (uint64_t i = 0; i < 6 && !done; i++) done = one_of(w, (first + i) % 6);
    if (!done) jump(w);
    if (w->dead) world_crash(w);
    return done;
}
