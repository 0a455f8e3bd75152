/* wdl.c: runs workflow documents (WDL). An ordinary actor: the document is its definition's `config`, the run's input
 * its message. Its steps are ops, so a crash anywhere goes on where it was.
 *
 * A branch is a row of steps under way, at most one at a time. Concurrency is several branches: a `parallel` step makes
 * one for each of its rows, a `condition` one for the row it chose, and the step ends when all of them have. The loop
 * starts what can start, in the order the branches were made, waits for any promise, and settles its step.
 *
 * The first step that fails, or a cancellation, fails the run: what is under way is cancelled and waited for, then the
 * compensations of all steps that completed run one by one, the last completed first. One that fails is told in the final error and
 * does not stop the others. The run ends with {code, message: "step ID (type): …"}.
 *
 * The document has passed schema.json and wdl-check. Deliberately not here: loops, sub-workflows, arithmetic.
 */
#include "document.h"

/* What expressions can start with: input, workflow, then the outputs of steps in order of completion. */
struct name {
    struct name *next;
    loom_string name;
    loom_json value;
};

struct branch {
    struct branch *next, *parent;
    struct branch *first_child; /* of the present step */
    struct loom_each steps;     /* steps.value is the present one */
    loom_string prefix, id;     /* of the present step */
    loom_json last;             /* what the last completed step gave */
    int index, children;        /* children still under way */
    int promise;                /* what the present step waits for, or 0 */
    bool ended;
};

/* A compensation to run if the workflow fails. */
struct undo {
    struct undo *next; /* the one completed before */
    loom_string id;
    loom_json step;
};

struct run {
    struct name *names, *names_last;
    struct branch *branches, *branches_last;
    struct undo *undo; /* the last completed first */
    loom_json code;    /* of the failure; missing: none */
    loom_string message;
};

/* ---- names and templates ---- */

static void name_add(struct run *run, loom_string name, loom_json value) {
    struct name *n = loom_alloc(sizeof(*n));
    *n = (struct name){.name = name, .value = value};
    if (run->names_last)
        run->names_last->next = n;
    else
        run->names = n;
    run->names_last = n;
}
/* Knows every name: a step that did not run has left nothing. */
static bool name_value(void *ctx, loom_string name, loom_json *value) {
    const struct run *run = ctx;
    for (const struct name *n = run->names; n; n = n->next)
        if (loom_same(n->name.p, n->name.n, name.p, name.n)) *value = n->value;
    return true;
}
static loom_result expression_result(const struct expr *e, loom_json value) {
    return e->code ? (loom_result){.value = loom_format("{'code':'%s','message':%j}", e->code, e->message)}
                   : (loom_result){.ok = true, .value = value};
}
static loom_result fill(struct run *run, loom_json template) {
    struct expr e = {.root = name_value, .ctx = run};
    loom_json value = template_fill(&e, template);
    return expression_result(&e, value);
}

/* ---- the end of steps ---- */

static void cancel_all(const struct run *run) {
    for (const struct branch *b = run->branches; b; b = b->next)
        if (b->promise) loom_op("cancel", "{'promise':%d}", b->promise);
}
static void run_fail(struct run *run, loom_json error, loom_string message) {
    loom_json code = loom_get(error, "/code");
    run->code = code.n ? code : loom_format("'failed'");
    run->message = message;
    cancel_all(run);
}
static void step_fail(struct run *run, struct branch *b, loom_json error) {
    if (run->code.n) return;
    loom_string type = loom_text(loom_get(b->steps.value, "/type")), why = loom_text(loom_get(error, "/message"));
    run_fail(run, error, loom_text(loom_format("'step %t (%t): %t'", b->id, type, why)));
}
static void step_complete(struct run *run, struct branch *b, loom_json value) {
    loom_json step = b->steps.value, output = loom_get(step, "/output");
    b->last = value;
    if (output.n) name_add(run, loom_text(output), value);
    if (loom_get(step, "/compensation").n) {
        struct undo *u = loom_alloc(sizeof(*u));
        *u = (struct undo){run->undo, b->id, loom_get(step, "/compensation")};
        run->undo = u;
    }
}
/* The op that a step consists of has answered its promise. */
static void step_started(struct run *run, struct branch *b, loom_result promise) {
    if (promise.ok)
        b->promise = (int)loom_int(promise.value);
    else
        step_fail(run, b, promise.value);
}

