/* registry.c: what is deployed: definitions of activities and actor types, and the modules they run.
 *
 * A definition is a row kind/ns/name/version → {"order","hash","doc"}; another row sha256/HASH keeps each text that was
 * ever deployed, because an open turn names its definition by hash. Without a version the last deployed counts (highest
 * order). A workflow is an actor type `workflow.NAME` whose module is the built-in `wdl` and whose config is the document.
 * Definitions never leave memory: attempts and turns point at them. Built-ins belong to every namespace.
 * Modules: row ns/name/version → {"sha256","size"}, bytes in the blob store, compiled artefacts in the user's cache folder,
 * which only this program writes. Compiling happens at upload, in a process and a thread of its own.
 */
#include "runtime/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <loomdeps.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char kind_activity[] = "activity", kind_actor[] = "actor-type";

static void registry_key(const char *kind, struct str ns, struct str name, struct str version, struct buf *key) {
    buf_json(key, "%s/%j/%j", kind, ns, name);
    if (version.p)
        buf_json(key, "/%j", version);
}

/* ---- reading a definition ---- */

static int unknown_field(yyjson_val *doc, const char *const *known, const char *what, struct error *err) {
    yyjson_val *key, *value;
    size_t i, n;
    yyjson_obj_foreach(doc, i, n, key, value) {
        const char *const *k = known;
        while (*k && !yyjson_equals_str(key, *k))
            k++;
        if (!*k)
            return error_set(err, LOOM_E_INVALID_DOCUMENT, "%s has an unknown field \"%s\"; see docs/api-reference.md for those there are", what, yyjson_get_str(key));
    }
    return 0;
}

static int read_limits(yyjson_val *doc, struct definition *d, bool activity, struct error *err) {
    static const char *const known[] = {"maxMemoryMB", "maxExecutionMs", NULL};
    yyjson_val *limits = yyjson_obj_get(doc, "limits");
    int64_t memory = json_int(limits, "maxMemoryMB", 64), ms = json_int(limits, "maxExecutionMs", activity ? 30000 : 10000);
    if (limits && (!yyjson_is_obj(limits) || unknown_field(limits, known, "limits", err) < 0))
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "limits is an object of maxMemoryMB and maxExecutionMs");
    if (memory < 1 || memory > 256)
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "limits.maxMemoryMB is %" PRId64 "; use 1 to 256", memory);
    if (ms < 1 || ms > 86400000)
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "limits.maxExecutionMs is %" PRId64 "; use 1 to 86400000", ms);
    d->limits = (struct exec_limits){(uint32_t)memory, (uint32_t)ms};
    d->wall_ms = ms;
    return 0;
}

static int read_schema(yyjson_val *doc, const char *field, struct loom_schema **out, struct error *err) {
    yyjson_val *schema = yyjson_obj_get(doc, field);
    struct buf text = {0};
    char why[512];
    if (!schema)
        return 0;
    json_write(schema, &text);
    *out = loom_schema_new(text.p, text.n, why, sizeof why);
    buf_free(&text);
    return *out ? 0 : error_set(err, LOOM_E_INVALID_DOCUMENT, "%s is not a JSON Schema: %s", field, why);
}

static int read_fields(struct definition *d, bool activity, struct error *err) {
    static const char *const activity_fields[] = {"activityName", "version", "description", "wasmBlobUrl", "inputSchema", "outputSchema", "capabilities", "limits", "retryPolicy", "reuse", NULL};
    static const char *const actor_fields[] = {"actorType", "version", "description", "wasmBlobUrl", "inputSchema", "outputSchema", "limits", "defaultState", "config", "retryPolicy", NULL};
    static const struct retry_policy once = {1, 200, 30000};
    yyjson_val *doc = yyjson_doc_get_root(d->doc), *retry = yyjson_obj_get(doc, "retryPolicy");
    const char *name_field = activity ? "activityName" : "actorType";
    if (!yyjson_is_obj(doc) || unknown_field(doc, activity ? activity_fields : actor_fields, "the definition", err) < 0)
        return yyjson_is_obj(doc) ? LOOM_E_INVALID_DOCUMENT : error_set(err, LOOM_E_INVALID_DOCUMENT, "a definition is a JSON object");
    if (!str_eq(json_str(doc, name_field), str_of(d->name)) || !str_eq(json_str(doc, "version"), str_of(d->version)))
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "%s and version of the document must be \"%s\" and \"%s\", as in the request", name_field, d->name, d->version);
    d->retry = activity ? retry_default : once;
    d->reuse = json_bool(doc, "reuse", false);
    if (read_limits(doc, d, activity, err) < 0 || read_schema(doc, "inputSchema", &d->input, err) < 0 || read_schema(doc, "outputSchema", &d->output, err) < 0)
        return LOOM_E_INVALID_DOCUMENT;
    if (retry && retry_policy_read(retry, &d->retry, &d->retry, err) < 0)
        return LOOM_E_INVALID_DOCUMENT;
    yyjson_val *capabilities = yyjson_obj_get(doc, "capabilities");
    return capabilities ? net_policy_new(capabilities, &d->policy, err) : 0;
}

