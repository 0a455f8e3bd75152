/* parts.h: what the files of this room share; net.h is the door to the others. All that is read from loom.json is
 * immutable once net_client_new() has returned, so any thread may use it. */
#ifndef LOOM_NET_PARTS_H
#define LOOM_NET_PARTS_H

#include "net/net.h"
#include <sys/socket.h>

struct strings {
    struct str *items;
    size_t count;
};

/* ---- destination.c: where a request may go ---- */

/* Kinds of addresses; a destination says which of them a connection may be made to. */
enum { REACH_PUBLIC = 1, REACH_PRIVATE = 2 };

struct destination {
    struct str url, scheme;
    struct str host; /* as curl understood it: IPv4 in dotted form, IDN as punycode, [IPv6], no dot at the end */
    int port;
    unsigned reach;
    const char *connect_to; /* for CURLOPT_CONNECT_TO, or NULL */
};

struct network { /* loom.json: network */
    bool private_any;
    struct strings private_hosts;
    struct strings mapped, targets; /* connectTo's keys and values */
    const char *ca_file;            /* NULL: the system's CAs */
};

int network_read(yyjson_val *doc, const char *dir, struct arena *a, struct network *out, struct error *err);
/* Parses the URL (INVALID_ARGUMENT, DENIED) and finds how it is reached; whether one may is net_host_allowed's matter. */
int network_find(const struct network *n, struct str url, struct arena *a, struct destination *out, struct error *err);
unsigned address_reach(const struct sockaddr *address);
bool host_listed(struct strings rules, struct str host, int port);
struct net_policy *net_policy_copy(const struct net_policy *p); /* one malloc'd block: free() */

/* A list of strings, borrowed from the document; hosts: each must be HOST, HOST:PORT or *.DOMAIN. Absent: none. */
int strings_read(yyjson_val *list, bool hosts, const char *field, struct arena *a, struct strings *out, struct error *err);
int fields_check(yyjson_val *obj, const char *const *known, const char *field, struct error *err);
/* The NULL-ended table's own spelling of a word, whatever its case; NULL when it is not there. */
const char *word_find(const char *const *words, struct str s);
const char *path_in(const char *dir, struct str path, struct arena *a);

/* ---- secrets.c: handles and values ---- */

#define SECRET_HANDLE "{{secret:"

struct secrets {
    struct secret *items; /* longest value first */
    size_t count;
};

int secrets_read(yyjson_val *doc, const char *dir, struct arena *a, struct secrets *out, struct error *err);
const struct secret *secret_find(const struct secrets *s, struct str name);
int secret_handle(const struct secrets *s, const struct net_policy *p, struct str name, struct buf *out, struct error *err);
bool secret_mentioned(struct str text);
bool secret_header(struct str name); /* a header that carries credentials unless a secret says otherwise */
/* Appends a header's value with its handles replaced. DENIED names the secret and what it may not go to. */
int secrets_expand(const struct secrets *s, const struct net_policy *p, const struct destination *to, struct str header,
                   struct str value, struct buf *out, struct error *err);
/* Puts handles where values of the policy's secrets stand; json: in JSON text that json_quote or json_write wrote. */
void secrets_redact(const struct secrets *s, const struct net_policy *p, bool json, struct buf *text);
bool json_quote(struct str s, struct buf *out); /* false, and nothing added, when s is not UTF-8 */

/* ---- mail.c: JSON to a message ---- */

struct mail {
    struct str from, text; /* envelope address; the message with its lines ended by CR LF */
    struct strings to;
};

/* json: {"from","to","subject","text","html","headers"}. Everything in out lives in the arena. */
int mail_compose(yyjson_val *json, struct str from, struct str key, int64_t now_ms, struct arena *a, struct mail *out,
                 struct error *err);
void base64(struct str s, size_t line, struct buf *out); /* a line end after each `line` bytes of input; 0: none */
bool header_name_ok(struct str name);
bool printable(struct str s); /* no control characters */

#endif
