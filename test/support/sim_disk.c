/* sim_disk.c: files and names in memory, each as the page cache shows it and as the disk holds it.
 *
 * A file's `live` bytes are what reads see; `synced` is what is on the disk for sure; `changes` are the writes between.
 * Names have the same three. Power loss takes the synced form and adds each change wholly, by single sectors, or not at all,
 * so later ones may survive without earlier ones: torn and reordered writes. Names move one by one.
 * A sync that fails writes some of its changes and forgets the others: live and synced differ from then on, and nobody
 * will tell. -shm files are mapped, so their bytes never move.
 *
 * The functions at the end take the place of the C library's, for the whole process. Numbers of files here lie beyond
 * what the system ever gives; everything else goes on to the system.
 */
#include "support/sim_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SECTOR = 512, PAGE = 4096, SHM_BYTES = 1 << 17, FD_BASE = 1 << 24, FDS = 64, PATH_BYTES = 256 };

/* At `at` the bytes, or (truncate) the end of the file. */
struct change {
    size_t at;
    struct buf bytes;
    bool truncate;
};
struct node {
    struct buf live, synced;
    struct change *changes;
    size_t count, cap;
    bool folder, locked;
};
struct name {
    char path[PATH_BYTES];
    int node;
};
struct names {
    struct name *all;
    size_t count, cap;
};
/* A name that comes (node), goes (node −1), or moves from `from`. */
struct renaming {
    char from[PATH_BYTES];
    struct name to;
};
struct opened {
    int node; /* −1: free */
    off_t at;
    bool locks;
    char path[PATH_BYTES];
};
struct sim_image {
    struct node *nodes;
    size_t node_count, node_cap;
    struct names live, synced;
    struct renaming *renamings;
    size_t renaming_count, renaming_cap;
    uint64_t dice;
};

static struct sim_image disk;
static struct opened opened[FDS];
static enum sim_fault fault;
static uint64_t fault_at, operations, reads;
static bool struck, paused, own, *dead = &own;
static struct buf kinds; /* of the operations since the start: w(rite), n(ame), s(ync), t(runcate) */
static void (*slow)(int64_t ms);
static void (*between)(void);

const char *const sim_fault_names[SIM_FAULT_END] = {"none",          "kill",     "power",      "full-once",
                                                    "full",          "eio-once", "eio",        "sync",
                                                    "read-eio-once", "read-eio", "short-read", "slow"};

static uint32_t roll(uint32_t n) {
    disk.dice = hash64(STR("dice"), disk.dice);
    return (uint32_t)(disk.dice >> 20) % n;
}

#define GROW(list, count, cap)                               \
    do {                                                     \
        if ((count) == (cap)) {                              \
            (cap) = (cap) ? (cap)*2 : 8;                     \
            (list) = mem_grow(list, (cap) * sizeof *(list)); \
        }                                                    \
    } while (0)

/* ---- bytes ---- */

static void put_bytes(struct buf *b, size_t at, const char *p, size_t n) {
    if (at + n > b->n) {
        size_t more = at + n - b->n;
        memset(buf_reserve(b, more), 0, more);
        b->n += more;
    }
    if (n) memcpy(b->p + at, p, n);
}

static void resize(struct buf *b, size_t n) {
    if (n > b->n) put_bytes(b, n - 1, "", 1);
    b->n = n;
}

static void change_apply(struct buf *to, const struct change *c) {
    if (c->truncate)
        resize(to, c->at);
    else
        put_bytes(to, c->at, c->bytes.p, c->bytes.n);
}

/* What reached the disk of a change that nobody waited for. */
static void change_perhaps(struct buf *to, const struct change *c, uint32_t luck) {
    if (luck == 0) return;
    if (luck == 1 || c->truncate) {
        change_apply(to, c);
        return;
    }
    for (size_t from = 0, n; from < c->bytes.n; from += n) {
        n = SECTOR - (c->at + from) % SECTOR;
        if (n > c->bytes.n - from) n = c->bytes.n - from;
        if (roll(2)) put_bytes(to, c->at + from, c->bytes.p + from, n);
    }
}

static void changes_forget(struct node *f) {
    for (size_t i = 0; i < f->count; i++) buf_free(&f->changes[i].bytes);
    f->count = 0;
}

