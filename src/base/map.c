/* map.c: a hash table from str to pointer: open addressing, linear probing, at most three quarters full.
 *
 * A slot is empty when its value is NULL, so values are never NULL. Removing shifts later slots back; there are no
 * tombstones.
 */
#include "base/base.h"

#include <assert.h>
#include <stdlib.h>

uint64_t map_seed;

/* The slot that holds key, or the empty one where it belongs. */
static struct map_slot *slot_of(const struct map *m, struct str key, uint64_t hash) {
    size_t mask = m->cap - 1, i = hash & mask;
    while (m->slots[i].value && !(m->slots[i].hash == hash && str_eq(m->slots[i].key, key))) i = (i + 1) & mask;
    return &m->slots[i];
}

void *map_get(const struct map *m, struct str key) {
    return m->count ? slot_of(m, key, hash64(key, m->seed))->value : NULL;
}

static void grow(struct map *m) {
    struct map old = *m;
    m->seed = old.cap ? old.seed : map_seed;
    m->cap = old.cap ? old.cap * 2 : 8;
    m->slots = mem_alloc(m->cap * sizeof *m->slots);
    for (size_t i = 0; i < old.cap; i++)
        if (old.slots[i].value) *slot_of(m, old.slots[i].key, old.slots[i].hash) = old.slots[i];
    free(old.slots);
}

void map_put(struct map *m, struct str key, void *value) {
    assert(value);
    if (4 * (m->count + 1) > 3 * m->cap) grow(m);
    uint64_t hash = hash64(key, m->seed);
    struct map_slot *s = slot_of(m, key, hash);
    m->count += !s->value;
    *s = (struct map_slot){key, value, hash};
}

void *map_remove(struct map *m, struct str key) {
    struct map_slot *hole = m->count ? slot_of(m, key, hash64(key, m->seed)) : NULL;
    void *value = hole ? hole->value : NULL;
    if (!value) return NULL;
    size_t mask = m->cap - 1, at = (size_t)(hole - m->slots);
    for (size_t i = (at + 1) & mask; m->slots[i].value; i = (i + 1) & mask)
        if (((i - m->slots[i].hash) & mask) >= ((i - at) & mask)) {
            m->slots[at] = m->slots[i];
            at = i;
        }
    m->slots[at].value = NULL;
    m->count--;
    return value;
}

void map_free(struct map *m) {
    free(m->slots);
    *m = (struct map){0};
}

void *map_next(const struct map *m, size_t *i) {
    while (*i < m->cap) {
        void *value = m->slots[(*i)++].value;
        if (value) return value;
    }
    return NULL;
}
