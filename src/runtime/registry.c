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

#include <stdio.h>
#include <string.h>

const char kind_activity[] = "activity", kind_actor[] = "actor-type";

/* ---- reading a definition ---- */

/* Names, versions and what the text refers to are looked at elsewhere, and so are retryPolicy and capabilities. */
#define EITHER                                                                                            \
    "'version':{},'description':{},'wasmBlobUrl':{},'inputSchema':{},'outputSchema':{},'retryPolicy':{}," \
    "'limits':{'type':'object','additionalProperties':false,'properties':{"                               \
    "'maxMemoryMB':{'type':'integer','minimum':1,'maximum':256},"                                         \
    "'maxExecutionMs':{'type':'integer','minimum':1,'maximum':86400000}}}"
static const char activity_fields[] = "{'type':'object','additionalProperties':false,'properties':{" EITHER
                                      ",'activityName':{},'capabilities':{},'reuse':{'type':'boolean'}}}";
static const char actor_fields[] = "{'type':'object','additionalProperties':false,'properties':{" EITHER
                                   ",'actorType':{},'defaultState':{},'config':{},"
                                   "'journalRetention':{'type':'integer','minimum':0}}}";

static int read_schema(struct definition *d, const char *field, struct loom_schema **out, struct error *err) {
    struct str text = json_text_of(yyjson_obj_get(d->doc, field), &d->mem);
    char why[512];
    if (!text.p) return 0;
    *out = loom_schema_new(text.p, text.n, why, sizeof why);
    return *out ? 0 : error_set(err, LOOM_E_INVALID_DOCUMENT, "%s is not a JSON Schema: %s", field, why);
}

static int read_definition(struct definition *d, bool activity, struct error *err) {
    static const struct retry_policy once = {1, 200, 30000};
    yyjson_val *retry = yyjson_obj_get(d->doc, "retryPolicy"), *limits = yyjson_obj_get(d->doc, "limits");
    d->limits = (struct exec_limits){(uint32_t)json_int(limits, "maxMemoryMB", 64),
                                     (uint32_t)json_int(limits, "maxExecutionMs", activity ? 30000 : 10000)};
    d->retry = activity ? retry_default : once;
    d->reuse = json_bool(d->doc, "reuse", false);
    int rc = schema_check(activity ? activity_fields : actor_fields, d->doc, LOOM_E_INVALID_DOCUMENT, "the definition",
                          err);
    if (rc == 0) rc = read_schema(d, "inputSchema", &d->input, err);
    if (rc == 0) rc = read_schema(d, "outputSchema", &d->output, err);
    if (rc == 0) rc = retry_policy_read(retry, &d->retry, err);
    return rc == 0 ? net_policy(yyjson_obj_get(d->doc, "capabilities"), &d->policy, err) : rc;
}

static void definition_free(struct definition *d) {
    loom_schema_free(d->input);
    loom_schema_free(d->output);
    exec_module_free(d->native);
    struct arena mem = d->mem;
    arena_free(&mem);
}

static struct definition *definition_new(const char *kind, struct str ns, struct str text, struct error *err) {
    struct arena mem = {0};
    struct definition *d = arena_alloc(&mem, sizeof *d);
    sha256_hex(text, d->hash);
    d->kind = kind;
    d->ns = arena_dup(&mem, ns);
    d->text = arena_dup(&mem, text);
    d->doc = json_in(&mem, d->text);
    d->name = json_str(d->doc, kind == kind_activity ? "activityName" : "actorType");
    d->version = json_str(d->doc, "version");
    d->mem = mem;
    if (read_definition(d, kind == kind_activity, err) == 0) return d;
    definition_free(d);
    return NULL;
}

/* ---- finding ---- */

/* Into its name's chain, behind those that were deployed after it. */
static void adopt(struct loom *l, struct definition *d) {
    struct str key = arena_json(&d->mem, "%s/%j/%j", d->kind, d->ns, d->name);
    struct definition *newest = map_get(&l->definitions, key), **at = &newest;
    while (*at && (*at)->order > d->order) at = &(*at)->older;
    d->older = *at;
    *at = d;
    map_put(&l->definitions, key, newest);
}

