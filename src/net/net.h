/* net.h: the only way out to the network: an HTTP and SMTP client (libcurl), the policy of where one may go, secrets.
 *
 * One thread drives all transfers (curl multi); callers give a callback. Every address a request connects to, redirects
 * included, has been checked against its policy (SSRF): the connection is made to the checked address.
 */
#ifndef LOOM_NET_H
#define LOOM_NET_H

#include "base/base.h"

/* Where an activity may go is its policy: the "capabilities" of its definition, {network: true | [hosts], mail: bool,
 * secrets: [names]}, or NULL when they grant nothing. INVALID_DOCUMENT names the field. */
int net_policy(yyjson_val *capabilities, yyjson_val **policy, struct error *err);

/* The project's side (loom.json): {network: {allowPrivate: true | [hosts], connectTo: {"HOST:PORT": "HOST:PORT"}, caFile},
 * mail: {server: "smtp://HOST:PORT" or smtps, from}, secrets: {NAME: {env | file, hosts: […], headers: […]}}}.
 * connectTo works as in curl: only the connection goes elsewhere, host name and TLS name stay; its targets and the mail
 * server are allowed even if private. caFile: the only CAs trusted (absent: the system's). Guests only ever see a
 * secret's handle, "{{secret:NAME}}"; headers are those it may stand in (absent: authorization, x-api-key, api-key). */
struct net_client;
/* config: the parsed loom.json or NULL; dir: what relative paths in it refer to. INVALID_DOCUMENT names the field. */
struct net_client *net_client_new(struct env *env, yyjson_val *config, const char *dir, struct error *err);
void net_client_free(struct net_client *c); /* ends open requests with `cancelled` */
/* Where env sends: begins and cancels what was ordered; false: the client stops. And the end of a request, as done() gets
 * it; nothing happens when it is over already. */
bool net_step(struct net_client *c);
void net_answer(struct net_client *c, uint64_t id, bool ok, struct str json);

struct net_request {
    yyjson_val *policy; /* must live until done(); NULL: nothing is allowed */
    struct str method,
        url; /* http, https (method absent: GET); "smtp://": the project's mail server gets the mail that the body
                             * describes: {"from", "to": string or list, "subject", "text", "html"} */
    yyjson_val *headers;                     /* object of strings, may be NULL; values may hold handles of secrets */
    struct str body;                         /* bytes as they go out; .p NULL: none */
    bool body_json;                          /* sets Content-Type: application/json unless given */
    struct str idempotency_key, traceparent; /* sent as headers unless the guest gave its own */
    int64_t timeout_ms;                      /* of all, redirects included; 0: 30,000 */
    void *ctx;
    /* On the net thread. ok: json = {"status","headers","body"}: names in lower case, the body parsed if it is JSON, otherwise a
     * string, with "bodyEncoding": "base64" if it is not UTF-8; a mail's is {"status":250,"headers":{},"body":null}. Otherwise error
     * JSON {"code","message","retryable"}: denied, invalid_argument, network, timeout, too_large, cancelled, smtp_NNN. */
    void (*done)(void *ctx, bool ok, struct str json);
};
/* Copies what it needs but the policy; done() is called once, also when refused, and never inside this call. Answers an id for cancel, never 0. */
uint64_t net_send(struct net_client *c, const struct net_request *r);
void net_cancel(struct net_client *c, uint64_t id); /* 0: of none */
/* The handle of a secret, or DENIED / NOT_FOUND. */
int net_secret_handle(struct net_client *c, yyjson_val *policy, struct str name, struct buf *out, struct error *err);

/* Checks a value against a JSON Schema of ours (' for "); `code`, `what` and the place of the first mistake go to err. */
int schema_check(const char *schema, yyjson_val *v, int code, const char *what, struct error *err);

#endif
