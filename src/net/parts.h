/* parts.h: what the files of this room share; net.h is the door to the others. What loom.json says is immutable once
 * net_client_new() has returned, so any thread may use it. */
#ifndef LOOM_NET_PARTS_H
#define LOOM_NET_PARTS_H

#include "net/net.h"
#include <curl/curl.h>

struct net_policy {
    yyjson_val *network; /* true: any public host; or a list of rules: HOST (any port), HOST:PORT, *.DOMAIN */
    yyjson_val *secrets; /* names it may use */
    bool mail;
};

/* ---- destination.c: where a request may go ---- */

enum { REACH_PUBLIC = 1, REACH_PRIVATE = 2 }; /* kinds of addresses */

struct destination {
    const char *url;
    struct str host; /* as curl understood it: IPv4 in dotted form, IDN as punycode, [IPv6], no dot at the end */
    int port;
    bool tls;
    unsigned reach;         /* what kinds of addresses the connection may be made to */
    const char *connect_to; /* for CURLOPT_CONNECT_TO, or NULL */
};

/* Parses a URL of http or smtp, with or without TLS (INVALID_ARGUMENT, DENIED), and finds how network (of loom.json,
 * checked) lets it be reached; whether one may go there is for host_listed to say. */
int destination_find(yyjson_val *network, const char *scheme, struct str url, struct arena *a, struct destination *out,
                     struct error *err);
bool host_listed(yyjson_val *rules, struct str host, int port); /* rules: a list, or true for all */
unsigned address_reach(const struct sockaddr *address);
bool same_word(struct str a, struct str b);                  /* whatever the case */
const char *word_in(const char *const *words, struct str s); /* as the NULL-ended table has it, whatever its case */
bool word_listed(yyjson_val *words, struct str s);
/* Checks a value against a JSON Schema; `code` and the place of the first mistake go to err. */
int schema_check(const char *schema, yyjson_val *v, int code, const char *what, struct error *err);
struct str str_in(yyjson_val *string); /* absent when it is none */
const char *path_in(const char *dir, struct str path, struct arena *a);

/* What no line may hold; a tab is fine. */
#define CONTROLS                                                                                                       \
    "\001\002\003\004\005\006\007\010\012\013\014\015\016\017\020\021\022\023\024\025\026\027\030\031\032\033\034\035" \
    "\036"                                                                                                             \
    "\037\177"

/* Schemas of rules for hosts and of mail addresses, for use within others; ' stands for the quote. */
#define SCHEMA_HOST    "{'type':'string','pattern':'^([*][.])?([A-Za-z0-9._-]+|[[][0-9A-Fa-f:.]+[]])(:[0-9]{1,5})?$'}"
#define SCHEMA_ADDRESS "[!#-\\u0027*+/-9=?A-Z^-~.-]{1,64}@[A-Za-z0-9.-]{1,180}"
#define SCHEMA_MAILBOX "'pattern':'^(" SCHEMA_ADDRESS "|[^<>\\\\u0000-\\\\u001f\\\\u007f]*<" SCHEMA_ADDRESS ">)$'"

/* ---- secrets.c: handles and values ---- */

#define SECRET_HANDLE "{{secret:"

struct secret {
    struct str name, value;
    yyjson_val *hosts, *headers; /* that the value may go to */
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
/* Appends a header's line with its handles replaced. DENIED names the secret and what it may not go to. A value that goes
 * out without TLS confines `to` to private addresses. */
int secrets_expand(const struct secrets *s, const struct net_policy *p, struct destination *to, struct str line,
                   struct buf *out, struct error *err);
/* Puts handles where values of the policy's secrets stand, as they are or as JSON has them. True if there were any. */
bool secrets_redact(const struct secrets *s, const struct net_policy *p, struct buf *text);

/* ---- mail.c: JSON to a message ---- */

struct outgoing { /* what curl does not copy; the transfer frees it */
    struct curl_slist *lines, *recipients;
    curl_mime *mime;
};

int mail_compose(CURL *easy, struct str json, struct str from, struct str key, int64_t now_ms, struct outgoing *out,
                 struct error *err);
void base64(struct str s, struct buf *out);

#endif
