/* debug.c: the store examined by a process of its own, and two ways to make a worker fail on purpose.
 *
 * That process is `loom debug VERB --store FOLDER`, which reads the last commit beside the running worker; what it prints
 * is the answer. So a live store and a stopped one are examined by the same code, and no fault of it harms the worker.
 */
#include "operate/operate.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ANSWER_MAX = 256 << 20, STALL_MAX_MS = 600000, POLL_US = 10000 };

struct examination {
    struct item item;
    struct loom *l;
    struct loom_request req;
    const char *argv[10];
    struct buf out, why; /* what it printed on stdout and stderr */
    bool ended;          /* by itself, with an exit code */
};

static void examined(struct loom *l, struct item *item) {
    struct examination *x = (struct examination *)item;
    struct error err;
    l->helpers--;
    if (x->out.n > ANSWER_MAX)
        error_set(&err, LOOM_E_TOO_LARGE, "the answer has %zu bytes; run `loom debug %s --store %s` on its machine",
                  x->out.n, x->argv[2], l->config.store);
    else
        error_set(&err, LOOM_E_INTERNAL, "the store could not be examined: %.*s", (int)x->why.n,
                  x->why.n ? x->why.p : "");
    if (x->ended && x->out.n > 0 && x->out.n <= ANSWER_MAX)
        reply_send(l, &x->req, 200, buf_view(&x->out), STR_NONE);
    else
        reply_error(l, &x->req, &err);
    buf_free(&x->out);
    buf_free(&x->why);
    item_free(item);
}

static void take(int fd, struct buf *out) {
    off_t n = lseek(fd, 0, SEEK_END);
    if (n > 0 && pread(fd, buf_reserve(out, (size_t)n), (size_t)n, 0) == n) out->n += (size_t)n;
    close(fd);
}

/* On a thread of its own; when Loom stops it does not wait for the process. */
static void *examine(void *arg) {
    struct examination *x = arg;
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int out = memfd_create("out", MFD_CLOEXEC), why = memfd_create("why", MFD_CLOEXEC), status = -1;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out, 1);
    posix_spawn_file_actions_adddup2(&actions, why, 2);
    errno = posix_spawn(&pid, x->l->config.compiler, &actions, NULL, (char **)(uintptr_t)x->argv, environ);
    if (errno)
        buf_json(&x->why, "%s: %s", x->l->config.compiler, strerror(errno));
    else
        for (; waitpid(pid, &status, WNOHANG) == 0; usleep(POLL_US))
            if (x->l->stop) kill(pid, SIGKILL);
    x->ended = WIFEXITED(status);
    posix_spawn_file_actions_destroy(&actions);
    take(out, &x->out);
    take(why, &x->why);
    loom_post(x->l, &x->item, examined);
    return NULL;
}

static void start(struct loom *l, const struct loom_request *req, const char *verb) {
    pthread_t thread;
    struct examination *x = item_new(sizeof *x);
    x->l = l;
    x->req = *req;
    const char *actor = req->key.p ? arena_dup(&x->item.mem, lent(req->key)).p : NULL;
    const char *words[] = {"loom",
                           "debug",
                           verb,
                           "--store",
                           l->config.store,
                           "--json",
                           "--ns",
                           arena_dup(&x->item.mem, ns_of(req)).p,
                           actor ? actor : "--all"};
    memcpy(x->argv, words, sizeof words);
    l->helpers++;
    if (l->env->thread(l->env, &thread, examine, x))
        pthread_detach(thread);
    else
        examine(x);
}

void debug_store(struct loom *l, const struct loom_request *req) {
    static const char *const verbs[] = {"digest", "verify", "replay", "dump", NULL};
    struct str verb = lent(req->type);
    struct error err;
    int rc = 0;
    const char *const *v = verbs;
    while (*v && !str_eq(verb, str_of(*v))) v++;
    bool fails = str_eq(verb, STR("panic")) || str_eq(verb, STR("stall"));
    if (!*v && !fails)
        rc = error_set(&err, LOOM_E_NOT_FOUND, "debug knows digest, verify, replay, dump, panic and stall");
    else if (fails && !l->config.debug)
        rc = error_set(&err, LOOM_E_FORBIDDEN,
                       "this worker does not fail on purpose; start it with --debug to allow that");
    else if (req->delay_ms > STALL_MAX_MS)
        rc = error_set(&err, LOOM_E_INVALID_ARGUMENT, "delayMs is at most %d", STALL_MAX_MS);
    else if (*v && (!l->config.store || strcmp(l->config.store, "memory") == 0))
        rc = error_set(&err, LOOM_E_CONFLICT, "the store is in memory: it has no file to examine");
    else if (*v && !l->config.compiler)
        rc = error_set(&err, LOOM_E_CONFLICT,
                       "this program is not the loom command; run `loom debug %s --store %s` on its machine", *v,
                       l->config.store);
    if (rc < 0) {
        reply_error(l, req, &err);
    } else if (*v) {
        start(l, req, *v);
    } else if (str_eq(verb, STR("panic"))) {
        abort(); /* no clean up: what a crash would leave */
    } else {
        usleep((useconds_t)req->delay_ms * 1000);
        reply_send(l, req, 200, say(l, "{\"stalledMs\":%d}", req->delay_ms), STR_NONE);
    }
}
