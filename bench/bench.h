/* bench.h: what the programs of bench/ share: a clock, an engine with the guests deployed, and a closed loop of requests
 * through loom.h. Each program prints lines "KEY VALUE"; bench/run makes medians, ratios, the table and the JSON file.
 */
#ifndef LOOM_BENCH_H
#define LOOM_BENCH_H

#include "loom/loom.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

_Noreturn static inline void die(const char *what, const char *detail) {
    fprintf(stderr, "bench: %s: %s\n", what, detail);
    exit(1);
}

static inline double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static inline int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value below which the share p of them lies; sorts them. */
static inline double percentile(double *values, size_t n, double p) {
    qsort(values, n, sizeof *values, by_value);
    return values[(size_t)((double)(n - 1) * p)];
}

static inline void print(const char *key, double value) {
    printf("%s %.6g\n", key, value);
    fflush(stdout);
}

#endif