static void write_node(struct node *f, size_t at, const char *p, size_t n) {
    GROW(f->changes, f->count, f->cap);
    struct change *c = &f->changes[f->count++];
    *c = (struct change){.at = at};
    buf_add(&c->bytes, p, n);
    change_apply(&f->live, c);
}

/* ---- names ---- */

static int name_find(const struct names *names, const char *path) {
    for (size_t i = 0; i < names->count; i++)
        if (strcmp(names->all[i].path, path) == 0) return (int)i;
    return -1;
}

static void name_put(struct names *names, const char *path, int node) {
    int i = name_find(names, path);
    if (i < 0) {
        GROW(names->all, names->count, names->cap);
        i = (int)names->count++;
        snprintf(names->all[i].path, PATH_BYTES, "%s", path);
    }
    names->all[i].node = node;
    if (node < 0) names->all[i] = names->all[--names->count];
}

static void renaming_apply(struct names *names, const struct renaming *r) {
    int from = r->from[0] ? name_find(names, r->from) : -1;
    if (from >= 0 && names->all[from].node == r->to.node) name_put(names, r->from, -1);
    name_put(names, r->to.path, r->to.node);
}

static int node_at(const char *path) {
    int i = name_find(&disk.live, path);
    return i < 0 ? -1 : disk.live.all[i].node;
}

static size_t parent_bytes(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) : 0;
}

static bool is_in(const char *path, const char *folder) {
    return parent_bytes(path) == strlen(folder) && strncmp(path, folder, strlen(folder)) == 0;
}

static bool has_parent(const struct names *names, const char *path) {
    for (size_t i = 0; i < names->count; i++)
        if (is_in(path, names->all[i].path)) return true;
    return strcmp(path, SIM_ROOT) == 0;
}

static void rename_to(const char *from, const char *path, int node) {
    GROW(disk.renamings, disk.renaming_count, disk.renaming_cap);
    struct renaming *r = &disk.renamings[disk.renaming_count++];
    *r = (struct renaming){.to.node = node};
    snprintf(r->from, PATH_BYTES, "%s", from);
    snprintf(r->to.path, PATH_BYTES, "%s", path);
    renaming_apply(&disk.live, r);
}

static int node_new(bool folder, bool mapped) {
    GROW(disk.nodes, disk.node_count, disk.node_cap);
    struct node *f = &disk.nodes[disk.node_count];
    *f = (struct node){.folder = folder};
    if (mapped) buf_reserve(&f->live, SHM_BYTES);
    return (int)disk.node_count++;
}

static void sync_names(const char *folder) {
    size_t kept = 0;
    for (size_t i = 0; i < disk.renaming_count; i++) {
        struct renaming r = disk.renamings[i];
        if (is_in(r.to.path, folder))
            renaming_apply(&disk.synced, &r);
        else
            disk.renamings[kept++] = r;
    }
    disk.renaming_count = kept;
}

/* Names whose sync failed may still come: file systems keep them in a journal of their own. */
static void sync_node(struct node *f, const char *path, bool sure) {
    if (f->folder && sure) sync_names(path);
    for (size_t i = 0; i < f->count; i++) change_perhaps(&f->synced, &f->changes[i], sure ? 1 : roll(3));
    changes_forget(f);
}

/* ---- start and end ---- */

static void copy_buf(struct buf *to, const struct buf *from) {
    *to = (struct buf){0};
    buf_reserve(to, from->cap);
    buf_add(to, from->p, from->n);
}

static void *copy_list(const void *p, size_t count, size_t size) {
    void *copy = mem_alloc(count * size + 1);
    return count ? memcpy(copy, p, count * size) : copy;
}

static struct sim_image image_copy(const struct sim_image *from) {
    struct sim_image to = *from;
    to.nodes = copy_list(from->nodes, from->node_count, sizeof *to.nodes);
    for (size_t i = 0; i < from->node_count; i++) {
        struct node *f = &to.nodes[i];
        const struct node *old = &from->nodes[i];
        f->locked = false;
        copy_buf(&f->live, &old->live);
        copy_buf(&f->synced, &old->synced);
        f->changes = copy_list(old->changes, f->cap = old->count, sizeof *f->changes);
        for (size_t c = 0; c < f->count; c++) copy_buf(&f->changes[c].bytes, &old->changes[c].bytes);
    }
    to.node_cap = to.node_count;
    to.live.all = copy_list(from->live.all, to.live.cap = to.live.count, sizeof *to.live.all);
    to.synced.all = copy_list(from->synced.all, to.synced.cap = to.synced.count, sizeof *to.synced.all);
    to.renamings = copy_list(from->renamings, to.renaming_cap = to.renaming_count, sizeof *to.renamings);
    return to;
}

