/* wdl-check.c: what a JSON Schema cannot say of a workflow document. Takes a document that fits wdl/schema.json; returns
 * null, or fails with `invalid_workflow` and a message that names the step.
 *
 * Checked: ids of steps and names of outputs are unique, expressions can be parsed, and every path starts at something
 * that is there by then: `input`, `workflow`, or the output of an earlier step. What rows of a parallel step give
 * is hidden from their neighbours, which run at the same time. Not checked: what lies inside the values.
 */
#include "../wdl/document.h"

struct known {
    struct known *next; /* the one before */
    loom_string name;
    bool hidden;
};
struct check {
    struct known *ids, *names;
};

static struct known *known_find(struct known *list, loom_string name) {
    for (; list; list = list->next)
        if (loom_same(list->name.p, list->name.n, name.p, name.n)) return list;
    return NULL;
}
static void known_add(struct known **list, loom_string name) {
    struct known *k = loom_alloc(sizeof(*k));
    *k = (struct known){.next = *list, .name = name};
    *list = k;
}
/* Those added since `mark`. */
static void known_hide(struct known *list, const struct known *mark, bool hidden) {
    for (; list != mark; list = list->next) list->hidden = hidden;
}
static bool known_root(void *ctx, loom_string name, loom_json *value) {
    const struct known *k = known_find(((struct check *)ctx)->names, name);
    (void)value;
    return k && !k->hidden;
}

/* An empty id stands for the document's own `output`. */
_Noreturn static void reject(loom_string id, loom_string why) {
    loom_fail("invalid_workflow", false, "'%s%t: %t'", id.n ? "step " : "output", id, why);
}
static void check_error(struct check *c, const struct expr *e, loom_string id) {
    if (!e->code) return;
    loom_json known = loom_format("");
    for (const struct known *k = c->names; k; k = k->next)
        if (!k->hidden) known = loom_format("%t%s%t", k->name, known.n ? ", " : "", (loom_string){known.p, known.n});
    loom_string why = loom_text(e->message);
    reject(id, loom_text(loom_format("'%t; known here: %t'", why, (loom_string){known.p, known.n})));
}
static void check_template(struct check *c, loom_json template, loom_string id) {
    struct expr e = {.root = known_root, .ctx = c, .dry = true};
    template_fill(&e, template);
    check_error(c, &e, id);
}

/* Recursive: the depth of JSON is limited at the door. */
static void check_steps(struct check *c, loom_json steps, loom_string prefix);

static void check_nested(struct check *c, loom_json step, loom_string id) {
    struct known *mark = c->names;
    int row = 0;
    for (struct loom_each it = loom_each(loom_get(step, "/branches")); loom_next(&it);) {
        struct known *before = c->names;
        check_steps(c, it.value, loom_text(loom_format("'%t.%d.'", id, ++row)));
        known_hide(c->names, before, true);
    }
    known_hide(c->names, mark, false);
    check_steps(c, loom_get(step, "/then"), loom_text(loom_format("'%t.then.'", id)));
    check_steps(c, loom_get(step, "/else"), loom_text(loom_format("'%t.else.'", id)));
}
static void check_output(struct check *c, loom_json output, loom_string id) {
    static const char *const reserved[] = {"true", "false", "null", "in", "has", "size"};
    loom_string name = loom_text(output);
    if (!output.n) return;
    for (size_t i = 0; i < sizeof(reserved) / sizeof(*reserved); i++)
        if (loom_is(output, reserved[i]))
            reject(id,
                   loom_text(loom_format("'`%t` is a word of expressions: choose another name for the output'", name)));
    if (known_find(c->names, name))
        reject(id, loom_text(loom_format("'the name `%t` is taken: choose another for the output'", name)));
    known_add(&c->names, name);
}
static void check_steps(struct check *c, loom_json steps, loom_string prefix) {
    int index = 0;
    for (struct loom_each it = loom_each(steps); loom_next(&it);) {
        loom_json condition = loom_get(it.value, "/if");
        loom_string id = step_id(it.value, prefix, ++index);
        if (known_find(c->ids, id)) reject(id, loom_chars("another step has this id already"));
        known_add(&c->ids, id);
        check_template(c, loom_get(it.value, "/input"), id);
        check_template(c, loom_get(it.value, "/key"), id);
        check_template(c, loom_get(it.value, "/event"), id);
        struct expr e = {.root = known_root, .ctx = c, .dry = true};
        if (condition.n) condition_holds(&e, condition);
        check_error(c, &e, id);
        check_nested(c, it.value, id);
        check_output(c, loom_get(it.value, "/output"), id);
        check_template(c, loom_get(it.value, "/compensation/input"), id);
    }
}

LOOM_ACTIVITY(wdl_check) {
    struct check c = {0};
    loom_json document = loom_input();
    known_add(&c.names, loom_chars("input"));
    known_add(&c.names, loom_chars("workflow"));
    check_steps(&c, loom_get(document, "/steps"), loom_chars(""));
    check_template(&c, loom_get(document, "/output"), loom_chars(""));
    loom_return("null");
}
