/* dev.c: a worker in the foreground. `dev` also builds, deploys, watches the project and shows what happens.
 *
 * One thread: it waits for signals, for changes of files, and for the feed. The feed is a pipe into which the engine's
 * threads write lines (log lines and journal entries made readable) without ever waiting: when the terminal is slower
 * than the engine, lines are lost, not time. A change of any file builds and deploys everything anew; what is up to date
 * costs nothing. What cannot be built or deployed, at the start too, leaves what was deployed as it was.
 */
#include "cli/cli.h"
#include "http/http.h"
#include "observe/observe.h"
#include "runtime/runtime.h"
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <unistd.h>

struct served {
    const struct cli *cli;
    const char *dir;
    struct project project;
    struct loom *loom;
    struct http_server *http;
    struct view view;
    struct buf keys, config, feed_text;
    int64_t started;
    int signals, changes, feed[2];
    bool built; /* what the project holds now */
    uint64_t subscription;
};

/* ---- the feed ---- */

static void add_entry(struct served *s, struct str actor, yyjson_val *entry, struct buf *line) {
    char clock[32];
    format_clock(json_int(entry, "at", 0), clock);
    buf_json(line, "%s%s  %s%s", paint(DIM), clock, paint(PLAIN), paint(CYAN));
    size_t used = 14 + view_actor(actor, line);
    buf_json(line, "%s", paint(PLAIN));
    view_entry(&s->view, actor, entry, used, line);
    buf_char(line, '\n');
}

static void on_event(void *ctx, const struct loom_event *event) {
    struct served *s = ctx;
    struct buf line = {0};
    yyjson_doc *doc = yyjson_read(event->json.p, event->json.n, 0);
    add_entry(s, (struct str){event->actor.p, event->actor.n}, yyjson_obj_get(yyjson_doc_get_root(doc), "entry"),
              &line);
    if (write(s->feed[1], line.p, line.n) < 0) {
        /* The terminal does not keep up: the line is dropped. */
    }
    buf_free(&line);
    yyjson_doc_free(doc);
}

/* An actor that goes on where it was: remembers what it had begun, shows what recovery has written. */
static void show_recovered(struct served *s, const struct door *d, yyjson_val *actor) {
    struct str id = json_str(actor, "id"), reason = json_str(actor, "suspendReason");
    struct loom_request r = {.op = "get", .at = -1};
    struct answer a;
    struct buf lines = {0};
    yyjson_val *entry;
    size_t i, n;
    request_actor(&r, id);
    ask_ok(d, &r, &a);
    yyjson_arr_foreach(yyjson_ptr_get(a.root, "/journal/entries"), i, n, entry) {
        if (json_int(entry, "at", 0) < s->started)
            view_begin(&s->view, id, entry);
        else
            add_entry(s, id, entry, &lines);
    }
    printf("%s  goes on%s  %.*s%s%.*s\n%.*s", paint(GREEN), paint(PLAIN), (int)id.n, id.p,
           reason.n ? ", waits for " : "", (int)reason.n, reason.p ? reason.p : "", (int)lines.n,
           lines.n ? lines.p : "");
    buf_free(&lines);
    answer_free(&a);
}

static void show_all_recovered(struct served *s, const char *status) {
    struct door d = {.loom = s->loom};
    struct loom_request r = {.op = "actors", .status = loom_of(str_of(status)), .limit = 100, .at = -1};
    struct answer a;
    yyjson_val *actor;
    size_t i, n;
    ask_ok(&d, &r, &a);
    yyjson_arr_foreach(yyjson_obj_get(a.root, "actors"), i, n, actor) show_recovered(s, &d, actor);
    answer_free(&a);
}

/* One line of the log for people: {"level","time","pid","hostname",…fields,"msg"}. */
static void print_log(struct str line) {
    yyjson_doc *doc = yyjson_read(line.p, line.n, 0);
    yyjson_val *root = yyjson_doc_get_root(doc), *key, *value;
    struct str msg = json_str(root, "msg");
    int64_t level = json_int(root, "level", 0);
    enum paint p = level >= LOG_ERROR ? RED : level >= LOG_WARN ? YELLOW : PLAIN;
    size_t i, n;
    char clock[32];
    format_clock(json_int(root, "time", 0), clock);
    printf("%s%s  %s%s%.*s%s", paint(DIM), clock, paint(PLAIN), paint(p), (int)msg.n, msg.n ? msg.p : "", paint(DIM));
    yyjson_obj_foreach(root, i, n, key, value) {
        struct buf text = {0};
        json_write(value, &text);
        if (i > 3 && i + 1 < n) printf("  %s=%.*s", yyjson_get_str(key), (int)text.n, text.p);
        buf_free(&text);
    }
    puts(paint(PLAIN));
    yyjson_doc_free(doc);
}

