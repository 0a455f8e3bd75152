/* open.c: where an engine's parts come from on the real machine: the store's folder, the user's cache, threads, the clock.
 * The simulator opens one on parts of its own. */
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

static int open_store(const struct loom_config *config, struct store **store, struct blob_store **blobs,
                      struct error *err) {
    bool memory = !config->store || strcmp(config->store, "memory") == 0;
    if (!memory && make_folder(config->store, err) < 0) return LOOM_E_STORE;
    char *file = memory ? NULL : path_in(config->store, "loom.db"),
         *folder = memory ? NULL : path_in(config->store, "blobs");
    *store = store_sqlite_open(file, env_system(), config->accept_restored, err);
    *blobs = *store ? blob_file_open(folder, err) : NULL;
    if (*store && !*blobs) (*store)->ops->close(*store);
    free(file);
    free(folder);
    return *blobs ? 0 : LOOM_E_STORE;
}

struct loom *loom_open(const struct loom_config *config, char *message, size_t message_cap) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    struct store *store;
    struct blob_store *blobs;
    struct loom *l = NULL;
    struct error err = {0};
    char *cache_dir = cache && cache[0] == '/' ? path_in(cache, "loom/modules")
                                               : path_in(home ? home : "/tmp", ".cache/loom/modules");
    if (make_folder(cache_dir, &err) == 0 && open_store(config, &store, &blobs, &err) == 0) {
        l = loom_new(config);
        l->env = env_system();
        l->store = store;
        l->blobs = blobs;
        l->cache_dir = arena_dup(&l->mem, str_of(cache_dir)).p;
        l->name = getpid();
        l = loom_start(l, &err);
    }
    free(cache_dir);
    if (!l) snprintf(message, message_cap, "%s", err.message);
    return l;
}
