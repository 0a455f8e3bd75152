/* storage.c: what all stores share: names of the row kinds, the checksum of a row, files and folders. */
#include "storage/storage.h"

#include <fcntl.h>
#include <stdio.h>
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
    return hash64(value, hash64(key, kind));
}

bool path_sync(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    return ok;
}

bool path_read(const char *path, struct buf *out) {
    char chunk[65536];
    ssize_t n = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && (n = read(fd, chunk, sizeof chunk)) > 0) buf_add(out, chunk, (size_t)n);
    if (fd >= 0) close(fd);
    return n == 0;
}

void path_write(const char *path, struct str bytes) {
    struct arena mem = {0};
    const char *part = arena_json(&mem, "%s.%d", path, (int64_t)gettid()).p;
    int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool whole = fd >= 0 && write(fd, bytes.p, bytes.n) == (ssize_t)bytes.n && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    if (!whole || rename(part, path) < 0) unlink(part);
    arena_free(&mem);
}
