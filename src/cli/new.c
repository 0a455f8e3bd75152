/* new.c: `loom new`: a project folder, an actor or an activity, out of the files in template/ that the executable holds.
 *
 * In paths and texts @NAME@ becomes the name, @IDENT@ the same as a C identifier. Nothing that exists is overwritten.
 */
#include "cli/cli.h"
#include "runtime/runtime.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEMPLATES "template/"

static void fill(struct buf *out, struct str text, const char *name) {
    for (size_t i = 0; i < text.n;) {
        struct str rest = {text.p + i, text.n - i};
        if (str_starts(rest, STR("@NAME@"))) {
            buf_str(out, str_of(name));
            i += 6;
        } else if (str_starts(rest, STR("@IDENT@"))) {
            for (const char *p = name; *p; p++) buf_char(out, *p == '-' || *p == '.' ? '_' : *p);
            i += 7;
        } else {
            buf_char(out, text.p[i++]);
        }
    }
}

/* Makes the folders of a path, as mkdir -p of its parent. */
static void make_parents(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0777);
        *slash = '/';
    }
}

static bool write_file(char *path, struct str text) {
    make_parents(path);
    FILE *f = fopen(path, "wbx");
    bool ok = f && fwrite(text.p, 1, text.n, f) == text.n;
    if (f && fclose(f)) ok = false;
    if (!ok)
        fail(errno == EEXIST ? "%s exists; choose another name, or remove it first" : "cannot write %s: %s", path,
             strerror(errno));
    else
        printf("%s  new%s  %s\n", paint(GREEN), paint(PLAIN), path);
    return ok;
}

/* Writes all templates below `from` under dir; name goes into their texts. */
static bool write_templates(const char *from, const char *dir, const char *name) {
    bool ok = true;
    for (const struct builtin_file *f = builtin_files; f->path && ok; f++) {
        if (!str_starts(str_of(f->path), str_of(from))) continue;
        struct buf path = {0}, text = {0};
        struct str rest = str_of(f->path + strlen(from));
        buf_json(&path, str_eq(rest, STR("gitignore")) ? "%s/." : "%s/",
                 dir); /* a hidden template would be forgotten */
        fill(&path, rest, name);
        buf_char(&path, '\0');
        fill(&text, (struct str){(const char *)f->start, (size_t)(f->end - f->start)}, name);
        ok = write_file(path.p, buf_view(&text));
        buf_free(&path);
        buf_free(&text);
    }
    return ok;
}

static bool name_ok(const char *name) {
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789._-");
    return n > 0 && n <= 64 && !name[n] && name[0] >= 'a';
}

int command_new(struct cli *c) {
    static const struct {
        const char *word, *templates, *folder;
    } kinds[] = {{"actor", TEMPLATES "actor/", "actors"}, {"activity", TEMPLATES "activity/", "activities"}};
    const char *name = c->args[c->arg_count - 1];
    if (!name_ok(name))
        return fail("`%s` is no name: a lower-case letter, then letters, digits, `.`, `_`, `-`; at most 64", name),
               EXIT_USAGE;
    for (size_t i = 0; i < 2; i++) {
        if (strcmp(c->args[0], kinds[i].word)) continue;
        if (c->arg_count == 1) return fail_usage(c, "loom new %s: its NAME is missing", kinds[i].word);
        if (access("loom.json", F_OK))
            return fail("this folder is not a project (no loom.json); make one with `loom new NAME`, or go into it");
        struct buf dir = {0};
        buf_json(&dir, "%s/%s", kinds[i].folder, name);
        buf_char(&dir, '\0');
        bool ok = write_templates(kinds[i].templates, dir.p, name);
        buf_free(&dir);
        return ok ? EXIT_OK : EXIT_FAILED;
    }
    if (c->arg_count == 2) return fail_usage(c, "loom new makes an actor or an activity, not `%s`", c->args[0]);
    struct buf actor = {0}, activity = {0};
    buf_json(&actor, "%s/actors/counter", name);
    buf_json(&activity, "%s/activities/hello", name);
    buf_char(&actor, '\0');
    buf_char(&activity, '\0');
    bool ok = write_templates(TEMPLATES "project/", name, name) &&
              write_templates(TEMPLATES "actor/", actor.p, "counter") &&
              write_templates(TEMPLATES "activity/", activity.p, "hello");
    if (ok) printf("\n  cd %s\n  loom test\n  loom dev\n", name);
    buf_free(&actor);
    buf_free(&activity);
    return ok ? EXIT_OK : EXIT_FAILED;
}
