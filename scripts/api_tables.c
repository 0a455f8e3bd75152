/* api_tables.c: the tables of ops, errors and metrics as one line of JSON, for scripts/api-reference. */
#include "base/base.h"
#include "loom/loom.h"
#include "observe/observe.h"
#include <stdio.h>

static const struct {
    const char *name, *title;
    int status;
    bool retryable;
} errors[] = {
#define X(id, name, status, retryable, title) {name, title, status, retryable},
    LOOM_ERRORS(X)
#undef X
};

static const struct {
    const char *name, *type, *help;
} metrics[] = {
#define X(id, name, type, help) {name, type, help},
    METRICS(X)
#undef X
};

#define COUNT(a) (sizeof(a) / sizeof *(a))

static void put_ops(struct buf *out, const char *who) {
    buf_json(out, ",%z:[", who);
    for (const struct loom_op_doc *op = loom_ops(who); op->name; op++)
        buf_json(out, "%s[%z,%z,%z]", op == loom_ops(who) ? "" : ",", op->name, op->argument, op->doc);
    buf_char(out, ']');
}

int main(void) {
    struct buf out = {0};
    buf_json(&out, "{\"version\":%z", LOOM_VERSION);
    put_ops(&out, "actor");
    put_ops(&out, "activity");
    put_ops(&out, "operator");
    buf_str(&out, STR(",\"errors\":["));
    for (size_t i = 0; i < COUNT(errors); i++)
        buf_json(&out, "%s[%z,%d,%b,%z]", i ? "," : "", errors[i].name, (int64_t)errors[i].status, errors[i].retryable,
                 errors[i].title);
    buf_str(&out, STR("],\"metrics\":["));
    for (size_t i = 0; i < COUNT(metrics); i++)
        buf_json(&out, "%s[%z,%z,%z]", i ? "," : "", metrics[i].name, metrics[i].type, metrics[i].help);
    printf("%.*s]}\n", (int)out.n, out.p);
    buf_free(&out);
    return 0;
}
