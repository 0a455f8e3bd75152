/* deploy.c: what operators deploy: modules, definitions, workflows; and what they see of it.
 *
 * A module is compiled on a thread of its own, in a process of its own, before anything names it. A workflow document is
 * checked twice, against WDL's schema and by the built-in activity wdl-check, then deployed as an actor type
 * `workflow.NAME` whose module is the built-in `wdl` and whose config is the document.
 */
#include "operate/operate.h"

#include <stdlib.h>
#include <string.h>

static void deploy(struct loom *l, const struct loom_request *req, const char *kind, struct str name, struct str text) {
    struct error err;
    bool created;
    struct definition *d = registry_put(l, kind, req, name, text, &created, &err);
    if (d)
        reply_send(l, req, created ? 201 : 200,
                   say(l, "{\"name\":%q,\"version\":%q,\"hash\":%z}", d->name, d->version, d->hash), STR_NONE);
    else
        reply_error(l, req, &err);
}

/* The static check of a workflow is a guest too: the built-in activity wdl-check. */
struct workflow_check {
    struct item item;
    struct activity run;
    struct loom *l;
    struct loom_request req;
    struct str doc;
};

static void workflow_checked(struct loom *l, struct item *item) {
    struct workflow_check *c = (struct workflow_check *)item;
    struct str type = say(l, "workflow.%j", lent(c->req.type)), version = lent(c->req.key);
    struct str schema = json_text_of(yyjson_obj_get(look(l, c->doc), "inputSchema"), &l->scratch);
    struct str why = c->run.ok ? STR("") : json_str(look(l, buf_view(&c->run.text)), "message");
    struct error err;
    error_set(&err, LOOM_E_INVALID_DOCUMENT, "%.*s", (int)why.n, why.p);
    if (c->run.ok)
        deploy(l, &c->req, kind_actor, type,
               say(l, "{\"actorType\":%q,\"version\":%q,\"wasmBlobUrl\":\"module:wdl@builtin\"%s%j,\"config\":%j}",
                   type, version, schema.p ? ",\"inputSchema\":" : "", schema.p ? schema : STR(""), c->doc));
    else
        reply_error(l, &c->req, &err);
    buf_free(&c->run.text);
    item_free(item);
}

static void check_ended(struct activity *run) {
    struct workflow_check *c = (struct workflow_check *)((char *)run - offsetof(struct workflow_check, run));
    loom_post(c->l, &c->item, workflow_checked);
}

/* The id of the innermost step on the path that a schema's complaint begins with; empty: none. */
static struct str step_of(yyjson_val *doc, const char *why) {
    struct str id = STR("");
    for (size_t n = 1; why[n - 1] && why[n - 1] != ':'; n++) {
        struct str found = why[n] == '/' || why[n] == ':' ? json_str(yyjson_ptr_getn(doc, why, n), "id") : STR_NONE;
        id = found.p ? found : id;
    }
    return id;
}

static int workflow_schema(yyjson_val *root, struct str doc, struct error *err) {
    char why[512];
    for (size_t i = 0; i < builtin_file_count; i++) {
        const struct builtin_file *f = &builtin_files[i];
        if (strcmp(f->path, "wdl/schema.json") != 0) continue;
        struct loom_schema *schema = loom_schema_new((const char *)f->start, (size_t)(f->end - f->start), why,
                                                     sizeof why);
        int rc = schema ? loom_schema_check(schema, doc.p, doc.n, why, sizeof why) : -1;
        loom_schema_free(schema);
        struct str step = rc == 0 ? STR("") : step_of(root, why);
        return rc == 0 ? 0
                       : error_set(err, LOOM_E_INVALID_DOCUMENT, "the workflow does not match WDL's schema: %s%.*s%s%s",
                                   step.n ? "step " : "", (int)step.n, step.p, step.n ? ": " : "", why);
    }
    return 0;
}

