/* server.c: sockets, connections, and the one thread that serves them (epoll, level-triggered).
 *
 * The engine answers on its own thread: it leaves replies and events in inboxes, lists the connections in a queue, and wakes
 * this thread once per group. A connection whose client has gone stays in memory, without a socket, until its reply has come.
 * While a request is at the engine its connection reads nothing more, so pipelined requests wait in the kernel, in order.
 *
 * Deadlines, looked at once a second: a request arrives within 10 s plus 1 s per 64 KiB that has come (408); a connection may
 * idle for 75 s; bytes to send make progress every 30 s; after the last answer the client closes within 2 s.
 *
 * Why not evhttp: it accepts what must be refused (two lengths, folded lines, odd codings), so every byte would have to be
 * parsed before it, and that parser is most of a server. TLS is left to a proxy.
 */
#include "http/internal.h"
#include "observe/observe.h"
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SCRATCH = 64 << 10, ROUND_MAX = 256, IDLE_MS = 75000, STALL_MS = 30000, LINGER_MS = 2000, STOP_MS = 1000 };

/* ---- answers ---- */

/* No reason phrase: nobody may rely on it, and problem documents have a title. */
void http_respond(struct http_conn *c, int status, const char *type, struct str body) {
    struct buf *out = &c->out;
    struct loom_str correlation = c->request.correlation;
    if (!type) type = c->route->makes ? c->route->makes : "application/json";
    buf_json(out,
             "HTTP/1.1 %d \r\nDate: %s\r\nContent-Type: %s\r\nCache-Control: no-store\r\nX-Content-Type-Options: "
             "nosniff\r\n",
             (int64_t)status, c->server->date, type);
    if (body.p) buf_json(out, "Content-Length: %d\r\n", (int64_t)body.n);
    if (c->close_after) buf_str(out, STR("Connection: close\r\n"));
    if (correlation.p) buf_json(out, "Loom-Correlation-Id: %j\r\n", (struct str){correlation.p, correlation.n});
    buf_str(out, buf_view(&c->extra));
    buf_str(out, STR("\r\n"));
    if (!str_eq(c->head.method, STR("HEAD"))) buf_str(out, body);
    buf_clear(&c->extra);
    metric_add(METRIC_HTTP_REQUESTS, 1);
    if (log_on(LOG_DEBUG))
        log_event(LOG_DEBUG, "request", "\"method\":%q,\"path\":%q,\"status\":%d", c->head.method, c->head.path,
                  (int64_t)status);
    http_phase(c, HTTP_AT_SENDING);
}

/* ---- a connection ---- */

static void watch(struct http_conn *c, uint32_t events) {
    if (events == c->watched) return;
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(c->server->epoll, EPOLL_CTL_MOD, c->fd, &e);
    c->watched = events;
}

void http_phase(struct http_conn *c, enum http_phase phase) {
    c->phase = phase;
    c->since = c->server->now;
}

static void bury(struct http_conn *c) {
    c->next = c->server->dead;
    c->server->dead = c;
}

static void conn_close(struct http_conn *c) {
    struct http_server *s = c->server;
    if (c->phase == HTTP_AT_STREAM) http_stream_close(c);
    close(c->fd);
    c->fd = -1;
    if (c->next) c->next->prev = c->prev;
    *(c->prev ? &c->prev->next : &s->open) = c->next;
    pthread_mutex_lock(&s->lock);
    bool reachable = c->phase == HTTP_AT_ENGINE || c->queued;
    pthread_mutex_unlock(&s->lock);
    if (!reachable) bury(c);
}

static void free_dead(struct http_server *s) {
    for (struct http_conn *c; (c = s->dead) != NULL;) {
        s->dead = c->next;
        buf_free(&c->in);
        buf_free(&c->out);
        buf_free(&c->head_text);
        buf_free(&c->extra);
        buf_free(&c->inbox);
        arena_free(&c->arena);
        free(c);
    }
}

static void reset(struct buf *b) {
    buf_clear(b);
    if (b->cap > SCRATCH) buf_free(b);
}