static void definition_free(struct definition *d) {
    if (!d)
        return;
    yyjson_doc_free(d->doc);
    loom_schema_free(d->input);
    loom_schema_free(d->output);
    exec_module_unref(d->native);
    free(d->policy);
    free(d->kind);
    free(d->ns);
    free(d->name);
    free(d->version);
    free(d->hash);
    free(d);
}

static struct definition *definition_new(const char *kind, struct str ns, struct str name, struct str version, struct str text, struct error *err) {
    struct definition *d = mem_alloc(sizeof *d);
    char hash[65];
    sha256_hex(text, hash);
    d->kind = str_dup(str_of(kind));
    d->ns = str_dup(ns);
    d->name = str_dup(name);
    d->version = str_dup(version);
    d->hash = str_dup(str_of(hash));
    d->doc = json_parse(text, err);
    if (d->doc && read_fields(d, kind == kind_activity, err) == 0)
        return d;
    definition_free(d);
    return NULL;
}

/* ---- finding ---- */

struct known {
    char *key; /* kind/ns/name[/version] */
    struct definition *d;
};

static void remember(struct map *m, const char *kind, const struct definition *d, bool versioned, struct definition *value) {
    struct buf key = {0};
    registry_key(kind, str_of(d->ns), str_of(d->name), versioned ? str_of(d->version) : STR_NONE, &key);
    struct known *k = map_get(m, buf_view(&key));
    if (k) {
        k->d = value;
        buf_free(&key);
        return;
    }
    k = mem_alloc(sizeof *k);
    *k = (struct known){str_dup(buf_view(&key)), value};
    map_put(m, (struct str){k->key, key.n}, k);
    buf_free(&key);
}

static void adopt(struct loom *l, struct definition *d) {
    d->next = l->all_definitions;
    l->all_definitions = d;
    remember(&l->definitions, d->kind, d, true, d);
    remember(&l->latest, d->kind, d, false, d);
    struct known *k = mem_alloc(sizeof *k);
    *k = (struct known){NULL, d};
    if (!map_get(&l->by_hash, str_of(d->hash)))
        map_put(&l->by_hash, str_of(d->hash), k);
    else
        free(k);
}

struct definition *registry_find(struct loom *l, const char *kind, struct str ns, struct str name, struct str version) {
    const struct map *m = version.p ? &l->definitions : &l->latest;
    const struct str places[] = {ns, STR("")};
    for (int i = 0; i < 2; i++) {
        struct buf key = {0};
        registry_key(kind, places[i], name, version, &key);
        struct known *k = map_get(m, buf_view(&key));
        buf_free(&key);
        if (k)
            return k->d;
    }
    return NULL;
}

