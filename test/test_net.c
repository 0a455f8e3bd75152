/* test_net.c: the client against servers of its own on loopback; names are resolved by a resolver of its own. */
#include "net/net.h"
#include "net/parts.h"
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- resolver: *.test names have the addresses that a test wants ---- */

static const struct {
    const char *name, *address;
} names[] = {
    {"public.test", "93.184.215.14"},    {"api.test", "127.0.0.1"}, {"other.test", "127.0.0.1"},
    {"evil.test", "127.0.0.1"},          {"ten.test", "10.1.2.3"},  {"meta.test", "169.254.169.254"},
    {"mapped.test", "::ffff:127.0.0.1"}, {"six.test", "::1"},       {"nat64.test", "64:ff9b::7f00:1"},
};

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **out) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
    if (!node || !strcasestr(node, ".test")) return real(node, service, hints, out);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct addrinfo numeric = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM};
        if (!strncasecmp(node, names[i].name, strlen(names[i].name)))
            return real(names[i].address, service, &numeric, out);
    }
    return EAI_NONAME;
}

/* ---- servers: one thread accepts, one thread a connection ---- */

struct link {
    int fd;
    SSL *ssl;
    struct server *server;
};
struct server {
    int fd, port;
    void (*serve)(struct link *);
    SSL_CTX *tls;
    atomic_int links, live;
    pthread_t thread;
    pthread_mutex_t lock;
    struct buf seen; /* what came last */
};

static ssize_t take(struct link *l, void *p, size_t n) {
    return l->ssl ? SSL_read(l->ssl, p, (int)n) : recv(l->fd, p, n, 0);
}

static void give(struct link *l, const void *p, size_t n) {
    if (l->ssl)
        SSL_write(l->ssl, p, (int)n);
    else
        for (ssize_t sent; n > 0 && (sent = send(l->fd, p, n, MSG_NOSIGNAL)) > 0; n -= (size_t)sent)
            p = (const char *)p + sent;
}

static void *link_thread(void *ctx) {
    struct link *l = ctx;
    if (l->server->tls) {
        l->ssl = SSL_new(l->server->tls);
        SSL_set_fd(l->ssl, l->fd);
    }
    if (!l->ssl || SSL_accept(l->ssl) == 1) l->server->serve(l);
    SSL_free(l->ssl);
    close(l->fd);
    l->server->live--;
    free(l);
    return NULL;
}

static void *accept_thread(void *ctx) {
    struct server *s = ctx;
    for (int fd; (fd = accept(s->fd, NULL, NULL)) >= 0;) {
        pthread_t thread;
        pthread_attr_t attr;
        struct link *l = calloc(1, sizeof *l);
        *l = (struct link){fd, NULL, s};
        s->links++;
        s->live++;
        pthread_attr_init(&attr);
        pthread_attr_setstacksize(&attr, 256 * 1024);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        assert_int_equal(pthread_create(&thread, &attr, link_thread, l), 0);
        pthread_attr_destroy(&attr);
    }
    return NULL;
}

static void server_open(struct server *s, void (*serve)(struct link *), SSL_CTX *tls) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof at;
    memset(s, 0, sizeof *s);
    s->serve = serve;
    s->tls = tls;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(s->fd, 4096), 0);
    getsockname(s->fd, (struct sockaddr *)&at, &n);
    s->port = ntohs(at.sin_port);
    pthread_mutex_init(&s->lock, NULL);
    pthread_create(&s->thread, NULL, accept_thread, s);
}

static void server_close(struct server *s) {
    shutdown(s->fd, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->fd);
    for (int i = 0; i < 2000 && s->live > 0; i++) usleep(1000); /* clients have closed theirs by now */
    buf_free(&s->seen);
}

static void seen_set(struct server *s, struct str text) {
    pthread_mutex_lock(&s->lock);
    buf_clear(&s->seen);
    buf_str(&s->seen, text);
    buf_char(&s->seen, 0);
    pthread_mutex_unlock(&s->lock);
}

/* ---- HTTP: answers by path ---- */

static struct server web, web2;

static void respond(struct link *l, const char *head, const void *body, size_t n) {
    char text[4096];
    int len = snprintf(text, sizeof text, "HTTP/1.1 %s\r\nContent-Length: %zu\r\n\r\n", head, n);
    give(l, text, (size_t)len);
    give(l, body, n);
}

static bool answer(struct link *l, const char *path, const char *request) {
    char head[2048];
    int code, port;
    if (!strcmp(path, "/json")) {
        respond(l, "200 OK\r\nContent-Type: application/json; charset=utf-8\r\nX-Two: a\r\nx-two: b",
                "{ \"a\" : [1, 2.5, \"\\u0041\"] }", 28);
    } else if (!strcmp(path, "/broken-json")) {
        respond(l, "200 OK\r\nContent-Type: application/json", "{\"a\":1,\"a\":2}", 13);
    } else if (!strcmp(path, "/problem")) {
        respond(l, "404 Not Found\r\nContent-Type: application/problem+json", "{\"code\":\"x\"}", 12);
    } else if (!strcmp(path, "/bytes")) {
        respond(l, "200 OK\r\nX-Latin: caf\xe9", "\xff\x00\xfe", 3);
    } else if (!strcmp(path, "/empty")) {
        respond(l, "204 No Content", "", 0);
    } else if (!strcmp(path, "/big")) {
        char *big = calloc(1, 3 << 20);
        respond(l, "200 OK", big, 3 << 20);
        free(big);
    } else if (!strcmp(path, "/close")) {
        return false;
    } else if (!strcmp(path, "/slow")) {
        char c;
        take(l, &c, 1); /* until the client goes */
        return false;
    } else if (!strcmp(path, "/leak")) { /* the secret's value in every form of place */
        const char *body = "{\"k\\\"ey-\\u0031/3\":[\"x k\\\"ey-1/3 y\"],\"n\":12345678}";
        respond(l, "200 OK\r\nContent-Type: application/json\r\nX-Leak: k\"ey-1/3", body, strlen(body));
    } else if (!strcmp(path, "/leak-bytes")) {
        respond(l, "200 OK", "\xff k\"ey-1/3", 10);
    } else if (!strcmp(path, "/loop")) {
        respond(l, "302 Found\r\nLocation: /loop", "", 0);
    } else if (sscanf(path, "/other/%d/%d", &code, &port) == 2) {
        snprintf(head, sizeof head, "%d R\r\nLocation: http://other.test:%d/echo", code, port);
        respond(l, head, "moved", 5);
    } else if (sscanf(path, "/redirect/%d", &code) == 1) {
        snprintf(head, sizeof head, "%d R\r\nLocation: /echo", code);
        respond(l, head, "moved", 5);
    } else if (!strncmp(path, "/to/", 4)) {
        snprintf(head, sizeof head, "302 R\r\nLocation: %s", path + 4);
        respond(l, head, "", 0);
    } else {
        respond(l, "200 OK\r\nContent-Type: text/plain", request, strncmp(request, "HEAD", 4) ? strlen(request) : 0);
    }
    return true;
}

