/* mail.c: from JSON to a mail: envelope, headers (RFC 5322) and parts, which curl writes (MIME).
 *
 * {"from", "to": string or list, "subject", "text" and/or "html", "headers"}. Addresses are "local@domain" or "Name <local@domain>",
 * in ASCII. Control characters anywhere but in text and html are refused, so that nothing can add a header or a recipient.
 * Words beyond ASCII become encoded words. Message-ID comes from the idempotency key, so that a mail sent twice can be told
 * to be one. No attachments, no cc, no bcc.
 */
#include "net/parts.h"
#include <string.h>
#include <time.h>

enum { LINE_BYTES = 900, WORD_BYTES = 42 };

static const char schema[] =
    "{'type':'object','required':['to','subject'],'anyOf':[{'required':['text']},{'required':['html']}],'properties':{"
    "'from':{'type':'string'," SCHEMA_MAILBOX "},'subject':" SCHEMA_LINE ","
    "'to':{'type':['string','array'],'minItems':1," SCHEMA_MAILBOX ",'items':{'type':'string'," SCHEMA_MAILBOX "}},"
    "'text':{'type':'string'},'html':{'type':'string'},'headers':{'type':'object','additionalProperties':" SCHEMA_LINE
    ","
    "'propertyNames':{'pattern':'^(?!(?i:from|sender|to|cc|bcc|subject|date|message-id|received|return-path|mime-"
    "version|"
    "content-.*|x-idempotency-key)$)[A-Za-z0-9-]{1,64}$'}}}}";

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

/* Adds a mailbox to a header; answers the bare address. */
static struct str mailbox(struct str s, struct arena *a, struct buf *out) {
    const char *open = s.p[s.n - 1] == '>' ? memrchr(s.p, '<', s.n) : NULL;
    struct str name = {s.p, open ? (size_t)(open - s.p) : 0}, bare = s;
    if (open) bare = (struct str){open + 1, s.n - name.n - 2};
    while (name.n && strchr(" \"", name.p[name.n - 1])) name.n--;
    while (name.n && strchr(" \"", name.p[0])) name.p++, name.n--;
    words(name, "\"(),.:;<>@[\\]", out);
    buf_json(out, name.n ? " <%j>" : "%j", bare);
    return arena_dup(a, bare);
}

static void header(struct mail *m, const char *name, struct str value, bool as_is) {
    struct buf line = {0};
    buf_json(&line, "%s: ", name);
    if (as_is)
        buf_str(&line, value);
    else
        words(value, "", &line);
    buf_char(&line, 0);
    m->headers = curl_slist_append(m->headers, line.p);
    buf_free(&line);
}

/* Lines end in CR LF, as mail has it; what is not short plain lines goes as quoted-printable. */
static void part(curl_mime *mime, const char *type, struct str text) {
    if (!text.p) return;
    struct buf lines = {0};
    bool ascii = true;
    size_t start = 0;
    for (size_t i = 0; i < text.n; i++) {
        ascii = ascii && text.p[i] > 0 && lines.n - start < LINE_BYTES;
        if (text.p[i] == '\r' && i + 1 < text.n && text.p[i + 1] == '\n') continue;
        if (text.p[i] != '\n' && text.p[i] != '\r')
            buf_char(&lines, text.p[i]);
        else
            buf_str(&lines, STR("\r\n")), start = lines.n;
    }
    curl_mimepart *p = curl_mime_addpart(mime);
    curl_mime_data(p, lines.n ? lines.p : "", lines.n);
    curl_mime_type(p, type);
    curl_mime_encoder(p, ascii ? "7bit" : "quoted-printable");
    buf_free(&lines);
}

static void headers_add(yyjson_val *json, struct str from, struct str key, int64_t now_ms, struct arena *a,
                        struct mail *m) {
    yyjson_val *to = yyjson_obj_get(json, "to"), *name, *v;
    struct buf mailboxes = {0};
    size_t i, n, many = yyjson_is_arr(to) ? yyjson_arr_size(to) : 1;
    char date[64], id[65];
    time_t seconds = (time_t)(now_ms / 1000);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S +0000", gmtime_r(&seconds, &(struct tm){0}));
    header(m, "Date", str_of(date), true);
    m->from = mailbox(from, a, &mailboxes);
    header(m, "From", buf_view(&mailboxes), true);
    buf_clear(&mailboxes);
    for (i = 0; i < many; i++) {
        v = yyjson_is_arr(to) ? yyjson_arr_get(to, i) : to;
        if (i) buf_str(&mailboxes, STR(",\r\n "));
        m->to = curl_slist_append(m->to, mailbox(str_in(v), a, &mailboxes).p);
    }
    header(m, "To", buf_view(&mailboxes), true);
    buf_free(&mailboxes);
    header(m, "Subject", json_str(json, "subject"), false);
    sha256_hex(key, id);
    header(m, "Message-ID", arena_json(a, "<%j@%s>", (struct str){id, 32}, strrchr(m->from.p, '@') + 1), true);
    header(m, "X-Idempotency-Key", key, false);
    yyjson_obj_foreach(yyjson_obj_get(json, "headers"), i, n, name, v)
        header(m, yyjson_get_str(name), str_in(v), false);
}

int mail_compose(CURL *easy, struct str text, struct str from, struct str key, int64_t now_ms, struct arena *a,
                 struct mail *m, struct error *err) {
    yyjson_doc *doc = json_parse(text, err);
    yyjson_val *json = yyjson_doc_get_root(doc);
    if (!doc) return LOOM_E_INVALID_JSON;
    int rc = schema_check(schema, json, LOOM_E_INVALID_ARGUMENT, "mail", err);
    if (json_str(json, "from").p) from = json_str(json, "from");
    if (!rc && !from.p)
        rc = error_set(err, LOOM_E_INVALID_ARGUMENT, "mail/from is missing, and loom.json has no mail.from");
    if (!rc) {
        headers_add(json, from, key, now_ms, a, m);
        curl_mime *parts = curl_mime_init(easy);
        part(parts, "text/plain; charset=utf-8", json_str(json, "text"));
        part(parts, "text/html; charset=utf-8", json_str(json, "html"));
        m->mime = curl_mime_init(easy);
        curl_mimepart *all = curl_mime_addpart(m->mime);
        curl_mime_subparts(all, parts);
        curl_mime_type(all, "multipart/alternative");
    }
    yyjson_doc_free(doc);
    return rc;
}
