/* error.c: what each error code means to people, to HTTP and to retries. The table is LOOM_ERRORS in base.h. */
#include "base/base.h"

#include <stdio.h>

struct kind {
    const char *name, *title;
    int status;
    bool retryable;
};

/* Indexed by the negated code; row 0 is what a guest's own word stands for. */
static const struct kind kinds[] = {{"ok", "The guest failed", 422, false},
#define X(id, name, status, retryable, title) {name, title, status, retryable},
                                    LOOM_ERRORS(X)
#undef X
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static const struct kind *kind_of(struct str name) {
    for (size_t i = 1; i < KINDS; i++)
        if (str_eq(str_of(kinds[i].name), name)) return &kinds[i];
    return &kinds[0];
}

static const struct kind *kind_at(int code) {
    return code < 0 && code > -KINDS ? &kinds[-code] : &kinds[code == LOOM_OK ? 0 : LOOM_E_INTERNAL_N];
}

int error_set(struct error *e, int code, const char *fmt, ...) {
    if (!e) return code;
    snprintf(e->code, sizeof e->code, "%s", error_name(code));
    e->retryable = kind_at(code)->retryable;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof e->message, fmt, ap);
    va_end(ap);
    return code;
}

const char *error_name(int code) {
    return kind_at(code)->name;
}

int error_status(struct str name) {
    return kind_of(name)->status;
}

const char *error_title(struct str name) {
    return kind_of(name)->title;
}

void error_json(const struct error *e, struct buf *out) {
    buf_json(out, "{\"code\":%z,\"message\":%z,\"retryable\":%b}", e->code, e->message, e->retryable);
}
