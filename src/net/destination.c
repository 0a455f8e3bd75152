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

/* ---- rules: HOST (any port), HOST:PORT, *.DOMAIN ---- */

static bool rule_matches(struct str rule, struct str text) {
    bool wild = str_starts(rule, STR("*."));
    struct str end = {rule.p + wild, rule.n - wild};
    return (wild ? text.n > end.n : text.n == end.n) && !strncasecmp(text.p + text.n - end.n, end.p, end.n);
}

static bool matches(struct str rule, struct str host, int port) {
    char text[300];
    size_t n = (size_t)snprintf(text, sizeof text, "%.*s:%d", (int)host.n, host.p, port);
    return n < sizeof text && (rule_matches(rule, host) || rule_matches(rule, (struct str){text, n}));
}

bool host_listed(yyjson_val *rules, struct str host, int port) {
    size_t i, n;
    yyjson_val *rule;
    yyjson_arr_foreach(rules, i, n, rule) {
        if (matches(str_in(rule), host, port)) return true;
    }
    return false;
}

bool net_host_allowed(const struct net_policy *p, struct str host, int port) {
    for (size_t i = 0; p && i < p->host_count; i++) {
        if (matches(p->hosts[i], host, port)) return true;
    }
    return p && p->network_any;
}

const char *word_in(const char *const *words, struct str s) {
    while (*words && (strlen(*words) != s.n || strncasecmp(*words, s.p, s.n) != 0)) words++;
    return *words;
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

static int url_parse(struct str url, struct arena *a, struct destination *out, struct error *err) {
    static const char *const schemes[] = {"http", "https", "smtp", "smtps", NULL};
    struct str port = STR_NONE, *to[] = {&out->scheme, &out->url, &out->host, &port};
    const CURLUPart parts[] = {CURLUPART_SCHEME, CURLUPART_URL, CURLUPART_HOST, CURLUPART_PORT};
    const unsigned flags[] = {0, CURLU_PUNYCODE, CURLU_PUNYCODE, CURLU_DEFAULT_PORT};
    CURLU *u = curl_url();
    struct str text = arena_dup(a, url.p && !memchr(url.p, 0, url.n) ? url : STR(""));
    CURLUcode rc = curl_url_set(u, CURLUPART_URL, text.p, CURLU_DISALLOW_USER);
    for (size_t i = 0; rc == CURLUE_OK && i < 4; i++) {
        char *got = NULL;
        rc = curl_url_get(u, parts[i], &got, flags[i]);
        if (rc == CURLUE_OK) *to[i] = arena_dup(a, str_of(got));
        curl_free(got);
    }
    curl_url_cleanup(u);
    if (rc == CURLUE_USER_NOT_ALLOWED)
        return error_set(err, LOOM_E_DENIED, "the url holds credentials; send them as a secret in a header");
    if (rc == CURLUE_UNSUPPORTED_SCHEME || (out->scheme.p && !word_in(schemes, out->scheme)))
        return error_set(err, LOOM_E_DENIED, "the url's scheme must be http, https or smtp");
    if (rc != CURLUE_OK)
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "url \"%.200s\": %s", text.p, curl_url_strerror(rc));
    if (out->host.n > 1 && out->host.p[out->host.n - 1] == '.')
        out->host = arena_dup(a, (struct str){out->host.p, out->host.n - 1});
    out->port = atoi(port.p);
    return 0;
}

int destination_find(yyjson_val *network, struct str url, struct arena *a, struct destination *out, struct error *err) {
    yyjson_val *private = yyjson_obj_get(network, "allowPrivate"), *rule, *to;
    size_t i, n;
    *out = (struct destination){.reach = REACH_PUBLIC};
    int rc = url_parse(url, a, out, err);
    if (rc) return rc;
    yyjson_obj_foreach(yyjson_obj_get(network, "connectTo"), i, n, rule, to) {
        const char *target = yyjson_get_str(to), *last = strrchr(target, ':');
        if (out->connect_to || !matches(str_in(rule), out->host, out->port)) continue;
        out->connect_to = arena_json(a, "::%s%s", target, last && !strchr(last, ']') ? "" : ":").p;
    }
    if (out->connect_to || yyjson_is_true(private) || host_listed(private, out->host, out->port))
        out->reach |= REACH_PRIVATE;
    return 0;
}

/* ---- documents ---- */

int schema_check(const char *schema, yyjson_val *v, int code, const char *what, struct error *err) {
    char why[600];
    struct buf json = {0};
    char *text = str_dup(str_of(schema));
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

/* Moves a list's strings to the end of a policy's block. */
static size_t pack(yyjson_val *list, struct str *items, char **end) {
    size_t i, n;
    yyjson_val *v;
    yyjson_arr_foreach(list, i, n, v) {
        struct str s = str_in(v);
        items[i] = (struct str){memcpy(*end, s.p, s.n), s.n};
        *end += items[i].n;
    }
    return yyjson_arr_size(list);
}

int net_policy_new(yyjson_val *capabilities, struct net_policy **out, struct error *err) {
    static const char schema[] = "{'type':'object','properties':{'mail':{'type':'boolean'},"
                                 "'network':{'type':['boolean','array'],'items':" SCHEMA_HOST "},"
                                 "'secrets':{'type':'array','items':{'type':'string','minLength':1}}}}";
    yyjson_val *hosts = yyjson_obj_get(capabilities, "network"), *secrets = yyjson_obj_get(capabilities, "secrets");
    bool any = yyjson_is_true(hosts), mail = json_bool(capabilities, "mail", false);
    struct buf text = {0};
    *out = NULL;
    if (!capabilities) return 0;
    int rc = schema_check(schema, capabilities, LOOM_E_INVALID_DOCUMENT, "capabilities", err);
    size_t items = yyjson_arr_size(hosts) + yyjson_arr_size(secrets);
    if (rc || !(any || mail || items)) return rc;
    json_write(capabilities, &text); /* no shorter than all of its strings */
    struct net_policy *p = *out = mem_alloc(sizeof *p + items * sizeof(struct str) + text.n);
    *p = (struct net_policy){.network_any = any, .mail = mail, .hosts = (struct str *)(p + 1)};
    char *end = (char *)(p->hosts + items);
    p->host_count = pack(hosts, p->hosts, &end);
    p->secrets = p->hosts + p->host_count;
    p->secret_count = pack(secrets, p->secrets, &end);
    buf_free(&text);
    return 0;
}
