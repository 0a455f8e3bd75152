/* view.c: what people see: colours, durations, tables, and journal entries as one line each.
 *
 * The table says for each entry type how it looks, which field names it and which shows its value. An entry that opens
 * something is remembered under its id field, so that the entry which ends it shows the name and how long it took.
 */
#include "cli/cli.h"
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static const struct look {
    const char *type, *mark;
    enum paint paint;
    const char *what, *name, *value; /* name, value: fields, or NULL */
    const char *id;                  /* field that ties the end to the beginning */
    bool begins;
} looks[] = {
    {"turn_started", "▶", BOLD, "turn", NULL, "input", NULL, false},
    {"turn_completed", "■", GREEN, "done", NULL, "result", NULL, false},
    {"turn_finished", "■", GREEN, "finished", NULL, "result", NULL, false},
    {"turn_continued", "↻", GREEN, "continues", NULL, "input", NULL, false},
    {"turn_failed", "■", RED, "failed", NULL, "error", NULL, false},
    {"turn_cancelled", "■", YELLOW, "cancelled", NULL, "error", NULL, false},
    {"activity_scheduled", "→", BLUE, "activity", "name", "input", "activityId", true},
    {"activity_retry", "↻", YELLOW, "activity", NULL, "error", "activityId", false},
    {"activity_completed", "✓", GREEN, "activity", NULL, "result", "activityId", false},
    {"activity_failed", "✗", RED, "activity", NULL, "error", "activityId", false},
    {"call_sent", "→", BLUE, "call", "to", "input", "promise", true},
    {"call_completed", "✓", GREEN, "call", NULL, "result", "promise", false},
    {"call_failed", "✗", RED, "call", NULL, "error", "promise", false},
    {"message_sent", "→", BLUE, "send", "to", "input", NULL, false},
    {"child_spawned", "→", BLUE, "child", "actorType", "input", "promise", true},
    {"child_completed", "✓", GREEN, "child", NULL, "result", "promise", false},
    {"child_failed", "✗", RED, "child", NULL, "error", "promise", false},
    {"event_awaited", "…", YELLOW, "event", "event", NULL, "promise", true},
    {"event_received", "✓", GREEN, "event", NULL, "result", "promise", false},
    {"event_timed_out", "✗", RED, "event", NULL, "error", "promise", false},
    {"timer_set", "…", YELLOW, "timer", NULL, NULL, "promise", true},
    {"timer_fired", "✓", GREEN, "timer", NULL, NULL, "promise", false},
    {"person_awaited", "…", YELLOW, "person", "reason", NULL, "promise", true},
    {"resumed", "✓", GREEN, "person", NULL, "result", "promise", false},
    {"promise_cancelled", "✗", YELLOW, "cancelled", NULL, NULL, "promise", false},
    {"cancel_requested", "✗", YELLOW, "cancel requested", NULL, "reason", NULL, false},
    {"suspended", "‖", DIM, "waits for", "reason", NULL, NULL, false},
    {"state_patches", "·", DIM, "state", NULL, "patches", NULL, false},
    {"emitted", "·", DIM, "emits", "channel", "data", NULL, false},
};

/* What an entry began. */
struct begun {
    int64_t at;
    char *key, *name;
};

const char *paint(enum paint p) {
    static const char *const codes[] = {"\033[0m",  "\033[1m",  "\033[2m",  "\033[31m",
                                        "\033[32m", "\033[33m", "\033[34m", "\033[36m"};
    static int on = -1;
    if (on < 0) {
        const char *no = getenv("NO_COLOR"), *force = getenv("CLICOLOR_FORCE"), *term = getenv("TERM");
        bool terminal = isatty(1) && !(term && strcmp(term, "dumb") == 0);
        on = (terminal || (force && *force)) && !(no && *no);
    }
    return on ? codes[p] : "";
}

void print_json(yyjson_val *v, bool pretty) {
    char *text = yyjson_val_write(v, pretty ? YYJSON_WRITE_PRETTY_TWO_SPACES : 0, NULL);
    puts(text ? text : "");
    free(text);
}

