/* Guests of every kind of good and bad behaviour: WAT text in, what exec_run() makes of it out. */
#include "support/guests.h"
#include "wasm/exec.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <cmocka.h>

#define IMPORTS                                                                \
    "(import \"loom\" \"op\" (func $op (param i32 i32 i32 i32) (result i32)))" \
    "(import \"loom\" \"take\" (func $take (param i32)))"
#define MEMORY      "(memory (export \"memory\") 1 4)"
#define GUEST(body) "(module " IMPORTS MEMORY body ")"

static struct exec_engine *engine;
static struct exec_module *started[100];
static size_t started_count;
static const struct exec_limits limits = {.memory_mb = 16, .cpu_ms = 1000};

static int open_engine(void **state) {
    (void)state;
    struct error err;
    engine = exec_engine_new(64, 0, &err);
    return engine ? 0 : -1;
}

static int close_engine(void **state) {
    (void)state;
    while (started_count > 0) exec_module_free(started[--started_count]);
    exec_engine_free(engine);
    return 0;
}

static struct exec_module *load_in(struct exec_engine *e, const char *wat) {
    struct buf wasm = guest_wat(wat), artefact = {0};
    struct error err = {0};
    if (exec_compile(e, buf_view(&wasm), &artefact, &err)) fail_msg("%s: %s", err.code, err.message);
    struct exec_module *m = exec_module_load(e, STR_NONE, buf_view(&artefact), &err);
    if (!m) fail_msg("%s: %s", err.code, err.message);
    buf_free(&wasm);
    buf_free(&artefact);
    return m;
}

/* An instance of a module that stays until the engine goes. */
static struct exec *start(const char *wat, struct exec_limits l) {
    struct error err;
    assert_true(started_count < sizeof started / sizeof *started);
    started[started_count] = load_in(engine, wat);
    struct exec *x = exec_new(started[started_count++], l, 7, &err);
    assert_non_null(x);
    return x;
}

static enum exec_state run_on(struct exec *x) {
    enum exec_state state;
    do state = exec_run(x, 1234);
    while (state == EXEC_SLICE);
    return state;
}

static void expect_op(struct exec *x, const char *name, const char *arg) {
    struct str n, a;
    assert_int_equal(run_on(x), EXEC_OP);
    exec_op(x, &n, &a);
    if (!str_eq(n, str_of(name)) || !str_eq(a, str_of(arg))) {
        fail_msg("op %.*s %.*s instead of %s %s", (int)n.n, n.p, (int)a.n, a.p, name, arg);
    }
}

/* The guest traps with the code, and the message holds the text. */
static void expect_trap(struct exec *x, const char *code, const char *text) {
    assert_int_equal(run_on(x), EXEC_TRAP);
    const struct error *err = exec_trap(x);
    assert_string_equal(err->code, code);
    if (!strstr(err->message, text)) fail_msg("\"%s\" lacks \"%s\"", err->message, text);
    assert_int_equal(exec_run(x, 1234), EXEC_TRAP);
    exec_free(x);
}

static void trap_of(const char *wat, const char *code, const char *text) {
    expect_trap(start(wat, limits), code, text);
}

/* ---- ops ---- */

static void op_and_take(void **state) {
    (void)state; /* The guest gets the result's length and bytes; −1 − n tells a failed op; take may be repeated. */
    struct exec *x = start(GUEST("(data (i32.const 0) \"one{}two\") (func (export \"run\") (local $n i32)"
                                 "(local.set $n (call $op (i32.const 0) (i32.const 3) (i32.const 3) (i32.const 2)))"
                                 "(call $take (i32.const 90)) (call $take (i32.const 100))"
                                 "(local.set $n (call $op (i32.const 5) (i32.const 3) (i32.const 100) (local.get $n)))"
                                 "(call $take (i32.const 200))"
                                 "(drop (call $op (i32.const 0) (i32.const 3) (i32.const 200)"
                                 " (i32.sub (i32.const -1) (local.get $n)))))"),
                           limits);
    expect_op(x, "one", "{}");
    assert_int_equal(exec_run(x, 1234), EXEC_OP); /* running without an answer changes nothing */
    exec_answer(x, true, STR("{\"a\":1}"));
    expect_op(x, "two", "{\"a\":1}");
    exec_answer(x, false, STR("{\"code\":\"no\"}"));
    expect_op(x, "one", "{\"code\":\"no\"}");
    exec_answer(x, true, STR(""));
    assert_int_equal(run_on(x), EXEC_END);
    assert_true(exec_again(x));
    expect_op(x, "one", "{}"); /* and again from the start */
    exec_free(x);
}

static void take_too_early(void **state) {
    (void)state; /* Without a result there is nothing to take. */
    trap_of(GUEST("(func (export \"run\") (call $take (i32.const 0)))"), "trap", "before an op had a result");
}

