/* stream.c: committed journal entries for those who watch.
 *
 * The stream of one actor is its journal: ids are entry numbers, and a subscriber gets the recorded entries first. The
 * stream of all actors has ids of its own and remembers the last RING events of this process.
 */
#include "operate/operate.h"

#include <stdlib.h>
#include <string.h>

enum { RING = 10000 };

struct stream_event {
    struct arena mem;
    struct str full, text; /* {"actor","cursor","entry"} */
};

struct subscriber {
    struct subscriber *next;
    uint64_t handle;
    char *ns, *actor; /* NULL: all */
    int64_t last;     /* id of the last event it got */
    loom_event_fn fn;
    void *ctx;
};

void stream_open(struct loom *l) {
    pthread_mutex_init(&l->stream_lock, NULL);
    l->ring = mem_alloc(RING * sizeof *l->ring);
    l->ring_next = (uint64_t)loom_now(l) * 1000; /* so that ids rise over restarts */
}

static bool wants(const struct subscriber *s, struct str full) {
    size_t ns = strlen(s->ns);
    if (full.n <= ns || memcmp(full.p, s->ns, ns) != 0 || full.p[ns] != '/') return false;
    return !s->actor || str_eq((struct str){full.p + ns + 1, full.n - ns - 1}, str_of(s->actor));
}

static void give(struct subscriber *s, int64_t id, struct str full, struct str text) {
    if (id <= s->last || !wants(s, full)) return;
    size_t ns = strlen(s->ns);
    struct loom_event e = {id, {full.p + ns + 1, full.n - ns - 1}, {s->ns, ns}, {text.p, text.n}};
    s->last = id;
    s->fn(s->ctx, &e);
}

static struct str event_text(struct arena *mem, struct str name, int64_t cursor, yyjson_val *entry) {
    return arena_json(mem, "{\"actor\":%q,\"cursor\":%d,\"entry\":%v}", name, cursor, entry);
}

static void publish(struct loom *l, struct str full, int64_t cursor, struct str text) {
    struct stream_event *slot = &l->ring[l->ring_next % RING];
    arena_free(&slot->mem);
    slot->full = arena_dup(&slot->mem, full);
    slot->text = arena_dup(&slot->mem, text);
    for (struct subscriber *s = l->subscribers; s; s = s->next)
        give(s, s->actor ? cursor : (int64_t)l->ring_next, full, text);
    l->ring_next++;
}

/* One batch's entries of one actor. */
struct tail {
    struct item item;
    struct str full, row;
    int64_t first;
};

static void tail_release(struct loom *l, struct item *item) {
    struct tail *t = (struct tail *)item;
    struct arena *mem = &item->mem;
    const char *slash = memchr(t->full.p, '/', t->full.n);
    struct str name = {slash + 1, t->full.n - (size_t)(slash + 1 - t->full.p)};
    yyjson_val *entry;
    size_t i, n;
    pthread_mutex_lock(&l->stream_lock);
    if (item->committed)
        yyjson_arr_foreach(yyjson_obj_get(json_in(mem, t->row), "entries"), i, n, entry)
            publish(l, t->full, t->first + (int64_t)i, event_text(mem, name, t->first + (int64_t)i, entry));
    pthread_mutex_unlock(&l->stream_lock);
    item_free(item);
}

static void publish_tail(struct loom *l, struct resident *r) {
    struct tail *t = item_new(sizeof *t);
    t->full = arena_dup(&t->item.mem, r->a->full);
    t->row = arena_dup(&t->item.mem, buf_view(&r->a->tail));
    t->first = (int64_t)r->a->row;
    effect_add(l, &t->item, tail_release);
}

/* ---- subscribing: on the loop, so that no entry falls between the recorded and the live ones ---- */

struct subscription {
    struct item item;
    struct subscriber *s;
    int64_t from;
};

static bool give_recorded(void *ctx, struct str key, struct str value) {
    struct subscriber *s = ctx;
    int64_t number = (int64_t)journal_key_number(key);
    struct arena mem = {0};
    yyjson_val *entry;
    size_t i, n;
    yyjson_arr_foreach(yyjson_obj_get(json_in(&mem, value), "entries"), i, n, entry)
        give(s, number + (int64_t)i, (struct str){key.p, key.n - 17},
             event_text(&mem, str_of(s->actor), number + (int64_t)i, entry));
    arena_free(&mem);
    return true;
}

