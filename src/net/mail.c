/* mail.c: from JSON to a message (RFC 5322, MIME) and its envelope.
 *
 * {"from", "to": string or list, "subject", "text", "html", "headers"}. Addresses are "local@domain" or "Name <local@domain>", in
 * ASCII. Control characters anywhere but in text and html are refused, so that nothing can add a header or a recipient. Words
 * beyond ASCII are encoded words; a part that is not plain ASCII in short lines goes as base64. Message-ID comes from the
 * idempotency key, so that a mail sent twice can be told to be one. No attachments, no cc, no bcc.
 */
#include "net/parts.h"
#include <openssl/evp.h>
#include <string.h>
#include <time.h>

enum { LINE_MAX_BYTES = 900, BASE64_LINE = 57, WORD_BYTES = 42 };

bool printable(struct str s) {
    for (size_t i = 0; i < s.n; i++) {
        if (((unsigned char)s.p[i] < 0x20 && s.p[i] != '\t') || s.p[i] == 0x7f) return false;
    }
    return true;
}

bool header_name_ok(struct str name) {
    for (size_t i = 0; i < name.n; i++) {
        unsigned char c = (unsigned char)name.p[i];
        if (c <= 0x20 || c >= 0x7f || strchr("\"(),/:;<=>?@[\\]{}", c)) return false;
    }
    return name.n > 0 && name.n <= 256;
}

void base64(struct str s, size_t line, struct buf *out) {
    for (size_t i = 0, n; i < s.n; i += n) {
        unsigned char text[80];
        n = s.n - i < BASE64_LINE ? s.n - i : BASE64_LINE;
        buf_add(out, text, (size_t)EVP_EncodeBlock(text, (const unsigned char *)s.p + i, (int)n));
        if (line) buf_add(out, "\r\n", 2);
    }
}

/* ASCII without any of the specials, and nothing that reads as an encoded word. */
static bool plain(struct str s, const char *specials) {
    for (size_t i = 0; i < s.n; i++) {
        if ((signed char)s.p[i] < 0 || strchr(specials, s.p[i])) return false;
    }
    return s.n <= LINE_MAX_BYTES && !(s.n && memmem(s.p, s.n, "=?", 2));
}

static void words(struct str s, const char *specials, struct buf *out) {
    if (plain(s, specials)) {
        buf_str(out, s);
        return;
    }
    for (size_t i = 0, n; i < s.n; i += n) {
        n = s.n - i < WORD_BYTES ? s.n - i : WORD_BYTES;
        while (i + n < s.n && n > 1 && ((unsigned char)s.p[i + n] & 0xc0) == 0x80) n--;
        buf_json(out, "%s=?UTF-8?B?", i ? "\r\n " : "");
        base64((struct str){s.p + i, n}, 0, out);
        buf_add(out, "?=", 2);
    }
}

/* "local@domain" or "Name <local@domain>"; *addr is the bare address, the header's form goes to out. */
static int address(struct str s, const char *field, struct str *addr, struct buf *out, struct error *err) {
    const char *open = s.n && s.p[s.n - 1] == '>' ? memrchr(s.p, '<', s.n) : NULL;
    struct str name = {s.p, open ? (size_t)(open - s.p) : 0};
    *addr = open ? (struct str){open + 1, (size_t)(s.p + s.n - 1 - (open + 1))} : s;
    const char *at = addr->n ? memrchr(addr->p, '@', addr->n) : NULL;
    if (!printable(s) || !at || at == addr->p || at + 1 == addr->p + addr->n || addr->n > 254 ||
        !plain(*addr, " \t\"(),:;<>[\\]"))
        return error_set(err, LOOM_E_INVALID_ARGUMENT,
                         "%s: \"%.*s\" is not a mail address; expected local@domain or Name <local@domain>", field,
                         (int)(s.n > 200 ? 200 : s.n), s.p ? s.p : "");
    while (name.n && strchr(" \"", name.p[name.n - 1])) name.n--;
    while (name.n && strchr(" \"", name.p[0])) name.p++, name.n--;
    if (name.n) words(name, "\"(),.:;<>@[\\]", out);
    buf_json(out, name.n ? " <%j>" : "%j", *addr);
    return 0;
}

static int recipients(yyjson_val *to, struct arena *a, struct strings *out, struct buf *header, struct error *err) {
    size_t count = yyjson_is_arr(to) ? yyjson_arr_size(to) : 1;
    out->items = arena_alloc(a, (count + 1) * sizeof(struct str));
    for (size_t i = 0; i < count; i++) {
        yyjson_val *v = yyjson_is_arr(to) ? yyjson_arr_get(to, i) : to;
        struct str s = {yyjson_get_str(v), yyjson_get_len(v)};
        if (i) buf_add(header, ",\r\n ", 4);
        int rc = address(s, "to", &out->items[i], header, err);
        if (rc) return rc;
        out->items[i] = arena_dup(a, out->items[i]);
    }
    out->count = count;
    return count ? 0 : error_set(err, LOOM_E_INVALID_ARGUMENT, "to: expected at least one mail address");
}

