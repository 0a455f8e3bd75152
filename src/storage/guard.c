/* guard.c: the files beside a store's file PATH that keep it whole.
 *
 * PATH.lock ("%-10d %s %020llu\n") is flock'ed by the process that it names. Behind the pid stand the store's id and its
 * last seq, written without sync: a store that knows less is an old copy. PATH.fsync-failed says that the page cache may
 * differ from the disk; the next open copies what it reads into a new, synced file, PATH.rewritten, before anything is
 * acknowledged.
 */
#include "storage/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { NAME_BYTES = 4096, PID_BYTES = 11 };

/* A process that was killed may hold its lock for a moment longer: we try for two seconds before we refuse. */
enum { LOCK_TRIES = 40, LOCK_PAUSE_US = 50000 };

static int lock_store(const char *path, struct error *err) {
    char name[NAME_BYTES], pid[PID_BYTES] = "?";
    snprintf(name, sizeof name, "%s.lock", path);
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600), rc = LOOM_E_STORE;
    bool locked = false;
    for (int i = 0; fd >= 0 && !locked && i < LOCK_TRIES; i++) {
        if (i > 0) usleep(LOCK_PAUSE_US);
        locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
    }
    if (locked && dprintf(fd, "%-*d ", PID_BYTES - 1, (int)getpid()) == PID_BYTES) return fd;
    if (fd >= 0 && !locked) {
        if (pread(fd, pid, sizeof pid - 1, 0) > 0) pid[strcspn(pid, " ")] = 0;
        rc = error_set(err, LOOM_E_CONFLICT, "the store %s is in use by process %s; stop it or use another folder",
                       path, pid);
    } else {
        error_set(err, rc, "cannot write %s: %s", name, strerror(errno));
    }
    close(fd);
    return rc;
}

/* What can be read, the WAL included, as a new file. The old ones stay as they are: after a power loss they are all there is. */
static int copy_store(const char *path, const char *fresh, struct error *err) {
    char part[NAME_BYTES + 8], sql[2 * NAME_BYTES];
    sqlite3 *db;
    snprintf(part, sizeof part, "%s.part", fresh);
    sqlite3_snprintf(sizeof sql, sql, "VACUUM INTO %Q", part);
    unlink(part);
    bool read = sqlite3_open(path, &db) == SQLITE_OK;
    sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    read = read && sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK;
    bool done = read && path_sync(part) && rename(part, fresh) == 0 && folder_sync(fresh);
    if (!done)
        error_set(err, LOOM_E_STORE, "cannot rewrite %s after a failed fsync: %s", path,
                  read ? strerror(errno) : sqlite3_errmsg(db));
    sqlite3_close(db);
    return done ? LOOM_OK : LOOM_E_STORE;
}

/* Once the copy has its name it is the store, and a crash goes on from there. The WAL goes first, so that it never lies
 * beside a file to which it does not belong. */
static int rewrite_store(const char *path, const char *marker, struct error *err) {
    char fresh[NAME_BYTES], wal[NAME_BYTES];
    snprintf(fresh, sizeof fresh, "%s.rewritten", path);
    snprintf(wal, sizeof wal, "%s-wal", path);
    if (access(fresh, F_OK) != 0 && copy_store(path, fresh, err) < 0) return LOOM_E_STORE;
    bool done = (unlink(wal) == 0 || errno == ENOENT) && folder_sync(path) && rename(fresh, path) == 0 &&
                folder_sync(path) && unlink(marker) == 0;
    return done ? LOOM_OK : error_set(err, LOOM_E_STORE, "cannot put %s in its place: %s", fresh, strerror(errno));
}

int guard_open(const char *path, struct error *err) {
    char marker[NAME_BYTES];
    snprintf(marker, sizeof marker, "%s.fsync-failed", path);
    int lock = lock_store(path, err), rc = LOOM_OK;
    if (lock >= 0 && access(marker, F_OK) == 0) rc = rewrite_store(path, marker, err);
    if (rc < 0) close(lock);
    return rc < 0 ? rc : lock;
}

int guard_check(int lock, const char *path, const char *id, uint64_t seq, struct error *err) {
    char line[80] = "", seen_id[33];
    unsigned long long seen;
    bool known = pread(lock, line, sizeof line - 1, PID_BYTES) > 0 && sscanf(line, "%32s %llu", seen_id, &seen) == 2;
    if (!known || (strcmp(seen_id, id) == 0 && seen <= seq)) return LOOM_OK;
    return error_set(err, LOOM_E_CONFLICT,
                     "the store %s is older than what was seen here, as a restored backup is (it ends at batch %llu, "
                     "seen was %llu of store %s); if that is meant, start with --accept-restored",
                     path, (unsigned long long)seq, seen, seen_id);
}

void guard_seen(int lock, const char *id, uint64_t seq) {
    char line[80];
    int n = snprintf(line, sizeof line, "%s %020llu\n", id, (unsigned long long)seq);
    if (pwrite(lock, line, (size_t)n, PID_BYTES) != n) return; /* it only helps to notice an old copy */
}

void guard_mark(const char *path) {
    char marker[NAME_BYTES];
    snprintf(marker, sizeof marker, "%s.fsync-failed", path);
    close(open(marker, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    path_sync(marker);
}