static void drop_front(struct buf *b, size_t n) {
    if (n == 0) return;
    memmove(b->p, b->p + n, b->n - n);
    b->n -= n;
    if (b->n == 0) reset(b);
}

/* Sends what it can; false: the connection is gone. */
static bool send_out(struct http_conn *c) {
    while (c->sent < c->out.n) {
        ssize_t n = send(c->fd, c->out.p + c->sent, c->out.n - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return true;
        if (n < 0) {
            conn_close(c);
            return false;
        }
        c->sent += (size_t)n;
        c->since = c->server->now;
    }
    c->sent = 0;
    reset(&c->out);
    return true;
}

/* The steps of a phase answer whether there is more to do at once. */

static bool refuse(struct http_conn *c, int status, const struct error *e) {
    c->close_after = true;
    http_fail(c, status, e);
    return true;
}

static bool at_head(struct http_conn *c) {
    size_t skip = 0;
    struct error e;
    while (c->in.n - skip >= 2 && memcmp(c->in.p + skip, "\r\n", 2) == 0) skip += 2;
    drop_front(&c->in, skip);
    if (c->in.n == 0) return false;
    size_t n = http_head_end(buf_view(&c->in));
    c->close_after = false;
    c->head = (struct http_head){0};
    c->request = (struct loom_request){0};
    if (n > HTTP_HEAD_MAX || (n == 0 && c->in.n >= HTTP_HEAD_MAX)) {
        error_set(&e, LOOM_E_TOO_LARGE, "The request's head is larger than %d bytes", HTTP_HEAD_MAX);
        return refuse(c, 431, &e);
    }
    if (n == 0 && (c->in.p[0] == '\r' || (c->in.p[0] >= 'A' && c->in.p[0] <= 'Z'))) return false;
    if (n == 0) n = c->in.n; /* not HTTP: refused at once */
    buf_clear(&c->head_text);
    buf_add(&c->head_text, c->in.p, n);
    drop_front(&c->in, n);
    int status = http_head_parse(buf_view(&c->head_text), &c->head, &e);
    if (status) return refuse(c, status, &e);
    bool has_body = c->head.chunked || c->head.content_length;
    c->close_after = has_body || !c->head.keep_alive; /* a refused body is not read */
    if (!http_admit(c)) return true;
    c->close_after = !c->head.keep_alive || c->server->draining;
    c->chunks = (struct http_chunks){0};
    c->phase = HTTP_AT_BODY; /* `since` stays: one deadline for head and body */
    if (has_body && c->head.headers[HTTP_EXPECT].p && c->in.n == 0) {
        buf_str(&c->out, STR("HTTP/1.1 100 Continue\r\n\r\n"));
        return send_out(c);
    }
    return true;
}

static bool at_body(struct http_conn *c) {
    struct http_chunks *k = &c->chunks;
    if (c->head.chunked && c->in.n == k->in) return false;
    int whole = c->in.n >= c->head.content_length;
    size_t n = c->head.content_length;
    if (c->head.chunked) {
        whole = http_chunks_decode(k, c->in.p, c->in.n);
        memmove(c->in.p + k->out, c->in.p + k->in, c->in.n - k->in);
        c->in.n -= k->in - k->out;
        k->in = n = k->out;
    }
    if (whole < 0 || n + k->left > http_body_max(c)) {
        c->close_after = true;
        if (whole < 0)
            http_problem(c, 0, LOOM_E_INVALID_ARGUMENT, "The body's chunks are malformed, have extensions or trailers");
        else
            http_too_large(c);
        return true;
    }
    if (!whole) return false;
    c->body_n = n;
    http_dispatch(c, (struct str){c->in.p, n});
    return true;
}

static bool at_sending(struct http_conn *c) {
    if (!send_out(c) || c->out.n) return false;
    drop_front(&c->in, c->body_n);
    c->body_n = 0;
    arena_free(&c->arena);
    reset(&c->inbox);
    http_phase(c, c->close_after ? HTTP_AT_LINGER : HTTP_AT_HEAD);
    if (c->close_after) shutdown(c->fd, SHUT_WR);
    return c->in.n > 0;
}

static bool at_stream(struct http_conn *c) {
    send_out(c);
    return false;
}

static bool at_linger(struct http_conn *c) {
    reset(&c->in);
    return false;
}

/* Takes the connection as far as it goes. */
static void conn_run(struct http_conn *c) {
    static bool (*const steps[])(struct http_conn *) = {
        [HTTP_AT_HEAD] = at_head,       [HTTP_AT_BODY] = at_body,     [HTTP_AT_ENGINE] = NULL,
        [HTTP_AT_SENDING] = at_sending, [HTTP_AT_STREAM] = at_stream, [HTTP_AT_LINGER] = at_linger,
    };
    while (steps[c->phase] && steps[c->phase](c) && c->fd >= 0) {
    }
    if (c->fd < 0) return;
    bool reads = c->phase != HTTP_AT_ENGINE && c->phase != HTTP_AT_SENDING;
    watch(c, (reads ? EPOLLIN : c->watched & EPOLLIN) | (c->out.n ? EPOLLOUT : 0u));
}

static void conn_event(struct http_conn *c, uint32_t events) {
    struct http_server *s = c->server;
    bool reads = c->phase != HTTP_AT_ENGINE && c->phase != HTTP_AT_SENDING;
    if (c->fd < 0 || (events & EPOLLOUT && !send_out(c))) return;
    if (events & EPOLLIN && reads) {
        ssize_t n = read(c->fd, s->scratch, SCRATCH);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            conn_close(c);
            return;
        }
        if (c->phase == HTTP_AT_HEAD && c->in.n == 0) c->since = s->now;
        if (n > 0 && c->phase != HTTP_AT_STREAM) buf_add(&c->in, s->scratch, (size_t)n);
    } else if (events & (EPOLLERR | EPOLLHUP)) {
        conn_close(c);
        return;
    } else if (events & EPOLLIN) { /* the next request, or the client's end: later */
        watch(c, c->watched & ~(uint32_t)EPOLLIN);
    }
    if (c->phase != HTTP_AT_ENGINE) conn_run(c);
}

