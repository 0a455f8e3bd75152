/* destination.c: where a request may go.
 *
 * Three gates, each on its own: the policy's list is compared with the host as curl itself parsed it, so that no spelling
 * of a URL means one thing to us and another to curl; whatever a name resolves to, the address is checked when the socket
 * is made for it, so that DNS cannot change its mind in between; each redirect passes both gates again.
 *
 * Addresses that are not globally reachable (IANA's special-purpose registries, and what tunnels to them: NAT64, 6to4,
 * Teredo, IPv4-mapped) are private. Private is refused unless loom.json says network.allowPrivate for the host, or
 * network.connectTo sends the connection there. Rules are written as curl prints hosts: another spelling never matches.
 */
#include <loomdeps.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "net/parts.h"

/* ---- words and rules: HOST (any port), HOST:PORT, *.DOMAIN ---- */

bool same_word(struct str a, struct str b) {
    return a.n == b.n && !strncasecmp(a.p, b.p, a.n);
}

const char *word_in(const char *const *words, struct str s) {
    while (*words && !same_word(str_of(*words), s)) words++;
    return *words;
}

static bool fits(struct str rule, struct str s) {
    bool wild = str_starts(rule, STR("*.")) && s.n >= rule.n;
    if (!wild) return same_word(rule, s);
    return same_word((struct str){rule.p + 1, rule.n - 1}, (struct str){s.p + s.n - rule.n + 1, rule.n - 1});
}

bool listed(yyjson_val *rules, struct str s) {
    size_t i, n;
    yyjson_val *rule;
    yyjson_arr_foreach(rules, i, n, rule) {
        if (fits(str_in(rule), s)) return true;
    }
    return yyjson_is_true(rules);
}

bool host_listed(yyjson_val *rules, const struct destination *to) {
    return listed(rules, to->host) || listed(rules, to->place);
}

/* ---- addresses ---- */

/* The first 32 bits of an address are enough for all of them. 0xa83f8110 is Azure's host; of IPv6 only 2000::/3 is global. */
static const struct range {
    uint32_t prefix;
    int bits;
} private_v4[] = {{0x00000000, 8},  {0x0a000000, 8},  {0x64400000, 10}, {0x7f000000, 8},
                  {0xa83f8110, 32}, {0xa9fe0000, 16}, {0xac100000, 12}, {0xc0000000, 24},
                  {0xc0000200, 24}, {0xc0586300, 24}, {0xc0a80000, 16}, {0xc6120000, 15},
                  {0xc6336400, 24}, {0xcb007100, 24}, {0xe0000000, 3},  {0}},
  private_v6[] = {{0x00000000, 3},  {0x40000000, 2},  {0x80000000, 1},  {0x20010000, 23},
                  {0x20010db8, 32}, {0x20020000, 16}, {0x3fff0000, 20}, {0}};

unsigned address_reach(const struct sockaddr *address) {
    int family = address->sa_family;
    size_t at = family == AF_INET ? offsetof(struct sockaddr_in, sin_addr) : offsetof(struct sockaddr_in6, sin6_addr);
    bool inside = family != AF_INET && family != AF_INET6;
    uint32_t top;
    memcpy(&top, (const char *)address + at, sizeof top);
    for (const struct range *r = family == AF_INET ? private_v4 : private_v6; r->bits; r++)
        inside |= (ntohl(top) ^ r->prefix) >> (32 - r->bits) == 0;
    return inside ? REACH_PRIVATE : REACH_PUBLIC;
}

/* ---- URLs ---- */

static struct str url_part(CURLU *u, CURLUPart part, unsigned flags, struct arena *a) {
    char *text = NULL;
    curl_url_get(u, part, &text, flags);
    struct str s = arena_dup(a, str_of(text));
    curl_free(text);
    return s;
}