static void serve_http(struct link *l) {
    struct buf in = {0};
    for (bool go = true; go;) {
        char chunk[65536], *end = NULL, path[1024] = "", *length;
        size_t body = 0;
        for (;;) {
            buf_char(&in, 0);
            in.n--;
            end = strstr(in.p, "\r\n\r\n");
            length = strcasestr(in.p, "\r\ncontent-length:");
            body = length ? (size_t)atoi(length + 17) : 0;
            if (end && in.n >= (size_t)(end + 4 - in.p) + body) break;
            ssize_t n = take(l, chunk, sizeof chunk);
            if (n <= 0) break;
            buf_add(&in, chunk, (size_t)n);
        }
        if (!end) break;
        seen_set(l->server, buf_view(&in));
        if (sscanf(in.p, "%*s %1000s", path) != 1) break;
        go = answer(l, path, in.p);
        buf_clear(&in);
    }
    buf_free(&in);
}

/* ---- SMTP ---- */

static void serve_smtp(struct link *l) {
    struct buf all = {0};
    char line[4096];
    size_t n = 0;
    bool data = false;
    give(l, "220 loom.test\r\n", 15);
    for (char c; take(l, &c, 1) == 1;) {
        if (n < sizeof line - 1) line[n++] = c;
        if (c != '\n') continue;
        line[n] = 0;
        buf_add(&all, line, n);
        n = 0;
        const char *reply = "250 fine\r\n";
        if (data && strcmp(line, ".\r\n") != 0) continue;
        if (data)
            data = false, seen_set(l->server, buf_view(&all));
        else if (!strncmp(line, "EHLO", 4))
            reply = "250-loom.test\r\n250 8BITMIME\r\n";
        else if (strstr(line, "RCPT TO:<gone@"))
            reply = "550 no such box\r\n";
        else if (strstr(line, "RCPT TO:<later@"))
            reply = "451 try later\r\n";
        else if (!strcmp(line, "DATA\r\n"))
            data = true, reply = "354 go\r\n";
        else if (!strcmp(line, "QUIT\r\n"))
            break;
        give(l, reply, strlen(reply));
    }
    buf_free(&all);
}

/* ---- asking ---- */

struct result {
    bool ok, came;
    struct buf json;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};
static struct result last; /* of the latest ask() */

