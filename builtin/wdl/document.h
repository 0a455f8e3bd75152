/* document.h: how a workflow document is read, by the interpreter and by the check at upload: ids of steps, expressions,
 * and templates with {{ expression }} in their strings.
 *
 * Expressions are a subset of CEL, so that they can grow into it:
 *     a.b[0]['odd name']  'text'  "text"  12.5  true  false  null  ( )  !  &&  ||  ==  !=  <  <=  >  >=
 *     x in list   key in object   has(a.b)   size(x)   a.name.contains('text')
 * A path starts at `input`, `workflow` or the output name of a step. A path that leads nowhere is the error
 * `unresolved_path`, except in has(). && and || do not look at their right side when the left decides.
 * Values are JSON text; nothing is computed twice as double that int64 can hold. Not here: arithmetic, macros, literal
 * lists and maps, equality of lists and maps (`type_mismatch`).
 */
#ifndef WDL_DOCUMENT_H
#define WDL_DOCUMENT_H

#include <loom/guest.h>

/* A step's id: its own, or its place: "3", "notify.1.2" (branch 1, step 2), "decide.then.1". */
static inline loom_string step_id(loom_json step, loom_string prefix, int index) {
    loom_json id = loom_get(step, "/id");
    return loom_text(id.n ? id : loom_format("'%t%d'", prefix, index));
}

/* ---- expressions ---- */

#define EXPR_DEPTH_MAX 12

struct expr {
    /* What a path starts with; false: no such name. */
    bool (*root)(void *ctx, loom_string name, loom_json *value);
    void *ctx;
    bool dry; /* parse and look names up, but compute nothing */
    /* state */
    const char *p, *end;
    int depth;
    const char *code;  /* NULL: no error yet */
    loom_json message; /* of the error: a JSON string */
};

static loom_json expr_any(struct expr *e);

static inline void expr_fail(struct expr *e, const char *code, loom_json message) {
    if (!e->code) {
        e->code = code;
        e->message = message;
    }
    e->p = e->end;
}
/* The rest is not what the grammar wants. */
static inline void expr_expected(struct expr *e, const char *what) {
    const char *p = loom_blank(e->p, e->end);
    loom_string rest = {p, (size_t)(e->end - p)};
    expr_fail(e, "bad_expression",
              loom_format("'expected %s, found %s%t%s'", what, rest.n ? "`" : "the end", rest, rest.n ? "`" : ""));
}

static inline bool expr_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
static inline bool expr_digit(char c) {
    return c >= '0' && c <= '9';
}
static inline bool expr_eat(struct expr *e, const char *token) {
    size_t n = loom_length(token);
    const char *p = loom_blank(e->p, e->end);
    if ((size_t)(e->end - p) < n || !loom_same(p, n, token, n)) return false;
    if (expr_letter(*token) && p + n < e->end && (expr_letter(p[n]) || expr_digit(p[n]))) return false;
    e->p = p + n;
    return true;
}
static inline void expr_need(struct expr *e, const char *token) {
    if (!expr_eat(e, token)) expr_expected(e, loom_text(loom_format("'`%s`'", token)).p);
}
static inline loom_string expr_word(struct expr *e) {
    const char *start = e->p = loom_blank(e->p, e->end);
    while (e->p < e->end && (expr_letter(*e->p) || (e->p > start && expr_digit(*e->p)))) e->p++;
    if (e->p == start) expr_expected(e, "a name");
    return (loom_string){start, (size_t)(e->p - start)};
}

static inline loom_json expr_bool(bool yes) {
    return yes ? (loom_json){"true", 4} : (loom_json){"false", 5};
}
static inline bool expr_truth(struct expr *e, loom_json v) {
    if (!e->dry && !e->code && loom_kind(v) != 't' && loom_kind(v) != 'f')
        expr_fail(e, "type_mismatch", loom_format("'%t is neither true nor false'", (loom_string){v.p, v.n}));
    return loom_bool(v);
}

