/* disk.c: a disk that fails, put before the C library of a real process by LD_PRELOAD. What it does stands in the file that
 * LOOM_DISK names, read at each write, sync, truncation and removal beneath the folder LOOM_DISK_DIR: "kill N" ends the
 * process before the N-th of these, "tear N" after half of it; "full" and "sync" fail with ENOSPC and EIO; "slow MS" takes
 * so long for each sync, or until it does not stand there any more. Without the file all is well.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&(name)))dlsym(RTLD_NEXT, #name))

enum fault { NONE, KILL, TEAR, FULL, SYNC, SLOW };
static atomic_long count;

/* What is to happen now at the open file, or at the path. */
static enum fault fault(int fd, const char *path, long *ms) {
    static const char *const names[] = {
        [KILL] = "kill", [TEAR] = "tear", [FULL] = "full", [SYNC] = "sync", [SLOW] = "slow"};
    const char *knob = getenv("LOOM_DISK"), *dir = getenv("LOOM_DISK_DIR");
    char link[40], name[4096] = "", text[64] = "", word[16] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (fd >= 0 && readlink(link, name, sizeof name - 1) < 0) return NONE;
    if (!knob || !dir || !strstr(path ? path : name, dir)) return NONE;
    long n = atomic_fetch_add(&count, 1) + 1, at = 0;
    int file = open(knob, O_RDONLY | O_CLOEXEC);
    if (file < 0 || read(file, text, sizeof text - 1) < 0 || sscanf(text, "%15s %ld", word, &at) < 1) word[0] = 0;
    if (file >= 0) close(file);
    for (enum fault f = KILL; f <= SLOW; f++)
        if (strcmp(word, names[f]) == 0) {
            *ms = at;
            return f > TEAR || n == at ? f : NONE;
        }
    return NONE;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    pause();
}

static ssize_t put(int fd, const void *p, size_t n, off_t at) {
    return at < 0 ? REAL(write)(fd, p, n) : REAL(pwrite)(fd, p, n, at);
}

static ssize_t put_or_fail(int fd, const void *p, size_t n, off_t at) {
    long ms = 0;
    enum fault f = fault(fd, NULL, &ms);
    if (f == TEAR && put(fd, p, n / 2, at) >= 0) die();
    if (f == KILL) die();
    errno = ENOSPC;
    return f == FULL ? -1 : put(fd, p, n, at);
}

ssize_t write(int fd, const void *p, size_t n) {
    return put_or_fail(fd, p, n, -1);
}
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) {
    return put_or_fail(fd, p, n, at);
}
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at) {
    return put_or_fail(fd, p, n, at);
}

/* true: errno says why not. */
static int fails(int fd, const char *path, int sync) {
    long ms = 0;
    enum fault f = fault(fd, path, &ms);
    if (f == KILL || f == TEAR) die();
    for (long waited = 0; f == SLOW && sync && waited < ms; waited += 10, f = fault(fd, path, &ms)) usleep(10000);
    errno = EIO;
    return f == SYNC && sync;
}

int fsync(int fd) {
    return fails(fd, NULL, 1) ? -1 : REAL(fsync)(fd);
}
int fdatasync(int fd) {
    return fails(fd, NULL, 1) ? -1 : REAL(fdatasync)(fd);
}
int ftruncate(int fd, off_t n) {
    return fails(fd, NULL, 0) ? -1 : REAL(ftruncate)(fd, n);
}
int ftruncate64(int fd, off64_t n) {
    return fails(fd, NULL, 0) ? -1 : REAL(ftruncate64)(fd, n);
}
int rename(const char *from, const char *to) {
    return fails(-1, to, 0) ? -1 : REAL(rename)(from, to);
}
int unlink(const char *path) {
    return fails(-1, path, 0) ? -1 : REAL(unlink)(path);
}
