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
#include "net/parts.h"
#include <curl/curl.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* ---- rules: HOST (any port), HOST:PORT, *.DOMAIN ---- */

static bool rule_split(struct str rule, struct str *host, int *port) {
    size_t digits = 0;
    while (digits < rule.n && rule.p[rule.n - 1 - digits] >= '0' && rule.p[rule.n - 1 - digits] <= '9') digits++;
    *host = rule;
    *port = 0;
    if (digits > 0 && digits < 6 && digits < rule.n && rule.p[rule.n - 1 - digits] == ':') {
        host->n = rule.n - 1 - digits;
        for (size_t i = host->n + 1; i < rule.n; i++) *port = *port * 10 + (rule.p[i] - '0');
    }
    size_t from = str_starts(*host, STR("*.")) ? 2 : 0;
    bool ipv6 = host->n > 2 && host->p[0] == '[' && host->p[host->n - 1] == ']';
    const char *set = ipv6 ? "[]:.0123456789abcdefABCDEF"
                           : "-._0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for (size_t i = from; i < host->n; i++) {
        if (host->p[i] == 0 || !strchr(set, host->p[i])) return false;
    }
    return host->n > from && *port <= 65535;
}

static bool host_matches(struct str rule, struct str host, int port) {
    struct str name;
    int rule_port;
    if (!rule_split(rule, &name, &rule_port) || (rule_port && rule_port != port)) return false;
    if (!str_starts(name, STR("*."))) return name.n == host.n && !strncasecmp(name.p, host.p, name.n);
    size_t tail = name.n - 1; /* ".DOMAIN" */
    return host.n > tail && !strncasecmp(name.p + 1, host.p + host.n - tail, tail);
}

bool host_listed(struct strings rules, struct str host, int port) {
    for (size_t i = 0; i < rules.count; i++) {
        if (host_matches(rules.items[i], host, port)) return true;
    }
    return false;
}

bool net_host_allowed(const struct net_policy *p, struct str host, int port) {
    return p && (p->network_any || host_listed((struct strings){p->hosts, p->host_count}, host, port));
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

static bool within(uint32_t address, const struct range *ranges, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if ((address ^ ranges[i].prefix) >> (32 - ranges[i].bits) == 0) return true;
    }
    return false;
}

unsigned address_reach(const struct sockaddr *address) {
    bool private = true;
    uint32_t top;
    if (address->sa_family == AF_INET) {
        top = ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr);
        private = within(top, private_v4, sizeof private_v4 / sizeof *private_v4);
    } else if (address->sa_family == AF_INET6) {
        memcpy(&top, ((const struct sockaddr_in6 *)(const void *)address)->sin6_addr.s6_addr, sizeof top);
        private = within(ntohl(top), private_v6, sizeof private_v6 / sizeof *private_v6);
    }
    return private ? REACH_PRIVATE : REACH_PUBLIC;
}

/* ---- URLs ---- */

static int url_parse(struct str url, struct arena *a, struct destination *out, struct error *err) {
    static const char *const schemes[] = {"http", "https", "smtp", "smtps", NULL};
    struct str port = STR_NONE;
    const struct {
        CURLUPart part;
        unsigned flags;
        struct str *to;
    } parts[] = {{CURLUPART_URL, CURLU_PUNYCODE, &out->url},
                 {CURLUPART_SCHEME, 0, &out->scheme},
                 {CURLUPART_HOST, CURLU_PUNYCODE, &out->host},
                 {CURLUPART_PORT, CURLU_DEFAULT_PORT, &port}};
    CURLU *u = curl_url();
    CURLUcode rc = CURLUE_MALFORMED_INPUT;
    if (url.p && !memchr(url.p, 0, url.n))
        rc = curl_url_set(u, CURLUPART_URL, arena_dup(a, url).p, CURLU_DISALLOW_USER);
    for (size_t i = 0; rc == CURLUE_OK && i < sizeof parts / sizeof *parts; i++) {
        char *text = NULL;
        rc = curl_url_get(u, parts[i].part, &text, parts[i].flags);
        if (rc == CURLUE_OK) *parts[i].to = arena_dup(a, str_of(text));
        curl_free(text);
    }
    curl_url_cleanup(u);
    if (rc == CURLUE_USER_NOT_ALLOWED)
        return error_set(err, LOOM_E_DENIED,
                         "the url holds a user name or password; send credentials as a secret in a header");
    if (rc == CURLUE_UNSUPPORTED_SCHEME || (out->scheme.p && !word_find(schemes, out->scheme)))
        return error_set(err, LOOM_E_DENIED, "the url's scheme must be http, https or smtp");
    if (rc != CURLUE_OK)
        return error_set(err, LOOM_E_INVALID_ARGUMENT, "the url \"%.*s\" is not valid: %s",
                         (int)(url.n > 200 ? 200 : url.n), url.p ? url.p : "", curl_url_strerror(rc));
    if (out->host.n > 1 && out->host.p[out->host.n - 1] == '.')
        out->host = arena_dup(a, (struct str){out->host.p, out->host.n - 1});
    out->port = atoi(port.p);
    return 0;
}

