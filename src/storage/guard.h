/* guard.h: what stands beside a store's file PATH and protects it; see guard.c. */
#ifndef LOOM_GUARD_H
#define LOOM_GUARD_H

#include "storage/storage.h"

/* Takes the lock and rewrites a marked store. The lock's descriptor (close it to release the store), or CONFLICT, STORE. */
int guard_open(const char *path, struct error *err);
/* CONFLICT when the store's id and seq are not what was seen here last, or later. */
int guard_check(int lock, const char *path, const char *id, uint64_t seq, struct error *err);
void guard_seen(int lock, const char *id, uint64_t seq);
void guard_mark(const char *path); /* an fsync failed */

#endif
