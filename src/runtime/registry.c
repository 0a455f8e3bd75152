/* registry.c: what is deployed: definitions of activities and actor types, and the modules they run.
 *
 * A definition is a row kind/ns/name/version/hash → {"order","doc"}. All texts ever deployed stay, because an open turn
 * names its definition by hash. In memory each name has a chain, newest first: without a version the last deployed counts.
 * They never leave memory while the process lives: attempts and turns point at them. Built-ins have the namespace "",
 * which every namespace sees. A workflow is an actor type `workflow.NAME` whose module is the built-in `wdl` and whose
 * config is the document.
 * Modules: row ns/name/version → {"sha256","size"}, bytes in the blob store, compiled artefacts in the user's cache
 * folder, which only this program writes. Compiling happens at upload, in a process and a thread of its own.
 */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char kind_activity[] = "activity", kind_actor[] = "actor-type";

/* ---- reading a definition ---- */

static int check_fields(yyjson_val *doc, const char *const *known, const char *what, struct error *err) {
    yyjson_val *key, *value;
    size_t i, n;
    if (!yyjson_is_obj(doc)) return error_set(err, LOOM_E_INVALID_DOCUMENT, "%s is not a JSON object", what);
    yyjson_obj_foreach(doc, i, n, key, value) {
        const char *const *k = known;
        while (*k && !yyjson_equals_str(key, *k)) k++;
        if (!*k)
            return error_set(err, LOOM_E_INVALID_DOCUMENT,
                             "%s has an unknown field \"%s\"; docs/api-reference.md lists those there are", what,
                             yyjson_get_str(key));
    }
    return 0;
}

static int read_limits(struct definition *d, bool activity, struct error *err) {
    static const char *const known[] = {"maxMemoryMB", "maxExecutionMs", NULL};
    yyjson_val *limits = yyjson_obj_get(d->doc, "limits");
    int64_t memory = json_int(limits, "maxMemoryMB", 64);
    int64_t ms = json_int(limits, "maxExecutionMs", activity ? 30000 : 10000);
    int rc = limits ? check_fields(limits, known, "limits", err) : 0;
    if (rc == 0 && (memory < 1 || memory > 256))
        rc = error_set(err, LOOM_E_INVALID_DOCUMENT, "limits.maxMemoryMB is %" PRId64 "; use 1 to 256", memory);
    if (rc == 0 && (ms < 1 || ms > 86400000))
        rc = error_set(err, LOOM_E_INVALID_DOCUMENT, "limits.maxExecutionMs is %" PRId64 "; use 1 to 86400000", ms);
    d->limits = (struct exec_limits){(uint32_t)memory, (uint32_t)ms};
    return rc;
}

static int read_schema(struct definition *d, const char *field, struct loom_schema **out, struct error *err) {
    struct str text = json_text_of(yyjson_obj_get(d->doc, field), &d->mem);
    char why[512];
    if (!text.p) return 0;
    *out = loom_schema_new(text.p, text.n, why, sizeof why);
    return *out ? 0 : error_set(err, LOOM_E_INVALID_DOCUMENT, "%s is not a JSON Schema: %s", field, why);
}

static int read_definition(struct definition *d, bool activity, struct error *err) {
    static const char *const activity_fields[] = {
        "activityName", "version", "description", "wasmBlobUrl", "inputSchema", "outputSchema",
        "capabilities", "limits",  "retryPolicy", "reuse",       NULL};
    static const char *const actor_fields[] = {"actorType",   "version",      "description", "wasmBlobUrl",
                                               "inputSchema", "outputSchema", "limits",      "defaultState",
                                               "config",      "retryPolicy",  NULL};
    static const struct retry_policy once = {1, 200, 30000};
    const char *name = activity ? "activityName" : "actorType";
    yyjson_val *retry = yyjson_obj_get(d->doc, "retryPolicy"), *can = yyjson_obj_get(d->doc, "capabilities");
    int rc = check_fields(d->doc, activity ? activity_fields : actor_fields, "the definition", err);
    if (rc == 0 && (!str_eq(json_str(d->doc, name), d->name) || !str_eq(json_str(d->doc, "version"), d->version)))
        rc = error_set(err, LOOM_E_INVALID_DOCUMENT, "%s and version must be \"%s\" and \"%s\", as in the request",
                       name, d->name.p, d->version.p);
    d->retry = activity ? retry_default : once;
    d->reuse = json_bool(d->doc, "reuse", false);
    if (rc == 0) rc = read_limits(d, activity, err);
    if (rc == 0) rc = read_schema(d, "inputSchema", &d->input, err);
    if (rc == 0) rc = read_schema(d, "outputSchema", &d->output, err);
    if (rc == 0 && retry) rc = retry_policy_read(retry, &d->retry, &d->retry, err);
    return rc == 0 && can ? net_policy_new(can, &d->policy, err) : rc;
}

