/* sqlite_whole.h: SQLite's own check of a store's file. */
#ifndef LOOM_TEST_SQLITE_WHOLE_H
#define LOOM_TEST_SQLITE_WHOLE_H

#include <sqlite3.h>
#include <stdbool.h>
#include <string.h>

static int whole_verdict(void *whole, int n, char **values, char **names) {
    (void)n, (void)names;
    *(bool *)whole = strcmp(values[0], "ok") == 0;
    return 0;
}

static bool sqlite_whole(const char *path) {
    bool whole = false;
    sqlite3 *db;
    if (sqlite3_open(path, &db) == SQLITE_OK)
        sqlite3_exec(db, "PRAGMA integrity_check(1)", whole_verdict, &whole, NULL);
    sqlite3_close(db);
    return whole;
}

#endif
