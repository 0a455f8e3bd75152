/* cli.h: what the files of the command line share: the words of a command, the terminal, the door to a Loom, the project.
 *
 * Exit codes: 0 ok, 1 failed, 2 usage. Errors go to stderr and name the thing and the remedy; results go to stdout.
 */
#ifndef LOOM_CLI_H
#define LOOM_CLI_H

#include "base/base.h"
#include "loom/loom.h"
#include "storage/storage.h"
#include <stdio.h>

enum { EXIT_OK, EXIT_FAILED, EXIT_USAGE };

/* ---- main.c: a command line, taken apart ---- */
struct options {
    const char *url, *key, *listen, *keys, *store, *input, *reason;
    bool json, help, accept_restored, debug, all;
    struct loom_request request; /* options that are fields of requests stand where requests have them */
};
extern const struct option {
    const char *name, *argument; /* argument NULL: a switch; name NULL: the end */
    enum { OPTION_TEXT, OPTION_STR, OPTION_INT, OPTION_INT32, OPTION_BOOL } kind;
    size_t at;         /* in struct options */
    const char *query; /* its name in the query of an HTTP request, or NULL */
    const char *doc;
} options[];
struct cli {
    struct options o;
    const char *command, *usage;
    char **args; /* positional, NULL-terminated */
    int arg_count;
};
int fail_usage(const struct cli *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));                            /* answers EXIT_USAGE */
int fail(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* answers EXIT_FAILED */
/* JSON of an argument: text, @FILE or - (stdin), checked. false: the error has been printed. */
bool json_argument(const char *arg, struct buf *out);
const char *own_path(void); /* of this executable */

/* ---- view.c: the terminal ---- */
enum paint { PLAIN, BOLD, DIM, RED, GREEN, YELLOW, BLUE, CYAN };
const char *paint(enum paint p); /* "" unless stdout is a terminal that wants colours (NO_COLOR) */
void print_json(yyjson_val *v, bool pretty);
void format_ms(int64_t ms, char out[32]);    /* a duration for people: 12 ms, 3.2 s, 5 m 2 s */
void format_clock(int64_t ms, char out[32]); /* 12:03:04.123, local time */
/* Journal entries as lines for people; remembers what began when, so that ends show names and durations. */
struct view {
    struct map begun;
    int64_t zero; /* `at` of the timeline's first entry */
};
/* Without time and newline; `used`: columns that the line has in front of it. */
void view_entry(struct view *v, struct str actor, yyjson_val *entry, size_t used, struct buf *line);
void view_begin(struct view *v, struct str actor, yyjson_val *entry); /* only remembers */
size_t view_actor(struct str actor, struct buf *line);                /* in a column; answers how many it takes */
void view_timeline(struct view *v, yyjson_val *entries);              /* printed, with cursor and times */
void view_free(struct view *v);
void print_table(yyjson_val *rows, const char *fields); /* "NAME NAME:N": of the second the first N characters */

/* ---- client.c: the door to a Loom, in this process or behind a URL ---- */
struct door {
    struct loom *loom; /* NULL: over HTTP */
    const char *url, *key;
};
struct door door_remote(const struct cli *c);
struct answer {
    int status; /* HTTP's; 0: nobody answers */
    struct buf body;
    yyjson_doc *doc;
    yyjson_val *root; /* of an error: {"code","message",…}, over HTTP {"code","detail",…}; NULL: no JSON */
};
/* Sends a request (loom_submit's words on both ways) and waits; true: the status is 2xx. answer_free either way. */
bool ask(const struct door *d, const struct loom_request *r, struct answer *out);
/* The same; prints what went wrong. */
bool ask_ok(const struct door *d, const struct loom_request *r, struct answer *out);
void answer_free(struct answer *a);
/* `place`: the file that it is about, or NULL. */
void print_problem(const struct door *d, const char *place, int status, yyjson_val *error);
/* Waits for the reply of the message r.id to r.type/r.key and prints it; `live` shows the actor's journal meanwhile. */
int await_reply(const struct cli *c, const struct door *d, struct loom_request r, bool live);
static inline struct loom_str loom_of(struct str s) {
    return (struct loom_str){s.p, s.n};
}
struct loom_request request_of(const struct cli *c, const char *op);
void request_actor(struct loom_request *r, struct str id); /* sets type and key out of TYPE/KEY */

/* ---- run.c ---- */
/* Starts a run of the workflow and prints what it is called; `follow`: its journal as it grows, then its result. */
int run_start(const struct cli *c, const struct door *d, struct str name, const char *input, bool follow);

/* ---- project.c: a project folder ---- */
struct unit_kind;
struct unit {
    const struct unit_kind *kind;
    const char *folder, *file; /* of the definition */
    struct str name, version, text;
    const char *wasm; /* the file that the build makes; NULL: the definition names a module that exists already */
};
struct project {
    const char *dir;
    struct str config; /* loom.json */
    struct unit *units;
    size_t count;
    struct arena arena;
};
#define PROJECT_BUILDING ".building.wasm" /* in a unit's folder, until it is renamed to the module */
/* Reads loom.json and all definitions; false: the error has been printed. project_close either way.
 * Without `units` no definitions are read, and the folder need not have a loom.json. */
bool project_open(struct project *p, const char *dir, bool units);
void project_close(struct project *p);
char *project_find(const char *start); /* nearest folder at or above with a loom.json, malloc'd; or NULL */
bool project_build(const struct project *p, bool quiet); /* what is older than its source; false: printed */
/* What deploying prints, besides errors. */
enum show { SHOW_NOTHING, SHOW_CHANGES, SHOW_ALL };
/* Modules, then definitions. false: printed. */
bool project_deploy(const struct project *p, const struct door *d, bool replace, enum show show);
/* Deploys the workflow in a file and appends its name. false: printed. */
bool workflow_put(const char *path, const struct door *d, bool replace, enum show show, struct buf *name);
const char *unit_folder(const struct unit *u); /* "actors", "activities" or "workflows" */
/* Opens an engine for the project (config.store NULL: DIR/.loom/store); NULL: the error has been printed. */
struct loom *project_engine(const struct project *p, struct loom_config config);

/* ---- commands ---- */
int command_new(struct cli *c);
int command_dev(struct cli *c);
int command_worker(struct cli *c);
int command_build(struct cli *c);
int command_test(struct cli *c);
int command_deploy(struct cli *c);
int command_run(struct cli *c);
int command_call(struct cli *c);
int command_actors(struct cli *c);
int command_inspect(struct cli *c);
int command_journal(struct cli *c);
int command_operate(struct cli *c); /* send, event, cancel, resume, fork */
int command_workflow(struct cli *c);
int command_modules(struct cli *c);
int command_debug(struct cli *c);

#endif