static void image_clear(struct sim_image *image) {
    for (size_t i = 0; i < image->node_count; i++) {
        struct node *f = &image->nodes[i];
        changes_forget(f);
        free(f->changes);
        buf_free(&f->live);
        buf_free(&f->synced);
    }
    free(image->nodes);
    free(image->live.all);
    free(image->synced.all);
    free(image->renamings);
    *image = (struct sim_image){0};
}

struct sim_image *sim_save(void) {
    struct sim_image *image = mem_alloc(sizeof *image);
    *image = image_copy(&disk);
    return image;
}

void sim_image_free(struct sim_image *image) {
    image_clear(image);
    free(image);
}

static void process_starts(void) {
    for (int i = 0; i < FDS; i++) opened[i].node = -1;
    for (size_t i = 0; i < disk.node_count; i++) disk.nodes[i].locked = false;
    fault = SIM_NONE;
    *dead = struck = false;
    operations = reads = 0;
    buf_clear(&kinds);
    sqlite3_test_control(SQLITE_TESTCTRL_PRNG_SEED, (int)(disk.dice | 1), (sqlite3 *)NULL);
}

void sim_load(const struct sim_image *image) {
    struct sim_image copy = image_copy(image);
    image_clear(&disk);
    disk = copy;
    process_starts();
}

static void take_over_sqlite(void);

void sim_format(uint64_t seed) {
    image_clear(&disk);
    take_over_sqlite();
    disk.dice = seed;
    int root = node_new(true, false);
    name_put(&disk.live, SIM_ROOT, root);
    name_put(&disk.synced, SIM_ROOT, root);
    process_starts();
}

/* What the page cache holds wrongly may be dropped from it, page by page, and read from the disk again. */
static void forget_pages(struct node *f) {
    for (size_t at = 0; at < f->live.n; at += PAGE) {
        size_t n = f->live.n - at < PAGE ? f->live.n - at : PAGE, there = at < f->synced.n ? f->synced.n - at : 0;
        if (roll(2)) continue;
        memset(f->live.p + at, 0, n);
        if (there) memcpy(f->live.p + at, f->synced.p + at, there < n ? there : n);
    }
}

static void lose_power(void) {
    uint32_t mood = roll(4); /* nothing, everything, or each as it comes */
    for (size_t i = 0; i < disk.node_count; i++) {
        struct node *f = &disk.nodes[i];
        for (size_t c = 0; c < f->count; c++) change_perhaps(&f->synced, &f->changes[c], mood < 2 ? mood : roll(4));
        changes_forget(f);
        f->live.n = 0;
        buf_add(&f->live, f->synced.p, f->synced.n);
    }
    for (size_t i = 0; i < disk.renaming_count; i++)
        if (mood == 1 || (mood > 1 && roll(2))) renaming_apply(&disk.synced, &disk.renamings[i]);
    disk.renaming_count = disk.live.count = 0;
    for (bool gone = true; gone;) { /* what stood in a folder whose name is lost */
        gone = false;
        for (size_t i = disk.synced.count; i-- > 0;)
            if (!has_parent(&disk.synced, disk.synced.all[i].path)) {
                name_put(&disk.synced, disk.synced.all[i].path, -1);
                gone = true;
            }
    }
    for (size_t i = 0; i < disk.synced.count; i++)
        name_put(&disk.live, disk.synced.all[i].path, disk.synced.all[i].node);
}

void sim_restart(bool power) {
    if (power) lose_power();
    for (size_t i = 0; !power && i < disk.node_count; i++)
        if (disk.nodes[i].count == 0 && disk.nodes[i].live.cap < SHM_BYTES) forget_pages(&disk.nodes[i]);
    process_starts();
}

void sim_seed(uint64_t seed) {
    disk.dice = seed;
    process_starts();
}

void sim_mortal(bool *flag) {
    dead = flag;
}

bool sim_pause(bool pause) {
    bool was = paused;
    paused = pause;
    return was;
}

void sim_unlock(void) {
    for (int i = 0; i < FDS; i++) opened[i].locks = false;
    for (size_t i = 0; i < disk.node_count; i++) disk.nodes[i].locked = false;
}

