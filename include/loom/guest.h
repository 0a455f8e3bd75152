/* guest.h: write Loom actors and activities in C. The same source becomes a WASM module or a native guest.
 *
 *     clang --target=wasm32 -O2 -mbulk-memory -nostdlib -I include -Wl,--no-entry -Wl,--strip-debug -o support.wasm support.c
 *
 * An agent that keeps state, asks a model, waits for a person and replies:
 *
 *     #include <loom/guest.h>
 *
 *     LOOM_ACTOR(support) {
 *         loom_json question = loom_input();
 *         loom_set("/question", "%j", question);
 *
 *         int draft = loom_activity("openai-chat", "{'prompt': 'Answer politely: %t'}", loom_text(question));
 *         loom_json answer = loom_must(loom_await(draft));
 *         loom_set("/answer", "%j", answer);
 *
 *         loom_json review = loom_must(loom_await(loom_wait_event("approved", 24 * 3600 * 1000)));
 *         loom_return("{'answer': %j, 'by': %j}", answer, loom_get(review, "/user"));
 *     }
 *
 * A kill, a deploy or a month between two of these lines changes nothing: the turn is replayed to where it was. So an
 * actor is plain code without clock, randomness, network or mutable statics of its own; activities do the outside work.
 *
 * JSON is text. A loom_json is a piece of it (n = 0: not there) without white space around it; reading never fails, what
 * is missing reads as 0, "" or false. Only valid JSON reads sensibly, and the host gives no other; broken text is never
 * read past its end. What is built comes from a template, in which ' stands for " and these directives take arguments:
 *     %s  const char *, escaped, to stand between quotes     %d  int           %b  bool
 *     %t  loom_string, escaped, to stand between quotes      %l  int64_t       %f  double, up to 15 digits
 *     %j  loom_json, as it is; missing: null                 %%  a percent sign
 *     %m  const char * and loom_json: the member ,"name":value of an object, or nothing when the value is missing
 * A literal ' comes in by %s. A template that makes no valid JSON fails the op with `invalid_argument`.
 *
 * Memory comes from loom_alloc() and is freed with the turn. Needs no libc, includes nothing but three headers of types.
 * What it deliberately lacks: a tree of JSON values (see guest_yyjson.h), numbers beyond int64 and double.
 */
#ifndef LOOM_GUEST_H
#define LOOM_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct loom_json {
    const char *p;
    size_t n;
} loom_json;

/* Plain text: p[n] is 0 as well, so p serves as a C string when the text has no NUL of its own. */
typedef struct loom_string {
    const char *p;
    size_t n;
} loom_string;

/* What came of an op: the value, or the error {"code", "message", "retryable"}. */
typedef struct loom_result {
    bool ok;
    int promise; /* which promise this settles; 0: none (the op itself answered) */
    loom_json value;
} loom_result;

/* ---- the door to the host: two functions; WASM imports them from "loom", natively the engine has them ---- */

#ifdef __wasm__
#define LOOM_IMPORT(name) __attribute__((import_module("loom"), import_name(name)))
#define LOOM_EXPORT(name) __attribute__((export_name(name)))
#else
#define LOOM_IMPORT(name)
#define LOOM_EXPORT(name)
#endif

/* Runs an op. The length n of its result; −1 − n: it failed, and the result is the error. */
LOOM_IMPORT("op") extern int32_t loom_native_op(const char *name, size_t name_len, const char *arg, size_t arg_len);
/* Copies the result of the last op. */
LOOM_IMPORT("take") extern void loom_native_take(char *dst);

/* LOOM_ACTOR(name) { … } and LOOM_ACTIVITY(name) { … } define the guest's entry; its native name is loom_run_NAME.
 *
 * When an activity's definition says `reuse`, its instance serves one attempt after the other. loom_return() and
 * loom_fail() do not come back then either: the next attempt begins by dropping what the last one left of its stack and
 * heap. Only static variables keep their values: a cache, but nothing that an attempt may rely on. After a trap, a
 * timeout or a cancellation the instance is gone. */
#define LOOM_ACTOR(name)                           \
    LOOM_EXPORT("run") void loom_run_##name(void); \
    void loom_run_##name(void)
