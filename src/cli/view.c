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

/* A field's text for people: strings bare, everything else as JSON. */
static struct str field_text(yyjson_val *entry, const char *name, struct arena *a) {
    yyjson_val *v = name ? yyjson_obj_get(entry, name) : NULL;
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

void view_entry(struct view *v, struct str actor, yyjson_val *entry, struct buf *line) {
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
        size_t used = 56 + strlen(look->what) + name.n + strlen(took);
        buf_json(line, "  %s", paint(DIM));
        add_cut(line, value, columns() > used + 20 ? columns() - used : 20);
        buf_json(line, "%s", paint(PLAIN));
    }
    arena_free(&a);
}

void view_actor(struct str actor, struct buf *line) {
    enum { WIDTH = 34 };
    add_cut(line, actor, WIDTH);
    for (size_t n = actor.n; n <= WIDTH; n++) buf_char(line, ' ');
    if (actor.n > WIDTH) buf_char(line, ' ');
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
        view_entry(v, STR_NONE, entry, &line);
        printf("%s%5lld  %s %10s%s  %.*s\n", paint(DIM), (long long)json_int(entry, "cursor", 0), clock, since,
               paint(PLAIN), (int)line.n, line.p);
        buf_free(&line);
    }
    fflush(stdout);
}

static void print_row(const char *cols, yyjson_val *row) {
    char name[32];
    int width, used;
    struct arena a = {0};
    for (const char *p = cols; sscanf(p, " %31[^:]:%d%n", name, &width, &used) == 2; p += used) {
        struct str s = row ? field_text(row, name, &a) : str_of(name);
        printf("%-*.*s ", width, s.p && !str_eq(s, STR("null")) ? (int)s.n : 0, s.p ? s.p : "");
    }
    putchar('\n');
    arena_free(&a);
}

void print_table(yyjson_val *rows, const char *cols) {
    yyjson_val *row;
    size_t i, n;
    fputs(paint(DIM), stdout);
    print_row(cols, NULL);
    fputs(paint(PLAIN), stdout);
    yyjson_arr_foreach(rows, i, n, row) print_row(cols, row);
}