void format_ms(int64_t ms, char out[32]) {
    if (ms < 1000)
        snprintf(out, 32, "%" PRId64 " ms", ms);
    else if (ms < 60000)
        snprintf(out, 32, "%" PRId64 ".%" PRId64 " s", ms / 1000, ms % 1000 / 100);
    else if (ms < 3600000)
        snprintf(out, 32, "%" PRId64 " m %" PRId64 " s", ms / 60000, ms % 60000 / 1000);
    else
        snprintf(out, 32, "%" PRId64 " h %" PRId64 " m", ms / 3600000, ms % 3600000 / 60000);
}

void format_clock(int64_t ms, char out[32]) {
    time_t seconds = (time_t)(ms / 1000);
    struct tm tm;
    localtime_r(&seconds, &tm);
    size_t n = strftime(out, 32, "%H:%M:%S", &tm);
    snprintf(out + n, 32 - n, ".%03d", (int)(ms % 1000));
}

static size_t columns(void) {
    struct winsize size;
    if (isatty(1) && ioctl(1, TIOCGWINSZ, &size) == 0 && size.ws_col > 40) return size.ws_col;
    const char *told = getenv("COLUMNS");
    int n = told ? atoi(told) : 0;
    return n > 40 ? (size_t)n : 160;
}

/* Appends JSON text cut to `room` characters, never inside one. */
static void add_cut(struct buf *line, struct str s, size_t room) {
    size_t i = 0, seen = 0;
    while (i < s.n && seen <= room) seen += ((unsigned char)s.p[i++] & 0xC0) != 0x80;
    bool cut = seen > room;
    while (cut && i > 0 && ((unsigned char)s.p[i - 1] & 0xC0) == 0x80) i--;
    buf_add(line, s.p, cut && i > 0 ? i - 1 : i);
    if (cut) buf_str(line, STR("…"));
}

/* A field's text for people: strings bare, an error as its message and code, everything else as JSON. */
static struct str field_text(yyjson_val *entry, const char *name, struct arena *a) {
    yyjson_val *v = name ? yyjson_obj_get(entry, name) : NULL;
    if (name && strcmp(name, "error") == 0 && json_str(v, "message").n)
        return arena_json(a, "%j (%j)", json_str(v, "message"), json_str(v, "code"));
    if (yyjson_is_str(v)) return (struct str){yyjson_get_str(v), yyjson_get_len(v)};
    return json_text_of(v, a);
}

static const struct look *look_of(yyjson_val *entry) {
    static const struct look other = {"", "·", DIM, "entry", "type", NULL, NULL, false};
    for (size_t i = 0; i < sizeof looks / sizeof *looks; i++)
        if (str_eq(json_str(entry, "type"), str_of(looks[i].type))) return &looks[i];
    return &other;
}

static void forget(struct begun *b) {
    if (b) free(b->key), free(b->name), free(b);
}

static struct str key_of(const struct look *look, struct str actor, yyjson_val *entry, struct arena *a) {
    return arena_json(a, "%j %d", actor, look->id ? json_int(entry, look->id, 0) : 0);
}

/* What the entry is called: a workflow's steps have a label, their id. */
static struct str name_of(const struct look *look, yyjson_val *entry, struct arena *a) {
    struct str name = field_text(entry, look->name, a), label = json_str(entry, "label");
    return label.n ? arena_json(a, "%j: %j", label, name) : name.p ? name : STR("");
}

void view_begin(struct view *v, struct str actor, yyjson_val *entry) {
    const struct look *look = look_of(entry);
    struct arena a = {0};
    struct str key = key_of(look, actor, entry, &a);
    if (look->begins) {
        struct begun *b = mem_alloc(sizeof *b);
        forget(map_remove(&v->begun, key));
        *b = (struct begun){json_int(entry, "at", 0), str_dup(key), str_dup(name_of(look, entry, &a))};
        map_put(&v->begun, str_of(b->key), b);
    }
    arena_free(&a);
}

