/* env.c: time and randomness of the real machine. The simulator brings its own env. */
#include "base/base.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

static int64_t clock_ms(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int64_t wall_ms(struct env *env) {
    (void)env;
    return clock_ms(CLOCK_REALTIME);
}

static int64_t mono_ms(struct env *env) {
    (void)env;
    return clock_ms(CLOCK_MONOTONIC);
}

static void secure_random(struct env *env, void *out, size_t n) {
    (void)env;
    for (char *p = out; n > 0;) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0 && errno != EINTR) {
            perror("loom: the system gives no random bytes");
            abort();
        }
        if (got > 0) {
            p += got;
            n -= (size_t)got;
        }
    }
}

static struct env machine = {wall_ms, mono_ms, secure_random};

static void seed_maps(void) {
    uint64_t seed;
    secure_random(&machine, &seed, sizeof seed);
    map_seed(seed);
}

struct env *env_system(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, seed_maps);
    return &machine;
}