#define LOOM_ACTIVITY(name)                                           \
    __attribute__((noinline)) static void loom_activity_##name(void); \
    LOOM_EXPORT("again") void loom_again_##name(void);                \
    void loom_again_##name(void) {                                    \
        loom_rewind();                                                \
        loom_activity_##name();                                       \
    }                                                                 \
    LOOM_ACTOR(name) {                                                \
        loom_remember_stack();                                        \
        loom_activity_##name();                                       \
    }                                                                 \
    static void loom_activity_##name(void)

/* ---- memory ---- */

#ifdef __wasm__
extern unsigned char __heap_base;                     /* from the linker: the first byte behind stack and data */
__attribute__((weak)) unsigned char *loom_memory_top; /* all that is allocated lies below; NULL: nothing is */

static inline void *loom_alloc(size_t n) {
    uintptr_t top = loom_memory_top ? (uintptr_t)loom_memory_top : (uintptr_t)&__heap_base;
    uintptr_t start = (top + 7) & ~(uintptr_t)7, end = __builtin_wasm_memory_size(0) << 16;
    static const char error[] = "{\"code\":\"out_of_memory\",\"message\":\"the guest reached its limit maxMemoryMB\"}";
    if (n > UINT32_MAX - start - 65536 ||
        (start + n > end && __builtin_wasm_memory_grow(0, (start + n - end + 65535) >> 16) == SIZE_MAX)) {
        loom_native_op("fail", 4, error, sizeof(error) - 1);
        __builtin_trap();
    }
    loom_memory_top = (unsigned char *)(start + n);
    return (void *)start;
}

/* Frees what was allocated since `mark`, an earlier answer of loom_mark(). Natively memory is freed with the turn only. */
static inline void *loom_mark(void) {
    return loom_memory_top;
}
static inline void loom_release(void *mark) {
    loom_memory_top = mark;
}

__attribute__((weak)) void *loom_stack_start; /* where the stack stood when the first run began */

static inline void loom_remember_stack(void) {
    __asm__ volatile(".globaltype __stack_pointer, i32\n global.get __stack_pointer\n local.set %0"
                     : "=r"(loom_stack_start));
}
static inline void loom_rewind(void) {
    loom_memory_top = NULL;
    __asm__ volatile(".globaltype __stack_pointer, i32\n local.get %0\n global.set __stack_pointer"
                     :
                     : "r"(loom_stack_start));
}

/* What clang may call though there is no libc; with -mbulk-memory it hardly ever does. */
void *memcpy(void *restrict dst, const void *restrict src, size_t n);
void *memset(void *dst, int byte, size_t n);
__attribute__((weak, no_builtin)) void *memcpy(void *restrict dst, const void *restrict src, size_t n) {
    for (size_t i = 0; i < n; i++) ((char *)dst)[i] = ((const char *)src)[i];
    return dst;
}
__attribute__((weak, no_builtin)) void *memset(void *dst, int byte, size_t n) {
    for (size_t i = 0; i < n; i++) ((char *)dst)[i] = (char)byte;
    return dst;
}
#else
extern void *loom_native_alloc(size_t n); /* aligned as malloc; freed with the activation */

static inline void *loom_alloc(size_t n) {
    return loom_native_alloc(n);
}
static inline void *loom_mark(void) {
    return NULL;
}
static inline void loom_release(void *mark) {
    (void)mark;
}
static inline void loom_remember_stack(void) {
}
static inline void loom_rewind(void) {
}
#endif

static inline size_t loom_length(const char *s) {
    size_t n = 0;
    while (s && s[n]) n++;
    return n;
}
static inline bool loom_same(const char *a, size_t a_len, const char *b, size_t b_len) {
    size_t i = 0;
    while (i < a_len && i < b_len && a[i] == b[i]) i++;
    return i == a_len && i == b_len;
}
/* A C string as loom_string, without a copy. */
static inline loom_string loom_chars(const char *s) {
    return (loom_string){s, loom_length(s)};
}

/* ---- reading JSON ---- */

/* '{', '[', '"', 't', 'f', 'n', a digit or '-'; 0: missing. */
static inline char loom_kind(loom_json v) {
    return v.n ? *v.p : 0;
}
static inline bool loom_is_null(loom_json v) {
    return v.n == 0 || *v.p == 'n';
}
static inline bool loom_bool(loom_json v) {
    return loom_kind(v) == 't';
}

