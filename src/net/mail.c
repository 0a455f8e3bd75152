/* mail.c: from JSON to a mail: envelope, headers (RFC 5322) and parts, which curl writes (MIME).
 *
 * {"from", "to": string or list, "subject", "text" and/or "html"}. Addresses are "local@domain" or "Name <local@domain>",
 * in ASCII. Control characters anywhere but in text and html are refused, so that nothing can add a header or a recipient.
 * Words beyond ASCII become encoded words. Message-ID comes from the idempotency key, so that a mail sent twice can be told
 * to be one. No attachments, no cc, no bcc.
 */
#include "net/parts.h"
#include <string.h>
#include <time.h>

enum { LINE_BYTES = 900, WORD_BYTES = 42 };

static const char schema[] =
    "{'type':'object','required':['to','subject'],'anyOf':[{'required':['text']},{'required':['html']}],"
    "'additionalProperties':false,'properties':{'from':{'type':'string'," SCHEMA_MAILBOX "},"
    "'to':{'type':['string','array'],'minItems':1," SCHEMA_MAILBOX ",'items':{'type':'string'," SCHEMA_MAILBOX "}},"
    "'subject':{'type':'string','pattern':'^[^\\\\u0000-\\\\u001f\\\\u007f]*$'},"
    "'text':{'type':'string'},'html':{'type':'string'}}}";

/* One line of printable ASCII without any of the specials, and nothing that reads as an encoded word. */
static bool plain(struct str s, const char *specials) {
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < 0x20 || s.p[i] > 0x7e || strchr(specials, s.p[i])) return false;
    }
    return s.n <= LINE_BYTES && !(s.n && memmem(s.p, s.n, "=?", 2));
}

static void words(struct str s, const char *specials, struct buf *out) {
    if (plain(s, specials)) {
        buf_str(out, s);
        return;
    }
    for (size_t i = 0, n; i < s.n; i += n) {
        n = s.n - i < WORD_BYTES ? s.n - i : WORD_BYTES;
        while (i + n < s.n && n > 1 && ((unsigned char)s.p[i + n] & 0xc0) == 0x80) n--; /* not within a character */
        buf_json(out, "%s=?UTF-8?B?", i ? "\r\n " : "");
        base64((struct str){s.p + i, n}, out);
        buf_str(out, STR("?="));
    }
}

/* Adds a mailbox to a header; answers the bare address, perhaps in <>, as curl takes it too. */
static const char *mailbox(struct str s, struct buf *out) {
    const char *open = strchr(s.p, '<'), *bare = open ? open : s.p;
    struct str name = {s.p, (size_t)(bare - s.p)};
    while (name.n && strchr(" \"", name.p[name.n - 1])) name.n--;
    while (name.n && strchr(" \"", name.p[0])) name.p++, name.n--;
    words(name, "\"(),.:;<>@[\\]", out);
    buf_json(out, name.n ? " %s" : "%s", bare);
    return bare;
}

/* Lines end in CR LF, as mail has it. */
static void part(curl_mime *mime, const char *type, struct str text) {
    if (!text.p) return;
    struct buf lines = {0};
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

/* All lines of the header are one to curl, which writes it as it is. */
static void head(CURL *easy, yyjson_val *json, struct str from, struct str key, int64_t now_ms, struct outgoing *out) {
    yyjson_val *to = yyjson_obj_get(json, "to"), *v;
    struct buf lines = {0};
    size_t i, n;
    char date[64], id[65];
    time_t seconds = (time_t)(now_ms / 1000);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S +0000", gmtime_r(&seconds, &(struct tm){0}));
    buf_json(&lines, "Date: %s\r\nFrom: ", date);
    const char *sender = mailbox(from, &lines), *domain = strchr(sender, '@') + 1;
    curl_easy_setopt(easy, CURLOPT_MAIL_FROM, sender);
    buf_str(&lines, STR("\r\nTo: "));
    if (yyjson_is_str(to)) out->recipients = curl_slist_append(NULL, mailbox(str_in(to), &lines));
    yyjson_arr_foreach(to, i, n, v) {
        if (i) buf_str(&lines, STR(",\r\n "));
        out->recipients = curl_slist_append(out->recipients, mailbox(str_in(v), &lines));
    }
    buf_str(&lines, STR("\r\nSubject: "));
    words(json_str(json, "subject"), "", &lines);
    sha256_hex(key, id);
    buf_json(&lines, "\r\nMessage-ID: <%j@%j>\r\nX-Idempotency-Key: ", (struct str){id, 32},
             (struct str){domain, strcspn(domain, ">")});
    words(key, "", &lines);
    buf_char(&lines, 0);
    out->lines = curl_slist_append(NULL, lines.p);
    buf_free(&lines);
}

static void parts(CURL *easy, yyjson_val *json, struct outgoing *out) {
    curl_mime *both = curl_mime_init(easy);
    part(both, "text/plain; charset=utf-8", json_str(json, "text"));
    part(both, "text/html; charset=utf-8", json_str(json, "html"));
    out->mime = curl_mime_init(easy);
    curl_mimepart *all = curl_mime_addpart(out->mime);
    curl_mime_subparts(all, both);
    curl_mime_type(all, "multipart/alternative");
}

int mail_compose(CURL *easy, struct str text, struct str from, struct str key, int64_t now_ms, struct outgoing *out,
                 struct error *err) {
    yyjson_doc *doc = json_parse(text, err);
    yyjson_val *json = yyjson_doc_get_root(doc);
    if (!doc) return LOOM_E_INVALID_JSON;
    int rc = schema_check(schema, json, LOOM_E_INVALID_ARGUMENT, "mail", err);
    if (json_str(json, "from").p) from = json_str(json, "from");
    if (!rc && !from.p)
        rc = error_set(err, LOOM_E_INVALID_ARGUMENT, "mail/from is missing, and loom.json has no mail.from");
    if (!rc) head(easy, json, from, key, now_ms, out);
    if (!rc) parts(easy, json, out);
    yyjson_doc_free(doc);
    return rc;
}
