/* file_blob.c: content-addressed bytes as files DIR/ab/cdef…, named by SHA-256, or in a map in memory.
 *
 * A blob is written to a file of its own beside its place, synced, renamed, and its folder synced: when put returns it
 * is durable, and a file under its final name is always whole. The same bytes twice are one file. get compares the hash.
 * Nothing is deleted here: who counts references sweeps.
 */
#include "storage/storage.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct file_blobs {
    struct blob_store base;
    char *dir; /* NULL: in memory */
    pthread_mutex_t lock;
    struct map blobs; /* in memory: name → struct str */
    struct arena mem; /* of them */
};

/* ---- files ---- */

static int file_put(struct blob_store *base, struct str bytes, char hex[65], struct error *err) {
    struct file_blobs *s = (struct file_blobs *)base;
    char folder[4096], path[4200];
    sha256_hex(bytes, hex);
    snprintf(folder, sizeof folder, "%s/%.2s", s->dir, hex);
    snprintf(path, sizeof path, "%s/%s", folder, hex + 2);
    mkdir(folder, 0700);
    /* Also when the file is there: whoever made it may have died before its folders were synced. */
    if ((access(path, F_OK) == 0 || path_write(path, bytes)) && path_sync(folder) && path_sync(s->dir)) return LOOM_OK;
    return error_set(err, errno == ENOSPC || errno == EDQUOT ? LOOM_E_DISK_FULL : LOOM_E_STORE,
                     "cannot write the blob %s: %s", path, strerror(errno));
}

static int file_get(struct blob_store *base, const char *hex, struct buf *out, struct error *err) {
    char path[4200], found[65];
    size_t before = out->n;
    if (strspn(hex, "0123456789abcdef") != 64 || hex[64] != 0)
        return error_set(err, LOOM_E_NOT_FOUND, "%.70s is no name of a blob; expected a SHA-256 in hex", hex);
    snprintf(path, sizeof path, "%s/%.2s/%s", ((struct file_blobs *)base)->dir, hex, hex + 2);
    bool whole = path_read(path, out);
    if (!whole && errno == ENOENT) return error_set(err, LOOM_E_NOT_FOUND, "there is no blob %s", hex);
    sha256_hex((struct str){out->p + before, out->n - before}, found);
    if (whole && strcmp(found, hex) == 0) return LOOM_OK;
    out->n = before;
    if (whole)
        return error_set(err, LOOM_E_DAMAGED, "the blob %s does not match its name; restore it from a backup", path);
    return error_set(err, LOOM_E_STORE, "cannot read the blob %s: %s", path, strerror(errno));
}

/* ---- memory ---- */

static int memory_put(struct blob_store *base, struct str bytes, char hex[65], struct error *err) {
    (void)err;
    struct file_blobs *s = (struct file_blobs *)base;
    sha256_hex(bytes, hex);
    pthread_mutex_lock(&s->lock);
    if (!map_get(&s->blobs, str_of(hex))) {
        struct str *kept = arena_alloc(&s->mem, sizeof *kept);
        *kept = arena_dup(&s->mem, bytes);
        map_put(&s->blobs, arena_dup(&s->mem, str_of(hex)), kept);
    }
    pthread_mutex_unlock(&s->lock);
    return LOOM_OK;
}

static int memory_get(struct blob_store *base, const char *hex, struct buf *out, struct error *err) {
    struct file_blobs *s = (struct file_blobs *)base;
    pthread_mutex_lock(&s->lock);
    struct str *kept = map_get(&s->blobs, str_of(hex));
    pthread_mutex_unlock(&s->lock);
    if (!kept) return error_set(err, LOOM_E_NOT_FOUND, "there is no blob %s", hex);
    buf_str(out, *kept);
    return LOOM_OK;
}

/* ---- both ---- */

static void blobs_close(struct blob_store *base) {
    struct file_blobs *s = (struct file_blobs *)base;
    map_free(&s->blobs);
    arena_free(&s->mem);
    free(s->dir);
    free(s);
}

static const struct blob_ops file_ops = {file_put, file_get, blobs_close};
static const struct blob_ops memory_ops = {memory_put, memory_get, blobs_close};

struct blob_store *blob_file_open(const char *dir, struct error *err) {
    if (dir && ((mkdir(dir, 0700) != 0 && errno != EEXIST) || !folder_sync(dir))) {
        error_set(err, LOOM_E_STORE, "cannot make the folder %s: %s", dir, strerror(errno));
        return NULL;
    }
    struct file_blobs *s = mem_alloc(sizeof *s);
    *s = (struct file_blobs){.base.ops = dir ? &file_ops : &memory_ops, .lock = PTHREAD_MUTEX_INITIALIZER};
    s->dir = str_dup(str_of(dir));
    return &s->base;
}
