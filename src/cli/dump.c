/* dump.c: a store as lines of JSON, and a store made of such lines.
 *
 * One object a line: first {"loom", "format", "store", "batch"}, then {"kind", "key", "value"} for each row, large values put
 * in, {"kind", "key", "damaged": HEX} where the checksum does not match, {"unreadable": TEXT} for what SQLite cannot read, and
 * {"blob": SHA-256, "hex"} for each module. restore passes over what has no value, and says so.
 */
#include "cli/cli.h"
#include "cli/image.h"
#include "runtime/runtime.h"
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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
    if (known && image_row(im, kind, q, &value)) {
        buf_json(line, "{\"kind\":%z,\"key\":%q,\"value\":%j}", row_kind_name(kind), image_column(q, 0),
                 buf_view(&value));
        put_line(line);
    } else {
        fprintf(stderr, "loom: the %s row %.*s is damaged; its bytes are in the dump\n",
                known ? row_kind_name(kind) : "unknown", (int)image_column(q, 0).n, image_column(q, 0).p);
        buf_json(line, "{\"kind\":%z,\"key\":%q,\"damaged\":\"", known ? row_kind_name(kind) : "unknown",
                 image_column(q, 0));
        put_hex(line, image_column(q, 1));
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

int image_dump(struct image *im, const char *folder) {
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
    if (outcome == COMMIT_OK) outcome = r->store->ops->sync(r->store, &r->err);
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

int image_restore(FILE *in, const char *folder) {
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