static void came(void *ctx, bool ok, struct str json) {
    struct result *r = ctx;
    pthread_mutex_lock(&r->lock);
    assert_false(r->came);
    r->ok = ok;
    r->came = true;
    buf_clear(&r->json);
    buf_str(&r->json, json);
    buf_char(&r->json, 0);
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static const char *await_last(void) {
    pthread_mutex_lock(&last.lock);
    while (!last.came) pthread_cond_wait(&last.changed, &last.lock);
    last.came = false;
    pthread_mutex_unlock(&last.lock);
    yyjson_doc *doc = json_parse((struct str){last.json.p, last.json.n - 1}, NULL);
    assert_non_null(doc); /* every answer is JSON that Loom accepts */
    yyjson_doc_free(doc);
    return last.json.p;
}

static const char *ask_with(struct net_client *c, yyjson_val *p, struct net_request r, const char *headers) {
    yyjson_doc *doc = headers ? json_parse(str_of(headers), NULL) : NULL;
    r.policy = p;
    r.headers = yyjson_doc_get_root(doc);
    r.ctx = &last;
    r.done = came;
    net_send(c, &r);
    yyjson_doc_free(doc);
    return await_last();
}

static const char *ask(struct net_client *c, yyjson_val *p, const char *url) {
    return ask_with(c, p, (struct net_request){.url = str_of(url)}, NULL);
}

static struct arena policies; /* what they refer to */

static yyjson_val *policy(const char *json) {
    struct error err = {0};
    yyjson_val *p = NULL;
    assert_int_equal(net_policy(json_in(&policies, str_of(json)), &p, &err), 0);
    return p;
}

static struct net_client *client_try(const char *json, struct error *err) {
    yyjson_doc *doc = json_parse(str_of(json), err);
    assert_non_null(doc);
    struct net_client *c = net_client_new(env_system(), yyjson_doc_get_root(doc), "/nowhere", err);
    yyjson_doc_free(doc);
    return c;
}

static struct net_client *client(const char *json) {
    struct error err = {0};
    struct net_client *c = client_try(json, &err);
    if (!c) fail_msg("%s", err.message);
    return c;
}

static const char *at(const struct server *s, const char *host, const char *path) {
    static char url[2048];
    snprintf(url, sizeof url, "http://%s:%d%s", host, s->port, path);
    return url;
}

static void holds(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("%s\nlacks %s", text, part);
}
static void lacks(const char *text, const char *part) {
    if (strstr(text, part)) fail_msg("%s\nholds %s", text, part);
}

/* ---- rules and addresses ---- */

/* Goal: a policy's rule allows exactly the hosts and ports it names. */
static void rules(void **state) {
    (void)state;
    static const struct {
        const char *rule, *host;
        int port;
        bool allowed;
    } cases[] = {
        {"api.test", "api.test", 443, true},
        {"api.test", "API.Test", 80, true},
        {"api.test", "xapi.test", 443, false},
        {"api.test", "api.test.evil", 443, false},
        {"api.test:8080", "api.test", 8080, true},
        {"api.test:8080", "api.test", 443, false},
        {"*.test", "a.test", 1, true},
        {"*.test", "a.b.test", 1, true},
        {"*.test", "test", 1, false},
        {"*.test", "atest", 1, false},
        {"*.test:80", "a.test", 81, false},
        {"[::1]:80", "[::1]", 80, true},
        {"[::1]:80", "[::1]", 81, false},
        {"127.0.0.1", "127.0.0.1", 9, true},
        {"127.0.0.1", "127.0.0.11", 9, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[100];
        snprintf(json, sizeof json, "{\"network\":[\"%s\"]}", cases[i].rule);
        yyjson_val *p = policy(json);
        snprintf(json, sizeof json, "%s:%d", cases[i].host, cases[i].port);
        struct destination to = {.host = str_of(cases[i].host), .place = str_of(json)};
        if (host_listed(yyjson_obj_get(p, "network"), &to) != cases[i].allowed)
            fail_msg("%s for %s:%d", cases[i].rule, cases[i].host, cases[i].port);
    }
    yyjson_val *any = policy("{\"network\":true}"), *none = policy("{\"network\":false,\"mail\":false,\"secrets\":[]}");
    assert_true(host_listed(yyjson_obj_get(any, "network"), &(struct destination){.host = STR("whatever")}));
    assert_null(none);
}

/* Goal: documents with a wrong field are refused by its name. */
static void documents(void **state) {
    (void)state;
    static const char *const capabilities[][2] = {
        {"{\"network\":\"api.test\"}", "capabilities: /network"},
        {"{\"network\":[1]}", "capabilities: /network/0"},
        {"{\"network\":[\"http://a\"]}", "capabilities: /network/0"},
        {"{\"network\":[\"a:b\"]}", "capabilities: /network/0"},
        {"{\"network\":[\"a.*.b\"]}", "capabilities: /network/0"},
        {"{\"network\":[\"*.\"]}", "capabilities: /network/0"},
        {"{\"network\":[\"u@h\"]}", "capabilities: /network/0"},
        {"{\"mail\":1}", "capabilities: /mail"},
        {"{\"netwrk\":true}", "'netwrk' was unexpected"},
        {"{\"secrets\":\"A\"}", "capabilities: /secrets"},
    };
    static const char *const configs[][2] = {
        {"{\"network\":{\"allowprivat\":true}}", "allowprivat"},
        {"{\"network\":{\"allowPrivate\":\"yes\"}}", "loom.json: /network/allowPrivate"},
        {"{\"network\":{\"connectTo\":{\"a b\":\"c:1\"}}}", "loom.json: /network/connectTo"},
        {"{\"network\":{\"connectTo\":[]}}", "connectTo"},
        {"{\"network\":{\"caFile\":\"none.pem\"}}", "/nowhere/none.pem"},
        {"{\"mail\":{\"server\":\"http://a\"}}", "loom.json: /mail/server"},
        {"{\"mail\":{\"server\":\"smtp://127.0.0.!\"}}", "loom.json: /mail/server"},
        {"{\"mail\":{\"from\":\"a@b.example\"}}", "loom.json: /mail"},
        {"{\"secrets\":{\"A\":{\"hosts\":[\"h\"]}}}", "loom.json: /secrets/A"},
        {"{\"secrets\":{\"A\":{\"env\":\"HOME\"}}}", "\"hosts\" is a required"},
        {"{\"secrets\":{\"A\":{\"env\":\"LOOM_TEST_UNSET\",\"hosts\":[\"h\"]}}}",
         "environment variable LOOM_TEST_UNSET"},
        {"{\"secrets\":{\"A\":{\"env\":\"LOOM_TEST_SHORT\",\"hosts\":[\"h\"]}}}", "6 bytes or more"},
        {"{\"secrets\":{\"A\":{\"file\":\"gone\",\"hosts\":[\"h\"]}}}", "/nowhere/gone"},
        {"{\"secrets\":{\"A}}\":{\"env\":\"HOME\",\"hosts\":[\"h\"]}}}", "A}}"},
    };
    struct error err;
    setenv("LOOM_TEST_SHORT", "null", 1);
    for (size_t i = 0; i < sizeof capabilities / sizeof *capabilities; i++) {
        yyjson_doc *doc = json_parse(str_of(capabilities[i][0]), NULL);
        yyjson_val *p;
        assert_int_equal(net_policy(yyjson_doc_get_root(doc), &p, &err), LOOM_E_INVALID_DOCUMENT);
        holds(err.message, capabilities[i][1]);
        assert_null(p);
        yyjson_doc_free(doc);
    }
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
        assert_null(client_try(configs[i][0], &err));
        assert_string_equal(err.code, "invalid_document");
        holds(err.message, configs[i][1]);
    }
}

/* Goal: every range that is not globally reachable counts as private, its neighbours as public. */
static void addresses(void **state) {
    (void)state;
    static const char *const private[] = {
        "0.0.0.0",          "0.1.2.3",      "10.0.0.1",    "10.255.255.255", "100.64.0.1",       "100.100.100.200",
        "100.127.255.255",  "127.0.0.1",    "127.255.1.1", "168.63.129.16",  "169.254.169.254",  "172.16.0.1",
        "172.31.255.255",   "192.0.0.192",  "192.0.2.1",   "192.88.99.1",    "192.168.1.1",      "198.18.0.1",
        "198.19.255.255",   "198.51.100.7", "203.0.113.7", "224.0.0.1",      "239.1.1.1",        "240.0.0.1",
        "255.255.255.255",  "::",           "::1",         "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::127.0.0.1",
        "64:ff9b::808:808", "64:ff9b:1::1", "100::1",      "2001::1",        "2001:db8::1",      "2002:7f00:1::1",
        "3fff::1",          "5f00::1",      "fc00::1",     "fd00:ec2::254",  "fe80::1",          "fec0::1",
        "ff02::1",
    };
    static const char *const public[] = {"1.1.1.1",         "9.255.255.255",   "11.0.0.0",        "100.63.255.255",
                                         "100.128.0.0",     "126.255.255.255", "128.0.0.0",       "172.15.1.1",
                                         "172.32.0.0",      "192.0.1.1",       "192.167.255.255", "192.169.0.0",
                                         "198.17.255.255",  "198.20.0.0",      "223.255.1.1",     "168.63.129.17",
                                         "2606:4700::1111", "2001:4860::8888", "2a00:1450::1",    "2003::1"};
    for (size_t i = 0; i < sizeof private / sizeof *private + sizeof public / sizeof *public; i++) {
        bool is_private = i < sizeof private / sizeof *private;
        const char *text = is_private ? private[i] : public[i - sizeof private / sizeof *private];
        struct sockaddr_in v4 = {.sin_family = AF_INET};
        struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
        bool four = inet_pton(AF_INET, text, &v4.sin_addr) == 1;
        if (!four) assert_int_equal(inet_pton(AF_INET6, text, &v6.sin6_addr), 1);
        unsigned reach = address_reach(four ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6);
        if (reach != (is_private ? REACH_PRIVATE : REACH_PUBLIC)) fail_msg("%s", text);
    }
}

/* Goal: no spelling of a loopback or private address gets past network: true. */
static void spellings(void **state) {
    (void)state;
    struct net_client *c = client("{}");
    yyjson_val *any = policy("{\"network\":true}");
    static const char *const hosts[] = {
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "localhost",
        "LOCALHOST.",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "127%2e0%2e0%2e1",
        "%3127.1",
        "api.test",
        "ten.test",
        "meta.test",
        "mapped.test",
        "six.test",
        "nat64.test",
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "\xe2\x91\xa0\xe2\x91\xa1\xe2\x91\xa6.0.0.1",
        "\xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.0.0.1",
    };
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) {
        int before = web.links;
        const char *json = ask(c, any, at(&web, hosts[i], "/json"));
        if (last.ok || web.links != before) fail_msg("%s got through: %s", hosts[i], json);
        if (!strstr(json, "\"denied\"") && !strstr(json, "\"invalid_argument\"") && !strstr(json, "\"network\""))
            fail_msg("%s: %s", hosts[i], json);
    }
    net_client_free(c);
}