static int url_parse(struct str url, const char *scheme, struct arena *a, struct destination *out, struct error *err) {
    CURLU *u = curl_url();
    struct str text = arena_dup(a, url.p && !memchr(url.p, 0, url.n) ? url : STR(""));
    CURLUcode rc = curl_url_set(u, CURLUPART_URL, text.p, CURLU_DISALLOW_USER);
    *out = (struct destination){.url = url_part(u, CURLUPART_URL, CURLU_PUNYCODE, a)};
    struct str first = url_part(u, CURLUPART_HOST, CURLU_PUNYCODE, a);
    if (out->url.p) rc = curl_url_set(u, CURLUPART_URL, out->url.p, CURLU_DISALLOW_USER); /* as curl will read it */
    out->host = url_part(u, CURLUPART_HOST, CURLU_PUNYCODE, a);
    struct str port = url_part(u, CURLUPART_PORT, CURLU_DEFAULT_PORT, a);
    curl_url_cleanup(u);
    if (rc == CURLUE_UNSUPPORTED_SCHEME || rc == CURLUE_USER_NOT_ALLOWED ||
        (out->url.p && !str_starts(out->url, str_of(scheme))))
        return error_set(err, LOOM_E_DENIED,
                         "a url is http:// or https:// without credentials (those are for headers),"
                         " or \"smtp://\", the project's own mail server");
    if (rc || !out->url.p || !out->host.p || !str_eq(first, out->host) || memchr(first.p, '%', first.n))
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "url \"%.200s\": %s", text.p,
                         rc ? curl_url_strerror(rc) : "it names no host");
    if (out->host.n > 1 && out->host.p[out->host.n - 1] == '.') out->host.n--;
    out->place = arena_json(a, "%j:%j", out->host, port);
    out->tls = out->url.p[strlen(scheme)] == 's';
    return 0;
}

int destination_find(yyjson_val *network, const char *scheme, struct str url, struct arena *a, struct destination *out,
                     struct error *err) {
    size_t i, n;
    yyjson_val *rule, *target;
    int rc = url_parse(url, scheme, a, out, err);
    yyjson_obj_foreach(yyjson_obj_get(network, "connectTo"), i, n, rule, target) {
        if (!rc && !out->connect_to && (fits(str_in(rule), out->host) || fits(str_in(rule), out->place)))
            out->connect_to = arena_json(a, "::%j", str_in(target)).p;
    }
    bool private = out->connect_to || host_listed(yyjson_obj_get(network, "allowPrivate"), out);
    out->reach = REACH_PUBLIC | (private ? REACH_PRIVATE : 0);
    return rc;
}

/* ---- documents ---- */

struct str str_in(yyjson_val *string) {
    return (struct str){yyjson_get_str(string), yyjson_get_len(string)};
}

int schema_check(const char *schema, yyjson_val *v, int code, const char *what, struct error *err) {
    char why[600];
    struct arena a = {0};
    struct str text = arena_dup(&a, str_of(schema)), json = json_text_of(v, &a);
    for (char *p = (char *)text.p; (p = strchr(p, '\'')) != NULL;) *p = '"';
    struct loom_schema *s = loom_schema_new(text.p, text.n, why, sizeof why);
    if (!s) abort(); /* the schema is ours */
    int rc = loom_schema_check(s, json.p, json.n, why, sizeof why) ? error_set(err, code, "%s: %s", what, why) : 0;
    loom_schema_free(s);
    arena_free(&a);
    return rc;
}

const char *path_in(const char *dir, struct str path, struct arena *a) {
    return (dir && path.p[0] != '/' ? arena_json(a, "%s/%j", dir, path) : arena_dup(a, path)).p;
}

int net_policy(yyjson_val *capabilities, yyjson_val **policy, struct error *err) {
    static const char known[] = "{'type':'object','additionalProperties':false,'properties':{'mail':{'type':'boolean'},"
                                "'network':{'type':['boolean','array'],'items':" SCHEMA_HOST "},"
                                "'secrets':{'type':'array','items':{'type':'string','minLength':1}}}}";
    yyjson_val *network = yyjson_obj_get(capabilities, "network"), *secrets = yyjson_obj_get(capabilities, "secrets");
    bool any = json_bool(capabilities, "mail", false) || yyjson_is_true(network) || yyjson_arr_size(network) ||
               yyjson_arr_size(secrets);
    int rc = capabilities ? schema_check(known, capabilities, LOOM_E_INVALID_DOCUMENT, "capabilities", err) : 0;
    *policy = !rc && any ? capabilities : NULL;
    return rc;
}
