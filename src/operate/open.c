/* open.c: where an engine's parts come from on the real machine: the store's folder, the user's cache, threads, the clock.
 * The simulator opens one on parts of its own (loom_open_in). */
#include "runtime/runtime.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *path_in(const char *dir, const char *name) {
    struct buf path = {0};
    buf_json(&path, "%s/%s", dir, name);
    buf_char(&path, '\0');
    return path.p;
}

static int make_folder(const char *path, struct error *err) {
    for (const char *slash = strchr(path + 1, '/');; slash = strchr(slash + 1, '/')) {
        char *part = slash ? str_dup((struct str){path, (size_t)(slash - path)}) : str_dup(str_of(path));
        int rc = mkdir(part, 0700);
        int why = errno;
        free(part);
        if (rc < 0 && why != EEXIST)
            return error_set(err, LOOM_E_STORE, "folder %s cannot be made: %s", path, strerror(why));
        if (!slash) return 0;
    }
}

static int open_store(const struct loom_config *config, struct loom_parts *parts, struct error *err) {
    bool memory = !config->store || strcmp(config->store, "memory") == 0;
    if (make_folder(parts->cache_dir, err) < 0 || (!memory && make_folder(config->store, err) < 0)) return LOOM_E_STORE;
    char *file = memory ? NULL : path_in(config->store, "loom.db"),
         *blobs = memory ? NULL : path_in(config->store, "blobs");
    parts->store = store_sqlite_open(file, parts->env, config->accept_restored, err);
    parts->blobs = parts->store ? blob_file_open(blobs, err) : NULL;
    if (parts->store && !parts->blobs) parts->store->ops->close(parts->store);
    free(file);
    free(blobs);
    return parts->blobs ? 0 : LOOM_E_STORE;
}

struct loom *loom_open(const struct loom_config *config, char *message, size_t message_cap) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    struct loom_parts parts = {.env = env_system(), .name = getpid()};
    struct error err = {0};
    char *cache_dir = cache && cache[0] == '/' ? path_in(cache, "loom/modules")
                                               : path_in(home ? home : "/tmp", ".cache/loom/modules");
    parts.cache_dir = cache_dir;
    int rc = open_store(config, &parts, &err);
    struct loom *l = rc == 0 ? loom_open_in(config, &parts, &err) : NULL;
    free(cache_dir);
    if (!l) snprintf(message, message_cap, "%s", err.message);
    return l;
}
