/* main.c: the loom command: a table of commands and a table of options, from which parsing and help follow.
 *
 * An option is accepted by a command when the command's usage names it, or when it is global. Deliberately not here:
 * short options, abbreviations, configuration files: LOOM_URL and LOOM_API_KEY are the only environment it reads.
 */
#include "cli/cli.h"
#include "wasm/exec.h"
#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int command_help(struct cli *c);
static int command_version(struct cli *c);

static const struct command {
    const char *name, *usage; /* name NULL: a heading */
    int arg_min, arg_max;
    int (*run)(struct cli *);
    const char *doc;
} commands[] = {
    {NULL, "Make", 0, 0, NULL, NULL},
    {"new", "NAME | actor NAME | activity NAME", 1, 2, command_new,
     "make a project folder, or an actor or activity in one"},
    {"build", "[DIR]", 0, 1, command_build, "compile the guests of a project to WASM"},
    {"test", "[DIR]", 0, 1, command_test, "run the test.json of each actor and activity on an engine in memory"},
    {"dev", "[DIR] [--listen ADDR:PORT] [--store DIR|memory] [--keys FILE] [--accept-restored] [--debug]", 0, 1,
     command_dev, "build, deploy and serve a project; watch it and show what happens"},
    {NULL, "Run", 0, 0, NULL, NULL},
    {"worker", "[DIR] [--listen ADDR:PORT] [--store DIR|memory] [--keys FILE] [--accept-restored] [--debug]", 0, 1,
     command_worker, "serve a project without building or watching; log JSON to stderr"},
    {"deploy", "[DIR] [--replace]", 0, 1, command_deploy, "upload a project's modules, definitions and workflows"},
    {"run", "FILE|NAME [--input JSON|@FILE|-] [--id ID] [--version V] [--store DIR|memory] [--replace]", 1, 1,
     command_run, "run a workflow to its end, at --url or else in this process"},
    {"workflow", "list | deploy FILE [--replace] | run NAME [JSON|@FILE|-] [--id ID] [--version V] | get NAME ID", 1, 3,
     command_workflow, "list, upload, start (without waiting) or look at workflows"},
    {NULL, "Talk to actors", 0, 0, NULL, NULL},
    {"call", "TYPE/KEY [JSON|@FILE|-] [--id ID] [--timeout MS] [--priority N] [--ttl MS]", 1, 2, command_call,
     "deliver a message and print the reply"},
    {"send", "TYPE/KEY [JSON|@FILE|-] [--id ID] [--delay MS] [--priority N] [--ttl MS]", 1, 2, command_operate,
     "deliver a message and return once it is durable"},
    {"event", "TYPE/KEY EVENT [JSON|@FILE|-] [--id ID] [--ttl MS]", 2, 3, command_operate,
     "deliver an event to an actor that waits for it, now or later"},
    {NULL, "Look and operate", 0, 0, NULL, NULL},
    {"actors", "[--type TYPE] [--status STATUS] [--limit N]", 0, 0, command_actors, "list actors"},
    {"inspect", "TYPE/KEY [--at CURSOR]", 1, 1, command_inspect,
     "show an actor: status, metadata and state, now or in the past"},
    {"journal", "TYPE/KEY [--from CURSOR] [--limit N]", 1, 1, command_journal, "show an actor's journal as a timeline"},
    {"cancel", "TYPE/KEY [--reason TEXT]", 1, 1, command_operate, "cancel an actor's turn; its compensations run"},
    {"resume", "TYPE/KEY [JSON|@FILE|-]", 1, 2, command_operate, "let a suspended or paused actor go on"},
    {"fork", "TYPE/KEY NEW_KEY [--from CURSOR]", 2, 2, command_operate,
     "copy an actor as it was at a cursor under a new key"},
    {"modules", "", 0, 0, command_modules, "list WASM modules"},
    {"debug",
     "digest | verify | replay TYPE/KEY|--all | dump | restore FILE|- | panic | stall [--delay MS] [--store DIR]", 1, 2,
     command_debug,
     "check, hash, replay or save a store; make a worker fail on purpose\n"
     "\n"
     "  digest        one hash of all rows: equal for equal contents\n"
     "  verify        structure, checksums, journals, blobs, what will be woken\n"
     "  replay        run recorded turns again: the same states and replies?\n"
     "  dump          all rows and modules, a JSON object a line\n"
     "  restore       fill the new store --store DIR from a dump\n"
     "  panic, stall  make a worker fail that was started with --debug;\n"
     "                stall: for --delay MS\n"
     "\n"
     "They ask the Loom at --url, or look into a folder with --store DIR"},
    {"version", "", 0, 0, command_version, "print the version"},
    {"help", "[COMMAND | ops]", 0, 1, command_help,
     "show this, a command's options, or the ops of guests and operators"},
};

