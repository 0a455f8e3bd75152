/* disk.c: each fourth seed runs on the store of the product, SQLite's files and blobs, above a disk that fails
 * (support/sim_disk.h). The process and its disk die together, and what was not synced is then kept, torn or lost. */
#include "sim.h"

#include <ucontext.h>

static struct sim_image *deployed;
static struct sim *running;

/* A sync that takes its time. */
static void delay(int64_t ms) {
    running->w.mono_us += ms * 1000;
}

/* ---- the keeper: its checkpoints go on beside the commits, and others have their turn between its operations ---- */

enum { STACK_BYTES = 256 << 10 };

static struct {
    struct store *store; /* under way there; NULL: none is */
    bool inside;
    ucontext_t at, back;
    char stack[STACK_BYTES];
} keeper;

static void keeper_main(void) {
    store_sqlite_keep(keeper.store);
    keeper.store = NULL;
    keeper.inside = false;
}

static void keeper_go(void) {
    keeper.inside = true;
    swapcontext(&keeper.back, &keeper.at);
}

static void keeper_pauses(void) {
    if (!keeper.inside || world_roll(&running->w, 3) == 0) return;
    keeper.inside = false;
    swapcontext(&keeper.at, &keeper.back);
}

static bool keeper_step(struct world *w) {
    if (!keeper.store && world_roll(w, 30)) return false;
    if (!keeper.store) {
        keeper.store = running->store;
        getcontext(&keeper.at);
        keeper.at.uc_stack = (stack_t){.ss_sp = keeper.stack, .ss_size = STACK_BYTES};
        keeper.at.uc_link = &keeper.back;
        makecontext(&keeper.at, keeper_main, 0);
    }
    keeper_go();
    return true;
}

static void keeper_ends(struct world *w, struct store *store) {
    (void)w;
    while (keeper.store == store) keeper_go();
}

/* ---- the files ---- */

static struct store *open_files(struct world *w, struct error *err) {
    struct sim *s = (struct sim *)w;
    if (s->zombie) sim_unlock(); /* it has lost its lock, and does not know */
    return s->store = store_sqlite_open(SIM_ROOT "/loom.db", &w->env, false, err);
}

/* deployed: with all that disk_keep has kept; otherwise empty. */
void disk_begin(struct sim *s) {
    struct error err;
    running = s;
    if (deployed)
        sim_load(deployed);
    else
        sim_format(s->seed);
    sim_seed(s->seed);
    sim_mortal(&s->w.dead);
    sim_slow(delay);
    sim_between(keeper_pauses);
    s->on_disk = true;
    s->w.under = open_files;
    s->w.other = keeper_step;
    s->w.closes = keeper_ends;
    s->w.blobs = blob_file_open(SIM_ROOT "/blobs", &err);
}

void disk_end(struct sim *s) {
    s->w.blobs->ops->close(s->w.blobs);
}

void disk_keep(void) {
    sim_restart(true);
    deployed = sim_save();
}

void disk_free(void) {
    sim_image_free(deployed);
    sim_format(0);
}

static void fail_soon(struct sim *s, uint64_t within) {
    enum sim_fault fault = (enum sim_fault)(1 + world_roll(&s->w, SIM_FAULT_END - 1));
    bool reads = fault >= SIM_READ_EIO_ONCE && fault <= SIM_READ_SHORT;
    uint64_t at = (reads ? sim_reads() : sim_operations()) + 1 + world_roll(&s->w, within);
    sim_fail(fault, at);
    s->failing = true;
    sim_says(s, "the disk fails by %s at %d", sim_fault_names[fault], (int)at);
}

static void heal(struct sim *s) {
    sim_fail(SIM_NONE, 0);
    s->failing = false;
}

/* Before the process starts, and perhaps its machine; the other process on it, too. */
void disk_start(struct sim *s) {
    if (s->w.dead) {
        bool power = world_roll(&s->w, 2);
        if (s->zombie) loom_abandon(s->zombie);
        s->zombie = NULL;
        sim_restart(power);
        sim_says(s, "the disk %s", power ? "was without power" : "stays");
    }
    heal(s);
    if (s->chaos && !s->spared && world_roll(&s->w, 3) == 0) fail_soon(s, 200);
}

void disk_step(struct sim *s) {
    if (s->failing && (!s->chaos || (sim_struck() && world_roll(&s->w, 20) == 0)))
        heal(s);
    else if (s->chaos && !s->failing && world_roll(&s->w, (uint64_t)s->crash_every) == 0)
        fail_soon(s, 40);
}