/* Goal: what is odd about a URL is refused, and what is allowed is compared with the host that curl would go to. */
static void urls(void **state) {
    (void)state;
    struct net_client *c = client("{\"network\":{\"allowPrivate\":true}}");
    yyjson_val *p = policy("{\"network\":[\"api.test\"]}");
    static const char *const cases[][2] = {
        {"http://user:pw@api.test/", "denied"},
        {"http://api.test@evil.test/", "denied"},
        {"http://api.test:80@evil.test/", "denied"},
        {"http://evil.test/@api.test", "denied"},
        {"http://evil.test#@api.test/", "denied"},
        {"http://evil.test?api.test", "denied"},
        {"http://evil.test\\\\@api.test/", "denied"},
        {"ftp://api.test/", "denied"},
        {"file:///etc/passwd", "denied"},
        {"gopher://api.test/", "denied"},
        {"dict://api.test:1/x", "denied"},
        {"smtp://api.test/", "denied"},
        {"smtps://mail", "denied"},
        {"api.test/", "invalid_argument"},
        {"", "invalid_argument"},
        {"http://", "invalid_argument"},
        {"http://api.test:99999/", "invalid_argument"},
        {"http://api.test:0x50/", "invalid_argument"},
        {"http://api.test/\r\nX: y", "invalid_argument"},
        {"http://a b/", "invalid_argument"},
        {"http://[::1/", "invalid_argument"},
        {"http://api.test%00.evil.test/", "invalid_argument"},
        {"http://api.test%2f.evil.test/", "invalid_argument"},
        {"http://api%25%2etest/", "invalid_argument"}, /* whose host curl would decode once more */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *json = ask(c, p, cases[i][0]);
        if (last.ok || !strstr(json, cases[i][1])) fail_msg("%s: %s", cases[i][0], json);
    }
    holds(ask_with(c, p, (struct net_request){.url = {"http://api.test\0x/", 18}}, NULL), "invalid_argument");
    holds(ask(c, NULL, at(&web, "api.test", "/json")), "denied");
    ask(c, p, at(&web, "API.test.", "/json"));
    assert_true(last.ok);
    net_client_free(c);
}

/* Goal: allowPrivate opens exactly the hosts it lists; connectTo leads elsewhere and keeps the name. */
static void private_places(void **state) {
    (void)state;
    char json[200];
    yyjson_val *any = policy("{\"network\":true}");
    snprintf(json, sizeof json,
             "{\"network\":{\"allowPrivate\":[\"api.test:%d\"],\"connectTo\":{\"public.example:80\":\"127.0.0.1:%d\","
             "\"any.example\":\"127.0.0.1\"}}}",
             web.port, web.port);
    struct net_client *c = client(json);
    ask(c, any, at(&web, "api.test", "/json"));
    assert_true(last.ok);
    holds(ask(c, any, at(&web2, "api.test", "/json")), "denied");
    holds(ask(c, any, at(&web, "other.test", "/json")), "other.test has the private address 127.0.0.1");
    holds(ask(c, any, "http://public.example/echo"), "Host: public.example\\r\\n");
    holds(ask(c, any, at(&web, "any.example", "/echo")), "Host: any.example:");
    net_client_free(c);
}

/* ---- requests and answers ---- */

static struct net_client *open_client;
static yyjson_val *api;

/* Goal: answers become JSON whatever the bytes are. */
static void answers(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"/json", "\"body\":{\"a\":[1,2.5,\"A\"]}}"},
        {"/json", "\"x-two\":\"a, b\""},
        {"/json", "\"content-type\":\"application/json; charset=utf-8\""},
        {"/json", "{\"status\":200,"},
        {"/broken-json", "\"body\":\"{\\\"a\\\":1,\\\"a\\\":2}\"}"},
        {"/problem", "{\"status\":404,"},
        {"/problem", "\"body\":{\"code\":\"x\"}}"},
        {"/bytes", "\"body\":\"/wD+\",\"bodyEncoding\":\"base64\"}"},
        {"/bytes", "\"x-latin\":\"caf?\""},
        {"/empty", "{\"status\":204,"},
        {"/empty", "\"body\":\"\"}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        holds(ask(open_client, api, at(&web, "api.test", cases[i][0])), cases[i][1]);
        assert_true(last.ok);
    }
}