#define AT(field) offsetof(struct options, field)
const struct option options[] = {
    {"--url", "URL", OPTION_TEXT, AT(url), NULL, "the Loom to ask (LOOM_URL; http://127.0.0.1:7100)"},
    {"--key", "KEY", OPTION_TEXT, AT(key), NULL, "API key (LOOM_API_KEY)"},
    {"--ns", "NAME", OPTION_STR, AT(request.ns), NULL, "namespace (default)"},
    {"--json", NULL, OPTION_BOOL, AT(json), NULL, "print JSON for programs"},
    {"--help", NULL, OPTION_BOOL, AT(help), NULL, "show help"},
    {"--listen", "ADDR:PORT", OPTION_TEXT, AT(listen), NULL, "where to serve (127.0.0.1:7100)"},
    {"--keys", "FILE", OPTION_TEXT, AT(keys), NULL, "file of API keys; needed beyond this machine"},
    {"--store", "DIR", OPTION_TEXT, AT(store), NULL, "folder of the store, or memory"},
    {"--accept-restored", NULL, OPTION_BOOL, AT(accept_restored), NULL, "start although the store is an older copy"},
    {"--all", NULL, OPTION_BOOL, AT(all), NULL, "all actors"},
    {"--debug", NULL, OPTION_BOOL, AT(debug), NULL, "allow `loom debug panic` and `stall`"},
    {"--input", "JSON", OPTION_TEXT, AT(input), NULL, "the workflow's input: text, @FILE or - for stdin"},
    {"--reason", "TEXT", OPTION_TEXT, AT(reason), NULL, "is written into the journal"},
    {"--id", "ID", OPTION_STR, AT(request.id), NULL, "the same id again does nothing twice"},
    {"--version", "V", OPTION_STR, AT(request.version), "version", "instead of the version deployed last"},
    {"--type", "TYPE", OPTION_STR, AT(request.type), "type", "only actors of this type"},
    {"--status", "STATUS", OPTION_STR, AT(request.status), "status", "only actors in this status"},
    {"--delay", "MS", OPTION_INT, AT(request.delay_ms), "delayMs", "deliver after this time"},
    {"--timeout", "MS", OPTION_INT, AT(request.timeout_ms), "timeoutMs", "stop waiting for the reply after this time"},
    {"--priority", "N", OPTION_INT32, AT(request.priority), "priority", "lower goes first (0)"},
    {"--ttl", "MS", OPTION_INT, AT(request.ttl_ms), "ttlMs", "drop the message when it waits longer"},
    {"--limit", "N", OPTION_INT, AT(request.limit), "limit", "at most so many"},
    {"--from", "CURSOR", OPTION_INT, AT(request.from), "from", "journal position"},
    {"--at", "CURSOR", OPTION_INT, AT(request.at), "at", "journal position of a past moment"},
    {"--replace", NULL, OPTION_BOOL, AT(request.replace), "replace", "overwrite versions that exist"},
    {NULL, NULL, OPTION_BOOL, 0, NULL, NULL},
};
enum { GLOBAL_OPTIONS = 5 }; /* the first ones are taken by every command */

#define COUNT(a) (sizeof(a) / sizeof *(a))