/* ---- the beginning of steps: one function per type ---- */

static void branch_add(struct run *run, struct branch *parent, loom_json steps, loom_string prefix) {
    struct branch *b = loom_alloc(sizeof(*b));
    *b = (struct branch){.parent = parent, .steps = loom_each(steps), .prefix = prefix};
    if (run->branches_last)
        run->branches_last->next = b;
    else
        run->branches = b;
    run->branches_last = b;
    if (!parent) return;
    if (parent->children++ == 0) parent->first_child = b;
}

/* Of a step or of a compensation: both have the same members. */
static loom_result activity_start(struct run *run, loom_json step, loom_string label) {
    loom_result input = fill(run, loom_get(step, "/input"));
    if (!input.ok) return input;
    return loom_op("activity", "{'name':%j,'input':%j,'label':'%t'%m%m%m}", loom_get(step, "/activity"), input.value,
                   label, "version", loom_get(step, "/version"), "timeoutMs", loom_get(step, "/timeout"), "retry",
                   loom_get(step, "/retryPolicy"));
}
static void begin_activity(struct run *run, struct branch *b, loom_json step) {
    step_started(run, b, activity_start(run, step, b->id));
}
static void begin_agent(struct run *run, struct branch *b, loom_json step) {
    loom_result input = fill(run, loom_get(step, "/input")), key = fill(run, loom_get(step, "/key"));
    if (!input.ok || !key.ok) return step_fail(run, b, input.ok ? key.value : input.value);
    step_started(run, b,
                 loom_op("child.spawn", "{'type':%j,'input':%j,'label':'%t'%m}", loom_get(step, "/agentType"),
                         input.value, b->id, "key", key.value));
}
static void begin_wait(struct run *run, struct branch *b, loom_json step) {
    loom_json duration = loom_get(step, "/duration");
    loom_result event = fill(run, loom_get(step, "/event"));
    if (!event.ok)
        step_fail(run, b, event.value);
    else if (duration.n)
        step_started(run, b, loom_op("timer", "{'delayMs':%j}", duration));
    else
        step_started(run, b,
                     loom_op("event.wait", "{'type':%j%m}", event.value, "timeoutMs", loom_get(step, "/timeout")));
}
static void begin_parallel(struct run *run, struct branch *b, loom_json step) {
    int row = 0;
    for (struct loom_each it = loom_each(loom_get(step, "/branches")); loom_next(&it);)
        branch_add(run, b, it.value, loom_text(loom_format("'%t.%d.'", b->id, ++row)));
}
static void begin_condition(struct run *run, struct branch *b, loom_json step) {
    struct expr e = {.root = name_value, .ctx = run};
    bool yes = condition_holds(&e, loom_get(step, "/if"));
    if (e.code) return step_fail(run, b, expression_result(&e, step).value);
    loom_json row = loom_get(step, yes ? "/then" : "/else");
    if (row.n) branch_add(run, b, row, loom_text(loom_format("'%t.%s.'", b->id, yes ? "then" : "else")));
}

static const struct {
    const char *type;
    void (*begin)(struct run *run, struct branch *b, loom_json step);
} step_types[] = {
    {"activity", begin_activity}, {"agent", begin_agent},         {"wait", begin_wait},
    {"parallel", begin_parallel}, {"condition", begin_condition},
};

/* ---- the loop ---- */