/* Kinds of values that can be compared with each other: 1 number, 2 text, 3 true, false and null, 0 lists and maps. */
static inline int expr_class(loom_json v) {
    char kind = loom_kind(v);
    return kind == '"' ? 2 : kind == '[' || kind == '{' ? 0 : kind == '-' || expr_digit(kind) ? 1 : 3;
}
static inline bool expr_whole(loom_json v) {
    bool whole = v.n <= 18;
    for (size_t i = 1; i < v.n && whole; i++) whole = expr_digit(v.p[i]);
    return whole;
}
/* Less, equal, greater as −1, 0, 1; both of one class. */
static inline int expr_order(loom_json a, loom_json b) {
    if (expr_class(a) == 1) {
        if (expr_whole(a) && expr_whole(b)) return (loom_int(a) > loom_int(b)) - (loom_int(a) < loom_int(b));
        return (loom_number(a) > loom_number(b)) - (loom_number(a) < loom_number(b));
    }
    loom_string s = loom_text(a), t = loom_text(b);
    size_t i = 0;
    while (i < s.n && i < t.n && s.p[i] == t.p[i]) i++;
    int left = i < s.n ? (unsigned char)s.p[i] : -1, right = i < t.n ? (unsigned char)t.p[i] : -1;
    return (left > right) - (left < right);
}
static inline bool expr_equal(struct expr *e, loom_json a, loom_json b) {
    if (!e->dry && !e->code && (!expr_class(a) || !expr_class(b)))
        expr_fail(e, "type_mismatch", loom_format("'lists and objects cannot be compared'"));
    return !e->code && expr_class(a) == expr_class(b) && expr_order(a, b) == 0;
}
static inline bool expr_in(struct expr *e, loom_json v, loom_json container) {
    if (!e->dry && loom_kind(container) != '[' && loom_kind(container) != '{')
        expr_fail(e, "type_mismatch", loom_format("'`in` needs a list or an object on its right'"));
    for (struct loom_each it = loom_each(container); !e->code && loom_next(&it);)
        if (expr_equal(e, v, it.key.n ? it.key : it.value)) return true;
    return false;
}
static inline bool expr_contains(struct expr *e, loom_json v, loom_json part) {
    if (!e->dry && !e->code && (expr_class(v) != 2 || expr_class(part) != 2))
        expr_fail(e, "type_mismatch", loom_format("'contains() needs two texts'"));
    if (e->dry || e->code) return false;
    loom_string s = loom_text(v), t = loom_text(part);
    for (size_t i = 0; i + t.n <= s.n; i++)
        if (loom_same(s.p + i, t.n, t.p, t.n)) return true;
    return false;
}
static inline loom_json expr_size(struct expr *e, loom_json v) {
    if (!e->dry && !e->code && (expr_class(v) == 1 || expr_class(v) == 3))
        expr_fail(e, "type_mismatch", loom_format("'size() needs a text, a list or an object'"));
    return loom_format("%l", (int64_t)(expr_class(v) == 2 ? loom_text(v).n : loom_count(v)));
}

/* Behind an opening bracket: a name or a number, and the end of the bracket. */
static inline loom_json expr_index(struct expr *e, loom_json v) {
    loom_json index = expr_any(e);
    expr_need(e, "]");
    loom_string name = loom_text(index);
    return expr_class(index) == 2 ? loom_member(v, name.p, name.n) : loom_item(v, (uint64_t)loom_int(index));
}
static inline loom_json expr_call(struct expr *e, loom_json v, loom_string name) {
    if (!loom_same(name.p, name.n, "contains", 8))
        expr_fail(e, "bad_expression", loom_format("'there is no function `%t`'", name));
    loom_json part = expr_any(e);
    expr_need(e, ")");
    return expr_bool(expr_contains(e, v, part));
}
/* A root and what follows it: .name, ['name'], [0], .contains('text'). */
static inline loom_json expr_path(struct expr *e, bool optional) {
    const char *start = loom_blank(e->p, e->end);
    loom_json v = {0};
    loom_string name = expr_word(e);
    if (!e->code && !e->root(e->ctx, name, &v))
        expr_fail(e, "unresolved_path", loom_format("'nothing here is called `%t`'", name));
    while (!e->code) {
        loom_string path = {start, (size_t)(e->p - start)};
        if (expr_eat(e, "[")) {
            v = expr_index(e, v);
        } else if (expr_eat(e, ".")) {
            name = expr_word(e);
            v = expr_eat(e, "(") ? expr_call(e, v, name) : loom_member(v, name.p, name.n);
        } else {
            if (!v.n && !optional && !e->dry) expr_fail(e, "unresolved_path", loom_format("'there is no `%t`'", path));
            break;
        }
    }
    return v;
}