struct definition *registry_by_hash(struct loom *l, struct str hash, struct str name) {
    struct known *k = map_get(&l->by_hash, hash);
    struct buf text = {0};
    if (k)
        return k->d;
    char key[80];
    snprintf(key, sizeof key, "sha256/%.64s", hash.n == 64 ? hash.p : "");
    struct definition *d = NULL;
    if (rows_load(l, ROW_REGISTRY, str_of(key), &text, NULL) == 1) {
        yyjson_doc *doc = yyjson_read(text.p, text.n, YYJSON_READ_BIGNUM_AS_RAW);
        struct buf old = {0};
        json_write(yyjson_obj_get(yyjson_doc_get_root(doc), "doc"), &old);
        d = definition_new(kind_actor, json_str(yyjson_doc_get_root(doc), "ns"), name, json_str(yyjson_obj_get(yyjson_doc_get_root(doc), "doc"), "version"), buf_view(&old), NULL);
        buf_free(&old);
        yyjson_doc_free(doc);
    }
    if (d) {
        k = mem_alloc(sizeof *k);
        *k = (struct known){NULL, d};
        map_put(&l->by_hash, str_of(d->hash), k);
        d->next = l->all_definitions;
        l->all_definitions = d;
    }
    buf_free(&text);
    return d;
}

int definition_check(const struct definition *d, bool input, struct str json, struct error *err) {
    const struct loom_schema *schema = input ? d->input : d->output;
    char why[512];
    if (!schema || loom_schema_check(schema, json.p, json.n, why, sizeof why) == 0)
        return 0;
    return error_set(err, input ? LOOM_E_INVALID_INPUT : LOOM_E_INVALID_OUTPUT, "the %s of %s %s does not match its schema: %s", input ? "input" : "output", d->name, d->version, why);
}

/* ---- modules ---- */

static const struct builtin_module *builtin_by_name(struct str name) {
    for (size_t i = 0; i < builtin_module_count; i++)
        if (str_eq(str_of(builtin_modules[i].name), name))
            return &builtin_modules[i];
    return NULL;
}

static struct str builtin_bytes(const struct builtin_module *b) {
    return (struct str){(const char *)b->start, (size_t)(b->end - b->start)};
}

/* The hash that wasmBlobUrl names now. */
static int module_resolve(struct loom *l, const struct definition *d, char hash[65], struct error *err) {
    struct str url = json_str(yyjson_doc_get_root(d->doc), "wasmBlobUrl");
    if (str_starts(url, STR("sha256:")) && url.n == 71) {
        snprintf(hash, 65, "%.64s", url.p + 7);
        return 0;
    }
    const char *at = url.p ? memchr(url.p, '@', url.n) : NULL;
    if (!str_starts(url, STR("module:")) || !at)
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "wasmBlobUrl of %s is \"%.*s\"; use module:NAME@VERSION or sha256:HEX (loom deploy turns a file name into one)", d->name,
                         (int)url.n, url.p ? url.p : "");
    struct str name = {url.p + 7, (size_t)(at - url.p) - 7};
    struct buf key = {0}, row = {0};
    buf_json(&key, "%s/%j/%j", d->ns, name, (struct str){at + 1, url.n - (size_t)(at + 1 - url.p)});
    int rc = rows_load(l, ROW_MODULE, buf_view(&key), &row, err);
    const struct builtin_module *b = rc == 0 ? builtin_by_name(name) : NULL;
    if (rc == 1) {
        yyjson_doc *doc = yyjson_read(row.p, row.n, 0);
        snprintf(hash, 65, "%.64s", json_str(yyjson_doc_get_root(doc), "sha256").p);
        yyjson_doc_free(doc);
    } else if (b) {
        sha256_hex(builtin_bytes(b), hash);
    } else if (rc == 0) {
        rc = error_set(err, LOOM_E_NOT_FOUND, "%s needs %.*s, which was not uploaded; PUT /v1/modules/%.*s first", d->name, (int)url.n, url.p, (int)name.n, name.p);
    }
    buf_free(&key);
    buf_free(&row);
    return rc < 0 ? rc : 0;
}

static void artefact_path(struct loom *l, const char *hash, struct buf *path) {
    buf_json(path, "%s/%s-%s.cwasm", l->cache_dir, hash, exec_artefact_key(l->engine));
    buf_char(path, '\0');
}

static bool read_file(const char *path, struct buf *out) {
    char chunk[65536];
    ssize_t n;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    while ((n = read(fd, chunk, sizeof chunk)) > 0)
        buf_add(out, chunk, (size_t)n);
    close(fd);
    return n == 0;
}

