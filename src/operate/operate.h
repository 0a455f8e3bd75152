/* operate.h: the operator's door: requests of programs, HTTP and the command line to the engine. */
#ifndef LOOM_OPERATE_H
#define LOOM_OPERATE_H

#include "runtime/runtime.h"

/* With all that it points to in the arena. */
struct loom_request request_copy(struct arena *mem, const struct loom_request *req);

/* ---- deploy.c ---- */
void deploy_definition(struct loom *l, const struct loom_request *req, const char *kind);
void deploy_module(struct loom *l, const struct loom_request *req);
void deploy_modules(struct loom *l, const struct loom_request *req);
void deploy_list(struct loom *l, const struct loom_request *req);
void deploy_get(struct loom *l, const struct loom_request *req);

/* ---- debug.c ---- */
void debug_store(struct loom *l, const struct loom_request *req);

#endif