void sim_fail(enum sim_fault what, uint64_t at) {
    fault = what;
    fault_at = at;
    struck = false;
}

bool sim_struck(void) {
    return struck;
}

bool sim_dead(void) {
    return *dead;
}

void sim_kill(void) {
    *dead = true;
}

uint64_t sim_operations(void) {
    return operations;
}

uint64_t sim_reads(void) {
    return reads;
}

void sim_slow(void (*delay)(int64_t ms)) {
    slow = delay;
}

void sim_between(void (*fn)(void)) {
    between = fn;
}

struct buf *sim_file(const char *path) {
    int node = node_at(path);
    return node < 0 ? NULL : &disk.nodes[node].live;
}

bool sim_next(size_t *i, char path[256]) {
    while (*i < disk.live.count && disk.nodes[disk.live.all[*i].node].folder) ++*i;
    if (*i >= disk.live.count) return false;
    memcpy(path, disk.live.all[(*i)++].path, PATH_BYTES);
    return true;
}

/* ---- faults ---- */

static bool concerns(enum sim_fault what, char kind) {
    switch (what) {
    case SIM_FULL_ONCE:
    case SIM_FULL: return kind == 'w' || kind == 'n';
    case SIM_SYNC:
    case SIM_SLOW: return kind == 's';
    case SIM_READ_EIO_ONCE:
    case SIM_READ_EIO:
    case SIM_READ_SHORT: return kind == 'r';
    case SIM_NONE: return false;
    default: return kind != 'r';
    }
}

bool sim_strikes(enum sim_fault what, uint64_t at) {
    return at > 0 && (concerns(what, 'r') ? at <= reads : at <= kinds.n && concerns(what, kinds.p[at - 1]));
}

/* Every operation passes here. 0, or the errno with which it ends. */
static int strike(char kind) {
    if (between && !paused && strchr("rws", kind)) between(); /* the disk may be another one then */
    if (*dead) return EIO;
    if (paused) return 0;
    uint64_t n = kind == 'r' ? ++reads : ++operations;
    if (kind != 'r') buf_char(&kinds, kind);
    if (n < fault_at || !concerns(fault, kind)) return 0;
    bool first = !struck;
    struck = true;
    switch (fault) {
    case SIM_KILL:
    case SIM_POWER: *dead = true; return EIO;
    case SIM_FULL: return ENOSPC;
    case SIM_FULL_ONCE: return first ? ENOSPC : 0;
    case SIM_EIO:
    case SIM_READ_EIO: return EIO;
    case SIM_EIO_ONCE:
    case SIM_SYNC:
    case SIM_READ_EIO_ONCE: return first ? EIO : 0;
    case SIM_SLOW:
        if (slow) slow(1000 + roll(59000));
        return 0;
    default: return 0;
    }
}

static int failed(int why) {
    errno = why;
    return -1;
}

/* ---- the C library's functions ---- */

static bool is_sim(const char *path) {
    return strncmp(path, SIM_ROOT, sizeof SIM_ROOT - 1) == 0 && strchr("/", path[sizeof SIM_ROOT - 1]) != NULL;
}

static struct opened *file_of(int fd) {
    return fd >= FD_BASE && fd < FD_BASE + FDS && opened[fd - FD_BASE].node >= 0 ? &opened[fd - FD_BASE] : NULL;
}

static int sim_open(const char *path, int flags) {
    int node = node_at(path), fd = 0;
    if (*dead) return failed(EIO);
    if (node >= 0 && (flags & O_CREAT) && (flags & O_EXCL)) return failed(EEXIST);
    if (node < 0 && !((flags & O_CREAT) && has_parent(&disk.live, path))) return failed(ENOENT);
    if (node < 0) {
        int why = strike('n'), n = (int)strlen(path);
        if (why) return failed(why);
        node = node_new(false, n > 4 && strcmp(path + n - 4, "-shm") == 0);
        rename_to("", path, node);
    }
    while (fd < FDS && opened[fd].node >= 0) fd++;
    if (fd == FDS) return failed(EMFILE);
    opened[fd] = (struct opened){.node = node};
    snprintf(opened[fd].path, PATH_BYTES, "%s", path);
    return FD_BASE + fd;
}

int open(const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    unsigned mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, unsigned) : 0;
    va_end(ap);
    return is_sim(path) ? sim_open(path, flags) : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int close(int fd) {
    struct opened *o = file_of(fd);
    if (!o) return (int)syscall(SYS_close, fd);
    if (o->locks) disk.nodes[o->node].locked = false;
    o->node = -1;
    return 0;
}

