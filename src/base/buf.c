/* buf.c: memory, runs of bytes, and JSON text by template.
 *
 * A str borrows, a buf owns. Out of memory aborts. buf_json writes valid JSON whatever the bytes it is given: that is
 * what keeps a hostile name out of the structure of a log line or an error document.
 */
#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory ---- */

static void *checked(void *p, size_t n) {
    if (p || n == 0) return p;
    fprintf(stderr, "loom: no memory for %zu bytes\n", n);
    abort();
}

void *mem_alloc(size_t n) {
    return checked(calloc(1, n), n);
}

void *mem_grow(void *p, size_t n) {
    return checked(realloc(p, n), n);
}

void *mem_room(void *list, size_t count, size_t size) {
    return count & (count - 1) ? list
                               : mem_grow(list, (count ? 2 * count : 1) * size); /* at powers of two it is full */
}

/* ---- str ---- */

struct str str_of(const char *z) {
    return z ? (struct str){z, strlen(z)} : STR_NONE;
}

bool str_eq(struct str a, struct str b) {
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

bool str_is(struct str s, const char *z) {
    for (size_t i = 0; i < s.n; i++)
        if (z[i] == '\0' || z[i] != s.p[i]) return false;
    return z[s.n] == '\0';
}

int str_cmp(struct str a, struct str b) {
    size_t n = a.n < b.n ? a.n : b.n;
    int order = n ? memcmp(a.p, b.p, n) : 0;
    return order ? order : (a.n > b.n) - (a.n < b.n);
}

bool str_starts(struct str s, struct str prefix) {
    return s.n >= prefix.n && str_eq((struct str){s.p, prefix.n}, prefix);
}

char *str_dup(struct str s) {
    return s.p ? memcpy(mem_alloc(s.n + 1), s.p, s.n) : NULL;
}

/* ---- buf ---- */

char *buf_reserve(struct buf *b, size_t n) {
    if (b->cap - b->n < n) {
        size_t cap = b->cap * 2 > b->n + n ? b->cap * 2 : b->n + n;
        b->cap = cap < 128 ? 128 : cap;
        b->p = mem_grow(b->p, b->cap);
    }
    return b->p + b->n;
}

void buf_add(struct buf *b, const void *p, size_t n) {
    if (n == 0) return;
    memcpy(buf_reserve(b, n), p, n);
    b->n += n;
}

void buf_str(struct buf *b, struct str s) {
    buf_add(b, s.p, s.n);
}

void buf_char(struct buf *b, char c) {
    *buf_reserve(b, 1) = c;
    b->n++;
}

void buf_clear(struct buf *b) {
    b->n = 0;
}

void buf_free(struct buf *b) {
    free(b->p);
    *b = (struct buf){0};
}

struct str buf_view(const struct buf *b) {
    return (struct str){b->p, b->n};
}

/* ---- JSON by template: yyjson writes what is not an integer ---- */

static void real(struct buf *b, double f) {
    if (!json_write(&(yyjson_val){YYJSON_TYPE_NUM | YYJSON_SUBTYPE_REAL, {.f64 = f}}, b)) buf_str(b, STR("null"));
}

static void integer(struct buf *b, uint64_t n, unsigned base, int width) {
    char digits[20], *end = digits + sizeof digits, *p = end;
    do *--p = "0123456789abcdef"[n % base];
    while ((n /= base) > 0 || end - p < width);
    buf_add(b, p, (size_t)(end - p));
}

/* yyjson refuses text that is not UTF-8; then every byte beyond ASCII becomes '?'. */
static void quote(struct buf *b, struct str s) {
    yyjson_val v = {(uint64_t)s.n << YYJSON_TAG_BIT | YYJSON_TYPE_STR, {.str = s.n ? s.p : ""}};
    if (json_write(&v, b)) return;
    char *ascii = str_dup(s);
    for (size_t i = 0; i < s.n; i++)
        if (ascii[i] & 0x80) ascii[i] = '?';
    quote(b, (struct str){ascii, s.n});
    free(ascii);
}

void buf_json_v(struct buf *b, const char *fmt, va_list ap) {
    for (const char *hit; (hit = strchr(fmt, '%')) != NULL; fmt = hit + 2) {
        struct str s;
        int64_t i;
        buf_add(b, fmt, (size_t)(hit - fmt));
        switch (hit[1]) {
        case 'q': quote(b, va_arg(ap, struct str)); break;
        case 'Q':
            s = va_arg(ap, struct str);
            s.p ? quote(b, s) : buf_str(b, STR("null"));
            break;
        case 'j': buf_str(b, va_arg(ap, struct str)); break;
        case 'v': json_write(va_arg(ap, yyjson_val *), b); break;
        case 'z': quote(b, str_of(va_arg(ap, const char *))); break;
        case 's': buf_str(b, str_of(va_arg(ap, const char *))); break;
        case 'd':
            i = va_arg(ap, int64_t);
            if (i < 0) buf_char(b, '-');
            integer(b, i < 0 ? 0 - (uint64_t)i : (uint64_t)i, 10, 1);
            break;
        case 'u': integer(b, va_arg(ap, uint64_t), 10, 1); break;
        case 'x': integer(b, va_arg(ap, uint64_t), 16, 16); break;
        case 'f': real(b, va_arg(ap, double)); break;
        case 'b': buf_str(b, va_arg(ap, int) ? STR("true") : STR("false")); break;
        case '%': buf_char(b, '%'); break;
        default: abort(); /* a template of ours is wrong */
        }
    }
    buf_str(b, str_of(fmt));
}

void buf_json(struct buf *b, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    buf_json_v(b, fmt, ap);
    va_end(ap);
}