static void conn_expire(struct http_conn *c) {
    struct http_server *s = c->server;
    int64_t age = s->now - c->since;
    bool arriving = c->phase == HTTP_AT_BODY || (c->phase == HTTP_AT_HEAD && c->in.n);
    if (arriving && age > s->request_timeout_ms + (int64_t)c->in.n / 64) {
        struct error e;
        error_set(&e, LOOM_E_TIMEOUT, "The request did not arrive in time; send it again");
        refuse(c, 408, &e);
        conn_run(c);
    } else if (c->phase == HTTP_AT_STREAM && !c->out.n) {
        http_stream_beat(c);
        conn_run(c);
    } else if ((c->phase == HTTP_AT_HEAD && !c->in.n && age > IDLE_MS) || (c->out.n && age > STALL_MS) ||
               (c->phase == HTTP_AT_LINGER && age > LINGER_MS)) {
        conn_close(c);
    }
}

/* ---- the loop ---- */

static void accept_all(struct http_server *s) {
    for (int fd; (fd = accept4(s->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        struct http_conn *c = mem_alloc(sizeof *c);
        *c = (struct http_conn){.server = s, .fd = fd, .watched = EPOLLIN, .since = s->now, .next = s->open};
        if (c->next) c->next->prev = c;
        s->open = c;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(s->epoll, EPOLL_CTL_ADD, fd, &e);
    }
    if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) { /* the next sweep listens again */
        log_event(LOG_WARN, "No more connections: the limit of open files is reached; raise it (ulimit -n)", "");
        epoll_ctl(s->epoll, EPOLL_CTL_DEL, s->listener, NULL);
    }
}

void http_queue(struct http_conn *c) {
    if (c->queued) return;
    c->queued = true;
    c->queue_next = c->server->queue;
    c->server->queue = c;
}

void http_wake(struct http_server *s) {
    if (__atomic_exchange_n(&s->woken, true, __ATOMIC_SEQ_CST)) return;
    (void)!write(s->wake, &(uint64_t){1}, 8);
}

void http_flushed(void *server_pointer) {
    struct http_server *s = __atomic_load_n((struct http_server **)server_pointer, __ATOMIC_ACQUIRE);
    if (s) http_wake(s);
}

static void take_queue(struct http_server *s) {
    uint64_t count;
    (void)!read(s->wake, &count, sizeof count);
    __atomic_store_n(&s->woken, false, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&s->lock);
    struct http_conn *list = s->queue;
    s->queue = NULL;
    pthread_mutex_unlock(&s->lock);
    for (struct http_conn *c; (c = list) != NULL;) {
        pthread_mutex_lock(&s->lock); /* only now may it be queued again */
        list = c->queue_next;
        c->queued = false;
        pthread_mutex_unlock(&s->lock);
        if (c->fd < 0) {
            bury(c);
            continue;
        }
        if (c->phase == HTTP_AT_ENGINE) http_answer(c);
        if (c->phase == HTTP_AT_STREAM) http_stream_take(c);
        conn_run(c);
    }
}

static void sweep(struct http_server *s) {
    if (s->swept && s->now - s->swept < 1000) return;
    s->swept = s->now;
    time_t seconds = (time_t)(s->env->now_ms(s->env) / 1000);
    strftime(s->date, sizeof s->date, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&seconds, &(struct tm){0}));
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &s->listener};
    if (!s->draining)
        epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->listener, &e); /* it is there already, unless files ran out */
    for (struct http_conn *c = s->open, *next; c; c = next) {
        next = c->next;
        conn_expire(c);
    }
}