struct definition *registry_find(struct loom *l, const char *kind, struct str ns, struct str name, struct str version,
                                 struct str hash) {
    struct definition *d = map_get(&l->definitions, say(l, "%s/%j/%j", kind, ns, name));
    while (d && (!d->hash[0] || (version.p && !str_eq(d->version, version)) || !str_starts(str_of(d->hash), hash)))
        d = d->older;
    return d || ns.n == 0 ? d : registry_find(l, kind, STR(""), name, version, hash);
}

void registry_forget(struct loom *l) {
    struct definition *d;
    for (size_t i = 0; (d = map_next(&l->definitions, &i)) != NULL;)
        for (; d && d->order >> 20 > l->committed; d = d->older) d->hash[0] = '\0';
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

struct str builtin_module(struct str name, const char *hash) {
    for (size_t i = 0; i < builtin_module_count; i++) {
        const struct builtin_file *b = &builtin_modules[i];
        struct str bytes = {(const char *)b->start, (size_t)(b->end - b->start)};
        char own[65] = "";
        if (hash) sha256_hex(bytes, own);
        if (hash ? strcmp(own, hash) == 0 : str_eq(str_of(b->path), name)) return bytes;
    }
    return STR_NONE;
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
    struct str builtin = builtin_module(name, NULL);
    struct buf there = {0};
    if (!builtin.p)
        return error_set(err, LOOM_E_NOT_FOUND,
                         "%s needs %.*s, which was not uploaded; PUT /v1/modules/NAME/VERSION first", d->name.p,
                         (int)url.n, url.p);
    sha256_hex(builtin, hash);
    /* A turn that begins with it finds it among the blobs when another version of Loom goes on with it. */
    bool kept = d->kind == kind_activity || l->blobs->ops->get(l->blobs, hash, &there, NULL) == 0;
    buf_free(&there);
    return kept ? 0 : store_fault(l, l->blobs->ops->put(l->blobs, builtin, hash, err), err);
}

/* The same into d->resolved, remembered until a module is put. */
static int module_resolve(struct loom *l, struct definition *d, struct error *err) {
    int rc = d->resolved_at == l->modules_put ? 0 : module_look_up(l, d, d->resolved, err);
    if (rc == 0) d->resolved_at = l->modules_put;
    return rc;
}

static int module_bytes(struct loom *l, const char *hash, struct buf *wasm, struct error *err) {
    struct str builtin = builtin_module(STR_NONE, hash);
    buf_str(wasm, builtin);
    return builtin.p ? 0 : store_fault(l, l->blobs->ops->get(l->blobs, hash, wasm, err), err);
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
    const char *path = arena_json(&mem, "%s/%s-%s.cwasm", l->cache_dir, hash, exec_artefact_key(l->engine)).p;
    int rc = 0;
    if (anew || !l->cache_dir || !read_sealed(path, artefact)) {
        buf_clear(artefact);
        rc = wasm.p ? 0 : module_bytes(l, hash, &bytes, err);
        if (rc == 0)
            rc = exec_compile_apart(l->engine, l->config.compiler, wasm.p ? wasm : buf_view(&bytes), artefact, err);
        if (rc == 0 && l->cache_dir) write_sealed(path, artefact);
    }
    buf_free(&bytes);
    arena_free(&mem);
    return rc;
}

struct exec_module *definition_module(struct loom *l, struct definition *d, struct str pinned, struct error *err) {
    if (d->native) return d->native;
    if (!pinned.p && module_resolve(l, d, err) < 0) return NULL;
    struct str hash = say(l, "%j", pinned.p ? pinned : str_of(d->resolved));
    struct exec_module *m = exec_module_kept(l->engine, hash);
    /* An artefact of the cache that does not load (another processor made it) is made anew. */
    for (int anew = 0; !m && anew < 2; anew++) {
        struct buf artefact = {0};
        if (module_artefact(l, hash.p, STR_NONE, anew, &artefact, err) == 0)
            m = exec_module_load(l->engine, hash, buf_view(&artefact), err);
        buf_free(&artefact);
    }
    return m;
}

/* ---- deploying ---- */

struct definition *registry_put(struct loom *l, const char *kind, const struct loom_request *req, struct str name,
                                struct str text, bool *created, struct error *err) {
    struct str ns = ns_of(req), version = lent(req->key);
    struct definition *d = definition_new(kind, ns, text, err),
                      *old = registry_find(l, kind, ns, name, version, STR(""));
    *created = !d || !old || memcmp(old->hash, d->hash, sizeof d->hash) != 0;
    int rc = d ? 0 : LOOM_E_INVALID_DOCUMENT;
    if (d && (!str_eq(d->name, name) || !str_eq(d->version, version)))
        rc = error_set(err, LOOM_E_INVALID_DOCUMENT, "%s and version must be \"%.*s\" and \"%.*s\", as in the request",
                       kind == kind_activity ? "activityName" : "actorType", (int)name.n, name.p, (int)version.n,
                       version.p);
    if (rc == 0) rc = module_resolve(l, d, err);
    if (rc == 0 && old && *created && !req->replace)
        rc = error_set(err, LOOM_E_EXISTS,
                       "%s %s version %s is deployed with another text; give it a new version, or use ?replace=true",
                       kind, d->name.p, d->version.p);
    if (rc < 0) {
        if (d) definition_free(d);
        return NULL;
    }
    d->order = loom_order(l);
    rows_put(l, ROW_REGISTRY, say(l, "%s/%j/%j/%j/%s", kind, ns, name, version, d->hash),
             say(l, "{\"order\":%u,\"doc\":%j}", d->order, d->text), false);
    adopt(l, d);
    return d;
}

/* ---- opening ---- */

/* A definition that was accepted once: a built-in one, or a stored one. */
static struct definition *readopt(struct loom *l, const char *kind, struct str ns, struct str text, uint64_t order) {
    struct error err;
    struct definition *d = definition_new(kind, ns, text, &err);
    if (!d) {
        log_event(LOG_ERROR, "definition is wrong", "\"namespace\":%q,\"detail\":%z,\"text\":%q", ns, err.message,
                  text);
        return NULL;
    }
    d->order = order;
    adopt(l, d);
    return d;
}

static void open_builtins(struct loom *l) {
    for (size_t i = 0; i < builtin_file_count; i++) {
        const struct builtin_file *f = &builtin_files[i];
        if (str_starts(str_of(f->path), STR("activities/")))
            readopt(l, kind_activity, STR(""), (struct str){(const char *)f->start, (size_t)(f->end - f->start)}, 0);
    }
}

/* Key: kind/ns/… */
static bool load_definition(void *ctx, struct str key, struct str value) {
    struct loom *l = ctx;
    yyjson_val *row = look(l, value);
    struct str rest = {(const char *)memchr(key.p, '/', key.n) + 1, 0};
    rest.n = (size_t)((const char *)memchr(rest.p, '/', key.n - (size_t)(rest.p - key.p)) - rest.p);
    readopt(l, str_starts(key, STR("activity/")) ? kind_activity : kind_actor, rest,
            json_text_of(yyjson_obj_get(row, "doc"), &l->scratch), (uint64_t)json_int(row, "order", 0));
    return true;
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
        struct str doc = say(l, "{\"%s\":%z,\"version\":\"native\"}",
                             n->kind == kind_activity ? "activityName" : "actorType", n->name);
        struct definition *d = readopt(l, n->kind, STR(""), doc, 0);
        d->native = exec_module_native(n->run);
        strcpy(d->resolved, "native");
    }
}

int registry_open(struct loom *l, struct error *err) {
    open_builtins(l);
    open_natives(l);
    return rows_prefix(l, ROW_REGISTRY, STR("a"), load_definition, l, err);
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