/* Goal: method, headers and body go out as asked, the engine's own headers unless the guest gave them. */
static void requests(void **state) {
    (void)state;
    struct net_request r = {.method = STR("post"),
                            .url = str_of(at(&web, "api.test", "/echo")),
                            .body = STR("{\"a\":1}"),
                            .body_json = true};
    r.idempotency_key = STR("key-1");
    r.traceparent = STR("00-1-2-01");
    const char *json = ask_with(open_client, api, r, "{\"X-A\":\"b\",\"X-Empty\":\"\"}");
    static const char *const parts[] = {"POST /echo HTTP/1.1\\r\\n",
                                        "Content-Type: application/json\\r\\n",
                                        "Idempotency-Key: key-1\\r\\n",
                                        "traceparent: 00-1-2-01\\r\\n",
                                        "X-A: b\\r\\n",
                                        "X-Empty:\\r\\n",
                                        "User-Agent: loom",
                                        "Content-Length: 7\\r\\n",
                                        "\\r\\n\\r\\n{\\\"a\\\":1}"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) holds(json, parts[i]);
    lacks(json, "Expect");
    json = ask_with(open_client, api, r, "{\"Idempotency-Key\":\"mine\",\"Content-Type\":\"text/x\"}");
    holds(json, "Idempotency-Key: mine");
    holds(json, "Content-Type: text/x");
    lacks(json, "key-1");
    lacks(json, "application/json");
    r.body_json = false;
    lacks(ask_with(open_client, api, r, NULL), "Content-Type:");
    r.body = STR_NONE;
    holds(ask_with(open_client, api, r, NULL), "Content-Length: 0\\r\\n");
    r.method = STR("DELETE");
    holds(ask_with(open_client, api, r, NULL), "DELETE /echo");
    r.method = STR("HEAD");
    holds(ask_with(open_client, api, r, NULL), "\"body\":\"\"");
    r.method = STR("CONNECT");
    holds(ask_with(open_client, api, r, NULL), "invalid_argument");
    r.method = STR("GET /x HTTP/1.1\r\nA: b\r\n\r\n");
    holds(ask_with(open_client, api, r, NULL), "invalid_argument");
}

/* Goal: a guest cannot forge what the client itself says, nor smuggle lines. */
static void bad_headers(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"{\"Host\":\"evil.test\"}", "denied"},
        {"{\"transfer-encoding\":\"chunked\"}", "denied"},
        {"{\"Content-Length\":\"3\"}", "denied"},
        {"{\"Proxy-Authorization\":\"x\"}", "denied"},
        {"{\"X\":\"a\\r\\nY: b\"}", "invalid_argument"},
        {"{\"X\\r\\nY\":\"b\"}", "invalid_argument"},
        {"{\"X:\":\"b\"}", "invalid_argument"},
        {"{\"\":\"b\"}", "invalid_argument"},
        {"{\"X\":\"a\\u0000b\"}", "invalid_argument"},
        {"{\"X\":1}", "invalid_argument"},
        {"[]", "invalid_argument"},
    };
    int before = web.links;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        holds(
            ask_with(open_client, api, (struct net_request){.url = str_of(at(&web, "api.test", "/echo"))}, cases[i][0]),
            cases[i][1]);
        assert_false(last.ok);
    }
    assert_int_equal(web.links, before);
}

/* Goal: connections are used again; the environment's proxies are not. */
static void keep_alive(void **state) {
    (void)state;
    setenv("http_proxy", "http://127.0.0.1:1", 1);
    int before = web2.links;
    struct net_client *c = client("{\"network\":{\"allowPrivate\":true}}");
    for (int i = 0; i < 20; i++) {
        ask(c, api, at(&web2, "api.test", "/json"));
        assert_true(last.ok);
    }
    assert_int_equal(web2.links - before, 1);
    net_client_free(c);
    unsetenv("http_proxy");
}

/* Goal: each way to fail has its code and says whether to try again. */
static void failures(void **state) {
    (void)state;
    struct net_request slow = {.url = str_of(at(&web, "api.test", "/slow")), .timeout_ms = 50};
    const char *json = ask_with(open_client, api, slow, NULL);
    holds(json, "\"code\":\"timeout\"");
    holds(json, "\"retryable\":true");
    json = ask(open_client, api, at(&web, "api.test", "/close"));
    holds(json, "\"code\":\"network\"");
    holds(json, "\"retryable\":true");
    json = ask(open_client, api, at(&web, "api.test", "/big"));
    holds(json, "\"code\":\"too_large\"");
    holds(json, "\"retryable\":false");
    json = ask(open_client, api, "http://api.test:1/");
    holds(json, "\"code\":\"network\"");
    holds(json, "api.test:1");
    json = ask(open_client, api, "http://unknown.test/");
    holds(json, "\"code\":\"network\"");
    holds(json, "\"retryable\":true");
}