static void ops_before_run(void **state) {
    (void)state; /* Start function and _initialize may ask as run does; nothing of it happens twice. */
    struct exec *x = start(GUEST("(data (i32.const 0) \"s0i1r2\") (func $s (call $ask (i32.const 0))) (start $s)"
                                 "(func $ask (param i32) (drop (call $op (local.get 0) (i32.const 1)"
                                 " (i32.add (local.get 0) (i32.const 1)) (i32.const 1))))"
                                 "(func (export \"_initialize\") (call $ask (i32.const 2)))"
                                 "(func (export \"run\") (call $ask (i32.const 4)))"),
                           limits);
    static const char *const ops[][2] = {{"s", "0"}, {"i", "1"}, {"r", "2"}, {"r", "2"}};
    for (int i = 0; i < 4; i++) {
        expect_op(x, ops[i][0], ops[i][1]);
        assert_true(exec_bytes(x) > 0);
        exec_answer(x, true, STR("null"));
        if (i > 1) assert_int_equal(run_on(x), EXEC_END);
        if (i > 1) assert_true(exec_again(x));
    }
    exec_free(x);
    x = start(GUEST("(func $s (drop (call $op (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))) (start $s)"
                    "(func (export \"run\"))"),
              limits);
    exec_free(x); /* in the middle of its start */
}

/* The guest asks "?" for four numbers and passes them to op. */
static const char pointers[] = GUEST(
    "(data (i32.const 32) \"?\") (func (export \"run\")"
    "(drop (call $op (i32.const 32) (i32.const 1) (i32.const 32) (i32.const 0))) (call $take (i32.const 0))"
    "(drop (call $op (i32.load (i32.const 0)) (i32.load (i32.const 4)) (i32.load (i32.const 8)) (i32.load (i32.const "
    "12)))))");

static void fault_21_bad_pointers(void **state) {
    (void)state; /* Every pointer and length is checked in 64 bits, empty ranges too; name and argument alike. */
    static const uint32_t edges[] = {0, 1, 65535, 65536, UINT32_MAX};
    struct exec_module *m = load_in(engine, pointers);
    for (int i = 0; i < 50; i++) {
        uint32_t ptr = edges[i / 5 % 5], len = edges[i % 5], args[4] = {0};
        args[i < 25 ? 0 : 2] = ptr;
        args[i < 25 ? 1 : 3] = len;
        struct exec *x = exec_new(m, limits, 7, NULL);
        expect_op(x, "?", "");
        exec_answer(x, true, (struct str){(const char *)args, sizeof args});
        if ((uint64_t)ptr + len > 65536) {
            expect_trap(x, "bad_pointer", "beyond the guest's memory of 65536 bytes");
            continue;
        }
        assert_int_equal(run_on(x), EXEC_OP);
        exec_free(x);
    }
    exec_module_free(m);
}

static void fault_21_take_out_of_bounds(void **state) {
    (void)state; /* The result must fit where the guest wants it, to the byte. */
    static const struct {
        const char *to;
        bool fits;
    } cases[] = {{"65532", true}, {"65533", false}, {"65536", false}, {"-1", false}};
    for (size_t i = 0; i < 4; i++) {
        char wat[512];
        snprintf(
            wat, sizeof wat,
            GUEST("(func (export \"run\") (drop (call $op (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0)))"
                  "(call $take (i32.const %s)))"),
            cases[i].to);
        struct exec *x = start(wat, limits);
        assert_int_equal(run_on(x), EXEC_OP);
        exec_answer(x, true, STR("1234"));
        if (!cases[i].fits) {
            expect_trap(x, "bad_pointer", "memory");
            continue;
        }
        assert_int_equal(run_on(x), EXEC_END);
        exec_free(x);
    }
}

/* ---- limits ---- */

static void fault_18_endless_loops(void **state) {
    (void)state; /* A guest that never pauses is stopped at its limit, wherever it loops, and the others go on. */
    static const char *const loops[] = {
        GUEST("(func (export \"run\") (loop $l (br $l)))"),
        GUEST("(func $s (loop $l (br $l))) (start $s) (func (export \"run\"))"),
        GUEST("(func (export \"_initialize\") (loop $l (br $l))) (func (export \"run\"))"),
        GUEST("(func $f (call $g)) (func $g (loop $l (br $l))) (func (export \"run\") (call $f))"),
    };
    struct exec *other = start(GUEST("(func (export \"run\") (loop $l (drop (call $op (i32.const 0) (i32.const 0)"
                                     "(i32.const 0) (i32.const 0))) (br $l)))"),
                               limits);
    for (size_t i = 0; i < sizeof loops / sizeof *loops; i++) {
        struct exec *x = start(loops[i], (struct exec_limits){.memory_mb = 1, .cpu_ms = 10});
        int slices = 0;
        while (exec_run(x, 1234) == EXEC_SLICE) {
            slices++;
            assert_int_equal(run_on(other), EXEC_OP);
            exec_suspended(other);
            exec_answer(other, true, STR("null"));
        }
        assert_true(slices >= 4);
        expect_trap(x, "limit_time", "10 ms");
    }
    exec_free(other);
}