static inline const char *loom_blank(const char *p, const char *end) {
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')) p++;
    return p;
}
/* Do eight bytes hold neither " nor \ nor a control character? (Bytes found by arithmetic: Bit Twiddling Hacks, Anderson.) */
static inline bool loom_plain(const char *p) {
    const uint64_t ones = 0x0101010101010101;
    uint64_t bytes, quote, slash;
    __builtin_memcpy(&bytes, p, sizeof(bytes));
    quote = bytes ^ ones * '"';
    slash = bytes ^ ones * '\\';
    return !((((quote - ones) & ~quote) | ((slash - ones) & ~slash) | ((bytes - ones * ' ') & ~bytes)) & ones * 0x80);
}
static inline const char *loom_string_end(const char *p, const char *end) {
    for (p++;; p += 2) { /* over an escape */
        while (end - p > 8 && loom_plain(p)) p += 8;
        while (p < end && *p != '"' && *p != '\\') p++;
        if (p >= end) return end;
        if (*p == '"') return p + 1;
    }
}
/* The value at p (white space before it is skipped). */
static inline loom_json loom_value(const char *p, const char *end) {
    const char *start = loom_blank(p, end);
    size_t depth = 0;
    for (p = start; p < end;) {
        unsigned char c = (unsigned char)*p;
        bool opens = c == '{' || c == '[', closes = c == '}' || c == ']';
        if (depth == 0 && (c == ',' || c == ':' || c <= ' ' || closes)) break;
        p = c == '"' ? loom_string_end(p, end) : p + 1;
        depth += opens;
        depth -= closes;
        if (depth == 0 && (closes || c == '"')) break;
    }
    return (loom_json){start, (size_t)(p - start)};
}

/* for (struct loom_each it = loom_each(v); loom_next(&it);) … it.key, it.value
 * goes over the members of an object or the items of an array (key missing), in their order; over nothing else. */
struct loom_each {
    const char *p, *end;
    loom_json key, value;
};
static inline struct loom_each loom_each(loom_json v) {
    bool container = loom_kind(v) == '{' || loom_kind(v) == '[';
    return container ? (struct loom_each){.p = v.p, .end = v.p + v.n} : (struct loom_each){0};
}
static inline bool loom_next(struct loom_each *it) {
    if (it->p >= it->end) return false;
    loom_json next = loom_value(it->p + 1, it->end); /* behind { [ or , */
    it->key = (loom_json){0};
    it->p = loom_blank(next.p + next.n, it->end);
    if (it->p < it->end && *it->p == ':') {
        it->key = next;
        next = loom_value(it->p + 1, it->end);
        it->p = loom_blank(next.p + next.n, it->end);
    }
    it->value = next;
    if (it->p < it->end && *it->p != ',') it->p = it->end;
    return next.n > 0;
}
static inline size_t loom_count(loom_json v) {
    size_t n = 0;
    for (struct loom_each it = loom_each(v); loom_next(&it);) n++;
    return n;
}

static inline uint32_t loom_hex4(const char *p) {
    uint32_t c = 0;
    for (int i = 0; i < 4; i++) c = c * 16 + (uint32_t)(p[i] <= '9' ? p[i] - '0' : (p[i] | 32) - 'a' + 10);
    return c;
}
static inline char *loom_put_utf8(char *to, uint32_t c) {
    if (c < 0x80) {
        *to++ = (char)c;
        return to;
    }
    int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    *to++ = (char)((0xF0u << (3 - more)) | (c >> (6 * more)));
    while (more-- > 0) *to++ = (char)(0x80 | ((c >> (6 * more)) & 0x3F));
    return to;
}
/* Reads the escape at p (behind the backslash), writes what it means, and steps over it. */
static inline char *loom_unescape(char *to, const char **p, const char *end) {
    static const char names[] = "nrtbf", values[] = "\n\r\t\b\f";
    char name = *(*p)++;
    if (name == 'u' && end - *p >= 4) {
        uint32_t c = loom_hex4(*p);
        *p += 4;
        if (c >> 10 == 0x36 && end - *p >= 6) { /* the first half of a surrogate pair */
            c = 0x10000 + ((c & 0x3FF) << 10) + (loom_hex4(*p + 2) & 0x3FF);
            *p += 6;
        }
        return loom_put_utf8(to, c);
    }
    for (int i = 0; names[i]; i++)
        if (names[i] == name) name = values[i];
    *to++ = name;
    return to;
}
/* The text of a string; of any other value its JSON. */
static inline loom_string loom_text(loom_json v) {
    bool quoted = loom_kind(v) == '"' && v.n > 1;
    const char *json = v.n ? v.p : "", *p = json + quoted, *end = json + v.n - quoted;
    char *text = loom_alloc(v.n + 1), *to = text;
    while (p < end) {
        char c = *p++;
        if (quoted && c == '\\' && p < end)
            to = loom_unescape(to, &p, end);
        else
            *to++ = c;
    }
    *to = 0;
    return (loom_string){text, (size_t)(to - text)};
}
/* Is it the string `text`? */
static inline bool loom_equals(loom_json v, const char *text, size_t n) {
    if (loom_kind(v) != '"' || v.n < n + 2) return false;
    if (v.n == n + 2) { /* no escapes then: they are longer than what they stand for */
        size_t i = 0;
        while (i < n && text[i] != '\\' && v.p[i + 1] == text[i]) i++;
        return i == n;
    }
    void *mark = loom_mark();
    loom_string s = loom_text(v);
    loom_release(mark);
    return loom_same(s.p, s.n, text, n);
}
static inline bool loom_is(loom_json v, const char *text) {
    return loom_equals(v, text, loom_length(text));
}

