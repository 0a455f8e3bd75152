/* buf.c: memory, runs of bytes, and JSON text by template.
 *
 * A str borrows, a buf owns. Out of memory aborts. buf_json writes valid JSON whatever the bytes it is given: that is
 * what keeps a hostile name out of the structure of a log line or an error document.
 */
#include "base/base.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory ---- */

static void *checked(void *p, size_t n) {
    if (p || n == 0)
        return p;
    fprintf(stderr, "loom: no memory for %zu bytes\n", n);
    abort();
}

void *mem_alloc(size_t n) { return checked(calloc(1, n), n); }

void *mem_grow(void *p, size_t n) { return checked(realloc(p, n), n); }

/* ---- str ---- */

struct str str_of(const char *z) { return z ? (struct str){z, strlen(z)} : STR_NONE; }

bool str_eq(struct str a, struct str b) { return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0); }

int str_cmp(struct str a, struct str b) {
    size_t n = a.n < b.n ? a.n : b.n;
    int order = n ? memcmp(a.p, b.p, n) : 0;
    return order ? order : (a.n > b.n) - (a.n < b.n);
}

bool str_starts(struct str s, struct str prefix) {
    return s.n >= prefix.n && str_eq((struct str){s.p, prefix.n}, prefix);
}

char *str_dup(struct str s) {
    char *z = mem_alloc(s.n + 1);
    if (s.n)
        memcpy(z, s.p, s.n);
    return z;
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
    if (n == 0)
        return;
    memcpy(buf_reserve(b, n), p, n);
    b->n += n;
}

void buf_str(struct buf *b, struct str s) { buf_add(b, s.p, s.n); }

void buf_char(struct buf *b, char c) {
    *buf_reserve(b, 1) = c;
    b->n++;
}

void buf_clear(struct buf *b) { b->n = 0; }

void buf_free(struct buf *b) {
    free(b->p);
    *b = (struct buf){0};
}

struct str buf_view(const struct buf *b) { return (struct str){b->p, b->n}; }

/* ---- JSON by template ---- */

/* Length of the UTF-8 sequence at p (RFC 3629: no overlong forms, no surrogates), or 0. */
static size_t utf8_len(const uint8_t *p, size_t n) {
    size_t len = p[0] < 0x80 ? 1 : p[0] < 0xC2 ? 0 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : p[0] < 0xF5 ? 4 : 0;
    if (len > n)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xC0) != 0x80)
            return 0;
    bool out_of_range = (p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F) ||
                        (p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] > 0x8F);
    return len > 2 && out_of_range ? 0 : len;
}

static void escape(struct buf *b, uint8_t c) {
    static const char letters[] = "\"\"\\\\\bb\ff\nn\rr\tt";
    for (const char *l = letters; *l; l += 2)
        if ((uint8_t)*l == c) {
            buf_add(b, (char[]){'\\', l[1]}, 2);
            return;
        }
    char u[8];
    snprintf(u, sizeof u, "\\u%04x", (unsigned)c);
    buf_add(b, u, 6);
}

static void quote(struct buf *b, struct str s) {
    const uint8_t *p = (const uint8_t *)s.p;
    size_t from = 0, i = 0;
    buf_char(b, '"');
    while (i < s.n) {
        bool plain = p[i] >= 0x20 && p[i] != '"' && p[i] != '\\';
        size_t len = plain ? (p[i] < 0x80 ? 1 : utf8_len(p + i, s.n - i)) : 0;
        if (len) {
            i += len;
            continue;
        }
        buf_add(b, p + from, i - from);
        if (plain)
            buf_add(b, "\xEF\xBF\xBD", 3);
        else
            escape(b, p[i]);
        from = ++i;
    }
    buf_add(b, p + from, i - from);
    buf_char(b, '"');
}

static void number(struct buf *b, const char *format, ...) {
    char digits[32];
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(digits, sizeof digits, format, ap);
    va_end(ap);
    buf_add(b, digits, (size_t)n);
}

static void real(struct buf *b, double f) {
    yyjson_val v = {0};
    if (!isfinite(f)) {
        buf_str(b, STR("null"));
        return;
    }
    v.tag = YYJSON_TYPE_NUM | YYJSON_SUBTYPE_REAL;
    v.uni.f64 = f;
    json_write(&v, b);
}

void buf_json_v(struct buf *b, const char *fmt, va_list ap) {
    for (const char *hit; (hit = strchr(fmt, '%')) != NULL; fmt = hit + 2) {
        struct str s;
        buf_add(b, fmt, (size_t)(hit - fmt));
        switch (hit[1]) {
        case 'q': quote(b, va_arg(ap, struct str)); break;
        case 'Q':
            s = va_arg(ap, struct str);
            if (s.p)
                quote(b, s);
            else
                buf_str(b, STR("null"));
            break;
        case 'j': buf_str(b, va_arg(ap, struct str)); break;
        case 'z': quote(b, str_of(va_arg(ap, const char *))); break;
        case 's': buf_str(b, str_of(va_arg(ap, const char *))); break;
        case 'd': number(b, "%" PRId64, va_arg(ap, int64_t)); break;
        case 'u': number(b, "%" PRIu64, va_arg(ap, uint64_t)); break;
        case 'f': real(b, va_arg(ap, double)); break;
        case 'b': buf_str(b, va_arg(ap, int) ? STR("true") : STR("false")); break;
        case '%': buf_char(b, '%'); break;
        default: fprintf(stderr, "loom: buf_json does not know %%%c\n", hit[1]); abort();
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
