/* project.c: a project folder as a list of units: what it defines, how its guests are built, how it is deployed.
 *
 *   loom.json   actors/NAME/actor.json   activities/NAME/activity.json   workflows/NAME.json
 *
 * A definition whose wasmBlobUrl is a file name (no `:`) has its module beside it. Where C files or a Cargo.toml stand
 * beside it too, the build makes the module out of them. Deploying uploads the module and puts `sha256:HEX` in the
 * definition's place of the file name, so a definition's hash covers its code: deploying twice changes nothing.
 * Deliberately not here: dependencies between guests, and languages that need more than one command; build those
 * yourself and let the definition name the file.
 */
#include "cli/cli.h"
#include "runtime/runtime.h"
#include <dirent.h>
#include <errno.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

struct unit_kind {
    const char *folder, *file; /* file NULL: the folder's *.json themselves */
    const char *name;          /* field that names the unit */
    const char *op;
    const char *prefix; /* of the module's name: an actor and an activity may have the same */
};
static const struct unit_kind kinds[] = {
    {"activities", "activity.json", "activityName", "activity.put", "activity."},
    {"actors", "actor.json", "actorType", "actor-type.put", "actor."},
    {"workflows", NULL, "name", "workflow.put", ""},
};
enum { WORKFLOWS = 2 };

const char *unit_folder(const struct unit *u) {
    return u->kind->folder;
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

static const char *join(struct arena *a, const char *dir, const char *name) {
    return strcmp(dir, ".") ? arena_json(a, "%s/%s", dir, name).p : arena_dup(a, str_of(name)).p;
}

/* ---- reading ---- */

/* Parses a file of the project; NULL: the error has been printed, with line and column. */
static yyjson_doc *read_json(struct project *p, const char *path, struct str *text) {
    struct buf b = {0};
    struct error err;
    if (!file_read(path, &b)) {
        fail("cannot read %s: %s", path, strerror(errno));
        return NULL;
    }
    *text = arena_dup(&p->arena, buf_view(&b));
    buf_free(&b);
    yyjson_doc *doc = json_parse(*text, &err);
    if (yyjson_is_obj(yyjson_doc_get_root(doc))) return doc;
    yyjson_read_err where = {0};
    yyjson_doc *loose = yyjson_read_opts((char *)(uintptr_t)text->p, text->n, YYJSON_READ_BIGNUM_AS_RAW, NULL, &where);
    size_t line = 1, column = 1;
    for (size_t i = 0; i < where.pos && i < text->n; i++)
        line += text->p[i] == '\n', column = text->p[i] == '\n' ? 1 : column + 1;
    if (!loose)
        fail("%s:%zu:%zu: not JSON: %s", path, line, column, where.msg);
    else
        fail("%s: %s", path, doc ? "a JSON object is expected" : err.message);
    yyjson_doc_free(loose);
    yyjson_doc_free(doc);
    return NULL;
}

static bool read_config(struct project *p, bool needed) {
    static const char *const known[] = {"name", "network", "mail", "secrets"};
    const char *path = join(&p->arena, p->dir, "loom.json");
    if (access(path, F_OK)) {
        if (!needed) return true;
        fail("%s is not a project: there is no %s; `loom new NAME` makes one", p->dir, path);
        return false;
    }
    yyjson_doc *doc = read_json(p, path, &p->config);
    yyjson_obj_iter it = yyjson_obj_iter_with(yyjson_doc_get_root(doc));
    bool ok = doc != NULL;
    for (yyjson_val *key; ok && (key = yyjson_obj_iter_next(&it));) {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) found = found || yyjson_equals_str(key, known[i]);
        if (!found)
            fail("%s: there is no field \"%s\"; the fields are name, network, mail and secrets", path,
                 yyjson_get_str(key)),
                ok = false;
    }
    yyjson_doc_free(doc);
    return ok;
}

