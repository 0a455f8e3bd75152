/* fake_host.h: plays the host for one native guest, by a script. Included by the tests of guests, one per program.
 *
 * A script is a list of lines, ended by NULL: "OP ARGUMENT -> RESULT", "OP ARGUMENT -> !ERROR" or, for the ops that do not come
 * back, "OP ARGUMENT". ' stands for ". The guest must ask for exactly these ops in this order. Lines that begin with
 * "*" are not in order: "*OP -> RESULT" answers that op at any time, with any argument.
 */
#ifndef FAKE_HOST_H
#define FAKE_HOST_H

#include <loom/guest.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct {
    const char *const *line; /* next line of the script */
    const char *const *script;
    char result[8192];
    jmp_buf end;
    void **blocks; /* what loom_native_alloc() gave, linked by their first word */
} host;

void *loom_native_alloc(size_t n) {
    void **block = malloc(n + 16);
    assert_non_null(block);
    *block = host.blocks;
    host.blocks = block;
    memset(block + 2, 0xA5, n);
    return block + 2;
}

/* Copies a part of a script line; ' becomes ". */
static void host_copy(char *to, size_t cap, const char *from, size_t n) {
    assert_true(n < cap);
    for (size_t i = 0; i < n; i++) to[i] = from[i] == '\'' ? '"' : from[i];
    to[n] = 0;
}
static int32_t host_answer(const char *arrow) {
    bool failed = arrow[4] == '!';
    const char *text = arrow + 4 + failed;
    host_copy(host.result, sizeof(host.result), text, strlen(text));
    int32_t n = (int32_t)strlen(host.result);
    return failed ? -1 - n : n;
}
int32_t loom_native_op(const char *name, size_t name_len, const char *arg, size_t arg_len) {
    char asked[8192], expected[8192];
    for (const char *const *l = host.script; *l; l++)
        if (**l == '*' && strncmp(*l + 1, name, name_len) == 0 && strncmp(*l + 1 + name_len, " -> ", 4) == 0)
            return host_answer(*l + 1 + name_len);
    snprintf(asked, sizeof(asked), "%.*s %.*s", (int)name_len, name, (int)arg_len, arg);
    while (*host.line && **host.line == '*') host.line++;
    const char *line = *host.line ? *host.line++ : "(the end of the script)", *arrow = strstr(line, " -> ");
    host_copy(expected, sizeof(expected), line, arrow ? (size_t)(arrow - line) : strlen(line));
    assert_string_equal(asked, expected);
    if (!arrow) longjmp(host.end, 1);
    return host_answer(arrow);
}
void loom_native_take(char *dst) {
    memcpy(dst, host.result, strlen(host.result));
}

static void host_play(void (*run)(void), const char *const *script) {
    host.line = host.script = script;
    if (!setjmp(host.end)) run();
    while (*host.line && **host.line == '*') host.line++;
    if (*host.line) fail_msg("the guest ended before: %s", *host.line);
    while (host.blocks) {
        void **block = host.blocks;
        host.blocks = *block;
        free(block);
    }
}
#define PLAY(run, ...) host_play(run, (const char *const[]){__VA_ARGS__, NULL})

#endif