static void workflow_put(struct loom *l, const struct loom_request *req, struct str doc) {
    struct str name = lent(req->type), version = lent(req->key);
    struct error err;
    struct definition *check = registry_find(l, kind_activity, STR(""), STR("wdl-check"), STR_NONE, STR(""));
    struct exec_module *code = NULL;
    yyjson_val *root = look(l, doc);
    int rc = workflow_schema(root, doc, &err);
    if (rc == 0 && (!str_eq(json_str(root, "name"), name) || !str_eq(json_str(root, "version"), version)))
        rc = error_set(&err, LOOM_E_INVALID_DOCUMENT,
                       "name and version of the document must be \"%.*s\" and \"%.*s\", as in the request", (int)name.n,
                       name.p, (int)version.n, version.p);
    if (rc == 0) code = definition_module(l, check, STR_NONE, &err);
    if (!code) {
        reply_error(l, req, &err);
        return;
    }
    struct workflow_check *c = item_new(sizeof *c);
    c->l = l;
    c->req = request_copy(&c->item.mem, req);
    c->doc = arena_dup(&c->item.mem, doc);
    c->run = (struct activity){.module = code,
                               .memory_mb = check->limits.memory_mb,
                               .time_ms = check->limits.cpu_ms,
                               .key = STR("wdl-check"),
                               .name = check->name,
                               .input = c->doc,
                               .ended = check_ended};
    activity_start(l->pool, &c->run, false);
    activity_wake(l->pool);
}

void deploy_definition(struct loom *l, const struct loom_request *req, const char *kind) {
    struct str name = lent(req->type), version = lent(req->key), ns = ns_of(req);
    struct error err;
    struct buf text = {0};
    if (actor_check_name(ns, "the namespace", &err) < 0 || actor_check_name(name, "the name", &err) < 0 ||
        actor_check_name(version, "the version", &err) < 0 || json_normalize(lent(req->body), &text, &err) < 0)
        reply_error(l, req, &err);
    else if (strcmp(kind, "workflow") == 0)
        workflow_put(l, req, buf_view(&text));
    else
        deploy(l, req, strcmp(kind, kind_activity) == 0 ? kind_activity : kind_actor, name, buf_view(&text));
    buf_free(&text);
}

/* ---- uploading a module: compiled on a thread of its own ---- */

struct upload {
    struct item item;
    struct loom *l;
    struct loom_request req;
    struct str key;
    char hash[65];
    int rc;
    struct error err;
};

static void upload_done(struct loom *l, struct item *item) {
    struct upload *u = (struct upload *)item;
    l->helpers--;
    struct str old = rows_get(l, ROW_MODULE, u->key);
    bool same = old.p && str_eq(json_str(look(l, old), "sha256"), str_of(u->hash));
    if (u->rc == 0 && old.p && !same && !u->req.replace)
        u->rc = error_set(&u->err, LOOM_E_EXISTS,
                          "module %s version %s holds other bytes; give it a new version, or use ?replace=true",
                          u->req.type.p, u->req.key.p);
    if (u->rc < 0) {
        reply_error(l, &u->req, &u->err);
    } else {
        struct str row = say(l, "{\"name\":%q,\"version\":%q,\"sha256\":%z,\"size\":%u}", lent(u->req.type),
                             lent(u->req.key), u->hash, (uint64_t)u->req.body.n);
        rows_put(l, ROW_MODULE, u->key, row, false);
        l->modules_put++;
        reply_send(l, &u->req, same ? 200 : 201, row, STR_NONE);
    }
    item_free(item);
}

static void *upload_main(void *arg) {
    struct upload *u = arg;
    struct buf artefact = {0};
    struct str bytes = lent(u->req.body);
    sha256_hex(bytes, u->hash);
    u->rc = module_artefact(u->l, u->hash, bytes, false, &artefact, &u->err);
    if (u->rc == 0) u->rc = u->l->blobs->ops->put(u->l->blobs, bytes, u->hash, &u->err);
    buf_free(&artefact);
    loom_post(u->l, &u->item, upload_done);
    return NULL;
}

