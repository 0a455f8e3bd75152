/* storage.c: what all stores share: names of the row kinds, the checksum of a row, whole files. */
#include "storage/storage.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

const char *row_kind_name(enum row_kind kind) {
    static const char *const names[] = {"none",
#define X(id, name) name,
                                        ROW_KINDS(X)
#undef X
    };
    return names[kind];
}

uint64_t row_sum(enum row_kind kind, struct str key, struct str value) {
    return SABOTAGE("checksum skipped") ? 0 : hash64(value, hash64(key, kind));
}

bool fd_read(int fd, struct buf *out) {
    ssize_t n = -1;
    while (fd >= 0 && (n = read(fd, buf_reserve(out, 65536), 65536)) > 0) out->n += (size_t)n;
    return n == 0;
}

bool path_read(const char *path, struct buf *out) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool whole = fd_read(fd, out);
    if (fd >= 0) close(fd);
    return whole;
}

bool path_write(const char *path, struct str bytes) {
    char part[4300];
    ssize_t n = 0;
    snprintf(part, sizeof part, "%s.XXXXXX", path);
    int fd = mkstemp(part);
    while (fd >= 0 && bytes.n > 0 && (n = write(fd, bytes.p, bytes.n)) > 0) {
        bytes.p += n;
        bytes.n -= (size_t)n;
    }
    bool whole = fd >= 0 && bytes.n == 0 && fsync(fd) == 0 && rename(part, path) == 0;
    int why = errno;
    if (fd >= 0) close(fd);
    if (fd >= 0 && !whole) unlink(part);
    errno = why;
    return whole;
}

bool path_sync(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    return ok;
}

bool folder_sync(const char *path) {
    char folder[4096];
    snprintf(folder, sizeof folder, "%s", path);
    return path_sync(dirname(folder));
}