static void drain(struct http_server *s) {
    s->draining = true;
    close(s->listener);
    s->listener = -1;
    for (struct http_conn *c = s->open, *next; c; c = next) {
        next = c->next;
        if (c->phase == HTTP_AT_HEAD && !c->in.n) conn_close(c);
        if (c->phase == HTTP_AT_STREAM) http_stream_end(c);
        if (c->phase == HTTP_AT_SENDING) conn_run(c);
    }
    sem_post(&s->drained);
}

/* After the command to stop, the loop goes on until all answers are sent, or for a second. */
static bool finished(const struct http_server *s, int64_t *stop_at) {
    if (__atomic_load_n(&s->command, __ATOMIC_ACQUIRE) != HTTP_STOP) return false;
    if (!*stop_at) *stop_at = s->now + STOP_MS;
    bool unsent = false;
    for (const struct http_conn *c = s->open; c; c = c->next) unsent |= c->out.n > 0;
    return !unsent || s->now >= *stop_at;
}

static void *serve(void *server) {
    struct http_server *s = server;
    struct epoll_event events[ROUND_MAX];
    for (int64_t stop_at = 0; !finished(s, &stop_at); free_dead(s)) {
        int n = epoll_wait(s->epoll, events, ROUND_MAX, stop_at ? 50 : 1000);
        s->now = s->env->mono_ms(s->env);
        sweep(s);
        for (int i = 0; i < n; i++) {
            void *what = events[i].data.ptr;
            if (what == &s->listener)
                accept_all(s);
            else if (what == &s->wake)
                take_queue(s);
            else
                conn_event(what, events[i].events);
        }
        if (!s->draining && __atomic_load_n(&s->command, __ATOMIC_ACQUIRE) != HTTP_SERVE) drain(s);
    }
    while (s->open) conn_close(s->open);
    take_queue(s);
    free_dead(s);
    return NULL;
}

/* ---- start and stop ---- */

static bool is_loopback(const struct sockaddr *a) {
    if (a->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
    return ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr) >> 24 == 127;
}

/* ADDR:PORT → addresses, for freeaddrinfo; NULL when it is none. */
static struct addrinfo *resolve(const char *listen) {
    char host[256];
    const char *colon = strrchr(listen, ':');
    int64_t port = -1;
    size_t n = colon ? (size_t)(colon - listen) : 0;
    bool brackets = n > 2 && listen[0] == '[' && listen[n - 1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)(brackets ? n - 2 : n), listen + brackets);
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *found = NULL;
    if (!n || n >= sizeof host || !http_integer(str_of(colon + 1), &port) || port < 0 || port > 65535) return NULL;
    return getaddrinfo(host, colon + 1, &hints, &found) ? NULL : found;
}