/* Goal: each redirect is checked anew, follows the rules of HTTP, and ends after five. */
static void redirects(void **state) {
    (void)state;
    char path[200];
    static const struct {
        int status;
        const char *method, *then;
        bool body;
    } cases[] = {{301, "POST", "GET", false}, {302, "POST", "GET", false}, {303, "PUT", "GET", false},
                 {307, "POST", "POST", true}, {308, "PUT", "PUT", true},   {301, "PUT", "PUT", true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(path, sizeof path, "/redirect/%d", cases[i].status);
        struct net_request r = {.method = str_of(cases[i].method),
                                .url = str_of(at(&web, "api.test", path)),
                                .body = STR("BODY"),
                                .body_json = true};
        const char *json = ask_with(open_client, api, r, "{\"authorization\":\"Bearer x\"}");
        snprintf(path, sizeof path, "\"body\":\"%s /echo", cases[i].then);
        holds(json, path);
        holds(json, "Bearer x");
        (cases[i].body ? holds : lacks)(json, "BODY");
        (cases[i].body ? holds : lacks)(json, "application/json");
    }
    int before = web2.links;
    snprintf(path, sizeof path, "/other/302/%d", web2.port);
    const char *credentials = "{\"authorization\":\"Bearer x\",\"Cookie\":\"y\",\"X-API-Key\":\"z\",\"X-Plain\":\"p\"}";
    holds(ask_with(open_client, api, (struct net_request){.url = str_of(at(&web, "api.test", path))}, credentials),
          "other.test");
    assert_int_equal(web2.links, before);
    yyjson_val *both = policy("{\"network\":[\"api.test\",\"other.test\"]}");
    const char *json = ask_with(open_client, both, (struct net_request){.url = str_of(at(&web, "api.test", path))},
                                credentials);
    holds(json, "Host: other.test");
    holds(json, "X-Plain: p");
    lacks(json, "Bearer");
    lacks(json, "ookie");
    lacks(json, "API-Key");
    holds(ask(open_client, both, at(&web, "api.test", "/loop")), "redirects more than 5 times");
    holds(ask(open_client, both, at(&web, "api.test", "/to/file:///etc/passwd")), "denied");
    holds(ask(open_client, both, at(&web, "api.test", "/to/smtp://mail")), "denied");
    holds(ask(open_client, both, at(&web, "api.test", "/to/http://api.test@evil.test/")), "denied");
    yyjson_val *any = policy("{\"network\":true}");
    snprintf(path, sizeof path, "{\"network\":{\"allowPrivate\":[\"api.test\"]}}");
    struct net_client *c = client(path);
    snprintf(path, sizeof path, "/to/http://127.1:%d/json", web2.port);
    holds(ask(c, any, at(&web, "api.test", path)), "denied");
    assert_int_equal(web2.links - before, 1);
    net_client_free(c);
}

/* ---- secrets ---- */

static struct net_client *secret_client(const char *network) {
    char json[1000];
    setenv("LOOM_TEST_KEY", "k\"ey-1/3", 1);
    setenv("LOOM_TEST_PIN", "12345678", 1);
    snprintf(json, sizeof json,
             "{\"network\":%s,\"secrets\":{\"KEY\":{\"env\":\"LOOM_TEST_KEY\",\"hosts\":[\"api.test:%d\"]},"
             "\"PIN\":{\"env\":\"LOOM_TEST_PIN\",\"hosts\":[\"*.test\"],\"headers\":[\"X-Pin\"]}}}",
             network, web.port);
    return client(json);
}

/* Goal: a value goes only where loom.json and the definition say, and no message tells it. */
static void secret_places(void **state) {
    (void)state;
    struct net_client *c = secret_client("{\"allowPrivate\":true}");
    yyjson_val *p = policy("{\"network\":true,\"secrets\":[\"KEY\",\"PIN\",\"GONE\"]}"),
               *poor = policy("{\"network\":true}");
    struct net_request here = {.url = str_of(strdup(at(&web, "api.test", "/json")))},
                       there = {.url = str_of(strdup(at(&web, "other.test", "/json")))};
    ask_with(c, p, here, "{\"Authorization\":\"Bearer {{secret:KEY}}!\",\"x-pin\":\"{{secret:PIN}}{{secret:PIN}}\"}");
    assert_true(last.ok);
    holds(web.seen.p, "Authorization: Bearer k\"ey-1/3!\r\n");
    holds(web.seen.p, "x-pin: 1234567812345678\r\n");
    static const struct {
        const char *headers, *says;
        bool there, poor;
    } cases[] = {
        {"{\"Authorization\":\"{{secret:KEY}}\"}", "secret KEY may not go to other.test", true, false},
        {"{\"Authorization\":\"{{secret:KEY}}\"}", "secret KEY", false, true},
        {"{\"X-Other\":\"{{secret:KEY}}\"}", "not in its headers", false, false},
        {"{\"Authorization\":\"{{secret:PIN}}\"}", "secret PIN", false, false},
        {"{\"Authorization\":\"{{secret:GONE}}\"}", "secret GONE", false, false},
        {"{\"Authorization\":\"{{secret:NONE}}\"}", "secret NONE", false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *json = ask_with(c, cases[i].poor ? poor : p, cases[i].there ? there : here, cases[i].headers);
        holds(json, i == 4 ? "\"not_found\"" : "\"denied\"");
        holds(json, cases[i].says);
        lacks(json, "ey-1");
        lacks(json, "12345678");
    }
    here.body = STR("x {{secret:KEY}}");
    holds(ask_with(c, p, here, NULL), "denied");
    holds(ask(c, p, at(&web, "api.test", "/{{secret:KEY}}")), "denied");
    yyjson_val *narrow = policy("{\"network\":[\"api.test\"],\"secrets\":[\"KEY\"]}");
    struct buf out = {0};
    struct error err;
    assert_int_equal(net_secret_handle(c, p, STR("KEY"), &out, &err), 0);
    assert_true(str_eq(buf_view(&out), STR("{{secret:KEY}}")));
    assert_int_equal(net_secret_handle(c, p, STR("GONE"), &out, &err), LOOM_E_NOT_FOUND);
    assert_int_equal(net_secret_handle(c, narrow, STR("PIN"), &out, &err), LOOM_E_DENIED);
    buf_free(&out);
    free((char *)(uintptr_t)here.url.p);
    free((char *)(uintptr_t)there.url.p);
    net_client_free(c);
}

/* Goal: over plain http a value goes only to a place that loom.json made reachable, never to a public host. */
static void secret_plain_http(void **state) {
    (void)state;
    yyjson_val *p = policy("{\"network\":true,\"secrets\":[\"PIN\"]}");
    struct net_client *c = secret_client("{}"), *open = secret_client("{\"allowPrivate\":true}");
    holds(ask_with(c, p, (struct net_request){.url = STR("http://public.test/")}, "{\"X-Pin\":\"{{secret:PIN}}\"}"),
          "only over https");
    /* the host turns out to be public although private ones are allowed: refused before a connection is made */
    const char *json = ask_with(open, p, (struct net_request){.url = STR("http://public.test/")},
                                "{\"X-Pin\":\"{{secret:PIN}}\"}");
    holds(json, "public.test (93.184.215.14) only over https");
    net_client_free(open);
    net_client_free(c);
}

/* Goal: a value that the remote side echoes never comes back. */
static void secret_echo(void **state) {
    (void)state;
    struct net_client *c = secret_client("{\"allowPrivate\":true}");
    yyjson_val *p = policy("{\"network\":[\"api.test\"],\"secrets\":[\"KEY\",\"PIN\"]}"),
               *key = policy("{\"network\":[\"api.test\"],\"secrets\":[\"KEY\"]}");
    struct net_request r = {.url = str_of(at(&web, "api.test", "/echo"))};
    holds(ask_with(c, p, r, "{\"Authorization\":\"Bearer {{secret:KEY}}\"}"),
          "Authorization: Bearer {{secret:KEY}}\\r\\n");
    const char *json = ask(c, key, at(&web, "api.test", "/leak"));
    holds(json, "\"x-leak\":\"{{secret:KEY}}\"");
    holds(json, "\"body\":{\"{{secret:KEY}}\":[\"x {{secret:KEY}} y\"],\"n\":12345678}}");
    json = ask(c, p, at(&web, "api.test", "/leak"));
    holds(json, "\\\"n\\\":{{secret:PIN}}}\""); /* a number cannot hold a handle: the body becomes a string */
    lacks(json, "12345678");
    holds(ask(c, p, at(&web, "api.test", "/leak-bytes")), "\"body\":\"/yB7e3NlY3JldDpLRVl9fQ==\"");
    json = ask(c, p, at(&web, "api.test", "/to/http://12345678.evil.test/"));
    holds(json, "denied");
    lacks(json, "12345678");
    net_client_free(c);
}

/* ---- TLS ---- */

static SSL_CTX *tls_new(const char *host, char *ca_path) {
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    X509_NAME *name = X509_get_subject_name(cert);
    char san[100];
    snprintf(san, sizeof san, "DNS:%s", host);
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"loom test", -1, -1, 0);
    X509_set_issuer_name(cert, name);
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, san);
    X509_add_ext(cert, ext, -1);
    X509_EXTENSION_free(ext);
    X509_sign(cert, key, EVP_sha256());
    int fd = mkstemp(ca_path);
    FILE *f = fdopen(fd, "w");
    PEM_write_X509(f, cert);
    fclose(f);
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    SSL_CTX_use_certificate(ctx, cert);
    SSL_CTX_use_PrivateKey(ctx, key);
    X509_free(cert);
    EVP_PKEY_free(key);
    return ctx;
}