static void write_artefact(struct loom *l, const char *hash, struct str artefact) {
    struct buf path = {0}, part = {0};
    artefact_path(l, hash, &path);
    buf_json(&part, "%s.%d", path.p, (int64_t)getpid());
    buf_char(&part, '\0');
    int fd = open(part.p, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool whole = fd >= 0 && write(fd, artefact.p, artefact.n) == (ssize_t)artefact.n && fsync(fd) == 0;
    if (fd >= 0)
        close(fd);
    if (!whole || rename(part.p, path.p) < 0)
        unlink(part.p);
    buf_free(&path);
    buf_free(&part);
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

/* The compiled form: from the cache, else compiled now. Any thread. */
static int module_artefact(struct loom *l, const char *hash, struct str wasm, struct buf *artefact, struct error *err) {
    struct buf path = {0}, bytes = {0};
    artefact_path(l, hash, &path);
    bool cached = read_file(path.p, artefact);
    buf_free(&path);
    if (cached)
        return 0;
    buf_clear(artefact);
    int rc = 0;
    if (!wasm.p && (rc = module_bytes(l, hash, &bytes, err)) == 0)
        wasm = buf_view(&bytes);
    if (rc == 0)
        rc = exec_compile_apart(l->engine, l->config.compiler, wasm, artefact, err);
    if (rc == 0)
        write_artefact(l, hash, buf_view(artefact));
    buf_free(&bytes);
    return rc;
}

struct loaded {
    char hash[65];
    struct exec_module *module;
};

static struct exec_module *module_get(struct loom *l, const char *hash, struct error *err) {
    struct loaded *m = map_get(&l->modules, str_of(hash));
    if (m)
        return exec_module_ref(m->module);
    struct buf artefact = {0};
    struct exec_module *module = NULL;
    if (module_artefact(l, hash, STR_NONE, &artefact, err) == 0 && exec_module_load(l->engine, buf_view(&artefact), &module, err) == 0) {
        m = mem_alloc(sizeof *m);
        snprintf(m->hash, sizeof m->hash, "%s", hash);
        m->module = module;
        map_put(&l->modules, str_of(m->hash), m);
        exec_module_ref(module);
    }
    buf_free(&artefact);
    return module;
}

struct exec_module *definition_module(struct loom *l, const struct definition *d, struct str module_hash, char hash_out[65], struct error *err) {
    char hash[65] = "native";
    if (!d->native && module_hash.n == 64)
        snprintf(hash, sizeof hash, "%.64s", module_hash.p);
    else if (!d->native && module_resolve(l, d, hash, err) < 0)
        return NULL;
    if (hash_out)
        memcpy(hash_out, hash, sizeof hash);
    return d->native ? exec_module_ref(d->native) : module_get(l, hash, err);
}

/* ---- deploying ---- */

static void put_reply(struct loom *l, const struct loom_request *req, const struct definition *d, bool changed) {
    struct buf body = {0};
    buf_json(&body, "{\"name\":%z,\"version\":%z,\"hash\":%z}", d->name, d->version, d->hash);
    reply_send(l, req, changed ? 201 : 200, buf_view(&body), STR_NONE);
    buf_free(&body);
}

static void definition_store(struct loom *l, const struct definition *d) {
    struct buf key = {0}, row = {0}, doc = {0};
    json_write(yyjson_doc_get_root(d->doc), &doc);
    registry_key(d->kind, str_of(d->ns), str_of(d->name), str_of(d->version), &key);
    buf_json(&row, "{\"order\":%u,\"hash\":%z,\"ns\":%z,\"doc\":%j}", (l->open_seq << 20) | l->arrivals++, d->hash, d->ns, buf_view(&doc));
    rows_put(l, ROW_REGISTRY, buf_view(&key), buf_view(&row), false);
    buf_clear(&key);
    buf_json(&key, "sha256/%s", d->hash);
    rows_put(l, ROW_REGISTRY, buf_view(&key), buf_view(&row), false);
    buf_free(&key);
    buf_free(&row);
    buf_free(&doc);
}

static void deploy(struct loom *l, const struct loom_request *req, const char *kind, struct str ns, struct str name, struct str version, struct str text) {
    struct error err;
    char hash[65];
    struct definition *d = definition_new(kind, ns, name, version, text, &err);
    struct definition *old = registry_find(l, kind, ns, name, version);
    bool same = d && old && strcmp(old->hash, d->hash) == 0;
    int rc = d ? module_resolve(l, d, hash, &err) : -1;
    if (rc == 0 && old && !same && !req->replace)
        rc = error_set(&err, LOOM_E_EXISTS, "%s %s version %s is deployed with another text; give it a new version, or use ?replace=true", kind, d->name, d->version);
    if (rc < 0) {
        reply_error(l, req, &err);
        definition_free(d);
        return;
    }
    put_reply(l, req, d, !same);
    definition_store(l, d);
    adopt(l, d);
}

/* The static check of a workflow is a guest too: the built-in activity wdl-check. */
struct workflow_check {
    struct item item;
    struct loom *l;
    struct loom_request req;
    struct str ns, name, version;
    struct arena mem;
    struct str doc;
    struct exec_module *code;
    bool ok;
    struct error err;
};

static void workflow_checked(struct loom *l, struct item *item) {
    struct workflow_check *c = (struct workflow_check *)item;
    if (c->ok) {
        struct str type = arena_json(&c->mem, "workflow.%j", c->name);
        struct str text = arena_json(&c->mem, "{\"actorType\":%q,\"version\":%q,\"wasmBlobUrl\":\"module:wdl@builtin\",\"config\":%j}", type, c->version, c->doc);
        deploy(l, &c->req, kind_actor, c->ns, type, c->version, text);
    } else {
        snprintf(c->err.code, sizeof c->err.code, "%s", error_name(LOOM_E_INVALID_DOCUMENT));
        reply_error(l, &c->req, &c->err);
    }
    exec_module_unref(c->code);
    arena_free(&c->mem);
    free(c);
}

static void check_done(void *ctx, struct str result, const struct error *error) {
    struct workflow_check *c = ctx;
    (void)result;
    c->ok = !error;
    if (error)
        c->err = *error;
    loom_post(c->l, &c->item);
}

static int workflow_schema(struct str doc, struct error *err) {
    char why[512];
    for (size_t i = 0; i < builtin_file_count; i++) {
        const struct builtin_file *f = &builtin_files[i];
        if (strcmp(f->path, "wdl/schema.json") != 0)
            continue;
        struct loom_schema *schema = loom_schema_new((const char *)f->start, (size_t)(f->end - f->start), why, sizeof why);
        int rc = schema ? loom_schema_check(schema, doc.p, doc.n, why, sizeof why) : -1;
        loom_schema_free(schema);
        return rc == 0 ? 0 : error_set(err, LOOM_E_INVALID_DOCUMENT, "the workflow is not as WDL's schema says: %s", why);
    }
    return 0;
}

static void workflow_put(struct loom *l, const struct loom_request *req, struct str ns, struct str name, struct str version, struct str doc) {
    struct error err;
    struct definition *check = registry_find(l, kind_activity, ns, STR("wdl-check"), STR_NONE);
    struct exec_module *code = NULL;
    yyjson_doc *parsed = yyjson_read(doc.p, doc.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *root = yyjson_doc_get_root(parsed);
    int rc = workflow_schema(doc, &err);
    if (rc == 0 && (!str_eq(json_str(root, "name"), name) || !str_eq(json_str(root, "version"), version)))
        rc = error_set(&err, LOOM_E_INVALID_DOCUMENT, "name and version of the document must be \"%.*s\" and \"%.*s\", as in the request", (int)name.n, name.p, (int)version.n, version.p);
    yyjson_doc_free(parsed);
    if (rc == 0 && !check)
        rc = error_set(&err, LOOM_E_INTERNAL, "the built-in wdl-check is missing from this executable");
    if (rc == 0)
        code = definition_module(l, check, STR_NONE, NULL, &err);
    if (rc < 0 || !code) {
        reply_error(l, req, &err);
        return;
    }
    struct workflow_check *c = mem_alloc(sizeof *c);
    *c = (struct workflow_check){.item.fn = workflow_checked, .l = l, .req = *req, .code = code};
    c->ns = arena_dup(&c->mem, ns);
    c->name = arena_dup(&c->mem, name);
    c->version = arena_dup(&c->mem, version);
    c->doc = arena_dup(&c->mem, doc);
    struct activity_spec spec = {.module = code, .limits = check->limits, .deadline_mono_ms = l->env->mono_ms(l->env) + check->wall_ms, .key = STR("wdl-check"), .ns = c->ns,
                                 .name = STR("wdl-check"), .input = c->doc, .ctx = c, .done = check_done};
    activity_start(l->pool, &spec, false);
}

static struct str ns_of(const struct loom_request *req) {
    return req->ns.p ? (struct str){req->ns.p, req->ns.n} : STR("default");
}

void registry_op_put(struct loom *l, const struct loom_request *req, const char *kind) {
    struct str name = {req->type.p, req->type.n}, version = {req->key.p, req->key.n}, ns = ns_of(req);
    struct error err;
    struct buf text = {0};
    bool workflow = strcmp(kind, "workflow") == 0;
    if (actor_check_name(ns, "the namespace", &err) < 0 || actor_check_name(name, "the name", &err) < 0 || actor_check_name(version, "the version", &err) < 0 ||
        json_normalize((struct str){req->body.p, req->body.n}, &text, &err) < 0)
        reply_error(l, req, &err);
    else if (workflow)
        workflow_put(l, req, ns, name, version, buf_view(&text));
    else
        deploy(l, req, strcmp(kind, kind_activity) == 0 ? kind_activity : kind_actor, ns, name, version, buf_view(&text));
    buf_free(&text);
}

/* ---- uploading a module: compiled on a thread of its own ---- */

struct upload {
    struct item item;
    struct loom *l;
    struct loom_request req;
    struct arena mem;
    struct str key, name, version, bytes;
    char hash[65];
    int rc;
    struct error err;
};

static void upload_done(struct loom *l, struct item *item) {
    struct upload *u = (struct upload *)item;
    struct buf old = {0}, row = {0}, body = {0};
    bool same = false;
    if (u->rc == 0) {
        u->rc = rows_load(l, ROW_MODULE, u->key, &old, &u->err);
        same = u->rc == 1 && memmem(old.p, old.n, u->hash, 64) != NULL;
        if (u->rc == 1 && !same && !u->req.replace)
            u->rc = error_set(&u->err, LOOM_E_EXISTS, "module %.*s version %.*s holds other bytes; give it a new version, or use ?replace=true", (int)u->name.n, u->name.p, (int)u->version.n, u->version.p);
    }
    if (u->rc < 0) {
        reply_error(l, &u->req, &u->err);
    } else {
        buf_json(&row, "{\"name\":%q,\"version\":%q,\"sha256\":%z,\"size\":%u}", u->name, u->version, u->hash, (uint64_t)u->bytes.n);
        rows_put(l, ROW_MODULE, u->key, buf_view(&row), false);
        reply_send(l, &u->req, same ? 200 : 201, buf_view(&row), STR_NONE);
    }
    buf_free(&old);
    buf_free(&row);
    buf_free(&body);
    arena_free(&u->mem);
    free(u);
}

static void *upload_main(void *arg) {
    struct upload *u = arg;
    struct buf artefact = {0};
    sha256_hex(u->bytes, u->hash);
    u->rc = module_artefact(u->l, u->hash, u->bytes, &artefact, &u->err);
    if (u->rc == 0)
        u->rc = u->l->blobs->ops->put(u->l->blobs, u->bytes, u->hash, &u->err);
    buf_free(&artefact);
    loom_post(u->l, &u->item);
    return NULL;
}

void registry_op_module_put(struct loom *l, const struct loom_request *req) {
    struct str name = {req->type.p, req->type.n}, version = {req->key.p, req->key.n}, ns = ns_of(req);
    struct error err;
    pthread_t thread;
    pthread_attr_t detached;
    if (actor_check_name(ns, "the namespace", &err) < 0 || actor_check_name(name, "the module's name", &err) < 0 || actor_check_name(version, "the version", &err) < 0) {
        reply_error(l, req, &err);
        return;
    }
    struct upload *u = mem_alloc(sizeof *u);
    *u = (struct upload){.item.fn = upload_done, .l = l, .req = *req};
    u->key = arena_json(&u->mem, "%j/%j/%j", ns, name, version);
    u->name = arena_dup(&u->mem, name);
    u->version = arena_dup(&u->mem, version);
    u->bytes = arena_dup(&u->mem, (struct str){req->body.p, req->body.n});
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &detached, upload_main, u) != 0)
        upload_main(u);
    pthread_attr_destroy(&detached);
}

/* ---- looking ---- */

struct listing {
    struct buf out;
    const char *kind;
    struct str ns;
};

static bool list_module(void *ctx, struct str key, struct str value) {
    struct listing *s = ctx;
    (void)key;
    if (s->out.n > 1 && s->out.p[s->out.n - 1] != '[')
        buf_char(&s->out, ',');
    buf_str(&s->out, value);
    return true;
}

void registry_op_modules(struct loom *l, const struct loom_request *req) {
    struct listing s = {0};
    struct error err;
    struct buf from = {0}, to = {0};
    buf_json(&from, "%j/", ns_of(req));
    rows_prefix_end(buf_view(&from), &to);
    buf_str(&s.out, STR("{\"modules\":["));
    if (rows_scan(l, ROW_MODULE, buf_view(&from), buf_view(&to), list_module, &s, &err) < 0) {
        reply_error(l, req, &err);
    } else {
        buf_str(&s.out, STR("]}"));
        reply_send(l, req, 200, buf_view(&s.out), STR_NONE);
    }
    buf_free(&s.out);
    buf_free(&from);
    buf_free(&to);
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(struct known *const *)a)->key, (*(struct known *const *)b)->key);
}

