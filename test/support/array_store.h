/* array_store.h: a store in memory that fails when told to. */
#ifndef LOOM_TEST_ARRAY_STORE_H
#define LOOM_TEST_ARRAY_STORE_H

#include "storage/storage.h"

struct array_row;

/* What outlives the store as a disk does, and the knobs of its faults. Zero-initialise; array_free at the end. */
struct array_faults {
    /* knobs */
    uint64_t fail_at;            /* the commit that fails, counted from 1 over all openings; 0: none */
    bool forever;                /* and all after it */
    enum commit_outcome outcome; /* what it answers */
    bool applied;                /* it has written its rows all the same: the other half of FATAL */
    /* the disk */
    uint64_t commits; /* tried so far, those with a stale term not counted */
    uint64_t term, seq;
    struct array_row *rows; /* sorted by kind and key */
    size_t count, cap;
};
struct store *store_array_open(struct array_faults *disk);
/* Changes the byte behind the first such text of a stored value, or its last byte, without its checksum. */
bool array_damage(struct array_faults *disk, enum row_kind kind, struct str key, struct str behind);
/* The same rows, term and seq; the knobs are not copied. */
void array_copy(struct array_faults *to, const struct array_faults *from);
/* Whether there is a row whose key begins so. */
bool array_any(const struct array_faults *disk, enum row_kind kind, struct str prefix);
void array_free(struct array_faults *disk);
/* One row of any store: 1 found (appended to out), 0 absent, DAMAGED, or the scan's error. */
int store_load(struct store *s, enum row_kind kind, struct str key, struct buf *out, struct error *err);

#endif
