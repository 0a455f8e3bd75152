/* guest_yyjson.h: yyjson in a guest, for those who want a tree of JSON values. Link libguest.a and wasi-libc (-lc).
 *
 *     yyjson_alc alc = loom_yyjson_alc();
 *     yyjson_doc *doc = yyjson_read_opts((char *)input.p, input.n, 0, &alc, NULL);
 *
 * All memory comes from loom_alloc(); what yyjson frees is kept until the turn ends. Never pass a NULL allocator: that
 * would be malloc, whose memory would overlap.
 */
#ifndef LOOM_GUEST_YYJSON_H
#define LOOM_GUEST_YYJSON_H

#include <loom/guest.h>
#include <yyjson.h>

static inline void *loom_yyjson_malloc(void *ctx, size_t n) {
    (void)ctx;
    return loom_alloc(n);
}
static inline void *loom_yyjson_realloc(void *ctx, void *p, size_t old_size, size_t n) {
    (void)ctx;
    return n <= old_size ? p : __builtin_memcpy(loom_alloc(n), p, old_size);
}
static inline void loom_yyjson_free(void *ctx, void *p) {
    (void)ctx, (void)p;
}
static inline yyjson_alc loom_yyjson_alc(void) {
    return (yyjson_alc){loom_yyjson_malloc, loom_yyjson_realloc, loom_yyjson_free, NULL};
}

#endif