int network_find(const struct network *n, struct str url, struct arena *a, struct destination *out, struct error *err) {
    *out = (struct destination){.reach = REACH_PUBLIC};
    int rc = url_parse(url, a, out, err);
    if (rc) return rc;
    for (size_t i = 0; i < n->mapped.count && !out->connect_to; i++) {
        if (host_matches(n->mapped.items[i], out->host, out->port)) out->connect_to = n->targets.items[i].p;
    }
    if (out->connect_to || n->private_any || host_listed(n->private_hosts, out->host, out->port))
        out->reach |= REACH_PRIVATE;
    return 0;
}

/* ---- what the documents say ---- */

const char *word_find(const char *const *words, struct str s) {
    for (; *words; words++) {
        if (strlen(*words) == s.n && !strncasecmp(*words, s.p, s.n)) return *words;
    }
    return NULL;
}

int fields_check(yyjson_val *obj, const char *const *known, const char *field, struct error *err) {
    if (obj && !yyjson_is_obj(obj)) return error_set(err, LOOM_E_INVALID_DOCUMENT, "%s must be an object", field);
    size_t i, n;
    yyjson_val *key, *value;
    yyjson_obj_foreach(obj, i, n, key, value) {
        if (!word_find(known, (struct str){yyjson_get_str(key), yyjson_get_len(key)}))
            return error_set(err, LOOM_E_INVALID_DOCUMENT, "%s has no field \"%.100s\"", field, yyjson_get_str(key));
    }
    return 0;
}

const char *path_in(const char *dir, struct str path, struct arena *a) {
    return (dir && path.p[0] != '/' ? arena_json(a, "%s/%j", dir, path) : arena_dup(a, path)).p;
}

int strings_read(yyjson_val *list, bool hosts, const char *field, struct arena *a, struct strings *out,
                 struct error *err) {
    *out = (struct strings){arena_alloc(a, (yyjson_arr_size(list) + 1) * sizeof(struct str)), 0};
    if (list && !yyjson_is_arr(list))
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "%s must be a list of strings", field);
    size_t i, n;
    yyjson_val *v;
    yyjson_arr_foreach(list, i, n, v) {
        struct str s = {yyjson_get_str(v), yyjson_get_len(v)}, host;
        int port;
        if (!s.p || s.n == 0) return error_set(err, LOOM_E_INVALID_DOCUMENT, "%s[%zu] must be a string", field, i);
        if (hosts && !rule_split(s, &host, &port))
            return error_set(err, LOOM_E_INVALID_DOCUMENT,
                             "%s[%zu] is \"%.100s\"; expected HOST, HOST:PORT or *.DOMAIN", field, i, s.p);
        out->items[out->count++] = arena_dup(a, s);
    }
    return 0;
}

