/* debug.c: what a store holds: digest, verify, replay, dump, restore; and panic and stall of a worker.
 *
 * A folder is read through a connection of its own, in one transaction: the last commit, also while a worker has it.
 * A Loom at --url starts the same command on its own folder and answers with what that printed.
 *
 * dump writes one JSON object a line: first {"loom", "format", "store", "batch"}, then {"kind", "key", "value"} for each row,
 * large values put in, {"kind", "key", "damaged": HEX} where the checksum does not match, {"unreadable": TEXT} for what SQLite
 * cannot read, and {"blob": SHA-256, "hex"} for each module. restore makes a store of these lines.
 */
#include "cli/cli.h"
#include "cli/image.h"
#include "runtime/runtime.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
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

static struct str column(sqlite3_stmt *q, int i) {
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

/* The row that a statement (key, value, sum) stands at. */
static bool row_whole(struct image *im, enum row_kind kind, sqlite3_stmt *q, struct buf *value) {
    struct str key = column(q, 0), text = column(q, 1);
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
        struct str key = column(q, 0);
        if (to.p && str_cmp(key, to) >= 0) break;
        buf_clear(&value);
        more = fn(ctx, key, row_whole(im, kind, q, &value) ? buf_view(&value) : STR_NONE);
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
        snprintf(im->id, sizeof im->id, "%.*s", (int)column(q, 0).n, column(q, 0).p);
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

/* ---- dump ---- */

static void put_line(struct buf *line) {
    fwrite(line->p, 1, line->n, stdout);
    putchar('\n');
    buf_clear(line);
}

static void unreadable(struct image *im, struct buf *line, const char *fmt, ...) {
    struct buf text = {0};
    va_list ap;
    va_start(ap, fmt);
    buf_json_v(&text, fmt, ap);
    va_end(ap);
    fprintf(stderr, "loom: %.*s\n", (int)text.n, text.p);
    buf_json(line, "{\"unreadable\":%q}", buf_view(&text));
    put_line(line);
    im->fault_count++;
    buf_free(&text);
}

static void put_hex(struct buf *out, struct str bytes) {
    char *p = buf_reserve(out, 2 * bytes.n + 1);
    hex_encode((const uint8_t *)bytes.p, bytes.n, p);
    out->n += 2 * bytes.n;
}

static void dump_row(struct image *im, sqlite3_stmt *q, struct buf *line) {
    enum row_kind kind = (enum row_kind)sqlite3_column_int(q, 3);
    bool known = kind > ROW_NONE && kind < ROW_KIND_END;
    int64_t before = im->fault_count;
    struct buf value = {0};
    if (known && row_whole(im, kind, q, &value)) {
        buf_json(line, "{\"kind\":%z,\"key\":%q,\"value\":%j}", row_kind_name(kind), column(q, 0), buf_view(&value));
        put_line(line);
    } else {
        fprintf(stderr, "loom: the %s row %.*s is damaged; its bytes are in the dump\n",
                known ? row_kind_name(kind) : "unknown", (int)column(q, 0).n, column(q, 0).p);
        buf_json(line, "{\"kind\":%z,\"key\":%q,\"damaged\":\"", known ? row_kind_name(kind) : "unknown", column(q, 0));
        put_hex(line, column(q, 1));
        buf_str(line, STR("\"}"));
        put_line(line);
        im->fault_count = before + 1;
    }
    buf_free(&value);
}

static int64_t one_number(struct image *im, const char *sql) {
    sqlite3_stmt *q = NULL;
    int64_t n = -1;
    if (sqlite3_prepare_v2(im->db, sql, -1, &q, NULL) == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW)
        n = sqlite3_column_int64(q, 0);
    sqlite3_finalize(q);
    return n;
}

/* In the order of their places in the file, so that a damaged page costs no others: behind a row that cannot be read, each
 * next number is tried. The index tells how far the numbers go. */
static void dump_rows(struct image *im, struct buf *line) {
    static const char sql[] = "SELECT key, value, sum, kind, rowid FROM rows WHERE rowid >= ? ORDER BY rowid";
    int64_t end = one_number(im, "SELECT max(+rowid) FROM rows INDEXED BY sqlite_autoindex_rows_1"), at = 0, lost = -1;
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_prepare_v2(im->db, sql, -1, &q, NULL);
    if (end < 0) end = one_number(im, "SELECT max(rowid) FROM rows");
    for (bool done = rc != SQLITE_OK; !done; at++) {
        sqlite3_bind_int64(q, 1, at);
        while ((rc = sqlite3_step(q)) == SQLITE_ROW) {
            if (lost >= 0)
                unreadable(im, line, "rows %d to %d of the file cannot be read", lost, sqlite3_column_int64(q, 4) - 1);
            lost = -1;
            at = sqlite3_column_int64(q, 4) + 1;
            dump_row(im, q, line);
        }
        done = rc == SQLITE_DONE || at > end;
        lost = lost < 0 && !done ? at : lost;
        sqlite3_reset(q);
    }
    if (rc != SQLITE_DONE)
        unreadable(im, line, "rows from %d on cannot be read: %s", lost < 0 ? at : lost, sqlite3_errmsg(im->db));
    sqlite3_finalize(q);
}

static void dump_blobs(struct image *im, const char *folder, struct buf *line) {
    struct arena mem = {0};
    DIR *top = opendir(arena_json(&mem, "%s/blobs", folder).p);
    for (struct dirent *e; top && (e = readdir(top));) {
        DIR *dir = strlen(e->d_name) == 2 && e->d_name[0] != '.'
                       ? opendir(arena_json(&mem, "%s/blobs/%s", folder, e->d_name).p)
                       : NULL;
        for (struct dirent *f; dir && (f = readdir(dir));) {
            const char *hex = arena_json(&mem, "%s%s", e->d_name, f->d_name).p;
            struct buf bytes = {0};
            struct error err;
            if (strlen(hex) != 64) continue; /* . and .. and what was being written in a crash */
            if (im->blobs->ops->get(im->blobs, hex, &bytes, &err) < 0) {
                unreadable(im, line, "%s", err.message);
            } else if (str_starts(buf_view(&bytes), STR("\0asm"))) { /* the others are the values of rows */
                buf_json(line, "{\"blob\":%z,\"hex\":\"", hex);
                put_hex(line, buf_view(&bytes));
                buf_str(line, STR("\"}"));
                put_line(line);
            }
            buf_free(&bytes);
        }
        if (dir) closedir(dir);
    }
    if (top) closedir(top);
    arena_free(&mem);
}

static int dump(struct image *im, const char *folder) {
    struct buf line = {0};
    buf_json(&line, "{\"loom\":%z,\"format\":%d,\"store\":%z,\"batch\":%d}", LOOM_VERSION, im->format, im->id,
             im->batch);
    put_line(&line);
    dump_rows(im, &line);
    dump_blobs(im, folder, &line);
    buf_free(&line);
    return im->fault_count ? EXIT_FAILED : EXIT_OK;
}

/* ---- restore ---- */

struct restore {
    struct store *store;
    struct blob_store *blobs;
    struct batch batch;
    struct arena mem; /* of the batch */
    int64_t rows, passed;
    struct error err;
};

static int restore_flush(struct restore *r) {
    if (r->batch.count == 0) return 0;
    r->batch.seq++;
    enum commit_outcome outcome = r->store->ops->commit(r->store, &r->batch, &r->err);
    r->rows += (int64_t)r->batch.count;
    r->batch.count = 0;
    arena_free(&r->mem);
    return outcome == COMMIT_OK ? 0 : LOOM_E_STORE;
}

static int restore_row(struct restore *r, yyjson_val *line) {
    int kind = ROW_NONE + 1;
    while (kind < ROW_KIND_END && !str_eq(json_str(line, "kind"), str_of(row_kind_name((enum row_kind)kind)))) kind++;
    struct row row = {(enum row_kind)kind, arena_dup(&r->mem, json_str(line, "key")),
                      json_text_of(yyjson_obj_get(line, "value"), &r->mem)};
    if (kind == ROW_KIND_END || !row.key.p || !row.value.p) {
        r->passed++;
        return 0;
    }
    if (row.value.n >= BLOB_MIN) {
        char hex[65];
        int rc = r->blobs->ops->put(r->blobs, row.value, hex, &r->err);
        if (rc < 0) return rc;
        row.value = arena_json(&r->mem, "{\"$blob\":%z,\"size\":%u}", hex, (uint64_t)row.value.n);
    }
    r->batch.rows[r->batch.count++] = row;
    return r->batch.count == BATCH_ROWS_MAX || r->mem.bytes > BATCH_BYTES_MAX ? restore_flush(r) : 0;
}

static int hex_value(char c) {
    const char *digits = "0123456789abcdef", *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : 0;
}

static int restore_blob(struct restore *r, struct str name, struct str hex) {
    struct buf bytes = {0};
    char made[65];
    for (size_t i = 0; i + 1 < hex.n; i += 2)
        buf_char(&bytes, (char)(hex_value(hex.p[i]) << 4 | hex_value(hex.p[i + 1])));
    int rc = r->blobs->ops->put(r->blobs, buf_view(&bytes), made, &r->err);
    buf_free(&bytes);
    return rc == 0 && !str_eq(name, str_of(made))
               ? error_set(&r->err, LOOM_E_DAMAGED, "the bytes of blob %.*s are others", (int)name.n, name.p)
               : rc;
}

static int restore_lines(struct restore *r, FILE *in) {
    char *line = NULL;
    size_t cap = 0;
    int rc = 0;
    for (ssize_t n; rc == 0 && (n = getline(&line, &cap, in)) > 0;) {
        yyjson_doc *doc = yyjson_read(line, (size_t)n, YYJSON_READ_BIGNUM_AS_RAW);
        yyjson_val *v = yyjson_doc_get_root(doc);
        if (!yyjson_is_obj(v))
            rc = error_set(&r->err, LOOM_E_INVALID_JSON, "line %" PRId64 " is no line of a dump",
                           r->rows + (int64_t)r->batch.count + r->passed + 1);
        else if (yyjson_obj_get(v, "blob"))
            rc = restore_blob(r, json_str(v, "blob"), json_str(v, "hex"));
        else if (yyjson_obj_get(v, "kind"))
            rc = restore_row(r, v);
        yyjson_doc_free(doc);
    }
    free(line);
    return rc == 0 ? restore_flush(r) : rc;
}

static int restore_into(FILE *in, const char *folder) {
    struct arena mem = {0};
    struct restore r = {.batch.rows = mem_alloc(BATCH_ROWS_MAX * sizeof(struct row))};
    const char *file = arena_json(&mem, "%s/loom.db", folder).p;
    uint64_t seq;
    int rc = LOOM_E_STORE;
    mkdir(folder, 0700);
    if (access(file, F_OK) == 0)
        error_set(&r.err, rc, "%s exists; choose a new folder", file);
    else
        r.store = store_sqlite_open(file, env_system(), false, &r.err);
    r.blobs = r.store ? blob_file_open(arena_json(&mem, "%s/blobs", folder).p, &r.err) : NULL;
    if (r.blobs) rc = r.store->ops->claim(r.store, STR("restore"), &r.batch.term, &seq, &r.err);
    if (rc == 0) rc = restore_lines(&r, in);
    if (rc < 0)
        fail("%s", r.err.message);
    else
        printf("%" PRId64 " rows are in %s\n", r.rows, folder);
    if (r.passed) fail("%" PRId64 " rows of the dump were damaged and are not there", r.passed);
    if (r.store) r.store->ops->close(r.store);
    if (r.blobs) r.blobs->ops->close(r.blobs);
    free(r.batch.rows);
    arena_free(&mem);
    return rc == 0 && r.passed == 0 ? EXIT_OK : EXIT_FAILED;
}

static int restore(const struct cli *c, const char *path) {
    FILE *in = strcmp(path, "-") ? fopen(path, "re") : stdin;
    int code = !c->o.store ? fail_usage(c, "restore needs --store DIR: the folder of the new store")
               : in        ? restore_into(in, c->o.store)
                           : fail("cannot read %s: %s", path, strerror(errno));
    if (in && in != stdin) fclose(in);
    return code;
}

/* ---- the command ---- */

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
        code = dump(&im, c->o.store);
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
        print_problem(&d, a.status, a.root), code = EXIT_FAILED;
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