void view_entry(struct view *v, struct str actor, yyjson_val *entry, size_t used, struct buf *line) {
    struct arena a = {0};
    const struct look *look = look_of(entry);
    struct str name = name_of(look, entry, &a), value = field_text(entry, look->value, &a),
               key = key_of(look, actor, entry, &a);
    struct begun *b = look->id && !look->begins ? map_get(&v->begun, key) : NULL;
    char took[32] = "";
    view_begin(v, actor, entry);
    if (b) {
        name = arena_dup(&a, str_of(b->name));
        format_ms(json_int(entry, "at", 0) - b->at, took);
        if (look->paint != YELLOW) /* not a retry: it is over */
            forget(map_remove(&v->begun, key));
    }
    buf_json(line, "%s%s%s %s%s%s%s%j%s%s%s%s", paint(look->paint), look->mark, paint(PLAIN), paint(BOLD), look->what,
             paint(PLAIN), name.n ? " " : "", name, b ? " " : "", paint(DIM), took, paint(PLAIN));
    if (value.n && !str_eq(value, STR("null"))) {
        bool error = look->value && strcmp(look->value, "error") == 0; /* never cut: it says what to do */
        used += 8 + strlen(look->what) + name.n + strlen(took);
        buf_json(line, "  %s", paint(DIM));
        add_cut(line, value, error ? value.n : columns() > used ? columns() - used : 0);
        buf_json(line, "%s", paint(PLAIN));
    }
    arena_free(&a);
}

size_t view_actor(struct str actor, struct buf *line) {
    size_t width = columns() < 100 ? 20 : 34;
    add_cut(line, actor, width);
    for (size_t n = actor.n; n <= width; n++) buf_char(line, ' ');
    if (actor.n > width) buf_char(line, ' ');
    return width + 2;
}

void view_free(struct view *v) {
    struct begun *b;
    for (size_t i = 0; (b = map_next(&v->begun, &i)) != NULL;) forget(b);
    map_free(&v->begun);
}

void view_timeline(struct view *v, yyjson_val *entries) {
    yyjson_val *entry;
    size_t i, n;
    yyjson_arr_foreach(entries, i, n, entry) {
        struct buf line = {0};
        char clock[32], since[32];
        int64_t at = json_int(entry, "at", 0);
        v->zero = v->zero ? v->zero : at;
        format_clock(at, clock);
        format_ms(at - v->zero, since);
        view_entry(v, STR_NONE, entry, 32, &line);
        printf("%s%5lld  %s %10s%s  %.*s\n", paint(DIM), (long long)json_int(entry, "cursor", 0), clock, since,
               paint(PLAIN), (int)line.n, line.p);
        buf_free(&line);
    }
    fflush(stdout);
}

/* ---- tables ---- */

struct column {
    char name[32]; /* of the field */
    int cut, width;
};

static struct str cell(const struct column *c, yyjson_val *row, struct arena *a) {
    struct str s = row ? field_text(row, c->name, a) : str_of(c->name);
    if (!s.p || str_eq(s, STR("null"))) return STR("");
    return (struct str){s.p, row && c->cut && s.n > (size_t)c->cut ? (size_t)c->cut : s.n};
}

/* Characters, as every one takes a column in most scripts. */
static int width_of(struct str s) {
    int n = 0;
    for (size_t i = 0; i < s.n; i++) n += ((unsigned char)s.p[i] & 0xC0) != 0x80;
    return n;
}

static void measure_row(struct column *c, yyjson_val *row) {
    struct arena a = {0};
    for (; *c->name; c++) {
        int n = width_of(cell(c, row, &a));
        c->width = n > c->width ? n : c->width;
    }
    arena_free(&a);
}

static void print_row(const struct column *c, yyjson_val *row) {
    struct arena a = {0};
    for (; *c->name; c++) {
        struct str s = cell(c, row, &a);
        bool last = !*c[1].name;
        printf("%.*s%*s%s", (int)s.n, s.p, last ? 0 : c->width - width_of(s), "", last ? "\n" : "  ");
    }
    arena_free(&a);
}

void print_table(yyjson_val *rows, const char *fields) {
    enum { COLUMNS_MAX = 8 };
    struct column columns[COLUMNS_MAX + 1] = {0}, *c = columns;
    yyjson_val *row;
    size_t i, n;
    int used;
    for (; c < columns + COLUMNS_MAX && sscanf(fields, " %31[^: ]%n", c->name, &used) == 1; c++) {
        fields += used;
        if (sscanf(fields, ":%d%n", &c->cut, &used) == 1) fields += used;
    }
    measure_row(columns, NULL);
    yyjson_arr_foreach(rows, i, n, row) measure_row(columns, row);
    fputs(paint(DIM), stdout);
    print_row(columns, NULL);
    fputs(paint(PLAIN), stdout);
    yyjson_arr_foreach(rows, i, n, row) print_row(columns, row);
}