static void definition_free(struct definition *d) {
    loom_schema_free(d->input);
    loom_schema_free(d->output);
    exec_module_unref(d->native);
    free(d->policy);
    struct arena mem = d->mem;
    arena_free(&mem);
}

static struct definition *definition_new(const char *kind, struct str ns, struct str name, struct str version,
                                         struct str text, struct error *err) {
    struct arena mem = {0};
    struct definition *d = arena_alloc(&mem, sizeof *d);
    sha256_hex(text, d->hash);
    d->kind = kind;
    d->ns = arena_dup(&mem, ns);
    d->name = arena_dup(&mem, name);
    d->version = arena_dup(&mem, version);
    d->text = arena_dup(&mem, text);
    d->doc = json_in(&mem, d->text);
    d->mem = mem;
    if (read_definition(d, kind == kind_activity, err) == 0) return d;
    definition_free(d);
    return NULL;
}

/* ---- finding ---- */

static void adopt(struct loom *l, struct definition *d) {
    struct str key = arena_json(&d->mem, "%s/%j/%j", d->kind, d->ns, d->name);
    d->older = map_get(&l->definitions, key);
    map_put(&l->definitions, key, d);
}

static struct definition *chain_of(struct loom *l, const char *kind, struct str ns, struct str name) {
    struct definition *d = map_get(&l->definitions, say(l, "%s/%j/%j", kind, ns, name));
    return d || ns.n == 0 ? d : chain_of(l, kind, STR(""), name);
}

struct definition *registry_find(struct loom *l, const char *kind, struct str ns, struct str name, struct str version) {
    struct definition *d = chain_of(l, kind, ns, name);
    while (d && version.p && !str_eq(d->version, version)) d = d->older;
    return d;
}

struct definition *registry_pinned(struct loom *l, struct str ns, struct str type, struct str hash) {
    struct definition *d = chain_of(l, kind_actor, ns, type);
    while (d && !str_eq(str_of(d->hash), hash)) d = d->older;
    return d;
}

int definition_check(const struct definition *d, bool input, struct str json, struct error *err) {
    const struct loom_schema *schema = input ? d->input : d->output;
    char why[512];
    if (!schema || loom_schema_check(schema, json.p, json.n, why, sizeof why) == 0) return 0;
    return error_set(err, input ? LOOM_E_INVALID_INPUT : LOOM_E_INVALID_OUTPUT,
                     "the %s of %s %s does not match its schema: %s", input ? "input" : "output", d->name.p,
                     d->version.p, why);
}

/* ---- modules ---- */

static struct str builtin_bytes(const struct builtin_module *b) {
    return (struct str){(const char *)b->start, (size_t)(b->end - b->start)};
}

/* Into the blobs, too: a turn that it begins must find it there when another version of Loom goes on with it. */
static int builtin_keep(struct loom *l, const struct builtin_module *b, char hash[65], struct error *err) {
    struct buf there = {0};
    sha256_hex(builtin_bytes(b), hash);
    int rc = l->blobs->ops->get(l->blobs, hash, &there, NULL);
    buf_free(&there);
    return rc == 0 ? 0 : l->blobs->ops->put(l->blobs, builtin_bytes(b), hash, err);
}