static ssize_t sim_read(struct opened *o, void *p, size_t n, off_t at) {
    int why = strike('r');
    const struct buf *b = &disk.nodes[o->node].live;
    if (why) return failed(why);
    size_t left = (size_t)at < b->n ? b->n - (size_t)at : 0;
    if (n > left) n = left;
    if (fault == SIM_READ_SHORT && reads == fault_at && !paused && n > 1) n /= 2;
    if (n) memcpy(p, b->p + at, n);
    return (ssize_t)n;
}

static ssize_t sim_write(struct opened *o, const void *p, size_t n, off_t at) {
    bool was_dead = *dead;
    int why = strike('w');
    if (why && *dead && !was_dead) n = n * roll(3) / 2; /* a process may die in the middle of a write */
    if (!why || (*dead && !was_dead)) write_node(&disk.nodes[o->node], (size_t)at, p, n);
    return why ? failed(why) : (ssize_t)n;
}

ssize_t pread(int fd, void *p, size_t n, off_t at) {
    struct opened *o = file_of(fd);
    return o ? sim_read(o, p, n, at) : syscall(SYS_pread64, fd, p, n, at);
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t at) {
    struct opened *o = file_of(fd);
    return o ? sim_write(o, p, n, at) : syscall(SYS_pwrite64, fd, p, n, at);
}

ssize_t read(int fd, void *p, size_t n) {
    struct opened *o = file_of(fd);
    if (!o) return syscall(SYS_read, fd, p, n);
    ssize_t got = sim_read(o, p, n, o->at);
    if (got > 0) o->at += got;
    return got;
}

ssize_t write(int fd, const void *p, size_t n) {
    struct opened *o = file_of(fd);
    if (!o) return syscall(SYS_write, fd, p, n);
    ssize_t put = sim_write(o, p, n, o->at);
    if (put > 0) o->at += put;
    return put;
}