static int connect_to_read(yyjson_val *doc, struct arena *a, struct network *out, struct error *err) {
    if (doc && !yyjson_is_obj(doc))
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "network.connectTo must be an object");
    out->mapped.items = arena_alloc(a, (yyjson_obj_size(doc) + 1) * sizeof(struct str));
    out->targets.items = arena_alloc(a, (yyjson_obj_size(doc) + 1) * sizeof(struct str));
    size_t i, n;
    yyjson_val *key, *value;
    yyjson_obj_foreach(doc, i, n, key, value) {
        struct str from = {yyjson_get_str(key), yyjson_get_len(key)},
                   to = {yyjson_get_str(value), yyjson_get_len(value)}, host;
        int port;
        if (!rule_split(from, &host, &port) || !to.p || !rule_split(to, &host, &port))
            return error_set(err, LOOM_E_INVALID_DOCUMENT,
                             "network.connectTo[\"%.100s\"]: expected \"HOST:PORT\": \"HOST:PORT\"", from.p);
        out->mapped.items[out->mapped.count++] = arena_dup(a, from);
        out->targets.items[out->targets.count++] = arena_json(a, port ? "::%j" : "::%j:", to);
    }
    return 0;
}

int network_read(yyjson_val *doc, const char *dir, struct arena *a, struct network *out, struct error *err) {
    static const char *const known[] = {"allowPrivate", "connectTo", "caFile", NULL};
    int rc = fields_check(doc, known, "network", err);
    if (rc) return rc;
    yyjson_val *private = yyjson_obj_get(doc, "allowPrivate"), *ca = yyjson_obj_get(doc, "caFile");
    out->private_any = yyjson_is_true(private);
    if (!yyjson_is_bool(private)) rc = strings_read(private, true, "network.allowPrivate", a, &out->private_hosts, err);
    if (!rc) rc = connect_to_read(yyjson_obj_get(doc, "connectTo"), a, out, err);
    if (rc || !ca) return rc;
    if (!yyjson_is_str(ca)) return error_set(err, LOOM_E_INVALID_DOCUMENT, "network.caFile must be a path");
    out->ca_file = path_in(dir, json_str(doc, "caFile"), a);
    if (access(out->ca_file, R_OK))
        return error_set(err, LOOM_E_INVALID_DOCUMENT, "network.caFile: cannot read %s: %s", out->ca_file,
                         strerror(errno));
    return 0;
}

/* ---- policies: one block, the strings behind the arrays behind the struct ---- */

static struct str *strings_pack(const struct str *from, size_t count, struct str **items, char **bytes) {
    struct str *first = *items;
    for (size_t i = 0; i < count; i++) {
        memcpy(*bytes, from[i].p, from[i].n);
        *(*items)++ = (struct str){*bytes, from[i].n};
        *bytes += from[i].n;
    }
    return first;
}

struct net_policy *net_policy_copy(const struct net_policy *p) {
    static const struct net_policy nothing;
    if (!p) p = &nothing;
    size_t bytes = 0, count = p->host_count + p->secret_count;
    for (size_t i = 0; i < p->host_count; i++) bytes += p->hosts[i].n;
    for (size_t i = 0; i < p->secret_count; i++) bytes += p->secrets[i].n;
    struct net_policy *copy = mem_alloc(sizeof *copy + count * sizeof(struct str) + bytes);
    struct str *items = (struct str *)(copy + 1);
    char *text = (char *)(items + count);
    *copy = *p;
    copy->hosts = strings_pack(p->hosts, p->host_count, &items, &text);
    copy->secrets = strings_pack(p->secrets, p->secret_count, &items, &text);
    return copy;
}

int net_policy_new(yyjson_val *capabilities, struct net_policy **out, struct error *err) {
    yyjson_val *network = yyjson_obj_get(capabilities, "network"), *mail = yyjson_obj_get(capabilities, "mail");
    struct arena a = {0};
    struct strings hosts = {0}, secrets = {0};
    int rc = 0;
    *out = NULL;
    if (mail && !yyjson_is_bool(mail))
        rc = error_set(err, LOOM_E_INVALID_DOCUMENT, "capabilities.mail must be true or false");
    if (!rc && !yyjson_is_bool(network)) rc = strings_read(network, true, "capabilities.network", &a, &hosts, err);
    if (!rc)
        rc = strings_read(yyjson_obj_get(capabilities, "secrets"), false, "capabilities.secrets", &a, &secrets, err);
    struct net_policy p = {yyjson_is_true(network), hosts.items,   hosts.count,
                           yyjson_is_true(mail),    secrets.items, secrets.count};
    if (!rc && (p.network_any || p.host_count || p.mail || p.secret_count)) *out = net_policy_copy(&p);
    arena_free(&a);
    return rc;
}