void registry_op_list(struct loom *l, const struct loom_request *req) {
    struct str kind = {req->type.p, req->type.n}, ns = ns_of(req);
    bool workflows = str_eq(kind, STR("workflow"));
    struct known **all = mem_alloc((l->definitions.count + 1) * sizeof *all), *k;
    struct buf out = {0};
    size_t n = 0;
    for (size_t i = 0; (k = map_next(&l->definitions, &i)) != NULL;) {
        bool flow = str_starts(str_of(k->d->name), STR("workflow."));
        bool wanted = workflows ? flow : str_eq(kind, str_of(k->d->kind)) && !flow;
        if (wanted && (k->d->ns[0] == '\0' || str_eq(ns, str_of(k->d->ns))))
            all[n++] = k;
    }
    qsort(all, n, sizeof *all, by_name);
    buf_str(&out, STR("{\"definitions\":["));
    for (size_t i = 0; i < n; i++)
        buf_json(&out, "%s{\"name\":%z,\"version\":%z,\"hash\":%z}", i ? "," : "", all[i]->d->name + (workflows ? 9 : 0), all[i]->d->version, all[i]->d->hash);
    buf_str(&out, STR("]}"));
    reply_send(l, req, 200, buf_view(&out), STR_NONE);
    buf_free(&out);
    free(all);
}