static void fault_18_loop_around_ops(void **state) {
    (void)state; /* Ops that are answered at once do not stop the clock; a suspension does. */
    const char *wat = GUEST("(func (export \"run\") (loop $l (drop (call $op (i32.const 0) (i32.const 0)"
                            "(i32.const 0) (i32.const 0))) (br $l)))");
    struct exec *x = start(wat, (struct exec_limits){.memory_mb = 1, .cpu_ms = 2});
    enum exec_state s;
    while ((s = exec_run(x, 1234)) != EXEC_TRAP) {
        if (s == EXEC_OP) exec_answer(x, true, STR("null"));
    }
    expect_trap(x, "limit_time", "2 ms");
    x = start(wat, (struct exec_limits){.memory_mb = 1, .cpu_ms = 1000});
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(run_on(x), EXEC_OP);
        exec_suspended(x);
        exec_answer(x, true, STR("null"));
    }
    exec_free(x);
}

static void fault_19_memory_and_table_limits(void **state) {
    (void)state; /* memory.grow gives −1 at the limit, not a trap; a guest that begins beyond it is told so. */
    const char *grow = "(module " IMPORTS "(memory (export \"memory\") 1) (func (export \"run\")"
                       "(if (i32.ne (memory.grow (i32.const 14)) (i32.const 1)) (then unreachable))"
                       "(if (i32.ne (memory.grow (i32.const 2)) (i32.const -1)) (then unreachable))"
                       "(if (i32.ne (memory.grow (i32.const 1)) (i32.const 15)) (then unreachable))"
                       "(if (i32.ne (memory.grow (i32.const 60000)) (i32.const -1)) (then unreachable))))";
    struct exec *x = start(grow, (struct exec_limits){.memory_mb = 1});
    assert_int_equal(run_on(x), EXEC_END);
    exec_free(x);
    x = start("(module (memory (export \"memory\") 100) (func (export \"run\")))",
              (struct exec_limits){.memory_mb = 3});
    expect_trap(x, "trap", "minimum size of 100 pages exceeds memory limits; raise limits.maxMemoryMB");
    x = start("(module (memory (export \"memory\") 1) (table $t 1 funcref) (func (export \"run\")"
              "(loop $l (br_if $l (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1))))))",
              limits);
    assert_int_equal(run_on(x), EXEC_END);
    exec_free(x);
}

static void fault_20_traps(void **state) {
    (void)state; /* A trap tells its reason and the functions that led to it, the innermost first. */
    trap_of(GUEST("(func $inner unreachable) (func $outer (call $inner)) (func (export \"run\") (call $outer))"),
            "trap", "wasm `unreachable` instruction executed in inner < outer < ");
    trap_of(
        GUEST(
            "(func $r (param i32) (result i32) (i32.add (i32.const 1) (call $r (i32.add (local.get 0) (i32.const 1)))))"
            "(func (export \"run\") (drop (call $r (i32.const 0))))"),
        "trap", "call stack exhausted in r < r < r");
    trap_of(GUEST("(func $div (drop (i32.div_u (i32.const 1) (i32.const 0)))) (func (export \"run\") (call $div))"),
            "trap", "integer divide by zero in div");
    trap_of(GUEST("(func $load (drop (i32.load (i32.const 65536)))) (func (export \"run\") (call $load))"), "trap",
            "out of bounds memory access in load");
    trap_of(GUEST("(func $s unreachable) (start $s) (func (export \"run\"))"), "trap", "in s");
    trap_of(GUEST("(data (i32.const 65530) \"too long\") (func (export \"run\"))"), "trap", "out of bounds");
}

/* ---- instances ---- */

static void slots(void **state) {
    (void)state; /* When all slots are taken exec_new says BUSY; one that is freed serves again. */
    struct error err;
    struct exec_engine *e = exec_engine_new(2, 0, &err);
    struct exec_module *m = load_in(e, pointers);
    struct exec *a = exec_new(m, limits, 7, &err), *b = exec_new(m, limits, 7, &err);
    assert_non_null(b);
    for (int i = 0; i < 10; i++) {
        assert_null(exec_new(m, limits, 7, &err));
        assert_string_equal(err.code, "busy");
        if (i % 2) expect_op(a, "?", "");
        exec_free(a);
        a = exec_new(m, limits, 7, &err);
        assert_non_null(a);
    }
    exec_free(a);
    exec_free(b);
    exec_module_free(m);
    exec_engine_free(e);
}

