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

bool word_listed(yyjson_val *words, struct str s) {
    size_t i, n;
    yyjson_val *word;
    yyjson_arr_foreach(words, i, n, word) {
        if (same_word(str_in(word), s)) return true;
    }
    return false;
}

static bool rule_fits(struct str rule, struct str place) {
    if (str_starts(rule, STR("*.")) && place.n >= rule.n) {
        rule = (struct str){rule.p + 1, rule.n - 1};
        place = (struct str){place.p + place.n - rule.n, rule.n};
    }
    return same_word(rule, place);
}

static bool matches(struct str rule, struct str host, int port) {
    char text[300];
    size_t n = (size_t)snprintf(text, sizeof text, "%.*s:%d", (int)host.n, host.p, port);
    return n < sizeof text && (rule_fits(rule, host) || rule_fits(rule, (struct str){text, n}));
}

bool host_listed(yyjson_val *rules, struct str host, int port) {
    size_t i, n;
    yyjson_val *rule;
    yyjson_arr_foreach(rules, i, n, rule) {
        if (matches(str_in(rule), host, port)) return true;
    }
    return yyjson_is_true(rules);
}

/* ---- addresses ---- */

struct range {
    uint32_t prefix; /* the first 32 bits of an address are enough for all of them */
    int bits;
};

static const struct range private_v4[] = {
    {0x00000000, 8},  {0x0a000000, 8},  {0x64400000, 10}, {0x7f000000, 8},  {0xa83f8110, 32}, /* Azure's host */
    {0xa9fe0000, 16}, {0xac100000, 12}, {0xc0000000, 24}, {0xc0000200, 24}, {0xc0586300, 24},
    {0xc0a80000, 16}, {0xc6120000, 15}, {0xc6336400, 24}, {0xcb007100, 24}, {0xe0000000, 3},
};
static const struct range private_v6[] = {
    {0x00000000, 3},  {0x40000000, 2},  {0x80000000, 1}, /* all but 2000::/3, where the global addresses are */
    {0x20010000, 23}, {0x20010db8, 32}, {0x20020000, 16}, {0x3fff0000, 20},
};

unsigned address_reach(const struct sockaddr *address) {
    bool v4 = address->sa_family == AF_INET;
    const void *bytes = v4 ? (const void *)&((const struct sockaddr_in *)(const void *)address)->sin_addr
                           : (const void *)&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
    const struct range *ranges = v4 ? private_v4 : private_v6;
    size_t count = v4 ? sizeof private_v4 / sizeof *ranges : sizeof private_v6 / sizeof *ranges;
    uint32_t top;
    if (!v4 && address->sa_family != AF_INET6) return REACH_PRIVATE;
    memcpy(&top, bytes, sizeof top);
    for (size_t i = 0; i < count; i++) {
        if ((ntohl(top) ^ ranges[i].prefix) >> (32 - ranges[i].bits) == 0) return REACH_PRIVATE;
    }
    return REACH_PUBLIC;
}

/* ---- URLs ---- */

static int url_parse(struct str url, const char *scheme, struct arena *a, struct destination *out, struct error *err) {
    static const CURLUPart parts[] = {CURLUPART_URL, CURLUPART_HOST, CURLUPART_PORT};
    static const unsigned flags[] = {CURLU_PUNYCODE, CURLU_PUNYCODE, CURLU_DEFAULT_PORT};
    struct str text = arena_dup(a, url.p && !memchr(url.p, 0, url.n) ? url : STR("")), got[3] = {STR_NONE};
    CURLU *u = curl_url();
    CURLUcode rc = curl_url_set(u, CURLUPART_URL, text.p, CURLU_DISALLOW_USER);
    for (size_t i = 0; rc == CURLUE_OK && i < 3; i++) {
        char *part = NULL;
        rc = curl_url_get(u, parts[i], &part, flags[i]);
        got[i] = arena_dup(a, str_of(part));
        curl_free(part);
    }
    curl_url_cleanup(u);
    bool other = rc == CURLUE_UNSUPPORTED_SCHEME || (got[0].p && !str_starts(got[0], str_of(scheme)));
    if (other || rc == CURLUE_USER_NOT_ALLOWED)
        return error_set(err, LOOM_E_DENIED,
                         "a url is http:// or https:// without credentials (those are for headers),"
                         " or \"smtp://\", the project's own mail server");
    if (rc != CURLUE_OK)
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "url \"%.200s\": %s", text.p, curl_url_strerror(rc));
    bool dot = got[1].n > 1 && got[1].p[got[1].n - 1] == '.';
    *out = (struct destination){.url = got[0].p, .host = arena_dup(a, (struct str){got[1].p, got[1].n - dot})};
    out->port = atoi(got[2].p);
    out->tls = got[0].p[strlen(scheme)] == 's';
    return 0;
}