void registry_op_get(struct loom *l, const struct loom_request *req) {
    struct str kind = {req->type.p, req->type.n}, name = {req->key.p, req->key.n};
    bool workflow = str_eq(kind, STR("workflow"));
    struct buf full = {0}, out = {0};
    buf_json(&full, workflow ? "workflow.%j" : "%j", name);
    const char *table = str_eq(kind, STR("activity")) ? kind_activity : kind_actor;
    struct definition *d = registry_find(l, table, ns_of(req), buf_view(&full), (struct str){req->version.p, req->version.n});
    if (d) {
        yyjson_val *doc = yyjson_doc_get_root(d->doc);
        json_write(workflow ? yyjson_obj_get(doc, "config") : doc, &out);
        reply_send(l, req, 200, buf_view(&out), STR_NONE);
    } else {
        struct error err;
        error_set(&err, LOOM_E_NOT_FOUND, "no %.*s %.*s is deployed", (int)kind.n, kind.p, (int)name.n, name.p);
        reply_error(l, req, &err);
    }
    buf_free(&full);
    buf_free(&out);
}

/* ---- opening ---- */

static void open_builtins(struct loom *l) {
    for (size_t i = 0; i < builtin_file_count; i++) {
        struct str path = str_of(builtin_files[i].path), text = {(const char *)builtin_files[i].start, (size_t)(builtin_files[i].end - builtin_files[i].start)};
        struct error err;
        if (!str_starts(path, STR("activities/")))
            continue;
        yyjson_doc *doc = yyjson_read(text.p, text.n, 0);
        yyjson_val *root = yyjson_doc_get_root(doc);
        struct definition *d = definition_new(kind_activity, STR(""), json_str(root, "activityName"), json_str(root, "version"), text, &err);
        if (d)
            adopt(l, d);
        else
            log_event(LOG_ERROR, "built-in definition is wrong", "\"path\":%q,\"detail\":%z", path, err.message);
        yyjson_doc_free(doc);
    }
}