static void mappings(void **state) {
    (void)state; /* When all slots of a default engine are taken, malloc still gets memory from the kernel. */
    enum { SPARE = 1000, SLOTS = 12000 };
    static struct exec *all[SLOTS];
    static void *spare[SPARE];
    struct error err;
    struct exec_engine *e = exec_engine_new(0, 0, &err);
    struct exec_module *m = load_in(e, GUEST("(data (i32.const 32768) \"in the middle\") (func (export \"run\"))"));
    size_t n = 0;
    while (n < SLOTS && (all[n] = exec_new(m, limits, 7, &err)) != NULL) n++;
    assert_true(n >= 10000 && n < SLOTS);
    assert_string_equal(err.code, "busy");
    for (size_t i = 0; i < SPARE; i++) {
        spare[i] = mmap(NULL, 4096, i % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_ptr_not_equal(spare[i], MAP_FAILED);
    }
    for (size_t i = 0; i < SPARE; i++) munmap(spare[i], 4096);
    while (n > 0) exec_free(all[--n]);
    exec_module_free(m);
    exec_engine_free(e);
}

static void fresh_memory(void **state) {
    (void)state; /* An instance never sees what another left in memory, globals or table. */
    struct exec_module *m = load_in(
        engine, GUEST("(global $g (mut i32) (i32.const 0)) (data (i32.const 10) \"x\") (func (export \"run\")"
                      "(if (global.get $g) (then unreachable)) (if (i32.load (i32.const 40000)) (then unreachable))"
                      "(if (i32.ne (i32.load8_u (i32.const 10)) (i32.const 120)) (then unreachable))"
                      "(if (i32.load (i32.const 0)) (then unreachable))"
                      "(global.set $g (i32.const 7)) (i32.store (i32.const 40000) (i32.const 7))"
                      "(i32.store8 (i32.const 10) (i32.const 7)) (i32.store (i32.const 0) (i32.const 7)))"));
    for (int i = 0; i < 200; i++) {
        struct exec *x = exec_new(m, limits, 7, NULL);
        assert_int_equal(run_on(x), EXEC_END);
        exec_free(x);
    }
    exec_module_free(m);
}

static void *run_elsewhere(void *x) {
    assert_int_equal(run_on(x), EXEC_OP);
    exec_answer(x, true, STR("12345678"));
    return NULL;
}

static void between_threads(void **state) {
    (void)state; /* An exec goes on with whatever thread runs it next. */
    struct exec *x = start(GUEST("(func (export \"run\") (loop $l (drop (call $op (i32.const 0) (i32.const 0)"
                                 "(i32.const 0) (i32.const 0))) (call $take (i32.const 16)) (br $l)))"),
                           limits);
    for (int i = 0; i < 50; i++) {
        pthread_t t;
        if (i % 2) {
            run_elsewhere(x);
            continue;
        }
        pthread_create(&t, NULL, run_elsewhere, x);
        pthread_join(t, NULL);
    }
    exec_free(x);
}

static void *churn(void *m) {
    for (int i = 0; i < 500; i++) {
        struct exec *x = exec_new(m, limits, 7, NULL);
        expect_op(x, "?", "");
        if (i % 3) exec_answer(x, true, STR("0000000000000000"));
        if (i % 3) assert_int_equal(run_on(x), EXEC_TRAP);
        exec_free(x);
    }
    return NULL;
}

static void many_threads(void **state) {
    (void)state; /* Engine and modules are shared by threads without further ado. */
    struct exec_module *m = load_in(engine, pointers);
    pthread_t t[4];
    for (int i = 0; i < 4; i++) pthread_create(&t[i], NULL, churn, m);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    exec_module_free(m);
}

static void resident_bytes(void **state) {
    (void)state; /* exec_bytes counts pages that are there, not those that could be. */
    struct exec *x = start("(module " IMPORTS "(memory (export \"memory\") 160) (func (export \"run\")"
                           "(drop (call $op (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))"
                           "(memory.fill (i32.const 1000000) (i32.const 1) (i32.const 5000000))"
                           "(drop (call $op (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))))",
                           limits);
    assert_int_equal(run_on(x), EXEC_OP);
    assert_in_range(exec_bytes(x), 8000, 60000);
    exec_answer(x, true, STR("null"));
    assert_int_equal(run_on(x), EXEC_OP);
    assert_in_range(exec_bytes(x), 5000000, 5100000);
    exec_free(x);
}

static void fault_23_deterministic(void **state) {
    (void)state; /* With fuel a run repeats to the slice; NaNs are canonical always. */
    struct error err;
    struct exec_engine *e = exec_engine_new(2, 2000000, &err);
    struct exec_module *m = load_in(
        e, GUEST("(func (export \"run\") (local $i i32) (loop $l (local.set $i (i32.add (local.get $i) (i32.const 1)))"
                 "(br_if $l (i32.lt_u (local.get $i) (i32.const 10000000))))"
                 "(i32.store (i32.const 0) (i32.reinterpret_f32 (f32.div (f32.const 0) (f32.const -0))))"
                 "(if (i32.ne (i32.load (i32.const 0)) (i32.const 0x7fc00000)) (then unreachable)))"));
    int slices[2] = {0};
    for (int i = 0; i < 2; i++) {
        struct exec *x = exec_new(m, limits, 7, &err);
        while (exec_run(x, 1234) == EXEC_SLICE) slices[i]++;
        assert_true(exec_again(x)); /* it had ended well */
        assert_int_equal(exec_run(x, 1234), EXEC_SLICE);
        exec_free(x);
    }
    assert_int_equal(slices[0], slices[1]);
    assert_in_range(slices[0], 10, 100);
    struct exec *x = exec_new(m, (struct exec_limits){.cpu_ms = 4}, 7, &err);
    expect_trap(x, "limit_time", "4 ms");
    exec_module_free(m);
    exec_engine_free(e);
}

/* How often all threads but this one have woken up. */
static unsigned long wakes(void) {
    unsigned long sum = 0, n;
    char line[200];
    FILE *f = popen("grep -h ^voluntary /proc/$PPID/task/*/status", "r");
    while (fgets(line, sizeof line, f)) sum += sscanf(line, "voluntary_ctxt_switches: %lu", &n) == 1 ? n : 0;
    pclose(f);
    FILE *self = fopen("/proc/thread-self/status", "r");
    while (fgets(line, sizeof line, self)) sum -= sscanf(line, "voluntary_ctxt_switches: %lu", &n) == 1 ? n : 0;
    fclose(self);
    return sum;
}

static void idle_engine_sleeps(void **state) {
    (void)state; /* Some time after the last guest ran nothing ticks any more; the next guest is sliced all the same. */
    struct exec *x = start(GUEST("(func (export \"run\") (loop $l (br $l)))"), limits);
    assert_int_equal(exec_run(x, 1234), EXEC_SLICE);
    unsigned long before, after = 0;
    do {
        before = after;
        usleep(100000);
        after = wakes();
    } while (after != before);
    assert_int_equal(exec_run(x, 1234), EXEC_SLICE);
    exec_free(x);
}

/* ---- compiling ---- */

static void refuse(struct str wasm, const char *text) {
    struct buf artefact = {0};
    struct error err;
    assert_int_equal(exec_compile(engine, wasm, &artefact, &err), LOOM_E_INVALID_MODULE);
    if (!strstr(err.message, text)) fail_msg("\"%s\" lacks \"%s\"", err.message, text);
    assert_int_equal(artefact.n, 0);
}

static void refuse_wat(const char *wat, const char *text) {
    struct buf wasm = guest_wat(wat);
    refuse(buf_view(&wasm), text);
    buf_free(&wasm);
}

static void refusals(void **state) {
    (void)state; /* Each module that cannot be a guest is refused with its reason. */
    refuse(STR(""), "must begin with the bytes 00 61 73 6d");
    refuse(STR("#!/bin/sh"), "must begin with the bytes 00 61 73 6d");
    refuse((struct str){"\0asm\1", 5}, "unexpected end");
    refuse((struct str){"\0asm\r\0\1\0", 8}, "encoded as a component");
    refuse_wat("(module (func (export \"run\")))", "does not export its memory");
    refuse_wat("(module (memory (export \"memory\") 1))", "does not export a function \"run\"");
    refuse_wat("(module (memory (export \"memory\") 1) (func (export \"run\") (param i32)))",
               "does not export a function");
    refuse_wat("(module (memory (export \"run\") 1) (func (export \"memory\")))", "does not export its memory");
    refuse_wat("(module (import \"env\" \"open\" (func)) (memory (export \"memory\") 1) (func (export \"run\")))",
               "unknown import: `env::open`");
    refuse_wat(
        "(module (import \"loom\" \"op\" (func (param i32))) (memory (export \"memory\") 1) (func (export \"run\")))",
        "expected type `(func (param i32))`, found type `(func (param i32 i32 i32 i32) (result i32))`");
    refuse_wat("(module (memory (export \"memory\") 60000) (func (export \"run\")))", "limit");
    refuse_wat("(module (memory (export \"memory\") 1) (func (export \"run\") (drop (v128.const i64x2 0 0))))", "SIMD");
}

static void fault_22_mangled_modules(void **state) {
    (void)state; /* A module cut anywhere, or with any byte changed, is refused or runs; nothing else happens. */
    struct buf wasm = guest_wat(pointers), artefact = {0};
    for (size_t n = 8; n < wasm.n; n++) {
        struct error err;
        buf_clear(&artefact);
        int rc = exec_compile(engine, (struct str){wasm.p, n}, &artefact, &err);
        assert_true(rc == LOOM_E_INVALID_MODULE || artefact.n > 0);
    }
    for (size_t i = 8; i < wasm.n; i++) {
        char kept = wasm.p[i];
        wasm.p[i] = (char)(kept ^ (1 << i % 8));
        buf_clear(&artefact);
        if (!exec_compile(engine, buf_view(&wasm), &artefact, NULL)) {
            struct exec_module *m = exec_module_load(engine, STR_NONE, buf_view(&artefact), NULL);
            assert_non_null(m);
            struct exec *x = exec_new(m, (struct exec_limits){.memory_mb = 1, .cpu_ms = 4}, 7, NULL);
            run_on(x);
            exec_free(x);
            exec_module_free(m);
        }
        wasm.p[i] = kept;
    }
    buf_free(&wasm);
    buf_free(&artefact);
}

static void foreign_artefact(void **state) {
    (void)state; /* An artefact of another engine's settings is refused, not run. */
    struct error err;
    struct exec_engine *e = exec_engine_new(1, 2000000, &err);
    struct buf wasm = guest_wat(pointers), artefact = {0};
    assert_int_equal(exec_compile(e, buf_view(&wasm), &artefact, &err), 0);
    assert_string_not_equal(exec_artefact_key(e), exec_artefact_key(engine));
    assert_null(exec_module_load(engine, STR_NONE, buf_view(&artefact), &err));
    assert_string_equal(err.code, "invalid_module");
    assert_null(exec_module_load(engine, STR("junk"), STR("junk"), &err));
    assert_string_equal(err.code, "invalid_module");
    assert_null(exec_module_kept(engine, STR("junk")));
    buf_free(&wasm);
    buf_free(&artefact);
    exec_engine_free(e);
}

static void compile_apart(void **state) {
    (void)state; /* A child process compiles to the same artefact, and gives the same reasons. */
    struct buf wasm = guest_wat(pointers), here = {0}, apart = {0};
    struct error err;
    assert_int_equal(exec_compile(engine, buf_view(&wasm), &here, &err), 0);
    if (exec_compile_apart(engine, "/proc/self/exe", buf_view(&wasm), &apart, &err)) fail_msg("%s", err.message);
    assert_true(str_eq(buf_view(&here), buf_view(&apart)));
    buf_clear(&apart);
    struct str cut = {wasm.p, wasm.n - 1};
    assert_int_equal(exec_compile_apart(engine, "/proc/self/exe", cut, &apart, &err), LOOM_E_INVALID_MODULE);
    assert_non_null(strstr(err.message, "unexpected end"));
    assert_int_equal(exec_compile_apart(engine, "/bin/false", buf_view(&wasm), &apart, &err), LOOM_E_INVALID_MODULE);
    assert_non_null(strstr(err.message, "to compile"));
    assert_int_equal(exec_compile_apart(engine, "/nowhere", buf_view(&wasm), &apart, &err), LOOM_E_INTERNAL);
    assert_non_null(strstr(err.message, "/nowhere"));
    assert_int_equal(apart.n, 0);
    buf_free(&wasm);
    buf_free(&here);
    buf_free(&apart);
}

/* ---- WASI ---- */

#define WASI(name, type) "(import \"wasi_snapshot_preview1\" \"" name "\" (func $" name " " type "))"

static void wasi_output(void **state) {
    (void)state; /* Output becomes one op `log` per line, however it was cut; the rest is logged at the end. */
    struct exec *x = start(
        "(module " WASI("fd_write", "(param i32 i32 i32 i32) (result i32)") MEMORY
        "(data (i32.const 0) \"\\40\\00\\00\\00\\08\\00\\00\\00\\48\\00\\00\\00\\04\\00\\00\\00\")"
        "(data (i32.const 64) \"one\\0atwo \\ff\\0a\\22x\") (func (export \"run\")"
        "(if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 2) (i32.const 32)) (then unreachable))"
        "(if (i32.ne (i32.load (i32.const 32)) (i32.const 12)) (then unreachable))"
        "(if (i32.ne (call $fd_write (i32.const 3) (i32.const 0) (i32.const 2) (i32.const 32)) (i32.const 8)) (then "
        "unreachable))"
        "(if (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 32)) (then unreachable))))",
        limits);
    static const char *const lines[] = {
        "{\"level\":\"info\",\"msg\":\"one\"}",
        "{\"level\":\"info\",\"msg\":\"two ?\"}",
        "{\"level\":\"error\",\"msg\":\"\\\"xone\"}",
        "{\"level\":\"error\",\"msg\":\"two \"}",
    };
    for (size_t i = 0; i < 4; i++) {
        expect_op(x, "log", lines[i]);
        exec_answer(x, true, STR("null"));
    }
    assert_int_equal(run_on(x), EXEC_END);
    exec_free(x);
    trap_of(
        "(module " WASI("fd_write", "(param i32 i32 i32 i32) (result i32)") MEMORY
        "(func (export \"run\") (drop (call $fd_write (i32.const 1) (i32.const 65530) (i32.const 1) (i32.const 0)))))",
        "bad_pointer", "65530 + 8");
}

static void output_keeps_the_result(void **state) {
    (void)state; /* What a program prints between op and take does not touch the op's result. */
    struct exec *x = start(
        "(module " IMPORTS WASI("fd_write", "(param i32 i32 i32 i32) (result i32)") MEMORY
        "(data (i32.const 0) \"\\40\\00\\00\\00\\02\\00\\00\\00\") (data (i32.const 64) \"x\\0aop\")"
        "(func (export \"run\") (drop (call $op (i32.const 66) (i32.const 2) (i32.const 0) (i32.const 0)))"
        "(drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))"
        "(call $take (i32.const 100))"
        "(drop (call $op (i32.const 66) (i32.const 2) (i32.const 100) (i32.const 4)))))",
        limits);
    expect_op(x, "op", "");
    exec_answer(x, true, STR("1234"));
    expect_op(x, "log", "{\"level\":\"info\",\"msg\":\"x\"}");
    exec_answer(x, true, STR("null"));
    expect_op(x, "op", "1234");
    exec_free(x);
}

static void wasi_clock_and_random(void **state) {
    (void)
        state; /* The clock is what exec_run() was told, randomness follows from the seed alone; too much is refused. */
    char seen[3][600];
    struct exec_module *m = load_in(
        engine,
        "(module " IMPORTS WASI("clock_time_get", "(param i32 i64 i32) (result i32)") WASI(
            "random_get",
            "(param i32 i32) (result i32)") "(memory (export \"memory\") 2)"
                                            "(func (export \"run\")"
                                            "(if (call $clock_time_get (i32.const 0) (i64.const 1) (i32.const 8)) "
                                            "(then unreachable))"
                                            "(if (i64.ne (i64.load (i32.const 8)) (i64.const 1234000000)) (then "
                                            "unreachable))"
                                            "(if (call $random_get (i32.const 16) (i32.const 300)) (then unreachable))"
                                            "(if (call $random_get (i32.const 316) (i32.const 300)) (then unreachable))"
                                            "(if (i32.ne (call $random_get (i32.const 0) (i32.const 65537)) (i32.const "
                                            "28)) (then unreachable))"
                                            "(drop (call $op (i32.const 0) (i32.const 0) (i32.const 16) (i32.const "
                                            "600)))))");
    for (int i = 0; i < 3; i++) {
        struct str name, arg;
        struct exec *x = exec_new(m, limits, i == 2 ? 8 : 7, NULL);
        if (run_on(x) != EXEC_OP) expect_trap(x, "", "");
        exec_op(x, &name, &arg);
        memcpy(seen[i], arg.p, sizeof *seen);
        exec_free(x);
    }
    assert_memory_equal(seen[0], seen[1], sizeof *seen);
    assert_memory_not_equal(seen[0], seen[2], 300);
    assert_memory_not_equal(seen[0], seen[0] + 300, 300);
    exec_module_free(m);
}

static void wasi_much_output(void **state) {
    (void)
        state; /* A line beyond 64 KB is cut; a guest that only prints is logged as it goes, before it ends or traps. */
    struct exec *x = start(
        "(module " WASI(
            "fd_write",
            "(param i32 i32 i32 i32) (result i32)") "(memory (export \"memory\") 3)"
                                                    "(data (i32.const 0) \"\\40\\00\\00\\00\\00\\00\\02\\00\") (func "
                                                    "(export \"run\") (local $left i32)"
                                                    "(memory.fill (i32.const 64) (i32.const 120) (i32.const 0x20000)) "
                                                    "(local.set $left (i32.const 9))"
                                                    "(loop $l (drop (call $fd_write (i32.const 1) (i32.const 0) "
                                                    "(i32.const 1) (i32.const 32)))"
                                                    "(if (i32.gt_u (i32.load (i32.const 32)) (i32.const 0x10000)) "
                                                    "(then unreachable))"
                                                    "(br_if $l (local.tee $left (i32.sub (local.get $left) (i32.const "
                                                    "1)))))"
                                                    "(i32.store (i32.const 4) (i32.const 1))"
                                                    "(drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) "
                                                    "(i32.const 32))) unreachable))",
        limits);
    for (int i = 0; i < 10; i++) {
        struct str name, arg;
        assert_int_equal(run_on(x), EXEC_OP);
        exec_op(x, &name, &arg);
        assert_true(str_eq(name, STR("log")));
        assert_int_equal(arg.n, i < 9 ? 65536 + 25 : 1 + 26);
        exec_answer(x, true, STR("null"));
    }
    expect_trap(x, "trap", "unreachable");
}

static void wasi_exit(void **state) {
    (void)state; /* proc_exit(0) ends the guest, any other code is a trap; `_start` stands in for `run`. */
    struct exec *x = start("(module " WASI("proc_exit", "(param i32)") MEMORY
                           "(func (export \"_start\") (call $proc_exit (i32.const 0)) unreachable))",
                           limits);
    assert_int_equal(run_on(x), EXEC_END);
    assert_false(exec_again(x));
    exec_free(x);
    trap_of("(module " WASI("proc_exit", "(param i32)") MEMORY
            "(func $f (export \"run\") (call $proc_exit (i32.const 3))))",
            "trap", "exited with code 3 in f");
}

static void wasi_nothing(void **state) {
    (void)state; /* No arguments, no environment, no files; polling finds everything ready. */
    struct exec *x = start(
        "(module " WASI("args_sizes_get", "(param i32 i32) (result i32)")
            WASI("environ_get", "(param i32 i32) (result i32)") WASI("fd_prestat_get", "(param i32 i32) (result i32)")
                WASI("fd_fdstat_get", "(param i32 i32) (result i32)")
                    WASI("fd_read", "(param i32 i32 i32 i32) (result i32)")
                        WASI("poll_oneoff", "(param i32 i32 i32 i32) (result i32)") MEMORY
        "(func (export \"run\") (i32.store (i32.const 0) (i32.const 9)) (i64.store (i32.const 64) (i64.const 77))"
        "(if (call $args_sizes_get (i32.const 0) (i32.const 4)) (then unreachable))"
        "(if (i32.load (i32.const 0)) (then unreachable))"
        "(if (call $environ_get (i32.const 0) (i32.const 4)) (then unreachable))"
        "(if (i32.ne (call $fd_prestat_get (i32.const 3) (i32.const 0)) (i32.const 8)) (then unreachable))"
        "(if (call $fd_fdstat_get (i32.const 1) (i32.const 0)) (then unreachable))"
        "(if (i32.ne (i32.load8_u (i32.const 0)) (i32.const 2)) (then unreachable))"
        "(if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 8)) (then unreachable))"
        "(if (call $poll_oneoff (i32.const 64) (i32.const 256) (i32.const 1) (i32.const 0)) (then unreachable))"
        "(if (i64.ne (i64.load (i32.const 256)) (i64.const 77)) (then unreachable))"
        "(if (i32.ne (i32.load (i32.const 0)) (i32.const 1)) (then unreachable))))",
        limits);
    if (run_on(x) != EXEC_END) expect_trap(x, "", "");
    exec_free(x);
}

static void assemblyscript_abort(void **state) {
    (void)state; /* AssemblyScript's abort is a trap with its message. */
    trap_of("(module (import \"env\" \"abort\" (func $abort (param i32 i32 i32 i32)))" MEMORY
            "(data (i32.const 12) \"\\04\\00\\00\\00o\\00h\\00\") (func (export \"run\")"
            "(call $abort (i32.const 16) (i32.const 0) (i32.const 3) (i32.const 5))))",
            "trap", "abort: oh at line 3:5");
    /* Nor does one that begins with it pass for an instance that found no room, whatever its message says. */
    trap_of("(module (import \"env\" \"abort\" (func $abort (param i32 i32 i32 i32)))" MEMORY
            "(data (i32.const 12) \"\\24\\00\\00\\00m\\00a\\00x\\00i\\00m\\00u\\00m\\00 "
            "\\00c\\00o\\00n\\00c\\00u\\00r\\00r\\00e\\00n\\00t\\00\")"
            "(func $s (call $abort (i32.const 16) (i32.const 0) (i32.const 3) (i32.const 5))) (start $s)"
            "(func (export \"run\")))",
            "trap", "abort: maximum concurrent at line 3:5");
    trap_of("(module (import \"env\" \"abort\" (func $abort (param i32 i32 i32 i32)))" MEMORY
            "(func (export \"run\") (call $abort (i32.const 65540) (i32.const 0) (i32.const 3) (i32.const 5))))",
            "bad_pointer", "");
}

/* ---- native guests ---- */

int32_t loom_native_op(const char *name, size_t name_len, const char *arg, size_t arg_len);
void loom_native_take(char *dst);
void *loom_native_alloc(size_t n);

static void native_guest(void) {
    char *text = loom_native_alloc(100);
    int32_t n = loom_native_op("ask", 3, "null", 4);
    loom_native_take(text);
    n = loom_native_op("tell", 4, text, (size_t)n);
    loom_native_take(text);
    loom_native_op("failed", 6, text, (size_t)(-1 - n));
}

static void native(void **state) {
    (void)state; /* A native guest asks like a WASM one, on any thread, and may be dropped wherever it waits. */
    struct exec_module *m = exec_module_native(native_guest);
    for (int stop = 0; stop < 4; stop++) {
        struct exec *x = exec_new(m, limits, 7, NULL);
        pthread_t t;
        expect_op(x, "ask", "null");
        exec_answer(x, true, STR("\"hi\""));
        if (stop > 0) expect_op(x, "tell", "\"hi\"");
        if (stop > 0) exec_answer(x, false, STR("{}"));
        if (stop > 1) {
            pthread_create(&t, NULL, run_elsewhere, x);
            pthread_join(t, NULL);
        }
        if (stop > 2) assert_int_equal(run_on(x), EXEC_END);
        if (stop > 2) assert_int_equal(run_on(x), EXEC_END);
        assert_false(exec_again(x));
        assert_true(exec_bytes(x) > 0);
        exec_free(x);
    }
    exec_module_free(m);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--compile-module")) return exec_compile_child(0, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(op_and_take),
        cmocka_unit_test(ops_before_run),
        cmocka_unit_test(take_too_early),
        cmocka_unit_test(fault_21_bad_pointers),
        cmocka_unit_test(fault_21_take_out_of_bounds),
        cmocka_unit_test(fault_18_endless_loops),
        cmocka_unit_test(fault_18_loop_around_ops),
        cmocka_unit_test(fault_19_memory_and_table_limits),
        cmocka_unit_test(fault_20_traps),
        cmocka_unit_test(slots),
        cmocka_unit_test(mappings),
        cmocka_unit_test(fresh_memory),
        cmocka_unit_test(between_threads),
        cmocka_unit_test(many_threads),
        cmocka_unit_test(resident_bytes),
        cmocka_unit_test(fault_23_deterministic),
        cmocka_unit_test(idle_engine_sleeps),
        cmocka_unit_test(refusals),
        cmocka_unit_test(fault_22_mangled_modules),
        cmocka_unit_test(foreign_artefact),
        cmocka_unit_test(compile_apart),
        cmocka_unit_test(wasi_output),
        cmocka_unit_test(output_keeps_the_result),
        cmocka_unit_test(wasi_clock_and_random),
        cmocka_unit_test(wasi_much_output),
        cmocka_unit_test(wasi_exit),
        cmocka_unit_test(wasi_nothing),
        cmocka_unit_test(assemblyscript_abort),
        cmocka_unit_test(native),
    };
    return cmocka_run_group_tests(tests, open_engine, close_engine);
}