/* Headers of the guest's own. */
static int more_headers(yyjson_val *obj, struct buf *out, struct error *err) {
    static const char *const ours[] = {"from",
                                       "sender",
                                       "to",
                                       "cc",
                                       "bcc",
                                       "subject",
                                       "date",
                                       "message-id",
                                       "received",
                                       "return-path",
                                       "mime-version",
                                       "content-type",
                                       "content-transfer-encoding",
                                       "x-idempotency-key",
                                       NULL};
    size_t i, n;
    yyjson_val *key, *v;
    yyjson_obj_foreach(obj, i, n, key, v) {
        struct str name = {yyjson_get_str(key), yyjson_get_len(key)}, value = {yyjson_get_str(v), yyjson_get_len(v)};
        if (!header_name_ok(name) || word_find(ours, name) || !value.p || !printable(value))
            return error_set(
                err, LOOM_E_INVALID_ARGUMENT,
                "headers: \"%.100s\" is not a header that can be set, or its value is not one line of text", name.p);
        buf_json(out, "%j: ", name);
        words(value, "", out);
        buf_add(out, "\r\n", 2);
    }
    return 0;
}

static void part(struct buf *m, const char *type, struct str text) {
    struct buf body = {0};
    size_t line = 0;
    bool short_ascii = true;
    for (size_t i = 0; i < text.n; i++) {
        char c = text.p[i];
        bool end = c == '\n' || c == '\r';
        if (c == '\n' && i && text.p[i - 1] == '\r') continue;
        buf_add(&body, end ? "\r\n" : &c, end ? 2 : 1);
        line = end ? 0 : line + 1;
        short_ascii = short_ascii && c > 0 && line <= LINE_MAX_BYTES;
    }
    if (line) buf_add(&body, "\r\n", 2);
    buf_json(m, "Content-Type: %s; charset=utf-8\r\nContent-Transfer-Encoding: %s\r\n\r\n", type,
             short_ascii ? "7bit" : "base64");
    if (short_ascii)
        buf_str(m, buf_view(&body));
    else
        base64(buf_view(&body), BASE64_LINE, m);
    buf_free(&body);
}

static void body_add(struct buf *m, struct str text, struct str html, const char *id) {
    if (!text.p || !html.p) {
        part(m, html.p ? "text/html" : "text/plain", html.p ? html : text);
        return;
    }
    buf_json(m, "Content-Type: multipart/alternative; boundary=\"loom-%s\"\r\n\r\n--loom-%s\r\n", id, id);
    part(m, "text/plain", text);
    buf_json(m, "\r\n--loom-%s\r\n", id);
    part(m, "text/html", html);
    buf_json(m, "\r\n--loom-%s--\r\n", id);
}

int mail_compose(yyjson_val *json, struct str from, struct str key, int64_t now_ms, struct arena *a, struct mail *out,
                 struct error *err) {
    struct str subject = json_str(json, "subject"), text = json_str(json, "text"), html = json_str(json, "html");
    struct buf m = {0};
    char id[65], date[64];
    struct tm tm;
    time_t seconds = (time_t)(now_ms / 1000);
    sha256_hex(key, id);
    id[32] = 0;
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S +0000", gmtime_r(&seconds, &tm));
    buf_json(&m, "Date: %s\r\nFrom: ", date);
    int rc = address(json_str(json, "from").p ? json_str(json, "from") : from, "from", &out->from, &m, err);
    buf_json(&m, "\r\nTo: ");
    if (!rc) rc = recipients(yyjson_obj_get(json, "to"), a, &out->to, &m, err);
    if (!rc && (!subject.p || !printable(subject)))
        rc = error_set(err, LOOM_E_INVALID_ARGUMENT, "subject: expected one line of text");
    if (!rc && !text.p && !html.p)
        rc = error_set(err, LOOM_E_INVALID_ARGUMENT, "text: expected the mail's text, or html");
    if (!rc && !(printable(key) && plain(key, "")))
        rc = error_set(err, LOOM_E_INVALID_ARGUMENT,
                       "the idempotency key must be one line of ASCII, at most 900 bytes");
    if (!rc) {
        out->from = arena_dup(a, out->from);
        buf_json(&m, "\r\nSubject: ");
        words(subject, "", &m);
        buf_json(&m, "\r\nMessage-ID: <%s@%s>\r\nX-Idempotency-Key: %j\r\nMIME-Version: 1.0\r\n", id,
                 strrchr(out->from.p, '@') + 1, key);
        rc = more_headers(yyjson_obj_get(json, "headers"), &m, err);
    }
    if (!rc) {
        body_add(&m, text, html, id);
        out->text = arena_dup(a, buf_view(&m));
    }
    buf_free(&m);
    return rc;
}
