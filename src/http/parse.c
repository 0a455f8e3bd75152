/* parse.c: HTTP/1.0 and 1.1 requests out of bytes (RFC 9110, 9112). Pure: no socket, no clock.
 *
 * Whatever two parsers might read differently is refused, because a proxy before us may have read it the other way: a bare CR
 * or LF, a NUL, folded lines, a space before a colon, a header of ours twice, Content-Length that is not digits or comes with
 * Transfer-Encoding, any coding but `chunked`, chunk sizes that are not 1 to 8 hex digits.
 * Deliberately not read: absolute-form targets (we are no proxy), chunk extensions, trailers, upgrades; all are 400.
 */
#include "http/internal.h"
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char *const header_names[] = {
#define X(id, name) name,
    HTTP_HEADERS(X)
#undef X
};

bool http_same(struct str a, const char *z) {
    return a.n == strlen(z) && strncasecmp(a.p, z, a.n) == 0;
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static bool is_token(struct str s) {
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i], lower = (char)(c | 0x20);
        if ((lower < 'a' || lower > 'z') && !is_digit(c) && (c == 0 || !strchr("-!#$%&'*+.^_`|~", c))) return false;
    }
    return s.n > 0;
}

bool http_integer(struct str s, int64_t *out) {
    bool minus = s.n > 0 && s.p[0] == '-';
    if (s.n == minus || s.n - minus > 18) return false;
    int64_t n = 0;
    for (size_t i = minus; i < s.n; i++) {
        if (!is_digit(s.p[i])) return false;
        n = n * 10 + (s.p[i] - '0');
    }
    *out = minus ? -n : n;
    return true;
}

