/* env.c: time and randomness of the real machine. The simulator brings its own env. */
#include "base/base.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

static int64_t clock_us(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int64_t now_ms(struct env *env) {
    (void)env;
    return clock_us(CLOCK_REALTIME) / 1000;
}

static int64_t mono_ms(struct env *env) {
    (void)env;
    return clock_us(CLOCK_MONOTONIC) / 1000;
}

static int64_t mono_us(struct env *env) {
    (void)env;
    return clock_us(CLOCK_MONOTONIC);
}

/* Up to 256 bytes come whole from the kernel or, before it has any, not at all. */
static void secure_random(struct env *env, void *out, size_t n) {
    (void)env;
    for (char *p = out, *end = p + n; p < end; p += 256) {
        size_t part = end - p < 256 ? (size_t)(end - p) : 256;
        if (getrandom(p, part, 0) != (ssize_t)part) abort();
    }
}

static struct env machine = {now_ms, mono_ms, mono_us, secure_random};

static void seed_maps(void) {
    secure_random(&machine, &map_seed, sizeof map_seed);
}

struct env *env_system(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, seed_maps);
    return &machine;
}