void deploy_module(struct loom *l, const struct loom_request *req) {
    struct str name = lent(req->type), version = lent(req->key), ns = ns_of(req);
    struct error err;
    pthread_t thread;
    if (actor_check_name(ns, "the namespace", &err) < 0 || actor_check_name(name, "the module's name", &err) < 0 ||
        actor_check_name(version, "the version", &err) < 0) {
        reply_error(l, req, &err);
        return;
    }
    struct upload *u = item_new(sizeof *u);
    u->l = l;
    u->req = request_copy(&u->item.mem, req);
    u->key = arena_json(&u->item.mem, "%j/%j/%j", ns, name, version);
    l->helpers++;
    if (l->env->thread(l->env, &thread, upload_main, u))
        pthread_detach(thread);
    else
        upload_main(u);
}

/* ---- looking ---- */

static bool list_module(void *ctx, struct str key, struct str value) {
    struct buf *out = ctx;
    (void)key;
    buf_json(out, "%s%j", out->p[out->n - 1] == '[' ? "" : ",", value);
    return true;
}

void deploy_modules(struct loom *l, const struct loom_request *req) {
    struct buf out = {0};
    struct error err;
    buf_str(&out, STR("{\"modules\":["));
    if (rows_prefix(l, ROW_MODULE, say(l, "%j/", ns_of(req)), list_module, &out, &err) < 0)
        reply_error(l, req, &err);
    else
        reply_send(l, req, 200, say(l, "%j]}", buf_view(&out)), STR_NONE);
    buf_free(&out);
}

static int by_name(const void *a, const void *b) {
    return str_cmp((*(struct definition *const *)a)->name, (*(struct definition *const *)b)->name);
}

void deploy_list(struct loom *l, const struct loom_request *req) {
    bool workflows = str_eq(lent(req->type), STR("workflow"));
    struct definition **all = mem_alloc((l->definitions.count + 1) * sizeof(struct definition *)), *d;
    struct buf out = {0};
    size_t n = 0;
    for (size_t i = 0; (d = map_next(&l->definitions, &i)) != NULL;) {
        bool flow = str_starts(d->name, STR("workflow."));
        bool wanted = workflows ? flow : !flow && str_eq(lent(req->type), str_of(d->kind));
        if (wanted && (d->ns.n == 0 || str_eq(ns_of(req), d->ns))) all[n++] = d;
    }
    qsort(all, n, sizeof *all, by_name);
    for (size_t i = 0; i < n; i++)
        for (d = all[i]; d; d = d->older)
            if (registry_find(l, d->kind, d->ns, d->name, d->version, STR("")) == d)
                buf_json(&out, "%s{\"name\":%z,\"version\":%q,\"hash\":%z}", out.n ? "," : "",
                         d->name.p + (workflows ? 9 : 0), d->version, d->hash);
    reply_send(l, req, 200, say(l, "{\"definitions\":[%j]}", buf_view(&out)), STR_NONE);
    buf_free(&out);
    free(all);
}

void deploy_get(struct loom *l, const struct loom_request *req) {
    struct str kind = lent(req->type), name = lent(req->key);
    bool workflow = str_eq(kind, STR("workflow"));
    struct definition *d = registry_find(l, str_eq(kind, STR("activity")) ? kind_activity : kind_actor, ns_of(req),
                                         workflow ? say(l, "workflow.%j", name) : name, lent(req->version), STR(""));
    struct error err;
    if (d) {
        reply_send(l, req, 200, workflow ? json_text_of(yyjson_obj_get(d->doc, "config"), &l->scratch) : d->text,
                   STR_NONE);
        return;
    }
    error_set(&err, LOOM_E_NOT_FOUND, "no %.*s %.*s is deployed", (int)kind.n, kind.p, (int)name.n, name.p);
    reply_error(l, req, &err);
}
