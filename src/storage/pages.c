/* pages.c: a checksum at the end of every page of an SQLite file.
 *
 * A row's checksum cannot tell that a row is absent. A damaged key of the index, or a damaged number of a page, hides rows that
 * are there, and an actor would begin anew. So each page gets a checksum, as with SQLite's own cksumvfs and in PostgreSQL: in
 * the bytes at its end that SQLite leaves alone where it is asked to (SQLITE_FCNTL_RESERVE_BYTES).
 *
 * It is made when a checkpoint writes the page into the file, and compared when the page is read from there. Frames of the WAL
 * have checksums of SQLite. Within SQLite the bytes are zero, and zero in the file says: not checked. So pages that another
 * program takes from the WAL into the file are good; those that it changes are not, until it has run VACUUM.
 *
 * Pages of nothing but rows are handed on although they do not match, for there the checksums of rows tell which one is
 * damaged, and the others go on.
 */
#include "storage/pages.h"

#include "base/base.h"

#include <string.h>

enum { PAGE = 4096, SUM = sizeof(uint64_t), TABLE_LEAF = 13 };

/* Never 0. */
static uint64_t page_sum(const void *page, sqlite3_int64 at) {
    return hash64((struct str){page, PAGE - SUM}, (uint64_t)at) | 1;
}

/* A leaf of the table, or what did not fit into it: a number of 4 bytes, below 2^24, and text (of values: keys always fit).
 * Page 1 is the head, 2 is meta. */
static bool has_rows_only(const unsigned char *page, sqlite3_int64 number) {
    return number > 2 && (page[0] == TABLE_LEAF || (page[0] == 0 && page[4] >= ' '));
}

static int page_read(sqlite3_file *file, void *page, int n, sqlite3_int64 at) {
    struct pages *p = (struct pages *)(uintptr_t)file->pMethods;
    int rc = p->below->xRead(file, page, n, at);
    bool cut = rc == SQLITE_IOERR_SHORT_READ && at > 0;
    if (n != PAGE || (rc != SQLITE_OK && !cut)) return rc;
    char *end = (char *)page + PAGE - SUM;
    uint64_t sum;
    memcpy(&sum, end, SUM);
    memset(end, 0, SUM);
    if (!cut && (sum == 0 || sum == page_sum(page, at))) return rc;
    p->damaged = at / PAGE + 1;
    return p->lenient || (!cut && has_rows_only(page, p->damaged)) ? rc : SQLITE_CORRUPT;
}

static int page_write(sqlite3_file *file, const void *page, int n, sqlite3_int64 at) {
    struct pages *p = (struct pages *)(uintptr_t)file->pMethods;
    if (n != PAGE) return p->below->xWrite(file, page, n, at);
    char copy[PAGE];
    uint64_t sum = page_sum(page, at);
    memcpy(copy, page, PAGE - SUM);
    memcpy(copy + PAGE - SUM, &sum, SUM);
    return p->below->xWrite(file, copy, n, at);
}

void pages_check(sqlite3 *db, struct pages *p) {
    static const char magic[] = "SQLite format 3";
    sqlite3_file *file;
    char head[sizeof magic] = "";
    int reserved = -1, wanted = SUM;
    sqlite3_file_control(db, NULL, SQLITE_FCNTL_FILE_POINTER, &file);
    sqlite3_file_control(db, NULL, SQLITE_FCNTL_RESERVE_BYTES, &reserved);
    sqlite3_file_control(db, NULL, SQLITE_FCNTL_RESERVE_BYTES, &wanted);
    if (!(p->below = file->pMethods)) return;
    p->below->xRead(file, head, sizeof head, 0);
    p->damaged = reserved != SUM && memcmp(head, magic, sizeof head) == 0;
    if (p->damaged) return;
    p->io = *p->below;
    p->io.xRead = page_read;
    p->io.xWrite = page_write;
    file->pMethods = &p->io;
}