/* The hash that wasmBlobUrl names now. */
static int module_look_up(struct loom *l, const struct definition *d, char hash[65], struct error *err) {
    struct str url = json_str(d->doc, "wasmBlobUrl");
    if (!url.p) url = STR("");
    const char *at = memchr(url.p, '@', url.n);
    if (url.n == 71 && str_starts(url, STR("sha256:"))) {
        snprintf(hash, 65, "%.64s", url.p + 7);
        if (strspn(hash, "0123456789abcdef") == 64) return 0;
    }
    if (!str_starts(url, STR("module:")) || !at)
        return error_set(err, LOOM_E_INVALID_DOCUMENT,
                         "wasmBlobUrl of %s is \"%.*s\"; use module:NAME@VERSION or sha256: and 64 hex digits "
                         "(loom deploy turns a file name into one)",
                         d->name.p, (int)url.n, url.p);
    struct str name = {url.p + 7, (size_t)(at - url.p) - 7}, version = {at + 1, url.n - name.n - 8};
    struct str row = rows_get(l, ROW_MODULE, say(l, "%j/%j/%j", d->ns, name, version));
    if (row.p) {
        memcpy(hash, json_str(look(l, row), "sha256").p, 64);
        return 0;
    }
    for (size_t i = 0; i < builtin_module_count; i++)
        if (str_eq(str_of(builtin_modules[i].name), name)) return builtin_keep(l, &builtin_modules[i], hash, err);
    return error_set(err, LOOM_E_NOT_FOUND, "%s needs %.*s, which was not uploaded; PUT /v1/modules/NAME/VERSION first",
                     d->name.p, (int)url.n, url.p);
}

/* The same, remembered until a module is put. */
static int module_resolve(struct loom *l, struct definition *d, char hash[65], struct error *err) {
    if (d->resolved_at != l->modules_put) {
        int rc = module_look_up(l, d, d->resolved, err);
        if (rc < 0) return rc;
        d->resolved_at = l->modules_put;
    }
    memcpy(hash, d->resolved, sizeof d->resolved);
    return 0;
}

static int module_bytes(struct loom *l, const char *hash, struct buf *wasm, struct error *err) {
    for (size_t i = 0; i < builtin_module_count; i++) {
        char own[65];
        sha256_hex(builtin_bytes(&builtin_modules[i]), own);
        if (strcmp(own, hash) == 0) {
            buf_str(wasm, builtin_bytes(&builtin_modules[i]));
            return 0;
        }
    }
    return l->blobs->ops->get(l->blobs, hash, wasm, err);
}

/* Wasmtime trusts what it loads, so in the cache the artefact's SHA-256 stands behind it. */
static bool read_sealed(const char *path, struct buf *out) {
    uint8_t sum[32];
    if (!path_read(path, out) || out->n < sizeof sum) return false;
    out->n -= sizeof sum;
    sha256(buf_view(out), sum);
    return memcmp(sum, out->p + out->n, sizeof sum) == 0;
}

static void write_sealed(const char *path, struct buf *bytes) {
    uint8_t sum[32];
    sha256(buf_view(bytes), sum);
    buf_add(bytes, sum, sizeof sum);
    path_write(path, buf_view(bytes));
    bytes->n -= sizeof sum;
}

/* The compiled form: from the cache, else (or if `anew`) compiled now. Any thread. */
int module_artefact(struct loom *l, const char *hash, struct str wasm, bool anew, struct buf *artefact,
                    struct error *err) {
    struct arena mem = {0};
    struct buf bytes = {0};
    const char *path = arena_json(&mem, "%s/%s-%s.cwasm", l->cache_dir, hash, exec_artefact_key(l->code->engine)).p;
    int rc = 0;
    if (anew || !l->cache_dir || !read_sealed(path, artefact)) {
        buf_clear(artefact);
        rc = wasm.p ? 0 : module_bytes(l, hash, &bytes, err);
        if (rc == 0)
            rc = exec_compile_apart(l->code->engine, l->config.compiler, wasm.p ? wasm : buf_view(&bytes), artefact,
                                    err);
        if (rc == 0 && l->cache_dir) write_sealed(path, artefact);
    }
    buf_free(&bytes);
    arena_free(&mem);
    return rc;
}

