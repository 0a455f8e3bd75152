/* env.c: time, randomness and threads of the real machine. The simulator brings its own env. */
#include "base/base.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#pragma GCC diagnostic ignored "-Wunused-parameter" /* there is one machine: no function looks at its env */

static int64_t clock_us(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int64_t now_ms(struct env *env) {
    return clock_us(CLOCK_REALTIME) / 1000;
}

static int64_t mono_ms(struct env *env) {
    return clock_us(CLOCK_MONOTONIC) / 1000;
}

static int64_t mono_us(struct env *env) {
    return clock_us(CLOCK_MONOTONIC);
}

/* Up to 256 bytes come whole from the kernel or, before it has any, not at all. */
static void secure_random(struct env *env, void *out, size_t n) {
    for (char *p = out, *end = p + n; p < end; p += 256) {
        size_t part = end - p < 256 ? (size_t)(end - p) : 256;
        if (getrandom(p, part, 0) != (ssize_t)part) abort();
    }
}

static bool start_thread(struct env *env, unsigned long *id, void *(*fn)(void *), void *arg) {
    return pthread_create(id, NULL, fn, arg) == 0;
}

static struct env machine = {now_ms, mono_ms, mono_us, secure_random, start_thread, usleep, _exit, NULL};

__attribute__((constructor)) static void seed_maps(void) {
    secure_random(&machine, &map_seed, sizeof map_seed);
}

struct env *env_system(void) {
    return &machine;
}
