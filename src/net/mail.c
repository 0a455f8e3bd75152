/* mail.c: from JSON to a mail: envelope, headers (RFC 5322) and parts, which curl writes (MIME).
 *
 * {"from", "to": string or list, "subject", "text" and/or "html"}. Addresses are "local@domain" or "Name <local@domain>",
 * in ASCII. Control characters anywhere but in text and html are refused, so that nothing can add a header or a recipient.
 * At most 100 recipients. Words beyond ASCII become encoded words. Message-ID comes from the idempotency key, so that a mail sent twice can be told
 * to be one. No attachments, no cc, no bcc.
 */
#include "net/parts.h"
#include <string.h>
#include <time.h>

enum { WORD_BYTES = 42 };

static const char schema[] =
    "{'type':'object','required':['to','subject'],'anyOf':[{'required':['text']},{'required':['html']}],"
    "'additionalProperties':false,'properties':{'from':{'type':'string'," SCHEMA_MAILBOX "},"
    "'to':{'type':['string','array'],'minItems':1,'maxItems':100," SCHEMA_MAILBOX
    ",'items':{'type':'string'," SCHEMA_MAILBOX "}},"
    "'subject':{'type':'string','maxLength':900,'pattern':'^[^\\\\u0000-\\\\u001f\\\\u007f]*$'},"
    "'text':{'type':'string'},'html':{'type':'string'}}}";

/* Printable ASCII without any of the specials, and nothing that reads as an encoded word. */
static bool plain(struct str s, const char *specials) {
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < 0x20 || s.p[i] > 0x7e || strchr(specials, s.p[i])) return false;
    }
    return !s.n || !memmem(s.p, s.n, "=?", 2);
}

/* Encoded words if need be, a line each. */
static struct str words(struct arena *a, struct str s, const char *specials) {
    struct str out = STR("");
    if (plain(s, specials)) return s;
    for (size_t i = 0, n; i < s.n; i += n) {
        n = s.n - i < WORD_BYTES ? s.n - i : WORD_BYTES;
        while (i + n < s.n && n > 1 && ((unsigned char)s.p[i + n] & 0xc0) == 0x80) n--; /* not within a character */
        out = arena_json(a, "%j%s=?UTF-8?B?%j?=", out, i ? "\r\n " : "", base64(a, (struct str){s.p + i, n}));
    }
    return out;
}

/* The address of a mailbox, perhaps in <>: curl takes both. */
static const char *address(struct str mailbox) {
    const char *open = strchr(mailbox.p, '<');
    return open ? open : mailbox.p;
}

static struct str mailbox(struct arena *a, struct str s) {
    struct str name = {s.p, (size_t)(address(s) - s.p)};
    while (name.n && strchr(" \"", name.p[name.n - 1])) name.n--;
    while (name.n && strchr(" \"", name.p[0])) name.p++, name.n--;
    return arena_json(a, name.n ? "%j %s" : "%j%s", words(a, name, "\"(),.:;<>@[\\]"), address(s));
}

static struct str recipients(struct transfer *t, yyjson_val *to) {
    size_t many = yyjson_is_arr(to) ? yyjson_arr_size(to) : 1;
    struct str line = STR("");
    for (size_t i = 0; i < many; i++) {
        struct str s = str_in(yyjson_is_arr(to) ? yyjson_arr_get(to, i) : to);
        list_add(&t->arena, &t->recipients, address(arena_dup(&t->arena, s)));
        line = arena_json(&t->arena, "%j%s%j", line, i ? ",\r\n " : "", mailbox(&t->arena, s));
    }
    return line;
}

/* All lines but one are a single one to curl, which writes it as it is. */
static void head(struct transfer *t, yyjson_val *json, struct str from, struct str key, int64_t now_ms) {
    static const char format[] = "Date: %s\r\nFrom: %j\r\nTo: %j\r\nSubject: %j\r\n"
                                 "Message-ID: <%j@%j>\r\nX-Idempotency-Key: %j";
    struct arena *a = &t->arena;
    char date[64], id[65];
    time_t seconds = (time_t)(now_ms / 1000);
    struct str to = recipients(t, yyjson_obj_get(json, "to")), subject = words(a, json_str(json, "subject"), "");
    struct str domain = str_of(strrchr(from.p, '@') + 1);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S +0000", gmtime_r(&seconds, &(struct tm){0}));
    sha256_hex(key, id);
    domain.n = strcspn(domain.p, ">");
    struct str lines = arena_json(a, format, date, mailbox(a, from), to, subject, (struct str){id, 32}, domain,
                                  words(a, key, ""));
    list_add(a, &t->lines, lines.p);
    list_add(a, &t->lines, "Content-Type: multipart/alternative");
    curl_easy_setopt(t->easy, CURLOPT_MAIL_FROM, address(from));
}

/* Lines end in CR LF, as mail has it. */
static void part(curl_mime *mime, const char *type, struct str text) {
    struct buf lines = {0};
    if (!text.p) return;
    for (size_t i = 0; i < text.n; i++) {
        if (text.p[i] == '\n' && (!i || text.p[i - 1] != '\r')) buf_char(&lines, '\r');
        buf_char(&lines, text.p[i]);
    }
    curl_mimepart *p = curl_mime_addpart(mime);
    curl_mime_data(p, lines.n ? lines.p : "", lines.n);
    curl_mime_type(p, type);
    curl_mime_encoder(p, "quoted-printable");
    buf_free(&lines);
}

int mail_compose(struct transfer *t, struct str text, struct str from, struct str key, int64_t now_ms) {
    yyjson_doc *doc = json_parse(text, &t->error);
    yyjson_val *json = yyjson_doc_get_root(doc);
    int rc = doc ? schema_check(schema, json, LOOM_E_INVALID_ARGUMENT, "mail", &t->error) : LOOM_E_INVALID_JSON;
    if (json_str(json, "from").p) from = json_str(json, "from");
    if (!rc && !from.p)
        rc = error_set(&t->error, LOOM_E_INVALID_ARGUMENT, "mail/from is missing, and loom.json has no mail.from");
    if (!rc) {
        head(t, json, from, key, now_ms);
        t->mime = curl_mime_init(t->easy);
        part(t->mime, "text/plain; charset=utf-8", json_str(json, "text"));
        part(t->mime, "text/html; charset=utf-8", json_str(json, "html"));
    }
    yyjson_doc_free(doc);
    return rc;
}