static int module_load(struct loom *l, const char *hash, bool anew, struct exec_module **out, struct error *err) {
    struct buf artefact = {0};
    int rc = module_artefact(l, hash, STR_NONE, anew, &artefact, err);
    if (rc == 0) rc = exec_module_load(l->code->engine, buf_view(&artefact), out, err);
    buf_free(&artefact);
    return rc;
}

struct loaded {
    char hash[65];
    struct exec_module *module;
};

struct code *code_new(const struct exec_config *config, struct error *err) {
    struct exec_engine *engine = exec_engine_new(config, err);
    if (!engine) return NULL;
    struct code *c = mem_alloc(sizeof *c);
    c->engine = engine;
    return c;
}

void code_free(struct code *c) {
    struct loaded *m;
    for (size_t i = 0; c && (m = map_next(&c->modules, &i)) != NULL; free(m)) exec_module_unref(m->module);
    if (!c) return;
    map_free(&c->modules);
    exec_engine_free(c->engine);
    free(c);
}

/* An artefact of the cache that does not load (another processor made it) is made anew. */
static struct exec_module *module_get(struct loom *l, const char *hash, struct error *err) {
    struct loaded *m = map_get(&l->code->modules, str_of(hash));
    struct exec_module *module = m ? m->module : NULL;
    if (!m && (module_load(l, hash, false, &module, err) == 0 || module_load(l, hash, true, &module, err) == 0)) {
        m = mem_alloc(sizeof *m);
        memcpy(m->hash, hash, sizeof m->hash);
        m->module = module;
        map_put(&l->code->modules, str_of(m->hash), m);
    }
    return m ? exec_module_ref(module) : NULL;
}

struct exec_module *definition_module(struct loom *l, struct definition *d, struct str pinned, char hash_out[65],
                                      struct error *err) {
    char hash[65] = "native";
    if (!d->native && pinned.n == 64)
        memcpy(hash, pinned.p, 64);
    else if (!d->native && module_resolve(l, d, hash, err) < 0)
        return NULL;
    hash[64] = '\0';
    if (hash_out) memcpy(hash_out, hash, sizeof hash);
    return d->native ? exec_module_ref(d->native) : module_get(l, hash, err);
}

/* ---- deploying ---- */

struct definition *registry_put(struct loom *l, const char *kind, struct str ns, struct str name, struct str version,
                                struct str text, bool replace, bool *created, struct error *err) {
    char hash[65];
    struct definition *d = definition_new(kind, ns, name, version, text, err);
    struct definition *old = registry_find(l, kind, ns, name, version);
    *created = !d || !old || memcmp(old->hash, d->hash, sizeof d->hash) != 0;
    int rc = d ? module_resolve(l, d, hash, err) : LOOM_E_INVALID_DOCUMENT;
    if (rc == 0 && old && *created && !replace)
        rc = error_set(err, LOOM_E_EXISTS,
                       "%s %s version %s is deployed with another text; give it a new version, or use ?replace=true",
                       kind, d->name.p, d->version.p);
    if (rc < 0) {
        if (d) definition_free(d);
        return NULL;
    }
    rows_put(l, ROW_REGISTRY, say(l, "%s/%j/%j/%j/%s", kind, ns, name, version, d->hash),
             say(l, "{\"order\":%u,\"doc\":%j}", loom_order(l), d->text), false);
    adopt(l, d);
    return d;
}

/* ---- opening ---- */

static void open_builtins(struct loom *l) {
    for (size_t i = 0; i < builtin_file_count; i++) {
        const struct builtin_file *f = &builtin_files[i];
        struct str text = {(const char *)f->start, (size_t)(f->end - f->start)};
        struct error err;
        if (!str_starts(str_of(f->path), STR("activities/"))) continue;
        yyjson_val *doc = look(l, text);
        struct definition *d = definition_new(kind_activity, STR(""), json_str(doc, "activityName"),
                                              json_str(doc, "version"), text, &err);
        if (d)
            adopt(l, d);
        else
            log_event(LOG_ERROR, "built-in definition is wrong", "\"path\":%z,\"detail\":%z", f->path, err.message);
    }
}