static void show_feed(struct served *s) {
    char part[65536];
    for (ssize_t n; (n = read(s->feed[0], part, sizeof part)) > 0;) buf_add(&s->feed_text, part, (size_t)n);
    size_t from = 0;
    for (char *end; s->feed_text.n > from && (end = memchr(s->feed_text.p + from, '\n', s->feed_text.n - from));) {
        struct str line = {s->feed_text.p + from, (size_t)(end - s->feed_text.p) - from};
        if (line.n && line.p[0] == '{')
            print_log(line);
        else
            printf("%.*s\n", (int)line.n, line.p);
        from += line.n + 1;
    }
    if (from) memmove(s->feed_text.p, s->feed_text.p + from, s->feed_text.n -= from);
    fflush(stdout);
}

/* ---- watching ---- */

static void watch(struct served *s) {
    static const char *const folders[] = {"", "/*", "/a*/*", "/a*/*/src"}; /* hidden ones do not match */
    struct arena a = {0};
    for (size_t f = 0; f < sizeof folders / sizeof *folders; f++) {
        glob_t found = {0};
        glob(arena_json(&a, "%s%s", s->dir, folders[f]).p, GLOB_ONLYDIR, NULL, &found);
        for (size_t i = 0; i < found.gl_pathc; i++)
            inotify_add_watch(s->changes, found.gl_pathv[i],
                              IN_CLOSE_WRITE | IN_MOVE | IN_CREATE | IN_DELETE | IN_ONLYDIR);
        globfree(&found);
    }
    arena_free(&a);
}

/* An editor writes in several steps: what comes within a moment is one change. Hidden files do not count. */
static bool changed(struct served *s) {
    bool any = false;
    uint32_t ours = 0; /* the move of a module that the build has made */
    struct pollfd p = {.fd = s->changes, .events = POLLIN};
    do {
        char events[16384] __attribute__((aligned(8)));
        ssize_t n = read(s->changes, events, sizeof events);
        for (char *at = events; at < events + (n > 0 ? n : 0);) {
            struct inotify_event *e = (struct inotify_event *)(void *)at;
            bool hidden = !e->len || e->name[0] == '.';
            if (hidden && e->len && strcmp(e->name, PROJECT_BUILDING) == 0) ours = e->cookie;
            any = any || (!hidden && (!ours || e->cookie != ours));
            at += sizeof *e + e->len;
        }
    } while (poll(&p, 1, 60) > 0);
    return any;
}

static void deploy(struct served *s) {
    if (!s->built || !project_deploy(&s->project, &(struct door){.loom = s->loom}, true, SHOW_CHANGES))
        fail("waits for a change; what was deployed before stays");
}

static void build(struct served *s) {
    project_close(&s->project);
    s->built = project_open(&s->project, s->dir, true) && project_build(&s->project, false);
    if (s->built && s->loom && !str_eq(buf_view(&s->config), s->project.config))
        printf("%sloom.json has changed; it counts from the next start%s\n", paint(YELLOW), paint(PLAIN));
    if (s->loom) deploy(s);
    watch(s);
}

/* ---- life ---- */

static struct str builtin_text(const char *path) {
    for (const struct builtin_file *f = builtin_files; f->path; f++)
        if (strcmp(f->path, path) == 0) return (struct str){(const char *)f->start, (size_t)(f->end - f->start)};
    return STR_NONE;
}