/* Only what the store holds: the open batch's entries come live. */
static void catch_up(struct loom *l, struct subscriber *s) {
    struct str full = say(l, "%s/%s", s->ns, s->actor ? s->actor : "");
    struct error err;
    for (uint64_t id = l->ring_next > RING ? l->ring_next - RING : 0; !s->actor && id < l->ring_next; id++) {
        struct stream_event *e = &l->ring[id % RING];
        if (e->text.p) give(s, (int64_t)id, e->full, e->text);
    }
    if (s->actor && rows_scan(l, ROW_JOURNAL, journal_key(&l->scratch, full, 0),
                              journal_key(&l->scratch, full, UINT64_MAX), give_recorded, s, &err) < 0)
        log_event(LOG_ERROR, "stream cannot read the journal", "\"detail\":%z", err.message);
}

static void subscribe(struct loom *l, struct item *item) {
    struct subscription *sub = (struct subscription *)item;
    l->settle = l->flights[0]; /* what is read must be on the disk; and those entries are perhaps not being published */
    if (l->settle) {
        loom_post(l, item, subscribe);
        return;
    }
    l->publish = publish_tail;
    pthread_mutex_lock(&l->stream_lock);
    sub->s->last = sub->from >= 0 ? sub->from : -1;
    if (sub->from >= 0) catch_up(l, sub->s);
    sub->s->next = l->subscribers;
    l->subscribers = sub->s;
    pthread_mutex_unlock(&l->stream_lock);
    item_free(item);
}

uint64_t loom_subscribe(struct loom *l, struct loom_str ns, struct loom_str actor, int64_t from, loom_event_fn fn,
                        void *ctx) {
    struct subscription *sub = item_new(sizeof *sub);
    struct subscriber *s = mem_alloc(sizeof *s);
    *s = (struct subscriber){.ns = ns.p ? str_dup((struct str){ns.p, ns.n}) : str_dup(STR("default")),
                             .actor = str_dup((struct str){actor.p, actor.n}),
                             .fn = fn,
                             .ctx = ctx};
    pthread_mutex_lock(&l->stream_lock);
    uint64_t handle = s->handle = ++l->subscriber_ids;
    pthread_mutex_unlock(&l->stream_lock);
    sub->s = s;
    sub->from = from;
    loom_post(l, &sub->item, subscribe);
    return handle;
}

static void subscriber_free(struct subscriber *s) {
    free(s->ns);
    free(s->actor);
    free(s);
}

struct leaving {
    struct item item;
    uint64_t handle;
    pthread_mutex_t lock;
    pthread_cond_t done;
    bool left;
};

static void leave(struct loom *l, struct item *item) {
    struct leaving *leaving = (struct leaving *)item;
    pthread_mutex_lock(&l->stream_lock);
    for (struct subscriber **s = &l->subscribers; *s; s = &(*s)->next)
        if ((*s)->handle == leaving->handle) {
            struct subscriber *gone = *s;
            *s = gone->next;
            subscriber_free(gone);
            break;
        }
    pthread_mutex_unlock(&l->stream_lock);
    pthread_mutex_lock(&leaving->lock);
    leaving->left = true;
    pthread_cond_signal(&leaving->done);
    pthread_mutex_unlock(&leaving->lock);
}

void loom_unsubscribe(struct loom *l, uint64_t handle) {
    struct leaving leaving = {.handle = handle, .lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};
    loom_post(l, &leaving.item, leave);
    pthread_mutex_lock(&leaving.lock);
    while (!leaving.left) pthread_cond_wait(&leaving.done, &leaving.lock);
    pthread_mutex_unlock(&leaving.lock);
}

void stream_free(struct loom *l) {
    for (struct subscriber *s = l->subscribers, *next; s; s = next) {
        next = s->next;
        subscriber_free(s);
    }
    for (size_t i = 0; i < RING; i++) arena_free(&l->ring[i].mem);
    free(l->ring);
    pthread_mutex_destroy(&l->stream_lock);
}
