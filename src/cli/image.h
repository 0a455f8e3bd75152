/* image.h: a store's folder as its last commit left it. Nothing is written, and a worker may have the store. */
#ifndef LOOM_IMAGE_H
#define LOOM_IMAGE_H

#include "storage/pages.h"
#include "storage/storage.h"
#include <stdio.h>

struct image {
    sqlite3 *db;
    struct pages pages;
    sqlite3_stmt *scans[4]; /* one for each scan within a scan */
    int depth;
    struct blob_store *blobs; /* NULL: there are none */
    char id[33];
    int64_t batch, format;
    struct buf faults; /* JSON strings, the first FAULTS_MAX */
    int64_t fault_count, seen;
    bool quiet;      /* damaged rows have been told */
    int64_t told_ms; /* when progress was last shown */
};
/* Rows of a kind with from ≤ key < to (to.p NULL: no end) in key order, blobs put in. Each damaged or unreadable one is a
 * fault; of the damaged ones fn gets the key, and value.p is NULL. */
void image_scan(struct image *im, enum row_kind kind, struct str from, struct str to, row_fn fn, void *ctx);
bool image_load(struct image *im, enum row_kind kind, struct str key, struct buf *out); /* false: there is none */
void image_fault(struct image *im, const char *fmt, ...);                               /* buf_json's template */
/* The row that a statement (key, value, sum) stands at; false: it is damaged, which is a fault. */
bool image_row(struct image *im, enum row_kind kind, sqlite3_stmt *q, struct buf *value);
struct str image_column(sqlite3_stmt *q, int i);
/* dump.c: to stdout, and from `in` into a new store; exit codes. */
int image_dump(struct image *im, const char *folder);
int image_restore(FILE *in, const char *folder);
void image_verify(struct image *im, struct buf *report); /* verify.c; members of a JSON object */
/* replay.c. actor: ns/type/key, or absent: all. */
void image_replay(struct image *im, struct str actor, struct buf *report);

#endif