static inline loom_json loom_member(loom_json object, const char *name, size_t n) {
    for (struct loom_each it = loom_each(object); loom_next(&it);)
        if (loom_equals(it.key, name, n)) return it.value;
    return (loom_json){0};
}
static inline loom_json loom_item(loom_json array, uint64_t index) {
    for (struct loom_each it = loom_each(array); loom_kind(array) == '[' && loom_next(&it);)
        if (index-- == 0) return it.value;
    return (loom_json){0};
}
/* The value at a JSON Pointer: loom_get(v, "/items/0/name"); "" is v itself. */
static inline loom_json loom_get(loom_json v, const char *pointer) {
    while (*pointer == '/' && v.n) {
        void *mark = loom_mark();
        char *token = loom_alloc(loom_length(pointer));
        size_t n = 0;
        uint64_t index = 0;
        for (pointer++; *pointer && *pointer != '/'; pointer++) {
            bool escaped = *pointer == '~' && pointer[1];
            token[n++] = escaped ? "/~"[*++pointer == '0'] : *pointer;
            index = index * 10 + (uint64_t)(*pointer - '0');
        }
        v = loom_kind(v) == '[' ? loom_item(v, index) : loom_member(v, token, n);
        loom_release(mark);
    }
    return v;
}

/* d × 10^e, exactly rounded as long as |e| ≤ 22 and d is below 2^53. */
static inline double loom_scale(double d, int e) {
    for (; e > 22; e -= 22) d *= 1e22;
    for (; e < -22; e += 22) d /= 1e22;
    double power = 1;
    for (int i = 0; i < (e < 0 ? -e : e); i++) power *= 10;
    return e < 0 ? d / power : d * power;
}
static inline double loom_number(loom_json v) {
    const char *p = v.n ? v.p : "", *end = p + v.n;
    bool negative = loom_kind(v) == '-', fraction = false;
    uint64_t digits = 0;
    int e = 0, exponent = 0;
    for (p += negative; p < end && ((*p >= '0' && *p <= '9') || *p == '.'); p++) {
        if (*p == '.') {
            fraction = true;
        } else if (digits < UINT64_MAX / 10 - 1) {
            digits = digits * 10 + (uint64_t)(*p - '0');
            e -= fraction;
        } else {
            e += !fraction;
        }
    }
    if (p < end && (*p | 32) == 'e') {
        bool down = ++p < end && *p == '-';
        for (p += p < end && (*p == '-' || *p == '+'); p < end && *p >= '0' && *p <= '9' && exponent < 1000; p++)
            exponent = exponent * 10 + (*p - '0');
        e += down ? -exponent : exponent;
    }
    double d = digits ? loom_scale((double)digits, e) : 0;
    return negative ? -d : d;
}
/* An integer; of a fraction what stands before its point; of what int64_t cannot hold the nearest end. */
static inline int64_t loom_int(loom_json v) {
    bool negative = loom_kind(v) == '-', plain = true;
    int64_t value = 0;
    for (size_t i = negative; i < v.n && plain; i++) {
        int digit = v.p[i] - '0';
        plain = digit >= 0 && digit <= 9 && value >= (INT64_MIN + digit) / 10;
        value = plain ? value * 10 - digit : 0; /* built up below zero, where there is more room */
    }
    if (plain && (negative || value != INT64_MIN)) return negative ? value : -value;
    double d = loom_number(v);
    return d >= 9223372036854775808.0 ? INT64_MAX : d <= -9223372036854775808.0 ? INT64_MIN : (int64_t)d;
}

