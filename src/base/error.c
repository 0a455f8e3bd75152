/* error.c: what each error code means to people, to HTTP and to retries. The table is LOOM_ERRORS in base.h. */
#include "base/base.h"

#include <stdio.h>

/* Indexed by the negated code; row 0 is what a guest's own word stands for. */
static const struct error_kind kinds[] = {{"ok", "The guest failed", 422, false},
#define X(id, name, status, retryable, title) {name, title, status, retryable},
                                          LOOM_ERRORS(X)
#undef X
};
enum { KINDS = sizeof kinds / sizeof *kinds };

const struct error_kind *error_kind(struct str name) {
    for (size_t i = 1; i < KINDS; i++)
        if (str_eq(str_of(kinds[i].name), name)) return &kinds[i];
    return &kinds[0];
}

int error_set(struct error *e, int code, const char *fmt, ...) {
    const struct error_kind *kind = &kinds[code <= 0 && code > -KINDS ? -code : LOOM_E_INTERNAL_N];
    if (!e) return code;
    snprintf(e->code, sizeof e->code, "%s", kind->name);
    e->retryable = kind->retryable;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof e->message, fmt, ap);
    va_end(ap);
    return code;
}

void error_json(const struct error *e, struct buf *out) {
    buf_json(out, "{\"code\":%z,\"message\":%z,\"retryable\":%b}", e->code, e->message, e->retryable);
}
