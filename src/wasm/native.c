/* native.c: native guests, the same source as WASM ones, on stacks of their own (ucontext), each below a guard page.
 *
 * They are the escape hatch: trusted like the rest of the process. No slices, no limits, no traps: what goes wrong in one
 * takes the process down. A guest may move between threads, so after a switch nothing thread-local is used again.
 */
#include "wasm/executor.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { NATIVE_STACK_BYTES = 256 << 10, GUARD_BYTES = 4096 };

struct side { /* one of the two stacks, and what the sanitizers want to know of it */
    ucontext_t at;
    const void *bottom;
    size_t bytes;
    void *frames, *fiber;
};

struct native {
    struct side guest, host;
    char *stack; /* the guard page first */
    struct arena memory;
};

static _Thread_local struct exec *current;

/* What guests link against: see guest.h. */
int32_t loom_native_op(const char *name, size_t name_len, const char *arg, size_t arg_len);
void loom_native_take(char *dst);
void *loom_native_alloc(size_t n);

/* Present when the program is built with AddressSanitizer, with ThreadSanitizer. */
__attribute__((weak)) void __sanitizer_start_switch_fiber(void **save, const void *bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void *save, const void **bottom, size_t *size);
__attribute__((weak)) void *__tsan_get_current_fiber(void);
__attribute__((weak)) void *__tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_destroy_fiber(void *fiber);
__attribute__((weak)) void __tsan_switch_to_fiber(void *fiber, unsigned flags);

static void arrive(void *frames, struct side *from) {
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(frames, &from->bottom, &from->bytes);
}

static void cross(struct side *from, struct side *to) {
    if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&from->frames, to->bottom, to->bytes);
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to->fiber, 0);
    swapcontext(&from->at, &to->at);
    arrive(from->frames, to);
}

static void native_main(void) {
    struct exec *x = current;
    arrive(NULL, &x->native->host);
    x->module->native();
    cross(&x->native->guest, &x->native->host);
}

struct exec *native_new(struct exec *x) {
    struct native *n = x->native = mem_alloc(sizeof *n);
    n->stack = mmap(NULL, NATIVE_STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (n->stack == MAP_FAILED) abort();
    mprotect(n->stack, GUARD_BYTES, PROT_NONE);
    n->guest = (struct side){.bottom = n->stack + GUARD_BYTES, .bytes = NATIVE_STACK_BYTES - GUARD_BYTES};
    if (__tsan_create_fiber) n->guest.fiber = __tsan_create_fiber(0);
    getcontext(&n->guest.at);
    n->guest.at.uc_stack = (stack_t){.ss_sp = n->stack + GUARD_BYTES, .ss_size = n->guest.bytes};
    makecontext(&n->guest.at, native_main, 0);
    return x;
}

void native_free(struct exec *x) {
    if (__tsan_destroy_fiber) __tsan_destroy_fiber(x->native->guest.fiber);
    munmap(x->native->stack, NATIVE_STACK_BYTES);
    arena_free(&x->native->memory);
    free(x->native);
}

bool native_poll(struct exec *x) {
    struct native *n = x->native;
    current = x;
    if (__tsan_get_current_fiber) n->host.fiber = __tsan_get_current_fiber();
    cross(&n->host, &n->guest);
    return !x->asked;
}

int32_t loom_native_op(const char *name, size_t name_len, const char *arg, size_t arg_len) {
    struct exec *x = current;
    exec_ask(x, (struct str){name, name_len}, (struct str){arg, arg_len});
    cross(&x->native->guest, &x->native->host);
    return x->code;
}

void loom_native_take(char *dst) {
    struct exec *x = current;
    if (x->result.n) memcpy(dst, x->result.p, x->result.n);
}

void *loom_native_alloc(size_t n) {
    struct exec *x = current;
    return arena_alloc(&x->native->memory, n);
}

struct exec_module *exec_module_native(void (*run)(void)) {
    struct exec_module *m = mem_alloc(sizeof *m);
    m->native = run;
    return m;
}