/* ---- building JSON ---- */

struct loom_out {
    char *p;
    size_t n, cap;
};
/* Room for n more bytes. */
static inline char *loom_room(struct loom_out *o, size_t n) {
    if (o->cap - o->n < n) {
        char *from = o->p;
        o->cap = 2 * o->cap > o->n + n ? 2 * o->cap : o->n + n + 128;
        o->p = loom_alloc(o->cap);
        if (o->n) __builtin_memcpy(o->p, from, o->n);
    }
    return o->p + o->n;
}
static inline void loom_put(struct loom_out *o, const char *p, size_t n) {
    if (n) __builtin_memcpy(loom_room(o, n), p, n);
    o->n += n;
}
static inline void loom_put_escaped(struct loom_out *o, const char *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        size_t run = i;
        while (n - i >= 8 && loom_plain(p + i)) i += 8;
        loom_put(o, p + run, i - run);
        if (i == n) break;
        unsigned char c = (unsigned char)p[i];
        char escape[] = {'\\', 'u', '0', '0', "01"[c >> 4 & 1], "0123456789abcdef"[c & 15]};
        if (c < 0x20)
            loom_put(o, escape, sizeof(escape));
        else if (c == '"' || c == '\\')
            loom_put(o, (char[]){'\\', (char)c}, 2);
        else
            loom_put(o, p + i, 1);
    }
}
static inline void loom_put_int(struct loom_out *o, int64_t value) {
    char digits[20], *p = digits + sizeof(digits);
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    do *--p = (char)('0' + rest % 10);
    while (rest /= 10);
    if (value < 0) *--p = '-';
    loom_put(o, p, (size_t)(digits + sizeof(digits) - p));
}
static inline void loom_put_number(struct loom_out *o, double d) {
    if (d - d != 0) { /* neither NaN nor the infinities are JSON */
        loom_put(o, "null", 4);
        return;
    }
    if (d > -9e15 && d < 9e15 && d == (double)(int64_t)d) {
        loom_put_int(o, (int64_t)d);
        return;
    }
    int e = 0; /* |d| = digits × 10^e with 15 digits */
    double size = d < 0 ? -d : d;
    while (loom_scale(size, -e) >= 1e15) e++;
    while (loom_scale(size, -e) < 1e14) e--;
    int64_t digits = (int64_t)(loom_scale(size, -e) + 0.5);
    for (; digits % 10 == 0; e++) digits /= 10;
    loom_put_int(o, d < 0 ? -digits : digits);
    loom_put(o, "e", 1); /* 12.5 goes out as 125e-1: the host writes every number anew */
    loom_put_int(o, e);
}

/* One directive of a template: writes its argument. */
static inline void loom_put_argument(struct loom_out *o, char directive, __builtin_va_list *args) {
    switch (directive) {
    case 's': {
        loom_string s = loom_chars(__builtin_va_arg(*args, const char *));
        loom_put_escaped(o, s.p, s.n);
        break;
    }
    case 't': {
        loom_string s = __builtin_va_arg(*args, loom_string);
        loom_put_escaped(o, s.p, s.n);
        break;
    }
    case 'j': {
        loom_json v = __builtin_va_arg(*args, loom_json);
        loom_put(o, v.n ? v.p : "null", v.n ? v.n : 4);
        break;
    }
    case 'm': {
        loom_string name = loom_chars(__builtin_va_arg(*args, const char *));
        loom_json v = __builtin_va_arg(*args, loom_json);
        loom_put(o, ",\"", v.n ? 2 : 0);
        loom_put(o, name.p, v.n ? name.n : 0);
        loom_put(o, "\":", v.n ? 2 : 0);
        loom_put(o, v.p, v.n);
        break;
    }
    case 'd': loom_put_int(o, __builtin_va_arg(*args, int)); break;
    case 'l': loom_put_int(o, __builtin_va_arg(*args, int64_t)); break;
    case 'f': loom_put_number(o, __builtin_va_arg(*args, double)); break;
    case 'b': {
        bool yes = __builtin_va_arg(*args, int);
        loom_put(o, yes ? "true" : "false", yes ? 4 : 5);
        break;
    }
    default: loom_put(o, &directive, 1);
    }
}
static inline void loom_put_template(struct loom_out *o, const char *template, __builtin_va_list *args) {
    for (const char *p = template; *p; p++) {
        if (*p == '%' && p[1]) {
            loom_put_argument(o, *++p, args);
        } else {
            *loom_room(o, 1) = *p == '\'' ? '"' : *p;
            o->n++;
        }
    }
}
static inline loom_json loom_vformat(const char *template, __builtin_va_list args) {
    struct loom_out o = {0};
    __builtin_va_list copy; /* of which a pointer may be taken */
    __builtin_va_copy(copy, args);
    loom_put_template(&o, template, &copy);
    __builtin_va_end(copy);
    *loom_room(&o, 1) = 0;
    loom_release(o.p + o.n + 1);
    return (loom_json){o.p, o.n};
}
/* The template with its arguments, see the top of this file. */
static inline loom_json loom_format(const char *template, ...) {
    __builtin_va_list args;
    __builtin_va_start(args, template);
    loom_json v = loom_vformat(template, args);
    __builtin_va_end(args);
    return v;
}

