/* http.c: a client as lean as can be: epoll, keep-alive, one connection and one request in flight per client.
 *
 *     http get PORT CLIENTS REQUESTS PATH
 *     http post PORT CLIENTS REQUESTS PATH    the body is 1, each with an Idempotency-Key of its own; the first % in PATH
 *                                             stands for one of 1,000 keys in turn
 *     http cold PORT PROGRAM ARGUMENT…        starts a worker, asks until it is ready, prints the time, RSS after a second
 */
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ACTORS = 1000, CLIENTS_MAX = 1024 };
extern char **environ;

struct client {
    int fd, i; /* the request in flight */
    size_t n;
    char in[4096];
};
static struct client clients[CLIENTS_MAX];
static double *sent, *took;
static int sent_count, done_count, total;
static bool posting, keyed;
static const char *path, *path_end = ""; /* before and behind the key */
static unsigned run_id;

static int dial(int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0) return fd;
    close(fd);
    return -1;
}

static void send_all(int fd, const char *p, size_t n) {
    while (n > 0) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k <= 0) die("send", strerror(errno));
        p += k, n -= (size_t)k;
    }
}

static void request(struct client *c) {
    char text[512], key[16] = "";
    if (sent_count == total) return;
    c->i = sent_count++;
    if (keyed) snprintf(key, sizeof key, "%07d", c->i % ACTORS);
    int n = posting
                ? snprintf(text, sizeof text,
                           "POST %s%s%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           "Idempotency-Key: %08x-%07d\r\nContent-Length: 1\r\n\r\n1",
                           path, key, path_end, run_id, c->i)
                : snprintf(text, sizeof text, "GET %s%s%s HTTP/1.1\r\nHost: localhost\r\n\r\n", path, key, path_end);
    if ((size_t)n >= sizeof text) die("the path is too long", path);
    sent[c->i] = now_us();
    send_all(c->fd, text, (size_t)n);
}

/* Whether the answer in c->in is whole; it has a Content-Length. */
static bool whole(const struct client *c) {
    const char *head = strstr(c->in, "\r\n\r\n"), *length = strcasestr(c->in, "\r\nContent-Length:");
    if (!head || !length) return false;
    return c->n >= (size_t)(head + 4 - c->in) + strtoul(length + 17, NULL, 10);
}

static void readable(struct client *c) {
    ssize_t n = recv(c->fd, c->in + c->n, sizeof c->in - 1 - c->n, 0);
    if (n <= 0) die("the server closed the connection", c->in);
    c->n += (size_t)n;
    c->in[c->n] = '\0';
    if (!whole(c)) return;
    if (strncmp(c->in, "HTTP/1.1 200", 12) != 0) die("unexpected answer", c->in);
    took[c->i] = now_us() - sent[c->i];
    done_count++;
    c->n = 0;
    request(c);
}

static double cpu_s(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void load(int port, int count) {
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (count > CLIENTS_MAX) die("too many clients", "1,024 at most");
    sent = malloc((size_t)total * sizeof *sent);
    took = malloc((size_t)total * sizeof *took);
    for (int i = 0; i < count; i++) {
        clients[i].fd = dial(port);
        if (clients[i].fd < 0) die("cannot connect", strerror(errno));
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &clients[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, clients[i].fd, &e);
    }
    double from = now_us(), cpu = cpu_s();
    for (int i = 0; i < count; i++) request(&clients[i]);
    while (done_count < total) {
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, 300000);
        if (n <= 0) die("no answer", "for five minutes");
        for (int i = 0; i < n; i++) readable(events[i].data.ptr);
    }
    double s = (now_us() - from) / 1e6;
    print("msgs_per_s", total / s);
    print("client_cpu_share", (cpu_s() - cpu) / s);
    print("p50_us", percentile(took, (size_t)total, 0.5));
    print("p99_us", percentile(took, (size_t)total, 0.99));
}

/* ---- cold start ---- */

static bool ready(int port) {
    char in[1024] = "";
    int fd = dial(port);
    if (fd < 0) return false;
    static const char get[] = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    send_all(fd, get, sizeof get - 1);
    bool ok = recv(fd, in, sizeof in - 1, 0) > 0 && strncmp(in, "HTTP/1.1 200", 12) == 0;
    close(fd);
    return ok;
}

static double rss_mb(pid_t pid) {
    char file[64];
    long size, pages = 0;
    snprintf(file, sizeof file, "/proc/%d/statm", (int)pid);
    FILE *f = fopen(file, "r");
    if (!f || fscanf(f, "%ld %ld", &size, &pages) != 2) die("cannot read", file);
    fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / 1e6;
}

static void cold(int port, char **command) {
    pid_t pid;
    double from = now_us();
    if (posix_spawnp(&pid, command[0], NULL, NULL, command, environ)) die("cannot start", command[0]);
    while (!ready(port)) {
        if (now_us() - from > 30e6 || waitpid(pid, NULL, WNOHANG) == pid) die("it did not get ready", command[0]);
        usleep(200);
    }
    print("cold_start_ms", (now_us() - from) / 1e3);
    sleep(1);
    print("idle_rss_mb", rss_mb(pid));
    kill(pid, SIGTERM);
    waitpid(pid, NULL, 0);
}

int main(int argc, char **argv) {
    bool cold_start = argc >= 4 && strcmp(argv[1], "cold") == 0;
    if (!cold_start && argc != 6)
        die("usage", "http get|post PORT CLIENTS REQUESTS PATH, or http cold PORT PROGRAM ARGUMENT...");
    int port = atoi(argv[2]);
    if (cold_start) return cold(port, argv + 3), 0;
    posting = strcmp(argv[1], "post") == 0;
    run_id = (unsigned)getpid() ^ (unsigned)now_us();
    total = atoi(argv[4]);
    path = strsep(&argv[5], "%");
    keyed = argv[5];
    if (keyed) path_end = argv[5];
    load(port, atoi(argv[3]));
    return 0;
}
