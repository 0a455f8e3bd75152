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

struct native {
    ucontext_t guest, host;
    char *stack; /* the guard page first */
    bool ended;
    struct arena memory;
    const void *host_stack; /* what AddressSanitizer wants to know about the stack that called exec_run() */
    size_t host_stack_bytes;
};

static _Thread_local struct exec *current;

/* What guests link against: see guest.h. */
int32_t loom_native_op(const char *name, size_t name_len, const char *arg, size_t arg_len);
void loom_native_take(char *dst);
void *loom_native_alloc(size_t n);

/* Present when the program is built with AddressSanitizer. */
__attribute__((weak)) void __sanitizer_start_switch_fiber(void **save, const void *bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void *save, const void **bottom, size_t *size);

static void announce(void **save, const void *bottom, size_t size) {
    if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(save, bottom, size);
}

static void arrive(void *save, const void **bottom, size_t *size) {
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(save, bottom, size);
}

static void native_main(void) {
    struct exec *x = current;
    arrive(NULL, &x->native->host_stack, &x->native->host_stack_bytes);
    x->module->native();
    x->native->ended = true;
    announce(NULL, x->native->host_stack, x->native->host_stack_bytes);
    swapcontext(&x->native->guest, &x->native->host);
}

struct exec *native_new(struct exec *x) {
    struct native *n = x->native = mem_alloc(sizeof *n);
    n->stack = mmap(NULL, NATIVE_STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (n->stack == MAP_FAILED) abort();
    mprotect(n->stack, GUARD_BYTES, PROT_NONE);
    getcontext(&n->guest);
    n->guest.uc_stack = (stack_t){.ss_sp = n->stack + GUARD_BYTES, .ss_size = NATIVE_STACK_BYTES - GUARD_BYTES};
    makecontext(&n->guest, native_main, 0);
    return x;
}

void native_free(struct exec *x) {
    munmap(x->native->stack, NATIVE_STACK_BYTES);
    arena_free(&x->native->memory);
    free(x->native);
}

enum exec_state native_run(struct exec *x) {
    struct native *n = x->native;
    if (n->ended) return EXEC_END;
    if (x->asked && !x->answered) return EXEC_OP;
    void *save = NULL;
    current = x;
    announce(&save, n->guest.uc_stack.ss_sp, n->guest.uc_stack.ss_size);
    swapcontext(&n->host, &n->guest);
    arrive(save, NULL, NULL);
    return n->ended ? EXEC_END : EXEC_OP;
}

int32_t loom_native_op(const char *name, size_t name_len, const char *arg, size_t arg_len) {
    struct exec *x = current;
    exec_ask(x, (struct str){name, name_len}, (struct str){arg, arg_len}, NULL);
    void *save = NULL;
    announce(&save, x->native->host_stack, x->native->host_stack_bytes);
    swapcontext(&x->native->guest, &x->native->host);
    arrive(save, &x->native->host_stack, &x->native->host_stack_bytes);
    x->asked = false;
    return exec_op_result(x);
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
    atomic_init(&m->refs, 1);
    m->native = run;
    return m;
}