/* What a step made of branches gives: of `parallel` the list of what they gave, of `condition` what its branch gave. */
static loom_json children_value(const struct branch *b) {
    bool list = loom_is(loom_get(b->steps.value, "/type"), "parallel");
    loom_json value = loom_format(list ? "[" : "null");
    for (const struct branch *c = b->first_child; c && c->parent == b; c = c->next)
        value = list ? loom_format("%j%s%j", value, c == b->first_child ? "" : ",", c->last) : c->last;
    return list ? loom_format("%j]", value) : value;
}
/* Goes on until the branch waits for something; at its end the parent goes on, when this was its last child. */
static void advance(struct run *run, struct branch *b) {
    while (b && !run->code.n && !b->promise && !b->children) {
        if (!loom_next(&b->steps)) {
            b->ended = true;
            b = b->parent;
            if (b && --b->children == 0) step_complete(run, b, children_value(b));
            continue;
        }
        loom_json step = b->steps.value, type = loom_get(step, "/type");
        b->id = step_id(step, b->prefix, ++b->index);
        b->first_child = NULL;
        for (size_t i = 0; i < sizeof(step_types) / sizeof(*step_types); i++)
            if (loom_is(type, step_types[i].type)) step_types[i].begin(run, b, step);
        if (!run->code.n && !b->promise && !b->children) step_complete(run, b, children_value(b));
    }
}
static void advance_all(struct run *run) {
    for (struct branch *b = run->branches; b; b = b->next)
        if (!b->ended) advance(run, b);
}
/* Waits for any step under way and settles it. False: none is. */
static bool settle_one(struct run *run) {
    size_t n = 0, i = 0;
    for (const struct branch *b = run->branches; b; b = b->next) n += b->promise != 0;
    int *promises = loom_alloc(n * sizeof(int));
    for (const struct branch *b = run->branches; b; b = b->next)
        if (b->promise) promises[i++] = b->promise;
    if (n == 0) return false;
    loom_result r = loom_await_any(promises, n);
    if (!r.promise && run->code.n) return false;
    if (!r.promise) run_fail(run, r.value, loom_text(loom_get(r.value, "/message")));
    for (struct branch *b = run->branches; b; b = b->next) {
        if (!r.promise || b->promise != r.promise) continue;
        b->promise = 0;
        if (r.ok)
            step_complete(run, b, r.value);
        else
            step_fail(run, b, r.value);
    }
    return true;
}

/* ---- the end of the run ---- */

static loom_result undo_try(struct run *run, const struct undo *u) {
    loom_result started = activity_start(run, u->step, loom_text(loom_format("'%t.compensation'", u->id)));
    return started.ok ? loom_await((int)loom_int(started.value)) : started;
}
static void compensate(struct run *run) {
    for (const struct undo *u = run->undo; u; u = u->next) {
        loom_result r = undo_try(run, u);
        if (!r.ok && loom_is(loom_get(r.value, "/code"), "cancelled"))
            r = undo_try(run, u); /* the cancellation came now; it comes once */
        if (r.ok) continue;
        loom_json why = loom_format("'compensation of step %t failed: %t'", u->id,
                                    loom_text(loom_get(r.value, "/message")));
        loom_log("error", "%j", why);
        run->message = loom_text(loom_format("'%t; %t'", run->message, loom_text(why)));
    }
}
/* The document's `output`, or an object of all outputs. */
static loom_result run_output(struct run *run, loom_json template) {
    if (template.n) return fill(run, template);
    struct loom_out o = {0};
    const struct name *outputs = run->names->next->next;
    for (const struct name *n = outputs; n; n = n->next) {
        loom_put(&o, n == outputs ? "{\"" : ",\"", 2);
        loom_put(&o, n->name.p, n->name.n);
        loom_put(&o, "\":", 2);
        loom_put(&o, n->value.p, n->value.n);
    }
    loom_put(&o, outputs ? "}" : "{}", outputs ? 1 : 2);
    return (loom_result){.ok = true, .value = {o.p, o.n}};
}

LOOM_ACTOR(wdl) {
    struct run run = {0};
    loom_json document = loom_config();
    name_add(&run, loom_chars("input"), loom_input());
    name_add(&run, loom_chars("workflow"),
             loom_format("{'id':%j,'name':%j,'version':%j}", loom_get(loom_self(), "/key"), loom_get(document, "/name"),
                         loom_get(document, "/version")));
    branch_add(&run, NULL, loom_get(document, "/steps"), loom_chars(""));
    do advance_all(&run);
    while (settle_one(&run));

    loom_result output = {0};
    if (!run.code.n && !(output = run_output(&run, loom_get(document, "/output"))).ok)
        run_fail(&run, output.value,
                 loom_text(loom_format("'output: %t'", loom_text(loom_get(output.value, "/message")))));
    if (!run.code.n) loom_return("%j", output.value);
    compensate(&run);
    loom_fail(loom_text(run.code).p, false, "'%t'", run.message);
}
