/* debug.c: what a store holds: digest, verify, replay, dump, restore; and panic and stall of a worker.
 *
 * A folder is read through a connection of its own, in one transaction: the last commit, also while a worker has it.
 * A Loom at --url starts the same command on its own folder and answers with what that printed.
 */
#include "cli/cli.h"
#include "cli/image.h"
#include "runtime/runtime.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FAULTS_MAX = 1000, TELL_MS = 200 };

/* ---- the image ---- */

void image_fault(struct image *im, const char *fmt, ...) {
    struct buf text = {0};
    va_list ap;
    va_start(ap, fmt);
    buf_json_v(&text, fmt, ap);
    va_end(ap);
    if (im->fault_count++ < FAULTS_MAX) buf_json(&im->faults, "%s%q", im->faults.n ? "," : "", buf_view(&text));
    buf_free(&text);
}

/* On a terminal, now and then, how far it is. */
static void tell(struct image *im) {
    int64_t now = env_system()->mono_ms(env_system());
    im->seen++;
    if (now - im->told_ms < TELL_MS || !isatty(2)) return;
    if (im->told_ms) fprintf(stderr, "\r%" PRId64 " rows read\033[K", im->seen);
    im->told_ms = now;
}

struct str image_column(sqlite3_stmt *q, int i) {
    const char *p = sqlite3_column_blob(q, i);
    return (struct str){p ? p : "", (size_t)sqlite3_column_bytes(q, i)};
}

static void fault_of_sqlite(struct image *im, const char *what) {
    image_fault(im, "%s: %s (%s)", what, sqlite3_errmsg(im->db), sqlite3_errstr(sqlite3_extended_errcode(im->db)));
}

/* The value with its blob put in; false: the blob is missing or damaged, which is in err. */
static bool resolve(struct image *im, struct str value, struct buf *out, struct error *err) {
    struct arena mem = {0};
    bool named = str_starts(value, STR("{\"$blob\":"));
    struct str hex = named ? json_str(json_in(&mem, value), "$blob") : STR_NONE;
    int rc = !named      ? 0
             : im->blobs ? im->blobs->ops->get(im->blobs, hex.p ? hex.p : "", out, err)
                         : error_set(err, LOOM_E_NOT_FOUND, "there is no folder of blobs");
    if (!named) buf_str(out, value);
    arena_free(&mem);
    return rc == 0;
}

bool image_row(struct image *im, enum row_kind kind, sqlite3_stmt *q, struct buf *value) {
    struct str key = image_column(q, 0), text = image_column(q, 1);
    struct error err;
    tell(im);
    if (row_sum(kind, key, text) != (uint64_t)sqlite3_column_int64(q, 2))
        error_set(&err, LOOM_E_DAMAGED, "it does not match its checksum");
    else if (resolve(im, text, value, &err))
        return true;
    if (!im->quiet) image_fault(im, "the %s row %q: %s", row_kind_name(kind), key, err.message);
    return false;
}

static sqlite3_stmt *range(struct image *im, enum row_kind kind, struct str from) {
    static const char sql[] = "SELECT key, value, sum FROM rows WHERE kind = ? AND key >= ? ORDER BY key";
    sqlite3_stmt **q = &im->scans[im->depth++];
    if (!*q && sqlite3_prepare_v3(im->db, sql, -1, SQLITE_PREPARE_PERSISTENT, q, NULL)) return NULL;
    sqlite3_bind_int(*q, 1, (int)kind);
    sqlite3_bind_blob64(*q, 2, from.p ? from.p : "", from.n, SQLITE_STATIC);
    return *q;
}

void image_scan(struct image *im, enum row_kind kind, struct str from, struct str to, row_fn fn, void *ctx) {
    sqlite3_stmt *q = range(im, kind, from);
    struct buf value = {0};
    int rc = SQLITE_ERROR;
    bool more = true;
    while (more && q && (rc = sqlite3_step(q)) == SQLITE_ROW) {
        struct str key = image_column(q, 0);
        if (to.p && str_cmp(key, to) >= 0) break;
        buf_clear(&value);
        more = fn(ctx, key, image_row(im, kind, q, &value) ? buf_view(&value) : STR_NONE);
    }
    if (rc != SQLITE_ROW && rc != SQLITE_DONE) fault_of_sqlite(im, row_kind_name(kind));
    sqlite3_reset(q);
    im->depth--;
    buf_free(&value);
}

