/* parts.h: what the files of this room share; net.h is the door to the others. What loom.json says is immutable once
 * net_client_new() has returned, so any thread may use it. */
#ifndef LOOM_NET_PARTS_H
#define LOOM_NET_PARTS_H

#include "net/net.h"
#include <curl/curl.h>

/* ---- destination.c: where a request may go ---- */

enum { REACH_PUBLIC = 1, REACH_PRIVATE = 2 }; /* kinds of addresses */

struct destination {
    struct str url, scheme;
    struct str host; /* as curl understood it: IPv4 in dotted form, IDN as punycode, [IPv6], no dot at the end */
    int port;
    unsigned reach;         /* what kinds of addresses the connection may be made to */
    const char *connect_to; /* for CURLOPT_CONNECT_TO, or NULL */
};

/* Parses the URL (INVALID_ARGUMENT, DENIED) and finds how network (of loom.json, checked) lets it be reached; whether one
 * may go there is net_host_allowed's matter. */
int destination_find(yyjson_val *network, struct str url, struct arena *a, struct destination *out, struct error *err);
bool host_listed(yyjson_val *rules, struct str host, int port);
unsigned address_reach(const struct sockaddr *address);
const char *word_in(const char *const *words,
                    struct str s); /* the word as the NULL-ended table has it, whatever its case */
/* Checks a value against a JSON Schema; `code` and the place of the first mistake go to err. */
int schema_check(const char *schema, yyjson_val *v, int code, const char *what, struct error *err);
struct str str_in(yyjson_val *string); /* absent when it is none */
const char *path_in(const char *dir, struct str path, struct arena *a);

/* Schemas of rules for hosts (HOST, HOST:PORT, *.DOMAIN) of text in one line and of mail addresses, for use within others; ' stands for the quote. */
#define SCHEMA_HOST    "{'type':'string','pattern':'^([*][.])?([A-Za-z0-9._-]+|[[][0-9A-Fa-f:.]+[]])(:[0-9]{1,5})?$'}"
#define SCHEMA_LINE    "{'type':'string','pattern':'^[^\\\\u0000-\\\\u001f\\\\u007f]*$'}"
#define SCHEMA_ADDRESS "[!#-\\u0027*+/-9=?A-Z^-~.-]{1,64}@[A-Za-z0-9.-]{1,180}"
#define SCHEMA_MAILBOX "'pattern':'^(" SCHEMA_ADDRESS "|[^<>\\\\u0000-\\\\u001f\\\\u007f]*<" SCHEMA_ADDRESS ">)$'"

/* ---- secrets.c: handles and values ---- */

#define SECRET_HANDLE "{{secret:"

struct secret {
    struct str name, value;
    yyjson_val *hosts;   /* that the value may go to */
    yyjson_val *headers; /* it may stand in; NULL: those of secret_header() */
};
struct secrets {
    struct secret *items; /* longest value first */
    size_t count;
};

int secrets_read(yyjson_val *doc, const char *dir, struct arena *a, struct secrets *out, struct error *err);
/* The secret, if the policy lists it; or DENIED, NOT_FOUND. */
int secret_find(const struct secrets *s, const struct net_policy *p, struct str name, const struct secret **out,
                struct error *err);
bool secret_mentioned(struct str text);
bool secret_header(struct str name); /* a header that carries credentials unless a secret says otherwise */
/* Appends a header's value with its handles replaced. DENIED names the secret and what it may not go to. */
int secrets_expand(const struct secrets *s, const struct net_policy *p, const struct destination *to, struct str header,
                   struct str value, struct buf *out, struct error *err);
/* Puts handles where values of the policy's secrets stand; json: in JSON text. True if there were any. */
bool secrets_redact(const struct secrets *s, const struct net_policy *p, bool json, struct buf *text);

/* ---- mail.c: JSON to a message ---- */

struct mail {
    struct str
        from; /* the envelope's addresses; the rest is for CURLOPT_HTTPHEADER and _MIMEPOST. The caller frees all */
    struct curl_slist *to, *headers;
    curl_mime *mime;
};

int mail_compose(CURL *easy, struct str json, struct str from, struct str key, int64_t now_ms, struct arena *a,
                 struct mail *out, struct error *err);
void base64(struct str s, struct buf *out);

#endif