int http_hex(char c) {
    char lower = (char)(c | 0x20);
    return is_digit(c) ? c - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

bool http_unescape(struct str *s, bool query) {
    char *to = (char *)s->p;
    for (size_t i = 0; i < s->n; i++) {
        char c = s->p[i];
        if (c == '+' && query) c = ' ';
        if (c == '%') {
            int high = i + 2 < s->n ? http_hex(s->p[i + 1]) : -1;
            int low = high < 0 ? -1 : http_hex(s->p[i + 2]);
            if (low < 0) return false;
            c = (char)(high << 4 | low);
            i += 2;
        }
        if ((unsigned char)c < 0x20 || c == 0x7f) return false;
        *to++ = c;
    }
    s->n = (size_t)(to - s->p);
    return true;
}

/* A bare LF counts as a line's end here, so that http_head_parse sees it and refuses at once. */
size_t http_head_end(struct str in) {
    const char *end = in.p + in.n;
    for (const char *p = in.p; (p = memchr(p, '\n', (size_t)(end - p))) != NULL;) {
        p++;
        if (end - p >= 1 && p[0] == '\n') return (size_t)(p + 1 - in.p);
        if (end - p >= 2 && p[0] == '\r' && p[1] == '\n') return (size_t)(p + 2 - in.p);
    }
    return 0;
}

static int refuse(struct error *err, int status, const char *why, struct str what) {
    error_set(err, LOOM_E_INVALID_ARGUMENT, "%s%.*s", why, (int)(what.n < 80 ? what.n : 80), what.p ? what.p : "");
    return status;
}

/* The next line without its CR LF. */
static bool take_line(struct str *rest, struct str *line) {
    const char *lf = memchr(rest->p, '\n', rest->n);
    if (!lf || lf == rest->p || lf[-1] != '\r') return false;
    *line = (struct str){rest->p, (size_t)(lf - rest->p) - 1};
    for (size_t i = 0; i < line->n; i++) {
        unsigned char c = (unsigned char)line->p[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f) return false;
    }
    *rest = (struct str){lf + 1, rest->n - line->n - 2};
    return true;
}

struct str http_take_until(struct str *rest, char stop) {
    const char *at = rest->n ? memchr(rest->p, stop, rest->n) : NULL;
    struct str part = {rest->p, at ? (size_t)(at - rest->p) : rest->n};
    size_t used = part.n + (at != NULL);
    *rest = (struct str){rest->p + used, rest->n - used};
    return part;
}

struct str http_trim(struct str s) {
    for (; s.n && (s.p[0] == ' ' || s.p[0] == '\t'); s.n--) s.p++;
    while (s.n && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t')) s.n--;
    return s;
}

static int parse_request_line(struct str line, struct http_head *h, struct error *err) {
    h->method = http_take_until(&line, ' ');
    struct str target = http_take_until(&line, ' ');
    if (!is_token(h->method)) return refuse(err, 400, "The request does not start with METHOD PATH HTTP/1.1", STR_NONE);
    if (target.n == 0 || target.p[0] != '/')
        return refuse(err, 400, "The target must be a path that starts with /", STR_NONE);
    for (size_t i = 0; i < target.n; i++) {
        unsigned char c = (unsigned char)target.p[i];
        if (c < 0x21 || c > 0x7e || c == '#')
            return refuse(err, 400, "The path holds a character that must be percent-encoded", STR_NONE);
    }
    h->keep_alive = str_eq(line, STR("HTTP/1.1"));
    if (!h->keep_alive && !str_eq(line, STR("HTTP/1.0"))) return refuse(err, 505, "HTTP/1.1 is spoken here", STR_NONE);
    h->path = http_take_until(&target, '?');
    h->query = target;
    return 0;
}

static int parse_header(struct str line, struct http_head *h, struct error *err) {
    struct str name = http_take_until(&line, ':');
    if (!is_token(name) || name.p + name.n == line.p)
        return refuse(err, 400, "A header line is not NAME: VALUE", STR_NONE);
    line = http_trim(line);
    for (size_t i = 0; i < HTTP_HEADER_COUNT; i++) {
        if (!http_same(name, header_names[i])) continue;
        if (h->headers[i].p) return refuse(err, 400, "This header came more than once: ", name);
        h->headers[i] = line;
    }
    return 0;
}

/* Where the request ends must be beyond doubt. */
static int parse_framing(struct http_head *h, struct error *err) {
    struct str coding = h->headers[HTTP_TRANSFER_ENCODING], length = h->headers[HTTP_CONTENT_LENGTH];
    bool http11 = h->keep_alive; /* as the request line left it */
    int64_t n = 0;
    if (coding.p && (length.p || !http11 || !http_same(coding, "chunked")))
        return refuse(err, 400, "Transfer-Encoding must be chunked, in HTTP/1.1, without Content-Length", STR_NONE);
    if (length.p && (memchr(length.p, '-', length.n) || !http_integer(length, &n)))
        return refuse(err, 400, "Content-Length must be digits, not ", length);
    if (http11 && !h->headers[HTTP_HOST].p) return refuse(err, 400, "The Host header is missing", STR_NONE);
    if (h->headers[HTTP_EXPECT].p && !http_same(h->headers[HTTP_EXPECT], "100-continue"))
        return refuse(err, 417, "Expect must be 100-continue", STR_NONE);
    h->chunked = coding.p != NULL;
    h->content_length = (size_t)n;
    struct str connection = h->headers[HTTP_CONNECTION];
    while (connection.n) {
        if (http_same(http_trim(http_take_until(&connection, ',')), "close")) h->keep_alive = false;
    }
    return 0;
}

int http_head_parse(struct str text, struct http_head *h, struct error *err) {
    *h = (struct http_head){0};
    struct str line;
    for (int status = 0, i = 0;; i++) {
        if (!take_line(&text, &line))
            return refuse(err, 400, "Each line of the head must end with CR LF and hold no control characters",
                          STR_NONE);
        if (line.n == 0 && i) return parse_framing(h, err);
        status = i ? parse_header(line, h, err) : parse_request_line(line, h, err);
        if (status) return status;
    }
}

/* Reads SIZE CR LF. 1: there, 0: more must come, −1: malformed. */
static int chunk_size(struct http_chunks *c, struct str raw) {
    size_t n = 0, i = 0;
    for (; i < raw.n && http_hex(raw.p[i]) >= 0; i++) {
        if (i == 8) return -1;
        n = n << 4 | (size_t)http_hex(raw.p[i]);
    }
    if (i < raw.n && (i == 0 || raw.p[i] != '\r')) return -1;
    if (raw.n < i + 2) return 0;
    if (raw.p[i + 1] != '\n') return -1;
    c->in += i + 2;
    c->left = n;
    c->at = n ? CHUNK_DATA : CHUNK_LAST;
    return 1;
}

int http_chunks_decode(struct http_chunks *c, char *p, size_t n) {
    for (int got = 1; got == 1;) {
        struct str raw = {p + c->in, n - c->in};
        if (c->at == CHUNK_SIZE) {
            got = chunk_size(c, raw);
            if (got < 0) return -1;
        } else if (c->at == CHUNK_DATA) {
            size_t take = raw.n < c->left ? raw.n : c->left;
            memmove(p + c->out, raw.p, take);
            c->in += take, c->out += take, c->left -= take;
            if (c->left == 0) c->at = CHUNK_END;
            got = c->left == 0;
        } else { /* the CR LF after a chunk, or after the last one where trailers would stand */
            if (memcmp(raw.p, "\r\n", raw.n < 2 ? raw.n : 2) != 0) return -1;
            if (raw.n < 2) return 0;
            c->in += 2;
            if (c->at == CHUNK_LAST) return 1;
            c->at = CHUNK_SIZE;
        }
    }
    return 0;
}