struct loading {
    struct definition **d;
    uint64_t *order;
    size_t count;
};

static bool load_definition(void *ctx, struct str key, struct str value) {
    struct loading *s = ctx;
    struct error err;
    const char *kind = str_starts(key, STR("activity/")) ? kind_activity : str_starts(key, STR("actor-type/")) ? kind_actor : NULL;
    if (!kind)
        return true;
    yyjson_doc *doc = yyjson_read(value.p, value.n, YYJSON_READ_BIGNUM_AS_RAW);
    yyjson_val *root = yyjson_doc_get_root(doc), *text = yyjson_obj_get(root, "doc");
    struct buf minified = {0};
    json_write(text, &minified);
    struct definition *d = definition_new(kind, json_str(root, "ns"), json_str(text, kind == kind_activity ? "activityName" : "actorType"), json_str(text, "version"), buf_view(&minified), &err);
    if (!d)
        log_event(LOG_ERROR, "stored definition is wrong", "\"key\":%q,\"detail\":%z", key, err.message);
    s->d = mem_grow(s->d, (s->count + 1) * sizeof *s->d);
    s->order = mem_grow(s->order, (s->count + 1) * sizeof *s->order);
    s->d[s->count] = d;
    s->order[s->count] = (uint64_t)json_int(root, "order", 0);
    s->count += d != NULL;
    buf_free(&minified);
    yyjson_doc_free(doc);
    return true;
}

