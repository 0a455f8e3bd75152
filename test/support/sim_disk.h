/* sim_disk.h: a disk in memory, for every path below SIM_ROOT, that fails on order and forgets what was not synced.
 *
 * It stands under the file calls of the C library, so SQLite's own VFS, the store's guard and the blobs run on it as they
 * are. There is one disk per process. Whatever changes it (write, truncate, sync, create, rename, unlink, mkdir) is an
 * operation, counted from 1 since the last start; reads are counted apart.
 */
#ifndef LOOM_TEST_SIM_DISK_H
#define LOOM_TEST_SIM_DISK_H

#include "base/base.h"

#define SIM_ROOT "/simulated"

enum sim_fault {
    SIM_NONE,
    SIM_KILL,      /* the process dies in this operation; what was written stays in the page cache */
    SIM_POWER,     /* so does the machine: unsynced writes and names are kept, torn or dropped, each by seed */
    SIM_FULL_ONCE, /* no space: the first operation from here on that needs some */
    SIM_FULL,      /* and all after it */
    SIM_EIO_ONCE,  /* an I/O error, also of syncs */
    SIM_EIO,       /* and all after it */
    SIM_SYNC,      /* the first sync from here on fails: its writes count as clean, and perhaps are not on the disk */
    SIM_READ_EIO_ONCE, /* the same for reads, and their count */
    SIM_READ_EIO,
    SIM_READ_SHORT, /* half of what was asked for */
    SIM_SLOW,       /* every sync from here on takes 1 to 60 s of the clock that sim_slow was given */
    SIM_FAULT_END
};
extern const char *const sim_fault_names[SIM_FAULT_END];

void sim_format(uint64_t seed);                   /* an empty disk, no fault */
void sim_fail(enum sim_fault fault, uint64_t at); /* at the at-th operation (or read) from the last start */
/* Would this fault strike exactly there? Asked after an undisturbed run with the same operations. */
bool sim_strikes(enum sim_fault fault, uint64_t at);
bool sim_struck(void); /* it has */
bool sim_dead(void);   /* the process should be: all that it does now is in vain */
void sim_kill(void);   /* as SIM_KILL, now */
void sim_mortal(
    bool *flag); /* the process's own flag of being dead: set when the disk kills it, and obeyed however it died */
bool sim_pause(
    bool pause);       /* nothing is counted and nothing fails while it is looked at from outside; as it was before */
void sim_unlock(void); /* flocks are lost, and nobody is told */
/* The machine (power) or only the process starts anew, without a fault; nothing may be open. After a failed sync the page cache
 * may have lost what it wrongly took for clean. */
void sim_restart(bool power);
uint64_t sim_operations(void), sim_reads(void);
void sim_slow(void (*delay)(int64_t ms));
void sim_between(void (*fn)(void)); /* called before each read, write and sync */

struct buf *sim_file(const char *path);   /* its bytes, to be changed as decay does; NULL: there is none */
bool sim_next(size_t *i, char path[256]); /* the paths of all files */

/* The disk with all that is on it, and its dice. */
struct sim_image;
struct sim_image *sim_save(void);
void sim_load(const struct sim_image *image);
void sim_seed(uint64_t seed); /* other dice; nothing may be open */
void sim_image_free(struct sim_image *image);

#endif