static bool add_unit(struct project *p, const struct unit_kind *kind, const char *folder, const char *file) {
    struct unit u = {.kind = kind, .folder = str_of(folder), .file = str_of(file)};
    yyjson_doc *doc = read_json(p, file, &u.text);
    yyjson_val *root = yyjson_doc_get_root(doc);
    u.name = arena_dup(&p->arena, json_str(root, kind->name));
    u.version = arena_dup(&p->arena, json_str(root, "version"));
    struct str module = arena_dup(&p->arena, json_str(root, "wasmBlobUrl"));
    bool ok = doc != NULL;
    if (ok && (!u.name.n || !u.version.n || (kind->file && !module.n)))
        ok = fail("%s: the field \"%s\" is missing or no text", file,
                  !u.name.n      ? kind->name
                  : !u.version.n ? "version"
                                 : "wasmBlobUrl") == EXIT_OK;
    if (kind->file && module.n && !memchr(module.p, ':', module.n)) u.wasm = join(&p->arena, folder, module.p);
    yyjson_doc_free(doc);
    p->units = mem_grow(p->units, (p->count + 1) * sizeof *p->units);
    p->units[p->count] = u;
    p->count += ok;
    return ok;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int visible(const struct dirent *d) {
    return d->d_name[0] != '.';
}

static bool read_units(struct project *p, const struct unit_kind *kind) {
    const char *folder = join(&p->arena, p->dir, kind->folder);
    struct dirent **names = NULL;
    int n = scandir(folder, &names, visible, by_name);
    bool ok = true;
    for (int i = 0; i < n; i++) {
        const char *path = join(&p->arena, folder, names[i]->d_name);
        const char *file = kind->file ? join(&p->arena, path, kind->file) : path;
        if (ok && (kind->file ? access(file, F_OK) == 0 : ends_with(file, ".json")))
            ok = add_unit(p, kind, kind->file ? path : folder, file);
        free(names[i]);
    }
    free(names);
    return ok;
}

bool project_open(struct project *p, const char *dir, bool units) {
    *p = (struct project){.dir = dir};
    bool ok = read_config(p, units);
    for (size_t i = 0; ok && units && i < sizeof kinds / sizeof *kinds; i++) ok = read_units(p, &kinds[i]);
    return ok;
}

void project_close(struct project *p) {
    free(p->units);
    arena_free(&p->arena);
    *p = (struct project){0};
}

char *project_find(const char *start) {
    char *dir = realpath(start, NULL);
    for (char *slash = dir; slash; slash = strrchr(dir, '/')) {
        struct buf file = {0};
        buf_json(&file, "%s/loom.json", dir);
        buf_char(&file, '\0');
        bool found = access(file.p, F_OK) == 0;
        buf_free(&file);
        if (found) return dir;
        if ((slash = strrchr(dir, '/'))) *slash = '\0';
    }
    free(dir);
    return NULL;
}

/* ---- building ---- */

/* What of a folder a build reads: its newest time, and which language it is in. */
struct source {
    int64_t newest;
    bool c, cargo;
    struct arena *arena;
    const char *c_files[64];
    size_t c_count;
};

static int64_t changed_at(const char *path) {
    struct stat st;
    return stat(path, &st) ? -1 : (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
}

static void look_at_sources(struct source *s, const char *folder) {
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        const char *path = join(s->arena, folder, e->d_name);
        bool c = ends_with(path, ".c");
        s->cargo = s->cargo || strcmp(e->d_name, "Cargo.toml") == 0;
        if (!c && !ends_with(path, ".h") && !ends_with(path, ".rs") && !ends_with(path, ".toml")) continue;
        int64_t at = changed_at(path);
        s->newest = at > s->newest ? at : s->newest;
        if (c && s->c_count < sizeof s->c_files / sizeof *s->c_files) s->c_files[s->c_count++] = path;
    }
    if (d) closedir(d);
}

static bool write_changed(const char *path, struct str text) {
    struct buf old = {0};
    bool same = file_read(path, &old) && str_eq(buf_view(&old), text);
    buf_free(&old);
    FILE *out = same ? NULL : fopen(path, "wb");
    if (same || (out && fwrite(text.p, 1, text.n, out) == text.n && !fclose(out))) return true;
    return fail("cannot write %s: %s", path, strerror(errno)) == EXIT_OK;
}

/* The SDK travels inside the executable; it is written to DIR/.loom/sdk, where the compiler finds it. */
static const char *write_sdk(const struct project *p, struct arena *a) {
    static const char *const folders[] = {".loom", ".loom/sdk", ".loom/sdk/loom"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) mkdir(join(a, p->dir, folders[i]), 0777);
    bool ok = true;
    for (const struct builtin_file *f = builtin_files; f->path && ok; f++)
        if (str_starts(str_of(f->path), STR("sdk/")))
            ok = write_changed(arena_json(a, "%s/.loom/%s", p->dir, f->path).p,
                               (struct str){(const char *)f->start, (size_t)(f->end - f->start)});
    return ok ? join(a, p->dir, ".loom/sdk") : NULL;
}

static bool run_tool(const char *const *argv, const char *packages) {
    pid_t pid;
    int status = 0;
    int why = posix_spawnp(&pid, argv[0], NULL, NULL, (char *const *)(uintptr_t)argv, environ);
    if (why) {
        fail("cannot run %s: %s; %s", argv[0], strerror(why), packages);
        return false;
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Without libc, unless a source asks for the JSON library: that one needs the headers of wasi-libc. */
static bool build_c(const struct unit *u, struct source *s, const char *sdk) {
    const char *argv[96] = {"clang",
                            "-std=c11",
                            "-O2",
                            "-mbulk-memory",
                            "-Wall",
                            "-Wextra",
                            "-isystem",
                            sdk,
                            "-Wl,--no-entry",
                            "-Wl,--strip-debug",
                            "-Wl,--stack-first",
                            "-Wl,-z,stack-size=65536",
                            "-o",
                            u->wasm};
    size_t n = 14;
    bool yyjson = false;
    for (size_t i = 0; i < s->c_count; i++) {
        struct buf text = {0};
        yyjson = yyjson || (file_read(s->c_files[i], &text) && memmem(text.p, text.n, "guest_yyjson.h", 14));
        buf_free(&text);
        argv[n++] = s->c_files[i];
    }
    argv[n++] = yyjson ? "--target=wasm32-wasi" : "--target=wasm32";
    argv[n++] = yyjson ? "-nostartfiles" : "-nostdlib";
    if (yyjson) argv[n++] = join(s->arena, sdk, "yyjson.o");
    return run_tool(
        argv,
        "C guests need the packages clang and lld, and wasi-libc for guest_yyjson.h (apt install clang lld wasi-libc)");
}

static bool build_rust(const struct unit *u, struct arena *a) {
    const char *manifest = join(a, u->folder.p, "Cargo.toml"),
               *out = join(a, u->folder.p, "target/wasm32-unknown-unknown/release");
    const char *argv[] = {"cargo",           "build",  "--quiet", "--release", "--target", "wasm32-unknown-unknown",
                          "--manifest-path", manifest, NULL};
    if (!run_tool(argv, "Rust guests need cargo and `rustup target add wasm32-unknown-unknown`")) return false;
    struct dirent **names = NULL;
    int n = scandir(out, &names, visible, by_name);
    const char *made = NULL;
    for (int i = 0; i < n; i++) {
        made = ends_with(names[i]->d_name, ".wasm") ? join(a, out, names[i]->d_name) : made;
        free(names[i]);
    }
    free(names);
    const char *copy[] = {"cp", made, u->wasm, NULL};
    if (!made) fail("%s made no .wasm in %s: its Cargo.toml needs [lib] crate-type = [\"cdylib\"]", manifest, out);
    return made && run_tool(copy, "");
}

static bool build_unit(const struct unit *u, const char *sdk, bool quiet, struct arena *a) {
    struct source s = {.arena = a};
    look_at_sources(&s, u->folder.p);
    look_at_sources(&s, join(a, u->folder.p, "src"));
    int64_t built = changed_at(u->wasm), header = changed_at(join(a, sdk, "loom/guest.h"));
    if (!s.cargo && !s.c_count) {
        if (built >= 0) return true;
        return fail("%s names %s, but there is neither that file nor a C file or Cargo.toml to make it from", u->file.p,
                    u->wasm) == EXIT_OK;
    }
    if (built >= s.newest && (s.cargo || built >= header)) return true;
    if (!quiet) printf("%s  build%s  %s\n", paint(DIM), paint(PLAIN), u->wasm), fflush(stdout);
    if (s.cargo ? build_rust(u, a) : build_c(u, &s, sdk)) return true;
    return fail("%s could not be built; what the compiler says stands above", u->wasm) == EXIT_OK;
}

bool project_build(const struct project *p, bool quiet) {
    struct arena a = {0};
    const char *sdk = write_sdk(p, &a);
    bool ok = sdk != NULL;
    for (size_t i = 0; ok && i < p->count; i++) ok = !p->units[i].wasm || build_unit(&p->units[i], sdk, quiet, &a);
    arena_free(&a);
    return ok;
}

/* ---- deploying ---- */

static struct loom_str loom_of(struct str s) {
    return (struct loom_str){s.p, s.n};
}

/* Puts one thing; answers its status, 0 when the error has been printed. */
static int put(const struct door *d, const struct loom_request *r, const struct unit *u, struct buf *answer) {
    int status = ask(d, r, answer);
    if (status >= 200 && status <= 299) return status;
    if (status == 409 && !r->replace)
        fail("%s: %.*s %.*s is deployed with other content; raise \"version\" in the file, or overwrite it with "
             "--replace",
             u->file.p, (int)u->name.n, u->name.p, (int)u->version.n, u->version.p);
    else if (status)
        fprintf(stderr, "%s: ", u->file.p), print_problem(d, status, buf_view(answer));
    else
        print_problem(d, status, STR_NONE);
    return 0;
}

/* Uploads the unit's module; appends the definition that names it by its hash. */
static bool put_module(const struct door *d, const struct unit *u, bool replace, struct buf *definition) {
    struct buf bytes = {0}, answer = {0};
    if (!file_read(u->wasm, &bytes))
        return fail("cannot read %s: %s; build it with `loom build`", u->wasm, strerror(errno)) == EXIT_OK;
    struct arena a = {0};
    struct loom_request r = {.op = "module.put",
                             .type = loom_of(arena_json(&a, "%s%j", u->kind->prefix, u->name)),
                             .key = loom_of(u->version),
                             .body = {bytes.p, bytes.n},
                             .at = -1,
                             .replace = replace};
    bool ok = put(d, &r, u, &answer) != 0;
    yyjson_doc *doc = ok ? yyjson_read(answer.p, answer.n, 0) : NULL,
               *text = yyjson_read(u->text.p, u->text.n, YYJSON_READ_BIGNUM_AS_RAW);
    struct str hash = json_str(yyjson_doc_get_root(doc), "sha256");
    yyjson_mut_doc *out = yyjson_doc_mut_copy(text, NULL);
    struct str url = arena_json(&a, "sha256:%j", hash);
    yyjson_mut_obj_put(yyjson_mut_doc_get_root(out), yyjson_mut_str(out, "wasmBlobUrl"),
                       yyjson_mut_strn(out, url.p, url.n));
    json_write_mut(yyjson_mut_doc_get_root(out), definition);
    arena_free(&a);
    yyjson_mut_doc_free(out);
    yyjson_doc_free(text);
    yyjson_doc_free(doc);
    buf_free(&answer);
    buf_free(&bytes);
    return ok;
}

static bool deploy_unit(const struct unit *u, const struct door *d, bool replace, bool all) {
    struct buf definition = {0}, answer = {0};
    if (!u->wasm) buf_str(&definition, u->text);
    bool ok = !u->wasm || put_module(d, u, replace, &definition);
    struct loom_request r = {.op = u->kind->op,
                             .type = loom_of(u->name),
                             .key = loom_of(u->version),
                             .body = {definition.p, definition.n},
                             .at = -1,
                             .replace = replace};
    int status = ok ? put(d, &r, u, &answer) : 0;
    if (status && (all || status == 201))
        printf("%s  %s%s %-10s %s%.*s%s %.*s\n", paint(status == 201 ? GREEN : DIM),
               status == 201 ? "deploy" : "same  ", paint(PLAIN), u->kind->folder, paint(BOLD), (int)u->name.n,
               u->name.p, paint(PLAIN), (int)u->version.n, u->version.p);
    buf_free(&definition);
    buf_free(&answer);
    return status != 0;
}

bool project_deploy(const struct project *p, const struct door *d, bool replace, bool all) {
    bool ok = true;
    for (size_t i = 0; ok && i < p->count; i++) ok = deploy_unit(&p->units[i], d, replace, all);
    fflush(stdout);
    return ok;
}

struct loom *project_engine(const struct project *p, struct loom_config config) {
    char message[1024];
    struct arena a = {0};
    config.store = config.store ? config.store : join(&a, p->dir, ".loom/store");
    config.project = p->config.p;
    config.project_dir = p->dir;
    config.compiler = own_path();
    mkdir(join(&a, p->dir, ".loom"), 0777);
    struct loom *l = loom_open(&config, message, sizeof message);
    if (!l) fail("%s", message);
    arena_free(&a);
    return l;
}

bool workflow_put(const char *path, const struct door *d, bool replace, bool all, struct buf *name) {
    struct project p = {.dir = "."};
    bool ok = add_unit(&p, &kinds[WORKFLOWS], ".", path) && deploy_unit(&p.units[0], d, replace, all);
    if (ok) buf_str(name, p.units[0].name);
    project_close(&p);
    return ok;
}

static int with_project(const struct cli *c, const struct door *d) {
    struct project p;
    bool ok = project_open(&p, c->arg_count ? c->args[0] : ".", true) && project_build(&p, false);
    if (ok && d) ok = project_deploy(&p, d, c->o.replace, true);
    project_close(&p);
    return ok ? EXIT_OK : EXIT_FAILED;
}

int command_build(struct cli *c) {
    return with_project(c, NULL);
}

int command_deploy(struct cli *c) {
    struct door d = door_remote(c);
    return with_project(c, &d);
}