int destination_find(yyjson_val *network, const char *scheme, struct str url, struct arena *a, struct destination *out,
                     struct error *err) {
    size_t i, n;
    yyjson_val *rule, *target;
    int rc = url_parse(url, scheme, a, out, err);
    if (rc) return rc;
    yyjson_obj_foreach(yyjson_obj_get(network, "connectTo"), i, n, rule, target) {
        if (!out->connect_to && matches(str_in(rule), out->host, out->port))
            out->connect_to = arena_json(a, "::%j", str_in(target)).p;
    }
    bool private = out->connect_to || host_listed(yyjson_obj_get(network, "allowPrivate"), out->host, out->port);
    out->reach = REACH_PUBLIC | (private ? REACH_PRIVATE : 0);
    return 0;
}

/* ---- documents ---- */

int schema_check(const char *schema, yyjson_val *v, int code, const char *what, struct error *err) {
    char why[600], *text = str_dup(str_of(schema));
    struct buf json = {0};
    for (char *p = text; (p = strchr(p, '\'')) != NULL;) *p = '"';
    struct loom_schema *s = loom_schema_new(text, strlen(text), why, sizeof why);
    if (!s) abort(); /* the schema is ours */
    json_write(v, &json);
    int rc = loom_schema_check(s, json.p, json.n, why, sizeof why) ? error_set(err, code, "%s%s", what, why) : 0;
    loom_schema_free(s);
    buf_free(&json);
    free(text);
    return rc;
}

struct str str_in(yyjson_val *string) {
    return (struct str){yyjson_get_str(string), yyjson_get_len(string)};
}

const char *path_in(const char *dir, struct str path, struct arena *a) {
    return (dir && path.p[0] != '/' ? arena_json(a, "%s/%j", dir, path) : arena_dup(a, path)).p;
}

/* The policy and its own copy of the capabilities are one block. */
int net_policy_new(yyjson_val *capabilities, struct net_policy **out, struct error *err) {
    static const char schema[] = "{'type':'object','properties':{'mail':{'type':'boolean'},"
                                 "'network':{'type':['boolean','array'],'items':" SCHEMA_HOST "},"
                                 "'secrets':{'type':'array','items':{'type':'string','minLength':1}}}}";
    struct buf text = {0};
    yyjson_alc pool;
    *out = NULL;
    int rc = capabilities ? schema_check(schema, capabilities, LOOM_E_INVALID_DOCUMENT, "capabilities", err) : 0;
    if (rc) return rc;
    json_write(capabilities, &text);
    size_t room = yyjson_read_max_memory_usage(text.n, 0);
    struct net_policy *p = mem_alloc(sizeof *p + room);
    yyjson_alc_pool_init(&pool, p + 1, room);
    yyjson_doc *doc = yyjson_read_opts(text.p, text.n, YYJSON_READ_BIGNUM_AS_RAW, &pool, NULL);
    yyjson_val *can = yyjson_doc_get_root(doc);
    *p = (struct net_policy){yyjson_obj_get(can, "network"), yyjson_obj_get(can, "secrets"),
                             json_bool(can, "mail", false)};
    if (p->mail || yyjson_is_true(p->network) || yyjson_arr_size(p->network) || yyjson_arr_size(p->secrets))
        *out = p;
    else
        free(p);
    buf_free(&text);
    return 0;
}