struct loading {
    struct definition **d;
    size_t count;
};

static bool load_definition(void *ctx, struct str key, struct str value) {
    struct loading *s = ctx;
    struct error err;
    struct arena mem = {0};
    yyjson_val *row = json_in(&mem, value);
    struct str part[5], rest = key;
    for (int i = 0; i < 5; i++) {
        const char *slash = memchr(rest.p, '/', rest.n);
        part[i] = (struct str){rest.p, slash ? (size_t)(slash - rest.p) : rest.n};
        rest = slash ? (struct str){slash + 1, rest.n - part[i].n - 1} : (struct str){rest.p + rest.n, 0};
    }
    struct definition *d = definition_new(str_eq(part[0], STR("activity")) ? kind_activity : kind_actor, part[1],
                                          part[2], part[3], json_text_of(yyjson_obj_get(row, "doc"), &mem), &err);
    if (d) {
        d->order = (uint64_t)json_int(row, "order", 0);
        s->d = mem_grow(s->d, (s->count + 1) * sizeof(struct definition *));
        s->d[s->count++] = d;
    } else {
        log_event(LOG_ERROR, "stored definition is wrong", "\"key\":%q,\"detail\":%z", key, err.message);
    }
    arena_free(&mem);
    return true;
}

static int by_order(const void *a, const void *b) {
    uint64_t x = (*(struct definition *const *)a)->order, y = (*(struct definition *const *)b)->order;
    return x < y ? -1 : x > y;
}

/* ---- native guests: of the process, known before any store is opened, because recovery needs them ---- */

static struct native {
    const char *kind;
    char *name;
    void (*run)(void);
    struct native *next;
} * natives;

static void open_natives(struct loom *l) {
    for (struct native *n = natives; n; n = n->next) {
        struct error err;
        struct str doc = say(l, "{\"%s\":%z,\"version\":\"native\",\"wasmBlobUrl\":\"native\"}",
                             n->kind == kind_activity ? "activityName" : "actorType", n->name);
        struct definition *d = definition_new(n->kind, STR(""), str_of(n->name), STR("native"), doc, &err);
        d->native = exec_module_native(n->run);
        adopt(l, d);
    }
}

int registry_open(struct loom *l, struct error *err) {
    struct loading s = {0};
    open_builtins(l);
    open_natives(l);
    int rc = rows_prefix(l, ROW_REGISTRY, STR("a"), load_definition, &s, err);
    if (s.count) qsort(s.d, s.count, sizeof(struct definition *), by_order);
    for (size_t i = 0; i < s.count; i++) adopt(l, s.d[i]);
    free(s.d);
    return rc;
}

void registry_free(struct loom *l) {
    struct definition *d;
    for (size_t i = 0; (d = map_next(&l->definitions, &i)) != NULL;)
        for (struct definition *older; d; d = older) {
            older = d->older;
            definition_free(d);
        }
    map_free(&l->definitions);
}

static int register_native(const char *kind, const char *name, void (*run)(void)) {
    struct native *n = natives;
    if (actor_check_name(str_of(name), "the native guest's name", NULL) < 0) return LOOM_E_INVALID_ARGUMENT;
    while (n && (n->kind != kind || strcmp(n->name, name) != 0)) n = n->next;
    if (!n) {
        n = mem_alloc(sizeof *n);
        *n = (struct native){kind, str_dup(str_of(name)), run, natives};
        natives = n;
    }
    n->run = run;
    return 0;
}

int loom_register_actor(const char *type, void (*run)(void)) {
    return register_native(kind_actor, type, run);
}

int loom_register_activity(const char *name, void (*run)(void)) {
    return register_native(kind_activity, name, run);
}
