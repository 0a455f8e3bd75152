/* stream.c: committed journal entries for those who watch.
 *
 * The stream of one actor is its journal: ids are entry numbers, and a subscriber gets the recorded entries first. The
 * stream of all actors has ids of its own and remembers the last RING events of this process.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

enum { RING = 10000 };

struct stream_event {
    char *text; /* {"actor","cursor","entry"} */
    size_t n;
    char *full;
    int64_t cursor;
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
    if (full.n <= ns || memcmp(full.p, s->ns, ns) != 0 || full.p[ns] != '/')
        return false;
    return !s->actor || str_eq((struct str){full.p + ns + 1, full.n - ns - 1}, str_of(s->actor));
}

static void give(struct subscriber *s, int64_t id, struct str full, struct str text) {
    if (id <= s->last || !wants(s, full))
        return;
    size_t ns = strlen(s->ns);
    struct loom_event e = {id, {full.p + ns + 1, full.n - ns - 1}, {s->ns, ns}, {text.p, text.n}};
    s->last = id;
    s->fn(s->ctx, &e);
}

static void publish(struct loom *l, struct str full, int64_t cursor, struct str text) {
    struct stream_event *slot = &l->ring[l->ring_next % RING];
    free(slot->text);
    free(slot->full);
    *slot = (struct stream_event){str_dup(text), text.n, str_dup(full), cursor};
    for (struct subscriber *s = l->subscribers; s; s = s->next)
        give(s, s->actor ? cursor : (int64_t)l->ring_next, full, text);
    l->ring_next++;
}

/* Splits a batch's entries of one actor into events. */
static void publish_entries(struct loom *l, struct str full, int64_t number, struct str entries) {
    yyjson_doc *doc = yyjson_read(entries.p, entries.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *entry;
    size_t i, n;
    const char *name = memchr(full.p, '/', full.n);
    pthread_mutex_lock(&l->stream_lock);
    yyjson_arr_foreach(yyjson_doc_get_root(doc), i, n, entry) {
        struct buf text = {0};
        buf_json(&text, "{\"actor\":%q,\"cursor\":%d,\"entry\":", (struct str){name + 1, full.n - (size_t)(name + 1 - full.p)}, number + (int64_t)i);
        json_write(entry, &text);
        buf_char(&text, '}');
        publish(l, full, number + (int64_t)i, buf_view(&text));
        buf_free(&text);
    }
    pthread_mutex_unlock(&l->stream_lock);
    yyjson_doc_free(doc);
}

struct tail {
    char *full;
    int64_t first;
    struct buf entries;
};

static void tail_release(struct loom *l, void *ctx, bool committed) {
    struct tail *t = ctx;
    if (committed)
        publish_entries(l, str_of(t->full), t->first, buf_view(&t->entries));
    buf_free(&t->entries);
    free(t->full);
    free(t);
}

void stream_publish(struct loom *l, struct resident *r) {
    if (!l->watched || r->a->tail.n == 0)
        return;
    struct tail *t = mem_alloc(sizeof *t);
    *t = (struct tail){.full = str_dup(r->a->full), .first = (int64_t)r->a->tail_first};
    buf_json(&t->entries, "[%j]", buf_view(&r->a->tail));
    effect_add(l, tail_release, t);
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
    yyjson_doc *doc = yyjson_read(value.p, value.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *entry;
    size_t i, n;
    yyjson_arr_foreach(yyjson_obj_get(yyjson_doc_get_root(doc), "entries"), i, n, entry) {
        struct buf text = {0};
        buf_json(&text, "{\"actor\":%z,\"cursor\":%d,\"entry\":", s->actor, number);
        json_write(entry, &text);
        buf_char(&text, '}');
        give(s, number, (struct str){key.p, key.n - 17}, buf_view(&text));
        buf_free(&text);
        number++;
    }
    yyjson_doc_free(doc);
    return true;
}

/* Only what the store holds: the open batch's entries come live. */
static void catch_up(struct loom *l, struct subscriber *s) {
    struct buf full = {0}, from = {0}, to = {0};
    struct error err;
    if (s->actor) {
        buf_json(&full, "%s/%s", s->ns, s->actor);
        journal_key(buf_view(&full), 0, &from);
        journal_key(buf_view(&full), UINT64_MAX, &to);
        if (l->store->ops->scan(l->store, ROW_JOURNAL, buf_view(&from), buf_view(&to), give_recorded, s, &err) < 0)
            log_event(LOG_ERROR, "stream cannot read the journal", "\"detail\":%z", err.message);
    } else {
        uint64_t first = l->ring_next > RING ? l->ring_next - RING : 0;
        for (uint64_t id = first; id < l->ring_next; id++) {
            struct stream_event *e = &l->ring[id % RING];
            if (e->text)
                give(s, (int64_t)id, str_of(e->full), (struct str){e->text, e->n});
        }
    }
    buf_free(&full);
    buf_free(&from);
    buf_free(&to);
}

static void subscribe(struct loom *l, struct item *item) {
    struct subscription *sub = (struct subscription *)item;
    bool late = !l->watched && l->flight; /* that batch's entries are not being published */
    if (late) {
        loom_post(l, item);
        return;
    }
    l->watched = true;
    pthread_mutex_lock(&l->stream_lock);
    sub->s->last = sub->from >= 0 ? sub->from : -1;
    if (sub->from >= 0)
        catch_up(l, sub->s);
    sub->s->next = l->subscribers;
    l->subscribers = sub->s;
    pthread_mutex_unlock(&l->stream_lock);
    free(sub);
}

uint64_t loom_subscribe(struct loom *l, struct loom_str ns, struct loom_str actor, int64_t from, loom_event_fn fn, void *ctx) {
    struct subscription *sub = mem_alloc(sizeof *sub);
    struct subscriber *s = mem_alloc(sizeof *s);
    *s = (struct subscriber){.ns = ns.p ? str_dup((struct str){ns.p, ns.n}) : str_dup(STR("default")), .actor = actor.p ? str_dup((struct str){actor.p, actor.n}) : NULL, .fn = fn, .ctx = ctx};
    pthread_mutex_lock(&l->stream_lock);
    uint64_t handle = s->handle = ++l->subscriber_ids;
    pthread_mutex_unlock(&l->stream_lock);
    *sub = (struct subscription){.item.fn = subscribe, .s = s, .from = from};
    loom_post(l, &sub->item);
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
    struct leaving leaving = {.item.fn = leave, .handle = handle, .lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};
    loom_post(l, &leaving.item);
    pthread_mutex_lock(&leaving.lock);
    while (!leaving.left)
        pthread_cond_wait(&leaving.done, &leaving.lock);
    pthread_mutex_unlock(&leaving.lock);
}

void stream_free(struct loom *l) {
    for (struct subscriber *s = l->subscribers, *next; s; s = next) {
        next = s->next;
        subscriber_free(s);
    }
    for (size_t i = 0; i < RING; i++) {
        free(l->ring[i].text);
        free(l->ring[i].full);
    }
    free(l->ring);
    pthread_mutex_destroy(&l->stream_lock);
}