int registry_open(struct loom *l, struct error *err) {
    struct loading s = {0};
    open_builtins(l);
    int rc = rows_scan(l, ROW_REGISTRY, STR("a"), STR("b"), load_definition, &s, err);
    for (size_t done = 0; done < s.count; done++) { /* in the order of deployment, so that the last one is the latest */
        size_t least = 0;
        for (size_t i = 0; i < s.count; i++)
            if (s.d[i] && (!s.d[least] || s.order[i] < s.order[least]))
                least = i;
        adopt(l, s.d[least]);
        s.d[least] = NULL;
    }
    free(s.d);
    free(s.order);
    return rc;
}

static void forget(struct map *m) {
    struct known *k;
    for (size_t i = 0; (k = map_next(m, &i)) != NULL;) {
        free(k->key);
        free(k);
    }
    map_free(m);
}

void registry_free(struct loom *l) {
    struct loaded *m;
    for (size_t i = 0; (m = map_next(&l->modules, &i)) != NULL;) {
        exec_module_unref(m->module);
        free(m);
    }
    map_free(&l->modules);
    forget(&l->definitions);
    forget(&l->latest);
    forget(&l->by_hash);
    for (struct definition *d = l->all_definitions, *next; d; d = next) {
        next = d->next;
        definition_free(d);
    }
}

int registry_native(struct loom *l, const char *kind, const char *name, void (*run)(void)) {
    struct buf doc = {0};
    struct error err;
    bool activity = strcmp(kind, kind_activity) == 0;
    buf_json(&doc, "{\"%s\":%z,\"version\":\"native\",\"wasmBlobUrl\":\"native\"}", activity ? "activityName" : "actorType", name);
    struct definition *d = definition_new(activity ? kind_activity : kind_actor, STR(""), str_of(name), STR("native"), buf_view(&doc), &err);
    buf_free(&doc);
    if (!d)
        return LOOM_E_INVALID_ARGUMENT;
    d->native = exec_module_native(run);
    adopt(l, d);
    return 0;
}
