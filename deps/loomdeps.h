/*
 * JSON Schema (draft 2020-12) in three functions; the Rust crate `jsonschema` does the work. And what Wasmtime's C API lacks.
 *
 * A compiled schema is immutable: any number of threads may check against it at once. Nothing is ever fetched: a $ref to another
 * document is an error of loom_schema_new. Formats ("email", "uuid", ...) are annotations, as the draft has it. JSON nests at most
 * 127 deep; integers beyond 64 bits are compared as doubles, numbers beyond double are refused.
 */
#ifndef LOOMDEPS_H
#define LOOMDEPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Lets Wasmtime's pool ask the kernel which pages a guest has changed, so that it resets these only, what its C API cannot
 * set. False when this kernel cannot tell (before Linux 6.7). */
struct wasmtime_pooling_allocation_config_t;
bool loom_pool_scan(struct wasmtime_pooling_allocation_config_t *config);

/* A trap names so many functions, the innermost first, without addresses, which cost more than all else of a guest's end. */
struct wasm_config_t;
void loom_trap_names(struct wasm_config_t *config, size_t frames);

/* Defines the import loom.op, (i32 name, i32 length, i32 argument, i32 length) -> i32, for which a guest waits: `ask` is told
 * the call; what it answers goes to `state`, which is polled until it says something else than WAITS. (By its C API such a
 * function takes untyped values, and its end a backtrace.) */
struct wasmtime_linker;
struct wasmtime_caller;
enum loom_op {
    LOOM_OP_WAITS,
    LOOM_OP_ANSWERED, /* the guest goes on with the code */
    LOOM_OP_TRAP,     /* the guest ends with an error that names its functions */
    LOOM_OP_OVER,     /* the same without names, at half the cost */
};
typedef void *loom_op_ask(struct wasmtime_caller *caller, uint32_t name, uint32_t name_len, uint32_t arg,
                          uint32_t arg_len);
typedef enum loom_op loom_op_state(void *asked, int32_t *code);
void loom_link_op(struct wasmtime_linker *linker, loom_op_ask *ask, loom_op_state *state);

struct loom_schema;

/* The schema, to be freed by the caller; NULL when it is none, with what is wrong, and where, in err (always terminated). */
struct loom_schema *loom_schema_new(const char *json, size_t len, char *err, size_t err_cap);

/* 0 when the JSON is valid; else -1 and err = "/instance/path: message" of the first errors, joined by "; " (no path: the root). */
int loom_schema_check(const struct loom_schema *schema, const char *json, size_t len, char *err, size_t err_cap);

void loom_schema_free(struct loom_schema *schema); /* NULL is fine */

#endif