/* Goal: connectTo keeps the TLS name; only the project's CA is trusted; a distrusted server is no reason to try again. */
static void tls(void **state) {
    (void)state;
    char ca[] = "/tmp/loom-test-ca-XXXXXX", json[600];
    struct server s;
    SSL_CTX *ctx = tls_new("api.example.com", ca);
    server_open(&s, serve_http, ctx);
    setenv("LOOM_TEST_KEY", "value-1", 1);
    yyjson_val *p = policy("{\"network\":true,\"secrets\":[\"KEY\"]}");
    const char *format = "{\"network\":{%s\"connectTo\":{\"api.example.com:443\":\"127.0.0.1:%d\",\"wrong.example."
                         "com\":\"127.0.0.1:%d\"}},"
                         "\"secrets\":{\"KEY\":{\"env\":\"LOOM_TEST_KEY\",\"hosts\":[\"api.example.com\"]}}}";
    snprintf(json, sizeof json, format, "", s.port, s.port);
    struct net_client *c = client(json);
    const char *answer_json = ask(c, p, "https://api.example.com/json");
    holds(answer_json, "\"code\":\"network\"");
    holds(answer_json, "\"retryable\":false");
    holds(answer_json, "network.caFile");
    net_client_free(c);
    char file[200];
    snprintf(file, sizeof file, "\"caFile\":\"%s\",", ca);
    snprintf(json, sizeof json, format, file, s.port, s.port);
    c = client(json);
    answer_json = ask_with(c, p, (struct net_request){.url = STR("https://api.example.com/echo")},
                           "{\"X-Api-Key\":\"{{secret:KEY}}\"}");
    holds(answer_json, "Host: api.example.com\\r\\n");
    holds(s.seen.p, "X-Api-Key: value-1\r\n");
    lacks(answer_json, "value-1");
    answer_json = ask(c, p, "https://wrong.example.com/json");
    holds(answer_json, "\"retryable\":false");
    net_client_free(c);
    server_close(&s);
    SSL_CTX_free(ctx);
    unlink(ca);
}

/* ---- mail ---- */

static const char *mail(struct net_client *c, yyjson_val *p, const char *body) {
    return ask_with(
        c, p, (struct net_request){.url = STR("smtp://"), .body = str_of(body), .idempotency_key = STR("key-7")}, NULL);
}