int fail(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fputs("loom: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return EXIT_FAILED;
}

int fail_usage(const struct cli *c, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fputs("loom: ", stderr);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    if (c->usage) fprintf(stderr, "\nusage: loom %s %s", c->command, c->usage);
    fprintf(stderr, "\n`loom help%s%s` tells more\n", c->usage ? " " : "", c->usage ? c->command : "");
    return EXIT_USAGE;
}

bool json_argument(const char *arg, struct buf *out) {
    const char *file = arg[0] == '@' ? arg + 1 : strcmp(arg, "-") ? NULL : "/dev/stdin";
    struct buf text = {0};
    struct error err;
    if (file && !path_read(file, &text)) {
        fail("cannot read %s: %s", file, strerror(errno));
        return false;
    }
    if (!file) buf_str(&text, str_of(arg));
    bool ok = json_normalize(buf_view(&text), out, &err) == 0;
    if (!ok)
        fail("%s: %s (text needs its own quotes: '\"text\"'; a file is @FILE)", file ? file : "the argument",
             err.message);
    buf_free(&text);
    return ok;
}

const char *own_path(void) {
    static char path[4096];
    ssize_t n = path[0] ? 1 : readlink("/proc/self/exe", path, sizeof path - 1);
    return n > 0 ? path : NULL;
}

/* Edits that lead from a to b; the words of a command line are short. */
static size_t distance(const char *a, const char *b) {
    size_t row[64] = {0}, n = strlen(b);
    if (n >= COUNT(row)) return n;
    for (size_t j = 0; j <= n; j++) row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t diagonal = row[0]++;
        for (size_t j = 1; j <= n; j++) {
            size_t best = diagonal + (a[i] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

static const struct command *command_find(const char *name) {
    for (size_t i = 0; i < COUNT(commands); i++)
        if (commands[i].name && strcmp(commands[i].name, name) == 0) return &commands[i];
    return NULL;
}

static int unknown_command(const struct cli *c, const char *name) {
    const char *nearest = NULL;
    size_t best = 4;
    for (size_t i = 0; i < COUNT(commands); i++) {
        size_t d = commands[i].name ? distance(name, commands[i].name) : best;
        if (d < best && d < strlen(name)) best = d, nearest = commands[i].name;
    }
    if (nearest) return fail_usage(c, "there is no command `%s`; did you mean `%s`?", name, nearest);
    return fail_usage(c, "there is no command `%s`", name);
}

/* Usage lines say which options a command takes. */
static bool takes_option(const struct command *cmd, const struct option *o) {
    const char *at = cmd ? strstr(cmd->usage, o->name) : NULL;
    return o < options + GLOBAL_OPTIONS || (at && !islower((unsigned char)at[strlen(o->name)]));
}

static void print_options(const struct command *cmd) {
    for (const struct option *o = options; o->name; o++)
        if (takes_option(cmd, o))
            printf("  %s%-17s%s %-10s %s\n", paint(BOLD), o->name, paint(PLAIN), o->argument ? o->argument : "",
                   o->doc);
}

static int help_ops(void) {
    static const char *const callers[] = {"actor", "activity", "operator"};
    for (size_t i = 0; i < COUNT(callers); i++) {
        printf("%s%sOps of %s%s\n", i ? "\n" : "", paint(CYAN),
               i == 1 ? "activities"
               : i    ? "operators"
                      : "actors",
               paint(PLAIN));
        for (const struct loom_op_doc *op = loom_ops(callers[i]); op->name; op++)
            printf("  %s%-14s%s %s\n  %14s %s\n", paint(BOLD), op->name, paint(PLAIN), op->argument, "", op->doc);
    }
    return EXIT_OK;
}

static int command_help(struct cli *c) {
    if (c->arg_count && strcmp(c->args[0], "ops") == 0) return help_ops();
    const struct command *cmd = c->arg_count ? command_find(c->args[0]) : NULL;
    if (c->arg_count && !cmd) return unknown_command(&(struct cli){0}, c->args[0]);
    if (cmd) {
        printf("usage: %sloom %s%s %s\n\n%s.\n\n", paint(BOLD), cmd->name, paint(PLAIN), cmd->usage, cmd->doc);
        print_options(cmd);
        return EXIT_OK;
    }
    printf("Loom %s: durable actors, workflows and activities in one executable.\n\nusage: loom COMMAND …\n",
           LOOM_VERSION);
    for (size_t i = 0; i < COUNT(commands); i++)
        if (commands[i].name)
            printf("  %s%-10s%s %.*s\n", paint(BOLD), commands[i].name, paint(PLAIN),
                   (int)strcspn(commands[i].doc, "\n"), commands[i].doc);
        else
            printf("\n%s%s%s\n", paint(CYAN), commands[i].usage, paint(PLAIN));
    printf("\n%sOptions of all commands%s\n", paint(CYAN), paint(PLAIN));
    print_options(NULL);
    return EXIT_OK;
}

static int command_version(struct cli *c) {
    printf(c->o.json ? "{\"version\":\"%s\"}\n" : "loom %s\n", LOOM_VERSION);
    return EXIT_OK;
}

static bool option_set(void *field, const struct option *o, const char *value) {
    char *end = NULL;
    int64_t n = o->kind == OPTION_INT || o->kind == OPTION_INT32 ? strtoll(value, &end, 10) : 0;
    if (o->kind == OPTION_TEXT)
        *(const char **)field = value;
    else if (o->kind == OPTION_STR)
        *(struct loom_str *)field = loom_of(str_of(value));
    else if (o->kind == OPTION_INT)
        *(int64_t *)field = n;
    else
        *(int32_t *)field = (int32_t)n;
    bool fits = o->kind == OPTION_INT32 ? n == (int32_t)n : n >= 0;
    return !end || (end != value && !*end && fits);
}

/* Takes one option; *i moves past its value. */
static int option_read(struct cli *c, const struct command *cmd, char **argv, int *i) {
    char *arg = argv[*i], *equals = strchr(arg, '=');
    size_t n = equals ? (size_t)(equals - arg) : strlen(arg);
    const struct option *o = options;
    while (o->name && (strlen(o->name) != n || strncmp(o->name, arg, n))) o++;
    if (!o->name || !takes_option(cmd, o))
        return fail_usage(c, cmd ? "loom %s takes no option %.*s" : "%s takes no option %.*s before a command",
                          cmd ? cmd->name : "loom", (int)n, arg);
    void *field = (char *)&c->o + o->at;
    if (o->kind == OPTION_BOOL) return *(bool *)field = true, EXIT_OK;
    const char *value = equals ? equals + 1 : argv[*i + 1] ? argv[++*i] : NULL;
    if (!value) return fail_usage(c, "%s needs a value: %s %s", o->name, o->name, o->argument);
    return option_set(field, o, value) ? EXIT_OK
                                       : fail_usage(c, "%s needs a whole number%s, not `%s`", o->name,
                                                    o->kind == OPTION_INT ? " from 0 on" : "", value);
}

/* Takes the line apart: a command (none: help), its arguments and options; those of all commands may stand before it.
 * NULL: what is wrong has been said. */
static const struct command *line_read(struct cli *c, int argc, char **argv) {
    const struct command *cmd = NULL;
    bool only_args = false;
    c->args = argv; /* overwritten from the front: never beyond what has been read */
    for (int i = 1; i < argc; i++) {
        bool option = !only_args && strncmp(argv[i], "--", 2) == 0;
        if (option && !argv[i][2]) {
            only_args = true;
        } else if (option) {
            if (option_read(c, cmd, argv, &i)) return NULL;
        } else if (cmd) {
            c->args[c->arg_count++] = argv[i];
        } else {
            if (!(cmd = command_find(argv[i]))) return unknown_command(c, argv[i]), NULL;
            c->command = cmd->name, c->usage = cmd->usage;
        }
    }
    return cmd ? cmd : command_find("help");
}

static const char *environment(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--compile-module") == 0) return exec_compile_child(0, 1);
    signal(SIGPIPE, SIG_IGN);
    struct cli c = {.o = {.url = environment("LOOM_URL"), .key = environment("LOOM_API_KEY"), .request.at = -1}};
    if (argc > 1 && strcmp(argv[1], "--version") == 0) argv[1] += 2;
    const struct command *cmd = line_read(&c, argc, argv);
    if (!cmd) return EXIT_USAGE;
    if (c.o.help) {
        c.args[0] = (char *)(uintptr_t)cmd->name, c.arg_count = cmd->run != command_help;
        return command_help(&c);
    }
    if (c.arg_count < cmd->arg_min) return fail_usage(&c, "loom %s: an argument is missing", cmd->name);
    if (c.arg_count > cmd->arg_max) return fail_usage(&c, "loom %s: `%s` is too much", cmd->name, c.args[cmd->arg_max]);
    c.args[c.arg_count] = NULL;
    const char *slash = c.arg_count ? strchr(c.args[0], '/') : NULL;
    if (strncmp(cmd->usage, "TYPE/KEY", 8) == 0 &&
        (!slash || slash == c.args[0] || !slash[1] || strchr(slash + 1, '/')))
        return fail_usage(&c, "`%s` does not name an actor: TYPE/KEY is expected, like counter/a, with one slash",
                          c.args[0]);
    int code = cmd->run(&c);
    return fflush(stdout) ? EXIT_FAILED : code;
}
