/* storage.c: what all stores share: names of the row kinds and the checksum of a row. */
#include "storage/storage.h"

#include <fcntl.h>
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
