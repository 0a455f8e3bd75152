/* arena.c: allocations freed together.
 *
 * Chunks double from 512 bytes to 64 KiB, so that a small actor stays small and a large one needs few. What does not
 * fit the next chunk gets one of its own size.
 */
#include "base/base.h"

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_MIN = 512, CHUNK_MAX = 64 * 1024 };

struct arena_chunk {
    struct arena_chunk *next;
    size_t used, cap;
    alignas(16) char data[];
};

static struct arena_chunk *chunk_new(struct arena *a, size_t n) {
    size_t size = a->head ? 2 * (a->head->cap + sizeof *a->head) : CHUNK_MIN;
    size = size > CHUNK_MAX ? CHUNK_MAX : size;
    if (size < n + sizeof *a->head) size = n + sizeof *a->head;
    struct arena_chunk *c = mem_grow(NULL, size);
    *c = (struct arena_chunk){.next = a->head, .cap = size - sizeof *c};
    a->head = c;
    a->bytes += size;
    return c;
}

void *arena_alloc(struct arena *a, size_t n) {
    n = (n + 15) & ~(size_t)15;
    struct arena_chunk *c = a->head;
    if (!c || c->cap - c->used < n) c = chunk_new(a, n);
    c->used += n;
    return memset(c->data + c->used - n, 0, n);
}

struct str arena_dup(struct arena *a, struct str s) {
    if (!s.p) return s;
    char *p = arena_alloc(a, s.n + 1);
    memcpy(p, s.p, s.n);
    return (struct str){p, s.n};
}

struct str arena_json(struct arena *a, const char *fmt, ...) {
    struct buf b = {0};
    va_list ap;
    va_start(ap, fmt);
    buf_json_v(&b, fmt, ap);
    va_end(ap);
    struct str s = arena_dup(a, buf_view(&b));
    buf_free(&b);
    return s;
}

void arena_reset(struct arena *a) {
    struct arena_chunk *keep = a->head;
    if (!keep) return;
    struct arena older = {.head = keep->next};
    arena_free(&older);
    *keep = (struct arena_chunk){.cap = keep->cap};
    *a = (struct arena){.head = keep, .bytes = keep->cap + sizeof *keep};
}

void arena_free(struct arena *a) {
    for (struct arena_chunk *c = a->head, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    *a = (struct arena){0};
}