/* 'text' or "text"; a backslash takes the next character as it is. */
static inline loom_json expr_quoted(struct expr *e) {
    char quote = *e->p, *text = loom_alloc((size_t)(e->end - e->p)), *to = text;
    for (e->p++; e->p < e->end && *e->p != quote; e->p++) {
        e->p += *e->p == '\\' && e->p + 1 < e->end;
        *to++ = *e->p;
    }
    if (e->p == e->end)
        expr_expected(e, "the end of the text");
    else
        e->p++;
    return loom_format("'%t'", (loom_string){text, (size_t)(to - text)});
}
static inline const char *expr_digits(struct expr *e) {
    if (e->p == e->end || !expr_digit(*e->p)) expr_expected(e, "a digit");
    while (e->p < e->end && expr_digit(*e->p)) e->p++;
    return e->p;
}
static inline loom_json expr_literal_number(struct expr *e) {
    const char *start = e->p;
    e->p += *e->p == '-';
    if (e->end - e->p > 1 && *e->p == '0' && expr_digit(e->p[1])) expr_expected(e, "a number without leading zeros");
    expr_digits(e);
    if (e->p < e->end && *e->p == '.') {
        e->p++;
        expr_digits(e);
    }
    if (e->p < e->end && (*e->p | 32) == 'e') {
        e->p += e->end - e->p > 1 && (e->p[1] == '-' || e->p[1] == '+') ? 2 : 1;
        expr_digits(e);
    }
    return (loom_json){start, (size_t)(e->p - start)};
}

static inline loom_json expr_value(struct expr *e) {
    e->p = loom_blank(e->p, e->end);
    char c = 0;
    if (e->p < e->end) c = *e->p;
    if (expr_eat(e, "(")) {
        loom_json v = expr_any(e);
        expr_need(e, ")");
        return v;
    }
    if (c == '\'' || c == '"') return expr_quoted(e);
    if (c == '-' || expr_digit(c)) return expr_literal_number(e);
    if (expr_eat(e, "true") || expr_eat(e, "false")) return expr_bool(c == 't');
    if (expr_eat(e, "null")) return (loom_json){"null", 4};
    const char *start = e->p;
    bool has = expr_eat(e, "has"), size = !has && expr_eat(e, "size");
    if ((has || size) && expr_eat(e, "(")) {
        loom_json v = has ? expr_path(e, true) : expr_any(e);
        expr_need(e, ")");
        return has ? expr_bool(v.n > 0) : expr_size(e, v);
    }
    e->p = start;
    if (!expr_letter(c)) expr_expected(e, "a value");
    return expr_path(e, false);
}
static inline loom_json expr_not(struct expr *e) {
    bool odd = false, any = false;
    while (e->end - loom_blank(e->p, e->end) > 1 && loom_blank(e->p, e->end)[1] != '=' && expr_eat(e, "!")) {
        odd = !odd;
        any = true;
    }
    loom_json v = expr_value(e);
    return any ? expr_bool(expr_truth(e, v) != odd) : v;
}
static inline loom_json expr_comparison(struct expr *e) {
    /* bit 0: less fits, bit 1: equal fits, bit 2: greater fits */
    static const struct {
        char token[3];
        char fits;
    } operators[] = {{"==", 2}, {"!=", 5}, {"<=", 3}, {">=", 6}, {"<", 1}, {">", 4}};
    loom_json a = expr_not(e);
    if (expr_eat(e, "in")) return expr_bool(expr_in(e, a, expr_not(e)));
    for (size_t i = 0; i < sizeof(operators) / sizeof(*operators); i++) {
        if (!expr_eat(e, operators[i].token)) continue;
        loom_json b = expr_not(e);
        if (i < 2) return expr_bool(expr_equal(e, a, b) == (i == 0));
        if (!e->dry && !e->code && (expr_class(a) != expr_class(b) || expr_class(a) % 3 == 0))
            expr_fail(e, "type_mismatch", loom_format("'`%s` needs two numbers or two texts'", operators[i].token));
        return expr_bool(!e->dry && !e->code && operators[i].fits >> (expr_order(a, b) + 1) & 1);
    }
    return a;
}
/* Comparisons joined by && (all) or, one level up, by || (any). */
static inline loom_json expr_joined(struct expr *e, bool any) {
    loom_json v = any ? expr_joined(e, false) : expr_comparison(e);
    while (expr_eat(e, any ? "||" : "&&")) {
        bool left = expr_truth(e, v), dry = e->dry;
        e->dry = dry || left == any;
        v = any ? expr_joined(e, false) : expr_comparison(e);
        v = expr_bool(e->dry ? left : expr_truth(e, v));
        e->dry = dry;
    }
    return v;
}
static loom_json expr_any(struct expr *e) {
    if (e->depth == EXPR_DEPTH_MAX)
        expr_fail(e, "bad_expression", loom_format("'more than %d brackets within each other'", EXPR_DEPTH_MAX));
    e->depth++;
    loom_json v = e->code ? (loom_json){0} : expr_joined(e, true);
    e->depth--;
    return v;
}
/* The value of a whole expression; after an error (e->code) it means nothing. */
static inline loom_json expr_eval(struct expr *e, loom_string text) {
    while (text.n && loom_blank(text.p + text.n - 1, text.p + text.n) != text.p + text.n - 1) text.n--;
    e->p = loom_blank(text.p, text.p + text.n);
    e->end = text.p + text.n;
    text = (loom_string){e->p, (size_t)(e->end - e->p)};
    loom_json v = expr_any(e);
    if (!e->code && loom_blank(e->p, e->end) != e->end) expr_expected(e, "an operator or the end");
    if (e->code) e->message = loom_format("'%t, in `%t`'", loom_text(e->message), text);
    return v;
}

