/* parts.h: what the files of this room share; net.h is the door to the others. What loom.json says is immutable once
 * net_client_new() has returned, so any thread may use it. */
#ifndef LOOM_NET_PARTS_H
#define LOOM_NET_PARTS_H

#include "net/net.h"
#include <curl/curl.h>

/* ---- destination.c: where a request may go ---- */

enum { REACH_PUBLIC = 1, REACH_PRIVATE = 2 }; /* kinds of addresses */

struct destination {
    struct str url;
    struct str host;  /* as curl understood it: IPv4 in dotted form, IDN as punycode, [IPv6] */
    struct str place; /* HOST:PORT */
    bool tls;
    unsigned reach;         /* what kinds of addresses the connection may be made to */
    const char *connect_to; /* for CURLOPT_CONNECT_TO, or NULL */
};

/* Parses a URL of a scheme, "http" or "smtp", with or without TLS (INVALID_ARGUMENT, DENIED), and finds how network (of
 * loom.json, checked) lets it be reached; whether one may go there is for host_listed to say. */
int destination_find(yyjson_val *network, const char *scheme, struct str url, struct arena *a, struct destination *out,
                     struct error *err);
bool listed(yyjson_val *rules, struct str s); /* rules: a list, or true for all; *.DOMAIN is all that ends so */
bool host_listed(yyjson_val *rules, const struct destination *to);
unsigned address_reach(const struct sockaddr *address);
bool same_word(struct str a, struct str b);                  /* whatever the case */
const char *word_in(const char *const *words, struct str s); /* as the NULL-ended table has it, whatever its case */
struct str str_in(yyjson_val *string);                       /* absent when it is none */

const char *path_in(const char *dir, struct str path, struct arena *a);

/* What no line may hold; a tab is fine. */
#define CONTROLS "\1\2\3\4\5\6\7\b\n\v\f\r\16\17\20\21\22\23\24\25\26\27\30\31\32\33\34\35\36\37\177"

/* Schemas of rules for hosts and of mail addresses, for use within others; ' stands for the quote. */
#define SCHEMA_HOST    "{'type':'string','pattern':'^([*][.])?([A-Za-z0-9._-]+|[[][0-9A-Fa-f:.]+[]])(:[0-9]{1,5})?$'}"
#define SCHEMA_ADDRESS "[!#-\\u0027*+/-9=?A-Z^-~.-]{1,64}@[A-Za-z0-9.-]{1,180}"
#define SCHEMA_MAILBOX \
    "'maxLength':500,'pattern':'^(" SCHEMA_ADDRESS "|[^<>\\\\u0000-\\\\u001f\\\\u007f]*<" SCHEMA_ADDRESS ">)$'"

/* ---- http_client.c ---- */

struct transfer {
    struct net_client *client;
    const struct secret *secrets;
    yyjson_val *policy;
    void *ctx;
    void (*done)(void *ctx, bool ok, struct str json);
    uint64_t id;
    struct arena arena; /* also of the lists for curl */
    struct destination to;
    const char *method; /* NULL: a mail */
    struct str body;    /* .p NULL: none */
    bool foreign;       /* redirected to another origin */
    int redirects;
    int64_t deadline;
    CURL *easy;
    struct curl_slist *headers, *lines; /* with handles; with values, for this hop */
    struct curl_slist *recipients;
    curl_mime *mime;
    struct buf answer;  /* HTTP: the body; SMTP: the server's last line */
    struct error error; /* .code set: refused before the start, or by a callback */
    char detail[CURL_ERROR_SIZE];
};

void list_add(struct arena *a, struct curl_slist **list, const char *text); /* text: in the arena */
struct str base64(struct arena *a, struct str s);

/* ---- secrets.c: handles and values ---- */

#define SECRET_HANDLE "{{secret:"

struct secret {
    struct str name, value;
    yyjson_val *hosts, *headers; /* that the value may go to */
};

/* Of loom.json: the longest value first, one without a name at the end. */
int secrets_read(yyjson_val *doc, const char *dir, struct arena *a, struct secret **out, struct error *err);
/* The secret, if the policy lists it; or DENIED, NOT_FOUND. */
int secret_find(const struct secret *all, yyjson_val *policy, struct str name, const struct secret **out,
                struct error *err);
bool secret_mentioned(struct str text);
/* A header's line with values for its handles. DENIED names the secret and what it may not go to. A value that goes out
 * without TLS confines the transfer to private addresses. */
int secrets_expand(struct transfer *t, struct str *line);
/* The text with handles where values of the policy's secrets stand, as they are or as JSON has them; itself if there are none. */
struct str secrets_redact(struct transfer *t, struct str text);

/* ---- mail.c: the lines and parts of a mail from JSON ---- */

int mail_compose(struct transfer *t, struct str json, struct str from, struct str key, int64_t now_ms);

#endif