static int open_listener(struct http_server *s, const char *listen_on, struct error *err) {
    int rc = 0;
    struct addrinfo *a = resolve(listen_on);
    if (!a)
        return error_set(err, LOOM_E_INVALID_ARGUMENT,
                         "%s is no address to listen on; give ADDR:PORT, for example 127.0.0.1:7100", listen_on);
    s->loopback = is_loopback(a->ai_addr);
    if (!s->loopback && !s->keys.count) {
        rc = error_set(err, LOOM_E_FORBIDDEN,
                       "%s can be reached from other machines, so API keys are required: write "
                       "{\"keys\": [{\"sha256\": \"HEX\", \"namespace\": \"default\", \"role\": \"admin\"}]} into a "
                       "file and give it with --keys FILE, HEX being what `printf %%s KEY | sha256sum` prints; or "
                       "listen on 127.0.0.1",
                       listen_on);
        goto out;
    }
    union {
        struct sockaddr any;
        struct sockaddr_in6 v6;
    } bound = {.v6 = {0}};
    socklen_t n = sizeof bound;
    s->listener = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(s->listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(s->listener, a->ai_addr, a->ai_addrlen) || listen(s->listener, SOMAXCONN) ||
        getsockname(s->listener, &bound.any, &n)) {
        bool taken = errno == EADDRINUSE;
        rc = error_set(err, taken ? LOOM_E_CONFLICT : LOOM_E_INVALID_ARGUMENT, "Can't listen on %s: %s; %s", listen_on,
                       strerror(errno),
                       taken ? "stop the program that does, or choose another port with --listen"
                             : "choose another address with --listen");
        goto out;
    }
    s->port = ntohs(bound.v6.sin6_port); /* IPv4 has it at the same place */
out:
    freeaddrinfo(a);
    return rc;
}

static void server_free(struct http_server *s) {
    if (s->listener >= 0) close(s->listener);
    close(s->wake);
    close(s->epoll);
    sem_destroy(&s->drained);
    pthread_mutex_destroy(&s->lock);
    free(s->keys.list);
    free((char *)s->page.p);
    free(s->scratch);
    free(s);
}

int http_start(const struct http_config *config, struct http_server **out, struct error *err) {
    struct http_server *s = mem_alloc(sizeof *s);
    s->loom = config->loom;
    s->env = config->env ? config->env : env_system();
    s->request_timeout_ms = config->request_timeout_ms ? config->request_timeout_ms : 10000;
    s->scratch = mem_alloc(SCRATCH);
    s->page = (struct str){str_dup(config->page), config->page.n};
    s->listener = -1;
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    s->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    sem_init(&s->drained, 0, 0);
    pthread_mutex_init(&s->lock, NULL);
    int rc = http_keys_read(config->keys, &s->keys, err);
    if (rc == 0) rc = open_listener(s, config->listen, err);
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = &s->wake};
    if (rc == 0 && epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->wake, &wake))
        rc = error_set(err, LOOM_E_INTERNAL, "Can't wait for connections: %s", strerror(errno));
    if (rc) {
        server_free(s);
        return rc;
    }
    __atomic_store_n(out, s, __ATOMIC_RELEASE);
    http_wake(s); /* the first round sweeps, which adds the listener */
    if (pthread_create(&s->thread, NULL, serve, s)) abort();
    return 0;
}

int http_port(const struct http_server *s) {
    return s->port;
}

static void command(struct http_server *s, int what) {
    __atomic_store_n(&s->command, what, __ATOMIC_RELEASE);
    http_wake(s);
}

void http_drain(struct http_server *s) {
    command(s, HTTP_DRAIN);
    while (sem_wait(&s->drained)) {
    }
}

void http_stop(struct http_server *s) {
    command(s, HTTP_STOP);
    pthread_join(s->thread, NULL);
    server_free(s);
}