/* The `if` of a condition; it may stand in {{ }}. */
static inline bool condition_holds(struct expr *e, loom_json condition) {
    loom_string text = loom_text(condition);
    if (text.n >= 4 && loom_same(text.p, 2, "{{", 2) && loom_same(text.p + text.n - 2, 2, "}}", 2))
        text = (loom_string){text.p + 2, text.n - 4};
    loom_json v = expr_eval(e, text);
    return expr_truth(e, v);
}

/* ---- templates ---- */

static inline const char *template_find(const char *p, const char *end, const char *two) {
    while (p + 1 < end && !(p[0] == two[0] && p[1] == two[1])) p++;
    return p + 1 < end ? p : end;
}
/* A string with {{ }} in it. One that is nothing but one expression becomes its value, whatever its type. */
static inline void template_put_string(struct expr *e, struct loom_out *o, loom_string text) {
    const char *p = text.p, *end = text.p + text.n, *open = template_find(p, end, "{{");
    bool whole = open == p && template_find(p, end, "}}") == end - 2;
    loom_put(o, "\"", !whole);
    while (!e->code) {
        loom_put_escaped(o, p, (size_t)(open - p));
        if (open == end) break;
        const char *close = template_find(open, end, "}}");
        if (close == end)
            expr_fail(e, "bad_expression", loom_format("'`{{` without `}}` in `%t`'", text));
        else
            p = close + 2;
        loom_json v = e->code ? (loom_json){0} : expr_eval(e, (loom_string){open + 2, (size_t)(close - open - 2)});
        loom_string shown = loom_text(v);
        if (whole)
            loom_put(o, v.n ? v.p : "null", v.n ? v.n : 4);
        else
            loom_put_escaped(o, shown.p, shown.n);
        if (whole) return;
        open = template_find(p, end, "{{");
    }
    loom_put(o, "\"", 1);
}
static inline void template_put(struct expr *e, struct loom_out *o, loom_json template) {
    const char *p = template.p, *end = template.p + template.n;
    while (p < end) {
        const char *next = *p == '"' ? loom_string_end(p, end) : p + 1, *after = loom_blank(next, end);
        bool key = after < end && *after == ':';
        if (*p == '"' && !key && template_find(p, next, "{{") != next)
            template_put_string(e, o, loom_text((loom_json){p, (size_t)(next - p)}));
        else
            loom_put(o, p, (size_t)(next - p));
        p = next;
    }
}
/* The template with its expressions replaced by their values; names of members stay as they are. */
static inline loom_json template_fill(struct expr *e, loom_json template) {
    const char *end = template.n ? template.p + template.n : NULL;
    if (!end || template_find(template.p, end, "{{") == end) return template;
    struct loom_out o = {0};
    template_put(e, &o, template);
    return e->code ? (loom_json){0} : (loom_json){o.p, o.n};
}

#endif