/* ---- ops: `loom_op` is all there is; the rest are its shorthands. "…" is a template with its arguments. ---- */

static inline loom_result loom_op(const char *name, const char *template, ...) {
    void *mark = loom_mark();
    __builtin_va_list args;
    __builtin_va_start(args, template);
    loom_json arg = loom_vformat(template, args);
    __builtin_va_end(args);
    int32_t n = loom_native_op(name, loom_length(name), arg.p, arg.n);
    loom_release(mark);
    size_t len = n >= 0 ? (size_t)n : (size_t)(-1 - n);
    char *text = loom_alloc(len + 1);
    loom_native_take(text);
    text[len] = 0;
    return (loom_result){.ok = n >= 0, .value = {text, len}};
}
/* The ops that end the turn (or activity): they do not come back. */
_Noreturn static inline void loom_end(const char *op, loom_json value) {
    loom_native_op(op, loom_length(op), value.p, value.n);
    __builtin_trap();
}
/* Replies with a value and ends the turn. */
#define loom_return(...) loom_end("return", loom_format(__VA_ARGS__))
/* The same, and the actor is completed: later messages get an error. */
#define loom_finish(...) loom_end("finish", loom_format(__VA_ARGS__))
/* Ends the turn without a reply and starts the next with this input: how an endless loop keeps its journal short. */
#define loom_continue(...) loom_end("continue", loom_format(__VA_ARGS__))
/* loom_fail(code, retryable, "'message'"…): the turn or activity fails; an actor's state goes back to the turn's start. */
#define loom_fail(code, retryable, ...) \
    loom_end("fail",                    \
             loom_format("{'code':'%s','message':%j,'retryable':%b}", code, loom_format(__VA_ARGS__), retryable))

/* The value of a result; its error fails the turn. */
static inline loom_json loom_must(loom_result r) {
    if (!r.ok) loom_end("fail", r.value);
    return r.value;
}
/* The op's value, as JSON or as integer (promises are integers); an error fails the turn. */
#define loom_do(...)     loom_must(loom_op(__VA_ARGS__))
#define loom_do_int(...) ((int)loom_int(loom_do(__VA_ARGS__)))

static inline loom_json loom_input(void) {
    return loom_do("input", "null");
}
/* Milliseconds since 1970: for an actor the time of its last entry, for an activity the clock's. */
static inline int64_t loom_now(void) {
    return loom_int(loom_do("now", "null"));
}
/* In [0, 1). */
static inline double loom_random(void) {
    return loom_number(loom_do("random", "null"));
}
/* loom_log("info", "'sold %d'", n): a line of the worker's log; levels are trace, debug, info, warn, error. */
#define loom_log(level, ...) loom_do("log", "{'level':'%s','msg':%j}", level, loom_format(__VA_ARGS__))

/* ---- ops of actors ---- */

