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
#include <errno.h>
#include <glob.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

struct unit_kind {
    const char *folder, *files;
    const char *name; /* field that names the unit */
    const char *op;
    const char *prefix; /* of the module's name: an actor and an activity may have the same */
};
static const struct unit_kind kinds[] = {
    {"activities", "activities/*/activity.json", "activityName", "activity.put", "activity."},
    {"actors", "actors/*/actor.json", "actorType", "actor-type.put", "actor."},
    {"workflows", "workflows/*.json", "name", "workflow.put", ""},
};
enum { WORKFLOWS = 2 };

const char *unit_folder(const struct unit *u) {
    return u->kind->folder;
}

static const char *join(struct arena *a, const char *dir, const char *name) {
    return strcmp(dir, ".") ? arena_json(a, "%s/%s", dir, name).p : arena_dup(a, str_of(name)).p;
}

/* ---- reading ---- */

/* Parses a file of the project; NULL: the error has been printed, with line and column. */
static yyjson_doc *read_json(struct project *p, const char *path, struct str *text) {
    struct buf b = {0};
    struct error err;
    if (!path_read(path, &b)) {
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
        if (!needed && access(p->dir, F_OK) == 0) return true;
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
    if (!ok) p->config = STR_NONE;
    yyjson_doc_free(doc);
    return ok;
}

static bool add_unit(struct project *p, const struct unit_kind *kind, const char *file) {
    const char *slash = strrchr(file, '/');
    struct str path = arena_dup(&p->arena, str_of(file)), folder = {file, slash ? (size_t)(slash - file) : 0};
    struct unit u = {.kind = kind, .file = path.p, .folder = slash ? arena_dup(&p->arena, folder).p : "."};
    yyjson_doc *doc = read_json(p, file, &u.text);
    yyjson_val *root = yyjson_doc_get_root(doc);
    u.name = arena_dup(&p->arena, json_str(root, kind->name));
    u.version = arena_dup(&p->arena, json_str(root, "version"));
    struct str module = arena_dup(&p->arena, json_str(root, "wasmBlobUrl"));
    const char *missing = *kind->prefix && !module.n ? "wasmBlobUrl" : NULL;
    missing = !u.name.n ? kind->name : !u.version.n ? "version" : missing;
    if (doc && missing) fail("%s: the field \"%s\" is missing or no text", file, missing);
    if (*kind->prefix && !memchr(module.p, ':', module.n)) u.wasm = join(&p->arena, u.folder, module.p);
    bool ok = doc && !missing;
    for (size_t i = 0; ok && i < p->count; i++)
        if (p->units[i].kind == kind && str_eq(p->units[i].name, u.name) && str_eq(p->units[i].version, u.version))
            ok = fail("%s and %s define the same name and version; change one", p->units[i].file, file) == EXIT_OK;
    p->units = mem_grow(p->units, (p->count + 1) * sizeof *p->units);
    p->units[p->count++] = u;
    yyjson_doc_free(doc);
    return ok;
}

bool project_open(struct project *p, const char *dir, bool units) {
    *p = (struct project){.dir = dir};
    bool ok = read_config(p, units);
    for (size_t k = 0; ok && units && k < sizeof kinds / sizeof *kinds; k++) {
        glob_t found;
        if (glob(join(&p->arena, dir, kinds[k].files), 0, NULL, &found)) continue;
        for (size_t i = 0; ok && i < found.gl_pathc; i++) ok = add_unit(p, &kinds[k], found.gl_pathv[i]);
        globfree(&found);
    }
    return ok;
}

void project_close(struct project *p) {
    free(p->units);
    arena_free(&p->arena);
    *p = (struct project){0};
}

char *project_find(const char *start) {
    char *dir = realpath(start, NULL), *slash = dir;
    struct arena a = {0};
    while (slash && access(join(&a, dir, "loom.json"), F_OK))
        if ((slash = strrchr(dir, '/'))) *slash = '\0';
    arena_free(&a);
    if (slash) return dir;
    free(dir);
    return NULL;
}

/* ---- building ---- */

static int64_t changed_at(const char *path) {
    struct stat st;
    return stat(path, &st) ? -1 : (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
}

/* Files in the unit's folder and its src/; globfree(). */
static glob_t files_of(const struct unit *u, const char *pattern, struct arena *a) {
    glob_t found = {0};
    glob(arena_json(a, "%s/%s", u->folder, pattern).p, 0, NULL, &found);
    glob(arena_json(a, "%s/src/%s", u->folder, pattern).p, GLOB_APPEND, NULL, &found);
    return found;
}

static bool write_changed(const char *path, struct str text) {
    struct buf old = {0};
    bool same = path_read(path, &old) && str_eq(buf_view(&old), text);
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
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes); /* with an empty signal mask: Ctrl-C ends the compiler too */
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    int why = posix_spawnp(&pid, argv[0], NULL, &attributes, (char *const *)(uintptr_t)argv, environ);
    posix_spawnattr_destroy(&attributes);
    if (why) return fail("cannot run %s: %s; %s", argv[0], strerror(why), packages) == EXIT_OK;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

#define LINK "-Wl,--no-entry", "-Wl,--strip-debug", "-Wl,--stack-first", "-Wl,-z,stack-size=32768"

/* Without libc, unless a source asks for the JSON library: that one needs the headers of wasi-libc. */
static bool build_c(const char *wasm, const glob_t *sources, const char *sdk, struct arena *a) {
    const char *flags[] = {"clang", "-std=c11", "-O2", "-mbulk-memory", "-Wall", "-Wextra",
                           LINK,    "-o",       wasm,  "-isystem",      sdk};
    enum { FLAGS = sizeof flags / sizeof *flags };
    const char **argv = arena_alloc(a, (FLAGS + sources->gl_pathc + 4) * sizeof *argv), **arg = argv + FLAGS;
    memcpy(argv, flags, sizeof flags);
    bool yyjson = false;
    for (size_t i = 0; i < sources->gl_pathc; i++) {
        struct buf text = {0};
        yyjson = yyjson ||
                 (path_read(sources->gl_pathv[i], &text) && text.n && memmem(text.p, text.n, "guest_yyjson.h", 14));
        buf_free(&text);
        *arg++ = sources->gl_pathv[i];
    }
    *arg++ = yyjson ? "--target=wasm32-wasi" : "--target=wasm32";
    *arg++ = yyjson ? "-nostartfiles" : "-nostdlib";
    *arg = yyjson ? join(a, sdk, "yyjson.o") : NULL;
    return run_tool(argv,
                    "C guests need clang and lld, and wasi-libc for guest_yyjson.h (apt install clang lld wasi-libc)");
}

static bool build_rust(const struct unit *u, const char *wasm) {
    static const char script[] =
        "cargo build --quiet --release --target wasm32-unknown-unknown --manifest-path \"$0/Cargo.toml\" && "
        "cp \"$0\"/target/wasm32-unknown-unknown/release/*.wasm \"$1\"";
    const char *argv[] = {"sh", "-c", script, u->folder, wasm, NULL};
    return run_tool(argv, "") || fail("besides code that compiles, Rust guests need cargo, the target (rustup target "
                                      "add wasm32-unknown-unknown) "
                                      "and crate-type = [\"cdylib\"]") == EXIT_OK;
}

/* A build that fails leaves the old module as it was; and it changes nothing that `loom dev` watches. */
static bool build_unit(const struct unit *u, const char *sdk, bool quiet, struct arena *a) {
    const char *made = join(a, u->folder, PROJECT_BUILDING);
    glob_t c_files = files_of(u, "*.c", a), all = files_of(u, "*.[chr]*", a);
    int64_t built = changed_at(u->wasm), newest = changed_at(join(a, u->folder, "Cargo.toml"));
    bool rust = newest >= 0, source = rust || c_files.gl_pathc, ok = true;
    for (size_t i = 0; i < all.gl_pathc; i++)
        newest = changed_at(all.gl_pathv[i]) > newest ? changed_at(all.gl_pathv[i]) : newest;
    if (!rust && changed_at(join(a, sdk, "loom/guest.h")) > newest) newest = changed_at(join(a, sdk, "loom/guest.h"));
    if (!source && built < 0)
        ok = fail("%s names %s, but there is neither that file nor a C file or Cargo.toml to make it from", u->file,
                  u->wasm) == EXIT_OK;
    if (source && built < newest) {
        if (!quiet) printf("%s  build%s  %s\n", paint(DIM), paint(PLAIN), u->wasm), fflush(stdout);
        ok = (rust ? build_rust(u, made) : build_c(made, &c_files, sdk, a)) && rename(made, u->wasm) == 0;
        if (!ok) unlink(made), fail("%s could not be built; the reason stands above", u->wasm);
    }
    globfree(&c_files);
    globfree(&all);
    return ok;
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

/* Puts a module or definition of the unit; answers its status, 0 when the error has been printed. */
static int put(const struct door *d, const char *op, const struct unit *u, struct str body, bool replace,
               struct answer *a) {
    struct buf name = {0};
    struct loom_request r = {.op = op, .key = loom_of(u->version), .body = loom_of(body), .at = -1, .replace = replace};
    buf_json(&name, "%s%j", op == u->kind->op ? "" : u->kind->prefix, u->name);
    r.type = loom_of(buf_view(&name));
    bool ok = ask(d, &r, a);
    if (a->status == 409 && !replace)
        fail("%s: %.*s %.*s is deployed with other content; raise \"version\" in the file, or overwrite it with "
             "--replace",
             u->file, (int)u->name.n, u->name.p, (int)u->version.n, u->version.p);
    else if (!ok)
        print_problem(d, u->file, a->status, a->root);
    buf_free(&name);
    return ok ? a->status : 0;
}

/* Uploads the unit's module; appends the definition that names it by its hash. */
static bool put_module(const struct door *d, const struct unit *u, bool replace, struct buf *definition) {
    struct buf bytes = {0}, url = {0};
    struct answer a;
    if (!path_read(u->wasm, &bytes))
        return fail("cannot read %s: %s; build it with `loom build`", u->wasm, strerror(errno)) == EXIT_OK;
    bool ok = put(d, "module.put", u, buf_view(&bytes), replace, &a) != 0;
    yyjson_doc *text = yyjson_read(u->text.p, u->text.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_mut_doc *out = yyjson_doc_mut_copy(text, NULL);
    yyjson_mut_val *root = yyjson_mut_doc_get_root(out);
    buf_json(&url, "sha256:%j", json_str(a.root, "sha256"));
    yyjson_mut_obj_put(root, yyjson_mut_str(out, "wasmBlobUrl"), yyjson_mut_strn(out, url.p, url.n));
    json_write_mut(root, definition);
    yyjson_mut_doc_free(out);
    yyjson_doc_free(text);
    answer_free(&a);
    buf_free(&url);
    buf_free(&bytes);
    return ok;
}

static bool deploy_unit(const struct unit *u, const struct door *d, bool replace, enum show show) {
    struct buf definition = {0};
    struct answer a = {0};
    if (!u->wasm) buf_str(&definition, u->text);
    bool ok = !u->wasm || put_module(d, u, replace, &definition);
    int status = ok ? put(d, u->kind->op, u, buf_view(&definition), replace, &a) : 0;
    if (status && (show == SHOW_ALL || (show == SHOW_CHANGES && status == 201)))
        printf("%s  %s%s %-10s %s%.*s%s %.*s\n", paint(status == 201 ? GREEN : DIM),
               status == 201 ? "deploy" : "same  ", paint(PLAIN), u->kind->folder, paint(BOLD), (int)u->name.n,
               u->name.p, paint(PLAIN), (int)u->version.n, u->version.p);
    buf_free(&definition);
    answer_free(&a);
    return status != 0;
}

bool project_deploy(const struct project *p, const struct door *d, bool replace, enum show show) {
    bool ok = true;
    for (size_t i = 0; ok && i < p->count; i++) ok = deploy_unit(&p->units[i], d, replace, show);
    fflush(stdout);
    return ok;
}

struct loom *project_engine(const struct project *p, struct loom_config config) {
    char message[1024];
    struct arena a = {0};
    if (!config.store) {
        mkdir(join(&a, p->dir, ".loom"), 0777);
        config.store = join(&a, p->dir, ".loom/store");
    }
    config.project = p->config.p;
    config.project_dir = p->dir;
    config.compiler = own_path();
    struct loom *l = loom_open(&config, message, sizeof message);
    if (!l) fail("%s", message);
    arena_free(&a);
    return l;
}

bool workflow_put(const char *path, const struct door *d, bool replace, enum show show, struct buf *name) {
    struct project p = {.dir = "."};
    bool ok = add_unit(&p, &kinds[WORKFLOWS], path) && deploy_unit(&p.units[0], d, replace, show);
    if (ok) buf_str(name, p.units[0].name);
    project_close(&p);
    return ok;
}

static int with_project(const struct cli *c, const struct door *d) {
    struct project p;
    bool ok = project_open(&p, c->arg_count ? c->args[0] : ".", true) && project_build(&p, false);
    if (ok && d) ok = project_deploy(&p, d, c->o.request.replace, SHOW_ALL);
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
