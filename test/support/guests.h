/* guests.h: guests made from their source at test time: WAT by wat2wasm, C by clang. */
#ifndef TEST_GUESTS_H
#define TEST_GUESTS_H

#include "base/base.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ThreadSanitizer knows nothing of Wasmtime's code and stacks: under it only native guests run, tests of others are skipped. */
#ifdef __SANITIZE_THREAD__
#define NATIVE_ONLY true
#else
#define NATIVE_ONLY false
#endif
#define NEEDS_WASM() \
    if (NATIVE_ONLY) skip()

/* What `command`, with the paths of a source and an output file put in, makes of the source; the caller frees. */
static struct buf guest_build(const char *command, const char *suffix, const char *source) {
    char dir[] = "/tmp/loom-guest-XXXXXX", in[64], out[64], line[1024];
    if (!mkdtemp(dir)) abort();
    snprintf(in, sizeof in, "%s/guest%s", dir, suffix);
    snprintf(out, sizeof out, "%s/guest.wasm", dir);
    FILE *f = fopen(in, "w");
    fputs(source, f);
    fclose(f);
    snprintf(line, sizeof line, command, in, out);
    if (system(line) != 0) abort();
    struct buf wasm = {0};
    char part[4096];
    f = fopen(out, "r");
    for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;) buf_add(&wasm, part, n);
    fclose(f);
    unlink(in);
    unlink(out);
    rmdir(dir);
    return wasm;
}

static inline struct buf guest_wat(const char *source) {
    return guest_build("wat2wasm --debug-names %s -o %s", ".wat", source);
}

static inline struct buf guest_c(const char *source) {
    return guest_build("clang --target=wasm32 -std=c11 -O2 -mbulk-memory -nostdlib -Iinclude -I. -Wl,--no-entry "
                       "-Wl,--strip-debug %s -o %s",
                       ".c", source);
}

/* The guest of script.h as WASM, made once. */
static inline struct str script_wasm(void) {
    static struct buf wasm;
    if (!wasm.n)
        wasm = guest_build(
            "clang --target=wasm32 -std=c11 -O2 -mbulk-memory -nostdlib -Iinclude -I. -Wl,--no-entry %s -o %s", ".c",
            "#include <test/support/script.h>\n");
    return buf_view(&wasm);
}

/* ' becomes ". */
static inline char *quoted(const char *text) {
    char *copy = str_dup(str_of(text));
    for (char *p = copy; *p; p++) *p = *p == '\'' ? '"' : *p;
    return copy;
}

#endif