/* The definition's `config`, or null. */
static inline loom_json loom_config(void) {
    return loom_do("config", "null");
}
/* {id, namespace, type, key, messageId, sender, parentActorId, correlationId, attempt} */
static inline loom_json loom_self(void) {
    return loom_do("self", "null");
}
/* The state at a JSON Pointer, or null; "" is the whole. */
static inline loom_json loom_state(const char *pointer) {
    return loom_do("state.get", "'%s'", pointer);
}
/* Sets a member of the state; a pointer ending in /- appends to an array. */
#define loom_set(pointer, ...) \
    loom_do("state.patch", "[{'op':'add','path':'%s','value':%j}]", pointer, loom_format(__VA_ARGS__))
/* Changes the state by an RFC 6902 patch, all or nothing. */
#define loom_patch(...) loom_do("state.patch", __VA_ARGS__)

/* Each of these starts something and answers its promise. */
#define loom_activity(name, ...) loom_do_int("activity", "{'name':'%s','input':%j}", name, loom_format(__VA_ARGS__))
#define loom_call(to, ...)       loom_do_int("actor.call", "{'to':'%s','input':%j}", to, loom_format(__VA_ARGS__))
#define loom_spawn(type, ...)    loom_do_int("child.spawn", "{'type':'%s','input':%j}", type, loom_format(__VA_ARGS__))
/* An event of this type, its data; after timeout_ms (0: never) the error `timeout`. */
static inline int loom_wait_event(const char *type, int64_t timeout_ms) {
    loom_json timeout = timeout_ms > 0 ? loom_format("%l", timeout_ms) : (loom_json){0};
    return loom_do_int("event.wait", "{'type':'%s'%m}", type, "timeoutMs", timeout);
}
static inline int loom_timer(int64_t delay_ms) {
    return loom_do_int("timer", "{'delayMs':%l}", delay_ms);
}
/* Sends a message, without a reply, and answers its id; to is "type/key". */
#define loom_send(to, ...) loom_do("actor.send", "{'to':'%s','input':%j}", to, loom_format(__VA_ARGS__))
/* Something for those who watch the stream. */
#define loom_emit(channel, ...) loom_do("emit", "{'channel':'%s','data':%j}", channel, loom_format(__VA_ARGS__))
static inline void loom_cancel(int promise) {
    loom_do("cancel", "{'promise':%d}", promise);
}
/* Until someone resumes the actor; the value is the resume's data. */
static inline loom_result loom_suspend(const char *reason) {
    return loom_op("suspend", "{'reason':'%s'}", reason);
}

/* A settled promise as await gives it: {promise, ok} or {promise, error}. */
static inline loom_result loom_settled(loom_json settled) {
    loom_json ok = loom_member(settled, "ok", 2);
    int promise = (int)loom_int(loom_member(settled, "promise", 7));
    return (loom_result){.ok = ok.n > 0, .promise = promise, .value = ok.n ? ok : loom_member(settled, "error", 5)};
}
static inline loom_result loom_await_list(const int *promises, size_t n, const char *mode) {
    struct loom_out o = {0};
    for (size_t i = 0; i < n; i++) {
        loom_put(&o, i ? "," : "[", 1);
        loom_put_int(&o, promises[i]);
    }
    loom_put(&o, n ? "]" : "[]", n ? 1 : 2);
    return loom_op("await", "{'promises':%j,'mode':'%s'}", (loom_json){o.p, o.n}, mode);
}
/* Waits for the first of them. When the turn is cancelled the result is the error `cancelled` of no promise. */
static inline loom_result loom_await_any(const int *promises, size_t n) {
    loom_result r = loom_await_list(promises, n, "any");
    return r.ok ? loom_settled(r.value) : r;
}
/* Waits for all of them: an array, one item for loom_settled() per promise. */
static inline loom_result loom_await_all(const int *promises, size_t n) {
    return loom_await_list(promises, n, "all");
}
static inline loom_result loom_await(int promise) {
    return loom_await_any(&promise, 1);
}

/* ---- ops of activities ---- */

/* loom_http("{'method':'POST','url':'%s','body':%j}", …) → {status, headers, body}; an answer of any status is ok. */
#define loom_http(...) loom_op("http", __VA_ARGS__)
/* A handle that stands for a secret: put it into a header, the host replaces it on the way out. */
static inline loom_string loom_secret(const char *name) {
    return loom_text(loom_do("secret", "'%s'", name));
}
/* Tells that the activity is alive; true: it shall stop. */
#define loom_heartbeat(...) loom_bool(loom_get(loom_do("heartbeat", __VA_ARGS__), "/cancelled"))
#define loom_progress(...)  loom_do("progress", __VA_ARGS__)

#endif