static bool serve_start(struct served *s, bool dev) {
    const struct options *o = &s->cli->o;
    struct error err;
    struct loom_config config = {.store = o->store,
                                 .accept_restored = o->accept_restored,
                                 .debug = o->debug,
                                 .flushed = http_flushed,
                                 .flushed_ctx = &s->http};
    if (o->keys && !path_read(o->keys, &s->keys))
        return fail("cannot read %s: %s", o->keys, strerror(errno)) == EXIT_OK;
    if (dev) build(s);
    if (dev ? !s->project.config.p : !project_open(&s->project, s->dir, false)) return false;
    buf_str(&s->config, s->project.config);
    s->started = env_system()->now_ms(env_system());
    if (!(s->loom = project_engine(&s->project, config))) return false;
    if (dev) {
        show_all_recovered(s, "running");
        show_all_recovered(s, "suspended");
        s->subscription = loom_subscribe(s->loom, (struct loom_str){0}, (struct loom_str){0}, 0, on_event, s);
    }
    if (dev) deploy(s);
    struct http_config http = {.listen = o->listen ? o->listen : "127.0.0.1:7100",
                               .loom = s->loom,
                               .keys = s->keys.n ? buf_view(&s->keys) : STR_NONE,
                               .page = builtin_text("ui/index.html")};
    if (http_start(&http, &s->http, &err)) return fail("%s", err.message) == EXIT_OK;
    return true;
}

static void serve_until_signal(struct served *s, bool dev) {
    struct pollfd polled[] = {{s->signals, POLLIN, 0}, {s->feed[0], POLLIN, 0}, {s->changes, POLLIN, 0}};
    while (!(polled[0].revents & POLLIN)) {
        poll(polled, dev ? 3 : 1, -1);
        if (polled[1].revents) show_feed(s);
        if (polled[2].revents && changed(s)) build(s);
    }
    struct signalfd_siginfo taken;
    if (read(s->signals, &taken, sizeof taken) < 0) fail("cannot read the signal: %s", strerror(errno));
}

static void serve_stop(struct served *s, bool dev) {
    if (s->http) http_drain(s->http);
    if (s->subscription) loom_unsubscribe(s->loom, s->subscription);
    if (s->loom) loom_close(s->loom);
    if (s->http) http_stop(s->http);
    if (s->http && !dev) log_event(LOG_INFO, "stopped", "");
    if (dev) show_feed(s);
    view_free(&s->view);
    buf_free(&s->feed_text);
    buf_free(&s->keys);
    buf_free(&s->config);
    project_close(&s->project);
}

static int serve(const struct cli *c, bool dev) {
    struct served s = {.cli = c, .dir = c->arg_count ? c->args[0] : "."};
    sigset_t stop, before;
    sigemptyset(&stop);
    sigaddset(&stop, SIGINT);
    sigaddset(&stop, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &stop, &before);
    s.signals = signalfd(-1, &stop, SFD_CLOEXEC);
    s.changes = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (pipe2(s.feed, O_NONBLOCK | O_CLOEXEC)) return fail("cannot make a pipe: %s", strerror(errno));
    fcntl(s.feed[1], F_SETPIPE_SZ, 1 << 20);
    log_open(dev ? s.feed[1] : 2, LOG_INFO);
    bool ok = serve_start(&s, dev);
    if (ok) {
        const char *listen = c->o.listen ? c->o.listen : "127.0.0.1:7100", *colon = strrchr(listen, ':');
        int host = (int)(colon ? colon - listen : 0);
        if (dev)
            printf("%sLoom %s%s serves %s on %shttp://%.*s:%d%s, store %s%s; Ctrl-C stops\n", paint(BOLD), LOOM_VERSION,
                   paint(PLAIN), s.dir, paint(CYAN), host, listen, http_port(s.http), paint(PLAIN),
                   c->o.store ? "" : s.dir, c->o.store ? c->o.store : "/.loom/store");
        else
            log_event(LOG_INFO, "serving", "\"address\":%q,\"port\":%d,\"version\":%z,\"project\":%z,\"store\":%z",
                      (struct str){listen, (size_t)host}, (int64_t)http_port(s.http), LOOM_VERSION, s.dir,
                      c->o.store ? c->o.store : "the project's .loom/store");
        fflush(stdout);
        serve_until_signal(&s, dev);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL); /* from here a signal ends the process at once */
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    serve_stop(&s, dev);
    return ok ? EXIT_OK : EXIT_FAILED;
}

int command_dev(struct cli *c) {
    return serve(c, true);
}

int command_worker(struct cli *c) {
    return serve(c, false);
}