/* Goal: a mail arrives as a proper message, once per recipient list, and bad ones are refused. */
static void mails(void **state) {
    (void)state;
    char json[200];
    struct server s;
    server_open(&s, serve_smtp, NULL);
    snprintf(json, sizeof json,
             "{\"mail\":{\"server\":\"smtp://mail.example:25\",\"from\":\"Loom "
             "<no-reply@loom.example>\"},\"network\":{\"connectTo\":{\"mail.example:25\":\"127.0.0.1:%d\"}}}",
             s.port);
    struct net_client *c = client(json);
    yyjson_val *p = policy("{\"mail\":true}"), *poor = policy("{\"network\":true}");
    assert_string_equal(mail(c, p, "{\"to\":\"a@b.example\",\"subject\":\"Hi\",\"text\":\"one\\n.two\\n\"}"),
                        "{\"status\":250,\"headers\":{},\"body\":null}");
    static const char *const plain[] = {"MAIL FROM:<no-reply@loom.example>",
                                        "RCPT TO:<a@b.example>\r\n",
                                        "\r\nFrom: Loom <no-reply@loom.example>\r\nTo: a@b.example\r\nSubject: Hi\r\n",
                                        "Date: ",
                                        " +0000\r\n",
                                        "@loom.example>\r\n",
                                        "X-Idempotency-Key: key-7\r\n",
                                        "Content-Transfer-Encoding: quoted-printable\r\n\r\none\r\n..two\r\n"};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) holds(s.seen.p, plain[i]);
    holds(s.seen.p, "Message-ID: <");
    holds(mail(c, p,
               "{\"from\":\"\xc3\x84 <x@y.example>\",\"to\":[\"a@b.example\",\"Doe, J "
               "<c@d.example>\"],\"subject\":\"Gr\xc3\xbc\xc3\x9f"
               "e an alle, die diese lange Zeile in ihrem Postfach "
               "lesen\",\"text\":\"\xc3\xa4\",\"html\":\"<b>a</b>\"}"),
          "250");
    static const char *const rich[] = {
        "MAIL FROM:<x@y.example>",
        "RCPT TO:<a@b.example>",
        "RCPT TO:<c@d.example>",
        "From: =?UTF-8?B?w4Q=?= <x@y.example>\r\n",
        "To: a@b.example,\r\n =?UTF-8?B?RG9lLCBK?= <c@d.example>\r\n",
        "Subject: =?UTF-8?B?R3LDvMOfZSBhbiBhbGxlLCBkaWUgZGllc2UgbGFuZ2UgWmVpbGUgaW4g?=\r\n =?UTF-8?B?",
        "\r\nContent-Type: multipart/alternative; boundary=",
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=C3=A4\r\n",
        "Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n<b>a</b>\r\n"};
    for (size_t i = 0; i < sizeof rich / sizeof *rich; i++) holds(s.seen.p, rich[i]);
    struct net_request r = {.url = STR("smtp://"),
                            .body = STR("{\"to\":\"a@b.example\",\"subject\":\"\",\"text\":\"\"}")};
    r.idempotency_key = STR("m\r\nBcc: x");
    ask_with(c, p, r, NULL);
    holds(s.seen.p, "X-Idempotency-Key: =?UTF-8?B?bQ0KQmNjOiB4?=\r\n");
    static const char *const bad[][2] = {
        {"{\"to\":\"gone@b.example\",\"subject\":\"\",\"text\":\"\"}",
         "{\"code\":\"smtp_550\",\"message\":\"the mail server mail.example says: 550 no such box"},
        {"{\"to\":\"gone@b.example\",\"subject\":\"\",\"text\":\"\"}", "\"retryable\":false"},
        {"{\"to\":\"later@b.example\",\"subject\":\"\",\"text\":\"\"}", "\"code\":\"smtp_451\""},
        {"{\"to\":\"later@b.example\",\"subject\":\"\",\"text\":\"\"}", "\"retryable\":true"},
        {"{\"to\":\"a@b.example\\r\\nDATA\",\"subject\":\"\",\"text\":\"\"}", "invalid_argument"},
        {"{\"to\":\"a@b.example>\\r\\nX <c@d.example\",\"subject\":\"\",\"text\":\"\"}", "invalid_argument"},
        {"{\"to\":\"a@b.example, c@d.example\",\"subject\":\"\",\"text\":\"\"}", "invalid_argument"},
        {"{\"to\":[],\"subject\":\"\",\"text\":\"\"}", "mail: /to"},
        {"{\"to\":[1],\"subject\":\"\",\"text\":\"\"}", "invalid_argument"},
        {"{\"subject\":\"\",\"text\":\"\"}", "invalid_argument"},
        {"{\"to\":\"a@b.example\",\"subject\":\"x\\nBcc: y@z.example\",\"text\":\"\"}", "mail: /subject"},
        {"{\"to\":\"a@b.example\",\"subject\":\"\"}", "mail"},
        {"{\"to\":\"a@b.example\",\"subject\":\"\",\"text\":\"\",\"bcc\":\"y@z.example\"}", "bcc"},
        {"{\"to\":\"a@b.example\",\"subject\":\"{{secret:X}}\",\"text\":\"\"}", "denied"},
        {"{\"to\":\"a@b.example\",\"subject\":\"\",\"html\":1}", "mail"},
        {"no json", "invalid_json"},
        {"[]", "invalid_argument"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        holds(mail(c, p, bad[i][0]), bad[i][1]);
        assert_false(last.ok);
    }
    struct buf many_to = {0};
    for (int i = 0; i < 101; i++) buf_json(&many_to, i ? ",\"a@b.example\"" : "{\"to\":[\"a@b.example\"");
    buf_str(&many_to, (struct str){"],\"subject\":\"\",\"text\":\"\"}", sizeof "],\"subject\":\"\",\"text\":\"\"}"});
    holds(mail(c, p, many_to.p), "mail: /to");
    buf_free(&many_to);
    holds(mail(c, poor, "{}"), "denied");
    net_client_free(c);
    c = client("{}");
    holds(mail(c, p, "{}"), "mail.server");
    net_client_free(c);
    server_close(&s);
}

/* ---- many, cancelled, stopped ---- */

enum { MANY = 2000 };
static atomic_int ended, fine;

static void count(void *ctx, bool ok, struct str json) {
    (void)ctx;
    (void)json;
    fine += ok;
    ended++;
}

/* Goal: thousands of transfers at once need no thread each and all end. */
static void many(void **state) {
    (void)state;
    ended = fine = 0;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < 20000 ? files.rlim_max : 20000;
    setrlimit(RLIMIT_NOFILE, &files);
    struct net_request r = {.policy = api, .url = str_of(at(&web, "api.test", "/json")), .done = count};
    for (int i = 0; i < MANY; i++) net_send(open_client, &r);
    while (ended < MANY) usleep(1000);
    assert_int_equal(fine, MANY);
}

/* Goal: a cancelled transfer ends once, as cancelled, and a stop ends the rest. */
static void cancelled(void **state) {
    (void)state;
    struct net_client *c = client("{\"network\":{\"allowPrivate\":true}}");
    struct net_request r = {.policy = api, .url = str_of(at(&web, "api.test", "/slow")), .ctx = &last, .done = came};
    uint64_t id = net_send(c, &r);
    net_cancel(c, id);
    holds(await_last(), "\"code\":\"cancelled\"");
    net_cancel(c, id);
    id = net_send(c, &r);
    usleep(20000);
    net_cancel(c, id);
    net_cancel(c, id);
    holds(await_last(), "\"code\":\"cancelled\"");
    ended = fine = 0;
    r.done = count;
    for (int i = 0; i < 10; i++) net_send(c, &r);
    net_client_free(c);
    assert_int_equal(ended, 10);
    assert_int_equal(fine, 0);
}

static int open_all(void **state) {
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    pthread_mutex_init(&last.lock, NULL);
    pthread_cond_init(&last.changed, NULL);
    server_open(&web, serve_http, NULL);
    server_open(&web2, serve_http, NULL);
    open_client = client("{\"network\":{\"allowPrivate\":true}}");
    api = policy("{\"network\":[\"api.test\",\"unknown.test\"]}");
    return 0;
}

static int close_all(void **state) {
    (void)state;
    net_client_free(open_client);
    server_close(&web);
    server_close(&web2);
    arena_free(&policies);
    buf_free(&last.json);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules),         cmocka_unit_test(documents),
        cmocka_unit_test(addresses),     cmocka_unit_test(spellings),
        cmocka_unit_test(urls),          cmocka_unit_test(private_places),
        cmocka_unit_test(answers),       cmocka_unit_test(requests),
        cmocka_unit_test(bad_headers),   cmocka_unit_test(keep_alive),
        cmocka_unit_test(failures),      cmocka_unit_test(redirects),
        cmocka_unit_test(secret_places), cmocka_unit_test(secret_plain_http),
        cmocka_unit_test(secret_echo),   cmocka_unit_test(tls),
        cmocka_unit_test(mails),         cmocka_unit_test(many),
        cmocka_unit_test(cancelled),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