struct found {
    struct buf *out;
    bool there;
};

static bool first_row(void *ctx, struct str key, struct str value) {
    struct found *f = ctx;
    (void)key;
    buf_str(f->out, value);
    f->there = value.p != NULL;
    return false;
}

bool image_load(struct image *im, enum row_kind kind, struct str key, struct buf *out) {
    struct buf next = {0}; /* the smallest key above this one */
    struct found f = {out, false};
    buf_str(&next, key);
    buf_char(&next, '\0');
    image_scan(im, kind, key, buf_view(&next), first_row, &f);
    buf_free(&next);
    return f.there;
}

static bool meta(struct image *im) {
    static const char sql[] = "SELECT id, seq, (SELECT user_version FROM pragma_user_version) FROM meta";
    sqlite3_stmt *q = NULL;
    bool ok = sqlite3_prepare_v2(im->db, sql, -1, &q, NULL) == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW;
    if (ok) {
        snprintf(im->id, sizeof im->id, "%.*s", (int)image_column(q, 0).n, image_column(q, 0).p);
        im->batch = sqlite3_column_int64(q, 1);
        im->format = sqlite3_column_int64(q, 2);
    }
    sqlite3_finalize(q);
    return ok;
}

static bool connect_to(struct image *im, const char *file) {
    static const char pragmas[] = "PRAGMA query_only = 1; PRAGMA cell_size_check = 1; PRAGMA busy_timeout = 5000; "
                                  "BEGIN; SELECT 1 FROM rows LIMIT 1";
    if (sqlite3_open_v2(file, &im->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK) return false;
    sqlite3_db_config(im->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    im->pages = (struct pages){.lenient = true};
    pages_check(im->db, &im->pages);
    return sqlite3_exec(im->db, pragmas, NULL, NULL, NULL) == SQLITE_OK;
}

static bool copy_file(const char *from, const char *to) {
    char part[65536];
    FILE *in = fopen(from, "re"), *out = fopen(to, "we");
    bool ok = in && out;
    for (size_t n; ok && (n = fread(part, 1, sizeof part, in)) > 0;) ok = fwrite(part, 1, n, out) == n;
    if (in) fclose(in);
    return out && fclose(out) == 0 && ok;
}

/* The first page of the file at `to` becomes that of `from`, which knows how many pages follow. */
static bool lend_head(const char *from, const char *to) {
    unsigned char head[4096];
    struct stat st;
    FILE *in = fopen(from, "re"), *out = fopen(to, "r+e");
    bool ok = in && out && fread(head, 1, sizeof head, in) == sizeof head && stat(to, &st) == 0;
    for (int i = 0; ok && i < 4; i++) head[28 + i] = (unsigned char)(st.st_size / (off_t)sizeof head >> (24 - 8 * i));
    ok = ok && fwrite(head, 1, sizeof head, out) == sizeof head;
    if (in) fclose(in);
    return out && fclose(out) == 0 && ok;
}

/* SQLite reads nothing when the file's first page is damaged. It says where the tables begin, which is the same in all
 * stores: a copy of the file gets the first page of a new store. */
static bool connect_to_copy(struct image *im, const char *file) {
    static const char *const names[] = {"loom.db", "loom.db-wal", "loom.db-shm", "new", "new.lock"};
    struct arena mem = {0};
    struct error err;
    char dir[] = "/tmp/loom-debug-XXXXXX";
    if (!mkdtemp(dir)) return false;
    const char *copy = arena_json(&mem, "%s/loom.db", dir).p, *fresh = arena_json(&mem, "%s/new", dir).p;
    struct store *s = store_sqlite_open(fresh, env_system(), false, &err);
    if (s) s->ops->close(s);
    copy_file(arena_json(&mem, "%s-wal", file).p, arena_json(&mem, "%s-wal", copy).p);
    sqlite3_close(im->db);
    bool ok = s && copy_file(file, copy) && lend_head(fresh, copy) && connect_to(im, copy);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(arena_json(&mem, "%s/%s", dir, names[i]).p);
    rmdir(dir);
    if (ok) fail("the head of %s is damaged; a copy was read with that of a new store", file);
    im->fault_count += ok;
    arena_free(&mem);
    return ok;
}

/* false: printed. damaged: as much as can be read is enough. */
static bool image_open(struct image *im, const char *folder, bool damaged) {
    struct arena mem = {0};
    struct error err = {0};
    const char *file = arena_json(&mem, "%s/loom.db", folder).p, *blobs = arena_json(&mem, "%s/blobs", folder).p;
    bool there = access(file, F_OK) == 0;
    bool ok = there && (connect_to(im, file) || (damaged && connect_to_copy(im, file)));
    ok = ok && (meta(im) || damaged);
    if (!there)
        fail("there is no store in %s: %s is missing", folder, file);
    else if (!ok)
        fail("%s cannot be read: %s", file, sqlite3_errmsg(im->db));
    else if (im->format > STORE_FORMAT)
        ok = fail("the store %s has format %" PRId64 ", this Loom knows up to %d; use a newer Loom", file, im->format,
                  STORE_FORMAT) == EXIT_OK;
    if (ok && access(blobs, F_OK) == 0) im->blobs = blob_file_open(blobs, &err);
    arena_free(&mem);
    return ok;
}

static void image_close(struct image *im) {
    if (im->told_ms) fprintf(stderr, "\r\033[K");
    for (size_t i = 0; i < sizeof im->scans / sizeof *im->scans; i++) sqlite3_finalize(im->scans[i]);
    sqlite3_close(im->db);
    if (im->blobs) im->blobs->ops->close(im->blobs);
    buf_free(&im->faults);
}

/* ---- digest ---- */

struct digest {
    enum row_kind kind;
    struct buf sums; /* of each row: its checksum */
};

static bool digest_row(void *ctx, struct str key, struct str value) {
    struct digest *d = ctx;
    uint64_t sum = row_sum(d->kind, key, value);
    buf_add(&d->sums, &sum, sizeof sum);
    return true;
}

/* Who holds the store and since when is not what it holds: the lease is not part of the whole. */
static void image_digest(struct image *im, struct buf *report) {
    struct buf whole = {0}, kinds = {0};
    char hex[65];
    for (int kind = ROW_NONE + 1; kind < ROW_KIND_END; kind++) {
        struct digest d = {.kind = (enum row_kind)kind};
        image_scan(im, d.kind, STR(""), STR_NONE, digest_row, &d);
        sha256_hex(buf_view(&d.sums), hex);
        if (d.kind != ROW_LEASE) buf_json(&whole, "%s%s", row_kind_name(d.kind), hex);
        buf_json(&kinds, "%s%z:{\"rows\":%u,\"digest\":%z}", kinds.n ? "," : "", row_kind_name(d.kind),
                 (uint64_t)(d.sums.n / sizeof(uint64_t)), hex);
        buf_free(&d.sums);
    }
    sha256_hex(buf_view(&whole), hex);
    buf_json(report, "\"digest\":%z,\"kinds\":{%j}", hex, buf_view(&kinds));
    buf_free(&whole);
    buf_free(&kinds);
}

/* ---- the command ---- */

static int restore(const struct cli *c, const char *path) {
    FILE *in = strcmp(path, "-") ? fopen(path, "re") : stdin;
    int code = !c->o.store ? fail_usage(c, "restore needs --store DIR: the folder of the new store")
               : in        ? image_restore(in, c->o.store)
                           : fail("cannot read %s: %s", path, strerror(errno));
    if (in && in != stdin) fclose(in);
    return code;
}

/* Scalars as lines, the members of objects and lists as indented ones. */
static void print_member(const char *name, yyjson_val *v, struct arena *mem) {
    struct str text = yyjson_is_str(v) ? (struct str){yyjson_get_str(v), yyjson_get_len(v)} : json_text_of(v, mem);
    struct str digest = json_str(v, "digest");
    if (digest.p) text = arena_json(mem, "%d rows  %j", json_int(v, "rows", 0), digest);
    printf("%s%-14s%s %.*s\n", paint(BOLD), name, paint(PLAIN), (int)text.n, text.p);
}

static void print_report(yyjson_val *report) {
    struct arena mem = {0};
    yyjson_val *key, *v, *name, *member;
    size_t i, n, k, m;
    yyjson_obj_foreach(report, i, n, key, v) {
        if (!yyjson_is_ctn(v)) print_member(yyjson_get_str(key), v, &mem);
        yyjson_obj_foreach(v, k, m, name, member) print_member(yyjson_get_str(name), member, &mem);
        yyjson_arr_foreach(v, k, m, member) print_member(yyjson_get_str(key), member, &mem);
    }
    arena_free(&mem);
}

static int print_answer(const struct cli *c, struct str text) {
    struct arena mem = {0};
    yyjson_val *report = json_in(&mem, text);
    bool ok = json_bool(report, "ok", true);
    if (c->o.json)
        print_json(report, false);
    else
        print_report(report);
    arena_free(&mem);
    return ok ? EXIT_OK : EXIT_FAILED;
}

static int examine(const struct cli *c) {
    const char *verb = c->args[0];
    struct image im = {0};
    struct buf report = {0}, body = {0};
    struct arena mem = {0};
    struct str ns = c->o.request.ns.p ? (struct str){c->o.request.ns.p, c->o.request.ns.n} : STR("default");
    int code = EXIT_FAILED;
    if (!image_open(&im, c->o.store, strcmp(verb, "dump") == 0)) {
        image_close(&im);
        return code;
    }
    if (strcmp(verb, "dump") == 0) {
        code = image_dump(&im, c->o.store);
    } else {
        if (strcmp(verb, "digest") == 0)
            image_digest(&im, &body);
        else if (strcmp(verb, "verify") == 0)
            image_verify(&im, &body);
        else
            image_replay(&im, c->args[1] ? arena_json(&mem, "%j/%s", ns, c->args[1]) : STR_NONE, &body);
        buf_json(&report, "{\"ok\":%b,\"store\":%z,\"batch\":%d,%j,\"faults\":[%j]}", im.fault_count == 0, im.id,
                 im.batch, buf_view(&body), buf_view(&im.faults));
        code = print_answer(c, buf_view(&report));
    }
    image_close(&im);
    buf_free(&report);
    buf_free(&body);
    arena_free(&mem);
    return code;
}

/* The worker at --url does it. */
static int ask_worker(const struct cli *c) {
    struct door d = door_remote(c);
    struct answer a;
    struct loom_request r = request_of(c, "debug"), ready = {.op = "ready"};
    bool dying = strcmp(c->args[0], "panic") == 0, there = ask_ok(&d, &ready, &a);
    answer_free(&a);
    if (!there) return EXIT_FAILED;
    r.type = loom_of(str_of(c->args[0]));
    r.key = loom_of(str_of(c->args[1]));
    int code = EXIT_OK;
    if (!ask(&d, &r, &a) && !(dying && a.status == 0))
        print_problem(&d, NULL, a.status, a.root), code = EXIT_FAILED;
    else if (dying)
        puts("the worker has died");
    else if (strcmp(c->args[0], "dump") == 0)
        fwrite(a.body.p, 1, a.body.n, stdout);
    else
        code = print_answer(c, buf_view(&a.body));
    answer_free(&a);
    return code;
}

int command_debug(struct cli *c) {
    static const struct {
        const char *name;
        bool takes, fails; /* a second argument; it makes a worker fail */
    } verbs[] = {{"digest", false, false}, {"verify", false, false}, {"replay", true, false}, {"dump", false, false},
                 {"restore", true, false}, {"panic", false, true},   {"stall", false, true}};
    const char *verb = c->args[0];
    size_t v = 0, n = sizeof verbs / sizeof *verbs;
    while (v < n && strcmp(verbs[v].name, verb)) v++;
    if (v == n || (c->args[1] && !verbs[v].takes))
        return fail_usage(c, "loom debug: `%s%s%s` is not one of its forms", verb, c->args[1] ? " " : "",
                          c->args[1] ? c->args[1] : "");
    if (verbs[v].takes && !c->args[1] && !(c->o.all && strcmp(verb, "replay") == 0))
        return fail_usage(c, "loom debug %s: an argument is missing", verb);
    if (verbs[v].fails && c->o.store) return fail_usage(c, "a folder cannot %s; give the worker's --url", verb);
    if (strcmp(verb, "restore") == 0 && c->args[1]) return restore(c, c->args[1]);
    return c->o.store ? examine(c) : ask_worker(c);
}