int dprintf(int fd, const char *fmt, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return (int)write(fd, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

int fsync(int fd) {
    struct opened *o = file_of(fd);
    if (!o) return (int)syscall(SYS_fsync, fd);
    int why = strike('s');
    if (!*dead) sync_node(&disk.nodes[o->node], o->path, !why);
    return why ? failed(why) : 0;
}

int fdatasync(int fd) {
    return file_of(fd) ? fsync(fd) : (int)syscall(SYS_fdatasync, fd);
}

int flock(int fd, int how) {
    struct opened *o = file_of(fd);
    if (!o) return (int)syscall(SYS_flock, fd, how);
    struct node *f = &disk.nodes[o->node];
    if (f->locked && !o->locks) return failed(EWOULDBLOCK);
    return f->locked = o->locks = true, 0;
}

int access(const char *path, int how) {
    if (!is_sim(path)) return (int)syscall(SYS_access, path, how);
    return *dead ? failed(EIO) : node_at(path) < 0 ? failed(ENOENT) : 0;
}

int unlink(const char *path) {
    if (!is_sim(path)) return (int)syscall(SYS_unlink, path);
    if (node_at(path) < 0) return failed(ENOENT);
    int why = strike('n');
    if (why) return failed(why);
    return rename_to("", path, -1), 0;
}

int rename(const char *from, const char *to) {
    if (!is_sim(from)) return (int)syscall(SYS_rename, from, to);
    int node = node_at(from);
    if (node < 0 || !has_parent(&disk.live, to)) return failed(ENOENT);
    int why = strike('n');
    if (why) return failed(why);
    return rename_to(from, to, node), 0;
}

int mkdir(const char *path, mode_t mode) {
    if (!is_sim(path)) return (int)syscall(SYS_mkdir, path, mode);
    if (*dead) return failed(EIO);
    if (node_at(path) >= 0) return failed(EEXIST);
    if (!has_parent(&disk.live, path)) return failed(ENOENT);
    int why = strike('n');
    if (why) return failed(why);
    return rename_to("", path, node_new(true, false)), 0;
}

int mkstemp(char *path) {
    static unsigned number;
    if (!is_sim(path)) return mkostemp(path, 0);
    snprintf(path + strlen(path) - 6, 7, "%06u", ++number % 1000000);
    return sim_open(path, O_CREAT | O_EXCL);
}

/* ---- what only SQLite calls ---- */

static int sim_ftruncate(int fd, off_t n) {
    struct opened *o = file_of(fd);
    if (!o) return ftruncate(fd, n);
    struct node *f = &disk.nodes[o->node];
    int why = strike('t');
    if (why) return failed(why);
    GROW(f->changes, f->count, f->cap);
    f->changes[f->count] = (struct change){.at = (size_t)n, .truncate = true};
    change_apply(&f->live, &f->changes[f->count++]);
    return 0;
}

static int stat_node(int node, struct stat *st) {
    if (*dead || node < 0) return failed(*dead ? EIO : ENOENT);
    const struct node *f = &disk.nodes[node];
    *st = (struct stat){.st_dev = 7, .st_ino = (ino_t)node + 1, .st_nlink = 1, .st_size = (off_t)f->live.n};
    st->st_mode = f->folder ? S_IFDIR | 0700 : S_IFREG | 0644;
    st->st_uid = geteuid();
    return 0;
}

static int sim_stat(const char *path, struct stat *st) {
    return is_sim(path) ? stat_node(node_at(path), st) : stat(path, st);
}

static int sim_lstat(const char *path, struct stat *st) {
    return is_sim(path) ? stat_node(node_at(path), st) : lstat(path, st);
}

static int sim_fstat(int fd, struct stat *st) {
    struct opened *o = file_of(fd);
    return o ? stat_node(o->node, st) : fstat(fd, st);
}

/* Locks between processes: there is but one. */
static int sim_fcntl(int fd, int what, ...) {
    va_list ap;
    va_start(ap, what);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    if (!file_of(fd)) return fcntl(fd, what, arg);
    if (what == F_GETLK) ((struct flock *)arg)->l_type = F_UNLCK;
    return 0;
}

static int sim_fchmod(int fd, mode_t mode) {
    return file_of(fd) ? 0 : fchmod(fd, mode);
}

static int sim_fchown(int fd, uid_t user, gid_t group) {
    return file_of(fd) ? 0 : fchown(fd, user, group);
}

static void *sim_mmap(void *at, size_t n, int prot, int flags, int fd, off_t from) {
    struct opened *o = file_of(fd);
    if (!o) return mmap(at, n, prot, flags, fd, from);
    if ((size_t)from + n > SHM_BYTES) abort();
    return disk.nodes[o->node].live.p + from;
}

static int sim_munmap(void *p, size_t n) {
    for (size_t i = 0; i < disk.node_count; i++) {
        const struct buf *b = &disk.nodes[i].live;
        if (b->p && (char *)p >= b->p && (char *)p < b->p + b->cap) return 0;
    }
    return munmap(p, n);
}

static void take_over_sqlite(void) {
    static const struct {
        const char *name;
        sqlite3_syscall_ptr call;
    } calls[] = {{"open", (sqlite3_syscall_ptr)open},
                 {"close", (sqlite3_syscall_ptr)close},
                 {"access", (sqlite3_syscall_ptr)access},
                 {"stat", (sqlite3_syscall_ptr)sim_stat},
                 {"lstat", (sqlite3_syscall_ptr)sim_lstat},
                 {"fstat", (sqlite3_syscall_ptr)sim_fstat},
                 {"ftruncate", (sqlite3_syscall_ptr)sim_ftruncate},
                 {"fcntl", (sqlite3_syscall_ptr)sim_fcntl},
                 {"read", (sqlite3_syscall_ptr)read},
                 {"pread", (sqlite3_syscall_ptr)pread},
                 {"pread64", (sqlite3_syscall_ptr)pread},
                 {"write", (sqlite3_syscall_ptr)write},
                 {"pwrite", (sqlite3_syscall_ptr)pwrite},
                 {"pwrite64", (sqlite3_syscall_ptr)pwrite},
                 {"fchmod", (sqlite3_syscall_ptr)sim_fchmod},
                 {"fchown", (sqlite3_syscall_ptr)sim_fchown},
                 {"unlink", (sqlite3_syscall_ptr)unlink},
                 {"mkdir", (sqlite3_syscall_ptr)mkdir},
                 {"mmap", (sqlite3_syscall_ptr)sim_mmap},
                 {"munmap", (sqlite3_syscall_ptr)sim_munmap}};
    sqlite3_vfs *vfs = sqlite3_vfs_find(NULL);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) vfs->xSetSystemCall(vfs, calls[i].name, calls[i].call);
}
