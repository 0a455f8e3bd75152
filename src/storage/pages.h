/* pages.h: a checksum at the end of every page of an SQLite file; see pages.c. */
#ifndef LOOM_PAGES_H
#define LOOM_PAGES_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

/* What a connection reads and writes its file with. */
struct pages {
    sqlite3_io_methods io;
    const sqlite3_io_methods *below;
    bool lenient;    /* a page that does not match is read all the same */
    int64_t damaged; /* the last page that did not match, from 1; 0: none */
};

/* From here on every page that the connection writes to its file gets a checksum, and each that it reads must match.
 * Before anything was read; `p` lives as long as the connection. Nothing happens in memory, nor to a file without room for
 * checksums, as those of older formats are: its first page counts as damaged. */
void pages_check(sqlite3 *db, struct pages *p);

#endif
